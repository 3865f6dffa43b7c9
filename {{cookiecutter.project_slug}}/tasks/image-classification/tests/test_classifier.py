"""The finished model: networks by name, their last layer, frozen features, what it measures."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from conftest import Prepare
from programs import refusal
from torch import Tensor, nn

import options
from classifier import Classifier
from engine.precision import Precision
from train import Training

ABOUT = {"classes": {"cat": 3, "dog": 5, "eel": 2}}
# One of each way in which torchvision ends a network.
NETWORKS = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_32",
]


def classifier(*words: str) -> Classifier:
    return Classifier(options.parse([*words, "--flip"]), ABOUT)


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_torchvision_score_the_classes(name: str) -> None:
    with torch.device("meta"):  # shapes without numbers, which take no time
        model = classifier(f"--network={name}")
        size = 299 if name == "inception_v3" else 224
        for training in (True, False):
            scores = model.train(training).net(torch.zeros(2, 3, size, size))
            assert scores.shape == (2, len(ABOUT["classes"]))
    heads = [p for n, p in model.net.named_parameters() if 1000 in p.shape[:1] and "1000" not in n]
    assert not [head.shape for head in heads if head.dim() < 4]


@pytest.mark.parametrize("words", [[], ["--blocks=0", "--width=1"], ["--norm=instance"]])
@pytest.mark.parametrize("size", [8, 32, 33])
def test_the_simple_network_takes_images_of_any_size(words: list[str], size: int) -> None:
    images = torch.randint(256, (2, 3, size, size + 5), dtype=torch.uint8)
    model = classifier(*words)
    assert model.scores(images).shape == (2, 3)
    losses = model(images, torch.tensor([0, 2]))
    assert losses["net"]["cross_entropy"].shape == ()


def test_the_loss_carries_its_name() -> None:
    images, labels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])
    assert list(classifier("--loss=focal")(images, labels)["net"]) == ["focal"]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_frozen_features_stay_while_the_head_learns(prepare: Prepare, name: str) -> None:
    training = prepare(f"--network={name}", "--img-size=32", "--freeze", "--lr=0.1")
    net = training.model.net
    wanted = {n for n, p in net.named_parameters() if p.requires_grad}
    head = {"resnet18": "fc", "squeezenet1_1": "classifier.1"}[name]
    assert wanted == {f"{head}.weight", f"{head}.bias"}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    training.train_epoch()
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert changed == wanted  # and no running mean of a batch norm
    parts = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.Dropout)]
    assert parts
    assert not [part for part in parts if part.training]


def test_features_that_are_not_frozen_learn(prepare: Prepare) -> None:
    training = prepare("--network=squeezenet1_1", "--img-size=32")
    before = {name: value.clone() for name, value in training.model.net.state_dict().items()}
    training.train_epoch()
    after = training.model.net.state_dict()
    assert all(not after[name].equal(before[name]) for name in before)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_scores_are_float32_in_any_precision(name: str) -> None:
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    with Precision(name, torch.device("cpu")).autocast():
        assert classifier().scores(images).dtype == torch.float32


def test_metrics_are_sums_over_the_images() -> None:
    model = classifier("--label-smoothing=0.1").eval()
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5], [0.0, 0.0, 9.0]])
    model.scores = lambda images: scores  # type: ignore[method-assign]
    labels = torch.tensor([0, 1, 2, 2])
    metrics = model.measure(torch.zeros(4, 3, 8, 8), labels)
    assert metrics["accuracy"].item() == 3
    expected = nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)(scores, labels)
    assert metrics["loss"].item() == pytest.approx(expected.item())


def test_a_picture_shows_the_images_as_they_come() -> None:
    images = torch.randint(256, (70, 3, 8, 8), dtype=torch.uint8)
    picture = classifier().picture(images, torch.zeros(70))
    assert (picture.dtype, picture.dim(), picture.shape[0]) == (torch.uint8, 3, 3)
    assert picture[:, 2:10, 2:10].equal(images[0])


def test_a_checkpoint_becomes_the_model_again(finished: Path) -> None:
    path = finished / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    model, opt = Classifier.from_checkpoint(str(path))
    assert not model.training
    assert model.classes == ["columns", "disc", "rows"]
    assert opt.img_size == 16
    weights: dict[str, Tensor] = model.net.state_dict()
    assert all(value.equal(state["net"][name]) for name, value in weights.items())


def test_no_weights_are_downloaded_for_a_checkpoint(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    def offline(*arguments: object, **more: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch")))
    words = [*small, "--network=squeezenet1_1", "--pretrained", "--run=run"]
    error = refusal(capsys, lambda: Training().main(), "train.py", *words)
    assert "squeezenet1_1" in error
