"""The folder of a run: its options, its surroundings, its checkpoints."""

import os
import platform
import subprocess
import time
from argparse import Namespace
from pathlib import Path

import torch
import torchvision

from engine.arguments import config_text
from engine.checkpoint import Checkpoints, write_atomically
from engine.errors import BadInput


class RunFolder:
    """The folder of a run: runs/ and the time, unless it is named.

    Args:
        opt: The options; `run` is the folder, and `resume` allows it to hold a run already.

    Raises:
        BadInput: The folder holds a run and `--resume` was not given.
    """

    def __init__(self, opt: Namespace) -> None:
        self.keep = opt.keep
        self._use(opt.run or _unused_name())
        if any(self.checkpoints.folder.glob("*.pt")) and not opt.resume:
            raise BadInput(f"--run {self.path}: holds a run already; add --resume or name another")

    def _use(self, name: str) -> None:
        self.path = Path(name)
        self.checkpoints = Checkpoints(self.path / "checkpoints", self.keep)

    def describe(self, opt: Namespace) -> None:
        """Makes the folder, with config.txt, which repeats the run, and environment.txt.

        Raises:
            BadInput: The folder cannot be made.
        """
        try:
            if opt.run:
                self.path.mkdir(parents=True, exist_ok=True)
            else:
                self._claim()
        except OSError as error:
            raise BadInput(f"--run {self.path}: {error.strerror}; name another folder") from None
        _write(self.path / "config.txt", config_text(opt, self.path / "config.txt"))
        _write(self.path / "environment.txt", _environment())
        print(f"run: {self.path}", flush=True)

    def _claim(self) -> None:
        """Makes the folder of a run without a name; one begun in the same second gets another."""
        while True:
            try:
                return self.path.mkdir(parents=True)
            except FileExistsError:
                self._use(_unused_name())


def report_folder(named: str | None, checkpoint: str) -> Path:
    """The folder for a report on a checkpoint, which is made: the one named, or that of the run.

    A checkpoint that was moved out of its run folder gets its report beside it.
    """
    folder = Path(checkpoint).absolute().parent
    run = folder.parent if folder.name == "checkpoints" else folder
    report = Path(named) if named else run / "report"
    report.mkdir(parents=True, exist_ok=True)
    return report


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(os.fsencode(text)))


def _unused_name() -> str:
    name = time.strftime("runs/%Y-%m-%d_%H-%M-%S")
    taken = [""] + [f"-{i}" for i in range(2, 100)]
    return next(name + end for end in taken if not Path(name + end).exists())


def _environment() -> str:
    """What the result of a run may depend on, for the one who has to explain it later."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(git, capture_output=True, text=True, timeout=10, check=False)
        commit = answer.stdout.strip() or "none"
    except (OSError, subprocess.TimeoutExpired):
        commit = "unknown (no git)"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "gpus": ", ".join(gpus) or "none",
        "git commit": commit,
    }
    return "".join(f"{name}: {value}\n" for name, value in facts.items())
