"""Files: written in full or not at all, damaged ones set aside; and errors that users can mend."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from harness import store
from harness.store import (
    UserError,
    check_writable,
    digest,
    load_or_set_aside,
    locked,
    read_record,
    read_tensors,
    save_atomically,
    save_tensors,
)


def test_runs_that_start_together_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(check_writable, [tmp_path / "runs"] * 200))
    assert not list((tmp_path / "runs").iterdir())


def test_who_waits_for_another_run_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "PATIENCE_S", 0.05)
    with ThreadPoolExecutor() as pool, locked(tmp_path):
        waiting = pool.submit(lambda: locked(tmp_path).__enter__())
        while not (said := capsys.readouterr().out):
            time.sleep(0.01)
        assert said == f"waiting for another run, which works on {tmp_path}\n" and not waiting.done()


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
    found = load_or_set_aside(path, read_tensors)
    assert found["state"]["w"].tolist() == [0, 1, 2] and found["seconds"] == 1.5 and found["config"] == {"lr": None}


@pytest.mark.parametrize("change", ["flipped", "cut"])
def test_tensors_with_a_single_wrong_bit_are_damaged(tmp_path, capsys, change):
    path = tmp_path / "model.pt"
    save_tensors(path, {"state": {"w": torch.rand(100_000)}})
    content = bytearray(path.read_bytes())
    content[200_000] ^= 1
    path.write_bytes(content if change == "flipped" else content[:57_000])
    assert load_or_set_aside(path, read_tensors) is None
    assert f"{path} is damaged (ValueError): set aside" in capsys.readouterr().out


def test_a_digest_covers_names_and_every_bit():
    w = torch.rand(5, 3)
    other = w.clone()
    other[4, 2] = torch.nextafter(w[4, 2], torch.tensor(2.0))
    assert len({digest(state) for state in ({"w": w}, {"v": w}, {"w": other}, {"w": w, "v": w})}) == 4
    assert digest({"v": other, "w": w.t().contiguous().t()}) == digest({"w": w, "v": other})


def test_pickled_objects_are_not_run(tmp_path, capsys):
    save_tensors(tmp_path / "model.pt", {"state": UserError("an object")})
    assert load_or_set_aside(tmp_path / "model.pt", read_tensors) is None
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
    def refuse(content, name):
        raise error

    path = tmp_path / "seed0.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=f"{path} cannot be read: .*{words}"):
        load_or_set_aside(path, refuse)
    assert path.exists()
