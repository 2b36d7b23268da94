"""What this machine can run, and what to fix: cameras, runtimes, outputs, broker, clock, disk, permissions.

Every finding says what was looked at, what is so, and where that is wrong the exact thing to do. Nothing is
changed: what is written to try the disk is deleted again. While the agent runs, what it holds (camera, page,
broker session, store) is asked of it instead of being taken from it.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import os
import platform
import socket
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

import cv2
import msgspec

from device_agent.accepting import KEPT_AS, Target
from device_agent.agent import running_page, running_state
from device_agent.at_rest import AtRest, look
from device_agent.backup import SLOTS_NAME
from device_agent.broker_check import check_broker, trigger_told
from device_agent.camera import CameraState, open_camera
from device_agent.camera.names import Names
from device_agent.camera.picture import exposed
from device_agent.config import (
    CameraSettings,
    GStreamerCamera,
    MqttTable,
    OpenCvCamera,
    PluginCamera,
    Site,
    WatchCamera,
)
from device_agent.database import LOCK_NAME
from device_agent.expiry import certificates, of_certificate, of_signatures
from device_agent.learned import ONE_CLASS
from device_agent.limits import StoreLimits
from device_agent.master_folder import examine as examine_masters
from device_agent.output_check import check_outputs, outputs_told
from device_agent.private import open_to_all
from device_agent.recipe import Recipe
from device_agent.report import (
    CHOOSE_AGAIN,
    CHOOSE_GOOD,
    NONE_PASSES,
    lost_words,
    picture_words,
    unreadable_words,
)
from device_agent.runtime import check_golden, open_runtime
from device_agent.runtime.choice import RuntimeChoice
from device_agent.runtime.onnx import installed_providers
from device_agent.site_file import load_site
from device_agent.store import STORE_NAME, check_store, read_in_service, read_kept
from sdk.bundle import Bundle
from sdk.class_names import key_of
from sdk.clock_state import clock_synchronised, judged
from sdk.damaged import DAMAGED
from sdk.disk_check import (
    MEMORY_FILESYSTEMS,
    NETWORK_FILESYSTEMS,
    filesystem,
    free_bytes,
    freeing,
    mib,
    sync_speed,
)
from sdk.errors import BundleError, HeadwayError, StoreCorrupt, StoreFull, TensorRtMissing
from sdk.expiry import Expiry, Standing
from sdk.finding import Finding, Level
from sdk.layouts import IMAGE_SUFFIXES
from sdk.owners import mending, quote, strangers, user_name
from sdk.shown import readable
from sdk.tensorrt_api import Library, open_library
from sdk.version import headway_version

CAMERA_WAIT_S: Final = 15.0
"""OpenCV's own timeout for opening a stream is 10 s."""
LOOKED_AT: Final = 5000
"""Files of a watched folder whose names are looked at."""
STATE_WAIT_S: Final = 5.0
BAD_FILES_FIX: Final = (
    "Look at what writes them, and at its disk. A file that is still being written is taken when it has not "
    "changed for poll_s: let its name begin with a dot, and rename it when it is whole."
)
PICTURE_FIX: Final = (
    "Look at lens cap, light, exposure and cable. Where good pictures are like that, say so in [camera.picture]."
)


@dataclass(frozen=True)
class Machine:
    """What is asked of the machine; tests bring their own.

    Attributes:
        clock: UTC seconds.
        synchronised: See `clock_synchronised`.
        free_bytes: See `free_bytes`.
        tensorrt: Opens TensorRT.
        user_id: Of this process.
        camera_wait_s: How long each camera has to give a frame.
    """

    clock: Callable[[], float] = time.time
    synchronised: Callable[[], bool | None] = clock_synchronised
    free_bytes: Callable[[Path], int] = free_bytes
    tensorrt: Callable[[], Library] = open_library
    user_id: Callable[[], int] = os.geteuid
    camera_wait_s: float = CAMERA_WAIT_S


def examine(site_file: Path | None, machine: Machine = Machine()) -> Iterator[Finding]:
    """Look at this machine, and at what a `site.toml` names; yield each finding as soon as it is known."""
    site: Site | None = None
    if site_file is not None:
        try:
            site = load_site(site_file)
            yield Finding("settings", Level.GOOD, f"{site_file} is well-formed, device {site.device}")
        except HeadwayError as error:
            yield Finding.of("settings", error)
    yield from _machine(machine)
    yield from _runtimes(machine, site)
    yield from _clock(machine)
    if site is None:
        return
    running = _is_running(site)
    yield from _permissions(machine, site)
    yield from _disk(machine, site)
    closed = site.data_dir.exists() and not os.access(site.data_dir, os.R_OK | os.X_OK, effective_ids=True)
    if not closed:  # else that was told, and nothing in it can be
        yield from _store(site, running)
        yield from _release(site, running)
    seen = None if closed else _at_rest(site)
    if seen is not None and seen.twins and not running:  # else the agent says it
        yield Finding("release", Level.FAULT, seen.twins, f"{ONE_CLASS[0].upper()}{ONE_CLASS[1:]}.")
    yield from examine_masters(site.part.masters, seen)
    if site.mqtt is not None and not closed:
        yield from _trust(machine, site, site.mqtt)
    if running:
        yield from _told(site)
        return
    yield from _page(site)
    yield from _cameras(machine, site)
    yield from check_outputs(site)
    if site.mqtt is None:
        yield Finding("broker", Level.NOTE, "no [mqtt] table: this device works alone")
    else:
        yield from check_broker(site, site.mqtt)


# -- the machine


def _machine(machine: Machine) -> Iterator[Finding]:
    what = f"Headway {headway_version()}, Python {platform.python_version()}, {platform.machine()}"
    jetpack = _jetson()
    yield Finding("machine", Level.GOOD, f"{what}, {os.cpu_count()} cores" + (f", {jetpack}" if jetpack else ""))
    if machine.user_id() == 0:
        yield Finding(
            "permissions",
            Level.NOTE,
            "this is root, who may read what the agent later may not",
            "Run it as the agent's user: sudo -u headway headway doctor SITE.TOML",
        )


def _jetson() -> str:
    """Return the release of Jetson Linux in its own words; empty elsewhere."""
    with contextlib.suppress(OSError):
        first = Path("/etc/nv_tegra_release").read_text(encoding="utf-8").split("\n", 1)[0]
        parts = [part.strip() for part in first.strip("# ").split(",")]
        return "Jetson Linux " + " ".join(parts[:2])
    return ""


def _runtimes(machine: Machine, site: Site | None) -> Iterator[Finding]:
    version, providers = installed_providers()
    shown = ", ".join(each.removesuffix("ExecutionProvider") for each in providers)
    yield Finding("runtime", Level.GOOD, f"ONNX Runtime {version} with {shown}")
    wanted = "auto" if site is None else site.runtime.tensorrt
    if wanted != "off":
        try:
            library = machine.tensorrt()
            yield Finding("runtime", Level.GOOD, f"TensorRT {library.version} on {library.gpu.name}")
        except TensorRtMissing as error:
            level = Level.FAULT if wanted == "on" else Level.NOTE
            yield Finding("runtime", level, f"{error}; ONNX Runtime serves", error.hint)
    build = cv2.getBuildInformation()
    built = [name for name in ("FFMPEG", "GStreamer", "v4l/v4l2") if _built_with(build, name)]
    yield Finding("runtime", Level.GOOD, f"OpenCV {cv2.__version__} with {', '.join(built) or 'no cameras'}")


def _built_with(build: str, name: str) -> bool:
    return any(line.strip().startswith(f"{name}:") and "YES" in line for line in build.splitlines())


def _clock(machine: Machine) -> Iterator[Finding]:
    then = "Labels keep their order either way; TLS certificates will not be accepted."
    yield judged(machine.clock(), machine.synchronised(), then=then)


# -- what the settings name


def _is_running(site: Site) -> bool:
    """Return whether an agent holds this data folder."""
    try:
        with (site.data_dir / LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _permissions(machine: Machine, site: Site) -> Iterator[Finding]:
    folder = site.data_dir
    existing = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    me = user_name(machine.user_id())
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=True):
        yield Finding(
            "permissions",
            Level.FAULT,
            f"{me} may not write to {existing}",
            _let_write(me, folder),
        )
    elif folder.exists() and stat.S_IMODE(folder.stat().st_mode) & stat.S_IWOTH:
        yield Finding("permissions", Level.FAULT, f"anybody may write to {folder}", f"chmod 0700 {quote(folder)}")
    elif not folder.exists():
        yield Finding(
            "permissions",
            Level.NOTE,
            f"{folder} is not there; {me} may make it, a systemd unit may not",
            _making(me, folder),
        )
    elif found := _not_the_agents(folder):
        yield found
    elif open_to_all(folder):
        what = f"every user of this machine may look into {folder}: pictures, labels, names"
        yield Finding("permissions", Level.NOTE, what, f"chmod 0700 {quote(folder)}")
    else:
        yield Finding("permissions", Level.GOOD, f"{me} may write to {folder}")
    for camera in site.cameras:
        if isinstance(camera, WatchCamera) and camera.delete and not os.access(camera.path, os.W_OK | os.X_OK):
            yield Finding(
                "permissions",
                Level.FAULT,
                f"{me} may not delete from {camera.path}: all of it would be taken again after each start",
                f"sudo chown {me} {quote(camera.path)}, or delete = false",
            )
    if site.mqtt is not None:
        for key in ("ca_file", "cert_file", "key_file", "password_file"):
            file = cast("Path | None", getattr(site.mqtt, key))
            if file is not None:
                yield from _secret(file, key, me)


def _let_write(me: str, folder: Path) -> str:
    if not folder.exists():
        return _making(me, folder)
    owner = user_name(folder.stat().st_uid)
    if owner == "root":
        return mending(me, folder)
    return (
        f"Run it as {owner}, if that is the agent's user: sudo -u {owner} headway doctor SITE.TOML. Else: "
        + mending(me, folder)
    )


def _making(me: str, folder: Path) -> str:
    return f"sudo install -d -o {me} -m 0700 {quote(folder)}"


def _not_the_agents(folder: Path) -> Finding | None:
    """Return what is wrong where the agent may not use what somebody else has made in its folder."""
    found = list(strangers(folder))
    if not found:
        return None
    path, owner, user = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    what = f"{path}{more} belong{'s' * (not more)} to {owner}: {user} may not use {'them' if more else 'it'}"
    return Finding("permissions", Level.FAULT, what, mending(user, folder))


def _secret(file: Path, key: str, me: str) -> Iterator[Finding]:
    if not os.access(file, os.R_OK):
        there = file.exists()
        fix = (
            f"sudo chown {me} {quote(file)}; chmod 0400 {quote(file)}"
            if there
            else f"Put the file there, or correct {key}."
        )
        yield Finding(
            "permissions", Level.FAULT, f"{key} {file} {'is not readable' if there else 'is missing'}", fix
        )
    elif key in {"key_file", "password_file"} and stat.S_IMODE(file.stat().st_mode) & 0o077:
        yield Finding(
            "permissions",
            Level.NOTE,
            f"others may read {key} {file}",
            f"chmod 0400 {quote(file)}; sudo chown {me} {quote(file)}",
        )
    else:
        yield Finding("permissions", Level.GOOD, f"{key} {file} is readable")


def _disk(machine: Machine, site: Site) -> Iterator[Finding]:
    folder = next((each for each in (site.data_dir, *site.data_dir.parents) if each.exists()), Path("/"))
    free, kind = machine.free_bytes(folder), filesystem(folder)
    reserve = StoreLimits().reserve_bytes
    if free < reserve:
        yield Finding(
            "disk",
            Level.FAULT,
            f"{mib(free)} MiB free on {folder} ({kind}): samples are refused below {mib(reserve)} MiB",
            freeing(folder),
        )
    elif kind in NETWORK_FILESYSTEMS:
        yield Finding(
            "disk",
            Level.FAULT,
            f"{folder} is on {kind}, a network file system: SQLite's log is not safe there",
            "Set data_dir to a local disk.",
        )
    elif kind in MEMORY_FILESYSTEMS:
        yield Finding(
            "disk",
            Level.NOTE,
            f"{folder} is on {kind}: what is written there may be gone after a power cut",
            "Set data_dir to a disk, in a container to a volume.",
        )
    else:
        yield Finding("disk", Level.GOOD, f"{mib(free)} MiB free on {folder} ({kind})")
    if os.access(folder, os.W_OK):
        yield sync_speed(folder)


def _store(site: Site, running: bool) -> Iterator[Finding]:
    file = site.data_dir / STORE_NAME
    if not file.exists():
        yield Finding("store", Level.GOOD, f"{file} does not exist yet; the agent makes it")
        return
    try:
        facts = check_store(file, whole=not running)
    except HeadwayError as error:
        yield Finding.of("store", error)
        return
    if facts.device != site.device:
        yield Finding(
            "store",
            Level.FAULT,
            f"the store in {site.data_dir} belongs to device {facts.device!r}, not {site.device!r}",
            "Use that device id, or another data folder.",
        )
        return
    holds = f"{facts.entries} own log entries, {facts.labelled} labelled samples"
    if facts.lost is None:
        yield Finding("store", Level.GOOD, f"{holds}; the agent has it open, so pictures were not checked")
    elif facts.lost:
        yield Finding(
            "store",
            Level.NOTE,
            f"{holds}, {facts.lost} of their pictures gone or damaged: a new backbone cannot learn from these",
            "Restore them from a backup: headway agent restore.",
        )
    else:
        yield Finding("store", Level.GOOD, f"{holds}, all pages, links and pictures whole")


def _bundle_path(site: Site) -> Path | None:
    """Return where the release is that serves, or will from the next start on."""
    current, store = site.data_dir / "current", site.data_dir / STORE_NAME
    if current.is_symlink():
        return current
    with contextlib.suppress(HeadwayError, OSError, sqlite3.Error, *DAMAGED):  # a restored store has no link yet
        for release in read_in_service(store) if store.is_file() else ():
            slot = site.data_dir / SLOTS_NAME / release
            if slot.is_dir():
                return slot
    return site.bundle


def _at_rest(site: Site) -> AtRest | None:
    """Return what the release that serves, or will, makes of the store, of none where it cannot be read; None
    where there is no release, or none that can be read."""
    path, store = _bundle_path(site), site.data_dir / STORE_NAME
    with contextlib.suppress(BundleError):
        if path is not None:
            bundle = Bundle.open(path)
            with contextlib.suppress(StoreCorrupt, StoreFull):  # which was told
                if store.exists() and check_store(store, whole=False).device == site.device:
                    return look(bundle, site.precision, site.device, store)
            return look(bundle, site.precision, site.device)
    return None


def _release(site: Site, running: bool) -> Iterator[Finding]:
    path = _bundle_path(site)
    if path is None:
        yield Finding(
            "release",
            Level.NOTE if site.mqtt is not None else Level.FAULT,
            "no release here yet, and site.toml names no bundle",
            "Publish one to this channel: headway fleet publish BUNDLE; or set bundle = in site.toml.",
        )
        return
    try:
        bundle = Bundle.open(path)
        runtime = open_runtime(bundle, site.precision, site.runtime)
        worst = check_golden(runtime, bundle, site.precision)
    except (BundleError, HeadwayError) as error:
        yield Finding.of("release", error)
        return
    name = bundle.precision(site.precision).precision
    yield Finding(
        "release",
        Level.GOOD,
        f"{bundle.manifest.name} ({name}) on {runtime.name}: golden scores off by {worst:.4f}",
    )
    if not running:
        yield from _passing(site, {each.id: each.name for each in bundle.manifest.classes})
    with tempfile.TemporaryDirectory() as folder:
        choice = RuntimeChoice(Path(folder), site.runtime)
        for entry in bundle.manifest.precisions:
            choice.measure(bundle, entry.precision)
        for each in choice.table(bundle):
            threads = f", {each.threads} thread{'s' if each.threads > 1 else ''}" if each.threads else ""
            how = f"{each.precision} by {each.provider}{threads}"
            if each.refused:
                yield Finding("runtime", Level.NOTE, f"{how}: {each.refused}", "Another way to run it serves.")
            else:
                yield Finding("runtime", Level.GOOD, f"{how}: {each.frame_ms:.1f} ms a frame")


def _passing(site: Site, names: Mapping[str, str]) -> Iterator[Finding]:
    """Look whether a class of the release, name by id, is one that passes, by the settings until people chose."""
    chosen = _chosen(site)
    if chosen is not None:
        if not chosen.intersection(names):
            yield Finding(
                "release",
                Level.NOTE,
                "none of its classes is one that people chose as good on the page: every part is rejected, unless "
                "they mean one that was made or merged here",
                CHOOSE_AGAIN,
            )
        return
    passing = set(map(key_of, site.part.good))
    if not any(key_of(name) in passing for name in names.values()):
        wanted = " or ".join(map(repr, site.part.good))
        yield Finding(
            "release",
            Level.NOTE,
            f"none of its classes is called {wanted}: every part is rejected, unless the page says otherwise",
            f"Name the good ones in [part] good, or choose them on the page: {', '.join(names.values())}.",
        )
        return
    called = {key_of(name): name for name in names.values()}
    for wanted in site.part.good:
        near = [] if key_of(wanted) in called else difflib.get_close_matches(key_of(wanted), called, n=1)
        if near:
            yield Finding(
                "release",
                Level.NOTE,
                f"none of its classes is called {wanted!r}, which [part] good names: "
                f"what is {called[near[0]]!r} is rejected",
                f"Did you mean {called[near[0]]!r}?",
            )


def _chosen(site: Site) -> set[str] | None:
    """Return the ids of the classes that people chose as good; None where nobody did, or no store says it."""
    with contextlib.suppress(HeadwayError, OSError, sqlite3.Error, *DAMAGED):
        if (site.data_dir / STORE_NAME).is_file():
            kept = read_kept(site.data_dir / STORE_NAME, KEPT_AS)
            good = None if kept is None else msgspec.json.decode(kept, type=Target).good
            return None if good is None else set(good)
    return None


def _told(site: Site) -> Iterator[Finding]:
    """Ask the agent that runs."""
    page = running_page(site.data_dir)
    state: dict[str, Any] | None = None
    with contextlib.suppress(OSError, ValueError):
        state = running_state(site, STATE_WAIT_S)
    if state is None:
        yield Finding(
            "page",
            Level.FAULT,
            f"an agent holds {site.data_dir} and does not answer",
            "Look at its log: journalctl -u headway -n 50",
        )
        return
    yield Finding("page", Level.GOOD, f"the agent runs and answers at {page}")
    said = {NONE_PASSES}
    for camera in state["cameras"]:
        name = camera["name"]
        said |= {
            lost_words(name),
            unreadable_words(name, camera["unreadable"]),
            picture_words(name, camera["picture"]),
        }
        yield _camera_told(camera)
    if state["line"] is not None:
        told, faults = outputs_told(state["line"]["outputs"])
        said |= faults
        yield from told
    mqtt, trigger = state["mqtt"], state.get("trigger")  # an agent of before does not say
    if trigger is not None:
        said.add(trigger["fault"])
        yield trigger_told(trigger)
    if mqtt is not None:
        yield Finding(
            "broker",
            Level.GOOD if mqtt["connected"] else Level.FAULT,
            f"{mqtt['address']}: {'connected' if mqtt['connected'] else 'not connected'}, as the agent says",
            "" if mqtt["connected"] else "Stop the agent and run this again for the reason.",
        )
    if state["none_passes"]:
        yield Finding(
            "release",
            Level.FAULT,
            "no class counts as good: every part is rejected",
            CHOOSE_AGAIN if state.get("good_chosen") else CHOOSE_GOOD,
        )
    for fault in state["faults"]:
        if fault in said:
            continue
        yield Finding("page", Level.FAULT, f"the agent says: {fault}", "Look at its log: journalctl -u headway")


def _camera_told(camera: dict[str, Any]) -> Finding:
    what = f"{camera['name']}: {camera['state']}, {camera['frames']} frames, {camera['outages']} outages"
    if camera["bad"]:
        what += f", {_bad_files(camera['bad'])}"
    if camera["state"] == CameraState.LOST.value:
        fix = "Check the cable, the address and permissions; the agent tries again by itself."
        return Finding("camera", Level.FAULT, what, fix)
    if camera["unreadable"]:
        return Finding("camera", Level.FAULT, f"{what}; the newest: {camera['unreadable']}", BAD_FILES_FIX)
    if camera["picture"]:
        return Finding("camera", Level.FAULT, f"{what}; {camera['picture']}, which rejects its part", PICTURE_FIX)
    if camera["bad"]:
        return Finding("camera", Level.NOTE, what, "Their names are in the log: journalctl -u headway")
    return Finding("camera", Level.GOOD, what)


def _bad_files(count: int) -> str:
    return "1 bad file" if count == 1 else f"{count} bad files"


def _page(site: Site) -> Iterator[Finding]:
    host, port = site.page.host, site.page.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except OSError as error:
        yield Finding(
            "page",
            Level.FAULT,
            f"the page cannot be served at {host}:{port}: {error.strerror or error}",
            f"Set another [page] port, or find who has it: sudo ss -ltnp 'sport = :{port}'",
        )
        return
    yield Finding("page", Level.GOOD, f"{host}:{port} is free")


def _cameras(machine: Machine, site: Site) -> Iterator[Finding]:
    for settings in site.cameras:
        others = [each for each in site.cameras if each is not settings]
        if isinstance(settings, WatchCamera):
            yield from _names(settings, others)
        yield from _camera(machine, settings, site.device, others)


def _names(settings: WatchCamera, others: Sequence[CameraSettings]) -> Iterator[Finding]:
    """Look at what lies in a watched folder: does its name tell a part?"""
    if not settings.names or not settings.path.is_dir():
        return
    beside = [Names(each.names) for each in others if isinstance(each, WatchCamera) and each.path == settings.path]
    own, there, odd = Names(settings.names), 0, ""
    for file in islice(settings.path.iterdir(), LOOKED_AT):
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith("."):
            continue
        fault = own.read(file.name).fault
        if fault and not any(other.is_like(file.name) for other in beside):
            there, odd = there + 1, odd or f"{readable(file.name)}: {fault}"
    if there:
        what = f"{settings.path}: {there} pictures there tell no part, which would be rejected: {odd}"
        yield Finding("camera", Level.NOTE, what, "Let `names` be like these, with {part} where the id is.")


def _camera(
    machine: Machine, settings: CameraSettings, device: str, others: Sequence[CameraSettings] = ()
) -> Iterator[Finding]:
    if isinstance(settings, WatchCamera):
        settings = msgspec.structs.replace(settings, delete=False)  # what it looks at is still the agent's to take
    try:
        recipe = Recipe(settings.recipe)
        camera = open_camera(settings, device, others=others)
        stop = threading.Event()
        timer = threading.Timer(machine.camera_wait_s, stop.set)
        timer.daemon = True
        timer.start()
        began_s = time.perf_counter()
        try:
            with contextlib.closing(cast("Any", camera.shots(stop))) as shots:
                shot = next((each for each in shots if not each.fault), None)
        finally:
            timer.cancel()
    except HeadwayError as error:
        yield Finding.of("camera", error)
        return
    if shot is None and isinstance(settings, WatchCamera) and not camera.tally.bad:
        yield Finding("camera", Level.GOOD, f"{camera.name} is there, and nothing came into it just now")
        return
    if shot is None:
        fix = _camera_fix(settings, camera.tally.bad)
        yield Finding("camera", Level.FAULT, f"{camera.name} gives no frame", fix)
        return
    if camera.tally.unreadable:
        what = f"{camera.name}: {_bad_files(camera.tally.bad)}, which rejects its part: {camera.tally.unreadable}"
        yield Finding("camera", Level.NOTE, what, BAD_FILES_FIX)
    height, width = shot.frame.shape[:2]
    try:
        recipe.check((height, width))
    except HeadwayError as error:
        yield Finding.of("camera", error)
    waited_s = time.perf_counter() - began_s
    what = f"{camera.name}: {width} x {height}, first frame after {waited_s:.1f} s"
    wrong = exposed(shot.frame, settings.picture)
    if wrong:
        # Nobody said that the light is on, or a part there.
        yield Finding("camera", Level.NOTE, f"{what}; {wrong}, which would reject its part", PICTURE_FIX)
    else:
        yield Finding("camera", Level.GOOD, what)


def _camera_fix(settings: CameraSettings, bad: int) -> str:
    if isinstance(settings, GStreamerCamera):
        return f"Try the pipeline by hand: gst-launch-1.0 {settings.pipeline} ! fakesink"
    if isinstance(settings, PluginCamera):
        return f"See the documents of the package that brings {settings.plugin!r}."
    if not isinstance(settings, OpenCvCamera):
        return f"None of its {bad} files can be read: replace them." if bad else "Name another file or folder."
    if settings.index is not None:
        node = Path(f"/dev/video{settings.index}")
        if not node.exists():
            there = ", ".join(sorted(str(each) for each in Path("/dev").glob("video*"))) or "none"
            return f"There is no {node}; present: {there}. Check the cable, then index."
        if not os.access(node, os.R_OK | os.W_OK):
            return f"This user may not open it: sudo usermod -aG video {user_name(os.geteuid())}, and log in anew."
        return f"Another program may hold it: sudo fuser {node}"
    return (
        "Try the address in another player: ffprobe -rtsp_transport tcp 'ADDRESS'; check user and password in it."
    )


def _trust(machine: Machine, site: Site, table: MqttTable) -> Iterator[Finding]:
    """Look at the root, and at how long signatures and the device's certificates last."""
    if site.trust is None:
        yield Finding(
            "trust",
            Level.NOTE,
            "unsigned: no [trust] table, so releases and labels are taken from whoever has the broker",
            "`headway fleet enroll` writes it, with the fleet's root.json.",
        )
    else:
        from device_agent.trust import accepted, read_root

        try:
            seen = accepted(site.data_dir / STORE_NAME, read_root(site.trust.root))
        except HeadwayError as error:
            yield Finding.of("trust", error)
        else:
            from sdk.trust.verify import ends_utc

            yield Finding("trust", Level.GOOD, f"signed releases only, by root version {seen.versions['root']}")
            for one in of_signatures(ends_utc(seen)):
                yield _end(machine, one)
    for what, file in certificates(table):
        try:
            yield _end(machine, of_certificate(site.device, what, file))
        except (OSError, ValueError) as error:
            yield Finding("trust", Level.FAULT, f"{file} is no certificate: {error}", "Enrol this device anew.")


def _end(machine: Machine, one: Expiry) -> Finding:
    now_utc = machine.clock()
    level = {Standing.GOOD: Level.GOOD, Standing.SOON: Level.NOTE, Standing.OVER: Level.FAULT}
    standing = one.standing(now_utc)
    return Finding("trust", level[standing], one.words(now_utc), "" if standing is Standing.GOOD else one.renew)
