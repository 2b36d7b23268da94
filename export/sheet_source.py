"""Which sheets a backbone is trained on, and processes that draw them ahead.

A sheet follows from its number alone, so that a run that was killed goes on as if it had not been, whatever the
number of processes that draw. Nothing here needs torch: a drawing process starts in a second and stays small.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Final

import cv2
import numpy as np

from sdk.surfaces.sheets import SHEET_PX, Combination, Sheet, draw_sheet

AHEAD: Final = 3
"""Tasks that each drawing process has waiting."""
TASK: Final = 8
"""Sheets of one task: handing a task over costs as much as drawing a twentieth of a sheet."""


@dataclass(frozen=True)
class Source:
    """Which sheets there are.

    Attributes:
        seed: Of everything drawn.
        recipes: How many surfaces.
        without: Combinations that are never drawn.
        pool: Sheets held at a time.
        fresh: Sheets that replace the oldest at each step.
        aimed: Share of the crops that look at a defect, where the sheet has one; the others look anywhere.
        faint: Share of the defects that are faded.
        size_px: Side of a sheet.
    """

    seed: int
    recipes: int
    without: frozenset[Combination]
    pool: int
    fresh: int
    aimed: float = 0.0
    faint: float = 0.0
    size_px: int = SHEET_PX

    def sheet(self, number: int) -> Sheet:
        """Return the sheet of a number: each of as many in a row as there are recipes shows another one."""
        turn, place = divmod(number, self.recipes)
        order = np.random.default_rng([self.seed, turn]).permutation(self.recipes)
        return draw_sheet(
            int(order[place]),
            turn,
            seed=self.seed,
            size_px=self.size_px,
            without=self.without,
            faint=self.faint,
        )

    def sheets(self, task: int) -> list[Sheet]:
        """Return the sheets of a task: `TASK` numbers in a row."""
        return [self.sheet(number) for number in range(TASK * task, TASK * (task + 1))]


class Drawer:
    """Draws sheets, in this process or in others ahead of time.

    Args:
        source: Which.
        processes: That draw ahead; 0 draws in this one when a sheet is asked for.
    """

    def __init__(self, source: Source, processes: int = 0) -> None:
        self.source = source
        self._next = 0
        self._coming: dict[int, Future[list[Sheet]]] = {}
        self._at_hand: dict[int, Sheet] = {}
        self._ahead = processes * AHEAD
        # Forked from a process with threads (torch has some), a child may wait for ever for what one of them held.
        fresh = get_context("spawn")
        self._drawers = ProcessPoolExecutor(processes, fresh, initializer=_quietly) if processes else None

    def close(self) -> None:
        """End the drawing processes."""
        if self._drawers is not None:
            self._drawers.shutdown(cancel_futures=True)

    def missing(self, step: int) -> range:
        """Return the numbers of the sheets that a pool lacks before this step, to be asked for in order."""
        end = self.source.pool + self.source.fresh * step
        return range(max(self._next, end - self.source.pool), end)

    def sheet(self, number: int) -> Sheet:
        """Return a sheet; the next ones are on their way. Numbers are asked for in order, each once."""
        self._next = number + 1
        if self._drawers is None:
            return self.source.sheet(number)
        if number not in self._at_hand:
            task = number // TASK
            for coming in range(task, task + self._ahead + 1):
                if coming not in self._coming:
                    self._coming[coming] = self._drawers.submit(self.source.sheets, coming)
            drawn = self._coming.pop(task).result()
            self._at_hand = {TASK * task + i: sheet for i, sheet in enumerate(drawn) if TASK * task + i >= number}
        return self._at_hand.pop(number)


def _quietly() -> None:
    cv2.setNumThreads(1)  # as many processes as there are to be


def names_without(combinations: Collection[Combination]) -> str:
    """Return combinations as people read them."""
    return ", ".join(f"{defect} on {kind}" for kind, defect in sorted(combinations))
