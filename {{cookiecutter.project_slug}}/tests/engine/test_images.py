"""A packed list of names is the list; and worker processes don't copy it."""

import os
from pathlib import Path

import pytest

from engine.names import Names

LISTS = [
    [],
    [""],
    ["a"],
    ["", "", "b", ""],
    ["train/cat/1.jpg", "train/dog/2.jpg", "x"],
    ["Löwe 100%.png", "猫/🐈.png", "new\nline", "\0"],
    [os.fsdecode(b"latin\xe9.png"), "\udcc3\udca9", "é", "\ud83d"],
]


@pytest.mark.parametrize("names", LISTS)
def test_it_is_the_list(names: list[str]) -> None:
    packed = Names(names)
    assert len(packed) == len(names)
    assert list(packed) == names
    assert [packed[i] for i in range(len(names))] == names
    assert [packed[-i] for i in range(1, len(names) + 1)] == names[::-1]
    for part in (slice(None), slice(1, 3), slice(None, None, -1), slice(-2, 100, 2), slice(5, 1)):
        assert packed[part] == names[part]
    for index in (len(names), -len(names) - 1):
        with pytest.raises(IndexError):
            packed[index]


def test_digests_tell_lists_apart() -> None:
    lists = [*LISTS, ["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"], ["c", "ab"]]
    assert len({Names(names).digest() for names in lists}) == len(lists)
    assert Names(iter(["ab", "c"])).digest() == Names(["ab", "c"]).digest()


def private_memory() -> int:
    """The bytes of memory that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux has it")
def test_a_worker_that_reads_all_names_copies_none() -> None:
    """A list of 200,000 of them grows by 15 MB here: looking at a string writes to it."""
    names = Names(f"train/a class with a name/image-{i:06d}.jpg" for i in range(200_000))
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        before = private_memory()
        letters = sum(len(name) for name in names)
        os.write(write, f"{private_memory() - before} {letters}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    grown, letters = map(int, os.read(read, 100).split())
    assert letters == 200_000 * 42
    assert grown < 3e6
