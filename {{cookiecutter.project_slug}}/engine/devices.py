"""Where and how to compute: the device, its precision, and what a result depends on."""

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import PIL
import torch
import torchvision

from engine.data.sampler import Samples
from engine.errors import LAUNCHED, BadInput

MEMORY_FORMAT = torch.channels_last  # the fastest order in memory for convolutions
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CPU_INFO = Path("/proc/cpuinfo")
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# The values of ONEDNN_MAX_CPU_ISA that exclude instructions for bf16.
ISA_WITHOUT_BF16 = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_MIC", "AVX512_MIC_4OPS", "AVX512_CORE", "AVX512_CORE_VNNI"),
)
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # from malloc.h


def pick_device(name: str) -> torch.device:
    """The device for `--device`, or BadInput; `auto` takes CUDA, then MPS, then the CPU."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind in have if have[kind]), "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", *have):
        raise BadInput(f"--device {name}: must be auto, cpu, cuda, cuda:N or mps")
    if not have.get(device.type, True) or (device.index or 0) >= max(1, gpu_count()):
        found = [f"cuda:{i}" for i in range(gpu_count())] + ["mps"] * have["mps"] + ["cpu"]
        raise BadInput(f"--device {name}: not on this machine, which has {', '.join(found)}")
    if LAUNCHED and device.type == "cuda":
        if device.index is not None:
            raise BadInput(f"--device {name}: torchrun gives each process a GPU; use cuda")
        if local_rank() >= gpu_count():
            raise BadInput(f"--nproc-per-node: this machine has {gpu_count()} GPUs")
        device = torch.device("cuda", local_rank())
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # events and streams are those of the current device
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores():
        torch.set_num_threads(cores())  # PyTorch counts those of the machine, whatever the quota
    return device


def gpu_count() -> int:
    """The number of usable CUDA devices; 0 also if the driver is too old for this PyTorch."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_names() -> str:
    """The names of the usable CUDA devices, as one line; empty if there is none."""
    return ", ".join(torch.cuda.get_device_name(i) for i in range(gpu_count()))


def processor() -> str:
    """The model of the CPU, and the instruction set that PyTorch uses."""
    model = re.search(r"(?m)^model name\s*: *(.+)", _read(CPU_INFO))
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def set_up(deterministic: bool, threads: int | None = None) -> None:
    """Sets up threads, determinism and memory, once, before anything is computed.

    With `deterministic` CUDA takes kernels that give the same bits each time, and refuses
    operations without one; on the CPU all do, for an equal number of threads. Without `threads`
    PyTorch's number is left, which is OMP_NUM_THREADS if that is set.
    """
    # For several processes torchrun sets OMP_NUM_THREADS to 1; that is no choice of the user.
    if processes_here() > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        threads = threads or cores()
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS
        torch.use_deterministic_algorithms(True)
    keep_memory()


def keep_memory() -> None:
    """Makes malloc of glibc reuse the memory of freed tensors; see `man mallopt`.

    By default it returns large blocks to the system, which has to clear the pages of each new
    tensor again: a tenth of the time of a small network on the CPU.
    """
    with suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, 2**30)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def memory_format(device: torch.device) -> torch.memory_format:
    """The memory format of images and weights on a device."""
    # On MPS the backward pass of batch norm was wrong for channels_last (pytorch #175189).
    return torch.contiguous_format if device.type == "mps" else MEMORY_FORMAT


def cores() -> int:
    """The number of CPU cores that this process may use; torchrun's processes share them."""
    affinity = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    found = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    if (quota := cpu_quota()) is not None:
        found = min(found, max(1, round(quota)))
    return max(1, found // processes_here())


def processes_here() -> int:
    """The number of torchrun's processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if LAUNCHED else 1


def cpu_quota() -> float | None:
    """The CPUs that the cgroups of this process may use, as of `docker --cpus`; None: no limit."""
    quotas = []
    for folder in _cgroups("cpu", "cpu,cpuacct"):
        old = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        text = _read(folder / "cpu.max") or " ".join(old)  # of version 2, or 1
        if found := re.fullmatch(r"(\d+)\s+(\d+)\s*", text):  # else max, or -1
            quotas.append(int(found[1]) / int(found[2]))
    return min(quotas, default=None)


def _cgroups(controller: str, *together: str) -> Iterator[Path]:
    """The folders of the cgroups of this process and those above, of version 2 and of 1.

    A container may see its own as the root. `together` are further names of the controller's
    folder.
    """
    for line in _read(OWN_CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for root in (CGROUPS, *(CGROUPS / name for name in (controller, *together))):
            yield from (root.joinpath(*parts[:depth]) for depth in range(len(parts) + 1))


def _read(path: Path) -> str:
    """The text of a file of Linux; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def local_rank() -> int:
    """The rank of this process among those of this machine."""
    return int(os.environ["LOCAL_RANK"]) if LAUNCHED else 0


def memory() -> int:
    """The memory that this process may use in bytes: the machine's, or the limit of a container."""
    found = 8 * 2**30  # a guess for Windows, which has no sysconf
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")  # the last of version 1
    texts = [_read(folder / name).strip() for folder in _cgroups("memory") for name in names]
    return min([found, *(int(text) for text in texts if text.isdigit())])  # else max


class Amp:
    """Automatic mixed precision: weights stay float32, operations may use shorter types.

    Of PRECISIONS, `auto` takes bf16 where the device has instructions for it, else fp16 on CUDA,
    else fp32. On CUDA, fp32 uses TF32 unless `--precision fp32` was given. BadInput: the device
    does not support it.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.device = device
        self.name = best_precision(device) if precision == "auto" else precision
        self.dtype = DTYPES.get(self.name)  # None for float32
        if device.type == "mps" and self.dtype:
            raise BadInput(f"--precision {precision}: not on mps; use fp32")
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        # Scales losses so that small gradients do not vanish in fp16; does nothing otherwise.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> AbstractContextManager:
        """The context in which operations choose their precision (Micikevicius et al. 2018)."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


def best_precision(device: torch.device) -> str:
    """The fastest precision that a device supports natively."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if native or torch.version.hip else "fp16"
    return "bf16" if device.type == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether PyTorch uses the processor's instructions for bf16, without which it is slow.

    ATEN_CPU_CAPABILITY can exclude them from its own kernels, ONEDNN_MAX_CPU_ISA from oneDNN's.
    """
    words = set(_read(CPU_INFO).split())
    if "bf16" in words:  # ARM
        return True
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    own = torch.backends.cpu.get_cpu_capability()
    allowed = own.startswith("AVX512") and limit.upper() not in ISA_WITHOUT_BF16
    return allowed and not words.isdisjoint({"avx512_bf16", "amx_bf16"})


def environment(
    amp: Amp, train_set: Samples, parallel: str, processes: int | None = None
) -> dict[str, str | int]:
    """Everything besides the options that the exact result of a run depends on.

    That is `processes`, their number, only if it is given. How batches are divided depends on
    `--parallel` and the number of GPUs.
    """
    facts: dict[str, str | int] = {
        "list of training images": train_set.fingerprint(),
        "device": amp.device.type,
        "precision": amp.name,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "pillow": str(PIL.__version__),
        **({"processes": processes} if processes else {}),
    }
    if amp.device.type == "cpu":
        facts |= {"processor": processor(), "threads": torch.get_num_threads()}
    elif amp.device.type == "cuda":
        one = amp.device.index is not None or parallel == "none" or gpu_count() == 1
        several = f"{gpu_names()} ({'split' if parallel == 'auto' else parallel})"
        facts["GPUs"] = torch.cuda.get_device_name(amp.device) if one else several
    return facts
