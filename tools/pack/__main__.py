"""Pack a folder of images for the pipeline: `python -m tools.pack FOLDER`, then `make`.

FOLDER, or a tar or zip of it, holds CLASS/… or SPLIT/CLASS/…. Writes the images to a
tar archive, and the settings for them to params.yaml. The same images give the same
bytes, wherever and whenever they are packed. docs/own-images.md explains the options.
"""

import argparse
import difflib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable

from stages.images.names import escape
from stages.plumbing import artifacts, parameters, runtime
from stages.plumbing.errors import UserError
from stages.plumbing.parameters import MAX_CLASSES, MAX_SIDE, MIN_CLASSES
from tools.image_files import LeftOut, Source, open_source
from tools.pack.labels import label_by_name, label_by_table, match, suggest
from tools.pack.look import describe, look_at_all
from tools.pack.params import choose_params, edit_params
from tools.pack.place import ONE_SPLIT, find_layout, name_members, place, plain_name
from tools.pack.write import write


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; raise UserError for folders that do not exist."""
    parser = argparse.ArgumentParser("python -m tools.pack", description=__doc__)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="CLASS/… or SPLIT/CLASS/…, or a tar or zip")
    share, side, level = between(0.01, 0.99, float), between(1, MAX_SIDE), between(1, 9)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--level", type=level, metavar="N", help="CLASS is the Nth folder below FOLDER")
    add("--labels", metavar="FILE", help="a CSV file with the classes")
    add("--class-from", type=pattern, metavar="REGEX", help="finds CLASS in a path")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--splits", nargs=2, metavar=("TRAIN", "VALID"))
    add(
        "--group",
        type=pattern,
        metavar="REGEX",
        help="images with the same match stay together",
    )
    add = parser.add_argument
    add(
        "--valid",
        type=share,
        metavar="SHARE",
        help="of each class, for validation (default: 0.2)",
    )
    add("--size", nargs=2, type=side, metavar=("H", "W"), help="in pixels, for all")
    add("--gray", action="store_true", help="convert colour to gray")
    add("--background", type=between(0, 255), metavar="N", help="gray level, 0 to 255")
    add("-o", dest="out", metavar="FILE.tar", help="the archive (default: in data/)")
    add("--dry-run", action="store_true", help="show everything, write nothing")
    add("--list", action="store_true", help="name all files that are left out")
    arguments = parser.parse_args()
    arguments.folder = folder = os.path.expanduser(arguments.folder)
    is_archive = os.path.isfile(folder)
    if not (is_archive or os.path.isdir(folder)):
        raise UserError(
            f"FOLDER={folder!r} does not exist: give a folder, tar or zip of CLASS/…"
        )
    name = plain_name(os.path.basename(os.path.realpath(folder))) or "images"
    if is_archive:
        name = re.sub(r"(\.(tar|tgz|zip|gz|bz2|xz))+$", "", name, flags=re.IGNORECASE)
    arguments.out = out = os.path.expanduser(arguments.out or f"data/{name}.tar")
    if not out.endswith(".tar"):
        raise UserError(f"-o {out}: it is a tar: choose a name that ends in .tar")
    if not os.path.isdir(os.path.dirname(out) or "."):
        raise UserError(f"-o {out}: the folder does not exist: create it")
    if os.path.exists(out) and os.path.samefile(out, folder):
        raise UserError(f"-o {out}: it is FOLDER itself: give another name")
    return arguments


def between(low: float, high: float, kind: type = int) -> Callable[[str], float]:
    """Return a parser of numbers from `low` to `high`."""

    def number(text: str) -> float:
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return kind(text)

    return number


def pattern(text: str) -> re.Pattern[str]:
    """Parse a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def main() -> None:
    """Write the archive and params.yaml, and describe them."""
    arguments = parse_arguments()
    train = parameters.load(parameters.Train)  # raises if this is no repository
    left_out = LeftOut(listed=arguments.list)
    with open_source(arguments.folder, left_out) as source:
        pack(arguments, source, left_out, train)


def pack(
    arguments: argparse.Namespace,
    source: Source,
    left_out: LeftOut,
    train: parameters.Train,
) -> None:
    """Write the archive and params.yaml for the images of a folder or archive."""
    folder, out, dry_run = arguments.folder, arguments.out, arguments.dry_run
    listed = parameters.read("data.classes")
    with open(parameters.FILE, encoding="utf-8", newline="") as file:
        text = file.read()
    images = name_members(source.top, look_at_all(source, left_out))
    if arguments.labels:
        images = label_by_table(
            images, os.path.expanduser(arguments.labels), source.top, left_out
        )
    elif arguments.class_from:
        images = label_by_name(images, arguments.class_from, left_out)
    paths = [image.member for image in images]
    layout = find_layout(source.top, images, arguments.splits, arguments.level)
    share, group = arguments.valid or 0.2, arguments.group
    if layout.splits and (arguments.valid or group):
        raise UserError(
            f"{'--valid' if arguments.valid else '--group'}: "
            f"{' and '.join(layout.splits)} are splits ({layout.reason}): drop it"
        )
    images, names = place(images, layout, share, group, left_out)
    reason = layout.reason or f"{100 * share:g} % of each class by content"
    if group:
        groups = Counter(match(group, path) for path in paths)
        alone = groups.pop("", 0)
        reason += f", {len(groups)} groups kept together, {alone} images in no group"
    say([f"splits: {names[0]} for training, {names[1]} for validation ({reason})"])
    say(f"left out, {line}" for line in left_out)
    count = len({image.label for image in images})
    if not MIN_CLASSES <= count <= MAX_CLASSES:
        hint = "correct the table or the pattern"
        if any(ONE_SPLIT in line for line in left_out):
            hint = "each needs two different images" + ", in two groups" * bool(group)
        elif not (arguments.labels or arguments.class_from):
            hint = "put each class's images in its own folder" + suggest(folder, paths)
        classes = "1 class" if count == 1 else f"{count} classes"
        bound = f"at most {MAX_CLASSES}" if count > 2 else f"at least {MIN_CLASSES}"
        raise UserError(
            f"{folder}: found {classes} with images for both splits, need {bound}: "
            f"{hint}"
        )
    options = arguments.size, arguments.background
    params = choose_params(
        images, listed, train, *options, gray=arguments.gray, read=source.read
    )
    params |= {"data.splits.train": names[0], "data.splits.valid": names[1]}
    params |= {"download.url": out, "download.sha256": ""}
    edit_params(text, params)  # raises, if at all, before anything is written
    say(describe(images, params))
    sys.stdout.flush()  # ends here if the pipe is closed
    params["download.sha256"], line = write(images, source.read, out, dry_run=dry_run)
    say([line])
    save_params(text, edit_params(text, params), dry_run=dry_run)


def say(lines: Iterable[str]) -> None:
    """Print lines, with control characters in names escaped."""
    for line in lines:
        print(escape(line))


def save_params(before: str, after: str, *, dry_run: bool) -> None:
    """Write params.yaml if it changes, and print the diff."""
    texts, file = (before.splitlines(), after.splitlines()), parameters.FILE
    diff = [*difflib.unified_diff(*texts, file, file, n=0, lineterm="")]
    if diff and not dry_run:
        artifacts.publish({f"./{file}": after})
        diff.append("The archive is not in Git: share it with dvc push, or as a file.")
        diff.append("Now run make.")
    print("\n".join(diff) or f"{file}: nothing to change")


if __name__ == "__main__":
    runtime.explain_errors("pack")
    main()
