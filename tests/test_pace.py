"""A release that is too slow for its line does not stay: refused before it serves, or by its first frames."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from device_agent.config import RuntimeSettings
from device_agent.pace import FRAMES_TO_COMMIT, FRAMES_TO_REFUSE, ReleaseWatch, check_pace
from device_agent.pipeline import Pipeline
from device_agent.runtime import Batch, open_runtime
from sdk.bundle import Bundle
from sdk.codes import Features
from sdk.errors import InferenceFailed
from tests.tiny import FEATURE_SIZE, tiny_bundle

AUTO = RuntimeSettings()


def frames(watch: ReleaseWatch, release: str, latency_ms: float, count: int = FRAMES_TO_COMMIT) -> list[str]:
    """Let a release decide frames; return what was said of it."""
    return [said for said in (watch.saw(release, latency_ms) for _ in range(count)) if said is not None]


def test_a_release_is_committed_once_after_enough_frames() -> None:
    watch = ReleaseWatch(AUTO)
    assert frames(watch, "a", 900.0, FRAMES_TO_COMMIT - 1) == []
    assert frames(watch, "a", 900.0, 200) == [""], "nothing before it to compare with"


def test_a_release_twice_as_slow_as_the_one_before_is_refused_early_and_once() -> None:
    watch = ReleaseWatch(AUTO)
    frames(watch, "a", 40.0)
    assert frames(watch, "b", 81.0, FRAMES_TO_REFUSE - 1) == []
    (said,) = frames(watch, "b", 81.0)
    assert said == "a frame takes 81 ms on the line, at most 80 are allowed; the release before took 40"
    assert frames(watch, "c", 79.0) == [""], "what the slow one took is nobody's measure"


def test_one_slow_frame_is_not_a_slow_release() -> None:
    watch = ReleaseWatch(RuntimeSettings(max_frame_ms=10))
    assert [watch.saw("a", 500.0 if n == 0 else 5.0) for n in range(FRAMES_TO_COMMIT)][-1] == ""


@pytest.mark.parametrize(
    ("settings", "before_ms", "now_ms", "fit"),
    [
        (AUTO, 4.0, 50.0, True),
        (AUTO, 4.0, 51.0, False),
        (RuntimeSettings(max_frame_ms=20), 4.0, 21.0, False),
        (RuntimeSettings(max_frame_ms=20), 30.0, 19.0, True),
        (RuntimeSettings(max_frame_ms=500), 30.0, 400.0, True),
    ],
)
def test_what_a_frame_may_take(settings: RuntimeSettings, before_ms: float, now_ms: float, fit: bool) -> None:
    watch = ReleaseWatch(settings)
    frames(watch, "a", before_ms)
    (said,) = frames(watch, "b", now_ms)
    assert (said == "") is fit


class Slowed:
    """A runtime that takes longer than it must."""

    name = "slowed"
    feature_size = FEATURE_SIZE

    def __init__(self, bundle: Bundle, by_s: float) -> None:
        self.inner, self.by_s = open_runtime(bundle, None), by_s

    def features(self, batch: Batch) -> Features:
        time.sleep(self.by_s)
        return self.inner.features(batch)


def test_a_candidate_is_timed_beside_what_serves_and_refused_when_it_is_much_slower(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    fast, slow = Pipeline(bundle, None, Slowed(bundle, 0.0)), Pipeline(bundle, None, Slowed(bundle, 0.08))
    check_pace(AUTO, (slow, bundle), None)
    with pytest.raises(InferenceFailed, match="are allowed; the release that serves takes"):
        check_pace(AUTO, (slow, bundle), (fast, bundle))
    with pytest.raises(InferenceFailed, match="on this device, at most 70 are allowed"):
        check_pace(RuntimeSettings(max_frame_ms=70), (slow, bundle), None)
