"""What a fleet keeps beside its database, so that one that came back from an older copy is noticed and made whole.

    DIR/union.json                how long each channel's union was, its last entry's hash, its highest counter
    DIR/decisions/CHANNEL.jsonl   what people decided (quarantines, merges): nobody else could say it again

Neither is put back with a backup: what they say of today is what makes yesterday's copy known for one.
Everything else that is missing the devices have, and offer again (docs/protocol.md, section 4).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec

from sdk.damaged import DAMAGED
from sdk.durable import sync_path
from sdk.labels import MAX_COUNTER, Record, entry_hash

MARKS_NAME: Final = "union.json"
DECISIONS_NAME: Final = "decisions"
_BLOCK: Final = 64 * 1024
"""More than any decision's line."""

log = logging.getLogger(__name__)


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """How long a channel's union was, SHA-256 of its last entry, in hex, and the highest counter in it.

    An earlier version did not write down the counter.
    """

    length: Annotated[int, msgspec.Meta(ge=1)]
    last: str
    counter: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNTER)] = 0


class Marks:
    """The file that says how long the unions were. It may be a second old, and need not survive a power cut.

    Args:
        directory: The fleet's.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / MARKS_NAME
        self._known = self._read()

    def _read(self) -> dict[str, Mark]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, Mark])
        except FileNotFoundError:
            return {}
        except (OSError, *DAMAGED) as error:
            log.warning("%s says nothing: %s", self._file, error)
            return {}

    def all(self) -> dict[str, Mark]:
        """Return the marks by channel."""
        return dict(self._known)

    def put(self, channel: str, length: int, last: bytes, counter: int) -> None:
        """Say how long a union is now; its database has that on disk already."""
        mark = Mark(length=length, last=last.hex(), counter=counter)
        if self._known.get(channel) == mark:
            return
        self._known = {**self._read(), channel: mark}
        draft = self._file.with_name(f".{MARKS_NAME}.{os.getpid()}")
        try:
            draft.write_bytes(msgspec.json.encode(self._known, order="sorted"))
            draft.replace(self._file)
        except OSError as error:
            log.warning("%s is not kept: %s", self._file, error.strerror)


class Decisions:
    """What people decided, beside the database: a line for each, synced. Any process may add one.

    Args:
        directory: The fleet's.
    """

    def __init__(self, directory: Path) -> None:
        self._folder = directory / DECISIONS_NAME

    def channels(self) -> list[str]:
        """Return the channels in which anything was decided."""
        return sorted(file.name.removesuffix(".jsonl") for file in self._folder.glob("*.jsonl"))

    def keep(self, channel: str, records: Sequence[Record]) -> None:
        """Add what is in the database already; what cannot be written is added when the fleet is opened next."""
        lines = [
            json.dumps(
                {
                    "seq": record.entry.seq,
                    "hash": entry_hash(record.entry).hex(),
                    "record": msgspec.msgpack.encode(record).hex(),
                }
            )
            for record in records
        ]
        try:
            self._folder.mkdir(exist_ok=True)
            with (self._folder / f"{channel}.jsonl").open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                # A line that a power cut tore must not take the next one with it.
                begin = "" if file.tell() == 0 or self._ends_whole(channel) else "\n"
                file.write((begin + "".join(line + "\n" for line in lines)).encode())
                file.flush()
                os.fsync(file.fileno())
            sync_path(self._folder)
        except OSError as error:
            log.warning("%s: a decision is in the database only: %s", self._folder, error.strerror)

    def _ends_whole(self, channel: str) -> bool:
        return self._tail(channel).endswith(b"\n")

    def _tail(self, channel: str) -> bytes:
        file = self._folder / f"{channel}.jsonl"
        try:
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - _BLOCK))
                return stream.read()
        except OSError:
            return b""

    def last(self, channel: str) -> tuple[int, bytes] | None:
        """Return the number and hash of the last line; None where there is none that is whole."""
        lines = self._tail(channel).splitlines()
        try:
            said = json.loads(lines[-1])
            return int(said["seq"]), bytes.fromhex(said["hash"])
        except (IndexError, ValueError, KeyError, TypeError):
            return None

    def all(self, channel: str) -> dict[int, Record]:
        """Return what was decided by number; lines that are no decisions are left out."""
        return {record.entry.seq: record for record in self._records(channel)}

    def _records(self, channel: str) -> Iterator[Record]:
        try:
            lines = (self._folder / f"{channel}.jsonl").read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                yield msgspec.msgpack.decode(bytes.fromhex(json.loads(line)["record"]), type=Record)
            except (ValueError, KeyError, TypeError, msgspec.DecodeError):
                continue
