"""Edits that an owner has begun and not finished: one line says what is missing."""

import pytest
import torch
from programs import train_refuses
from torchvision.transforms import v2

import dataset
import losses
import networks


@pytest.mark.parametrize(
    ("transform", "culprit"), [(v2.Grayscale(), "(1, 16, 16)"), (v2.CenterCrop(8), "(3, 8, 8)")]
)
def test_random_transforms_have_to_keep_the_shape(
    small: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    transform: v2.Transform,
    culprit: str,
) -> None:
    monkeypatch.setattr(dataset, "random_transforms", lambda opt: [transform])
    line = train_refuses(capsys, *small)
    assert "random_transforms" in line and culprit in line


def test_random_transforms_have_to_keep_the_type(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values in [0, 1] would train without an error, and validation would see [0, 255]."""
    convert = v2.ToDtype(torch.float32, scale=True)
    monkeypatch.setattr(dataset, "random_transforms", lambda opt: [convert])
    line = train_refuses(capsys, *small)
    assert "random_transforms" in line and "torch.float32" in line


def test_a_name_without_its_network(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "NETWORKS", (*networks.NETWORKS, "mine"))
    line = train_refuses(capsys, *small, "--network=mine")
    assert "--network mine" in line and "make_network" in line


def test_a_name_without_its_loss(
    small: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("options.LOSSES", (*losses.LOSSES, "mine"))
    line = train_refuses(capsys, *small, "--loss=mine")
    assert "--loss mine" in line and "make_loss" in line
