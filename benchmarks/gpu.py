"""`make gpu`: checks and measures the template on the CUDA device of this machine.

Renders both tasks, runs those of their tests that need a GPU or stand-ins for one, measures speed,
and writes a page with the results. Takes about 8 minutes. Needs no network if the packages are
installed; the photographs of the benchmark are then named with --photos.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import describe

ROOT = Path(__file__).parents[1]
TASKS = ("image-classification", "image-to-image")
TESTS = ("tests/engine/test_cuda.py", "tests/engine/test_loader.py")
CASES = ("gpu-small", "gpu-resnet18")
CONTENDERS = ("ours", "ours-no-cache", "pure", "guide")
LIMIT = 240.0  # seconds for the tests of a task, and for a case of the benchmark


@dataclass
class Check:
    """A test that was run."""

    task: str
    name: str
    result: str  # pass, fail or skip
    seconds: float
    text: str = ""  # of a failure, or why it was skipped


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "gpu-results", help="folder of the page (%(default)s)")
    add("--photos", type=Path, help="a folder of photographs, as of `make bench`")
    add("--seconds", default="4", help="least time that a contender is timed (%(default)s)")
    add("--dry-run", action="store_true", help="without a GPU: its tests are skipped")
    opt = parser.parse_args()
    if not torch.cuda.is_available() and not opt.dry_run:
        print("gpu: error: PyTorch sees no CUDA device on this machine", file=sys.stderr)
        return 2
    opt.out.mkdir(parents=True, exist_ok=True)
    begun, checks = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        for task in TASKS:
            checks += run_tests(task, Path(scratch))
    figures = measure(opt) if torch.cuda.is_available() else "Not measured: no GPU.\n"
    text = page(machine(), checks, figures, time.monotonic() - begun)
    (opt.out / "README.md").write_text(text, encoding="utf-8")
    print(f"{summary(checks)}; wrote {opt.out / 'README.md'}")
    return int(any(check.result == "fail" for check in checks))


def run_tests(task: str, scratch: Path) -> list[Check]:
    """Renders a task and runs its tests for CUDA; a program that fails is a check that fails."""
    answers = [f"task={task}", f"project_slug={task}", "accelerator=cpu"]
    make = ["cookiecutter", "--no-input", "--default-config", "-o", str(scratch), str(ROOT)]
    if said := run(make + answers, scratch):
        return [Check(task, "the project is rendered", "fail", 0.0, said)]
    report = scratch / f"{task}.xml"
    options = ["-q", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    said = run(["pytest", *options, *TESTS], scratch / task)
    if not report.exists():
        return [Check(task, "the tests come to their end", "fail", LIMIT, said)]
    return read_report(task, report)


def read_report(task: str, report: Path) -> list[Check]:
    """The checks in a JUnit file of pytest."""
    checks = []
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [part for part in case if part.tag in ("failure", "error")]
        skipped = case.find("skipped")
        result = "fail" if bad else "pass" if skipped is None else "skip"
        text = (bad[0].text or "") if bad else "" if skipped is None else skipped.get("message", "")
        seconds = float(case.get("time", 0))
        checks.append(Check(task, case.get("name", "?"), result, seconds, text))
    return checks


def measure(opt: argparse.Namespace) -> str:
    """The tables of the benchmark, or why there are none."""
    out = opt.out / "benchmark"
    words = ["--only", *CONTENDERS, "--rounds", "1", "--seconds", opt.seconds, "--out", str(out)]
    words += ["--photos", str(opt.photos)] if opt.photos else []
    failures = ""
    for case in CASES:  # one by one, since photographs may be missing
        if said := run(["benchmarks", "--cases", case, *words], ROOT):
            failures += f"{case} failed: {said.splitlines()[-1]}\n\n"
    results = out / "RESULTS.md"
    _, _, tables = results.read_text(encoding="utf-8").partition("\n## ") if results.exists() else ""
    return f"{failures}## {tables}" if tables else failures


def run(command: list[str], folder: Path) -> str:
    """Runs a module of Python; returns nothing, or what a failed one has said last."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT:.0f} s"
    output = (done.stdout + done.stderr).strip()
    return (output[-2000:] or "it said nothing") if done.returncode else ""


def machine() -> dict[str, str]:
    """The machine and the versions, those of CUDA included."""
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {**describe(), "CUDA": str(torch.version.cuda), "cuDNN": str(cudnn or "none")}


def summary(checks: list[Check]) -> str:
    """How many checks passed, failed and were skipped."""
    counts = Counter(check.result for check in checks)
    return f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped"


def page(facts: dict[str, str], checks: list[Check], figures: str, seconds: float) -> str:
    """The results in Markdown."""
    lines = ["# Results of `make gpu`", "", f"{summary(checks)}, in {seconds / 60:.1f} minutes.", ""]
    lines += ["| machine | |", "| --- | --- |"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in facts.items()]
    lines += ["", "## Checks", "", "| task | check | result | seconds |", "| --- | --- | --- | --- |"]
    for check in checks:
        why = f" ({_cell(check.text)})" if check.result == "skip" and check.text else ""
        name = f"| {check.task} | {_cell(check.name)} | {check.result}{why} |"
        lines.append(f"{name} {check.seconds:.1f} |")
    for check in checks:
        if check.result == "fail":
            lines += ["", f"### {_cell(check.name)} ({check.task})", "", "```"]
            lines += [*check.text.strip().splitlines()[-30:], "```"]
    return "\n".join([*lines, "", "## Benchmark", "", figures.replace("\n## ", "\n### ")])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


if __name__ == "__main__":
    sys.exit(main())
