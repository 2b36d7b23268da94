"""What is asked of each cell: where a defect is, and that a small one counts as much as a large one."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from export.answers import AREA, HEAVIEST, Answers, cell_loss, wanted_cells
from sdk.surfaces.sheets import DEFECT_NAMES, KIND_NAMES

pytestmark = pytest.mark.torch

ANY = len(DEFECT_NAMES)


def test_a_cell_shows_what_lies_in_any_of_its_squares() -> None:
    marks = torch.zeros((2, 8, 8), dtype=torch.int32)
    marks[0, 1, 6] = 1 << 3 | 1 << 12
    wanted = wanted_cells(marks, 8)
    assert wanted.shape == (2, ANY + 1, 4, 4)
    assert {tuple(place) for place in wanted.nonzero().tolist()} == {(0, c, 0, 3) for c in (3, 12, ANY)}
    assert {tuple(place) for place in wanted_cells(marks, 16).nonzero().tolist()} == {
        (0, c, 0, 1) for c in (3, 12, ANY)
    }


def test_a_small_defect_weighs_as_much_as_a_larger_one() -> None:
    """What a defect that nobody sees costs, by how many of 400 cells it covers."""
    quiet = torch.full((1, ANY + 1, 20, 20), -9.0)

    def missed(cells: int) -> float:
        wanted = torch.zeros_like(quiet)
        wanted[0, 0].view(-1)[:cells] = 1
        return float(cell_loss(quiet, wanted) - cell_loss(quiet, torch.zeros_like(quiet)))

    area = round(AREA * 400)
    assert missed(2) == pytest.approx(missed(area), rel=0.01)
    assert missed(1) == pytest.approx(HEAVIEST / area * missed(area), rel=0.01)
    assert missed(3 * area) == pytest.approx(3 * missed(area), rel=0.01)  # no cell counts for less than itself


def test_answers_are_of_the_sizes_asked_for() -> None:
    answers = Answers(10, [4, 6], surfaces=28, hidden=8).eval()
    said = answers(torch.zeros(2, 10), [torch.zeros(2, 4, 8, 8), torch.zeros(2, 6, 4, 4)])
    assert said.surface.shape == (2, 28)
    assert said.kind.shape == (2, len(KIND_NAMES))
    assert said.defects.shape == (2, ANY)
    assert [tuple(cells.shape[1:]) for cells in said.cells] == [(ANY + 1, 8, 8), (ANY + 1, 4, 4)]


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_more_or_fewer_levels_than_are_asked_are_refused(levels: int) -> None:
    answers = Answers(10, [4, 6], surfaces=28, hidden=8).eval()
    with pytest.raises(ValueError, match="zip"):
        answers(
            torch.zeros(2, 10),
            [torch.zeros(2, 4, 8, 8)] * min(levels, 1) + [torch.zeros(2, 6, 4, 4)] * (levels - 1),
        )
