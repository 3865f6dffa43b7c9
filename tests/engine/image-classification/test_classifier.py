"""The finished model: networks by name, their last layer, frozen features, its metrics."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import example
import pytest
import torch
from conftest import Build
from marks import slow_after
from needs import needs
from parts import Parts
from programs import train_refuses
from torch import Tensor, nn

import options
from engine.devices import Amp
from engine.report.grids import CELL, GAP, captioned_grid

Classifier = needs("model.Classifier")
INFO = {"classes": {"cat": 3, "dog": 5, "eel": 2}}
# One of each way in which torchvision ends a network.
NETWORKS = [
    "efficientnet_b0",
    "resnet18",
    "squeezenet1_1",
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "shufflenet_v2_x0_5",
    "swin_t",
    "vgg11",
    "vit_b_32",
]


def classifier(*words: str) -> Any:
    return Classifier(options.parse([*words, "--flip"]), INFO)


def train_epoch(parts: Parts) -> None:
    parts.model.train()
    with parts.train_loader.batches() as batches:
        for n_iter in range(parts.sampler.steps_per_epoch):
            parts.step([next(batches)], n_iter)


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", slow_after(3, NETWORKS))
def test_networks_of_torchvision_score_the_classes(name: str) -> None:
    needs("task.libraries.make")
    with torch.device("meta"):  # shapes without numbers, which take no time
        model = classifier(f"--network={name}")
        size = 299 if name == "inception_v3" else 224
        for training in (True, False):
            scores = model.train(training).net(torch.zeros(2, 3, size, size))
            assert scores.shape == (2, len(INFO["classes"]))
    heads = [p for n, p in model.net.named_parameters() if 1000 in p.shape[:1] and "1000" not in n]
    assert not [head.shape for head in heads if head.dim() < 4]


@pytest.mark.parametrize("words", [[], ["--blocks=0", "--width=1"], ["--norm=instance"]])
@pytest.mark.parametrize("size", [8, 32, 33])
def test_the_simple_network_takes_images_of_any_size(words: list[str], size: int) -> None:
    for name in ("networks.SimpleNetwork", *words):
        needs(name)
    images = torch.randint(256, (2, 3, size, size + 5), dtype=torch.uint8)
    model = classifier("--network=simple", *words)
    assert model.scores(images).shape == (2, 3)
    (loss,) = model(images, torch.tensor([0, 2]))["net"].values()
    assert loss.shape == ()


@pytest.mark.parametrize("size", [8, 32, 33])
def test_resnet9_takes_images_of_any_size_from_8_pixels_on(size: int) -> None:
    for name in ("networks.ResNet9", "--network"):
        needs(name)
    model = classifier("--network=resnet9", "--width=16")
    images = torch.randint(256, (2, 3, size, size + 5), dtype=torch.uint8)
    assert model.scores(images).shape == (2, 3)
    weights = sum(p.numel() for p in model.net.features.parameters())
    assert weights == 411_664  # with a head for ten classes about 413,000


@pytest.mark.parametrize(("name", "key"), [("focal", "focal"), ("cross-entropy", "cross_entropy")])
def test_the_loss_carries_its_name(name: str, key: str) -> None:
    needs(f"--loss={name}")
    images, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
    assert list(classifier(f"--loss={name}")(images, labels)["net"]) == [key]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_frozen_features_stay_while_the_head_learns(build: Build, name: str) -> None:
    needs("task.libraries.make")
    words = ["--freeze", "--weights=unread.pt"]
    parts = build(f"--network={name}", "--img-size=32", "--dropout=0", "--lr=0.1", *words)
    net = parts.model.net
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    head = {"resnet18": "fc", "squeezenet1_1": "classifier.1"}[name]
    assert trained == {f"{head}.weight", f"{head}.bias"}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    train_epoch(parts)
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert changed == trained  # and no running mean of a batch norm
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    dropout = [m for m in net.modules() if isinstance(m, nn.Dropout)]  # right before the head
    assert norms or dropout
    assert not [part for part in norms if part.training]
    assert all(part.training for part in dropout)


def test_features_that_are_not_frozen_learn(build: Build) -> None:
    needs("task.libraries.make")
    parts = build("--network=squeezenet1_1", "--img-size=32")
    before = {name: value.clone() for name, value in parts.model.net.state_dict().items()}
    train_epoch(parts)
    after = parts.model.net.state_dict()
    assert all(not after[name].equal(before[name]) for name in before)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_scores_are_float32_in_any_precision(build: Build, name: str) -> None:
    parts = build()
    images, _ = parts.first_batch()
    with Amp(name, torch.device("cpu")).autocast():
        assert parts.model.scores(images).dtype == torch.float32


def test_metrics_are_sums_over_the_images() -> None:
    for name in ("--loss=cross-entropy", "--label-smoothing"):
        needs(name)
    model = classifier("--loss=cross-entropy", "--label-smoothing=0.1").eval()
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5], [0.0, 0.0, 9.0]])
    model.scores = lambda images: scores
    labels = torch.tensor([0, 1, 2, 2])
    metrics = model.compute_sums(torch.zeros(4, 3, 8, 8), labels)
    assert metrics["accuracy"].item() == 3
    expected = nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)(scores, labels)
    assert metrics["loss"].item() == pytest.approx(expected.item())
    assert metrics["confusion"].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_a_validation_counts_every_image_and_draws_the_first_batch(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = build("--batch-size=2")  # several batches
    given: list[Tensor] = []
    figures = parts.model.figures

    def note(totals: dict[str, Tensor]) -> dict[str, Tensor]:
        given.append(totals["confusion"])
        return figures(totals)

    monkeypatch.setattr(parts.model, "figures", note)
    found = parts.validate()
    assert "confusion" not in found
    drawn = found.draw()
    (counts,) = given
    assert int(counts.sum()) == len(parts.val_set)
    assert counts.sum(dim=1).tolist() == torch.bincount(parts.val_set.labels).tolist()
    assert int(counts.diag().sum()) / len(parts.val_set) == pytest.approx(found["accuracy"])
    assert list(drawn) == ["images", "confusion"]
    with parts.val_loader.batches() as batches:
        assert drawn["images"].equal(parts.model.eval().image_grid(*next(batches)))


def test_an_image_grid_names_wrong_predictions_in_evaluation() -> None:
    model = classifier().eval()
    model.scores = lambda images: torch.eye(3)[torch.tensor([0, 1, 1])]
    images, labels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2])
    cat, dog, last = INFO["classes"]
    expected = captioned_grid(images, [cat, dog, f"{last}\n→ {dog}"], columns=3)
    assert model.image_grid(images, labels).equal(expected)
    plain = captioned_grid(images, [cat, dog, last], columns=3)
    assert model.train().image_grid(images, labels).equal(plain)


def test_an_image_grid_shows_the_images_as_they_come() -> None:
    images = torch.randint(256, (70, 3, 100, 100), dtype=torch.uint8)
    labels = torch.arange(70) % 3
    grid = classifier().image_grid(images, labels)
    assert (grid.dtype, grid.dim(), grid.shape[0]) == (torch.uint8, 3, 3)
    assert grid.equal(captioned_grid(images[:64], [*INFO["classes"]] * 21 + ["cat"], columns=8))
    left = GAP + (CELL - 100) // 2  # in the middle of what its caption has
    assert grid[:, GAP : GAP + 100, left : left + 100].equal(images[0])
    other = classifier().image_grid(images, labels.flip(0))
    assert not grid.equal(other)  # the names below the images
    mixed = torch.eye(3)[labels] * 0.6 + torch.eye(3)[labels.roll(1)] * 0.4
    grid = classifier().image_grid(images + 0.3, mixed)  # floats
    assert grid[:, GAP : GAP + 100, left : left + 100].equal(images[0])


def test_an_image_grid_has_fewer_images_where_they_are_large() -> None:
    for size, columns in ((32, 8), (224, 4), (2000, 1)):
        images = torch.zeros(20, 3, 9, size, dtype=torch.uint8)
        grid = classifier().image_grid(images, torch.zeros(20, dtype=torch.int64))
        factor = 3 if size == 32 else 1  # small ones are enlarged
        assert grid.shape[2] == GAP + columns * (max(factor * size, CELL) + GAP)


def test_a_checkpoint_becomes_the_model_again(finished: Path) -> None:
    path = finished / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    model, opt = Classifier.from_checkpoint(str(path))
    assert not model.training
    assert model.classes == list(example.CLASSES)
    assert opt.img_size == state["args"]["img_size"]
    weights: dict[str, Tensor] = model.net.state_dict()
    assert all(value.equal(state["net"][name]) for name, value in weights.items())


def test_no_weights_are_downloaded_for_a_checkpoint(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("task.libraries.make")
    state = torch.load(finished / "checkpoints" / "last.pt", weights_only=True)
    with torch.random.fork_rng():
        network = classifier("--network=squeezenet1_1").net
    state["args"] |= {"network": "squeezenet1_1", "pretrained": True, "img_size": 32}
    torch.save({**state, "net": network.state_dict()}, "x.pt")

    def offline(*arguments: object, **more: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    model, _ = Classifier.from_checkpoint("x.pt")
    assert type(model.net).__name__ == "SqueezeNet"


def test_weights_that_cannot_be_downloaded_are_bad_input(
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    needs("task.libraries.make")

    def offline(*arguments: object, **more: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    says = SimpleNamespace(stdout=io.StringIO(), stderr=io.StringIO())
    monkeypatch.setattr("torch.hub.sys", says)  # what it says itself, up to 2.6 on stderr
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
    words = [*small, "--network=squeezenet1_1", "--pretrained", "--run-dir=run"]
    assert "squeezenet1_1" in train_refuses(capsys, *words)
