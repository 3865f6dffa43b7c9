"""Measurements one after the other, each in a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Contender, Sizes, worker_counts
from benchmarks.machine import ROOT
from benchmarks.make_images import Images, forget_caches
from benchmarks.report import Measurement, best_workers

LIMIT = 1800  # seconds after which a measurement counts as hung


class CannotRender(Exception):
    """The template's project could not be made. The text is one line."""


def render(folder: Path) -> Path:
    """Makes a project by the template's defaults in `folder`; returns the project's folder.

    Raises:
        CannotRender: cookiecutter refuses.
    """
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "--default-config"]
    words = ["--output-dir", str(folder), str(ROOT), "project_slug=project", "accelerator=cpu"]
    made = subprocess.run([*command, *words], capture_output=True, text=True)
    if made.returncode:
        raise CannotRender(f"no project could be rendered: {_last_line(made.stderr)}")
    return folder / "project"


@dataclass
class Runner:
    """Measures contenders.

    Attributes:
        project: The rendered project.
        folders: The folder of each data set, by the set.
        fashion: Fashion-MNIST as prepare_data.py makes it, for the case of the accuracy.
        sizes: How much is measured.
    """

    project: Path
    folders: dict[Images, Path]
    fashion: Path | None
    sizes: Sizes

    def round(self, number: int, case: Case, done: list[Measurement]) -> list[Measurement]:
        """Measures the contenders whose turn it is in this round, backwards in odd rounds.

        Of the numbers of workers, later rounds take the one that was best in the first round; who
        failed then is not tried again.
        """
        results = []
        for contender in case.contenders if number % 2 == 0 else reversed(case.contenders):
            if number and (not contender.every or number % contender.every):
                continue
            counts: Sequence[int | None] = (None,)
            if contender.by_workers:
                counts = worker_counts(self.sizes)
            if number:
                counts = best_workers(done, contender.name)
            for workers in counts:
                result = self.measure(case, contender, number, workers)
                results.append(result)
                print(_line(case, result), flush=True)
        return results

    def measure(
        self, case: Case, contender: Contender, number: int, workers: int | None
    ) -> Measurement:
        """Measures one contender once, in a fresh process."""
        flags = [*case.flags, *contender.flags]
        images = contender.images or case.images
        if images:
            flags.append(f"--data={self.folders[images]}")
            if contender.fresh:
                forget_caches(self.folders[images])
        elif case.kind == "accuracy" and self.fashion:
            flags.append(f"--data={self.fashion}")
        if case.kind == "throughput":
            flags += ["--epochs=1000", "--test-every=1000"]  # it is stopped when enough was seen
            if workers is not None and contender.call.startswith("benchmarks.ours:"):
                flags.append(f"--workers={workers}")
        name = {"contender": contender.name, "round": number, "workers": workers}
        with tempfile.TemporaryDirectory() as scratch:
            spec = {
                **contender.settings,
                "call": contender.call,
                "flags": flags,
                "workers": workers,
                "round": number,
                "warmup": self.sizes.warmup,
                "seconds": self.sizes.seconds,
                "scratch": scratch,
                "run": str(Path(scratch) / "run"),
            }
            return {**name, **run_child(spec, self.project, Path(scratch))}


def run_child(spec: dict[str, Any], project: Path, scratch: Path) -> dict[str, Any]:
    """What `spec["call"]` returns in a new process in the project's folder, or its `error`."""
    result, description = scratch / "result.json", scratch / "spec.json"
    more = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([more] if more else [])])
    with open(scratch / "output.txt", "w+", encoding="utf-8", errors="replace") as output:
        spec = {**spec, "result": str(result), "started": time.time()}
        description.write_text(json.dumps(spec), encoding="utf-8")
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", str(description)],
            cwd=project,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            child.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {LIMIT} s"}
        finally:
            _end_all(child)
        if result.exists():
            return json.loads(result.read_text(encoding="utf-8"))
        output.seek(0)
        return {"error": f"failed: {_last_line(output.read())}"}


def _end_all(child: subprocess.Popen) -> None:
    """Ends what the process has left running, such as workers, so that nothing runs beside."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "without a word"


def _line(case: Case, result: Measurement) -> str:
    workers = "" if result["workers"] is None else f" ({result['workers']} workers)"
    who = f"round {result['round'] + 1}, {case.name}: {result['contender']}{workers}"
    numbers = {key: result[key] for key in result if key not in ("contender", "round", "workers")}
    said = result.get("error") or ", ".join(
        f"{key} {value:,.4g}" for key, value in numbers.items() if value is not None
    )
    return f"{who}: {said}"
