"""Two hosts: torchrun in two network namespaces of this machine, joined by a cable that is cut."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import PATIENCE, Project
from test_processes import SMALL, assert_same

CABLE = {"pt-a": ("pt-va", "10.99.0.1"), "pt-b": ("pt-vb", "10.99.0.2")}
FLAGS = [*SMALL["image-classification"], "--accumulate=2", "--batch-size=32", "--threads=1"]
FLAGS += ["--save-every=5", "--log-every=1"]
TIMEOUT = 60  # seconds after which a process gives up the others, here


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two namespaces with an address each."""
    if not shutil.which("ip"):
        pytest.skip("needs iproute2")
    try:
        for name in CABLE:
            ip("netns", "add", name)
        (a, _), (b, _) = CABLE.values()
        ip("link", "add", a, "type", "veth", "peer", "name", b)
        for name, (end, address) in CABLE.items():
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        remove_hosts()
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
    yield
    remove_hosts()


def remove_hosts() -> None:
    for name in CABLE:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture
def folder(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = Path(shutil.copytree(project.path, tmp_path / "project"))
    source = copy / "engine/distributed.py"
    text = source.read_text(encoding="utf-8")
    assert "TIMEOUT = 300" in text
    source.write_text(text.replace("TIMEOUT = 300", f"TIMEOUT = {TIMEOUT}"), encoding="utf-8")
    monkeypatch.chdir(copy)
    return copy


def start_on(name: str, job: int, *words: str) -> "subprocess.Popen[bytes]":
    """Starts torchrun on a host, with one process; what it prints goes into a file."""
    end, address = CABLE[name]
    meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint=10.99.0.1:{29400 + job}", f"--rdzv-id={job}"]
    meet += [f"--rdzv-conf=is_host={int(name == 'pt-a')}", f"--local-addr={address}"]
    launcher = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meet, "train.py"]
    with open(f"{name}.txt", "w") as out:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", *launcher, *FLAGS, *words],
            env={**os.environ, "GLOO_SOCKET_IFNAME": end},
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def start_both(job: int, *words: str) -> "list[subprocess.Popen[bytes]]":
    return [start_on(name, job, *words) for name in CABLE]


def run_both(job: int, *words: str) -> str:
    """Runs train.py on both hosts to its end; returns what was printed."""
    launchers = start_both(job, *words)
    try:
        statuses = [launcher.wait(5 * PATIENCE) for launcher in launchers]
    finally:
        kill(launchers)
    text = "".join(Path(f"{name}.txt").read_text() for name in CABLE)
    assert statuses == [0, 0], text
    return text


def kill(launchers: "list[subprocess.Popen[bytes]]") -> None:
    for launcher in launchers:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def errors_on(name: str) -> list[str]:
    text = Path(f"{name}.txt").read_text()
    return [line for line in text.splitlines() if line.startswith("train.py: error: ")]


def test_two_hosts_give_the_bits_of_one_also_after_the_cable_was_cut(
    hosts: None, folder: Path, full: bool
) -> None:
    if not full:
        pytest.skip("takes minutes; `make stress` has it")
    alone = [sys.executable, "train.py", "--run-dir=runs/one", *FLAGS, "--epochs=3"]
    subprocess.run(alone, check=True, capture_output=True)
    run_both(1, "--run-dir=runs/two", "--epochs=3")
    assert_same(Path("runs/two"), Path("runs/one"))

    launchers = start_both(2, "--run-dir=runs/cut", "--epochs=500")
    deadline = time.monotonic() + PATIENCE
    while not Path("runs/cut/checkpoints/last.pt").exists():
        assert time.monotonic() < deadline and launchers[0].poll() is None
        time.sleep(0.05)
    ip("-n", "pt-a", "link", "set", "pt-va", "down")
    deadline = time.monotonic() + TIMEOUT + PATIENCE  # torchrun may take longer than train.py
    while not all(map(errors_on, CABLE)):
        assert time.monotonic() < deadline, [errors_on(name) for name in CABLE]
        time.sleep(0.5)
    for name in CABLE:
        (line,) = errors_on(name)
        assert "cannot be reached" in line
    kill(launchers)

    ip("-n", "pt-a", "link", "set", "pt-va", "up")
    saved = max(int(p.stem[5:]) for p in Path("runs/cut/checkpoints").glob("iter-*.pt"))
    epochs = saved // (1301 // 64) + 1
    resume = ["--run-dir=runs/cut", "--resume", f"--epochs={epochs}"]
    assert f"resumed after step {saved}" in run_both(3, *resume)
