"""Measures what presets and options give: runs of train.py, judged by test.py on test/.

    python -m benchmarks.recipes small --data fashion --seeds 3      a preset against the defaults
    python -m benchmarks.recipes small-items --data fashion          each of its items taken away
    python -m benchmarks.recipes finetune --data fashion --seeds 5   few images of other classes
    python -m benchmarks.recipes crop --data stamps --seeds 3 -- --network=resnet18 --epochs=30
    python -m benchmarks.recipes pair --data fashion -- --ema=0.99    options against the defaults
    python -m benchmarks.recipes rare --data fashion --seeds 3       every second class made rare
    python -m benchmarks.recipes cifar10 --data cifar10 --seeds 5    to 94 %, and how long it takes

DIR is a data set with train/ and test/, as `python -m tools.prepare_data` makes one. What follows
`--` goes to every run (`pair`: to one of the two). Prints a Markdown table after each run: mean and
standard error of the test accuracy (`rare`: of the mean recall of the classes) over the seeds, and
the mean time of a run.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

from benchmarks.machine import ROOT, describe
from benchmarks.runner import render

PRESETS = ROOT / "{{cookiecutter.project_slug}}/tasks/image-classification/presets"
RATIO = 99  # of the images of a common class to those of a rare one
SHOTS = 20  # images of each class to fine-tune on
Recipes = dict[str, list[str]]  # the options of train.py by the name of a row


def main() -> None:
    given, _, more = " ".join(sys.argv[1:]).partition(" -- ")
    parser = argparse.ArgumentParser("recipes", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("what", choices=("small", "small-items", "finetune", "crop", "pair", "rare", "cifar10"))
    add("--data", type=Path, required=True, metavar="DIR", help="a data set of train/ and test/")
    add("--seeds", type=int, default=1, help="runs of each row")
    add("--work", type=Path, help="folder of the runs (default: a temporary one)")
    opt = parser.parse_args(given.split())
    print(", ".join(f"{name} {value}" for name, value in describe().items()), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = (opt.work or Path(scratch)).resolve()
        compare(opt.what, opt.data.resolve(), opt.seeds, work, more.split())


def compare(what: str, data: Path, seeds: int, work: Path, more: list[str]) -> None:
    """Runs every row with every seed, seed by seed, and prints the table after each run."""
    shutil.rmtree(work / "project", ignore_errors=True)
    project = render(work)
    recipes = make_recipes(what, more)
    base = ""
    if what == "finetune":
        classes = sorted(path.name for path in (data / "train").iterdir() if path.is_dir())
        half = len(classes) // 2
        source = subset(data, work / "source", classes[:half], None, 0)
        accuracy, seconds = measure(project, work / "base", source, 0, more)
        print(f"the network to start from: {accuracy:.4f} on {half} classes, {seconds:.0f} s")
        base = f"--weights={work / 'base'}"
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in recipes}
    metric = "macro_recall" if what == "rare" else "accuracy"
    for seed in range(seeds):
        images = data
        if what == "rare":
            classes = sorted(path.name for path in (data / "train").iterdir() if path.is_dir())
            images = subset(data, work / f"draw{seed}", classes, None, seed)
            for name in classes[1::2]:
                files = sorted((images / "train" / name).iterdir())
                random.Random(f"{seed} {name}").shuffle(files)
                for file in files[max(2, len(files) // RATIO) :]:  # one each to train and validate
                    file.unlink()
        if what == "finetune":
            images = subset(data, work / f"draw{seed}", classes[half:], SHOTS, seed)
        for name, words in recipes.items():
            run = work / f"{name}-{seed}".replace(" ", "-")
            words = [base if word == "--weights" else word for word in words]
            found[name].append(measure(project, run, images, seed, words, metric))
            print(table(found, metric), flush=True)


def make_recipes(what: str, more: list[str]) -> Recipes:
    """The rows of a comparison."""
    if what == "pair":
        return {"defaults": [], " ".join(more): more}
    if what == "cifar10":
        # The published width, batch and length (Page 2018): 94 % in 24 epochs, on one GPU.
        whole = ["--width=64", "--batch-size=512", "--epochs=24", "--lr=0.4", "--warmup=0.2"]
        return {"small at full width": ["@presets/small.txt", *whole, "--shift=4", *more]}
    if what == "rare":
        return {"shuffled": more, **{w: [w, *more] for w in ("--balance", "--sample=balanced")}}
    if what == "crop":
        crop = [*more, "--resize=crop"]
        return {"squash": [*more, "--resize=squash"], "crop": crop}
    if what == "finetune":
        preset = ["@presets/finetune.txt", "--weights"]
        length = [word for word in read("finetune") if word.startswith(("--epochs", "--batch"))]
        plain = [*length, *more]
        return {
            "from scratch": plain,
            "all layers, defaults": [*plain, "--weights"],
            "finetune": [*preset, *more],
        }
    small = ["@presets/small.txt", *more]
    if what == "small":
        return {"defaults": more, "small": small}
    # The rate is that of the optimizer; the width is a choice of time, not an item that helps.
    items = [item for item in read("small") if not item.startswith(("--lr", "--width"))]
    return {
        "small": small,
        **{f"without {item}": [*without(item, read("small")), *more] for item in items},
    }


def without(item: str, items: list[str]) -> list[str]:
    """The items of a preset but for one, and but for those that make no sense without it."""
    optimizer = ("--optimizer", "--lr", "--weight-decay")
    away = optimizer if item.startswith("--optimizer") else (item,)
    return [other for other in items if not other.startswith(away)]


def read(preset: str) -> list[str]:
    """The options in a preset."""
    lines = (PRESETS / f"{preset}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def subset(data: Path, folder: Path, classes: list[str], shots: int | None, seed: int) -> Path:
    """A data set of some of the classes: `shots` of the training images of each, or all of them."""
    shutil.rmtree(folder, ignore_errors=True)
    for split in ("train", "test"):
        for name in classes:
            files = sorted((data / split / name).iterdir())
            if split == "train" and shots:
                files = random.Random(f"{seed} {name}").sample(files, min(shots, len(files)))
            (folder / split / name).mkdir(parents=True)
            for file in files:
                os.link(file, folder / split / name / file.name)
    if (data / "dataset.json").exists():
        shutil.copy(data / "dataset.json", folder)
    return folder


def measure(
    project: Path, run: Path, data: Path, seed: int, words: list[str], metric: str = "accuracy"
) -> tuple[float, float]:
    """A metric on test/ of a new run, and its seconds."""
    shutil.rmtree(run, ignore_errors=True)
    begun = time.monotonic()
    given = [*words, f"--data={data}", f"--seed={seed}", f"--run-dir={run}"]
    subprocess.run(
        [sys.executable, "train.py", *given], cwd=project, stdout=subprocess.DEVNULL, check=True
    )
    seconds = time.monotonic() - begun
    judge = [sys.executable, "test.py", f"--checkpoint={run}"]
    subprocess.run(judge, cwd=project, stdout=subprocess.DEVNULL, check=True)
    report = json.loads((run / "report" / "metrics.json").read_text(encoding="utf-8"))
    return report[metric], seconds


def table(found: dict[str, list[tuple[float, float]]], metric: str = "accuracy") -> str:
    """The rows that have been measured, in Markdown."""
    lines = ["", f"| | test {metric.replace('_', ' ')} | each run | seconds |", "|---|---|---|---|"]
    for name, runs in found.items():
        if runs:
            values = [accuracy for accuracy, _ in runs]
            error = f" ± {stdev(values) / math.sqrt(len(values)):.4f}" if len(values) > 1 else ""
            each = ", ".join(f"{value:.4f}" for value in values)
            seconds = mean(seconds for _, seconds in runs)
            lines.append(f"| {name} | {mean(values):.4f}{error} | {each} | {seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
