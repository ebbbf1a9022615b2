"""Which edit reruns which stages, what DVC can compare, and how a stage fails."""

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

from tests.conftest import (
    AUTHOR,
    ROOT,
    STAGES,
    commit,
    contents,
    copy,
    edit,
    once,
    run,
    stages_run,
    succeed,
)
from tools.verify import outputs

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
    """A clone with a lower learning rate, committed, and what `dvc repro` printed."""

    def learn(folder: Path) -> None:
        copy(built, folder)
        edit(folder / "params.yaml", "learning_rate: 0.2 ", "learning_rate: 0.01 ")
        printed = succeed(folder, "dvc", "repro")
        (folder.parent / "printed").write_text(printed, "utf-8")
        commit(folder)

    folder = once(tmp_path_factory, "slower", learn)
    return folder, (folder.parent / "printed").read_text("utf-8")


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
def test_a_rebuild_without_cache_writes_the_bytes_that_the_committed_lock_names(built):
    committed = outputs(ROOT / "dvc.lock")
    assert outputs(built / "dvc.lock") == committed
    files = {path: (built / path).read_bytes() for path in committed}
    digests = {path: md5(content).hexdigest() for path, content in files.items()}
    assert digests == committed


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
def test_a_parameter_reruns_the_stages_that_depend_on_it(clone, old, new, rerun):
    edit(clone / "params.yaml", old, new)
    assert stages_run(succeed(clone, "dvc", "repro")) == rerun


def test_another_size_reruns_preprocess_though_the_run_cache_has_no_such_key(clone):
    """DVC leaves keys named `size` out of what it looks up there."""
    edit(clone / "params.yaml", "size: null", "size: [9, 8]")
    assert stages_run(succeed(clone, "dvc", "repro", "preprocess")) == ["preprocess"]
    with np.load(clone / "data/tensors.npz") as tensors:
        assert tensors["valid_images"].shape == (2038, 9, 8)
    edit(clone / "params.yaml", "size: [9, 8]", "size: null")
    assert stages_run(succeed(clone, "dvc", "repro", "preprocess")) == []
    with np.load(clone / "data/tensors.npz") as tensors:
        assert tensors["valid_images"].shape == (2038, 28, 28)


@pytest.mark.parametrize(
    ("module", "rerun"),
    [
        ("images/decode.py", ["preprocess"]),
        ("model/metrics.py", ["baseline", "train", "report"]),
        ("page/charts.py", ["report"]),
        pytest.param("plumbing/errors.py", STAGES, marks=pytest.mark.slow),
    ],
)
def test_an_edit_of_a_room_reruns_only_the_stages_that_declare_it(clone, module, rerun):
    """They write the same bytes as before, so nothing behind them runs."""
    before, locked = contents(clone, *OUTPUTS), outputs(clone / "dvc.lock")
    with (clone / "stages" / module).open("a", encoding="utf-8") as file:
        file.write("# A comment.\n")
    assert stages_run(succeed(clone, "dvc", "repro")) == rerun
    assert contents(clone, *OUTPUTS) == before
    assert outputs(clone / "dvc.lock") == locked


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


def test_the_stages_follow_one_another_as_designed(built):
    edges = re.findall(r'"(.+)" -> "(.+)";', succeed(built, "dvc", "dag", "--dot"))
    assert set(edges) == EDGES
    assert [stage.name for stage in Repo(str(built)).index.stages] == STAGES


def test_metrics_diff_shows_what_changed_between_two_commits(slower, built):
    shown = Repo(str(slower[0])).metrics.diff("HEAD~1")["diff"]
    files = [folder / "metrics/model.json" for folder in (built, slower[0])]
    old, new = (json.loads(file.read_text("utf-8"))["log_loss"] for file in files)
    assert shown.keys() == {"metrics/model.json"}
    assert shown["metrics/model.json"]["log_loss"] == {
        "old": old,
        "new": new,
        "diff": pytest.approx(new - old),
    }


def test_params_diff_shows_the_edit(slower):
    shown = Repo(str(slower[0])).params.diff("HEAD~1")["diff"]
    change = {"old": 0.2, "new": 0.01, "diff": pytest.approx(-0.19)}
    assert shown == {"params.yaml": {"train.learning_rate": change}}


def test_plots_diff_has_every_plot_of_both_commits(slower):
    options = ["--json", "--split", "--out", str(slower[0].parent / "plots")]
    shown = as_json(slower[0], "plots", "diff", "HEAD~1", *options)
    assert not shown.get("errors"), shown["errors"]
    declared = {"loss", "accuracy", "metrics/history.csv", "metrics/predictions.csv"}
    declared |= {"metrics/means.png", "metrics/weights.png", "metrics/mistakes.png"}
    assert shown["data"].keys() == declared
    for name, plots in shown["data"].items():
        revisions = {revision for plot in plots for revision in plot["revisions"]}
        assert revisions == {"HEAD~1", "workspace"}, name


def test_the_model_is_declared_as_an_artifact_and_can_be_fetched(slower, tmp_path):
    folder = slower[0]
    model = Repo(str(folder)).artifacts.read()["dvc.yaml"]["linear"]
    assert (model.path, model.type) == ("models/model.npz", "model")
    succeed(folder, "git", *AUTHOR, "tag", "-a", "-m", "first", "linear@v1.0.0")
    target = tmp_path / "fetched"
    command = ["dvc", "artifacts", "get", str(folder), "linear", "--out", str(target)]
    succeed(tmp_path, *command)
    fetched = target / "linear.npz" if target.is_dir() else target
    assert fetched.read_bytes() == (folder / "models/model.npz").read_bytes()


# A stage, an edit of params.yaml, and what the one line on stderr has to name.
USER_ERRORS = {
    "digest": (
        "download",
        "sha256: ac75",
        "sha256: 0c75",
        ["download.sha256", "data/mnist_sample.tgz", "ac75f0ed"],
    ),
    "no archive": (
        "download",
        "mnist_sample.tgz  #",
        "none.tgz  #",
        ["download.url", "data/none.tgz"],
    ),
    "no such class": (
        "preprocess",
        '["3", "7"]',
        '["3", "4"]',
        ["'4'", "data.classes"],
    ),
    "no such split": (
        "preprocess",
        "valid: valid",
        "valid: test",
        ["'3'", "test", "data.splits"],
    ),
    "unquoted class": (
        "preprocess",
        '["3", "7"]',
        '[3, "7"]',
        ["data.classes[0]", 'write "3"'],
    ),
    "unknown distance": (
        "baseline",
        "distance: l1",
        "distance: l3",
        ["baseline.distance", "'l3'", "l1, l2"],
    ),
    "batch of more than all": (
        "train",
        "batch_size: 64",
        "batch_size: 12397",
        ["train.batch_size", "1 to 12396"],
    ),
    "diverging": (
        "train",
        "loss: log_loss",
        "loss: squared_error",
        ["train.learning_rate", "0.2", "train.l2", "0.0005", "squared_error"],
    ),
    "decaying too much": (
        "train",
        "l2: 5e-4",
        "l2: 100",
        ["train.learning_rate", "0.2", "train.l2", "100", "log_loss"],
    ),
    "unknown key": (
        "train",
        "seed: 42",
        "seed: 42\n  warmup: 3",
        ["train", "`warmup`"],
    ),
    "missing key": ("train", "  seed: 42\n", "", ["train", "`seed`"]),
    "missing section": (
        "report",
        "report:\n  mistakes: 24",
        "other:\n  mistakes: 24",
        ["section report"],
    ),
    "negative": ("report", "mistakes: 24", "mistakes: -1", ["report.mistakes", "-1"]),
}


@pytest.mark.parametrize(
    ("stage", "old", "new", "words"), USER_ERRORS.values(), ids=USER_ERRORS
)
def test_an_error_is_one_line_that_names_the_culprit_and_leaves_the_outputs(
    lent, stage, old, new, words
):
    params, before = (lent / "params.yaml").read_text("utf-8"), contents(lent, *OUTPUTS)
    try:
        edit(lent / "params.yaml", old, new)
        done = run(lent, "python", "-m", "stages", stage)
    finally:
        (lent / "params.yaml").write_text(params, "utf-8")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{stage}: ")
    assert done.stderr.count("\n") == 1
    assert [word for word in words if word not in done.stderr] == []
    assert contents(lent, *OUTPUTS) == before


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


def three_classes(path: Path) -> None:
    """Write a zip of PGM images, 6 x 5: in every class another column is bright.

    The folders have other names than MNIST's.
    """
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for split, count in {"training": 30, "test": 10}.items():
            for label, column in {"frog": 0, "cat": 2, "dog": 4}.items():
                for i in range(count):
                    pixels = random.integers(0, 100, (5, 6), np.uint8)
                    pixels[:, column] += 150
                    image = io.BytesIO()
                    Image.fromarray(pixels).save(image, "PPM")
                    name = f"animals/{split}/{label}/{i}.pgm"
                    file.writestr(name, image.getvalue())


@pytest.mark.slow
def test_any_folder_of_images_works_with_an_edit_of_params_yaml_alone(
    sources, tmp_path
):
    folder = copy(sources, tmp_path / "a clone")
    three_classes(folder / "animals.zip")
    digest = sha256((folder / "animals.zip").read_bytes()).hexdigest()
    params = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
    params["download"] = {"url": "animals.zip", "sha256": digest}
    params["data"]["classes"] = ["cat", "dog", "frog"]
    params["data"]["splits"] = {"train": "training", "valid": "test"}
    params["train"] |= {"batch_size": 8, "epochs": 5, "l2": 0.0003}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    assert stages_run(succeed(folder, "dvc", "repro")) == STAGES

    with np.load(folder / "models/model.npz") as model:
        shapes = {name: model[name].shape for name in ("weights", "bias")}
        assert model["classes"].tolist() == ["cat", "dog", "frog"]
        assert (model["outputs"], *model["image_size"]) == ("softmax", 5, 6)
    assert shapes == {"weights": (30, 3), "bias": (3,)}
    for name in ("baseline", "linear"):
        metrics = json.loads((folder / f"metrics/{name}.json").read_text("utf-8"))
        assert metrics["recall"].keys() == {"cat", "dog", "frog"}
        assert metrics["accuracy"] == 1
        assert "auc" not in metrics
    page = (folder / "metrics/report.html").read_text("utf-8")
    assert [name for name in ("cat", "dog", "frog") if name not in page] == []
    shutil.rmtree(folder)


def test_the_predictions_are_in_the_cache_and_not_in_git(built):
    """They have a line for every validation image, and most change with the weights."""
    path = "metrics/predictions.csv"
    assert path not in succeed(built, "git", "ls-files", "metrics").split()
    digest = outputs(built / "dvc.lock")[path]
    cached = built / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    assert cached.read_bytes() == (built / path).read_bytes()
