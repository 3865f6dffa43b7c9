"""What the figures were measured on."""

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "torchvision", "pillow", "lightning", "timm")
INTERESTING = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # what the choice of precision sees


def cores() -> int:
    """The CPU cores that a process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, str]:
    """The machine and the versions, as texts by name."""
    name, flags = _processor()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "processor": f"{name}, {cores()} cores ({', '.join(flags) or 'unknown extensions'})",
        "memory": _memory(),
        "gpu": ", ".join(gpus) or "none",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> tuple[str, list[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return platform.processor() or platform.machine(), []
    name = re.search(r"(?m)^model name\s*: (.*)", text)
    flags = re.search(r"(?m)^flags\s*: (.*)", text)
    have = flags[1].split() if flags else []
    return name[1] if name else platform.machine(), [flag for flag in INTERESTING if flag in have]


def _memory() -> str:
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return "unknown"
    return f"{size / 2**30:.0f} GiB"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        answer = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown (no git)"
    return answer.stdout.strip() or "unknown"
