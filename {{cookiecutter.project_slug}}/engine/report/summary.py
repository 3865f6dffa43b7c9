"""The networks of a model in a few lines: their parts, what these return, their parameters."""

from collections.abc import Iterator

from torch import Tensor, nn

from engine.modules import run_with_hooks, with_weights

LINES = 10  # of all networks together
Parts = list[tuple[str, nn.Module]]


def summarize(model: nn.Module, networks: dict[str, nn.Module], sample: tuple[Tensor, ...]) -> str:
    """A line for each network, and below it one for each of its parts.

    Args:
        model: The finished model; it is run once, in evaluation mode.
        networks: Its networks by name; those without parameters are left out.
        sample: A sample of the data set, of which the model takes batches.
    """
    networks = with_weights(networks)
    chosen = _choose(networks)
    shapes = _shapes(model, [module for parts in chosen.values() for _, module in parts], sample)
    tables = {
        name: [
            (f"  {part}", type(module).__name__, shapes.get(module, ""), f"{_count(module):,}")
            for part, module in parts
        ]
        for name, parts in chosen.items()
    }
    every = [row for rows in tables.values() for row in rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    lines = []
    for name, network in networks.items():
        lines.append(f"{name}: {type(network).__name__}, {_count(network):,} parameters")
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        if trained < _count(network):
            lines[-1] += f", {trained:,} of them trained"
        lines += [
            "  ".join((*map(str.ljust, row[:3], widths), row[3].rjust(widths[3])))
            for row in tables[name]
        ]
    return "\n".join(lines)


def _choose(networks: dict[str, nn.Module]) -> dict[str, Parts]:
    """The parts of each network that are listed, in LINES with one for each network.

    All, with the elements of sequences in their place. If these are too many, those with
    parameters; then a sequence is one part; then the largest parts.
    """
    room = LINES - len(networks)
    for unfold, least in ((True, 0), (True, 1), (False, 1)):
        chosen = {
            name: [part for part in _parts(network, unfold) if _count(part[1]) >= least]
            for name, network in networks.items()
        }
        if sum(map(len, chosen.values())) <= room:
            return chosen
    for name, parts in chosen.items():
        largest = sorted(parts, key=lambda part: -_count(part[1]))[: max(1, room // len(networks))]
        chosen[name] = [part for part in parts if part in largest]
    return chosen


def _parts(network: nn.Module, unfold: bool) -> Iterator[tuple[str, nn.Module]]:
    """The children of `network`; of a sequence or list of modules its children if `unfold`."""
    for name, child in network.named_children():
        if unfold and isinstance(child, nn.Sequential | nn.ModuleList):
            yield from ((f"{name}.{part}", inner) for part, inner in child.named_children())
        else:
            yield name, child


def _shapes(
    model: nn.Module, modules: list[nn.Module], sample: tuple[Tensor, ...]
) -> dict[nn.Module, str]:
    """The shape that each module returns for one sample, if it returns a tensor."""
    shapes: dict[nn.Module, str] = {}

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[module] = "x".join(map(str, output.shape[1:]))

    run_with_hooks(model, sample, dict.fromkeys(modules, note))
    return shapes


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
