"""Makes the pictures of the report in docs/images, with Chromium.

    python docs/screenshots.py

Makes a project in a temporary folder, trains two runs on its images, of which the second is resumed
once, tests both, and photographs the page of the second: report-light.png, report-dark.png, and
report-phone.png, 360 pixels wide. It needs the template's requirements, and chromium on the path.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs/images"
TRAIN = ("train.py", "--device=cpu", "--workers=0", "--log-every=2")
FRAME = '<!DOCTYPE html><body style="margin:0"><iframe src="{}" width="{}" height="{}"></iframe>'
LIMIT = 300_000  # bytes of a picture


def main() -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        sys.exit("screenshots.py: error: no chromium on the path; install it")
    with tempfile.TemporaryDirectory() as folder:
        project = make_project(Path(folder))
        page = make_report(project)
        photograph(browser, page, "report-light", 1000, 1500)
        photograph(browser, page, "report-dark", 1000, 1500, "--force-dark-mode")
        photograph(browser, page, "report-phone", 360, 1500)


def make_project(folder: Path) -> Path:
    """A new project of the defaults."""
    words = ["--no-input", "--default-config", "--output-dir", str(folder), str(ROOT)]
    answers = ["accelerator=cpu", "project_slug=project"]
    subprocess.run(
        [sys.executable, "-m", "cookiecutter", *words, *answers], check=True, capture_output=True
    )
    return folder / "project"


def make_report(project: Path) -> Path:
    """Trains and tests; returns the page of a run that was resumed, against another one."""

    def run(*words: str) -> None:
        subprocess.run([sys.executable, *words], cwd=project, check=True, stdout=subprocess.DEVNULL)

    run(*TRAIN, "--run-dir=runs/narrow", "--epochs=4", "--width=8")
    run("test.py", "--checkpoint=runs/narrow")
    run(*TRAIN, "--run-dir=runs/wide", "--epochs=2", "--schedule=constant")
    run(*TRAIN, "--run-dir=runs/wide", "--epochs=4", "--resume")
    run("test.py", "--checkpoint=runs/wide", "--against=runs/narrow")
    return project / "runs/wide/report/index.html"


def photograph(browser: str, page: Path, name: str, width: int, height: int, *more: str) -> None:
    """Saves the upper part of a page as a PNG.

    The window cannot be as narrow as a phone, so the page is put into a frame of that width.
    """
    frame, path = page.with_name(f"{name}.html"), OUT / f"{name}.png"
    text = FRAME.format(page.as_uri(), width, height).replace("<iframe", '<iframe style="border:0"')
    frame.write_text(text, encoding="utf-8")
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *more]
    size, target = f"--window-size={max(width, 500)},{height}", f"--screenshot={path}"
    subprocess.run(
        [browser, *words, size, target, frame.as_uri()], check=True, stderr=subprocess.DEVNULL
    )
    with Image.open(path) as picture:
        part = picture.convert("RGB").crop((0, 0, width, height)).quantize(64)
    part.save(path, optimize=True)
    if path.stat().st_size > LIMIT:
        sys.exit(f"screenshots.py: error: {path} has more than {LIMIT} bytes; lower its height")


if __name__ == "__main__":
    main()
