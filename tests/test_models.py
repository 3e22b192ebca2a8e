import pytest
import torch
import torchvision
from conftest import colour_images, same_weights

import camu
import models
from data import tensor_split
from harness.store import UserError
from hyperparameters import hyperparameters_of, settings
from models import Represented


@pytest.mark.parametrize("name, shape, width", [("CNN", (3, 1, 28, 28), 256), ("ResNet-18", (3, 3, 40, 40), 512)])
def test_a_model_is_drawn_from_its_seed_alone(name, shape, width):
    state = torch.get_rng_state()
    first, again, other = (models.build(name, 7, seed).eval() for seed in (1, 1, 2))
    assert same_weights(first, again) and not same_weights(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    logits, z = first(torch.rand(shape))
    assert logits.shape == (3, 7) and z.shape == (3, width)
    torch.testing.assert_close(first.head(z), logits)


def test_the_cnn_is_the_papers():
    """Section A.2.4: two convolutions with ReLU and pooling, and linear layers from 1568 over 256 and 128 numbers."""
    model = models.build("CNN", 10, seed=0)
    x = torch.rand(5, 1, 28, 28)
    weights, biases = ([p for p in model.parameters() if (p.dim() == 1) == flat] for flat in (False, True))
    shapes = [tuple(weight.shape) for weight in weights]
    assert shapes == [(16, 1, 5, 5), (32, 16, 5, 5), (256, 1568), (128, 256), (10, 128)]
    z = x
    for weight, bias in zip(weights[:2], biases):
        z = torch.nn.functional.conv2d(z, weight, bias, padding=2).relu()
        z = torch.nn.functional.max_pool2d(z, 2)
    z = z.flatten(1) @ weights[2].T + biases[2]
    logits, found = model(x)
    torch.testing.assert_close(found, z)
    torch.testing.assert_close(logits, (z @ weights[3].T + biases[3]) @ weights[4].T + biases[4])


def test_resnet_is_torchvisions_with_its_pooled_feature():
    model, own = models.build("ResNet-18", 4, seed=0).eval(), torchvision.models.resnet18(num_classes=4).eval()
    state = model.state_dict()
    own.load_state_dict({name.removeprefix("features.").replace("head.", "fc."): state[name] for name in state})
    x = torch.rand(2, 3, 40, 40)
    for ours, theirs in zip(model(x), Represented(own, "avgpool")(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_ensemble_is_the_mean_of_the_softmax_outputs():
    members = [models.build("CNN", 4, seed=k).eval() for k in range(3)]
    x = torch.rand(10, 1, 28, 28)
    logits, z = models.Ensemble(members)(x)
    torch.testing.assert_close(logits.exp(), torch.stack([member(x)[0].softmax(1) for member in members]).mean(0))
    torch.testing.assert_close(z, torch.stack([member(x)[1] for member in members]).mean(0))


@pytest.mark.parametrize("members", [0, 2])
def test_a_model_is_restored_from_a_copy_of_its_weights(members):
    model = models.build("CNN", 4, seed=3)
    if members:
        model = models.Ensemble([model, models.build("CNN", 4, seed=4)])
    state = models.cpu_state(model)
    with torch.no_grad():
        next(model.parameters()).zero_()  # the copy does not follow
    restored = models.restore("CNN", 4, state, members=members)
    assert not restored.training and not same_weights(restored, model)
    model.load_state_dict(state)
    assert same_weights(restored, model)


def test_any_layer_can_be_the_representation():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 2 * 2, 5))
    x = torch.rand(3, 1, 4, 4)
    logits, z = Represented(net, "0")(x)
    assert torch.equal(logits, net(x)) and torch.equal(z, net[0](x).flatten(1))
    assert not net[0]._forward_hooks
    with pytest.raises(UserError, match=r"no layer 'pool'; its layers are 0, 1, 2"):
        Represented(net, layer="pool")


def train_net(net, x, y, epochs):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    rng = torch.Generator().manual_seed(0)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=rng).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    return net.eval()


def accuracy(model, x, y):
    with torch.no_grad():
        return (model(x)[0].argmax(1) == y).float().mean().item()


@pytest.mark.slow
def test_a_model_of_torchvision_forgets_a_class_or_a_sample_and_keeps_the_rest():
    """With the hyperparameters of own data."""
    pixels, y = colour_images(160)
    kept = (y != 2) | (torch.arange(160) < 32)  # 8 samples of this class make the joint dataset a small one
    x, y = pixels[kept] / 127.5 - 1, y[kept]
    torch.manual_seed(0)
    net = train_net(torchvision.models.resnet18(num_classes=4), x, y, epochs=6)
    f_o = Represented(net, layer="avgpool")
    before = accuracy(f_o, x, y)
    assert before > 0.9

    split = tensor_split(x, y, (y == 2).nonzero()[:, 0])
    f_u = camu.unlearn(f_o, split, settings(hyperparameters_of("CaMU", "own", split.kind), seed=0))
    assert split.kind == "class" and accuracy(f_u, x[y == 2], y[y == 2]) < 0.05
    assert accuracy(f_u, x[y != 2], y[y != 2]) > before - 0.05
    logits, z = f_u(x[:3])
    assert logits.shape == (3, 4) and z.shape[0] == 3 and z.dim() == 2

    split = tensor_split(x, y, [5])
    f_u = camu.unlearn(f_o, split, settings(hyperparameters_of("CaMU", "own", split.kind), seed=0))
    assert split.kind == "few" and accuracy(f_u, x, y) > before - 0.02
    assert accuracy(f_o, x, y) == before
