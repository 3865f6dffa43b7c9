"""Nothing that was saved is lost, and nothing that is damaged is used."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from conftest import Build, Train
from needs import needs
from programs import last, resume, same_weights, saved_steps, status, tensors

import test
from engine.checkpoint import Checkpoints, find_checkpoint, load, write_atomically
from engine.errors import BadInput, Fault


class Evil:
    """Writes a file when it is unpickled without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("evil.txt"), "gotcha")


class Content(dict):
    """The content of a checkpoint, to be saved."""

    def state_dict(self) -> dict[str, Any]:
        return self

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        self.update(state)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoiled."""
    return shutil.copytree(finished, tmp_path / "spoiled")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    largest = max(tensors(load(path)).values(), key=torch.numel)
    content[content.index(bytes(largest.untyped_storage())) + 5] ^= 1
    path.write_bytes(content)


def newest_file(run: Path) -> Path:
    return run / "checkpoints" / f"iter-{saved_steps(run)[-1]:09d}.pt"


def test_a_checkpoint_is_tensors_and_plain_values(finished: Path, build: Build) -> None:
    state = last(finished)  # reads with weights_only=True
    assert {"optim", "epoch", "n_iter", "args"} <= state.keys()
    for name, network in build().networks.items():
        assert list(state[name]) == list(network.state_dict())
        network.load_state_dict(state[name])


def test_weights_are_saved_without_the_prefix_of_a_wrapper(train: Train, finished: Path) -> None:
    assert train("run", "--parallel=split") == 0
    names = list(tensors(last(Path("run"))))
    assert not [name for name in names if "module." in name or "_orig_mod." in name]
    assert same_weights(Path("run"), finished)


def test_a_round_trip_changes_no_bit(finished: Path) -> None:
    state = last(finished)
    first, again = Checkpoints(Path("a")), Checkpoints(Path("b"))
    first.save(Content(state))
    first.wait()
    again.save(Content(load(first.last)))
    again.wait()
    before, after = tensors(state), tensors(load(again.last))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


def test_last_and_best_are_checkpoints_of_their_own(finished: Path) -> None:
    folder = finished / "checkpoints"
    assert load(folder / "last.pt")["n_iter"] == saved_steps(finished)[-1]
    best = load(folder / "best.pt")
    assert best["best"] == last(finished)["best"]
    assert best["n_iter"] == best["validated"]


@pytest.mark.parametrize("keep", [2, 4])
def test_the_newest_are_kept(train: Train, keep: int) -> None:
    assert train("run", "--save-every=1", f"--keep={keep}") == 0
    n_iter = last(Path("run"))["n_iter"]
    assert saved_steps(Path("run")) == list(range(n_iter - keep + 1, n_iter + 1))
    assert load(Path("run/checkpoints/best.pt"))


def test_what_is_saved_is_the_state_at_that_moment() -> None:
    checkpoints, weight = Checkpoints(Path("a")), torch.zeros(1000)
    state = Content(net={"weight": weight}, optim={}, n_iter=1, args={})
    checkpoints.save(state, best=True)
    weight += 1  # training goes on while the disk works
    checkpoints.wait()
    assert load(checkpoints.best)["net"]["weight"].equal(torch.zeros(1000))


def test_no_other_files_are_left(finished: Path) -> None:
    names = {path.name for path in (finished / "checkpoints").iterdir()}
    numbered = {f"iter-{n:09d}.pt" for n in saved_steps(finished)}
    assert names == {"last.pt", "best.pt"} | numbered


@pytest.mark.parametrize("spoil", [truncate, flip_a_bit_of_a_weight])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    train: Train, finished: Path, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
    run = Path("run")
    assert train(run, "--save-every=5") == 0
    damaged = newest_file(run)
    spoil(damaged)
    capsys.readouterr()
    assert resume(run) == 0
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 1
    assert str(damaged) in streams.err
    assert f"resumed after step {saved_steps(run)[-2]} " in streams.out
    assert same_weights(run, finished)


@pytest.mark.parametrize(
    ("error", "ends", "told"),
    [
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
        (OSError(errno.ESTALE, "Stale file handle"), 1, "Stale file handle"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), 1, "out of memory"),
        (ValueError("what a later PyTorch says"), 2, "what a later PyTorch says"),
    ],
    ids=str,
)
def test_a_whole_checkpoint_that_cannot_be_read_at_the_moment_is_left_as_it_is(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    ends: int,
    told: str,
) -> None:
    """And the run does not go back to an older one."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        assert resume(run) == ends
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    assert resume(run) == 0


def test_without_a_whole_checkpoint_there_is_no_silent_fresh_start(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run / "checkpoints").iterdir():
        truncate(path)
    assert resume(run) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no readable checkpoint" in line
    assert str(run / "checkpoints") in line


def test_a_checkpoint_that_would_run_code_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "evil.pt"
    torch.save({**last(run), "more": Evil()}, path)
    with pytest.raises(BadInput, match=r"evil\.pt"):
        load(path)
    assert not Path("evil.txt").exists()
    torch.load(path, weights_only=False)  # without care it does run
    assert Path("evil.txt").exists()


@pytest.mark.parametrize("content", [b"", b"a text", b"PK\x03\x04 half a zip"])
def test_a_file_of_another_kind_is_refused_by_name(content: bytes) -> None:
    Path("x.pt").write_bytes(content)
    with pytest.raises(BadInput, match=r"x\.pt"):
        load(Path("x.pt"))


@pytest.mark.parametrize("state", [torch.zeros(3), {"net": {}}, [1, 2]])
def test_tensors_that_are_no_checkpoint_are_refused(state: Any) -> None:
    torch.save(state, "x.pt")
    with pytest.raises(BadInput, match=r"x\.pt: not a checkpoint"):
        load(Path("x.pt"))


def test_a_write_that_fails_leaves_the_old_file_alone() -> None:
    path = Path("file")
    path.write_bytes(b"old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as error:
        write_atomically(path, fail)
    assert error.value.filename == "file"
    assert path.read_bytes() == b"old"
    assert list(Path().iterdir()) == [path]


def test_a_checkpoint_of_another_network_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert resume(run, *needs("example.OTHER_NETWORK")) == 2
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 1
    assert "another network" in streams.err
    # Nothing is spoiled: the run can still be resumed as it was.
    for path, content in before.items():
        if path.name != "environment.txt":
            assert path.read_bytes() == content, path.name
    assert resume(run) == 0


def test_a_checkpoint_of_another_optimizer_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = "adam" if last(run)["args"]["optimizer"] == "sgd" else "sgd"
    assert resume(run, f"--optimizer={other}") == 2
    streams = capsys.readouterr()
    assert streams.err.count("\n") == 1
    assert "--optimizer" in streams.err


def test_damaged_checkpoints_do_not_count_as_the_newest(tmp_path: Path) -> None:
    """What is saved after falling back is kept, though its numbers are lower."""
    saved = Checkpoints(tmp_path, keep=3)
    for n_iter in (10, 20, 30):
        saved.save(Content(net={}, n_iter=n_iter, args={}))
    saved.wait()
    for n_iter in (20, 30):
        (tmp_path / f"iter-{n_iter:09d}.pt").write_bytes(b"damaged")
    state = saved.newest()
    assert state is not None and state["n_iter"] == 10
    for n_iter in (11, 12):
        saved.save(Content(net={}, n_iter=n_iter, args={}))
    saved.wait()
    assert [int(path.stem[5:]) for path in sorted(tmp_path.glob("iter-*.pt"))] == [10, 11, 12]


def test_a_checkpoint_that_cannot_be_written_names_the_last_good_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(file: int) -> None:
        raise OSError(28, "No space left on device")

    saved = Checkpoints(Path("a"))
    for n_iter, last_good in ((1, "no checkpoint exists yet"), (2, "last.pt")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            saved.save(Content(net={}, n_iter=n_iter, args={}))
            with pytest.raises(Fault, match=rf"No space left.*{last_good}.*--resume"):
                saved.wait()
        saved.save(Content(net={}, n_iter=1, args={}))
        saved.wait()
        assert load(saved.last)["n_iter"] == 1
    assert sorted(path.name for path in Path("a").iterdir()) == ["iter-000000001.pt", "last.pt"]


def test_a_run_folder_stands_for_its_best_checkpoint(run: Path) -> None:
    folder = run / "checkpoints"
    for named in (run, folder):
        assert find_checkpoint(str(named)) == str(folder / "best.pt")
    file = str(folder / "last.pt")
    assert find_checkpoint(file) == file
    (folder / "best.pt").unlink()  # a run that has not come to a validation
    assert find_checkpoint(str(run)) == file
    assert find_checkpoint("nowhere") == "nowhere"


def test_a_run_folder_can_be_evaluated(run: Path) -> None:
    (run / "checkpoints" / "last.pt").write_bytes(b"not this one")
    words = [f"--checkpoint={run}", "--device=cpu"]
    assert status(test.main, "test.py", *words) == 0
    assert (run / "report").is_dir()
