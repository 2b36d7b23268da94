"""A device that labels wrongly: found at the union, quarantined, undone on every device, and released again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.errors import LabelError
from sdk.fleet.core import FleetCore
from sdk.fleet.page.app import make_app
from sdk.fleet.page.view import FleetView
from sdk.fleet.store import FleetStore
from sdk.fleet.suspicion import MIN_LABELS, find_suspects
from sdk.labels import (
    MAX_COUNTER,
    Chain,
    CodeRecord,
    Fold,
    KeepApart,
    Label,
    Quarantine,
    Record,
    fleet_log_of,
)
from sdk.liveset import LiveSet
from sdk.moments import Moments
from sdk.mqtt import Message
from sdk.wire import DeviceState, LogSegment, decode_msgpack
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.commands import headway
from tests.cost import lines_run
from tests.simulators import TOPICS, SimDevice, digest_of
from tests.test_fleet_service import Fleet, fleet_of, only

NAMES = ("good", "scratch", "pit")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "first", NAMES)


class Line:
    """A device that labels pictures of a bundle's classes, each of its own part."""

    def __init__(self, bundle: Bundle, device: str) -> None:
        self.bundle = bundle
        self.device = SimDevice(device)

    def label(self, name: str, number: int, said: str | None = None, operator: str = "ann") -> None:
        image = picture(name, number)
        code, sample = code_of(self.bundle, image).tobytes(), hashlib.sha256(image).digest()
        group, digest = f"{self.device.device}/{number}", hashlib.sha256(code).digest()
        self.device.write(CodeRecord(bytes.fromhex(self.bundle.space()), sample, group, digest), code)
        self.device.write(Label(sample, class_id_of(said or name), operator))


def poisoned_union(bundle: Bundle, *, lines: int = 10, labels: int = 15) -> list[Line]:
    """Ten lines, of which line-3 says of every part what it is not."""
    found = []
    for line in range(lines):
        one = Line(bundle, f"line-{line}")
        for number in range(labels):
            name = NAMES[number % len(NAMES)]
            wrong = NAMES[(number + 1) % len(NAMES)] if line == 3 else None
            one.label(name, 10_000 + 1000 * line + number, wrong)
        found.append(one)
    return found


@pytest.fixture
def fleet(fleet_dir: Path, bundle: Bundle) -> Iterator[FleetStore]:
    """The service's store after all ten lines have labelled."""
    with FleetStore(fleet_dir) as store:
        store.publish(bundle, channel="default")
        with store.write() as ledger:
            for line in poisoned_union(bundle):
                name = line.device.device
                ledger.note_state(DeviceState(device=name, channel="default", online=True), seen_utc=1.0)
                assert ledger.take(name, line.device.log, {}).verdict.refused is None
        yield store


def folded(bundle: Bundle, records: Sequence[Record]) -> Fold:
    base, entry = bundle.base(), bundle.precision()
    fold = Fold(entry.space, entry.feature_size)
    fold.add_base(base.samples, base.class_ids, base.groups, base.codes, bundle.class_names())
    for record in records:
        fold.apply(record)
    return fold


def moments_of(fold: Fold) -> str:
    moments, live = Moments(fold.feature_size), fold.live_set()
    moments.add(live.codes, live.class_ids)
    return moments.digest()


def records_of(store: FleetStore) -> list[Record]:
    with store.read() as ledger:
        found: list[Record] = []
        while page := ledger.records("default", len(found) + 1):
            found += page
        return found


# Found


def drawn(seed: int, flips: dict[tuple[str, str], float]) -> tuple[LiveSet, list[str]]:
    """Return a union of ten devices with two operators each: drawn codes of three classes, and the true ones."""
    rng = np.random.default_rng(seed)
    d, per_operator = 24, 30
    centres = rng.normal(0, 40, (3, d))
    sources = [("release", "")] * 4 + [(f"line-{i}", operator) for i in range(10) for operator in ("ann", "bob")]
    rows = []
    for device, operator in sources:
        for number in range(per_operator):
            truth = int(rng.integers(3))
            wrong = rng.random() < flips.get((device, operator), 0.0)
            code = np.clip(np.rint(centres[truth] + rng.normal(0, 25, d)), -127, 127).astype(np.int8)
            said = (truth + 1 + int(rng.integers(2))) % 3 if wrong else truth
            rows.append((device, operator, f"{device}-{operator}-{number}", said, truth, code))
    live = LiveSet(
        space="00" * 32,
        samples=tuple(i.to_bytes(32, "big") for i in range(len(rows))),
        class_ids=tuple(bytes([row[3]]) * 16 for row in rows),
        groups=tuple(row[2] for row in rows),
        devices=tuple(row[0] for row in rows),
        operators=tuple(row[1] for row in rows),
        codes=np.array([row[5] for row in rows], np.int8),
        digest="",
    )
    return live, [str(row[4]) for row in rows]


def test_names_with_few_labels_each_cost_no_look_each() -> None:
    """They could not be judged, and a device may write as many as it likes."""

    def cost(per_name: int) -> int:
        live, _ = drawn(0, {})
        operators = tuple(f"op-{i // per_name}" for i in range(len(live.samples)))
        return lines_run(lambda: find_suspects(replace(live, operators=operators)))

    cost(300)  # what is made once is made now
    assert cost(MIN_LABELS - 1) < 1.5 * cost(300)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ({}, []),
        ({("line-3", "ann"): 1.0, ("line-3", "bob"): 1.0}, [("line-3", "")]),
        ({("line-3", "bob"): 1.0}, [("line-3", "bob")]),
        (
            {("line-3", "ann"): 1.0, ("line-3", "bob"): 1.0, ("line-7", "ann"): 1.0, ("line-7", "bob"): 1.0},
            [("line-3", ""), ("line-7", "")],
        ),
    ],
    ids=["nobody", "device", "operator", "two devices"],
)
def test_who_labels_against_all_others_is_found_and_nobody_else(
    flips: dict[tuple[str, str], float], expected: list[tuple[str, str]], seed: int
) -> None:
    live, _ = drawn(seed, flips)
    assert sorted((each.device, each.operator) for each in find_suspects(live)) == expected


def test_an_operator_who_is_wrong_in_a_fifth_is_the_only_one_who_may_be_suspected() -> None:
    """Thirty labels do not always show it beyond doubt; they never show it of another."""
    found = [find_suspects(drawn(seed, {("line-3", "bob"): 0.2})[0]) for seed in range(4)]
    assert {(each.device, each.operator) for some in found for each in some} <= {("line-3", "bob"), ("line-3", "")}


def test_a_kind_of_defect_that_one_line_alone_knows_is_not_suspect() -> None:
    live, _ = drawn(0, {})
    own = tuple(b"\x09" * 16 if d == "line-3" else c for c, d in zip(live.class_ids, live.devices, strict=True))
    alone = LiveSet(**{**live.__dict__, "class_ids": own})
    assert find_suspects(alone) == []


def test_what_the_others_lose_is_told(fleet: FleetStore) -> None:
    learned = fleet.learned("default")
    assert learned is not None
    (found,) = find_suspects(learned.live, fleet.summed_moments("default", learned.live))
    assert (found.device, found.labels, found.agreement) == ("line-3", 15, 0.0)
    assert found.others > 0.9


# Quarantined


def test_the_fleet_is_bit_for_bit_as_if_the_device_had_never_been(fleet: FleetStore, bundle: Bundle) -> None:
    before = records_of(fleet)
    with fleet.write() as ledger:
        ledger.decide("default", [Quarantine("line-3", "", MAX_COUNTER, "flipped", "ann")])
    never = folded(bundle, [record for record in before if record.entry.device != "line-3"])
    learned = fleet.learned("default")
    assert learned is not None
    assert learned.live.digest == never.digest()
    assert moments_of(folded(bundle, records_of(fleet))) == moments_of(never)
    assert records_of(fleet)[: len(before)] == before  # nothing was deleted
    assert find_suspects(learned.live) == []


def test_devices_follow_and_are_told_why(fleet: FleetStore, bundle: Bundle, tmp_path: Path) -> None:
    with Store.open(tmp_path / "data", "line-3", limits=StoreLimits()) as store:
        learner = Learner(bundle, None, store)
        union = records_of(fleet)
        store.log.receive(union, len(union), "default")
        learner.received(union)
        learner.run_until_idle()
        assert learner.status().own_labels == 15
        with fleet.write() as ledger:
            told = ledger.decide("default", [Quarantine("line-3", "", MAX_COUNTER, "camera upside down", "ann")])
        store.log.receive(told, len(union) + 1, "default")
        learner.received(told)
        learner.run_until_idle()
        never = folded(bundle, [record for record in union if record.entry.device != "line-3"])
        assert learner.moments_digest() == moments_of(never)
        status = learner.status()
        assert (status.live_set_digest, status.own_labels) == (never.digest(), 0)
        assert "camera upside down" in status.quarantine
        learner.stop()


def test_labels_that_the_fleet_holds_back_are_not_told_as_lost(
    fleet: FleetStore, bundle: Bundle, tmp_path: Path
) -> None:
    """A rollout would halt for them, though no release did it."""
    with Store.open(tmp_path / "data", "line-3", limits=StoreLimits()) as store:
        learner = Learner(bundle, None, store)

        def hears() -> None:
            union = records_of(fleet)
            store.log.receive(union, len(union), "default")
            learner.received(union)

        def decides(through: int) -> None:
            with fleet.write() as ledger:
                ledger.decide("default", [Quarantine("line-3", "", through, "camera upside down", "ann")])
            hears()

        hears()
        learner.run_until_idle()
        assert learner.status().kept_labels == 15
        decides(MAX_COUNTER)
        learner.run_until_idle()
        assert learner.status().kept_labels is None
        decides(0)
        learner.digest()  # folded, and not learned
        assert (learner.status().quarantine, learner.status().kept_labels) == ("", None)
        learner.run_until_idle()
        assert learner.status().kept_labels == 15
        learner.stop()


def test_a_running_service_shares_what_a_command_decided(fleet_dir: Path, bundle: Bundle) -> None:
    fleet = fleet_of(fleet_dir, "a", "b")
    fleet.store.publish(bundle, channel="default")
    fleet.devices[0].label(1)
    fleet.devices[1].label(2)
    fleet.run(fleet.in_sync)
    with FleetStore(fleet_dir) as command, command.write() as ledger:
        ledger.decide("default", [Quarantine("a", "", MAX_COUNTER, "flipped", "ann")])
    fleet.run(lambda: all(len(device.union) == 7 for device in fleet.devices))
    never = digest_of(fleet.devices[1].log)
    assert {device.digest() for device in fleet.devices} == {never}
    fleet.devices[0].label(3)
    fleet.run(lambda: all(len(device.union) == 9 for device in fleet.devices))
    assert {device.digest() for device in fleet.devices} == {never}
    assert fleet.devices[0].outbox == 0  # kept and acknowledged
    assert not any(device.refusals for device in fleet.devices)


def test_what_was_decided_while_the_service_was_down_is_fetched_after_its_start(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a", "b")
    fleet.devices[0].label(1)
    fleet.run(fleet.in_sync)
    fleet.store.close()
    with FleetStore(fleet_dir) as command, command.write() as ledger:
        ledger.decide("default", [Quarantine("a", "", MAX_COUNTER, "flipped", "ann")])
    fleet.start_service()
    fleet.connect_all()
    fleet.run(lambda: all(len(device.union) == 4 for device in fleet.devices))
    assert {device.digest() for device in fleet.devices} == {digest_of([])}


def test_the_fleets_own_log_is_no_device(fleet: FleetStore) -> None:
    with fleet.write() as ledger:
        ledger.decide("default", [KeepApart(class_id_of("pit"), class_id_of("scratch"), "ann")])
    with fleet.read() as ledger:
        assert all(device.device.startswith("line-") for device in ledger.devices())
        assert [entry.seq for entry in ledger.decisions("default")] == [1]


@pytest.mark.parametrize("kind", ["state", "label"])
def test_a_device_with_the_services_own_name_is_refused(fleet_dir: Path, kind: str) -> None:
    reports: list[str] = []
    name = fleet_log_of("default")
    with FleetStore(fleet_dir) as store:
        core = FleetCore(store, TOPICS, ("default",), lambda what, _more: reports.append(what))
        device = SimDevice(name)
        device.label(1)
        payload = device.state().payload if kind == "state" else device.batches()[0].payload
        topic = TOPICS.state(name) if kind == "state" else TOPICS.up_label(name)
        core.turn([Message(topic, payload)], now=0.0, now_utc=0.0, room_bytes=1)
        with store.read() as ledger:
            assert ledger.device(name) is None
    assert reports == ["bad_message"]


def test_a_quarantine_in_a_devices_own_log_is_refused(fleet_dir: Path) -> None:
    fleet = fleet_of(fleet_dir, "a", "b")
    fleet.devices[0].write(Quarantine("b", "", MAX_COUNTER, "I say so", "eve"))
    fleet.run(lambda: bool(fleet.devices[0].refusals))
    assert "a device cannot quarantine" in fleet.devices[0].refusals[0]
    assert fleet.stored() == []


def test_a_device_refuses_a_quarantine_that_is_none(tmp_path: Path) -> None:
    _, entry = Chain("line-2").write(Quarantine("line-1", "", MAX_COUNTER, "", "eve"), counter=1, wall_time_us=0)
    with Store.open(tmp_path / "data", "line-1", limits=StoreLimits()) as store:
        with pytest.raises(LabelError, match="a device cannot quarantine"):
            store.log.receive([Record(entry)], 1, "default")
        assert store.log.position("default") == 0


# By command


def test_by_command_found_quarantined_shown_and_released(
    fleet: FleetStore, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--dir", fleet.directory)
    plain = fleet.live_set("default")
    found = json.loads(headway(capsys, "fleet", "suspects", *where, "--json").out)
    assert [each["device"] for each in found["suspects"]] == ["line-3"]
    assert "headway fleet quarantine line-3" in headway(capsys, "fleet", "suspects", *where).out
    page = TestClient(make_app(FleetView(fleet)), base_url="http://127.0.0.1")
    assert "line-3: a head without it agrees with 0% of 15 labels" in page.get("/suspects/default").text
    asked = ("fleet", "quarantine", "line-3", *where, "--reason", "flipped", "--by", "ann")
    done = json.loads(headway(capsys, *asked, "--json").out)
    never = folded(bundle, [record for record in records_of(fleet) if record.entry.device != "line-3"])
    assert done["live_set_digest"] == never.digest()
    assert "line-3, by ann: flipped" in headway(capsys, "fleet", "devices", *where).out
    log = headway(capsys, "fleet", "log", *where, "--last", 1, "--json").out
    assert json.loads(log)["body"]["reason"] == "flipped"
    assert "line-3: quarantined: line-3, by ann: flipped" in page.get("/").text
    assert "headway fleet release line-3" in page.get("/suspects/default").text
    assert page.get("/api/suspects/default").json()["suspects"] == []
    again = headway(capsys, *asked)
    assert (again.code, "is quarantined already, by ann" in again.err) == (2, True)
    released = json.loads(headway(capsys, "fleet", "release", "line-3", *where, "--json").out)
    assert plain is not None
    assert released["live_set_digest"] == plain.digest
    assert json.loads(headway(capsys, "fleet", "suspects", *where, "--json").out)["quarantined"] == []


def test_one_operator_only_and_from_now_on(fleet: FleetStore, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--dir", fleet.directory, "--operator", "ann")
    before = fleet.live_set("default")
    headway(capsys, "fleet", "quarantine", "line-3", *where, "--reason", "flipped")
    held = fleet.live_set("default")
    done = json.loads(headway(capsys, "fleet", "release", "line-3", *where, "--from-now", "--json").out)
    assert before is not None
    assert held is not None
    assert (len(before) - len(held), done["live_samples"], done["through"]) == (15, len(held), 30)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("quarantine", "line-99", "--reason", "x"), "there is no device line-99"),
        (("quarantine", "line-3", "--reason", "x" * 201), "takes 200 letters"),
        (("quarantine", "line-3", "--reason", "x", "--by", "b" * 65), "over 64 letters"),
        (("release", "line-3"), "line-3 is not quarantined"),
        (("suspects", "--channel", "other"), "channel other has no release"),
    ],
)
def test_what_cannot_be_decided_is_refused(
    fleet: FleetStore, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    before = len(records_of(fleet))
    ended = headway(capsys, "fleet", *args, "--dir", fleet.directory)
    assert (ended.code, message in ended.err) == (2, True), ended.err
    assert len(records_of(fleet)) == before


def test_a_segment_with_a_quarantine_is_read_back(fleet_dir: Path) -> None:
    fleet: Fleet = fleet_of(fleet_dir, "a")
    with fleet.store.write() as ledger:
        records = ledger.decide("default", [Quarantine("a", "ann", 7, "flipped", "bob")])
    fleet.broker.now += 1.0
    segments = only(fleet.turn(), TOPICS.log("default"))
    assert decode_msgpack(segments[0], LogSegment).records == records
