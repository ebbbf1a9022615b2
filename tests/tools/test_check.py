"""`python -m tools.check` says what a stage would say, before DVC deletes anything."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo

import tools.check
from stages.evaluation.outputs import outputs_of
from stages.plumbing.errors import UserError
from tests.conftest import copy, edit, run, succeed

PARAMS = "params.yaml"


@pytest.fixture
def fresh(sources: Path, tmp_path: Path) -> Path:
    """Copy the sources, without outputs."""
    return copy(sources, tmp_path / "a clone")


@pytest.fixture
def restored(lent: Path) -> Iterator[Path]:
    """Lend a built clone, and restore its params.yaml afterwards."""
    before = (lent / PARAMS).read_text("utf-8")
    yield lent
    (lent / PARAMS).write_text(before, "utf-8")


def check(folder: Path) -> list[str]:
    """Run the check; return the lines it prints, each of which is an error."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(stdout), redirect_stderr(stderr):
        status = tools.check.main()
    assert status == bool(stderr.getvalue())
    assert stdout.getvalue() == ""
    return stderr.getvalue().splitlines()


def test_the_parameters_of_this_repository_pass_and_nothing_slow_is_imported(fresh):
    """It takes 0.2 s, and the modules of any of these take longer."""
    assert succeed(fresh, "python", "-m", "tools.check") == ""
    code = "import sys, tools.check; print(*{m.split('.')[0] for m in sys.modules})"
    imported = set(succeed(fresh, "python", "-c", code).split())
    assert not imported & {"jax", "optax", "dvc", "requests", "PIL", "jinja2", "tqdm"}


EDITS = {
    "download": ("download", "sha256: ac", "sha256: AC"),
    "data": ("preprocess", '["3", "7"]', "[3, 7]"),
    "baseline": ("baseline", "distance: l1", "distance: l3"),
    "model": ("train", "init_std: 0.0", "init_std: -1"),
    "train": ("train", "loss: log_loss", "loss: hinge"),
    "report": ("report", "mistakes: 24", "mistakes: -1"),
}
OF_DATA = {
    "digest": ("download", "sha256: ac", "sha256: bc"),
    "batch": ("train", "batch_size: 64", "batch_size: 20000"),
}


@pytest.mark.parametrize("what", [*EDITS, *OF_DATA])
def test_what_a_stage_would_refuse_is_refused_in_the_same_words(restored: Path, what):
    stage, old, new = (EDITS | OF_DATA)[what]
    edit(restored / PARAMS, old, new)
    (line,) = check(restored)
    done = run(restored, "python", "-m", "stages", stage)
    assert line.removeprefix("check") == done.stderr.strip().removeprefix(stage)


def test_the_errors_of_all_sections_are_reported_at_once(fresh: Path):
    for _, old, new in EDITS.values():
        edit(fresh / PARAMS, old, new)
    lines = check(fresh)
    assert len(lines) == len(EDITS)
    for section in EDITS:
        assert sum(f"params.yaml: {section}." in line for line in lines) == 1
    done = run(fresh, "python", "-m", "tools.check")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == lines


def test_a_file_that_is_missing_or_no_yaml_is_reported_once(fresh: Path):
    (fresh / PARAMS).write_text("download: ]", "utf-8")
    (line,) = check(fresh)
    assert line.startswith("check: params.yaml, line 1: not valid YAML")
    (fresh / PARAMS).unlink()
    (line,) = check(fresh)
    assert line.startswith("check: params.yaml is missing")


@pytest.mark.parametrize(
    "url", ["data/archive", "./data/../data/archive", "link", "x/y"]
)
@pytest.mark.parametrize("exists", [True, False])
def test_an_output_of_a_stage_is_no_archive_of_the_user(fresh, url, exists):
    """DVC would delete it, maybe the only copy, before the stage could read it."""
    if exists:
        shutil.copy(fresh / "data/mnist_sample.tgz", fresh / "data/archive")
    (fresh / "link").symlink_to("data/archive")
    edit(fresh / "dvc.yaml", "- data/archive\n\n", "- data/archive\n      - x\n\n")
    edit(fresh / PARAMS, "url: data/mnist_sample.tgz", f"url: {url}")
    (line,) = check(fresh)
    assert line.startswith(f"check: download.url: {url} is an output of the stage down")
    edit(fresh / PARAMS, f"url: {url}", f"url: {fresh.resolve() / url}")
    (line,) = check(fresh)
    assert " is an output of the stage download, which DVC deletes" in line


def test_an_archive_that_changed_after_a_success_is_reported(clone: Path):
    """DVC does not look at it, since the digest in params.yaml is what counts."""
    with (clone / "data/mnist_sample.tgz").open("ab") as file:
        file.write(b"more")
    assert Repo(str(clone)).status() == {}
    (line,) = check(clone)
    assert line.startswith("check: data/mnist_sample.tgz has SHA-256 ")
    assert "if you trust this archive, put its digest into params.yaml" in line


def test_an_archive_may_be_missing_only_if_its_output_can_be_pulled(clone: Path):
    (clone / "data/mnist_sample.tgz").unlink()
    assert check(clone) == []
    (clone / "dvc.lock").unlink()
    assert check(clone) == [
        "check: download.url: there is no file data/mnist_sample.tgz: "
        "give a path from the root of the repository, or a URL"
    ]


def test_what_a_url_points_to_is_not_fetched(fresh: Path):
    edit(fresh / PARAMS, "data/mnist_sample.tgz", "https://example.invalid/a.tgz")
    assert check(fresh) == []
    edit(fresh / PARAMS, "https://", "s3://")
    (line,) = check(fresh)
    assert line.endswith("only a path, http:// or https:// can be fetched")


def test_a_loss_for_pairs_is_refused_for_three_classes_as_by_train(fresh: Path):
    edit(fresh / PARAMS, "loss: log_loss", "loss: absolute")
    assert check(fresh) == []
    edit(fresh / PARAMS, '["3", "7"]', '["3", "7", "8"]')
    with pytest.raises(UserError) as refused:
        outputs_of("absolute", 3)
    assert check(fresh) == [f"check: {refused.value}"]


def test_the_batch_size_is_compared_only_with_tensors_of_these_parameters(
    restored: Path,
):
    """Others may have fewer images than those that are going to be made."""
    edit(restored / PARAMS, "batch_size: 64", "batch_size: 20000")
    (line,) = check(restored)
    assert line.endswith("exceeds the number of training images: use 1 to 12396")
    edit(restored / PARAMS, "grayscale: false", "grayscale: true")
    assert check(restored) == []
    edit(restored / PARAMS, "grayscale: true", "grayscale: false")

    tensors = restored / "data/tensors.npz"
    tensors.rename(restored / "away.npz")
    assert check(restored) == []
    np.savez(tensors, train_labels=np.zeros(5, "uint8"))  # of another commit, say
    assert check(restored) == []
    os.replace(restored / "away.npz", tensors)


@pytest.mark.parametrize("name", ["dvc.yaml", "dvc.lock"])
def test_errors_in_dvcs_own_files_are_left_to_dvc(fresh: Path, name):
    for text in ("stages: [", "stages: [1, 2]"):
        (fresh / name).write_text(text, "utf-8")
        assert check(fresh) == []
    (fresh / name).unlink()
    assert check(fresh) == []
