"""In which numbers a network computes: chosen by the device, exact if that is asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import Build, Train
from faults import overflow, watch_optimizers
from marks import slow_after
from programs import at_step, last, resume, same_weights, tensors, train_refuses
from torch import Tensor, nn

from engine import devices
from engine.devices import DTYPES, Amp, best_precision
from engine.errors import BadInput
from engine.evaluation import Losses
from engine.modules import check_bf16_gradients
from engine.optimizers import Optimizers, parameters_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """What a precision sets for all of PyTorch is as before afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


BF16 = "flags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16\n"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose instructions PyTorch may use."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("isa", "older", "capability", "best"),
    [
        (None, None, "AVX512", "bf16"),
        (None, None, "AVX2", "fp32"),
        (None, None, "DEFAULT", "fp32"),
        ("AVX2", None, "AVX512", "fp32"),
        ("avx512_core_vnni", None, "AVX512", "fp32"),
        ("AVX512_CORE_BF16", None, "AVX512", "bf16"),
        ("AVX512_CORE_AMX", None, "AVX512", "bf16"),
        ("AVX10_1_512", None, "AVX512", "bf16"),
        ("DEFAULT", "AVX2", "AVX512", "bf16"),
        (None, "AVX2", "AVX512", "fp32"),
        ("all", None, "AVX512", "bf16"),
    ],
)
def test_bf16_is_taken_if_pytorch_may_use_its_instructions(
    monkeypatch: pytest.MonkeyPatch,
    isa: str | None,
    older: str | None,
    capability: str,
    best: str,
) -> None:
    Path("cpuinfo").write_text(BF16)
    monkeypatch.setattr(devices, "CPU_INFO", Path("cpuinfo"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for name, value in (("ONEDNN_MAX_CPU_ISA", isa), ("DNNL_MAX_CPU_ISA", older)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert best_precision(CPU) == best


@pytest.mark.parametrize(
    ("cpuinfo", "best"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\n", "bf16"),
        ("flags\t\t: fpu amx_bf16\n", "bf16"),
        ("Features\t: fp asimd bf16 i8mm\n", "bf16"),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", "fp32"),
        ("model name\t: a bf16-less one, avx512_bf16x\nflags\t\t: fpu\n", "fp32"),
        (None, "fp32"),
    ],
)
def test_a_cpu_computes_in_what_it_has_instructions_for(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, best: str
) -> None:
    file = Path("cpuinfo")
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(devices, "CPU_INFO", file)
    assert best_precision(CPU) == best
    assert Amp("auto", CPU).name == best


@pytest.mark.parametrize(
    ("capability", "hip", "best"),
    [
        ((7, 0), None, "fp16"),
        ((7, 5), None, "fp16"),
        ((8, 0), None, "bf16"),
        ((9, 0), None, "bf16"),
        ((12, 0), None, "bf16"),
        ((7, 0), "6.2", "bf16"),
    ],
)
def test_a_gpu_computes_in_what_it_is_made_for(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, best: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert best_precision(CUDA) == best


def test_apples_gpus_compute_in_fp32() -> None:
    assert best_precision(torch.device("mps")) == "fp32"
    for wanted in DTYPES:
        with pytest.raises(BadInput, match=f"--precision {wanted}"):
            Amp(wanted, torch.device("mps"))


def test_fp32_that_was_asked_for_is_in_full() -> None:
    for wanted, matmul, tf32 in (("fp32", "highest", False), ("auto", "high", True)):
        chosen = Amp(wanted, CPU)
        assert torch.get_float32_matmul_precision() == matmul
        assert torch.backends.cudnn.allow_tf32 is tf32
    chosen = Amp("fp32", CPU)
    assert (chosen.name, chosen.dtype) == ("fp32", None)
    with chosen.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("name", ["fp32", *DTYPES])
def test_networks_compute_in_short_numbers_and_weights_and_losses_stay_long(
    build: Build, name: str
) -> None:
    parts = build(f"--precision={name}")
    seen: set[torch.dtype] = set()

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen.add(output.dtype)

    for network in parts.networks.values():
        for part in network.modules():
            part.register_forward_hook(note)
    losses = parts.step([parts.first_batch()])
    assert DTYPES.get(name, torch.float32) in seen
    assert name != "fp32" or seen == {torch.float32}
    for group in losses[0].values():
        assert {loss.dtype for loss in group.values()} == {torch.float32}
    weights = [w for net in parts.networks.values() for w in net.state_dict().values()]
    assert {w.dtype for w in weights if w.is_floating_point()} == {torch.float32}
    assert parts.amp.scaler.is_enabled() == (name == "fp16")


@pytest.mark.parametrize("name", ["fp32", *DTYPES])
def test_every_precision_trains(train: Train, name: str) -> None:
    assert train("run", f"--precision={name}", "--epochs=4", "--log-every=1", "--save-every=5") == 0
    state = last(Path("run"))
    assert state["environment"]["precision"] == name
    assert bool(state["scaler"]) == (name == "fp16")
    assert all(value.isfinite().all() for value in tensors(state).values())


def set_scale(optimizers: Optimizers, scale: float = 2.0**8) -> None:
    """Sets the scale of fp16, which begins so high that some networks halve it in a few steps.

    Other precisions have none, and stay as they are.
    """
    scaler = optimizers.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": scale})


@pytest.mark.parametrize("name", slow_after(1, ["fp32", *DTYPES]))
def test_a_killed_run_of_any_precision_ends_with_the_same_bits(
    train: Train, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In fp16 with a scale that has changed before the kill, and is the newest checkpoint's."""
    undisturbed, killed = Path("undisturbed"), Path("killed")
    options = [f"--precision={name}", "--save-every=4", "--epochs=3"]

    def prepare(made: Optimizers) -> None:
        set_scale(made)
        overflow(made, steps={2, 3} if name == "fp16" else ())

    def die(losses: Losses) -> None:  # one step after the newest checkpoint
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        watch_optimizers(patch, prepare)
        assert train(undisturbed, *options) == 0
        at_step(patch, 9, die)
        assert train(killed, *options, "--workers=1", "--no-cache") == 9
    assert last(killed)["n_iter"] == 8
    assert resume(killed, "--workers=0", "--cache") == 0
    assert same_weights(killed, undisturbed)
    assert last(killed)["scaler"] == last(undisturbed)["scaler"]
    if name == "fp16":
        assert last(killed)["scaler"]["scale"] == 2.0**6


def test_a_step_that_overflows_in_fp16_is_left_out(build: Build) -> None:
    parts = build("--precision=fp16")
    set_scale(parts.optimizers)
    overflow(parts.optimizers, steps={0})
    batch = parts.first_batch()
    weights = parameters_of(parts.optimizers.optimizers["net"])
    before = [p.detach().clone() for p in weights]
    parts.step([batch], n_iter=0)
    assert all(map(torch.equal, weights, before))
    assert parts.amp.scaler.get_scale() == 2.0**7
    parts.step([batch], n_iter=1)
    assert not any(map(torch.equal, weights, before))
    assert parts.amp.scaler.get_scale() == 2.0**7


def test_gradients_that_overflow_for_ever_end_the_run_in_one_line(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = watch_optimizers(monkeypatch, lambda made: overflow(made, range(10_000)))
    assert train("run", "--precision=fp16", "--epochs=90") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not finite" in error
    assert made[0].n_iter < 60


def test_gradients_are_clipped_as_they_are_and_not_as_they_are_scaled(build: Build) -> None:
    for name in ("fp32", "fp16"):
        parts = build(f"--precision={name}", "--clip-grad=0.01")
        set_scale(parts.optimizers)
        parts.step([parts.first_batch()])
        for optimizer in parts.optimizers.optimizers.values():
            gradients = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
            assert nn.utils.get_total_norm(gradients).item() == pytest.approx(0.01, rel=1e-2)


@pytest.mark.slow
def test_another_precision_is_no_exact_continuation(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("run")
    assert train(run, "--precision=fp16", "--epochs=1") == 0
    capsys.readouterr()
    assert resume(run, "--precision=fp32", "--epochs=2") == 0
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "precision fp16 is now fp32" in warning


@pytest.mark.parametrize("wanted", ["int8", "FP16", ""])
def test_other_numbers_are_refused(
    small: list[str], capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    words = [*small, "--run-dir=run", f"--precision={wanted}"]
    assert "--precision" in train_refuses(capsys, *words)


class Narrowing(nn.Module):
    """A convolution with padding and a stride, on images of a given width."""

    def __init__(self, conv: nn.Module, width: int) -> None:
        super().__init__()
        self.conv, self.width = conv, width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images[..., : self.width])


@pytest.mark.parametrize(
    ("conv", "width", "fine"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), 1, False),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), 2, True),
        (nn.Conv2d(3, 4, 3, stride=4, padding=1), 3, False),
        (nn.Conv2d(3, 4, 1, stride=2), 1, True),
        (nn.Conv2d(3, 4, 3, padding="same"), 1, True),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), 1, False),
        (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), 2, True),
    ],
)
def test_bf16_on_the_cpu_is_refused_where_it_computes_no_gradient(
    conv: nn.Module, width: int, fine: bool
) -> None:
    """Of padded convolutions whose input is less wide than their stride (PyTorch 2.14)."""
    model, sample, cpu = Narrowing(conv, width), (torch.rand(3, 8, 8),), torch.device("cpu")
    check_bf16_gradients(model, sample, Amp("fp32", cpu))
    if fine:
        check_bf16_gradients(model, sample, Amp("bf16", cpu))
        return
    with pytest.raises(BadInput, match=r"conv .* --precision fp32"):
        check_bf16_gradients(model, sample, Amp("bf16", cpu))
    assert not conv._forward_hooks and model.training
