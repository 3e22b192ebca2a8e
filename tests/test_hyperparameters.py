import math
import re

import pytest

from config import Config
from harness.store import UserError
from hyperparameters import FAMILIES, HYPERPARAMETERS, hyperparameters_of, parse_override, settings, training_row


def as_text(value):
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def test_every_method_has_a_row_for_every_kind_of_task():
    for method in HYPERPARAMETERS:
        for dataset in (*FAMILIES, "Own"):
            for model in ("CNN", "ResNet-18"):
                training = training_row(dataset, model)
                for kind in ("random", "class", "few", "large"):
                    row = hyperparameters_of(method, dataset, kind, training)
                    assert method == "Original" or row
                    for name, value in row.items():
                        assert value is None or parse_override(f"{method}.{name}={as_text(value)}") == (
                            method,
                            name,
                            value,
                        )


def test_published_settings():
    """Section A.2.4 of the paper."""
    found = {
        (family, kind): tuple(HYPERPARAMETERS["CaMU"][family, kind][name] for name in ("epochs", "lr_ce", "lr_kl"))
        for family in ("MNIST", "CIFAR")
        for kind in ("random", "class")
    }
    assert found == {
        ("MNIST", "random"): (10, 5e-4, 4e-4),
        ("MNIST", "class"): (2, 1e-3, 4e-4),
        ("CIFAR", "random"): (10, 1e-4, 1e-5),
        ("CIFAR", "class"): (2, 5e-5, 1e-5),
    }
    assert training_row("Fashion", "CNN") == {"pretrain_epochs": 10, "retrain_epochs": 20, "lr": 1e-3}
    assert training_row("CIFAR100", "ResNet-18") == {"pretrain_epochs": 20, "retrain_epochs": 40, "lr": 5e-5}


def test_training_takes_the_users_epochs():
    given = Config(pretrain_epochs=3)
    assert training_row("Own", "CNN", given) == training_row("Own", "CNN") | {"pretrain_epochs": 3}
    given = Config(pretrain_epochs=3, retrain_epochs=7, lr=0.1)
    assert training_row("Own", "torchvision:resnet50@avgpool", given) == {
        "pretrain_epochs": 3,
        "retrain_epochs": 7,
        "lr": 0.1,
    }


def test_the_closest_row_applies():
    table = HYPERPARAMETERS["NegGrad"]
    for place, arguments in {
        ("CIFAR", "any"): ("CIFAR100", "random"),
        ("any", "few"): ("Digit", "few"),
        ("any", "class"): ("Own", "class"),
    }.items():
        assert hyperparameters_of("NegGrad", *arguments) == table[place]
    assert hyperparameters_of("CaMU", "CIFAR100", "class")["repeats"] == 10
    assert hyperparameters_of("CaMU", "CIFAR10", "class")["repeats"] == 1
    assert hyperparameters_of("T-S", "Own", "class") == HYPERPARAMETERS["T-S"]["any", "any"]


def test_retrain_and_sisa_train_as_long_as_the_data_set_needs():
    training = training_row("Digit", "CNN")
    assert hyperparameters_of("Retrain", "Digit", "random", training) == {"epochs": 20, "lr": 1e-3}
    sisa = hyperparameters_of("SISA", "Digit", "random", training)
    assert sisa == {"shards": 5, "slices": 4, "epochs": 20, "lr": 1e-3}


def test_overrides_of_the_method_alone_apply():
    table = dict(hyperparameters_of("CaMU", "Digit", "class"))
    found = hyperparameters_of("CaMU", "Digit", "class", None, ("CaMU.lr_ce=1e-4", "T-S.epochs=7", "CaMU.repeats=3"))
    assert found == table | {"lr_ce": 1e-4, "repeats": 3}
    assert hyperparameters_of("CaMU", "Digit", "class") == table  # the table is not written to


@pytest.mark.parametrize(
    "text, found",
    [
        ("CaMU.epochs=3", ("CaMU", "epochs", 3)),
        ("T-S.remain_fraction=1", ("T-S", "remain_fraction", 1.0)),
        ("NegGrad.a=0", ("NegGrad", "a", 0.0)),
        ("CaMU.lr_kl=1e-5", ("CaMU", "lr_kl", 1e-5)),
        ("SCRUB.forget_batch_size=512", ("SCRUB", "forget_batch_size", 512)),
        ("SCRUB.decay_after=5,8,9", ("SCRUB", "decay_after", [5, 8, 9])),
        ("SCRUB.decay_after=", ("SCRUB", "decay_after", [])),
        ("Unroll.optimizer=SGD", ("Unroll", "optimizer", "SGD")),
        ("NegGrad.stop=0", ("NegGrad", "stop", 0)),
    ],
)
def test_overrides_are_read(text, found):
    assert parse_override(text) == found and type(parse_override(text)[2]) is type(found[2])


@pytest.mark.parametrize(
    "text, message",
    [
        ("CaMU.lr=1", "CaMU has no 'lr', only epochs"),
        ("CaMU.lr_ce=fast", "lr_ce must be a number from 0 to 1000000"),
        ("CaMU.lr_ce", "lr_ce must be a number from 0 to 1000000"),
        ("CaMU", "CaMU has no '', only epochs"),
        ("Original.lr=1", "Original has no 'lr'"),
        ("NegGrad.optimizer=adam", "optimizer must be Adam or SGD"),
        ("NegGrad.stop=2", "stop must be 0 or 1"),
        ("SCRUB.decay_after=3,0", "decay_after must be the numbers of epochs, from 1, separated by commas"),
        ("Magic.lr=1", "no method 'Magic', only Retrain"),
        ("CaMU.epochs=1.5", "CaMU.epochs=1.5: epochs must be a whole number from 1 to 99999"),
        ("Retrain.epochs=0", "epochs must be a whole number from 1 to 99999"),
        ("SISA.shards=0", "SISA.shards=0: shards must be a whole number from 1 to 99999"),
        ("SISA.slices=1e1", "slices must be a whole number from 1 to 99999"),
        ("CaMU.lr_ce=-1", "lr_ce must be a number from 0 to 1000000"),
        ("CaMU.lr_ce=nan", "lr_ce must be a number from 0 to 1000000"),
        ("CaMU.lr_ce=inf", "lr_ce must be a number from 0 to 1000000"),
        ("NegGrad.a=5", "a must be a number from 0 to 1"),
        ("T-S.remain_fraction=7", "remain_fraction must be a number from 0 to 1"),
        ("SCRUB.temperature=0", "temperature must be a number above 0"),
    ],
)
def test_bad_overrides_are_refused(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_override(text)


def test_settings_are_the_row_and_what_every_method_knows():
    found = vars(settings({"epochs": 3, "lr": math.pi}, seed=4, terms=("CE_r",)))
    usual = {"batch_size": 32, "progress": False, **dict.fromkeys(("partial", "prepared", "test_accuracy", "watch"))}
    assert found == usual | {"epochs": 3, "lr": math.pi, "seed": 4, "terms": ("CE_r",)}
