"""The fleet service: takes labels in, commits, acknowledges, shares; announces releases.

`FleetCore` is the whole behaviour, turn by turn: messages in, one transaction, publications out. It neither
waits nor asks the time. `FleetService` is the rim: the MQTT session, one queue, one thread that takes turns.

Rules this module keeps (docs/protocol.md):

- Commit, then acknowledge. An `Ack` speaks only of what a committed transaction holds.
- Every message may come twice, late, out of order or not at all; every answer may be lost. What the service says
  can be asked for again, so after a crash at any point the devices' own timers put things right.
- The broker is a cache: after it forgot, everything retained is published again, and chunks on request.
- A database that is away is waited for. What was remembered may be ahead of a transaction that was taken back, so
  the core begins anew then, with the messages of the turn that failed.
- What leaves for the broker is paced, so that acknowledgements never wait behind a release. What finds no room is
  sent when there is some, in its order; nothing of it is left out while the connection stands.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from sdk.errors import (
    BrokerError,
    DatabaseAway,
    FleetError,
    KeyRefused,
    RemoteWireError,
    StoreCorrupt,
    UnknownDevice,
)
from sdk.fleet.ahead import Ahead
from sdk.fleet.channel_ledger import Device
from sdk.fleet.channel_ledger import Publication as Published
from sdk.fleet.enrolment import Enrolled
from sdk.fleet.garbage import WANTED_S, garbage, in_use
from sdk.fleet.hearing import NAMESAKE, Hearing
from sdk.fleet.registry import CLASS_ENTRIES_BURST, CLASS_ENTRIES_PER_S, Budgets, LogReader, Seeder
from sdk.fleet.rollout import Rollout
from sdk.fleet.store import FleetStore, Ledger
from sdk.fleet.union_ledger import Taken, records_of
from sdk.labels import FLEET_LOG_PREFIX, Label, Record
from sdk.mqtt import Message, MqttSession, MqttSettings, Publication
from sdk.trust.repository import OnlineTrust
from sdk.wire import (
    WIRE_VERSION,
    Ack,
    ChannelMeta,
    DeviceState,
    LabelBatch,
    LogSegment,
    Topics,
    UpdateEvent,
    Want,
    batches,
    decode_json,
    decode_msgpack,
    encode_json,
    encode_msgpack,
)

POLL_S: Final = 0.5
"""How soon a release published by another process is noticed."""
META_EVERY_S: Final = 1.0
"""A channel's metadata follows its log no faster than this: it is for those who missed a segment."""
PACE_BYTES: Final = 4 * 1024 * 1024
"""Bulk (chunks, log pages) waits while more than this is on its way to the broker."""
MAX_WAITING_BYTES: Final = 32 * 1024 * 1024
"""What may wait for room on the way to the broker: the assignments of 80,000 devices. The session itself takes
4,096 messages at once."""
SEEN_EVERY_S: Final = 3600.0
"""A device tells of its state when that changes, and asks for the union's end every half minute whatever happens:
that says of an idle one that it is there. Written down no more often than this."""
BUSY_TURN_S: Final = 0.01
IDLE_S: Final = 0.25
"""The longest the service sleeps, so that it sees a request to stop."""
SETTLED_S: Final = 60.0
"""A service that was heard for so long does not leave the broker to another of its name: the other came later."""
STAY_EVERY_S: Final = 1.0
"""A database's server that was started anew has let go of the one service's lock, maybe without failing a turn."""
DATABASE_AGAIN_S: Final = 1.0
MAX_TRIES: Final = 10
"""A turn that fails so often at a database that answers is given up: its messages come again by their senders'
timers, and may be what it fails at."""
MAX_TURN_MESSAGES: Final = 256
MAX_QUEUED_MESSAGES: Final = 1024

Report = Callable[[str, dict[str, Any]], None]
"""Called with what happened and its particulars, for people and logs."""

log = logging.getLogger(__name__)


class FleetCore:
    """What the service does, turn by turn.

    Args:
        store: The fleet's directory.
        topics: Where its messages go.
        channels: The channels it serves. Devices of others are left to whoever serves those: acknowledging
            their labels here would lose them there.
        report: Told what happened.
        trust: Signs and announces with the fleet's online key; None where the fleet has no keys.
        enrolled: Returns the channel of each device that was enrolled on one. Such a device has no other, whatever
            it says: the broker's access list lets it say anything of itself.
    """

    def __init__(
        self,
        store: FleetStore,
        topics: Topics,
        channels: Sequence[str],
        report: Report = lambda _kind, _more: None,
        trust: OnlineTrust | None = None,
        enrolled: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._store = store
        self._enrolled = enrolled
        self._topics = topics
        self._channels = tuple(channels)
        self._report = report
        self._trust = trust
        self._trust_fault: str | None = None  # complained about once
        self._seeder = Seeder()
        self._class_entries = Budgets(CLASS_ENTRIES_BURST, CLASS_ENTRIES_PER_S)
        self._readers: dict[str, tuple[str, LogReader]] = {}  # device -> its channel, how far it is
        self._meta_due: dict[str, float] = {}  # channel -> not before
        self._meta_sent: dict[str, float] = {}
        self._shared: dict[str, int] = {}  # channel -> how much of its union has been published
        self._announcing: dict[int, str] = {}  # publications that wait for their chunks to be out -> channel
        self._rollouts: dict[str, tuple[int, int]] = {}  # channel -> its rollout and the version last acted on
        self._greeted: set[str] = set()  # devices that were told where their log ends since they came online
        self._strangers: set[str] = set()  # complained about once
        self._ahead = Ahead(store.came_back)
        self._poll_due = 0.0
        self._newest = 0
        self._known: frozenset[str] = frozenset()  # chunks of all releases
        self._cleared: dict[str, int] = {}  # chunks that nobody needs any more -> a publication that had them
        self._wanted: dict[int, float] = {}  # such publications that were asked for since -> when last
        self._tidy = True  # old chunks may be taken off the broker
        self._sizes: dict[bytes, int] = {}
        with store.read() as ledger:
            self._load(ledger)

    def subscriptions(self) -> list[str]:
        """Return the topics the service listens to."""
        t = self._topics
        return [t.state("+"), t.up_label("+"), t.up_want("+"), t.up_event("+")]

    def broker_connected(self, *, remembered: bool) -> list[Publication]:
        """Return what to publish now that the broker is there; with `remembered` it kept our session."""
        self._greeted.clear()
        self._readers.clear()  # what was on its way to them is lost; they ask again
        if not remembered:
            # It may have forgotten who is there, and the last wills of those who are not. Who is says so on every
            # connect of its own; what the broker kept of it follows after this.
            with self._store.write() as ledger:
                ledger.note_all_offline(self._channels)
        out = self._metadata(again=True)  # before the assignments that it vouches for
        with self._store.read() as ledger:
            self._load(ledger)
            for channel in self._channels:
                unannounced = self._unannounced(ledger, channel)
                for publication in unannounced:
                    self._announce(publication)
                if unannounced:
                    continue
                if not remembered:
                    # It may have forgotten the chunks too. Devices that know of the release ask for them anyway.
                    for publication in in_use(ledger, channel):
                        self._seeder.announce(publication.release.digests())
                out += self._notice(ledger, channel)
        return out

    def _unannounced(self, ledger: Ledger, channel: str) -> list[Published]:
        """Return what of a channel's releases in use was never announced."""
        return [publication for publication in in_use(ledger, channel) if not publication.announced]

    def _announce(self, publication: Published) -> None:
        """Publish a release's chunks first, then who should fetch them: `_bulk` goes on when all are out."""
        self._seeder.announce(publication.release.digests())
        self._announcing[publication.id] = publication.channel
        self._report(
            "release",
            {
                "channel": publication.channel,
                "release_id": publication.ref.release_id,
                "name": publication.ref.name,
            },
        )

    def _load(self, ledger: Ledger) -> None:
        self._newest = ledger.newest_publication()
        for channel in self._channels:
            length = ledger.log_length(channel)
            self._shared.setdefault(channel, length)
            self._ahead.begin(channel, length)
        self._sizes = ledger.feature_sizes()
        self._load_chunks(ledger)

    def _load_chunks(self, ledger: Ledger) -> None:
        there: set[str] = set()
        self._cleared = {}
        for channel in self._channels:
            for cleared in (False, True):
                for publication in ledger.publications(channel, cleared=cleared):
                    if cleared or publication.id in self._wanted:
                        self._cleared |= dict.fromkeys(publication.release.digests(), publication.id)
                    else:
                        there.update(publication.release.digests())
        self._known = frozenset(there | self._cleared.keys())
        for digest in there & self._cleared.keys():
            del self._cleared[digest]

    def turn(
        self, messages: Sequence[Message], *, now: float, now_utc: float, room_bytes: int
    ) -> list[Publication]:
        """Take one turn and return what to publish, in this order.

        Whatever a returned message says is committed. Losing the returned messages loses nothing but time.

        Args:
            messages: What arrived since the last turn.
            now: Seconds of a clock that never goes back.
            now_utc: Seconds since 1970, for records.
            room_bytes: How much bulk the way to the broker takes now.
        """
        states: list[tuple[DeviceState, bool]] = []
        labels: list[tuple[str, LabelBatch]] = []
        events: list[tuple[str, UpdateEvent]] = []
        wants: list[tuple[str, Want]] = []
        for message in messages:
            try:
                device = self._topics.device_of(message.topic)
                if device.startswith(FLEET_LOG_PREFIX):
                    raise RemoteWireError(f"{device} is no device", hint="That name is the service's own.")
                kind = self._topics.kind_of(message.topic)
                if kind == "state" and message.payload:
                    states.append((self._state(device, message), message.retained))
                elif message.retained:
                    raise RemoteWireError(
                        f"a retained message on {message.topic}", hint="Only states are retained."
                    )
                elif kind == "up/label":
                    labels.append((device, decode_msgpack(message.payload, LabelBatch)))
                elif kind == "up/event":
                    events.append((device, decode_json(message.payload, UpdateEvent)))
                elif kind == "up/want":
                    wants.append((device, decode_json(message.payload, Want)))
            except RemoteWireError as error:
                self._report("bad_message", {"topic": message.topic[:200], "error": str(error)})
        out: list[Publication] = []
        if states or labels or events:
            out += self._commit(states, labels, events, now=now, now_utc=now_utc)
        self._note_wants(wants, now, now_utc)
        if now >= self._poll_due:
            self._poll_due = now + POLL_S
            out += self._poll(now, now_utc)
            out += self._advance(now_utc)
        out += self._due_meta(now)
        out += self._bulk(room_bytes, now)
        return out

    def idle_s(self, now: float) -> float:
        """Return how long the service may wait for messages before the next turn."""
        pages = any(reader.may_send for _, reader in self._readers.values())
        if pages or self._announcing or not self._seeder.idle:
            return BUSY_TURN_S
        return max(0.0, min([self._poll_due, *self._meta_due.values()]) - now)

    def _state(self, device: str, message: Message) -> DeviceState:
        state = decode_json(message.payload, DeviceState)
        if state.device != device:
            raise RemoteWireError(f"{device} sends the state of {state.device}", hint="Two devices are mixed up.")
        return state

    # Labels, states, events: one transaction

    def _commit(
        self,
        states: list[tuple[DeviceState, bool]],
        labels: list[tuple[str, LabelBatch]],
        events: list[tuple[str, UpdateEvent]],
        *,
        now: float,
        now_utc: float,
    ) -> list[Publication]:
        out: list[Publication] = []
        reports: list[tuple[str, dict[str, Any]]] = []
        taken: list[Taken] = []
        with self._store.write() as ledger:
            for state, retained in states:
                out += self._note_state(ledger, state, None if retained else now_utc, reports)
            for device, batch in labels:
                if not self._may_speak(ledger.device(device)):
                    continue
                try:
                    left = self._class_entries.left(device, now)
                    one = ledger.take(device, batch.records, self._sizes, left)
                    self._class_entries.spend(device, one.verdict.class_entries, now)
                    taken.append(one)
                except UnknownDevice as error:
                    reports.append(("unknown_device", {"device": device, "error": str(error)}))
            for device, update_event in events:
                if not self._may_speak(ledger.device(device)):
                    continue
                state_now = ledger.note_event(device, update_event, now_utc)
                self._tidy = True
                reports.append(
                    (
                        "update",
                        {
                            "device": device,
                            "release_id": update_event.release_id,
                            "state": update_event.state.value,
                            "reason": update_event.reason,
                            "assigned": state_now is not None,
                        },
                    )
                )
        # Committed: from here on it may be told.
        for one in taken:
            verdict = one.verdict
            ack = Ack(through=verdict.standing.chain.seq, refused=verdict.refused)
            out.append(self._ack(one.device, ack))
            if verdict.refused is not None:
                reports.append(
                    (
                        "refused",
                        {"device": one.device, "seq": verdict.refused.seq, "reason": verdict.refused.reason},
                    )
                )
        for channel, (first, records) in records_of(taken).items():
            out += self._segments(self._topics.log(channel), channel, first, records)
            if self._shared[channel] == first - 1:
                self._shared[channel] += len(records)
            self._note_meta(channel, now)
            labels_in = sum(isinstance(record.entry.body, Label) for record in records)
            stored = {"channel": channel, "first": first, "records": len(records), "labels": labels_in}
            reports.append(("stored", stored))
        for kind, more in reports:
            self._report(kind, more)
        return out

    def _note_state(
        self, ledger: Ledger, state: DeviceState, seen_utc: float | None, reports: list[tuple[str, dict[str, Any]]]
    ) -> list[Publication]:
        known = ledger.device(state.device)
        if wrong := self._enrolled_elsewhere(state.device, state.channel if known is None else known.channel):
            self._complain(state.device, wrong, reports)
            if known is not None and known.state.online:  # away, for that channel: no rollout waits for it
                ledger.note_state(msgspec.structs.replace(known.state, online=False), seen_utc=None)
            return []
        if state.channel not in self._channels:
            self._complain(state.device, f"is on channel {state.channel}, which is not served here", reports)
            return []
        device, new = ledger.note_state(state, seen_utc=seen_utc)
        if device.revoked_utc is not None:
            if state.online and seen_utc is not None:
                self._complain(device.device, "was revoked, and the broker still lets it speak", reports)
            return []
        if device.channel != state.channel:
            self._complain(state.device, f"was on channel {device.channel} and stays there", reports)
        elif found := self._ahead.look(ledger, device.device, device.channel, state.log_position, time.time()):
            reports.append(found)
            self._meta_due[device.channel] = 0.0
        self._tidy = True
        out: list[Publication] = []
        if new:
            reports.append(("registered", {"device": device.device, "channel": device.channel}))
            out += self._desired(ledger, [device])
        if not state.online:
            self._greeted.discard(device.device)
            self._readers.pop(device.device, None)
        elif device.device not in self._greeted:
            # It may have missed the last acknowledgement; with this it need not wait for its timer.
            self._greeted.add(device.device)
            out.append(self._ack(device.device, Ack(through=device.acknowledged)))
        return out

    def _complain(self, device: str, what: str, reports: list[tuple[str, dict[str, Any]]]) -> None:
        if device not in self._strangers:
            self._strangers.add(device)
            reports.append(("stranger", {"device": device, "error": f"{device} {what}"}))

    def _enrolled_elsewhere(self, device: str, channel: str) -> str | None:
        """Return what is wrong, after the device's name, where it was enrolled on another channel than this."""
        enrolled = self._enrolled().get(device, channel)
        return None if enrolled == channel else f"is on channel {channel}, and was enrolled on {enrolled}"

    def _may_speak(self, device: Device | None) -> bool:
        """Return whether a device's channel is served here, and its own; True for one that is not registered."""
        if device is None:
            return True
        return device.channel in self._channels and not self._enrolled_elsewhere(device.device, device.channel)

    def _ack(self, device: str, ack: Ack) -> Publication:
        if self._trust is not None:
            ack = self._trust.sign_ack(ack, device)
        return Publication(self._topics.ack(device), encode_json(ack))

    def _segments(self, topic: str, channel: str, first: int, records: Sequence[Record]) -> Iterator[Publication]:
        for batch in batches(records):
            segment = LogSegment(WIRE_VERSION, channel, first, batch)
            if self._trust is not None:
                segment = self._trust.sign(segment)
            yield Publication(topic, encode_msgpack(segment))
            first += len(batch)

    # What a channel's devices should know

    def _notice(self, ledger: Ledger, channel: str) -> list[Publication]:
        """Return a channel's metadata and its devices' assignments."""
        return [self._meta(ledger, channel), *self._desired(ledger, ledger.devices(channel))]

    def _desired(self, ledger: Ledger, devices: Sequence[Device]) -> Iterator[Publication]:
        for device, desired in ledger.desired(filter(self._may_speak, devices)):
            yield Publication(self._topics.desired(device.device), encode_json(desired), retain=True)

    def _meta(self, ledger: Ledger, channel: str) -> Publication:
        current = ledger.current(channel)
        meta = ChannelMeta(
            channel=channel,
            release=None if current is None else current.ref,
            log_length=ledger.log_length(channel),
            restored=ledger.restored(channel) or msgspec.UNSET,
        )
        self._store.mark(ledger, channel)
        return Publication(self._topics.meta(channel), encode_json(meta), retain=True)

    def _note_meta(self, channel: str, now: float) -> None:
        self._meta_due.setdefault(channel, max(now, self._meta_sent.get(channel, now) + META_EVERY_S))

    def _due_meta(self, now: float) -> list[Publication]:
        busy = set(self._announcing.values())
        due = [channel for channel, at in self._meta_due.items() if at <= now and channel not in busy]
        if not due:
            return []
        for channel in due:
            del self._meta_due[channel]
            self._meta_sent[channel] = now
        with self._store.read() as ledger:
            return [self._meta(ledger, channel) for channel in due]

    def _poll(self, now: float, now_utc: float) -> list[Publication]:
        """Notice what another process published or signed; clear chunks that nobody needs any more."""
        out = self._metadata()
        old: list[tuple[Published, list[str]]] = []
        for over in [wanted for wanted, last in self._wanted.items() if now >= last + WANTED_S]:
            del self._wanted[over]
            self._tidy = True
        with self._store.read() as ledger:
            if ledger.newest_publication() != self._newest:
                self._load(ledger)
                self._tidy = True
                for channel in self._channels:
                    for publication in self._unannounced(ledger, channel):
                        self._announce(publication)
            for channel, shared in self._shared.items():
                # What a person decided by a command (`Ledger.decide`), and what came between two of these.
                if new := ledger.records(channel, shared + 1):
                    self._report("decided", {"channel": channel, "first": shared + 1, "records": len(new)})
                    out += self._segments(self._topics.log(channel), channel, shared + 1, new)
                    self._shared[channel] += len(new)
                    self._meta_due.setdefault(channel, 0.0)
            if self._tidy and not self._announcing:
                self._tidy = False
                old = garbage(ledger, self._channels, now_utc, self._wanted)
        if old:
            with self._store.write() as ledger:
                for publication, digests in old:
                    ledger.mark_cleared(publication.id)
                    out += [Publication(self._topics.chunk(digest), b"", retain=True) for digest in digests]
                    self._report("cleared", {"name": publication.ref.name, "chunks": len(digests)})
                self._load_chunks(ledger)
        return out

    def _advance(self, now_utc: float) -> list[Publication]:
        """Take each channel's rollout a step further, and tell its devices where anything is new.

        What a person did with another process is news too: the version says so.
        """
        under_way: list[str] = []
        with self._store.read() as ledger:
            for channel in self._channels:
                found = ledger.rollout(channel)
                if found is not None and (found[1].open or self._is_news(found[1], channel)):
                    under_way.append(channel)
        out: list[Publication] = []
        reports: list[dict[str, Any]] = []
        for channel in under_way:
            with self._store.write() as ledger:
                ledger.advance(channel, now_utc)
                found = ledger.rollout(channel)
                assert found is not None
                publication, rollout = found
                if rollout.open and not publication.announced:
                    if publication.id not in self._announcing:
                        self._announce(publication)
                    continue
                if not self._is_news(rollout, channel):
                    continue
                out += self._notice(ledger, channel)
            # Committed. Should the broker not get it: notices go out again on every connect.
            self._rollouts[channel] = rollout.publication_id, rollout.version
            self._tidy = True
            reports.append(
                {
                    "channel": channel,
                    "name": publication.ref.name,
                    "state": rollout.state.value,
                    "wave": f"{rollout.wave} of {len(rollout.plan.waves)}",
                    "reason": rollout.reason,
                }
            )
        for more in reports:
            self._report("rollout", more)
        return out

    def _is_news(self, rollout: Rollout, channel: str) -> bool:
        return self._rollouts.get(channel) != (rollout.publication_id, rollout.version)

    def _metadata(self, *, again: bool = False) -> list[Publication]:
        """Return the signed metadata where it is new, or with `again` as it is."""
        if self._trust is None:
            return []
        try:
            message = self._trust.message() if again else self._trust.poll()
        except KeyRefused as error:
            if str(error) != self._trust_fault:
                self._trust_fault = str(error)
                self._report("trust", {"error": str(error)})
            return []
        self._trust_fault = None
        return [] if message is None else [Publication(self._topics.trust(), message, retain=True)]

    # Bulk

    def _note_wants(self, wants: list[tuple[str, Want]], now: float, now_utc: float) -> None:
        if not wants:
            return
        quiet: set[str] = set()
        cleared: set[int] = set()
        ahead: dict[str, tuple[str, str, int]] = {}
        with self._store.read() as ledger:
            for name, want in wants:
                device = ledger.device(name)
                if device is None or not self._may_speak(device):
                    continue
                if device.last_seen_utc < now_utc - SEEN_EVERY_S:
                    quiet.add(name)
                unknown = [digest for digest in want.chunks if digest not in self._known]
                if unknown:
                    self._report("unknown_chunks", {"device": name, "chunks": len(unknown)})
                cleared.update(self._cleared[digest] for digest in want.chunks if digest in self._cleared)
                seeding = self._seeder.want(name, (d for d in want.chunks if d in self._known), now)
                if seeding:
                    self._report("reseeding", {"device": name, "chunks": seeding})
                if want.log_from is None:
                    continue
                length = ledger.log_length(device.channel)
                if want.log_from > length + 1:
                    self._report("ahead", {"device": name, "log_from": want.log_from, "log_length": length})
                    if want.channel == device.channel:
                        ahead[device.channel] = name, device.channel, want.log_from - 1
                elif want.log_from == length + 1:
                    self._readers.pop(name, None)
                elif name in self._readers:
                    self._readers[name][1].want(want.log_from, now)
                else:
                    self._readers[name] = (device.channel, LogReader(want.log_from, now))
        self._note_wanted(cleared, now)
        self._note_signs(quiet, ahead, now_utc)

    def _note_wanted(self, cleared: set[int], now: float) -> None:
        """Write down, before their chunks go out, that these publications are on the broker again, for a while."""
        if again := cleared - self._wanted.keys():
            with self._store.write() as ledger:
                for publication_id in again:
                    ledger.mark_cleared(publication_id, cleared=False)
        self._wanted |= dict.fromkeys(cleared, now)

    def _note_signs(self, quiet: set[str], ahead: dict[str, tuple[str, str, int]], now_utc: float) -> None:
        """Write down what else a want tells: its device is there, and may know more than there is.

        Args:
            quiet: Devices that were not heard of for long.
            ahead: By channel a device, it, and how much of its union that device has.
            now_utc: For the records.
        """
        if quiet:
            with self._store.write() as ledger:
                ledger.note_seen(quiet, now_utc)
        if any(map(self._ahead.may_be, ahead)):
            with self._store.write() as ledger:
                found = [self._ahead.look(ledger, *who, now_utc) for who in ahead.values()]
            for kind, more in filter(None, found):
                self._report(kind, more)
                self._meta_due[more["channel"]] = 0.0

    def _bulk(self, room_bytes: int, now: float) -> list[Publication]:
        out: list[Publication] = []
        sending = {name: known for name, known in self._readers.items() if known[1].may_send}
        if sending and room_bytes > 0:
            with self._store.read() as ledger:
                for name, (channel, reader) in sending.items():
                    if room_bytes <= 0:
                        break
                    # To the end of the queue, so that all readers get their pages in turn.
                    del self._readers[name]
                    records = ledger.records(channel, reader.next)
                    self._readers[name] = (channel, reader)
                    if not records:
                        reader.at_end()
                    for page in self._segments(self._topics.down_log(name), channel, reader.next, records):
                        out.append(page)
                        room_bytes -= len(page.payload)
                        reader.sent(reader.next + len(records) - 1, len(page.payload), now)
        while room_bytes > 0 and (digest := self._seeder.next(now)) is not None:
            try:
                chunk = self._store.chunks.get(digest)
            except StoreCorrupt as error:  # the place is away; whoever needs the chunk asks again
                self._report("unavailable_chunk", {"chunk": digest, "error": str(error)})
                continue
            if chunk is None:
                self._report("damaged_chunk", {"chunk": digest, "error": "publish its bundle again"})
                continue
            out.append(Publication(self._topics.chunk(digest), chunk, retain=True))
            room_bytes -= len(chunk)
        if self._announcing and self._seeder.idle:
            with self._store.write() as ledger:
                for publication_id, channel in self._announcing.items():
                    out += self._notice(ledger, channel)
                    # Should the broker not get these after all: notices go out again on every connect, and chunks
                    # when they are asked for.
                    ledger.mark_announced(publication_id)
            self._announcing.clear()
        return out


class FleetService:
    """Serves a fleet's directory over a broker until told to stop.

    Args:
        store: The fleet's directory.
        settings: The broker.
        channels: The channels it serves.
        report: Told what happened, on the serving thread.
        trust: Signs with the fleet's online key; None where the fleet has no keys.
    """

    def __init__(
        self,
        store: FleetStore,
        settings: MqttSettings,
        channels: Sequence[str] = ("default",),
        report: Report = lambda _kind, _more: None,
        trust: OnlineTrust | None = None,
    ) -> None:
        self._store = store
        self._report = report
        self.every_turn: Callable[[float], None] = lambda _utc: None
        """Called with the time at each turn: for what is looked at now and then."""
        topics, enrolled = Topics(settings.prefix), Enrolled(store.directory)
        self._new_core = functools.partial(FleetCore, store, topics, channels, report, trust, enrolled)
        self._core = self._new_core()
        self._turn: list[Message] = []  # what the turn under way is about
        self._tries = 0
        self._fault: str | None = None  # of the database, complained about once
        self._hearing = Hearing(store, settings.address, report)
        self._arrivals: queue.Queue[Message | None] = queue.Queue(MAX_QUEUED_MESSAGES)
        self._connects: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._waiting: deque[Publication] = deque()  # for room on the way to the broker
        self._waiting_bytes = 0
        name = ".".join(["headway-fleet", *settings.prefix.split("/"), *sorted(channels)])
        self._session = MqttSession(
            settings,
            name,
            on_message=self._arrive,
            on_connect=self._connected,
            namesake=NAMESAKE,
            yields_within_s=SETTLED_S,
        )
        self._session.subscribe(self._core.subscriptions())

    @property
    def queued(self) -> int:
        """How many messages wait for the next turn."""
        return self._arrivals.qsize()

    @property
    def hears_broker(self) -> bool:
        """Whether the broker is there, and this service's alone."""
        return self._session.connected and not self._session.contested

    def run(
        self,
        stop: threading.Event,
        *,
        connect_timeout_s: float = 5.0,
        database_again_s: float = DATABASE_AGAIN_S,
    ) -> None:
        """Serve until `stop` is set; a broker or database that goes away later is waited for.

        Args:
            stop: Ends it.
            connect_timeout_s: How long the broker may take at the start.
            database_again_s: How long to wait before a database that failed is asked again.

        Raises:
            BrokerError: there is none at the start.
            FleetError: another service holds the directory, or was at the broker before this one under its name,
                or the database is away at the start, or damaged.
        """
        with self._store.serving() as stay:
            self._session.connect(connect_timeout_s)
            self._report("ready", {"broker": self._session.settings.address})
            stay_due = 0.0
            try:
                while not stop.is_set():
                    if self._session.gave_way:
                        raise FleetError(
                            f"the broker at {self._session.settings.address} ends every session of this service "
                            f"at once: most likely {NAMESAKE}, and was there before",
                            hint="One service serves a fleet, and two take each other's labels: let the other one "
                            "go on, or stop it and start this one. Is this directory a copy of the fleet's?",
                        )
                    try:
                        if time.monotonic() >= stay_due:
                            stay()
                            stay_due = time.monotonic() + STAY_EVERY_S
                        self._take_turn()
                    except DatabaseAway as error:
                        self._wait_for_database(error, stay, stop, database_again_s)
            finally:
                self._session.close()

    def _wait_for_database(
        self, error: DatabaseAway, stay: Callable[[], None], stop: threading.Event, again_s: float
    ) -> None:
        """Return when the database answers and this is the one service again, with a core that begins anew."""
        if str(error) != self._fault:
            self._fault = str(error)
            self._report("database", {"error": str(error)})
        while not stop.wait(again_s):
            try:
                stay()
                core = self._new_core()
                # As after the broker's coming back: what the failed turn was about to say is said, or asked for.
                out = core.broker_connected(remembered=True) if self._session.connected else []
            except DatabaseAway:
                continue
            self._core = core
            self._send(out)
            self._tries += 1
            if self._tries >= MAX_TRIES:
                self._turn, self._tries = [], 0
            return

    def _connected(self, remembered: bool) -> None:
        self._connects.put(remembered)
        with contextlib.suppress(queue.Full):
            self._arrivals.put_nowait(None)  # wakes the serving thread

    def _arrive(self, message: Message) -> None:
        # Called on the network thread. Waiting here stops reading from the broker, which then queues for us: the
        # brake when the disk is slow. Beyond that messages are dropped, and come again by their senders' timers.
        try:
            self._arrivals.put(message, timeout=5.0)
        except queue.Full:
            log.warning("the service cannot keep up; a message was dropped")

    def _take_turn(self) -> None:
        self.every_turn(time.time())
        self._hearing.look(connected=self._session.connected, contested=self._session.contested)
        idle_s = self._core.idle_s(time.monotonic()) if self._session.connected else IDLE_S
        idle_s = BUSY_TURN_S if self._waiting else idle_s
        self._turn = self._turn or list(self._next_messages(min(IDLE_S, idle_s)))
        with contextlib.suppress(queue.Empty):
            while True:
                remembered = self._connects.get_nowait()
                self._report("connected", {"remembered": remembered})
                self._drop_waiting()  # all of it is said again, as it is now
                try:
                    self._send(self._core.broker_connected(remembered=remembered))
                except DatabaseAway:
                    self._connects.put(remembered)
                    raise
        self._send(())
        free = self._session.connected and not self._waiting
        room_bytes = PACE_BYTES - self._session.pending_bytes if free else 0
        now, now_utc = time.monotonic(), time.time()
        self._send(self._core.turn(self._turn, now=now, now_utc=now_utc, room_bytes=max(0, room_bytes)))
        self._turn, self._tries = [], 0
        if self._fault is not None:
            self._fault = None
            self._report("database", {"state": "answers again"})

    def _next_messages(self, patience_s: float) -> Iterator[Message]:
        with contextlib.suppress(queue.Empty):
            item = self._arrivals.get(timeout=patience_s)
            for left in reversed(range(MAX_TURN_MESSAGES)):
                if item is not None:
                    yield item
                if left:
                    item = self._arrivals.get_nowait()

    def _send(self, publications: Sequence[Publication]) -> None:
        """Hand these over after what waits already; what finds no room waits until there is some."""
        for publication in publications:
            if self._waiting_bytes > MAX_WAITING_BYTES:
                # Not lost for good: retained messages go out again on the next connect, and for all others there
                # is a device with a timer.
                log.warning("not sent to %s: too much is waiting for the broker", publication.topic)
                break
            self._waiting.append(publication)
            self._waiting_bytes += len(publication.payload)
        while self._waiting:
            try:
                self._session.send(self._waiting[0])
            except BrokerError as error:
                if not self._session.connected:
                    log.warning("not sent to %s and others: %s", self._waiting[0].topic, error)
                    self._drop_waiting()
                return
            self._waiting_bytes -= len(self._waiting.popleft().payload)

    def _drop_waiting(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
