"""The processes of a run: those that torchrun started, or one alone.

    torchrun --standalone --nproc-per-node 4 train.py

A step has `--accumulate` micro-batches, and its result is a function of (seed, n_iter) and of their
number alone: process r of W computes the r-th of W equal shares, and all micro-batches are summed
in one binary tree (see `TreeSum`), whose upper levels are the sums over processes. So a run gives
the same bits on 1, 2, 4 or 8 processes.
"""

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
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from engine import errors
from engine.data.source import code_digests
from engine.devices import local_rank
from engine.errors import LAUNCHED, BadInput, Unsound

T = TypeVar("T")
# Where other launchers put the number of processes: accelerate, srun, Open MPI, MPICH, PALS, Flux,
# MVAPICH, jsrun.
LAUNCHERS = (
    *("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    *("PALS_SIZE", "FLUX_JOB_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE"),
)
TIMEOUT = 300  # seconds that processes wait for each other
LONG = timedelta(days=7)  # the limit where one process may be busy, as with decoding a data set


class World:
    """The process group of a run, a context manager that destroys it at its end.

    All methods but `share` are collective: every process calls them, in the same order. `rank` is
    the number of this process of `size`, counted from 0; process 0 alone prints and writes. `exact`
    says whether sums have the bits that one process alone would give them.
    """

    def __init__(self, rank: int = 0, size: int = 1, exact: bool = True) -> None:
        self.rank, self.size, self.exact = rank, size, exact

    def init(self, opt: Namespace, device: torch.device) -> None:
        """Initializes the process group; from here on only the first error is printed."""
        timeout = timedelta(seconds=TIMEOUT)
        cuda = device.type == "cuda"
        # Otherwise gloo resolves the host name, which fails on some machines.
        loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
        if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"] and loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
        with _communication(meeting=True):
            store, *_ = next(dist.rendezvous("env://", timeout=timeout))
            store = dist.PrefixStore(self._agree_on_prefix(store), store)
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
        errors.error_prefix = self._error_prefix
        self._check_code()
        vars(opt).update(self.broadcast(lambda: vars(opt)), device=opt.device)

    def _agree_on_prefix(self, store: dist.Store) -> str:
        """A prefix for keys that all processes of this start have in common.

        After an elastic restart the store still has the keys of the processes that have ended. So
        each process asks process 0 under a random name, and uses the answer to that name alone.
        """
        mine, end = os.urandom(8).hex(), time.monotonic() + TIMEOUT
        if self.rank:
            store.set(f"asks {self.rank}", mine)
            prefix = store.get(f"answer to {mine}").decode()
            store.set(f"{prefix} has {self.rank}", "")
            return prefix
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
        found = self.all_gather_object((socket.gethostname(), code_digests()))
        hosts, digests = zip(*found, strict=True)
        for rank, own in enumerate(digests):
            if different := own.items() ^ digests[0].items():
                raise BadInput(
                    f"{min(different)[0]}: that of process 0 on {hosts[0]} is not that of process "
                    f"{rank} on {hosts[rank]}; give all machines the same code"
                )

    def _error_prefix(self) -> str | None:
        """What an error of this process begins with; None if another one has reported one."""
        reports: list[int] = []

        def report() -> None:
            with suppress(RuntimeError):
                reports.append(self.store.add("errors", 1))

        # In a thread, since it waits for long without a network; the error is then printed anyway.
        asking = threading.Thread(target=report, daemon=True)
        asking.start()
        asking.join(5)
        if reports and reports[0] > 1:
            return None
        return f"process {self.rank} of {self.size} on {socket.gethostname()}: "

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self.size > 1 and kind is None:  # after an error the others do not come here
            self.all_reduce_max(0)  # so process 0 has written: torchrun ends all once one has left
            with _communication():
                dist.destroy_process_group()

    def share(self, micro_batches: int) -> range:
        """The indices of the micro-batches of a step that this process computes."""
        each = micro_batches // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def broadcast(self, make: Callable[[], T]) -> T:
        """Calls `make` in process 0 and broadcasts the result.

        If that cannot be pickled, as lambdas in transforms, every process calls `make`.
        """
        if self.size == 1:
            return make()
        sent: list[Any] = [b""]
        if self.rank == 0:
            made = make()
            with suppress(pickle.PicklingError, AttributeError, TypeError):
                sent = [pickle.dumps(made)]
        self.barrier()
        with _communication():
            dist.broadcast_object_list(sent)
        if self.rank == 0:
            return made
        return pickle.loads(sent[0]) if sent[0] else make()

    def barrier(self) -> None:
        """A barrier with the limit LONG; unlike keys in the store it fails if a process ends."""
        if self.size > 1:
            with _communication():
                dist.barrier(self.patient)

    @contextmanager
    def local_rank_first(self) -> Iterator[None]:
        """A block that one process of each machine runs first, such as a download."""
        if local_rank() > 0:
            self.barrier()
        yield
        if local_rank() == 0:
            self.barrier()

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _communication():
            dist.all_gather_object(values, value)
        return values

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, concatenated along the first dimension."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with _communication():
            dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def all_reduce_max(self, number: int) -> int:
        """The highest of the numbers of all processes."""
        if self.size == 1:
            return number
        highest = torch.tensor(number)
        with _communication():
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest)

    def check_equal(self, content: dict[str, Any]) -> None:
        """Raises Unsound if the tensors of a checkpoint differ between the processes."""
        if self.size == 1:
            return
        first, *others = self.all_gather_object(list(_checksums(content)))
        if any(other != first for other in others):
            raise Unsound(
                "the weights differ between the processes, which must not happen; go on with "
                "--resume from the last checkpoint, and report it if it happens again"
            )

    def all_reduce(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sums over all processes of dense tensors of one type; strides are kept."""
        if self.size == 1 or not tensors:
            return tensors
        lengths = [tensor.numel() for tensor in tensors]
        flat = tensors[0].new_zeros(-(-sum(lengths) // self.size) * self.size)
        parts = flat[: sum(lengths)].split(lengths)
        views = [
            part.as_strided(tensor.shape, tensor.stride(), part.storage_offset())
            for part, tensor in zip(parts, tensors, strict=True)
        ]
        torch._foreach_copy_(views, tensors)
        with _communication():
            if self.exact:
                self._sum_as_a_tree(flat)
            else:
                dist.all_reduce(flat)
        return views

    def _sum_as_a_tree(self, flat: Tensor) -> None:
        """Recursive halving and doubling (Thakur, Rabenseifner and Gropp 2005), in place.

        Neighbours are added first, then pairs of them, and so on: the tree that one process alone
        builds. Since a + b = b + a, all get the same bits. W is a power of two and divides the
        length.
        """
        part, distance = flat, 1
        halves: list[tuple[Tensor, Tensor, int]] = []
        while distance < self.size:
            lower, upper = part[: len(part) // 2], part[len(part) // 2 :]
            kept, given = (upper, lower) if self.rank & distance else (lower, upper)
            received, partner = torch.empty_like(kept), self.rank ^ distance
            _exchange(given, received, partner)
            part = kept.add_(received)
            halves.append((kept, given, partner))
            distance *= 2
        for kept, given, partner in reversed(halves):
            _exchange(kept, given, partner)


ALONE = World()  # a run that torchrun has not started


def start(opt: Namespace, device: torch.device) -> World:
    """The processes that torchrun started, which get the options of process 0, or this one alone.

    Raises:
        BadInput: The micro-batches of a step cannot be divided among so many processes, their code
            differs, or another launcher than torchrun has started several.
        Unsound: The others cannot be reached.
    """
    if not LAUNCHED:
        _refuse_launchers()
    rank, size = (int(os.environ[n]) for n in ("RANK", "WORLD_SIZE")) if LAUNCHED else (0, 1)
    exact = size & (size - 1) == 0 and (device.type == "cpu" or opt.deterministic)
    world = World(rank, size, exact)
    if size > 1:
        world.init(opt, device)
    if opt.accumulate % size:
        *few, most = (str(n) for n in range(1, opt.accumulate + 1) if opt.accumulate % n == 0)
        fitting = f"{', '.join(few)} or {most}" if few else most
        raise BadInput(
            f"--accumulate {opt.accumulate}: cannot be divided among {size} processes; take "
            f"--nproc-per-node {fitting}, or --accumulate {size}"
        )
    return world


def _refuse_launchers() -> None:
    """Refuses several processes of another launcher, each of which would train alone."""
    numbers = {name: int(text) for name, text in os.environ.items() if text.isdecimal()}
    sizes = [name for name in LAUNCHERS if numbers.get(name, 0) > 1]
    # In an sbatch script Slurm sets the number of tasks of the job, though it is one process.
    if numbers.get("SLURM_NTASKS", 0) > 1 and numbers.get("SLURM_PROCID", 0) > 0:
        sizes.append("SLURM_NTASKS")
    if sizes:
        raise BadInput(
            f"{sizes[0]} is {numbers[sizes[0]]}, but torchrun has not started this process: each "
            "would train alone; use torchrun (see docs/processes.md), or for separate runs unset "
            f"{', '.join(sizes)}"
        )


class TreeSum:
    """The sum of the tensors of each of the P micro-batches of a step, in a binary tree.

    Of P = 2^a q micro-batches, q odd, runs of q are added one after the other; their sums are added
    in pairs, then the sums of pairs, and so on. So the subtree of a process is the same whichever
    process computes it, for any power of two of processes.
    """

    def __init__(self, micro_batches: int) -> None:
        self.run = micro_batches // (micro_batches & -micro_batches)
        self.added = 0
        self.sums: list[list[Tensor]] = []  # of subtrees that wait for their other half

    def add(self, tensors: list[Tensor]) -> None:
        """Adds the tensors of the next micro-batch, which are changed in place."""
        if self.added % self.run:
            tensors = _add(self.sums.pop(), tensors)
        self.added += 1
        runs, rest = divmod(self.added, self.run)
        while rest == 0 and runs % 2 == 0:
            tensors, runs = _add(self.sums.pop(), tensors), runs // 2
        self.sums.append(tensors)

    def total(self) -> list[Tensor]:
        """The sum of all that was added; a new step begins."""
        total = self.sums.pop()
        while self.sums:
            total = _add(self.sums.pop(), total)
        self.added = 0
        return total


def _add(first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    if first:  # a network may have no buffers
        torch._foreach_add_(first, second)
    return first


def _checksums(value: Any) -> Iterator[int]:
    """A sum of the bits of each tensor in a checkpoint: integers, so the order has no effect."""
    if isinstance(value, Tensor):
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(value.element_size())
        whole = value.view(bits) if value.is_floating_point() and bits else value
        yield int(whole.sum(dtype=torch.int64))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _checksums(item)


def _exchange(given: Tensor, received: Tensor, partner: int) -> None:
    """Sends a tensor to a process and receives one from it."""
    send = dist.P2POp(dist.isend, given, partner)
    for work in dist.batch_isend_irecv([send, dist.P2POp(dist.irecv, received, partner)]):
        work.wait()


@contextmanager
def _communication(meeting: bool = False) -> Iterator[None]:
    """Turns errors of communication, of which `meeting` is the first, into Unsound: a step may be
    half done."""
    try:
        yield
    except RuntimeError as error:
        text = re.sub(r"\[/\S*\]", "", " ".join(str(error).split())).strip()  # of a source file
        if meeting and (hint := _loopback(text)):
            raise Unsound(f"the machines cannot reach each other: {hint} ({text[:80]})") from None
        raise Unsound(
            "another process has ended or cannot be reached; if it does not say why, see its "
            f"machine; go on with --resume ({text[:80]})"
        ) from None


def _loopback(text: str) -> str:
    """What to do where a machine's own name stands for itself alone, as in Debian's /etc/hosts."""
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        return ""
    own, address = socket.gethostname(), ""
    with suppress(OSError):
        address = socket.gethostbyname(own)
    if "127." not in text and not address.startswith("127."):
        return ""
    whose = f"{own} is {address} for itself" if address[:4] == "127." else "one's name is 127.x"
    interface = "the interface that leads to the others, eth0 say (ip route)"
    return f"{whose}; set GLOO_SOCKET_IFNAME on each to {interface}"
