"""The networks: sizes, ranges and who sees what; the pool; the weights of VGG."""

import copy
import itertools
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from engine.checkpoint import load_weights
from engine.errors import BadInput
from layers import NORMS, PADDINGS, Padding
from networks import (
    Discriminator,
    Generator,
    ImagePool,
    Vgg19,
    make_networks,
    read_vgg_weights,
)


def small(*channels: Any, **given: Any) -> Generator:
    return Generator(*channels, **{"width": 4, "blocks": 1, **given})


def last_layer(network: Generator) -> nn.Conv2d:
    layer = network.layers[-1]
    assert isinstance(layer, nn.Conv2d)
    return layer


def options(**given: object) -> Namespace:
    opt = {
        "img_size": 32,
        "losses": "l1",
        "vgg_weights": "none",
        "width": 4,
        "downs": 1,
        "blocks": 1,
        "padding": "zeros",
        "norm": "none",
        "dropout": 0.0,
        "residual": True,
        "d_width": 4,
        "d_layers": 3,
        "d_scales": 2,
        "d_norm": "instance",
        "pool": 2,
    }
    return Namespace(**(opt | given))


# The generator.


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (8, 8), (13, 9), (17, 30)])
@pytest.mark.parametrize("downs", [0, 1, 2, 3])
@pytest.mark.parametrize("training", [False, True])
def test_an_image_keeps_its_size(height: int, width: int, downs: int, training: bool) -> None:
    network = small(downs=downs).train(training)
    images = torch.rand(2, 3, height, width) * 2 - 1
    assert network(images).shape == images.shape


@pytest.mark.parametrize(("padding", "norm"), list(itertools.product(PADDINGS, NORMS)))
@pytest.mark.parametrize("downs", [0, 2])
def test_any_padding_and_norm_takes_any_size(padding: Padding, norm: str, downs: int) -> None:
    network = small(downs=downs, padding=padding, norm=norm, dropout=0.5, bias=False)
    for size in (1, 5, 10):
        y = network(torch.rand(2, 3, size, size))
        assert y.shape == (2, 3, size, size)
        y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("residual", [False, True])
def test_other_numbers_of_channels(residual: bool) -> None:
    channels = (2, 2) if residual else (1, 5)
    network = small(*channels, residual=residual)
    assert network(torch.rand(2, channels[0], 9, 9)).shape == (2, channels[1], 9, 9)


@pytest.mark.parametrize("residual", [False, True])
def test_evaluation_ends_in_the_range_of_images_and_training_keeps_the_gradient(
    residual: bool,
) -> None:
    network = small(residual=residual)
    bias = last_layer(network).bias
    assert bias is not None
    nn.init.constant_(bias, 5.0)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    outside = network(images)
    assert outside.min() > 1
    outside.mean().backward()
    assert bias.grad is not None
    assert bias.grad.abs().min() > 0
    network.eval()
    assert network(images).equal(outside.clamp(-1, 1))


def test_a_residual_generator_begins_near_its_input() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    near, far = (Generator(residual=residual)(images) - images for residual in (True, False))
    assert near.square().mean() < far.square().mean() / 50


def test_residual_adds_the_input() -> None:
    network = small(residual=True, downs=1)
    for parameter in last_layer(network).parameters():
        nn.init.zeros_(parameter)
    images = torch.rand(2, 3, 7, 9) * 2 - 1
    assert network(images).equal(images)
    network.residual = False
    assert network(images).equal(torch.zeros_like(images))


@pytest.mark.parametrize("downs", [0, 1, 2])
def test_what_is_missing_at_the_border_does_not_move_the_image(downs: int) -> None:
    """A larger image with the same upper left corner gives the same there, but for the border."""
    network = small(downs=downs).eval()
    images = torch.rand(1, 3, 61, 63) * 2 - 1
    whole, part = network(images), network(images[..., :50, :53])
    assert (whole[..., :8, :8] - part[..., :8, :8]).abs().max() < 1e-5
    assert (whole[..., :50, :53] - part).abs().max() > 1e-5  # a network of few layers sees less


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_images_of_a_batch_do_not_touch_each_other(norm: str) -> None:
    generator, judge = small(norm=norm), Discriminator(width=4)
    images, pairs = torch.rand(4, 3, 32, 32), torch.rand(4, 6, 32, 32)
    assert generator(images)[1:3].allclose(generator(images[1:3]), atol=1e-5)
    whole, part = judge(pairs), judge(pairs[1:3])
    for maps, seen in zip(whole, part, strict=True):
        assert all(a[1:3].allclose(b, atol=1e-4) for a, b in zip(maps, seen, strict=True))


def test_dropout_and_bias_reach_the_residual_blocks() -> None:
    network = Generator(dropout=0.5, bias=False, blocks=2, width=4)
    assert sum(isinstance(part, nn.Dropout) for part in network.modules()) == 2
    assert not [name for name, _ in network.named_parameters() if "bias" in name][1:]


# The discriminator.


@pytest.mark.parametrize(("layers", "scales"), [(1, 1), (3, 2), (3, 3), (5, 1)])
@pytest.mark.parametrize("norm", NORMS)
def test_each_scale_gives_its_features_and_its_scores(layers: int, scales: int, norm: str) -> None:
    size = 2 ** (layers + scales)
    features = Discriminator(6, 4, layers, scales, norm)(torch.rand(2, 6, size, size))
    assert len(features) == scales
    for i, maps in enumerate(features):
        assert len(maps) == layers + 2
        assert [len(m) for m in maps] == [2] * len(maps)
        halved = [size // 2 ** (i + j + 1) for j in range(layers)]
        assert [m.shape[-1] for m in maps] == [*halved, halved[-1], halved[-1]]
        doubled = [4 * min(8, 2**j) for j in range(layers + 1)]
        assert [m.shape[1] for m in maps] == [*doubled, 1]
    assert features[-1][-1].shape[-1] == 2  # the smallest size that the docstring allows


def test_all_maps_but_the_first_and_the_scores_are_normalised() -> None:
    network = Discriminator(width=4, layers=3, scales=2)
    assert sum(isinstance(part, nn.InstanceNorm2d) for part in network.modules()) == 2 * 3


def test_scores_have_no_limit_and_features_get_gradients() -> None:
    network = Discriminator(width=4)
    features = network(torch.rand(2, 6, 33, 45))
    sum(m.mean() for maps in features for m in maps).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert min(maps[-1].min() for maps in features) < 0


def test_the_discriminator_compares_input_and_output() -> None:
    """Its verdict depends on both images of a pair, at every scale."""
    network = Discriminator(width=4, scales=2)
    for i in range(2):
        pairs = torch.rand(1, 6, 32, 32, requires_grad=True)
        network(pairs)[i][-1].square().sum().backward()
        assert pairs.grad is not None
        assert (pairs.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


# The pool.


def pairs(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 3)


def values(images: Tensor) -> list[float]:
    assert images.shape[1:] == (2, 3, 3)
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def test_a_pool_of_size_0_hands_through() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pool = ImagePool(0, (2, 3, 3))
    given = pairs(1, 2).clone().requires_grad_()
    taken = pool(given)
    assert taken.equal(given)
    assert not taken.requires_grad
    assert torch.get_rng_state().equal(before)


def test_a_pool_fills_first_and_then_exchanges_half() -> None:
    torch.manual_seed(0)
    pool = ImagePool(10, (2, 3, 3))
    assert values(pool(pairs(*range(10)))) == list(range(10))
    assert sorted(values(pool.images)) == list(range(10))
    given = list(range(10, 1010))
    taken = values(pool(pairs(*given)))
    old = [a < b for a, b in zip(taken, given, strict=True)]
    assert 400 < sum(old) < 600
    assert all(a == b for a, b, is_old in zip(taken, given, old, strict=True) if not is_old)
    # Nothing is lost and nothing comes back twice: each is still there or was taken once.
    seen = [value for value in taken if value >= 10] + values(pool.images)
    assert len(set(taken)) == len(taken)
    assert set(seen) >= set(given)


def test_a_pool_gives_images_without_a_gradient_and_keeps_copies() -> None:
    pool = ImagePool(2, (2, 3, 3))
    given = pairs(1, 2).clone().requires_grad_()
    assert not pool(given * 1).requires_grad
    with torch.no_grad():
        given.zero_()
    assert values(pool.images) == [1, 2]


def test_a_pool_in_evaluation_mode_changes_nothing() -> None:
    pool = ImagePool(2, (2, 3, 3)).eval()
    assert values(pool(pairs(1, 2, 3))) == [1, 2, 3]
    assert pool.count == 0
    assert pool.images.abs().max() == 0


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_restored_pool_goes_on_as_if_it_had_never_stopped(steps: int, tmp_path: Path) -> None:
    """Seeded at each step as the training loop does; after 1 step it is not full, after 7 it is."""

    def go_on(pool: ImagePool) -> list[list[float]]:
        taken = []
        for step in range(steps, steps + 10):
            torch.manual_seed(step)
            taken.append(values(pool(pairs(*range(4 * step, 4 * step + 4)))))
        return taken

    pool = ImagePool(6, (2, 3, 3))
    for step in range(steps):
        torch.manual_seed(step)
        pool(pairs(*range(4 * step, 4 * step + 4)))
    torch.save(pool.state_dict(), tmp_path / "pool.pt")
    restored = ImagePool(6, (2, 3, 3))
    load_weights(restored, torch.load(tmp_path / "pool.pt", weights_only=True), "pool.pt")
    assert go_on(restored) == go_on(copy.deepcopy(pool))


def test_a_pool_draws_as_often_when_empty_as_when_full() -> None:
    states = []
    for filled in (0, 5):
        pool = ImagePool(5, (2, 3, 3))
        pool(pairs(*range(filled)))
        torch.manual_seed(0)
        pool(pairs(1, 2, 3))
        states.append(torch.get_rng_state())
    assert states[0].equal(states[1])


# VGG19.


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in the shapes of torchvision's file, in a few kB: expanded tensors stay small."""
    random = torch.Generator().manual_seed(0)
    state = {}
    for index, (k, c) in {
        **{0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128)},
        **{12: (256, 256), 14: (256, 256), 16: (256, 256), 19: (512, 256)},
        **{21: (512, 512), 23: (512, 512), 25: (512, 512), 28: (512, 512), 30: (512, 512)},
    }.items():
        weight = torch.randn(k, 1, 3, 3, generator=random) * (2 / (9 * c * c)) ** 0.5
        state[f"features.{index}.weight"] = weight.expand(k, c, 3, 3)
        state[f"features.{index}.bias"] = torch.zeros(k)
    state["classifier.0.bias"] = torch.zeros(4096)
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def vgg(vgg_file: Path) -> Vgg19:
    return Vgg19(read_vgg_weights(str(vgg_file)))


def test_vgg_returns_three_slices(vgg: Vgg19) -> None:
    outputs = vgg(torch.rand(2, 3, 32, 48) * 2 - 1)
    shapes = [tuple(output.shape) for output in outputs]
    assert shapes == [(2, 128, 16, 24), (2, 512, 4, 6), (2, 512, 2, 3)]
    assert all(output.min() >= 0 for output in outputs)


def test_vgg_sees_what_torchvision_computes(vgg: Vgg19, vgg_file: Path) -> None:
    """The slices one after the other are the layers of the file, for values normalised as there."""
    state = torch.load(vgg_file, weights_only=True)
    images = torch.rand(1, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    wanted = []
    for index in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28):
        if index in (5, 10, 19, 28):
            x = nn.functional.max_pool2d(x, 2)
        weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
        x = nn.functional.conv2d(x, weight, bias, padding=1).relu()
        if index in (5, 19, 28):
            wanted.append(x)
    for seen, right in zip(vgg(images * 2 - 1), wanted, strict=True):
        assert right.max() > 0
        assert seen.allclose(right, rtol=1e-3, atol=1e-4)


def test_vgg_is_frozen_and_lets_gradients_through(vgg: Vgg19) -> None:
    nn.Sequential(vgg).train()
    assert not [part for part in vgg.modules() if part.training]
    assert list(vgg.parameters())
    assert not [p for p in vgg.parameters() if p.requires_grad]
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    vgg(images)[2].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


def test_weights_of_the_features_alone_are_enough(vgg: Vgg19, vgg_file: Path) -> None:
    state = torch.load(vgg_file, weights_only=True)
    short = {n.removeprefix("features."): v.half() for n, v in state.items() if "features" in n}
    torch.save(short, "short.pth")
    weights = read_vgg_weights("short.pth")
    assert weights["0.weight"].dtype == torch.float32
    assert weights["0.weight"].allclose(vgg.state_dict()["slice1.0.weight"], atol=1e-3)


def test_vgg_leaves_the_random_numbers_alone(vgg_file: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Vgg19(read_vgg_weights(str(vgg_file)))
    assert torch.get_rng_state().equal(before)


def spoiled(vgg_file: Path, how: str) -> object:
    state = torch.load(vgg_file, weights_only=True)
    if how == "missing":
        del state["features.28.bias"]
    elif how == "shape":
        state["features.0.weight"] = torch.zeros(64, 4, 3, 3)
    elif how == "text":
        state["features.0.weight"] = "text"
    elif how == "list":
        return [1, 2]
    return state


@pytest.mark.parametrize("how", ["missing", "shape", "text", "list"])
def test_weights_of_another_network_are_bad_input(vgg_file: Path, how: str) -> None:
    torch.save(spoiled(vgg_file, how), "other.pth")
    with pytest.raises(BadInput, match=r"^--vgg-weights other.pth: no features\.\d+\.\w+ of shape"):
        read_vgg_weights("other.pth")


@pytest.mark.parametrize(
    "content", [b"", b"no weights", pickle.dumps(Path("x"), protocol=2), "half"]
)
def test_a_damaged_file_is_bad_input(vgg_file: Path, content: bytes | str) -> None:
    whole = vgg_file.read_bytes()
    data = whole[: len(whole) // 2] if isinstance(content, str) else content
    Path("damaged.pth").write_bytes(data)
    with pytest.raises(BadInput, match=r"^--vgg-weights damaged.pth: damaged") as caught:
        read_vgg_weights("damaged.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_a_missing_file_is_bad_input(name: str) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_vgg_weights(name)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (URLError("no network"), "could not be downloaded"),
        (TimeoutError("timed out"), "could not be downloaded"),
        (RuntimeError('invalid hash value (expected "dcbb9e9d", got "0")'), "damaged"),
    ],
)
def test_without_a_network_one_line_says_what_to_do(
    error: Exception, named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def download(*arguments: object, **more: object) -> None:
        asked.extend([*arguments, *more.values()])
        raise error

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=f"^--vgg-weights download: .*{named}") as caught:
        read_vgg_weights("download")
    assert "--vgg-weights none" in str(caught.value)
    assert "vgg19" in str(asked[0])
    assert "dcbb9e9d" in asked  # the start of the file's checksum, which is checked


def test_a_damaged_file_from_an_earlier_download_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "vgg19-dcbb9e9d.pth").write_bytes(b"half")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=r"delete it from .*checkpoints"):
        read_vgg_weights("download")


# From options to networks.


def test_only_what_the_losses_need_is_made(vgg_file: Path) -> None:
    made = make_networks(options())
    assert (made.discriminator, made.pool, made.vgg) == (None, None, None)
    made = make_networks(options(losses="l1,adversarial,features,perceptual"))
    assert made.vgg is None
    assert make_networks(options(vgg_weights="not_looked_at.pth")).vgg is None
    assert made.discriminator is not None
    assert made.pool is not None
    assert made.pool.images.shape == (2, 6, 32, 32)
    made = make_networks(options(losses="l1,perceptual", vgg_weights=str(vgg_file)))
    assert (made.discriminator, made.pool) == (None, None)
    assert made.vgg is not None


def test_convolutions_have_a_bias_where_no_norm_would_take_it_away() -> None:
    biases = {"none": 1 + 1 + 2 + 1 + 1, "instance": 1, "batch": 1}
    for norm, count in biases.items():
        network = make_networks(options(norm=norm)).generator
        convs = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
        assert sum(conv.bias is not None for conv in convs) == count


def test_every_option_reaches_its_network() -> None:
    def facts_of(**given: object) -> list[object]:
        made = make_networks(options(losses="adversarial", **given))
        assert made.discriminator is not None
        assert made.pool is not None
        facts = [made.generator.residual, made.pool.images.shape]
        return [repr(made.generator), repr(made.discriminator), *facts]

    usual = facts_of()
    assert facts_of() == usual
    others = {
        "width": 6,
        "downs": 0,
        "blocks": 2,
        "padding": "reflect",
        "norm": "instance",
        "dropout": 0.5,
        "residual": False,
        "d_width": 6,
        "d_layers": 2,
        "d_scales": 1,
        "d_norm": "none",
        "pool": 3,
    }
    for name, value in others.items():
        assert facts_of(**{name: value}) != usual, name


@pytest.mark.parametrize(
    ("size", "given"),
    [(64, {"d_layers": 3, "d_scales": 3}), (4, {"d_layers": 1, "d_scales": 1})],
)
def test_the_smallest_images_are_named(size: int, given: dict[str, int]) -> None:
    opt = options(losses="adversarial", img_size=size, **given)
    made = make_networks(opt)
    assert made.discriminator is not None
    made.discriminator(torch.rand(2, 6, size, size))
    opt.img_size = size - 1
    with pytest.raises(BadInput, match=f"^--img-size {size - 1}: must be at least {size}"):
        make_networks(opt)


def test_images_too_small_for_vgg_are_named(vgg_file: Path) -> None:
    opt = options(losses="perceptual", vgg_weights=str(vgg_file), img_size=15)
    with pytest.raises(BadInput, match=r"^--img-size 15: must be at least 16"):
        make_networks(opt)
    opt.img_size = 16
    made = make_networks(opt)
    assert made.vgg is not None
    assert len(made.vgg(torch.rand(1, 3, 16, 16))) == 3
