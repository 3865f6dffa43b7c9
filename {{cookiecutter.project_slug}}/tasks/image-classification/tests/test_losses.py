"""The losses: those that come with the project, by hand; and what every loss has to keep."""

import math

import pytest
import torch
from needs import needs
from torch import Tensor, nn

import options

LOSSES, make_loss = needs("losses.LOSSES"), needs("losses.make_loss")
# Scores whose softmax is (1/4, 3/4) and (1/2, 1/2).
SCORES = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
LABELS = torch.tensor([1, 0])
FIRST, SECOND = -math.log(3 / 4), -math.log(1 / 2)
WEIGHT = torch.tensor([0.5, 2.0])


def make(counts: list[int], *words: str) -> nn.Module:
    for word in words:
        needs(word)
    return make_loss(options.parse([*words, "--flip"]), counts)


# Every loss that `--loss` may name.


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("balance", ["--balance", "--no-balance"])
def test_the_mean_over_parts_is_the_whole(name: str, balance: str) -> None:
    """So that accumulated gradients and several GPUs give what one batch gives."""
    needs(balance)
    torch.manual_seed(0)
    loss = make([5, 10, 85], f"--loss={name}", balance)
    scores, labels = torch.randn(12, 3), torch.randint(3, (12,))
    parts = [loss(*part) for part in zip(scores.split(4), labels.split(4), strict=True)]
    assert torch.stack(parts).mean().item() == pytest.approx(loss(scores, labels).item())


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_score_of_the_right_class_lowers_the_loss(name: str) -> None:
    loss = make([1, 1], f"--loss={name}")
    scores = torch.zeros(3, 2, requires_grad=True)
    value = loss(scores, torch.tensor([0, 1, 1]))
    assert value.shape == ()
    assert value.item() > 0
    value.backward()
    assert scores.grad is not None
    assert (scores.grad < 0).tolist() == [[True, False], [False, True], [False, True]]
    sure = torch.tensor([[50.0, 0.0], [0.0, 50.0], [0.0, 50.0]])
    assert loss(sure, torch.tensor([0, 1, 1])).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("balance", ["--balance", "--no-balance"])
@pytest.mark.parametrize("smoothing", ["0", "0.2"])
def test_labels_as_shares_of_the_classes_give_the_same_loss(
    name: str, balance: str, smoothing: str
) -> None:
    """Mixed images have several classes; the loss is linear in their shares."""
    needs(balance)
    needs("--label-smoothing")
    torch.manual_seed(0)
    loss = make([5, 10, 85], f"--loss={name}", balance, f"--label-smoothing={smoothing}")
    scores, labels = torch.randn(12, 3), torch.randint(3, (12,))
    shares = nn.functional.one_hot(labels, 3).float()
    assert loss(scores, shares).item() == pytest.approx(loss(scores, labels).item(), rel=1e-5)
    if name in ("cross-entropy", "focal"):
        other = labels.roll(1)
        mixed = 0.7 * shares + 0.3 * nn.functional.one_hot(other, 3)
        expected = 0.7 * loss(scores, labels) + 0.3 * loss(scores, other)
        assert loss(scores, mixed).item() == pytest.approx(expected.item(), rel=1e-5)


# Those that come with the project.


def test_cross_entropy() -> None:
    loss = needs("losses.CrossEntropy")()(SCORES, LABELS)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((FIRST + SECOND) / 2)


def test_class_weights_multiply_and_the_mean_is_over_the_images() -> None:
    loss = needs("losses.CrossEntropy")(WEIGHT)(SCORES, LABELS)
    assert loss.item() == pytest.approx((2 * FIRST + 0.5 * SECOND) / 2)


def test_label_smoothing_gives_a_share_to_all_classes() -> None:
    loss = needs("losses.CrossEntropy")(label_smoothing=0.2)(SCORES[:1], LABELS[:1])
    assert loss.item() == pytest.approx(0.9 * FIRST - 0.1 * math.log(1 / 4))


def test_focal_loss() -> None:
    focal_loss = needs("losses.FocalLoss")
    loss = focal_loss(gamma=2)(SCORES, LABELS)
    assert loss.item() == pytest.approx((FIRST / 16 + SECOND / 4) / 2)
    weighted = focal_loss(WEIGHT, gamma=2)(SCORES, LABELS)
    assert weighted.item() == pytest.approx((2 * FIRST / 16 + 0.5 * SECOND / 4) / 2)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_loss_without_focus_is_cross_entropy(weight: Tensor | None) -> None:
    plain = needs("losses.CrossEntropy")(weight)
    focal = needs("losses.FocalLoss")(weight, gamma=0)
    assert focal(SCORES, LABELS).item() == pytest.approx(plain(SCORES, LABELS).item())


def test_label_smoothing_of_the_focal_loss() -> None:
    focal = needs("losses.FocalLoss")
    loss = focal(gamma=2, label_smoothing=0.2)(SCORES[:1], LABELS[:1])
    assert loss.item() == pytest.approx(0.9 * FIRST / 16 - 0.1 * math.log(1 / 4) * 9 / 16)
    smooth = needs("losses.CrossEntropy")(WEIGHT, label_smoothing=0.2)
    without_focus = focal(WEIGHT, gamma=0, label_smoothing=0.2)
    assert without_focus(SCORES, LABELS).item() == pytest.approx(smooth(SCORES, LABELS).item())
    assert isinstance(make([1, 3], "--loss=focal", "--label-smoothing=0.1"), focal)


def test_balanced_weights_let_each_class_count_alike() -> None:
    balanced_weights = needs("losses.balanced_weights")
    counts = torch.tensor([10.0, 30.0, 60.0])
    weights = balanced_weights([10, 30, 60])
    assert (weights * counts).tolist() == pytest.approx([100 / 3] * 3)
    assert ((weights * counts).sum() / counts.sum()).item() == pytest.approx(1)
    assert balanced_weights([7, 7]).tolist() == [1, 1]


def test_options_choose_the_loss() -> None:
    assert isinstance(make([1, 3], "--loss=focal"), needs("losses.FocalLoss"))

    def loss(*words: str) -> nn.Module:
        return make([1, 3], "--loss=cross-entropy", *words)

    assert isinstance(loss(), needs("losses.CrossEntropy"))
    balanced = loss("--balance", "--label-smoothing=0")
    assert balanced(SCORES[:1], LABELS[:1]).item() == pytest.approx(FIRST * 2 / 3)
    smooth = loss("--no-balance", "--label-smoothing=0.2")(SCORES[:1], LABELS[:1]).item()
    assert smooth == pytest.approx(0.9 * FIRST - 0.1 * math.log(1 / 4))
    assert balanced.state_dict() == {}  # weights of classes are no weights to load
