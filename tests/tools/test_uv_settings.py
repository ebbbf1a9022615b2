"""Of uv's files, what says where packages come from is kept, and nothing else."""

import tomllib
from pathlib import Path

import pytest

from tools import uv_settings

PROJECT = """
index-url = "https://project.example/simple"
extra-index-url = ["https://project.example/more"]
required-version = "==0.1"
exclude-newer = "2020-01-01"
[pip]
target = "/elsewhere"
no-deps = true
system-certs = true
"""
USER = """
index-url = "https://user.example/simple"
extra-index-url = ["https://user.example/größe\\tmore"]
constraint-dependencies = ["jax<0.1"]
[[index]]
name = "company"
url = "https://company.example/simple"
default = true
"""


def kept(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    uv_settings.main()
    return tomllib.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("UV_CONFIG_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
    (tmp_path / "config/uv").mkdir(parents=True)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path


def test_the_index_and_certificates_of_all_files_are_kept(home, capsys):
    (home / "uv.toml").write_text(PROJECT, "utf-8")
    (home / "config/uv/uv.toml").write_text(USER, "utf-8")
    company = {"name": "company", "default": True}
    assert kept(capsys) == {
        "index-url": "https://project.example/simple",
        "extra-index-url": [
            "https://project.example/more",
            "https://user.example/größe\tmore",
        ],
        "system-certs": True,
        "index": [company | {"url": "https://company.example/simple"}],
    }


def test_a_file_that_the_caller_names_counts_alone(home, capsys, monkeypatch):
    (home / "uv.toml").write_text(PROJECT, "utf-8")
    (home / "mine").write_text('no-index = true\nfind-links = ["/wheels"]', "utf-8")
    monkeypatch.setenv("UV_CONFIG_FILE", str(home / "mine"))
    assert kept(capsys) == {"no-index": True, "find-links": ["/wheels"]}


def test_without_a_file_there_are_no_settings(capsys):
    assert kept(capsys) == {}


def test_a_damaged_file_is_one_line(home):
    (home / "uv.toml").write_text("index-url =", "utf-8")
    with pytest.raises(SystemExit, match="Invalid value"):
        uv_settings.main()
