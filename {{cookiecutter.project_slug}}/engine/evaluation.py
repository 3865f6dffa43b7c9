"""Running the model on batches: losses for training, metrics for validation."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from engine.data.loader import Batch, Loader, to_memory_format
from engine.devices import Amp
from engine.distributed import ALONE, World
from engine.terminal import attempt

Losses = dict[str, dict[str, Tensor]]  # scalars by name, by the name of the network they train


@dataclass(frozen=True)
class Rows:
    """What is kept of each image, instead of a sum: a tensor (N, ...), a row for an image."""

    values: Tensor


class Metrics(dict[str, float]):
    """The metrics of a validation by name.

    Attributes:
        draw: Makes images for TensorBoard, uint8 (3, H, W), by name.
    """

    draw: Callable[[], dict[str, Tensor]] = dict


def forward(model: nn.Module, batch: Batch, amp: Amp) -> Losses:
    """The losses of a batch, computed under autocast. Their backward passes run outside of it."""
    batch = to_memory_format(batch, amp.device)  # an augmentation may have left another order
    with amp.autocast():
        return model(*batch)


@torch.no_grad()
def evaluate(
    model: Any, loader: Loader, amp: Amp, world: World = ALONE, until: object = False
) -> Metrics:
    """The metrics of a model in evaluation mode over all images of the loaders of all processes.

    As soon as `until` is true the pass ends with the images seen by then. The model is in training
    mode afterwards. The result does not depend on which process had which batch.

    Args:
        model: `compute_sums(*batch)` returns tensors by name. Of a tensor, of any shape, the sum
            over all batches is taken; of `Rows` all are joined, in the order of the data set.
            `compute_metrics(totals, images)` turns these into metrics. `image_grid(*batch)` draws
            the first batch, `figures(totals)` draws the rest.
        loader: Batches of tensors, whose first dimension are images.
    """
    parts: list[dict[str, Tensor | Rows]] = []
    counts: dict[str, Any] = {}  # the integers, added on the device
    images, grid = 0, None
    model.eval()
    with loader.batches() as batches:
        for batch in batches:
            images += len(batch[0])
            with amp.autocast():
                sums = {**model.compute_sums(*batch)}
                if not parts and world.rank == 0:
                    grid = attempt(partial(_draw, model, loader, batch), "image val/images")
            for name in [name for name, value in sums.items() if _is_integer(value)]:
                counts[name] = counts.get(name, 0) + sums.pop(name).long()
            parts.append(sums)
            if until:
                break
    model.train()
    images, totals = _totals(world, images, counts, parts)
    found = model.compute_metrics(totals, images)
    metrics = Metrics({name: float(value) for name, value in found.items()})
    shown = {} if grid is None else {"images": grid}
    figures = partial(attempt, lambda: model.figures(totals), "figures of the validation")
    metrics.draw = lambda: {**shown, **(figures() or {})}
    return metrics


def _draw(model: Any, loader: Loader, batch: Batch) -> Tensor:
    """An image of the first batch; if it has features, of the images that these stand for."""
    shown = loader.shown(batch)
    return model.image_grid(*batch, **({} if shown is batch else {"shown": shown[0]}))


def _is_integer(value: Tensor | Rows) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()


def means(totals: dict[str, Tensor], images: int) -> dict[str, float]:
    """The mean over the images of each total that is a single number."""
    return {name: total.item() / images for name, total in totals.items() if total.dim() == 0}


def _totals(
    world: World, images: int, counts: dict[str, Any], parts: list[dict[str, Tensor | Rows]]
) -> tuple[int, dict[str, Tensor]]:
    """The number of images, and the sums and rows of all processes, on the CPU.

    Integers are added exactly. Sums of floating point numbers are kept for each batch and rounded
    once, to float64; rows are put in the order of the batches, which processes take in turns.
    """
    rows = [{k: v.values.cpu() for k, v in part.items() if isinstance(v, Rows)} for part in parts]
    floats = {
        name: torch.stack([part[name] for part in parts]).double().cpu()  # type: ignore[misc]
        for name, value in (parts or [{}])[0].items()
        if isinstance(value, Tensor)
    }
    found = world.all_gather_object((images, {k: v.cpu() for k, v in counts.items()}, floats, rows))
    _, counts, floats, first_rows = found[0]  # whose first batch is the first one of all
    totals = {name: sum(each[1].get(name, 0) for each in found) for name in counts}
    for name in floats:
        values = torch.cat([each[2][name] for each in found if name in each[2]])
        sums = [math.fsum(column) for column in values.reshape(len(values), -1).T.tolist()]
        totals[name] = torch.tensor(sums, dtype=torch.float64).view(values.shape[1:])
    in_order = [row for turn in zip_longest(*(each[3] for each in found)) for row in turn if row]
    for name in (first_rows or [{}])[0]:
        totals[name] = torch.cat([row[name] for row in in_order])
    return sum(each[0] for each in found), totals


def mean_losses(micro_batches: list[Losses], world: World = ALONE) -> dict[str, float]:
    """The losses of a step by their own names, averaged over the micro-batches of all processes.

    Raises:
        ValueError: Losses of two networks have the same name.
    """
    names = [(network, name) for network, losses in micro_batches[0].items() for name in losses]
    found = Counter(name for _, name in names)
    if twice := [name for name in found if found[name] > 1]:
        raise ValueError(f"two losses are called {twice[0]}: give each a name of its own")
    own = [[one[network][name].item() for network, name in names] for one in micro_batches]
    columns = zip(*chain.from_iterable(world.all_gather_object(own)), strict=True)
    return {name: math.fsum(c) / len(c) for name, c in zip(found, columns, strict=True)}
