"""What a device says of how well it does: since the release took over, on its own labels, left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.camera import Shot
from device_agent.quality import QualityWatch
from device_agent.runtime import open_runtime
from device_agent.station import Station
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.images import decode
from sdk.wire import DeviceState, decode_json, encode_json
from tests.tiny import class_id, picture, tiny_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    folder = tmp_path_factory.mktemp("quality")
    return tiny_bundle(folder / "one"), tiny_bundle(folder / "two", name="two", backbone_seed=1)


@pytest.fixture
def station(tmp_path: Path, bundles: tuple[Bundle, Bundle]) -> Iterator[Station]:
    with Store.open(tmp_path / "data", "line-1") as store:
        station = Station(store, threads=False)
        station.serve(bundles[0], None, open_runtime(bundles[0], None))
        yield station
        station.close()


def label(station: Station, number: int, truth: str, said: str) -> None:
    seen = station.inspect(picture(truth, number), keep=True)
    station.label(seen.sample_id, class_id(said), "ann")


def see(station: Station, name: str, number: int) -> None:
    data = picture(name, number)
    station.see(Shot(decode(data), 0.0, f"{name}-{number}", "", data))


def test_without_own_labels_it_says_nothing_of_recall(station: Station) -> None:
    station.require().learner.run_until_idle()
    found = QualityWatch().now(station)
    assert found is not None
    assert (found.recall, found.samples, found.frames) == (None, 0, 0)


def test_recall_is_of_own_labels_only_and_falls_with_wrong_ones(station: Station) -> None:
    for number in range(900, 906):
        label(station, number, "pit", "pit")
    station.require().learner.run_until_idle()
    right = QualityWatch().now(station)
    for number in range(906, 910):
        label(station, number, "good", "pit")
    station.require().learner.run_until_idle()
    wrong = QualityWatch().now(station)
    assert right is not None
    assert wrong is not None
    assert (right.samples, wrong.samples) == (6, 10)
    assert right.recall is not None
    assert wrong.recall is not None
    assert wrong.recall < right.recall


def test_frames_are_counted_from_when_the_release_took_over(
    station: Station, bundles: tuple[Bundle, Bundle]
) -> None:
    watch = QualityWatch()
    watch.now(station)
    for number in range(4):
        see(station, "rings", number)
    before = watch.now(station)
    station.serve(bundles[1], None, open_runtime(bundles[1], None))
    fresh = watch.now(station)
    see(station, "good", 1)
    after = watch.now(station)
    assert before is not None
    assert fresh is not None
    assert after is not None
    assert (before.frames, fresh.frames, after.frames) == (station.counts.frames - 1, 0, 1)
    assert before.unknown == round(station.counts.unknown / before.frames, 2)
    assert fresh.latency_ms == 0
    assert after.latency_ms > 0


def test_without_a_release_there_is_nothing_to_say(station: Station) -> None:
    station.serve_nothing()
    assert QualityWatch().now(station) is None


def test_it_travels_with_the_state(station: Station) -> None:
    label(station, 901, "pit", "pit")
    station.require().learner.run_until_idle()
    quality = QualityWatch().now(station)
    state = DeviceState(device="line-1", channel="default", online=True, quality=quality)
    assert decode_json(encode_json(state), DeviceState) == state
