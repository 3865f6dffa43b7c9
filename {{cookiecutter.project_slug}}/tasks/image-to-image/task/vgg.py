"""The pretrained VGG19 of torchvision (Simonyan and Zisserman 2015), downloaded or from a file."""

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from engine.errors import BadInput


def read_vgg19(source: str) -> nn.Sequential:
    """The first 30 layers of VGG19: (N, 3, H, W), normalised for ImageNet -> (N, 512, H/16, W/16).

    Args:
        source: `download` for torchvision's weights, which are downloaded once; or a file with a
            state dict of torchvision's vgg19, of which these layers are enough.

    Raises:
        BadInput: The weights cannot be downloaded or read, or are those of another network.
    """
    with torch.device("meta"):  # without first weights, which would take time and random numbers
        layers = torchvision.models.vgg19().features[:30]
    state = _download() if source == "download" else _read_state(Path(source))
    weights = {}
    for name, own in layers.state_dict().items():
        value = state.get(f"features.{name}", state.get(name)) if isinstance(state, dict) else None
        if not isinstance(value, Tensor) or value.shape != own.shape:
            raise BadInput(
                f"--vgg-weights {source}: no features.{name} of shape {tuple(own.shape)} in it; "
                "give a state dict of torchvision's vgg19"
            )
        weights[name] = value.float()
    layers.load_state_dict(weights, assign=True)
    return layers


def _download() -> Any:
    weights = torchvision.models.VGG19_Weights.IMAGENET1K_V1
    how = {"map_location": "cpu", "weights_only": True}
    try:
        return weights.get_state_dict(progress=True, check_hash=True, **how)
    except OSError as error:  # URLError is one
        problem = f"VGG19 could not be downloaded ({error})"
    except Exception as error:  # a damaged file makes zipfile and pickle raise almost anything
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        problem = f"VGG19 is damaged ({error}), delete it from {folder} and try again"
    raise BadInput(
        f"--vgg-weights download: {problem}; or give a FILE, or train without the perceptual loss: "
        "--vgg-weights none"
    )


def _read_state(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f"--vgg-weights {path}: no such file; give one, or download, or none")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes zipfile and pickle raise almost anything
        raise BadInput(
            f"--vgg-weights {path}: damaged, or no state dict ({error}); give another file"
        ) from None
