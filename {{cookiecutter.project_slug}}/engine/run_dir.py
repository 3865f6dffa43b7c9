"""The folder of a run: its options, its environment, its checkpoints, its lock."""

import errno
import os
import platform
import shlex
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torchvision
from filelock import FileLock, Timeout

from engine import terminal
from engine.arguments import config_text
from engine.checkpoint import Checkpoints, write_atomically
from engine.data.contents import Files
from engine.data.files import SPLITS
from engine.data.sampler import Samples
from engine.data.source import code_digests
from engine.devices import gpu_names, processor
from engine.distributed import ALONE, World
from engine.errors import (
    DONE,
    FAULT,
    LAUNCHED,
    OUTPUT_CLOSED,
    PROJECT,
    STOPPED,
    BadInput,
    Diverged,
    Fault,
    StopSignal,
    Unsound,
    explain,
)
from engine.state import VIEW, WEIGHTS, TrainState
from engine.weights import digest_of_weights

OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # as in a hook of git
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class RunDir:
    """The folder of a run, `opt.run_dir`, or else runs/ and the time. Process 0 alone writes.

    A context manager. On entry it makes the folder, locks it and writes config.txt, environment.txt
    and files.jsonl; on exit it waits for the last checkpoint and releases the lock. The lock of a
    process that is killed is released by the system.

    Raises:
        BadInput: The folder holds a run and `--resume` was not given, another process uses it, or
            it cannot be made or written to.
    """

    def __init__(self, opt: Namespace, world: World = ALONE) -> None:
        self.opt, self.world = opt, world
        self.writes = world.rank == 0
        self.files: Files | None = None
        self.weights = ""  # a digest of those to start from
        self.has_test: bool | None = None  # whether there are test images, if the data set says it
        self.notes: dict[str, str] = {}  # what else environment.txt tells of this start
        self.lockable = True
        self._use(opt.run_dir or _unused_name())
        inside = [Path(opt.data, split).resolve() for split in SPLITS]
        if any(self.path.resolve().is_relative_to(split) for split in inside):
            raise BadInput(
                f"--run-dir {self.path}: lies among the images of --data, which its pictures are "
                "not; name another folder"
            )
        if not self.writes:
            return
        if any(self.checkpoints.folder.glob("*.pt")) and not opt.resume:
            raise BadInput(
                f"--run-dir {self.path}: holds a run already; add --resume or name another"
            )
        if self.path.is_dir():
            self._open()  # so a second process is refused at once
            self.lock.release()  # an error before the run begins must not leave it locked

    def _use(self, name: str) -> None:
        self.path = Path(name)
        self.checkpoints = Checkpoints(self.path / "checkpoints", self.opt.keep, self.world)
        self.lock = FileLock(self.path / ".lock", blocking=False)

    def _open(self) -> None:
        """Makes the folder unless it is there, and locks it."""
        new = not self.path.exists()
        try:
            self._make_folder()
            if not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if self.lockable and not _can_lock(self.path / ".lock"):
                self.lockable = False
                warning = "cannot be locked on this file system: start no second process in it"
                terminal.warn(f"{self.path}: {warning}")
            if self.lockable:
                self.lock.acquire()
        except Timeout:
            raise BadInput(
                f"--run-dir {self.path}: another process is running in it; wait, or name another"
            ) from None
        except OSError as error:
            if new:
                with suppress(OSError):
                    (self.path / ".lock").unlink(missing_ok=True)
                    self.path.rmdir()
            problem = f"--run-dir {self.path}: {error.strerror}; name another folder"
            raise BadInput(problem) from None

    def _make_folder(self) -> None:
        while True:
            try:
                return self.path.mkdir(parents=True, exist_ok=bool(self.opt.run_dir))
            except FileExistsError:  # another run without a name began in the same second
                if self.opt.run_dir:
                    raise
                self._use(_unused_name())

    def note_files(self, train_set: Samples, val_set: Samples) -> dict[str, Any]:
        """Notes the images of this start, how validation sees them, the weights to start from.

        Returns what `environment` holds of them and the code.
        """
        self.has_test = getattr(train_set, "has_test", None)
        if self.writes:
            self.files = Files(self.path, train_set, val_set)
        facts = self.world.broadcast(lambda: self.files.facts() if self.files else {})
        if digest := self.world.broadcast(lambda: digest_of_weights(self.opt.weights)):
            self.weights = facts[WEIGHTS] = digest
        if view := getattr(val_set, "view", ""):
            facts[VIEW] = view
        return {**facts, "code": code_digests(), "git commit": git_commit()}

    def changed_files(self, before: dict[str, Any]) -> dict[str, str]:
        """What of the images has changed since the environment `before`: see contents.compare."""
        return self.world.broadcast(lambda: self.files.changes(before) if self.files else {})

    def __enter__(self) -> "RunDir":
        if not self.writes:
            return self
        self._open()
        self.checkpoints.clean()
        _write(self.path / "config.txt", config_text(self.opt, self.path / "config.txt"))
        path = self.path / "environment.txt"  # a block for each start
        earlier = os.fsdecode(path.read_bytes()) + "\n" if path.exists() else ""
        facts = {**environment(), **self.notes}
        facts["resumed after step"] = str(self.checkpoints.resumed_after)
        if self.weights and not self.checkpoints.resumed_after:
            facts[WEIGHTS] = f"{self.weights} {self.opt.weights}"
        _write(path, earlier + "".join(f"{name}: {value}\n" for name, value in facts.items()))
        if self.files is not None:
            self.files.write(_write)
            self.files = None  # it takes memory
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.checkpoints.wait()
        finally:
            self.lock.release()
        if isinstance(error, Diverged) and self.checkpoints.last.exists():
            error.args = (f"{error}; the last good checkpoint is {self.checkpoints.last}",)

    @contextmanager
    def saving(self, state: TrainState) -> Iterator[None]:
        """A context manager for training, which saves a step if the machine or a file fails.

        That is for process 0 alone, as another one may be gone, and only for faults of loading:
        one of the connection may come when a step is done and not yet recorded.
        """
        try:
            yield
        except (BadInput, OSError, Fault, RuntimeError) as error:
            known = explain(error)
            if known is None or isinstance(error, Unsound):
                raise
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise  # perhaps in the middle of a step
            saved = ""
            if self.writes and state.n_iter:
                with suppress(Exception):  # then the first error is the one to tell
                    self.checkpoints.save(state, alone=True)
                    self.checkpoints.wait()
                    saved = f"; saved step {state.n_iter}"
            told, kind = str(known[0]), Fault if known[1] == FAULT else BadInput
            if kind is BadInput and not saved:
                raise  # a mistake at the beginning, after which nothing is to go on with
            how = "" if "--resume" in told else f"; go on with: {self.resume_command()}"
            raise kind(f"{told}{saved}{how}") from error

    def describe(self, state: TrainState) -> str:
        """The text printed before the first step: device, batches, folder, how to resume."""
        opt, facts = self.opt, state.environment
        how = [facts["device"], facts.get("GPUs"), facts["precision"]]
        if threads := facts.get("threads"):
            how.append(f"{threads} thread{'s' * (threads > 1)}")
        step = f"a batch of {opt.batch_size} images"
        if opt.accumulate > 1:
            images = opt.accumulate * opt.batch_size
            step = f"{opt.accumulate} micro-batches of {opt.batch_size} = {images} images"
        step += f", on {self.world.size} processes" if self.world.size > 1 else ""
        return (
            f"device: {', '.join(filter(None, how))}\n"
            f"step: {step}; {state.steps_per_epoch:,} steps an epoch, {state.total:,} in all\n"
            f"run: {self.path} (Ctrl-C saves and stops)\n"
            f"resume: {self.resume_command()}"
        )

    def resume_command(self) -> str:
        """The command that resumes this run on as many processes; other numbers do as well."""
        start, size = "python", str(self.world.size)
        if LAUNCHED:
            one_machine = os.environ["LOCAL_WORLD_SIZE"] == size
            words = f"--standalone --nproc-per-node {size}" if one_machine else "..."
            start = f"torchrun {words}"
        folder = shlex.quote(self.path.as_posix())
        return f"{start} {_path_to('train.py')} --run-dir {folder} --resume"

    def finish(self, state: TrainState, stop: StopSignal) -> int:
        """Reports how the run ended; returns its exit status."""
        self.checkpoints.when_written()  # what the logger has to tell
        if not state.is_over():
            saved = f"saved step {state.n_iter} as {self.checkpoints.last}"
            if stop.received == OUTPUT_CLOSED:  # so this is printed to stderr, as one line
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
        folders = (data / "train").is_dir()  # else the data set alone knows its splits
        there = (data / "test").is_dir() or not folders
        test += " --split val" * (not (there if self.has_test is None else self.has_test))
        terminal.conclude(f"done{early}: {found}", test)
        return DONE


def _can_lock(path: Path) -> bool:
    """Whether the file system has locks; filelock would make a marker, which outlives a kill."""
    try:
        import fcntl

        with open(path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except ImportError:  # Windows
        return True
    except OSError as error:  # any other one is for filelock: that another process has the lock
        return error.errno not in NO_LOCKS
    return True


def _path_to(program: str) -> Path:
    """The path of a program of the project, from the current folder if that is above it."""
    path = PROJECT / program
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(os.fsencode(text)))


def _unused_name() -> str:
    name = time.strftime("runs/%Y-%m-%d_%H-%M-%S")
    ends = ["", *(f"-{i}" for i in range(2, 100))]
    return next(name + end for end in ends if not Path(name + end).exists())


def git_commit(folder: Path = PROJECT) -> str:
    """The commit of the code in a folder, with `-dirty` if files have changed since.

    It is `none` without a commit, or if the repository around the folder does not track its files.
    """
    env = {name: text for name, text in os.environ.items() if name not in OTHER_REPOSITORY}
    how: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "timeout": 10}

    def git(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["git", "-C", folder, *words], env={**env, "LC_ALL": "C"}, **how)

    try:
        tracked = git("ls-files", "--", "*.py")
        if "dubious ownership" in tracked.stderr:
            return "unknown (git: dubious ownership)"
        if not tracked.stdout.strip():
            return "none"
        described = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        return described.stdout.strip() or "none"
    except OSError:
        return "unknown (no git)"
    except subprocess.TimeoutExpired:
        return "unknown (git does not answer)"


def environment() -> dict[str, str]:
    """What the result of a run may depend on, as text for a file."""
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
