"""The options of train.py, with their defaults."""

from argparse import BooleanOptionalAction, Namespace

import dataset
from engine.arguments import (
    Parser,
    add_data_options,
    add_training_options,
    complete_reading,
    number,
)
from engine.data.files import choose_flip, read_dataset_json
from engine.errors import BadInput
from layers import NORMS
from losses import LOSSES
from networks import NETWORKS, preset_of
from task.augmentation import add_augmentation_options, complete_augmentation
from task.libraries import is_timm
from task.preprocessing import add_preprocessing_options, complete_preprocessing


def parse(argv: list[str] | None = None) -> Namespace:
    """The options of a training run; defaults that depend on data and network are filled in."""
    opt = make_parser().parse_run(argv)
    folder = dataset.data_dir(opt.data)
    described = read_dataset_json(folder)
    opt.flip = choose_flip(opt, described.get("flip"), folder, argv)
    complete_reading(opt, described)
    if opt.sample == "balanced" and opt.balance:
        raise BadInput("--sample balanced: rare classes would count twice; leave out --balance")
    preset = preset_of(opt.network)  # a wrong name is found at once
    complete_preprocessing(opt, preset, always=is_timm(opt.network))
    complete_augmentation(opt)
    return opt


# fmt: off
def make_parser() -> Parser:
    parser = Parser(description="Trains a network for image classification.")

    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--data", metavar="DIR", default=dataset.BUILT_IN,
        help="folder with train/, perhaps val/; or with labels.csv")
    add_data_options(data)
    add("--sample", choices=("shuffled", "balanced"), default="shuffled",
        help="shuffled: each training image once in an epoch; balanced: each class equally often")
    add("--img-size", type=number(int, 1), metavar="S",
        help="images have S x S pixels (default: the usual size of the network)")
    add("--flip", action=BooleanOptionalAction,
        help="mirror training images at random (default: as dataset.json says, else yes)")
    add("--shift", type=number(int, 0), default=0, metavar="PIXELS",
        help="move training images at random by up to so many pixels")
    add_preprocessing_options(data)
    add_augmentation_options(data)

    add = parser.add_argument_group("network and loss").add_argument
    add("--network", default="simple",
        help=f"{', '.join(NETWORKS)}, a name from torchvision, or timm:NAME")
    add("--blocks", type=number(int, 0), default=2, help="residual blocks (network simple)")
    add("--width", type=number(int, 1), default=32, help="channels of the first layer")
    add("--norm", choices=sorted(NORMS), default="batch", help="normalisation (network simple)")
    add("--dropout", type=number(float, 0, 0.99), default=0.0,
        help="dropout (network simple); or that of a library's network, 0 for its own")
    add("--pretrained", action=BooleanOptionalAction, default=False,
        help="start a library's network from its trained weights (downloaded once)")
    add("--loss", choices=LOSSES, default="cross-entropy", help="the criterion")
    add("--label-smoothing", type=number(float, 0, 0.99), default=0.0,
        help="share of the target that goes to all classes alike")
    add("--balance", action=BooleanOptionalAction, default=False,
        help="weight the classes in the loss so that each counts alike")

    add_training_options(
        parser, epochs=10, batch_size=64, optimizer="adamw", lr=2e-3, weight_decay=0.01,
        schedule="cosine",
    )
    return parser
