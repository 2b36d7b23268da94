"""A Mosquitto of our own on this machine, with the configuration Headway needs.

For the demo, the tests and small plants. The broker is a cache (docs/protocol.md): nothing in it needs to
survive, so it keeps nothing on disk, and takes what has changed in its files by being started anew. Without
certificates it listens on loopback only, because it asks nobody who they are; `sdk.fleet.access` has the
configuration for a plant's network.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from sdk.errors import BrokerError
from sdk.fleet import port_holder
from sdk.mqtt import MAX_INFLIGHT, MqttSettings

START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0
RESTART_TIMEOUT_S: Final = STOP_TIMEOUT_S + START_TIMEOUT_S
RESTARTS_APART_S: Final = 4.0
"""So long one runs before it is asked to start anew: sessions that end sooner, one after the other, look like two
machines of one name (`sdk.session_ends`). Everybody is back within 1.5 s."""
REVIVE_EVERY_S: Final = 5.0
"""One that ends at once each time is started no more often."""
PORT_ATTEMPTS: Final = 5
PROCESS_BYTES: Final = 10 * 1024 * 1024
"""What Mosquitto holds before anybody connects: 8.4 MiB, 9.5 with TLS."""
HEAP_SHARE: Final = 0.75
"""Of the rest, what its `memory_limit` may count. It does not count what the allocator adds, 17 % for messages of
100 bytes and nothing for large ones, and 25 KiB of OpenSSL's for each connection."""
LOG_NAME: Final = "mosquitto.log"
_ASKED: Final = (0, -signal.SIGTERM)
"""How it ends that was asked to: the second before it minds signals."""
log = logging.getLogger(__name__)

_SEARCH: Final = os.pathsep.join(["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"])
"""Debian keeps the broker out of an ordinary user's PATH."""


@dataclass(frozen=True)
class BrokerLimits:
    """What the broker may use, so that one client cannot take it from the others (docs/protocol.md).

    Attributes:
        max_packet_bytes: Largest packet from a client.
        memory_bytes: Resident, of the whole broker; 0 is no limit. Retained chunks live here, so it must hold the
            current releases.
        queued_messages: Waiting for one absent or slow client.
        queued_bytes: The same in bytes.
        inflight: Sent to one client and not acknowledged.
    """

    max_packet_bytes: int = 256 * 1024
    memory_bytes: int = 1024 * 1024 * 1024
    queued_messages: int = 10_000
    queued_bytes: int = 32 * 1024 * 1024
    inflight: int = MAX_INFLIGHT

    def __post_init__(self) -> None:
        if 0 < self.memory_bytes < 2 * PROCESS_BYTES:
            raise ValueError(f"a broker does not fit into {self.memory_bytes} bytes")

    @property
    def heap_bytes(self) -> int:
        """What the broker may count as its own, so that it stays below `memory_bytes`; 0 for no limit.

        >>> BrokerLimits(memory_bytes=64 * 1024**2).heap_bytes // 1024
        41472
        """
        return int(HEAP_SHARE * max(0, self.memory_bytes - PROCESS_BYTES))


def mosquitto_config(port: int, limits: BrokerLimits = BrokerLimits(), host: str = "127.0.0.1") -> str:
    """Return the text of a mosquitto.conf.

    >>> "set_tcp_nodelay true" in mosquitto_config(1883)
    True
    """
    lines = [
        "# Written by Headway; docs/protocol.md says why.",
        f"listener {port} {host}",
        "allow_anonymous true",
        *limit_lines(limits),
    ]
    return "\n".join(lines) + "\n"


def limit_lines(limits: BrokerLimits) -> list[str]:
    """Return what every broker of ours has in its configuration, whoever may reach it."""
    return [
        "# Without it chunks wait for delayed acknowledgements: 27.7 s for what takes 0.39 s.",
        "set_tcp_nodelay true",
        "persistence false",
        f"max_packet_size {limits.max_packet_bytes}",
        f"memory_limit {limits.heap_bytes}",
        f"max_queued_messages {limits.queued_messages}",
        f"max_queued_bytes {limits.queued_bytes}",
        f"max_inflight_messages {limits.inflight}",
        "persistent_client_expiration 30d",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "connection_messages false",
    ]


def find_mosquitto(path: str | None = None) -> Path:
    """Return the broker's binary, looked for in a search path; this user's and the system folders by default.

    Raises:
        BrokerError: it is not installed.
    """
    found = shutil.which("mosquitto", path=path or os.pathsep.join([os.environ.get("PATH", os.defpath), _SEARCH]))
    if found is None:
        raise BrokerError("Mosquitto is not installed on this machine", hint="apt-get install mosquitto")
    return Path(found)


class Mosquitto:
    """A Mosquitto as a child process on a loopback port, for as long as the `with` block.

    One that a killed process left on the port is ended first (`sdk.fleet.port_holder`).

    Args:
        port: Where to listen; 0 takes a free port, the same again after a restart.
        limits: What it may use.
        binary: The broker; found by itself where None.
        config: Returns the configuration for a port; loopback and nobody asked by default.
        pid_file: Holds the process id while it runs, for `restart_broker`; the broker's log is beside it. With it
            one that somebody asks to end, other than by `stop`, is started again at once.

    Raises, on entering:
        BrokerError: not installed, the port is taken, or it does not come up.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        limits: BrokerLimits = BrokerLimits(),
        binary: Path | None = None,
        config: Callable[[int], str] | None = None,
        pid_file: Path | None = None,
    ) -> None:
        self.port = port
        self._any_port = port == 0
        self._limits = limits
        self._binary = binary
        self._config = config or (lambda port: mosquitto_config(port, self._limits))
        self._pid_file = pid_file
        self._guard = threading.RLock()  # for what is below; held while it starts or is told to end
        self._child: subprocess.Popen[bytes] | None = None
        self._ended: str | None = None  # how it ended by itself, until it runs again
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None  # says that the folder is ours

    @property
    def settings(self) -> MqttSettings:
        """How to reach it."""
        return MqttSettings(port=self.port)

    @property
    def pid(self) -> int:
        """Process id; only while it runs."""
        if self._child is None:
            raise ValueError("the broker does not run")
        return self._child.pid

    def __enter__(self) -> Mosquitto:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._clear()

    def _clear(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def start(self) -> None:
        """Start it and wait until it accepts connections.

        Raises:
            BrokerError: as for the class.
        """
        with self._guard:
            self._start(self._binary or find_mosquitto())

    def _start(self, binary: Path) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=port_holder.FOLDER_PREFIX))
            self._lock = port_holder.lock_folder(self._folder)
        # A free port may be taken between our looking and the broker's binding: look again.
        attempts = PORT_ATTEMPTS if self._any_port else 1
        for attempt in range(1, attempts + 1):
            if self._any_port:
                self.port = _free_port()
            try:
                self._start_once(binary, self._folder)
            except BrokerError:
                self._clear()
                raise
            except _PortTaken as error:
                if attempt == attempts:
                    self._clear()
                    raise BrokerError(f"port {self.port} of this machine is in use", hint=str(error)) from error
            else:
                self._any_port = False
                return

    def _start_once(self, binary: Path, folder: Path) -> None:
        if not _is_free(self.port):
            abandoned = port_holder.end_abandoned(self.port, STOP_TIMEOUT_S)
            if abandoned is None:
                raise _PortTaken(_whose(self.port))
            log.warning("ended the broker (process %d) that a killed service left on its port", abandoned)
        config = folder / "mosquitto.conf"
        errors = folder / LOG_NAME if self._pid_file is None else _log_beside(self._pid_file)
        written = self._config(self.port)
        config.write_text(written, encoding="utf-8")
        there = _answers if "\ncertfile " in written else _accepts
        # As root Mosquitto reads its configuration first and then becomes user `mosquitto`; it opens no other
        # file, since errors go to a handle we opened.
        with errors.open("wb") as stream:
            try:
                child = subprocess.Popen(
                    [str(binary), "-c", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,  # Ctrl-C is for us; we stop the broker last
                )
            except OSError as error:
                raise BrokerError(
                    f"{binary} does not start: {error.strerror}", hint="Install it again."
                ) from error
        deadline = time.monotonic() + START_TIMEOUT_S
        while child.poll() is None:
            if there(self.port):
                # Another process may have taken the port just now, and answer for a broker about to give up.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.02)
                if child.returncode is None:
                    self._child = child
                    if self._pid_file is not None:
                        self._pid_file.write_text(str(child.pid))
                        threading.Thread(target=self._mind, args=(child,), daemon=True).start()
                    return
            elif time.monotonic() > deadline:
                child.kill()
                child.wait()
                raise BrokerError(
                    f"Mosquitto does not accept connections on port {self.port}", hint=_last_line(errors)
                )
            else:
                time.sleep(0.01)
        if b"Address already in use" in errors.read_bytes():
            raise _PortTaken(_whose(self.port))
        raise BrokerError(
            f"Mosquitto ended with status {child.returncode}: {_fault(errors)}",
            hint="Mosquitto 2.0 or newer is needed.",
        )

    def revive(self) -> str | None:
        """Start it again where it has ended by itself; return how it ended, None where it had not.

        Raises:
            BrokerError: it does not start; asked again, this tries again.
        """
        with self._guard:
            child = self._child
            if child is not None and child.poll() is not None:
                self._ended = f"ended with status {child.returncode}: {self._last_words()}"
                self._child = None
            if self._ended is None:
                return None
            self.start()
            ended, self._ended = self._ended, None
            return ended

    def _mind(self, child: subprocess.Popen[bytes]) -> None:
        """Wait for its end, and start it again where it was asked to end; any other end is for `revive`."""
        child.wait()
        with self._guard:
            if self._child is not child or child.returncode not in _ASKED:
                return
            self._child = None
            try:
                self.start()
            except BrokerError as error:
                self._ended = "was asked to start anew"
                log.warning("%s: %s", error, error.hint)

    def _last_words(self) -> str:
        log_file = None if self._pid_file is None else _log_beside(self._pid_file)
        if log_file is None and self._folder is not None:
            log_file = self._folder / LOG_NAME
        return _last_line(log_file) if log_file is not None and log_file.exists() else "it said nothing"

    def stop(self) -> None:
        """Ask it to end, and wait; kill it where it does not."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would: everything it held is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again on the same port, empty."""
        with self._guard:
            self.kill()
            self.start()

    def _end(self, how: signal.Signals) -> None:
        with self._guard:
            child, self._child, self._ended = self._child, None, None
            if self._pid_file is not None:
                self._pid_file.unlink(missing_ok=True)
        if child is None:
            return
        child.send_signal(how)
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def runs(pid_file: Path) -> bool:
    """Return whether a broker of ours with this file runs."""
    return _running(pid_file) is not None


def _running(pid_file: Path) -> int | None:
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if port_holder.is_mosquitto(pid) else None


def restart_broker(
    pid_file: Path,
    config: Callable[[int], str],
    *,
    apart_s: float = RESTARTS_APART_S,
    timeout_s: float = RESTART_TIMEOUT_S,
) -> bool:
    """Let a running broker of ours be started anew, with its files as they are now; return whether there is one.

    Returns when the new one accepts connections. It is not told to reload: with certificates Mosquitto 2.0.11 then
    ends the sessions of clients that are away once more than they can end, throws others out, and crashes.

    One whose service was killed is ended: nobody is there to start it again.

    Args:
        pid_file: As `Mosquitto` writes it.
        config: Returns its configuration for a port, tried on loopback before the one that runs is ended.
        apart_s: How long the one that runs is to have run.
        timeout_s: How long it may take from then on.

    Raises:
        BrokerError: it cannot be started with its files as they are, and goes on as before; or it is not back in
            time.
    """
    pid = _running(pid_file)
    if pid is None:
        return False
    _check_starts(pid, config)
    time.sleep(min(apart_s, max(0.0, apart_s - port_holder.age_s(pid))))
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError:
        return False  # another user's, or it has ended
    if not port_holder.is_kept(pid):
        return True
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        if not pid_file.exists():
            return False  # its service has ended meanwhile
        now = _running(pid_file)
        if now not in (pid, None):
            return True
        if now == pid and time.monotonic() - began > STOP_TIMEOUT_S:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    raise BrokerError(
        f"the broker (process {pid}) was asked to start anew and is not back: {_last_line(_log_beside(pid_file))}",
        hint="What was changed is written, and counts once `headway fleet serve` is started anew.",
    )


def _check_starts(pid: int, config: Callable[[int], str]) -> None:
    try:
        with Mosquitto(config=config):
            pass
    except BrokerError as error:
        raise BrokerError(
            f"the broker (process {pid}) goes on as before, as it would not start with what was changed: {error}",
            hint="Mend what it names, then the same command again.",
        ) from error


def _log_beside(pid_file: Path) -> Path:
    return pid_file.with_suffix(".log")


@contextlib.contextmanager
def own_broker(settings: MqttSettings) -> Iterator[Mosquitto]:
    """Run a broker where the settings point, for the block.

    Raises:
        BrokerError: they point elsewhere than to this machine, or as for `Mosquitto`.
    """
    if settings.host not in ("127.0.0.1", "localhost"):
        raise BrokerError(
            f"a broker of our own cannot listen at {settings.host}",
            hint="--start-broker is for 127.0.0.1 only; run a broker with TLS and users for a network.",
        )
    with Mosquitto(settings.port) as broker:
        yield broker


class Reviver:
    """Starts a broker of ours again when it has ended by itself.

    Args:
        broker: It, running; None where there is none to start.
        report: Told each time, and once for each reason why it does not start.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        broker: Mosquitto | None,
        report: Callable[[str, dict[str, str]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._report = report
        self._clock = clock
        self._due = float("-inf")
        self._fault: str | None = None

    def look(self) -> None:
        """Start it again where it has ended. Cost: a system call where it runs."""
        if self._broker is None or self._clock() < self._due:
            return
        try:
            ended = self._broker.revive()
        except BrokerError as error:
            self._due = self._clock() + REVIVE_EVERY_S
            if str(error) != self._fault:
                self._fault = str(error)
                self._report("broker", {"state": "does not start", "error": self._fault, "hint": error.hint})
            return
        if ended is not None:
            self._due, self._fault = self._clock() + REVIVE_EVERY_S, None
            self._report("broker", {"state": "started anew", "reason": f"it {ended}"})


class _PortTaken(Exception):
    """Says what to do about it."""


def _whose(port: int) -> str:
    pid = port_holder.holder(port)
    if pid is None:
        return "Choose another port for the broker."
    return (
        f"Process {pid} has it ({port_holder.command_of(pid)}): end that, or choose another port for the broker."
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As brokers do: old connections in TIME_WAIT do not matter, somebody who listens does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            return error.errno != errno.EADDRINUSE  # for anything else Mosquitto has the better words
        return True


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False


def _answers(port: int) -> bool:
    """Return whether a broker with certificates answers: one that is about to end by its files accepts as well."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is asked nothing
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=1.0) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except ssl.SSLEOFError:
        return False
    except ssl.SSLError:  # an alert, such as for want of a certificate, is an answer
        return True
    except OSError:
        return False


def _fault(file: Path) -> str:
    """Return what a broker says first of why it does not start: it names the file, and what follows need not."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line[-300:] for line in lines if "Error: " in line), None) or _last_line(file)


def _last_line(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else "it said nothing"
