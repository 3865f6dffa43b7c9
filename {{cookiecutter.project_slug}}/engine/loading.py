"""Batches on their way to the device: worker processes, a background thread, the transfer."""

import atexit
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile

import torch
from prefetch_generator import BackgroundGenerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.order import SeededDataset, TestOrder, TrainOrder

Batch = tuple[Tensor, ...]


class Loader:
    """Loads the batches of a data set in the given order and moves them to the device.

    Args:
        dataset: A map-style data set of tuples of tensors.
        order: Which samples make up which batch.
        device: Where the batches are wanted.
        workers: Worker processes; 0 loads in the main thread.
        prefetch: Batches that a background thread keeps ready; 0 for no thread. Without workers
            there is no thread either: it would share its random generators with the model.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: TrainOrder | TestOrder,
        device: torch.device,
        workers: int,
        prefetch: int,
    ) -> None:
        self.order, self.device = order, device
        if workers:
            atexit.register(_kill_workers)  # after multiprocessing's own, so it is called before
        self.prefetch = prefetch if workers else 0
        self._loader = DataLoader(
            SeededDataset(dataset),
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Left to itself the loader draws from the global generator, which is the model's.
            generator=torch.Generator(),
            worker_init_fn=_end_with_trainer,
        )

    @contextmanager
    def batches(self) -> Iterator[Iterator[Batch]]:
        """The batches that `order` names now; leaving the block early leaves no thread behind."""
        expected = len(self.order)
        with _stop_signals_blocked():  # for the workers that are started here, for good
            source = iter(self._loader)  # and not in a thread, from which forking is unsafe
        try:
            with _in_background(source, self.prefetch) as stream:
                yield self._counted(stream, expected)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the worker processes; the next batches start new ones.

        Left to the garbage collector, workers outlive an error, whose traceback refers to them.
        PyTorch has no public way to end them.
        """
        workers, self._loader._iterator = self._loader._iterator, None
        if workers is not None:
            workers._shutdown_workers()  # type: ignore[attr-defined]

    def _counted(self, stream: Iterator[Batch], expected: int) -> Iterator[Batch]:
        for seen in range(expected):
            batch = next(stream, None)
            if batch is None:  # some faults end BackgroundGenerator as if the data had ended
                raise RuntimeError(f"loading stopped after {seen} of {expected} batches")
            yield tuple(part.to(self.device, non_blocking=True) for part in batch)


@contextmanager
def _in_background(source: Iterator[Batch], depth: int) -> Iterator[Iterator[Batch]]:
    """`source`, read ahead by a thread that ends with the block, however the block ends."""
    if depth == 0:
        yield source
        return
    stop = threading.Event()
    ahead = BackgroundGenerator(takewhile(lambda _: not stop.is_set(), source), max_prefetch=depth)
    try:
        yield ahead
    finally:
        stop.set()
        with suppress(Exception):  # whoever left the block has the error that matters
            deque(ahead, maxlen=0)  # makes room, else the thread waits for ever to hand over
        ahead.join()


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Processes started in the block never see the signals that ask the trainer to stop.

    A signal to the whole process group is for the trainer, which finishes its step and for that
    still needs its workers. They inherit the blocking from their first instruction on.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    stop = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_workers() -> None:
    """At exit, ends the workers that are still there because an error left their loader behind.

    multiprocessing would ask them by SIGTERM, for which they are deaf, and wait for ever.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler takes it for a fault
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def _end_with_trainer(worker_id: int) -> None:
    """Ends this worker as soon as the trainer is gone, however it went.

    PyTorch's workers look at their parent process, which a fork server outlives.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for Windows, which blocks no signals
    if (trainer := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_after, args=(trainer.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
