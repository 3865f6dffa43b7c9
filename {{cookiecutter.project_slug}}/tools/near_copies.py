"""Near copies: images that differ in JPEG quality, size or brightness, are cropped, or mirrored.

An image is reduced to a small grey picture. Its difference hash has a bit for each of 8 x 8 places:
whether it gets brighter there from left to right (N. Krawetz, "Kind of Like That", 2013). Images
whose hashes are alike are candidates; that of a picture is also compared with those of the mirror
image, and of pictures of which as much is cut off as a crop by 5 % of the area does. Candidates
are near copies if their small pictures correlate, without what is alike in many photographs, such
as a bright sky above a dark ground: the nearest smooth surface is subtracted from each.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from PIL import Image

SMALLEST = 64  # width and height of an image that is looked at; icons and digits are alike anyway
HEIGHT, WIDTH = 32, 36  # of a small picture
# What a crop by 5 % of the area keeps: 95 % of one side, or 97.5 % of both; at one of its ends, or
# in the middle. Parts are top and bottom, left and right.
Part = tuple[tuple[float, float], tuple[float, float]]
ALL, MIDDLE = (0.0, 1.0), (0.0125, 0.9875)
ENDS, MOST = ((0.0, 0.975), (0.025, 1.0)), ((0.0, 0.95), (0.025, 0.975), (0.05, 1.0))
WHOLE: Part = ALL, ALL
CORNERS: list[Part] = [(rows, columns) for rows in ENDS for columns in ENDS]
PARTS: list[Part] = [*CORNERS, *((ALL, part) for part in MOST), *((part, ALL) for part in MOST)]
PARTS += [(MIDDLE, part) for part in (*ENDS, MIDDLE)] + [(part, MIDDLE) for part in ENDS]
BITS = 10  # by which the hashes of candidates differ at most
NEIGHBOURS = 32  # on both sides, among very many hashes that have two bytes in common
DEGREE = 3  # of the polynomial in rows and columns that is subtracted
DETAIL = 0.5  # grey levels by which pixels differ from it, root mean square; else nothing is there
LIKELY, LEAST = 0.4, 0.92  # correlation as they are, and of near copies at the best part


class NearCopies(NamedTuple):
    """Pairs of images, each of the same length."""

    first: np.ndarray  # index of the first image, int64
    second: np.ndarray  # that of the second one, which is higher
    mirrored: np.ndarray  # whether one is the mirror image of the other, bool
    correlation: np.ndarray  # from LEAST to 1, float32


def small_picture(image: Image.Image) -> np.ndarray:
    """An image in any size as grey, uint8 (HEIGHT, WIDTH)."""
    small = image.resize((WIDTH, HEIGHT), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(small.convert("L"))


def find_near_copies(pictures: np.ndarray) -> NearCopies:
    """All pairs of near copies among small pictures, uint8 (N, HEIGHT, WIDTH).

    Pictures that are smooth all over, such as the sky alone, are like each other and left out.
    """
    details = _details(pictures)
    seen = np.flatnonzero(details.any(axis=1))
    pictures, details, count = pictures[seen], details[seen], len(seen)
    found = [np.empty(0, np.int64)]
    for mirrored, rows, columns in _candidates(pictures):
        first, second = np.minimum(rows, columns), np.maximum(rows, columns)
        pairs = (first * count + second) * 2 + mirrored
        found.append(np.unique(pairs[first < second]))
    pairs = np.unique(np.concatenate(found))
    copies = [NearCopies(*(np.empty(0, kind) for kind in (int, int, bool, np.float32)))]
    for begin in range(0, len(pairs), 4096):
        both, flipped = np.divmod(pairs[begin : begin + 4096], 2)
        first, second = both // count, both % count
        copies.append(_decide(pictures, details, first, second, flipped > 0))
    joined = NearCopies(*(np.concatenate(one) for one in zip(*copies, strict=True)))
    return joined._replace(first=seen[joined.first], second=seen[joined.second])


def _candidates(pictures: np.ndarray) -> Iterator[tuple[bool, np.ndarray, np.ndarray]]:
    """Pairs of pictures with hashes alike, and whether the first of each was mirrored.

    Two hashes that differ in up to six bits have two of their eight bytes in common. So for each
    two bytes those hashes are sorted that have them in common.
    """
    plain = _hash(pictures)
    for mirrored in (False, True):
        for part in (WHOLE, *CORNERS):
            shown = pictures[:, :, ::-1] if mirrored else pictures
            hashes = plain if shown is pictures and part == WHOLE else _hash(shown, part)
            for pair in combinations(range(8), 2):
                yield mirrored, *_alike(hashes, plain, pair)


def _hash(pictures: np.ndarray, part: Part = WHOLE) -> np.ndarray:
    """The difference hashes of a part of each picture, uint8 (N, 8).

    The bits of a byte are in different rows and columns, so bytes depend little on each other.
    """
    grid = _reduce(pictures, part, 8, 9)
    brighter = grid[:, :, 1:] > grid[:, :, :-1]
    rows = np.arange(8)
    spread = np.stack([brighter[:, rows, (rows + i) % 8] for i in range(8)], axis=1)
    return np.packbits(spread, axis=2)[:, :, 0]


def _reduce(pictures: np.ndarray, part: Part, height: int, width: int) -> np.ndarray:
    """A part of each picture, averaged to another size: float32 (N, height, width)."""
    rows, columns = _averages(part[0], HEIGHT, height), _averages(part[1], WIDTH, width)
    found = np.empty((len(pictures), height, width), np.float32)
    for i in range(0, len(pictures), 4096):
        found[i : i + 4096] = rows @ pictures[i : i + 4096].astype(np.float32) @ columns.T
    return found


def _averages(span: tuple[float, float], pixels: int, cells: int) -> np.ndarray:
    """Means over equal cells of a span, where all `pixels` fill [0, 1]: (cells, pixels)."""
    edges = np.linspace(*span, cells + 1)[:, None] * pixels
    covered = np.clip(edges - np.arange(pixels), 0, 1)  # share of each pixel left of an edge
    shares = covered[1:] - covered[:-1]
    return (shares / shares.sum(1, keepdims=True)).astype(np.float32)


def _alike(
    hashes: np.ndarray, others: np.ndarray, pair: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two arrays of hashes that have two bytes in common, and differ in BITS at most."""
    order = [*pair, *(i for i in range(8) if i not in pair)]  # the two bytes come first
    ours, theirs = (_as_numbers(one[:, order]) for one in (hashes, others))
    sorting = theirs.argsort(kind="stable")
    theirs = theirs[sorting]
    starts = np.searchsorted(theirs >> np.uint64(48), np.arange(2**16 + 1, dtype=np.uint64))
    found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for begin in range(0, len(ours), 2**15):
        part = ours[begin : begin + 2**15]
        keys = (part >> np.uint64(48)).astype(np.int64)
        place = np.searchsorted(theirs, part)
        low = np.maximum(starts[keys], place - NEIGHBOURS)
        sizes = np.minimum(starts[keys + 1], place + NEIGHBOURS) - low
        rows = np.repeat(np.arange(len(part)), sizes)
        places = np.arange(len(rows)) + np.repeat(low - (sizes.cumsum() - sizes), sizes)
        near = _count_bits(part[rows] ^ theirs[places]) <= BITS
        found.append((rows[near] + begin, sorting[places[near]]))
    ours, theirs = (np.concatenate(one) for one in zip(*found, strict=True))
    return ours, theirs


def _as_numbers(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view(">u8")[:, 0].astype(np.uint64)


def _count_bits(values: np.ndarray) -> np.ndarray:
    """How many bits of each number are set, uint64 (N,)."""
    two, four, eight = (
        np.uint64(mask * 0x0101010101010101) for mask in (0x55, 0x33, 0x0F)
    )  # np.bitwise_count needs numpy 2
    values = values - (values >> np.uint64(1) & two)
    values = (values & four) + (values >> np.uint64(2) & four)
    values = values + (values >> np.uint64(4)) & eight
    return values * np.uint64(0x0101010101010101) >> np.uint64(56)


def _decide(
    pictures: np.ndarray,
    details: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    mirrored: np.ndarray,
) -> NearCopies:
    """Those of some candidates that are near copies; one of the two may be a part of the other."""
    whole, other = details[first], details[second]
    if mirrored.any():
        whole[mirrored] = _details(pictures[first[mirrored], :, ::-1])
    best = (whole * other).sum(1)
    unsure = ((best >= LIKELY) & (best < LEAST)).nonzero()[0]
    whole, other, flipped = whole[unsure], other[unsure], mirrored[unsure]
    ours, theirs = pictures[first[unsure]], pictures[second[unsure]]
    ours[flipped] = ours[flipped, :, ::-1]
    for part in PARTS:
        cut = (_details(ours, part) * other).sum(1), (whole * _details(theirs, part)).sum(1)
        best[unsure] = np.maximum(best[unsure], np.maximum(*cut))
    near = best >= LEAST
    return NearCopies(first[near], second[near], mirrored[near], best[near])


def _details(pictures: np.ndarray, part: Part = WHOLE) -> np.ndarray:
    """What is left without a smooth surface, of length 1; 0 if it is little: float32 (N, 288)."""
    found = _reduce(pictures, part, HEIGHT // 2, WIDTH // 2)
    found -= _smooth(HEIGHT // 2) @ found @ _smooth(WIDTH // 2)
    found = found.reshape(len(found), HEIGHT * WIDTH // 4)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    enough = lengths > DETAIL * found.shape[1] ** 0.5
    return np.divide(found, lengths, out=np.zeros_like(found), where=enough)


def _smooth(size: int) -> np.ndarray:
    """What makes of values the nearest polynomial of DEGREE: float32 (size, size)."""
    basis, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, size), DEGREE + 1))
    return (basis @ basis.T).astype(np.float32)
