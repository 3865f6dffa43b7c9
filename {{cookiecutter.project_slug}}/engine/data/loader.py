"""Batches on their way to the device: worker processes, a background thread, the transfer.

Workers are started by whatever method the platform has (fork, forkserver, spawn). Every wait for
them has a limit, so that nothing hangs, whichever of the processes fails.
"""

import atexit
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice, takewhile
from multiprocessing import resource_tracker
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
from engine.errors import STOP_SIGNALS, BadInput, Fault, kill_workers

Batch = tuple[Tensor, ...]
GRACE = 1.0  # seconds in which a thread or a worker may finish its batch before it is killed
GONE = 6.0  # seconds after which the end of a killed process has been noticed
UNDISTURBED_STEPS = 5  # that the meter times without workers
AHEAD = 8  # batches that are made in one go


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
            used where it would share random generators or cores with the model, nor beside
            workers, each of which keeps as many ready itself. Unless it is 0, batches from the
            cache for a model on the CPU are made AHEAD in one go.
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
        threaded = at_once and not self.on_device and not self.workers and device.type != "cpu"
        self.prefetch = prefetch if threaded else 0
        self.in_groups = at_once and device.type == "cpu" and prefetch > 0 and not self.workers
        self.shares_cores = self.workers > 0 and device.type == "cpu"
        self.pins = device.type == "cuda" and not self.on_device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._source = SeededDataset(dataset)
        self._processes = _Workers(self._source, self.workers, prefetch, self.pins)

    @contextmanager
    def batches(self, n_iter: int = 0) -> Iterator[Iterator[Batch]]:
        """The batches of the sampler from step `n_iter` on, on the device.

        If workers share the cores with the model, the main process loads those of the first few
        steps itself and starts the workers after that: the meter times steps without them.
        """
        self._complete = False
        with ExitStack() as ending:
            ending.callback(self._end_unless_complete)
            ready = self._on_device(self._on_host(n_iter, ending))
            yield _in_groups(ready, AHEAD) if self.in_groups else ready

    def _end_unless_complete(self) -> None:
        if not self._complete:  # the workers are still busy, with batches that nobody wants
            self.close()

    def _on_host(self, n_iter: int, ending: ExitStack) -> Iterator[Batch]:
        """The batches, counted; the thread that reads ahead ends with `ending`."""
        expected = self.sampler.count(n_iter)
        in_main = UNDISTURBED_STEPS * self.sampler.per_step if self.shares_cores else 0
        keys = self.sampler.batches(n_iter, self.device if self.on_device else "cpu")
        yield from map(self._source.__getitems__, islice(keys, in_main))
        if self.workers:
            stream = self._processes.batches(keys)
        else:
            stream = map(self._source.__getitems__, keys)
            if self.pins:
                stream = (tuple(part.pin_memory() for part in batch) for batch in stream)
            stream = ending.enter_context(_in_background(stream, self.prefetch))
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
        """Ends the worker processes within seconds; the next batches start new ones."""
        self._processes.close()


class _Workers:
    """The worker processes of a loader, which serve one pass over the data after another.

    Args:
        source: The data set, asked for whole batches by their keys.
        number: How many processes.
        prefetch: Batches that each keeps ready, at least 2.
        pin: Whether batches are copied into page-locked memory.
    """

    def __init__(self, source: SeededDataset, number: int, prefetch: int, pin: bool) -> None:
        self.source, self.number, self.ahead, self.pin = source, number, max(2, prefetch), pin
        self.keys = _Keys()
        self.iterator: Any = None
        self.processes: list[Any] = []
        if number:
            atexit.register(kill_workers)  # after multiprocessing's own, so it is called before

    def batches(self, keys: Iterator[Keys]) -> Iterator[Batch]:
        """The batches of `keys`, in their order.

        Raises:
            BadInput: The data set cannot be sent to a process that is not forked.
            Fault: The processes cannot be started.
            RuntimeError: One of them has died.
        """
        self.keys.rest = keys
        if self.iterator is None:
            self._start()
        else:
            iter(self.loader)  # the same iterator, from the beginning
        try:
            yield from self.iterator
        except Exception as error:
            # Raised by the data set, in a process that lives.
            caught = isinstance(error, BadInput | Fault) or "Caught" in str(error)
            if caught or not multiprocessing.connection.wait(self._sentinels(), GONE):
                raise
            # Whatever error the death of a process has caused.
            raise RuntimeError("DataLoader worker exited unexpectedly") from None

    def _start(self) -> None:
        self.loader = DataLoader(
            self.source,
            batch_sampler=self.keys,  # type: ignore[arg-type]  # it has no length
            collate_fn=_shared,  # type: ignore[arg-type]  # it gets what __getitems__ returns
            num_workers=self.number,
            prefetch_factor=self.ahead,
            persistent_workers=True,
            pin_memory=self.pin,
            # Left to itself the loader draws from the global generator, which is the model's.
            generator=torch.Generator(),
            worker_init_fn=_end_with_trainer,
        )
        others = multiprocessing.active_children()
        try:
            with _stop_signals_blocked(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Got pickle error")  # told below, in one line
                self.iterator = iter(self.loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise BadInput(
                f"--workers {self.number}: the data set cannot be sent to worker processes "
                f"({error}); give it functions that a module defines, or use --workers 0"
            ) from None
        except OSError as error:
            raise Fault(
                f"--workers {self.number}: cannot be started ({error.strerror}); use fewer"
            ) from None
        self.processes = [each for each in multiprocessing.active_children() if each not in others]

    def _sentinels(self) -> list[int]:
        return [process.sentinel for process in self.processes]

    def close(self) -> None:
        """Ends the processes, which PyTorch has no public way for; `batches` starts new ones."""
        if self.iterator is None:
            return
        # In a thread, since PyTorch can wait for ever for a lock that a killed process has held.
        ending = threading.Thread(target=self.iterator._shutdown_workers, daemon=True)
        ending.start()
        ending.join(GRACE)
        for process in self.processes:
            process.kill()
        for indices in self.iterator._index_queues:
            indices.cancel_join_thread()  # nobody reads them any more
        for waited in (*self.processes, ending):
            waited.join(GONE)
        self.iterator, self.processes = None, []


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


def _in_groups(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """`batches`, so many made in one go.

    A batch from the cache takes a third of the time if the one before it has just been made:
    between two steps of the network nothing of the code is left in the processor's own caches.
    """
    while group := deque(islice(batches, size)):
        while group:
            yield group.popleft()


@contextmanager
def _in_background(source: Iterator[Batch], prefetch: int) -> Iterator[Iterator[Batch]]:
    """`source`, read ahead by a thread that ends with the block, whatever ends the block.

    Args:
        source: Read by nobody else.
        prefetch: Batches to keep ready; 0 for no thread.
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
        deadline = time.monotonic() + GONE
        while ahead.is_alive() and time.monotonic() < deadline:
            with suppress(queue.Empty):  # it may be about to hand over a batch
                ahead.queue.get(timeout=0.05)


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Workers that are started in the block never see the signals that ask the trainer to stop.

    Such a signal may go to the whole process group. The trainer finishes its step first, and for
    that needs its workers. They inherit the blocking from their first instruction on, and so does
    the fork server where there is one.

    PyTorch's handler of SIGCHLD is not kept: it raises an error wherever the main thread is, even
    inside a lock. The death of a worker is noticed by whoever waits for its batch. SIGCHLD itself
    is not blocked: a fork server that inherits that never reaps its children.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    if multiprocessing.get_start_method() != "fork":
        _start_resource_tracker()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_resource_tracker() -> None:
    """Starts the process in which multiprocessing cleans up after one that has not.

    Before signals are blocked: its start unblocks them up to Python 3.13. And without its warning,
    which would follow the line of a program that was killed or interrupted.
    """
    before = os.environ.get("PYTHONWARNINGS", "")
    os.environ["PYTHONWARNINGS"] = ",".join([*filter(None, [before]), "ignore:resource_tracker"])
    try:
        resource_tracker.ensure_running()
    finally:
        os.environ["PYTHONWARNINGS"] = before
        if not before:
            del os.environ["PYTHONWARNINGS"]


def _end_with_trainer(worker_id: int) -> None:
    """Ends this worker as soon as the trainer is gone, and by no signal that asks to stop.

    PyTorch's workers look at their parent process, which may be a fork server that lives on.
    """
    for number in STOP_SIGNALS:  # blocked, but not on Windows, nor by an older fork server
        signal.signal(number, signal.SIG_IGN)
    if (trainer := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_after, args=(trainer.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
