"""Whose word counts: a source that is quarantined is as if it had never been there, and released as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk.errors import LabelError
from sdk.labels import (
    MAX_COUNTER,
    Body,
    Chain,
    CodeRecord,
    DefineClass,
    Fold,
    KeepApart,
    Label,
    MergeClasses,
    Quarantine,
    Record,
    RenameClass,
    check_record,
    fleet_log_of,
)
from sdk.moments import Moments
from sdk.sources import ANYBODY, MERGES, Hold
from tests.cost import lines_run

SPACE = "11" * 32
D = 3
CLASSES = [bytes([i]) * 16 for i in range(4)]
SAMPLES = [bytes([100 + i]) * 32 for i in range(5)]
FLEET = fleet_log_of("default")


class Writer:
    """One device's log, with counters above all that were given out before."""

    clock = 0

    def __init__(self, device: str) -> None:
        self.chain = Chain(device)
        self.log: list[Record] = []

    def write(self, body: Body, code: bytes | None = None) -> None:
        Writer.clock += 1
        self.chain, entry = self.chain.write(body, counter=Writer.clock, wall_time_us=0)
        self.log.append(Record(entry, code))

    def label(self, sample: bytes, class_id: bytes | None, operator: str = "ann") -> None:
        code = hashlib.sha256(sample + self.chain.device.encode()).digest()[:D]
        body = CodeRecord(bytes.fromhex(SPACE), sample, "g", hashlib.sha256(code).digest())
        self.write(body, code)
        self.write(Label(sample, class_id, operator))


def folded(records: Sequence[Record]) -> Fold:
    fold = Fold(SPACE, D)
    for record in records:
        fold.apply(record)
    return fold


def moments_of(fold: Fold) -> str:
    moments = Moments(D)
    for row in fold.rows():
        moments.add(row.code[None], [fold.canonical(row.class_id)])
    return moments.digest()


def hold(fleet: Writer, device: str, through: int = MAX_COUNTER, operator: str = ANYBODY) -> None:
    fleet.write(Quarantine(device, operator, through, "wrong labels", "ann"))


@st.composite
def unions(draw: st.DrawFn) -> tuple[list[Record], list[Record]]:
    """What three devices wrote, two of them with two operators each, and what the fleet decided meanwhile."""
    writers = [Writer(name) for name in ("bad", "b", "c")]
    fleet = Writer(FLEET)
    for _ in range(draw(st.integers(0, 24))):
        writer, operator = draw(st.sampled_from(writers)), draw(st.sampled_from(["ann", "bob"]))
        one, other = draw(st.sampled_from(CLASSES)), draw(st.sampled_from(CLASSES))
        kind = draw(st.integers(0, 8))
        if kind <= 4:
            writer.label(draw(st.sampled_from(SAMPLES)), one if kind else None, operator)
        elif kind == 5:
            writer.write(MergeClasses(one, other, operator))
        elif kind == 6:
            writer.write(RenameClass(one, f"n{Writer.clock}", operator))
        else:
            whose, through = draw(st.sampled_from(["bad", "b"])), draw(st.sampled_from([0, 3, Writer.clock]))
            hold(fleet, whose, through, draw(st.sampled_from([ANYBODY, MERGES])))
    return [record for writer in writers for record in writer.log], fleet.log


@given(unions(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_a_quarantined_device_is_as_if_it_had_never_been(
    union: tuple[list[Record], list[Record]], random: Random
) -> None:
    """Whatever it wrote (labels, codes, corrections, merges, names), and in whatever order all this arrives."""
    records, decisions = union
    fleet = Writer(FLEET)
    fleet.chain = Chain(FLEET, len(decisions), b"\1" * 32)
    hold(fleet, "bad")
    everything = [*records, *decisions, *fleet.log]
    random.shuffle(everything)
    never = folded([r for r in [*records, *decisions] if r.entry.device != "bad"])
    held = folded(everything)
    assert held.digest() == never.digest()
    assert moments_of(held) == moments_of(never)
    assert [row[:4] for row in held.rows()] == [row[:4] for row in never.rows()]
    # Of a class that only held sources named, one of these must give the name: which, depends on all of them.
    counting = {name_in(r) for r in records if not any(is_held(r, each) for each in never.holds())}
    names = {class_id: name for class_id, name in never.class_names().items() if name in counting}
    assert names.items() <= held.class_names().items()


def test_holding_back_who_labelled_nothing_makes_no_live_set_anew() -> None:
    """A start folds every decision that a fleet has ever made."""

    def cost(device: str) -> int:
        writer, fleet = Writer("a"), Writer(FLEET)
        for number in range(200):
            writer.label(number.to_bytes(32, "big"), CLASSES[0])
        fold = folded(writer.log)
        hold(fleet, device)
        changed: list[int] = []
        lines = lines_run(lambda: changed.append(len(fold.changes(fleet.log[0]))))
        assert changed == [200 if device == "a" else 0]
        return lines

    assert cost("b") < cost("a") / 4


def name_in(record: Record) -> str:
    return str(getattr(record.entry.body, "name", ""))


def is_held(record: Record, hold: Hold) -> bool:
    entry = record.entry
    operators = (ANYBODY, getattr(entry.body, "operator", ANYBODY))
    return entry.device == hold.device and hold.operator in operators and entry.counter <= hold.through


def test_a_class_that_only_held_sources_named_keeps_the_last_of_their_names() -> None:
    b, bad, c, fleet = Writer("b"), Writer("bad"), Writer("c"), Writer(FLEET)
    b.write(DefineClass(CLASSES[0], "pit", "ann"))
    bad.write(RenameClass(CLASSES[0], "hole", "ann"))
    c.label(SAMPLES[0], CLASSES[0])
    hold(fleet, "bad")
    everything = [*b.log, *bad.log, *c.log, *fleet.log]
    assert folded(everything).class_names() == {CLASSES[0]: "pit"}
    hold(fleet, "b")
    assert folded([*b.log, *bad.log, *c.log, *fleet.log]).class_names() == {CLASSES[0]: "hole"}


@given(unions(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_a_quarantined_operator_is_as_if_she_had_never_labelled(
    union: tuple[list[Record], list[Record]], random: Random
) -> None:
    records, decisions = union
    fleet = Writer(FLEET)
    fleet.chain = Chain(FLEET, len(decisions), b"\1" * 32)
    hold(fleet, "c", operator="bob")
    everything = [*records, *decisions, *fleet.log]
    random.shuffle(everything)

    def bobs(record: Record) -> bool:
        return record.entry.device == "c" and getattr(record.entry.body, "operator", "") == "bob"

    never = folded([record for record in [*records, *decisions] if not bobs(record)])
    assert folded(everything).digest() == never.digest()
    assert moments_of(folded(everything)) == moments_of(never)


@given(unions(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_released_is_as_if_nothing_had_happened(union: tuple[list[Record], list[Record]], random: Random) -> None:
    records, decisions = union
    fleet = Writer(FLEET)
    fleet.chain = Chain(FLEET, len(decisions), b"\1" * 32)
    for device in ("bad", "b"):
        hold(fleet, device)
        for source in (ANYBODY, MERGES):
            hold(fleet, device, 0, source)
    everything = [*records, *decisions, *fleet.log]
    random.shuffle(everything)
    plain, released = folded(records), folded(everything)
    assert released.digest() == plain.digest()
    assert released.class_names() == plain.class_names()
    assert released.holds() == []


@given(unions(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_moments_kept_step_by_step_follow_every_decision(
    union: tuple[list[Record], list[Record]], random: Random
) -> None:
    """What a device does: take the rows out that a record changed, put the new ones in."""
    everything = [*union[0], *union[1]]
    random.shuffle(everything)
    fold, moments, fresh = Fold(SPACE, D), Moments(D), Moments(D)
    for record in everything:
        for before, after in fold.changes(record).values():
            if before is not None:
                moments.subtract(before.code[None], [before.class_id])
            if after is not None:
                moments.add(after.code[None], [after.class_id])
    for row in fold.rows():
        fresh.add(row.code[None], [row.class_id])
    assert moments == fresh


def test_what_it_says_later_is_kept_and_does_not_count() -> None:
    bad, fleet = Writer("bad"), Writer(FLEET)
    bad.label(SAMPLES[0], CLASSES[1])
    hold(fleet, "bad")
    bad.label(SAMPLES[1], CLASSES[1])
    fold = folded([*bad.log, *fleet.log])
    assert len(fold.live_set()) == 0
    assert [(h.device, h.operator, h.reason, h.by) for h in fold.holds()] == [("bad", "", "wrong labels", "ann")]


def test_released_from_now_on_its_old_labels_stay_out() -> None:
    bad, fleet = Writer("bad"), Writer(FLEET)
    bad.label(SAMPLES[0], CLASSES[1])
    hold(fleet, "bad", through=Writer.clock)
    bad.label(SAMPLES[1], CLASSES[1])
    assert folded([*bad.log, *fleet.log]).live_set().samples == (SAMPLES[1],)


def test_a_label_that_it_overruled_counts_again() -> None:
    good, bad, fleet = Writer("good"), Writer("bad"), Writer(FLEET)
    good.label(SAMPLES[0], CLASSES[1])
    bad.label(SAMPLES[0], CLASSES[2])
    assert folded([*good.log, *bad.log]).label_of(SAMPLES[0]) == CLASSES[2]
    hold(fleet, "bad")
    fold = folded([*good.log, *bad.log, *fleet.log])
    assert fold.label_of(SAMPLES[0]) == CLASSES[1]
    assert [(row.device, row.operator) for row in fold.rows()] == [("good", "ann")]


def test_its_merge_comes_apart() -> None:
    good, bad, fleet = Writer("good"), Writer("bad"), Writer(FLEET)
    good.label(SAMPLES[0], CLASSES[1])
    good.label(SAMPLES[1], CLASSES[2])
    bad.write(MergeClasses(CLASSES[1], CLASSES[2], "eve"))
    assert len(set(folded([*good.log, *bad.log]).live_set().class_ids)) == 1
    hold(fleet, "bad")
    assert len(set(folded([*good.log, *bad.log, *fleet.log]).live_set().class_ids)) == 2


def test_its_merges_alone_may_be_held_back() -> None:
    """Whoever says them on it; its labels and names count, and so does the same merge by the fleet's people."""
    bad, fleet = Writer("bad"), Writer(FLEET)
    bad.label(SAMPLES[0], CLASSES[1])
    bad.label(SAMPLES[1], CLASSES[2], "bob")
    hold(fleet, "bad", operator=MERGES)
    bad.write(MergeClasses(CLASSES[2], CLASSES[1], "bob"))
    bad.write(KeepApart(CLASSES[2], CLASSES[3], "ann"))
    bad.write(RenameClass(CLASSES[1], "pit", "bob"))
    fold = folded([*bad.log, *fleet.log])
    assert sorted(fold.live_set().class_ids) == CLASSES[1:3]
    assert (fold.apart(), fold.class_names()[CLASSES[1]]) == (set(), "pit")
    assert fold.unheard_merges() == [("bad", "bob", CLASSES[2], CLASSES[1])]
    for operator in ("", "bob"):  # what is held back anyway is nothing to say for all
        hold(fleet, "bad", MAX_COUNTER, operator)
        assert folded([*bad.log, *fleet.log]).unheard_merges() == []
        hold(fleet, "bad", 0, operator)
    fleet.write(MergeClasses(CLASSES[1], CLASSES[2], "ann"))
    fold = folded([*fleet.log, *bad.log])
    assert (set(fold.live_set().class_ids), fold.unheard_merges()) == ({CLASSES[1]}, [])


def test_a_class_that_others_use_keeps_the_name_that_it_was_given_there() -> None:
    good, bad, fleet = Writer("good"), Writer("bad"), Writer(FLEET)
    bad.write(DefineClass(CLASSES[1], "crack", "eve"))
    bad.write(DefineClass(CLASSES[2], "nothing", "eve"))
    good.label(SAMPLES[0], CLASSES[1])
    hold(fleet, "bad")
    assert folded([*good.log, *bad.log, *fleet.log]).class_names() == {CLASSES[1]: "crack"}


def test_pairs_said_to_be_different_are_remembered_until_that_does_not_count() -> None:
    bad, fleet = Writer("bad"), Writer(FLEET)
    bad.write(KeepApart(CLASSES[2], CLASSES[1], "eve"))
    assert folded(bad.log).apart() == {(CLASSES[1], CLASSES[2])}
    hold(fleet, "bad")
    assert folded([*bad.log, *fleet.log]).apart() == set()


@pytest.mark.parametrize(
    ("device", "held", "message"),
    [
        ("line-1", "line-2", "a device cannot quarantine"),
        (FLEET, "release", "cannot be quarantined"),
        (FLEET, FLEET, "cannot be quarantined"),
    ],
)
def test_what_is_no_quarantine_is_refused(device: str, held: str, message: str) -> None:
    writer = Writer(device)
    hold(writer, held)
    with pytest.raises(LabelError, match=message):
        check_record(writer.log[0])
    with pytest.raises(LabelError, match=message):
        folded(writer.log)
