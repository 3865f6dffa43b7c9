"""Measurements of the project itself: `train.main` runs as it is, with a hook after each step.

All of this runs in the project's folder, so `train`, `engine` and so on are the project's modules.
"""

import importlib
import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.timing import Enough, Result, Spec, Stopwatch, now

Hook = Callable[[Any, Any], bool]  # state and meter of the run -> whether to end it
TURN = 8  # steps
# Levers of the project that have no option: where each is, and its value when it is off.
LEVERS: dict[str, tuple[str, str, Any]] = {
    "nchw": ("engine.devices", "MEMORY_FORMAT", torch.contiguous_format),
    "unfused": ("engine.optimizers", "FUSED", False),
    "default-allocator": ("engine.devices", "keep_memory", lambda: None),
}


def throughput(spec: Spec) -> Result:
    """Images per second of whole epochs from the second one on, logging and checkpoints included.

    Also the seconds from the command to the end of the first step. The first run makes the cache in
    them.
    """
    watch, setup_s = Stopwatch(spec), 0.0

    def at_step(state: Any, meter: Any) -> bool:
        nonlocal watch, setup_s
        if state.n_iter == 1:
            watch = Stopwatch(spec, block=state.steps_per_epoch)
            setup_s = time.time() - spec["started"]
        return watch.done(state.opt.batch_size)

    train(spec, at_step)
    return {**watch.result, "setup_s": setup_s}


def beside_pure(spec: Spec) -> Result:
    """Images per second of train.py, and of the same steps on preloaded data in turns with it.

    What else a machine does, and how fast its processor may run, changes within seconds. So one
    process does both: every TURN steps, from the second epoch on, train.py is held up for as many
    steps on preloaded data, and the clock of its meter is set forward by as much.
    """
    from benchmarks.peers import Peer  # not above: `imports` times the import of torchvision

    peer = Peer(spec, precision="auto", tuned=True)
    batches = peer.ready_batches()
    ours: list[float] = []  # seconds of each turn
    pure: list[float] = []
    resumed = 0.0  # when train.py went on

    def pure_turn() -> None:
        for _ in range(TURN):
            peer.step(*next(batches))

    def at_step(state: Any, meter: Any) -> bool:
        nonlocal resumed
        if state.n_iter % TURN or state.n_iter < state.steps_per_epoch:
            return False
        held = now()
        if resumed:
            ours.append(held - resumed)
            if sum(ours) >= spec["seconds"]:
                return True
        pure_turn()
        resumed = now()
        pure.append(resumed - held)
        meter.begun += resumed - held
        return False

    pure_turn()  # prepares its kernels
    train(spec, at_step)
    points = map(json.loads, Path(spec["run"], "metrics.jsonl").read_text().splitlines())
    said = [point["values"]["efficiency"] for point in points if point["epoch"] >= 2]
    return {
        "images_per_s": len(ours) * TURN * peer.opt.batch_size / sum(ours),
        "share": sum(pure) / sum(ours),
        "efficiency": mean(said) if said else None,
    }


def first_step(spec: Spec) -> Result:
    """Seconds from the command to the end of the first step of train.py."""
    return {"seconds": growth({**spec, "first": 1, "last": 1, "images": 1})["startup_s"]}


def imports(spec: Spec) -> Result:
    """Seconds from the command until torch and torchvision are imported."""
    importlib.import_module("torchvision")
    return {"seconds": time.time() - spec["started"]}


def growth(spec: Spec) -> Result:
    """Time and memory of the start and of the steps from `spec["first"]` to `spec["last"]`.

    Returns:
        startup_s: From the command to the end of the first step.
        us_per_image: Between the ends of the two steps.
        peak_mib: The highest memory use of the main process.
        workers_mib: The private memory that its workers gained between the two steps.
        Both are 0 where there is no /proc.
    """
    first, last = spec["first"], spec["last"]
    ends: dict[int, float] = {}
    private: dict[int, float] = {}

    def at_step(state: Any, meter: Any) -> bool:
        if state.n_iter in (1, first, last):
            now()
            ends[state.n_iter] = time.time()
            private[state.n_iter] = sum(
                memory(f"{worker.pid}/smaps_rollup", "Private_Dirty")
                for worker in multiprocessing.active_children()
            )
        return state.n_iter == last

    train(spec, at_step)
    return {
        "startup_s": ends[1] - spec["started"],
        "us_per_image": 1e6 * (ends[last] - ends[first]) / spec["images"],
        "peak_mib": memory("self/status", "VmHWM"),
        "workers_mib": private[last] - private[first],
    }


def accuracy(spec: Spec) -> Result:
    """The accuracy of test.py after the last epoch; the round is the seed."""
    prepare(spec, f"--seed={spec['round']}")
    if status := importlib.import_module("train").main():
        raise RuntimeError(f"train.py ended with status {status}")
    same = [flag for flag in spec["flags"] if flag.startswith("--precision=")]
    sys.argv = ["test.py", f"--checkpoint={spec['run']}/checkpoints/last.pt", *same]
    importlib.import_module("test").main()
    report = Path(spec["run"], "report", "metrics.json")
    return {"accuracy": json.loads(report.read_text())["accuracy"]}


def train(spec: Spec, at_step: Hook) -> None:
    """Runs train.py until `at_step`, which is called after each step, returns true.

    The hook is where the bar moves on: after the weights have changed, before a point is logged.
    """
    prepare(spec)
    program: Any = importlib.import_module("train")
    meters: list[Any] = []

    class Meter(program.Meter):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            meters.append(self)

    class Logger(program.Logger):
        def step(self) -> None:
            super().step()
            if at_step(self.state, meters[0]):
                raise Enough

    program.Meter, program.Logger = Meter, Logger
    with suppress(Enough):
        program.main()
        raise RuntimeError("train.py ended before enough was measured")


def prepare(spec: Spec, *more: str) -> None:
    """Sets the command line of train.py, and turns off the levers that the spec names.

    Raises:
        AttributeError: A lever is gone; setting a new name would silently change nothing.
    """
    workers = [] if spec["workers"] is None else [f"--workers={spec['workers']}"]
    sys.argv = ["train.py", f"--run-dir={spec['run']}", *spec["flags"], *workers, *more]
    for lever in spec.get("without", ()):
        module, name, value = LEVERS[lever]
        target = importlib.import_module(module)
        getattr(target, name)
        setattr(target, name, value)


def memory(file: str, name: str) -> float:
    """A value of a file in /proc, in MiB; 0 if there is none."""
    path = Path("/proc", file)
    found = re.search(rf"{name}:\s+(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) / 2**10 if found else 0.0
