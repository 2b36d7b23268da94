"""Sources give frames with time, bytes and group; bad files and lost cameras stop nothing."""

from __future__ import annotations

import io
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from device_agent.agent import open_source, told_apart
from device_agent.camera import Camera, CameraState, Shot, encode_png, open_camera
from device_agent.camera.live import pipeline_name
from device_agent.camera.shot import Bursts
from device_agent.config import CameraSettings, FolderCamera, OpenCvCamera, VideoCamera
from device_agent.page.counted import folder_of
from sdk.errors import CameraLost, ConfigError
from sdk.images import decode, sample_id
from sdk.preprocess import Frame


def frame_of(grey: int, size: int = 16) -> Frame:
    return np.full((size, size, 3), grey, np.uint8)


def write_video(file: Path, frames: int = 20, fps: float = 10.0) -> Path:
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 10 * i, np.uint8))
    writer.release()
    return file


def take(settings: CameraSettings, n: int | None = None) -> tuple[list[Shot], Camera]:
    camera = open_camera(settings, "line-1")
    stop = threading.Event()
    shots = camera.shots(stop)
    taken = list(itertools.islice(shots, n))
    stop.set()
    if n is not None:
        assert next(shots, None) is None, "a stopped source gives no more"
    return taken, camera


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(["b.png", "a.png", "c/d.png"]):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(frame_of(40 * i + 20)))
    return tmp_path / "images"


@pytest.mark.parametrize("colour", [None, (0, 0, 0), (39, 59, 1)])
def test_a_picture_is_kept_losslessly_and_a_grey_one_in_one_channel(colour: tuple[int, int, int] | None) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (40, 60), dtype=np.uint8)
    frame = np.repeat(grey[:, :, None], 3, 2)[:, ::-1]  # as a flipped view
    if colour is not None:
        frame[colour] += 1  # one channel of one pixel
    encoded = encode_png(frame)
    assert np.array_equal(decode(encoded), frame)
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.mode == ("L" if colour is None else "RGB")
    assert Shot(frame, 0.0, "line-1/x", "camera 0").data == encoded


class SlowToEncode(Shot):
    """A large tile: encoding it takes until `go` is set, and is counted."""

    def __init__(self) -> None:
        super().__init__(frame_of(1), 0.0, "g", "camera")
        begun, go, times = threading.Event(), threading.Event(), list[int]()
        self.__dict__.update(begun=begun, go=go, times=times)

    @property
    def data(self) -> bytes:
        self.__dict__["times"].append(1)
        self.__dict__["begun"].set()
        assert self.__dict__["go"].wait(30)
        return b"a tile"


def asking(shot: Shot, heard: list[bytes]) -> threading.Thread:
    thread = threading.Thread(target=lambda: heard.append(shot.sample_id), daemon=True)
    thread.start()
    return thread


def test_a_verdict_does_not_wait_until_another_tile_is_encoded() -> None:
    slow, other = SlowToEncode(), Shot(frame_of(2), 0.0, "g", "camera")
    heard: list[bytes] = []
    storing = asking(slow, heard)
    assert slow.__dict__["begun"].wait(30)
    asking(other, heard).join(30)
    assert heard == [sample_id(other.data)]
    slow.__dict__["go"].set()
    storing.join(30)
    assert heard[1:] == [sample_id(b"a tile")]


def test_a_tile_is_encoded_once_however_many_ask_at_once() -> None:
    slow, heard = SlowToEncode(), list[bytes]()
    threads = [asking(slow, heard) for _ in range(4)]
    assert slow.__dict__["begun"].wait(30)
    slow.__dict__["go"].set()
    for thread in threads:
        thread.join(30)
    assert heard == [sample_id(b"a tile")] * 4
    assert len(slow.__dict__["times"]) == 1


def test_what_was_encoded_to_name_a_burst_is_not_encoded_again() -> None:
    bursts = Bursts("line-1", gap_s=1.0, max_s=10.0)
    shot = Shot(frame_of(3), 0.0, "", "camera")
    joined = bursts.joined(shot, 5.0)
    assert joined.group == f"line-1/{shot.sample_id.hex()[:32]}"
    assert joined.data is shot.data
    assert joined.sample_id is shot.sample_id


@pytest.mark.parametrize("shape", [(8, 8), (8, 300), (300, 8), (97, 131)])
def test_a_tile_is_stored_losslessly(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    for frame in (frame_of(90), rng.integers(0, 256, (*shape, 3), np.uint8)):
        assert np.array_equal(decode(encode_png(frame)), frame)


def test_a_noisy_tile_takes_hardly_more_than_its_noise() -> None:
    """Noise of a deviation of 3 holds 3.6 bits a value, and PNG's usual ways find little else."""
    light = np.add.outer(np.linspace(30, 120, 200), np.linspace(0, 110, 200))[..., None]
    noisy = np.clip(np.random.default_rng(0).normal(light, 3, (200, 200, 3)), 0, 255).astype(np.uint8)
    assert len(encode_png(noisy)) < 1.2 * noisy.size * 3.63 / 8


def test_a_folder_is_read_sorted_and_its_bytes_kept_as_delivered(folder: Path) -> None:
    shots, camera = take(FolderCamera(path=folder))
    assert [shot.source for shot in shots] == ["a.png", "b.png", "c/d.png"]
    assert shots[0].data == (folder / "a.png").read_bytes()
    assert shots[0].sample_id == sample_id(shots[0].data)
    assert np.array_equal(decode(shots[0].data), shots[0].frame)
    assert camera.tally.state is CameraState.ENDED
    assert camera.tally.frames == 3


def test_each_file_of_a_folder_is_a_part_of_its_own(folder: Path) -> None:
    shots, _ = take(FolderCamera(path=folder))
    assert [shot.group for shot in shots] == ["line-1/a.png", "line-1/b.png", "line-1/c/d.png"]


def test_an_index_says_order_and_parts(folder: Path) -> None:
    (folder / "index.csv").write_text("path,label,group\nc/d.png,good,part 7\na.png,bad,part 7\n")
    shots, _ = take(FolderCamera(path=folder))
    assert [(shot.source, shot.group) for shot in shots] == [
        ("c/d.png", "line-1/part 7"),
        ("a.png", "line-1/part 7"),
    ]


def test_a_very_long_part_name_still_gives_a_valid_group(folder: Path) -> None:
    (folder / "index.csv").write_text("path,group\na.png," + "x" * 500 + "\n")
    shots, _ = take(FolderCamera(path=folder))
    assert len(shots[0].group) <= 200
    assert shots[0].group.startswith("line-1/")


def test_a_file_name_that_is_no_utf_8_is_told_as_text(tmp_path: Path) -> None:
    """As a Latin-1 program writes it: with lone surrogates in its name no verdict could be stored or sent."""
    data = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/pr\xfcf_1.png")).write_bytes(data)
    (shot,) = open_camera(FolderCamera(path=tmp_path), "line-1").shots(threading.Event())
    assert (shot.source, shot.part) == ("pr\\xfcf_1.png", "pr\\xfcf_1.png")
    assert shot.group == "line-1/pr\\xfcf_1.png"
    assert shot.delivered == data


def test_bad_files_are_quarantined_logged_once_and_handed_on_as_no_picture(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (folder / "a.png").read_bytes()
    (folder / "aa-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "ab-empty.jpg").write_bytes(b"")
    (folder / "ac-text.jpg").write_bytes(b"not an image at all")
    with caplog.at_level(logging.WARNING):
        shots, camera = take(FolderCamera(path=folder, loop=True), 12)
    bad = {shot.part: shot.fault for shot in shots if shot.fault}
    assert {shot.source for shot in shots if not shot.fault} == {"a.png", "b.png", "c/d.png"}
    assert bad["ab-empty.jpg"] == "ab-empty.jpg: the file is empty"
    assert bad["ac-text.jpg"] == camera.tally.unreadable
    assert camera.tally.frames == 6
    assert camera.tally.bad == 3
    assert sorted(camera.tally.quarantined) == ["aa-truncated.png", "ab-empty.jpg", "ac-text.jpg"]
    assert len([r for r in caplog.records if "quarantined" in r.message]) == 3


def test_a_looping_folder_sees_files_that_came_later(folder: Path) -> None:
    camera = open_camera(FolderCamera(path=folder, loop=True), "line-1")
    shots = camera.shots(threading.Event())
    first = [next(shots).source for _ in range(3)]
    (folder / "0-new.png").write_bytes(encode_png(frame_of(200)))
    assert next(shots).source == "0-new.png"
    assert first == ["a.png", "b.png", "c/d.png"]


def test_a_rate_is_kept_and_a_stop_is_noticed_while_waiting(folder: Path) -> None:
    camera = open_camera(FolderCamera(path=folder, rate_fps=20), "line-1")
    stop = threading.Event()
    shots = camera.shots(stop)
    began_s = time.monotonic()
    assert len(list(itertools.islice(shots, 3))) == 3
    assert time.monotonic() - began_s >= 2 / 20
    slow = open_camera(FolderCamera(path=folder, rate_fps=0.01), "line-1").shots(stop)
    next(slow)
    threading.Timer(0.05, stop.set).start()
    assert next(slow, None) is None
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda _: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no images"),
        (lambda folder: (folder.mkdir(), (folder / "index.csv").write_text("file\na.png\n")), "no column path"),
        (
            lambda folder: (folder.mkdir(), (folder / "index.csv").write_text("path\n../../etc/passwd\n")),
            "not a path below the folder",
        ),
        (
            lambda folder: (folder.mkdir(), (folder / "index.csv").write_bytes(b"path\n\xff\xfe\n")),
            "index.csv: ",
        ),
    ],
)
def test_a_folder_that_cannot_serve_is_refused_at_start(
    tmp_path: Path, prepare: Callable[[Path], object], message: str
) -> None:
    prepare(tmp_path / "images")
    with pytest.raises(ConfigError, match=message):
        open_camera(FolderCamera(path=tmp_path / "images"), "line-1")


def test_a_looping_folder_of_only_bad_files_is_lost_not_spun_on(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    shots = open_camera(FolderCamera(path=tmp_path, loop=True), "line-1").shots(threading.Event())
    assert next(shots).fault
    with pytest.raises(CameraLost, match="none of 1 files"):
        next(shots)


def test_a_folder_that_is_gone_is_lost_and_no_part_is_rejected_for_it(folder: Path) -> None:
    camera = open_camera(FolderCamera(path=folder), "line-1")
    shots = camera.shots(threading.Event())
    next(shots)
    folder.rename(folder.with_name("away"))
    with pytest.raises(CameraLost, match="is not a folder"):
        next(shots)
    assert (camera.tally.bad, camera.tally.unreadable) == (0, "")


def test_a_video_gives_every_frame_losslessly(tmp_path: Path) -> None:
    shots, camera = take(VideoCamera(path=write_video(tmp_path / "v.avi")))
    assert len(shots) == 20
    assert camera.tally.state is CameraState.ENDED
    assert all(np.array_equal(decode(shot.data), shot.frame) for shot in shots[:3])
    assert shots[3].source == "v.avi #4"


def test_a_video_is_sampled_by_its_own_time(tmp_path: Path) -> None:
    shots, _ = take(VideoCamera(path=write_video(tmp_path / "v.avi", fps=200.0), rate_fps=100))
    assert [shot.source for shot in shots] == [f"v.avi #{n}" for n in range(1, 21, 2)]


def test_frames_without_parts_are_grouped_by_burst(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.avi", fps=10.0)
    together, _ = take(VideoCamera(path=video))
    assert len({shot.group for shot in together}) == 1
    assert together[0].group == f"line-1/{together[0].sample_id.hex()[:32]}"
    apart, _ = take(VideoCamera(path=video, burst_gap_s=0.05))
    assert len({shot.group for shot in apart}) == 20
    capped, _ = take(VideoCamera(path=video, burst_max_s=0.45))
    assert len({shot.group for shot in capped}) == 4


def test_a_file_that_is_no_video_is_lost(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(CameraLost, match="no frame can be decoded"):
        take(VideoCamera(path=tmp_path / "v.mp4"))


def test_a_missing_video_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        open_camera(VideoCamera(path=tmp_path / "v.mp4"), "line-1")


def test_a_pipeline_in_place_of_an_address_is_refused_with_the_way_to_write_it() -> None:
    with pytest.raises(ConfigError, match="is a GStreamer pipeline") as refusal:
        open_camera(OpenCvCamera(url="v4l2src ! videoconvert ! appsink"), "line-1")
    assert 'kind = "gstreamer"' in refusal.value.hint


def test_a_camera_is_asked_for_its_format(tmp_path: Path) -> None:
    """A video file takes no format: the difference is told, and its frames come all the same."""
    asked = OpenCvCamera(url=str(write_video(tmp_path / "v.avi")), width=1920, height=1080, fps=5.0, fourcc="MJPG")
    shots = open_camera(asked, "line-1").shots(stop := threading.Event())
    assert next(shots).frame.shape == (48, 64, 3)
    stop.set()


def live_at(address: Path) -> OpenCvCamera:
    return OpenCvCamera(url=str(address), retry_s=0.01, retry_max_s=0.02)


def test_a_camera_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    address = tmp_path / "camera.avi"
    camera = open_camera(live_at(address), "line-1")
    shots = camera.shots(stop := threading.Event())
    appears = threading.Timer(0.3, lambda: write_video(tmp_path / "x.avi").rename(address))
    appears.start()
    shot = next(shots)
    stop.set()
    assert shot.frame.shape == (48, 64, 3)
    assert camera.tally.outages >= 1
    shots.close()  # type: ignore[attr-defined]  # a generator


def test_a_lost_camera_is_reconnected_for_ever_and_unread_frames_are_counted(tmp_path: Path) -> None:
    """A video file as the address: it ends, is opened again, ends again."""
    address = write_video(tmp_path / "camera.avi")
    camera = open_camera(live_at(address), "line-1")
    shots = camera.shots(stop := threading.Event())
    deadline_s = time.monotonic() + 60
    while camera.tally.outages < 3:
        assert time.monotonic() < deadline_s
        next(shots)
    stop.set()
    assert camera.tally.frames + camera.tally.dropped >= 20
    assert next(shots, None) is None


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://admin:SECRET@192.0.2.1/1", "rtsp://192.0.2.1/1"),
        ("rtsp://admin:SE@CRET@192.0.2.1:554/1", "rtsp://192.0.2.1:554/1"),
        ("rtsp://admin:SEC/RET@192.0.2.1/1", "rtsp://admin/…"),
        ("rtsp://192.0.2.1:554/user=admin&password=SECRET&channel=1&stream=0.sdp", "rtsp://192.0.2.1:554/…"),
        ("http://192.0.2.1/videostream.cgi?user=admin&pwd=SECRET", "http://192.0.2.1/…"),
        ("http://192.0.2.1?user=a@b&pwd=SECRET", "http://192.0.2.1/…"),
        ("http://[2001:db8::1]:80/1;token=SECRET", "http://[2001:db8::1]:80/…"),
        ("admin:SECRET@192.0.2.1/1", "…"),
        ("/dev/v4l/by-id/usb-cam-video-index0", "/dev/v4l/by-id/usb-cam-video-index0"),
    ],
)
def test_the_password_of_a_camera_is_in_no_name(url: str, name: str) -> None:
    assert open_camera(OpenCvCamera(url=url), "line-1").name == name


@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        (
            "rtspsrc location=rtsp://192.0.2.1/s user-id=admin user-pw=SECRET latency=0 ! decodebin",
            "rtspsrc location=rtsp://192.0.2.1/s",
        ),
        (
            "rtspsrc user-pw=\"a ! SECRET\" location='rtsp://admin:SECRET@192.0.2.1/s' ! decodebin",
            "rtspsrc location=rtsp://192.0.2.1/s",
        ),
        ("uridecodebin uri=rtsp://192.0.2.1/password=SECRET ! x", "uridecodebin uri=rtsp://192.0.2.1/…"),
        ("nvarguscamerasrc sensor-id=1 ! nvvidconv", "nvarguscamerasrc sensor-id=1"),
        ("! nonsense", ""),
    ],
)
def test_the_password_in_a_pipeline_is_in_no_name(pipeline: str, name: str) -> None:
    assert pipeline_name(pipeline) == name


def test_cameras_of_one_host_stay_apart_though_their_addresses_may_not_be_shown() -> None:
    urls = [f"rtsp://192.0.2.1/user=admin&password=SECRET&channel={i}.sdp" for i in range(3)]
    sources = told_apart([open_source(OpenCvCamera(url=url), "line-1", time.time) for url in urls])
    names = [source.camera.name for source in sources]
    assert names == ["rtsp://192.0.2.1/…", "rtsp://192.0.2.1/… (2)", "rtsp://192.0.2.1/… (3)"]
    assert len(set(map(folder_of, names))) == 3
