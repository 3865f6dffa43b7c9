"""By how much the validation flatters a network if copies of an image are on both sides.

It is what the validation says more than where copies stay together. The digits of test/ were
written by others, so they are harder for both.

    python -m benchmarks.groups
    python -m benchmarks.groups --digits 100 --noise 60 -- --epochs 5

Of each digit that is trained on there are ten files: itself and nine copies with normal noise.
Training sets a share of the files aside, once by the hash of each file and once by that of the
digit (`--group`). test/ has digits of other writers, with their copies. What comes after `--` are
options of train.py.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import describe
from benchmarks.runner import render

COPIES = 9


def main() -> None:
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        "groups", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--digits", type=int, default=20, help="of each class to train and to validate on")
    add("--noise", type=float, default=100, help="standard deviation, of 255")
    add("--seeds", type=int, default=3, help="runs of each kind")
    opt = parser.parse_args(words[:own])
    print(", ".join(f"{name} {value}" for name, value in describe().items()), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        project = render(Path(scratch))
        unpack = "import dataset; dataset.data_dir(dataset.BUILT_IN)"
        subprocess.run([sys.executable, "-c", unpack], cwd=project, check=True)
        make_copies(project / "data/digits", project / "copies", opt.digits, opt.noise)
        for name, how in (("files", []), ("digits", [r"--group=/(\d+/\d+)-"])):
            found = []
            for seed in range(opt.seeds):
                options = [*how, f"--seed={seed}", *words[own + 1 :]]
                found.append(measure(project, f"{name}-{seed}", options))
                print(f"divided by {name}, seed {seed}: {told(*found[-1])}", flush=True)
            validated, tested = (sum(one) / len(found) for one in zip(*found, strict=True))
            print(f"divided by {name}, mean: {told(validated, tested)}", flush=True)


def told(validated: float, tested: float) -> str:
    points = f"{100 * (validated - tested):+.2f} points"
    return f"validation {validated:.2%}, other digits {tested:.2%}, {points}"


def make_copies(digits: Path, out: Path, count: int, noise: float) -> None:
    """Writes digits and their noisy copies: CLASS/NAME-0.png and so on; all digits of test/."""
    random = np.random.default_rng(0)
    classes = sorted(digits.glob("train/*"))
    found = [path for folder in classes for path in sorted(folder.iterdir())[:count]]
    for path in [*found, *sorted(digits.glob("test/*/*.png"))]:
        target = out / path.relative_to(digits).parent
        target.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(path).convert("L")).astype(float)
        for copy in range(1 + COPIES):
            noisy = pixels + random.normal(0, noise, pixels.shape) * (copy > 0)
            image = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
            image.save(target / f"{path.stem}-{copy}.png")


def measure(project: Path, name: str, options: list[str]) -> tuple[float, float]:
    """The accuracy on the validation images, and on the test images, of the best checkpoint."""
    run = f"runs/{name}"
    words = ["--data=copies", f"--run-dir={run}", "--no-flip", "--quiet", *options]
    subprocess.run([sys.executable, "train.py", *words], cwd=project, check=True)
    found = []
    for split, report in (("val", "report-val"), ("test", "report")):
        judge = [sys.executable, "test.py", f"--checkpoint={run}", f"--split={split}", "--quiet"]
        subprocess.run(judge, cwd=project, check=True)
        metrics = json.loads((project / run / report / "metrics.json").read_text())
        found.append(metrics["accuracy"])
    return found[0], found[1]


if __name__ == "__main__":
    main()
