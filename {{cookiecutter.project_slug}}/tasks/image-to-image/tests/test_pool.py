"""The pool of earlier outputs: it fills, exchanges half, and goes on after a resume."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from needs import needs
from torch import Tensor, nn

from engine.checkpoint import load_weights

ImagePool = needs("networks.ImagePool")


def pairs(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 3)


def values(images: Tensor) -> list[float]:
    assert images.shape[1:] == (2, 3, 3)
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


def step(pool: Any, *given: float) -> list[float]:
    """What the pool gives for the pairs of a step of one micro-batch."""
    taken = values(pool(pairs(*given)))
    pool.end_step(lambda tensor: tensor)
    return taken


def test_a_pool_of_size_0_hands_through() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pool = ImagePool(0, (2, 3, 3))
    given = pairs(1, 2).clone().requires_grad_()
    taken = pool(given)
    assert taken.equal(given)
    assert not taken.requires_grad
    assert torch.get_rng_state().equal(before)


def test_a_pool_fills_and_exchanges_half() -> None:
    torch.manual_seed(0)
    pool = ImagePool(10, (2, 3, 3))
    assert step(pool, *range(1, 101)) == list(range(1, 101))
    assert pool.filled.all()
    assert min(values(pool.images)) > 0
    held = values(pool.images)
    given = [float(number) for number in range(101, 1101)]
    taken = [value for number in given for value in step(pool, number)]
    old = [a < b for a, b in zip(taken, given, strict=True)]
    assert 400 < sum(old) < 600
    assert all(a == b for a, b, is_old in zip(taken, given, old, strict=True) if not is_old)
    # Nothing is lost and nothing comes back twice: each is still there or was taken once.
    assert len(set(taken)) == len(taken)
    assert sorted(taken + values(pool.images)) == sorted(held + given)


def test_all_pairs_of_a_step_meet_the_pool_as_it_was_before() -> None:
    """So it does not matter which process has which of them."""

    def taken_and_left(parts: list[list[int]]) -> tuple[list[list[float]], Tensor]:
        pool = ImagePool(4, (2, 3, 3))
        torch.manual_seed(0)
        step(pool, *range(1, 41))
        pools = [copy.deepcopy(pool) for _ in parts]  # of each process
        taken = []
        for micro_batch in range(4):
            (owner,) = (i for i, part in enumerate(parts) if micro_batch in part)
            torch.manual_seed(micro_batch)
            given = range(100 * micro_batch, 100 * micro_batch + 3)
            taken.append(values(pools[owner](pairs(*given))))
        own = [[torch.cat(kind) for kind in zip(*pool.coming, strict=True)] for pool in pools]
        joined = iter([torch.cat(kind) for kind in zip(*own, strict=True)])
        pools[0].end_step(lambda tensor: next(joined))
        return taken, pools[0].images

    (alone, left), (divided, left_too) = map(taken_and_left, ([[0, 1, 2, 3]], [[0, 1], [2, 3]]))
    assert alone == divided
    assert left.equal(left_too)


def test_a_pool_gives_images_without_a_gradient_and_keeps_copies() -> None:
    torch.manual_seed(0)
    pool = ImagePool(20, (2, 3, 3))
    given = pairs(1, 2).clone().requires_grad_()
    assert not pool(given * 1).requires_grad
    pool.end_step(lambda tensor: tensor)
    with torch.no_grad():
        given.zero_()
    assert sorted(values(pool.images))[-2:] == [1, 2]


def test_a_pool_in_evaluation_mode_changes_nothing() -> None:
    pool = ImagePool(2, (2, 3, 3)).eval()
    assert values(pool(pairs(1, 2, 3))) == [1, 2, 3]
    pool.end_step(lambda tensor: tensor)
    assert not pool.filled.any()
    assert pool.images.abs().max() == 0


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_restored_pool_goes_on_as_if_it_had_never_stopped(steps: int, tmp_path: Path) -> None:
    """Seeded at each step as the training loop does; after 1 step it is not full, after 7 it is."""

    def go_on(pool: nn.Module) -> list[list[float]]:
        taken = []
        for n_iter in range(steps, steps + 10):
            torch.manual_seed(n_iter)
            taken.append(step(pool, *range(4 * n_iter, 4 * n_iter + 4)))
        return taken

    pool = ImagePool(6, (2, 3, 3))
    for n_iter in range(steps):
        torch.manual_seed(n_iter)
        step(pool, *range(4 * n_iter, 4 * n_iter + 4))
    torch.save(pool.state_dict(), tmp_path / "pool.pt")
    restored = ImagePool(6, (2, 3, 3))
    load_weights(restored, torch.load(tmp_path / "pool.pt", weights_only=True), "pool.pt", "")
    assert go_on(restored) == go_on(copy.deepcopy(pool))


def test_a_pool_draws_as_often_when_empty_as_when_full() -> None:
    states = []
    for filled in (0, 5):
        pool = ImagePool(5, (2, 3, 3))
        step(pool, *range(filled))
        torch.manual_seed(0)
        pool(pairs(1, 2, 3))
        states.append(torch.get_rng_state())
    assert states[0].equal(states[1])
