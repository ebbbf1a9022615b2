"""`python -m tools.check` says what a stage would say, before DVC deletes anything."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo

from stages.evaluation.outputs import outputs_of
from stages.plumbing.errors import UserError
from tests.conftest import edit, run, succeed
from tools.check import main

PARAMS = "params.yaml"


@pytest.fixture
def restored(lent: Path) -> Iterator[Path]:
    """Lend a built clone, and restore its params.yaml afterwards."""
    before = (lent / PARAMS).read_text("utf-8")
    yield lent
    (lent / PARAMS).write_text(before, "utf-8")


def check(folder: Path) -> list[str]:
    """Run the check; return the lines it prints, each of which is an error."""
    with chdir(folder), redirect_stderr(io.StringIO()) as errors:
        failed = main()
    assert failed == bool(errors.getvalue())
    return errors.getvalue().splitlines()


def test_the_parameters_of_this_repository_pass_and_nothing_slow_is_imported(tree):
    """It takes 0.2 s, and the modules of any of these take longer."""
    assert succeed(tree, "python", "-m", "tools.check") == ""
    code = "import sys, tools.check; print(*{m.split('.')[0] for m in sys.modules})"
    imported = set(succeed(tree, "python", "-c", code).split())
    assert not imported & {"jax", "dvc", "requests", "PIL", "jinja2", "tqdm"}


EDITS = [
    ("download", "sha256: ac", "sha256: AC"),
    ("preprocess", '["3", "7"]', "[3, 7]"),
    ("baseline", "distance: l1", "distance: l3"),
    ("train", "loss: log_loss", "loss: hinge"),
    ("train", "init_std: 0.0", "init_std: -1"),
    ("report", "mistakes: 24", "mistakes: -1"),
]


def refusal(folder: Path, stage: str) -> str:
    """Return the error of a stage as the check says it."""
    done = run(folder, "python", "-m", "stages", stage)
    assert done.returncode == 1
    return f"check{done.stderr.strip().removeprefix(stage)}"


def test_all_that_stages_would_refuse_is_refused_at_once_in_the_same_words(restored):
    for _, old, new in EDITS:
        edit(restored / PARAMS, old, new)
    lines = check(restored)
    refused = []
    for stage, old, new in EDITS:  # a stage reports one error
        refused.append(refusal(restored, stage))
        edit(restored / PARAMS, new, old)
    assert sorted(lines) == sorted(refused)
    assert check(restored) == []


def test_a_file_that_is_missing_or_no_yaml_is_reported_once(tree: Path):
    (tree / PARAMS).write_text("download: ]", "utf-8")
    (line,) = check(tree)
    assert line.startswith("check: params.yaml, line 1: not valid YAML")
    (tree / PARAMS).unlink()
    (line,) = check(tree)
    assert line.startswith("check: params.yaml is missing")


@pytest.mark.parametrize(
    "url", ["data/archive", "./data/../data/archive", "link", "x/y"]
)
def test_an_output_of_a_stage_is_no_archive_of_the_user(tree: Path, url):
    """DVC would delete it, maybe the only copy, before the stage could read it."""
    (tree / "link").symlink_to("data/archive")
    edit(tree / "dvc.yaml", "- data/archive\n\n", "- data/archive\n      - x\n\n")
    edit(tree / PARAMS, "url: data/mnist_sample.tgz", f"url: {url}")
    (line,) = check(tree)
    assert line.startswith(f"check: download.url: {url} is an output of the stage down")
    edit(tree / PARAMS, f"url: {url}", f"url: {tree.resolve() / url}")
    shutil.copy(tree / "data/mnist_sample.tgz", tree / "data/archive")
    (line,) = check(tree)
    assert " is an output of the stage download, which DVC deletes" in line


def test_an_archive_that_changed_after_a_success_is_reported(clone: Path):
    """DVC does not look at it, since the digest in params.yaml is what counts."""
    with (clone / "data/mnist_sample.tgz").open("ab") as file:
        file.write(b"more")
    assert Repo(str(clone)).status() == {}
    (line,) = check(clone)
    assert line == refusal(clone, "download")
    assert line.startswith("check: data/mnist_sample.tgz has SHA-256 ")


def test_of_several_archives_each_is_checked(tree: Path):
    archive, digest = "data/mnist_sample.tgz", "ac75f0ed034cb450a599a3288d0e1e454f"
    edit(tree / PARAMS, f"url: {archive}", f"url: [{archive}, README.md]")
    edit(tree / PARAMS, f"sha256: {digest}", f"sha256: [{'a' * 64}, {digest}")
    edit(tree / PARAMS, "  # must match the archive", "]")
    (line,) = check(tree)
    assert line.startswith(f"check: {archive} has SHA-256 {digest}")
    edit(tree / PARAMS, f"{archive}, README.md", '"https://a.example/x", data/archive')
    (line,) = check(tree)
    assert line.startswith("check: download.url: data/archive is an output of the")


def test_an_archive_may_be_missing_only_if_its_output_can_be_pulled(clone: Path):
    (clone / "data/mnist_sample.tgz").unlink()
    assert check(clone) == []
    (clone / "dvc.lock").unlink()
    (line,) = check(clone)
    assert line.startswith("check: download.url: there is no file data/mnist_sample")
    assert "run dvc pull data/archive if there is a DVC remote" in line


def test_what_a_url_points_to_is_not_fetched(tree: Path):
    edit(tree / PARAMS, "data/mnist_sample.tgz", "https://example.invalid/a.tgz")
    assert check(tree) == []
    edit(tree / PARAMS, "https://", "s3://")
    (line,) = check(tree)
    assert line.endswith("only a path, http:// or https:// can be fetched")


def test_a_loss_for_pairs_is_refused_for_three_classes_as_by_train(tree: Path):
    edit(tree / PARAMS, "loss: log_loss", "loss: absolute")
    assert check(tree) == []
    edit(tree / PARAMS, '["3", "7"]', '["3", "7", "8"]')
    with pytest.raises(UserError) as refused:
        outputs_of("absolute", 3)
    assert check(tree) == [f"check: {refused.value}"]


def test_the_batch_size_is_compared_only_with_tensors_of_these_parameters(
    restored: Path,
):
    """Others may have fewer images than those that are going to be made."""
    edit(restored / PARAMS, "batch_size: 64", "batch_size: 20000")
    (line,) = check(restored)
    assert line == refusal(restored, "train")
    assert line.endswith("exceeds the number of training images: use 1 to 12396")
    edit(restored / PARAMS, "color: null", "color: gray")
    assert check(restored) == []
    edit(restored / PARAMS, "color: gray", "color: null")

    tensors = restored / "data/tensors.npz"
    tensors.rename(restored / "away.npz")
    assert check(restored) == []
    np.savez(tensors, train_labels=np.zeros(5, "uint8"))  # of another commit, say
    assert check(restored) == []
    os.replace(restored / "away.npz", tensors)


@pytest.mark.parametrize("name", ["dvc.yaml", "dvc.lock"])
def test_errors_in_dvcs_own_files_are_left_to_dvc(tree: Path, name):
    for text in ("stages: [", "stages: [1, 2]"):
        (tree / name).write_text(text, "utf-8")
        assert check(tree) == []
    (tree / name).unlink()
    assert check(tree) == []
