"""When a run validates, which validation was the best, and when it is over."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Build

from engine.errors import BadInput, Diverged
from engine.state import TrainState, first_difference


def make(steps_per_epoch: int = 4, **options: Any) -> TrainState:
    given = {"epochs": 5, "val_every": 1, "patience": 0, "monitor": None, **options}
    opt = Namespace(**given)
    optimizers: Any = SimpleNamespace(networks={})
    model = SimpleNamespace(info={}, monitors={"accuracy": max, "error": min})
    return TrainState(opt, model, optimizers, steps_per_epoch, {})


def run(state: TrainState, values: list[float]) -> list[int]:
    """Runs to the end as train.py does; returns the steps at which it validated."""
    validated = []
    while True:
        if state.validation_is_due():
            validated.append(state.n_iter)
            state.record({"accuracy": values[len(validated) - 1]})
            assert not state.validation_is_due()
        if state.is_over():
            return validated
        state.n_iter += 1


def test_epochs_are_counted_from_1() -> None:
    state = make(steps_per_epoch=3)
    epochs = []
    for state.n_iter in range(8):
        epochs.append(state.epoch)
    assert epochs == [0, 1, 1, 1, 2, 2, 2, 3]


def test_a_run_whose_best_value_is_forgotten_is_validated_before_it_ends() -> None:
    """Its steps may end within an epoch, as these of other images are counted."""
    state = make(steps_per_epoch=3, epochs=5)
    state.n_iter, state.validated = 16, 15
    assert run(state, [0.5]) == [16] and state.best == 0.5


@pytest.mark.parametrize(
    ("epochs", "val_every", "expected"),
    [
        (5, 1, [4, 8, 12, 16, 20]),
        (5, 2, [8, 16, 20]),
        (4, 2, [8, 16]),
        (3, 9, [12]),
        (1, 1, [4]),
    ],
)
def test_validations_are_due_every_so_many_epochs_and_at_the_end_once_each(
    epochs: int, val_every: int, expected: list[int]
) -> None:
    state = make(epochs=epochs, val_every=val_every)
    assert run(state, [0.0] * 9) == expected
    assert state.n_iter == state.total == 4 * epochs


def test_a_validation_that_was_not_recorded_stays_due() -> None:
    state = make()
    state.n_iter = 4
    assert state.validation_is_due() and state.validation_is_due()
    state.record({"accuracy": 0.5})
    assert not state.validation_is_due()


def test_none_is_due_before_the_first_step_or_within_an_epoch() -> None:
    state = make()
    for state.n_iter in (0, 1, 2, 3, 5, 19):
        assert not state.validation_is_due()
        assert not state.is_over()


def test_the_best_of_equal_ones_is_the_last() -> None:
    state = make()
    better = []
    for value in (-3.0, 0.5, 0.4, 0.5, 0.7, 0.1):
        state.n_iter += 4
        better.append(state.record({"accuracy": value}))
        assert state.validated == state.n_iter
    assert better == [True, True, False, True, True, False]
    assert state.best == 0.7


def test_of_equal_ones_the_smaller_loss_is_the_best() -> None:
    state = make()
    losses = [0.5, 0.6, 0.4, 0.4]
    found = [state.record({"accuracy": 0.9, "loss": loss}) for loss in losses]
    assert found == [True, False, True, True]
    assert (state.best, state.best_loss, state.waited) == (0.9, 0.4, 3)
    assert state.record({"accuracy": 0.91, "loss": 7.0}) and state.best_loss == 7.0


def test_the_monitor_may_be_lower_is_better() -> None:
    state = make(monitor="error")
    values = [3.0, 4.0, 2.0, 2.5]
    found = [state.record({"accuracy": value, "error": value}) for value in values]
    assert found == [True, False, True, False] and state.best == 2.0 and state.waited == 1
    with pytest.raises(BadInput, match=r"^--monitor f1: no metric of the model; it has accuracy,"):
        make(monitor="f1")


def test_patience_waits_for_a_better_one() -> None:
    # An equal one, though it becomes the best, is no progress.
    values = [0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.2, 0.9]
    for patience, validations in ((1, 3), (2, 6), (3, 7), (9, 8), (0, 8)):
        state = make(epochs=8, patience=patience)
        assert len(run(state, values)) == validations
        assert state.is_over()


@pytest.mark.parametrize("before", [[], [0.1]])
def test_a_monitored_metric_that_is_not_a_number_ends_the_run(before: list[float]) -> None:
    """It could not choose a checkpoint, and the last line would name one that does not exist."""
    state = make()
    state.n_iter = 4
    for value in before:
        state.record({"accuracy": value})
    with pytest.raises(Diverged, match=r"^the validation after step 4 gave no number for accuracy"):
        state.record({"accuracy": float("nan")})


def test_the_time_of_a_run_is_added_up_over_its_starts(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: Any = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("engine.state.time", clock)

    def begin() -> TrainState:
        parts = build()
        return TrainState(parts.opt, parts.model, parts.optimizers, 5, {})

    first = begin()
    clock.now += 30
    assert first.seconds == 30
    saved = first.state_dict()
    clock.now += 1000  # the machine was off
    second = begin()
    second.load_state_dict(saved, Path("last.pt"))
    clock.now += 5
    assert second.seconds == 35


INFO = {"classes": {"cat": 3, "dog": 4}, "size": (3, 8), "mean": 0.5, "classes_are": "species"}


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        ({}, ""),
        ({"classes": {"cat": 30, "dog": 4}, "mean": 0.25}, ""),
        ({"classes": {"dog": 4, "cat": 3}}, "the classes cat, dog, and now they are dog, cat"),
        ({"classes": {"cat": 3}}, "the classes cat, dog, and now they are cat"),
        ({"size": (3, 9)}, "the size 3, 8, and now they are 3, 9"),
        ({"classes_are": "breeds"}, "classes_are species, and now it is breeds"),
        ({"more": 1}, "the info classes, size, mean, classes_are, and now they are "),
    ],
)
def test_names_and_shapes_of_the_data_have_to_be_equal_and_numbers_not(
    now: dict, difference: str
) -> None:
    found = first_difference(INFO, {**INFO, **now})
    assert found.startswith(difference) and bool(found) == bool(difference)


def test_a_saved_state_comes_back(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    states = []
    for _ in range(2):
        parts = build()
        state = TrainState(parts.opt, parts.model, parts.optimizers, 5, {"threads": 1})
        states.append(state)
    first, second = states
    first.info = second.info = {"classes": ["a", "b"]}
    first.n_iter = 5
    for value in (0.25, 0.125):
        first.record({first.monitor: value, "loss": value})
    saved = first.state_dict()
    assert (saved["n_iter"], saved["epoch"], saved["validated"]) == (5, 1, 5)
    assert saved["model"] == type(parts.model).__name__
    second.load_state_dict(saved, Path("last.pt"))
    assert capsys.readouterr().err == ""
    for name in ("n_iter", "validated", "best", "best_loss", "waited", "epoch"):
        assert getattr(second, name) == getattr(first, name)

    second.environment = {"threads": 8}
    second.opt.seed, second.opt.workers = 77, 5
    second.load_state_dict(saved, Path("last.pt"))
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "--seed 0 is now 77" in warning and "threads 1 is now 8" in warning
    assert "workers" not in warning  # changes no bit

    second.opt.monitor = second.monitor  # the default, by its name
    second.load_state_dict(saved, Path("last.pt"))
    assert second.best == first.best
    capsys.readouterr()
    second.opt.monitor = second.monitor = list(parts.model.monitors)[-1]  # not known of that
    second.load_state_dict(saved, Path("last.pt"))
    assert second.best == make(monitor="accuracy").best and second.waited == 0
    assert "--monitor None is now" in capsys.readouterr().err

    second.info = {"classes": ["a", "b"], "optim": 1}
    second.load_state_dict(second.state_dict(), Path("last.pt"))
    second.info = {"classes": ["a", "c"]}
    with pytest.raises(BadInput, match=r"^last\.pt: written for the classes a, b, .* a, c;"):
        second.load_state_dict(saved, Path("last.pt"))


def test_what_is_not_finite_is_not_saved(build: Build) -> None:
    """On a GPU, where the guard looks at the losses now and then."""
    parts = build()
    state = TrainState(parts.opt, parts.model, parts.optimizers, 5, {})
    parts.step([parts.first_batch()])
    state.state_dict()
    parts.optimizers._unchecked.append((3, torch.tensor(float("nan"))))
    with pytest.raises(Diverged, match="step 4 is not finite"):
        state.state_dict()


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--batch-size=2"], "take --batch-size 2 --accumulate 2, "),
        (["--batch-size=3"], "take --batch-size 4 --accumulate 1, "),
        (["--accumulate=3"], "take --batch-size 4 --accumulate 1, "),
    ],
    ids=" ".join,
)
def test_steps_of_another_size_are_refused_at_a_resume(
    build: Build, words: list[str], remedy: str
) -> None:
    def begin(*words: str) -> TrainState:
        parts = build("--batch-size=4", *words)
        return TrainState(parts.opt, parts.model, parts.optimizers, 5, {})

    saved = begin().state_dict()
    with pytest.raises(BadInput, match=remedy + r"or begin a new run with --weights run$"):
        begin(*words).load_state_dict(saved, Path("run/checkpoints"))
    begin("--batch-size=2", "--accumulate=2").load_state_dict(saved, Path("run/checkpoints"))


def test_epochs_that_fewer_images_would_leave_out_are_refused(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(steps_per_epoch: int, epochs: int) -> TrainState:
        parts = build(f"--epochs={epochs}")
        return TrainState(parts.opt, parts.model, parts.optimizers, steps_per_epoch, {})

    first = begin(10, 4)
    first.n_iter = 20
    saved = first.state_dict()
    with pytest.raises(BadInput, match=r"^run: after 20 steps in epoch 2 of 4, .* have 12 steps;"):
        begin(3, 4).load_state_dict(saved, Path("run"))
    again = begin(8, 4)
    again.load_state_dict(saved, Path("run"))
    assert "epoch 2 is now epoch 3" in capsys.readouterr().err
    first.n_iter = 40
    begin(3, 4).load_state_dict(first.state_dict(), Path("run"))  # it was over, and is
