"""The networks in a table, printed at the start of a run."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate


@torch.no_grad()
def summarize(model: nn.Module, networks: dict[str, nn.Module], sample: tuple[Tensor, ...]) -> str:
    """A line for each part of each network: name, type, output shape, parameters.

    Args:
        model: The finished model; it is run once, in evaluation mode.
        networks: Those of its parts that are to be described.
        sample: One of what the model takes batches of.
    """
    parts = {
        f"{name}.{part}": child
        for name, network in networks.items()
        for part, child in _direct_parts(network)
    }
    shapes: dict[str, str] = {}
    hooks = [child.register_forward_hook(_note(shapes, name)) for name, child in parts.items()]
    device = next(model.parameters()).device
    model.eval()
    model(*(part.to(device) for part in default_collate([sample, sample])))
    for hook in hooks:
        hook.remove()
    rows = [("part", "type", "output", "parameters")]
    rows += [
        (name, type(child).__name__, shapes.get(name, ""), f"{_count(child):,}")
        for name, child in parts.items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join((*map(str.ljust, row[:3], widths[:3]), row[3].rjust(widths[3]))) for row in rows
    ]
    for name, network in networks.items():
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        kind = type(network).__name__
        lines += [f"{name}: {kind}, {_count(network):,} parameters, {trained:,} of them trained"]
    return "\n".join(lines)


def _direct_parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of `network`; of a sequence or list of modules its children instead."""
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            yield from ((f"{name}.{part}", inner) for part, inner in child.named_children())
        else:
            yield name, child


def _note(shapes: dict[str, str], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        shapes[name] = "x".join(map(str, output.shape)) if isinstance(output, Tensor) else ""

    return hook


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
