"""What features tell of classes without a training: neighbours, logistic regression, labels.

Features are the vectors that a network makes of images before its head. Their similarity is the
cosine of the angle between them.
"""

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = 10
TEMPERATURE = 0.07  # of the weights of neighbours, as in Wu et al. 2018
PART = 1024  # images at a time, whose similarities to all others take memory
MOST = 5000  # images of a split for `first_look`: more take longer than they tell
STEPS, WORK = 100, 1e12  # of the logistic regression: steps, and multiplications in all of them
Batch = tuple[Tensor, ...]  # features (N, D), or (N, V, D) with the plain ones first; labels


def first_look(train: Batch, val: Batch, num_classes: int) -> str:
    """How many images of `val` two simple methods classify rightly that learn from `train`."""
    (features, labels), (others, truth) = (_some(*batch) for batch in (train, val))
    near = vote(features, labels, others, num_classes).argmax(dim=1)
    fitted = fit_logistic(features, labels, others, num_classes).argmax(dim=1)
    shares = [float((found == truth).double().mean()) for found in (near, fitted)]
    text = f"nearest neighbours classify {shares[0]:.2%} of the validation images rightly, "
    text += f"logistic regression {shares[1]:.2%}"
    few = len(features) < len(train[0]) or len(others) < len(val[0])
    return text + f" (by {len(features):,} images, of {len(others):,})" * few


def _some(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """At most MOST images, spread evenly, on the CPU: float32 (N, D), int64 (N,)."""
    rows = torch.arange(0, len(features), -(-len(features) // MOST))
    features, labels = features.cpu()[rows], labels.cpu()[rows]
    return (features[:, 0] if features.dim() == 3 else features).float(), labels


def vote(
    features: Tensor, labels: Tensor, others: Tensor | None, num_classes: int, k: int = NEIGHBOURS
) -> Tensor:
    """The share of each class among the k nearest neighbours, weighted by exp(similarity / T).

    Args:
        features: Those of the neighbours, float32 (N, D).
        labels: Their classes, int64 (N,).
        others: The features to judge, float32 (M, D); None: each of the N, by the rest.
        num_classes: K.
        k: How many neighbours, at most N, or N - 1.

    Returns:
        float32 (M, K).
    """
    known = functional.normalize(features, dim=1)
    asked = known if others is None else functional.normalize(others, dim=1)
    k, found = min(k, len(known) - (others is None)), []
    for first, part in zip(range(0, len(asked), PART), asked.split(PART), strict=True):
        similar = part @ known.T
        if others is None:
            own = torch.arange(len(part))
            similar[own, first + own] = -torch.inf
        nearest, rows = similar.topk(k, dim=1)
        weights = ((nearest - nearest[:, :1]) / TEMPERATURE).exp()
        votes = torch.zeros(len(part), num_classes).scatter_add_(1, labels[rows], weights)
        found.append(votes / votes.sum(dim=1, keepdim=True))
    return torch.cat(found)


def fit_logistic(features: Tensor, labels: Tensor, others: Tensor, num_classes: int) -> Tensor:
    """The scores of a multinomial logistic regression: (M, K) of `others` (M, D).

    Features are standardized; the weights have an L2 penalty, with the C of 1 that is
    scikit-learn's default. L-BFGS in float64, of at most STEPS steps, fewer if they take long.
    """
    mean, std = features.double().mean(dim=0), features.double().std(dim=0, correction=0)
    known, asked = ((x.double() - mean) / std.clamp(min=1e-6) for x in (features, others))
    weight = torch.zeros(known.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    steps = int(min(STEPS, max(10, WORK / (4 * known.numel() * num_classes))))
    how = {"max_iter": steps, "max_eval": 2 * steps, "line_search_fn": "strong_wolfe"}
    solver = torch.optim.LBFGS([weight, bias], **how, tolerance_grad=1e-6)  # type: ignore[arg-type]

    def loss() -> Tensor:
        solver.zero_grad()
        error = functional.cross_entropy(known @ weight + bias, labels)
        value = error + weight.square().sum() / (2 * len(known))
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[arg-type]
    return (asked @ weight + bias).detach()


def doubtful(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The images whose neighbours have other labels, the most doubtful first.

    No image is its own neighbour. Of equal shares of the own label the more alike one comes first,
    whose neighbours agree more.

    Args:
        features: float32 (N, D).
        labels: int64 (N,).
        num_classes: K.

    Returns:
        Their indices, int64 (M,); the class that the most neighbours have, int64 (M,); the shares
        of both labels, their own and that one, float32 (M, 2).
    """
    shares = vote(features, labels, None, num_classes, 2 * NEIGHBOURS)
    own = shares.gather(1, labels[:, None])[:, 0]
    best, classes = shares.max(dim=1)
    order = (own - best).argsort(stable=True)
    order = order[classes[order] != labels[order]]
    return order, classes[order], torch.stack([own, best], dim=1)[order]
