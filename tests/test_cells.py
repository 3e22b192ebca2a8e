"""What determines a cell, and how it is computed: no committed result may silently become one of other settings."""

import json
import os
import platform
import re
import shlex
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
import tyro
from conftest import ROOT, make_toy_dataset, same_weights

from config import TREES, Config
from data import make_splits
from harness import cells
from harness.cells import Cell, cell_spec, commit, key, pretrained_spec, provenance, run_cell
from harness.datasets import load
from harness.plan import Plan, check
from harness.store import UserError, load_tensors, save_tensors
from harness.tasks import parse_task, parse_tasks
from metrics import accuracy, predict

OTHER_SETTINGS = "NegGrad.stop=0 NegGrad.epochs=5 Boundary.lr=2e-3 SCRUB.lr=3e-4 Unroll.lr=3e-3 Unroll.epochs=1"
# Folder of cells below results/ -> the options it was made with.
STUDIES = {
    "": {},
    "retrain-10-epochs": {"retrain_epochs": 10},
    "label-noise": {"label_noise": 20.0, "pretrain_epochs": 60, "retrain_epochs": 60},
    "longer-T-S": {"override": ("T-S.epochs=10", "T-S.lr=1e-3")},
    "other-settings": {"override": tuple(OTHER_SETTINGS.split())},
    "other-pretraining/9-epochs": {"pretrain_epochs": 9},
    "other-pretraining/11-epochs": {"pretrain_epochs": 11},
    "other-pretraining/20-epochs": {"pretrain_epochs": 20},
    "other-pretraining/2-threads": {"threads": 2},
}
OTHER_PASSES = {"class": ("CaMU.passes=2",), "random": ("CaMU.passes=1",)}  # of the folder other-passes
MADE_ON_A_GPU = ("random15", "random20", "class1", "class2")  # the tasks of the folder ""
CIFAR = "CIFAR10"  # whose images the tests do not have


def committed(study, cifar=False):
    """(tree, record) of every cell of a study."""
    made = [tree for tree in TREES if tree != "audit"]
    paths = [path for tree in made for path in (ROOT / "results" / study).glob(f"{tree}/*/*/*/seed*.json")]
    return [(path.parts[-5], json.loads(path.read_text())) for path in sorted(paths) if (CIFAR in path.parts) == cifar]


@pytest.fixture(scope="module")
def load_once(real_data):
    return cache(lambda name, noise: (dataset := load(name, real_data, None, noise), dataset.fingerprint()))


@pytest.fixture
def any_device(monkeypatch):
    monkeypatch.setattr(cells, "resolve_device", lambda config: config.device)


@pytest.mark.parametrize("study", STUDIES)
def test_committed_cells_are_still_of_the_same_configuration(study, load_once, any_device):
    found = committed(study)
    assert len(found) == 832 if study == "" else found
    for tree, record in found:
        dataset, fingerprint = load_once(record["dataset"], STUDIES[study].get("label_noise", 0))
        made = record["config"]
        assert made["device"] == ("cuda" if study == "" and record["task"] in MADE_ON_A_GPU else "cpu")
        options = {"threads": made["threads"], "kernels": made.get("kernels", "native"), "device": made["device"]}
        given = re.search(r"--checkpoint (results\S+)", record.get("command", ""))
        options |= STUDIES[study] | {"checkpoint": str(ROOT / given[1]) if given else ""}
        config = Config(dataset=(record["dataset"],), **options)
        task = parse_task(record["task"].replace("-then-", ">"))
        cell = Cell(record["dataset"], task, record["method"], record["seed"], tree)
        splits = make_splits(dataset, cell.task, cell.seed)
        spec = cell_spec(cell, dataset, splits, pretrained_spec(dataset, fingerprint, config), config)
        assert spec == record["config"], f"{tree} {cell}"


@pytest.mark.parametrize("study, count", [("", 12), ("other-passes", 2), ("other-pretraining/lr-1e-3", 4)])
def test_committed_cifar_cells_are_still_of_the_same_configuration(study, count, any_device):
    dataset = replace(make_toy_dataset(), name=CIFAR, model="ResNet-18")
    found = committed(study, cifar=True)
    assert len(found) == count
    for tree, record in found:
        cell = Cell(CIFAR, parse_task(record["task"]), record["method"], record["seed"], tree)
        splits = make_splits(dataset, cell.task, cell.seed)
        options = {"override": OTHER_PASSES[splits[0].kind] if study == "other-passes" else ()}
        options |= {"lr": 1e-3} if study.endswith("lr-1e-3") else {}
        config = Config(dataset=(CIFAR,), device="cuda", **options)
        spec = cell_spec(cell, dataset, splits, pretrained_spec(dataset, record["config"]["data"], config), config)
        assert spec | {"forget_set": record["config"]["forget_set"]} == record["config"], f"{tree} {cell}"


QUICK = ("CaMU.repeats=1", "SISA.shards=2", "SISA.slices=2")
TOY = Config(dataset=("Toy",), tasks=("class0",), pretrain_epochs=2, retrain_epochs=2, override=QUICK, device="cpu")


def spec_of(cell, config=TOY):
    dataset = make_toy_dataset()
    pretrained = pretrained_spec(dataset, dataset.fingerprint(), config)
    return cell_spec(cell, dataset, make_splits(dataset, cell.task, cell.seed), pretrained, config)


def cell(method="CaMU", tree="cells", task="class0", seed=0):
    return Cell("Toy", parse_task(task), method, seed, tree)


@pytest.fixture(scope="module")
def compute():
    """Runs a cell of the toy data set; returns its record and what is stored of its model."""
    dataset = make_toy_dataset()
    pretrained = pretrained_spec(dataset, dataset.fingerprint(), TOY)
    f_o_state = cells.pretrain(dataset, pretrained)["state"]

    def run(cell, **given):
        spec, prepared = spec_of(cell), None
        if cell.method == "SISA":
            row = spec_of(replace(cell, task=parse_task("class0")))["hyperparameters"]
            prepared = [cells.prepare_shard(k, "SISA", row, dataset, pretrained)["states"] for k in range(2)]
        return run_cell(cell, spec, dataset, f_o_state, prepared, **given)

    return run


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 16},
        {"threads": 2},
        {"pretrain_epochs": 3},
        {"override": ("CaMU.lr_ce=1e-4",)},
        {"override": ("CaMU.passes=2",)},
        {"precision": "bf16"},
        {"kernels": "portable"},
        {"label_noise": 20.0},
    ],
    ids=str,
)
def test_whatever_changes_the_numbers_changes_the_specification(changes):
    assert spec_of(cell(), replace(TOY, **changes)) != spec_of(cell())
    rest = {"results_dir": "x", "jobs": 3, "save_models": True, "seeds": (7,), "override": (*QUICK, "T-S.epochs=9")}
    assert spec_of(cell(), replace(TOY, **rest)) == spec_of(cell())


def test_every_cell_has_its_own_specification():
    others = [cell(seed=1), cell(task="class1"), cell("Retrain"), cell("Finetune", "ablation"), cell(tree="relearn")]
    specs = [json.dumps(spec_of(one), sort_keys=True) for one in (cell(), *others)]
    assert len(set(specs)) == 6 == len({key(json.loads(spec)) for spec in specs})
    assert spec_of(cell(tree="efficiency")) == spec_of(cell())  # the same numbers; what differs is its time
    assert spec_of(others[3])["hyperparameters"]["terms"] == ["CE_r"]
    assert spec_of(cell(tree="relearn"))["relearn"] == {"epochs": 10, "lr": 1e-3}


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_asked_for_in_vain_is_said():
    with pytest.raises(UserError, match="--device cuda: torch finds no such CUDA device here"):
        cells.resolve_device(replace(TOY, device="cuda"))
    assert cells.resolve_device(replace(TOY, device="auto")) == "cpu"
    with pytest.raises(UserError, match="--device mps: torch finds no Apple GPU here"):
        cells.resolve_device(replace(TOY, device="mps"))


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "cuda1", "mps:0", "CPU", ""])
def test_unknown_devices_are_refused(device):
    with pytest.raises(UserError, match="must be auto, cpu, cuda, cuda:<number> or mps"):
        cells.choose_gpu(replace(TOY, device=device))


@pytest.mark.parametrize("visible, chosen", [(None, "1"), ("", None), ("5", None), ("2,7", "7")])
def test_one_gpu_of_several_is_chosen_among_those_that_may_be_seen(monkeypatch, visible, chosen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    asked = replace(TOY, device="cuda:1")
    if chosen is None:
        with pytest.raises(UserError, match=r"cuda:1: CUDA_VISIBLE_DEVICES names \d GPUs, from 0"):
            cells.choose_gpu(asked)
        return
    assert cells.choose_gpu(asked).device == "cuda" and os.environ["CUDA_VISIBLE_DEVICES"] == chosen
    with pytest.raises(UserError, match="on a cluster Ray chooses the GPU"):
        cells.choose_gpu(replace(asked, cluster="local"))


def test_on_a_cluster_the_gpus_of_its_workers_count():
    with pytest.raises(UserError, match="needs --gpus-per-cell above 0"):
        cells.resolve_device(replace(TOY, device="cuda", cluster="local"))
    shared = replace(TOY, cluster="local", gpus_per_cell=0.5)
    assert [cells.resolve_device(replace(shared, device=name)) for name in ("auto", "cuda", "cpu")] == [
        "cuda",
        "cuda",
        "cpu",
    ]


def test_numbers_do_not_depend_on_what_ran_before(compute):
    """Nor do vanishing numbers count, whatever the process was set to."""
    record, stored, _ = compute(cell())
    compute(cell("Retrain", seed=1))
    torch.manual_seed(5)
    torch.set_flush_denormal(False)
    again, stored_again, _ = compute(cell())
    assert again["metrics"] == record["metrics"]
    assert all(torch.equal(stored["state"][name], stored_again["state"][name]) for name in stored["state"])
    assert torch.tensor([1e-39]).mul(1).count_nonzero() == 0
    other, _, _ = compute(cell(task="random20", seed=1))
    assert list(other["metrics"]) == ["A_r", "A_f", "A_ts", "MIA"] and other["metrics"] != record["metrics"]


@pytest.mark.parametrize("method, jobs", [("CaMU", 3), ("SISA", None)])
def test_a_record_says_what_it_is_and_the_stored_model_predicts_as_it_was_evaluated(compute, tmp_path, method, jobs):
    record, stored, outputs = compute(cell(method), jobs=jobs)
    assert (record["dataset"], record["task"], record["method"], record["seed"]) == ("Toy", "class0", method, 0)
    assert list(record["metrics"]) == ["A_r", "A_f", "A_ts", "A_ts_r", "A_ts_f", "MIA"] and record["time_s"] > 0
    assert record["config"] == stored["config"] == spec_of(cell(method))
    known = {"device": cells.device_name("cpu"), "threads": 1, "jobs": jobs}
    assert record["conditions"] == (known if jobs else None)  # on a cluster they are not known
    assert record["versions"].keys() == {"python", "torch", "device", "subnormal numbers"}
    save_tensors(tmp_path / "seed0.pt", stored)
    dataset = make_toy_dataset()
    model = cells.load_model(tmp_path / "seed0.pt")
    assert accuracy(predict(model, dataset.test), dataset.test.labels) == record["metrics"]["A_ts"]
    assert len(getattr(model, "members", [])) == (2 if method == "SISA" else 0)
    (found,) = outputs
    torch.testing.assert_close(found["test"].float(), predict(model, dataset.test).log(), atol=1e-2, rtol=1e-3)
    split = make_splits(dataset, parse_task("class0"), 0)[0]
    of_forget = predict(model, dataset.train)[split.forget].log()
    torch.testing.assert_close(found["forget"].float(), of_forget, atol=1e-2, rtol=1e-3)


def test_an_ablation_runs_with_the_terms_it_keeps(compute):
    """Finetune keeps the class, which nothing asks it to forget."""
    record, _, _ = compute(cell("Finetune", "ablation"))
    assert record["method"] == "Finetune" and record["config"]["method"] == "CaMU"
    assert record["metrics"]["A_f"] > compute(cell())[0]["metrics"]["A_f"]


def test_a_cell_of_several_requests_holds_what_each_came_to(compute):
    both, stored, outputs = compute(cell(task="class0>random10"))
    alone, _, _ = compute(cell())
    first, last = both["requests"]
    assert first["metrics"] == alone["metrics"] and last["metrics"] == both["metrics"]
    assert both["time_s"] == first["time_s"] + last["time_s"] and both["task"] == "class0-then-random10"
    assert [len(found["forget"]) for found in outputs] == [100, 140]  # of everything forgotten so far
    assert last["metrics"]["A_f"] < 50 and last["metrics"]["A_ts_f"] < 10  # the first request stays forgotten
    rows = both["config"]["hyperparameters"]
    assert rows == [spec_of(cell(task=task))["hyperparameters"] for task in ("class0", "random10")]
    found = cells.run_relearning(
        cell(tree="relearn", task="class0>random10"),
        both["config"] | {"relearn": {"epochs": 1, "lr": 1e-3}},
        make_toy_dataset(),
        stored,
    )
    assert found["A_f"][0] == last["metrics"]["A_f"]


def test_retrain_and_sisa_redo_a_further_request_from_what_remains(compute):
    for method in ("Retrain", "SISA"):
        both, _, _ = compute(cell(method, task="class0>class1"))
        once, _, _ = compute(cell(method, task="class0,1"))
        assert both["metrics"]["A_ts_f"] == once["metrics"]["A_ts_f"] == 0


def test_an_accuracy_on_test_samples_is_of_classes_that_are_still_there(monkeypatch):
    """The stop of NegGrad reads it: a class that an earlier request removed would pull it down."""
    dataset = make_toy_dataset()
    wrong_on_0 = torch.nn.functional.one_hot(dataset.test.labels.clamp(min=1), 4)
    monkeypatch.setattr(cells, "predict", lambda model, images: wrong_on_0)
    first, second = make_splits(dataset, parse_task("class0>random10"), seed=0)
    assert [cells.test_accuracy(None, dataset, split) for split in (first, second)] == [75, 100]


def test_the_floor_is_retrain_from_other_weights(compute):
    (retrain, _, theirs), (floor, _, ours) = (compute(cell(method)) for method in ("Retrain", "Floor"))
    assert floor["config"] == retrain["config"] | {"weights": "others"} and floor["method"] == "Floor"
    assert not torch.equal(theirs[0]["test"], ours[0]["test"])


def test_times_go_on_from_an_interrupted_run_and_a_damaged_state_is_set_aside(compute, tmp_path, monkeypatch):
    undisturbed, stored, _ = compute(cell("Retrain"))
    partial = tmp_path / "x-cells.partial.pt"
    partial.write_bytes(b"no tensors")
    monkeypatch.setattr("training.SAVE_EVERY_S", 0)
    record, again, _ = compute(cell("Retrain"), partial=partial)
    assert record["metrics"] == undisturbed["metrics"] and (tmp_path / "x-cells.partial.pt.damaged").exists()
    state = load_tensors(partial)
    assert state["epoch"] == 2
    save_tensors(partial, state | {"seconds": 1000.0})
    record, again, _ = compute(cell("Retrain"), partial=partial)
    assert 1000 < record["time_s"] < 1100 and record["metrics"] == undisturbed["metrics"]
    assert same_weights(*(cells.restore_model(one) for one in (stored, again)))


def test_relearning_starts_from_the_stored_model_and_gives_each_of_sisas_its_own_share(compute, monkeypatch):
    def relearn(*arguments, shares, function=cells.relearn, **given):
        seen.extend(shares)
        return function(*arguments, shares=shares, **given)

    seen = []
    monkeypatch.setattr(cells, "relearn", relearn)
    monkeypatch.setattr(cells, "RELEARN_EPOCHS", 1)
    record, stored, _ = compute(cell("SISA"))
    again = cell("SISA", "relearn")
    found = cells.run_relearning(again, spec_of(again), make_toy_dataset(), stored)
    assert found["config"] == spec_of(again) and found["conditions"] is None
    for name in ("A_r", "A_f"):
        assert found[name][0] == record["metrics"][name] and len(found[name]) == 2
    remain = make_splits(make_toy_dataset(), again.task, 0)[0].remain
    parts = cells.METHODS["SISA"].shard_slices(400, 2, 2)
    assert sorted(torch.cat(seen).tolist()) == remain.tolist()
    assert all(torch.isin(share, torch.cat(slices)).all() for share, slices in zip(seen, parts))


def test_a_processor_that_linux_does_not_name_is_called_by_its_architecture(monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert cells.device_name("cpu") == platform.machine()


def test_the_recorded_command_gives_the_same_cells_again(toy_config):
    """Every setting is changed from its default; those that the command leaves out determine no numbers."""
    config = replace(
        toy_config,
        tasks=("class0,3", "random20"),
        methods=("SISA", "CaMU"),
        seeds=(3, 1),
        study="paper",
        data_root="elsewhere",
        device="cpu",
        threads=2,
        jobs=2,
        gpus_per_cell=0.5,
        batch_size=16,
        precision="bf16",
        kernels="portable",
        label_noise=5.0,
        time_limit=1e6,
        image_size=40,
        pretrain_epochs=2,
        retrain_epochs=3,
        override=("CaMU.lr_ce=1e-4", "SISA.shards=2"),
        save_models=True,
        overwrite=True,
    )
    python, program, *arguments = shlex.split(provenance(config)["command"])
    again = tyro.cli(Config, args=arguments)
    assert (python, program) == ("python", "main.py")
    changed = {field.name for field in fields(Config) if getattr(config, field.name) != getattr(again, field.name)}
    places = {"data_root", "results_dir", "checkpoints_dir"}
    assert changed == places | {"jobs", "gpus_per_cell", "time_limit", "save_models", "overwrite", "quiet"}
    first, second = (Plan(make_toy_dataset(), parse_tasks(c.tasks), c) for c in (config, again))
    assert first.specs == second.specs and len(first.specs) == 4 * (4 * 2 + 2 * 4)


def test_the_command_names_what_was_left_to_the_machine_and_quotes_for_the_shell(tmp_path, small_config):
    (tmp_path / "to forget.txt").write_text("1")
    config = check(replace(small_config, device="auto", tasks=(f"ids:{tmp_path}/to forget.txt",)))
    words = shlex.split(provenance(config, "-m benchmarks.tune")["command"])
    assert words[:3] == ["python", "-m", "benchmarks.tune"] and "all" not in words and "auto" not in words
    again = tyro.cli(Config, args=words[3:])
    assert again.methods == config.methods and again.tasks == config.tasks and again.device in ("cpu", "cuda")
    assert again.image_size is None and "--override" not in words


def test_the_commit_is_that_of_this_checkout_or_unknown(monkeypatch):
    if (ROOT / ".git").exists():
        assert provenance(TOY)["commit"] == commit() != "unknown"
    with monkeypatch.context() as patch:  # as where the code lies unpacked in a checkout of something else
        patch.setattr(cells, "__file__", str(ROOT / "results/cells/cells.py"))
        assert commit() == "unknown"
    monkeypatch.setenv("PATH", "")  # without git
    assert commit() == "unknown"
