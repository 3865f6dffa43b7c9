"""The folder of a run: its options, its surroundings, its curves."""

import json
import platform
import subprocess
import time
from argparse import Namespace
from pathlib import Path

import torch
import torchvision
from tensorboardX import SummaryWriter
from torch import Tensor

from engine.arguments import write_config
from engine.checkpoint import Checkpoints, write_atomically
from engine.errors import BadInput


class RunFolder:
    """Makes the run folder and writes config.txt and environment.txt into it.

    Args:
        opt: The options; `run` is the folder (default: runs/ and the time), `resume` allows it
            to hold a run already.

    Raises:
        BadInput: The folder holds a run and `--resume` was not given, or cannot be made.
    """

    def __init__(self, opt: Namespace) -> None:
        self.path = Path(opt.run or _unused_name())
        if (self.path / "config.txt").exists() and not opt.resume:
            raise BadInput(f"--run {self.path}: holds a run already; add --resume or name another")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_config(opt, self.path / "config.txt")
            (self.path / "environment.txt").write_text(_environment(), encoding="utf-8")
        except OSError as error:
            raise BadInput(f"--run {self.path}: {error.strerror}; name another folder") from None
        self.checkpoints = Checkpoints(self.path / "checkpoints", opt.keep)
        self.metrics = self.path / "metrics.jsonl"

    def open_log(self, n_iter: int, tested: int) -> None:
        """Starts the log at step `n_iter`, the last test pass having been after step `tested`.

        What an interrupted run logged beyond that will be logged again, and is dropped.
        """
        if self.metrics.exists():
            points = map(json.loads, self.metrics.read_text(encoding="utf-8").splitlines())
            kept = [
                p for p in points if p["n_iter"] <= (tested if p["split"] == "test" else n_iter)
            ]
            text = "".join(json.dumps(point) + "\n" for point in kept)
            write_atomically(self.metrics, lambda file: file.write(text.encode()))
        # purge_step hides the same points from TensorBoard, which cannot forget them.
        self.writer = SummaryWriter(str(self.path), purge_step=n_iter + 1 if n_iter else None)

    def log(self, n_iter: int, epoch: int, split: str, values: dict[str, float]) -> None:
        """Adds a point to the curves: TensorBoard scalars `split/name`, a line of metrics.jsonl."""
        point = {"n_iter": n_iter, "epoch": epoch, "split": split, "values": values}
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")
        for name, value in values.items():
            self.writer.add_scalar(f"{split}/{name}", value, n_iter)

    def show(self, n_iter: int, name: str, picture: Tensor) -> None:
        """Adds a picture, uint8 of shape (3, H, W), to TensorBoard."""
        self.writer.add_image(name, picture.cpu().numpy(), n_iter)


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
