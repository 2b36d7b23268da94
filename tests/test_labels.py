"""The label log: chains, order, the fold to the live set, and its digest."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Sequence
from random import Random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk.codes import code_digest
from sdk.errors import FeatureSizeError, LabelError
from sdk.labels import (
    GENESIS,
    Body,
    Chain,
    CodeRecord,
    DefineClass,
    Entry,
    Fold,
    Label,
    MergeClasses,
    Record,
    RenameClass,
    entry_hash,
)
from sdk.liveset import live_set_digest, without
from sdk.moments import Moments

SPACE, OTHER_SPACE = "11" * 32, "22" * 32
CLASSES = [bytes([i]) * 16 for i in range(4)]
SAMPLES = [bytes([100 + i]) * 32 for i in range(6)]
D = 3


def code_of(sample: bytes, device: str) -> bytes:
    """Another device may compute another code for the same picture."""
    return hashlib.sha256(sample + device.encode()).digest()[:D]


def record(
    device: str, seq: int, counter: int, body: Body, code: bytes | None = None, prev: bytes = GENESIS
) -> Record:
    return Record(Entry(device, seq, counter, 0, prev, body), code)


def label(device: str, seq: int, counter: int, sample: bytes, class_id: bytes | None) -> Record:
    return record(device, seq, counter, Label(sample, class_id, "op"))


def coded(device: str, seq: int, counter: int, sample: bytes, space: str = SPACE) -> Record:
    code = code_of(sample, device)
    body = CodeRecord(bytes.fromhex(space), sample, f"{device}/part", hashlib.sha256(code).digest())
    return record(device, seq, counter, body, code)


def folded(records: Sequence[Record]) -> Fold:
    fold = Fold(SPACE, D)
    for each in records:
        fold.apply(each)
    return fold


@st.composite
def logs(draw: st.DrawFn) -> list[Record]:
    """What three devices may write: labels, corrections, withdrawals, codes, names and merges."""
    out: list[Record] = []
    for device in ("a", "b", "c"):
        chain, counter = Chain(device), 0
        for _ in range(draw(st.integers(0, 8))):
            counter += draw(st.integers(1, 3))
            sample, one, other = (
                draw(st.sampled_from(SAMPLES)),
                draw(st.sampled_from(CLASSES)),
                draw(st.sampled_from(CLASSES)),
            )
            code = None
            kind = draw(st.integers(0, 6))
            body: Body
            if kind <= 1:
                body = Label(sample, one, "op")
            elif kind == 2:
                body = Label(sample, None, "op")
            elif kind <= 4:
                code = code_of(sample, device)
                body = CodeRecord(bytes.fromhex(SPACE), sample, "g", hashlib.sha256(code).digest())
            elif kind == 5:
                body = DefineClass(one, f"{device}{counter}", "op")
            else:
                body = MergeClasses(one, other, "op")
            chain, entry = chain.write(body, counter=counter, wall_time_us=draw(st.integers(-(2**60), 2**60)))
            out.append(Record(entry, code))
    return out


# Merging is union


@given(logs(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_any_order_and_duplication_folds_to_the_same_state(records: list[Record], random: object) -> None:
    shuffled = records * 3
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = folded(records), folded(shuffled)
    assert one.digest() == other.digest()
    assert one.class_names() == other.class_names()
    assert [row[:3] for row in one.rows()] == [row[:3] for row in other.rows()]
    assert one.counter == other.counter


@given(logs(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_moments_kept_step_by_step_equal_those_of_the_live_set(records: list[Record], random: object) -> None:
    """What a device does on every label: take the sample's old row out, put its new row in."""
    random.shuffle(records)  # type: ignore[attr-defined]
    fold, moments = Fold(SPACE, D), Moments(D)
    for each in records:
        body = each.entry.body
        sample = body.sample if isinstance(body, Label | CodeRecord) else None
        before = None if sample is None else fold.live(sample)
        fold.apply(each)
        after = None if sample is None else fold.live(sample)
        if before is not None:
            moments.subtract(before.code[None], [before.class_id])
        if after is not None:
            moments.add(after.code[None], [after.class_id])
    fresh = Moments(D)
    for row in fold.rows():
        fresh.add(row.code[None], [row.class_id])
    assert moments == fresh


# Who wins


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([label("a", 1, 5, SAMPLES[0], CLASSES[0])], CLASSES[0]),
        ([label("a", 1, 5, SAMPLES[0], CLASSES[0]), label("b", 1, 6, SAMPLES[0], CLASSES[1])], CLASSES[1]),
        ([label("a", 1, 7, SAMPLES[0], CLASSES[0]), label("b", 1, 6, SAMPLES[0], CLASSES[1])], CLASSES[0]),
        ([label("b", 1, 5, SAMPLES[0], CLASSES[1]), label("a", 1, 5, SAMPLES[0], CLASSES[0])], CLASSES[1]),
        ([label("a", 1, 5, SAMPLES[0], CLASSES[0]), label("a", 2, 6, SAMPLES[0], None)], None),
        ([label("a", 1, 5, SAMPLES[0], None), label("a", 2, 6, SAMPLES[0], CLASSES[2])], CLASSES[2]),
    ],
    ids=["one label", "a later counter", "an earlier counter", "a tie goes by device", "withdrawn", "given back"],
)
def test_the_last_event_on_a_sample_wins(events: list[Record], expected: bytes | None) -> None:
    assert folded(events).label_of(SAMPLES[0]) == expected


def test_a_device_overrules_the_release() -> None:
    fold = Fold(SPACE, D)
    fold.add_base([SAMPLES[0]], [CLASSES[0]], ["g"], np.zeros((1, D), np.int8), {CLASSES[0]: "good"})
    fold.apply(label("a", 1, 1, SAMPLES[0], CLASSES[1]))
    assert fold.label_of(SAMPLES[0]) == CLASSES[1]


def test_base_samples_added_after_events_change_nothing_of_them() -> None:
    fold = folded([label("a", 1, 1, SAMPLES[0], None)])
    fold.add_base([SAMPLES[0]], [CLASSES[0]], ["g"], np.zeros((1, D), np.int8), {})
    assert fold.live(SAMPLES[0]) is None


def test_wall_clocks_decide_nothing() -> None:
    late = Record(Entry("a", 1, 1, 2**60, GENESIS, Label(SAMPLES[0], CLASSES[0], "op")))
    early = Record(Entry("b", 1, 2, -(2**60), GENESIS, Label(SAMPLES[0], CLASSES[1], "op")))
    assert folded([late, early]).label_of(SAMPLES[0]) == CLASSES[1]


# A release that knows samples by their sums only


def of_release(summed: int, events: Sequence[Record] = (), *, base_last: bool = False) -> Fold:
    """Fold four samples of a release, the last `summed` of them without code, and events."""
    fold = Fold(SPACE, D)
    codes = np.stack([np.frombuffer(code_of(sample, "release"), np.int8) for sample in SAMPLES[:4]])
    if base_last:
        for each in events:
            fold.apply(each)
    fold.add_base(
        SAMPLES[:4],
        [CLASSES[1], CLASSES[2]] * 2,
        ["g1", "g2"] * 2,
        codes[: 4 - summed],
        {CLASSES[1]: "good", CLASSES[2]: "pit"},
        summed=[hashlib.sha256(code.tobytes()).digest() for code in codes[4 - summed :]],
    )
    if not base_last:
        for each in events:
            fold.apply(each)
    return fold


def test_a_live_set_has_one_digest_whether_codes_or_sums_came() -> None:
    everything, some, none = of_release(0), of_release(2), of_release(4)
    assert everything.digest() == some.digest() == none.digest()
    assert [len(fold.live_set()) for fold in (everything, some, none)] == [4, 4, 4]
    assert [len(fold.live_set().codes) for fold in (everything, some, none)] == [4, 2, 0]
    assert some.summed_counts() == {CLASSES[1]: 1, CLASSES[2]: 1}
    assert some.label_of(SAMPLES[3]) == CLASSES[2]
    assert some.live(SAMPLES[3]) is None


@pytest.mark.parametrize(
    ("events", "unapplied"),
    [
        ([label("a", 1, 1, SAMPLES[3], CLASSES[0])], [SAMPLES[3]]),
        ([label("a", 1, 1, SAMPLES[3], None)], [SAMPLES[3]]),
        ([label("a", 1, 1, SAMPLES[3], None), label("b", 1, 2, SAMPLES[2], None)], SAMPLES[2:4]),
        ([label("a", 1, 1, SAMPLES[3], CLASSES[2])], []),
        ([label("a", 1, 1, SAMPLES[3], None), label("a", 2, 2, SAMPLES[3], CLASSES[2])], []),
        ([coded("a", 1, 1, SAMPLES[3])], []),
        ([Record(coded("a", 1, 1, SAMPLES[3]).entry, None)], []),
    ],
    ids=["corrected", "withdrawn", "two samples", "confirmed", "taken back", "another code", "an erased code"],
)
def test_a_summed_sample_stays_what_the_release_says(events: list[Record], unapplied: list[bytes]) -> None:
    fold = of_release(2, events)
    assert fold.digest() == of_release(2).digest()
    assert fold.label_of(SAMPLES[3]) == CLASSES[2]
    assert fold.unapplied() == unapplied


def test_a_sample_with_a_code_is_corrected_beside_summed_ones() -> None:
    events = [label("a", 1, 1, SAMPLES[0], CLASSES[2]), label("a", 2, 2, SAMPLES[1], None)]
    fold = of_release(2, events)
    assert fold.digest() == of_release(0, events).digest() != of_release(0).digest()
    assert fold.unapplied() == []


@pytest.mark.parametrize("summed", [0, 2])
def test_a_live_set_less_a_sample_is_as_if_that_were_withdrawn(summed: int) -> None:
    fold = of_release(summed)
    gone = fold.live_set().samples[0]
    less = without(fold.live_set(), {gone}, fold.summed_rows())
    fold.apply(label("a", 1, 1, gone, None))
    now = fold.live_set()
    assert (less.digest, len(less)) == (now.digest, len(now))
    assert (less.samples, less.class_ids, less.groups) == (now.samples, now.class_ids, now.groups)
    assert np.array_equal(less.codes[:], now.codes[:])


def test_merging_classes_merges_those_of_summed_samples() -> None:
    merge = record("a", 1, 1, MergeClasses(CLASSES[1], CLASSES[2], "op"))
    fold = of_release(2, [merge, label("b", 1, 2, SAMPLES[3], CLASSES[1])])
    assert fold.digest() == of_release(0, [merge]).digest()
    assert fold.summed_counts() == {CLASSES[1]: 2}
    assert fold.live_set().merged == {CLASSES[2]: CLASSES[1]}
    assert fold.unapplied() == []


@given(logs(), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=60, deadline=None)
def test_summed_samples_fold_alike_whatever_the_order(records: list[Record], rng: Random, base_last: bool) -> None:
    shuffled = [*records, *records[: len(records) // 2]]
    rng.shuffle(shuffled)
    straight, other = of_release(2, records), of_release(2, shuffled, base_last=base_last)
    assert straight.digest() == other.digest()
    assert straight.unapplied() == other.unapplied()
    rows = [(row.sample, straight.canonical(row.class_id), code_digest(row.code)) for row in straight.rows()]
    for i, sample in enumerate(SAMPLES[2:4]):
        code = hashlib.sha256(code_of(sample, "release")).digest()
        rows.append((sample, straight.canonical(CLASSES[1 + i]), code))
    assert straight.digest() == live_set_digest(SPACE, rows)


def test_a_summed_sample_takes_no_more_memory_than_its_row() -> None:
    """A code of d = 1280 would take 1280 bytes more; 208 and 232 were measured."""
    n = 5000
    ids = np.random.default_rng(0).bytes(64 * n)
    samples = [ids[i * 64 : i * 64 + 32] for i in range(n)]
    digests = [ids[i * 64 + 32 : i * 64 + 64] for i in range(n)]
    tracemalloc.start()
    fold = Fold(SPACE, 1280)
    fold.add_base(samples, [CLASSES[0]] * n, ["g"] * n, np.zeros((0, 1280), np.int8), {}, summed=digests)
    fold.digest()
    kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(fold.live_set()) == n
    assert kept_bytes < 300 * n
    assert peak_bytes < 400 * n


# Live set


def test_a_sample_needs_both_label_and_code() -> None:
    assert len(folded([label("a", 1, 1, SAMPLES[0], CLASSES[0])]).live_set()) == 0
    assert len(folded([coded("a", 1, 1, SAMPLES[0])]).live_set()) == 0
    assert len(folded([coded("a", 1, 1, SAMPLES[0]), label("a", 2, 2, SAMPLES[0], CLASSES[0])]).live_set()) == 1


def test_codes_of_another_feature_space_stay_out() -> None:
    records = [label("a", 1, 1, SAMPLES[0], CLASSES[0]), coded("a", 2, 2, SAMPLES[0], OTHER_SPACE)]
    assert len(folded(records).live_set()) == 0


def test_the_digest_names_sample_class_and_code_and_nothing_else() -> None:
    base = [coded("a", 1, 1, SAMPLES[0]), label("a", 2, 2, SAMPLES[0], CLASSES[0])]
    digest = folded(base).digest()
    assert folded([*base, label("b", 1, 9, SAMPLES[0], CLASSES[0])]).digest() == digest
    assert folded([*base, record("b", 1, 9, DefineClass(CLASSES[0], "x", "op"))]).digest() == digest
    assert folded([*base, label("b", 1, 9, SAMPLES[0], CLASSES[1])]).digest() != digest
    assert folded([*base, coded("b", 1, 9, SAMPLES[0])]).digest() == digest  # it has not labelled the sample
    assert (
        folded([*base, coded("b", 1, 9, SAMPLES[0]), label("b", 2, 10, SAMPLES[0], CLASSES[0])]).digest() != digest
    )


def test_the_digest_is_the_documented_hash() -> None:
    rows = [(SAMPLES[1], CLASSES[0], GENESIS), (SAMPLES[0], CLASSES[1], GENESIS)]
    expected = hashlib.sha256(
        b"headway-live-set-1\0"
        + b"\x11" * 32 + SAMPLES[0] + CLASSES[1] + GENESIS
        + b"\x11" * 32 + SAMPLES[1] + CLASSES[0] + GENESIS
    ).hexdigest()  # fmt: skip
    assert live_set_digest(SPACE, rows) == expected


def test_merged_classes_are_the_smallest_id_and_the_last_name() -> None:
    records = [
        record("a", 1, 1, DefineClass(CLASSES[1], "scratch", "op")),
        record("b", 1, 1, DefineClass(CLASSES[3], "Kratzer", "op")),
        record("b", 2, 2, MergeClasses(CLASSES[3], CLASSES[1], "op")),
        record("a", 2, 3, RenameClass(CLASSES[3], "scratches", "op")),
    ]
    fold = folded(records)
    assert fold.canonical(CLASSES[3]) == CLASSES[1]
    assert fold.class_names() == {CLASSES[1]: "scratches"}


# Chains


def test_a_chain_follows_what_another_wrote() -> None:
    writer, reader = Chain("a"), Chain("a")
    for i in range(3):
        writer, entry = writer.write(Label(SAMPLES[i], CLASSES[0], "op"), counter=i + 1, wall_time_us=0)
        reader = reader.follow(entry)
    assert reader == writer


def chain_of(n: int, device: str = "a", operator: str = "op") -> tuple[Chain, list[Entry]]:
    chain, entries = Chain(device), []
    for i in range(n):
        chain, entry = chain.write(Label(SAMPLES[i], CLASSES[0], operator), counter=i + 1, wall_time_us=0)
        entries.append(entry)
    return chain, entries


@pytest.mark.parametrize("case", ["a gap", "a repeat", "another device", "a changed past"])
def test_a_chain_refuses_what_does_not_follow(case: str) -> None:
    chain, entries = chain_of(2)
    _, more = chain_of(4)
    wrong = {
        "a gap": more[3],
        "a repeat": entries[1],
        "another device": chain_of(3, device="b")[1][2],
        "a changed past": chain_of(3, operator="somebody else")[1][2],
    }[case]
    with pytest.raises(LabelError):
        chain.follow(wrong)


def test_erasing_a_code_leaves_the_chain_whole() -> None:
    kept = coded("a", 1, 1, SAMPLES[0])
    erased = Record(kept.entry, None)
    assert entry_hash(kept.entry) == entry_hash(erased.entry)
    assert folded([erased, label("a", 2, 2, SAMPLES[0], CLASSES[0])]).live(SAMPLES[0]) is None


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Record(coded("a", 1, 1, SAMPLES[0]).entry, b"xyz"), LabelError),
        (Record(label("a", 1, 1, SAMPLES[0], CLASSES[0]).entry, b"xyz"), LabelError),
        (label("release", 1, 1, SAMPLES[0], CLASSES[0]), LabelError),
        (
            record(
                "a",
                1,
                1,
                CodeRecord(bytes.fromhex(SPACE), SAMPLES[0], "g", hashlib.sha256(b"four").digest()),
                b"four",
            ),
            FeatureSizeError,
        ),
    ],
    ids=["a code with another digest", "a code on a label", "the release's name", "a code of another size"],
)
def test_a_record_that_contradicts_itself_is_refused_and_changes_nothing(
    wrong: Record, error: type[Exception]
) -> None:
    fold = folded([coded("b", 1, 1, SAMPLES[0]), label("b", 2, 2, SAMPLES[0], CLASSES[0])])
    before = fold.digest()
    with pytest.raises(error):
        fold.apply(wrong)
    assert fold.digest() == before


@given(logs())
@settings(max_examples=30, deadline=None)
def test_records_survive_encoding(records: list[Record]) -> None:
    data = msgspec.msgpack.encode(records)
    assert msgspec.msgpack.decode(data, type=list[Record]) == records


def test_base_codes_of_another_size_are_refused() -> None:
    with pytest.raises(FeatureSizeError):
        Fold(SPACE, D).add_base([SAMPLES[0]], [CLASSES[0]], ["g"], np.zeros((1, D + 1), np.int8), {})
