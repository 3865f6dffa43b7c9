"""Batches arrive in order and complete, or an error says why not; nothing is left behind."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
import torch
from prefetch_generator import BackgroundGenerator
from programs import PATIENCE, status
from torch import Tensor
from torch.utils.data import Dataset

from engine.data import loader as module
from engine.data.loader import Loader, choose_workers
from engine.data.sampler import EvalBatchSampler, Keys, TrainBatchSampler
from engine.errors import BadInput

CPU = torch.device("cpu")
HOW = [(0, 0), (0, 2), (1, 0), (2, 3)]  # workers, prefetch
NEVER = 3600.0  # seconds that nobody waits
needs_fork = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="the worker inherits the fault by a fork"
)
needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")


class Numbers(Dataset):
    """The numbers 0 to 19; a sample draws from the generator as an augmentation does.

    Sample `broken` cannot be read, and sample `slow` takes for ever.
    """

    def __init__(self, broken: int = -1, slow: int = -1) -> None:
        self.broken, self.slow = broken, slow

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.broken:
            raise BadInput(f"images/{index}.png: not readable as an image")
        if index == self.slow:
            time.sleep(NEVER)
        return torch.tensor(index), torch.rand(())


class WholeBatches(Numbers):
    """The same numbers, of which a batch is made at once."""

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        if self.broken in indices.tolist():
            raise BadInput(f"images/{self.broken}.png: not readable as an image")
        return indices, torch.zeros(len(indices))


class ShortSampler(EvalBatchSampler):
    """Promises a batch more than it gives."""

    def count(self, n_iter: int = 0) -> int:
        return super().count() + 1


class CountingSampler(EvalBatchSampler):
    """Counts the batches that were asked for."""

    given = 0

    def batches(self, n_iter: int = 0, device: torch.device | str = "cpu") -> Iterator[Keys]:
        for indices, seeds in super().batches(n_iter, device):
            self.given += 1
            yield indices % 20, seeds


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After each test there are no more threads that read ahead, and no more children, at once."""
    before = set(multiprocessing.active_children())
    yield
    assert not reading_ahead()
    assert set(multiprocessing.active_children()) <= before


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block ends in time."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


def make(
    workers: int, prefetch: int, sampler: EvalBatchSampler | None = None, **more: int
) -> Loader:
    return Loader(Numbers(**more), sampler or EvalBatchSampler(20, 3), CPU, workers, prefetch)


def throw(error: BaseException) -> int:
    raise error


def reading_ahead() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, BackgroundGenerator)]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("workers", "prefetch"), HOW)
def test_all_batches_come_in_order(workers: int, prefetch: int) -> None:
    children: list[set] = []
    with make(workers, prefetch) as loader:
        for _ in range(3):
            with loader.batches() as batches:
                numbers = [batch[0].tolist() for batch in batches]
            assert numbers == [list(range(i, min(i + 3, 20))) for i in range(0, 20, 3)]
            assert not reading_ahead()
            children.append({child.pid for child in multiprocessing.active_children()})
    assert children[0] == children[1] == children[2], "worker processes serve again"
    assert len(children[0]) >= workers


def test_the_seed_and_the_epoch_alone_decide_what_a_sample_draws() -> None:
    drawn = {}
    for workers, prefetch in HOW:
        sampler = TrainBatchSampler(20, 3, 1, epochs=2, seed=5)
        with Loader(Numbers(), sampler, CPU, workers, prefetch) as loader:
            for n_iter in (0, 4, 6):
                torch.manual_seed(workers)  # the model's generator has no say
                with loader.batches(n_iter) as batches:
                    drawn[workers, prefetch, n_iter] = torch.stack([b[1] for b in batches])
    whole = drawn[0, 0, 0]
    for (_, _, n_iter), values in drawn.items():
        assert values.equal(whole[n_iter:])
    assert len(whole) == 12
    assert len(whole.unique()) == 36


def test_loading_leaves_the_generator_of_the_model_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with make(workers=1, prefetch=2) as loader, loader.batches() as batches:
        deque(batches, maxlen=0)
    assert torch.rand(3).equal(expected)


def test_whole_batches_need_no_workers() -> None:
    before = len(multiprocessing.active_children())
    loader = Loader(WholeBatches(), EvalBatchSampler(20, 3), CPU, None, prefetch=2)
    with loader.batches() as batches:
        numbers = [batch[0].tolist() for batch in batches]
        assert len(multiprocessing.active_children()) == before
    assert numbers == [list(range(i, min(i + 3, 20))) for i in range(0, 20, 3)]
    assert loader.workers == 0


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
    monkeypatch.setattr(module, "cores", lambda: have)
    assert choose_workers(torch.device(device), at_once) == workers


def test_an_error_in_whole_batches_reaches_the_main_thread() -> None:
    for workers in (0, 1):
        with (
            Loader(WholeBatches(7), EvalBatchSampler(20, 3), CPU, workers, prefetch=2) as loader,
            pytest.raises(BadInput, match=r"^images/7\.png"),
            loader.batches() as batches,
        ):
            deque(batches, maxlen=0)


class Grey(Dataset):
    """Large grey images, each of a shade of its own."""

    def __init__(self, at_once: bool, last: bool) -> None:
        self.last = last
        if at_once:
            self.batch = self.make

    def __len__(self) -> int:
        return 40

    def make(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images = indices.to(torch.uint8)[:, None, None, None]
        images = images.expand(-1, 3, 96, 96).contiguous()
        order = torch.channels_last if self.last else torch.contiguous_format
        return images.contiguous(memory_format=order), indices

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, indices = self.make(torch.tensor([index]))
        return images[0], indices[0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_images_lie_in_memory_in_one_order(workers: int, at_once: bool, last: bool) -> None:
    """Else what is computed with them might be rounded differently with a cache and without."""
    source = Loader(Grey(at_once, last), EvalBatchSampler(40, 8), CPU, workers, prefetch=2)
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
    source = Loader(Grey(at_once, last=True), EvalBatchSampler(40, 4), device, workers, prefetch=2)
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


def test_leaving_early_leaves_no_thread_and_no_workers() -> None:
    """The workers may be busy for long with batches that nobody wants any more."""
    children = len(multiprocessing.active_children())
    with make(workers=2, prefetch=2) as loader:
        for _ in range(3):
            with loader.batches() as batches:
                assert next(batches)[0].tolist() == [0, 1, 2]
                assert len(multiprocessing.active_children()) == children + 2
            assert not reading_ahead()
            assert len(multiprocessing.active_children()) == children
        with loader.batches() as batches:  # and it can be used again
            assert sum(len(batch[0]) for batch in batches) == 20
        assert len(multiprocessing.active_children()) == children + 2


def test_a_loader_that_nobody_uses_any_more_leaves_nothing() -> None:
    children = len(multiprocessing.active_children())
    loader = make(workers=2, prefetch=2)
    with loader.batches() as batches:
        deque(batches, maxlen=0)
    assert len(multiprocessing.active_children()) == children + 2
    del loader, batches
    gc.collect()
    wait_until(lambda: len(multiprocessing.active_children()) == children)
    assert not reading_ahead()


def test_leaving_early_does_not_load_the_rest() -> None:
    sampler = CountingSampler(3000, 3)
    with make(1, 2, sampler).batches() as batches:
        next(batches)
    assert sampler.given < 20


def test_two_loaders_do_not_disturb_each_other() -> None:
    """As those of training and validation, one of which waits while the other is used."""
    with (
        make(workers=1, prefetch=2) as first,
        make(workers=1, prefetch=2) as second,
        first.batches() as batches,
    ):
        seen = next(batches)[0].tolist()
        for _ in range(3):
            with second.batches() as others:
                assert sum(len(batch[0]) for batch in others) == 20
            seen += next(batches)[0].tolist()
        with second.batches() as others:
            next(others)
        for batch in batches:
            seen += batch[0].tolist()
        assert seen == list(range(20))


@needs_signals
def test_workers_go_on_when_the_whole_process_group_is_asked_to_stop() -> None:
    """The trainer still needs them for the step that it finishes."""
    before = set(multiprocessing.active_children())
    with make(workers=2, prefetch=0) as loader, loader.batches() as batches:
        seen = next(batches)[0].tolist()
        for child in set(multiprocessing.active_children()) - before:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
                os.kill(child.pid or 0, number)
        for batch in batches:
            seen += batch[0].tolist()
    assert seen == list(range(20))


@pytest.mark.parametrize(("workers", "prefetch"), HOW)
def test_an_error_in_loading_reaches_the_main_thread_and_leaves_nothing_behind(
    workers: int, prefetch: int
) -> None:
    children = len(multiprocessing.active_children())
    seen = []
    with within(PATIENCE), make(workers, prefetch, broken=7) as loader:
        with pytest.raises(BadInput) as error, loader.batches() as batches:
            for batch in batches:
                seen += batch[0].tolist()
        assert not reading_ahead()
        assert len(multiprocessing.active_children()) == children
    assert str(error.value) == "images/7.png: not readable as an image"
    assert seen == list(range(6))


def test_a_data_set_that_cannot_be_sent_to_a_process_is_refused(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """As one with a lambda, where processes are not forked."""
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        data = Numbers()
        data.transform = lambda value: value  # type: ignore[attr-defined]
        loader = Loader(data, EvalBatchSampler(20, 3), CPU, 1, prefetch=2)
        with (
            pytest.raises(BadInput, match=r"^--workers 1: the data set cannot be sent .*lambda"),
            loader.batches() as batches,
        ):
            next(batches)
        del loader, batches
        gc.collect()
        assert not recwarn.list
    finally:
        multiprocessing.set_start_method(method, force=True)
    assert capfd.readouterr().err == ""


@needs_fork
@pytest.mark.parametrize("kind", [Numbers, WholeBatches])
def test_a_worker_without_shared_memory_is_no_endless_wait(
    monkeypatch: pytest.MonkeyPatch, kind: type[Numbers]
) -> None:
    def refuse(tensor: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", refuse)
    loader = Loader(kind(), EvalBatchSampler(20, 3), CPU, 1, prefetch=2)
    with pytest.raises(RuntimeError) as error, loader.batches() as batches:
        next(batches)
    assert status(lambda: throw(error.value), "train.py") == 1


def test_an_error_of_the_caller_is_not_covered_by_one_in_loading() -> None:
    with (
        make(workers=1, prefetch=2, broken=4) as loader,
        pytest.raises(KeyError, match="mine"),
        loader.batches() as batches,
    ):
        next(batches)
        raise KeyError("mine")


@pytest.mark.parametrize(("workers", "prefetch"), HOW)
def test_batches_that_are_missing_are_noticed(workers: int, prefetch: int) -> None:
    with (
        make(workers, prefetch, ShortSampler(20, 3)) as loader,
        pytest.raises(RuntimeError, match="7 of 8 batches"),
        loader.batches() as batches,
    ):
        deque(batches, maxlen=0)


@pytest.mark.parametrize("error", [KeyError, None])
def test_leaving_while_a_worker_is_stuck(error: type[Exception] | None) -> None:
    before = set(multiprocessing.active_children())
    with within(PATIENCE), make(1, 2, slow=3) as loader:
        with suppress(KeyError), loader.batches() as batches:
            assert next(batches)[0].tolist() == [0, 1, 2]
            if error:
                raise error
        assert not reading_ahead()
        assert set(multiprocessing.active_children()) <= before


class Late(Exception):
    """Raised by a signal."""


@pytest.mark.slow
@needs_signals
def test_an_error_in_the_main_thread_while_it_waits() -> None:
    def raise_error(number: int, frame: object) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, raise_error)
    try:
        with within(PATIENCE), make(1, 2, slow=3) as loader:
            with pytest.raises(Late), loader.batches() as batches:
                next(batches)
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                next(batches)
            assert not reading_ahead()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@needs_signals
@pytest.mark.parametrize("slow", [3, -1])
def test_a_killed_worker_is_reported_whether_it_is_waited_for_or_not(slow: int) -> None:
    before = set(multiprocessing.active_children())
    sampler = CountingSampler(30_000, 3)
    with within(PATIENCE), make(1, 2, sampler, slow=slow) as loader:
        died = pytest.raises(RuntimeError, match=r"^DataLoader worker .*")
        with died as error, loader.batches() as batches:
            next(batches)
            (worker,) = set(multiprocessing.active_children()) - before
            kill = threading.Timer(0.5, os.kill, (worker.pid, signal.SIGKILL))
            kill.start()
            if slow == -1:
                kill.join()
            deque(batches, maxlen=0)
        assert not reading_ahead()
        assert set(multiprocessing.active_children()) <= before
    assert status(lambda: throw(error.value), "train.py") == 1
