"""The agent goes on: without a release, with bad frames, a lost camera, no broker, after kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from device_agent import agent as agent_module
from device_agent import logs, memory
from device_agent.agent import Agent, running_page
from device_agent.config import (
    FolderCamera,
    MqttTable,
    PageSettings,
    PartSettings,
    RecipeSettings,
    RuntimeSettings,
    Site,
)
from device_agent.flow import FAILURES_IN_A_ROW
from device_agent.history import read_history
from device_agent.report import UNREADABLE_S, unreadable_words
from device_agent.runtime import open_runtime
from device_agent.site_file import load_site
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.codes import Features
from sdk.errors import BadSignature, ConfigError, HeadwayError, Incompatible, InferenceFailed
from sdk.fleet.broker import Mosquitto
from sdk.fleet.service import FleetService
from sdk.fleet.store import FleetStore
from sdk.images import sample_id
from sdk.labels import Label
from sdk.mqtt import Message, MqttSession
from sdk.wire import DeviceState, LabelBatch, Result, Topics, decode_json, decode_msgpack
from tests.commands import headway
from tests.simulators import wait_for
from tests.tensorrt_sim import SimTensorRt, sim_library
from tests.tiny import FEATURE_SIZE, backbone, class_id, picture, tiny_bundle, with_backbone

COUNT = 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("agent") / "bundle")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(COUNT):
        (folder / f"{i}.png").write_bytes(picture("pit" if i % 2 else "rings", 700 + i))
    return folder


def site_of(images: Path, bundle: Path | None, **more: Any) -> Site:
    camera = FolderCamera(path=images, rate_fps=more.pop("rate_fps", 0.0), loop=more.pop("loop", False))
    page = PageSettings(port=0)
    return Site(device="line-1", camera=camera, data_dir=images.parent / "data", bundle=bundle, page=page, **more)


@contextlib.contextmanager
def running(agent: Agent) -> Iterator[list[dict[str, Any]]]:
    """Run the agent's loop on a thread; at the end stop it and check that it stops."""
    stop, ready = threading.Event(), list[dict[str, Any]]()
    thread = threading.Thread(target=agent.run, args=(stop,), kwargs={"on_ready": ready.append})
    thread.start()
    try:
        wait_for(lambda: ready, what="ready")
        yield ready
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def test_every_picture_of_the_folder_is_decided_and_stored(images: Path, bundle: Bundle) -> None:
    with Agent(site_of(images, bundle.path)) as agent, running(agent) as ready:
        wait_for(lambda: agent.state().camera.state == "ended" and agent.state().frames == COUNT)
        state = agent.state()
        assert ready[0]["device"] == "line-1"
        assert ready[0]["release"] == "tiny"
        assert state.frames == COUNT
        assert state.errors == 0
        assert {s.sample_id for s in agent.store.samples.newest(limit=50)} == {
            sample_id((images / f"{i}.png").read_bytes()) for i in range(COUNT)
        }
        with urllib.request.urlopen(f"{ready[0]['page']}api/state", timeout=10) as answer:
            assert json.load(answer)["frames"] == COUNT
        assert running_page(agent.site.data_dir) == ready[0]["page"]
    assert running_page(agent.site.data_dir) is None


def test_without_a_release_no_picture_is_taken_until_one_serves(images: Path, bundle: Bundle) -> None:
    with Agent(site_of(images, None)) as agent, running(agent) as ready:
        assert ready[0]["release"] is None
        assert agent.state().release is None
        assert agent.state().camera.frames == 0
        agent.station.serve(bundle, None, open_runtime(bundle, None))
        wait_for(lambda: agent.state().frames == COUNT)


def test_a_release_changes_between_two_frames(images: Path, bundle: Bundle, tmp_path: Path) -> None:
    other = tiny_bundle(tmp_path / "other", name="other", backbone_seed=1)
    with Agent(site_of(images, bundle.path, loop=True)) as agent, running(agent):
        wait_for(lambda: agent.state().frames > COUNT)
        agent.station.serve(other, None, open_runtime(other, None), "ab" * 32)
        seen = agent.state().frames
        wait_for(lambda: agent.state().frames > seen + COUNT)
        state = agent.state()
        assert state.release is not None
        assert (state.release.name, state.release.id) == ("other", "ab" * 32)
        assert state.errors == 0
        # Frames that were on their way are decided by the release before, and kept a little later.
        wait_for(lambda: {s.space for s in agent.store.samples.newest(limit=COUNT)} == {other.space()})


def test_labels_count_on_under_another_bundle_in_the_settings(
    images: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """Its features are others, and it lacks a class: the pictures are embedded anew, or said to be lost."""
    other = tiny_bundle(tmp_path / "other", classes=("rings", "bars"), backbone_seed=1)
    with Agent(site_of(images, bundle.path)) as agent, running(agent):
        wait_for(lambda: agent.state().frames == COUNT)
        learner = agent.station.require().learner
        pits = [sample_id((images / f"{i}.png").read_bytes()) for i in (1, 3, 5)]
        learner.label_all([(each, class_id("pit")) for each in pits], "anna")
    (lost,) = (agent.site.data_dir / "images").glob(f"??/{pits[0].hex()}*")
    lost.write_bytes(b"torn by a power cut")
    with Agent(site_of(images, other.path)) as agent, running(agent):
        wait_for(lambda: agent.state().own_labels == 2, what="labels embedded anew")
        words = "1 label given here does not count"
        wait_for(lambda: [each for each in agent.state().faults if each.startswith(words)], what="the lost one")
        learner = agent.station.require().learner
        assert {each.name: each.own_labels for each in learner.classes()} == {"rings": 0, "bars": 0, "pit": 2}
        learner.label(pits[0], None, "anna")
        assert not [each for each in agent.state().faults if each.startswith(words)]


def test_no_label_is_said_to_be_lost_whose_sample_the_bundle_has(
    images: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """People labelled what their next bundle was made from, and its pictures are gone from the line."""
    other = tiny_bundle(tmp_path / "other", per_class=48, backbone_seed=1)
    brought = {*other.base().samples} - {*bundle.base().samples}
    kept = next(picture("pit", i) for i in range(48) if sample_id(picture("pit", i)) in brought)
    gone = picture("pit", 1000)
    for name, each in (("0", kept), ("1", gone)):
        (images / f"{name}.png").write_bytes(each)
    pits = [sample_id(kept), sample_id(gone)]
    with Agent(site_of(images, bundle.path)) as agent, running(agent):
        wait_for(lambda: agent.state().frames == COUNT)
        agent.station.require().learner.label_all([(each, class_id("pit")) for each in pits], "anna")
    for each in pits:
        (file,) = (agent.site.data_dir / "images").glob(f"??/{each.hex()}*")
        file.unlink()
    with Agent(site_of(images, other.path)) as agent, running(agent):
        wait_for(lambda: agent.state().faults, what="the lost one told of")
        assert agent.state().own_labels == 1
        assert [each for each in agent.state().faults if each.startswith("1 label given here does not count")]


def test_frames_go_on_while_an_engine_is_built_and_after_it_took_over(images: Path, bundle: Bundle) -> None:
    sim = SimTensorRt()
    sim.go_on.clear()
    site = site_of(images, bundle.path, loop=True, runtime=RuntimeSettings(tensorrt="on"))
    with Agent(site, tensorrt=lambda: sim_library(sim)) as agent, running(agent):

        def runtime() -> str:
            release = agent.state().release
            return "" if release is None else release.runtime

        wait_for(lambda: sim.builds == 1)
        seen = agent.state().frames
        wait_for(lambda: agent.state().frames > seen + COUNT)
        assert "(TensorRT engine: " in runtime()
        sim.go_on.set()
        wait_for(lambda: runtime() == "TensorRT 10.3.0 on Orin")
        seen = agent.state().frames
        wait_for(lambda: agent.state().frames > seen + COUNT)
        assert agent.state().errors == 0
        assert len(list((agent.site.data_dir / "engines").glob("*.engine"))) == 1


class Failing:
    """A runtime that fails on frames it is told to."""

    name = "failing"
    feature_size = FEATURE_SIZE

    def __init__(self, bundle: Bundle, error: Exception, every: int = 2) -> None:
        self.inner = open_runtime(bundle, None)
        self.error, self.every = error, every
        self.calls = 0

    def features(self, batch: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Features:
        self.calls += 1
        if self.calls % self.every == 0:
            raise self.error
        return self.inner.features(batch)


@pytest.mark.parametrize(
    "error", [InferenceFailed("out of order", hint="-"), KeyError("a bug"), MemoryError()], ids=type
)
def test_a_frame_that_fails_is_counted_and_the_next_one_taken(
    images: Path, bundle: Bundle, error: Exception
) -> None:
    with Agent(site_of(images, None)) as agent, running(agent):
        agent.station.serve(bundle, None, Failing(bundle, error))
        wait_for(lambda: agent.state().errors + agent.state().frames == COUNT)
        assert agent.state().camera.state == "ended"
        assert agent.state().errors == COUNT // 2


def roll_backs(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list into which go the reasons for which the agent wants its release rolled back."""
    reasons: list[str] = []
    monkeypatch.setattr(agent._updater, "fail", lambda _release_id, reason: reasons.append(reason))
    return reasons


def test_a_camera_that_does_not_fit_its_recipe_rolls_no_release_back(
    images: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = FolderCamera(path=images, loop=True, recipe=RecipeSettings(region=(0, 0, 4000, 3000)))
    site = msgspec.structs.replace(site_of(images, None), camera=camera)
    with Agent(site) as agent, running(agent):
        reasons = roll_backs(agent, monkeypatch)
        agent.station.serve(bundle, None, open_runtime(bundle, None), release_id="ab" * 32)
        wait_for(lambda: agent.state().errors > FAILURES_IN_A_ROW)
        assert reasons == []
        assert "does not lie in a frame" in agent.state().faults[0]


@pytest.mark.parametrize("error", [InferenceFailed("out of order", hint="-"), KeyError("a bug")], ids=type)
def test_a_release_that_decides_no_frame_is_rolled_back(
    images: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with Agent(site_of(images, None, loop=True)) as agent, running(agent):
        reasons = roll_backs(agent, monkeypatch)
        agent.station.serve(bundle, None, Failing(bundle, error, every=1), release_id="ab" * 32)
        wait_for(lambda: reasons)
        assert reasons[0].startswith("it decided no frame: ")


def test_a_bad_file_rejects_its_part_and_is_told_of(
    images: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name may hold what a terminal would take for its markup."""
    (images / "1[b]2.png").write_bytes(picture("pit", 701)[:100])
    site = site_of(images, bundle.path)
    with Agent(site) as agent, running(agent):
        wait_for(lambda: agent.state().camera.state == "ended" and agent.state().frames == COUNT)
        wait_for(lambda: sum(1 for _ in read_history(site.data_dir)) == COUNT + 1)
        (row,) = [row for row in read_history(site.data_dir) if row.part == "1[b]2.png"]
        assert (row.verdict, row.sample, row.tiles) == ("reject", "", 0)
        assert row.reason.startswith("not inspected: 1[b]2.png: the image is damaged")
        state = agent.state()
        assert (state.camera.bad, state.errors) == (1, 0)
        fault = unreadable_words(state.camera.name, state.camera.unreadable)
        assert (state.faults, "1[b]2.png: the image is damaged" in fault) == ([fault], True)
        assert agent.station.store.samples.newest(limit=50) != []
        assert all(sample.source != "1[b]2.png" for sample in agent.station.store.samples.newest(limit=50))
        file = images.parent / "site.toml"
        file.write_text(f'device = "line-1"\ndata_dir = "data"\n[camera]\nkind = "folder"\npath = "{images}"\n')
        assert "1[b]2.png: the image is damaged" in headway(capsys, "agent", "status", str(file)).out
        tally = agent.sources[0].camera.tally
        tally.unreadable_s -= UNREADABLE_S
        assert (agent.state().faults, agent.state().camera.bad) == ([], 1)


def test_a_lost_source_is_tried_again(images: Path, bundle: Bundle) -> None:
    with Agent(site_of(images, bundle.path, loop=True, rate_fps=50.0)) as agent, running(agent):
        wait_for(lambda: agent.state().frames > 0)
        away = images.rename(images.with_name("away"))
        wait_for(lambda: agent.state().camera.state == "lost")
        assert "is not a folder" in agent.state().faults[0]
        away.rename(images)
        seen = agent.state().frames
        wait_for(lambda: agent.state().frames > seen)
        wait_for(lambda: agent.state().faults == [])


def test_no_broker_is_weather(images: Path, bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site = site_of(images, bundle.path, mqtt=MqttTable(host="127.0.0.1", port=port))
    with Agent(site) as agent, running(agent):
        wait_for(lambda: agent.state().frames == COUNT)
        agent.station.label(agent.store.samples.newest(limit=1)[0].sample_id, class_id("pit"), "ann")
        mqtt = agent.state().mqtt
        assert mqtt is not None
        assert not mqtt.connected
        assert agent.state().outbox == 2


@pytest.mark.broker
def test_decisions_labels_and_state_go_to_the_broker(images: Path, bundle: Bundle, mosquitto: Mosquitto) -> None:
    topics, heard = Topics(), list[Message]()
    listener = MqttSession(mosquitto.settings, "listener", on_message=heard.append)
    listener.subscribe([topics.up_result("line-1"), topics.up_label("line-1"), topics.state("line-1")])
    listener.connect()
    site = site_of(images, None, mqtt=MqttTable(host="127.0.0.1", port=mosquitto.port))

    def payloads(topic: str) -> list[bytes]:
        return [message.payload for message in heard if message.topic == topic]

    with Agent(site) as agent, running(agent):
        wait_for(lambda: (mqtt := agent.state().mqtt) is not None and mqtt.connected)
        agent.station.serve(bundle, None, open_runtime(bundle, None))
        wait_for(lambda: len(payloads(topics.up_result("line-1"))) == COUNT)
        result = decode_json(payloads(topics.up_result("line-1"))[0], Result)
        assert agent.store.samples.get(bytes.fromhex(result.sample or "")) is not None
        agent.station.label(bytes.fromhex(result.sample or ""), class_id("pit"), "ann")
        wait_for(lambda: payloads(topics.up_label("line-1")))
        batch = decode_msgpack(payloads(topics.up_label("line-1"))[0], LabelBatch)
        assert isinstance(batch.records[0].entry.body, Label)

        def newest() -> DeviceState:
            return decode_json(payloads(topics.state("line-1"))[-1], DeviceState)

        wait_for(lambda: newest().live_set_digest == agent.state().live_set_digest)
        assert newest().online
        assert newest().space == bundle.space()
    wait_for(lambda: not newest().online)
    listener.close()


@pytest.mark.broker
def test_the_fleet_hears_what_is_wrong_and_what_the_head_rests_on(
    images: Path, bundle: Bundle, mosquitto: Mosquitto
) -> None:
    heard: list[DeviceState] = []
    listener = MqttSession(
        mosquitto.settings,
        "listener",
        on_message=lambda message: heard.append(decode_json(message.payload, DeviceState)),
    )
    listener.subscribe([Topics().state("line-1")])
    listener.connect()
    mqtt = MqttTable(host="127.0.0.1", port=mosquitto.port)
    site = site_of(images, bundle.path, mqtt=mqtt, part=PartSettings(good=("nothing",)))
    with Agent(site) as agent, running(agent):
        wait_for(lambda: heard and heard[-1].online)
        told = heard[-1]
        assert told.faults[0] == "every part is rejected: no class is a good one"
        head = agent.state().head
        assert head is not None
        assert (told.head_digest, told.head_samples, told.taken_back) == (head.digest, head.samples, False)
    wait_for(lambda: not heard[-1].online)
    assert heard[-1].run == told.run != ""
    listener.close()


@contextlib.contextmanager
def fleet_of(folder: Path, broker: Mosquitto) -> Iterator[FleetStore]:
    """Run a real fleet service on a thread."""
    stop = threading.Event()
    with FleetStore(folder) as fleet:
        thread = threading.Thread(target=FleetService(fleet, broker.settings).run, args=(stop,))
        thread.start()
        try:
            yield fleet
        finally:
            stop.set()
            thread.join(60)


def device_of(folder: Path, images: Path, device: str, broker: Mosquitto) -> Agent:
    return Agent(
        Site(
            device=device,
            camera=FolderCamera(path=images),
            data_dir=folder / device,
            page=PageSettings(port=0),
            mqtt=MqttTable(host="127.0.0.1", port=broker.port),
        )
    )


@pytest.mark.broker
def test_a_release_over_mqtt_serves_and_what_one_device_learned_the_other_knows(
    images: Path, bundle: Bundle, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    with (
        fleet_of(tmp_path / "fleet", mosquitto) as fleet,
        device_of(tmp_path, images, "line-1", mosquitto) as one,
        device_of(tmp_path, images, "line-2", mosquitto) as two,
        running(one),
        running(two),
    ):
        published = fleet.publish(bundle, channel="default")
        wait_for(lambda: one.state().frames == two.state().frames == COUNT)
        for state in (one.state(), two.state()):
            assert state.release is not None
            assert state.release.id == published.ref.release_id
        rings = one.station.define_class("rings", "ann")
        for i in range(0, COUNT, 2):
            one.station.label(sample_id(picture("rings", 700 + i)), rings, "ann")
        wait_for(lambda: "rings" in {c.name for c in two.station.classes()}, what="the class on line-2")
        wait_for(lambda: two.state().live_set_digest == one.state().live_set_digest)
        wait_for(lambda: one.state().outbox == 0)
        assert two.state().own_labels == 0
        # The head of that live set decides once its graph is made.
        wait_for(lambda: two.station.inspect(picture("rings", 999)).decision.forced == "rings", what="its head")
        mqtt = two.state().mqtt
        assert mqtt is not None
        assert mqtt.release_bytes > sum(f.size_bytes for f in bundle.manifest.files)
        assert 0 < mqtt.head_bytes < mqtt.release_bytes
        update = two.state().update
        assert update is not None
        assert update.state in {"provisional", "committed"}


@pytest.mark.broker
def test_a_release_that_serves_is_there_again_after_a_restart_without_the_broker(
    images: Path, bundle: Bundle, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    with fleet_of(tmp_path / "fleet", mosquitto) as fleet:
        fleet.publish(bundle, channel="default")
        with device_of(tmp_path, images, "line-1", mosquitto) as agent, running(agent):
            wait_for(lambda: agent.state().frames == COUNT)
    mosquitto.kill()
    with device_of(tmp_path, images, "line-1", mosquitto) as agent:
        release = agent.state().release
        assert release is not None
        assert release.digest == bundle.digest()


@pytest.mark.broker
def test_a_release_that_lacks_our_precision_is_rolled_back_and_the_old_one_serves_on(
    images: Path, bundle: Bundle, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    other = tiny_bundle(tmp_path / "other", name="other", precision="fp16", backbone_seed=1)
    site = site_of(images, bundle.path, precision="fp32", mqtt=MqttTable(host="127.0.0.1", port=mosquitto.port))
    with fleet_of(tmp_path / "fleet", mosquitto) as fleet, Agent(site) as agent, running(agent):
        fleet.publish(other, channel="default")
        wait_for(lambda: (update := agent.state().update) is not None and update.state == "rolled_back")
        update, release = agent.state().update, agent.state().release
        assert update is not None
        assert "no fp32" in update.reason
        assert release is not None
        assert release.name == "tiny"


@pytest.mark.broker
def test_a_release_that_would_take_all_memory_is_rolled_back_and_the_old_one_serves_on(
    images: Path, bundle: Bundle, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    model = onnx.load_from_string(backbone())
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2**17, 2**17], np.int64), "side"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    features = model.graph.output[0].name
    model.graph.node.append(onnx.helper.make_node("Expand", ["nothing", "side"], ["64 GiB"]))
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["64 GiB"], ["zero"], keepdims=0))
    model.graph.node.append(onnx.helper.make_node("Add", [features, "zero"], ["the same"]))
    model.graph.output[0].name = "the same"
    greedy = with_backbone(bundle, tmp_path / "greedy", bytes(model.SerializeToString()))
    site = site_of(images, bundle.path, mqtt=MqttTable(host="127.0.0.1", port=mosquitto.port))
    with fleet_of(tmp_path / "fleet", mosquitto) as fleet, Agent(site) as agent, running(agent):
        fleet.publish(greedy, channel="default")
        wait_for(lambda: (update := agent.state().update) is not None and update.state == "rolled_back")
        release = agent.state().release
        assert release is not None
        assert release.digest == bundle.digest()
        assert agent.station.inspect(picture("good", 5)).decision.forced == "good"


@pytest.mark.broker
def test_a_new_release_waits_for_its_engine_while_the_old_one_serves(
    images: Path, bundle: Bundle, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    other, sim = tiny_bundle(tmp_path / "other", name="other", backbone_seed=1), SimTensorRt()
    site = site_of(
        images,
        bundle.path,
        loop=True,
        runtime=RuntimeSettings(tensorrt="on"),
        mqtt=MqttTable(host="127.0.0.1", port=mosquitto.port),
    )
    with (
        fleet_of(tmp_path / "fleet", mosquitto) as fleet,
        Agent(site, tensorrt=lambda: sim_library(sim)) as agent,
        running(agent),
    ):

        def serving() -> tuple[str, str]:
            release = agent.state().release
            return ("", "") if release is None else (release.name, release.runtime)

        wait_for(lambda: serving() == ("tiny", "TensorRT 10.3.0 on Orin"))
        sim.go_on.clear()
        fleet.publish(other, channel="default")
        wait_for(lambda: sim.builds == 2)
        seen = agent.state().frames
        wait_for(lambda: agent.state().frames > seen + COUNT)
        update = agent.state().update
        assert serving() == ("tiny", "TensorRT 10.3.0 on Orin")
        assert update is not None
        assert update.state == "candidate"
        sim.go_on.set()
        wait_for(lambda: serving() == ("other", "TensorRT 10.3.0 on Orin"))
        assert agent.state().errors == 0


# The same as a process


@pytest.fixture
def everybody_reads() -> Iterator[None]:
    """The mask that most machines have."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def site_file(images: Path, bundle: Bundle) -> Path:
    file = images.parent / "site.toml"
    file.write_text(
        f'device = "line-1"\ndata_dir = "data"\nbundle = "{bundle.path}"\n'
        '[camera]\nkind = "folder"\npath = "images"\n[page]\nport = 0\n'
    )
    return file


@contextlib.contextmanager
def process(file: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    with subprocess.Popen(
        [sys.executable, "-m", "sdk.cli", "agent", "run", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as child:
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
            assert line, child.stderr and child.stderr.read()
            yield child, json.loads(line)
        finally:
            child.kill()


def call(page: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{page}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_modules_are_no_garbage_to_look_through_and_a_release_may_be(
    images: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever refers to itself and is set apart stays for ever, as a release that was replaced must not."""
    done: list[str] = []

    class Noted(Agent):
        def __init__(self, *args: Any, **options: Any) -> None:
            done.append("agent")
            super().__init__(*args, **options)

        def run(self, *_: object, **__: object) -> None:
            done.append("run")

    monkeypatch.setattr(memory, "set_modules_apart", lambda: done.append("apart"))
    monkeypatch.setattr(memory, "give_back_memory", lambda: True)  # of the process that tests
    monkeypatch.setattr(logs, "set_up_logs", lambda *_, **__: None)
    monkeypatch.setattr(agent_module, "Agent", Noted)
    assert headway(capsys, "agent", "run", site_file(images, bundle)).code == 0
    assert done == ["apart", "agent", "run"]


def test_a_label_that_was_acknowledged_survives_kill_9(images: Path, bundle: Bundle) -> None:
    file = site_file(images, bundle)
    with process(file) as (child, ready):
        wait_for(lambda: call(ready["page"], "api/state")["frames"] == COUNT)
        sample = call(ready["page"], "api/samples?limit=1")[0]["sample"]
        new = call(ready["page"], "api/classes", {"name": "rings"})["class_id"]
        saved = call(ready["page"], "api/labels", {"sample": sample, "class_id": new, "operator": "ann"})
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        assert saved["saved"] is True
    with process(file) as (_, ready):
        state = call(ready["page"], "api/state")
        assert state["own_labels"] == 1
        assert "rings" in [c["name"] for c in state["classes"]]
        wait_for(lambda: not call(ready["page"], "api/state")["head"]["busy"])
        assert call(ready["page"], f"api/samples/{sample}")["label"] == "rings"


def test_what_an_agent_writes_is_for_its_own_user_alone(
    images: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str], everybody_reads: None
) -> None:
    file = site_file(images, bundle)
    with process(file) as (_, ready):
        wait_for(lambda: call(ready["page"], "api/state")["frames"] == COUNT)
        sample = call(ready["page"], "api/samples?limit=1")[0]["sample"]
        new = call(ready["page"], "api/classes", {"name": "rings"})["class_id"]
        call(ready["page"], "api/labels", {"sample": sample, "class_id": new, "operator": "ann"})
    made = file.parent / "backup"
    assert headway(capsys, "agent", "backup", file, made).code == 0
    (file.parent / "data").rename(file.parent / "old")
    assert headway(capsys, "agent", "restore", file, made).code == 0
    for folder in (file.parent / "old", made, file.parent / "data"):
        found = [folder, *folder.rglob("*")]
        assert len(found) > 4
        assert [path for path in found if not path.is_symlink() and path.stat().st_mode & 0o077] == []


def test_the_first_account_makes_a_folder_for_its_own_user_alone(
    images: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str], everybody_reads: None
) -> None:
    file, secret = site_file(images, bundle), images.parent / "secret"
    secret.write_text("correct horse\n")
    add = ("agent", "user", "add", file, "Ann", "--role", "admin", "--secret-file", secret)
    assert headway(capsys, *add).code == 0
    assert (file.parent / "data").stat().st_mode & 0o077 == 0
    (images.parent / "mine").write_text("")
    assert (images.parent / "mine").stat().st_mode & 0o777 == 0o644, "the mask is as it was"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stop_is_clean_and_quiet(images: Path, bundle: Bundle, number: signal.Signals, code: int) -> None:
    with process(site_file(images, bundle)) as (child, ready):
        assert ready["ready"] is True
        child.send_signal(number)
        assert child.wait(60) == code
        assert child.stderr is not None
        assert "Traceback" not in child.stderr.read()
    with Store.open(images.parent / "data", "line-1"):
        assert running_page(images.parent / "data") is None


def test_init_writes_settings_that_are_understood_and_never_over_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "site.toml"
    assert headway(capsys, "agent", "init", file).code == 0
    told = headway(capsys, "agent", "status", file)
    assert told.code == 2
    assert "no agent answers" in told.err
    again = headway(capsys, "agent", "init", file)
    assert again.code == 2
    assert "exists" in again.err


def test_status_tells_what_the_agent_does(
    images: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    file = site_file(images, bundle)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file.write_text(file.read_text() + f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n')
    with Agent(load_site(file)) as agent, running(agent):
        wait_for(lambda: agent.state().frames == COUNT)
        told = headway(capsys, "agent", "status", file).out
        assert "8 inspected" in told
        assert f"broker    127.0.0.1:{port} does not answer: labels wait here" in told
        agent.station.label(agent.store.samples.newest(limit=1)[0].sample_id, class_id("pit"), "ann")
        told = headway(capsys, "agent", "status", file).out
        assert "labels    1 given here; 2 log entries not yet with the fleet" in told.splitlines()
        assert json.loads(headway(capsys, "agent", "status", file, "--json").out)["frames"] == COUNT


def test_status_of_a_station_alone_tells_of_no_fleet(
    images: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    file = site_file(images, bundle)
    with Agent(load_site(file)) as agent, running(agent):
        wait_for(lambda: agent.state().frames == COUNT)
        agent.station.label(agent.store.samples.newest(limit=1)[0].sample_id, class_id("pit"), "ann")
        told = headway(capsys, "agent", "status", file).out
    assert "labels    1 given here" in told.splitlines()
    assert "fleet" not in told


# What is refused at the start


def flipped(bundle: Bundle, tmp_path: Path) -> Path:
    copy = tmp_path / "flipped"
    shutil.copytree(bundle.path, copy)
    file = copy / "backbone.fp32.onnx"
    raw = bytearray(file.read_bytes())
    raw[1000] ^= 1
    file.write_bytes(raw)
    return copy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda _, tmp: {"bundle": tmp / "nothing"}, HeadwayError, "is not a bundle"),
        (lambda b, tmp: {"bundle": flipped(b, tmp)}, BadSignature, "is not what the manifest says"),
        (lambda _, __: {"precision": "int8"}, Incompatible, "no int8"),
        (lambda _, tmp: {"camera": FolderCamera(path=tmp / "none")}, ConfigError, "is not a folder"),
        (lambda _, __: {"page": PageSettings(host="192.0.2.1")}, ConfigError, "cannot be served"),
        (
            lambda _, __: {"mqtt": MqttTable(host="x", prefix="a b")},
            HeadwayError,
            "is not a plain topic",
        ),
    ],
    ids=["no-bundle", "flipped-byte", "precision", "no-folder", "page", "prefix"],
)
def test_what_cannot_work_is_refused_at_the_start_and_leaves_nothing_open(
    images: Path, bundle: Bundle, tmp_path: Path, change: Any, error: type[Exception], message: str
) -> None:
    site = site_of(images, bundle.path)
    wrong = {**{f: getattr(site, f) for f in site.__struct_fields__}, **change(bundle, tmp_path)}
    with pytest.raises(error, match=message):
        Agent(Site(**wrong))
    with Agent(site):
        pass


def test_a_second_agent_on_the_same_data_is_refused(images: Path, bundle: Bundle) -> None:
    site = site_of(images, bundle.path)
    with Agent(site), pytest.raises(ConfigError, match="another agent has"):
        Agent(site)


def test_an_agent_that_cannot_start_says_why_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = headway(capsys, "agent", "run", tmp_path / "site.toml")
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 2
