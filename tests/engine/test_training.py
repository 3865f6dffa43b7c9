"""The course of a run: learning rate, curves, when it stops, and what stops it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Train
from faults import not_a_number, overflow, watch_optimizers
from needs import needs
from programs import PATIENCE, at_step, last, points, resume, start, status, tensors
from torch import nn

import options
import test
import train as program
from engine import modules
from engine.optimizers import clip_gradient, learning_rate, make_optimizer, parameters_of

TOTAL = 200


def rates(schedule: str, warmup: float) -> list[float]:
    opt = options.parse([f"--schedule={schedule}", f"--warmup={warmup}", "--lr=0.5", "--flip"])
    return [learning_rate(opt, n_iter, TOTAL) for n_iter in range(TOTAL)]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_learning_rate_rises_then_falls_to_nothing(schedule: str) -> None:
    curve = rates(schedule, 0.1)
    assert curve[:21] == sorted(curve[:21])
    assert curve[0] == pytest.approx(0.5 / 21)
    assert max(curve) == curve[20] == 0.5
    assert curve[20:] == sorted(curve[20:], reverse=True)
    assert 0 < curve[-1] < 0.01
    assert curve[110] == pytest.approx(0.25)  # half-way down


def test_learning_rate_can_stay_constant() -> None:
    assert rates("constant", 0) == [0.5] * TOTAL
    assert rates("cosine", 0)[0] == 0.5


def test_learning_rate_is_a_pure_function() -> None:
    opt = options.parse(["--flip"])
    forwards = [learning_rate(opt, n_iter, TOTAL) for n_iter in range(TOTAL)]
    backwards = [learning_rate(opt, n_iter, TOTAL) for n_iter in reversed(range(TOTAL))]
    assert forwards == backwards[::-1]


def test_warmup_of_all_steps_is_allowed() -> None:
    assert rates("cosine", 1)[-1] == pytest.approx(0.5 * 200 / 201)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_lower_a_loss_and_skip_frozen_parameters(name: str) -> None:
    torch.manual_seed(0)
    features = nn.Linear(4, 4).requires_grad_(False)
    network = nn.Sequential(features, nn.Linear(4, 1))
    frozen = features.weight.clone()
    opt = options.parse([f"--optimizer={name}", "--lr=0.05", "--momentum=0.5", "--flip"])
    optimizer = make_optimizer(opt, network)
    assert type(optimizer).__name__.lower() == name
    assert {id(p) for p in parameters_of(optimizer)} == {id(p) for p in network[1].parameters()}
    x, losses = torch.randn(16, 4), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = network(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert features.weight.equal(frozen)


@pytest.mark.parametrize(("limit", "norm"), [(0, 5.0), (1, 1.0), (10, 5.0)])
def test_gradients_are_clipped_to_a_total_norm(limit: float, norm: float) -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(3)]  # the last has no gradient
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([-4.0])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    before = clip_gradient(torch.optim.SGD(parameters), scaler, limit)
    assert before.item() == pytest.approx(5)
    clipped = torch.cat([p.grad for p in parameters if p.grad is not None])
    assert clipped.norm().item() == pytest.approx(norm, rel=1e-4)


def test_a_run_leaves_its_files(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.txt", "environment.txt", "metrics.jsonl", "checkpoints"} <= names
    assert [name for name in names if name.startswith("events.")]
    environment = (finished / "environment.txt").read_text()
    for fact in (f"torch: {torch.__version__}", "python: ", "git commit: "):
        assert fact in environment


def test_the_environment_of_every_start_is_kept(train: Train) -> None:
    assert train("run", "--epochs=1") == 0
    first = Path("run/environment.txt").read_text()
    assert resume(Path("run"), "--epochs=2") == 0
    both = Path("run/environment.txt").read_text()
    assert both.startswith(f"{first}\n")
    assert both.count("git commit: ") == 2


def test_curves_have_one_object_for_each_point(finished: Path) -> None:
    opt, n_iter = last(finished)["args"], last(finished)["n_iter"]
    steps = n_iter // opt["epochs"]
    lines = points(finished)
    for point in lines:
        own = {"seconds"} if point["split"] == "val" else set()
        assert point.keys() == {"n_iter", "epoch", "split", "values"} | own
    trained = [point["n_iter"] for point in lines if point["split"] == "train"]
    validated = [point["n_iter"] for point in lines if point["split"] == "val"]
    assert len(trained) + len(validated) == len(lines)
    assert trained == list(range(opt["log_every"], n_iter + 1, opt["log_every"]))
    assert validated == list(range(steps, n_iter + 1, steps))
    for point in lines:
        assert point["epoch"] == (point["n_iter"] - 1) // steps + 1
        assert all(isinstance(value, float) for value in point["values"].values())
    assert {"lr", "images_per_second", "data_wait", "efficiency"} <= lines[0]["values"].keys()


def test_a_torn_last_line_of_the_curves_does_not_stop_a_resume(train: Train) -> None:
    run = Path("run")
    assert train(run) == 0
    lines = points(run)
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(lines[-1])[:20])  # the machine went down while it was written
    assert resume(run) == 0
    assert points(run) == lines


def validated_epochs(run: Path) -> list[int]:
    return [point["epoch"] for point in points(run) if point["split"] == "val"]


def test_the_run_ends_when_the_patience_does(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    # At a learning rate of 0 the first validation is the best.
    run = Path("run")
    how = ["--lr=0", "--epochs=9", "--patience=2", *needs("example.SEPARABLE")]
    assert train(run, *how) == 0
    assert "done early (--patience)" in capsys.readouterr().out
    assert validated_epochs(run) == [1, 2, 3]
    assert resume(run) == 0
    assert validated_epochs(run) == [1, 2, 3]


def test_validations_come_every_so_many_epochs_and_at_the_end(train: Train) -> None:
    assert train("run", "--epochs=5", "--val-every=2") == 0
    assert validated_epochs(Path("run")) == [2, 4, 5]


def test_the_command_that_is_printed_at_the_end_works(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run") == 0
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert command[0] == "python"
    assert Path(command[1]).name == "test.py"
    assert Path(command[1]).exists()
    assert status(test.main, "test.py", *command[2:], "--device=cpu") == 0


def check_last_good_checkpoint(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs to the bad step 7, whose error names a checkpoint that is good."""
    run = Path("run")
    assert train(run, "--save-every=1") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "step 8 is not finite" in error
    assert f"the last good checkpoint is {run / 'checkpoints' / 'last.pt'}" in error
    state = last(run)
    assert state["n_iter"] == 7
    assert all(value.isfinite().all() for value in tensors(state).values())


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(monkeypatch, 7, not_a_number)
    check_last_good_checkpoint(train, capsys)


def test_on_the_cpu_a_loss_that_is_not_finite_never_reaches_the_weights(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watch_optimizers(monkeypatch)
    at_step(monkeypatch, 7, not_a_number)
    assert train("run", "--save-every=500") == 1
    assert made[0].n_iter == 7
    states = [network.state_dict() for network in made[0].networks.values()]
    weights = [w for state in states for w in state.values() if w.is_floating_point()]
    assert weights
    assert all(weight.isfinite().all() for weight in weights)


def test_without_a_checkpoint_a_loss_that_is_not_finite_names_none(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(monkeypatch, 0, not_a_number)
    assert train("run") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "step 1 is not finite" in error
    assert "checkpoint" not in error
    assert not list(Path("run").rglob("*.pt"))


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch_optimizers(monkeypatch, lambda made: overflow(made, {7}))
    check_last_good_checkpoint(train, capsys)


def test_a_folder_that_holds_a_run_is_not_overwritten(
    finished: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "config.txt").read_bytes()
    capsys.readouterr()
    assert train(finished) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(finished) in error
    assert (finished / "config.txt").read_bytes() == before


def test_runs_without_a_name_get_folders_of_their_own(small: list[str]) -> None:
    for _ in range(2):
        assert status(program.main, "train.py", *small, "--epochs=1") == 0
    runs = list(Path("runs").iterdir())
    assert len(runs) == 2
    assert all(last(run)["n_iter"] > 0 for run in runs)


def test_gpus_are_left_alone_when_the_cpu_was_asked_for(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("it would want the weights on the first GPU")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(modules, "gpu_count", lambda: 2)
    monkeypatch.setattr(nn, "DataParallel", refuse)
    assert train("run", "--parallel=auto", "--device=cpu", "--epochs=1") == 0


@pytest.mark.slow
def test_bad_input_ends_a_process_in_one_line_with_status_2() -> None:
    process = start("train.py", "--data=nowhere", "--device=cpu")
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.startswith("train.py: error: ")
    assert err.count("\n") == 1
    assert "nowhere" in err
    assert not list(Path().iterdir())
