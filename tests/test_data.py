from dataclasses import replace
from itertools import islice

import pytest
import torch
from conftest import colour_images, loaded, make_toy_dataset, make_toy_split
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.transforms import functional as tv

from data import (
    Dataset,
    Images,
    counterfactuals,
    crop_and_flip,
    cycled_batches,
    draw_crops,
    draw_remain,
    generator,
    joint_batches,
    joint_dataset,
    make_split,
    make_splits,
    shuffled_batches,
    tensor_split,
)
from harness.store import UserError
from harness.tasks import Task, parse_task

SMALL = settings(max_examples=50, deadline=None)


def blank(labels, classes=10, name="toy"):
    """A data set of blank images with these labels."""
    images = Images(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), torch.as_tensor(labels))
    return Dataset(name, "CNN", images, images, tuple(map(str, range(classes))))


def augmented(count=12, side=24):
    """Images that the training transform crops and flips."""
    return Images(*colour_images(count, side), side=side, normalise=True, augment=True)


@st.composite
def datasets(draw):
    """Small data sets with at least two classes, each with a sample."""
    classes = draw(st.integers(2, 6))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=classes, max_size=60))
    labels[:classes] = range(classes)
    return blank(labels, classes)


def test_streams_of_randomness_are_named_by_all_of_their_purpose():
    purposes = [(0, "a"), (0, "b"), (1, "a"), ("0a",), (0, "a", 0)]
    first, again = ([torch.rand(3, generator=generator(*purpose)).tolist() for purpose in purposes] for _ in range(2))
    assert first == again and len(set(map(tuple, first))) == len(purposes)


def test_the_fingerprint_tells_data_and_their_way_to_the_model_apart():
    train, test = augmented(), replace(augmented(8), augment=False)
    pixels, labels = train.pixels.clone(), train.labels.clone()
    pixels[3, 1, 5, 5] += 1
    labels[3] += 1
    ways = [{"pixels": pixels}, {"labels": labels}, {"side": 32}, {"normalise": False}, {"augment": False}]
    parts = [(train, test), *((replace(train, **way), test) for way in ways), (test, train)]
    found = [Dataset("toy", "ResNet-18", *pair, tuple("abcd")).fingerprint() for pair in parts]
    assert len(set(found)) == len(parts)
    assert Dataset("toy", "ResNet-18", train, test, tuple("abcd")).fingerprint() == found[0]
    assert Dataset("toy", "CNN", train, test, tuple("abcd")).fingerprint() not in found


@SMALL
@given(datasets(), st.integers(0, 5), st.one_of(st.floats(1, 99), st.sets(st.integers(0, 5), min_size=1)))
def test_splits_are_a_partition(dataset, seed, what):
    text = f"random{what:.2f}" if isinstance(what, float) else "class" + ",".join(map(str, what))
    try:
        split = make_split(dataset, parse_task(text), seed)
    except UserError:
        assume(False)
    both = torch.cat([split.forget, split.remain]).tolist()
    assert sorted(both) == list(range(len(dataset.train))) and len(split.forget) and len(split.remain)
    if split.forgotten_classes:
        gone = torch.isin(dataset.train.labels, torch.tensor(split.forgotten_classes))
        assert split.kind == "class" and split.forget.tolist() == gone.nonzero()[:, 0].tolist()
    else:
        assert len(split.forget) == round(len(dataset.train) * parse_task(text).percent / 100)


@pytest.mark.parametrize(
    "task, forgotten, kind",
    [("random10", 144, "random"), ("random0.9", 13, "few"), ("class0", 144, "class"), ("class0,3", 288, "class")],
)
def test_a_task_forgets_so_many_samples(task, forgotten, kind):
    split = make_split(blank(torch.arange(1437) % 10), parse_task(task), seed=0)
    assert (len(split.forget), split.kind) == (forgotten, kind)


def test_samples_named_in_a_file_are_forgotten():
    split = make_split(blank(torch.arange(30) % 10), Task("ids-mine", ids=("7", "3")), seed=0)
    assert split.forget.tolist() == [3, 7] and len(split.remain) == 28 and split.forgotten_classes == ()
    whole = make_split(blank(torch.arange(30) % 10), Task("ids-mine", ids=("7", "17", "27")), seed=0)
    assert (whole.kind, whole.forgotten_classes) == ("class", (7,))
    last = make_split(blank(torch.tensor([0] + 4 * [1] + 5 * [2])), parse_task("random50"), seed=0)
    assert 0 in last.forget and last.forgotten_classes == ()  # by chance all of class 0


def test_seed_data_set_and_task_alone_draw_the_forget_set():
    labels = torch.arange(400) % 10
    first = make_split(blank(labels), parse_task("random10"), 0).forget
    torch.rand(17)  # the global generator has no say
    assert torch.equal(first, make_split(blank(labels), parse_task("random10.0"), 0).forget)
    assert not torch.equal(first, make_split(blank(labels), parse_task("random10"), 1).forget)
    assert not torch.equal(first, make_split(blank(labels, name="other"), parse_task("random10"), 0).forget)
    assert not torch.isin(first, make_split(blank(labels), parse_task("random20"), 0).forget).all()


@pytest.mark.parametrize(
    "task, message",
    [
        ("class12", "has no class 12; its classes are 0 to 9"),
        ("class0,1,2,3,4,5,6,7,8,9", "every class"),
        ("random0.01", r"0\.01 % of 400 samples is 0"),
        ("random99.9", r"99\.9 % of 400 samples is 400"),
    ],
)
def test_impossible_tasks_are_refused(task, message):
    with pytest.raises(UserError, match=message):
        make_split(blank(torch.arange(400) % 10), parse_task(task), 0)


def test_own_tensors_are_split():
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    whole, part = tensor_split(y[:, None], y, [7, 1, 4]), tensor_split(y[:, None], y, torch.tensor([7, 1]))
    assert (whole.kind, whole.forgotten_classes, whole.classes) == ("class", (1,), 3)
    assert (part.kind, part.forgotten_classes) == ("random", ())
    assert part.forget.tolist() == [1, 7] and part.remain.tolist() == [0, 2, 3, 4, 5, 6, 8]
    assert torch.equal(part.train.batch(part.forget), y[[1, 7], None])  # as they are
    y = torch.arange(200) % 2
    assert tensor_split(y[:, None], y, [5]).kind == "few"


@pytest.mark.parametrize(
    "forget, message",
    [
        ([], "0 of 9 samples are to be forgotten"),
        (list(range(9)), "9 of 9"),
        ([1, 1], "each at most once"),
        ([-1], "from 0 to 8"),
        ([9], "from 0 to 8"),
    ],
)
def test_bad_indices_are_refused(forget, message):
    y = torch.arange(9) % 3
    with pytest.raises(UserError, match=message):
        tensor_split(y[:, None], y, torch.tensor(forget, dtype=torch.long))
    with pytest.raises(UserError, match="at least two classes"):
        tensor_split(y[:, None], 0 * y, [1])


@SMALL
@given(datasets(), st.integers(0, 5), st.integers(1, 4), st.data())
def test_the_joint_dataset_holds_what_algorithm_1_asks_for(dataset, seed, repeats, data):
    count = len(dataset.train)
    forget = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    labels, lost = dataset.train.labels, torch.isin(torch.arange(count), torch.tensor(sorted(forget)))
    left = labels[~lost].unique()
    if len(left) == 1 and (labels[lost] == left).any():
        with pytest.raises(UserError, match="D_r has one label only"):
            tensor_split(dataset.train.pixels, labels, sorted(forget))
        return
    split = tensor_split(dataset.train.pixels, labels, sorted(forget))
    joint = joint_dataset(split, repeats, seed)
    assert sorted(joint.forget.tolist()) == sorted(sorted(forget) * repeats)
    assert not torch.isin(joint.remain, split.forget).any()
    assert (joint.y_c != split.train.labels[joint.forget]).all()
    assert torch.isin(joint.y_c, left).all()  # a label that is forgotten itself is not taught again
    for _, x_r, masked in counterfactuals(split, joint):
        x_c = masked(x_r)
        assert (x_c - x_r).min() >= 0 and (x_c - x_r).max() <= 1


def test_counterfactuals_are_remain_samples_with_a_uniform_mask(toy_split):
    joint = joint_dataset(toy_split, 10, seed=0)
    seen = []
    for rows, x_r, masked in counterfactuals(toy_split, joint):
        mask = masked(x_r) - x_r
        torch.testing.assert_close(x_r, toy_split.train.batch(joint.remain[rows]))
        assert -1e-6 <= mask.min() < 0.01 and 0.99 < mask.max() <= 1 + 1e-6
        assert mask.mean().item() == pytest.approx(0.5, abs=0.01)
        assert not torch.allclose(mask[0], mask[1])
        seen += rows.tolist()
    assert seen == list(range(400))


def test_the_seed_draws_the_joint_dataset(toy_split):
    first, again, other = (joint_dataset(toy_split, 3, seed) for seed in (5, 5, 6))
    for name in ("remain", "y_c"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert first.mask_seed == again.mask_seed != other.mask_seed
    assert torch.equal(draw_remain(toy_split, 30, 5), first.remain[:30])  # the membership attack's members


def test_every_label_and_every_remain_sample_is_drawn_equally_often():
    split = make_toy_split(forgotten_class=1)
    joint = joint_dataset(split, 100, seed=0)
    counts = torch.bincount(joint.y_c, minlength=4)
    assert counts[1] == 0 and (counts[[0, 2, 3]] / len(joint) - 1 / 3).abs().max() < 0.02
    often = joint.remain.bincount(minlength=400)[split.remain]
    assert often.min() > 0 and often.double().var().item() == pytest.approx(often.double().mean().item(), rel=0.3)


def test_an_epoch_visits_every_sample_once(toy_split):
    batches = shuffled_batches(toy_split.train, toy_split.remain, 32, generator(0))
    rows, xs, ys = zip(*loaded(batches, toy_split.train, toy_split.remain))
    order = torch.cat(rows).tolist()
    assert sorted(order) == list(range(len(toy_split.remain))) != order
    assert [len(part) for part in rows] == [32] * 11 + [8]
    chosen = toy_split.remain[order]
    torch.testing.assert_close(torch.cat(xs), toy_split.train.pixels[chosen] / 255)
    assert torch.equal(torch.cat(ys), toy_split.train.labels[chosen])


def test_cycled_batches_are_shuffled_anew_each_time_round(toy_split):
    rows = [part.tolist() for part, _ in islice(cycled_batches(toy_split.train, toy_split.forget, 20, generator(0)), 6)]
    rounds = [first + second for first, second in zip(rows[::2], rows[1::2])]
    assert all(sorted(order) == list(range(40)) for order in rounds) and len(set(map(tuple, rounds))) == 3


def tuples_of(split, joint, batches):
    """All of (rows_r, x_r, y_r, rows_f, x_f, y_c)."""
    found = []
    for rows_r, crops, rows_f in batches:
        of_r, of_f = joint.tuples(split.train, rows_r, crops, rows_f)
        found.append((rows_r, *of_r, rows_f, *of_f))
    return map(torch.cat, zip(*found))


def test_an_epoch_over_the_joint_dataset_visits_every_tuple_once(toy_split):
    joint = joint_dataset(toy_split, 2, seed=0)
    r, x_r, y_r, rows, x_f, y_c = tuples_of(toy_split, joint, joint_batches(toy_split, joint, 32, generator(0)))
    assert torch.equal(r, rows) and sorted(rows.tolist()) == list(range(80)) != rows.tolist()
    assert torch.equal(x_r, toy_split.train.batch(joint.remain[rows]))
    assert torch.equal(x_f, toy_split.train.batch(joint.forget[rows]))
    assert torch.equal(y_r, toy_split.train.labels[joint.remain[rows]]) and torch.equal(y_c, joint.y_c[rows])


def test_as_in_the_published_code_x_r_comes_in_an_order_of_its_own_and_lends_its_label(toy_split):
    joint = joint_dataset(toy_split, 2, seed=0, y_c="y_r")
    y_f, y_r = toy_split.train.labels[joint.forget], toy_split.train.labels[joint.remain]
    assert torch.equal(joint.y_c[y_r != y_f], y_r[y_r != y_f]) and (joint.y_c != y_f).all() and (y_r == y_f).any()
    batches = joint_batches(toy_split, joint, 32, generator(0), paired=False)
    r, x_r, labels_r, f, x_f, y_c = tuples_of(toy_split, joint, batches)
    assert not torch.equal(r, f) and sorted(r.tolist()) == sorted(f.tolist()) == list(range(80))
    assert torch.equal(x_r, toy_split.train.batch(joint.remain[r])) and torch.equal(labels_r, y_r[r])
    assert torch.equal(x_f, toy_split.train.batch(joint.forget[f])) and torch.equal(y_c, joint.y_c[f])


def test_requests_one_after_another_forget_what_is_left():
    dataset = make_toy_dataset()
    sizes_of = {
        "random10>random10": (40, 40),
        "class0>class1,2": (100, 200),
        "class0>random50": (100, 200),
        "class0>random20": (100, 80),
    }
    for text, sizes in sizes_of.items():
        first, second = make_splits(dataset, parse_task(text), seed=0)
        assert (len(first.forget), len(second.forget)) == sizes
        assert torch.equal(first.forget, make_split(dataset, parse_task(text.split(">")[0]), 0).forget)
        parts = torch.cat([first.forget, second.forget, second.remain])
        assert sorted(parts.tolist()) == list(range(400))
        assert second.so_far().forget.tolist() == sorted(torch.cat([first.forget, second.forget]).tolist())
        assert torch.equal(second.so_far().remain, second.remain) and torch.equal(first.so_far().forget, first.forget)
        kinds = second.kind, second.so_far().kind
        assert text != "class0>random50" or kinds == ("large", "class")
    assert [split.kind for split in (first, second, second.so_far())] == ["class", "random", "class"]
    assert second.so_far().forgotten_classes == (0,)
    both = [make_splits(dataset, parse_task("random10>random10"), seed) for seed in (0, 0, 1)]
    assert torch.equal(both[0][1].forget, both[1][1].forget) and not torch.equal(both[0][1].forget, both[2][1].forget)


def test_the_next_split_is_a_class_removal_where_all_that_is_left_of_a_class_goes():
    y = torch.arange(12) % 3
    first = tensor_split(y[:, None], y, [0, 1])
    second = first.next([3, 6, 9])
    assert first.kind == "random" and second.forgotten_classes == (0,) and second.earlier_classes == ()
    third = second.next(torch.tensor([4, 7, 10]))
    assert (third.forgotten_classes, third.earlier_classes) == ((1,), (0,)) and third.remain.tolist() == [2, 5, 8, 11]
    assert third.so_far().forgotten_classes == (0, 1)
    for forget, message in (([0], "position 0 cannot be forgotten"), ([2, 5, 8, 11], "4 of 4"), ([], "0 of 4")):
        with pytest.raises(UserError, match=message):
            third.next(forget)


@pytest.mark.parametrize(
    "text, message",
    [
        ("class0>class0", "task class0: Toy has no sample of class 0 left"),
        ("class0,1>class2,3", "task class2,3: 200 of 200 samples are to be forgotten"),
        ("random50>random50", "task random50: 50 % of 400 samples is 200; at least one of the 200"),
        ("class0>class4", "no class 4"),
    ],
)
def test_a_request_for_what_is_gone_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        make_splits(make_toy_dataset(), parse_task(text), seed=0)


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


def test_images_are_resized_and_normalised():
    images = replace(augmented(4, 32), side=64)
    expected = tv.resize(images.pixels[2] / 255, [64, 64], antialias=False)
    expected = tv.normalize(expected, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(images.batch(torch.tensor([2]))[0], expected)


def test_training_crops_before_it_normalises():
    images = augmented()
    rows, x, _ = next(loaded(shuffled_batches(images, torch.arange(12), 12, generator(0)), images, torch.arange(12)))
    rng = generator(0)
    assert torch.equal(rows, torch.randperm(12, generator=rng))
    assert torch.equal(x, images.standardise(crop_and_flip(images.unit(rows), images.draw_crops(12, rng))))
    batches = list(
        loaded(shuffled_batches(images, torch.arange(12), 5, generator(0)), images, torch.arange(12))
    )  # crops do not depend on the batches
    torch.testing.assert_close(torch.cat([part for _, part, _ in batches]), x)
    assert replace(images, augment=False).draw_crops(12, rng) is None


def test_masks_are_added_to_what_the_model_sees():
    images = augmented()
    split = make_split(Dataset("Own", "ResNet-18", images, images, tuple("abcd")), parse_task("random50"), 0)
    joint = joint_dataset(split, 1, seed=0)
    ((rows, x_r, masked),) = counterfactuals(split, joint)
    x_c = masked(x_r)
    torch.testing.assert_close(x_r, images.batch(joint.remain[rows], joint.counterfactual_crops[rows]))
    assert ((x_c - x_r) > -1e-5).all() and ((x_c - x_r) < 1 + 1e-5).all()  # drawn after normalisation
    assert not torch.equal(joint.counterfactual_crops, joint.forget_crops)


X, Y = torch.rand(6, 4), torch.arange(6) % 3


@pytest.mark.parametrize(
    "x, y, forget, message",
    [
        (X.numpy(), Y, [0], "the tensors must be tensors, and one is a ndarray"),
        (X, Y.tolist(), [0], "one is a list"),
        (X, Y.float(), [0], "labels are torch.float32"),
        (X, Y > 0, [0], "labels are torch.bool"),
        (X, Y[:, None], [0], r"labels are torch.int64 of .6, 1."),
        (X, Y[:5], [0], r"x is of .6, 4. and has 5 labels"),
        (X[:0], Y[:0], [0], r"x is of .0, 4. and has 0 labels"),
        (torch.rand(6), Y, [0], r"x is of .6,. and has 6 labels"),
        (torch.where(X[2, 1] == X, torch.nan, X), Y, [0], "sample 2 holds nan or infinity"),
        (X / 0, Y, [0], "sample 0 holds nan or infinity"),
        (X, Y - 1, [0], "label -1 is below 0"),
        (X, torch.where(Y == 0, -100, Y), [0], "label -100 is below 0"),
        (X, Y * 0 + 2, [0], "all labels are 2"),
        (X, Y, [0.5], "what to forget is torch.float32"),
        (X, Y, "cat", "what to forget must be whole numbers, and is a str"),
        (X, Y, None, "what to forget must be whole numbers, and is a NoneType"),
        (X, Y, [[0], [1]], r"what to forget is torch.int64 of .2, 1."),
        (X, Y, torch.ones(6, dtype=torch.bool), "what to forget is torch.bool"),
        (X, Y, [6], "position 6 cannot be forgotten"),
        (X, Y, [-1], "position -1 cannot be forgotten"),
        (X, Y, [1, 1], "position 1 cannot be forgotten"),
        (X, Y, [], "0 of 6 samples are to be forgotten"),
        (X, Y, range(6), "6 of 6 samples are to be forgotten"),
    ],
)
def test_tensors_that_make_no_split_are_refused_in_one_line(x, y, forget, message):
    with pytest.raises(UserError, match=message):
        tensor_split(x, y, forget)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int16])
def test_labels_and_positions_may_be_of_any_integer_kind(kind):
    split = tensor_split(X, Y.to(kind), torch.tensor([0, 3]).to(kind))
    assert split.train.labels.dtype == torch.int64 and split.forget.tolist() == [0, 3]
    assert split.forgotten_classes == (0,) and tensor_split(X, Y, (0, 3)).forget.tolist() == [0, 3]
