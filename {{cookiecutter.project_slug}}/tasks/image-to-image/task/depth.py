"""The range of images, which becomes [-1, 1] in the network, and what PSNR is measured by."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engine.data.cache import CachedImages
from engine.data.stored import RGB, Form, extent, trained_form


@dataclass(frozen=True)
class Scale:
    """The form of the images of a model, and the range of their values."""

    form: Form = RGB
    low: float = 0.0
    high: float = 255.0

    @property
    def span(self) -> float:
        """From the lowest to the highest value."""
        return self.high - self.low


RGB_SCALE = Scale()


def scale_of(info: dict[str, Any]) -> Scale:
    """That of a model, by its info or by what `describe_output` says."""
    form = trained_form(info)
    return Scale(form, info["low"], info["high"]) if form else RGB_SCALE


class Known:
    """What `info` tells of the images that a network is trained on; its range is found once.

    Args:
        images: The images.
        rows: Those to train on.
        form: Their form; None for `--images rgb`, of which there is nothing to tell.
        info: What is known already, that of a model.
    """

    def __init__(
        self, images: CachedImages, rows: Tensor, form: Form | None, info: dict[str, Any] | None
    ) -> None:
        self.images, self.rows, self.form = images, rows, form
        self._info = (info or None) if form else {}

    def info(self) -> dict[str, Any]:
        """Empty, or "channels", "depth", "low" and "high"."""
        if self._info is None and self.form is not None:
            low, high = extent(self.images, self.rows, self.form)
            shape = {"channels": self.form.channels, "depth": self.form.depth}
            self._info = {**shape, "low": low, "high": high}
        assert self._info is not None
        return self._info
