"""Where to compute: the device, how exact, and how many of them."""

import os

import PIL
import torch
import torchvision
from torch import nn

from engine.errors import BadInput


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


def set_determinism(deterministic: bool) -> None:
    """Chooses between the fastest kernels and those that give the same bits in every run.

    On the CPU both are exact for an equal number of threads. On CUDA, `deterministic` costs speed
    and refuses the few operations that have no exact version, by name.
    """
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)


def count_workers(wanted: int, device: torch.device, img_size: int) -> int:
    """The number of worker processes that `--workers` asks for; -1 chooses.

    A GPU gets all cores but one for its loaders. On the CPU the network computes on every core
    itself: one worker helps with large images, and with small ones costs more than it gives.
    """
    if wanted >= 0:
        return wanted
    if device.type == "cpu":
        return 1 if img_size > 64 else 0
    return max(1, min(16, cores() - 1))


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def conditions(device: torch.device, data: int) -> dict[str, str | int]:
    """All that the bits of a run depend on besides its options.

    Args:
        device: Where it computes.
        data: A checksum of the list of training files.
    """
    return {
        "list of training files": data,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": str(PIL.__version__),
    }


def parallelize(
    model: nn.Module, networks: dict[str, nn.Module], how: str, device: torch.device
) -> nn.Module:
    """Spreads the work over the GPUs of this machine, in place.

    `split` (and `auto` where there are several GPUs and none was named) divides the batch of each
    network with `nn.DataParallel`. The modules in `networks` stay the bare ones, so what is saved
    from them carries no `module.` prefix.

    Args:
        model: The finished model; its attributes that are networks are wrapped.
        networks: The bare networks by the name of the attribute.
        how: auto, none or split.
        device: Where the model is; on the CPU the wrapper hands batches through.

    Returns:
        What a batch is to be given to for its losses.

    Raises:
        BadInput: `split`, with one GPU named.
    """
    if how == "split" and device.index is not None:
        raise BadInput(f"--parallel split uses all GPUs; use --device cuda instead of {device}")
    several = device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1
    if how == "split" or (how == "auto" and several):
        for name, network in networks.items():
            wrapped = nn.DataParallel(network)
            if device.type != "cuda":
                wrapped.device_ids = []
            setattr(model, name, wrapped)
    return model
