"""The line keeps up, says where it does not, and passes no part that it has not seen in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from device_agent import flow
from device_agent.camera import Box, Camera, CameraState, Shot, encode_png, open_camera
from device_agent.config import FolderCamera, RecipeSettings, WatchCamera
from device_agent.flow import INTAKE_FRAMES, STAGE_FRAMES, STAGES, Backlog, FlowSettings, worth_keeping
from device_agent.parts import LATE, STOPPING
from device_agent.recipe import Recipe
from device_agent.sample import SampleStatus
from device_agent.station import Look
from device_agent.store import Store
from device_agent.trigger import Trigger
from sdk.bundle import Bundle
from sdk.errors import CameraLost, InferenceFailed, NoRelease, TriggerRefused
from sdk.images import decode, sample_id
from sdk.preprocess import Frame
from sdk.wire import Verdict
from tests.line_sim import Line, SimCamera, frame_of
from tests.simulators import wait_for
from tests.tiny import tiny_bundle

PATIENT = FlowSettings(decide_within_s=600.0)
DEADLINE_S = 60.0


def until(condition: Callable[[], object], what: str = "it") -> None:
    wait_for(condition, DEADLINE_S, what)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("flow") / "bundle")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1") as store:
        yield store


def good_pictures(store: Store, bundle: Bundle, count: int) -> list[Frame]:
    """Return pictures that this bundle's head calls good."""
    line = Line(store, bundle, [SimCamera()], PATIENT)
    station = line.station
    named = [frame_of("good", i) for i in range(60)]
    good = [f for f in named if station.inspect(cv2.imencode(".png", f)[1].tobytes()).decision.shown == "good"]
    station.close()
    assert len(good) >= count
    return good[:count]


def test_every_file_is_decided_stored_and_judged(store: Store, bundle: Bundle) -> None:
    camera = SimCamera(live=False)
    with Line(store, bundle, [camera], PATIENT) as line:
        for i in range(10):
            camera.push(frame_of("pit", i), part=f"p{i}")
        camera.end()
        until(lambda: line.station.counts.frames == 10)
        assert [part.name for part in line.parts] == [f"p{i}" for i in range(10)]
        assert [part.number for part in line.parts] == list(range(1, 11))
        assert camera.tally.state is CameraState.ENDED
    assert len(store.samples.newest(limit=50)) == 10
    assert line.faults == []


def test_in_free_run_the_newest_frame_wins_and_the_others_are_counted(store: Store, bundle: Bundle) -> None:
    camera = SimCamera()
    with Line(store, bundle, [camera], PATIENT) as line:
        line.runtime.gate.clear()
        camera.push(frame_of("pit", 0))
        until(lambda: line.runtime.entered == 1, "the first frame in the backbone")
        for i in range(1, 30):
            camera.push(frame_of("pit", i))
        until(lambda: camera.tally.frames == 30, "capture while the backbone is busy")
        until(lambda: camera.tally.dropped + line.flow.waiting()["backbone"] + 3 >= 30)
        line.runtime.gate.set()
        until(lambda: line.station.counts.frames + camera.tally.dropped == 30)
        newest = line.parts[-1].finding
        assert newest is not None
        assert newest.shot.source == "sim #30"
        assert camera.tally.dropped >= 30 - 1 - STAGE_FRAMES - 2


def test_from_files_none_is_dropped_and_what_waits_is_bounded_and_shown(store: Store, bundle: Bundle) -> None:
    camera = SimCamera(live=False)
    with Line(store, bundle, [camera], PATIENT) as line:
        line.runtime.gate.clear()
        for i in range(30):
            camera.push(frame_of("pit", i))
        until(lambda: line.flow.waiting()["backbone"] == STAGE_FRAMES)
        until(lambda: line.flow.waiting()["prepare"] == INTAKE_FRAMES)
        assert camera.tally.frames <= 1 + STAGE_FRAMES + 1 + INTAKE_FRAMES + 1
        line.runtime.gate.set()
        until(lambda: line.station.counts.frames == 30)
        assert camera.tally.dropped == 0


def triggered(**more: float) -> FlowSettings:
    return FlowSettings(triggers=8, decide_within_s=more.get("within_s", 600.0), delay_s=more.get("delay_s", 0.0))


def test_each_trigger_gets_a_frame_that_was_taken_after_it(store: Store, bundle: Bundle) -> None:
    camera = SimCamera()
    with Line(store, bundle, [camera], triggered()) as line:
        camera.push(frame_of("good", 99))
        for i in range(5):
            line.flow.trigger(f"part {i}", f"lot {i % 2}")
            camera.push(frame_of("pit", 50 + i), at_s=time.monotonic() - 30)  # before the part was there
            camera.push(frame_of("pit", i))
            until(lambda: len(line.parts) == i + 1)  # noqa: B023 - called before it changes
        assert [part.name for part in line.parts] == [f"part {i}" for i in range(5)]
        until(lambda: line.station.counts.frames == 5)
        groups = {s.sample_id: s.group for s in store.samples.newest(limit=50)}
        assert sorted(groups.values()) == [f"line-1/part {i}" for i in range(5)]
        lots = {s.group: s.lot for s in store.samples.newest(limit=50)}
        assert lots == {f"line-1/part {i}": f"lot {i % 2}" for i in range(5)}
        looked_at = {part.finding.shot.sample_id for part in line.parts if part.finding is not None}
        assert looked_at == set(groups)


def refused(line: Line) -> TriggerRefused | None:
    """Trigger until one is refused; of ten one may already be in the camera's hand, and eight may wait."""
    for i in range(10):
        try:
            line.flow.trigger(f"part {i}")
        except TriggerRefused as error:
            return error
    return None


def test_more_triggers_than_may_wait_are_refused_and_their_parts_rejected(store: Store, bundle: Bundle) -> None:
    camera = SimCamera()
    with Line(store, bundle, [camera], triggered()) as line:
        refusal = refused(line)
        assert line.flow.triggers is not None
        assert "rejected unseen: 8 parts wait" in str(refusal)
        assert (line.parts[0].verdict, line.parts[0].finding) == (Verdict.REJECT, None)
        assert line.flow.triggers.refused == 1
        fired = line.flow.triggers.fired
        for i in range(fired):
            camera.push(frame_of("pit", i))
        until(lambda: len(line.parts) == fired + 1, "all that were taken on")


def test_after_an_outage_the_first_part_is_taken(store: Store, bundle: Bundle) -> None:
    """Its camera gave nothing for a while: the triggers of then are rejected, and keep no part out."""
    camera = SimCamera()
    with Line(store, bundle, [camera], triggered(within_s=0.2)) as line:
        for i in range(8):
            line.flow.trigger(f"lost {i}")
        until(lambda: len(line.parts) == 8)
        assert line.flow.waiting()["trigger"] == 0
        line.flow.trigger("next")
        assert line.flow.triggers is not None
        assert line.flow.triggers.refused == 0


def test_files_are_taken_one_for_each_trigger(store: Store, bundle: Bundle) -> None:
    camera = SimCamera(live=False)
    for i in range(3):
        camera.push(frame_of("pit", i), part=f"file {i}")
    with Line(store, bundle, [camera], triggered()) as line:
        line.flow.trigger("A")
        until(lambda: line.station.counts.frames == 1)
        line.flow.trigger("B")
        until(lambda: line.station.counts.frames == 2)
        assert [part.name for part in line.parts] == ["A", "B"]


def watching(folder: Path, *, delete: bool = False, names: str = "") -> Camera:
    folder.mkdir(exist_ok=True)
    return open_camera(WatchCamera(path=folder, poll_s=0.01, delete=delete, names=names), "line-1")


def put(folder: Path, name: str) -> None:
    """Write a file, whole at once."""
    draft = folder / f".{name}"
    draft.write_bytes(encode_png(frame_of("pit", len(name))))
    draft.rename(folder / name)


def shown(line: Line) -> list[tuple[str, str]]:
    """Return each part that has a finding, and the file that it was decided by."""
    return [(part.name, part.finding.shot.source) for part in line.parts if part.finding is not None]


def test_a_file_that_no_trigger_asked_for_answers_none_that_comes_later(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    """Its trigger was refused, or sent while the broker was away. It took the next part's place, and so on."""
    camera, folder = watching(tmp_path / "in"), tmp_path / "in"
    with Line(store, bundle, [camera], triggered()) as line:
        until(lambda: camera.tally.state is CameraState.LIVE)
        put(folder, "lost.png")
        until(lambda: camera.tally.dropped == 1)
        for i in range(3):
            line.flow.trigger(f"part {i}")
            put(folder, f"{i}.png")
            until(lambda: len(line.parts) == i + 1)  # noqa: B023 - called before it changes
        assert shown(line) == [(f"part {i}", f"{i}.png") for i in range(3)]


def test_a_picture_that_never_comes_shifts_no_other_where_names_tell(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    """Parts follow each other within the time that a part has, and their pictures come in any order."""
    camera, folder = watching(tmp_path / "in", names="{part}_*.png"), tmp_path / "in"
    with Line(store, bundle, [camera], triggered(within_s=2.0)) as line:
        until(lambda: camera.tally.state is CameraState.LIVE)
        for name in ("A", "B", "C"):
            line.flow.trigger(name)
        put(folder, "C_0.png")
        until(lambda: len(line.parts) == 1)
        put(folder, "B_1.png")
        put(folder, "Z_1.png")
        until(lambda: len(line.parts) == 3)  # A by its time
        assert shown(line) == [("C", "C_0.png"), ("B", "B_1.png")]
        assert [part.name for part in line.parts if part.finding is None] == ["A"]
        assert camera.tally.dropped == 1
        assert line.flow.triggers is not None
        line.flow.trigger("D")
        put(folder, "A_late.png")
        put(folder, "D_1.png")
        until(lambda: len(line.parts) == 4)
        assert shown(line)[-1] == ("D", "D_1.png")
        assert line.flow.triggers.depth == 0


def test_several_pictures_of_a_part_are_told_by_their_names(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    camera, folder = watching(tmp_path / "in", names="{part}_*.png"), tmp_path / "in"
    with Line(store, bundle, [camera], replace(triggered(), frames=2)) as line:
        until(lambda: camera.tally.state is CameraState.LIVE)
        line.flow.trigger("A")
        line.flow.trigger("B")
        for name in ("A_1.png", "B_1.png", "A_2.png", "A_3.png", "B_2.png"):
            put(folder, name)
        until(lambda: len(line.parts) == 2 and camera.tally.dropped == 1)
        assert [(part.name, part.reason, part.frames) for part in line.parts] == [("A", "pit", 2), ("B", "pit", 2)]
        until(lambda: line.station.counts.frames == 4)


def put_bad(folder: Path, name: str) -> None:
    """Write a file that ends too early."""
    draft = folder / f".{name}"
    draft.write_bytes(encode_png(frame_of("pit", len(name)))[:200])
    draft.rename(folder / name)


def test_a_picture_that_cannot_be_read_rejects_its_part_and_is_not_stored(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    """Nobody heard of its part: the verdict of the part before still stood at the outputs."""
    camera, folder = watching(tmp_path / "in"), tmp_path / "in"
    with Line(store, bundle, [camera], PATIENT) as line:
        until(lambda: camera.tally.state is CameraState.LIVE)
        put(folder, "1.png")
        until(lambda: len(line.parts) == 1)
        put_bad(folder, "2.png")
        until(lambda: len(line.parts) == 2)
        put(folder, "three.png")
        until(lambda: line.station.counts.frames == 2)
        first, bad, third = line.parts
        assert (first.name, third.name) == ("1.png", "three.png")
        assert (bad.name, bad.verdict, bad.finding, bad.frames) == ("2.png", Verdict.REJECT, None, 1)
        assert bad.reason.startswith("not inspected: 2.png: the image is damaged")
        assert bad.result().sample is None
        assert line.faults == [], "it speaks against no release"
    assert {sample.source for sample in store.samples.newest(limit=50)} == {"1.png", "three.png"}


@pytest.mark.parametrize("names", ["", "{part}.png"])
def test_a_triggered_part_whose_picture_cannot_be_read_does_not_get_the_next_ones(
    store: Store, bundle: Bundle, tmp_path: Path, names: str
) -> None:
    camera, folder = watching(tmp_path / "in", names=names), tmp_path / "in"
    with Line(store, bundle, [camera], triggered()) as line:
        until(lambda: camera.tally.state is CameraState.LIVE)
        for i in range(3):
            line.flow.trigger(f"{i}")
            (put_bad if i == 1 else put)(folder, f"{i}.png")
            until(lambda: len(line.parts) == i + 1)  # noqa: B023 - called before it changes
        assert shown(line) == [("0", "0.png"), ("2", "2.png")]
        assert (line.parts[1].name, line.parts[1].verdict) == ("1", Verdict.REJECT)
        assert line.parts[1].reason.startswith("not inspected: 1.png: ")


def test_a_replayed_file_that_cannot_be_read_is_its_triggers(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    for name in ("1.png", "3.png"):
        put(tmp_path, name)
    put_bad(tmp_path, "2.png")
    camera = open_camera(FolderCamera(path=tmp_path), "line-1")
    with Line(store, bundle, [camera], triggered()) as line:
        for name in ("A", "B", "C"):
            line.flow.trigger(name)
        until(lambda: len(line.parts) == 3)
        assert shown(line) == [("A", "1.png"), ("C", "3.png")]
        assert line.parts[1].reason.startswith("not inspected: 2.png: ")


@pytest.mark.parametrize("fails", ["read", "prepared"])
def test_a_frame_that_fails_is_rejected_in_its_turn(
    store: Store, bundle: Bundle, tmp_path: Path, fails: str
) -> None:
    """Who takes the verdicts by their order would else give its part the pass of the one before."""
    for name in ("1.png", "3.png"):
        put(tmp_path, name)
    bad = frame_of("pit", 2)
    (tmp_path / "2.png").write_bytes(encode_png(bad)[:200] if fails == "read" else encode_png(bad))

    def check(shot: Shot) -> str:
        if fails == "prepared" and shot.source == "2.png":
            raise KeyError("a bug")
        return ""

    camera = open_camera(FolderCamera(path=tmp_path), "line-1")
    with Line(store, bundle, [camera], PATIENT, check=check) as line:
        line.runtime.gate.clear()
        until(lambda: line.runtime.entered == 1, "the first frame in the backbone")
        until(lambda: line.flow.waiting()["backbone"] == 2, "both others behind it")
        line.runtime.gate.set()
        until(lambda: len(line.parts) == 3)
        assert [part.name for part in line.parts] == ["1.png", "2.png", "3.png"]
        assert [part.finding is None for part in line.parts] == [False, True, False]


def test_a_file_left_over_at_a_stop_answers_no_trigger_after_the_start(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    with Line(store, bundle, [camera := watching(folder, delete=True)], triggered()) as line:
        until(lambda: camera.tally.state is CameraState.LIVE)
        line.flow.trigger("monday")
        put(folder, "monday.png")
        until(lambda: line.parts)
    assert list(folder.iterdir()) == []
    put(folder, "left.png")
    with Line(store, bundle, [camera := watching(folder, delete=True)], triggered()) as line:
        until(lambda: camera.tally.state is CameraState.LIVE)
        line.flow.trigger("tuesday")
        put(folder, "tuesday.png")
        until(lambda: line.parts)
        assert shown(line) == [("tuesday", "tuesday.png")]
        assert camera.tally.dropped == 1


def test_a_part_whose_file_never_came_takes_no_other_parts(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    camera, folder = watching(tmp_path / "in"), tmp_path / "in"
    with Line(store, bundle, [camera], triggered()) as line:
        until(lambda: camera.tally.state is CameraState.LIVE)
        assert line.flow.triggers is not None
        line.flow.triggers.fire(Trigger("passed", 0.0, time.monotonic() - 601))  # its 600 s are over
        for i in range(3):
            line.flow.trigger(f"part {i}")
            put(folder, f"{i}.png")
            until(lambda: len(line.parts) == i + 1)  # noqa: B023 - called before it changes
        assert shown(line) == [(f"part {i}", f"{i}.png") for i in range(3)]


def test_a_part_whose_camera_gives_nothing_is_rejected_when_its_time_is_over(store: Store, bundle: Bundle) -> None:
    with Line(store, bundle, [SimCamera()], triggered(within_s=0.05)) as line:
        line.flow.trigger("p")
        until(lambda: line.parts)
        assert (line.parts[0].verdict, line.parts[0].reason) == (Verdict.REJECT, LATE)


class Counted(threading.Condition):
    """Counts how often the watch over deadlines is woken."""

    woken = 0

    def notify_all(self) -> None:
        self.woken += 1
        super().notify_all()


def test_the_watch_is_woken_for_what_is_due_before_it_looks_again_and_for_nothing_else(
    store: Store, bundle: Bundle
) -> None:
    line = Line(store, bundle, [SimCamera()], triggered(within_s=1000.0))
    due = line.flow._due = Counted(line.flow._lock)
    line.flow.trigger("nobody has looked yet")
    assert due.woken == 1
    line.flow._watched_s = time.monotonic() + 500
    line.flow.trigger("due when the watch has looked")
    assert due.woken == 1
    line.flow._watched_s = time.monotonic() + 5000
    line.flow.trigger("due before")
    assert due.woken == 2
    line.station.close()


def test_after_an_outage_a_frame_goes_to_the_part_of_now_and_not_to_those_that_passed(
    store: Store, bundle: Bundle
) -> None:
    camera = SimCamera()
    with Line(store, bundle, [camera], triggered()) as line:
        for i in range(3):
            line.flow.trigger(f"passed {i}")
        camera.push(frame_of("pit", 0), at_s=time.monotonic() + 601)  # their 600 s were over
        until(lambda: line.flow.triggers is not None and line.flow.triggers.depth == 0)
        line.flow.trigger("now")
        camera.push(frame_of("pit", 1))
        until(lambda: line.station.counts.frames)
        assert [sample.group for sample in store.samples.newest(limit=50)] == ["line-1/now"]


def test_a_part_is_rejected_in_time_though_the_backbone_hangs(store: Store, bundle: Bundle) -> None:
    camera = SimCamera()
    with Line(store, bundle, [camera], triggered(within_s=0.05)) as line:
        line.runtime.gate.clear()
        line.flow.trigger("p")
        camera.push(frame_of("good"))
        until(lambda: line.parts)
        line.runtime.gate.set()
        until(lambda: line.station.counts.frames == 1, "the late decision, stored")
        assert [(part.reason, part.verdict) for part in line.parts] == [(LATE, Verdict.REJECT)]


def test_free_running_frames_have_a_deadline_and_files_have_none(store: Store, bundle: Bundle) -> None:
    live, file = SimCamera("live"), SimCamera("file", live=False)
    with Line(store, bundle, [live, file], FlowSettings(decide_within_s=0.05)) as line:
        line.runtime.gate.clear()
        for camera in (live, file):
            camera.push(frame_of("pit", 0))
        until(lambda: line.parts)
        line.runtime.gate.set()
        until(lambda: len(line.parts) == 2)
        assert line.parts[0].reason == LATE
        assert line.parts[1].reason != LATE


@pytest.mark.parametrize(
    "error", [InferenceFailed("out of order", hint="-"), KeyError("a bug"), MemoryError()], ids=type
)
def test_a_frame_that_fails_rejects_its_part_and_the_next_is_taken(
    store: Store, bundle: Bundle, error: Exception
) -> None:
    camera = SimCamera(live=False)
    with Line(store, bundle, [camera], PATIENT) as line:
        line.runtime.fail_next.append(error)
        camera.push(frame_of("pit", 0), part="a")
        camera.push(frame_of("pit", 1), part="b")
        until(lambda: len(line.parts) == 2)
        assert line.parts[0].verdict is Verdict.REJECT
        assert line.parts[0].reason.startswith("not inspected: ")
        assert line.parts[1].finding is not None
        assert line.faults == [error]


def test_a_line_that_failed_for_a_night_inspects_again(
    store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 1,027 failures in a row, 8.5 hours, the stage itself ended, and the line stood until a restart."""
    monkeypatch.setattr(flow, "RETRY_MAX_S", 0.0)
    camera = SimCamera(live=False)
    with Line(store, bundle, [camera], PATIENT) as line:
        line.flow._in_a_row = 2000
        line.runtime.fail_next.append(InferenceFailed("no memory", hint="-"))
        camera.push(frame_of("pit", 0))
        camera.push(frame_of("pit", 1))
        until(lambda: line.station.counts.frames == 1, "the frame after the one that failed")
        assert len(line.faults) == 1


def test_several_cameras_share_one_backbone_and_make_one_verdict(store: Store, bundle: Bundle) -> None:
    top, side = SimCamera("top"), SimCamera("side")
    good = good_pictures(store, bundle, 2)
    with Line(store, bundle, [top, side], triggered()) as line:
        for name, from_side in [("ok", good[1]), ("bad", frame_of("pit", 3))]:
            line.flow.trigger(name)
            top.push(good[0])
            side.push(from_side)
            until(lambda: line.parts and line.parts[-1].name == name)  # noqa: B023 - called before it changes
        verdicts = {part.name: part.verdict for part in line.parts}
        assert verdicts == {"ok": Verdict.PASS, "bad": Verdict.REJECT}
        worst = line.parts[-1].finding
        assert worst is not None
        assert worst.shot.camera == 1
        assert line.parts[-1].frames == 2


class BrokenOnce(SimCamera):
    """Raises an error that no camera should, at the first look."""

    def shots(self, stop: threading.Event) -> Iterator[Shot]:
        if self.tally.state is CameraState.OPENING:
            raise PermissionError(13, "Permission denied", "index.csv")
        return super().shots(stop)


def test_a_source_that_breaks_in_whatever_way_is_tried_again(store: Store, bundle: Bundle) -> None:
    camera = BrokenOnce()
    camera.push(frame_of("pit", 0))
    with Line(store, bundle, [camera], PATIENT) as line:
        until(lambda: line.parts)
        assert [str(error) for error in line.faults] == [
            "sim: PermissionError: [Errno 13] Permission denied: 'index.csv'"
        ]
        assert isinstance(line.faults[0], CameraLost), "a source at fault speaks against no release"


def test_a_camera_that_is_slow_holds_no_other_back(store: Store, bundle: Bundle) -> None:
    quick, silent = SimCamera("quick"), SimCamera("silent")
    with Line(store, bundle, [quick, silent], PATIENT) as line:
        for i in range(5):
            quick.push(frame_of("pit", i))
            until(lambda: line.station.counts.frames == i + 1)  # noqa: B023 - called before it changes
        assert silent.tally.frames == 0


def large_part() -> Frame:
    """Return a surface of 4 x 2 tiles with a pit in the third of the upper row."""
    rng = np.random.default_rng(3)
    frame = np.clip(rng.normal(110, 7, (2 * 48, 4 * 48, 3)), 0, 255).astype(np.uint8)
    frame[:48, 96:144] = frame_of("pit", 5)
    return frame


def test_a_tile_rejects_the_part_and_its_label_goes_to_the_tiles_own_digest(store: Store, bundle: Bundle) -> None:
    camera, frame = SimCamera(live=False), large_part()
    recipe = Recipe(RecipeSettings(tile_px=48, overlap=0.0))
    with Line(store, bundle, [camera], PATIENT, recipe) as line:
        camera.push(frame, part="p")
        until(lambda: line.station.counts.frames == 1)
        part = line.parts[0]
        assert (part.verdict, part.tiles, part.frames) == (Verdict.REJECT, 8, 1)
        assert len(store.samples.newest(limit=50)) == 8
        (pit,) = [s for s in store.samples.newest(limit=50) if "tile 3 of 8" in s.source]
        picture = store.samples.image(pit.sample_id)
        assert picture is not None
        assert sample_id(picture) == pit.sample_id
        assert np.array_equal(decode(picture), frame[:48, 96:144])
        stain = line.station.define_class("stain", "ann")
        line.station.label(pit.sample_id, stain, "ann")
        labelled = store.samples.get(pit.sample_id)
        assert labelled is not None
        assert labelled.status is SampleStatus.LABELLED
        assert line.station.require().learner.label_of(pit.sample_id) == stain


def test_the_verdict_names_a_tile_that_rejects_and_where_it_lies(store: Store, bundle: Bundle) -> None:
    camera = SimCamera(live=False)
    recipe = Recipe(RecipeSettings(tile_px=48, overlap=0.0))
    with Line(store, bundle, [camera], PATIENT, recipe) as line:
        camera.push(large_part(), part="p")
        until(lambda: line.station.counts.frames == 1)
        bad = {s.source for s in store.samples.newest(limit=50) if s.decision != "good"}
        worst = line.parts[0].finding
        assert "sim #1, tile 3 of 8" in bad
        assert worst is not None
        assert worst.shot.source in bad
        assert line.parts[0].rejected == len(bad)
        row, column = divmod(worst.shot.tile - 1, 4)
        assert worst.shot.box == Box(48 * column, 48 * row, 48, 48)


def test_a_picture_that_cannot_be_right_rejects_its_part(store: Store, bundle: Bundle) -> None:
    camera = SimCamera(live=False)
    (good,) = good_pictures(store, bundle, 1)
    with Line(store, bundle, [camera], PATIENT, check=lambda _: "the picture is black") as line:
        camera.push(good)
        until(lambda: line.parts)
        assert (line.parts[0].verdict, line.parts[0].reason) == (Verdict.REJECT, "the picture is black")


def test_a_stop_rejects_what_is_open_and_stores_what_was_decided(store: Store, bundle: Bundle) -> None:
    camera = SimCamera()
    with Line(store, bundle, [camera], triggered()) as line:
        line.flow.trigger("decided")
        camera.push(frame_of("pit"))
        until(lambda: len(line.parts) == 1)
        line.flow.trigger("open")
        line.end()
        assert [part.name for part in line.parts] == ["decided", "open"]
        assert (line.parts[1].verdict, line.parts[1].reason) == (Verdict.REJECT, STOPPING)
        assert line.station.counts.frames == 1


def test_a_trigger_without_a_release_is_refused_and_its_part_rejected(store: Store, bundle: Bundle) -> None:
    with Line(store, bundle, [SimCamera()], triggered()) as line:
        line.station.serve_nothing()
        with pytest.raises(NoRelease):
            line.flow.trigger("p")
        assert [(part.name, part.verdict) for part in line.parts] == [("p", Verdict.REJECT)]


def test_a_station_that_runs_free_takes_no_trigger(store: Store, bundle: Bundle) -> None:
    with Line(store, bundle, [SimCamera()], PATIENT) as line, pytest.raises(TriggerRefused, match="runs free"):
        line.flow.trigger("p")


def test_every_stage_is_timed(store: Store, bundle: Bundle) -> None:
    camera = SimCamera(live=False)
    with Line(store, bundle, [camera], PATIENT) as line:
        camera.push(frame_of("pit"))
        until(lambda: line.station.counts.frames == 1)
        line.end()
        assert {stage: times.latency().count for stage, times in line.flow.latencies.items()} == dict.fromkeys(
            STAGES, 1
        )


def decided(line: Line, *names: str) -> list[Look]:
    """Return a decided frame whose tiles show these."""
    camera, stop = SimCamera(live=False), threading.Event()
    for i, name in enumerate(names):
        camera.push(frame_of(name, i))
    camera.end()
    return list(line.station.look(line.station.prepare(list(camera.shots(stop)))).looks)


def test_what_waits_to_be_stored_is_bounded_by_its_memory(store: Store, bundle: Bundle) -> None:
    line = Line(store, bundle, [SimCamera()], PATIENT)
    looks, stop = decided(line, "pit", "pit"), threading.Event()
    looks = [look._replace(shot=replace(look.shot, delivered=bytes(1000))) for look in looks]
    size = 2 * (looks[0].shot.frame.nbytes + 1000)
    backlog = Backlog(limit_bytes=2 * size)
    behind = [backlog.behind]
    for _ in range(2):
        backlog.put(looks, stop)
        behind.append(backlog.behind)
    assert behind == [False, True, True]
    stop.set()
    backlog.put(looks, stop)  # no room: given up, because the line stops
    assert backlog.depth == 2
    assert backlog.take(0) is looks
    assert backlog.take(0) is looks
    assert backlog.take(0) is None
    huge = Backlog(limit_bytes=1)
    huge.put(looks, stop)  # larger than all the room, and there is nothing to wait for
    assert huge.depth == 1
    line.station.close()


def test_when_storing_falls_behind_only_surely_good_tiles_are_left_out(store: Store, bundle: Bundle) -> None:
    line = Line(store, bundle, [SimCamera()], PATIENT)
    looks = decided(line, *["good"] * 30, "pit", "rings")
    kept = worth_keeping(looks, line.flow.ledger, 0.8)
    left_out = [look for look in looks if look not in kept]
    assert left_out
    assert all(look.decision.shown == "good" and look.decision.probability >= 0.8 for look in left_out)
    assert min(looks, key=lambda look: look.decision.probability) in kept
    assert worth_keeping(looks[:1], line.flow.ledger, 0.0) == looks[:1]
    line.station.close()
