"""Which weights learn how fast, and which of them decay: the parameter groups of an optimizer."""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from torch import nn


def layers_of(network: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each layer, from the input to the head, which is the last one.

    A `Sequential`, and every module with more than half of all parameters, is taken apart; what is
    left counts as a layer. ResNet-18 has 11: a convolution, its norm, eight blocks, the head. It
    relies on modules being registered in the order in which they are called.
    """
    half = sum(parameter.numel() for parameter in network.parameters()) / 2

    def walk(module: nn.Module) -> Iterator[list[nn.Parameter]]:
        size = sum(parameter.numel() for parameter in module.parameters())
        parts = list(module.children())
        if parts and (isinstance(module, nn.Sequential) or size > half):
            yield list(module.parameters(recurse=False))
            for part in parts:
                yield from walk(part)
        else:
            yield list(module.parameters())

    return [layer for layer in walk(network) if layer]


def parameter_groups(opt: Namespace, network: nn.Module) -> list[dict[str, Any]]:
    """The groups for an optimizer: the parameters that require a gradient, each in one of them.

    The learning rate of the head is the one given; each layer before it has `--layer-decay` times
    that of the next one, as `lr_scale` of its groups (Howard and Ruder 2018). Norms and biases,
    whose parameters are vectors, do not decay unless `--decay-norms` says so.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()  # a weight that two layers share belongs to the first
    for depth, layer in enumerate(reversed(layers_of(network))):
        for parameter in layer:
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            decays = parameter.dim() > 1 or opt.decay_norms
            key = opt.layer_decay**depth, opt.weight_decay if decays else 0.0
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), params in groups.items()
    ]
