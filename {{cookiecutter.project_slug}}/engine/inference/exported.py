"""ONNX files written by export.py, run in the place of a checkpoint.

They hold `metadata.json` (export.py beside this file lists its keys) among their metadata_props,
and are run on the CPU, in float32. A pt2 file is none of them: to open one can run code in it.
"""

import importlib
import io
import json
import logging
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine import modules
from engine.arguments import Parser
from engine.data.images import known_kind
from engine.devices import Amp, pick_device
from engine.errors import BadInput

METADATA = "metadata.json"
FORMAT_VERSION = 1
INPUT = "images"  # the name of the input
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Predictor:
    """A trained model, from a checkpoint or an exported file, for predict.py."""

    predict: Run  # from images, as `input` of the metadata has them, to the output, float32
    output: dict[str, Any]  # what `describe_output` says of it; of a file, all of its metadata
    options: Namespace  # of the training
    amp: Amp


def load_model(opt: Namespace, model_class: Any, parser: Parser) -> Predictor:
    """The model of `--checkpoint`, ready to predict.

    Args:
        opt: The options of a program: checkpoint, device, precision.
        model_class: The finished model.
        parser: That of train.py, for options that an exported file does not have.

    Raises:
        BadInput: The file cannot be used, or not with the device or the precision.
    """
    path = Path(opt.checkpoint)
    if path.suffix == ".pt2":
        raise BadInput(
            f"{path}: not opened, since a pt2 file can run code; use the checkpoint or ONNX"
        )
    if path.suffix != ".onnx":
        device = pick_device(opt.device)
        amp = Amp(opt.precision, device)
        model, trained_with = model_class.from_checkpoint(opt.checkpoint)
        described = model.describe_output(trained_with)
        model = modules.to_device(model, device, trained_with.freeze).eval()
        return Predictor(model.predict, described, trained_with, amp)
    if opt.device not in ("auto", "cpu"):
        raise BadInput(f"--device {opt.device}: {path} is run on the CPU; use the checkpoint")
    if opt.precision not in ("auto", "fp32"):
        raise BadInput(f"--precision {opt.precision}: {path} is float32; use the checkpoint")
    run, metadata = open_exported(path)
    if metadata["model"] != model_class.__name__:
        raise BadInput(
            f"{path}: exported from another model ({metadata['model']}); use the project it is of"
        )
    options = parser.read_back(metadata["options"])
    return Predictor(run, metadata, options, Amp("fp32", torch.device("cpu")))


def open_exported(path: Path) -> tuple[Run, dict[str, Any]]:
    """A function that runs an ONNX file of export.py on the CPU, and its metadata, or BadInput."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with silence():
            run, text = read_onnx(path.read_bytes())
        metadata = json.loads(text or "{}")
    except (BadInput, OSError):
        raise
    except Exception as error:  # a damaged file makes these libraries raise almost anything
        reason = known_kind(path) or " ".join(str(error).split())[:100]
        raise BadInput(f"{path}: damaged or not a {path.suffix} file ({reason})") from None
    if metadata.get("format_version") != FORMAT_VERSION:
        raise BadInput(f"{path}: not written by the export.py of this version; export it again")
    return run, metadata


def read_onnx(content: bytes) -> tuple[Run, str]:
    """A function that runs an ONNX file by onnxruntime, and its metadata as JSON."""
    onnxruntime = optional("onnxruntime")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4  # errors are raised as well
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.contiguous().numpy()})[0])

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA, "")


@contextmanager
def silence() -> Iterator[None]:
    """Hides what PyTorch says about its inside; its errors are raised as well."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def optional(package: str) -> Any:
    """Imports a package that training does not need; BadInput if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise BadInput(
            f"{package} is not installed; install what ONNX needs: python -m pip install onnx "
            "onnxscript onnxruntime"
        ) from None
