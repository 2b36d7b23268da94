"""A bad release of each kind leaves by itself, while the one before it goes on inspecting: a real agent and fleet.

It is rolled out to forty lines, of which one is there: the agent. Three kinds in the tests, eleven in the long run
(`HEADWAY_SOAK=1`). `test_bad_rollouts` has more kinds every time, with simulators around the update machine.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from device_agent.agent import Agent
from device_agent.config import MqttTable, RuntimeSettings
from sdk.bundle import Bundle
from sdk.fleet.broker import Mosquitto
from sdk.fleet.rollout import Plan, RolloutState
from sdk.fleet.store import FleetStore
from sdk.images import sample_id
from sdk.wire import DeviceState
from tests.simulators import wait_for
from tests.soak import SOAK, tell
from tests.test_agent import COUNT, bundle, fleet_of, images, running, site_of
from tests.test_runtime_apart import (
    added,
    changed,
    constant_of_shape,
    expanded_when_opened,
    number,
    other_weights,
)
from tests.tiny import class_id, picture, tiny_bundle, with_backbone

__all__ = ["bundle", "images"]

DEADLINE_S = 120.0
OWN_LABELS = 8
WORK = 112
"""Side of the picture that the slow backbone convolves beside its work: some 40 ms a frame on one core."""


def slow(model: bytes, convolutions: int = 4) -> bytes:
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
            *(conv(f"y{i}", "x2", f"y{i + 1}") for i in range(convolutions)),
            helper.make_node("ReduceMean", [f"y{convolutions}"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
            helper.make_node("Add", ["quick", "zero"], [features.name]),
        ]
    )
    return bytes(proto.SerializeToString())


def unknown_operation(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "NoSuchOperation"


def no_number(model: onnx.ModelProto) -> None:
    """All features not a number: infinity times nothing."""
    number(model, "infinite", np.full((1,), np.inf, np.float32))
    added(model, helper.make_node("Mul", [model.graph.output[0].name, "infinite"], ["endless"]))


PIT, SCRATCH, GOOD = "pit", "scratch", "good"
BACKBONES: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "an operation that nobody knows": (unknown_operation, "NoSuchOperation"),
    "64 GiB when it is opened": (expanded_when_opened, "ONNX Runtime|memory|ended the process"),
    "16 GiB at each frame": (constant_of_shape, "ONNX Runtime|memory|ended the process"),
    "no numbers": (no_number, "not finite"),
    "filters in another order": (other_weights, "on the golden inputs"),
}
"""What is done to the backbone, and a part of the reason that the release leaves with."""
CONFUSED: dict[str, dict[str, str]] = {
    "worse on own labels": {PIT: SCRATCH, SCRATCH: PIT},
    "every class another": {PIT: SCRATCH, SCRATCH: GOOD, GOOD: PIT},
    "pits taken for good": {PIT: GOOD, GOOD: PIT},
}
"""What pictures of a class are taken for."""
CONVOLUTIONS = {"slow": 4, "slower": 10}
QUICK = ("wrong features", "slow", "worse on own labels")
KINDS = ("wrong features", *BACKBONES, *CONVOLUTIONS, *CONFUSED)


def make_bad(kind: str, bundle: Bundle, folder: Path) -> tuple[Bundle, str]:
    """Return a bad release, and a pattern of the reason that it leaves with."""
    out = folder / "bad"
    if kind == "wrong features":
        other = tiny_bundle(folder / "other", backbone_seed=5)
        return with_backbone(bundle, out, other.backbone()), "on the golden inputs"
    if kind in CONVOLUTIONS:
        bad = with_backbone(bundle, out, slow(bundle.backbone(), CONVOLUTIONS[kind]))
        return bad, "ms on this device, at most 10 are allowed"
    if kind in CONFUSED:
        return tiny_bundle(out, backbone_seed=3, per_class=40, called=CONFUSED[kind]), "Taken back"
    harm, reason = BACKBONES[kind]
    return changed(bundle, out, harm), reason


def stands(fleet: FleetStore) -> tuple[RolloutState, list[str]]:
    """Return how the rollout stands, and which lines it has reached."""
    with fleet.read() as ledger:
        found = ledger.rollout("default")
        assert found is not None
        return found[1].state, [member.device for member in ledger.members(found[0].id)]


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


def known(fleet: FleetStore) -> int:
    with fleet.read() as ledger:
        return len(ledger.devices())


OTHERS = 39
MAX_REACHED = 2
"""max(1, 5 %) of forty."""


def register_others(fleet: FleetStore) -> None:
    """Let the fleet know 39 more lines; a wave too many would assign the release to some of them."""
    with fleet.write() as ledger:
        for number in range(OTHERS):
            state = DeviceState(device=f"other-{number:02}", channel="default", online=True)
            ledger.note_state(state, seen_utc=time.time())


@pytest.mark.broker
@pytest.mark.parametrize("kind", KINDS if SOAK else QUICK)
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
        register_others(fleet)
        wait_for(lambda: known(fleet) == OTHERS + 1, what="the agent being known")
        fleet.publish(bad, channel="default", plan=Plan(waves=["1", "10%", "100%"], soak_s=0, deadline_s=3600))
        began_s = time.monotonic()

        def rolled_back() -> bool:
            release, update = agent.state().release, agent.state().update
            assert release is not None
            assert release.digest == bundle.digest(), "nothing else ever served"
            return update is not None and update.state == "rolled_back"

        with LongestGap(agent) as gap:
            wait_for(rolled_back, DEADLINE_S)
        took_s = time.monotonic() - began_s
        update = agent.state().update
        assert update is not None
        assert re.search(reason, update.reason), update.reason
        wait_for(lambda: stands(fleet)[0] is RolloutState.HALTED, what="the halt")
        reached = stands(fleet)[1]
        assert "line-1" in reached
        assert len(reached) <= MAX_REACHED
        attempts = agent.store.updates.newest()
        seen = agent.state().frames
        wait_for(lambda: agent.state().frames > seen + COUNT)
        assert agent.state().errors == 0
        assert agent.store.updates.newest() == attempts, "never to and fro"
        assert len(attempts) == 1
        where = f"from {len(reached)} of {OTHERS + 1} lines"
        tell(f"T18, {kind}", 1, 0, f"gone in {took_s:.1f} s {where}; inspection stood {gap.seconds:.2f} s at most")
