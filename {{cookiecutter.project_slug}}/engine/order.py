"""Which samples make up which batch: a pure function of (seed, n_iter)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, default_collate

from engine.errors import BadInput
from engine.seeding import mix, seed_sample

Key = tuple[int, int]  # the index of a sample and the seed of its augmentation


class TrainOrder(Sampler[list[Key]]):
    """The batches of one epoch in random order, from step `n_iter` on.

    One optimizer step takes `accumulate` batches. The samples left over at the end of an epoch,
    too few for a step, are skipped; another epoch, in another order, uses them.

    Args:
        size: Number of samples in the data set.
        batch_size: Samples in a batch.
        accumulate: Batches in an optimizer step.
        seed: The seed of the run.

    Raises:
        BadInput: The data set has too few samples for one step.
    """

    def __init__(self, size: int, batch_size: int, accumulate: int, seed: int) -> None:
        self.size, self.batch_size, self.accumulate, self.seed = size, batch_size, accumulate, seed
        self.steps = size // (batch_size * accumulate)  # optimizer steps in an epoch
        self.n_iter = 0  # steps done since the start of the run: where the next epoch begins
        if self.steps == 0:
            raise BadInput(
                f"--batch-size {batch_size} x --accumulate {accumulate} is more than the "
                f"{size} training images: use at most {size}"
            )

    def __len__(self) -> int:
        return (self.steps - self.n_iter % self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first_step = divmod(self.n_iter, self.steps)
        random = torch.Generator().manual_seed(mix(self.seed, "order", epoch))
        indices = torch.randperm(self.size, generator=random)
        seeds = torch.randint(2**31, (self.size,), generator=random)
        step_size = self.batch_size * self.accumulate
        for start in range(first_step * step_size, self.steps * step_size, self.batch_size):
            batch = slice(start, start + self.batch_size)
            yield list(zip(indices[batch].tolist(), seeds[batch].tolist(), strict=True))


class TestOrder(Sampler[list[Key]]):
    """Every sample once, in the order of the data set; the last batch may be smaller."""

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, size: int, batch_size: int) -> None:
        self.size, self.batch_size = size, batch_size

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, self.size, self.batch_size):
            yield [(i, i) for i in range(start, min(start + self.batch_size, self.size))]


class SeededDataset(Dataset):
    """A data set whose samples are asked for by (index, seed), as the orders above give them.

    The seed travels with the index, so a sample is the same whichever process loads it.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Any:
        index, seed = key
        seed_sample(seed)
        return self.dataset[index]

    def __getitems__(self, keys: list[Key]) -> Any:
        batch = whole_batch(self.dataset, [index for index, _ in keys])
        return default_collate([self[key] for key in keys]) if batch is None else batch


def whole_batch(dataset: Dataset, indices: list[int]) -> Any:
    """A batch made at once by the data set's method `batch`, if it has one that can.

    It cannot if samples are random: each of them has a seed of its own.
    """
    make = getattr(dataset, "batch", None)
    return make(indices) if make else None
