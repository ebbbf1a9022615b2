"""Pack a folder of images for the pipeline: `python -m tools.pack FOLDER`, then `make`.

FOLDER holds CLASS/… or SPLIT/CLASS/…. Every image is looked at once. A tar archive gets
the images, and params.yaml what the stages need to know about them. The same images
make the same bytes, wherever and whenever they are packed.
"""

import argparse
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.plumbing import parameters, runtime
from stages.plumbing.errors import UserError
from stages.plumbing.hermetic import temporary
from stages.plumbing.hermetic.values import parse_yaml
from tools.image_files import LeftOut
from tools.pack import table
from tools.pack.folder import find_images
from tools.pack.look import look_at_all
from tools.pack.params import choose_params, edit_params
from tools.pack.place import Packed, place
from tools.pack.tar import write

VALID_SHARE = 0.2
MIN_CLASSES, MAX_CLASSES = 2, 256


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m tools.pack",
        description="Pack a folder of images, and write params.yaml for it.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="CLASS/… or SPLIT/CLASS/…")
    parser.add_argument(
        "--valid",
        type=_share,
        metavar="SHARE",
        help=f"of CLASS/…, how much to validate on ({VALID_SHARE} unless given)",
    )
    splits = parser.add_mutually_exclusive_group()
    splits.add_argument(
        "--splits",
        nargs=2,
        metavar=("TRAIN", "VALID"),
        help="the folders that are splits, if their names do not tell",
    )
    splits.add_argument(
        "--no-splits",
        action="store_const",
        const=[],
        dest="splits",
        help="the outer folders are classes, whatever they are called",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=_integer(1, 4096),
        metavar=("H", "W"),
        help="height and width in pixels to resize all images to",
    )
    parser.add_argument(
        "--background",
        type=_integer(0, 255),
        metavar="N",
        help="gray level to lay transparent images over, from 0, black, to 255",
    )
    parser.add_argument(
        "-o",
        metavar="FILE.tar",
        dest="out",
        help="data/ and FOLDER's name unless given",
    )
    parser.add_argument("--dry-run", action="store_true", help="show it, write nothing")
    return parser.parse_args()


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return share


def _integer(low: int, high: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return int(text)

    return integer


def read_folder(
    path: Path, chosen: Sequence[str] | None, share: float | None, left_out: LeftOut
) -> tuple[list[Packed], tuple[str, str]]:
    """Look at all images of a folder, and assign each to a split.

    Returns the images, and the folders of the splits in the archive. Raises UserError
    if there are fewer than two classes to pack, or too many.
    """
    found, splits = find_images(str(path), chosen, left_out)
    if splits and share is not None:
        raise UserError(
            f"--valid: {path} has the splits {splits.train} and {splits.valid} "
            f"({splits.reason}): leave --valid out, or say --no-splits"
        )
    share = share or VALID_SHARE
    images = []
    for image, look in zip(found, look_at_all(found), strict=True):
        if isinstance(look, str):
            left_out.add(look, image.path)
        else:
            images.append((image, look))
    placed, folders = place(images, splits, share, left_out)
    reason = splits.reason if splits else f"{100 * share:g} % by content"
    print(f"splits: {folders[0]}, to train on, and {folders[1]} ({reason})")
    return placed, folders


def main() -> None:
    """Write the archive and params.yaml, and say what is in it."""
    arguments = parse_arguments()
    parameters.load(parameters.Report)  # refuses a file that is no YAML
    with open(parameters.FILE, encoding="utf-8", newline="") as file:
        text = file.read()
    folder = Path(arguments.folder).expanduser()
    if not (arguments.folder and folder.is_dir()):
        raise UserError(
            f"{arguments.folder!r} is no folder: give one that holds CLASS/… "
            "(make pack FOLDER=~/photos)"
        )
    out = arguments.out or f"data/{folder.resolve().name or 'images'}.tar"
    if not out.endswith(".tar"):
        raise UserError(f"-o {out}: it will be a tar: let the name end in .tar")

    left_out = LeftOut()
    images, splits = read_folder(folder, arguments.splits, arguments.valid, left_out)
    count = len({image.label for image in images})
    if not MIN_CLASSES <= count <= MAX_CLASSES:
        for line in table.describe_left_out(left_out):
            print(line)
        raise UserError(
            f"{folder} has {count} classes with images for both splits, and "
            f"{MIN_CLASSES} to {MAX_CLASSES} are needed: put the images of each class "
            "into a folder of its own"
        )
    size, background = arguments.size, arguments.background
    params = choose_params(images, splits, parse_yaml(text), size, background)
    for line in table.describe(images, params, left_out):
        print(line)
    edit_params(text, params)  # refuses before anything is written
    digest = write(images, out, dry_run=arguments.dry_run)
    params |= {"download.url": out, "download.sha256": digest}
    edited = edit_params(text, params)
    before, after = text.splitlines(), edited.splitlines()
    names = {"fromfile": parameters.FILE, "tofile": parameters.FILE}
    diff = list(difflib.unified_diff(before, after, **names, n=0, lineterm=""))
    print("\n".join(diff) or f"{parameters.FILE}: nothing to change")
    if diff and not arguments.dry_run:
        partial = temporary(parameters.FILE)
        with open(partial, "w", encoding="utf-8", newline="") as file:
            file.write(edited)
        os.replace(partial, parameters.FILE)
        print("Now run make.")


if __name__ == "__main__":
    runtime.explain_errors("pack")
    main()
