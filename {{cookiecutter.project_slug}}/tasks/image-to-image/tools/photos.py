"""The images that come with the project, as folders; dataset.py copies them for the first run."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from engine.checkpoint import naming


def copy_photos(target: Path) -> None:
    """Copies photos/ beside this file (its README.md states sources and licences) to `target`."""
    photos = Path(__file__).with_name("photos")
    work = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with naming(target):
            for photo in (path for path in photos.rglob("*") if path.is_file()):
                copy = work / photo.relative_to(photos)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(photo.read_bytes())
        with suppress(OSError):  # all or nothing, also when two runs start at once
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
