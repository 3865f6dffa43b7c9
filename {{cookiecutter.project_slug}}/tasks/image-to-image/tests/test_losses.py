"""The losses against values worked out by hand, and what `--losses` may say."""

import math
from argparse import Namespace

import pytest
import torch
from torch import Tensor, nn

from engine.errors import BadInput
from losses import (
    ADVERSARIAL,
    L1,
    LOSSES,
    Adversarial,
    FeatureMatching,
    Perceptual,
    loss_weights,
    make_losses,
)

# Two scales of scores: their means are means of (0, 2) and of (1,).
DRAWN = [torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2), torch.ones(1, 1, 1, 1)]
REAL = [torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)]


def options(losses: str = "l1", vgg: str = "none") -> Namespace:
    return Namespace(losses=losses, vgg_weights=vgg, adversarial="lsgan")


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_l1() -> None:
    outputs, targets = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 1.0]])
    loss = L1()(outputs, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((0.5 + 2) / 2)


class TwoMaps(nn.Module):
    """Stands in for VGG: twice the image, and the mean of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        self.calls.append(torch.is_grad_enabled())
        return [2 * images, images.mean(dim=1, keepdim=True)]


def test_perceptual_weighs_the_difference_of_each_map() -> None:
    outputs = torch.zeros(2, 3, 4, 4)
    targets = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4)])
    loss = Perceptual(TwoMaps(), (0.5, 3.0))(outputs, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.5 * (2 + 0) / 2 + 3 * (1 + 0) / 2)


def test_perceptual_has_a_gradient_for_the_outputs_alone() -> None:
    features = TwoMaps()
    outputs, targets = (torch.rand(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    Perceptual(features, (1.0, 1.0))(outputs, targets).backward()
    assert outputs.grad is not None
    assert targets.grad is None
    assert sorted(features.calls) == [False, True]  # no graph is kept for the targets


def test_perceptual_of_equal_images_is_zero() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert Perceptual(TwoMaps(), (1.0, 1.0))(images, images).item() == 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("lsgan", ((1 + 1) / 2 + 0) / 2),
        ("hinge", ((0 - 2) / 2 - 1) / 2),
        ("vanilla", ((softplus(0) + softplus(-2)) / 2 + softplus(-1)) / 2),
    ],
)
def test_loss_of_the_generator(kind: str, expected: float) -> None:
    loss = Adversarial(kind)(DRAWN)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "real", "drawn"),
    [
        ("lsgan", ((0 + 4) / 2 + 1) / 2, ((0 + 4) / 2 + 1) / 2),
        ("hinge", ((0 + 0) / 2 + 1) / 2, ((1 + 3) / 2 + 2) / 2),
        (
            "vanilla",
            ((softplus(-1) + softplus(-3)) / 2 + softplus(0)) / 2,
            ((softplus(0) + softplus(2)) / 2 + softplus(1)) / 2,
        ),
    ],
)
def test_loss_of_the_discriminator(kind: str, real: float, drawn: float) -> None:
    loss = Adversarial(kind)(DRAWN, REAL)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((real + drawn) / 2)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_two_pull_the_scores_of_drawn_images_apart(kind: str) -> None:
    """Those of the generator up, those of the discriminator down, and those of real ones up."""
    drawn, real = (torch.full((2, 1, 3, 3), 0.5, requires_grad=True) for _ in range(2))
    (up,) = torch.autograd.grad(Adversarial(kind)([drawn]), drawn)
    assert (up < 0).all()
    down, higher = torch.autograd.grad(Adversarial(kind)([drawn], [real]), (drawn, real))
    assert (down > 0).all()
    assert (higher < 0).all()


def test_feature_matching_leaves_the_scores_out() -> None:
    drawn = [[torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 1, 1), torch.zeros(1, 1, 1, 1)]] * 2
    real = [
        [torch.full((1, 2, 2, 2), 1.0), torch.full((1, 4, 1, 1), -3.0), torch.full((1,), 99.0)],
        [torch.full((1, 2, 2, 2), 2.0), torch.full((1, 4, 1, 1), 0.0), torch.full((1,), 99.0)],
    ]
    loss = FeatureMatching()(drawn, real)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((1 + 3 + 2 + 0) / 4)


def test_feature_matching_does_not_move_the_real_maps() -> None:
    drawn, real = (torch.rand(1, 2, 3, 3, requires_grad=True) for _ in range(2))
    FeatureMatching()([[drawn, drawn]], [[real, real]]).backward()
    assert drawn.grad is not None
    assert real.grad is None


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_mean_over_parts_is_the_whole(kind: str) -> None:
    """So that accumulated gradients and several GPUs give what one batch gives."""
    torch.manual_seed(0)
    drawn, real = ([torch.randn(8, 1, 4, 4), torch.randn(8, 1, 2, 2)] for _ in range(2))
    images, targets = torch.randn(2, 8, 3, 4, 4).unbind()

    def losses(part: slice) -> list[Tensor]:
        a, b = [scores[part] for scores in drawn], [scores[part] for scores in real]
        return [
            L1()(images[part], targets[part]),
            Perceptual(TwoMaps(), (1.0, 2.0))(images[part], targets[part]),
            Adversarial(kind)(a),
            Adversarial(kind)(a, b),
            FeatureMatching()([a, a], [b, b]),
        ]

    parts = [torch.stack(losses(part)) for part in (slice(0, 4), slice(4, 8))]
    assert torch.stack(parts).mean(dim=0).allclose(torch.stack(losses(slice(0, 8))), atol=1e-6)


def test_losses_are_read_with_their_weights() -> None:
    assert loss_weights(options("l1")) == {"l1": LOSSES["l1"]}
    everything = options("l1:3, adversarial:0.5,features,perceptual:1e-2", vgg="download")
    weights = {"l1": 3.0, "adversarial": 0.5, "features": LOSSES["features"], "perceptual": 0.01}
    assert loss_weights(everything) == weights
    assert list(loss_weights(everything)) == list(weights)


def test_without_weights_of_vgg_there_is_no_perceptual_loss() -> None:
    assert loss_weights(options("l1,perceptual:5")) == {"l1": LOSSES["l1"]}
    with pytest.raises(BadInput, match="perceptual alone"):
        loss_weights(options("perceptual"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("l2", "'l2' is not known; choose from l1, adversarial, features, perceptual"),
        ("", "'' is not known"),
        ("l1,", "'' is not known"),
        ("l1:", "weight '' of l1"),
        ("l1:much", "weight 'much' of l1"),
        ("l1:0", "weight '0' of l1"),
        ("l1:-1", "weight '-1' of l1"),
        ("l1:nan", "weight 'nan' of l1"),
        ("l1:inf", "weight 'inf' of l1"),
        ("l1:1:2", "weight '1:2' of l1"),
        ("l1,l1:2", "l1 comes twice"),
        ("l1,features", "add adversarial"),
    ],
)
def test_losses_that_cannot_be_read(text: str, named: str) -> None:
    with pytest.raises(BadInput, match=r"^--losses: ") as caught:
        loss_weights(options(text))
    assert named in str(caught.value)


def test_options_choose_the_losses() -> None:
    opt = options("features,l1:5,perceptual,adversarial", vgg="download")
    opt.adversarial = "hinge"
    losses = make_losses(opt, TwoMaps())
    kinds = {name: type(loss) for name, loss in losses.items()}
    assert kinds == {
        "features": FeatureMatching,
        "l1": L1,
        "perceptual": Perceptual,
        "adversarial": Adversarial,
    }
    assert losses["adversarial"](DRAWN).item() == pytest.approx(-1)
    assert list(make_losses(options(), None)) == ["l1"]
