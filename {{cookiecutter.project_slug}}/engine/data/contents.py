"""What a run records of its images in files.jsonl, and what of their content has changed since.

A line of JSON for each file: its name below the data folder, bytes, time of change in ns, a digest
of its bytes or null, the two other numbers of mapped.stamp, and whether it is to train on or to
validate on; then what else the data set knows of it, such as a digest of its row in a table, if
anything. Where files.jsonl gives way to one of another content it is kept as files-1.jsonl,
files-2.jsonl and so on.
"""

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from engine import terminal
from engine.data.cache import CachedImages, images_of
from engine.data.files import SerializedList
from engine.data.mapped import digest_file
from engine.data.sampler import Samples

FILES = "files.jsonl"
IMAGES = "images"  # the checksum of all files in `environment`
SIDES = ("training", "validation")
# So many files, and bytes of them, are read at a first start if no cache has their digests.
FEW, SMALL = 4096, 2**27
SIDE, NOTE = 5, 6  # places in a record
Records = dict[str, list[Any]]  # by name, the rest of a line; those of a folder follow each other


class Files:
    """The files of the images of a run, as they are now.

    Args:
        folder: The run folder.
        train_set: The training data; what is no CachedImages is not recorded.
        val_set: The validation data, which may share them: `names()` tells which are its own.
    """

    def __init__(self, folder: Path, train_set: Samples, val_set: Samples) -> None:
        self.folder = folder
        training, validation = images_of(train_set), images_of(val_set)
        every = [*training, *(one for one in validation if one not in training)]
        before = {}  # which is large, and not needed where caches have all digests
        if any(images.mapped is None for images in every):
            before = read_records(folder / FILES)
        self.records: Records = {}
        for images in sorted(every, key=lambda images: images.root.name):
            judged: set[str] = set()
            if images in validation:
                judged = _own(val_set, images.files) if images in training else set(images.files)
            stamps, digests = images.stamps().tolist(), _digests(images, before)
            rows = zip(images.files, images.names(), stamps, digests, strict=True)
            notes = iter(images.notes or ())
            for file, name, (size, changed, *more), digest in rows:
                self.records[name] = [size, changed, digest, *more, SIDES[file in judged]]
                self.records[name] += [next(notes)] if images.notes else []

    def facts(self) -> dict[str, str]:
        """A checksum of all, for `environment`; empty without files."""
        return {IMAGES: _checksum(self.records)} if self.records else {}

    def changes(self, before: dict[str, Any]) -> dict[str, str]:
        """What has changed since the environment `before` of a checkpoint: see `compare`."""
        if IMAGES not in before or before[IMAGES] == self.facts().get(IMAGES):
            return {}
        if records := find_records(self.folder, before):
            return compare(records, self.records)
        return dict.fromkeys(SIDES, "the images are others, and there is no record of those before")

    def write(self, write: Callable[[Path, str], object]) -> None:
        """Brings files.jsonl up to date by `write`."""
        path = self.folder / FILES
        text = "".join(json.dumps([name, *rest]) + "\n" for name, rest in self.records.items())
        # It is large, and the same at most starts.
        if not self.records or (path.is_file() and path.read_bytes() == text.encode()):
            return
        before = read_records(path)
        if before and compare(before, self.records):
            number = 1 + len(list(self.folder.glob("files-*.jsonl")))
            path.replace(path.with_name(f"files-{number}.jsonl"))
        write(path, text)


def _digests(images: CachedImages, before: Records) -> list[str | None]:
    """The digests of files: those of the cache or on record, or those that are quickly made."""
    if images.mapped is not None:
        return [digest.tobytes().hex() for digest in np.array(images.mapped.records["digest"])]
    stamps, new = images.stamps(), []
    digests: list[str | None] = [None] * len(images)
    for i, name in enumerate(images.names() if before else ()):
        size, changed, digest, *more = before.get(name, [0] * 5)[:SIDE]
        if digest and [size, changed, *more] == stamps[i].tolist():
            digests[i] = digest
        elif digest:
            new.append(i)
    if len(images) <= FEW and stamps[:, 0].sum() <= SMALL:
        new = [i for i, digest in enumerate(digests) if digest is None]
    elif new:
        terminal.say(f"comparing {len(new):,} of {len(images):,} files of {images.root}")
    for i in new:
        digests[i] = digest_file(images.path(i)).numpy().tobytes().hex()
    return digests


def _own(data_set: Samples, files: Iterable[str]) -> set[str]:
    """The files that samples are named after; of pairs without the folder of the side."""
    if not hasattr(data_set, "names"):
        return set(files)
    names = set(data_set.names())
    if own := names.intersection(files):
        return own
    below = {file: file.partition("/")[2] for file in files}
    count, stems = Counter(below.values()), {os.path.splitext(name)[0] for name in names}
    # The file of the other side may have another ending.
    return {
        file
        for file, name in below.items()
        if name in names or (count[name] == 1 and os.path.splitext(name)[0] in stems)
    }


def _checksum(records: Records) -> str:
    found = hashlib.sha256()
    for folder, named in groupby(records.items(), lambda item: _halves(item[0])[0]):
        names, rows = zip(*named, strict=True)
        files = SerializedList(_halves(name)[1] for name in names)
        found.update(folder.encode("utf-8", "surrogatepass") + files.digest())
        for size, changed, digest, *_ in rows:
            found.update(bytes.fromhex(digest) if digest else struct.pack("2q", size, changed))
        found.update(bytes(row[SIDE] == SIDES[1] for row in rows))
        found.update("".join(note for row in rows for note in row[NOTE:]).encode())
    return found.hexdigest()[:16]


def _halves(name: str) -> tuple[str, str]:
    """The first folder of a path, if it has one, and the rest."""
    first, slash, rest = name.partition("/")
    return (first, rest) if slash else ("", first)


def read_records(path: Path) -> Records:
    """The records in a file; empty if there is none, or one that is not of this form."""
    try:
        lines = ",".join(path.read_text(encoding="utf-8").splitlines())
        records = {name: rest for name, *rest in json.loads(f"[{lines}]")}
        whole = all(len(rest) in (6, 7) and rest[SIDE] in SIDES for rest in records.values())
    except (OSError, ValueError, TypeError):
        return {}
    return records if whole else {}


def find_records(folder: Path, facts: dict[str, Any]) -> Records:
    """Those of a run folder that have the checksum in `facts`; empty if there are none."""
    for path in (folder / FILES, *folder.glob("files-*.jsonl")):
        records = read_records(path)
        if records and _checksum(records) == facts.get(IMAGES):
            return records
    return {}


def compare(before: Records, now: Records) -> dict[str, str]:
    """What is not as it was: the first file and how many, by SIDES; of neither, what is not known.

    The digests of the bytes decide if both have one, else size and time of change do; where the
    time alone is another one, the file may be the same.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for name in {**before, **now}:
        one, other = before.get(name), now.get(name)
        side, what = (other or one or [])[SIDE], ""
        if one is None or other is None:
            what = "is gone" if other is None else "is new"
        elif one[2] != other[2] if one[2] and other[2] else one[0] != other[0]:
            what = "has changed"
        elif one[NOTE:] != other[NOTE:]:
            what = "has another row in the table"
        elif one[1] != other[1] and not (one[2] and other[2]):
            side, what = "", "has another time of change, and no digest"
        elif one[SIDE] != side:
            what = "is from the other side of the division"
        if what:
            found.setdefault((side, what), []).append(name)
    told: dict[str, list[str]] = {side: [] for side in (*SIDES, "")}
    for (side, what), (first, *more) in found.items():
        if more:
            what = what.replace("is ", "are ", 1).replace("has ", "have ", 1)
        images = f"{side} image".lstrip() + "s" * bool(more)
        told[side].append(f"{1 + len(more):,} {images} {what}, {'first ' * bool(more)}{first}")
    return {side: "; ".join(texts) for side, texts in told.items() if texts}
