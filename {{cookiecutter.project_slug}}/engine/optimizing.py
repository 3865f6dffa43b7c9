"""Optimizers, and the learning rate as a pure function of n_iter."""

import math
from argparse import Namespace
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer


def make_optimizer(opt: Namespace, network: nn.Module) -> Optimizer:
    """The optimizer that `--optimizer` names, over those parameters that want a gradient."""
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if opt.optimizer == "sgd":
        return SGD(wanted, opt.lr, momentum=opt.momentum, weight_decay=opt.weight_decay)
    kind = {"adam": Adam, "adamw": AdamW}[opt.optimizer]
    return kind(wanted, opt.lr, betas=(opt.momentum, 0.999), weight_decay=opt.weight_decay)


def learning_rate(opt: Namespace, n_iter: int, total: int) -> float:
    """The learning rate of step `n_iter`, counted from 0, of `total` steps.

    It rises linearly over the first `--warmup` share of the steps to `--lr`, then stays there
    (constant), falls linearly, or falls along half a cosine (Loshchilov and Hutter 2017), in both
    cases to zero.
    """
    warmup = round(opt.warmup * total)
    if n_iter < warmup:
        return opt.lr * (n_iter + 1) / (warmup + 1)
    done = (n_iter - warmup) / max(1, total - warmup)
    falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return opt.lr * falling[opt.schedule]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def trained_by(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters that `optimizer` changes."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scales the gradients down to a total norm of `limit`; 0 leaves them as they are.

    Returns:
        The norm before, a scalar on the device.
    """
    return torch.nn.utils.clip_grad_norm_(parameters, limit or math.inf)
