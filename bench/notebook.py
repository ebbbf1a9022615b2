"""The notebook, cell by cell: prints its figures, for comparison with the pipeline.

Run `python -m bench.notebook`: about a minute on an idle machine. Most of that is
`jnp.stack`, which compiles a program with one argument for each of six thousand images;
`jnp.array` takes a twentieth of it.
"""

import tarfile
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array, random
from PIL import Image

from stages.model import forward, init

ARCHIVE = Path(__file__).parent.parent / "data/mnist_sample.tgz"


def open_images(folder: Path) -> Array:
    """Return all images of a folder, float32 (N, H, W) in [0, 1]."""
    tensors = [jnp.array(Image.open(path)) for path in sorted(folder.iterdir())]
    return jnp.stack(tensors).astype(jnp.float32) / 255


def mnist_distance(a: Array, b: Array) -> Array:
    """Return the mean absolute difference over the last two axes."""
    return jnp.abs(a - b).mean((-1, -2))


def mnist_loss(predictions: Array, targets: Array) -> Array:
    """Return the mean squared error."""
    return ((predictions - targets) ** 2).mean()


def main() -> None:
    """Run the cells."""
    with tempfile.TemporaryDirectory() as folder:
        # Unpack, list, open, stack.
        with tarfile.open(ARCHIVE) as tar:
            tar.extractall(folder, filter="data")
        path = Path(folder, "mnist_sample")
        train_3, train_7 = open_images(path / "train/3"), open_images(path / "train/7")
        valid_3, valid_7 = open_images(path / "valid/3"), open_images(path / "valid/7")
    print("images:", train_3.shape, train_7.shape, valid_3.shape, valid_7.shape)

    # The perfect 3 and the perfect 7.
    mean_3, mean_7 = train_3.mean(0), train_7.mean(0)
    to_3, to_7 = mnist_distance(train_3[1], mean_3), mnist_distance(train_3[1], mean_7)
    print(f"one 3: {to_3:.6f} from the mean 3, {to_7:.6f} from the mean 7")

    def is_3(images: Array) -> Array:
        return mnist_distance(images, mean_3) < mnist_distance(images, mean_7)

    # The recall of both classes, and the precision of 3.
    found_3, found_7 = is_3(valid_3).mean(), (~is_3(valid_7)).mean()
    mean = (found_3 + found_7) / 2
    print(f"3s found: {found_3:.6f}, 7s found: {found_7:.6f}, mean: {mean:.6f}")
    true_3, false_3 = is_3(valid_3).sum(), is_3(valid_7).sum()
    print(f"precision of 3: {true_3 / (true_3 + false_3):.6f}")

    # A linear model, before it has learned anything.
    inputs = jnp.concatenate([train_3, train_7])
    targets = jnp.array([1] * len(train_3) + [0] * len(train_7))[:, None]

    def score(predictions: Array) -> str:
        accuracy = ((predictions > 0) == targets).mean()
        loss = mnist_loss(predictions, targets)
        return f"accuracy {accuracy:.7f}, loss {loss:.5f}"

    params = init(random.PRNGKey(42), (28, 28, 1), 1)
    predictions = forward(params, inputs)
    print("untrained:", score(predictions))

    # Why accuracy cannot be the loss: nudge the weight of the brightest pixel.
    pixel = inputs.mean(0).argmax()
    params["weights"] = params["weights"].at[pixel].multiply(1.0001)
    print(f"weight {pixel} nudged:", score(forward(params, inputs)))

    # The same loss with a sigmoid.
    print(f"with a sigmoid: {mnist_loss(jax.nn.sigmoid(predictions), targets):.6f}")


if __name__ == "__main__":
    main()
