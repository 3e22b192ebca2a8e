"""What is to be forgotten, as users write it: random10, class0, class0,3, ids:<file>, class0>class1."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.store import UserError, bytes_of, explained, require

# What data sets and ids files may be called: it becomes part of paths and tables.
NAME = r"[^./\\|<>`$*\x00-\x1f\ud800-\udfff][^/\\|<>`$*\x00-\x1f\ud800-\udfff]{0,99}"


@dataclass(frozen=True)
class Task:
    """What is to be forgotten: a percentage, some classes, chosen samples, or several requests one after another."""

    name: str  # as in paths and tables: random10, class0, class0,3, ids-<name of the file>, class0-then-class1
    percent: float | None = None  # of the training set
    classes: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()  # the lines of the file, empty where there is nothing to read
    parts: tuple["Task", ...] = ()  # of requests one after another

    @property
    def requests(self):
        return self.parts or (self,)


def parse_task(text):
    """Read a task as it is written in the configuration; a UserError says what is allowed.

    ``random<percent>`` with 0 < percent < 100; ``class<k>``, several classes separated by commas; or ``ids:<file>``, a
    text file of training samples to forget, one per line: indices from 0, or for an image folder also paths below
    train/ (an index then counts the sorted files). Lines that begin with # are comments. A .csv file has one column,
    and its first line is a heading unless it is an index or a path. ``>`` separates requests one after another.
    """
    if ">" in text:
        parts = tuple(parse_task(part.strip()) for part in text.split(">"))
        return Task("-then-".join(part.name for part in parts), parts=parts)
    allowed = (
        "random<percent>, 0 < percent < 100, such as random10; class<k>, such as class0 or class0,3; or ids:<file>; "
        "several with > between them are requests one after another"
    )
    if match := re.fullmatch(r"random(\d{1,3}(?:\.\d{1,9})?)", text):
        percent = float(match[1])
        require(0 < percent < 100, lambda: f"task {text!r}: {match[1]} % is not between 0 and 100; write {allowed}")
        return Task(f"random{percent:g}", percent=percent)
    if match := re.fullmatch(r"class(\d{1,9}(?:,\d{1,9})*)", text):
        classes = tuple(sorted({int(k) for k in match[1].split(",")}))
        return Task("class" + ",".join(map(str, classes)), classes=classes)
    if text.startswith("ids:"):
        return _read_ids(Path(text.removeprefix("ids:")))
    raise UserError(f"task {text[:200]!r} is unknown; write {allowed}")


def parse_tasks(texts):
    """Read several tasks; a UserError if two share a name, because their cells would share files."""
    tasks = {}
    for text in texts:
        task = parse_task(text)
        require(
            tasks.setdefault(task.name, task) == task,
            f"task {text!r}: another one is called {task.name} too; give its file another name",
        )
    return list(tasks.values())


def _read_ids(path):
    with explained(f"task ids:{path}: the file cannot be read", OSError, ValueError, csv.Error):
        ids = bytes_of(path).decode("utf-8-sig").splitlines()  # with or without a byte order mark
        rows = list(csv.reader(ids, skipinitialspace=True)) if path.suffix.lower() == ".csv" else []
    if path.suffix.lower() == ".csv":
        wide = [row for row in rows if len(row) > 1]
        require(
            not wide, lambda: f"task ids:{path}: {','.join(wide[0])!r} has {len(wide[0])} columns; there must be one"
        )
        ids = ["".join(row) for row in rows]
        if ids and not re.search(r"^\s*-?\d+\s*$|[/\\]", ids[0]):
            ids[0] = ""
    ids = tuple("" if line.lstrip().startswith("#") or not line.strip() else line for line in ids)
    require(any(ids), f"task ids:{path}: the file names no sample; write one training index per line")
    require(
        re.fullmatch(NAME, path.stem),
        f"task ids:{path}: its name becomes part of paths and tables; it may have no | < > ` $ *",
    )
    return Task(f"ids-{path.stem}", ids=ids)


def chosen_samples(dataset, task, left):
    """Positions in the training set of the samples that the lines of an ids file name; all must be among `left`."""
    order = torch.arange(len(dataset.train)) if dataset.order is None else dataset.order
    by_file = {file: number for number, file in enumerate(dataset.files)}
    forms = "an index" + (" or the path" if dataset.files else "")
    numbers, there = {}, set(order[left].tolist())
    for line, text in enumerate(task.ids, 1):
        if not text:
            continue
        where = f"task {task.name}, line {line}"
        ways = (text, text.strip(), text.strip().replace("\\", "/").removeprefix("./"))
        if file := next((way for way in ways if way in by_file), None):
            number = by_file[file]
        elif re.fullmatch(r"\s*-?\d{1,18}\s*", text):
            number = int(text)
        else:
            raise UserError(f"{where}: {text[:200]!r} is not {forms} of a training sample of {dataset.name}")
        last = len(dataset.train) - 1
        require(0 <= number <= last, f"{where}: {dataset.name} has no training sample {number}, only 0 to {last}")
        require(number not in numbers, f"{where}: {text} is there twice, first in line {numbers.get(number)}")
        require(number in there, f"{where}: {text} is forgotten already, by an earlier request")
        numbers[number] = line
    return torch.isin(order, torch.tensor(sorted(numbers))).nonzero().squeeze(1)
