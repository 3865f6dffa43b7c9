"""The discriminator: a list of maps for each scale, from both images of a pair."""

import pytest
import torch
from needs import needs
from torch import nn

from layers import NORMS

Discriminator = needs("networks.Discriminator")


@pytest.mark.parametrize(("layers", "scales"), [(1, 1), (3, 2), (3, 3), (5, 1)])
@pytest.mark.parametrize("norm", NORMS)
def test_each_scale_gives_its_features_and_its_scores(layers: int, scales: int, norm: str) -> None:
    size = 2 ** (layers + scales)
    features = Discriminator(6, 4, layers, scales, norm)(torch.rand(2, 6, size, size))
    assert len(features) == scales
    for i, maps in enumerate(features):
        assert len(maps) == layers + 2
        assert [len(m) for m in maps] == [2] * len(maps)
        halved = [size // 2 ** (i + j + 1) for j in range(layers)]
        assert [m.shape[-1] for m in maps] == [*halved, halved[-1], halved[-1]]
        doubled = [4 * min(8, 2**j) for j in range(layers + 1)]
        assert [m.shape[1] for m in maps] == [*doubled, 1]
    assert features[-1][-1].shape[-1] == 2  # the smallest size that the docstring allows


def test_all_maps_but_the_first_and_the_scores_are_normalised() -> None:
    network = Discriminator(width=4, layers=3, scales=2)
    assert sum(isinstance(part, nn.InstanceNorm2d) for part in network.modules()) == 2 * 3


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_pairs_of_a_batch_do_not_affect_each_other(norm: str) -> None:
    network, batch = Discriminator(width=4, norm=norm), torch.rand(4, 6, 32, 32)
    whole, part = network(batch), network(batch[1:3])
    for maps, alone in zip(whole, part, strict=True):
        assert all(a[1:3].allclose(b, atol=1e-4) for a, b in zip(maps, alone, strict=True))


def test_scores_have_no_limit_and_features_get_gradients() -> None:
    network = Discriminator(width=4)
    features = network(torch.rand(2, 6, 33, 45))
    sum(m.mean() for maps in features for m in maps).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert min(maps[-1].min() for maps in features) < 0


def test_the_discriminator_compares_input_and_output() -> None:
    """Its verdict depends on both images of a pair, at every scale."""
    network = Discriminator(width=4, scales=2)
    for i in range(2):
        pairs = torch.rand(1, 6, 32, 32, requires_grad=True)
        network(pairs)[i][-1].square().sum().backward()
        assert pairs.grad is not None
        assert (pairs.grad.abs().sum(dim=(0, 2, 3)) > 0).all()
