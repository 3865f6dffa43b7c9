"""Exports a trained model to a file that runs without this project (see export.py).

    onnx         graph and weights, for onnxruntime and others
    pt2          the same for PyTorch: torch.export.load(FILE).module()
    safetensors  the weights alone, for train.py --weights; FILE.json beside it holds the metadata

The input of the first two is `images`, uint8 (N, 3, H, W), RGB; of a model for `--images stored`
(N, C, H, W) in the unit of the files, float32 above 8 bits. N may vary, and H and W if the model
allows it. The output is that of the model's `predict`, which includes normalisation. If the
checkpoint has averaged weights (`--ema`), these are exported.

The metadata (`metadata.json` in metadata_props and in the extra files) has the keys
format_version, model, input, what the model's `describe_output` adds, and options, those of the
training. Before a file is written, its outputs are compared with those of the checkpoint.
"""

import io
import json
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

from engine.arguments import Parser, add_checkpoint_option, plain
from engine.checkpoint import write_atomically
from engine.data.files import images_below
from engine.data.stored import RGB, Form, more_endings, trained_form
from engine.errors import DONE, BadInput, Fault
from engine.inference.exported import (
    FORMAT_VERSION,
    INPUT,
    METADATA,
    Run,
    optional,
    read_onnx,
    silence,
)
from engine.report.outputs import Output
from engine.state import WITHOUT_EFFECT
from engine.terminal import conclude

FORMATS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ()}
BATCHES = (1, 2, 17)  # sizes of the batches that are compared
LIMIT = 1e-4  # of the range of the outputs: a larger difference is not due to rounding
ONNX_LIMIT = 2**31 - 2**24  # bytes of weights in one file
SIZES = ("batch", "channels", "height", "width")
IMAGES, STORED = "RGB in [0, 255]", "channels in the unit of the files"
Load = Callable[[str, Namespace], Tensor]


class Predict(nn.Module):
    """A model whose `forward` is its `predict`, for the exporters."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.predict(images)


def export(model_class: Any, parser: Parser, load: Load, data_dir: Callable[[str], Path]) -> int:
    """The program export.py; returns its exit status.

    Args:
        model_class: The finished model.
        parser: That of train.py.
        load: Reads an image as predict.py does, given the options of the training.
        data_dir: Gives the folder for `--data`.

    Raises:
        BadInput: The checkpoint or an option cannot be used, or the network cannot be exported.
        Fault: The outputs differ from those of the checkpoint; no file is written.
    """
    opt, out, beside = parse()
    for package in FORMATS[opt.format]:
        optional(package)  # before anything takes time
    model, trained_with = model_class.from_checkpoint(opt.checkpoint)
    metadata = describe(model, trained_with, parser.files())
    if beside is not None:
        write_weights(model, metadata, out, beside)
        return DONE
    side = metadata["image_size"]
    form = trained_form(metadata) or RGB
    content = convert(model, opt.format, side, json.dumps(metadata, indent=2), form)
    folder = data_dir(trained_with.data) / "test"
    images, source = check_images(trained_with, load, folder, metadata)
    difference = compare(model, content, opt.format, images, side is None) / metadata["range"]
    what = f"largest difference {difference:.1e} on {source}, batches of 1, 2 and 17"
    if not difference <= LIMIT:  # NaN neither
        raise Fault(f"{out.name}: not written, since it differs from the checkpoint: {what}")
    out.write(content)
    conclude(f"wrote {out.name}: {len(content) / 1e6:.1f} MB; {what}")
    return DONE


def parse() -> tuple[Namespace, Output, Output | None]:
    """The options of export.py, the file to write, and the JSON beside it if there is one."""
    parser = Parser(description="Writes a trained model into a file that needs no project.")
    add_checkpoint_option(parser)
    add = parser.add_argument
    add("--format", choices=FORMATS, required=True, help="safetensors has the weights alone")
    add("--out", metavar="FILE", help="where to write (default: beside the checkpoint)")
    opt = parser.parse_args()
    suffix = f".{opt.format}"
    path = Path(opt.out or Path(opt.checkpoint).with_suffix(suffix))
    if path.suffix != suffix:
        raise BadInput(f"--out {path}: a file of this format has to end in {suffix}")
    out = Output(str(path), "a file of export.py", is_exported)
    if opt.format != "safetensors":
        return opt, out, None
    beside = str(path.with_suffix(".json"))
    return opt, out, Output(beside, "metadata of export.py", is_exported)


def is_exported(path: Path) -> bool:
    """Whether a file was written by export.py: it holds metadata, or says so in its head."""
    content = path.read_bytes()
    return b"format_version" in content and any(s.encode() in content for s in (IMAGES, STORED))


def describe(model: Any, trained_with: Namespace, files: set[str]) -> dict[str, Any]:
    """The metadata of an exported model, for JSON; options that name `files` are left out.

    The model's `describe_output` returns image_size, height and width of the input, or None if they
    vary; output, a description; range, by which differences are divided; and anything else. With
    `--images stored` it has what engine.data.stored.facts tell.
    """
    own = model.describe_output(trained_with)
    side, form = own["image_size"], trained_form(own)
    shape = f"{side}, {side}" if side else "H, W"
    images = f"uint8 (N, 3, {shape}), {IMAGES}"
    if form:
        kind = str(form.dtype).removeprefix("torch.")
        images = f"{kind} (N, {form.channels}, {shape}), {STORED} ({form.depth})"
    left_out = {*WITHOUT_EFFECT, *files}
    return {
        "format_version": FORMAT_VERSION,
        "model": type(model).__name__,
        "input": images,
        **own,
        "options": {k: v for k, v in plain(trained_with).items() if k not in left_out},
    }


def write_weights(model: Any, metadata: dict[str, Any], out: Output, beside: Output) -> None:
    """Writes the weights of the network and beside them the metadata as JSON, or neither."""
    state = model.networks()["net"].state_dict()
    weights = {
        name: value.clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
    head = {"format": "pt", "format_version": str(FORMAT_VERSION), "input": metadata["input"]}
    content = safetensors.torch.save(weights, head)
    text = json.dumps(metadata, indent=2) + "\n"

    def write_both(file: BinaryIO) -> None:
        file.write(text.encode())
        file.flush()  # if the disk is full, no weights are written
        out.write(content)

    write_atomically(beside.path, write_both)
    size = f"{len(weights)} tensors, {len(content) / 1e6:.1f} MB"
    conclude(f"wrote {out.name}: {size}; and {beside.path.name}")


def convert(
    model: Any, form: str, side: int | None, metadata: str, images: Form = RGB
) -> bytes:
    """A model on the CPU, in evaluation mode, as the content of an onnx or pt2 file.

    Its images are `side` pixels high and wide; None: that may vary.

    Raises:
        BadInput: PyTorch cannot export the network, or it is too large for an ONNX file.
    """
    weights = sum(value.nbytes for value in model.state_dict().values())
    if form == "onnx" and weights > ONNX_LIMIT:
        raise BadInput(
            f"--format onnx: {weights / 1e9:.1f} GB of weights, and one file holds 2; use pt2"
        )
    height, width = (side, side) if side else (41, 59)  # odd, so that no even size is assumed
    example = torch.zeros(2, images.channels, height, width, dtype=images.dtype)
    # Not a named Dim: PyTorch 2.6 rejects it for the batches of transformers.
    dims = dict.fromkeys((0,) if side else (0, 2, 3), torch.export.Dim.AUTO)
    try:
        with torch.no_grad(), silence():
            program = torch.export.export(
                Predict(model).eval(), (example,), dynamic_shapes=(dims,), strict=False
            )
            if form == "onnx":
                return onnx_content(program, metadata)
            file = io.BytesIO()
            torch.export.save(program, file, extra_files={METADATA: metadata})
            return file.getvalue()
    except Exception as error:  # the exporters raise almost anything
        reason = " ".join(str(error).split())[:200]
        raise BadInput(
            f"--format {form}: PyTorch cannot export this network ({reason}); let its forward "
            "decide nothing by the values of tensors, or try a newer PyTorch"
        ) from None


def onnx_content(program: torch.export.ExportedProgram, metadata: str) -> bytes:
    """The content of an ONNX file; its varying sizes get readable names."""
    converted = torch.onnx.export(
        program, (), dynamo=True, input_names=[INPUT], output_names=["outputs"], verbose=False
    )
    assert converted is not None
    model = converted.model_proto
    names: dict[str, str] = {}
    for value in (*model.graph.input, *model.graph.output):
        for size, name in zip(value.type.tensor_type.shape.dim, SIZES, strict=False):
            if size.dim_param:
                size.dim_param = names.setdefault(size.dim_param, name)
    del model.graph.value_info[:]  # it has the generated names
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, metadata
    return model.SerializeToString()


def check_images(
    opt: Namespace, load: Load, folder: Path, metadata: dict[str, Any]
) -> tuple[list[Tensor], str]:
    """Up to 17 images to compare on, (C, H, W), and a description of them."""
    images: list[Tensor] = []
    side, form = metadata["image_size"], trained_form(metadata) or RGB
    for path in images_below(folder, more_endings(getattr(opt, "images", None))):
        with suppress(BadInput):  # a damaged image
            image = load(path, opt)
            images += [image] if (len(image), image.dtype) == (form.channels, form.dtype) else []
        if len(images) == max(BATCHES):
            break
    if images:
        return images, f"{len(images)} image{'s' * (len(images) > 1)} of {folder}"
    random = torch.Generator().manual_seed(0)
    shape = (max(BATCHES), form.channels, side or 128, side or 128)
    made = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    if "low" in metadata and form.dtype != torch.uint8:
        low, high = metadata["low"], metadata["high"]
        made = low + (high - low) * torch.rand(shape, generator=random)
    elif form.dtype != torch.uint8:
        mean, std = (torch.tensor([*metadata[k].values()])[:, None, None] for k in ("mean", "std"))
        made = mean + std * torch.randn(shape, generator=random)
    return list(made), f"random images, as there are none in {folder}"


def compare(model: Any, content: bytes, form: str, images: list[Tensor], vary: bool) -> float:
    """The largest difference between the outputs of a model and of the file exported from it.

    The images, (C, H, W), are repeated if a batch is larger. If their size may `vary`, each
    batch gets a different one.
    """
    run: Run
    if form == "pt2":  # torch.export.load can run code of the file, but this one is our own
        run = torch.no_grad()(torch.export.load(io.BytesIO(content)).module())
    else:
        run, _ = read_onnx(content)
    differences = []
    for n in BATCHES:
        size = [64 + n, 96 - n] if vary else list(images[0].shape[1:])
        batch = torch.stack([center_crop(images[i % len(images)], size) for i in range(n)])
        with torch.no_grad():
            wanted = model.predict(batch)
        differences.append((run(batch) - wanted).abs().max())
    return float(torch.stack(differences).max())  # max keeps NaN
