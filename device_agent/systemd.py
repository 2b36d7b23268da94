"""systemd: the unit that runs the agent, and the protocol by which it says that it is alive.

The protocol is one datagram per message to the socket named by `NOTIFY_SOCKET` (sd_notify(3)); without that
variable nothing is sent, so the same agent runs in a terminal.

A watchdog that is fed by a timer proves that a timer runs. `Watchdog` is fed only while no piece of work has been
going on for longer than its limit: a frame stuck in a driver or a disk that does not answer ends the feeding, and
systemd starts the agent again. A camera that sends nothing is no such piece of work; it is waited for.
"""

from __future__ import annotations

import contextlib
import getpass
import grp
import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from device_agent.config import GStreamerCamera, Site, WatchCamera
from sdk.errors import ConfigError

STUCK_S: Final = 30.0
"""A frame takes milliseconds, and a slow disk a second or two. Whatever takes this long will not end by itself."""
WATCHDOG_S: Final = 60
"""Written to the unit: as long again for the feeding thread to be scheduled on a device that swaps."""
_DEVICE_GROUPS: Final = ("video", "render", "dialout")
"""Who may use cameras, GPUs and serial ports, on Debian, Ubuntu and JetPack."""

_log = logging.getLogger(__name__)


class Notifier:
    """Tells systemd how the agent is. Never fails: nobody may be listening.

    Args:
        environ: Where `NOTIFY_SOCKET` and `WATCHDOG_USEC` stand.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        microseconds = environ.get("WATCHDOG_USEC", "")
        # systemd names the process it means; a child that inherited the variables is not it.
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(microseconds) / 1e6 if mine and microseconds.isdecimal() else 0.0

    def tell(self, *lines: str) -> None:
        """Send assignments such as `READY=1`."""
        if not self._address:
            return
        # A leading @ means the abstract name space, whose names begin with a zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            _log.debug("systemd was not told: %s", error)


class Watchdog:
    """Feeds systemd's watchdog while no work is stuck. Use it in a `with` block around the agent's life.

    Args:
        notifier: Where to; without a watchdog there no thread is started.
        stuck_s: Work that takes longer is stuck.
        clock: Monotonic seconds.
    """

    def __init__(
        self, notifier: Notifier, *, stuck_s: float = STUCK_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._notifier = notifier
        self._stuck_s = stuck_s
        self._clock = clock
        self._began: dict[int, tuple[str, float]] = {}  # by thread
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._notifier.watchdog_s:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextlib.contextmanager
    def work(self, what: str) -> Iterator[None]:
        """Mark a piece of work that must end soon; one at a time in each thread."""
        key = threading.get_ident()
        self._began[key] = what, self._clock()
        try:
            yield
        finally:
            del self._began[key]

    def stuck(self) -> str | None:
        """Return what has been going on for too long; None where nothing has."""
        now = self._clock()
        for what, began in list(self._began.values()):
            if now - began > self._stuck_s:
                return f"{what} has taken {now - began:.0f} s"
        return None

    def _feed(self) -> None:
        told = False
        while not self._stop.is_set():
            stuck = self.stuck()
            if stuck is None:
                self._notifier.tell("WATCHDOG=1")
            elif not told:
                told = True
                _log.critical("%s: systemd will start the agent again", stuck)
                self._notifier.tell(f"STATUS=stuck: {stuck}")
            self._stop.wait(self._notifier.watchdog_s / 4)


@dataclass(frozen=True)
class UnitPlan:
    """What a unit is written for.

    Attributes:
        site_file: Its settings.
        site: The same, read.
        user: Who runs the agent; made beforehand.
        command: The `headway` to run.
    """

    site_file: Path
    site: Site
    user: str
    command: str


def default_user() -> str:
    """Return who should run the agent: `headway` where this is root, who must not."""
    return "headway" if os.geteuid() == 0 else getpass.getuser()


def headway_command() -> str:
    """Return the command that this process was started by, as an absolute path.

    Raises:
        ConfigError: it is not installed.
    """
    beside = Path(sys.executable).with_name("headway")
    found = str(beside) if beside.exists() else shutil.which("headway")
    if found is None:
        raise ConfigError(
            "the headway command is not installed",
            hint='Install Headway for this Python: docs/agent.md, "Get Headway".',
        )
    return found


def unit_text(plan: UnitPlan) -> str:
    """Return a systemd unit for one device.

    Raises:
        ConfigError: a path in it cannot stand in a unit.
    """
    data_dir = plan.site.data_dir.resolve()
    emptied = [each.path.resolve() for each in plan.site.cameras if isinstance(each, WatchCamera) and each.delete]
    for each in (data_dir, *emptied, plan.site_file.resolve(), Path(plan.command)):
        if any(c in str(each) for c in "\n\"'%$\\ "):
            raise ConfigError(
                f"{each} cannot stand in a systemd unit", hint="Use a path without blanks, quotes and % signs."
            )
    return _UNIT.format(
        device=plan.site.device,
        channel=plan.site.channel,
        command=plan.command,
        site_file=plan.site_file.resolve(),
        user=plan.user,
        data_dir=data_dir,
        writable=" ".join(f"-{each}" for each in (data_dir, *emptied)),
        watchdog_s=WATCHDOG_S,
        groups=_groups_line(),
        after=" nvargus-daemon.service" if _has_csi(plan.site) else "",
        temporary=_SHARED_TMP if _has_csi(plan.site) else "PrivateTmp=yes",
    )


def _has_csi(site: Site) -> bool:
    """Return whether frames come from a Jetson's CSI camera."""
    return any(isinstance(each, GStreamerCamera) and "nvargus" in each.pipeline for each in site.cameras)


def _groups_line() -> str:
    """Return the line that gives access to cameras, serial ports and GPUs; a group that is not here would keep
    the agent from starting."""
    here = {each.gr_name for each in grp.getgrall()}
    groups = [name for name in _DEVICE_GROUPS if name in here]
    return f"SupplementaryGroups={' '.join(groups)}\n" if groups else ""


_SHARED_TMP: Final = """\
# A CSI camera's daemon is reached by /tmp/argus_socket, which it makes anew whenever it starts.
PrivateTmp=no
ReadWritePaths=/tmp"""
_UNIT: Final = """\
# Headway on {device}. Install it:
#   sudo useradd --system --home-dir {data_dir} {user}     (once; add it to the groups below)
#   sudo install -d -o {user} -m 0700 {data_dir}
#   headway agent unit {site_file} | sudo tee /etc/systemd/system/headway.service
#   sudo systemctl daemon-reload && sudo systemctl enable --now headway

[Unit]
Description=Headway inspection on {device}, channel {channel}
# It starts without network and clock, and says so; where they come in time it starts after them.
After=network.target time-sync.target{after}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} agent run {site_file}
User={user}
{groups}# Labels are on disk before they are acknowledged, so that a restart loses none.
Restart=always
RestartSec=2
WatchdogSec={watchdog_s}
TimeoutStartSec=120
TimeoutStopSec=30
# The learner's burst must not be what the kernel ends first.
OOMScoreAdjust=-500
LimitNOFILE=4096

# It writes to its data folder, deletes from a watched folder where it was told to, and writes nowhere else. With a
# minus a folder that is missing is told by the agent, and not by systemd with a number.
ProtectSystem=strict
ReadWritePaths={writable}
ProtectHome=read-only
{temporary}
UMask=0077
# It needs no privilege at all.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectProc=invisible
SystemCallArchitectures=native
# It asks whether the clock is held right. To set it takes a privilege, which it has not; ProtectClock= would
# forbid to ask as well.
SystemCallFilter=@system-service adjtimex clock_adjtime
SystemCallErrorNumber=EPERM
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
# Cameras, serial ports of light controllers, and the GPU of a Jetson or a PC. MemoryDenyWriteExecute stays off:
# CUDA and TensorRT write the code that they run.
DevicePolicy=closed
DeviceAllow=char-video4linux rw
DeviceAllow=char-media rw
DeviceAllow=char-ttyUSB rw
DeviceAllow=char-drm rw
DeviceAllow=char-usb_device rw
# A driver calls its devices nvidia-frontend, or since 545 nvidia and nvidiactl; and nvidia-uvm, nvidia-caps.
DeviceAllow=char-nvidia* rw
# nvgpu names its devices, in the folder /dev/nvgpu, after address and name of the chip: 17000000.ga10b on Orin.
DeviceAllow=char-*.ga10b rw
DeviceAllow=char-*.gv11b rw
DeviceAllow=char-*.gpu rw
DeviceAllow=char-nvhost* rw
DeviceAllow=char-host1x* rw
DeviceAllow=/dev/nvmap rw

[Install]
WantedBy=multi-user.target
"""
