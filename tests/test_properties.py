"""What must hold for every task, split and joint dataset, not only for the examples in the other tests."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from config import UserError
from data import Dataset, Images, counterfactuals, joint_dataset, make_split, parse_task, tensor_split

SMALL = settings(max_examples=50, deadline=None)


@st.composite
def datasets(draw):
    """Small data sets with at least two classes, each with a sample."""
    classes = draw(st.integers(2, 6))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=classes, max_size=60))
    labels[:classes] = range(classes)
    pixels = torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8)
    images = Images(pixels, torch.tensor(labels))
    return Dataset("toy", "CNN", images, images, tuple(map(str, range(classes))))


@SMALL
@given(st.floats(0.01, 99.9).map(lambda p: round(p, 2)))
def test_percentages_are_read_back(percent):
    task = parse_task(f"random{percent}")
    assert task.percent == percent and parse_task(task.name) == task and not task.classes


@SMALL
@given(st.lists(st.integers(0, 999), min_size=1, max_size=5))
def test_classes_are_read_back(classes):
    task = parse_task("class" + ",".join(map(str, classes)))
    assert task.classes == tuple(sorted(set(classes))) and parse_task(task.name) == task


@SMALL
@given(st.from_regex(r"(random|class|ids:)?[0-9,. -]{0,6}", fullmatch=True) | st.text(max_size=12))
def test_any_text_is_a_task_or_refused(text):
    try:
        task = parse_task(text)
    except UserError as error:
        assert "task" in str(error)
    else:
        assert (task.percent is None) != (not task.classes) or task.ids


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
        assert split.forget.tolist() == gone.nonzero()[:, 0].tolist()


@SMALL
@given(datasets(), st.integers(0, 5), st.integers(1, 4), st.data())
def test_joint_dataset_invariants(dataset, seed, repeats, data):
    count = len(dataset.train)
    forget = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    split = tensor_split(dataset.train.pixels, dataset.train.labels, sorted(forget))
    joint = joint_dataset(split, repeats, seed)
    assert sorted(joint.forget.tolist()) == sorted(sorted(forget) * repeats)
    assert not torch.isin(joint.remain, split.forget).any()
    assert (joint.y_c != split.train.labels[joint.forget]).all()
    assert joint.y_c.min() >= 0 and joint.y_c.max() < split.classes
    for _, x_r, x_c in counterfactuals(split, joint):
        assert (x_c - x_r).min() >= 0 and (x_c - x_r).max() <= 1
