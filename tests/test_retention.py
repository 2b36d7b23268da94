"""How a policy takes codes out of a fleet's union: whole samples at a time, whenever it is cut short."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.agent import Agent
from device_agent.config import MqttTable
from sdk.bundle import Bundle
from sdk.fleet.broker import Mosquitto
from sdk.fleet.precision import with_precision_first
from sdk.fleet.retention import AT_ONCE, DAY_S, Policy, believable, due, erase
from sdk.fleet.store import FleetStore
from sdk.images import sample_id
from sdk.labels import MAX_COUNTER, CodeRecord, Label, Quarantine
from sdk.wire import DeviceState, UpdateState
from tests.builders import class_id_of, make_bundle
from tests.commands import headway
from tests.simulators import SimDevice, wait_for
from tests.test_agent import COUNT, fleet_of, images, running, site_of
from tests.tiny import class_id, two_precisions

__all__ = ["images"]

LATER = 4e9
"""After every code of a test has come."""
EVERYTHING = Policy(0.0, live_too=True)
SCRATCH = class_id_of("scratch")
LABELS = AT_ONCE + 44
"""In two feature spaces: more than three transactions take."""
LONG = 10_000
"""Others' codes, and as many that say they are erased: seconds to read, where a small release takes one."""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Return two releases, each with a feature space of its own."""
    folder = tmp_path_factory.mktemp("releases")
    return [make_bundle(folder / f"r{i}", backbone=f"seed-{i}") for i in range(2)]


def sample_of(number: int) -> bytes:
    return hashlib.sha256(f"sample {number}".encode()).digest()


def say(line: SimDevice, bundle: Bundle, number: int) -> None:
    size = bundle.precision().feature_size
    code = np.random.default_rng(number).integers(-127, 128, size, np.int8).tobytes()
    space, digest = bytes.fromhex(bundle.space()), hashlib.sha256(code).digest()
    line.write(CodeRecord(space, sample_of(number), f"{line.device}/{number}", digest), code)


def label(line: SimDevice, bundle: Bundle, number: int) -> None:
    say(line, bundle, number)
    line.write(Label(sample_of(number), SCRATCH, "ann"))


def tell(fleet: FleetStore, line: SimDevice) -> None:
    with fleet.write() as ledger:
        ledger.take(line.device, line.log, {})


@pytest.fixture
def line() -> SimDevice:
    return SimDevice("line-1")


@pytest.fixture
def fleet(fleet_dir: Path, releases: list[Bundle], line: SimDevice) -> Iterator[FleetStore]:
    """A fleet whose line labelled under a release that was left and is back."""
    with FleetStore(fleet_dir) as store:
        store.publish(releases[0], channel="default")
        for number in range(LABELS):
            label(line, releases[0], number)
        for number in range(LABELS):
            say(line, releases[1], number)
        with store.write() as ledger:
            ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
        tell(store, line)
        yield store


def left(fleet: FleetStore) -> dict[bytes, int]:
    """Return in how many feature spaces each sample has a code."""
    with fleet.read() as ledger:
        codes = ledger.codes_left("default")
    counts = dict.fromkeys((sample for _, sample in codes), 0)
    for (_, sample), there in codes.items():
        counts[sample] += there
    return counts


class Killed(Exception):
    """The process ends here."""


def kill_after_a_transaction(fleet: FleetStore) -> None:
    def killed(_seconds: float) -> None:
        raise Killed

    fleet.on_commit = killed


def test_killed_between_two_transactions_no_sample_keeps_a_code_in_one_space(fleet: FleetStore) -> None:
    """Its device would take the code that is left for a reason to say the other one anew."""
    found = due(fleet, "default", EVERYTHING, LATER)
    assert len(found.what) == 2 * LABELS
    kill_after_a_transaction(fleet)
    with pytest.raises(Killed):
        erase(fleet, found)
    fleet.on_commit = lambda _seconds: None
    counts = left(fleet)
    assert set(counts.values()) == {0, 2}
    erase(fleet, due(fleet, "default", EVERYTHING, LATER))
    assert set(left(fleet).values()) == {0}


def test_of_each_sample_the_code_that_counts_is_erased_last(fleet: FleetStore, releases: list[Bundle]) -> None:
    """A page of the union may end between the two: what serves has its code till nothing is left."""
    erase(fleet, due(fleet, "default", EVERYTHING, LATER))
    with fleet.read() as ledger:
        said = [r.entry.body for r in ledger.own("default")]
    spaces = [body.space.hex() for body in said if isinstance(body, CodeRecord)]
    samples = [body.sample for body in said if isinstance(body, CodeRecord)]
    assert spaces == [releases[1].space(), releases[0].space()] * LABELS
    assert samples[::2] == samples[1::2]


def fleet_that_heard_at(folder: Path, releases: list[Bundle], line: SimDevice, *heard_utc: float) -> Path:
    """Make a fleet whose clock stood so when the code and label of each sample came, one after the other."""
    for number in range(len(heard_utc)):
        label(line, releases[0], number)
    with FleetStore(folder) as store:
        store.publish(releases[0], channel="default")
        with store.write() as ledger:
            ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
        tell(store, line)
    with contextlib.closing(sqlite3.connect(folder / "fleet.db")) as raw, raw:
        for number, utc in enumerate(heard_utc):
            positions = (2 * number + 1, 2 * number + 2)
            raw.execute("UPDATE entries SET received_utc = ? WHERE position IN (?, ?)", (utc, *positions))
    return folder


@pytest.mark.parametrize(
    ("years", "erased", "ahead"),
    [
        ((0, 0, -6, 0), set(), 0),
        ((-2, 0, -6, 0), {0}, 0),
        ((-2, 9, 0, 0), {0}, 2),
        ((-2, 0, 0, 9), {0}, 2),
        ((-2, 9, -2, 0), {0, 1, 2}, 2),
        ((9, 9, 9, 9), set(), 8),
    ],
    ids=[
        "was behind",
        "was behind, one is old",
        "was ahead",
        "ahead to the end",
        "was ahead, long ago",
        "is behind",
    ],
)
def test_a_clock_that_was_wrong_makes_no_code_old(
    tmp_path: Path,
    releases: list[Bundle],
    line: SimDevice,
    capsys: pytest.CaptureFixture[str],
    years: tuple[int, ...],
    erased: set[int],
    ahead: int,
) -> None:
    heard = [time.time() + year * 366 * DAY_S - 60.0 for year in years]
    folder = fleet_that_heard_at(tmp_path / "fleet", releases, line, *heard)
    asked = ("fleet", "retention", "--dir", folder, "--older-than", 365, "--live-too", "--json")
    ended = headway(capsys, *asked)
    assert json.loads(ended.out)["ahead"] == ahead
    assert ("this machine's clock is behind, or was ahead" in ended.err) is (ahead > 0)
    with FleetStore(folder) as fleet:
        gone = {sample for sample, there in left(fleet).items() if not there}
    assert gone == {sample_of(number) for number in erased}
    assert json.loads(headway(capsys, *asked[:5], 0, *asked[6:]).out)["samples"] == len(years) - len(erased)


def test_a_code_that_counts_stays_as_long_as_a_younger_one_does(
    tmp_path: Path, releases: list[Bundle], line: SimDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its device would say it anew at once, and it would be young again."""
    now_utc = time.time()
    folder = fleet_that_heard_at(tmp_path / "fleet", releases, line, *[now_utc - 400 * DAY_S] * 3)
    with FleetStore(folder) as fleet:
        say(line, releases[1], 0)
        tell(fleet, line)
        found = due(fleet, "default", Policy(365 * DAY_S, live_too=True), now_utc)
        assert {each.body.sample for each in found.what} == {sample_of(1), sample_of(2)}
        assert found.younger == 1
        in_a_year = due(fleet, "default", Policy(365 * DAY_S, live_too=True), now_utc + 366 * DAY_S)
        assert (len(in_a_year.what), in_a_year.younger) == (4, 0)
    said = headway(capsys, "fleet", "retention", "--dir", folder, "--older-than", 365, "--live-too").out
    assert "erased codes of 2 samples" in said
    assert "1 sample counts on until a younger code" in said


@given(st.lists(st.floats(0, 100)))
def test_a_believable_time_is_in_order_and_no_younger_than_now(came_utc: list[float]) -> None:
    now_utc = 50.0
    times = believable(came_utc, now_utc)
    assert times == sorted(times)
    assert all(said > now_utc or said <= time for said, time in zip(came_utc, times, strict=True))
    assert all(time <= now_utc for time in times)
    assert believable(sorted(said for said in came_utc if said <= now_utc), now_utc) == sorted(
        said for said in came_utc if said <= now_utc
    )


def test_what_is_labelled_while_codes_are_erased_keeps_them(
    fleet: FleetStore, releases: list[Bundle], line: SimDevice
) -> None:
    """One before the first transaction, one of those that come last after it; a quarantine changes neither."""
    found = due(fleet, "default", EVERYTHING, LATER)
    line.write(Label(sample_of(0), SCRATCH, "ben"))
    tell(fleet, line)

    def meanwhile(_seconds: float) -> None:
        fleet.on_commit = lambda _seconds: None
        label(line, releases[0], LABELS - 1)
        tell(fleet, line)
        with fleet.write() as ledger:
            ledger.decide("default", [Quarantine("line-1", "eve", MAX_COUNTER, "said nothing yet", "ann")])

    fleet.on_commit = meanwhile
    erased = erase(fleet, found)
    kept = {sample_of(0), sample_of(LABELS - 1)}
    assert {sample for sample, there in left(fleet).items() if there} == erased.kept == kept
    live = fleet.live_set("default")
    assert live is not None
    assert kept <= set(live.samples)
    assert len({each.body.sample for each in erased.what}) == LABELS - 2


def test_who_began_is_noted_before_a_code_is_erased(fleet: FleetStore) -> None:
    """Killed while it waits for its first transaction; what the line says is all that anybody can know later."""
    note = fleet.directory / "retention.jsonl"
    command = [sys.executable, "-m", "sdk.cli", "fleet", "retention", "--dir", str(fleet.directory)]
    asked = [*command, "--older-than", "0", "--live-too", "--by", "ann"]
    with fleet.write(), subprocess.Popen(asked, stdout=subprocess.DEVNULL) as running_command:
        try:
            wait_for(lambda: note.is_file() and note.read_bytes().endswith(b"\n"), what="the line")
        finally:
            running_command.kill()
    (line,) = map(json.loads, note.read_text().splitlines())
    assert (line["by"], line["state"], line["live_too"], line["samples"]) == ("ann", "begun", True, LABELS)
    assert set(left(fleet).values()) == {2}


def test_nothing_is_erased_that_cannot_be_noted(fleet: FleetStore, capsys: pytest.CaptureFixture[str]) -> None:
    (fleet.directory / "retention.jsonl").mkdir()
    ended = headway(capsys, "fleet", "retention", "--dir", fleet.directory, "--older-than", 0, "--live-too")
    assert (ended.code, "Nothing is erased" in ended.err) == (2, True)
    assert set(left(fleet).values()) == {2}


@pytest.mark.broker
def test_a_device_says_nothing_again_of_a_policy_that_was_cut_short(
    images: Path, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """A real device, service and broker. Its labels have codes in two precisions, many others between."""
    bundle = two_precisions(tmp_path / "both")
    site = site_of(images, None, loop=True, rate_fps=50.0, mqtt=MqttTable(host="127.0.0.1", port=mosquitto.port))
    own = {sample_id((images / f"{i}.png").read_bytes()) for i in range(1, COUNT, 2)}
    with fleet_of(tmp_path / "fleet", mosquitto) as fleet, Agent(site) as agent, running(agent):

        def serves(precision: str, labels: int) -> bool:
            with fleet.read() as ledger:
                whole = agent.store.log.position("default") == ledger.log_length("default")
            state = agent.state()
            there = state.release is not None and state.release.precision == precision
            done = state.update is not None and state.update.state == UpdateState.COMMITTED.value
            return whole and there and done and state.own_labels == labels and state.outbox == 0

        def move(precision: str, labels: int) -> None:
            with fleet.read() as ledger:
                current = ledger.current("default")
            assert current is not None
            fleet.publish(
                with_precision_first(fleet, current, precision, tmp_path / f"{precision}-{current.id}"),
                channel="default",
            )
            wait_for(lambda: serves(precision, labels), what=f"{labels} labels at {precision}")

        fleet.publish(bundle, channel="default")
        wait_for(lambda: agent.state().frames > COUNT, what="frames")
        for sample in own:
            agent.station.label(sample, class_id("pit"), "ann")
        wait_for(lambda: serves("fp32", len(own)), what="labels")
        with fleet.write() as ledger:
            ledger.note_state(DeviceState(device="line-2", channel="default", online=True), seen_utc=1.0)
        line = SimDevice("line-2")
        for number in range(LABELS):
            say(line, bundle, number)
        tell(fleet, line)
        move("int8", len(own))
        move("fp32", len(own))
        with FleetStore(tmp_path / "fleet") as by_command:
            found = due(by_command, "default", EVERYTHING, LATER)
            kill_after_a_transaction(by_command)
            with pytest.raises(Killed):
                erase(by_command, found)
        wait_for(lambda: serves("fp32", 0), what="the agent to hear of it")
        move("int8", 0)
        codes = left(fleet)
        assert {codes[sample] for sample in own} == {0}


@pytest.mark.broker
def test_a_device_that_was_off_meanwhile_brings_nothing_back_with_its_next_release(
    images: Path, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """A real device, service and broker. It has the release long before it has read the union."""
    bundle = two_precisions(tmp_path / "both")
    site = site_of(images, None, loop=True, rate_fps=50.0, mqtt=MqttTable(host="127.0.0.1", port=mosquitto.port))
    own = {sample_id((images / f"{i}.png").read_bytes()) for i in range(1, COUNT, 2)}
    with fleet_of(tmp_path / "fleet", mosquitto) as fleet:

        def serves(agent: Agent, precision: str, labels: int) -> bool:
            with fleet.read() as ledger:
                whole = agent.store.log.position("default") == ledger.log_length("default")
            state = agent.state()
            there = state.release is not None and state.release.precision == precision
            done = state.update is not None and state.update.state == UpdateState.COMMITTED.value
            return whole and there and done and state.own_labels == labels and state.outbox == 0

        with Agent(site) as agent, running(agent):
            fleet.publish(bundle, channel="default")
            wait_for(lambda: agent.state().frames > COUNT, what="frames")
            for sample in own:
                agent.station.label(sample, class_id("pit"), "ann")
            wait_for(lambda: serves(agent, "fp32", len(own)), what="labels")
        with fleet.write() as ledger:
            ledger.note_state(DeviceState(device="line-2", channel="default", online=True), seen_utc=1.0)
        line = SimDevice("line-2")
        for number in range(LONG):
            say(line, bundle, number)
        tell(fleet, line)
        with FleetStore(tmp_path / "fleet") as by_command:
            erase(by_command, due(by_command, "default", EVERYTHING, LATER))
        with fleet.read() as ledger:
            current = ledger.current("default")
        assert current is not None
        fleet.publish(with_precision_first(fleet, current, "int8", tmp_path / "int8"), channel="default")
        with Agent(site) as agent, running(agent):
            wait_for(lambda: serves(agent, "int8", 0), 150.0, what="the other precision")
        codes = left(fleet)
        assert {codes[sample] for sample in own} == {0}
