"""Where to compute: the device, how exact, and how many of them."""

import contextlib
import ctypes
import os
from typing import Any, TypeVar

import PIL
import torch
import torchvision
from torch import nn

from engine.errors import BadInput
from engine.precision import Precision

Model = TypeVar("Model", bound=nn.Module)
MEMORY_FORMAT = torch.channels_last  # in which convolutions are fastest
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # from malloc.h


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        BadInput: There is no such device on this machine.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind in have if have[kind]), "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", *have):
        raise BadInput(f"--device {name}: must be auto, cpu, cuda, cuda:N or mps")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if not have.get(device.type, True) or (device.index or 0) >= count:
        found = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        found += ["mps"] * have["mps"] + ["cpu"]
        raise BadInput(f"--device {name}: not on this machine, which has {', '.join(found)}")
    return device


def set_up(deterministic: bool) -> None:
    """Sets what PyTorch and the C library leave to their users; once, before anything is computed.

    It chooses between the fastest kernels and those that give the same bits in every run.

    On the CPU both are exact for an equal number of threads. On CUDA, `deterministic` costs speed
    and refuses the few operations that have no exact version, by name.
    """
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    keep_memory()


def choose_workers(device: torch.device, at_once: bool) -> int:
    """How many worker processes load images if `--workers auto` leaves it to us.

    On the CPU none: the network computes on every core itself, its threads wait for each other, and
    a worker on one of the cores makes the others wait as well.

    Args:
        device: Where the network computes.
        at_once: Whether batches come from memory ready-made; then there is nothing to do.
    """
    return 0 if at_once or device.type == "cpu" else max(1, min(16, cores() - 1))


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """The bytes of memory that this machine has."""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 8 * 2**30  # Windows does not say without further packages


def keep_memory() -> None:
    """Lets the C library keep the memory of freed tensors for the next ones.

    By default it hands large blocks back to the system at once, and each tensor then costs the
    clearing of its pages again: a tenth of the time of a small network on the CPU.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library than that of Linux
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def conditions(precision: Precision, train_set: Any) -> dict[str, str | int]:
    """All that the bits of a run depend on besides its options.

    Args:
        precision: Where it computes, and in which numbers.
        train_set: The training data; `fingerprint()` is a checksum of the list of its samples.
    """
    return {
        "list of training files": train_set.fingerprint(),
        "device": precision.device.type,
        "precision": precision.name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": str(PIL.__version__),
    }


def place(model: Model, device: torch.device) -> Model:
    """Moves a model to where it is to compute, in place."""
    return model.to(device).to(memory_format=MEMORY_FORMAT)


def computing(networks: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Those of the networks that compute with weights; the others, such as a pool, only remember.

    To divide or to compile those would spoil what they remember.
    """
    return {name: network for name, network in networks.items() if list(network.parameters())}


def compile_networks(networks: dict[str, nn.Module], wanted: bool) -> None:
    """Lets `torch.compile` make faster code of the networks, in place, when they are first used."""
    for network in computing(networks).values() if wanted else ():
        network.compile()
