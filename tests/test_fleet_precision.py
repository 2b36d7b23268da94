"""A channel to another precision: on its devices' own figures, as a rollout, with every label kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from device_agent.agent import Agent
from device_agent.config import MqttTable
from device_agent.runtime.choice import Measured as Timed
from device_agent.runtime.choice import best_of_each
from sdk.bundle import Bundle
from sdk.errors import FleetError
from sdk.fleet.broker import Mosquitto
from sdk.fleet.cli_devices import learned_words, troubles_of
from sdk.fleet.page.app import make_app
from sdk.fleet.page.view import FleetView
from sdk.fleet.precision import Measured, check_move, faster, precisions_of
from sdk.fleet.store import FleetStore
from sdk.images import sample_id
from sdk.wire import DeviceState, PrecisionTime, UpdateState
from tests.commands import headway
from tests.simulators import wait_for
from tests.test_agent import COUNT, fleet_of, images, running, site_of
from tests.tiny import class_id, two_precisions

__all__ = ["images"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return two_precisions(tmp_path_factory.mktemp("precision") / "both")


# -- what devices report


def test_of_each_precision_the_fastest_that_is_right_is_told() -> None:
    def timed(precision: str, frame_ms: float, refused: str = "") -> Timed:
        return Timed(precision=precision, provider="cpu", threads=1, frame_ms=frame_ms, refused=refused)

    table = [
        timed("fp32", 0.0, "wrong"),
        timed("fp32", 12.34),
        timed("fp32", 9.87),
        timed("int8", 0.0, "no such operator"),
    ]
    assert best_of_each(table) == [
        PrecisionTime(precision="fp32", frame_ms=9.9),
        PrecisionTime(precision="int8", refused="no such operator"),
    ]


# -- whether it may be


def row(
    device: str = "a",
    times: Mapping[str, float] | None = None,
    *,
    serves: str | None = "fp32",
    fixed: bool = False,
    refused: Mapping[str, str] | None = None,
) -> Measured:
    known = {"fp32": 10.0, "int8": 5.0} if times is None else dict(times)
    return Measured(device, True, serves, fixed, known, dict(refused or {}))


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "no device of this channel has measured int8"),
        ([row(times={"fp32": 10.0})], "no device of this channel has measured int8"),
        ([row(), row("b", {"fp32": 9.0}, refused={"int8": "no operator"})], "b cannot run int8: no operator"),
        ([row(), row("b", fixed=True)], "b stays at fp32: its site.toml names it"),
        ([row(), row("b", {"fp32": 10.0, "int8": 21.0})], "b takes 21 ms for a frame with int8, 10 ms with fp32"),
        ([row(), row("b", {}, serves=None)], "1 devices have not measured int8: b"),
    ],
)
def test_a_move_that_devices_cannot_follow_is_refused(rows: list[Measured], why: str) -> None:
    with pytest.raises(FleetError, match=why):
        check_move("int8", rows, max_latency_ratio=2.0, unmeasured=0)


@pytest.mark.parametrize(
    "rows",
    [
        [row(), row("b")],
        [row(), row("b", {}, serves=None)],
        [row(), row("b", {"int8": 5.0}, serves="int8", fixed=True)],
        [row(), row("b", {"fp32": 10.0, "int8": 20.0})],
    ],
)
def test_a_move_that_they_can_follow_is_not(rows: list[Measured]) -> None:
    check_move("int8", rows, max_latency_ratio=2.0, unmeasured=1)


def test_how_much_faster_is_the_median_of_devices() -> None:
    rows = [row(), row("b", {"fp32": 10.0, "int8": 30.0}), row("c", {"fp32": 10.0, "int8": 8.0}), row("d", {})]
    assert faster("int8", rows) == 0.8
    assert faster("fp16", rows) is None


# -- the commands


def tell(fleet: Path, bundle: Bundle, *devices: str, **changes: object) -> None:
    """Publish a bundle, and let devices run it and report."""
    with FleetStore(fleet) as store:
        with store.read() as ledger:
            current = ledger.current("default")
        published = current or store.publish(bundle, channel="default")
        times = [PrecisionTime(precision="fp32", frame_ms=10.0), PrecisionTime(precision="int8", frame_ms=4.0)]
        for device in devices:
            state = DeviceState(
                device=device,
                channel="default",
                online=True,
                release_id=published.ref.release_id,
                precision="fp32",
                precisions=times,
            )
            with store.write() as ledger:
                ledger.note_state(msgspec.structs.replace(state, **changes), seen_utc=1000.0)


def test_the_table_is_shown_by_channel(tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = tmp_path / "fleet"
    tell(fleet, bundle, "a", "b")
    tell(fleet, bundle, "c", precisions=[PrecisionTime(precision="int8", refused="no operator")])
    tell(fleet, bundle, "d", release_id="0" * 64)  # figures of another release count for nothing
    shown = headway(capsys, "fleet", "precision", "show", "--dir", fleet)
    assert "int8: 2 of 4 devices can run it; takes 0.40 times as long as what serves (median)" in shown.out
    assert "c cannot run int8: no operator" in shown.out
    told = json.loads(headway(capsys, "fleet", "precision", "show", "--dir", fleet, "--json").out)
    assert told["precisions"] == ["fp32", "int8"]
    assert [one["serves"] for one in told["devices"]] == ["fp32", "fp32", "fp32", None]
    assert told["time_as_share"] == {"fp32": 1.0, "int8": 0.4}
    refused = headway(capsys, "fleet", "precision", "move", "int8", "--dir", fleet)
    assert (refused.code, "c cannot run int8: no operator" in refused.err) == (2, True)
    with FleetStore(fleet) as store, store.write() as ledger:
        assert ledger.rollout("default") is None
        assert ("online" in shown.out, "unknown" in shown.out) == (True, False)
        ledger.note_broker("broker:1883", 1000.0)
    away = headway(capsys, "fleet", "precision", "show", "--dir", fleet).out
    assert ("online" in away, "unknown" in away) == (False, True)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["fp16"], "has no fp16, only fp32, int8"),
        (["fp32"], "runs fp32 already"),
        (["int8", "--channel", "other"], "channel other has no release"),
        (["int8", "--waves", "nothing!"], "is no wave"),
    ],
)
def test_what_cannot_be_moved_is_one_line_with_a_hint(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    fleet = tmp_path / "fleet"
    tell(fleet, bundle, "a")
    ended = headway(capsys, "fleet", "precision", "move", *words, "--dir", fleet)
    assert ended.code == 2
    assert why in ended.err
    assert "hint: " in ended.err


def test_a_signed_fleet_signs_the_move_too(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, keys = tmp_path / "fleet", tmp_path / "keys"
    headway(capsys, "fleet", "keys", "init", "--dir", fleet, "--keys", keys, "--no-passphrase")
    assert headway(capsys, "fleet", "publish", bundle.path, "--dir", fleet, "--keys", keys).code == 0
    tell(fleet, bundle, "a")
    move = ["fleet", "precision", "move", "int8", "--dir", fleet, "--waves", "1,100%"]
    assert "no keys are named" in headway(capsys, *move).err
    assert headway(capsys, *move, "--keys", keys).code == 0
    shown = json.loads(headway(capsys, "fleet", "keys", "show", "--dir", fleet, "--json").out)
    assert {(one["version"], one["fallback"]) for one in shown["releases"]} == {(2, True), (2, False)}
    assert {one["space"] for one in shown["releases"]} == {bundle.space("fp32"), bundle.space("int8")}


# -- published with another precision than its first


def test_a_release_is_published_with_the_precision_that_is_asked_for_first(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """Devices serve the first that the release names: the fleet's books must not have another."""
    fleet, keys = tmp_path / "fleet", tmp_path / "keys"
    headway(capsys, "fleet", "keys", "init", "--dir", fleet, "--keys", keys, "--no-passphrase")
    publish = ["fleet", "publish", bundle.path, "--dir", fleet]
    assert headway(capsys, *publish, "--keys", keys, "--precision", "int8").code == 0
    assert in_books(fleet) == (["int8", "fp32"], bundle.space("int8"))
    assert headway(capsys, *publish, "--keys", keys, "--precision", "fp32").code == 0
    assert in_books(fleet) == (["fp32", "int8"], bundle.space("fp32"))
    assert headway(capsys, *publish, "--unsigned", "--precision", "int8").code == 0
    assert headway(capsys, "fleet", "sign", fleet / "to-sign.json", "--keys", keys, "--dir", fleet).code == 0
    assert in_books(fleet) == (["int8", "fp32"], bundle.space("int8"))


def in_books(fleet: Path) -> tuple[list[str], str]:
    """Return the precisions of the current release, and the feature space that the fleet has for it."""
    with FleetStore(fleet) as store:
        with store.read() as ledger:
            current = ledger.current("default")
        assert current is not None
        return precisions_of(store, current), current.space


def test_books_that_have_another_precision_than_devices_are_told_and_mended_by_publishing_again(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier version wrote down the precision that was asked for, and published the bundle as it was."""
    fleet = tmp_path / "fleet"
    tell(fleet, bundle, "line-1", space=bundle.space("fp32"))
    with FleetStore(fleet) as store, store.write() as ledger:
        current = ledger.current("default")
        assert current is not None
        size = bundle.precision("int8").feature_size
        ledger.publish(current.release, channel="default", space=bundle.space("int8"), feature_size=size)
    wrong = shown_of(capsys, fleet)
    assert (wrong["other_precision"], learned_words(wrong)) == (True, "other precision")
    assert "it runs the release with fp32, the channel another" in "".join(troubles_of(wrong))
    refused = headway(capsys, "fleet", "precision", "move", "fp32", "--dir", fleet)
    assert "headway fleet publish BUNDLE --precision fp32" in refused.err
    with FleetStore(fleet) as store:
        assert FleetView(store).fleet()["channels"][0]["running"] == 0
    assert headway(capsys, "fleet", "publish", bundle.path, "--dir", fleet).code == 0
    assert in_books(fleet)[1] == bundle.space("fp32")
    assert not shown_of(capsys, fleet)["other_precision"]


def test_a_device_whose_settings_name_another_precision_wants_a_look(
    tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet"
    tell(fleet, bundle, "line-1", space=bundle.space("int8"), precision="int8", precision_fixed=True)
    tell(fleet, bundle, "line-2", space=bundle.space("fp32"))
    shown = headway(capsys, "fleet", "devices", "--dir", fleet).out
    assert "line-1: it runs the release with int8" in shown
    assert "its site.toml names int8" in shown
    assert "line-2: " not in shown
    with FleetStore(fleet) as store:
        text = TestClient(make_app(FleetView(store)), base_url="http://127.0.0.1").get("/part/devices").text
    assert ("1 run the release" in text, ">other precision</span>" in text) == (True, True)


def shown_of(capsys: pytest.CaptureFixture[str], fleet: Path) -> dict[str, Any]:
    """Return the one device as `headway fleet devices` has it."""
    told = json.loads(headway(capsys, "fleet", "devices", "--dir", fleet, "--json").out)
    (device,) = told["devices"]
    assert isinstance(device, dict)
    return device


@pytest.mark.broker
def test_a_device_serves_the_precision_that_its_release_was_published_with(
    images: Path, bundle: Bundle, mosquitto: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet"
    site = site_of(images, None, mqtt=MqttTable(host="127.0.0.1", port=mosquitto.port))
    with fleet_of(fleet, mosquitto), Agent(site) as agent, running(agent):
        ended = headway(capsys, "fleet", "publish", bundle.path, "--dir", fleet, "--precision", "int8")
        assert ended.code == 0, ended
        wait_for(lambda: agent.state().release is not None, what="the release")
        release = agent.state().release
        assert release is not None
        assert release.precision == "int8"


@pytest.mark.broker
def test_a_channel_is_moved_with_every_label(
    images: Path, bundle: Bundle, mosquitto: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real device, service and broker: it measures, is moved, and knows what it was told before."""
    fleet = tmp_path / "fleet"
    mqtt = MqttTable(host="127.0.0.1", port=mosquitto.port)
    site = site_of(images, None, loop=True, rate_fps=200.0, mqtt=mqtt)
    with fleet_of(fleet, mosquitto) as store, Agent(site) as agent, running(agent):
        store.publish(bundle, channel="default")

        def serves(precision: str) -> bool:
            release, update = agent.state().release, agent.state().update
            committed = update is not None and update.state == UpdateState.COMMITTED.value
            return committed and release is not None and release.precision == precision

        def measured() -> int:
            with store.read() as ledger:
                return sum(len(device.state.precisions) for device in ledger.devices("default"))

        wait_for(lambda: serves("fp32"), what="the release")
        wait_for(lambda: agent.state().frames > COUNT, what="frames")
        for i in range(1, COUNT, 2):
            agent.station.label(sample_id((images / f"{i}.png").read_bytes()), class_id("pit"), "ann")
        own = COUNT // 2
        wait_for(lambda: measured() == 2, what="figures of both precisions")
        before = agent.state().live_set_digest
        move = ["fleet", "precision", "move", "int8", "--dir", fleet, "--waves", "100%", "--soak", "0"]
        ended = headway(capsys, *move, "--max-latency-ratio", "50")
        assert ended.code == 0, ended
        wait_for(lambda: serves("int8"), what="the device at int8")

        def agreed() -> bool:
            live, state = store.live_set("default"), agent.state()
            with store.read() as ledger:
                current = ledger.current("default")
            moved = current is not None and current.space == bundle.space("int8")
            return moved and live is not None and live.digest == state.live_set_digest and state.own_labels == own

        wait_for(agreed, what="the fleet and the device to know the same at int8")
        assert agent.state().live_set_digest != before, "codes of another feature space"


@pytest.mark.broker
def test_a_move_that_would_lose_labels_says_so_first(
    images: Path, bundle: Bundle, mosquitto: Mosquitto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device was replaced: its labels came back from the fleet, and its pictures from nowhere."""
    fleet, own = tmp_path / "fleet", COUNT // 2
    mqtt = MqttTable(host="127.0.0.1", port=mosquitto.port)
    site = site_of(images, None, loop=True, rate_fps=200.0, mqtt=mqtt)
    with fleet_of(fleet, mosquitto) as store:

        def said(pictures: int) -> bool:
            with store.read() as ledger:
                states = [device.state for device in ledger.devices("default")]
            times = [len(state.precisions) for state in states]
            return times == [2] and (states[0].own_labels, states[0].labelled_pictures) == (own, pictures)

        with Agent(site) as agent, running(agent):
            store.publish(bundle, channel="default")
            wait_for(lambda: agent.state().frames > COUNT, what="frames")
            for i in range(1, COUNT, 2):
                agent.station.label(sample_id((images / f"{i}.png").read_bytes()), class_id("pit"), "ann")
            wait_for(lambda: said(own), what="the device to say what it has")
        shutil.rmtree(site.data_dir)
        with Agent(site) as agent, running(agent):
            wait_for(lambda: said(0), what="its replacement to say what it has")
            move = ["fleet", "precision", "move", "int8", "--dir", fleet, "--max-latency-ratio", "50"]
            refused = headway(capsys, *move)
            assert refused.code == 2
            assert f"{own} labels of line-1: it does not have their pictures" in refused.err
            done = headway(capsys, *move, "--max-lost-labels", str(own), "--json")
            assert json.loads(done.out)["lost_labels"] == {"line-1": own}
