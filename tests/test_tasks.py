import os
from dataclasses import replace

import pytest
import torch
from conftest import make_toy_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Dataset, Images, make_splits
from harness.store import UserError
from harness.tasks import chosen_samples, parse_task, parse_tasks

SMALL = settings(max_examples=50, deadline=None)


@pytest.fixture
def ids_task(tmp_path):
    """Write the lines to a file and parse a task that names it."""

    def write(*lines, folder="."):
        path = tmp_path / folder / "requests.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(str, lines)) + "\n")
        return parse_task(f"ids:{path}")

    return write


def chosen(dataset, task):
    return chosen_samples(dataset, task, torch.arange(len(dataset.train)))


def toy(files=(), order=None):
    """A data set of 6 samples."""
    images = Images(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6) % 2)
    return Dataset("toy", "CNN", images, images, ("a", "b"), files=files, order=order)


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


@pytest.mark.parametrize("text", ["random0", "random100", "random", "class", "class0,", "klass1", "", "random-5"])
def test_unknown_tasks_are_refused(text):
    with pytest.raises(UserError, match="write random<percent>"):
        parse_task(text)


def test_one_task_has_one_name():
    assert parse_task("class3,0,3") == parse_task("class0,3")
    assert parse_task("random10.0").name == "random10"


def test_two_requests_of_one_name_are_refused(ids_task, tmp_path):
    """They would overwrite each other's cells."""
    ids_task(1, folder="a"), ids_task(2, folder="b")
    first, second = (f"ids:{tmp_path}/{folder}/requests.txt" for folder in "ab")
    with pytest.raises(UserError, match=r"b/requests.txt': another one is called ids-requests too"):
        parse_tasks(["random10", first, second])
    names = [task.name for task in parse_tasks(["class0", "random10", first, "random10.0", first])]
    assert names == ["class0", "random10", "ids-requests"]


def test_samples_are_chosen_by_their_index(ids_task):
    task = ids_task(5, "", " 3 ", 0)
    assert task.name == "ids-requests" and chosen(toy(), task).tolist() == [0, 3, 5]


def test_samples_of_an_image_folder_are_chosen_by_their_file_or_its_number(ids_task):
    order = torch.tensor([4, 2, 0, 5, 1, 3])  # sample 0 is file number 4
    dataset = toy(("a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"), order)
    assert chosen(dataset, ids_task("b/0.png", 0)).tolist() == [2, 5]
    with pytest.raises(UserError, match=r"'b/3.png' is not an index or the path of a training sample"):
        chosen(dataset, ids_task("b/3.png"))
    with pytest.raises(UserError, match=r"line 2: b/0.png is there twice, first in line 1"):
        chosen(dataset, ids_task("3", "b/0.png"))


@pytest.mark.parametrize(
    "lines, message",
    [
        ((5, 1, 5), "line 3: 5 is there twice, first in line 1"),
        ((6,), "line 1: toy has no training sample 6, only 0 to 5"),
        ((0, -1), "line 2: toy has no training sample -1"),
        ((1, "", "two"), "line 3: 'two' is not an index of a training sample of toy"),
        (range(6), "task ids-requests: 6 of 6 samples are to be forgotten"),
        ((), "names no sample"),
    ],
)
def test_bad_ids_are_refused(ids_task, lines, message):
    with pytest.raises(UserError, match=message):
        make_splits(toy(), ids_task(*lines), seed=0)


FILES = replace(toy(), files=("a/ 0.png", "a/0.png", "b/0.png", "c d/0.png"))


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"./a/0.png\nb\\0.png\n", [1, 2]),
        (b"\xef\xbb\xbfa/0.png\r\n\r\nb/0.png\r\n", [1, 2]),
        (b"# asked for in May\na/0.png\n  # 3\n 2 \n", [1, 2]),
        (b"a/ 0.png\n  b/0.png", [0, 2]),
        (b".\\c d\\0.png", [3]),
    ],
)
def test_samples_are_found_as_people_write_them(tmp_path, content, expected):
    (tmp_path / "request.txt").write_bytes(content)
    assert chosen(FILES, parse_task(f"ids:{tmp_path}/request.txt")).tolist() == expected


@pytest.mark.parametrize(
    "content, expected",
    [("file\na/0.png\n", [1]), ('"path"\n"c d/0.png"\n', [3]), ("a/0.png\nb/0.png\n", [1, 2]), ("4\n5\n", [4, 5])],
)
def test_a_column_of_a_table_is_a_request(tmp_path, content, expected):
    (tmp_path / "request.csv").write_text(content)
    assert chosen(FILES, parse_task(f"ids:{tmp_path}/request.csv")).tolist() == expected


def test_what_is_no_list_of_samples_is_refused_at_once(tmp_path):
    (tmp_path / "wide.csv").write_text("file,reason\na/0.png,moved\n")
    with pytest.raises(UserError, match="'file,reason' has 2 columns; there must be one"):
        parse_task(f"ids:{tmp_path}/wide.csv")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe: the file cannot be read: it is no regular file"):
        parse_task(f"ids:{tmp_path}/pipe")


def test_a_missing_ids_file_is_refused():
    with pytest.raises(UserError, match=r"ids:nowhere\.txt: the file cannot be read"):
        parse_task("ids:nowhere.txt")


@pytest.mark.parametrize("name", ["a|b.txt", "$x$.txt", "a<b.txt", "a`b.txt", "new\nline.txt", "ids\udcff.txt"])
def test_files_whose_names_would_break_tables_are_refused(tmp_path, name):
    (tmp_path / name).write_text("1\n")
    with pytest.raises(UserError, match="its name becomes part of paths and tables"):
        parse_task(f"ids:{tmp_path / name}")


@pytest.mark.parametrize("text", ["class" + "9" * 5000, "random" + "9" * 5000, "x" * 5000])
def test_endless_tasks_are_refused_in_a_short_line(text):
    with pytest.raises(UserError) as refused:
        parse_task(text)
    assert len(str(refused.value)) < 500


def test_an_endless_index_is_refused_in_a_short_line(tmp_path):
    (tmp_path / "ids.txt").write_text("9" * 5000)
    with pytest.raises(UserError, match="line 1: '9999") as refused:
        chosen(make_toy_dataset(), parse_task(f"ids:{tmp_path / 'ids.txt'}"))
    assert len(str(refused.value)) < 500


def test_a_field_without_end_is_refused(tmp_path):
    (tmp_path / "ids.csv").write_text('"' + "9" * 200_000)
    with pytest.raises(UserError, match="the file cannot be read: field larger than field limit"):
        parse_task(f"ids:{tmp_path / 'ids.csv'}")
