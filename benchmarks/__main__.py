"""Measures a project of the template against others and against the limit, on this machine.

    make bench                                              the cases that fit this machine
    make bench ARGS="--cases small --only ours pure guide"  some of them
    make bench ARGS="--smoke"                               every kind, in tiny, in two minutes

Nothing else should run meanwhile. The contenders take turns over several rounds, each time in a
process of its own; medians count. Writes results.json, RESULTS.md and results.png after each
round. A case that is measured again replaces its part of them.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import torch

from benchmarks.cases import IN_SMOKE, ON_CPU, ON_GPU, make_cases
from benchmarks.machine import cores, describe
from benchmarks.make_images import forget_cache, make
from benchmarks.picture import draw
from benchmarks.report import Results, markdown
from benchmarks.runner import Runner

HERE = Path(__file__).parent


def parse() -> argparse.Namespace:
    """The options; `cases` are those by name, with the contenders that `--only` names."""
    default = ON_GPU if torch.cuda.is_available() else ON_CPU
    known = list(make_cases())
    parser = argparse.ArgumentParser("bench", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    names = f"of {', '.join(known)} (default: {' '.join(default)})"
    add("--cases", nargs="+", choices=known, metavar="CASE", help=names)
    add("--only", nargs="+", metavar="NAME", default=["*"], help="such as ours 'ours-*' guide")
    add("--rounds", type=int, help="times that the contenders take turns (default: 3)")
    add("--seconds", type=float, help="least time that a contender is timed (default: 8)")
    add("--data", type=Path, help="where data sets are kept (default: benchmarks/data_cache)")
    add("--fashion", type=Path, help="Fashion-MNIST as tools.prepare_data makes it, for accuracy")
    add("--out", type=Path, help="where to write (default: benchmarks)")
    tiny = "every kind of case in tiny, into --out or a temporary folder; the figures mean nothing"
    add("--smoke", action="store_true", help=tiny)
    opt = parser.parse_args()
    chosen = opt.cases or (IN_SMOKE if opt.smoke else default)
    if "accuracy" in chosen and not (opt.fashion or opt.smoke):
        parser.error("--cases accuracy: needs --fashion DIR")
    if any(name.startswith("gpu") for name in chosen) and not torch.cuda.is_available():
        parser.error(f"--cases {' '.join(chosen)}: PyTorch sees no CUDA device here")
    opt.rounds = opt.rounds or (1 if opt.smoke else 3)
    opt.seconds = opt.seconds or (0.1 if opt.smoke else 8.0)
    opt.workers = [1] if opt.smoke else sorted({0, cores() // 4, cores() // 2, cores()})
    opt.cases = {}
    for name in chosen:
        case = make_cases(opt.smoke, opt.fashion)[name]
        wanted = [c for c in case.contenders if any(fnmatch(c.name, only) for only in opt.only)]
        if wanted:
            opt.cases[name] = replace(case, contenders=wanted)
    if not opt.cases:
        parser.error(f"--only {' '.join(opt.only)}: no such contender in these cases")
    return opt


def measure(opt: argparse.Namespace, scratch: Path) -> None:
    """Measures, and writes the results after each round."""
    out = opt.out or (Path(tempfile.mkdtemp(prefix="bench-")) if opt.smoke else HERE)
    data = opt.data or (scratch / "data" if opt.smoke else HERE / "data_cache")
    out.mkdir(parents=True, exist_ok=True)
    needed = {c.images for case in opt.cases.values() for c in case.contenders if c.images}
    folders = {images: make(images, data.resolve()) for images in needed}
    for folder in folders.values():
        forget_cache(folder)  # so that the first round shows what it costs
    runner = Runner(scratch, folders, opt.workers, opt.seconds)

    path = out / "results.json"
    results: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, case in opt.cases.items():
        about = {contender.name: contender.about for contender in case.contenders}
        results[name] = {"about": case.about, "contenders": about, "machine": describe()}
        results[name]["measurements"] = []
    for number in range(opt.rounds):
        for name, case in opt.cases.items():
            print(f"round {number + 1} of {name}", flush=True)
            done = results[name]["measurements"]
            done += runner.measure_round(number, case, done)
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            (out / "RESULTS.md").write_text(markdown(results), encoding="utf-8")
            draw(results, out / "results.png")
    print(f"wrote {out}: RESULTS.md, results.png, results.json")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        measure(parse(), Path(scratch))
