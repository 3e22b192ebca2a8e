"""SISA: sharded, isolated, sliced, aggregated training, so that less has to be retrained.

Bourtoule et al., "Machine Unlearning", IEEE S&P 2021, section IV. Before any request (`prepare_shard`) the training
set is cut at random into S shards of equal size, each shard into R slices. A shard's model is trained in R stages,
stage r on slices 1..r together. A checkpoint is kept before each stage. The epochs of stage r are
int(r a) - int((r - 1) a) with a = 2 e / (R + 1), so that all stages together pass over about as many samples as e
epochs. On a request (`unlearn`) every shard that holds forget samples goes back to the checkpoint before the first
stage that read one and trains on without them. A random 10 % touches every slice of every shard: then all is retrained.

Deviations from the published code: the prediction is the mean of the shards' softmax outputs. The default there is a
majority vote; the paper discusses both, and the mean leaves the membership attack something to read. (The CaMU paper's
MIA values of SISA are those of an attack that always answers "non-member", the mark of one-hot outputs.) Shards are
drawn at random. Training is this repository's: Adam (a fresh one at every stage, where the published script keeps one
across slices), the data set's learning rate and Retrain's epochs. A further request starts from the first checkpoints
again and leaves out all that was forgotten.
"""

import torch

import models
from data import derive_seed, generator
from training import seeded, train


def stage_epochs(epochs, slices):
    """Epochs of the R stages."""
    a = 2 * epochs / (slices + 1)
    return [int(r * a) - int((r - 1) * a) for r in range(1, slices + 1)]


def shard_slices(count, shards, slices):
    """The partition of `count` samples: for each shard its R slices, LongTensors of positions."""
    order = torch.randperm(count, generator=generator("SISA shards", count, shards))
    return [shard.tensor_split(slices) for shard in order.tensor_split(shards)]


def prepare_shard(shard, images, model, classes, settings):
    """Train shard number `shard` on `images`, the whole training set, before any request.

    Returns R + 1 state dicts: before each stage (the first holds fresh weights), and the last one's result.
    `settings` has `shards`, `slices`, `epochs`, `lr` and the general ones.
    """
    parts = shard_slices(len(images), settings.shards, settings.slices)[shard]
    fresh = models.build(model, classes, derive_seed(settings.seed, "SISA weights", shard), images.device)
    return train_stages(fresh, shard, parts, 0, images, settings)


def train_stages(model, shard, parts, first, images, settings):
    """Train `model` through the stages from `first` on; return the states before each and at the end."""
    states = [models.cpu_state(model)]
    for stage in range(first, settings.slices):
        index = torch.cat(parts[: stage + 1]).to(images.device)
        given = {"lr": settings.lr, "batch_size": settings.batch_size, "progress": settings.progress}
        given["epochs"] = stage_epochs(settings.epochs, settings.slices)[stage]
        given["partial"] = settings.partial and settings.partial.with_suffix(f".{shard}-{stage}.pt")
        given["label"] = f"SISA: shard {shard + 1}/{settings.shards}, stage {stage + 1}/{settings.slices}"
        train(model, images, index, rng=generator(settings.seed, "SISA", shard, stage), **given)
        states.append(models.cpu_state(model))
    return states


@seeded
def unlearn(f_o, split, settings):
    """Return the ensemble (`models.Ensemble`) that has not seen D_f; `f_o` is not read. See `baselines`.

    Hyperparameters: `shards`, `slices`, `epochs`, `lr`. `settings.prepared` has the result of `prepare_shard` for
    each shard.
    """
    images = split.train
    remain = split.remain.cpu()
    members = []
    for shard, parts in enumerate(shard_slices(len(images), settings.shards, settings.slices)):
        states = settings.prepared[shard]
        kept = [part[torch.isin(part, remain)] for part in parts]
        touched = [len(few) < len(part) for few, part in zip(kept, parts)]
        first = touched.index(True) if any(touched) else settings.slices
        model = models.restore(split.model, split.classes, states[first], images.device)
        train_stages(model, shard, kept, first, images, settings)
        members.append(model)
    return models.Ensemble(members).eval()
