"""`python -m tools.check` says what a stage would say, before DVC deletes anything."""

import io
import os
import shutil
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo

import tools.check
from stages.evaluation import outputs
from stages.plumbing.errors import UserError
from tests.conftest import STAGES, contents, copy, edit, run, succeed

PARAMS = "params.yaml"


@pytest.fixture
def fresh(sources: Path, tmp_path: Path) -> Path:
    """Copy the sources, without outputs."""
    return copy(sources, tmp_path / "a clone")


def check(folder: Path) -> list[str]:
    """Run the check; return the lines it prints, each of which is an error."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(stdout), redirect_stderr(stderr):
        status = tools.check.main()
    assert status == bool(stderr.getvalue())
    assert stdout.getvalue() == ""
    return stderr.getvalue().splitlines()


def check_in_a_process(folder: Path) -> list[str]:
    """Do the same as a user does."""
    done = run(folder, "python", "-m", "tools.check")
    assert done.returncode == bool(done.stderr), done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_the_parameters_of_this_repository_pass(fresh: Path):
    assert check_in_a_process(fresh) == []


def test_the_check_is_fast_since_it_imports_nothing_slow(fresh: Path):
    """It takes 0.2 s, and the modules of any of these take longer."""
    code = "import sys, tools.check; print(*{m.split('.')[0] for m in sys.modules})"
    imported = set(succeed(fresh, "python", "-c", code).split())
    assert not imported & {"jax", "optax", "dvc", "requests", "PIL", "jinja2", "tqdm"}


EDITS = {
    "download": ("sha256: ac", "sha256: AC"),
    "preprocess": ('["3", "7"]', "[3, 7]"),
    "baseline": ("distance: l1", "distance: l3"),
    "train": ("loss: log_loss", "loss: hinge"),
    "report": ("mistakes: 24", "mistakes: -1"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_section_is_checked_with_the_words_of_its_stage(lent: Path, stage):
    before = (lent / PARAMS).read_text("utf-8")
    edit(lent / PARAMS, *EDITS[stage])
    (said,) = check(lent)
    done = run(lent, "python", "-m", "stages", stage)
    (lent / PARAMS).write_text(before, "utf-8")
    assert said.removeprefix("check: ") == done.stderr.strip().removeprefix(
        f"{stage}: "
    )
    assert said.startswith("check: params.yaml: ")


def test_the_errors_of_all_sections_are_told_at_once(fresh: Path):
    for old, new in EDITS.values():
        edit(fresh / PARAMS, old, new)
    lines = check_in_a_process(fresh)
    assert lines == check(fresh)
    assert len(lines) == len(EDITS)
    for section in ("download", "data", "baseline", "train", "report"):
        assert sum(f"params.yaml: {section}." in line for line in lines) == 1


def test_a_file_that_is_missing_or_no_yaml_is_told_once(fresh: Path):
    (fresh / PARAMS).write_text("download: ]", "utf-8")
    (line,) = check(fresh)
    assert line.startswith("check: params.yaml, line 1: not valid YAML")
    (fresh / PARAMS).unlink()
    (line,) = check(fresh)
    assert line.startswith("check: params.yaml is missing")


def test_the_stages_refuse_in_the_same_words(lent: Path):
    """What has no section of its own, but is a matter of the data."""
    edits = {
        "download": ("sha256: ac", "sha256: bc"),
        "train": ("batch_size: 64", "batch_size: 20000"),
    }
    for stage, (old, new) in edits.items():
        before = (lent / PARAMS).read_text("utf-8")
        edit(lent / PARAMS, old, new)
        (said,) = check(lent)
        done = run(lent, "python", "-m", "stages", stage)
        (lent / PARAMS).write_text(before, "utf-8")
        assert said.removeprefix("check") == done.stderr.strip().removeprefix(stage)


@pytest.mark.parametrize(
    "url", ["data/archive", "./data/../data/archive", "link", "x/y"]
)
@pytest.mark.parametrize("exists", [True, False])
def test_an_output_of_a_stage_is_no_archive_of_the_user(fresh, url, exists):
    """DVC would delete it before the download stage could read it."""
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


def test_dvc_would_have_deleted_the_users_only_copy(clone: Path):
    """Why the check exists: the stage itself comes too late."""
    edit(clone / PARAMS, "url: data/mnist_sample.tgz", "url: data/archive")
    assert len(check(clone)) == 1
    assert (clone / "data/archive").exists()
    assert run(clone, "dvc", "repro").returncode != 0
    assert not (clone / "data/archive").exists()


def test_an_archive_that_changed_after_a_success_is_told(clone: Path):
    """DVC does not look at it, since the digest in params.yaml is what counts."""
    with (clone / "data/mnist_sample.tgz").open("ab") as file:
        file.write(b"more")
    assert Repo(str(clone)).status() == {}
    (line,) = check(clone)
    assert line.startswith("check: data/mnist_sample.tgz has SHA-256 ")
    assert "if you trust this archive, put its digest into params.yaml" in line


def test_an_archive_that_is_gone_is_missed_only_if_it_is_needed(lent: Path):
    archive = lent / "data/mnist_sample.tgz"
    archive.rename(lent / "away.tgz")
    assert check(lent) == []  # whoever pulls the outputs need not have it
    before = (lent / "dvc.lock").read_text("utf-8")
    (lent / "dvc.lock").unlink()
    assert check(lent) == [
        "check: download.url: there is no file data/mnist_sample.tgz: "
        "give a path from the root of the repository, or a URL"
    ]
    (lent / "dvc.lock").write_text(before, "utf-8")
    (lent / "away.tgz").rename(archive)


def test_what_a_url_leads_to_is_not_fetched(fresh: Path):
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
        linear.outputs_of("absolute", 3)
    assert check(fresh) == [f"check: {refused.value}"]


def test_the_batch_size_is_compared_only_with_tensors_of_these_parameters(lent: Path):
    """Others may have fewer images than those that are going to be made."""
    before = (lent / PARAMS).read_text("utf-8")
    edit(lent / PARAMS, "batch_size: 64", "batch_size: 20000")
    (line,) = check(lent)
    assert line.endswith("is more than the training images: allowed are 1 to 12396")
    edit(lent / PARAMS, "grayscale: false", "grayscale: true")
    assert check(lent) == []
    edit(lent / PARAMS, "grayscale: true", "grayscale: false")

    tensors = lent / "data/tensors.npz"
    tensors.rename(lent / "away.npz")
    assert check(lent) == []
    np.savez(tensors, train_labels=np.zeros(5, "uint8"))  # of another commit, say
    assert check(lent) == []
    os.replace(lent / "away.npz", tensors)
    (lent / PARAMS).write_text(before, "utf-8")


@pytest.mark.parametrize("name", ["dvc.yaml", "dvc.lock"])
def test_what_is_wrong_with_dvcs_own_files_is_left_to_dvc(fresh: Path, name):
    (fresh / name).write_text("stages: [", "utf-8")
    assert check(fresh) == []
    (fresh / name).write_text("stages: [1, 2]", "utf-8")
    assert check(fresh) == []
    (fresh / name).unlink()
    assert check(fresh) == []


def test_nothing_is_lost_where_the_check_stops_what_follows(clone: Path):
    before = contents(clone, "data", "models", "metrics")
    edit(clone / PARAMS, "batch_size: 64", "batch_size: 20000")
    assert len(check(clone)) == 1
    assert contents(clone, "data", "models", "metrics") == before
