"""tools.predict classifies image files with a model; docs/model-file.md tells how."""

import csv
import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tarfile
import termios
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.evaluation.model_file import BLOCK_PIXELS, CLASS_OUTPUTS, PAIR_OUTPUTS, Linear
from stages.plumbing import npz
from stages.plumbing.tensors import Decoding
from tests.conftest import AUTHOR, ROOT, edit, environment, home, run, succeed

NO_MODEL = "is no model, or damaged: get it again, or name another model"
COMMAND = ("python", "-m", "tools.predict")
PAGE = (ROOT / "docs/model-file.md").read_text("utf-8")
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
"""Drop root's capabilities: file permissions then hold for root as well."""
IF_ROOT = UNPRIVILEGED if os.geteuid() == 0 else []


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


def write_model(
    file: Path, classes: list[str], outputs: str, size: tuple[int, int]
) -> Path:
    """Write a model with random weights, for gray images."""
    rng = np.random.default_rng(0)
    count = 1 if len(classes) == 2 else len(classes)
    weights = rng.normal(0, 1, (size[0] * size[1], count)).astype(np.float32)
    weights -= weights.mean(0)  # else nearly all random images are of one class
    bias = rng.normal(0, 0.1, count).astype(np.float32)
    decoding = Decoding(size=None, grayscale=False, background=None)
    model = Linear(weights, bias, classes, outputs, size, decoding)
    with file.open("wb") as opened:
        npz.write(model.to_arrays(), opened)
    return file


def write_images(folder: Path, count: int, size: tuple[int, int]) -> np.ndarray:
    """Write random gray images 0.png, 1.png, …; return their pixels (N, H, W)."""
    folder.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (count, *size), np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i}.png")
    return pixels


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


ODD_NAMES = [
    b'say "3", 7.png',
    b"two\nlines.png",
    b"a\r\tb.png",
    b"\xff\x1b.png",
    b",.png",
]


def test_csv_and_json_say_the_same_whatever_the_path_holds(built, digit, tmp_path):
    """Both are UTF-8 even where the terminal is not, and end their lines with LF."""
    paths = [os.path.join(os.fsencode(tmp_path), name) for name in ODD_NAMES]
    for path in paths:
        shutil.copy(digit, path)
    model = write_model(tmp_path / "m", ["class", "große", ","], "softmax", (28, 28))
    command = [*COMMAND, "--model", str(model)]

    def answer(option: str) -> bytes:
        return subprocess.check_output(
            [*command, option, *paths],
            cwd=built,
            env=environment(PYTHONIOENCODING="ascii"),
        )

    lines = answer("--json").decode().splitlines()
    objects = [json.loads(line) for line in lines]
    assert [os.fsencode(item["image"]) for item in objects] == paths
    table = answer("--csv").decode()
    assert not re.search(r"\r\n", table)
    header, *rows = csv.reader(io.StringIO(table, newline=""))
    scores = ["score_class", "score_große", "score_,"]
    assert header == ["image", "class", "score", *scores]
    for row, item in zip(rows, objects, strict=True):
        shown = item["image"].encode("utf-8", "backslashreplace").decode()
        assert row[:2] == [shown, item["class"]]
        assert [*map(float, row[2:])] == [item["score"], *item["scores"].values()]


def test_csv_and_json_exclude_each_other(built, digit):
    done = run(built, *COMMAND, "--csv", "--json", str(digit))
    assert done.returncode != 0
    assert "not allowed with" in done.stderr
    assert done.stdout == ""


def test_control_characters_in_a_path_leave_one_line_per_image(built, digit, tmp_path):
    folder = tmp_path / "3"
    folder.mkdir()
    for name in ODD_NAMES:
        shutil.copy(digit, os.path.join(os.fsencode(folder), name))
    bad = os.path.join(os.fsencode(tmp_path), b"b\na\x1bd\xff")
    done = run(built, *COMMAND, os.fsdecode(bad), str(folder))
    lines = done.stdout.splitlines()
    shown = [",", r"\udcff\x1b", r"a\r\tb", 'say "3", 7', r"two\nlines"]
    paths = [f"{folder}/{name}.png" for name in shown]
    assert sorted(line.split("\t")[0] for line in lines) == sorted(paths)
    assert all(line.split("\t")[1] == "3" for line in lines)
    assert done.stderr.startswith(rf"predict: {tmp_path}/b\na\x1bd\udcff: No such file")
    assert done.stderr.count("\n") == 1


def test_a_dash_is_standard_input_once(built, digit):
    done = subprocess.run(
        [*COMMAND, "-", str(digit), "-"],
        cwd=built,
        env=environment(),
        input=digit.read_bytes(),
        capture_output=True,
        check=False,
    )
    first, second = done.stdout.decode().splitlines()
    assert first.startswith("-\t3\t")
    assert second == first.replace("-", str(digit), 1)
    message = "predict: -: standard input is already read: give it once\n"
    assert (done.returncode, done.stderr.decode()) == (1, message)


def test_a_folder_is_walked_in_natural_order_and_says_what_it_leaves_out(
    built, digit, tmp_path
):
    folder = tmp_path / "folder"
    images = [
        "2.png",
        "10.png",
        "b/1",
        "b/c/9.PNG",
        "b/c/11.png",
        "b/link.png",
        "z.png",
    ]
    others = [".hidden.png", ".git/1.png", "__MACOSX/1.png", "b/notes.TXT", "a.csv"]
    for name in images + others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(digit, folder / name)
    (folder / "b/link.png").unlink()
    (folder / "b/link.png").symlink_to(digit)
    (folder / "b/all").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    (tmp_path / "link").symlink_to(folder)
    for given in (folder, tmp_path / "link"):  # which was asked for by its name
        done = run(built, *COMMAND, str(given))
        shown = [line.split("\t")[0] for line in done.stdout.splitlines()]
        assert shown == [f"{given}/{name}" for name in images]
        assert done.returncode == 0
        found = re.findall(
            r"^predict: left out, (.*): (\d+), for example (.*)$", done.stderr, re.M
        )
        assert {reason: int(count) for reason, count, _ in found} == {
            "hidden": 3,
            "not an image by its extension": 2,
            "a link to a folder": 1,
            "not a regular file": 1,
        }
        assert done.stderr.count("\n") == 4
        assert all(Path(example).exists() for _, _, example in found)


def test_a_named_file_is_read_whatever_its_name(built, digit, tmp_path):
    for name in (".hidden", "image.txt"):
        shutil.copy(digit, tmp_path / name)
        assert "\t3\t" in succeed(built, *COMMAND, str(tmp_path / name))


def test_a_folder_without_images_is_an_error_and_the_rest_is_answered(
    built, digit, tmp_path
):
    (tmp_path / "none/below").mkdir(parents=True)
    (tmp_path / "none/a.txt").touch()
    done = run(built, *COMMAND, str(tmp_path / "none"), str(digit))
    error, left_out = done.stderr.splitlines()
    assert error.startswith(f"predict: {tmp_path}/none: there is no image in this fold")
    assert left_out.startswith("predict: left out, not an image by its extension: 1, ")
    assert done.stdout.startswith(f"{digit}\t3\t")
    assert done.returncode == 1


def test_what_cannot_be_read_is_told_in_a_line_and_the_rest_is_answered(
    built, digit, tmp_path
):
    with Image.open(digit) as image:
        image.resize((56, 28)).save(tmp_path / "wide.png")
        image.convert("RGB").save(tmp_path / "colour.png")
        image.save(tmp_path / "torn.tif", compression="tiff_lzw")
    torn = (tmp_path / "torn.tif").read_bytes()[:-40] + b"\xff" * 40
    (tmp_path / "torn.tif").write_bytes(torn)  # of which Pillow also warns
    (tmp_path / "cut.png").write_bytes(digit.read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    shutil.copy(digit, tmp_path / "secret.png")
    (tmp_path / "cellar").mkdir()
    for name in ("secret.png", "cellar"):
        (tmp_path / name).chmod(0)
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(2**26 + 1)
    (tmp_path / "astray.png").symlink_to("nowhere")
    says = {
        "nowhere.png": "No such file or directory: correct the path",
        "cut.png": "not a readable PNG",
        "empty.png": "not a readable PNG",
        "wide.png": "its size is 28 x 56, but the model is for 28 x 28: set data.size",
        "colour.png": "set data.grayscale to true, or convert it (a setting counts "
        "once dvc repro has run)",
        "torn.tif": "not a readable PNG",
        "secret.png": "Permission denied: get permission to read it (chmod)",
        "cellar": "Permission denied: get permission to read it (chmod)",
        "huge.png": "has over 64 MiB: leave it out",
        "astray.png": "No such file",
    }
    given = [path for name in says for path in (str(tmp_path / name), str(digit))]
    try:
        done = run(built, *IF_ROOT, *COMMAND, *given)
    finally:
        (tmp_path / "cellar").chmod(0o700)
    lines = done.stderr.splitlines()
    for line, (name, text) in zip(lines, says.items(), strict=True):
        assert line.startswith(f"predict: {tmp_path}/{name}"), line
        assert text in line
    assert done.stdout.count(f"{digit}\t3\t") == done.stdout.count("\n") == len(says)
    assert done.returncode == 1


def test_errors_stand_between_the_answers_if_both_go_to_one_file(built, digit):
    command = [*COMMAND, str(digit), "nowhere", str(digit)]
    done = subprocess.run(
        command,
        cwd=built,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    starts = [line.split(":")[0].split("\t")[0] for line in done.stdout.splitlines()]
    assert starts == [str(digit), "predict", str(digit)]


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
    assert done.returncode == 1
    shutil.copy(clone / "models/model.npz", elsewhere := clone.parent / "model.npz")
    other = run(clone, *COMMAND, "--model", str(elsewhere), str(digit), str(large))
    advice = "resize it, or train the model with data.size: [28, 28]"
    assert other.stderr == f"predict: {large}: {size}: {advice}\n"
    assert other.stdout == done.stdout
    assert other.stdout.startswith(f"{digit}\t3\t")
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
    os.rename(clone / "models/model.npz", clone.parent / "other.npz")
    assert succeed(clone, *COMMAND, "--model", "../other.npz", str(digit)) == before


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


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, Path]:
    """A model and an image of so many pixels that eight images make a block."""
    folder = tmp_path_factory.mktemp("large")
    size = (512, 1024)
    assert BLOCK_PIXELS // (size[0] * size[1]) == 8
    model = write_model(folder / "model.npz", ["a", "b"], "sigmoid", size)
    write_images(folder / "images", 1, size)
    return model, folder / "images/0.png"


def test_the_first_answers_come_before_the_last_image_is_there(built, large, tmp_path):
    model, image = large
    os.mkfifo(late := tmp_path / "late")
    with subprocess.Popen(
        [*COMMAND, "--model", str(model), *[str(image)] * 8, str(late)],
        cwd=built,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        if not select.select([process.stdout], [], [], 60)[0]:
            process.kill()
        for _ in range(8):
            assert process.stdout.readline().startswith(f"{image}\t")
        late.write_bytes(image.read_bytes())
        assert process.stdout.readline().startswith(f"{late}\t")
        assert process.wait() == 0


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


def run_slow(
    built: Path, large: tuple[Path, Path], *, answers_to_terminal: bool
) -> str:
    """Return what a terminal shows of a run over a second, with an error half-way."""
    model, image = large
    terminal, end = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with subprocess.Popen(
        [*COMMAND, "--model", str(model), "-", "nowhere.png", *[str(image)] * 10],
        cwd=built,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=end if answers_to_terminal else subprocess.DEVNULL,
        stderr=end,
    ) as process:
        assert process.stdin
        time.sleep(1.5)
        process.stdin.write(image.read_bytes())
        process.stdin.close()
        assert process.wait() == 1
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    os.close(end)
    return shown


def test_progress_is_shown_on_a_terminal_and_kept_apart_from_errors(built, large):
    shown = run_slow(built, large, answers_to_terminal=False)
    assert "classify: " in shown
    assert re.search(r"\r *\rpredict: nowhere\.png: No such [\w ,:]*\r\n", shown)


def test_progress_does_not_mix_with_answers_on_the_same_terminal(built, large):
    first, error, *rest = run_slow(built, large, answers_to_terminal=True).splitlines()
    assert re.fullmatch(r"-\t[ab]\t[\d.]+", first)
    assert error.startswith("predict: nowhere.png: No such file")
    assert rest == [first.replace("-", str(large[1]), 1)] * 10


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
    os.remove(clone / "models/model.npz")
    missing = "predict: models/model.npz is missing: run dvc repro\n"
    assert run(clone, *COMMAND, str(digit)).stderr == missing


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.npz", "is missing: correct the path"),
        ("metrics", "Is a directory: leave it out"),
        ("README.md", "is no model, or damaged: get it again, or name another model"),
        (
            "models/baseline.npz",
            "is no model, or damaged: get it again, or name another model",
        ),
    ],
)
def test_a_model_from_elsewhere_that_is_none_ends_it_at_once(built, digit, name, says):
    done = run(built, *COMMAND, "--csv", "--model", name, str(digit), "nowhere.png")
    pattern = rf"predict: {name}:? {re.escape(says)}\n".replace(r"\*", ".*")
    assert re.fullmatch(pattern, done.stderr), done.stderr
    assert (done.returncode, done.stdout) == (1, "")


def test_neither_jax_nor_tqdm_is_imported(built):
    program = "import sys, tools.predict; print({'jax', 'tqdm'} & {*sys.modules})"
    assert succeed(built, "python", "-c", program) == "set()\n"


# What docs/model-file.md says.


def code(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_lists_the_arrays_with_their_types(built):
    table = re.findall(r"^\| `(\w+)` \| (\w+) \| \((.*?)\) \|", PAGE, re.MULTILINE)
    symbols = {"H·W": 784, "C": 1, "K": 2, "2": 2}
    with np.load(built / "models/model.npz") as file:
        assert [name for name, _, _ in table] == file.files
        for name, dtype, shape in table:
            assert np.issubdtype(file[name].dtype, dtype)
            sizes = [part.strip() for part in shape.split(",") if part.strip()]
            assert file[name].shape == tuple(symbols[size] for size in sizes)
        fields = json.loads(str(file["decoding"]))
    for name in fields:
        assert f"`{name}`" in PAGE
    rows = re.findall(r"^\| `(\w+)` \| (1|K) \|", PAGE, re.MULTILINE)
    assert [name for name, count in rows if count == "1"] == [*PAIR_OUTPUTS]
    assert [name for name, count in rows if count == "K"] == [*CLASS_OUTPUTS]


def run_eight_lines(folder: Path, pixels: np.ndarray) -> list[tuple[str, list[float]]]:
    """Run the lines of the page where linear.npz lies; return names, probabilities."""
    (block,) = code("python")
    lines = [line for line in block.splitlines() if line]
    assert lines[0] == "import numpy as np"
    assert len(lines[1:]) == 8
    np.save(folder / "pixels.npy", pixels)
    program = (
        f"import numpy; pixels = numpy.load('pixels.npy')\n{block}\n"
        "import json; print(json.dumps([names.tolist(), probabilities.tolist()]))"
    )
    names, probabilities = json.loads(succeed(folder, "python", "-I", "-c", program))
    return [*zip(names, probabilities, strict=True)]


@pytest.mark.parametrize(
    ("classes", "outputs"), [(["x", "y"], "sigmoid"), (["x", "y", "z"], "softmax")]
)
def test_the_eight_lines_answer_as_the_command_does(built, tmp_path, classes, outputs):
    model = write_model(tmp_path / "linear.npz", classes, outputs, (5, 4))
    pixels = write_images(tmp_path / "images", 40, (5, 4))
    shown = succeed(
        built, *COMMAND, "--json", "--model", str(model), str(tmp_path / "images")
    )
    answers = [json.loads(line) for line in shown.splitlines()]
    assert {answer["class"] for answer in answers} == {*classes}
    lines = run_eight_lines(tmp_path, pixels)
    for answer, (name, probabilities) in zip(answers, lines, strict=True):
        assert answer["class"] == name
        assert [*answer["scores"]] == classes
        assert probabilities == pytest.approx([*answer["scores"].values()], rel=1e-9)


def test_the_model_is_got_from_a_repository_as_the_page_says(clone, digit, tmp_path):
    """From another folder; then either way of using it gives the same."""
    (folder := tmp_path / "elsewhere").mkdir()
    with Image.open(digit) as image:
        pixels = np.asarray(image)[np.newaxis]
    identity = {}
    for role in ("AUTHOR", "COMMITTER"):
        identity[f"GIT_{role}_NAME"] = AUTHOR[1].removeprefix("user.name=")
        identity[f"GIT_{role}_EMAIL"] = AUTHOR[3].removeprefix("user.email=")
    get, get_artifact = code("sh")
    for script in (get, get_artifact):
        script = script.replace("REPO", f"'{clone}'")
        done = run(folder, "sh", "-e", "-c", script, **home(clone), **identity)
        assert done.returncode == 0, done.stderr
    expected = (clone / "models/model.npz").read_bytes()
    got = ["first.npz", "last.npz", "latest.npz", "linear.npz"]
    assert sorted(file.name for file in folder.iterdir()) == got
    assert all((folder / name).read_bytes() == expected for name in got)
    model = str(folder / "linear.npz")
    answer = json.loads(
        succeed(clone, *COMMAND, "--json", "--model", model, str(digit))
    )
    ((name, probabilities),) = run_eight_lines(folder, pixels)
    assert name == answer["class"] == "3"
    assert probabilities == pytest.approx([*answer["scores"].values()], rel=1e-9)
    succeed(clone, "git", "tag", "--delete", "linear@v1.0.0")
    command = ["dvc", "artifacts", "get", "-o", "none.npz", str(clone), "linear"]
    assert "Unable to find artifact 'linear'" in run(folder, *command).stderr
    assert "Unable to find artifact 'linear'" in PAGE
