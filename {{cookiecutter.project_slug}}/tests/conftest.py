"""What all tests share: the number of threads, a tiny data set, one short trained run."""

import contextlib
import gc
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# For the tests and the processes that they start, unless it is set; "" leaves it to PyTorch.
if not os.environ.setdefault("OMP_NUM_THREADS", "1"):
    del os.environ["OMP_NUM_THREADS"]

import example
import programs
import pytest
from parts import Parts

import train as program
from engine.errors import STOP_SIGNALS

signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C is for pytest again
# Where workers come from a fork server, that imports what they need once, and not each of them.
multiprocessing.set_forkserver_preload(["train"])

Train = Callable[..., int]
Build = Callable[..., Parts]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `--data`; tests read it and leave it as it is."""
    folder = tmp_path_factory.mktemp("images")
    example.make_data(folder)
    return folder


@pytest.fixture(scope="session")
def small(images: Path) -> list[str]:
    """The options of a run that takes a fraction of a second."""
    return [f"--data={images}", "--device=cpu", "--workers=0", *example.SMALL]


@pytest.fixture(scope="session")
def train(small: list[str]) -> Train:
    """Runs train.py in the folder `run`, with more options, and returns its exit status."""

    def train(run: Path | str, *options: str) -> int:
        return programs.status(program.main, "train.py", *small, f"--run-dir={run}", *options)

    return train


@pytest.fixture
def build(small: list[str]) -> Iterator[Build]:
    """Makes the data sets, the model and the optimizers of a run, without the run."""
    with contextlib.ExitStack() as loaders:

        def build(*options: str) -> Parts:
            return loaders.enter_context(Parts([*small, *options]))

        yield build


@pytest.fixture(scope="session")
def finished(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that came to its end; tests read it and leave it as it is."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert train(run) == 0
    return run


@pytest.fixture
def spoiled(images: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set, to be spoiled."""
    ignore = shutil.ignore_patterns(".cache")
    return shutil.copytree(images, tmp_path / "spoiled", ignore=ignore)


@pytest.fixture
def checkpoint(finished: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint, to be spoiled."""
    return Path(shutil.copy(finished / "checkpoints" / "last.pt", tmp_path / "copy.pt"))


@pytest.fixture(scope="session", autouse=True)
def last_resort() -> Iterator[None]:
    """Lets pytest end, whatever a failed test has left behind."""
    yield
    for child in multiprocessing.active_children():
        child.kill()


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for each test, in which it may write; signals are handled again as before."""
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    if multiprocessing.active_children():
        gc.collect()  # ends the worker processes of loaders that are no longer used
