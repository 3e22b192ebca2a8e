"""Data sets on the device, forget/remain splits, and the joint dataset of CaMU (Algorithm 1)."""

import functools
import hashlib
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from harness.augmentation import crop_and_flip, draw_crops
from harness.samples import check_labels, check_samples, positions
from harness.store import UserError, naming, require
from harness.tasks import chosen_samples
from hyperparameters import FEW, LARGE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def derive_seed(*purpose):
    """A 63-bit seed from everything that names a use of randomness, so that no two uses share a stream."""
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:8], "big") >> 1


def generator(*purpose):
    """A fresh torch generator for one purpose, such as ``generator(seed, "forget set", "random10")``."""
    return torch.Generator().manual_seed(derive_seed(*purpose))


@dataclass(frozen=True)
class Images:
    """One part (training or test) of a data set, as tensors on one device."""

    pixels: torch.Tensor  # (N, C, H, W) uint8; or (N, ...) as the model takes them: then no option applies
    labels: torch.Tensor  # (N,), int64
    side: int | None = None  # options: images are resized to side x side for the model; None leaves them as they are
    normalise: bool = False  # subtract ImageNet's mean and divide by its standard deviation, per channel
    augment: bool = False  # training draws random resized crops and flips

    def __len__(self):
        return len(self.labels)

    @property
    def device(self):
        return self.pixels.device

    def to(self, device):
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def batch(self, index, crops=None):
        """Model input for the samples `index`: (B, C, side, side) float32.

        With `crops`, (B, 5) as `draw_crops` gives them, through the training transform; else the test transform.
        """
        x = self.unit(index)
        return self.standardise(x if crops is None else crop_and_flip(x, crops))

    def unit(self, index):
        """The samples `index` at the model's size, before normalisation: [0, 1] where they are stored as uint8."""
        x = self.pixels.index_select(0, index)
        if x.dtype == torch.uint8:
            x = x.to(torch.float32).div_(255)
        if self.side and x.shape[-1] != self.side:
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear")
        return x

    def standardise(self, x):
        """Subtract ImageNet's mean and divide by its standard deviation, where the model expects that."""
        if not self.normalise:
            return x
        mean, std = imagenet(x.device)
        return (x - mean) / std

    def draw_crops(self, count, rng):
        """Crops and flips for `count` samples, drawn from `rng`; None where nothing is augmented."""
        return draw_crops(count, self.side, rng).to(self.device) if self.augment else None


@functools.cache
def imagenet(device):
    """ImageNet's mean and standard deviation, (1, 3, 1, 1) each. A captured step may make no tensor of host values."""
    return [torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD)]


def shuffled_batches(images, index, batch_size, rng):
    """One epoch over the samples `index` in random order, for the training transform.

    Yields (rows, crops): the batch's positions in `index`, (B,), and what `Images.batch` takes as crops.
    """
    order = draw_order(len(index), rng).to(images.device)
    crops = images.draw_crops(len(order), rng)
    for start, rows in zip(range(0, len(order), batch_size), batches(order, batch_size)):
        yield rows, None if crops is None else crops[start : start + len(rows)]


def draw_order(count, rng):
    """A random order. The only sample of a set is taken twice: batch normalisation needs two."""
    return torch.randperm(count, generator=rng).repeat(2 if count == 1 else 1)


def batches(order, batch_size):
    """`order` cut into batches; a lone last sample joins the batch before it."""
    parts = list(order.split(batch_size))
    return parts if len(parts) == 1 or len(parts[-1]) > 1 else [*parts[:-2], torch.cat(parts[-2:])]


def cycled_batches(images, index, batch_size, rng):
    """`shuffled_batches` without end, a new shuffle each time round."""
    while True:
        yield from shuffled_batches(images, index, batch_size, rng)


@dataclass(frozen=True)
class Dataset:
    """A data set and the model that goes with it."""

    name: str
    model: str  # what `models.build` takes
    train: Images
    test: Images
    classes: tuple[str, ...]
    published_protocol: bool = False  # evaluate training samples through the training transform, as the paper does
    files: tuple[str, ...] = ()  # of an image folder: the training files below train/, sorted
    order: torch.Tensor | None = None  # training sample i is number order[i] of `files`, or of the user's own samples

    def to(self, device):
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def fingerprint(self):
        """A digest of all pixels, labels and the way they reach the model."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            way = (self.model, part.side, part.normalise, part.augment, tuple(part.pixels.shape))
            digest.update(repr(way).encode())
            digest.update(part.pixels.cpu().numpy().data)
            digest.update(part.labels.cpu().numpy().data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Split:
    """The training set, cut into what is forgotten and what remains: all that an unlearning method may read."""

    train: Images
    forget: torch.Tensor  # D_f and D_r: sorted, disjoint positions in `train`. All others were forgotten earlier
    remain: torch.Tensor
    classes: int  # number of classes, forgotten ones included
    model: str = ""  # what `models.build` takes, for methods that need fresh weights
    forgotten_classes: tuple[int, ...] = ()  # empty unless whole classes are removed
    earlier_classes: tuple[int, ...] = ()  # those of earlier requests

    @property
    def kind(self):
        """ "class", "few", "large" or "random": which hyperparameters apply."""
        few, large = len(self.forget) < FEW * len(self.train), len(self.forget) > LARGE * len(self.remain)
        return "class" if self.forgotten_classes else "few" if few else "large" if large else "random"

    def next(self, forget):
        """The split of a further request: `forget` is no longer in D_r, and what was forgotten before is in neither.

        `forget` has distinct positions of D_r, but not all of them, and D_r must keep a label that is wrong for each of
        its samples, else a UserError. It is a class removal if it is all that is left of one or more classes.
        """
        forget = positions(forget, self.remain.device).sort().values
        if not 0 < len(forget) < len(self.remain):
            counts = f"{len(forget)} of {len(self.remain)} samples"
            raise UserError(f"{counts} are to be forgotten; at least one must be, and one remain")
        bad = torch.cat([forget[~torch.isin(forget, self.remain)], forget[1:][forget.diff() == 0]])
        if len(bad):
            rule = f"from 0 to {len(self.train) - 1}, each at most once, and not forgotten before"
            raise UserError(f"position {int(bad[0])} cannot be forgotten: positions must be {rule}")
        labels, remain = self.train.labels, self.remain[~torch.isin(self.remain, forget)]
        touched, known = labels[forget].unique(), labels[remain].unique()
        require(len(known) > 1 or known not in touched, "D_r has one label only, and D_f has it too; no other is left")
        whole = () if torch.isin(touched, known).any() else tuple(touched.tolist())
        earlier = self.earlier_classes + self.forgotten_classes
        return replace(self, forget=forget, remain=remain, forgotten_classes=whole, earlier_classes=earlier)

    def so_far(self):
        """Everything forgotten so far as one request: the split that a model's metrics are computed on."""
        everything = torch.arange(len(self.train), device=self.remain.device)
        classes = tuple(sorted(self.earlier_classes + self.forgotten_classes))
        forget = everything[~torch.isin(everything, self.remain)]
        return replace(self, forget=forget, forgotten_classes=classes, earlier_classes=())


def whole_split(images, classes, model=""):
    """The split before any request: nothing is to be forgotten."""
    everything = torch.arange(len(images), device=images.device)
    return Split(images, everything[:0], everything, classes, model)


def make_split(dataset, task, seed):
    """The split of a task of one request; see `make_splits`."""
    return make_splits(dataset, task, seed)[0]


def make_splits(dataset, task, seed):
    """Draw the forget sets of a task: a split for each of its requests.

    Random removal takes a uniform percentage of the training set, the same samples for every method of a seed. Class
    removal takes every sample of the classes, and so may an ids file. A UserError names a class or sample that does not
    exist or is forgotten already, or says that nothing or everything would be forgotten.
    """
    split, splits = whole_split(dataset.train, len(dataset.classes), dataset.model), []
    for number, request in enumerate(task.requests):
        purpose = (seed, "forget set", dataset.name, request.name, *([number] if number else []))
        chosen = requested(dataset, request, split.remain.cpu(), generator(*purpose))
        with naming(f"task {request.name}"):
            split = split.next(chosen)  # by chance a random part may be a whole class: it stays random removal
        split = replace(split, forgotten_classes=()) if request.percent else split
        splits.append(split)
    return splits


def requested(dataset, task, left, rng):
    """The positions in the training set that one request names; those `left` are still there to be forgotten."""
    if task.ids:
        return chosen_samples(dataset, task, left)
    if task.classes:
        last = len(dataset.classes) - 1
        bad = [k for k in task.classes if k > last]
        require(not bad, lambda: f"task {task.name}: {dataset.name} has no class {bad[0]}; its classes are 0 to {last}")
        require(
            len(task.classes) <= last,
            f"task {task.name}: forgets every class of {dataset.name}; at least one must remain",
        )
        labels = dataset.train.labels.cpu()[left]
        gone = [k for k in task.classes if not (labels == k).any()]
        require(not gone, lambda: f"task {task.name}: {dataset.name} has no sample of class {gone[0]} left")
        return left[torch.isin(labels, torch.tensor(task.classes))]
    size = round(len(dataset.train) * task.percent / 100)
    if not 0 < size < len(left):
        share = f"{task.percent:g} % of {len(dataset.train)} samples is {size}"
        raise UserError(f"task {task.name}: {share}; at least one of the {len(left)} there are must go, and one remain")
    order = torch.randperm(len(dataset.train), generator=rng)
    return order[torch.isin(order, left)][:size]


def tensor_split(x, y, forget):
    """A split of your own tensors, for `camu.unlearn` on your own model. For further requests, see `Split.next`.

    Parameters
    ----------
    x : Tensor, (N, C, H, W)
        Training samples as the model takes them (float), or uint8 pixels that it takes divided by 255.
    y : LongTensor, (N,)
        Labels from 0, of at least two classes.
    forget : LongTensor or sequence of int
        Positions of the samples to forget, as in `Split.next`.

    A UserError names what does not fit.
    """
    check_samples(x, y, "the tensors")
    check_labels(y)
    return whole_split(Images(x, y.long()), int(y.max()) + 1).next(forget)


@dataclass(frozen=True)
class Joint:
    """The joint dataset J (Algorithm 1): n tuples (forget, remain, counterfactual) of one split.

    Images are made from indices when they are needed; only what is random about them is kept.
    """

    forget: torch.Tensor  # (n,): positions of x_f in the training set
    remain: torch.Tensor  # (n,): of x_r
    y_c: torch.Tensor  # (n,): counterfactual labels, each of D_r's and never y_f
    forget_crops: torch.Tensor | None  # (n, 5): x_f is augmented once, with these
    counterfactual_crops: torch.Tensor | None  # (n, 5): those of x_c, before its mask
    mask_seed: int

    def __len__(self):
        return len(self.forget)

    def tuples(self, images, rows_r, crops, rows_f):
        """(x_r, y_r) and (x_f, y_c) of a batch from `joint_batches`: images (B, C, side, side) and labels (B,)."""
        remain, forget_crops = self.remain[rows_r], None if crops is None else self.forget_crops[rows_f]
        x_r, x_f = images.batch(remain, crops), images.batch(self.forget[rows_f], forget_crops)
        return (x_r, images.labels[remain]), (x_f, self.y_c[rows_f])


MASK_CHUNK = 256  # tuples a mask is drawn for at once: 150 MB at 224 pixels


def draw_remain(split, count, seed):
    """The first `count` x_r of the joint dataset: positions in the training set, uniform over D_r, with replacement."""
    rows = torch.randint(len(split.remain), (count,), generator=generator(seed, "x_r"))
    return split.remain[rows.to(split.remain.device)]


def draw_wrong_labels(split, forget, seed):
    """y_c of the samples `forget`: uniform over the labels other than y_f that occur in D_r.

    A label that does not occur there is to be forgotten itself, and must not be taught again.
    """
    y_f, known, rng = split.train.labels[forget], split.train.labels[split.remain].unique(), generator(seed, "y_c")
    y_c = torch.full_like(y_f, -1)
    while (wanted := ~torch.isin(y_c, known)).any():
        shift = torch.randint(1, split.classes, (int(wanted.sum()),), generator=rng).to(y_f.device)
        y_c[wanted] = (y_f[wanted] + shift) % split.classes
    return y_c


def joint_dataset(split, repeats, seed, y_c="random"):
    """Draw the joint dataset: `repeats` tuples for every forget sample, each with its own x_r, mask and y_c.

    With `y_c` = "y_r", y_c is x_r's label unless that is y_f, as in the authors' published code.
    """
    forget = split.forget.repeat(repeats)
    n, crops = len(forget), generator(seed, "crops of x_f and x_c")
    both = [split.train.draw_crops(n, crops) for _ in range(2)]
    remain, wrong = draw_remain(split, n, seed), draw_wrong_labels(split, forget, seed)
    if y_c == "y_r":
        y_r = split.train.labels[remain]
        wrong = torch.where(y_r == split.train.labels[forget], wrong, y_r)
    return Joint(forget, remain, wrong, *both, derive_seed(seed, "masks"))


def counterfactuals(split, joint):
    """Yield (numbers of tuples, x_r, masked), MASK_CHUNK at a time: x_c is ``masked(x_r)``.

    `masked` adds m, uniform in [0, 1] and of its argument's size; it is called once.
    """
    rng = torch.Generator(split.train.device).manual_seed(joint.mask_seed)

    def masked(x):
        return x + torch.empty_like(x, memory_format=torch.contiguous_format).uniform_(generator=rng)

    for rows in torch.arange(len(joint), device=split.train.device).split(MASK_CHUNK):
        crops = None if joint.counterfactual_crops is None else joint.counterfactual_crops[rows]
        x_r = split.train.batch(joint.remain[rows], crops)
        yield rows, x_r, masked


def joint_batches(split, joint, batch_size, rng, paired=True):
    """One epoch over the tuples of the joint dataset in random order; x_r is augmented afresh.

    Yields (rows_r, crops, rows_f): the numbers of x_r's tuples, (B,), its crops, (B, 5) or None, and the numbers of the
    tuples of x_f and y_c, (B,). These are the same if `paired`; else x_r comes in an order of its own.
    """
    images = split.train
    order = draw_order(len(joint), rng).to(images.device)
    order_r = order if paired else draw_order(len(joint), rng).to(images.device)
    crops = images.draw_crops(len(joint), rng)
    for rows_f, rows_r in zip(batches(order, batch_size), batches(order_r, batch_size)):
        yield rows_r, None if crops is None else crops[rows_r], rows_f
