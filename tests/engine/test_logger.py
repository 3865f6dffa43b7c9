"""What TensorBoard shows of a run: read from its event files, as TensorBoard reads them."""

import re
import shlex
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Build, Train
from marks import slow_after
from programs import last, points, resume, saved_steps, start, status, wait_for_step
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

import test
import train as program
from engine import terminal
from engine.logger import Logger
from model import Model

CLOCK = SimpleNamespace(monotonic=lambda: 5.0)  # one that stands still


def read_events(path: Path) -> Iterator[Event]:
    """The events of a file, each between a length with its checksum and a checksum."""
    content, position = path.read_bytes(), 0
    while position + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        yield Event.FromString(content[position + 12 : position + 12 + length])
        position += 12 + length + 4


def shown(run: Path) -> list[Event]:
    """The events that TensorBoard shows: a start hides those from its step on."""
    events: list[Event] = []
    for path in sorted(run.glob("events.*")):
        for event in read_events(path):
            if event.session_log.status == SessionLog.START:
                events = [e for e in events if e.step < event.step]
            events.append(event)
    return events


def scalars(run: Path) -> Counter[tuple[str, int, float]]:
    """The points of all curves, and how often each is there."""
    return Counter(
        (value.tag, event.step, value.simple_value)
        for event in shown(run)
        for value in event.summary.value
        if value.HasField("simple_value")
    )


def recorded(run: Path) -> Counter[tuple[str, int, float]]:
    """The points of metrics.jsonl; an event holds a float32."""
    return Counter(
        (f"{p['split']}/{name}", p["n_iter"], struct.unpack("f", struct.pack("f", value))[0])
        for p in points(run)
        for name, value in p["values"].items()
    )


def with_norms(points: Counter) -> Counter:
    """The points that metrics.jsonl has, too."""
    ours = ("train/gradient_norm/", "train/weight_norm/", "best/")
    return Counter({p: n for p, n in points.items() if not p[0].startswith(ours)})


def tags(run: Path, kind: str) -> set[str]:
    return {v.tag for e in shown(run) for v in e.summary.value if v.HasField(kind)}


def hyperparameters(run: Path) -> list[HParamsPluginData]:
    """What the table of runs gets."""
    return [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in shown(run)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]


def test_curves_are_those_of_metrics_jsonl(finished: Path) -> None:
    assert recorded(finished)
    assert with_norms(scalars(finished)) == recorded(finished)


@pytest.mark.parametrize("validated", slow_after(1, [True, False]))
def test_a_resume_doubles_no_point(
    train: Train, validated: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on from the end of the first epoch, whose validation is repeated or not."""
    run = Path("run")
    assert train(run, "--keep=9", "--log-every=1", "--epochs=3") == 0
    first, *later = saved_steps(run)
    shutil.rmtree(run / "report")
    for step in later:
        (run / f"checkpoints/iter-{step:09d}.pt").unlink()
    if not validated:
        path = run / f"checkpoints/iter-{first:09d}.pt"
        state = torch.load(path, weights_only=True)
        torch.save({**state, "validated": 0, "best": float("-inf")}, path)
    assert resume(run) == 0
    assert len(list(run.glob("events.*"))) == 2  # also if they began in one second
    found = scalars(run)
    assert set(found.values()) == {1}
    assert len({(tag, step) for tag, step, _ in found}) == len(found)
    assert with_norms(found) == recorded(run)
    assert "are done" not in capsys.readouterr().out
    assert resume(run) == 0  # it is over: nothing is added
    done = f"all {last(run)['n_iter']} steps are done; a larger --epochs goes on\n"
    assert done in capsys.readouterr().out
    assert scalars(run) == found


def test_scalars_are_in_the_file_once_a_checkpoint_is(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not after some time alone: what is left of a killed run has no gap before its resume."""
    found: list[Counter] = []

    class Looking(Logger):
        def _flush(self) -> None:
            wanted = [p for p in points(Path("run")) if p["n_iter"] <= saved_steps(Path("run"))[-1]]
            super()._flush()
            there = with_norms(scalars(Path("run")))
            found.append(Counter({p[1] for p in there}))
            assert {p["n_iter"] for p in wanted} <= set(found[-1])

    monkeypatch.setattr(program, "Logger", Looking)
    assert train("run", "--log-every=1", "--save-every=2", "--epochs=2") == 0
    assert len(found) > 2


def test_a_file_of_tensorboard_that_cannot_grow_ends_the_records_and_not_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_event(self: EventsWriter, event: Event) -> None:
        if event.summary.value and event.summary.value[0].HasField("simple_value"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventsWriter, "write_event", write_event)
    assert train("run", "--save-every=3") == 0
    error = capsys.readouterr().err
    assert error.count("No space left on device; the run goes on without a record") == 1
    assert last(Path("run"))["n_iter"] == points(Path("run"))[-1]["n_iter"]


def test_a_metric_that_is_no_number_is_null_in_the_records(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has no NaN, and other programs would not read the line."""
    compute = Model.compute_metrics

    def with_another(model: Model, *totals: Any) -> dict[str, float]:
        return {**compute(model, *totals), "undefined": float("nan")}

    monkeypatch.setattr(Model, "compute_metrics", with_another)
    assert train("run", "--epochs=1") == 0
    text = Path("run/metrics.jsonl").read_text()
    assert '"undefined": null' in text and "NaN" not in text
    assert resume(Path("run"), "--epochs=2") == 0
    assert Path("run/metrics.jsonl").read_text().startswith(text)


def test_a_run_on_one_batch_prints_its_losses(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--overfit-one-batch", "--epochs=2", "--log-every=2"]
    assert train("run", *words) == 0
    logged = [p for p in points(Path("run")) if p["split"] == "train"]
    assert logged
    out = capsys.readouterr().out
    for point in logged:
        name, value = next(iter(point["values"].items()))
        assert f"\nstep {point['n_iter']}: {name} {value:.4g}" in out
    assert train("usual", *words[1:]) == 0
    assert "\nstep 2:" not in capsys.readouterr().out


def test_the_line_of_an_epoch_has_the_training_loss_and_the_time(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.state.time", CLOCK)
    assert train("run", "--log-every=1") == 0
    out, found = capsys.readouterr().out, points(Path("run"))
    (*_, first, _) = [line for line in out.splitlines() if line.startswith("epoch 1/")] + [""]
    logged = [p["values"] for p in found if p["split"] == "train" and p["epoch"] == 1]
    name = next(iter(logged[0]))
    mean = sum(values[name] for values in logged) / len(logged)
    said = re.escape(f"{mean:.4g}")
    assert re.search(rf"; train {name} {said}.*; 0 s( \(best\))?$", first), out
    assert {p["seconds"] for p in found if p["split"] == "val"} == {0.0}
    assert ", in 0 s; next:" in out


@pytest.mark.slow
def test_the_time_of_a_run_goes_on_after_a_resume(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.state.time", CLOCK)
    assert train("run", "--epochs=1") == 0
    path = Path("run/checkpoints/last.pt")
    state = {**last(Path("run")), "seconds": 7200.0}
    torch.save(state, path)
    for other in path.parent.glob("iter-*.pt"):
        other.unlink()
    assert resume(Path("run"), "--epochs=2") == 0
    assert last(Path("run"))["seconds"] == points(Path("run"))[-1]["seconds"] == 7200


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (192, "3 min 12 s"), (7530, "2 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert terminal.duration(seconds) == text


def test_a_first_loss_far_above_that_of_a_guess_is_named(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sign of a normalisation that is missing, or of a last layer that is far too large."""
    assert train("usual", "--epochs=1") == 0
    assert "first loss" not in capsys.readouterr().err
    (name, value), *_ = points(Path("usual"))[0]["values"].items()
    monkeypatch.setattr(Model, "loss_of_a_guess", lambda self: {name: value / 9}, raising=False)
    assert train("high", "--epochs=1") == 0
    error = capsys.readouterr().err
    assert error.startswith(f"warning: the first loss, {name} ") and error.count("\n") == 1
    assert f"that of a guess, {value / 9:.4g}; see docs/recipes.md" in error


@pytest.mark.slow
def test_without_test_images_the_next_command_names_the_validation_images(
    train: Train, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(spoiled / "test")
    assert train("run", f"--data={spoiled}", "--epochs=1") == 0
    command = capsys.readouterr().out.splitlines()[-1].replace("python ", "", 1)
    assert command.endswith("best.pt --split val")
    program, *words = shlex.split(command)
    assert Path(program).name == "test.py"
    assert status(test.main, "test.py", *words, "--device=cpu") == 0


def test_norms_of_gradient_and_weights(train: Train, build: Build) -> None:
    run, networks = Path("run"), build().networks
    assert train(run, "--log-every=1", "--epochs=1") == 0
    state, found = last(run), scalars(run)
    gradients = [v for tag, _, v in found if tag.startswith("train/gradient_norm/")]
    assert len(gradients) == state["n_iter"] * len(state["optim"])
    assert all(value > 0 for value in gradients)
    for name in state["optim"]:
        weights = [state[name][key] for key, _ in networks[name].named_parameters()]
        norm = torch.cat([weight.flatten() for weight in weights]).norm().item()
        at_end = {(tag, step): v for tag, step, v in found}
        assert at_end[f"train/weight_norm/{name}", state["n_iter"]] == pytest.approx(norm, rel=1e-4)


def test_options_and_results_are_in_the_table_of_runs(train: Train, build: Build) -> None:
    run = Path("run")
    assert train(run, "--lr=0.003") == 0
    assert not [path for path in run.rglob("events.*") if path.parent != run]
    begin, end = hyperparameters(run)  # a list of columns would hide which options differ
    values = begin.session_start_info.hparams
    assert values["lr"].number_value == 0.003
    assert values["flip"].bool_value is True
    assert not {"run_dir", "quiet", "workers"} & set(values)
    assert end.HasField("session_end_info")
    tag = f"best/{next(iter(build().model.monitors))}"
    assert min(tag for tag, _, _ in scalars(run)) == tag  # TensorBoard shows the first ones
    best = [value for name, _, value in sorted(scalars(run)) if name == tag]
    assert best == sorted(best)  # the best so far, after each validation
    assert best[-1] == pytest.approx(last(run)["best"])


def test_a_stopped_run_has_no_results(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.errors import StopSignal

    monkeypatch.setattr(StopSignal, "received", "SIGTERM", raising=False)
    monkeypatch.setattr(StopSignal, "agreed", lambda self: True)
    assert train("run") == 75
    assert not hyperparameters(Path("run"))


def test_config_and_pictures_are_shown(finished: Path, build: Build) -> None:
    texts = {
        value.tag: value.tensor.string_val[0].decode()
        for event in shown(finished)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    }
    (text,) = texts.values()
    lines = (finished / "config.txt").read_text().splitlines()
    assert [line.strip() for line in text.splitlines() if line.strip()] == lines
    drawn = {f"val/{name}" for name in build().validate().draw()}
    assert "val/images" in drawn
    assert tags(finished, "image") == {"batch", *drawn}


@pytest.mark.slow
def test_what_was_logged_before_a_checkpoint_outlives_a_kill(small: list[str]) -> None:
    words = [*small, "--epochs=1000", "--log-every=1", "--save-every=5", "--run-dir=run"]
    process = start("train.py", *words)
    wait_for_step(process, Path("run"), 20)
    process.kill()
    process.communicate()
    steps = {step for tag, step, _ in scalars(Path("run")) if tag == "train/lr"}
    assert set(range(1, saved_steps(Path("run"))[-1] - 5)) <= steps
