"""What train.py prints about images in classes, besides their numbers."""

from argparse import Namespace
from typing import Any

from engine.data import stored
from engine.data.images import image_size
from task.labels import TABLE
from task.preprocessing import describe_preprocessing


def describe_images(train_set: Any, val_set: Any, classes: dict[str, int], opt: Namespace) -> str:
    """The lines about draws, groups and the size of images, each after a line's end.

    Args:
        train_set: A ClassFolders, as `val_set`.
        val_set: The images to validate on.
        classes: The number of images of each class to train on.
        opt: The options.
    """
    text = ""
    first = train_set.root / train_set.images.files[int(train_set.rows[0])]
    width, height = stored.stored_size(first, opt.axes) if train_set.form else image_size(first)
    if train_set.strata is not None:
        rare, times = min(classes, key=classes.__getitem__), len(train_set) / len(classes)
        text += (
            f"\ndraws: about {times:,.0f} of each class in an epoch, each image of {rare} about "
            f"{times / classes[rare]:,.1f} times (--sample {opt.sample})"
        )
    if train_set.weights is not None:
        text += f"\ndraws: as likely as the weights in {TABLE} say"
    if train_set.groups is not None:
        groups = [len({*(part.groups or ())}) for part in (train_set, val_set)]
        text += f"\ngroups: {groups[0]:,} to train on, {groups[1]:,} to validate on"
    seen = f", {train_set.form}" if train_set.form else ""
    return text + describe_preprocessing(opt, width, height, seen)
