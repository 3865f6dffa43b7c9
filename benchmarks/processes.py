"""Speed of two processes on the CPU: `python -m benchmarks.processes`, about six minutes.

Two processes take steps on batches that are already there, in turns: each for itself (two runs side
by side), with the exchange of train.py, and with DistributedDataParallel. Then train.py trains the
small network on two processes of one thread, and on one process of as many threads as cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
FLAGS = ("--network=resnet18", "--img-size=128", "--batch-size=16", "--device=cpu", "--threads=1")
SMALL = ("--epochs=3", "--device=cpu", "--batch-size=64")


def main() -> None:
    parser = argparse.ArgumentParser(prog="processes", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=12, help="turns that each way has (%(default)s)")
    add("--steps", type=int, default=4, help="steps of a turn (%(default)s)")
    add("--in-project", action="store_true", help="what the program calls itself with")
    opt = parser.parse_args()
    if opt.in_project:
        take_turns(opt)
        return
    with tempfile.TemporaryDirectory() as scratch:
        make = ["cookiecutter", "--no-input", "--default-config", "-o", scratch, str(ROOT)]
        subprocess.run([sys.executable, "-m", *make, "accelerator=cpu"], check=True)
        project = Path(scratch) / "my_vision_project"
        turns = [f"--rounds={opt.rounds}", f"--steps={opt.steps}", "--in-project"]
        launch(project, 2, str(Path(__file__).resolve()), *turns)
        rates: dict[str, list[float]] = {"two": [], "one": []}
        for number in range(4):  # the first makes the cache
            for name, processes in (("two", 2), ("one", 1)):
                run = f"runs/{name}{number}"
                step = ["--accumulate=2", f"--threads={1 if processes == 2 else os.cpu_count()}"]
                launch(project, processes, "train.py", f"--run-dir={run}", *SMALL, *step)
                rates[name] += [images_per_second(project / run)][: number > 0]
        two, one = median(rates["two"]), median(rates["one"])
        print(
            f"small network: 2 processes of a thread {two:,.0f} images/s, 1 process of all threads "
            f"{one:,.0f}: {two / one:.2f}"
        )


def launch(project: Path, processes: int, program: str, *words: str) -> None:
    command = ["torch.distributed.run", "--standalone", "--local-addr=localhost"]
    command += [f"--nproc-per-node={processes}", program]
    subprocess.run(
        [sys.executable, "-m", *command, *words],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
        check=True,
        stdout=None if program != "train.py" else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def images_per_second(run: Path) -> float:
    """The median over the second half of a run."""
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [p["values"]["images_per_second"] for p in points if p["split"] == "train"]
    return median(rates[len(rates) // 2 :])


def take_turns(opt: argparse.Namespace) -> None:
    """Runs in the project's folder, in each of the processes."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    sys.path.insert(0, os.getcwd())
    import options  # type: ignore[import-not-found]
    from engine import devices, distributed, modules  # type: ignore[attr-defined]
    from engine.evaluation import forward  # type: ignore[import-not-found]
    from engine.optimizers import Optimizers  # type: ignore[import-not-found]
    from model import Model  # type: ignore[import-not-found]

    settings = options.parse(list(FLAGS))
    device = devices.pick_device(settings.device)
    world = distributed.start(settings, device)
    amp = devices.Amp("fp32", device)
    devices.set_up(False, 1)
    batch = torch.randint(256, (16, 3, 128, 128), dtype=torch.uint8), torch.arange(16) % 10
    classes = {"classes": {str(i): 100 for i in range(10)}}

    def contender(own: Any, wrap: bool, accumulate: int) -> Any:
        torch.manual_seed(0)
        model = modules.to_device(Model(settings, classes), device)
        opt = argparse.Namespace(**{**vars(settings), "accumulate": accumulate})
        optimizers = Optimizers(opt, model.networks(), amp.scaler, own)
        called = DistributedDataParallel(model) if wrap else model

        def step(n_iter: int) -> None:
            optimizers.begin_step(n_iter, 1e-4)
            losses = forward(called, batch, amp)
            if wrap:  # its hooks want a plain backward
                losses["net"]["cross_entropy"].backward()
            else:
                optimizers.backward(losses)
            optimizers.step()

        return step

    ways = {
        "two runs side by side": contender(distributed.ALONE, False, 1),
        "train.py": contender(world, False, 2),
        "DistributedDataParallel": contender(distributed.ALONE, True, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(opt.rounds + 1):  # the first prepares kernels
        for name, step in ways.items():
            dist.barrier()
            begun = time.perf_counter()
            for n_iter in range(opt.steps):
                step(n_iter)
            own = time.perf_counter() - begun
            if number:
                seconds[name].append(sum(world.all_gather_object(own)) / world.size)
            else:
                world.all_gather_object(own)
    if world.rank == 0:
        times = {name: median(found) / opt.steps for name, found in seconds.items()}
        ours = times["train.py"]
        for name, found in times.items():
            print(f"ResNet-18, 128 px, {name}: {found * 1000:.0f} ms a step; {found / ours:.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
