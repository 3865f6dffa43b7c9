"""Pictures of batches: the images as they are, each above its caption."""

import pytest
import torch
from torch import Tensor

from engine.report.grids import (
    CELL,
    FONT_SIZE,
    GAP,
    LINE,
    WIDTH,
    captioned_grid,
    cut_to_fit,
    draw_counts,
    grid_columns,
    load_font,
)

TITLE = "row: true class, column: predicted"


def batch(n: int, height: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, height, width), generator=random, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("n", "height", "width", "columns", "factor"),
    [
        (5, 200, 300, 3, 1),
        (64, 28, 28, 8, 4),
        (2, 28, 28, 8, 5),
        (3, 7, 60, 3, 2),
        (4, 4, 2000, 1, 1),
    ],
)
def test_images_are_enlarged_by_a_whole_factor_and_else_as_they_come(
    n: int, height: int, width: int, columns: int, factor: int
) -> None:
    images = batch(n, height, width)
    grid = captioned_grid(images, ["name"] * n, columns)
    across, down = min(columns, n), -(-n // columns)
    row, cell = height * factor + LINE + GAP, max(width * factor, CELL)
    assert (grid.dtype, grid.shape[0]) == (torch.uint8, 3)
    assert grid.shape[1:] == (GAP + down * row, GAP + across * (cell + GAP))
    for i, image in enumerate(images):
        top, left = GAP + i // across * row, GAP + i % across * (cell + GAP)
        left += (cell - width * factor) // 2
        shown = grid[:, top : top + height * factor, left : left + width * factor]
        assert shown.equal(image.repeat_interleave(factor, 1).repeat_interleave(factor, 2))


def test_small_images_get_room_for_captions_and_large_ones_fewer_columns() -> None:
    for width, columns in ((1, 8), (28, 8), (100, 8), (224, 4), (700, 1), (2000, 1)):
        assert grid_columns(batch(1, 1, width)) == columns
        grid = captioned_grid(batch(8, 2, width), ["name"] * 8, columns)
        assert 90 * columns <= grid.shape[2] <= max(1100, width + 2 * GAP)


def test_each_caption_is_below_its_image() -> None:
    images = batch(2, 100, 100)
    nothing = captioned_grid(images, ["", ""], 2)
    for column, captions in enumerate((["one", ""], ["", "two"])):
        changed = (captioned_grid(images, captions, 2) != nothing).any(dim=0)
        rows, columns = changed.nonzero().T
        height, width = 2 * 100, 2 * 100  # enlarged
        left = GAP + column * (width + GAP)
        assert rows.min() >= GAP + height and rows.max() < GAP + height + LINE
        assert left <= columns.min() and columns.max() < left + width
        centre = (columns.min() + columns.max()).item() / 2
        assert centre == pytest.approx(left + width / 2, abs=3)


def test_lines_of_a_caption_are_below_each_other() -> None:
    one, two = (captioned_grid(batch(1, 9, 9), [text], 1) for text in ("cat", "cat\ndog"))
    assert two.shape[1] == one.shape[1] + LINE
    assert two[:, : one.shape[1] - GAP].equal(one[:, : one.shape[1] - GAP])


def test_images_of_several_sizes_share_a_grid() -> None:
    large, small = (batch(1, side, side)[0] for side in (200, 60))
    grid = captioned_grid([large, small], ["a", "b"], 2)
    assert grid[:, GAP : GAP + 200, GAP : GAP + 200].equal(large)
    left = 2 * GAP + 200 + (200 - 180) // 2  # enlarged by 3, in the middle of its column
    shown = grid[:, GAP : GAP + 180, left : left + 180]
    assert shown.equal(small.repeat_interleave(3, 1).repeat_interleave(3, 2))


def test_floats_are_rounded() -> None:
    images = batch(2, 150, 150)
    moved = images.float() + torch.rand(images.shape) * 0.8 - 0.4
    assert captioned_grid(moved, ["a", "b"], 2).equal(captioned_grid(images, ["a", "b"], 2))


def test_long_lines_are_cut_and_no_name_is_refused() -> None:
    font = load_font()
    assert font.size == FONT_SIZE
    assert cut_to_fit("cat", font, 100) == "cat"
    cut = cut_to_fit("a name that is much too long", font, 100)
    assert cut[-1] == "…" and "a name that is much too long".startswith(cut[:-1])
    assert 80 < font.getlength(cut) <= 100
    names = ["", " ", "猫", "lat\udce9in", "x" * 1000, "\t", "\x00"]
    assert captioned_grid(batch(len(names), 8, 8), names, 3).shape[0] == 3


def test_the_shade_of_a_count_is_its_share_of_the_row() -> None:
    counts = torch.tensor([[9, 0, 1], [0, 0, 0], [2, 0, 2]])
    table = draw_counts(counts, ["cat", "a name too\nlong for its place" * 9, "\u4e2d"], TITLE)
    assert table.dtype == torch.uint8 and table.shape[2] <= WIDTH
    cell = CELL // 3
    top = table.shape[1] - 3 * cell
    left = top - LINE  # names have the same room on both sides

    def shade(row: int, column: int) -> list[int]:
        return table[:, top + row * cell + 1, left + column * cell + 1].tolist()

    assert shade(0, 1) == shade(1, 1) == [255, 255, 255]
    assert shade(2, 0) == shade(2, 2)
    assert shade(0, 0)[0] < shade(2, 0)[0] < shade(0, 2)[0] < 255
    assert not table.equal(draw_counts(counts, ["dog", "", ""], TITLE))


def test_a_table_of_many_classes_is_not_larger() -> None:
    counts = torch.eye(900, dtype=torch.int64)
    assert draw_counts(counts, [str(i) for i in range(900)], TITLE).shape[2] <= WIDTH
