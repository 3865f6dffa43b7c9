"""tools.folds: a run for each fold, resumed where it was stopped, and what it writes of all."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Build
from faults import die_at_step
from needs import needs
from pages import check_whole
from programs import PATIENCE, ROOT, refusal, same_weights, saved_steps, status

import test
import train
from engine.data.splits import check_folds
from engine.errors import BadInput
from tools import folds

needs("task.folds.write_tables")
MAINS = {"train.py": train.main, "test.py": test.main}


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs the programs of tools.folds in this process; a list of those that it has run."""
    ran = list[str]()

    def run(words: Sequence[str], stop: object) -> int:
        program = Path(words[1]).name
        ran.append(program)
        return status(MAINS[program], program, *words[2:])

    monkeypatch.setattr(folds, "run_to_its_end", run)
    return ran


def run_folds(small: list[str], *own: str, options: Sequence[str] = ()) -> int:
    return status(folds.main, "folds.py", "--folds=2", *own, "--", *small, *options)


def written(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.csv")}


def test_each_image_is_judged_by_the_fold_that_it_was_left_out_of(
    small: list[str], build: Build, inside: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_folds(small, "--out=folds") == 0
    assert inside == ["train.py", "test.py"] * 2
    assert capsys.readouterr().out.endswith("wrote folds/index.html\n")
    page = Path("folds/index.html").read_text()
    check_whole(page)
    for run in ("fold-1", "fold-2", "mean", "standard deviation"):
        assert f">{run}<" in page
    parts = build()
    names = [*parts.train_set.names(), *parts.val_set.names()]
    (table,) = {"predictions.csv", "images.csv"} & {*written("folds")}
    rows = [*csv.reader(Path("folds", table).read_text().splitlines())][1:]
    assert len(rows) == len({*names}) == len({row[0] for row in rows})
    for name in {*names}:
        assert any(row[0].endswith(name) for row in rows)
    assert run_folds(small, "--out=folds") == 0
    assert len(inside) == 4, "what has ended is not run again"


def test_folds_that_share_images_are_refused() -> None:
    check_folds(["a.png", "b.png"])
    with pytest.raises(BadInput, match=r"^b.png: is in several folds; .* set_aside of engine"):
        check_folds(["a.png", "b.png", "b.png"])


@pytest.mark.slow
def test_folds_that_were_killed_twice_end_with_the_same_bits(
    small: list[str], inside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = ["--save-every=1"]
    assert run_folds(small, "--out=undisturbed", options=every) == 0
    for step in (1, 2):
        with monkeypatch.context() as patch:
            die_at_step(patch, step)
            assert run_folds(small, "--out=killed", options=every) == 9
    assert not Path("killed/index.html").exists()
    assert run_folds(small, "--out=killed", options=every) == 0
    for run in ("fold-1", "fold-2"):
        assert same_weights(Path("killed", run), Path("undisturbed", run))
    assert written("killed") == written("undisturbed") != {}
    # The report was lost: it is made again.
    shutil.rmtree("killed/fold-2/report-val")
    del inside[:]
    assert run_folds(small, "--out=killed", options=every) == 0
    assert inside == ["test.py"]


def test_other_options_need_another_folder(
    small: list[str], capsys: pytest.CaptureFixture[str], inside: list[str]
) -> None:
    Path("folds").mkdir()
    Path("folds/folds.json").write_text(json.dumps({"folds": 2, "options": ["--x"], "ended": []}))
    for words, told in (
        (["--out=folds", "--"], "holds the folds of --folds 2 -- --x; name another folder"),
        (["--out=folds", "--folds=1"], "--folds"),
        (["--out=other", "--", "--fold=1/2"], "--fold=1/2: tools.folds gives it to each run"),
        (["--out=other", "--", "--resume"], "--resume: "),
        (["--out=.", "--"], "holds folds, and no folds"),
    ):
        assert told in refusal(capsys, folds.main, "folds.py", "--folds=2", *words)
    Path("folds/folds.json").write_text("{")
    line = refusal(capsys, folds.main, "folds.py", "--out=folds", "--", *small)
    assert "folds.json: not readable; delete it" in line
    assert not inside


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_signal_ends_the_run_of_a_fold_after_its_step(small: list[str]) -> None:
    words = ["--folds=2", "--out=folds", "--", *small, "--epochs=400", "--save-every=1"]
    words += ["--val-every=1000"]
    here = Path.cwd()
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tools.folds", *words]
    command = [word.replace("--out=folds", f"--out={here / 'folds'}") for word in command]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    run = here / "folds/fold-1"
    deadline = time.monotonic() + PATIENCE
    while not (run / "checkpoints").is_dir() or not saved_steps(run):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert "SIGTERM: stopped in fold 1/2; next:\npython -m tools.folds --folds=2" in out
    assert "saved step" in out
