"""Architectures of other libraries forget a class, and what comes back can be exported."""

from dataclasses import replace

import onnx
import pytest
import torch
import torchvision
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from torch import nn

import camu
from harness.cells import load_model
from main import main
from training import adam


def pictures(count, side, seed):
    """Noise of (count, 3, side, side) over a pattern that tells the class, of four."""
    rng, y = torch.Generator().manual_seed(seed), torch.arange(count) % 4
    patterns = torch.randn(4, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(9))
    x = nn.functional.interpolate(patterns[y], size=side) + torch.randn(count, 3, side, side, generator=rng)
    return x, y


def learn(net, x, y, epochs, lr):
    """Train a classifier from outside, as its owner would."""
    torch.manual_seed(0)
    optimizer = adam(net, lr)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


ARCHITECTURES = [  # name, layer, pool, side of the images, epochs and rate of the training, repeats
    ("mobilenet_v3_small", "avgpool", "flatten", 32, 20, 1e-3, 20),
    ("convnext_tiny", "avgpool", "flatten", 32, 3, 1e-4, 5),
    ("vit_b_16", "encoder", "first", 16, 5, 3e-5, 10),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, layer, pool, side, epochs, lr, repeats", ARCHITECTURES)
def test_torchvisions_architectures_forget_a_class(name, layer, pool, side, epochs, lr, repeats):
    more = {"image_size": side} if name == "vit_b_16" else {}
    train, test = pictures(160, side, 0), pictures(80, side, 1)
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None, num_classes=4, **more)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # MobileNet's 0.01 would need many more steps than these
    learn(net, *train, epochs, lr)
    given = {"layer": layer, "pool": pool, "train": train, "test": test, "classes": [1], "lr": lr, "progress": False}
    with pytest.warns(UserWarning, match="MIA attacks 40 samples"):
        table = camu.compare(net, **given, override=(f"CaMU.repeats={repeats}",)).table
    assert table.A_ts["Original"] > 95
    assert table.A_ts_f["CaMU"] <= 5 and table.A_ts_r["CaMU"] >= 0.95 * table.A_ts_r["Original"]


def small_net(classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


@pytest.fixture(scope="module")
def comparison():
    torch.manual_seed(0)
    given = {"layer": "4", "train": pictures(200, 16, 0), "test": pictures(80, 16, 1), "forget": range(50)}
    methods = ("CaMU", "Retrain", "T-S")
    quick = ("CaMU.epochs=1", "CaMU.repeats=1")
    net = small_net()
    return net, camu.compare(net, **given, methods=methods, build=small_net, epochs=1, override=quick, progress=False)


@pytest.mark.parametrize("method", ["CaMU", "Retrain", "T-S"])
def test_what_comes_back_saves_with_safetensors_under_its_old_names(comparison, tmp_path, method):
    net, result = comparison
    save_file(result.models[method].state_dict(), tmp_path / "unlearned.safetensors")
    loaded = load_file(tmp_path / "unlearned.safetensors")
    assert sorted(loaded) == sorted(net.state_dict())
    net.load_state_dict(loaded)


def test_what_comes_back_is_exported_by_torch_and_to_onnx(comparison, tmp_path):
    net, x = comparison[1].models["CaMU"], pictures(5, 16, 2)[0]
    expected = net(x).detach()
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(exported, tmp_path / "unlearned.pt2")
    assert torch.equal(torch.export.load(tmp_path / "unlearned.pt2").module()(x[:3]), net(x[:3]))
    torch.onnx.export(net, (x,), tmp_path / "unlearned.onnx", dynamo=True, verbose=False)
    stored = onnx.load(tmp_path / "unlearned.onnx")
    onnx.checker.check_model(stored)
    (found,) = ReferenceEvaluator(stored).run(None, {stored.graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_net_keeps_its_names(tmp_path):
    net = torch.compile(small_net(), backend="eager")
    given = {"layer": "_orig_mod.4", "train": pictures(200, 16, 0), "test": pictures(80, 16, 1), "forget": range(50)}
    quick = ("CaMU.epochs=1", "CaMU.repeats=1")
    result = camu.compare(net, **given, methods=("CaMU",), override=quick, progress=False)
    assert list(result.models["CaMU"].state_dict()) == list(net.state_dict())


def test_a_saved_model_of_a_run_exports_too(toy_config, tmp_path):
    main(replace(toy_config, methods=("CaMU",), save_models=True))
    (path,) = (tmp_path / "checkpoints/unlearned").rglob("seed0.pt")
    save_file(load_model(path).state_dict(), tmp_path / "unlearned.safetensors")
