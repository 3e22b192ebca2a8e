"""The paper's claims about CaMU, each answered from the finished cells: holds, does not, or not measured."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from reporting import summary
from reporting.summary import MAIN_TASKS, PAPER_DATASETS, PAPER_TASKS, costs, is_lost, summarise

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
CNN_PAIR, CIFAR_PAIR = PAPER_DATASETS[:2], PAPER_DATASETS[2:]


@cache
def paper_methods():
    return tuple(dict.fromkeys(method for *_, method in summary.read_paper_values()))


@dataclass(frozen=True)
class Claim:
    """What the paper says of CaMU in a kind of task.

    `check` gets a function from (method, metric) to the mean or None, and the methods that have lost their model. It
    returns (holds, figures), or None while a cell is missing.
    """

    text: str
    kind: str  # "random" or "class": what the names of its tasks begin with
    tree: str
    check: Callable
    datasets: tuple[str, ...] = PAPER_DATASETS


def ranked(metric, direction, at_most):
    """A claim that CaMU is at place `at_most` or better among the methods besides Retrain that keep their model."""

    def check(mean, lost=()):
        values = {method: mean(method, metric) for method in paper_methods()}
        if None in values.values():
            return None
        place, figures = standing({m: value for m, value in values.items() if m not in lost}, direction)
        return place <= at_most, figures + (f"; Retrain {values['Retrain']:.2f}" if direction == "≈" else "")

    return check


def worse(variant, metric, sign, margin=0):
    """A claim that a variant of CaMU's losses has a higher (sign 1) or lower (-1) metric than CaMU."""

    def check(mean, lost=()):
        theirs, ours = mean(variant, metric), mean("CaMU", metric)
        if None in (theirs, ours):
            return None
        return round(sign * (theirs - ours), 2) > margin, f"{metric} {theirs:.2f}, CaMU {ours:.2f}"

    return check


def forgotten(mean, lost=()):
    value = mean("CaMU", "A_ts_f")
    return None if value is None else (round(value, 2) == 0, f"{value:.2f}")


CLAIMS = (
    Claim("In class removal A_ts_f is 0", "class", "cells", forgotten),
    Claim("In class removal A_ts_r is the highest", "class", "cells", ranked("A_ts_r", "↑", 1)),
    Claim("In random removal A_ts is the second-highest", "random", "cells", ranked("A_ts", "↑", 2), CNN_PAIR),
    Claim("In random removal A_f is the closest to Retrain's", "random", "cells", ranked("A_f", "≈", 1)),
    Claim("On CIFAR, in random removal A_r is the highest", "random", "cells", ranked("A_r", "↑", 1), CIFAR_PAIR),
    Claim("On CIFAR, in random removal A_ts is the highest", "random", "cells", ranked("A_ts", "↑", 1), CIFAR_PAIR),
    Claim("The time, random removal, is the second-lowest", "random", "efficiency", ranked("time_s", "↓", 2), CNN_PAIR),
    Claim("The time, class removal, is the second-lowest", "class", "efficiency", ranked("time_s", "↓", 2), CNN_PAIR),
    Claim("Relearning, random removal: the steadiest A_r", "random", "relearn", ranked("moved_A_r", "↓", 1)),
    Claim("Relearning, random removal: the steadiest A_f", "random", "relearn", ranked("moved_A_f", "↓", 1)),
    Claim("Relearning, class removal: the steadiest A_r", "class", "relearn", ranked("moved_A_r", "↓", 1)),
    Claim("Relearning, class removal: the steadiest A_f", "class", "relearn", ranked("moved_A_f", "↓", 1)),
    Claim("Without counterfactual terms: A_f up", "random", "ablation", worse("Remain-alignment", "A_f", 1)),
    Claim("Without counterfactual terms: A_ts_f up", "class", "ablation", worse("Remain-alignment", "A_ts_f", 1, 1)),
    Claim("Without the KL on x_r: A_r down", "random", "ablation", worse("Counterfactual", "A_r", -1)),
    Claim("Without the KL on x_r: A_ts_r down", "class", "ablation", worse("Counterfactual", "A_ts_r", -1)),
)


def standing(values, direction):
    """CaMU's place and a text that names it and the first; methods that are equal at two decimals share a place."""
    found = costs(values, direction)
    place, first = 1 + sum(cost < found["CaMU"] for cost in found.values()), min(found, key=found.get)
    leader = "" if place == 1 else f"; first: {first} {values[first]:.2f}"
    return place, f"{values['CaMU']:.2f}, {ORDINALS[place - 1]} of {len(found)}{leader}"


def answers(cells):
    """Every claim, as (text, where and over how many seeds, whether it holds, figures); None where not measured.

    Methods are compared on the seeds that all of the paper's have, the ablation with CaMU on its own seeds. Only data
    sets and tasks with a cell are looked at; those where a claim is not measured share a row.
    """
    cells = summary.with_base(cells[cells.method.isin(paper_methods()) | (cells.tree == "ablation")])
    there = {*zip(cells.tree, cells.dataset, cells.task)}
    alone, compared = summarise(cells[cells.method == "CaMU"]), summarise(summary.on_common_seeds(cells))
    rows = []
    for claim in CLAIMS:
        stats, missing = alone if claim.check is forgotten else compared, []
        tasks = [task for task in PAPER_TASKS if task.startswith(claim.kind)]
        places = [(claim.tree, dataset, task) for dataset in claim.datasets for task in tasks]
        for place in [place for place in places if place in there]:
            found = {key[3:]: stat for key, stat in stats.items() if key[:3] == place}
            lost = [method for method in paper_methods() if method != "CaMU" and is_lost(stats, place, method)]
            answer = claim.check(lambda *key, found=found: found[key].mean if key in found else None, lost)
            if answer:
                rows.append((claim.text, f"{' '.join(place[1:])} ({max(s.seeds for s in found.values())})", *answer))
            else:
                missing.append(" ".join(place[1:]))
        if missing or claim.text not in {row[0] for row in rows}:
            rows.append((claim.text, ", ".join(missing) or "no cell", None, ""))
    return [*rows, mia_answer(compared)]


def mia_answer(stats):
    """The claim on MIA_diff, which is one average over the main tasks: over the pairs that all methods have."""
    places = [(dataset, task) for task in MAIN_TASKS for dataset in PAPER_DATASETS]
    pairs = [place for place in places if all(("cells", *place, m, "MIA") in stats for m in paper_methods())]
    text = "MIA_diff over the main tasks is the second-lowest"
    if not pairs:
        return text, "all data sets", None, ""
    values = {m: summary.mean_mia_difference(stats, pairs, m)[0] for m in paper_methods() if m != "Retrain"}
    place, figures = standing(values, "↓")
    return text, ", ".join(" ".join(pair) for pair in pairs), place <= 2, f"{figures} (the paper's text: 4.09)"
