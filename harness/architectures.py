"""Architectures of one's own for the command line, and their trained weights."""

import functools
import hashlib
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torchvision

import models
from harness.store import explained, load_tensors, require

NESTS = ("state_dict", "model_state_dict", "model", "state")  # where a file may hold its state dict


def with_architecture(dataset, config):
    """The data set with the model that --model and its companions name; a UserError if it does not fit the images."""
    if not config.model:
        return dataset
    name = f"{config.model}@{config.layer}" + (f"|{config.pool}" if config.pool != "flatten" else "")
    name += f"+{config.weights}" if config.weights else ""
    if config.model.rpartition(":")[0].endswith(".py"):
        name += "#" + source_digest(config.model)  # another source is another model
    dataset = replace(dataset, model=name)
    classes, x = len(dataset.classes), dataset.train.batch(torch.arange(min(2, len(dataset.train))))
    cannot = f"--model {config.model} cannot be built for images of {tuple(x.shape[1:])}"
    with explained(cannot, Exception), torch.no_grad():  # it is the user's code
        logits, _ = models.build(name, classes, seed=0).eval()(x)
    require(
        logits.shape == (len(x), classes),
        f"--model {config.model} gives {tuple(logits.shape)} for {len(x)} images of {classes} classes",
    )
    return dataset


def source_digest(model):
    return hashlib.sha256(Path(model.rpartition(":")[0]).read_bytes()).hexdigest()[:8]


def check_architecture(config):
    """Check what --model, --layer and --checkpoint say, as far as it can be done without data."""
    require(
        bool(config.model) == bool(config.layer),
        "--model and --layer belong together: the layer's output is the representation",
    )
    require(
        config.model or (not config.weights and config.pool == "flatten"),
        "--pool and --weights go with --model, which is not given",
    )
    if config.model:
        function_of(config.model, config.weights)
    require(
        not config.checkpoint or Path(config.checkpoint).is_file(),
        f"--checkpoint {config.checkpoint}: there is no such file",
    )
    require(
        not config.checkpoint or len(config.dataset) == 1,
        f"--checkpoint is of one data set, and --dataset names {len(config.dataset)}",
    )


def fresh(name):
    """The function of the number of classes that builds the model of this name, from `with_architecture`."""
    form = r"(.+)@([^@|+#]*)(?:\|(\w+))?(?:\+(\w+))?(?:#(\w+))?"
    text, layer, pool, weights, digest = re.fullmatch(form, name).groups()
    function = function_of(text, weights)
    same = not digest or digest == source_digest(text)
    require(same, f"--model {text}: the file has changed since this model was made")
    return lambda classes: models.Represented(function(classes), layer, pool or "flatten")


def function_of(text, weights=None):
    """A function of the number of classes, from torchvision:<name> or <file>.py:<function>."""
    source, _, name = text.rpartition(":")
    require(
        not weights or source == "torchvision",
        f"--weights {weights} are torchvision's, and --model is {text}; for your own use --checkpoint",
    )
    if source == "torchvision":
        require(
            name in torchvision.models.list_models(torchvision.models),
            f"--model {text}: torchvision has no such classifier; it has resnet50, vit_b_16 and others",
        )
        known = ["", None, *torchvision.models.get_model_weights(name).__members__]
        require(weights in known, f"--weights {weights}: {name} has {', '.join(known[2:])}")
        return lambda classes: torchvision_model(name, classes, weights)
    require(
        source.endswith(".py") and Path(source).is_file(),
        f"--model {text}: write torchvision:<name>, or <file>.py:<function> for a file that is there, seen from here",
    )
    spec = importlib.util.spec_from_file_location("own_architecture", source)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    if (folder := str(Path(source).parent.resolve())) not in sys.path:
        sys.path.append(folder)  # for the modules beside it
    with explained(f"--model {text}", Exception):  # it is the user's code
        spec.loader.exec_module(module)
        return getattr(module, name)


def torchvision_model(name, classes, weights=None):
    """One of torchvision's, fresh, or with its pre-trained weights wherever their shapes fit: all but the head's."""
    net = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if weights:
        shapes = {key: value.shape for key, value in net.state_dict().items()}
        known = pretrained_weights(name, weights)
        net.load_state_dict({k: v for k, v in known.items() if v.shape == shapes[k]}, strict=False)
    return net


@functools.cache
def pretrained_weights(name, weights):
    with explained(f"--weights {weights} cannot be loaded", OSError, RuntimeError):  # no network, or a wrong hash
        return torchvision.models.get_model_weights(name)[weights].get_state_dict(progress=False, check_hash=True)


def own_weights(path, dataset):
    """The state dict of a user's checkpoint for the data set's model; a UserError says what does not fit."""
    cannot = f"--checkpoint {path} cannot be read, save a state dict with torch.save"
    with explained(cannot, Exception):  # zip and pickle readers each raise their own
        stored = torch.load(path, weights_only=True, map_location="cpu")
        if isinstance(stored, dict) and stored.keys() == {"file", "values"}:  # this program's own: it has a checksum
            stored = load_tensors(path)
    while isinstance(stored, dict) and (inner := [k for k in NESTS if isinstance(stored.get(k), dict)]):
        stored = stored[inner[0]]
    require(
        isinstance(stored, dict) and all(isinstance(value, torch.Tensor) for value in stored.values()),
        f"--checkpoint {path} holds no state dict; save one with torch.save(net.state_dict(), path)",
    )
    model = models.build(dataset.model, len(dataset.classes), seed=0)
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and torch.compile
        stored = {name.removeprefix(prefix): value for name, value in stored.items()}
    ours = not isinstance(model, models.Represented) or stored.keys() == model.state_dict().keys()
    own = model if ours else model.model
    with explained(f"--checkpoint {path} does not fit --model {dataset.model}", RuntimeError):
        own.load_state_dict(stored)
    finite = all(value.isfinite().all() for value in stored.values() if value.is_floating_point())
    require(finite, f"--checkpoint {path} holds nan or infinity")
    return models.cpu_state(model)
