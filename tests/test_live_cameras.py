"""Real streams: RTSP from a real server, GStreamer pipelines, folders that fill, plug-ins, wrong pictures."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agent.camera import Camera, CameraState, Shot, encode_png, open_camera
from device_agent.camera.files import Watch
from device_agent.camera.gstreamer import LAUNCH, LaunchGrabber, check_pipeline, has_gstreamer
from device_agent.camera.live import Live
from device_agent.camera.picture import BLACK, FIRST, GRID, WHITE, PictureWatch
from device_agent.config import GStreamerCamera, OpenCvCamera, PictureSettings, PluginCamera, WatchCamera
from device_agent.site_file import parse_site
from sdk.errors import CameraLost, ConfigError
from sdk.images import read
from sdk.preprocess import Frame
from tests.line_sim import SimCamera
from tests.simulators import wait_for

SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = Path(__file__).with_name("rtsp_server.py")
DEADLINE_S = 60.0


class Watched:
    """A camera whose frames are taken on a thread, for as long as the `with` block."""

    def __init__(self, camera: Camera) -> None:
        self.camera, self.shots = camera, list[Shot]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for shot in self.camera.shots(self._stop):
            self.shots.append(shot)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def more(self, count: int = 3) -> None:
        """Wait for more frames."""
        before = len(self.shots)
        wait_for(lambda: len(self.shots) >= before + count, DEADLINE_S, f"{count} more frames")


# RTSP


@contextlib.contextmanager
def rtsp_server(port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a real RTSP server; give its process and the camera's address."""
    with subprocess.Popen([SYSTEM_PYTHON, str(SERVER), str(port)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().strip()
            assert address.startswith("rtsp://"), "the RTSP server did not start"
            yield server, address
        finally:
            server.kill()


@pytest.fixture
def can_serve_rtsp() -> None:
    if (
        not Path(SYSTEM_PYTHON).exists()
        or subprocess.run([SYSTEM_PYTHON, str(SERVER), "--check"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs GStreamer's RTSP server: scripts/system-packages gst-rtsp-server")


@pytest.mark.gstreamer
@pytest.mark.usefixtures("can_serve_rtsp")
def test_an_rtsp_camera_gives_frames_and_comes_back_after_its_stream_was_killed() -> None:
    with rtsp_server() as (server, address):
        port = int(address.rsplit(":", 1)[1].split("/")[0])
        camera = open_camera(OpenCvCamera(url=address, retry_s=0.05, retry_max_s=0.2), "line-1")
        with Watched(camera) as watched:
            watched.more()
            assert watched.shots[-1].frame.shape == (240, 320, 3)
            assert camera.tally.state is CameraState.LIVE
            server.kill()
            wait_for(lambda: camera.tally.state is CameraState.LOST, DEADLINE_S, "the loss")
            assert camera.tally.outages == 1
            with rtsp_server(port):
                watched.more()
                assert camera.tally.state is CameraState.LIVE


# GStreamer

needs_launch = pytest.mark.skipif(
    shutil.which(LAUNCH) is None, reason="needs gst-launch-1.0: scripts/system-packages gst-launch-1.0"
)


@pytest.mark.gstreamer
@needs_launch
def test_a_pipeline_gives_whole_frames_whatever_their_width() -> None:
    pipeline = "videotestsrc pattern=red is-live=true ! video/x-raw,width=161,height=90,framerate=30/1"
    with Watched(open_camera(GStreamerCamera(pipeline=pipeline), "line-1")) as watched:
        watched.more()
        frame = watched.shots[0].frame
        assert frame.shape == (90, 161, 3)
        assert (abs(frame.astype(int) - [0, 0, 255]) <= 2).all()


@pytest.mark.gstreamer
@needs_launch
def test_a_pipeline_that_ends_is_started_again() -> None:
    pipeline = "videotestsrc num-buffers=3 ! video/x-raw,width=64,height=48"
    camera = open_camera(GStreamerCamera(pipeline=pipeline, retry_s=0.01, retry_max_s=0.02), "line-1")
    with Watched(camera):
        wait_for(lambda: camera.tally.outages >= 2, DEADLINE_S, "two starts")
        assert camera.tally.frames + camera.tally.dropped >= 2


@pytest.mark.gstreamer
@needs_launch
@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("videotestsrc ! nonsense", 'no element "nonsense"'),
        ("v4l2src device=/dev/video63", "/dev/video63|no element"),
        ("fakesrc num-buffers=1", "gives no picture"),
    ],
)
def test_a_pipeline_that_gives_no_picture_is_lost_and_says_why(pipeline: str, message: str) -> None:
    grabber = LaunchGrabber("camera", check_pipeline(pipeline))
    with pytest.raises(CameraLost, match=message):
        grabber.read(True)
    grabber.close()


@pytest.mark.gstreamer
@needs_launch
def test_a_pipeline_that_dies_is_lost() -> None:
    grabber = LaunchGrabber("camera", check_pipeline("videotestsrc ! video/x-raw,width=64,height=48"))
    assert grabber.read(True) is not None
    grabber.process.kill()
    with pytest.raises(CameraLost, match="sends no more frames"):
        read_all(grabber)
    grabber.close()


CHANGING = """
import os, re, sys, time
fd = int(re.search(r"fd=(\\d+)", " ".join(sys.argv))[1])

def caps(width, height):
    size = f"width=(int){width}, height=(int){height}"
    print(f"GstFdSink:headway.GstPad:sink: caps = video/x-raw, {size}", flush=True)

def frame(width, height):
    left = b"".join(bytes([y]) * (3 * width) for y in range(height))
    while left:
        left = left[os.write(fd, left):]

caps(64, 48)
frame(64, 48)
while not os.path.exists(__file__ + ".go"):
    time.sleep(0.01)
frame(128, 96)  # its bus is read by another thread than writes the frames
caps(128, 96)
while True:
    frame(128, 96)
"""


def test_a_pipeline_whose_pictures_change_their_size_is_lost_however_late_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames were cut from the middle of two others, for ever."""
    launch = tmp_path / LAUNCH
    launch.write_text(f"#!{sys.executable}\n{CHANGING}")
    launch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    grabber = LaunchGrabber("cam", "videotestsrc")
    frame = grabber.read(True)
    assert frame is not None
    assert frame[:, 0, 0].tolist() == list(range(48))
    launch.with_name(f"{LAUNCH}.go").touch()
    with pytest.raises(CameraLost, match="changed the size"):
        read_all(grabber)
    for _ in range(3):
        with pytest.raises(CameraLost, match="changed the size"):
            grabber.read(True)
    grabber.close()


def read_all(grabber: LaunchGrabber) -> None:
    while grabber.read(False) is None:
        pass


@pytest.mark.parametrize(
    ("pipeline", "without_sink"),
    [
        ("v4l2src ! videoconvert ! appsink", "v4l2src ! videoconvert"),
        ("v4l2src ! appsink drop=true max-buffers=1", "v4l2src"),
        ("v4l2src !", "v4l2src"),
        ("v4l2src name='appsink !'", "v4l2src name='appsink !'"),
    ],
)
def test_a_pipelines_own_sink_is_taken_off(pipeline: str, without_sink: str) -> None:
    if not has_gstreamer() and shutil.which(LAUNCH) is None:
        pytest.skip("needs GStreamer")
    assert check_pipeline(pipeline) == without_sink


@pytest.mark.parametrize("pipeline", ["!", "v4l2src device='/dev/video0", " ! appsink"])
def test_what_is_no_pipeline_is_refused_at_the_start(pipeline: str) -> None:
    with pytest.raises(ConfigError, match=r"camera\.pipeline"):
        open_camera(GStreamerCamera(pipeline=pipeline), "line-1")


# A folder that fills


def put(folder: Path, name: str, grey: int) -> None:
    (folder / name).write_bytes(encode_png(np.full((16, 16, 3), grey, np.uint8)))


def test_a_watched_folder_gives_what_comes_and_not_what_lay_there(tmp_path: Path) -> None:
    put(tmp_path, "old.png", 10)
    with Watched(open_camera(WatchCamera(path=tmp_path, poll_s=0.01), "line-1")) as watched:
        for i in range(3):
            put(tmp_path, f"{i}.png", 20 + i)
            wait_for(lambda: len(watched.shots) == i + 1, DEADLINE_S)  # noqa: B023 - called before it changes
        put(tmp_path, "0.png", 99)  # written anew: another picture
        wait_for(lambda: len(watched.shots) == 4, DEADLINE_S)
    assert [shot.part for shot in watched.shots] == ["0.png", "1.png", "2.png", "0.png"]
    assert watched.shots[0].group == "line-1/0.png"


def test_a_part_id_stands_within_a_file_name(tmp_path: Path) -> None:
    settings = WatchCamera(path=tmp_path, poll_s=0.01, names="IMG*-{part}_top.png", delete=True)
    with Watched(open_camera(settings, "line-1")) as watched:
        put(tmp_path, "img_7-47_11_TOP.PNG", 10)
        wait_for(lambda: watched.shots, DEADLINE_S)
    assert [(shot.part, shot.group, shot.fault) for shot in watched.shots] == [("47_11", "line-1/47_11", "")]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("thumbs.png", "its name is not like names = '{part}_*.png'"),
        (
            "LOT_1_top.png",
            "its part is 'LOT' or 'LOT_1' by names = '{part}_*.png': say more of what follows",
        ),
    ],
)
def test_a_name_that_tells_no_part_is_a_fault_and_rejects(tmp_path: Path, name: str, fault: str) -> None:
    """Two parts' pictures were judged as one where a name can be read in two ways. Of a name that is another
    nothing was said: with the camera program's next version inspection had ended."""
    settings = WatchCamera(path=tmp_path, poll_s=0.01, names="{part}_*.png", delete=True)
    with Watched(open_camera(settings, "line-1")) as watched:
        put(tmp_path, name, 20)
        wait_for(lambda: watched.shots, DEADLINE_S)
    assert [(shot.part, shot.fault) for shot in watched.shots] == [(name, f"{name}: {fault}")]
    assert watched.camera.tally.unreadable == f"{name}: {fault}"
    assert [file.name for file in tmp_path.iterdir()] == [name]  # for somebody to look at


def test_one_folder_may_be_filled_for_two_cameras(tmp_path: Path) -> None:
    top, side = (WatchCamera(path=tmp_path, poll_s=0.01, names=f"{{part}}_{at}.png") for at in ("top", "side"))
    with (
        Watched(open_camera(top, "line-1", others=[side])) as above,
        Watched(open_camera(side, "line-1", others=[top])) as beside,
    ):
        for name in ("B7_0_top.png", "B7_0_side.png"):
            put(tmp_path, name, 20)
        wait_for(lambda: above.shots and beside.shots, DEADLINE_S)
    assert [(shot.part, shot.source) for shot in above.shots] == [("B7_0", "B7_0_top.png")]
    assert [(shot.part, shot.source) for shot in beside.shots] == [("B7_0", "B7_0_side.png")]
    assert (above.camera.tally.bad, beside.camera.tally.bad) == (0, 0)


@pytest.mark.parametrize("names", ["part.png", "{part}{part}.png", "in/{part}.png", "{lot}_{part}.png", "{}"])
def test_names_that_do_not_say_where_the_part_is_are_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(ConfigError, match=r"camera\.names: .* does not say where"):
        open_camera(WatchCamera(path=tmp_path, names=names), "line-1")


def test_files_that_are_deleted_once_taken_are_taken_even_when_they_lay_there(tmp_path: Path) -> None:
    put(tmp_path, "old.png", 10)
    with Watched(open_camera(WatchCamera(path=tmp_path, poll_s=0.01, delete=True), "line-1")) as watched:
        put(tmp_path, "new.png", 20)
        wait_for(lambda: len(watched.shots) == 2 and not list(tmp_path.iterdir()), DEADLINE_S)


def test_a_file_is_deleted_as_soon_as_it_is_read(tmp_path: Path) -> None:
    put(tmp_path, "0.png", 10)
    shots = open_camera(WatchCamera(path=tmp_path, poll_s=0.01, delete=True), "line-1").shots(threading.Event())
    next(shots)
    shots.close()  # type: ignore[attr-defined]  # a generator
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_emptied_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start would send all its verdicts again. Root may write anywhere, so the answer is given for it."""
    monkeypatch.setattr(os, "access", lambda path, _how: path != tmp_path)
    with pytest.raises(ConfigError, match=r"camera\.delete: nothing may be deleted"):
        open_camera(WatchCamera(path=tmp_path, delete=True), "line-1")
    open_camera(WatchCamera(path=tmp_path), "line-1")


def test_a_picture_that_replaced_another_is_not_deleted_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may give every picture one name; the next part's may be there before this one's was decoded."""

    def slow(path: Path) -> tuple[bytes, Frame]:
        data, frame = read(path)
        if frame[0, 0, 0] == 10:
            put(tmp_path, "next.png", 20)
            (tmp_path / "next.png").rename(path)
        return data, frame

    monkeypatch.setattr("device_agent.camera.files.read", slow)
    put(tmp_path, "current.png", 10)
    shots = open_camera(WatchCamera(path=tmp_path, poll_s=0.01, delete=True), "line-1").shots(threading.Event())
    assert next(shots).frame[0, 0, 0] == 10
    assert [file.name for file in tmp_path.iterdir()] == ["current.png"]
    assert next(shots).frame[0, 0, 0] == 20
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_the_time_at_which_it_came_however_late_it_is_taken(tmp_path: Path) -> None:
    """Inspection may be behind: by the time at which it was taken it would be of a later part."""
    camera = open_camera(WatchCamera(path=tmp_path, poll_s=0.01), "line-1")
    assert isinstance(camera, Watch)
    shots = camera.shots(threading.Event())
    with Watched(camera) as watched:
        wait_for(lambda: camera.tally.state is CameraState.LIVE, DEADLINE_S)
        put(tmp_path, "0.png", 10)
        wait_for(lambda: watched.shots, DEADLINE_S)
    before_s = time.monotonic()
    put(tmp_path, "while nobody looks.png", 20)
    shot = next(shots)
    assert shot.at_s < before_s  # it may have come at any time since the last look
    put(tmp_path, "while the one before is inspected.png", 30)
    wait_for(lambda: "while the one before is inspected.png" in camera._taken, DEADLINE_S)
    seen_s = time.monotonic()
    assert before_s < next(shots).at_s < seen_s


def test_a_file_is_not_taken_while_it_grows(tmp_path: Path) -> None:
    whole = encode_png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    camera = open_camera(WatchCamera(path=tmp_path, poll_s=0.01), "line-1")
    with Watched(camera) as watched, (tmp_path / "slow.png").open("wb", buffering=0) as file:
        for i in range(0, len(whole), 256):
            file.write(whole[i : i + 256])
        # However the writes and the looks fell, what is taken last is whole.
        wait_for(lambda: camera.tally.frames, DEADLINE_S)
        wait_for(lambda: watched.shots and not watched.shots[-1].fault, DEADLINE_S)
        assert watched.shots[-1].data == whole


def test_a_bad_file_is_quarantined_and_the_next_one_taken(tmp_path: Path) -> None:
    camera = open_camera(WatchCamera(path=tmp_path, poll_s=0.01), "line-1")
    with Watched(camera) as watched:
        (tmp_path / "bad.jpg").write_bytes(b"no image")
        put(tmp_path, "good.png", 20)
        wait_for(lambda: len(watched.shots) == 2, DEADLINE_S)
        assert list(camera.tally.quarantined) == ["bad.jpg"]
        assert {shot.part: bool(shot.fault) for shot in watched.shots} == {"bad.jpg": True, "good.png": False}


def test_a_bad_file_is_not_deleted_and_told_again_when_it_is_bad_again(tmp_path: Path) -> None:
    """A program may give every picture one name. What cannot be read stays for whoever looks why."""
    camera = open_camera(WatchCamera(path=tmp_path, poll_s=0.01, delete=True), "line-1")
    with Watched(camera) as watched:
        (tmp_path / "part.png").write_bytes(b"no image")
        wait_for(lambda: camera.tally.bad == 1, DEADLINE_S)
        assert [file.name for file in tmp_path.iterdir()] == ["part.png"]
        put(tmp_path, "part.png", 20)
        wait_for(lambda: camera.tally.frames == 1 and not list(tmp_path.iterdir()), DEADLINE_S)
        (tmp_path / "part.png").write_bytes(b"no image either")
        wait_for(lambda: len(watched.shots) == 3, DEADLINE_S)  # bad, good, bad
        assert watched.shots[-1].fault.startswith("part.png: ")
        assert camera.tally.bad == 2


def test_a_file_that_cannot_be_deleted_is_taken_once_and_the_next_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read_only(_path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", read_only)  # root deletes whatever it can be kept from
    put(tmp_path, "0.png", 10)
    shots = open_camera(WatchCamera(path=tmp_path, poll_s=0.01, delete=True), "line-1").shots(threading.Event())
    assert next(shots).part == "0.png"
    put(tmp_path, "1.png", 20)
    assert next(shots).part == "1.png"
    assert "0.png was taken and cannot be deleted: Read-only file system" in caplog.text


def test_a_watched_folder_that_is_gone_is_lost(tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    camera = open_camera(WatchCamera(path=folder), "line-1")
    folder.rmdir()
    with pytest.raises(CameraLost):
        next(camera.shots(threading.Event()))


def test_a_watched_folder_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        open_camera(WatchCamera(path=tmp_path / "none"), "line-1")


# Plug-ins

PLUGIN = """
import numpy as np
from sdk.errors import CameraLost, ConfigError

class Grey:
    def __init__(self, grey):
        self.grey, self.left = grey, 2
    def read(self, wanted):
        self.left -= 1
        if self.left < 0:
            raise CameraLost("the grey camera rests", hint="-")
        return np.full((8, 8), self.grey, np.uint16) << 8
    def close(self):
        pass

def connect(options):
    if set(options) != {"grey"}:
        raise ConfigError("grey: give the key grey and no other", hint="-")
    return lambda: Grey(options["grey"])
"""


@pytest.fixture
def grey_plugin(tmp_path: Path) -> Iterator[None]:
    """Install a camera plug-in, as pip would leave it."""
    folder = tmp_path / "site-packages"
    info = folder / "greycam-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greycam\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[headway.cameras]\ngrey = greycam_plugin:connect\nbroken = greycam_none:x\n"
    )
    (folder / "greycam_plugin.py").write_text(PLUGIN)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("greycam_plugin", None)


def site_camera(table: str) -> Any:
    return parse_site(f'device = "a"\n[camera]\n{table}', Path("/plant/site.toml")).camera


@pytest.mark.usefixtures("grey_plugin")
def test_a_cameras_plug_in_gets_its_own_keys_and_is_reconnected_like_all_others() -> None:
    settings = site_camera('kind = "grey"\nname = "top"\nretry_s = 0.01\nretry_max_s = 0.02\ngrey = 77\n')
    assert isinstance(settings, PluginCamera)
    assert settings.options == {"grey": 77}
    camera = open_camera(settings, "line-1")
    with Watched(camera) as watched:
        wait_for(lambda: watched.shots and camera.tally.outages >= 2, DEADLINE_S)
    assert camera.name == "top"
    assert (watched.shots[0].frame == 77).all()
    assert watched.shots[0].frame.shape == (8, 8, 3)


class Breaks:
    """A driver that raises what it likes."""

    def read(self, wanted: bool) -> Frame | None:
        raise RuntimeError(f"the driver's own error; {wanted=}")

    def close(self) -> None:
        pass


def test_a_driver_that_raises_an_error_of_its_own_is_reconnected_too() -> None:
    settings = OpenCvCamera(index=0, retry_s=0.01, retry_max_s=0.02)
    tried: list[int] = []

    def connect() -> Breaks:
        tried.append(1)
        return Breaks()

    camera = Live("top", settings, "line-1", connect, lambda: 0.0)
    with Watched(camera):
        wait_for(lambda: len(tried) >= 3, DEADLINE_S)
    assert camera.tally.state is CameraState.LOST


@pytest.mark.usefixtures("grey_plugin")
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('kind = "grey"\ngray = 1\n', "give the key grey and no other"),
        ('kind = "broken"\n', r"plug-in 'broken' \(greycam_none:x\): No module"),
        ('kind = "purple"\n', r"Invalid value 'purple'|invalid value 'purple'"),
    ],
)
def test_a_plug_in_that_cannot_serve_is_refused_at_the_start(table: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_camera(site_camera(table), "line-1")


# Pictures that cannot be right


def noise(seed: int, low: int = 0, high: int = 256) -> Frame:
    return np.random.default_rng(seed).integers(low, high, (480, 640, 3), np.uint8)


def looked_at(frames: list[Frame], *, live: bool = True, **settings: Any) -> list[str]:
    watch = PictureWatch(PictureSettings(**settings), SimCamera(live=live))
    return [watch(Shot(frame, 0.0, "g", "camera")) for frame in frames]


@pytest.mark.parametrize(
    ("frame", "found"),
    [
        (noise(0), ""),
        (noise(0, 0, 12), "the picture is black"),
        (noise(0, 251, 256), "the picture is over-exposed"),
        (np.zeros((1, 1, 3), np.uint8), "the picture is black"),
        (np.full((480, 640, 3), (0, 0, 255), np.uint8), ""),
    ],
    ids=["noise", "black", "over-exposed", "one-pixel", "red"],
)
def test_a_picture_of_nothing_is_told(frame: Frame, found: str) -> None:
    assert looked_at([frame]) == [found]


def plainly(frame: Frame, black_share: float, bright_share: float) -> str:
    """The rule, pixel by pixel, over the grid that is looked at."""
    step = max(1, min(frame.shape[:2]) // GRID)
    some = frame[::step, ::step].reshape(-1, 3)
    if black_share and (some.max(1) <= BLACK).mean() >= black_share:
        return "the picture is black"
    if bright_share and (some.min(1) >= WHITE).mean() >= bright_share:
        return "the picture is over-exposed"
    return ""


def test_what_is_looked_at_first_changes_no_finding() -> None:
    """Pictures at the very limits: black, bright and neither in all shares, scattered or where one looks first."""
    found = set[str]()
    rng = np.random.default_rng(7)
    kinds = np.array(
        [(0, 0, 0), (16, 16, 16), (16, 17, 16), (17, 0, 0), (249, 255, 255), (250, 250, 250)], np.uint8
    )
    for trial in range(400):
        height, width = (int(side) for side in rng.integers(1, 140, 2))
        main, other = kinds[rng.permutation(len(kinds))[:2]]
        frame = np.broadcast_to(main, (height, width, 3)).copy()
        if trial % 2:
            frame[rng.random((height, width)) < rng.choice([0.0, 0.004, 0.006, 0.1, 0.5])] = other
        else:
            frame[:: FIRST * max(1, min(height, width) // GRID)] = other
        shares: dict[str, Any] = {
            "black_share": float(rng.choice([0, 0.3, 0.9, 0.995, 1])),
            "bright_share": float(rng.choice([0, 0.3, 0.95, 1])),
        }
        found.add(plainly(frame, **shares))
        assert looked_at([frame], **shares) == [plainly(frame, **shares)]
    assert len(found) == 3


def test_a_live_camera_that_repeats_itself_is_frozen_until_it_moves_again() -> None:
    found = looked_at([noise(0)] * 4 + [noise(1)], frozen_after=2)
    assert found == ["", "", "the picture is frozen", "the picture is frozen", ""]


def test_a_file_that_repeats_itself_is_not_frozen() -> None:
    assert looked_at([noise(0)] * 4, live=False, frozen_after=2) == [""] * 4


def test_a_line_of_dark_pictures_can_say_so() -> None:
    dark = [noise(0, 0, 12), noise(1, 251, 256), *[noise(2)] * 20]
    assert set(looked_at(dark, black_share=0, bright_share=0, frozen_after=0)) == {""}


def test_what_is_wrong_stands_in_the_cameras_report() -> None:
    camera = SimCamera()
    watch = PictureWatch(PictureSettings(), camera)
    watch(Shot(noise(0, 0, 12), 0.0, "g", "camera"))
    assert camera.tally.picture == "the picture is black"
    watch(Shot(noise(0), 0.0, "g", "camera"))
    assert camera.tally.picture == ""
