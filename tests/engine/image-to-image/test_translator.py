"""The finished model: the losses of each network, alone and on several devices; its metrics."""

import shutil
from pathlib import Path
from typing import Any

import example
import pytest
import torch
from conftest import Build, Train
from needs import needs
from ours import save_vgg19
from parts import Parts
from programs import (
    PATIENCE,
    last,
    points,
    resume,
    same_weights,
    start,
    tensors,
    wait_for_step,
)
from torch import Tensor, nn

import options
from engine import modules
from engine.devices import Amp
from engine.evaluation import Losses
from engine.modules import SuperNetwork, parallelize
from engine.optimizers import parameters_of
from engine.report.grids import GAP, captioned_grid
from engine.state import TrainState
from losses import loss_weights

Translator = needs("model.Translator")
ALL = "--losses=l1,adversarial,features"


def translator(*words: str) -> Any:
    torch.manual_seed(0)
    return Translator(options.parse([*example.SMALL, *words]), {})


def separable(*words: str) -> Any:
    """A model without anything random, and without a norm over the batch."""
    return translator(*needs("example.SEPARABLE"), *words)


def batch(count: int = 5, size: int = 16) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shape = (2, count, 3, size, size)
    inputs, targets = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    return inputs, targets


def gradients(model: Any, losses: Losses) -> dict[str, Tensor]:
    """What train.py makes of losses: each goes backward into its own network only."""
    for name, group in losses.items():
        own = list(model.networks()[name].parameters())
        torch.stack(list(group.values())).sum().backward(inputs=own)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    return found


# Losses.


def test_losses_come_by_name_and_weighted() -> None:
    one = separable("--losses=l1:1,adversarial:1,features:1")
    two = separable("--losses=features:3,l1:2,adversarial:5")
    plain, weighted = one(*batch()), two(*batch())
    assert list(plain) == ["net", "discriminator"]
    assert list(weighted["net"]) == ["features", "l1", "adversarial"]
    assert list(plain["discriminator"]) == ["discriminator"]
    for name, weight in {"l1": 2, "adversarial": 5, "features": 3}.items():
        assert weighted["net"][name].item() == pytest.approx(weight * plain["net"][name].item())
    inputs, targets = (one.normalize(images) for images in batch())
    wanted = (one.net(inputs) - targets).abs().mean().item()
    assert plain["net"]["l1"].item() == pytest.approx(wanted)


def test_what_is_not_used_is_not_there() -> None:
    model = translator("--losses=l1")
    assert list(model.networks()) == ["net"]
    assert list(model(*batch())) == ["net"]
    assert list(translator(ALL).networks()) == ["net", "discriminator", "pool"]


def test_each_loss_is_lowered_by_its_own_network_alone() -> None:
    model = separable(ALL)
    alone: dict[str, Tensor] = {}
    for name in ("net", "discriminator"):  # each by itself: what the other does is not felt
        alone |= gradients(model, {name: model(*batch())[name]})
    together = gradients(model, model(*batch()))
    assert together.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(value.allclose(alone[name]) for name, value in together.items())


def test_the_generator_is_discriminated_before_the_discriminator_has_learned(
    build: Build,
) -> None:
    """Both networks step from the weights before the step."""
    words = [ALL, *needs("example.SEPARABLE"), "--precision=fp32", "--optimizer=sgd"]
    parts = build(*words, "--momentum=0", "--warmup=0", "--clip-grad=0", "--lr=0.01")
    model, seen = parts.model, parts.first_batch()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wanted = gradients(model, model(*seen))
    parts.step([seen])
    assert {name.partition(".")[0] for name in wanted} == {"net", "discriminator"}
    for name, parameter in model.named_parameters():
        assert parameter.allclose(before[name] - 0.01 * wanted[name], atol=1e-6)


def test_the_vgg_of_the_perceptual_loss_is_neither_trained_nor_saved(build: Build) -> None:
    file = save_vgg19(Path("vgg.pt").resolve())
    parts = build("--losses=l1,perceptual,adversarial", f"--vgg-weights={file}")
    assert isinstance(parts.model.criteria["perceptual"].features, needs("networks.Vgg19"))
    losses = parts.step([parts.first_batch()])
    assert losses[0]["net"]["perceptual"].item() > 0
    trained = {id(p) for o in parts.optimizers.optimizers.values() for p in parameters_of(o)}
    vgg = list(parts.model.criteria.parameters())
    assert vgg and not trained & {id(p) for p in vgg}
    assert all(p.grad is None for p in vgg)
    state = TrainState(parts.opt, parts.model, parts.optimizers, 1, {}).state_dict()
    saved = {tensor.data_ptr() for tensor in tensors(state).values()}
    assert not saved & {p.data_ptr() for p in vgg}
    assert not [name for name in tensors(state) if "slice" in name]
    torch.save(state, "checkpoint.pt")
    file.unlink()  # a checkpoint is used without it
    Translator.from_checkpoint("checkpoint.pt")


@pytest.mark.slow
def test_the_order_of_hashes_changes_no_bit(
    small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python orders sets of names anew in each process; gradients must not be added in that order.

    With two losses the sum is the same in either order, not so with more.
    """
    file = save_vgg19(Path("vgg.pt").resolve())
    words = ["--losses=l1,perceptual,adversarial,features", f"--vgg-weights={file}"]
    words += ["--epochs=1", "--crops=1"]  # a single step
    processes = []
    for seed in ("1", "2", "3"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        processes += [start("train.py", *small, *words, f"--run-dir={seed}")]
    for process in processes:
        _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
    for seed in ("2", "3"):
        assert same_weights(Path(seed), Path("1"))


# Several devices: copies on the CPU stand in for GPUs.


class Shares(nn.Module):
    """What nn.DataParallel does with a batch, on one device: shares of it, and results joined."""

    def __init__(self, module: nn.Module, shares: int) -> None:
        super().__init__()
        self.module, self.shares = module, shares

    def forward(self, *tensors: Tensor) -> object:
        parts = zip(*(tensor.chunk(self.shares) for tensor in tensors), strict=True)
        return _join([self.module(*part) for part in parts])


def _join(results: list) -> object:
    first = results[0]
    if isinstance(first, Tensor):
        return torch.cat(results)
    if isinstance(first, dict):
        return {key: _join([result[key] for result in results]) for key in first}
    return [_join([result[i] for result in results]) for i in range(len(first))]


@pytest.mark.parametrize("shares", [1, 2, 3, 4])
@pytest.mark.parametrize("norm", ["none", "instance"])
@pytest.mark.parametrize("adversarial", ["lsgan", "hinge"])
def test_single_split_and_super_give_equal_losses_and_gradients(
    monkeypatch: pytest.MonkeyPatch, shares: int, norm: str, adversarial: str
) -> None:
    """Five samples: the last share is smaller. Tolerance: 1e-4 of the largest gradient."""
    monkeypatch.setattr(modules, "_data_parallel", lambda module, amp: Shares(module, shares))
    words = [ALL, f"--adversarial={adversarial}"]
    if norm != "none":
        needs("--norm")
        words += [f"--norm={norm}"]
    cpu, results = torch.device("cpu"), {}
    for how in ("none", "split", "super"):
        model = separable(*words).double()
        bare = model.networks()
        compute: Any = parallelize(model, bare, how, Amp("fp32", cpu))
        assert isinstance(compute, SuperNetwork) == (how == "super")
        assert isinstance(model.net, Shares) == (how == "split")
        losses = compute(*batch())
        for name, group in losses.items():
            own = list(bare[name].parameters())
            torch.stack(list(group.values())).sum().backward(inputs=own)
        weights = [p for network in bare.values() for p in network.parameters()]
        found = [p.grad for p in weights if p.grad is not None]
        assert len(found) == len(weights)
        results[how] = (losses, found)
    expected, wanted = results["none"]
    for how in ("split", "super"):
        losses, found = results[how]
        assert losses.keys() == expected.keys()
        for name, group in expected.items():
            for loss, value in group.items():
                assert losses[name][loss].item() == pytest.approx(value.item(), rel=1e-5)
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.allclose(theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_every_way_gives_equal_files(train: Train) -> None:
    words = needs("example.SEPARABLE")
    for how in ("none", "split", "super"):
        assert train(how, f"--parallel={how}", *words) == 0
    assert same_weights(Path("none"), Path("split"))
    one, two = tensors(last(Path("none"))), tensors(last(Path("super")))
    assert one.keys() == two.keys(), "no prefix of a wrapper"
    assert all(one[name].allclose(two[name], atol=1e-5) for name in one)


def test_a_pool_is_never_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "_data_parallel", lambda module, amp: Shares(module, 2))
    model = translator(ALL, "--pool=3")
    pool = model.pool
    parallelize(model, model.networks(), "split", Amp("fp32", torch.device("cpu")))
    assert model.pool is pool
    assert isinstance(model.discriminator, Shares)


# The run.


@pytest.mark.slow
def test_a_kill_in_mid_epoch_changes_no_bit_of_networks_optimizers_and_pool(
    train: Train, small: list[str]
) -> None:
    long = ["--epochs=12", "--batch-size=2", "--save-every=5", "--pool=3", ALL]
    assert train("whole", *long) == 0
    process = start("train.py", *small, *long, "--run-dir=run", "--workers=1")
    wait_for_step(process, Path("run"), 25)
    process.kill()
    process.communicate()
    assert process.returncode == -9, "the run was over before it could be killed"
    found = tensors(last(Path("run")))
    assert found["/pool/images"].abs().sum(dim=(1, 2, 3)).gt(0).all(), "the pool is full"
    assert resume(Path("run"), "--workers=0") == 0
    assert same_weights(Path("run"), Path("whole"))
    names = tensors(last(Path("run")))
    for part in ("/net/", "/discriminator/", "/pool/", "/optim/net/", "/optim/discriminator/"):
        assert [name for name in names if name.startswith(part)]


def test_a_pool_takes_part(train: Train) -> None:
    assert train("with", ALL, "--pool=3") == 0
    assert train("without", ALL, "--pool=0") == 0
    with_pool, without = (last(Path(run)) for run in ("with", "without"))
    first = next(iter(with_pool["discriminator"]))
    assert not with_pool["discriminator"][first].equal(without["discriminator"][first])


def test_the_curves_show_which_network_wins(finished: Path) -> None:
    weights = loss_weights(options.parse(example.SMALL))
    if "adversarial" not in weights:
        pytest.skip("example.SMALL has no adversarial loss")
    lines = points(finished)
    trained = next(p["values"] for p in lines if p["split"] == "train")
    validated = next(p["values"] for p in lines if p["split"] == "val")
    assert weights.keys() | {"discriminator"} <= trained.keys()
    assert {"l1", "psnr", "score_fake", "score_real"} == validated.keys()


def test_a_resume_with_another_pool_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "pool" not in last(finished):
        pytest.skip("example.SMALL has no adversarial loss")
    run = Path(shutil.copytree(finished, tmp_path / "copy"))
    assert resume(run, "--pool=4") == 2
    assert "another network" in capsys.readouterr().err


# Outputs and metrics.


def test_an_image_grid_has_input_output_and_target_in_a_row() -> None:
    model, (inputs, targets) = translator().train(), batch(8)
    grid = model.image_grid(inputs, targets)
    outputs = model.eval().translate(inputs)
    rows = [images[i] for i in range(6) for images in (inputs, outputs, targets)]
    captions = ["input", "output", "target"] * 6
    assert grid.equal(captioned_grid(torch.stack(rows), captions, columns=3))
    height, width = (grid.shape[1] - GAP) // 6, (grid.shape[2] - GAP) // 3
    for row in range(6):
        for column, images in enumerate((inputs, outputs, targets)):
            top, left = GAP + height * row, GAP + width * column
            shown = grid[:, top : top + width - GAP : 8, left : left + width - GAP : 8]
            assert shown.equal(images[row])  # each pixel is shown as 8 x 8


@pytest.mark.parametrize("training", [True, False])
def test_an_image_grid_changes_nothing(training: bool) -> None:
    """Nor does it take outputs of training mode, whose dropout would draw random numbers."""
    model, (inputs, targets) = translator(ALL), batch(8)
    model.net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), model.net)
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert [name for name in before if name.endswith("running_mean")]
    modes = [part.training for part in model.modules()]
    torch.manual_seed(5)
    random, images = torch.get_rng_state(), (inputs.clone(), targets.clone())
    grid = model.image_grid(inputs, targets)
    assert torch.get_rng_state().equal(random)
    assert [part.training for part in model.modules()] == modes
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert inputs.equal(images[0]) and targets.equal(images[1])
    assert not any(p.grad is not None for p in model.parameters())
    assert model.image_grid(inputs, targets).equal(grid)
    assert model.eval().image_grid(inputs, targets).equal(grid)


def test_images_are_translated_in_the_mode_of_the_model() -> None:
    model, (inputs, _) = translator("--losses=l1"), batch()
    model.net = nn.Sequential(nn.Dropout(0.5), model.net)
    outputs = []
    for training in (True, False):
        model.train(training)
        outputs += [model.translate(inputs), model.translate(inputs)]
        assert model.training == model.net.training == training
    assert not outputs[0].equal(outputs[1])
    assert outputs[2].equal(outputs[3])


@pytest.mark.parametrize("words", [[], ["--n-downsampling=2"]], ids=" ".join)
def test_images_of_any_size_are_translated(words: list[str]) -> None:
    for word in words:
        needs(word.partition("=")[0])
    model = translator("--losses=l1", *words).eval()
    for height, width in ((16, 16), (17, 31), (5, 50)):
        images = torch.randint(256, (2, 3, height, width), dtype=torch.uint8)
        outputs = model.translate(images)
        assert (outputs.dtype, outputs.shape) == (torch.uint8, images.shape)


def test_outputs_are_rounded_and_limited() -> None:
    model = translator("--losses=l1").eval()
    every = torch.arange(256, dtype=torch.uint8).expand(1, 3, 16, 256)
    model.net = nn.Identity()  # every value comes back as it was
    assert model.translate(every).equal(every)
    model.net = nn.Conv2d(3, 3, 1, groups=3)
    with torch.no_grad():
        model.net.weight.fill_(2)
        model.net.bias.zero_()
    doubled = ((every.float() - 127.5) * 2 + 127.5).clamp(0, 255)
    assert (model.translate(every).float() - doubled).abs().max() <= 0.5


def test_metrics_are_sums_over_the_images() -> None:
    model, (inputs, targets) = translator(ALL).eval(), batch()
    assert next(iter(Translator.monitors)) == "psnr"
    sums = model.compute_sums(inputs, targets)
    assert list(sums) == ["l1", "psnr", "score_fake", "score_real"]
    single = [model.compute_sums(inputs[i : i + 1], targets[i : i + 1]) for i in range(5)]
    for name, value in sums.items():
        assert value.shape == ()
        assert value.item() == pytest.approx(sum(s[name].item() for s in single), rel=1e-4)
    assert list(translator("--losses=l1").eval().compute_sums(inputs, targets)) == ["l1", "psnr"]


def test_scores_are_means_of_the_discriminator() -> None:
    model, (inputs, targets) = translator(ALL).eval(), batch()
    sums = model.compute_sums(inputs, targets)
    for name, images in (("score_fake", model.translate(inputs)), ("score_real", targets)):
        pairs = torch.cat([model.normalize(inputs), model.normalize(images)], dim=1)
        with torch.no_grad():
            scales = [maps[-1].mean() for maps in model.discriminator(pairs)]
        assert len(scales) > 1 or "--d-scales=1" in example.SMALL
        assert sums[name].item() == pytest.approx(5 * torch.stack(scales).mean().item(), rel=1e-4)


# Checkpoints.


def test_a_checkpoint_becomes_the_model_again(finished: Path) -> None:
    path = finished / "checkpoints" / "last.pt"
    model, opt = Translator.from_checkpoint(str(path))
    assert not model.training
    state = torch.load(path, weights_only=True)
    assert state["model"] == "Translator"
    assert state["args"].items() <= vars(opt).items()
    assert opt.losses == options.parse(example.SMALL).losses
    assert model.net.state_dict().keys() == state["net"].keys()
    assert all(value.equal(state["net"][name]) for name, value in model.net.state_dict().items())
    assert list(model.networks()) == ["net"], "the generator alone is enough to translate"


def test_the_model_keeps_the_info_of_its_data(build: Build) -> None:
    parts: Parts = build()
    assert parts.model.info is parts.train_set.info
