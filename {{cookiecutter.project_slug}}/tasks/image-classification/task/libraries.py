"""The networks of torchvision and of timm by their names: what each was trained with; new heads.

A name alone is one of torchvision (resnet18), `timm:NAME` one of timm (timm:convnext_tiny, or with
the tag of its weights, timm:vit_small_patch16_224.augreg_in1k). timm is optional, and imported here
alone.
"""

import difflib
import logging
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torchvision
from torch import nn

from engine.errors import BadInput
from engine.weights import adapt_channels
from task.preprocessing import Preset

Network = TypeVar("Network", bound=nn.Module)
TIMM = "timm:"
HEAD_STD = 0.01  # of the weights of a new head: scores near 0, whatever the features are
NO_HEAD = "has no head that returns scores; take another"
SCALE = 10**4  # digits of the share that torchvision crops: rounded down, so that sizes are exact


def is_timm(name: str) -> bool:
    """Whether `--network` names one of timm."""
    return name.startswith(TIMM)


def preset(name: str, others: Iterable[str] = ()) -> Preset:
    """What a network's own weights were trained with; of several the default ones. Builds nothing.

    Args:
        name: As `--network` has it.
        others: Names that are known elsewhere, for the message.

    Raises:
        BadInput: It is not known, not installed, or none for square images and scores.
    """
    if is_timm(name):
        return _timm_preset(name)
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise _not_known(name, [*others, *names], [*others, "resnet18"])
    how = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    size = how.crop_size[0]
    return Preset(
        size=size,
        resize="center",
        crop=math.floor(SCALE * size / how.resize_size[0]) / SCALE,
        interpolation=how.interpolation.value,
        mean=tuple(how.mean),
        std=tuple(how.std),
    )


def make(
    name: str, num_classes: int, pretrained: bool, dropout: float, size: int, channels: int = 3
) -> nn.Module:
    """A network of torchvision or timm, with a new head of `num_classes` scores.

    Args:
        name: As `--network` has it.
        num_classes: K.
        pretrained: Start from its own trained weights, which are downloaded on first use.
        dropout: The probability that its constructor takes; 0 for its own default.
        size: Height and width of the images, in pixels.
        channels: Of the images; with another number than 3 the first convolution is adapted as by
            engine.weights.adapt_channels.

    Raises:
        BadInput: Its weights cannot be had, or it has no dropout to set.
    """
    try:
        if is_timm(name):
            return _make_timm(name, num_classes, pretrained, dropout, size, channels)
        made = _make_torchvision(name, num_classes, pretrained, dropout)
        return made if channels == 3 else _with_channels(made, channels)
    except TypeError as error:
        if dropout and ("'dropout'" in str(error) or "'drop_rate'" in str(error)):
            raise BadInput(f"--dropout {dropout}: {name} takes none; leave it out") from None
        raise


def new_head(network: Network, name: str, num_classes: int, small: bool = True) -> Network:
    """Puts a new layer in the place of one of a network, in place, and makes it its head.

    The head is what `--freeze` and `--head-epochs` train, and what `--weights` of other classes
    leave at random. Small weights give all classes about the same probability at first.

    Args:
        network: Any network.
        name: That of its last layer, a linear one or a convolution, as in `named_modules`.
        num_classes: K, the scores that the new layer returns.
        small: Weights of standard deviation HEAD_STD, no bias; else PyTorch's default.
    """
    old: Any = network.get_submodule(name)
    if isinstance(old, nn.Conv2d):  # SqueezeNet
        new: nn.Module = nn.Conv2d(old.in_channels, num_classes, kernel_size=1)
    else:
        new = nn.Linear(old.in_features, num_classes)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)
    return _with_head(network, (name,), num_classes if small else 0)


@torch.no_grad()
def _with_head(network: Network, names: tuple[str, ...], small: int) -> Network:
    """Notes which modules are the head, for engine.modules.head_of.

    The layers in them that return `small` scores get small weights.
    """
    network.head_names = names  # type: ignore[assignment]  # nn.Module may have any attribute
    layers: list[Any] = [m for name in names for m in network.get_submodule(name).modules()]
    for layer in layers:
        if getattr(layer, "out_features", getattr(layer, "out_channels", 0)) == small != 0:
            layer.weight.normal_(std=HEAD_STD)
            if layer.bias is not None:
                layer.bias.zero_()
    return network


def _make_torchvision(name: str, num_classes: int, pretrained: bool, dropout: float) -> nn.Module:
    more = {"dropout": dropout} if dropout else {}
    weights = "DEFAULT" if pretrained else None
    try:
        network = torchvision.models.get_model(name, weights=weights, **more)
    except OSError as error:  # URLError is one
        raise BadInput(
            f"--pretrained: the weights of {name} could not be downloaded ({error}); leave the "
            f"option out, or put the file into {torch.hub.get_dir()}/checkpoints"
        ) from None
    if hasattr(network, "aux_logits"):  # googlenet and inception_v3 would return a tuple
        for part in [part for part in ("aux1", "aux2", "AuxLogits") if hasattr(network, part)]:
            setattr(network, part, None)
        network.aux_logits = False
    if hasattr(network, "transform_input"):  # else it would depend on who loads the weights
        network.transform_input = True
    last = [
        part
        for part, module in network.named_modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == 1000
    ][-1]
    return new_head(network, last, num_classes, small=pretrained)


def _with_channels(network: nn.Module, channels: int) -> nn.Module:
    """A network of torchvision for RGB, in place for another number of channels."""
    conv = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    conv.in_channels = channels
    conv.weight = nn.Parameter(adapt_channels(conv.weight.detach(), channels))
    if hasattr(network, "transform_input"):  # of red, green and blue
        network.transform_input = False  # type: ignore[assignment]
    return network


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise BadInput(
            "--network timm:NAME: timm is not installed; python -m pip install timm"
        ) from None
    return timm


def _timm_config(name: str) -> Any:
    """What timm knows of the weights of a network, of `name` without the prefix."""
    models = _timm().models
    try:
        found = models.get_pretrained_cfg(name) if models.is_model(name) else None
    except RuntimeError:  # no such tag
        found = None
    if found is None:
        names = [TIMM + known for known in models.list_models()]
        tags = [TIMM + known for known in models.list_models(pretrained=True)]
        raise _not_known(TIMM + name, names + tags, [TIMM + "resnet18"])
    return found


def _timm_preset(name: str) -> Preset:
    config = _timm_config(name.removeprefix(TIMM))
    how = _timm().data.resolve_data_config(pretrained_cfg=config.to_dict())
    _, height, width = how["input_size"]
    if not config.classifier:
        raise BadInput(f"--network {name}: {NO_HEAD}")
    if height != width:
        raise BadInput(f"--network {name}: is for images of {height} x {width}; take another")
    if how["crop_mode"] not in ("center", "squash"):
        mode = how["crop_mode"]
        raise BadInput(f"--network {name}: is for images with a frame ({mode}); take another")
    return Preset(
        size=height,
        resize=how["crop_mode"],
        crop=how["crop_pct"],
        interpolation=how["interpolation"],
        mean=tuple(how["mean"]),
        std=tuple(how["std"]),
    )


def _make_timm(
    name: str, num_classes: int, pretrained: bool, dropout: float, size: int, channels: int
) -> nn.Module:
    timm, short = _timm(), name.removeprefix(TIMM)
    config = _timm_config(short)
    more: dict[str, Any] = {"drop_rate": dropout} if dropout else {}
    if channels != 3:
        more["in_chans"] = channels
    if config.fixed_input_size and size != config.input_size[1]:
        more["img_size"] = size
    if pretrained and not config.has_weights:
        raise BadInput(f"--pretrained: timm has no weights of {name}; use --weights FILE")
    logged = logging.root.manager.disable
    logging.disable(logging.ERROR)  # what the error tells
    try:
        network = timm.create_model(short, pretrained, num_classes=num_classes, **more)
    except Exception as error:  # of the download: of several libraries
        if not pretrained or isinstance(error, TypeError):
            raise
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise BadInput(
            f"--pretrained: the weights of {name} could not be loaded ({reason}); leave the option "
            "out, or use --weights FILE"
        ) from None
    finally:
        logging.disable(logged)
    named = config.classifier
    names = _timm_heads(network, [named] if isinstance(named, str) else named)
    if not names:
        raise BadInput(f"--network {name}: {NO_HEAD}")
    return _with_head(network, names, num_classes)


def _timm_heads(network: Any, named: Iterable[str]) -> tuple[str, ...]:
    """The modules that return scores: those that timm's config names, and any besides.

    `get_classifier` alone may give a larger part, which has trained layers too, or one of two.
    """
    parts = dict(network.named_modules())
    names = [name for name in named if name in parts]
    said: Any = network.get_classifier() if hasattr(network, "get_classifier") else ()
    given = said if isinstance(said, tuple | list) else (said,)
    for name, part in parts.items():
        covers = any(f"{known}.".startswith(f"{name}.") for known in names)
        if any(part is one for one in given) and not covers:
            names.append(name)
    return tuple(names)


def _not_known(name: str, known: list[str], usual: list[str]) -> BadInput:
    near = difflib.get_close_matches(name, known) or usual
    return BadInput(f"--network {name}: not known; did you mean {', '.join(near)}?")
