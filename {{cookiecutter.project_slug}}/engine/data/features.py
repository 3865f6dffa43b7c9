"""What the part of a network before its head gives for each image: computed once, with `--freeze`.

Such features, (N, D), take the place of the images in the batches of training and validation. They
are kept in a file beside the cache of the images, which is found by its name, a digest of what they
depend on: weights, code, images, views, device, and the features of the first images.
"""

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.utils.data import Dataset

from engine import terminal
from engine.data import mapped
from engine.data.cache import (
    FEATURES,
    check_room,
    delete_unused,
    folder_of,
    images_of,
    open_whole,
    write_whole,
)
from engine.data.loader import Batch, Loader, to_memory_format
from engine.data.mapped import MappedImages
from engine.data.sampler import EvalBatchSampler, Keys, SeededDataset, generator, seed_of
from engine.devices import Amp, local_rank
from engine.distributed import World
from engine.modules import BLOCK, head_of, with_parameters

NOT_IN_NAME = ("git commit", "weights")  # of the environment: the weights count by themselves
Shape = tuple[int, int, int]  # images, versions of each, bytes of the features of one


@dataclass(frozen=True)
class Views:
    """The versions of a training image of which augmentation takes one for each epoch.

    Attributes:
        text: What they are, with the options that they depend on.
        count: How many there are.
        make: (info, generator, number of a version, *batch) -> the images of that version.
        augment: (info, generator, *batch) -> the batch, changed at random as in training, but not
            blended: it has to take one of the versions. None if these are drawn at random, each
            with other seeds.
    """

    text: str
    count: int
    make: Callable[..., Tensor]
    augment: Callable[..., Batch] | None = None


# Functions of a module, since worker processes may get the data set, and its views, by pickle.
def _plain(info: Any, random: Generator, number: int, *batch: Tensor) -> Tensor:
    return batch[0]


def _unchanged(info: Any, random: Generator, *batch: Tensor) -> Batch:
    return batch


PLAIN = Views("plain", 1, _plain, _unchanged)


class FeatureSet(Dataset):
    """A data set with the features of each image in its place: (D,), or (V, D) of V versions.

    Args:
        data_set: Its `targets(indices)` are what else a sample has.
        kept: The bytes of the features, uint8 (N, V, bytes, 1), or the file of them.
        dtype: The type of the features.
    """

    def __init__(self, data_set: Any, kept: MappedImages | Tensor, dtype: torch.dtype) -> None:
        self.data_set, self.kept, self.dtype = data_set, kept, dtype

    def __len__(self) -> int:
        return len(self.data_set)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.batch(torch.tensor([index])))

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        """The samples of a batch."""
        kept: Any = self.kept if isinstance(self.kept, Tensor) else self.kept.stacked
        found = kept.index_select(0, indices.to(kept.device)).flatten(2).view(self.dtype)
        targets = [part.to(kept.device) for part in self.data_set.targets(indices)]
        return (found[:, 0] if found.shape[1] == 1 else found, *targets)

    def with_images(self, indices: Tensor) -> Batch:
        """The samples with their images, which are decoded, to be shown."""
        keys = indices.cpu(), torch.arange(len(indices))
        return SeededDataset(self.data_set).__getitems__(keys)

    def move_if_few(self, device: torch.device) -> None:
        """Keeps the features on the GPU if they take an eighth of its free memory at most."""
        values = self.kept if isinstance(self.kept, Tensor) else self.kept.values
        if values.nbytes >= torch.cuda.mem_get_info(device)[0] / 8:
            return
        if isinstance(self.kept, Tensor):
            self.kept = self.kept.to(device)
        else:
            self.kept.to(device)


def choose(features: Tensor, random: Generator) -> Tensor:
    """One of the versions of each image: (N, V, D) -> (N, D); (N, D) is returned as it is.

    Of two, plain and mirrored, the one that engine.data.images.flip makes of the image.
    """
    if features.dim() == 2:
        return features
    n, versions, _ = features.shape
    drawn = torch.rand(n, generator=random, device=features.device) * versions
    return features[torch.arange(n, device=features.device), versions - 1 - drawn.long()]


def use_features(
    run: Any,
    model: Any,
    data_sets: tuple[Any, Any],
    environment: dict[str, Any],
    amp: Amp,
) -> tuple[Any, Any]:
    """With `--freeze`, data sets with features in the place of images; else those given.

    It is told in a line, and in the environment.txt of the run if the model has `judge_features`.
    If features cannot be kept, a line tells why. All processes call it.

    Args:
        run: The RunDir.
        model: The model with its weights; its network has to be a `Frozen` one.
        data_sets: Those to train and to validate on.
        environment: What the exact result of the run depends on; see NOT_IN_NAME.
        amp: Device and precision.
    """
    opt = run.opt
    if not opt.freeze or getattr(opt, "views", 0) == 0:
        return data_sets
    first = _FirstPass(opt, model, amp, run.world, environment)
    begun = time.perf_counter()
    with first.alone():
        if reason := first.obstacle(*data_sets):
            terminal.say(f"features: computed in each epoch: {reason}")
            return data_sets
        train_set = first.keep(data_sets[0], data_sets[0].views)
        val_set = first.keep(data_sets[1], PLAIN)
    took = f"computed in {time.perf_counter() - begun:.1f} s"
    sizes = f"{len(train_set):,} + {len(val_set):,} images, {data_sets[0].views.text}"
    terminal.say(f"features: {sizes}, {took if first.computed else 'from the cache'}")
    if judge := getattr(model, "judge_features", None):
        every = [one.batch(torch.arange(len(one))) for one in (train_set, val_set)]
        run.notes["features"] = run.world.broadcast(lambda: judge(*every))
        terminal.say(f"features: {run.notes['features']}")
    for one in (train_set, val_set) if amp.device.type == "cuda" else ():
        one.move_if_few(amp.device)
    return train_set, val_set


class _FirstPass:
    """The model, on its way through all images for the only time."""

    def __init__(
        self, opt: Any, model: Any, amp: Amp, world: World, environment: dict[str, Any]
    ) -> None:
        self.opt, self.model, self.amp, self.world = opt, model, amp, world
        self.networks = with_parameters(model.networks())
        (self.name, self.network), *_ = self.networks.items()
        self.made_of = {k: v for k, v in environment.items() if k not in NOT_IN_NAME}
        self.weights = _digest(model, head_of(self.network)[0])
        self.computed = False
        self.known: dict[int, Tensor] = {}  # features of the first images, by the id of a data set

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A block in which the model is in evaluation mode, and neither compiled nor divided."""
        network: Any = self.network
        wrapped, compiled = getattr(self.model, self.name), network._compiled_call_impl
        setattr(self.model, self.name, network)
        network._compiled_call_impl = None
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            network._compiled_call_impl = compiled
            setattr(self.model, self.name, wrapped)

    def obstacle(self, train_set: Any, val_set: Any) -> str:
        """Why features cannot take the place of images; empty if they can."""
        if len(self.networks) > 1:
            return f"the model has several networks, {' and '.join(self.networks)}"
        for one in (train_set, val_set):
            if not hasattr(one, "targets") or not hasattr(train_set, "views"):
                return f"{type(one).__name__} has no views and targets (see docs/task.md)"
        if isinstance(train_set.views, str):
            return str(train_set.views)
        batch, again = self._first(train_set), self._first(train_set, seeds=BLOCK)
        losses = self._losses(batch)
        features = getattr(self.network, "frozen_features", None)
        if not isinstance(features, Tensor):
            return f"{type(self.network).__name__} is not its last layer applied to vectors"
        with suppress(Exception):  # a model that knows nothing of features may raise anything
            if losses == self._losses((features, *batch[1:])):
                self.known[id(train_set)] = features
                return self._other_changes(train_set.views, batch, again, features)
        return "the model does not take vectors in the place of images (see docs/task.md)"

    def _other_changes(self, views: Views, batch: Batch, again: Batch, features: Tensor) -> str:
        """What changes images, and would not change their features; empty if nothing does."""
        if views.augment is None:
            return ""
        if not batch[0].equal(again[0]):
            return "the samples of dataset.py are random (--views K keeps K of each)"
        random = [generator(self.amp.device, "features") for _ in range(2)]
        info = self.model.info
        changed, *targets = views.augment(info, random[0], *batch)
        more = [self.version(views, i, batch, 0) for i in range(1, views.count)]
        stack = torch.stack([features, *more], dim=1) if more else features
        expected = views.augment(info, random[1], stack, *batch[1:])[0]
        same = changed.equal(batch[0])
        if not expected.equal(features if same else self.features((changed, *targets))):
            return "augment of dataset.py does more than mirror images (--views K keeps K of each)"
        return ""

    def _losses(self, batch: Batch) -> list[float]:
        with torch.no_grad(), self.amp.autocast():
            losses = self.model(*batch)
        return [float(value) for named in losses.values() for value in named.values()]

    def _first(self, data_set: Any, seeds: int = 0) -> Batch:
        """The first images of a data set, at most BLOCK, on the device."""
        indices = torch.arange(min(BLOCK, len(data_set)))
        found = SeededDataset(data_set).__getitems__((indices, indices + seeds))
        return to_memory_format(tuple(p.to(self.amp.device) for p in found), self.amp.device)

    def features(self, batch: Batch) -> Any:
        """The features of the images of a batch, (N, D); None if the network has none."""
        self.network.frozen_features = None  # type: ignore[assignment]
        self._losses(to_memory_format(batch, self.amp.device))
        return self.network.frozen_features

    def version(self, views: Views, number: int, batch: Batch, first: int) -> Tensor:
        """The features of a version of images, the first of which has the index `first`."""
        random = generator(self.amp.device, self.opt.seed, "view", number, first)
        images = views.make(self.model.info, random, number, *batch)
        return self.features((images, *batch[1:]))

    def keep(self, data_set: Any, views: Views) -> FeatureSet:
        """The data set with the features of its images, from a file or computed now."""
        first = self.known.get(id(data_set))
        if first is None or views.augment is None:
            first = self.version(views, 0, self._first(data_set), 0)
        shape = len(data_set), views.count, first[0].nbytes
        path = self._path(data_set, views, first, shape)
        found = open_whole(path) if path else None
        if path and all(self.world.all_gather_object(found is not None)):
            with suppress(OSError):  # perhaps of another user
                os.utime(path)  # it is in use
            return FeatureSet(data_set, cast(MappedImages, found), first.dtype)
        self.computed = True
        rounds = self._rounds(data_set, views, shape, None if views.augment is None else first)
        if path is None:
            return FeatureSet(data_set, torch.cat(list(rounds))[..., None], first.dtype)
        if local_rank() == 0:
            _write(path, rounds, shape)
        for _ in rounds:  # of another process
            pass
        self.world.barrier()
        return FeatureSet(data_set, MappedImages(path), first.dtype)

    def _path(self, data_set: Any, views: Views, first: Tensor, shape: Shape) -> Path | None:
        """The file of features; None if there is no folder for it that can be written."""
        images, where = images_of(data_set), self.opt.cache
        folder = folder_of(images[0], where) if images and where != "off" else None
        seed = None if views.augment else self.opt.seed
        made_of = [self.made_of, self.weights, views.text, shape, seed, data_set.fingerprint()]
        digest = hashlib.sha256(repr([*made_of, *(one.name() for one in images)]).encode())
        digest.update(_bytes(first).numpy().tobytes())
        path = folder and folder / f"features-{digest.hexdigest()[:16]}{FEATURES}"
        problem = _problem(path, math.prod(shape)) if path and local_rank() == 0 else ""
        if found := next(filter(None, self.world.all_gather_object(problem)), ""):
            terminal.warn(f"{found}: features are kept in memory; --cache DIR keeps them elsewhere")
        return None if found else path

    def _rounds(
        self, data_set: Any, views: Views, shape: Shape, known: Tensor | None
    ) -> Iterator[Tensor]:
        """The bytes of features in the order of the data set, uint8 (up to BLOCK x W, V, bytes).

        Each of the W processes computes a block of each round, but for the first block of plain
        images, if it is `known`.
        """
        world, opt, random = self.world, self.opt, views.augment is None
        times, each = views.count if random else 1, BLOCK * world.size
        sampler = _ViewSampler(shape[0], BLOCK, world.rank, world.size, times, opt.seed)
        loader = Loader(data_set, sampler, self.amp.device, opt.workers, opt.prefetch)
        bar = terminal.bar(desc="features", total=shape[0], leave=False, disable=world.rank > 0)
        batch: Batch = ()
        with loader, loader.batches() as batches, bar:
            for start in range(0, shape[0], each):
                own, first = torch.zeros(BLOCK, *shape[1:], dtype=torch.uint8), start
                first += world.rank * BLOCK
                for number in range(views.count if first < shape[0] else 0):
                    batch = next(batches) if random or number == 0 else batch
                    found = known if first == number == 0 else None
                    found = self.version(views, number, batch, first) if found is None else found
                    own[: len(found), number] = _bytes(found)
                yield world.all_gather(own)[: shape[0] - start]
                bar.update(min(each, shape[0] - start))


@dataclass
class _ViewSampler(EvalBatchSampler):
    """Each batch as many times as there are random versions, each time with other seeds."""

    times: int = 1
    seed: int = 0

    def count(self, n_iter: int = 0) -> int:
        return super().count() * self.times

    def batches(self, n_iter: int = 0, device: torch.device | str = "cpu") -> Iterator[Keys]:
        for indices, _ in super().batches(n_iter, device):
            for number in range(self.times):
                rows = indices.tolist()
                seeds = [seed_of(self.seed, "view", number, row) % 2**31 for row in rows]
                yield indices, torch.tensor(seeds)


def _bytes(values: Tensor) -> Tensor:
    """The bytes of values (N, ...) on the CPU: uint8 (N, bytes)."""
    return values.detach().cpu().contiguous().reshape(len(values), -1).view(torch.uint8)


def _digest(model: nn.Module, head: nn.Module) -> str:
    """A digest of all parameters and buffers of a model but those of the head of its network."""
    found, left_out = hashlib.sha256(), {id(value) for value in head.parameters()}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if id(value) not in left_out:
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(_bytes(value.reshape(1, -1)).numpy().data)
    return found.hexdigest()


def _problem(path: Path, size: int) -> str:
    """Why a file of so many bytes cannot be written; empty if it can, or is there."""
    try:
        path.parent.mkdir(exist_ok=True, parents=True)
        delete_unused(path.parent)
        if not path.exists():
            tempfile.TemporaryFile(dir=path.parent).close()
            check_room(path.parent, size)
    except OSError as error:
        return f"{path.parent}: {error.strerror}"
    return ""


def _write(path: Path, rounds: Iterator[Tensor], shape: Shape) -> None:
    """Writes features as images (1, V, bytes), see engine/data/mapped.py; without digests."""
    n, versions, width = shape
    first = torch.zeros(1, versions, width, dtype=torch.uint8)

    def parts() -> Iterator[tuple[Tensor, ...]]:
        for rows in rounds:
            sizes = torch.tensor([[versions, width]] * len(rows), dtype=torch.int32)
            none = torch.zeros(len(rows), 16, dtype=torch.uint8)
            yield rows.reshape(-1), torch.zeros(len(rows), 2, 1, dtype=torch.int64), sizes, none

    def write(file: BinaryIO) -> str:
        mapped.write(file, parts(), first, "feature", np.zeros((n, 4), np.int64))
        return path.name

    write_whole(path.parent, path.stem, n * versions * width, write)
