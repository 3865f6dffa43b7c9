"""Augmentation by options: each is exact; what crops and mixed batches are."""

import csv
import signal
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Train
from example import CLASSES, draw
from marks import slow_after
from needs import needs
from PIL import Image
from programs import PATIENCE, at_step, resume, same_weights, status, train_refuses
from test_processes import STEP, torchrun
from torch import Generator, Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

import dataset
import options
import predict
import test
from engine.arguments import config_text
from engine.data.cache import use_cache
from engine.errors import BadInput
from model import Model
from task.augmentation import check_eval_size, chosen_transforms, mix
from task.classes import label_captions

needs("dataset.ClassFolders")
CPU = torch.device("cpu")
LEVERS = [
    "--resize=crop --crop-min=0.1 --val-img-size=20",
    "--trivial-augment",
    "--color-jitter=0.4",
    "--erasing=0.5",
    "--mixup=1",
    "--cutmix=1",
    "--mixup=1 --cutmix=1",
    "--resize=crop",
]
CROP = ["--resize=crop", "--img-size=28", "--val-img-size=28", "--flip"]


def opt(*words: str) -> Namespace:
    return options.parse(["--flip", *words])


def random(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# Exactness.


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of images of many sizes, some smaller than what is cut out."""
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(1)
    for split, count in (("train", 8), ("test", 3)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                size = int(draws.integers(9, 40)), int(draws.integers(9, 40))
                draw(name, draws).resize(size).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def plain(train: Train, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any of the options."""
    run = tmp_path_factory.mktemp("plain") / "run"
    assert train(run, f"--data={photos}") == 0
    return run


@pytest.mark.parametrize("lever", slow_after(1, LEVERS))
def test_workers_cache_and_a_resume_change_nothing(
    train: Train, photos: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, lever: str
) -> None:
    words = [f"--data={photos}", *lever.split()]
    assert train("one", *words, "--no-cache") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda losses: signal.raise_signal(signal.SIGTERM))
        assert train("other", *words, "--workers=1", "--cache") == 75
    assert resume(Path("other"), "--workers=2", "--no-cache") == 0
    assert same_weights(Path("one"), Path("other"))
    assert train("third", *words, "--cache", "--workers=0") == 0
    assert same_weights(Path("one"), Path("third"))
    assert not same_weights(Path("one"), plain)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="not in this build of PyTorch")
def test_processes_change_nothing(train: Train, small: list[str], photos: Path) -> None:
    words = [*" ".join(LEVERS).split(), f"--data={photos}", "--epochs=1"]
    assert train("one", *words, *STEP) == 0
    launcher = torchrun(2, small, *words, "--run-dir=many")
    _, errors = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 0, errors
    assert same_weights(Path("one"), Path("many"))


# Changes of single images.


def test_options_choose_the_transforms() -> None:
    assert chosen_transforms(opt()) == []
    words = ["--trivial-augment", "--color-jitter=0.3", "--erasing=0.2"]
    chosen = chosen_transforms(opt(*words))
    assert [type(transform).__name__ for transform in chosen] == [
        "TrivialAugmentWide",
        "ColorJitter",
        "RandomErasing",
    ]
    assert chosen[1].brightness == chosen[1].contrast == chosen[1].saturation == (0.7, 1.3)
    assert chosen[1].hue is None


def test_images_stay_images_and_validation_sees_no_change(images: Path) -> None:
    words = ["--trivial-augment", "--color-jitter=0.9", "--erasing=1", "--img-size=16"]
    changed, val = dataset.train_and_val(opt(f"--data={images}", *words))
    unchanged, plain_val = dataset.train_and_val(opt(f"--data={images}", "--img-size=16"))
    for i in range(len(changed)):
        image = changed[i][0]
        assert (image.dtype, image.shape) == (torch.uint8, (3, 16, 16))
        assert not image.equal(unchanged[i][0])
    assert all(val[i][0].equal(plain_val[i][0]) for i in range(len(val)))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_grey_rectangle_hides_a_part_of_some_images(share: float) -> None:
    transforms = chosen_transforms(opt(f"--erasing={share}"))
    torch.manual_seed(0)
    image, hidden = torch.zeros(3, 32, 32, dtype=torch.uint8), 0
    for _ in range(200):
        changed = v2.Compose(transforms)(image) if transforms else image
        erased = changed[0] > 0
        hidden += bool(erased.any())
        if erased.any():
            rows, columns = erased.any(dim=1).nonzero(), erased.any(dim=0).nonzero()
            part = changed[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert (part == 127).all()
            assert part[0].numel() == erased.sum() < 0.4 * 32 * 32
    assert hidden == pytest.approx(200 * share, abs=25 if 0 < share < 1 else 0)


# Mixed batches.


def four(size: int = 8) -> tuple[Tensor, Tensor]:
    """Four images of one value each, 40 apart, of three classes."""
    values = torch.tensor([0, 40, 80, 120], dtype=torch.uint8)
    return values[:, None, None, None].expand(4, 3, size, size).contiguous(), torch.tensor(
        [0, 1, 2, 1]
    )


def test_mixup_blends_images_and_labels_by_one_share() -> None:
    images, labels = four()
    shares = []
    for seed in range(200):
        mixed, targets = mix(opt("--mixup=1"), 3, random(seed), images, labels)
        assert (mixed.dtype, targets.dtype) == (torch.float32, torch.float32)
        share = targets[1, 1].item()  # of the image itself; the rest is of the one before it
        shares.append(share)
        own = torch.nn.functional.one_hot(labels, 3).float()
        assert targets.allclose(share * own + (1 - share) * own.roll(1, 0), atol=1e-6)
        blend = share * images.float() + (1 - share) * images.float().roll(1, 0)
        assert mixed.allclose(blend, atol=1e-3)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)  # Beta(1, 1) is uniform
    assert np.var(shares) == pytest.approx(1 / 12, rel=0.3)
    assert images.equal(four()[0]) and labels.equal(four()[1])


def test_cutmix_pastes_a_rectangle_whose_area_is_the_share() -> None:
    images, labels = four(16)
    for seed in range(50):
        mixed, targets = mix(opt("--cutmix=1"), 3, random(seed), images, labels)
        for i in range(4):
            own = (mixed[i] == images[i]).all(dim=0)
            other = (mixed[i] == images[i - 1]).all(dim=0)
            assert (own ^ other).all()  # nothing is blended
            expected = torch.zeros(3)
            expected[labels[i]] += own.float().mean()
            expected[labels[i - 1]] += other.float().mean()
            assert targets[i].allclose(expected, atol=1e-6)


def test_with_both_one_of_the_two_is_taken_for_each_batch() -> None:
    images, labels = four(16)
    values = set(range(0, 121, 40))
    blended = 0
    for seed in range(200):
        mixed, _ = mix(opt("--mixup=1", "--cutmix=1"), 3, random(seed), images, labels)
        blended += not set(mixed.unique().tolist()) <= values
    assert 70 < blended < 130


def test_the_seed_of_the_generator_alone_decides_and_no_device_is_waited_for() -> None:
    settings, (images, labels) = opt("--mixup=1", "--cutmix=1"), four()
    results: list[Tensor] = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(results))
        results.append(mix(settings, 3, random(seed), images, labels)[0])
    assert results[0].equal(results[1])
    assert not results[0].equal(results[2])
    # There are no values on this device that could be read.
    for seed in range(8):
        mixed, targets = mix(settings, 3, random(seed), images.to("meta"), labels.to("meta"))
        assert (mixed.device.type, targets.device.type) == ("meta", "meta")
        assert (mixed.shape, targets.shape) == (images.shape, (4, 3))


def test_what_is_mixed_has_been_mirrored_before() -> None:
    images = torch.arange(8, dtype=torch.uint8).expand(64, 3, 8, 8).contiguous()
    labels = torch.zeros(64, dtype=torch.int64)
    info = {"classes": {"one": 32, "two": 32}}
    plain, hard = dataset.augment(opt(), info, random(), images, labels)
    assert (plain.dtype, hard.dtype) == (torch.uint8, torch.int64)
    mixed, shares = dataset.augment(opt("--mixup=1"), info, random(), images, labels)
    assert shares.equal(torch.tensor([[1.0, 0.0]]).expand(64, 2))
    expected, _ = mix(opt("--mixup=1"), 2, random(), plain, labels)
    assert mixed.equal(expected)


def test_captions_name_the_classes_of_mixed_labels() -> None:
    classes = ["cat", "dog", "line\nbreak"]
    assert label_captions(torch.tensor([2, 0]), classes) == ["line break", "cat"]
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.004, 0.996, 0.0], [0.0, 1.0, 0.0], [0.0, 0.4, 0.6]])
    assert label_captions(shares, classes) == [
        "70% cat\n30% dog",
        "dog",
        "dog",
        "60% line break\n40% dog",
    ]
    assert label_captions(torch.ones(1, 1), ["only"]) == ["only"]


# Crops.


def stripes(folder: Path, width: int, height: int, period: int = 16) -> Path:
    """A data set of an image, twice, whose horizontal and vertical lines have the same period."""
    y, x = np.mgrid[:height, :width]
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 255 * (x % period < period // 2)
    pixels[..., 1] = 255 * (y % period < period // 2)
    for split in ("train", "val", "test"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(folder / split / name / "0.png")
    return folder


def period(image: Tensor, dim: int) -> float:
    """The period of the lines of a channel along a dimension, by its strongest frequency."""
    values = image[1 if dim == 1 else 0].float().mean(dim=1 if dim == 1 else 0)
    spectrum = torch.fft.rfft((values - values.mean()), n=4096).abs()
    return 4096 / int(spectrum.argmax())


@pytest.mark.parametrize("size", [(640, 160), (160, 640)])
def test_a_training_crop_is_never_squashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """The crop itself changes the aspect ratio by 4 / 3 at most; to squash would change it by 4."""
    monkeypatch.setattr(dataset, "random_transforms", lambda opt: [])
    data = stripes(tmp_path / "data", *size)
    words = [f"--data={data}", "--resize=crop", "--img-size=112", "--crop-min=0.2"]
    train_set, _ = dataset.train_and_val(opt(*words))
    ratios = []
    for seed in range(30):
        torch.manual_seed(seed)
        image = train_set[0][0]
        assert image.shape == (3, 112, 112)
        ratios.append(period(image, 1) / period(image, 2))
    assert 0.7 < min(ratios) < 0.95 and 1.05 < max(ratios) < 1.43


def test_judging_takes_the_centre_and_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    y, x = np.mgrid[:64, :192]
    pixels[(x - 95.5) ** 2 + (y - 31.5) ** 2 < 20**2] = 255  # a disc in the middle
    pixels[:, :60, 0] = pixels[:, 132:, 0] = 255  # what is beside the centre
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "val" / "a" / "0.png")
    (judged, _) = dataset.ClassFolders(tmp_path / "val", opt(*CROP), ["a"])[0]
    assert judged.shape == (3, 28, 28)
    assert judged[0].equal(judged[1])  # 28 of 32, so 56 of 64 pixels in the middle
    disc = judged[1] > 127
    rows, columns = disc.any(dim=1).nonzero(), disc.any(dim=0).nonzero()
    assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 19
    assert int(rows.min() + rows.max()) == int(columns.min() + columns.max()) == 27


def test_images_are_stored_in_their_aspect_ratio_and_never_enlarged(tmp_path: Path) -> None:
    sizes = {(640, 160): (128, 32), (160, 640): (32, 128), (10, 30): (10, 30), (40, 33): (38, 32)}
    settings = opt(*CROP)
    for size, stored in sizes.items():
        path = tmp_path / "image.jpg"
        Image.new("RGB", size).save(path)
        _, height, width = dataset.load(path, settings).shape
        assert (width, height) == stored
        assert dataset.load_eval(path, settings).shape == (3, 28, 28)
        larger = opt(*CROP, "--val-img-size=56")
        assert min(dataset.load(path, larger).shape[1:]) == min(64, *size)
        assert dataset.load_eval(path, larger).shape == (3, 56, 56)


def test_without_crops_nothing_has_changed(images: Path, tmp_path: Path) -> None:
    path = next((images / "test").rglob("*.png"))
    expected = v2.functional.resize(Image.open(path), [20, 20])
    for found in (dataset.load, dataset.load_eval):
        image = found(path, opt("--img-size=20"))
        assert image.equal(v2.functional.pil_to_tensor(expected))


def test_an_epoch_reads_no_file_of_an_image_that_is_cached(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_set, val_set = dataset.train_and_val(opt(f"--data={photos}", *CROP))
    torch.manual_seed(0)
    before = default_collate([train_set[i][0] for i in range(9)])
    judged = default_collate([val_set[i][0] for i in range(3)])
    use_cache([train_set, val_set], "on", 2, CPU)
    monkeypatch.setattr(dataset, "read_image", None)
    torch.manual_seed(0)
    assert default_collate([train_set[i][0] for i in range(9)]).equal(before)
    assert default_collate([val_set[i][0] for i in range(3)]).equal(judged)


def test_the_cache_follows_what_is_stored(images: Path) -> None:
    def name(*words: str) -> str:
        settings = opt(f"--data={images}", *words)
        return dataset.ClassFolders(images / "train", settings).images.name()

    crop = [*CROP, "--val-img-size=28"]
    names = [name("--img-size=28"), name("--img-size=32"), name(*crop)]
    names += [name(*crop, "--val-img-size=40"), name(*crop, "--img-size=48")]
    assert len(set(names)) == 5
    assert name(*crop, "--crop-min=0.1") == name(*crop)


@pytest.mark.slow
def test_an_image_is_predicted_as_it_is_tested(train: Train, photos: Path) -> None:
    words = ["--resize=crop", "--val-img-size=20", "--precision=fp32"]
    assert train("run", f"--data={photos}", *words, "--epochs=1") == 0
    where = ["--checkpoint=run", "--device=cpu", "--precision=fp32"]
    assert status(predict.main, "predict.py", *where, str(photos / "test")) == 0
    assert status(test.main, "test.py", *where) == 0
    with open("predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    model, trained_with = Model.from_checkpoint("run/checkpoints/best.pt")
    test_set = dataset.eval_set(trained_with, model.info, "test")
    assert len(rows) == len(test_set) == 9
    for i, row in enumerate(rows):
        assert row["file"] == f"{test_set.root}/{test_set.names()[i]}"
        image = test_set[i][0]
        assert image.shape == (3, 20, 20)
        with torch.no_grad():
            share = model.scores(image[None]).softmax(dim=1)[0]
        assert row["class"] == model.classes[int(share.argmax())]
        assert float(row["probability"]) == pytest.approx(share.max().item(), abs=2e-6)


# Options that contradict each other.


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--val-img-size=40"], "--val-img-size 40: images are not cropped"),
        (["--crop-min=0.5", "--resize=squash"], "--crop-min 0.5"),
        (["--crop-min=0", "--resize=crop"], "--crop-min"),
        (["--resize=pad"], "--resize"),
        (["--mixup=-1"], "--mixup"),
        (["--mixup=0.2", "--batch-size=1"], "--mixup: one image cannot be mixed"),
        (["--cutmix=1", "--batch-size=1"], "--cutmix"),
        (["--erasing=1.1"], "--erasing"),
        (["--color-jitter=2"], "--color-jitter"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_used(
    small: list[str], capsys: pytest.CaptureFixture[str], words: list[str], culprit: str
) -> None:
    assert culprit in train_refuses(capsys, *small, *words, "--run-dir=run")


def test_a_size_for_judging_that_the_network_cannot_take() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[3] != 28:
                raise RuntimeError("wrong size")
            return images

    check_eval_size(opt(*CROP), Fixed())
    larger = opt(*CROP, "--val-img-size=56")
    said = rf"--val-img-size 56: not for {larger.network} \(wrong size\)"
    with pytest.raises(BadInput, match=said):
        check_eval_size(larger, Fixed())


def test_a_config_with_crops_is_read_back_as_it_was() -> None:
    for words in ([], ["--resize=crop"], ["--resize=crop", "--val-img-size=99"]):
        settings = opt(*words, "--trivial-augment", "--mixup=0.2")
        Path("config.txt").write_text(config_text(settings, Path("config.txt")), encoding="utf-8")
        assert options.parse(["@config.txt"]) == settings
