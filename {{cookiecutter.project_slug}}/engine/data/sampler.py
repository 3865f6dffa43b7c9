"""What is random, and which samples make up which batch: pure functions of (seed, n_iter).

No state of a generator is ever saved. Code that draws random numbers seeds its generator first,
with the seed of the run and a key: ("weights"), ("order", epoch), ("augment", n_iter, micro_batch)
or ("forward", n_iter, micro_batch), the last for dropout and the like; for balanced draws ("turn",
turn), ("stratum", stratum, passes) and ("draws", n_iter); for weighted draws ("weighted", n_iter)
and ("draws", n_iter). Each sample carries a seed of its own for random transforms.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from engine.errors import BadInput

Keys = tuple[Tensor, Tensor]  # of a batch: the indices of its samples, and the seed of each


def seed_of(*key: int | str) -> int:
    """A seed in [0, 2**32) made from `key`; the same in every process and Python version."""
    # 32 bits, since torch's CPU generator keeps no more. `seed + epoch` would make epoch 1 of
    # seed 0 equal epoch 0 of seed 1.
    return zlib.crc32(repr(key).encode())


def seed_all(device: torch.device, *key: int | str) -> None:
    """Seeds the global generators that a model on `device` draws from: torch, random, numpy."""
    seed = seed_of(*key)
    seed_sample(seed)
    if device.type == "cuda":
        torch.cuda.init()  # before that it has no generators
        for default in torch.cuda.default_generators:
            default.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def generator(device: torch.device, *key: int | str) -> torch.Generator:
    """A new generator on `device`, seeded with `key`."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_sample(seed: int) -> None:
    """Seeds the global generators (torch on the CPU, random, numpy) for the transforms of a sample.

    Without worker processes this happens between two forward passes, each of which seeds anew. The
    generators of accelerators are left alone.
    """
    # torch.manual_seed would look at every kind of device, which takes a fifth of a millisecond.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # the generator of transforms written for numpy


@dataclass
class TrainBatchSampler:
    """The batches of a whole run, each epoch in another random order.

    The samples left over at the end of an epoch, too few for a step, are skipped; the next epoch
    has another order. With `strata` an epoch has as many batches, made of balanced draws; with
    `weights` of weighted ones.

    Raises:
        BadInput: The data set has too few samples for one step, or strata or weights of another
            number.
    """

    size: int  # number of samples in the data set
    batch_size: int
    accumulate: int  # batches in an optimizer step
    epochs: int
    seed: int  # that of the run
    share: range | None = None  # which batches of each step to give, the first is 0; None: all
    repeat: bool = False  # every step gets the batches of the first one
    strata: Tensor | None = None  # int64 (size,), on the CPU: see BalancedDraws
    weights: Tensor | None = None  # float64 (size,), on the CPU: see WeightedDraws

    def __post_init__(self) -> None:
        size, batch_size, accumulate = self.size, self.batch_size, self.accumulate
        self.micro_batches = range(accumulate) if self.share is None else self.share
        self.steps_per_epoch = size // (batch_size * accumulate)
        self.steps = self.epochs * self.steps_per_epoch  # of the whole run
        if self.steps_per_epoch == 0:
            better = f", or better {size // 8}" if size >= 32 else ""
            raise BadInput(
                f"--batch-size {batch_size} x --accumulate {accumulate} is more than the "
                f"{size} training samples: use at most {size}{better}"
            )
        for name, numbers in (("strata", self.strata), ("weights", self.weights)):
            if numbers is not None and len(numbers) != size:
                raise BadInput(
                    f"{name} in dataset.py: {len(numbers)} numbers for {size} samples; give one "
                    "for each"
                )

    def count(self, n_iter: int = 0) -> int:
        """The number of batches from step `n_iter` to the end of the run."""
        return max(0, self.steps - n_iter) * len(self.micro_batches)

    def batches(self, n_iter: int = 0, device: torch.device | str = "cpu") -> Iterator[Keys]:
        """The batches from step `n_iter` to the end of the run, as tensors on `device`."""
        if self.strata is not None:
            yield from self._drawn(BalancedDraws(self.strata, self.seed), n_iter, device)
            return
        if self.weights is not None:
            yield from self._drawn(WeightedDraws(self.weights, self.seed), n_iter, device)
            return
        first_epoch, first_step = divmod(n_iter, self.steps_per_epoch)
        for epoch in range(first_epoch, self.steps // self.steps_per_epoch):
            order = 0 if self.repeat else epoch
            random = torch.Generator().manual_seed(seed_of(self.seed, "order", order))
            indices = torch.randperm(self.size, generator=random).to(device)
            seeds = torch.randint(2**31, (self.size,), generator=random)
            keys = indices.split(self.batch_size), seeds.split(self.batch_size)
            batches = list(zip(*keys, strict=True))
            for step in range(first_step, self.steps_per_epoch):
                first = 0 if self.repeat else step * self.accumulate
                yield from (batches[first + micro_batch] for micro_batch in self.micro_batches)
            first_step = 0

    def _drawn(
        self, draws: "BalancedDraws | WeightedDraws", n_iter: int, device: torch.device | str
    ) -> Iterator[Keys]:
        size = self.batch_size * self.accumulate
        for step in range(n_iter, self.steps):
            step = 0 if self.repeat else step
            random = torch.Generator().manual_seed(seed_of(self.seed, "draws", step))
            seeds = torch.randint(2**31, (size,), generator=random).split(self.batch_size)
            for micro_batch in self.micro_batches:
                first = micro_batch * self.batch_size
                places = range(first, first + self.batch_size)
                indices = torch.tensor(draws.take(step, size, places))
                # A copy that waits for nothing: CUDA takes the values before the call returns.
                yield indices.to(device, non_blocking=True), seeds[micro_batch]


class BalancedDraws:
    """An endless list of samples in which each stratum, such as a class, comes equally often.

    A turn is as many draws as there are strata: one of each, in random order. The draws of a
    stratum go through all its samples in random order before one comes again. So the stratum and
    the sample of a draw are functions of its number alone, and none before it has to be made.

    Args:
        strata: The stratum of each sample, int64 (N,); those without samples do not count.
        seed: That of the run.
    """

    def __init__(self, strata: Tensor, seed: int) -> None:
        counts = torch.bincount(strata).tolist()
        members = strata.argsort(stable=True).split(counts)
        self.members = [rows.numpy() for rows in members if len(rows)]
        self.seed = seed
        self._turn, self._strata = -1, np.empty(0, np.int64)  # the order of strata in a turn
        # Of each stratum the pass through its samples, and their order in it.
        self._passes = [(-1, rows) for rows in self.members]

    def take(self, step: int, size: int, places: range) -> list[int]:
        """The indices of some of the `size` samples of a step, by their places in it."""
        return [self[step * size + place] for place in places]

    def __getitem__(self, draw: int) -> int:
        """The index of the sample of a draw, which counts from 0."""
        turn, place = divmod(draw, len(self.members))
        if turn != self._turn:
            self._turn, self._strata = turn, self._permute(len(self.members), "turn", turn)
        stratum = int(self._strata[place])
        rows = self.members[stratum]
        number, place = divmod(turn, len(rows))
        if number != self._passes[stratum][0]:
            order = rows[self._permute(len(rows), "stratum", stratum, number)]
            self._passes[stratum] = number, order
        return int(self._passes[stratum][1][place])

    def _permute(self, size: int, *key: int | str) -> np.ndarray:
        random = torch.Generator().manual_seed(seed_of(self.seed, *key))
        return torch.randperm(size, generator=random).numpy()


class WeightedDraws:
    """Samples of each step, drawn with replacement, as likely as their weights say.

    The draws of a step are a function of the seed and the step alone.

    Args:
        weights: That of each sample, float64 (N,), 0 or more; their sum is any number above 0.
        seed: That of the run.

    Raises:
        BadInput: A weight is below 0 or not finite, or all are 0.
    """

    def __init__(self, weights: Tensor, seed: int) -> None:
        values = weights.double().numpy()
        if not np.isfinite(values).all() or values.min() < 0 or values.sum() == 0:
            raise BadInput(
                "weights in dataset.py: have to be finite numbers of 0 or more, not all of them 0"
            )
        self.ends = values.cumsum()
        self.last = int(values.nonzero()[0][-1])
        self.seed = seed

    def take(self, step: int, size: int, places: range) -> list[int]:
        """The indices of some of the `size` samples of a step, by their places in it."""
        random = torch.Generator().manual_seed(seed_of(self.seed, "weighted", step))
        drawn = torch.rand(size, generator=random, dtype=torch.float64).numpy()[places]
        # Samples of weight 0 end where the one before does; a product may be rounded up to the sum.
        found = np.searchsorted(self.ends, drawn * self.ends[-1], side="right")
        return np.minimum(found, self.last).tolist()


@dataclass
class EvalBatchSampler:
    """Every sample once, in the order of the data set; the last batch may be smaller."""

    size: int  # number of samples in the data set
    batch_size: int
    rank: int = 0  # of several processes, each takes every `processes`-th batch from here on
    processes: int = 1

    def count(self, n_iter: int = 0) -> int:
        batches = -(-self.size // self.batch_size)
        return len(range(self.rank, batches, self.processes))

    def batches(self, n_iter: int = 0, device: torch.device | str = "cpu") -> Iterator[Keys]:
        indices, seeds = torch.arange(self.size, device=device), torch.arange(self.size)
        batches = zip(indices.split(self.batch_size), seeds.split(self.batch_size), strict=True)
        yield from islice(batches, self.rank, None, self.processes)


class Samples(Protocol):
    """What a data set has to have; docs/task.md says what for, and what else it may have."""

    @property
    def info(self) -> dict[str, Any]: ...
    def fingerprint(self) -> str: ...
    def names(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class SeededDataset(Dataset):
    """A data set whose batches are asked for by the keys of a sampler.

    The seed travels with the index, so a sample is the same whichever process loads it.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: Keys) -> Any:
        indices, seeds = map(torch.as_tensor, keys)
        batch = whole_batch(self.dataset, indices)
        if batch is not None:
            return batch
        samples = []
        for index, seed in zip(indices.tolist(), seeds.tolist(), strict=True):
            seed_sample(seed)
            samples.append(self.dataset[index])
        return _stack(samples, indices.tolist())


def _stack(samples: list[Any], indices: list[int]) -> Any:
    """The batch of some samples, tuples of tensors."""
    try:
        return default_collate(samples)
    except RuntimeError:
        shapes = [[tuple(part.shape) for part in sample] for sample in samples]
        for index, shape in zip(indices, shapes, strict=True):
            if shape != shapes[0]:
                raise BadInput(
                    f"sample {index} has tensors of shapes {shape}, and sample {indices[0]} "
                    f"{shapes[0]}: dataset.py has to give all samples the same shapes"
                ) from None
        raise


def whole_batch(dataset: Dataset, indices: Tensor) -> Any:
    """A batch made at once by the data set's method `batch(indices)`.

    None if it has none, or if that returns None, for example because samples are random.
    """
    make = getattr(dataset, "batch", None)
    return make(indices) if make else None
