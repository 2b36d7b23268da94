"""T12: a clock that jumps changes what is written beside the labels, never what they mean or in which order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.wire import UpdateState
from tests.builders import class_id_of, make_bundle
from tests.test_learner import see
from tests.test_update import bundles, desired, rig_on

__all__ = ["bundles"]

GOOD, SCRATCH = class_id_of("good"), class_id_of("scratch")
NOW = 1_800_000_000.0
YEARS_10 = 10 * 365.25 * 86_400.0
JUMPS = {
    "steady": (0.0, 1.0, 2.0, 3.0, 4.0),
    "ten years on": (0.0, YEARS_10, YEARS_10 + 1, YEARS_10 + 2, YEARS_10 + 3),
    "ten years back": (0.0, -YEARS_10, 1.0, -YEARS_10, 2.0),
    "an hour back": (0.0, 1.0, -3600.0, -3599.0, -3598.0),
    "reset to 1970": (0.0, -NOW, 1 - NOW, 2 - NOW, 3 - NOW),
    "past 2038 and 2106": (0.0, 347_483_648.0, 347_483_649.0, 2_494_967_296.0, 2_494_967_297.0),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("clock") / "bundle")


def a_day(folder: Path, bundle: Bundle, jumps: Sequence[float]) -> tuple[str, list[int]]:
    """Label, correct and withdraw under a clock, with a restart between; return the live set and the counters."""
    at = iter([NOW + jump for jump in jumps for _ in range(40)])
    for part in range(2):
        with Store.open(folder, "line-1", clock=lambda: next(at), limits=StoreLimits(reserve_bytes=0)) as store:
            learner = Learner(bundle, None, store)
            for number in range(3):
                sample = see(store, bundle, "scratch", 10 * part + number)
                learner.label(sample, GOOD, "anna")
                learner.label(sample, SCRATCH if number else None, "anna")  # what was said later holds
            learner.run_until_idle()
            digest = learner.status().live_set_digest
            counters = [record.entry.counter for record in store.log.records()]
    return digest, counters


@pytest.mark.parametrize("jump", [name for name in JUMPS if name != "steady"])
def test_the_live_set_is_the_same_whatever_the_clock_says(tmp_path: Path, bundle: Bundle, jump: str) -> None:
    expected, _ = a_day(tmp_path / "steady", bundle, JUMPS["steady"])
    digest, counters = a_day(tmp_path / "jump", bundle, JUMPS[jump])
    assert digest == expected
    assert counters == list(range(1, len(counters) + 1))


def test_an_update_goes_on_though_the_clock_goes_back(tmp_path: Path, bundles: dict[str, Bundle]) -> None:
    with rig_on(tmp_path, bundles) as rig:
        rig.now = NOW
        rig.updater.boot()
        rig.install(bundles["old"])
        rig.now = 0.0
        rig.updater.start(desired(bundles["new"], deadline_utc=NOW + 60.0))
        rig.reaches(bundles["new"], UpdateState.COMMITTED)
