"""The fleet's decisions: which entries are taken, which chunks go out again, how an update ended."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from sdk.fleet.registry import (
    LOG_RESEND_S,
    SEED_HOLD_S,
    WANT_BURST_CHUNKS,
    Budgets,
    LogReader,
    Room,
    Seeder,
    Standing,
    Verdict,
    judge,
    next_state,
    settled,
)
from sdk.labels import (
    MAX_COUNTER_JUMP,
    RELEASE_DEVICE,
    Body,
    Chain,
    CodeRecord,
    DefineClass,
    Entry,
    KeepApart,
    Label,
    MergeClasses,
    Record,
    RenameClass,
    entry_hash,
)
from sdk.wire import UpdateState
from tests.simulators import FEATURE_SIZE, SPACE, SimDevice

SIZES = {bytes.fromhex(SPACE): FEATURE_SIZE}


def log_of(device: str, labels: int = 3) -> list[Record]:
    simulated = SimDevice(device)
    for number in range(labels):
        simulated.label(number)
    return simulated.log


def judged(
    records: list[Record],
    stored: list[Record] | None = None,
    device: str = "a",
    highest: int = 0,
    class_entries: int | None = None,
    classes: frozenset[bytes] = frozenset(),
    room: Room | None = None,
) -> Verdict:
    stored = stored or []
    standing = Standing(Chain(device))
    for record in stored:
        standing = Standing(standing.chain.follow(record.entry), record.entry.counter)
    hashes = {record.entry.seq: entry_hash(record.entry) for record in stored}
    return judge(
        "a",
        records,
        standing=standing,
        hash_at=hashes.get,
        highest_counter=highest,
        feature_sizes=SIZES,
        class_entries=class_entries,
        classes=classes,
        room=room,
    )


def changed(record: Record, **changes: object) -> Record:
    return Record(msgspec.structs.replace(record.entry, **changes), record.code)


def test_a_log_is_taken_in_order() -> None:
    log = log_of("a")
    verdict = judged(log)
    assert verdict.accepted == tuple(log)
    assert verdict.standing.chain.seq == len(log)
    assert verdict.refused is None


def test_what_is_stored_is_not_taken_again() -> None:
    log = log_of("a")
    verdict = judged(log, stored=log[:4])
    assert verdict.accepted == tuple(log[4:])
    assert verdict.duplicates == 4


def test_a_batch_that_repeats_itself_is_taken_once() -> None:
    log = log_of("a")
    verdict = judged([*log, *log])
    assert verdict.accepted == tuple(log)
    assert verdict.duplicates == len(log)


def test_a_batch_after_a_gap_waits_for_what_is_missing() -> None:
    log = log_of("a")
    verdict = judged(log[2:])
    assert verdict.accepted == ()
    assert verdict.gap
    assert verdict.refused is None
    assert verdict.standing.chain.seq == 0


LOG = log_of("a")
OTHER = log_of("b")
CODE = next(record for record in LOG if record.code is not None)


def second(**changes: object) -> list[Record]:
    return [LOG[0], changed(LOG[1], **changes)]


def coded(code: bytes, space: str = SPACE) -> list[Record]:
    body = CodeRecord(bytes.fromhex(space), bytes(32), "g", hashlib.sha256(code).digest())
    return [Record(Entry("a", 1, 1, 0, bytes(32), body), code)]


@pytest.mark.parametrize(
    ("records", "seq", "reason"),
    [
        (OTHER, 1, "came on the topic of a"),
        ([changed(LOG[0], device=RELEASE_DEVICE)], 1, "came on the topic of a"),
        (second(prev=bytes(31) + b"x"), 2, "does not continue the log"),
        (second(counter=LOG[0].entry.counter), 2, "does not rise"),
        (second(counter=LOG[0].entry.counter + MAX_COUNTER_JUMP + 1), 2, "jumps more than 2^32"),
        ([LOG[0], Record(LOG[1].entry, b"wrong")], 2, "does not match its digest"),
        ([Record(LOG[0].entry, b"code")], 1, "carries a code but is no code record"),
        (coded(bytes(FEATURE_SIZE + 1)), 1, "no code of its space"),
        (coded(bytes(9000), "ab" * 32), 1, "no code of its space"),
    ],
    ids=["other device", "release", "chain", "counter", "jump", "code", "no code record", "size", "huge"],
)
def test_an_entry_that_cannot_be_right_is_refused_with_its_reason(
    records: list[Record], seq: int, reason: str
) -> None:
    verdict = judged(records)
    assert verdict.refused is not None
    assert verdict.refused.seq == seq
    assert reason in verdict.refused.reason
    assert len(verdict.accepted) == seq - 1


def test_another_entry_under_a_stored_number_is_refused() -> None:
    verdict = judged([changed(LOG[1], wall_time_us=1)], stored=LOG)
    assert verdict.refused is not None
    assert "another entry 2 of a is stored already" in verdict.refused.reason


def test_a_jump_is_measured_from_the_highest_counter_anyone_reached() -> None:
    far = MAX_COUNTER_JUMP + 7
    record = changed(LOG[0], counter=far)
    assert judged([record], highest=far - MAX_COUNTER_JUMP).refused is None
    assert judged([record], highest=far - MAX_COUNTER_JUMP - 1).refused is not None


@pytest.mark.parametrize(
    "body",
    [
        DefineClass(bytes(16), "pit", "ann"),
        RenameClass(bytes(16), "pit", "ann"),
        MergeClasses(bytes(16), b"x" * 16, "ann"),
        KeepApart(bytes(16), b"x" * 16, "ann"),
    ],
    ids=lambda body: type(body).__name__,
)
def test_so_many_entries_about_classes_are_taken_and_the_labels_before_the_next(body: Body) -> None:
    device = SimDevice("a")
    for number in range(3):
        device.label(number)  # the first defines its class
    device.write(body)
    whole, log = len(device.log), device.log
    for left, taken in ((0, 0), (1, whole - 1), (2, whole), (None, whole)):
        verdict = judged(log, class_entries=left)
        assert len(verdict.accepted) == taken
        assert verdict.class_entries == (2 if left is None else left)
        assert (verdict.refused is None) == (taken == whole)
    again = judged(log, stored=log[:-1], class_entries=1)
    assert again.accepted == tuple(log[-1:])  # those that were taken before are not counted again


def test_the_first_label_of_a_class_that_nobody_has_named_is_about_classes() -> None:
    """3,000 labels of a class each were taken, and every line's learner kept 3,000 classes."""
    device, (one, other) = SimDevice("a"), (b"1" * 16, b"2" * 16)
    for number, class_id in enumerate((one, one, other, None, other)):
        device.write(Label(bytes([number]) * 32, class_id, "ann"))
    for left, taken in ((0, 0), (1, 2), (2, 5), (None, 5)):
        verdict = judged(device.log, class_entries=left)
        assert len(verdict.accepted) == taken
        assert (verdict.refused is None) == (taken == 5)
    assert (verdict.class_entries, set(verdict.new_classes)) == (2, {one, other})
    known = judged(device.log, class_entries=1, classes=verdict.new_classes - {one})
    assert (len(known.accepted), known.class_entries, set(known.new_classes)) == (5, 1, {one})


def test_a_label_of_a_class_that_its_device_defined_costs_nothing_more() -> None:
    device = SimDevice("a")
    device.write(DefineClass(b"1" * 16, "pit", "ann"))
    device.write(Label(b"s" * 32, b"1" * 16, "ann"))
    verdict = judged(device.log, class_entries=1)
    assert (len(verdict.accepted), verdict.class_entries) == (2, 1)


def test_a_device_has_its_budget_back_in_time_and_no_other_devices() -> None:
    budgets = Budgets(burst=10, per_s=0.5)
    budgets.spend("a", 10, now=100.0)
    assert [budgets.left("a", now) for now in (100.0, 101.0, 102.0, 104.5)] == [0, 0, 1, 2]
    assert budgets.left("b", 104.5) == 10
    assert budgets.left("a", 1e6) == 10


# Chunks


def drained(seeder: Seeder, now: float) -> list[str]:
    out = []
    while (digest := seeder.next(now)) is not None:
        out.append(digest)
    return out


def test_a_chunk_just_published_is_not_published_for_the_next_device() -> None:
    seeder = Seeder()
    assert seeder.want("a", ["x"], now=0.0) == 1
    assert seeder.want("b", ["x"], now=0.0) == 0
    assert drained(seeder, 0.0) == ["x"]
    assert seeder.want("b", ["x"], now=SEED_HOLD_S / 2) == 0
    assert seeder.want("b", ["x"], now=SEED_HOLD_S) == 1


def test_an_announcement_is_published_whatever_went_before() -> None:
    seeder = Seeder()
    seeder.announce(["x", "y"])
    assert drained(seeder, 0.0) == ["x", "y"]
    seeder.announce(["x"])
    assert not seeder.idle
    assert drained(seeder, 0.1) == ["x"]


def test_one_device_cannot_make_the_service_publish_without_end() -> None:
    seeder, digests = Seeder(), [str(i) for i in range(3 * WANT_BURST_CHUNKS)]
    assert seeder.want("greedy", digests, now=0.0) == WANT_BURST_CHUNKS
    assert seeder.want("greedy", digests[WANT_BURST_CHUNKS:], now=0.0) == 0
    assert seeder.want("other", ["theirs"], now=0.0) == 1
    assert 0 < seeder.want("greedy", digests[WANT_BURST_CHUNKS:], now=1.0) < WANT_BURST_CHUNKS


# The union


def fill(reader: LogReader, now: float = 0.0, page: int = 10) -> list[int]:
    """Send pages of ten records and 100 KiB while the reader takes them; return where each began."""
    began = []
    while reader.may_send:
        began.append(reader.next)
        reader.sent(reader.next + page - 1, 100 * 1024, now)
    return began


def test_a_reader_is_sent_at_most_a_window() -> None:
    reader = LogReader(1, now=0.0)
    assert fill(reader) == list(range(1, 202, 10))
    reader.want(51, now=1.0)
    assert fill(reader) == list(range(211, 252, 10))


def test_a_reader_that_asks_for_what_is_on_its_way_is_sent_nothing_twice() -> None:
    reader = LogReader(1, now=0.0)
    fill(reader)
    reader.want(1, now=LOG_RESEND_S - 1)
    assert not reader.may_send


def test_a_reader_that_got_nothing_is_sent_it_again() -> None:
    reader = LogReader(1, now=0.0)
    fill(reader)
    reader.want(1, now=LOG_RESEND_S)
    assert reader.next == 1
    assert reader.may_send


def test_a_reader_at_the_end_is_sent_no_page_twice_on_a_slow_line() -> None:
    reader = LogReader(1, now=0.0)
    reader.sent(10, 1000, now=0.0)
    reader.sent(20, 1000, now=0.0)
    reader.at_end()
    assert not reader.may_send
    reader.want(11, now=30.0)
    assert reader.next == 21


def test_a_reader_that_lost_its_copy_begins_again_at_once() -> None:
    reader = LogReader(500, now=0.0)
    fill(reader)
    reader.want(1, now=0.1)
    assert fill(reader)[0] == 1


# Rollouts


@pytest.mark.parametrize(
    ("current", "reported", "then"),
    [
        (None, UpdateState.DOWNLOADING, UpdateState.DOWNLOADING),
        (UpdateState.CANDIDATE, UpdateState.DOWNLOADING, UpdateState.DOWNLOADING),
        (UpdateState.PROVISIONAL, UpdateState.ROLLED_BACK, UpdateState.ROLLED_BACK),
        (UpdateState.COMMITTED, UpdateState.ROLLED_BACK, UpdateState.ROLLED_BACK),
        (UpdateState.COMMITTED, UpdateState.CANDIDATE, UpdateState.COMMITTED),
        (UpdateState.COMMITTED, UpdateState.PROVISIONAL, UpdateState.COMMITTED),
    ],
)
def test_late_words_do_not_undo_a_committed_update(
    current: UpdateState | None, reported: UpdateState, then: UpdateState
) -> None:
    assert next_state(current, reported) is then


@pytest.mark.parametrize(
    ("assigned", "running", "end"),
    [
        (None, None, None),
        (None, "other", None),
        (None, "this", UpdateState.COMMITTED),
        (UpdateState.PROVISIONAL, "this", None),
        (UpdateState.COMMITTED, "this", UpdateState.COMMITTED),
        (UpdateState.ROLLED_BACK, "other", UpdateState.ROLLED_BACK),
    ],
)
def test_an_update_is_settled_when_it_is_committed_or_rolled_back(
    assigned: UpdateState | None, running: str | None, end: UpdateState | None
) -> None:
    assert settled("this", assigned, running) is end
