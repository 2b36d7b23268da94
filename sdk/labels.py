"""What a line has learned: label events and code records, their log, and the fold to the live set.

A *label event* says: this sample is of this class, by this operator, on this device. A *code record* says: this
sample, in this feature space, has this code, in this group. They are separate because a new backbone changes
every code and no label. Each device appends both, and its class definitions, renames and merges, to one log.

Rules this module keeps (docs/labels.md):

- Entries are append-only and numbered per device from 1 without gaps. Each carries the hash of the one before.
- The chain covers a code's digest, not its bytes, so a code can be erased without breaking the chain.
- Order is (Lamport counter, device id). Wall time is only a record. The last event on a sample wins; an event
  without a class withdraws the sample.
- Merging logs is the union of their entries, folded again: idempotent, order-free, overlaps counted once.
- A code is its labeller's word: a code record counts where its device has labelled the sample, and that of the
  label that counts before others. What a code says no more, a fleet's own log alone says (section 2).
- A source that is quarantined does not count, from its first event to a counter, whatever comes when (section 5).
- A release may know samples by their sums only (docs/labels.md, section 4): their rows are in the digest, their
  codes are nowhere, so no event can change them. Every reader of the release leaves such events out alike.

Nothing here opens a file or asks the time; the store and the wire bring entries in and take them out.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np

from sdk.class_ids import check_class_ids
from sdk.codes import Codes, check_codes, code_digest
from sdk.compact import Again, Numbers, Once
from sdk.errors import FeatureSizeError, LabelError
from sdk.liveset import ROW_BYTES, LiveRow, LiveSet, digest_of_rows, live_row_bytes
from sdk.merges import Merges
from sdk.shelf import Kept, MemoryShelf, Shelf
from sdk.sources import ANYBODY, MERGES, Hold, Holds, Order, Said, Sayings

RELEASE_DEVICE = "release"
"""Device id of the samples that come with a release; their counter is 0."""

MAX_COUNTER = 2**62
MAX_COUNTER_JUMP = 2**32
"""A counter may run ahead of what its reader has seen by at most this much (T12: a wild clock or an attack)."""

FLEET_LOG_PREFIX: Final = "headway-fleet-"
"""Begins the device ids under which a fleet service writes its own decisions; no device may have such a name."""

DEVICE_ID_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"
SAMPLE_ID_BYTES: Final = 32
GENESIS = bytes(32)
"""`prev` of a device's first entry."""

_BYTES_32 = msgspec.Meta(min_length=32, max_length=32)
SampleId = Annotated[bytes, _BYTES_32]
"""SHA-256 of the stored image bytes."""
SpaceId = Annotated[bytes, _BYTES_32]
Digest = Annotated[bytes, _BYTES_32]
ClassId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""128 random bits, minted where the class is invented."""
DeviceId = Annotated[str, msgspec.Meta(pattern=DEVICE_ID_PATTERN)]
ClassName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Operator = Annotated[str, msgspec.Meta(max_length=64)]
GroupId = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


def fleet_log_of(channel: str) -> str:
    """Return the device id under which a fleet service writes into a channel's union.

    >>> fleet_log_of("default")
    'headway-fleet-37a8eec1ce19'
    """
    return FLEET_LOG_PREFIX + hashlib.sha256(channel.encode()).hexdigest()[:12]


def new_class_id() -> bytes:
    """Return 128 fresh random bits for a class invented here."""
    return secrets.token_bytes(16)


class Label(msgspec.Struct, frozen=True, tag="label", array_like=True, forbid_unknown_fields=True):
    """This sample is of this class, says this operator. `class_id` None withdraws the sample."""

    sample: SampleId
    class_id: ClassId | None
    operator: Operator


class CodeRecord(msgspec.Struct, frozen=True, tag="code", array_like=True, forbid_unknown_fields=True):
    """This sample, in this feature space, has the code with this digest, in this group."""

    space: SpaceId
    sample: SampleId
    group: GroupId
    code_sha256: Digest


class DefineClass(msgspec.Struct, frozen=True, tag="define", array_like=True, forbid_unknown_fields=True):
    """A class exists and has this name."""

    class_id: ClassId
    name: ClassName
    operator: Operator


class RenameClass(msgspec.Struct, frozen=True, tag="rename", array_like=True, forbid_unknown_fields=True):
    """A class is called this from now on."""

    class_id: ClassId
    name: ClassName
    operator: Operator


class MergeClasses(msgspec.Struct, frozen=True, tag="merge", array_like=True, forbid_unknown_fields=True):
    """These two are one class; the smaller id stands for both."""

    one: ClassId
    other: ClassId
    operator: Operator


class KeepApart(msgspec.Struct, frozen=True, tag="apart", array_like=True, forbid_unknown_fields=True):
    """These two are different classes, however alike their names are: nobody needs to ask again."""

    one: ClassId
    other: ClassId
    operator: Operator


class Quarantine(msgspec.Struct, frozen=True, tag="quarantine", array_like=True, forbid_unknown_fields=True):
    """What a source said, up to a counter, does not count. Only a fleet service says so, in its own log.

    Attributes:
        device: Whose events.
        source: The operator on it; empty for the whole device, `sdk.sources.MERGES` for its merges.
        through: Events with a counter up to this: 0 releases it, `MAX_COUNTER` holds whatever will come.
        reason: Why, in words.
        operator: Who decided it.
    """

    device: DeviceId
    source: Operator
    through: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNTER)]
    reason: Annotated[str, msgspec.Meta(max_length=200)]
    operator: Operator


Body = Label | CodeRecord | DefineClass | RenameClass | MergeClasses | KeepApart | Quarantine


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One line of a device's log.

    Attributes:
        device: Who wrote it.
        seq: Its number in that device's log, from 1, without gaps.
        counter: Lamport counter: above every counter the device had seen when it wrote this.
        wall_time_us: Microseconds since 1970 UTC by the device's clock. A record, never an order.
        prev: `entry_hash` of the device's entry before, 32 zero bytes for the first.
        body: What it says.
    """

    device: DeviceId
    seq: Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNTER)]
    counter: Annotated[int, msgspec.Meta(ge=1, le=MAX_COUNTER)]
    wall_time_us: Annotated[int, msgspec.Meta(ge=-(2**62), le=2**62)]
    prev: Digest
    body: Body


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry as it is stored and sent: with the code's bytes where it is a code record.

    `code` is (d,) int8 as bytes; None for other entries and where the code was erased.
    """

    entry: Entry
    code: bytes | None = None


_encoder = msgspec.msgpack.Encoder()
_entry_decoder = msgspec.msgpack.Decoder(Entry)


def check_entry(entry: Entry) -> None:
    """Check that a log may hold this: Python lets one write into a field what nobody could read again.

    Raises:
        LabelError: a field is of another kind or length than its type says.
    """
    try:
        _entry_decoder.decode(_encoder.encode(entry))
    except (msgspec.MsgspecError, TypeError, OverflowError, UnicodeEncodeError) as error:
        said, _, where = str(error).partition(" - at `$")
        raise LabelError(
            f"this cannot be stored: {_field(entry, where)}{said[:120]}",
            hint="Use a shorter name; names may not be empty. Ids and digests are bytes (docs/library.md).",
        ) from error


def _field(entry: Entry, where: str) -> str:
    """Return what msgspec calls "[5][1]": of the body, whose fields come after its tag, or of the entry."""
    at = [int(number) for number in re.findall(r"\d+", where)]
    names = [*entry.__struct_fields__]
    if at[:1] != [names.index("body")]:
        return f"{names[at[0]]}: " if at else f"{type(entry.body).__name__}: "
    fields = getattr(type(entry.body), "__struct_fields__", ())
    name = f".{fields[at[1] - 1]}" if at[1:] and 0 < at[1] <= len(fields) else ""
    return f"{type(entry.body).__name__}{name}: "


def entry_hash(entry: Entry) -> bytes:
    """Return SHA-256 of the entry's canonical MessagePack: the next entry's `prev`."""
    return hashlib.sha256(b"headway-entry-1\0" + _encoder.encode(entry)).digest()


def check_record(record: Record) -> None:
    """Check that a record agrees with itself.

    Raises:
        LabelError: a code that does not match its digest, or one on an entry that has none.
    """
    body, code = record.entry.body, record.code
    where = f"entry {record.entry.seq} of {record.entry.device}"
    if record.entry.device == RELEASE_DEVICE:
        raise LabelError(
            f"{where}: the name {RELEASE_DEVICE!r} is kept for a release's own samples",
            hint="Give the device another id.",
        )
    if isinstance(body, Quarantine):
        if not record.entry.device.startswith(FLEET_LOG_PREFIX):
            raise LabelError(f"{where}: a device cannot quarantine", hint="Do it where the fleet's service runs.")
        if body.device == RELEASE_DEVICE or body.device.startswith(FLEET_LOG_PREFIX):
            raise LabelError(f"{where}: {body.device} cannot be quarantined", hint="Only devices can.")
    if code is None:
        return
    if not isinstance(body, CodeRecord):
        raise LabelError(f"{where} carries a code but is no code record", hint="The sender is at fault.")
    if hashlib.sha256(code).digest() != body.code_sha256:
        raise LabelError(f"{where}: the code does not match its digest", hint="Fetch the entry again.")


class Chain(NamedTuple):
    """Where one device's log ends: what its next entry must follow."""

    device: str
    seq: int = 0
    last_hash: bytes = GENESIS

    def write(self, body: Body, *, counter: int, wall_time_us: int) -> tuple[Chain, Entry]:
        """Return the chain after one more entry, and that entry.

        Raises:
            LabelError: it is none that a log may hold, as whoever reads it would find.
        """
        entry = Entry(self.device, self.seq + 1, counter, wall_time_us, self.last_hash, body)
        check_entry(entry)
        return Chain(self.device, entry.seq, entry_hash(entry)), entry

    def follow(self, entry: Entry) -> Chain:
        """Return the chain after an entry that somebody else wrote.

        Raises:
            LabelError: it is not this log's next entry.
        """
        if entry.device != self.device or entry.seq != self.seq + 1:
            raise LabelError(
                f"entry {entry.seq} of {entry.device} does not follow {self.seq} of {self.device}",
                hint="Send the log from the entry after the acknowledged one.",
            )
        if entry.prev != self.last_hash:
            raise LabelError(
                f"entry {entry.seq} of {entry.device} does not continue the log we hold",
                hint="Two devices share this id, or the device's store was restored from an old copy: "
                "enrol it under a new id.",
            )
        return Chain(self.device, entry.seq, entry_hash(entry))


_BY: Final = attrgetter("class_id", "device")


@dataclass(frozen=True, slots=True)
class _Labelled(Said):
    class_id: bytes | None


@dataclass(frozen=True, slots=True)
class _Coded(Said):
    group: str
    place: int | None  # on the shelf; None: the code was erased
    code_sha256: bytes


_NEVER: Final = Order(-1, "")


@dataclass(frozen=True, slots=True)
class _Named(Said):
    name: str


@dataclass(frozen=True, slots=True)
class _Paired(Said):
    one: bytes
    other: bytes

    @property
    def sources(self) -> tuple[tuple[str, str], ...]:
        return (self.device, ANYBODY), (self.device, self.operator), (self.device, MERGES)


class Merge(NamedTuple):
    """Who said of which two classes that they are one."""

    device: str
    operator: str
    one: bytes
    other: bytes


@dataclass(frozen=True, slots=True)
class _Summed:
    class_id: bytes
    code_sha256: bytes


def _rows_of(
    samples: list[bytes], class_ids: list[bytes], groups: list[str], coded: int, summed: int
) -> list[tuple[bytes, bytes, str]]:
    """Return a release's samples one by one.

    Raises:
        ValueError, TypeError: lists of unlike length, or ids that are not 32 and 16 bytes.
    """
    if not len(samples) == len(class_ids) == len(groups) == coded + summed:
        raise ValueError(
            f"{len(class_ids)} class ids and {len(groups)} groups for {len(samples)} samples, of which {coded} "
            f"have codes and {summed} are summed"
        )
    check_class_ids(class_ids)
    for sample in samples:
        if not isinstance(sample, bytes) or len(sample) != SAMPLE_ID_BYTES:
            raise ValueError(
                f"a sample id is {SAMPLE_ID_BYTES} bytes, not {sample!r}: `sdk.images.sample_id` makes it"
            )
    return list(zip(samples, class_ids, groups, strict=True))


REFUSALS: Final = (LabelError, FeatureSizeError)
"""What a fold raises of a record that contradicts itself. Devices and fleet leave such a record out alike; errors
of a disk, which a shelf may raise, say nothing of the record."""


class Fold:
    """The state that a union of logs folds to, for one feature space.

    Entries may come in any order, any number of times; the state is the same. Code records of other feature
    spaces are remembered by nobody here: fold them in a `Fold` of that space.

    Args:
        space: Feature space id, 64 hex digits.
        feature_size: d.
        shelf: Where the codes lie; by default in memory.

    >>> fold = Fold(space="00" * 32, feature_size=2)
    >>> good, code = bytes(16), np.array([1, 2], np.int8)
    >>> fold.add_base([b"s" * 32], [good], ["g"], code[None], names={good: "good"})
    >>> len(fold.live_set()), fold.class_names()[good]
    (1, 'good')
    """

    def __init__(self, space: str, feature_size: int, shelf: Shelf | None = None) -> None:
        if not isinstance(space, str) or re.fullmatch("[0-9a-f]{64}", space) is None:
            raise ValueError(f"a feature space id is 64 hex digits, as `Bundle.space` gives it, not {space!r:.80}")
        if feature_size < 1:
            raise ValueError(f"`feature_size` is 1 or more, not {feature_size}")
        self.space = space
        self.feature_size = feature_size
        self.counter = 0  # the highest Lamport counter seen; the next own entry is above it
        self._shelf = shelf or MemoryShelf(feature_size)
        self._space_bytes = bytes.fromhex(space)
        self._seen: dict[str, Numbers] = {}
        self._text, self._class = Once[str](), Once[bytes | None]()
        self._sample, self._group = Again[bytes](), Again[str]()
        self._holds = Holds()
        self._labels: Sayings[_Labelled] = Sayings(self._holds)
        self._codes: Sayings[_Coded] = Sayings(self._holds)
        # Of samples that several devices spoke of: who has labelled each, and the last of its labels that counts.
        self._labellers: dict[bytes, dict[str, Order]] = {}
        self._names: Sayings[_Named] = Sayings(self._holds)
        self._apart: Sayings[_Paired] = Sayings(self._holds)  # by both ids, the smaller first
        self._merges: list[_Paired] = []
        self._joined = Merges()  # by those of them that count
        self._summed: dict[bytes, _Summed] = {}
        self._summed_of: Counter[bytes] = Counter()  # class, before merges
        self._answered: set[bytes] = set()  # summed samples that devices have labelled
        # The live set as it is digested, kept up so that a label costs no walk over all samples.
        self._order: list[bytes] = []
        self._rows: bytearray | None = bytearray()  # None after a merge, until the digest is asked for
        self._digest: str | None = None
        # And those of its rows that have a code, in the same order.
        self._coded_order: list[bytes] = []
        self._coded_rows: list[LiveRow] = []

    def add_base(
        self,
        samples: Iterable[bytes],
        class_ids: Iterable[bytes],
        groups: Iterable[str],
        codes: Codes,
        names: dict[bytes, str],
        summed: Sequence[bytes] = (),
    ) -> None:
        """Add a release's own samples: events of the device `release`, counter 0.

        Any device's event on the same sample wins over them, but for the summed ones, which nothing can change.

        Args:
            samples, class_ids, groups: Of all n + m samples, those with codes first.
            codes: (n, d) int8.
            names: Class names.
            summed: SHA-256 of each of the m codes that are in the release's sums only.

        Raises:
            FeatureSizeError: codes are not (n, feature_size) int8.
            ValueError, TypeError: lists of unlike length, or ids that are not 16 and 32 bytes. Nothing is changed.
        """
        check_codes(codes, self.feature_size)
        rows = _rows_of(list(samples), list(class_ids), list(groups), len(codes), len(summed))
        order = Order(0, RELEASE_DEVICE)
        digests = iter(summed)
        places = self._shelf.put_release(codes)
        for i, (sample, class_id, group) in enumerate(rows):
            if i >= len(codes):
                self._summed[sample] = _Summed(class_id, next(digests))
                self._summed_of[class_id] += 1
                if self._labels.all_of(sample):
                    self._answered.add(sample)
                continue
            self._labels.put(sample, _Labelled(*order, ANYBODY, class_id))
            self._codes.put(sample, _Coded(*order, ANYBODY, group, int(places[i]), code_digest(codes[i])))
            self._labellers.pop(sample, None)
        for class_id, name in names.items():
            self._names.put(class_id, _Named(*order, ANYBODY, name))
        self._relive()

    def apply(self, record: Record) -> bytes | None:
        """Fold in one record; return the sample it may have changed, None where it concerns none.

        Raises:
            LabelError: the record contradicts itself.
            FeatureSizeError: a code of this space with another size.
        """
        check_record(record)
        entry, body = record.entry, record.entry.body
        seen = self._seen.setdefault(entry.device, Numbers())
        if entry.seq in seen:
            return None
        order = Order(entry.counter, self._text(entry.device))
        sample: bytes | None = None
        if isinstance(body, Label):
            sample = self._sample(body.sample)
            said = _Labelled(*order, self._text(body.operator), self._class(body.class_id))
            self._labels.put(sample, said)
            if sample in self._labellers:
                self._note_labeller(self._labellers[sample], said)
            if sample in self._summed:
                self._answered.add(sample)
        elif isinstance(body, CodeRecord):
            if body.space == self._space_bytes:
                sample = self._sample(body.sample)
                self._code(order, entry.seq, sample, body, record.code)
            elif len(body.space) != len(self._space_bytes):  # of no space: no fold would ever hold it
                check_entry(entry)
        elif isinstance(body, MergeClasses):
            self._merge(_Paired(*order, body.operator, body.one, body.other))
        elif isinstance(body, KeepApart):
            one, other = sorted((body.one, body.other))
            self._apart.put(one + other, _Paired(*order, body.operator, one, other))
        elif isinstance(body, Quarantine):
            self._hold(entry, body)
        else:
            self._names.put(body.class_id, _Named(*order, body.operator, body.name))
        if sample is not None:
            self._enliven(sample)
        seen.add(entry.seq)
        self.counter = max(self.counter, entry.counter)
        return sample

    def _enliven(self, sample: bytes) -> None:
        """Bring one sample of the live set up to its label and code."""
        coded = self.live(sample)
        row = self._digested(sample, coded)
        at = bisect_left(self._order, sample)
        there = at < len(self._order) and self._order[at] == sample
        self._order[at : at + there] = [] if row is None else [sample]
        if self._rows is not None:
            self._rows[at * ROW_BYTES : (at + there) * ROW_BYTES] = row or b""
        self._digest = None
        at = bisect_left(self._coded_order, sample)
        there = at < len(self._coded_order) and self._coded_order[at] == sample
        self._coded_order[at : at + there] = [] if coded is None else [sample]
        self._coded_rows[at : at + there] = [] if coded is None else [coded]

    def _relive(self) -> None:
        """Bring the whole live set up to labels, codes and merges."""
        self._coded_rows = [row for row in map(self.live, sorted(self._codes)) if row is not None]
        self._coded_order = [row.sample for row in self._coded_rows]
        self._order = sorted({*self._coded_order, *self._summed})
        self._rows = self._digest = None

    def _digested(self, sample: bytes, row: LiveRow | None) -> bytes | None:
        summed = self._summed.get(sample)
        if summed is not None:
            class_id = self.canonical(summed.class_id)
            return live_row_bytes(self._space_bytes, sample, class_id, summed.code_sha256)
        if row is None:
            return None
        coded = self._coded(sample)
        assert coded is not None  # its row is live
        return live_row_bytes(self._space_bytes, sample, self.canonical(row.class_id), coded.code_sha256)

    def _coded(self, sample: bytes) -> _Coded | None:
        """Return the code record that counts (docs/labels.md, section 2); None where none does."""
        last = self._codes.get(sample)
        if last is None:
            return None
        label = self._labels.get(sample)
        if (label is not None and label.device == last.device) or last.device.startswith(FLEET_LOG_PREFIX):
            return last  # nearly always; what a fleet says covers all before it
        labellers = self._labellers_of(sample)
        said = [each for each in self._codes.all_of(sample) if self._holds.counts(each)]
        fleets = [each for each in said if each.device.startswith(FLEET_LOG_PREFIX)]
        covers = max(fleets, key=attrgetter("order"), default=None)
        since = _NEVER if covers is None else covers.order
        own = [each for each in said if each.device in labellers and each.order > since]
        return max(own, key=lambda each: (labellers[each.device], each.order), default=covers)

    def _labellers_of(self, sample: bytes) -> dict[str, Order]:
        labellers = self._labellers.get(sample)
        if labellers is None:  # kept up from here on: a device may label one sample under any number of names
            labellers = self._labellers[sample] = {}
            for said in self._labels.all_of(sample):
                self._note_labeller(labellers, said)
        return labellers

    def _note_labeller(self, labellers: dict[str, Order], said: _Labelled) -> None:
        order = said.order if self._holds.counts(said) else _NEVER
        labellers[said.device] = max(order, labellers.get(said.device, _NEVER))

    def _code(self, order: Order, seq: int, sample: bytes, body: CodeRecord, raw: bytes | None) -> None:
        if raw is not None and len(raw) != self.feature_size:
            raise FeatureSizeError(
                f"a code of {len(raw)} values came for a space of {self.feature_size}",
                hint="The sender's feature space id is wrong; its release should be checked.",
            )
        if raw is None and not order.device.startswith(FLEET_LOG_PREFIX):
            return  # erased where we have it from: that it counts no more is its fleet's to say
        place = None if raw is None else self._shelf.put(order.device, seq, np.frombuffer(raw, np.int8))
        group = self._group(body.group)
        self._codes.put(sample, _Coded(*order, ANYBODY, group, place, body.code_sha256))

    def _merge(self, merge: _Paired) -> None:
        self._merges.append(merge)
        if self._holds.counts(merge) and self._joined.join(merge.one, merge.other):
            # Rows hold classes after merges, once for however many merges came since somebody asked.
            self._rows = self._digest = None

    def _hold(self, entry: Entry, body: Quarantine) -> None:
        hold = Hold(body.device, body.source, body.through, body.reason, body.operator, entry.wall_time_us)
        if not self._holds.put(Order(entry.counter, entry.device), hold):
            return
        about_samples = [said.recount(body.device) for said in (self._labels, self._codes)]
        if body.source != MERGES:  # whose code is taken may change where no last word does
            about_samples.append(any(body.device in labellers for labellers in self._labellers.values()))
        self._names.recount(body.device)
        self._apart.recount(body.device)
        if any(merge.device == body.device for merge in self._merges):
            merges = Merges()
            for merge in filter(self._holds.counts, self._merges):
                merges.join(merge.one, merge.other)
            self._joined = merges  # as one: `canonical` is asked at any time
            self._rows = self._digest = None
        if any(about_samples):
            self._labellers.clear()
            self._relive()

    def changes(self, record: Record) -> dict[bytes, tuple[LiveRow | None, LiveRow | None]]:
        """Fold in one record; return the rows it may have changed, before and after, by sample.

        Raises:
            LabelError, FeatureSizeError: as `apply`.
        """
        if isinstance(record.entry.body, Quarantine):
            was = self._coded_rows
            self.apply(record)
            if self._coded_rows is was:  # else made anew, whole
                return {}
            old = {row.sample: row for row in was}
            new = {row.sample: row for row in self.rows()}
            pairs = {sample: (old.get(sample), new.get(sample)) for sample in old.keys() | new.keys()}
            return {sample: (was, now) for sample, (was, now) in pairs.items() if was != now}
        named = getattr(record.entry.body, "sample", None)
        before = None if named is None else self.live(named)
        self.apply(record)
        return {} if named is None else {named: (before, self.live(named))}

    def holds(self) -> list[Hold]:
        """Return the quarantines that stand, by device and operator."""
        return self._holds.standing()

    def apart(self) -> set[tuple[bytes, bytes]]:
        """Return the pairs of classes that somebody said are different, the smaller id first."""
        found = filter(None, map(self._apart.get, self._apart))
        return {(pair.one, pair.other) for pair in found}

    def unheard_merges(self) -> list[Merge]:
        """Return what devices said is one class, and no people of their fleet have said yet or denied.

        Not what counts no more whatever it says: of a device, or an operator, that is quarantined.
        """
        held = {hold.device for hold in self.holds() if hold.operator == MERGES}
        settled = {frozenset(map(self.canonical, pair)) for pair in self.apart()} if held else set()
        return [
            Merge(each.device, each.operator, each.one, each.other)
            for each in sorted(self._merges, key=attrgetter("order"))
            if each.device in held
            and self._holds.counts(Said(each.counter, each.device, each.operator))
            and len(pair := frozenset(map(self.canonical, (each.one, each.other)))) == 2
            and pair not in settled
        ]

    def canonical(self, class_id: bytes) -> bytes:
        """Return the id that stands for this class after merges: the smallest of those merged. Takes no lock."""
        return self._joined.canonical(class_id)

    def merged(self) -> dict[bytes, bytes]:
        """Return each class that another stands for after merges, and that one."""
        return self._joined.merged()

    def live(self, sample: bytes) -> LiveRow | None:
        """Return the sample's row of the live set, its class before merges; None if it has no row or no code."""
        if sample in self._summed:
            return None
        label = self._labels.get(sample)
        if label is None or label.class_id is None:
            return None
        coded = self._coded(sample)
        if coded is None or coded.place is None:
            return None
        return LiveRow(sample, label.class_id, coded.group, label.device, label.operator, coded.place, self._shelf)

    def codeless(self) -> dict[bytes, str]:
        """Return the samples that are labelled and have no code here, so that the label counts nowhere.

        Each with the device that labelled it. A label that came before its code is among them for a moment.
        """
        found: dict[bytes, str] = {}
        for sample in self._labels:
            label = self._labels.get(sample)
            if label is None or label.class_id is None or sample in self._summed:
                continue
            coded = self._coded(sample)
            if coded is None or coded.place is None:
                found[sample] = label.device
        return found

    def foreign(self) -> Counter[str]:
        """Return by device of how many samples it said a code that it has not labelled: these count nowhere."""
        found: Counter[str] = Counter()
        for sample in self._codes.everybodys():
            label, last = self._labels.get(sample), self._codes.get(sample)
            if (
                label is not None
                and last is not None
                and label.device == last.device
                and self._codes.alone(sample)
            ):
                continue
            theirs = {said.device for said in self._codes.all_of(sample)}
            theirs -= {said.device for said in self._labels.all_of(sample)}
            found.update(device for device in theirs if not device.startswith(FLEET_LOG_PREFIX))
        return found

    def withdrawn(self) -> frozenset[bytes]:
        """Return the samples whose label was taken back: they count in no space, and under no release."""
        return frozenset(
            sample for sample in self._labels if (said := self._labels.get(sample)) and said.class_id is None
        )

    def label_of(self, sample: bytes) -> bytes | None:
        """Return the sample's class after merges; None if it is not labelled."""
        summed = self._summed.get(sample)
        if summed is not None:
            return self.canonical(summed.class_id)
        label = self._labels.get(sample)
        return None if label is None or label.class_id is None else self.canonical(label.class_id)

    def rows(self) -> Iterator[LiveRow]:
        """Return the live set's rows that have a code, in order of sample id, classes before merges."""
        return iter(self._coded_rows)

    def labels_by(self) -> Counter[tuple[bytes, str]]:
        """Return how many rows with a code there are by class, before merges, and by who labelled them."""
        return Counter(map(_BY, self._coded_rows))

    def live_samples(self) -> int:
        """Return the size of the live set, summed samples included."""
        return len(self._order)

    def is_summed(self, sample: bytes) -> bool:
        """Return whether a sample is in the release's sums only, so that no event can change it."""
        return sample in self._summed

    def summed_counts(self) -> dict[bytes, int]:
        """Return the number of summed samples of each class after merges."""
        counts: Counter[bytes] = Counter()
        for class_id, n in self._summed_of.items():
            counts[self.canonical(class_id)] += n
        return dict(counts)

    def summed_rows(self) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Return of each summed sample its id, its class before merges and the SHA-256 of its code."""
        return ((sample, each.class_id, each.code_sha256) for sample, each in self._summed.items())

    def unapplied(self) -> list[bytes]:
        """Return the summed samples to which devices have given, last, another class than the release, or none.

        The live set keeps the release's class. The same on every reader of the same log and release.
        """
        return sorted(s for s in self._answered if self._is_unapplied(s))

    def _is_unapplied(self, sample: bytes) -> bool:
        given = self._labels.get(sample)
        if given is None:
            return False  # whoever said it does not count
        class_id = None if given.class_id is None else self.canonical(given.class_id)
        return class_id != self.label_of(sample)

    def live_set(self) -> LiveSet:
        """Return the live set, classes after merges."""
        # Made at every label, so by whole columns.
        columns = tuple(zip(*self._coded_rows, strict=True)) or ((),) * len(LiveRow._fields)
        samples, class_ids, groups, devices, operators, places, _ = columns
        return LiveSet(
            space=self.space,
            samples=samples,
            class_ids=tuple(map(self.canonical, class_ids)) if self._joined else class_ids,
            groups=groups,
            devices=devices,
            operators=operators,
            codes=Kept(self._shelf, np.array(places, np.int64)),
            digest=self.digest(),
            summed=len(self._summed),
            unapplied=len(self.unapplied()),
            merged=self.merged(),
        )

    def digest(self) -> str:
        """Return the digest of the live set, 64 hex digits."""
        if self._rows is None:
            self._rows = bytearray()
            for sample in self._order:
                self._rows += self._digested(sample, self.live(sample)) or b""
        if self._digest is None:
            self._digest = digest_of_rows(self._rows)
        return self._digest

    def class_names(self) -> dict[bytes, str]:
        """Return the name of every class that stands for itself after merges.

        A merged class goes by the last name given to any of its members.
        A class that others label with, and that only quarantined sources named, keeps the last name that any of
        these gave it.
        """
        return {class_id: named.name for class_id, named in self._named().items()}

    def named_by(self) -> dict[bytes, str]:
        """Return of every class that stands for itself the device that gave it its name; `RELEASE_DEVICE` too."""
        return {class_id: named.device for class_id, named in self._named().items()}

    def names_by(self, device: str) -> dict[bytes, str]:
        """Return the last name that a device, or `RELEASE_DEVICE`, gave each class, before merges."""
        found: dict[bytes, str] = {}
        for class_id in self._names.everybodys():
            own = [named for named in self._names.all_of(class_id) if named.device == device]
            if own:
                found[class_id] = max(own, key=attrgetter("order")).name
        return found

    def _named(self) -> dict[bytes, _Named]:
        latest: dict[bytes, _Named] = {}
        for class_id in self._names:
            self._keep_later(latest, class_id, self._names.get(class_id))
        if self._holds.standing():
            used = {self.canonical(row.class_id) for row in self.rows()} - latest.keys()
            for class_id in self._names.everybodys():
                if self.canonical(class_id) in used:
                    for named in self._names.all_of(class_id):
                        self._keep_later(latest, class_id, named)
        return latest

    def own_names(self) -> dict[bytes, str]:
        """Return the last name that each class itself was given, whatever it was made one with."""
        return {class_id: named.name for class_id in self._names if (named := self._names.get(class_id))}

    def _keep_later(self, latest: dict[bytes, _Named], class_id: bytes, named: _Named | None) -> None:
        root = self.canonical(class_id)
        if named is not None and (root not in latest or latest[root].order < named.order):
            latest[root] = named
