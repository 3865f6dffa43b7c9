"""Compares runs: the options in which they differ, their results, their curves.

    python -m tools.compare runs/*
    python -m tools.compare runs/a runs/b --out ab.html

Prints a table, and writes a page with the same table and the curves of all runs over each other.
The result of the test images is shown if test.py has written it for best.pt; that of other weights
is marked by their step, and images that are not the same for all runs have a column.
"""

# ruff: noqa: E402
from engine.errors import DONE, begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

from pathlib import Path
from shutil import get_terminal_size

from engine import terminal
from engine.arguments import Parser
from engine.errors import BadInput, shorten
from engine.report.common import curves_section, is_of_best
from engine.report.outputs import Output
from engine.report.page import document, element, table
from engine.report.records import (
    Records,
    is_number,
    read_judged,
    read_metrics,
    read_options,
    read_records,
)
from engine.text import printable
from model import Model

Rows = list[list[str]]
TITLE = "Comparison of runs"


def main() -> int:
    parser = Parser(description="Compares runs: options, results, curves.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--out", metavar="FILE", default="compare.html", help="where to write")
    opt = parser.parse_args()

    out = Output(opt.out, "a page of tools.compare", is_page)
    terminal.be_quiet(False, aside=out.is_stdout)
    options = read_runs(list(dict.fromkeys(map(Path, opt.runs))))
    runs = [read_records(folder) for folder in options]
    head, rows = compare(runs, list(options.values()))
    page = document(
        TITLE,
        element("p", f"{len(runs)} runs, and the options in which they differ.", class_="soft"),
        table(head, rows, class_="numbers"),
        curves_section(runs, pairs={}),
    )
    out.write(page.encode())
    terminal.say(fitting([head, *rows], get_terminal_size().columns))
    terminal.conclude(f"wrote {opt.out}")
    return DONE


def is_page(path: Path) -> bool:
    """Whether a file was written by this program."""
    return f"<title>{TITLE}</title>".encode() in path.read_bytes()[:1000]


def read_runs(folders: list[Path]) -> dict[Path, dict[str, str]]:
    """The options of each run; folders that are none are left out, with a warning.

    Raises:
        BadInput: None of them is a run.
    """
    found: dict[Path, dict[str, str]] = {}
    problems = []
    for folder in folders:
        try:
            found[folder] = read_options(folder)
        except BadInput as error:
            problems.append(error)
    if not found:
        raise problems[0]
    if left_out := [str(folder) for folder in folders if folder not in found]:
        terminal.warn(f"left out, as no runs: {shorten(left_out, 3)}")
    return found


def compare(runs: list[Records], options: list[dict[str, str]]) -> tuple[list[str], Rows]:
    """A table with a row for each run; a result that is not there is a dash.

    Args:
        runs: Their records.
        options: Those of each run.

    Returns:
        The names of the columns, and the rows.
    """
    options = [with_digest(given, run) for given, run in zip(options, runs, strict=True)]
    names = sorted({name for given in options for name in given})
    differ = [n for n in names if len({given.get(n) for given in options}) > 1]
    chosen_by = {given.get("monitor") for given in options}
    monitor = chosen_by.pop() if len(chosen_by) == 1 else None  # else what all of them have
    monitor = monitor if monitor in Model.monitors else next(iter(Model.monitors))
    better = Model.monitors[monitor]
    head = ["run", f"best val {monitor}", f"test {monitor}", "steps", "time", *differ]
    rows = []
    for run, given in zip(runs, options, strict=True):
        best = better(run.curve("val", monitor)[1], default=None)
        shown = ["-" if best is None else f"{best:.4f}", test_result(run.folder, monitor)]
        steps = max((point["n_iter"] for point in run.points), default=0)
        time = terminal.duration(run.seconds) if run.seconds else "-"
        chosen = (given.get(name, "-") for name in differ)
        rows.append([str(run.folder), *shown, str(steps), time, *chosen])
    tested = [i for i, row in enumerate(rows) if row[2] != "-"]
    images = {i: test_images(runs[i].folder) for i in tested}
    if len(set(images.values())) > 1:
        terminal.warn("the test results are of different images: see the column test images")
        for i, row in enumerate([head, *rows]):
            row.insert(3, "test images" if i == 0 else images.get(i - 1, "-"))
    return head, rows


def with_digest(given: dict[str, str], run: Records) -> dict[str, str]:
    """The options of a run, `--weights` with a part of the digest of the file: it may change."""
    recorded = [start["weights"] for start in run.starts if "weights" in start]
    if "weights" not in given or not recorded:
        return given
    return {**given, "weights": f"{given['weights']} {recorded[-1][7:13]}"}


def test_result(run: Path, monitor: str) -> str:
    """What test.py has found on the test images; of other weights than best.pt with their step."""
    metrics = read_metrics(run / "report")
    value, judged = metrics.get(monitor), metrics.get("checkpoint")
    of_test = read_judged(run / "report").get("split") == "test"
    if not is_number(value) or not isinstance(judged, dict) or not of_test:
        return "-"
    step = "" if is_of_best(run / "report") else f" of step {judged.get('step')}"
    return f"{value:.4f}{step}"


def test_images(run: Path) -> str:
    """The images of the result of a run: the name of their folder, and a part of their digest."""
    judged = read_judged(run / "report")
    folder = Path(str(judged.get("folder"))).name
    digest = str(judged.get("digest")).removeprefix("sha256:")[:6]
    return f"{folder}/{judged.get('split')} {digest}"


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
    rows = [list(map(printable, cells)) for cells in rows]
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
