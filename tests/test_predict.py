"""tools.predict classifies image files with the trained model."""

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import edit, environment, run, succeed

COMMAND = ("python", "-m", "tools.predict")


def number(name: str) -> int:
    return int(Path(name).stem)


@pytest.fixture(scope="module")
def digit(built, tmp_path_factory):
    """The first validation image: among the 3s, the file with the least number."""
    file = tmp_path_factory.mktemp("digit") / "a digit.png"
    with tarfile.open(built / "data/mnist_sample.tgz") as archive:
        names = [name for name in archive.getnames() if "/valid/3/" in name]
        first = min((name for name in names if name.endswith(".png")), key=number)
        content = archive.extractfile(first)
        assert content
        file.write_bytes(content.read())
    return file


def test_a_line_per_image_has_the_score_of_the_report(built, digit):
    rows = (built / "metrics/predictions.csv").read_text("utf-8").splitlines()
    _, _, _, name, score = rows[1].split(",")
    line = f"{digit}\t{name}\t{float(score):.6f}\n"
    assert succeed(built, *COMMAND, str(digit), str(digit)) == line * 2


def test_json_has_a_score_for_each_class(built, digit):
    answer = json.loads(succeed(built, *COMMAND, "--json", str(digit)))
    assert answer["image"] == str(digit)
    assert answer["class"] == max(answer["scores"], key=answer["scores"].get) == "3"
    assert answer["score"] == answer["scores"]["3"]
    assert sum(answer["scores"].values()) == pytest.approx(1)


def test_a_dash_is_standard_input(built, digit):
    image = digit.read_bytes()
    command = [*COMMAND, "-"]
    shown = subprocess.check_output(command, cwd=built, env=environment(), input=image)
    assert shown.startswith(b"-\t3\t")


def test_the_advice_for_an_image_of_another_size_works(clone, digit):
    large = digit.with_name("large.png")
    with Image.open(digit) as image:
        image.resize((56, 56)).save(large)
    done = run(clone, *COMMAND, str(digit), str(large))
    size = "its size is 56 x 56, but the model is for 28 x 28"
    advice = (
        "set data.size in params.yaml to [28, 28], run dvc repro, and it is resized"
    )
    assert done.stderr == f"predict: {large}: {size}: {advice}\n"
    assert (done.returncode, done.stdout) == (1, "")
    edit(clone / "params.yaml", "size: null", "size: [28, 28]")
    succeed(clone, "dvc", "repro", "train")
    assert succeed(clone, *COMMAND, str(large)).startswith(f"{large}\t3\t")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('classes: ["3", "7"]', 'classes: ["7", "3"]'),
        ('classes: ["3", "7"]', 'classes: ["3", "7", "9"]'),
        ("loss: log_loss", "loss: squared_error"),
        ("size: null", "size: [14, 14]"),
        ("\ntrain:", "\ntraining:"),
    ],
)
def test_an_edit_of_params_yaml_changes_no_answer_before_dvc_repro(
    clone, digit, old, new
):
    """The model says by itself what its outputs mean."""
    before = succeed(clone, *COMMAND, "--json", str(digit))
    edit(clone / "params.yaml", old, new)
    assert succeed(clone, *COMMAND, "--json", str(digit)) == before


def test_a_model_file_alone_is_enough(clone, digit):
    before = succeed(clone, *COMMAND, str(digit))
    os.remove(clone / "params.yaml")
    for folder in ("data", "metrics"):
        shutil.rmtree(clone / folder)
    os.remove(clone / "models/baseline.npz")
    assert succeed(clone, *COMMAND, str(digit)) == before


def test_a_name_that_the_terminal_cannot_show_is_escaped(built, digit):
    file = digit.with_name("große 3.png")
    shutil.copy(digit, file)
    shown = succeed(built, *COMMAND, str(file), PYTHONIOENCODING="ascii")
    assert shown.startswith(f"{file.parent}/gro\\xdfe 3.png\t3\t")


@pytest.mark.parametrize("count", [1, 5000])
def test_a_reader_that_stops_early_ends_it_without_a_word(built, digit, count):
    """As `| head` does; 5000 lines are more than a pipe holds."""
    process = subprocess.Popen(
        [*COMMAND, *[str(digit)] * count],
        cwd=built,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    if count > 1:
        assert process.stdout.readline().startswith(str(digit).encode())
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


@pytest.mark.parametrize(
    ("path", "reason"),
    [("nowhere.png", "No such file"), ("params.yaml", "not a readable PNG")],
)
def test_a_file_that_is_no_image_is_refused_in_one_line(built, path, reason):
    done = run(built, *COMMAND, path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert path in done.stderr
    assert reason in done.stderr


def test_without_models_it_says_how_to_get_them(clone, digit):
    os.remove(clone / "models/linear.npz")
    missing = "predict: models/linear.npz is missing: run dvc repro\n"
    assert run(clone, *COMMAND, str(digit)).stderr == missing
