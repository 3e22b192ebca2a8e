"""The report and the generated blocks; and the committed pages: up to date, short, and without numbers of their own."""

import json
import re

import pytest
from conftest import QUIET, RANDOM, ROOT, write_cell, write_random

from harness.store import UserError
from reporting import pages
from reporting.figures import draw_figures
from reporting.summary import read_cells

CLASS = {"A_r": 99.0, "A_f": 0.0, "A_ts": 88.0, "A_ts_r": 98.0, "A_ts_f": 0.0, "MIA": 30.0}
README = ROOT / "README.md"
PAGES = [README, *sorted(path for path in (ROOT / "results").glob("*.md") if path.name != "report.md")]
BLOCK = r"<!-- generated: (.*?) -->.*?<!-- end of \1 -->"


def report(folder, figures=()):
    return pages.report(read_cells(folder), figures)


def section(text, title):
    """What stands below a heading that begins so."""
    (found,) = [part for part in re.split(r"^## ", text, flags=re.MULTILINE) if part.startswith(title)]
    return found


def rows(table):
    return [[entry.strip() for entry in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_what_is_missing_is_named_once(tmp_path):
    write_random(tmp_path)
    text = report(tmp_path)
    assert "- Without any cell: Fashion, CIFAR10, CIFAR100.\n" in text
    for name in ("Fashion", "CIFAR10", "CIFAR100", "Table 3", "Table 13"):
        assert len(re.findall(rf"{name}\b", text)) == 1, name
    assert "## Table 2: effectiveness, random10\n" in text and "## Table 4: membership inference, random10\n" in text


def test_the_first_table_is_the_paper_at_a_glance(tmp_path):
    write_random(tmp_path)
    before, bar, after = report(tmp_path).partition("\n| ")
    assert "at a glance" in re.findall(r"^## (.*)", before, flags=re.MULTILINE)[-1].lower()
    assert after.startswith("Data | Task | Original | NegGrad | ") and "CaMU's time" in after.splitlines()[0]
    assert re.findall(r"^\| (\w+) \| (\w+)", bar.lstrip("\n") + after, flags=re.MULTILINE)[1] == ("Digit", "random10")


def test_one_seed_has_no_std(tmp_path):
    write_cell(tmp_path, "cells", "Digit", "class0", "Retrain", 0, metrics=CLASS)
    write_cell(tmp_path, "cells", "Digit", "class0", "CaMU", 0, metrics=CLASS)
    assert "±" not in report(tmp_path) and "0.00 (1)" in report(tmp_path)
    write_cell(tmp_path, "cells", "Digit", "class0", "CaMU", 1, metrics=CLASS)
    assert "0.00 ± 0.00" in report(tmp_path)


def test_several_requests_share_a_section_and_the_last_is_drawn(tmp_path):
    requests = [{"metrics": CLASS | {"A_ts_r": 98.0 - number}, "time_s": 1.0} for number in range(3)]
    for method in ("Retrain", "CaMU"):
        write_cell(tmp_path, "cells", "Digit", "class0-then-class1-then-class2", method, 0, requests=requests)
        curves = {"A_r": [99.0, 99.5], "A_f": [0.0, 0.5]}
        write_cell(tmp_path, "relearn", "Digit", "class0-then-class1-then-class2", method, 0, **curves)
    cells = read_cells(tmp_path)
    drawn = list(draw_figures(cells))
    assert drawn == [f"{kind}-class0-then-class1-then-class2-other" for kind in ("relearning", "bars")]
    shown = rows(section(pages.report(cells, drawn), "Not in the paper: Digit, class0-then-class1-then-class2 (cells)"))
    found = [(row[1], row[4]) for row in shown if row[2] == "A_ts_r ↑"]
    task = "class0-then-class1-then-class2 ({} of 3)"
    assert found == [(task.format(number + 1), f"{98 - number:.2f} (1)") for number in range(3)]


def test_a_lost_model_is_struck_out_wherever_it_stands_and_never_best(tmp_path):
    for method, a_r in {"Retrain": 99.0, "NegGrad": 3.0, "SISA": 97.0, "CaMU": 98.0}.items():
        write_cell(tmp_path, "cells", "Digit", "class0", method, 0, metrics=CLASS | {"A_r": a_r})
    tables = [rows(section(report(tmp_path), title)) for title in ("At a glance", "Table 3", "Table 4")]
    struck = [dict(zip(table[0], row))["NegGrad"] for table in tables for row in table[2:] if "Digit" in row]
    struck = [entry for entry in struck if entry != "n/a" and not re.fullmatch(r"\d+\.\d\d", entry)]
    assert len(struck) == 1 + 6 + 1 and all(re.fullmatch(r"<del>\d+\.\d\d \(1\)</del>", entry) for entry in struck)


def test_the_commands_that_made_the_cells_are_quoted(tmp_path):
    made = {"command": "python main.py --dataset Digit", "commit": "v1-3-gabc"}
    for method, seed, more in (("Retrain", 0, made), ("CaMU", 0, made), ("CaMU", 1, {})):  # the last is older
        write_cell(tmp_path, "cells", "Digit", "class0", method, seed, metrics=CLASS, **more)
    write_cell(tmp_path, "cells", "Digit", "class1", "CaMU", 0, metrics=CLASS)
    text = report(tmp_path)
    quoted = "Made by:\n\n    python main.py --dataset Digit  # commit v1-3-gabc\n"
    assert quoted in section(text, "Table 3") and text.count(quoted) == 2  # tables 3 and 4
    assert "Made by" not in section(text, "Table 10")


def test_data_sets_and_tasks_of_ones_own_have_a_section_without_the_paper(tmp_path):
    write_random(tmp_path, "OptDigits")
    text = report(tmp_path)
    assert "**98.50 ± 0.50** (2)" in section(text, "Not in the paper: OptDigits, random10 (cells)")
    assert "| paper |" not in text and "The paper's claims" not in text and "Without any cell" not in text
    write_random(tmp_path, "Digit", task="random30")
    text = report(tmp_path)
    assert "time [s]" in section(text, "Not in the paper: Digit, random30 (cells)") and "## Table" not in text


def test_pictures_are_linked_in_the_papers_order(tmp_path):
    write_random(tmp_path)
    drawn = ["gap-time-class0", "gap-time-random10", "gap-time-ids-a list", "bars-random10"]
    text = section(report(tmp_path, drawn), "Pictures: gap-time")
    links = re.findall(r"\((figures/.*?)\)", text)
    names = ("random10", "class0", "ids-a%20list")
    assert links == [f"figures/gap-time-{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert "Pictures: relearning" not in report(tmp_path, drawn) and "Pictures" not in report(tmp_path)


def test_the_conditions_of_the_time_table_are_named(tmp_path):
    for method in ("Retrain", "CaMU"):
        write_cell(tmp_path, "efficiency", "Digit", "class0", method, 0, metrics={}, time_s=1.0, conditions=QUIET)
    assert "\nMeasured on: a processor, threads a cell: 1, jobs: 1.\n" in section(report(tmp_path), "Table 5: time")


def test_the_pre_unlearning_model_is_named_under_every_table(tmp_path):
    write_random(tmp_path)
    for method, digest in (("CaMU", "ab"), ("NegGrad", "ab"), ("Retrain", "cd")):  # Retrain does not start from it
        f_o = {"digest": digest, "accuracy": {"train": 100, "test": 98.765}}
        write_cell(tmp_path, "cells", "Digit", "class0", method, 0, metrics=CLASS, f_o=f_o)
    text = section(report(tmp_path), "Table 3")
    assert "Pre-unlearning models (accuracy on the test set): Digit ab (98.77 %)." in text and "Not one" not in text
    f_o = {"digest": "ef", "accuracy": {"train": 100, "test": 98}}
    write_cell(tmp_path, "cells", "Digit", "class0", "SCRUB", 0, metrics=CLASS, f_o=f_o)
    text = section(report(tmp_path), "Table 3")
    assert "Digit ab (98.77 %), ef (98.00 %). **Not one model alone**: Digit." in text


def test_tables_of_unlike_machines_or_models_are_named(tmp_path):
    write_random(tmp_path)
    text = section(report(tmp_path), "Made with")
    assert "- torch 2\n" in text and "More than one" not in text
    content = {"metrics": CLASS, "config": {"seed": 7, "device": "cpu"}, "versions": {"torch": "3"}}
    for method in ("Retrain", "CaMU"):
        write_cell(tmp_path, "cells", "Digit", "class0", method, 7, **content)
    text = section(report(tmp_path), "Made with")
    assert "- torch 2\n- torch 3\n" in text and "More than one" not in text
    content["config"] = {"seed": 8, "device": "cpu", "pretrained": "other"}
    write_cell(tmp_path, "cells", "Digit", "class0", "CaMU", 7, **content)
    text = section(report(tmp_path), "Made with")
    assert "**More than one pre-unlearning model or setting**: cells/Digit/class0." in text and "machine or" not in text
    write_cell(tmp_path, "cells", "Digit", "class0", "CaMU", 7, **content | {"versions": {"torch": "2"}})
    assert "**More than one machine or version**: cells/Digit/class0." in section(report(tmp_path), "Made with")


def test_methods_with_more_than_one_set_of_hyperparameters_are_named(tmp_path):
    """In one study or in several; what an ablation changes is not meant."""
    row = {"epochs": 1, "lr_ce": 0.1}
    made = {
        ("cells", "CaMU", 0): row,
        ("ablation", "Finetune", 0): row | {"terms": ["CE_r"]},
        ("cells", "SCRUB", 0): {"lr": 0.5},
        ("cells", "SCRUB", 1): {"lr": 0.5},
    }

    def named():
        for (tree, method, seed), own in made.items():
            config = {"method": "CaMU" if tree == "ablation" else method, "hyperparameters": own}
            write_cell(tmp_path, tree, "Digit", "class0", method, seed, metrics=CLASS, config=config)
        return re.findall(r"\*\*More than one set of hyperparameters\*\*: (.*)\.", report(tmp_path))

    assert not named()
    made["cells", "SCRUB", 1] = {"lr": 0.6}
    assert named() == ["Digit/class0/SCRUB"]
    made["cells", "CaMU", 0] = row | {"epochs": 3}
    assert named() == ["Digit/class0/CaMU, Digit/class0/SCRUB"]


def test_the_blocks_are_made_from_the_cells(tmp_path):
    write_random(tmp_path)
    for task, a_ts_f in (("class0", 0.0), ("class1", 5.0)):
        write_cell(tmp_path, "cells", "Digit", task, "CaMU", 0, metrics=CLASS | {"A_ts_f": a_ts_f})
    write_random(tmp_path / "longer" / "9-epochs", methods={"CaMU": RANDOM["CaMU"]})
    (tmp_path / "tuning").mkdir()
    trials = "method,trial,runs,score,lr\nT-S,3,6,0.98765,0.1\nT-S,1,1,0.99,0.2\nUnroll,5,6,-0.25,0.3\n"
    (tmp_path / "tuning" / "Digit-class0.csv").write_text(trials)
    (tmp_path / "device").mkdir()
    lines = [{"device": "A card"}, *({"what": "captured equals eager", "same": same} for same in (True, False))]
    lines += [{"model": "CNN", "precision": "bf16", "way": "eager", "images_per_s": 7000}]
    lines += [{"model": "CNN", "processes": 8, "mps": False, "images_per_s": 9}]
    (tmp_path / "device" / "card.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = pages.blocks(tmp_path)
    assert [row[:2] for row in rows(found["main results"])[2:]] == [["Digit", "random10"]]  # there Retrain is
    all_rows = rows(section(report(tmp_path), "At a glance"))[2:]
    assert [row[:2] for row in all_rows] == [["Digit", t] for t in ("random10", "class0", "class1")]
    claims = dict(row[:2] for row in rows(found["claims"]))
    assert claims["class0: A_ts_f is 0"] == "1 of 1" and claims["class1, class2: A_ts_f is 0"] == "0 of 1"
    assert claims["28 others"] == "not measured"
    best = dict(zip(rows(found["search"])[0], rows(found["search"])[2]))
    assert best == {"Data": "Digit", "Task": "class0", "T-S": "0.9877 (6)", "Unroll": "none"}
    assert [row[1] for row in rows(found["device"])[2:]] == ["1 of 2", "7,000", "9"]
    (side,) = rows(found["studies"])[2:]
    assert side[:6] == ["longer/9-epochs", "Digit", "random10", "CaMU", "2", "98.50 ± 0.50"]


def test_blocks_are_replaced_by_name_and_nothing_else_is(tmp_path):
    page = tmp_path / "README.md"
    old, new = (
        "<!-- generated: {0} -->{1}<!-- end of {0} -->\n",
        "<!-- generated: {0} -->\n\n{1}\n\n<!-- end of {0} -->\n",
    )
    page.write_text(f"# A\n{old.format('a', ' old ')}text\n{old.format('b b', '')}end\n")
    found = {"a": r"| \1 |", "b b": "second", "c": "elsewhere"}
    pages.fill(page, found)
    after = f"# A\n{new.format('a', found['a'])}text\n{new.format('b b', 'second')}end\n"
    assert page.read_text() == after
    pages.fill(page, found)
    assert page.read_text() == after


@pytest.mark.parametrize(
    "text",
    [
        "<!-- generated: a -->\n<!-- end of a -->\n<!-- generated: unknown -->\n<!-- end of unknown -->",
        "<!-- generated: a -->\n",
        "no block",
        None,
    ],
)
def test_a_page_that_cannot_be_filled_is_named_and_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text)
    with pytest.raises(UserError, match=rf"--pages {page}: (no generated block|No such file)"):
        pages.fill(page, {"a": "new"})
    assert (page.read_text() if text is not None else None) == text


@pytest.mark.parametrize("folder", ["results", "results/label-noise"])
def test_the_committed_report_shows_the_committed_cells(folder):
    """`python report.py --results-dir FOLDER` puts it right."""
    drawn = {path.stem for path in (ROOT / folder / "figures").glob("*.png")}
    assert (ROOT / folder / "report.md").read_text() == report(ROOT / folder, drawn)


def test_the_blocks_of_the_committed_pages_show_the_committed_cells(tmp_path):
    found, used = pages.blocks(ROOT / "results"), set()
    for page in PAGES:
        text = page.read_text()
        used |= (names := set(re.findall(r"<!-- generated: (.*?) -->", text)))
        if names:
            (tmp_path / page.name).write_text(text)
            pages.fill(tmp_path / page.name, found)
            assert text == (tmp_path / page.name).read_text(), page
    assert used == found.keys()


def written_by_hand(text):
    """A page without its generated blocks."""
    return re.sub(BLOCK, "", text, flags=re.DOTALL)


def prose(text):
    """What is left without generated blocks, code (fenced, indented, inline) and links, line by line."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1", "", written_by_hand(text), flags=re.DOTALL | re.MULTILINE)
    lines = [""]
    for line in text.splitlines():
        code = re.match(r" {4}|\t", line) and lines[-1].strip() in ("", "code")
        lines.append("code" if code else line)
    text = re.sub(r"`[^`]*`", "", "\n".join(lines))
    text = re.sub(r"!?\[[^\]]*\]\([^)]*\)|!?\[[^\]]*\]\[[^\]]*\]|^\[[^\]]*\]: .*", "", text, flags=re.MULTILINE)
    return re.sub(r"<?https?://\S+", "", text)


def test_what_counts_as_prose():
    code = "```\n1.1\n```\n\n    2.2\n    2.3\n\n- a list\n\n      3.3\n"
    links = "`4.4` [5.5](6.6.md) ![7.7\n7.8](x.png) https://a.b/8.8 [x][9.9]\n[9.9]: 10.10\n"
    block = "<!-- generated: a -->\n11.11\n<!-- end of a -->\n"
    assert not re.findall(r"\d+\.\d+", prose(code + links + block))
    told = "12.12 a 13.13\n    14.14 goes on\n\n| 15.15 |\n\n- 16.16\n"
    assert len(re.findall(r"\d+\.\d+", prose(block + told + code))) == 5


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_prose_has_no_decimal_number(page):
    """Numbers come from the cells, through generated blocks: written by hand, they grow old."""
    assert [line for line in prose(page.read_text()).splitlines() if re.search(r"\d+\.\d+", line)] == []


def test_the_pages_are_short():
    words = {path: len(path.read_text().split()) for path in PAGES}  # as wc -w counts
    assert words[README] <= 1800 and words[ROOT / "results/README.md"] <= 1200
    assert sum(len(written_by_hand(path.read_text()).split()) for path in PAGES[1:]) <= 3000
