"""The same options give the same bits, whatever happens on the way."""

import os
import signal
from pathlib import Path
from typing import Any

import example
import pytest
from conftest import Train
from programs import (
    HELD,
    PATIENCE,
    at_step,
    last,
    points,
    resume,
    same_weights,
    saved_steps,
    start,
    tensors,
    wait_for_step,
)

import train as program
from engine.evaluation import evaluate

LONG = ["--epochs=20", "--batch-size=2", "--save-every=5", "--val-every=3"]  # 200 steps


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(run, *LONG) == 0
    return run


def curves(run: Path) -> list[tuple]:
    """The points of metrics.jsonl without what a clock says."""
    clock = ("images_per_second", "data_wait", "efficiency")
    return [
        (
            p["n_iter"],
            p["epoch"],
            p["split"],
            {k: v for k, v in p["values"].items() if k not in clock},
        )
        for p in points(run)
    ]


@pytest.mark.parametrize("cache", ["--cache", "--no-cache"])
@pytest.mark.parametrize(("workers", "prefetch"), [(0, 0), (1, 0), (1, 2), (2, 2)])
def test_workers_prefetch_and_cache_change_nothing(
    train: Train, finished: Path, workers: int, prefetch: int, cache: str
) -> None:
    assert train("run", f"--workers={workers}", f"--prefetch={prefetch}", cache) == 0
    assert same_weights(Path("run"), finished)


def test_what_is_chosen_by_default_changes_nothing(train: Train, finished: Path) -> None:
    assert train("run", "--workers=auto") == 0
    assert same_weights(Path("run"), finished)
    assert curves(Path("run")) == curves(finished)


@pytest.mark.parametrize("cache", ["--cache", "--no-cache"])
def test_accumulated_steps_are_exact_too(train: Train, cache: str) -> None:
    options = ["--batch-size=2", "--accumulate=3", "--epochs=1"]
    assert train("one", *options) == 0
    assert train("other", *options, "--workers=2", cache) == 0
    assert same_weights(Path("one"), Path("other"))


@pytest.mark.parametrize("option", ["--seed=1", *getattr(example, "RANDOM", [])])
def test_all_that_is_random_counts(train: Train, finished: Path, option: str) -> None:
    assert train("run", option) == 0
    assert not same_weights(Path("run"), finished)


def test_config_repeats_the_run(train: Train, finished: Path) -> None:
    assert train("first", "--seed=3", "--warmup=0.3", "--no-flip", "--clip-grad=0.5") == 0
    assert train("second", "@first/config.txt") == 0
    assert same_weights(Path("first"), Path("second"))
    assert not same_weights(Path("first"), finished)


@pytest.mark.slow
def test_two_kills_in_mid_epoch_change_nothing(
    train: Train, small: list[str], undisturbed: Path
) -> None:
    run = Path("run")
    first, second = [*small, *LONG, "--workers=1"], ["--resume", "--workers=2", "--no-cache"]
    for kill_at, options in ((5, first), (45, second)):
        process = start(HELD, f"--run-dir={run}", *options)
        wait_for_step(process, run, kill_at)
        process.kill()
        process.communicate()
        assert process.returncode == -9
    killed_at = saved_steps(run)[-1]
    assert 45 <= killed_at < last(undisturbed)["n_iter"]

    assert resume(run, "--workers=0") == 0
    assert same_weights(run, undisturbed)
    assert curves(run) == curves(undisturbed)  # neither gaps nor points twice
    before, after = last(undisturbed), last(run)
    assert {key: after[key] for key in ("best", "waited", "validated")} == {
        key: before[key] for key in ("best", "waited", "validated")
    }


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to a process group")
def test_sigterm_saves_and_resume_goes_on(
    train: Train, small: list[str], undisturbed: Path
) -> None:
    run = Path("run")
    process = start(HELD, *small, *LONG, f"--run-dir={run}", "--workers=1")
    wait_for_step(process, run, 5)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does it: to the workers too
    Path("go").touch()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, err
    assert err == ""
    assert out.splitlines()[-2].startswith("SIGTERM: saved ")  # the last one is how to resume
    stopped_at = last(run)["n_iter"]
    assert stopped_at == saved_steps(run)[-1] < last(undisturbed)["n_iter"]

    assert resume(run, "--workers=0") == 0
    assert same_weights(run, undisturbed)


def test_a_signal_ends_the_run_after_the_step_under_way(
    train: Train,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path("run")
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda losses: signal.raise_signal(signal.SIGTERM))
        assert train(run) == 75
    assert last(run)["n_iter"] == 8
    assert str(run / "checkpoints" / "last.pt") in capsys.readouterr().out
    assert resume(run) == 0
    assert same_weights(run, finished)


def test_a_validation_that_a_signal_cuts_short_is_repeated(
    train: Train, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **named: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments, **named)

    run = Path("run")
    with monkeypatch.context() as patch:
        patch.setattr(program, "evaluate", interrupted)
        assert train(run) == 75
    state, steps = last(run), last(finished)["n_iter"] // 2
    assert (state["n_iter"], state["validated"], state["best"]) == (steps, 0, float("-inf"))
    assert not [p for p in points(run) if p["split"] == "val"]
    assert resume(run) == 0
    assert same_weights(run, finished)
    assert curves(run) == curves(finished)


def test_resuming_a_finished_run_changes_nothing(train: Train) -> None:
    run = Path("run")
    assert train(run) == 0
    before, lines = tensors(last(run)), points(run)
    assert resume(run) == 0
    after = tensors(last(run))
    assert all(before[name].equal(after[name]) for name in before)
    assert points(run) == lines


def test_resume_without_a_checkpoint_starts_from_the_beginning(
    train: Train, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run", "--resume") == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert same_weights(Path("run"), finished)


def test_resume_takes_the_options_of_the_run(train: Train) -> None:
    run = Path("run")
    assert train(run, "--seed=4", "--epochs=1") == 0
    steps = last(run)["n_iter"]
    assert resume(run, "--epochs=2") == 0
    state = last(run)
    assert (state["args"]["seed"], state["args"]["epochs"]) == (4, 2)
    assert state["n_iter"] == 2 * steps


def test_a_resume_with_other_options_says_so(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run", "--epochs=1") == 0
    capsys.readouterr()
    assert resume(Path("run"), "--seed=9") == 0
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "not an exact continuation" in warning
    assert "--seed 0 is now 9" in warning
