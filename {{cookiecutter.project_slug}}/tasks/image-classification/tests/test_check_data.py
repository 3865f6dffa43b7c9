"""check_data.py: everything that is wrong with a data set, in one go."""

import shutil
from pathlib import Path

import pytest
from programs import status

import check_data


def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = status(check_data.main, "check_data.py", str(folder))
    streams = capsys.readouterr()
    assert "Traceback" not in streams.err
    return code, streams.out


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    return shutil.copytree(images, tmp_path / "copy")


def test_a_good_data_set(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = check(images, capsys)
    assert code == 0
    assert "24 images in 3 classes" in out
    assert "12 images in 3 classes" in out
    assert out.splitlines()[-1] == "no problems"


def test_all_faults_are_listed_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0.png", "5.png"):
        (folder / "train" / "disc" / name).write_bytes(b"\x89PNG")
    shutil.rmtree(folder / "test" / "rows")
    for path in (folder / "test" / "columns").iterdir():
        path.unlink()
    code, out = check(folder, capsys)
    assert code == 2
    for culprit in ("disc/0.png", "disc/5.png", "rows", "test/columns"):
        assert culprit in out


def test_what_may_spoil_a_run_is_worth_a_look(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / "train" / "disc" / "1.png", folder / "test" / "disc" / "leak.png")
    shutil.copy(folder / "train" / "disc" / "2.png", folder / "train" / "rows" / "twin.png")
    (folder / "train" / "disc" / "notes.txt").write_text("")
    code, out = check(folder, capsys)
    assert code == 0
    for culprit in ("leak.png", "twin.png", "notes.txt"):
        assert culprit in out


def test_no_data_set_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = check(Path("nowhere"), capsys)
    assert code == 2
    assert "nowhere" in out
