"""What a run finds out about its machine: cores and quotas, and the commit of its code."""

import os
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from engine import devices
from engine.devices import cores, cpu_quota, memory, pick_device
from engine.distributed import ALONE, start
from engine.errors import BadInput
from engine.run_dir import environment, git_commit

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


def cgroups(patch: pytest.MonkeyPatch, own: str, files: dict[str, str]) -> None:
    """Lets this process be in some cgroups: what the kernel says, and the files it shows."""
    for name, text in files.items():
        path = Path("cgroup", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    Path("own").write_text(own)
    patch.setattr(devices, "CGROUPS", Path("cgroup"))
    patch.setattr(devices, "OWN_CGROUPS", Path("own"))


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),  # a container
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "20000 10000"}, 2),
        ("0::/a\n", {"b/cpu.max": "100000 100000"}, None),  # that of others
        ("0::/../pod\n", {"cpu.max": "100000 100000"}, 1),
        (  # version 1; in a container the path is that of the machine
            "5:memory:/x\n3:cpu,cpuacct:/docker/1f\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        (
            "3:cpu:/job\n",
            {"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_the_quota_of_a_container(
    monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], quota: float | None
) -> None:
    cgroups(monkeypatch, own, files)
    assert cpu_quota() == quota


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine of 16 cores whose PyTorch takes 16 threads; the numbers set after that."""
    numbers = [16]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return numbers


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/", {"memory.max": "1000000"}, 1000000),
        ("0::/", {"memory.max": "max\n"}, None),
        ("0::/", {"memory.max": "max", "memory.high": "700000\n"}, 700000),
        ("0::/a/b", {"a/memory.max": "900000", "a/b/memory.max": "max"}, 900000),
        ("0::/../../x", {"memory.max": "800000"}, 800000),
        ("4:memory:/docker/1", {"memory/memory.limit_in_bytes": "600000\n"}, 600000),
        ("4:memory:/d/1", {"memory/d/1/memory.limit_in_bytes": "500000"}, 500000),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("4:cpu:/", {"memory/memory.limit_in_bytes": "600000"}, None),
        ("", {}, None),
    ],
)
def test_the_limit_of_memory_of_a_container_counts(
    monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], limit: int | None
) -> None:
    cgroups(monkeypatch, "", {})
    machine = memory()
    cgroups(monkeypatch, own, files)
    assert memory() == (limit or machine)


@pytest.mark.parametrize(("limit", "threads"), [("300000", 3), ("40000", 1), ("max", 16)])
def test_threads_are_those_of_the_quota(
    monkeypatch: pytest.MonkeyPatch, sixteen: list[int], limit: str, threads: int
) -> None:
    cgroups(monkeypatch, "0::/\n", {"cpu.max": f"{limit} 100000"})
    assert cores() == threads
    pick_device("cpu")
    devices.set_up(deterministic=False)
    assert sixteen[-1] == threads
    devices.set_up(deterministic=False, threads=5)
    assert sixteen[-1] == 5


def test_the_users_number_of_threads_is_kept(
    monkeypatch: pytest.MonkeyPatch, sixteen: list[int]
) -> None:
    cgroups(monkeypatch, "0::/\n", {"cpu.max": "300000 100000"})
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    pick_device("cpu")
    devices.set_up(deterministic=False)
    assert sixteen == [16]


@pytest.mark.parametrize(("processes", "threads"), [(1, 16), (4, 4)])
def test_one_thread_is_the_users_word_if_torchrun_has_not_said_it(
    monkeypatch: pytest.MonkeyPatch, sixteen: list[int], processes: int, threads: int
) -> None:
    """torchrun sets OMP_NUM_THREADS=1 for several processes, and leaves it alone for one."""
    cgroups(monkeypatch, "", {})
    monkeypatch.setattr(devices, "LAUNCHED", True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    devices.set_up(deterministic=False)
    assert sixteen[-1] == threads


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path, *files: str) -> str:
    """Makes a repository with a commit of some files; returns the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
        git(folder, "add", name)
    git(folder, "commit", "-q", "--allow-empty", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


@needs_git
def test_the_commit_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = repository(Path("ours"), "train.py"), repository(Path("other"), "train.py", "x")
    assert ours != other
    project = Path("ours").resolve()
    monkeypatch.chdir("other")
    assert git_commit(project) == ours
    assert environment()["git commit"] != other
    monkeypatch.setenv("GIT_DIR", str(Path(".git").resolve()))  # as in a hook of git
    assert git_commit(project) == ours
    (project / "train.py").write_text("changed")
    assert git_commit(project) == f"{ours}-dirty"


@needs_git
def test_a_repository_around_the_code_counts_if_it_has_it() -> None:
    commit = repository(Path("around"), "notes.txt", "a/train.py")
    assert git_commit(Path("around/a")) == commit
    Path("around/b").mkdir()
    Path("around/b/train.py").write_text("")
    assert git_commit(Path("around/b")) == "none"
    git(Path("around/b"), "init", "-q")  # without a commit, as after rendering
    assert git_commit(Path("around/b")) == "none"


@needs_git
def test_a_repository_of_another_user_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in containers, and in shared folders."""
    repository(Path("ours"), "train.py")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert git_commit(Path("ours")) == "unknown (git: dubious ownership)"


@pytest.mark.parametrize(
    "found",
    [
        {"WORLD_SIZE": "2", "RANK": "1"},  # accelerate, mpirun -x
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"},
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "8", "PMI_RANK": "1"},
    ],
)
def test_several_processes_are_torchruns(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, str]
) -> None:
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match="torchrun") as error:
        start(Namespace(accumulate=1), torch.device("cpu"))
    assert next(iter(found)) in str(error.value)


@pytest.mark.parametrize(
    "found",
    [
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # in a script for sbatch, without srun
        {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"WORLD_SIZE": "many"},
    ],
)
def test_one_process_alone_needs_no_torchrun(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, str]
) -> None:
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    world = start(Namespace(accumulate=1, deterministic=False), torch.device("cpu"))
    assert world.size == ALONE.size == 1
