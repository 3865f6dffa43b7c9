"""Batches on their way to the device: worker processes, a background thread, the transfer."""

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
        self.prefetch = prefetch if workers else 0
        self._loader = DataLoader(
            SeededDataset(dataset),
            batch_sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Left to itself the loader draws from the global generator, which is the model's.
            generator=torch.Generator(),
            worker_init_fn=_ignore_stop_signals,
        )

    @contextmanager
    def batches(self) -> Iterator[Iterator[Batch]]:
        """The batches that `order` names now; leaving the block early leaves no thread behind."""
        expected = len(self.order)
        source = iter(self._loader)  # here, so that workers are started by the main thread
        with _in_background(source, self.prefetch) as stream:
            yield self._counted(stream, expected)

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


def _ignore_stop_signals(worker_id: int) -> None:
    """A signal to the whole process group is for the trainer, which then ends its workers."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has only some of them
            signal.signal(getattr(signal, name), signal.SIG_IGN)
