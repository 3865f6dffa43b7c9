"""Trains a network: one program, to be read from top to bottom.

    python train.py                                      the images that come with the project
    python train.py --data my_images --network resnet18
    python train.py --run runs/a --resume                go on where runs/a was stopped
    python train.py @runs/a/config.txt                   repeat runs/a

`n_iter`, the number of optimizer steps done, is the only progress there is: which images come
next, how they are augmented, dropout and the learning rate all follow from (seed, n_iter).
"""

import engine.interrupt  # noqa: F401  first, so that Ctrl-C ends in one line from here on

# isort: split
from collections.abc import Iterator
from dataclasses import asdict

import torch
from tqdm import tqdm

import data
import options
from classifier import Classifier
from engine import devices
from engine.curves import Curves
from engine.errors import DONE, STOPPED, run_program
from engine.evaluating import Losses, evaluate, mean_losses
from engine.loading import Batch, Loader
from engine.meter import Meter, make_bar
from engine.optimizing import (
    clip_gradients,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    trained_by,
)
from engine.order import TestOrder, TrainOrder
from engine.progress import Progress, restore, snapshot
from engine.runfolder import RunFolder
from engine.seeding import seed_step
from engine.stopping import FiniteGuard, StopSignal
from engine.summary import summarize


class Training:
    def __init__(self) -> None:
        # 1. Options and the device. A signal ends the run after a step.
        self.stop = StopSignal()
        self.opt = opt = options.parse()
        self.device = devices.pick_device(opt.device)
        devices.set_determinism(opt.deterministic)
        self.run = RunFolder(opt)

        # 2. Data: what a sample is, and in which order samples come.
        train_set = data.train_part(opt)
        test_set = data.test_part(opt, train_set.classes)
        self.order = TrainOrder(len(train_set), opt.batch_size, opt.accumulate, opt.seed)
        workers = devices.count_workers(opt.workers, self.device, opt.img_size)
        how = (self.device, workers, opt.prefetch)
        self.train_loader = Loader(train_set, self.order, *how)
        self.test_loader = Loader(test_set, TestOrder(len(test_set), opt.batch_size), *how)
        conditions = devices.conditions(self.device, train_set.fingerprint())

        # 3. The model: networks and losses, and an optimizer for each network.
        seed_step(opt.seed, "weights")
        self.model = Classifier(opt, train_set.counts).to(self.device)
        self.networks = self.model.networks()
        self.optimizers = {name: make_optimizer(opt, net) for name, net in self.networks.items()}
        print(summarize(self.model, self.networks, train_set[0]))

        # 4. The run: where it stood if it is resumed, and its folder.
        self.more = {"conditions": conditions, **self.model.about}
        parts = (self.networks, self.optimizers, opt, self.more)
        self.progress = restore(self.run.checkpoints, *parts) if opt.resume else Progress()
        self.total = opt.epochs * self.order.steps
        self.run.describe(opt)
        print(f"run: {self.run.path}", flush=True)
        self.curves = Curves(self.run.path, self.progress.n_iter, self.progress.tested)

        # 5. Several GPUs, if there are any.
        self.compute = devices.parallelize(self.model, self.networks, opt.parallel, self.device)

        # 6. What is watched on the way.
        self.meter = Meter(self.device)
        self.guard = FiniteGuard(self.device, self.run.checkpoints)

    def main(self) -> int:
        while not self.stop:
            if self.progress.test_is_due(self.opt, self.order.steps):
                self.test()
            elif self.progress.n_iter >= self.total or self.progress.out_of_patience(self.opt):
                self.run.checkpoints.wait()
                early = " early (--patience)" * (self.progress.n_iter < self.total)
                best = f"{self.model.headline} {self.progress.best:.4f}"
                print(f"done{early}: best {best}; to judge it:")
                print(f"python test.py --checkpoint {self.run.checkpoints.best}")
                return DONE
            else:
                self.train_epoch()
        self.save()
        self.run.checkpoints.wait()
        last, n_iter = self.run.checkpoints.last, self.progress.n_iter
        print(f"{self.stop.received}: saved step {n_iter} as {last}; --resume goes on")
        return STOPPED

    def train_epoch(self) -> None:
        """Trains to the end of the epoch that n_iter is in, from its beginning or its middle."""
        opt, progress = self.opt, self.progress
        epoch, first = divmod(progress.n_iter, self.order.steps)
        self.order.n_iter = progress.n_iter
        self.model.train()
        self.meter.restart()
        title = f"epoch {epoch + 1}/{opt.epochs}"
        bar = make_bar(title, self.order.steps, first)
        with self.train_loader.batches() as batches, bar:
            for n_iter in range(progress.n_iter + 1, (epoch + 1) * self.order.steps + 1):
                losses, batch = self.step(batches)
                progress.n_iter = n_iter
                bar.update()
                if n_iter % opt.log_every == 0:
                    self.log(epoch, losses, bar)
                if (n_iter - 1) % opt.picture_every == 0:
                    self.curves.show(n_iter, "batch", self.model.picture(*batch))
                if n_iter % opt.save_every == 0:
                    self.save()
                if self.stop:
                    break

    def step(self, batches: Iterator[Batch]) -> tuple[list[Losses], Batch]:
        """One step of every optimizer, on as many batches as `--accumulate` says.

        Returns:
            The losses of each batch, still on the device, and the last batch.
        """
        opt, n_iter = self.opt, self.progress.n_iter
        for optimizer in self.optimizers.values():
            set_learning_rate(optimizer, learning_rate(opt, n_iter, self.total))
            optimizer.zero_grad()
        parts: list[Losses] = []
        for part in range(opt.accumulate):
            self.meter.waiting()
            batch = next(batches)
            self.meter.loaded()
            seed_step(opt.seed, "step", n_iter, part)
            losses = self.compute(*batch)
            parts.append(losses)
            for name, optimizer in self.optimizers.items():
                loss = torch.stack(list(losses[name].values())).sum()
                self.guard.watch(loss, n_iter)
                (loss / opt.accumulate).backward(inputs=trained_by(optimizer))
            if part == opt.accumulate - 1:
                self.update()
            self.meter.computed(len(batch[0]))
        return parts, batch

    def update(self) -> None:
        for optimizer in self.optimizers.values():
            norm = clip_gradients(trained_by(optimizer), self.opt.clip_grad)
            self.guard.watch(norm, self.progress.n_iter)
            optimizer.step()

    def log(self, epoch: int, losses: list[Losses], bar: tqdm) -> None:
        """Writes the losses of this step; reading them is where the program waits for the GPU."""
        self.guard.check()
        values = mean_losses(losses)
        rates = self.meter.rates()
        bar.set_postfix_str(
            ", ".join(f"{name} {value:.4f}" for name, value in values.items()) + f", {rates}",
            refresh=False,
        )
        values["lr"] = learning_rate(self.opt, self.progress.n_iter - 1, self.total)
        self.curves.add(self.progress.n_iter, epoch, "train", {**values, **asdict(rates)})
        self.meter.restart()

    def test(self) -> None:
        """The test pass; a better model than all before becomes best.pt."""
        progress, epoch = self.progress, self.progress.n_iter // self.order.steps
        self.model.eval()
        metrics = evaluate(self.model.measure, self.test_loader, until=self.stop)
        if self.stop:
            return  # an incomplete pass says nothing; the resumed run repeats it
        better = progress.note_test(metrics[self.model.headline])
        text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"epoch {epoch}/{self.opt.epochs}: test {text}{' (best)' * better}", flush=True)
        self.curves.add(progress.n_iter, epoch - 1, "test", metrics)
        self.save(best=better)

    def save(self, best: bool = False) -> None:
        self.guard.check()
        epoch = self.progress.n_iter // self.order.steps
        parts = (self.progress, epoch, self.networks, self.optimizers, self.opt, self.more)
        self.run.checkpoints.save(snapshot(*parts), best)


def main() -> int:
    return Training().main()


if __name__ == "__main__":
    run_program(main)
