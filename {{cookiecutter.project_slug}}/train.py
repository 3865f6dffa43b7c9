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
from engine import devices
from engine.cache import use_cache
from engine.curves import Curves
from engine.errors import DONE, STOPPED, run_program
from engine.evaluating import Losses, evaluate, mean_losses
from engine.loading import Batch, Loader
from engine.meter import Meter, make_bar
from engine.optimizing import learning_rate, limit_gradient, make_optimizers, trained_by
from engine.order import TestOrder, TrainOrder
from engine.parallel import parallelize
from engine.precision import Precision
from engine.progress import Progress, restore, snapshot
from engine.runfolder import RunFolder
from engine.seeding import generator, seed_step
from engine.stopping import FiniteGuard, StopSignal
from engine.summary import summarize
from model import Model


class Training:
    def __init__(self) -> None:
        # 1. Options, and where and how to compute.
        self.opt = opt = options.parse()
        self.device = devices.pick_device(opt.device)
        self.precision = Precision(opt.precision, self.device)
        devices.set_up(opt.deterministic)
        self.run = RunFolder(opt)

        # 2. Data: what a sample is, and in which order samples come.
        train_set = data.train_part(opt)
        test_set = data.test_part(opt, train_set.about)
        self.order = TrainOrder(len(train_set), opt.batch_size, opt.accumulate, opt.seed)

        # 3. The model: networks and losses, an optimizer for each network, several GPUs if any.
        seed_step(self.device, opt.seed, "weights")
        self.model = devices.place(Model(opt, train_set.about), self.device)
        self.networks = self.model.networks()
        self.optimizers = make_optimizers(opt, self.networks)
        print(summarize(self.model, self.networks, train_set[0]))
        devices.compile_networks(self.networks, opt.compile)
        self.compute = parallelize(self.model, self.networks, opt.parallel, self.device)

        # 4. Where the run stood if it is resumed.
        more = {**train_set.about, "conditions": devices.conditions(self.precision, train_set)}
        self.state = (self.networks, self.optimizers, self.precision.scaler, opt, more)
        self.progress = restore(self.run.checkpoints, *self.state) if opt.resume else Progress()
        self.total = opt.epochs * self.order.steps

        # 5. Batches: the images decoded beforehand if that pays, and whoever loads them.
        use_cache([train_set, test_set], opt.cache, opt.epochs, self.device)
        how = (self.device, opt.workers, opt.prefetch)
        self.train_loader = Loader(train_set, self.order, *how)
        self.test_loader = Loader(test_set, TestOrder(len(test_set), opt.batch_size), *how)

        # 6. What is written and watched on the way. A signal ends the run after a step.
        self.stop = StopSignal()
        self.run.describe(opt)
        self.curves = Curves(self.run.path, self.progress.n_iter, self.progress.tested)
        self.meter = Meter(self.device, self.train_loader.workers > 0, opt.accumulate)
        self.guard = FiniteGuard(self.device, self.run.checkpoints)

    def main(self) -> int:
        progress, checkpoints = self.progress, self.run.checkpoints
        while not self.stop and not progress.is_over(self.opt, self.order.steps):
            if progress.test_is_due(self.opt, self.order.steps):
                self.test()
            else:
                self.train_epoch()
        if self.stop:
            self.save()
            checkpoints.wait()
            saved = f"saved step {progress.n_iter} as {checkpoints.last}"
            print(f"{self.stop.received}: {saved}; --resume goes on")
            return STOPPED
        checkpoints.wait()
        early = " early (--patience)" * (progress.n_iter < self.total)
        print(f"done{early}: best {self.model.headline} {progress.best:.4f}; to judge it:")
        print(f"python test.py --checkpoint {checkpoints.best}")
        return DONE

    def train_epoch(self) -> None:
        """Trains to the end of the epoch that n_iter is in, from its beginning or its middle."""
        opt, progress = self.opt, self.progress
        epoch, first = divmod(progress.n_iter, self.order.steps)
        self.order.n_iter = progress.n_iter
        self.model.train()
        self.meter.restart()
        bar = make_bar(f"epoch {epoch + 1}/{opt.epochs}", self.order.steps, first)
        with self.train_loader.batches(self.meter.wanted) as batches, bar:
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
            optimizer.param_groups[0]["lr"] = learning_rate(opt, n_iter, self.total)
            optimizer.zero_grad()
        parts: list[Losses] = []
        for part in range(opt.accumulate):
            self.meter.waiting()
            batch = next(batches)
            self.meter.loaded()
            random = generator(self.device, opt.seed, "augment", n_iter, part)
            batch = data.augment(opt, random, *batch)
            seed_step(self.device, opt.seed, "step", n_iter, part)
            with self.precision.autocast():
                losses = self.compute(*batch)
            parts.append(losses)
            for name, optimizer in self.optimizers.items():
                loss = torch.stack(list(losses[name].values())).sum()
                self.guard.watch(loss, n_iter)
                loss = self.precision.scaler.scale(loss / opt.accumulate)
                loss.backward(inputs=trained_by(optimizer))
            if part == opt.accumulate - 1:
                self.update()
            self.meter.computed(len(batch[0]))
        return parts, batch

    def update(self) -> None:
        scaler = self.precision.scaler
        for optimizer in self.optimizers.values():
            norm = limit_gradient(optimizer, scaler, self.opt.clip_grad)
            self.guard.watch(norm, self.progress.n_iter)
            scaler.step(optimizer)
        scaler.update()

    def log(self, epoch: int, losses: list[Losses], bar: tqdm) -> None:
        """Writes the losses of this step; reading them is where the program waits for the GPU."""
        self.guard.check()
        values = mean_losses(losses)
        rates = self.meter.rates()
        shown = [f"{name} {value:.4f}" for name, value in values.items()]
        bar.set_postfix_str(", ".join([*shown, str(rates)]), refresh=False)
        values["lr"] = learning_rate(self.opt, self.progress.n_iter - 1, self.total)
        self.curves.add(self.progress.n_iter, epoch, "train", {**values, **asdict(rates)})
        self.meter.restart()

    def test(self) -> None:
        """The test pass; a better model than all before becomes best.pt."""
        progress, epoch = self.progress, self.progress.n_iter // self.order.steps
        self.model.eval()
        metrics = evaluate(self.model.measure, self.test_loader, self.precision, until=self.stop)
        if self.stop:
            return  # an incomplete pass says nothing; the resumed run repeats it
        better = progress.note_test(metrics[self.model.headline])
        text = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"epoch {epoch}/{self.opt.epochs}: test {text}{' (best)' * better}", flush=True)
        self.curves.add(progress.n_iter, epoch - 1, "test", metrics)
        self.save(best=better)

    def save(self, best: bool = False) -> None:
        self.guard.check()
        self.run.checkpoints.save(snapshot(self.progress, self.order.steps, *self.state), best)


def main() -> int:
    return Training().main()


if __name__ == "__main__":
    run_program(main)
