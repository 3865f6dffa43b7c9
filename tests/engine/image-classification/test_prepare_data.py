"""tools/prepare_data.py: data sets of torchvision, made up here as they are published."""

import bz2
import gzip
import inspect
import json
import sys
from pathlib import Path

import example
import numpy as np
import pytest
from needs import needs
from PIL import Image
from programs import files, status
from torchvision.datasets import DTD

import options
import train
from dataset import ClassFolders

prepare_data = needs("tools.prepare_data")


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture
def fashion() -> np.ndarray:
    """FashionMNIST with two images of each class in each split; returns those for training."""
    random = np.random.default_rng(0)
    folder = Path("published")
    folder.mkdir()
    pixels = random.integers(0, 256, (40, 28, 28))
    for name, split in (("train", pixels[:20]), ("t10k", pixels[20:])):
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", split)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", np.arange(20) % 10)
    return pixels[:20]


def prepared(name: str, *words: str) -> Path:
    assert status(prepare_data.main, "prepare_data.py", name, "--root=published", *words) == 0
    return Path("data") / name


def test_packed_files_of_the_mnist_family(fashion: np.ndarray) -> None:
    folder = prepared("FashionMNIST")
    opt = options.parse([f"--data={folder}"])
    train, test = (ClassFolders(folder / split, opt) for split in ("train", "test"))
    assert train.classes == test.classes
    assert "T-shirt-top" in train.classes  # whose name has a slash
    assert (len(train), len(test)) == (20, 20)
    names = ["T-shirt-top", "Trouser", "Pullover", "Dress", "Coat"]
    names += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    for i, pixels in enumerate(fashion):
        file = folder / "train" / names[i % 10] / f"{i:06d}.png"
        assert np.asarray(Image.open(file)).tolist() == pixels.tolist()
    about = json.loads((folder / "dataset.json").read_text())
    assert about["name"] == "FashionMNIST"
    assert about["flip"] is True
    assert [path.name for path in Path("data").iterdir()] == ["FashionMNIST"]
    assert len(list(Path("published").iterdir())) == 4  # as before


def test_a_data_set_that_a_mirror_changes_says_so(fashion: np.ndarray) -> None:
    folder = prepared("MNIST", "--out=data/MNIST")
    assert json.loads((folder / "dataset.json").read_text())["flip"] is False


def test_files_are_copied_unchanged() -> None:
    if "loader" not in inspect.signature(DTD).parameters:
        pytest.skip("this torchvision gives no names of files: images are written as PNG")
    root = Path("published/dtd/dtd")
    (root / "labels").mkdir(parents=True)
    for split, names in (("train", ["0", "1"]), ("test", ["2"])):
        lines = []
        for kind in ("banded", "dotted"):
            (root / "images" / kind).mkdir(parents=True, exist_ok=True)
            for name in names:
                path = root / "images" / kind / f"{kind}_{name}.jpg"
                Image.new("RGB", (9, 7), (int(name) * 50, 0, 0)).save(path)
                path.write_bytes(path.read_bytes() + b"what another program would drop")
                lines.append(f"{kind}/{path.name}\n")
        (root / "labels" / f"{split}1.txt").write_text("".join(lines))
    folder = prepared("DTD")
    copies = sorted((folder / "train" / "dotted").iterdir())
    originals = [root / "images" / "dotted" / f"dotted_{i}.jpg" for i in range(2)]
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in originals]
    assert {path.name for path in (folder / "test").iterdir()} == {"banded", "dotted"}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


@pytest.mark.parametrize("name", ["CIFAR10", "DTD", "Flowers102", "MNIST", "STL10", "SVHN", "USPS"])
def test_what_cannot_be_found_nor_downloaded_is_bad_input(
    offline: None, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert status(prepare_data.main, "prepare_data.py", name, "--root=nowhere") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert "nowhere" in error
    assert not Path("data").exists() or not list(Path("data").iterdir()), "half of it was left"


@pytest.mark.parametrize("name", ["Flowers102", "SVHN"])
def test_a_package_that_is_missing_is_named(
    offline: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    for module in ("scipy", "scipy.io"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("torchvision.datasets.Flowers102._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda self: True)
    assert status(prepare_data.main, "prepare_data.py", name, "--root=nowhere") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "scipy" in error


def test_usps_is_read_from_files_on_disk() -> None:
    Path("published").mkdir()
    line = "{} " + " ".join(f"{i + 1}:0.5" for i in range(256)) + "\n"
    for name in ("usps.bz2", "usps.t.bz2"):
        text = "".join(line.format(label) for label in (1, 2))
        Path("published", name).write_bytes(bz2.compress(text.encode()))
    folder = prepared("USPS")
    assert len(list((folder / "train").rglob("*.png"))) == 2


def test_a_damaged_download_is_named(
    fashion: np.ndarray, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("published/train-images-idx3-ubyte.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    before = files()
    words = ["FashionMNIST", "--root=published"]
    assert status(prepare_data.main, "prepare_data.py", *words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert path.name in error
    assert files().keys() - before.keys() <= {Path("data")}


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("T-shirt/top", "T-shirt-top"),
        ("C:\\x", "C--x"),
        (("tench", "Tinca tinca"), "tench"),
        ("..", "-"),
        ("Ärger & Co.", "Ärger & Co"),
    ],
)
def test_class_names_become_names_of_folders(name: str | tuple[str, ...], folder: str) -> None:
    assert prepare_data.folder_name(name) == folder


def test_what_was_prepared_can_be_trained_on(fashion: np.ndarray) -> None:
    folder = prepared("FashionMNIST")
    words = [*example.SMALL, f"--data={folder}", "--run-dir=run", "--epochs=1"]
    words += ["--batch-size=5", "--device=cpu", "--workers=0"]
    assert status(train.main, "train.py", *words) == 0
