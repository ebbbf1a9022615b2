"""The patches of docs/another-model.md: another model is one file, and all works."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, edit, succeed

DOC = (ROOT / "docs/another-model.md").read_text("utf-8")
SIMPLE_NET, CONVOLUTION = re.findall(r"```diff\n(.*?)```", DOC, re.DOTALL)


def changed_lines(patch: str) -> int:
    return len(re.findall(r"^[+-](?!-- a|\+\+ b)", patch, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch", "lines"),
    [(SIMPLE_NET, 20), (CONVOLUTION, 45)],
    ids=["simple_net", "convolution"],
)
def test_another_model_is_one_file(clone, patch, lines):
    assert re.findall(r"^--- a/(.*)$", patch, re.MULTILINE) == [
        "params.yaml",
        "stages/model.py",
    ]
    assert changed_lines(patch) <= lines
    (clone.parent / "patch").write_text(patch, "utf-8")
    succeed(clone, "git", "apply", "../patch")
    if patch == CONVOLUTION:
        edit(clone / "params.yaml", "epochs: 4", "epochs: 2")  # which are enough here
    succeed(clone, "dvc", "repro")

    page = (clone / "metrics/report.html").read_text("utf-8")
    has_unit = "weights of a hidden unit" in page
    assert has_unit == (patch == SIMPLE_NET)
    assert ("This model has no weights per pixel" in page) == (patch == CONVOLUTION)
    nudged = json.loads((clone / "metrics/sensitivity.json").read_text("utf-8"))
    assert bool(nudged) == has_unit

    metrics = json.loads((clone / "metrics/model.json").read_text("utf-8"))
    assert metrics["accuracy"] >= 0.99
    compared = succeed(clone, "python", "-m", "tools.compare")
    assert "accuracy" in compared

    with np.load(clone / "data/tensors.npz") as tensors:
        images = tensors["valid_images"][[0, -1]]
    for name, image in zip("ab", images, strict=True):
        Image.fromarray(image[..., 0]).save(clone.parent / f"{name}.png")
    answers = succeed(clone, "python", "-m", "tools.predict", "../a.png", "../b.png")
    with (clone / "metrics/predictions.csv").open(encoding="utf-8") as file:
        first, *_, last = csv.DictReader(file)
    rows = [line.split("\t") for line in answers.splitlines()]
    assert [row[1] for row in rows] == [first["predicted"], last["predicted"]]
    assert float(rows[0][2]) == pytest.approx(float(first["p_predicted"]), abs=1e-5)

    if patch == CONVOLUTION:  # XLA sums on several threads
        before = (clone / "models/model.npz").read_bytes()
        succeed(clone, "python", "-m", "stages", "train")
        assert (clone / "models/model.npz").read_bytes() == before
