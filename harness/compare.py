"""One call for your own model and data: forget with several methods, evaluate and audit them."""

import copy
import math
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

import models
from audit import AUDIT, audit, reference_probabilities
from baselines import METHODS
from data import Dataset, Images, derive_seed, generator, whole_split
from harness.cells import test_accuracy, timed
from harness.datasets import check_test_samples
from harness.samples import check_labels, check_samples, packed, positions, read_samples
from harness.store import UserError
from hyperparameters import hyperparameters_of, settings, training_row
from metrics import FEWEST, METRICS, evaluate, gap, tug_of_war
from training import train as learn

FRESH = ("Retrain", "T-S", "SISA")  # the methods that need fresh weights
COLUMNS = (*METRICS, *AUDIT, "gap", "tug_of_war", "time_s")


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns."""

    table: pd.DataFrame
    """A row for each method: the metrics in percent, JS_f in bits, gap in points, ToW, and `time_s` in seconds."""
    models: dict
    """The unlearned models by the method's name, of the user's own class and in evaluation mode. SISA's is an
    `models.Ensemble`, which gives (log-probabilities, representation)."""


def compare(
    net, *, layer, train, test, forget=None, classes=None, methods=("Original", "CaMU"), build=None, seed=0,
    pool="flatten", logits=None, inputs="values", epochs=None, lr=None, override=(), references=(), progress=True,
):  # fmt: skip
    """Let a trained classifier forget with several methods, and compare the results.

    Parameters
    ----------
    net : nn.Module
        The trained classifier, on the device to compute on. It is not changed.
    layer, pool, logits : str, str, callable
        The representation, and where to find the logits in what the forward returns: see `models.Represented`.
    train, test : (x, y), Dataset, Subset or DataLoader
        The samples as the net takes them, and labels from 0. They are read into memory once.
    inputs : str
        "values", or "embedding" for whole numbers, such as tokens. They take no noise. CaMU's then goes onto the output
        of the net's embedding, its first nn.Embedding, and so does Boundary's step. This is ours: the paper has images
        only. Such an x may have several parts, as (ids, mask) or {"input_ids": ids, "attention_mask": mask}.
    forget : indices, boolean mask, optional
        The training samples to forget. Or `classes`, the labels whose samples are all to be forgotten.
    methods : sequence of str
        Names of `baselines.METHODS`. With Retrain among them, the others are compared with it.
    build : callable, optional
        ``build(classes)`` returns the same net with fresh weights; Retrain, T-S and SISA need it.
    seed : int
        The source of all randomness; seeds give the same result every time on the same machine.
    epochs, lr : int, float, optional
        Of Retrain and SISA; otherwise those of own data in `hyperparameters.TRAINING`. In class removal CaMU's rates
        follow from `lr` too.
    override : sequence of str
        Hyperparameters in place of the table's: "CaMU.lr_ce=1e-4".
    references : int or sequence of (nn.Module, indices), optional
        Reference models for the audit's RMIA, each with the positions of the training samples that it has seen. Or a
        number: so many are trained here with `build`, each on a random half.

    Raises
    ------
    UserError
        Says in one line what does not fit, before any work.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UserError(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    needing = [name for name in methods if name in FRESH] + (
        ["a reference model"] if isinstance(references, int) else []
    )
    if build is None and needing:
        raise UserError(f"{needing[0]} needs fresh weights: give build, a function of the number of classes")

    check_inputs(inputs, net)
    samples = {"train": train, "test": test}
    parts, (unpack, _) = zip(*(packed(*read_samples(samples[k], k, progress), k, inputs) for k in samples))

    def represented(net):
        return models.Represented(net, layer, pool, logits, unpack)

    f_o, fresh = represented(copy.deepcopy(net).eval()), build and (lambda count: represented(build(count)))
    device, count = next(net.parameters()).device, check(f_o, *parts)
    dataset = Dataset("own", fresh, *(Images(*part).to(device) for part in parts), tuple(map(str, range(count))))
    split = whole_split(dataset.train, count, fresh).next(chosen(forget, classes, dataset.train.labels))
    training = training_row("own", "ResNet-18", SimpleNamespace(retrain_epochs=epochs, lr=lr))
    rows = {name: hyperparameters_of(name, "own", split.kind, training, override) for name in methods}
    if isinstance(references, int):
        references = trained_references(references, dataset, seed, training, progress)
    else:
        references = [(represented(copy.deepcopy(own).eval()), torch.as_tensor(index)) for own, index in references]
    seen = reference_probabilities(*zip(*references), dataset) if references else None

    if (few := len(split.forget)) < FEWEST:
        error = 50 / math.sqrt(2 * few)
        warnings.warn(f"{few} to be forgotten: MIA, RMIA and gap are noise, ± {error:.0f} points", stacklevel=2)

    found, unlearned, outputs = {}, {}, {}
    for name in sorted(methods, key=lambda name: name != "Retrain"):
        f_u, seconds = run(name, f_o, split, dataset, settings(rows[name], seed=seed, progress=progress))
        found[name], outputs[name] = evaluate(f_u, dataset, split, seed)
        retrain = outputs.get("Retrain") if name != "Retrain" else None
        found[name] |= audit(outputs[name], dataset, split, seen, retrain)
        if retrain:
            found[name] |= {measure.__name__: measure(found[name], found["Retrain"]) for measure in (gap, tug_of_war)}
        found[name]["time_s"] = seconds
        f_u = f_u.model if isinstance(f_u, models.Represented) else f_u
        unlearned[name] = f_u.to(memory_format=torch.contiguous_format)  # safetensors takes no other
    table = pd.DataFrame.from_dict({name: found[name] for name in methods}, orient="index")
    table = table[[name for name in COLUMNS if name in table]].rename(columns={"tug_of_war": "ToW"})
    return Comparison(table.round(3), {name: unlearned[name] for name in methods})


def run(name, f_o, split, dataset, given):
    """The model that a method returns, and the seconds it took."""
    if getattr(given, "stop", 0):
        given.test_accuracy = test_accuracy(f_o, dataset, split)
    if name == "SISA":  # its preparation, which further requests would share, does not count
        prepare, shards = METHODS[name].prepare_shard, range(given.shards)
        given.prepared = [prepare(k, dataset.train, dataset.model, split.classes, given) for k in shards]
    return timed(METHODS[name].unlearn, f_o, split, given)


def check_inputs(inputs, net):
    if inputs not in ("values", "embedding"):
        raise UserError(f"inputs {inputs!r} is unknown; there are values, embedding")
    if inputs == "embedding" and not any(isinstance(module, torch.nn.Embedding) for module in net.modules()):
        raise UserError('inputs "embedding": the net has no nn.Embedding, on whose output the noise could go')


def check(f_o, train, test):
    """Check the samples that `compare` was given against the net; return the number of classes."""
    for name, part in (("train", train), ("test", test)):
        check_samples(*part, name)
    check_test_samples("test", len(test[0]))
    (x, y), weight = train, next(f_o.parameters())
    if x.is_floating_point() and x.dtype != weight.dtype:
        raise UserError(f"train is {x.dtype} and the net's weights are {weight.dtype}: convert one of them")
    with torch.no_grad():
        output = f_o(Images(x[:2], y[:2]).to(weight.device).batch(torch.arange(2, device=weight.device)))[0]
    if output.dim() != 2 or output.shape[1] < 2:
        wanted = "it must be a logit for each of at least two classes"
        raise UserError(f"the net's output is {tuple(output.shape)} for two samples; {wanted}")
    classes = output.shape[1]
    for name, (_, labels) in (("train", train), ("test", test)):
        if (highest := int(labels.max())) >= classes:
            raise UserError(f"{name}: labels go up to {highest}; the net has classes 0 to {classes - 1}")
    known = check_labels(y)
    if len(known) < classes:
        absent = next(label for label in range(classes) if label not in known)
        warnings.warn(f"class {absent} has no training sample: are the labels without gaps?", stacklevel=3)
    if (output >= 0).all() and (output.sum(1) - 1).abs().max() < 1e-3:
        warnings.warn("the net's outputs are positive and add up to 1: give logits, not a softmax", stacklevel=3)
    return classes


def chosen(forget, classes, labels):
    """The positions to forget, from indices, a boolean mask or class labels."""
    if (forget is None) == (classes is None):
        raise UserError("give either forget, the samples, or classes, whose samples are all to be forgotten")
    if classes is not None:
        wanted = torch.as_tensor(np.atleast_1d(np.asarray(classes)), device=labels.device)
        if absent := [int(label) for label in wanted if not (labels == label).any()]:
            raise UserError(f"no training sample is of class {absent[0]}")
        return torch.isin(labels, wanted).nonzero()[:, 0]
    forget = forget if isinstance(forget, torch.Tensor) else np.asarray(list(forget))
    if forget.dtype not in (torch.bool, np.bool_):
        return positions(forget, labels.device)
    if tuple(forget.shape) != tuple(labels.shape):
        mask = f"the mask of what to forget is {tuple(forget.shape)}"
        raise UserError(f"{mask}; there are {len(labels)} training samples")
    return torch.as_tensor(forget, device=labels.device).nonzero()[:, 0]


def trained_references(count, dataset, seed, training, progress):
    """So many models, each trained on a random half of the training set: [(model, positions of its half)]."""
    found, size = [], len(dataset.train)
    for k in range(count):
        half = torch.randperm(size, generator=generator(seed, "reference", k))[: size // 2].to(dataset.train.device)
        weights = derive_seed(seed, "reference weights", k)
        model = models.build(dataset.model, len(dataset.classes), weights, half.device)
        given = {"epochs": training["retrain_epochs"], "lr": training["lr"], "batch_size": 32, "progress": progress}
        learn(model, dataset.train, half, **given, rng=generator(seed, "reference", k, "order"), label="reference")
        found.append((model, half))
    return found
