"""All that the tests know of the network, the loss and the data: change it as you change those.

Delete a list of options if there are none that do what it says; the tests that need it are skipped.
"""

from pathlib import Path

import numpy as np
from PIL import Image

# A run of a fraction of a second. Dropout, random flips and turns and a pool are on, since all that
# is random has to be exact. The losses are small enough for a learning rate that is high enough to
# change the weights in a few steps.
SMALL = ["--img-size=16", "--width=4", "--blocks=1", "--batch-size=4", "--epochs=2", "--crops=3"]
SMALL += ["--d-width=4", "--d-layers=2", "--d-scales=2", "--pool=3", "--losses=l1:10,adversarial"]
SMALL += ["--dropout=0.2", "--flip", "--turn", "--lr=0.01", "--log-every=3"]
# Each of these changes something random in a SMALL run.
RANDOM = ["--no-flip", "--no-turn"]
# With these the loss of a batch is the mean of the losses of its parts: no norm, dropout or pool.
SEPARABLE = ["--norm=none", "--dropout=0", "--no-flip", "--no-turn", "--pool=0"]
# With these a batch can be learned by heart: its losses fall to nearly nothing.
BY_HEART = ["--dropout=0", "--losses=l1", "--noise=0", "--no-residual", "--width=32"]
BY_HEART += ["--momentum=0.9", "--lr=0.002"]
# With these the network has weights of other shapes.
OTHER_NETWORK = ["--width=6"]


def make_data(folder: Path, train: int = 8, test: int = 4) -> None:
    """Draws `train` and `test` photographs of 20 x 52 pixels, three crops of 16 x 16 each."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            draw(random).save(folder / split / f"{i}.png")


def make_pairs(folder: Path, train: int = 8, test: int = 4) -> None:
    """Draws as many pairs, in folders A and B: the target is the negative of the input."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for side in "AB":
            (folder / split / side).mkdir(parents=True)
        for i in range(count):
            image = draw(random)
            image.save(folder / split / "A" / f"{i}.png")
            negative(image).save(folder / split / "B" / f"{i}.png")


def negative(image: Image.Image) -> Image.Image:
    return image.point([255 - value for value in range(256)] * 3)


def draw(random: np.random.Generator, height: int = 20, width: int = 52) -> Image.Image:
    """A colourful image with a slope and a few rectangles."""
    y, x = np.mgrid[:height, :width]
    steep, start = random.uniform(-3, 3, (2, 3)), random.uniform(80, 176, 3)
    pixels = start + (x[..., None] * steep[0] + y[..., None] * steep[1]) / 2
    for _ in range(6):
        top, left = random.integers(height - 4), random.integers(width - 4)
        pixels[top : top + 7, left : left + 9] = random.uniform(0, 255, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
