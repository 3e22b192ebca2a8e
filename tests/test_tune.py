"""The search for the baselines' hyperparameters."""

import json
import shlex
from dataclasses import asdict, replace

import pandas as pd
import pytest
import tyro
from conftest import ROOT, make_toy_dataset

from benchmarks import tune
from harness import cells
from harness.store import UserError
from harness.tasks import parse_task
from hyperparameters import hyperparameters_of
from metrics import gap
from reporting.summary import PAPER_TASKS


def kind(task):
    return "class" if task.classes else "random"


@pytest.fixture
def arguments(toy_config, monkeypatch):
    """Two trials of two methods on the toy data set, as if it was OptDigits."""
    monkeypatch.setattr(tune, "load", lambda *_, **__: replace(make_toy_dataset(), name="OptDigits"))
    chosen = {"dataset": ("OptDigits",), "methods": ("T-S", "Boundary"), "seeds": (100,)}
    return tune.Arguments(**asdict(toy_config) | chosen, trials=2)


def trials(folder):
    return {path.relative_to(folder): json.loads(path.read_text()) for path in folder.rglob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["class0", "random10"])
def test_every_trial_is_a_cell_and_the_table_ranks_them(task, arguments, tmp_path, capsys, monkeypatch):
    arguments = replace(arguments, tasks=(task,))
    tune.search(arguments)
    folder = tmp_path / "results/tuning"
    found = trials(folder)
    assert len(found) == 1 + 2 * 2 and all(record["seed"] == 100 for record in found.values())
    frame = pd.read_csv(folder / f"OptDigits-{task}.csv")
    assert len(frame) == 4 and "Retrain" not in set(frame.method)
    for method, rows in frame.groupby("method"):
        assert rows.gap.is_monotonic_increasing
        for row in rows.itertuples():
            record = next(r for path, r in found.items() if path.match(f"{method}/trial{row.trial}-*"))
            assert record["config"]["hyperparameters"]["lr"] == row.lr
            assert record["metrics"]["A_ts"] == pytest.approx(row.A_ts, abs=1e-4)
    assert f"OptDigits, {task}: best of 2 trials" in capsys.readouterr().out

    words = shlex.split(record["command"])
    assert words[:3] == ["python", "-m", "benchmarks.tune"] and record["commit"] == cells.commit()
    again = tyro.cli(tune.Arguments, args=words[3:])
    assert (again.methods, again.seeds, again.tasks) == (arguments.methods, (100,), (task,)) and again.trials == 2

    monkeypatch.setattr(tune, "run_cell", lambda **_: pytest.fail("run again"))
    tune.search(arguments)
    assert trials(folder) == found


@pytest.mark.slow
def test_only_the_best_run_with_the_other_seeds_and_lead_the_table(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "FINALISTS", 1)
    monkeypatch.setattr(tune, "within_time", lambda frame: frame)  # on so little data, times are noise
    tune.search(replace(arguments, seeds=(100, 101)))
    folder = tmp_path / "results/tuning"
    assert sorted(path.parent.name for path in folder.rglob("*-seed101.json")) == ["Boundary", "Retrain", "T-S"]
    for method, found in pd.read_csv(folder / "OptDigits-class0.csv").groupby("method"):
        best, other = found.itertuples()
        assert (best.seeds, other.seeds) == (2, 1)
        assert gap_to_retrain(folder / "OptDigits/class0", method, best.trial, [100]) <= other.gap + 1e-4
        both = gap_to_retrain(folder / "OptDigits/class0", method, best.trial, [100, 101])
        assert best.gap == pytest.approx(both, abs=1e-4)


def gap_to_retrain(folder, method, trial, seeds):
    """Of the means over the seeds."""
    ours, retrain = (
        pd.DataFrame([json.loads((folder / f"{name}-seed{seed}.json").read_text())["metrics"] for seed in seeds]).mean()
        for name in (f"{method}/trial{trial}", "Retrain/trial0")
    )
    return gap(ours, retrain)


def test_trials_that_take_longer_than_retrain_are_passed_over():
    frame = pd.DataFrame({"trial": [0, 1, 2], "time/Retrain": [1.0, 1.01, 0.2]})
    assert tune.within_time(frame).trial.tolist() == [0, 2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": (4, 100)}, "--seeds 4: tuning uses seeds of at least 100"),
        ({"methods": ("T-S", "SISA")}, "--methods SISA: .*NegGrad, Boundary"),
        ({"methods": ("all",)}, "--methods all: .*NegGrad, Boundary"),
        ({"dataset": ("CIFAR10",)}, "--dataset CIFAR10: .*OptDigits, Digit, Fashion"),
        ({"tasks": ("random10", "class12")}, "no class 12"),
    ],
)
def test_what_cannot_be_searched_is_named_before_any_training(arguments, monkeypatch, changes, message):
    monkeypatch.setattr(cells, "pretrain", lambda **_: pytest.fail("trains"))
    with pytest.raises(UserError, match=message):
        tune.search(replace(arguments, **changes))


@pytest.mark.parametrize("path", sorted((ROOT / "results/tuning").glob("*.csv")), ids=lambda path: path.stem)
def test_the_table_of_hyperparameters_has_the_best_of_the_committed_search(path):
    frame = pd.read_csv(path)
    dataset, task = path.stem.split("-")
    for method, found in frame[frame["time/Retrain"] <= 1].groupby("method"):
        row = hyperparameters_of(method, dataset, kind(parse_task(task)), task=task)
        assert {name: found.iloc[0][name] for name in row} == row
        assert len(frame[frame.method == method]) == 12


@pytest.mark.parametrize("dataset", ["OptDigits", "Digit", "Fashion"])
def test_points_are_distinct_settings_of_the_method(dataset):
    for task in map(parse_task, PAPER_TASKS):
        for method in tune.METHODS:
            points = tune.points(method, dataset, task.name, kind(task), 12)
            assert len(points) == 12 == len({tuple(point.values()) for point in points})
            assert points[:3] == tune.points(method, dataset, task.name, kind(task), 3)
            assert set(points[0]) <= set(hyperparameters_of(method, dataset, kind(task), task=task.name))
