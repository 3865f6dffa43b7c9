"""The images that come with the project, as folders; dataset.py unpacks them for the first run."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from PIL import Image

from engine.checkpoint import naming


def unpack_digits(target: Path) -> None:
    """Cuts digits.png beside this file into images: row c holds the digits c, each 8x8 pixels.

    Every fifth image of a class is for testing. The sheet is made of the test part of "Optical
    Recognition of Handwritten Digits" (digits.md states source and licence).
    """
    work = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with naming(target):
            _write(work)
        with suppress(OSError):  # all or nothing, also when two runs start at once
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(folder: Path) -> None:
    with Image.open(Path(__file__).with_name("digits.png")) as sheet:
        for label in range(sheet.height // 8):
            for split in ("train", "test"):
                (folder / split / str(label)).mkdir(parents=True)
            for i in range(sheet.width // 8):
                digit = sheet.crop((8 * i, 8 * label, 8 * i + 8, 8 * label + 8))
                if digit.getbbox():  # the shorter rows end in black
                    split = "test" if i % 5 == 4 else "train"
                    digit.save(folder / split / str(label) / f"{i:03d}.png")
    about = {
        "name": "Optical Recognition of Handwritten Digits",
        "source": "https://doi.org/10.24432/C50P49",
        "licence": "CC BY 4.0",
        "flip": False,
    }
    (folder / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
