"""Runs of several processes: the same bits as on one, whatever happens to the processes.

The processes are forked from this one, with the variables that torchrun sets; the store by which
they meet is in this process, as it is in torchrun. tests/engine/test_processes.py
uses torchrun itself. Nobody ends the others when one fails: they have to notice by themselves.
"""

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import SEED, TASKS, TIMES, Project, Tell
from forked import alive, ended, finish, hold, left_over, start, workers_of

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc, as on Linux")

HOW = [[], ["--optimizer=sgd", "--lr=0.01"], ["--precision=bf16"]]
HOW += [["--ema=0.9", "--layer-decay=0.5", "--head-epochs=1", "--weight-decay=0.1"]]
# All that is random is on, and batch norm, in two epochs of a few steps.
SMALL = {
    "image-classification": ["--img-size=8", "--width=8", "--blocks=1", "--flip", "--shift=1"],
    "image-to-image": ["--img-size=16", "--width=4", "--blocks=1", "--crops=12", "--pool=6"],
}
SMALL["image-to-image"] += ["--norm=batch", "--d-norm=batch", "--d-width=4", "--d-layers=1"]
BATCH = {"image-classification": 128, "image-to-image": 32}  # images in a step
EVERY = ["--epochs=2", "--dropout=0.2", "--log-every=1", "--save-every=1", "--threads=1"]


class Processes:
    """The processes of a run.

    Args:
        size: How many.
        flags: The command line of each.
        prepare: Called in each of them with its rank, before train.py is imported.
        store: The process and the port of a store that others have used before, if not a new one.
    """

    def __init__(
        self,
        size: int,
        flags: list[str],
        prepare: Callable[[int], object] = lambda rank: None,
        store: tuple[int, int] | None = None,
    ) -> None:
        self.size = size
        self.store, port = store or serve_store()

        def launch(rank: int) -> Callable[[], None]:
            def as_rank() -> None:
                local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
                elastic = {"RUN_ID": "test", "RESTART_COUNT": 0, "MAX_RESTARTS": 0}
                elastic["USE_AGENT_STORE"] = "True"
                meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                own = {**local, **meet, "LOCAL_WORLD_SIZE": size}
                own |= {f"TORCHELASTIC_{name}": value for name, value in elastic.items()}
                os.environ.update({name: str(value) for name, value in own.items()})
                sys.path.insert(0, os.getcwd())
                prepare(rank)

            return as_rank

        self.pids = [
            start(flags, launch(rank), output=f"out{rank}.txt", errors=f"errors{rank}.txt")
            for rank in range(size)
        ]

    def step(self) -> bool:
        """Returns when all that are held step, by when their handlers are in place, or have ended.

        Returns:
            Whether they step.
        """
        files = [Path(f"stepping{rank}") for rank in range(self.size)]
        while not all(file.exists() for file in files):
            if not all(map(alive, self.pids)):
                return False
            time.sleep(0.005)
        return True

    def finish(self) -> list[int]:
        """The exit statuses."""
        return [finish(pid) for pid in self.pids]

    def errors(self) -> list[str]:
        """The lines on stderr of all processes."""
        files = [Path(f"errors{rank}.txt") for rank in range(self.size)]
        return [line for file in files for line in file.read_text().splitlines()]

    def kill(self) -> None:
        for pid in [*self.pids, self.store]:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for pid in [*self.pids, self.store]:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def serve_store() -> tuple[int, int]:
    """Starts a process with a store, as torchrun has one; returns its id and the store's port.

    A store of this process has a thread, which forking the others might disturb.
    """
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.setsid()
        store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
        os.write(write, str(store.port).encode())
        os.close(write)
        time.sleep(3600)
        os._exit(0)
    os.close(write)
    with open(read) as port:
        return pid, int(port.read())


def run_to_the_end(size: int, flags: list[str]) -> None:
    processes = Processes(size, flags)
    try:
        assert processes.finish() == [0] * size, processes.errors()
    finally:
        processes.kill()


def content(run: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The tensors of the last checkpoint by name, and the curves without what time has a say in."""
    found: dict[str, torch.Tensor] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key in value:
                add(f"{name}/{key}", value[key])
        elif isinstance(value, list | tuple):
            for i, item in enumerate(value):
                add(f"{name}/{i}", item)

    add("", torch.load(run / "checkpoints/last.pt", weights_only=True))
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for point in points:
        point.pop("seconds", None)
        for timed in ("images_per_second", "data_wait", "efficiency"):
            point["values"].pop(timed, None)
    return found, points


def assert_same(run: Path, other: Path) -> None:
    (ours, curves), (theirs, their_curves) = content(run), content(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []
    assert curves == their_curves


@pytest.fixture(scope="module", params=TASKS)
def task(
    request: pytest.FixtureRequest,
    bake: Callable[..., Project],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The name of a task; the current folder is a project of it."""
    copy = tmp_path_factory.mktemp("processes") / "project"
    shutil.copytree(bake(task=request.param, accelerator="cpu").path, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        yield request.param


def flags_of(task: str, micro_batches: int, *more: str) -> list[str]:
    size = BATCH[task] // micro_batches
    step = [f"--accumulate={micro_batches}", f"--batch-size={size}"]
    return [*SMALL[task], *EVERY, *step, *more]


@pytest.mark.parametrize("micro_batches", [4, 8])
@pytest.mark.parametrize("how", HOW, ids=["defaults", "sgd", "bf16", "levers"])
def test_the_number_of_processes_changes_no_bit(
    task: str, micro_batches: int, how: list[str], full: bool
) -> None:
    if not full and (micro_batches, how, task) != (4, [], TASKS[1]):
        pytest.skip("takes a minute; `make stress` has it, and of the other task a walk below")
    if task == TASKS[0] and "--ema=0.9" in how:
        how = [*how, "--sample=balanced"]
    flags = flags_of(task, micro_batches, *how)
    run = Path(f"runs/{micro_batches}{''.join(how)[:20]}")
    run_to_the_end(1, [f"--run-dir={run}-1", *flags])
    for size in [2, 4] if micro_batches == 4 else [2, 4, 8]:
        run_to_the_end(size, [f"--run-dir={run}-{size}", *flags])
        assert_same(Path(f"{run}-{size}"), Path(f"{run}-1"))


class Walk:
    """A run that is disturbed again and again, on other numbers of processes each time.

    Args:
        draw: The source of everything random.
        run: Its folder.
        flags: Its options.
        duration: Seconds of an undisturbed run.
    """

    def __init__(self, draw: random.Random, run: Path, flags: list[str], duration: float) -> None:
        self.draw, self.run, self.duration = draw, run, duration
        self.flags = [f"--run-dir={run}", "--resume", *flags]

    def stage(self, size: int) -> str:
        """Starts it on so many processes and disturbs it; returns what was done."""
        processes = Processes(size, self.flags, hold)
        try:
            if not processes.step():
                assert processes.finish() == [0] * size, processes.errors()
                return f"{size}: was done"
            time.sleep(self.draw.uniform(0, self.duration))
            what = self.draw.choice(["kill", "signal", "signals"])
            which = self.draw.randrange(size)
            number = signal.SIGKILL if what == "kill" else signal.SIGTERM
            for rank, pid in enumerate(processes.pids):
                if what == "signals" or rank == which:
                    os.kill(pid, number)
            Path("go").touch()
            statuses = processes.finish()
        finally:
            processes.kill()
        told = f"{what} {which} of {size}: {statuses}"
        assert all(left_over(pid) == [] for pid in processes.pids), told
        lines = processes.errors()
        if what == "kill":
            assert statuses.pop(which) == -signal.SIGKILL, told
            assert set(statuses) <= {1}, (told, lines)
            assert len(lines) == bool(statuses), (told, lines)
        else:
            assert statuses == [75] * size, (told, lines)
            assert lines == [], (told, lines)
        return told


def test_a_run_that_is_stopped_and_killed_on_any_number_of_processes_has_the_same_bits(
    task: str, full: bool, tell: Tell
) -> None:
    if not full and task != TASKS[0]:
        pytest.skip("`make stress` has it")
    flags = flags_of(task, 4, "--epochs=4")
    begun = time.monotonic()
    run_to_the_end(1, ["--run-dir=runs/undisturbed", *flags])
    duration = time.monotonic() - begun
    draw = random.Random(SEED)
    walks, done = 3 * TIMES if full else 1, []
    for i in range(walks):
        run = Path(f"runs/walk{i}")
        walk = Walk(draw, run, flags, duration / 3)
        done += [walk.stage(size) for size in draw.sample([4, 2, 1, 4, 2], 4 if full else 2)]
        run_to_the_end(draw.choice([1, 2, 4]), walk.flags)
        assert_same(run, Path("runs/undisturbed"))
        shutil.rmtree(run)
    tell(f"{walks} of {walks} walks of {task} equal; {', '.join(done)[:300]}")


@pytest.mark.parametrize("task", TASKS[:1], indirect=True)
def test_processes_that_are_started_again_are_not_misled_by_the_first_ones(
    task: str, full: bool
) -> None:
    """torchrun gives them the same store, in which the keys of those before still are."""
    if not full:
        pytest.skip("`make stress` has it")
    flags, run = flags_of(task, 4, "--epochs=4"), Path("runs/again")
    run_to_the_end(1, ["--run-dir=runs/at-once", *flags])
    store = serve_store()
    try:
        for size, killed in ((4, True), (2, True), (2, True), (4, False)):
            words = [f"--run-dir={run}", "--resume", *flags]
            processes = Processes(size, words, hold if killed else lambda rank: None, store)
            if not killed:
                assert processes.finish() == [0] * size, processes.errors()
                break
            assert processes.step()
            while not (run / "checkpoints/last.pt").exists():
                assert all(map(alive, processes.pids)), processes.errors()
                time.sleep(0.005)
            for pid in processes.pids:
                os.killpg(pid, signal.SIGKILL)
                finish(pid)
    finally:
        processes.kill()
    assert_same(run, Path("runs/at-once"))


@pytest.mark.parametrize("task", TASKS[:1], indirect=True)
def test_one_process_of_a_machine_makes_the_model_first(task: str) -> None:
    """It may have to download weights, which the others then find."""

    def note(rank: int) -> None:
        import train  # type: ignore[import-not-found]

        make = train.Model

        def slowly(*given: object) -> object:
            with open("order.txt", "a") as file:
                print("begin", rank, file=file, flush=True)
                time.sleep(0.3)
                print("end", rank, file=file)
            return make(*given)

        slowly.monitors = make.monitors  # type: ignore[attr-defined]
        train.Model = slowly

    flags = [*flags_of(task, 4), "--run-dir=runs/first", "--epochs=1"]
    processes = Processes(4, flags, note)
    try:
        assert processes.finish() == [0] * 4, processes.errors()
    finally:
        processes.kill()
    lines = Path("order.txt").read_text().splitlines()
    assert lines[:2] == ["begin 0", "end 0"] and len(lines) == 8


@pytest.mark.parametrize("task", TASKS[:1], indirect=True)
@pytest.mark.parametrize("how", ["no data", "kill -9"])
def test_a_process_that_ends_before_the_first_step_ends_all_of_them(task: str, how: str) -> None:
    """Here on another machine, whose first process it is; so nobody waits for the other here."""

    def fail(*given: object) -> object:
        if how == "kill -9":
            os.kill(os.getpid(), signal.SIGKILL)
        from engine.errors import BadInput  # type: ignore[import-not-found]

        raise BadInput("data/train: no such folder")

    def prepare(rank: int) -> None:
        os.environ["LOCAL_RANK"] = "0"
        if rank == 1:
            import train  # type: ignore[import-not-found]

            fail.monitors = train.Model.monitors  # type: ignore[attr-defined]
            train.Model = fail

    processes = Processes(2, [*flags_of(task, 2), f"--run-dir=runs/{how}"], prepare)
    try:
        statuses = processes.finish()
        assert statuses == ([1, 2] if how == "no data" else [1, -signal.SIGKILL])
        (line,) = processes.errors()
        reason = "no such folder" if how == "no data" else "another process has ended"
        assert line.startswith("train.py: error: process ") and reason in line
    finally:
        processes.kill()


@pytest.mark.parametrize("task", TASKS[:1], indirect=True)
@pytest.mark.parametrize("where", ["the losses of a step", "the best checkpoint"])
def test_a_process_that_dies_between_a_step_and_its_record_costs_no_bit(
    task: str, where: str
) -> None:
    """The others then have a state that is ahead of metrics.jsonl, or of best.pt."""

    def prepare(rank: int) -> None:
        from engine import (  # type: ignore[import-not-found, attr-defined]
            distributed,
            logger,
        )

        calls = itertools.count()
        losses, check = logger.mean_losses, distributed.World.check_equal

        def die(*words: object) -> object:
            if rank and next(calls) == 13:  # of 10 steps in an epoch
                os.kill(os.getpid(), signal.SIGKILL)
            return losses(*words)

        def die_at_best(world: object, content: dict) -> None:
            if rank and content["validated"] == 20:
                os.kill(os.getpid(), signal.SIGKILL)
            check(world, content)

        if where == "the losses of a step":
            logger.mean_losses = die
        else:
            distributed.World.check_equal = die_at_best

    flags = [*flags_of(task, 2), "--save-every=7"]
    whole, run = Path("runs/whole"), Path(f"runs/{where[-4:]}")
    run_to_the_end(1, [f"--run-dir={whole}", "--resume", *flags])
    processes = Processes(2, [f"--run-dir={run}", *flags], prepare)
    try:
        assert processes.finish() == [1, -signal.SIGKILL]
    finally:
        processes.kill()
    assert (run / "checkpoints/last.pt").exists()
    run_to_the_end(2, [f"--run-dir={run}", "--resume", *flags])
    assert_same(run, whole)
    best = [torch.load(path / "checkpoints/best.pt", weights_only=True) for path in (run, whole)]
    assert best[0]["n_iter"] == best[1]["n_iter"]


KINDS = ("signal to one", "signal to all", "kill -9", "kill -9 of a worker", "a bug", "not finite")
SITUATIONS = ("computes", "waits for data", "saves")


def prepare_fault(kind: str, situation: str, victim: int) -> Callable[[int], None]:
    def prepare(rank: int) -> None:
        import dataset  # type: ignore[import-not-found]
        import train  # type: ignore[import-not-found]
        from engine import checkpoint  # type: ignore[import-not-found]

        if situation == "waits for data":
            load = dataset.load

            def slowly(*given: object, **named: object) -> object:
                time.sleep(0.02)
                return load(*given, **named)

            dataset.load = slowly
        if situation == "saves":
            save = checkpoint.torch.save

            def slow_save(*given: object) -> None:
                time.sleep(0.2)
                save(*given)

            checkpoint.torch.save = slow_save
        if kind in ("a bug", "not finite") and rank == victim:
            forward, steps = train.forward, iter(range(10**6))

            def go_wrong(*given: object) -> object:
                losses = forward(*given)
                if next(steps) < 6:
                    return losses
                if kind == "a bug":
                    raise ZeroDivisionError("a bug")
                return {n: {k: v * float("nan") for k, v in x.items()} for n, x in losses.items()}

            train.forward = go_wrong

    return prepare


@pytest.mark.parametrize("task", TASKS[:1], indirect=True)
def test_a_fault_of_one_process_ends_all_of_them(task: str, full: bool, tell: Tell) -> None:
    """Soon, in one line, and without the loss of a checkpoint."""
    count, draw = 2 * TIMES * len(KINDS) if full else 3, random.Random(SEED)
    slowest, wrong = 0.0, []
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        situation = SITUATIONS[(i + i // len(KINDS)) % len(SITUATIONS)]
        size, run = draw.choice([2, 4]), Path(f"runs/fault{i}")
        victim = draw.randrange(size)
        workers = int(kind == "kill -9 of a worker" or situation == "waits for data")
        flags = [*flags_of(task, 4, "--epochs=1000", "--no-cache"), f"--workers={workers}"]
        flags += [f"--run-dir={run}"]
        processes = Processes(size, flags, prepare_fault(kind, situation, victim))
        told = f"fault {i}: {kind} of {victim} of {size} while it {situation}"
        try:
            while not (run / "checkpoints/last.pt").exists():
                if kind in ("a bug", "not finite"):
                    break
                assert all(map(alive, processes.pids)), processes.errors()
                time.sleep(0.005)
            if kind in ("a bug", "not finite"):
                assert ended(processes.pids[victim]) is not None
                processes.pids.pop(victim)
            else:
                time.sleep(draw.uniform(0, 0.5))
            begun = time.monotonic()
            strike(kind, processes, victim)
            statuses = processes.finish()
            slowest = max(slowest, time.monotonic() - begun)
            if "signal" in kind:
                assert statuses == [75] * size and processes.errors() == []
            elif kind == "a bug":
                assert set(statuses) == {1}
                text = Path(f"errors{victim}.txt").read_text()
                assert text.strip().endswith("ZeroDivisionError: a bug")
            else:
                assert set(statuses) <= {1, -signal.SIGKILL}
                lines = processes.errors()
                assert len(lines) == 1 and lines[0].startswith("train.py: error: process"), lines
            if (run / "checkpoints").exists():
                torch.load(run / "checkpoints/last.pt", weights_only=True)
        except (AssertionError, OSError, RuntimeError):
            wrong.append(f"{told}\n{traceback.format_exc()}")
        finally:
            processes.kill()
        shutil.rmtree(run, ignore_errors=True)
    tell(f"{count} faults, {len(wrong)} wrong ends, the slowest end took {slowest:.1f} s")
    assert not wrong, "\n\n".join(wrong)


def strike(kind: str, processes: Processes, victim: int) -> None:
    if kind == "kill -9 of a worker":
        os.kill(workers_of(processes.pids[victim])[0], signal.SIGKILL)
    for rank, pid in enumerate(processes.pids):
        if kind == "kill -9" and rank == victim:
            os.kill(pid, signal.SIGKILL)
        if kind == "signal to all" or (kind == "signal to one" and rank == victim):
            os.kill(pid, signal.SIGTERM)
