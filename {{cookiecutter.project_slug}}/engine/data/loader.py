"""Batches on their way to the device: worker processes, a background thread, the transfer.

Every wait for workers has a limit, so that nothing hangs, whichever of the processes fails.
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
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import takewhile
from multiprocessing import resource_tracker
from typing import Any

import torch
from prefetch_generator import BackgroundGenerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

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
GRACE = 1.0  # seconds in which a worker may finish its batch before it is killed
GONE = 6.0  # seconds after which the end of a killed process has been noticed


class Loader(AbstractContextManager["Loader"]):
    """Loads the batches of a data set and moves them to the device.

    A context manager, whose end ends the worker processes, which serve one pass after another.

    Args:
        dataset: A map-style data set of tuples of tensors. If it can make whole batches at once
            (see sampler.whole_batch) it needs no worker processes.
        sampler: Which samples make up which batch.
        device: The device that the batches are moved to.
        workers: Worker processes; 0 loads in the main process, None chooses.
        prefetch: Batches that a background thread keeps ready; 0 for no thread. No thread is
            used where it would share random generators or cores with the model, nor beside
            workers, each of which keeps as many ready itself, and at least 2.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: TrainBatchSampler | EvalBatchSampler,
        device: torch.device,
        workers: int | None,
        prefetch: int,
    ) -> None:
        self.sampler, self.device = sampler, device
        example = whole_batch(dataset, torch.tensor([0]))
        at_once = example is not None
        self.on_device = at_once and example[0].device.type != "cpu"
        workers = choose_workers(device, at_once) if workers is None else workers
        self.workers = 0 if self.on_device else workers  # they cannot use the memory of the GPU
        threaded = at_once and not self.on_device and not self.workers and device.type != "cpu"
        self.prefetch, self._ahead = prefetch if threaded else 0, max(2, prefetch)
        self.pins = device.type == "cuda" and not self.on_device
        self._stream = torch.cuda.Stream(device) if self.pins else None
        self._source = SeededDataset(dataset)
        self._keys = _Keys()
        self._iterator: Any = None  # of DataLoader

    @contextmanager
    def batches(self, n_iter: int = 0) -> Iterator[Iterator[Batch]]:
        """The batches of the sampler from step `n_iter` on, on the device.

        Raises:
            BadInput: The data set cannot be sent to a process that is not forked.
            Fault: The processes cannot be started.
            RuntimeError: One of them has died, or loading has stopped early.
        """
        self._complete = False
        keys = self.sampler.batches(n_iter, self.device if self.on_device else "cpu")
        batches = self._from_workers(keys) if self.workers else self._from_main_process(keys)
        try:
            with _in_background(batches, self.prefetch) as on_host:
                yield self._on_device(self._counted(on_host, self.sampler.count(n_iter)))
        finally:
            if not self._complete:  # the workers are still busy with batches that nobody will use
                self.close()

    def shown(self, batch: Batch) -> Batch:
        """What is drawn of a first batch: if it has features, the images that these stand for."""
        make = getattr(self._source.dataset, "with_images", None)
        if make is None:
            return batch
        indices, _ = next(self.sampler.batches())
        return tuple(part.to(self.device) for part in make(indices))

    def _counted(self, batches: Iterable[Batch], expected: int) -> Iterator[Batch]:
        seen = 0
        for batch in batches:
            yield batch
            seen += 1
        if seen < expected:  # some faults end BackgroundGenerator as if the data had ended
            raise RuntimeError(f"loading stopped after {seen} of {expected} batches")
        self._complete = True

    def _from_main_process(self, keys: Iterator[Keys]) -> Iterator[Batch]:
        for batch in map(self._source.__getitems__, keys):
            yield tuple(part.pin_memory() for part in batch) if self.pins else batch

    def _from_workers(self, keys: Iterator[Keys]) -> Iterator[Batch]:
        self._keys.rest = keys
        if self._iterator is None:
            self._start_workers()
        else:
            iter(self._data_loader)  # the same iterator, from the beginning
        try:
            yield from self._iterator
        except Exception as error:
            # Raised by the data set, in a process that lives.
            caught = isinstance(error, BadInput | Fault) or "Caught" in str(error)
            sentinels = [process.sentinel for process in self._iterator._workers]
            if caught or not multiprocessing.connection.wait(sentinels, GONE):
                raise
            # Whatever error the death of a process has caused.
            raise RuntimeError("DataLoader worker exited unexpectedly") from None

    def _start_workers(self) -> None:
        atexit.register(kill_workers)  # after multiprocessing's own, so it is called before
        self._data_loader = DataLoader(
            self._source,
            batch_sampler=self._keys,  # type: ignore[arg-type]  # it has no length
            collate_fn=_share_memory,  # type: ignore[arg-type]  # gets what __getitems__ returns
            num_workers=self.workers,
            prefetch_factor=self._ahead,
            persistent_workers=True,
            pin_memory=self.pins,
            # Left to itself the loader draws from the global generator, which is the model's.
            generator=torch.Generator(),
            worker_init_fn=_end_with_trainer,
        )
        option = f"--workers {self.workers}"
        try:
            with _stop_signals_blocked(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Got pickle error")  # told below, in one line
                self._iterator = iter(self._data_loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise BadInput(
                f"{option}: the data set cannot be sent to worker processes ({error}); give it "
                "functions that a module defines, or use --workers 0"
            ) from None
        except OSError as error:
            raise Fault(f"{option}: cannot be started ({error.strerror}); use fewer") from None

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches on the device. To CUDA the next one is copied while one is computed with."""
        if self._stream is None:
            for batch in batches:
                yield to_memory_format(tuple(part.to(self.device) for part in batch), self.device)
            return
        computing, copies = torch.cuda.current_stream(self.device), map(self._copy, batches)
        ready = next(copies, None)
        while ready is not None:
            computing.wait_stream(self._stream)
            for part in ready:  # else its memory might be reused while it is computed with
                part.record_stream(computing)
            coming = next(copies, None)
            yield to_memory_format(ready, self.device)
            ready = coming

    def _copy(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self._stream):
            return tuple(part.to(self.device, non_blocking=True) for part in batch)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes within seconds; the next batches start new ones."""
        if self._iterator is None:
            return
        # PyTorch has no public method for it. In a thread, since it can wait for ever for a lock
        # that a killed process has held.
        ending = threading.Thread(target=self._iterator._shutdown_workers, daemon=True)
        ending.start()
        ending.join(GRACE)
        for process in self._iterator._workers:
            process.kill()
        for indices in self._iterator._index_queues:
            indices.cancel_join_thread()  # nobody reads them any more
        for waited in (*self._iterator._workers, ending):
            waited.join(GONE)
        self._iterator = None


def to_memory_format(batch: Batch, device: torch.device) -> Batch:
    """A batch with its images in the order of `memory_format`, which rounding may depend on."""
    order = memory_format(device)
    return tuple(
        part if part.dim() != 4 else part.contiguous(memory_format=order) for part in batch
    )


def choose_workers(device: torch.device, at_once: bool) -> int:
    """The number of worker processes for `--workers auto`; none if batches are made at once."""
    # None on the CPU: the network computes on every core itself, its threads wait for each other,
    # and a worker on one of the cores delays all of them.
    return 0 if at_once or device.type == "cpu" else max(1, min(16, cores() - 1))


class _Keys:
    """The keys of the batches still to be loaded, as DataLoader's batch sampler."""

    rest: Iterator[Keys] = iter(())

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for indices, seeds in self.rest:
            yield indices.numpy(), seeds.numpy()  # tensors would go to workers as open files


def _share_memory(batch: Batch) -> Batch:
    """A worker's batch in memory that the trainer can read.

    PyTorch would move it there in a thread of the worker, whose errors are lost: the trainer would
    wait for ever if /dev/shm is full.
    """
    for part in batch:
        part.share_memory_()
    return batch


@contextmanager
def _in_background(source: Iterator[Batch], prefetch: int) -> Iterator[Iterator[Batch]]:
    """`source`, of which a thread keeps `prefetch` batches ready; it ends with the block."""
    if prefetch == 0:
        yield source
        return
    stop = threading.Event()
    until_stop = takewhile(lambda _: not stop.is_set(), source)
    ahead = BackgroundGenerator(until_stop, max_prefetch=prefetch)
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

    Such a signal may go to the whole process group, and the trainer needs its workers to finish its
    step. They inherit the blocking from their first instruction on, as does a fork server.

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
    ignore = "ignore:resource_tracker"
    filters = os.environ.get("PYTHONWARNINGS") or ignore
    os.environ["PYTHONWARNINGS"] = filters if ignore in filters else f"{filters},{ignore}"
    resource_tracker.ensure_running()


def _end_with_trainer(worker_id: int) -> None:
    """Ends this worker as soon as the trainer is gone, and by no signal that asks to stop.

    PyTorch's workers look at their parent process, which may be a fork server that lives on.
    """
    for number in STOP_SIGNALS:  # blocked, but not on Windows, nor by an older fork server
        signal.signal(number, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()

    def exit_after_trainer() -> None:
        multiprocessing.connection.wait([trainer.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=exit_after_trainer, daemon=True).start()
