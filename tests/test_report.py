"""The program that writes the report, the figures and the blocks of pages."""

import runpy
import sys

import pytest
from conftest import ROOT, write_cell, write_random

import report
from harness.store import UserError


def test_files_are_the_same_after_a_rerun(tmp_path, capsys):
    for seed in (0, 1):
        write_cell(tmp_path, "relearn", "Digit", "random10", "CaMU", seed, A_r=[94.0, 93.0], A_f=[90.0, 90.5])
    settings = report.Settings(str(tmp_path))
    report.main(settings)
    assert f"2 cells: wrote {tmp_path}/report.md and 1 figures (PNG and SVG)" in capsys.readouterr().out
    names = ("report.md", "figures/relearning-random10.png", "figures/relearning-random10.svg")
    first = [(tmp_path / name).read_bytes() for name in names]
    assert b"(figures/relearning-random10.png)" in first[0]
    report.main(settings)
    assert [(tmp_path / name).read_bytes() for name in names] == first


def test_the_blocks_of_pages_are_written_too(tmp_path, capsys):
    write_random(tmp_path)
    paths = [tmp_path / name for name in ("README.md", "more.md")]
    for path in paths:
        path.write_text("before\n<!-- generated: main results -->\nold\n<!-- end of main results -->\nafter\n")
    report.main(report.Settings(str(tmp_path), pages=tuple(map(str, paths))))
    for path in paths:
        text = path.read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "| Digit | random10 |" in text
    assert capsys.readouterr().out.count("wrote the generated blocks of ") == 2
    with pytest.raises(UserError, match=r"none\.md"):
        report.main(report.Settings(str(tmp_path), pages=(str(tmp_path / "none.md"),)))


@pytest.mark.parametrize("content", [None, "{"])
def test_no_cell_or_a_damaged_one_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, content):
    if content is not None:
        write_random(tmp_path)
        next(tmp_path.rglob("seed0.json")).write_text(content)
    monkeypatch.setattr(sys, "argv", ["report.py", "--results-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "report.py"), run_name="__main__")
    found = capsys.readouterr().err
    assert stopped.value.code == 2 and found.startswith("error: ") and found.count("\n") == 1
    assert not (tmp_path / "report.md").exists()
