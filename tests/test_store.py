"""Files: written in full or not at all, damaged ones set aside; and errors that users can mend."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from conftest import ROOT

from harness.store import (
    PORTABLE,
    UserError,
    check_writable,
    digest,
    load_or_set_aside,
    load_tensors,
    read_record,
    run_script,
    save_atomically,
    save_tensors,
)


def test_runs_that_start_together_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check_writable, [tmp_path / "runs"] * 200))
    assert not list((tmp_path / "runs").iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/runs cannot be written to: Not a directory"):
        check_writable(tmp_path / "file" / "runs")


def test_a_file_takes_its_place_when_it_is_full(tmp_path, monkeypatch):
    path, seen = tmp_path / "new folder" / "cell.json", []

    def replace(temporary, target, move=os.replace):
        seen.append((temporary.parent, temporary.read_bytes(), target, target.exists()))
        move(temporary, target)

    monkeypatch.setattr(os, "replace", replace)
    save_atomically(path, b"content")
    assert seen == [(path.parent, b"content", path, False)] and path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "cell.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"cell\.json cannot be written: No space left on device"):
        save_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_tensors_and_plain_values_come_back(tmp_path):
    path = tmp_path / "model.pt"
    save_tensors(path, {"state": {"w": torch.arange(3)}, "seconds": 1.5, "config": {"lr": None}})
    found = load_or_set_aside(path, load_tensors)
    assert found["state"]["w"].tolist() == [0, 1, 2] and found["seconds"] == 1.5 and found["config"] == {"lr": None}


@pytest.mark.parametrize("change", ["flipped", "cut"])
def test_tensors_with_a_single_wrong_bit_are_damaged(tmp_path, capsys, change):
    path = tmp_path / "model.pt"
    save_tensors(path, {"state": {"w": torch.rand(100_000)}})
    content = bytearray(path.read_bytes())
    content[200_000] ^= 1
    path.write_bytes(content if change == "flipped" else content[:57_000])
    assert load_or_set_aside(path, load_tensors) is None
    assert f"{path} is damaged (BadZipFile): set aside" in capsys.readouterr().out


def test_a_digest_covers_names_and_every_bit():
    w = torch.rand(5, 3)
    other = w.clone()
    other[4, 2] = torch.nextafter(w[4, 2], torch.tensor(2.0))
    assert len({digest(state) for state in ({"w": w}, {"v": w}, {"w": other}, {"w": w, "v": w})}) == 4
    assert digest({"v": other, "w": w.t().contiguous().t()}) == digest({"w": w, "v": other})


def test_pickled_objects_are_not_run(tmp_path, capsys):
    torch.save({"state": UserError("an object")}, tmp_path / "model.pt")
    assert load_or_set_aside(tmp_path / "model.pt", load_tensors) is None
    assert "is damaged (UnpicklingError): set aside as model.pt.damaged" in capsys.readouterr().out


@pytest.mark.parametrize("content", ['{"metrics": ', "{}", "[]", "3"])
def test_a_damaged_cell_is_set_aside(tmp_path, capsys, content):
    path = tmp_path / "seed0.json"
    path.write_text(content)
    assert load_or_set_aside(path, read_record) is None
    assert (tmp_path / "seed0.json.damaged").read_text() == content and not path.exists()
    assert f"{path} is damaged" in capsys.readouterr().out


def test_what_is_not_there_is_missing_without_a_word(tmp_path, capsys):
    assert load_or_set_aside(tmp_path / "seed0.json", read_record) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "error, words", [(PermissionError(13, "Permission denied"), "Permission denied"), (MemoryError(), "MemoryError")]
)
def test_what_cannot_be_read_for_another_reason_is_not_set_aside(tmp_path, error, words):
    def refuse(_):
        raise error

    path = tmp_path / "seed0.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=f"{path} cannot be read: .*{words}"):
        load_or_set_aside(path, refuse)
    assert path.exists()


@dataclass
class Settings:
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass
class EditedSettings(Settings):
    device: Literal["cpu", "cuda"] = "tpu"


@pytest.mark.parametrize(
    "error, status, line",
    [
        (UserError("--seeds is empty"), 2, "error: --seeds is empty\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; the same command continues with what is not finished\n"),
    ],
)
def test_a_script_ends_with_an_error_that_users_can_mend_in_one_line(monkeypatch, capsys, error, status, line):
    def fail(_):
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(fail, Settings, "what it does")
    assert (ended.value.code, capsys.readouterr().err) == (status, line)


def test_a_reader_that_has_gone_ends_a_script_without_a_word():
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, str(ROOT / "report.py"), "--help"], **given) as running:
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 141


def test_a_script_gets_its_settings_from_the_command_line_and_shows_other_errors_in_full(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py", "--device", "cuda"])
    run_script(print, Settings, "what it does")
    assert capsys.readouterr().out == "Settings(device='cuda')\n"
    with pytest.raises(ZeroDivisionError):
        run_script(lambda _: 1 / 0, Settings, "what it does")


def test_a_default_that_was_edited_to_what_does_not_exist_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(lambda _: pytest.fail("was called"), EditedSettings, "what it does")
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert line.startswith("error: ") and "`device`" in line and "`tpu`" in line


def test_portable_kernels_are_chosen_before_torch_is_imported(tmp_path):
    script = f"""import sys; sys.path.insert(0, {str(ROOT)!r})
import dataclasses, os, torch
from harness.store import PORTABLE, run_script

@dataclasses.dataclass
class Settings:
    kernels: str = "native"

def main(settings):
    print(torch.backends.cpu.get_cpu_capability(), PORTABLE.items() <= os.environ.items())

run_script(main, Settings, "")
"""
    (tmp_path / "script.py").write_text(script)
    run = [sys.executable, "script.py", "--kernels"]
    env = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    found = [
        subprocess.run([*run, kernels], cwd=tmp_path, env=env, capture_output=True, text=True).stdout.split()
        for kernels in ("native", "portable")
    ]
    assert found[0][1] == "False" and found[1] == ["AVX2", "True"]
