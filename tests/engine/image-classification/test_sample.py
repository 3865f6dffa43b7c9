"""--sample balanced: each class is drawn equally often."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import Build, Train
from faults import die_at_step
from needs import needs
from programs import resume, same_weights, train_refuses

needs("dataset.ClassFolders")
needs("--sample=balanced")


@pytest.fixture
def rare(spoiled: Path) -> str:
    """The option of a data set that has two images of disc and eight of each other class."""
    for i in range(2, 8):
        (spoiled / "train" / "disc" / f"{i}.png").unlink()
    return f"--data={spoiled}"


def test_classes_are_drawn_equally_often(build: Build, rare: str) -> None:
    parts = build(rare, "--sample=balanced", "--batch-size=6", "--epochs=10")
    with parts.train_loader.batches() as batches:
        labels = [label for _, labels in batches for label in labels.tolist()]
    assert len(labels) == 6 * 10 * (len(parts.train_set) // 6), "an epoch keeps its length"
    counts = Counter(labels)
    assert len(counts) == 3 and max(counts.values()) - min(counts.values()) <= 1
    assert build(rare).sampler.strata is None, "by default images are shuffled"


def test_a_balanced_run_is_exact_and_says_so(
    train: Train, rare: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [rare, "--sample=balanced", "--epochs=4", "--save-every=1"]
    assert train("undisturbed", *words, "--cache") == 0
    assert "draws: about 5 of each class in an epoch, each image of disc about" in (
        capsys.readouterr().out
    )
    assert "--sample=balanced\n" in Path("undisturbed", "config.txt").read_text()
    with monkeypatch.context() as patch:
        die_at_step(patch, 5)
        assert train("killed", *words, "--no-cache", "--workers=1") == 9
    assert resume(Path("killed"), "--workers=2") == 0
    assert same_weights(Path("killed"), Path("undisturbed"))
    assert train("shuffled", rare, "--epochs=4") == 0
    assert not same_weights(Path("shuffled"), Path("undisturbed"))


def test_weights_of_classes_beside_balanced_draws_are_refused(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    needs("--balance")
    line = train_refuses(capsys, *small, "--sample=balanced", "--balance")
    assert "--sample balanced" in line and "leave out --balance" in line


def test_more_images_in_a_step_than_there_are_are_refused(
    small: list[str], rare: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--sample=balanced", "--batch-size=8", "--accumulate=4"]
    assert "training samples" in train_refuses(capsys, *small, rare, *words)
