"""Channels, their releases and their devices in one transaction of the fleet's database."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Session

from sdk.errors import UnknownDevice
from sdk.fleet import fleetlog
from sdk.fleet.registry import next_state
from sdk.fleet.tables import AssignmentRow, BrokerRow, ChannelRow, DeviceRow, PublicationRow, ReleaseRow, SpaceRow
from sdk.labels import GENESIS, Record
from sdk.release import Release
from sdk.wire import DeviceState, ReleaseRef, UpdateEvent, UpdateState, decode_json, encode_json


@dataclass(frozen=True)
class Publication:
    """A release on a channel."""

    id: int
    channel: str
    release: Release
    space: str
    feature_size: int
    announced: bool
    staged: bool = False

    @property
    def ref(self) -> ReleaseRef:
        """What messages call the release."""
        return self.release.ref

    def served_by(self, state: DeviceState) -> bool:
        """Return whether a device runs it, in the channel's feature space as far as it says."""
        return state.release_id == self.ref.release_id and state.space in (None, self.space)


@dataclass(frozen=True)
class Device:
    """A registered device as it last told of itself."""

    device: str
    channel: str
    state: DeviceState
    last_seen_utc: float
    acknowledged: int
    refused: str | None
    revoked_utc: float | None = None


@dataclass(frozen=True)
class Assignment:
    """How far a device is with a publication."""

    device: str
    state: UpdateState | None
    reason: str


@dataclass(frozen=True)
class BrokerAway:
    """The service does not hear its broker, nor any device; or not all of it.

    Attributes:
        address: The broker's.
        since_utc: Since when.
        contested: Another service comes under its name, and each takes the other's session again and again.
    """

    address: str
    since_utc: float
    contested: bool = False


class ChannelLedger:
    """What is published where, and who listens.

    Args:
        session: Of an open transaction.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.decided: list[tuple[str, list[Record]]] = []
        """What people decided in this transaction, by channel: kept beside the database too."""

    # Channels and releases

    def _channel(self, name: str) -> ChannelRow:
        row = self._session.get(ChannelRow, name, with_for_update=True)
        if row is None:
            row = ChannelRow(name=name, log_length=0)
            self._session.add(row)
            self._session.flush()
        return row

    def channels(self) -> list[str]:
        """Return the names of all channels."""
        return list(self._session.scalars(select(ChannelRow.name).order_by(ChannelRow.name)))

    def current(self, channel: str) -> Publication | None:
        """Return the channel's current release: the newest that reached it at once, or whose rollout is done."""
        newest = (
            select(func.max(PublicationRow.id))
            .where(PublicationRow.channel == channel, PublicationRow.staged.is_(False))
            .scalar_subquery()
        )
        found = self._publications(PublicationRow.id == newest)
        return found[0] if found else None

    def publication(self, publication_id: int) -> Publication | None:
        """Return one publication."""
        found = self._publications(PublicationRow.id == publication_id)
        return found[0] if found else None

    def publications(self, channel: str, *, cleared: bool) -> list[Publication]:
        """Return a channel's publications, oldest first, of those whose chunks were cleared or not."""
        return self._publications((PublicationRow.channel == channel) & PublicationRow.cleared.is_(cleared))

    def _publications(self, where: Any) -> list[Publication]:
        rows = self._session.execute(
            select(PublicationRow, ReleaseRow)
            .join(ReleaseRow, ReleaseRow.release_id == PublicationRow.release_id)
            .where(where)
            .order_by(PublicationRow.id)
        )
        return [
            Publication(
                p.id, p.channel, Release.parse(r.descriptor), r.space, r.feature_size, p.announced, p.staged
            )
            for p, r in rows
        ]

    def newest_publication(self) -> int:
        """Return the number of the newest publication of any channel, 0 where there is none."""
        return self._session.scalar(select(func.max(PublicationRow.id))) or 0

    def newest_release(self, channel: str) -> str | None:
        """Return the id of the release that was published last on a channel, at once or in waves."""
        return self._session.scalar(
            select(PublicationRow.release_id)
            .where(PublicationRow.channel == channel)
            .order_by(PublicationRow.id.desc())
            .limit(1)
        )

    def mark_announced(self, publication_id: int) -> None:
        """Note that a publication was announced."""
        self._session.execute(
            update(PublicationRow).where(PublicationRow.id == publication_id).values(announced=True)
        )

    def mark_cleared(self, publication_id: int, *, cleared: bool = True) -> None:
        """Note that a publication's chunks are no longer on the broker, or are there again."""
        self._session.execute(
            update(PublicationRow).where(PublicationRow.id == publication_id).values(cleared=cleared)
        )

    def release_names(self) -> dict[str, str]:
        """Return the name of every release, by id."""
        rows = self._session.execute(select(ReleaseRow.release_id, ReleaseRow.name))
        return {row.release_id: row.name for row in rows}

    def feature_sizes(self) -> dict[bytes, int]:
        """Return the length of a code in each feature space of a published release, of all its precisions."""
        found: dict[bytes, int] = {}
        for row in (ReleaseRow, SpaceRow):
            rows = self._session.execute(select(row.space, row.feature_size).distinct())
            found |= {bytes.fromhex(space): size for space, size in rows}
        return found

    def note_spaces(self, sizes: Mapping[str, int]) -> None:
        """Note how long a code is in these feature spaces."""
        for space, feature_size in sizes.items():
            if self._session.get(SpaceRow, space) is None:
                self._session.add(SpaceRow(space=space, feature_size=feature_size))
        self._session.flush()

    # Devices

    def note_state(self, state: DeviceState, *, seen_utc: float | None) -> tuple[Device, bool]:
        """Store what a device says of itself, registering it on its channel when it is new.

        A registered device stays on its channel whatever it says later: its log is part of that union. A last
        will, which says nothing else, only makes it offline: what it said before is the last that is known.
        One that is revoked is not heard; one that is forgotten is back when it says now that it is there, which
        neither its last will does nor a farewell.

        Args:
            state: What it said.
            seen_utc: When; None for a retained message, which may be old.

        Returns:
            The device, and whether it is new, or back: what it should run is to be said to it.
        """
        row = self._session.get(DeviceRow, state.device)
        new = row is None
        if row is None:
            self._channel(state.channel)
            row = DeviceRow(
                device=state.device,
                channel=state.channel,
                registered_utc=time.time(),
                last_seen_utc=time.time(),
                state=b"",
                last_seq=0,
                last_hash=GENESIS,
                last_counter=0,
            )
            self._session.add(row)
            self._assign_current(row)
        if row.revoked_utc is not None or (row.forgotten and (seen_utc is None or not state.online)):
            return device_of(row), False
        back = row.forgotten
        if back:
            row.forgotten = False
            self._assign_current(row)
        if not new and not state.tells:
            state = msgspec.structs.replace(device_of(row).state, online=False)
        row.state = encode_json(state)
        if seen_utc is not None:
            row.last_seen_utc = seen_utc
        self._session.flush()
        return device_of(row), new or back

    def _assign_current(self, row: DeviceRow) -> None:
        current = self.current(row.channel)
        self._session.flush()
        if current is not None and self._session.get(AssignmentRow, (current.id, row.device)) is None:
            self._session.add(AssignmentRow(publication_id=current.id, device=row.device))

    def note_revoked(self, device: str, now_utc: float) -> None:
        """Note that a device's certificates count no more: it is not there, and nothing waits for it."""
        row = self._session.get(DeviceRow, device)
        if row is not None:
            self._make_offline(row)
            row.revoked_utc = now_utc

    def note_enrolled(self, device: str) -> None:
        """Note that a device has certificates: one that was revoked is back when it says that it is there."""
        row = self._session.get(DeviceRow, device)
        if row is not None and row.revoked_utc is not None:
            row.revoked_utc, row.forgotten = None, True

    def forget(self, device: str) -> None:
        """Show a device no more; what it labelled stays. It is back when it says that it is there.

        Raises:
            UnknownDevice: there is no such device.
        """
        row = self._session.scalar(select(DeviceRow).where(DeviceRow.device == device, fleetlog.is_device()))
        if row is None or row.forgotten:
            raise UnknownDevice(
                f"there is no device {device[:80]}", hint="`headway fleet devices` lists the known ones."
            )
        self._make_offline(row)
        row.forgotten = True

    def note_all_offline(self, channels: Iterable[str]) -> None:
        """Note that nobody knows which devices of these channels are there: those that are say so."""
        for row in self._session.scalars(
            select(DeviceRow).where(DeviceRow.channel.in_(list(channels)), is_there())
        ):
            self._make_offline(row)

    def _make_offline(self, row: DeviceRow) -> None:
        state = device_of(row).state
        if state.online:
            row.state = encode_json(msgspec.structs.replace(state, online=False))

    def note_seen(self, devices: Iterable[str], seen_utc: float) -> None:
        """Note that these devices are there, though they have told nothing new of themselves."""
        self._session.execute(
            update(DeviceRow).where(DeviceRow.device.in_(list(devices))).values(last_seen_utc=seen_utc)
        )

    def device(self, device: str) -> Device | None:
        """Return one device."""
        row = self._session.get(DeviceRow, device)
        return None if row is None else device_of(row)

    def devices(self, channel: str | None = None, *, revoked: bool = False) -> list[Device]:
        """Return the devices, of one channel or all, by name; with `revoked` those too that were revoked."""
        known = and_(fleetlog.is_device(), DeviceRow.forgotten.is_(False)) if revoked else is_there()
        query = select(DeviceRow).where(known).order_by(DeviceRow.device)
        if channel is not None:
            query = query.where(DeviceRow.channel == channel)
        return [device_of(row) for row in self._session.scalars(query)]

    # The broker

    def note_broker(self, address: str, away_utc: float | None, *, contested: bool = False) -> None:
        """Note since when the service does not hear its broker; None: it does.

        Args:
            address: The broker's.
            away_utc: Since when.
            contested: Another service takes its session again and again.
        """
        row = self._session.get(BrokerRow, 1)
        if row is None:
            row = BrokerRow(number=1)
            self._session.add(row)
        row.address, row.away_utc, row.contested = address[:300], away_utc, contested
        self._session.flush()

    def broker_away(self) -> BrokerAway | None:
        """Return the broker that the service does not hear; None where it does."""
        row = self._session.get(BrokerRow, 1)
        if row is None or row.away_utc is None:
            return None
        return BrokerAway(row.address, row.away_utc, row.contested)

    # Assignments

    def note_event(self, device: str, update_event: UpdateEvent, now_utc: float) -> UpdateState | None:
        """Store how far a device is with a release; return the state it is in then, None if it has no such job."""
        row = self._session.scalar(
            select(AssignmentRow)
            .join(PublicationRow, PublicationRow.id == AssignmentRow.publication_id)
            .where(AssignmentRow.device == device, PublicationRow.release_id == update_event.release_id)
            .order_by(PublicationRow.id.desc())
            .limit(1)
        )
        if row is None:
            return None
        state = next_state(None if row.state is None else UpdateState(row.state), update_event.state)
        if state is update_event.state:
            row.state, row.reason, row.updated_utc = state.value, update_event.reason, now_utc
        return state

    def assignments(self, publication_id: int) -> list[Assignment]:
        """Return how far the devices are with a publication, by device; not of those that are gone."""
        rows = self._session.scalars(
            select(AssignmentRow)
            .join(DeviceRow, DeviceRow.device == AssignmentRow.device)
            .where(AssignmentRow.publication_id == publication_id, is_there())
            .order_by(AssignmentRow.device)
        )
        return [
            Assignment(row.device, None if row.state is None else UpdateState(row.state), row.reason)
            for row in rows
        ]


def device_of(row: DeviceRow) -> Device:
    """Return the device that a row is of."""
    return Device(
        device=row.device,
        channel=row.channel,
        state=decode_json(row.state, DeviceState),
        last_seen_utc=row.last_seen_utc,
        acknowledged=row.last_seq,
        refused=row.refused,
        revoked_utc=row.revoked_utc,
    )


def is_there() -> ColumnElement[bool]:
    """Return the condition that a row is a device of the fleet's, neither revoked nor forgotten."""
    return and_(fleetlog.is_device(), DeviceRow.revoked_utc.is_(None), DeviceRow.forgotten.is_(False))
