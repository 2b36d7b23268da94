"""Questions as the page asks them: the queue's reason in parts that any language can say, and who could not
tell."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from device_agent.database import Database
from device_agent.queue import SPOT_CHECK, UNLIKE_ANYTHING, YOUNG

MAX_UNSURE: Final = 10_000


@dataclass(frozen=True)
class Question:
    """Why an operator is asked. `first` and `second` are the classes that the head hesitates between; of a young
    class there is only `first`."""

    kind: Literal["unlike", "between", "young", "check", "other"]
    first: str | None = None
    second: str | None = None


def question_of(reason: str, names: Sequence[str]) -> Question | None:
    """Return a queue's reason in parts; None where nothing is asked.

    Class names may contain anything, " and " too, so they are looked for rather than cut out.

    >>> question_of("between rust and dirt and oil", ["dirt and oil", "rust"])
    Question(kind='between', first='rust', second='dirt and oil')
    >>> question_of("few labels yet of dirt and oil", ["dirt and oil", "rust"])
    Question(kind='young', first='dirt and oil', second=None)
    """
    if not reason:
        return None
    if reason == UNLIKE_ANYTHING:
        return Question("unlike")
    if reason == SPOT_CHECK:
        return Question("check")
    if reason.startswith(YOUNG) and (name := reason.removeprefix(YOUNG)) in names:
        return Question("young", name)
    if reason.startswith("between "):
        rest = reason.removeprefix("between ")
        for first in names:
            second = rest.removeprefix(f"{first} and ")
            if second != rest and second in names:
                return Question("between", first, second)
    return Question("other")


class Unsure:
    """Samples that somebody could not tell. They stay in the queue, at its end."""

    def __init__(self, book: Database) -> None:
        self._book = book

    def mark(self, sample: bytes, who: str) -> None:
        """Somebody cannot tell; durable when this returns."""
        with self._book.transaction() as db:
            db.execute("REPLACE INTO unsure VALUES (?, ?, ?)", (sample, time.time(), who))
            db.execute(
                "DELETE FROM unsure WHERE sample IN"
                " (SELECT sample FROM unsure ORDER BY at_utc DESC LIMIT -1 OFFSET ?)",
                (MAX_UNSURE,),
            )

    def forget(self, samples: Collection[bytes]) -> None:
        """Somebody could."""
        if self.among(samples):
            with self._book.transaction(durable=False) as db:
                db.executemany("DELETE FROM unsure WHERE sample = ?", [(sample,) for sample in samples])

    def count(self) -> int:
        """Return of how many samples that was said."""
        return int(self._book.value("SELECT count(*) FROM unsure"))

    def among(self, samples: Collection[bytes]) -> set[bytes]:
        """Return those of these samples that somebody could not tell."""
        if not samples:
            return set()
        marks = ", ".join("?" * len(samples))
        return {
            row[0] for row in self._book.rows(f"SELECT sample FROM unsure WHERE sample IN ({marks})", *samples)
        }
