"""What a run is made of, for tests that need it without the run."""

from collections.abc import Iterable

import torch

import dataset
import options
from engine import devices, modules
from engine.data.cache import use_cache
from engine.data.loader import Batch, Loader
from engine.data.sampler import EvalBatchSampler, TrainBatchSampler, generator, seed_all
from engine.evaluation import Losses, Metrics, evaluate, forward
from engine.optimizers import Optimizers
from model import Model


class Parts:
    """Data sets, loaders, model and optimizers, made from the words of a command line."""

    def __init__(self, words: list[str]) -> None:
        self.opt = opt = options.parse(words)
        self.device = devices.pick_device(opt.device)
        self.amp = devices.Amp(opt.precision, self.device)
        self.train_set, self.val_set = dataset.train_and_val(opt)
        use_cache([self.train_set, self.val_set], opt.cache, opt.epochs, self.device)
        sizes = (opt.batch_size, opt.accumulate, opt.epochs, opt.seed)
        strata, weights = (getattr(self.train_set, name, None) for name in ("strata", "weights"))
        self.sampler = TrainBatchSampler(
            len(self.train_set), *sizes, strata=strata, weights=weights
        )
        how = (self.device, opt.workers, opt.prefetch)
        self.train_loader = Loader(self.train_set, self.sampler, *how)
        val_sampler = EvalBatchSampler(len(self.val_set), opt.batch_size)
        self.val_loader = Loader(self.val_set, val_sampler, *how)
        seed_all(self.device, opt.seed, "weights")
        self.model = modules.to_device(Model(opt, self.train_set.info), self.device, opt.freeze)
        self.networks = self.model.networks()
        self.parallel = modules.parallelize(self.model, self.networks, opt.parallel, self.amp)
        self.optimizers = Optimizers(opt, self.networks, self.amp.scaler)

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, *error: object) -> None:
        self.train_loader.close()
        self.val_loader.close()

    def first_batch(self) -> Batch:
        """The first training batch, as it is loaded."""
        with self.train_loader.batches() as batches:
            return next(batches)

    def step(self, micro_batches: Iterable[Batch], n_iter: int = 0) -> list[Losses]:
        """An optimizer step on these micro-batches, not augmented; returns their losses."""
        self.optimizers.begin_step(n_iter, self.opt.lr, self.opt.freeze)
        losses = []
        for micro_batch, batch in enumerate(micro_batches):
            seed_all(self.device, self.opt.seed, "forward", n_iter, micro_batch)
            losses.append(forward(self.parallel, batch, self.amp))
            self.optimizers.backward(losses[-1])
        self.optimizers.step()
        return losses

    def augmented(self, batch: Batch, n_iter: int = 0) -> Batch:
        """A batch after the random changes of the first micro-batch of a step."""
        random = generator(self.device, self.opt.seed, "augment", n_iter, 0)
        return dataset.augment(self.opt, self.model.info, random, *batch)

    def validate(self) -> Metrics:
        """The metrics of the validation images."""
        return evaluate(self.model, self.val_loader, self.amp)

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradients of the model's parameters by name."""
        named = self.model.named_parameters()
        return {name: p.grad for name, p in named if p.grad is not None}
