"""Measures a project of the template against others and against the limit, on this machine.

    make bench                                              the cases that fit this machine
    make bench ARGS="--cases small --only ours pure guide"  some of them
    make bench ARGS="--smoke"                               every kind, in tiny, in two minutes

Nothing else should run meanwhile. The contenders take turns over several rounds, each time in a
process of its own; medians count. Writes results.json, RESULTS.md and results.png after each
round. A case that is measured again replaces what they held of it.
"""

import argparse
import fnmatch
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks.cases import CASES, IN_SMOKE, ON_CPU, ON_GPU, SMOKE, Case, Sizes
from benchmarks.machine import describe
from benchmarks.make_images import Images, NoPhotographs, forget_caches, make
from benchmarks.report import Results, write
from benchmarks.runner import CannotRender, Runner, render

HERE = Path(__file__).parent


class Parser(argparse.ArgumentParser):
    """Prints an error as one line, status 2."""

    def error(self, message: str) -> NoReturn:
        print(f"bench: error: {message}", file=sys.stderr)
        sys.exit(2)


def parse() -> argparse.Namespace:
    default = ON_GPU if torch.cuda.is_available() else ON_CPU
    parser = Parser(prog="bench", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    known = f"of {', '.join(CASES)} (default: {' '.join(default)})"
    add("--cases", nargs="+", choices=CASES, metavar="CASE", help=known)
    add("--only", nargs="+", metavar="NAME", help="contenders, such as ours 'ours-*' pure guide")
    add("--rounds", type=int, help="times that the contenders take turns (default: 3)")
    add("--seconds", type=float, help="least time that a contender is timed (default: 8)")
    add("--data", type=Path, help="where data sets are kept (default: benchmarks/data_cache)")
    add("--photos", type=Path, help="a folder of photographs, instead of Debian's packages")
    add("--fashion", type=Path, help="Fashion-MNIST as prepare_data.py makes it, for accuracy")
    add("--out", type=Path, help="where to write (default: benchmarks)")
    tiny = "every kind of case in tiny, into --out or a temporary folder; the figures mean nothing"
    add("--smoke", action="store_true", help=tiny)
    opt = parser.parse_args()
    opt.cases = opt.cases or list(IN_SMOKE if opt.smoke else default)
    opt.rounds = (1 if opt.smoke else 3) if opt.rounds is None else opt.rounds
    for name, path in (("photos", opt.photos), ("fashion", opt.fashion)):
        if path and not path.is_dir():
            parser.error(f"--{name} {path}: no such folder")
    if any(name.startswith("gpu") for name in opt.cases) and not torch.cuda.is_available():
        parser.error(f"--cases {' '.join(opt.cases)}: PyTorch sees no CUDA device here")
    if opt.rounds < 1:
        parser.error(f"--rounds {opt.rounds}: must be 1 or more")
    if opt.smoke and opt.out and opt.out.resolve() == HERE:
        parser.error(f"--out {opt.out}: holds the real results, which --smoke would replace")
    return opt


def main() -> int:
    opt = parse()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            measure(opt, Path(scratch))
        except (NoPhotographs, CannotRender) as error:
            print(f"bench: error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("bench: interrupted", file=sys.stderr)
            return 130
    return 0


def measure(opt: argparse.Namespace, scratch: Path) -> None:
    """Measures what was asked for, and writes the results after each round."""
    sizes = SMOKE if opt.smoke else Sizes()
    sizes = replace(sizes, seconds=opt.seconds or sizes.seconds)
    cases = choose(opt, sizes)
    out = opt.out or (Path(tempfile.mkdtemp(prefix="bench-")) if opt.smoke else HERE)
    data = opt.data or (scratch / "data" if opt.smoke else HERE / "data_cache")
    out.mkdir(parents=True, exist_ok=True)
    folders: dict[Images, Path] = {}
    for case in cases:
        for images in (case.images, *(contender.images for contender in case.contenders)):
            if images and images not in folders:
                folders[images] = make(images, data.resolve(), opt.photos, opt.smoke)
                forget_caches(folders[images])  # so that the first round shows what they cost
    runner = Runner(render(scratch), folders, opt.fashion and opt.fashion.resolve(), sizes)

    results = read_results(out / "results.json")
    for case in cases:
        results[case.name] = describe_case(case)
    for number in range(max(case.rounds or opt.rounds for case in cases)):
        for case in cases:
            if number < (case.rounds or opt.rounds):
                done = results[case.name]["measurements"]
                done += runner.round(number, case, done)
                text = json.dumps(results, indent=1)
                (out / "results.json").write_text(text + "\n", encoding="utf-8")
                write(results, out)
    print(f"wrote {out}: RESULTS.md, results.png, results.json")


def choose(opt: argparse.Namespace, sizes: Sizes) -> list[Case]:
    """The cases, with those contenders that `--only` names; a case that cannot be is left out."""
    cases = []
    for name in opt.cases:
        case = CASES[name](sizes)
        if name == "accuracy" and not (opt.fashion or opt.smoke):
            print("accuracy: left out, it needs --fashion DIR")
            continue
        patterns = opt.only or ["*"]
        wanted = [c for c in case.contenders if any(fnmatch.fnmatch(c.name, p) for p in patterns)]
        if wanted:
            cases.append(replace(case, contenders=tuple(wanted)))
    if not cases:
        print("bench: error: nothing to measure of these cases", file=sys.stderr)
        sys.exit(2)
    return cases


def read_results(path: Path) -> Results:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def describe_case(case: Case) -> dict[str, Any]:
    """What results.json says of a case besides its measurements, so that it explains itself."""
    return {
        "kind": case.kind,
        "about": case.about,
        "contenders": {contender.name: contender.about for contender in case.contenders},
        "wanted": [[*names, least] for names, least in case.wanted.items()],
        "machine": describe(),
        "measurements": [],
    }


if __name__ == "__main__":
    sys.exit(main())
