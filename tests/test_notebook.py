"""The notebook, opened without the repository beside it. The notebook itself is run by nbmake."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

FIRST = "".join(json.loads((ROOT / "CaMU.ipynb").read_text())["cells"][1]["source"])


def run_first_cell(folder, monkeypatch):
    monkeypatch.setenv("CAMU_REPOSITORY", f"file://{ROOT}")
    program = [sys.executable, "-c", FIRST + "\nimport camu; print(camu.__file__)"]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a clone is made of the git repository, and here is none")
def test_alone_it_clones_the_repository_once_and_finds_it_again(tmp_path, monkeypatch):
    clone = tmp_path / "CaMU"
    said = [f"Using the repository's clone in {clone}, with nothing installed.", str(clone / "camu.py")]
    assert run_first_cell(tmp_path, monkeypatch) == said
    monkeypatch.setattr(sys.modules[__name__], "ROOT", "nowhere")
    assert run_first_cell(tmp_path, monkeypatch) == said


def test_in_the_repository_it_uses_what_is_there(monkeypatch):
    assert run_first_cell(ROOT, monkeypatch) == ["The repository is here.", str(ROOT / "camu.py")]
