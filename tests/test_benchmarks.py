"""The benchmark works in tiny, and its medians and ratios are those of the raw numbers."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks import __main__ as command
from benchmarks.cases import CASES, Sizes
from benchmarks.report import best_workers, figures, fit, markdown, ratio
from benchmarks.runner import run_child
from conftest import ROOT

MACHINE = {"processor": "made up"}


def one(contender: str, number: int, value: float, workers: int | None = None) -> dict[str, Any]:
    name = {"contender": contender, "round": number, "workers": workers}
    return {**name, "images_per_s": value}


def made_up() -> dict[str, Any]:
    """A case of three rounds in which the best number of workers of the guide is 1."""
    names = ("ours", "ours-beside-pure", "pure", "guide", "lightning", "timm")
    ours = [one("ours", i, value) for i, value in enumerate((900.0, 1000.0, 950.0))]
    extra = {"setup_s": 4.0, "first_epoch_s": 7.0}
    beside = {**one("ours-beside-pure", 0, 940.0), "share": 0.951, "efficiency": 0.93}
    return {
        "kind": "throughput",
        "about": "made up",
        "contenders": dict.fromkeys(names, "somebody"),
        "wanted": [["ours", "guide", 2.5], ["ours", "pure", 0.99]],
        "machine": MACHINE,
        "measurements": [
            *({**measured, **extra} for measured in ours),
            beside,
            *(one("pure", i, 1000.0) for i in range(3)),
            *(
                one("guide", 0, value, workers)
                for workers, value in enumerate((300.0, 360.0, 200.0))
            ),
            one("guide", 1, 380.0, workers=1),
            one("guide", 2, 400.0, workers=1),
            {
                "contender": "lightning",
                "round": 0,
                "workers": 0,
                "error": "not installed: lightning",
            },
        ],
    }


def test_medians_and_ratios_are_those_of_the_raw_numbers() -> None:
    have = figures(made_up(), "images_per_s")
    assert have["ours"].median == 950 and have["ours"].workers is None
    assert have["guide"].values == [360, 380, 400] and have["guide"].workers == 1
    assert have["guide"].tried == {0: 300, 1: 360, 2: 200}
    assert ratio(have, "ours", "guide") == 2.5
    assert ratio(have, "ours", "pure") == 0.95
    assert ratio(have, "ours", "lightning") is None and ratio(have, "ours", "timm") is None
    assert have["lightning"].error == "not installed: lightning" and "timm" not in have


def test_later_rounds_take_the_number_of_workers_that_was_best_first() -> None:
    measurements = made_up()["measurements"]
    assert best_workers(measurements, "guide") == [1]
    assert best_workers(measurements, "ours") == [None]
    assert best_workers(measurements, "lightning") == [], "who failed is not tried again"


def test_the_text_says_what_is_met_and_what_is_not() -> None:
    text = markdown({"small": made_up()}, drawn=True)
    assert "| ours | somebody | 950 (900 - 1,000) | 0.95 | 3 |  |" in text
    assert "**1** (0: 300; 1: 360; 2: 200)" in text
    assert "| ours / guide | 2.50 | 2.5: met |" in text
    assert "| ours / pure | 0.95 | 0.99: not met |" in text
    assert "train.py reached 0.951 of pure" in text
    assert "its own meter said 0.930: 2.1 points apart" in text
    assert "| lightning | somebody | not installed: lightning |" in text


def test_growth_is_one_if_it_is_linear() -> None:
    slope, growth = fit([(1_000, 2.0), (10_000, 2.9), (100_000, 11.9), (1_000_000, 101.9)])
    assert slope == pytest.approx(1e-4) and growth == pytest.approx(1)
    assert fit([(1, 1.0), (2, 2.0), (4, 6.0)])[1] == pytest.approx(2)
    assert fit([(1, 1.0), (2, 2.0)]) == (1, None)


@pytest.mark.parametrize("name", CASES)
def test_case_is_complete(name: str) -> None:
    case = CASES[name](Sizes())
    names = [contender.name for contender in case.contenders]
    assert len(names) == len(set(names))
    assert {name for pair in case.wanted for name in pair} <= set(names)
    for contender in case.contenders:
        module, _, function = contender.call.partition(":")
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8")
        assert f"\ndef {function}(spec: Spec)" in text


def test_a_failure_is_told_by_its_last_line(tmp_path: Path) -> None:
    result = run_child({"call": "benchmarks.no_such_module:measure"}, tmp_path, tmp_path)
    assert result == {
        "error": "failed: ModuleNotFoundError: No module named 'benchmarks.no_such_module'"
    }


@pytest.mark.parametrize(
    "words",
    [
        ["--cases", "nonsense"],
        ["--rounds", "0"],
        ["--photos", "no_such_folder"],
        ["--smoke", "--out", str(ROOT / "benchmarks")],
    ],
)
def test_bad_usage_is_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(SystemExit) as end:
        command.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("bench: error: ") and said.count("\n") == 1


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """Which contenders there are is written, and no figure is asserted: they mean nothing here."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cases = ["small", "photos"] if full else ["photos"]
    words = ["--smoke", "--out", str(tmp_path), "--cases", *cases, "startup"]
    only = ["--only", "ours", "ours-beside-pure", "pure", "guide", "train.py"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, *only],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    for name in cases:
        case = results[name]
        assert list(case["contenders"]) == ["ours", "ours-beside-pure", "pure", "guide"]
        have = figures(case, "images_per_s")
        assert all(have[contender].values for contender in have), run.stdout
    assert figures(results["startup"], "seconds")["train.py"].values, run.stdout
    text = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert "## photos" in text and "| ours / guide |" in text
    drawn = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "results.png").exists() == drawn
