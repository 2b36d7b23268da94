"""What one label of a device costs every other device of its channel on the wire; `benchmarks.transport` calls it.

A real service with keys and a real broker; one device labels pictures, another listens as an agent
does. Its bytes are counted by a relay before it: all of TCP's payload, both ways, with MQTT's headers and
acknowledgements. Codes are of real pictures (`benchmarks.features`), which can be packed, unlike noise.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.features import real
from benchmarks.fleet import SPACE, Device
from benchmarks.link import Link
from sdk.codes import encode, fit_scale
from sdk.fleet.broker import Mosquitto
from sdk.fleet.service import FleetService
from sdk.fleet.store import FleetStore
from sdk.mqtt import Message, MqttSession
from sdk.trust.repository import OnlineTrust, Repository
from sdk.wire import WIRE_VERSION, LabelBatch, LogSegment, Topics, batches, decode_msgpack, encode_msgpack
from tests.builders import make_bundle

PAUSE_S: Final = 1.3
"""Longer than the service waits before it also says how long the union is: labels come rarely in earnest."""
TIMEOUT_S: Final = 60.0


def real_codes(labels: int) -> list[bytes]:
    """Return codes of pictures of NEU, spread over its classes.

    Raises:
        NoImageSets: they are not on this machine.
    """
    features = real("neu_det").features
    codes = encode(features, fit_scale(features))
    return [codes[row].tobytes() for row in np.linspace(0, len(codes) - 1, labels).astype(int)]


def bytes_a_label(codes: Sequence[bytes | None], folder: Path) -> float:
    """Return the bytes that each label costs a device that did not give it.

    Args:
        codes: Of the pictures that are labelled; None is numbers at random.
        folder: For what the fleet keeps.
    """
    t, heard = Topics(), threading.Semaphore(0)

    def hear(message: Message) -> None:
        if message.topic == t.log("default"):
            for _ in decode_msgpack(message.payload, LogSegment).records:
                heard.release()

    def wait_for(records: int) -> None:
        for _ in range(records):
            if not heard.acquire(timeout=TIMEOUT_S):
                raise RuntimeError("the label did not come")

    repository = Repository.create(folder / "trust", folder / "keys")
    device = Device("line-1", "default", 60.0, SPACE, t)
    stop = threading.Event()
    with FleetStore(folder / "fleet") as store, Mosquitto() as broker, contextlib.ExitStack() as undo:
        store.publish(make_bundle(folder / "bundle"), channel="default")
        ready = threading.Event()

        def report(kind: str, _more: object) -> None:
            if kind == "ready":
                ready.set()

        service = FleetService(store, broker.settings, report=report, trust=OnlineTrust(repository))
        serving = threading.Thread(target=service.run, args=(stop,))
        serving.start()
        undo.callback(serving.join)
        undo.callback(stop.set)
        if not ready.wait(TIMEOUT_S):  # what is said before is heard by nobody
            raise RuntimeError("the service did not start")
        link = Link(broker.port, 1e9, 0.0)
        listens = replace(broker.settings, port=link.port)
        with (
            MqttSession(listens, "line-2", on_message=hear) as other,
            MqttSession(broker.settings, "line-1", on_message=lambda _message: None) as labels_given,
        ):
            other.subscribe([t.log("default"), t.meta("default"), t.trust(), t.desired("line-2"), t.ack("line-2")])
            other.connect(TIMEOUT_S)
            labels_given.connect(TIMEOUT_S)
            labels_given.publish(t.state("line-1"), device.state(), retain=True)
            before = 0
            for number, code in enumerate([codes[0], *codes]):
                device.label(code)
                fresh = device.log[device.acknowledged :]
                device.acknowledged = len(device.log)
                for batch in batches(fresh):
                    payload = encode_msgpack(LabelBatch(WIRE_VERSION, batch))
                    labels_given.publish(t.up_label("line-1"), payload)
                wait_for(len(fresh))
                time.sleep(PAUSE_S)
                if number == 0:
                    before = link.passed_bytes  # the class's definition, and what a connection costs
            return (link.passed_bytes - before) / len(codes)
