"""Which samples make up which batch is a pure function of (seed, n_iter)."""

import itertools
from typing import Any

import pytest
import torch

from engine.data.sampler import (
    BalancedDraws,
    EvalBatchSampler,
    Keys,
    SeededDataset,
    TrainBatchSampler,
    WeightedDraws,
    seed_of,
)
from engine.errors import BadInput

SIZES = [(1, 1, 1), (7, 3, 1), (12, 4, 1), (25, 4, 3), (64, 64, 1), (100, 7, 2)]
EPOCHS = 6


def pairs(keys: Keys) -> list[tuple[int, int]]:
    """The indices and the seeds of a batch."""
    return list(zip(*(part.tolist() for part in keys), strict=True))


def batches_from(n_iter: int, size: int, batch: int, accumulate: int, seed: int = 0) -> list:
    sampler = TrainBatchSampler(size, batch, accumulate, EPOCHS, seed)
    batches = [pairs(keys) for keys in sampler.batches(n_iter)]
    assert sampler.count(n_iter) == len(batches)
    return batches


def epoch_of(epoch: int, size: int, batch: int, accumulate: int, seed: int = 0) -> list:
    steps = size // (batch * accumulate)
    return batches_from(epoch * steps, size, batch, accumulate, seed)[: steps * accumulate]


@pytest.mark.parametrize(("size", "batch", "accumulate"), SIZES)
def test_a_resumed_order_is_the_rest_of_the_whole_one(
    size: int, batch: int, accumulate: int
) -> None:
    sampler = TrainBatchSampler(size, batch, accumulate, EPOCHS, 0)
    assert sampler.steps_per_epoch == size // (batch * accumulate)
    assert sampler.steps == EPOCHS * sampler.steps_per_epoch
    whole = batches_from(0, size, batch, accumulate)
    assert len(whole) == sampler.steps * accumulate
    for step in range(sampler.steps + 1):
        assert batches_from(step, size, batch, accumulate) == whole[step * accumulate :]
    assert batches_from(sampler.steps + 5, size, batch, accumulate) == []


@pytest.mark.parametrize(("size", "batch", "accumulate"), SIZES)
def test_no_sample_comes_twice_in_an_epoch(size: int, batch: int, accumulate: int) -> None:
    for epoch in (0, 1, 5):
        batches = epoch_of(epoch, size, batch, accumulate)
        assert {len(keys) for keys in batches} == {batch}
        indices = [index for keys in batches for index, _ in keys]
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(size))


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short, long = (TrainBatchSampler(10, 2, 1, epochs, 0) for epochs in (2, 7))
    batches = [pairs(keys) for keys in long.batches()]
    assert [pairs(keys) for keys in short.batches()] == batches[: short.steps]


def test_epochs_and_seeds_have_orders_and_augmentations_of_their_own() -> None:
    # Seed 0 in epoch 1 and seed 1 in epoch 0 are the pair that `seed + epoch` mixes up.
    runs = [
        [key for keys in epoch_of(epoch, 100, 4, 1, seed) for key in keys]
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    orders = {tuple(index for index, _ in run) for run in runs}
    seeds = {seed for run in runs for _, seed in run}
    assert len(orders) == 4
    assert len(seeds) == 400


def test_accumulated_batches_are_the_samples_of_one_big_batch() -> None:
    big = batches_from(0, 50, 12, 1)
    small = batches_from(0, 50, 3, 4)
    assert [key for keys in small for key in keys] == [key for keys in big for key in keys]


def test_all_samples_get_their_turn() -> None:
    sampler = TrainBatchSampler(7, 5, 1, epochs=10, seed=0)
    assert {i for indices, _ in sampler.batches() for i in indices.tolist()} == set(range(7))


@pytest.mark.parametrize(("batch", "accumulate"), [(11, 1), (4, 3)])
def test_too_few_samples_for_one_step_are_refused(batch: int, accumulate: int) -> None:
    with pytest.raises(BadInput, match="10 training samples"):
        TrainBatchSampler(10, batch, accumulate, 1, 0)


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (10, 5), (10, 4), (3, 100)])
def test_a_validation_sees_every_sample_once_in_order(size: int, batch: int) -> None:
    sampler = EvalBatchSampler(size, batch)
    batches = [pairs(keys) for keys in sampler.batches()]
    assert len(batches) == sampler.count()
    assert [index for keys in batches for index, _ in keys] == list(range(size))


def test_seeds_are_the_same_in_every_process_and_fit_torch() -> None:
    assert seed_of(0, "order", 1) == 3049318691
    seeds = {seed_of(seed, "step", n_iter) for seed in range(30) for n_iter in range(300)}
    assert len(seeds) > 8990  # of 9,000: they hardly ever meet
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_samples_of_different_shapes_are_named() -> None:
    samples = [(torch.zeros(3, 4, side), torch.tensor(0)) for side in (4, 4, 6)]
    with pytest.raises(BadInput, match=r"^sample 2 .*\(3, 4, 6\).* sample 0 .*\(3, 4, 4\)"):
        SeededDataset(samples).__getitems__((torch.arange(3), torch.arange(3)))  # type: ignore[arg-type]


# Balanced draws.

STRATA = torch.tensor([0] * 20 + [2] * 7 + [3] + [5] * 5)[torch.arange(33) * 7 % 33]


def balanced(batch: int, accumulate: int = 1, seed: int = 0, **how: Any) -> TrainBatchSampler:
    return TrainBatchSampler(33, batch, accumulate, EPOCHS, seed, strata=STRATA, **how)


@pytest.mark.parametrize(("batch", "accumulate"), [(1, 1), (3, 1), (4, 3), (33, 1)])
def test_resumed_balanced_draws_are_the_rest_of_the_whole(batch: int, accumulate: int) -> None:
    sampler = balanced(batch, accumulate)
    whole = [pairs(keys) for keys in sampler.batches()]
    assert sampler.steps_per_epoch == 33 // (batch * accumulate), "an epoch keeps its length"
    assert len(whole) == sampler.count() == sampler.steps * accumulate
    for step in range(sampler.steps + 2):
        resumed = [pairs(keys) for keys in balanced(batch, accumulate).batches(step)]
        assert resumed == whole[step * accumulate :]


def test_processes_divide_balanced_draws_of_one_big_batch() -> None:
    whole = [key for keys in balanced(12).batches() for key in pairs(keys)]
    shares = [balanced(3, 4, share=share).batches() for share in (range(1), range(1, 4))]
    steps = itertools.chain(*zip(shares[0], *[shares[1]] * 3, strict=True))
    assert [key for keys in steps for key in pairs(keys)] == whole


def test_each_stratum_comes_equally_often_and_all_its_samples_before_one_comes_again() -> None:
    draws = [index for keys in balanced(3).batches() for index, _ in pairs(keys)]
    for turn in range(len(draws) // 4):
        assert STRATA[draws[4 * turn : 4 * turn + 4]].sort().values.tolist() == [0, 2, 3, 5]
    for stratum in (0, 2, 3, 5):
        members = [index for index in range(33) if STRATA[index] == stratum]
        own = [index for index in draws if index in members]
        passes = [own[i : i + len(members)] for i in range(0, len(own), len(members))]
        assert all(sorted(one) == members for one in passes[:-1])
        assert len(members) < 3 or passes[0] != passes[1], "each pass has an order of its own"


def test_balanced_draws_depend_on_the_seed() -> None:
    one, same, other = ([*map(pairs, balanced(8, seed=seed).batches())] for seed in (0, 0, 1))
    assert one == same
    assert one != other
    seeds = [seed for keys in one for _, seed in keys]
    assert len(set(seeds)) == len(seeds), "a sample that comes again is changed otherwise"


def test_one_batch_of_balanced_draws_can_be_repeated() -> None:
    first = pairs(next(balanced(8).batches()))
    assert {tuple(pairs(keys)) for keys in balanced(8, repeat=True).batches(3)} == {tuple(first)}


def test_a_late_step_makes_none_of_the_draws_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple] = []
    whole = BalancedDraws._permute

    def permute(self: BalancedDraws, size: int, *key: int | str) -> Any:
        made.append(key)
        return whole(self, size, *key)

    monkeypatch.setattr(BalancedDraws, "_permute", permute)
    sampler = TrainBatchSampler(33, 8, 1, 10**6, 0, strata=STRATA)
    assert len(pairs(next(sampler.batches(10**6)))) == 8
    assert len(made) <= 3 + 8  # as many turns as a batch touches, and the order of each stratum


def test_strata_of_another_number_of_samples_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^strata in dataset.py: 33 numbers for 34 samples"):
        TrainBatchSampler(34, 8, 1, 1, 0, strata=STRATA)


# Weighted draws.

WEIGHTS = torch.tensor([0.0, 1.0, 2.0, 0.0, 5.0, 0.0]).double()


def weighted(batch: int, accumulate: int = 1, seed: int = 0, **how: Any) -> TrainBatchSampler:
    return TrainBatchSampler(6, batch, accumulate, 10_000, seed, weights=WEIGHTS, **how)


def test_samples_are_drawn_as_likely_as_their_weights_say() -> None:
    counts = [0] * 6
    for indices, _ in itertools.islice(weighted(6).batches(), 8000):
        for index in indices.tolist():
            counts[index] += 1
    for count, weight in zip(counts, WEIGHTS.tolist(), strict=True):
        share = weight / 8
        spread = (48_000 * share * (1 - share)) ** 0.5  # of a binomial distribution
        assert abs(count - 48_000 * share) <= 4 * spread


def test_weighted_draws_are_functions_of_seed_and_step() -> None:
    whole = [key for keys in itertools.islice(weighted(6).batches(), 60) for key in pairs(keys)]
    resumed = [key for keys in itertools.islice(weighted(6).batches(7), 53) for key in pairs(keys)]
    assert resumed == whole[42:]
    halves = [weighted(2, 3, share=share).batches() for share in (range(1), range(1, 3))]
    steps = itertools.chain.from_iterable(zip(halves[0], *[halves[1]] * 2, strict=True))
    processes = [key for keys in itertools.islice(steps, 180) for key in pairs(keys)]
    assert processes == whole
    other = [key for keys in itertools.islice(weighted(6, seed=1).batches(), 60) for key in keys]
    assert [index for index, _ in whole] != torch.cat(other[::2]).tolist()
    repeated = itertools.islice(weighted(6, repeat=True).batches(3), 4)
    assert {tuple(pairs(keys)) for keys in repeated} == {tuple(whole[:6])}


def test_the_ends_of_the_range_are_no_samples_of_weight_0(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = torch.tensor([0.0, 1.0]).double()  # a product may be rounded up to the sum
    monkeypatch.setattr(torch, "rand", lambda *size, **how: ends)
    assert WeightedDraws(WEIGHTS, seed=0).take(0, 2, range(2)) == [1, 4]


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [float("inf"), 1]]
)
def test_weights_that_are_none_are_refused(values: list[float]) -> None:
    sampler = TrainBatchSampler(2, 1, 1, 1, 0, weights=torch.tensor(values))
    with pytest.raises(BadInput, match=r"^weights in dataset.py: have to be finite"):
        next(sampler.batches())
    with pytest.raises(BadInput, match=r"^weights in dataset.py: 6 numbers for 7 samples"):
        TrainBatchSampler(7, 1, 1, 1, 0, weights=WEIGHTS)
