"""Tests of something that is not in every project, or not in every environment."""

from contextlib import suppress
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

import options

# What export.py writes. The ONNX exporter of PyTorch 2.6 fails.
OLD = pytest.mark.skipif(torch.__version__ < "2.7", reason="needs PyTorch 2.7 or newer")
FORMATS = (pytest.param("onnx", marks=OLD), "pt2")


def needs(name: str) -> Any:
    """Returns something of this project by its name, or skips the test if it is no longer there.

    At the top of a file it skips the whole file.

    Args:
        name: What would be imported, such as `losses.FocalLoss` or `example.SEPARABLE`; or an
            option, such as `--dropout` or `--loss=focal`.
    """
    found: Any = None
    if name.startswith("--"):
        flag, _, value = name.partition("=")
        action = options.make_parser()._option_string_actions.get(flag)
        if action and (not value or not action.choices or value in action.choices):
            found = action
    else:
        with suppress(ModuleNotFoundError, AttributeError):
            found = resolve_name(name)
    if found is None:
        pytest.skip(f"{name} is not in this project", allow_module_level=True)
    return found
