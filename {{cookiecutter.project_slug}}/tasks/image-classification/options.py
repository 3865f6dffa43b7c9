"""The options of train.py, with their defaults."""

import sys
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path

import data
from engine.arguments import Parser, add_machine_options, number
from engine.optimizing import SCHEDULES
from engine.parallel import WAYS
from images import read_facts
from layers import NORMS, PADDINGS
from losses import LOSSES
from networks import usual_size


def parse(argv: list[str] | None = None) -> Namespace:
    """The options of a training run; `@FILE` reads them from a config.txt.

    A resumed run takes those of its own config.txt first, and then those of the command line.
    """
    given = sys.argv[1:] if argv is None else argv
    parser = make_parser()
    opt = parser.parse_args(given)
    if opt.resume and opt.run is None:
        parser.error("--resume needs --run DIR, the folder of the run to go on with")
    if opt.resume and (config := Path(opt.run) / "config.txt").exists():
        opt = parser.parse_args([f"@{config}", *given])
    if opt.flip is None:
        opt.flip = read_facts(data.folder(opt.data)).get("flip", True)
    if opt.img_size is None:
        opt.img_size = usual_size(opt.network)
    return opt


# fmt: off
def make_parser() -> Parser:
    parser = Parser(description="Trains a network that tells classes of images apart.")

    group = parser.add_argument_group("the run")
    add = group.add_argument
    add("--run", metavar="DIR", help="folder of all outputs (default: runs/<date-time>)")
    add("--resume", action="store_true", help="go on from the newest good checkpoint of --run")
    add("--epochs", type=number(int, 1), default=10, help="times that all images are seen")
    add("--test-every", type=number(int, 1), default=1, help="epochs between two test passes")
    add("--patience", type=number(int, 0), default=0,
        help="stop after so many test passes without a better one; 0 never stops early")
    add("--log-every", type=number(int, 1), default=20, help="steps between two points of a curve")
    add("--picture-every", type=number(int, 1), default=500,
        help="steps between two pictures of a batch in TensorBoard, from the first step on")
    add("--save-every", type=number(int, 1), default=500, help="steps between two checkpoints")
    add("--keep", type=number(int, 2), default=3, help="newest checkpoints that are kept")

    group = parser.add_argument_group("data")
    add = group.add_argument
    add("--data", metavar="DIR", default=data.BUILT_IN, help="folder with train/ and test/")
    add("--img-size", type=number(int, 1), metavar="S",
        help="images are resized to S x S (default: what the network is made for)")
    add("--flip", action=BooleanOptionalAction,
        help="mirror training images at random (default: what the data set says, else yes)")
    add("--shift", type=number(int, 0), default=0, metavar="PIXELS",
        help="move training images at random by up to so many pixels")
    add("--cache", action=BooleanOptionalAction,
        help="keep the decoded images in a file beside the data (default: if they fit into memory)")

    group = parser.add_argument_group("network and loss")
    add = group.add_argument
    add("--network", default="simple", help="simple, or a name from torchvision such as resnet18")
    add("--blocks", type=number(int, 0), default=2, help="residual blocks of simple")
    add("--width", type=number(int, 1), default=32, help="channels of simple's first layer")
    add("--padding", choices=PADDINGS, default="zeros", help="borders in simple")
    add("--norm", choices=sorted(NORMS), default="batch", help="normalisation in simple")
    add("--dropout", type=number(float, 0, 0.99), default=0.0, help="dropout in simple")
    add("--pretrained", action=BooleanOptionalAction, default=False,
        help="start torchvision's network from its ImageNet weights (downloaded once)")
    add("--freeze", action=BooleanOptionalAction, default=False,
        help="train only the last layer of torchvision's network")
    add("--loss", choices=LOSSES, default="cross-entropy", help="the criterion")
    add("--label-smoothing", type=number(float, 0, 0.99), default=0.0, help="for cross-entropy")
    add("--balance", action=BooleanOptionalAction, default=False,
        help="weight the classes so that rare ones count as much as common ones")

    group = parser.add_argument_group("optimization")
    add = group.add_argument
    add("--batch-size", type=number(int, 1), default=64, help="images in a batch")
    add("--accumulate", type=number(int, 1), default=1, metavar="N",
        help="add up the gradients of N batches for one step: a virtual batch N times as large")
    add("--optimizer", choices=["sgd", "adam", "adamw"], default="adamw", help="the method")
    add("--lr", type=number(float, 0), default=2e-3, help="highest learning rate")
    add("--momentum", type=number(float, 0, 0.9999), default=0.9, help="of SGD; beta 1 of Adam")
    add("--weight-decay", type=number(float, 0), default=0.01, help="pull of weights towards zero")
    add("--schedule", choices=SCHEDULES, default="cosine",
        help="how the learning rate goes on after the warm-up")
    add("--warmup", type=number(float, 0, 1), default=0.05,
        help="share of all steps in which the learning rate rises")
    add("--clip-grad", type=number(float, 0), default=0.0,
        help="highest norm of the gradient; 0 does not limit it")
    add("--seed", type=number(int, 0), default=0, help="everything random follows from it")

    add = add_machine_options(parser).add_argument
    add("--parallel", choices=WAYS, default="auto",
        help="divide each batch between the GPUs: for each network (split), or for networks and "
        "losses as one (super)")
    add("--compile", action=BooleanOptionalAction, default=False,
        help="let torch.compile make faster code first, which takes a while")
    add("--deterministic", action=BooleanOptionalAction, default=False,
        help="the same bits in every run on CUDA too, at some cost of speed")
    return parser
