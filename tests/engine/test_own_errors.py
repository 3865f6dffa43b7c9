"""An error of the system in the owner's code names the file and the line of that code."""

from pathlib import Path

import pytest
import torch
from conftest import Train
from programs import status
from torch import Tensor
from torch.utils.data import Dataset

from engine.checkpoint import write_atomically
from engine.data.loader import Loader
from engine.data.sampler import EvalBatchSampler

HERE = "tests/engine/test_own_errors.py"


def read_labels(*anything: object) -> None:
    Path("labels.csv").read_text()


READS = f"{HERE}:{read_labels.__code__.co_firstlineno + 1}"


class Labels(Dataset):
    """A data set that reads a table with each sample."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        read_labels()
        return torch.zeros(1)


def load(workers: int) -> int:
    loader = Loader(Labels(), EvalBatchSampler(2, 1), torch.device("cpu"), workers, prefetch=0)
    with loader, loader.batches() as batches:
        list(batches)
    return 0


def test_the_line_of_the_owners_code(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dataset.train_and_val", read_labels)
    assert train("run") == 1
    error = capsys.readouterr().err
    assert error == f"train.py: error: {READS}: labels.csv: No such file or directory\n"


@pytest.mark.parametrize("workers", [0, 1])
def test_also_in_a_worker(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(lambda: load(workers), "train.py") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"train.py: error: {READS}: ") and "labels.csv" in error
    assert "No such file or directory" in error and error.count("\n") == 1


def test_one_in_the_machinery_names_its_file_alone(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(opt: object) -> None:
        write_atomically(Path("nowhere/file"), lambda file: None)

    monkeypatch.setattr("dataset.train_and_val", write)
    assert train("run") == 1
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: nowhere/") and error.count("\n") == 1


def test_the_traceback_is_printed_on_demand(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dataset.train_and_val", read_labels)
    monkeypatch.setenv("PROJECT_TRACEBACK", "1")
    assert train("run") == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):\n")
    assert 'Path("labels.csv").read_text()' in error
    assert error.endswith("labels.csv: No such file or directory\n")
