"""What several tests need of the networks that come with the project."""

from pathlib import Path
from typing import Any

import pytest
import torch
from needs import needs
from torch import nn

import networks
import options


def usual_generator() -> Any:
    """Returns the class Generator, or skips the test if the project uses another network."""
    generator = needs("networks.Generator")
    if not isinstance(networks.make_networks(options.parse(["--flip"])).generator, generator):
        pytest.skip("networks.make_networks uses another network than Generator")
    return generator


def save_vgg19(path: Path) -> Path:
    """Saves weights in the shapes of torchvision's file, in a few kB: expanded tensors stay small.

    They are random, of the size that keeps features in the range of the images.
    """
    random = torch.Generator().manual_seed(0)
    state = {}
    for index, (k, c) in {
        **{0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128)},
        **{12: (256, 256), 14: (256, 256), 16: (256, 256), 19: (512, 256)},
        **{21: (512, 512), 23: (512, 512), 25: (512, 512), 28: (512, 512), 30: (512, 512)},
    }.items():
        weight = torch.randn(k, 1, 3, 3, generator=random) * (2 / (9 * c * c)) ** 0.5
        state[f"features.{index}.weight"] = weight.expand(k, c, 3, 3)
        state[f"features.{index}.bias"] = torch.zeros(k)
    state["classifier.0.bias"] = torch.zeros(4096)
    torch.save(state, path)
    return path


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [part for part in network.modules() if isinstance(part, nn.Conv2d)]
