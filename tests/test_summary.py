"""Averages: over seeds, to Retrain, of times and of relearning."""

import math

import pytest
from conftest import QUIET, RANDOM, write_audit, write_cell, write_random

from harness.store import UserError, read_record, save_record
from reporting import summary
from reporting.summary import Stat, read_cells, summarise

PLACE = ("cells", "Digit", "random10")
METRICS = {"A_r": 90.0, "A_f": 80.0, "A_ts": 85.0, "MIA": 50.0}


def write_times(folder, seconds, conditions=QUIET, seed=0):
    for method, value in seconds.items():
        content = {"metrics": METRICS, "time_s": value, "conditions": conditions}
        write_cell(folder, "efficiency", "Digit", "random10", method, seed, **content)


def times(folder, name):
    """Method -> mean `time_s` or `ratio`."""
    found = summarise(read_cells(folder))
    return {key[3]: stat.mean for key, stat in found.items() if key[0] == "efficiency" and key[4] == name}


def test_means_stds_and_seeds(tmp_path):
    write_random(tmp_path)
    stats = summarise(read_cells(tmp_path))
    assert stats[*PLACE, "Retrain", "A_r"] == (99, 1, 2)  # the std of the population: 1, not 1.41
    assert stats[*PLACE, "CaMU", "A_f"] == (97, 1, 2) and stats[*PLACE, "CaMU", "time_s"] == (1, 0, 2)
    gap, std, seeds = stats[*PLACE, "NegGrad", "gap"]
    assert gap == pytest.approx((2 + 3 + 0.5 + 3) / 4) and math.isnan(std) and seeds == 2
    assert not {(*PLACE, "Retrain", "gap"), (*PLACE, "Retrain", "MIA_diff"), (*PLACE, "CaMU", "A_ts_f")} & stats.keys()


def test_there_is_no_gap_without_retrain_or_with_a_metric_missing(tmp_path):
    write_random(tmp_path, methods={"CaMU": RANDOM["CaMU"]})
    partial = {name: pair for name, pair in RANDOM["SCRUB"].items() if name != "MIA"}
    write_random(tmp_path, "Fashion", methods={"Retrain": RANDOM["Retrain"], "SCRUB": partial})
    assert not [key for key in summarise(read_cells(tmp_path)) if key[4] in ("gap", "MIA_diff")]


def test_differences_to_retrain_are_over_the_seeds_that_both_have(tmp_path):
    """A second seed of CaMU alone, of another forget set and time, moves neither gap, nor MIA_diff, nor ratio."""
    for seed, method, mia, seconds in ((0, "Retrain", 50, 8.0), (0, "CaMU", 49, 2.0), (1, "CaMU", 30, 6.0)):
        for tree in ("cells", "efficiency"):
            content = {"metrics": METRICS | {"MIA": mia}, "time_s": seconds, "conditions": QUIET}
            write_cell(tmp_path, tree, "Digit", "random10", method, seed, **content)
    stats = summarise(read_cells(tmp_path))
    assert stats[*PLACE, "CaMU", "gap"][::2] == (0.25, 1) and stats[*PLACE, "CaMU", "MIA_diff"][::2] == (1, 1)
    assert stats[*PLACE, "CaMU", "MIA"] == (39.5, 9.5, 2)
    assert stats["efficiency", *PLACE[1:], "CaMU", "ratio"][::2] == (0.25, 1)
    assert stats["efficiency", *PLACE[1:], "CaMU", "time_s"] == (4, 2, 2)


def test_an_audit_joins_its_cell_but_not_a_later_one_of_that_name(tmp_path):
    write_random(tmp_path)
    for seed, auc in ((0, 52.0), (1, 54.0)):
        write_audit(tmp_path, "Digit", "random10", "CaMU", seed, RMIA_AUC=auc, JS_f=0.25)
    assert summarise(read_cells(tmp_path))[*PLACE, "CaMU", "RMIA_AUC"] == (53, 1, 2)
    metrics = {name: pair[0] for name, pair in RANDOM["CaMU"].items()}
    write_cell(tmp_path, "cells", "Digit", "random10", "CaMU", 1, metrics=metrics, config={"seed": 1, "method": "new"})
    stats = summarise(read_cells(tmp_path))
    assert stats[*PLACE, "CaMU", "RMIA_AUC"] == (52, 0, 1) and stats[*PLACE, "CaMU", "A_r"].seeds == 2
    retrain = {name: pair[0] for name, pair in RANDOM["Retrain"].items()}
    write_cell(tmp_path, "cells", "Digit", "random10", "Retrain", 0, metrics=retrain, config={"seed": 0, "epochs": 9})
    stats = summarise(read_cells(tmp_path))  # seed 0 was compared with another Retrain
    assert stats[*PLACE, "CaMU", "RMIA_AUC"] == (52, 0, 1) and (*PLACE, "CaMU", "JS_f") not in stats
    assert len(read_cells(tmp_path)) == 8 and (*PLACE, "SCRUB", "JS_f") not in stats


def test_the_tug_of_war_is_taken_seed_by_seed(tmp_path):
    write_random(tmp_path)
    found = summarise(read_cells(tmp_path))[*PLACE, "CaMU", "ToW"]  # Retrain: A_r 98 and 100, A_f 98, A_ts 97
    first, second = (1 - 0) * (1 - 0.02) * (1 - 0.005), (1 - 0.01) * (1 - 0) * (1 - 0.005)
    assert found == pytest.approx(((first + second) / 2, abs(first - second) / 2, 2))


def test_a_cell_of_several_requests_has_a_row_for_each(tmp_path):
    requests = [{"metrics": METRICS | {"A_f": a_f}, "time_s": seconds} for a_f, seconds in ((10.0, 2.0), (5.0, 3.0))]
    write_cell(tmp_path, "cells", "Digit", "class0-then-class1", "CaMU", 0, requests=requests, **requests[-1])
    cells = read_cells(tmp_path)
    assert cells.task.tolist() == ["class0-then-class1 (1 of 2)", "class0-then-class1 (2 of 2)"]
    assert cells.A_f.tolist() == [10, 5] and cells.time_s.tolist() == [2, 3]


def test_times_are_averaged_and_divided_only_under_the_conditions_of_most(tmp_path):
    write_times(tmp_path, {"Retrain": 20.0, "NegGrad": 5.0, "CaMU": 2.0})
    write_times(tmp_path, {"Unroll": 0.5}, QUIET | {"threads": 2})
    write_times(tmp_path, {"CaMU": 100.0}, QUIET | {"jobs": 2}, seed=1)
    assert times(tmp_path, "time_s") == {"Retrain": 20, "NegGrad": 5, "CaMU": 2}
    assert times(tmp_path, "ratio") == {"Retrain": 1, "NegGrad": 0.25, "CaMU": 0.1}
    assert summarise(read_cells(tmp_path))["efficiency", *PLACE[1:], "CaMU", "A_r"].seeds == 2


def test_times_of_unknown_conditions_are_not_divided(tmp_path):
    write_times(tmp_path, {"Retrain": 20.0, "CaMU": 2.0}, conditions=None)
    assert times(tmp_path, "time_s") == {"Retrain": 20, "CaMU": 2} and times(tmp_path, "ratio") == {}


def test_the_ablation_has_retrain_and_camu_of_its_seeds_beside_it(tmp_path):
    write_random(tmp_path)
    write_cell(tmp_path, "ablation", "Digit", "random10", "Finetune", 1, metrics=METRICS)
    cells = read_cells(tmp_path)
    stats = summarise(cells)
    here = {(key[3], key[4]): stat for key, stat in stats.items() if key[0] == "ablation"}
    assert summarise(summary.with_base(cells)).keys() == stats.keys()
    assert len(summary.with_base(summary.with_base(cells))) == len(summary.with_base(cells)) == len(cells) + 2
    assert {method for method, _ in here} == {"Finetune", "Retrain", "CaMU"}
    assert here["Retrain", "A_r"] == (100, 0, 1) and here["CaMU", "A_r"] == (99, 0, 1)
    assert here["Finetune", "gap"].mean == pytest.approx((10 + 18 + 12 + 1) / 4)
    assert stats[*PLACE, "Retrain", "A_r"] == (99, 1, 2)  # the plain run keeps all of its own


def test_relearning_counts_from_before(tmp_path):
    for seed, last in ((0, 95.0), (1, 97.0)):
        curves = {"A_r": [94.0, 93.0, last], "A_f": [90.0, 88.0, 91.0]}
        write_cell(tmp_path, "relearn", "Digit", "random10", "CaMU", seed, **curves)
    cells = read_cells(tmp_path)
    curves = summary.relearning_curves(cells)
    found = curves[curves.metric == "A_r"].sort_values("epoch")
    assert found["mean"].tolist() == [0, -1, 2] and found["std"].tolist() == [0, 0, 1] and set(found.seeds) == {2}
    moved = {key[4]: stat for key, stat in summarise(cells).items()}
    assert moved == {"start_A_r": (94, 0, 2), "moved_A_r": (2, 1, 2), "moved_A_f": (2, 0, 2)}
    assert summary.relearning_curves(cells[:0]).empty


def test_the_mean_mia_difference_is_over_what_there_is(tmp_path):
    write_random(tmp_path)
    write_random(tmp_path, "Fashion", methods=RANDOM | {"NegGrad": RANDOM["NegGrad"] | {"MIA": (54, 54)}})
    stats = summarise(read_cells(tmp_path))
    pairs = [("Digit", "random10"), ("Fashion", "random10"), ("CIFAR10", "random10")]
    found = {method: summary.mean_mia_difference(stats, pairs, method) for method in ("NegGrad", "CaMU", "SISA")}
    assert found == {"NegGrad": (3.5, 2), "CaMU": (0, 2), "SISA": None}


def test_only_seeds_that_all_methods_have_are_common(tmp_path):
    write_random(tmp_path)
    for seed in (1, 2):
        write_cell(tmp_path, "cells", "Digit", "random10", "SISA", seed, metrics=METRICS)
    write_cell(tmp_path, "cells", "Fashion", "random10", "SISA", 7, metrics=METRICS)
    found = summary.on_common_seeds(read_cells(tmp_path))
    assert {*zip(found.dataset, found.seed)} == {("Digit", 1), ("Fashion", 7)} and len(found) == 6
    assert summary.on_common_seeds(found[:0]).empty


@pytest.mark.parametrize("a_r, lost", [(79.99, True), (80.0, False), (math.nan, True), (100.0, False)])
def test_a_model_is_lost_more_than_20_points_under_retrain(a_r, lost):
    stats = {(*PLACE, "Retrain", "A_r"): Stat(100.0, 0, 1), (*PLACE, "CaMU", "A_r"): Stat(a_r, 0, 1)}
    assert summary.is_lost(stats, PLACE, "CaMU") is lost
    assert not summary.is_lost(stats, ("cells", "Fashion", "random10"), "CaMU")
    assert not summary.is_lost({(*PLACE, "CaMU", "A_r"): Stat(a_r, 0, 1)}, PLACE, "CaMU")


@pytest.mark.parametrize(
    "metrics, expected",
    [
        (("A_r", "A_f", "MIA", "A_r_clean"), {"a": 2, "b": 1, "c": 2}),  # closest to Retrain's 90
        (("A_ts", "A_ts_r"), {"c": 1, "b": 2}),
        (("A_ts_f", "time_s", "ratio", "gap", "MIA_diff", "moved_A_r"), {"a": 1, "b": 2}),
    ],
)
def test_marks_have_each_metrics_direction(metrics, expected):
    for metric in metrics:
        assert summary.rank({"Retrain": 90.0, "a": 88.0, "b": 91.0, "c": 92.0}, metric) == expected, metric


def test_marks_pass_over_retrain_and_lost_models_and_need_something_to_compare():
    assert summary.rank({"Retrain": 0.0, "a": 1.0, "b": 2.0}, "A_ts_f") == {"a": 1, "b": 2}
    assert summary.rank({"Retrain": 0.0, "a": 1.0}, "A_ts_f") == {}
    assert summary.rank({"a": 1.0, "b": 2.0}, "A_r") == {}  # closest to what is not there
    assert summary.rank({"a": 1.001, "b": 1.004, "c": 3.0}, "time_s") == {"a": 1, "b": 1, "c": 2}
    assert summary.rank({"a": 0.051, "b": 0.054, "c": 0.2}, "JS_f") == {"a": 1, "b": 2}
    assert summary.rank({"Retrain": 9.0, "a": 1.0, "b": 2.0, "c": 3.0}, "A_ts_f", skipped=["a"]) == {"b": 1, "c": 2}


def test_records_of_older_runs_still_count(tmp_path):
    """Without the command, the versions and the conditions."""
    write_cell(tmp_path, "cells", "Digit", "random10", "CaMU", 0, metrics=METRICS)
    path = tmp_path / "cells/Digit/random10/CaMU/seed0.json"
    record = read_record(path.read_bytes(), path)
    del record["versions"]
    save_record(path, record)
    (cell,) = read_cells(tmp_path).itertuples()
    assert (cell.command, cell.conditions, cell.versions, cell.A_r) == ("", "", {}, 90) and math.isnan(cell.time_s)
    made = {"conditions": QUIET, "command": "python x", "commit": "v1-dirty"}
    write_cell(tmp_path, "cells", "Digit", "random10", "CaMU", 0, metrics=METRICS, **made)
    (cell,) = read_cells(tmp_path).itertuples()
    assert cell.command == "python x  # commit v1-dirty"
    assert cell.conditions == "a processor, threads a cell: 1, jobs: 1"


def test_no_cell_or_a_damaged_one_is_named(tmp_path):
    none = f"{tmp_path} holds no cells; make some with main.py --results-dir"
    with pytest.raises(UserError, match=none):
        read_cells(tmp_path)
    write_audit(tmp_path, "Digit", "random10", "CaMU", 0, RMIA_AUC=50.0)  # of a cell that has gone
    with pytest.raises(UserError, match=none):
        read_cells(tmp_path)
    write_random(tmp_path)
    path = tmp_path / "cells/Digit/random10/CaMU/seed1.json"
    for content in ("{", "{}", "[]"):
        path.write_text(content)
        with pytest.raises(UserError, match=f"{path} is no sound cell, remove it"):
            read_cells(tmp_path)


def test_the_papers_values_have_ratios_and_differences_derived_from_them():
    paper = summary.read_paper_values()
    assert paper[2, "Digit", "random10", "A_r", "Retrain"] == 99.59
    assert paper[5, "Digit", "random10", "ratio", "NegGrad"] == pytest.approx(0.722, abs=5e-4)
    assert paper[4, "Digit", "random10", "MIA_diff", "CaMU"] == pytest.approx(abs(47.91 - 49.58))
    assert not [key for key in paper if key[3:] == ("MIA_diff", "Retrain")]


def test_names_are_in_the_papers_order_with_the_others_behind():
    assert summary.in_order({"b", "Fashion", "a", "Digit"}, summary.PAPER_DATASETS) == ["Digit", "Fashion", "a", "b"]
