"""An exponential moving average of the weights, to validate and to use in their place."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averages:
    """The exponential moving average of the weights and buffers of each network.

    After step n an average keeps the share min(decay, (1 + n) / (10 + n)) of itself and takes the
    rest from the network, so that it soon forgets the weights that training began with
    (TensorFlow's ExponentialMovingAverage). The share depends on n alone, so that nothing but the
    average has to be saved. With a decay of 0 there are none.
    """

    def __init__(self, networks: dict[str, nn.Module], decay: float) -> None:
        self.decay, self.networks = decay, networks if decay else {}
        self.averaged = {name: copy.deepcopy(net) for name, net in self.networks.items()}
        ours, theirs = _tensors(self.averaged), _tensors(self.networks)
        self.pairs = list(zip(ours, theirs, strict=True))

    @torch.no_grad()
    def update(self, n_iter: int) -> None:
        """Takes the weights after step `n_iter` into the averages."""
        if not self.networks:
            return
        average = get_ema_multi_avg_fn(min(self.decay, (1 + n_iter) / (10 + n_iter)))
        floats = [pair for pair in self.pairs if pair[0].is_floating_point()]
        average(*map(list, zip(*floats, strict=True)), 0)
        for count, now in self.pairs:
            if not count.is_floating_point():
                count.copy_(now)

    def restart(self) -> None:
        """The averages start from the weights as they are now."""
        for ours, theirs in self.pairs:
            ours.data.copy_(theirs.data)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """In the block, the networks have the averages in the place of their weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchanges the memory of each pair, so that nothing is copied."""
        for ours, theirs in self.pairs:
            ours.data, theirs.data = theirs.data, ours.data

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights of each network, by its name."""
        return {name: network.state_dict() for name, network in self.averaged.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over averages; a network without one starts from its weights."""
        self.restart()
        for name in state.keys() & self.averaged.keys():
            self.averaged[name].load_state_dict(state[name])


def _tensors(networks: dict[str, nn.Module]) -> list[Tensor]:
    return [t for net in networks.values() for t in (*net.parameters(), *net.buffers())]
