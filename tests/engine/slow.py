"""train.py on a disk that stops answering. Run by tests as a process of its own.

As soon as there is a file `stall` in the current folder, a worker that reads an image writes its
process number into the file `stalled` and waits for the seconds that `stall` says. After that the
image cannot be read.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
open_image = Image.open


def open_slowly(*words: Any, **more: Any) -> Image.Image:
    if Path("stall").exists() and multiprocessing.parent_process() is not None:
        seconds = float(Path("stall").read_text())
        Path("stalled").write_text(str(os.getpid()))
        time.sleep(seconds)
        raise OSError("the disk does not answer")
    return open_image(*words, **more)


Image.open = open_slowly  # type: ignore[assignment]  # read_image calls it

if __name__ == "__main__":
    import train

    train.run_program(train.main)
