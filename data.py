"""Data sets on the device, forget/remain splits, and the joint dataset of CaMU (Algorithm 1)."""

import hashlib
import io
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST, ImageFolder
from tqdm import tqdm

from config import CNN_DATASETS, DATASETS, FEW, RESNET_DATASETS, UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TORCHVISION = {"Digit": MNIST, "Fashion": FashionMNIST, "CIFAR10": CIFAR10, "CIFAR100": CIFAR100}
CNN_SIDE = 28
FEWEST_TEST_IMAGES = 3  # of which `metrics.evaluate` gives its attacker 40 %: at least one


def derive_seed(*purpose):
    """A 63-bit seed from everything that names a use of randomness, so that no two uses share a stream."""
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:8], "big") >> 1


def generator(*purpose):
    """A fresh torch generator for one purpose, such as ``generator(seed, "forget set", "random10")``."""
    return torch.Generator().manual_seed(derive_seed(*purpose))


@dataclass(frozen=True)
class Images:
    """One part (training or test) of a data set, as tensors on one device.

    Attributes
    ----------
    pixels : Tensor, (N, C, H, W)
        uint8 as stored, or float32 ready for the model (own tensors; then nothing below applies).
    labels : LongTensor, (N,)
    side : int or None
        Images are resized to side x side for the model; None leaves them as they are.
    normalise : bool
        Subtract ImageNet's mean and divide by its standard deviation, per channel.
    augment : bool
        Training draws random resized crops and flips.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    side: int | None = None
    normalise: bool = False
    augment: bool = False

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
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        return (x - mean) / std

    def draw_crops(self, count, rng):
        """Crops and flips for `count` samples, drawn from `rng`; None where nothing is augmented."""
        return draw_crops(count, self.side, rng).to(self.device) if self.augment else None


CROP_AREA, CROP_RATIO, CROP_ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop


def draw_crops(count, side, rng):
    """RandomResizedCrop's boxes and horizontal flips for a whole epoch at once.

    Parameters
    ----------
    count : int
    side : int
        Of the square images, in pixels.
    rng : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor, (count, 5)
        top, left, height, width in pixels of the side x side image, and flip (0 or 1). As in torchvision, the first
        of ten attempts that fits is taken, else the whole image.
    """
    area = side * side * torch.empty(count, CROP_ATTEMPTS).uniform_(*CROP_AREA, generator=rng)
    log_ratio = torch.log(torch.tensor(CROP_RATIO))
    aspect = torch.exp(torch.empty(count, CROP_ATTEMPTS).uniform_(*log_ratio.tolist(), generator=rng))
    width = torch.sqrt(area * aspect).round()
    height = torch.sqrt(area / aspect).round()
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    first = fits.int().argmax(1, keepdim=True)
    width, height = (torch.where(fits.any(1), v.gather(1, first).squeeze(1), side) for v in (width, height))
    top, left = ((torch.rand(count, generator=rng) * (side - v + 1)).floor() for v in (height, width))
    flip = torch.rand(count, generator=rng) < 0.5
    return torch.stack([top, left, height, width, flip.float()], 1)


def crop_and_flip(x, crops):
    """Cut the boxes out of the images, resize them bilinearly to the images' own size, flip where asked.

    Equals torchvision's resized_crop and hflip sample by sample, in one operation for the batch.
    """
    side = x.shape[-1]
    top, left, height, width, flip = crops.unsqueeze(2).unbind(1)  # (B, 1) each
    centre = (torch.arange(side, device=x.device) + 0.5) / side
    ys = (top + centre * height - 0.5).clamp(min=top, max=top + height - 1)
    xs = (left + torch.where(flip > 0, 1 - centre, centre) * width - 0.5).clamp(min=left, max=left + width - 1)
    ys, xs = ((2 * v + 1) / side - 1 for v in (ys, xs))
    grid = torch.stack([xs[:, None, :].expand(-1, side, -1), ys[:, :, None].expand(-1, -1, side)], 3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def shuffled_batches(images, index, batch_size, rng):
    """One epoch over the samples `index` in random order, through the training transform.

    Yields
    ------
    rows : LongTensor, (B,)
        Positions in `index`, for looking up what was computed beforehand for its samples.
    x : Tensor, (B, C, side, side)
    y : LongTensor, (B,)
    """
    order = torch.randperm(len(index), generator=rng).to(images.device)
    crops = images.draw_crops(len(index), rng)
    for start, rows in zip(range(0, len(index), batch_size), order.split(batch_size)):
        chosen = index[rows]
        batch_crops = None if crops is None else crops[start : start + batch_size]
        yield rows, images.batch(chosen, batch_crops), images.labels[chosen]


def cycled_batches(images, index, batch_size, rng):
    """`shuffled_batches` without end, a new shuffle each time round."""
    while True:
        yield from shuffled_batches(images, index, batch_size, rng)


@dataclass(frozen=True)
class Dataset:
    """A data set and the model that goes with it.

    Attributes
    ----------
    name, model : str
        The model is "CNN" or "ResNet-18".
    train, test : Images
    classes : tuple of str
    published_protocol : bool
        Evaluate the training samples through the training transform, as the paper's CIFAR figures do.
    files : tuple of str
        Training files relative to train/, sorted, for an image folder; else empty.
    order : LongTensor or None
        Training sample i is number order[i] of `files`.
    """

    name: str
    model: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    published_protocol: bool = False
    files: tuple[str, ...] = ()
    order: torch.Tensor | None = None

    def to(self, device):
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def fingerprint(self):
        """A digest of all pixels, labels and the way they reach the model."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(
                repr((self.model, part.side, part.normalise, part.augment, tuple(part.pixels.shape))).encode()
            )
            digest.update(part.pixels.cpu().numpy().data)
            digest.update(part.labels.cpu().numpy().data)
        return digest.hexdigest()[:16]


def load(name, root, image_size=None, progress=False):
    """Load a data set by its name in the configuration.

    Looked for under `root`: torchvision's own files, then the image-folder tree ``<name>/{train,test}/<class>/*``;
    else a built-in set is downloaded by torchvision, which verifies its checksums. OptDigits needs no files.

    Parameters
    ----------
    name : str
    root : str or Path
    image_size : int, optional
        Side of ResNet-18's images: 224 for CIFAR and 64 for own data unless given.
    progress : bool
        Show a bar while an image folder is decoded.

    Returns
    -------
    Dataset
        On the CPU.

    Raises
    ------
    UserError
        Nothing found and no download possible, or a damaged file, named.
    """
    root = Path(root)
    if name == "OptDigits":
        return _optdigits()
    tree = root / name
    if name in TORCHVISION:
        found = _torchvision(name, root, download=False)
        if found is None and not (tree / "train").is_dir():
            found = _torchvision(name, root, download=True)
        if found is not None:
            return _built_in(name, *found, image_size)
    lost = [part for part in ("train", "test") if not (tree / part).is_dir()]
    if len(lost) == 1:
        raise UserError(f"{name}: {tree} has no folder {lost[0]}/<class>/")
    if lost:
        raise UserError(
            f"no data set {name!r}: neither one of {', '.join(DATASETS)} nor an image folder with "
            f"{tree / 'train'}/<class>/ and {tree / 'test'}/<class>/"
        )
    return _image_folder(name, tree, image_size, progress)


def _optdigits():
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    pixels = F.interpolate(pixels, size=(CNN_SIDE, CNN_SIDE), mode="bilinear").round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=digits.target, random_state=0)
    parts = [Images(pixels[part], labels[part]) for part in (train, test)]
    return Dataset("OptDigits", "CNN", *parts, tuple(str(k) for k in range(10)))


def _torchvision(name, root, download):
    """torchvision's (train, test), or None where its files are not there."""
    kind = TORCHVISION[name]
    try:
        return [kind(root, train=part, download=download) for part in (True, False)]
    except Exception as error:  # torchvision raises anything from AssertionError to URLError here
        if not download and isinstance(error, RuntimeError) and "not found" in str(error):
            return None
        where = root / ("cifar-10-batches-py" if name == "CIFAR10" else "cifar-100-python")
        if name in CNN_DATASETS:
            where = root / kind.__name__ / "raw"
        reason = " ".join(str(error).split()) or type(error).__name__
        if not download:
            raise UserError(f"{name}: a file in {where} is damaged ({reason}); delete the folder to download it again")
        raise UserError(
            f"{name}: found neither sound files of torchvision's in {where} nor the image folder {root / name}/train, "
            f"and the download failed ({reason})"
        )


def _built_in(name, train, test, image_size):
    if name in CNN_DATASETS:
        expected = ((60_000, 28, 28), (10_000, 28, 28))
        for part, shape in zip((train, test), expected):
            if tuple(part.data.shape) != shape or len(part.targets) != shape[0]:
                raise UserError(
                    f"{name}: the files in {part.raw_folder} are damaged: {tuple(part.data.shape)} images and "
                    f"{len(part.targets)} labels instead of {shape}; delete the folder to download it again"
                )
        parts = [Images(part.data[:, None], part.targets.long()) for part in (train, test)]
        return Dataset(name, "CNN", *parts, tuple(train.classes))
    parts = [(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), part.targets) for part in (train, test)]
    return _resnet_dataset(name, *parts, tuple(train.classes), image_size or 224, published_protocol=True)


def _resnet_dataset(name, train, test, classes, side, **rest):
    train, test = (
        Images(pixels, torch.as_tensor(labels).long(), side, normalise=True, augment=augment)
        for (pixels, labels), augment in ((train, True), (test, False))
    )
    return Dataset(name, "ResNet-18", train, test, classes, **rest)


def _image_folder(name, tree, image_size, progress):
    built_in = name in DATASETS
    listings = {}
    for part in ("train", "test"):
        try:
            listings[part] = ImageFolder(tree / part)
        except FileNotFoundError as error:
            raise UserError(f"{name}: {' '.join(str(error).split())}")
    train, test = listings["train"], listings["test"]
    if train.classes != test.classes:
        odd = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise UserError(f"{name}: {tree}/train and {tree}/test must hold the same classes; only one has {odd}")
    if len(train.classes) < 2:
        raise UserError(f"{name}: {tree}/train holds one class, {train.classes[0]}; at least two are needed")
    if len(test) < FEWEST_TEST_IMAGES:
        raise UserError(
            f"{name}: {tree}/test holds {len(test)} images; the membership attack needs at least {FEWEST_TEST_IMAGES}"
        )
    tensors = _cached_pixels(name, tree, listings, image_size, progress)
    orders = {part: torch.randperm(len(tensors[part]), generator=generator("order", part)) for part in tensors}
    parts = [
        (tensors[part][orders[part]], torch.tensor(listings[part].targets)[orders[part]]) for part in ("train", "test")
    ]
    files = tuple(os.path.relpath(path, tree / "train") for path, _ in train.samples)
    rest = {"files": files, "order": orders["train"]}
    if tensors["train"].shape[1] == 1:
        parts = [Images(pixels, labels) for pixels, labels in parts]
        return Dataset(name, "CNN", *parts, tuple(train.classes), **rest)
    side = image_size or (224 if built_in else 64)
    return _resnet_dataset(name, *parts, tuple(train.classes), side, published_protocol=built_in, **rest)


def _cached_pixels(name, tree, listings, image_size, progress):
    """The images as {"train": uint8 (N, C, H, W), "test": ...}, from the cache beside the tree if current."""
    digest = hashlib.sha256(repr((image_size, torchvision.__version__)).encode())
    for listing in listings.values():
        for path, _ in listing.samples:
            stat = os.stat(path)
            digest.update(repr((os.path.relpath(path, tree), stat.st_size, stat.st_mtime_ns)).encode())
    state = digest.hexdigest()
    cache = tree.with_name(tree.name + ".cache.pt")
    stored = load_or_set_aside(cache, load_tensors)
    if stored is not None and stored["state"] == state:
        return {part: stored[part] for part in ("train", "test")}
    tensors = _decode(name, listings, image_size, progress)
    try:
        save_tensors(cache, {"state": state, **tensors})
    except UserError:
        print(f"{name}: decoded images are not cached, {cache.parent} cannot be written", flush=True)
    return tensors


def _decode(name, listings, image_size, progress):
    samples = [(part, path) for part, listing in listings.items() for path, _ in listing.samples]
    headers = [_open(path, header_only=True) for _, path in samples]
    gray = all(mode in ("1", "L", "LA") for mode, _ in headers)
    small = max(max(size) for _, size in headers) <= 32
    if name in CNN_DATASETS or (gray and small):
        mode, side = "L", CNN_SIDE
    else:
        mode, side = "RGB", 32 if name in RESNET_DATASETS else image_size or 64
    arrays = {part: [] for part in listings}
    for part, path in tqdm(samples, f"{name}: decoding", disable=None if progress else True):
        image = _open(path).convert(mode)
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        arrays[part].append(np.asarray(image).reshape(side, side, -1))
    return {
        part: torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous() for part, images in arrays.items()
    }


def _open(path, header_only=False):
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path}: images of mode {image.mode} are not read, only those of 8 bits a channel")
            if header_only:
                return image.mode, image.size
            image.load()
            return image
    except UserError:
        raise
    except Exception as error:  # each of PIL's readers raises its own, from OSError to SyntaxError
        raise UserError(f"{path}: not a readable image ({' '.join(str(error).split())})")


def save_atomically(path, content):
    """Write a file so that it is there in full or not at all: a temporary file, fsync, rename.

    Parameters
    ----------
    path : Path
    content : bytes

    Raises
    ------
    UserError
        It cannot be written, as when the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}")


def save_tensors(path, values):
    """Write tensors and plain values with `save_atomically`."""
    serialised = io.BytesIO()  # into a full disk itself, torch fails without saying why
    torch.save(values, serialised)
    save_atomically(path, serialised.getbuffer())


def load_tensors(path):
    """Tensors and plain values from a file, on the CPU; never pickled objects."""
    return torch.load(path, weights_only=True, map_location="cpu")


def load_or_set_aside(path, read):
    """Read a file that `save_atomically` wrote; a damaged one is named, renamed to *.damaged, and counts as missing.

    Parameters
    ----------
    path : Path
    read : callable
        Called with the path.

    Returns
    -------
    What `read` returns, or None where there is no sound file.

    Raises
    ------
    UserError
        The file is there and cannot be read, for want of a permission or of memory.
    """
    if not path.exists():
        return None
    try:
        return read(path)
    except (OSError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {error or type(error).__name__}")
    except Exception as error:  # json, zip and pickle readers each raise their own
        aside = path.with_name(path.name + ".damaged")
        os.replace(path, aside)
        print(f"{path} is damaged ({type(error).__name__}): set aside as {aside.name}, to be made again", flush=True)
        return None


@dataclass(frozen=True)
class Task:
    """What is to be forgotten.

    Attributes
    ----------
    name : str
        As in paths and tables: random10, class0, class0,3, ids-<name of the file>.
    percent : float or None
        Of the training set, for random removal.
    classes : tuple of int
        For class removal.
    ids : tuple of str
        For the removal of chosen samples: the lines of the file, stripped; empty ones are passed over.
    """

    name: str
    percent: float | None = None
    classes: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()

    @property
    def metrics_kind(self):
        return "class" if self.classes else "random"


def parse_task(text):
    """Read a task as it is written in the configuration.

    Parameters
    ----------
    text : str
        ``random<percent>`` with 0 < percent < 100; ``class<k>``, several classes separated by commas; or
        ``ids:<file>``, a text file of training samples to forget, one a line: indices from 0, or for an image folder
        also paths below train/ (an index then counts the sorted files).

    Returns
    -------
    Task

    Raises
    ------
    UserError
        With the text and what is allowed.
    """
    allowed = (
        "random<percent> with 0 < percent < 100, such as random10; class<k>, such as class0 or class0,3; or ids:<file>"
    )
    if match := re.fullmatch(r"random(\d+(?:\.\d+)?)", text):
        percent = float(match[1])
        if not 0 < percent < 100:
            raise UserError(f"task {text!r}: {match[1]} % is not between 0 and 100; write {allowed}")
        return Task(f"random{percent:g}", percent=percent)
    if match := re.fullmatch(r"class(\d+(?:,\d+)*)", text):
        classes = tuple(sorted({int(k) for k in match[1].split(",")}))
        return Task("class" + ",".join(map(str, classes)), classes=classes)
    if text.startswith("ids:"):
        return _read_ids(Path(text.removeprefix("ids:")))
    raise UserError(f"task {text!r} is unknown; write {allowed}")


def parse_tasks(texts):
    """Read several tasks with `parse_task`; a UserError where two have one name, which their cells are kept under."""
    tasks = {}
    for text in texts:
        task = parse_task(text)
        if tasks.setdefault(task.name, task) != task:
            raise UserError(f"task {text!r}: another one is called {task.name} too; give its file another name")
    return list(tasks.values())


def _read_ids(path):
    try:
        ids = tuple(line.strip() for line in path.read_text().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"task ids:{path}: the file cannot be read ({error})")
    if not any(ids):
        raise UserError(f"task ids:{path}: the file names no sample; write one training index a line")
    return Task(f"ids-{path.stem}", ids=ids)


def _chosen_samples(dataset, task):
    """Positions in the training set of the samples that the lines of an ids file name."""
    by_file = {file: number for number, file in enumerate(dataset.files)}
    kinds = "an index" + (" or a path below train/" if dataset.files else "")
    numbers = {}
    for line, text in enumerate(task.ids, 1):
        if not text:
            continue
        where = f"task {task.name}, line {line}"
        if text in by_file:
            number = by_file[text]
        elif re.fullmatch(r"-?\d+", text):
            number = int(text)
        else:
            raise UserError(f"{where}: {text!r} is not {kinds} of a training sample of {dataset.name}")
        if not 0 <= number < len(dataset.train):
            raise UserError(
                f"{where}: {dataset.name} has no training sample {number}, only 0 to {len(dataset.train) - 1}"
            )
        if number in numbers:
            raise UserError(f"{where}: {text} is there twice, first in line {numbers[number]}")
        numbers[number] = line
    if len(numbers) == len(dataset.train):
        raise UserError(f"task {task.name}: forgets all {len(numbers)} training samples; at least one must remain")
    chosen = torch.tensor(sorted(numbers))
    if dataset.order is None:
        return chosen
    return torch.isin(dataset.order, chosen).nonzero().squeeze(1)


@dataclass(frozen=True)
class Split:
    """The training set, cut into what is forgotten and what remains: all that an unlearning method may read.

    Attributes
    ----------
    train : Images
    forget, remain : LongTensor
        Sorted, disjoint positions in `train`, together all of it: D_f and D_r.
    classes : int
        Number of classes the model knows, forgotten ones included.
    model : str
        "CNN" or "ResNet-18", for methods that need fresh weights.
    forgotten_classes : tuple of int
        Empty unless whole classes are removed.
    """

    train: Images
    forget: torch.Tensor
    remain: torch.Tensor
    classes: int
    model: str = ""
    forgotten_classes: tuple[int, ...] = ()

    @property
    def kind(self):
        """ "class", "few" or "random": which hyperparameters apply."""
        if self.forgotten_classes:
            return "class"
        return "few" if len(self.forget) < FEW * len(self.train) else "random"


def make_split(dataset, task, seed):
    """Draw the forget set of a task.

    Random removal takes a uniform ``percent`` of the training set, the same for every method of that seed; class
    removal every sample of the classes; an ids file just the samples it names.

    Raises
    ------
    UserError
        A class the data set does not have, all of its classes, a percentage that rounds to no or every sample; an ids
        file with duplicates, indices out of range, all of the samples, or a line that names none.
    """
    train = dataset.train
    count = len(train)
    forgotten = torch.zeros(count, dtype=torch.bool)
    if task.classes:
        last = len(dataset.classes) - 1
        if bad := [k for k in task.classes if k > last]:
            raise UserError(f"task {task.name}: {dataset.name} has no class {bad[0]}; its classes are 0 to {last}")
        if len(task.classes) > last:
            raise UserError(f"task {task.name}: forgets every class of {dataset.name}; at least one must remain")
        forgotten |= torch.isin(train.labels.cpu(), torch.tensor(task.classes))
    elif task.ids:
        forgotten[_chosen_samples(dataset, task)] = True
    else:
        size = round(count * task.percent / 100)
        if not 0 < size < count:
            raise UserError(f"task {task.name}: {task.percent:g} % of {count} samples is {size} of them")
        order = torch.randperm(count, generator=generator(seed, "forget set", dataset.name, task.name))
        forgotten[order[:size]] = True
    forget, remain = (part.nonzero().squeeze(1).to(train.device) for part in (forgotten, ~forgotten))
    return Split(train, forget, remain, len(dataset.classes), dataset.model, task.classes)


def tensor_split(x, y, forget):
    """A split of your own tensors, for `camu.unlearn` on your own model.

    Parameters
    ----------
    x : Tensor, (N, C, H, W)
        Training samples as the model takes them (float), or uint8 pixels that it takes divided by 255.
    y : LongTensor, (N,)
        Labels from 0.
    forget : LongTensor or sequence of int
        Indices of the samples to forget. All samples of some classes and no other make it a class removal.

    Returns
    -------
    Split

    Raises
    ------
    UserError
        Nothing or everything is to be forgotten, an index is out of range or there twice, or there is one class only.
    """
    if not y.any():
        raise UserError("all labels are 0: unlearning needs at least two classes")
    forget = torch.as_tensor(forget, device=x.device).sort().values
    if not 0 < len(forget) < len(x):
        raise UserError(f"{len(forget)} of {len(x)} samples are to be forgotten; at least one must be, and one remain")
    if forget[0] < 0 or forget[-1] >= len(x) or (forget.diff() == 0).any():
        raise UserError(f"the indices to forget must be from 0 to {len(x) - 1}, each at most once")
    forgotten = torch.zeros(len(x), dtype=torch.bool, device=x.device).index_fill_(0, forget, True)
    touched, kept = y[forgotten].unique(), y[~forgotten].unique()
    gone = () if torch.isin(touched, kept).any() else tuple(touched.tolist())
    return Split(Images(x, y), forget, (~forgotten).nonzero().squeeze(1), int(y.max()) + 1, forgotten_classes=gone)


@dataclass(frozen=True)
class Joint:
    """The joint dataset J (Algorithm 1): n tuples (forget, remain, counterfactual) of one split.

    Images are made from indices when they are needed; only what is random about them is kept.

    Attributes
    ----------
    forget, remain : LongTensor, (n,)
        Positions of x_f and x_r in the training set.
    y_c : LongTensor, (n,)
        Labels of the counterfactual samples, never y_f.
    forget_crops, counterfactual_crops : Tensor, (n, 5), or None
        The one pass of x_f, and of x_c before its mask, through the training transform.
    mask_seed : int
    """

    forget: torch.Tensor
    remain: torch.Tensor
    y_c: torch.Tensor
    forget_crops: torch.Tensor | None
    counterfactual_crops: torch.Tensor | None
    mask_seed: int

    def __len__(self):
        return len(self.forget)


MASK_CHUNK = 256  # tuples a mask is drawn for at once: 150 MB at 224 pixels


def draw_remain(split, count, seed):
    """The first `count` x_r of the joint dataset: positions in the training set, uniform over D_r, with replacement."""
    rows = torch.randint(len(split.remain), (count,), generator=generator(seed, "x_r"))
    return split.remain[rows.to(split.remain.device)]


def joint_dataset(split, repeats, seed):
    """Draw the joint dataset: `repeats` tuples for every forget sample, each with its own x_r, mask and y_c.

    Returns
    -------
    Joint
    """
    device = split.train.device
    forget = split.forget.repeat(repeats)
    n = len(forget)
    y_f = split.train.labels[forget]
    shift = torch.randint(1, split.classes, (n,), generator=generator(seed, "y_c")).to(device)
    crops = generator(seed, "crops of x_f and x_c")
    return Joint(
        forget,
        draw_remain(split, n, seed),
        (y_f + shift) % split.classes,
        split.train.draw_crops(n, crops),
        split.train.draw_crops(n, crops),
        derive_seed(seed, "masks"),
    )


def counterfactuals(split, joint):
    """Yield x_c = x_r + m for the tuples in order, MASK_CHUNK at a time: (rows, x_r, x_c).

    m is uniform in [0, 1] at the model's input size, after normalisation.
    """
    rng = torch.Generator(split.train.device).manual_seed(joint.mask_seed)
    for rows in torch.arange(len(joint), device=split.train.device).split(MASK_CHUNK):
        crops = None if joint.counterfactual_crops is None else joint.counterfactual_crops[rows]
        x_r = split.train.batch(joint.remain[rows], crops)
        mask = torch.empty_like(x_r, memory_format=torch.contiguous_format).uniform_(generator=rng)
        yield rows, x_r, x_r + mask
