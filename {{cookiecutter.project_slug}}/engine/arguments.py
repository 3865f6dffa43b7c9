"""Options: argparse with errors of one line, the options that tasks share, config.txt."""

import argparse
import difflib
import io
import itertools
import os
import re
import sys
from argparse import BooleanOptionalAction
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any, NoReturn

from engine import terminal
from engine.checkpoint import find_checkpoint
from engine.data.splits import read_fold
from engine.data.stored import MODES, parse_axes
from engine.devices import PRECISIONS
from engine.errors import LAUNCHED, BadInput, shorten
from engine.modules import PARALLEL
from engine.optimizers import OPTIMIZERS, SCHEDULES
from engine.text import decode, encoding_problem, printable

HUGE = 1e38  # as large as a float32 can be
VAL_SHARE = 0.1  # by default
NOT_IN_CONFIG = ("run_dir", "resume", "quiet")  # a repeated run gets a folder of its own


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes `@config.txt` and prints an error as one line, status 2."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)
        self._given: list[str] = []

    def _words(self, lines: list[str]) -> Iterator[str]:
        """The arguments in the lines of a config file; `#` starts a comment line.

        `--name=value` is one, blanks and all, and so is a value below its name. `--name value`, as
        people write it by hand, are two.
        """
        flags = self._option_string_actions
        waiting = False  # for the value of the line above
        for line in lines:
            word = line.lstrip() if line.lstrip().startswith(("--", "#")) else line
            name, _, value = word.partition(" ")
            value = value.strip()
            takes_value = name in flags and flags[name].nargs is None
            is_off = word.rstrip().replace("--no-", "--", 1) in flags  # that of a store_true
            if not word.strip():
                yield from [""] * waiting
            elif takes_value and value:
                quoted = re.fullmatch(r"""(["'])(.*)\1""", value)
                yield from (name, quoted[2] if quoted else value)
            elif word.rstrip() in flags:
                yield word.rstrip()
            elif not word.startswith("#") and not is_off:
                yield word
            waiting = takes_value and not value

    def files(self) -> set[str]:
        """The names of the options whose values are files or folders, by their metavar."""
        return {a.dest for a in self._actions if a.metavar in ("FILE", "DIR", "PATH")}

    def _require_nothing(self) -> None:
        for action in self._actions:
            action.required = False

    def defaults(self) -> argparse.Namespace:
        """The defaults of all options."""
        self._require_nothing()
        return super().parse_args([])

    def read_back(self, saved: Mapping[str, Any]) -> argparse.Namespace:
        """The options that a checkpoint has saved; those that were added since by default."""
        self._require_nothing()
        self.set_defaults(**saved)
        chosen = {a.dest: saved[a.dest] for a in self._actions if a.choices and a.dest in saved}
        return super().parse_args(_config_lines(chosen))  # refuses what is a choice no more

    def check_read_back(self, opt: argparse.Namespace) -> None:
        """Raises BadInput unless config.txt and a checkpoint can hold the options."""
        options = plain(opt)
        if self._is_read_back(options, opt):
            return
        for name, value in options.items():
            if not self._is_read_back({name: value}, opt):
                raise BadInput(
                    f"options.py: {_flag(name)}: {value!r} cannot be read back from config.txt and "
                    "checkpoints; give the option a flag of its own name, let it be a text, a "
                    "number or a Path, and convert it where it is used"
                )

    def _is_read_back(self, options: Mapping[str, Any], opt: argparse.Namespace) -> bool:
        self._require_nothing()  # what is left out is of no interest here
        again = None
        with redirect_stderr(io.StringIO()), suppress(SystemExit):
            again = super().parse_args([*self._words(_split("\n".join(_config_lines(options))))])
        for name, value in options.items():
            values = value if isinstance(value, list) else [value]
            told = bool(_config_lines({name: value}))
            if told and getattr(again, name, None) != getattr(opt, name):
                return False
            if not all(isinstance(one, str | int | float | None) for one in values):
                return False
        return True

    def parse_run(self, argv: list[str] | None) -> argparse.Namespace:
        """The options of a training run; `@FILE` reads them from a config.txt.

        A resumed run takes those of its own config.txt first, and then those of the command line.
        One that torchrun has started again is resumed.

        Raises:
            BadInput: An option has a value that could not be read back when the run is resumed.
        """
        given = sys.argv[1:] if argv is None else argv
        if LAUNCHED and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
            given = [*given, "--resume"]
        if "--resume" in given:
            self._require_nothing()  # config.txt has what was required
        opt = self.parse_args(given)
        if LAUNCHED and os.environ["TORCHELASTIC_MAX_RESTARTS"] != "0" and opt.run_dir is None:
            self.error("torchrun --max-restarts needs --run-dir DIR, to go on in the same folder")
        if opt.resume and opt.run_dir is None:
            self.error("--resume needs --run-dir DIR, the folder of the run to go on with")
        if opt.resume and (config := Path(opt.run_dir) / "config.txt").exists():
            opt = self.parse_args([f"@{config}", *given])
        elif opt.resume and (config.parent / "checkpoints").is_dir():
            terminal.warn(f"{config}: no such file; options that are not given have their defaults")
        self.check_read_back(opt)
        terminal.be_quiet(opt.quiet)
        self._check_trained_weights(opt)
        if getattr(opt, "fold", None) and opt.val_share != VAL_SHARE:
            raise BadInput("--fold beside --val-share: both choose images of train/; leave one out")
        processes = int(os.environ["WORLD_SIZE"]) if LAUNCHED else 1
        opt.accumulate = opt.accumulate or processes
        return opt

    def _check_trained_weights(self, opt: argparse.Namespace) -> None:
        """Refuses what keeps the weights or statistics of a network that has not learned any."""
        imagenet = hasattr(opt, "pretrained")
        if opt.resume or opt.weights or (imagenet and opt.pretrained):
            return
        remedy = f"add --weights FILE{' or --pretrained' * imagenet}"
        for name in ("freeze", "hold_norms"):
            if getattr(opt, name):
                raise BadInput(f"{_flag(name)}: the network is not trained yet; {remedy}")
        if opt.head_epochs:
            terminal.warn(f"--head-epochs: the layers before the head are random; {remedy}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._given = sys.argv[1:] if args is None else args
        try:
            words = [*self._expand(self._given)]
        except RecursionError:
            self.error("a file given by @ names itself")
        self._refuse_empty(words)
        return super().parse_args(words, namespace)

    def _expand(self, words: Iterable[str]) -> Iterator[str]:
        """The words, with those of a file in the place of `@file`."""
        for word in words:
            if not word.startswith("@"):
                yield word
                continue
            path = Path(word[1:])
            if not path.is_file():
                raise BadInput(f"{word[1:] or '@'}: no such file{_others_beside(path)}")
            text = decode(path.read_bytes()).removeprefix("\ufeff")
            if "\0" in text or "\ufffd" in text:  # the latter for what is no text in UTF-16
                self.error(f"{path}: a file given by @ is not a config.txt")
            lines = _split(text)
            for number, line in enumerate(lines, 1):
                if problem := _other_encoding(line):
                    raise BadInput(f"{path}: line {number} {problem}")
            yield from self._expand(self._words(lines))

    def _refuse_empty(self, words: list[str]) -> None:
        """Refuses empty values, such as those of a shell's variable that is not set."""
        flags = self._option_string_actions
        for before, word in itertools.pairwise(["", *words]):
            name, is_option, value = word.partition("=")
            if not is_option or name not in flags:
                name, value = before, word
            if value.strip() or (name in flags and flags[name].default == ""):
                continue
            named = name if name in flags else "an argument"
            self.error(f"{named}: is empty; is a variable of the shell not set?")

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (--[\w-]+)", message):
            name, options = unknown[1], list(self._option_string_actions)
            near = [option for option in options if option.startswith(name)]
            near = near or difflib.get_close_matches(name, options, cutoff=0.75)
            message += f"; did you mean {' or '.join(near)}?" * bool(near)
        files = [arg[1:] for arg in self._given if arg.startswith("@")]
        if files and message.startswith("unrecognized"):
            message += f"; options, which begin with --, were read from {' and '.join(files)} too"
        line = f"{self.prog}: error: {printable(message)} (--help lists the options)"
        print(line, file=sys.stderr)
        sys.exit(2)


def _split(text: str) -> list[str]:
    """The lines of a config file; str.splitlines would cut at characters that names may have."""
    return re.split(r"\r\n|\r|\n", text)


def _other_encoding(line: str) -> str:
    """What is wrong with a line that is not in UTF-8, unless there is a file of such a name."""
    word = line.strip()
    value = re.split(r"=|\s", word, maxsplit=1)[-1] if word.startswith("--") else line
    if word.startswith("#") or os.path.exists(value):
        return ""
    return encoding_problem(value) or encoding_problem(line)


def _others_beside(path: Path) -> str:
    """The files of options in the folder of one that is missing, for a message."""
    names = sorted(other.name for other in path.parent.glob("*.txt"))
    return f"; {path.parent.as_posix()}/ has {shorten(names)}" if names and path.parent.name else ""


def number(kind: type, least: float, most: float = float("inf")) -> Callable[[str], Any]:
    """A type for add_argument: an int or a float from `least` to `most`."""

    def parse(text: str) -> Any:
        with suppress(ValueError):
            if least <= (value := kind(text)) <= min(most, HUGE):  # NaN is in no range
                return value
        what = "a whole number" if kind is int else "a number"
        limits = f"from {least:g} to {most:g}" if most < float("inf") else f"of {least:g} or more"
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} {limits}")

    return parse


def auto_or(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type for add_argument: the word auto, which gives None, or what `kind` reads."""

    def parse(text: str) -> Any:
        return None if text == "auto" else kind(text)

    return parse


def _fold(text: str) -> str:
    with suppress(ValueError):
        return "{}/{}".format(*read_fold(text))
    raise argparse.ArgumentTypeError(f"{text!r} is not K/N, as 2/5 for the second of five parts")


def _pattern(text: str) -> str:
    try:
        return re.compile(text).pattern
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


# fmt: off
def _add_machine_options(parser: argparse.ArgumentParser) -> Any:
    """Returns their group, for more of the kind."""
    group = parser.add_argument_group("machine")
    add = group.add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    add("--precision", choices=PRECISIONS, default="auto",
        help="mixed precision; auto: bf16 if the device supports it, fp16 on older GPUs")
    add("--workers", type=auto_or(number(int, 0)), metavar="N",
        help="processes that load images; 0 loads in the main process (default: auto)")
    add("--prefetch", type=number(int, 0), default=2,
        help="batches kept ready: by each worker, or on a GPU by a thread; 0 for no thread")
    return group


def _add_quiet(parser: Any) -> None:
    parser.add_argument("--quiet", action="store_true",
        help="print only warnings, errors and the last line, and show no bar")


def add_test_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every test.py has."""
    add_checkpoint_option(parser)
    add = parser.add_argument
    add("--data", metavar="DIR", help="folder with test/ (default: that of the training)")
    add("--split", choices=("test", "val", "train"), default="test", help="images to judge by")
    add("--report", metavar="DIR", help="where to write (default: report/ in the run folder)")
    add("--against", metavar="RUN", help="a tested run, or its report, to compare image by image")
    _add_quiet(parser)
    _add_machine_options(parser)


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every predict.py has."""
    parser.add_argument("paths", nargs="+", metavar="FILE_OR_DIR",
        help="images, or their folders; - reads names of files from standard input, one a line")
    add_checkpoint_option(parser, ", or an .onnx file of export.py")
    _add_quiet(parser)
    _add_machine_options(parser)


def add_checkpoint_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    """Adds `--checkpoint`; `more` is what else it may name."""
    parser.add_argument("--checkpoint", metavar="PATH", required=True, type=find_checkpoint,
        help=f"a checkpoint, or a run folder for its best.pt{more}")


def add_training_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds the options of every train.py; `defaults` are those of the task."""
    _add_run_options(parser)
    _add_optimization_options(parser)
    _add_fine_tuning_options(parser)
    _add_training_machine_options(parser)
    parser.set_defaults(**defaults)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run")
    add = group.add_argument
    add("--run-dir", metavar="DIR", help="folder of all outputs (default: runs/<date-time>)")
    add("--resume", action="store_true", help="go on from the newest good checkpoint of --run-dir")
    add("--epochs", type=number(int, 1), help="passes over the training images")
    add("--val-every", type=number(int, 1), default=1, help="epochs between two validations")
    add("--monitor", metavar="METRIC",
        help="metric of the validations that chooses best.pt (default: the model's first)")
    add("--patience", type=number(int, 0), default=0,
        help="stop after so many validations without a better one; 0 never stops early")
    add("--log-every", type=number(int, 1), default=10, help="steps between two points of a curve")
    add("--save-every", type=number(int, 1), default=500, help="steps between two checkpoints")
    add("--keep", type=number(int, 2), default=3, help="number of the newest checkpoints to keep")
    add("--overfit-one-batch", action=BooleanOptionalAction, default=False,
        help="repeat the first batch, to check a new network: its loss must keep falling")
    add("--profile", type=number(int, 0), default=0, metavar="N",
        help="write a trace of N steps to profile/ in the run folder, for Perfetto and TensorBoard")
    _add_quiet(group)


def add_data_options(group: Any) -> None:
    """Adds the options for reading, the validation split and the cache to the group of the data."""
    add_reading_options(group)
    add = group.add_argument
    add("--val-share", type=number(float, 0.001, 0.9), default=VAL_SHARE, metavar="SHARE",
        help="share of train/ to validate on if there is no val/")
    add("--fold", type=_fold, metavar="K/N",
        help="validate on the K-th of N equal parts of train/ (see tools.folds)")
    add("--group", type=_pattern, metavar="REGEX",
        help="images in whose path below --data it finds the same text stay on one side")
    add("--cache", nargs="?", const="on", default="auto", metavar="WHERE",
        help="keep the decoded images in a file: auto, if they fit into memory, or on: beside the "
        "data; off; or a folder for it")
    add("--no-cache", dest="cache", action="store_const", const="off", default=argparse.SUPPRESS,
        help="as --cache off")


def add_reading_options(group: Any) -> None:
    """Adds the options for the depth and the channels of images; see complete_reading."""
    add = group.add_argument
    add("--images", choices=MODES,
        help="rgb: as RGB of 8 bits; stored: with the channels and the depth of the files, uint8, "
        "uint16 or float32 (default: as dataset.json says, else rgb)")
    add("--axes", type=parse_axes, metavar="LETTERS",
        help="with --images stored, what the axes of TIFF and .npy files are, where these do not "
        "tell: Y, X, and others, which become channels, as in CYX")


def complete_reading(opt: argparse.Namespace, described: Mapping[str, Any]) -> None:
    """Fills in the options of add_reading_options from what dataset.json says.

    Raises:
        BadInput: It says something that is no value of these, or `--axes` has no effect.
    """
    opt.images = opt.images or described.get("images")
    if opt.images not in (None, *MODES):
        raise BadInput(f"dataset.json: images is {opt.images!r}, and can be {' or '.join(MODES)}")
    if opt.images == "stored" and opt.axes is None and "axes" in described:
        try:
            opt.axes = parse_axes(str(described["axes"]))
        except argparse.ArgumentTypeError as error:
            raise BadInput(f"dataset.json: axes: {error}") from None
    if opt.axes is not None and opt.images != "stored":
        raise BadInput(f"--axes {opt.axes}: is for --images stored; add that")


def _add_optimization_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimization").add_argument
    add("--batch-size", type=number(int, 1), help="images in a batch")
    add("--accumulate", type=number(int, 1), metavar="N",
        help="batches in a step, of all processes together; their gradients are averaged, as if "
        "one batch had N times the images (default: one for each process of torchrun)")
    add("--optimizer", choices=OPTIMIZERS, help="optimizer of every network")
    add("--lr", type=number(float, 0), help="highest learning rate")
    add("--momentum", type=number(float, 0, 0.9999), default=0.9,
        help="of SGD, with Nesterov's look ahead; beta 1 of Adam")
    add("--weight-decay", type=number(float, 0), help="weight decay, not of norms and biases")
    add("--ema", type=number(float, 0, 0.99999), default=0.0, metavar="DECAY",
        help="judge an exponential moving average of the weights, .999 say; 0 for none")
    add("--schedule", choices=SCHEDULES, help="schedule of the learning rate after the warm-up")
    add("--warmup", type=number(float, 0, 1), default=0.05,
        help="share of all steps in which the learning rate rises")
    add("--clip-grad", type=number(float, 0), default=0.0,
        help="highest norm of the gradient; 0 does not limit it")
    add("--seed", type=number(int, 0), default=0, help="seed of everything random")


def _add_fine_tuning_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("start from trained weights").add_argument
    add("--weights", metavar="PATH",
        help="a run folder, its checkpoint, or a state dict (.pt, .safetensors) to start from; "
        "parts that do not fit start at random")
    add("--freeze", action=BooleanOptionalAction, default=False,
        help="train only the last layer of each network")
    add("--head-epochs", type=number(int, 0), default=0, metavar="N",
        help="epochs at the beginning in which the last layer alone is trained")
    add("--hold-norms", action=BooleanOptionalAction, default=False,
        help="keep the statistics of batch norm as they are in the weights")
    add("--layer-decay", type=number(float, 0.01, 1), default=1.0, metavar="FACTOR",
        help="the learning rate of each layer, over that of the next one")


def _add_training_machine_options(parser: argparse.ArgumentParser) -> None:
    add = _add_machine_options(parser).add_argument
    add("--threads", type=auto_or(number(int, 1)), metavar="N",
        help="CPU threads of each process (default: auto, its share of the cores)")
    add("--parallel", choices=PARALLEL, default="auto",
        help="without torchrun, divide each batch between the GPUs, for each network (split) or "
        "for networks and losses together (super)")
    add("--compile", action=BooleanOptionalAction, default=False,
        help="compile the networks with torch.compile, which takes a while")
    add("--deterministic", action=BooleanOptionalAction, default=False,
        help="on CUDA too the same bits in every run, at some cost of speed")
# fmt: on


def config_text(opt: argparse.Namespace, path: Path) -> str:
    """The options, one to a line, in the form that `@path` reads back from the file `path`."""
    head = "# The options of this run. To repeat it: python train.py @" + path.as_posix()
    return "\n".join([head, *_config_lines(vars(opt))]) + "\n"


def _config_lines(options: Mapping[str, Any]) -> list[str]:
    """Options as lines, each an argument: `--name=value`, `--flag`, or a list below its name."""
    lines: list[str] = []
    for name, value in sorted(options.items()):
        flag = _flag(name)
        if name in NOT_IN_CONFIG or value is None:
            continue
        if isinstance(value, bool):
            lines.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            lines += [flag, *map(str, value)]
        else:
            lines.append(f"{flag}={value}")
    return lines


def plain(opt: argparse.Namespace) -> dict[str, Any]:
    """The options as a checkpoint holds them: a Path as its text."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(opt).items()
    }


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
