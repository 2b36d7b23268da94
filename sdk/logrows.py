"""A label log as rows of JSON that others can read, and check again without the store that it came from.

Every row has what its entry's hash covers, and nothing that does not follow from that and from its place, so
whoever holds the file can check all of it again (`check_rows`). That does not say who wrote it: a whole log can be
written anew, with hashes to match. It has an end that others know, or another export continues it (`check_known`).
No network, no clock, no database.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Final

import msgspec

from sdk.errors import LabelError
from sdk.labels import Body, Chain, CodeRecord, Entry, Record, check_record, entry_hash
from sdk.spreadsheet import harmless

BODIES: Final[dict[str, type[msgspec.Struct]]] = {str(kind.__struct_config__.tag): kind for kind in Body.__args__}
"""Kinds of entries by their names in the log."""
FIELDS: Final = tuple(dict.fromkeys(name for kind in BODIES.values() for name in kind.__struct_fields__))
_HEAD: Final = ("position", "device", "seq", "counter", "utc", "wall_time_us", "kind")
COLUMNS: Final = (*_HEAD, *(f"body_{name}" for name in FIELDS), "code", "prev", "hash")
"""Of a table of the log: `flat` rows."""
_BYTES: Final = frozenset({"sample", "class_id", "space", "code_sha256", "one", "other"})
MAX_LINE: Final = 2**20
"""Characters: a code of 16,384 numbers in hex has 32,768."""
_ALTERED: Final = "Something was altered, left out or put in here: export the log again, and compare."


@dataclass
class Checked:
    """How far a log has been checked.

    Attributes:
        entries: How many.
        codes: How many of them have their code.
        codeless: How many of them had one: it was erased, or is left out.
        chains: Where each device's log ends.
    """

    entries: int = 0
    codes: int = 0
    codeless: int = 0
    chains: dict[str, Chain] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Check the next record in the order of positions.

        Raises:
            LabelError: it does not follow its device's entry before, or contradicts itself.
        """
        check_record(record)
        device = record.entry.device
        self.chains[device] = self.chains.get(device, Chain(device)).follow(record.entry)
        self.entries += 1
        self.codes += record.code is not None
        self.codeless += record.code is None and isinstance(record.entry.body, CodeRecord)


def row_of(position: int, record: Record, *, codes: bool = True) -> dict[str, Any]:
    entry, body = record.entry, record.entry.body
    said = {name: _text(getattr(body, name)) for name in body.__struct_fields__}
    return {
        "position": position,
        "device": entry.device,
        "seq": entry.seq,
        "counter": entry.counter,
        "utc": _utc(entry.wall_time_us),
        "wall_time_us": entry.wall_time_us,
        "kind": str(body.__struct_config__.tag),
        "body": said,
        "code": record.code.hex() if codes and record.code is not None else None,
        "prev": entry.prev.hex(),
        "hash": entry_hash(entry).hex(),
    }


def _text(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _utc(wall_time_us: int) -> str | None:
    try:
        return datetime.fromtimestamp(wall_time_us / 1e6, timezone.utc).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError):
        return None  # a wild clock; `wall_time_us` has what it said


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as a line of a table, with a value for every one of `COLUMNS`."""
    body = {f"body_{name}": row["body"].get(name) for name in FIELDS}
    return {name: body[name] if name in body else row[name] for name in COLUMNS}


def cell(value: object) -> object:
    """Return a value for a CSV: empty for none, and what a spreadsheet would compute behind an apostrophe."""
    if isinstance(value, str):
        return harmless(value)
    return "" if value is None else value


def check_rows(lines: Iterable[str], checked: Checked) -> None:
    """Check an exported log, JSON Lines, from its first line to its last.

    Args:
        lines: Of the file.
        checked: Told of each entry.

    Raises:
        LabelError: there is none, or as `checked_rows`.
    """
    for _ in checked_rows(lines, checked):
        pass
    if not checked.entries:
        raise LabelError("there is no entry in it", hint="Only the log of a channel that never learned is empty.")


def check_known(lines: Iterable[str], ends: Mapping[str, Chain]) -> dict[str, Chain]:
    """Check that logs are those of an export, or begin them; return where each ends in the export.

    Args:
        lines: Of the export, JSON Lines.
        ends: Where each device's log ends that somebody else holds.

    Raises:
        LabelError: one is not the beginning of what the export has of its device, or as `checked_rows`.
    """
    checked = Checked()
    for record in checked_rows(lines, checked):
        device = record.entry.device
        chain, end = checked.chains[device], ends.get(device)
        if end is not None and chain.seq == end.seq and chain.last_hash != end.last_hash:
            raise LabelError(
                f"the log of {device} up to entry {end.seq} is another one there",
                hint="One of the two was written anew, or they are of two fleets.",
            )
    known = {device: checked.chains.get(device, Chain(device)) for device in ends}
    for device, chain in known.items():
        if chain.seq < ends[device].seq:
            raise LabelError(
                f"it has {chain.seq} entries of {device}, of which {ends[device].seq} are to be compared",
                hint="Export the log again, of this device's channel, once all it holds has reached its fleet.",
            )
    return known


def checked_rows(lines: Iterable[str], checked: Checked, *, first: int = 1) -> Iterator[Record]:
    """Yield the records of an exported log, JSON Lines, each when it has been checked.

    Args:
        lines: Of the file.
        checked: Told of each entry.
        first: Number of the first line, for errors.

    Raises:
        LabelError: a line is no entry, is not in its place, does not have the hash it says, breaks its device's
            chain, or says beside its entry what does not follow from it.
    """
    for place, line in enumerate(_bounded(lines, first), 1):
        number = place + first - 1
        try:
            row = json.loads(line, object_pairs_hook=_once)
            record, said = _record(row), row["hash"]
            counted = entry_hash(record.entry).hex()  # JSON has half characters, which no entry can
        except (ValueError, KeyError, TypeError, RecursionError, msgspec.ValidationError) as error:
            raise LabelError(
                f"line {number} is no entry of a log",
                hint="Export the log again, as .jsonl: a table has not all that a hash covers.",
            ) from error
        if (position := row.get("position")) != place:
            raise LabelError(f"line {number} says that its position is {position!r:.40}", hint=_ALTERED)
        if counted != said:
            raise LabelError(f"line {number} does not have the hash that it says", hint=_ALTERED)
        try:
            checked.take(record)
        except LabelError as error:
            raise LabelError(f"line {number}: {error}", hint=_ALTERED) from error
        right = row_of(place, record)
        for name in {**right, **row}:
            if _member(row, name) != _member(right, name):
                raise LabelError(f"line {number}: {name!r:.40} is not what its entry says", hint=_ALTERED)
        yield record


def _bounded(lines: Iterable[str], first: int) -> Iterator[str]:
    """Yield the lines, none longer than an entry can be: a file read by lines may have one of gigabytes."""
    if not isinstance(lines, io.TextIOBase):
        yield from lines
        return
    number = first
    while line := lines.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise LabelError(f"line {number} is longer than an entry can be", hint=_ALTERED)
        yield line
        number += 1


def _member(row: Mapping[str, Any], name: str) -> str | None:
    """Return a member as text, so that 1, 1.0 and true are three; None where it is not there."""
    return json.dumps(row[name], sort_keys=True) if name in row else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's members, each of which may be there once: readers differ in which one they take."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _record(row: Mapping[str, Any]) -> Record:
    kind, said = BODIES[row["kind"]], row["body"]
    if set(said) != set(kind.__struct_fields__):
        raise ValueError("not the fields of its kind")
    body = [
        kind.__struct_config__.tag,
        *(
            bytes.fromhex(said[name]) if name in _BYTES and said[name] is not None else said[name]
            for name in kind.__struct_fields__
        ),
    ]
    numbers = [row["device"], row["seq"], row["counter"], row["wall_time_us"]]
    entry = msgspec.convert([*numbers, bytes.fromhex(row["prev"]), body], Entry)
    return Record(entry, None if row.get("code") is None else bytes.fromhex(row["code"]))
