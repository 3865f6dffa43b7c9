"""The processes of a run: those that torchrun started, or one alone.

    torchrun --standalone --nproc-per-node 4 train.py

A step has `--accumulate` micro-batches, whoever computes them, and its result is a function of
(seed, n_iter) and of their number alone: process r of W computes the r-th of W equal shares, and
what the micro-batches contribute is added up in one binary tree (see `Fold`), whose upper levels
join the processes. So a run gives the same bits on 1, 2, 4 or 8 processes.
"""

import hashlib
import os
import pickle
import re
import socket
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine import errors
from engine.devices import local_rank
from engine.errors import LAUNCHED, BadInput, Fault

T = TypeVar("T")
# Numbers of processes as others than torchrun pass them on: accelerate, srun, Open MPI, MPICH.
LAUNCHERS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
LONG = timedelta(days=7)  # for what may take as long as it likes, such as decoding a data set


class World:
    """All processes of a run, from the sight of one of them.

    A context manager, whose end takes leave of the others. Every process calls each of the methods,
    in the same order, except `share`.

    Args:
        rank: The number of this process, counted from 0; process 0 alone prints and writes.
        size: The number of processes.
        exact: Whether sums have the bits that one process alone would give them.
    """

    def __init__(self, rank: int = 0, size: int = 1, exact: bool = True) -> None:
        self.rank, self.size, self.exact = rank, size, exact

    def meet(self, opt: Namespace, device: torch.device) -> None:
        """Forms the group of all processes; from here on the first error alone is printed."""
        timeout = timedelta(seconds=opt.timeout)
        cuda = device.type == "cuda"
        # Else gloo looks its own machine up by a name that some machines do not know.
        loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
        if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"] and loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
        with _partners():
            store, *_ = next(dist.rendezvous("env://", timeout=timeout))
            store = dist.PrefixStore(self._meeting(store, opt.timeout), store)
            self.store = dist.PrefixStore("run", store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=dist.PrefixStore("group", store),
                rank=self.rank,
                world_size=self.size,
                timeout=timeout,
                device_id=device if cuda else None,
            )
            self.patient = cast(Any, dist.new_group(backend="gloo", timeout=LONG))
        errors.among_processes(self._may_speak)
        self._check_code()
        vars(opt).update(self.once(lambda: vars(opt)), device=opt.device)

    def _meeting(self, store: dist.Store, timeout: float) -> str:
        """A name on which these processes agree, and no earlier ones did.

        torchrun keeps the store when it starts processes again, and with it the keys of those that
        have ended, so what a process finds there may be out of date. Each therefore asks process 0
        under a name of its own.
        """
        mine, end = os.urandom(8).hex(), time.monotonic() + timeout
        if self.rank:
            store.set(f"asks {self.rank}", mine)
            meeting = store.get(f"answer to {mine}").decode()
            store.set(f"{meeting} has {self.rank}", "")
            return meeting
        for other in range(1, self.size):
            while not store.check([f"{mine} has {other}"]):
                if store.check([f"asks {other}"]):
                    store.set(f"answer to {store.get(f'asks {other}').decode()}", mine)
                if time.monotonic() > end:
                    raise RuntimeError(f"process {other} did not come")
                time.sleep(0.01)
        return mine

    def _check_code(self) -> None:
        """Refuses processes whose code differs, as on machines with copies of the project."""
        digests = code_digests()
        hosts, all_digests = zip(*self.gather((socket.gethostname(), digests)), strict=True)
        names = sorted({name for found in all_digests for name in found})
        for name in names:
            first = all_digests[0].get(name)
            for rank, found in enumerate(all_digests):
                if found.get(name) != first:
                    raise BadInput(
                        f"{name}: that of process 0 on {hosts[0]} is not that of process {rank} on "
                        f"{hosts[rank]}; give all machines the same code"
                    )

    def _may_speak(self) -> str | None:
        """What an error of this process begins with; None if another one has reported one."""
        reports: list[int] = []

        def report() -> None:
            with suppress(RuntimeError):
                reports.append(self.store.add("errors", 1))

        # In a thread: if the cable was cut it would wait for long. Rather two lines than none.
        asking = threading.Thread(target=report, daemon=True)
        asking.start()
        asking.join(5)
        if reports and reports[0] > 1:
            return None
        return f"process {self.rank} of {self.size} on {socket.gethostname()}: "

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self.size > 1 and kind is None:  # after an error nobody would answer
            self.highest(0)  # torchrun ends the others once one has left: the last file is written
            with _partners():
                dist.destroy_process_group()

    def share(self, micro_batches: int) -> range:
        """The micro-batches of a step that are this process's."""
        each = micro_batches // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def once(self, make: Callable[[], T]) -> T:
        """What `make` returns in process 0, for all; if that cannot be pickled, each makes its own.

        Pickle refuses lambdas, for one, which an owner's transforms may contain.
        """
        if self.size == 1:
            return make()
        made, pickled = None, b""
        if self.rank == 0:
            made = make()
            with suppress(pickle.PicklingError, AttributeError, TypeError):
                pickled = pickle.dumps(made)
        self.wait()
        sent: list[Any] = [pickled]
        with _partners():
            dist.broadcast_object_list(sent)
        if self.rank == 0:
            return cast(T, made)
        return pickle.loads(sent[0]) if sent[0] else make()

    def wait(self) -> None:
        """Returns when every process is here, however long that takes; no other wait is as long.

        A barrier, and not keys in the store: it fails at once when a process ends.
        """
        if self.size > 1:
            with _partners():
                dist.barrier(self.patient)

    @contextmanager
    def first_here(self) -> Iterator[None]:
        """A block that one process of each machine runs first.

        The others find what it has downloaded, or written.
        """
        if local_rank() > 0:
            self.wait()
        yield
        if local_rank() == 0:
            self.wait()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their numbers."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _partners():
            dist.all_gather_object(values, value)
        return values

    def join(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, joined along their first dimension."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with _partners():
            dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def highest(self, number: int) -> int:
        """The highest of the processes' numbers."""
        if self.size == 1:
            return number
        highest = torch.tensor(number)
        with _partners():
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    def check_equal(self, content: dict[str, Any]) -> None:
        """Raises Fault if the tensors of a checkpoint differ between the processes."""
        if self.size == 1:
            return
        sums = torch.stack(list(_checksums(content)))
        ends = torch.stack([sums, -sums])
        with _partners():
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        if not ends[0].equal(-ends[1]):
            raise Fault(
                "the weights differ between the processes, which must not happen; go on with "
                "--resume from the last checkpoint, and report it if it happens again"
            )

    def sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sums over all processes of tensors of one type: dense, of the same strides."""
        if self.size == 1 or not tensors:
            return tensors
        length = sum(tensor.numel() for tensor in tensors)
        flat = tensors[0].new_zeros(-(-length // self.size) * self.size)
        parts = flat[:length].split([tensor.numel() for tensor in tensors])
        views = [
            part.as_strided(tensor.shape, tensor.stride(), part.storage_offset())
            for part, tensor in zip(parts, tensors, strict=True)
        ]
        torch._foreach_copy_(views, tensors)
        with _partners():
            if self.exact:
                self._sum_as_a_tree(flat)
            else:
                dist.all_reduce(flat)
        return views

    def _sum_as_a_tree(self, flat: Tensor) -> None:
        """Recursive halving and doubling (Thakur, Rabenseifner and Gropp 2005), in place.

        Neighbours are added first, then pairs of them, and so on: the tree that one process alone
        builds. Since a + b = b + a, all get the same bits. Each sends 2 (W - 1) / W of the tensor,
        as in a ring.
        """
        start, end = 0, len(flat)
        halves: list[tuple[int, int, int, int, int]] = []
        distance = 1
        while distance < self.size:
            middle = (start + end) // 2
            upper = bool(self.rank & distance)
            kept = (middle, end) if upper else (start, middle)
            given = (start, middle) if upper else (middle, end)
            partner = self.rank ^ distance
            received = torch.empty_like(flat[slice(*kept)])
            _exchange(flat[slice(*given)], received, partner)
            flat[slice(*kept)] += received
            halves.append((partner, *kept, *given))
            start, end = kept
            distance *= 2
        for partner, kept_start, kept_end, given_start, given_end in reversed(halves):
            _exchange(flat[kept_start:kept_end], flat[given_start:given_end], partner)


ALONE = World()  # a run that torchrun has not started


def start(opt: Namespace, device: torch.device) -> World:
    """The processes that torchrun started, or this one alone; prints what a step is.

    Args:
        opt: The options; those of process 0 hold for all.
        device: The device of this process.

    Raises:
        BadInput: The micro-batches of a step cannot be divided among so many processes, their code
            differs, or something else than torchrun has started several.
        Fault: The others cannot be reached.
    """
    _check_launcher()
    size = int(os.environ["WORLD_SIZE"]) if LAUNCHED else 1
    exact = size & (size - 1) == 0 and (device.type == "cpu" or opt.deterministic)
    world = World(int(os.environ["RANK"]) if LAUNCHED else 0, size, exact)
    if size > 1:
        world.meet(opt, device)
    if opt.accumulate % size:
        fitting = [str(n) for n in range(1, opt.accumulate + 1) if opt.accumulate % n == 0]
        raise BadInput(
            f"--accumulate {opt.accumulate}: cannot be divided among {size} processes; start "
            f"{', '.join(fitting[:-1])} or {fitting[-1]}"
        )
    return world


def _check_launcher() -> None:
    """Refuses to be one of several processes that know nothing of each other."""
    if LAUNCHED:
        return

    def number(name: str) -> int:
        text = os.environ.get(name, "")
        return int(text) if text.isdecimal() else 0

    # In a script for sbatch Slurm counts the tasks of the whole job, though it has one process.
    sizes = [name for name in LAUNCHERS if number(name) > 1]
    sizes += ["SLURM_NTASKS"] * (number("SLURM_NTASKS") > 1 and number("SLURM_PROCID") > 0)
    if sizes:
        name = sizes[0]
        raise BadInput(
            f"{name} is {number(name)}, but torchrun has not started this process: each would "
            "train alone; use torchrun (see docs/processes.md), or for separate runs unset "
            f"{', '.join(sizes)}"
        )


def code_digests() -> dict[str, str]:
    """A digest of each Python file that computes a run, by its path in the project."""
    root = Path(__file__).resolve().parents[1]
    files = [*root.glob("*.py"), *root.glob("task/*.py"), *root.glob("engine/**/*.py")]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in files
    }


class Fold:
    """The sum of the tensors of each micro-batch of a step, in a binary tree.

    Of P micro-batches, P = 2^a q with q odd, runs of q are added one after the other; their sums
    are added in pairs, then the sums of pairs, and so on. So the part of the tree below a power of
    two of processes is the same whoever computes it.

    Args:
        micro_batches: How many a step has.
    """

    def __init__(self, micro_batches: int) -> None:
        self.run = micro_batches // (micro_batches & -micro_batches)
        self.clear()

    def clear(self) -> None:
        """Begins a new step."""
        self.levels: list[list[Tensor] | None] = []
        self.current: list[Tensor] | None = None
        self.in_run = 0

    def add(self, tensors: list[Tensor]) -> None:
        """Adds those of the next micro-batch; they are taken over, and may be changed."""
        self.current = tensors if self.current is None else _add(self.current, tensors)
        self.in_run += 1
        if self.in_run < self.run:
            return
        carry, self.current, self.in_run = self.current, None, 0
        for level, waiting in enumerate(self.levels):
            if waiting is None:
                self.levels[level] = carry
                return
            carry, self.levels[level] = _add(waiting, carry), None
        self.levels.append(carry)

    def total(self) -> list[Tensor]:
        """The sum of all that was added."""
        found = [part for part in [self.current, *self.levels] if part is not None]
        total = found[0]
        for part in found[1:]:
            total = _add(part, total)
        self.clear()
        return total


def _add(first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    if first:  # a network may have no buffers
        torch._foreach_add_(first, second)
    return first


def _checksums(value: Any) -> Iterator[Tensor]:
    """A sum of the bits of each tensor in a checkpoint, whatever the order of adding."""
    if isinstance(value, Tensor):
        bits = {2: torch.int16, 4: torch.int32}.get(value.element_size())
        whole = value.view(bits) if value.is_floating_point() and bits else value
        yield whole.sum(dtype=torch.int64).cpu()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _checksums(item)


def _exchange(given: Tensor, received: Tensor, partner: int) -> None:
    """Sends a tensor to a process and receives one from it."""
    operations = [
        dist.P2POp(dist.isend, given, partner),
        dist.P2POp(dist.irecv, received, partner),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


def buffers_of(networks: dict[str, nn.Module]) -> list[Tensor]:
    """What forward passes may change, such as the statistics of batch norm."""
    return [
        buffer
        for network in networks.values()
        if list(network.parameters())  # one without them, such as an image pool, has `end_step`
        for buffer in network.buffers()
    ]


@contextmanager
def _partners() -> Iterator[None]:
    """Turns the errors of talking to other processes into a line."""
    try:
        yield
    except RuntimeError as error:
        text = re.sub(r"\[/\S*\]", "", " ".join(str(error).split())).strip()  # a path of PyTorch's
        raise Fault(
            "another process has ended or cannot be reached; if it does not say why, see its "
            f"machine; go on with --resume ({text[:80]})"
        ) from None
