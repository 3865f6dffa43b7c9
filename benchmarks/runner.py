"""Measurements one after the other, each in a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.cases import Case, Contender
from benchmarks.machine import ROOT
from benchmarks.make_images import Images, forget_cache
from benchmarks.report import Measurement, best_workers
from benchmarks.timing import Result, Spec

LIMIT = 1800  # seconds after which a measurement counts as hung


class Runner:
    """Measures contenders with a project that is rendered by the template's defaults.

    Args:
        scratch: The folder for the project.
        folders: The folder of each data set.
        workers: The numbers of workers that are tried in the first round.
        seconds: The least time for which steps are timed.
    """

    def __init__(
        self, scratch: Path, folders: dict[Images, Path], workers: list[int], seconds: float
    ) -> None:
        self.project, self.folders = render(scratch), folders
        self.workers, self.seconds = workers, seconds

    def measure_round(self, number: int, case: Case, done: list[Measurement]) -> list[Measurement]:
        """Measures the contenders whose turn it is in this round, backwards in odd rounds.

        Of the numbers of workers, later rounds take the one that was best in the first round; who
        failed then is not tried again.
        """
        results = []
        for contender in case.contenders if number % 2 == 0 else reversed(case.contenders):
            counts: list[int | None] = [None]
            if number:
                counts = [] if contender.once else best_workers(done, contender.name)
            elif contender.by_workers:
                counts = [*self.workers]
            for workers in counts:
                result = self.measure(contender, round=number, workers=workers)
                place = {"contender": contender.name, "round": number, "workers": workers}
                results.append({**place, **result})
                print(", ".join(f"{k} {v}" for k, v in results[-1].items()), flush=True)
        return results

    def measure(self, contender: Contender, **place: int | None) -> Result:
        """Measures one contender once, in a fresh process."""
        flags = [*contender.flags]
        if contender.images:
            folder = self.folders[contender.images]
            flags.append(f"--data={folder}")
            if contender.fresh:
                forget_cache(folder)
        call = {"module": contender.call.__module__, "function": contender.call.__name__}
        timing = {"warmup": self.seconds / 4, "seconds": self.seconds}
        return run_child(
            {**contender.settings, **call, **timing, **place, "flags": flags}, self.project
        )


def render(scratch: Path, task: str = "image-classification") -> Path:
    """A project by the template's defaults, in a folder of `scratch`."""
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "--default-config"]
    words = [f"--output-dir={scratch}", str(ROOT), "project_slug=project", "accelerator=cpu"]
    subprocess.run([*command, *words, f"task={task}"], stdout=subprocess.DEVNULL, check=True)
    return scratch / "project"


def run_child(spec: Spec, project: Path) -> Result:
    """The result of a measurement in a new process in the project's folder, or its `error`."""
    with tempfile.TemporaryDirectory() as scratch:
        result, description = Path(scratch, "result.json"), Path(scratch, "spec.json")
        more = {"run": f"{scratch}/run", "result": str(result), "started": time.time()}
        description.write_text(json.dumps({**spec, **more}))
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with open(f"{scratch}/output.txt", "w+", encoding="utf-8", errors="replace") as output:
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
                return json.loads(result.read_text())
            output.seek(0)
            return {"error": (output.read().strip().splitlines() or ["no output"])[-1]}


def _end_all(child: subprocess.Popen) -> None:
    """Ends the process and its workers, so that nothing runs beside the next measurement."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    child.wait()
