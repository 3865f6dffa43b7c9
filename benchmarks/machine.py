"""The machine and the versions that were measured."""

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
EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # the choice of precision reads them


def cores() -> int:
    """The number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, str]:
    """The machine and the versions, as texts by name."""
    cpuinfo = Path("/proc/cpuinfo")  # of Linux
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    name = re.search(r"(?m)^model name\s*: (.*)", text)
    processor = name[1] if name else platform.processor() or platform.machine()
    extensions = [one for one in EXTENSIONS if re.search(rf"\b{one}\b", text)]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    installed = {one.name.lower(): one.version for one in importlib.metadata.distributions()}
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "processor": f"{processor}, {cores()} cores ({', '.join(extensions)})",
        "gpu": ", ".join(gpus) or "none",
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: installed.get(package, "not installed") for package in PACKAGES},
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }
