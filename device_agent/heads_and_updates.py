"""What the store keeps of the heads that served on this device, and of the attempts to bring releases here.

Rows only: what they mean is the learner's and the update's. The tables are in `schema`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import msgspec

from device_agent.database import Database
from sdk.reason import Reason
from sdk.wire import UpdateState

_encoder: Final = msgspec.msgpack.Encoder()
NEWEST_UPDATES: Final = (
    "SELECT number, at_utc, release_id, job, state, reason, starts FROM updates ORDER BY number DESC LIMIT ?"
)
MAY_SERVE: Final = 1000
"""Attempts that are looked through for a release that may serve."""


class Outcome(str, Enum):
    """How a head's trial ended. Values are stored."""

    PROVISIONAL = "provisional"
    CONFIRMED = "confirmed"
    TAKEN_BACK = "taken_back"
    SUPERSEDED = "superseded"


@dataclass(frozen=True)
class HeadRow:
    """One head that served on this device. The head itself is a function of the records up to `through`.

    Attributes:
        number: Counts the device's heads from 1.
        created_utc: When it began to serve.
        space: Feature space id.
        digest: Digest of the live set it was solved from.
        through: Arrival number of the last record in that live set.
        samples: Size of the live set.
        outcome: How its trial ended.
        reason: Why, in English.
        score: MessagePack of its honest score, once it has one.
        calibration: MessagePack of its calibration, once it has its own.
        adaptation: MessagePack of how own samples count in it; None where they count as all others.
        why: The reason as codes with values; empty for rows of before they were kept.
    """

    number: int
    created_utc: float
    space: str
    digest: str
    through: int
    samples: int
    outcome: Outcome
    reason: str = ""
    score: bytes | None = None
    calibration: bytes | None = None
    adaptation: bytes | None = None
    why: tuple[Reason, ...] = ()


@dataclass(frozen=True)
class UpdateRow:
    """One attempt to bring a release onto this device. `job` is the assignment as JSON; `starts` counts how
    often the agent has started while the release was provisional."""

    number: int
    at_utc: float
    release_id: str
    job: bytes
    state: UpdateState
    reason: str = ""
    starts: int = 0


class Heads:
    """The heads' history. Any thread may call.

    Args:
        db: The store's.
        keep: Rows at most.
    """

    def __init__(self, db: Database, *, keep: int) -> None:
        self._db = db
        self._keep = keep
        self._number = int(db.value("SELECT coalesce(max(number), 0) FROM heads"))

    def next_number(self) -> int:
        """Return a number that no head of this device has had, even where rows could not be stored."""
        with self._db.lock:
            self._number += 1
            return self._number

    def number_beyond(self, number: int) -> None:
        """Let no later head have this number or a smaller one: heads had them whose rows are not here."""
        with self._db.lock:
            self._number = max(self._number, number)

    def put(self, row: HeadRow) -> None:
        """Store a head's row, new or with its trial's outcome; superseded ones are forgotten first."""
        with self._db.transaction(durable=False) as db:
            db.execute(
                "REPLACE INTO heads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    row.number,
                    row.created_utc,
                    row.space,
                    row.digest,
                    row.through,
                    row.samples,
                    row.outcome.value,
                    row.reason,
                    row.score,
                    row.calibration,
                    row.adaptation,
                    _encoder.encode(row.why) if row.why else None,
                ),
            )
            db.execute(
                "DELETE FROM heads WHERE number IN (SELECT number FROM heads"
                " ORDER BY outcome = 'superseded', number DESC LIMIT -1 OFFSET ?)",
                (self._keep,),
            )

    def newest(self, *, limit: int) -> list[HeadRow]:
        """Return the heads' history, newest first."""
        return [head_row(row) for row in self._db.rows("SELECT * FROM heads ORDER BY number DESC LIMIT ?", limit)]

    def last(self, space: str, outcomes: Sequence[Outcome]) -> HeadRow | None:
        """Return the newest head of this feature space whose trial ended in one of these ways."""
        marks = ", ".join("?" * len(outcomes))
        row = self._db.row(
            f"SELECT * FROM heads WHERE space = ? AND outcome IN ({marks}) ORDER BY number DESC LIMIT 1",
            space,
            *(outcome.value for outcome in outcomes),
        )
        return None if row is None else head_row(row)


class Updates:
    """The attempts to bring releases here. Any thread may call.

    Args:
        db: The store's.
        clock: Seconds since 1970.
        with_room: Runs a write, and finds room for it where the disk is full.
    """

    def __init__(
        self, db: Database, *, clock: Callable[[], float], with_room: Callable[[Callable[[], None]], None]
    ) -> None:
        self._db = db
        self._clock = clock
        self._with_room = with_room

    def begin(self, release_id: str, job: bytes) -> UpdateRow:
        """Store a new attempt to bring a release here, in its first state; durable when it returns."""
        state = UpdateState.DOWNLOADING
        at = self._clock()
        with self._db.transaction() as db:
            number = db.execute(
                "INSERT INTO updates (at_utc, release_id, job, state, reason, starts) VALUES (?, ?, ?, ?, '', 0)",
                (at, release_id, job, state.value),
            ).lastrowid
        return UpdateRow(int(number or 0), at, release_id, job, state)

    def put(self, row: UpdateRow) -> None:
        """Store how an attempt stands; durable when it returns."""
        self._with_room(lambda: self._put(row))

    def _put(self, row: UpdateRow) -> None:
        with self._db.transaction() as db:
            db.execute(
                "UPDATE updates SET at_utc = ?, job = ?, state = ?, reason = ?, starts = ? WHERE number = ?",
                (self._clock(), row.job, row.state.value, row.reason, row.starts, row.number),
            )

    def newest(self, limit: int = 20) -> list[UpdateRow]:
        """Return the attempts to bring releases here, newest first."""
        return [update_row(row) for row in self._db.rows(NEWEST_UPDATES, limit)]


def update_row(row: tuple[Any, ...]) -> UpdateRow:
    """Return a row of the table of updates, as `NEWEST_UPDATES` gives it."""
    number, at_utc, release_id, job, state, *rest = row
    return UpdateRow(number, at_utc, release_id, job, UpdateState(state), *rest)


def in_service(newest: Iterable[UpdateRow]) -> Iterator[UpdateRow]:
    """Yield the updates whose releases may serve, newest first, a release once.

    Args:
        newest: The attempts, newest first.
    """
    seen: set[str] = set()
    for row in newest:
        if row.release_id not in seen:
            seen.add(row.release_id)
            if row.state in (UpdateState.PROVISIONAL, UpdateState.COMMITTED):
                yield row


def head_row(row: tuple[Any, ...]) -> HeadRow:
    """Return a row of the table of heads."""
    number, created_utc, space, digest, through, samples, outcome, reason, score, calibration, *rest = row
    adaptation, why = rest
    return HeadRow(
        number=number,
        created_utc=created_utc,
        space=space,
        digest=digest,
        through=through,
        samples=samples,
        outcome=Outcome(outcome),
        reason=reason,
        score=score,
        calibration=calibration,
        adaptation=adaptation,
        why=() if why is None else msgspec.msgpack.decode(why, type=tuple[Reason, ...]),
    )
