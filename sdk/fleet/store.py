"""What the fleet knows, durably: devices, the union of their logs, releases, assignments.

One directory: `fleet.db` (SQLite, WAL, every commit synced) and `chunks/`. Where `database.url` names a PostgreSQL
database, that stands in for the file (`sdk.fleet.database`), where `chunks.url` names a place, that stands in for
the folder (`sdk.fleet.blobs`). The schema is brought up to date when the directory is opened (`sdk.fleet.schema`).
What a transaction can do stands in `sdk.fleet.channel_ledger`, `sdk.fleet.rollout_ledger` and
`sdk.fleet.union_ledger`.

Rules this module keeps:

- A release is a row only after its chunks are on disk.
- Writers take the write lock when they begin, so that what they read is what they change.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from sdk.bundle import MANIFEST_NAME, BaseSamples, Bundle, Manifest, PrecisionEntry, decode_manifest
from sdk.errors import BadSignature, BundleError, DatabaseAway, FleetError, HeadwayError, LabelError, StoreCorrupt
from sdk.fleet.blobs import FOLDER_NAME, blobs_of
from sdk.fleet.channel_ledger import Publication
from sdk.fleet.database import (
    DATABASE_NAME,
    LOCK_NAME,
    LOCK_PATIENCE_S,
    URL_NAME,
    ServiceLock,
    changed,
    database_errors,
    engine_of,
    looking_engine_of,
    make_directory,
)
from sdk.fleet.one_service import served
from sdk.fleet.refusal import REFUSAL_NAME, Refusal, Refusals
from sdk.fleet.restoring import DECISIONS_NAME, MARKS_NAME, Decisions, Marks
from sdk.fleet.rollout import Plan
from sdk.fleet.rollout_ledger import RolloutLedger
from sdk.fleet.schema import bring_up_to_date, check_current
from sdk.fleet.union_ledger import LastCodes, UnionLedger
from sdk.labels import REFUSALS, RELEASE_DEVICE, CodeRecord, Fold, Merge
from sdk.liveset import LiveSet
from sdk.moments import Moments
from sdk.owners import give_to_owner_of
from sdk.release import Release, describe
from sdk.sources import MERGES, Hold

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learned:
    """What a channel's union folds to, in its current release's feature space.

    Attributes:
        live: The live set.
        names: Class names by id, after merges; of each class that a label is of.
        holds: The quarantines that stand, of more than a device's merges.
        apart: Pairs of classes that somebody said are different, the smaller id first.
        named_by: The device that gave each class its name.
        released: The names that the release brought, before merges.
        unheard: What devices said is one class and is not: that is for the fleet's people to say.
        refused: How many records contradict themselves, and count nowhere.
        codeless: Samples whose label counts nowhere, since no code in this space is there; with who labelled them.
        erased: Labelled samples whose codes were erased for good (docs/labels.md, section 7); none of `codeless`.
        withdrawn: Samples whose label was taken back.
        foreign: By device of how many samples it said a code that it has not labelled: these count nowhere.
    """

    live: LiveSet
    names: dict[bytes, str]
    holds: list[Hold]
    apart: set[tuple[bytes, bytes]]
    named_by: dict[bytes, str]
    released: dict[bytes, str]
    unheard: list[Merge]
    refused: int = 0
    codeless: dict[bytes, str] = field(default_factory=dict)
    erased: frozenset[bytes] = frozenset()
    withdrawn: frozenset[bytes] = frozenset()
    foreign: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Folding:
    """A channel's union as far as it was folded onto a publication's release."""

    publication_id: int
    fold: Fold
    position: int = 1  # of the next record
    refused: int = 0
    nameless: dict[bytes, str] = field(default_factory=dict)  # what their classes were called once
    codes: LastCodes = field(default_factory=LastCodes)

    def catch_up(self, ledger: Ledger, channel: str) -> None:
        """Fold what is new of the union."""
        while records := ledger.records(channel, self.position):
            for record in records:
                self.codes.add(record)
                try:
                    self.fold.apply(record)
                except REFUSALS:
                    # Such as a code that was taken before anybody knew how long those of its space are. Every
                    # device leaves it out alike (`device_agent.folded`), so live sets still agree.
                    self.refused += 1
            self.position += len(records)


@dataclass(frozen=True)
class Brought:
    """What a release brings in one precision.

    Attributes:
        release: Its name.
        precision: Which; empty where the release's manifest cannot be read.
        space: Feature space; empty likewise.
        samples: Group and code of those with codes; None where they cannot be read.
    """

    release: str
    precision: str
    space: bytes
    samples: dict[bytes, tuple[str, bytes]] | None


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
        held: The caller holds the one service's lock.
        looks: Only look: nothing is made, brought up to date, made whole or given to anybody, and `write` is wrong
            use. For who must leave all as it is, beside a service and without.

    Raises:
        FleetError: the database cannot be used, or is newer than this Headway; or it is older, and a service
            runs on it, or this only looks.
    """

    def __init__(self, directory: Path, *, held: bool = False, looks: bool = False) -> None:
        self.directory = directory
        self._looks = looks
        if not looks:
            make_directory(directory)
        self.chunks = blobs_of(directory, looks=looks)
        self.on_commit: Callable[[float], None] = lambda _seconds: None
        """Told how long each commit took to be on disk."""
        self._folding = threading.Lock()
        self._folds: dict[str, _Folding] = {}  # by channel
        self._refusals = Refusals(directory)
        self._engine = looking_engine_of(directory) if looks else engine_of(directory)
        self._writer = self._engine.execution_options(headway_write=True)
        self.marks = Marks(directory)
        self._decisions = Decisions(directory)
        self.came_back: frozenset[str] = frozenset()
        """Channels whose union came back from an older copy, as was seen when this was opened."""
        with database_errors(directory):
            if looks:
                check_current(directory, self._engine)
            else:
                bring_up_to_date(directory, self._engine, held=held)
        if not looks:
            self._make_whole()
            self._give()

    def _give(self) -> None:
        """Leave what root has made to whom the directory belongs: the service may be another user's."""
        lasting = (f"{DATABASE_NAME}*", LOCK_NAME, MARKS_NAME, DECISIONS_NAME, REFUSAL_NAME, FOLDER_NAME)
        with contextlib.suppress(OSError):
            give_to_owner_of(self.directory, URL_NAME, *lasting)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()
        if not self._looks:
            self._give()

    def __enter__(self) -> FleetStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def serving(self) -> Iterator[Callable[[], None]]:
        """Hold the directory, and its database, as the one service, for the block.

        Yields:
            To be called now and then: holds them again after the database's server was started anew.

        Raises:
            FleetError: another service holds it, on this machine or with the same database. Also when that is
                called, where another one was faster.
            DatabaseAway: when that is called, and the server does not answer yet.
        """
        with database_errors(self.directory):
            lock = ServiceLock(self.directory, self._engine)

        def stay() -> None:
            with database_errors(self.directory):
                if not lock.stands():
                    self._hold(lock)

        with lock:
            with database_errors(self.directory):
                self._hold(lock)
            with self.read() as ledger:  # an earlier version's retention took what a release brings
                current = [ledger.current(channel) for channel in ledger.channels()]
            for publication in filter(None, current):
                self.give_back(publication)
            with self._refusals.serving():
                yield stay

    def _hold(self, lock: ServiceLock) -> None:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while not lock.take():
            if time.monotonic() > deadline:
                raise FleetError(
                    f"another fleet service runs on {self.directory}",
                    hint="Stop it first, or name another --dir.",
                )
            time.sleep(0.02)

    def served(self) -> bool:
        """Return whether a service holds the directory now."""
        with database_errors(self.directory):
            return served(self.directory, self._engine)

    def refusal(self) -> Refusal | None:
        """Return since when, and why, the one service can store nothing; None where it can, or none runs."""
        found = self._refusals.now()
        return found if found is None or self._refusals.noting or self.served() else None

    @contextlib.contextmanager
    def read(self) -> Iterator[Ledger]:
        """Open one consistent view of the database for the block."""
        with database_errors(self.directory), Session(self._engine) as session:
            yield Ledger(session)

    @contextlib.contextmanager
    def write(self) -> Iterator[Ledger]:
        """Open the one write transaction; leaving the block commits it to disk, an exception takes it back.

        Raises:
            DatabaseAway: the database cannot be used now.
            FleetError: it is damaged, or the fleet was moved to another one since this was opened.
        """
        if self._looks:
            raise ValueError("this fleet was opened to look only")
        try:
            with database_errors(self.directory), Session(self._writer) as session:
                with session.begin():
                    ledger = Ledger(session)
                    yield ledger
                    self._check_place()  # with the lock: whoever moves the fleet held it until this was decided
                    has_changed = self._refusals.failing and _changes(session)
                    began = time.monotonic()
                self.on_commit(time.monotonic() - began)
        except DatabaseAway as error:
            self._refusals.failed(error)
            raise
        if has_changed:  # a full disk takes a commit of nothing
            self._refusals.stored()
        for channel, records in ledger.decided:
            self._decisions.keep(channel, records)

    def _check_place(self) -> None:
        if self._engine.dialect.name == "sqlite" and (self.directory / URL_NAME).exists():
            raise FleetError(
                f"the fleet in {self.directory} was moved to PostgreSQL meanwhile",
                hint="Give the command again.",
            )

    def _make_whole(self) -> None:
        """Notice a database that came back from an older copy, and take back what people have decided since."""
        lost = self.missing()
        with self.read() as ledger:
            channels = sorted({*self._decisions.channels(), *ledger.channels()})
            apart = [channel for channel in channels if self._decisions.last(channel) != ledger.own_end(channel)]
        if lost or apart:
            with self.write() as ledger:
                for channel, since in lost.items():
                    ledger.note_restored(channel, since, time.time())
                    log.warning(
                        "channel %s came back from an older copy: entries %d to %d of its union are missing, and "
                        "devices will offer them again",
                        channel,
                        since + 1,
                        self.marks.all()[channel].length,
                    )
                for channel in apart:
                    self._take_back(ledger, channel)
                for channel in lost:
                    ledger.count_on(channel, self.marks.all()[channel].counter)
        self.came_back = frozenset(lost)
        for channel in lost:
            with self.read() as ledger:
                self.mark(ledger, channel)

    def missing(self) -> dict[str, int]:
        """Return the channels whose union is an older copy than it was, and to which entry each is what it was."""
        with self.read() as ledger:
            return {
                channel: min(ledger.log_length(channel), mark.length - 1)
                if ledger.log_length(channel) < mark.length
                else 0  # it has other entries there: nobody knows from where on
                for channel, mark in self.marks.all().items()
                if ledger.hash_at(channel, mark.length) != bytes.fromhex(mark.last)
            }

    def _take_back(self, ledger: Ledger, channel: str) -> None:
        kept, held = self._decisions.all(channel), {record.entry.seq: record for record in ledger.own(channel)}
        both = kept.keys() & held.keys()
        if any(kept[seq].entry != held[seq].entry for seq in both):
            log.warning("%s: decisions beside the database contradict it, and do not count", channel)
            return
        self._decisions.keep(channel, [held[seq] for seq in sorted(held.keys() - kept.keys())])
        missing = [kept[seq] for seq in sorted(kept.keys() - held.keys())]
        try:
            ledger.take_back(channel, missing)
        except LabelError as error:
            log.warning("%s: decisions beside the database do not follow it: %s", channel, error)
            return
        if missing:
            log.warning("%s: %d decisions that the database had lost are back", channel, len(missing))

    def mark(self, ledger: Ledger, channel: str) -> None:
        """Note beside the database how long a channel's union is."""
        length = ledger.log_length(channel)
        last = ledger.hash_at(channel, length)
        if last is not None:
            self.marks.put(channel, length, last, ledger.highest_counter(channel))

    def publish(self, bundle: Bundle, *, channel: str, plan: Plan | None = None) -> Publication:
        """Store a verified bundle and assign it to the channel's devices, at once or in waves.

        A running service announces it by itself. Publishing again what is current already changes nothing for
        devices that run it.

        Args:
            bundle: The release to be.
            channel: Whose devices should run it, in its first precision.
            plan: How it reaches them in waves; None makes it the channel's current release now.

        Raises:
            BundleError: the bundle changed meanwhile, or is too large.
            StoreFull: no space for its chunks.
            FleetError: a rollout is under way in this channel.
        """
        prepared = self.prepare(bundle)
        with self.write() as ledger:
            ledger.note_spaces(self.feature_sizes(prepared.release))
            published = ledger.publish(
                prepared.release,
                channel=channel,
                space=prepared.space,
                feature_size=prepared.feature_size,
                plan=plan,
            )
        self.give_back(published)
        return published

    def give_back(self, publication: Publication) -> int:
        """Let a release's own samples count again in its feature space; return how many did not.

        A device had labelled them, and their codes were erased while no release in use had that space. The release
        brings them, so the fleet says them itself. What was erased for good (docs/labels.md, section 7) stays so.

        Cost: the union is read once where anything was erased in that space, else the fleet's own log.
        """
        channel, space = publication.channel, bytes.fromhex(publication.space)
        with self.read() as ledger:
            bodies = (record.entry.body for record in ledger.own(channel))
            erased = {body.sample for body in bodies if isinstance(body, CodeRecord) and body.space == space}
            if not erased:
                return 0
            spoken = ledger.codes_left(channel)
        own = self.released(publication) or {}
        elsewhere = {sample for (_, sample), left in spoken.items() if left}
        back = {
            sample: own[sample]
            for sample in sorted(erased & own.keys() & elsewhere)
            if not spoken.get((space, sample), False)
        }
        if back:
            said = [
                CodeRecord(space, sample, group, hashlib.sha256(code).digest())
                for sample, (group, code) in back.items()
            ]
            with self.write() as ledger:
                ledger.decide(channel, said, {sample: code for sample, (_, code) in back.items()})
        return len(back)

    def released(self, publication: Publication) -> dict[bytes, tuple[str, bytes]] | None:
        """Return group and code of the samples that a release brings with codes; None where it cannot be read."""
        try:
            _, _, base = self._base_of(publication)
        except (StoreCorrupt, BundleError, KeyError):
            return None
        return _coded(base)

    def brought(self, channel: str) -> Iterator[Brought]:
        """Yield what `released` returns of every release that a channel was given, in each of its precisions.

        Cost: every release's samples are read once.
        """
        with self.read() as ledger:
            found = [one for cleared in (True, False) for one in ledger.publications(channel, cleared=cleared)]
        releases = {publication.ref.release_id: publication.release for publication in found}
        for release in releases.values():
            files = {file.name: file for file in release.descriptor.files}
            name = release.ref.name
            if MANIFEST_NAME not in files:
                continue  # it is no bundle, and no device takes it
            try:
                manifest = decode_manifest(self.chunks.read(files[MANIFEST_NAME]))
            except (StoreCorrupt, BundleError):
                yield Brought(name, "", b"", None)
                continue
            for entry in manifest.precisions:
                samples = None
                with contextlib.suppress(StoreCorrupt, BundleError, KeyError):
                    raw = self.chunks.read(files[entry.samples])
                    samples = _coded(BaseSamples.from_bytes(raw, entry.samples, entry.feature_size))
                yield Brought(name, entry.precision, bytes.fromhex(entry.space), samples)

    def precision_of(self, publication: Publication) -> str:
        """Return which precision of its release a publication is about; empty where its manifest is damaged."""
        files = {file.name: file for file in publication.release.descriptor.files}
        try:
            manifest = decode_manifest(self.chunks.read(files[MANIFEST_NAME]))
        except (StoreCorrupt, BundleError, KeyError):
            return ""
        return next((one.precision for one in manifest.precisions if one.space == publication.space), "")

    def prepare(self, bundle: Bundle) -> Prepared:
        """Store the chunks of a verified bundle, and nothing else; raises as `publish`."""
        release = describe(bundle.path, bundle.manifest.name, bundle.file_names(), put=self._keep)
        listed = {entry.name: entry.sha256 for entry in bundle.manifest.files}
        for file in release.descriptor.files:
            if file.name != MANIFEST_NAME and file.sha256 != listed[file.name]:
                raise BadSignature(f"{file.name} changed while it was published", hint="Publish the bundle again.")
        self.chunks.sync()
        entry = bundle.precision()  # the one that devices serve: they have nothing but the bundle to go by
        return Prepared(release, entry.space, entry.feature_size)

    def _keep(self, digest: str, chunk: bytes) -> None:
        self.chunks.is_whole(digest)  # a damaged one is discarded: it would stand for this one
        self.chunks.put(digest, chunk)

    def feature_sizes(self, release: Release) -> dict[str, int]:
        """Return the length of a code in each feature space that a stored release has, of all its precisions.

        None where the release has no manifest: then it is no bundle, and no device takes it.

        Raises:
            StoreCorrupt, BadSignature: its chunks are damaged.
        """
        files = {file.name: file for file in release.descriptor.files}
        if MANIFEST_NAME not in files:
            return {}
        manifest = decode_manifest(self.chunks.read(files[MANIFEST_NAME]))
        return {entry.space: entry.feature_size for entry in manifest.precisions}

    def live_set(self, channel: str) -> LiveSet | None:
        """Return the live set of the channel's union in its current release's feature space.

        The same fold over the same records that every device of the channel makes; None without a release.
        """
        learned = self.learned(channel)
        return None if learned is None else learned.live

    def learned(self, channel: str) -> Learned | None:
        """Return what the channel's union folds to; None without a release.

        A record that contradicts itself is left out and counted, as on every device.

        Cost: the whole union is read the first time, later what is new of it.
        """
        with self._folding, self.read() as ledger:
            publication = ledger.current(channel)
            if publication is None:
                return None
            found = self._folds.get(channel)
            if found is None or found.publication_id != publication.id:
                found = _Folding(publication.id, self._base_fold(publication))
            found.catch_up(ledger, channel)
            self._folds[channel] = found
            fold = found.fold
            live, names = fold.live_set(), fold.class_names()
            unnamed = {*live.class_ids} - names.keys()
            if unnamed - found.nameless.keys():
                found.nameless = self._once_named(ledger, channel, unnamed, live)
            names |= {class_id: found.nameless[class_id] for class_id in unnamed}
            codeless = fold.codeless()
            erased = found.codes.erased_for_good(codeless)
            left = {sample: device for sample, device in codeless.items() if sample not in erased}
            return Learned(
                live,
                names,
                [hold for hold in fold.holds() if hold.operator != MERGES],
                fold.apart(),
                fold.named_by(),
                fold.names_by(RELEASE_DEVICE),
                fold.unheard_merges(),
                found.refused,
                left,
                erased,
                fold.withdrawn(),
                fold.foreign(),
            )

    def _once_named(self, ledger: Ledger, channel: str, unnamed: set[bytes], live: LiveSet) -> dict[bytes, str]:
        """Return a name for classes that neither the current release nor the log names.

        It is that of the newest release of the channel that had one; else of its id, as devices call it.
        """
        found: dict[bytes, str] = {class_id: f"class {class_id.hex()[:6]}" for class_id in unnamed}
        published = [one for cleared in (True, False) for one in ledger.publications(channel, cleared=cleared)]
        for publication in sorted(published, key=lambda one: one.id):
            files = {file.name: file for file in publication.release.descriptor.files}
            try:
                manifest = decode_manifest(self.chunks.read(files[MANIFEST_NAME]))
            except (HeadwayError, KeyError):
                continue  # long gone from the disk, or no bundle
            for entry in manifest.classes:
                class_id = bytes.fromhex(entry.id)
                root = live.merged.get(class_id, class_id)
                if root in unnamed:
                    found[root] = entry.name
        return found

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

    def current_base(self, channel: str) -> BaseSamples | None:
        """Return what a channel's release brings; None without a release.

        Raises:
            StoreCorrupt, BundleError: it cannot be read.
        """
        with self.read() as ledger:
            publication = ledger.current(channel)
        return None if publication is None else self._base_of(publication)[2]

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


def _changes(session: Session) -> bool:
    session.flush()
    return changed(session.connection())


def _coded(base: BaseSamples) -> dict[bytes, tuple[str, bytes]]:
    """Return group and code of those of a release's samples that have one."""
    codes = (np.ascontiguousarray(code, np.int8).tobytes() for code in base.codes)
    return {sample: (group, code) for sample, group, code in zip(base.samples, base.groups, codes, strict=False)}


class Ledger(RolloutLedger, UnionLedger):
    """One transaction on the fleet's database."""
