"""The lesson as a plain script in NumPy and scikit-learn, for comparison.

Run `python -m bench.in_scikit_learn`: it prints the accuracy of both models on the
bundled archive, and the log loss of the trained one.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss

ARCHIVE = Path(__file__).parent.parent / "data/mnist_sample.tgz"
L2 = 5e-4
CLASSES = ["3", "7"]


def read(split: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return a split's images (N, P), pixels in [0, 1], and labels (N,)."""
    images, labels = [], []
    with tarfile.open(ARCHIVE) as tar:
        for member in tar:
            file = tar.extractfile(member)
            _, folder, label, *_ = [*member.name.split("/"), "", ""]
            if file and folder == split and member.name.endswith(".png"):
                images.append(np.asarray(Image.open(io.BytesIO(file.read()))))
                labels.append(CLASSES.index(label))
    pixels = np.stack(images).reshape(len(images), -1).astype(np.float32)
    return pixels / np.float32(255), np.array(labels, np.uint8)


def distances(
    images: NDArray[np.float32], means: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the mean absolute difference of images (N, P) and means (K, P): (N, K)."""
    return np.stack([np.abs(images - mean).mean(1) for mean in means], 1)


def main() -> None:
    """Fit both models and print their metrics."""
    (images, labels), (valid, actual) = read("train"), read("valid")
    means = np.stack([images[labels == k].mean(0) for k in range(2)])
    print("baseline:", accuracy_score(actual, distances(valid, means).argmin(1)))
    model = LogisticRegression(C=1 / (L2 * len(images)), max_iter=200)
    probabilities = model.fit(images, labels).predict_proba(valid)
    accuracy = accuracy_score(actual, probabilities.argmax(1))
    print("trained:", accuracy, log_loss(actual, probabilities))


if __name__ == "__main__":
    main()
