"""What a run folder tells about its run: the points of its curves, its starts, its options."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from engine.errors import BadInput


@dataclass
class Records:
    """The records of a run; each is empty if its file is missing."""

    folder: Path
    points: list[dict[str, Any]]  # of metrics.jsonl
    starts: list[dict[str, str]]  # the blocks of environment.txt, one for each start of the run

    def curve(self, split: str, name: str) -> tuple[list[int], list[float]]:
        """The steps and the values of a metric."""
        points = [p for p in self.points if p["split"] == split and name in p["values"]]
        return [p["n_iter"] for p in points], [float(p["values"][name]) for p in points]

    def names(self, split: str) -> list[str]:
        """The metrics of a split, in the order in which they are logged."""
        values = [point["values"] for point in self.points if point["split"] == split]
        return list(dict.fromkeys(name for of_point in values for name in of_point))

    @property
    def seconds(self) -> float:
        """How long the run has taken until its last validation; 0 if that is not known."""
        taken = (point.get("seconds") for point in self.points)
        return max((float(time) for time in taken if is_number(time)), default=0.0)

    def resumes(self) -> list[int]:
        """The steps after which the run was stopped and resumed, but for its first and last one."""
        steps = {start.get("resumed after step", "") for start in self.starts}
        last = max((point["n_iter"] for point in self.points), default=0)
        return sorted(int(step) for step in steps if step.isdecimal() and 0 < int(step) < last)


def read_records(folder: Path) -> Records:
    """The records of the run in a folder."""
    blocks = _read(folder / "environment.txt").split("\n\n")
    lines = [[line.partition(": ") for line in block.splitlines()] for block in blocks]
    starts = [{name: value for name, _, value in block} for block in lines if block]
    return Records(folder, read_points(folder / "metrics.jsonl"), starts)


def read_points(path: Path) -> list[dict[str, Any]]:
    """The points of a metrics.jsonl, with the values that are numbers, and its `line`.

    Lines that a kill or a full disk has cut off are left out, as are those of other programs.
    """
    found = []
    for line in _read(path).split("\n"):
        point = _parse(line)
        step, values = point.get("n_iter"), point.get("values")
        is_step = type(step) is int and 0 <= step < 2**53
        if is_step and isinstance(values, dict) and isinstance(point.get("split"), str):
            numbers = {name: value for name, value in values.items() if is_number(value)}
            found.append({**point, "values": numbers, "line": line})
    return found


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value that was read from JSON is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # which an int may exceed


def read_options(folder: Path) -> dict[str, str]:
    """The options in the config.txt of a run, by their names with dashes; flags are yes or no.

    Raises BadInput if there is none, so this is no run folder.
    """
    if not (folder / "config.txt").is_file():
        raise BadInput(f"{folder}: no config.txt in it; name the folder of a run, as runs/a")
    options = {}
    for line in _read(folder / "config.txt").splitlines():
        name, has_value, value = line.removeprefix("--").partition("=")
        if line.startswith("--no-") and not has_value:
            options[name.removeprefix("no-")] = "no"
        elif line.startswith("--"):
            options[name] = value if has_value else "yes"
    return options


def read_metrics(report: Path) -> dict[str, Any]:
    """The metrics.json in the folder of a report; empty if there is none that can be read."""
    return _parse(_read(report / "metrics.json"))


def read_judged(report: Path) -> dict[str, Any]:
    """What the report in a folder says of its images: folder, split, digest; empty if nothing."""
    judged = read_metrics(report).get("data")
    return judged if isinstance(judged, dict) else {}


def run_folder(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint's run; of one that was moved elsewhere, the folder it lies in."""
    folder = Path(checkpoint).absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _parse(text: str) -> dict[str, Any]:
    """An object of JSON; empty if it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> str:
    return os.fsdecode(path.read_bytes()) if path.is_file() else ""
