"""The rates on the bar are shares of the elapsed time, told by a clock that tests can turn."""

import time

import pytest
import torch
from conftest import Prepare

from engine.meter import Meter


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


def test_shares_of_the_elapsed_time(clock: Clock) -> None:
    meter = Meter(torch.device("cpu"), shared=False)
    for wait, compute in ((1, 3), (2, 2)):
        clock.turn(wait)
        meter.loaded()
        clock.turn(compute)
        meter.computed(images=10)
    clock.turn(2)  # neither: a picture, a checkpoint
    rates = meter.rates()
    assert rates.images_per_second == 20 / 10
    assert rates.data_wait == pytest.approx(3 / 10)
    assert rates.efficiency == pytest.approx(5 / 10)
    for text in ("2 images/s", "data wait 30%", "efficiency 50%"):
        assert text in str(rates)


def test_restart_forgets(clock: Clock) -> None:
    meter = Meter(torch.device("cpu"), shared=False)
    clock.turn(50)
    meter.loaded()
    meter.computed(images=1000)
    clock.turn(7)
    meter.restart()
    clock.turn(1)
    meter.loaded()
    clock.turn(1)
    meter.computed(images=4)
    rates = meter.rates()
    assert (rates.images_per_second, rates.data_wait, rates.efficiency) == (2, 0.5, 0.5)


def test_rates_of_no_time_at_all_are_finite(clock: Clock) -> None:
    rates = Meter(torch.device("cpu"), shared=False).rates()
    assert (rates.images_per_second, rates.data_wait, rates.efficiency) == (0, 0, 0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_optimizer_is_compute_and_loading_is_waiting(
    clock: Clock, prepare: Prepare, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    training = prepare(f"--accumulate={accumulate}")
    optimizer = next(iter(training.optimizers.values()))
    step, compute = optimizer.step, training.compute

    def slow_step() -> None:
        clock.turn(2)
        step()

    def slow_compute(*batch: torch.Tensor) -> dict:
        clock.turn(1)
        return compute(*batch)

    monkeypatch.setattr(optimizer, "step", slow_step)
    monkeypatch.setattr(training, "compute", slow_compute)
    training.meter.restart()
    with training.train_loader.batches() as batches:

        def slow_batches():  # type: ignore[no-untyped-def]
            for batch in batches:
                clock.turn(3)
                yield batch

        stream = slow_batches()
        for _ in range(2):
            training.step(stream)
    clock.turn(1)  # what is neither
    rates = training.meter.rates()
    elapsed = 2 * (accumulate * (3 + 1) + 2) + 1
    assert rates.data_wait == pytest.approx(2 * 3 * accumulate / elapsed)
    assert rates.efficiency == pytest.approx(2 * (accumulate + 2) / elapsed)
