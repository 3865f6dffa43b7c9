"""What the programs print: in a terminal, in a log file, and with --quiet."""

import io
import os
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from conftest import Train
from programs import ROOT, resume, status
from torch import Tensor, nn

import predict
import test
from engine import terminal
from engine.errors import StopSignal
from engine.report.summary import summarize

WIDE = 80  # columns of a terminal


def lines_at_start(out: str) -> list[str]:
    """What is printed before the first step."""
    return out.split("epoch 1/")[0].splitlines()


def stop_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StopSignal, "received", "SIGINT", raising=False)
    patch.setattr(StopSignal, "agreed", lambda self: True)


def log_of(*words: str) -> str:
    """What train.py writes into a file that gets both of its streams."""
    with open("log.txt", "w") as file:
        program = [sys.executable, str(ROOT / "train.py")]
        subprocess.run([*program, *words], stdout=file, stderr=subprocess.STDOUT, check=True)
    return Path("log.txt").read_text()


def test_the_start_of_a_run_tells_the_essential_in_twenty_lines(
    train: Train, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run") == 0
    out = capsys.readouterr().out.replace(str(images), "data").replace(f"{ROOT}/", "")
    lines = lines_at_start(out)
    assert len(lines) <= 20
    assert [line for line in lines if len(line) > WIDE] == []
    labels = ["data", "images", "net", "device", "step", "run", "resume"]
    starts = [line.split(":")[0] for line in lines]
    assert [label for label in starts if label in labels] == labels


class Model(nn.Module):
    """Networks that are called one after the other with the same images."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.named = nn.ModuleDict(networks)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [network(images) for network in self.named.values()]


def deep(layers: int) -> nn.Module:
    return nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(layers)], nn.ReLU())


@pytest.mark.parametrize(
    ("networks", "size"),
    [
        ({"net": deep(4)}, 8),
        ({"net": deep(100)}, 8),
        ({"net": deep(4), "discriminator": deep(30)}, 8),
        ({f"net{i}": nn.Sequential(deep(9), deep(9)) for i in range(4)}, 8),
        ({"net": torchvision.models.resnet18()}, 32),
        ({"net": torchvision.models.vit_b_16()}, 224),
        ({"net": torchvision.models.shufflenet_v2_x0_5()}, 32),
    ],
)
def test_large_networks_are_summarised_in_ten_lines(
    networks: dict[str, nn.Module], size: int
) -> None:
    text = summarize(Model(networks), networks, (torch.zeros(3, size, size),))
    assert text.count("\n") + 1 <= 10
    assert max(map(len, text.splitlines())) <= WIDE
    for name, network in networks.items():
        count = sum(parameter.numel() for parameter in network.parameters())
        assert f"{name}: {type(network).__name__}, {count:,} parameters" in text
    parts = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(parts) >= len(networks)


def test_the_summary_tells_how_much_is_trained() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))
    network[0].requires_grad_(False)
    text = summarize(Model({"net": network}), {"net": network}, (torch.zeros(3, 8, 6),))
    assert "net: Sequential, 41 parameters, 25 of them trained" in text
    assert re.search(r"0 +Conv2d +4x8x6 +16\n", text)


@pytest.mark.slow
def test_a_log_file_gets_lines_and_few_of_them(small: list[str]) -> None:
    log = log_of(*small, "--epochs=30", "--log-every=1", "--run-dir=run")
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f]*", log), "a control character"
    lines = [line for line in log.splitlines() if not re.search(r"\d%, \d+ of ", line)]
    assert len(lines) <= 20 + 30 + 2, "besides a line of progress for each minute"
    assert log.splitlines()[-2].startswith("done: best")


def test_a_long_run_writes_a_line_into_its_log_now_and_then(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "LINE_EVERY", 1e-6)  # seconds, instead of a minute
    assert train("run", "--epochs=2", "--log-every=1") == 0
    error = capsys.readouterr().err
    assert re.search(r"^epoch 1/2 \d+%, \d+ of \d+, .* left, \w+ \d", error, re.MULTILINE)
    assert "\r" not in error and "\x1b" not in error


def test_the_longer_it_takes_the_fewer_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    stream = io.StringIO()
    lines = terminal._Lines(stream)
    for now in range(60, 24 * 3600, 60):  # what `monotonic` returns
        lines.write(f"\r{now} s   ")
    assert 100 < stream.getvalue().count("\n") < 300
    assert stream.getvalue().startswith("60 s\n120 s\n180 s\n")


@pytest.mark.slow
def test_quiet_programs_print_their_last_line(
    train: Train,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.state.time", SimpleNamespace(monotonic=lambda: 5.0))
    assert train("run", "--quiet") == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"done: best .* on the validation images, in 0 s\n", out)
    given = ["--checkpoint=run", "--device=cpu", "--workers=0", "--quiet"]
    for name, program, words in (
        ("test.py", test.main, []),
        ("predict.py", predict.main, [str(images / "test"), "--out=out"]),
    ):
        assert status(program, name, *given, *words) == 0
        streams = capsys.readouterr()
        assert streams.out.startswith("wrote ") and streams.out.count("\n") == 1
        assert streams.err == ""
    assert "--quiet" not in Path("run/config.txt").read_text()
    assert resume(Path("run")) == 0
    assert "resumed after step" in capsys.readouterr().out  # no longer quiet


def test_quiet_leaves_warnings(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("run", "--epochs=1") == 0
    capsys.readouterr()
    assert resume(Path("run"), "--epochs=2", "--quiet") == 0
    assert "warning: not an exact continuation" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("printed", ["at the start", "at the end"])
def test_the_printed_command_resumes_a_run(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    printed: str,
) -> None:
    with monkeypatch.context() as patch:
        stop_at_once(patch)
        assert train("my run's") == 75
    lines = capsys.readouterr().out.splitlines()
    (at_start,) = (line[8:] for line in lines if line.startswith("resume: "))
    words = shlex.split(at_start if printed == "at the start" else lines[-1])
    assert words[0] == "python"
    resumed = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
    assert "resumed after step 0 of" in resumed.stdout and resumed.returncode == 0
    assert list(Path().glob("*")) == [Path("my run's")]


def shown(text: str, columns: int) -> list[str]:
    """The lines of a terminal; after its last column the next character, not the end, wraps."""
    lines, column = [[" "] * columns], 0
    for char in text:
        if char == "\r":
            column = 0
            continue
        if char == "\n" or column == columns:
            lines.append([" "] * columns)
            column = 0
        if char != "\n":
            lines[-1][column] = char
            column += 1
    return ["".join(line).rstrip() for line in lines]


needs_terminal = pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")


def open_terminal(columns: int) -> tuple[int, int]:
    """Our end of a new terminal, and the end that a program writes to."""
    import fcntl
    import pty
    import termios

    try:
        ours, theirs = pty.openpty()
    except OSError:  # a sandbox without /dev/pts
        pytest.skip("no terminals on this machine")
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    return ours, theirs


@needs_terminal
def test_a_closed_bar_leaves_nothing_on_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the terminal has put the ^C of Ctrl-C into its last columns."""
    ours, theirs = open_terminal(WIDE)
    with open(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(terminal, "_quiet", False)
        bar = terminal.bar(total=10, leave=False)
        line = "x" * (WIDE - 2) + "^C"
        stream.write("\r" + line)
        stream.flush()
        text = ""
        while "^C" not in text:
            text += os.read(ours, 1 << 16).decode()
        assert shown(text, WIDE) == [line]
        terminal.close(bar)
        stream.write("done")
        stream.flush()
        while "done" not in text:
            text += os.read(ours, 1 << 16).decode()
        assert shown(text, WIDE) == ["done"]
    os.close(ours)


InTerminal = Callable[..., str]


@pytest.fixture
def in_terminal(small: list[str]) -> InTerminal:
    """Runs train.py in a terminal of some columns; returns all that it writes to it."""

    def run(columns: int, *words: str) -> str:
        ours, theirs = open_terminal(columns)
        program = [sys.executable, str(ROOT / "train.py"), *small, "--run-dir=run", *words]
        process = subprocess.Popen(
            program, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "NO_COLOR": "1"}
        )
        os.close(theirs)
        found = b""
        while True:
            try:
                block = os.read(ours, 1 << 16)
            except OSError:  # Linux's end of file
                break
            if not block:
                break
            found += block
        os.close(ours)
        assert process.wait() == 0
        return found.decode()

    return run


@needs_terminal
@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, WIDE])
def test_the_bar_fits_into_the_terminal_and_has_no_colour(
    in_terminal: InTerminal, columns: int
) -> None:
    text = in_terminal(columns, "--epochs=200", "--log-every=1", "--val-every=200")
    assert "\x1b" not in text
    bars = [part for part in re.split(r"[\r\n]", text) if "%|" in part]
    assert max(map(len, bars)) <= columns
    steps = [part for part in bars if part.startswith("epoch")]
    assert steps
    if columns == WIDE:  # whole parts alone
        ends = r"(\d\d|\?|\w+ \d+\.\d{4}|efficiency \d+%|data wait \d+%|images/s) *"
        assert all(re.search(f"{ends}$", part) for part in steps), steps[-1]
        assert re.search(r" 200/\d+ [\d:]+ left, |\d+/\d+ [\d:]+ left, ", steps[-1])


@needs_terminal
@pytest.mark.slow
def test_a_quiet_run_shows_no_bar(in_terminal: InTerminal) -> None:
    text = in_terminal(WIDE, "--epochs=2", "--quiet")
    assert re.fullmatch(r"done: best .*\r\n", text)
