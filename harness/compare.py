"""One call for your own model and data: forget with several methods, evaluate and audit them."""

import copy
import math
import warnings
from dataclasses import dataclass
from numbers import Integral
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import nn

import models
from audit import AUDIT, audit, reference_probabilities
from baselines import METHODS
from data import Dataset, Images, derive_seed, generator, whole_split
from harness.cells import test_accuracy, timed
from harness.datasets import check_test_samples
from harness.samples import check_labels, check_samples, packed, positions, read_samples
from harness.store import explained, require
from hyperparameters import check_overrides, hyperparameters_of, parse_override, settings, training_row
from metrics import FEWEST, METRICS, attack_error, attacked, evaluate, gap, tug_of_war
from training import frozen_outputs, own_draws
from training import train as learn

FRESH = ("Retrain", "T-S", "SISA")  # the methods that need fresh weights
COLUMNS = (*METRICS, *AUDIT, "gap", "tug_of_war", "time_s")


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns."""

    table: pd.DataFrame
    """A row for each method: the metrics in percent, JS_f in bits, gap in points, ToW, and `time_s` in seconds."""
    models: dict
    """The unlearned models by the method's name, of the user's own class and in evaluation mode. SISA's is a
    `models.Ensemble`, which gives (log-probabilities, representation)."""


@torch.enable_grad()
@torch.compiler.set_stance("force_eager")  # a compiled net would not run the hook that reads its layer
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
        "values", or "embedding" for whole numbers, such as tokens. For these, CaMU's noise and Boundary's step are
        added to the output of the net's first nn.Embedding. This is ours: the paper has images only. Such an x may have
        several parts, as (ids, mask) or {"input_ids": ids, "attention_mask": mask}.
    forget : indices, boolean mask, optional
        The training samples to forget. Or `classes`, the labels whose samples are all to be forgotten.
    methods : sequence of str
        Names of `baselines.METHODS`. With Retrain among them, the others are compared with it.
    build : callable, optional
        ``build(classes)`` returns the same net with fresh weights; Retrain, T-S and SISA need it.
    seed : int
        The source of all randomness: one seed gives the same result every time on the same CPU.
    epochs, lr : int, float, optional
        Of Retrain and SISA; otherwise those of own data in `hyperparameters.TRAINING`. In class removal CaMU's rates
        follow from `lr` too.
    override : sequence of str
        Hyperparameters in place of the table's: "CaMU.lr_ce=1e-4".
    references : int or sequence of (nn.Module, indices), optional
        Reference models for the audit's RMIA, each with the positions of the training samples that it has seen. Or a
        number: so many are trained here with `build`, on random halves and their complements.

    Raises
    ------
    UserError
        Says in one line what does not fit, before any work.
    """
    methods, override = (((value,) if isinstance(value, str) else tuple(value)) for value in (methods, override))
    check_arguments(net, methods, build, logits, inputs, epochs, lr, override, references)
    read = {name: read_samples(samples, name, progress) for name, samples in (("train", train), ("test", test))}
    xs, unpack = packed({name: x for name, (x, _) in read.items()}, inputs)

    def represented(net):
        return models.Represented(net, layer, pool, logits, unpack)

    f_o, fresh = represented(copied(net)), build and (lambda count: represented(build(count)))
    device, parts = next(net.parameters()).device, [Images(xs[name], y) for name, (_, y) in read.items()]
    count = check(f_o, *parts)
    check_fresh(fresh, net, parts[0], count)
    order = torch.randperm(len(parts[1]), generator=generator("order", "test"))  # the attack reads the first samples
    parts[1] = Images(parts[1].pixels[order], parts[1].labels[order])
    dataset = Dataset("own", fresh, *(part.to(device) for part in parts), tuple(map(str, range(count))))
    split = whole_split(dataset.train, count, fresh).next(chosen(forget, classes, dataset.train.labels))
    training = training_row("own", "ResNet-18", SimpleNamespace(retrain_epochs=epochs, lr=lr))
    rows = {name: hyperparameters_of(name, "own", split.kind, training, override) for name in methods}
    if isinstance(references, int):
        references = trained_references(references, dataset, seed, training, progress)
    else:
        labels = dataset.train.labels
        references = [(represented(copied(own)), chosen(index, None, labels)) for own, index in references]
    seen = reference_probabilities(*zip(*references), dataset) if references else None

    if (few := attacked(split, len(dataset.test))) < FEWEST:
        text = f"MIA attacks {few} samples: it, RMIA and gap are noise, ± {attack_error(few):.0f} points"
        warnings.warn(text, stacklevel=4)

    metrics, unlearned, outputs = {}, {}, {}
    for name in sorted(methods, key=lambda name: name != "Retrain"):
        f_u, seconds = run(name, f_o, split, dataset, settings(rows[name], seed=seed, progress=progress))
        metrics[name], outputs[name] = evaluate(f_u, dataset, split, seed)
        retrain = outputs.get("Retrain") if name != "Retrain" else None
        metrics[name] |= audit(outputs[name], dataset, split, seen, retrain)
        if retrain:
            metrics[name] |= {
                measure.__name__: measure(metrics[name], metrics["Retrain"]) for measure in (gap, tug_of_war)
            }
        metrics[name]["time_s"] = seconds
        f_u = f_u.model if isinstance(f_u, models.Represented) else f_u
        unlearned[name] = f_u.to(memory_format=torch.contiguous_format)  # safetensors takes no other
    table = pd.DataFrame.from_dict({name: metrics[name] for name in methods}, orient="index")
    table = table[[name for name in COLUMNS if name in table]].rename(columns={"tug_of_war": "ToW"})
    return Comparison(table.round(3), {name: unlearned[name] for name in methods})


def run(name, f_o, split, dataset, given):
    """The model that a method returns, and the seconds it took."""
    if getattr(given, "stop", 0):
        given.test_accuracy = test_accuracy(f_o, dataset, split)
    if hasattr(METHODS[name], "prepare_shard"):  # its preparation, which further requests would share, does not count
        prepare, shards = METHODS[name].prepare_shard, range(given.shards)
        given.prepared = [prepare(k, dataset.train, dataset.model, split.classes, given) for k in shards]
    return timed(METHODS[name].unlearn, f_o, split, given)


def check_arguments(net, methods, build, logits, inputs, epochs, lr, override, references):
    """Raise a UserError for arguments of `compare` that cannot be, whatever the samples are."""
    unknown = [name for name in methods if name not in METHODS]
    require(methods and not unknown, f"no method {' '.join(unknown[:1])!r}; there are {', '.join(METHODS)}")
    needing = [name for name in methods if name in FRESH]
    needing += ["a reference model"] if isinstance(references, int) and references > 0 else []
    wanted = f"{' '.join(needing[:1])} needs fresh weights: give build, a function of the number of classes"
    require(build is not None or not needing, wanted)
    require(logits is None or callable(logits), f"logits is {logits!r}; it must be a function of the forward's output")
    require(epochs is None or (isinstance(epochs, Integral) and epochs > 0), f"epochs {epochs}: must be whole, from 1")
    require(lr is None or 0 < lr < math.inf, f"lr {lr}: must be above 0")
    idle = [text for text in override if parse_override(text)[0] not in methods]
    require(not idle, lambda: f"override {idle[0]}: its method is not among the methods")
    check_overrides(override)
    require(not isinstance(references, int) or references >= 0, f"references {references}: must be from 0")
    pairs = isinstance(references, int) or all(isinstance(pair, tuple) and len(pair) == 2 for pair in references)
    require(pairs, "references must be a number, or (net, positions that it has seen) for each of them")
    require(inputs in ("values", "embedding"), f"inputs {inputs!r} is unknown; there are values, embedding")
    embedded = any(isinstance(module, nn.Embedding) for module in net.modules())
    without = 'inputs "embedding": the net has no nn.Embedding, on whose output the noise could go'
    require(inputs == "values" or embedded, without)
    require(not isinstance(net, torch.jit.ScriptModule), "the net is a TorchScript module, which cannot be taken apart")
    frozen = not any(parameter.requires_grad for parameter in net.parameters())
    require(not frozen, "every parameter of the net is frozen (requires_grad is False): none is left to unlearn with")


def copied(net):
    """A copy in evaluation mode; the user's own stays as it is."""
    with explained("the net cannot be copied, run it once under torch.no_grad()", Exception):
        return copy.deepcopy(net).eval()


def check(f_o, train, test):
    """Check `compare`'s samples against each other and the net, which runs on all; return the number of classes."""
    for name, part in (("train", train), ("test", test)):
        check_samples(part.pixels, part.labels, name)
    check_test_samples("test", len(test))
    known, weight = check_labels(train.labels), next(f_o.parameters())
    floats = train.pixels.is_floating_point()
    differ = f"train is {train.pixels.dtype} and the net's weights are {weight.dtype}: convert one of them"
    require(not floats or train.pixels.dtype == weight.dtype, differ)
    outputs = [logits_for(f_o, part, name) for name, part in (("train", train), ("test", test))]
    classes = outputs[0].shape[1]
    for name, part in (("train", train), ("test", test)):
        highest = int(part.labels.max())
        require(highest < classes, f"{name}: labels go up to {highest}; the net has classes 0 to {classes - 1}")
    if len(known) < classes:
        absent = next(label for label in range(classes) if label not in known)
        warnings.warn(f"class {absent} has no training sample: are the labels without gaps?", stacklevel=5)
    if (outputs[0] >= 0).all() and (outputs[0].sum(1) - 1).abs().max() < 1e-3:
        warnings.warn("the net's outputs are positive and add up to 1: give logits, not a softmax", stacklevel=5)
    return classes


def logits_for(f_o, part, name):
    """The net's logits for all samples of a part; a UserError if it cannot be run on them, or gives no logits."""
    part = part.to(next(f_o.parameters()).device)
    cannot = f"{name}: the net cannot be run on samples of {tuple(part.pixels.shape[1:])}"
    with explained(cannot, Exception):  # it is the user's net
        output = frozen_outputs(f_o, part, torch.arange(len(part), device=part.device))
    wanted = "it must be a logit for each of at least two classes"
    shape = tuple(output.shape)
    require(len(shape) == 2 and shape[1] > 1, f"the net's output is {shape} for {len(part)} samples; {wanted}")
    require(output.isfinite().all(), f"{name}: the net's outputs hold nan or infinity")
    return output


def check_fresh(fresh, net, train, classes):
    """Raise a UserError unless `build` gives another net of the same form."""
    if fresh is None:
        return
    device = next(net.parameters()).device
    with own_draws(device), explained(f"build({classes}) fails", Exception):  # it is the user's function
        built = fresh(classes).to(device).eval()
    require(built.model is not net, "build returns the net itself; it must return one with fresh weights")
    few = Images(train.pixels[:2], train.labels[:2])
    count = logits_for(built, few, "build").shape[1]
    require(count == classes, f"build({classes}) returns a net of {count} classes; the net has {classes}")


def chosen(forget, classes, labels):
    """The positions to forget, from indices, a boolean mask or class labels."""
    require(
        (forget is None) != (classes is None),
        "give either forget, the samples, or classes, whose samples are all to be forgotten",
    )
    forget, classes = (np.array(v) if hasattr(v, "to_numpy") else v for v in (forget, classes))  # of pandas
    if classes is not None:
        single = np.isscalar(classes) or getattr(classes, "ndim", 1) == 0
        wanted = positions(np.atleast_1d(classes) if single else classes, labels.device)
        absent = [int(label) for label in wanted if not (labels == label).any()]
        require(not absent, lambda: f"no training sample is of class {absent[0]}")
        return torch.isin(labels, wanted).nonzero()[:, 0]
    mask = torch.as_tensor(forget) if isinstance(forget, (torch.Tensor, np.ndarray)) else None
    if mask is None or mask.dtype != torch.bool:
        index = positions(forget, labels.device)
        bad = index[(index < 0) | (index >= len(labels))]
        require(not len(bad), lambda: f"there is no training sample {int(bad[0])}, only 0 to {len(labels) - 1}")
        return index
    fits = f"the mask of what to forget is {tuple(mask.shape)}; there are {len(labels)} training samples"
    require(mask.shape == labels.shape, fits)
    return mask.to(labels.device).nonzero()[:, 0]


def trained_references(count, dataset, seed, training, progress):
    """So many models, every second one on a random half of the training set, the next on the other half."""
    references, size = [], len(dataset.train)
    for k in range(count):
        order = torch.randperm(size, generator=generator(seed, "reference", k // 2)).to(dataset.train.device)
        half = order[: size // 2] if k % 2 == 0 else order[size // 2 :]
        weights = derive_seed(seed, "reference weights", k)
        model = models.build(dataset.model, len(dataset.classes), weights, half.device)
        given = {"epochs": training["retrain_epochs"], "lr": training["lr"], "batch_size": 32, "progress": progress}
        learn(model, dataset.train, half, **given, rng=generator(seed, "reference", k, "order"), label="reference")
        references.append((model, half))
    return references
