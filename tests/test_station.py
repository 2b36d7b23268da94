"""The station decides whatever the disk does, and refuses what it cannot know."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device_agent.camera import Shot, open_camera
from device_agent.config import FolderCamera
from device_agent.decider import TOLERANCE
from device_agent.limits import StoreLimits
from device_agent.queue import QueuePolicy
from device_agent.runtime import open_runtime
from device_agent.sample import SampleStatus
from device_agent.station import UNKNOWN, Station
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.errors import BadImages, LabelError, NoRelease, StoreFull, UnknownClassError
from sdk.labels import DefineClass
from tests.builders import make_bundle, open_projection
from tests.simulators import wait_for
from tests.tiny import class_id, picture, tiny_bundle

FULL = StoreLimits(reserve_bytes=2**60)
"""More than any disk has: samples find no room, labels do."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("station") / "bundle")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1") as store:
        yield store


def serving(store: Store, bundle: Bundle, policy: QueuePolicy | None = None) -> Station:
    station = Station(store, policy=policy)
    station.serve(bundle, None, open_runtime(bundle, None))
    return station


def shots(folder: Path, name: str, count: int) -> list[Shot]:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.png").write_bytes(picture(name, 800 + i))
    return list(open_camera(FolderCamera(path=folder), "line-1").shots(threading.Event()))


def test_what_is_unknown_is_shown_counted_and_asked_about(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    station = serving(store, bundle)
    seen = [station.see(shot) for shot in shots(tmp_path / "images", "rings", 8)]
    unknown = [each for each in seen if each.decision.unknown]
    assert unknown
    assert station.counts.unknown == len(unknown)
    for each in unknown:
        assert each.decision.shown == UNKNOWN
        assert each.decision.class_id is None
        assert each.decision.forced in {"good", "pit", "scratch"}
        assert each.status is SampleStatus.QUEUED
    station.close()


def test_a_known_code_is_not_computed_again(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    station = serving(store, bundle)
    (shot,) = shots(tmp_path / "images", "pit", 1)
    code = station.require().pipeline.code(shot.frame)
    blind = Shot(np.zeros((0, 0, 3), np.uint8), 0.0, shot.group, "", shot.data)
    assert station.see(blind, code).decision == station.see(shot).decision
    station.close()


def test_on_a_full_disk_frames_are_decided_and_counted_as_not_stored(bundle: Bundle, tmp_path: Path) -> None:
    with Store.open(tmp_path / "data", "line-1", limits=FULL) as store:
        station = serving(store, bundle)
        for shot in shots(tmp_path / "images", "pit", 3):
            assert station.see(shot).decision.forced
        assert (station.counts.frames, station.counts.unstored) == (3, 3)
        assert store.samples.newest(limit=5) == []
        station.inspect(picture("pit", 1))
        with pytest.raises(StoreFull):
            station.inspect(picture("pit", 1), keep=True)
        station.close()


def test_when_no_release_serves_any_more_nothing_is_decided(store: Store, bundle: Bundle) -> None:
    changes: list[int] = []
    station = Station(store, on_change=lambda: changes.append(1))
    station.serve(bundle, None, open_runtime(bundle, None))
    assert station.wait_for_release(0)
    station.serve_nothing()
    assert not station.wait_for_release(0)
    assert station.serving is None
    assert station.classes() == []
    assert len(changes) >= 2
    with pytest.raises(NoRelease) as refusal:
        station.inspect(picture("pit", 1))
    assert refusal.value.retryable


def test_a_release_that_no_longer_serves_takes_no_memory(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    """Its learner and runtime are gone with the last frame, not when garbage happens to be collected."""
    station = serving(store, bundle)
    (shot,) = shots(tmp_path / "images", "pit", 1)
    station.label(station.see(shot).sample_id, class_id("pit"), "ann")
    station.require().learner.wait_until_idle(60)
    learner, runtime = weakref.ref(station.require().learner), weakref.ref(station.require().pipeline.runtime)
    gc.collect()
    gc.disable()
    try:
        station.serve(bundle, None, open_runtime(bundle, None))
        assert learner() is None
        assert runtime() is None
    finally:
        gc.enable()
        station.close()


def test_frames_of_the_line_are_decided_by_one_call_and_all_else_by_the_head_itself(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    station = serving(store, bundle)
    (shot,) = shots(tmp_path / "images", "pit", 1)
    prepared = station.prepare([shot])
    head, code = station.require().learner.head.head, station.require().pipeline.code(shot.frame)

    def by_graph() -> bool:
        station.judge(station.embed(prepared))
        return station.require().decider.ready

    wait_for(by_graph, 60.0, "the head's graph")
    (line,), (looked,) = station.judge(station.embed(prepared)).looks, station.look(prepared).looks
    assert np.array_equal(line.code, code[0])
    assert looked.decision.novelty == float(head.decide(code).novelty[0])
    assert line.decision.novelty == pytest.approx(looked.decision.novelty, abs=TOLERANCE / 5)
    assert line.decision.forced_id == looked.decision.forced_id
    station.close()


def test_frames_that_wait_to_be_stored_keep_no_head(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    """Where storing falls behind while labels come, each of their heads would stay: 10 MB each at d = 1584."""
    station = serving(store, bundle)
    waiting, shot = shots(tmp_path / "images", "pit", 2)
    (look,) = station.look(station.prepare([waiting])).looks
    head = weakref.ref(station.require().learner.head.head)
    station.label(station.see(shot).sample_id, class_id("pit"), "ann")
    station.require().learner.wait_until_idle(60)
    gc.collect()
    assert head() is None
    assert station.keep([look])[0].sample_id == waiting.sample_id
    station.close()


def test_every_saved_entry_is_told_of(store: Store, bundle: Bundle) -> None:
    saved: list[int] = []
    station = Station(store, on_saved=lambda: saved.append(1))
    station.serve(bundle, None, open_runtime(bundle, None))
    rings = station.define_class("rings", "ann")
    station.label(station.inspect(picture("rings", 1), keep=True).sample_id, rings, "ann")
    assert len(saved) == 2
    station.close()


def test_a_class_is_found_by_the_name_that_people_use(store: Store, bundle: Bundle) -> None:
    station = serving(store, bundle)
    assert station.class_named("  PIT ") == class_id("pit")
    with pytest.raises(UnknownClassError, match="no class 'rings'"):
        station.class_named("rings")
    station.close()


def test_a_name_that_two_devices_gave_is_refused_as_ambiguous(store: Store, bundle: Bundle) -> None:
    station = serving(store, bundle)
    for new in (b"a" * 16, b"b" * 16):  # as two devices would have, before anybody merged them
        store.log.append([DefineClass(new, "rings", "ann")])
    station.require().learner.received([])
    with pytest.raises(LabelError, match="2 classes are called 'rings'"):
        station.class_named("rings")
    station.close()


@pytest.mark.parametrize(
    "data", [b"", b"no image", picture("pit", 1)[:120]], ids=["empty", "no-image", "truncated"]
)
def test_what_is_no_image_is_refused(store: Store, bundle: Bundle, data: bytes) -> None:
    station = serving(store, bundle)
    with pytest.raises(BadImages):
        station.inspect(data, keep=True)
    assert store.samples.newest(limit=1) == []
    assert station.counts.frames == 0
    station.close()


def referred(station: Station) -> Station:
    """Wait until the trial thread has scored the head that serves."""
    deadline = time.monotonic() + 60
    while station.require().learner.reference is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return station


def of_parts(folder: Path, name: str, count: int) -> list[Shot]:
    """Return one shot of each of so many parts."""
    return [replace(shot, group=f"line-1/{name}-{i}") for i, shot in enumerate(shots(folder, name, count))]


def test_a_stream_that_changes_is_noticed_with_the_parts_behind_it(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    station = referred(serving(store, bundle))
    assert station.drift() is None
    for name in ("good", "pit", "scratch"):
        for shot in of_parts(tmp_path / name, name, 12):
            station.see(shot)
    usual = station.drift()
    assert usual is not None
    assert (usual.alarm, usual.parts) == (False, 36)
    strange = of_parts(tmp_path / "rings", "rings", 40)
    for shot in strange:
        station.see(shot)
    drift = station.drift()
    assert drift is not None
    assert drift.alarm
    shown = {shot.sample_id for shot in strange}
    assert sum(key in shown for key in drift.strangest) > 0.7 * len(drift.strangest)
    station.close()


def test_what_was_strange_to_a_head_is_not_said_of_the_one_that_learned_it(
    store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    """Also before the next part comes: a line that stands still is not told to look at light and lens."""
    station = referred(serving(store, bundle))
    strange = of_parts(tmp_path / "rings", "rings", 40)
    for shot in strange:
        station.see(shot)
    usual = station.drift()
    assert usual is not None
    assert usual.alarm
    learner = station.require().learner
    before, ring = referred(station).require().learner.reference, station.define_class("ring", "ann")
    station.label_all([(shot.sample_id, ring) for shot in strange], "ann")
    assert learner.wait_until_idle(60)
    after = referred(station).require().learner.reference
    assert before is not None
    assert after is not None
    assert after.number > before.number, "its head is confirmed"
    assert station.drift() is None
    station.see(of_parts(tmp_path / "more", "rings", 42)[-1])
    drift = station.drift()
    assert drift is not None
    assert (drift.alarm, drift.parts) == (False, 1)
    station.close()


def test_a_head_with_nothing_to_compare_with_watches_no_drift(store: Store, tmp_path: Path) -> None:
    """The release's own samples trained its backbone, and the only other one is the first of its class."""
    fitted = make_bundle(tmp_path / "fitted", fitted=True)
    station = Station(store)
    station.serve(fitted, None, open_projection(fitted, fitted.precision(None).precision))
    first, second = of_parts(tmp_path / "rings", "rings", 2)
    station.see(first)
    station.label(first.sample_id, station.define_class("ring", "ann"), "ann")
    reference = referred(station).require().learner.reference
    assert reference is not None
    assert not reference.left_out.known.any()
    assert station.see(second).decision.head == reference.number
    assert station.drift() is None
    station.close()


def test_frames_of_one_part_count_once(store: Store, bundle: Bundle, tmp_path: Path) -> None:
    station = referred(serving(store, bundle))
    for shot in shots(tmp_path / "rings", "rings", 25):
        station.see(replace(shot, group="line-1/the same part"))
    drift = station.drift()
    assert drift is not None
    assert (drift.parts, drift.alarm) == (1, False)
    station.close()
