"""Optimizers, the learning rate, and the guard against values that are not finite."""

import math
from argparse import Namespace
from functools import reduce
from itertools import chain
from operator import add
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, AdamW, Optimizer

from engine.averages import Averages
from engine.distributed import ALONE, TreeSum, World
from engine.errors import BadInput, Diverged
from engine.evaluation import Losses
from engine.modules import layers_of, norms_of, rest_of, with_parameters

LEAST_SCALE = 2.0**-20  # of the losses in fp16, which begins at 2**16
SCHEDULES = ("cosine", "linear", "late-linear", "constant")
OPTIMIZERS = ("sgd", "adam", "adamw")
Networks = dict[str, nn.Module]  # by name
FUSED = True  # one kernel for all weights, on every kind of device


class Optimizers:
    """An optimizer for each network that has parameters to train.

    The order of a step is `begin_step`, `backward` for each micro-batch, `step`. The scaler of the
    losses does nothing unless the precision is fp16.

    Raises:
        BadInput: There is nothing to train, or no norm for `--hold-norms`.
        Diverged: A loss or the norm of a gradient is not finite. On the CPU that is noticed at
            once, before it can reach the weights. Elsewhere it is noticed by `check`, since asking
            at each step would make the program wait for the device.
    """

    def __init__(
        self, opt: Namespace, networks: Networks, scaler: GradScaler, world: World = ALONE
    ) -> None:
        self.networks, self.scaler, self.world = networks, scaler, world
        self.accumulate, self.clip_grad = opt.accumulate, opt.clip_grad
        self.optimizers = {
            name: make_optimizer(opt, network)
            for name, network in networks.items()
            if any(parameter.requires_grad for parameter in network.parameters())
        }
        self.weights = {name: parameters_of(one) for name, one in self.optimizers.items()}
        if not self.weights:
            raise BadInput("networks() of the model: no parameter requires a gradient; train one")
        heads = {id(p) for name in self.weights for p in layers_of(networks[name])[-1]}
        self.heads = {name: [p for p in ws if id(p) in heads] for name, ws in self.weights.items()}
        # What is in evaluation mode: beside heads that are trained alone, and --hold-norms.
        several = with_parameters(networks)
        self.head_only, alone = False, opt.freeze or opt.head_epochs
        self.rest = [m for net in several.values() if alone for m in rest_of(net)]
        self.held = [m for net in several.values() if opt.hold_norms for m in norms_of(net)]
        if opt.hold_norms and not self.held:
            raise BadInput("--hold-norms: the networks have no batch norm; add --no-hold-norms")
        # A module takes its time to say that it has no such attribute: not at each step.
        ending = [network for network in networks.values() if hasattr(network, "end_step")]
        self.end_steps: list[Any] = [network.end_step for network in ending]
        self.averages = Averages(several, opt.ema)
        # What forward passes may change, such as the statistics of batch norm. That of networks
        # without parameters, such as an image pool, is changed by their `end_step`.
        self.buffers = [buffer for net in several.values() for buffer in net.buffers()]
        self.statistics = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        self.counts = [buffer for buffer in self.buffers if not buffer.is_floating_point()]
        self.before: list[Tensor] = []  # the buffers at the beginning of the step
        self.counted: list[Tensor] = []  # the counts after a micro-batch
        self.divided = opt.accumulate > 1 or world.size > 1
        self.gradients, self.means = TreeSum(opt.accumulate), TreeSum(opt.accumulate)
        self.n_iter = 0
        self.trained = self.weights  # or the heads alone
        self.gradient_norms: dict[str, Tensor] = {}  # of the last step, before clipping
        self._unchecked: list[tuple[int, Tensor]] = []  # a step, and scalars on the device

    def begin_step(self, n_iter: int, lr: float, head_only: bool = False) -> None:
        """Begins step `n_iter` with the learning rate `lr`, without gradients.

        With `head_only` the step changes the last layer of each network and no other; the other
        ones are in evaluation mode.
        """
        self.n_iter = n_iter
        if self.head_only and not head_only:
            for network in self.networks.values():
                network.train()
        self.head_only = head_only
        for module in (*(self.rest if head_only else ()), *self.held):
            module.training = False  # validations set it to true
        self.trained = self.heads if head_only else self.weights
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            for parameter in self.weights[name]:
                parameter.grad = None  # as Optimizer.zero_grad, which records a span of a profile
        if self.divided:
            self.before = [buffer.clone() for buffer in self.buffers]

    def backward(self, losses: Losses) -> None:
        """Adds the gradients of the losses of a micro-batch; BadInput if one is no scalar.

        The losses of a network are added up, and their gradients go into its parameters alone: a
        generator's loss passes through the discriminator and must not train it.
        """
        for name in self.optimizers:
            for loss_name, value in losses[name].items():
                if value.dim():
                    raise BadInput(
                        f"the loss {loss_name} has the shape {tuple(value.shape)} and must be a "
                        "scalar: let it return the mean over the images"
                    )
            loss = reduce(add, losses[name].values())
            self._watch(loss)
            mean = loss / self.accumulate if self.accumulate > 1 else loss
            self.scaler.scale(mean).backward(inputs=self.trained[name])
        if self.divided:
            self._put_aside()

    def step(self) -> None:
        """Changes the weights: add up, unscale, clip, guard, step, in this order."""
        for end_step in self.end_steps:  # before weights or statistics change: it may fail
            end_step(self.world.all_gather)
        if self.divided:
            self._add_up()
        for name, optimizer in self.optimizers.items():
            norm = clip_gradient(optimizer, self.scaler, self.clip_grad)
            self.gradient_norms[name] = norm
            self._watch(self._guarded(norm))
            self.scaler.step(optimizer)
        self.scaler.update()
        self.averages.update(self.n_iter)

    def _put_aside(self) -> None:
        """Adds gradients and statistics of a micro-batch to the sums, and resets both."""
        gradients = []
        for parameter in chain.from_iterable(self.trained.values()):
            unused = parameter.grad is None  # by this micro-batch, but perhaps not by another
            gradients.append(torch.zeros_like(parameter) if unused else parameter.grad)
            parameter.grad = None
        self.gradients.add(cast(list[Tensor], gradients))
        self.means.add([buffer.to(_wide(buffer), copy=True) for buffer in self.statistics])
        self.counted = [buffer.clone() for buffer in self.counts]
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)

    def _add_up(self) -> None:
        """Sums gradients and averages statistics, over the micro-batches of all processes."""
        gradients = self.world.all_reduce(self.gradients.total())
        sums = self.world.all_reduce(self.means.total())
        trained = chain.from_iterable(self.trained.values())
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        for buffer, total in zip(self.statistics, sums, strict=True):
            buffer.copy_(total / self.accumulate)
        for buffer, counted in zip(self.counts, self.counted, strict=True):
            buffer.copy_(counted)  # the same after each micro-batch

    def check(self) -> None:
        """Raises Diverged if a value since the last check was not finite; waits for the device."""
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        finite = torch.stack([value for _, value in unchecked]).isfinite().tolist()
        for (n_iter, _), fine in zip(unchecked, finite, strict=True):
            if not fine:
                raise Diverged(
                    f"the loss or the gradient of step {n_iter + 1} is not finite; try a lower "
                    "--lr, a longer --warmup or --clip-grad 1"
                )

    def state_dict(self) -> dict[str, Any]:
        """The state of each optimizer by name. What is saved has passed the check."""
        self.check()
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what the optimizers remember of each weight; options stay those given now.

        Raises KeyError or ValueError if the state is one of other weights.
        """
        for name, optimizer in self.optimizers.items():
            own, loaded = optimizer.state_dict()["param_groups"], state[name]["param_groups"]
            groups = [
                {**group, "params": other["params"]}
                for group, other in zip(own, loaded, strict=True)
            ]
            optimizer.load_state_dict({"state": state[name]["state"], "param_groups": groups})
            preset_momentum(optimizer)  # it has none if --momentum was 0 before

    def _guarded(self, norm: Tensor) -> Tensor:
        """A norm of a gradient, which has to be finite.

        In fp16, where the scaler skips a step whose norm is not finite and halves its scale, it is
        0 instead, or infinite once the scale has become tiny.
        """
        if not self.scaler.is_enabled():
            return norm
        scale = self.scaler.scale(torch.ones_like(norm))  # get_scale() would wait for the device
        return torch.where(scale < LEAST_SCALE, math.inf, 0.0)

    @torch.no_grad()
    def norms(self) -> dict[str, float]:
        """The norm of the last gradient, before clipping, and of the weights of each network.

        Those of fp16 steps that were skipped are left out. Waits for the device.
        """
        found = {f"gradient_norm/{name}": norm for name, norm in self.gradient_norms.items()}
        for name, weights in self.weights.items():
            found[f"weight_norm/{name}"] = total_norm([*weights])
        values = torch.stack([norm.float() for norm in found.values()]).tolist()
        return {name: v for name, v in zip(found, values, strict=True) if math.isfinite(v)}

    def _watch(self, value: Tensor) -> None:
        """Notes a scalar that has to be finite."""
        self._unchecked.append((self.n_iter, value.detach()))
        # At once where no device is waited for; else now and then, not to fill the memory.
        if value.is_cpu or len(self._unchecked) >= 1000:
            self.check()


def _wide(tensor: Tensor) -> torch.dtype:
    """The type to average in: float64, where the device has it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def make_optimizer(opt: Namespace, network: nn.Module) -> Optimizer:
    """The optimizer for `--optimizer`, over the parameters that require a gradient."""
    groups, momentum = parameter_groups(opt, network), opt.momentum
    if opt.optimizer != "sgd":
        kind = {"adam": Adam, "adamw": AdamW}[opt.optimizer]
        return kind(groups, opt.lr, betas=(momentum, 0.999), fused=FUSED)
    sgd = SGD(groups, opt.lr, momentum=momentum, nesterov=momentum > 0, fused=FUSED)
    preset_momentum(sgd)
    return sgd


def parameter_groups(opt: Namespace, network: nn.Module) -> list[dict[str, Any]]:
    """The groups for an optimizer: the parameters that require a gradient, each in one of them.

    The learning rate of the head is the one given; each layer before it has `--layer-decay` times
    that of the next one, as `lr_scale` of its groups (Howard and Ruder 2018). Norms and biases,
    whose parameters are vectors, do not decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()  # a weight that two layers share belongs to the first
    for depth, layer in enumerate(reversed(layers_of(network))):
        for parameter in layer:
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                decay = opt.weight_decay if parameter.dim() > 1 else 0.0
                groups.setdefault((opt.layer_decay**depth, decay), []).append(parameter)
    return [
        {"params": params, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), params in groups.items()
    ]


def preset_momentum(optimizer: Optimizer) -> None:
    """Sets the momentum of an SGD that has none yet to zero.

    The fused SGD allocates it without setting it, and counts on its first step to do that; in fp16
    the first step may be skipped.
    """
    if isinstance(optimizer, SGD) and optimizer.param_groups[0]["momentum"]:
        for parameter in parameters_of(optimizer):
            if "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


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


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters that `optimizer` changes."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def clip_gradient(optimizer: Optimizer, scaler: GradScaler, limit: float) -> Tensor:
    """Scales the gradient down to a norm of `limit`, if that is not 0; returns its norm before."""
    scaler.unscale_(optimizer)
    norm = total_norm([p.grad for p in parameters_of(optimizer) if p.grad is not None])
    if limit:
        nn.utils.clip_grads_with_norm_(parameters_of(optimizer), limit, norm)
    return norm


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of all numbers in the tensors, a scalar on their device.

    `nn.utils.get_total_norm` takes more time for its search for devices, and on the CPU for
    calling a norm for each tensor, than for the sum.
    """
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
