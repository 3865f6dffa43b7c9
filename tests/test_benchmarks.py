"""The benchmark works in tiny, and its medians and ratios are those of the raw numbers."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.cases import IN_SMOKE, make_cases
from benchmarks.ours import LEVERS
from benchmarks.report import WANTED, best_workers, markdown, ratio, values
from benchmarks.runner import run_child
from conftest import ROOT

# The figure of each round; of the guide, in the first round, for each number of workers.
OURS = (900.0, 1000.0, 950.0)
GUIDE = ((0, 0, 300.0), (0, 1, 360.0), (0, 2, 200.0), (1, 1, 380.0), (2, 1, 400.0))


def one(contender: str, number: int, workers: int | None, **measured: Any) -> dict[str, Any]:
    return {"contender": contender, "round": number, "workers": workers, **measured}


@pytest.fixture
def case() -> dict[str, Any]:
    """A case of three rounds in which the best number of workers of the guide is 1."""
    return {
        "about": "made up",
        "contenders": dict.fromkeys(["ours", "pure", "guide", "lightning", "timm"], "about it"),
        "machine": {"processor": "made up"},
        "measurements": [
            *(one("ours", i, None, images_per_s=value) for i, value in enumerate(OURS)),
            one("pure", 0, None, images_per_s=1000.0),
            *(one("guide", i, workers, images_per_s=value) for i, workers, value in GUIDE),
            one("lightning", 0, 0, error="No module named 'lightning'"),
        ],
    }


def test_medians_and_ratios_are_those_of_the_raw_numbers(case: dict[str, Any]) -> None:
    assert values(case, "guide", "images_per_s") == [360, 380, 400]
    assert ratio(case, "ours", "guide") == 2.5
    assert ratio(case, "ours", "lightning") is None and ratio(case, "ours", "timm") is None


def test_later_rounds_take_the_number_of_workers_that_was_best_first(case: dict[str, Any]) -> None:
    assert best_workers(case["measurements"], "guide") == [1]
    assert best_workers(case["measurements"], "ours") == [None]
    assert best_workers(case["measurements"], "lightning") == [], "who failed is not tried again"


def test_the_text_has_medians_failures_and_goals(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WANTED, "small", {"ours": {"guide": 2.5, "pure": 0.99}})
    lines = markdown({"small": case}).splitlines()
    assert "| contender | what | images/s | of pure | workers | error |" in lines
    assert "| ours | about it | 950 (900 - 1,000) | 0.95 |  |  |" in lines
    assert "| guide | about it | 380 (360 - 400) | 0.38 | 0: 300; 1: 360; 2: 200 |  |" in lines
    assert any("No module named 'lightning'" in line for line in lines)
    assert "ours / guide: 2.50 (wanted: 2.5, met)." in lines
    assert "ours / pure: 0.95 (wanted: 0.99, not met)." in lines


def test_cases_hold_together() -> None:
    cases = make_cases()
    for name, others in WANTED.items():
        contenders = [contender.name for contender in cases[name].contenders]
        assert len(contenders) == len(set(contenders))
        assert {*others, *(below for goals in others.values() for below in goals)} <= {*contenders}
    for module, lever, _ in LEVERS.values():
        assert hasattr(importlib.import_module(module), lever)


def test_a_failure_is_told_by_its_last_line(tmp_path: Path) -> None:
    result = run_child({"module": "benchmarks.no_such_module", "function": "pure"}, tmp_path)
    assert result == {"error": "ModuleNotFoundError: No module named 'benchmarks.no_such_module'"}


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """All that was asked for is measured; no figure is asserted, since they mean nothing here."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    few = ["--cases", "photos", "startup", "--only", "ours-beside-pure", "train.py"]
    words = ["--cases", *(name for name in IN_SMOKE if name not in few)] if full else few
    command = [sys.executable, "-m", "benchmarks", "--smoke", "--out", str(tmp_path), *words]
    limit = 3600 if full else 900
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    measured = [one for case in results.values() for one in case["measurements"]]
    errors = [one["error"] for one in measured if "error" in one]
    assert all("No module named" in error for error in errors), run.stdout
    if not full:
        assert [one["contender"] for one in measured] == few[-2:] and not errors
    assert f"## {words[1]}" in (tmp_path / "RESULTS.md").read_text("utf-8")
    assert (tmp_path / "results.png").read_bytes()[1:4] == b"PNG"
