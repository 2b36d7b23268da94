"""A bad release of each kind leaves by itself, while the one before it goes on inspecting: a real agent and fleet.

That the agent outlives a backbone that takes its process down is in `test_agent` and `test_runtime_apart`, a
release that it does not stay up with in `test_update`.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from device_agent.agent import Agent
from device_agent.config import MqttTable, RuntimeSettings
from sdk.bundle import Bundle
from sdk.fleet.broker import Mosquitto
from sdk.images import sample_id
from tests.simulators import wait_for
from tests.test_agent import COUNT, bundle, fleet_of, images, running, site_of
from tests.tiny import class_id, picture, tiny_bundle, with_backbone

__all__ = ["bundle", "images"]

DEADLINE_S = 120.0
OWN_LABELS = 8
WORK = 112
"""Side of the picture that the slow backbone convolves beside its work: some 40 ms a frame on one core."""


def slow(model: bytes) -> bytes:
    """Return a backbone that gives the same features after much work for nothing."""
    proto = onnx.load_from_string(model)
    graph = proto.graph
    (features,) = graph.output
    for node in graph.node:
        node.output[:] = ["quick" if name == features.name else name for name in node.output]
    weights = np.random.default_rng(0).normal(0, 0.05, (64, 64, 3, 3)).astype(np.float32)
    sizes = np.array([1, 3, WORK, WORK], np.int64)
    graph.initializer.extend(
        [
            numpy_helper.from_array(weights[:, :3], "x1"),
            numpy_helper.from_array(weights, "x2"),
            numpy_helper.from_array(sizes, "sizes"),
            numpy_helper.from_array(np.zeros(1, np.float32), "nothing"),
            numpy_helper.from_array(np.array([0], np.int64), "start"),
            numpy_helper.from_array(np.array([1], np.int64), "end"),
        ]
    )

    def conv(before: str, weights: str, after: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [before, weights], [after], kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    graph.node.extend(
        [
            helper.make_node("Slice", ["frames", "start", "end", "start"], ["one"]),
            helper.make_node("Resize", ["one", "", "", "sizes"], ["large"], mode="nearest"),
            conv("large", "x1", "y0"),
            *(conv(f"y{i}", "x2", f"y{i + 1}") for i in range(4)),
            helper.make_node("ReduceMean", ["y4"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
            helper.make_node("Add", ["quick", "zero"], [features.name]),
        ]
    )
    return bytes(proto.SerializeToString())


def make_bad(kind: str, bundle: Bundle, folder: Path) -> tuple[Bundle, str]:
    """Return a bad release, and a part of the reason that it leaves with."""
    out = folder / kind
    if kind == "wrong features":
        other = tiny_bundle(folder / "other", backbone_seed=5)
        return with_backbone(bundle, out, other.backbone()), "on the golden inputs"
    if kind == "slow":
        return with_backbone(bundle, out, slow(bundle.backbone())), "ms on this device, at most 10 are allowed"
    swapped = {"pit": "scratch", "scratch": "pit"}
    return tiny_bundle(out, backbone_seed=3, per_class=40, called=swapped), "Taken back"


class LongestGap:
    """How long inspection stood still at most while the block ran."""

    def __init__(self, agent: Agent) -> None:
        self.seconds = 0.0
        self._agent = agent
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> LongestGap:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        frames, since = self._agent.station.counts.frames, time.monotonic()
        while not self._stop.wait(0.005):
            now = time.monotonic()
            self.seconds = max(self.seconds, now - since)
            if self._agent.station.counts.frames != frames:
                frames, since = self._agent.station.counts.frames, now


@pytest.mark.broker
@pytest.mark.parametrize("kind", ["wrong features", "slow", "worse on own labels"])
def test_a_bad_release_leaves_by_itself_and_inspection_goes_on(
    images: Path, bundle: Bundle, mosquitto: Mosquitto, tmp_path: Path, kind: str
) -> None:
    bad, reason = make_bad(kind, bundle, tmp_path)
    for i in range(1, 2 * OWN_LABELS, 2):
        (images / f"{i}.png").write_bytes(picture("pit", 700 + i))
        (images / f"{i + 1}.png").write_bytes(picture("scratch", 700 + i))
    site = site_of(
        images,
        bundle.path,
        loop=True,
        rate_fps=50.0,
        runtime=RuntimeSettings(max_frame_ms=10.0),
        mqtt=MqttTable(host="127.0.0.1", port=mosquitto.port),
    )
    with fleet_of(tmp_path / "fleet", mosquitto) as fleet, Agent(site) as agent, running(agent):
        wait_for(lambda: agent.state().frames > 2 * OWN_LABELS)
        for i in range(1, 2 * OWN_LABELS, 2):
            for name in ("pit", "scratch"):
                agent.station.label(sample_id(picture(name, 700 + i)), class_id(name), "ann")
        fleet.publish(bad, channel="default", precision=None)

        def rolled_back() -> bool:
            release, update = agent.state().release, agent.state().update
            assert release is not None
            assert release.digest == bundle.digest(), "nothing else ever served"
            return update is not None and update.state == "rolled_back"

        with LongestGap(agent) as gap:
            wait_for(rolled_back, DEADLINE_S)
        print(f"{kind}: inspection stood still for {gap.seconds:.2f} s at most")
        update = agent.state().update
        assert update is not None
        assert reason in update.reason
        seen = agent.state().frames
        wait_for(lambda: agent.state().frames > seen + COUNT)
        assert agent.state().errors == 0
