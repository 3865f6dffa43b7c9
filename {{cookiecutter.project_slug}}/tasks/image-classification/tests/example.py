"""All that the tests know of the network, the loss and the data: change it as you change those.

Delete a list of options if there are none that do what it says; the tests that need it are skipped.
"""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("columns", "disc", "rows")
# A run of a fraction of a second. Dropout and the random flip are on, since all that is random has
# to be exact.
SMALL = ["--img-size=16", "--width=4", "--blocks=1", "--batch-size=4", "--epochs=2"]
SMALL += ["--dropout=0.2", "--flip", "--lr=0.01", "--log-every=3"]
# Each of these changes something random in a SMALL run.
RANDOM = ["--no-flip", "--dropout=0.3"]
# With these the loss of a batch is the mean of the losses of its parts: no batch norm, no dropout.
SEPARABLE = ["--norm=none", "--dropout=0", "--no-flip"]
# With these a batch can be learned by heart: its loss falls to nearly nothing.
BY_HEART = ["--dropout=0"]
# With these the network has weights of other shapes.
OTHER_NETWORK = ["--width=6"]


def make_data(folder: Path, train: int = 8, test: int = 4) -> None:
    """Draws images of three shapes in any colour, `train` and `test` of each class."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                draw(name, random).save(folder / split / name / f"{i}.png")


def draw(name: str, random: np.random.Generator) -> Image.Image:
    """A noisy image of 16 x 16 pixels that shows the class `name`."""
    y, x = np.mgrid[:16, :16]
    shift = random.integers(4)
    shape = {
        "columns": (x + shift) % 4 < 2,
        "disc": (x - 8) ** 2 + (y - 8) ** 2 < (4 + shift) ** 2,
        "rows": (y + shift) % 4 < 2,
    }[name]
    colours = random.integers(0, 100, 3), random.integers(156, 256, 3)
    pixels = np.where(shape[..., None], colours[1], colours[0]) + random.integers(
        -20, 20, (16, 16, 3)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
