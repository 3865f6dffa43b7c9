"""The folder of a run: its options, its environment, its checkpoints, its lock."""

import errno
import inspect
import os
import platform
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torchvision
from filelock import FileLock, Timeout

from engine import terminal
from engine.arguments import config_text
from engine.checkpoint import Checkpoints, write_atomically
from engine.data.cache import CachedImages, images_of
from engine.devices import gpu_names, processor
from engine.distributed import ALONE, World
from engine.errors import (
    DONE,
    LAUNCHED,
    OUTPUT_CLOSED,
    PROJECT,
    STOPPED,
    BadInput,
    Diverged,
    StopSignal,
)
from engine.report.records import run_folder
from engine.state import TrainState

OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # as in a hook of git
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
# Never by a marker file instead, which would outlive a process that is killed.
HAS_FALLBACK = "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters
HOW_TO_LOCK: dict[str, Any] = {"fallback_to_soft": False} if HAS_FALLBACK else {}
FILES = "files.jsonl"  # in a run folder: the training images, as cache.CachedImages.records


class RunDir:
    """The folder of a run: runs/ and the time, unless it is named.

    A context manager. Its beginning makes the folder, locks it and writes config.txt,
    environment.txt and files.jsonl; its end waits for the last checkpoint and releases the lock,
    which the system does as well for a process that is killed.

    Args:
        opt: The options; `run_dir` is the folder, and `resume` allows it to hold a run already.
        world: The processes of the run, of which the first one alone writes.

    Raises:
        BadInput: The folder holds a run and `--resume` was not given, another process uses it, or
            it cannot be made.
    """

    def __init__(self, opt: Namespace, world: World = ALONE) -> None:
        self.opt, self.world = opt, world
        self.writes = world.rank == 0
        self.images: list[CachedImages] = []
        self.problem = ""  # of the records, not told yet
        self.lockable = True
        self._use(opt.run_dir or _unused_name())
        if not self.writes:
            return
        if any(self.checkpoints.folder.glob("*.pt")) and not opt.resume:
            raise BadInput(
                f"--run-dir {self.path}: holds a run already; add --resume or name another"
            )
        if self.path.is_dir():
            self._lock()
            self.lock.release()  # taken again at the beginning of the run

    def _use(self, name: str) -> None:
        self.path = Path(name)
        self.checkpoints = Checkpoints(self.path / "checkpoints", self.opt.keep, self.world)
        self.lock = FileLock(self.path / ".lock", blocking=False, **HOW_TO_LOCK)

    def _lock(self) -> None:
        if not self.lockable:
            return
        try:
            self.lock.acquire()
        except (NotImplementedError, OSError) as error:  # Timeout is an OSError
            self.lockable = _can_lock(self.path / ".lock", error)
            if not self.lockable:
                warning = "cannot be locked on this file system: start no second process in it"
                print(f"warning: {self.path}: {warning}", file=sys.stderr)
            elif isinstance(error, Timeout):
                raise BadInput(
                    f"--run-dir {self.path}: another process is running in it; wait, or name "
                    "another"
                ) from None
            else:
                raise

    def note_files(self, train_set: Any) -> None:
        """Lets files.jsonl tell later which training images have changed, if they are files."""
        self.images = images_of(train_set)

    def __enter__(self) -> "RunDir":
        if not self.writes:
            return self
        new = not self.path.exists()
        try:
            if self.opt.run_dir:
                self.path.mkdir(parents=True, exist_ok=True)
            else:
                self._claim()
            self._lock()
        except OSError as error:
            if new:
                with suppress(OSError):
                    (self.path / ".lock").unlink(missing_ok=True)
                    self.path.rmdir()
            raise BadInput(
                f"--run-dir {self.path}: {error.strerror}; name another folder"
            ) from None
        self.checkpoints.clean()
        _write(self.path / "config.txt", config_text(self.opt, self.path / "config.txt"))
        facts = self.path / "environment.txt"  # a block for each start
        earlier = os.fsdecode(facts.read_bytes()) + "\n" if facts.exists() else ""
        _write(facts, earlier + self._environment())
        if self.images:
            records = chain.from_iterable(images.records() for images in self.images)
            _write_if_new(self.path / FILES, "".join(records))
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.checkpoints.wait()
        finally:
            self.lock.release()
        if isinstance(error, Diverged) and self.checkpoints.last.exists():
            error.args = (f"{error}; the last good checkpoint is {self.checkpoints.last}",)

    def _claim(self) -> None:
        """Makes the folder of a run without a name; one begun in the same second gets another."""
        while True:
            try:
                return self.path.mkdir(parents=True)
            except FileExistsError:
                self._use(_unused_name())

    def _environment(self) -> str:
        facts = {**environment(), "resumed after step": self.checkpoints.resumed_after}
        return "".join(f"{name}: {value}\n" for name, value in facts.items())

    def describe(self, state: TrainState) -> str:
        """What is printed before the first step: how the run computes, and how it is resumed."""
        opt, facts = self.opt, state.environment
        threads = facts.get("threads")
        how = [facts["device"], facts.get("GPUs"), facts["precision"]]
        how += [f"{threads} thread{'s' * (threads > 1)}"] if threads else []
        step = f"a batch of {opt.batch_size} images"
        if opt.accumulate > 1:
            images = opt.accumulate * opt.batch_size
            step = f"{opt.accumulate} micro-batches of {opt.batch_size} = {images} images"
        if self.world.size > 1:
            step += f", on {self.world.size} processes"
        return (
            f"device: {', '.join(filter(None, how))}\n"
            f"step: {step}; {state.steps_per_epoch:,} steps an epoch, {state.total:,} in all\n"
            f"run: {self.path} (Ctrl-C saves and stops)\n"
            f"resume: {self.resume_command()}"
        )

    def resume_command(self) -> str:
        """The command that goes on with this run; it may as well be another number of processes."""
        start, size = "python", self.world.size
        if LAUNCHED:
            one_machine = os.environ["LOCAL_WORLD_SIZE"] == str(size)
            options = f"--standalone --nproc-per-node {size}" if one_machine else "..."
            start = f"torchrun {options}"
        folder = shlex.quote(self.path.as_posix())
        return f"{start} {_path_to('train.py')} --run-dir {folder} --resume"

    def tell_problem(self) -> None:
        """Warns of what is wrong with the records, if something is.

        Called when a checkpoint is written: before that, the disk may be full for it as well, and
        then the run ends with a line that says so.
        """
        problem, self.problem = self.problem, ""
        if problem:
            terminal.warn(problem)

    def finish(self, state: TrainState, stop: StopSignal) -> int:
        """Reports how the run ended; returns its exit status."""
        self.tell_problem()
        if not state.is_over():
            saved = f"saved step {state.n_iter} as {self.checkpoints.last}"
            if stop.received == OUTPUT_CLOSED:  # so this goes elsewhere, and is one line
                saved = f"standard output was closed; {saved}"
                terminal.warn(f"{saved}; go on with: {self.resume_command()}")
            else:
                terminal.conclude(f"{stop.received}: {saved}", self.resume_command())
            return STOPPED
        early = " early (--patience)" if state.n_iter < state.total else ""
        found = f"best {state.monitor} {state.best:.4g} on the validation images"
        found += f", in {terminal.duration(state.seconds)}"
        best = shlex.quote(self.checkpoints.best.as_posix())
        test = f"python {_path_to('test.py')} --checkpoint {best}"
        data = Path(self.opt.data)
        test += " --split val" * (data.is_dir() and not (data / "test").is_dir())
        terminal.conclude(f"done{early}: {found}", test)
        return DONE


def _can_lock(path: Path, error: Exception) -> bool:
    """Whether a file can be locked, after an error of filelock.

    Old versions of it take a file system without locks for a lock that is held, unless it says so
    by ENOSYS.
    """
    if isinstance(error, Timeout):
        try:
            import fcntl

            with open(path) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except ImportError:  # Windows
            return True
        except OSError as found:
            return found.errno not in NO_LOCKS
    return not isinstance(error, NotImplementedError) and getattr(error, "errno", 0) not in NO_LOCKS


def report_dir(named: str | None, checkpoint: str, name: str = "report") -> Path:
    """Makes the folder for a report on a checkpoint: the one named, or `name` in that of the run.

    A checkpoint that was moved out of its run folder gets its report beside it.
    """
    report = Path(named) if named else run_folder(checkpoint) / name
    report.mkdir(parents=True, exist_ok=True)
    return _from_here(report)


def _path_to(program: str) -> Path:
    """The path of a program of the project."""
    return _from_here(Path(__file__).parents[1] / program)


def _from_here(path: Path) -> Path:
    """The same path, from the current folder if it is below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(os.fsencode(text)))


def _write_if_new(path: Path, text: str) -> None:
    """Writes a file that is large, and the same at most starts."""
    if not path.exists() or path.read_bytes() != os.fsencode(text):
        _write(path, text)


def _unused_name() -> str:
    name = time.strftime("runs/%Y-%m-%d_%H-%M-%S")
    taken = [""] + [f"-{i}" for i in range(2, 100)]
    return next(name + end for end in taken if not Path(name + end).exists())


def git_commit(folder: Path = PROJECT) -> str:
    """The commit of the code in a folder, with `-dirty` if files have changed since.

    Whatever folder a program is started from. A repository around it that does not have its files
    says nothing about them: then, and without any commit, it is `none`.
    """
    env = {name: text for name, text in os.environ.items() if name not in OTHER_REPOSITORY}

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        how: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace"}
        done = subprocess.run(command, timeout=10, env={**env, "LC_ALL": "C"}, **how)
        if "dubious ownership" in done.stderr:
            raise PermissionError("git: dubious ownership")
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", "*.py"):
            return "none"
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "none"
    except PermissionError as error:
        return f"unknown ({error})"
    except OSError:
        return "unknown (no git)"
    except subprocess.TimeoutExpired:
        return "unknown (git does not answer)"


def environment() -> dict[str, str]:
    """What the result of a run may depend on, for whoever has to explain it later."""
    return {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "gpus": gpu_names() or "none",
        "git commit": git_commit(),
    }
