"""Makes the pictures of a run, of its report and of TensorBoard in docs/images, with Chromium.

    python docs/screenshots.py
    python docs/screenshots.py run       the terminal alone

Makes a project in a temporary folder. run.png is the terminal of a run of train.py with its
defaults, in the last but one epoch. Then trains two runs, of which the second is stopped and
resumed, tests both, and photographs the page of the second: report-light.png, report-dark.png,
and report-phone.png, 360 pixels wide. tensorboard-scalars.png, -images.png and -hparams.png show
both runs. It needs the template's requirements, tensorboard, chromium on the path, and a system
with pseudo-terminals.
"""

import fcntl
import html
import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from PIL import Image

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs/images"
TRAIN = ("train.py", "--device=cpu", "--workers=0", "--log-every=2")
FRAME = '<!DOCTYPE html><body style="margin:0"><iframe src="{}" width="{}" height="{}"></iframe>'
LIMIT = 300_000  # bytes of a picture
COLUMNS = 104
# The moment of the picture: the bar of the ninth of ten epochs, with its losses.
MOMENT = r"epoch 9/10 +8\d%.*efficiency"
TERMINAL = """<!DOCTYPE html><meta charset="utf-8"><style>
body { margin: 0; background: #1e2127; color: #d7dae0; }
pre { margin: 0; padding: 16px 18px; font: 14px/1.35 "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; word-break: break-all; }
b { color: #98c379; font-weight: normal; }
</style><pre><b>$</b> {}</pre>"""
# Pages of TensorBoard, their height, and the tags that are shown.
BOARD = (
    ("scalars", 755, "accuracy|cross_entropy|lr|gradient_norm|val"),
    ("images", 755, "val"),
    ("hparams", 320, ""),
)


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("screenshots.py: error: no chromium on the path; install it")
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder))
        shown = watch(project, "train.py", "--run-dir=runs/first")
        page, lines = project / "terminal.html", shown.count("\n") + 2
        page.write_text(TERMINAL.replace("{}", html.escape(shown)), encoding="utf-8")
        photograph_page(browser, page, "run", 920, 32 + 19 * lines)
        if sys.argv[1:] == ["run"]:
            return
        page = make_report(project)
        photograph_page(browser, page, "report-light", 1000, 1500)
        photograph_page(browser, page, "report-dark", 1000, 1500, "--force-dark-mode")
        photograph_page(browser, page, "report-phone", 360, 1500)
        with tensorboard(project) as address:
            for tab, height, tags in BOARD:
                url = f"{address}/#{tab}" + f"&tagFilter={tags}" * bool(tags)
                wait = "--virtual-time-budget=20000"  # its pages ask for their data one by one
                photograph(browser, url, f"tensorboard-{tab}", 1700, height, wait)


def make_project(folder: Path) -> Path:
    """A new project of the defaults."""
    words = ["--no-input", "--default-config", "--output-dir", str(folder), str(ROOT)]
    answers = ["accelerator=cpu", "project_slug=project"]
    subprocess.run(
        [sys.executable, "-m", "cookiecutter", *words, *answers], check=True, capture_output=True
    )
    return folder / "project"


def watch(project: Path, *words: str) -> str:
    """What a terminal shows of a program at MOMENT: its command, its lines, its bar."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    command = [sys.executable, *words]
    program = subprocess.Popen(command, cwd=project, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = ""
    while not re.search(MOMENT, text.rpartition("\r")[2]):
        text += os.read(ours, 1024).decode(errors="replace")
    program.terminate()
    program.wait()
    os.close(ours)
    lines = [f"python {' '.join(words).replace('=', ' ')}"]
    for line in text.replace("\r\n", "\n").split("\n"):  # a bar overwrites itself
        lines.append(re.sub(r"\x1b\[\w*", "", line.rpartition("\r")[2]).rstrip())
    return "\n".join(lines)


def make_report(project: Path) -> Path:
    """Trains and tests; returns the page of a run that was resumed, against another one."""

    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], cwd=project, check=True, stdout=subprocess.DEVNULL)

    run(*TRAIN, "--run-dir=runs/narrow", "--epochs=4", "--width=8")
    run("test.py", "--checkpoint=runs/narrow")
    wide = [*TRAIN, "--run-dir=runs/wide", "--epochs=4", "--schedule=constant", "--save-every=30"]
    process = subprocess.Popen([sys.executable, *wide], cwd=project, stdout=subprocess.DEVNULL)
    while not (project / "runs/wide/checkpoints/iter-000000030.pt").exists():
        if process.poll() is not None:
            sys.exit("screenshots.py: error: the run ended before it was stopped")
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait()
    run("train.py", "--run-dir=runs/wide", "--resume")
    run("test.py", "--checkpoint=runs/wide", "--against=runs/narrow")
    return project / "runs/wide/report/index.html"


@contextmanager
def tensorboard(project: Path) -> Iterator[str]:
    """The address of a TensorBoard that shows the runs of a project."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ["-m", "tensorboard.main", "--logdir=runs", f"--port={port}"]
    process = subprocess.Popen([sys.executable, *words], cwd=project, stderr=subprocess.DEVNULL)
    address, local = f"http://localhost:{port}", build_opener(ProxyHandler({}))
    try:
        for _ in range(300):
            with suppress(OSError):
                if b"wide" in local.open(f"{address}/data/runs").read():
                    break
            if process.poll() is not None:
                sys.exit("screenshots.py: error: no TensorBoard; pip install tensorboard")
            time.sleep(0.2)
        time.sleep(5)  # it has found the runs, and reads their files
        yield address
    finally:
        process.terminate()
        process.wait()


def photograph_page(
    browser: str, page: Path, name: str, width: int, height: int, *more: str
) -> None:
    """Saves the upper part of a page of ours as a PNG.

    The window cannot be as narrow as a phone, so the page is put into a frame of that width.
    """
    frame = page.with_name(f"{name}.html")
    text = FRAME.format(page.as_uri(), width, height).replace("<iframe", '<iframe style="border:0"')
    frame.write_text(text, encoding="utf-8")
    photograph(browser, frame.as_uri(), name, width, height, *more)


def photograph(browser: str, url: str, name: str, width: int, height: int, *more: str) -> None:
    """Saves the upper part of a page as a PNG."""
    path = OUT / f"{name}.png"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *more]
    words += ["--no-proxy-server", f"--window-size={max(width, 500)},{height}"]
    subprocess.run(
        [browser, *words, f"--screenshot={path}", url], check=True, stderr=subprocess.DEVNULL
    )
    with Image.open(path) as picture:
        part = picture.convert("RGB").crop((0, 0, width, height)).quantize(64)
    part.save(path, optimize=True)
    if path.stat().st_size > LIMIT:
        sys.exit(f"screenshots.py: error: {path} has more than {LIMIT} bytes; lower its height")


if __name__ == "__main__":
    main()
