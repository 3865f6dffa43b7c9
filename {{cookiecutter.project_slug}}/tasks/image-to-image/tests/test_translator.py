"""The finished model: which losses lower what, alone and on several devices; what it measures."""

import shutil
from pathlib import Path

import example
import pytest
import torch
import torchvision
from conftest import Prepare, Train
from programs import last, points, resume, same_weights, start, tensors, wait_for_step
from torch import Tensor, nn

import options
from engine import parallel
from engine.evaluating import Losses
from engine.optimizing import trained_by
from engine.parallel import SuperNetwork, parallelize
from losses import LOSSES
from networks import Generator, Vgg19
from translator import Translator

ALL = "--losses=l1,adversarial,features"


def translator(*words: str) -> Translator:
    torch.manual_seed(0)
    return Translator(options.parse(["--flip", *example.SMALL, *words]), {})


def batch(count: int = 5, size: int = 16) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    shape = (2, count, 3, size, size)
    inputs, targets = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    return inputs, targets


def gradients(model: Translator, losses: Losses) -> dict[str, Tensor]:
    """What train.py makes of losses: each goes backward into its own network only."""
    for name, group in losses.items():
        own = list(model.networks()[name].parameters())
        torch.stack(list(group.values())).sum().backward(inputs=own)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    return found


def test_losses_come_by_name_and_weighted() -> None:
    one = translator("--losses=l1:1,adversarial:1,features:1", "--dropout=0", "--pool=0")
    two = translator("--losses=features:3,l1:2,adversarial:5", "--dropout=0", "--pool=0")
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
    assert list(translator().networks()) == ["net", "discriminator", "pool"]


def test_each_loss_is_lowered_by_its_own_network_alone() -> None:
    model = translator(ALL, "--dropout=0", "--pool=0")
    alone: dict[str, Tensor] = {}
    for name in ("net", "discriminator"):  # each by itself: what the other does is not felt
        alone |= gradients(model, {name: model(*batch())[name]})
    together = gradients(model, model(*batch()))
    assert together.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(value.allclose(alone[name]) for name, value in together.items())


def test_the_generator_is_judged_before_the_discriminator_has_learned(prepare: Prepare) -> None:
    """Both networks step from the weights before the step."""
    words = ["--dropout=0", "--pool=0", "--no-flip", "--precision=fp32"]
    training = prepare(
        ALL, *words, "--optimizer=sgd", "--momentum=0", "--warmup=0", "--clip-grad=0"
    )
    model = training.model
    with training.train_loader.batches() as batches:
        seen = next(batches)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wanted = gradients(model, model(*seen))
    training.step(iter([seen]))
    for name, parameter in model.named_parameters():
        assert parameter.allclose(before[name] - 0.01 * wanted[name], atol=1e-6)


def test_the_vgg_of_the_perceptual_loss_is_neither_trained_nor_saved(prepare: Prepare) -> None:
    weights = {k: torch.randn(v.shape) * 0.01 for k, v in _vgg_shapes().items()}
    torch.save(weights, "vgg.pt")
    words = ["--losses=l1,perceptual,adversarial", f"--vgg-weights={Path('vgg.pt').resolve()}"]
    training = prepare(*words)
    assert isinstance(training.model.criteria["perceptual"].features, Vgg19)
    with training.train_loader.batches() as batches:
        losses, _ = training.step(batches)
    assert losses[0]["net"]["perceptual"].item() > 0
    trained = {id(p) for o in training.optimizers.values() for p in trained_by(o)}
    vgg = list(training.model.criteria.parameters())
    assert vgg and not trained & {id(p) for p in vgg}
    assert all(p.grad is None for p in vgg)
    training.save()
    training.run.checkpoints.wait()
    assert not [name for name in tensors(last(training.run.path)) if "slice" in name]
    Path("vgg.pt").unlink()  # a checkpoint is used without it
    Translator.from_checkpoint(str(training.run.checkpoints.last))


def _vgg_shapes() -> dict[str, Tensor]:
    with torch.device("meta"):
        return torchvision.models.vgg19().features[:30].state_dict()


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
    monkeypatch.setattr(parallel, "_wrap", lambda module, device: Shares(module, shares))
    words = [ALL, f"--norm={norm}", f"--adversarial={adversarial}", "--dropout=0", "--pool=0"]
    cpu, results = torch.device("cpu"), {}
    for how in ("none", "split", "super"):
        model = translator(*words).double()
        bare = model.networks()
        compute = parallelize(model, bare, how, cpu)
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
    words = ["--pool=0", "--dropout=0"]
    for how in ("none", "split", "super"):
        assert train(how, f"--parallel={how}", *words) == 0
    assert same_weights(Path("none"), Path("split"))
    one, two = tensors(last(Path("none"))), tensors(last(Path("super")))
    assert one.keys() == two.keys(), "no prefix of a wrapper"
    assert all(one[name].allclose(two[name], atol=1e-5) for name in one)


def test_a_pool_is_never_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_wrap", lambda module, device: Shares(module, 2))
    model = translator()
    pool = model.pool
    parallelize(model, model.networks(), "split", torch.device("cpu"))
    assert model.pool is pool
    assert isinstance(model.discriminator, Shares)


# The run.


def test_a_kill_in_mid_epoch_changes_no_bit_of_networks_optimizers_and_pool(
    train: Train, small: list[str]
) -> None:
    long = ["--epochs=12", "--batch-size=2", "--save-every=5", "--pool=3", ALL]
    assert train("whole", *long) == 0
    process = start("train.py", *small, *long, "--run=run", "--workers=1")
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
    assert train("with", "--pool=3") == 0
    assert train("without", "--pool=0") == 0
    with_pool, without = (last(Path(run)) for run in ("with", "without"))
    first = next(iter(with_pool["discriminator"]))
    assert not with_pool["discriminator"][first].equal(without["discriminator"][first])


def test_the_curves_show_who_wins(finished: Path) -> None:
    lines = points(finished)
    trained = next(p["values"] for p in lines if p["split"] == "train")
    tested = next(p["values"] for p in lines if p["split"] == "test")
    assert {"l1", "adversarial", "discriminator"} <= trained.keys()
    assert {"l1", "psnr", "score_drawn", "score_real"} == tested.keys()


def test_sheets_are_shown_from_the_first_step_on(train: Train) -> None:
    assert train("run", "--picture-every=5") == 0
    sheets = sorted(path.name for path in Path("run/report").glob("*.png"))
    assert sheets == [f"batch-{n:09d}.png" for n in (1, 6, 11)]


def test_a_picture_has_input_output_and_target_in_a_row() -> None:
    model, (inputs, targets) = translator("--dropout=0.5").train(), batch(8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    picture = model.picture(inputs, targets)
    assert (picture.dtype, picture.shape) == (torch.uint8, (3, 6 * 18 + 2, 3 * 18 + 2))
    outputs = model.translate(inputs)
    for column, images in enumerate((inputs, outputs, targets)):
        left = 2 + 18 * column
        assert picture[:, 20:36, left : left + 16].equal(images[1])
    assert model.net.training and model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_images_are_drawn_of_any_size_and_rounded() -> None:
    model = translator("--losses=l1", "--downs=2").eval()
    for height, width in ((16, 16), (17, 31), (5, 50)):
        images = torch.randint(256, (2, 3, height, width), dtype=torch.uint8)
        drawn = model.translate(images)
        assert (drawn.dtype, drawn.shape) == (torch.uint8, images.shape)
    with torch.no_grad():  # a residual of nothing gives every value back as it was
        assert isinstance(model.net, Generator)
        for parameter in model.net.layers[-1].parameters():
            parameter.zero_()
    every = torch.arange(256, dtype=torch.uint8).expand(1, 3, 16, 256)
    assert model.translate(every).equal(every)


def test_a_checkpoint_becomes_the_model_again(finished: Path, tmp_path: Path) -> None:
    path = finished / "checkpoints" / "last.pt"
    model, opt = Translator.from_checkpoint(str(path))
    assert not model.training
    assert opt.losses == "l1:10,adversarial"
    state = torch.load(path, weights_only=True)["net"]
    assert all(value.equal(state[name]) for name, value in model.net.state_dict().items())
    assert list(model.networks()) == ["net"], "to draw takes the generator alone"


def test_a_resume_with_other_losses_is_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "copy"))
    assert resume(run, "--pool=4") == 2
    assert "another network" in capsys.readouterr().err


def test_all_losses_have_a_name_in_the_help() -> None:
    text = options.make_parser().format_help()
    assert all(name in text for name in LOSSES)
