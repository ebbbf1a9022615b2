"""The trained model and everything needed to use it: models/model.npz."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from stages import model
from stages.evaluation.outputs import CLASS_OUTPUTS, PAIR_OUTPUTS, output_count
from stages.plumbing import npz
from stages.plumbing.errors import UserError, damaged
from stages.plumbing.tensors import Decoding, format_decoding, parse_decoding

BLOCK_PIXELS = 2**22
"""Pixels converted to float64 at a time: 32 MiB, or a single larger image."""


class TrainedModel(NamedTuple):
    """A model's arrays, the meaning of its outputs, and the images it accepts."""

    params: Mapping[str, NDArray[np.float32]]
    """The model's arrays by name."""
    mean: NDArray[np.float32]
    """(H, W, C), subtracted from images in [0, 1]: the mean training image, or 0."""
    classes: list[str]
    """The names of the K classes, in label order."""
    outputs: str
    """What the outputs mean: one of PAIR_OUTPUTS or CLASS_OUTPUTS."""
    decoding: Decoding
    """How image files become pixels."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width and channels: 3 if `decoding.color` is rgb, else 1."""
        return self.mean.shape

    @classmethod
    def load(cls, path: str) -> Self:
        """Load a model; raise UserError if the file is damaged or inconsistent."""
        dtypes = {"params/": "float32", "mean": "float32", "classes": "str"}
        dtypes |= {"outputs": "str", "decoding": "str"}
        arrays = npz.load_arrays(path, dtypes)
        trained = cls(
            {k.removeprefix("params/"): v for k, v in arrays.items() if "/" in k},
            mean=arrays["mean"],
            classes=arrays["classes"].ravel().tolist(),
            outputs=str(arrays["outputs"]),
            decoding=parse_decoding(path, arrays["decoding"]),
        )
        count = output_count(len(trained.classes))
        fits = (
            len(trained.classes) > 1
            and len(trained.classes) == len(set(trained.classes))
            and len(trained.image_shape) == 3
            and trained.mean.size > 0
            and trained.image_shape[2] == (3 if trained.decoding.color == "rgb" else 1)
            and trained.outputs in (PAIR_OUTPUTS if count == 1 else CLASS_OUTPUTS)
            and trained.decoding.size in (None, trained.image_shape[:2])
        )
        if not fits:
            raise damaged(path, "its arrays do not fit together")
        for name, array in arrays.items():
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise damaged(path, f"{name} holds NaN or infinity")
        # Only `forward` knows which arrays it needs, so try it.
        blank = np.zeros((2, *trained.image_shape), np.uint8)
        try:
            shape = trained.logits(blank).shape
        except MemoryError:
            raise
        except Exception as error:  # any type: the params may be another model's
            reason = f"{type(error).__name__}: {error}"
        else:
            if shape == (2, count):
                return trained
            reason = f"its outputs for 2 images are {shape}, not {(2, count)}"
        raise UserError(
            f"{path} does not fit stages/model.py ({reason}): run dvc repro, or "
            "correct stages/model.py"
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the content of the npz file that `load` reads."""
        return {
            **{f"params/{name}": array for name, array in self.params.items()},
            "mean": self.mean,
            "classes": np.array(self.classes),
            "outputs": np.array(self.outputs),
            "decoding": format_decoding(self.decoding),
        }

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return outputs (N, 1) for a pair, else (N, K), for images (N, H, W, C).

        NumPy computes them in float64, so that every machine rounds to the same
        decimals, unless stages/model.py itself needs JAX.
        """
        params = {name: array.astype(np.float64) for name, array in self.params.items()}
        mean = self.mean.astype(np.float64)
        size = max(BLOCK_PIXELS // images[0].size, 1)
        blocks = [
            model.forward(params, images[i : i + size] / 255.0 - mean)
            for i in range(0, len(images), size)
        ]
        return np.concatenate([np.asarray(block, np.float64) for block in blocks])


def pixel_weights(
    params: Mapping[str, Any], image_shape: tuple[int, ...]
) -> str | None:
    """Return the name of the array with a row for each pixel and channel, or None.

    A dense layer behind a convolution can have as many rows by chance. But for an
    image with a single bright pixel, the rows of all other pixels have no effect.
    """
    image = np.zeros((1, *image_shape), np.float32)
    bright = image.size // 2
    image.flat[bright] = 1
    # As they are: with 256 classes of 512 x 512 pixels, a copy takes 256 MiB.
    arrays = {name: np.asarray(array) for name, array in params.items()}
    for name, array in arrays.items():
        if array.ndim > 1 and len(array) == image.size:
            others = array + 1
            others[bright] = array[bright]
            outputs = model.forward(arrays, image)
            if np.array_equal(outputs, model.forward(arrays | {name: others}, image)):
                return name
    return None
