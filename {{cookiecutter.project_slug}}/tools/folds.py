"""Trains once for each fold of train/, so that each image is judged by a network that never saw it.

    python -m tools.folds --folds 5 -- --data my_images --epochs 20
    python -m tools.folds --folds 5 --out runs/wide -- --data my_images --width 64

What comes after `--` are options of train.py. The runs are DIR/fold-1 and so on; test.py judges
each by its fold. The same command goes on where it was stopped. It writes DIR/index.html, with the
mean and the spread of each metric, and tables of all images.
"""

# ruff: noqa: E402
from engine.errors import DONE, LAUNCHED, STOPPED, BadInput, StopSignal, begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

import json
import os
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from engine import terminal
from engine.arguments import Parser, number
from engine.checkpoint import write_atomically
from engine.errors import PROJECT
from engine.report.page import Html, document, element, section, table
from engine.report.records import is_number, read_metrics, read_options
from task.folds import write_tables

NOTES = "folds.json"  # in the folder: what was asked for, and which programs have ended
OWN = ("--fold", "--run-dir", "--resume", "--no-resume")  # options that are not for train.py here
MADE = {"train.py": "checkpoints/best.pt", "test.py": "report-val/metrics.json"}
MACHINE = ("device", "precision", "workers")  # options of the training that test.py gets
WARNING = (
    "The best checkpoint of each run was chosen by the images that judge it here, so all numbers "
    "are a little too good. The runs share most of their training images: the standard deviation "
    "says how much a metric depends on the division, and is no interval."
)


def main() -> int:
    opt, options = parse()
    folder = Path(opt.out)
    notes = begin_or_go_on(folder, opt.folds, options)
    runs = [folder / f"fold-{number}" for number in range(1, opt.folds + 1)]
    stop = StopSignal()
    for i, run in enumerate(runs, 1):
        fold = f"{i}/{opt.folds}"
        for program in ("train.py", "test.py"):
            if [fold, program] in notes["ended"] and (run / MADE[program]).is_file():
                continue
            terminal.say(f"fold {fold}: {program}, in {run}")
            status = run_to_its_end(command(program, run, fold, options), stop)
            if stop.received:
                again = shlex.join(["python", "-m", "tools.folds", *sys.argv[1:]])
                terminal.conclude(f"{stop.received}: stopped in fold {fold}", again)
                return STOPPED
            if status != DONE:
                return status  # the program has said why
            notes["ended"].append([fold, program])
            write_notes(folder, notes)
    page = write_page(folder, runs, options)
    terminal.conclude(f"wrote {page}")
    return DONE


def parse() -> tuple[Namespace, list[str]]:
    """The options of this program, and those for train.py, which come after `--`."""
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    parser = Parser(description="Trains once for each fold. Options of train.py come after -- .")
    add = parser.add_argument
    add("--folds", type=number(int, 2), default=5, metavar="N", help="parts of train/")
    add("--out", metavar="DIR", default="runs/folds", help="folder of the runs and of the page")
    opt, options = parser.parse_args(words[:own]), words[own + 1 :]
    if LAUNCHED:
        raise BadInput("tools.folds starts train.py itself: use it without torchrun")
    if given := [word for word in options if word.partition("=")[0] in OWN]:
        raise BadInput(f"{given[0]}: tools.folds gives it to each run; leave it out")
    return opt, options


def begin_or_go_on(folder: Path, folds: int, options: list[str]) -> dict[str, Any]:
    """The notes in the folder, which is made if it is new.

    Raises:
        BadInput: The folder holds folds of other options, or other things.
    """
    asked = {"folds": folds, "options": options}
    path = folder / NOTES
    if path.is_file():
        try:
            notes = json.loads(path.read_text(encoding="utf-8"))
            known = [notes["folds"], notes["options"], notes["ended"]]
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{path}: not readable; delete it, and each fold is resumed") from None
        if known[:2] != [folds, options]:
            before = shlex.join(["--folds", str(known[0]), "--", *map(str, known[1])])
            raise BadInput(f"--out {folder}: holds the folds of {before}; name another folder")
        return notes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [name for name in os.listdir(folder) if not name.startswith(("fold-", "."))]
    except OSError as error:
        raise BadInput(f"--out {folder}: {error.strerror}; name another folder") from None
    if others:
        raise BadInput(f"--out {folder}: holds {others[0]}, and no folds; name another folder")
    notes = {**asked, "ended": []}
    write_notes(folder, notes)
    return notes


def write_notes(folder: Path, notes: dict[str, Any]) -> None:
    text = json.dumps(notes, indent=1) + "\n"
    write_atomically(folder / NOTES, lambda file: file.write(text.encode()))


def command(program: str, run: Path, fold: str, options: list[str]) -> list[str]:
    """The command that trains in a run folder until its end, or that judges what came out."""
    words = [sys.executable, str(PROJECT / program)]
    if program == "train.py":
        return [*words, *options, f"--fold={fold}", f"--run-dir={run}", "--resume"]
    trained = read_options(run)
    machine = [f"--{name}={trained[name]}" for name in MACHINE if name in trained]
    best = run / "checkpoints" / "best.pt"
    return [*words, f"--checkpoint={best}", "--split=val", *machine]


def run_to_its_end(words: Sequence[str], stop: StopSignal) -> int:
    """Runs a program; its status. A signal for this one ends it as train.py ends by itself."""
    process = subprocess.Popen(words)
    told = False
    while True:
        try:
            return process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            if stop and not told:
                process.send_signal(signal.SIGTERM)
                told = True


def write_page(folder: Path, runs: list[Path], options: list[str]) -> Path:
    """Writes the page and the tables of the task; returns the page."""
    found = [read_metrics(run / "report-val") for run in runs]
    names = [name for name in found[0] if all(is_number(one.get(name)) for one in found)]
    spread = {name: [float(one[name]) for one in found] for name in names}
    cells = [[show(one[name]) for name in names] for one in found]
    rows = [[run.name, *own] for run, own in zip(runs, cells, strict=True)]
    rows.append(["mean", *(show(mean(values)) for values in spread.values())])
    rows.append(["standard deviation", *(show(stdev(values)) for values in spread.values())])
    monitored = next(name for name in names if name != "images")
    values = spread[monitored]
    verdict = f"{monitored} {show(mean(values))}, standard deviation {show(stdev(values))}"
    terminal.say(f"{verdict}, over {len(runs)} folds")
    sections: list[Html] = write_tables(folder, runs)
    text = document(
        f"Folds: {folder.name}",
        element("p", f"{len(runs)} folds of {shlex.join(options) or 'no options'}", class_="soft"),
        element("div", element("strong", verdict), element("p", WARNING), class_="verdict"),
        section("Folds", table(["", *names], rows, class_="numbers")),
        *sections,
    )
    page = folder / "index.html"
    write_atomically(page, lambda file: file.write(text.encode()))
    return page


def show(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


if __name__ == "__main__":
    run_program(main)
