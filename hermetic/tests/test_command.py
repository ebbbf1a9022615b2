"""`hermetic run` guards a command whose code knows nothing of hermetic."""

import subprocess
import sys
from pathlib import Path

import pytest

from hermetic.tests.conftest import (
    edit,
    is_quiet,
    needs_landlock,
    run,
    succeed,
    under_dvc,
    violates,
    write,
)

STAGE = """
stages:
  s:
    cmd: c
    deps: [hermetic, src, in]
    params: [p]
    outs: [out/result]
"""
BODY = """
import os, sys, pathlib, yaml
NAME = sys.argv[1]
import neighbour
p = yaml.safe_load(open("params.yaml"))["p"]
text = pathlib.Path(NAME).read_text()
os.makedirs("out", exist_ok=True)
with open("out/result", "w") as file:
    file.write(f"{text} {p} {__name__}")
"""


@pytest.fixture
def project(make):
    """A pipeline whose code does not mention hermetic."""
    files = {
        "dvc.yaml": STAGE,
        "params.yaml": "{p: 1, q: 2}",
        "in": "text",
        "other": "secret",
        "src/__init__.py": "",
        "src/code.py": BODY,
        "src/neighbour.py": "",
        "out/README": "beside the out",
    }
    return make(files, place="hermetic")


def hermetic(
    folder: Path, *command: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as the stage `s`."""
    ours = ["python", "-m", "hermetic", "run", "--", *command]
    return run(folder, *ours, DVC_STAGE="s", **variables)


COMMANDS = {
    "a file": ["python", "src/code.py"],
    "a module": ["python", "-m", "src.code"],
    "another interpreter": [sys.executable, "-B", "src/code.py"],
    "a shell": ["sh", "-c", 'python src/code.py "$0"'],
}


@needs_landlock
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_python_commands_are_guarded_without_an_edit(project, command):
    if command[1] == "-m":
        edit(project / "src/code.py", "import neighbour", "import src.neighbour")
    done = hermetic(project, *command, "in")
    assert done.returncode == 0, done.stderr
    assert (project / "out/result").read_text() == "text 1 __main__"
    by_kernel = "checked by the kernel alone" in done.stderr
    assert by_kernel == (command[0] == "sh")
    refused = hermetic(project, *command, "other")
    assert violates(refused, 'reads other … add "- other" to its deps', stage="s")


@needs_landlock
def test_other_commands_are_held_by_the_kernel(project):
    done = hermetic(project, "sh", "-c", "cat in >out/result; cat other >>out/result")
    assert done.returncode == 1
    assert (project / "out/result").read_text() == "text"
    assert "cat: other: Permission denied" in done.stderr
    assert hermetic(project, "sh", "-c", "exit 3").returncode == 3


def test_a_param_that_is_not_declared_is_missing_in_the_file_that_the_stage_opens(
    project,
):
    edit(project / "src/code.py", '["p"]', '["q"]')
    done = hermetic(project, "python", "src/code.py", "in")
    assert violates(done, 'reads q … add "- q" to its params', stage="s")


PARAMS_SHOW = """
import dvc.api, json
json.dump(dvc.api.params_show(), open("out/result", "w"))
"""


def test_dvcs_own_api_gives_the_declared_params(project):
    (project / "src/code.py").write_text(PARAMS_SHOW, "utf-8")
    assert is_quiet(hermetic(project, "python", "src/code.py"))
    assert (project / "out/result").read_text() == '{"p": 1}'


def test_a_stage_gets_few_environment_variables_and_says_what_it_misses(project):
    write(project, {"src/code.py": "import os\nprint(os.environ.get('SEED'))"})
    command = ["python", "src/code.py"]
    done = hermetic(project, *command, SEED="1", OTHER="2")
    assert done.stdout == "None\n"
    told = "warning: stage s asked for SEED, which it does not get: add"
    assert done.stderr.startswith(told)
    assert done.returncode == 0
    settings = '[tool.hermetic.stages.s]\nenvironment = ["SE*"]\n'
    (project / "pyproject.toml").write_text(settings, "utf-8")
    assert hermetic(project, *command, SEED="1").stdout == "1\n"


MISTAKES = {
    '[tool.hermetic]\npreset = ["git"]': "has preset: it may have presets, allow",
    '[tool.hermetic]\npresets = "git"': "is no list: write ['git']",
    '[tool.hermetic]\npresets = ["gitt"]': "has the preset gitt: there are git,",
    "[tool.hermetic": "pyproject.toml",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_settings_is_named(project, text):
    (project / "pyproject.toml").write_text(text, "utf-8")
    done = hermetic(project, "python", "src/code.py", "in")
    assert MISTAKES[text] in done.stderr.splitlines()[-1]
    assert done.returncode == 1


def test_without_dvc_the_stage_has_to_be_named(project):
    command = ["python", "-m", "hermetic", "run"]
    done = run(project, *command, "--", "python", "src/code.py", "in")
    assert done.stderr.startswith("hermetic run does not know the stage")
    done = run(project, *command, "--stage", "s", "--", "python", "src/code.py", "in")
    assert is_quiet(done)


@needs_landlock
def test_a_program_that_writes_gits_or_dvcs_own_files_fails_a_stage(project):
    """Its out is in the root, so that the kernel lets it write there."""
    edit(project / "dvc.yaml", "out/result", "result")
    under_dvc(project)
    for file in (".git/config", "dvc.lock"):
        done = hermetic(project, "sh", "-c", f"echo '#' >>{file}; echo 1 >result")
        assert violates(done, f"writes {file},", stage="s")


@needs_landlock
def test_what_another_process_changes_beside_dvc_yaml_is_a_warning(project):
    edit(project / "dvc.yaml", "out/result", "result")
    under_dvc(project)
    body = "import sys\nprint('ready', flush=True)\nsys.stdin.readline()"
    (project / "src/code.py").write_text(body, "utf-8")
    command = ["-m", "hermetic", "run", "--stage", "s", "--", "python", "src/code.py"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=project,
        text=True,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        (project / "other").write_text("edited")
        succeed(project, "git", "commit", "--all", "--quiet", "--message", "edit")
        _, errors = process.communicate("\n")
    told = "warning: other changed while stage s ran, by another process, or C code"
    assert errors.startswith(told)
    assert process.returncode == 0


ATOMIC = """
import os, tempfile
for name in ("out/result.tmp", tempfile.mkstemp(dir="out")[1]):
    with open(name, "w") as file:
        file.write("done")
    os.replace(name, "out/result")
open("out/result.old", "w"){end}
"""


@needs_landlock
def test_an_out_may_be_written_under_another_name_first(project):
    (project / "out/README").unlink()  # tempfile opens for reading, too
    (project / "src/code.py").write_text(
        ATOMIC.format(end="; os.remove('out/result.old')")
    )
    assert is_quiet(hermetic(project, "python", "src/code.py"))
    assert (project / "out/result").read_text() == "done"
    (project / "src/code.py").write_text(ATOMIC.format(end=""))
    told = "writes out/result.old,"
    assert violates(hermetic(project, "python", "src/code.py"), told, stage="s")


@needs_landlock
def test_the_out_of_another_stage_in_the_same_folder_is_not_to_be_written(project):
    text = (project / "dvc.yaml").read_text()
    write(project, {"dvc.yaml": text + "  t: {cmd: c, outs: [out/README]}\n"})
    done = hermetic(project, "sh", "-c", "echo 1 >out/README; echo 1 >out/result")
    assert violates(done, "writes out/README,", stage="s")
