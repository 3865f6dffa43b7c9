"""The losses: those that come with the project, by hand; and what every loss has to keep."""

import math
from argparse import Namespace

import pytest
import torch
from needs import needs
from torch import Tensor, nn

import losses
import options
from engine.errors import BadInput

LOSSES, loss_weights = needs("losses.LOSSES"), needs("losses.loss_weights")
DIRECT = [name for name in LOSSES if name not in ("adversarial", "features")]  # of two images
ADVERSARIAL = getattr(losses, "ADVERSARIAL", ())
# Two scales of scores: their means are means of (0, 2) and of (1,).
FAKE = [torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2), torch.ones(1, 1, 1, 1)]
REAL = [torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)]


def opt(names: str = "l1", vgg: str = "none", *words: str) -> Namespace:
    return options.parse(["--flip", f"--losses={names}", f"--vgg-weights={vgg}", *words])


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_l1() -> None:
    outputs, targets = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 1.0]])
    loss = needs("losses.L1")()(outputs, targets)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((0.5 + 2) / 2)


class Maps(nn.Module):
    """Stands in for VGG: twice the image, the mean of its channels, and its square."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bool] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        self.calls.append(torch.is_grad_enabled())
        return [2 * images, images.mean(dim=1, keepdim=True), images.square()]


def test_perceptual_weighs_the_difference_of_each_map() -> None:
    outputs = torch.zeros(2, 3, 4, 4)
    targets = torch.stack([torch.ones(3, 4, 4), torch.zeros(3, 4, 4)])
    loss = needs("losses.Perceptual")(Maps(), (0.5, 3.0, 0.25))(outputs, targets)
    assert loss.shape == ()
    by_map = (0.5 * 2, 3 * 1, 0.25 * 1)  # of the first image; the second is as it should be
    assert loss.item() == pytest.approx(sum(by_map) / 2)


def test_perceptual_has_a_gradient_for_the_outputs_alone() -> None:
    features = Maps()
    outputs, targets = (torch.rand(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    needs("losses.Perceptual")(features)(outputs, targets).backward()
    assert outputs.grad is not None
    assert targets.grad is None
    assert sorted(features.calls) == [False, True]  # no graph is kept for the targets


def test_perceptual_of_equal_images_is_zero() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert needs("losses.Perceptual")(Maps())(images, images).item() == 0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("lsgan", ((1 + 1) / 2 + 0) / 2),
        ("hinge", ((0 - 2) / 2 - 1) / 2),
        ("vanilla", ((softplus(0) + softplus(-2)) / 2 + softplus(-1)) / 2),
    ],
)
def test_loss_of_the_generator(kind: str, expected: float) -> None:
    loss = needs("losses.Adversarial")(kind)(FAKE)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "real", "fake"),
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
def test_loss_of_the_discriminator(kind: str, real: float, fake: float) -> None:
    loss = needs("losses.Adversarial")(kind)(FAKE, REAL)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((real + fake) / 2)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_two_pull_the_scores_of_fake_images_apart(kind: str) -> None:
    """Those of the generator up, those of the discriminator down, and those of real ones up."""
    fake, real = (torch.full((2, 1, 3, 3), 0.5, requires_grad=True) for _ in range(2))
    adversarial = needs("losses.Adversarial")(kind)
    (up,) = torch.autograd.grad(adversarial([fake]), fake)
    assert (up < 0).all()
    down, higher = torch.autograd.grad(adversarial([fake], [real]), (fake, real))
    assert (down > 0).all()
    assert (higher < 0).all()


def test_feature_matching_leaves_the_scores_out() -> None:
    fake = [[torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 1, 1), torch.zeros(1, 1, 1, 1)]] * 2
    real = [
        [torch.full((1, 2, 2, 2), 1.0), torch.full((1, 4, 1, 1), -3.0), torch.full((1,), 99.0)],
        [torch.full((1, 2, 2, 2), 2.0), torch.full((1, 4, 1, 1), 0.0), torch.full((1,), 99.0)],
    ]
    loss = needs("losses.FeatureMatching")()(fake, real)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((1 + 3 + 2 + 0) / 4)


def test_feature_matching_does_not_move_the_real_maps() -> None:
    fake, real = (torch.rand(1, 2, 3, 3, requires_grad=True) for _ in range(2))
    needs("losses.FeatureMatching")()([[fake, fake]], [[real, real]]).backward()
    assert fake.grad is not None
    assert real.grad is None


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_mean_of_adversarial_losses_over_parts_is_the_whole(kind: str) -> None:
    torch.manual_seed(0)
    fake, real = ([torch.randn(8, 1, 4, 4), torch.randn(8, 1, 2, 2)] for _ in range(2))
    adversarial = needs("losses.Adversarial")(kind)

    def values(part: slice) -> Tensor:
        a, b = [scores[part] for scores in fake], [scores[part] for scores in real]
        features = needs("losses.FeatureMatching")()([a, a], [b, b])
        return torch.stack([adversarial(a), adversarial(a, b), features])

    parts = torch.stack([values(slice(0, 4)), values(slice(4, 8))])
    assert parts.mean(dim=0).allclose(values(slice(0, 8)), atol=1e-6)


# Every loss of two images that `--losses` may name.


def make(name: str, *words: str) -> nn.Module:
    return losses.make_losses(opt(name, "download", *words), Maps())[name]


@pytest.mark.parametrize("name", DIRECT)
def test_the_mean_over_parts_is_the_whole(name: str) -> None:
    """So that accumulated gradients and several GPUs give what one batch gives."""
    torch.manual_seed(0)
    loss, images = make(name), torch.rand(2, 8, 3, 4, 4) * 2 - 1
    whole = loss(*images)
    assert whole.shape == ()
    parts = [loss(*images[:, part]) for part in (slice(0, 4), slice(4, 8))]
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), abs=1e-6)


@pytest.mark.parametrize("name", DIRECT)
def test_outputs_nearer_to_their_targets_have_a_lower_loss(name: str) -> None:
    torch.manual_seed(0)
    outputs, targets = torch.rand(2, 2, 3, 8, 8)
    values = [make(name)(outputs.lerp(targets, share), targets) for share in (0, 0.5, 1)]
    assert values[0] > values[1] > values[2]


# What `--losses` may say.


def test_losses_are_read_with_their_weights() -> None:
    for name in ("L1", "Adversarial", "FeatureMatching", "Perceptual"):
        needs(f"losses.{name}")
    assert loss_weights(opt("l1")) == {"l1": LOSSES["l1"]}
    everything = opt("l1:3, adversarial:0.5,features,perceptual:1e-2", "download")
    weights = {"l1": 3.0, "adversarial": 0.5, "features": LOSSES["features"], "perceptual": 0.01}
    assert loss_weights(everything) == weights
    assert list(loss_weights(everything)) == list(weights)


def test_without_weights_of_vgg_there_is_no_perceptual_loss() -> None:
    for name in ("L1", "Perceptual"):
        needs(f"losses.{name}")
    assert loss_weights(opt("l1,perceptual:5")) == {"l1": LOSSES["l1"]}
    with pytest.raises(BadInput, match="perceptual alone"):
        loss_weights(opt("perceptual"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("l2", f"'l2' is not known; choose from {', '.join(LOSSES)}"),
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
    needs("losses.L1")
    with pytest.raises(BadInput, match=r"^--losses: ") as caught:
        loss_weights(opt(text))
    assert named in str(caught.value)


def test_options_choose_the_losses() -> None:
    for name in ("L1", "Adversarial", "FeatureMatching", "Perceptual"):
        needs(f"losses.{name}")
    settings = opt("features,l1:5,perceptual,adversarial", "download", "--adversarial=hinge")
    made = losses.make_losses(settings, Maps())
    kinds = [(name, type(loss).__name__) for name, loss in made.items()]
    assert kinds == [
        ("features", "FeatureMatching"),
        ("l1", "L1"),
        ("perceptual", "Perceptual"),
        ("adversarial", "Adversarial"),
    ]
    assert made["adversarial"](FAKE).item() == pytest.approx(-1)
    assert list(losses.make_losses(opt(), None)) == ["l1"]
