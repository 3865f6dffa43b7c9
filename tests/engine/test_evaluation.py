"""Totals of a validation: exact, in the order of the data set, whoever has seen which batch."""

import math
import operator
from functools import reduce
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler
from engine.devices import Amp
from engine.evaluation import Rows, evaluate, means

CPU = torch.device("cpu")
VALUES = [0.1 * i + (1e16 if i == 3 else -1e16 if i == 8 else 0) for i in range(11)]


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(VALUES)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (torch.tensor(index),)


class Model(torch.nn.Module):
    """Sums of any shape and type, and rows; the metrics are what it was given."""

    def compute_sums(self, indices: Tensor) -> dict[str, Tensor | Rows]:
        values = torch.tensor([VALUES[i] for i in indices.tolist()], dtype=torch.float64)
        return {
            "value": values.sum(),
            "pair": torch.stack([values.sum(), -values.sum()]),
            "count": (indices > 4).sum(),
            "table": torch.nn.functional.one_hot(indices % 3, 3).sum(0),
            "rows": Rows(torch.stack([indices, -indices], dim=1)),
        }

    def compute_metrics(self, totals: dict[str, Tensor], images: int) -> dict[str, float]:
        self.totals, self.images = totals, images
        return means(totals, images)

    def image_grid(self, indices: Tensor) -> Tensor:
        return torch.full((3, 2, 2), int(indices[0]), dtype=torch.uint8)

    def figures(self, totals: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"table": totals["table"].expand(3, 1, 3)}


def run(batch_size: int, rank: int = 0, world: Any = None, until: object = False) -> Any:
    """Evaluates the share of a process; returns the model and the metrics."""
    world = world or SimpleNamespace(rank=0, size=1, all_gather_object=lambda value: [value])
    sampler = EvalBatchSampler(len(VALUES), batch_size, rank, world.size)
    model = Model()
    with Loader(Numbers(), sampler, CPU, workers=0, prefetch=0) as loader:
        return model, evaluate(model, loader, Amp("fp32", CPU), world, until)


def of_many(batch_size: int, size: int) -> Any:
    """The same on several processes, one after the other: each sees what the others had."""
    told: list[Any] = []

    def tell(value: Any) -> list[Any]:
        told.append(value)
        return [told[0]]

    for rank in range(size):
        run(batch_size, rank, SimpleNamespace(rank=rank, size=size, all_gather_object=tell))
    first = SimpleNamespace(rank=0, size=size, all_gather_object=lambda value: told)
    return run(batch_size, 0, first)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 11])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_totals_do_not_depend_on_the_processes(batch_size: int, size: int) -> None:
    model, metrics = of_many(batch_size, size) if size > 1 else run(batch_size)
    alone, expected = run(batch_size)
    assert model.images == 11 and metrics == expected
    assert all(model.totals[name].equal(value) for name, value in alone.totals.items())
    assert model.totals["rows"].tolist() == [[i, -i] for i in range(11)]
    assert model.totals["table"].tolist() == [4, 4, 3] and model.totals["count"].item() == 6
    assert model.totals["pair"].tolist() == [model.totals["value"].item(), -model.totals["value"]]


def test_floats_are_rounded_once() -> None:
    model, metrics = run(batch_size=1)
    rounded_each_time = reduce(operator.add, VALUES)  # `sum` is exact, too, from Python 3.12 on
    assert model.totals["value"].item() == math.fsum(VALUES) != rounded_each_time
    assert metrics == {"value": math.fsum(VALUES) / 11, "count": 6 / 11}


def test_a_pass_that_is_cut_short_has_the_images_seen_by_then() -> None:
    model, _ = run(batch_size=4, until=True)
    assert model.images == 4 and model.totals["rows"][:, 0].tolist() == [0, 1, 2, 3]


def test_the_first_batch_is_drawn_and_what_the_model_makes_of_the_totals() -> None:
    model, metrics = run(batch_size=4)
    drawn = metrics.draw()
    assert list(drawn) == ["images", "table"]
    assert drawn["images"].equal(torch.zeros(3, 2, 2, dtype=torch.uint8))
    assert drawn["table"][0, 0].tolist() == [4, 4, 3] and model.training
