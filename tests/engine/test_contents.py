"""files.jsonl and a resume: images and code are known by their content, not by their names."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Build, Train
from marks import slow_after
from PIL import Image, ImageOps
from programs import last, resume

import options
from engine.checkpoint import restore
from engine.data import contents, source
from engine.data.cache import CachedImages
from engine.data.contents import FILES, Files, compare, find_records, read_records
from engine.state import environment_changes
from model import Model

ONE = "1" * 32
RECORD = [5, 7, ONE, 9, 3, "training"]


def invert(path: Path) -> None:
    with Image.open(path) as image:
        ImageOps.invert(image.convert("RGB")).save(path)


def needs_files(build: Build, *words: str) -> None:
    if not hasattr(build(*words).train_set, "images"):
        pytest.skip("the samples are not files")


def names(run: Path, side: str) -> list[str]:
    return [name for name, record in read_records(run / FILES).items() if record[-1] == side]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (RECORD, ""),
        ([5, 8, ONE, 1, 1, "training"], ""),  # copied, and as it was
        ([5, 7, "2" * 32, 9, 3, "training"], "1 training image has changed, train/a.png"),
        (None, "1 training image is gone, train/a.png"),
        ([5, 7, None, 9, 3, "training"], ""),
        ([6, 7, None, 9, 3, "training"], "1 training image has changed, train/a.png"),
        (
            [5, 8, None, 9, 3, "training"],
            "1 image has another time of change, and no digest, train/a.png",
        ),
    ],
)
def test_files_are_compared_by_their_bytes(record: list[Any] | None, told: str) -> None:
    before = {"train/a.png": RECORD, "train/b.png": RECORD}
    now = {"train/b.png": RECORD} | ({"train/a.png": record} if record else {})
    assert "".join(compare(before, now).values()) == told


def test_the_first_file_and_the_count_are_told_for_each_side() -> None:
    before = {f"train/{i}": RECORD for i in range(3)} | {"val/a": [*RECORD[:5], "validation"]}
    now = {name: [*record[:2], "3" * 32, *record[3:]] for name, record in before.items()}
    assert compare(before, {**now, "train/x": RECORD}) == {
        "training": "3 training images have changed, first train/0; "
        "1 training image is new, train/x",
        "validation": "1 validation image has changed, val/a",
    }


@pytest.mark.parametrize("cache", slow_after(1, ["--cache", "--no-cache"]))
def test_a_run_records_its_images_and_reads_each_once(
    train: Train, build: Build, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    needs_files(build)
    assert train("run", "--epochs=1", cache) == 0
    records = read_records(Path("run") / FILES)
    assert list(records) == [f"train/{name}" for name in build().train_set.images.files]
    assert len({record[2] for record in records.values()}) == len(records)
    assert {record[-1] for record in records.values()} == {"training", "validation"}
    before = (Path("run") / FILES).read_bytes()
    monkeypatch.setattr(contents, "digest_file", pytest.fail)
    assert resume(Path("run"), "--epochs=2") == 0
    assert (Path("run") / FILES).read_bytes() == before


def test_many_files_without_a_cache_are_not_read(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = build("--no-cache")
    needs_files(build)
    monkeypatch.setattr(contents, "FEW", 1)
    monkeypatch.setattr(contents, "digest_file", pytest.fail)
    files = Files(Path(), parts.train_set, parts.val_set)
    files.write(lambda path, text: path.write_text(text))
    assert {record[2] for record in read_records(Path(FILES)).values()} == {None}
    assert find_records(Path(), files.facts())


def test_a_resume_names_changed_images_and_forgets_the_best_value_of_others(
    train: Train, build: Build, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = f"--data={spoiled}", Path("run")
    needs_files(build, data)
    assert train(run, data, "--val-share=0.4") == 0
    state = last(run)
    state["best"], state["best_loss"] = 1e6, -1.0  # nothing is better
    for path in (run / "checkpoints").glob("*.pt"):
        torch.save(state, path)
    judged, trained = names(run, "validation")[:2], names(run, "training")[0]
    for name in (*judged, trained):
        invert(spoiled / name)
    capsys.readouterr()
    assert resume(run) == 0  # it was over, but for the validation
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"1 training image has changed, {trained}; " in error
    assert f"2 validation images have changed, first {judged[0]}: the best value so far " in error
    best = torch.load(run / "checkpoints/best.pt", weights_only=True)
    assert best["best"] == last(run)["best"] < 1e6
    assert read_records(run / "files-1.jsonl")[trained] != read_records(run / FILES)[trained]
    assert resume(run) == 0
    assert capsys.readouterr().err == ""
    assert not (run / "files-2.jsonl").exists()


@pytest.mark.parametrize("change", [["--img-size=20"], ["--resize=crop"], ["--noise=9"], []])
def test_a_best_value_that_was_measured_otherwise_is_forgotten(
    train: Train, build: Build, capsys: pytest.CaptureFixture[str], change: list[str]
) -> None:
    options = build().opt
    if change and not hasattr(options, change[0].partition("=")[0][2:].replace("-", "_")):
        pytest.skip("no such option")
    if not hasattr(build().val_set, "view"):
        pytest.skip("the data set does not say how it is seen")
    run = Path("run")
    no_pool = ["--losses=l1"] * hasattr(options, "pool")  # which keeps images of one size
    assert train(run, "--epochs=1", *no_pool) == 0
    state = last(run)
    state["best"], state["best_loss"] = 1e6, -1.0  # nothing is better
    for path in (run / "checkpoints").glob("*.pt"):
        torch.save(state, path)
    capsys.readouterr()
    assert resume(run, "--epochs=2", *change) == 0
    error = capsys.readouterr().err
    forgotten = "the best value so far was measured on others and is forgotten" in error
    assert forgotten == bool(change)
    assert (last(run)["best"] == 1e6) == (not change)


def test_a_change_is_told_until_a_checkpoint_knows_it(build: Build, spoiled: Path) -> None:
    """A resume that died before its first checkpoint has replaced files.jsonl already."""

    def note() -> Files:
        parts = build(f"--data={spoiled}", "--no-cache")
        return Files(Path(), parts.train_set, parts.val_set)

    needs_files(build)
    first = note()
    first.write(lambda path, text: path.write_text(text))
    changed = next(iter(read_records(Path(FILES))))
    invert(spoiled / changed)
    for _ in range(2):
        again = note()
        (told,) = again.changes(first.facts()).values()
        assert changed in told
        again.write(lambda path, text: path.write_text(text))
    Path("files-1.jsonl").unlink()
    assert "no record" in next(iter(note().changes(first.facts()).values()))
    assert note().changes({}) == {}  # of a checkpoint that says nothing of images


@pytest.mark.parametrize("cache", slow_after(1, ["--cache", "--no-cache"]))
def test_data_that_was_moved_or_copied_is_the_same(
    train: Train, build: Build, spoiled: Path, capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    needs_files(build)
    assert train("run", f"--data={spoiled}", cache) == 0
    moved = spoiled.rename(spoiled.with_name("moved"))
    copied = shutil.copytree(moved, spoiled.with_name("copied"), copy_function=shutil.copyfile)
    capsys.readouterr()
    for folder in (moved, copied):
        assert resume(Path("run"), f"--data={folder}") == 0
        assert capsys.readouterr().err == ""


def test_several_images_of_one_folder_are_one_list(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    found = []
    for name in ("A", "B"):
        (folder / name).write_text(name)
        found.append(CachedImages(folder, [name], decode=lambda path: torch.zeros(1), recipe=""))
    files = Files(tmp_path, SimpleNamespace(images=found), SimpleNamespace(images=found[:1]))
    files.write(lambda path, text: path.write_text(text))
    records = read_records(tmp_path / FILES)
    assert [record[-1] for record in records.values()] == ["validation", "training"]
    assert find_records(tmp_path, files.facts()) == records


@pytest.mark.parametrize("text", ["", "no JSON\n", '["a", 1, 2, null]\n', "[1]\n", '{"a": 1}\n'])
def test_records_of_another_form_are_none(text: str) -> None:
    Path(FILES).write_text(text)
    assert read_records(Path(FILES)) == {}


# Code.


def test_code_is_compared_by_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PROJECT", Path().absolute())
    for name in ("networks.py", "losses.py", "gone.py"):
        Path(name).write_text("def f(x):\n    return x + 1\n")
    before = {name: source._digest_file(name) for name in os.listdir()}
    Path("gone.py").unlink()
    Path("losses.py").write_text('def f(x):\n    """Adds."""\n    # One.\n    return (x +\n  1)\n')
    assert source.changed_code(before) == ["gone.py"]
    Path("networks.py").write_text("def f(x):\n    return x + 2\n")
    assert sorted(source.changed_code(before)) == ["gone.py", "networks.py"]
    code = {"code": before, "git commit": "a"}
    told = environment_changes(code, {"code": {}, "git commit": "b"}, {})
    assert "networks.py" in told[0] and told[1:] == ["git commit a is now b"]
    before = {"losses.py": before["losses.py"]}
    assert environment_changes({**code, "code": before}, {"git commit": "b"}, {}) == []


def test_what_a_run_computes_with_is_in_its_checkpoint(finished: Path) -> None:
    environment = last(finished)["environment"]
    code = environment["code"]
    assert {"networks.py", "model.py", "dataset.py", "engine/optimizers.py"} <= code.keys()
    assert not [name for name in code if "site-packages" in name or name.startswith("tests/")]
    assert environment["git commit"]
    json.dumps(code)


def test_changed_code_is_named_at_a_resume_and_by_programs_that_load_a_checkpoint(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, "run")
    state = last(Path("run"))
    state["environment"]["code"].update({"networks.py": "0", "train.py": "0"})
    for path in Path("run/checkpoints").glob("*.pt"):
        torch.save(state, path)
    assert resume(Path("run")) == 0
    assert ": networks.py, train.py have changed\n" in capsys.readouterr().err
    restore(Model, "run/checkpoints/best.pt", options.make_parser())
    error = capsys.readouterr().err
    assert error.endswith(": written before a change of networks.py\n")
