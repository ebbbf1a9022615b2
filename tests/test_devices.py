"""Training over several devices gives what one device gives."""

from pathlib import Path

import numpy as np

from tests.conftest import ROOT, succeed

LEARN = """
import sys
import jax
import numpy as np
from stages import train

generator = np.random.default_rng(0)
images = generator.integers(0, 256, (200, 6, 5), np.uint8)
labels = (images.mean((1, 2)) > 127).astype(np.uint8)
rates = {"learning_rate": 0.1, "momentum": 0.9, "l2": 1e-3}
choices = {"loss": "log_loss", "schedule": "cosine", "batch_size": 24, "epochs": 5}
params, history, _ = train.learn((images, labels) * 2, np.uint32(1), 0.5, rates, count=2, **choices)
np.savez(sys.argv[1], devices=jax.device_count(), history=history, **params._asdict())
"""


def test_eight_devices_learn_what_one_learns(tmp_path: Path):
    for devices in (1, 8):
        flags = f"--xla_force_host_platform_device_count={devices}"
        succeed(
            ROOT,
            "python",
            "-c",
            LEARN,
            str(tmp_path / f"{devices}.npz"),
            XLA_FLAGS=flags,
            JAX_PLATFORMS="cpu",
            HOME="/tmp",
        )
    one, eight = (np.load(tmp_path / f"{devices}.npz") for devices in (1, 8))
    assert (one["devices"], eight["devices"]) == (1, 8)
    for name in ("weights", "bias", "history"):
        np.testing.assert_allclose(eight[name], one[name], atol=1e-5)
