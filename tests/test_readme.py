"""What the README shows is what its reader gets."""

import json
import re
from pathlib import Path

from tests.conftest import ROOT, STAGES, edit, run

README = (ROOT / "README.md").read_text("utf-8")


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_the_commands_print_what_the_readme_says_one_after_the_other(clone: Path):
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for session in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = session.partition("\n")
            done = run(clone, "sh", "-c", command)
            printed = iter(lines(done.stdout + done.stderr))
            for line in lines(shown):
                assert line == "…" or line in printed, (
                    f"$ {command}\n{done.stdout}{done.stderr}\nlacks, in its place:\n{line}"
                )


DEEDS = {
    "changed the archive": ("download", "params.yaml", "sha256: ac75", "sha256: 0000"),
    "mistyped its place": ("download", "params.yaml", "data/mnist_sample.tgz", "data/mine.tgz"),
    "wrote classes without quotes": ("preprocess", "params.yaml", '["3", "7"]', "[3, 7]"),
    "chose a class": ("preprocess", "params.yaml", '["3", "7"]', '["3", "4"]'),
    "mistyped a parameter's name": ("train", "params.yaml", "momentum", "momentun"),
    "or its value": ("train", "params.yaml", "loss: log_loss", "loss: hinge"),
    "wanted too large a batch": ("train", "params.yaml", "batch_size: 64", "batch_size: 20000"),
    "or too large steps": ("train", "params.yaml", "loss: log_loss", "loss: squared_error"),
    "have other packages": ("baseline", "requirements.txt", "\nnumpy==", "\nnumpy==0."),
}


def test_what_can_go_wrong_is_told_as_the_readme_tells_it(clone: Path):
    table = dict(re.findall(r"^\| (.*?) \| `(.*)` \|$", README.partition("### What can go wrong")[2], re.MULTILINE))
    rows = {you: says for you, says in table.items() if says.split(":")[0] in STAGES}
    assert len(rows) == len(DEEDS)
    for (you, says), (deed, (stage, file, old, new)) in zip(rows.items(), DEEDS.items(), strict=True):
        assert you.startswith(deed)
        before = (clone / file).read_text("utf-8")
        edit(clone / file, old, new)
        done = run(clone, "python", "-m", f"stages.{stage}")
        (clone / file).write_text(before, "utf-8")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert re.fullmatch(re.escape(says).replace("…", ".*"), done.stderr.strip()), done.stderr


def test_the_steps_without_make_are_those_of_make():
    version = re.search(r"UV_VERSION := (\S+)", (ROOT / "Makefile").read_text("utf-8"))
    assert version
    assert f"pip install uv=={version[1]}\n" in README


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_notebooks_figures_are_those_of_the_committed_metrics():
    baseline = json.loads((ROOT / "metrics/baseline.json").read_text("utf-8"))
    for figure in (*baseline["recall"].values(), baseline["balanced_accuracy"], baseline["precision"]["3"]):
        assert f"| {figure:.6f} |" in README
