"""Writes checkpoints atomically, and verifies them before they are loaded.

A checkpoint is a plain dict, readable by `torch.load(path, weights_only=True)`. It is written to a
temporary file, flushed to the disk and then renamed, so a crash leaves no partial checkpoint. It is
a zip archive, whose checksums are verified: torch.load does not notice a flipped bit.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from errno import EINVAL
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from engine import terminal
from engine.data.images import ARCHIVE, known_kind
from engine.data.source import changed_code
from engine.distributed import ALONE, World
from engine.errors import OUT_OF_MEMORY, BadInput, Fault, Unsound, shorten


class Damaged(BadInput):
    """The bytes of a checkpoint are not those that were written."""


class Checkpoints:
    """The folder `checkpoints/` of a run: last.pt, best.pt and the newest `keep` by step.

    At least 2 are kept, so that one damaged file loses little. The first process of `world` reads
    and writes.
    """

    def __init__(self, folder: Path, keep: int = 2, world: World = ALONE) -> None:
        self.folder, self.keep, self.world = folder, max(2, keep), world
        self.last, self.best = folder / "last.pt", folder / "best.pt"
        self.resumed_after = 0  # the step of the checkpoint that the run was resumed from
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self.when_written: Callable[[], None] = lambda: None  # called in the writing thread

    def clean(self) -> None:
        """Deletes the unfinished files of a run that was killed while it wrote them."""
        for partial in self.folder.glob(".*.tmp"):
            partial.unlink(missing_ok=True)

    def save(self, state: Any, best: bool = False, alone: bool = False) -> None:
        """Saves a TrainState under the number of its step; `best` makes it best.pt as well.

        The tensors are copied here and written in a thread, one checkpoint at a time, while
        training goes on. With `alone` the other processes, which may be gone, are not asked.

        Raises:
            Unsound: The one before could not be written, or the processes have other weights.
        """
        self.wait()
        content = state.state_dict()
        if not alone:
            self.world.check_equal(content)
        if self.world.rank == 0:
            self._writing = self._thread.submit(self._write, _copy(content), best)

    def wait(self) -> None:
        """Returns when all that was saved is on the disk; raises Unsound if writing failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, state: dict[str, Any], best: bool) -> None:
        path = self.folder / f"iter-{state['n_iter']:09d}.pt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # best.pt first: a kill in between repeats the validation, and loses no result.
            written = self.best if best else path
            write_atomically(written, lambda file: torch.save(state, file))
            if best:
                _link(self.best, path)
            _link(path, self.last)
            for old in self.numbered()[self.keep :]:
                old.unlink(missing_ok=True)
            self.when_written()
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into the latter
            good = f"the last good checkpoint is {self.last}"
            kept = good if self.last.exists() else "no checkpoint exists yet"
            cause: Any = error
            while not isinstance(cause, OSError) and cause.__context__:
                cause = cause.__context__
            reason = " ".join(str(getattr(cause, "strerror", None) or error).split())[:100]
            raise Unsound(
                f"{path}: cannot be written ({reason}); {kept}; make room and go on with --resume"
            ) from None

    def load_newest(self, state: Any) -> bool:
        """Loads the newest valid checkpoint into a TrainState; returns whether there was one.

        Raises:
            BadInput: No checkpoint is valid, or it does not fit the state.
        """
        found = self.world.broadcast(self.newest)
        if found is None:
            terminal.say(f"nothing to resume in {self.folder}: starting from the beginning")
        else:
            state.load_state_dict(found, self.folder)
            self.resumed_after = found["n_iter"]
        return found is not None

    def newest(self) -> dict[str, Any] | None:
        """The newest valid checkpoint, on the CPU; None if there is no file at all.

        Damaged ones are skipped with a warning, and renamed once an older one is valid, so that
        they do not count among the newest that are kept.

        Raises:
            BadInput: There are files, and none of them is valid; or one is no checkpoint.
            Fault: One cannot be read at the moment; to resume from an older one would lose steps.
        """
        damaged: list[Path] = []
        for path in (*self.numbered(), *filter(Path.exists, (self.last, self.best))):
            try:
                state = load(path)
            except Damaged as error:
                damaged.append(path)
                terminal.warn(f"{error}; trying the one before")
                continue
            for bad in damaged:
                bad.replace(bad.with_name(f"{bad.name}.damaged"))
            if damaged and path not in (self.last, self.best):
                _link(path, self.last)  # which was perhaps another name of a damaged one
            return state
        if damaged:
            names = ", ".join(path.name for path in damaged)
            raise BadInput(f"{self.folder}: no readable checkpoint among {names}")
        return None

    def numbered(self) -> list[Path]:
        """The checkpoints named by step, newest first."""
        files = self.folder.glob("iter-*.pt")
        ours = (path for path in files if re.fullmatch(r"iter-\d+", path.stem))
        return sorted(ours, key=lambda path: int(path.stem[5:]), reverse=True)


CUT_OFF = "cut off, as after an unfinished download or copy; get it again"
TORCHSCRIPT = "a TorchScript file; save torch.jit.load(FILE).state_dict() with torch.save"
# What a file is that holds no tensors which are read here, by its first bytes, and what to do.
OTHER_FILES = {
    rb"\x89HDF": "an HDF5 file, as of Keras; convert it to a state dict of PyTorch",
    rb"\x08[\x01-\x20]\x12": "an ONNX file; take the checkpoint it was made of",
    rb".{257}ustar": ARCHIVE,
    rb"\x89PNG|\xff\xd8\xff|GIF8|BM|II\*\0|MM\0\*": "an image",
}


def format_of(path: Path) -> str:
    """The format of a file of tensors, by its bytes, not its name: zip, pickle or safetensors.

    Raises:
        Damaged: It is something else, which is said, or cut off.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(2**16)
    length = int.from_bytes(head[:8], "little")
    if head.startswith(b"PK\3\4"):
        what, found = _zip_problem(path), "zip"
    elif head[8:9] == b"{" and 2 <= length < 2**27:
        what, found = _safetensors_problem(path, length), "safetensors"
    elif head.startswith(b"\x80"):
        what, found = "", "pickle"
    else:
        others = (told for bytes_, told in OTHER_FILES.items() if re.match(bytes_, head, re.DOTALL))
        what = known_kind(path) or next(others, "of no kind that is known; replace it")
        what, found = what.partition("; convert it to")[0] if "image" in what else what, ""
    if what:
        raise Damaged(f"{path}: damaged or not a checkpoint: {what}")
    return found


def _zip_problem(path: Path) -> str:
    try:
        if not zipfile.is_zipfile(path):
            return CUT_OFF
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # the directory is damaged, which `verify` tells
        return ""
    if any(name.endswith("/constants.pkl") for name in names):
        return TORCHSCRIPT
    if any(name.endswith("/data.pkl") for name in names) or not names:
        return ""
    if all(name.endswith(".npy") for name in names):
        return "arrays of NumPy; save them by name, as tensors, with torch.save"
    if any(name.endswith("archive_format") for name in names):
        return "a program of torch.export; take the checkpoint it was made of"
    return f"an archive of {shorten(names, 2)}; unpack it"


def _safetensors_problem(path: Path, length: int) -> str:
    with open(path, "rb") as file:
        file.seek(8)
        header = file.read(length)
    try:
        entries = json.loads(header)
        ends = [e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, LookupError, AttributeError):
        return CUT_OFF if len(header) < length else "a damaged file of safetensors; get it again"
    return CUT_OFF if 8 + length + max(ends, default=0) > path.stat().st_size else ""


def find_checkpoint(name: str) -> str:
    """The checkpoint that `--checkpoint` names: a file, or in a run folder best.pt, or last.pt."""
    folders = (Path(name), Path(name, "checkpoints"))
    found = [folder / file for file in ("best.pt", "last.pt") for folder in folders]
    return str(next((path for path in found if path.is_file()), name))


def load(path: Path) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU, after verifying it.

    Raises:
        BadInput: The file is missing, not a checkpoint of train.py, or holds objects whose loading
            could run code.
        Damaged: Its bytes are not those that were written.
        Fault: The file cannot be read at the moment.
    """
    if not path.is_file():
        runs = sorted({str(file.parents[1]) for file in path.glob("*/checkpoints/*.pt")})
        named = f"; name one of the runs in it: {shorten(runs)}" if runs else ""
        raise BadInput(f"{path}: no such checkpoint{named}")
    with reading(path):
        if format_of(path) == "safetensors":
            raise BadInput(f"{path}: weights alone, for train.py --weights; name the run instead")
        verify(path)
        state = load_tensors(path)
    if not isinstance(state, dict) or not {"n_iter", "args"} <= state.keys():
        raise BadInput(f"{path}: not a checkpoint written by train.py")
    return state


def load_tensors(path: Path) -> Any:
    """What torch.save has written, on the CPU, whatever the ending of the file."""
    with open(path, "rb") as file:  # by a path PyTorch goes by its ending
        return torch.load(file, map_location="cpu", weights_only=True)


@contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """A block that reads a file of tensors; its errors are told in a line that begins with `what`.

    Raises:
        BadInput: The file is something else, or would run code when loaded.
        Fault: The disk does not give it.
    """
    try:
        with warnings.catch_warnings():  # of PyTorch, on what the errors tell
            warnings.simplefilter("ignore")
            yield
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise BadInput(
            f"{what}: holds more than tensors and plain values{f' ({found[1]})' if found else ''}, "
            "and was not loaded because that could run code; use a checkpoint written by train.py, "
            "or for --weights a state dict, saved by itself"
        ) from None
    except (MemoryError, BadInput):
        raise
    except OSError as error:
        raise Fault(f"{what}: cannot be read ({error.strerror or error}); try again") from None
    except Exception as error:  # pickle raises almost anything for what is no checkpoint
        if re.search(OUT_OF_MEMORY, str(error)):
            raise
        reason = " ".join(str(error).split())[:100]
        if "unexpected EOF" in reason or isinstance(error, EOFError):
            raise Damaged(f"{what}: {CUT_OFF}") from None
        # The directory of the archive has no checksum: PyTorch finds what is wrong with it.
        kind = Damaged if "PytorchStreamReader" in reason else BadInput
        raise kind(f"{what}: not a checkpoint ({reason})") from None


def restore(model_class: Any, path: str, parser: Any) -> tuple[Any, Namespace]:
    """The trained model in evaluation mode, and the options that it was trained with.

    The weights are the averaged ones if there are any (`--ema`). Networks that only training needs,
    such as a discriminator, are left out. `model.checkpoint` tells file, digest and step.

    Args:
        model_class: The model; its `for_prediction` returns the options that it is made with.
        path: The checkpoint; of another model, or no good one, it raises BadInput.
        parser: That of train.py, for the defaults of options newer than the checkpoint.
    """
    state = load(Path(path))
    if state.get("model", model_class.__name__) != model_class.__name__:
        raise BadInput(
            f"{path}: a checkpoint of another model ({state['model']}); use one of a run of this "
            "project"
        )
    opt = parser.read_back(state["args"])
    if "info" not in state:
        raise BadInput(f"{path}: written by an earlier version of the template; train again")
    changed = changed_code(state.get("environment", {}).get("code", {}))
    if owners := [name for name in changed if name != "train.py" and name[:7] != "engine/"]:
        terminal.warn(f"{path}: written before a change of {shorten(owners, 3)}")
    model = model_class(model_class.for_prediction(opt), state["info"])
    for name, network in model.networks().items():
        weights = judged(state, name) if name in state else {}
        load_weights(network, weights, path, "networks.py was changed since then")
    model.checkpoint = {"file": path, "digest": digest_of(Path(path)), "step": state["n_iter"]}
    return model.eval(), opt


def judged(state: dict[str, Any], name: str) -> dict[str, Any]:
    """The weights of a network for evaluation: their average, if there is one."""
    return state.get("ema", {}).get(name, state[name])


def load_weights(
    network: nn.Module, weights: dict[str, Any], path: Path | str, remedy: str
) -> None:
    """Loads a state dict of the checkpoint `path` into `network`.

    Raises:
        BadInput: It is that of another network; the first difference is named, then the `remedy`.
    """
    own = network.state_dict()
    different = [f"no {name}" for name in own if name not in weights]
    different += [f"an unknown {name}" for name in weights if name not in own]
    for name, now in own.items():
        was = weights.get(name, now)
        if was.shape != now.shape:
            different.append(f"{name} of shape {tuple(was.shape)} instead of {tuple(now.shape)}")
    if different:
        raise BadInput(f"{path}: a checkpoint of another network (it has {different[0]}); {remedy}")
    network.load_state_dict(weights)


def _copy(value: Any) -> Any:
    """A copy of `value`, with all tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(item) for item in value)
    return value


def verify(path: Path) -> None:
    """Raises Damaged unless a checkpoint is a zip archive whose checksums are right."""
    if format_of(path) == "pickle":
        raise Damaged(f"{path}: damaged or not a checkpoint: a pickle, and no zip archive")
    try:
        with zipfile.ZipFile(path) as archive:
            # Of one that has the bit of a folder PyTorch would read nothing.
            folders = [info.filename for info in archive.infolist() if info.external_attr & 0x10]
            member = folders[0] if folders else archive.testzip()
    except Exception as error:  # zipfile raises almost anything for a damaged file
        # It seeks to a negative offset, too (EINVAL).
        if isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, EINVAL):
            raise  # of the machine
        raise Damaged(f"{path}: damaged or not a checkpoint ({error})") from None
    if member is not None:
        raise Damaged(f"{path}: damaged at {member}")


def digest_of(path: Path) -> str:
    """A digest of the bytes of a checkpoint, by which reports know it again."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces `path` by what `write(file)` writes, or leaves it as it is after an error.

    Raises:
        OSError: With the filename `path`, as with a full disk.
    """
    partial = path.with_name(f".{path.name[:50]}.{os.getpid()}.tmp")  # of at most 255 bytes
    try:
        with naming(path, partial):
            with open(partial, "w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with suppress(OSError):  # it was renamed, or could not be made
            partial.unlink()


@contextmanager
def naming(path: Path, partial: Path | None = None) -> Iterator[None]:
    """A block whose OSErrors get the filename `path` if they have none, or that of `partial`."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(partial)):
            error.strerror = error.strerror or str(error)  # some have a text alone
            error.filename = str(path)
        raise


def _link(target: Path, name: Path) -> None:
    """Replaces `name` by a hard link to `target`, atomically; by a copy where links fail."""
    partial = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    try:
        try:
            os.link(target, partial)
        except OSError:
            shutil.copyfile(target, partial)
        os.replace(partial, name)
    finally:
        partial.unlink(missing_ok=True)
