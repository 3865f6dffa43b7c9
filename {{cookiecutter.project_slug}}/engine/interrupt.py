"""Importing this, before anything that takes long, makes Ctrl-C end a program in one line.

Once everything is imported, engine.errors.run_program takes over.
"""

import multiprocessing
import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr)
    os._exit(130)  # at once: an exception in the middle of an import can come out as another


if multiprocessing.parent_process() is not None:  # Ctrl-C is for the trainer, not its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
program = getattr(sys.modules["__main__"], "__file__", None) or ""
beside_engine = os.path.dirname(os.path.abspath(program)) == os.path.dirname(
    os.path.dirname(os.path.abspath(__file__))
)
# A test or a notebook that imports a program keeps its own way with Ctrl-C.
if beside_engine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
