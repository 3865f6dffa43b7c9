"""Whom the project is measured against, with its own network, data, batch size and optimizer.

All of this runs in the project's folder, so `networks`, `engine` and so on are the project's.
"""

import importlib
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.timing import Enough, Stopwatch, synchronize

Spec = dict[str, Any]
Result = dict[str, Any]
MEAN = STD = (0.5, 0.5, 0.5)
BATCHES = 8  # different ones, for the loop without a loader


class Setting:
    """What all have in common: the options, the device, the network, the stopwatch."""

    def __init__(self, spec: Spec) -> None:
        options: Any = importlib.import_module("options")
        networks: Any = importlib.import_module("networks")
        devices: Any = importlib.import_module("engine.devices")
        self.opt = options.parse(spec["flags"])
        self.device: torch.device = devices.pick_device(self.opt.device)
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        self.folder = Path(self.opt.data) / "train"
        self.network: nn.Module = networks.make_network(self.opt, 10).network.to(self.device)
        self.network.train()
        self.criterion = nn.CrossEntropyLoss()
        self.watch = Stopwatch(spec["warmup"], spec["seconds"])

    def optimizer(self, fused: bool | None = None) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), self.opt.lr, fused=fused)

    def loader(self, workers: int, keep_workers: bool = False) -> DataLoader:
        """The images by torchvision's usual means: Pillow, then transforms of each image."""
        size = (self.opt.img_size, self.opt.img_size)
        steps = [
            transforms.Resize(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
        return DataLoader(
            ImageFolder(str(self.folder), transforms.Compose(steps)),
            batch_size=self.opt.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=keep_workers and workers > 0,
            pin_memory=self.device.type == "cuda",
        )


def pure(spec: Spec) -> Result:
    """The limit: forward, backward and step on batches that lie on the device as floats.

    With `tuned`, in the precision, memory format and optimizer that the project chooses.
    """
    s = Setting(spec)
    form, fused, autocast = torch.contiguous_format, False, nullcontext
    if spec["tuned"]:
        importlib.import_module("engine.devices").keep_memory()
        precision: Any = importlib.import_module("engine.precision")
        autocast = precision.Precision(spec["precision"], s.device).autocast
        form, fused = torch.channels_last, True
    batches = []
    for images, labels in s.loader(0):
        batches.append((images.to(s.device, memory_format=form), labels.to(s.device)))
        if len(batches) == BATCHES:
            break
    s.network.to(memory_format=form)
    optimizer = s.optimizer(fused)
    s.watch = Stopwatch(spec["warmup"], spec["seconds"])
    while True:
        for images, labels in batches:
            optimizer.zero_grad()
            with autocast():
                loss = s.criterion(s.network(images), labels)
            loss.backward()
            optimizer.step()
            if s.watch.done(len(images)):
                return s.watch.result()


def guide(spec: Spec) -> Result:
    """The loop of the PyTorch style guide, with all that it does in each step."""
    from prefetch_generator import BackgroundGenerator
    from tensorboardX import SummaryWriter
    from tqdm import tqdm

    s = Setting(spec)
    loader, optimizer = s.loader(spec["workers"]), s.optimizer()
    writer = SummaryWriter(tempfile.mkdtemp(dir=spec["scratch"]))
    n_iter, said = 0, []
    while True:
        bar = tqdm(enumerate(BackgroundGenerator(loader)), total=len(loader))
        start = time.time()
        for _, (images, labels) in bar:
            if s.device.type == "cuda":
                images, labels = images.cuda(), labels.cuda()
            prepare_time = time.time() - start
            optimizer.zero_grad()
            loss = s.criterion(s.network(images), labels)
            loss.backward()
            optimizer.step()
            n_iter += 1
            writer.add_scalar("loss", loss.item(), n_iter)
            process_time = time.time() - start - prepare_time
            said.append(process_time / (process_time + prepare_time))
            bar.set_description(f"Compute efficiency: {said[-1]:.2f}, loss: {loss.item():.3f}")
            start = time.time()
            if s.watch.done(len(images)):
                return {**s.watch.result(), "efficiency": sum(said) / len(said)}


def lightning(spec: Spec) -> Result:
    """PyTorch Lightning; no logger, checkpoints, summary or bar, each of which would cost time."""
    pl: Any = importlib.import_module("lightning")
    s = Setting(spec)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = s.network

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return s.criterion(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return s.optimizer()

    class Watch(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            if s.watch.done(s.opt.batch_size):
                raise Enough

    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator=s.device.type,
        devices=1,
        precision=spec["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[Watch()],
    )
    try:
        trainer.fit(Module(), s.loader(spec["workers"], keep_workers=True))
    except Enough:
        synchronize()
    return s.watch.result()


def timm(spec: Spec) -> Result:
    """A plain loop on timm's data set and loader, which augment as the others do."""
    timm_data: Any = importlib.import_module("timm.data")
    s = Setting(spec)
    dataset = timm_data.create_dataset("", root=str(s.folder.parent), split="train")
    width, height = dataset[0][0].size
    loader = timm_data.create_loader(
        dataset,
        input_size=(3, s.opt.img_size, s.opt.img_size),
        batch_size=s.opt.batch_size,
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
        use_prefetcher=s.device.type == "cuda",
        device=s.device,
    )
    optimizer = s.optimizer()
    s.watch = Stopwatch(spec["warmup"], spec["seconds"])
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = s.criterion(s.network(images.to(s.device)), labels.to(s.device))
            loss.backward()
            optimizer.step()
            if s.watch.done(len(images)):
                return s.watch.result()
