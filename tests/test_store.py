"""The store keeps what it acknowledged, whole or not at all, and refuses what it cannot keep."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_agent.agent import limits_of
from device_agent.database import Database
from device_agent.heads_and_updates import HeadRow, Outcome
from device_agent.limits import StoreLimits
from device_agent.queue import Question
from device_agent.sample import Sample, SampleStatus
from device_agent.schema import MIGRATIONS
from device_agent.site_file import parse_site
from device_agent.store import STORE_NAME, Store, check_store
from sdk.codes import code_digest
from sdk.errors import ConfigError, LabelError, StoreCorrupt, StoreFull
from sdk.labels import GENESIS, Body, Chain, CodeRecord, DefineClass, Label, Record, entry_hash
from sdk.wire import UpdateState
from tests.builders import class_id_of, random_codes
from tests.processes import Doomed

SPACE = "ab" * 32
GOOD = class_id_of("good")
LIMITS = StoreLimits(reserve_bytes=0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1", clock=lambda: 1000.0, limits=LIMITS) as opened:
        yield opened


def image_of(number: int) -> bytes:
    return b"picture %d" % number


def sample_of(number: int, **changes: object) -> Sample:
    sample = Sample(
        sample_id=hashlib.sha256(image_of(number)).digest(),
        captured_utc=1000.0 + number,
        group=f"line-1/part-{number}",
        space=SPACE,
        code=random_codes(1, seed=number)[0],
        decision="good",
        class_id=GOOD,
        probability=0.9,
        novelty=0.1,
        unknown=False,
    )
    return replace(sample, **changes)  # type: ignore[arg-type]


def label(store: Store, sample: Sample, class_id: bytes | None = GOOD) -> list[Record]:
    digest = code_digest(sample.code)
    bodies: list[Body] = [
        Label(sample.sample_id, class_id, "anna"),
        CodeRecord(bytes.fromhex(SPACE), sample.sample_id, sample.group, digest),
    ]
    return store.log.append(bodies, {sample.sample_id: sample.code})


def foreign_log(device: str, count: int, *, counter: int = 1, salt: str = "") -> list[Record]:
    chain, records = Chain(device), []
    for number in range(count):
        body = Label(hashlib.sha256(f"{salt}{number}".encode()).digest(), GOOD, "ben")
        chain, entry = chain.write(body, counter=counter + number, wall_time_us=0)
        records.append(Record(entry))
    return records


# -- the label log


def test_own_entries_are_one_chain_without_gaps(store: Store) -> None:
    for number in range(3):
        label(store, sample_of(number))
    entries = [record.entry for record in store.log.records()]
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert entries[0].prev == GENESIS
    assert all(after.prev == entry_hash(before) for before, after in itertools.pairwise(entries))


def test_a_reopened_store_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        label(store, sample_of(1))
        before = list(store.log.records())
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        assert list(store.log.records()) == before
        (record,) = store.log.append([DefineClass(GOOD, "good", "anna")])
    assert record.entry.seq == 3
    assert record.entry.prev == entry_hash(before[-1].entry)


def test_own_counter_is_above_everything_seen(store: Store) -> None:
    store.log.receive(foreign_log("line-2", 2, counter=5000), position=2)
    records = label(store, sample_of(1))
    assert [record.entry.counter for record in records] == [5002, 5003]


def test_order_does_not_depend_on_the_clock(tmp_path: Path) -> None:
    times = iter([4e9, -1e9])
    with Store.open(tmp_path, "line-1", clock=lambda: next(times), limits=LIMITS) as store:
        first = label(store, sample_of(1))
        second = label(store, sample_of(1), None)
    assert second[0].entry.wall_time_us < 0 < first[0].entry.wall_time_us
    assert second[0].entry.counter > first[0].entry.counter


def test_a_label_sets_its_samples_status_and_withdrawing_sets_it_back(store: Store) -> None:
    sample = sample_of(1, status=SampleStatus.QUEUED)
    store.samples.put(sample, image_of(1))
    label(store, sample)
    assert status_of(store, sample) is SampleStatus.LABELLED
    label(store, sample, None)
    assert status_of(store, sample) is SampleStatus.SEEN


def status_of(store: Store, sample: Sample) -> SampleStatus:
    kept = store.samples.get(sample.sample_id)
    assert kept is not None
    return kept.status


def test_a_code_record_without_its_code_changes_nothing(store: Store) -> None:
    sample = sample_of(1)
    store.samples.put(sample, None)
    bodies: list[Body] = [
        Label(sample.sample_id, GOOD, "anna"),
        CodeRecord(bytes.fromhex(SPACE), sample.sample_id, "g", bytes(32)),
    ]
    with pytest.raises(ValueError, match="no code"):
        store.log.append(bodies)
    with pytest.raises(LabelError, match="does not match its digest"):
        store.log.append(bodies, {sample.sample_id: sample.code})
    assert list(store.log.records()) == []
    assert status_of(store, sample) is SampleStatus.SEEN
    assert label(store, sample)[0].entry.seq == 1


@pytest.mark.parametrize(
    "body",
    [
        Label(bytes(32), GOOD, "x" * 65),
        Label(b"short", GOOD, "anna"),
        DefineClass(GOOD, "", "anna"),
        DefineClass(GOOD, "x" * 65, "anna"),
    ],
)
def test_what_no_device_could_read_again_does_not_enter_the_log(store: Store, body: Body) -> None:
    with pytest.raises(LabelError, match="cannot be stored"):
        store.log.append([body])
    assert list(store.log.records()) == []


def test_received_entries_are_stored_once_however_often_they_come(store: Store) -> None:
    log = foreign_log("line-2", 3)
    assert store.log.receive(log[:2], position=2) == log[:2]
    assert store.log.receive(log, position=3) == log[2:]
    assert store.log.receive(log, position=3) == []
    assert list(store.log.records()) == log
    assert store.log.position() == 3


def test_log_positions_are_kept_per_channel_and_never_go_back(store: Store) -> None:
    store.log.receive([], position=7, channel="caps")
    store.log.receive([], position=3, channel="caps")
    assert (store.log.position("caps"), store.log.position("lids")) == (7, 0)


@pytest.mark.parametrize(
    ("case", "match"),
    [
        ("another entry of the same number", "contradicts the log we hold"),
        ("a successor that does not continue it", "contradicts the log we hold"),
        ("a counter from the far future", "jumps ahead"),
        ("a code that is not its digest's", "does not match its digest"),
        ("the name of the release", "kept for a release"),
    ],
)
def test_an_entry_that_cannot_stand_beside_ours_is_refused_with_its_whole_batch(
    store: Store, case: str, match: str
) -> None:
    store.log.receive(foreign_log("line-2", 1), position=1)
    other = foreign_log("line-2", 2, salt="forged")
    code_body = CodeRecord(bytes.fromhex(SPACE), bytes(32), "g", bytes(32))
    _, code_entry = Chain("line-9").write(code_body, counter=1, wall_time_us=0)
    bad = {
        "another entry of the same number": other[0],
        "a successor that does not continue it": other[1],
        "a counter from the far future": foreign_log("line-3", 1, counter=2**40)[0],
        "a code that is not its digest's": Record(code_entry, b"\1" * 32),
        "the name of the release": foreign_log("release", 1)[0],
    }[case]
    with pytest.raises(LabelError, match=match):
        store.log.receive([*foreign_log("line-4", 1), bad], position=3)
    assert len(list(store.log.records())) == 1
    assert store.log.position() == 1


def test_a_replaced_device_takes_its_earlier_log_from_the_fleet(store: Store, tmp_path: Path) -> None:
    label(store, sample_of(1))
    log = list(store.log.records())
    with Store.open(tmp_path / "new", "line-1", limits=LIMITS) as fresh:
        assert fresh.log.receive(log, position=2) == log
        assert fresh.log.outbox(10) == []
        (record,) = fresh.log.append([DefineClass(GOOD, "good", "anna")])
        assert (record.entry.seq, record.entry.prev) == (3, entry_hash(log[-1].entry))
        assert fresh.log.outbox(10) == [record]


def test_a_device_that_labelled_before_fetching_its_log_is_told_so(store: Store, tmp_path: Path) -> None:
    label(store, sample_of(1))
    with Store.open(tmp_path / "new", "line-1", limits=LIMITS) as fresh:
        label(fresh, sample_of(2))
        with pytest.raises(LabelError, match="before this device's earlier log came back") as caught:
            fresh.log.receive(list(store.log.records()), position=2)
    assert "Restart" in caught.value.hint


def test_two_devices_of_one_id_are_told_so(store: Store, tmp_path: Path) -> None:
    label(store, sample_of(1))
    with Store.open(tmp_path / "new", "line-1", limits=LIMITS) as other:
        assert other.log.heard(0)  # it has begun its log with the fleet
        label(other, sample_of(2))
        with pytest.raises(LabelError, match="contradicts") as caught:
            other.log.receive(list(store.log.records()), position=2)
    assert "enrol" in caught.value.hint


# -- the outbox


def test_the_outbox_holds_what_the_fleet_has_not_acknowledged(store: Store) -> None:
    store.log.receive(foreign_log("line-2", 1), position=1)
    own = [*label(store, sample_of(1)), *label(store, sample_of(2))]
    assert store.log.outbox(10) == own
    store.log.heard(0)
    store.log.heard(3)
    store.log.heard(1)  # late and out of order
    assert store.log.outbox(10) == own[3:]
    assert store.log.outbox_depth() == 1
    assert store.log.outbox(0) == []


def test_what_the_fleet_has_of_ours_and_we_have_not_is_acknowledged_by_nobody(store: Store) -> None:
    assert store.log.heard(0)
    assert not store.log.heard(1)
    assert (store.log.outbox_depth(), store.log.acknowledged(), store.log.lacking()) == (0, 0, True)


def test_a_station_without_a_fleet_takes_labels_without_end(tmp_path: Path) -> None:
    """Nobody acknowledges them, and nobody ever will."""
    alone, joined = (
        parse_site(f'device = "line-1"\n[camera]\nkind = "folder"\npath = "x"\n{table}', tmp_path / "site.toml")
        for table in ("", '[mqtt]\nhost = "broker"\n')
    )
    assert limits_of(joined).outbox == StoreLimits().outbox
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, outbox=limits_of(alone).outbox)) as store:
        store.log.append([Label(bytes([i]) * 32, None, "ann") for i in range(5)])
        assert store.log.outbox_depth() == 5
        assert limits_of(alone).outbox is None


def test_a_full_outbox_refuses_labels_until_the_fleet_acknowledges(tmp_path: Path) -> None:
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, outbox=3)) as store:
        label(store, sample_of(1))
        with pytest.raises(StoreFull, match="2 entries wait"):
            label(store, sample_of(2))
        assert store.log.outbox_depth() == 2
        store.log.heard(0)
        store.log.heard(2)
        assert len(label(store, sample_of(2))) == 2


# -- samples and pictures


def test_samples_come_newest_first_with_code_and_picture(store: Store) -> None:
    for number in range(3):
        store.samples.put(sample_of(number), image_of(number))
    kept = store.samples.newest(limit=2)
    assert [each.captured_utc for each in kept] == [1002.0, 1001.0]
    assert np.array_equal(kept[0].code, sample_of(2).code)
    assert store.samples.image(kept[0].sample_id) == image_of(2)
    assert store.samples.newest(limit=5, offset=2) == [sample_of(0)]


def test_a_sample_seen_again_keeps_its_group_and_stays_labelled(store: Store) -> None:
    store.samples.put(sample_of(1), image_of(1))
    label(store, sample_of(1))
    again = sample_of(1, group="line-1/other", decision="scratch", status=SampleStatus.QUEUED, captured_utc=5.0)
    assert store.samples.put(again, image_of(1)) is SampleStatus.LABELLED
    kept = store.samples.get(again.sample_id)
    assert kept is not None
    assert (kept.group, kept.decision, kept.captured_utc) == ("line-1/part-1", "scratch", 5.0)


def test_only_the_newest_unlabelled_samples_are_kept_and_all_labelled_ones(tmp_path: Path) -> None:
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, keep_samples=2)) as store:
        for number in range(5):
            store.samples.put(sample_of(number), image_of(number))
            if number == 0:
                label(store, sample_of(0))
        assert [each.captured_utc for each in store.samples.newest(limit=10)] == [1004.0, 1003.0, 1000.0]
        assert store.samples.image(sample_of(0).sample_id) == image_of(0)
        assert store.samples.image(sample_of(1).sample_id) is None
        assert len(list((tmp_path / "images").glob("??/*"))) == 3


def seen_in(store: Store) -> int:
    return int(store._db.value("SELECT count(*) FROM samples WHERE status = 'seen'"))


def test_samples_are_never_more_than_their_limit_and_a_twentieth_less_at_most(tmp_path: Path) -> None:
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, keep_samples=40)) as store:
        for number in range(150):
            store.samples.put(sample_of(number), image_of(number))
            assert min(number + 1, 38) <= seen_in(store) <= 40


def test_no_more_than_a_hundred_samples_go_at_once(tmp_path: Path) -> None:
    """A label waits meanwhile."""
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, keep_samples=3000)) as store:
        for number in range(3001):
            store.samples.put(sample_of(number), None)
        assert seen_in(store) == 2900


def test_samples_that_other_calls_bring_back_count_too(tmp_path: Path) -> None:
    """They are counted only when so much has changed in the store that they could be too many."""
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, keep_samples=40)) as store:
        for number in range(200):
            store.samples.put(sample_of(number), image_of(number))
            assert seen_in(store) <= 40
            label(store, sample_of(number))
            if number >= 50:  # labels of fifty parts, and then ten withdrawn for each that is given
                for old in range(number - 50, number - 40):
                    label(store, sample_of(old), None)
            asked = queued(1000 + number, 1.0)
            store.samples.put(asked, image_of(1000 + number))
            store.samples.requeue({asked.sample_id: None})
        assert len(list((tmp_path / "images").glob("??/*"))) == len(store.samples.newest(limit=1000))


def test_samples_are_not_counted_at_each_frame(tmp_path: Path) -> None:
    counted: list[str] = []
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, keep_samples=100)) as store:
        with store._db.transaction() as db:
            db.set_trace_callback(lambda said: counted.append(said) if "count(*)" in said else None)
        for number in range(200):
            store.samples.put(sample_of(number), image_of(number))
        assert len(counted) < 40


def test_the_limit_holds_after_a_write_that_failed_when_samples_had_just_been_too_many(tmp_path: Path) -> None:
    def refuse_to_commit(action: int, what: str | None, *_: object) -> int:
        ends = action == sqlite3.SQLITE_TRANSACTION and what == "COMMIT"
        return sqlite3.SQLITE_DENY if ends else sqlite3.SQLITE_OK

    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, keep_samples=40)) as store:
        with store._db.transaction() as db:
            pass
        refused = 0
        for number in range(100):
            if seen_in(store) == 40:
                db.set_authorizer(refuse_to_commit)
                with pytest.raises(StoreCorrupt, match="not authorized"):
                    store.samples.put(sample_of(1000), image_of(1000))
                db.set_authorizer(lambda *_: sqlite3.SQLITE_OK)
                refused += 1
            store.samples.put(sample_of(number), image_of(number))
            assert seen_in(store) <= 40
        assert refused > 10


def test_a_damaged_picture_counts_as_lost(store: Store, tmp_path: Path) -> None:
    sample = sample_of(1)
    store.samples.put(sample, image_of(1))
    (path,) = (tmp_path / "data" / "images").glob("??/*")
    path.write_bytes(b"")
    assert store.samples.image(sample.sample_id) is None


def test_half_written_pictures_are_swept_and_no_others(tmp_path: Path) -> None:
    """A store that was lost and made anew must not take labelled pictures with it."""
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        store.samples.put(sample_of(1), image_of(1))
        label(store, sample_of(1))
    half = tmp_path / "images" / "ab" / ("ab" * 32 + ".partial")
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"left by a crash")
    (tmp_path / "store.sqlite3").unlink()
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        assert not half.exists()
        store.samples.put(sample_of(1), None)
        assert store.samples.image(sample_of(1).sample_id) == image_of(1)


def queued(number: int, priority: float, group: str | None = None) -> Sample:
    return sample_of(
        number, status=SampleStatus.QUEUED, priority=priority, reason="why", group=group or f"line-1/{number}"
    )


def test_the_queue_is_bounded_and_its_least_important_question_falls_out(tmp_path: Path) -> None:
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, queue=2)) as store:
        for number, priority in enumerate([0.5, 2.0, 1.0]):
            store.samples.put(queued(number, priority), None)
        assert [each.priority for each in store.samples.queue(10)] == [2.0, 1.0]
        assert status_of(store, sample_of(0)) is SampleStatus.SEEN
        assert store.samples.put(queued(9, 0.1), None) is SampleStatus.SEEN


def test_a_burst_is_not_asked_about_over_and_over(store: Store) -> None:
    statuses = [store.samples.put(queued(number, 1.0, "line-1/burst"), None) for number in range(4)]
    assert statuses == [SampleStatus.QUEUED] * 2 + [SampleStatus.SEEN] * 2
    label(store, sample_of(0))
    assert store.samples.put(queued(5, 1.0, "line-1/burst"), None) is SampleStatus.SEEN
    assert store.samples.queue_depth() == 1


def test_questions_are_asked_anew_but_never_of_what_is_labelled(store: Store) -> None:
    samples = [queued(number, 1.0) for number in range(3)]
    for sample in samples:
        store.samples.put(sample, None)
    label(store, samples[2])
    ids = [sample.sample_id for sample in samples]
    store.samples.requeue(
        {ids[0]: None, ids[1]: Question("unlike anything known", 2.5), ids[2]: Question("again", 3.0)}
    )
    assert [(each.sample_id, each.reason, each.priority) for each in store.samples.queue(10)] == [
        (ids[1], "unlike anything known", 2.5)
    ]
    assert status_of(store, samples[2]) is SampleStatus.LABELLED


def test_labelled_samples_without_a_code_in_a_new_space_are_found(store: Store) -> None:
    for number in range(2):
        store.samples.put(sample_of(number), image_of(number))
        label(store, sample_of(number))
    new = "cd" * 32
    assert store.samples.labelled_without_code(SPACE) == []
    first, second = (sample_of(number) for number in range(2))
    assert [each.sample_id for each in store.samples.labelled_without_code(new)] == [
        first.sample_id,
        second.sample_id,
    ]
    body = CodeRecord(bytes.fromhex(new), first.sample_id, first.group, code_digest(first.code))
    store.log.append([body], {first.sample_id: first.code})
    assert [each.sample_id for each in store.samples.labelled_without_code(new)] == [second.sample_id]
    assert store.log.has_code(first.sample_id, new)
    assert not store.log.has_code(second.sample_id, new)


def test_what_another_device_says_of_a_sample_labelled_here_neither_brings_a_code_nor_takes_one_away(
    store: Store,
) -> None:
    for number in range(2):
        store.samples.put(sample_of(number), image_of(number))
        label(store, sample_of(number))
    first, second = (sample_of(number) for number in range(2))
    new, counter = "cd" * 32, max(record.entry.counter for record in store.log.records())
    chain, said = Chain("evil"), list[Record]()
    for space, sample, code in ((SPACE, first, None), (new, second, second.code.tobytes())):
        body = CodeRecord(bytes.fromhex(space), sample.sample_id, "g", code_digest(sample.code))
        chain, entry = chain.write(body, counter=(counter := counter + 1), wall_time_us=0)
        said.append(Record(entry, code))
    store.log.receive(said, 2, "default")
    assert store.log.has_code(first.sample_id, SPACE)
    assert not store.log.has_code(second.sample_id, new)
    assert [each.sample_id for each in store.samples.labelled_without_code(SPACE)] == []
    assert [each.sample_id for each in store.samples.labelled_without_code(new)] == [
        first.sample_id,
        second.sample_id,
    ]


# -- what goes when pictures take too much room


def picture_of(number: int, size_bytes: int = 1000) -> bytes:
    return b"%010d" % number * (size_bytes // 10)


def pictured(number: int, **changes: object) -> Sample:
    return sample_of(number, sample_id=hashlib.sha256(picture_of(number)).digest(), **changes)


def kept_pictures(store: Store, numbers: range) -> set[int]:
    there = {number for number in numbers if store.samples.image(pictured(number).sample_id) is not None}
    known = {number for number in numbers if store.samples.get(pictured(number).sample_id) is not None}
    assert there == known, "a picture and its row go together"
    return there


def test_certain_pictures_go_before_those_of_the_last_parts_and_uncertain_ones_last(tmp_path: Path) -> None:
    limits = replace(LIMITS, max_image_bytes=10_000, keep_parts=2)
    with Store.open(tmp_path, "line-1", limits=limits) as store:

        def put(number: int, **changes: object) -> None:
            store.samples.put(pictured(number, **changes), picture_of(number))

        put(0)
        label(store, pictured(0))
        put(1, status=SampleStatus.QUEUED, priority=0.5)
        put(2, status=SampleStatus.QUEUED, priority=2.0)
        for number in range(3, 40):
            put(number)
        assert kept_pictures(store, range(40)) >= {0, 1, 2, 38, 39}
        assert len(kept_pictures(store, range(40))) <= 10
        for number in range(40, 52):  # parts with questions only: now these must give way too
            put(number, status=SampleStatus.QUEUED, priority=1.0)
        kept = kept_pictures(store, range(52))
        assert {0, 2, 51} <= kept
        assert 1 not in kept, "the least important question went first"
        assert len(kept) <= 10


def test_no_label_waits_until_a_twentieth_of_very_many_pictures_is_deleted(tmp_path: Path) -> None:
    limits = replace(LIMITS, max_image_bytes=250_000, keep_samples=10_000, keep_parts=1)
    with Store.open(tmp_path, "line-1", limits=limits) as store:

        def put(number: int, size_bytes: int = 100) -> None:
            picture = picture_of(number, size_bytes)
            store.samples.put(sample_of(number, sample_id=hashlib.sha256(picture).digest()), picture)

        def kept() -> int:
            return sum(1 for file in (tmp_path / "images").rglob("*") if file.is_file())

        for number in range(2_500):
            put(number)
        assert kept() == 2_500
        put(2_500)
        assert kept() == 2_501 - 100
        # One that needs more room than a hundred give takes what it needs.
        put(2_501, 30_000)
        assert kept() == (250_000 - 30_000) // 100 + 1


def test_labelled_pictures_alone_may_fill_the_room_and_labels_are_still_taken(tmp_path: Path) -> None:
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, max_image_bytes=5_000)) as store:
        for number in range(5):
            store.samples.put(pictured(number), picture_of(number))
            label(store, pictured(number))
        with pytest.raises(StoreFull, match="labelled pictures take") as caught:
            store.samples.put(pictured(5), picture_of(5))
        assert "max_image_mib" in caught.value.hint
        assert kept_pictures(store, range(6)) == set(range(5))
        label(store, pictured(5))


def test_the_size_of_pictures_is_known_again_after_a_restart_and_after_an_older_version(tmp_path: Path) -> None:
    limits = replace(LIMITS, max_image_bytes=10_000, keep_parts=0)
    with Store.open(tmp_path, "line-1", limits=limits) as store:
        for number in range(8):
            store.samples.put(pictured(number), picture_of(number))
    db = sqlite3.connect(tmp_path / "store.sqlite3")
    db.execute("UPDATE samples SET size_bytes = 0")  # as a version without the column leaves them
    db.commit()
    db.close()
    with Store.open(tmp_path, "line-1", limits=limits) as store:
        for number in range(8, 12):
            store.samples.put(pictured(number), picture_of(number))
        assert len(kept_pictures(store, range(12))) <= 10


# -- heads and updates


def head_row(number: int, outcome: Outcome, space: str = SPACE) -> HeadRow:
    return HeadRow(number, 1.0, space, "00" * 32, number, 5, outcome)


def test_the_heads_history_forgets_superseded_ones_first(tmp_path: Path) -> None:
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, keep_heads=2)) as store:
        store.heads.put(head_row(1, Outcome.CONFIRMED))
        store.heads.put(head_row(2, Outcome.SUPERSEDED))
        store.heads.put(head_row(3, Outcome.PROVISIONAL))
        store.heads.put(replace(head_row(3, Outcome.TAKEN_BACK), reason="worse on scratch", score=b"{}"))
        assert [row.number for row in store.heads.newest(limit=5)] == [3, 1]
        assert store.heads.last(SPACE, [Outcome.CONFIRMED]) == head_row(1, Outcome.CONFIRMED)
        assert store.heads.last("cd" * 32, [Outcome.CONFIRMED]) is None
        (latest, _) = store.heads.newest(limit=5)
        assert (latest.outcome, latest.reason, latest.score) == (Outcome.TAKEN_BACK, "worse on scratch", b"{}")


def test_update_attempts_are_kept_in_order(store: Store) -> None:
    first = store.updates.begin("aa" * 32, b"{}")
    store.updates.put(replace(first, state=UpdateState.ROLLED_BACK, reason="no room"))
    second = store.updates.begin("aa" * 32, b"{}")
    assert [(row.number, row.state) for row in store.updates.newest()] == [
        (second.number, UpdateState.DOWNLOADING),
        (first.number, UpdateState.ROLLED_BACK),
    ]


# -- refusing to open


def damage_page(folder: Path) -> None:
    path = folder / "store.sqlite3"
    raw = bytearray(path.read_bytes())
    raw[4096:8192] = os.urandom(4096)
    path.write_bytes(raw)


def overwrite(folder: Path) -> None:
    (folder / "store.sqlite3").write_bytes(b"this is not a database, it is a letter" * 100)


def newer_schema(folder: Path) -> None:
    db = sqlite3.connect(folder / "store.sqlite3")
    db.execute("PRAGMA user_version = 99")
    db.close()


def other_program(folder: Path) -> None:
    (folder / "store.sqlite3").unlink()
    db = sqlite3.connect(folder / "store.sqlite3")
    db.execute("CREATE TABLE photos (name TEXT)")
    db.close()


@pytest.mark.parametrize(
    ("harm", "match", "hint"),
    [
        (damage_page, "damaged", "fetches its log from the fleet"),
        (overwrite, "damaged", "fetches its log from the fleet"),
        (newer_schema, "has schema 99", "Install the version"),
        (other_program, "another program's", "data folder of its own"),
    ],
)
def test_a_store_that_cannot_be_trusted_is_refused_with_a_hint(
    tmp_path: Path, harm: Callable[[Path], None], match: str, hint: str
) -> None:
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        for number in range(50):
            label(store, sample_of(number))
    harm(tmp_path)
    with pytest.raises(StoreCorrupt, match=match) as caught:
        Store.open(tmp_path, "line-1", limits=LIMITS)
    assert hint in caught.value.hint


@pytest.mark.parametrize("damaged", [b"anna\xc1", b"ann\xff"], ids=["no entry", "no text"])
def test_an_entry_that_is_damaged_in_its_place_is_said_to_be(tmp_path: Path, damaged: bytes) -> None:
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        label(store, sample_of(1))
        with store._db.transaction() as db:
            (entry,) = db.execute("SELECT entry FROM records ORDER BY seq LIMIT 1").fetchone()
            db.execute("UPDATE records SET entry = ? WHERE seq = 1", (entry.replace(b"anna", damaged),))
        with pytest.raises(StoreCorrupt, match="a stored entry is damaged"):
            list(store.log.records())


def test_another_devices_store_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path, "line-1", limits=LIMITS).close()
    with pytest.raises(ConfigError, match="belongs to device 'line-1'"):
        Store.open(tmp_path, "line-2", limits=LIMITS)


def test_a_second_agent_on_one_store_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="another agent"):
        Store.open(store.folder, "line-1", limits=LIMITS)


# -- older versions


@pytest.mark.parametrize("schema", range(1, len(MIGRATIONS)))
def test_a_store_of_every_earlier_version_is_read_and_goes_on(tmp_path: Path, schema: int) -> None:
    database = Database(tmp_path / STORE_NAME, MIGRATIONS[:schema], max_bytes=2**30)
    columns = [row[1] for row in database.rows("PRAGMA table_info(samples)")]
    records = foreign_log("line-1", 3)
    with database.transaction() as db:
        db.execute("INSERT INTO meta VALUES ('device', 'line-1')")
        for record in records:
            entry = msgspec.msgpack.encode(record.entry)
            row = ("line-1", record.entry.seq, record.entry.counter, entry)
            db.execute("INSERT INTO records (device, seq, counter, entry) VALUES (?, ?, ?, ?)", row)
        if schema >= 5:  # it tells labels that were given here
            db.execute("UPDATE records SET here = 1")
        values = [1, sample_of(1).sample_id, 1.0, "line-1/p", SPACE, bytes(32), "good", GOOD, 0.9, 0.1, 0]
        values += ["labelled", "", 0.0, "camera", *[0] * (len(columns) - 15)]
        db.execute(f"INSERT INTO samples VALUES ({', '.join('?' * len(columns))})", values)
    database.close()
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        assert list(store.log.records()) == records
        assert [class_id for _, class_id in store.log.labelled_here(0)] == [GOOD] * len(records)
        assert status_of(store, sample_of(1)) is SampleStatus.LABELLED
        assert label(store, sample_of(2))[0].entry.prev == entry_hash(records[-1].entry)
    assert check_store(tmp_path / STORE_NAME, whole=True).entries == 5


def store_of(schema: int, folder: Path) -> None:
    """Make a store as a Headway that knew this schema left it."""
    folder.mkdir(exist_ok=True)
    database = Database(folder / STORE_NAME, MIGRATIONS[:schema], max_bytes=2**30)
    with database.transaction() as db:
        db.execute("INSERT INTO meta VALUES ('device', 'line-1')")
        db.execute("CREATE TABLE what_was_here (word TEXT)")
    database.close()


def version_of(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_a_store_is_copied_before_its_schema_changes_and_the_copy_leads_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, kept = len(MIGRATIONS) - 1, tmp_path / f"{STORE_NAME}.{len(MIGRATIONS) - 1}"
    (tmp_path / f".{STORE_NAME}.partial").write_bytes(b"of a copy that was killed")
    (tmp_path / f"{STORE_NAME}.1").write_bytes(b"of an earlier update")
    store_of(old, tmp_path)
    for _ in range(2):
        Store.open(tmp_path, "line-1", limits=LIMITS).close()
    assert caplog.messages == [
        f"{tmp_path / STORE_NAME} was brought from schema {old} to {len(MIGRATIONS)}; as it was before: {kept}"
    ]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert version_of(kept) == old
    assert sorted(each.name for each in tmp_path.glob("*sqlite3*")) == [STORE_NAME, kept.name]
    kept.replace(tmp_path / STORE_NAME)
    Database(tmp_path / STORE_NAME, MIGRATIONS[:old], max_bytes=2**30).close()


@pytest.mark.parametrize("heard", [False, True])
def test_the_copy_of_a_device_in_a_fleet_takes_no_label_before_it_has_heard_that(
    tmp_path: Path, heard: bool
) -> None:
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        label(store, sample_of(1))
        if heard:
            store.log.heard(2)
            store.log.receive(foreign_log("line-2", 1), 1)
        with store._db.transaction() as db:
            for table, column in (("samples", "defect"), ("samples", "rejected"), ("samples", "camera")):
                db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
            db.execute("PRAGMA user_version = 5")
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        label(store, sample_of(2))
    (tmp_path / f"{STORE_NAME}.5").replace(tmp_path / STORE_NAME)
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        refusal = (
            pytest.raises(StoreFull, match="has not heard from its fleet") if heard else contextlib.nullcontext()
        )
        with refusal:
            label(store, sample_of(3))


def test_a_store_that_cannot_be_copied_opens_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_of(1, tmp_path)
    (tmp_path / f"{STORE_NAME}.1").mkdir()
    Store.open(tmp_path, "line-1", limits=LIMITS).close()
    assert version_of(tmp_path / STORE_NAME) == len(MIGRATIONS)
    assert "is not copied before its schema changes: " in caplog.messages[0]
    assert caplog.messages[1].endswith("an earlier Headway opens it no more")
    assert not (tmp_path / f".{STORE_NAME}.partial").exists()


def test_an_older_version_names_the_copy_to_go_back_to(tmp_path: Path) -> None:
    store_of(len(MIGRATIONS), tmp_path)
    kept = tmp_path / f"{STORE_NAME}.1"
    kept.write_bytes(b"")
    with pytest.raises(StoreCorrupt, match="this Headway knows 1") as refused:
        Database(tmp_path / STORE_NAME, MIGRATIONS[:1], max_bytes=2**30)
    assert str(kept) in refused.value.hint


def test_what_is_wiped_leaves_no_copy_of_before(tmp_path: Path) -> None:
    store_of(1, tmp_path)
    database = Database(tmp_path / STORE_NAME, MIGRATIONS, max_bytes=2**30)
    assert (tmp_path / f"{STORE_NAME}.1").exists()
    database.rewrite()
    assert not (tmp_path / f"{STORE_NAME}.1").exists()
    database.close()


# -- full disks


def test_a_full_store_refuses_a_label_whole_and_takes_it_when_there_is_room(tmp_path: Path) -> None:
    small = replace(LIMITS, max_store_bytes=128 * 1024)
    sample = sample_of(0)
    with Store.open(tmp_path, "line-1", limits=small) as store:
        store.samples.put(sample, image_of(0))
        done = 0
        with pytest.raises(StoreFull, match="full") as caught:  # noqa: PT012
            while True:
                label(store, sample_of(1000 + done))
                done += 1
        assert caught.value.retryable
        assert done > 10
        with pytest.raises(StoreFull):
            label(store, sample)
        assert status_of(store, sample) is SampleStatus.SEEN
        assert [record.entry.seq for record in store.log.records()] == list(range(1, 2 * done + 1))
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        assert label(store, sample)[0].entry.seq == 2 * done + 1
        assert status_of(store, sample) is SampleStatus.LABELLED


def test_samples_are_refused_before_labels_when_the_disk_fills(tmp_path: Path) -> None:
    with Store.open(tmp_path, "line-1", limits=StoreLimits(reserve_bytes=2**60)) as store:
        with pytest.raises(StoreFull, match="are free"):
            store.samples.put(sample_of(1), image_of(1))
        assert store.samples.newest(limit=1) == []
        assert len(label(store, sample_of(1))) == 2


_FILL = """
import resource, sys
from pathlib import Path
from device_agent.limits import StoreLimits
from device_agent.store import Store
from sdk.errors import StoreFull
from tests.test_store import image_of, label, sample_of, status_of

store = Store.open(Path(sys.argv[1]), "line-1", limits=StoreLimits(reserve_bytes=0))
store.samples.put(sample_of(0), image_of(0))
size = max(path.stat().st_size for path in Path(sys.argv[1]).glob("store.sqlite3*"))
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40_000, resource.RLIM_INFINITY))
acknowledged = 0
try:
    while True:
        acknowledged = label(store, sample_of(1000 + acknowledged))[-1].entry.seq
except StoreFull as error:
    print("refused:", error)
try:
    store.samples.put(sample_of(1), bytes(2_000_000))
except StoreFull as error:
    print("refused:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
before = status_of(store, sample_of(0))
after = label(store, sample_of(0))[-1].entry.seq
print(before.value, acknowledged, after, status_of(store, sample_of(0)).value)
"""


def test_a_write_that_the_system_refuses_is_a_full_store_and_heals_without_a_restart(tmp_path: Path) -> None:
    """The kernel itself refuses to let the files grow: what a full disk does to SQLite and to pictures."""
    done = subprocess.run(
        [sys.executable, "-c", _FILL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, picture_refused, last = done.stdout.splitlines()
    assert "nothing can be stored" in refused
    assert "may not grow" in picture_refused
    before, acknowledged, after, status = last.split()
    assert (before, status) == ("seen", "labelled")
    assert int(after) == int(acknowledged) + 2
    with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
        assert [record.entry.seq for record in store.log.records()] == list(range(1, int(after) + 1))
    assert not list((tmp_path / "images").glob("??/*.partial"))


# -- transactions


def test_each_transaction_is_as_durable_as_it_says_whatever_the_one_before_was(tmp_path: Path) -> None:
    """SQLite's words for it: 1 is NORMAL, written and synced later; 2 is FULL, on disk when it has ended."""
    db = Database(tmp_path / STORE_NAME, MIGRATIONS, max_bytes=2**30)
    found: list[int] = []
    for durable in (True, False, False, True, True, False, True):
        with db.transaction(durable=durable) as open_now:
            found += open_now.execute("PRAGMA synchronous").fetchone()
    db.close()
    assert found == [2, 1, 1, 2, 2, 1, 2]


def test_a_transaction_like_the_one_before_says_nothing_again(tmp_path: Path) -> None:
    db = Database(tmp_path / STORE_NAME, MIGRATIONS, max_bytes=2**30)
    said: list[str] = []
    with db.transaction(durable=False) as open_now:
        pass
    open_now.set_trace_callback(said.append)
    with db.transaction(durable=False):
        pass
    db.close()
    assert said[:2] == ["BEGIN IMMEDIATE", "COMMIT"]


# -- crashes


def label_for_ever(folder: Path, number: int, tell: Callable[[tuple[int, int]], None]) -> None:
    with Store.open(folder, "line-1", limits=LIMITS) as store:
        while True:
            sample = sample_of(number)
            store.samples.put(sample, image_of(number))
            tell((number, label(store, sample)[-1].entry.seq))
            number += 1


def test_no_acknowledged_label_is_lost_to_kill_9(tmp_path: Path) -> None:
    next_number = acknowledged = 0
    for kill_after in (1, 7, 20, 33, 50):
        child = Doomed(label_for_ever, tmp_path, next_number)
        told = [child.told() for _ in range(kill_after)]
        number, acknowledged = (told + child.kill())[-1]
        with Store.open(tmp_path, "line-1", limits=LIMITS) as store:
            seqs = [record.entry.seq for record in store.log.records()]
            assert seqs == list(range(1, len(seqs) + 1))
            assert len(seqs) >= acknowledged
            assert len(seqs) % 2 == 0, "a label without its code record"
            for labelled in range(number + 1):
                assert status_of(store, sample_of(labelled)) is SampleStatus.LABELLED
                assert store.samples.image(sample_of(labelled).sample_id) == image_of(labelled)
        next_number = len(seqs) // 2
    assert acknowledged >= 222


def test_threads_may_label_and_read_at_once(store: Store) -> None:
    samples = [sample_of(number) for number in range(40)]
    workers = [
        threading.Thread(target=lambda mine=mine: [label(store, each) for each in mine])
        for mine in (samples[:20], samples[20:])
    ]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        seqs = [record.entry.seq for record in store.log.records()]
        assert seqs == list(range(1, len(seqs) + 1))
    for worker in workers:
        worker.join()
    assert store.log.outbox_depth() == 80
