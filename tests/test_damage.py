"""Damaged files of every sort that a run reads again: the same numbers, or the file is named and made again."""

import json
import os
from dataclasses import replace

import pytest
import torch
from conftest import make_toy_dataset, write_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import main
from harness.datasets import load
from harness.store import UserError, load_or_set_aside, read_record, read_tensors, save_record, save_tensors

RECORD = {"dataset": "Digit", "task": "class0", "method": "CaMU", "seed": 0, "metrics": {"A_r": 98.5}, "config": {}}
TENSORS = {"state": {"w": torch.arange(60.0).view(6, 10), "b": torch.zeros(3, dtype=torch.uint8)}, "epoch": 3}
OTHERS = ["", "{}", "[]", "null", "3", '["config"]', '{"config": null}', '{"config": {}}', "\0" * 100, "{" * 100_000]
OTHER_VALUES = [[1, 2], {}, {"state": {}}, torch.zeros(3), 3.5]

damages = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 10**6), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 10**6)),
    st.tuples(st.just("insert"), st.integers(0, 10**6), st.binary(min_size=1, max_size=20)),
)


def damaged(content, damage):
    how, place, *rest = damage
    place %= len(content)
    if how == "flip":
        return content[:place] + bytes([content[place] ^ rest[0]]) + content[place + 1 :]
    return content[:place] + (rest[0] + content[place:] if rest else b"")


def equal(found, expected):
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[name], expected[name]) for name in expected)
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Name of a sound file -> its folder, bytes, reader and values."""
    folder = tmp_path_factory.mktemp("sound")
    save_record(folder / "seed0.json", RECORD)
    save_tensors(folder / "model.pt", TENSORS)
    kinds = {"seed0.json": (read_record, RECORD), "model.pt": (read_tensors, TENSORS)}
    return folder, {name: ((folder / name).read_bytes(), *kind) for name, kind in kinds.items()}


@pytest.mark.parametrize("name", ["seed0.json", "model.pt"])
@given(damage=damages)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_damaged_is_the_same_or_set_aside(sound, name, damage):
    folder, files = sound
    content, read, expected = files[name]
    (folder / name).write_bytes(damaged(content, damage))
    found = load_or_set_aside(folder / name, read)
    assert equal(found, expected) if found is not None else not (folder / name).exists()


def test_a_flipped_bit_that_zip_and_torch_overlook_is_found(tmp_path):
    """In the directory of the zip file: torch then takes a tensor for a folder, and reads memory that was never set."""
    save_tensors(tmp_path / "model.pt", TENSORS)
    content = bytearray((tmp_path / "model.pt").read_bytes())
    assert equal(torch.load(tmp_path / "model.pt", weights_only=True)["values"], TENSORS)
    place = content.rindex(b"archive/data/0") - 8  # the attributes of the first tensor's entry
    content[place] ^= 16
    (tmp_path / "model.pt").write_bytes(content)
    assert load_or_set_aside(tmp_path / "model.pt", read_tensors) is None


@pytest.mark.parametrize("content", OTHERS)
@pytest.mark.parametrize("name, read", [("seed0.json", read_record), ("model.pt", read_tensors)])
def test_other_contents_are_set_aside(tmp_path, name, read, content):
    (tmp_path / name).write_text(content)
    assert load_or_set_aside(tmp_path / name, read) is None and not (tmp_path / name).exists()


@pytest.mark.parametrize("values", OTHER_VALUES)
def test_tensors_that_someone_else_has_saved_are_set_aside(tmp_path, values):
    torch.save(values, tmp_path / "model.pt")
    assert load_or_set_aside(tmp_path / "model.pt", read_tensors) is None


def test_another_files_content_is_set_aside(tmp_path):
    save_tensors(tmp_path / "shard1.pt", TENSORS)
    os.replace(tmp_path / "shard1.pt", tmp_path / "shard2.pt")
    assert load_or_set_aside(tmp_path / "shard2.pt", read_tensors) is None
    there, here = (tmp_path / "Digit" / task / "CaMU" / "seed0.json" for task in ("class0", "random10"))
    save_record(there, RECORD)
    save_record(here, RECORD)
    os.replace(there, here)
    assert load_or_set_aside(here, read_record) is None


@pytest.mark.parametrize("name, read", [("seed0.json", read_record), ("model.pt", read_tensors)])
def test_pipes_and_folders_in_a_files_place_are_refused_and_do_not_hang(tmp_path, name, read):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} cannot be read: it is no regular file"):
        load_or_set_aside(tmp_path / name, read)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} cannot be read: it is no regular file"):
        load_or_set_aside(tmp_path / name, read)


def test_a_damaged_file_that_cannot_be_set_aside_is_named(tmp_path):
    (tmp_path / "seed0.json").write_text("{")
    (tmp_path / "seed0.json.damaged").mkdir()
    with pytest.raises(UserError, match=r"seed0.json is damaged and cannot be set aside: Is a directory"):
        load_or_set_aside(tmp_path / "seed0.json", read_record)


def test_a_changed_number_is_set_aside(tmp_path):
    save_record(tmp_path / "seed0.json", RECORD)
    text = (tmp_path / "seed0.json").read_text()
    (tmp_path / "seed0.json").write_text(text.replace("98.5", "150"))
    assert load_or_set_aside(tmp_path / "seed0.json", read_record) is None


def numbers(folder):
    """The metrics and curves of all cells of a run; times differ."""
    found = {}
    for path in sorted(folder.rglob("seed*.json")):
        record = json.loads(path.read_text())
        found[path.relative_to(folder)] = [record.get(name) for name in ("metrics", "A_r", "A_f")]
    return found


@pytest.mark.slow
def test_every_file_of_a_run_is_made_again_with_the_same_numbers(toy_config, tmp_path, capsys):
    """Each file in turn is emptied, flipped in its middle, and replaced by another of the run."""
    quick = (*toy_config.override, "CaMU.epochs=1", "SISA.epochs=1")
    config = replace(toy_config, methods=("SISA", "CaMU"), study="relearn", save_models=True, override=quick)
    main.main(config)
    expected = numbers(tmp_path / "results")
    assert len(expected) == 6
    files = [path for root in ("results", "checkpoints") for path in sorted((tmp_path / root).rglob("*.*"))]
    files = [path for path in files if path.suffix in (".json", ".pt")]
    assert len(files) == 14
    for path in files:
        content = path.read_bytes()
        other = next(one for one in files if one != path and one.suffix == path.suffix).read_bytes()
        middle = len(content) // 2
        for wrong in (b"", content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :], other):
            path.write_bytes(wrong)
            main.main(config)
            assert numbers(tmp_path / "results") == expected, (path, len(wrong))


@pytest.mark.parametrize("wrong", ["emptied", "flipped", "another's"])
def test_a_damaged_cache_of_an_image_folder_is_made_again(tmp_path, wrong, capsys):
    load("Own", write_tree(tmp_path))
    expected = load("Own", tmp_path).train.pixels
    path = tmp_path / "Own.cache.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(b"" if wrong == "emptied" else content)
    if wrong == "another's":
        save_tensors(tmp_path / "Other.cache.pt", {"state": "x", "train": expected * 0, "test": expected})
        os.replace(tmp_path / "Other.cache.pt", path)
    assert torch.equal(load("Own", tmp_path).train.pixels, expected)
    assert "Own.cache.pt is damaged" in capsys.readouterr().out


def test_the_toy_data_are_the_same_every_time():
    """Or the tests above would prove nothing."""
    assert make_toy_dataset().fingerprint() == make_toy_dataset().fingerprint()
