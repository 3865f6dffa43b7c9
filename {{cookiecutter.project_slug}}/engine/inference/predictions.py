"""The images of predict.py, those among them that cannot be read, and how it ends."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from engine.data.images import SerializedList, images_below
from engine.errors import DONE, BadInput, Fault
from engine.terminal import conclude, warn


class ImageFiles(Dataset):
    """Images without labels, for predictions.

    One that cannot be read does not end the program, which may have a million of them to go.

    Args:
        paths: Files, and folders whose images are all taken, those of subfolders included; `-` for
            the files that standard input names, one a line.
        load: From a path to an image, uint8 (3, H, W); worker processes must be able to import it.
        side: Height and width of the black image that stands for one that cannot be read; all
            images of a batch need one size.

    Returns:
        For an index: the image, and whether it could be read, bool; `files` has its path.

    Raises:
        BadInput: A path does not exist, a folder holds no image, standard input is empty.
    """

    def __init__(self, paths: list[str], load: Callable[[str], Tensor], side: int = 1) -> None:
        self.load, self.side = load, side
        self.files = SerializedList(file for path in paths for file in _named_images(path))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        try:
            return self.load(self.files[index]), torch.tensor(True)
        except BadInput:
            return torch.zeros(3, self.side, self.side, dtype=torch.uint8), torch.tensor(False)

    def problems(self, readable: list[bool]) -> list[str]:
        """A line for each image that could not be read; they are read once more for that.

        Args:
            readable: For each image whether it could be read.

        Raises:
            BadInput: None could be read.
        """
        lines = []
        for index in [i for i, could in enumerate(readable) if not could]:
            try:
                self.load(self.files[index])
                lines.append(f"{self.files[index]}: could not be read at first; predict it again")
            except BadInput as error:
                lines.append(str(error))
        if not any(readable):
            raise BadInput(lines[0] + f" (none of {len(lines)} images is)" * (len(lines) > 1))
        return lines


def _named_images(name: str) -> list[str]:
    """The images that a word on the command line of predict.py names; see ImageFiles."""
    if name == "-":
        lines = os.fsdecode(sys.stdin.buffer.read()).replace("\r\n", "\n").split("\n")
        if not (found := [line for line in lines if line]):
            raise BadInput("-: standard input names no file; give it one a line")
        return found
    path = Path(name)
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")
    if not (found := [str(path)] if path.is_file() else images_below(path)):
        raise BadInput(f"{path}: no image in this folder")
    return found


def end(
    images: ImageFiles, readable: list[bool], out: str, write: Callable[[], object] = lambda: None
) -> int:
    """Writes the predictions, and names the images that could not be read; the exit status.

    Args:
        images: The images.
        readable: For each whether it could be read.
        out: The file or folder of the predictions.
        write: Writes them, unless each was written when it was made.

    Raises:
        BadInput: No image could be read; nothing is written.
        Fault: Some images could not be read.
    """
    problems, count = images.problems(readable), sum(readable)
    write()
    conclude(f"wrote {out}: {count} image{'s' * (count > 1)}")
    for line in problems:
        warn(line)
    if problems:
        raise Fault(f"{len(problems)} of {len(readable)} images could not be read")
    return DONE
