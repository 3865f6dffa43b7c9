"""tools/near_copies.py: which images are found to be near copies of each other."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from needs import needs
from PIL import Image
from PIL.Image import Resampling, Transpose

near_copies = needs("tools.near_copies")
find_near_copies, small_picture = near_copies.find_near_copies, near_copies.small_picture
SIZE = 120, 96


def draw(seed: int) -> Image.Image:
    """Blots of all sizes, with as much detail as a photograph."""
    random, image = np.random.default_rng(seed), np.zeros((SIZE[1], SIZE[0], 3))
    for cells in (2, 4, 8, 16, 32):
        blots = Image.fromarray(random.integers(0, 256, (cells, cells, 3), np.uint8))
        image += np.asarray(blots.resize(SIZE, Resampling.BICUBIC), float) / cells**0.5
    image -= image.min()
    return Image.fromarray((20 + 215 * image / image.max()).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def crop(left: float, top: float, right: float, bottom: float) -> Callable[..., Image.Image]:
    """Keeps a part of an image, whose edges are shares of its size."""
    shares = zip((left, top, right, bottom), SIZE * 2, strict=True)
    box = tuple(round(share * side) for share, side in shares)
    return lambda image: image.crop(box)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 50": lambda image: jpeg(image, 50),
    "90 % of the size": lambda image: image.resize((108, 86), Resampling.BICUBIC),
    "three times the size": lambda image: image.resize((360, 288), Resampling.BICUBIC),
    "5 % cropped in the middle": crop(0.0125, 0.0125, 0.9875, 0.9875),
    "5 % cropped at a corner": crop(0.025, 0, 1, 0.975),
    "5 % cropped at the left": crop(0.05, 0, 1, 1),
    "5 % cropped at the bottom": crop(0, 0, 1, 0.95),
    "brighter by 10": lambda image: image.point(lambda value: min(255, value + 10)),
    "darker by 10": lambda image: image.point(lambda value: max(0, value - 10)),
    "mirrored": lambda image: image.transpose(Transpose.FLIP_LEFT_RIGHT),
    "grey": lambda image: image.convert("L"),
    "mirrored, cropped, quality 50": lambda image: jpeg(
        crop(0.05, 0, 1, 1)(image.transpose(Transpose.FLIP_LEFT_RIGHT)), 50
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_near_copies_are_found_among_other_images(change: str) -> None:
    images = [draw(seed) for seed in range(40)]
    copies = [CHANGES[change](image) for image in images[:10]]
    found = find_near_copies(np.stack([small_picture(image) for image in images + copies]))
    pairs = [*zip(found.first.tolist(), found.second.tolist(), strict=True)]
    assert sorted(pairs) == [(i, 40 + i) for i in range(10)]
    assert (found.mirrored == ("mirrored" in change)).all()
    assert (found.correlation > 0.9).all() and (found.correlation < 1.0001).all()


def test_images_without_detail_are_no_copies_of_each_other() -> None:
    ramp = np.linspace(0, 255, 96 * 120).reshape(96, 120)
    skies = [ramp, ramp[:, ::-1] / 2, np.sqrt(ramp * 255), ramp * 0.98 + 2, ramp * 0.98]
    skies += [np.full((96, 120), 9), np.zeros((96, 120))]
    pictures = [small_picture(Image.fromarray(sky.astype(np.uint8))) for sky in skies]
    assert len(find_near_copies(np.stack(pictures)).first) == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_few_images(count: int) -> None:
    pictures = np.zeros((count, 32, 36), np.uint8)
    pictures[:] = small_picture(draw(0))
    assert len(find_near_copies(pictures).first) == count // 2


def test_more_equal_images_than_are_compared_with_each_other_are_all_named() -> None:
    pictures = np.repeat(small_picture(draw(0))[None], 200, axis=0)
    found = find_near_copies(pictures)
    assert {*found.first.tolist(), *found.second.tolist()} == {*range(200)}


def test_parts_are_those_that_a_crop_keeps() -> None:
    parts = near_copies.PARTS
    assert near_copies.WHOLE not in parts and {*near_copies.CORNERS} < {*parts}
    assert len({*parts}) == len(parts)
    for (top, bottom), (left, right) in parts:
        assert 0 <= top < bottom <= 1 and 0 <= left < right <= 1
        assert (bottom - top) * (right - left) == pytest.approx(0.95, abs=0.001)
