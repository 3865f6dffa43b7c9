"""What a sample is: which files are images, in which split they are, how they become tensors."""

import os
import pickle
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import example
import numpy as np
import pytest
import torch
from conftest import Train
from needs import needs
from PIL import Image
from programs import same_weights
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

import dataset
import options
from engine.data.cache import use_cache
from engine.data.sampler import SeededDataset
from engine.errors import BadInput
from engine.inference.predictions import ImageFiles

ClassFolders = needs("dataset.ClassFolders")
CLASSES = list(example.CLASSES)
INFO = {"classes": CLASSES}


def opt(folder: Path | str, *words: str) -> Namespace:
    return options.parse([f"--data={folder}", "--img-size=16", "--flip", *words])


def load(folder: Path, *words: str, split: str = "train") -> Any:
    """All images of a split; none is set aside, and none is changed."""
    return ClassFolders(folder / split, opt(folder, *words))


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set, to be changed."""
    return shutil.copytree(images, tmp_path / "copy", ignore=shutil.ignore_patterns(".cache"))


# Files and samples.


def test_samples_are_bytes_with_a_label(images: Path) -> None:
    samples = load(images, "--img-size=20")
    image, label = samples[0]
    assert (image.dtype, image.shape) == (torch.uint8, (3, 20, 20))
    assert (label.dtype, label.item()) == (torch.int64, 0)
    assert samples.classes == CLASSES
    assert samples.info == {"classes": dict.fromkeys(CLASSES, 8)}
    assert [int(samples[i][1]) for i in range(24)] == [0] * 8 + [1] * 8 + [2] * 8


def test_a_size_that_fits_leaves_the_pixels_alone(images: Path) -> None:
    samples = load(images, split="test")
    file = np.asarray(Image.open(samples.root / samples.names()[5]))
    assert samples[5][0].numpy().transpose(1, 2, 0).tolist() == file.tolist()


def test_hidden_files_and_folders_are_ignored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "train/disc/0.png", folder / "train/.ipynb_checkpoints/0.png")
    (folder / "train" / "disc" / "._0.png").write_text("left by macOS")
    (folder / "train" / "disc" / ".DS_Store").write_text("")
    assert len(load(folder)) == 24
    assert capsys.readouterr().err == ""


def test_hidden_folders_inside_a_class_are_ignored(folder: Path) -> None:
    """Jupyter puts a copy of what it opens into .ipynb_checkpoints."""
    hidden = folder / "train" / "disc" / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copy(folder / "train/disc/0.png", hidden / "0-checkpoint.png")
    assert len(load(folder)) == 24
    assert len(ImageFiles([str(folder / "train")], lambda path: torch.empty(0))) == 24


def test_files_that_are_no_images_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train" / "disc" / "notes.txt").write_text("")
    (folder / "index.csv").write_text("")
    assert sum(map(len, dataset.train_and_val(opt(folder)))) == 24
    warning = capsys.readouterr().err
    assert warning == f"warning: {folder}: not used: index.csv, train/disc/notes.txt\n"


def test_subfolders_and_capital_endings_count(folder: Path) -> None:
    (folder / "train" / "disc" / "more").mkdir()
    shutil.copy(folder / "train/disc/0.png", folder / "train/disc/more/X.PNG")
    assert load(folder).info["classes"]["disc"] == 9


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_any_file_name_will_do(images: Path, folder: Path) -> None:
    names = ["Löwe 100%.png", "new\nline.png", os.fsdecode(b"latin\xe9.png")]
    for name in names:
        shutil.copy(folder / "train/disc/0.png", folder / "train" / "disc" / name)
    samples = load(folder)
    assert samples.fingerprint() != load(images).fingerprint()
    assert len([samples[i] for i in range(len(samples))]) == 27


def test_the_fingerprint_is_of_the_names_alone(images: Path, folder: Path) -> None:
    before = load(images).fingerprint()
    assert load(folder).fingerprint() == before
    (folder / "train" / "disc" / "0.png").rename(folder / "train" / "disc" / "zero.png")
    assert load(folder).fingerprint() != before


# The splits.


def names(samples: Any) -> set[str]:
    return {f"{samples.root}/{file}" for file in samples.names()}


def test_a_share_of_each_class_is_set_aside_to_validate_on(images: Path) -> None:
    everything = names(load(images))
    for share, at_least in ((0.001, 1), (0.5, 2), (0.9, 4)):
        train, val = dataset.train_and_val(opt(images, f"--val-share={share}"))
        assert not names(train) & names(val)
        assert names(train) | names(val) == everything
        for name in CLASSES:
            counts = [part.info["classes"][name] for part in (train, val)]
            assert sum(counts) == 8
            assert counts[0] >= 1 and counts[1] >= at_least
    assert train.fingerprint() != val.fingerprint() != load(images).fingerprint()


def test_labels_and_images_go_with_the_files_of_a_split(images: Path) -> None:
    whole = load(images)
    samples = dict(zip(whole.names(), whole, strict=False))
    for part in dataset.train_and_val(opt(images)):
        part.transforms = []
        for i, file in enumerate(part.names()):
            assert part[i][0].equal(samples[file][0])
            assert part[i][1] == samples[file][1] == CLASSES.index(file.split("/")[0])


def test_new_files_move_no_old_one_to_the_other_side(folder: Path) -> None:
    before = [names(part) for part in dataset.train_and_val(opt(folder, "--val-share=0.4"))]
    for i in range(8):
        shutil.copy(folder / f"train/disc/{i}.png", folder / f"train/disc/{i}-new.png")
    after = [names(part) for part in dataset.train_and_val(opt(folder, "--val-share=0.4"))]
    assert before[0] <= after[0] and before[1] <= after[1]
    assert all(len(a) > len(b) for a, b in zip(after, before, strict=True))


def test_a_folder_val_is_used_if_there_is_one(folder: Path) -> None:
    (folder / "test").rename(folder / "val")  # a run needs no test/
    for name in CLASSES:  # now one image of a class is enough
        for i in range(1, 8):
            (folder / "train" / name / f"{i}.png").unlink()
    train, val = dataset.train_and_val(opt(folder))
    assert (train.root, val.root) == (folder / "train", folder / "val")
    assert (len(train), len(val)) == (3, 12)


def test_a_class_of_one_image_cannot_be_divided(folder: Path) -> None:
    for i in range(1, 8):
        (folder / "train" / "disc" / f"{i}.png").unlink()
    with pytest.raises(BadInput, match=r"train: only one image in disc,.* val/"):
        dataset.train_and_val(opt(folder))


def test_a_class_may_have_no_images_to_be_tested_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "test" / "disc")
    (folder / "test" / "disc").mkdir()
    samples = dataset.eval_set(opt(folder), INFO, "test")
    assert samples.info == {"classes": {"columns": 4, "disc": 0, "rows": 4}}
    assert samples.labels.tolist() == [0] * 4 + [2] * 4
    assert f"warning: {folder / 'test'}: no images of disc" in capsys.readouterr().err
    with pytest.raises(BadInput, match="missing: 'disc'"):
        (folder / "train").rename(folder / "other")
        (folder / "test").rename(folder / "train")
        shutil.rmtree(folder / "train" / "disc")
        dataset.eval_set(opt(folder), INFO, "train")


def test_every_split_can_be_evaluated(folder: Path) -> None:
    def evaluated(split: str) -> set[str]:
        return names(dataset.eval_set(opt(folder), INFO, split))

    train, val = dataset.train_and_val(opt(folder))
    assert evaluated("test") == names(load(folder, split="test"))
    assert (evaluated("train"), evaluated("val")) == (names(train), names(val))
    shutil.copytree(folder / "test", folder / "val")
    assert evaluated("val") == names(load(folder, split="val"))
    for split in ("train", "val", "test"):
        with pytest.raises(BadInput, match="missing: 'stars'; unknown: 'rows'"):
            dataset.eval_set(opt(folder), {"classes": ["columns", "disc", "stars"]}, split)


@pytest.mark.parametrize(
    ("size", "words", "told"),
    [
        ((150, 90), [], "150x90 pixels (the first), resized to 32x32;\n  most of their detail"),
        ((64, 64), [], "--img-size 64 keeps more"),
        ((500, 375), [], "--img-size 224 keeps more"),
        ((500, 375), ["--resize=crop"], "500x375 pixels (the first), cropped to 32x32;"),
        ((63, 400), [], "63x400 pixels (the first), resized to 32x32\n"),
        ((8, 8), [], "8x8 pixels (the first), enlarged to 32x32\n"),
        ((8, 8), ["--img-size=224"], "enlarged to 224x224;\n  a smaller --img-size shows as much"),
        ((900, 600), ["--img-size=224"], "900x600 pixels (the first), resized to 224x224\n"),
    ],
)
def test_sizes_that_are_far_apart_are_mentioned(
    folder: Path, size: tuple[int, int], words: list[str], told: str
) -> None:
    for path in (folder / "train").rglob("*.png"):
        Image.new("RGB", size).save(path)
    chosen = options.parse([f"--data={folder}", "--img-size=32", *words])
    text = dataset.describe(*dataset.train_and_val(chosen), chosen) + "\n"
    assert text.startswith(f"data: {folder}, {len(CLASSES)} classes, ")
    assert told in text


# Random changes.


def augmented(*batch: Tensor, words: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    info = {"classes": dict.fromkeys(CLASSES, 8)}
    return dataset.augment(opt("none", *words), info, torch.Generator().manual_seed(0), *batch)


def test_training_images_are_mirrored_and_moved_if_wanted(images: Path) -> None:
    needs("--shift")
    samples = load(images)
    batch = default_collate([samples[i] for i in range(24)])
    still, labels = augmented(*batch, words=("--no-flip",))
    assert still.equal(batch[0])
    assert labels.equal(batch[1])
    mirrored, labels = augmented(*batch, words=("--flip",))
    assert labels.equal(batch[1])
    pairs = list(zip(mirrored, still, strict=True))
    whether = [changed.equal(image.flip(-1)) for changed, image in pairs]
    assert 4 < sum(whether) < 20
    assert all(
        changed.equal(image) for changed, image in pairs if not changed.equal(image.flip(-1))
    )
    moved, labels = augmented(*batch, words=("--no-flip", "--shift=3"))
    assert labels.equal(batch[1])
    assert moved.shape == still.shape
    assert sum(not a.equal(b) for a, b in zip(moved, still, strict=True)) > 20
    assert not augmented(*batch, words=("--flip", "--shift=3"))[0].equal(moved)


def change_each_image(options: Namespace) -> list[v2.Transform]:
    return [
        v2.RandomResizedCrop(options.img_size, antialias=True),
        v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        v2.RandomHorizontalFlip(),
    ]


def change_no_image(options: Namespace) -> list[v2.Transform]:
    return []


@pytest.fixture(scope="module")
def jittered(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose images are changed one by one, by transforms of torchvision."""
    run = tmp_path_factory.mktemp("jittered") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "random_transforms", change_each_image)
        assert train(run) == 0
    return run


@pytest.mark.parametrize("cache", ["--cache", "--no-cache"])
@pytest.mark.parametrize("workers", [0, 2])
def test_any_transform_is_exact(
    train: Train,
    jittered: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: str,
    workers: int,
) -> None:
    monkeypatch.setattr(dataset, "random_transforms", change_each_image)
    assert train("run", cache, f"--workers={workers}") == 0
    assert same_weights(Path("run"), jittered)
    assert not same_weights(Path("run"), finished)


def test_random_transforms_are_for_training_alone(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "random_transforms", change_each_image)
    train, val = dataset.train_and_val(opt(images))
    unchanged = [dataset.eval_set(opt(images), INFO, split) for split in ("train", "val")]
    assert train.names() == unchanged[0].names()
    assert not any(train[i][0].equal(unchanged[0][i][0]) for i in range(12))
    assert all(val[i][0].equal(unchanged[1][i][0]) for i in range(len(val)))
    for split, samples in (("train", unchanged[0]), ("val", unchanged[1])):
        assert len(samples), split
        whole = load(images)
        files = whole.names()
        for i, file in enumerate(samples.names()):
            assert samples[i][0].equal(whole[files.index(file)][0])
    test, plain = dataset.eval_set(opt(images), INFO, "test"), load(images, split="test")
    assert all(test[i][0].equal(plain[i][0]) for i in range(12))


# The cache, and other processes.


def test_the_cache_follows_what_an_image_depends_on(images: Path) -> None:
    names = {load(images).images.name()}
    names.add(load(images, "--img-size=17").images.name())
    names.add(load(images, "--no-flip").images.name())  # flips come later
    assert len(names) == 2


@pytest.mark.parametrize("transforms", [change_no_image, change_each_image])
@pytest.mark.parametrize("cached", [False, True])
def test_data_sets_can_be_sent_to_workers(
    images: Path, monkeypatch: pytest.MonkeyPatch, cached: bool, transforms: Any
) -> None:
    monkeypatch.setattr(dataset, "random_transforms", transforms)
    train, _ = dataset.train_and_val(opt(images))
    use_cache([train], "on" if cached else "off", 2, torch.device("cpu"))
    received = pickle.loads(pickle.dumps(train))
    keys = torch.tensor([3, 12]), torch.tensor([7, 8])
    samples = []
    for samples_of in (train, received):
        samples += SeededDataset(samples_of).__getitems__(keys)
    assert samples[0].equal(samples[2])
    assert samples[1].equal(samples[3])
    random = transforms is change_each_image
    assert (train.batch(torch.tensor([0])) is None) == (random or not cached)


def test_batches_of_the_cache_are_those_of_the_files(images: Path) -> None:
    """Of a split too, whose rows are not those of the cache."""
    for samples in dataset.train_and_val(opt(images)):
        samples.transforms = []
        one_by_one = default_collate([samples[i] for i in (2, 0, 1)])
        use_cache([samples], "on", 2, torch.device("cpu"))
        at_once = samples.batch(torch.tensor([2, 0, 1]))
        assert at_once is not None
        assert all(a.equal(b) for a, b in zip(at_once, one_by_one, strict=True))


def test_images_are_not_decoded_again_in_a_second_run(
    train: Train, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("first", f"--data={folder}") == 0
    read: list[str] = []
    open_image = Image.open

    def note(path: str) -> Image.Image:
        read.append(path)
        return open_image(path)

    monkeypatch.setattr(Image, "open", note)
    assert train("second", f"--data={folder}") == 0
    # Of 24 a few, to see whether they are what the cache holds; the first one of each class, to see
    # whether they are classes; and the first one of all.
    assert len(read) < 12
    assert same_weights(Path("first"), Path("second"))
