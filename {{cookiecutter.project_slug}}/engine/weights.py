"""Where a network starts from: the weights of another run, or of another project."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine import terminal
from engine.checkpoint import find_checkpoint, judged, reading, verify
from engine.errors import BadInput, shorten

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")  # which wrappers put in front


def load_fitting(networks: dict[str, nn.Module], name: str, options: dict[str, Any]) -> None:
    """Puts the weights of a file into networks, as far as names and shapes fit; prints how far.

    What does not fit, such as a head for other classes, stays as it is.

    Args:
        networks: The networks by name. Those of an own checkpoint get the weights of the same name,
            the averaged ones if there are any; a state dict is one of the network `net`.
        name: A run folder, a checkpoint of this project, or a state dict (.pt, .pth, .safetensors).
        options: Those of this run that its weights depend on, for the message that nothing fits.

    Raises:
        BadInput: The file cannot be read, or nothing in it fits.
    """
    path = find_checkpoint(name)
    found, trained_with = _read(Path(path))
    fitted = sum(
        _fit(networks[network_name], found[network_name], network_name, path)
        for network_name in networks
        if network_name in found
    )
    if not fitted:
        theirs = [
            f"--{key.replace('_', '-')} {trained_with[key]}"
            for key in options.keys() & trained_with.keys()
            if trained_with[key] != options[key]
        ]
        why = f"; {name} was trained with {shorten(sorted(theirs))}" if theirs else ""
        raise BadInput(
            f"--weights {path}: no tensor in it has the name and the shape of one here{why}"
        )


def _fit(network: nn.Module, weights: dict[str, Tensor], name: str, path: Path | str) -> int:
    """Puts what fits into a network; prints how much it is, and returns the number of tensors."""
    own = network.state_dict()
    fitting = {
        key: weights[key]
        for key in own.keys() & weights.keys()
        if own[key].shape == weights[key].shape
    }
    network.load_state_dict(fitting, strict=False)
    rest = [
        f"{key} {tuple(own[key].shape)}"
        + (f" is {tuple(weights[key].shape)} there" if key in weights else "")
        for key in own
        if key not in fitting
    ]
    left = f"; at random: {shorten(rest)}" if rest else ""
    terminal.say(f"weights: {len(fitting)} of {len(own)} tensors of {name} from {path}{left}")
    return len(fitting)


def _read(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The weights in a file by the names of networks, and the options of their run if known."""
    if not path.is_file():
        raise BadInput(f"--weights {path}: no such file")
    with reading(f"--weights {path}"):
        if path.suffix == ".safetensors":
            return {"net": _bare(load_file(path))}, {}
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and {"n_iter", "args"} <= state.keys():
        verify(path)
        weights = {name: judged(state, name) for name in state if _is_state_dict(state[name])}
        return weights, state["args"]
    for key in ("state_dict", "model", "model_state_dict"):  # where others keep it
        if isinstance(state, dict) and _is_state_dict(state.get(key)):
            state = state[key]
    if not _is_state_dict(state):
        raise BadInput(f"--weights {path}: holds no state dict")
    return {"net": _bare(state)}, {}


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values())


def _bare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the prefixes that all of its names share."""
    for prefix in 2 * PREFIXES:  # one may be inside another
        if all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if isinstance(value, Tensor)}
