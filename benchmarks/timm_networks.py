"""Which networks of timm train: each is built, trained, resumed and frozen, at its own size.

    python -m benchmarks.timm_networks --out timm.json                    under 30 M weights
    python -m benchmarks.timm_networks --out timm.json --only 'vit_tiny*' --most 100

Smallest first, in one process, each by train.py itself: one step of two images, a second one after
a resume, and one of the head alone from those weights, whose other layers must stay as they were.
The file is written after each network, and one that is in it is not tried again, so a stopped
program goes on; a network that had ended the process is listed as such. Before that, for every
name, size, mean, std and the resized picture are compared with timm's own pipeline. Sizes are
counted on `meta`, which takes a second a network.

Prints each failure, and at the end how many work.
"""

import argparse
import contextlib
import gc
import io
import json
import math
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from benchmarks.runner import render

SIZES = ((640, 427), (375, 500), (97, 61))  # width and height of the pictures that are compared
QUICK = ["--device=cpu", "--workers=0", "--batch-size=2", "--log-every=1", "--quiet", "--no-flip"]


def main() -> None:
    parser = argparse.ArgumentParser("timm_networks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="results, and where to go on")
    add("--most", type=float, default=30, help="millions of weights (default: 30)")
    add("--only", nargs="+", default=["*"], metavar="GLOB", help="such as 'vit_*'")
    opt = parser.parse_args()
    warnings.simplefilter("ignore")
    names = [name for name in timm.list_models() if any(fnmatch(name, one) for one in opt.only)]
    found: dict[str, Any] = json.loads(opt.out.read_text()) if opt.out.exists() else {}
    for entry in found.values():
        if entry.get("trains") == "started":
            entry["trains"] = "ended the process"

    def note(name: str, **more: Any) -> None:
        found.setdefault(name, {}).update(more)
        opt.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as scratch:
        sys.path.insert(0, str(render(Path(scratch))))
        source: Any = import_module("engine.data.source")
        source._digest_file = cache(source._digest_file)  # of code, which stays as it is
        for name in names:
            if "preset" not in found.get(name, {}):
                note(name, preset=said(lambda: compare_preset(name)))  # noqa: B023
            if "weights" not in found[name]:
                note(name, weights=weights(name))
        data = draw_data(Path(scratch) / "data")
        for name in sorted(names, key=lambda name: found[name]["weights"]):
            if found[name]["weights"] <= opt.most * 1e6 and "trains" not in found[name]:
                note(name, trains="started")
                begun = time.monotonic()
                runs = Path(scratch) / "runs"
                why = said(lambda: train_all(name, data, runs, note))  # noqa: B023
                note(name, trains=why, seconds=round(time.monotonic() - begun, 1))
                print(f"{name}: {why}", flush=True)
                shutil.rmtree(runs, ignore_errors=True)
                gc.collect()
    print(conclusion(found, opt.most))


def said(check: Callable[[], None]) -> str:
    """`ok`, or what a check or a program said."""
    try:
        check()
    except (Exception, SystemExit) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return "ok"


def weights(name: str) -> int:
    """The number of weights of a network for two classes; 0 if it cannot be built."""
    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=2)
        return sum(parameter.numel() for parameter in network.parameters())
    except Exception:
        return 0


def compare_preset(name: str) -> None:
    """Size, mean, std, and the pixels of pictures, are those of timm's own pipeline."""
    ours: Any = import_module("task.preprocessing")
    opt = import_module("options").parse([f"--network=timm:{name}", "--weights=unread", "--flip"])
    known: Any = timm.get_pretrained_cfg(name)
    config = timm.data.resolve_data_config(pretrained_cfg=known.to_dict())
    transform = timm.data.create_transform(**config, is_training=False)
    pixels = timm.data.create_transform(**config, is_training=False, normalize=False)
    assert opt.img_size == config["input_size"][1], "size"
    how = ours.settings(opt)
    _, last = transform.transforms[-2:]
    assert torch.equal(torch.tensor(how["mean"]), last.mean), "mean"
    assert torch.equal(torch.tensor(how["std"]), last.std), "std"
    for width, height in SIZES:
        picture = draw(width, height)
        ours, theirs = torch.tensor(np.asarray(ours.resized(picture, opt))), pixels(picture)
        assert torch.equal(ours.permute(2, 0, 1), theirs), f"pixels of {width} x {height}"


def draw(width: int, height: int) -> Image.Image:
    """A picture with edges, slopes and noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(width).integers(0, 60, (height, width, 3))
    waves = [np.sin(x / 9 + y / 23) * 90 + 97, (x * 5 + y * 3) % 195, (x // 16 + y // 16) % 2 * 195]
    return Image.fromarray((np.stack(waves, axis=-1) + noise).clip(0, 255).astype(np.uint8))


def draw_data(folder: Path) -> Path:
    """Two classes, each of a picture to train on and one to validate on."""
    for i, place in enumerate(("train/a", "train/b", "val/a", "val/b")):
        (folder / place).mkdir(parents=True)
        draw(300 + 40 * i, 260).save(folder / place / "1.png")
    return folder


def train_all(name: str, data: Path, runs: Path, note: Callable[..., None]) -> None:
    """A step, a second one after a resume, one of the head alone; raises what went wrong."""
    shared = [*QUICK, f"--data={data}", f"--network=timm:{name}"]
    one = run(*shared, "--epochs=1", f"--run-dir={runs / 'one'}")
    (line, *_) = (runs / "one/metrics.jsonl").read_text().splitlines()
    first = json.loads(line)["values"]["cross_entropy"]
    note(name, first_loss=first)
    two = run(f"--run-dir={runs / 'one'}", "--resume", "--epochs=2")
    assert (one["n_iter"], two["n_iter"]) == (1, 2), "steps"
    from_weights = [*shared, f"--weights={runs / 'one/checkpoints/last.pt'}", "--epochs=1"]
    frozen = run(*from_weights, "--freeze", f"--run-dir={runs / 'frozen'}")
    path = str(runs / "frozen/checkpoints/last.pt")
    network = import_module("model").Model.from_checkpoint(path)[0].net
    parts = import_module("engine.modules").head_of(network)
    head = {id(p) for part in parts for p in part.parameters()}
    own = {key for key, p in network.named_parameters() if id(p) in head}
    changed = {key for key, value in frozen["net"].items() if not value.equal(two["net"][key])}
    assert own and changed and changed <= own, f"--freeze changed {sorted(changed - own)}"
    assert all(two["net"][key].shape[0] % 2 == 0 for key in own), "the head has no score a class"
    note(name, head=sorted(own))
    assert abs(first - math.log(2)) < 0.7, f"first loss {first:.2f}, a guess has {math.log(2):.2f}"


def run(*words: str) -> dict[str, Any]:
    """Runs train.py in this process; returns its last checkpoint, or raises what it said."""
    sys.argv = ["train.py", *words]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            import_module("engine.errors").run_program(import_module("train").main)
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(said.getvalue().strip().splitlines()[-1]) from None
    (place,) = (word.partition("=")[2] for word in words if word.startswith("--run-dir="))
    path = Path(place) / "checkpoints/last.pt"
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def conclusion(found: dict[str, Any], most: float) -> str:
    """How many networks work, and the others with the reason."""
    lines = []
    for what, about in (("preset", "presets"), ("trains", f"networks under {most:g} M weights")):
        known = {n: e for n, e in found.items() if what in e}
        failed = {n: entry[what] for n, entry in known.items() if entry[what] != "ok"}
        lines += [f"- {name}: {why}" for name, why in failed.items()]
        lines.append(f"{len(known) - len(failed)} of {len(known)} {about}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
