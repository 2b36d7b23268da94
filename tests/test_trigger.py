"""Triggers come over HTTP and a real broker; those of the past, and those without a part, fire nothing."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from device_agent.agent import Agent
from device_agent.broker_check import check_trigger, trigger_told
from device_agent.config import FolderCamera, MqttTable, PageSettings, Site, TriggerSettings
from device_agent.history import newest_of
from device_agent.metrics import metrics_of
from device_agent.report import TriggerReport
from device_agent.trigger import MAX_LOT_CHARS, MAX_PART_CHARS, MqttTrigger, PartLot, Trigger, Triggers, part_of
from sdk.bundle import Bundle
from sdk.errors import RemoteWireError, TriggerRefused
from sdk.finding import Level
from sdk.fleet.broker import Mosquitto
from sdk.mqtt import Message, MqttSession, MqttSettings
from sdk.wire import Result, Topics, Verdict, decode_json
from tests.simulators import refusing, wait_for
from tests.tiny import picture, tiny_bundle

DEADLINE_S = 60.0
TOPIC = "plc/station-7/part"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("trigger") / "bundle")


@pytest.fixture
def site(tmp_path: Path, bundle: Bundle) -> Site:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(20):
        (images / f"{i:02}.png").write_bytes(picture("pit", i))
    return Site(
        device="line-1",
        camera=FolderCamera(path=images),
        data_dir=tmp_path / "data",
        bundle=bundle.path,
        page=PageSettings(port=0),
        trigger=TriggerSettings(limit=4),
    )


def over_mqtt(site: Site, settings: MqttSettings) -> Site:
    mqtt = MqttTable(host=settings.host, port=settings.port)
    return msgspec.structs.replace(site, trigger=TriggerSettings(topic=TOPIC), mqtt=mqtt)


@contextlib.contextmanager
def running(site: Site) -> Iterator[Agent]:
    stop, ready = threading.Event(), threading.Event()
    with Agent(site) as agent:
        thread = threading.Thread(target=agent.run, args=(stop,), kwargs={"on_ready": lambda _: ready.set()})
        thread.start()
        try:
            assert ready.wait(DEADLINE_S)
            yield agent
        finally:
            stop.set()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


def post(agent: Agent, body: object) -> tuple[int, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{agent.page_url}api/trigger", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_trigger_over_http_takes_one_frame_of_its_part(site: Site) -> None:
    with running(site) as agent:
        assert post(agent, {"part": "4711"}) == (202, {"part": "4711"})
        wait_for(lambda: agent.state().frames == 1, DEADLINE_S)
        (sample,) = agent.store.samples.newest(limit=5)
        assert sample.group == "line-1/4711"
        assert agent.flow.parts[-1].name == "4711"
        status, made = post(agent, {})
        assert status == 202
        wait_for(lambda: agent.state().frames == 2, DEADLINE_S)
        assert agent.flow.parts[-1].name == made["part"] != ""
        assert post(agent, {"part": 4712, "lot": None}) == (202, {"part": "4712"})


def test_without_a_trigger_table_a_trigger_is_refused(site: Site) -> None:
    with running(msgspec.structs.replace(site, trigger=None)) as agent:
        status, answer = post(agent, {"part": "4711"})
        assert status == 429
        assert "runs free" in answer["error"]


@pytest.mark.parametrize(
    "body",
    [
        {"part": "x" * (MAX_PART_CHARS + 1)},
        {"prt": "1"},
        {"part": 4711.5},
        {"part": True},
        [],
        {"part": "\x1b[1A4711"},
        {"part": "4711", "lot": "a\u202eb"},
    ],
)
def test_a_trigger_that_is_none_is_refused(site: Site, body: object) -> None:
    with running(site) as agent:
        assert post(agent, body)[0] == 422
        assert agent.state().frames == 0


@pytest.mark.broker
def test_a_trigger_over_a_real_broker_brings_a_verdict_back_over_it(site: Site, mosquitto: Mosquitto) -> None:
    site = over_mqtt(site, mosquitto.settings)
    heard: list[Message] = []
    plc = MqttSession(mosquitto.settings, "plc", on_message=heard.append)
    plc.subscribe([Topics().up_result("line-1")])
    plc.connect()
    with running(site) as agent:
        assert agent.trigger is not None
        wait_for(lambda: agent.trigger is not None and agent.trigger.connected, DEADLINE_S)
        wait_for(lambda: (mqtt := agent.state().mqtt) is not None and mqtt.connected, DEADLINE_S)
        plc.publish(TOPIC, b'{"part": "4711", "lot": "B7"}')
        wait_for(lambda: heard, DEADLINE_S)
        result = decode_json(heard[0].payload, Result)
        assert (result.part, result.lot) == ("4711", "B7")
        wait_for(lambda: newest_of(site.data_dir, "4711") is not None, DEADLINE_S)
        assert (row := newest_of(site.data_dir, "4711")) is not None
        assert row.lot == "B7"
        assert result.verdict is Verdict.REJECT
        assert (result.frames, result.tiles) == (1, 1)
        assert result.sample is not None
        wait_for(lambda: agent.store.samples.get(bytes.fromhex(result.sample or "")) is not None, DEADLINE_S)
    plc.close()


@pytest.mark.broker
def test_a_retained_trigger_is_of_the_past_and_fires_nothing(mosquitto: Mosquitto) -> None:
    echoes: list[bytes] = []
    sender = MqttSession(mosquitto.settings, "plc", on_message=lambda message: echoes.append(message.payload))
    sender.subscribe([TOPIC])
    sender.connect()
    sender.publish(TOPIC, b"old", retain=True)
    wait_for(lambda: echoes, DEADLINE_S)  # the broker has it
    fired: list[PartLot] = []
    refused: list[str] = []
    trigger = MqttTrigger(mosquitto.settings, "line-1", TOPIC, fired.append, refused.append)
    trigger.start()
    wait_for(lambda: trigger.connected, DEADLINE_S)
    sender.publish(TOPIC, b'{"part": "new", "lot": "B7"}')
    sender.publish(TOPIC, b"kept", retain=True)
    sender.publish(TOPIC, b"", retain=True)  # nobody's part: it clears what is kept
    sender.publish(TOPIC, b"last")
    wait_for(lambda: len(fired) == 3, DEADLINE_S)
    assert fired == [PartLot("new", "B7"), PartLot("kept", ""), PartLot("last", "")]
    assert (refused, trigger.fault) == ([], None)
    trigger.stop()
    sender.close()


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xfe",
        b"{",
        b'{"prt": "4711"}',
        b'{"part": 7.5}',
        b'{"part": true}',
        b'["a"]',
        b"[1]" * 100,
        b"x" * (MAX_PART_CHARS + 1),
        b"a\x00b",
        b'{"part": "a\\nb"}',
        b"{" * 100_000,
        b'{"part": "7", "lot": [7]}',
        b"[" * 100_000,
        b'{"part": "7", "lot": "%s"}' % (b"x" * (MAX_LOT_CHARS + 1)),
    ],
)
def test_a_message_that_names_no_part_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteWireError):
        part_of(payload)


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (b'{"part": 5001}', PartLot("5001", "")),
        (b'{"part": "5002", "lot": 7}', PartLot("5002", "7")),
        (b'{"lot": "B7"}', PartLot("", "B7")),
        (b'{"part": null, "lot": null}', PartLot("", "")),
        (b"{}", PartLot("", "")),
        (b"[7] left", PartLot("[7] left", "")),
    ],
)
def test_a_part_or_lot_may_be_a_number_or_missing(payload: bytes, named: PartLot) -> None:
    assert part_of(payload) == named


@pytest.mark.broker
def test_a_trigger_that_cannot_be_read_rejects_a_part(site: Site, mosquitto: Mosquitto) -> None:
    """It was logged and nothing else: no verdict, no count, no fault, while a part stood there."""
    site = over_mqtt(site, mosquitto.settings)
    plc = MqttSession(mosquitto.settings, "plc", on_message=lambda _message: None)
    plc.connect()
    with running(site) as agent:
        wait_for(lambda: agent.trigger is not None and agent.trigger.connected, DEADLINE_S)
        plc.publish(TOPIC, b'{"prt": "4711"}')
        wait_for(lambda: agent.flow.parts, DEADLINE_S)
        (part,) = agent.flow.parts
        assert part.verdict is Verdict.REJECT
        assert part.name != ""
        assert part.reason == "a trigger of 15 bytes names no part: it has no part, but prt"
        state = agent.state()
        assert state.line is not None
        assert (state.line.rejected, state.line.refused_triggers) == (1, 1)
        assert f"a trigger could not be read, so a part was rejected: {part.reason}" in state.faults
    plc.close()


@pytest.mark.broker
def test_a_lost_connection_for_triggers_is_a_fault_until_it_is_back(site: Site, mosquitto: Mosquitto) -> None:
    """Inspection stood still, and the state said that all is well."""
    site = over_mqtt(site, mosquitto.settings)
    with running(site) as agent:
        wait_for(lambda: (told := agent.state().trigger) is not None and told.connected, DEADLINE_S)
        assert agent.state().trigger == TriggerReport(TOPIC, connected=True, fault="")
        assert not any("trigger" in each for each in agent.state().faults)
        mosquitto.kill()
        fault = f"no trigger can come over MQTT: no connection to the broker at 127.0.0.1:{mosquitto.port}"
        wait_for(lambda: fault in agent.state().faults, DEADLINE_S)
        assert agent.state().trigger == TriggerReport(TOPIC, connected=False, fault=fault)
        shown = {each.name: each.samples[0].value for each in metrics_of(agent.state())}
        assert shown["headway_trigger_connected"] == 0
        mosquitto.start()
        wait_for(lambda: (told := agent.state().trigger) is not None and told.connected, DEADLINE_S)
        assert fault not in agent.state().faults


def test_a_topic_that_the_broker_refuses_is_a_fault_and_doctors_too(site: Site) -> None:
    with refusing() as settings:
        trigger = MqttTrigger(settings, "line-1", TOPIC, lambda _part: None, lambda _reason: None)
        trigger.start()
        wait_for(lambda: trigger.fault is not None, DEADLINE_S)
        assert trigger.fault == (
            f"no trigger can come over MQTT: the broker does not let this device hear {TOPIC} (Not authorized)"
        )
        assert not trigger.connected
        trigger.stop()
        (found,) = check_trigger(over_mqtt(site, settings), settings)
        assert (found.area, found.level) == ("trigger", Level.FAULT)
        assert found.what == f"{TOPIC}: the broker does not let this device hear it (Not authorized)"
    assert trigger_told({"topic": TOPIC, "connected": False, "fault": "no trigger can come"}).level is Level.FAULT


@pytest.mark.broker
def test_the_doctor_listens_for_triggers_as_the_agent_does(site: Site, mosquitto: Mosquitto) -> None:
    assert list(check_trigger(site, mosquitto.settings)) == []  # over HTTP alone
    (found,) = check_trigger(over_mqtt(site, mosquitto.settings), mosquitto.settings)
    assert (found.level, found.what) == (Level.GOOD, f"{TOPIC}: the broker lets this device hear it")


def test_triggers_whose_time_is_over_keep_no_place_but_a_replayed_files() -> None:
    """Rejected as late long ago, they filled the queue: the first part after an outage was refused."""
    triggers = Triggers(cameras=2, limit=2, replayed=[1])
    for at_s in (1.0, 2.0):
        triggers.fire(Trigger("a", 0.0, at_s))
    triggers.let_go(1.0)
    assert [triggers.take(0), triggers.take(0)][1] is None
    assert triggers.depth == 2
    passing = Triggers(cameras=1, limit=2)
    for at_s in (1.0, 2.0):
        passing.fire(Trigger("a", 0.0, at_s))
    passing.let_go(2.0)
    passing.fire(Trigger("b", 0.0, 3.0))
    assert (passing.depth, passing.refused) == (1, 0)


def test_a_trigger_waits_for_each_camera_and_no_more_may_wait_than_the_slowest_can_take() -> None:
    triggers = Triggers(cameras=2, limit=2)
    first, second = Trigger("a", 0.0, 0.0), Trigger("a", 0.0, 0.0)
    triggers.fire(first)
    triggers.fire(second)
    assert triggers.take(0) is first
    assert triggers.take(0) is second
    assert triggers.take(0) is None
    with pytest.raises(TriggerRefused, match="2 parts wait"):
        triggers.fire(Trigger("b", 0.0, 0.0))
    assert triggers.take(1) is first
    triggers.fire(Trigger("b", 0.0, 0.0))
    assert (triggers.fired, triggers.refused, triggers.depth) == (3, 1, 2)
