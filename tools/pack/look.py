"""Inspect image files and describe them."""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from PIL import ImageChops
from PIL.ExifTags import Base
from PIL.ImageStat import Stat

from stages.images import decode
from stages.images.archive import MAX_MEMBER
from stages.images.names import natural_order
from stages.plumbing import workers
from stages.plumbing.errors import UserError
from stages.plumbing.progress import progress
from tools.image_files import LeftOut, Read, Source

SMALL = 2**14  # bytes of a file that decodes in less than a millisecond
FAINT = 32  # gray levels between ink and background that are hard to tell apart
MAX_ROWS, MAX_NAME = 20, 40  # of the table of classes


class Image(NamedTuple):
    """An image file; labels.py and place.py set the last three fields."""

    path: str
    digest: bytes  # SHA-256 of the file
    size: tuple[int, int]  # height and width in pixels, upright
    is_gray: bool  # as stored
    has_color: bool  # in any pixel
    is_turned: bool  # by its EXIF orientation
    opacity: float  # mean, 0 to 1; below 1 if any pixel is transparent
    ink: float  # mean gray level weighted by opacity, 0 to 255; NaN if opacity is 0
    label: str = ""  # the name of its class
    split: int = 0  # 0 for training images, 1 for validation images
    member: str = ""  # its name in the archive


def look_at_all(source: Source, left_out: LeftOut) -> list[Image]:
    """Inspect the images of a folder or an archive, in natural order."""
    images, count = [], len(source.paths)
    inspect = partial(look_at, read=source.read)
    with ThreadPoolExecutor(workers.available_processors()) as pool:
        # With small files, threads spend twice as long waiting as working.
        apply = pool.map if source.size > count * SMALL else map
        looks = apply(inspect, source.paths)
        for look in progress(looks, "look at images", "images", count):
            if isinstance(look, Image):
                images.append(look)
            else:
                left_out.add(*look, by_extension=True)
    return images


def look_at(path: str, read: Read) -> Image | tuple[str, str]:
    """Inspect an image file; if it is unusable, return the reason and its path."""
    try:
        content = read(path)
        if len(content) > MAX_MEMBER:
            return f"larger than {MAX_MEMBER >> 20} MiB", path
        image = decode.load(content, path)
    except UserError as error:
        return str(error).removeprefix(f"{path}: "), path
    except OSError as error:
        return error.strerror or "cannot be read", path
    with PIL.Image.open(io.BytesIO(content), formats=decode.FORMATS) as raw:
        orientation = raw.getexif().get(Base.Orientation)
    over_black, opacity = image, 1.0
    if decode.has_transparent_pixels(image):
        rgba = image.convert("RGBA")
        opacity = Stat(rgba.getchannel("A")).mean[0] / 255
        black = PIL.Image.new("RGBA", image.size, (0, 0, 0, 255))
        over_black = PIL.Image.alpha_composite(black, rgba)
    level = Stat(over_black.convert("L")).mean[0]
    red, green, blue = over_black.convert("RGB").split()
    differences = ImageChops.difference(red, green), ImageChops.difference(red, blue)
    return Image(
        path=path,
        digest=hashlib.sha256(content).digest(),
        size=(image.height, image.width),
        is_gray=decode.is_gray(image),
        has_color=any(difference.getbbox() for difference in differences),
        is_turned=orientation in range(2, 9),
        opacity=opacity,
        ink=level / opacity if opacity else math.nan,
    )


def describe(images: Sequence[Image], params: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines about the images; `params` has the new values by dotted key."""
    size, background = params["data.size"], params["data.background"]
    is_rgb = params["data.color"] == "rgb"
    counts = Counter((image.label, image.split) for image in images)
    names = sorted({image.label for image in images}, key=natural_order)
    rows = [(name[:MAX_NAME], counts[name, 0], counts[name, 1]) for name in names]
    total = [f"all {len(rows)}", *np.sum([row[1:] for row in rows], axis=0)]
    if len(rows) > MAX_ROWS:
        rows.sort(key=lambda row: row[1])
        total[0] += " (smallest shown)"
    width = max(5, *(len(name) for name, *_ in [total, *rows]))
    yield f"{'class':{width}}  {'train':>8} {'valid':>8}"
    for name, train, valid in [*rows[:MAX_ROWS], total]:
        yield f"{name:{width}}  {train:8,} {valid:8,}"
    sizes = sorted({image.size for image in images}, key=math.prod)
    found = "{} x {}".format(*sizes[0])
    if len(sizes) > 1:
        found += " to {} x {}".format(*sizes[-1])
    new = "kept" if sizes == [(*size,)] else "resized to {} x {}".format(*size)
    yield f"height x width: {found}, {new}"
    findings, first = LeftOut(), dict[bytes, Image]()
    for image in images:
        if not image.is_gray:
            kept = "kept" if is_rgb else "converted to gray"
            findings.add(f"in colour or with a palette, {kept}", image.path)
        elif is_rgb:
            findings.add("gray, given three equal channels", image.path)
        if image.is_turned:
            findings.add("turned as EXIF says", image.path)
        if image.opacity < 1 and background is not None:
            ground = f"gray level {background}"
            findings.add(f"with transparent pixels, laid over {ground}", image.path)
            if not abs(image.ink - background) > FAINT:  # or NaN, of an empty image
                findings.add(f"barely visible on {ground}", image.path)
        original = first.setdefault(image.digest, image)
        if original is not image:
            findings.add("copies", f"{image.path} of {original.path}")
        if original.label != image.label:
            findings.add("copies in two classes", f"{image.path} of {original.path}")
    yield from findings
