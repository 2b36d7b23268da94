"""Codes that a fleet erased: said anew where something still rests on them, and by nobody where nothing does.

A policy lets codes go in feature spaces that no release in use has, and with `--live-too` those that count. In the
log both are a code record without a code. What tells them apart is whether the sample has a code left elsewhere
(docs/labels.md, section 7).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from device_agent.candidate import carry_labels
from device_agent.learner import Learner
from device_agent.pipeline import Pipeline
from device_agent.store import Store
from device_agent.update import Release
from sdk.bundle import Bundle
from sdk.codes import Codes
from sdk.labels import Chain, CodeRecord, Record, fleet_log_of
from sdk.preprocess import Frame
from tests.builders import make_bundle
from tests.simulators import wait_for
from tests.test_learner import see
from tests.test_update import DEADLINE_S, GOOD, LIMITS, SCRATCH, Rig, S, admit, desired, label_some, rig_on

FLEET = fleet_log_of("default")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    names = ("old", "new")
    return {name: make_bundle(folder / name, backbone=name) for name in names}


def erased(store: Store, bundle: Bundle, samples: Iterable[bytes]) -> list[Record]:
    """Let the store hear that the fleet erased the codes of these samples in a bundle's feature space."""
    own = [record.entry for record in store.log.records() if record.entry.device == FLEET]
    counter = max(record.entry.counter for record in store.log.records())
    space, records, chain = bytes.fromhex(bundle.space()), list[Record](), Chain(FLEET)
    for entry in own:
        chain = chain.follow(entry)
    for sample in samples:
        counter += 1
        chain, entry = chain.write(CodeRecord(space, sample, "g", bytes(32)), counter=counter, wall_time_us=0)
        records.append(Record(entry))
    store.log.receive(records, len(own) + len(records), "default")
    return records


def own_labels(store: Store, bundle: Bundle) -> int:
    return Learner(bundle, None, store).status().own_labels


def carried(store: Store, bundle: Bundle) -> int:
    return carry_labels(store, Pipeline(bundle, None, admit(bundle)), lambda: False).written


@pytest.fixture
def store(tmp_path: Path, bundles: dict[str, Bundle]) -> Store:
    return Store.open(tmp_path / "data", "line-1", limits=LIMITS)


def test_a_code_erased_while_its_space_was_out_of_use_is_said_anew_on_the_way_back(
    store: Store, bundles: dict[str, Bundle]
) -> None:
    old, new = bundles["old"], bundles["new"]
    with store:
        ids = label_some(store, old)
        assert carried(store, new) == len(ids)
        erased(store, old, ids)
        assert own_labels(store, old) == 0
        assert (carried(store, old), carried(store, old)) == (len(ids), 0)
        assert own_labels(store, old) == own_labels(store, new) == len(ids)


def test_a_code_erased_for_good_is_said_in_no_space(store: Store, bundles: dict[str, Bundle]) -> None:
    with store:
        ids = label_some(store, bundles["old"])
        erased(store, bundles["old"], ids)
        assert (carried(store, bundles["old"]), carried(store, bundles["new"])) == (0, 0)
        assert own_labels(store, bundles["new"]) == 0


def test_a_person_who_labels_it_again_brings_the_code_back(store: Store, bundles: dict[str, Bundle]) -> None:
    with store:
        sample, *_ = ids = sorted(label_some(store, bundles["old"]))
        erased(store, bundles["old"], ids)
        Learner(bundles["old"], None, store).label(sample, SCRATCH, "ben")
        assert own_labels(store, bundles["old"]) == 1
        assert carried(store, bundles["new"]) == 1  # it counts, so it follows into another space


def test_what_a_person_deleted_stays_deleted(store: Store, bundles: dict[str, Bundle]) -> None:
    """The picture shows a person: it is deleted on the device's page, and its label withdrawn first."""
    with store:
        sample, *_ = ids = sorted(label_some(store, bundles["old"]))
        assert carried(store, bundles["new"]) == len(ids)
        erased(store, bundles["old"], ids)
        Learner(bundles["new"], None, store).label(sample, None, "ben")
        store.samples.erase(sample)
        assert carried(store, bundles["old"]) == len(ids) - 1
        assert not store.log.has_code(sample, bundles["old"].space())


def test_what_is_deleted_while_its_code_is_made_stays_deleted(store: Store, bundles: dict[str, Bundle]) -> None:
    with store:
        sample, *_ = ids = sorted(label_some(store, bundles["old"]))
        learner = Learner(bundles["old"], None, store)

        class Slow(Pipeline):
            def code(self, frame: Frame) -> Codes:
                if store.samples.is_without_code(sample, bundles["new"].space()):
                    learner.label(sample, None, "ben")
                    store.samples.erase(sample)
                return super().code(frame)

        pipeline = Slow(bundles["new"], None, admit(bundles["new"]))
        assert carry_labels(store, pipeline, lambda: False).written == len(ids) - 1
        assert not store.log.has_code(sample, bundles["new"].space())


def test_what_the_fleet_erases_for_good_while_its_code_is_made_stays_erased(
    store: Store, bundles: dict[str, Bundle]
) -> None:
    with store:
        ids = label_some(store, bundles["old"])

        class Slow(Pipeline):
            def code(self, frame: Frame) -> Codes:
                if store.samples.labelled_without_code(bundles["new"].space()):
                    erased(store, bundles["old"], ids)
                return super().code(frame)

        pipeline = Slow(bundles["new"], None, admit(bundles["new"]))
        assert carry_labels(store, pipeline, lambda: False).written == 0
        assert store.samples.labelled_without_code(bundles["new"].space()) == []


def test_an_agent_that_starts_says_anew_what_an_earlier_one_left_out(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    """Agents of before went back to a space whose codes were erased, and their labels counted no more."""
    with rig_on(tmp_path / "data", bundles) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        ids = label_some(rig.store, bundles["old"])
        assert carried(rig.store, bundles["new"]) == len(ids)
        erased(rig.store, bundles["old"], ids)
    with rig_on(tmp_path / "data", bundles) as rig:
        assert rig.updater.boot()
        wait_for(lambda: rig.carried, what="codes said anew", timeout_s=DEADLINE_S)
        assert own_labels(rig.store, bundles["old"]) == len(ids)


def test_codes_erased_under_a_release_that_serves_are_said_anew(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    with rig_on(tmp_path / "data", bundles) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        ids = label_some(rig.store, bundles["old"])
        assert carried(rig.store, bundles["new"]) == len(ids)
        erased(rig.store, bundles["old"], ids)
        rig.updater.look_for_lacking()
        wait_for(lambda: rig.carried, what="codes said anew", timeout_s=DEADLINE_S)
        assert own_labels(rig.store, bundles["old"]) == len(ids)


def test_nothing_is_said_anew_of_half_a_policy(tmp_path: Path, bundles: dict[str, Bundle]) -> None:
    """Of two pages the first erased the space that serves; with the second nothing is left of the samples."""
    there = threading.Event()
    asked = queue.SimpleQueue[bool]()

    def caught_up() -> bool:
        asked.put(there.is_set())
        return there.is_set()

    with rig_on(tmp_path / "data", bundles, caught_up=caught_up) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        ids = label_some(rig.store, bundles["old"])
        assert carried(rig.store, bundles["new"]) == len(ids)
        there.set()
        rig.updater.look_for_lacking()
        wait_for(lambda: asked.get(timeout=DEADLINE_S), what="nothing to be left to say")
        there.clear()
        erased(rig.store, bundles["old"], ids)
        rig.updater.look_for_lacking()
        wait_for(lambda: not asked.get(timeout=DEADLINE_S), what="the updater to wait for the second page")
        erased(rig.store, bundles["new"], ids)
        there.set()
        wait_for(lambda: asked.get(timeout=DEADLINE_S), what="the updater to look again")
    with Store.open(tmp_path / "data", "line-1", limits=LIMITS) as store:
        assert own_labels(store, bundles["old"]) == 0


def waits_with(rig: Rig, bundle: Bundle) -> None:
    """Begin an update to a bundle, and return when it waits for the rest of the union."""
    rig.updater.start(desired(bundle))
    wait_for(lambda: "the rest of" in (rig.updater.status().fault or ""), DEADLINE_S)
    assert rig.updater.status().state is S.CANDIDATE
    assert rig.waits == [rig.updater.status().fault], "and it is told"


@pytest.mark.parametrize("says", [False, None])
def test_an_update_says_nothing_before_a_device_that_was_away_has_caught_up(
    tmp_path: Path, bundles: dict[str, Bundle], says: bool | None
) -> None:
    """It would bring back what was erased for good meanwhile, in the release's space."""
    caught_up: list[bool | None] = [True]
    with rig_on(tmp_path / "data", bundles, caught_up=lambda: caught_up[-1]) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        ids = label_some(rig.store, bundles["old"])
        caught_up.append(says)
        waits_with(rig, bundles["new"])
        erased(rig.store, bundles["old"], ids)
        caught_up.append(True)
        rig.reaches(bundles["new"], S.COMMITTED)
        assert rig.updater.status().fault is None
        assert own_labels(rig.store, bundles["new"]) == rig.carried == 0


def test_an_update_that_waits_for_the_union_gives_way_and_heeds_its_deadline(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    with rig_on(tmp_path / "data", bundles, caught_up=lambda: False) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        label_some(rig.store, bundles["old"])
        waits_with(rig, bundles["new"])
        rig.updater.start(desired(bundles["old"]))
        rig.reaches(bundles["new"], S.ROLLED_BACK)
        rig.updater.start(desired(bundles["new"], deadline_utc=rig.now + 10))
        rig.reaches(bundles["new"], S.CANDIDATE)
        rig.now += 20
        rig.reaches(bundles["new"], S.ROLLED_BACK)
        assert "its deadline has passed" in rig.updater.status().reason


def test_a_device_without_labels_waits_for_no_union(tmp_path: Path, bundles: dict[str, Bundle]) -> None:
    with rig_on(tmp_path / "data", bundles, caught_up=lambda: None) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        rig.install(bundles["new"])


def test_labels_of_while_it_was_examined_follow_a_release_when_the_union_is_there(
    tmp_path: Path, bundles: dict[str, Bundle]
) -> None:
    """A release that serves waits for no fleet that is away: after some starts without a commit it would go."""
    caught_up: list[bool | None] = [True]
    with rig_on(tmp_path / "data", bundles, caught_up=lambda: caught_up[-1]) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        ids = list[bytes]()

        def label(_release: Release | None) -> None:
            caught_up.append(None)
            ids.extend(sorted(label_some(rig.store, bundles["old"])))

        rig.on_serve = label
        rig.install(bundles["new"])
        assert rig.carried == 0
        erased(rig.store, bundles["old"], ids[:2])
        caught_up.append(True)
        wait_for(lambda: rig.carried, what="codes", timeout_s=DEADLINE_S)
        assert own_labels(rig.store, bundles["new"]) == len(ids) - 2


def test_a_code_that_cannot_be_said_yet_holds_no_update_up(tmp_path: Path, bundles: dict[str, Bundle]) -> None:
    with rig_on(tmp_path / "data", bundles) as rig:
        rig.updater.boot()
        rig.install(bundles["old"])
        ids = label_some(rig.store, bundles["old"])
        assert carried(rig.store, bundles["new"]) == len(ids)
        erased(rig.store, bundles["old"], ids)
        (row,) = [row for row in rig.store.updates.newest() if row.state is S.COMMITTED]

        def fails() -> None:
            raise OSError(row.release_id)

        rig.on_records = fails
        rig.updater.look_for_lacking()
        rig.install(bundles["new"])
        assert rig.updater.status().fault is None


def test_labels_of_classes_are_as_they_were(store: Store, bundles: dict[str, Bundle]) -> None:
    with store:
        sample = see(store, bundles["old"], "good", 40)
        Learner(bundles["old"], None, store).label(sample, GOOD, "anna")
        assert carried(store, bundles["new"]) == 1
        erased(store, bundles["old"], [sample])
        carried(store, bundles["old"])
        live = Learner(bundles["old"], None, store).live_set()
        at = live.samples.index(sample)
        assert (live.class_ids[at], live.groups[at], live.operators[at]) == (GOOD, live.groups[at], "anna")
