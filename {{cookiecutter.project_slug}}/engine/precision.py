"""In which numbers a network computes: its weights stay float32, the rest may be shorter."""

from contextlib import AbstractContextManager
from pathlib import Path

import torch

from engine.errors import BadInput

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """What `--precision` means on a device.

    `auto` takes bf16 where the device computes with it natively, else fp16 on CUDA, else fp32.
    float32 on CUDA is in full only if fp32 was asked for: TF32 is faster.

    Args:
        wanted: One of PRECISIONS.
        device: Where the network computes.

    Raises:
        BadInput: The device has no such numbers.
    """

    def __init__(self, wanted: str, device: torch.device) -> None:
        self.device = device
        self.name = best_precision(device) if wanted == "auto" else wanted
        self.dtype = TYPES.get(self.name)  # None for float32
        if device.type == "mps" and self.dtype:
            raise BadInput(f"--precision {wanted}: not on mps; use fp32")
        torch.set_float32_matmul_precision("highest" if wanted == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = wanted != "fp32"
        # Keeps small gradients from vanishing in fp16; does nothing otherwise.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> AbstractContextManager:
        """Where operations that gain by short numbers use them (Micikevicius et al. 2018)."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


def best_precision(device: torch.device) -> str:
    """The shortest numbers that a device is made for."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if native or torch.version.hip else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the processor has instructions for bf16; without them it is slower than float32."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:  # not Linux, or shut away
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)
