import json
import math
import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.colors import to_hex

import report
import summary
from config import ABLATION, UserError

ROOT = Path(__file__).parent.parent
QUIET = {"device": "a processor", "threads": 1, "jobs": 1}
# Values of (seed 0, seed 1): Retrain 99, 98, 97, 50 on average.
RANDOM = {
    "Retrain": {"A_r": (98, 100), "A_f": (98, 98), "A_ts": (97, 97), "MIA": (49, 51)},
    "NegGrad": {"A_r": (97, 97), "A_f": (95, 95), "A_ts": (97.5, 97.5), "MIA": (53, 53)},
    "SCRUB": {"A_r": (99.5, 99.5), "A_f": (99, 99), "A_ts": (96, 96), "MIA": (52, 52)},
    "CaMU": {"A_r": (98, 99), "A_f": (96, 98), "A_ts": (96.5, 96.5), "MIA": (50, 50)},
}
SECONDS = {"Retrain": 20.0, "NegGrad": 5.0, "CaMU": 2.0}


def write(folder, tree, dataset, task, method, seed, **content):
    path = folder / tree / dataset / task / method / f"seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {"method": method, "seed": seed, "device": "cpu", "threads": 1, "batch_size": 32}
    names = {"dataset": dataset, "task": task, "method": method, "seed": seed}
    path.write_text(json.dumps({**names, "config": config, "versions": {"torch": "2"}} | content))


def write_random(folder, dataset="Digit", tree="cells", methods=RANDOM):
    for method, values in methods.items():
        for seed in (0, 1):
            metrics = {name: pair[seed] for name, pair in values.items()}
            write(folder, tree, dataset, "random10", method, seed, metrics=metrics, time_s=1.0, conditions=QUIET)


def write_times(folder, dataset="Digit", task="random10", seconds=SECONDS, conditions=QUIET):
    for method, value in seconds.items():
        write(folder, "efficiency", dataset, task, method, 0, metrics={}, time_s=value, conditions=conditions)


def write_relearning(folder):
    for seed, last in ((0, 95.0), (1, 97.0)):
        write(folder, "relearn", "Digit", "random10", "CaMU", seed, A_r=[94.0, 93.0, last], A_f=[90.0, 90.5, 91.0])


@pytest.fixture
def folder(tmp_path):
    """Cells of Digit, random10, made by hand."""
    write_random(tmp_path)
    write_times(tmp_path)
    write_relearning(tmp_path)
    return tmp_path


@pytest.fixture
def cells(folder):
    return summary.read_cells(folder)


def row_of(table, *first):
    """The entries of a table's row by column title; `first` are its leading columns."""
    lines = [[part.strip() for part in line.strip("| ").split(" | ")] for line in table.splitlines()]
    header = lines[0]
    (found,) = [line for line in lines if line[: len(first)] == list(first)]
    return dict(zip(header, found))


def text_of(folder):
    cells = summary.read_cells(folder)
    return report.report(cells, set(report.draw_figures(cells)), "results")


def test_means_stds_seeds_and_gap(cells):
    stats = summary.summarise(cells)
    place = ("cells", "Digit", "random10")
    assert stats[*place, "Retrain", "A_r"] == (99.0, 1.0, 2)  # ddof 0: 1, not 1.41
    assert stats[*place, "CaMU", "A_f"] == (97.0, 1.0, 2)
    gap, std, seeds = stats[*place, "NegGrad", "gap"]
    assert gap == pytest.approx((2 + 3 + 0.5 + 3) / 4) and math.isnan(std) and seeds == 2
    assert (*place, "Retrain", "gap") not in stats


def test_gap_is_missing_without_retrain_or_a_metric(tmp_path):
    write_random(tmp_path, methods={"CaMU": RANDOM["CaMU"]})
    partial = {name: pair for name, pair in RANDOM["SCRUB"].items() if name != "MIA"}
    write_random(tmp_path, "Fashion", methods={"Retrain": RANDOM["Retrain"], "SCRUB": partial})
    assert not [key for key in summary.summarise(summary.read_cells(tmp_path)) if key[4] == "gap"]


def test_gap_counts_the_fewest_seeds(tmp_path):
    write_random(tmp_path)
    write(tmp_path, "cells", "Digit", "random10", "CaMU", 2, metrics={"A_r": 1, "A_f": 1, "A_ts": 1, "MIA": 1})
    stats = summary.summarise(summary.read_cells(tmp_path))
    assert stats["cells", "Digit", "random10", "CaMU", "A_r"][2] == 3
    assert stats["cells", "Digit", "random10", "CaMU", "gap"][2] == 2


@pytest.mark.parametrize(
    "metric, expected",
    [
        ("A_r", {"a": 2, "b": 1, "c": 2}),  # closest to Retrain's 90, from above or below
        ("MIA", {"a": 2, "b": 1, "c": 2}),
        ("A_ts", {"c": 1, "b": 2}),
        ("A_ts_r", {"c": 1, "b": 2}),
        ("A_ts_f", {"a": 1, "b": 2}),
        ("time_s", {"a": 1, "b": 2}),
    ],
)
def test_marks_have_each_metrics_direction(metric, expected):
    assert summary.rank({"Retrain": 90.0, "a": 88.0, "b": 91.0, "c": 92.0}, metric) == expected


def test_marks_leave_retrain_out_and_need_something_to_compare():
    assert summary.rank({"Retrain": 0.0, "a": 1.0, "b": 2.0}, "A_ts_f") == {"a": 1, "b": 2}
    assert summary.rank({"Retrain": 0.0, "a": 1.0}, "A_ts_f") == {}
    assert summary.rank({"a": 1.0, "b": 2.0}, "A_r") == {}  # closest to what is not there
    assert summary.rank({"a": 1.001, "b": 1.004, "c": 3.0}, "time_s") == {"a": 1, "b": 1, "c": 2}


def test_effectiveness_table_beside_the_paper(cells):
    table = report.effectiveness_table(summary.summarise(cells), summary.read_paper_values(), 2)
    ours = row_of(table, "Digit", "A_r ≈", "here")
    assert ours["Retrain"] == "99.00 ± 1.00 (2)"
    assert ours["CaMU"] == "**98.50 ± 0.50** (2)" and ours["SCRUB"] == "**99.50 ± 0.00** (2)"
    assert ours["NegGrad"] == "<ins>97.00 ± 0.00</ins> (2)"
    assert ours["SISA"] == "missing"
    assert row_of(table, "Digit", "A_ts ↑", "here")["NegGrad"].startswith("**97.50")
    paper = row_of(table, "Digit", "A_r ≈", "paper")
    assert paper["Retrain"] == "99.59" and {paper[m] for m in report.METHODS if m != "Retrain"} == {"n/a"}
    gaps = row_of(table, "Digit", "gap ↓", "here")
    assert gaps["Retrain"] == "–" and gaps["CaMU"] == "**0.50** (2)" and gaps["SCRUB"] == "<ins>1.12</ins> (2)"
    assert set(row_of(table, "CIFAR100", "A_f ≈", "here").values()) == {"CIFAR100", "A_f ≈", "here", "missing"}


def test_class_table_has_the_papers_metrics_and_the_others_without_a_paper_line(tmp_path):
    metrics = {"A_r": 99.0, "A_f": 0.0, "A_ts": 88.0, "A_ts_r": 98.0, "A_ts_f": 0.0, "MIA": 30.0}
    for method in ("Retrain", "CaMU"):
        write(tmp_path, "cells", "Digit", "class0", method, 0, metrics=metrics, time_s=1.0)
    stats, paper = summary.summarise(summary.read_cells(tmp_path)), summary.read_paper_values()
    table = report.effectiveness_table(stats, paper, 3)
    assert row_of(table, "Digit", "A_ts_f ↓", "paper")["CaMU"] == "0.00"
    assert row_of(table, "Digit", "A_f ≈", "here")["CaMU"] == "0.00 ± 0.00 (1)"
    assert "A_f ≈ | paper" not in table
    assert "A_f ≈" not in report.effectiveness_table(stats, paper, 3, extra=False)


def test_mia_difference_says_over_how_many(tmp_path):
    write_random(tmp_path)
    write_random(tmp_path, "Fashion", methods={m: RANDOM[m] for m in ("Retrain", "SCRUB", "NegGrad")})
    stats = summary.summarise(summary.read_cells(tmp_path))
    pairs = [("Digit", "random10"), ("Fashion", "random10"), ("CIFAR10", "random10")]
    assert summary.mia_difference(stats, pairs) == {"NegGrad": (3.0, 2), "SCRUB": (2.0, 2), "CaMU": (0.0, 1)}
    table = report.mia_table(stats, summary.read_paper_values(), 4)
    ours = row_of(table, "**MIA_diff ↓**", "all", "here")
    assert ours["SCRUB"] == "**2.00** (2 of 8)" and ours["NegGrad"] == "<ins>3.00</ins> (2 of 8)"
    assert ours["CaMU"] == "0.00 (1 of 8)"  # over fewer: not compared
    assert ours["Unroll"] == "missing" and ours["Retrain"] == "–"
    printed = row_of(table, "**MIA_diff ↓**", "all", "paper, as printed")
    assert printed["SISA"] == "10.23" and printed["CaMU"] == "n/a"
    assert row_of(table, "**MIA_diff ↓**", "all", "paper, from its entries")["CaMU"] == "4.22"
    assert row_of(table, "random10", "Digit", "paper")["Retrain"] == "49.58"


def test_differences_to_retrain_are_over_common_seeds(tmp_path):
    """A second seed of CaMU alone, of another forget set and time, moves neither MIA_diff, nor gap, nor time ratio."""
    for seed, method, mia, seconds in ((0, "Retrain", 50, 8.0), (0, "CaMU", 49, 2.0), (1, "CaMU", 30, 6.0)):
        metrics = {"A_r": 90, "A_f": 80, "A_ts": 85, "MIA": mia}
        for tree in ("cells", "efficiency"):
            content = {"metrics": metrics, "time_s": seconds, "conditions": QUIET}
            write(tmp_path, tree, "Digit", "random10", method, seed, **content)
    cells = summary.read_cells(tmp_path)
    stats = summary.summarise(cells)
    assert summary.mia_difference(stats, [("Digit", "random10")]) == {"CaMU": (1.0, 1)}
    assert stats["cells", "Digit", "random10", "CaMU", "gap"][0] == 0.25
    ((_, camu),) = [item for item in summary.summarise_times(cells).items() if item[0][3] == "CaMU"]
    assert camu == (4.0, 2.0, 2, 0.25)


def test_times_are_divided_only_under_the_same_conditions(folder):
    other = {"device": "a graphics card", "threads": 2, "jobs": 1}
    write_times(folder, seconds={"Unroll": 0.5, "SISA": 0.7}, conditions=other)
    write_times(folder, "Fashion", conditions=None)
    times = summary.summarise_times(summary.read_cells(folder))
    here, there = "a processor, 1 thread a cell, 1 job at a time", "a graphics card, 2 threads a cell, 1 job at a time"
    assert times["Digit", "random10", here, "CaMU"] == (2.0, 0.0, 1, 0.1)
    assert math.isnan(times["Digit", "random10", there, "Unroll"][3])
    assert math.isnan(times["Fashion", "random10", "", "CaMU"][3])  # conditions not recorded
    table = report.time_table(times, summary.read_paper_values(), 5)
    ours = row_of(table, "random10", "Digit", "÷ Retrain (C)")
    assert ours["CaMU"] == "0.100" and ours["NegGrad"] == "0.250" and ours["Unroll"] == "missing"
    assert row_of(table, "random10", "Digit", "here (C)")["CaMU"] == "**2.00 ± 0.00** (1)"
    assert row_of(table, "random10", "Digit", "÷ Retrain (B)")["Unroll"] == "missing"
    assert f"B: {there}; C: {here}" in table
    assert row_of(table, "random10", "Digit", "paper")["NegGrad"] == "19.77"
    assert row_of(table, "random10", "Digit", "paper, ÷ Retrain")["NegGrad"] == "0.722"
    assert row_of(table, "random10", "CIFAR10", "here")["CaMU"] == "missing"


def test_the_papers_time_table_does_not_take_the_plain_runs_times(tmp_path):
    write_random(tmp_path)
    text = text_of(tmp_path)
    assert "## Table 5: time in seconds (random10, class0)\n\nMissing" in text
    assert "Missing: Gap against time." in text


def test_ablation_takes_retrain_and_camu_from_the_plain_run(folder):
    write_random(folder, tree="ablation", methods={name: RANDOM["NegGrad"] for name in ABLATION})
    stats = summary.summarise(summary.read_cells(folder))
    table = report.ablation_table(stats, ["Digit"], *report.ABLATION_TABLES[6])
    ours = row_of(table, "Digit", "A_r ≈", "here")
    assert list(ours)[3:] == ["Retrain", "Finetune", "Remain-alignment", "Counterfactual", "CaMU"]
    assert ours["Retrain"] == "99.00 ± 1.00 (2)" and ours["CaMU"] == "**98.50 ± 0.50** (2)"
    assert ours["Finetune"] == "<ins>97.00 ± 0.00</ins> (2)"


def test_relearning_counts_from_before(cells):
    curves = summary.relearning_curves(cells)
    found = curves[curves.metric == "A_r"].sort_values("epoch")
    assert found["mean"].tolist() == [0, -1, 2] and found["std"].tolist() == [0, 0, 1] and set(found.seeds) == {2}
    assert summary.relearning_extremes(cells[cells.task == "random10"])["Digit", "CaMU", "A_r"] == (2.0, 1.0, 2)


def test_relearning_figure_shows_the_curves(cells):
    figure = report.draw_relearning(summary.relearning_curves(cells), "random10", ["Digit", "Fashion"])
    upper, lower = figure.axes  # one data set has cells
    (line,) = upper.lines
    assert line.get_ydata().tolist() == [0, -1, 2] and line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_color() == report.COLOURS["CaMU"] and line.get_marker() == report.MARKERS["CaMU"]
    assert lower.lines[0].get_ydata().tolist() == [0, 0.5, 1]
    assert "Digit (2 seeds)" in upper.get_title() and "missing: Retrain, NegGrad" in upper.get_title()
    alone = report.draw_relearning(summary.relearning_curves(cells[cells.seed == 0]), "random10", ["Digit"])
    assert "Digit (1 seed)" in alone.axes[0].get_title()
    assert report.draw_relearning(summary.relearning_curves(cells), "class0", ["Digit"]) is None


def test_gap_time_figure_shows_gap_and_ratio(cells):
    points = summary.gap_and_time(cells)
    assert set(points.method) == {"NegGrad", "CaMU"}
    axis = report.draw_gap_time(points, "random10", ["Digit"]).axes[0]
    shown = {
        line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in axis.lines if len(line.get_xdata()) < 2
    }
    assert shown == {"NegGrad": (0.25, pytest.approx(2.125)), "CaMU": (0.1, pytest.approx(0.5))}
    assert "SCRUB" in axis.get_title()  # it has a gap but no time: named as missing


def test_bars_show_differences_to_retrain_stds_and_what_is_missing(cells):
    (axis,) = report.draw_bars(summary.summarise(cells), "random10", ["Digit"]).axes
    bars = {container.get_label(): container for container in axis.containers if hasattr(container, "patches")}
    assert [bar.get_height() for bar in bars["CaMU"]] == [-0.5, -1, -0.5, 0]
    assert to_hex(bars["CaMU"][0].get_facecolor()).upper() == report.COLOURS["CaMU"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["A_r\n99.0", "A_f\n98.0", "A_ts\n97.0", "MIA\n50.0"]
    low, high = bars["Retrain"].errorbar.lines[2][0].get_segments()[0][:, 1]
    assert (low, high) == (-1, 1)
    assert (
        len(bars["SISA"]) == 0 and sum(len(line.get_xdata()) for line in axis.lines if line.get_marker() == "x") == 16
    )


def test_every_method_has_its_own_colour_and_marker():
    for table in (report.COLOURS, report.MARKERS):
        assert list(table) == list(report.METHODS) and len(set(table.values())) == len(table)


def test_report_has_every_section_and_links_what_was_drawn(folder):
    text = text_of(folder)
    for number in range(2, 14):
        assert f"## Table {number}: " in text
    assert "## Figure 4: relearning, random removal of 10 % (random10)\n\n![" in text
    assert "## Figure 5: relearning, removal of class 0 (class0)\n\nMissing" in text
    for name in ("relearning", "bars", "gap-time"):
        assert f"(figures/{name}-random10.png)" in text and f"(figures/{name}-random10.svg)" in text
    assert "python main.py --dataset Digit --tasks random10 --methods METHOD --seeds SEED --threads 1" in text
    assert "--study relearn" in text and "--study efficiency" in text
    assert "Missing altogether: Fashion, CIFAR10, CIFAR100." in text


def test_other_data_sets_have_a_section_without_the_paper(tmp_path):
    write_random(tmp_path, "OptDigits")
    text = text_of(tmp_path)
    section = text.split("## Not in the paper: OptDigits")[1].split("\n## ")[0]
    assert "98.50 ± 0.50** (2)" in section and "paper" not in section
    assert "during the plain run" in section
    assert "(figures/gap-time-random10-other.png)" in text


def test_command_names_changed_hyperparameters(tmp_path):
    config = {"method": "CaMU", "threads": 2, "device": "cuda", "batch_size": 64}
    row = {"epochs": 10, "lr_ce": 1e-4, "lr_kl": 4e-4, "repeats": 1}
    for tree, method in (("cells", "CaMU"), ("ablation", "Finetune")):
        content = {"metrics": {"A_r": 1.0}, "config": {**config, "hyperparameters": row}}
        write(tmp_path, tree, "Digit", "random10", method, 3, **content)
    plain, ablation = report.commands(summary.read_cells(tmp_path), "/somewhere/results").splitlines()
    tail = "--threads 2 --device cuda --batch-size 64 --override CaMU.lr_ce=0.0001 --results-dir results`"
    assert plain == f"- `python main.py --dataset Digit --tasks random10 --methods CaMU --seeds 3 {tail}"
    assert ablation == f"- `python main.py --dataset Digit --tasks random10 --seeds 3 --study ablation {tail}"


def test_unlike_configurations_in_one_entry_are_named(folder):
    assert "Not one configuration" not in text_of(folder)
    content = {"metrics": {"A_r": 1.0}, "config": {"threads": 2, "device": "cpu"}}
    write(folder, "cells", "Digit", "random10", "CaMU", 7, **content)
    found = report.mixed_configurations(summary.read_cells(folder))
    assert found == ["cells/Digit/random10/CaMU", "cells/Digit/random10"]


def test_methods_on_unlike_pre_unlearning_models_are_named(folder):
    for seed, model in enumerate("aa"):
        content = {"metrics": {"A_r": 1.0}, "config": {"pretrained": model, "seed": seed, "device": "cpu"}}
        write(folder, "cells", "Digit", "random10", "CaMU", seed, **content)
    assert report.mixed_configurations(summary.read_cells(folder)) == ["cells/Digit/random10"]


def test_cells_of_one_table_from_unlike_machines_are_named(folder):
    config = {"seed": 7, "device": "cpu"}
    assert "Made with more than one" not in report.made_with(summary.read_cells(folder))
    write(folder, "cells", "Digit", "random10", "CaMU", 7, metrics={"A_r": 1.0}, config=config, versions={"torch": "3"})
    text = report.made_with(summary.read_cells(folder))
    assert "- torch 2\n- torch 3\n" in text and "**Made with more than one of these**: cells/Digit/random10. " in text


def test_readme_section(folder):
    text = report.readme_section(folder)
    assert "**98.50 ± 0.50** (2)" in text and "99.59" in text
    assert "Missing: Fashion, CIFAR10, CIFAR100." in text
    assert "**Table 3: removal of class 0 (class0)**\n\nMissing: Digit, Fashion, CIFAR10, CIFAR100." in text
    assert (
        "figures/relearning-random10.png)" in text
        and "Figure 5: relearning, removal of class 0 (class0): missing" in text
    )
    assert row_of(text[text.index("| Task") :], "random10", "Digit", "÷ Retrain (A)")["CaMU"] == "0.100"


def test_the_results_section_of_a_file_is_written_between_its_marks(folder):
    first, last = report.README_MARKS
    path = folder / "README.md"
    path.write_text(f"before\n{first}\nold\n{last}\nafter\n")
    report.main(report.Settings(str(folder), readme=str(path)))
    assert path.read_text() == f"before\n{first}\n\n{report.readme_section(folder)}\n{last}\nafter\n"
    path.write_text("no marks")
    with pytest.raises(UserError, match=str(path)):
        report.main(report.Settings(str(folder), readme=str(path)))
    with pytest.raises(UserError, match="none"):
        report.write_readme(folder / "none.md", "text")
    assert path.read_text() == "no marks"


def test_readme_and_report_show_the_committed_cells(monkeypatch):
    """python report.py --results-dir results --readme README.md puts it right."""
    monkeypatch.chdir(ROOT)
    first, last = report.README_MARKS
    assert f"{first}\n\n{report.readme_section('results')}\n{last}" in Path("README.md").read_text()
    drawn = {path.stem for path in Path("results/figures").glob("*.png")}
    cells = summary.read_cells("results")
    assert drawn == set(report.draw_figures(cells))
    assert report.report(cells, drawn) == Path("results/report.md").read_text()


def test_files_are_the_same_after_a_rerun(tmp_path):
    write_relearning(tmp_path)
    settings = report.Settings(str(tmp_path))
    report.main(settings)
    names = ("report.md", "figures/relearning-random10.png", "figures/relearning-random10.svg")
    first = [(tmp_path / name).read_bytes() for name in names]
    report.main(settings)
    assert [(tmp_path / name).read_bytes() for name in names] == first


@pytest.mark.parametrize("damaged", [False, True])
def test_no_sound_cells_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, damaged):
    if damaged:
        write_times(tmp_path)
        next(tmp_path.rglob("seed0.json")).write_text("{")
    with pytest.raises(UserError):
        report.readme_section(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "--results-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "report.py"), run_name="__main__")
    found = capsys.readouterr().err
    assert stopped.value.code == 2 and found.startswith("error: ") and found.count("\n") == 1
    assert not (tmp_path / "report.md").exists()
