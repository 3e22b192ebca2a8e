import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_toy_dataset, write_tree
from PIL import Image

from data import make_splits
from harness import datasets
from harness.datasets import load, mislabelled
from harness.store import UserError, load_tensors, save_tensors
from harness.tasks import parse_task


def test_optdigits_is_a_fixed_stratified_split():
    a, b = load("OptDigits", "nowhere"), load("OptDigits", "nowhere")
    assert (a.model, len(a.train), len(a.test)) == ("CNN", 1437, 360)
    assert a.train.pixels.shape[1:] == (1, 28, 28) and a.train.pixels.dtype == torch.uint8
    assert a.train.pixels.max() == 255 and a.train.batch(torch.arange(3)).max() <= 1
    assert torch.equal(a.train.pixels, b.train.pixels) and a.fingerprint() == b.fingerprint()
    assert (torch.bincount(a.test.labels) - 36).abs().max() <= 1


def test_torchvisions_sets_get_the_papers_models(monkeypatch, tmp_path):
    """Stand-ins for torchvision's classes, whose files are large."""

    def mnist(root, train, download):
        count = 60_000 if train else 10_000
        pixels = torch.zeros(count, 28, 28, dtype=torch.uint8)
        return SimpleNamespace(data=pixels, targets=torch.arange(count) % 10, classes=list("0123456789"))

    def cifar(root, train, download):
        pixels = np.arange(4 * 32 * 32 * 3, dtype=np.uint8).reshape(4, 32, 32, 3)
        return SimpleNamespace(data=pixels, targets=[0, 1, 2, 3], classes=list("abcd"))

    monkeypatch.setattr(datasets, "TORCHVISION", {"Fashion": mnist, "CIFAR100": cifar})
    fashion, hundred = (load(name, tmp_path) for name in ("Fashion", "CIFAR100"))
    assert (fashion.model, fashion.published_protocol, len(fashion.classes)) == ("CNN", False, 10)
    assert fashion.train.pixels.shape == (60_000, 1, 28, 28) and not fashion.train.augment
    assert (hundred.model, hundred.published_protocol, hundred.train.side) == ("ResNet-18", True, 224)
    assert hundred.train.augment and hundred.train.normalise and hundred.test.normalise and not hundred.test.augment
    assert hundred.train.labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(hundred.test.pixels[2], torch.from_numpy(cifar(0, 0, 0).data[2]).permute(2, 0, 1))
    assert load("CIFAR100", tmp_path, image_size=40).train.side == 40


def test_a_colour_folder_gets_resnet(tmp_path):
    dataset = load("Own", write_tree(tmp_path))
    assert dataset.model == "ResNet-18" and dataset.classes == ("cat", "dog", "eel")
    assert dataset.train.pixels.shape == (12, 3, 64, 64) and dataset.train.side == 64
    assert dataset.train.augment and not dataset.test.augment and not dataset.published_protocol
    assert dataset.train.batch(torch.arange(2)).shape == (2, 3, 64, 64)
    assert load("Own", tmp_path, image_size=32).train.pixels.shape == (12, 3, 32, 32)


def test_a_gray_folder_gets_the_cnn_if_its_images_are_small(tmp_path):
    small = load("Own", write_tree(tmp_path / "a", mode="L", sizes=((32, 20),)))
    assert small.model == "CNN" and small.train.pixels.shape == (12, 1, 28, 28) and not small.train.augment
    large = load("Own", write_tree(tmp_path / "b", mode="L", sizes=((33, 20),)))
    assert large.model == "ResNet-18" and large.train.pixels.shape == (12, 3, 64, 64)


def test_a_tree_of_cifar_follows_the_published_protocol(tmp_path):
    dataset = load("CIFAR10", write_tree(tmp_path, "CIFAR10", sizes=((32, 32),)))
    assert dataset.published_protocol and dataset.train.side == 224
    assert dataset.train.pixels.shape == (12, 3, 32, 32)


def test_a_tree_of_mnist_in_colour_is_mnist(tmp_path):
    dataset = load("Digit", write_tree(tmp_path, "Digit", sizes=((28, 28),)))
    assert (dataset.model, dataset.published_protocol) == ("CNN", False)
    assert dataset.train.pixels.shape == (12, 1, 28, 28)


def test_val_stands_for_test(tmp_path):
    tree = write_tree(tmp_path / "a") / "Own"
    expected = load("Own", tmp_path / "a").fingerprint()
    (tree / "test").rename(tree / "val")
    assert load("Own", tmp_path / "a").fingerprint() == expected


def test_a_fifth_of_a_folder_of_classes_becomes_the_test_set(tmp_path):
    write_tree(tmp_path, per_class=10)
    (tmp_path / "Own" / "train").rename(tmp_path / "Flat")
    dataset = load("Flat", tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (24, 6) and dataset.classes == ("cat", "dog", "eel")
    assert dataset.test.labels.bincount().tolist() == [2, 2, 2]
    every = {f"{label}/{i}.png" for label in dataset.classes for i in range(10)}
    assert len(dataset.files) == 24 and set(dataset.files) <= every
    assert load("Flat", tmp_path).fingerprint() == dataset.fingerprint()
    for file in sorted((tmp_path / "Flat" / "cat").iterdir())[1:]:
        file.unlink()
    with pytest.raises(UserError, match=r"Flat cannot be cut into train and test, make the two folders yourself: "):
        load("Flat", tmp_path)


def test_what_is_skipped_is_said_once(tmp_path, capsys):
    tree = write_tree(tmp_path) / "Own"
    for path in (tree / "train/stray.png", tree / "train/cat/notes.txt"):
        path.write_bytes(b"")
    assert len(load("Own", tmp_path).train) == 12
    assert "2 files are skipped, no images in a class's folder, such as" in capsys.readouterr().out


def test_a_photo_lies_as_its_camera_says(tmp_path):
    write_tree(tmp_path)
    upright = load("Own", tmp_path)
    path = tmp_path / "Own/train/cat/0.png"
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6  # turned a quarter to the left when it was taken
    image.rotate(90, expand=True).save(path, exif=exif)
    assert torch.equal(load("Own", tmp_path).train.pixels, upright.train.pixels)


NPZ = {"x_train": (12, 20, 20), "x_test": (6, 20, 20)}


@pytest.mark.parametrize(
    "shape, model, pixels",
    [
        ((20, 20), "CNN", (1, 28, 28)),
        ((28, 28, 1), "CNN", (1, 28, 28)),
        ((1, 28, 28), "CNN", (1, 28, 28)),
        ((20, 30, 3), "ResNet-18", (3, 64, 64)),
        ((3, 40, 40), "ResNet-18", (3, 64, 64)),
        ((40, 40), "ResNet-18", (3, 64, 64)),
    ],
)
def test_arrays_in_a_file_are_a_data_set(tmp_path, shape, model, pixels):
    rng = np.random.default_rng(0)
    counts = {"x_train": 12, "x_test": 6}
    arrays = {name: rng.integers(0, 255, (count, *shape), dtype=np.uint8) for name, count in counts.items()}
    np.savez(tmp_path / "Mine.npz", **arrays, y_train=np.arange(12) % 3, y_test=np.arange(6)[:, None] % 3)
    dataset = load("Mine", tmp_path)
    assert (dataset.model, dataset.classes, dataset.train.pixels.shape) == (model, ("0", "1", "2"), (12, *pixels))
    assert dataset.test.labels.bincount().tolist() == [2, 2, 2]
    if pixels == shape:
        wanted = {array.tobytes(): k % 3 for k, array in enumerate(arrays["x_train"])}
        found = {pixels.numpy().tobytes(): int(y) for pixels, y in zip(dataset.train.pixels, dataset.train.labels)}
        assert found == wanted
        (tmp_path / "request.txt").write_text("7\n2\n")  # of the arrays, whatever order the samples are kept in
        forget = make_splits(dataset, parse_task(f"ids:{tmp_path}/request.txt"), seed=0)[0].forget
        asked = {arrays["x_train"][k].tobytes() for k in (2, 7)}
        assert {pixels.numpy().tobytes() for pixels in dataset.train.pixels[forget]} == asked


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x_test": None}, "has no x_test; it must hold x_train, y_train, x_test, y_test"),
        ({"x_train": np.zeros((12, 20, 20))}, "x_train is float64 of .*; it must be uint8"),
        ({"x_train": np.zeros((12, 20, 20, 2), np.uint8)}, "x_train is uint8 of .*; it must be uint8 of .N, H, W"),
        ({"y_train": np.zeros(11, int)}, "y_train must be 12 whole numbers"),
        ({"y_train": np.zeros(12)}, "y_train must be 12 whole numbers, and is float64"),
        ({"y_train": np.arange(12) - 1}, "labels go from -1 to 10; they must count from 0"),
        ({"y_train": np.zeros(12, int), "y_test": np.zeros(6, int)}, "labels go from 0 to 0; .*at least two"),
        ({"y_train": np.array([{}] * 12)}, "Mine.npz cannot be read: Object arrays"),
        ({"x_test": np.zeros((2, 20, 20), np.uint8), "y_test": np.zeros(2, int)}, "the test set holds 2 samples"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, changes, message):
    arrays = {name: np.zeros(shape, np.uint8) for name, shape in NPZ.items()}
    arrays |= {"y_train": np.arange(12) % 3, "y_test": np.arange(6) % 3} | changes
    np.savez(tmp_path / "Mine.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=message):
        load("Mine", tmp_path)


class Letters:
    """A stand-in for one of torchvision's data sets."""

    classes = ("a", "b", "c")
    count = 12

    def __init__(self, root, split="train", download=False):
        self.root, self.count = root, {"train": 12, "test": 6}[split]

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return Image.new("RGB", (30 + i, 40), (20 * i, 0, 0)), i % 3


def test_any_data_set_of_torchvisions_with_one_label_an_image_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.torchvision.datasets, "Letters", Letters, raising=False)
    dataset = load("Letters", tmp_path)
    assert (dataset.model, dataset.classes) == ("ResNet-18", ("a", "b", "c"))
    assert (len(dataset.train), len(dataset.test)) == (12, 6)
    with pytest.raises(UserError, match="FakeData: torchvision's has no training and test part"):
        load("FakeData", tmp_path)
    monkeypatch.setattr(Letters, "__getitem__", lambda self, i: (Image.new("L", (9, 9)), {"boxes": []}))
    with pytest.raises(UserError, match="a label is dict; only sets with one class per image are read"):
        load("Letters", tmp_path)
    monkeypatch.setattr(Letters, "__init__", lambda self, root, split, download: [][1])
    with pytest.raises(UserError, match=r"torchvision cannot load its train part from .*list index out of range"):
        load("Letters", tmp_path)


def test_the_order_of_a_folder_is_one_fixed_shuffle(tmp_path):
    dataset = load("Own", write_tree(tmp_path, per_class=20, sizes=((64, 64),)))
    labels = dataset.train.labels.tolist()
    assert labels != sorted(labels) and torch.equal(dataset.train.labels, load("Own", tmp_path).train.labels)
    for pixels, label, place in zip(dataset.train.pixels, labels, dataset.order.tolist()):
        assert dataset.files[place].startswith(dataset.classes[label])
        stored = np.array(Image.open(tmp_path / "Own/train" / dataset.files[place]))
        assert torch.equal(pixels, torch.from_numpy(stored).permute(2, 0, 1))


def test_the_cache_is_used_and_rebuilt_when_the_tree_changes(tmp_path):
    first = load("Own", write_tree(tmp_path)).fingerprint()
    cache = tmp_path / "Own.cache.pt"
    marked = load_tensors(cache)
    marked["train"][:] = 7
    save_tensors(cache, marked)
    assert (load("Own", tmp_path).train.pixels == 7).all()
    assert (load("Own", tmp_path, image_size=48).train.pixels != 7).any()
    assert load("Own", tmp_path).fingerprint() == first
    shutil.copy(tmp_path / "Own/train/dog/0.png", tmp_path / "Own/train/cat/9.png")
    assert len(load("Own", tmp_path).train) == 13
    cache.write_bytes(cache.read_bytes()[:1000])
    assert len(load("Own", tmp_path).train) == 13


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise UserError("cannot be written")

    monkeypatch.setattr(datasets, "save_tensors", full)
    assert len(load("Own", write_tree(tmp_path)).train) == 12
    assert "decoded images are not cached" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut short", b"P5\n9 -9\n255\n", b"BM" + bytes([255]) * 60])
def test_any_damage_to_an_image_is_named(tmp_path, damage):
    bad = write_tree(tmp_path) / "Own/test/dog/1.png"
    bad.write_bytes(bad.read_bytes()[:60] if damage == "cut short" else damage)
    with pytest.raises(UserError, match=r"test/dog/1\.png: not a readable image"):
        load("Own", tmp_path)


def test_images_of_sixteen_bits_are_refused(tmp_path):
    path = write_tree(tmp_path) / "Own/train/eel/2.png"
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(path)
    with pytest.raises(UserError, match=r"train/eel/2\.png: images of mode I;16 are not read"):
        load("Own", tmp_path)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    tree = write_tree(tmp_path) / "Own"
    for file in (*tree.glob("test/*/[1-3].png"), tree / "test/cat/0.png"):
        file.unlink()
    shutil.rmtree(tree / "train/cat")
    shutil.rmtree(tree / "test/cat")
    with pytest.raises(UserError, match="holds 2 samples; the membership attack needs at least 3"):
        load("Own", tmp_path)
    shutil.rmtree(tree / "test/eel")
    with pytest.raises(UserError, match="same classes; only one has eel"):
        load("Own", tmp_path)
    (tree / "test/eel").mkdir()
    with pytest.raises(UserError, match="eel"):
        load("Own", tmp_path)
    shutil.rmtree(tree / "train/eel")
    shutil.rmtree(tree / "test/eel")
    with pytest.raises(UserError, match="holds one class, dog; at least two are needed"):
        load("Own", tmp_path)
    shutil.rmtree(tree / "test")
    with pytest.raises(UserError, match=r"Own has no folder test \(or val\)/<class>/"):
        load("Own", tmp_path)


def test_missing_data_say_where_they_were_looked_for(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"no data set 'Photos'.*{tmp_path}/Photos/train"):
        load("Photos", tmp_path)

    def no_network(*_, **__):
        raise OSError("no network")

    for module, name, place in (("mnist", "Digit", "MNIST/raw"), ("cifar", "CIFAR10", "cifar-10-batches-py")):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", no_network)
        where = rf"intact files of torchvision's in {tmp_path}/{place} nor .*{tmp_path}/{name}/train.*no network"
        with pytest.raises(UserError, match=where):
            load(name, tmp_path)


@pytest.mark.parametrize("images", [b"", bytes(9 * 28 * 28), bytes(10 * 28 * 28)])
def test_damaged_files_of_mnist_are_named(tmp_path, images):
    """Empty, cut short, and of fewer images than MNIST has."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3, 0, 0, 0, 10, 0, 0, 0, 28, 0, 0, 0, 28]) + images
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 10]) + bytes(10))
    with pytest.raises(UserError, match=r"MNIST/raw .*damaged.*delete (it|the folder) to download it again"):
        load("Digit", tmp_path)


def test_the_real_mnist_is_read(real_data):
    for name, first in (("Digit", [5, 0, 4, 1]), ("Fashion", [9, 0, 0, 3])):
        dataset = load(name, real_data)
        assert (dataset.model, len(dataset.train), len(dataset.test), len(dataset.classes)) == (
            "CNN",
            60_000,
            10_000,
            10,
        )
        assert dataset.train.labels[:4].tolist() == first and dataset.train.pixels.max() == 255


def test_the_training_labels_are_as_noisy_as_asked():
    clean, noisy = load("OptDigits", "none"), load("OptDigits", "none", label_noise=20)
    assert int((clean.train.labels != noisy.train.labels).sum()) == 287


@pytest.mark.parametrize("percent", [0, 5, 20.0])
def test_wrong_labels_are_so_many_and_always_the_same(percent):
    dataset = make_toy_dataset()
    noisy = mislabelled(dataset, percent)
    wrong = noisy.train.labels != dataset.train.labels
    assert int(wrong.sum()) == 4 * percent and torch.equal(noisy.test.labels, dataset.test.labels)
    assert set(noisy.train.labels.tolist()) <= {0, 1, 2, 3} and torch.equal(noisy.train.pixels, dataset.train.pixels)
    assert torch.equal(mislabelled(dataset, float(percent)).train.labels, noisy.train.labels)
    assert (noisy.fingerprint() == dataset.fingerprint()) == (percent == 0)
    if percent == 20:
        assert torch.bincount(dataset.train.labels[wrong], minlength=4).min() > 5  # of all classes
        shift = (noisy.train.labels - dataset.train.labels)[wrong] % 4
        assert torch.bincount(shift, minlength=4)[1:].min() > 10  # to all others


def test_links_and_pipes_that_are_no_images_are_named(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "Own/train/cat/x.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"Own: .*train/cat/x.png is no file: a link to nothing, or a pipe"):
        load("Own", tmp_path)
    (tmp_path / "Own/train/cat/x.png").unlink()
    os.mkfifo(tmp_path / "Own/train/cat/x.png")
    with pytest.raises(UserError, match="is no file: a link to nothing, or a pipe"):
        load("Own", tmp_path)
    (tmp_path / "Own/train/cat/x.png").unlink()
    (tmp_path / "Own/train/cat/loop.png").symlink_to("loop.png")
    with pytest.raises(UserError, match=r"loop.png is no file"):
        load("Own", tmp_path)


def test_a_link_back_does_not_count_images_twice(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "Own/train/cat/again").symlink_to(".")
    with pytest.raises(UserError, match=r"Own: .*train/cat/again is .*train/cat again, through a link"):
        load("Own", tmp_path)


def test_hidden_folders_are_no_classes(tmp_path):
    write_tree(tmp_path)
    for part in ("train", "test"):
        (tmp_path / f"Own/{part}/.cache").mkdir()
    assert load("Own", tmp_path).classes == ("cat", "dog", "eel")
