"""What a sample is: an image in a folder named after its class, or in a table.

    DIR/train/CLASS/any_name.jpg
    DIR/val/CLASS/any_name.jpg      optional; without it a share of train/ is set aside
    DIR/test/CLASS/any_name.jpg     read by test.py alone

    DIR/labels.csv                  instead: file,label and perhaps split, group, weight

A file DIR/dataset.json may name the source of the images, and `"flip": false` in it turns random
flips off, for digits and the like.
"""

import copy
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from engine.data import stored
from engine.data.cache import CachedImages
from engine.data.features import PLAIN, Views, choose
from engine.data.files import SerializedList, list_images, warn_shared, warn_unused
from engine.data.images import flip, read_image
from engine.data.splits import check_apart, find_groups, refuse_fold, set_aside, without_groups
from engine.data.stored import Form, as_values, by_channel, more_endings, read_stored
from engine.errors import BadInput
from task.augmentation import (
    check_colours,
    check_transforms,
    chosen_transforms,
    eval_crop,
    mix,
    shift,
    stored_side,
    stored_views,
    train_crop,
)
from task.classes import (
    check_classes,
    check_divisible,
    list_folders,
    list_rows,
    read_classes,
    warn_one_sided,
)
from task.describe import describe_images
from task.labels import TABLE, Table, below_split
from task.preprocessing import is_whole, resize
from tools.digits import unpack_digits

BUILT_IN = "data/digits"  # the images that come with the project

# An image takes three steps: `load` always gives the same, so its result is kept in the cache;
# `random_transforms` change single images; `augment` changes whole batches on the device. Each
# sample and each batch has a seed of its own, so runs stay exact. Crops are cut after `load`.


def load(path: str | Path, opt: Namespace, like: Form | None = None) -> Tensor:
    """Reads an image and resizes it: uint8 (3, S, S), S = `--img-size`.

    With `--images stored` it has the channels and the depth of its file, which have to be those of
    `like`. With `--resize crop` it keeps its aspect ratio: (3, H, W), large enough, but never
    enlarged. The cache is made again when this file changes. An option that is used here has to be
    in the name of the cache too: see `recipe`.
    """
    if opt.images == "stored":
        return by_channel(read_stored(path, opt.axes, like), partial(resize, opt=opt))
    side = stored_side(opt) if opt.resize == "crop" else opt.img_size
    image = read_image(path, None if is_whole(opt) else (side, side))
    return v2.functional.pil_to_tensor(resize(image, opt))


def recipe(opt: Namespace) -> str:
    """The options that the result of `load` depends on, as a part of a file name."""
    kept = ["stored", *([opt.axes] if opt.axes else [])] if opt.images == "stored" else []
    if opt.resize == "crop":
        return "-".join([f"crop{stored_side(opt)}px", *kept])
    exact = [opt.resize, *opt.preprocess[:2]] if is_whole(opt) else []
    return "-".join([f"{opt.img_size}px", *exact, *kept])


def load_eval(path: str | Path, opt: Namespace, like: Form | None = None) -> Tensor:
    """Reads an image as validation and test see it: uint8 (3, V, V), V = `--val-img-size` or S.

    With `--images stored` as `like`, which is that of the model; of more than 8 bits float32.
    """
    image = as_values(load(path, opt, like))
    for transform in eval_crop(opt):
        image = transform(image)
    return image


def random_transforms(opt: Namespace) -> list[v2.Transform]:
    """The random transforms of each training image, of torchvision.transforms.v2.

    Each takes and returns an image, uint8 (3, S, S); with `--images stored` (C, S, S), float32 in
    the unit of the files if these have more than 8 bits.
    """
    return chosen_transforms(opt)


def augment(
    opt: Namespace, info: dict[str, Any], random: Generator, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The random changes of a whole training batch, on the device, where they are cheap.

    Args:
        opt: The options.
        info: That of the data set and of the model.
        random: The generator to draw from, on the device.
        images: uint8 (N, 3, S, S), or as `random_transforms` return; or features (N, [V,] D).
        labels: int64 (N,).

    Returns:
        The same, of one of V versions; mixed ones float32, with shares of classes, float32 (N, K).
    """
    if images.dim() < 4:
        images = choose(images, random)
    else:
        images = flip(images, random) if opt.flip else images
        images = shift(images, opt.shift, random) if opt.shift else images
    if opt.mixup or opt.cutmix:
        images, labels = mix(opt, len(info["classes"]), random, images, labels)
    return images, labels


def train_and_val(  # of ClassFolders, or a data set of your own
    opt: Namespace, form: Form | None = None
) -> tuple[Any, Any]:
    """The images to train on, and those to validate on: val/, or else a share of train/.

    With `--images stored` they have to be of a form, without one that of the first.

    Raises:
        BadInput: As ClassFolders; or the classes differ, or a class cannot be divided.
    """
    root = data_dir(opt.data)
    table = read_classes(root, opt)
    train_set = ClassFolders(root / "train", opt, table=table, form=form)
    splits = [train_set.found]
    if table.has("val") if table else (root / "val").is_dir():
        refuse_fold(opt, table.path if table else root / "val")
        val_set = ClassFolders(root / "val", opt, train_set.classes, table, train_set.form)
        splits.append(val_set.found)
        warn_shared(*splits)
        check_apart({str(one.root): one.groups for one in (train_set, val_set)})
    else:
        train_set, val_set = train_set.split(opt)
    table.warn() if table else warn_unused(root, *splits)
    train_set.transforms = [*train_crop(opt), *random_transforms(opt)]
    if opt.sample == "balanced":
        if train_set.weights is not None:
            raise BadInput(f"--sample balanced: {root / TABLE} has weights; leave one of them out")
        train_set.strata = train_set.labels
    check_colours(opt, train_set.form)
    alone = Namespace(**{**vars(opt), "mixup": 0, "cutmix": 0})
    train_set.views = stored_views(opt, partial(augment, alone))
    check_transforms(train_set, opt)
    return train_set, val_set


def eval_set(opt: Namespace, info: dict[str, Any], split: str) -> Any:
    """The images of a split (test, val or train), never changed at random.

    Raises:
        BadInput: As ClassFolders; or the classes are not those of `info`, that of the model.
    """
    if split == "test":
        root, opt = data_dir(opt.data), without_groups(opt)
        table, form = read_classes(root, opt), stored.trained_form(info)
        chosen = ClassFolders(root / "test", opt, list(info["classes"]), table, form)
        table.warn() if table else warn_unused(root, chosen.found)
        for other in () if table else ("train", "val"):
            warn_shared(list_images(root / other, more_endings(opt.images)), chosen.found)
        return chosen
    chosen = train_and_val(opt, stored.trained_form(info))[split == "val"]
    chosen.transforms = eval_crop(opt)
    check_classes(chosen.root, chosen.classes, list(info["classes"]))
    return chosen


class ClassFolders(Dataset):
    """Images in one folder for each class, or in the rows of a table.

    The names of the classes, sorted, give the labels; images come by class, then by their path.
    Hidden files and folders (a name that begins with a dot) are ignored. `found` tells what else
    lies there, and is not used.

    Args:
        root: The folder that holds the class folders; with a table it names the split.
        opt: The options.
        classes: Those of training, some of which may have no images here.
        table: That in the folder of the data, if there is one.
        form: With `--images stored`, what all images have to be like; None: the first one.

    Returns:
        For an index: a tensor (3, S, S) uint8, or (3, V, V) to judge by, and its label, int64. With
        `--images stored` it has the channels of the files, and is float32 above 8 bits.

    Raises:
        BadInput: As list_folders and list_rows of task.classes; or `--group` finds no group.
    """

    def __init__(
        self,
        root: Path,
        opt: Namespace,
        classes: list[str] | None = None,
        table: Table | None = None,
        form: Form | None = None,
    ) -> None:
        self.transforms = eval_crop(opt)  # those of training images are others
        # The options on which validation depends: when it changes, the best value is forgotten.
        how = "centred" if opt.resize == "center" else "squashed"
        self.view = f"{how} to {opt.img_size} pixels"
        if opt.resize == "crop":
            self.view = f"cropped to {opt.val_img_size} of {stored_side(opt)} pixels"
        self.view = ", ".join([self.view, *(opt.preprocess or [])])
        self.strata: Tensor | None = None  # the labels, if each class is drawn equally often
        self.views: Views | str = PLAIN  # the versions of an image that --freeze keeps features of
        listed = list_rows(table, root.name, classes) if table else None
        listed = listed or list_folders(root, classes, more_endings(opt.images))
        self.root, self.classes, rows = listed.root, listed.classes, listed.rows
        self.found = listed.found.for_workers()
        self.form = form or stored.form_of_set(opt, self.root / listed.files[0])
        self._facts: dict[str, Any] | None = None  # of the form, see `info`
        self.images = CachedImages(
            self.root,
            listed.files,
            decode=partial(load, opt=opt, like=self.form),
            recipe=recipe(opt),
            data=root.parent,
            notes=[row.digest() for row in rows] if table else None,
        )
        groups = find_groups(opt, self.images.names()) if table is None else None
        if table and table.grouped:
            groups = [row.group for row in rows]
        self.group_of = None if groups is None else SerializedList(groups)  # of `images`
        self.has_test = table.has("test") if table else None  # None: as the folders say
        weighted = table and "weight" in table.columns
        self.weight_of = torch.tensor([row.weight for row in rows]).double() if weighted else None
        self.rows = torch.arange(len(self.images))
        self.labels = torch.tensor(listed.labels)

    def split(self, opt: Namespace) -> tuple["ClassFolders", "ClassFolders"]:
        """Two parts of these images; the second gets about a share of each class, or a fold.

        The hash of a file's path, or that of its group, decides, so new files move no old one,
        unless a class would have no image in one of the parts (see engine.data.splits).

        Raises:
            BadInput: A class has only one image, or there are too few groups.
        """
        names, groups = self.names(), self.groups
        if groups is None:
            check_divisible(self.root, self.counts())
        if self.root == self.images.data:
            names = [below_split(name) for name in names]
        in_val = torch.tensor(set_aside(opt, self.root, names, self.labels.tolist(), groups))
        parts = self._select(~in_val), self._select(in_val)
        warn_one_sided(*(part.counts() for part in parts))
        return parts

    def _select(self, chosen: Tensor) -> "ClassFolders":
        part = copy.copy(self)  # the images and their cache are shared
        part.rows, part.labels = self.rows[chosen], self.labels[chosen]
        return part

    def counts(self) -> dict[str, int]:
        """The number of images of each class."""
        counts = torch.bincount(self.labels.cpu(), minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    @property
    def info(self) -> dict[str, Any]:
        """What checkpoints keep: "classes", with their counts; and engine.data.stored.facts."""
        if self._facts is None:
            self._facts = stored.facts(self.images, self.rows, self.form) if self.form else {}
        return {"classes": self.counts(), **self._facts}

    def names(self) -> list[str]:
        """The path of each sample, relative to `root`."""
        return [self.images.files[row] for row in self.rows.tolist()]

    @property
    def groups(self) -> list[str] | None:
        """The group of each sample, if there are groups."""
        groups = self.group_of
        return None if groups is None else [groups[row] for row in self.rows.tolist()]

    @property
    def weights(self) -> Tensor | None:
        """How likely each sample is drawn in training, over the others; float64 (N,)."""
        return None if self.weight_of is None else self.weight_of[self.rows.cpu()]

    def fingerprint(self) -> str:
        """A checksum of the list of samples, which the order of training depends on."""
        return self.images.fingerprint(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = as_values(self.images[int(self.rows[index])])
        for transform in self.transforms:
            image = transform(image)
        return image, self.labels[index]

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor] | None:
        """The samples of a batch at once; None if they have to be made one by one."""
        if self.transforms:
            return None
        indices = indices.to(self.rows.device)
        stacked = self.images.stack(self.rows.index_select(0, indices))
        return None if stacked is None else (as_values(stacked), *self.targets(indices))

    def targets(self, indices: Tensor) -> tuple[Tensor]:
        """What samples have besides their images."""
        return (self.labels.index_select(0, indices.to(self.labels.device)),)

    def to(self, device: torch.device) -> None:
        """Moves what `batch` needs besides the images to their device."""
        self.rows, self.labels = self.rows.to(device), self.labels.to(device)


def describe(train_set: Any, val_set: Any, opt: Namespace) -> str:
    """What train.py prints about the data: counts, and the size of the images on the disk."""
    counts = f"{len(train_set):,} images to train on, {len(val_set):,} to validate on"
    ours = isinstance(train_set, ClassFolders)
    classes = train_set.counts() if ours else train_set.info["classes"]
    text = f"data: {opt.data}, {len(classes)} classes, {counts}"
    return text + describe_images(train_set, val_set, classes, opt) if ours else text


def data_dir(name: str) -> Path:
    """The folder for `--data`. The images that come with the project are unpacked if necessary."""
    if Path(name) != Path(BUILT_IN) or Path(name).exists():
        return Path(name)
    built_in = Path(__file__).parent / BUILT_IN
    if not built_in.exists():
        unpack_digits(built_in)
    return built_in.relative_to(Path.cwd()) if built_in.is_relative_to(Path.cwd()) else built_in
