"""The test pass, and the means of losses and metrics."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from engine.loading import Loader
from engine.precision import Precision

Losses = dict[str, dict[str, Tensor]]  # scalars by name, by the name of their optimizer
Measure = Callable[..., dict[str, Tensor]]  # a batch -> metrics by name, summed over its images


@torch.no_grad()
def evaluate(
    measure: Measure, loader: Loader, precision: Precision, until: object = False
) -> dict[str, float]:
    """What `measure` gives for each batch as sums over its images, as means over all images.

    As soon as `until` is true the pass ends with the images seen by then.
    """
    totals: dict[str, Tensor | float] = defaultdict(float)
    images = 0
    with loader.batches() as batches:
        for batch in batches:
            images += len(batch[0])
            with precision.autocast():
                sums = measure(*batch)
            for name, value in sums.items():
                totals[name] = totals[name] + value  # on the device: nothing waits here
            if until:
                break
    return {name: float(total) / images for name, total in totals.items()}


def mean_losses(parts: list[Losses]) -> dict[str, float]:
    """The losses of the batches that made up one step, averaged, by their own names."""
    return {
        name: sum(part[optimizer][name].item() for part in parts) / len(parts)
        for optimizer, losses in parts[0].items()
        for name in losses
    }
