"""--freeze: what precedes the head is computed once, and nothing else changes."""

import csv
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Train
from faults import die_at_step
from marks import slow_after
from needs import needs
from programs import PATIENCE, last, points, resume, same_weights, status
from test_processes import STEP, torchrun
from torch import Tensor, nn
from torchvision.models import get_model

import dataset
import test
import train as program
from engine.data import features
from engine.data.features import choose
from engine.data.images import flip
from engine.data.loader import to_memory_format
from engine.modules import BLOCK, to_device
from model import Model
from networks import SimpleNetwork
from task.neighbours import doubtful, first_look, fit_logistic, vote
from tools import check_data

needs("dataset.ClassFolders")


@pytest.fixture(scope="module")
def frozen(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs train.py --freeze with the weights of a short run."""
    base = tmp_path_factory.mktemp("base") / "run"
    assert train(base, "--epochs=1") == 0

    def frozen(run: Path | str, *options: str) -> int:
        return train(run, f"--weights={base}", "--freeze", *options)

    return frozen


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed of features since the last call."""
    lines = capsys.readouterr().out.splitlines()
    return "\n".join(line for line in lines if line.startswith("features: "))


def judged(run: Path) -> list[dict[str, Any]]:
    return [point["values"] for point in points(run) if point["split"] == "val"]


WORDS = {
    "flip": ["--flip"],
    "plain": ["--no-flip", "--no-cache", "--precision=fp32"],
    "all": ["--flip", "--accumulate=2", "--batch-size=3", "--ema=0.9", "--sample=balanced"],
    "workers": ["--flip", "--workers=2", "--prefetch=0"],
    "resnet9": ["--flip", "--network=resnet9"],
}


@pytest.mark.parametrize("name", slow_after(2, WORDS))
def test_runs_have_the_bits_of_computing_each_epoch(
    train: Train, frozen: Train, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    words, run = WORDS[name], frozen
    if "--network=resnet9" in words:
        assert train("base", *words, "--epochs=1") == 0
        words, run = [*words, "--weights=base", "--freeze"], train
    assert run("features", *words) == 0
    assert "21 + 3 images, plain" in told(capsys)
    assert run("each", *words, "--no-features") == 0
    assert not told(capsys)
    assert same_weights(Path("features"), Path("each"))
    assert judged(Path("features")) == judged(Path("each"))


def test_what_is_kept_is_that_of_these_weights_and_images(
    frozen: Train, spoiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f"--data={spoiled}"
    for run, how, expected in (
        ("first", [], "computed in"),
        ("again", ["--seed=1", "--lr=0.1"], "from the cache"),
        ("exact", ["--precision=fp32", "--no-flip"], "computed in"),
        ("larger", ["--img-size=18"], "computed in"),
    ):
        assert frozen(run, data, *how) == 0
        assert expected in told(capsys), run
    one, other = sorted((spoiled / "train" / "disc").iterdir())[-2:]
    shutil.copy(one, other)
    assert frozen("changed", data) == 0
    assert "computed in" in told(capsys)
    assert frozen("each", data, "--no-features") == 0
    assert same_weights(Path("changed"), Path("each"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--cutmix=1"], "--cutmix"),
        (["--shift=2"], "--shift 2 changes images at random (--views K keeps"),
        (["--trivial-augment"], "--trivial-augment"),
        (["--resize=crop"], "--crop-min 0.35"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_augmentation_that_cannot_be_kept_is_named(
    frozen: Train, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert frozen("run", *words, "--epochs=1") == 0
    line = told(capsys)
    assert line.startswith("features: computed in each epoch: ") and reason in line
    assert line.count("\n") == 0


@pytest.mark.parametrize(
    "words", slow_after(1, [["--shift=2", "--flip"], ["--resize=crop"], ["--trivial-augment"]])
)
def test_random_versions_are_kept_as_many_as_are_wanted(
    frozen: Train, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert frozen("one", *words, "--views=3") == 0
    assert "in 3 random versions (" in told(capsys)
    assert frozen("two", *words, "--views=3", "--no-cache", "--workers=1") == 0
    assert same_weights(Path("one"), Path("two"))
    for other in (["--views=2"], ["--views=3", "--seed=1"]):
        assert frozen(other[-1], *words, *other) == 0
        assert not same_weights(Path("one"), Path(other[-1]))


@pytest.mark.slow
def test_mixup_blends_features(frozen: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert frozen("mixed", "--mixup=1") == 0
    assert "; --mixup blends features" in told(capsys)
    assert frozen("unmixed") == 0
    assert not same_weights(Path("mixed"), Path("unmixed"))


def test_the_choice_of_a_version_is_that_of_flip() -> None:
    images = torch.rand(50, 3, 1, 2)
    both = torch.stack([images.flatten(1), images.flip(3).flatten(1)], dim=1)
    chosen = choose(both, torch.Generator().manual_seed(3))
    assert chosen.equal(flip(images, torch.Generator().manual_seed(3)).flatten(1))
    many = torch.arange(5.0).expand(4000, 5)[:, :, None]
    counts = torch.bincount(choose(many, torch.Generator().manual_seed(0))[:, 0].long())
    assert len(counts) == 5 and counts.min() > 700
    assert choose(images.flatten(1), torch.Generator()).equal(images.flatten(1))


# What an owner changes.


def test_an_augmentation_of_ones_own_is_never_left_out(
    frozen: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = dataset.augment

    def darker(opt: Any, info: Any, random: Any, *batch: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = original(opt, info, random, *batch)
        return (images // 2 if images.dim() == 4 else images), labels

    monkeypatch.setattr(dataset, "augment", darker)
    assert frozen("run") == 0
    assert "augment of dataset.py does more than mirror images" in told(capsys)
    assert frozen("views", "--views=2") == 0
    assert "in 2 random versions" in told(capsys)
    monkeypatch.setattr(dataset, "augment", original)
    transform: Callable[[Tensor], Tensor] = lambda image: image.roll(int(torch.randint(9, ())), 2)  # noqa: E731
    monkeypatch.setattr(dataset, "random_transforms", lambda opt: [transform])
    assert frozen("transformed") == 0
    assert "the samples of dataset.py are random" in told(capsys)


def test_a_model_that_takes_no_features_is_computed_in_each_epoch(
    frozen: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = lambda self, images: self.net(self.normalize(images)).float()  # noqa: E731
    monkeypatch.setattr(Model, "scores", scores)
    assert frozen("run") == 0
    assert "the model does not take vectors in the place of images" in told(capsys)


class Ending(nn.Module):
    """A network with something after its head, or before it, that is no module."""

    def __init__(self, after: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.after, self.dropout = after, dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).amax(dim=(2, 3))
        x = nn.functional.dropout(x, self.dropout, self.training)
        return self.head(x) * self.after


class Holder(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network

    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}


def freeze(network: nn.Module) -> Any:
    to_device(Holder(network), torch.device("cpu"), freeze=True)
    return network


@pytest.mark.parametrize(
    ("network", "apart"),
    [
        (Ending(), True),
        (Ending(after=0.5), False),
        (Ending(dropout=0.5), False),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), False),
        (get_model("squeezenet1_1", num_classes=3), False),
        (get_model("mobilenet_v3_small", num_classes=3), True),
    ],
    ids=["plain", "scaled", "functional dropout", "convolutions", "squeezenet", "mobilenet"],
)
def test_networks_give_what_they_gave(network: nn.Module, apart: bool) -> None:
    images = to_memory_format((torch.rand(BLOCK, 3, 32, 32),), torch.device("cpu"))[0]
    expected = network.to(memory_format=torch.channels_last).eval()(images)
    names = list(network.state_dict())
    assert freeze(network).eval()(images).equal(expected)
    assert network.frozen_apart is apart
    assert names == list(network.state_dict())
    if apart:
        network(images)
        assert network(network.frozen_features).equal(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", slow_after(1, ["simple", "resnet18", "mobilenet_v3_small", "vit_b_32", "convnext_tiny"])
)
def test_features_do_not_depend_on_the_batch(name: str) -> None:
    made = SimpleNetwork(3, width=8) if name == "simple" else get_model(name, num_classes=3)
    network = freeze(made)
    images = torch.rand(19, 3, 224, 224) if name == "vit_b_32" else torch.rand(35, 3, 40, 40)
    network.train()(images)
    expected, order = network.frozen_features, torch.randperm(len(images))
    for places in (*order[:3].split(1), *order.split(7), order):
        network(images[places])
        assert network.frozen_features.equal(expected[places])


def test_dropout_of_the_head_is_on_and_norms_stay_as_they_are() -> None:
    network = freeze(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.Dropout(0.5), nn.Linear(8, 2)),
        )
    ).train()
    images, before = torch.rand(4, 3, 9, 9), network.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    outputs = [network(images) for _ in range(2)]
    assert network.frozen_apart and not outputs[0].equal(outputs[1])
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert network.training and network[1].training  # the modes are those of the program


# Kills, and several processes.


def test_a_run_killed_in_the_first_pass_or_later_ends_with_the_same_bits(
    frozen: Train, spoiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"--data={spoiled}", "--flip", "--save-every=1"]
    assert frozen("whole", *words, "--no-features") == 0

    def die(*arguments: Any) -> None:
        next(arguments[1])  # after a block
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_write", die)
        assert frozen("killed", *words) == 9
    with monkeypatch.context() as patch:
        die_at_step(patch, 3)
        assert frozen("killed", *words, "--resume") == 9
    assert 0 < last(Path("killed"))["n_iter"] < last(Path("whole"))["n_iter"]
    assert resume(Path("killed")) == 0
    assert same_weights(Path("killed"), Path("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("views", [[], ["--views=2", "--shift=1"]])
def test_several_processes_share_the_first_pass(
    frozen: Train, small: list[str], spoiled: Path, views: list[str]
) -> None:
    words = [f"--data={spoiled}", "--flip", "--threads=1", *views]
    assert frozen("one", *words, *STEP) == 0
    weights = last(Path("one"))["args"]["weights"]
    words += [f"--weights={weights}", "--freeze"]
    for size in (2, 4):
        shutil.rmtree(spoiled / ".cache")
        launcher = torchrun(size, small, *words, f"--run-dir=on{size}")
        out, errors = launcher.communicate(timeout=PATIENCE)
        assert launcher.returncode == 0, errors
        assert "computed in" in out
        assert same_weights(Path("one"), Path(f"on{size}"))


# What features tell.


def test_the_first_look_is_printed_and_in_the_report(
    frozen: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frozen("run", "--epochs=1") == 0
    line = told(capsys).splitlines()[-1].removeprefix("features: ")
    assert line.startswith("nearest neighbours classify") and "logistic regression" in line
    assert line in Path("run/environment.txt").read_text()
    assert status(test.main, "test.py", "--checkpoint=run", "--device=cpu") == 0
    assert line in Path("run/report/index.html").read_text()


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three clouds of vectors that overlap a little."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.eye(3).repeat(1, 4) * 2
    return centres[labels] + torch.randn(count, 12, generator=draw), labels


@pytest.mark.slow
def test_logistic_regression_is_that_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    (train, labels), (val, _) = blobs(200, 0), blobs(50, 1)
    ours = fit_logistic(train, labels, val, 3).softmax(dim=1)
    mean, std = train.double().mean(dim=0), train.double().std(dim=0, correction=0)
    standardized = [((x.double() - mean) / std).numpy() for x in (train, val)]
    model = linear.LogisticRegression(C=1.0, tol=1e-10, max_iter=1000)
    theirs = model.fit(standardized[0], labels.numpy()).predict_proba(standardized[1])
    assert (ours - torch.from_numpy(theirs)).abs().max() < 1e-3


def test_no_image_is_its_own_neighbour() -> None:
    features, labels = torch.eye(4), torch.tensor([0, 1, 2, 2])
    shares = vote(features, labels, None, 3, k=50)
    assert shares.gather(1, labels[:, None])[:, 0].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3])
    assert vote(features, labels, features, 3, k=1).argmax(dim=1).equal(labels)
    train, val = blobs(300, 0), blobs(60, 1)
    text = first_look(train, (val[0][:, None].repeat(1, 2, 1), val[1]), 3)
    shares_found = [float(word.strip("%")) for word in text.split() if "%" in word]
    assert min(shares_found) > 85


def test_planted_labels_are_the_first_doubtful_ones() -> None:
    features, labels = blobs(600, 2)
    features += 3 * torch.eye(3).repeat(1, 4)[labels]
    planted = torch.arange(0, 600, 50)
    labels[planted] = (labels[planted] + 1) % 3
    order, classes, shares = doubtful(features, labels, 3)
    assert {*order[:6].tolist()} <= {*planted.tolist()}
    assert (shares[:, 0] < shares[:, 1]).all() and (classes != labels[order]).all()


@pytest.mark.slow
def test_wrong_labels_in_the_digits_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    """2 % are planted; of the first 1 % that are named at least 0.7 are among them."""
    draw, data = random.Random(0), Path("digits")
    shutil.copytree(dataset.data_dir(dataset.BUILT_IN), data)
    files = sorted((data / "train").rglob("*.png"))
    for file in draw.sample(files, len(files) // 50):
        others = [path for path in (data / "train").iterdir() if path != file.parent]
        file.rename(draw.choice(others) / f"planted-{file.parent.name}-{file.name}")
    how = [f"--data={data}", "--run-dir=run", "--epochs=5", "--device=cpu"]
    assert status(program.main, "train.py", *how) == 0
    assert status(check_data.main, "check_data.py", str(data), "--checkpoint=run") == 0
    assert "doubtful.png" in capsys.readouterr().out
    assert Path("run/doubtful.png").stat().st_size > 1000
    with open("run/doubtful.csv", newline="") as table:
        rows = list(csv.DictReader(table))[: len(files) // 100]
    assert sum("planted" in row["file"] for row in rows) >= 0.7 * len(rows)
