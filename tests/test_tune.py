"""The search for the baselines' hyperparameters."""

import json
from dataclasses import asdict, replace

import pandas as pd
import pytest
from conftest import ROOT

from benchmarks import tune
from config import UserError, hyperparameters
from data import parse_task
from metrics import gap
from summary import PAPER_TASKS


@pytest.fixture
def arguments(small_config):
    chosen = asdict(small_config) | {"tasks": ("class0",), "methods": ("T-S", "Boundary"), "seeds": (100,)}
    return tune.Arguments(**chosen, trials=2)


def test_every_trial_is_a_cell_and_the_table_ranks_them(arguments, tmp_path, capsys):
    tune.search(arguments)
    folder = tmp_path / "results/tuning"
    trials = {path.relative_to(folder): json.loads(path.read_text()) for path in folder.rglob("*.json")}
    assert len(trials) == 1 + 2 * 2 and all(record["seed"] == 100 for record in trials.values())
    frame = pd.read_csv(folder / "OptDigits-class0.csv")
    assert len(frame) == 4 and "Retrain" not in set(frame.method)
    for method, found in frame.groupby("method"):
        assert found.gap.is_monotonic_increasing
        for row in found.itertuples():
            record = next(r for path, r in trials.items() if path.match(f"{method}/trial{row.trial}-*"))
            assert record["config"]["hyperparameters"]["lr"] == row.lr
            assert record["metrics"]["A_ts_r"] == pytest.approx(row.A_ts_r, abs=1e-4)
    shown = capsys.readouterr().out
    assert "OptDigits, class0: best of 2 trials" in shown
    tune.search(arguments)  # all there: nothing is run again
    again = {path.relative_to(folder): json.loads(path.read_text()) for path in folder.rglob("*.json")}
    assert again == trials


def test_only_the_best_run_with_the_other_seeds_and_lead_the_table(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "FINALISTS", 1)
    monkeypatch.setattr(tune, "within_time", lambda frame: frame)  # on so little data, times are noise
    tune.search(replace(arguments, seeds=(100, 101)))
    folder = tmp_path / "results/tuning"
    again = sorted(path.parent.name for path in folder.rglob("*-seed101.json"))
    assert again == ["Boundary", "Retrain", "T-S"]
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
    return gap(ours, retrain, "class")


def test_seeds_for_reporting_are_refused(arguments):
    with pytest.raises(UserError, match="--seeds 4"):
        tune.search(replace(arguments, seeds=(4, 100)))


@pytest.mark.parametrize("method", ["SISA", "all"])
def test_methods_without_a_search_are_named(arguments, method):
    with pytest.raises(UserError, match=f"--methods {method}: .*NegGrad, Boundary"):
        tune.search(replace(arguments, methods=("T-S", method)))


@pytest.mark.parametrize("path", sorted((ROOT / "results/tuning").glob("*.csv")), ids=lambda path: path.stem)
def test_the_table_of_hyperparameters_has_the_best_of_the_committed_search(path):
    frame = pd.read_csv(path)
    dataset, task = path.stem.split("-")
    for method, found in frame[frame["time/Retrain"] <= 1].groupby("method"):
        row = hyperparameters(method, dataset, parse_task(task).metrics_kind, task=task)
        assert {name: found.iloc[0][name] for name in row} == row
        assert len(frame[frame.method == method]) == 12


@pytest.mark.parametrize("dataset", ["OptDigits", "Digit", "Fashion"])
@pytest.mark.parametrize("task", [parse_task(name) for name in PAPER_TASKS], ids=PAPER_TASKS)
def test_points_are_distinct_settings_of_the_method(dataset, task):
    for method in tune.METHODS:
        points = tune.points(method, dataset, task, 12)
        assert len(points) == 12 == len({tuple(point.values()) for point in points})
        assert points[:3] == tune.points(method, dataset, task, 3)
        assert set(points[0]) <= set(hyperparameters(method, dataset, task.metrics_kind, task=task.name))


def test_a_bad_task_is_named_before_any_training(arguments, monkeypatch):
    monkeypatch.setattr("main.make_shared", lambda *_: pytest.fail("trains"))
    with pytest.raises(UserError, match="no class 12"):
        tune.search(replace(arguments, tasks=("class12",)))


def test_data_sets_without_a_search_are_named(arguments):
    with pytest.raises(UserError, match=r"--dataset CIFAR10: .*OptDigits, Digit, Fashion"):
        tune.search(replace(arguments, dataset=("CIFAR10",)))
