"""The options of train.py, with their defaults."""

from argparse import BooleanOptionalAction, Namespace

import dataset
from engine.arguments import (
    Parser,
    add_data_options,
    add_training_options,
    auto_or,
    complete_reading,
    number,
)
from engine.data.files import choose_flip, read_dataset_json
from layers import NORMS, PADDINGS
from losses import ADVERSARIAL, LOSSES


def parse(argv: list[str] | None = None) -> Namespace:
    """The options of a training run; defaults that depend on the data are filled in."""
    parser = make_parser()
    opt = parser.parse_run(argv)
    if opt.pool and opt.parallel == "super":
        parser.error("--pool: with --parallel super each GPU would keep its own; use split")
    folder = dataset.data_dir(opt.data)
    described = read_dataset_json(folder, "pairs")
    opt.flip = choose_flip(opt, described.get("flip"), folder, argv)
    complete_reading(opt, described)
    return opt


# fmt: off
def make_parser() -> Parser:
    parser = Parser(description="Trains a network that turns images into other images.")

    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--data", metavar="DIR", default=dataset.BUILT_IN, help="folder with train/, perhaps val/")
    add_data_options(data)
    add("--side-by-side", action=BooleanOptionalAction,
        help="each image holds two: input left, target right (default: as dataset.json says)")
    add("--degrade", choices=sorted(dataset.DEGRADATIONS),
        help="makes the inputs from photographs, if the images are no pairs (default: noise)")
    add("--noise", type=number(float, 0, 255), default=25.0, metavar="SIGMA",
        help="standard deviation of noise, in grey levels of 0 to 255; with --images stored in "
        "255ths of the range of the training images")
    add("--scale", type=number(float, 1), default=4.0,
        help="factor by which low-resolution reduces the size")
    add("--img-size", type=number(int, 16), default=64, metavar="S",
        help="the network is trained on crops of S x S pixels")
    add("--crops", type=auto_or(number(int, 1)), metavar="N",
        help="crops of each image in an epoch "
        f"(default: as many as make about {dataset.SAMPLES:,} samples)")
    add("--flip", action=BooleanOptionalAction,
        help="mirror training pairs at random (default: as dataset.json says, else yes)")
    add("--turn", action=BooleanOptionalAction, default=False,
        help="turn training pairs by 0, 90, 180 or 270 degrees at random")

    add = parser.add_argument_group("generator").add_argument
    add("--width", type=number(int, 1), default=32, help="channels of the first layer")
    add("--n-downsampling", type=number(int, 0, 5), default=0,
        help="layers that halve the size: 0 keeps every detail, 2 widens the receptive field")
    add("--unshuffle", type=number(int, 1, 4), default=1, metavar="R",
        help="turn blocks of R x R pixels into channels and back: 2 keeps every detail, widens the "
        "receptive field, and takes a quarter of the time")
    add("--blocks", type=number(int, 0), default=4, help="residual blocks")
    add("--padding", choices=PADDINGS, default="zeros", help="padding of the convolutions")
    add("--norm", choices=sorted(NORMS), default="none", help="normalisation")
    add("--dropout", type=number(float, 0, 0.99), default=0.0, help="in the residual blocks")
    add("--residual", action=BooleanOptionalAction, default=True,
        help="predict the difference between target and input")

    add_loss_options(parser)
    # After Isola et al. 2017, but for a learning rate that suits a run of minutes, and a limit to
    # the gradient: without it the loss jumped at that rate, which cost an epoch.
    add_training_options(
        parser, epochs=10, batch_size=16, optimizer="adam", lr=5e-4, momentum=0.5, weight_decay=0.0,
        schedule="late-linear", warmup=0.0, clip_grad=1.0,
    )
    return parser


def add_loss_options(parser: Parser) -> None:
    """Adds the options of the losses, and of the discriminator that some of them need."""
    add = parser.add_argument_group("losses and discriminator (D)").add_argument
    add("--losses", default="l1:100,adversarial", metavar="NAME[:WEIGHT],...",
        help=f"losses of the generator and their weights, out of {', '.join(LOSSES)}")
    add("--adversarial", choices=ADVERSARIAL, default="lsgan", help="kind of the adversarial loss")
    add("--vgg-weights", default="download", metavar="FILE",
        help="VGG19 for perceptual: a state dict, download, or none to leave the loss out")
    add("--d-width", type=number(int, 1), default=32, help="channels of D's first layer")
    add("--d-layers", type=number(int, 1, 8), default=3, help="layers of D that halve the size")
    add("--d-scales", type=number(int, 1, 8), default=2, help="image scales that D judges")
    add("--d-norm", choices=sorted(NORMS), default="instance", help="normalisation of D")
    add("--pool", type=number(int, 0), default=0, metavar="N",
        help="earlier outputs kept to train the discriminator on; 0 for none")
