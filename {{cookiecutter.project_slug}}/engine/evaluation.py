"""Running the model on batches: losses for training, metrics for validation."""

from collections import defaultdict

import torch
from torch import Tensor, nn

from engine.devices import Amp
from engine.loader import Batch, Loader, arrange

Losses = dict[str, dict[str, Tensor]]  # scalars by name, by the name of the network they train


def forward(model: nn.Module, batch: Batch, amp: Amp) -> Losses:
    """The losses of a batch, computed under autocast. Their backward passes run outside of it."""
    batch = arrange(batch, amp.device)  # an augmentation may have left another order in memory
    with amp.autocast():
        return model(*batch)


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, amp: Amp, until: object = False) -> dict[str, float]:
    """The metrics of a model in evaluation mode, as means over all images of `loader`.

    As soon as `until` is true the pass ends with the images seen by then. The model is in training
    mode afterwards.

    Args:
        model: `compute_metrics(*batch)` returns metrics by name, each summed over the images.
        loader: Batches of tensors, whose first dimension are images.
        amp: The precision.
        until: Looked at after each batch.
    """
    totals: dict[str, Tensor | float] = defaultdict(float)
    images = 0
    model.eval()
    with loader.batches() as batches:
        for batch in batches:
            images += len(batch[0])
            with amp.autocast():
                sums = model.compute_metrics(*batch)  # type: ignore[operator]  # not of nn.Module
            for name, value in sums.items():
                totals[name] = totals[name] + value  # on the device: nothing waits here
            if until:
                break
    model.train()
    return {name: float(total) / images for name, total in totals.items()}


def mean_losses(micro_batches: list[Losses]) -> dict[str, float]:
    """The losses of a step by their own names, averaged over its micro-batches.

    Raises:
        ValueError: Losses of two networks have the same name.
    """
    means: dict[str, float] = {}
    for network, named in micro_batches[0].items():
        for name in named:
            if name in means:
                raise ValueError(f"two losses are called {name}: give each a name of its own")
            values = [losses[network][name].item() for losses in micro_batches]
            means[name] = sum(values) / len(values)
    return means
