"""The rates on the bar are shares of the elapsed time, told by a clock that tests can turn."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from conftest import Train

import train as program
from engine.data.loader import Batch, Loader
from engine.evaluation import Losses, forward
from engine.meter import Meter, Rates
from engine.optimizers import Optimizers

CPU = torch.device("cpu")


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def steps(
    meter: Meter, clock: Clock, times: Sequence[tuple[float, float]], micro_batches: int = 1
) -> None:
    """Lets steps pass, whose micro-batches take so long to wait for and to compute with."""
    for number, (wait, compute) in enumerate(times, start=1):
        with meter.waiting:
            clock.turn(wait)
        with meter.computing:
            clock.turn(compute)
        if number % micro_batches == 0:
            meter.count_step()


def test_shares_of_the_elapsed_time(clock: Clock) -> None:
    meter = Meter(CPU, images=10)
    steps(meter, clock, [(1, 3), (2, 2)])
    clock.turn(2)  # neither: an image, a checkpoint
    rates = meter.rates()
    assert rates.images_per_second == 20 / 10
    assert rates.data_wait == pytest.approx(3 / 10)
    assert rates.efficiency == pytest.approx(5 / 10)
    for text in ("2 images/s", "data wait 30%", "efficiency 50%"):
        assert text in str(rates)


@pytest.mark.parametrize("start", [Meter.restart, Meter.rates])
def test_a_new_stretch_forgets_the_one_before(clock: Clock, start: Any) -> None:
    meter = Meter(CPU, images=4)
    clock.turn(50)
    steps(meter, clock, [(3, 2), (1, 5)])
    clock.turn(7)
    start(meter)
    steps(meter, clock, [(1, 1)])
    rates = meter.rates()
    assert (rates.images_per_second, rates.data_wait, rates.efficiency) == (2, 0.5, 0.5)


def test_rates_of_no_time_at_all_are_finite(clock: Clock) -> None:
    rates = Meter(CPU, images=1).rates()
    assert (rates.images_per_second, rates.data_wait, rates.efficiency) == (0, 0, 0)


def test_an_accumulated_step_counts_once(clock: Clock) -> None:
    meter = Meter(CPU, images=3)
    steps(meter, clock, [(0, 2), (0, 2), (0, 6), (1, 2), (2, 2), (2, 3)], micro_batches=3)
    rates = meter.rates()
    assert rates.efficiency == pytest.approx(17 / 22)
    assert rates.images_per_second == pytest.approx(6 / 22)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_augmentation_and_optimizer_are_compute_and_loading_is_waiting(
    clock: Clock, train: Train, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """In a run whose clock stands still but for what is marked here."""
    seen: list[Rates] = []

    class SlowLoader(Loader):
        @contextmanager
        def batches(self, n_iter: int = 0) -> Iterator[Iterator[Batch]]:
            with super().batches(n_iter) as batches:
                yield (clock.turn(3) or batch for batch in batches)  # type: ignore[func-returns-value]

    class SlowOptimizers(Optimizers):
        def backward(self, losses: Losses) -> None:
            clock.turn(0.5)
            super().backward(losses)

        def step(self) -> None:
            clock.turn(2)
            super().step()

    class Noting(Meter):
        def rates(self) -> Rates:
            clock.turn(1)  # neither
            seen.append(super().rates())
            return seen[-1]

    def slow_forward(*arguments: Any) -> Losses:
        clock.turn(0.25)
        return forward(*arguments)

    augment = program.dataset.augment

    def slow_augment(*arguments: Any) -> Any:
        clock.turn(0.25)
        return augment(*arguments)

    monkeypatch.setattr(program, "Loader", SlowLoader)
    monkeypatch.setattr(program, "Optimizers", SlowOptimizers)
    monkeypatch.setattr(program, "Meter", Noting)
    monkeypatch.setattr(program, "forward", slow_forward)
    monkeypatch.setattr(program.dataset, "augment", slow_augment)
    assert train("run", f"--accumulate={accumulate}", "--epochs=2", "--log-every=2") == 0
    elapsed = 2 * (accumulate * (3 + 1) + 2) + 1
    rates = seen[0]
    assert rates.data_wait == pytest.approx(2 * 3 * accumulate / elapsed)
    assert rates.efficiency == pytest.approx(2 * (accumulate + 2) / elapsed)
    assert rates.images_per_second == pytest.approx(2 * accumulate * 4 / elapsed)
