"""Every part's verdict, in an SQLite file of its own, for as many parts as the settings keep; and as CSV.

The agent writes it as an output that replays. Others read it while the agent runs: `headway agent history`.
Beside the verdicts stands how far each output has come that goes on where it was after a restart
(`device_agent.outputs.LastingOutput`): a power cut may set that back by a little, never forward.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import logging
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Final

from device_agent.database import Database, disk, read_uri
from device_agent.parts import KeptPart, Part
from sdk.errors import ConfigError, HeadwayError, OutputFailed, StoreFull
from sdk.shown import shown
from sdk.spreadsheet import harmless
from sdk.wire import Result, Verdict

_log = logging.getLogger(__name__)

FOLDER_NAME: Final = "history"
FILE_NAME: Final = "history.sqlite3"
MAX_BYTES: Final = 16 * 1024**3
CACHE_KIB: Final = 256
"""Rows are written in turn and hardly ever read here: more would only fill with what was written."""
PRUNE_EVERY: Final = 1000
"""Parts between two looks for rows that are too many."""

_MIGRATIONS: Final = (
    (
        """CREATE TABLE parts (
            id INTEGER PRIMARY KEY AUTOINCREMENT, captured_utc REAL NOT NULL, latency_ms REAL NOT NULL,
            part TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL, decision TEXT NOT NULL,
            probability REAL NOT NULL, novelty REAL NOT NULL, unknown INTEGER NOT NULL, sample TEXT NOT NULL,
            head INTEGER, camera INTEGER, x INTEGER, y INTEGER, width INTEGER, height INTEGER,
            frames INTEGER NOT NULL, tiles INTEGER NOT NULL, rejected_tiles INTEGER NOT NULL)""",
        "CREATE INDEX parts_by_time ON parts (captured_utc)",
    ),
    (
        "ALTER TABLE parts ADD COLUMN run TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE parts ADD COLUMN number INTEGER",
        # An output has what is not behind `after`, and of `run` what is not beyond `number`: of a run under way
        # the verdicts may be delivered before they stand here.
        """CREATE TABLE delivered (
            output TEXT PRIMARY KEY, after INTEGER NOT NULL, run TEXT NOT NULL, number INTEGER NOT NULL)""",
    ),
    ("ALTER TABLE parts ADD COLUMN defect REAL",),
    ("ALTER TABLE parts ADD COLUMN lot TEXT NOT NULL DEFAULT ''",),
)
_WAITS: Final = "id > ? AND NOT (run = ? AND ifnull(number, 0) <= ?)"


@dataclass(frozen=True)
class PartRow:
    """One line of the history: a part's verdict and the tile that decided.

    `head` is the number of the head that decided, `sample` the tile's id in hex, `camera` to `height` where it
    lies, empty where it is a whole frame. All are empty where no tile was seen. `run` and `number` are as they are
    posted, and empty where an earlier version wrote them not. `defect` is the deciding tile's probability of a
    defect, empty also where no class was known to be good. `lot` is what the trigger said.
    """

    id: int
    captured_utc: float
    latency_ms: float
    part: str
    verdict: str
    reason: str
    decision: str
    probability: float
    novelty: float
    unknown: bool
    sample: str
    head: int | None
    camera: int | None
    x: int | None
    y: int | None
    width: int | None
    height: int | None
    frames: int
    tiles: int
    rejected_tiles: int
    run: str
    number: int | None
    defect: float | None
    lot: str


COLUMNS: Final = tuple(field.name for field in fields(PartRow))
_LATER: Final = (
    {"run": "'' AS run", "number": "NULL AS number"},
    {"defect": "NULL AS defect"},
    {"lot": "'' AS lot"},
)
"""What each schema after the first has added, as a file has it that no agent of that version has opened yet."""


class History:
    """Where verdicts are kept; an output (`device_agent.outputs`).

    Args:
        data_dir: The agent's data folder.
        keep_parts: The newest so many.
        run: Names this run of the agent, and no other.

    Raises:
        StoreCorrupt, StoreFull: the file is damaged, or the disk takes no writes.
    """

    name = "history"
    replays = True

    def __init__(self, data_dir: Path, keep_parts: int, run: str = "") -> None:
        folder = data_dir / FOLDER_NAME
        with disk(data_dir, opening=True):
            folder.mkdir(parents=True, exist_ok=True)
        self._keep, self._run = keep_parts, run
        self._closed = False
        self._db = Database(folder / FILE_NAME, _MIGRATIONS, max_bytes=MAX_BYTES, cache_kib=CACHE_KIB)
        self._before: int = self._db.value("SELECT ifnull(max(id), 0) FROM parts")  # of this run are those behind

    def resume(self, outputs: Collection[str], *, newest: int) -> dict[str, list[KeptPart]]:
        """Return for each output the verdicts of earlier runs that it lacks, oldest first. Call it once, first.

        One that is new here lacks none: what is of the past was never to go there. One that is not among them any
        more is forgotten. A full disk keeps nobody from starting: what cannot be written down now is later.

        Args:
            outputs: Their names (`LastingOutput.resumes_as`).
            newest: At most so many for each.

        Raises:
            StoreCorrupt: the file is damaged.
        """
        found: dict[str, list[KeptPart]] = {name: [] for name in outputs}
        with self._db.transaction(durable=False) as db:
            known = db.execute("SELECT output, after, run, number FROM delivered").fetchall()
            for name, *place in known:
                (count,) = db.execute(f"SELECT count(*) FROM parts WHERE {_WAITS}", place).fetchone()
                given_up = count if name not in found else max(0, count - newest)
                if given_up:
                    _log.warning("%s: %d verdicts that waited will not be delivered", name, given_up)
                if name in found:
                    rows = _select(db, f"{_WAITS} ORDER BY id DESC LIMIT ?", [*place, newest])
                    found[name] = [_kept(row) for row in rows][::-1]
        names = {name for name, *_ in known}
        if found.keys() != names:
            with contextlib.suppress(StoreFull), self._db.transaction() as db:
                for name in names - found.keys():
                    db.execute("DELETE FROM delivered WHERE output = ?", (name,))
                for name in found.keys() - names:
                    db.execute("INSERT INTO delivered VALUES (?, ?, '', 0)", (name, self._before))
        return found

    def behind(self, run: str, number: int) -> list[PartRow]:
        """Return a run's verdicts behind a number, newest first; none where another run has written since.

        Raises:
            StoreCorrupt: the file is damaged.
        """
        with self._db.transaction(durable=False) as db:  # from the end: what is asked for is little, and the last
            newest = _select(db, "1 ORDER BY id DESC", [])
            return list(itertools.takewhile(lambda row: row.run == run and (row.number or 0) > number, newest))

    def delivered(self, output: str, part: Part) -> None:
        """Write down that an output has all verdicts up to this one, or never will have them.

        A power cut may take it back. After `close` nothing is written.

        Raises:
            StoreFull, StoreCorrupt: the disk takes no writes, or the file is damaged.
        """
        place = (part.id, "", 0) if isinstance(part, KeptPart) else (self._before, self._run, part.number)
        with self._db.lock:
            if not self._closed:
                with self._db.transaction(durable=False) as db:
                    db.execute("INSERT OR REPLACE INTO delivered VALUES (?, ?, ?, ?)", (output, *place))

    def send(self, part: Part) -> None:
        """Write one verdict."""
        self.send_all([part])

    def send_all(self, parts: Sequence[Part]) -> None:
        """Write verdicts in one transaction. A power cut may take the last of them, a crash does not."""
        rows = [(*_row(part), self._run, part.number, _defect(part), part.lot) for part in parts]
        marks = ", ".join("?" * len(rows[0]))
        try:
            with self._db.transaction(durable=False) as db:
                for row in rows:
                    written = db.execute(f"INSERT INTO parts VALUES (NULL, {marks})", row).lastrowid or 0
                    if written % PRUNE_EVERY == 0:
                        db.execute("DELETE FROM parts WHERE id <= ?", (written - self._keep,))
        except HeadwayError as error:
            raise OutputFailed(str(error), hint=error.hint) from error

    def beat(self) -> None:
        """Nothing: whoever reads sees what is there."""

    def close(self) -> None:
        """Close the file."""
        with self._db.lock:
            self._closed = True
            self._db.close()


def _row(part: Part) -> tuple[object, ...]:
    result = part.result()
    decision = None if part.finding is None else part.finding.decision
    return (
        result.captured_utc,
        result.latency_ms,
        result.part,
        part.verdict.value,
        result.reason,
        result.decision,
        result.probability,
        result.novelty,
        result.unknown,
        result.sample or "",
        None if decision is None else decision.head,
        *(result.tile or (None,) * 5),
        result.frames,
        result.tiles,
        result.rejected_tiles,
    )


def _defect(part: Part) -> float | None:
    return None if part.finding is None else part.finding.decision.defect


def read_history(
    data_dir: Path,
    *,
    since_utc: float = 0.0,
    until_utc: float = float("inf"),
    verdict: str | None = None,
    newest: int | None = None,
) -> Iterator[PartRow]:
    """Yield what is kept, oldest first; an agent may be writing.

    Args:
        data_dir: The agent's data folder.
        since_utc, until_utc: Captured from then and before then.
        verdict: pass or reject only.
        newest: At most so many, the last ones.

    Raises:
        ConfigError: there is no history.
    """
    where = "captured_utc >= ? AND captured_utc < ?" + ("" if verdict is None else " AND verdict = ?")
    yield from _rows(
        data_dir, where, [since_utc, until_utc, *([] if verdict is None else [verdict])], newest=newest
    )


def _rows(data_dir: Path, where: str, values: list[object], *, newest: int | None) -> Iterator[PartRow]:
    file = data_dir / FOLDER_NAME / FILE_NAME
    if not file.is_file():
        raise ConfigError(f"there is no history in {data_dir}", hint="The agent writes it from its first part on.")
    with disk(data_dir), contextlib.closing(sqlite3.connect(read_uri(file), uri=True)) as db:
        if newest is not None:
            where = f"id IN (SELECT id FROM parts WHERE {where} ORDER BY id DESC LIMIT ?)"
            values = [*values, newest]
        yield from _select(db, f"{where} ORDER BY id", values)


def _select(db: sqlite3.Connection, where: str, values: Sequence[object]) -> Iterator[PartRow]:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    lacking = {name: empty for added in _LATER[max(0, version - 1) :] for name, empty in added.items()}
    columns = ", ".join(lacking.get(name, name) for name in COLUMNS)
    for row in db.execute(f"SELECT {columns} FROM parts WHERE {where}", tuple(values)):
        named: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
        yield PartRow(**{**named, "unknown": bool(named["unknown"])})


def _kept(row: PartRow) -> KeptPart:
    """Return a verdict as it was told when it fell."""
    verdict = Verdict(row.verdict)
    tile = None
    if row.camera is not None:
        tile = (row.camera, row.x or 0, row.y or 0, row.width or 0, row.height or 0)
    told = Result(
        sample=row.sample or None,
        decision=row.decision,
        probability=row.probability,
        novelty=row.novelty,
        unknown=row.unknown,
        captured_utc=row.captured_utc,
        latency_ms=row.latency_ms,
        part=row.part,
        verdict=verdict,
        reason=row.reason,
        tile=tile,
        frames=row.frames,
        tiles=row.tiles,
        rejected_tiles=row.rejected_tiles,
        lot=row.lot,
    )
    now_s = time.monotonic()
    return KeptPart(
        number=row.number or 0,
        name=row.part,
        verdict=verdict,
        reason=row.reason,
        finding=None,
        frames=row.frames,
        tiles=row.tiles,
        rejected=row.rejected_tiles,
        captured_utc=row.captured_utc,
        captured_s=now_s - row.latency_ms / 1000,
        decided_s=now_s,
        id=row.id,
        lot=row.lot,
        run=row.run,
        told=told,
    )


def greatest_head(data_dir: Path) -> int:
    """Return the greatest number of a head that decided a part in the history; 0 where none is known.

    It reads every row: 0.1 s for a million of them.

    Raises:
        StoreCorrupt, StoreFull: the file is damaged, or cannot be read.
    """
    file = data_dir / FOLDER_NAME / FILE_NAME
    if not file.is_file():
        return 0
    with disk(data_dir), contextlib.closing(sqlite3.connect(read_uri(file), uri=True)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            return 0  # whoever made it was killed before it had a table
        return int(db.execute("SELECT ifnull(max(head), 0) FROM parts").fetchone()[0])


def newest_of(data_dir: Path, part: str) -> PartRow | None:
    """Return the newest verdict of a part; None where there is none. An agent may be writing.

    Raises:
        ConfigError: there is no history.
    """
    return next(_rows(data_dir, "part = ?", [part], newest=1), None)


def write_csv(rows: Iterator[PartRow], file: IO[str]) -> int:
    """Write rows as CSV, with a first line of names and times in UTC (ISO 8601); return how many there were.

    A text that a spreadsheet would compute gets an apostrophe before it, and what a terminal would obey is
    shown as `sdk.shown` does: part ids come from outside.

    Raises:
        ConfigError: as `read_history`; nothing is written then.
    """
    first = list(itertools.islice(rows, 1))  # where there is no history it is said before anything is written
    out = csv.writer(file, lineterminator="\n")
    out.writerow(COLUMNS)
    count = 0
    for count, row in enumerate(itertools.chain(first, rows), 1):  # noqa: B007 - the last one counts
        out.writerow([_cell(name, getattr(row, name)) for name in COLUMNS])
    return count


def _cell(name: str, value: object) -> object:
    if name == "captured_utc" and isinstance(value, float):
        return datetime.fromtimestamp(value, timezone.utc).isoformat(timespec="milliseconds")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return harmless(shown(value))
    return "" if value is None else value
