"""Which samples are validated on: by hashes, whole groups, folds; an image is on one side alone."""

import random
from argparse import Namespace
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from conftest import Build, Train
from marks import slow_after
from programs import status, train_refuses

import test as judge
from engine.data.splits import deal_folds, find_groups, set_aside, split_by_hash
from engine.errors import BadInput

NAMES = [f"{group}/{i:04d}.jpg" for group in "ab" for i in range(1000)]
STRATA = [0] * 1000 + [1] * 1000


def test_about_the_share_of_each_stratum_is_chosen() -> None:
    for share in (0.1, 0.5):
        chosen = np.array(split_by_hash(NAMES, STRATA, share)).reshape(2, 1000)
        assert abs(chosen.mean(axis=1) - share).max() < 0.05


def test_new_names_move_no_old_one() -> None:
    few = list(range(0, 2000, 3))
    before = split_by_hash([NAMES[i] for i in few], [STRATA[i] for i in few], 0.1)
    after = split_by_hash(NAMES, STRATA, 0.1)
    assert [after[i] for i in few] == before
    order = list(reversed(range(2000)))  # nor does their order matter
    assert split_by_hash([NAMES[i] for i in order], [0] * 2000, 0.1) == after[::-1]


@pytest.mark.parametrize("share", [0.001, 0.1, 0.9, 0.999])
def test_each_stratum_is_divided(share: float) -> None:
    for start in range(0, 1000, 2):
        first, second = split_by_hash(NAMES[start : start + 2], [7, 7], share)
        assert first != second
    for start in range(0, 1000, 5):
        chosen = split_by_hash(NAMES[start : start + 5], [3] * 5, share)
        assert 0 < sum(chosen) < 5


def test_the_choice_is_the_same_on_every_machine() -> None:
    chosen = split_by_hash(NAMES[:50], [0] * 50, 0.1)
    assert [i for i in range(50) if chosen[i]] == [11, 18, 33, 36, 48]
    assert sum(split_by_hash(["\udce9.jpg", "猫.jpg"], [0, 0], 0.5)) == 1


# Groups and folds.


def random_set(seed: int) -> tuple[list[str], list[int], list[str]]:
    """Names, strata and groups of a data set of any size, groups of any size, in any order."""
    draw = random.Random(seed)
    count = draw.choice([2, 3, 5, 20, 60])
    strata = [draw.randrange(draw.choice([1, 3])) for _ in range(count)]
    groups = [f"p{draw.randrange(draw.choice([2, 4, count]))}" for _ in range(count - 2)]
    return [f"{i}.png" for i in range(count)], strata, draw.sample([*groups, "p-1", "p-2"], count)


@pytest.mark.parametrize("first", slow_after(1, range(0, 10_000, 500)))
def test_no_group_is_divided_and_folds_are_disjoint_and_complete(first: int) -> None:
    """10,000 random data sets in all."""
    for seed in range(first, first + 500):
        names, strata, groups = random_set(seed)
        share = random.Random(seed).choice([0.01, 0.1, 0.5, 0.9])
        sides: dict[str, set[bool]] = defaultdict(set)
        for group, side in zip(groups, split_by_hash(names, strata, share, groups), strict=True):
            sides[group].add(side)
        assert all(len(one) == 1 for one in sides.values()), seed
        assert set.union(*sides.values()) == {False, True}, seed

        folds = random.Random(seed).randint(2, min(5, len(sides)))
        validated = list[int]()
        homes: dict[str, set[int]] = defaultdict(set)
        for number in range(1, folds + 1):
            opt = Namespace(fold=f"{number}/{folds}", val_share=0.1)
            chosen = set_aside(opt, Path("train"), names, strata, groups)
            validated += [i for i, one in enumerate(chosen) if one]
            for group, one in zip(groups, chosen, strict=True):
                homes[group] |= {number} if one else set()
        assert sorted(validated) == list(range(len(names))), seed
        assert all(len(one) == 1 for one in homes.values()), seed
        sizes = Counter(number for one in homes.values() for number in one)
        assert len(sizes) == folds and max(sizes.values()) - min(sizes.values()) <= 1, seed

        plain = Counter(zip(strata, deal_folds(names, strata, folds), strict=True))
        for stratum in {*strata}:
            sizes = Counter({k: plain[stratum, k] for k in range(1, folds + 1)})
            assert max(sizes.values()) - min(sizes.values()) <= 1, seed


def test_new_images_of_old_groups_and_new_groups_move_none() -> None:
    groups = [f"patient {i // 3}" for i in range(2000)]
    before = split_by_hash(NAMES[:900], STRATA[:900], 0.2, groups[:900])
    after = split_by_hash(NAMES, STRATA, 0.2, groups)
    assert after[:900] == before
    assert abs(np.mean(after) - 0.2) < 0.05
    order = list(reversed(range(2000)))  # nor does their order matter
    assert split_by_hash(NAMES, STRATA, 0.2, [groups[i] for i in order]) == after[::-1]


def test_folds_do_not_depend_on_the_order_of_names() -> None:
    dealt = dict(zip(NAMES, deal_folds(NAMES, STRATA, 5), strict=True))
    assert deal_folds(NAMES[::-1], STRATA[::-1], 5) == [dealt[name] for name in NAMES[::-1]]
    assert deal_folds(NAMES[:8], [0] * 8, 3) == [2, 2, 1, 1, 2, 3, 3, 1], "on every machine"


@pytest.mark.parametrize(
    ("pattern", "path", "group"),
    [
        (r"p(\d+)", "train/cat/p7_1.png", "7"),
        (r"p\d+", "train/cat/p7_1.png", "p7"),
        (r"^train/[^/]+/([^_]+)_", "train/cat/p7_1.png", "p7"),
        (r"(p\d+)_(\d)", "train/cat/p7_1.png", "p7"),
    ],
)
def test_the_group_is_the_first_match_group_or_the_match(
    pattern: str, path: str, group: str
) -> None:
    assert find_groups(Namespace(group=pattern), [path]) == [group]
    assert find_groups(Namespace(group=None), [path]) is None
    for other in (r"q(\d)", r"p7_1(x?)", r"(q)?p"):  # nothing, and nothing in the match group
        with pytest.raises(BadInput, match=r"^--group .*: no match in train/cat/p7_1.png; "):
            find_groups(Namespace(group=other), [path])


def test_too_few_groups_or_images_are_refused() -> None:
    opt = Namespace(fold=None, val_share=0.1)
    with pytest.raises(BadInput, match=r"^train: 1 groups \(p1\), and 2 or more are needed"):
        set_aside(opt, Path("train"), ["a", "b"], [0, 0], ["p1", "p1"])
    opt.fold = "2/3"
    with pytest.raises(BadInput, match=r"^--fold 2/3: train: 2 images, and 3 or more"):
        set_aside(opt, Path("train"), ["a", "b"], [0, 0])


# As options of a run.


def test_folds_of_a_run_are_disjoint_and_complete(build: Build) -> None:
    def names(*words: str) -> list[set[str]]:
        parts = build(*words, "--batch-size=1")
        if not hasattr(parts.train_set, "groups"):
            pytest.skip("its data set has no folds")
        return [set(part.names()) for part in (parts.train_set, parts.val_set)]

    whole = set.union(*names())
    folds = [names(f"--fold={number}/3") for number in (1, 2, 3)]
    for training, validation in folds:
        assert training | validation == whole and not training & validation
    assert set.union(*(validation for _, validation in folds)) == whole
    assert sum(len(validation) for _, validation in folds) == len(whole)
    grouped = names(r"--group=(\d)\.\w+$")
    digits = [{name[-5] for name in side} for side in grouped]
    assert all(digits) and not digits[0] & digits[1]


def test_a_fold_beside_other_validation_images_is_refused(
    build: Build, small: list[str], spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not hasattr(build().train_set, "groups"):
        pytest.skip("its data set has no folds")
    line = train_refuses(capsys, *small, "--fold=1/2", "--val-share=0.2")
    assert "--fold beside --val-share" in line
    (spoiled / "test").rename(spoiled / "val")
    words = [*small, f"--data={spoiled}"]
    assert "--fold 1/2: " in train_refuses(capsys, *words, "--fold=1/2")
    line = train_refuses(capsys, *words, r"--group=(\d)\.\w+$")
    assert "val: the group 0 is in " in line


@pytest.mark.parametrize(
    ("word", "culprit"),
    [
        *[(f"--fold={text}", "is not K/N") for text in ("0/5", "6/5", "2", "1/1", "a/b", "2/5/6")],
        ("--group=(", "is no regular expression"),
        ("--group=q(z)", "no match in "),
    ],
)
def test_what_is_no_fold_or_group_is_refused(
    small: list[str], capsys: pytest.CaptureFixture[str], word: str, culprit: str
) -> None:
    capsys.readouterr()
    assert culprit in train_refuses(capsys, *small, word)


def test_the_images_of_a_test_need_no_group(
    train: Train, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("run", f"--data={spoiled}", r"--group=train.*(\d)\.\w+$") == 0
    assert status(judge.main, "test.py", "--checkpoint=run", "--device=cpu") == 0


def test_a_run_of_a_fold_repeats(train: Train) -> None:
    assert train("run", "--fold=2/3", "--epochs=1") == 0
    text = Path("run/config.txt").read_text()
    assert "--fold=2/3\n" in text and "--group" not in text
    assert train("again", "@run/config.txt") == 0
