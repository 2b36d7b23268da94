"""Whose code a sample has: that of a device that labelled it, and of several that of the label that counts.

docs/labels.md, section 2; decision 0063.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from sdk.fleet.union_ledger import LastCodes
from sdk.labels import (
    MAX_COUNTER,
    Body,
    Chain,
    CodeRecord,
    DefineClass,
    Fold,
    Label,
    Quarantine,
    Record,
    fleet_log_of,
)
from sdk.sources import ANYBODY
from tests.cost import lines_run

SPACE = "11" * 32
D = 4
GOOD, PIT = bytes([1]) * 16, bytes([2]) * 16
SAMPLES = [bytes([50 + number]) * 32 for number in range(6)]
BASE = SAMPLES[:4]
"""What the release brings: the first two good, the others pitted."""
FLEET = fleet_log_of("default")


def code_of(sample: bytes, device: str = "release") -> bytes:
    return hashlib.sha256(sample + device.encode()).digest()[:D]


class Writer:
    """One device's log. Its counters are what it says they are, as an attacker's are."""

    def __init__(self, device: str, counter: int = 0) -> None:
        self.chain = Chain(device)
        self.counter = counter
        self.log: list[Record] = []

    def write(self, body: Body, code: bytes | None = None, *, counter: int = 0) -> None:
        self.counter = counter or self.counter + 1
        self.chain, entry = self.chain.write(body, counter=self.counter, wall_time_us=0)
        self.log.append(Record(entry, code))

    def label(self, sample: bytes, class_id: bytes | None, operator: str = "ann", *, counter: int = 0) -> None:
        self.write(Label(sample, class_id, operator), counter=counter)

    def code(self, sample: bytes, code: bytes | None, *, counter: int = 0) -> None:
        digest = hashlib.sha256(code or b"").digest()
        self.write(CodeRecord(bytes.fromhex(SPACE), sample, "g", digest), code, counter=counter)


def released() -> Fold:
    fold = Fold(SPACE, D)
    codes = np.stack([np.frombuffer(code_of(sample), np.int8) for sample in BASE])
    fold.add_base(BASE, [GOOD, GOOD, PIT, PIT], ["g"] * 4, codes, {GOOD: "good", PIT: "pitted"})
    return fold


def folded(*logs: Sequence[Record]) -> Fold:
    """Return what some logs fold to, in this order, in the other, and twice: they must be one."""
    records = [record for log in logs for record in log]
    folds = []
    for order in (records, records[::-1], [*records[::2], *records, *records[1::2]]):
        fold = released()
        for record in order:
            fold.apply(record)
        folds.append(fold)
    assert len({fold.digest() for fold in folds}) == 1
    return folds[0]


def codes(fold: Fold) -> dict[bytes, bytes]:
    return {row.sample: row.code.tobytes() for row in fold.rows()}


# What an attacker says


def test_codes_of_samples_that_their_device_has_not_labelled_change_nothing() -> None:
    """Each sample of one class is given the code of another class's: every line would pass what is pitted."""
    evil = Writer("evil")
    for one, other in ((0, 2), (1, 3), (2, 0), (3, 1)):
        evil.code(BASE[one], code_of(BASE[other]))
    fold = folded(evil.log)
    assert fold.digest() == released().digest()
    assert codes(fold) == {sample: code_of(sample) for sample in BASE}
    assert fold.foreign() == {"evil": 4}


def test_a_device_erases_nothing_whether_it_has_labelled_it_or_not() -> None:
    evil = Writer("evil")
    evil.code(BASE[0], None)
    evil.label(BASE[2], PIT)
    evil.code(BASE[2], None)
    fold = folded(evil.log)
    assert fold.digest() == released().digest()
    assert len(fold.live_set()) == 4


@pytest.mark.parametrize("first", [False, True], ids=["after her label", "in a label of a counter before hers"])
def test_nobody_is_made_to_look_as_if_her_labels_were_wrong(first: bool) -> None:
    """Her rightly labelled samples get others' codes: a comparison of labels would name her."""
    anna, evil = Writer("line-1", counter=100), Writer("evil")
    anna.label(SAMPLES[4], GOOD)
    anna.code(SAMPLES[4], code_of(SAMPLES[4]))
    if first:
        evil.label(SAMPLES[4], GOOD, counter=5)
    evil.code(SAMPLES[4], code_of(SAMPLES[5]), counter=10_000)
    (row,) = [row for row in folded(anna.log, evil.log).rows() if row.sample == SAMPLES[4]]
    assert (row.device, row.code.tobytes()) == ("line-1", code_of(SAMPLES[4]))


def test_who_labels_a_releases_sample_and_says_its_code_is_named_with_it() -> None:
    evil = Writer("evil")
    evil.label(BASE[0], GOOD)
    evil.code(BASE[0], code_of(BASE[2]))
    fold = folded(evil.log)
    (row,) = [row for row in fold.rows() if row.sample == BASE[0]]
    assert (row.device, row.code.tobytes()) == ("evil", code_of(BASE[2]))
    assert not fold.foreign()


# What honest devices say


def test_a_device_without_a_code_of_its_own_takes_another_labellers() -> None:
    """Two devices saw one picture; the second corrected the label, as agents of before did, without a code."""
    one, other = Writer("line-1"), Writer("line-2", counter=10)
    one.label(SAMPLES[4], GOOD)
    one.code(SAMPLES[4], code_of(SAMPLES[4]))
    other.label(SAMPLES[4], PIT)
    (row,) = [row for row in folded(one.log, other.log).rows() if row.sample == SAMPLES[4]]
    assert (row.device, row.class_id, row.code.tobytes()) == ("line-2", PIT, code_of(SAMPLES[4]))


def test_of_several_codes_that_of_the_label_that_counts_is_taken() -> None:
    one, other = Writer("line-1"), Writer("line-2")
    for writer in (one, other):
        writer.label(SAMPLES[4], GOOD)
        writer.code(SAMPLES[4], code_of(SAMPLES[4], writer.chain.device))
    assert codes(folded(one.log, other.log))[SAMPLES[4]] == code_of(SAMPLES[4], "line-2")
    one.label(SAMPLES[4], PIT)
    assert codes(folded(one.log, other.log))[SAMPLES[4]] == code_of(SAMPLES[4], "line-1")


def test_a_label_that_was_taken_back_leaves_its_code_to_the_next() -> None:
    one, other = Writer("line-1"), Writer("line-2", counter=10)
    one.label(SAMPLES[4], GOOD)
    one.code(SAMPLES[4], code_of(SAMPLES[4]))
    one.label(SAMPLES[4], None)
    other.label(SAMPLES[4], PIT)
    assert codes(folded(one.log, other.log))[SAMPLES[4]] == code_of(SAMPLES[4])


def test_what_the_fleet_says_covers_all_that_came_before_it() -> None:
    one, other, fleet = Writer("line-1"), Writer("line-2", counter=40), Writer(FLEET, counter=20)
    one.label(SAMPLES[4], GOOD)
    one.code(SAMPLES[4], code_of(SAMPLES[4]))
    fleet.code(SAMPLES[4], None)
    assert SAMPLES[4] not in codes(folded(one.log, fleet.log))
    other.code(SAMPLES[4], code_of(SAMPLES[5]))  # foreign: what was erased stays so
    fold = folded(one.log, other.log, fleet.log)
    assert SAMPLES[4] not in codes(fold)
    assert fold.codeless() == {SAMPLES[4]: "line-1"}
    one.code(SAMPLES[4], code_of(SAMPLES[4]), counter=50)  # said anew
    assert codes(folded(one.log, other.log, fleet.log))[SAMPLES[4]] == code_of(SAMPLES[4])


def test_the_fleet_gives_a_releases_code_back() -> None:
    one, fleet = Writer("line-1"), Writer(FLEET, counter=20)
    one.label(BASE[0], PIT)
    one.code(BASE[0], code_of(BASE[0], "line-1"))
    fleet.code(BASE[0], None)
    assert BASE[0] not in codes(folded(one.log, fleet.log))
    fleet.code(BASE[0], code_of(BASE[0]))
    assert codes(folded(one.log, fleet.log))[BASE[0]] == code_of(BASE[0])


def test_a_late_reader_to_whom_a_code_comes_erased_folds_the_same() -> None:
    one, fleet = Writer("line-1"), Writer(FLEET, counter=20)
    one.label(SAMPLES[4], GOOD)
    one.code(SAMPLES[4], code_of(SAMPLES[4]))
    fleet.code(SAMPLES[4], None)
    late = [Record(record.entry) for record in one.log]
    one.code(SAMPLES[4], code_of(SAMPLES[4]), counter=30)
    late.append(one.log[-1])
    assert folded(one.log, fleet.log).digest() == folded(late, fleet.log).digest()


# Quarantine


@pytest.mark.parametrize("operator", [ANYBODY, "ann"], ids=["the device", "the person on it"])
def test_held_back_its_code_leaves_a_releases_sample_with_its_label(operator: str) -> None:
    evil, fleet = Writer("evil"), Writer(FLEET, counter=20)
    evil.label(BASE[0], GOOD)
    evil.code(BASE[0], code_of(BASE[2]))
    fleet.write(Quarantine("evil", operator, MAX_COUNTER, "wrong", "bob"))
    assert folded(evil.log, fleet.log).digest() == released().digest()
    fleet.write(Quarantine("evil", operator, 0, "", "bob"))
    assert folded(evil.log, fleet.log).digest() == folded(evil.log).digest()


def test_a_person_held_back_changes_whose_code_is_taken_though_no_last_word_changes() -> None:
    """The label that counts is of a third device, which said no code: the second's was taken, then the first's."""
    logs = [Writer("line-1"), Writer("line-2", counter=10), Writer("line-3", counter=20)]
    for writer in logs[:2]:
        writer.label(SAMPLES[4], GOOD, operator=f"of {writer.chain.device}")
        writer.code(SAMPLES[4], code_of(SAMPLES[4], writer.chain.device))
    logs[0].code(SAMPLES[4], code_of(SAMPLES[4], "line-1"), counter=19)
    logs[2].label(SAMPLES[4], PIT)
    fleet = Writer(FLEET, counter=30)
    said = [writer.log for writer in logs]
    assert codes(folded(*said))[SAMPLES[4]] == code_of(SAMPLES[4], "line-2")
    fleet.write(Quarantine("line-2", "of line-2", MAX_COUNTER, "wrong", "bob"))
    assert codes(folded(*said, fleet.log))[SAMPLES[4]] == code_of(SAMPLES[4], "line-1")
    fleet.write(Quarantine("line-2", "of line-2", 0, "", "bob"))
    assert codes(folded(*said, fleet.log))[SAMPLES[4]] == code_of(SAMPLES[4], "line-2")


def test_a_person_held_back_leaves_the_code_that_another_went_by() -> None:
    one, other, fleet = Writer("line-1"), Writer("line-2", counter=10), Writer(FLEET, counter=20)
    one.label(SAMPLES[4], GOOD)
    one.code(SAMPLES[4], code_of(SAMPLES[4]))
    other.label(SAMPLES[4], PIT, operator="bob")
    fleet.write(Quarantine("line-1", "ann", MAX_COUNTER, "wrong", "bob"))
    assert codes(folded(one.log, other.log, fleet.log))[SAMPLES[4]] == code_of(SAMPLES[4])


# Logs that are in the field


def honest(seed: int) -> list[Record]:
    """Return what three devices write as agents do: a label, then the code where the log has none that is left.

    Labels are said again and taken back; a fleet erases some codes, which are said anew, and holds devices back.
    """
    rng = random.Random(seed)
    writers = [Writer(name) for name in ("line-1", "line-2", "line-3")]
    fleet, clock, left, union = Writer(FLEET), 0, set[bytes](), list[Record]()
    for _ in range(60):
        writer, sample, kind = rng.choice(writers), rng.choice(SAMPLES), rng.randrange(10)
        if kind == 0:
            clock += 1
            fleet.code(sample, None, counter=clock)
            left.discard(sample)
        elif kind == 1:
            clock += 1
            through = rng.choice([0, MAX_COUNTER])
            held = Quarantine(rng.choice(writers).chain.device, ANYBODY, through, "", "bob")
            fleet.write(held, counter=clock)
        elif kind == 2:
            clock += 1
            writer.write(DefineClass(PIT, f"pit {clock}", "ann"), counter=clock)
        else:
            clock += 1
            writer.label(sample, rng.choice([GOOD, PIT, None]), counter=clock)
            if sample not in left:
                clock += 1
                writer.code(sample, code_of(sample), counter=clock)
                left.add(sample)
    for writer in (*writers, fleet):
        union += writer.log
    rng.shuffle(union)
    return union


def test_logs_without_foreign_codes_fold_to_what_they_did_before() -> None:
    """By the version before: the last code record of a sample, whoever's."""
    digest = hashlib.sha256()
    for seed in range(100):
        digest.update(folded(honest(seed)).digest().encode())
    assert digest.hexdigest() == "bdd5ba9a4cb225ba2b8c98e3d02f44008d0b62568b98855e4aa34de6d2aeabb9"


# What was erased for good


def codes_left(records: Iterable[Record]) -> LastCodes:
    found = LastCodes()
    for record in records:
        found.add(record)
    return found


def test_nobody_brings_back_what_was_erased_for_good_by_a_foreign_code() -> None:
    one, evil, fleet = Writer("line-1"), Writer("evil", counter=40), Writer(FLEET, counter=20)
    one.label(SAMPLES[4], GOOD)
    one.code(SAMPLES[4], code_of(SAMPLES[4]))
    fleet.code(SAMPLES[4], None)
    evil.code(SAMPLES[4], code_of(SAMPLES[5]))
    evil.write(CodeRecord(bytes(32), SAMPLES[4], "g", bytes(32)), b"x" * 32)
    found = codes_left([*evil.log, *one.log, *fleet.log])
    assert found.erased_for_good([SAMPLES[4]]) == {SAMPLES[4]}
    assert found.left() == {(bytes.fromhex(SPACE), SAMPLES[4]): False}
    one.code(SAMPLES[4], code_of(SAMPLES[4]), counter=50)
    assert not codes_left([*evil.log, *one.log, *fleet.log]).erased_for_good([SAMPLES[4]])


def test_nobody_makes_a_code_look_erased() -> None:
    one, evil = Writer("line-1"), Writer("evil", counter=40)
    one.label(SAMPLES[4], GOOD)
    one.code(SAMPLES[4], code_of(SAMPLES[4]))
    evil.code(SAMPLES[4], None)
    assert codes_left([*one.log, *evil.log]).left() == {(bytes.fromhex(SPACE), SAMPLES[4]): True}


# Cost


def test_an_entry_costs_no_more_under_however_many_names_a_device_labelled_its_sample() -> None:
    def cost(names: int) -> int:
        one, evil, fold = Writer("line-1"), Writer("evil", counter=10), released()
        one.label(SAMPLES[4], GOOD)
        one.code(SAMPLES[4], code_of(SAMPLES[4]))
        for number in range(names):
            evil.label(SAMPLES[4], GOOD, operator=f"name {number}")
        for record in (*one.log, *evil.log):
            fold.apply(record)
        evil.label(SAMPLES[4], PIT)
        return lines_run(lambda: fold.apply(evil.log[-1]))

    assert cost(400) <= 2 * cost(4)
