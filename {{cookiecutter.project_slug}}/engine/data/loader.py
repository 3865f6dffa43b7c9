"""Batches on their way to the device: worker processes, a background thread, the transfer.

The order of ending prevents hangs, whatever fails: first the thread that reads from the workers,
then the workers; and every wait has a limit.
"""

import atexit
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice, takewhile
from typing import Any

import torch
from prefetch_generator import BackgroundGenerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from engine.data.sampler import (
    EvalBatchSampler,
    Keys,
    SeededDataset,
    TrainBatchSampler,
    whole_batch,
)
from engine.devices import cores, memory_format
from engine.errors import STOP_SIGNALS, kill_workers

Batch = tuple[Tensor, ...]
GRACE = 1.0  # seconds in which a thread or a worker may finish its batch before workers are killed
UNDISTURBED_STEPS = 5  # that the meter times without workers
AHEAD = 8  # batches that are made in one go
POLL = 6.0  # seconds after which DataLoader itself has noticed that a worker is gone


class Loader:
    """Loads the batches of a data set and moves them to the device.

    A context manager, whose end ends the worker processes.

    Args:
        dataset: A map-style data set of tuples of tensors. If it can make whole batches at once
            (see sampler.SeededDataset) it needs no worker processes.
        sampler: Which samples make up which batch.
        device: The device that the batches are moved to.
        workers: Worker processes; 0 loads in the main process, None chooses.
        prefetch: Batches that a background thread keeps ready; 0 for no thread. No thread is
            used where it would share random generators or cores with the model. Unless it is 0,
            batches from the cache for a model on the CPU are made AHEAD in one go.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: TrainBatchSampler | EvalBatchSampler,
        device: torch.device,
        workers: int | None,
        prefetch: int,
    ) -> None:
        self.dataset, self.sampler, self.device = dataset, sampler, device
        example = whole_batch(dataset, torch.tensor([0]))
        at_once = example is not None
        self.on_device = at_once and example[0].device.type != "cpu"
        workers = choose_workers(device, at_once) if workers is None else workers
        self.workers = 0 if self.on_device else workers  # they cannot use the memory of the GPU
        if self.workers:
            atexit.register(kill_workers)  # after multiprocessing's own, so it is called before
        threaded = not self.on_device and (self.workers or (at_once and device.type != "cpu"))
        self.in_groups = at_once and device.type == "cpu" and prefetch > 0 and not self.workers
        self.prefetch = prefetch if threaded else 0
        self.shares_cores = self.workers > 0 and device.type == "cpu"
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._keys = _Keys()
        self._source = SeededDataset(dataset)
        self._loader = DataLoader(
            self._source,
            batch_sampler=self._keys,  # type: ignore[arg-type]  # it has no length
            collate_fn=_shared,  # type: ignore[arg-type]  # it gets what __getitems__ returns
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=device.type == "cuda" and not self.on_device,
            # Left to itself the loader draws from the global generator, which is the model's.
            generator=torch.Generator(),
            worker_init_fn=_end_with_trainer,
        )

    @contextmanager
    def batches(self, n_iter: int = 0) -> Iterator[Iterator[Batch]]:
        """The batches of the sampler from step `n_iter` on, on the device.

        If workers share the cores with the model, the main process loads those of the first few
        steps itself and starts the workers after that: the meter times steps without them.
        """
        ending = ExitStack()
        self._complete = False
        try:
            ready = self._on_device(self._on_host(n_iter, ending))
            yield _in_groups(ready, AHEAD) if self.in_groups else ready
        finally:
            ending.close()  # the thread before the workers
            if not self._complete:  # the workers are still busy, with batches that nobody wants
                self.close()

    def _on_host(self, n_iter: int, ending: ExitStack) -> Iterator[Batch]:
        """The batches, counted; the thread that reads ahead ends with `ending`."""
        expected = self.sampler.count(n_iter)
        in_main = UNDISTURBED_STEPS * self.sampler.per_step if self.shares_cores else 0
        keys = self.sampler.batches(n_iter, self.device if self.on_device else "cpu")
        yield from map(self._source.__getitems__, islice(keys, in_main))
        source: Iterator[Batch]
        if not (self.workers or self._loader.pin_memory):
            source = map(self._source.__getitems__, keys)  # DataLoader would only take time
        else:
            self._keys.rest = keys
            with _signals_blocked():
                source = _read(iter(self._loader))
            self._watch()
        stream = ending.enter_context(_in_background(source, self.prefetch, self._kill))
        for seen in range(min(in_main, expected), expected):
            batch = next(stream, None)
            if batch is None:  # some faults end BackgroundGenerator as if the data had ended
                raise RuntimeError(f"loading stopped after {seen} of {expected} batches")
            yield batch
        self._complete = True

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches on the device. To CUDA the next one is copied while one is computed with."""
        if self._stream is None or self.on_device:
            for batch in batches:
                yield arrange(tuple(part.to(self.device) for part in batch), self.device)
            return
        computing = torch.cuda.current_stream(self.device)
        ready: Batch | None = None
        for on_host in chain(batches, [None]):
            coming = None
            if on_host is not None:
                with torch.cuda.stream(self._stream):
                    coming = tuple(part.to(self.device, non_blocking=True) for part in on_host)
            if ready is not None:
                yield arrange(ready, self.device)
            if coming is not None:
                computing.wait_stream(self._stream)
                for part in coming:  # else its memory might be reused while it is computed with
                    part.record_stream(computing)
            ready = coming

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes within seconds; the next batches start new ones.

        PyTorch has no public way to end them.
        """
        iterator: Any = self._loader._iterator
        self._loader._iterator = None
        if iterator is None:
            return
        # In a thread, since PyTorch can wait for ever for a lock that a killed worker has held.
        ending = threading.Thread(target=iterator._shutdown_workers, daemon=True)
        ending.start()
        ending.join(GRACE)
        for worker in iterator._workers:
            worker.kill()
        for indices in iterator._index_queues:
            indices.cancel_join_thread()  # nobody reads them any more
        ending.join(GRACE)

    def _kill(self) -> None:
        """Kills the workers, and wakes whoever waits for them, who gets an error."""
        iterator: Any = self._loader._iterator
        if iterator is None:
            return
        for worker in iterator._workers:
            worker.kill()
        _wake(iterator._worker_result_queue)

    def _watch(self) -> None:
        """Notices the death of a worker at once; DataLoader would look every 5 s only."""
        iterator: Any = self._loader._iterator
        if iterator is not None and not hasattr(iterator, "watched"):
            iterator.watched = True  # it lives on for the next pass over the data
            # Not the iterator itself, which would never be collected.
            watched = iterator._workers, iterator._worker_result_queue
            threading.Thread(target=_wake_on_death, args=watched, daemon=True).start()


def arrange(batch: Batch, device: torch.device) -> Batch:
    """A batch with its images in the order of `memory_format`, which rounding may depend on."""
    order = memory_format(device)
    return tuple(
        part.contiguous(memory_format=order) if part.dim() == 4 else part for part in batch
    )


def choose_workers(device: torch.device, at_once: bool) -> int:
    """The number of worker processes for `--workers auto`.

    On the CPU none: the network computes on every core itself, its threads wait for each other, and
    a worker on one of the cores delays all of them.

    Args:
        device: The device of the model.
        at_once: Whether whole batches come out of the cache, which takes no time.
    """
    return 0 if at_once or device.type == "cpu" else max(1, min(16, cores() - 1))


class _Keys:
    """The keys of the batches still to be loaded, as DataLoader's batch sampler."""

    rest: Iterator[Keys] = iter(())

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for indices, seeds in self.rest:
            yield indices.numpy(), seeds.numpy()  # tensors would go to workers as open files


def _shared(batch: Batch) -> Batch:
    """A batch; that of a worker process in memory which the trainer can read.

    PyTorch would move it there in a thread of the worker, whose errors are lost: the trainer would
    wait for ever if /dev/shm is full.
    """
    if get_worker_info() is not None:
        for part in batch:
            part.share_memory_()
    return batch


def _read(batches: Iterator[Batch]) -> Iterator[Batch]:
    """`batches`; whatever error the death of a worker causes is reported as such."""
    try:
        yield from batches
    except Exception as error:
        workers = getattr(batches, "_workers", ())
        caught = "Caught" in str(error)  # raised by the data set, in a worker that lives
        if not workers or caught or not _some_died(workers, timeout=0.5):
            raise
        raise RuntimeError("DataLoader worker exited unexpectedly") from None


def _in_groups(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """`batches`, so many made in one go.

    A batch from the cache takes a third of the time if the one before it has just been made:
    between two steps of the network nothing of the code is left in the processor's own caches.
    """
    while group := deque(islice(batches, size)):
        while group:
            yield group.popleft()


def _some_died(workers: Sequence[Any], timeout: float | None) -> bool:
    return bool(multiprocessing.connection.wait([w.sentinel for w in workers], timeout))


def _wake_on_death(workers: Sequence[Any], results: Any) -> None:
    _some_died(workers, timeout=None)
    _wake(results)


def _wake(results: Any) -> None:
    """Wakes the thread that waits for a batch of dead workers, which gets an error.

    PyTorch wakes a thread of its own by the same message.
    """
    with suppress(OSError, RuntimeError, ValueError):  # closed, or at exit: nobody waits
        results.cancel_join_thread()
        results.put((None, None))


@contextmanager
def _in_background(
    source: Iterator[Batch], prefetch: int, kill: Callable[[], None]
) -> Iterator[Iterator[Batch]]:
    """`source`, read ahead by a thread that ends with the block, whatever ends the block.

    Args:
        source: Read by nobody else.
        prefetch: Batches to keep ready; 0 for no thread.
        kill: Makes `source` raise an error if it waits for worker processes.
    """
    if prefetch == 0:
        yield source
        return
    stop = threading.Event()
    ahead = BackgroundGenerator(
        takewhile(lambda _: not stop.is_set(), source), max_prefetch=prefetch
    )
    try:
        yield ahead
    finally:
        stop.set()
        if not _ended(ahead, GRACE):
            kill()
            _ended(ahead, POLL)


def _ended(ahead: BackgroundGenerator, seconds: float) -> bool:
    """Waits for a thread to end, and takes what it still hands over; returns whether it ended."""
    deadline = time.monotonic() + seconds
    while ahead.is_alive() and time.monotonic() < deadline:
        with suppress(queue.Empty):
            ahead.queue.get(timeout=0.05)
    return not ahead.is_alive()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Workers that are started in the block never see the signals that ask the trainer to stop.

    Such a signal may go to the whole process group. The trainer finishes its step first, and for
    that needs its workers. They inherit the blocking from their first instruction on.

    PyTorch's handler of SIGCHLD is not kept: it raises an error wherever the main thread is, even
    inside a lock. The death of a worker is noticed by whoever waits for its batch.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP_SIGNALS, signal.SIGCHLD})
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_trainer(worker_id: int) -> None:
    """Ends this worker as soon as the trainer is gone.

    PyTorch's workers look at their parent process, which may be a fork server that lives on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows blocks no signals
    if (trainer := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_after, args=(trainer.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
