"""Which learning rates train each loss, and from which on it diverges, with the other defaults of params.yaml.

Run it with `python -m bench.learning_rates [TENSORS …]`, where each is what the preprocess stage wrote (by default
data/tensors.npz). A row a rate, a column a loss: the accuracy on the validation images after the last epoch.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from stages import artifacts, parameters
from stages.descent import fit
from stages.losses import LOSSES
from stages.train import init_params, split

RATES = [0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 10.0]


def main() -> None:
    """Train with every loss and rate; print a table for each file."""
    chosen = parameters.load(parameters.Train)
    for path in sys.argv[1:] or [artifacts.TENSORS]:
        with np.load(path) as file:
            arrays = {name: file[name] for name in artifacts.Tensors._fields}
        count = len(arrays["classes"])
        train, valid = (split(arrays[f"{name}_images"], arrays[f"{name}_labels"], count) for name in ("train", "valid"))
        key = jax.random.key(chosen.seed)
        params = init_params(key, train.images.shape[1], train.targets.shape[1], chosen.init_std)
        table = {}
        for loss in LOSSES:
            one = partial(
                fit, loss=loss, schedule=chosen.schedule, batch_size=chosen.batch_size, epochs=chosen.epochs
            )  # fmt: skip
            over_rates = jax.vmap(one, in_axes=(None, None, None, None, 0, None, None))
            _, history = over_rates(
                params, train, valid, jax.random.fold_in(key, 1), jnp.array(RATES), chosen.momentum, chosen.l2
            )
            finite = np.isfinite(history).all((1, 2))
            table[loss] = [f"{a:.4f}" if ok else "diverges" for a, ok in zip(history[:, -1, 3], finite, strict=True)]
        print(f"\n{', '.join(arrays['classes'])}\n{'rate':>6}", *(f"{loss:>14}" for loss in table))
        for i, rate in enumerate(RATES):
            print(f"{rate:>6}", *(f"{column[i]:>14}" for column in table.values()))


if __name__ == "__main__":
    main()
