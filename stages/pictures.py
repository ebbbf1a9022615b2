"""Pictures of the models and of training for DVC, and bare images for the page: always the same bytes."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

CELL = (1.6, 1.8)
"""Width and height, in inches, of an image with its caption."""
BLUE, RED = b"\x32\x88\xbd", b"\xd6\x40\x4e"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file without its usual mention of the library's version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def gallery(images: NDArray[np.floating], captions: Sequence[str], columns: int, *, diverging: bool = False) -> bytes:
    """Images (N, H, W) in a grid: from 0 (black) to 1 (white) or, if diverging, from blue over white (0) to red."""
    columns = max(1, min(columns, len(images)))
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(CELL[0] * columns, CELL[1] * rows))
    axes = figure.add_axes((0, 0, 1, 1))  # one for all: a grid of axes takes ten times as long to lay out
    style: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1}
    if diverging:
        limit = float(np.abs(images).max()) or 1.0
        style = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    for i, (image, caption) in enumerate(zip(images, captions, strict=False)):
        x, y = CELL[0] * (i % columns + 0.5), CELL[1] * (i // columns + 0.97)
        height, width = 1.5 * np.array(image.shape) / max(image.shape)
        axes.imshow(image, extent=(x - width / 2, x + width / 2, y, y - height), **style)
        axes.text(x, y - height - 0.06, caption, size=8, ha="center", parse_math=False)
    axes.set(xlim=(0, CELL[0] * columns), ylim=(CELL[1] * rows, 0))
    axes.axis("off")
    return png(figure)


def history(rows: Sequence[dict[str, float]]) -> bytes:
    """Loss and accuracy from the first epoch on, for the training and the validation images."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    epochs = [row["epoch"] for row in rows[1:]]
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, style in (("train", "--"), ("valid", "-")):
            axes.plot(epochs, [row[f"{split}_{measure}"] for row in rows[1:]], style, label=split)
        axes.set(xlabel="epoch", ylabel=measure)
        axes.legend()
    return png(figure)


def gray(image: NDArray) -> str:
    """A data URI of an image (H, W): bytes as they are, floats from 0 (black) to 1 (white)."""
    return _data_uri(Image.fromarray(image if image.dtype == np.uint8 else np.rint(image * 255).astype(np.uint8)))


def diverging(values: NDArray, limit: float) -> str:
    """A data URI of values (H, W) from -limit (blue) to limit (red); the nearer to 0, the more transparent."""
    image = Image.fromarray(np.rint(128 + 127 * np.clip(values / (limit or 1), -1, 1)).astype(np.uint8))
    image.putpalette(BLUE * 128 + RED * 128)
    return _data_uri(image, transparency=bytes(min(255, 2 * abs(i - 128)) for i in range(256)))


def _data_uri(image: Image.Image, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
