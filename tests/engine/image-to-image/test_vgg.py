"""VGG19 for the perceptual loss: its layers, its weights, and what is no file of weights."""

import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from needs import needs
from ours import save_vgg19
from torch import nn

from engine.errors import BadInput
from task.vgg import read_vgg19

Vgg19 = needs("networks.Vgg19")


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vgg19(tmp_path_factory.mktemp("vgg") / "vgg19.pth")


@pytest.fixture(scope="session")
def vgg(vgg_file: Path) -> Any:
    return Vgg19(read_vgg19(str(vgg_file)))


def test_vgg_returns_three_slices(vgg: Any) -> None:
    outputs = vgg(torch.rand(2, 3, 32, 48) * 2 - 1)
    shapes = [tuple(output.shape) for output in outputs]
    assert shapes == [(2, 128, 16, 24), (2, 512, 4, 6), (2, 512, 2, 3)]
    assert all(output.min() >= 0 for output in outputs)


def test_vgg_gives_what_torchvision_computes(vgg: Any, vgg_file: Path) -> None:
    """The slices one after the other are the layers of the file, for values normalised as there."""
    state = torch.load(vgg_file, weights_only=True)
    images = torch.rand(1, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)
    wanted = []
    for index in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28):
        if index in (5, 10, 19, 28):
            x = nn.functional.max_pool2d(x, 2)
        weight, bias = state[f"features.{index}.weight"], state[f"features.{index}.bias"]
        x = nn.functional.conv2d(x, weight, bias, padding=1).relu()
        if index in (5, 19, 28):
            wanted.append(x)
    for seen, right in zip(vgg(images * 2 - 1), wanted, strict=True):
        assert right.max() > 0
        assert seen.allclose(right, rtol=1e-3, atol=1e-4)


def test_vgg_is_frozen_and_lets_gradients_through(vgg: Any) -> None:
    nn.Sequential(vgg).train()
    assert not [part for part in vgg.modules() if part.training]
    assert list(vgg.parameters())
    assert not [p for p in vgg.parameters() if p.requires_grad]
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    vgg(images)[2].sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


def test_weights_of_the_features_alone_are_enough(vgg: Any, vgg_file: Path) -> None:
    state = torch.load(vgg_file, weights_only=True)
    short = {n.removeprefix("features."): v.half() for n, v in state.items() if "features" in n}
    torch.save(short, "short.pth")
    weights = read_vgg19("short.pth").state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert weights["0.weight"].allclose(vgg.state_dict()["slice1.0.weight"], atol=1e-3)
    assert weights["28.weight"].allclose(vgg.state_dict()["slice3.28.weight"], atol=1e-3)


def test_vgg_leaves_the_random_numbers_alone(vgg_file: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Vgg19(read_vgg19(str(vgg_file)))
    assert torch.get_rng_state().equal(before)


def spoiled(vgg_file: Path, how: str) -> object:
    state = torch.load(vgg_file, weights_only=True)
    if how == "missing":
        del state["features.28.bias"]
    elif how == "shape":
        state["features.0.weight"] = torch.zeros(64, 4, 3, 3)
    elif how == "text":
        state["features.0.weight"] = "text"
    elif how == "list":
        return [1, 2]
    return state


@pytest.mark.parametrize("how", ["missing", "shape", "text", "list"])
def test_weights_of_another_network_are_bad_input(vgg_file: Path, how: str) -> None:
    torch.save(spoiled(vgg_file, how), "other.pth")
    with pytest.raises(BadInput, match=r"^--vgg-weights other.pth: no features\.\d+\.\w+ of shape"):
        read_vgg19("other.pth")


@pytest.mark.parametrize(
    "content", [b"", b"no weights", pickle.dumps(Path("x"), protocol=2), "half"]
)
def test_a_damaged_file_is_bad_input(vgg_file: Path, content: bytes | str) -> None:
    whole = vgg_file.read_bytes()
    data = whole[: len(whole) // 2] if isinstance(content, str) else content
    Path("damaged.pth").write_bytes(data)
    with pytest.raises(BadInput, match=r"^--vgg-weights damaged.pth: damaged") as caught:
        read_vgg19("damaged.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_a_missing_file_is_bad_input(name: str) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_vgg19(name)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (URLError("no network"), "could not be downloaded"),
        (TimeoutError("timed out"), "could not be downloaded"),
        (RuntimeError('invalid hash value (expected "dcbb9e9d", got "0")'), "damaged"),
    ],
)
def test_without_a_network_one_line_says_what_to_do(
    error: Exception, named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[object] = []

    def download(*arguments: object, **more: object) -> None:
        asked.extend([*arguments, *more.values()])
        raise error

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=f"^--vgg-weights download: .*{named}") as caught:
        read_vgg19("download")
    assert "--vgg-weights none" in str(caught.value)
    assert "vgg19" in str(asked[0])
    assert "dcbb9e9d" in asked  # the start of the file's checksum, which is checked


def test_a_damaged_file_from_an_earlier_download_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "vgg19-dcbb9e9d.pth").write_bytes(b"half")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=r"delete it from .*checkpoints"):
        read_vgg19("download")
