"""Faults injected into training runs: kills, signals, damage. `--full` makes the counts large."""

import hashlib
import json
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
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import Project
from forked import finish, start

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
        assert finish(start(["--run=runs/unpack", *SMALL, "--epochs=1"])) == 0
        yield path


def left_over(group: int, patience: float) -> list[int]:
    """The processes of a group that are alive `patience` seconds from now; zombies are not."""
    deadline = time.monotonic() + patience
    while True:
        alive = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(pgrp) == group and state != "Z":
                alive.append(int(stat.parent.name))
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.05)


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
    run_to_the_end(["--run=runs/undisturbed", *SMALL, *EVERY_STEP])
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
    undisturbed: tuple[str, float], full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL at random moments, with other workers each time, then --resume."""
    wanted, duration = undisturbed
    moments = random.Random(1)
    runs, kills, in_write, looks = 50 if full else 3, 0, 0, 0
    for i in range(runs):
        run = Path(f"runs/killed{i}")
        flags = [f"--run={run}", *SMALL, *EVERY_STEP, "--resume"]
        for _ in range(moments.choice([1, 1, 2])):
            pid = start([*flags, f"--workers={moments.choice([0, 0, 1, 2])}"])
            looks += watch(run / "checkpoints/last.pt", moments.uniform(0.05, duration))
            os.kill(pid, signal.SIGKILL)
            kills += finish(pid) == -signal.SIGKILL
            in_write += any((run / "checkpoints").glob(".*.tmp"))
            assert left_over(pid, patience=10) == []
        run_to_the_end([*flags, f"--workers={moments.choice([0, 1])}"])
        assert bits(run / "checkpoints/last.pt") == wanted
        last, best = (
            torch.load(run / f"checkpoints/{name}.pt", weights_only=True)
            for name in ("last", "best")
        )
        assert best["best"] == last["best"], "best.pt is not the best"
        shutil.rmtree(run)
    with capsys.disabled():
        print(f"\n{runs} of {runs} runs equal after {kills} kills, {in_write} of them within a")
        print(f"write; last.pt was read {looks} times meanwhile and never unreadable")
    assert kills >= runs * 0.5


def test_a_signal_to_the_group_saves_the_step(
    undisturbed: tuple[str, float], full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, duration = undisturbed
    moments = random.Random(2)
    runs, slowest = 20 if full else 2, 0.0
    for i in range(runs):
        run = Path(f"runs/stopped{i}")
        flags = [f"--run={run}", *SMALL, "--save-every=1000", "--log-every=5"]
        pid = start([*flags, f"--workers={moments.choice([0, 1, 2])}"])
        wait_for(run / "config.txt")  # by then the handlers are in place
        time.sleep(moments.uniform(0, duration / 4))
        begun = time.monotonic()
        number = moments.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
        os.killpg(pid, number)
        status = finish(pid)
        slowest = max(slowest, time.monotonic() - begun)
        output = Path("output.txt").read_text()
        assert status == 75, output
        assert left_over(pid, patience=0.5) == []
        state = torch.load(run / "checkpoints/last.pt", weights_only=True)
        said = output.splitlines()[-1]
        assert said.startswith(f"{number.name}: saved step {state['n_iter']} as {run}"), output
        assert "Traceback" not in output
        run_to_the_end([f"--run={run}", "--resume"])
        assert bits(run / "checkpoints/last.pt") == wanted
        shutil.rmtree(run)
    with capsys.disabled():
        print(f"\n{runs} of {runs} signals: status 75, the step saved, no process left, ", end="")
        print(f"{slowest:.1f} s at most")


@pytest.mark.parametrize("name", ["fp32", "fp16", "compiled"])
def test_other_numbers_and_compiled_networks_are_exact_too(
    in_project: Path, name: str, full: bool
) -> None:
    """Killed once, and resumed with other workers and without the cache."""
    if name == "compiled" and not (full and (shutil.which("g++") or shutil.which("clang++"))):
        pytest.skip("needs a compiler, and minutes; `make stress` has it")
    how = ["--compile"] if name == "compiled" else [f"--precision={name}"]
    flags = [*SMALL, *EVERY_STEP, *how]
    run_to_the_end([f"--run=runs/{name}", *flags])
    wanted = bits(Path(f"runs/{name}/checkpoints/last.pt"))

    run = Path(f"runs/{name}-killed")
    pid = start([f"--run={run}", *flags])
    wait_for(run / "checkpoints/last.pt", patience=300)
    while not any(int(path.stem[5:]) >= 30 for path in (run / "checkpoints").glob("iter-*.pt")):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert finish(pid) == -signal.SIGKILL
    run_to_the_end([f"--run={run}", "--resume", "--workers=2", "--no-cache"])
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
    run = Path("runs/decoding")
    flags = [f"--run={run}", f"--data={digits}", *SMALL, *EVERY_STEP]
    pid = start(flags)
    wait_for(digits / ".cache")
    os.kill(pid, signal.SIGKILL)
    assert finish(pid) == -signal.SIGKILL
    assert left_over(pid, patience=10) == []
    assert not list((digits / ".cache").glob("*.u8")) and not run.exists()
    run_to_the_end(flags)
    assert bits(run / "checkpoints/last.pt") == undisturbed[0]
    assert len(list((digits / ".cache").glob("*.u8"))) == 2


def test_a_full_disk_is_no_reason_not_to_train(
    digits: Path, undisturbed: tuple[str, float]
) -> None:
    """The cache does not fit on it; the images are kept in memory."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    run = Path("runs/no-cache")
    flags = [f"--run={run}", f"--data={digits}", *SMALL, *EVERY_STEP]
    status = finish(start(flags, prepare=limit))
    output = Path("output.txt").read_text()
    assert status == 0, output
    line = next(line for line in output.splitlines() if f"{digits}/train" in line)
    assert f"in memory ({digits}/.cache: " in line
    assert bits(run / "checkpoints/last.pt") == undisturbed[0]
    assert not list((digits / ".cache").glob("train-*"))


def wait_for(path: Path, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.002)


def test_a_second_ctrl_c_stops_at_once(undisturbed: tuple[str, float]) -> None:
    run = Path("runs/twice")
    pid = start([f"--run={run}", *SMALL, *EVERY_STEP, "--epochs=500", "--workers=1"])
    wait_for(run / "checkpoints/last.pt")
    os.killpg(pid, signal.SIGSTOP)  # both signals come before the step is done
    os.killpg(pid, signal.SIGINT)
    os.killpg(pid, signal.SIGCONT)
    time.sleep(0.001)
    os.killpg(pid, signal.SIGINT)
    status = finish(pid)
    output = Path("output.txt").read_text()
    assert status in (75, 130), f"75: the step was done between the two; {output}"
    assert "Traceback" not in Path("output.txt").read_text()
    assert left_over(pid, patience=10) == []
    assert bits(run / "checkpoints/last.pt")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_no_worker_outlives_the_trainer(in_project: Path, method: str, full: bool) -> None:
    if not full and method == "spawn":
        pytest.skip("spawn takes long to start; `make stress` has it")
    flags = ["--run", f"runs/{method}", *SMALL, "--workers=2", "--epochs=500"]
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
    wait_for(Path(f"runs/{method}/checkpoints/last.pt"))
    assert len(left_over(trainer.pid, patience=0)) >= 3, "the trainer and two workers"
    trainer.kill()
    trainer.wait()
    assert left_over(trainer.pid, patience=15) == []


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
    checkpoint: bytes, tmp_path: Path, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped byte is found or changes no tensor; a truncation is found; both fall back."""
    flips, cuts = (400, 60) if full else (60, 10)
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
    with capsys.disabled():
        print(f"\n{len(positions)} flipped bytes: {counts['found']} found, {counts['harmless']} ")
        print(f"harmless, 0 silent; {len(lengths)} of {len(lengths)} truncations found")


def bits_of_bytes(content: bytes, folder: Path) -> str:
    (folder / "whole.pt").write_bytes(content)
    return bits(folder / "whole.pt")


def test_a_full_disk_leaves_the_last_good_checkpoint(undisturbed: tuple[str, float]) -> None:
    """A limit on the size of files stands in for the full disk; both fail in write()."""
    run = Path("runs/full")
    run_to_the_end([f"--run={run}", *SMALL, "--epochs=1"])
    before = bits(run / "checkpoints/last.pt")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    pid = start([f"--run={run}", "--resume", "--epochs=2", "--save-every=5"], prepare=limit)
    assert finish(pid) == 1
    output = Path("output.txt").read_text()
    assert "Traceback" not in output, output
    last = output.splitlines()[-1]
    assert "cannot be written" in last and str(run / "checkpoints/last.pt") in last, output
    assert bits(run / "checkpoints/last.pt") == before
    assert not list((run / "checkpoints").glob(".*.tmp"))
    run_to_the_end([f"--run={run}", "--resume", "--epochs=2"])


def test_a_killed_worker_is_one_line(undisturbed: tuple[str, float]) -> None:
    run = Path("runs/worker")
    pid = start([f"--run={run}", *SMALL, "--workers=2", "--epochs=500"])
    wait_for(run / "checkpoints/last.pt")
    workers = [process for process in left_over(pid, patience=0) if process != pid]
    os.kill(workers[0], signal.SIGKILL)
    assert finish(pid) == 1
    output = Path("output.txt").read_text()
    assert "Traceback" not in output, output
    assert "--workers" in output.splitlines()[-1], output
    assert left_over(pid, patience=10) == []


def test_running_out_of_memory_is_one_line(undisturbed: tuple[str, float]) -> None:
    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))

    flags = ["--img-size=512", "--width=256", "--batch-size=256", "--workers=0"]
    assert finish(start(["--run=runs/memory", *flags], prepare=limit)) == 1
    output = Path("output.txt").read_text()
    assert "Traceback" not in output, output
    assert "out of memory" in output and "--batch-size" in output
