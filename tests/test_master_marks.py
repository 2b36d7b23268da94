"""What the best head said of master parts outlives a restart, a power cut and a full disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.afterwards import Afterwards
from device_agent.camera import Shot
from device_agent.courtesy import Courtesy
from device_agent.heads_and_updates import HeadRow, Outcome
from device_agent.limits import StoreLimits
from device_agent.master_marks import KEPT_AS, MasterMarks
from device_agent.masters import Best, Mark
from device_agent.queue import QueuePolicy
from device_agent.runtime import open_runtime
from device_agent.station import Station
from device_agent.store import Store
from device_agent.turns import Turns
from sdk.bundle import Bundle
from sdk.errors import StoreFull
from sdk.images import decode
from tests.crashes import Cut, Disk, Step, build_tracer, traced, write_out
from tests.marks_scenario import LIMITS, PARTS, SPACE, marks
from tests.test_learner import FullDisk
from tests.test_masters import RIGHT, folder
from tests.tiny import class_id, picture, tiny_bundle

__all__ = ["folder"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", per_class=40)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1", limits=LIMITS) as store:
        yield store


def test_marks_are_kept_for_the_release_that_serves_and_the_one_before(store: Store) -> None:
    spaces = ["01" * 32, "02" * 32, "03" * 32]
    for turn, space in enumerate(spaces, 1):
        MasterMarks(store, space).keep(marks(turn))
    assert [MasterMarks(store, space).load() for space in spaces] == [{}, marks(2), marks(3)]
    MasterMarks(store, spaces[1]).keep(marks(1))
    assert [MasterMarks(store, space).load() for space in spaces] == [{}, marks(1), marks(3)]


@pytest.mark.parametrize("damaged", [b"\x81\xa2no marks", b"\x81\xa1\xff\x80"], ids=["no marks", "no text"])
def test_damaged_marks_begin_anew(store: Store, caplog: pytest.LogCaptureFixture, damaged: bytes) -> None:
    store.keep(KEPT_AS, damaged)
    assert MasterMarks(store, SPACE).load() == {}
    assert "damaged and begins anew" in caplog.text
    MasterMarks(store, SPACE).keep(marks(1))
    assert MasterMarks(store, SPACE).load() == marks(1)


def test_only_what_changed_is_written() -> None:
    kept: list[object] = []
    best = Best(marks(1), kept.append)
    best.undone([])
    assert kept == []
    best.undone(PARTS[:2])
    assert [best.is_undone(part) for part in PARTS[:2]] == [True, True]
    assert len(kept) == 1


def see(station: Station, name: str, number: int) -> bytes:
    data = picture(name, number)
    return station.see(Shot(decode(data), 0.0, f"line-1/{name}{number}", "", data)).sample_id


def station_on(store: Store, bundle: Bundle, masters: Path) -> Station:
    station = Station(store, masters=masters, threads=False)
    station.serve(bundle, None, open_runtime(bundle, None))
    station.require().learner.run_until_idle()
    return station


@pytest.mark.parametrize(("of_before", "outcome"), [(True, Outcome.TAKEN_BACK), (False, Outcome.CONFIRMED)])
def test_a_head_is_compared_with_the_best_one_of_before_a_restart(
    store: Store, folder: Path, tmp_path: Path, of_before: bool, outcome: Outcome
) -> None:
    """The best head told all parts, that of the release takes pits for scratches: one more that does must go."""
    swapped = {"pit": "scratch", "scratch": "pit"}
    confused = tiny_bundle(tmp_path / "confused", per_class=40, called=swapped)
    station = station_on(store, confused, folder)
    station.label(see(station, "good", 900), class_id("good"), "ann")
    station.require().learner.run_until_idle()
    kept = MasterMarks(store, confused.space()).load()
    assert len(kept) == 30
    assert sum(mark.right for mark in kept.values()) < 20
    if of_before:
        MasterMarks(store, confused.space()).keep(dict.fromkeys(kept, Mark(right=True)))
    station.close()

    station = station_on(store, confused, folder)
    learner = station.require().learner
    station.label(see(station, "good", 901), class_id("good"), "ann")
    learner.run_until_idle()
    assert learner.status().outcome is outcome
    assert (learner.status().why[0].code == "masters") == of_before
    station.close()


def test_a_head_that_the_trial_refuses_is_refused_in_the_trials_words(
    store: Store, bundle: Bundle, folder: Path
) -> None:
    """Where master parts would refuse it too, the station's own parts say more."""
    station = station_on(store, bundle, folder)
    learner = station.require().learner
    for name in RIGHT:
        for number in range(700, 710):
            station.label(see(station, name, number), class_id(name), "ann")
    learner.run_until_idle()
    assert learner.status().outcome is Outcome.CONFIRMED
    swapped = {"pit": "scratch", "scratch": "pit", "good": "good"}
    wrong = [(see(station, name, number), class_id(swapped[name])) for number in range(800, 830) for name in RIGHT]
    station.label_all(wrong, "ann")
    learner.run_until_idle()
    assert learner.status().outcome is Outcome.TAKEN_BACK
    assert learner.status().why[0].code in {"worse", "less-clear"}
    station.close()


# -- power and disk


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Step]]:
    folder = tmp_path_factory.mktemp("marks")
    tracer = build_tracer(folder)
    if tracer is None:
        pytest.skip("needs a C compiler to note what a process writes")
    root = folder / "data"
    root.mkdir()
    return str(root), traced(tracer, root, folder / "log", "tests.marks_scenario", str(root))


@pytest.mark.parametrize("cut", list(Cut))
def test_a_power_cut_at_any_step_leaves_the_old_marks_or_the_new_ones(
    steps: tuple[str, list[Step]], tmp_path: Path, cut: Cut
) -> None:
    root, done = steps
    disk, found = Disk(root), []
    for step in done:
        disk.do(step)
        if step.kind != "s":
            continue
        write_out(disk.after(cut), tmp_path / "state")
        with Store.open(tmp_path / "state", "line-1", limits=LIMITS) as store:
            left = MasterMarks(store, SPACE).load()
        found.append(next(turn for turn in range(4) if left == marks(turn)))
        shutil.rmtree(tmp_path / "state")
    assert found == sorted(found), "and never older ones than before"
    assert set(found) == {0, 1, 2, 3}


def test_a_full_store_keeps_the_old_marks_and_the_trial_goes_on(tmp_path: Path) -> None:
    limits = StoreLimits(reserve_bytes=0, max_store_bytes=400_000)
    with Store.open(tmp_path, "line-1", limits=limits) as store:
        kept = MasterMarks(store, SPACE)
        kept.keep(marks(1))
        many = {number.to_bytes(32, "big"): Mark(right=True) for number in range(30_000)}
        with pytest.raises(StoreFull):
            kept.keep(many)
        assert kept.load() == marks(1)
        turns = Turns()
        afterwards = Afterwards(store, QueuePolicy(), SPACE, turns, Courtesy())
        best = Best(kept.load(), lambda found: afterwards.keep(lambda: kept.keep(found)))
        best.undone(many)
        assert best.is_undone(bytes(32))
        assert turns.fault is not None


def test_marks_that_never_fit_keep_no_row_of_a_head_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = StoreLimits(reserve_bytes=0, max_store_bytes=400_000)
    with Store.open(tmp_path, "line-1", limits=limits) as store:
        disk, kept, turns = FullDisk(monkeypatch), MasterMarks(store, SPACE), Turns()
        afterwards = Afterwards(store, QueuePolicy(), SPACE, turns, Courtesy())
        many = {number.to_bytes(32, "big"): Mark(right=True) for number in range(30_000)}
        disk.full = True
        for number in (1, 2):
            afterwards.put(HeadRow(number, 1.0, SPACE, "00" * 32, number, 5, Outcome.CONFIRMED))
        afterwards.keep(lambda: kept.keep(many))
        assert not store.heads.newest(limit=10)
        disk.full = False
        afterwards.again()
        assert [row.number for row in store.heads.newest(limit=10)] == [2, 1]
        assert turns.fault is not None, "the marks still wait"
        assert "the disk is full" not in turns.fault
        afterwards.keep(lambda: kept.keep(marks(1)))
        assert kept.load() == marks(1)
        turns.fault = None
        afterwards.again()
        assert turns.fault is None, "nothing waits any more"
