"""Several GPUs of one machine: two ways to divide a batch between them."""

import torch
from torch import Tensor, nn

from engine.devices import computing
from engine.errors import BadInput
from engine.evaluating import Losses

WAYS = ("auto", "none", "split", "super")


def parallelize(
    model: nn.Module, networks: dict[str, nn.Module], how: str, device: torch.device
) -> nn.Module:
    """Spreads the work over the GPUs of this machine.

    `split` (and `auto` where there are several GPUs and none was named) divides the batch of each
    network, in place; the losses see the whole batch. `super` takes the model as one super network
    of networks and losses: each GPU computes the losses of its share, and only they come back. The
    modules in `networks` stay the bare ones, so what is saved from them has no `module.` prefix.

    Args:
        model: The finished model; its attributes that are networks are wrapped for `split`.
        networks: The bare networks by the name of the attribute.
        how: One of WAYS.
        device: Where the model is; on the CPU there is nothing to divide, and the wrappers hand
            the batches through.

    Returns:
        What a batch is to be given to for its losses.

    Raises:
        BadInput: `split` or `super`, with one GPU named or with compiled networks.
    """
    if how in ("split", "super") and device.index is not None:
        raise BadInput(f"--parallel {how} uses all GPUs; use --device cuda instead of {device}")
    several = device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1
    how = ("split" if several else "none") if how == "auto" else how
    # A copy of a compiled network would compute with the weights of the original.
    compiled = any(network._compiled_call_impl is not None for network in networks.values())
    if several and compiled and how != "none":
        raise BadInput("--compile: not on several GPUs at once; add --parallel none")
    if how == "super":
        return SuperNetwork(model, device)
    for name, network in computing(networks).items() if how == "split" else ():
        setattr(model, name, _wrap(network, device))
    return model


class SuperNetwork(nn.Module):
    """A model with its networks and losses, copied to every GPU; each takes a share of the batch.

    A loss of the whole batch is the mean of those of the shares, each weighted by its number of
    samples, since the last share may be smaller.

    Args:
        model: Returns losses (evaluating.Losses), each the mean over the samples it was given.
        device: Where it is.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.replicas = _wrap(_Weighted(model), device)

    def forward(self, *batch: Tensor) -> Losses:
        return {
            optimizer: {name: shares.sum() / len(batch[0]) for name, shares in losses.items()}
            for optimizer, losses in self.replicas(*batch).items()
        }


class _Weighted(nn.Module):
    """The losses of a share of a batch, times its size, of shape (1,) for them to be joined."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> Losses:
        return {
            optimizer: {name: loss.reshape(1) * len(batch[0]) for name, loss in losses.items()}
            for optimizer, losses in self.model(*batch).items()
        }


def _wrap(module: nn.Module, device: torch.device) -> nn.DataParallel:
    wrapped = nn.DataParallel(module)
    if device.type != "cuda":
        wrapped.device_ids = []
    return wrapped
