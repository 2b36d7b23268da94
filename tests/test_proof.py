"""What a head learned from, proved in one file: what holds, and everything that was tried on it."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from device_agent.agent import Agent
from device_agent.camera import Shot
from device_agent.heads_and_updates import Outcome
from device_agent.history import FILE_NAME, FOLDER_NAME, History, greatest_head, newest_of, read_history
from device_agent.parts import Finding, Part
from device_agent.proof import check_proof, make_proof
from device_agent.proof_claim import Claim
from device_agent.station import Station
from device_agent.store import Store
from device_agent.withdrawn import is_alone
from sdk.bundle import Bundle
from sdk.errors import ConfigError, HeadwayError, LabelError, StoreCorrupt
from sdk.head import Calibration
from sdk.images import decode
from sdk.labels import Chain, Entry, Label, Quarantine, Record, entry_hash, fleet_log_of
from sdk.logrows import Checked, checked_rows, row_of
from sdk.wire import Verdict
from tests.commands import headway
from tests.simulators import SimDevice, wait_for
from tests.test_agent import running, site_of
from tests.test_person_undo import clean, confused, from_elsewhere, label, labels_of, station_at, undo
from tests.tiny import class_id, other_id, picture, tiny_bundle

__all__ = ["clean", "confused"]  # fixtures

Lines = list[dict[str, Any]]


def inspect(station: Station, name: str, i: int) -> None:
    """Decide a part as the line does, into the history."""
    data = picture(name, i)
    shot = Shot(decode(data), time.time(), f"line-1/{name}{i}", "", data)
    finding, now_s = Finding(shot, station.see(shot).decision), time.monotonic()
    part = Part(1, f"{name}{i}", Verdict.REJECT, name, finding, 1, 1, 1, time.time(), now_s, now_s + 0.01)
    history = History(station.store.folder, 1000)
    history.send(part)
    history.close()


def proof_of(station: Station, out: Path, **which: Any) -> Claim:
    return make_proof(station.store.folder, out / "proof.jsonl", **which)


@pytest.fixture
def station(tmp_path: Path, confused: Bundle) -> Iterator[Station]:
    """A station of a fleet that labelled, corrected, and heard from another device."""
    with station_at(tmp_path / "data", confused, None) as station:
        inspect(station, "pit", 300)
        samples = label(station, range(200, 206))
        undo(station, samples[:1])
        other = SimDevice("line-2")
        labels_of(confused, station, other, range(240, 244), right=True)
        from_elsewhere(station, other)
        inspect(station, "pit", 301)
        yield station


def test_every_head_that_served_can_be_proved(station: Station, confused: Bundle, tmp_path: Path) -> None:
    rows = station.store.heads.newest(limit=100)
    assert len(rows) > 3
    for row in rows:
        claim = proof_of(station, tmp_path, head=row.number)
        proved = check_proof(tmp_path / "proof.jsonl", confused)
        assert (claim.digest, proved.claim.digest) == (row.digest, row.digest)
        assert proved.released + sum(each.samples for each in proved.labelled) == row.samples
        assert sum(proved.classes.values()) == row.samples


def test_it_says_who_taught_what_and_where_the_release_is_from(
    station: Station, confused: Bundle, tmp_path: Path
) -> None:
    proof_of(station, tmp_path)
    proved = check_proof(tmp_path / "proof.jsonl", confused)
    assert [(each.device, each.operator, each.samples) for each in proved.labelled] == [
        ("line-1", "ann", 11),
        ("line-2", "bob", 8),
    ]
    assert proved.devices == ("line-1", "line-2")
    assert proved.link.bundle_sha256 == confused.digest()
    assert proved.made is None


@pytest.mark.parametrize("part", ["pit300", "pit301"])
def test_the_decision_is_made_again(station: Station, confused: Bundle, tmp_path: Path, part: str) -> None:
    claim = proof_of(station, tmp_path, part=part)
    made = check_proof(tmp_path / "proof.jsonl", confused).made
    assert made is not None
    assert made.again is not None
    assert claim.part is not None
    again = made.again
    assert again.decision == claim.part.decision
    assert again.probability == pytest.approx(claim.part.probability, abs=0.01)


def test_what_people_took_back_alone_is_proved_too(tmp_path: Path, clean: Bundle) -> None:
    """The head's live set is then that of no place in the log: that of the head before, less what was undone."""
    with station_at(tmp_path / "data", clean, None) as station:
        samples = label(station, range(200, 204))
        other = SimDevice("line-2")
        labels_of(clean, station, other, range(240, 270), right=False)
        from_elsewhere(station, other)
        undo(station, samples[:2])
        row = station.store.heads.last(clean.space(), [Outcome.CONFIRMED])
        assert row is not None
        assert is_alone(row)
        proof_of(station, tmp_path, head=row.number)
        proved = check_proof(tmp_path / "proof.jsonl", clean)
        assert proved.claim.entries > proved.claim.learned
        assert [each.samples for each in proved.labelled if each.device == "line-1"] == [6]


def test_a_quarantined_device_is_left_out_as_it_was(station: Station, confused: Bundle, tmp_path: Path) -> None:
    fleet = SimDevice(fleet_log_of("default"))
    fleet.write(Quarantine("line-2", "", 2**62, "wrong light", "eve"))
    records = fleet.log
    learner = station.require().learner
    learner.received(station.store.log.receive(records, station.store.log.position() + 1))
    learner.run_until_idle()
    proof_of(station, tmp_path)
    assert [each.device for each in check_proof(tmp_path / "proof.jsonl", confused).labelled] == ["line-1"]


# What does not hold


def tampered(file: Path, change: Callable[[Lines], Lines | None]) -> Path:
    lines: Lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lines = change(lines) or lines
    other = file.with_name("tampered.jsonl")
    other.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return other


def first(**members: object) -> Callable[[Lines], None]:
    return lambda lines: lines[0].update(members)


def of_part(**members: object) -> Callable[[Lines], None]:
    return lambda lines: lines[0]["part"].update(members)


def both(*changes: Callable[[Lines], None]) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        for each in changes:
            each(lines)

    return change


def relabelled(lines: Lines) -> None:
    row = next(row for row in lines[1:] if row["kind"] == "label" and row["body"]["class_id"])
    row["body"]["class_id"] = "00" * 16


def without_a_device(lines: Lines) -> Lines:
    kept = [row for row in lines if row.get("device") != "line-2" or "format" in row]
    kept[0]["entries"] = kept[0]["learned"] = len(kept) - 1
    return kept


def calibration(threshold: float) -> str:
    return msgspec.msgpack.encode(Calibration(10.0, threshold, classes=3)).hex()


CHANGES: dict[str, Callable[[Lines], Lines | None]] = {
    "another digest": first(digest="00" * 32),
    "more samples": first(samples=10_000),
    "another format": first(format="headway-proof-9"),
    "another space": first(space="11" * 32),
    "a key more": first(approved="by nobody"),
    "less was learned": lambda lines: lines[0].update(learned=lines[0]["learned"] - 1),
    "the last entry is gone": lambda lines: lines[:-1],
    "an entry is gone": lambda lines: lines[:3] + lines[4:],
    "the last entry is gone, and said so": lambda lines: [
        {**lines[0], "entries": len(lines) - 2, "learned": len(lines) - 2},
        *lines[1:-1],
    ],
    "a device's log is gone, and said so": without_a_device,
    "another class in an entry": relabelled,
    "no log": lambda lines: [{**lines[0], "entries": 0, "learned": 0}],
    "another novelty": of_part(novelty=0.95),
    "another probability": of_part(probability=0.2),
    "another decision": of_part(decision="good"),
    "another code": lambda lines: lines[0]["part"].update(code=lines[0]["part"]["code"][::-1]),
    "no code of that size": of_part(code="00"),
    "no code at all": of_part(code="zz"),
    "no calibration that is one": first(calibration="c1"),
    "none, so that another class may be shown": both(
        first(calibration=None), of_part(decision="good", probability=0.999)
    ),
    "a threshold that is no number": both(first(calibration=calibration(math.nan)), of_part(decision="unknown")),
    "a threshold below all": both(first(calibration=calibration(-1e9)), of_part(decision="unknown")),
    "a threshold below everything": lambda lines: lines[0].update(calibration=calibration(-math.inf)),
    "a name that no class has had": of_part(decision="passable"),
    "more learned than there is": lambda lines: lines[0].update(learned=lines[0]["entries"] + 1),
    "less than nothing learned": first(learned=-1),
    "more learned than can be": first(learned=2**63, entries=2**63),
    "a first line without an end": first(reason="x" * 2**21),
    "a head of a day after the part": lambda lines: lines[0].update(
        created_utc=lines[0]["part"]["captured_utc"] + 86_400
    ),
    "half a character for an operator": lambda lines: next(row for row in lines[1:] if row["kind"] == "label")[
        "body"
    ].update(operator="\ud800"),
    "an entry without an end": lambda lines: lines[1].update(code="00" * 2**20),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_is_found(station: Station, confused: Bundle, tmp_path: Path, what: str) -> None:
    proof_of(station, tmp_path, part="pit301")
    check_proof(tmp_path / "proof.jsonl", confused)  # the control
    with pytest.raises(HeadwayError):
        check_proof(tampered(tmp_path / "proof.jsonl", CHANGES[what]), confused)


# What no hash says: a log may be written anew


def write_log(file: Path, records: Iterable[Record], first_line: dict[str, Any] | None = None) -> Path:
    """Write records as an export has them, or a proof, each device's chain made anew where it does not hold."""
    chains: dict[str, Chain] = {}
    rows: Lines = [] if first_line is None else [first_line]
    for position, record in enumerate(records, 1):
        was = record.entry
        chain, entry = chains.get(was.device, Chain(was.device)).write(
            was.body, counter=was.counter, wall_time_us=was.wall_time_us
        )
        chains[was.device] = chain
        rows.append(row_of(position, Record(entry, record.code)))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def read_proof(file: Path) -> tuple[dict[str, Any], list[Record]]:
    first_line, *lines = file.read_text(encoding="utf-8").splitlines()
    return json.loads(first_line), list(checked_rows(lines, Checked(), first=2))


def rewritten(file: Path, change: Callable[[list[Record]], list[Record]]) -> Path:
    """Return a proof whose log was changed and written anew, hashes, counts and all."""
    claim, records = read_proof(file)
    changed = change(records)
    counts = {"entries": len(changed), "learned": claim["learned"] + len(changed) - len(records)}
    return write_log(file.with_name("rewritten.jsonl"), changed, {**claim, **counts})


def with_body(record: Record, **members: object) -> Record:
    body = replace(record.entry.body, **members)
    return replace(record, entry=replace(record.entry, body=body))


def labels_in(records: list[Record]) -> list[Record]:
    return [record for record in records if isinstance(record.entry.body, Label)]


def by_another(records: list[Record]) -> list[Record]:
    return [with_body(r, operator="mallory") if r in labels_in(records) else r for r in records]


def an_hour_earlier(records: list[Record]) -> list[Record]:
    return [replace(r, entry=replace(r.entry, wall_time_us=r.entry.wall_time_us - 3_600_000_000)) for r in records]


def without_what_was_overruled(records: list[Record]) -> list[Record]:
    said = labels_in(records)
    last = {r.entry.body.sample: r for r in said if isinstance(r.entry.body, Label)}
    return [r for r in records if r not in said or r in last.values()]


def with_a_label_withdrawn_again(records: list[Record]) -> list[Record]:
    last, counter = labels_in(records)[-1], max(r.entry.counter for r in records)
    said = with_body(last, sample=b"never seen".ljust(32), operator="eve")
    back = with_body(said, class_id=None)
    more = [
        replace(r, entry=replace(r.entry, counter=counter + i, device="line-1"))
        for i, r in enumerate((said, back), 1)
    ]
    return [*records, *more]


def of_another_device(records: list[Record]) -> list[Record]:
    return [
        replace(r, entry=replace(r.entry, device="line-9")) if r.entry.device == "line-1" else r for r in records
    ]


REWRITTEN: dict[str, Callable[[list[Record]], list[Record]]] = {
    "another operator": by_another,
    "another time": an_hour_earlier,
    "without what was overruled": without_what_was_overruled,
    "with a label that is withdrawn again": with_a_label_withdrawn_again,
    "of another device": of_another_device,
}


@pytest.mark.parametrize("what", REWRITTEN)
def test_a_log_that_was_written_anew_is_found_by_the_fleets(
    station: Station, confused: Bundle, tmp_path: Path, what: str
) -> None:
    proof_of(station, tmp_path)
    _, records = read_proof(tmp_path / "proof.jsonl")
    log = write_log(tmp_path / "log.jsonl", sorted(records, key=lambda r: (r.entry.device, r.entry.seq)))
    as_it_was = check_proof(tmp_path / "proof.jsonl", confused, log)  # the control
    assert [end.known for end in as_it_was.ends] == [end.entries for end in as_it_was.ends]
    forged = rewritten(tmp_path / "proof.jsonl", REWRITTEN[what])
    alone = check_proof(forged, confused)  # the digest covers none of it
    assert alone.claim.digest == as_it_was.claim.digest
    assert {end.hash for end in alone.ends} != {end.hash for end in as_it_was.ends}
    with pytest.raises(LabelError, match=r"log.jsonl: .* (is another one there|are to be compared)"):
        check_proof(forged, confused, log)


def test_a_device_that_wrote_none_of_its_log_is_pointed_out(
    station: Station, confused: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof_of(station, tmp_path)
    assert (
        "itself wrote none" not in headway(capsys, "proof", "check", tmp_path / "proof.jsonl", confused.path).out
    )
    forged = rewritten(tmp_path / "proof.jsonl", of_another_device)
    assert "line-1 itself wrote none of them" in headway(capsys, "proof", "check", forged, confused.path).out


def test_the_fleets_log_may_have_gone_on_but_not_be_behind(
    station: Station, confused: Bundle, tmp_path: Path
) -> None:
    proof_of(station, tmp_path)
    _, records = read_proof(tmp_path / "proof.jsonl")
    file, log = tmp_path / "proof.jsonl", tmp_path / "log.jsonl"
    write_log(log, with_a_label_withdrawn_again(records))
    ends = {end.device: (end.entries, end.known) for end in check_proof(file, confused, log).ends}
    entries = {device: sum(r.entry.device == device for r in records) for device in ("line-1", "line-2")}
    assert ends == {
        "line-1": (entries["line-1"], entries["line-1"] + 2),
        "line-2": (entries["line-2"], entries["line-2"]),
    }
    write_log(log, records[:-1])
    with pytest.raises(LabelError, match=r"of which \d+ are to be compared"):
        check_proof(file, confused, log)
    for content in (b"", b"\xff", b"{}", file.read_bytes()):
        log.write_bytes(content)
        with pytest.raises(LabelError, match=r"log.jsonl: |log.jsonl cannot"):
            check_proof(file, confused, log)


@pytest.mark.parametrize("comes_late", [False, True])
def test_a_label_has_the_date_of_the_entry_that_counts(
    station: Station, confused: Bundle, tmp_path: Path, comes_late: bool
) -> None:
    """A device that was away, and one that is quarantined, labelled the same pictures: whenever these come."""
    proof_of(station, tmp_path)
    claim, records = read_proof(tmp_path / "proof.jsonl")
    proved = check_proof(tmp_path / "proof.jsonl", confused)
    there = [r for r in records if r.entry.device == "line-1"]
    away = [
        replace(r, entry=replace(r.entry, device=device, counter=counter, wall_time_us=at_s * 1_000_000))
        for device, counter, at_s in (("line-3", 1, 1_000), ("line-4", 2**20, 2_000_000_000))
        for r in labels_in(there)
    ]
    held = Quarantine("line-4", "", 2**62, "wrong light", "eve")
    hold = Record(Entry(fleet_log_of("default"), 1, 2**21, 0, bytes(32), held))
    orders = [*away, *records, hold], [hold, *records, *away]
    file = write_log(
        tmp_path / "shuffled.jsonl",
        orders[comes_late],
        {**claim, "entries": len(orders[0]), "learned": claim["learned"] + len(away) + 1},
    )
    assert check_proof(file, confused).labelled == proved.labelled


def test_another_bundle_of_the_same_backbone_is_told_apart(
    station: Station, confused: Bundle, clean: Bundle, tmp_path: Path
) -> None:
    proof_of(station, tmp_path)
    with pytest.raises(LabelError):
        check_proof(tmp_path / "proof.jsonl", clean)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_of_the_log_goes_through(
    station: Station, confused: Bundle, tmp_path: Path, data: st.DataObject
) -> None:
    if not (tmp_path / "proof.jsonl").exists():
        proof_of(station, tmp_path)
    whole = (tmp_path / "proof.jsonl").read_bytes()
    begin = whole.index(b"\n") + 1
    at = data.draw(st.integers(begin, len(whole) - 2))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    changed = whole[:at] + bytes([value]) + whole[at + 1 :]
    (tmp_path / "changed.jsonl").write_bytes(changed)
    try:
        proved = check_proof(tmp_path / "changed.jsonl", confused)
    except LabelError:
        return
    assert said(changed) == said(whole), "something else was said, and taken"
    assert proved == check_proof(tmp_path / "proof.jsonl", confused)


def said(proof: bytes) -> object:
    """Return what the log of a proof says, however its JSON is written."""
    return [json.loads(line) for line in proof.splitlines()[1:]]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}", b"[]", b"\xff\xfe", b"{" * 100_000, b"null", b'{"format": 1}']
)
def test_what_is_no_proof_is_said_to_be_none(tmp_path: Path, clean: Bundle, content: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(LabelError) as caught:
        check_proof(tmp_path / "x.jsonl", clean)
    assert caught.value.hint == "Name a file of `headway proof make`."


def test_what_cannot_be_proved_is_said(station: Station, tmp_path: Path) -> None:
    for which, told in (
        ({"head": 999}, "there is no row of head 999"),
        ({"part": "nobody"}, "the history has no part 'nobody'"),
        ({"part": "pit300", "head": 2}, "head 1 decided part 'pit300', not 2"),
    ):
        with pytest.raises(ConfigError, match=told):
            proof_of(station, tmp_path, **which)
    with pytest.raises(ConfigError, match="No such file"):
        make_proof(station.store.folder, tmp_path / "missing" / "proof.jsonl")
    assert [file.name for file in tmp_path.iterdir() if "proof" in file.name] == []


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", per_class=40)
    (tmp_path / "site.toml").write_text(
        'device = "line-1"\ndata_dir = "data"\nbundle = "bundle"\n[camera]\nkind = "folder"\npath = "."\n'
    )
    with station_at(tmp_path / "data", bundle, None) as station:
        label(station, range(200, 202))
        inspect(station, "pit", 300)
        out = tmp_path / "4711.jsonl"
        made = headway(capsys, "proof", "make", tmp_path / "site.toml", "--part", "pit300", "--out", out)
    assert made.code == 0
    assert "4 log entries" not in made.err
    _, records = read_proof(out)
    end = f"line-1: 8, the last is {entry_hash(records[-1].entry).hex()}"
    assert end in made.out
    shown = headway(capsys, "proof", "check", out, tmp_path / "bundle")
    assert shown.code == 0
    assert end in shown.out
    assert "not compared: who labelled and when" in shown.out
    log = write_log(tmp_path / "log.jsonl", records)
    compared = headway(capsys, "proof", "check", out, tmp_path / "bundle", "--log", log)
    assert compared.code == 0
    assert "they are those of log.jsonl" in compared.out
    assert "not compared" not in compared.out
    assert shown.out.endswith("it holds\n")
    assert "line-1, ann: 4" in shown.out
    assert "made again: pit" in shown.out
    told = json.loads(headway(capsys, "proof", "check", out, tmp_path / "bundle", "--json").out)
    assert told["holds"] is True
    assert told["labelled"][0]["samples"] == 4
    tampered(out, first(samples=1)).replace(out)
    refused = headway(capsys, "proof", "check", out, tmp_path / "bundle")
    assert refused.code == 2
    assert "this is not what head" in refused.err


def test_what_a_proof_says_begins_no_line_of_its_own(
    station: Station, confused: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof_of(station, tmp_path, part="pit301")
    forged = tampered(tmp_path / "proof.jsonl", of_part(part="A\x1b[2J\nit holds", captured_utc=1e300))
    told = headway(capsys, "proof", "check", forged, confused.path)
    assert told.code == 0
    assert told.out.splitlines().count("it holds") == 1
    assert "part     A\\x1b[2J\\nit holds, at no time that there is" in told.out
    assert "\x1b" not in told.out


def test_a_class_may_have_been_renamed_since(station: Station, confused: Bundle, tmp_path: Path) -> None:
    learner = station.require().learner
    learner.rename_class(class_id("scratch"), "groove", "ann")
    learner.run_until_idle()
    inspect(station, "pit", 302)
    shown = set()
    for part in ("pit301", "pit302"):
        claim = proof_of(station, tmp_path, part=part)
        assert claim.part is not None
        shown.add(claim.part.decision)
        assert check_proof(tmp_path / "proof.jsonl", confused).holds
    assert shown == {"scratch", "groove"}  # what this release takes pits for


def test_a_class_may_have_its_name_from_an_earlier_release_alone(tmp_path: Path) -> None:
    """Neither bundle nor log has that name: it is taken as it is, where no other class has it."""
    before = tiny_bundle(tmp_path / "before")
    after = tiny_bundle(tmp_path / "after", id_of=other_id)
    with station_at(tmp_path / "data", before, None) as station:
        label(station, range(200, 220), ["good"])
    with station_at(tmp_path / "data", after, None) as station:
        inspect(station, "good", 200)
        claim = proof_of(station, tmp_path, part="good200")
        assert claim.part is not None
        assert claim.part.decision == f"good ({class_id('good').hex()[:6]})"
        assert check_proof(tmp_path / "proof.jsonl", after).holds
        for name in ("good", "pit"):
            changed = tampered(tmp_path / "proof.jsonl", of_part(decision=name))
            with pytest.raises(LabelError, match="does not decide part"):
                check_proof(changed, after)


@pytest.mark.parametrize("lost", ["the store", "the rows of its heads"])
def test_no_number_of_a_head_that_decided_is_given_again(
    tmp_path: Path, confused: Bundle, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    """A store that was moved away counts from 1, and a power cut takes the newest rows; the history is there."""
    images, data = tmp_path / "images", tmp_path / "data"
    images.mkdir()
    numbers: list[int | None] = []
    for turn in range(2):
        (images / f"part{turn}.png").write_bytes(picture("pit", 700 + turn))
        with Agent(site_of(images, confused.path)) as agent, running(agent):
            wait_for(lambda: agent.state().camera.state == "ended")
            wait_for(lambda: agent.state().frames == len([*images.iterdir()]))
        numbers = [row.head for row in read_history(data)]
        if lost == "the store":
            for file in data.glob("store.sqlite3*"):
                file.rename(tmp_path / f"{file.name}.{turn}")
        else:
            with closing(sqlite3.connect(data / "store.sqlite3", isolation_level=None)) as db:
                db.execute("DELETE FROM heads")
    assert numbers == [1, 2, 2]
    with Agent(site_of(images, confused.path)) as agent:
        head = agent.state().head
        assert head is not None
        assert head.number == 3
        with pytest.raises(ConfigError, match="there is no row of head 2"):
            make_proof(data, tmp_path / "x.jsonl", part="part0.png")


def test_an_unfinished_history_names_no_head(tmp_path: Path) -> None:
    assert greatest_head(tmp_path) == 0
    file = tmp_path / FOLDER_NAME / FILE_NAME
    file.parent.mkdir()
    file.touch()
    assert greatest_head(tmp_path) == 0
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreCorrupt):
        greatest_head(tmp_path)


def test_a_head_is_not_proved_to_have_decided_what_was_decided_before_it(
    station: Station, confused: Bundle, tmp_path: Path
) -> None:
    """As an earlier version could give a number again, after the store was begun anew."""
    proof_of(station, tmp_path, part="pit301")
    row = newest_of(station.store.folder, "pit301")
    assert row is not None
    with station.store._db.transaction() as db:
        decided = row.captured_utc + row.latency_ms / 1000
        db.execute("UPDATE heads SET created_utc = ? WHERE number = ?", (decided + 10.0, row.head))
    with pytest.raises(ConfigError, match=f"another head {row.head} decided part 'pit301'"):
        proof_of(station, tmp_path, part="pit301")
    proof_of(station, tmp_path, head=row.head)
    check_proof(tmp_path / "proof.jsonl", confused)  # of the head it still is one


def test_a_store_without_a_head_is_said_to_have_none(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data", "line-1"), pytest.raises(ConfigError, match="has had no head yet"):
        make_proof(tmp_path / "data", tmp_path / "proof.jsonl")
    with pytest.raises(ConfigError, match="there is no store"):
        make_proof(tmp_path / "nowhere", tmp_path / "proof.jsonl")
