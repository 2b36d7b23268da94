"""systemd is told when the agent is ready and alive, and the unit is one that systemd takes."""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from device_agent.site_file import parse_site
from device_agent.systemd import Notifier, UnitPlan, Watchdog, unit_text
from sdk.clock_state import clock_synchronised
from sdk.errors import ConfigError
from tests.commands import headway
from tests.simulators import wait_for

DEADLINE_S = 60.0
SITE = 'device = "line-1"\ndata_dir = "{data}"\n[camera]\nkind = "opencv"\nindex = 0\n'


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """What systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(DEADLINE_S)
        yield listener


def environ(tmp_path: Path, watchdog_s: float = 0.0) -> dict[str, str]:
    there = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    return {**there, "WATCHDOG_USEC": str(int(watchdog_s * 1e6))} if watchdog_s else there


def test_systemd_hears_what_it_is_told(systemd: socket.socket, tmp_path: Path) -> None:
    Notifier(environ(tmp_path)).tell("READY=1", "STATUS=page at http://127.0.0.1:8080/")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=page at http://127.0.0.1:8080/"


@pytest.mark.parametrize("variables", [{}, {"NOTIFY_SOCKET": "/nowhere/notify"}, {"NOTIFY_SOCKET": "@nobody"}])
def test_nobody_listening_is_no_error(variables: dict[str, str]) -> None:
    Notifier(variables).tell("READY=1")


@pytest.mark.parametrize(
    ("variables", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_is_fed_only_where_this_process_is_watched(
    variables: dict[str, str], watchdog_s: float
) -> None:
    assert Notifier(variables).watchdog_s == watchdog_s


def test_the_watchdog_is_fed_while_work_ends_and_not_while_it_is_stuck(
    systemd: socket.socket, tmp_path: Path
) -> None:
    now = 0.0
    with Watchdog(Notifier(environ(tmp_path, 0.02)), stuck_s=30.0, clock=lambda: now) as watchdog:
        with watchdog.work("a frame"):
            assert systemd.recv(100) == b"WATCHDOG=1"
            now = 31.0
            wait_for(lambda: systemd.recv(100).startswith(b"STATUS=stuck: a frame has taken 31 s"), DEADLINE_S)
        assert systemd.recv(100) == b"WATCHDOG=1", "it came free again"
    assert watchdog.stuck() is None


def test_a_source_that_sends_nothing_is_not_stuck() -> None:
    now = 0.0
    watchdog = Watchdog(Notifier({}), clock=lambda: now)
    with watchdog.work("a frame"):
        pass
    now = 1e6
    assert watchdog.stuck() is None


# The unit


def unit_of(tmp_path: Path, data: str = "data", site: str = SITE) -> str:
    file = tmp_path / "site.toml"
    command = tmp_path / "headway"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    return unit_text(UnitPlan(file, parse_site(site.format(data=data), file), "root", str(command)))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("kind", ["usual", "csi", "watch"])
def test_systemd_takes_the_unit_and_holds_it_for_safe(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "headway.service"
    csi = 'device = "a"\ndata_dir = "{data}"\n[camera]\nkind = "gstreamer"\npipeline = "nvarguscamerasrc"\n'
    file.write_text(unit_of(tmp_path, site={"usual": SITE, "csi": csi, "watch": watched("in")}[kind]))
    verify = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
    assert (verify.returncode, verify.stderr) == (0, "")
    looked = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert looked.returncode == 0, looked.stdout  # exposure above 3.0 of 10 fails


def test_the_unit_names_what_it_runs_and_may_write_nowhere_else(tmp_path: Path) -> None:
    lines = unit_of(tmp_path).splitlines()
    assert f"ExecStart={tmp_path}/headway agent run {tmp_path}/site.toml" in lines
    assert "ProtectSystem=strict" in lines
    assert [line for line in lines if line.startswith("ReadWritePaths")] == [f"ReadWritePaths=-{tmp_path}/data"]
    assert "PrivateTmp=yes" in lines
    assert "Type=notify" in lines
    assert "Restart=always" in lines


def watched(path: str, delete: str = "true") -> str:
    camera = f'kind = "watch"\npath = "{path}"\ndelete = {delete}\n'
    return f'device = "line-1"\ndata_dir = "{{data}}"\n[camera]\n{camera}'


def test_a_watched_folder_is_writable_where_its_files_are_deleted(tmp_path: Path) -> None:
    """Else each start would take all that ever lay there, and send their verdicts again."""
    writable = f"ReadWritePaths=-{tmp_path}/data -{tmp_path}/in"
    assert writable in unit_of(tmp_path, site=watched("in")).splitlines()
    assert writable not in unit_of(tmp_path, site=watched("in", "false")).splitlines()
    with pytest.raises(ConfigError, match="cannot stand in a systemd unit"):
        unit_of(tmp_path, site=watched("in and out"))


def test_a_csi_camera_reaches_its_daemon(tmp_path: Path) -> None:
    pipeline = "nvarguscamerasrc ! nvvidconv ! video/x-raw,format=BGRx"
    site = f'device = "a"\ndata_dir = "{{data}}"\n[camera]\nkind = "gstreamer"\npipeline = "{pipeline}"\n'
    text = unit_of(tmp_path, site=site)
    lines = text.splitlines()
    assert "PrivateTmp=no" in lines
    assert "ReadWritePaths=/tmp" in lines
    assert "After=network.target time-sync.target nvargus-daemon.service" in lines
    assert "\nAfter=network.target time-sync.target\n" in unit_of(tmp_path, site=site.replace("nvargus", "v4l2"))


NUMBERS = {"x86_64": {"adjtimex": 159, "clock_adjtime": 305}, "aarch64": {"adjtimex": 171, "clock_adjtime": 266}}
"""Of the calls that ask of the clock, on machines that Headway runs on."""
ASK_UNDER_A_FILTER = """
import ctypes, sys
from sdk.clock_state import clock_synchronised
from pathlib import Path
class Step(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint)]
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.POINTER(Step))]
numbers = [int(each) for each in sys.argv[2:]]
load, allow, refuse = Step(0x20, 0, 0, 0), Step(6, 0, 0, 0x7FFF0000), Step(6, 0, 0, 0x00050001)  # with EPERM
jumps = [Step(0x15, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
steps = (Step * (len(numbers) + 3))(load, *jumps, allow, refuse)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(Program(len(steps), steps)), 0, 0) == 0  # PR_SET_SECCOMP
print(clock_synchronised(Path(sys.argv[1])))
"""


def asked_without(calls: Iterable[str], timesyncd: Path) -> str:
    """Return what is said of the clock by a process that may not make some calls."""
    numbers = [str(NUMBERS[platform.machine()][each]) for each in calls]
    ran = subprocess.run(
        [sys.executable, "-c", ASK_UNDER_A_FILTER, timesyncd, *numbers], capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def group(name: str) -> set[str]:
    """Return the calls of one of systemd's groups, those within it included."""
    ran = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    there = [line.strip() for line in ran.stdout.splitlines()[1:] if line.startswith("    ") and "#" not in line]
    return {call for each in there for call in (group(each) if each.startswith("@") else {each})}


NO_MACHINE = pytest.mark.skipif(platform.machine() not in NUMBERS, reason="its calls have other numbers")


@NO_MACHINE
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_lets_ask_of_the_clock_and_not_set_it(tmp_path: Path) -> None:
    """Nothing that a clock counted while it was ahead would be dropped, else."""
    here = clock_synchronised(tmp_path / "none")
    if here is None:
        pytest.skip("may not ask of the clock here")
    lines = unit_of(tmp_path).splitlines()
    (allowed,) = [line.split("=")[1].split() for line in lines if line.startswith("SystemCallFilter=")]
    calls = {call for each in allowed for call in (group(each) if each.startswith("@") else {each})}
    clock = group("@clock")
    assert not calls & {"clock_settime", "settimeofday"}
    assert "CapabilityBoundingSet=" in lines
    barred = clock - calls | (clock if "ProtectClock=yes" in lines else set())
    asking = sorted(barred & set(NUMBERS[platform.machine()]))
    assert asked_without(asking, tmp_path / "none") == str(here)


@NO_MACHINE
@pytest.mark.parametrize("synchronised", [True, None])
def test_under_a_unit_of_before_systemds_client_says_whether_the_clock_is_right(
    tmp_path: Path, synchronised: bool | None
) -> None:
    if synchronised:
        (tmp_path / "synchronized").touch()
    assert asked_without(["adjtimex", "clock_adjtime"], tmp_path / "synchronized") == str(synchronised)


NVIDIA_DEVICES = ["nvidia", "nvidiactl", "nvidia-frontend", "nvidia-uvm", "nvidia-caps"]
JETSON_DEVICES = ["17000000.ga10b", "17000000.gv11b", "17000000.gpu", "nvhost", "host1x-fence"]
"""On a Jetson nvgpu takes the name of its platform device; /dev/nvgpu is a folder, which no rule can name."""


@pytest.mark.parametrize("name", NVIDIA_DEVICES + JETSON_DEVICES)
def test_a_gpu_may_be_used_whatever_its_driver_calls_it(tmp_path: Path, name: str) -> None:
    """Of /proc/devices; systemd.resource-control(5) lets a group of devices be a pattern."""
    allowed = [
        line.split("=")[1].split()[0] for line in unit_of(tmp_path).splitlines() if line.startswith("DeviceAllow=")
    ]
    assert any(fnmatch(f"char-{name}", pattern) for pattern in allowed)


@pytest.mark.parametrize("data", ["a b", "50%", "it's", "two\\nlines", "$HOME"])
def test_a_path_that_systemd_would_read_otherwise_is_refused(tmp_path: Path, data: str) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a systemd unit"):
        unit_of(tmp_path, data)


def test_the_command_prints_the_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "site.toml"
    file.write_text(SITE.format(data="data"))
    printed = headway(capsys, "agent", "unit", file, "--user", "line")
    assert printed.code == 0
    assert "\nUser=line\n" in printed.out
    assert printed.err == f"first: sudo install -d -o line -m 0700 {tmp_path}/data\n"
    (tmp_path / "data").mkdir()
    assert headway(capsys, "agent", "unit", file, "--user", "line").err == ""
