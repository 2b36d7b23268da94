"""What a proof says of a part's decision: by whose word its class has its name, and what was not checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from device_agent.proof import check_proof
from device_agent.station import Station
from device_agent.trial import Base
from sdk.bundle import Bundle
from sdk.class_ids import CLASS_ID_BYTES
from sdk.errors import LabelError
from sdk.labels import Body, DefineClass, Label, MergeClasses, Quarantine, Record, RenameClass
from sdk.moments import Adaptation
from tests.commands import headway
from tests.test_person_undo import clean, confused, station_at
from tests.test_proof import first, inspect, of_part, proof_of, read_proof, station, tampered, write_log
from tests.tiny import class_id

__all__ = ["clean", "confused", "station"]  # fixtures

GOOD, PIT, SCRATCH = map(class_id, ("good", "pit", "scratch"))
SHOWN, OTHER = "scratch", "good"
"""What `pit301` was decided as, and a class that it is nothing like."""


def and_said(file: Path, *bodies: Body, learned: bool = False, **part: object) -> Path:
    """Return a proof with entries of its device written behind the others, hashes and counts to match."""
    claim, records = read_proof(file)
    last = next(record.entry for record in reversed(records) if record.entry.device == claim["device"])
    counter = max(record.entry.counter for record in records)
    more = [
        Record(msgspec.structs.replace(last, counter=counter + i, body=body)) for i, body in enumerate(bodies, 1)
    ]
    claim["part"].update(part)
    count = len(records) + len(more)
    claim.update(entries=count, learned=count if learned else claim["learned"])
    return write_log(file.with_name("said.jsonl"), [*records, *more], claim)


@pytest.fixture
def proof(station: Station, tmp_path: Path) -> Path:
    """The proof of a part that was decided as `SHOWN`."""
    claim = proof_of(station, tmp_path, part="pit301")
    assert claim.part is not None
    assert claim.part.decision == SHOWN
    return tmp_path / "proof.jsonl"


def fleets_log(file: Path) -> Path:
    _, records = read_proof(file)
    return write_log(file.with_name("log.jsonl"), records)


# A decision's name


TAKEN: dict[str, tuple[Body, ...]] = {
    "the bundle's": (RenameClass(SCRATCH, OTHER, "bob"),),
    "the bundle's, written otherwise": (RenameClass(SCRATCH, "Good ", "bob"),),
    "one that people gave": (RenameClass(GOOD, "fine", "bob"), RenameClass(SCRATCH, "fine", "bob")),
    "defined anew": (DefineClass(SCRATCH, OTHER, "bob"),),
    "given to a class that was named so later": (
        RenameClass(GOOD, "fine", "bob"),
        RenameClass(GOOD, OTHER, "bob"),
        RenameClass(SCRATCH, OTHER, "bob"),
    ),
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("what", TAKEN)
def test_no_entry_gives_a_decision_the_name_that_another_class_has(
    proof: Path, confused: Bundle, what: str, learned: bool
) -> None:
    """Names are not in the digest: written behind the log, a rename would turn a defect into what passes."""
    last = TAKEN[what][-1]
    assert isinstance(last, RenameClass | DefineClass)
    forged = and_said(proof, *TAKEN[what], learned=learned, decision=last.name, verdict="pass")
    with pytest.raises(LabelError, match="as which another class went when entry"):
        check_proof(forged, confused)


DOUBTED: dict[str, tuple[str, tuple[Body, ...]]] = {
    "by a merge": (OTHER, (MergeClasses(SCRATCH, GOOD, "bob"),)),
    "by a merge and a rename": (OTHER, (MergeClasses(SCRATCH, GOOD, "bob"), RenameClass(SCRATCH, OTHER, "bob"))),
    "in exchange": (OTHER, (RenameClass(GOOD, "fine", "bob"), RenameClass(SCRATCH, OTHER, "bob"))),
    "after a source that is held back": (
        "fine",
        (RenameClass(GOOD, "fine", "bob"), RenameClass(SCRATCH, "fine", "bob")),
    ),
}


@pytest.mark.parametrize("what", DOUBTED)
def test_a_name_that_was_another_class_s_counts_by_the_fleets_log_alone(
    proof: Path, confused: Bundle, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """People may have said so, and whoever holds the file may have written so."""
    name, bodies = DOUBTED[what]
    forged = and_said(proof, *bodies, decision=name)
    if what == "after a source that is held back":
        claim, records = read_proof(forged)
        held = Quarantine("line-1", "", 2**62, "wrong light", "eve")
        entry = msgspec.structs.replace(
            records[-1].entry, device="headway-fleet-default", counter=2**20, body=held
        )
        claim["entries"] += 1
        write_log(forged, [*records, Record(entry)], claim)
    alone = check_proof(forged, confused)
    assert alone.made is not None
    assert alone.made.again is not None
    assert (alone.holds, alone.made.again.decision) == (False, SHOWN)
    told = headway(capsys, "proof", "check", forged, confused.path)
    assert told.code == 3
    assert "the log holds; the decision was not checked: " in told.out
    assert "it holds" not in told.out
    compared = check_proof(forged, confused, fleets_log(forged))
    assert compared.holds
    assert compared.made is not None
    assert compared.made.named is not None
    assert (compared.made.named.operator, compared.made.named.bundle) == ("bob", SHOWN)


def test_who_gave_a_decision_its_name_is_told(
    proof: Path, confused: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that no other class has had says nothing wrong of the part: it is told whose it is."""
    forged = and_said(proof, RenameClass(SCRATCH, "groove", "bob"), decision="groove")
    told = headway(capsys, "proof", "check", forged, confused.path)
    assert told.code == 0
    assert "made again: scratch" in told.out
    assert "groove: so called by entry" in told.out
    assert "of line-1, bob, 20" in told.out
    assert "the bundle calls it scratch; the word of this file" in told.out
    said = json.loads(headway(capsys, "proof", "check", forged, confused.path, "--json").out)
    assert {key: said["named"][key] for key in ("name", "bundle", "device", "operator", "merged")} == {
        "name": "groove",
        "bundle": "scratch",
        "device": "line-1",
        "operator": "bob",
        "merged": False,
    }
    assert (
        "the word of this file\n"
        not in headway(capsys, "proof", "check", forged, confused.path, "--log", fleets_log(forged)).out
    )


def test_the_name_that_a_merge_leaves_may_be_given_again(proof: Path, confused: Bundle) -> None:
    """Made one with another class, a class goes by that one's name; a station takes its own for a third one."""
    forged = and_said(
        proof, MergeClasses(GOOD, PIT, "bob"), RenameClass(PIT, "pit", "bob"), RenameClass(SCRATCH, OTHER, "bob")
    )
    claim, records = read_proof(forged)
    claim["part"]["decision"] = OTHER
    made = check_proof(write_log(forged, records, claim), confused).made
    assert made is not None
    assert made.unchecked.startswith("another class has been called 'good' too")


def test_what_a_station_s_own_people_merge_is_proved(station: Station, confused: Bundle, tmp_path: Path) -> None:
    """Its head has learned the merge: the digest has it, so both names are the class's."""
    learner = station.require().learner
    learner.merge_classes(SCRATCH, PIT, "ann", name="damage")
    learner.run_until_idle()
    inspect(station, "pit", 302)
    for part, shown in (("pit301", SHOWN), ("pit302", "damage")):
        claim = proof_of(station, tmp_path, part=part)
        assert claim.part is not None
        assert claim.part.decision == shown
        assert check_proof(tmp_path / "proof.jsonl", confused).holds


def test_two_classes_of_one_name_are_told_apart(proof: Path, confused: Bundle) -> None:
    """As two releases may have them; said by name alone, one of them would hide the other."""
    twin = bytes(CLASS_ID_BYTES)
    claim, records = read_proof(proof)
    label = next(body for record in records if isinstance(body := record.entry.body, Label))
    records += [
        Record(msgspec.structs.replace(records[0].entry, counter=2**20 + i, body=body))
        for i, body in enumerate((DefineClass(twin, OTHER, "bob"), msgspec.structs.replace(label, class_id=twin)))
    ]
    claim, records = read_proof(write_log(proof, records, claim))
    fold = Base.of(confused, None).fold
    for record in records:
        fold.apply(record)
    live, count = fold.live_set(), len(records)
    claim.update(part=None, entries=count, learned=count, digest=live.digest, samples=len(live))
    classes = check_proof(write_log(proof, records, claim), confused).classes
    assert {each for each in classes if each.startswith(OTHER)} == {f"good {GOOD.hex()[:6]}", "good 000000"}
    assert sum(classes.values()) == len(live)


# What was not checked


CODELESS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no code": lambda part: part.update(code=None),
    "neither code nor picture": lambda part: part.update(code=None, sample=""),
    "and another decision": lambda part: part.update(code=None, decision=OTHER, verdict="pass"),
}


@pytest.mark.parametrize("what", CODELESS)
def test_a_decision_that_was_not_made_again_is_not_said_to_hold(
    proof: Path, confused: Bundle, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    codeless = tampered(proof, lambda lines: CODELESS[what](lines[0]["part"]))
    told = headway(capsys, "proof", "check", codeless, confused.path)
    assert told.code == 3
    assert told.out.endswith("the log holds; the decision was not checked: the part's code is not in the file\n")
    ended = headway(capsys, "proof", "check", codeless, confused.path, "--json")
    said = json.loads(ended.out)
    assert (ended.code, said["holds"], said["decision_checked"], said["again"]) == (3, False, False, None)
    assert said["unchecked"] == "the part's code is not in the file"


def test_a_code_counts_whatever_the_picture_is_said_to_be(proof: Path, confused: Bundle) -> None:
    with pytest.raises(LabelError, match="does not decide part"):
        check_proof(tampered(proof, of_part(sample="", decision=OTHER)), confused)


def test_it_says_what_is_the_devices_word(
    proof: Path, station: Station, confused: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = headway(capsys, "proof", "check", proof, confused.path)
    assert "its id, code, time, verdict and reason, and how sure its head is, are the device's word" in told.out
    said = json.loads(headway(capsys, "proof", "check", proof, confused.path, "--json").out)
    assert (said["holds"], said["decision_checked"], said["adapted"], said["unadapted"]) == (
        True,
        True,
        None,
        None,
    )
    proof_of(station, tmp_path)
    of_a_head = json.loads(headway(capsys, "proof", "check", proof, confused.path, "--json").out)
    assert (of_a_head["holds"], of_a_head["decision_checked"], of_a_head["again"]) == (True, None, None)


def test_a_shift_that_makes_a_decision_is_told_with_what_it_would_be_without(
    tmp_path: Path, clean: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """How a station counts its own samples is its word: with a shift made up a scratch becomes what passes."""
    with station_at(tmp_path / "data", clean, None) as station:
        codes = {}
        for name in ("scratch", OTHER):
            inspect(station, name, 300)
            proof_of(station, tmp_path, part=f"{name}300")
            codes[name] = json.loads((tmp_path / "proof.jsonl").open().readline())["part"]
        proof_of(station, tmp_path, part="scratch300")
    of, wanted = (np.frombuffer(bytes.fromhex(codes[name]["code"]), np.int8) for name in ("scratch", OTHER))
    shift = tuple(map(int, of.astype(np.int64) - wanted))
    assert codes["scratch"]["decision"] == "scratch"
    forged = tampered(
        tmp_path / "proof.jsonl",
        lambda lines: (
            first(adaptation=msgspec.msgpack.encode(Adaptation(1, shift)).hex())(lines),
            of_part(**{key: codes[OTHER][key] for key in ("decision", "probability", "novelty")})(lines),
        )[0],
    )
    told = headway(capsys, "proof", "check", forged, clean.path)
    assert f"made again: {OTHER}" in told.out
    assert "an own sample counts once, and " in told.out
    assert "with own samples as all others: scratch" in told.out


def test_an_adaptation_that_is_none_is_refused_of_a_head_too(
    proof: Path, station: Station, confused: Bundle, tmp_path: Path
) -> None:
    proof_of(station, tmp_path)
    with pytest.raises(LabelError, match="first line is damaged"):
        check_proof(tampered(proof, first(adaptation="c1")), confused)
