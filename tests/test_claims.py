import pytest
from test_report import QUIET, write

import claims
import report
import summary
from baselines import METHODS

OTHERS = [method for method in METHODS if method not in ("Retrain", "CaMU")]


def write_cells(folder, task, values, methods=METHODS, tree="cells", dataset="Digit", seed=0):
    """A cell a method, with the metrics of "others" for those that `values` does not name."""
    for method in methods:
        metrics = values[method if method in values else "others"]
        write(folder, tree, dataset, task, method, seed, metrics=metrics)


def answer(folder, text):
    """Place -> (holds, figures) of the claim whose text begins so."""
    found = claims.answers(summary.read_cells(folder))
    return {place: (holds, figures) for claim, place, holds, figures in found if claim.startswith(text)}


def random_metrics(a_r, a_f, a_ts, mia):
    return {"A_r": a_r, "A_f": a_f, "A_ts": a_ts, "MIA": mia}


@pytest.fixture
def random_cells(tmp_path):
    """Retrain 99/98/97/50; SISA is better than CaMU in A_ts, all others equal and worse."""
    values = {
        "Retrain": random_metrics(99, 98, 97, 50),
        "CaMU": random_metrics(99, 98.5, 96.5, 48),
        "SISA": random_metrics(97, 96, 98, 50.5),
        "others": random_metrics(99, 97, 96, 55),
    }
    write_cells(tmp_path, "random10", values)
    return tmp_path


def test_places_among_the_methods_besides_retrain(random_cells):
    where = "Digit random10 (1)"
    assert answer(random_cells, "In random removal A_ts")[where] == (True, "96.50, second of 7; first: SISA 98.00")
    assert answer(random_cells, "In random removal A_f")[where] == (True, "98.50, first of 7; Retrain 98.00")
    difference = "2.00, second of 7; first: SISA 0.50 (the paper's text: 4.09)"
    assert answer(random_cells, "MIA_diff") == {"Digit random10": (True, difference)}


def test_methods_are_compared_on_the_seeds_that_all_of_them_have(random_cells):
    """A second, much better seed of CaMU alone changes nothing but what is said of CaMU alone."""
    text = "In random removal A_ts"
    before = answer(random_cells, text), answer(random_cells, "MIA_diff")
    write(random_cells, "cells", "Digit", "random10", "CaMU", 1, metrics=random_metrics(99, 98, 99.9, 50))
    assert (answer(random_cells, text), answer(random_cells, "MIA_diff")) == before
    removed = {"A_r": 99, "A_f": 0, "A_ts": 89, "A_ts_r": 98.8, "A_ts_f": 0, "MIA": 25}
    for seed in (0, 1):
        write(random_cells, "cells", "Digit", "class0", "CaMU", seed, metrics=removed)
    write(random_cells, "cells", "Digit", "class0", "SISA", 0, metrics=removed)
    assert answer(random_cells, "In class removal A_ts_f")["Digit class0 (2)"] == (True, "0.00")


def test_times_under_two_sets_of_conditions_are_no_answer(tmp_path):
    seconds = dict.fromkeys(METHODS, 5.0) | {"CaMU": 2.0, "Unroll": 1.0}
    text, place = "The time, random removal", "Digit random10 (1)"
    for method, value in seconds.items():
        content = {"metrics": {}, "time_s": value, "conditions": QUIET}
        write(tmp_path, "efficiency", "Digit", "random10", method, 0, **content)
    assert answer(tmp_path, text)[place] == (True, "2.00, second of 7; first: Unroll 1.00")
    for method in METHODS:
        content = {"metrics": {}, "time_s": 1.0, "conditions": QUIET | {"threads": 2}}
        write(tmp_path, "efficiency", "Digit", "random10", method, 1, **content)
    assert answer(tmp_path, text) == {"Digit random10, Fashion random10": (None, "")}


def test_a_method_of_your_own_alone_answers_nothing(tmp_path):
    write(tmp_path, "cells", "Digit", "random10", "Finetune", 0, metrics=random_metrics(99, 98, 97, 50))
    assert {holds for _, _, holds, _ in claims.answers(summary.read_cells(tmp_path))} == {None}


def test_a_claim_that_does_not_hold(random_cells):
    for method in ("NegGrad", "SCRUB"):
        write(random_cells, "cells", "Digit", "random10", method, 0, metrics=random_metrics(99, 98.1, 99, 50))
    assert answer(random_cells, "In random removal A_f")["Digit random10 (1)"] == (
        False,
        "98.50, third of 7; first: NegGrad 98.10; Retrain 98.00",
    )
    assert answer(random_cells, "In random removal A_ts")["Digit random10 (1)"][0] is False
    assert answer(random_cells, "MIA_diff")["Digit random10"][0] is False


def test_what_lacks_a_method_is_not_measured(random_cells):
    (random_cells / "cells/Digit/random10/Unroll/seed0.json").unlink()
    assert answer(random_cells, "In random removal A_ts") == {"Digit random10, Fashion random10": (None, "")}
    assert answer(random_cells, "MIA_diff") == {"all data sets": (None, "")}
    table = report.claims_table(summary.read_cells(random_cells))
    assert "| In random removal A_ts is the second-highest | Digit random10, Fashion random10 | not measured |" in table


def test_class_removal_and_its_ablation(tmp_path):
    metrics = {"A_r": 99, "A_f": 0, "A_ts": 89, "A_ts_r": 98.8, "A_ts_f": 0, "MIA": 25}
    write_cells(tmp_path, "class0", {"others": metrics, "CaMU": metrics | {"A_ts_r": 98.9}})
    write_cells(tmp_path, "class1", {"others": metrics | {"A_ts_f": 0.1}}, ["CaMU"])
    variants = {"Remain-alignment": metrics | {"A_ts_f": 97}, "Counterfactual": metrics | {"A_ts_r": 98.9}}
    write_cells(tmp_path, "class0", variants, variants, tree="ablation")
    zero = answer(tmp_path, "In class removal A_ts_f")
    assert zero["Digit class0 (1)"] == (True, "0.00") and zero["Digit class1 (1)"] == (False, "0.10")
    assert answer(tmp_path, "In class removal A_ts_r")["Digit class0 (1)"] == (True, "98.90, first of 7")
    assert answer(tmp_path, "Without counterfactual terms a")["Digit class0 (1)"] == (True, "A_ts_f 97.00, CaMU 0.00")
    assert answer(tmp_path, "Without the KL on x_r, A_ts_r")["Digit class0 (1)"] == (False, "A_ts_r 98.90, CaMU 98.90")


def test_the_ablation_is_compared_with_camu_on_its_own_seeds(tmp_path):
    """Seed 0 of a variant beside seed 0 of CaMU, whatever the other methods and seeds of the plain run have."""
    metrics = {"A_r": 99, "A_f": 0, "A_ts": 89, "A_ts_r": 98.8, "A_ts_f": 0, "MIA": 25}
    for seed, a_ts_f in ((0, 0), (1, 60)):
        write_cells(tmp_path, "class0", {"others": metrics | {"A_ts_f": a_ts_f}}, ["Retrain", "CaMU"], seed=seed)
    write_cells(tmp_path, "class0", {"others": metrics}, ["SISA"], seed=1)
    write_cells(tmp_path, "class0", {"others": metrics | {"A_ts_f": 20}}, ["Remain-alignment"], tree="ablation")
    found = answer(tmp_path, "Without counterfactual terms a")
    assert found["Digit class0 (1)"] == (True, "A_ts_f 20.00, CaMU 0.00")


def test_a_method_of_ones_own_leaves_the_claims_alone(random_cells):
    before = claims.answers(summary.read_cells(random_cells))
    for method in ("Mine", "Finetune"):
        write(random_cells, "cells", "Digit", "random10", method, 1, metrics=random_metrics(99, 98, 99.9, 50))
    assert claims.answers(summary.read_cells(random_cells)) == before


def test_times_under_the_same_conditions_and_relearning(tmp_path):
    for i, method in enumerate(("Retrain", "Unroll", "CaMU", *(m for m in OTHERS if m != "Unroll"))):
        write(tmp_path, "efficiency", "Digit", "random10", method, 0, metrics={}, time_s=i + 1.0, conditions=QUIET)
        steady = 90.0 if method == "CaMU" else 91.0
        write(tmp_path, "relearn", "Digit", "random10", method, 0, A_r=[90.0, steady], A_f=[90.0, 92.0])
    assert answer(tmp_path, "The time, random")["Digit random10 (1)"] == (True, "3.00, second of 7; first: Unroll 2.00")
    assert answer(tmp_path, "Relearning, random removal: the steadiest A_r")["Digit random10 (1)"][0]
    assert answer(tmp_path, "Relearning, random removal: the steadiest A_f")["Digit random10 (1)"] == (
        True,
        "2.00, first of 7",
    )
    other = QUIET | {"threads": 2}
    write(tmp_path, "efficiency", "Digit", "random10", "SISA", 0, metrics={}, time_s=3.0, conditions=other)
    assert answer(tmp_path, "The time, random") == {"Digit random10, Fashion random10": (None, "")}
