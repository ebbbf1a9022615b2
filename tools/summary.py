"""Print the metrics of both models and the path of the report, as `make` does."""

from stages.plumbing import artifacts, runtime
from stages.plumbing.errors import UserError


def main() -> None:
    """Print a row per metric; per-class metrics are in the report."""
    try:
        baseline = artifacts.load_json(artifacts.BASELINE_METRICS)
        model = artifacts.load_json(artifacts.MODEL_METRICS)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run dvc repro") from None
    print(f"\n{'':20}{'baseline':>10}{'model':>10}")
    for name, value in model.items():
        if isinstance(value, float):
            other = f"{baseline[name]:.4f}" if name in baseline else "-"
            print(f"{name:20}{other:>10}{value:>10.4f}")
    print(f"\nOpen {artifacts.REPORT} in a browser.")


if __name__ == "__main__":
    runtime.explain_errors("summary")
    main()
