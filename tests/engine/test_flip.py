"""The random flip of whole batches: each image anew, and nothing but what is promised."""

import pytest
import torch
from torch import Generator, Tensor

from engine.data.images import flip

SHAPES = [(1, 3, 4, 4), (7, 1, 5, 3), (64, 3, 8, 6), (2, 6, 1, 1), (3, 3, 2, 9)]
TYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.int64]


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    random = Generator().manual_seed(1)
    return torch.randint(1, 256, shape, generator=random).to(dtype)


def random(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_shape_and_type_stay_and_the_input_is_left_alone(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    images = batch(shape, dtype)
    before = images.clone()
    changed = flip(images, random())
    assert (changed.shape, changed.dtype) == (images.shape, images.dtype)
    assert images.equal(before)


def test_the_generator_alone_decides() -> None:
    images = batch((64, 3, 8, 8))
    results: list[Tensor] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(results))  # the model's generator has no say
        results.append(flip(images, random(seed)))
    assert results[0].equal(results[1])
    assert not results[0].equal(results[2])
    state = torch.get_rng_state()
    flip(images, random())
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("shape", [(200, 3, 5, 7), (200, 2, 6, 4)])
def test_about_half_of_the_images_are_mirrored_each_as_a_whole(shape: tuple[int, ...]) -> None:
    images = batch(shape)
    changed = flip(images, random())
    mirrored = [b.equal(a.flip(2)) for a, b in zip(images, changed, strict=True)]
    assert 60 < sum(mirrored) < 140
    for was, before, after in zip(mirrored, images, changed, strict=True):
        assert was or after.equal(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_in_memory_changes_nothing(shape: tuple[int, ...]) -> None:
    images = batch(shape)
    last = images.contiguous(memory_format=torch.channels_last)
    assert flip(last, random()).equal(flip(images, random()))
