"""Compares runs: the options in which they differ, their results, their curves.

    python -m tools.compare runs/*
    python -m tools.compare runs/a runs/b --out ab.html

Prints a table, and writes a page with the same table and the curves of all runs over each other.
The result of the test images is shown if test.py has written it.
"""

# ruff: noqa: E402
from engine.errors import DONE, begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

from pathlib import Path
from shutil import get_terminal_size

from engine.arguments import Parser, output_file
from engine.checkpoint import write_atomically
from engine.report.common import curves_section
from engine.report.page import document, element, table
from engine.report.records import Records, read_metrics, read_options, read_records
from engine.terminal import duration
from model import Model

Rows = list[list[str]]


def main() -> int:
    parser = Parser(description="Compares runs: options, results, curves.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--out", metavar="FILE", default="compare.html", help="where to write")
    opt = parser.parse_args()

    out = output_file(opt.out)
    folders = list(dict.fromkeys(map(Path, opt.runs)))
    options = [read_options(folder) for folder in folders]
    runs = [read_records(folder) for folder in folders]
    head, rows = compare(runs, options)
    page = document(
        "Comparison of runs",
        element("p", f"{len(runs)} runs, and the options in which they differ.", class_="soft"),
        table(head, rows, class_="numbers"),
        curves_section(runs, pairs={}),
    )
    write_atomically(out, lambda file: file.write(page.encode()))
    print(fitting([head, *rows], get_terminal_size().columns))
    print(f"wrote {opt.out}")
    return DONE


def compare(runs: list[Records], options: list[dict[str, str]]) -> tuple[list[str], Rows]:
    """A table with a row for each run; a result that is not there is a dash.

    Args:
        runs: Their records.
        options: Those of each run.

    Returns:
        The names of the columns, and the rows.
    """
    names = sorted({name for given in options for name in given})
    differ = [n for n in names if len({given.get(n) for given in options}) > 1]
    monitor, better = next(iter(Model.monitors.items()))
    head = ["run", f"best val {monitor}", f"test {monitor}", "steps", "time", *differ]
    rows = []
    for run, given in zip(runs, options, strict=True):
        values = run.curve("val", monitor)[1]
        tested = read_metrics(run.folder / "report").get(monitor)
        results = [better(values, default=None), tested]
        steps = max((point["n_iter"] for point in run.points), default=0)
        shown = ["-" if value is None else f"{value:.4f}" for value in results]
        time = duration(run.seconds) if run.seconds else "-"
        chosen = (given.get(name, "-") for name in differ)
        rows.append([str(run.folder), *shown, str(steps), time, *chosen])
    return head, rows


def fitting(rows: Rows, width: int) -> str:
    """Rows in columns; if these are too wide, each run is a column, and as many stand side by side
    as fit."""
    text = columns(rows)
    if len(text.partition("\n")[0]) <= width:
        return text
    head, *runs = rows
    blocks = []
    while runs:
        count = len(runs)
        while count > 1 and len(_upright([head, *runs[:count]]).partition("\n")[0]) > width:
            count -= 1
        blocks.append(_upright([head, *runs[:count]]))
        runs = runs[count:]
    return "\n\n".join(blocks)


def _upright(rows: Rows) -> str:
    return columns([list(cells) for cells in zip(*rows, strict=True)])


def columns(rows: Rows) -> str:
    """Rows as text in columns, the first one to the left and the others to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


if __name__ == "__main__":
    run_program(main)
