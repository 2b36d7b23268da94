"""A channel goes back to an earlier release or precision after a retention: what was learned is there again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.agent import Agent
from device_agent.config import MqttTable
from sdk.bundle import MANIFEST_NAME, Bundle
from sdk.errors import FleetError
from sdk.fleet.broker import Mosquitto
from sdk.fleet.lost_chunks import put_back
from sdk.fleet.precision import with_precision_first
from sdk.fleet.retention import Missing, Policy, due, erase, missing
from sdk.fleet.rollout import Plan
from sdk.fleet.store import FleetStore
from sdk.images import sample_id
from sdk.labels import MAX_COUNTER, CodeRecord, Label, Quarantine
from sdk.release import describe
from sdk.wire import DeviceState, UpdateState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.commands import headway
from tests.simulators import SimDevice, wait_for
from tests.test_agent import COUNT, fleet_of, images, running, site_of
from tests.tiny import class_id, two_precisions

__all__ = ["images"]

LATER = 4e9
"""After every code of a test has come."""
ALL = Policy(0.0)
GOOD, SCRATCH = class_id_of("good"), class_id_of("scratch")
BROUGHT = 1000
"""The first of the pictures that each release brings itself, labelled by a line too."""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Return five releases, each with a feature space of its own."""
    folder = tmp_path_factory.mktemp("releases")
    return [make_bundle(folder / f"r{i}", backbone=f"seed-{i}") for i in range(5)]


def sample_of(number: int) -> bytes:
    return hashlib.sha256(picture("good", number)).digest()


def say(line: SimDevice, bundle: Bundle, number: int) -> None:
    code = code_of(bundle, picture("good", number)).tobytes()
    space, digest = bytes.fromhex(bundle.space()), hashlib.sha256(code).digest()
    line.write(CodeRecord(space, sample_of(number), f"line-1/{number}", digest), code)


@pytest.fixture
def line(releases: list[Bundle]) -> SimDevice:
    """A line that has labelled three pictures under the first release, and one that every release brings."""
    line = SimDevice("line-1")
    for number in (0, 1, 2, BROUGHT):
        say(line, releases[0], number)
        line.write(Label(sample_of(number), SCRATCH, "ann"))
    return line


@pytest.fixture
def fleet(fleet_dir: Path, releases: list[Bundle], line: SimDevice) -> Iterator[FleetStore]:
    with FleetStore(fleet_dir) as store:
        store.publish(releases[0], channel="default")
        with store.write() as ledger:
            ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
            ledger.take("line-1", line.log, {})
        yield store


def follow(fleet: FleetStore, line: SimDevice, bundle: Bundle) -> None:
    """Let the line say its labels' codes in a release's feature space, as after a move."""
    with fleet.write() as ledger:
        for number in (0, 1, 2, BROUGHT):
            say(line, bundle, number)
        ledger.take("line-1", line.log, {})


def coded(fleet: FleetStore, space: str) -> set[bytes]:
    """Return the samples whose last code record in a feature space has its code."""
    with fleet.read() as ledger:
        return {
            sample for (at, sample), left in ledger.codes_left("default").items() if left and at.hex() == space
        }


def erased_as_before(fleet: FleetStore, space: str) -> int:
    """Erase what a space has, base samples too and however lately it was in use, as versions before did."""
    found: dict[int, CodeRecord] = {}
    with fleet.write() as ledger:
        position = 1
        while page := ledger.records("default", position):
            for at, record in enumerate(page, position):
                body = record.entry.body
                if isinstance(body, CodeRecord) and body.space.hex() == space and record.code is not None:
                    found[at] = body
            position += len(page)
        ledger.decide("default", [*found.values()])
        return ledger.erase_codes("default", [*found])


def live_samples(fleet: FleetStore) -> int:
    live = fleet.live_set("default")
    assert live is not None
    return len(live)


# -- what a policy leaves


def test_the_releases_that_one_may_go_back_to_keep_their_codes(fleet: FleetStore, releases: list[Bundle]) -> None:
    for release in releases[1:3]:
        fleet.publish(release, channel="default")
        assert due(fleet, "default", ALL, LATER).what == []
    fleet.publish(releases[3], channel="default")
    assert {each.body.sample for each in due(fleet, "default", ALL, LATER).what} == {
        sample_of(n) for n in range(3)
    }


def test_a_rollout_that_may_be_resumed_keeps_its_codes(
    fleet: FleetStore, line: SimDevice, releases: list[Bundle]
) -> None:
    for release in releases[1:4]:
        fleet.publish(release, channel="default")
    fleet.publish(releases[4], channel="default", plan=Plan(waves=["100%"]))
    follow(fleet, line, releases[4])
    with fleet.write() as ledger:
        ledger.halt("default", "it was to be")
    assert {each.body.space.hex() for each in due(fleet, "default", ALL, LATER).what} == {releases[0].space()}


def test_rollouts_that_came_to_nothing_push_no_release_out(fleet: FleetStore, releases: list[Bundle]) -> None:
    fleet.publish(releases[1], channel="default")
    for release in releases[2:5]:
        fleet.publish(release, channel="default", plan=Plan(waves=["100%"]))
        with fleet.write() as ledger:
            ledger.halt("default", "it was to be")
    assert due(fleet, "default", ALL, LATER).what == []


def test_what_a_release_brings_stays_unless_all_that_counts_goes(
    fleet: FleetStore, releases: list[Bundle]
) -> None:
    """Its code is in the bundle. Erased here, the release would know one sample less than it brings."""
    for release in releases[1:4]:
        fleet.publish(release, channel="default")
    assert sample_of(BROUGHT) not in {each.body.sample for each in due(fleet, "default", ALL, LATER).what}
    everything = due(fleet, "default", Policy(0.0, live_too=True), LATER)
    assert sample_of(BROUGHT) in {each.body.sample for each in everything.what}


def test_a_release_that_comes_back_meanwhile_keeps_its_codes(fleet: FleetStore, releases: list[Bundle]) -> None:
    for release in releases[1:4]:
        fleet.publish(release, channel="default")
    found = due(fleet, "default", ALL, LATER)
    fleet.publish(releases[0], channel="default")
    assert erase(fleet, found).codes == 0
    assert len(coded(fleet, releases[0].space())) == 4


def test_a_quarantine_that_comes_meanwhile_keeps_what_it_may_bring_back(
    fleet: FleetStore, line: SimDevice
) -> None:
    """Who took the label back does not count any more, so the label does."""
    line.write(Label(sample_of(0), None, "ann"))
    with fleet.write() as ledger:
        ledger.take("line-1", line.log, {})
    found = due(fleet, "default", ALL, LATER)
    assert {each.body.sample for each in found.what} == {sample_of(0)}
    with fleet.write() as ledger:
        ledger.decide("default", [Quarantine("line-1", "ann", MAX_COUNTER, "took labels back", "ben")])
    assert erase(fleet, found).codes == 0


def test_what_going_back_would_lack_is_said(
    fleet: FleetStore, releases: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    for release in releases[1:4]:
        fleet.publish(release, channel="default")
    assert missing(fleet, "default", due(fleet, "default", ALL, LATER).what) == [Missing("r0", "fp32", 3)]
    asked = ("fleet", "retention", "--dir", fleet.directory, "--older-than", 0)
    said = headway(capsys, *asked, "--dry-run").out
    assert "3 of these are labelled, with codes of r0 (fp32): should the channel go back to it" in said
    told = json.loads(headway(capsys, *asked, "--json").out)
    assert told["going_back"] == [{"release": "r0", "precision": "fp32", "samples": 3}]


def test_a_label_that_was_taken_back_keeps_a_code_in_no_space(
    fleet: FleetStore, line: SimDevice, releases: list[Bundle]
) -> None:
    """A picture that shows a person was deleted: its code is not kept for going back to a release."""
    fleet.publish(releases[1], channel="default")
    follow(fleet, line, releases[1])
    line.write(Label(sample_of(0), None, "ann"))
    with fleet.write() as ledger:
        ledger.take("line-1", line.log, {})
    gone = {(each.body.space.hex(), each.body.sample) for each in due(fleet, "default", ALL, LATER).what}
    assert gone == {(release.space(), sample_of(0)) for release in releases[:2]}


# -- what the fleet says again itself


def test_what_a_release_brings_counts_again_where_a_version_before_erased_it(
    fleet: FleetStore, line: SimDevice, releases: list[Bundle]
) -> None:
    brought = len(releases[0].base().codes)
    assert live_samples(fleet) == brought + 3
    fleet.publish(releases[1], channel="default")
    follow(fleet, line, releases[1])
    assert erased_as_before(fleet, releases[0].space()) == 4
    fleet.publish(releases[0], channel="default")
    assert coded(fleet, releases[0].space()) == {sample_of(BROUGHT)}
    assert live_samples(fleet) == brought
    follow(fleet, line, releases[0])
    assert live_samples(fleet) == brought + 3


def test_a_service_that_starts_gives_back_what_a_release_brings(
    fleet: FleetStore, line: SimDevice, releases: list[Bundle]
) -> None:
    """The channel went back before this version came."""
    follow(fleet, line, releases[1])
    erased_as_before(fleet, releases[0].space())
    assert live_samples(fleet) == len(releases[0].base().codes) - 1
    with fleet.serving():
        assert live_samples(fleet) == len(releases[0].base().codes)
    with fleet.read() as ledger:
        length = ledger.log_length("default")
    with fleet.serving(), fleet.read() as ledger:
        assert ledger.log_length("default") == length  # once


def test_what_was_erased_for_good_is_not_given_back(fleet: FleetStore, releases: list[Bundle]) -> None:
    erase(fleet, due(fleet, "default", Policy(0.0, live_too=True), LATER))
    fleet.publish(releases[0], channel="default")
    with fleet.serving():
        assert coded(fleet, releases[0].space()) == set()
        assert live_samples(fleet) == len(releases[0].base().codes) - 1


def test_what_was_erased_for_good_no_other_release_brings_back(fleet: FleetStore, releases: list[Bundle]) -> None:
    """Other releases of the channel bring the sample too, with features in which no line has said its code."""
    for release in (releases[1], releases[0]):
        fleet.publish(release, channel="default")
    erase(fleet, due(fleet, "default", Policy(0.0, live_too=True), LATER))
    brought = len(releases[0].base().codes)
    for release in (releases[0], releases[1], releases[0]):
        fleet.publish(release, channel="default")
        with fleet.serving():
            assert coded(fleet, release.space()) == set()
            assert live_samples(fleet) == brought - 1
    assert due(fleet, "default", Policy(0.0, live_too=True), LATER).what == []


def test_nor_does_another_precision_of_the_release(fleet_dir: Path, tmp_path: Path) -> None:
    bundle, line = two_precisions(tmp_path / "both"), SimDevice("line-1")
    base = bundle.base()
    brought, code = base.samples[0], base.codes[0].tobytes()
    line.write(CodeRecord(bytes.fromhex(bundle.space()), brought, "g", hashlib.sha256(code).digest()), code)
    line.write(Label(brought, class_id("pit"), "ann"))
    with FleetStore(fleet_dir) as fleet:
        current = fleet.publish(bundle, channel="default")
        with fleet.write() as ledger:
            ledger.note_state(DeviceState(device="line-1", channel="default", online=True), seen_utc=1.0)
            ledger.take("line-1", line.log, {})
        before = live_samples(fleet)
        erase(fleet, due(fleet, "default", Policy(0.0, live_too=True), LATER))
        assert live_samples(fleet) == before - 1
        fleet.publish(with_precision_first(fleet, current, "int8", tmp_path / "int8"), channel="default")
        assert live_samples(fleet) == before - 1


@contextlib.contextmanager
def damaged(fleet: FleetStore, release: Bundle, name: str) -> Iterator[None]:
    """Flip a bit in a file of a release as the fleet keeps it, and of no other; then put it back."""
    described = describe(release.path, release.manifest.name, release.file_names())
    (file,) = [each for each in described.descriptor.files if each.name == name]
    chunk = fleet.directory / "chunks" / file.chunks[0]
    content = chunk.read_bytes()
    chunk.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    yield
    assert put_back(fleet, release) == 1


@pytest.mark.parametrize("name", ["samples.fp32.safetensors", MANIFEST_NAME])
def test_nothing_goes_for_good_that_a_release_which_cannot_be_read_may_bring_back(
    fleet: FleetStore, releases: list[Bundle], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for release in (releases[1], releases[0]):
        fleet.publish(release, channel="default")
    unread = [{"release": "r1", "precision": "" if name == MANIFEST_NAME else "fp32"}]
    asked = ("fleet", "retention", "--dir", fleet.directory, "--older-than", 0, "--live-too")
    note = fleet.directory / "retention.jsonl"
    with damaged(fleet, releases[1], name):
        refused = headway(capsys, *asked)
        assert (refused.code, note.exists()) == (2, False)
        assert "cannot be read: r1" in refused.err
        assert "--mend-from" in refused.err
        with pytest.raises(FleetError, match="cannot be read: r1"):
            erase(fleet, due(fleet, "default", Policy(0.0, live_too=True), LATER))
        assert len(coded(fleet, releases[0].space())) == 4
        looked = headway(capsys, *asked, "--dry-run", "--json")
        assert json.loads(looked.out)["unread"] == unread
        assert "cannot be read: r1" in looked.err
    assert headway(capsys, *asked).code == 0
    assert [json.loads(line)["unread"] for line in note.read_text().splitlines()] == [[], []]
    fleet.publish(releases[1], channel="default")
    assert live_samples(fleet) == len(releases[1].base().codes) - 1


def test_where_nobody_has_its_bundle_any_more_it_is_asked_for_and_noted(
    fleet: FleetStore, releases: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    for release in (releases[1], releases[0]):
        fleet.publish(release, channel="default")
    asked = ("fleet", "retention", "--dir", fleet.directory, "--older-than", 0, "--live-too", "--unread-too")
    with damaged(fleet, releases[1], "samples.fp32.safetensors"):
        ended = headway(capsys, *asked)
    assert (ended.code, coded(fleet, releases[0].space())) == (0, set())
    assert "cannot be read: r1 (fp32); what it brings of these samples counts again" in ended.err
    for line in (fleet.directory / "retention.jsonl").read_text().splitlines():
        assert json.loads(line)["unread"] == [{"release": "r1", "precision": "fp32"}]


def test_of_a_release_that_cannot_be_read_nothing_goes_that_it_may_bring(
    fleet: FleetStore, releases: list[Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    for release in releases[1:4]:
        fleet.publish(release, channel="default")
    asked = ("fleet", "retention", "--dir", fleet.directory, "--older-than", 0, "--json")
    with damaged(fleet, releases[0], "samples.fp32.safetensors"):
        ended = headway(capsys, *asked)
        told = json.loads(ended.out)
        assert (told["samples"], told["unread"]) == (0, [{"release": "r0", "precision": "fp32"}])
        assert "cannot be read: r0 (fp32); nothing goes of its feature space" in ended.err
        assert len(due(fleet, "default", Policy(0.0, unread_too=True), LATER).what) == 4
    assert json.loads(headway(capsys, *asked).out)["samples"] == 3
    assert coded(fleet, releases[0].space()) == {sample_of(BROUGHT)}


def test_a_restart_gives_nothing_back_that_a_version_before_erased_for_good(
    fleet: FleetStore, releases: list[Bundle]
) -> None:
    """It said nothing of the features of other releases that bring the sample."""
    for release in (releases[1], releases[0]):
        fleet.publish(release, channel="default")
    erased_as_before(fleet, releases[0].space())
    with fleet.serving():
        assert coded(fleet, releases[0].space()) == set()
    erase(fleet, due(fleet, "default", Policy(0.0, live_too=True), LATER))
    fleet.publish(releases[1], channel="default")
    assert live_samples(fleet) == len(releases[1].base().codes) - 1


# -- a real device


@pytest.mark.broker
def test_there_and_back_again_every_label_counts(
    images: Path, mosquitto: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real device, service and broker; what was let go meanwhile is bit for bit what it was."""
    fleet, bundle = tmp_path / "fleet", two_precisions(tmp_path / "both")
    site = site_of(images, None, loop=True, rate_fps=50.0, mqtt=MqttTable(host="127.0.0.1", port=mosquitto.port))
    own = COUNT // 2
    with fleet_of(fleet, mosquitto) as store, Agent(site) as agent, running(agent):

        def settled(precision: str) -> str | None:
            """Return the digest that fleet and device agree on in a precision, with all labels; None till then."""
            live, state, update = store.live_set("default"), agent.state(), agent.state().update
            there = state.release is not None and state.release.precision == precision
            done = update is not None and update.state == UpdateState.COMMITTED.value
            if live is None or not there or not done or state.own_labels != own:
                return None
            return live.digest if live.digest == state.live_set_digest else None

        def serve(precision: str) -> str:
            with store.read() as ledger:
                current = ledger.current("default")
            if current is None:
                store.publish(bundle, channel="default")
            else:
                moved = with_precision_first(store, current, precision, tmp_path / f"to-{precision}")
                store.publish(moved, channel="default")
            wait_for(lambda: agent.state().frames > COUNT, what="frames")
            if current is None:
                for i in range(1, COUNT, 2):
                    sample = sample_id((images / f"{i}.png").read_bytes())
                    agent.station.label(sample, class_id("pit"), "ann")
            wait_for(lambda: settled(precision) is not None, what=f"all labels at {precision}")
            return settled(precision) or ""

        first = serve("fp32")

        def pictures() -> int | None:
            with store.read() as ledger:
                return ledger.devices("default")[0].state.labelled_pictures

        wait_for(lambda: pictures() == own, what="the device to say how many pictures it has")
        serve("int8")
        assert erased_as_before(store, bundle.space("fp32")) == own
        assert serve("fp32") == first
        assert due(store, "default", ALL, LATER).what == []
