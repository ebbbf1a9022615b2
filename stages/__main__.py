"""Run one stage: `python -m stages train`. `dvc repro` runs those out of date."""

import importlib.util
import sys

if sys.hexversion < 0x30B0000:  # it could not parse what is imported below
    sys.exit("Python 3.11 to 3.14 is needed: activate .venv, which make creates")

from stages.plumbing import runtime
from stages.plumbing.errors import UserError


def main() -> None:
    """Restrict the process to what dvc.yaml declares, then run the stage's `main`."""
    if len(sys.argv) != 2 or not sys.argv[1]:
        sys.exit("usage: python -m stages STAGE")
    stage = sys.argv[1]
    # First: NumPy and JAX, when imported, read the environment variables this pins.
    runtime.start(stage)
    if not importlib.util.find_spec(f"stages.{stage}"):
        raise UserError(f"there is no stages/{stage}.py: correct its cmd in dvc.yaml")
    with runtime.uninterrupted():
        module = importlib.import_module(f"stages.{stage}")
    if "jax" in sys.modules:
        from stages.plumbing import devices  # deferred: it imports JAX

        devices.check_threads()
    module.main()


if __name__ == "__main__":
    main()
