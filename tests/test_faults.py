"""Faults injected into training runs: kills, signals, damage. `--full` makes the counts large.

KINDS x SITUATIONS is drawn from at random: TIMES=5 draws five times as many, SEED=7 others.
"""

import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import PATIENCE, SEED, TIMES, Project, Tell
from forked import alive, ended, finish, hold, left_over, members, start, wait_for, workers_of
from PIL import Image

resource = pytest.importorskip("resource")  # Windows has none
pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc, as on Linux")

SMALL = ["--img-size=8", "--width=8", "--blocks=1", "--dropout=0.1", "--flip", "--epochs=8"]
EVERY_STEP = ["--save-every=1", "--log-every=5"]


@pytest.fixture(scope="module", autouse=True)
def in_project(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The rendered project, copied to work in, with its images unpacked."""
    path = tmp_path_factory.mktemp("faults") / "project"
    shutil.copytree(project.path, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.syspath_prepend(path)
        assert finish(start(["--run-dir=runs/unpack", *SMALL, "--epochs=1"])) == 0
        yield path


def bits(checkpoint: Path) -> str:
    """A digest of all tensors of network and optimizer."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)

    state = torch.load(checkpoint, weights_only=True)
    add(state["net"])
    add(state["optim"])
    return digest.hexdigest()


def run_to_the_end(flags: list[str]) -> None:
    status = finish(start(flags))
    assert status == 0, Path("output.txt").read_text()


@pytest.fixture(scope="module")
def undisturbed(in_project: Path) -> tuple[str, float]:
    """The bits of a run that nothing disturbs, and its duration in seconds."""
    begun = time.monotonic()
    run_to_the_end(["--run-dir=runs/undisturbed", *SMALL, *EVERY_STEP])
    return bits(Path("runs/undisturbed/checkpoints/last.pt")), time.monotonic() - begun


def watch(last: Path, seconds: float) -> int:
    """Reads last.pt again and again for some time; returns how often there was one."""
    seen = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if last.exists():
            with zipfile.ZipFile(last) as archive:
                assert archive.testzip() is None, "last.pt was unreadable"
            seen += 1
        time.sleep(0.002)
    return seen


def test_killed_runs_end_with_the_same_bits(
    undisturbed: tuple[str, float], full: bool, tell: Tell
) -> None:
    """SIGKILL at random moments, with other workers each time, then --resume."""
    wanted, duration = undisturbed
    moments = random.Random(1)
    runs, kills, in_write, looks = 12 * TIMES if full else 2, 0, 0, 0
    for i in range(runs):
        run = Path(f"runs/killed{i}")
        flags = [f"--run-dir={run}", *SMALL, *EVERY_STEP, "--resume"]
        for _ in range(moments.choice([1, 1, 2])):
            pid = start([*flags, f"--workers={moments.choice([0, 0, 1, 2])}"], hold)
            looks += watch(run / "checkpoints/last.pt", moments.uniform(0.05, duration))
            os.kill(pid, signal.SIGKILL)
            assert finish(pid) == -signal.SIGKILL
            kills += 1
            in_write += any((run / "checkpoints").glob(".*.tmp"))
            assert left_over(pid) == []
        run_to_the_end([*flags, f"--workers={moments.choice([0, 1])}"])
        assert bits(run / "checkpoints/last.pt") == wanted
        last, best = (
            torch.load(run / f"checkpoints/{name}.pt", weights_only=True)
            for name in ("last", "best")
        )
        assert best["best"] == last["best"], "best.pt is not the best"
        shutil.rmtree(run)
    tell(
        f"{runs} of {runs} runs equal after {kills} kills, {in_write} of them within a write; "
        f"last.pt was read {looks} times meanwhile and never unreadable"
    )


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_signal_to_the_group_saves_the_step(
    undisturbed: tuple[str, float], full: bool, tell: Tell
) -> None:
    wanted, _ = undisturbed
    moments = random.Random(2)
    runs, slowest = 6 * TIMES if full else 2, 0.0
    for i in range(runs):
        run = Path(f"runs/stopped{i}")
        flags = [f"--run-dir={run}", *SMALL, "--save-every=1000", "--log-every=5"]
        pid = start([*flags, f"--workers={moments.choice([0, 1, 2])}"], hold)
        wait_for(run / "config.txt", pid)  # by then the handlers are in place
        points = moments.randrange(16)  # of 8 epochs with 4 points each, and a moment after that
        while points and count_lines(run / "metrics.jsonl") < points:
            assert alive(pid), "it ended without having got that far"
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.02))
        begun = time.monotonic()
        number = moments.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
        os.killpg(pid, number)
        Path("go").touch()
        status = finish(pid)
        slowest = max(slowest, time.monotonic() - begun)
        output = Path("output.txt").read_text()
        assert status == 75, output
        assert left_over(pid) == []
        state = torch.load(run / "checkpoints/last.pt", weights_only=True)
        said = output.splitlines()[-2]
        assert said.startswith(f"{number.name}: saved step {state['n_iter']} as {run}"), output
        assert "Traceback" not in output
        run_to_the_end([f"--run-dir={run}", "--resume"])
        assert bits(run / "checkpoints/last.pt") == wanted
        shutil.rmtree(run)
    tell(
        f"{runs} of {runs} signals: status 75, the step saved, no process left, "
        f"{slowest:.1f} s at most"
    )


@pytest.mark.parametrize("name", ["fp32", "fp16", "compiled"])
def test_other_numbers_and_compiled_networks_are_exact_too(
    in_project: Path, name: str, full: bool
) -> None:
    """Killed once, and resumed with other workers and without the cache."""
    if not full:  # tests/engine/test_precision.py does it within one process
        pytest.skip("takes a minute; `make stress` has it")
    if name == "compiled" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a compiler")
    how = ["--compile"] if name == "compiled" else [f"--precision={name}"]
    flags = [*SMALL, *EVERY_STEP, *how]
    run_to_the_end([f"--run-dir=runs/{name}", *flags])
    wanted = bits(Path(f"runs/{name}/checkpoints/last.pt"))

    run = Path(f"runs/{name}-killed")
    pid = start([f"--run-dir={run}", *flags], hold)
    wait_for(run / "checkpoints/last.pt", pid, patience=5 * PATIENCE)  # to compile takes minutes
    while not any(int(path.stem[5:]) >= 30 for path in (run / "checkpoints").glob("iter-*.pt")):
        assert alive(pid), "it ended before it was killed"
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert finish(pid) == -signal.SIGKILL
    run_to_the_end([f"--run-dir={run}", "--resume", "--workers=2", "--no-cache"])
    assert bits(run / "checkpoints/last.pt") == wanted


@pytest.fixture
def digits(undisturbed: tuple[str, float]) -> Path:
    """The images again, elsewhere and without a cache."""
    copy = Path("data/copy")
    shutil.rmtree(copy, ignore_errors=True)
    return Path(shutil.copytree("data/digits", copy, ignore=shutil.ignore_patterns(".cache")))


def test_a_kill_while_images_are_decoded_leaves_no_usable_half(
    digits: Path, undisturbed: tuple[str, float]
) -> None:
    def stop_halfway() -> None:
        open_image, seen = Image.open, iter(range(9000))

        def open_slowly(path: str) -> Image.Image:  # read_image calls it
            if next(seen) == 700:
                Path("halfway").touch()
                time.sleep(3600)
            return open_image(path)

        Image.open = open_slowly  # type: ignore[assignment]

    run = Path("runs/decoding")
    flags = [f"--run-dir={run}", f"--data={digits}", *SMALL, *EVERY_STEP]
    pid = start(flags, stop_halfway)
    wait_for(Path("halfway"), pid)
    assert any((digits / ".cache").iterdir())
    os.kill(pid, signal.SIGKILL)
    assert finish(pid) == -signal.SIGKILL
    assert left_over(pid) == []
    assert not list((digits / ".cache").glob("*.decoded")) and not run.exists()
    run_to_the_end(flags)
    assert bits(run / "checkpoints/last.pt") == undisturbed[0]
    assert len(list((digits / ".cache").glob("*.decoded"))) == 1, "that of train/"


def test_a_full_disk_is_no_reason_not_to_train(
    digits: Path, undisturbed: tuple[str, float]
) -> None:
    """The cache does not fit on it; the images are decoded each time."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    run = Path("runs/no-cache")
    flags = [f"--run-dir={run}", f"--data={digits}", *SMALL, *EVERY_STEP]
    status = finish(start(flags, prepare=limit))
    output = Path("output.txt").read_text()
    assert status == 0, output
    line = next(line for line in output.splitlines() if f"{digits}/train" in line)
    assert f"decoded each time: {digits}/.cache: File too large; --cache DIR" in line
    assert bits(run / "checkpoints/last.pt") == undisturbed[0]
    assert not list((digits / ".cache").glob("train-*"))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_no_worker_outlives_the_trainer(in_project: Path, method: str, full: bool) -> None:
    if not full and method != "fork":
        pytest.skip("takes long to start; `make stress` has it")
    flags = ["--run-dir", f"runs/{method}", *SMALL, "--workers=2", "--epochs=500"]
    program = (
        f"import multiprocessing, runpy, sys; multiprocessing.set_start_method({method!r}); "
        f"sys.argv = ['train.py', *{flags}]; runpy.run_path('train.py', run_name='__main__')"
    )
    with open("output.txt", "w") as output:
        trainer = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_for(Path(f"runs/{method}/checkpoints/last.pt"), trainer.pid)
    workers_of(trainer.pid, 2)
    trainer.kill()
    trainer.wait()
    assert left_over(trainer.pid) == []


@pytest.fixture(scope="module")
def checkpoint(undisturbed: tuple[str, float]) -> bytes:
    return Path("runs/undisturbed/checkpoints/last.pt").read_bytes()


@contextmanager
def two_checkpoints(folder: Path, newest: bytes, older: bytes) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "iter-000000002.pt").write_bytes(newest)
    (folder / "iter-000000001.pt").write_bytes(older)
    yield


def in_child(check: Callable[[], object]) -> None:
    """Runs a check in a forked process, so that the project's modules are not imported here."""
    pid = os.fork()
    if not pid:
        try:
            check()
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())  # sys.stderr may be a buffer of pytest
        finally:
            os._exit(1)
    assert finish(pid) == 0


def test_damaged_checkpoints_fall_back(
    checkpoint: bytes, tmp_path: Path, full: bool, tell: Tell
) -> None:
    """A flipped byte is found or changes no tensor; a truncation is found; both fall back."""
    flips, cuts = (300, 40) if full else (60, 10)
    whole = bits_of_bytes(checkpoint, tmp_path)
    positions = random.Random(3).sample(range(len(checkpoint)), flips)
    positions += range(0, 120, 5)  # the first header
    positions += range(len(checkpoint) - flips, len(checkpoint))  # the directory at the end
    lengths = [len(checkpoint) * i // cuts for i in range(cuts)] + [len(checkpoint) - 1]

    def check() -> None:
        from engine.checkpoint import Checkpoints  # type: ignore[import-not-found]

        older = torch.load(tmp_path / "whole.pt", weights_only=True)
        older["n_iter"] = -1
        torch.save(older, tmp_path / "older.pt")
        older_bytes = (tmp_path / "older.pt").read_bytes()
        found = harmless = 0
        for position in positions:
            damaged = bytearray(checkpoint)
            damaged[position] ^= 0xFF
            with two_checkpoints(tmp_path / "flip", bytes(damaged), older_bytes):
                state = Checkpoints(tmp_path / "flip").newest()
            if state["n_iter"] == -1:
                found += 1
            else:
                torch.save(state, tmp_path / "read.pt")
                assert bits(tmp_path / "read.pt") == whole, f"silent damage at {position}"
                harmless += 1
        for length in lengths:
            with two_checkpoints(tmp_path / "cut", checkpoint[:length], older_bytes):
                assert Checkpoints(tmp_path / "cut").newest()["n_iter"] == -1, length
        counts = {"found": found, "harmless": harmless}
        (tmp_path / "counts.json").write_text(json.dumps(counts))

    in_child(check)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["found"] > 0.5 * flips  # headers hold dates and padding, which nobody reads
    tell(
        f"{len(positions)} flipped bytes: {counts['found']} found, {counts['harmless']} "
        f"harmless, 0 silent; {len(lengths)} of {len(lengths)} truncations found"
    )


def bits_of_bytes(content: bytes, folder: Path) -> str:
    (folder / "whole.pt").write_bytes(content)
    return bits(folder / "whole.pt")


def test_a_full_disk_leaves_the_last_good_checkpoint(undisturbed: tuple[str, float]) -> None:
    """A limit on the size of files stands in for the full disk; both fail in write()."""
    run = Path("runs/full")
    run_to_the_end([f"--run-dir={run}", *SMALL, "--epochs=1"])
    before = bits(run / "checkpoints/last.pt")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    pid = start([f"--run-dir={run}", "--resume", "--epochs=2", "--save-every=5"], prepare=limit)
    assert finish(pid) == 1
    output = Path("output.txt").read_text()
    assert "Traceback" not in output, output
    last = output.splitlines()[-1]
    assert "cannot be written" in last and str(run / "checkpoints/last.pt") in last, output
    assert bits(run / "checkpoints/last.pt") == before
    assert not list((run / "checkpoints").glob(".*.tmp"))
    run_to_the_end([f"--run-dir={run}", "--resume", "--epochs=2"])


def test_running_out_of_memory_is_one_line(undisturbed: tuple[str, float]) -> None:
    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))

    flags = ["--img-size=128", "--width=256", "--batch-size=256", "--workers=0", "--no-cache"]
    assert finish(start(["--run-dir=runs/memory", *flags], prepare=limit)) == 1
    output = Path("output.txt").read_text()
    assert "Traceback" not in output, output
    assert "out of memory" in output and "--batch-size" in output


# What a run is doing when the fault comes: options, and the seconds by which an image is slowed
# down. With workers and without a cache an image is read in each epoch anew.
SITUATIONS = {
    "waits for photographs": (
        ["--data=photos", "--img-size=32", "--width=4", "--blocks=0", "--no-cache"],
        0.0,
    ),
    "waits for a slow disk": (["--img-size=8", "--width=4", "--blocks=0", "--no-cache"], 0.01),
    "computes": (["--img-size=8", "--width=64", "--no-cache"], 0.0),
    "computes, with a cache": (["--img-size=8", "--width=64", "--cache"], 0.0),
}
PHOTOS = 1000


class Injected:
    """A run with a fault in it: how it is brought about, and how the run has to end.

    Args:
        draw: The source of everything random.
        situation: One of SITUATIONS.
    """

    statuses: tuple[int, ...] = (1,)
    words: tuple[str, ...] = ()  # of the only line on stderr
    least_workers = 0
    signals: tuple[int, ...] = ()

    def __init__(self, draw: random.Random, situation: str) -> None:
        self.draw = draw
        flags, self.slow = SITUATIONS[situation]
        self.prefetch = draw.choice([0, 2])
        self.workers = draw.choice([max(1, self.least_workers), 2] + [0] * (not self.least_workers))
        self.delay = draw.choice([0, 0.1, 1, 4]) * draw.random()  # seconds
        self.flags = [*flags, f"--workers={self.workers}", f"--prefetch={self.prefetch}"]
        self.flags += ["--epochs=1000", "--log-every=5", "--save-every=20", "--flip"]

    def prepare(self) -> None:
        """What is changed in the program; called in its process."""
        import dataset  # type: ignore[import-not-found]

        load = dataset.load

        def slowly(*given: object, **named: object) -> object:
            time.sleep(self.slow)
            return load(*given, **named)

        if self.slow:
            dataset.load = slowly

    def inject(self, pid: int) -> float:
        """Does it to the running process; returns the time at which it was done."""
        raise NotImplementedError

    def check(self, run: Path, status: int, stdout: str, stderr: str) -> None:
        """Checks how it ended."""
        assert status in self.statuses, (status, stderr)
        (line,) = stderr.splitlines()
        assert line.startswith("train.py: error: ")
        for word in self.words:
            assert word in line


class KilledWorker(Injected):
    words = ("worker", "--workers")
    least_workers = 1

    def inject(self, pid: int) -> float:
        workers = workers_of(pid)
        time.sleep(self.delay)
        os.kill(self.draw.choice(workers), signal.SIGKILL)
        return time.monotonic()


class CorruptFiles(Injected):
    """A tenth of the images cannot be read any more, from a random moment on."""

    statuses, words = (2,), ("not readable as an image", "replace")
    least_workers = 1

    def __init__(self, draw: random.Random, situation: str) -> None:
        if situation == "computes, with a cache":  # which reads no image while it trains
            situation = "computes"
        super().__init__(draw, situation)
        data = "photos" if "--data=photos" in self.flags else "data/digits"
        shutil.rmtree("corrupt", ignore_errors=True)
        ignore = shutil.ignore_patterns(".cache")
        shutil.copytree(data, "corrupt", copy_function=os.link, ignore=ignore)
        self.flags.append("--data=corrupt")

    def inject(self, pid: int) -> float:
        workers_of(pid)
        time.sleep(self.delay)
        Path("cut").write_bytes(b"cut off")
        for path in sorted(Path("corrupt/train").glob("*/*"))[::10]:
            os.link("cut", "cut2")
            os.replace("cut2", path)
        return time.monotonic()


class SecondCtrlC(Injected):
    """The second SIGINT ends the run at once, unless the step was done between the two."""

    statuses, words = (130, 75), ("interrupted",)

    def inject(self, pid: int) -> float:
        time.sleep(self.delay)
        os.killpg(pid, signal.SIGINT)
        time.sleep(self.draw.choice([0, 0.001, 0.05]))
        os.killpg(pid, signal.SIGINT)
        return time.monotonic()

    def check(self, run: Path, status: int, stdout: str, stderr: str) -> None:
        if status == 75:
            check_stopped(run, "SIGINT", stdout, stderr)
        else:
            super().check(run, status, stdout, stderr)
            if (last := run / "checkpoints/last.pt").exists():
                bits(last)


class Stopped(Injected):
    number = signal.SIGTERM

    def inject(self, pid: int) -> float:
        time.sleep(self.delay)
        self.draw.choice([os.kill, os.killpg])(pid, self.number)
        return time.monotonic()

    def check(self, run: Path, status: int, stdout: str, stderr: str) -> None:
        assert status == 75, (status, stderr)
        check_stopped(run, self.number.name, stdout, stderr)
        run_to_the_end([f"--run-dir={run}", "--resume", "--epochs=1", "--workers=0"])


class HungUp(Stopped):
    number = signal.SIGHUP


class StoppedByUser(Stopped):
    number = signal.SIGUSR2


class Raises(Injected):
    """Something in the main thread goes wrong from a random moment on: `names` of modules."""

    in_workers = False
    names: tuple[str, ...] = (
        "dataset.augment",
        "train.forward",
        "train.evaluate",
        "train.learning_rate",
    )

    def prepare(self) -> None:
        super().prepare()
        module, _, name = self.draw.choice(self.names).partition(".")
        owner = importlib.import_module(module)
        original = getattr(owner, name)
        first = 0.0

        def change(*given: object, **named: object) -> object:
            nonlocal first
            now = time.monotonic()
            if self.in_workers and multiprocessing.parent_process() is None:
                return original(*given, **named)
            first = first or now
            if now < first + self.delay:
                return original(*given, **named)
            Path("raising").write_text(str(now))
            os.replace("raising", "raised")
            return self.go_wrong(original(*given, **named))

        setattr(owner, name, change)

    def go_wrong(self, result: object) -> object:
        raise ZeroDivisionError("a bug")

    def inject(self, pid: int) -> float:
        wait_for(Path("raised"), pid)
        return float(Path("raised").read_text())

    def check(self, run: Path, status: int, stdout: str, stderr: str) -> None:
        assert status == 1
        assert stderr.startswith("Traceback (most recent call last):\n"), stderr
        assert stderr.strip().splitlines()[-1] == "ZeroDivisionError: a bug", stderr


class WorkerRaises(Raises):
    names, in_workers = ("dataset.load",), True
    least_workers = 1

    def __init__(self, draw: random.Random, situation: str) -> None:
        super().__init__(draw, situation.replace(", with a cache", ""))


class NotFinite(Raises):
    names, words = ("train.forward",), ("of step", "not finite", "--lr")
    check = Injected.check

    def go_wrong(self, result: object) -> object:
        assert isinstance(result, dict)
        losses = {name: loss * float("nan") for name, loss in result["net"].items()}
        return {"net": losses}


KINDS = {
    "a worker is killed": KilledWorker,
    "files are corrupt": CorruptFiles,
    "a second Ctrl-C": SecondCtrlC,
    "SIGTERM": Stopped,
    "SIGHUP": HungUp,
    "SIGUSR2": StoppedByUser,
    "the loss is not finite": NotFinite,
    "a bug in the main thread": Raises,
    "a bug in a worker": WorkerRaises,
}


def check_stopped(run: Path, name: str, stdout: str, stderr: str) -> None:
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    assert stdout.splitlines()[-2].startswith(f"{name}: saved step {state['n_iter']} as {run}")
    assert stderr == ""


def stacks(pid: int) -> str:
    """Ends a run that hangs; returns where its threads were, and how many workers it had."""
    workers = len(members(pid)) - 1
    os.kill(pid, signal.SIGABRT)
    ended(pid)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return f"{workers} workers are left; {Path('errors.txt').read_text()}"


@pytest.fixture(scope="module")
def photos(in_project: Path) -> None:
    """Photographs of 500 x 375 pixels, which take longer to read than a small network computes."""
    for label in range(2):
        folder = Path(f"photos/train/{label}")
        folder.mkdir(parents=True)
        image = Image.effect_noise((500, 375), 40 + 40 * label).convert("RGB")
        image.save(folder / "0.jpg", quality=90)
        for i in range(1, PHOTOS // 2):
            os.link(folder / "0.jpg", folder / f"{i}.jpg")


def test_a_fault_at_any_moment_ends_the_run(photos: None, full: bool, tell: Tell) -> None:
    """Whatever is done to a run in whatever situation, it is over soon, and says why."""
    count = 2 * TIMES * len(KINDS) if full else len(KINDS)
    draw = random.Random(SEED)
    slowest, hangs, wrong = 0.0, 0, []
    for i in range(count):
        turn, number = divmod(i, len(KINDS))
        kind = list(KINDS)[number]
        situation = list(SITUATIONS)[(number + turn) % len(SITUATIONS)]
        run = Path(f"runs/fault{i}")
        Path("raised").unlink(missing_ok=True)
        fault = KINDS[kind](draw, situation)
        flags = [f"--run-dir={run}", *fault.flags]
        pid = start(flags, fault.prepare, errors="errors.txt")
        told = f"fault {i}: {kind} {fault.delay:.2f} s after the start of a run that {situation}: "
        told += " ".join(flags)
        try:
            wait_for(run / "environment.txt", pid)  # from then on, no other children than workers
            done = fault.inject(pid)
            if (status := ended(pid)) is None:
                hangs += 1
                raise AssertionError(f"not over after {PATIENCE} s; {stacks(pid)}")
            slowest = max(slowest, time.monotonic() - done)
            assert left_over(pid) == []
            fault.check(run, status, Path("output.txt").read_text(), Path("errors.txt").read_text())
        except (AssertionError, OSError, ValueError):
            wrong.append(f"{told}\n{traceback.format_exc()}")
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        shutil.rmtree(run, ignore_errors=True)
    tell(f"{count} faults, {hangs} hangs, the slowest end took {slowest:.1f} s")
    assert not wrong, "\n\n".join(wrong)
