"""The benchmark of the first minutes on a GPU, and captured steps on a real one."""

import json

import pytest
import torch

from baselines import METHODS
from benchmarks import device
from harness.cells import use_machine

CUDA = torch.cuda.is_available()


@pytest.mark.slow
def test_it_measures_everything_and_writes_each_line_at_once(tmp_path, monkeypatch, capsys):
    runs = []
    monkeypatch.setattr(device, "STEPS", 4)
    monkeypatch.setattr(device, "METHODS", {name: METHODS[name] for name in ("Retrain", "CaMU", "SISA")})
    monkeypatch.setattr(device.program, "main", runs.append)
    monkeypatch.setattr(device, "cases", lambda *given, every=device.cases: {"CNN": every(*given)["CNN"]})
    device.main(device.Arguments(out=str(tmp_path), dataset="Digit", time_limit=5, images=64, jobs=2, mps=True))
    lines = [json.loads(line) for line in (tmp_path / "device.jsonl").read_text().splitlines()]
    assert capsys.readouterr().out.splitlines() == [json.dumps(line) for line in lines]
    same = [line for line in lines if line.get("what") == "captured equals eager"]
    assert len(same) == 3 and all(line["same"] for line in same)
    rates = [line for line in lines if line.get("what") == "training"]
    assert [(r["model"], r["precision"], r["way"]) for r in rates] == [
        ("CNN", precision, way) for precision in ("float32", "bf16") for way in ("captured", "eager")
    ]
    assert all(line["images_per_s"] > 0 and line["share_of_peak"] > 0 for line in rates)
    (together,) = [line for line in lines if line.get("what") == "training side by side"]
    assert together["processes"] == 2 and together["mps"] and together["images_per_s"] > 0
    assert [(config.dataset, config.time_limit) for config in runs] == [(("OptDigits",), None), (("Digit",), 5)]


def test_different_bits_are_told(monkeypatch):
    images = device.cases(300, torch.device("cpu"))["CNN"]
    calls = []

    def unlearn(f_o, split, settings):
        calls.append(1)
        return device.models.build("CNN", 10, seed=len(calls))

    monkeypatch.setattr(METHODS["T-S"], "unlearn", unlearn)
    assert not device.same_bits("T-S", "CNN", images)


@pytest.mark.skipif(not CUDA, reason="no CUDA device: captured steps are tested with a stand-in for the graph")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["CNN", "ResNet-18"])
def test_captured_steps_on_cuda_end_at_the_bits_of_eager_ones(method, model):
    use_machine({"device": "cuda", "threads": 1})  # else cuDNN's kernels may add in any order
    assert device.same_bits(method, model, device.cases(32 * 50 + 300, torch.device("cuda"))[model])
