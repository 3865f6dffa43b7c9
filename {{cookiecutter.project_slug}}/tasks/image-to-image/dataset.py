"""What a sample is: the input of the network and its target, two crops at the same place.

Below DIR/train, DIR/test and perhaps DIR/val, one of

    A/name.jpg and B/name.jpg    inputs and targets, in pairs of the same name and size;
                                 the endings may differ
    any_name.jpg                 input and target side by side in one image, if --side-by-side is
                                 given or DIR/dataset.json has {"pairs": "side-by-side"}
    any_name.jpg                 photographs: the targets, whose inputs are made by --degrade

Without DIR/val a share of train/ is set aside for validation; DIR/test is read by test.py alone.
A file DIR/dataset.json may also name the source of the images, and `"flip": false` in it turns
random flips off, for letters and the like.
"""

import copy
from argparse import Namespace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from engine.data import stored
from engine.data.cache import CachedImages
from engine.data.files import SerializedList, list_images, warn_shared, warn_unused
from engine.data.images import flip, read_image
from engine.data.splits import check_apart, find_groups, refuse_fold, set_aside, without_groups
from engine.data.stored import Form, as_values, to_depth
from engine.errors import BadInput
from task.degradations import DEGRADATIONS, check_channels, to_uint8
from task.depth import Known
from task.near_pairs import check_names, check_shapes
from task.pairs import choose_images, find_layout, match_names, pair_size, warn_transparent
from tools.photos import copy_photos

BUILT_IN = "data/photos"  # the images that come with the project
SMALLEST = 11  # height and width of an image that can be tested: SSIM has such a window
SAMPLES = 1000  # about how many an epoch has if --crops is not given
Pair = tuple[Tensor, Tensor]  # input and target, both uint8 (3, H, W), or as Pairs says

# A sample takes three steps: `load` always gives the same, so its result is kept in the cache;
# Pairs cuts a crop out of it and degrades it; `augment` changes whole batches on the device. Each
# sample and each batch has a seed of its own, so runs stay exact.


def load(path: str | Path, opt: Namespace | None = None, like: Form | None = None) -> Tensor:
    """Reads an image in full size: uint8 (3, H, W).

    With `--images stored` it has the channels and the depth of its file, which have to be those of
    `like`. The cache is made again when this file changes.
    """
    if opt is not None and opt.images == "stored":
        return stored.read_stored(path, opt.axes, like)
    return v2.functional.pil_to_tensor(read_image(path))


def load_eval(path: str | Path, opt: Namespace, like: Form | None = None) -> Tensor:
    """Reads an image as test.py and predict.py see it: as `load`; above 8 bits float32."""
    return as_values(load(path, opt, like))


def degrade(
    image: Tensor, name: str, opt: Namespace, known: dict[str, Any] | None = None
) -> Tensor:
    """Degrades an image. Random numbers come from torch's generator, which is seeded per sample.

    Args:
        image: uint8 (3, H, W).
        name: One of DEGRADATIONS.
        opt: The options, for the degree.
        known: With `--images stored` the info of Pairs. Then images have its channels and depth;
            its range counts as 0 to 255.

    Returns:
        The same shape and type.
    """
    if not known or known["depth"] == "uint8":
        return to_uint8(DEGRADATIONS[name](image.float(), opt))
    low, unit = known["low"], (known["high"] - known["low"]) / 255
    return to_depth(DEGRADATIONS[name]((image - low) / unit, opt) * unit + low, known["depth"])


def augment(
    opt: Namespace, info: dict[str, Any], random: Generator, inputs: Tensor, targets: Tensor
) -> Pair:
    """The random changes of a whole training batch, on the device: the same for input and target.

    Args:
        opt: The options.
        info: That of the data set and of the model.
        random: The generator to draw from, on the device.
        inputs: uint8 (N, 3, S, S), or as Pairs says.
        targets: The same.
    """
    if opt.flip:
        inputs, targets = flip(torch.cat([inputs, targets], dim=1), random).chunk(2, dim=1)
    if opt.turn:
        inputs, targets = turn(torch.cat([inputs, targets], dim=1), random).chunk(2, dim=1)
    return inputs, targets


def turn(images: Tensor, random: Generator) -> Tensor:
    """Turns each image of a batch by 0, 90, 180 or 270 degrees, each about as often.

    After `flip` an image is in one of all eight positions that a square can have. To turn the two
    images of a pair alike, concatenate their channels first.

    Args:
        images: (N, C, S, S) of any type.
        random: The generator to draw from, on the device of the images.

    Returns:
        The same shape and type.

    Raises:
        BadInput: The images are not square: turned ones would have another shape.
    """
    n, _, height, width = images.shape
    if height != width:
        raise BadInput(f"--turn: needs square images, and these have {width} x {height}; leave it")
    quarters = torch.randint(4, (n,), generator=random, device=images.device)
    whole = images.permute(0, 2, 3, 1)  # as in `flip`
    turned = torch.cat([whole.rot90(quarter, (1, 2)) for quarter in range(4)])
    chosen = torch.arange(n, device=images.device) + n * quarters
    return turned.index_select(0, chosen).permute(0, 3, 1, 2)


def train_and_val(opt: Namespace) -> tuple[Any, Any]:  # of Pairs, or a data set of your own
    """Random crops of the images to train on, and a fixed grid of crops of those to validate on.

    Raises:
        BadInput: As Pairs; or there is no val/, and train/ cannot be divided.
    """
    train_set, val_set = _whole_train_and_val(opt)
    return train_set.random_crops(), val_set.grid_of_crops()


def eval_set(opt: Namespace, info: dict[str, Any], split: str) -> Any:
    """The whole images of a split (test, val or train); `info` is that of the model.

    Raises:
        BadInput: As `train_and_val`, but that images may be smaller than a crop.
    """
    root = data_dir(opt.data)
    if split == "test":
        chosen = Pairs(root / "test", without_groups(opt), SMALLEST, info)
        warn_unused(root, chosen.found)
        for other in ("train", "val"):
            more = stored.more_endings(opt.images)
            warn_shared(list_images(root / other, more), chosen.found)
        if (root / "train").is_dir():
            chosen.check_layout(find_layout(root / "train", opt))
        return chosen
    return _whole_train_and_val(opt, SMALLEST, info)[split == "val"]


def _whole_train_and_val(
    opt: Namespace, least: int | None = None, info: dict[str, Any] | None = None
) -> tuple["Pairs", "Pairs"]:
    root = data_dir(opt.data)
    train_set = val_set = Pairs(root / "train", opt, least, info)
    splits = [train_set.found]
    if train_set.layout == "photographs" and opt.side_by_side is opt.degrade is None:
        check_shapes(train_set.root, train_set.sizes.tolist())
    if (root / "val").is_dir():
        refuse_fold(opt, root / "val")
        val_set = Pairs(root / "val", opt, least, info)
        val_set.known = train_set.known
        val_set.check_layout(train_set.layout)
        splits.append(val_set.found)
        warn_shared(*splits)
        check_apart({str(one.root): one.groups for one in (train_set, val_set)})
    warn_unused(root, *splits)
    if val_set is train_set:
        train_set, val_set = train_set.split(opt)
        train_set.known.rows = train_set.images_of(train_set.rows)
    return train_set, val_set


def describe(train_set: Any, val_set: Any, opt: Namespace) -> str:
    """What train.py prints about the data: counts, and the size of the images on the disk."""
    if not isinstance(train_set, Pairs) or not isinstance(val_set, Pairs):
        return f"data: {opt.data}, {len(train_set):,} to train on, {len(val_set):,} to validate on"
    kinds = {"folders": "pairs", "side-by-side": "pairs side by side"}
    kind = kinds.get(train_set.layout, f"photographs ({opt.degrade or 'noise'})")
    of_train, of_val = (len(part.rows.unique()) for part in (train_set, val_set))
    height, width = train_set.sizes[int(train_set.rows[0])].tolist()
    form = f", {train_set.known.form}" if train_set.known.form else ""
    return (
        f"data: {opt.data}, {kind}, {of_train:,} to train on, {of_val:,} to validate on\n"
        f"images: {width}x{height} pixels (the first){form}, cut into "
        f"{opt.img_size}x{opt.img_size}: {len(train_set):,} and {len(val_set):,} crops"
    )


def data_dir(name: str) -> Path:
    """The folder for `--data`. The images that come with the project are copied if necessary."""
    if Path(name) != Path(BUILT_IN) or Path(name).exists():
        return Path(name)
    built_in = Path(__file__).parent / BUILT_IN
    if not built_in.exists():
        copy_photos(built_in)
    return built_in.relative_to(Path.cwd()) if built_in.is_relative_to(Path.cwd()) else built_in


class Pairs(Dataset):
    """Pairs of images in one of the layouts above: whole, or in crops of S x S, S = `--img-size`.

    Hidden files and folders (a name that begins with a dot) are ignored. `found` tells what else
    lies there, and is not used.

    Args:
        root: The folder of the images, such as DIR/train.
        opt: The options.
        least: The smallest height and width allowed; None for those of a crop.
        info: That of the model, if there is one.

    Returns:
        For an index: input and target, both uint8 (3, H, W). With `--images stored` they have the
        channels of the files, and are float32 in the unit of these above 8 bits.

    Raises:
        BadInput: There is no such folder, no image in it, two images are no pair, or one is too
            small.
    """

    def __init__(
        self,
        root: Path,
        opt: Namespace,
        least: int | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.root, self.opt = root, opt
        self.layout = find_layout(root, opt)
        found = list_images(root, stored.more_endings(opt.images))
        paths = choose_images(root, found, self.layout)
        self.found = found.for_workers()
        names = paths
        if self.layout == "folders":
            names, paths = match_names(root, paths)
        elif self.layout == "photographs" and opt.degrade is None:
            check_names(root, names)
        files = self.pairs = SerializedList(paths)
        if self.layout == "folders":
            self.pairs = SerializedList(names)
        form, decode, recipe = stored.trained_form(info or {}), load, "full"
        form = form or stored.form_of_set(opt, root / files[0])
        if form is not None:
            check_channels(opt, form)
            decode, recipe = partial(load, opt=opt, like=form), f"full-stored-{opt.axes or ''}"
        self.images = CachedImages(root, files, decode=decode, recipe=recipe)
        self.groups = find_groups(opt, islice(self.images.names(), len(names)))  # of `pairs`
        count, paths = len(names), [f"{root}/{path}" for path in paths]
        heads = [pair_size(paths[i::count], self.layout, opt, least) for i in range(count)]
        warn_transparent(root, [names[i] for i in range(count) if heads[i][1]])
        self.sizes = torch.tensor([size for size, _ in heads])  # height and width of each pair
        self.rows = torch.arange(count)  # of `pairs`, one for each sample
        self.known = Known(self.images, self.images_of(self.rows), form, info)
        # The options on which validation depends: when it changes, the best value is forgotten.
        self.view = f"in crops of {opt.img_size} pixels"
        if self.layout == "photographs":
            self.view += f" ({opt.degrade or 'noise'}, {opt.noise:g}, {opt.scale:g})"
        self.crops = "none"
        self.corners = torch.empty(0)  # top and left of each sample in a grid of crops

    def check_layout(self, expected: str) -> None:
        """Raises BadInput unless the layout is that of train/."""
        if self.layout != expected:
            raise BadInput(
                f"{self.root}: holds {self.layout}, and train/ {expected}; lay out alike"
            )

    def split(self, opt: Namespace) -> tuple["Pairs", "Pairs"]:
        """Two parts of these pairs; the second gets about a share of them, or a fold.

        The hash of a pair's name, or that of its group, decides, so new files move no old one,
        unless a part would be empty (see engine.data.splits).

        Raises:
            BadInput: There is only one pair, or one group.
        """
        if len(self.pairs) == 1:
            raise BadInput(
                f"{self.root}: only one {'image' if self.pairs is self.images.files else 'pair'}, "
                "and one is needed to train on and one to validate on; add images, or a folder val/"
            )
        strata = [0] * len(self.pairs)
        in_val = torch.tensor(set_aside(opt, self.root, self.pairs, strata, self.groups))
        return self._select(self.rows[~in_val]), self._select(self.rows[in_val])

    def random_crops(self) -> "Pairs":
        """The same pairs in crops at random places, `--crops` of each."""
        crops = self.opt.crops or max(1, round(SAMPLES / len(self)))
        return self._select(self.rows.repeat(crops), crops="random")

    def grid_of_crops(self) -> "Pairs":
        """The same pairs in crops side by side, without a remainder at the right and the bottom."""
        size = self.opt.img_size
        grid = [
            (row, top, left)
            for row in self.rows.tolist()
            for top in range(0, int(self.sizes[row, 0]) - size + 1, size)
            for left in range(0, int(self.sizes[row, 1]) - size + 1, size)
        ]
        rows, *corners = torch.tensor(grid).T
        return self._select(rows, crops="grid", corners=torch.stack(corners, dim=1))

    def _select(self, rows: Tensor, **how: Any) -> "Pairs":
        part = copy.copy(self)  # the images and their cache are shared
        vars(part).update(rows=rows, **how)
        return part

    def images_of(self, rows: Tensor) -> Tensor:
        """The rows of `images` for some rows of `pairs`."""
        return torch.cat([rows, rows + len(self.pairs)]) if self.layout == "folders" else rows

    @property
    def info(self) -> dict[str, Any]:
        """What checkpoints keep: nothing, a network fits any images; with `--images stored` their
        channels, depth and range."""
        return self.known.info()

    def names(self) -> list[str]:
        """The name of each sample's pair: its path in `root`, without the folder A or B."""
        return [self.pairs[row] for row in self.rows.tolist()]

    def fingerprint(self) -> str:
        """A checksum of the list of samples, which the order of training depends on."""
        return self.images.fingerprint(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        row, size = int(self.rows[index]), self.opt.img_size
        image = as_values(self.images[row])
        if self.layout == "folders":
            image = torch.cat([image, as_values(self.images[row + len(self.pairs)])])
        elif self.layout == "side-by-side":
            image = torch.cat(image.chunk(2, dim=2))
        if self.crops != "none":
            if self.crops == "random":
                top, left = (int(torch.randint(side - size + 1, ())) for side in image.shape[1:])
            else:
                top, left = self.corners[index].tolist()
            image = image[:, top : top + size, left : left + size]
        image = image.contiguous()  # a copy, so that the rest of a large image is not kept
        if self.layout == "photographs":
            return degrade(image, self.opt.degrade or "noise", self.opt, self.info), image
        return image[: len(image) // 2], image[len(image) // 2 :]
