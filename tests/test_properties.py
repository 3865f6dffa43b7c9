"""Properties of serialized lists and augmentations, for inputs that hypothesis makes up."""

import importlib
import shutil
import sys
import tempfile
from types import ModuleType

import pytest
import torch
from conftest import TEMPLATE
from hypothesis import given, settings
from hypothesis import strategies as st


def load(*names: str) -> list[ModuleType]:
    """Imports modules of a project; tests that fork import those of theirs by the same names."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name in [n for n in sys.modules if n.partition(".")[0] in ("engine", "task", "tools")]:
            patch.delitem(sys.modules, name)
        before = set(sys.modules)
        for source in (TEMPLATE, TEMPLATE / "tasks/image-classification"):
            leave = shutil.ignore_patterns("tasks", "tests", "__pycache__")
            shutil.copytree(source, folder, ignore=leave, dirs_exist_ok=True)
        patch.syspath_prepend(folder)
        modules = [importlib.import_module(name) for name in names]
        for name in sys.modules.keys() - before:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
                del sys.modules[name]
    return modules


files_py, images_py, dataset = load("engine.data.files", "engine.data.images", "dataset")
SerializedList = files_py.SerializedList
ANY_TEXT = st.text(st.characters(codec=None) | st.characters(categories=["Cs"]), max_size=8)
LISTS = st.lists(
    ANY_TEXT | st.binary(max_size=5).map(lambda b: b.decode("utf-8", "surrogateescape"))
)
SHAPES = st.tuples(*[st.integers(1, most) for most in (6, 4, 9, 9)])


@settings(deadline=None)
@given(LISTS, st.slices(20), st.integers(-20, 20))
def test_packed_names_are_the_list(names: list[str], part: slice, index: int) -> None:
    packed = SerializedList(names)
    assert list(packed) == names and len(packed) == len(names)
    assert packed[part] == names[part]
    if -len(names) <= index < len(names):
        assert packed[index] == names[index]
    else:
        with pytest.raises(IndexError):
            packed[index]


@settings(deadline=None)
@given(LISTS, LISTS)
def test_digests_are_equal_for_equal_lists_alone(one: list[str], other: list[str]) -> None:
    assert (SerializedList(one).digest() == SerializedList(other).digest()) == (one == other)


@settings(deadline=None)
@given(LISTS.filter(bool), st.data())
def test_digests_tell_where_a_name_ends(names: list[str], data: st.DataObject) -> None:
    text = "".join(names)
    cut = data.draw(st.integers(0, len(text)))
    assert (
        SerializedList([text[:cut], text[cut:]]).digest() == SerializedList(names).digest()
    ) == ([text[:cut], text[cut:]] == names)


@settings(deadline=None)
@given(SHAPES, st.integers(0, 12), st.integers(0, 2**63), st.booleans())
def test_a_moved_image_is_a_part_of_the_padded_one(
    shape: tuple[int, int, int, int], most: int, seed: int, last: bool
) -> None:
    images = torch.randint(1, 256, shape, dtype=torch.uint8)
    before = images.clone()
    order = torch.channels_last if last else torch.contiguous_format
    random = torch.Generator().manual_seed(seed)
    moved = dataset.shift(images.contiguous(memory_format=order), most, random)
    assert (moved.shape, moved.dtype) == (images.shape, images.dtype) and images.equal(before)
    _, _, height, width = shape
    padded = torch.nn.functional.pad(images, (most,) * 4)
    for after, source in zip(moved, padded, strict=True):
        ways = source.unfold(1, height, 1).unfold(2, width, 1).permute(1, 2, 0, 3, 4)
        assert (ways == after).flatten(2).all(dim=2).any()


@settings(deadline=None)
@given(SHAPES, st.integers(0, 2**63))
def test_a_mirrored_batch_is_mirrored_image_by_image(
    shape: tuple[int, int, int, int], seed: int
) -> None:
    images = torch.randint(256, shape, dtype=torch.uint8)
    changed = [images_py.flip(images, torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert changed[0].equal(changed[1])
    for before, after in zip(images, changed[0], strict=True):
        assert after.equal(before) or after.equal(before.flip(2))
