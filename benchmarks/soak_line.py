"""A line for a soak: broker, fleet service and agent, each a process of its own, and what befalls them.

`SoakLine` starts them and can drop the broker, publish a release, and end the agent as an operator would, or a
power cut. Nothing here knows when, or what is measured meanwhile.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from sdk.bundle import MANIFEST_NAME
from sdk.demo.plant import Device, Service, headway, run, running
from sdk.fleet.broker import Mosquitto
from sdk.fleet.store import FleetStore
from sdk.labels import Body
from sdk.mqtt import Message, MqttSession
from sdk.wire import Result, Topics, decode_json

DEVICE: Final = "line-1"
CHANNEL: Final = "default"
DARK_S: Final = 1.0
"""The broker stays away for so long."""
READY_S: Final = 120.0
IMAGE_QUOTA_MIB: Final = 64


class SoakLine:
    """One device of one fleet, for as long as the `with` block.

    Args:
        folder: Empty, for everything that is written.
        bundle: The release that the device starts with; later ones are the same under other names.
        images: Frames, in turns for ever.
        precision: Of the bundle's; the first where None.
        rate_fps: Frames a second; 0 is as fast as they can be inspected.

    Attributes:
        device: The agent now running, spoken to over HTTP. Another one after a reboot.
        data: The device's folder.
    """

    device: Device

    def __init__(self, folder: Path, bundle: Path, images: Path, precision: str | None, rate_fps: float) -> None:
        self._folder, self._bundle, self._precision, self._rate_fps = folder, bundle, precision, rate_fps
        self._images = images.resolve()
        self.data = folder / "device"
        self._stack, self._agent = ExitStack(), ExitStack()
        self._broker = Mosquitto()
        self._latencies_ms: list[float] = []

    def __enter__(self) -> SoakLine:
        with ExitStack() as stack:
            stack.enter_context(self._broker)
            listener = MqttSession(self._broker.settings, "listener", on_message=self._hear)
            stack.callback(listener.close)
            listener.subscribe([Topics().up_result(DEVICE)])
            listener.connect()
            address = f"127.0.0.1:{self._broker.port}"
            command = headway("fleet", "serve", "--dir", self._folder / "fleet", "--broker", address, "--json")
            self._fleet = stack.enter_context(running(Service("fleet", command, self._folder / "fleet.log")))
            self._fleet.wait_ready(READY_S)
            self._site = self._folder / "site.toml"
            self._site.write_text(
                f'device = "{DEVICE}"\ndata_dir = "{self.data.name}"\nbundle = "{self._bundle.resolve()}"\n'
                + (f'precision = "{self._precision}"\n' if self._precision else "")
                + f'[camera]\nkind = "folder"\npath = "{self._images}"\nloop = true\n'
                f"rate_fps = {self._rate_fps}\n"
                f"[store]\nmax_image_mib = {IMAGE_QUOTA_MIB}\n[page]\nport = 0\n"
                f'[mqtt]\nhost = "127.0.0.1"\nport = {self._broker.port}\n',
                encoding="utf-8",
            )
            stack.callback(self.stop_agent)
            self.start_agent()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _hear(self, message: Message) -> None:
        self._latencies_ms.append(decode_json(message.payload, Result).latency_ms)

    def latencies_ms(self) -> list[float]:
        """Return what frames took from capture to verdict, of those heard of since the last call."""
        found, self._latencies_ms = self._latencies_ms, []
        return found

    @property
    def pid(self) -> int:
        """Process id of the agent now running."""
        return self.device.service.pid

    def start_agent(self) -> None:
        """Start the agent and wait until its page answers."""
        service = Service("agent", headway("agent", "run", self._site), self._folder / "agent.log")
        self._agent.enter_context(running(service))
        self.device = Device(DEVICE, service)

    def stop_agent(self) -> None:
        """Ask the agent to end, and wait until it has."""
        self._agent.close()

    def reboot(self, *, cut: bool) -> None:
        """End the agent and start it again; `cut` ends it without asking."""
        if cut:
            os.kill(self.pid, signal.SIGKILL)
        self.stop_agent()
        self.start_agent()

    def drop_broker(self) -> None:
        """Kill the broker, with all it held, and start it again after a moment."""
        os.kill(self._broker.pid, signal.SIGKILL)
        self._broker.stop()
        time.sleep(DARK_S)
        self._broker.start()

    def update(self, name: str) -> None:
        """Publish the bundle under another name, which makes it another release."""
        release = self._folder / name
        shutil.copytree(self._bundle, release)
        manifest = msgspec.json.decode((release / MANIFEST_NAME).read_bytes())
        (release / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest | {"name": name}))
        channel = ["--precision", self._precision] if self._precision else []
        run("fleet", "publish", release, "--dir", self._folder / "fleet", *channel, log=self._folder / "fleet.log")

    def stop_all(self) -> None:
        """End agent and service, so that what they wrote can be read."""
        self.stop_agent()
        self._fleet.stop()

    def at_the_fleet(self) -> dict[int, Body]:
        """Return what the fleet has of the device's log, by its number there; call `stop_all` first."""
        found: dict[int, Body] = {}
        with FleetStore(self._folder / "fleet") as store, store.read() as ledger:
            position = 1
            while records := ledger.records(CHANNEL, position):
                position += len(records)
                found |= {r.entry.seq: r.entry.body for r in records if r.entry.device == DEVICE}
        return found
