"""What DVC makes of dvc.yaml: which edit reruns what, what can be compared, and how a stage refuses."""

import io
import json
import platform
import re
import shutil
import zipfile
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dvc.repo import Repo
from PIL import Image

from tests.conftest import ROOT, STAGES, commit, contents, copy, edit, run, stages_run, succeed
from tests.verify import outputs

OUTPUTS = ["data", "models", "metrics"]
EDGES = {
    ("download", "preprocess"),
    ("preprocess", "baseline"),
    ("preprocess", "train"),
    ("baseline", "report"),
    ("train", "report"),
    ("preprocess", "report"),  # for the images that the report shows
}


def as_json(folder: Path, *command: str) -> Any:
    return json.loads(succeed(folder, "dvc", *command))


@pytest.fixture(scope="module")
def slower(built, tmp_path_factory):
    """A clone with a lower learning rate, in a commit of its own, and what `dvc repro` printed there."""
    folder = copy(built, tmp_path_factory.mktemp("slower") / "a clone")
    edit(folder / "params.yaml", "learning_rate: 0.2 ", "learning_rate: 0.01 ")
    stdout = succeed(folder, "dvc", "repro")
    commit(folder)
    return folder, stdout


def test_the_committed_lock_is_of_this_code():
    """Where it is not, `dvc repro` was forgotten before the commit."""
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text("utf-8"))["stages"]
    made = {out["path"] for stage in stages.values() for out in stage["outs"]}
    deps = {dep["path"]: dep["md5"] for stage in stages.values() for dep in stage["deps"] if dep["path"] not in made}
    assert {path: md5((ROOT / path).read_bytes()).hexdigest() for path in deps} == deps


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the promise of same bytes is for x86-64")
def test_a_rebuild_without_cache_writes_the_bytes_that_the_committed_lock_names(built):
    committed = outputs(ROOT / "dvc.lock")
    assert outputs(built / "dvc.lock") == committed
    assert {path: md5((built / path).read_bytes()).hexdigest() for path in committed} == committed


def test_a_second_repro_runs_nothing(clone):
    assert stages_run(succeed(clone, "dvc", "repro")) == []
    assert succeed(clone, "git", "status", "--porcelain") == ""


def test_a_learning_rate_reruns_train_and_report(slower):
    assert stages_run(slower[1]) == ["train", "report"]


@pytest.mark.parametrize(
    ("old", "new", "rerun"),
    [
        ("distance: l1 ", "distance: l2 ", ["baseline", "report"]),
        pytest.param('["3", "7"]', '["7", "3"]', STAGES[1:], marks=pytest.mark.slow),
    ],
    ids=["baseline", "data"],
)
def test_an_edit_reruns_the_stages_that_it_touches(clone, old, new, rerun):
    edit(clone / "params.yaml", old, new)
    assert stages_run(succeed(clone, "dvc", "repro")) == rerun


def test_setting_a_value_back_runs_nothing_and_restores_the_bytes(clone):
    before = contents(clone, *OUTPUTS)
    edit(clone / "params.yaml", "mistakes: 24", "mistakes: 5")
    assert stages_run(succeed(clone, "dvc", "repro")) == ["report"]
    assert contents(clone, *OUTPUTS) != before
    edit(clone / "params.yaml", "mistakes: 5", "mistakes: 24")
    assert stages_run(succeed(clone, "dvc", "repro")) == []
    assert contents(clone, *OUTPUTS) == before


def test_a_comment_in_params_yaml_and_an_edit_of_the_readme_run_nothing(clone):
    edit(clone / "params.yaml", "seed: 42", "seed: 42  # the notebook's")
    (clone / "README.md").write_text("Another one.\n", "utf-8")
    assert Repo(str(clone)).status() == {}


def test_the_stages_follow_each_other_as_designed(built):
    edges = re.findall(r'"(.+)" -> "(.+)";', succeed(built, "dvc", "dag", "--dot"))
    assert set(edges) == EDGES
    assert [stage.name for stage in Repo(str(built)).index.stages] == STAGES


def test_metrics_diff_shows_what_changed_between_two_commits(slower, built):
    shown = as_json(slower[0], "metrics", "diff", "HEAD~1", "--json")
    new, old = (
        json.loads((folder / "metrics/linear.json").read_text("utf-8"))["log_loss"] for folder in (slower[0], built)
    )
    assert shown.keys() == {"metrics/linear.json"}
    assert shown["metrics/linear.json"]["log_loss"] == {"old": old, "new": new, "diff": pytest.approx(new - old)}


def test_params_diff_shows_the_edit(slower):
    shown = as_json(slower[0], "params", "diff", "HEAD~1", "--json")
    assert shown == {"params.yaml": {"train.learning_rate": {"old": 0.2, "new": 0.01, "diff": pytest.approx(-0.19)}}}


def test_plots_diff_has_every_plot_of_both_commits(slower):
    shown = as_json(slower[0], "plots", "diff", "HEAD~1", "--json", "--split", "--out", str(slower[0].parent / "plots"))
    assert not shown.get("errors"), shown["errors"]
    declared = {"loss", "accuracy", "metrics/history.csv", "metrics/predictions.csv"}
    declared |= {"metrics/means.png", "metrics/weights.png", "metrics/mistakes.png"}
    assert shown["data"].keys() == declared
    for name, plots in shown["data"].items():
        assert {revision for plot in plots for revision in plot["revisions"]} == {"HEAD~1", "workspace"}, name


def test_the_model_is_declared_as_an_artifact_and_can_be_fetched(slower, tmp_path):
    folder = slower[0]
    model = Repo(str(folder)).artifacts.read()["dvc.yaml"]["linear"]
    assert (model.path, model.type) == ("models/linear.npz", "model")
    person = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    succeed(folder, "git", *person, "tag", "-a", "-m", "first", "linear@v1.0.0")
    succeed(tmp_path, "dvc", "artifacts", "get", str(folder), "linear", "--out", str(tmp_path / "fetched"))
    fetched = (tmp_path / "fetched/linear.npz") if (tmp_path / "fetched").is_dir() else tmp_path / "fetched"
    assert fetched.read_bytes() == (folder / "models/linear.npz").read_bytes()


# A stage, an edit of params.yaml, and what the one line on stderr has to name.
REFUSALS = {
    "digest": ("download", "sha256: ac75", "sha256: 0c75", ["download.sha256", "data/mnist_sample.tgz", "ac75f0ed"]),
    "no archive": ("download", "mnist_sample.tgz  #", "none.tgz  #", ["download.url", "data/none.tgz"]),
    "no such class": ("preprocess", '["3", "7"]', '["3", "4"]', ["'4'", "data.classes"]),
    "no such split": ("preprocess", "valid: valid", "valid: test", ["'3'", "test", "data.splits"]),
    "unquoted class": ("preprocess", '["3", "7"]', '[3, "7"]', ["data.classes[0]", 'write "3"']),
    "unknown distance": ("baseline", "distance: l1", "distance: l3", ["baseline.distance", "'l3'", "l1, l2"]),
    "batch of more than all": ("train", "batch_size: 64", "batch_size: 12397", ["train.batch_size", "1 to 12396"]),
    "diverging": ("train", "loss: log_loss", "loss: squared_error", ["train.learning_rate", "0.2", "squared_error"]),
    "unknown key": ("train", "seed: 42", "seed: 42\n  warmup: 3", ["train", "`warmup`"]),
    "missing key": ("train", "  seed: 42\n", "", ["train", "`seed`"]),
    "missing section": ("report", "report:\n  mistakes: 24", "other:\n  mistakes: 24", ["section report"]),
    "negative": ("report", "mistakes: 24", "mistakes: -1", ["report.mistakes", "-1"]),
}


@pytest.mark.parametrize(("stage", "old", "new", "culprits"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_one_line_that_names_the_culprit_and_leaves_the_outputs(lent, stage, old, new, culprits):
    params, before = (lent / "params.yaml").read_text("utf-8"), contents(lent, *OUTPUTS)
    try:
        edit(lent / "params.yaml", old, new)
        done = run(lent, "python", "-m", f"stages.{stage}")
    finally:
        (lent / "params.yaml").write_text(params, "utf-8")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{stage}: ")
    assert done.stderr.count("\n") == 1
    assert [word for word in culprits if word not in done.stderr] == []
    assert contents(lent, *OUTPUTS) == before


def test_dvc_repro_shows_the_line_and_keeps_what_was_built_before(clone):
    edit(clone / "params.yaml", "loss: log_loss", "loss: squared_error")
    done = run(clone, "dvc", "repro")
    assert done.returncode != 0
    assert "train: train.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (clone / "models/linear.npz").exists()  # DVC removes the outputs of a stage before it runs
    edit(clone / "params.yaml", "loss: squared_error", "loss: log_loss")
    assert stages_run(succeed(clone, "dvc", "repro")) == []


def three_classes(path: Path) -> None:
    """A zip of PGM images, 6 x 5, each class with another bright column, in folders of other names than MNIST's."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for split, count in {"training": 30, "test": 10}.items():
            for label, column in {"frog": 0, "cat": 2, "dog": 4}.items():
                for i in range(count):
                    content = io.BytesIO()
                    pixels = random.integers(0, 100, (5, 6), np.uint8)
                    pixels[:, column] += 150
                    Image.fromarray(pixels).save(content, "PPM")
                    file.writestr(f"animals/{split}/{label}/{i}.pgm", content.getvalue())


@pytest.mark.slow
def test_any_folder_of_images_works_with_an_edit_of_params_yaml_alone(sources, tmp_path):
    folder = copy(sources, tmp_path / "a clone")
    three_classes(folder / "animals.zip")
    digest = sha256((folder / "animals.zip").read_bytes()).hexdigest()
    params = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
    params["download"] = {"url": "animals.zip", "sha256": digest}
    params["data"] |= {"classes": ["cat", "dog", "frog"], "splits": {"train": "training", "valid": "test"}}
    params["train"] |= {"batch_size": 8, "epochs": 5, "l2": 0.0003}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    assert stages_run(succeed(folder, "dvc", "repro")) == STAGES

    with np.load(folder / "models/linear.npz") as model:
        assert {name: model[name].shape for name in model.files} == {"weights": (30, 3), "bias": (3,)}
    for name in ("baseline", "linear"):
        measures = json.loads((folder / f"metrics/{name}.json").read_text("utf-8"))
        assert measures["recall"].keys() == {"cat", "dog", "frog"}
        assert measures["accuracy"] == 1
        assert "auc" not in measures
    page = (folder / "metrics/report.html").read_text("utf-8")
    assert [name for name in ("cat", "dog", "frog") if name not in page] == []
    shutil.rmtree(folder)
