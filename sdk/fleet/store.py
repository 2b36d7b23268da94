"""What the fleet knows, durably: devices, the union of their logs, releases, assignments.

One directory: `fleet.db` (SQLite, WAL, every commit synced) and `chunks/`. Where `database.url` names a PostgreSQL
database, that stands in for the file (`sdk.fleet.database`), where `chunks.url` names a place, that stands in for
the folder (`sdk.fleet.blobs`). The schema is brought up
to date when the directory is opened.

Rules this module keeps:

- A label entry is stored once, in the order of its device's log, and gets the next position of its channel's
  union in the same transaction: positions have no gaps, and what was acknowledged has one.
- A release is a row only after its chunks are on disk.
- Writers take the write lock when they begin, so that what they read is what they change.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
from sqlalchemy import Engine, func, inspect, select, text, update
from sqlalchemy.orm import Session

from sdk.bundle import MANIFEST_NAME, BaseSamples, Bundle, Manifest, PrecisionEntry, decode_manifest
from sdk.errors import BadSignature, FleetError, UnknownDevice
from sdk.fleet import fleetlog
from sdk.fleet.blobs import blobs_of
from sdk.fleet.database import ServiceLock, database_errors, engine_of
from sdk.fleet.registry import Standing, Verdict, judge, next_state
from sdk.fleet.rollout import Decision, Member, Plan, Rollout, RolloutState, Step, decide
from sdk.fleet.tables import AssignmentRow, ChannelRow, DeviceRow, EntryRow, PublicationRow, ReleaseRow, RolloutRow
from sdk.labels import GENESIS, Body, Chain, Entry, Fold, Record, entry_hash, fleet_log_of
from sdk.liveset import LiveSet
from sdk.moments import Moments
from sdk.release import Release, describe
from sdk.sources import Hold
from sdk.wire import (
    MAX_BATCH_RECORDS,
    Desired,
    DeviceState,
    Quality,
    ReleaseRef,
    UpdateEvent,
    UpdateState,
    batches,
    decode_json,
    encode_json,
)

MIGRATIONS: Final = Path(__file__).parent / "migrations"
SCHEMA_REVISION: Final = "0002"
"""The newest migration: a database that has it is opened without Alembic."""
LOCK_PATIENCE_S: Final = 0.5
"""A command that only asks whether a service runs holds the lock for a moment."""

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Device:
    """A registered device as it last told of itself."""

    device: str
    channel: str
    state: DeviceState
    last_seen_utc: float
    acknowledged: int
    refused: str | None


@dataclass(frozen=True)
class Assignment:
    """How far a device is with a publication."""

    device: str
    state: UpdateState | None
    reason: str


@dataclass(frozen=True)
class Taken:
    """What became of one device's batch: the verdict, and where its records went in the channel's union."""

    device: str
    channel: str
    first_position: int
    verdict: Verdict


@dataclass(frozen=True)
class Learned:
    """What a channel's union folds to, in its current release's feature space.

    Attributes:
        live: The live set.
        names: Class names by id, after merges.
        holds: The quarantines that stand.
        apart: Pairs of classes that somebody said are different, the smaller id first.
    """

    live: LiveSet
    names: dict[bytes, str]
    holds: list[Hold]
    apart: set[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Prepared:
    """A bundle whose chunks are stored, not published yet."""

    release: Release
    space: str
    feature_size: int


class FleetStore:
    """The fleet's directory, opened.

    Args:
        directory: Made if it is not there.

    Raises:
        FleetError: the database cannot be used, or is newer than this Headway.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FleetError(
                f"{directory}: {error.strerror}", hint="Name a directory you may write to."
            ) from error
        self.chunks = blobs_of(directory)
        self.on_commit: Callable[[float], None] = lambda _seconds: None
        """Told how long each commit took to be on disk."""
        self._folding = threading.Lock()
        self._folds: dict[str, tuple[int, Fold, int]] = {}  # channel -> publication, its fold, next position
        self._engine = engine_of(directory)
        self._writer = self._engine.execution_options(headway_write=True)
        with database_errors(directory):
            _migrate(self._engine, self._writer)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> FleetStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Hold the directory, and its database, as the one service, for the block.

        Raises:
            FleetError: another service holds it, on this machine or with the same database.
        """
        with ServiceLock(self.directory, self._engine) as lock:
            deadline = time.monotonic() + LOCK_PATIENCE_S
            while not lock.take():
                if time.monotonic() > deadline:
                    raise FleetError(
                        f"another fleet service runs on {self.directory}",
                        hint="Stop it first, or name another --dir.",
                    )
                time.sleep(0.02)
            yield

    def served(self) -> bool:
        """Return whether a service holds the directory now."""
        with ServiceLock(self.directory, self._engine) as lock:
            return not lock.take(shared=True)

    @contextlib.contextmanager
    def read(self) -> Iterator[Ledger]:
        """Open one consistent view of the database for the block."""
        with database_errors(self.directory), Session(self._engine) as session:
            yield Ledger(session)

    @contextlib.contextmanager
    def write(self) -> Iterator[Ledger]:
        """Open the one write transaction; leaving the block commits it to disk, an exception takes it back."""
        with database_errors(self.directory), Session(self._writer) as session:
            with session.begin():
                yield Ledger(session)
                began = time.monotonic()
            self.on_commit(time.monotonic() - began)

    def publish(
        self, bundle: Bundle, *, channel: str, precision: str | None = None, plan: Plan | None = None
    ) -> Publication:
        """Store a verified bundle and assign it to the channel's devices, at once or in waves.

        A running service announces it by itself. Publishing again what is current already changes nothing for
        devices that run it.

        Args:
            bundle: The release to be.
            channel: Whose devices should run it.
            precision: Which of its precisions; its first by default.
            plan: How it reaches them in waves; None makes it the channel's current release now.

        Raises:
            BundleError: the bundle changed meanwhile, or is too large.
            StoreFull: no space for its chunks.
            FleetError: a rollout is under way in this channel.
        """
        prepared = self.prepare(bundle, precision=precision)
        with self.write() as ledger:
            return ledger.publish(
                prepared.release,
                channel=channel,
                space=prepared.space,
                feature_size=prepared.feature_size,
                plan=plan,
            )

    def prepare(self, bundle: Bundle, *, precision: str | None = None) -> Prepared:
        """Store the chunks of a verified bundle, and nothing else; raises as `publish`."""
        release = describe(bundle.path, bundle.manifest.name, bundle.file_names(), put=self.chunks.put)
        listed = {entry.name: entry.sha256 for entry in bundle.manifest.files}
        for file in release.descriptor.files:
            if file.name != MANIFEST_NAME and file.sha256 != listed[file.name]:
                raise BadSignature(f"{file.name} changed while it was published", hint="Publish the bundle again.")
        self.chunks.sync()
        entry = bundle.precision(precision)
        return Prepared(release, entry.space, entry.feature_size)

    def live_set(self, channel: str) -> LiveSet | None:
        """Return the live set of the channel's union in its current release's feature space.

        The same fold over the same records that every device of the channel makes; None without a release.
        """
        learned = self.learned(channel)
        return None if learned is None else learned.live

    def learned(self, channel: str) -> Learned | None:
        """Return what the channel's union folds to; None without a release.

        Cost: the whole union is read the first time, later what is new of it.
        """
        with self._folding, self.read() as ledger:
            publication = ledger.current(channel)
            if publication is None:
                return None
            found = self._folds.get(channel)
            if found is None or found[0] != publication.id:
                found = publication.id, self._base_fold(publication), 1
            _, fold, position = found
            while records := ledger.records(channel, position):
                for record in records:
                    fold.apply(record)
                position += len(records)
            self._folds[channel] = publication.id, fold, position
            return Learned(fold.live_set(), fold.class_names(), fold.holds(), fold.apart())

    def summed_moments(self, channel: str, live: LiveSet) -> Moments | None:
        """Return the moments of the samples that a channel's release knows by their sums only; None without.

        Args:
            channel: Whose.
            live: Its live set: classes are those after its merges.
        """
        with self.read() as ledger:
            publication = ledger.current(channel)
        if publication is None:
            return None
        entry, _, base = self._base_of(publication)
        if isinstance(entry.moments, str):
            files = {file.name: file for file in publication.release.descriptor.files}
            base = base.with_moments(self.chunks.read(files[entry.moments]), entry.moments)
        return None if base.rest is None else base.rest.merged(lambda c: live.merged.get(c, c))

    def released_classes(self, channel: str) -> frozenset[bytes]:
        """Return the ids of the classes that a channel's release brings; none without a release."""
        with self.read() as ledger:
            publication = ledger.current(channel)
        if publication is None:
            return frozenset()
        files = {file.name: file for file in publication.release.descriptor.files}
        manifest = decode_manifest(self.chunks.read(files[MANIFEST_NAME]))
        return frozenset(bytes.fromhex(entry.id) for entry in manifest.classes)

    def _base_of(self, publication: Publication) -> tuple[PrecisionEntry, Manifest, BaseSamples]:
        files = {file.name: file for file in publication.release.descriptor.files}
        manifest = decode_manifest(self.chunks.read(files[MANIFEST_NAME]))
        entry = next(entry for entry in manifest.precisions if entry.space == publication.space)
        base = BaseSamples.from_bytes(self.chunks.read(files[entry.samples]), entry.samples, entry.feature_size)
        return entry, manifest, base

    def _base_fold(self, publication: Publication) -> Fold:
        _, manifest, base = self._base_of(publication)
        fold = Fold(publication.space, publication.feature_size)
        names = {bytes.fromhex(c.id): c.name for c in manifest.classes}
        fold.add_base(base.samples, base.class_ids, base.groups, base.codes, names, base.summed)
        return fold


class Ledger:
    """One transaction on the fleet's database."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # Channels and releases

    def publish(
        self, release: Release, *, channel: str, space: str, feature_size: int, plan: Plan | None = None
    ) -> Publication:
        """Make a release the channel's current one and assign it to all its devices, or begin a rollout of it.

        Raises:
            FleetError: a rollout is under way in this channel.
        """
        ref = release.ref
        self._channel(channel)
        under_way = self.rollout(channel)
        if under_way is not None and under_way[1].open:
            raise FleetError(
                f"a rollout of {under_way[0].ref.name} is under way on channel {channel}",
                hint="Let it end, or stop it: headway fleet rollout halt.",
            )
        if self._session.get(ReleaseRow, ref.release_id) is None:
            self._session.add(
                ReleaseRow(
                    release_id=ref.release_id,
                    name=ref.name,
                    size_bytes=ref.size_bytes,
                    descriptor=release.encoded,
                    space=space,
                    feature_size=feature_size,
                )
            )
            self._session.flush()
        row = PublicationRow(
            channel=channel, release_id=ref.release_id, published_utc=time.time(), staged=plan is not None
        )
        self._session.add(row)
        self._session.flush()
        if plan is not None:
            self._put_rollout(Rollout(row.id, plan))
            return Publication(row.id, channel, release, space, feature_size, announced=False, staged=True)
        of_channel = select(DeviceRow.device).where(DeviceRow.channel == channel, fleetlog.is_device())
        for device in self._session.scalars(of_channel):
            self._session.add(AssignmentRow(publication_id=row.id, device=device))
        return Publication(row.id, channel, release, space, feature_size, announced=False)

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

    def mark_announced(self, publication_id: int) -> None:
        """Note that a publication was announced."""
        self._session.execute(
            update(PublicationRow).where(PublicationRow.id == publication_id).values(announced=True)
        )

    def mark_cleared(self, publication_id: int) -> None:
        """Note that a publication's chunks are no longer on the broker."""
        self._session.execute(
            update(PublicationRow).where(PublicationRow.id == publication_id).values(cleared=True)
        )

    def release_names(self) -> dict[str, str]:
        """Return the name of every release, by id."""
        rows = self._session.execute(select(ReleaseRow.release_id, ReleaseRow.name))
        return {release_id: name for release_id, name in rows}  # noqa: C416 - rows are no pairs to mypy

    def feature_sizes(self) -> dict[bytes, int]:
        """Return the length of a code in each feature space of a published release."""
        rows = self._session.execute(select(ReleaseRow.space, ReleaseRow.feature_size).distinct())
        return {bytes.fromhex(space): size for space, size in rows}

    # Devices

    def note_state(self, state: DeviceState, *, seen_utc: float | None) -> tuple[Device, bool]:
        """Store what a device says of itself, registering it on its channel when it is new.

        A registered device stays on its channel whatever it says later: its log is part of that union.

        Args:
            state: What it said.
            seen_utc: When; None for a retained message, which may be old.

        Returns:
            The device, and whether it is new.
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
            current = self.current(state.channel)
            if current is not None:
                self._session.flush()
                self._session.add(AssignmentRow(publication_id=current.id, device=state.device))
        row.state = encode_json(state)
        if seen_utc is not None:
            row.last_seen_utc = seen_utc
        self._session.flush()
        return _device(row), new

    def device(self, device: str) -> Device | None:
        """Return one device."""
        row = self._session.get(DeviceRow, device)
        return None if row is None else _device(row)

    def devices(self, channel: str | None = None) -> list[Device]:
        """Return the devices, of one channel or all, by name."""
        query = select(DeviceRow).where(fleetlog.is_device()).order_by(DeviceRow.device)
        if channel is not None:
            query = query.where(DeviceRow.channel == channel)
        return [_device(row) for row in self._session.scalars(query)]

    def desired(self, devices: Iterable[Device]) -> list[tuple[Device, Desired]]:
        """Return what devices should run: what a rollout under way brought them, else their channel's release."""
        found: list[tuple[Device, Desired]] = []
        by_channel: dict[str, list[Device]] = {}
        for device in devices:
            by_channel.setdefault(device.channel, []).append(device)
        for channel, own in by_channel.items():
            current, under_way = self.current(channel), self.rollout(channel)
            staged: dict[str, Desired] = {}
            if under_way is not None and under_way[1].open:
                publication, rollout = under_way
                newest = rollout.wave_began_utc + rollout.plan.deadline_s
                for member in self.members(publication.id):
                    deadline = newest if member.wave == rollout.wave else None
                    staged[member.device] = Desired(
                        release=publication.ref, channel=channel, deadline_utc=deadline
                    )
            usual = None if current is None else Desired(release=current.ref, channel=channel)
            for device in own:
                desired = staged.get(device.device, usual)
                if desired is not None:
                    found.append((device, desired))
        return found

    # Rollouts

    def rollout(self, channel: str) -> tuple[Publication, Rollout] | None:
        """Return a channel's newest rollout, under way or ended, and what it brings; None where there was none."""
        row = self._session.scalar(
            select(RolloutRow)
            .join(PublicationRow, PublicationRow.id == RolloutRow.publication_id)
            .where(PublicationRow.channel == channel)
            .order_by(RolloutRow.publication_id.desc())
            .limit(1)
        )
        if row is None:
            return None
        publication = self.publication(row.publication_id)
        assert publication is not None  # a foreign key
        return publication, Rollout(
            row.publication_id,
            msgspec.json.decode(row.plan, type=Plan),
            RolloutState(row.state),
            row.wave,
            row.wave_began_utc,
            row.well_since_utc,
            row.approved,
            row.reason,
            row.version,
        )

    def _put_rollout(self, rollout: Rollout) -> None:
        row = self._session.get(RolloutRow, rollout.publication_id)
        if row is None:
            row = RolloutRow(publication_id=rollout.publication_id)
            self._session.add(row)
        row.plan = msgspec.json.encode(rollout.plan)
        row.state = rollout.state.value
        row.wave, row.wave_began_utc, row.well_since_utc = (
            rollout.wave,
            rollout.wave_began_utc,
            rollout.well_since_utc,
        )
        row.approved, row.reason, row.version = rollout.approved, rollout.reason, rollout.version
        self._session.flush()

    def members(self, publication_id: int) -> list[Member]:
        """Return the devices that a publication's waves have reached, by wave and name."""
        rows = self._session.execute(
            select(AssignmentRow, DeviceRow)
            .join(DeviceRow, DeviceRow.device == AssignmentRow.device)
            .where(AssignmentRow.publication_id == publication_id)
            .order_by(AssignmentRow.wave, AssignmentRow.device)
        )
        return [_member(assigned, _device(device)) for assigned, device in rows]

    def advance(self, channel: str, now_utc: float) -> tuple[Publication, Decision] | None:
        """Look at a channel's rollout, do what is to be done, and return that; None where nothing has changed.

        Halting and finishing decide what `current` and `desired` say from then on.
        """
        found = self.rollout(channel)
        if found is None or not found[1].open or not found[0].announced:
            return None
        publication, rollout = found
        devices = {device.device: device for device in self.devices(channel)}
        decision = decide(rollout, publication.ref.release_id, self.members(publication.id), devices, now_utc)
        after = decision.rollout
        if decision.step is Step.NEXT_WAVE:
            after = replace(
                after,
                state=RolloutState.ROLLING,
                wave=after.wave + 1,
                wave_began_utc=now_utc,
                well_since_utc=None,
                version=after.version + 1,
            )
            for device in decision.devices:
                quality = devices[device].state.quality
                before = None if quality is None else msgspec.json.encode(quality)
                self._session.add(
                    AssignmentRow(publication_id=publication.id, device=device, wave=after.wave, before=before)
                )
        elif decision.step is Step.FINISH:
            self._finish(publication)
        if after == rollout:
            return None
        self._put_rollout(after)
        return publication, replace(decision, rollout=after)

    def _finish(self, publication: Publication) -> None:
        """Make it the channel's current release; devices that no wave has reached get it too."""
        self._session.execute(
            update(PublicationRow).where(PublicationRow.id == publication.id).values(staged=False)
        )
        reached = {member.device for member in self.members(publication.id)}
        for device in self.devices(publication.channel):
            if device.device not in reached:
                self._session.add(AssignmentRow(publication_id=publication.id, device=device.device))

    def halt(self, channel: str, reason: str) -> Rollout:
        """Stop a channel's rollout; its devices are assigned the channel's current release again.

        Raises:
            FleetError: none is under way.
        """
        rollout = self._under_way(channel)
        return self._store(replace(rollout, state=RolloutState.HALTED, reason=reason[:500]))

    def approve(self, channel: str) -> Rollout:
        """Let the next wave of a channel's rollout begin.

        Raises:
            FleetError: none is under way, or it waits for nobody.
        """
        rollout = self._under_way(channel)
        if rollout.state is not RolloutState.AWAITING:
            raise FleetError(
                f"the rollout on {channel} is {rollout.state.value}; it waits for no approval",
                hint="Look at it: headway fleet rollout show.",
            )
        return self._store(replace(rollout, approved=rollout.wave + 1, state=RolloutState.SOAKING))

    def resume(self, channel: str) -> Rollout:
        """Go on with a halted rollout, from the wave that was out, as if its devices had said nothing yet.

        Raises:
            FleetError: there is none, it did not halt, or another release was published since.
        """
        found = self.rollout(channel)
        if found is None or found[1].state is not RolloutState.HALTED:
            raise FleetError(
                f"no rollout has halted on channel {channel}", hint="Look at it: headway fleet rollout show."
            )
        publication, rollout = found
        current = self.current(channel)
        if current is not None and current.id > publication.id:
            raise FleetError(
                f"{current.ref.name} was published since", hint="Publish the bundle again with --waves."
            )
        self._session.execute(
            update(AssignmentRow)
            .where(AssignmentRow.publication_id == publication.id)
            .values(state=None, reason="", updated_utc=None)
        )
        # Its chunks may be off the broker by now.
        self._session.execute(
            update(PublicationRow)
            .where(PublicationRow.id == publication.id)
            .values(announced=False, cleared=False)
        )
        return self._store(
            replace(
                rollout, state=RolloutState.ROLLING, reason="", wave_began_utc=time.time(), well_since_utc=None
            )
        )

    def _under_way(self, channel: str) -> Rollout:
        found = self.rollout(channel)
        if found is None or not found[1].open:
            raise FleetError(
                f"no rollout is under way on channel {channel}",
                hint="Begin one: headway fleet publish BUNDLE --waves 1,10%,100%.",
            )
        return found[1]

    def _store(self, rollout: Rollout) -> Rollout:
        after = replace(rollout, version=rollout.version + 1)
        self._put_rollout(after)
        return after

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
        """Return how far the devices are with a publication, by device."""
        rows = self._session.scalars(
            select(AssignmentRow)
            .where(AssignmentRow.publication_id == publication_id)
            .order_by(AssignmentRow.device)
        )
        return [
            Assignment(row.device, None if row.state is None else UpdateState(row.state), row.reason)
            for row in rows
        ]

    # The union of logs

    def take(self, device: str, records: Sequence[Record], feature_sizes: Mapping[bytes, int]) -> Taken:
        """Store what a device's batch adds to its log, at the end of its channel's union.

        Raises:
            UnknownDevice: the device was never registered.
        """
        row = self._session.get(DeviceRow, device, with_for_update=True)
        if row is None:
            raise UnknownDevice(
                f"device {device} has sent labels before its state", hint="It will send them again."
            )
        channel = self._channel(row.channel)
        verdict = judge(
            device,
            records,
            standing=Standing(Chain(device, row.last_seq, row.last_hash), row.last_counter),
            hash_at=lambda seq: self._hash_at(device, seq),
            highest_counter=self.highest_counter(),
            feature_sizes=feature_sizes,
        )
        first = channel.log_length + 1
        now_utc = time.time()
        for i, record in enumerate(verdict.accepted):
            self._session.add(
                EntryRow(
                    device=device,
                    seq=record.entry.seq,
                    counter=record.entry.counter,
                    hash=entry_hash(record.entry),
                    channel=channel.name,
                    position=first + i,
                    record=msgspec.msgpack.encode(record),
                    received_utc=now_utc,
                )
            )
        channel.log_length += len(verdict.accepted)
        chain = verdict.standing.chain
        row.last_seq, row.last_hash, row.last_counter = chain.seq, chain.last_hash, verdict.standing.counter
        row.refused = None if verdict.refused is None else verdict.refused.reason
        row.last_seen_utc = now_utc
        self._session.flush()
        return Taken(device, channel.name, first, verdict)

    def decide(self, channel: str, bodies: Sequence[Body]) -> list[Record]:
        """Write what the fleet's people decided into its own log, at the end of a channel's union.

        A running service shares it within a second.

        Raises:
            LabelError: one of the bodies is none that a fleet may say.
        """
        return fleetlog.append(self._session, self._channel(channel), bodies, self.highest_counter())

    def received(self, channel: str, first: int) -> list[tuple[Record, float]]:
        """Return records from a position on, and when each came; empty past the end."""
        rows = self._session.execute(
            select(EntryRow.record, EntryRow.received_utc)
            .where(EntryRow.channel == channel, EntryRow.position >= first)
            .order_by(EntryRow.position)
            .limit(MAX_BATCH_RECORDS)
        )
        return [(msgspec.msgpack.decode(record, type=Record), received_utc) for record, received_utc in rows]

    def log_ends(self, channel: str) -> dict[str, tuple[int, bytes]]:
        """Return the number and hash of the last entry of every log in a channel's union, the fleet's own too."""
        rows = self._session.scalars(select(DeviceRow).where(DeviceRow.channel == channel, DeviceRow.last_seq > 0))
        return {row.device: (row.last_seq, row.last_hash) for row in rows}

    def spaces_in_use(self, channel: str) -> set[bytes]:
        """Return the feature spaces of a channel's release, of a rollout under way and of what its devices run."""
        found = {device.state.space for device in self.devices(channel)} - {None}
        current, under_way = self.current(channel), self.rollout(channel)
        found |= set() if current is None else {current.space}
        found |= {under_way[0].space} if under_way is not None and under_way[1].open else set()
        return {bytes.fromhex(space) for space in found if space is not None}

    def erase_codes(self, channel: str, positions: Sequence[int]) -> int:
        """Take the codes out of these records of a channel's union; return how many there were."""
        rows = self._session.scalars(
            select(EntryRow).where(EntryRow.channel == channel, EntryRow.position.in_(positions))
        )
        count = 0
        for row in rows:
            record = msgspec.msgpack.decode(row.record, type=Record)
            count += record.code is not None
            row.record = msgspec.msgpack.encode(Record(record.entry))
        return count

    def decisions(self, channel: str) -> list[Entry]:
        """Return the entries of a channel's own log, in order: what the fleet's people decided."""
        encoded = self._session.scalars(
            select(EntryRow.record).where(EntryRow.device == fleet_log_of(channel)).order_by(EntryRow.seq)
        )
        return [msgspec.msgpack.decode(record, type=Record).entry for record in encoded]

    def last_counter(self, device: str) -> int:
        """Return the Lamport counter of a device's last stored entry, 0 where it has none."""
        return self._session.scalar(select(DeviceRow.last_counter).where(DeviceRow.device == device)) or 0

    def _hash_at(self, device: str, seq: int) -> bytes | None:
        return self._session.scalar(select(EntryRow.hash).where(EntryRow.device == device, EntryRow.seq == seq))

    def highest_counter(self) -> int:
        """Return the highest Lamport counter of any stored entry, 0 where there is none."""
        return self._session.scalar(select(func.max(EntryRow.counter))) or 0

    def log_length(self, channel: str) -> int:
        """Return the length of a channel's union."""
        return self._session.scalar(select(ChannelRow.log_length).where(ChannelRow.name == channel)) or 0

    def records(self, channel: str, first: int) -> list[Record]:
        """Return the records from a position on that fit one message; empty past the end."""
        encoded = self._session.scalars(
            select(EntryRow.record)
            .where(EntryRow.channel == channel, EntryRow.position >= first)
            .order_by(EntryRow.position)
            .limit(MAX_BATCH_RECORDS)
        )
        decoded = (msgspec.msgpack.decode(record, type=Record) for record in encoded)
        return next(batches(decoded), [])


def _device(row: DeviceRow) -> Device:
    return Device(
        device=row.device,
        channel=row.channel,
        state=decode_json(row.state, DeviceState),
        last_seen_utc=row.last_seen_utc,
        acknowledged=row.last_seq,
        refused=row.refused,
    )


def _member(row: AssignmentRow, device: Device) -> Member:
    return Member(
        device=row.device,
        wave=row.wave,
        state=None if row.state is None else UpdateState(row.state),
        reason=row.reason,
        online=device.state.online,
        running=device.state.release_id,
        before=None if row.before is None else msgspec.json.decode(row.before, type=Quality),
        now=device.state.quality,
    )


def _migrate(engine: Engine, writer: Engine) -> None:
    with engine.connect() as connection:
        known = inspect(connection).has_table("alembic_version")
        if known and connection.scalar(text("SELECT version_num FROM alembic_version")) == SCHEMA_REVISION:
            return
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writer.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise FleetError(
                "the fleet database was written by a newer Headway", hint="Update Headway on this machine."
            ) from error


def records_of(taken: Iterable[Taken]) -> dict[str, tuple[int, list[Record]]]:
    """Return the new records of one transaction by channel: where they begin in its union, and all of them."""
    new: dict[str, tuple[int, list[Record]]] = {}
    for one in taken:
        if one.verdict.accepted:
            _, records = new.setdefault(one.channel, (one.first_position, []))
            records.extend(one.verdict.accepted)
    return new
