"""The images that come with the project, as folders; dataset.py copies them for the first run."""

import os
import shutil
from pathlib import Path


def copy_photos(target: Path) -> None:
    """Copies photos/ beside this file (its README.md states sources and licences) to `target`."""
    work = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copytree(Path(__file__).with_name("photos"), work)
    try:
        work.rename(target)  # all or nothing, also when two runs start at once
    except OSError:
        shutil.rmtree(work)
