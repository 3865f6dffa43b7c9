"""The losses against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

import options
from losses import LOSSES, CrossEntropy, FocalLoss, balanced_weights, make_loss

# Scores whose softmax is (1/4, 3/4) and (1/2, 1/2).
SCORES = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
LABELS = torch.tensor([1, 0])
FIRST, SECOND = -math.log(3 / 4), -math.log(1 / 2)
WEIGHT = torch.tensor([0.5, 2.0])


def test_cross_entropy() -> None:
    loss = CrossEntropy()(SCORES, LABELS)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((FIRST + SECOND) / 2)


def test_class_weights_multiply_and_the_mean_is_over_the_images() -> None:
    loss = CrossEntropy(WEIGHT)(SCORES, LABELS)
    assert loss.item() == pytest.approx((2 * FIRST + 0.5 * SECOND) / 2)


def test_label_smoothing_gives_a_share_to_all_classes() -> None:
    loss = CrossEntropy(label_smoothing=0.2)(SCORES[:1], LABELS[:1])
    assert loss.item() == pytest.approx(0.9 * FIRST - 0.1 * math.log(1 / 4))


def test_focal_loss() -> None:
    loss = FocalLoss(gamma=2)(SCORES, LABELS)
    assert loss.item() == pytest.approx((FIRST / 16 + SECOND / 4) / 2)
    weighted = FocalLoss(WEIGHT, gamma=2)(SCORES, LABELS)
    assert weighted.item() == pytest.approx((2 * FIRST / 16 + 0.5 * SECOND / 4) / 2)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_loss_without_focus_is_cross_entropy(weight: Tensor | None) -> None:
    plain, focal = CrossEntropy(weight), FocalLoss(weight, gamma=0)
    assert focal(SCORES, LABELS).item() == pytest.approx(plain(SCORES, LABELS).item())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("balance", ["--balance", "--no-balance"])
def test_the_mean_over_parts_is_the_whole(name: str, balance: str) -> None:
    """So that accumulated gradients and several GPUs give what one batch gives."""
    torch.manual_seed(0)
    loss = make_loss(options.parse([f"--loss={name}", balance, "--flip"]), [5, 10, 85])
    scores, labels = torch.randn(12, 3), torch.randint(3, (12,))
    parts = [loss(*part) for part in zip(scores.split(4), labels.split(4), strict=True)]
    assert torch.stack(parts).mean().item() == pytest.approx(loss(scores, labels).item())


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_score_of_the_right_class_lowers_the_loss(name: str) -> None:
    loss = make_loss(options.parse([f"--loss={name}", "--flip"]), [1, 1])
    scores = torch.zeros(3, 2, requires_grad=True)
    value = loss(scores, torch.tensor([0, 1, 1]))
    assert value.item() > 0
    value.backward()
    assert scores.grad is not None
    assert (scores.grad < 0).tolist() == [[True, False], [False, True], [False, True]]
    sure = torch.tensor([[50.0, 0.0], [0.0, 50.0], [0.0, 50.0]])
    assert loss(sure, torch.tensor([0, 1, 1])).item() == pytest.approx(0, abs=1e-6)


def test_balanced_weights_let_each_class_count_alike() -> None:
    counts = torch.tensor([10.0, 30.0, 60.0])
    weights = balanced_weights([10, 30, 60])
    assert (weights * counts).tolist() == pytest.approx([100 / 3] * 3)
    assert ((weights * counts).sum() / counts.sum()).item() == pytest.approx(1)
    assert balanced_weights([7, 7]).tolist() == [1, 1]


def test_options_choose_the_loss() -> None:
    def loss(*words: str) -> nn.Module:
        return make_loss(options.parse([*words, "--flip"]), [1, 3])

    assert isinstance(loss(), CrossEntropy)
    assert isinstance(loss("--loss=focal"), FocalLoss)
    scores = SCORES[:1]
    assert loss("--balance")(scores, LABELS[:1]).item() == pytest.approx(FIRST * 2 / 3)
    smooth = loss("--label-smoothing=0.2")(scores, LABELS[:1]).item()
    assert smooth == pytest.approx(0.9 * FIRST - 0.1 * math.log(1 / 4))
    assert loss("--balance").state_dict() == {}  # weights of classes are no weights to load
