"""tools.predict classifies image files with a model; docs/model-file.md tells how."""

import csv
import io
import json
import math
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.evaluation.model_file import BLOCK_PIXELS, TrainedModel
from stages.evaluation.outputs import CLASS_OUTPUTS, PAIR_OUTPUTS
from stages.plumbing import artifacts
from stages.plumbing.tensors import Decoding
from tests.conftest import IF_ROOT, ROOT, edit, environment, home, run, start, succeed

COMMAND = ("python", "-m", "tools.predict")
PAGE = (ROOT / "docs/model-file.md").read_text("utf-8")
UNREADABLE = "correct the path or its permissions, or leave it out"
ODD_NAMES = ['say "3", 7', "two\nlines", "a\r\tb", "\udcff\x1b", ","]
"""As Python has them: the byte 255, which is not UTF-8, is a lone surrogate."""


@pytest.fixture(scope="module")
def digit(built, tmp_path_factory):
    """The first validation image, a 3."""
    file = tmp_path_factory.mktemp("digit") / "a digit.png"
    with np.load(built / "data/tensors.npz") as tensors:
        Image.fromarray(tensors["valid_images"][0, ..., 0]).save(file)
    return file


def write_model(
    file: Path, classes: list[str], outputs: str, size: tuple[int, ...]
) -> Path:
    """Write a model with random weights, for gray images unless size has channels."""
    rng = np.random.default_rng(0)
    count = 1 if len(classes) == 2 else len(classes)
    weights = rng.normal(0, 1, (math.prod(size), count)).astype(np.float32)
    weights -= weights.mean(0)  # else nearly all random images are of one class
    params = {"weights": weights, "bias": np.full(count, 0.1, np.float32)}
    mean = rng.uniform(0.4, 0.6, (*size, 1)[:3]).astype(np.float32)
    decoding = Decoding(None, "rgb" if size[2:] else None, background=None)
    model = TrainedModel(params, mean, classes, outputs, decoding)
    artifacts.publish({str(file): model.to_arrays()})
    return file


def write_images(
    folder: Path, count: int, size: tuple[int, ...], seed: int = 1
) -> np.ndarray:
    """Write random images 0.png, 1.png, …; return their pixels (N, *size)."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *size), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    return pixels


def ask(folder: Path, *arguments: object, **variables: str) -> str:
    return succeed(folder, *COMMAND, *map(str, arguments), **variables)


def test_a_line_per_image_has_the_score_of_the_report(built, digit):
    with (built / "metrics/predictions.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    line = f"{digit}\t{row['predicted']}\t{float(row['p_predicted']):.6f}\n"
    assert ask(built, digit, digit) == line * 2


def test_csv_and_json_say_the_same_whatever_the_path_holds(built, digit, tmp_path):
    """Both are UTF-8 even where the terminal is not, and end their lines with LF."""
    paths = [str(tmp_path / f"{name}.png") for name in ODD_NAMES]
    for path in paths:
        shutil.copy(digit, path)
    classes = ["class", "große", ","]
    model = write_model(tmp_path / "m.npz", classes, "softmax", (28, 28))

    def answer(option: str) -> str:
        command = [*COMMAND, "--model", str(model), option, *paths]
        variables = environment(PYTHONIOENCODING="ascii")
        return subprocess.check_output(command, cwd=built, env=variables).decode()

    objects = [json.loads(line) for line in answer("--json").splitlines()]
    assert [item["image"] for item in objects] == paths
    table = answer("--csv")
    assert "\r\n" not in table
    header, *rows = csv.reader(io.StringIO(table, newline=""))
    assert header == ["image", "class", "score", *(f"score_{name}" for name in classes)]
    for row, item in zip(rows, objects, strict=True):
        shown = item["image"].encode("utf-8", "backslashreplace").decode()
        assert row[:2] == [shown, item["class"]]
        assert [*map(float, row[2:])] == [item["score"], *item["scores"].values()]
        assert [*item["scores"]] == classes
        assert item["score"] == item["scores"][item["class"]]
        assert item["score"] == max(item["scores"].values())
        assert sum(item["scores"].values()) == pytest.approx(1)


def test_what_a_terminal_cannot_show_is_escaped_on_one_line(built, digit, tmp_path):
    (folder := tmp_path / "3").mkdir()
    for name in [*ODD_NAMES, "große 3"]:
        shutil.copy(digit, folder / f"{name}.png")
    given = [f"{tmp_path}/b\na\x1bd\udcff", str(folder)]
    done = run(built, *COMMAND, *given, PYTHONIOENCODING="ascii")
    names = [",", r"\udcff\x1b", r"a\r\tb", 'say "3", 7', r"two\nlines", r"gro\xdfe 3"]
    lines = [line.split("\t")[:2] for line in done.stdout.splitlines()]
    assert sorted(lines) == sorted([f"{folder}/{name}.png", "3"] for name in names)
    error = f"No such file or directory: {UNREADABLE}"
    assert done.stderr == rf"predict: {tmp_path}/b\na\x1bd\udcff: {error}" + "\n"


def test_a_dash_is_standard_input_once(built, digit):
    command = [*COMMAND, "-", str(digit), "-"]
    done = run(built, "sh", "-c", '"$@" < "$0"', str(digit), *command)
    first, second = done.stdout.splitlines()
    assert first.startswith("-\t3\t")
    assert second == first.replace("-", str(digit), 1)
    message = "predict: -: standard input is already read: give it once\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_a_folder_is_walked_in_natural_order_and_says_what_it_leaves_out(
    built, digit, tmp_path
):
    images = ["2.png", "10.png", "b/1", "b/c/9.PNG", "b/c/11.png", "b/link.png", "z"]
    others = [".hidden.png", ".git/1.png", "__MACOSX/1.png", "b/notes.TXT", "a.csv"]
    folder = tmp_path / "folder"
    for name in images + others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(digit, folder / name)
    (folder / "b/link.png").unlink()
    (folder / "b/link.png").symlink_to(digit)
    (folder / "b/all").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (tmp_path / "link").symlink_to(folder)
    # A file that is named itself is read, whatever its name is.
    assert ask(built, *(folder / name for name in others)).count("\t3\t") == 5
    for given in (folder, tmp_path / "link"):
        done = run(built, *COMMAND, str(given))
        shown = [line.split("\t")[0] for line in done.stdout.splitlines()]
        assert shown == [f"{given}/{name}" for name in images]
        assert done.returncode == 0
        found = re.findall(
            r"^predict: left out, (.*): ([^:]+), for example (.*)$", done.stderr, re.M
        )
        assert {reason: count for reason, count, _ in found} == {
            "hidden": "3",
            "not an image by its extension": "1 .csv, 1 .txt",
            "a link to a folder": "1",
            "not a regular file": "1",
        }
        assert done.stderr.count("\n") == 4
        assert all(Path(example).exists() for _, _, example in found)


def test_unreadable_images_are_reported_on_one_line_and_the_rest_is_answered(
    built, digit, tmp_path
):
    """In order, even if answers and errors go to one file."""
    with Image.open(digit) as image:
        image.resize((56, 28)).save(tmp_path / "wide.png")
        image.convert("RGB").save(tmp_path / "colour.png")
        image.save(tmp_path / "torn.tif", compression="tiff_lzw")
    torn = (tmp_path / "torn.tif").read_bytes()[:-40] + b"\xff" * 40
    (tmp_path / "torn.tif").write_bytes(torn)  # of which Pillow also warns
    (tmp_path / "cut.png").write_bytes(digit.read_bytes()[:200])
    (tmp_path / "none/below").mkdir(parents=True)
    (tmp_path / "none/a.txt").touch()
    shutil.copy(digit, tmp_path / "secret.png")
    (tmp_path / "cellar").mkdir()
    for name in ("secret.png", "cellar"):
        (tmp_path / name).chmod(0)
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**26 + 1)
    (tmp_path / "astray.png").symlink_to("nowhere")
    again = "(settings take effect once the model is trained again)"
    size = "its size is 28 x 56, but the model is for 28 x 28: set data.size to"
    says = {
        "nowhere.png": f"No such file or directory: {UNREADABLE}",
        "none": "there is no image in this folder: name one with PNG",
        "cut.png": "not a readable PNG",
        "wide.png": f"{size} [28, 28], or resize it {again}",
        "colour.png": f"set data.color to rgb or gray, or convert it {again}",
        "torn.tif": "not a readable PNG",
        "secret.png": f"Permission denied: {UNREADABLE}",
        "cellar": f"Permission denied: {UNREADABLE}",
        "huge.png": "larger than 64 MiB: leave it out",
        "astray.png": f"No such file or directory: {UNREADABLE}",
    }
    given = [path for name in says for path in (str(tmp_path / name), str(digit))]
    try:
        done = run(built, "sh", "-c", '"$@" 2>&1', "sh", *IF_ROOT, *COMMAND, *given)
    finally:
        (tmp_path / "cellar").chmod(0o700)
    *lines, left_out = done.stdout.splitlines()
    for line, (name, text) in zip(lines[::2], says.items(), strict=True):
        assert line.startswith(f"predict: {tmp_path}/{name}"), line
        assert text in line
    answers = [line.rpartition("\t")[0] for line in lines[1::2]]
    assert answers == [f"{digit}\t3"] * len(says)
    assert left_out.startswith(
        "predict: left out, not an image by its extension: 1 .txt, "
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_the_advice_for_an_image_of_another_size_works(clone, digit):
    large = digit.with_name("large.png")
    with Image.open(digit) as image:
        image.resize((56, 56)).save(large)
    assert "set data.size to [28, 28]" in run(clone, *COMMAND, str(large)).stderr
    edit(clone / "params.yaml", "size: null", "size: [28, 28]")
    succeed(clone, "dvc", "repro", "train")
    assert ask(clone, large).startswith(f"{large}\t3\t")


def test_a_model_file_alone_is_enough(clone, digit):
    """It says by itself what its outputs mean, whatever params.yaml says by now."""
    before = ask(clone, "--json", digit)
    (clone / "params.yaml").write_text("data: [")
    for folder in ("data", "metrics"):
        shutil.rmtree(clone / folder)
    os.remove(clone / "models/baseline.npz")
    assert ask(clone, "--json", digit) == before
    os.rename(clone / "models/model.npz", clone.parent / "other.npz")
    assert ask(clone, "--json", "--model", "../other.npz", digit) == before
    missing = "predict: models/model.npz is missing: run dvc repro\n"
    assert run(clone, *COMMAND, str(digit)).stderr == missing


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.npz", "is missing"),
        ("metrics", "Is a directory"),
        ("README.md", "is damaged (.*)"),
        ("models/baseline.npz", "is damaged (.*)"),
    ],
)
def test_an_unusable_model_from_elsewhere_ends_it_at_once(built, digit, name, says):
    """With no advice to delete it, which is for what `dvc repro` rebuilds."""
    done = run(built, *COMMAND, "--csv", "--model", name, str(digit), "nowhere.png")
    pattern = rf"predict: {name}:? {says}: give --model another file\n"
    assert re.fullmatch(pattern, done.stderr), done.stderr
    assert (done.returncode, done.stdout) == (1, "")


def test_a_folder_of_class_folders_ends_with_the_metrics(built, tmp_path):
    classes = ["große", "b", "unseen"]
    model = write_model(tmp_path / "m.npz", classes, "softmax", (4, 4))
    for label in ["b", "c", unicodedata.normalize("NFD", "große")]:
        write_images(tmp_path / "test" / label, 9, (4, 4), seed=len(label))
    shown = ask(built, "--model", model, tmp_path / "test").splitlines()
    done = run(built, *COMMAND, "--json", "--model", str(model), str(tmp_path / "test"))
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    known = [row for row in rows if "/c/" not in row["image"]]
    actual = np.array(["b" if "/b/" in row["image"] else "große" for row in known])
    right = np.array([row["class"] for row in known]) == actual
    recall = [right[actual == name].mean() for name in classes[:2]]
    p_actual = [row["scores"][name] for row, name in zip(known, actual, strict=True)]
    assert len(known) == 18
    assert 0 < sum(right) < 18
    assert shown[27:] == done.stderr.splitlines()
    other = f"not in a class folder: 9, for example {tmp_path}/test/c/0.png"
    first = rf"accuracy +{right.mean():.4f} \(95 % .* to .*\), on 18 images; {other}"
    assert re.fullmatch(first, shown[27])
    assert shown[28:] == [
        f"balanced accuracy  {np.mean(recall):.4f}",
        f"log loss           {-np.log(p_actual).mean():.4f}",
    ]
    # Most of these images are not in a class folder.
    given = tmp_path / "test/b", tmp_path / "test/c"
    assert "accuracy" not in ask(built, "--model", model, *given)


@pytest.mark.parametrize(("reader", "count"), [("true", 1), ("head -n 1", 5000)])
def test_a_reader_that_stops_early_ends_it_silently(built, digit, reader, count):
    """5000 lines are more than a pipe holds."""
    command = [*COMMAND, *[str(digit)] * count]
    done = run(built, "sh", "-c", f'"$@" | {reader}', "sh", *command)
    assert done.stderr == ""
    assert done.stdout.count("\n") == (count > 1)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[str, str]:
    """A model and an image of so many pixels that eight images make a block."""
    folder = tmp_path_factory.mktemp("large")
    size = (512, 1024)
    assert BLOCK_PIXELS // (size[0] * size[1]) == 8
    model = write_model(folder / "model.npz", ["a", "b"], "sigmoid", size)
    write_images(folder / "images", 1, size)
    return str(model), str(folder / "images/0.png")


def test_the_first_answers_come_before_the_last_image_is_there(built, large, tmp_path):
    model, image = large
    os.mkfifo(late := tmp_path / "late")
    process = start(built, *COMMAND, "--model", model, *[image] * 8, str(late))
    assert process.stdout
    if not select.select([process.stdout], [], [], 60)[0]:
        process.kill()
    for _ in range(8):
        assert process.stdout.readline().startswith(f"{image}\t")
    late.write_bytes(Path(image).read_bytes())
    assert process.communicate()[0].startswith(f"{late}\t")
    assert process.returncode == 0


PEAKS = """
import resource, subprocess, sys
*command, few, many = sys.argv[1:]
for folder in (few, many):
    subprocess.run([*command, folder], stdout=subprocess.DEVNULL, check=True)
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""A process of its own, since Linux counts the memory of a parent to its child."""


def test_more_images_take_no_more_memory(built, tmp_path):
    """3,584 more images are 43 MiB of pixels, and 343 MiB in float64."""
    size = (112, 112)
    model = write_model(tmp_path / "m.npz", ["a", "b"], "sigmoid", size)
    write_images(tmp_path / "one", 1, size)
    folders = []
    for count in (512, 4096):
        (folder := tmp_path / str(count)).mkdir()
        folders.append(str(folder))
        for i in range(count):
            os.link(tmp_path / "one/0.png", folder / f"{i}.png")
    command = [*COMMAND, "--model", str(model), *folders]
    few, many = map(int, succeed(built, "python", "-c", PEAKS, *command).split())
    unit = 1 if sys.platform == "darwin" else 1024
    assert (many - few) * unit < 20 * 2**20  # 8 were seen: malloc keeps some


@pytest.mark.parametrize("answers_to_terminal", [False, True])
def test_progress_is_shown_apart_from_errors_and_answers(
    built, large, answers_to_terminal
):
    """In a run over a second, with an error half-way."""
    model, image = large
    terminal, end = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    command = [*COMMAND, "--model", model, "-", "nowhere.png", *[image] * 10]
    done = subprocess.run(
        ["sh", "-c", '(sleep 1.5; cat "$0") | "$@"', image, *command],
        cwd=built,
        env=environment(),
        stdout=end if answers_to_terminal else subprocess.DEVNULL,
        stderr=end,
        check=False,
    )
    assert done.returncode == 1
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    os.close(end)
    if answers_to_terminal:
        first, error, *rest = shown.splitlines()
        assert re.fullmatch(r"-\t[ab]\t[\d.]+", first)
        assert error.startswith("predict: nowhere.png: No such file")
        assert rest == [first.replace("-", image, 1)] * 10
    else:
        assert "classify: " in shown
        assert re.search(r"\r *\rpredict: nowhere\.png: No such [\w ,:]*\r\n", shown)


def test_neither_jax_nor_tqdm_is_imported_unless_needed(built):
    program = "import sys, tools.predict; print({'jax', 'tqdm'} & {*sys.modules})"
    assert succeed(built, "python", "-c", program) == "set()\n"


def test_a_model_that_needs_jax_runs_on_the_cpu_as_in_the_stages(clone, digit):
    before = json.loads(ask(clone, "--json", digit))
    result = 'images.reshape(len(images), -1) @ params["weights"]'
    on_jax = 'jax.numpy.matmul(images.reshape(len(images), -1), params["weights"])'
    edit(clone / "stages/model.py", result, on_jax)
    edit(clone / "stages/model.py", "import math\n", "import math\nimport jax\n")
    after = json.loads(ask(clone, "--json", digit, JAX_PLATFORMS="nowhere"))
    assert after["score"] == pytest.approx(before["score"], abs=1e-5)


# What docs/model-file.md says.


def code(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_lists_the_arrays_with_their_types(built):
    table = re.findall(r"^\| `([\w/]+)` \| (\w+) \| \((.*?)\) \|", PAGE, re.MULTILINE)
    symbols = {"H·W·C": 784, "H": 28, "W": 28, "C": 1, "O": 1, "K": 2}
    with np.load(built / "models/model.npz") as file:
        assert {name for name, _, _ in table} == {*file.files}
        for name, dtype, shape in table:
            assert np.issubdtype(file[name].dtype, dtype)
            sizes = [part.strip() for part in shape.split(",") if part.strip()]
            assert file[name].shape == tuple(symbols[size] for size in sizes)
        fields = json.loads(str(file["decoding"]))
    assert all(f"`{name}`" in PAGE for name in fields)
    rows = re.findall(r"^\| `(\w+)` \| (1|K) \|", PAGE, re.MULTILINE)
    assert [name for name, count in rows if count == "1"] == [*PAIR_OUTPUTS]
    assert [name for name, count in rows if count == "K"] == [*CLASS_OUTPUTS]


@pytest.mark.parametrize(
    ("classes", "outputs", "size"),
    [(["x", "y"], "sigmoid", (5, 4)), (["x", "y", "z"], "softmax", (5, 4, 3))],
    ids=["gray", "colour"],
)
def test_the_eight_lines_answer_as_the_command_does(
    built, tmp_path, classes, outputs, size
):
    model = write_model(tmp_path / "model.npz", classes, outputs, size)
    pixels = write_images(tmp_path / "images", 40, size)
    np.save(tmp_path / "pixels.npy", pixels.reshape(40, 5, 4, -1))
    answers = ask(built, "--json", "--model", model, tmp_path / "images").splitlines()
    rows = [json.loads(answer) for answer in answers]
    assert {row["class"] for row in rows} == {*classes}
    (block,) = code("python")
    first, *lines = [line for line in block.splitlines() if line]
    assert (first, len(lines)) == ("import numpy as np", 8)
    program = (
        f"import numpy; pixels = numpy.load('pixels.npy')\n{block}\n"
        "import json; print(json.dumps([names.tolist(), probabilities.tolist()]))"
    )
    names, probabilities = json.loads(succeed(tmp_path, "python", "-I", "-c", program))
    assert names == [row["class"] for row in rows]
    expected = [[row["scores"][name] for name in classes] for row in rows]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-9)


def test_the_model_is_got_from_a_repository_as_the_page_says(clone, tmp_path):
    (folder := tmp_path / "elsewhere").mkdir()
    roles = [f"GIT_{role}" for role in ("AUTHOR", "COMMITTER")]
    identity = {f"{role}_{part}": "A" for role in roles for part in ("NAME", "EMAIL")}
    for script in code("sh"):
        script = script.replace("REPO", f"'{clone}'")
        succeed(folder, "sh", "-e", "-c", script, **home(clone), **identity)
    got = ["first.npz", "last.npz", "latest.npz", "model.npz"]
    assert sorted(file.name for file in folder.iterdir()) == got
    expected = (clone / "models/model.npz").read_bytes()
    assert all((folder / name).read_bytes() == expected for name in got)
    succeed(clone, "git", "tag", "--delete", "model@v1.0.0")
    command = ["dvc", "artifacts", "get", "-o", "none.npz", str(clone), "model"]
    message = "Unable to find artifact 'model'"
    assert message in run(folder, *command).stderr
    assert message in PAGE
