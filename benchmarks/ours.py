"""What is measured of the project itself: its train.py runs as it is, watched from outside.

All of this runs in the project's folder, so `train`, `engine` and so on are the project's.
"""

import copy
import importlib
import json
import multiprocessing
import re
import runpy
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.timing import Enough, synchronize

Spec = dict[str, Any]
Result = dict[str, Any]
STRETCH = 8  # steps


def throughput(spec: Spec) -> Result:
    """Images per second of whole epochs, from the second one on.

    An epoch is timed from the call of `train_epoch` to its return, so that nothing is left out:
    logging, pictures and checkpoints are in it.
    """
    _patch(spec)
    _command_line(spec)
    train: Any = importlib.import_module("train")
    epochs: list[tuple[int, float]] = []  # images and seconds of each
    setup: list[float] = []

    class Timed(train.Training):
        def train_epoch(self) -> None:
            setup.append(time.time() - spec["started"])
            before, begun = self.progress.n_iter, time.perf_counter()
            super().train_epoch()
            synchronize()
            images = (self.progress.n_iter - before) * self.opt.batch_size * self.opt.accumulate
            epochs.append((images, time.perf_counter() - begun))
            if sum(seconds for _, seconds in epochs[1:]) >= spec["seconds"]:
                raise Enough

    with suppress(Enough):
        Timed().main()
    images, seconds = (sum(column) for column in zip(*epochs[1:], strict=True))
    return {
        "images_per_s": images / seconds,
        "timed_s": seconds,
        "first_epoch_s": epochs[0][1],
        "setup_s": setup[0],
        "efficiency": _efficiency(Path(spec["run"]) / "metrics.jsonl"),
    }


def beside_pure(spec: Spec) -> Result:
    """Images per second of train.py and of the same step on preloaded data, in turns.

    What else a machine does, and how fast its processor may run, changes within seconds. So one
    process does both, in stretches of STRETCH steps: an epoch of train.py is held up for a stretch
    on batches that are ready, with a copy of network and optimizer, and its clocks are set back by
    as much. From the second epoch on.
    """
    _command_line(spec)
    train: Any = importlib.import_module("train")
    times = {"ours": 0.0, "pure": 0.0}
    images = 0

    class Beside(train.Training):
        def train_epoch(self) -> None:
            self.taken, self.held_up, self.held_up_by_steps = 0, 0.0, 0.0
            begun = time.perf_counter()
            super().train_epoch()
            synchronize()
            if self.progress.n_iter > self.order.steps:
                times["ours"] += time.perf_counter() - begun - self.held_up
                times["pure"] += self.held_up_by_steps
                nonlocal images
                images += self.taken * self.opt.batch_size * self.opt.accumulate
            if times["ours"] >= spec["seconds"]:
                raise Enough

        def step(self, batches: Any) -> Any:
            if self.taken % STRETCH == 0:
                self.stretch()
            self.taken += 1
            return super().step(batches)

        def stretch(self) -> None:
            """As many steps on preloaded data as train.py takes until the next stretch."""
            begun = time.perf_counter()
            if not hasattr(self, "pure"):
                self.pure = Pure(self)
            synchronize()
            started = time.perf_counter()
            for _ in range(min(STRETCH, self.order.steps - self.taken)):
                self.pure.step()
            synchronize()
            ended = time.perf_counter()
            self.held_up_by_steps += ended - started
            self.held_up += ended - begun
            self.meter.begun += ended - begun
            self.meter.mark += ended - begun

    with suppress(Enough):
        Beside().main()
    return {
        "images_per_s": images / times["ours"],
        "pure_images_per_s": images / times["pure"],
        "share": times["pure"] / times["ours"],
        "timed_s": times["ours"],
        "efficiency": _efficiency(Path(spec["run"]) / "metrics.jsonl"),
    }


class Pure:
    """Forward, backward and step on batches that are ready, with a copy of a run's network."""

    def __init__(self, training: Any) -> None:
        optimizing: Any = importlib.import_module("engine.optimizing")
        model, self.precision = training.model, training.precision
        self.network = copy.deepcopy(model.net).train()
        self.optimizer = optimizing.make_optimizer(training.opt, self.network)
        self.criterion = model.criterion
        loader = training.train_loader
        keys = list(islice(iter(training.order), 8))
        batches = [loader._source.__getitems__(key) for key in keys]
        moved = [tuple(part.to(training.device) for part in batch) for batch in batches]
        self.batches = cycle([(model.normalize(images), labels) for images, labels in moved])

    def step(self) -> None:
        images, labels = next(self.batches)
        self.optimizer.zero_grad()
        with self.precision.autocast():
            scores = self.network(images).float()
            loss = self.criterion(scores, labels)
        loss.backward()
        self.optimizer.step()


def first_step(spec: Spec) -> Result:
    """Seconds from the command to the end of the first step of train.py."""
    return {"seconds": _steps(spec, 1, lambda: None)[0] - spec["started"]}


def growth(spec: Spec) -> Result:
    """Time and memory of start-up and of the steps until `spec["last"]`.

    Returns:
        startup_s: From the command to the end of the first step.
        s_per_image: Between the ends of the steps `spec["first"]` and `spec["last"]`.
        peak_mib: The most memory that the main process has had.
        workers_mib: What its workers together gained in private memory after the first step; 0
            where there is no /proc.
    """
    private: list[int] = []
    ends = _steps(spec, spec["last"], lambda: private.append(_workers_private()))
    images = (spec["last"] - spec["first"]) * spec["batch_size"]
    return {
        "startup_s": ends[0] - spec["started"],
        "s_per_image": (ends[-1] - ends[spec["first"] - 1]) / images,
        "timed_images": images,
        "peak_mib": _peak() / 2**20,
        "workers_mib": (private[1] - private[0]) / 2**20,
    }


def accuracy(spec: Spec) -> Result:
    """The test accuracy after the last epoch of a run."""
    _patch(spec)
    _command_line(spec, f"--seed={spec['round']}")
    train: Any = importlib.import_module("train")
    if status := train.main():
        raise RuntimeError(f"train.py ended with status {status}")
    points = _read_points(Path(spec["run"]) / "metrics.jsonl", "test")
    return {"accuracy": points[-1]["values"]["accuracy"]}


def import_alone(spec: Spec) -> Result:
    """Seconds from the command until `spec["modules"]` are imported."""
    for name in spec["modules"]:
        importlib.import_module(name)
    return {"seconds": time.time() - spec["started"]}


def _command_line(spec: Spec, *more: str) -> None:
    sys.argv = ["train.py", f"--run={spec['run']}", *spec["flags"], *more]


def _patch(spec: Spec) -> None:
    """Turns off levers that have no flag, before anything takes a copy of their names.

    Raises:
        AttributeError: There is no such name; a new one would silently change nothing.
    """
    import torch

    values = {"contiguous_format": torch.contiguous_format, "no": False, "nothing": lambda: None}
    for place, value in spec.get("patches", {}).items():
        module, _, name = place.rpartition(".")
        target = importlib.import_module(module)
        getattr(target, name)
        setattr(target, name, values[value])


def _steps(spec: Spec, steps: int, at_ends: Callable[[], None]) -> list[float]:
    """Runs train.py for so many optimizer steps; returns the wall-clock time of the end of each.

    `at_ends` is called after the first step and after the last one.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ends: list[float] = []

    def note(*_: Any) -> None:
        synchronize()
        ends.append(time.time())
        if len(ends) in (1, steps):
            at_ends()
        if len(ends) == steps:
            raise Enough

    register_optimizer_step_post_hook(note)
    _command_line(spec)
    try:
        runpy.run_path("train.py", run_name="__main__")
    except Enough:
        return ends
    raise RuntimeError(f"train.py ended after {len(ends)} of {steps} steps")


def _efficiency(metrics: Path) -> float | None:
    """The mean of what the project's meter said, from the second epoch on."""
    points = _read_points(metrics, "train")
    said = [point["values"]["efficiency"] for point in points if point["epoch"] >= 1]
    return sum(said) / len(said) if said else None


def _read_points(metrics: Path, split: str) -> list[Any]:
    if not metrics.exists():  # no step was logged
        return []
    points = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [point for point in points if point["split"] == split]


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))[0])
    import resource  # not on Windows; on Linux it would count what started this process as well

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _workers_private() -> int:
    """The memory in bytes that belongs to the worker processes alone; they share the rest."""
    if not Path("/proc/self/smaps_rollup").exists():
        return 0
    total = 0
    for worker in multiprocessing.active_children():
        text = Path(f"/proc/{worker.pid}/smaps_rollup").read_text(encoding="utf-8")
        total += sum(int(kb) * 1024 for kb in re.findall(r"Private_Dirty: +(\d+) kB", text))
    return total
