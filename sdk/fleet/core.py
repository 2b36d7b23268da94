"""What the fleet service does, turn by turn: messages in, one transaction, publications out.

It neither waits nor asks the time; `sdk.fleet.service` is the rim around it.

Rules this module keeps (docs/protocol.md):

- Commit, then acknowledge. An `Ack` speaks only of what a committed transaction holds.
- Every message may come twice, late, out of order or not at all; every answer may be lost. What the service says
  can be asked for again, so after a crash at any point the devices' own timers put things right.
- The broker is a cache: after it forgot, everything retained is published again, and chunks on request.

The parts of a turn have modules of their own: what came in (`arrivals`), from whom it counts (`admission`), and
what is said of a channel (`notices`), of its union (`sharing`) and of its releases (`seeding`, `waves`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from sdk.errors import UnknownDevice
from sdk.fleet.admission import Admission
from sdk.fleet.ahead import Ahead
from sdk.fleet.arrivals import Arrivals, arrivals_of
from sdk.fleet.notices import Notices
from sdk.fleet.registry import CLASS_ENTRIES_BURST, CLASS_ENTRIES_PER_S, Budgets
from sdk.fleet.reports import Happened, Report
from sdk.fleet.saying import Saying
from sdk.fleet.seeding import Seeding
from sdk.fleet.sharing import Sharing
from sdk.fleet.spending import Spending
from sdk.fleet.store import FleetStore, Ledger
from sdk.fleet.union_ledger import Taken, records_of
from sdk.fleet.waves import Waves
from sdk.labels import Label
from sdk.mqtt import Message, Publication
from sdk.trust.repository import OnlineTrust
from sdk.wire import Ack, DeviceState, LabelBatch, Topics, UpdateEvent, Want

POLL_S: Final = 0.5
"""How soon a release published by another process is noticed."""
SEEN_EVERY_S: Final = 3600.0
"""A device tells of its state when that changes, and asks for the union's end every half minute whatever happens:
that says of an idle one that it is there. Written down no more often than this."""
BUSY_TURN_S: Final = 0.01


class FleetCore:
    """What the service does, turn by turn.

    Args:
        store: The fleet's directory.
        topics: Where its messages go.
        channels: The channels it serves; see `sdk.fleet.admission` for devices of others.
        report: Told what happened.
        trust: Signs and announces with the fleet's online key; None where the fleet has no keys.
        enrolled: Returns the channel of each device that was enrolled on one.
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
        self._topics = topics
        self._channels = tuple(channels)
        self._report = report
        self._admission = Admission(channels, enrolled)
        self._saying = Saying(topics, trust, report)
        self._notices = Notices(store, self._saying, self._admission)
        self._sharing = Sharing(store, self._saying)
        self._seeding = Seeding(store, self._saying, self._notices, channels, report)
        self._waves = Waves(store, self._seeding, self._notices, channels, report)
        self._class_entries = Budgets(CLASS_ENTRIES_BURST, CLASS_ENTRIES_PER_S)
        self._spending = Spending()
        self._classes: set[bytes] = set()  # that somebody has named since the start; each was in a budget
        self._greeted: set[str] = set()  # devices that were told where their log ends since they came online
        self._ahead = Ahead(store.came_back)
        self._poll_due = 0.0
        self._newest = 0
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
        self._sharing.forget()
        if not remembered:
            # It may have forgotten who is there, and the last wills of those who are not. Who is says so on every
            # connect of its own; what the broker kept of it follows after this.
            with self._store.write() as ledger:
                ledger.note_all_offline(self._channels)
        out = self._saying.trust(again=True)  # before the assignments that it vouches for
        with self._store.read() as ledger:
            self._load(ledger)
            for channel in self._channels:
                if self._seeding.announce_new(ledger, channel):
                    continue
                if not remembered:
                    # It may have forgotten the chunks too. Devices that know of the release ask for them anyway.
                    self._seeding.repeat(ledger, channel)
                out += self._notices.notice(ledger, channel)
        return out

    def _load(self, ledger: Ledger) -> None:
        self._newest = ledger.newest_publication()
        for channel in self._channels:
            length = ledger.log_length(channel)
            self._sharing.begin(channel, length)
            self._ahead.begin(channel, length)
        self._sizes = ledger.feature_sizes()
        self._seeding.load(ledger)

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
        arrived = arrivals_of(messages, self._topics, self._report)
        out: list[Publication] = []
        if arrived.to_commit:
            out += self._commit(arrived, now=now, now_utc=now_utc)
        if arrived.wants:
            self._note_wants(arrived.wants, now, now_utc)
        if now >= self._poll_due:
            self._poll_due = now + POLL_S
            out += self._poll(now, now_utc)
            out += self._waves.advance(now, now_utc)
        out += self._notices.due(now, but=self._seeding.busy_channels)
        pages = self._sharing.pages(room_bytes, now)
        room_bytes -= sum(len(page.payload) for page in pages)
        out += [*pages, *self._seeding.chunks(room_bytes, now), *self._seeding.announced()]
        return out

    def idle_s(self, now: float) -> float:
        """Return how long the service may wait for messages before the next turn."""
        if self._sharing.busy or self._seeding.busy:
            return BUSY_TURN_S
        return max(0.0, min(self._poll_due, self._notices.due_at) - now)

    # Labels, states, events: one transaction

    def _commit(self, arrived: Arrivals, *, now: float, now_utc: float) -> list[Publication]:
        out: list[Publication] = []
        happened: list[Happened] = []
        taken: list[Taken] = []
        with self._store.write() as ledger:
            for state, retained in arrived.states:
                out += self._note_state(ledger, state, happened, now_utc, retained=retained)
            for device, batch in arrived.labels:
                if self._admission.may_speak(ledger.device(device)):
                    try:
                        taken.append(self._take(ledger, device, batch, now))
                    except UnknownDevice as error:
                        happened.append(("unknown_device", {"device": device, "error": str(error)}))
            for device, event in arrived.events:
                if self._admission.may_speak(ledger.device(device)):
                    happened.append(self._note_event(ledger, device, event, now_utc))
        # Committed: from here on it may be told.
        out += self._answer(taken, happened)
        out += self._share(taken, happened, now)
        for kind, more in happened:
            self._report(kind, more)
        return out

    def _note_state(
        self, ledger: Ledger, state: DeviceState, happened: list[Happened], now_utc: float, *, retained: bool
    ) -> list[Publication]:
        seen_utc = None if retained else now_utc
        known = ledger.device(state.device)
        channel = state.channel if known is None else known.channel
        if wrong := self._admission.elsewhere(state.device, channel):
            happened += self._admission.complaint(state.device, wrong)
            if known is not None and known.state.online:  # away, for that channel: no rollout waits for it
                ledger.note_state(msgspec.structs.replace(known.state, online=False), seen_utc=None)
            return []
        if state.channel not in self._channels:
            wrong = f"is on channel {state.channel}, which is not served here"
            happened += self._admission.complaint(state.device, wrong)
            return []
        device, new = ledger.note_state(state, seen_utc=seen_utc)
        if device.revoked_utc is not None:
            if state.online and seen_utc is not None:
                wrong = "was revoked, and the broker still lets it speak"
                happened += self._admission.complaint(device.device, wrong)
            return []
        if device.channel != state.channel:
            wrong = f"was on channel {device.channel} and stays there"
            happened += self._admission.complaint(state.device, wrong)
        elif found := self._ahead.look(ledger, device.device, device.channel, state.log_position, now_utc):
            happened.append(found)
            self._notices.restored(device.channel)
        self._seeding.look_again()
        out: list[Publication] = []
        if new:
            happened.append(("registered", {"device": device.device, "channel": device.channel}))
            out += self._notices.assignments(ledger, [device])
        if not state.online:
            self._greeted.discard(device.device)
            self._sharing.away(device.device)
        elif device.device not in self._greeted:
            # It may have missed the last acknowledgement; with this it need not wait for its timer.
            self._greeted.add(device.device)
            out.append(self._saying.ack(device.device, Ack(through=device.acknowledged)))
        return out

    def _take(self, ledger: Ledger, device: str, batch: LabelBatch, now: float) -> Taken:
        left = self._class_entries.left(device, now)
        known = ledger.device(device)
        room = None if known is None else self._spending.room(ledger, device, known.channel, now)
        taken = ledger.take(device, batch.records, self._sizes, left, self._classes, room)
        self._classes |= taken.verdict.new_classes
        self._class_entries.spend(device, taken.verdict.class_entries, now)
        self._spending.spend(device, taken.verdict.accepted, now)
        return taken

    def _note_event(self, ledger: Ledger, device: str, event: UpdateEvent, now_utc: float) -> Happened:
        state_now = ledger.note_event(device, event, now_utc)
        self._seeding.look_again()
        return (
            "update",
            {
                "device": device,
                "release_id": event.release_id,
                "state": event.state.value,
                "reason": event.reason,
                "assigned": state_now is not None,
            },
        )

    def _answer(self, taken: Sequence[Taken], happened: list[Happened]) -> list[Publication]:
        """Return to each device what became of its labels."""
        out: list[Publication] = []
        for one in taken:
            refused = one.verdict.refused
            out.append(self._saying.ack(one.device, Ack(through=one.verdict.standing.chain.seq, refused=refused)))
            if refused is not None:
                more = {"device": one.device, "seq": refused.seq, "reason": refused.reason}
                happened.append(("refused", more))
        return out

    def _share(self, taken: Sequence[Taken], happened: list[Happened], now: float) -> list[Publication]:
        """Return to all devices of each channel what its union has got."""
        out: list[Publication] = []
        for channel, (first, records) in records_of(taken).items():
            out += self._sharing.share(channel, first, records)
            self._notices.grown(channel, now)
            labels_in = sum(isinstance(record.entry.body, Label) for record in records)
            stored = {"channel": channel, "first": first, "records": len(records), "labels": labels_in}
            happened.append(("stored", stored))
        return out

    # What devices ask for

    def _note_wants(self, wants: Sequence[tuple[str, Want]], now: float, now_utc: float) -> None:
        quiet: set[str] = set()
        cleared: set[int] = set()
        ahead: dict[str, tuple[str, str, int]] = {}
        with self._store.read() as ledger:
            for name, want in wants:
                device = ledger.device(name)
                if device is None or not self._admission.may_speak(device):
                    continue
                if device.last_seen_utc < now_utc - SEEN_EVERY_S:
                    quiet.add(name)
                cleared |= self._seeding.want(name, want.chunks, now)
                if want.log_from is None:
                    continue
                length = ledger.log_length(device.channel)
                if want.log_from <= length + 1:
                    self._sharing.want(name, device.channel, want.log_from, length, now)
                    continue
                self._report("ahead", {"device": name, "log_from": want.log_from, "log_length": length})
                if want.channel == device.channel:
                    ahead[device.channel] = name, device.channel, want.log_from - 1
        self._seeding.keep(cleared, now)
        self._note_signs(quiet, ahead, now_utc)

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
                self._notices.restored(more["channel"])

    # What other processes did

    def _poll(self, now: float, now_utc: float) -> list[Publication]:
        """Notice what another process published or signed; clear chunks that nobody needs any more."""
        out = self._saying.trust()
        self._seeding.let_go(now)
        with self._store.read() as ledger:
            if ledger.newest_publication() != self._newest:
                self._load(ledger)
                self._seeding.look_again()
                for channel in self._channels:
                    self._seeding.announce_new(ledger, channel)
            for channel, first, records in self._sharing.unshared(ledger):
                self._report("decided", {"channel": channel, "first": first, "records": len(records)})
                out += self._sharing.share(channel, first, records)
                self._notices.decided(channel)
            old = self._seeding.garbage(ledger, now_utc)
        return out + self._seeding.clear(old)
