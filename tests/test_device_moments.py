"""The moments that a device keeps: as if summed anew after any change, and after a code that could not be read."""

from __future__ import annotations

import numpy as np
import pytest

from device_agent.moments import LearnedMoments
from device_agent.provisional import Changes
from sdk.codes import Code, Codes
from sdk.errors import StoreCorrupt
from sdk.liveset import LiveRow, codes_of
from sdk.moments import UNADAPTED, Adaptation, Moments
from sdk.shelf import Ints, MemoryShelf
from tests.builders import random_codes
from tests.test_head import A, B

D = 16
TWICE = Adaptation(own_weight=2)


class Failing(MemoryShelf):
    """A shelf whose reads fail from the n-th on."""

    def __init__(self) -> None:
        super().__init__(D)
        self.reads_left = 1_000

    def read(self, places: Ints) -> Codes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise StoreCorrupt("a bad sector", hint="Replace the disk.")
        return super().read(places)


def rows_of(shelf: MemoryShelf, codes: Codes) -> list[LiveRow]:
    def row(number: int, code: Code) -> LiveRow:
        sample, device = number.to_bytes(32, "big"), "line-1" if number % 2 else "line-2"
        return LiveRow(
            sample, (A, B)[number % 3 > 0], f"g{number}", device, "ann", shelf.put(device, 1, code), shelf
        )

    return [row(number, code) for number, code in enumerate(codes)]


def is_own(row: LiveRow) -> bool:
    return row.device == "line-1"


def summed(rows: list[LiveRow]) -> Moments:
    moments = Moments(D)
    moments.add(codes_of(rows), [row.class_id for row in rows])
    return moments


def test_changes_lead_to_what_summing_up_gives() -> None:
    shelf = MemoryShelf(D)
    rows = rows_of(shelf, random_codes(30, D))
    moments = LearnedMoments(Moments(D), is_own)
    moments.sum_up(rows[:20], TWICE)
    moments.apply({row.sample: (None, row) for row in rows[20:]})
    moments.apply({row.sample: (row, None) for row in rows[:5]})
    moments.apply({rows[9].sample: (rows[9], rows[9]._replace(class_id=A, device="line-2"))})
    now = [*rows[5:9], rows[9]._replace(class_id=A, device="line-2"), *rows[10:]]
    assert moments.everything == summed(now)
    assert moments.own == summed(list(filter(is_own, now)))


def test_own_rows_are_apart_only_where_a_head_needs_them() -> None:
    rows = rows_of(MemoryShelf(D), random_codes(6, D))
    moments = LearnedMoments(Moments(D), is_own)
    assert not moments.serve(UNADAPTED)
    moments.sum_up(rows, UNADAPTED)
    assert moments.own is None
    assert moments.serve(UNADAPTED)
    assert not moments.serve(TWICE)
    moments.bring_up({}, rows, TWICE)
    assert moments.own == summed(list(filter(is_own, rows)))
    assert not moments.serve(UNADAPTED)


def test_summed_samples_of_a_release_stay_among_them() -> None:
    rest = summed(rows_of(MemoryShelf(D), random_codes(4, D)))
    before = rest.digest()
    moments = LearnedMoments(rest, is_own)
    moments.sum_up([], UNADAPTED)
    moments.apply({row.sample: (None, row) for row in rows_of(MemoryShelf(D), random_codes(3, D, seed=1))})
    assert sum(moments.everything.counts().values()) == 7
    assert rest.digest() == before


@pytest.mark.parametrize("after", range(4), ids=["all", "all gone", "own", "own gone"])
def test_a_change_that_broke_off_is_summed_up_anew(after: int) -> None:
    shelf = Failing()
    rows = rows_of(shelf, random_codes(30, D))
    moments = LearnedMoments(Moments(D), is_own)
    moments.sum_up(rows[:20], TWICE)
    changes: Changes = {row.sample: (None, row) for row in rows[20:]} | {
        row.sample: (row, None) for row in rows[:5]
    }
    shelf.reads_left = after
    with pytest.raises(StoreCorrupt):
        moments.apply(changes)
    assert not moments.serve(TWICE)
    shelf.reads_left = 1_000
    moments.bring_up(changes, rows[5:], TWICE)
    assert moments.serve(TWICE)
    assert moments.everything == summed(rows[5:])
    assert moments.own == summed(list(filter(is_own, rows[5:])))
    assert np.array_equal(moments.everything.gram, moments.everything.gram.T)
