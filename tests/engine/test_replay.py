"""tools/replay.py: a part of a run is trained again, and gives the same bits, or says why not."""

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import Build, Train
from PIL import Image, ImageOps
from programs import last, refusal, saved_steps, status
from test_processes import needs_gloo

from engine.report.records import read_records
from tools import compare, replay

STEPS = ["--save-every=4", "--threads=1"]


def run_replay(*words: str) -> int:
    return status(replay.main, "replay.py", *words)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    return refusal(capsys, replay.main, "replay.py", *words)


def path(run: Path) -> Path:
    """The newest checkpoint by step."""
    return replay.checkpoint(run, saved_steps(run)[-1])


@pytest.mark.slow
def test_a_run_repeats_itself(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("run")
    assert train(run, *STEPS, "--ema=0.9") == 0
    before = path(run).read_bytes()
    start, end = saved_steps(run)[-2:]
    capsys.readouterr()
    assert run_replay("run") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"equal: step {end} of run, from step {start}: ")
    assert "ema of net, net, optim of net" in out.replace("discriminator", "net")
    assert out.count("\n") == 1
    assert run_replay("run", "--from=0", f"--to={start}") == 0
    assert f"step {start} of run, from step 0" in capsys.readouterr().out
    assert path(run).read_bytes() == before


@pytest.mark.slow
def test_a_run_that_was_extended_says_where(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its learning rate was that of the shorter run; the replay has the options of the end."""
    assert train("run", *STEPS, "--keep=9", "--epochs=2") == 0
    step = saved_steps(Path("run"))[-1]
    assert train("run", "--resume", "--epochs=4") == 0
    capsys.readouterr()
    assert run_replay("run", "--from=0") == 1
    out = capsys.readouterr().out
    assert f"resumed after step {step}, perhaps with other options" in out
    assert run_replay("run", f"--from={step}") == 0


@pytest.mark.slow
@needs_gloo
def test_two_processes_repeat_the_run_of_one(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run", *STEPS, "--accumulate=2", "--batch-size=2") == 0
    capsys.readouterr()
    assert run_replay("run", "--processes=2") == 0
    assert capsys.readouterr().out.startswith("equal: ")


@pytest.mark.slow
def test_a_changed_image_is_named(
    train: Train, build: Build, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"--data={spoiled}"
    train_set = build(data).train_set
    if not hasattr(train_set, "images"):
        pytest.skip("the samples are not files")
    name = train_set.images.files[int(train_set.rows[0])]
    assert train("run", *STEPS, data) == 0
    with Image.open(spoiled / "train" / name) as image:
        ImageOps.invert(image).save(spoiled / "train" / name)
    capsys.readouterr()
    assert run_replay("run", "--from=0") == 1  # every image is trained on
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("different: ")
    assert any(line.startswith("  net: ") for line in lines)
    assert lines[-2:] == ["not as in the run:", f"  1 training image has changed, train/{name}"]


@pytest.mark.slow
def test_a_changed_option_thread_count_and_version_are_named(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("run")
    assert train(run, *STEPS) == 0
    state = torch.load(path(run), weights_only=True)
    state["environment"].update(torch="2.0.0", processor="an abacus")
    torch.save(state, path(run))
    capsys.readouterr()
    assert run_replay("run", "--", "--threads=2", "--seed=9") == 1
    out = capsys.readouterr().out
    assert out.startswith("different: ")
    reasons = out.partition("not as in the run:\n")[2]
    now = f"torch 2.0.0 is now {torch.__version__}"
    for reason in ("--seed 0 is now 9", "threads 1 is now 2", now, "processor an abacus is now "):
        assert reason in reasons
    assert "train/" not in reasons


@pytest.mark.slow
def test_what_train_py_refuses_is_bad_input(
    train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train("run", *STEPS) == 0
    assert run_replay("run", "--", "--no-such-option") == 2
    assert "train.py: error: unrecognized arguments: --no-such-option" in capfd.readouterr().err


def test_steps_are_chosen(finished: Path, tmp_path: Path) -> None:
    steps = saved_steps(finished)
    assert replay.choose(finished, None, None) == (steps[-2], steps[-1])
    assert replay.choose(finished, None, steps[0]) == (0, steps[0])
    assert replay.choose(finished, 0, None) == (0, steps[-1])


def test_bad_input_is_refused_in_one_line(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, steps = str(finished), saved_steps(finished)
    assert "holds no checkpoint" in refused(capsys, "nowhere")
    assert f"no checkpoint of step 999; there are {steps[0]}, " in refused(capsys, run, "--to=999")
    assert "must be the smaller" in refused(capsys, run, f"--from={steps[-1]}")
    assert "--processes 2" in refused(capsys, run, "--processes=2")


def test_bits_are_compared_and_not_numbers() -> None:
    def same(one: float, other: float) -> bool:
        return replay.same(torch.tensor(one), torch.tensor(other))

    assert same(1.0, 1.0) and same(float("nan"), float("nan"))
    assert not same(0.0, -0.0)
    assert not same(1.0, 1.0 + 2**-23)
    assert not replay.same(torch.zeros(2), torch.zeros(2).double())
    assert not replay.same(torch.zeros(2), torch.zeros(1, 2))
    assert replay.same(0.1, 0.1) and not replay.same(0.1, 0.2) and not replay.same(None, 0.1)


def test_every_network_optimizer_and_average_is_compared(train: Train) -> None:
    assert train("run", "--epochs=1", "--ema=0.9") == 0
    state, other = last(Path("run")), last(Path("run"))
    assert list(replay.compare(state, other)) == []
    for part, values in replay.parts(other).items():
        tensor = next(v for v in values.values() if torch.is_tensor(v) and v.is_floating_point())
        where = (0,) * tensor.dim()
        before = tensor[where].item()
        tensor[where] = before + 1
        (line,) = replay.compare(state, other)
        assert line.startswith(f"{part}: 1 of ") and "by up to 1.0e+00" in line
        tensor[where] = before


@pytest.mark.slow
def test_weights_are_known_by_their_content(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("first", *STEPS) == 0
    weights = Path("w.pt")
    weights.write_bytes(Path("first/checkpoints/last.pt").read_bytes())
    assert train("run", *STEPS, "--weights=w.pt") == 0
    recorded = read_records(Path("run")).starts[0]["weights"]
    digest = "sha256:" + hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
    assert recorded == f"{digest} w.pt"
    weights.rename("moved.pt")  # the same content
    capsys.readouterr()
    assert train("run", "--resume", "--weights=moved.pt") == 0
    assert "weights" not in capsys.readouterr().err
    state = torch.load("moved.pt", weights_only=True)
    state["seconds"] = 1.0  # other bytes
    torch.save(state, "moved.pt")
    assert train("run", "--resume") == 0
    assert f"; weights {digest} is now sha256:" in capsys.readouterr().err
    assert "weights" not in read_records(Path("run")).starts[-1]  # they were not read again
    Path("moved.pt").replace("w.pt")
    assert train("other", *STEPS, "--weights=w.pt") == 0
    runs = [read_records(Path(name)) for name in ("run", "other")]
    rows = compare.compare(runs, [{"weights": "w.pt"}] * 2)[1]
    assert f"w.pt {digest[7:13]}" in rows[0] and rows[0][-1] != rows[1][-1]
    capsys.readouterr()
    run_replay("run", "--from=0", "--", "--weights=w.pt")
    assert f"weights {digest} is now sha256:" in capsys.readouterr().out
