"""A newcomer enrols a second device from docs/fleet.md alone: its very commands, with real agents and a Mosquitto.

Only what a test cannot have is stood in for: the other machine (`scp` copies into a folder), the network's
packages (`pip`), and a person at an editor (`nano` names a folder of pictures as the camera).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdk.errors import BrokerError
from sdk.fleet.broker import find_mosquitto
from sdk.fleet.cli import fleet_overview
from sdk.fleet.store import FleetStore
from tests.simulators import wait_for
from tests.tiny import CLASSES, tiny_bundle, write_pictures

pytestmark = pytest.mark.broker

GUIDE = Path(__file__).parents[1] / "docs" / "fleet.md"
MOST_COMMANDS = 10
PASSPHRASE = "several plain words"
LASTING = ("headway fleet serve", "headway agent run")
STAND_INS = {
    "scp": 'test "$1" = -r && cp -r "$2" "$DEVICE_HOME/"',
    "pip": 'case "$1" in wheel) test -d "$6" && touch "$5/headway_edge-0-py3-none-any.whl";; '
    'install) test -f "${2%%[[]agent]}";; *) exit 1;; esac',
    "python3": 'test "$1 $2" = "-m venv" && mkdir -p "$3/bin" && touch "$3/bin/activate"',
    "nano": 'test -f "$1" && sed -i "s|path = .*|path = \\"$PICTURES\\"\\nloop = true\\nrate_fps = 5.0|" "$1" '
    '&& printf "\\n[page]\\nport = 0\\n" >> "$1"',
}


def commands_of(block: str) -> list[str]:
    """Return the commands of the guide's block, without the remarks behind them."""
    text = GUIDE.read_text(encoding="utf-8")
    after = text.partition(f"<!-- {block} -->")[2].lstrip("\n")
    lines = re.match(r"(?:    .*\n)+", after)
    assert lines, f"docs/fleet.md has no block {block}"
    return [re.sub(r"\s+# .*", "", line).strip() for line in lines[0].splitlines()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Terminal:
    """Runs commands in a folder, one after the other; those that last go on until the end."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.lasting: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> str:
        """Run a command to its end, or until it is up and goes on by itself."""
        if command.startswith(LASTING):
            child = subprocess.Popen(
                command.split(),
                cwd=self.folder,
                env=self.environment,
                stdout=(self.folder / "out.txt").open("wb"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self.lasting.append(child)
            wait_for(lambda: (self.folder / "out.txt").stat().st_size or child.poll() is not None, what=command)
            assert child.poll() is None, (self.folder / "out.txt").read_text()
            return ""
        ended = subprocess.run(
            ["bash", "-euc", command],
            check=False,
            cwd=self.folder,
            env=self.environment,
            input=f"{PASSPHRASE}\n" * 4,
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,  # no terminal: a passphrase is read from the input
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def end(self) -> None:
        for child in self.lasting:
            child.send_signal(signal.SIGTERM)
        for child in self.lasting:
            try:
                child.wait(60)
            finally:
                child.kill()


@contextlib.contextmanager
def plant(tmp_path: Path) -> Iterator[tuple[Terminal, Terminal]]:
    """A server's terminal and a new device's, on machines without anything but Headway."""
    shims = tmp_path / "shims"
    shims.mkdir()
    for name, script in STAND_INS.items():
        (shims / name).write_text(f"#!/bin/bash\nset -eu\n{script}\n")
        (shims / name).chmod(0o755)
    server, device = tmp_path / "server", tmp_path / "device"
    (server / "headway-source").mkdir(parents=True)
    device.mkdir()
    environment = {
        **os.environ,
        "PATH": f"{shims}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DEVICE_HOME": str(device),
        "PICTURES": str(tmp_path / "pictures"),
        "OMP_NUM_THREADS": "1",
    }
    terminals = Terminal(server, environment), Terminal(device, environment)
    try:
        yield terminals
    finally:
        terminals[1].end()
        terminals[0].end()


def line_2(store: FleetStore) -> dict[str, Any]:
    """Return what `headway fleet devices --json` says of line-2 now."""
    devices: list[dict[str, Any]] = fleet_overview(store)["devices"]
    return next((device for device in devices if device["device"] == "line-2"), {"release": None})


def test_a_second_device_takes_at_most_ten_commands() -> None:
    asked = [*commands_of("enrol"), *commands_of("device")]
    assert len(asked) == 8
    assert len(asked) <= MOST_COMMANDS
    text = GUIDE.read_text(encoding="utf-8")
    assert "Then eight commands for every device" in text


def test_the_guides_very_commands_enrol_a_device_that_takes_a_signed_release(tmp_path: Path) -> None:
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(f"{error}: {error.hint}")
    write_pictures(tmp_path / "pictures", ("good",), per_class=4)
    port = free_port()
    with plant(tmp_path) as (server, device):
        tiny_bundle(server.folder / "my-bundle", classes=CLASSES[:2], per_class=12)
        for command in commands_of("server"):
            server.run(command.replace("--host 192.0.2.10", f"--host 127.0.0.1 --port {port}"))
        for command in commands_of("enrol"):
            server.run(command)
        assert not (server.folder / "line-2").exists()  # its key stays nowhere else
        for command in commands_of("device"):
            device.run(command)
        with FleetStore(server.folder / "fleet") as store:
            wait_for(lambda: line_2(store)["release"], what="its first release")
            wait_for(lambda: line_2(store)["in_sync"], what="all that was learned")
            line = line_2(store)
        assert (line["online"], line["release"], line["trust"]) == (True, "tiny", "signed")
        assert "line-2" in server.run("headway fleet devices --dir fleet")


@pytest.mark.parametrize("command", commands_of("enrol")[:1])
def test_without_the_first_steps_the_device_is_not_enrolled(tmp_path: Path, command: str) -> None:
    with plant(tmp_path) as (server, _), pytest.raises(AssertionError, match="headway fleet tls"):
        server.run(command)
