"""Running the model on batches: losses for training, metrics for validation."""

import math
from collections import defaultdict
from functools import reduce
from itertools import chain
from operator import add

import torch
from torch import Tensor, nn

from engine.data.loader import Batch, Loader, arrange
from engine.devices import Amp
from engine.distributed import ALONE, World

Losses = dict[str, dict[str, Tensor]]  # scalars by name, by the name of the network they train


class Metrics(dict[str, float]):
    """The metrics of a validation by name, and what is drawn of it.

    Attributes:
        counts: Tables (K, K) by name, such as a confusion matrix.
        grid: An image of the first batch, uint8 (3, H, W), if it was drawn.
    """

    counts: dict[str, Tensor]
    grid: Tensor | None = None


def forward(model: nn.Module, batch: Batch, amp: Amp) -> Losses:
    """The losses of a batch, computed under autocast. Their backward passes run outside of it."""
    batch = arrange(batch, amp.device)  # an augmentation may have left another order in memory
    with amp.autocast():
        return model(*batch)


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, amp: Amp, world: World = ALONE, until: object = False,
    draw: bool = False,
) -> Metrics:  # fmt: skip
    """The metrics of a model in evaluation mode, as means over all images of `loader`.

    As soon as `until` is true the pass ends with the images seen by then. The model is in training
    mode afterwards.

    Args:
        model: `compute_metrics(*batch)` returns metrics by name, each summed over the images; one
            of shape (K, K) is a table of counts. `image_grid(*batch)` draws the first batch.
        loader: Batches of tensors, whose first dimension are images.
        amp: The precision.
        world: The processes of the run; the images are those of the loaders of all.
        until: Looked at after each batch.
        draw: Whether to draw the first batch.
    """
    sums: dict[str, list[Tensor]] = defaultdict(list)
    counts: dict[str, Tensor] = {}
    images, grid = 0, None
    model.eval()
    with loader.batches() as batches:
        for batch in batches:
            images += len(batch[0])
            with amp.autocast():
                metrics = model.compute_metrics(*batch)  # type: ignore[operator]  # not of Module
                if draw and grid is None and world.rank == 0:
                    grid = model.image_grid(*batch)  # type: ignore[operator]
            for name, value in metrics.items():  # on the device: nothing waits here
                if torch.as_tensor(value).dim() == 2:
                    counts[name] = counts[name] + value if name in counts else value
                else:
                    sums[name].append(torch.as_tensor(value))
            if until:
                break
    model.train()
    means = _joined(world, images, sums, counts)
    means.grid = grid
    return means


def _joined(
    world: World, images: int, sums: dict[str, list[Tensor]], counts: dict[str, Tensor]
) -> Metrics:
    """The means and the tables of all processes, from what each of them has evaluated."""
    own = {name: torch.stack(parts).tolist() for name, parts in sums.items()}
    found = world.gather((images, own, {name: value.cpu() for name, value in counts.items()}))
    total = sum(images for images, _, _ in found)
    means = Metrics()
    for name in {name: None for _, metrics, _ in found for name in metrics}:
        values = chain.from_iterable(metrics.get(name, ()) for _, metrics, _ in found)
        means[name] = math.fsum(values) / total  # rounds once, whoever has evaluated which batch
    tables = [tables for _, _, tables in found if tables]  # none of a process without a batch
    means.counts = {n: reduce(add, (each[n] for each in tables)) for n in (tables or [{}])[0]}
    return means


def mean_losses(micro_batches: list[Losses], world: World = ALONE) -> dict[str, float]:
    """The losses of a step by their own names, averaged over its micro-batches.

    Args:
        micro_batches: Those of this process.
        world: The processes of the run.

    Raises:
        ValueError: Losses of two networks have the same name.
    """
    names: dict[str, str] = {}
    for network, named in micro_batches[0].items():
        for name in named:
            if name in names:
                raise ValueError(f"two losses are called {name}: give each a name of its own")
            names[name] = network
    own = [[one[names[name]][name].item() for name in names] for one in micro_batches]
    values = world.gather(own)
    columns = list(zip(*chain.from_iterable(values), strict=True))
    return {name: math.fsum(columns[i]) / len(columns[i]) for i, name in enumerate(names)}
