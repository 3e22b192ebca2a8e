"""Architectures of one's own for the command line, and their trained weights."""

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import torch
import torchvision

import models
from harness.store import UserError


def with_architecture(dataset, config):
    """The data set with the model that --model and --layer name; a UserError if it does not fit the images."""
    if not config.model:
        return dataset
    name = f"{config.model}@{config.layer}"
    source = Path(config.model.rpartition(":")[0])
    if source.suffix == ".py":
        name += "#" + hashlib.sha256(source.read_bytes()).hexdigest()[:8]  # another source is another model
    dataset = replace(dataset, model=name)
    model, classes = models.build(name, len(dataset.classes), seed=0).eval(), len(dataset.classes)
    x = dataset.train.batch(torch.arange(2))
    try:
        with torch.no_grad():
            logits, _ = model(x)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--model {config.model} does not take images of {tuple(x.shape[1:])}: {reason}")
    if logits.shape != (2, classes):
        raise UserError(f"--model {config.model} gives {tuple(logits.shape)} for 2 images of {classes} classes")
    return dataset


def check_architecture(config):
    """Check what --model, --layer and --checkpoint say, as far as it can be done without data."""
    if bool(config.model) != bool(config.layer):
        raise UserError("--model and --layer belong together: the layer's output is the representation")
    if config.model:
        function_of(config.model)
    if config.checkpoint and not Path(config.checkpoint).is_file():
        raise UserError(f"--checkpoint {config.checkpoint}: there is no such file")
    if config.checkpoint and len(config.dataset) > 1:
        raise UserError(f"--checkpoint is of one data set, and --dataset names {len(config.dataset)}")


def fresh(name):
    """The function of the number of classes that builds the model of this name, from `with_architecture`."""
    text, _, layer = name.partition("#")[0].rpartition("@")
    function = function_of(text)
    return lambda classes: models.Represented(function(classes), layer)


def function_of(text):
    """A function of the number of classes, from torchvision:<name> or <file>.py:<function>."""
    source, _, name = text.rpartition(":")
    if source == "torchvision":
        if name not in torchvision.models.list_models(torchvision.models):
            raise UserError(f"--model {text}: torchvision has no such classifier; it has resnet50, vit_b_16 and others")
        return lambda classes: torchvision.models.get_model(name, weights=None, num_classes=classes)
    if not source.endswith(".py") or not Path(source).is_file():
        raise UserError(f"--model {text}: write torchvision:<name>, or <file>.py:<function> for a file that is there")
    spec = importlib.util.spec_from_file_location("own_architecture", source)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, name)
    except Exception as error:  # it is the user's code
        raise UserError(f"--model {text}: {type(error).__name__}: {error}")


def own_weights(path, dataset):
    """The state dict of a user's checkpoint for the data set's model; a UserError says what does not fit."""
    try:
        stored = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # zip and pickle readers each raise their own
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--checkpoint {path} cannot be read: {reason}; save a state dict with torch.save")
    while isinstance(stored, dict) and (inner := [k for k in ("state_dict", "model", "state") if k in stored]):
        stored = stored[inner[0]]
    if not isinstance(stored, dict) or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        raise UserError(f"--checkpoint {path} holds no state dict; save one with torch.save(net.state_dict(), path)")
    model = models.build(dataset.model, len(dataset.classes), seed=0)
    own = model.model if isinstance(model, models.Represented) else model
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and torch.compile
        stored = {name.removeprefix(prefix): value for name, value in stored.items()}
    try:
        own.load_state_dict(stored)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--checkpoint {path} does not fit --model {dataset.model}: {reason}")
    return models.cpu_state(model)
