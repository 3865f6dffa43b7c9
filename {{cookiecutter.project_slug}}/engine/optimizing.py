"""Optimizers, and the learning rate as a pure function of n_iter."""

import math
from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, AdamW, Optimizer

LEAST_SCALE = 2.0**-20  # of fp16's losses, which begin at 2**16
SCHEDULES = ("cosine", "linear", "late-linear", "constant")
OPTIMIZERS = ("sgd", "adam", "adamw")
FUSED = True  # one kernel for all weights, on every kind of device


def make_optimizers(opt: Namespace, networks: dict[str, nn.Module]) -> dict[str, Optimizer]:
    """An optimizer for each network that has something to train, under the network's name."""
    return {
        name: make_optimizer(opt, network)
        for name, network in networks.items()
        if any(parameter.requires_grad for parameter in network.parameters())
    }


def make_optimizer(opt: Namespace, network: nn.Module) -> Optimizer:
    """The optimizer that `--optimizer` names, over those parameters that want a gradient."""
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    more = {"weight_decay": opt.weight_decay, "fused": FUSED}
    if opt.optimizer == "sgd":
        return SGD(wanted, opt.lr, momentum=opt.momentum, **more)
    kind = {"adam": Adam, "adamw": AdamW}[opt.optimizer]
    return kind(wanted, opt.lr, betas=(opt.momentum, 0.999), **more)


def learning_rate(opt: Namespace, n_iter: int, total: int) -> float:
    """The learning rate of step `n_iter`, counted from 0, of `total` steps.

    It rises linearly over the first `--warmup` share of the steps to `--lr`, then stays there
    (constant), or falls to zero: linearly, along half a cosine (Loshchilov and Hutter 2017), or
    linearly in the second half of the time (late-linear; Isola et al. 2017).
    """
    warmup = round(opt.warmup * total)
    if n_iter < warmup:
        return opt.lr * (n_iter + 1) / (warmup + 1)
    done = (n_iter - warmup) / max(1, total - warmup)
    falling = {
        "constant": 1.0,
        "linear": 1 - done,
        "late-linear": min(1.0, 2 * (1 - done)),
        "cosine": (1 + math.cos(math.pi * done)) / 2,
    }
    return opt.lr * falling[opt.schedule]


def trained_by(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters that `optimizer` changes."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def limit_gradient(optimizer: Optimizer, scaler: GradScaler, limit: float) -> Tensor:
    """Scales the gradient down to a norm of `limit`; 0 leaves it as it is.

    Returns:
        The norm before, a scalar on the device. In fp16 one that is not finite counts as 0, since
        the scaler leaves such a step out and halves its scale; only when that does not help for
        long is it infinite.
    """
    scaler.unscale_(optimizer)
    gradients = [p.grad for p in trained_by(optimizer) if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if limit:
        nn.utils.clip_grads_with_norm_(trained_by(optimizer), limit, norm)
    if not scaler.is_enabled():
        return norm
    scale = scaler.scale(torch.ones_like(norm))  # get_scale() would wait for the device
    return torch.where(scale < LEAST_SCALE, math.inf, 0.0)
