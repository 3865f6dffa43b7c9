"""Batches on their way to the device: worker processes, a background thread, the transfer."""

import atexit
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, islice, takewhile

import torch
from prefetch_generator import BackgroundGenerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from engine.devices import MEMORY_FORMAT, choose_workers
from engine.order import Key, SeededDataset, TestOrder, TrainOrder, whole_batch

Batch = tuple[Tensor, ...]


class Loader:
    """Loads the batches of a data set in the given order and moves them to the device.

    Args:
        dataset: A map-style data set of tuples of tensors. If it can make whole batches at once
            (order.SeededDataset says how) it needs no worker processes.
        order: Which samples make up which batch.
        device: Where the batches are wanted.
        workers: Worker processes; 0 loads in the main thread, None chooses.
        prefetch: Batches that a background thread keeps ready; 0 for no thread. There is none
            either where it would share its random generators with the model, or its cores.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: TrainOrder | TestOrder,
        device: torch.device,
        workers: int | None,
        prefetch: int,
    ) -> None:
        self.order, self.device = order, device
        example = whole_batch(dataset, [0])
        at_once = example is not None
        on_device = at_once and example[0].device.type != "cpu"
        workers = choose_workers(device, at_once) if workers is None else workers
        self.workers = 0 if on_device else workers  # other processes cannot use CUDA's memory
        if self.workers:
            atexit.register(_kill_workers)  # after multiprocessing's own, so it is called before
        self.prefetch = prefetch if self.workers or (at_once and device.type != "cpu") else 0
        self._keys = _Keys()
        self._source = SeededDataset(dataset)
        self._loader = DataLoader(
            self._source,
            batch_sampler=self._keys,
            collate_fn=_shared,  # type: ignore[arg-type]  # it gets what __getitems__ returns
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=device.type == "cuda" and not on_device,
            # Left to itself the loader draws from the global generator, which is the model's.
            generator=torch.Generator(),
            worker_init_fn=_end_with_trainer,
        )

    @contextmanager
    def batches(self, first: int = 0) -> Iterator[Iterator[Batch]]:
        """The batches that `order` names now; leaving the block early leaves no thread behind.

        Args:
            first: Batches that are loaded before anything is handed out, and before the workers
                start, so that what is done with them can be timed undisturbed.
        """
        with ExitStack() as block:
            try:
                yield self._ahead(self._counted(block, first))
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

    def _counted(self, block: ExitStack, first: int) -> Iterator[Batch]:
        """The batches on the host; the thread that reads ahead ends with `block`."""
        expected = len(self.order)
        keys = iter(self.order)
        yield from [self._source.__getitems__(key) for key in islice(keys, first)]
        self._keys.rest = keys
        with _stop_signals_blocked():  # for the workers that are started here, for good
            source = iter(self._loader)  # and not in a thread, from which forking is unsafe
        stream = block.enter_context(_in_background(source, self.prefetch))
        for seen in range(min(first, expected), expected):
            batch = next(stream, None)
            if batch is None:  # some faults end BackgroundGenerator as if the data had ended
                raise RuntimeError(f"loading stopped after {seen} of {expected} batches")
            yield batch

    def _ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches on the device. To CUDA the next one is copied while one is computed with."""
        if self.device.type != "cuda":
            moved = (tuple(part.to(self.device) for part in batch) for batch in batches)
            yield from map(_arranged, moved)
            return
        copying, computing = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        ready: Batch | None = None
        for batch in chain(batches, [None]):
            coming = None
            if batch is not None:
                with torch.cuda.stream(copying):
                    coming = tuple(part.to(self.device, non_blocking=True) for part in batch)
            if ready is not None:
                yield _arranged(ready)
            if coming is not None:
                computing.wait_stream(copying)
                for part in coming:  # else its memory might be used anew while it is computed with
                    part.record_stream(computing)
            ready = coming


class _Keys:
    """What is left of an epoch, for the DataLoader to take batch after batch."""

    rest: Iterator[list[Key]] = iter(())

    def __iter__(self) -> Iterator[list[Key]]:
        return self.rest


def _shared(batch: Batch) -> Batch:
    """A batch as it is; that of a worker process in memory which the trainer can read.

    It would get there anyway, but by a thread of the worker whose errors nobody hears, and then the
    trainer would wait for ever if /dev/shm has no room.
    """
    if get_worker_info() is not None:
        for part in batch:
            part.share_memory_()
    return batch


def _arranged(batch: Batch) -> Batch:
    """A batch whose images lie in memory in one order, wherever they come from.

    What is computed with them may round differently in another order.
    """
    return tuple(
        part.contiguous(memory_format=MEMORY_FORMAT) if part.dim() == 4 else part for part in batch
    )


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
