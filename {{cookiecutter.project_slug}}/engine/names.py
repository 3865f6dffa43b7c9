"""Long lists of names that worker processes can share."""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Names(Sequence[str]):
    """An immutable list of strings, kept as one block of bytes.

    A forked worker shares its parent's memory until one of the two writes to it, and looking at an
    object of Python writes to it: it counts references. So workers that read a million paths from a
    list would each end up with a copy of them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogatepass") for name in names]
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # counts negative ones from the end, raises IndexError
        start = self._ends[i - 1] if i else 0
        return self._bytes[start : self._ends[i]].tobytes().decode("utf-8", "surrogatepass")

    def digest(self) -> bytes:
        """What tells this list from others: all names, and where one ends and the next begins."""
        return self._ends.tobytes() + self._bytes.tobytes()
