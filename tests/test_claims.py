"""The paper's claims, held against cells made by hand."""

import pytest
from conftest import QUIET, write_cell

from baselines import METHODS
from reporting import claims
from reporting.summary import read_cells

A_TS = "random10: second-highest A_ts, leaving out NegGrad and Unroll"
A_F = "random10: A_f closest to Retrain's"
MIA = "random10, class0: second-lowest mean MIA_diff"
ZERO = "class0: A_ts_f is 0"
TIME = "random10, class0: second-lowest time"
OTHERS = [method for method in METHODS if method not in ("Retrain", "CaMU")]
REMOVED = {"A_r": 99, "A_f": 0, "A_ts": 89, "A_ts_r": 98.8, "A_ts_f": 0, "MIA": 25}
WHERE = "Digit random10 (1)"


def write_cells(folder, task, values, methods=METHODS, tree="cells", seed=0):
    """A cell a method, with the metrics of "others" for those that `values` does not name."""
    for method in methods:
        metrics = values[method if method in values else "others"]
        write_cell(folder, tree, "Digit", task, method, seed, metrics=metrics)


def write_times(folder, seconds, seed=0, **conditions):
    for method, value in seconds.items():
        content = {"metrics": {}, "time_s": value, "conditions": QUIET | conditions}
        write_cell(folder, "efficiency", "Digit", "random10", method, seed, **content)


def answer(folder, text):
    """Place -> (holds, figures) of the claim with this text."""
    found = [answer for answer in claims.answers(read_cells(folder)) if answer[0] == text]
    assert len({claim for claim, *_ in found}) == 1
    return {place: (holds, figures) for _, place, holds, figures in found}


def random_metrics(a_r, a_f, a_ts, mia):
    return {"A_r": a_r, "A_f": a_f, "A_ts": a_ts, "MIA": mia}


@pytest.fixture
def random_cells(tmp_path):
    """Retrain 99/98/97/50, Original as near in A_f; SISA is better than CaMU in A_ts, all others equal and worse."""
    values = {
        "Retrain": random_metrics(99, 98, 97, 50),
        "CaMU": random_metrics(99, 98.5, 96.5, 48),
        "SISA": random_metrics(97, 96, 98, 50.5),
        "Original": random_metrics(99, 98.2, 97, 52),
        "others": random_metrics(99, 97, 96, 55),
    }
    write_cells(tmp_path, "random10", values)
    return tmp_path


def test_places_among_the_methods_besides_retrain(random_cells):
    assert answer(random_cells, A_TS)[WHERE] == (True, "96.50, second of 5; first: SISA 98.00")
    assert answer(random_cells, A_F)[WHERE] == (True, "98.50, first of 7; Retrain 98.00")
    difference = "2.00, second of 7; first: SISA 0.50 (the paper: 4.09 in the text, 4.22 by its table)"
    assert answer(random_cells, MIA) == {"Digit random10": (True, difference)}


def test_methods_are_compared_on_the_seeds_that_all_of_them_have(random_cells):
    """A second, much better seed of CaMU alone changes nothing but what is said of CaMU alone."""
    before = answer(random_cells, A_TS), answer(random_cells, MIA)
    write_cell(random_cells, "cells", "Digit", "random10", "CaMU", 1, metrics=random_metrics(99, 98, 99.9, 50))
    assert (answer(random_cells, A_TS), answer(random_cells, MIA)) == before
    for seed in (0, 1):
        write_cells(random_cells, "class0", {"CaMU": REMOVED}, ["CaMU"], seed=seed)
    write_cells(random_cells, "class0", {"SISA": REMOVED}, ["SISA"])
    assert answer(random_cells, ZERO)["Digit class0 (2)"] == (True, "0.00")


def test_a_claim_that_does_not_hold(random_cells):
    for method, mia in (("T-S", 50), ("SCRUB", 55)):
        write_cell(random_cells, "cells", "Digit", "random10", method, 0, metrics=random_metrics(99, 98.1, 99, mia))
    nearer = "98.50, third of 7; first: T-S 98.10; Retrain 98.00"
    assert answer(random_cells, A_F)[WHERE] == (False, nearer)
    assert answer(random_cells, A_TS)[WHERE][0] is False
    attack = "2.00, third of 7; first: T-S 0.00 (the paper: 4.09 in the text, 4.22 by its table)"
    assert answer(random_cells, MIA) == {"Digit random10": (False, attack)}


def test_what_lacks_a_method_is_not_measured(random_cells):
    (random_cells / "cells/Digit/random10/Unroll/seed0.json").unlink()  # which the claim on A_ts leaves out
    assert answer(random_cells, A_TS)[WHERE][0] is True
    (random_cells / "cells/Digit/random10/T-S/seed0.json").unlink()
    assert answer(random_cells, A_TS) == {"Digit random10": (None, "")}
    assert answer(random_cells, MIA) == {"all data sets": (None, "")}
    assert answer(random_cells, ZERO) == {"no cell": (None, "")}


def test_methods_of_ones_own_change_no_answer(random_cells, tmp_path):
    before = claims.answers(read_cells(random_cells))
    for method in ("Mine", "Finetune"):
        write_cell(random_cells, "cells", "Digit", "random10", method, 1, metrics=random_metrics(99, 98, 99.9, 50))
    assert claims.answers(read_cells(random_cells)) == before
    write_cell(tmp_path / "own", "cells", "Digit", "random10", "Finetune", 0, metrics=random_metrics(99, 98, 97, 50))
    assert {holds for _, _, holds, _ in claims.answers(read_cells(tmp_path / "own"))} == {None}


def test_class_removal_and_its_ablation(tmp_path):
    """The ablation is compared with CaMU on its own seeds, whatever else the plain run has."""
    write_cells(tmp_path, "class0", {"others": REMOVED, "CaMU": REMOVED | {"A_ts_r": 98.9}})
    write_cells(tmp_path, "class0", {"others": REMOVED | {"A_ts_f": 60}}, ["Retrain", "CaMU"], seed=1)
    write_cells(tmp_path, "class1", {"others": REMOVED | {"A_ts_f": 0.1}}, ["CaMU"])
    variants = {"Remain-alignment": REMOVED | {"A_ts_f": 97}, "Counterfactual": REMOVED | {"A_ts_r": 98.9}}
    write_cells(tmp_path, "class0", variants, variants, tree="ablation")
    assert answer(tmp_path, ZERO) == {"Digit class0 (2)": (False, "30.00")}
    assert answer(tmp_path, "class1, class2: A_ts_f is 0") == {"Digit class1 (1)": (False, "0.10")}
    place = "Digit class0 (1)"
    assert answer(tmp_path, "class0: highest A_ts_r")[place] == (True, "98.90, first of 7")
    left = "class0: Remain-alignment leaves more than a point of A_ts_f"
    assert answer(tmp_path, left)[place] == (True, "A_ts_f 97.00, CaMU 0.00")
    variants["Remain-alignment"]["A_ts_f"] = 1  # no more than a point
    write_cells(tmp_path, "class0", variants, variants, tree="ablation")
    assert answer(tmp_path, left)[place] == (False, "A_ts_f 1.00, CaMU 0.00")


def test_times_and_relearning(tmp_path):
    order = ("Retrain", "Unroll", "CaMU", *(m for m in OTHERS if m != "Unroll"))
    write_times(tmp_path, {method: i + 1.0 for i, method in enumerate(order)})
    for method in order:
        curves = {"A_r": [90.0, 90.0 if method == "CaMU" else 91.0], "A_f": [90.0, 92.0]}
        write_cell(tmp_path, "relearn", "Digit", "random10", method, 0, **curves)
    assert answer(tmp_path, TIME)[WHERE] == (True, "3.00, second of 7; first: Unroll 2.00")
    assert answer(tmp_path, "random10, class0: steadiest A_r in relearning")[WHERE] == (True, "0.00, first of 7")
    assert answer(tmp_path, "random10, class0: steadiest A_f in relearning")[WHERE] == (True, "2.00, first of 7")


def test_times_under_two_sets_of_conditions_are_not_compared(tmp_path):
    seconds = dict.fromkeys(METHODS, 5.0) | {"CaMU": 2.0, "Unroll": 1.0}
    write_times(tmp_path, seconds)
    assert answer(tmp_path, TIME)[WHERE] == (True, "2.00, second of 7; first: Unroll 1.00")
    write_times(tmp_path, {"SISA": 3.0}, threads=2)
    assert answer(tmp_path, TIME) == {"Digit random10": (None, "")}
    write_times(tmp_path, seconds)
    write_times(tmp_path, dict.fromkeys(METHODS, 0.5), seed=1, threads=2)
    (found,) = answer(tmp_path, TIME).values()
    assert found in ((True, "2.00, second of 7; first: Unroll 1.00"), (False, "0.50, first of 7"), (None, ""))


def test_a_method_that_forgets_nothing_or_has_lost_its_model_is_passed_over(random_cells):
    """Original's A_f is a point above Retrain's: SCRUB has moved a tenth of the way, SISA a quarter, NegGrad far too
    much."""
    for method, a_r, a_f in (("Original", 99, 99), ("SCRUB", 99, 98.9), ("SISA", 99, 98.74), ("NegGrad", 70, 60)):
        write_cell(random_cells, "cells", "Digit", "random10", method, 0, metrics=random_metrics(a_r, a_f, 98, 50))
    holds, figures = answer(random_cells, A_F)[WHERE]
    passed = "passed over: NegGrad (model lost), SCRUB (nothing forgotten)"
    assert (holds, figures) == (True, f"98.50, first of 5; Retrain 98.00; {passed}")
    assert answer(random_cells, MIA)["Digit random10"][1].endswith(f"; {passed}")


def test_the_ablation_in_the_terms_of_the_paper(tmp_path):
    """Counterfactual loses ten points of A_r in random10 and five in class0; Finetune's MIA is Retrain's."""
    plain = random_metrics(99, 98, 97, 50)
    for task, fall in (("random10", 10), ("class0", 5)):
        write_cells(tmp_path, task, {"others": plain, "CaMU": plain | {"MIA": 47}}, ["Retrain", "CaMU"])
        variants = {
            "Finetune": plain | {"A_r": 98, "A_f": 99},
            "Remain-alignment": plain | {"A_f": 99, "MIA": 52},
            "Counterfactual": plain | {"A_r": 99 - fall, "MIA": 40},
        }
        write_cells(tmp_path, task, variants, variants, tree="ablation")
    expected = {
        "random10, class0: Finetune's MIA closest to Retrain's": True,
        "random10, class0: Remain-alignment's A_r above Finetune's": True,
        "random10: Remain-alignment's A_f above CaMU's": True,
        "random10: Counterfactual's A_f below Finetune's": True,
        "random10, class0: Counterfactual's A_r below CaMU's": True,
        "random10: Counterfactual's A_r falls more than in class0": True,
        "random10, class0: CaMU nearest to Retrain over all metrics": False,
    }
    assert {text: answer(tmp_path, text)[WHERE][0] for text in expected} == expected
    fell = answer(tmp_path, "random10: Counterfactual's A_r falls more than in class0")
    assert fell == {WHERE: (True, "by 10.00, in class0 by 5.00")}
    write_cell(tmp_path, "ablation", "Digit", "class0", "Counterfactual", 0, metrics=plain | {"A_r": 80})
    fell = answer(tmp_path, "random10: Counterfactual's A_r falls more than in class0")
    assert fell == {WHERE: (False, "by 10.00, in class0 by 19.00")}


def test_a_variant_that_forgets_nothing_is_passed_over_and_so_is_a_camu_that_lost_its_model(tmp_path):
    plain, near = random_metrics(99, 98, 97, 50), "random10, class0: CaMU nearest to Retrain over all metrics"
    methods = {"Retrain": plain, "Original": plain | {"A_f": 99}, "CaMU": plain | {"MIA": 47}}
    write_cells(tmp_path, "random10", methods, methods)
    variants = {"Finetune": plain | {"A_f": 98.9}, "Remain-alignment": plain | {"A_r": 0}, "Counterfactual": plain}
    write_cells(tmp_path, "random10", variants | {"Counterfactual": plain | {"MIA": 40}}, variants, tree="ablation")
    holds, figures = answer(tmp_path, near)[WHERE]
    assert holds and figures.endswith("; passed over: Finetune (nothing forgotten), Remain-alignment (model lost)")
    assert answer(tmp_path, "random10, class0: Finetune's MIA closest to Retrain's")[WHERE][0] is True
    others = {name: plain for name in METHODS if name not in methods}
    write_cells(tmp_path, "random10", others | {"CaMU": plain | {"A_r": 78}}, [*others, "CaMU"])
    assert answer(tmp_path, A_F) == {WHERE: (False, "model lost")}
    assert answer(tmp_path, MIA) == {"Digit random10": (False, "model lost")}
