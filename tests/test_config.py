import pytest
import tyro

from config import STUDIES, TREES, Config
from hyperparameters import HYPERPARAMETERS


def test_the_defaults_are_the_plain_study_of_two_tasks_with_every_method():
    found = tyro.cli(Config, args=[])
    assert found == Config() and (found.dataset, found.tasks, found.seeds) == (
        ("OptDigits",),
        ("random10", "class0"),
        (0,),
    )
    assert (found.methods, found.study, found.batch_size, found.threads) == (("all",), "plain", 32, 1)


def test_the_study_of_the_paper_is_all_others():
    assert set(TREES) == {tree for trees in STUDIES.values() for tree in trees}
    assert all(set(trees) <= set(TREES) for trees in STUDIES.values())


def test_options_are_read():
    text = "--dataset Digit Fashion --methods CaMU T-S --seeds 0 1 2 --study ablation --image-size 48 --save-models"
    found = tyro.cli(Config, args=text.split())
    assert found == Config(
        dataset=("Digit", "Fashion"),
        methods=("CaMU", "T-S"),
        seeds=(0, 1, 2),
        study="ablation",
        image_size=48,
        save_models=True,
    )


def test_every_method_can_be_asked_for():
    assert tyro.cli(Config, args=["--methods", *HYPERPARAMETERS]).methods == tuple(HYPERPARAMETERS)


@pytest.mark.parametrize("option, value", [("methods", "Magic"), ("study", "magic"), ("seeds", "one")])
def test_options_with_other_values_are_refused(option, value, capsys):
    with pytest.raises(SystemExit) as ended:
        tyro.cli(Config, args=[f"--{option}", value])
    assert ended.value.code == 2 and f"--{option}" in capsys.readouterr().err


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--help"])
    text = capsys.readouterr().out
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    for line in ("what to forget: random<percent>", "no progress bars", "CPU threads per cell"):
        assert line in text
