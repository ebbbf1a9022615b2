"""tools.compare says what changed, and whether it is more than chance."""

import csv
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import fsspec  # type: ignore[import-untyped]
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from sklearn import metrics as sk

from stages.evaluation import outputs
from stages.evaluation.model_file import Linear
from stages.plumbing.tensors import Decoding
from tests.conftest import ROOT, commit, copy, edit, run, succeed
from tests.test_make import Fakes, commands
from tools.compare import difference, page, revision, text
from tools.compare.difference import Comparison
from tools.compare.revision import Side

COMMAND = ("python", "-m", "tools.compare")


def make_side(
    images: np.ndarray,
    names: list[str],
    rev: str = "HEAD",
    classes: tuple[str, ...] = ("a", "b", "c"),
    seed: int = 0,
) -> Side:
    """Return a side of images, their classes, and a model of random weights."""
    height, width = images.shape[1:]
    outputs = 1 if len(classes) == 2 else len(classes)
    weights = np.random.default_rng(seed).normal(size=(height * width, outputs))
    model = Linear(
        weights.astype(np.float32),
        np.zeros(outputs, np.float32),
        list(classes),
        "sigmoid" if outputs == 1 else "softmax",
        (height, width),
        Decoding(None, grayscale=False, background=None),
    )
    labels = np.array([classes.index(name) for name in names], np.uint8)
    columns = revision.classify(model, images, labels)
    digests = revision.digest(images)
    return Side(rev, {}, model, images, labels, *columns, digests)


def random_images(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, 4, 5), np.uint8)


def random_names(count: int, classes: str = "abc", seed: int = 0) -> list[str]:
    return np.random.default_rng(seed).choice(list(classes), count).tolist()


def test_the_interval_is_that_of_scipy():
    random = np.random.default_rng(1)
    accuracy = random.choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.85, 0.05])
    differences = np.stack([accuracy, random.exponential(size=300)])
    ours = difference.bootstrap(differences)
    expected = stats.bootstrap(
        (differences,),
        np.mean,
        axis=-1,
        n_resamples=difference.RESAMPLES,
        method="percentile",
        batch=100,
        rng=np.random.default_rng(difference.SEED),
    ).confidence_interval
    np.testing.assert_allclose([row.low for row in ours], expected.low, rtol=1e-12)
    np.testing.assert_allclose([row.high for row in ours], expected.high, rtol=1e-12)
    np.testing.assert_allclose([row.mean for row in ours], differences.mean(1))
    assert difference.bootstrap(differences) == ours


def test_the_interval_of_many_images_is_that_of_the_normal_distribution():
    differences = np.random.default_rng(2).gamma(2, size=(1, 5000))
    ((_, low, high),) = difference.bootstrap(differences)
    error = stats.sem(differences[0])
    expected = stats.norm.interval(0.95, differences.mean(), error)
    assert (low, high) == pytest.approx(expected, abs=0.1 * error)


@pytest.mark.parametrize("seed", range(3))
def test_p_equals_scipy_and_statsmodels(seed):
    from statsmodels.stats.contingency_tables import (  # type: ignore[import-untyped]
        mcnemar,  # here, since it takes three seconds
    )

    images, names = random_images(60), random_names(60)
    first = make_side(images, names, seed=seed)
    second = make_side(images, names, "other", seed=seed + 10)
    chance = difference.compare(first, second).chance
    assert chance
    right, other = (s.predicted == s.labels for s in (first, second))
    table = [[(a & b).sum() for b in (other, ~other)] for a in (right, ~right)]
    assert (chance.only_first, chance.only_second) == (table[0][1], table[1][0])
    n = chance.only_first + chance.only_second
    assert chance.p == pytest.approx(stats.binomtest(chance.only_first, n).pvalue)
    assert chance.p == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert chance.accuracy.mean == pytest.approx(other.mean() - right.mean())


item = st.tuples(st.integers(0, 3), st.sampled_from("abc"))  # which image, which class


@given(st.lists(item, min_size=1), st.lists(item, min_size=1))
def test_images_are_matched_by_pixels_and_class(items, others):
    """In any order, missing or repeated on a side, or with another class there."""
    pictures = random_images(4)
    first, second = (
        make_side(pictures[[i for i, _ in side]], [name for _, name in side])
        for side in (items, others)
    )
    pairs, relabelled = difference.match(first, second)
    assert [items[i] for i, _ in pairs] == [others[j] for _, j in pairs]
    for column in pairs.T:
        assert len(set(column.tolist())) == len(pairs)
    counts, other_counts = Counter(items), Counter(others)
    both = counts & other_counts
    assert len(pairs) == both.total()
    left = Counter(i for i, _ in (counts - both).elements())
    other_left = Counter(i for i, _ in (other_counts - both).elements())
    assert relabelled == sum(min(left[i], other_left[i]) for i in range(4))


def test_what_is_not_compared_is_said():
    images = random_images(40)
    names = random_names(40)
    relabelled = ["b" if name == "a" else "a" for name in names[30:33]]
    first = make_side(images[:33], names[:33])
    second = make_side(images[2:], [*names[2:30], *relabelled, *names[33:]], "new")
    comparison = difference.compare(first, second)
    words = " ".join(text.format_text(comparison).split())
    assert "On the 28 validation images that both have," in words
    rest = "2 that only HEAD has, 7 that only new has, 3 of other classes there."
    assert f"Images that are not compared: {rest}" in words
    assert "The classes differ" not in words
    assert comparison.pairs[:, 0].tolist() == list(range(2, 30))


def test_images_of_other_shape_are_others():
    flat = np.zeros((1, 2, 8), np.uint8)
    assert revision.digest(flat) != revision.digest(flat.reshape(1, 4, 4))


def test_blocks_change_no_answer(monkeypatch):
    images, names = random_images(10), random_names(10)
    whole = make_side(images, names)
    monkeypatch.setattr(revision, "BLOCK", 3)
    side = make_side(images, names)
    logits = linear.logits(images, side.model.weights, side.model.bias)
    probabilities = linear.probabilities(logits, "softmax")
    np.testing.assert_array_equal(side.predicted, probabilities.argmax(1))
    np.testing.assert_allclose(side.of_predicted, probabilities.max(1))
    of_labels = [
        row[label] for row, label in zip(probabilities, side.labels, strict=True)
    ]
    np.testing.assert_allclose(side.of_actual, of_labels)
    np.testing.assert_array_equal(side.predicted, whole.predicted)


def test_the_order_of_the_classes_changes_nothing():
    """The same model, its outputs in another order, has the same answers by name."""
    images, names = random_images(50), random_names(50)
    first = make_side(images, names)
    weights = first.model.weights[:, [2, 0, 1]]
    model = first.model._replace(weights=weights, classes=["c", "a", "b"])
    labels = np.array([model.classes.index(name) for name in names], np.uint8)
    columns = revision.classify(model, images, labels)
    second = first._replace(rev="b", model=model, labels=labels)
    second = second._replace(
        predicted=columns[0], of_predicted=columns[1], of_actual=columns[2]
    )
    comparison = difference.compare(first, second)
    assert len(comparison.changed) == 0
    said = text.format_chance(comparison)
    assert said.endswith("both get the same ones right. The log loss is the same.")
    assert "HEAD: a, b, c; b: c, a, b" in text.format_text(comparison)
    assert page.draw_weights(comparison) == []


def test_the_most_confident_change_comes_first():
    images, names = random_images(80), random_names(80)
    first, second = (make_side(images, names, seed=seed) for seed in (0, 1))
    changed = difference.compare(first, second).changed
    assert (changed[:, 0] == changed[:, 1]).all()
    expected = np.flatnonzero(first.predicted != second.predicted)
    assert sorted(changed[:, 0]) == expected.tolist()
    sums = (first.of_predicted + second.of_predicted)[changed[:, 0]]
    assert (np.diff(sums) <= 0).all()


def test_other_class_names_leave_nothing_to_compare():
    images, names = random_images(30), random_names(30)
    first = make_side(images, names)
    others = [{"a": "A", "b": "B", "c": "C"}[name] for name in names]
    second = make_side(images, others, "new", ("A", "B", "C"))
    comparison = difference.compare(first, second)
    assert comparison.chance is None
    words = " ".join(text.format_text(comparison).split())
    assert "Nothing can be compared: HEAD and new have no validation image" in words
    assert "Images that are not compared: 30 of other classes there." in words
    assert "Nothing can be compared" in page.render(comparison)


def test_few_images_decide_nothing_about_the_log_loss():
    images, names = random_images(3), random_names(3)
    sides = [make_side(images, names, seed=seed) for seed in (0, 1)]
    said = text.format_chance(difference.compare(*sides))
    assert said.endswith("They are too few for an interval of the log loss.")


@pytest.mark.parametrize(
    ("wins", "losses", "verdict"), [(6, 0, "is more than"), (6, 1, "may be")]
)
def test_the_verdict_follows_the_test(wins, losses, verdict):
    """Two-sided binomial p of 0 of 6 is 2/64, of 1 of 7 16/128."""
    images = random_images(40)
    side = make_side(images, random_names(40))
    wrong = (side.labels + 1) % 3
    first, second = side.labels.copy(), side.labels.copy()
    first[:wins] = wrong[:wins]
    second[wins : wins + losses] = wrong[wins : wins + losses]
    comparison = difference.compare(
        side._replace(predicted=first), side._replace(rev="new", predicted=second)
    )
    said = text.format_chance(comparison)
    assert f"the difference in accuracy {verdict} chance" in said
    assert f"only HEAD gets {losses} right, only new {wins}" in said


class Page(HTMLParser):
    """Collects what a page loads, its tags and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.sources: list[str | None] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def changed_page(classes: tuple[str, ...]) -> tuple[Comparison, Page]:
    images, names = random_images(300), [classes[i % len(classes)] for i in range(300)]
    first = make_side(images, names, "<b>&", classes)
    second = make_side(images, names, "new", classes, seed=1)
    first = first._replace(recorded={"params.yaml": {"<i>": "<u>", "same": 1}})
    second = second._replace(recorded={"params.yaml": {"<i>": 2, "same": 1}})
    comparison = difference.compare(first, second)
    return comparison, Page(page.render(comparison))


@pytest.mark.parametrize("classes", [("<s>3", "a&amp;b"), ("<s>3", "a&amp;b", "c")])
def test_the_page_is_offline_and_escapes_every_name(classes):
    comparison, shown = changed_page(classes)
    assert len(comparison.changed) > page.SHOWN
    outputs = 1 if len(classes) == 2 else 3
    assert shown.tags["img"] == page.SHOWN + 3 * outputs
    assert all(str(uri).startswith("data:image/png;base64,") for uri in shown.sources)
    assert not shown.tags.keys() & {"s", "b", "u", "i", "script", "link"}
    for part in ("<b>& → new", "<i>", "<u>", "<s>3", "a&amp;b"):
        assert part in shown.text
    assert "url(" not in shown.text


def test_equal_weights_have_the_same_color_in_all_three_pictures():
    """Twice the weights: the difference is the first model again."""
    images, names = random_images(5), random_names(5)
    first = make_side(images, names)
    doubled = first.model._replace(weights=2 * first.model.weights)
    second = first._replace(rev="new", model=doubled)
    rows = page.draw_weights(difference.compare(first, second))
    assert len(rows) == 3
    for old, new, between in rows:
        assert old == between != new


def read_answers(folder: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return the actual and predicted classes and the probabilities of a 7."""
    with (folder / "metrics/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    actual, predicted = ([row[key] for row in rows] for key in ("actual", "predicted"))
    scores = [
        float(row["score"]) if row["predicted"] == "7" else 1 - float(row["score"])
        for row in rows
    ]
    return actual, predicted, np.array(scores)


@pytest.fixture(scope="module")
def changed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Halve the learning rate in a clone, as experiment `slow` and in the workspace."""
    folder = copy(built, tmp_path_factory.mktemp("changed") / "a clone")
    succeed(folder, "cp", "metrics/predictions.csv", "../before.csv")
    succeed(
        folder, "dvc", "exp", "run", "-q", "-n", "slow", "-S", "train.learning_rate=0.1"
    )
    return folder


def test_the_figures_follow_from_the_predictions_of_both(built: Path, changed: Path):
    text = succeed(changed, *COMMAND)
    assert re.search(r"^train.learning_rate +0.2 +0.1$", text, re.MULTILINE)
    actual, old, old_scores = read_answers(built)
    _, new, new_scores = read_answers(changed)
    said = " ".join(text.split())
    right, other = (np.array(actual) == names for names in (old, new))
    only = f"only HEAD gets {(right & ~other).sum()} right, only the workspace "
    assert f"{only}{(other & ~right).sum()} (McNemar's exact test" in said
    points = 100 * (sk.accuracy_score(actual, new) - sk.accuracy_score(actual, old))
    assert f"In percentage points, it is {points:+.2g} (95 % interval" in said
    losses = [sk.log_loss(actual, scores) for scores in (old_scores, new_scores)]
    found = re.search(
        r"log loss is more than chance: (\S+) \(.* (\S+) to (\S+)\)", said
    )
    assert found
    mean, low, high = map(float, found.groups())
    assert mean == pytest.approx(losses[1] - losses[0], rel=0.02)
    of_actual = [
        np.where(np.array(actual) == "7", scores, 1 - scores)
        for scores in (old_scores, new_scores)
    ]
    each = np.log(of_actual[0]) - np.log(of_actual[1])
    expected = stats.norm.interval(0.95, each.mean(), stats.sem(each))
    assert (low, high) == pytest.approx(expected, abs=0.3 * stats.sem(each))
    assert low > 0
    indices = [
        i for i, names in enumerate(zip(old, new, strict=True)) if len({*names}) > 1
    ]
    assert f"Predictions that changed: {len(indices)}," in said
    assert f"{indices[0]} {actual[indices[0]]} {old[indices[0]]} (" in said


def test_an_experiment_is_compared_by_its_name(changed: Path):
    """The workspace holds its files, too."""
    workspace = succeed(changed, *COMMAND).replace("the workspace", "slow")
    words = workspace.replace("workspace", "slow").split()
    assert succeed(changed, *COMMAND, "HEAD", "slow").split() == words
    said = " ".join(succeed(changed, *COMMAND, "slow", "workspace").split())
    nothing = "both get the same ones right. The log loss is the same."
    assert said == f"On the same 2,038 validation images, {nothing}"


def test_a_sentence_says_it_of_two_experiments(changed: Path):
    program = "from tools.compare.text import sentence; print(sentence('HEAD', 'slow'))"
    said = succeed(changed, "python", "-c", program)
    assert said.count("\n") == 1
    whole = " ".join(succeed(changed, *COMMAND, "HEAD", "slow").split())
    assert said.strip() in whole


def test_the_page_has_what_the_text_has(changed: Path):
    text = succeed(changed, *COMMAND, "--html", "pages/x.html")
    page = Page((changed / "pages/x.html").read_text("utf-8"))
    words = " ".join(page.text.split())
    said = " ".join(text.split())
    assert said[said.index("On the") : said.index(" Predictions")] in words
    changes = int(re.findall(r"that changed: (\d+)", said)[0])
    assert page.tags["img"] == changes + 3
    assert [path.name for path in (changed / "pages").iterdir()] == ["x.html"]
    refused = run(changed, *COMMAND, "--html", "pages/x.json")
    assert refused.returncode == 2
    assert refused.stderr.endswith("the name of the page has to end in .html\n")


@pytest.mark.parametrize("rev", ["nowhere", "", "HEAD:params.yaml"])
def test_an_unknown_revision_ends_in_one_line(lent: Path, rev):
    done = run(lent, *COMMAND, rev)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"compare: DVC cannot read revision {rev}")


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
    (clone / "models/model.npz").unlink()
    assert run(clone, *COMMAND, "HEAD~1").stderr == line


def test_a_file_that_the_cache_lacks_comes_from_the_remote_or_is_named(clone: Path):
    succeed(clone, "dvc", "remote", "add", "-q", "-d", "store", str(clone.parent / "r"))
    commit(clone)
    succeed(clone, "dvc", "push", "-q")
    (clone / ".dvc/cache").rename(clone.parent / "cache")
    said = succeed(clone, *COMMAND, "HEAD", "HEAD")
    assert said.startswith(
        "On the same 2,038 validation images, both get the same ones"
    )
    done = run(clone, *COMMAND, "HEAD~1", "HEAD")
    assert done.stderr == (
        "compare: models/model.npz of HEAD~1 is neither in DVC's cache nor in a "
        "remote: run dvc fetch --all-commits, or check it out and run dvc repro\n"
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_a_revision_without_the_file_or_with_another_format_is_named(clone: Path):
    model = clone / "models/model.npz"
    with np.load(model) as file:
        arrays = {name: file[name] for name in file.files if name != "decoding"}
    model.unlink()
    np.savez(model, **arrays)
    succeed(clone, "dvc", "commit", "-q", "-f", "train")
    commit(clone)
    done = run(clone, *COMMAND, "HEAD", "HEAD~1")
    assert done.stderr.startswith(
        "compare: models/model.npz of HEAD is damaged or of another format ("
    )
    assert "decoding" in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    succeed(clone, "git", "rm", "-q", "dvc.lock", "dvc.yaml")
    commit(clone)
    done = run(clone, *COMMAND, "HEAD", "HEAD~2")
    line = "compare: dvc.lock of HEAD does not exist: compare a later revision\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_what_is_not_on_this_machine_is_copied(tmp_path: Path):
    """As from object storage: here, from memory."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/folder/file.npz", b"content")
    file = revision.find_file(memory, "/folder/file.npz", str(tmp_path))
    assert Path(file) == tmp_path / "file.npz"
    assert Path(file).read_bytes() == b"content"


@pytest.mark.parametrize("base", ["HEAD~1", "0" * 40], ids=["built", "unknown"])
def test_the_workflow_shows_the_comparison_with_the_base(
    changed: Path, tmp_path: Path, base: str
):
    """Its steps one after the other in a fresh clone; `make` is `dvc repro` here."""
    folder = tmp_path / "a clone"
    succeed(tmp_path, "cp", "-r", str(changed), str(folder))
    commit(folder)
    kept = [] if base == "HEAD~1" else ["-e", ".dvc/cache"]  # quicker
    succeed(folder, "git", "clean", "-qdfx", *kept)
    programs = {
        "bin/make": "dvc repro -q",
        ".venv/bin/python": f'{sys.executable} "$@"',
    }
    for name, line in programs.items():
        program = folder / name
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{line}\n", "utf-8")
        program.chmod(0o755)
    head = succeed(folder, "git", "rev-parse", "HEAD").strip()
    if base.startswith("HEAD"):
        base = succeed(folder, "git", "rev-parse", base).strip()
    summary = tmp_path / "summary.md"
    variables = {"GITHUB_SHA": head, "GITHUB_STEP_SUMMARY": str(summary), "BASE": base}
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    for step in workflow["jobs"]["pipeline"]["steps"]:
        if "run" in step:
            script = f'PATH="$PWD/bin:$PATH"\n{step["run"]}'
            done = run(folder, "bash", "-e", "-c", script, **variables)
            assert not done.returncode or step.get("continue-on-error"), done.stderr
    text = summary.read_text("utf-8")
    assert text.startswith("```text\n")
    assert text.endswith("\n```\n")
    built = base == succeed(folder, "git", "rev-parse", "HEAD~1").strip()
    assert ("On the same 2,038 validation images, the difference in" in text) == built
    assert ("compare: DVC cannot read revision base" in text) != built
    assert (folder / "compare.html").exists() == built


def test_any_terminal_can_show_a_comparison(changed: Path):
    """DVC replaces stdout when it is imported."""
    succeed(changed, "git", "branch", "größe")
    for revs in (["größe", "slow"], ["größer", "slow"]):
        done = run(changed, *COMMAND, *revs, PYTHONIOENCODING="ascii")
        assert (done.stdout + done.stderr).isascii()
        assert "gr\\xf6\\xdfe" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_make_passes_the_revision_on(tmp_path: Path):
    fakes = Fakes(tmp_path)
    last = [commands(fakes.make("compare", *rev))[-1] for rev in ([], ["REV=HEAD~1"])]
    assert last == [
        ".venv/bin/python -m tools.compare",
        ".venv/bin/python -m tools.compare HEAD~1",
    ]
