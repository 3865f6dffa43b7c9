"""`make gpu`: checks and measures the template on the CUDA device of this machine.

Renders both tasks, runs those of their tests that need a GPU or stand-ins for one, measures speed,
and writes a page with the results, after each of these stages anew; about 8 minutes. No network is
needed if the packages are installed.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import describe

ROOT = Path(__file__).parents[1]
TASKS = ("image-classification", "image-to-image")
TESTS = ("-k", "(test_cuda or test_loader or test_processes) and (cuda or gpu)")
MACHINERY = ROOT / "tests" / "machinery.py"
CASES = ("gpu-small", "gpu-resnet18")
MEASURED = (
    *("--only", "ours", "ours-beside-pure", "pure", "ours-no-cache", "guide"),
    *("--rounds", "1", "--seconds", "4"),
)
LIMIT = 300.0  # seconds for the tests of a task, and for a case of the benchmark


@dataclass
class Check:
    """A test that was run; `result` is pass, fail or skip, `text` the reason of the last two."""

    task: str
    name: str
    result: str
    seconds: float
    text: str = ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "gpu-results", help="folder of the page (%(default)s)")
    add("--dry-run", action="store_true", help="goes on without a GPU, whose tests are skipped")
    opt = parser.parse_args()
    if not torch.cuda.is_available() and not opt.dry_run:
        print("gpu: error: PyTorch sees no CUDA device on this machine", file=sys.stderr)
        return 2
    opt.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    checks: list[Check] = []
    figures = "Not measured."

    def write() -> None:
        text = page(checks, figures, time.monotonic() - begun)
        (opt.out / "README.md").write_text(text, encoding="utf-8")

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor() as pool:
        for found in pool.map(lambda task: run_tests(task, Path(scratch)), TASKS):
            checks += found
    write()
    for case in CASES if torch.cuda.is_available() else ():
        figures, failed = measure(case, opt.out.resolve() / "benchmark")
        checks += failed
        write()
    print(f"{summary(checks)}; wrote {opt.out / 'README.md'}")
    return int(any(check.result == "fail" for check in checks))


def run_tests(task: str, scratch: Path) -> list[Check]:
    """Renders a task and runs its tests for CUDA; a program that fails is a check that fails."""
    answers = [f"task={task}", f"project_slug={task}", "accelerator=cpu"]
    make = ["-m", "cookiecutter", "--no-input", "--default-config", "-o", str(scratch), str(ROOT)]
    if failed := run(task, "the project is rendered", [*make, *answers], scratch):
        return failed
    report = scratch / f"{task}.xml"
    command = [str(MACHINERY), str(scratch / task), f"--junitxml={report}", *TESTS]
    failed = run(task, "all tests pass", command, scratch)
    return read_report(task, report) if report.exists() else failed


def read_report(task: str, report: Path) -> list[Check]:
    """The checks in a JUnit file of pytest."""
    checks = []
    for case in ElementTree.parse(report).iter("testcase"):
        result, text = "pass", ""
        for part in case:
            if part.tag in ("failure", "error"):
                result, text = "fail", part.text or ""
            elif part.tag == "skipped":
                result, text = "skip", part.get("message", "")
        seconds = float(case.get("time", 0))
        checks.append(Check(task, case.get("name", ""), result, seconds, text))
    return checks


def measure(case: str, out: Path) -> tuple[str, list[Check]]:
    """The tables of all cases measured so far, this one included, and a check if it failed."""
    command = ["-m", "benchmarks", "--cases", case, *MEASURED, "--out", str(out)]
    failed = run("benchmark", case, command, ROOT)
    results = out / "RESULTS.md"
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    figures = text.partition("\n## ")[2].replace("\n## ", "\n### ")
    return f"### {figures}" if figures else "No figures.", failed


def run(task: str, name: str, command: list[str], folder: Path) -> list[Check]:
    """Runs a program of Python; returns a check that failed if it did, else none."""
    begun, python = time.monotonic(), [sys.executable, *command]
    try:
        done = subprocess.run(python, cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return [Check(task, name, "fail", LIMIT, f"not done after {LIMIT:.0f} s")]
    seconds, said = time.monotonic() - begun, done.stdout + done.stderr
    return [Check(task, name, "fail", seconds, said)] if done.returncode else []


def summary(checks: list[Check]) -> str:
    """How many checks passed, failed and were skipped."""
    counts = Counter(check.result for check in checks)
    return f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped"


def page(checks: list[Check], figures: str, seconds: float) -> str:
    """The results in Markdown."""
    facts = {**describe(), "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    lines = ["# Results of `make gpu`", "", f"{summary(checks)} in {seconds / 60:.1f} minutes.", ""]
    lines += ["| machine | |", "| --- | --- |"]
    lines += [f"| {_cell(name)} | {_cell(str(value))} |" for name, value in facts.items()]
    lines += ["", "## Checks", ""]
    lines += ["| task | check | result | seconds |", "| --- | --- | --- | --- |"]
    for check in checks:
        result = f"skip ({_cell(check.text)})" if check.result == "skip" else check.result
        lines.append(f"| {check.task} | {_cell(check.name)} | {result} | {check.seconds:.1f} |")
    for check in checks:
        if check.result == "fail":
            said = check.text.strip().splitlines()[-30:]
            lines += ["", f"### {_cell(check.name)} ({check.task})", "", "```", *said, "```"]
    return "\n".join([*lines, "", "## Benchmark", "", figures.strip(), ""])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


if __name__ == "__main__":
    sys.exit(main())
