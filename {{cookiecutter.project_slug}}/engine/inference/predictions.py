"""The images of predict.py, those among them that cannot be read, and how it ends."""

import os
import re
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from engine.data.files import ENDINGS, SerializedList, list_images
from engine.data.stored import RGB, Form, more_endings
from engine.errors import DONE, BadInput, Fault, shorten
from engine.terminal import conclude, warn
from engine.text import decode, encoding_problem


class ImageFiles(Dataset):
    """Images without labels, for predictions; each with whether it could be read, bool.

    One that cannot be read does not end the program, which may have a million of them to go.
    `files` has their paths.

    Args:
        paths: Files, and folders whose images are all taken, those of subfolders included; `-` for
            the files and folders that standard input names, one a line, also in UTF-16 or ended
            by NUL.
        load: From a path to an image (C, H, W); worker processes must be able to import it.
        side: Height and width of the black image that stands for one that cannot be read, since all
            images of a batch need one size.
        form: Its channels and depth with `--images stored`, with which .npy counts too.

    Raises:
        BadInput: A path does not exist, a folder holds no image, standard input is empty.
    """

    def __init__(
        self,
        paths: list[str],
        load: Callable[[str], Tensor],
        side: int = 1,
        form: Form | None = None,
    ) -> None:
        self.load, self.side, self.form = load, side, form or RGB
        more = more_endings("stored" if form else None)
        self.files = SerializedList(file for path in paths for file in _named_images(path, more))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        try:
            return self.load(self.files[index]), torch.tensor(True)
        except (BadInput, OSError):
            shape = self.form.channels, self.side, self.side
            return torch.zeros(shape, dtype=self.form.dtype), torch.tensor(False)

    def finish(
        self, readable: list[bool], out: str, write: Callable[[], object] = lambda: None
    ) -> int:
        """Writes the predictions, and names the images that are not `readable`; the exit status.

        Args:
            readable: For each image whether it could be read.
            out: The file or folder of the predictions.
            write: Writes them, unless each was written when it was made.

        Raises:
            BadInput: No image could be read; nothing is written.
            Fault: Some images could not be read.
        """
        problems, count = self._problems(readable), sum(readable)
        write()
        conclude(f"wrote {out}: {count} image{'s' * (count > 1)}")
        for line in problems:
            warn(line)
        if problems:
            raise Fault(f"{len(problems)} of {len(readable)} images could not be read")
        return DONE

    def _problems(self, readable: list[bool]) -> list[str]:
        """A line for each image that is not `readable`, read again for it; BadInput if none is."""
        lines = []
        for file in [self.files[i] for i, could in enumerate(readable) if not could]:
            try:
                self.load(file)
                lines.append(f"{file}: could not be read at first; predict it again")
            except BadInput as error:
                lines.append(str(error))
            except OSError as error:
                gone = isinstance(error, FileNotFoundError)
                reason = "no such file" if gone else error.strerror or str(error)
                lines.append(f"{file}: {reason}")
        if not any(readable):
            raise BadInput(lines[0] + f" (none of {len(lines)} images is)" * (len(lines) > 1))
        return lines


def _named_images(name: str, more: tuple[str, ...]) -> list[str]:
    """The images that a word on the command line of predict.py names; see ImageFiles."""
    if name != "-":
        return _images_of(name, more)
    lines = re.split(r"\r\n|[\r\n\0]", decode(sys.stdin.buffer.read()))
    lines = [line.strip("\ufeff\x1a") for line in lines]  # marks of lists that were joined
    for number, line in enumerate(lines, 1):
        if (problem := encoding_problem(line)) and not os.path.exists(line):
            raise BadInput(f"-: line {number} of standard input {problem}")
    found = [image for line in lines if line.strip() for image in _images_of(line, more, True)]
    if not found:
        raise BadInput("-: standard input names no file; give it one a line")
    return found


def _images_of(name: str, more: tuple[str, ...], listed: bool = False) -> list[str]:
    """A file, or all images of a folder; what a folder holds besides is named in a line.

    A path of a list that does not exist may only have blanks at its end or quotes, and else is
    named with the images that cannot be read.
    """
    if not os.path.exists(name):
        if not listed:
            raise BadInput(f"{name}: no such file or folder")
        others = (name.rstrip(), name.strip(), name.strip().strip("\"'"))
        return [next(filter(os.path.exists, others), name)]
    if os.path.isfile(name):
        return [name]
    if not os.path.isdir(name):
        raise BadInput(f"{name}: neither a file nor a folder")
    listing = list_images(name, more)
    if unused := [one for one in listing.unused if one != "dataset.json"]:
        warn(f"{name}: not used: {shorten(unused, 3)}")
    if not listing.images:
        raise BadInput(f"{name}: no image in this folder; they end in {', '.join(ENDINGS + more)}")
    return [os.path.join(name, path) for path in listing.images]
