"""What a head learned from, in one file: whoever has the bundle can check it without the device.

JSON Lines. The first line says of which head it is, and maybe of which part that head decided (`Claim`). The
others are this device's label log in the order in which it came here, as far as the head had learned, every entry
of every device with its hash (`sdk.logrows`). Folded onto the bundle's own samples they must give the live set
whose digest the head bears; and the head solved from that must decide the part's code as it was decided.

What the first line says of device, times, of the part's id, verdict and reason, and of the head's calibration and
adaptation is the device's word. So is the part's code, until a picture is given of which it is made again
(`device_agent.proof_picture`). So is what the digest does not cover: who labelled and when, what classes are
called (`device_agent.proof_names`), and labels that were overruled. Hash chains hold these together, but whoever
holds the file can write a chain anew from its first entry: they are certain where the ends of the chains are known
from elsewhere, as from the fleet's export (`check_proof`).
All else is computed. A decision that is not made again (`device_agent.proof_decision`) is not said to hold.
No picture is in it, and of people what the log has, which is an id where the page knows who they are.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from device_agent.database import disk, open_to_read
from device_agent.heads_and_updates import HeadRow, head_row
from device_agent.history import PartRow, newest_of
from device_agent.label_log import decode_entry
from device_agent.proof_claim import FORMAT, MAKE_AGAIN, Claim, PartClaim
from device_agent.proof_decision import Judge, Made, adaptation_of, head_of
from device_agent.proof_names import NAMING, Names
from device_agent.proof_picture import Picture, read_picture
from device_agent.schema import MIGRATIONS
from device_agent.store import STORE_NAME
from device_agent.trial import Base
from device_agent.withdrawn import is_alone
from sdk.bundle import Bundle
from sdk.durable import appearing_output
from sdk.errors import BadImages, ConfigError, LabelError
from sdk.labels import REFUSALS, RELEASE_DEVICE, Chain, Entry, Fold, Label, Record
from sdk.lineage import Link, lineage
from sdk.liveset import LiveSet, without
from sdk.logrows import Checked, check_known, checked_rows, row_of
from sdk.moments import UNADAPTED, Adaptation
from sdk.version import headway_version

CLOCK_OFF_S: Final = 5.0
"""By so much a head may seem to have begun to serve after what it decided: clocks are set right while it does."""
LONGEST_WAIT_S: Final = 3600.0
"""No part waits longer for its verdict, of which a proof does not say the time."""
MAX_LINE: Final = 2**20
"""Characters of the first line: a code and a shift of 16,384 numbers have a fifth of it."""
_NAME_A_PROOF: Final = "Name a file of `headway proof make`."
_NAME_A_LOG: Final = "Name a .jsonl file of `headway fleet labels export`."


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
    return max((arrival for arrival, entry in rows if isinstance(decode_entry(entry).body, NAMING)), default=0)


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
        box=msgspec.UNSET if row.camera is None else (row.x or 0, row.y or 0, row.width or 0, row.height or 0),
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
class Adapted:
    """How a head counts this station's own samples otherwise than others': the device's word.

    Attributes:
        own_weight: An own sample counts as so many.
        shift: So much is taken off a number of its codes, of 127, on average; 0 is no shift.
    """

    own_weight: int
    shift: float


@dataclass(frozen=True)
class Proved:
    """What a proof says whose log, bundle and head hold, and whose decision does not contradict them.

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
        adapted: How the head counts own samples; None where as any other.
        made: The part's decision, made again; None where the proof is of no part.
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
    adapted: Adapted | None
    made: Made | None

    @property
    def holds(self) -> bool:
        """Whether all of it does: a part's decision too, where it is of one."""
        return self.made is None or not self.made.unchecked


@dataclass
class _Told:
    """The log of a proof, folded onto the bundle's samples."""

    fold: Fold
    refused: int = 0
    said: dict[tuple[bytes, str, str], Entry] = field(default_factory=dict)
    """By sample, device and operator the label of the highest counter: nobody's but the last word can count."""
    names: Names = field(init=False)

    def __post_init__(self) -> None:
        self.names = Names(self.fold.class_names())

    def take(self, records: Iterable[Record]) -> None:
        for record in records:
            try:
                self.fold.apply(record)
            except REFUSALS:
                self.refused += 1
                continue
            self.names.hear(record)
            entry, body = record.entry, record.entry.body
            if isinstance(body, Label):
                said = self.said.setdefault((body.sample, entry.device, body.operator), entry)
                if entry.counter > said.counter:
                    self.said[body.sample, entry.device, body.operator] = entry


def check_proof(file: Path, bundle: Bundle, log: Path | None = None, picture: Path | None = None) -> Proved:
    """Check a proof against the bundle that served; return what it says.

    Args:
        file: Of `make_proof`.
        bundle: The release that the head belongs to.
        log: The fleet's log, of `headway fleet labels export`: every log of the proof must begin that of its
            device there. None leaves who labelled, when, what was overruled, and what classes are called to the
            file's word.
        picture: The part's: the file that was decided, or the camera's frame that it was cut out of. Its code is
            made again by the bundle's backbone.

    Raises:
        LabelError: it is no proof, it was changed, or this is not what the head learned from; or its logs are not
            the fleet's, or the picture is not the part's.
        ConfigError: there is a picture, and the proof is of no part.
        BadImages: the picture is none.
        InferenceFailed: this machine does not run the bundle's backbone right.
        BadFormat: the bundle is damaged.
    """
    shown = None if picture is None else read_picture(picture)
    try:
        with file.open(encoding="utf-8") as stream:
            claim = _claim(stream.readline(MAX_LINE), file)
            checked = Checked()
            if picture is not None and claim.part is None:
                raise ConfigError(f"{file} is of no part", hint="Make it with --part, on the device.")
            rows = checked_rows(stream, checked, first=2)
            proved = _check(claim, rows, checked, bundle, compared=log is not None, picture=shown)
    except BadImages as error:
        raise BadImages(f"{picture}: {error}", hint=error.hint) from error
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
            hint=MAKE_AGAIN,
        )
    if not 0 <= claim.learned <= claim.entries < 2**53:
        raise LabelError(f"{file} says {claim.learned} of {claim.entries} entries", hint=MAKE_AGAIN)
    return claim


def _check(
    claim: Claim,
    records: Iterator[Record],
    checked: Checked,
    bundle: Bundle,
    *,
    compared: bool,
    picture: bytes | None,
) -> Proved:
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
            hint=MAKE_AGAIN,
        )
    for record in later:
        told.names.hear(record)
    adaptation, made = adaptation_of(claim), None
    if (part := claim.part) is not None:
        shown = None if picture is None else Picture(picture, bundle, precision)
        judge = Judge(part, partial(head_of, claim, base, live), adaptation, base.fold, told.names, compared)
        made = judge.made(live, shown, calibrated=claim.calibration is not None or claim.learned == 0)
    return Proved(
        claim=claim,
        link=lineage(bundle, [bundle.path.resolve().parent]),
        precision=precision,
        devices=tuple(sorted(checked.chains)),
        ends=tuple(LogEnd(d, c.seq, c.last_hash.hex(), None) for d, c in sorted(checked.chains.items())),
        released=live.devices.count(RELEASE_DEVICE) + live.summed,
        labelled=_by_people(live, told.said),
        refused=told.refused,
        classes=_classes(base.fold, live),
        adapted=None if adaptation == UNADAPTED else _adapted(adaptation),
        made=made,
    )


def _classes(fold: Fold, live: LiveSet) -> dict[str, int]:
    """Return how many samples each class has, by name: of several of one name by their ids too."""
    names = fold.class_names()
    counts = Counter(live.class_ids)
    counts.update(fold.summed_counts())
    shared = Counter(names.get(each) for each in counts)
    found: dict[str, int] = {}
    for each, count in sorted(counts.items()):
        name = names.get(each, "class")
        found[name if each in names and shared[name] == 1 else f"{name} {each.hex()[:6]}"] = count
    return found


def _adapted(adaptation: Adaptation) -> Adapted:
    shift = float(np.abs(np.array(adaptation.shift, np.int64)).mean()) if adaptation.shift else 0.0
    return Adapted(adaptation.own_weight, shift)


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
