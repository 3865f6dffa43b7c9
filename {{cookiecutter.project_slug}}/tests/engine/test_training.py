"""The course of a run: learning rate, curves, when it stops, and what stops it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Prepare, Train
from programs import command_line, last, points, resume, start, status, tensors
from torch import Tensor, nn

import options
from engine.optimizing import learning_rate, limit_gradient, make_optimizer, trained_by
from train import Training

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
    assert {id(p) for p in trained_by(optimizer)} == {id(p) for p in network[1].parameters()}
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
    before = limit_gradient(torch.optim.SGD(parameters), scaler, limit)
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


def test_curves_have_one_object_for_each_point(finished: Path) -> None:
    opt, n_iter = last(finished)["args"], last(finished)["n_iter"]
    steps = n_iter // opt["epochs"]
    lines = points(finished)
    assert all(point.keys() == {"n_iter", "epoch", "split", "values"} for point in lines)
    trained = [point["n_iter"] for point in lines if point["split"] == "train"]
    tested = [point["n_iter"] for point in lines if point["split"] == "test"]
    assert trained == list(range(opt["log_every"], n_iter + 1, opt["log_every"]))
    assert tested == list(range(steps, n_iter + 1, steps))
    for point in lines:
        assert point["epoch"] == (point["n_iter"] - 1) // steps
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


def test_the_run_ends_when_the_patience_does(train: Train) -> None:
    # At a learning rate of 0 the first test pass is the best.
    assert train("run", "--lr=0", "--norm=none", "--epochs=9", "--patience=2") == 0
    assert [p["epoch"] for p in points(Path("run")) if p["split"] == "test"] == [0, 1, 2]
    assert resume(Path("run")) == 0
    assert len([p for p in points(Path("run")) if p["split"] == "test"]) == 3


def test_tests_come_every_so_many_epochs_and_at_the_end(train: Train) -> None:
    assert train("run", "--epochs=5", "--test-every=2") == 0
    assert [p["epoch"] for p in points(Path("run")) if p["split"] == "test"] == [1, 3, 4]


def break_the_loss(training: Training) -> None:
    """Makes the loss of step 7 not a number."""
    compute = training.compute

    def broken(*batch: Tensor) -> dict:
        factor = float("nan") if training.progress.n_iter == 7 else 1
        losses = compute(*batch)
        return {
            group: {name: loss * factor for name, loss in named.items()}
            for group, named in losses.items()
        }

    training.compute = broken  # type: ignore[assignment]


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(
    prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    training = prepare("--save-every=1")
    break_the_loss(training)
    check_last_good_checkpoint(training, capsys)


def test_on_the_cpu_a_loss_that_is_not_finite_never_reaches_the_weights(prepare: Prepare) -> None:
    training = prepare("--save-every=500")
    break_the_loss(training)
    assert status(training.main, "train.py") == 2
    assert training.progress.n_iter == 7
    weights = [w for w in training.model.state_dict().values() if w.is_floating_point()]
    assert all(weight.isfinite().all() for weight in weights)


def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint(
    prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    training = prepare("--save-every=1")
    parameter = next(p for p in training.model.parameters() if p.requires_grad)

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * (float("inf") if training.progress.n_iter == 7 else 1)

    parameter.register_hook(spoil)
    check_last_good_checkpoint(training, capsys)


def check_last_good_checkpoint(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs to the bad step 7, whose error names a checkpoint that is good."""
    capsys.readouterr()
    assert status(training.main, "train.py") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "step 7 is not finite" in error
    assert str(training.run.path / "checkpoints" / "last.pt") in error
    state = last(training.run.path)
    assert state["n_iter"] == 7
    assert all(value.isfinite().all() for value in tensors(state).values())


def test_a_folder_that_holds_a_run_is_not_overwritten(
    finished: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "config.txt").read_bytes()
    words = [*small, f"--run={finished}"]
    assert status(lambda: Training().main(), "train.py", *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(finished) in error
    assert (finished / "config.txt").read_bytes() == before


def test_runs_without_a_name_get_folders_of_their_own(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with command_line("train.py", *small):
            Training()
    assert len(list(Path("runs").iterdir())) == 2


def test_gpus_are_left_alone_when_the_cpu_was_asked_for(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    training = prepare("--parallel=auto", "--device=cpu")
    wrapped = [m for m in training.model.modules() if isinstance(m, nn.DataParallel)]
    assert not wrapped  # it would want the weights on the first GPU


def test_bad_input_ends_a_process_in_one_line_with_status_2() -> None:
    process = start("train.py", "--data=nowhere", "--device=cpu")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("train.py: error: ")
    assert err.count("\n") == 1
    assert "nowhere" in err
    assert not list(Path().iterdir())
