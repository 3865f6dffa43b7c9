"""Weights to start from: which tensors of a file fit, and whose head it is."""

import io
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from engine.checkpoint import Damaged, load
from engine.errors import BadInput
from engine.weights import load_fitting

CAT_DOG = {"classes": {"cat": 3, "dog": 4}}


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


class Net(nn.Module):
    """Two convolutions, a norm and a head."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3)
        self.model = nn.Sequential(nn.Conv2d(width, width, 1))  # a name that wrappers have, too
        self.head = nn.Linear(width, 2)


def weights(value: float = 5.0) -> dict[str, Tensor]:
    """Those of a Net, all of one value."""
    return {name: torch.full_like(tensor, value) for name, tensor in Net().state_dict().items()}


def start(state: Any, info: dict[str, Any] | None = None) -> Net:
    """A Net that starts from what is saved as w.pt."""
    torch.save(state, "w.pt")
    network = Net()
    load_fitting({"net": network}, "w.pt", {}, info or {})
    return network


def values(network: Net) -> set[float]:
    return {float(tensor.float().mean()) for tensor in network.state_dict().values()}


def put(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "net.", "backbone.", "_orig_mod.", "module._orig_mod.model.", "any."],
)
def test_what_wrappers_put_in_front_is_left_out(prefix: str) -> None:
    state = put(prefix)(weights()) | {"criterion.weight": torch.ones(2)}
    assert values(start({"state_dict": state, "epoch": 3})) == {5.0}


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("params", "params_ema"),
        ("student", "teacher"),
    ],
)
def test_averaged_weights_are_preferred(
    capsys: pytest.CaptureFixture[str], plain: str, averaged: str
) -> None:
    for place in (put(""), put("module.")):
        assert values(start({averaged: place(weights()), plain: weights(7.0)})) == {5.0}
        assert f"(the averaged ones, {averaged}" in capsys.readouterr().out
    both = put("student.")(weights(7.0)) | put("ema_net.")(weights())
    assert values(start(both)) == {5.0}


def test_averages_without_statistics_get_those_of_the_network() -> None:
    few = {name: value for name, value in weights().items() if "running" not in name}
    network = start({"model": weights(7.0), "ema": few})
    assert network.norm.running_mean is not None
    assert network.norm.running_mean.mean() == 7.0 and network.first.weight.mean() == 5.0


def test_averages_of_another_network_are_not_preferred() -> None:
    other = {name: torch.zeros(9) for name in weights()}
    assert values(start({"model": weights(), "ema": other})) == {5.0}


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (CAT_DOG, ""),
        ({"classes": {"cat": 9, "dog": 9}}, ""),
        ({"classes": {"dog": 3, "cat": 4}}, "head at random: it was trained for dog, cat"),
        ({"classes": {"a": 1, "b": 1}}, "head at random: it was trained for a, b"),
        ({}, "head at random: the file does not say which classes it was trained for"),
        ({"more": [1]}, "head at random: the file does not say which classes"),
    ],
)
def test_a_head_is_taken_for_the_same_classes_in_the_same_order(
    capsys: pytest.CaptureFixture[str], info: dict[str, Any], told: str
) -> None:
    own = {"net": weights(), "n_iter": 1, "args": {}, "info": info}
    network = start(own, CAT_DOG)
    said = capsys.readouterr().out
    assert (network.head.weight.mean() == 5.0) == (not told)
    assert network.first.weight.mean() == 5.0
    assert told in said and ("random" in said) == bool(told)
    network = start(own)  # data without names fit any head
    assert network.head.weight.mean() == 5.0


def test_what_others_say_of_their_classes_counts(capsys: pytest.CaptureFixture[str]) -> None:
    named = {"state_dict": weights(), "classes": ["cat", "dog"]}
    assert start(named, CAT_DOG).head.weight.mean() == 5.0
    assert start({"state_dict": weights()}, CAT_DOG).head.weight.mean() != 5.0
    assert "head at random" in capsys.readouterr().out
    save_file(weights(), "w.safetensors")
    for text, same in (('{"classes": ["cat", "dog"]}', True), ("[]", False), ("no JSON", False)):
        Path("w.json").write_text(text)
        network = Net()
        load_fitting({"net": network}, "w.safetensors", {}, CAT_DOG)
        assert (network.head.weight.mean() == 5.0) == same


def test_few_tensors_that_fit_by_chance_are_refused() -> None:
    """The norms of a wider network have the names and shapes, its convolutions have not."""
    other = {n: value if value.dim() < 2 else torch.zeros(9, 9) for n, value in weights().items()}
    with pytest.raises(BadInput, match=r"^--weights w\.pt: fewer than half of the convolutions"):
        start(other)
    most = {**weights(), "second.weight": torch.zeros(9)}
    assert start(most).first.weight.mean() == 5.0
    with pytest.raises(BadInput, match="holds no state dict"):
        start({"epoch": 3})


@pytest.mark.parametrize(
    "beside",
    [Namespace(lr=1), np.float64(1), np.zeros(3), np.dtype("float32"), Path("x"), {1, 2}],
    ids=lambda beside: type(beside).__name__,
)
def test_what_can_run_no_code_may_stand_beside_the_weights(beside: Any) -> None:
    assert values(start({"model": weights(), "args": beside})) == {5.0}


class Unknown:
    """A class of somebody's training program."""


def test_what_could_run_code_is_named() -> None:
    with pytest.raises(BadInput, match=r"holds more than tensors .*Unknown.* could run code"):
        start({"model": weights(), "args": Unknown()})


def test_the_words_for_averages_are_whole_ones() -> None:
    """`semantic_branch` and `swav` are no averages."""
    both = put("semantic_branch.")(weights(7.0)) | put("net.")(weights())
    assert values(start(both)) == {5.0}


def test_what_of_a_file_is_not_used_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    start(weights() | {"third.weight": torch.ones(2, 2, 3, 3)})
    assert "; not used: third.weight" in capsys.readouterr().out


def test_weights_that_are_not_finite_are_refused() -> None:
    state = weights()
    state["first.weight"][0] = float("nan")
    with pytest.raises(BadInput, match=r"first\.weight not finite"):
        start(state)


def test_classes_that_are_numbered_are_in_the_order_of_the_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    start({"state_dict": weights(), "classes": {"dog": 1, "cat": 0}}, CAT_DOG)
    assert "head at random" not in capsys.readouterr().out
    start({"state_dict": weights(), "classes": {"cat": 1, "dog": 0}}, CAT_DOG)
    assert "head at random: it was trained for dog, cat" in capsys.readouterr().out
    many = {f"class {i}": i for i in range(12)}  # "10" is before "2" by its text
    numbered = dict(reversed(many.items()))
    start({"state_dict": weights(), "classes": numbered}, {"classes": dict.fromkeys(many, 5)})
    assert "head at random" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; fetch its file"),
        (b"<!DOCTYPE html><html></html>", "a page of HTML"),
        (b'{"weight_map": {}}', "a text"),
        (bytes(99), "nothing but zeros"),
        (zipped(dict.fromkeys(["a.txt", "b", "c"], b"")), "an archive of a.txt, b and 1 more"),
        (zipped({"first.weight.npy": b"x"}), "arrays of NumPy"),
        (zipped({"w/data.pkl": b"x" * 99})[:-30], "cut off"),
        (zipped({"w/data.pkl": b"x", "w/constants.pkl": b"x"}), "a TorchScript file; save"),
        (b"\x1f\x8b\x08\0", "an archive; unpack it"),
        (bytes(257) + b"ustar\0" + bytes(9), "an archive; unpack it"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX file"),
        (b"\x89PNG\r\n\x1a\n", "an image$"),
        (b"\xfe\xff\x01", "of no kind that is known"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_is_no_file_of_weights_is_called_what_it_is(
    name: str, content: bytes, told: str
) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"^--weights {name}: {told}"):
        load_fitting({"net": Net()}, name, {}, {})
    with pytest.raises(Damaged, match=rf"^{name}: damaged or not a checkpoint: {told}"):
        load(Path(name))


@pytest.mark.parametrize("end", ["pt", "pth", "bin", "safetensors", "model"])
@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_a_file_is_read_by_its_bytes_and_not_by_its_ending(end: str, kind: str) -> None:
    path = Path(f"w.{end}")
    if kind == "safetensors":
        save_file(weights(), path)
    else:
        torch.save(weights(), path, _use_new_zipfile_serialization=kind == "zip")
    network = Net()
    load_fitting({"net": network}, str(path), {}, {})
    assert values(network) == {5.0}
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadInput, match=r"^--weights w\.\w+: cut off"):
        load_fitting({"net": network}, str(path), {}, {})


def test_a_flipped_bit_is_found() -> None:
    torch.save(weights(), "w.pt")
    content = bytearray(Path("w.pt").read_bytes())
    content[content.find(b"\0\0\xa0\x40" * 4)] ^= 1  # of a value 5
    Path("w.pt").write_bytes(content)
    with pytest.raises(BadInput, match=r"^--weights w\.pt: damaged at "):
        load_fitting({"net": Net()}, "w.pt", {}, {})


def listed(value: float = 5.0) -> list[Tensor]:
    """The parameters of a Net, as torch_ema keeps them."""
    return [torch.full_like(parameter, value).detach() for parameter in Net().parameters()]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_averages_without_names_are_those_of_the_state_dict_beside_them(
    capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    ema = {"decay": 0.9, "num_updates": 3, "shadow_params": listed(), "collected_params": None}
    network = start({"model": put(prefix)(weights(7.0)), "ema": ema})
    assert {float(p.detach().mean()) for p in network.parameters()} == {5.0}
    assert network.norm.running_var is not None and network.norm.running_var.mean() == 7.0
    assert "(the averaged ones, ema.shadow_params" in capsys.readouterr().out
    ema["shadow_params"] = listed()[::-1]
    assert values(start({"model": put(prefix)(weights(7.0)), "ema": ema})) == {7.0}
    assert "ema.shadow_params: not used, as these tensors have no names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"shadow_params": listed()}, r"holds no state dict; shadow_params \(10 tensors\) have no"),
        (listed(), "a list of 10 tensors, which have no names"),
        (torch.zeros(3), "a tensor without a name"),
        (torch.optim.SGD(Net().parameters()).state_dict(), "no state dict; its tensors are those"),
        ({"opt": {"state": {0: listed()}, "param_groups": []}}, "are those of an optimizer"),
        (None, "holds no state dict$"),
        ({"epoch": 3}, "holds no state dict$"),
    ],
)
def test_what_has_no_names_is_told(state: Any, told: str) -> None:
    with pytest.raises(BadInput, match=f"^--weights w.pt: .*{told}"):
        start(state)


def test_state_dicts_in_tuples_and_of_arrays_are_read() -> None:
    assert values(start((OrderedDict(weights()), 3))) == {5.0}
    assert values(start([{"net": weights()}])) == {5.0}
    assert values(start({name: tensor.numpy() for name, tensor in weights().items()})) == {5.0}
