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
from hyperparameters import hyperparameters_of, search_space
from metrics import tug_of_war

pytest.importorskip("optuna")


def kind(task):
    return "class" if task.classes else "random"


@pytest.fixture
def arguments(toy_config, monkeypatch):
    """Two trials of two methods on the toy data set, as if it was OptDigits."""
    monkeypatch.setattr(tune, "load", lambda *_, **__: replace(make_toy_dataset(), name="OptDigits"))
    monkeypatch.setattr(tune, "FINALISTS", 1)
    monkeypatch.setattr(tune, "effect", lambda *_: 1)  # so little training may change nothing
    chosen = {"dataset": ("OptDigits",), "methods": ("T-S", "Boundary"), "seeds": (100, 101)}
    return tune.Arguments(**asdict(toy_config) | chosen, trials=2)


def trials(folder):
    return {path.relative_to(folder): json.loads(path.read_text()) for path in folder.rglob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["class0", "random10"])
def test_every_trial_is_a_cell_and_the_table_ranks_them_by_their_worst_run(
    task, arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(tune, "LEAST_A_R", 0)
    arguments = replace(arguments, tasks=(task,))
    tune.search(arguments)
    folder = tmp_path / "results/tuning"
    found = trials(folder)
    assert all(record["seed"] >= 100 for record in found.values())
    assert sum(path.match("Retrain/*") for path in found) == 2 and sum(path.match("Original/*") for path in found) == 4
    frame = pd.read_csv(folder / f"OptDigits-{task}.csv")
    for method, rows in frame.groupby("method"):
        assert rows.runs.tolist() == [4, 1]
        for row in rows.itertuples():
            runs = {path: r for path, r in found.items() if path.match(f"{method}/trial{row.trial}-*")}
            assert len(runs) == row.runs and all(r["config"]["hyperparameters"]["lr"] == row.lr for r in runs.values())
            tows = [tug_of_war(r["metrics"], retrain_of(found, r["seed"])) for r in runs.values()]
            assert row.score == pytest.approx(min(tows), abs=1e-4)
    assert f"OptDigits, {task}: best of 2 trials" in capsys.readouterr().out

    record = next(r for path, r in found.items() if path.match("T-S/trial0-model0-seed100.json"))
    words = shlex.split(record["command"])
    assert words[:3] == ["python", "-m", "benchmarks.tune"] and record["commit"] == cells.commit()
    again = tyro.cli(tune.Arguments, args=words[3:])
    assert (again.methods, again.seeds, again.tasks) == (arguments.methods, (100, 101), (task,)) and again.trials == 2

    monkeypatch.setattr(tune, "run_cell", lambda *_, **__: pytest.fail("run again"))
    tune.search(arguments)
    assert trials(folder) == found


def retrain_of(found, seed):
    (record,) = [r for path, r in found.items() if path.match(f"Retrain/*-seed{seed}.json")]
    return record["metrics"]


@pytest.mark.slow
def test_a_trial_that_loses_its_model_ends_at_once_and_is_no_finalist(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "LEAST_A_R", 101)
    tune.search(arguments)
    found = trials(tmp_path / "results/tuning")
    lost = [record for record in found.values() if record["method"] in ("T-S", "Boundary")]
    assert len(lost) == 2 * 2 and all(record["metrics"] == {} for record in lost)
    assert (pd.read_csv(tmp_path / "results/tuning/OptDigits-class0.csv").score == -1).all()


@pytest.mark.parametrize(
    "a_f, changed, least",
    [
        (100.0, 0.0, 0),  # nothing done
        (99.0, 0.1, 0.5),  # half of the predictions that must change
        (99.5, 1.0, 0.5),  # half of the quarter of the way
        (99.0, 1.0, 1),
        (97.0, 5.0, 1),
        (101.0, 1.0, 0),  # away from Retrain's
    ],
)
def test_how_much_of_the_least_that_counts_a_point_does(a_f, changed, least):
    ours, retrain, original = (pd.Series({"A_f": value, "changed_f": changed}) for value in (a_f, 96.0, 100.0))
    assert tune.effect(ours, retrain, original) == pytest.approx(least)


def test_where_retrain_and_original_agree_only_the_predictions_must_change():
    ours, retrain, original = (pd.Series({"A_f": value, "changed_f": 0.2}) for value in (99.9, 99.6, 100.0))
    assert tune.effect(ours, retrain, original) == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": (4, 100)}, "--seeds 4: tuning uses seeds of at least 100"),
        ({"methods": ("T-S", "SISA")}, "--methods SISA: .*NegGrad, Boundary"),
        ({"methods": ("all",)}, "--methods all: .*NegGrad, Boundary"),
        ({"dataset": ("CIFAR10",)}, "--dataset CIFAR10: .*OptDigits, Digit, Fashion"),
        ({"tasks": ("class0>class1",)}, "--tasks class0>class1: the search is for tasks of one request"),
        ({"dry_run": True}, "--dry-run: the search has none"),
        ({"study": "floor"}, "--study: the search has none"),
        ({"time_limit": 60.0}, "--time-limit: the search has none"),
        ({"checkpoint": __file__}, "--checkpoint: the search has none"),
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
    assert set(frame.method) == set(tune.METHODS)
    for method, found in frame.groupby("method"):
        row = hyperparameters_of(method, dataset, kind(parse_task(task)))
        best = {name: json.loads(v) if name == "decay_after" else v for name, v in found.iloc[0].items() if name in row}
        assert best == row or found.iloc[0].score <= 0
        assert len(found) == 20 and found.runs.max() <= (16 if dataset == "OptDigits" else 6)


@pytest.mark.parametrize("method", tune.METHODS)
def test_points_are_settings_of_the_method_within_its_ranges_and_follow_from_the_results(method):
    def draw(count, score):
        study, drawn = tune.new_study(parse_task("class0"), method), []
        for number in range(count):
            asked, point = tune.ask(study, method, "Digit")
            study.tell(asked, score(number))
            drawn.append(point)
        return drawn

    space = search_space(method, "Digit")
    points = draw(14, lambda number: number / 20)
    assert points == draw(14, lambda number: number / 20) != draw(14, lambda number: -number / 20)
    assert len({json.dumps(point) for point in points}) > 10
    for point in points:
        assert point.keys() == hyperparameters_of(method, "Digit", "class").keys()
        for name, value in point.items():
            how, *bounds = space[name] if isinstance(space[name], tuple) else ("choice", value)
            assert value in bounds if how == "choice" else 0.9 * bounds[0] < value < 1.1 * bounds[1] or value in bounds


def test_points_are_ranked_without_repeated_ones_and_those_that_do_not_count():
    drawn = [{"lr": value} for value in (1, 2, 2, 3, 4, 5)]
    assert tune.ranked({0: -0.5, 1: 0.9, 2: 0.9, 3: 0.7, 4: 0.95, 5: 0.1}, drawn) == [4, 1, 3, 5]
    assert tune.ranked({0: -0.5, 1: 0.2, 2: 0.9}, drawn) == [2]  # should one of them have been worse


def test_a_finalist_that_does_not_hold_makes_room_for_the_next_best(monkeypatch):
    place, config = ("class0", "T-S"), tune.Arguments()
    first = [0.99, 0.98, 0.97, 0.96, 0.95, -1.0]
    over_all = {0: 0.1, 1: 0.9, 2: 0.4, 3: 0.3, 4: 0.8}
    monkeypatch.setattr(tune, "trial", lambda plan, task, method, seed, number: number)
    monkeypatch.setattr(tune, "runs_of", lambda plans, place, number: [number, number])
    monkeypatch.setattr(tune, "score", lambda plans, runs: first[runs[0]] if len(runs) == 1 else over_all[runs[0]])
    points, finalists, rounds = {place: [{"lr": n} for n in range(6)]}, {place: []}, []
    while chosen := tune.next_finalists([None], points, finalists, config):
        rounds.append([number for _, number in chosen])
        finalists[place] += rounds[-1]
    assert rounds == [[0, 1, 2], [3, 4]]  # one holds of the first three; then there is no other that counts
