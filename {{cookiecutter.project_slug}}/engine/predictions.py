"""What every predict.py does at its end."""

import sys
from collections.abc import Callable

from engine.errors import DONE, Fault
from engine.images import ImageFiles


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
    print(f"wrote {out}: {count} image{'s' * (count > 1)}")
    for line in problems:
        print(f"warning: {line}", file=sys.stderr)
    if problems:
        raise Fault(f"{len(problems)} of {len(readable)} images could not be read")
    return DONE
