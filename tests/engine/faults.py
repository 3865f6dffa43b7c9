"""Faults in the middle of a run that a test makes in its own process."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from programs import at_step
from torch import Tensor

import train
from engine.evaluation import Losses
from engine.optimizers import Optimizers, parameters_of
from engine.run_dir import RunDir


def die_at_step(patch: pytest.MonkeyPatch, n_iter: int) -> None:
    """Ends the next run in step `n_iter` with status 9, once its last checkpoint is written."""
    runs: list[RunDir] = []

    def make(*arguments: Any) -> RunDir:
        runs.append(RunDir(*arguments))
        return runs[-1]

    def die(losses: Losses) -> None:
        runs[-1].checkpoints.wait()
        raise SystemExit(9)

    patch.setattr(train, "RunDir", make)
    at_step(patch, n_iter, die)


def not_a_number(losses: Losses) -> Losses:
    """The same losses without a value."""
    return {
        network: {name: loss * float("nan") for name, loss in named.items()}
        for network, named in losses.items()
    }


def watch_optimizers(
    patch: pytest.MonkeyPatch, prepare: Callable[[Optimizers], object] = lambda made: None
) -> list[Optimizers]:
    """A list that gets the Optimizers of each run of train.py, after `prepare` had its way."""
    made: list[Optimizers] = []

    def make(*arguments: Any) -> Optimizers:
        made.append(Optimizers(*arguments))
        prepare(made[-1])
        return made[-1]

    patch.setattr(train, "Optimizers", make)
    return made


def overflow(optimizers: Optimizers, steps: Iterable[int]) -> None:
    """Makes a gradient of `net` infinite in some steps, as if the scale of fp16 were too large."""

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * (float("inf") if optimizers.n_iter in steps else 1)

    parameters_of(optimizers.optimizers["net"])[0].register_hook(spoil)
