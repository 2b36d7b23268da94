"""A release that somebody carried here: from a stick into the data folder, from there the way of any other.

    stick -> inbox -> gate (signatures, versions) -> slot -> candidate -> provisional -> committed

`headway agent update --from` fills the inbox, whoever may write to the data folder; the agent looks into it, now
or at its next start. Rules this module keeps:

- The inbox counts once `order.json` is there. It is written last and synced, and goes first.
- Nothing is taken that would not be taken from the broker, and nothing is asked of the network.
- What is refused is said in `refused.json`, for whoever put it there, and the inbox is emptied.
- An order that was taken is kept until the release's slot is whole: a power cut before that repeats it.
- One side at a time: `LOCK_NAME` is held while the inbox is filled, and while it is emptied.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from device_agent.database import disk
from sdk.chunks import ChunkStore, assemble
from sdk.damaged import DAMAGED
from sdk.durable import sync_path, write_whole
from sdk.errors import (
    BadFormat,
    BundleError,
    ConfigError,
    HeadwayError,
    Incompatible,
    RemoteWireError,
    StoreCorrupt,
    StoreFull,
    Unreadable,
)
from sdk.release import Release
from sdk.stick import CHUNKS_NAME, TRUST_NAME, Stick, StickIndex, copy_chunks
from sdk.wire import MAX_MESSAGE_BYTES, Desired, ReleaseRef, decode_json, encode_json

INBOX_NAME: Final = "inbox"
ORDER_NAME: Final = "order.json"
REFUSED_NAME: Final = "refused.json"
OFFERED_NAME: Final = "offered.json"
LOCK_NAME: Final = "inbox.lock"
BRING_AGAIN: Final = "What was copied is removed again. Free some space, then give the same command."
GOES_ON: Final = "Free some space; the update goes on."
HOLD_S: Final = 10.0
"""An agent that empties the inbox is done long before; who copies another stick is not."""
_MAX_REASON: Final = 500
LOOK_EVERY_S: Final = 0.5
"""How soon the agent notices: a stat of one file."""

log = logging.getLogger(__name__)


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Why an order was not taken."""

    release_id: str
    reason: str
    hint: str


def bring(
    stick: Stick,
    data_dir: Path,
    channel: str,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ReleaseRef:
    """Copy a stick's release into the inbox of a data folder; return which it is.

    Where the disk does not take it all, nothing of it is left: that room is the labels'.

    Args:
        stick: The stick.
        data_dir: The agent's, which may be running.
        channel: This device's.
        progress: Called with (chunks done, chunks in all).

    Raises:
        Incompatible: it is for another channel.
        ConfigError: another stick is being read.
        BadFormat, BadSignature, Unreadable: the stick is not as it was packed; nothing is ordered.
        StoreFull, StoreCorrupt: this machine's disk.
    """
    index = stick.index
    if index.channel != channel:
        raise Incompatible(
            f"the stick brings {index.release.name!r} for channel {index.channel}, this device is on {channel}",
            hint="Pack one for this channel: `headway bundle pack --channel`.",
        )
    inbox = data_dir / INBOX_NAME
    with disk(inbox):
        inbox.mkdir(parents=True, exist_ok=True)
    with disk(inbox), _hold(data_dir, HOLD_S) as held:
        if not held:
            raise ConfigError(f"{inbox} is in use", hint="Another stick is being read; try again.")
        for name in (ORDER_NAME, REFUSED_NAME):
            (inbox / name).unlink(missing_ok=True)
        sync_path(inbox)
        with _emptied_where_full(inbox):
            copy_chunks(stick, ChunkStore(inbox / CHUNKS_NAME, durable=True, if_full=BRING_AGAIN), progress)
            if stick.trust is None:
                (inbox / TRUST_NAME).unlink(missing_ok=True)
            else:
                write_whole(inbox / TRUST_NAME, stick.trust)
            write_whole(inbox / ORDER_NAME, encode_json(index))
            sync_path(data_dir)
    return index.release


@contextlib.contextmanager
def _emptied_where_full(inbox: Path) -> Iterator[None]:
    """Give the room back where the disk did not take all of a stick."""
    try:
        yield
    except (StoreFull, StoreCorrupt, OSError):
        for name in (ORDER_NAME, TRUST_NAME):  # nothing is ordered that is not there
            with contextlib.suppress(OSError):
                (inbox / name).unlink(missing_ok=True)
        shutil.rmtree(inbox / CHUNKS_NAME, ignore_errors=True)
        raise


def refusal(data_dir: Path) -> Refused | None:
    """Return why what was put into the inbox last was refused; None where it was not."""
    try:
        return msgspec.json.decode((data_dir / INBOX_NAME / REFUSED_NAME).read_bytes(), type=Refused)
    except (OSError, *DAMAGED):
        return None


def is_ordered(data_dir: Path) -> bool:
    """Return whether an order waits for the agent, or for the end of its update's first part."""
    return (data_dir / INBOX_NAME / ORDER_NAME).is_file()


@contextlib.contextmanager
def _hold(data_dir: Path, patience_s: float = 0.0) -> Iterator[bool]:
    """Keep the other side out for the block; yield False where it holds the inbox itself for longer than this."""
    until = time.monotonic() + patience_s
    with (data_dir / LOCK_NAME).open("wb") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    yield False
                    return
            time.sleep(0.02)
        yield True


def _unforeseen(error: Exception) -> BadFormat:
    return BadFormat(
        f"the stick cannot be looked at: {type(error).__name__}: {error}"[:_MAX_REASON],
        hint="Pack it again; if it stays so, look at the agent's log.",
    )


class _Order(NamedTuple):
    """An order, and which of all that may have been in this place."""

    said: StickIndex
    stamp: tuple[int, int]


class Inbox:
    """The agent's side of the inbox.

    Args:
        data_dir: The agent's.
        offer: Given the signed metadata that came along and the assignment; raises where it may not be taken.
        pending: Says whether an assignment still needs its chunks.
        again: Told the release of an order that is new here: it was carried here to be tried, and a download of it
            need not wait for the network.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        offer: Callable[[bytes | None, Desired], None],
        pending: Callable[[Desired], bool],
        again: Callable[[str], None] = lambda _release_id: None,
    ) -> None:
        self._folder = data_dir / INBOX_NAME
        self._offer = offer
        self._pending = pending
        self._again = again
        self._offered: tuple[int, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def fetch(self, ref: ReleaseRef, target: Path) -> bool:
        """Put a release's files together from the inbox; return False where it does not bring this release.

        Raises:
            BadFormat, BadSignature: the release contradicts itself.
            Unreadable: a chunk in it was damaged; the stick has to be brought again.
            StoreFull, StoreCorrupt: the disk.
        """
        order = self._order()
        if order is None or order.said.release != ref:
            return False
        store = ChunkStore(self._folder / CHUNKS_NAME)
        encoded = store.get(ref.release_id)
        missing = {ref.release_id}
        if encoded is not None:
            missing = assemble(Release.parse(encoded), store, target, if_full=GOES_ON)
        if missing:
            raise Unreadable(
                f"{len(missing)} chunks of {ref.name!r} in {self._folder} are damaged",
                hint="Bring the stick again: `headway agent update --from`.",
            )
        return True

    def look(self) -> None:
        """Offer an order that is new here, and clear away one that is done.

        Raises:
            HeadwayError: it may help to look again.
        """
        if not (self._folder / ORDER_NAME).is_file():
            return
        with disk(self._folder), _hold(self._folder.parent) as held:
            if held:
                self._look()

    def _look(self) -> None:
        order = self._order()
        if order is None:
            return
        desired = Desired(release=order.said.release, channel=order.said.channel)
        if self._offered != order.stamp:
            if self._is_first_offer(order):  # a person carried it here, whatever became of it before
                self._again(desired.release.release_id)
            try:
                self._offer(self._trust(), desired)
            except (BundleError, RemoteWireError) as error:
                log.warning("what was brought on a stick is refused: %s (%s)", error, error.hint)
                self._refuse(desired.release.release_id, error)
                return
            except (HeadwayError, OSError, sqlite3.DatabaseError):
                raise  # the disk: it may help to look again
            except Exception as error:  # else it would fail at each look, and at each start, and nobody be told
                log.exception("what was brought on a stick cannot be looked at")
                self._refuse(desired.release.release_id, _unforeseen(error))
                return
            self._offered = order.stamp
        elif not self._pending(desired):
            self._clear()

    def _is_first_offer(self, order: _Order) -> bool:
        """Note an order, and return whether it was not: a release that the agent does not survive would else be
        tried anew at each start."""
        file, stamp = self._folder / OFFERED_NAME, msgspec.json.encode(order.stamp)
        if file.is_file() and file.read_bytes() == stamp:
            return False
        write_whole(file, stamp)
        return True

    def _order(self) -> _Order | None:
        file = self._folder / ORDER_NAME
        try:
            found, content = file.stat(), file.read_bytes()
            index = decode_json(content, StickIndex)
        except FileNotFoundError:
            return None
        except (OSError, RemoteWireError) as error:
            log.warning("%s cannot be read: %s", file, error)
            return None
        return _Order(index, (found.st_mtime_ns, found.st_ino))

    def _trust(self) -> bytes | None:
        try:
            return (self._folder / TRUST_NAME).read_bytes()[: MAX_MESSAGE_BYTES + 1]
        except FileNotFoundError:
            return None

    def _refuse(self, release_id: str, error: HeadwayError) -> None:
        told = Refused(release_id=release_id, reason=str(error), hint=error.hint)
        write_whole(self._folder / REFUSED_NAME, msgspec.json.encode(told))
        self._clear()

    def _clear(self) -> None:
        (self._folder / ORDER_NAME).unlink(missing_ok=True)
        sync_path(self._folder)
        (self._folder / TRUST_NAME).unlink(missing_ok=True)
        shutil.rmtree(self._folder / CHUNKS_NAME, ignore_errors=True)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except HeadwayError as error:
                log.warning("the inbox waits: %s", error)
            except Exception:  # the thread's outermost loop: the next stick must be seen
                log.exception("the inbox failed")
