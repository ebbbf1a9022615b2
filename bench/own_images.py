"""Compare the model with scikit-learn's on other images, as pack sets it up.

Run `python -m bench.own_images > bench/own_images.md` where scikit-image and matplotlib
are installed, too: about five minutes. Makes folders of images from what these packages
and scikit-learn ship, packs each, runs the pipeline in a temporary clone of the last
commit, and fits `LogisticRegression(max_iter=1000)` on the same arrays. As good
means an accuracy at most one standard error (±) lower, and a log loss at most 10 %
higher.
"""

import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from bench.clone import Clone
from bench.tables import heading, table

Labelled = Iterator[tuple[str, Image.Image]]
"""Classes and images."""
FORMATS = ("png", "jpg", "bmp", "pgm", "webp", "tif", "gif")
COLOURED = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")


def crops(side: int, step: int, **pictures: NDArray[np.uint8]) -> Labelled:
    """Cut pictures, each a class, into squares."""
    for name, picture in pictures.items():
        for top in range(0, picture.shape[0] - side + 1, step):
            for left in range(0, picture.shape[1] - side + 1, step):
                yield (
                    name,
                    Image.fromarray(picture[top : top + side, left : left + side]),
                )


def textures(*names: str, step: int = 32) -> Labelled:
    """Cut gray textures into squares of 32 pixels."""
    return crops(32, step, **{name: getattr(skimage.data, name)() for name in names})


def letters(characters: str, side: int) -> Labelled:
    """Draw characters, black on white, in each font of matplotlib that has them."""
    for path in sorted(Path(matplotlib.get_data_path()).glob("fonts/ttf/*.ttf")):
        if not path.name.startswith(("STIXSiz", "cmex", "cmsy")):  # symbols only
            font = ImageFont.truetype(path, int(0.7 * side))
            for character in characters:
                image = Image.new("L", (side, side), 255)
                middle = (side / 2, side / 2)
                ImageDraw.Draw(image).text(middle, character, 0, font, anchor="mm")
                yield character, image


def distorted(images: Labelled, copies: int) -> Labelled:
    """Rotate, shift and compress copies of images."""
    rng = np.random.default_rng(0)
    for name, image in images:
        for _ in range(copies):
            shift = tuple(rng.integers(-8, 8, 2))
            turned = image.rotate(rng.uniform(-25, 25), translate=shift, fillcolor=255)
            turned.save(file := io.BytesIO(), "JPEG", quality=50)
            yield name, Image.open(file)


def shapes(count: int) -> Labelled:
    """Draw a disc, a square or a ring on white, in red, green or blue: nine classes."""
    rng = np.random.default_rng(0)
    for i in range(count):
        shape, colour = (
            ("disc", "square", "ring")[i % 3],
            ("red", "green", "blue")[i // 3 % 3],
        )
        image = Image.new("RGB", (40, 40), "white")
        left, top, size = *rng.integers(0, 20, 2), rng.integers(10, 20)
        draw, box = ImageDraw.Draw(image), [left, top, left + size, top + size]
        if shape == "square":
            draw.rectangle(box, colour)
        else:
            draw.ellipse(box, colour if shape == "disc" else None, colour, width=3)
        yield f"{colour} {shape}", image


def faces() -> Labelled:
    """Return the hundred faces and hundred other patches of lfw_subset."""
    for i, image in enumerate(skimage.data.lfw_subset()):
        name = "face" if i < 100 else "other"
        yield name, Image.fromarray((image * 255).astype(np.uint8))


def digits() -> Labelled:
    """Return scikit-learn's digits of 8 x 8 pixels."""
    data = load_digits()
    for image, label in zip(data.images, data.target, strict=True):
        yield str(label), Image.fromarray((image * 255 / 16).astype(np.uint8))


COLLECTIONS: dict[str, Callable[[], Labelled]] = {
    "textures": lambda: textures("brick", "grass", "gravel"),
    "two textures, in seven formats": lambda: textures("brick", "gravel", step=64),
    "distorted digits": lambda: distorted(letters("0123456789", 80), 4),
    "letters": lambda: letters("ABCDEFGHIJKLMNOPQRSTUVWXYZ", 32),
    "scikit-learn's digits": digits,
    "faces": faces,
    "crops of photos, colour": lambda: crops(
        32, 40, **{name: getattr(skimage.data, name)() for name in COLOURED}
    ),
    "temple and flower, colour": lambda: crops(
        40,
        40,
        temple=load_sample_image("china.jpg"),
        flower=load_sample_image("flower.jpg"),
    ),
    "shapes on white, colour": lambda: shapes(900),
}


def save(images: Labelled, folder: Path, formats: tuple[str, ...]) -> None:
    """Save images into folders by class, in several formats in turn."""
    for i, ((name, image), suffix) in enumerate(zip(images, cycle(formats))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        image.save(folder / name / f"{i}.{suffix}")


def measure(clone: Clone, name: str, parent: Path) -> list[str]:
    """Run the pipeline on a collection, and return its row of the table."""
    folder = parent / name
    save(COLLECTIONS[name](), folder, FORMATS if "formats" in name else FORMATS[:1])
    clone.renew()
    clone.run("-m", "tools.pack", str(folder))
    clone.run("-m", "dvc", "repro")
    baseline, ours = (
        json.loads((clone.folder / f"metrics/{model}.json").read_text())
        for model in ("baseline", "model")
    )
    epochs = len((clone.folder / "metrics/history.csv").read_text().splitlines()) - 2
    arrays = np.load(clone.folder / "data/tensors.npz")
    train, valid = (
        arrays[f"{split}_images"].reshape(len(arrays[f"{split}_images"]), -1) / 255
        for split in ("train", "valid")
    )
    actual, count = arrays["valid_labels"], len(arrays["classes"])
    theirs = LogisticRegression(max_iter=1000).fit(train, arrays["train_labels"])
    probabilities = theirs.predict_proba(valid)
    accuracy = (probabilities.argmax(1) == actual).mean()
    error = math.sqrt(accuracy * (1 - accuracy) / len(actual))
    loss = log_loss(actual, probabilities, labels=range(count))
    good = ours["accuracy"] >= accuracy - error and ours["log_loss"] <= 1.1 * loss
    shape = " × ".join(map(str, arrays["train_images"].shape[1:]))
    return [
        *(name, shape, str(count), f"{len(train):,}", f"{len(valid):,}", str(epochs)),
        *(f"{baseline['accuracy']:.3f}", f"{ours['accuracy']:.3f}"),
        *(f"{accuracy:.3f} ± {error:.3f}", f"{ours['log_loss']:.3f}", f"{loss:.3f}"),
        "yes" if good else "**no**",
    ]


def main() -> None:
    """Measure all collections, and print the table."""
    with tempfile.TemporaryDirectory() as name:
        parent = Path(name).resolve()
        clone = Clone(parent)
        rows = [measure(clone, name, parent) for name in COLLECTIONS]
    header = ["", "shape", "classes", "train", "valid", "epochs", "baseline"]
    header += ["model", "scikit-learn", "log loss", "scikit-learn", "as good"]
    print(heading("Other people's images", "own_images"))
    print(table(header, rows))


if __name__ == "__main__":
    main()
