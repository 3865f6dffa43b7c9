"""One line for what the user can mend, a traceback for what is our own bug."""

import sys
from collections.abc import Callable
from pathlib import Path

DONE, FAULT, BAD_INPUT, STOPPED = 0, 1, 2, 75  # the exit statuses of every program


class BadInput(Exception):
    """Something the user gave is wrong. The text says what, where, and what to do, in one line."""

    def __init__(self, text: str) -> None:
        # A DataLoader worker sends its whole traceback as the text; ours is the end of it.
        super().__init__(" ".join(str(text).rsplit("BadInput: ", 1)[-1].split()))


def run_program(main: Callable[[], int]) -> None:
    """Runs `main` and exits with its status; bad input and Ctrl-C end in one line."""
    try:
        status = main()
    except BadInput as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        status = BAD_INPUT
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        status = 130  # 128 + SIGINT, as shells report it
    sys.exit(status)
