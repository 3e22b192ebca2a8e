"""Tables for the terminal and for the report, from numbers made by hand."""

import math

import pytest
from conftest import QUIET, RANDOM, write_audit, write_cell, write_random

from baselines import METHODS
from camu import ABLATION
from reporting import tables
from reporting.summary import Stat, read_cells, read_paper_values, summarise

PLACE = ("cells", "Digit", "random10")
CLASS = {"A_r": 99.0, "A_f": 0.0, "A_ts": 88.0, "A_ts_r": 98.0, "A_ts_f": 0.0, "MIA": 30.0}


def numbers(place, values, seeds=1):
    """Stats of a place from method -> metric -> mean."""
    return {(*place, m, name): Stat(v, 0.0, seeds) for m, found in values.items() for name, v in found.items()}


def terminal_rows(text):
    """Method -> column -> entry; the last column's may be two words."""
    header, *rows = [line.split() for line in text.splitlines()[1:] if not line.startswith("(")]
    return {row[0]: dict(zip(header, [*row[1 : len(header)], " ".join(row[len(header) :])])) for row in rows}


def paper_table(folder, name, datasets=("Digit", "Fashion")):
    return tables.paper_table(summarise(read_cells(folder)), read_paper_values(), name, datasets)


def row_of(table, *first):
    """The entries of a markdown table's row by column title; `first` are its leading entries."""
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(line) for line in lines}) == 1, "rows of unequal length"
    (found,) = [line for line in lines if line[: len(first)] == list(first)]
    return dict(zip(lines[0], found))


@pytest.mark.parametrize("task, metrics", [("random10", RANDOM["CaMU"]), ("class0", CLASS)])
def test_a_table_of_the_first_run_fits_a_terminal(task, metrics):
    """With every metric at 100, which is widest, and a lost model."""
    place = ("cells", "OptDigits", task)
    full = dict.fromkeys([*metrics, "RMIA_AUC"], 100.0) | {"gap": 49.8, "ToW": 0.98, "time_s": 5.05, "ratio": 1.06}
    values = dict.fromkeys(METHODS, full) | {"SISA": full | {"A_r": 0.0}}
    lines = tables.terminal_table(numbers(place, values), place).splitlines()
    assert len(lines) == 2 + 9 and max(map(len, lines)) <= 80


def test_the_terminal_table_shows_the_means_of_the_summary(tmp_path):
    write_random(tmp_path)
    text = tables.terminal_table(summarise(read_cells(tmp_path)), PLACE)
    assert text.splitlines()[0] == "Digit, random10: 2 seeds, metrics in percent, time ÷ Retrain's 1.00 s"
    assert list(terminal_rows(text)) == ["Retrain", "NegGrad", "SCRUB", "CaMU"]
    assert terminal_rows(text)["CaMU"] == {
        "A_r": "98.50±0.50",
        "A_f": "97.00±1.00",
        "A_ts": "96.50±0.00",
        "MIA": "50.00±0.00",
        "gap": "0.50",
        "ToW": "0.98±0.00",
        "time": "1.00",
        "forgets": "more",
    }
    handmade = numbers(PLACE, {"CaMU": {"A_r": 12.345}})  # nothing is averaged but there
    assert terminal_rows(tables.terminal_table(handmade, PLACE))["CaMU"]["A_r"] in ("12.35", "12.34")


def test_how_a_method_forgets_beside_retrain():
    values = {
        "Retrain": {"A_r": 100, "A_f": 90},
        "NegGrad": {"A_r": 79.99, "A_f": 90},  # would forget as Retrain, but has lost its model
        "Boundary": {"A_r": 80, "A_f": 90.3},
        "T-S": {"A_r": 99, "A_f": 90.31},
        "SCRUB": {"A_r": 99, "A_f": 92.01},
        "SISA": {"A_r": 99, "A_f": 89},
        "Unroll": {"A_r": 99, "A_f": 87},
    }
    rows = terminal_rows(tables.terminal_table(numbers(PLACE, values), PLACE))
    assert {method: row["forgets"] for method, row in rows.items()} == {
        "Retrain": "-",
        "NegGrad": "model lost",
        "Boundary": "as Retrain",
        "T-S": "less",
        "SCRUB": "far less",
        "SISA": "more",
        "Unroll": "far more",
    }


def test_in_class_removal_the_test_samples_tell_how_a_method_forgets():
    values = {"Retrain": CLASS, "CaMU": CLASS | {"A_f": 1.0, "A_ts_f": 0.1}, "SISA": CLASS | {"A_ts_f": 60.0}}
    text = tables.terminal_table(numbers(PLACE, values), PLACE)
    assert text.count("as Retrain") == 1 and text.count("far less") == 1


def test_the_terminal_table_divides_no_times_of_unlike_conditions(tmp_path):
    metrics = {name: pair[0] for name, pair in RANDOM["CaMU"].items()}
    for method, conditions in {"Retrain": QUIET, "T-S": QUIET, "SCRUB": QUIET | {"jobs": 2}, "CaMU": None}.items():
        content = {"metrics": metrics, "time_s": 8.0, "conditions": conditions}
        write_cell(tmp_path, "cells", "Digit", "random10", method, 0, **content)
    rows = terminal_rows(tables.terminal_table(summarise(read_cells(tmp_path)), PLACE))
    assert {m: row["time"] for m, row in rows.items()} == {"Retrain": "1.00", "T-S": "1.00", "SCRUB": "-", "CaMU": "-"}


def test_what_an_attack_says_of_too_few_samples_is_called_noise():
    both = {"A_r": 99.0, "A_f": 90.0, "MIA": 50.0, "RMIA_AUC": 50.0}
    values = {"Retrain": both, "CaMU": both | {"gap": 12.5}}
    enough = numbers(PLACE, {m: found | {"attacked": 50} for m, found in values.items()})
    stats = numbers(PLACE, {m: found | {"attacked": 2} for m, found in values.items()})
    text = tables.terminal_table(stats, PLACE)
    shown = terminal_rows(text)["CaMU"]
    assert (shown["A_r"], shown["MIA"], shown["RMIA"], shown["gap"]) == ("99.00", "noise", "noise", "noise")
    assert "(MIA attacks 2 samples: what it says of so few is noise, ± 25 points)" in text
    assert tables.entries(stats, PLACE, "gap", ["Retrain", "CaMU"]) == ["–", "noise"]
    assert "noise" not in tables.terminal_table(enough, PLACE)
    assert tables.entries(enough, PLACE, "gap", ["Retrain", "CaMU"]) == ["–", "12.50 (1)"]


def test_methods_that_take_longer_than_retrain_are_named():
    ratios = {"Retrain": 1.0, "Original": 9.0, "SCRUB": 1.5, "CaMU": 2.12}
    values = {m: {"A_r": 99.0, "A_f": 90.0, "time_s": 5.0, "ratio": ratio} for m, ratio in ratios.items()}
    lines = tables.terminal_table(numbers(PLACE, values), PLACE).splitlines()
    assert lines[-1] == "(Retrain is faster: CaMU took 2.1 times as long)"


def test_without_retrain_the_terminal_table_has_seconds_and_no_comparison(tmp_path):
    write_random(tmp_path, methods={"CaMU": RANDOM["CaMU"]})
    text = tables.terminal_table(summarise(read_cells(tmp_path)), PLACE)
    (row,) = terminal_rows(text).values()
    assert row["time_s"] == "1.00±0.00" and not {"gap", "time", "forgets"} & row.keys() and "÷" not in text


def test_terminal_tables_of_the_other_studies(tmp_path):
    write_random(tmp_path)
    for name in ABLATION:
        metrics = {metric: pair[0] for metric, pair in RANDOM["NegGrad"].items()}
        write_cell(tmp_path, "ablation", "Digit", "random10", name, 0, metrics=metrics)
    write_cell(tmp_path, "relearn", "Digit", "random10", "CaMU", 0, A_r=[90.0, 92.5], A_f=[90.0, 90.0])
    stats = summarise(read_cells(tmp_path))
    text = tables.terminal_table(stats, ("ablation", *PLACE[1:]))
    assert text.startswith("Digit, random10: ablation, 1 seed, metrics in percent")
    assert list(terminal_rows(text)) == ["Retrain", *ABLATION, "CaMU"]
    text = tables.terminal_table(stats, ("relearn", *PLACE[1:]))
    assert text.startswith("Digit, random10: relearn, 1 seed, the most that accuracies moved, in points")
    assert list(terminal_rows(text)["CaMU"].values())[:2] == ["2.50", "0.00"]


def test_a_table_beside_the_papers_values(tmp_path):
    write_random(tmp_path)
    table = paper_table(tmp_path, "Table 2")
    ours = row_of(table, "Digit", "random10", "A_r ≈", "here")
    assert ours["Retrain"] == "99.00 ± 1.00 (2)"
    assert ours["CaMU"] == "**98.50 ± 0.50** (2)" and ours["SCRUB"] == "**99.50 ± 0.00** (2)"
    assert ours["NegGrad"] == "<ins>97.00 ± 0.00</ins> (2)" and ours["SISA"] == "missing"
    assert row_of(table, "Digit", "random10", "A_ts ↑", "here")["NegGrad"].startswith("**97.50")
    paper = row_of(table, "Digit", "random10", "A_r ≈", "paper")
    assert paper["Retrain"] == "99.59" and {paper[m] for m in METHODS if m != "Retrain"} == {"n/a"}
    gaps = row_of(table, "Digit", "random10", "gap ↓", "here")
    assert gaps["Retrain"] == "–" and gaps["CaMU"] == "**0.50** (2)" and gaps["SCRUB"] == "<ins>1.12</ins> (2)"
    assert "Fashion" not in table and paper_table(tmp_path, "Table 3") == ""


def test_one_seed_has_no_std_and_only_the_papers_metrics_have_its_line(tmp_path):
    for method in ("Retrain", "CaMU"):
        write_cell(tmp_path, "cells", "Digit", "class0", method, 0, metrics=CLASS, time_s=1.0)
    table = paper_table(tmp_path, "Table 3")
    assert row_of(table, "Digit", "class0", "A_ts_f ↓", "paper")["CaMU"] == "0.00"
    assert row_of(table, "Digit", "class0", "A_f ≈", "here")["CaMU"] == "0.00 (1)"
    assert "±" not in table and "A_f ≈ | paper" not in table and "time" not in table


def test_a_lost_model_is_struck_out_and_never_marked(tmp_path):
    """NegGrad would be best in A_ts_f and second best in MIA."""
    values = {"Retrain": CLASS, "NegGrad": CLASS | {"A_r": 0.0, "MIA": 30.5}, "CaMU": CLASS | {"A_ts_f": 1.0}}
    values |= {"SISA": CLASS | {"A_ts_f": 2.0, "MIA": 31.0}, "T-S": CLASS | {"A_ts_f": 3.0, "MIA": 32.0}}
    for method, metrics in values.items():
        write_cell(tmp_path, "cells", "Digit", "class0", method, 0, metrics=metrics)
    ours = row_of(paper_table(tmp_path, "Table 3"), "Digit", "class0", "A_ts_f ↓", "here")
    assert ours["NegGrad"] == "<del>0.00 (1)</del>"
    assert ours["CaMU"] == "**1.00** (1)" and ours["SISA"] == "<ins>2.00</ins> (1)" and ours["T-S"] == "3.00 (1)"
    glance = tables.glance_table(summarise(read_cells(tmp_path)), read_paper_values(), [("Digit", "class0")])
    assert row_of(glance, "Digit", "class0")["NegGrad"].startswith("<del>")
    attack = row_of(paper_table(tmp_path, "Table 4"), "Digit", "class0", "MIA ≈", "here")
    assert attack["NegGrad"] == "<del>30.50 (1)</del>" and attack["SISA"] == "<ins>31.00</ins> (1)"


def test_a_method_that_forgets_nothing_is_never_marked(tmp_path):
    values = {"Retrain": CLASS, "Original": CLASS | {"A_f": 99.0}, "Boundary": CLASS | {"A_f": 98.0, "A_ts_r": 100.0}}
    values |= {"CaMU": CLASS | {"A_ts_r": 90.0}, "SISA": CLASS | {"A_ts_r": 80.0}}
    for method, metrics in values.items():
        write_cell(tmp_path, "cells", "Digit", "class0", method, 0, metrics=metrics)
    ours = row_of(paper_table(tmp_path, "Table 3"), "Digit", "class0", "A_ts_r ↑", "here")
    marked = {method: ours[method] for method in ("Boundary", "CaMU", "SISA")}
    assert marked == {"Boundary": "100.00 (1)", "CaMU": "**90.00** (1)", "SISA": "<ins>80.00</ins> (1)"}


def test_the_mean_mia_difference_says_over_how_many_and_is_compared_only_over_as_many(tmp_path):
    write_random(tmp_path)
    write_random(tmp_path, "Fashion", methods={m: RANDOM[m] for m in ("Retrain", "SCRUB", "NegGrad")})
    table = paper_table(tmp_path, "Table 4")
    ours = row_of(table, "all", "all", "MIA_diff ↓", "here")
    assert ours["SCRUB"] == "**2.00** (2)" and ours["NegGrad"] == "<ins>3.00</ins> (2)"
    assert ours["CaMU"] == "0.00 (1)"  # over fewer: not compared
    assert ours["Unroll"] == "n/a" and ours["Retrain"] == "–"
    lost = {m: RANDOM[m] | ({"A_r": (0, 0)} if m == "SCRUB" else {}) for m in ("Retrain", "SCRUB", "NegGrad")}
    write_random(tmp_path, "Fashion", methods=lost)
    marked = row_of(paper_table(tmp_path, "Table 4"), "all", "all", "MIA_diff ↓", "here")
    assert marked["NegGrad"] == "3.00 (2)" and marked["SCRUB"] == "2.00 (2)"  # with one left to compare, none is marked
    printed = row_of(table, "all", "all", "MIA_diff ↓", "paper, as printed")
    assert printed["SISA"] == "10.23" and printed["CaMU"] == "n/a"
    assert row_of(table, "all", "all", "MIA_diff ↓", "paper, from its entries")["CaMU"] == "4.22"
    assert row_of(table, "Digit", "random10", "MIA ≈", "paper")["Retrain"] == "49.58"


def test_the_time_table_has_the_papers_ratios_and_no_times_of_the_plain_run(tmp_path):
    write_random(tmp_path)
    assert paper_table(tmp_path, "Table 5") == ""
    for method, seconds in {"Retrain": 20.0, "NegGrad": 5.0, "CaMU": 2.0}.items():
        content = {"metrics": {}, "time_s": seconds, "conditions": QUIET}
        write_cell(tmp_path, "efficiency", "Digit", "random10", method, 0, **content)
    table = paper_table(tmp_path, "Table 5")
    assert row_of(table, "Digit", "random10", "time [s] ↓", "here")["CaMU"] == "**2.00** (1)"
    ratio = row_of(table, "Digit", "random10", "time ÷ Retrain's ↓", "here")
    assert (ratio["Retrain"], ratio["CaMU"], ratio["NegGrad"]) == ("1.00 (1)", "**0.10** (1)", "<ins>0.25</ins> (1)")
    assert row_of(table, "Digit", "random10", "time [s] ↓", "paper")["NegGrad"] == "19.77"
    assert row_of(table, "Digit", "random10", "time ÷ Retrain's ↓", "paper")["NegGrad"] == "0.72"


def test_original_stands_beside_the_methods_and_is_never_marked(tmp_path):
    write_random(tmp_path, methods=RANDOM | {"Original": RANDOM["Retrain"]})
    ours = row_of(paper_table(tmp_path, "Table 2"), "Digit", "random10", "A_r ≈", "here")
    assert list(ours)[4:6] == ["Retrain", "Original"] and ours["Original"] == "99.00 ± 1.00 (2)"
    assert ours["CaMU"].startswith("**") and ours["SCRUB"].startswith("**")  # both half a point from Retrain
    rows = terminal_rows(tables.terminal_table(summarise(read_cells(tmp_path)), PLACE))
    assert list(rows)[:2] == ["Retrain", "Original"] and rows["Original"]["gap"] == "0.00"


def test_the_audit_has_a_table_and_what_is_missing_for_it_is_said(tmp_path):
    write_random(tmp_path, methods={name: RANDOM[name] for name in ("Retrain", "CaMU")})
    others = {"Floor": RANDOM["Retrain"], "Original": RANDOM["SCRUB"] | {"A_f": (100, 100)}, "SCRUB": RANDOM["SCRUB"]}
    write_random(tmp_path, methods=others)
    for method, auc, js in (
        ("Retrain", 48.0, None),
        ("Floor", 49.0, 0.01),
        ("Original", 60.0, 0.3),
        ("CaMU", 55.0, 0.2),
    ):
        found = {"RMIA_AUC": auc} | ({} if js is None else {"JS_f": js, "churn": 1.0})
        write_audit(tmp_path, "Digit", "random10", method, 0, **found)
    write_audit(tmp_path, "Digit", "random10", "SCRUB", 0, RMIA_AUC=50.0, JS_f=0.4, churn=2.0)
    stats = summarise(read_cells(tmp_path))
    table = tables.audit_table(stats, [("Digit", "random10"), ("Digit", "class0")])
    auc = row_of(table, "Digit", "random10", "RMIA_AUC ≈", "here")
    assert list(auc)[4:7] == ["Retrain", "Floor", "Original"] and auc["SCRUB"] == "**50.00** (1)"
    assert (auc["Original"], auc["CaMU"], auc["Floor"]) == ("60.00 (1)", "<ins>55.00</ins> (1)", "49.00 (1)")
    js = row_of(table, "Digit", "random10", "JS_f ↓", "here")
    assert (js["Retrain"], js["Floor"], js["CaMU"], js["T-S"]) == ("–", "0.010 (1)", "**0.200** (1)", "missing")
    assert row_of(table, "Digit", "random10", "ToW ↑", "here")["Retrain"] == "–"
    text = tables.terminal_table(stats, PLACE)
    assert terminal_rows(text)["Original"]["RMIA"] == "60.00" and "(no" not in text
    write_random(tmp_path / "bare", methods={"CaMU": RANDOM["CaMU"]})
    last = tables.terminal_table(summarise(read_cells(tmp_path / "bare")), PLACE).splitlines()[-1]
    assert last == "(no Retrain, so no gap, ToW, JS_f and churn; no SISA, whose shards RMIA compares with)"


def test_the_ablation_table_has_retrain_and_camu_of_the_plain_run(tmp_path):
    write_random(tmp_path)
    write_random(tmp_path, tree="ablation", methods={name: RANDOM["NegGrad"] for name in ABLATION})
    table = paper_table(tmp_path, "Table 6")
    ours = row_of(table, "Digit", "random10", "A_r ≈", "here")
    assert list(ours)[4:] == ["Retrain", "Original", *ABLATION, "CaMU"]
    assert ours["Retrain"] == "99.00 ± 1.00 (2)" and ours["CaMU"] == "**98.50 ± 0.50** (2)"
    assert ours["Finetune"] == "<ins>97.00 ± 0.00</ins> (2)"
    assert row_of(table, "Digit", "random10", "gap ↓", "here")["CaMU"] == "**0.50** (2)"


def test_the_paper_at_a_glance(tmp_path):
    write_random(tmp_path)
    for method, seconds in {"Retrain": 20.0, "CaMU": 2.0}.items():
        content = {"metrics": {}, "time_s": seconds, "conditions": QUIET}
        write_cell(tmp_path, "efficiency", "Digit", "random10", method, 0, **content)
    stats, paper = summarise(read_cells(tmp_path)), read_paper_values()
    places = [("Digit", "random10"), ("Own", "class7")]
    table = tables.glance_table(stats | numbers(("cells", *places[1]), {"CaMU": {"gap": 3.0}}), paper, places)
    ours = row_of(table, "Digit", "random10")
    assert (ours["CaMU"], ours["NegGrad"], ours["SISA"]) == ("**0.50** (2)", "2.12 (2)", "missing")
    assert ours["CaMU's time"] == "0.10" and "Retrain" not in ours
    off = {"A_r": 99.59 - 99, "A_f": 98.79 - 98, "A_ts": 98.93 - 97, "MIA": 50 - 49.58}
    assert ours["Retrain's largest difference to the paper"] == f"{max(off.values()):.2f} ({max(off, key=off.get)})"
    other = row_of(table, "Own", "class7")
    assert (other["CaMU"], other["CaMU's time"], other["Retrain's largest difference to the paper"]) == (
        "3.00 (1)",
        "–",
        "–",
    )


def test_the_table_of_claims_gives_every_verdict(tmp_path):
    write_random(tmp_path)
    for task, a_ts_f in (("class0", 0.0), ("class1", 5.0)):
        write_cell(tmp_path, "cells", "Digit", task, "CaMU", 0, metrics=CLASS | {"A_ts_f": a_ts_f})
    table = tables.claims_table(read_cells(tmp_path))
    assert row_of(table, "class0: A_ts_f is 0", "Digit class0 (1)")["Here"] == "holds"
    assert row_of(table, "class1, class2: A_ts_f is 0", "Digit class1 (1)")["Here"] == "**does not**"
    assert row_of(table, "random10: A_f closest to Retrain's", "Digit random10")["Here"] == "not measured"


def test_an_entry_has_a_std_only_of_several_seeds():
    assert tables.text(Stat(1.234, 0.0, 1)) == "1.23" and tables.text(Stat(1.234, 0.0, 2)) == "1.23 ± 0.00"
    assert tables.text(Stat(1.234, math.nan, 2)) == "1.23" and tables.text(None) == "missing"
