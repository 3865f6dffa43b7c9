"""Batches arrive in order and complete, or an error says why not; nothing is left behind."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from prefetch_generator import BackgroundGenerator
from torch import Tensor
from torch.utils.data import Dataset

from engine.errors import BadInput
from engine.loading import Loader
from engine.order import TestOrder, TrainOrder

HOW = [(0, 0), (0, 2), (1, 0), (1, 2), (2, 3)]  # workers, prefetch


class Numbers(Dataset):
    """The numbers 0 to 19; a sample draws from the generator as an augmentation does."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.broken:
            raise BadInput(f"images/{index}.png: not readable as an image")
        return torch.tensor(index), torch.rand(())


class ShortOrder(TestOrder):
    """Promises a batch more than it gives."""

    def __len__(self) -> int:
        return super().__len__() + 1


class CountingOrder(TestOrder):
    """Counts the batches that were asked for."""

    given = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in super().__iter__():
            self.given += 1
            yield [(index % 20, seed) for index, seed in batch]


def loader(
    workers: int, prefetch: int, broken: int = -1, order: TrainOrder | TestOrder | None = None
) -> Loader:
    order = order or TestOrder(20, 3)
    return Loader(Numbers(broken), order, torch.device("cpu"), workers, prefetch)


def reading_ahead() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, BackgroundGenerator)]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("workers", "prefetch"), HOW)
def test_all_batches_come_in_order(workers: int, prefetch: int) -> None:
    source = loader(workers, prefetch)
    for _ in range(2):  # worker processes serve again
        with source.batches() as batches:
            numbers = [batch[0].tolist() for batch in batches]
        assert numbers == [list(range(i, min(i + 3, 20))) for i in range(0, 20, 3)]


def test_what_a_sample_draws_depends_on_the_seed_and_the_epoch_alone() -> None:
    drawn = {}
    for workers, prefetch in HOW:
        order = TrainOrder(20, 3, 1, seed=5)
        source = loader(workers, prefetch, order=order)
        for epoch in range(2):
            order.n_iter = epoch * order.steps
            torch.manual_seed(workers)  # the model's generator has no say
            with source.batches() as batches:
                drawn[workers, prefetch, epoch] = torch.cat([batch[1] for batch in batches])
    for (_, _, epoch), values in drawn.items():
        assert values.equal(drawn[0, 0, epoch])
    assert not drawn[0, 0, 0].equal(drawn[0, 0, 1])
    assert len(drawn[0, 0, 0].unique()) == 18


def test_loading_leaves_the_generator_of_the_model_alone() -> None:
    source = loader(workers=1, prefetch=2)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with source.batches() as batches:
        for _ in batches:
            pass
    assert torch.rand(3).equal(expected)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_leaving_early_leaves_no_thread_and_no_more_workers(prefetch: int) -> None:
    children = len(multiprocessing.active_children())
    source = loader(workers=2, prefetch=prefetch)
    for _ in range(3):
        with source.batches() as batches:
            assert next(batches)[0].tolist() == [0, 1, 2]
        assert not reading_ahead()
        assert len(multiprocessing.active_children()) == children + 2
    del source, batches
    gc.collect()
    wait_until(lambda: len(multiprocessing.active_children()) == children)
    assert not reading_ahead()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_leaving_early_does_not_load_the_rest(prefetch: int) -> None:
    order = CountingOrder(3000, 3)
    with loader(workers=1, prefetch=prefetch, order=order).batches() as batches:
        next(batches)
    assert order.given < 20


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_workers_go_on_when_the_whole_process_group_is_asked_to_stop() -> None:
    """The trainer still needs them for the step that it finishes."""
    before = set(multiprocessing.active_children())
    with loader(workers=2, prefetch=0).batches() as batches:
        seen = next(batches)[0].tolist()
        for child in set(multiprocessing.active_children()) - before:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(child.pid or 0, number)
        for batch in batches:
            seen += batch[0].tolist()
    assert seen == list(range(20))


@pytest.mark.parametrize(("workers", "prefetch"), HOW)
def test_an_error_in_loading_reaches_the_main_thread(workers: int, prefetch: int) -> None:
    seen = []
    source = loader(workers, prefetch, broken=7)
    with pytest.raises(BadInput) as error, source.batches() as batches:
        for batch in batches:
            seen += batch[0].tolist()
    assert str(error.value) == "images/7.png: not readable as an image"
    assert seen == list(range(6))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_in_loading_leaves_nothing_behind(prefetch: int) -> None:
    children = len(multiprocessing.active_children())
    source = loader(workers=1, prefetch=prefetch, broken=7)
    with pytest.raises(BadInput), source.batches() as batches:
        for _ in batches:
            pass
    del source, batches
    gc.collect()
    wait_until(lambda: len(multiprocessing.active_children()) == children)
    assert not reading_ahead()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_of_the_caller_is_not_covered_by_one_in_loading(prefetch: int) -> None:
    source = loader(workers=1, prefetch=prefetch, broken=4)
    with pytest.raises(KeyError, match="mine"), source.batches() as batches:
        next(batches)
        raise KeyError("mine")


@pytest.mark.parametrize(("workers", "prefetch"), HOW)
def test_batches_that_are_missing_are_noticed(workers: int, prefetch: int) -> None:
    source = loader(workers, prefetch, order=ShortOrder(20, 3))
    with pytest.raises(RuntimeError, match="7 of 8 batches"), source.batches() as batches:
        for _ in batches:
            pass
