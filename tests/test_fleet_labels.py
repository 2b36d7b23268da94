"""The whole label log for others to keep and check, and codes that are not kept: events stay, the chain holds."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.errors import LabelError
from sdk.fleet.labellog import log_rows
from sdk.fleet.retention import DAY_S, Policy, due, erase
from sdk.fleet.store import FleetStore
from sdk.labels import (
    MAX_COUNTER,
    CodeRecord,
    DefineClass,
    KeepApart,
    Label,
    MergeClasses,
    Quarantine,
    Record,
    RenameClass,
    fleet_log_of,
)
from sdk.logrows import COLUMNS, Checked, cell, check_rows
from sdk.wire import DeviceState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.commands import headway
from tests.simulators import SimDevice

PIT, STAIN = class_id_of("pit"), class_id_of("stain")
NAMED = "=cmd|' /C calc'!A0"
LATER = 4e9
"""After every code of a test has come."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return [make_bundle(folder / name, backbone=name) for name in ("first", "second")]


def sample_of(number: int) -> bytes:
    return hashlib.sha256(picture("pit", number)).digest()


def label(line: SimDevice, bundle: Bundle, number: int, class_id: bytes | None = PIT) -> None:
    code = code_of(bundle, picture("pit", number)).tobytes()
    digest = hashlib.sha256(code).digest()
    group = f"{line.device}/{number}"
    line.write(CodeRecord(bytes.fromhex(bundle.space()), sample_of(number), group, digest), code)
    line.write(Label(sample_of(number), class_id, "ann"))


@pytest.fixture
def line(bundles: list[Bundle]) -> SimDevice:
    """A line that has labelled five pictures, withdrawn one, and labelled one with an earlier release."""
    line = SimDevice("line-1")
    line.write(DefineClass(PIT, NAMED, "ann"))
    line.write(DefineClass(STAIN, "stain", "ann"))
    line.write(RenameClass(STAIN, "Fleck, groß", "ann"))
    for number in range(5):
        label(line, bundles[0], number)
    line.write(Label(sample_of(4), None, "ann"))
    label(line, bundles[1], 9)
    return line


@pytest.fixture
def fleet(fleet_dir: Path, bundles: list[Bundle], line: SimDevice) -> Iterator[FleetStore]:
    with FleetStore(fleet_dir) as store:
        store.publish(bundles[0], channel="default")
        with store.write() as ledger:
            ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
            ledger.take("line-1", line.log, {})
            ledger.decide(
                "default",
                [
                    KeepApart(PIT, STAIN, "bob"),
                    MergeClasses(PIT, STAIN, "bob"),
                    Quarantine("line-2", "ann", MAX_COUNTER, "flipped, all", "bob"),
                    Quarantine("line-2", "ann", 0, "", "bob"),
                ],
            )
        yield store


def exported(capsys: pytest.CaptureFixture[str], fleet: FleetStore, out: Path, *more: str) -> dict[str, object]:
    ended = headway(capsys, "fleet", "labels", "export", "--dir", fleet.directory, "--out", out, "--json", *more)
    assert ended.code == 0, ended.err
    found: dict[str, object] = json.loads(ended.out)
    return found


def records_of(store: FleetStore) -> list[Record]:
    with store.read() as ledger:
        return ledger.records("default", 1)


# Export


def test_every_entry_is_exported_and_checks_again_without_the_fleet(
    fleet: FleetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "log.jsonl"
    told = exported(capsys, fleet, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["position"] for row in rows] == list(range(1, len(records_of(fleet)) + 1))
    assert {row["kind"] for row in rows} == {"define", "rename", "code", "label", "apart", "merge", "quarantine"}
    assert (told["entries"], told["codes"], told["chain"]) == (len(rows), 6, "holds")
    checked = json.loads(headway(capsys, "fleet", "labels", "check", out, "--json").out)
    assert checked["logs"] == told["logs"]
    told = exported(capsys, fleet, out, "--no-codes")
    assert (told["codes"], told["codeless"]) == (0, 6)
    assert json.loads(headway(capsys, "fleet", "labels", "check", out, "--json").out)["codes"] == 0


def test_a_table_for_people_computes_nothing(
    fleet: FleetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "log.csv"
    exported(capsys, fleet, out)
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(COLUMNS)
    assert rows[0]["body_name"] == "'" + NAMED
    assert rows[2]["body_name"] == "Fleck, groß"
    held = [row for row in rows if row["kind"] == "quarantine"]
    assert [(row["device"][:14], row["body_device"]) for row in held] == [("headway-fleet-", "line-2")] * 2


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\tx", "\rx"])
def test_what_a_spreadsheet_would_compute_is_text(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert (cell(None), cell(3), cell("plain")) == ("", 3, "plain")


def numbered(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{**row, "position": number} for number, row in enumerate(rows, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:4] + rows[5:], "line 5 says that its position is 6"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "line 1 says that its position is 2"),
        (lambda rows: numbered(rows[:4] + rows[5:]), "line 5: entry 6 of line-1 does not follow 4"),
        (lambda rows: rows[1:], "line 1 says that its position is 2"),
        (lambda rows: [row for row in rows if row["device"] != "line-1"], "line 1 says that its position is "),
        (lambda _rows: [], "there is no entry in it"),
        (lambda rows: [{**rows[0], "utc": "2020-01-01T00:00:00.000+00:00"}, *rows[1:]], "line 1: 'utc' is not"),
        (lambda rows: [*rows[:-1], {**rows[-1], "position": 9999}], "says that its position is 9999"),
        (lambda rows: [{**rows[0], "position": True}, *rows[1:]], "line 1: 'position' is not"),
        (lambda rows: [{**rows[0], "seq": 1.0}, *rows[1:]], "line 1"),
        (lambda rows: [{**rows[0], "approved_by": "eve"}, *rows[1:]], "line 1: 'approved_by' is not"),
        (lambda rows: [{k: v for k, v in rows[0].items() if k != "utc"}, *rows[1:]], "line 1: 'utc' is not"),
        (lambda rows: [*rows[:3], {**rows[3], "code": rows[3]["code"].upper()}, *rows[4:]], "line 4: 'code' is"),
        (lambda rows: [{**rows[0], "seq": 2}, *rows[1:]], "does not have the hash"),
        (
            lambda rows: [{**rows[0], "body": {**rows[0]["body"], "name": "x"}}, *rows[1:]],
            "does not have the hash",
        ),
        (lambda rows: [{**rows[0], "body": {**rows[0]["body"], "operator": "eve"}}, *rows[1:]], "the hash"),
        (lambda rows: [{**rows[0], "wall_time_us": 1}, *rows[1:]], "does not have the hash"),
        (lambda rows: [*rows[:3], {**rows[3], "code": "00" * 32}, *rows[4:]], "does not match its digest"),
        (lambda rows: [{**rows[0], "kind": "nothing"}, *rows[1:]], "line 1 is no entry"),
        (lambda rows: [{**rows[0], "body": {}}, *rows[1:]], "line 1 is no entry"),
        (lambda rows: [{"position": 1}, *rows[1:]], "line 1 is no entry"),
        (lambda rows: [*rows, []], "is no entry"),
        (lambda rows: [{**rows[0], "device": "\ud800"}, *rows[1:]], "line 1 is no entry"),
        (lambda rows: [{**rows[0], "body": {**rows[0]["body"], "operator": "\udc00"}}, *rows[1:]], "is no entry"),
        (lambda rows: [{**rows[0], "\ud800": 1}, *rows[1:]], "is not what its entry says"),
    ],
)
def test_an_export_that_was_changed_is_found_out(
    fleet: FleetStore,
    change: object,
    message: str,
) -> None:
    rows = list(log_rows(fleet, "default", Checked()))
    changed = change(rows)  # type: ignore[operator]
    with pytest.raises(LabelError, match=message) as caught:
        check_rows([json.dumps(row) for row in changed], Checked())
    assert not re.search("enrol|Send", caught.value.hint), "who holds a file has no device to see to"


def test_a_member_that_is_there_twice_is_found_out(fleet: FleetStore) -> None:
    """Of two, each reader takes the one it likes."""
    lines = [json.dumps(row) for row in log_rows(fleet, "default", Checked())]
    twice = '{"utc": "2020-01-01T00:00:00.000+00:00", ' + lines[0][1:]
    with pytest.raises(LabelError, match="line 1 is no entry"):
        check_rows([twice, *lines[1:]], Checked())


def test_what_no_hash_covers_is_printed_to_be_compared(
    fleet: FleetStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "log.jsonl"
    whole = headway(capsys, "fleet", "labels", "export", "--dir", fleet.directory, "--out", out).out
    assert headway(capsys, "fleet", "labels", "check", out).out == whole
    counts = {line.split()[0]: line.split()[1] for line in whole.splitlines()[1:]}
    assert counts == {"line-1": "16", fleet_log_of("default"): "4"}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    rows = [{**row, "code": None} if row["position"] == 4 else row for row in rows]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows[:-4]))  # the fleet's own log, too
    left = headway(capsys, "fleet", "labels", "check", out)
    assert left.code == 0
    assert "16 entries of 1 log, 5 with their codes and 1 whose code was erased or left out" in left.out


@given(st.text())
def test_any_line_is_an_entry_or_refused(line: str) -> None:
    with pytest.raises(LabelError):
        check_rows([line], Checked())


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("DELETE FROM entries WHERE seq = 16", "were acknowledged"),
        ("DELETE FROM entries WHERE seq = 3", "position 3 of the union: entry 4 of line-1 does not follow 2"),
        ("DELETE FROM entries; DELETE FROM devices", "the union has 0 entries of 16"),
    ],
    ids=["last", "middle", "whole"],
)
def test_a_log_that_was_changed_in_the_database_is_not_exported(
    tmp_path: Path, line: SimDevice, capsys: pytest.CaptureFixture[str], cut: str, message: str
) -> None:
    import sqlite3

    directory, out = tmp_path / "fleet", tmp_path / "log.jsonl"
    with FleetStore(directory) as store, store.write() as ledger:
        ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
        ledger.take("line-1", line.log, {})
    with sqlite3.connect(directory / "fleet.db") as raw:
        raw.executescript(cut)
    ended = headway(capsys, "fleet", "labels", "export", "--dir", directory, "--out", out)
    assert ended.code == 2
    assert message in ended.err
    assert "restore it from a backup" in ended.err
    assert not list(tmp_path.glob("*log*"))  # no half file either


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--out", "log.xlsx"), "neither in .jsonl nor in .csv"),
        (("--out", "log.csv", "--channel", "other"), "there is no channel other"),
        (("--out", "nowhere/log.csv"), "No such file"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    fleet: FleetStore,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    more: tuple[str, ...],
    message: str,
) -> None:
    args = (more[0], tmp_path / more[1], *more[2:])
    ended = headway(capsys, "fleet", "labels", "export", "--dir", fleet.directory, *args)
    assert (ended.code, message in ended.err) == (2, True), ended.err


# Retention


def test_only_what_nothing_rests_on_goes_and_the_live_set_stays(
    fleet: FleetStore, bundles: list[Bundle], line: SimDevice
) -> None:
    before = fleet.live_set("default")
    assert before is not None
    found = due(fleet, "default", Policy(DAY_S), LATER)
    assert {each.body.sample for each in found.what} == {
        sample_of(4),
        sample_of(9),
    }  # withdrawn, and of no release in use
    assert not any(each.live for each in found.what)
    assert erase(fleet, found).codes == 2
    after = fleet.live_set("default")
    assert after is not None
    assert after.digest == before.digest
    held = {r.entry.seq: r.code for r in records_of(fleet) if r.entry.device == "line-1"}
    gone = [r.entry.seq for r in line.log if r.code is not None and held[r.entry.seq] is None]
    assert len(gone) == 2
    assert [r.entry for r in records_of(fleet)][: len(line.log)] == [r.entry for r in line.log]
    assert list(log_rows(fleet, "default", Checked()))  # every chain holds
    assert due(fleet, "default", Policy(DAY_S), LATER).what == []


def test_live_ones_go_when_the_policy_says_so_and_every_device_follows(
    fleet: FleetStore, bundles: list[Bundle], tmp_path: Path
) -> None:
    union = records_of(fleet)
    found = due(fleet, "default", Policy(DAY_S, live_too=True), LATER)
    assert sum(each.live for each in found.what) == 4
    erase(fleet, found)
    live = fleet.live_set("default")
    assert live is not None
    assert len(live) == len(bundles[0].base().codes)
    everything = records_of(fleet)
    old, new = (Store.open(tmp_path / name, "line-9", limits=StoreLimits()) for name in ("old", "new"))
    for store, first in ((old, union), (new, everything)):
        store.log.receive(first, len(first), "default")  # the one had the codes before
        store.log.receive(everything[len(first) :], len(everything), "default")
        learner = Learner(bundles[0], None, store)
        assert learner.status().live_set_digest == live.digest
        store.close()


def test_younger_codes_and_those_of_a_quarantined_line_stay(fleet: FleetStore) -> None:
    now_utc = LATER
    assert due(fleet, "default", Policy(now_utc, live_too=True), now_utc).what == []
    with fleet.write() as ledger:
        ledger.decide("default", [Quarantine("line-1", "", MAX_COUNTER, "flipped", "ann")])
    what = due(fleet, "default", Policy(DAY_S), LATER).what
    assert {each.body.sample for each in what} == {sample_of(9)}  # of no release in use; the others may come back


def test_by_command_first_dry_then_in_earnest_with_who_and_when(
    fleet: FleetStore, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("fleet", "retention", "--dir", fleet.directory, "--older-than", 0, "--by", "ann", "--json")
    before = records_of(fleet)
    dry = json.loads(headway(capsys, *asked, "--dry-run").out)
    assert (dry["samples"], dry["erased"], records_of(fleet) == before) == (2, 0, True)
    assert not (fleet.directory / "retention.jsonl").exists()
    done = json.loads(headway(capsys, *asked).out)
    assert (done["erased"], done["live_samples"]) == (2, 0)
    begun, noted = map(json.loads, (fleet.directory / "retention.jsonl").read_text().splitlines())
    assert (begun["by"], begun["state"], begun["samples"], begun["erased"]) == ("ann", "begun", 2, 0)
    assert (noted["by"], noted["state"], noted["erased"]) == ("ann", "done", 2)
    assert json.loads(headway(capsys, *asked).out)["samples"] == 0


@pytest.mark.parametrize("more", [("--older-than", "-1"), ("--older-than", "a year"), ()])
def test_a_policy_that_is_none_is_refused(
    fleet: FleetStore, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    before = records_of(fleet)
    assert headway(capsys, "fleet", "retention", "--dir", fleet.directory, *more).code == 2
    assert records_of(fleet) == before
