"""Who listens on a port of this machine; and the broker of ours that a killed service left there.

A broker outlives a service that gets no chance to end it (`kill -9`, no memory left), and holds the port that the
same command needs. A signal at the parent's death does not help: the kernel forgets it where Mosquitto becomes
another user, and sends it when the thread ends that started the broker. So who runs a broker holds a lock in the
folder of its configuration, which the system lets go with the process, and a broker in whose folder nobody does is
nobody's any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path
from typing import IO, Final

import psutil

FOLDER_PREFIX: Final = "headway-broker-"
"""Of the folder that a broker of ours has its configuration in."""
LOCK_NAME: Final = "owner.lock"
_MAX_COMMAND: Final = 120


def lock_folder(folder: Path) -> IO[bytes]:
    """Say that a broker's folder is this process's, for as long as what this returns is open."""
    lock = (folder / LOCK_NAME).open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def end_abandoned(port: int, timeout_s: float) -> int | None:
    """End the broker of ours on a port whose service is dead; return its process id, None where there is none.

    Args:
        port: Of this machine.
        timeout_s: It is killed where it has not ended after this long; so long once more this waits for that.
    """
    pid = holder(port)
    folder = None if pid is None else _broker_folder(pid)
    if pid is None or folder is None:
        return None
    try:
        with (folder / LOCK_NAME).open("rb") as lock:
            # Held on to, so that no other service that starts now ends it too, and then its own.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for how in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
                deadline = time.monotonic() + timeout_s
                while time.monotonic() < deadline:
                    if holder(port) != pid:
                        shutil.rmtree(folder, ignore_errors=True)
                        return pid
                    time.sleep(0.01)
    except OSError:  # the lock is held, or missing, or it is another user's
        return None
    return None


def holder(port: int) -> int | None:
    """Return the process that listens on a port; None where there is none, or nothing says so."""
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr[1] == port and one.pid is not None:
                return one.pid
    return None


def command_of(pid: int) -> str:
    """Return how a process was started, in short; empty where nothing says so."""
    return " ".join(_arguments(pid))[:_MAX_COMMAND]


def is_mosquitto(pid: int) -> bool:
    """Return whether a process is a Mosquitto."""
    return any("mosquitto" in each for each in _arguments(pid))


def age_s(pid: int) -> float:
    """Return for how long a process has run; without end where nothing says so."""
    try:
        return time.time() - psutil.Process(pid).create_time()
    except psutil.Error:
        return float("inf")


def is_kept(pid: int) -> bool:
    """Return whether somebody runs this broker, and is there to start it again; True where nothing says so."""
    folder = _broker_folder(pid)
    if folder is None:
        return True
    try:
        with (folder / LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _broker_folder(pid: int) -> Path | None:
    """Return where a broker of ours has its configuration; None where a process is none."""
    program, *arguments = _arguments(pid) or [""]
    if Path(program).name != "mosquitto" or len(arguments) != 2 or arguments[0] != "-c":
        return None
    folder = Path(arguments[1]).parent
    return folder if folder.name.startswith(FOLDER_PREFIX) else None


def _arguments(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except (psutil.Error, OSError, ValueError, OverflowError):  # the last two: a file said what no process has
        return []
