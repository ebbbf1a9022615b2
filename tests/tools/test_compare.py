"""tools.compare reports what changed, and whether it is significant."""

import csv
import html
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from sklearn import metrics as sk

from stages.plumbing import npz
from stages.plumbing.errors import UserError
from stages.plumbing.tensors import digest_image
from tests.builders import refusal
from tests.conftest import ROOT, commit, copy, edit, once, run, succeed
from tests.test_make import Fakes, script
from tools import compare
from tools.verify import outputs

COMMAND = ("python", "-m", "tools.compare")
PREDICTIONS = "metrics/predictions.csv"
Names = Sequence[str]
OLD_HEADER = "index,digest,actual,predicted,p_predicted,p_actual"
HEADER = OLD_HEADER.replace("index", "index,name")


def make_rows(images: Sequence[int], actual: Names, predicted: Names) -> Any:
    """Return predictions with random probabilities for images told apart by number."""
    lines = [HEADER]
    random = np.random.default_rng([ord(name[0]) for name in predicted])
    for i, row in enumerate(zip(images, actual, predicted, strict=True)):
        p = random.uniform(0.5, 1)
        p_actual = p if row[1] == row[2] else random.uniform(0, 1 - p)
        name = f"<b>{'a/' * 30}{i}"
        lines.append(
            f"{i},{name},{row[0]:032x},{row[1]},{row[2]},{p:.6g},{p_actual:.6g}"
        )
    return compare.parse_predictions("\n".join(lines))


def make(rows: Any, rev: str = "HEAD") -> compare.Revision:
    return compare.Revision(rev, None, {}, rows)


def random_names(count: int, seed: int) -> list[str]:
    return np.random.default_rng(seed).choice(list("abc"), count).tolist()


def random_revisions(count: int, seed: int = 0) -> list[compare.Revision]:
    """Return two revisions, HEAD and new, that predict the same images at random."""
    actual, *predicted = (random_names(count, seed + i) for i in (0, 10, 20))
    rows = [make_rows(range(count), actual, names) for names in predicted]
    return [make(rows[0]), make(rows[1], "new")]


def say(first: compare.Revision, second: compare.Revision) -> str:
    """Return the text of a comparison in one line."""
    return " ".join(compare.compare(first, second)[0].split())


def test_the_interval_is_that_of_scipy():
    random = np.random.default_rng(1)
    accuracy = random.choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.85, 0.05])
    differences = np.stack([accuracy, random.exponential(size=300)])
    mean, low, high = compare.bootstrap(differences).T
    expected = stats.bootstrap(
        (differences,),
        np.mean,
        axis=-1,
        n_resamples=compare.RESAMPLES,
        method="percentile",
        batch=100,
        rng=np.random.default_rng(compare.SEED),
    ).confidence_interval
    np.testing.assert_allclose(low, expected.low, rtol=1e-12)
    np.testing.assert_allclose(high, expected.high, rtol=1e-12)
    np.testing.assert_allclose(mean, differences.mean(1))
    np.testing.assert_array_equal(compare.bootstrap(differences).T, [mean, low, high])


@pytest.mark.parametrize("seed", range(3))
def test_counts_and_p_are_those_of_scipy_and_statsmodels(seed):
    from statsmodels.stats.contingency_tables import (  # type: ignore[import-untyped]
        mcnemar,  # here, since it takes three seconds
    )

    sides = random_revisions(60, seed)
    rows = [side.predictions for side in sides]
    right, other = (
        [a == b for a, b in zip(r.actual, r.predicted, strict=True)] for r in rows
    )
    table = sk.confusion_matrix(right, other, labels=[True, False])
    (_, first), (second, _) = table.tolist()
    p = stats.binomtest(first, first + second).pvalue
    assert p == pytest.approx(mcnemar(table, exact=True).pvalue)
    points = 100 * (np.mean(other) - np.mean(right))
    said = say(*sides)
    assert f"only HEAD gets {first} right, only new {second} (McNemar's exact" in said
    assert f"test, p = {p:.2g}). In percentage points, it is {points:+.2g} (" in said


item = st.tuples(st.integers(0, 3), st.sampled_from("abc"))  # which image, which class


@given(st.lists(item, min_size=1), st.lists(item, min_size=1))
def test_images_are_matched_by_pixels_and_class(items, others):
    """In any order, missing or repeated on a side, or with another class there."""
    sides = [
        make_rows([i for i, _ in side], [name for _, name in side], "a" * len(side))
        for side in (items, others)
    ]
    first, second, relabelled = compare.match(*sides)
    assert [items[i] for i in first.index] == [others[j] for j in second.index]
    for rows in (first, second):
        assert len(set(rows.index.tolist())) == len(rows)
    counts, other_counts = Counter(items), Counter(others)
    both = counts & other_counts
    assert len(first) == both.total()
    left = Counter(i for i, _ in (counts - both).elements())
    other_left = Counter(i for i, _ in (other_counts - both).elements())
    assert relabelled == (left & other_left).total()


def test_what_is_not_compared_is_said():
    actual, predicted = random_names(40, 0), random_names(40, 1)
    others = [*actual[2:30], *np.char.upper(actual[30:33]), *actual[33:]]
    first = make(make_rows(range(33), actual[:33], predicted[:33]))
    said = say(first, make(make_rows(range(2, 40), others, predicted[2:]), "new"))
    assert "On the 28 validation images that both have," in said
    rest = "2 that only HEAD has, 7 that only new has, 3 with different classes."
    assert f"Images that are not compared: {rest}" in said
    other = make(make_rows(range(33), ["x"] * 33, predicted[:33]), "new")
    said = say(first, other._replace(values={"params.yaml": {"data.size": 8}}))
    assert said.startswith("Nothing can be compared: HEAD and new have no validation")
    assert "Images that are not compared: 33 with different classes." in said


def test_the_order_of_the_images_changes_nothing_and_that_of_the_classes_is_said():
    first, _ = random_revisions(50)
    rows = first.predictions[np.argsort(first.predictions.actual)]
    said = say(first._replace(predictions=rows), make(rows[::-1], "new"))
    assert "both get the same ones right. The log loss is the same." in said
    assert "The classes differ. HEAD: a, b, c; new: c, b, a." in said
    assert "Predictions that changed" not in said


def test_the_most_confident_change_comes_first():
    first, second = random_revisions(80)
    _, old, new = compare.compare(first, second)
    changed = first.predictions.predicted != second.predictions.predicted
    assert sorted(old.index) == sorted(new.index) == np.flatnonzero(changed).tolist()
    assert old.index.tolist() == new.index.tolist()
    assert (np.diff(old.p_predicted + new.p_predicted) <= 0).all()


def test_few_images_decide_nothing_about_the_log_loss():
    said = say(*random_revisions(3))
    assert "They are too few for an interval of the log loss." in said


def test_the_verdict_follows_the_test():
    """Two-sided binomial p of 0 of 6 is 2/64, of 1 of 7 16/128."""
    for losses, verdict in ((0, "is more than"), (1, "may be")):
        predicted = "b" * 6 + "a" * 34, "a" * 6 + "b" * losses + "a" * (34 - losses)
        old, new = (make_rows(range(40), "a" * 40, names) for names in predicted)
        said = say(make(old), make(new, "new"))
        assert f"the difference in accuracy {verdict} chance" in said
        assert f"only HEAD gets {losses} right, only new 6" in said


RECORDED = {
    "params.yaml": "model: linear\nclasses: ['3', '7']\n",
    "dvc.lock": "schema: '2.0'\nstages:\n  fit:\n    cmd: fit\n"
    "    params: {params.yaml: {model: linear}}\n",
    "dvc.yaml": "stages: {}\n",
    "metrics/model.json": '{"accuracy": 0.75, "f1": {"\\ud83d\\ude00": 0.5}}',
    PREDICTIONS: f"{OLD_HEADER}\n"
    "0,d0,3,3,0.9,0.9\n1,d1,3,7,0.6,0.4\n2,d2,7,7,0.8,0.8\n3,d3,7,7,1,1\n",
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commit what a model recorded, without the model or any stage."""
    folder = tmp_path_factory.mktemp("recorded") / "a repository"
    folder.mkdir()
    commit(folder)
    succeed(folder, "dvc", "init", "-q")
    write(folder, RECORDED)
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    commit(folder)


def test_models_of_two_kinds_are_compared(recorded: Path, monkeypatch):
    """A forest has other parameters and metrics; it loses an image and finds one.

    The linear model's predictions are of an older format, without names.
    """
    write(
        recorded,
        {
            "params.yaml": "model: forest\ntrees: 100\nclasses: ['3', '7']\n",
            "dvc.lock": RECORDED["dvc.lock"].replace("linear", "forest"),
            "metrics/model.json": '{"accuracy": 0.75, "oob": 0.5}',
            PREDICTIONS: f"{HEADER}\n"
            '0,"v/a,.png",d0,3,7,0.7,0.3\n1,=1,d1,3,3,0.6,0.6\n'
            "2,c,d2,7,7,0.8,0.8\n3,d,d3,7,7,1,1\n",
        },
    )
    monkeypatch.chdir(recorded)
    text, _, _ = compare.compare(compare.load("HEAD~1"), compare.load("HEAD"))
    tables, _, rest = text.partition("On the same")
    assert [line.split() for line in tables.splitlines() if line] == [
        ["params.yaml", "HEAD~1", "HEAD", "change"],
        ["model", "linear", "forest"],
        ["trees", "null", "100"],
        ["metrics/model.json", "HEAD~1", "HEAD", "change"],
        ["f1.😀", "0.5", "null"],
        ["oob", "null", "0.5"],
    ]
    assert (
        "only HEAD~1 gets 1 right, only HEAD 1 (McNemar's exact test, p = 1)"
        in " ".join(rest.split())
    )
    assert rest.splitlines()[-3:] == [
        "image     actual      HEAD~1        HEAD",
        "v/a,.png       3  3 (0.9000)  7 (0.7000)",
        "=1             3  7 (0.6000)  3 (0.6000)",
    ]
    text, _, _ = compare.compare(compare.load("HEAD"), compare.load("HEAD~1"))
    assert text.splitlines()[-1] == "1           3  3 (0.6000)  7 (0.6000)"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metrics/model.json", "{", "Expecting property name"),
        (PREDICTIONS, "", "unpack"),
        (PREDICTIONS, f"{HEADER}\n0,d0,3,3,0.9\n", "shorter"),
        (PREDICTIONS, f"{HEADER}\n0,d0,3,3,0.9,much\n", "much"),
        (PREDICTIONS, "index,actual,score\n", "with the columns index, actual, score"),
        ("dvc.lock", None, None),
    ],
)
def test_a_file_that_cannot_be_compared_is_named(
    recorded: Path, monkeypatch, name, text, reason
):
    write(recorded, {**RECORDED, name: text or ""})
    line = rf"DVC cannot read {name} of HEAD \(.*{reason}.*\): compare a later "
    line += "revision"
    if text is None:
        (recorded / name).unlink()
        commit(recorded)
        line = f"{name} of HEAD does not exist: compare a later revision"
    monkeypatch.chdir(recorded)
    with pytest.raises(UserError) as caught:
        compare.load("HEAD")
    assert re.fullmatch(line, str(caught.value), re.DOTALL)


def test_a_partial_clone_fetches_what_it_lacks(recorded: Path, tmp_path: Path):
    """DVC would wait for it for ever."""
    write(recorded, {**RECORDED, "metrics/model.json": '{"accuracy": 0.5}'})
    write(recorded, RECORDED)
    succeed(recorded, "git", "config", "uploadpack.allowFilter", "true")
    options = ["--quiet", "--no-local", "--filter=blob:none"]
    here = tmp_path / "a clone"
    succeed(tmp_path, "git", "clone", *options, str(recorded), str(here))
    away = recorded.rename(recorded.parent / "away")
    compared = [*COMMAND, "HEAD~1", "HEAD"]
    done = run(here, *compared, PYTHONPATH=str(ROOT))
    away.rename(recorded)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "promisor remote" in done.stderr
    text = succeed(here, *compared, PYTHONPATH=str(ROOT))
    assert re.search(r"^accuracy +0.5 +0.75 +\+0.25$", text, re.MULTILINE)


class Page(NamedTuple):
    """What a page loads, how often it has which tag, and its text."""

    sources: list[str]
    tags: Counter[str]
    text: str


def read_page(file: Path) -> Page:
    page = file.read_text("utf-8")
    sources = re.findall(r'(?:src|href)="?([^">]*)', page)
    text = html.unescape(re.sub("<[^>]*>", "", page))
    return Page(sources, Counter(re.findall(r"<(\w+)", page)), text)


def tensors_at(folder: Path, images: np.ndarray) -> Any:
    """Write images into data/tensors.npz; return a file system that has it."""
    (folder / "data").mkdir(parents=True)
    with (folder / "data/tensors.npz").open("wb") as file:
        npz.write({"valid_images": images}, file)
    return fsspec.filesystem("dir", path=str(folder), fs=fsspec.filesystem("file"))


def test_the_page_escapes_names_and_shows_the_images_of_either_side(
    tmp_path: Path, monkeypatch
):
    images = np.random.default_rng(0).integers(0, 256, (99, 4, 5), np.uint8)
    right = tensors_at(tmp_path / "right", images)
    wrong = tensors_at(tmp_path / "wrong", images[::-1])
    missing = fsspec.filesystem("dir", path=str(tmp_path), fs=right.fs)
    names = ["<s>3", "a&amp;b"]
    numbers = [int(digest_image(image), 16) for image in images]
    rows = [make_rows(numbers, [names[0]] * 99, [name] * 99) for name in names]
    sides = {"<b>&": make(rows[0], "<b>&"), "new": make(rows[1], "new")}
    sides["new"].values["params.yaml"] = {"<i>": "<u>"}
    monkeypatch.setattr(compare, "load", lambda rev: sides[rev])
    monkeypatch.chdir(tmp_path)
    for first, second in ((missing, right), (right, wrong), (wrong, missing)):
        for rev, fs in zip(sides, (first, second), strict=True):
            sides[rev] = sides[rev]._replace(fs=fs)
        monkeypatch.setattr(sys, "argv", ["compare", *sides, "--html", "page.html"])
        compare.main()
        shown = read_page(Path("page.html"))
        assert shown.tags["img"] == (compare.SHOWN if right in (first, second) else 0)
        assert ("No pictures: data/tensors.npz" in shown.text) != shown.tags["img"]
        assert all(str(x).startswith("data:image/png;base64,") for x in shown.sources)
        assert not shown.tags.keys() & {"s", "b", "u", "i", "script", "link"}
        for part in ("<b>& → new", "<i>", "<u>", "…/a/a/", *names):
            assert part in shown.text


def read_predictions(folder: Path) -> tuple[np.ndarray, ...]:
    """Return the actual and predicted classes and the probabilities of the actual."""
    with (folder / PREDICTIONS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    return columns["actual"], columns["predicted"], columns["p_actual"].astype(float)


@pytest.fixture(scope="module")
def changed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lower the learning rate in a clone, as experiment `slow` and in the workspace."""

    def change(folder: Path) -> None:
        copy(built, folder)
        slow = ("-n", "slow", "-S", "train.learning_rate=0.01")
        succeed(folder, "dvc", "exp", "run", "-q", *slow)
        text = succeed(folder, *COMMAND, "--html", "pages/x.html")
        (folder.parent / "text").write_text(text, "utf-8")

    return once(tmp_path_factory, "changed", change)


@pytest.fixture
def text(changed: Path) -> str:
    """Return the comparison of HEAD with the changed workspace."""
    return (changed.parent / "text").read_text("utf-8")


def test_the_figures_follow_from_the_predictions_of_both(
    built: Path, changed: Path, text: str
):
    assert re.search(r"^train.learning_rate +0.2 +0.01 +-0.19$", text, re.MULTILINE)
    actual, old, old_p = read_predictions(built)
    _, new, new_p = read_predictions(changed)
    said = " ".join(text.split())
    right, other = actual == old, actual == new
    only = f"only HEAD gets {(right & ~other).sum()} right, only the workspace "
    assert f"{only}{(other & ~right).sum()} (McNemar's exact test" in said
    points = 100 * (sk.accuracy_score(actual, new) - sk.accuracy_score(actual, old))
    assert f"In percentage points, it is {points:+.2g} (95 % interval" in said
    old_loss, new_loss = (
        sk.log_loss(actual == "7", np.where(actual == "7", p, 1 - p))
        for p in (old_p, new_p)
    )
    pattern = r"log loss is more than chance: (\S+) \(.* (\S+) to (\S+)\)"
    found = re.search(pattern, said)
    assert found
    mean, low, high = map(float, found.groups())
    assert mean == pytest.approx(new_loss - old_loss, rel=0.02)
    each = np.log(old_p) - np.log(new_p)
    expected = stats.norm.interval(0.95, each.mean(), stats.sem(each))
    assert (low, high) == pytest.approx(expected, abs=0.3 * stats.sem(each))
    assert low > 0
    indices = np.flatnonzero(old != new)
    assert f"Predictions that changed: {len(indices)}," in said
    first = indices[0]
    assert f".png {actual[first]} {old[first]} (" in said


def test_an_experiment_is_compared_by_its_name(changed: Path, text: str):
    """The workspace holds its files, too."""
    workspace = text.replace("the workspace", "slow")
    words = workspace.replace("workspace", "slow").split()
    assert succeed(changed, *COMMAND, "HEAD", "slow").split() == words
    said = " ".join(succeed(changed, *COMMAND, "slow", "workspace").split())
    nothing = "both get the same ones right. The log loss is the same."
    assert said == f"On the same 2,038 validation images, {nothing}"


def test_the_page_has_the_text_and_the_pictures(changed: Path, text: str):
    page = read_page(changed / "pages/x.html")
    assert text in page.text + "\n"
    assert page.tags["img"] == int(re.findall(r"that changed: (\d+)", text)[0])
    assert [path.name for path in (changed / "pages").iterdir()] == ["x.html"]


@pytest.mark.parametrize("name", ["x.json", ""])
def test_a_page_needs_the_name_of_one(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", ["compare", "--html", name])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert "the name of the page has to end in .html" in capsys.readouterr().err


def test_an_unknown_revision_ends_in_one_line(lent: Path, monkeypatch):
    done = run(lent, *COMMAND, "nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    monkeypatch.chdir(lent)
    lines = [refusal(compare.load, rev) for rev in ("nowhere", "", "HEAD:params.yaml")]
    assert done.stderr == f"compare: {lines[0]}\n"
    for line in lines:
        assert line.startswith("DVC cannot read revision ")
        assert line.endswith(": use one that git log or dvc exp show lists")


@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock", "metrics/model.json"])
def test_a_conflict_marker_is_one_line(clone: Path, monkeypatch, name):
    text = (clone / name).read_text("utf-8")
    first, _, rest = text.partition("\n")
    (clone / name).write_text(f"{first}\n<<<<<<< HEAD\n{rest}", "utf-8")
    monkeypatch.chdir(clone)
    said = refusal(compare.load, "workspace")
    reasons = ["params.yaml, line ", "correct the file", "out of date (report)"]
    assert any(reason in said for reason in reasons)
    assert "git log" not in said


def test_a_workspace_that_is_out_of_date_is_not_compared(clone: Path):
    edit(clone / "params.yaml", "learning_rate: 0.2", "learning_rate: 0.1")
    line = (
        "compare: the workspace is out of date (train, report): run dvc repro first\n"
    )
    done = run(clone, *COMMAND)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
    commit(clone, "not reproduced")
    done = run(clone, *COMMAND, "HEAD~1", "HEAD")
    assert done.stderr == (
        "compare: HEAD has train.learning_rate: 0.1, but its results are of 0.2: check "
        "it out, run dvc repro and commit\n"
    )
    edit(clone / "params.yaml", "learning_rate: 0.1", "learning_rate: 0.2")
    (clone / PREDICTIONS).unlink()
    done = run(clone, *COMMAND, "HEAD~1")
    assert done.stderr == line.replace("train, report", "report")


def test_what_the_cache_lacks_comes_from_the_remote_or_is_named(
    changed: Path, tmp_path: Path
):
    folder, remote = copy(changed, tmp_path / "a clone"), tmp_path / "remote"
    commit(folder)
    add = ("dvc", "remote", "add", "-q", "--local", "-d", "store", str(remote))
    succeed(folder, *add)
    succeed(folder, "dvc", "push", "-q", "--all-commits")
    (folder / ".dvc/cache").rename(tmp_path / "cache")
    text = succeed(folder, *COMMAND, "HEAD~1", "HEAD", "--html", "x.html")
    pictures = read_page(folder / "x.html").tags["img"]
    assert f"Predictions that changed: {pictures}," in text
    remote.rename(tmp_path / "elsewhere")
    done = run(folder, *COMMAND, "HEAD~1", "HEAD")
    assert done.stderr == (
        "compare: metrics/predictions.csv of HEAD~1 is neither in DVC's cache nor in a "
        "remote: run dvc fetch --all-commits, or check it out and run dvc repro\n"
    )
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize("base", ["HEAD~1", "0" * 40], ids=["built", "unknown"])
def test_the_workflow_shows_the_comparison_with_the_base(
    built: Path, changed: Path, tmp_path: Path, base: str
):
    """Its steps one after the other in a fresh clone; `make` is `dvc repro` here.

    For speed, the cache has all but the predictions, so that only reports are built.
    """
    folder = copy(changed, tmp_path / "a clone")
    commit(folder)
    succeed(folder, "git", "clean", "-qdfx", "-e", ".dvc/cache")
    for clone in (built, changed):
        digest = outputs(clone / "dvc.lock")[PREDICTIONS]
        (folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    script(folder / "bin/make", "#!/bin/sh\ndvc repro -q\n")
    script(folder / ".venv/bin/python", f'#!/bin/sh\n{sys.executable} "$@"\n')
    head = succeed(folder, "git", "rev-parse", "HEAD").strip()
    if base.startswith("HEAD"):
        base = succeed(folder, "git", "rev-parse", base).strip()
    summary = tmp_path / "summary.md"
    variables = {"GITHUB_SHA": head, "GITHUB_STEP_SUMMARY": str(summary), "BASE": base}
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    for step in workflow["jobs"]["pipeline"]["steps"]:
        if "run" in step:
            commands = f'PATH="$PWD/bin:$PATH"\n{step["run"]}'
            done = run(folder, "bash", "-e", "-c", commands, **variables)
            assert not done.returncode or step.get("continue-on-error"), done.stderr
    text = summary.read_text("utf-8")
    assert text.startswith("```text\n")
    assert text.endswith("\n```\n")
    known = base == succeed(folder, "git", "rev-parse", "HEAD~1").strip()
    assert ("On the same 2,038 validation images, the difference in" in text) == known
    assert ("compare: DVC cannot read revision base" in text) != known
    assert (folder / "compare.html").exists() == known


def test_any_terminal_can_show_a_comparison(changed: Path):
    """DVC replaces stdout when it is imported."""
    succeed(changed, "git", "branch", "--force", "größe")
    for revs in (["größe", "slow"], ["größer", "slow"]):
        done = run(changed, *COMMAND, *revs, PYTHONIOENCODING="ascii")
        assert (done.stdout + done.stderr).isascii()
        assert "gr\\xf6\\xdfe" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_make_passes_the_revision_on(tmp_path: Path):
    fakes = Fakes(tmp_path)
    last = [fakes.commands("compare", *rev)[-1] for rev in ([], ["REV=HEAD~1"])]
    assert last == [
        ".venv/bin/python -m tools.compare",
        ".venv/bin/python -m tools.compare HEAD~1",
    ]
