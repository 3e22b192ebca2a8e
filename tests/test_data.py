import shutil

import numpy as np
import pytest
import torch
from conftest import make_toy_split
from PIL import Image
from torchvision.transforms import functional as tv

from config import UserError
from data import (
    Dataset,
    Images,
    counterfactuals,
    crop_and_flip,
    draw_crops,
    draw_remain,
    generator,
    joint_dataset,
    load,
    make_split,
    parse_task,
    parse_tasks,
    shuffled_batches,
)


def write_tree(root, name="Own", mode="RGB", sizes=((20, 30), (64, 48)), classes=("cat", "dog", "eel"), per_class=4):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for k, label in enumerate(classes):
            folder = root / name / part / label
            folder.mkdir(parents=True)
            for i in range(per_class):
                width, height = sizes[i % len(sizes)]
                shape = (height, width, 3) if mode == "RGB" else (height, width)
                pixels = rng.integers(0, 80, shape, dtype=np.uint8) + np.uint8(50 * k)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def test_optdigits_is_a_fixed_stratified_split():
    a, b = load("OptDigits", "nowhere"), load("OptDigits", "nowhere")
    assert (len(a.train), len(a.test)) == (1437, 360)
    assert a.train.pixels.shape[1:] == (1, 28, 28) and a.train.pixels.dtype == torch.uint8
    assert a.train.pixels.max() == 255 and a.train.batch(torch.arange(3)).max() <= 1
    assert torch.equal(a.train.pixels, b.train.pixels) and a.fingerprint() == b.fingerprint()
    assert (torch.bincount(a.test.labels) - 36).abs().max() <= 1


@pytest.mark.parametrize("name, forgotten", [("random10", 144), ("random20", 287), ("class0", 142), ("class0,3", 288)])
def test_splits_are_disjoint_and_complete(name, forgotten):
    dataset = load("OptDigits", "nowhere")
    split = make_split(dataset, parse_task(name), seed=0)
    assert len(split.forget) == forgotten
    assert sorted(torch.cat([split.forget, split.remain]).tolist()) == list(range(1437))
    if split.forgotten_classes:
        assert set(dataset.train.labels[split.forget].tolist()) == set(split.forgotten_classes)
        assert not torch.isin(dataset.train.labels[split.remain], torch.tensor(split.forgotten_classes)).any()


def test_the_seed_alone_draws_the_forget_set():
    dataset, task = load("OptDigits", "nowhere"), parse_task("random10")
    first = make_split(dataset, task, 0).forget
    torch.rand(17)  # the global generator has no say
    assert torch.equal(first, make_split(dataset, task, 0).forget)
    assert not torch.equal(first, make_split(dataset, task, 1).forget)


@pytest.mark.parametrize("text", ["random0", "random100", "random", "class", "class0,", "klass1", "", "random-5"])
def test_unknown_tasks_are_refused(text):
    with pytest.raises(UserError, match="write random<percent>"):
        parse_task(text)


def test_several_classes_have_one_name():
    assert parse_task("class3,0,3") == parse_task("class0,3")
    assert parse_task("random10.0").name == "random10"


def test_impossible_tasks_are_refused():
    dataset = load("OptDigits", "nowhere")
    with pytest.raises(UserError, match="has no class 12; its classes are 0 to 9"):
        make_split(dataset, parse_task("class12"), 0)
    with pytest.raises(UserError, match="every class"):
        make_split(dataset, parse_task("class0,1,2,3,4,5,6,7,8,9"), 0)
    with pytest.raises(UserError, match=r"0\.01 % of 1437 samples is 0"):
        make_split(dataset, parse_task("random0.01"), 0)


@pytest.mark.parametrize("repeats", [1, 10])
@pytest.mark.parametrize("forgotten_class", [None, 2])
def test_joint_dataset(repeats, forgotten_class):
    split = make_toy_split(forgotten_class=forgotten_class)
    joint = joint_dataset(split, repeats, seed=0)
    assert torch.equal(joint.forget.bincount(minlength=400), torch.isin(torch.arange(400), split.forget) * repeats)
    assert not torch.isin(joint.remain, split.forget).any()
    assert (joint.y_c != split.train.labels[joint.forget]).all()
    assert set(joint.y_c.tolist()) == {0, 1, 2, 3} - {forgotten_class}
    seen = 0
    for rows, x_r, x_c in counterfactuals(split, joint):
        mask = x_c - x_r
        torch.testing.assert_close(x_r, split.train.batch(joint.remain[rows]))
        assert -1e-6 <= mask.min() < 0.01 and 0.99 < mask.max() <= 1 + 1e-6
        assert mask.mean().item() == pytest.approx(0.5, abs=0.01)
        seen += len(rows)
    assert seen == len(joint) == repeats * len(split.forget)
    again = joint_dataset(split, repeats, seed=0)
    assert torch.equal(joint.remain, again.remain) and joint.mask_seed == again.mask_seed
    assert not torch.equal(joint.remain, joint_dataset(split, repeats, seed=1).remain)


def test_the_attacks_members_are_the_first_of_the_joint_dataset(toy_split):
    joint = joint_dataset(toy_split, 3, seed=5)
    assert torch.equal(draw_remain(toy_split, 30, 5), joint.remain[:30])


def test_every_label_is_drawn_equally_often():
    joint = joint_dataset(make_toy_split(forgotten_class=1), 100, seed=0)
    counts = torch.bincount(joint.y_c, minlength=4)
    assert counts[1] == 0 and (counts[[0, 2, 3]] / len(joint) - 1 / 3).abs().max() < 0.02


def test_an_epoch_visits_every_sample_once(toy_split):
    rows, xs, ys = zip(*shuffled_batches(toy_split.train, toy_split.remain, 32, generator(0)))
    assert sorted(torch.cat(rows).tolist()) == list(range(len(toy_split.remain)))
    assert max(map(len, rows)) == 32
    chosen = toy_split.remain[torch.cat(rows)]
    torch.testing.assert_close(torch.cat(xs), toy_split.train.pixels[chosen] / 255)
    assert torch.equal(torch.cat(ys), toy_split.train.labels[chosen])


def test_crops_equal_torchvisions():
    x = torch.rand(40, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    crops = draw_crops(40, 24, generator("crops"))
    found = crop_and_flip(x, crops)
    for image, (top, left, height, width, flip), ours in zip(x, crops.tolist(), found):
        expected = tv.resized_crop(image, int(top), int(left), int(height), int(width), [24, 24], antialias=False)
        torch.testing.assert_close(ours, tv.hflip(expected) if flip else expected, atol=2e-5, rtol=0)


def test_crops_have_the_area_and_ratio_asked_for():
    top, left, height, width, flip = draw_crops(20_000, 224, generator("crops")).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 224).all() and (left + width <= 224).all()
    area, ratio = height * width / 224**2, width / height
    assert 0.07 < area.min() < 0.09 and area.max() <= 1
    assert 0.48 < flip.mean() < 0.52
    assert ((ratio > 0.73) & (ratio < 1.36)).float().mean() > 0.99


def test_augmented_images_are_normalised_at_the_models_size():
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, torch.zeros(4, dtype=torch.long), side=64, normalise=True, augment=True)
    clean = images.batch(torch.tensor([2]))
    expected = tv.resize(pixels[2] / 255, [64, 64], antialias=False)
    expected = tv.normalize(expected, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(clean[0], expected)
    assert images.batch(torch.arange(4), images.draw_crops(4, generator(0))).shape == (4, 3, 64, 64)
    joint = joint_dataset(dataset_split(images), 1, seed=0)
    (rows, x_r, x_c), *_ = counterfactuals(dataset_split(images), joint)
    torch.testing.assert_close(x_r, images.batch(joint.remain[rows], joint.counterfactual_crops[rows]))
    assert ((x_c - x_r) > -1e-5).all() and ((x_c - x_r) < 1 + 1e-5).all()  # drawn after normalisation


def dataset_split(images):
    dataset = Dataset("Own", "ResNet-18", images, images, ("a", "b"))
    return make_split(dataset, parse_task("random50"), 0)


def test_rgb_folder_gets_resnet(tmp_path):
    dataset = load("Own", write_tree(tmp_path))
    assert dataset.model == "ResNet-18" and dataset.classes == ("cat", "dog", "eel")
    assert dataset.train.pixels.shape == (12, 3, 64, 64) and dataset.train.side == 64
    assert dataset.train.augment and not dataset.test.augment and not dataset.published_protocol
    assert dataset.train.batch(torch.arange(2)).shape == (2, 3, 64, 64)
    assert load("Own", tmp_path, image_size=32).train.pixels.shape == (12, 3, 32, 32)


def test_small_gray_folder_gets_cnn_large_gray_resnet(tmp_path):
    small = load("Own", write_tree(tmp_path / "a", mode="L", sizes=((32, 20),)))
    assert small.model == "CNN" and small.train.pixels.shape == (12, 1, 28, 28) and not small.train.augment
    large = load("Own", write_tree(tmp_path / "b", mode="L", sizes=((33, 20),)))
    assert large.model == "ResNet-18" and large.train.pixels.shape == (12, 3, 64, 64)


def test_cifar_tree_follows_the_published_protocol(tmp_path):
    dataset = load("CIFAR10", write_tree(tmp_path, "CIFAR10", sizes=((32, 32),)))
    assert dataset.published_protocol and dataset.train.side == 224
    assert dataset.train.pixels.shape == (12, 3, 32, 32)


def test_gray_built_in_sets_are_read_from_colour_trees_too(tmp_path):
    """MNIST exported as RGB is MNIST."""
    dataset = load("Digit", write_tree(tmp_path, "Digit", sizes=((28, 28),)))
    assert (dataset.model, dataset.published_protocol) == ("CNN", False)
    assert dataset.train.pixels.shape == (12, 1, 28, 28)


def test_folder_order_is_one_fixed_shuffle(tmp_path):
    dataset = load("Own", write_tree(tmp_path, per_class=20))
    assert dataset.train.labels.tolist() != sorted(dataset.train.labels.tolist())
    assert torch.equal(dataset.train.labels, load("Own", tmp_path).train.labels)
    for i, place in enumerate(dataset.order.tolist()):
        assert dataset.files[place].startswith(dataset.classes[dataset.train.labels[i]])


def test_cache_is_used_and_rebuilt_when_the_tree_changes(tmp_path, monkeypatch):
    before = load("Own", write_tree(tmp_path))
    cache = tmp_path / "Own.cache.pt"
    assert cache.exists()
    with monkeypatch.context() as patch:
        patch.setattr("data._decode", lambda *_: pytest.fail("decoded again"))
        assert load("Own", tmp_path).fingerprint() == before.fingerprint()
    shutil.copy(tmp_path / "Own/train/dog/0.png", tmp_path / "Own/train/cat/9.png")
    assert len(load("Own", tmp_path).train) == 13
    cache.write_bytes(cache.read_bytes()[:1000])
    assert len(load("Own", tmp_path).train) == 13


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise UserError("cannot be written")

    monkeypatch.setattr("data.save_atomically", full)
    assert len(load("Own", write_tree(tmp_path)).train) == 12
    assert "decoded images are not cached" in capsys.readouterr().out


@pytest.mark.parametrize("header", [b"P5\n9 -9\n255\n", b"BM" + bytes([255]) * 60])
def test_any_damage_to_an_image_is_named(tmp_path, header):
    (write_tree(tmp_path) / "Own/test/dog/1.png").write_bytes(header)
    with pytest.raises(UserError, match=r"test/dog/1\.png: not a readable image"):
        load("Own", tmp_path)


def test_too_few_test_images_for_the_attack_are_refused(tmp_path):
    for file in sorted((write_tree(tmp_path) / "Own/test").rglob("*.png")):
        if file.name != "0.png" or file.parent.name == "cat":
            file.unlink()
    shutil.rmtree(tmp_path / "Own/train/cat")
    shutil.rmtree(tmp_path / "Own/test/cat")
    with pytest.raises(UserError, match="holds 2 images; the membership attack needs at least 3"):
        load("Own", tmp_path)


def test_corrupt_image_is_named(tmp_path):
    bad = write_tree(tmp_path) / "Own/test/dog/1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(UserError, match=r"test/dog/1\.png: not a readable image"):
        load("Own", tmp_path)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    shutil.rmtree(write_tree(tmp_path) / "Own/test/eel")
    with pytest.raises(UserError, match="same classes; only one has eel"):
        load("Own", tmp_path)
    (tmp_path / "Own/test/eel").mkdir()
    with pytest.raises(UserError, match="eel"):
        load("Own", tmp_path)
    shutil.rmtree(tmp_path / "Own/test")
    with pytest.raises(UserError, match="Own has no folder test/"):
        load("Own", tmp_path)


def test_missing_data_say_where_they_were_looked_for(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"no data set 'Photos'.*{tmp_path}/Photos/train"):
        load("Photos", tmp_path)

    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", no_network)
    with pytest.raises(
        UserError, match=rf"sound files of torchvision's in {tmp_path}/MNIST/raw nor .*{tmp_path}/Digit/train"
    ):
        load("Digit", tmp_path)


@pytest.mark.parametrize("damage", [100, 1_000_016])
def test_truncated_mnist_is_named(tmp_path, real_data, damage):
    shutil.copytree(real_data / "MNIST", tmp_path / "MNIST")
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:damage])
    with pytest.raises(UserError, match=r"MNIST/raw .*damaged"):
        load("Digit", tmp_path)


def ids_task(tmp_path, *lines):
    path = tmp_path / "requests.txt"
    path.write_text("\n".join(map(str, lines)) + "\n")
    return parse_task(f"ids:{path}")


def test_chosen_samples(tmp_path):
    dataset = load("OptDigits", "nowhere")
    split = make_split(dataset, ids_task(tmp_path, 7, "", " 3 ", 1436), 0)
    assert split.forget.tolist() == [3, 7, 1436] and len(split.remain) == 1434
    assert (split.kind, ids_task(tmp_path, 3).name) == ("few", "ids-requests")


def test_chosen_files_of_an_image_folder(tmp_path):
    dataset = load("Own", write_tree(tmp_path))
    split = make_split(dataset, ids_task(tmp_path, "dog/2.png", 0), 0)
    named = {dataset.files[i] for i in dataset.order[split.forget].tolist()}
    assert named == {"dog/2.png", "cat/0.png"}  # index 0 is the first of the sorted files


@pytest.mark.parametrize(
    "lines, message",
    [
        ((5, 6, 5), "line 3: 5 is there twice, first in line 1"),
        ((1437,), "line 1: OptDigits has no training sample 1437, only 0 to 1436"),
        ((0, -1), "line 2: OptDigits has no training sample -1"),
        ((1, "", "two"), "line 3: 'two' is not an index of a training sample"),
        (range(1437), "forgets all 1437"),
        ((), "names no sample"),
    ],
)
def test_bad_ids_are_refused(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        make_split(load("OptDigits", "nowhere"), ids_task(tmp_path, *lines), 0)


def test_two_requests_of_one_name_are_refused(tmp_path):
    """They would overwrite each other's cells."""
    paths = [tmp_path / folder / "request.txt" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(path.parent.name.replace("a", "1").replace("b", "2"))
    texts = ("random10", *(f"ids:{path}" for path in paths))
    with pytest.raises(UserError, match=r"b/request.txt': another one is called ids-request too"):
        parse_tasks(texts)
    assert [task.name for task in parse_tasks(("class0", *texts[:2], "random10.0"))] == [
        "class0",
        "random10",
        "ids-request",
    ]


def test_missing_ids_file_is_refused():
    with pytest.raises(UserError, match=r"ids:nowhere\.txt: the file cannot be read"):
        parse_task("ids:nowhere.txt")
