"""The networks of a model in a few lines: their parts, what these return, their parameters."""

from torch import Tensor, nn

from engine.modules import run_with_hooks, with_parameters

LINES = 10  # of all networks together
Parts = list[tuple[str, nn.Module]]


def summarize(model: nn.Module, networks: dict[str, nn.Module], sample: tuple[Tensor, ...]) -> str:
    """A line for each network, and below it one for each of its parts.

    Args:
        model: The finished model; it is run once, in evaluation mode.
        networks: Its networks by name; those without parameters are left out.
        sample: A sample of the data set, of which the model takes batches.
    """
    networks = with_parameters(networks)
    chosen = {name: _choose(net, LINES // len(networks) - 1) for name, net in networks.items()}
    shapes: dict[nn.Module, str] = {}  # that each part returns for one sample, if it is a tensor

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[module] = "x".join(map(str, output.shape[1:]))

    shown = [module for parts in chosen.values() for _, module in parts]
    run_with_hooks(model, sample, dict.fromkeys(shown, note))
    lines = []
    for name, network in networks.items():
        lines.append(f"{name}: {type(network).__name__}, {_count(network):,} parameters")
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        if trained < _count(network):
            lines[-1] += f", {trained:,} of them trained"
        rows = [
            (part, type(module).__name__, shapes.get(module, ""), f"{_count(module):,}")
            for part, module in chosen[name]
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for *texts, count in rows:
            cells = [*map(str.ljust, texts, widths), count.rjust(widths[-1])]
            lines.append("  ".join(["", *cells]))
    return "\n".join(lines)


def _choose(network: nn.Module, room: int) -> Parts:
    """The parts of a network that are listed, at most `room`.

    All, with the elements of sequences in their place. If these are too many, those with
    parameters; then a sequence is one part; then the largest parts.
    """
    whole: Parts = list(network.named_children())
    unfolded: Parts = []
    for name, child in whole:
        sequence = isinstance(child, nn.Sequential | nn.ModuleList)
        inner = [(f"{name}.{part}", module) for part, module in child.named_children()]
        unfolded += inner if sequence else [(name, child)]
    for parts in (unfolded, _with_parameters(unfolded), _with_parameters(whole)):
        if len(parts) <= room:
            return parts
    largest = sorted(parts, key=lambda part: -_count(part[1]))[: max(1, room)]
    return [part for part in parts if part in largest]


def _with_parameters(parts: Parts) -> Parts:
    return [part for part in parts if _count(part[1])]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
