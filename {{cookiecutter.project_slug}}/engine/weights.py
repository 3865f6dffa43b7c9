"""Where a network starts from: the weights of another run, or of another project."""

import collections
import datetime
import json
import re
import types
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine import terminal
from engine.checkpoint import (
    digest_of,
    find_checkpoint,
    format_of,
    judged,
    load_tensors,
    reading,
    verify,
)
from engine.errors import BadInput, Fault, shorten
from engine.modules import layers_of

Weights = dict[str, Tensor]
NUMPY = ("numpy.core", "numpy._core")
# What others put beside their weights, and what can run no code of theirs.
HARMLESS: list[Any] = [
    *(Namespace, types.SimpleNamespace, collections.defaultdict, np.ndarray, np.dtype),
    *(datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone),
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSU"),
    *(dict, list, set, tuple),
    # By the names that versions of Python and numpy have written.
    *((PurePosixPath, f"pathlib.{part}Path") for part in ("Posix", "PurePosix", "_local.Posix")),
    *((PureWindowsPath, f"pathlib.{part}Path") for part in ("Windows", "_local.Windows")),
    *((np.float64(0).__reduce__()[0], f"{core}.multiarray.scalar") for core in NUMPY),
    *((np.zeros(1).__reduce__()[0], f"{core}.multiarray._reconstruct") for core in NUMPY),
]
OF_OPTIMIZER = {"state", "param_groups"}  # keys of the state of an optimizer
BUFFERS = {"running_mean", "running_var", "num_batches_tracked"}  # of norms, no parameters
# Words in the name of what others judge by.
AVERAGED = {"ema", "averaged", "average", "avg", "swa", "shadow", "teacher"}


def digest_of_weights(name: str | None) -> str:
    """A digest of the file that `--weights` names; empty without it, or if it is gone."""
    path = Path(find_checkpoint(name)) if name else None
    return digest_of(path)[:23] if path and path.is_file() else ""


def load_fitting(
    networks: dict[str, nn.Module], name: str, options: dict[str, Any], info: dict[str, Any]
) -> None:
    """Puts the weights of a file into networks, as far as names and shapes fit; prints how far.

    The head, the last layer, is left as it is unless the file was trained for the names in `info`.

    Args:
        networks: The networks by name. A state dict of others is one of the network `net`.
        name: A run folder, a checkpoint of this project, or a state dict (.pt, .pth, .safetensors).
        options: Those of this run that its weights depend on, for the message that too few fit.
        info: What the model knows of the training data.

    Raises:
        BadInput: The file cannot be read, or too little in it fits.
    """
    path = Path(find_checkpoint(name))
    state = _read(path)
    trained_with: dict[str, Any] = {}
    found: dict[str, tuple[Weights, str]] = {}
    if {"n_iter", "args"} <= state.keys():
        trained_with, theirs = state["args"], state.get("info", {})
        found = {key: (judged(state, key), "") for key in networks.keys() & state.keys()}
    else:
        theirs = _description(path) or state
        if "net" in networks:
            found = {"net": _best(networks["net"].state_dict(), state, path)}
    head = _other_head(theirs, info)
    fitted = [_fit(networks[key], *found[key], key, path, head) for key in networks if key in found]
    if not any(fitted):
        differ = [key for key in options if trained_with.get(key, options[key]) != options[key]]
        flags = [f"--{key.replace('_', '-')} {trained_with[key]}" for key in sorted(differ)]
        why = f"{name} was trained with {shorten(flags)}" if flags else "is it of another network?"
        raise BadInput(
            f"--weights {path}: fewer than half of the convolutions or matrices here have one of "
            f"their name and shape in it; {why}"
        )


def _fit(network: nn.Module, weights: Weights, kind: str, name: str, path: Path, head: str) -> bool:
    """Puts what fits into a network, if that is most of it; prints how much."""
    own = network.state_dict()
    weights, adapted = _adapted(own, weights)
    last = {id(parameter) for layer in layers_of(network)[-1:] for parameter in layer}
    heads = {key for key, p in network.named_parameters() if id(p) in last}
    fitting = {key: weights[key] for key in _fitting(own, weights)}
    if bad := [key for key, value in fitting.items() if not value.isfinite().all()]:
        raise BadInput(f"--weights {path}: {shorten(bad, 3)} not finite; take another file")
    large = [key for key in own if own[key].dim() > 1 and key not in heads] or list(own)
    if 2 * len(fitting.keys() & large) < len(large) or not fitting:
        return False
    if head and heads < own.keys() and heads & fitting.keys():
        fitting = {key: value for key, value in fitting.items() if key not in heads}
    else:
        head = ""
    network.load_state_dict(fitting, strict=False)
    rest = [
        f"{key} {tuple(own[key].shape)}"
        + (f" is {tuple(weights[key].shape)} there" if key in weights else "")
        for key in own
        if key not in fitting and not (head and key in heads)
    ]
    left = adapted + (f"; head at random: {head}" if head else "")
    left += f"; at random: {shorten(rest)}" if rest else ""
    if unused := [key for key in weights if key not in own]:
        left += f"; not used: {shorten(unused, 3)}"
    how_many = f"{len(fitting)} of {len(own)} tensors"
    terminal.say(f"weights: {how_many} of {name} from {path}{kind}{left}")
    return True


def _adapted(own: Weights, weights: Weights) -> tuple[Weights, str]:
    """The weights with the first convolution for RGB, if that is all that differs, adapted.

    To another number of channels; and what to say of it.
    """
    first = next((key for key, value in own.items() if value.dim() == 4), "")
    given, channels = weights.get(first), own[first].shape[1] if first else 0
    if given is None or given.dim() != 4 or given.shape[1] != 3 or channels == 3:
        return weights, ""
    changed = adapt_channels(given, channels)
    if changed.shape != own[first].shape:
        return weights, ""
    return {**weights, first: changed}, f"; {first} of 3 channels adapted to {channels}"


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """The weight of a first convolution for RGB, (K, 3, h, w), for C channels, (K, C, h, w).

    As in timm: for grey the sum over RGB, which gives a grey image the features it had; for more
    channels RGB over and over, times 3 / C.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
    return repeated * (3 / channels)


def _fitting(own: Weights, weights: Weights) -> list[str]:
    return [key for key in own if key in weights and own[key].shape == weights[key].shape]


def _other_head(theirs: dict[str, Any], info: dict[str, Any]) -> str:
    """Why a head is not the one for these data; empty if it is, or data have no names."""
    for key, now in info.items():
        if not isinstance(now, dict | list | tuple):
            continue
        if isinstance(now, dict) and all(isinstance(value, float) for value in now.values()):
            continue  # statistics
        if not isinstance(before := theirs.get(key), dict | list | tuple):
            return f"the file does not say which {key} it was trained for"
        numbers = {*map(str, range(len(before)))}
        if isinstance(before, dict) and {*map(str, before.values())} == numbers:
            before = sorted(before, key=before.__getitem__)  # the index of each name
        if list(before) != list(now):
            return f"it was trained for {shorten([*map(str, before)])}"
    return ""


def _read(path: Path) -> dict[Any, Any]:
    """What a file holds, on the CPU; a list as a dict of its places."""
    if not path.is_file():
        what = "is no folder of a run" if path.is_dir() else "no such file"
        raise BadInput(f"--weights {path}: {what}")
    with _as_option(path), reading(path), torch.serialization.safe_globals(HARMLESS):
        kind = format_of(path)
        if kind == "safetensors":
            return load_file(path)
        if kind == "zip":
            verify(path)
        state = load_tensors(path)
    if isinstance(state, Tensor):
        raise BadInput(f"--weights {path}: a tensor without a name; save the state dict")
    if isinstance(state, list | tuple):
        state = {str(place): item for place, item in enumerate(state)}
        if any(isinstance(item, Tensor) for item in state.values()):
            raise BadInput(
                f"--weights {path}: a list of {len(state)} tensors, which have no names; save the "
                "state dict"
            )
    return state if isinstance(state, dict) else {}


@contextmanager
def _as_option(path: Path) -> Iterator[None]:
    """A block whose errors begin with the option."""
    try:
        yield
    except (BadInput, Fault) as error:
        text = str(error).replace(": damaged or not a checkpoint: ", ": ", 1)
        raise (Fault if isinstance(error, Fault) else BadInput)(f"--weights {text}") from None


def _description(path: Path) -> dict[str, Any]:
    """The JSON that export.py writes beside a file of safetensors; empty if there is none."""
    try:
        text = path.with_suffix(".json").read_text(encoding="utf-8")
        found = json.loads(text) if format_of(path) == "safetensors" else {}
    except (OSError, ValueError, BadInput):
        return {}
    return found if isinstance(found, dict) else {}


def _best(own: Weights, state: Any, path: Path) -> tuple[Weights, str]:
    """Of the weights in a file of others those that fit best, and which ones they are.

    They are told apart by what is in front of the names of the network: a key of the file, and what
    wrappers add, as `module.`. Of those that fit as well averaged weights are preferred. What these
    lack, as buffers, comes from the best of the others.
    """
    tensors = _named(state, path)
    prefixes: dict[str, None] = {}
    for key in tensors:
        parts = key.split(".")
        for i in range(len(parts)):
            if (name := ".".join(parts[i:])) in own:
                prefixes[key.removesuffix(name)] = None
    found = []
    for prefix in prefixes or [""]:
        named = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        fitting = _fitting(own, named)
        large = sum(own[key].dim() > 1 for key in fitting)
        averaged = _is_averaged(prefix)
        found.append((large, averaged, len(fitting), -len(prefix), prefix, named))
    (_, averaged, _, _, prefix, best), *others = sorted(found, key=lambda o: o[:4], reverse=True)
    if not averaged:
        return best, ""
    for *_, named in others:
        best = {**{key: named[key] for key in _fitting(own, named)}, **best}
    return best, f" (the averaged ones, {prefix.rstrip('.')})"


def _named(state: Any, path: Path) -> Weights:
    """The tensors in a file by their places, those of lists by the names beside them."""
    tensors, lists = dict(_tensors(state)), dict(_lists(state))
    for place, values in lists.items():
        tensors.update(_named_in_order(place, values, tensors))
    if not tensors:
        kept = ", ".join(f"{place} ({len(values)} tensors)" for place, values in lists.items())
        what = f"; {kept} have no names: save the state dict beside them" if kept else ""
        what = what or "; its tensors are those of an optimizer" * _has_optimizer(state)
        raise BadInput(f"--weights {path}: holds no state dict{what}")
    known = [place for place in lists if any(key.startswith(f"{place}.") for key in tensors)]
    if lost := [place for place in lists if _is_averaged(place) and place not in known]:
        terminal.warn(
            f"--weights {path}: {shorten(lost)}: not used, as these tensors have no names and are "
            "not those of a state dict in it, in their order"
        )
    return tensors


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in a file, by their places in its dicts; not those of an optimizer."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        yield name, torch.from_numpy(value.copy())
    elif isinstance(value, dict) and not value.keys() >= OF_OPTIMIZER:
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _lists(value: Any, name: str = "") -> Iterator[tuple[str, list[Tensor]]]:
    """The lists of parameters without names in a file, as torch_ema keeps them, by their places."""
    if isinstance(value, dict) and not value.keys() >= OF_OPTIMIZER:
        for key, item in value.items():
            yield from _lists(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value and all(isinstance(v, Tensor) for v in value):
        yield name, list(value)


def _named_in_order(place: str, values: list[Tensor], tensors: Weights) -> Weights:
    """A list of parameters by the names of a state dict in the same file, if it is of these."""
    by_dict: dict[str, list[str]] = {}
    for key in tensors:
        if key.rpartition(".")[2] not in BUFFERS:
            for i, letter in enumerate(key):
                if i == 0 or letter == ".":
                    by_dict.setdefault(key[: i and i + 1], []).append(key)
    for prefix, keys in by_dict.items():
        if [tensors[key].shape for key in keys] == [value.shape for value in values]:
            names = [f"{place}.{key.removeprefix(prefix)}" for key in keys]
            return dict(zip(names, values, strict=True))
    return {}


def _is_averaged(place: str) -> bool:
    return not AVERAGED.isdisjoint(re.split("[._]", place.lower()))


def _has_optimizer(value: Any) -> bool:
    is_dict = isinstance(value, dict)
    return is_dict and (value.keys() >= OF_OPTIMIZER or any(map(_has_optimizer, value.values())))
