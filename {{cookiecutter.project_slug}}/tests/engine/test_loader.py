"""Batches arrive in order and complete, or an error says why not; nothing is left behind."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest
import torch
from prefetch_generator import BackgroundGenerator
from programs import status
from torch import Tensor
from torch.utils.data import Dataset

from engine import devices
from engine.errors import BadInput
from engine.loading import Loader
from engine.order import TestOrder, TrainOrder

CPU = torch.device("cpu")
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


class WholeBatches(Numbers):
    """The same numbers, of which a batch is made at once."""

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        if self.broken in indices:
            raise BadInput(f"images/{self.broken}.png: not readable as an image")
        return torch.tensor(indices), torch.zeros(len(indices))


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


def throw(error: BaseException) -> int:
    raise error


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


@pytest.mark.parametrize("kind", [Numbers, WholeBatches])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [1, 3, 7, 100])
def test_batches_that_are_loaded_beforehand_are_the_same(
    kind: type[Numbers], workers: int, first: int
) -> None:
    order = TrainOrder(20, 3, 1, seed=5)
    source = Loader(kind(), order, CPU, workers, prefetch=2)
    for n_iter in (0, 2):  # and in the middle of an epoch
        order.n_iter = n_iter
        with source.batches() as batches:
            expected = [[part.tolist() for part in batch] for batch in batches]
        with source.batches(first) as batches:
            assert [[part.tolist() for part in batch] for batch in batches] == expected
    source.close()


def test_batches_that_are_loaded_beforehand_need_no_workers() -> None:
    before = len(multiprocessing.active_children())
    source = loader(workers=1, prefetch=2)
    with source.batches(first=2) as batches:
        for number in range(2):
            assert next(batches)[0].tolist() == list(range(3 * number, 3 * number + 3))
            assert len(multiprocessing.active_children()) == before
            assert not reading_ahead()
        next(batches)
        assert len(multiprocessing.active_children()) == before + 1
    source.close()


def test_whole_batches_need_no_workers() -> None:
    before = len(multiprocessing.active_children())
    source = Loader(WholeBatches(), TestOrder(20, 3), CPU, None, prefetch=2)
    with source.batches() as batches:
        numbers = [batch[0].tolist() for batch in batches]
        assert len(multiprocessing.active_children()) == before
    assert numbers == [list(range(i, min(i + 3, 20))) for i in range(0, 20, 3)]
    assert source.workers == 0


@pytest.mark.parametrize(
    ("device", "have", "at_once", "workers"),
    [
        ("cpu", 1, False, 0),
        ("cpu", 64, False, 0),
        ("cpu", 64, True, 0),
        ("cuda", 1, False, 1),
        ("cuda", 8, False, 7),
        ("cuda", 64, False, 16),
        ("cuda", 64, True, 0),
    ],
)
def test_the_number_of_workers_is_chosen(
    monkeypatch: pytest.MonkeyPatch, device: str, have: int, at_once: bool, workers: int
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: have)
    assert devices.choose_workers(torch.device(device), at_once) == workers


def test_an_error_in_whole_batches_reaches_the_main_thread() -> None:
    for workers in (0, 1):
        source = Loader(WholeBatches(broken=7), TestOrder(20, 3), CPU, workers, prefetch=2)
        with pytest.raises(BadInput, match=r"^images/7\.png"), source.batches() as batches:
            deque(batches, maxlen=0)


class Grey(Dataset):
    """Large grey images, each of a shade of its own."""

    def __init__(self, at_once: bool, last: bool) -> None:
        self.last = last
        if at_once:
            self.batch = self.make

    def __len__(self) -> int:
        return 40

    def make(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        images = torch.tensor(indices, dtype=torch.uint8)[:, None, None, None]
        images = images.expand(-1, 3, 96, 96).contiguous()
        order = torch.channels_last if self.last else torch.contiguous_format
        return images.contiguous(memory_format=order), torch.tensor(indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, indices = self.make([index])
        return images[0], indices[0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_images_lie_in_memory_in_one_order(workers: int, at_once: bool, last: bool) -> None:
    """Else what is computed with them might be rounded differently with a cache and without."""
    source = Loader(Grey(at_once, last), TestOrder(40, 8), CPU, workers, prefetch=2)
    with source.batches() as batches:
        for images, _ in batches:
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert images.shape == (8, 3, 96, 96)
    source.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at_once", [False, True])
def test_batches_on_the_gpu_are_those_of_the_cpu_while_memory_is_used_again(
    workers: int, at_once: bool
) -> None:
    device = torch.device("cuda")
    source = Loader(Grey(at_once, last=True), TestOrder(40, 4), device, workers, prefetch=2)
    for _ in range(5):
        seen, numbers = [], []
        with source.batches() as batches:
            for images, indices in batches:
                busy = torch.randn(2048, 2048, device=device)
                for _ in range(20):  # the device falls behind the program
                    busy = busy @ busy / 2048
                seen.append(images.float().mean(dim=(1, 2, 3)) + 0 * busy[0, 0])
                numbers.append(indices.clone())
                del images, indices  # their memory is free for the next batch
        assert torch.cat(seen).tolist() == torch.cat(numbers).tolist() == list(range(40))
    source.close()


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the worker inherits the fault by a fork")
@pytest.mark.parametrize("kind", [Numbers, WholeBatches])
def test_a_worker_without_shared_memory_is_no_endless_wait(
    monkeypatch: pytest.MonkeyPatch, kind: type[Numbers]
) -> None:
    def refuse(tensor: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", refuse)
    source = Loader(kind(), TestOrder(20, 3), CPU, 1, prefetch=2)
    with pytest.raises(RuntimeError) as error, source.batches() as batches:
        next(batches)
    assert status(lambda: throw(error.value), "train.py") == 1


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
