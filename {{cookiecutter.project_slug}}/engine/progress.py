"""What a run has to remember to go on as if it had never stopped."""

import sys
from argparse import Namespace
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from engine.checkpoint import Checkpoints, load_weights
from engine.errors import BadInput, shorten

# Options that change how a run is carried out and watched, and not its weights.
WITHOUT_EFFECT = (
    *("run", "resume", "workers", "prefetch", "cache", "parallel", "device", "keep", "patience"),
    *("precision", "log_every", "picture_every", "save_every", "test_every"),
)


@dataclass
class Progress:
    """How far a run has come. `n_iter` says all; the rest remembers what the test passes found."""

    n_iter: int = 0  # optimizer steps done
    tested: int = 0  # n_iter at the last test pass
    best: float = float("-inf")  # the best value so far of the model's headline metric
    waited: int = 0  # test passes since then

    def test_is_due(self, opt: Namespace, steps: int) -> bool:
        """Whether a test pass comes next; `steps` make an epoch. It is so just once each time."""
        epoch, rest = divmod(self.n_iter, steps)
        at_test = epoch % opt.test_every == 0 or epoch == opt.epochs
        return rest == 0 and at_test and self.tested < self.n_iter

    def note_test(self, value: float) -> bool:
        """Notes the headline metric of a test pass; returns whether it is the best so far."""
        better = value > self.best
        self.tested, self.best = self.n_iter, max(self.best, value)
        self.waited = 0 if better else self.waited + 1
        return better

    def is_over(self, opt: Namespace, steps: int) -> bool:
        """Whether all is done, or `--patience` at an end; `steps` make an epoch."""
        enough = self.n_iter >= opt.epochs * steps or 0 < opt.patience <= self.waited
        return enough and not self.test_is_due(opt, steps)


def snapshot(
    progress: Progress,
    steps: int,
    networks: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    scaler: GradScaler,
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
        "scaler": scaler.state_dict(),  # empty but for fp16
        "epoch": progress.n_iter // steps,
        **asdict(progress),
        "args": vars(opt),
        **more,
    }


def restore(
    checkpoints: Checkpoints,
    networks: dict[str, nn.Module],
    optimizers: dict[str, Optimizer],
    scaler: GradScaler,
    opt: Namespace,
    more: dict[str, Any],
) -> Progress:
    """Brings networks and optimizers to the newest good checkpoint; without one nothing changes.

    What differs from the options and the conditions of the run so far is said in one line.

    Args:
        more: As given to `snapshot`. The names in a dict, such as those of the classes, must be
            the same in the same order; under `conditions` their values are compared.

    Raises:
        BadInput: The checkpoint is one of another network, optimizer or set of classes.
    """
    state = checkpoints.newest()
    if state is None:
        print(f"nothing to resume in {checkpoints.folder}: starting from the beginning")
        return Progress()
    for key in more.keys() - {"conditions"}:
        before, now = list(state.get(key, [])), list(more[key])
        if before != now:
            raise BadInput(
                f"{checkpoints.folder}: written for the {key} {shorten(before)}, and now they are "
                f"{shorten(now)}; give it the data it was trained on"
            )
    for name, network in networks.items():
        load_weights(network, state.get(name, {}), checkpoints.folder)
    options = _changes(state["args"], vars(opt), WITHOUT_EFFECT, "--")
    for name, optimizer in optimizers.items():
        theirs = state.get("optim", {}).get(name)
        same = theirs and state["args"].get("optimizer") == opt.optimizer
        if not same or not _load_optimizer(optimizer, theirs):
            raise BadInput(
                f"{checkpoints.folder}: its optimizer does not fit these options; take those of "
                f"its config.txt ({options or 'it has no optimizer'})"
            )
    if state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    conditions = _changes(state.get("conditions", {}), more["conditions"], (), "")
    if changes := ", ".join(filter(None, (options, conditions))):
        print(f"warning: not an exact continuation: {changes}", file=sys.stderr)
    progress = Progress(**{field.name: state[field.name] for field in fields(Progress)})
    print(f"resumed after step {progress.n_iter} (epoch {state['epoch']} done)")
    return progress


def _changes(before: dict, now: dict, but: tuple[str, ...], prefix: str) -> str:
    """What has another value now, as one line."""
    return ", ".join(
        f"{prefix}{key.replace('_', '-')} {before.get(key)} is now {value}"
        for key, value in now.items()
        if before.get(key) != value and key not in but
    )


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> bool:
    """Takes over what `optimizer` remembers of each weight; its options stay those given now.

    Returns:
        False, with nothing changed, if the state is one of other weights.
    """
    own, theirs = optimizer.state_dict()["param_groups"], state["param_groups"]
    if [len(group["params"]) for group in own] != [len(group["params"]) for group in theirs]:
        return False
    groups = [
        {**group, "params": loaded["params"]} for group, loaded in zip(own, theirs, strict=True)
    ]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    return True
