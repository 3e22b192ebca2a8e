"""Finished cells -> report.md with every table of the paper beside its values, the figures, and blocks of pages."""

import harness.scripts  # first: Ctrl-C during the slow imports below then ends in one line

# isort: split
from dataclasses import dataclass
from pathlib import Path

from harness.store import check_writable, save_atomically
from reporting.figures import draw_figures, save_figure
from reporting.pages import blocks, fill, report
from reporting.summary import read_cells


@dataclass(frozen=True)
class Settings:
    """Where the cells are."""

    results_dir: str = "results"
    """the folder with cells/, audit/, ablation/, relearn/ and efficiency/; report.md and figures/ are written there"""
    pages: tuple[str, ...] = ()
    """pages whose generated blocks are to be written anew as well"""


def main(settings):
    cells, folder = read_cells(settings.results_dir), Path(settings.results_dir)
    check_writable(folder / "figures")
    figures = draw_figures(cells)
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / name)
    save_atomically(folder / "report.md", report(cells, figures).encode())
    print(f"{len(cells)} cells: wrote {folder / 'report.md'} and {len(figures)} figures (PNG and SVG)")
    generated = blocks(settings.results_dir) if settings.pages else {}
    for page in settings.pages:
        fill(Path(page), generated)
        print(f"wrote the generated blocks of {page}")


if __name__ == "__main__":
    harness.scripts.run_script(main, Settings, __doc__)
