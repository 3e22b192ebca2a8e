"""The paper's claims about CaMU, each answered from the finished cells: holds, does not, or not measured."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from reporting import summary
from reporting.summary import MAIN_TASKS, PAPER_DATASETS, PAPER_TASKS, costs, forgot_nothing, is_lost, summarise

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")
MNIST, CIFAR, ALL_BUT_CIFAR100 = PAPER_DATASETS[:2], PAPER_DATASETS[2:], PAPER_DATASETS[:3]
SIZES, CLASSES = PAPER_TASKS[2:4], PAPER_TASKS[4:]
VARIANTS = ("Finetune", "Remain-alignment", "Counterfactual", "CaMU")


@cache
def paper_methods():
    return tuple(dict.fromkeys(method for *_, method in summary.read_paper_values()))


@dataclass(frozen=True)
class Claim:
    """What the paper says of some tasks and data sets.

    `check` gets a function from (method, metric) to the mean or None, and the methods that no ranking counts, with the
    reason. It returns (holds, figures), or None while a cell is missing.
    """

    text: str
    tasks: tuple[str, ...]
    datasets: tuple[str, ...]
    check: Callable
    tree: str = "cells"

    def __str__(self):
        return f"{', '.join(self.tasks)}: {self.text}"


def ranked(metric, direction, at_most, without=()):
    """A claim that CaMU's rank is `at_most` or better among the methods besides Retrain and those of `without`."""

    def check(mean, passed_over):
        values = {method: mean(method, metric) for method in paper_methods() if method not in without}
        if None in values.values():
            return None
        remark = f"; Retrain {values['Retrain']:.2f}" if direction == "≈" else ""
        return ranks(values, direction, at_most, passed_over, remark)

    return check


def ranks(values, direction, at_most, passed_over, remark):
    """Whether CaMU's rank is `at_most` or better, and the figures; not if it is itself passed over."""
    if "CaMU" in passed_over:
        return False, passed_over["CaMU"]
    rank, figures = standing({m: value for m, value in values.items() if m not in passed_over}, direction)
    return rank <= at_most, figures + remark + those(passed_over, values)


def those(passed_over, values):
    names = [f"{method} ({why})" for method, why in passed_over.items() if method in values]
    return f"; passed over: {', '.join(names)}" if names else ""


def first_variant(variant, metric, direction):
    """A claim that a row of the ablation, which itself is not passed over, is the first among VARIANTS."""

    def check(mean, passed_over):
        values = {name: mean(name, metric) for name in VARIANTS}
        values |= {"Retrain": mean("Retrain", metric)} if direction == "≈" else {}
        if None in values.values():
            return None
        passed = {name: why for name, why in passed_over.items() if name != variant}
        cost = costs({name: value for name, value in values.items() if name not in passed}, direction)
        figures = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        return cost[variant] == min(cost.values()), figures + those(passed, values)

    return check


def differs(variant, metric, sign, other="CaMU", margin=0):
    """A claim that a variant has a metric more than `margin` points above (sign 1) or below (-1) another variant's."""

    def check(mean, passed_over):
        ours, theirs = mean(variant, metric), mean(other, metric)
        if None in (ours, theirs):
            return None
        return round(sign * (ours - theirs), 2) > margin, f"{metric} {ours:.2f}, {other} {theirs:.2f}"

    return check


def falls_more(mean, passed_over):
    pairs = [(mean("CaMU", "A_r", task), mean("Counterfactual", "A_r", task)) for task in MAIN_TASKS]
    if any(None in pair for pair in pairs):
        return None
    random10, class0 = (round(camu - variant, 2) for camu, variant in pairs)
    return random10 > class0, f"by {random10:.2f}, in class0 by {class0:.2f}"


def forgotten(mean, passed_over):
    value = mean("CaMU", "A_ts_f")
    return None if value is None else (round(value, 2) == 0, f"{value:.2f}")


RANDOM, CLASS = MAIN_TASKS[:1], MAIN_TASKS[1:]
CLAIMS = (
    Claim("second-highest A_ts, leaving out NegGrad and Unroll", RANDOM, MNIST,
          ranked("A_ts", "↑", 2, without=("NegGrad", "Unroll"))),
    Claim("A_f closest to Retrain's", RANDOM, ALL_BUT_CIFAR100, ranked("A_f", "≈", 1)),
    Claim("A_f closest to Retrain's, leaving out SISA", RANDOM, ("CIFAR100",),
          ranked("A_f", "≈", 1, without=("SISA",))),
    Claim("highest A_r", RANDOM, CIFAR, ranked("A_r", "↑", 1)),
    Claim("highest A_ts", RANDOM, CIFAR, ranked("A_ts", "↑", 1)),
    Claim("A_ts_f is 0", CLASS, PAPER_DATASETS, forgotten),
    Claim("highest A_ts_r", CLASS, PAPER_DATASETS, ranked("A_ts_r", "↑", 1)),
    Claim("second-lowest time", MAIN_TASKS, MNIST, ranked("time_s", "↓", 2), "efficiency"),
    Claim("lowest time", CLASS, ("CIFAR10",), ranked("time_s", "↓", 1), "efficiency"),
    Claim("third-lowest time", RANDOM, ("CIFAR10",), ranked("time_s", "↓", 3), "efficiency"),
    Claim("Finetune's MIA closest to Retrain's", MAIN_TASKS, PAPER_DATASETS,
          first_variant("Finetune", "MIA", "≈"), "ablation"),
    Claim("Remain-alignment's A_r above Finetune's", MAIN_TASKS, PAPER_DATASETS,
          differs("Remain-alignment", "A_r", 1, "Finetune"), "ablation"),
    Claim("Remain-alignment's A_f above CaMU's", RANDOM, PAPER_DATASETS,
          differs("Remain-alignment", "A_f", 1), "ablation"),
    Claim("Remain-alignment leaves more than a point of A_ts_f", CLASS, PAPER_DATASETS,
          differs("Remain-alignment", "A_ts_f", 1, margin=1), "ablation"),
    Claim("Counterfactual's A_f below Finetune's", RANDOM, PAPER_DATASETS,
          differs("Counterfactual", "A_f", -1, "Finetune"), "ablation"),
    Claim("Counterfactual's A_ts_f below Finetune's", CLASS, PAPER_DATASETS,
          differs("Counterfactual", "A_ts_f", -1, "Finetune"), "ablation"),
    Claim("Counterfactual's A_r below CaMU's", MAIN_TASKS, PAPER_DATASETS,
          differs("Counterfactual", "A_r", -1), "ablation"),
    Claim("Counterfactual's A_r falls more than in class0", RANDOM, PAPER_DATASETS, falls_more, "ablation"),
    Claim("CaMU nearest to Retrain over all metrics", MAIN_TASKS, PAPER_DATASETS,
          first_variant("CaMU", "gap", "↓"), "ablation"),
    Claim("steadiest A_r in relearning", MAIN_TASKS, PAPER_DATASETS, ranked("moved_A_r", "↓", 1), "relearn"),
    Claim("steadiest A_f in relearning", MAIN_TASKS, PAPER_DATASETS, ranked("moved_A_f", "↓", 1), "relearn"),
    Claim("third-highest A_ts", ("random15",), MNIST, ranked("A_ts", "↑", 3)),
    Claim("A_f closest to Retrain's, nearly everywhere", ("random20",), PAPER_DATASETS, ranked("A_f", "≈", 1)),
    Claim("highest A_ts, nearly everywhere", ("random20",), PAPER_DATASETS, ranked("A_ts", "↑", 1)),
    Claim("A_ts_f is 0", CLASSES, PAPER_DATASETS, forgotten),
    Claim("highest A_ts_r, but second in two places", CLASSES, PAPER_DATASETS, ranked("A_ts_r", "↑", 1)),
    Claim("fourth-lowest time", SIZES, PAPER_DATASETS, ranked("time_s", "↓", 4), "efficiency"),
    Claim("lowest time", CLASSES, ALL_BUT_CIFAR100, ranked("time_s", "↓", 1), "efficiency"),
)  # fmt: skip
MIA_CLAIMS = (  # tasks, CaMU's rank, the paper's value
    (MAIN_TASKS, 2, "4.09 in the text, 4.22 by its table"),
    (PAPER_TASKS[2:], 3, "1.82"),
)


def standing(values, direction):
    """CaMU's rank and a text that names it and the first; methods that are equal at two decimals share a rank."""
    cost = costs(values, direction)
    rank, first = 1 + sum(other < cost["CaMU"] for other in cost.values()), min(cost, key=cost.get)
    leader = "" if rank == 1 else f"; first: {first} {values[first]:.2f}"
    return rank, f"{values['CaMU']:.2f}, {ORDINALS[rank - 1]} of {len(cost)}{leader}"


def answers(cells):
    """Every claim, as (text, where and over how many seeds, whether it holds, figures); None where not measured.

    Methods are compared on the seeds that all of the paper's have, the ablation with CaMU on its own seeds. Only data
    sets and tasks with a cell are looked at; those where a claim is not measured share a row.
    """
    compared_methods = (*paper_methods(), "Original")
    cells = summary.with_base(cells[cells.method.isin(compared_methods) | (cells.tree == "ablation")])
    measured = {*zip(cells.tree, cells.dataset, cells.task)}
    alone, compared = summarise(cells[cells.method == "CaMU"]), summarise(summary.on_common_seeds(cells))
    rows = []
    for claim in CLAIMS:
        stats, missing, answered = alone if claim.check is forgotten else compared, [], False
        places = [(claim.tree, dataset, task) for dataset in claim.datasets for task in claim.tasks]
        for place in [place for place in places if place in measured]:
            answer = claim.check(partial(mean_of, stats, place), passed_over(compared, place))
            if answer:
                seeds = max(stat.seeds for key, stat in stats.items() if key[:3] == place)
                rows.append((str(claim), f"{' '.join(place[1:])} ({seeds})", *answer))
                answered = True
            else:
                missing.append(" ".join(place[1:]))
        if missing or not answered:
            rows.append((str(claim), ", ".join(missing) or "no cell", None, ""))
    return [*rows, *(mia_answer(compared, *claim) for claim in MIA_CLAIMS)]


def mean_of(stats, place, method, metric, task=None):
    """A mean of a (tree, data set, task), or of another task there; None without it."""
    stat = stats.get((*place[:2], task or place[2], method, metric))
    return stat.mean if stat else None


def passed_over(stats, place):
    """The methods that no ranking counts at a (tree, data set, task), with the reason."""
    trees, reasons = (place[0], place[0] if place[0] == "ablation" else "cells"), {}
    for method in VARIANTS if place[0] == "ablation" else paper_methods():
        if any(is_lost(stats, (tree, *place[1:]), method) for tree in trees):
            reasons[method] = "model lost"
        elif method != "Retrain" and forgot_nothing(stats, (trees[1], *place[1:]), method):
            reasons[method] = "nothing forgotten"
    return reasons


def mia_answer(stats, tasks, at_most, published):
    """The claim on MIA_diff, which is one average over several tasks: over the pairs that all methods have."""
    pairs = [(dataset, task) for task in tasks for dataset in PAPER_DATASETS]
    pairs = [pair for pair in pairs if all(("cells", *pair, m, "MIA") in stats for m in paper_methods())]
    text = f"{', '.join(tasks)}: {ORDINALS[at_most - 1]}-lowest mean MIA_diff"
    if not pairs:
        return text, "all data sets", None, ""
    values = {m: summary.mean_mia_difference(stats, pairs, m)[0] for m in paper_methods() if m != "Retrain"}
    skipped = {m: why for pair in pairs for m, why in passed_over(stats, ("cells", *pair)).items()}
    where = ", ".join(" ".join(pair) for pair in pairs)
    return text, where, *ranks(values, "↓", at_most, skipped, f" (the paper: {published})")
