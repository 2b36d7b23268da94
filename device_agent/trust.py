"""What this device takes from its fleet, and what it refuses: the gate in front of updates and of others' labels.

Rules this module keeps (docs/trust.md, section 4):

- With a root in the settings, no assignment is begun, no labels of others are stored and no own labels leave the
  outbox unless it was signed that they may. A refused assignment is kept: metadata may come after it, and then it
  is looked at again.
- What was accepted is in the store before it counts.
- Of what a backup says was accepted only the highest versions count, as what may not be undercut: whoever may
  write to one could else say what is signed. The fleet, or a stick, says it anew.
- Nothing here ever stops the release that serves.
- Without a root everything is taken as it comes, and the device says so.

What is right is `sdk.trust.verify`'s to say. That module, and the libraries under it, are loaded only where there
is a root. Any thread may call.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from device_agent.config import MqttTable
from device_agent.expiry import ending_words
from device_agent.store import Store, read_kept
from sdk.damaged import DAMAGED
from sdk.errors import BundleError, ConfigError, OlderVersion, RemoteWireError, Unsigned
from sdk.wire import Ack, Desired, LogSegment

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from sdk.trust.verify import Seen

KEY: Final = "trust"
"""Where the store keeps what was seen."""
COPY_KEY: Final = "trust-copy"
"""Where a store that came back from a backup keeps what it had seen when that was made, as its writer says."""
MAX_ROOT_BYTES: Final = 1024 * 1024

log = logging.getLogger(__name__)


class Gate:
    """Lets signed assignments and signed labels through.

    Args:
        store: What was seen is kept in it.
        root_file: The root that the settings name; None takes everything.
        channel: This device's.
        start: Begins an update; called with assignments that may be taken.
        clock: Seconds since 1970, as this device believes.

    Raises:
        ConfigError: the root cannot be read, or is none.
        StoreFull: the disk takes no writes.
    """

    def __init__(
        self,
        store: Store,
        root_file: Path | None,
        *,
        channel: str,
        start: Callable[[Desired], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._channel = channel
        self._start = start
        self._clock = clock
        self._lock = threading.RLock()
        self._seen: Seen | None = None
        self._keys: list[Key] = []
        self._held: Desired | None = None
        self._refused: str | None = None  # why the newest assignment is not taken
        self._doubt: str | None = None  # why the newest metadata is not taken
        if root_file is not None:
            self._open(root_file)

    def _open(self, root_file: Path) -> None:
        from sdk.trust import verify

        first = read_root(root_file)
        kept = self._store.kept(KEY)
        seen = None if kept is None else msgspec.msgpack.decode(kept, type=verify.Seen)
        if seen is None or seen.anchor != first.anchor:
            # The settings name another root: another fleet, or one begun anew. What the old one said is void.
            copy = _copied(self._store)
            seen = first if copy is None or copy.anchor != first.anchor else first.not_behind(copy)
            self._keep(seen)
        self._seen, self._keys = seen, verify.heads_keys(seen)

    def _keep(self, seen: Seen) -> None:
        self._store.keep(KEY, msgspec.msgpack.encode(seen))

    # -- what comes in -------------------------------------------------------------------------------------------

    def receive(self, payload: bytes) -> None:
        """Take in a message with metadata; what does not hold is logged and told, and changes nothing.

        Raises:
            StoreFull: it holds, and cannot be kept; it comes again.
        """
        with self._lock:
            if self._seen is None:
                return
            from sdk.trust import verify

            try:
                seen = verify.accept(payload, self._seen, self._clock())
            except (BundleError, RemoteWireError) as error:
                self._doubt = str(error)
                log.warning("%s (%s)", error, error.hint)
                return
            self._take_in(seen)
            held, self._held = self._held, None
        if held is not None:
            self.desired(held)

    def desired(self, desired: Desired) -> None:
        """Begin an assigned update if it may be taken; keep it for later metadata if not."""
        try:
            self._check(desired)
        except BundleError as error:
            with self._lock:
                self._held, self._refused = desired, str(error)
            log.warning("an assignment is refused: %s (%s)", error, error.hint)
            return
        with self._lock:
            self._held = self._refused = None
        self._start(desired)

    def bring(self, payload: bytes | None, desired: Desired) -> None:
        """Take in metadata and an assignment that somebody carried here, and begin the update.

        Metadata older than what was seen is no reason to refuse: a stick may have been packed yesterday, and the
        network have told more since. Then what was seen says whether the release may be taken.

        Raises:
            RemoteWireError, BadSignature, Unsigned, OlderVersion, Expired: it may not be taken.
            StoreFull: the disk takes no writes.
        """
        older: OlderVersion | None = None
        with self._lock:
            if self._seen is not None and payload is not None:
                from sdk.trust import verify

                try:
                    seen = verify.accept(payload, self._seen, self._clock())
                except OlderVersion as error:
                    older = error
                else:
                    self._take_in(seen)
        try:
            self._check(desired)
        except Unsigned as error:
            if older is None:
                raise
            raise older from error
        with self._lock:
            self._held = self._refused = None
        self._start(desired)

    def _take_in(self, seen: Seen) -> None:
        """Keep what was seen, where it is news."""
        from sdk.trust import verify

        self._doubt = None
        if seen != self._seen:
            self._keep(seen)
            self._seen, self._keys = seen, verify.heads_keys(seen)

    def authorize(self, desired: Desired) -> None:
        """Say for an update that is about to begin that it may, and note its version: none lower may follow.

        Raises:
            Unsigned, OlderVersion, Expired: it may not.
            StoreFull: the disk takes no writes.
        """
        self._check(desired, take=True)

    def _check(self, desired: Desired, *, take: bool = False) -> None:
        with self._lock:
            if self._seen is None or desired.channel != self._channel:
                return  # another channel's is refused by whoever begins updates
            from sdk.trust import verify

            signed = verify.signed_release(self._seen, desired, self._clock())
            seen = verify.take(self._seen, signed)
            if take and seen != self._seen:
                self._keep(seen)
                self._seen = seen

    def check_signed(self, message: LogSegment | Ack) -> None:
        """Let a stretch of the union of labels, or an acknowledgement of own labels, pass.

        Raises:
            RemoteWireError: the fleet has not signed it.
        """
        with self._lock:
            signed_only, keys = self._seen is not None, self._keys
        if signed_only:
            from sdk.trust import verify

            verify.check_signed(message, self._store.device, keys)

    # -- what it says --------------------------------------------------------------------------------------------

    def standing(self, release_id: str | None) -> str:
        """Return in a few words what the release that serves rests on."""
        with self._lock:
            seen = self._seen
            if seen is None:
                return "unsigned"
            from sdk.trust import verify

            if not seen.files:
                return "signed releases only; no signed metadata seen yet"
            if release_id is None or not verify.is_signed(seen, self._channel, release_id):
                words = "signed releases only; what serves now is not signed"
            else:
                words = "signed"
            return words if seen.believes(self._clock()) else f"{words}; time unverified"

    def ending(self, table: MqttTable | None) -> str:
        """Return in a few words which certificate of this device ends soon; empty where none does."""
        return ending_words(table, self._clock())

    def root_version(self) -> int:
        """Return the version of the newest root accepted; 0 without one."""
        with self._lock:
            return 0 if self._seen is None else self._seen.versions["root"]

    @property
    def fault(self) -> str | None:
        """Why the newest assignment or metadata is not taken; None if nothing is refused."""
        with self._lock:
            return self._refused or self._doubt


def accepted(store_file: Path, first: Seen) -> Seen:
    """Return what a store has accepted from a root on, whether or not an agent has it open.

    Args:
        store_file: There or not.
        first: Where trust in the root begins.

    Raises:
        StoreCorrupt, StoreFull: it cannot be read.
    """
    from sdk.trust import verify

    kept = read_kept(store_file, KEY) if store_file.is_file() else None
    seen = None if kept is None else msgspec.msgpack.decode(kept, type=verify.Seen)
    return first if seen is None or seen.anchor != first.anchor else seen


def _copied(store: Store) -> Seen | None:
    """Return what a backup says was accepted; None where there is none, or it cannot be read."""
    from sdk.trust import verify

    copy = store.kept(COPY_KEY)
    try:
        return None if copy is None else msgspec.msgpack.decode(copy, type=verify.Seen)
    except DAMAGED as error:
        log.warning("what the backup says was accepted from the fleet cannot be read: %s", error)
        return None


def read_root(root_file: Path) -> Seen:
    """Return where trust in a root begins.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    from sdk.trust import verify

    try:
        return verify.Seen.first(root_file.read_bytes()[:MAX_ROOT_BYTES])
    except OSError as error:
        raise ConfigError(
            f"{root_file}: {error.strerror}", hint="`headway fleet enroll` writes it; copy it to this device."
        ) from error
    except BundleError as error:
        raise ConfigError(f"{root_file}: {error}", hint=error.hint) from error
