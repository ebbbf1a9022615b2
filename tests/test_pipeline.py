"""Which edit reruns which stages, what DVC shows, and how a stage fails."""

import json
import platform
from hashlib import md5, sha256

import numpy as np
import pytest
import yaml
from dvc.repo import Repo

from stages.evaluation.model_file import TrainedModel
from tests.builders import pack
from tests.conftest import (
    ROOT,
    STAGES,
    commit,
    contents,
    edit,
    run,
    stages_run,
    succeed,
)
from tools.verify import outputs

OUTPUTS = ["data", "models", "metrics"]


def test_the_committed_lock_is_of_this_code(sources):
    """Where it is not, `dvc repro` was forgotten before the commit."""
    stages = Repo(str(sources)).index.stages
    made = {out.fs_path for stage in stages for out in stage.outs}
    deps = [dep for stage in stages for dep in stage.deps if dep.fs_path not in made]
    assert [dep.status() for dep in deps if dep.status()] == []


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="the promise of same bytes is for x86-64",
)
def test_a_rebuild_without_cache_writes_the_bytes_recorded_in_the_committed_lock(built):
    committed = outputs(ROOT / "dvc.lock")
    assert outputs(built / "dvc.lock") == committed
    files = {path: (built / path).read_bytes() for path in committed}
    digests = {path: md5(content).hexdigest() for path, content in files.items()}
    assert digests == committed


def test_a_second_repro_runs_nothing_nor_one_after_edits_of_comments_and_docs(clone):
    assert stages_run(succeed(clone, "dvc", "repro")) == []
    assert succeed(clone, "git", "status", "--porcelain") == ""
    edit(clone / "params.yaml", "seed: 42", "seed: 42  # the notebook's")
    (clone / "README.md").write_text("Another one.\n", "utf-8")
    assert Repo(str(clone)).status() == {}


@pytest.mark.slow
def test_a_parameter_reruns_its_stages_and_setting_it_back_restores_the_bytes(clone):
    """DVC's run cache leaves out keys named `size`; dvc.yaml makes up for it."""
    before = contents(clone, *OUTPUTS)
    edit(clone / "params.yaml", "size: null", "size: [9, 8]")
    assert stages_run(succeed(clone, "dvc", "repro")) == STAGES[1:]
    assert contents(clone, *OUTPUTS) != before
    edit(clone / "params.yaml", "size: [9, 8]", "size: null")
    assert stages_run(succeed(clone, "dvc", "repro")) == []
    assert contents(clone, *OUTPUTS) == before


def test_behind_a_stage_that_writes_the_same_bytes_as_before_nothing_runs(clone):
    before, locked = contents(clone, *OUTPUTS), outputs(clone / "dvc.lock")
    with (clone / "stages/images/decode.py").open("a", encoding="utf-8") as file:
        file.write("# A comment.\n")
    assert stages_run(succeed(clone, "dvc", "repro")) == ["preprocess"]
    assert contents(clone, *OUTPUTS) == before
    assert outputs(clone / "dvc.lock") == locked


COMMENT = ("", "# A comment.\n")


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("params.yaml", "distance: l1", "distance: l2", {"baseline", "report"}),
        ("params.yaml", "mistakes: 24", "mistakes: 5", {"report"}),
        ("stages/images/decode.py", *COMMENT, {"preprocess"}),
        ("stages/evaluation/metrics.py", *COMMENT, {"baseline", "train", "report"}),
        ("stages/model.py", *COMMENT, {"train", "report"}),
        ("stages/page/charts.py", *COMMENT, {"report"}),
        ("stages/plumbing/errors.py", *COMMENT, {*STAGES}),
    ],
)
def test_dvc_status_names_the_stages_that_an_edit_reruns(lent, file, old, new, stages):
    before = (lent / file).read_text("utf-8")
    (lent / file).write_text(before.replace(old, new, 1), "utf-8")
    found = Repo(str(lent)).status()
    assert {name.rpartition(":")[2] for name in found} == stages
    (lent / file).write_text(before, "utf-8")
    assert Repo(str(lent)).status() == {}


def test_plots_diff_has_every_plot_of_both_commits(lent, tmp_path):
    options = ["--json", "--split", "--out", str(tmp_path)]
    shown = json.loads(succeed(lent, "dvc", "plots", "diff", "HEAD~1", *options))
    assert not shown.get("errors"), shown["errors"]
    tables = {"loss", "accuracy", "metrics/predictions.csv"}
    pictures = {f"metrics/{name}.png" for name in ("means", "weights", "mistakes")}
    assert shown["data"].keys() == tables | pictures
    for name, plots in shown["data"].items():
        revisions = {revision for plot in plots for revision in plot["revisions"]}
        assert revisions == {"HEAD~1", "workspace"}, name


def test_dvc_repro_shows_the_line_and_keeps_what_was_built_before(clone):
    """What the README says of bare `dvc repro`."""
    before = contents(clone, *OUTPUTS)
    edit(clone / "params.yaml", "batch_size: 64", "batch_size: 20000")
    done = run(clone, "dvc", "repro")
    assert done.returncode != 0
    assert "train: train.batch_size" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    # DVC removes the outputs of a stage before it runs.
    assert not (clone / "models/model.npz").exists()
    edit(clone / "params.yaml", "batch_size: 20000", "batch_size: 64")
    assert stages_run(succeed(clone, "dvc", "repro")) == []
    assert contents(clone, *OUTPUTS) == before


def three_classes() -> dict[str, bytes]:
    """Return PPM images, 6 x 5, of a hue for every class; all have the luma 110."""
    hues = {"frog": (40, 150, 88), "cat": (200, 70, 82), "dog": (80, 110, 189)}
    files, random = {}, np.random.default_rng(0)
    for split, count in {"training": 30, "test": 10}.items():
        for label, hue in hues.items():
            for i in range(count):
                noise = random.integers(-40, 50, (5, 6, 1))
                pixels = (noise + hue).astype(np.uint8)
                content = b"P6 6 5 255\n" + pixels.tobytes()
                files[f"animals/{split}/{label}/{i}.ppm"] = content
    return files


@pytest.mark.slow
def test_any_folder_of_images_works_with_an_edit_of_params_yaml_alone(tree):
    archive = pack(three_classes())
    (tree / "data/animals.tar").write_bytes(archive)
    params = yaml.safe_load((tree / "params.yaml").read_text("utf-8"))
    digest = sha256(archive).hexdigest()
    params["download"] = {"url": "data/animals.tar", "sha256": digest}
    params["data"]["classes"] = ["cat", "dog", "frog"]
    params["data"]["color"] = "rgb"
    params["data"]["splits"] = {"train": "training", "valid": "test"}
    params["train"] |= {"batch_size": 8, "epochs": 5, "l2": 0.0003}
    (tree / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    assert stages_run(succeed(tree, "dvc", "repro")) == STAGES

    model = TrainedModel.load(str(tree / "models/model.npz"))
    shapes = {name: array.shape for name, array in model.params.items()}
    assert shapes == {"weights": (90, 3), "bias": (3,)}
    assert model.classes == ["cat", "dog", "frog"]
    assert (model.outputs, *model.image_shape) == ("softmax", 5, 6, 3)
    for name in ("baseline", "model"):
        metrics = json.loads((tree / f"metrics/{name}.json").read_text("utf-8"))
        assert metrics["recall"].keys() == {"cat", "dog", "frog"}
        assert metrics["accuracy"] == 1
        assert "auc" not in metrics
    page = (tree / "metrics/report.html").read_text("utf-8")
    assert [name for name in model.classes if name not in page] == []

    # Git ignores the archive; a colleague may have nothing but data/archive.
    commit(tree)
    (tree / "data/animals.tar").unlink()
    verified = succeed(tree, "python", "-m", "tools.verify")
    assert "data/animals.tar is not in Git: using data/archive" in verified
    assert "13 of 13 outputs have the bytes" in verified


def test_the_predictions_are_in_the_cache_and_not_in_git(built):
    """They have a line for every validation image, and most change with the weights."""
    path = "metrics/predictions.csv"
    assert path not in succeed(built, "git", "ls-files", "metrics").split()
    digest = outputs(built / "dvc.lock")[path]
    cached = built / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    assert cached.read_bytes() == (built / path).read_bytes()
