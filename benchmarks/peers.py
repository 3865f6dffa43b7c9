"""The loops that the project is measured against.

Each has the project's network, images, batch size, learning rate and optimizer. All of this runs in
the project's folder, so the modules `options`, `networks` and `engine` are the project's.
"""

import importlib
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from itertools import chain, cycle, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.make_images import CLASSES
from benchmarks.timing import Enough, Result, Spec, Stopwatch

MEAN = STD = (0.5, 0.5, 0.5)
READY = 8  # different batches of the loop without a loader

Batch = tuple[Tensor, Tensor]  # images and labels


class Peer:
    """The network and the optimizer of the project, and images read by torchvision.

    Args:
        spec: Its "flags" are those of train.py.
        precision: One of the project's; None for float32 with PyTorch's settings.
        tuned: With channels_last, the fused optimizer and the tuned allocator, as in the project.
    """

    def __init__(self, spec: Spec, precision: str | None = None, tuned: bool = False) -> None:
        options: Any = importlib.import_module("options")
        networks: Any = importlib.import_module("networks")
        devices: Any = importlib.import_module("engine.devices")
        self.opt = options.parse(spec["flags"])
        self.device: torch.device = devices.pick_device(self.opt.device)
        self.autocast: Any = nullcontext
        if precision:
            self.autocast = devices.Amp(precision, self.device).autocast
        if tuned:
            devices.keep_memory()
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        self.memory_format = torch.channels_last if tuned else torch.contiguous_format
        network: nn.Module = networks.make_network(self.opt, CLASSES).network
        self.network = network.to(self.device).to(memory_format=self.memory_format).train()
        self.criterion = nn.CrossEntropyLoss()
        weights, lr = self.network.parameters(), self.opt.lr
        self.optimizer = torch.optim.AdamW(weights, lr, fused=tuned or None)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """An optimizer step; returns the loss."""
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.criterion(self.network(images), labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def loader(self, workers: int = 0, keep_workers: bool = False) -> DataLoader:
        """torchvision's usual pipeline: Pillow, then transforms of each image."""
        size = (self.opt.img_size, self.opt.img_size)
        steps = [
            transforms.Resize(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
        return DataLoader(
            ImageFolder(f"{self.opt.data}/train", transforms.Compose(steps)),
            batch_size=self.opt.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=keep_workers and workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    def ready_batches(self) -> Iterator[Batch]:
        """The same few batches for ever, normalised, on the device."""
        batches = [
            (images.to(self.device, memory_format=self.memory_format), labels.to(self.device))
            for images, labels in islice(self.loader(), READY)
        ]
        return cycle(batches)

    def time_steps(self, spec: Spec, batches: Iterable[Batch]) -> Result:
        """Times steps on batches that do not end."""
        watch = Stopwatch(spec)
        for images, labels in batches:
            self.step(images.to(self.device), labels.to(self.device))
            if watch.done(len(images)):
                break
        return watch.result


def pure(spec: Spec) -> Result:
    """The limit: forward, backward and step on preloaded batches."""
    peer = Peer(spec, spec["precision"], spec["tuned"])
    return peer.time_steps(spec, peer.ready_batches())


def guide(spec: Spec) -> Result:
    """The loop of the PyTorch style guide, with all that it does in each step."""
    from prefetch_generator import BackgroundGenerator
    from tensorboardX import SummaryWriter
    from tqdm import tqdm

    peer = Peer(spec)
    loader = peer.loader(spec["workers"])
    writer = SummaryWriter(spec["run"])
    watch, n_iter = Stopwatch(spec), 0
    while True:
        bar = tqdm(enumerate(BackgroundGenerator(loader)), total=len(loader))
        start = time.time()
        for _, (images, labels) in bar:
            if peer.device.type == "cuda":
                images, labels = images.cuda(), labels.cuda()
            prepare_time = time.time() - start
            loss = peer.step(images, labels)
            n_iter += 1
            writer.add_scalar("loss", loss.item(), n_iter)
            process_time = time.time() - start - prepare_time
            efficiency = process_time / (process_time + prepare_time)
            bar.set_description(f"Compute efficiency: {efficiency:.2f}, loss: {loss.item():.3f}")
            start = time.time()
            if watch.done(len(images)):
                return watch.result


def lightning(spec: Spec) -> Result:
    """PyTorch Lightning; no logger, checkpoints, summary or bar, each of which would cost time."""
    pl: Any = importlib.import_module("lightning")
    peer = Peer(spec)
    watch = Stopwatch(spec)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = peer.network

        def training_step(self, batch: Batch, index: int) -> Tensor:
            return peer.criterion(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return peer.optimizer

    class Watch(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            if watch.done(peer.opt.batch_size):
                raise Enough

    off = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator=peer.device.type,
        devices=1,
        precision=spec["precision"],
        callbacks=[Watch()],
        **dict.fromkeys(off, False),
    )
    with suppress(Enough):
        trainer.fit(Module(), peer.loader(spec["workers"], keep_workers=True))
    return watch.result


def timm(spec: Spec) -> Result:
    """A plain loop on timm's data set and loader, which augment as the others do."""
    timm_data: Any = importlib.import_module("timm.data")
    peer = Peer(spec)
    dataset = timm_data.create_dataset("", root=peer.opt.data, split="train")
    width, height = dataset[0][0].size
    loader = timm_data.create_loader(
        dataset,
        input_size=(3, peer.opt.img_size, peer.opt.img_size),
        batch_size=peer.opt.batch_size,
        is_training=True,
        # timm crops at random by default; these take the whole image, as the others do.
        scale=(1.0, 1.0),
        ratio=(width / height, width / height),
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=spec["workers"],
        persistent_workers=spec["workers"] > 0,
        use_prefetcher=peer.device.type == "cuda",
        device=peer.device,
    )
    return peer.time_steps(spec, chain.from_iterable(repeat(loader)))
