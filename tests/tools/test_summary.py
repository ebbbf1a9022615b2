"""The table that ends `make`, on any terminal."""

from pathlib import Path

from tests.conftest import copy, run


def test_any_terminal_can_show_the_table(built: Path):
    for variables in ({"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, {}):
        done = run(built, "python", "-m", "tools.summary", **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.isascii()
        assert "log_loss                     -    0." in done.stdout
        assert done.stdout.endswith("\nOpen metrics/report.html in a browser.\n")


def test_a_closed_pipe_ends_it_silently(built: Path):
    done = run(built, "sh", "-c", "python -m tools.summary | true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_missing_metrics_are_named_with_the_remedy(sources: Path, tmp_path: Path):
    folder = copy(sources, tmp_path / "a clone")
    for name in ("model.json", "baseline.json"):
        (folder / "metrics" / name).unlink()
        done = run(folder, "python", "-m", "tools.summary")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"summary: metrics/{name} is missing: run dvc repro\n"
