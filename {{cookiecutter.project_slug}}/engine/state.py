"""The state of a run: the content of a checkpoint, and the decisions that follow from it."""

import math
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import terminal
from engine.arguments import plain
from engine.checkpoint import load_weights
from engine.data.contents import IMAGES, SIDES
from engine.data.source import changed_code
from engine.errors import BadInput, Diverged, shorten
from engine.optimizers import Optimizers
from engine.weights import load_fitting

# Options that do not change the weights, or change them by what `environment` holds.
WITHOUT_EFFECT = (
    *("run_dir", "resume", "workers", "prefetch", "cache", "parallel", "device", "keep", "threads"),
    *("quiet", "patience", "precision", "log_every", "save_every", "val_every"),
    "profile",
)
# Keys of a checkpoint that are not networks.
RESERVED = (
    *("optim", "scaler", "epoch", "n_iter", "validated", "best", "waited", "model", "args"),
    *("environment", "ema", "info", "best_loss", "seconds"),
)
# Keys of `environment`.
LIST, CODE, COMMIT, WEIGHTS = "list of training images", "code", "git commit", "weights"
VIEW = "validation images"  # the same: how a data set shows them
VALIDATION = SIDES[1]
FORGOTTEN = ": the best value so far was measured on others and is forgotten"
RESUME_REMEDY = "use the options of its config.txt, or undo the change of the network"


class TrainState:
    """How far a run has come, with everything that it needs to go on as if it had never stopped.

    `n_iter`, the number of optimizer steps done, says all about data, augmentation, dropout and
    learning rate. The rest is what networks and optimizers have learned, and what validations
    found.

    Args:
        opt: The options.
        model: The finished model; its `info` about the training data is saved too, and `monitors`
            names the metrics that may decide which checkpoint is best.
        optimizers: The optimizers of its networks.
        steps_per_epoch: Optimizer steps in an epoch.
        environment: What the exact result depends on besides the options.
        changed_files: As RunDir.changed_files.

    Raises:
        BadInput: `--monitor` names no such metric.
        ValueError: A network has a name that checkpoints need for something else.
    """

    def __init__(
        self,
        opt: Namespace,
        model: Any,
        optimizers: Optimizers,
        steps_per_epoch: int,
        environment: dict[str, Any],
        changed_files: Callable[[dict[str, Any]], dict[str, str]] = lambda before: {},
    ) -> None:
        self.opt, self.optimizers, self.steps_per_epoch = opt, optimizers, steps_per_epoch
        self.networks, self.info, self.environment = optimizers.networks, model.info, environment
        self.model_name, self.changed_files = type(model).__name__, changed_files
        self._default_monitor = next(iter(model.monitors))
        self.monitor = self._monitored(vars(opt))
        if self.monitor not in model.monitors:
            choices = ", ".join(model.monitors)
            raise BadInput(f"--monitor {self.monitor}: no metric of the model; it has {choices}")
        self.sign = -1 if model.monitors[self.monitor] is min else 1  # of a value that is better
        if reserved := {*RESERVED} & self.networks.keys():
            raise ValueError(f"no network can be called {reserved.pop()}: checkpoints use it")
        self.total = opt.epochs * steps_per_epoch  # optimizer steps of the whole run
        self.n_iter = 0  # optimizer steps done
        self.validated = 0  # n_iter at the last validation
        self.best = -self.sign * math.inf  # the best value so far of the metric that is monitored
        self.best_loss = math.inf  # of the same validation
        self.waited = 0  # validations since one was better than all before
        self._spent, self._begun = 0.0, time.monotonic()  # seconds before this start, and its time

    @property
    def epoch(self) -> int:
        """The epoch of the last step, counted from 1; 0 before the first step."""
        return -(-self.n_iter // self.steps_per_epoch)

    @property
    def seconds(self) -> float:
        """How long the run has taken, what came before a resume included."""
        return self._spent + time.monotonic() - self._begun

    def validation_is_due(self) -> bool:
        """Whether to validate now: at the end of every x-th epoch and of the run, once each."""
        epoch, rest = divmod(self.n_iter, self.steps_per_epoch)
        at_validation = rest == 0 and epoch % self.opt.val_every == 0
        # A run may end within an epoch, if it was begun with another division into epochs.
        return (at_validation or self.n_iter >= self.total) and self.validated < self.n_iter

    @property
    def head_only(self) -> bool:
        """Whether this step trains the head alone: with `--freeze`, or in `--head-epochs`."""
        return self.opt.freeze or self.n_iter < self.opt.head_epochs * self.steps_per_epoch

    def _monitored(self, options: dict[str, Any]) -> str:
        return options.get("monitor") or self._default_monitor

    def record(self, metrics: dict[str, float]) -> bool:
        """Records a validation by its monitored metric; returns whether it is the best one.

        Few images often give equal metrics: then the smaller `loss` is better, and of equal losses,
        or without any, the last one. The patience waits for a better value of the metric.

        Raises:
            Diverged: It is no number.
        """
        value, loss = metrics[self.monitor], metrics.get("loss", math.inf)
        if math.isnan(value):
            raise Diverged(
                f"the validation after step {self.n_iter} gave no number for {self.monitor}, which "
                "chooses the best checkpoint; see compute_metrics of the model"
            )
        better = self.sign * (value - self.best) > 0
        is_best = better or (value == self.best and not loss > self.best_loss)
        self.waited = 0 if better else self.waited + 1
        if is_best:
            self.best, self.best_loss = value, loss
        self.validated = self.n_iter
        return is_best

    def is_over(self) -> bool:
        """Whether all steps are done and validated, or `--patience` is exhausted."""
        ended = self.n_iter >= self.total or 0 < self.opt.patience <= self.waited
        return ended and not self.validation_is_due()

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint: tensors and plain values, each network under its name.

        Raises:
            Diverged: A loss or a gradient was not finite, so the weights may be spoiled.
        """
        return {
            "optim": self.optimizers.state_dict(),  # first, since it checks
            **{name: network.state_dict() for name, network in self.networks.items()},
            **({"ema": self.optimizers.averages.state_dict()} if self.opt.ema else {}),
            "scaler": self.optimizers.scaler.state_dict(),  # empty unless the precision is fp16
            "epoch": self.epoch,
            "n_iter": self.n_iter,
            "validated": self.validated,
            "best": self.best,
            "best_loss": self.best_loss,
            "waited": self.waited,
            "seconds": self.seconds,
            "model": self.model_name,
            "args": plain(self.opt),
            "environment": self.environment,
            "info": self.info,
        }

    def _warn(self, options: str, images: dict[str, str], state: dict[str, Any]) -> None:
        """Names what is not as it was in the checkpoint, in a line."""
        told = {side: text + FORGOTTEN * (side == VALIDATION) for side, text in images.items()}
        before, epoch = state.get("environment", {}), state["epoch"]
        different = [options, *environment_changes(before, self.environment, told)]
        if self._sees_others(before) and VALIDATION not in told:
            shown = f"{VIEW} {before[VIEW]} are now {self.environment[VIEW]}"
            different.append(shown + FORGOTTEN)
        if state.get("info", {}) != self.info:
            different.append("other counts or statistics of the data")
        if epoch != self.epoch:
            different.append(f"epoch {epoch} is now epoch {self.epoch}")
        if text := "; ".join(filter(None, different)):
            terminal.warn(f"not an exact continuation: {text}")

    def _sees_others(self, before: dict[str, Any]) -> bool:
        """Whether validation sees its images in another way, as in another size."""
        view = self.environment.get(VIEW)
        return bool(view and before.get(VIEW)) and before[VIEW] != view

    def _check_steps(self, state: dict[str, Any], path: Path) -> None:
        """Refuses steps of another size, or so few of them that epochs would be left out."""
        run = path.parent if path.name == "checkpoints" else path
        anew = f"or begin a new run with --weights {run}"
        both = state["args"], vars(self.opt)
        size, now = (options["batch_size"] * options["accumulate"] for options in both)
        if size != now:
            batch, was = self.opt.batch_size, state["args"]["batch_size"]
            times = size // batch if size % batch == 0 else size // was
            batch = batch if size % batch == 0 else was
            raise BadInput(
                f"--batch-size {self.opt.batch_size} x --accumulate {self.opt.accumulate}: the run "
                f"has steps of {size} images, which its epochs and rates depend on; take "
                f"--batch-size {batch} --accumulate {times}, {anew}"
            )
        if state["n_iter"] >= self.total and state["epoch"] < self.opt.epochs:
            raise BadInput(
                f"{path}: after {state['n_iter']} steps in epoch {state['epoch']} of "
                f"{self.opt.epochs}, and with the images of now these have {self.total} steps; "
                f"give it the images it had, raise --epochs, {anew}"
            )

    def start_from(self, path: str) -> None:
        """Starts from the weights in a file, as far as they fit (weights.load_fitting)."""
        own = {k: value for k, value in plain(self.opt).items() if k not in WITHOUT_EFFECT}
        load_fitting(self.networks, path, own, self.info)
        self.optimizers.averages.restart()

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """Takes over a checkpoint; options and environment that differ are named in a warning.

        Raises:
            BadInput: The checkpoint is one of other data, another network or another optimizer;
                `path` is the file or its folder.
        """
        if different := first_difference(state.get("info", {}), self.info):
            raise BadInput(f"{path}: written for {different}; give it the data it was trained on")
        for name, network in self.networks.items():
            load_weights(network, state.get(name, {}), path, RESUME_REMEDY)
        self._check_steps(state, path)
        was = state.get("environment", {})
        images = self.changed_files(was)
        options = option_changes(state["args"], plain(self.opt), was, self.environment)
        self._load_optimizers(state, path, options)
        self.n_iter, self.validated = state["n_iter"], state["validated"]
        self._warn(options, images, state)
        self.best, self.waited = state["best"], state["waited"]
        self.best_loss = state.get("best_loss", math.inf)
        self._spent = state.get("seconds", 0.0)
        self.environment.pop(WEIGHTS, None)
        if WEIGHTS in was:  # those that the run began with count
            self.environment[WEIGHTS] = was[WEIGHTS]
        other_metric = self._monitored(state["args"]) != self.monitor
        if VALIDATION in images or self._sees_others(was) or other_metric:
            self.best, self.best_loss, self.waited = -self.sign * math.inf, math.inf, 0
            self.validated = min(self.validated, max(0, self.n_iter - 1))  # a run has a best value
        terminal.say(f"resumed after step {self.n_iter} of {self.total}")
        if self.is_over() and self.n_iter >= self.total:
            terminal.say(f"all {self.total} steps are done; a larger --epochs goes on")

    def _load_optimizers(self, state: dict[str, Any], path: Path, options: str) -> None:
        try:
            same = state["args"].get("optimizer") == self.opt.optimizer
            self.optimizers.load_state_dict(state["optim"] if same else {})
        except (KeyError, ValueError):
            raise BadInput(
                f"{path}: its optimizer does not fit these options; take those of its config.txt "
                f"({options or 'it has no optimizer'})"
            ) from None
        self.optimizers.averages.load_state_dict(state.get("ema", {}))
        if state.get("scaler"):
            self.optimizers.scaler.load_state_dict(state["scaler"])


def first_difference(before: Any, now: Any, name: str = "info") -> str:
    """What differs first between what two data sets say of themselves; empty if they fit.

    Names, their order, texts and shapes have to be equal. Bare numbers, such as counts and means,
    need not be.
    """
    if isinstance(before, dict | list | tuple) and isinstance(now, dict | list | tuple):
        if list(before) != list(now):
            one, other = (shorten([*map(str, names)]) or "none" for names in (before, now))
            return f"the {name} {one}, and now they are {other}"
        pairs = isinstance(before, dict) and isinstance(now, dict)
        found = (first_difference(before[key], now[key], str(key)) for key in now if pairs)
        return next(filter(None, found), "")
    numbers = all(isinstance(value, int | float) for value in (before, now))
    return "" if numbers or before == now else f"{name} {before}, and now it is {now}"


def option_changes(before: dict, now: dict, was: dict, environment: dict) -> str:
    """The options that differ and change bits; a path not if what it names has the old content."""
    same = all(was.get(key) == environment.get(key) for key in (IMAGES, LIST))
    ignored: tuple[str, ...] = ("data",) if same and IMAGES in was else ()
    if WEIGHTS in was and was[WEIGHTS] == environment.get(WEIGHTS):
        ignored += ("weights",)
    return changes(before, now, WITHOUT_EFFECT + ignored, "--")


def environment_changes(before: dict, now: dict, images: dict[str, str]) -> list[str]:
    """What differs between two environments, in groups; `images` is what contents.compare found."""
    unknown = not before.get(WEIGHTS) or not now.get(WEIGHTS)  # as after the file was deleted
    ignored = (IMAGES, CODE, COMMIT, VIEW) + (LIST,) * bool(images) + (WEIGHTS,) * unknown
    told = changes(before, now, ignored, "")
    found = [told, *images.values()]
    if files := changed_code(before.get(CODE, {})):
        found.append(f"{shorten(files, 3)} {'have' if len(files) > 1 else 'has'} changed")
        found.append(changes({COMMIT: before.get(COMMIT)}, {COMMIT: now.get(COMMIT)}, (), ""))
    return [text for text in found if text]


def changes(before: dict, now: dict, ignored: tuple[str, ...], prefix: str) -> str:
    """The values that differ, as one line."""
    return ", ".join(
        f"{prefix}{key.replace('_', '-')} {before.get(key, 'none')} is now {now.get(key, 'none')}"
        for key in {**before, **now}
        if before.get(key) != now.get(key) and key not in ignored
    )
