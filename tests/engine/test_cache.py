"""Decoded images are kept, and used only as long as they are what decoding would give now."""

import errno
import gc
import importlib
import linecache
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from programs import ROOT
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from engine.data import cache, images
from engine.data.cache import CachedImages, use_cache
from engine.data.files import SerializedList, images_below
from engine.data.images import read_image
from engine.data.mapped import MappedImages, write
from engine.errors import BadInput

CPU = torch.device("cpu")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Pictures(CachedImages):
    """All images in a folder, each as large as it is. Notes which ones are decoded."""

    def __init__(self, root: Path, recipe: str = "8px") -> None:
        files = SerializedList(os.path.relpath(path, root) for path in images_below(root))
        super().__init__(root, files, read, recipe)
        self.decoded: list[int] = []

    def decode(self, index: int) -> Tensor:
        self.decoded.append(index)
        return super().decode(index)


class Samples(Dataset):
    """A data set of some of the pictures, as a part of a split."""

    def __init__(self, images: CachedImages, rows: Iterable[int] | None = None) -> None:
        self.images, self.rows = images, list(range(len(images)) if rows is None else rows)

    def __len__(self) -> int:
        return len(self.rows)


def read(path: str) -> Tensor:
    return pil_to_tensor(read_image(path))


def draw(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0) -> None:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder() -> Path:
    """Twelve pictures of one size."""
    folder = Path("data/train")
    folder.mkdir(parents=True)
    for i in range(12):
        draw(folder / f"{i:02d}.png", seed=i)
    return folder


def cached(root: Path, where: str = "on", **more: object) -> Pictures:
    part = Pictures(root, **more)  # type: ignore[arg-type]
    use_cache([Samples(part)], where, epochs=2, device=CPU)
    return part


def caches(root: Path) -> list[str]:
    return sorted(path.name for path in (root.parent / ".cache").glob("*"))


def forget(root: Path, part: Pictures) -> None:
    """Lets all caches but that of `part` be as old as those that nobody wants any more."""
    long_ago = time.time() - 8 * 24 * 3600
    for path in (root.parent / ".cache").iterdir():
        if part.mapped is None or path != part.mapped.path:
            os.utime(path, (long_ago, long_ago))


def assert_right(part: Pictures) -> None:
    """What comes from the cache is what decoding gives now."""
    assert part.mapped is not None
    for index in range(len(part)):
        assert part[index].equal(Pictures(part.root).decode(index))


def test_images_are_decoded_once_for_all_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = cached(folder)
    assert set(first.decoded) == set(range(12))
    first.decoded.clear()
    assert_right(first)
    second = cached(folder)
    assert_right(second)
    assert first.decoded == second.decoded == []
    made, found = capsys.readouterr().out.splitlines()
    for line in (made, found):
        assert line.startswith(f"cache: 12 images of {folder}, ")
        assert " MB in .cache" in line
    assert "decoded in" in made
    assert "decoded in" not in found


@pytest.mark.parametrize("indices", [[0], [3, 1, 11], [5, 5, 5], list(range(12))])
def test_many_images_at_once(folder: Path, indices: list[int]) -> None:
    part = cached(folder)
    batch = part.stack(torch.tensor(indices))
    assert batch is not None
    assert batch.equal(torch.stack([Pictures(folder).decode(index) for index in indices]))


def brighter(path: str, by: int) -> Tensor:
    return read(path) // 2 + by


def test_a_few_images_are_decoded_to_see_whether_the_cache_is_theirs(folder: Path) -> None:
    """Also where the system says that the files are the same: an option is not in the recipe."""
    for by in (0, 100):
        images = CachedImages(folder, names_below(folder), partial(brighter, by=by), "8px")
        use_cache([Samples(images)], "on", epochs=2, device=CPU)
        assert images[3].equal(brighter(images.path(3), by))


def names_below(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in images_below(folder)]


def add(folder: Path) -> None:
    draw(folder / "06b.png", seed=77)


def remove(folder: Path) -> None:
    (folder / "03.png").unlink()


def rename(folder: Path) -> None:
    (folder / "03.png").rename(folder / "99.png")


def replace(folder: Path) -> None:
    (folder / "03.png").write_bytes((folder / "04.png").read_bytes() + b" a little longer")


def replace_by_one_as_long(folder: Path) -> None:
    for name in ("03", "04"):  # without compression all are as long
        with Image.open(folder / f"{name}.png") as image:
            image.save(folder / f"{name}.bmp")
        (folder / f"{name}.png").unlink()
    cached(folder)
    first, second = folder / "03.bmp", folder / "04.bmp"
    before = first.stat()
    first.write_bytes(second.read_bytes())
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns + 2 * 10**9))
    assert first.stat().st_size == before.st_size


def grow(folder: Path) -> None:
    draw(folder / "03.png", size=(5, 20))


@pytest.mark.parametrize("change", [add, remove, rename, replace, replace_by_one_as_long, grow])
def test_another_list_or_content_of_files_makes_it_anew(
    folder: Path, change: Callable[[Path], None]
) -> None:
    cached(folder)
    change(folder)
    part = cached(folder)
    assert part.decoded
    assert_right(part)
    forget(folder, part)
    assert not cached(folder).decoded
    assert len(caches(folder)) == 1, "the one that is out of date is still there"


def test_another_recipe_has_a_cache_of_its_own(folder: Path) -> None:
    cached(folder)
    assert cached(folder, recipe="9px").decoded
    assert not cached(folder).decoded
    assert not cached(folder, recipe="9px").decoded
    assert len(caches(folder)) == 2


READING = """
import {helper}
from pathlib import Path
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
BRIGHTER = 0

class Camera:
    def __call__(self, path):
        return read(path)

def read(path):
    return {helper}.finish(pil_to_tensor(Image.open(path)) + BRIGHTER)
"""
HELPER = "def finish(image):\n    return image * 1\n"


@pytest.fixture
def write_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Returns a function that writes two modules of the project and imports the first one."""
    names = ["own_reading", "own_helper"]
    files = [ROOT / f"{name}.py" for name in names]

    def write(reading: str = READING, helper: str = HELPER) -> Any:
        for name, file, text in zip(names, files, (reading, helper), strict=True):
            file.write_text(text.replace("{helper}", "own_helper"))
            sys.modules.pop(name, None)
        linecache.clearcache()
        importlib.invalidate_caches()
        return importlib.import_module(names[0])

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    for name, file in zip(names, files, strict=True):
        file.unlink(missing_ok=True)
        sys.modules.pop(name, None)


CHANGES: list[tuple[str, dict[str, str], bool]] = [
    ("a comment", {"reading": READING + "# well\n"}, False),
    ("a docstring", {"reading": READING.replace("(path):\n", '(path):\n    "Reads."\n')}, False),
    ("a function that is not used", {"reading": READING + "def other():\n    pass\n"}, False),
    ("other lines", {"reading": READING.replace("BRIGHTER = 0", "\n\nBRIGHTER = 0\n")}, False),
    ("a constant", {"reading": READING.replace("BRIGHTER = 0", "BRIGHTER = 1")}, True),
    ("the function", {"reading": READING.replace("+ BRIGHTER", "- BRIGHTER")}, True),
    ("what it calls in another module", {"helper": HELPER.replace("* 1", "* 2")}, True),
    ("a comment there", {"helper": HELPER + "# well\n"}, False),
]


@pytest.mark.parametrize("how", ["function", "partial", "object"])
@pytest.mark.parametrize(("what", "change", "anew"), CHANGES, ids=lambda each: str(each)[:30])
def test_the_cache_is_made_anew_when_the_code_that_reads_does_something_else(
    folder: Path, write_code: Callable[..., Any], what: str, change: dict, anew: bool, how: str
) -> None:
    """And only then: the file with it is also the one in which augmentation is edited."""

    def decoded(module: Any) -> bool:
        read = {
            "function": module.read,
            "partial": partial(module.read),
            "object": module.Camera(),
        }[how]
        images = CachedImages(
            folder, SerializedList(path.name for path in sorted(folder.glob("*.png"))), read, "8px"
        )
        seen: list[int] = []
        decode = images.decode
        images.decode = lambda index: seen.append(index) or decode(index)  # type: ignore
        use_cache([Samples(images)], "on", epochs=2, device=CPU)
        return bool(seen)

    assert decoded(write_code())
    assert not decoded(write_code())
    assert decoded(write_code(**change)) is anew
    assert not decoded(write_code()), "two checkouts of the project throw each other's cache away"


@pytest.mark.slow
def test_the_code_that_reads_is_known_again_in_another_process(
    write_code: Callable[..., Any],
) -> None:
    """Though there sets have another order, and functions another place in memory."""
    values = (
        'BRIGHTER = len({"a", "b", "c"})\nNAMES = {"a", "b", "c"}\nHOW = {"x": [own_helper.finish]}'
    )
    reading = READING.replace("BRIGHTER = 0", values).replace(
        "def read(path):\n", "def read(path):\n    NAMES, HOW\n"
    )
    write_code(reading=reading)
    program = "import own_reading as own; from engine.data.source import digest_of as digest; "
    program += "print(digest(own.read), sorted(map(str, [own.NAMES, own.HOW])))"
    told = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    ]
    assert told[0] != told[1]
    assert told[0].split()[0] == told[1].split()[0]


@pytest.mark.parametrize("how", ["moved", "copied", "unpacked"])
def test_a_data_set_that_moves_takes_its_cache_along(
    folder: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bytes are compared once, and with a line, if the system says something else of them."""
    cached(folder)
    if how == "moved":
        folder.parent.rename("elsewhere")
    else:  # with the times of change, or with those of now
        copy = shutil.copy2 if how == "copied" else shutil.copyfile
        shutil.copytree(folder.parent, "elsewhere", copy_function=copy)
    moved = Path("elsewhere/train")
    capsys.readouterr()
    for compared in (how != "moved", False):
        part = cached(moved)
        assert not part.decoded
        assert_right(part)
        assert ("comparing 12 of 12 files" in capsys.readouterr().out) == compared


def test_folders_that_are_swapped_are_not_mistaken_for_each_other(folder: Path) -> None:
    """Equal names, sizes and times, and other pixels: what is on the disk now is what counts."""
    one, two = Path("data/one"), Path("data/two")
    for root, first in ((one, 0), (two, 50)):
        root.mkdir()
        for i in range(3):
            pixels = np.full((8, 8, 3), first + i, dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{i}.bmp")
            os.utime(root / f"{i}.bmp", (10**9, 10**9))
        cached(root)
    one.rename("data/three")
    two.rename(one)
    Path("data/three").rename(two)
    for root in (one, two):
        assert_right(cached(root))


def test_a_cache_that_is_in_use_is_never_deleted(folder: Path) -> None:
    """The map of a file that another machine deletes on a network disk would break."""
    part = cached(folder, recipe="9px")
    assert part.mapped is not None and part.mapped.path is not None
    long_ago = time.time() - 8 * 24 * 3600
    os.utime(part.mapped.path, (long_ago, long_ago))
    other = cached(folder)
    assert other.decoded and len(caches(folder)) == 2
    del part
    gc.collect()
    cached(folder)
    assert len(caches(folder)) == (2 if os.name == "nt" else 1)


def test_nothing_else_in_the_folder_is_touched(folder: Path) -> None:
    Path("scratch").mkdir()
    mine = [Path("scratch/notes.txt"), Path("scratch/x.tmp"), Path("scratch/a.cache")]
    for path in mine:
        path.write_text("mine")
        os.utime(path, (10**9, 10**9))
    assert cached(folder, "scratch").decoded
    assert not cached(folder, "scratch").decoded
    assert all(path.read_text() == "mine" for path in mine)
    assert not caches(folder) and len(list(Path("scratch").iterdir())) == 4


def test_a_folder_for_the_cache_is_made(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_right(cached(folder, "scratch/mine"))
    assert "MB in scratch/mine" in capsys.readouterr().out
    Path("file").write_text("")
    assert cached(folder, "file/mine").mapped is None
    assert "warning: no cache for 12 images" in capsys.readouterr().err


KINDS = {  # the type and the kind of an image, and its channels
    "uint8": (torch.uint8, "image", 3),
    "grey": (torch.uint8, "image", 1),
    "uint16": (torch.uint16, "image", 1),
    "float": (torch.float32, "feature", 5),
    "mask": (torch.uint8, "index", 1),
}


@pytest.mark.parametrize("case", KINDS)
def test_any_type_of_image_with_exact_sums(folder: Path, case: str) -> None:
    dtype, kind, channels = KINDS[case]

    def read(path: str) -> Tensor:
        return of_kind(path, dtype, channels)

    def make() -> CachedImages:
        names = SerializedList(path.name for path in sorted(folder.glob("*.png")))
        return CachedImages(folder, names, read, case, kind)

    plain, images = make(), make()
    use_cache([Samples(images)], "on", 2, CPU)
    again = make()
    use_cache([Samples(again)], "on", 2, CPU)
    for part in (images, again):
        assert part.mapped is not None and part.kind == kind
        for i in range(12):
            assert part[i].dtype == dtype and part[i].shape[0] == channels
            assert part[i].float().equal(plain[i].float())
    rows = torch.tensor([1, 4, 5])
    sums, pixels = again.totals(rows)
    plain_sums, plain_pixels = plain.totals(rows)
    assert sums.equal(plain_sums) and pixels == plain_pixels == 3 * 64
    values = torch.cat([plain[i].permute(1, 2, 0).reshape(-1, channels) for i in rows.tolist()])
    if kind == "index":
        assert sums.tolist() == values.flatten().int().bincount(minlength=256).tolist()
    else:
        assert sums[0].double().allclose(values.double().sum(0))
        assert sums[1].double().allclose(values.double().square().sum(0))


def of_kind(path: str, dtype: torch.dtype, channels: int) -> Tensor:
    image = read(path)[:1].int() * (257 if dtype == torch.uint16 else 1)
    wide = torch.cat([image - i * (dtype == torch.float32) for i in range(channels)])
    return wide.to(dtype)


def test_images_that_differ_in_their_channels_are_refused(folder: Path) -> None:
    def some(path: str) -> Tensor:
        return read(path)[: 1 + (Path(path).stem > "05") * 2]

    names = SerializedList(path.name for path in sorted(folder.glob("*.png")))
    images = CachedImages(folder, names, some, "mixed")
    with pytest.raises(BadInput, match=r"06.png: read as 3 channels .*00.png as 1 "):
        use_cache([Samples(images)], "on", 2, CPU)
    assert not caches(folder)


def test_a_sample_may_have_several_images(folder: Path) -> None:
    """An image and its mask: each has a cache of its own, and a changed mask makes that anew."""
    masks = Path(shutil.copytree(folder, "data/masks"))

    class Both(Dataset):
        def __init__(self) -> None:
            self.images = [Pictures(folder), Pictures(masks)]

        def __len__(self) -> int:
            return 12

    def decoded() -> list[bool]:
        both = Both()
        use_cache([both], "on", 2, CPU)
        assert all(images.mapped is not None for images in both.images)
        assert_right(both.images[1])
        return [bool(images.decoded) for images in both.images]

    assert decoded() == [True, True]
    assert decoded() == [False, False]
    draw(masks / "03.png", seed=99)
    assert decoded() == [False, True]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole[:-1],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:50],
        lambda whole: b"",
        lambda whole: bytes(len(whole)),  # what a power cut may leave
        lambda whole: whole[800:],
        lambda whole: whole + b"more",
    ],
    ids=["a byte short", "half", "50 bytes", "empty", "zeros", "no pixels", "longer"],
)
def test_a_damaged_file_is_made_anew(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    cached(folder)
    (path,) = (folder.parent / ".cache").iterdir()
    path.write_bytes(spoil(path.read_bytes()))
    part = cached(folder)
    assert part.decoded
    assert_right(part)
    assert caches(folder) == [path.name]


@forks
def test_a_kill_leaves_no_usable_half(folder: Path) -> None:
    class Killed(Pictures):
        def decode(self, index: int) -> Tensor:
            if index == 70:  # of the second batch
                os.kill(os.getpid(), signal.SIGKILL)
            return super().decode(index)

    for i in range(12, 100):
        draw(folder / f"{i:02d}.png", seed=i)
    pid = os.fork()
    if not pid:
        use_cache([Samples(Killed(folder))], "on", 2, CPU)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    (partial,) = (folder.parent / ".cache").iterdir()
    assert partial.suffix == ".tmp"

    part = cached(folder)
    assert part.decoded
    assert_right(part)
    assert partial.exists(), "it might have been that of a run that is still writing"
    long_ago = time.time() - 2 * 3600
    os.utime(partial, (long_ago, long_ago))
    assert not cached(folder).decoded
    assert not partial.exists()


@pytest.mark.slow
@forks
def test_two_runs_may_make_the_same_cache_at_once(folder: Path) -> None:
    class Slow(Pictures):
        def decode(self, index: int) -> Tensor:
            time.sleep(0.01)
            return super().decode(index)

    children = []
    for _ in range(3):
        if pid := os.fork():
            children.append(pid)
            continue
        status = 1
        try:
            part = Slow(folder)
            use_cache([Samples(part)], "on", 2, CPU)
            assert_right(part)
            status = 0 if part.mapped and part.mapped.path else 2
        finally:
            os._exit(status)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
    (name,) = caches(folder)
    assert name.endswith(cache.ENDING)
    assert not cached(folder).decoded


def no_room(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(cache, "disk_usage", lambda path: usage)
    return "no room"


def no_right_to_write(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    def refuse(path: Path, *arguments: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    return "Permission denied"


def something_in_the_way(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    (folder.parent / ".cache").write_text("")
    return "File exists" if os.name != "nt" else "exists"


def full_on_the_way(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    def refuse(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    return "No space left"


@pytest.mark.parametrize(
    "hinder", [no_room, no_right_to_write, something_in_the_way, full_on_the_way]
)
def test_where_no_file_can_be_written_the_run_goes_on(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hinder: Callable[[pytest.MonkeyPatch, Path], str],
) -> None:
    before = sorted(folder.parent.rglob("*"))
    reason = hinder(monkeypatch, folder)
    part = cached(folder)
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.count("\n") == 1
    assert streams.err.startswith("warning: no cache for 12 images")
    assert reason in streams.err and "--cache DIR keeps it elsewhere" in streams.err
    assert part.mapped is None
    assert part.stack(torch.tensor([0])) is None
    assert part[3].equal(Pictures(folder).decode(3))
    left = [path for path in sorted(folder.parent.rglob("*")) if path not in before]
    assert [path for path in left if path.name != ".cache" or path.is_dir()] == []


def test_a_damaged_image_is_named_and_nothing_is_left_behind(folder: Path) -> None:
    before = sorted(folder.parent.rglob("*"))
    path = folder / "09.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInput, match=r"09\.png"):
        cached(folder)
    assert sorted(folder.parent.rglob("*")) == before


def test_a_link_to_nowhere_is_named(folder: Path) -> None:
    try:
        (folder / "link.png").symlink_to("nowhere.png")
    except OSError:
        pytest.skip("no right to make links")
    with pytest.raises(BadInput, match=r"link\.png"):
        cached(folder)


def test_a_link_to_nowhere_among_many_images_is_named(folder: Path) -> None:
    """Not told as a fault of the folder for the cache."""
    for i in range(12, 100):
        draw(folder / f"{i:02d}.png", seed=i)
    try:
        (folder / "55x.png").symlink_to("nowhere.png")
    except OSError:
        pytest.skip("no right to make links")
    with pytest.raises(BadInput, match=r"55x\.png: not readable"):
        cached(folder)


@pytest.mark.parametrize("place", ["file", "image"])
def test_errors_of_the_disk_of_the_images_are_no_fault_of_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    part = Pictures(folder)
    monkeypatch.setattr("pathlib.Path.read_bytes" if place == "file" else "PIL.Image.open", fail)
    with pytest.raises(OSError, match=rf"Input/output error: '{folder}/00\.png'"):
        use_cache([Samples(part)], "on", epochs=2, device=CPU)


def test_numbers_of_files_may_have_any_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of network and overlay file systems use all 64 bits."""
    stat = os.stat

    def large(path: str) -> Any:
        found = stat(path)
        names = ("st_size", "st_mtime_ns", "st_ctime_ns")
        return SimpleNamespace(st_ino=2**64 - 1, **{name: getattr(found, name) for name in names})

    part = Pictures(folder)
    monkeypatch.setattr("engine.data.mapped.os.stat", large)
    stamps = part.stamps()
    monkeypatch.undo()
    assert (stamps[:, 3] == 2**63 - 1).all()


def test_what_is_said_while_images_are_read_is_no_change_of_the_code(folder: Path) -> None:
    """Else a data set with such an image would be decoded at every start."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "02b.gif", save_all=True, append_images=frames[1:])
    images._noted.clear()
    cached(folder)
    assert images._noted
    images._noted.clear()  # as in the next process
    assert not cached(folder).decoded


def test_links_are_followed(folder: Path) -> None:
    elsewhere = Path("elsewhere")
    shutil.move(folder, elsewhere)
    folder.mkdir()
    try:
        for path in sorted(elsewhere.iterdir()):
            (folder / path.name).symlink_to(path.absolute())
    except OSError:
        pytest.skip("no right to make links")
    assert_right(cached(folder))
    draw(elsewhere / "03.png", (6, 6), seed=99)
    part = cached(folder)
    assert part.decoded
    assert_right(part)


def test_images_of_several_sizes(folder: Path) -> None:
    for i, size in enumerate([(3, 5), (5, 3), (1, 1), (40, 2)]):
        draw(folder / f"x{i}.png", size, seed=50 + i)
    for part in (cached(folder), cached(folder)):
        assert_right(part)
        assert part.stack(torch.tensor([0, 1])) is None  # they make no batch


def test_a_sample_may_be_changed(folder: Path) -> None:
    part = cached(folder)
    before = part[4].clone()
    part[4].zero_()
    batch = part.stack(torch.tensor([4, 5]))
    assert batch is not None
    batch.zero_()
    assert part[4].equal(before)
    assert cached(folder)[4].equal(before)
    assert before.any()


def test_images_lie_in_memory_alike_with_and_without_a_cache(folder: Path) -> None:
    """Else a transform may round differently."""

    class Contiguous(Pictures):
        def decode(self, index: int) -> Tensor:
            return super().decode(index).contiguous()

    strides = {part[0].stride() for part in (cached(folder), Pictures(folder))}
    strides.add(Contiguous(folder)[0].stride())
    assert len(strides) == 1


def test_worker_processes_map_the_file_themselves(folder: Path) -> None:
    part = cached(folder)
    sent = pickle.dumps(part.mapped)
    assert len(sent) < 1000
    received = pickle.loads(sent)
    assert all(received[i].equal(part[i]) for i in range(12))
    assert received.stacked is not None


@pytest.mark.parametrize(
    ("where", "epochs", "makes"),
    [("on", 1, True), ("on", 9, True), ("auto", 1, False), ("auto", 2, True), ("off", 9, False)],
)
def test_it_is_made_if_it_is_wanted_or_pays(
    folder: Path, where: str, epochs: int, makes: bool
) -> None:
    part = Pictures(folder)
    use_cache([Samples(part)], where, epochs, CPU)
    assert (part.mapped is not None) == makes
    assert bool(caches(folder)) == makes


def test_one_that_is_there_is_used_though_it_would_not_be_made(folder: Path) -> None:
    cached(folder)
    part = Pictures(folder)
    use_cache([Samples(part)], "auto", 1, CPU)
    assert part.mapped is not None
    refused = cached(folder, "off")
    assert refused.mapped is None
    assert refused[0].equal(part[0])


def test_none_is_made_by_default_of_more_than_fits_into_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "memory", lambda: 12 * 8 * 8 * 3 - 1)
    assert cached(folder, "auto").mapped is None
    assert cached(folder, "on").mapped is not None


def test_the_parts_of_a_split_share_their_images_and_its_cache(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Pictures(folder)
    parts = [Samples(images, range(9)), Samples(images, range(9, 12))]
    use_cache(parts, "auto", 2, CPU)
    assert capsys.readouterr().out.count("cache: ") == 1
    assert len(caches(folder)) == 1
    assert_right(images)


def test_several_samples_of_an_image_count_as_uses_of_it(folder: Path) -> None:
    for rows, makes in ((range(12), False), ([*range(12)] * 2, True)):
        images = Pictures(folder)
        use_cache([Samples(images, rows)], "auto", 1, CPU)
        assert (images.mapped is not None) == makes


def test_other_data_sets_are_left_alone() -> None:
    class Plain(Dataset):
        def __getitem__(self, index: int) -> Tensor:
            return torch.zeros(3)

    use_cache([Plain()], "on", 2, CPU)


@pytest.mark.skipif(os.name == "nt" or sys.maxsize < 2**40, reason="needs sparse files")
def test_a_cache_may_be_larger_than_the_memory() -> None:
    """Mapped for writing, it would have to fit."""
    side = 2**20
    known = (torch.zeros(1, 2, 1), torch.tensor([[side, side]]), torch.full((1, 16), 77))
    none = torch.zeros(0, dtype=torch.uint8)
    pixel = torch.zeros(1, 1, 1, dtype=torch.uint8)
    try:
        with open("large", "wb") as file:
            write(file, [(none, *known)], pixel, "image", np.zeros((1, 4), np.int64))
            file.truncate(file.seek(0, os.SEEK_END) + side * side)
    except OSError:
        pytest.skip("this file system has no files of a terabyte")
    mapped = MappedImages(Path("large"))
    assert mapped.stacked is not None
    assert mapped.stacked.shape == (1, side, side, 1)
    assert mapped.values[-1] == 0
    assert mapped.records["digest"].tolist() == [[77] * 16]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there are no such names")
def test_folders_of_any_name(folder: Path) -> None:
    for name in ("[a-z]*?", os.fsdecode(b"latin\xe9"), "new\nline"):
        root = Path(shutil.copytree(folder.parent, name)) / "train"
        assert_right(cached(root))
        draw(root / "03.png", seed=33)
        part = cached(root)
        assert part.decoded
        assert_right(part)
