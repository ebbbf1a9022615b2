"""Pack a folder of images for the pipeline: `python -m tools.pack FOLDER`, then `make`.

FOLDER holds CLASS/… or SPLIT/CLASS/…. Every image is looked at once. A tar archive gets
the images, and params.yaml what the stages need to know about them. The same images
make the same bytes, wherever and whenever they are packed.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from stages.plumbing import parameters, runtime
from stages.plumbing.errors import UserError
from hermetic import temporary
from hermetic.values import parse_yaml
from stages.plumbing.parameters import MAX_CLASSES, MAX_SIDE, MIN_CLASSES
from tools.image_files import LeftOut, escape, walk
from tools.pack import table
from tools.pack.folder import arrange, name_folders, plain_name
from tools.pack.look import look_at_all
from tools.pack.params import choose_params, edit_params
from tools.pack.place import Packed, place
from tools.pack.tar import write

VALID_SHARE = 0.2


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        "python -m tools.pack",
        description="Pack a folder of images, and write params.yaml for it.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="CLASS/… or SPLIT/CLASS/…")
    parser.add_argument(
        "--valid",
        type=share,
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
        type=integer(1, MAX_SIDE),
        metavar=("H", "W"),
        help="height and width in pixels to resize all images to",
    )
    parser.add_argument(
        "--background",
        type=integer(0, 255),
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


def share(text: str) -> float:
    """Parse a number between 0 and 1."""
    if not 0 < (value := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def integer(low: int, high: int) -> Callable[[str], int]:
    """Return what parses an integer in a range, ends included."""

    def integer(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return int(text)

    return integer


def find_paths(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the folder to pack, and the archive; raise UserError without the former.

    And if the archive cannot be written there.
    """
    folder = os.path.expanduser(arguments.folder)
    if not os.path.isdir(folder):
        raise UserError(
            f"{arguments.folder!r} is no folder: give one that holds CLASS/… "
            "(make pack FOLDER=~/photos)"
        )
    name = plain_name(Path(folder).resolve().name) or "images"
    out = os.path.expanduser(arguments.out or f"data/{name}.tar")
    if not out.endswith(".tar"):
        raise UserError(f"-o {out}: it will be a tar: let the name end in .tar")
    if not os.path.isdir(os.path.dirname(out) or "."):
        raise UserError(f"-o {out}: there is no folder {os.path.dirname(out)}: make it")
    return folder, out


def read_folder(
    folder: str, chosen: Sequence[str] | None, share: float | None, left_out: LeftOut
) -> tuple[list[Packed], tuple[str, str]]:
    """Look at all images of a folder, and assign each to a split.

    Returns the images, and the folders of the splits in the archive.
    """
    paths, looks = [], []
    for found in walk(folder, left_out):
        if isinstance(found, OSError):
            left_out.add(found.strerror or "cannot be listed", found.filename)
        else:
            paths.append(found)
    for path, look in zip(paths, look_at_all(paths), strict=True):
        if isinstance(look, str):
            left_out.add(look, path)
        else:
            looks.append((path, look))
    images, splits = arrange(name_folders(folder, looks), chosen, left_out)
    if splits and share is not None:
        raise UserError(
            f"--valid: {folder} has the splits {' and '.join(splits.folders)} "
            f"({splits.reason}): leave --valid out, or say --no-splits"
        )
    share = share or VALID_SHARE
    packed, folders = place(images, splits, share, left_out)
    reason = splits.reason if splits else f"{100 * share:g} % by content"
    say(f"splits: {folders[0]}, to train on, and {folders[1]} ({reason})")
    return packed, folders


def say(line: str) -> None:
    """Print a line, whatever the names in it hold."""
    print(escape(line))


def check_classes(count: int, folder: str, left_out: LeftOut) -> None:
    """Raise UserError for too few classes or too many."""
    if MIN_CLASSES <= count <= MAX_CLASSES:
        return
    for line in table.describe_left_out(left_out):
        say(line)
    told = f"{folder} has {count} classes with images for both splits"
    if count > MAX_CLASSES:
        raise UserError(f"{told}, and {MAX_CLASSES} is the most: pack fewer")
    raise UserError(
        f"{told}, and {MIN_CLASSES} is the least: put the images of each class into a "
        "folder of its own, two different ones at least"
    )


def save_params(before: str, after: str, *, dry_run: bool) -> None:
    """Write params.yaml, if it changes, and show how."""
    names = {"fromfile": parameters.FILE, "tofile": parameters.FILE}
    lines = before.splitlines(), after.splitlines()
    diff = list(difflib.unified_diff(*lines, **names, n=0, lineterm=""))
    if diff and not dry_run:
        partial = temporary(parameters.FILE)
        with open(partial, "w", encoding="utf-8", newline="") as file:
            file.write(after)
        os.replace(partial, parameters.FILE)
    print("\n".join(diff) or f"{parameters.FILE}: nothing to change")
    if diff and not dry_run:
        print("Now run make.")


def main() -> None:
    """Write the archive and params.yaml, and say what is in it."""
    arguments = parse_arguments()
    folder, out = find_paths(arguments)
    parameters.read("data")  # refuses what is no YAML
    with open(parameters.FILE, encoding="utf-8", newline="") as file:
        text = file.read()
    left_out, current = LeftOut(), parse_yaml(text)
    images, splits = read_folder(folder, arguments.splits, arguments.valid, left_out)
    check_classes(len({image.label for image in images}), folder, left_out)
    size, background = arguments.size, arguments.background
    params = choose_params(images, splits, current, size, background)
    edit_params(text, params)  # refuses before anything is written
    for line in table.describe(images, params, current, left_out):
        say(line)
    sys.stdout.flush()  # ends here if nobody reads it
    written = write(images, out, dry_run=arguments.dry_run)
    done = "would be written" if arguments.dry_run else "written"
    if not written.is_new:
        done = "unchanged"
    elif written.replaces:
        done += " in place of another archive"
    params |= {"download.url": out, "download.sha256": written.sha256}
    say(f"{out}: {done}, {written.size:,} bytes")
    save_params(text, edit_params(text, params), dry_run=arguments.dry_run)


if __name__ == "__main__":
    runtime.explain_errors("pack")
    main()
