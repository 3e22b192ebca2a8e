"""The study of the published code's three points on a model with batch normalisation."""

from dataclasses import replace

import pytest
from conftest import colour_images, records

from benchmarks import passes
from data import Dataset, Images
from harness.store import UserError


@pytest.mark.slow
def test_every_variant_is_a_cell_and_is_run_once(tmp_path, monkeypatch, capsys):
    parts = [
        Images(*colour_images(count, 32, seed=seed), side=32, normalise=True) for count, seed in ((120, 0), (40, 1))
    ]
    dataset = Dataset("CIFAR10", "ResNet-18", *parts, tuple("abcd"), published_protocol=True)
    monkeypatch.setattr(passes, "load", lambda *_, **__: dataset)
    monkeypatch.setattr(passes, "TRAINING", {"epochs": 1, "lr": 1e-3})
    folders = {"results_dir": str(tmp_path / "results"), "checkpoints_dir": str(tmp_path / "checkpoints")}
    arguments = passes.Arguments(tasks=("class0", "random25"), seeds=(0,), quiet=True, **folders)
    passes.main(arguments)
    found = records(tmp_path / "results")
    assert "CIFAR10-32: " in capsys.readouterr().out
    for task in arguments.tasks:
        rows = {
            path.parts[3]: record["config"]["hyperparameters"] for path, record in found.items() if task in path.parts
        }
        assert rows.keys() == {"Retrain", *passes.VARIANTS} and rows["CaMU"]["passes"] == 1
        assert {name: row.items() - rows["CaMU"].items() for name, row in rows.items() if name != "Retrain"} == {
            "CaMU": set(),
            "Two-passes": {("passes", 2)},
            "Own-shuffle": {("paired", False)},
            "Label-of-x_r": {("y_c", "y_r")},
            "Published-code": {("passes", 2), ("paired", False), ("y_c", "y_r")},
        }
    monkeypatch.setattr(passes, "pretrain", lambda **_: pytest.fail("trained again"))
    (tmp_path / "results/cells/CIFAR10-32/class0/CaMU/seed0.json").unlink()
    passes.main(arguments)
    assert records(tmp_path / "results").keys() == found.keys()
    monkeypatch.setattr(passes, "run_all", lambda *_: pytest.fail("run again"))
    passes.main(arguments)
    for changes, message in (
        ({"kernels": "portable"}, "seed0.json was made with another configuration"),
        ({"dry_run": True}, "--dry-run: this study has none; main.py has"),
        ({"override": ("CaMU.epochs=1",)}, "--override: this study has none"),
        ({"dataset": ("OptDigits",)}, "--dataset OptDigits: CIFAR10 or CIFAR100"),
        ({"tasks": ("class0>class1",)}, "--tasks class0-then-class1: this study is for tasks of one request"),
    ):
        with pytest.raises(UserError, match=message):
            passes.main(replace(arguments, **changes))
