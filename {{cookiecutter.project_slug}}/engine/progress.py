"""What a run has to remember to go on as if it had never stopped."""

import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn
from torch.optim import Optimizer

from engine.checkpoint import Checkpoints, load_weights
from engine.errors import BadInput


@dataclass
class Progress:
    """How far a run has come. `n_iter` says all; the rest remembers what the test passes found."""

    n_iter: int = 0  # optimizer steps done
    tested: int = 0  # n_iter at the last test pass
    best: float = float("-inf")  # the best value so far of the model's headline metric
    waited: int = 0  # test passes since then


def snapshot(
    progress: Progress,
    epoch: int,
    networks: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    opt: Namespace,
    more: dict[str, Any],
) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain values alone.

    The weights stand under the names of their networks (for one network `net`), the states of the
    optimizers under `optim` by the same names; `more` is added as it is.
    """
    return {
        **{name: network.state_dict() for name, network in networks.items()},
        "optim": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "epoch": epoch,
        **asdict(progress),
        "args": vars(opt),
        **more,
    }


def restore(
    checkpoints: Checkpoints,
    networks: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    opt: Namespace,
    conditions: dict[str, str | int],
) -> Progress:
    """Brings networks and optimizers to the newest good checkpoint; without one nothing changes.

    What differs from the conditions under which the run was made is said in one line.

    Raises:
        BadInput: The checkpoint is one of another network or another optimizer.
    """
    state = checkpoints.newest()
    if state is None:
        print(f"nothing to resume in {checkpoints.folder}: starting from the beginning")
        return Progress()
    for name, network in networks.items():
        load_weights(network, state.get(name, {}), checkpoints.folder)
    if state["args"]["optimizer"] != opt.optimizer:
        raise BadInput(
            f"{checkpoints.folder}: written with --optimizer {state['args']['optimizer']}, whose "
            f"state --optimizer {opt.optimizer} cannot take over; name the same one"
        )
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optim"][name])
    before = state["conditions"]
    if changed := [key for key in conditions if conditions[key] != before.get(key)]:
        values = ", ".join(f"{key} {before.get(key)} -> {conditions[key]}" for key in changed)
        print(f"warning: not an exact continuation: {values}", file=sys.stderr)
    progress = Progress(**{field.name: state[field.name] for field in fields(Progress)})
    print(f"resumed after step {progress.n_iter} (epoch {state['epoch']} done)")
    return progress
