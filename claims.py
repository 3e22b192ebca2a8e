"""The paper's claims about CaMU, each answered from the finished cells: holds, does not, or not measured."""

from dataclasses import dataclass

import pandas as pd

from summary import (
    MAIN_TASKS,
    PAPER_DATASETS,
    PAPER_METHODS,
    PAPER_TASKS,
    costs,
    kind,
    mia_difference,
    relearning_extremes,
    summarise,
    summarise_times,
    with_base,
)

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
CNN_PAIR, CIFAR_PAIR = PAPER_DATASETS[:2], PAPER_DATASETS[2:]


@dataclass(frozen=True)
class Standing:
    """A claim on where CaMU stands among the methods besides Retrain."""

    text: str
    tree: str
    kind: str
    metric: str
    direction: str
    """↑ highest, ↓ lowest, ≈ closest to Retrain is best"""
    at_most: int
    """the lowest place with which the claim holds"""
    datasets: tuple[str, ...] = PAPER_DATASETS
    compares = True  # methods with one another, so on their common seeds

    def check(self, found, dataset, task):
        """(holds, figures), or None while a method is missing."""
        values = {m: found.get((self.tree, dataset, task, m, self.metric)) for m in PAPER_METHODS}
        if None in values.values():
            return None
        place, figures = standing(values, self.direction)
        retrain = f"; Retrain {values['Retrain']:.2f}" if self.direction == "≈" else ""
        return place <= self.at_most, figures + retrain


@dataclass(frozen=True)
class Ablated:
    """A claim on what a variant of CaMU's losses does worse than CaMU: `metric` more than `margin` points `worse`."""

    text: str
    kind: str
    variant: str
    metric: str
    worse: str
    """"higher" or "lower" """
    margin: float
    datasets: tuple[str, ...] = PAPER_DATASETS
    tree: str = "ablation"
    compares = True

    def check(self, found, dataset, task):
        """(holds, figures), or None while one of the two is missing."""
        values = [found.get((self.tree, dataset, task, method, self.metric)) for method in (self.variant, "CaMU")]
        if None in values:
            return None
        difference = values[0] - values[1] if self.worse == "higher" else values[1] - values[0]
        return round(difference, 2) > self.margin, f"{self.metric} {values[0]:.2f}, CaMU {values[1]:.2f}"


@dataclass(frozen=True)
class Forgotten:
    """A_ts_f = 0."""

    text: str
    kind: str = "class"
    datasets: tuple[str, ...] = PAPER_DATASETS
    tree: str = "cells"
    compares = False

    def check(self, found, dataset, task):
        """(holds, figures), or None while CaMU is missing."""
        value = found.get((self.tree, dataset, task, "CaMU", "A_ts_f"))
        return None if value is None else (round(value, 2) == 0, f"{value:.2f}")


CLAIMS = (
    Forgotten("In class removal A_ts_f is 0"),
    Standing("In class removal A_ts_r is the highest", "cells", "class", "A_ts_r", "↑", 1),
    Standing("In random removal A_ts is the second-highest", "cells", "random", "A_ts", "↑", 2, CNN_PAIR),
    Standing("In random removal A_f is the closest to Retrain's", "cells", "random", "A_f", "≈", 1),
    Standing("On CIFAR, in random removal A_r is the highest", "cells", "random", "A_r", "↑", 1, CIFAR_PAIR),
    Standing("On CIFAR, in random removal A_ts is the highest", "cells", "random", "A_ts", "↑", 1, CIFAR_PAIR),
    Standing("The time, random removal, is the second-lowest", "efficiency", "random", "time_s", "↓", 2, CNN_PAIR),
    Standing("The time, class removal, is the second-lowest", "efficiency", "class", "time_s", "↓", 2, CNN_PAIR),
    Standing("Relearning, random removal: the steadiest A_r", "relearn", "random", "A_r", "↓", 1),
    Standing("Relearning, random removal: the steadiest A_f", "relearn", "random", "A_f", "↓", 1),
    Standing("Relearning, class removal: the steadiest A_r", "relearn", "class", "A_r", "↓", 1),
    Standing("Relearning, class removal: the steadiest A_f", "relearn", "class", "A_f", "↓", 1),
    Ablated("Without counterfactual terms samples are not forgotten", "random", "Remain-alignment", "A_f", "higher", 0),
    Ablated("Without counterfactual terms a class is not", "class", "Remain-alignment", "A_ts_f", "higher", 1),
    Ablated("Without the KL on x_r, A_r falls (random removal)", "random", "Counterfactual", "A_r", "lower", 0),
    Ablated("Without the KL on x_r, A_ts_r falls (class removal)", "class", "Counterfactual", "A_ts_r", "lower", 0),
)


def standing(values, direction):
    """CaMU's place and a text that names it and the first; methods that are equal at two decimals share a place."""
    found = costs(values, direction)
    place, first = 1 + sum(cost < found["CaMU"] for cost in found.values()), min(found, key=found.get)
    leader = "" if place == 1 else f"; first: {first} {values[first]:.2f}"
    return place, f"{values['CaMU']:.2f}, {ORDINALS[place - 1]} of {len(found)}{leader}"


def on_common_seeds(cells):
    """Of every tree, data set and task the cells of those seeds that all methods there have."""
    parts = []
    for _, group in cells.groupby(["tree", "dataset", "task"]):
        common = set.intersection(*group.groupby("method")["seed"].agg(set))
        parts.append(group[group.seed.isin(common)])
    return pd.concat(parts) if parts else cells


def measured(cells):
    """All that claims are about: (tree, data set, task, method, metric) -> mean over seeds.

    Of times only those where all methods were measured under the same conditions, and under no second ones too.
    """
    found = {key: mean for key, (mean, _, _) in summarise(cells).items()}
    times = summarise_times(cells)
    complete = [
        place for place in dict.fromkeys(key[:3] for key in times) if all((*place, m) in times for m in PAPER_METHODS)
    ]
    for dataset, task in {place[:2] for place in complete}:
        one, *others = [place for place in complete if place[:2] == (dataset, task)]
        if not others:
            found |= {("efficiency", dataset, task, m, "time_s"): times[*one, m][0] for m in PAPER_METHODS}
    for task in set(cells.task):
        extremes = relearning_extremes(cells[cells.task == task])
        found |= {("relearn", name, task, *rest): stats[0] for (name, *rest), stats in extremes.items()}
    return found


def answers(cells):
    """Every claim, data set by data set and task by task.

    Parameters
    ----------
    cells : DataFrame
        From `summary.read_cells`.

    Returns
    -------
    list of (str, str, bool or None, str)
        The claim, where and over how many seeds, whether it holds (None: not measured), and the figures. The
        paper's methods are compared on the seeds that all of them have, the ablation with CaMU on its own seeds. The
        places where a claim is not measured share a row; of tasks other than the two main ones only those with a cell
        are looked at.
    """
    cells = with_base(cells[cells.method.isin(PAPER_METHODS) | (cells.tree == "ablation")])
    there = set(zip(cells.dataset, cells.task))
    alone, compared = cells[cells.method == "CaMU"], on_common_seeds(cells)
    numbers, rows = {False: measured(alone), True: measured(compared)}, []
    for claim in CLAIMS:
        chosen = compared if claim.compares else alone
        seeds = chosen[chosen.tree == claim.tree].groupby(["dataset", "task"])["seed"].nunique()
        places = [
            (dataset, task)
            for dataset in claim.datasets
            for task in PAPER_TASKS
            if kind(task) == claim.kind and (task in MAIN_TASKS or (dataset, task) in there)
        ]
        found = {place: claim.check(numbers[claim.compares], *place) for place in places}
        rows += [
            (claim.text, f"{' '.join(place)} ({seeds[place]})", *answer) for place, answer in found.items() if answer
        ]
        missing = [" ".join(place) for place, answer in found.items() if not answer]
        if missing:
            rows.append((claim.text, ", ".join(missing), None, ""))
    return [*rows, mia_answer(compared)]


def mia_answer(cells):
    """The claim on MIA_diff, which is one average over the main tasks: over the pairs that all methods have."""
    stats = summarise(cells)
    pairs = [
        (dataset, task)
        for task in MAIN_TASKS
        for dataset in PAPER_DATASETS
        if all(("cells", dataset, task, method, "MIA") in stats for method in PAPER_METHODS)
    ]
    text = "MIA_diff over the main tasks is the second-lowest"
    if not pairs:
        return text, "all data sets", None, ""
    values = {method: value for method, (value, _) in mia_difference(stats, pairs).items()}
    place, figures = standing(values, "↓")
    return text, ", ".join(" ".join(pair) for pair in pairs), place <= 2, f"{figures} (the paper's text: 4.09)"
