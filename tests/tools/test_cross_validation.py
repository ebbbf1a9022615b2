"""tools.cross_validation ranks settings by what their models do on held-out images."""

import re

import numpy as np

from stages.plumbing import artifacts
from tests.conftest import run

PROGRAM = """
from tools import cross_validation
cross_validation.GRID |= {"l2": [0.0, 0.1], "batch_size": [64], "momentum": [0.9]}
cross_validation.runtime.explain_errors("cross_validation")
cross_validation.main()
"""
COMMAND = ("python", "-c", PROGRAM, "--folds", "2")


def test_no_model_is_scored_on_an_image_that_it_was_trained_on(built, tmp_path):
    """Labels that have nothing to do with the images can be learnt only by heart."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 16, 16), dtype=np.uint8)
    labels = rng.permutation(300).astype(np.uint8) % 2
    tensors = str(tmp_path / "tensors.npz")
    artifacts.publish({tensors: {"train_images": images, "train_labels": labels}})
    done = run(built, *COMMAND, "--tensors", tensors, "--losses", "log_loss")
    assert done.stdout.startswith("9 settings, 300 images in 2 folds\n"), done.stderr
    by_log_loss, by_accuracy, *_ = (
        [line.split() for line in block.splitlines()[2:]]
        for block in done.stdout.split("\n\n")[1:]
    )
    log_losses = [float(row[0]) for row in by_log_loss]
    assert log_losses == sorted(log_losses)
    assert log_losses[0] > np.log(2)
    accuracies = [float(row[4]) for row in by_accuracy]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] < 0.5 + 4 * np.sqrt(0.25 / 300)
    assert re.search(r"\nThe defaults are .* the best \(loss: log_loss, ", done.stdout)


def test_a_loss_that_cannot_learn_the_classes_is_refused(built, tmp_path):
    images, labels = np.zeros((200, 4, 4), np.uint8), np.arange(200, dtype=np.uint8) % 3
    tensors = str(tmp_path / "tensors.npz")
    artifacts.publish({tensors: {"train_images": images, "train_labels": labels}})
    done = run(built, *COMMAND, "--tensors", tensors, "--losses", "absolute")
    message = "absolute learns pairs of classes only: use log_loss for 3 classes"
    assert done.stderr == f"cross_validation: train.loss: {message}\n"
