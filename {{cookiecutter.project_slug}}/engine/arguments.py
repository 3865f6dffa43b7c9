"""argparse with one-line errors, checked numbers, and a config.txt that can be read back."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from engine.precision import PRECISIONS

HUGE = 1e38  # as large as a float32 can be
NOT_IN_CONFIG = ("run", "resume")  # a repeated run gets a folder of its own


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes `@config.txt` and prints an error as one line, status 2."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description,
            fromfile_prefix_chars="@",
            formatter_class=_Help,
            allow_abbrev=False,
        )

    def convert_arg_line_to_args(self, line: str) -> list[str]:
        """A line of a config file is one argument, blanks and all; `#` starts a comment line."""
        return [line] if line.strip() and not line.startswith("#") else []

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            return super().parse_args(args, namespace)
        except (UnicodeDecodeError, RecursionError):
            self.error("a file given by @ is not a config.txt")

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


def number(kind: type, least: float, most: float = float("inf")) -> Callable[[str], Any]:
    """A type for add_argument: an int or a float from `least` to `most`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= min(most, HUGE):  # NaN is in no range
            what = "a whole number" if kind is int else "a number"
            limits = (
                f"from {least:g} to {most:g}" if most < float("inf") else f"of {least:g} or more"
            )
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {limits}")
        return value

    return parse


def auto_or(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type for add_argument: the word auto, which gives None, or what `kind` reads."""

    def parse(text: str) -> Any:
        return None if text == "auto" else kind(text)

    return parse


def add_machine_options(parser: argparse.ArgumentParser) -> Any:
    """Adds the options that say where to compute; returns their group, for more of the kind."""
    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    numbers = "the numbers to compute in; auto: bf16 where the device has it, fp16 on older GPUs"
    add("--precision", choices=PRECISIONS, default="auto", help=numbers)
    few = "processes that load images; 0 loads in the main one (default: auto)"
    add("--workers", type=auto_or(number(int, 0)), metavar="N", help=few)
    ahead = "batches that a background thread keeps ready; 0 for no thread"
    add("--prefetch", type=number(int, 0), default=2, help=ahead)
    return group


def config_text(opt: argparse.Namespace, path: Path) -> str:
    """The options, one to a line, in the form that `@path` reads back from the file `path`."""
    lines = ["# The options of this run. To repeat it: python train.py @" + path.as_posix()]
    for name, value in sorted(vars(opt).items()):
        flag = "--" + name.replace("_", "-")
        if name in NOT_IN_CONFIG or value is None:
            continue
        if isinstance(value, bool):
            lines.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            lines.append(f"{flag}={value}")
    return "\n".join(lines) + "\n"
