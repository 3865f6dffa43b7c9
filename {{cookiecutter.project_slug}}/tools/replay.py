"""Trains from one checkpoint of a run to the next again, and compares the bits.

    python -m tools.replay runs/a                          between its two newest checkpoints
    python -m tools.replay runs/a --from 500 --to 1000     from step 500 to step 1000
    python -m tools.replay runs/a --processes 2            on two processes, as with torchrun
    python -m tools.replay runs/a -- --threads=2           with another option of train.py

The exit status is 0 for equal bits, 1 for different ones, 2 for bad input. What is not as it was
in the run is listed: options, versions, processor, threads, precision, images, code.
"""

# ruff: noqa: E402
from engine.errors import BAD_INPUT, DONE, FAULT, LAUNCHED, BadInput, begin, run_program

begin(__name__)  # before the slow imports: Ctrl-C ends in one line from here on

import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, is_tensor

from engine.arguments import Parser, config_text, number
from engine.checkpoint import Checkpoints, load, naming
from engine.data import contents
from engine.report.records import read_records
from engine.state import RESERVED, environment_changes, option_changes

TRAIN = Path(__file__).parents[1] / "train.py"
# What a checkpoint holds besides networks, optimizers and averages.
BOOKKEEPING = {*RESERVED} - {"optim", "scaler", "ema"}


def main() -> int:
    opt, options = parse()
    run = Path(opt.run)
    start, end = choose(run, opt.start, opt.end)
    expected = load(checkpoint(run, end))
    with tempfile.TemporaryDirectory(prefix="replay-") as folder, naming(Path(folder)):
        again = Path(folder, "run")
        if start:
            checkpoint(again, start).parent.mkdir(parents=True)
            content = checkpoint(run, start).read_bytes()
            checkpoint(again, start).write_bytes(content)
        status = train_again(again, end, expected, opt.processes, options)
        if not checkpoint(again, end).exists():
            if status == DONE:
                raise BadInput(f"the replay ended before step {end}: leave out options after --")
            return BAD_INPUT if status == BAD_INPUT else FAULT  # train.py has said why
        found = load(checkpoint(again, end))
        reasons = list(differences(expected, found, run, again))
    where = f"step {end} of {run}, from step {start}"
    different = list(compare(expected, found))
    if not different:
        print(f"equal: {where}: all bits of {', '.join(parts(expected))}")
    else:
        print(f"different: {where}", *different, sep="\n  ")
        resumes = [step for step in read_records(run).resumes() if start < step < end]
        reasons += [f"resumed after step {step}, perhaps with other options" for step in resumes]
        reasons = reasons or ["nothing that is recorded"]
    if reasons:
        print("not as in the run:", *reasons, sep="\n  ")
    return FAULT if different else DONE


def parse() -> tuple[Namespace, list[str]]:
    """The options of this program, and those for train.py, which come after `--`."""
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    about = "Trains a part of a run again, and compares the bits. Options of train.py after -- "
    parser = Parser(description=f"{about}replace those of the run.")
    add = parser.add_argument
    add("run", help="the folder of the run")
    step = number(int, 0)
    start = "step to start from, 0 for the beginning (default: the checkpoint before --to)"
    add("--from", dest="start", type=step, metavar="N", help=start)
    add("--to", dest="end", type=step, metavar="M", help="last step (default: the newest)")
    add("--processes", type=number(int, 1), help="processes to train on (default: as the run)")
    opt = parser.parse_args(words[:own])
    if LAUNCHED:
        raise BadInput("tools.replay starts torchrun itself: use --processes N without torchrun")
    return opt, words[own + 1 :]


def choose(run: Path, start: int | None, end: int | None) -> tuple[int, int]:
    """The steps to start from and to end at.

    Raises:
        BadInput: There is no checkpoint of them.
    """
    steps = sorted(int(path.stem[5:]) for path in Checkpoints(run / "checkpoints").numbered())
    if not steps:
        raise BadInput(f"{run}: holds no checkpoint of a step; name the folder of a run")
    end = steps[-1] if end is None else end
    if start is None:
        start = max((step for step in steps if step < end), default=0)
    for step in {start, end} - {0, *steps}:
        found = ", ".join(map(str, steps))
        raise BadInput(f"{run}: no checkpoint of step {step}; there are {found}")
    if start >= end:
        raise BadInput(f"--from {start} --to {end}: the first must be the smaller one")
    return start, end


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"iter-{step:09d}.pt"


def command_line(again: Path, end: int, expected: dict[str, Any], processes: int) -> list[str]:
    """The command that trains in the folder `again` and saves step `end`.

    Raises:
        BadInput: A step cannot be divided among so many processes.
    """
    environment = expected.get("environment", {})
    if expected["args"]["accumulate"] % processes:
        raise BadInput(
            f"--processes {processes}: a step of this run has {expected['args']['accumulate']} "
            "micro-batches, which the processes divide; name a number that divides it"
        )
    command = [str(TRAIN), f"--run-dir={again}", "--resume", "--profile=0"]
    # The one multiple of `end` among the steps to come is `end`; a validation may save before it.
    command += [f"--save-every={end}", f"--keep={end + 2}"]
    if "threads" in environment:  # else each process would take its share of the cores
        command += [f"--threads={environment['threads']}"]
    # By its own name a machine cannot always be found, for which torchrun waits some minutes.
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=localhost"]
    launcher += [f"--nproc-per-node={processes}"]
    return [sys.executable, *(launcher if processes > 1 else []), *command]


def train_again(
    again: Path, end: int, expected: dict[str, Any], processes: int | None, options: list[str]
) -> int:
    """Runs train.py in the folder `again` until it has saved step `end`.

    Args:
        again: Holds the checkpoint to start from, or none.
        end: The last step.
        expected: The checkpoint of that step, with the options and the environment of the run.
        processes: How many to train on; None: as many as the run.
        options: They replace those of the run.

    Returns:
        The exit status of train.py, if it ended by itself.

    Raises:
        BadInput: A step cannot be divided among so many processes.
    """
    again.mkdir(exist_ok=True)
    config = again / "config.txt"
    config.write_text(config_text(Namespace(**expected["args"]), config), encoding="utf-8")
    processes = processes or expected.get("environment", {}).get("processes", 1)
    words = [*command_line(again, end, expected, processes), *options]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        # torchrun reports at length that it was ended, so its words are kept back.
        stderr = errors if processes > 1 else None
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            while process.poll() is None and not checkpoint(again, end).exists():
                time.sleep(0.05)
        finally:
            process.terminate()  # train.py ends after the step under way
            process.wait()
        if not checkpoint(again, end).exists():
            errors.seek(0)
            told = errors.readlines()
            ours = [line for line in told if line.startswith("train.py: ")]
            sys.stderr.writelines(ours or told)
    return process.returncode


def parts(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Networks, optimizers and averages, each as its tensors and numbers by name."""
    found = {}
    for key in state.keys() - BOOKKEEPING:
        nested = key in ("optim", "ema")  # by the names of the networks
        inner = {f"{key} of {name}": state[key][name] for name in state[key]} if nested else {}
        found.update(inner or {key: state[key]})
    leaves = {key: dict(flatten(found[key])) for key in sorted(found)}
    return {key: named for key, named in leaves.items() if any(map(is_tensor, named.values()))}


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors and plain values in nested dicts and lists, with their places."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def compare(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    """A line for each network, optimizer and average whose bits differ."""
    before, now = parts(expected), parts(found)
    for part in sorted({*before, *now}):
        one, other = before.get(part, {}), now.get(part, {})
        names = [n for n in {**one, **other} if not same(one.get(n), other.get(n))]
        if names:
            total, name = len({**one, **other}), names[0]
            size = distance(one.get(name), other.get(name))
            yield f"{part}: {len(names)} of {total} values differ, the first is {name}{size}"


def same(one: Any, other: Any) -> bool:
    """Whether two values have the same bits; -0 is not 0, and a NaN may be the same as another."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and one == other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits, others = (value.reshape(-1).view(torch.uint8) for value in (one, other))
    return bits.equal(others)


def distance(one: Any, other: Any) -> str:
    """By how much two tensors differ, in words; nothing if that cannot be said."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return f" (by up to {(one.double() - other.double()).abs().max():.1e})"
    return ""


def differences(
    expected: dict[str, Any], found: dict[str, Any], run: Path, again: Path
) -> Iterator[str]:
    """What the bits may depend on, and is not as it was in the run."""
    was, now = expected.get("environment", {}), found["environment"]
    before, records = contents.find_records(run, was), contents.read_records(again / contents.FILES)
    images = contents.compare(before, records) if before and records else {}
    options = option_changes(expected["args"], found["args"], was, now)
    yield from filter(None, [options, *environment_changes(was, now, images)])
    if found["environment"]["device"] == "cuda" and not found["args"]["deterministic"]:
        yield "--deterministic was not given: on CUDA two runs may differ"


if __name__ == "__main__":
    run_program(main)
