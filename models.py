"""The two models of the paper. Both return (logits, representation), the outputs of g . h and of h."""

import math
from contextlib import contextmanager

import torch
from torch import nn
from torchvision.models import resnet18

from harness.store import UserError, require


class Classifier(nn.Module):
    """g . h: `features` gives the representation, `head` reads the logits from it."""

    def forward(self, x):
        representation = self.features(x)
        return self.head(representation), representation


class CNN(Classifier):
    """Two convolutions and three linear layers (section A.2.4): (B, 1, 28, 28) -> logits (B, classes), (B, 256).

    The representation is the output of the first linear layer. Pooling comes before the ReLU: the two commute, and a
    quarter of the entries are left for the ReLU.
    """

    def __init__(self, classes):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(16, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(1568, 256),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(256, 128), nn.Linear(128, classes))


class ResNet18(Classifier):
    """torchvision's, without pre-trained weights: (B, 3, H, W) -> logits (B, classes), the pooled feature (B, 512)."""

    def __init__(self, classes):
        super().__init__()
        self.features = resnet18(weights=None)
        self.features.fc = nn.Identity()
        self.head = nn.Linear(512, classes)


POOLS = {  # how a representation becomes (B, d)
    "flatten": lambda z: z.flatten(1),
    "mean": lambda z: z.flatten(2).mean(2) if z.dim() == 4 else z.mean(1),  # over (H, W), or over L of (B, L, d)
    "first": lambda z: z[:, 0],  # the class token of (B, L, d)
}


class Represented(nn.Module):
    """Any classifier, made to give (logits, representation).

    The representation is the output of the submodule named `layer`, as in ``model.named_modules()``: what the
    classifier's head reads. `pool`, one of POOLS, makes it (B, d). `logits` takes the logits out of what the forward
    returns. By default they are that itself, its attribute or entry "logits", or its first entry. `inputs` makes the
    forward's arguments from x, a dict or a list. By default x is the only one. A UserError says what does not fit.
    """

    def __init__(self, model, layer, pool="flatten", logits=None, inputs=None):
        super().__init__()
        require(isinstance(model, nn.Module), f"the model is a {type(model).__name__}; it must be an nn.Module")
        known = [name for name, _ in model.named_modules() if name]
        require(layer in known, f"the model has no layer {layer!r}; its layers are {', '.join(known)}")
        require(pool in POOLS, f"pool {pool!r} is unknown; there are {', '.join(POOLS)}")
        self.model, self.layer, self.pool = model, layer, pool
        self.logits, self.inputs = logits or logits_of, inputs or (lambda x: [x])

    def forward(self, x):
        seen = []
        hook = self.model.get_submodule(self.layer).register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            given = self.inputs(x)
            logits = self.logits(self.model(**given) if isinstance(given, dict) else self.model(*given))
        finally:
            hook.remove()
        form = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        flat = isinstance(form, tuple) and len(form) == 2
        require(flat, f"the logits are {form}; they must be a tensor, (B, classes)")
        require(len(seen) == 1, f"layer {self.layer!r} ran {len(seen)} times in a forward pass; it must run once")
        require(
            isinstance(seen[0], torch.Tensor),
            lambda: f"layer {self.layer!r} returns a {type(seen[0]).__name__}; it must return a tensor",
        )
        z = POOLS[self.pool](seen[0])
        require(z.dim() == 2, f"layer {self.layer!r} gives {tuple(z.shape)} with pool {self.pool!r}; it must be (B, d)")
        return logits, z


@contextmanager
def on_embedding(model, change):
    """Meanwhile, let `change` be applied to the output of the model's embedding of tokens, its first nn.Embedding."""
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    hook = embedding.register_forward_hook(lambda _, __, z: change(z))
    try:
        yield
    finally:
        hook.remove()


def logits_of(output):
    """The logits in what a classifier's forward returns."""
    if isinstance(output, torch.Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    raise UserError(f"the forward returns a {type(output).__name__}: name a function that takes the logits out of it")


MODELS = {"CNN": CNN, "ResNet-18": ResNet18}


def function_of(model):
    """The function of the number of classes that builds a model: "CNN", "ResNet-18", itself, or named by the user."""
    if callable(model):
        return model
    if model in MODELS:
        return MODELS[model]
    from harness.architectures import fresh  # which needs this module

    return fresh(model)


def build(model, classes, seed, device="cpu"):
    """A model (see `function_of`) with fresh weights drawn from `seed` alone.

    It is in the channels-last layout, in which convolutions of 32 images run faster, on CPUs most of all.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = function_of(model)(classes)
    return fresh.to(device, memory_format=torch.channels_last)


class Ensemble(nn.Module):
    """SISA's model: its logits are the logarithm of the members' mean softmax. Nothing reads its representation."""

    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        logits, representations = zip(*(member(x) for member in self.members))
        log_p = torch.stack([own.log_softmax(1) for own in logits])
        return log_p.logsumexp(0) - math.log(len(self.members)), torch.stack(representations).mean(0)


def restore(name, classes, state, device="cpu", members=0):
    """A model with the weights of a state dict, in evaluation mode; with `members`, an `Ensemble` of so many."""
    parts = [build(name, classes, seed=0, device=device) for _ in range(members or 1)]
    model = Ensemble(parts) if members else parts[0]
    model.load_state_dict(state)
    return model.eval()


def cpu_state(model):
    """A copy of the model's state dict on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
