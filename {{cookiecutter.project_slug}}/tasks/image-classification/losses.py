"""The losses, each a module of its own.

Labels are int64 (N,), or of mixed images the share of each class, float (N, K): every loss takes
both, and the same labels in either form give the same loss.
"""

from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import BadInput

LOSSES = ("cross-entropy", "focal")  # what --loss may name


def make_loss(opt: Namespace, counts: list[int]) -> nn.Module:
    """The loss for `--loss`: a new one is another name above and another `if` here.

    Args:
        opt: The options.
        counts: Training images of each class, for `--balance`.

    Raises:
        BadInput: There is no `if` for the name.
    """
    weight = balanced_weights(counts) if opt.balance else None
    if opt.loss == "focal":
        return FocalLoss(weight, label_smoothing=opt.label_smoothing)
    if opt.loss == "cross-entropy":
        return CrossEntropy(weight, opt.label_smoothing)
    raise BadInput(f"--loss {opt.loss}: make_loss in losses.py has no `if` for it above its end")


class CrossEntropy(nn.Module):
    """Cross entropy between scores and labels, with label smoothing and class weights.

    The mean is over the images and not over their weights, so that the loss of a batch is the mean
    of the losses of its parts: accumulated gradients and several GPUs give what one batch gives.

    Args:
        weight: Of each class, of shape (K,), or None for equal weights.
        label_smoothing: Share in [0, 1) of the target that goes to all classes alike
            (Szegedy et al. 2016).

    Shape: scores (N, K), labels (N,) or (N, K) -> scalar >= 0, in nats.
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            scores,
            labels,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction="none",
        ).mean()


class FocalLoss(nn.Module):
    """Cross entropy that turns away from images which are already classified well.

    The loss of an image whose class has probability p is multiplied by (1 - p) ** gamma
    (Lin et al. 2017, Focal Loss for Dense Object Detection, equation 4). If several classes share
    an image, each term of the cross entropy is multiplied so, by the p of its class.

    Args:
        weight: Of each class, of shape (K,), or None for equal weights.
        gamma: >= 0; 0 gives plain cross entropy.
        label_smoothing: As in CrossEntropy.

    Shape: scores (N, K), labels (N,) or (N, K) -> scalar >= 0, in nats.
    """

    weight: Tensor | None

    def __init__(
        self, weight: Tensor | None = None, gamma: float = 2.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.gamma, self.label_smoothing = gamma, label_smoothing

    def forward(self, scores: Tensor, labels: Tensor) -> Tensor:
        k, log_p = scores.shape[1], scores.log_softmax(dim=1)
        shares = class_shares(labels, k) * (1 - self.label_smoothing) + self.label_smoothing / k
        terms = -shares * (1 - log_p.exp()) ** self.gamma * log_p
        return (terms if self.weight is None else terms * self.weight).sum(dim=1).mean()


def class_shares(labels: Tensor, k: int) -> Tensor:
    """Labels as the share of each of `k` classes: (N,) int64, or (N, K) as it is -> (N, K)."""
    return functional.one_hot(labels, k).float() if labels.dim() == 1 else labels


def balanced_weights(counts: list[int]) -> Tensor:
    """Weights that let each class count alike, however many images it has; their mean is 1.

    Args:
        counts: Images of each class; one without any, as groups may leave it, counts as if it had
            one.

    Returns:
        Shape (K,): total / (K * count), the mean being taken over the images.
    """
    images = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
    return images.sum() / (len(counts) * images)
