"""Rollouts through the service: who is assigned what, wave by wave, after crashes, halts and a person's word."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from msgspec import structs

from sdk.bundle import Bundle
from sdk.errors import FleetError
from sdk.fleet.cli_rollout import changes, overview
from sdk.fleet.core import POLL_S, FleetCore
from sdk.fleet.rollout import Plan, RolloutState
from sdk.fleet.store import FleetStore
from sdk.mqtt import Message, Publication
from sdk.wire import (
    Desired,
    DeviceState,
    Quality,
    UpdateEvent,
    UpdateState,
    decode_json,
    encode_json,
)
from tests.builders import make_bundle
from tests.commands import headway
from tests.simulators import TOPICS

DEVICES = ("a", "b", "c", "d")
WELL = Quality(recall=0.9, samples=40, frames=500, unknown=0.02, latency_ms=20.0)
POOR = Quality(recall=0.6, samples=40, frames=500, unknown=0.02, latency_ms=20.0)
PLAN = Plan(waves=["1", "2", "100%"], soak_s=30, deadline_s=3600)


class Floor:
    """Devices that do what they are assigned, before a service that may be killed at any time."""

    def __init__(self, directory: Path, devices: Sequence[str] = DEVICES) -> None:
        self.directory = directory
        self.now = 1000.0
        self.ahead_s = 0.0  # of the time that passed, the service's clock
        self.desired: dict[str, Desired] = {}
        self.running: dict[str, str] = {}
        self.tried: dict[str, list[Desired]] = {device: [] for device in devices}
        self.quality = dict.fromkeys(devices, WELL)
        self.own_labels: dict[str, int] = {}
        self.away: set[str] = set()
        self.refuses: dict[str, str] = {}
        self.faults: list[str] = []
        self.reports: list[dict[str, object]] = []
        self.start()
        for device in devices:
            self.tell(device)

    def start(self) -> None:
        self.store = FleetStore(self.directory)
        self.core = FleetCore(self.store, TOPICS, ("default",), self._report)
        self._take(self.core.broker_connected(remembered=False))

    def kill(self) -> None:
        self.store.close()
        self.start()

    def _report(self, kind: str, more: Mapping[str, object]) -> None:
        if kind == "rollout":
            self.reports.append(dict(more))

    def _take(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            if publication.topic.endswith("/down/desired"):
                device = TOPICS.device_of(publication.topic)
                self.desired[device] = decode_json(publication.payload, Desired)

    def turn(self, *messages: Message) -> None:
        self.now += POLL_S
        self._take(self.core.turn(messages, now=self.now, now_utc=self.now + self.ahead_s, room_bytes=1 << 30))

    def tell(self, device: str) -> None:
        state = DeviceState(
            device=device,
            channel="default",
            online=device not in self.away,
            release_id=self.running.get(device),
            quality=self.quality[device],
            own_labels=self.own_labels.get(device),
            faults=self.faults,
        )
        self.turn(Message(TOPICS.state(device), encode_json(state)))

    def obey(self) -> None:
        """Let every device that is there take what it is assigned, or say why not."""
        for device, desired in list(self.desired.items()):
            release = desired.release.release_id
            tried = self.tried.setdefault(device, [])
            if device in self.away or self.running.get(device) == release or desired in tried[-1:]:
                continue
            tried.append(desired)
            why = self.refuses.get(desired.release.name) if desired.release.name != "first" else None
            if why is None:
                self.running[device] = release
            state = UpdateState.COMMITTED if why is None else UpdateState.ROLLED_BACK
            event = UpdateEvent(release_id=release, state=state, reason=why or "")
            self.turn(Message(TOPICS.up_event(device), encode_json(event)))
            self.tell(device)

    def wait(self, seconds: float) -> None:
        self.turn()
        self.now += seconds
        self.turn()
        self.turn()

    def names(self) -> dict[str, str]:
        """Return the name of what each device is assigned."""
        return {device: desired.release.name for device, desired in sorted(self.desired.items())}

    def stands(self) -> tuple[RolloutState, int]:
        with self.store.read() as ledger:
            found = ledger.rollout("default")
        assert found is not None
        return found[1].state, found[1].wave

    def current(self) -> str:
        with self.store.read() as ledger:
            current = ledger.current("default")
        assert current is not None
        return current.ref.name


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {name: make_bundle(folder / name, backbone=name) for name in ("first", "second", "third")}


@pytest.fixture
def floor(fleet_dir: Path, bundles: dict[str, Bundle]) -> Floor:
    """Four devices that run the first release."""
    floor = Floor(fleet_dir)
    floor.store.publish(bundles["first"], channel="default")
    floor.turn()
    floor.obey()
    assert floor.names() == dict.fromkeys(DEVICES, "first")
    return floor


def begin(floor: Floor, bundle: Bundle, plan: Plan = PLAN) -> None:
    floor.store.publish(bundle, channel="default", plan=plan)
    floor.turn()
    floor.turn()


def test_waves_follow_one_another_and_the_last_makes_it_current(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"])
    assert floor.names() == {"a": "second", "b": "first", "c": "first", "d": "first"}
    assert floor.current() == "first"
    for reached in ({"a"}, {"a", "b"}, set(DEVICES)):
        assert {d for d, name in floor.names().items() if name == "second"} == reached
        floor.obey()
        floor.wait(PLAN.soak_s)
    assert floor.stands() == (RolloutState.DONE, 3)
    assert floor.current() == "second"
    assert [report["state"] for report in floor.reports][-1] == "done"


def test_before_its_time_no_wave_begins(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"])
    floor.obey()
    floor.wait(PLAN.soak_s - 5)
    assert floor.stands() == (RolloutState.SOAKING, 1)
    assert floor.names()["b"] == "first"


@pytest.mark.parametrize("set_s", [7200, -500])
def test_a_clock_that_is_set_makes_no_soak_longer_or_shorter(
    floor: Floor, bundles: dict[str, Bundle], set_s: float
) -> None:
    begin(floor, bundles["second"])
    floor.obey()
    floor.wait(1)
    floor.ahead_s = set_s
    floor.wait(PLAN.soak_s - 10)
    assert floor.stands() == (RolloutState.SOAKING, 1)
    assert floor.names()["b"] == "first"
    floor.wait(10)
    assert floor.names()["b"] == "second"
    assert floor.stands() == (RolloutState.ROLLING, 2)


def test_a_deadline_moves_with_the_clock(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"])
    deadline = floor.desired["a"].deadline_utc
    assert deadline is not None
    floor.ahead_s = 7200
    floor.wait(1)
    assert floor.stands() == (RolloutState.ROLLING, 1), "two hours have not passed for its devices"
    assert floor.desired["a"].deadline_utc == deadline + 7200


def test_a_service_whose_clock_was_ahead_before_it_started_anew_soaks_from_now(
    floor: Floor, bundles: dict[str, Bundle]
) -> None:
    floor.ahead_s = 86_400
    begin(floor, bundles["second"])
    floor.obey()
    floor.wait(1)
    floor.ahead_s = 0
    floor.kill()
    floor.wait(PLAN.soak_s)
    floor.wait(1)
    assert floor.stands() == (RolloutState.ROLLING, 2)


def test_a_release_that_does_worse_halts_and_goes_back_by_itself(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"])
    floor.obey()
    floor.wait(PLAN.soak_s)
    floor.obey()  # b has it too
    floor.quality["b"] = POOR
    floor.tell("b")
    floor.turn()
    assert floor.stands() == (RolloutState.HALTED, 2)
    assert "b knows its own labels 30 points less well" in str(floor.reports[-1]["reason"])
    assert floor.names() == dict.fromkeys(DEVICES, "first")
    floor.obey()
    assert len(set(floor.running.values())) == 1
    floor.wait(10 * PLAN.soak_s)
    assert floor.names() == dict.fromkeys(DEVICES, "first")


@pytest.mark.parametrize("agreed", [0, 15])
def test_a_release_under_which_labels_count_no_more_halts_unless_that_was_agreed(
    floor: Floor, bundles: dict[str, Bundle], agreed: int
) -> None:
    """Its few labels left are known well: without a look at how many there were it would seem to do better."""
    floor.own_labels["a"] = 18
    floor.tell("a")
    begin(floor, bundles["second"], structs.replace(PLAN, max_lost_labels=agreed))
    floor.own_labels["a"] = 3
    floor.quality["a"] = structs.replace(WELL, recall=1.0, samples=3)
    floor.obey()
    floor.turn()
    assert (floor.stands()[0] is RolloutState.HALTED) == (not agreed)
    if not agreed:
        assert "a counts 3 of the 18 own labels that it had" in str(floor.reports[-1]["reason"])
    report = overview(floor.store, "default")["devices"][0]
    assert (report["before"]["own_labels"], report["now"]["own_labels"]) == (18, 3)


def test_a_release_that_does_not_install_never_reaches_the_second_wave(
    floor: Floor, bundles: dict[str, Bundle]
) -> None:
    floor.refuses["second"] = "wrong figures on the golden inputs"
    begin(floor, bundles["second"])
    floor.obey()
    floor.turn()
    assert floor.stands() == (RolloutState.HALTED, 1)
    assert "a rolled it back: wrong figures" in str(floor.reports[-1]["reason"])


def test_who_rolled_it_back_is_left_alone_until_it_is_resumed_or_published_again(
    floor: Floor, bundles: dict[str, Bundle]
) -> None:
    """The release without its wave's deadline would be a new assignment: it may take the agent down each time."""
    begin(floor, bundles["second"], Plan(waves=["2", "3", "100%"], soak_s=30, max_failed=1, success=0.5))
    floor.refuses["second"] = "it crashes"
    floor.away = {"b", "c", "d"}
    floor.obey()
    floor.away.clear()
    floor.refuses.clear()
    floor.kill()
    for wave in (1, 2, 3):
        assert floor.stands() == (RolloutState.ROLLING, wave)
        assert floor.names()["a"] == "first"
        floor.obey()
        floor.wait(30)
    assert floor.stands() == (RolloutState.DONE, 3)
    assert floor.names() == {"a": "first", "b": "second", "c": "second", "d": "second"}
    assert [desired.release.name for desired in floor.tried["a"]] == ["first", "second"]
    floor.kill()
    assert floor.names()["a"] == "first"
    floor.store.publish(bundles["second"], channel="default")
    floor.turn()
    assert floor.names() == dict.fromkeys(DEVICES, "second")


def test_resumed_it_is_tried_again_by_who_rolled_it_back(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"], Plan(waves=["2", "3", "100%"], soak_s=30, max_failed=1, success=0.5))
    floor.refuses["second"] = "the disk is full"
    floor.away = {"b", "c", "d"}
    floor.obey()
    floor.away.clear()
    floor.refuses.clear()
    floor.obey()
    floor.wait(30)
    assert floor.stands() == (RolloutState.ROLLING, 2)
    with floor.store.write() as ledger:
        ledger.halt("default", "ann mends the disk")
    with floor.store.write() as ledger:
        ledger.resume("default")
    floor.wait(0)
    assert floor.names()["a"] == "second"
    floor.obey()
    assert floor.running["a"] == floor.running["b"]


def test_a_device_that_runs_nothing_is_told_the_channels_release_all_the_same(
    floor: Floor, bundles: dict[str, Bundle]
) -> None:
    """Another machine in the place of one that had rolled it back must not stay without any."""
    begin(floor, bundles["second"], Plan(waves=["100%"], soak_s=0, max_failed=1, success=0.5))
    floor.refuses["second"] = "it crashes"
    floor.away = {"b", "c", "d"}
    floor.obey()
    floor.away.clear()
    floor.refuses.clear()
    floor.obey()
    floor.wait(1)
    assert floor.stands()[0] is RolloutState.DONE
    assert floor.names()["a"] == "first"
    del floor.running["a"]
    floor.tell("a")
    floor.kill()
    assert floor.names()["a"] == "second"


def test_a_late_device_joins_by_itself(floor: Floor, bundles: dict[str, Bundle]) -> None:
    floor.away.add("d")
    floor.tell("d")
    begin(floor, bundles["second"])
    for _ in range(3):
        floor.obey()
        floor.wait(PLAN.soak_s)
    assert floor.stands()[0] is RolloutState.DONE
    assert floor.running["d"] != floor.running["a"]
    floor.away.clear()
    floor.tell("d")
    floor.obey()
    assert floor.running["d"] == floor.running["a"]


def test_a_device_that_comes_back_after_its_waves_deadline_takes_it_and_halts_nothing(
    floor: Floor, bundles: dict[str, Bundle]
) -> None:
    """It is assigned no deadline that has passed, for which it would roll the release back."""
    floor.away.add("b")
    floor.tell("b")
    begin(floor, bundles["second"], Plan(waves=["2", "100%"], approve=True, soak_s=30, deadline_s=3600))
    floor.obey()
    floor.wait(30)
    assert floor.stands() == (RolloutState.AWAITING, 1)
    floor.now += 2 * 3600
    floor.away.clear()
    floor.tell("b")
    floor.turn()
    assert floor.stands() == (RolloutState.AWAITING, 1)
    assert floor.desired["b"].deadline_utc is None
    floor.obey()
    assert floor.running["b"] == floor.running["a"]
    assert floor.stands() == (RolloutState.AWAITING, 1)


def test_a_device_that_is_new_gets_the_current_release_until_a_wave_reaches_it(
    floor: Floor, bundles: dict[str, Bundle]
) -> None:
    begin(floor, bundles["second"])
    floor.quality["0-new"] = WELL
    floor.tell("0-new")
    assert floor.names()["0-new"] == "first"


def test_after_a_crash_at_any_turn_it_goes_on(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"])
    for _ in range(3):
        floor.kill()
        floor.obey()
        floor.kill()
        floor.wait(PLAN.soak_s)
    floor.kill()
    floor.turn()
    assert floor.stands() == (RolloutState.DONE, 3)
    assert floor.names() == dict.fromkeys(DEVICES, "second")


def test_a_person_lets_each_wave_begin(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"], Plan(waves=["1", "100%"], approve=True, soak_s=0))
    floor.obey()
    floor.wait(3600)
    assert floor.stands() == (RolloutState.AWAITING, 1)
    with floor.store.write() as ledger:
        ledger.approve("default")
    floor.turn()
    assert floor.stands()[1] == 2
    assert floor.names() == dict.fromkeys(DEVICES, "second")


def test_a_halted_rollout_goes_on_after_it_was_mended(floor: Floor, bundles: dict[str, Bundle]) -> None:
    floor.refuses["second"] = "the disk is full"
    begin(floor, bundles["second"])
    floor.obey()
    floor.turn()
    assert floor.names()["a"] == "first"
    floor.refuses.clear()
    with floor.store.write() as ledger:
        ledger.resume("default")
    floor.turn()
    floor.turn()
    assert floor.names()["a"] == "second"
    for _ in range(3):
        floor.obey()
        floor.wait(PLAN.soak_s)
    assert floor.current() == "second"


def test_a_person_halts_it(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"])
    with floor.store.write() as ledger:
        ledger.halt("default", "ann does not like it")
    floor.turn()
    assert floor.names() == dict.fromkeys(DEVICES, "first")
    assert floor.reports[-1]["reason"] == "ann does not like it"


def test_what_makes_no_sense_is_refused_and_changes_nothing(floor: Floor, bundles: dict[str, Bundle]) -> None:
    with floor.store.write() as ledger:
        for word in (ledger.approve, ledger.resume, lambda c: ledger.halt(c, "")):
            with pytest.raises(FleetError) as caught:
                word("default")
            assert caught.value.hint
    begin(floor, bundles["second"])
    with pytest.raises(FleetError, match="a rollout of second is under way"):
        floor.store.publish(bundles["third"], channel="default")
    with floor.store.write() as ledger, pytest.raises(FleetError, match="waits for no approval"):
        ledger.approve("default")
    assert floor.names()["a"] == "second"


def test_a_halted_rollout_is_not_resumed_over_a_newer_release(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"])
    with floor.store.write() as ledger:
        ledger.halt("default", "no")
    floor.store.publish(bundles["third"], channel="default")
    with floor.store.write() as ledger, pytest.raises(FleetError, match="third was published since"):
        ledger.resume("default")


def test_the_deadline_of_a_wave_travels_with_the_assignment(floor: Floor, bundles: dict[str, Bundle]) -> None:
    begin(floor, bundles["second"])
    deadline = floor.desired["a"].deadline_utc
    assert deadline is not None
    assert 0 < deadline - floor.now <= PLAN.deadline_s
    assert floor.desired["b"].deadline_utc is None


# From the command line


def test_a_rollout_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    directory = tmp_path / "fleet"
    floor = Floor(directory)
    floor.store.publish(bundles["first"], channel="default")
    floor.turn()
    floor.obey()
    published = headway(
        capsys, "fleet", "publish", bundles["second"].path, "--dir", directory, "--waves", "1,100%", "--soak", 1
    )
    assert published.code == 0
    assert "in waves of 1, 100%" in published.out
    floor.turn()
    floor.turn()
    floor.faults = ["[disk] is full"]
    floor.tell("a")
    assert "[disk]" in headway(capsys, "fleet", "rollout", "show", "--dir", directory).out
    floor.obey()
    assert "[disk]" not in headway(capsys, "fleet", "rollout", "show", "--dir", directory).out  # it took it
    floor.quality["a"] = POOR
    floor.tell("a")
    floor.turn()
    shown = json.loads(headway(capsys, "fleet", "rollout", "show", "--dir", directory, "--json").out)
    assert (shown["state"], shown["wave"], shown["current"]) == ("halted", 1, "first")
    assert shown["devices"][0]["before"]["recall"] == 0.9
    assert "30 points less well" in shown["devices"][0]["trouble"]
    table = headway(capsys, "fleet", "rollout", "show", "--dir", directory).out
    assert "90% -> 60%" in " ".join(table.split())
    assert "3 devices not reached yet" in " ".join(table.split())
    assert shown["devices"][0]["stands"] == "still runs it"
    floor.quality["a"] = WELL
    floor.obey()
    shown = json.loads(headway(capsys, "fleet", "rollout", "show", "--dir", directory, "--json").out)
    assert [(one["state"], one["stands"], one["runs_it"]) for one in shown["devices"]] == [
        ("committed", "gone back", False)
    ]
    table = headway(capsys, "fleet", "rollout", "show", "--dir", directory).out
    assert ("gone" in table, "committed" in table) == (True, False)
    assert headway(capsys, "fleet", "rollout", "resume", "--dir", directory).code == 0
    floor.turn()
    floor.turn()
    assert floor.names()["a"] == "second"


def test_a_script_that_watches_a_rollout_goes_on_when_it_has_ended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    floor = Floor(tmp_path / "fleet")
    floor.store.publish(bundles["first"], channel="default", plan=PLAN)
    watched = changes(floor.store, "default")
    assert next(watched)["wave"] == 0
    floor.turn()
    floor.turn()
    assert [(report["state"], report["wave"]) for report in [next(watched)]] == [("rolling", 1)]
    with floor.store.write() as ledger:
        ledger.halt("default", "enough seen")
    assert [report["state"] for report in watched] == ["halted"]
    told = headway(capsys, "fleet", "rollout", "show", "--dir", tmp_path / "fleet", "--watch", "--json")
    assert json.loads(told.out)["reason"] == "enough seen"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["publish", "BUNDLE", "--waves", "5,1"], "do not grow"),
        (["publish", "BUNDLE", "--approve"], "--approve is about waves"),
        (["publish", "BUNDLE", "--waves", "1", "--wait", "5"], "waves take their time"),
        (["publish", "BUNDLE", "--waves", "1", "--soak", "-1"], "these waves make no sense"),
        (["rollout", "show"], "there was no rollout"),
        (["rollout", "approve"], "no rollout is under way"),
        (["rollout", "halt", "--channel", "press"], "no rollout is under way on channel press"),
        (["rollout", "resume"], "no rollout has halted"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_a_hint(
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    bundles: dict[str, Bundle],
) -> None:
    FleetStore(tmp_path).close()
    ended = headway(
        capsys, "fleet", *(bundles["second"].path if w == "BUNDLE" else w for w in words), "--dir", tmp_path
    )
    assert ended.code == 2
    assert says in ended.err
