"""What a head learned from, in one file: whoever has the bundle can check it without the device.

JSON Lines. The first line says of which head it is, and maybe of which part that head decided (`Claim`). The
others are this device's label log in the order in which it came here, as far as the head had learned, every entry
of every device with its hash (`sdk.logrows`). Folded onto the bundle's own samples they must give the live set
whose digest the head bears; and the head solved from that must decide the part's code as it was decided.

What the first line says of device, times, of the part's id, verdict and reason, and of the head's calibration and
adaptation is the device's word. So is what the digest does not cover: who labelled and when, and labels that were
overruled. Hash chains hold these together, but whoever holds the file can write a chain anew from its first entry:
they are certain where the ends of the chains are known from elsewhere, as from the fleet's export (`check_proof`).
All else is computed.
No picture is in it, and of people what the log has, which is an id where the page knows who they are.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from device_agent.database import disk, open_to_read
from device_agent.heads_and_updates import HeadRow, head_row
from device_agent.history import PartRow, newest_of
from device_agent.label_log import decode_entry
from device_agent.schema import MIGRATIONS
from device_agent.station import UNKNOWN
from device_agent.store import STORE_NAME
from device_agent.trial import Base
from device_agent.withdrawn import is_alone
from sdk.bundle import Bundle
from sdk.codes import Code
from sdk.durable import appearing_output
from sdk.errors import ConfigError, LabelError
from sdk.head import Calibration, Head, solve
from sdk.labels import (
    REFUSALS,
    RELEASE_DEVICE,
    Chain,
    DefineClass,
    Entry,
    Fold,
    Label,
    MergeClasses,
    Record,
    RenameClass,
)
from sdk.lineage import Link, lineage
from sdk.liveset import LiveSet, without
from sdk.logrows import Checked, check_known, checked_rows, row_of
from sdk.merges import Merges
from sdk.moments import UNADAPTED, Adaptation
from sdk.version import headway_version

FORMAT: Final = "headway-proof-1"
NOVELTY_OFF: Final = 0.02
"""A device decides with the factor in seven bits, which may put scores off by half a hundredth
(`device_agent.decider`): by so much the same code's novelty may differ from the canonical head's."""
PROBABILITY_OFF: Final = 0.05
"""The same for its probability, which is steeper."""
TIE: Final = 0.1
"""Two classes whose probabilities differ by no more may have changed places by the same rounding."""
CLOCK_OFF_S: Final = 5.0
"""By so much a head may seem to have begun to serve after what it decided: clocks are set right while it does."""
LONGEST_WAIT_S: Final = 3600.0
"""No part waits longer for its verdict, of which a proof does not say the time."""
MAX_ASKED: Final = 500
"""Learned samples that are asked whether they are unknown."""
MAX_LINE: Final = 2**20
"""Characters of the first line: a code and a shift of 16,384 numbers have a fifth of it."""
_NAMING: Final = (DefineClass, RenameClass, MergeClasses)
_MAKE_AGAIN: Final = "Make the proof again, on the device."
_NAME_A_PROOF: Final = "Name a file of `headway proof make`."
_NAME_A_LOG: Final = "Name a .jsonl file of `headway fleet labels export`."


class PartClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part that the head decided, as the history has it.

    Attributes:
        part: Its id.
        captured_utc: Seconds since 1970.
        verdict, reason: Of the part.
        decision: Shown for the tile that decided.
        probability, novelty: Of that decision.
        sample: The tile's id, hex.
        code: The tile's code, hex; None where the device has it no more.
    """

    part: str
    captured_utc: float
    verdict: str
    reason: str
    decision: str
    probability: float
    novelty: float
    sample: str
    code: str | None


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The first line of a proof.

    Attributes:
        format: `FORMAT`.
        made_utc: Seconds since 1970.
        headway: Version that made it.
        device: Whose head.
        head: Its number there.
        created_utc: When it began to serve.
        space: Feature space id, hex.
        digest: Of the live set that it was solved from, hex.
        samples: Size of that.
        outcome, reason: How its trial ended, and why.
        calibration, adaptation: As the device stores them, MessagePack in hex; None where it had none of its own.
        learned: So many entries of the log it had learned.
        entries: So many follow; what is beyond `learned` took something of it back.
        part: What it decided; None where nobody asked.
    """

    format: str
    made_utc: float
    headway: str
    device: str
    head: int
    created_utc: float
    space: str
    digest: str
    samples: int
    outcome: str
    reason: str
    calibration: str | None
    adaptation: str | None
    learned: int
    entries: int
    part: PartClaim | None = None


# Making one


def make_proof(
    data_dir: Path,
    out: Path,
    *,
    head: int | None = None,
    part: str | None = None,
    clock: Callable[[], float] = time.time,
    checked: Checked | None = None,
) -> Claim:
    """Write the proof of one head; return its first line. The agent may be running.

    Args:
        data_dir: The agent's data folder.
        out: The file to write.
        head: The head's number; None is the newest, or the one that decided `part`.
        part: A part id: the head of its newest verdict.
        clock: UTC seconds.
        checked: Told of each entry, and so of where each device's log ends.

    Raises:
        ConfigError: no store, no such head or part, or the file cannot be written.
        LabelError: the log is broken, so that no proof of it would hold.
        StoreCorrupt, StoreFull: the store cannot be read.
    """
    if not (data_dir / STORE_NAME).exists():
        raise ConfigError(f"there is no store in {data_dir}", hint="Has the agent run with this site.toml yet?")
    row = None if part is None else _decided(data_dir, part, head)
    number = row.head if row is not None else head
    with disk(data_dir), open_to_read(data_dir / STORE_NAME, len(MIGRATIONS), whole=False) as db:
        served = _head(db, number)
        if row is not None:
            _check_decided(served, row)
        (device,) = db.execute("SELECT value FROM meta WHERE key = 'device'").fetchone()
        learned = _count(db, served.through)
        # What a person here took back alone is said after what the head had learned; so is what a class was called
        # when the part was decided.
        through = _newest(db) if is_alone(served) else served.through
        if row is not None:
            through = max(through, _newest_name(db, served.through))
        claim = Claim(
            format=FORMAT,
            made_utc=clock(),
            headway=headway_version(),
            device=device,
            head=served.number,
            created_utc=served.created_utc,
            space=served.space,
            digest=served.digest,
            samples=served.samples,
            outcome=served.outcome.value,
            reason=served.reason,
            calibration=None if served.calibration is None else served.calibration.hex(),
            adaptation=None if served.adaptation is None else served.adaptation.hex(),
            learned=learned,
            entries=_count(db, through),
            part=None if row is None else _part_claim(db, row, served.space),
        )
        _write(out, claim, _log(db, through, checked or Checked()))
    return claim


def _write(out: Path, claim: Claim, rows: Iterator[dict[str, Any]]) -> None:
    """Write a proof; the file appears whole, on disk, or not at all."""
    try:
        with appearing_output(out) as draft, draft.open("w", encoding="utf-8") as stream:
            stream.write(msgspec.json.encode(claim).decode() + "\n")
            for row in rows:
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"{out}: {error.strerror}", hint="Name a file that you may write.") from error


def _log(db: sqlite3.Connection, through: int, checked: Checked) -> Iterator[dict[str, Any]]:
    rows = db.execute("SELECT entry, code FROM records WHERE arrival <= ? ORDER BY arrival", (through,))
    for position, (entry, code) in enumerate(rows, 1):
        record = Record(decode_entry(entry), code)
        checked.take(record)
        yield row_of(position, record)


def _count(db: sqlite3.Connection, through: int) -> int:
    return int(db.execute("SELECT count(*) FROM records WHERE arrival <= ?", (through,)).fetchone()[0])


def _newest_name(db: sqlite3.Connection, after: int) -> int:
    """Return the arrival number of the last entry after this one that named a class; 0 where there is none."""
    rows = db.execute("SELECT arrival, entry FROM records WHERE sample IS NULL AND arrival > ?", (after,))
    return max((arrival for arrival, entry in rows if isinstance(decode_entry(entry).body, _NAMING)), default=0)


def _newest(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT coalesce(max(arrival), 0) FROM records").fetchone()[0])


def _head(db: sqlite3.Connection, number: int | None) -> HeadRow:
    found = db.execute(
        "SELECT * FROM heads WHERE ? IS NULL OR number = ? ORDER BY number DESC LIMIT 1", (number, number)
    ).fetchone()
    if found is None:
        oldest, newest = db.execute("SELECT min(number), max(number) FROM heads").fetchone()
        which = "this device has had no head yet" if newest is None else f"there is no row of head {number}"
        raise ConfigError(
            which,
            hint="Start the agent with a bundle first."
            if newest is None
            else f"Rows of heads {oldest} to {newest} are kept, least of those that a newer one replaced at once.",
        )
    return head_row(found)


def _decided(data_dir: Path, part: str, head: int | None) -> PartRow:
    row = newest_of(data_dir, part)
    if row is None:
        raise ConfigError(
            f"the history has no part {part!r}",
            hint="`headway agent history` shows the ids of those it has. What was only asked about over "
            "/api/inspect is not in it.",
        )
    if row.head is None:
        raise ConfigError(
            f"no head decided part {part!r}: {row.reason}", hint="It was rejected without a decision."
        )
    if head not in (None, row.head):
        raise ConfigError(f"head {row.head} decided part {part!r}, not {head}", hint="Leave --head out.")
    return row


def _check_decided(served: HeadRow, row: PartRow) -> None:
    """Refuse a head that was not there yet when the part was decided: numbers may have been given again."""
    if served.created_utc > row.captured_utc + row.latency_ms / 1000 + CLOCK_OFF_S:
        raise ConfigError(
            f"another head {row.head} decided part {row.part!r}: the one that is known served only later",
            hint="Its store was begun anew, or lost rows to a power cut. Or the clock was set back meanwhile.",
        )


def _part_claim(db: sqlite3.Connection, row: PartRow, space: str) -> PartClaim:
    found = db.execute(
        "SELECT code FROM samples WHERE sample = ? AND space = ?", (bytes.fromhex(row.sample), space)
    ).fetchone()
    return PartClaim(
        part=row.part,
        captured_utc=row.captured_utc,
        verdict=row.verdict,
        reason=row.reason,
        decision=row.decision,
        probability=row.probability,
        novelty=row.novelty,
        sample=row.sample,
        code=None if found is None else found[0].hex(),
    )


# Checking one


@dataclass(frozen=True)
class Labelled:
    """What one operator on one device contributes.

    Attributes:
        device, operator: Who.
        samples: Of the live set.
        first_utc, last_utc: Of their label entries that count, by the device's clock; seconds since 1970.
    """

    device: str
    operator: str
    samples: int
    first_utc: float
    last_utc: float


@dataclass(frozen=True)
class LogEnd:
    """Where one device's log ends in a proof.

    Attributes:
        device: Whose.
        entries: How many the proof has of it, from its first.
        hash: Of the last of these, hex. Who knows it from elsewhere knows that all before are as they were.
        known: So many has the log that it was compared with, which begins with them; None where there was none.
    """

    device: str
    entries: int
    hash: str
    known: int | None


@dataclass(frozen=True)
class Again:
    """The part's decision, made again by the head that the proof gives.

    Attributes:
        decision, probability, novelty: As of `PartClaim`.
        calibrated: By the head's own calibration; else it had none yet, and probability and *unknown*, by the
            bundle's, need not be those of then.
    """

    decision: str
    probability: float
    novelty: float
    calibrated: bool


@dataclass(frozen=True)
class Proved:
    """What a proof that holds says.

    Attributes:
        claim: Its first line.
        link: Where the bundle comes from.
        precision: Of the bundle.
        devices: Whose logs it rests on, each checked from its first entry.
        ends: Where each of them ends.
        released: Samples of the live set that the bundle brought, as it labelled them.
        labelled: The others, by who labelled them.
        refused: Entries that contradict themselves, which every device leaves out.
        classes: Class name to samples of the live set.
        again: The part's decision; None where the proof holds no code of it.
    """

    claim: Claim
    link: Link
    precision: str
    devices: tuple[str, ...]
    ends: tuple[LogEnd, ...]
    released: int
    labelled: tuple[Labelled, ...]
    refused: int
    classes: dict[str, int]
    again: Again | None


@dataclass
class _Told:
    """The log of a proof, folded onto the bundle's samples."""

    fold: Fold
    refused: int = 0
    said: dict[tuple[bytes, str, str], Entry] = field(default_factory=dict)
    """By sample, device and operator the label of the highest counter: nobody's but the last word can count."""
    names: dict[bytes, set[str]] = field(init=False)
    merges: Merges = field(default_factory=Merges)  # whether or not they count

    def __post_init__(self) -> None:
        self.names = {class_id: {name} for class_id, name in self.fold.class_names().items()}

    def take(self, records: Iterable[Record]) -> None:
        for record in records:
            try:
                self.fold.apply(record)
            except REFUSALS:
                self.refused += 1
                continue
            self.hear(record)
            entry, body = record.entry, record.entry.body
            if isinstance(body, Label):
                said = self.said.setdefault((body.sample, entry.device, body.operator), entry)
                if entry.counter > said.counter:
                    self.said[body.sample, entry.device, body.operator] = entry

    def hear(self, record: Record) -> None:
        """Note what an entry says of the names of classes, whether or not the head had learned it."""
        body = record.entry.body
        if isinstance(body, (DefineClass, RenameClass)):
            self.names.setdefault(body.class_id, set()).add(body.name)
        elif isinstance(body, MergeClasses):
            self.merges.join(body.one, body.other)

    def called(self, name: str, class_id: bytes) -> bool:
        """Whether a class has ever been called so, by itself or by one that it was made one with.

        One that neither bundle nor log names has its name from an earlier release: any that no other class has.
        """
        one = self.merges.canonical(class_id)
        if any(name in names for each, names in self.names.items() if self.merges.canonical(each) == one):
            return True
        return class_id not in self.names and not any(name in names for names in self.names.values())


def check_proof(file: Path, bundle: Bundle, log: Path | None = None) -> Proved:
    """Check a proof against the bundle that served; return what it says.

    Args:
        file: Of `make_proof`.
        bundle: The release that the head belongs to.
        log: The fleet's log, of `headway fleet labels export`: every log of the proof must begin that of its
            device there. None leaves who labelled, when, and what was overruled to the file's word.

    Raises:
        LabelError: it is no proof, it was changed, or this is not what the head learned from; or its logs are not
            the fleet's.
        BadFormat: the bundle is damaged.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            claim = _claim(stream.readline(MAX_LINE), file)
            checked = Checked()
            proved = _check(claim, checked_rows(stream, checked, first=2), checked, bundle)
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{file} cannot be read: {error}", hint=_NAME_A_PROOF) from error
    return proved if log is None else _compared(proved, log, checked.chains)


def _compared(proved: Proved, log: Path, chains: Mapping[str, Chain]) -> Proved:
    """Return what a proof says whose logs are the fleet's.

    Raises:
        LabelError: one is not.
    """
    try:
        with log.open(encoding="utf-8") as stream:
            known = check_known(stream, chains)
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{log} cannot be read: {error}", hint=_NAME_A_LOG) from error
    except LabelError as error:
        raise LabelError(f"{log}: {error}", hint=error.hint) from error
    return replace(proved, ends=tuple(replace(end, known=known[end.device].seq) for end in proved.ends))


def _claim(line: str, file: Path) -> Claim:
    try:
        claim = msgspec.json.decode(line, type=Claim)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LabelError(f"{file} is no proof: {str(error)[:200]}", hint=_NAME_A_PROOF) from error
    if claim.format != FORMAT:
        raise LabelError(f"{file} is of format {claim.format[:40]!r}", hint="Update Headway on this machine.")
    if claim.part is not None and claim.created_utc > claim.part.captured_utc + LONGEST_WAIT_S:
        raise LabelError(
            f"head {claim.head} began to serve after part {claim.part.part[:64]!r} was decided by another one",
            hint=_MAKE_AGAIN,
        )
    if not 0 <= claim.learned <= claim.entries < 2**53:
        raise LabelError(f"{file} says {claim.learned} of {claim.entries} entries", hint=_MAKE_AGAIN)
    return claim


def _check(claim: Claim, records: Iterator[Record], checked: Checked, bundle: Bundle) -> Proved:
    precision = next((e.precision for e in bundle.manifest.precisions if e.space == claim.space), None)
    if precision is None:
        raise LabelError(
            f"{bundle.path} has no feature space {claim.space[:16]}: the head belongs to another release",
            hint="Name the bundle that served then.",
        )
    base = Base.of(bundle, precision)
    told = _Told(base.fold)
    told.take(islice(records, claim.learned))
    later = list(records)
    live = _claimed(claim, base, later)
    if checked.entries != claim.entries:
        raise LabelError(
            f"the proof holds {checked.entries} entries of the log where its first line says {claim.entries}",
            hint=_MAKE_AGAIN,
        )
    for record in later:
        told.hear(record)
    names = base.fold.class_names()
    counts = Counter(live.class_ids)
    counts.update(base.fold.summed_counts())
    return Proved(
        claim=claim,
        link=lineage(bundle, [bundle.path.resolve().parent]),
        precision=precision,
        devices=tuple(sorted(checked.chains)),
        ends=tuple(LogEnd(d, c.seq, c.last_hash.hex(), None) for d, c in sorted(checked.chains.items())),
        released=live.devices.count(RELEASE_DEVICE) + live.summed,
        labelled=_by_people(live, told.said),
        refused=told.refused,
        classes={names.get(each, f"class {each.hex()[:6]}"): count for each, count in sorted(counts.items())},
        again=_again(claim, base, live, told),
    )


def _claimed(claim: Claim, base: Base, later: list[Record]) -> LiveSet:
    """Return the live set that the head was solved from: of what it had learned, or that without what people took
    back on its device since.

    Raises:
        LabelError: neither has the digest that the head bears.
    """
    live = base.fold.live_set()
    found = live
    said: dict[bytes, bytes | None] = {}
    then = dict(zip(live.samples, live.class_ids, strict=True))
    bodies = (record.entry.body for record in later if record.entry.device == claim.device)
    for body in (body for body in bodies if isinstance(body, Label) and body.sample in then):
        if found.digest == claim.digest:
            break
        said[body.sample] = None if body.class_id is None else live.merged.get(body.class_id, body.class_id)
        taken_back = {sample for sample, class_id in said.items() if class_id != then[sample]}
        found = without(live, taken_back, base.fold.summed_rows())
    if found.digest != claim.digest or len(found) != claim.samples:
        raise LabelError(
            f"this is not what head {claim.head} of {claim.device} learned from: bundle and log give the live set "
            f"{live.digest[:16]} of {len(live)} samples, the head bears {claim.digest[:16]} of {claim.samples}",
            hint="Name the bundle that served then. If it is that one, the proof was changed, or a code erased.",
        )
    return found


def _by_people(live: LiveSet, said: Mapping[tuple[bytes, str, str], Entry]) -> tuple[Labelled, ...]:
    found: dict[tuple[str, str], list[float]] = {}
    for sample, device, operator in zip(live.samples, live.devices, live.operators, strict=True):
        if device != RELEASE_DEVICE:
            found.setdefault((device, operator), []).append(said[sample, device, operator].wall_time_us / 1e6)
    return tuple(Labelled(*who, len(at), min(at), max(at)) for who, at in sorted(found.items()))


def _again(claim: Claim, base: Base, live: LiveSet, told: _Told) -> Again | None:
    """Return the part's decision by the head that is solved here from the live set.

    Raises:
        LabelError: it is another one than the history has.
    """
    part = claim.part
    if part is None or part.code is None or not part.sample:
        return None
    head, code = _head_of(claim, base, live), _code_of(part, base)
    decided = head.decide(code[None])
    names = base.fold.class_names()
    best = int(decided.class_index[0])
    again = Again(
        decision=UNKNOWN if decided.unknown[0] else names.get(head.class_ids[best], ""),
        probability=float(decided.probability[0]),
        novelty=float(decided.novelty[0]),
        calibrated=claim.calibration is not None or claim.learned == 0,
    )
    wrong = _figures_wrong(part, again, head.calibration.novelty_threshold)
    if not wrong and part.decision != UNKNOWN:
        p = decided.probabilities[0]
        as_likely = [head.class_ids[i] for i in np.flatnonzero(p >= p[best] - TIE)]
        if not any(told.called(part.decision, class_id) for class_id in as_likely):
            wrong = (
                f"{names.get(head.class_ids[best], 'no class that has a name')}, recorded {part.decision[:64]!r}"
            )
    if not wrong and part.decision == UNKNOWN and _most_are_unknown(head, live):
        wrong = "by its calibration most of what it has learned is unknown too"
    if wrong:
        raise LabelError(
            f"the head does not decide part {part.part[:64]!r} as the history has it: {wrong}",
            hint="Its line of the history was changed, or its code. Make the proof again, on the device.",
        )
    return again


def _head_of(claim: Claim, base: Base, live: LiveSet) -> Head:
    """Return the head of a live set. How sure it is, and how it counts own samples, the claim says."""
    calibration, adaptation = base.calibration, UNADAPTED
    try:
        if claim.calibration is not None:
            calibration = msgspec.msgpack.decode(bytes.fromhex(claim.calibration), type=Calibration)
        if claim.adaptation is not None:
            adaptation = msgspec.msgpack.decode(bytes.fromhex(claim.adaptation), type=Adaptation)
    except (ValueError, msgspec.DecodeError) as error:
        raise LabelError(f"the proof's first line is damaged: {error}", hint=_MAKE_AGAIN) from error
    if not 0 < calibration.temperature < math.inf or not -math.inf < calibration.novelty_threshold:
        raise LabelError("the proof's first line has a calibration that no head has", hint=_MAKE_AGAIN)
    station = base.labelled(live, claim.device)
    return solve(
        station.everything,
        knobs=base.knobs,
        calibration=calibration,
        own=station.moments(station.own),
        adaptation=adaptation,
    )


def _most_are_unknown(head: Head, live: LiveSet) -> bool:
    """Whether a head calls half of what it was made from unknown: by left-out scores none does."""
    some = np.unique(np.linspace(0, max(0, len(live.samples) - 1), MAX_ASKED).astype(np.int64))
    return len(live.samples) > 0 and bool(head.decide(live.codes[some]).unknown.mean() > 0.5)


def _code_of(part: PartClaim, base: Base) -> Code:
    try:
        code = np.frombuffer(bytes.fromhex(part.code or ""), np.int8)
    except ValueError as error:
        raise LabelError(f"the part's code is damaged: {error}", hint=_MAKE_AGAIN) from error
    if len(code) != base.fold.feature_size:
        raise LabelError(f"the part's code has {len(code)} numbers", hint=_MAKE_AGAIN)
    return code


def _figures_wrong(part: PartClaim, again: Again, threshold: float) -> str:
    """Return what of a recorded decision's figures cannot be of this head, in words; empty where all can."""
    # Below nought a code lies at the mean of a class, and the logarithm tells rounding apart.
    then, now = max(part.novelty, 0.0), max(again.novelty, 0.0)
    near = NOVELTY_OFF * max(1.0, abs(then))
    if not abs(now - then) <= near:  # so that what is no number is refused too
        return f"novelty {again.novelty:.4f}, recorded {part.novelty:.4f}"
    if not again.calibrated:
        return ""
    if not abs(again.probability - part.probability) <= PROBABILITY_OFF:
        return f"{again.probability:.1%} sure, recorded {part.probability:.1%}"
    if (again.decision == UNKNOWN) != (part.decision == UNKNOWN) and abs(now - threshold) > near:
        return f"{again.decision}, recorded {part.decision[:64]!r}"
    return ""
