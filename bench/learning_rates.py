"""Which learning rates train each loss, and from which on it diverges, with the other defaults of params.yaml.

Run it with `python -m bench.learning_rates [TENSORS …]`, where each is what the preprocess stage wrote (by default
data/tensors.npz). A row a rate, a column a loss: the accuracy on the validation images after the last epoch.
"""

import sys

import msgspec
import numpy as np

from stages import artifacts, parameters
from stages.descent import Split
from stages.losses import LOSSES
from stages.train import learn

RATES = [0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 10.0]


def main() -> None:
    """Train with every loss and rate; print a table for each file."""
    chosen = parameters.load(parameters.Train)
    for path in sys.argv[1:] or [artifacts.TENSORS]:
        with np.load(path) as file:
            arrays = {name: file[name] for name in artifacts.Tensors._fields}
        train, valid = (Split(arrays[f"{name}_images"], arrays[f"{name}_labels"]) for name in ("train", "valid"))
        table: dict[str, list[str]] = {}
        for loss in LOSSES:
            table[loss] = column = []
            for rate in RATES:
                settings = msgspec.structs.replace(chosen, loss=loss, learning_rate=rate)
                _, history, _ = learn(train, valid, len(arrays["classes"]), settings)
                column.append(f"{history[-1, 3]:.4f}" if np.isfinite(history).all() else "diverges")
        print(f"\n{', '.join(arrays['classes'])}\n{'rate':>6}", *(f"{loss:>14}" for loss in table))
        for i, rate in enumerate(RATES):
            print(f"{rate:>6}", *(f"{column[i]:>14}" for column in table.values()))


if __name__ == "__main__":
    main()
