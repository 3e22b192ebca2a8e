import importlib

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from numpy import nan

from baselines import METHODS
from reporting import figures
from reporting.summary import frame, relearning_curves, row, stat, summarise

QUIET = {"device": "a processor", "threads": 1, "jobs": 1}
# Values of (seed 0, seed 1): Retrain 99, 98, 97, 50 on average.
RANDOM = {
    "Retrain": {"A_r": (98, 100), "A_f": (98, 98), "A_ts": (97, 97), "MIA": (49, 51)},
    "NegGrad": {"A_r": (97, 97), "A_f": (95, 95), "A_ts": (97.5, 97.5), "MIA": (53, 53)},
    "SCRUB": {"A_r": (99.5, 99.5), "A_f": (99, 99), "A_ts": (96, 96), "MIA": (52, 52)},
    "CaMU": {"A_r": (98, 99), "A_f": (96, 98), "A_ts": (96.5, 96.5), "MIA": (50, 50)},
}
LOST = {"A_r": (10, 10), "A_f": (9, 9), "A_ts": (8, 8), "MIA": (50, 50)}
A_F = [90.0, 90.5, 91.0]
SECONDS = {"Retrain": 20.0, "NegGrad": 5.0, "CaMU": 2.0}


def make_row(tree, method, seed, dataset="Digit", task="random10", **content):
    return row(tree, {"dataset": dataset, "task": task, "method": method, "seed": seed} | content)


def make_plain(tree="cells", dataset="Digit", task="random10", values=RANDOM, seconds=SECONDS):
    """Two seeds of every method; only those of `seconds` are timed."""
    return [
        make_row(tree, method, seed, dataset, task, metrics=metrics, time_s=seconds.get(method, nan), conditions=QUIET)
        for method, pairs in values.items()
        for seed, metrics in enumerate({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    ]


def make_relearning(methods=("CaMU",), changes=(-1, 1), seeds=(0, 1), dataset="Digit", start=94):
    """A_r goes from `start` by `changes`, in seed 1 by twice as much in the end; A_f from 90 up by half a point."""
    return [
        make_row(
            "relearn", method, seed, dataset, A_r=[start, start + changes[0], start + (1 + seed) * changes[1]], A_f=A_F
        )
        for method in methods
        for seed in seeds
    ]


def draw(rows):
    return figures.draw_figures(frame(rows))


def bars_of(axis):
    """Heights by method."""
    bars = {container.get_label(): container for container in axis.containers if hasattr(container, "patches")}
    return {method: [bar.get_height() for bar in container] for method, container in bars.items()}


def points_of(axis):
    """(x, y) by method of single points."""
    lines = [line for line in axis.lines if line.get_label() in METHODS]
    return {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in lines}


def legend_of(figure):
    (legend,) = figure.legends
    return dict(zip([text.get_text() for text in legend.get_texts()], legend.legend_handles))


def title_of(axis):
    return axis.get_title(loc="left").replace("\n", " ")


def test_relearning_shows_the_curves_with_their_std():
    figure = draw(make_relearning())["relearning-random10"]
    upper, lower = figure.axes
    line = {line.get_label(): line for line in upper.lines}["CaMU"]
    assert line.get_xdata().tolist() == [0, 1, 2] and line.get_ydata().tolist() == [0, -1, 1.5]
    assert line.get_color() == figures.COLOURS["CaMU"]
    assert {line.get_label(): line for line in lower.lines}["CaMU"].get_ydata().tolist() == [0, 0.5, 1]
    band = upper.collections[list(METHODS).index("CaMU")].get_paths()[0].vertices
    assert {1.0, 2.0} <= set(band[band[:, 0] == 2][:, 1])
    assert title_of(upper).startswith("Digit (2 seeds); missing: Retrain, Original, NegGrad, Boundary")
    assert title_of(draw(make_relearning(seeds=[0]))["relearning-random10"].axes[0]).startswith("Digit (1 seed)")
    assert figures.draw_relearning(relearning_curves(frame(make_relearning())), "class0", ["Digit"], {}) is None


def test_equal_relearning_curves_have_markers_in_different_places():
    curve = {"A_r": [94.0] * 11, "A_f": [0.0] * 11}
    rows = [make_row("relearn", method, 0, **curve) for method in METHODS]
    axis = draw(rows)["relearning-random10"].axes[1]
    marked = [tuple(line.get_xdata()) for line in axis.lines if line.get_marker() in figures.MARKERS.values()]
    places = [x for xs in marked for x in xs]
    assert len(marked) == len(METHODS) and all(marked) and len(places) == len(set(places))
    markers = [line for line in axis.lines if line.get_linestyle() == "None"]
    lines = {line.get_label(): line for line in axis.lines if line not in markers}
    assert min(line.get_zorder() for line in markers) > max(line.get_zorder() for line in lines.values())
    assert all(line.get_zorder() < lines["Retrain"].get_zorder() for m, line in lines.items() if m != "Retrain")
    assert lines["Retrain"].get_linestyle() == "--"


def test_gap_and_ratio_are_of_the_same_cells():
    plain = make_plain(values=RANDOM | {"CaMU": LOST}, seconds=dict.fromkeys(RANDOM, 1.0))
    values, seconds = RANDOM | {"Original": RANDOM["CaMU"]}, SECONDS | {"Original": 1e-3}
    figure = draw([*plain, *make_plain("efficiency", values=values, seconds=seconds)])["gap-time-random10"]
    (axis,) = figure.axes
    assert points_of(axis) == {"NegGrad": (0.25, 2.125), "CaMU": (0.1, 0.5)}
    assert title_of(axis) == "Digit (2 seeds); missing: Boundary, T-S, SCRUB, SISA, Unroll"
    assert list(legend_of(figure)) == ["Retrain", "Original", "NegGrad", "CaMU"]
    original, retrain = [line for line in axis.lines if line.get_label() not in METHODS]
    assert list(original.get_ydata()) == [0.5, 0.5]  # it takes no time: a line at its gap
    assert list(retrain.get_xdata()) == [1, 1] and legend_of(figure)["Retrain"].get_marker() == "|"
    assert axis.get_xlabel().endswith("log scale") and axis.get_xscale() == "log"


def test_times_of_the_plain_run_are_for_what_is_not_in_the_paper_only():
    assert "gap-time-random10" not in draw(make_plain())
    for place in ({"dataset": "OptDigits"}, {"task": "random7"}):
        drawn = draw(make_plain(**place))
        (axis,) = drawn[f"gap-time-{place.get('task', 'random10')}-other"].axes
        assert points_of(axis) == {"NegGrad": (0.25, 2.125), "CaMU": (0.1, 0.5)}
        assert "(2 seeds, times of the plain run)" in title_of(axis)
    rows = [*make_plain(dataset="OptDigits"), *make_plain("efficiency", "OptDigits", seconds={"Retrain": 1, "CaMU": 2})]
    (axis,) = draw(rows)["gap-time-random10-other"].axes
    assert points_of(axis) == {"CaMU": (2, 0.5)} and "plain" not in title_of(axis)


def test_equal_points_are_see_through_and_of_different_shapes():
    values = RANDOM | {"NegGrad": RANDOM["CaMU"]}
    figure = draw(make_plain("efficiency", values=values, seconds=SECONDS | {"NegGrad": 2.0}))["gap-time-random10"]
    assert len(set(points_of(figure.axes[0]).values())) == 1
    lines = [line for line in figure.axes[0].lines if line.get_label() in METHODS]
    assert len({line.get_marker() for line in lines}) == 2
    assert all(line.get_markerfacecolor().endswith("40") for line in lines)


def test_bars_show_differences_to_retrain_stds_and_what_is_missing():
    floor = make_plain(values={"Floor": RANDOM["Retrain"]})[:1]  # has one seed and is not drawn
    (axis,) = draw([*make_plain(), *floor])["bars-random10"].axes
    bars = bars_of(axis)
    assert bars["CaMU"] == [-0.5, -1, -0.5, 0] and bars["SCRUB"] == [0.5, 1, -1, 2]
    assert bars["Retrain"] == [2, 0, 0, 2]  # the band, from the std under 0 to the std over it
    assert np.isnan(bars["SISA"]).all()
    assert [text.get_text() for text in axis.get_xticklabels()] == ["A_r\n99.0", "A_f\n98.0", "A_ts\n97.0", "MIA\n50.0"]
    missing = ("Original", "Boundary", "T-S", "SISA", "Unroll")
    assert title_of(axis) == f"Digit (2 seeds); missing: {', '.join(missing)}"
    assert "bars-random10" not in draw(make_plain(values={"CaMU": RANDOM["CaMU"]}))


def test_the_audit_has_a_mark_per_method_between_original_and_retrain():
    values = {"Retrain": (40, 42), "Original": (70, 70), "NegGrad": (50, 54), "CaMU": (60, 60)}
    stats = {
        ("cells", "Digit", "random10", method, "RMIA_AUC"): stat(pd.Series(pair, dtype=float))
        for method, pair in values.items()
    }
    figure = figures.draw_audit(stats, "random10", ["Digit", "Fashion"])
    (axis,) = figure.axes
    marks = [list(line.get_xdata()) for line in axis.lines if line.get_marker() in figures.MARKERS.values()]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["NegGrad", "CaMU"] and marks == [[52], [60]]
    assert [line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 2] == [41, 70]
    assert list(legend_of(figure)) == ["Retrain", "Original"] and "missing: Boundary" in title_of(axis)
    assert figures.draw_audit({}, "random10", ["Digit"]) is None


def test_a_bar_of_height_0_has_a_marker_and_a_missing_metric_none():
    values = RANDOM | {"SCRUB": {name: pair for name, pair in RANDOM["SCRUB"].items() if name != "MIA"}}
    (axis,) = draw(make_plain(values=values))["bars-random10"].axes
    ends = {line.get_color(): line.get_ydata() for line in axis.lines if line.get_marker() in figures.MARKERS.values()}
    assert ends[figures.COLOURS["CaMU"]][3] == 0
    assert np.isnan(ends[figures.COLOURS["SCRUB"]]).tolist() == [False, False, False, True]
    assert "SCRUB" in title_of(axis)


def test_retrain_in_the_legend_looks_as_drawn():
    several, one = (draw([r for r in make_plain() if r["seed"] < n])["bars-random10"] for n in (2, 1))
    assert "Retrain ± std" in legend_of(several) and "Retrain" in legend_of(one)
    zero = next(line for line in one.axes[0].lines if list(line.get_ydata()) == [0, 0])
    assert legend_of(one)["Retrain"].get_color() == zero.get_color() == "#000000"
    relearning = draw(make_relearning(["Retrain"]))["relearning-random10"]
    assert legend_of(relearning)["Retrain"].get_linestyle() == "--"


def test_lost_models_are_named_and_do_not_press_the_others_flat():
    values = RANDOM | {"NegGrad": LOST}
    rows = [*make_plain(values=values), *make_plain("efficiency", values=values)]
    rows += make_relearning(["Retrain", "CaMU"], changes=(20, 40))
    rows += make_relearning(["NegGrad"], changes=(20, 40), start=10)
    for figure in draw(rows).values():
        axis = figure.axes[0]
        assert title_of(axis).endswith("; lost: NegGrad")
        assert axis.get_yscale() == "symlog" and axis.get_ylabel().endswith("log scale beyond 1")
        figure.draw_without_rendering()
        (_, bottom), (_, top) = (axis.transData - axis.transAxes).transform(axis.dataLim)
        assert 0.05 < bottom < top < 0.95  # markers are not cut


def test_a_model_that_was_lost_before_relearning_is_named():
    for start, lost in ((10, True), (90, False)):
        rows = [*make_relearning(["Retrain", "CaMU"]), *make_relearning(["NegGrad"], start=start)]
        assert title_of(draw(rows)["relearning-random10"].axes[0]).endswith("lost: NegGrad") == lost


def test_linear_axes_do_not_claim_to_be_logarithmic():
    figure = draw(make_plain())["bars-random10"]
    assert figure.axes[0].get_yscale() == "linear" and "log" not in figure.axes[0].get_ylabel()


def test_names_say_task_and_whether_in_the_paper():
    rows = [row for name in ("Digit", "Fashion", "mine") for row in make_plain(dataset=name)]
    drawn = draw([*rows, *make_relearning(dataset="mine")])
    other = [f"{kind}-random10-other" for kind in ("relearning", "gap-time", "bars")]
    assert list(drawn) == ["bars-random10", *other]
    assert [title_of(axis).split()[0] for axis in drawn["bars-random10"].axes] == ["Digit", "Fashion"]
    stats = summarise(frame(rows))
    assert figures.draw_bars(stats, "class0", ["Digit"]) is None is figures.draw_gap_time(stats, "random10", ["Digit"])


def test_text_is_legible_at_half_a_pages_width(tmp_path):
    for name, figure in draw([*make_plain("efficiency"), *make_plain(), *make_relearning(METHODS)]).items():
        figures.save_figure(figure, tmp_path / name)
        assert figure.get_figwidth() == 3.5
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 7


def test_files_are_the_same_after_a_rerun(tmp_path):
    for folder in ("a", "b"):
        for name, figure in draw([*make_plain("efficiency"), *make_plain(), *make_relearning()]).items():
            figures.save_figure(figure, tmp_path / folder / name)
    written = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(written) == 6
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in written)


@pytest.fixture
def two_more_methods(monkeypatch):
    with monkeypatch.context() as patch:
        for name in ("Mine", "Another"):
            patch.setitem(METHODS, name, None)
        importlib.reload(figures)
        yield
    importlib.reload(figures)


def check_styles():
    for table in (figures.COLOURS, figures.MARKERS):
        assert list(table) == list(METHODS) and len(set(table.values())) == len(table)
    assert all(to_hex(colour) for colour in figures.COLOURS.values()) and figures.COLOURS["Retrain"] == "#000000"


def test_every_method_has_its_own_colour_and_marker():
    check_styles()


def test_added_methods_have_their_own_colour_and_marker_and_are_drawn(two_more_methods):
    check_styles()
    figure = draw(make_plain(values=RANDOM | {"Mine": RANDOM["SCRUB"]}))["bars-random10"]
    assert bars_of(figure.axes[0])["Mine"] == [0.5, 1, -1, 2] and "Mine" in legend_of(figure)
    assert "Another" in title_of(figure.axes[0])
