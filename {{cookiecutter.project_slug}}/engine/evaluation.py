"""Running the model on batches: losses for training, metrics for validation."""

import math
from collections import defaultdict
from itertools import chain

import torch
from torch import Tensor, nn

from engine.devices import Amp
from engine.distributed import ALONE, World
from engine.loader import Batch, Loader, arrange

Losses = dict[str, dict[str, Tensor]]  # scalars by name, by the name of the network they train


def forward(model: nn.Module, batch: Batch, amp: Amp) -> Losses:
    """The losses of a batch, computed under autocast. Their backward passes run outside of it."""
    batch = arrange(batch, amp.device)  # an augmentation may have left another order in memory
    with amp.autocast():
        return model(*batch)


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, amp: Amp, world: World = ALONE, until: object = False
) -> dict[str, float]:
    """The metrics of a model in evaluation mode, as means over all images of `loader`.

    As soon as `until` is true the pass ends with the images seen by then. The model is in training
    mode afterwards.

    Args:
        model: `compute_metrics(*batch)` returns metrics by name, each summed over the images.
        loader: Batches of tensors, whose first dimension are images.
        amp: The precision.
        world: The processes of the run; the images are those of the loaders of all.
        until: Looked at after each batch.
    """
    sums: dict[str, list[Tensor]] = defaultdict(list)
    images = 0
    model.eval()
    with loader.batches() as batches:
        for batch in batches:
            images += len(batch[0])
            with amp.autocast():
                metrics = model.compute_metrics(*batch)  # type: ignore[operator]  # not of Module
            for name, value in metrics.items():
                sums[name].append(torch.as_tensor(value))  # on the device: nothing waits here
            if until:
                break
    model.train()
    own = {name: torch.stack(parts).tolist() for name, parts in sums.items()}
    found = world.gather((images, own))
    total = sum(images for images, _ in found)
    names = {name: None for _, metrics in found for name in metrics}
    # fsum rounds once, so it does not matter who has evaluated which batch.
    return {
        name: math.fsum(chain.from_iterable(metrics.get(name, ()) for _, metrics in found)) / total
        for name in names
    }


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
