"""How much faster train.py --freeze is with features computed once than in each epoch.

    python -m benchmarks.features                               ResNet-18, 1,000 images, 30 epochs
    python -m benchmarks.features --images 200 --epochs 5 -- --precision fp32

Plain and mirrored images (--no-flip, --flip), each with features and with --no-features, in a new
process, from a saved random state dict, with nothing in the cache of features. Printed are the
seconds from the start of the first pass to the end of the last step, without those of validations,
saves and the first look at the features; the seconds of the whole program; and whether both ended
with the same weights, bit for bit. What comes after `--` are options of train.py.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torchvision.models import get_model

from benchmarks.machine import ROOT, describe
from benchmarks.make_images import Images, make
from benchmarks.runner import render

NETWORK = "resnet18"
# train.py with a clock: what is not trained is taken out of the time.
TIMED = """
import json, sys, time
sys.path.insert(0, ".")
import train
from engine.checkpoint import Checkpoints
from engine.optimizers import Optimizers
from model import Model
times = {"begun": 0.0, "ended": 0.0, "aside": 0.0}

def aside(call):
    def timed(*arguments, **named):
        begun = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            times["aside"] += time.perf_counter() - begun
    return timed

def step(self, call=Optimizers.step):
    call(self)
    times["ended"] = time.perf_counter()
    times["inside"] = times["aside"]

def first_pass(*arguments, call=train.use_features):
    times["begun"] = time.perf_counter()
    return call(*arguments)

Optimizers.step, train.use_features = step, first_pass
Checkpoints.save, train.evaluate = aside(Checkpoints.save), aside(train.evaluate)
Model.judge_features = aside(Model.judge_features)
status = 1
try:
    status = train.main()
finally:
    seconds = times["ended"] - times["begun"] - times["inside"]
    print("seconds " + json.dumps(seconds), flush=True)
sys.exit(status)
"""


def main() -> None:
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        "features", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000, help="images to train on")
    parser.add_argument("--epochs", type=int, default=30)
    opt = parser.parse_args(words[:own])
    print(", ".join(f"{name} {value}" for name, value in describe().items()), flush=True)
    data = make(Images("jpeg", opt.images), ROOT / "benchmarks" / "data_cache")
    with tempfile.TemporaryDirectory() as scratch:
        project = render(Path(scratch))
        torch.manual_seed(0)
        weights = project / "random.pt"
        torch.save(get_model(NETWORK).state_dict(), weights)
        how = [f"--data={data}", f"--network={NETWORK}", f"--weights={weights}", "--freeze"]
        how += ["--img-size=224", f"--epochs={opt.epochs}", *words[own + 1 :]]
        measure(project, "images", [*how, "--epochs=2", "--no-features"])  # decodes them
        for kind in ("--no-flip", "--flip"):
            forget_features(data)
            once = measure(project, "once", [*how, kind])
            each = measure(project, "each", [*how, kind, "--no-features"])
            same = "equal" if equal(project / "once", project / "each") else "other"
            print(
                f"{kind}: first pass and steps {once[0]:.1f} s instead of {each[0]:.1f} "
                f"({each[0] / once[0]:.1f} times), program {once[1]:.1f} s instead of "
                f"{each[1]:.1f} ({each[1] / once[1]:.1f} times), {same} bits",
                flush=True,
            )


def forget_features(data: Path) -> None:
    """Deletes the features beside a data set; the decoded images stay."""
    for path in (data / ".cache").glob("*.features"):
        path.unlink()


def measure(project: Path, run: str, words: list[str]) -> tuple[float, float]:
    """The seconds of the first pass and the steps of a run, and those of the whole program."""
    shutil.rmtree(project / run, ignore_errors=True)
    command = [sys.executable, "-c", TIMED, f"--run-dir={run}", *words]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - begun
    told = [line for line in done.stdout.splitlines() if line.startswith(("features", "seconds "))]
    print("\n".join([f"{run} {' '.join(words[-2:])}:", *told[:-1]]), flush=True)
    return json.loads(told[-1].removeprefix("seconds ")), whole


def equal(run: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits of the network."""
    one, two = (
        torch.load(folder / "checkpoints/last.pt", weights_only=True)["net"]
        for folder in (run, other)
    )
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


if __name__ == "__main__":
    main()
