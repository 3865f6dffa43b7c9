"""The random shift of whole batches: each image anew, and nothing but what is promised."""

import itertools

import pytest
import torch
from needs import needs
from torch import Generator, Tensor

shift = needs("dataset.shift")

SHAPES = [(1, 3, 4, 4), (7, 1, 5, 3), (64, 3, 8, 6), (2, 6, 1, 1), (3, 3, 2, 9)]
TYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.int64]


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    random = Generator().manual_seed(1)
    return torch.randint(1, 256, shape, generator=random).to(dtype)


def random(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """An image (C, H, W) moved on black, by copying one pixel after the other."""
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for y, x in itertools.product(range(height), range(width)):
        if 0 <= y - down < height and 0 <= x - right < width:
            result[:, y, x] = image[:, y - down, x - right]
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("most", [0, 1, 3])
def test_shape_and_type_stay_and_the_input_is_left_alone(
    shape: tuple[int, ...], dtype: torch.dtype, most: int
) -> None:
    images = batch(shape, dtype)
    before = images.clone()
    changed = shift(images, most, random())
    assert (changed.shape, changed.dtype) == (images.shape, images.dtype)
    assert images.equal(before)


def test_the_generator_alone_decides() -> None:
    images = batch((64, 3, 8, 8))
    results: list[Tensor] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(results))  # the model's generator has no say
        results.append(shift(images, 3, random(seed)))
    assert results[0].equal(results[1])
    assert not results[0].equal(results[2])
    state = torch.get_rng_state()
    shift(images, 2, random())
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("most", [1, 2])
def test_every_move_occurs_and_is_the_right_one(most: int) -> None:
    images = batch((1, 3, 4, 5)).expand(400, 3, 4, 5)
    ways = list(itertools.product(range(-most, most + 1), repeat=2))
    expected = {moved(images[0], *way).numpy().tobytes(): way for way in ways}
    assert len(expected) == len(ways)
    seen = [expected[image.numpy().tobytes()] for image in shift(images, most, random())]
    assert set(seen) == set(ways)


def test_a_move_worked_out_by_hand() -> None:
    image = torch.tensor([[1, 2], [3, 4]]).reshape(1, 1, 2, 2).expand(300, 1, 2, 2)
    by_hand = {
        ((1, 2), (3, 4)),
        ((0, 1), (0, 3)),
        ((2, 0), (4, 0)),
        ((0, 0), (1, 2)),
        ((3, 4), (0, 0)),
        ((0, 0), (0, 1)),
        ((0, 0), (2, 0)),
        ((0, 3), (0, 0)),
        ((4, 0), (0, 0)),
    }
    seen = {tuple(map(tuple, moved[0].tolist())) for moved in shift(image, 1, random())}
    assert seen == by_hand


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_in_memory_changes_nothing(shape: tuple[int, ...]) -> None:
    images = batch(shape)
    last = images.contiguous(memory_format=torch.channels_last)
    assert shift(last, 2, random()).equal(shift(images, 2, random()))
