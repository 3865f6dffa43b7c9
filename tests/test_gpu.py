"""`make gpu` says in one line that there is no GPU, and its page tells every check with its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu import Check, measure, page, read_report, run, summary
from conftest import ROOT

REPORT = """<?xml version="1.0" encoding="utf-8"?><testsuites><testsuite>
<testcase classname="tests.engine.test_cuda" name="test_a[bf16 | split]" time="1.25" />
<testcase classname="tests.engine.test_cuda" name="test_b" time="0.5">
<failure message="assert 1 == 2">def test_b():\n&gt; assert 1 == 2</failure></testcase>
<testcase classname="tests.engine.test_cuda" name="test_c" time="0.0">
<skipped type="pytest.skip" message="needs two GPUs">here</skipped></testcase>
<testcase classname="tests.engine.test_cuda" name="test_d" time="0.1">
<error message="failed on setup">no memory</error></testcase>
</testsuite></testsuites>"""


def test_without_a_gpu_it_ends_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", f"--out={tmp_path / 'out'}"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_page_tells_every_check_with_its_end(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    checks = read_report("image-to-image", tmp_path / "report.xml")
    assert summary(checks) == "1 passed, 2 failed, 1 skipped"
    lines = page(checks, "gpu-small\n\n| images/s |", seconds=90).splitlines()
    assert "1 passed, 2 failed, 1 skipped in 1.5 minutes." in lines
    assert "| image-to-image | test_a[bf16 / split] | pass | 1.2 |" in lines
    assert "| image-to-image | test_b | fail | 0.5 |" in lines
    assert "| image-to-image | test_c | skip (needs two GPUs) | 0.0 |" in lines
    assert lines[lines.index("### test_b (image-to-image)") + 3 :][:2] == [
        "def test_b():",
        "> assert 1 == 2",
    ]
    assert "no memory" in lines
    assert any(line.startswith("| torch | ") for line in lines)
    assert lines[-4:] == ["", "gpu-small", "", "| images/s |"]


def test_a_program_that_fails_is_a_check_that_fails(tmp_path: Path) -> None:
    assert run("task", "check", ["-m", "json.tool", "--help"], tmp_path) == []
    (check,) = run("task", "check", ["-m", "json.tool", "nowhere.json"], tmp_path)
    assert (check.task, check.name, check.result) == ("task", "check", "fail")
    assert "nowhere.json" in check.text


def test_figures_that_could_not_be_measured_are_failures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(task: str, name: str, command: list[str], folder: Path) -> list[Check]:
        if name == "gpu-resnet18":
            return [Check(task, name, "fail", 0.0, "no photographs")]
        text = "# Results\n\nintro\n\n## gpu-small\n\n| 1 |\n\n## more\n"
        (tmp_path / "RESULTS.md").write_text(text)
        return []

    monkeypatch.setattr("benchmarks.gpu.run", fail)
    assert measure("gpu-small", tmp_path) == ("### gpu-small\n\n| 1 |\n\n### more\n", [])
    figures, failed = measure("gpu-resnet18", tmp_path)
    assert figures == "### gpu-small\n\n| 1 |\n\n### more\n"
    assert [check.name for check in failed] == ["gpu-resnet18"]
