"""Erasing codes that are older than a plant wants to keep them: events stay, codes go.

A code reveals something of its picture. The log's hash chain covers a code's digest, so the code can be taken out
and the chain still holds (docs/labels.md, section 1). What is erased is said in the log: the fleet appends a code
record without a code, the last word on that sample, so that every device's live set stays the fleet's. Where a
sample has a code left in another space, its device says it anew when this one is in use again (section 7).

How old a code is says the clock by which it came, and that may have been wrong: entries come one after the other,
so none counts as older than one before it.

Whoever speaks loudest decides nothing here: codes of a source that is quarantined, and of a device that has not
labelled the sample, neither make another's code due nor keep it young, and take no release's sample along.

A sample's codes go together: in one transaction, side by side in the log, that of the release in service last.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from sdk.errors import FleetError
from sdk.fleet.channel_ledger import Publication
from sdk.fleet.store import FleetStore, Ledger
from sdk.labels import FLEET_LOG_PREFIX, CodeRecord, Entry, Label, Quarantine
from sdk.sources import ANYBODY

AT_ONCE: Final = 256
"""Codes erased in one transaction, to the end of a sample: a running service waits for no more."""
DAY_S: Final = 24 * 3600.0


@dataclass(frozen=True)
class Policy:
    """What may go.

    Attributes:
        older_than_s: Codes that came before that many seconds; 0 is all, whatever a clock says.
        live_too: Those that count now as well, once none of the sample's codes is younger: these samples are then
            no longer learned from, nor where a release that the channel had brings them. Without it only what
            nothing rests on: withdrawn samples, and feature spaces that no release in use has
            (`Ledger.spaces_in_use`), and of these not the samples that a release brings itself.
        unread_too: Erase although a release that the channel had cannot be read. Should the channel go back to it,
            what it brings of these samples counts again with `live_too`, and does not count without.
    """

    older_than_s: float
    live_too: bool = False
    unread_too: bool = False


@dataclass(frozen=True)
class Unread:
    """What cannot be read of the releases that a channel had: nobody knows which samples it brings.

    Attributes:
        release: Its name.
        precision: Of which; empty where not even its manifest can be read.
    """

    release: str
    precision: str

    def __str__(self) -> str:
        return f"{self.release} ({self.precision})" if self.precision else self.release


@dataclass(frozen=True)
class Due:
    """One sample's codes in one feature space that the policy lets go.

    Attributes:
        body: Its newest code record.
        positions: Where the channel's log has records of it with a code; none where a release alone brings one.
        size_bytes: Of these codes.
        live: Whether it counts now.
        labelled: Whether it is labelled: going back to a release of this space, its label would count.
    """

    body: CodeRecord
    positions: tuple[int, ...]
    size_bytes: int
    live: bool
    labelled: bool


@dataclass(frozen=True)
class Found:
    """What a policy lets go of a channel, as it stood.

    Attributes:
        channel, policy, now_utc: What was asked.
        what: Sample by sample, in the order of the channel's log.
        length: How much of that log was known.
        publication: Number of the release that was its current one; None without.
        in_use: The feature spaces that were in use.
        younger: How many samples count on, though their code is old enough: they have a younger one in another
            space, which would bring it back.
        ahead: How many entries came later than now, by the clock of their day: that one was wrong, or now's is.
        unread: What could not be read of releases that may bring the samples. Without `Policy.live_too` and
            `Policy.unread_too` nothing goes of its feature space.
        held: How many samples keep codes that are old enough and that do not count: of a source that is
            quarantined, or of a device that has not labelled the sample.
        brought: How many of the samples that would count no more the current release brings itself.
        emptied: The names of its classes of which no sample would count any more.
    """

    channel: str
    policy: Policy
    now_utc: float
    what: list[Due]
    length: int
    publication: int | None
    in_use: AbstractSet[bytes]
    younger: int
    ahead: int
    unread: tuple[Unread, ...] = ()
    held: int = 0
    brought: int = 0
    emptied: tuple[str, ...] = ()

    def check_read(self) -> None:
        """Refuse to erase for good what a release might bring back unseen.

        Raises:
            FleetError: one cannot be read, and the policy does not allow for it.
        """
        if self.unread and self.what and self.policy.live_too and not self.policy.unread_too:
            raise FleetError(
                f"cannot be read: {', '.join(map(str, self.unread))}; what it brings of these samples would count "
                "again should the channel go back to it",
                hint="Put it back from its bundle first: headway fleet doctor --mend-from BUNDLE; or see to the "
                "place that has its chunks. Where nobody has them: --unread-too.",
            )

    def check_emptied(self) -> None:
        """Refuse to erase all that the release knows of a class.

        Raises:
            FleetError: it would be.
        """
        if self.emptied:
            raise FleetError(
                f"of {', '.join(map(repr, self.emptied))} no sample would count any more; the release has some",
                hint="Look with --dry-run, and at `headway fleet suspects`. To erase it all the same: "
                "--empty-classes.",
            )

    def holds(self, ledger: Ledger) -> bool:
        """Return whether what counts, and where, is decided as it was; single samples aside."""
        current = ledger.current(self.channel)
        same = (None if current is None else current.id) == self.publication
        return same and ledger.spaces_in_use(self.channel) <= self.in_use


def due(store: FleetStore, channel: str, policy: Policy, now_utc: float) -> Found:
    """Return what a policy lets go of a channel, and what could not be read for it. Nothing is changed.

    Cost: the whole log is read once.
    """
    with store.read() as ledger:  # before the fold below, which may know more by then
        length, release, in_use = (
            ledger.log_length(channel),
            ledger.current(channel),
            ledger.spaces_in_use(channel),
        )
        ahead = sum(utc > now_utc for utc in ledger.came(channel))
    what, younger, held, unread = _due(store, channel, policy, now_utc, in_use)
    current = None if release is None else release.id
    brought, emptied = _of_release(store, channel, {each.body.sample for each in what if each.live})
    return Found(
        channel, policy, now_utc, what, length, current, in_use, younger, ahead, unread, held, brought, emptied
    )


def _of_release(store: FleetStore, channel: str, going: set[bytes]) -> tuple[int, tuple[str, ...]]:
    """Return how many of some samples the current release brings, and its classes that would have none left."""
    learned = store.learned(channel) if going else None
    base = store.current_base(channel) if learned is not None else None
    if learned is None or base is None:
        return 0, ()
    live = learned.live
    left = {one for sample, one in zip(live.samples, live.class_ids, strict=True) if sample not in going}
    left |= {live.merged.get(class_id, class_id) for class_id in base.class_ids[len(base.codes) :]}
    lost = {live.merged.get(class_id, class_id) for class_id in base.class_ids} & {*live.class_ids} - left
    return len(going.intersection(base.samples)), tuple(sorted(learned.names[class_id] for class_id in lost))


def believable(came_utc: Sequence[float], now_utc: float) -> list[float]:
    """Return when entries came, of a log in order, where the clock was wrong at times; in doubt the later time.

    An entry came no earlier than those before it, and none after now: one that says so came by the next that does
    not.

    >>> believable([10.0, 20.0, 3.0, 21.0, 99.0, 22.0, 98.0], now_utc=30.0)
    [10.0, 20.0, 20.0, 21.0, 22.0, 22.0, 30.0]
    """
    times, after = list(came_utc), now_utc
    for at in reversed(range(len(times))):
        if times[at] <= now_utc:
            after = times[at]
        times[at] = after
    return list(accumulate(times, max))


@dataclass
class _Spoken:
    """What was said of one sample's code in one feature space.

    Attributes:
        body: The newest code record.
        positions: Where there is a code.
        size_bytes: Of these.
        came_utc: When the newest that counts came; of those that do not, where none does.
        by: Whose records they are.
        counts: Whether one counts (docs/labels.md, section 2): its device has labelled the sample, and is not
            quarantined; or it is the fleet's.
    """

    body: CodeRecord
    positions: list[int] = field(default_factory=list)
    size_bytes: int = 0
    came_utc: float = 0.0
    by: set[str] = field(default_factory=set)
    counts: bool = False


@dataclass
class _Log:
    """A channel's log, as far as a policy asks about it.

    Attributes:
        spoken: By feature space and sample.
        labelled_by: Which devices have labelled each sample, or taken a label of it back.
    """

    spoken: dict[tuple[bytes, bytes], _Spoken] = field(default_factory=dict)
    labelled_by: dict[bytes, set[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, ledger: Ledger, channel: str, now_utc: float, held: Mapping[str, int]) -> _Log:
        """Read it whole; `held` says up to which counter each device that is quarantined does not count."""
        log, coded = cls(), list[tuple[int, Entry, CodeRecord, int | None, float]]()
        came_utc, position = believable(ledger.came(channel), now_utc), 1
        while page := ledger.records(channel, position):
            for at, record in enumerate(page, position):
                entry, body = record.entry, record.entry.body
                if isinstance(body, Label):
                    log.labelled_by.setdefault(body.sample, set()).add(entry.device)
                elif isinstance(body, CodeRecord):
                    size = None if record.code is None else len(record.code)
                    coded.append((at, entry, body, size, came_utc[at - 1]))
            position += len(page)
        for at, entry, body, size, came in coded:
            said = log.spoken.setdefault((body.space, body.sample), _Spoken(body))
            labelled = entry.device in log.labelled_by.get(body.sample, ())
            fleets = entry.device.startswith(FLEET_LOG_PREFIX)
            counts = fleets or (labelled and entry.counter > held.get(entry.device, 0))
            said.by.add(entry.device)
            said.positions += [] if size is None else [at]
            said.size_bytes += size or 0
            if counts or not said.counts:
                said.body, said.came_utc, said.counts = body, came, counts
        return log


class _Releases:
    """What the releases of a channel's feature spaces bring themselves.

    It stays in the bundle whatever is erased here: without it a head would only know less than that brings.
    """

    def __init__(self, store: FleetStore, published: Mapping[bytes, Publication], unread_too: bool) -> None:
        self._precision_of, self._published, self._unread_too = store.precision_of, published, unread_too
        self._samples = {space: store.released(one) for space, one in published.items()}
        self._missed: set[bytes] = set()

    def bring(self, space: bytes, sample: bytes) -> bool:
        """Return whether one brings a sample; where it cannot be read it may, unless nobody minds."""
        samples = self._samples.get(space, {})
        if samples is None:
            self._missed.add(space)
            return not self._unread_too
        return sample in samples

    def unread(self) -> dict[Unread, None]:
        """Return, in order, which could not be read though they were asked."""
        missed = [one for space, one in self._published.items() if space in self._missed]
        return dict.fromkeys(Unread(one.ref.name, self._precision_of(one)) for one in missed)


def _due(
    store: FleetStore, channel: str, policy: Policy, now_utc: float, in_use: AbstractSet[bytes]
) -> tuple[list[Due], int, int, tuple[Unread, ...]]:
    """Return what goes, how many samples stay for the sake of a younger code, how many keep codes that are old
    enough and do not count, and what cannot be read.
    """
    learned = store.learned(channel)
    live = frozenset(() if learned is None else learned.live.samples)
    labelled = live if learned is None else live.union(learned.codeless, learned.erased)
    withdrawn = frozenset(() if learned is None else learned.withdrawn)
    holds = [] if learned is None else learned.holds
    held = frozenset(hold.device for hold in holds)
    with store.read() as ledger:
        published = ledger.published(channel)
        whole = {hold.device: hold.through for hold in holds if hold.operator == ANYBODY}
        log = _Log.read(ledger, channel, now_utc, whole)
    releases = _Releases(store, published, policy.unread_too)
    out, stay = list[Due](), set[bytes]()
    current = None if learned is None else bytes.fromhex(learned.live.space)

    def gone(key: tuple[bytes, bytes]) -> Due:
        (space, sample), said = key, log.spoken[key]
        counts = space == current and sample in live
        return Due(said.body, tuple(said.positions), said.size_bytes, counts, sample in labelled)

    for key, said in log.spoken.items():
        space, sample = key
        if not said.positions or (said.came_utc >= now_utc - policy.older_than_s and policy.older_than_s):
            continue
        retired = space not in in_use
        # In a space that is in use but not the current one, nobody here can say whether the code counts; but that
        # of a sample whose label was taken back does not, such as of a picture that was deleted.
        nowhere = sample in withdrawn or (space == current and sample not in live)
        if said.counts:
            # Of a source that is quarantined: released, it counts again.
            idle = retired or (nowhere and not said.by & held)
            if policy.live_too or (idle and not releases.bring(*key)):
                out.append(gone(key))
            continue
        # Nobody who counts said it, so nobody else's sample goes for it; nor what may count again.
        labellers = log.labelled_by.get(sample, set())
        nobodys = not labellers and (retired or space == current)
        if (nobodys or (retired and said.by <= labellers)) and not releases.bring(*key):
            out.append(gone(key))
        else:
            stay.add(sample)
    unread = releases.unread()
    younger: set[bytes] = set()
    if policy.live_too:
        goes = {(each.body.space, each.body.sample) for each in out}
        counting = {key: said for key, said in log.spoken.items() if said.counts}
        kept = {key[1] for key, said in counting.items() if said.positions and key not in goes}
        whole_samples = {sample for _, sample in counting} - kept
        younger = {each.body.sample for each in out if each.live} & kept
        out = [each for each in out if not (each.live and each.body.sample in younger)]
        # With a sample all its codes go, whoever said them.
        out += [
            gone(key)
            for key, said in log.spoken.items()
            if not said.counts and said.positions and key[1] in whole_samples and key not in goes
        ]
        stay -= whole_samples
        bodies, more = _brought(store, channel, whole_samples, log.spoken.keys())
        unread |= more
        for body in bodies:
            counts = body.space == current and body.sample in live
            out.append(Due(body, (), 0, counts, body.sample in labelled))
    return _by_sample(out, in_use, current), len(younger), len(stay), tuple(unread)


def _brought(
    store: FleetStore, channel: str, gone: AbstractSet[bytes], said: AbstractSet[tuple[bytes, bytes]]
) -> tuple[list[CodeRecord], dict[Unread, None]]:
    """Return what releases of the channel say of samples of which the log keeps no code, where no device said it.

    Unsaid, a move to such a release or precision would bring them back. And return what cannot be read.
    """
    out: dict[tuple[bytes, bytes], CodeRecord] = {}
    unread = dict[Unread, None]()  # in order, each once
    for one in store.brought(channel) if gone else ():
        if one.samples is None:
            unread[Unread(one.release, one.precision)] = None
            continue
        for sample in gone & one.samples.keys():
            if (one.space, sample) not in said:
                group, code = one.samples[sample]
                out[one.space, sample] = CodeRecord(one.space, sample, group, hashlib.sha256(code).digest())
    return list(out.values()), unread


def _by_sample(what: Sequence[Due], in_use: AbstractSet[bytes], current: bytes | None) -> list[Due]:
    """Return it sample by sample, of each those spaces first in which the fewest devices would miss it."""
    first: dict[bytes, int] = {}
    for at, each in enumerate(what):
        first.setdefault(each.body.sample, at)

    def place(each: Due) -> tuple[int, bool, bool]:
        return first[each.body.sample], each.body.space == current, each.body.space in in_use

    return sorted(what, key=place)


@dataclass(frozen=True)
class Missing:
    """What would not count at once, should a channel go back to a release.

    Attributes:
        release: Its name; empty where no release of the channel had this feature space.
        precision: Its precision with this space; empty likewise.
        samples: Labelled samples whose codes there are let go.
    """

    release: str
    precision: str
    samples: int


def missing(store: FleetStore, channel: str, what: Sequence[Due]) -> list[Missing]:
    """Return what going back would find without its codes, by release."""
    with store.read() as ledger:
        published, current = ledger.published(channel), ledger.current(channel)
    now = None if current is None else bytes.fromhex(current.space)
    counts = Counter(each.body.space for each in what if each.labelled and each.body.space != now)
    return [
        Missing(one.ref.name, store.precision_of(one), samples)
        if (one := published.get(space)) is not None
        else Missing("", "", samples)
        for space, samples in counts.items()
    ]


@dataclass
class Erased:
    """What was erased.

    Attributes:
        what: The codes, as they were found.
        codes: How many of them there were.
        kept: Samples that were left as they are: somebody said something of them after they had been found.
    """

    what: list[Due] = field(default_factory=list)
    codes: int = 0
    kept: set[bytes] = field(default_factory=set)


def erase(store: FleetStore, found: Found, *, empty_classes: bool = True) -> Erased:
    """Erase codes, and say so in the log; return what was.

    What is said while it goes on stands: a sample that is labelled meanwhile, or whose code is said, is left as it
    is. Where another release came meanwhile, or a quarantine, what may go is looked for anew.

    Killed at any point, what was erased is said and what was not is as it was, each sample whole; the next run
    goes on.

    Raises:
        FleetError: `Found.check_read`, of what has come meanwhile too; with `empty_classes` false a class of the
            release would have no sample left. What was erased before that stays erased.
    """
    erased, heard = Erased(), _Heard(found.length)
    while True:
        found.check_read()
        if not empty_classes:
            found.check_emptied()
        if _erase(store, found, erased, heard):
            return erased
        found = due(store, found.channel, found.policy, found.now_utc)


@dataclass
class _Heard:
    """What others have said since the codes were found: how far in the channel's log, and of which samples."""

    position: int
    samples: set[bytes] = field(default_factory=set)

    def listen(self, ledger: Ledger, channel: str) -> bool:
        """Take in what is new; return whether it may say of any sample whether it counts."""
        of_sources = False
        while page := ledger.records(channel, self.position + 1):
            bodies = [record.entry.body for record in page]
            self.samples |= {body.sample for body in bodies if isinstance(body, Label | CodeRecord)}
            of_sources |= any(isinstance(body, Quarantine) for body in bodies)
            self.position += len(page)
        return of_sources


def _erase(store: FleetStore, found: Found, erased: Erased, heard: _Heard) -> bool:
    """Erase what was found as long as it holds; return whether it did to the end."""
    channel = found.channel
    for some in _transactions(found.what):
        with store.write() as ledger:
            if heard.listen(ledger, channel) or not found.holds(ledger):
                return False
            going = [each for each in some if each.body.sample not in heard.samples]
            if going:
                ledger.decide(channel, [each.body for each in going])
            codes = ledger.erase_codes(channel, [position for each in going for position in each.positions])
            heard.position = ledger.log_length(channel)
        erased.what += going
        erased.codes += codes
        erased.kept |= {each.body.sample for each in some} & heard.samples
    return True


def _transactions(what: Sequence[Due]) -> Iterator[list[Due]]:
    """Yield it in parts, each with all that goes of its samples."""
    samples: dict[bytes, list[Due]] = {}
    for each in what:
        samples.setdefault(each.body.sample, []).append(each)
    some: list[Due] = []
    for dues in samples.values():
        some += dues
        if len(some) >= AT_ONCE:
            yield some
            some = []
    if some:
        yield some
