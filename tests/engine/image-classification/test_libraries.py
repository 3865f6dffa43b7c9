"""Networks of torchvision and timm by name: their preprocessing, heads, dropout and weights."""

import csv
import dataclasses
import json
import logging
import math
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import example
import numpy as np
import pytest
import torch
import torchvision
from conftest import Train
from marks import slow_after
from needs import OLD, needs
from PIL import Image
from programs import last, resume, same_weights, status, train_refuses
from safetensors.torch import save_file
from torch import nn

import dataset
import export
import options
import predict
from engine.arguments import config_text
from engine.errors import BadInput
from engine.modules import head_of, layers_of, rest_of
from model import Model
from task.preprocessing import is_whole, settings

libraries = needs("task.libraries")
timm = pytest.importorskip("timm")
INFO = {"classes": {"cat": 3, "dog": 5, "eel": 2}}
# Small ones, in full also larger ones; levit has two heads, each with a norm in it.
NETWORKS = ["test_vit", "test_convnext", "test_efficientnet", "test_resnet", "test_byobnet"]
NETWORKS += ["mobilenetv3_small_050", "levit_128s"]
# Of each way in which they are prepared: sizes, shares, interpolations, squashed or not.
PRESETS = ["test_vit", "resnet50", "vit_medium_patch16_gap_384", "dm_nfnet_f0"]
PRESETS += ["beit_base_patch16_224"]
TORCHVISION = ["resnet18", "convnext_tiny", "efficientnet_b1", "swin_s", "efficientnet_v2_l"]
SIZES = [(640, 427), (375, 500), (61, 97), (224, 224)]


def opt(*words: str) -> Namespace:
    return options.parse(["--flip", *words])


def photo(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width)
    coarse = random.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def loaded(path: Path, opt: Namespace) -> torch.Tensor:
    return dataset.load_eval(path, opt)


# What the weights were trained with.


@pytest.mark.parametrize("name", [f"timm:{n}" for n in PRESETS] + TORCHVISION)
def test_images_are_those_of_the_library_bit_for_bit(name: str) -> None:
    """From a JPEG, which must not be decoded at a part of its size."""
    chosen = opt(f"--network={name}", "--weights=x.pt")
    if name.startswith("timm:"):
        config = timm.get_pretrained_cfg(name.removeprefix("timm:")).to_dict()
        wanted = timm.data.resolve_data_config(pretrained_cfg=config)
        transform = timm.data.create_transform(**wanted, is_training=False, normalize=False)
        size, mean, std = wanted["input_size"][1], wanted["mean"], wanted["std"]
    else:
        transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        (size,), mean, std = transform.crop_size, transform.mean, transform.std
        transform.mean, transform.std = [0, 0, 0], [1 / 255] * 3
    assert chosen.img_size == size
    said = settings(chosen)
    assert (said["mean"], said["std"]) == (tuple(mean), tuple(std))
    for width, height in [*SIZES, (4 * size, 3 * size)]:
        photo(width, height).save("photo.jpg", quality=95)
        theirs = transform(Image.open("photo.jpg").convert("RGB"))
        assert loaded(Path("photo.jpg"), chosen).equal(theirs.round().byte()), (width, height)


def test_a_network_without_trained_weights_is_prepared_as_ever() -> None:
    plain = opt("--network=resnet18")
    assert (plain.resize, plain.preprocess, plain.img_size) == ("squash", None, 224)
    assert opt("--network=efficientnet_v2_l").img_size == 224
    own = opt("--network=simple", "--weights=x.pt")
    assert (own.resize, own.preprocess, own.img_size) == ("squash", None, 32)
    theirs = opt("--network=timm:test_vit")
    assert (theirs.resize, theirs.img_size) == ("squash", 160)
    assert settings(theirs).keys() == {"mean", "std"} and not is_whole(theirs)


def test_what_is_given_has_precedence(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--network=resnet18", "--pretrained"]
    chosen = settings(opt(*words, "--preprocess", "crop=0.5", "mean=0,0.25,1e-1"))
    assert chosen["crop"] == 0.5 and chosen["interpolation"] == "bilinear"
    assert chosen["mean"] == (0.0, 0.25, 0.1) and chosen["std"] == (0.229, 0.224, 0.225)
    said = capsys.readouterr().err  # as it may be that of another network's config.txt
    assert "warning: --preprocess crop=0.5: resnet18: its weights were made with 0.875" in said
    assert said.count("warning: --preprocess") == 2
    assert opt(*words, "--img-size=64").img_size == 64
    squashed = opt(*words, "--resize=squash")
    assert settings(squashed).keys() == {"mean", "std"}
    own = settings(opt("--resize=center"))
    assert own == {"crop": 0.875, "interpolation": "bilinear"}


def test_options_of_the_preprocessing_are_read_back() -> None:
    given = opt("--network=efficientnet_b0", "--pretrained")
    Path("config.txt").write_text(config_text(given, Path("config.txt")), encoding="utf-8")
    assert options.parse(["@config.txt"]) == given
    assert "crop=0.875" in Path("config.txt").read_text().splitlines()


def test_a_cache_changes_nothing_and_is_that_of_its_preprocessing(train: Train) -> None:
    example.make_data(Path("data"))
    for i, path in enumerate(sorted(Path("data").rglob("*.png"))):
        photo(20 + i, 70 - i).save(path)
    words = ["--data=data", "--resize=center", "--epochs=1"]
    runs = {"one": "crop=0.6", "other": "crop=0.7"}
    views = {
        dataset.train_and_val(opt("--data=data", "--resize=center", "--preprocess", crop))[1].view
        for crop in runs.values()
    }
    assert len(views) == 2  # a resume with another one forgets the best value
    for run, crop in runs.items():
        assert train(run, *words, "--preprocess", crop, "--cache") == 0
    assert train("without", *words, "--preprocess", "crop=0.7", "--no-cache", "--workers=1") == 0
    assert same_weights(Path("other"), Path("without"))
    assert not same_weights(Path("one"), Path("other"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--preprocess", "crop=2"], "crop=2"),
        (["--preprocess", "mean=0.5"], "mean=R,G,B"),
        (["--preprocess", "std=0,0,0"], "std=0,0,0"),
        (["--preprocess", "colour=red"], "colour=red"),
        (["--preprocess", "interpolation=best"], "bicubic"),
        (["--resize=crop", "--preprocess", "crop=0.9"], "add --resize center"),
        (["--network=timm:resnet81"], "timm:resnet18"),
        (["--network=timm:resnet18.none"], "not known; did you mean timm:resnet18"),
        (["--network=resnet18", "--img-size=32", "--dropout=0.2"], "--dropout 0.2: resnet18 takes"),
        (["--network=timm:test_vit", "--img-size=33"], "--img-size 33: not for timm:test_vit"),
    ],
)
def test_what_cannot_be_is_refused(
    small: list[str], capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert told in train_refuses(capsys, *small, "--dropout=0", *words, "--run-dir=run")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"classifier": None}, "has no head"),
        ({"classifier": "nothing"}, "has no head"),
        ({"crop_mode": "border"}, "with a frame"),
        ({"input_size": (3, 1024, 768)}, "1024 x 768"),
    ],
)
def test_networks_that_fit_no_square_image_or_have_no_head_are_refused(
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    told: str,
) -> None:
    changed = dataclasses.replace(timm.get_pretrained_cfg("test_vit"), **config)
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda name: changed)
    if config.get("classifier"):
        monkeypatch.delattr("timm.models.VisionTransformer.get_classifier")
    words = [*small, "--dropout=0", "--network=timm:test_vit", "--img-size=160", "--run-dir=run"]
    assert told in train_refuses(capsys, *words)


def test_timm_is_optional(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    said = train_refuses(capsys, *small, "--network=timm:resnet18", "--run-dir=run")
    assert "timm is not installed; python -m pip install timm" in said


# Steps, heads, dropout.


@pytest.mark.parametrize("name", slow_after(5, NETWORKS))
def test_networks_of_timm_train_resume_and_freeze(
    train: Train, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    example.make_data(Path("data"), train=2, test=1)  # one step an epoch
    size = timm.get_pretrained_cfg(name).input_size[1]
    shared = ["--data=data", f"--network=timm:{name}", f"--img-size={size}", "--log-every=1"]
    shared += ["--batch-size=3", "--dropout=0", "--no-flip"]
    assert train("run", *shared, "--epochs=1") == 0
    assert "preprocessing: squash, mean=" in capsys.readouterr().out
    assert resume(Path("run"), "--epochs=2") == 0
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])["values"]["cross_entropy"]
    assert first == pytest.approx(math.log(3), abs=0.3)  # no head that is too sure
    before, weights = last(Path("run")), "--weights=run/checkpoints/last.pt"
    assert train("frozen", *shared, weights, "--freeze", "--epochs=1") == 0
    assert "center" in Path("frozen/config.txt").read_text()
    after = last(Path("frozen"))
    network = Model.from_checkpoint("frozen/checkpoints/last.pt")[0].net
    heads = {id(p) for part in head_of(network) for p in part.parameters()}
    own = {key for key, p in network.named_parameters() if id(p) in heads}
    changed = {key for key, value in after["net"].items() if not value.equal(before["net"][key])}
    assert own and changed == own


def test_the_head_is_what_a_library_says() -> None:
    made = libraries.make("timm:deit_tiny_distilled_patch16_224", 3, False, 0, 224)
    assert head_of(made) == [made.head, made.head_dist]
    assert {p.shape[0] for p in layers_of(made)[-1]} == {3}
    assert not {made.head, made.head_dist} & {*rest_of(made)}
    for name in ("squeezenet1_1", "vgg11", "mobilenet_v3_small", "resnet18"):
        with torch.device("meta"):
            network = libraries.make(name, 3, False, 0, 224)
        (head,) = head_of(network)
        named = layers_of(network)
        del network.head_names
        assert [[*map(id, layer)] for layer in layers_of(network)] == [
            [*map(id, layer)] for layer in named
        ]
        assert head_of(network) == [head]


def test_an_owners_network_gets_a_new_head() -> None:
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *pool, nn.Linear(4, 9))
    assert libraries.new_head(network, "3", num_classes=5) is network
    (head,) = head_of(network)
    assert head is network[3] and head.weight.shape == (5, 4)
    assert head.weight.std() < 0.02 and not head.bias.any()
    network.head_names = ("4",)
    with pytest.raises(BadInput, match="head_names of Sequential: '4' is no module of it"):
        head_of(network)


def test_dropout_is_that_of_the_constructor() -> None:
    def rates(name: str, dropout: float) -> set[float]:
        with torch.device("meta"):
            network = libraries.make(name, 3, False, dropout, 160)
        rates = {m.p for m in network.modules() if isinstance(m, nn.Dropout)}
        return rates | {getattr(network, "drop_rate", 0.0)}

    assert 0.35 in rates("timm:test_resnet", 0.35)
    assert 0.35 in rates("efficientnet_b0", 0.35)
    assert 0.35 not in rates("efficientnet_b0", 0) | rates("timm:test_resnet", 0)


def test_a_new_head_of_trained_torchvision_is_not_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    get_model = torchvision.models.get_model

    def without_weights(name: str, weights: Any, **more: Any) -> nn.Module:
        return get_model(name, weights=None, **more)

    monkeypatch.setattr("torchvision.models.get_model", without_weights)
    trained: Any = head_of(libraries.make("resnet18", 3, True, 0, 224))[0]
    untrained: Any = head_of(libraries.make("resnet18", 3, False, 0, 224))[0]
    assert trained.weight.std() < 0.015 < untrained.weight.std() and not trained.bias.any()


# Weights.


@pytest.mark.parametrize("form", ["bin", "safetensors", "nested", "ema"])
def test_weights_of_timm_are_read_from_files(
    train: Train, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    state = timm.create_model("test_resnet").state_dict()
    path = Path("weights.safetensors" if form == "safetensors" else "weights.bin")
    if form == "safetensors":
        save_file(state, path)
    elif form == "bin":
        torch.save(state, path)
    else:
        wrapped = {f"module.{key}": value for key, value in state.items()}
        both: dict[str, Any] = {"state_dict": wrapped, "epoch": 3}
        if form == "ema":
            both = {"state_dict": {k: v + 1 for k, v in wrapped.items()}, "state_dict_ema": wrapped}
        torch.save(both, path)
    words = ["--network=timm:test_resnet", "--img-size=32", "--dropout=0", "--lr=0", "--epochs=1"]
    assert train("run", *words, f"--weights={path}") == 0
    assert "at random: fc.weight" in capsys.readouterr().out
    after = last(Path("run"))["net"]
    names = [name for name in state if not name.startswith("fc.") and "running" not in name]
    assert all(after[name].equal(state[name]) for name in names if "num_batches" not in name)


def test_weights_that_cannot_be_loaded_are_refused(
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **more: Any) -> nn.Module:
        if pretrained:
            logging.getLogger("huggingface_hub").warning("retrying")
            raise ConnectionError("no\nnetwork")
        return create(name, **more)

    monkeypatch.setattr("timm.create_model", offline)
    words = [*small, "--dropout=0", "--network=timm:test_vit", "--pretrained", "--run-dir=run"]
    assert "timm:test_vit could not be loaded (no network)" in train_refuses(capsys, *words)
    assert not caplog.records, "the error alone tells it"
    words[-2:] = ["--pretrained", "--network=timm:vit_tiny_patch16_224.none", "--run-dir=run"]
    assert "did you mean" in train_refuses(capsys, *words)


@OLD
@pytest.mark.slow
def test_an_exported_network_predicts_what_the_library_does(train: Train) -> None:
    """Resizing included: an ONNX file and its metadata give timm's scores of photographs."""
    theirs = timm.create_model("test_efficientnet", num_classes=3).eval()
    for module in theirs.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.0)
    torch.save({"state_dict": theirs.state_dict(), "classes": example.CLASSES}, "weights.pt")
    words = ["--network=timm:test_efficientnet", "--img-size=160", "--dropout=0", "--lr=0"]
    words += ["--weights=weights.pt", "--hold-norms", "--epochs=1"]
    assert train("run", *words) == 0
    out = ["--format=onnx", "--out=model.onnx"]
    assert status(export.main, "export.py", "--checkpoint=run", *out) == 0
    Path("photos").mkdir()
    for i, (width, height) in enumerate(SIZES):
        photo(width, height).save(f"photos/{i}.jpg")
    words = ["--checkpoint=model.onnx", "--device=cpu", "--precision=fp32", "photos"]
    assert status(predict.main, "predict.py", *words) == 0
    config = timm.data.resolve_model_data_config(theirs)
    transform = timm.data.create_transform(**config, is_training=False)
    with open("predictions.csv", encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["file"])
    with torch.no_grad():
        images = [transform(Image.open(row["file"])) for row in rows]
        wanted = theirs(torch.stack(images)).softmax(dim=1)
    assert len(rows) == len(SIZES) and wanted.std() > 1e-3
    for row, probabilities in zip(rows, wanted, strict=True):
        best = int(probabilities.argmax())
        assert row["class"] == example.CLASSES[best]
        assert float(row["probability"]) == pytest.approx(float(probabilities[best]), abs=1e-4)
