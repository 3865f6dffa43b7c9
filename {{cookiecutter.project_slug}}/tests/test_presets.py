"""The files in presets/: their first line says how to use them, and a run with them works."""

from pathlib import Path

import pytest
from needs import needs
from programs import ROOT, last, status

import options
import train as program

PRESETS = sorted((ROOT / "presets").glob("*.txt"))
# The network of the tests, whatever the preset names.
NETWORK = options.make_parser().get_default("network")
TINY = [f"--network={NETWORK}"] if NETWORK else []
UNTRAINED = ["--head-epochs=0", "--no-hold-norms"]  # what makes sense with trained weights alone


def read_lines(path: Path) -> list[str]:
    """The lines of a preset; the test is skipped if the project has lost one of its options."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("--"):
            needs(line.partition("=")[0])
    return lines


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_trains(small: list[str], images: Path, path: Path) -> None:
    lines = read_lines(path)
    assert lines[0].startswith("# ")
    assert f"@presets/{path.name}" in lines[0]
    words = [f"@{path}", *small, *TINY, "--run-dir=run", "--epochs=2", *UNTRAINED]
    assert status(program.main, "train.py", *words) == 0
    args = last(Path("run"))["args"]
    taken = [line for line in lines if not line.startswith("#")]
    given = {word.partition("=")[0].replace("--no-", "--") for word in words}
    for name, _, value in (line.partition("=") for line in taken):
        if name not in given and name != "--val-img-size":
            found = args[name[2:].replace("-", "_")]
            assert found == (type(found)(value) if value else True), name


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_what_follows_a_preset_overrides_it(path: Path) -> None:
    read_lines(path)
    assert options.parse([f"@{path}", *UNTRAINED, "--flip", "--epochs=77"]).epochs == 77
