"""On CUDA: tests with stand-ins for the GPU, which run everywhere, then those that need one or two.

A tensor on the device "meta" stands in for one on the GPU: reading it is an error, and a copy from
the CPU to it can be seen, so whatever would make the program wait for the device is found.
"""

import gc
import importlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import example
import pytest
import torch
from conftest import Build, Train
from faults import die_at_step, overflow
from needs import needs
from parts import Parts
from programs import last, points, resume, same_weights, status, tensors
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

import dataset
import train as program
from engine import devices, errors, modules, optimizers
from engine.data import cache, loader
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler, TrainBatchSampler
from engine.devices import PRECISIONS, Amp
from engine.evaluation import forward, mean_losses
from engine.meter import Meter
from engine.modules import parallelize
from engine.optimizers import OPTIMIZERS, Optimizers, parameters_of
from model import Model

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch looks once in a process

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda"), torch.device("meta")
DTYPES = {"fp32": torch.float32, **devices.DTYPES}


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """What a run sets for all of PyTorch is as before afterwards."""
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    tf32, benchmark = cudnn.allow_tf32, cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_float32_matmul_precision(before)
    cudnn.allow_tf32, cudnn.benchmark = tf32, benchmark
    torch.use_deterministic_algorithms(deterministic)


# Several GPUs in one process. Both halves of a batch are computed on the CPU, with PyTorch's own
# threads and its own joining of results.


class CpuAsCuda(Amp):
    """A precision that takes the CPU for CUDA."""

    def __init__(self, precision: str) -> None:
        super().__init__(precision, CPU)
        self.device = CUDA

    def autocast(self) -> Any:
        return torch.autocast("cpu", self.dtype, enabled=self.dtype is not None)


class TwoHalves(nn.DataParallel):
    """Two GPUs, played by the CPU."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.src_device_obj = CPU

    def scatter(self, inputs: Any, kwargs: Any, device_ids: Any) -> Any:
        return list(zip(*(part.chunk(2) for part in inputs), strict=True)), [{}, {}]

    def replicate(self, module: nn.Module, device_ids: Any) -> list:
        return [module, module]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for_split = importlib.import_module("torch.nn.parallel.data_parallel")
    monkeypatch.setattr(for_split, "_get_available_device_type", lambda: "cuda")
    monkeypatch.setattr(for_split, "_get_all_device_indices", lambda: [0, 1])
    monkeypatch.setattr(for_split, "_check_balance", lambda indices: None)
    gathering = importlib.import_module("torch.nn.parallel.scatter_gather")
    join = SimpleNamespace(apply=lambda target, dim, *shares: torch.cat(shares, dim))
    monkeypatch.setattr(gathering, "Gather", join)
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: enabled(*(kind or ["cpu"])))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: CPU)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: nullcontext())
    for place, name in (  # the first three are those of PyTorch up to 2.7
        (torch.cuda, "device"),
        (torch.cuda, "stream"),
        (torch.cuda, "current_stream"),
        (torch.accelerator, "device_index"),
    ):
        monkeypatch.setattr(place, name, lambda device: nullcontext(), raising=False)
    monkeypatch.setattr(nn, "DataParallel", TwoHalves)


@pytest.mark.parametrize("how", ["split", "super"])
@pytest.mark.usefixtures("two_gpus")
def test_every_gpu_computes_in_the_precision_that_was_chosen(build: Build, how: str) -> None:
    """DataParallel's threads do not take over the number type of autocast."""
    parts = build()
    seen: list[tuple[torch.dtype, bool]] = []

    def note(*arguments: object) -> None:
        seen.append((torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")))

    parts.networks["net"].register_forward_hook(note)
    amp = CpuAsCuda("fp16")  # the CPU's own choice would be bf16, as CUDA's is fp16
    forward(parallelize(parts.model, parts.networks, how, amp), parts.first_batch(), amp)
    assert len(seen) >= 2
    assert set(seen) == {(torch.float16, True)}


@pytest.mark.parametrize("how", ["split", "super"])
@pytest.mark.usefixtures("two_gpus")
def test_the_losses_of_two_gpus_are_those_of_one(build: Build, how: str) -> None:
    parts = build(*needs("example.SEPARABLE"), "--precision=fp32", "--batch-size=5")
    batch, amp = parts.first_batch(), CpuAsCuda("fp32")
    expected = mean_losses([forward(parts.model, batch, amp)])
    divided = mean_losses([forward(parallelize(parts.model, parts.networks, how, amp), batch, amp)])
    assert divided == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("how", ["split", "super"])
def test_a_run_on_the_cpu_leaves_its_model_there_though_there_is_a_gpu(
    build: Build, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    parts = build()
    moved: list[object] = []
    for_split = importlib.import_module("torch.nn.parallel.data_parallel")
    monkeypatch.setattr(for_split, "_get_available_device_type", lambda: "cuda")
    monkeypatch.setattr(for_split, "_get_all_device_indices", lambda: [0])
    monkeypatch.setattr(for_split, "_check_balance", lambda indices: None)
    monkeypatch.setattr(nn.Module, "to", lambda self, *to, **more: moved.append(to))
    parallelize(parts.model, parts.networks, how, parts.amp)
    assert moved == []


# Devices and drivers.


def have_gpus(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """Lets PyTorch find GPUs of these names, one letter each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))

    def name_of(device: int | torch.device) -> str:
        index = device.index or 0 if isinstance(device, torch.device) else device
        return names[index]

    monkeypatch.setattr(torch.cuda, "get_device_name", name_of)


def test_a_driver_too_old_for_this_build_is_no_fault_of_a_run_on_the_cpu(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's library counts a GPU that PyTorch cannot use."""
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "_initialized", False)
    monkeypatch.setattr(torch.cuda, "_cached_device_count", None)
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: 1)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: 0, raising=False)
    assert torch.cuda.device_count() == 1
    assert train("run", "--device=auto", "--epochs=1") == 0
    assert "gpus: none\n" in Path("run/environment.txt").read_text()
    assert last(Path("run"))["environment"]["device"] == "cpu"


def test_the_gpu_that_was_named_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams, events and generators without a device are those of the current one."""
    have_gpus(monkeypatch, "AB")
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    devices.pick_device("cuda:1")
    assert current == [torch.device("cuda:1")]
    devices.pick_device("cuda")
    assert len(current) == 1
    with pytest.raises(errors.BadInput, match=r"cuda:0, cuda:1, cpu"):
        devices.pick_device("cuda:2")


@pytest.mark.parametrize(
    ("gpus", "device", "parallel", "used"),
    [
        ("A", "cuda", "auto", "A"),
        ("AB", "cuda", "auto", "A, B (split)"),
        ("AB", "cuda", "super", "A, B (super)"),
        ("AB", "cuda", "none", "A"),
        ("AB", "cuda:1", "auto", "B"),
        ("AB", "cpu", "auto", None),
    ],
)
def test_number_and_model_of_the_gpus_belong_to_what_a_run_depends_on(
    monkeypatch: pytest.MonkeyPatch, gpus: str, device: str, parallel: str, used: str | None
) -> None:
    have_gpus(monkeypatch, gpus)
    amp: Any = SimpleNamespace(device=torch.device(device), name="fp32")
    data: Any = SimpleNamespace(fingerprint=lambda: "")
    found = devices.environment(amp, data, parallel)
    assert found.get("GPUs") == used
    assert ("threads" in found) == (device == "cpu")  # those of the CPU change nothing on CUDA


def test_other_gpus_are_no_exact_continuation(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = devices.environment
    for options, gpus in ((["--epochs=1"], "A, A (split)"), (["--epochs=2", "--resume"], "A")):
        monkeypatch.setattr(
            devices, "environment", lambda *given, gpus=gpus: {**facts(*given), "GPUs": gpus}
        )
        capsys.readouterr()
        assert train("run", *options) == 0
    assert "GPUs A, A (split) is now A" in capsys.readouterr().err


# PyTorch's own words, which have to be recognised whichever thread they come from.
MESSAGES = {
    "reflect padding": (
        "reflection_pad2d_backward_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this "
        "operation, or you can use the 'warn_only=True' option, if that's acceptable.",
        2,
        ["--deterministic", "reflection_pad2d_backward_cuda", "zeros"],
    ),
    "no Triton": ("Cannot find a working triton installation. Either the", 2, ["--compile"]),
    "no C compiler": ("RuntimeError: Failed to find C compiler. Please", 2, ["--compile"]),
    "old GPU": (
        "Found Tesla P100 which is too old to be supported by the triton GPU compiler, which is",
        2,
        ["--compile", "GPU"],
    ),
    "no code for the GPU": (
        "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors",
        1,
        ["docs/build.md", "--device cpu"],
    ),
    "memory": ("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0", 1, ["--batch-size"]),
    "memory of a library": (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        1,
        ["--batch-size"],
    ),
}


@pytest.mark.parametrize("replica", [False, True])
@pytest.mark.parametrize("case", MESSAGES)
def test_what_cuda_cannot_do_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], case: str, replica: bool
) -> None:
    text, expected, words = MESSAGES[case]
    if replica:
        text = f"Caught RuntimeError in replica 1 on device 1.\nTraceback:\nRuntimeError: {text}"

    def fail() -> int:
        raise RuntimeError(text)

    assert status(fail, "train.py") == expected
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(word in line for word in words)


# Optimizers in fp16.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_first_step_that_overflows_leaves_no_trace(
    build: Build, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nor does memory that the optimizer allocates without setting it, here to huge numbers."""
    allocate = torch.empty_like
    monkeypatch.setattr(
        torch, "empty_like", lambda like, **more: allocate(like, **more).fill_(1e22)
    )
    parts = build("--precision=fp16", f"--optimizer={name}")
    parts.amp.scaler.load_state_dict({**parts.amp.scaler.state_dict(), "scale": 2.0**8})
    overflow(parts.optimizers, {0})
    weights = parameters_of(parts.optimizers.optimizers["net"])
    before = [weight.detach().clone() for weight in weights]
    batch = parts.first_batch()
    parts.step([batch], n_iter=0)
    assert all(map(torch.equal, weights, before))
    parts.step([batch], n_iter=1)
    changes = [
        (weight - old).abs().max().item() for weight, old in zip(weights, before, strict=True)
    ]
    assert 0 < max(changes) < 10


def test_momentum_that_begins_with_a_resume_begins_at_nothing(build: Build) -> None:
    without = build("--optimizer=sgd", "--momentum=0").optimizers
    resumed = build("--optimizer=sgd", "--momentum=0.9").optimizers
    resumed.load_state_dict(without.state_dict())
    for optimizer in resumed.optimizers.values():
        assert isinstance(optimizer, SGD)
        for weight in parameters_of(optimizer):
            assert not optimizer.state[weight]["momentum_buffer"].any()


# What makes the program wait for the device.


class Transfers(TorchDispatchMode):
    """Counts operations, and notes those that take something from the CPU to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.noted: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = {t.device.type for t in tree_leaves(result) if isinstance(t, Tensor)}
        self.count += not str(function).startswith(("profiler", "aten.detach"))  # no kernels
        if "cpu" in given and "meta" in given | made:
            self.noted.append(str(function))
        return result


class CpuAsMeta(Amp):
    """A precision for the device meta."""

    def __init__(self, precision: str) -> None:
        super().__init__(precision, CPU)
        self.device = META
        self.scaler = torch.amp.GradScaler("meta", enabled=self.dtype is torch.float16)

    def autocast(self) -> Any:
        return nullcontext()


def on_meta(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, Optimizers, Amp]:
    """A model with its optimizers on the device meta, with kernels of many tensors, as on CUDA."""
    optim = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(optim, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    clip = importlib.import_module("torch.nn.utils.clip_grad")
    monkeypatch.setattr(clip, "_has_foreach_support", lambda *arguments: True)
    # PyTorch has no stand-in of the fused SGD.
    monkeypatch.setattr(optimizers, "FUSED", parts.opt.optimizer != "sgd")
    amp = CpuAsMeta(parts.opt.precision)
    model = modules.to_device(Model(parts.opt, parts.train_set.info), META)
    return model, Optimizers(parts.opt, model.networks(), amp.scaler), amp


@pytest.mark.parametrize(
    ("precision", "name"), [*(("fp32", name) for name in OPTIMIZERS), ("fp16", "adamw")]
)
def test_a_step_neither_reads_from_the_device_nor_copies_to_it(
    build: Build, monkeypatch: pytest.MonkeyPatch, precision: str, name: str
) -> None:
    words = [f"--precision={precision}", f"--optimizer={name}", "--clip-grad=1"]
    parts = build(*words)
    model, stepping, amp = on_meta(parts, monkeypatch)
    batch = tuple(part.to(META) for part in parts.first_batch())
    for n_iter in range(3):
        with Transfers() as transfers:
            stepping.begin_step(n_iter, 0.01)
            changed = dataset.augment(parts.opt, parts.train_set.info, torch.Generator(), *batch)
            stepping.backward(forward(model, changed, amp))
            stepping.step()
        assert transfers.noted == []
        assert transfers.count > 50
    with pytest.raises(RuntimeError):  # the values that are watched are read by the check
        stepping.check()


def test_the_guard_against_values_that_are_not_finite_costs_few_calls(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call costs as much as a small layer, where the program is what the device waits for."""
    parts = build("--precision=fp32", "--optimizer=adamw", "--clip-grad=0")
    model, stepping, amp = on_meta(parts, monkeypatch)
    monkeypatch.setattr(stepping, "end_steps", [])  # an image pool has work of its own
    batch = tuple(part.to(META) for part in parts.first_batch())
    for n_iter in range(2):
        stepping.begin_step(n_iter, 0.01)
        stepping.backward(forward(model, batch, amp))
        with Transfers() as step:
            stepping.step()
    # The norm of all gradients (3), the optimizer (2 for each group).
    groups = sum(len(optimizer.param_groups) for optimizer in stepping.optimizers.values())
    assert step.count <= 3 * len(stepping.optimizers) + 2 * groups


class OnDevice(Dataset):
    """Images and labels that are kept on the device."""

    def __init__(self, size: int) -> None:
        self.pixels = torch.zeros(size, 4, 4, 3, dtype=torch.uint8, device=META)
        self.labels = torch.zeros(size, dtype=torch.int64, device=META)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images = self.pixels.index_select(0, indices.to(META)).permute(0, 3, 1, 2)
        return images, self.labels[indices]


def test_data_on_the_device_are_batched_there_without_help() -> None:
    sampler = TrainBatchSampler(30, batch_size=3, accumulate=1, epochs=2, seed=0)
    source = Loader(OnDevice(30), sampler, META, workers=2, prefetch=2)
    threads, seen = threading.active_count(), 0
    with Transfers() as transfers, source, source.batches() as batches:
        for images, labels in batches:
            assert images.device == labels.device == META
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert threading.active_count() == threads
            seen += 1
    assert seen == 20
    assert (source.workers, source.prefetch) == (0, 0)
    assert transfers.noted == ["aten._to_copy.default"] * 2  # the order of each epoch


class Gpu:
    """Copies, waits and hand-overs of memory, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.log: list[tuple] = []
        self.streams = 0
        self.current: Any = "computing"

    def stream(self, device: object) -> Any:
        self.streams += 1
        return f"copying {self.streams}"

    @contextmanager
    def using(self, stream: str) -> Iterator[None]:
        self.current = stream
        yield
        self.current = "computing"


class Part:
    """A part of a batch that notes what is done with it."""

    def __init__(self, gpu: Gpu, number: int) -> None:
        self.gpu, self.number = gpu, number

    def dim(self) -> int:
        return 1

    def to(self, device: object, non_blocking: bool = False) -> "Part":
        assert non_blocking
        self.gpu.log.append(("copy", self.number, self.gpu.current))
        return self

    def record_stream(self, stream: "Computing") -> None:
        self.gpu.log.append(("keep", self.number))


class Computing:
    """The stream in which the model computes."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    def wait_stream(self, stream: str) -> None:
        self.gpu.log.append(("wait", stream))


def test_the_next_batch_is_copied_beside_the_step_and_waited_for_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Stream", gpu.stream)
    monkeypatch.setattr(torch.cuda, "stream", gpu.using)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Computing(gpu))
    data: Any = [torch.tensor(0)] * 3
    source = Loader(data, EvalBatchSampler(3, 1), CUDA, workers=0, prefetch=0)
    for _ in range(2):  # two passes, with one stream
        gpu.log.clear()
        parts: Any = [(Part(gpu, number),) for number in range(3)]
        batches: Any = source._on_device(iter(parts))
        for number, (part,) in enumerate(batches):
            assert part.number == number
            gpu.log.append(("use", number))
        side = "copying 1"
        assert gpu.streams == 1
        expected: list[tuple] = [("copy", 0, side), ("wait", side), ("keep", 0)]
        for number, following in pairwise(range(3)):
            expected += [("copy", following, side), ("use", number)]
            expected += [("wait", side), ("keep", following)]
        assert gpu.log == [*expected, ("use", 2)]


def test_augmented_images_have_the_order_in_memory_of_their_device(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On MPS the backward pass of batch norm was wrong with any other."""
    assert devices.memory_format(torch.device("mps")) == torch.contiguous_format
    monkeypatch.setattr(loader, "memory_format", lambda device: torch.contiguous_format)
    parts = build("--flip")
    seen: list[bool] = []
    first = next(part for part in parts.networks["net"].modules() if isinstance(part, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    forward(parts.model, parts.augmented(parts.first_batch()), parts.amp)
    assert seen
    assert all(seen)


# The meter.


class Stamps:
    """The time of program and device, which tests turn; the device has got as far as `done`."""

    def __init__(self) -> None:
        self.now, self.done = 100.0, float("inf")

    def event(self, enable_timing: bool) -> "Event":
        assert enable_timing
        return Event(self)


class Event:
    """A stand-in for torch.cuda.Event; the device stamps it when the program asks for that."""

    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps

    def record(self) -> None:
        self.at = self.stamps.now

    def query(self) -> bool:
        return self.at <= self.stamps.done

    def elapsed_time(self, end: "Event") -> float:
        assert self.query()
        assert end.query()
        return (end.at - self.at) * 1000


@pytest.fixture
def stamps(monkeypatch: pytest.MonkeyPatch) -> Stamps:
    stamps = Stamps()
    monkeypatch.setattr(time, "perf_counter", lambda: stamps.now)
    monkeypatch.setattr(torch.cuda, "Event", stamps.event)
    return stamps


def compute(meter: Meter, stamps: Stamps, times: Iterable[float]) -> None:
    """A step, whose micro-batches and update take the device so many seconds."""
    for seconds in times:
        with meter.computing:
            stamps.now += seconds
    meter.count_step()


@pytest.mark.parametrize("begin", [Meter.restart, Meter.rates])
def test_steps_before_a_new_stretch_count_no_more(stamps: Stamps, begin: Any) -> None:
    meter = Meter(CUDA, images=4)
    compute(meter, stamps, [1.0])
    begin(meter)
    compute(meter, stamps, [1.0])
    stamps.now += 1
    rates = meter.rates()
    assert rates.efficiency == pytest.approx(0.5)
    assert rates.images_per_second == pytest.approx(2.0)


def test_all_blocks_of_a_step_count(stamps: Stamps) -> None:
    meter = Meter(CUDA, images=4)
    for _ in range(2):
        compute(meter, stamps, [1.0, 1.0, 0.5])
        stamps.now += 2.5
    assert meter.rates().efficiency == pytest.approx(0.5)


def test_the_meter_waits_for_no_step_and_counts_it_once_it_is_done(stamps: Stamps) -> None:
    meter = Meter(CUDA, images=4)
    stamps.done = stamps.now + 1
    compute(meter, stamps, [1.0])
    compute(meter, stamps, [1.0])
    assert meter.rates().efficiency == pytest.approx(0.5)
    stamps.done = float("inf")
    stamps.now += 1
    assert meter.rates().efficiency == pytest.approx(1.0)


# With a GPU.

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (CUDA)")
needs_two = pytest.mark.skipif(devices.gpu_count() < 2, reason="needs two GPUs (CUDA)")
ONE = "--device=cuda:0"
EXACT = [ONE, "--deterministic", "--epochs=4", "--save-every=5"]


@needs_gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_trains_with_every_optimizer(
    train: Train, precision: str, name: str
) -> None:
    run = Path("run")
    how = [f"--precision={precision}", f"--optimizer={name}", "--lr=0.001", "--log-every=1"]
    assert train(run, ONE, *how) == 0
    state = last(run)
    assert state["environment"]["device"] == "cuda"
    assert precision in ("auto", state["environment"]["precision"])
    assert all(value.isfinite().all() for value in tensors(state).values())
    rates = [point["values"] for point in points(run) if point["split"] == "train"]
    assert all(0 <= values["efficiency"] <= 1 for values in rates)
    assert max(values["efficiency"] for values in rates) > 0


@needs_gpu
@pytest.mark.parametrize("name", [ONE, "--device=cuda"])
def test_every_name_of_the_gpu_trains(train: Train, name: str) -> None:
    assert train("run", name) == 0


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("how", [["--cache"], ["--no-cache", "--workers=2"]], ids=" ".join)
def test_no_step_waits_for_the_device(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, how: list[str]
) -> None:
    """An epoch of the real loop; PyTorch raises an error where one of 40 steps would wait."""
    watched = range(5, 45)

    class Watched(Optimizers):
        def begin_step(self, n_iter: int, lr: float, head_only: bool = False) -> None:
            torch.cuda.set_sync_debug_mode("error" if n_iter in watched else "default")
            super().begin_step(n_iter, lr, head_only)

    monkeypatch.setattr(program, "Optimizers", Watched)
    example.make_data(tmp_path / "more", train=80)  # at least 47 steps of 4 samples
    words = [f"--data={tmp_path / 'more'}", "--epochs=1", f"--precision={precision}", *how]
    often = ["--log-every=1000", "--save-every=1000", "--clip-grad=1"]
    often += ["--ema=0.9"]
    try:
        assert train("run", ONE, *words, *often) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert last(Path("run"))["n_iter"] > max(watched) + 1


@needs_gpu
def test_the_same_bits_with_a_cache_without_and_after_a_kill(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("cached", *EXACT, "--cache") == 0
    assert train("decoded", *EXACT, "--no-cache", "--workers=2") == 0
    assert same_weights(Path("cached"), Path("decoded"))
    with monkeypatch.context() as patch:
        die_at_step(patch, 7)
        assert train("killed", *EXACT, "--cache") == 9
    assert last(Path("killed"))["n_iter"] < 7
    assert resume(Path("killed"), "--no-cache") == 0
    assert same_weights(Path("killed"), Path("cached"))


@needs_gpu
def test_data_kept_on_the_gpu_give_the_same_bits_as_from_the_host(
    train: Train,
    build: Build,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = build(ONE, "--cache")
    if not hasattr(parts.train_set, "batch"):
        pytest.skip("samples of this task are made one by one")
    assert parts.train_loader.on_device
    assert {part.device.type for part in parts.first_batch()} == {"cuda"}
    capsys.readouterr()
    assert train("gpu", *EXACT, "--cache") == 0
    assert "are kept on cuda" in capsys.readouterr().out
    monkeypatch.setattr(cache, "_move_if_few", lambda *arguments: None)
    assert train("host", *EXACT, "--cache") == 0
    assert "are kept on cuda" not in capsys.readouterr().out
    assert same_weights(Path("gpu"), Path("host"))


@needs_gpu
def test_a_run_goes_from_the_cpu_to_the_gpu_and_back(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("run")
    assert train(run, "--epochs=1") == 0
    for epochs, name, before, now in ((2, ONE, "cpu", "cuda"), (3, "--device=cpu", "cuda", "cpu")):
        capsys.readouterr()
        assert resume(run, name, f"--epochs={epochs}") == 0
        assert f"device {before} is now {now}" in capsys.readouterr().err
        state = last(run)
        assert state["epoch"] == epochs
        assert all(value.isfinite().all() for value in tensors(state).values())


@needs_gpu
def test_too_little_memory_is_told_in_one_line(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        assert train("run", ONE, "--width=256") == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "out of memory" in line


@needs_two
@pytest.mark.parametrize("how", ["split", "super"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_two_gpus_compute_in_the_precision_that_was_chosen(
    build: Build, precision: str, how: str
) -> None:
    parts = build("--device=cuda", f"--precision={precision}", f"--parallel={how}")
    seen: set[tuple[int, torch.dtype]] = set()
    for part in parts.networks["net"].modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda *a: seen.add((a[2].get_device(), a[2].dtype)))
    batch = parts.augmented(parts.first_batch())
    parts.step([batch])
    assert {dtype for _, dtype in seen} == {DTYPES[precision]}
    assert len({index for index, _ in seen}) > 1


@needs_two
@pytest.mark.parametrize("how", ["split", "super"])
def test_two_gpus_give_the_losses_and_the_gradient_of_one(build: Build, how: str) -> None:
    words = ["--device=cuda", "--precision=fp32", *needs("example.SEPARABLE")]
    one, several = build(*words, "--parallel=none"), build(*words, f"--parallel={how}")
    batch = one.first_batch()
    expected, losses = (mean_losses(parts.step([batch])) for parts in (one, several))
    assert losses == pytest.approx(expected, rel=1e-3)
    ours, theirs = one.gradients(), several.gradients()
    for name, gradient in ours.items():
        other = next(value for key, value in theirs.items() if _bare(key) == _bare(name))
        assert torch.allclose(other, gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())


def _bare(name: str) -> str:
    return name.replace("module.", "")


@needs_two
@pytest.mark.parametrize("how", ["split", "super"])
def test_two_gpus_train_and_their_number_is_told(
    train: Train, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    run = Path("run")
    assert train(run, "--device=cuda", f"--parallel={how}", "--epochs=1") == 0
    assert not any("module." in name for name in tensors(last(run)))
    capsys.readouterr()
    assert resume(run, "--device=cuda", "--parallel=none", "--epochs=2") == 0
    assert "GPUs" in capsys.readouterr().err
