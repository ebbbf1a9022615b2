"""Print the metrics of both models side by side, and where the report is: what `make` ends with."""

from stages.artifacts import BASELINE_METRICS, LINEAR_METRICS, REPORT, load_json


def main() -> None:
    """Print a row for each measure; those of single classes are in the report."""
    models = [load_json(BASELINE_METRICS), load_json(LINEAR_METRICS)]
    print(f"\n{'':20}{'baseline':>10}{'linear':>10}")
    for measure, value in models[-1].items():
        if isinstance(value, float):
            figures = [f"{model[measure]:.4f}" if measure in model else "–" for model in models]
            print(f"{measure:20}{figures[0]:>10}{figures[1]:>10}")
    print(f"\nOpen {REPORT} in a browser.")


if __name__ == "__main__":
    main()
