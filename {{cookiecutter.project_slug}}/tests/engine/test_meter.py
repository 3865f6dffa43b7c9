"""The rates on the bar are shares of the elapsed time, told by a clock that tests can turn."""

import multiprocessing
import time
from collections.abc import Sequence

import pytest
import torch
from conftest import Prepare

from engine.meter import Meter

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


def test_shares_of_the_elapsed_time(clock: Clock) -> None:
    meter = Meter(CPU, shared=False)
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
    meter = Meter(CPU, shared=False)
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
    rates = Meter(CPU, shared=False).rates()
    assert (rates.images_per_second, rates.data_wait, rates.efficiency) == (0, 0, 0)


def steps(meter: Meter, clock: Clock, times: Sequence[tuple[float, float]]) -> None:
    """Lets batches pass that have to be waited for and computed with for so long."""
    for wait, compute in times:
        meter.waiting()
        clock.turn(wait)
        meter.loaded()
        clock.turn(compute)
        meter.computed(images=1)


def test_on_a_cpu_with_workers_a_step_counts_as_long_as_it_takes_undisturbed(clock: Clock) -> None:
    meter = Meter(CPU, shared=True)
    assert meter.wanted == 5
    steps(meter, clock, [(0, 7), (0, 1), (0, 1), (0, 1), (0, 1)])  # the first prepares the kernels
    assert meter.rates().efficiency == 1
    assert meter.wanted == 0
    meter.restart()
    steps(meter, clock, [(1, 3), (1, 1), (0, 2), (0, 0.5)])  # workers lengthen some of them
    rates = meter.rates()
    assert rates.efficiency == pytest.approx((1 + 1 + 1 + 0.5) / 8.5)
    assert rates.data_wait == pytest.approx(2 / 8.5)
    assert rates.images_per_second == pytest.approx(4 / 8.5)


def test_an_accumulated_step_counts_with_its_update(clock: Clock) -> None:
    meter = Meter(CPU, shared=True, parts=3)
    assert meter.wanted == 6
    steps(meter, clock, [(0, 1), (0, 1), (0, 9), (0, 1), (0, 1), (0, 3)])
    meter.restart()
    steps(meter, clock, [(0, 2), (0, 2), (0, 6)])
    assert meter.rates().efficiency == pytest.approx(5 / 10)


@pytest.mark.parametrize(("parts", "wanted"), [(1, 5), (2, 6), (5, 10), (8, 16)])
def test_a_few_whole_steps_are_watched_undisturbed(clock: Clock, parts: int, wanted: int) -> None:
    meter = Meter(CPU, shared=True, parts=parts)
    assert meter.wanted == wanted
    steps(meter, clock, [(0, 1)] * parts)  # an epoch of one step
    assert meter.wanted == wanted - parts


def test_nothing_has_to_be_loaded_beforehand_where_nothing_disturbs() -> None:
    assert Meter(CPU, shared=False).wanted == 0
    assert Meter(torch.device("cuda"), shared=True).wanted == 0


def test_the_undisturbed_steps_of_a_run_come_before_its_workers(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepare("--workers=1", "--batch-size=2", "--save-every=1000")
    children: list[int] = []
    before = len(multiprocessing.active_children())
    computed = training.meter.computed

    def count(images: int) -> None:
        children.append(len(multiprocessing.active_children()) - before)
        computed(images)

    monkeypatch.setattr(training.meter, "computed", count)
    training.train_epoch()
    assert children == [0] * 5 + [1] * 7
    training.train_loader.close()


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
