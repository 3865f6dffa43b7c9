"""The pool of earlier outputs: it fills, exchanges half, and goes on after a resume."""

import copy
from pathlib import Path

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


def test_a_pool_of_size_0_hands_through() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    pool = ImagePool(0, (2, 3, 3))
    given = pairs(1, 2).clone().requires_grad_()
    taken = pool(given)
    assert taken.equal(given)
    assert not taken.requires_grad
    assert torch.get_rng_state().equal(before)


def test_a_pool_fills_first_and_then_exchanges_half() -> None:
    torch.manual_seed(0)
    pool = ImagePool(10, (2, 3, 3))
    assert values(pool(pairs(*range(10)))) == list(range(10))
    assert sorted(values(pool.images)) == list(range(10))
    given = list(range(10, 1010))
    taken = values(pool(pairs(*given)))
    old = [a < b for a, b in zip(taken, given, strict=True)]
    assert 400 < sum(old) < 600
    assert all(a == b for a, b, is_old in zip(taken, given, old, strict=True) if not is_old)
    # Nothing is lost and nothing comes back twice: each is still there or was taken once.
    seen = [value for value in taken if value >= 10] + values(pool.images)
    assert len(set(taken)) == len(taken)
    assert set(seen) >= set(given)


def test_a_pool_gives_images_without_a_gradient_and_keeps_copies() -> None:
    pool = ImagePool(2, (2, 3, 3))
    given = pairs(1, 2).clone().requires_grad_()
    assert not pool(given * 1).requires_grad
    with torch.no_grad():
        given.zero_()
    assert values(pool.images) == [1, 2]


def test_a_pool_in_evaluation_mode_changes_nothing() -> None:
    pool = ImagePool(2, (2, 3, 3)).eval()
    assert values(pool(pairs(1, 2, 3))) == [1, 2, 3]
    assert pool.count == 0
    assert pool.images.abs().max() == 0


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_restored_pool_goes_on_as_if_it_had_never_stopped(steps: int, tmp_path: Path) -> None:
    """Seeded at each step as the training loop does; after 1 step it is not full, after 7 it is."""

    def go_on(pool: nn.Module) -> list[list[float]]:
        taken = []
        for step in range(steps, steps + 10):
            torch.manual_seed(step)
            taken.append(values(pool(pairs(*range(4 * step, 4 * step + 4)))))
        return taken

    pool = ImagePool(6, (2, 3, 3))
    for step in range(steps):
        torch.manual_seed(step)
        pool(pairs(*range(4 * step, 4 * step + 4)))
    torch.save(pool.state_dict(), tmp_path / "pool.pt")
    restored = ImagePool(6, (2, 3, 3))
    load_weights(restored, torch.load(tmp_path / "pool.pt", weights_only=True), "pool.pt", "")
    assert go_on(restored) == go_on(copy.deepcopy(pool))


def test_a_pool_draws_as_often_when_empty_as_when_full() -> None:
    states = []
    for filled in (0, 5):
        pool = ImagePool(5, (2, 3, 3))
        pool(pairs(*range(filled)))
        torch.manual_seed(0)
        pool(pairs(1, 2, 3))
        states.append(torch.get_rng_state())
    assert states[0].equal(states[1])
