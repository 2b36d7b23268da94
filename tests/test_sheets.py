"""Sheets to learn from: as many surfaces as asked for, each the same surface in all its pieces, defects marked."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from sdk.surfaces.parts import Stream
from sdk.surfaces.sheets import DEFECT_NAMES, KIND_NAMES, MARK_PX, Marks, draw_sheet, kind_of

ALL = frozenset((kind, defect) for kind in KIND_NAMES for defect in DEFECT_NAMES)


Floats = npt.NDArray[np.float64]


def _shown(marks: Marks) -> set[str]:
    found = int(np.bitwise_or.reduce(marks, axis=None))
    return {name for i, name in enumerate(DEFECT_NAMES) if found & 1 << i}


def test_numbers_name_a_sheet_and_nothing_else_does() -> None:
    one, again = draw_sheet(3, 1, size_px=64), draw_sheet(3, 1, size_px=64)
    assert one.frame.tobytes() == again.frame.tobytes()
    assert one.marks.tobytes() == again.marks.tobytes()
    others = [draw_sheet(3, 2, size_px=64), draw_sheet(4, 1, size_px=64), draw_sheet(3, 1, seed=1, size_px=64)]
    assert all(other.frame.tobytes() != one.frame.tobytes() for other in others)


def test_single_numbers_stay_and_fields_change_in_another_piece_of_a_surface() -> None:
    """That is what makes a piece of the same surface: its pitch is the recipe's, its grain the piece's."""
    one, other = (Stream("surface", 7, again=("piece", 7, piece)) for piece in range(2))
    assert [one.between(0, 1), one.count(0, 99), one.pick("abc")] == [
        other.between(0, 1),
        other.count(0, 99),
        other.pick("abc"),
    ]
    assert not np.array_equal(one.noise(32, 3.0), other.noise(32, 3.0))


def test_pieces_of_one_surface_are_more_alike_than_other_surfaces_of_its_kind() -> None:
    """By how much their pictures vary at each scale but the finest, which is the camera's noise."""
    no_defects = ALL - {(kind, "bump") for kind in KIND_NAMES}

    def spectrum(recipe: int, piece: int) -> Floats:
        frame = draw_sheet(recipe, piece, size_px=128, without=no_defects).frame
        grey = np.asarray(cv2.pyrDown(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)), np.float32)
        power = []
        for _ in range(4):
            soft = cv2.pyrDown(grey)
            power.append(float((grey - cv2.pyrUp(soft, dstsize=grey.shape[::-1])).var()))
            grey = np.asarray(soft, np.float32)
        return np.log(np.array(power) / sum(power) + 1e-6)

    within, between = [], []
    for first in range(len(KIND_NAMES)):
        pieces = np.stack([[spectrum(first + len(KIND_NAMES) * r, p) for p in range(2)] for r in range(4)])
        within.append(np.linalg.norm(pieces - pieces.mean(1, keepdims=True), axis=2).mean())
        between.append(np.linalg.norm(pieces - pieces.mean((0, 1)), axis=2).mean())
    assert np.mean(within) < 0.6 * np.mean(between)


def test_every_defect_comes_up_and_every_sheet_differs_in_how_many() -> None:
    shown = [_shown(draw_sheet(i, 0, size_px=64).marks) for i in range(90)]
    assert set().union(*shown) == set(DEFECT_NAMES)
    assert 5 < sum(not kinds for kinds in shown) < 45
    assert max(len(kinds) for kinds in shown) >= 3


def test_a_combination_left_out_never_comes_up() -> None:
    recipe = KIND_NAMES.index("brushed")
    only = frozenset(("brushed", name) for name in DEFECT_NAMES if name not in ("pit", "dent"))
    shown = [_shown(draw_sheet(recipe, piece, size_px=64, without=only).marks) for piece in range(30)]
    assert set().union(*shown) == {"pit", "dent"}


def test_marks_are_where_the_picture_differs() -> None:
    """The same piece with only one kind of defect, and with another one: they differ at either's marks."""
    louder = []
    for recipe in range(0, 28, 2):
        kind = kind_of(recipe)
        alone = frozenset((kind, name) for name in DEFECT_NAMES if name != "missing")
        sheet = draw_sheet(recipe, 0, size_px=128, without=alone)
        if not sheet.marks.any():
            continue
        inside = cv2.resize((sheet.marks > 0).astype(np.uint8), (128, 128), interpolation=cv2.INTER_NEAREST) > 0
        edge = cv2.morphologyEx(inside.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((9, 9), np.uint8)) > 0
        slope = np.abs(cv2.Laplacian(sheet.frame, cv2.CV_32F)).mean(2)
        louder.append(float(slope[edge].mean() / slope[~edge & ~inside].mean()))
    assert len(louder) >= 8
    assert np.median(louder) > 1.0


@pytest.mark.parametrize(
    ("recipe", "piece", "size_px"), [(-1, 0, 64), (0, -1, 64), (0, 0, 16), (0, 0, 66), (0, 0, 0)]
)
def test_a_sheet_that_cannot_be_is_refused(recipe: int, piece: int, size_px: int) -> None:
    assert size_px % MARK_PX or size_px < 8 * MARK_PX or min(recipe, piece) < 0
    with pytest.raises(ValueError, match="no sheet"):
        draw_sheet(recipe, piece, size_px=size_px)
