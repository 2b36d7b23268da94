"""Classes made one, whoever says so in whatever order, and that a log costs no more than it is long."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.proof_names import Names
from sdk.labels import Body, Chain, DefineClass, Fold, KeepApart, Label, MergeClasses, Record, RenameClass
from sdk.merges import Merges
from tests.cost import lines_run

IDS = [bytes([i]) * 16 for i in range(8)]
PAIRS = st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from(IDS)), max_size=12)


def together(pairs: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the smallest id of each id's set, found by looking until nothing changes."""
    found = {each: each for each in IDS}
    for _ in IDS:
        for one, other in pairs:
            low = min(found[one], found[other])
            found = {each: low if at in (found[one], found[other]) else at for each, at in found.items()}
    return found


@given(PAIRS)
@settings(max_examples=200, deadline=None)
def test_the_smallest_id_of_a_set_stands_for_all_of_it(pairs: list[tuple[bytes, bytes]]) -> None:
    merges = Merges()
    for done, (one, other) in enumerate(pairs):
        before = together(pairs[:done])
        assert merges.join(one, other) == (before[one] != before[other])
    expected = together(pairs)
    assert {each: merges.canonical(each) for each in IDS} == expected
    assert merges.merged() == {each: low for each, low in expected.items() if each != low}
    assert bool(merges) == bool(merges.merged())


@given(PAIRS, st.sets(st.integers(0, 12)))
@settings(max_examples=60, deadline=None)
def test_a_digest_asked_for_between_merges_changes_none_later(
    pairs: list[tuple[bytes, bytes]], asked: set[int]
) -> None:
    often, once = of_release(), of_release()
    chain = Chain("a")
    for done, (one, other) in enumerate(pairs):
        chain, entry = chain.write(MergeClasses(one, other, "op"), counter=done + 1, wall_time_us=0)
        once.apply(Record(entry))
        often.apply(Record(entry))
        if done in asked:
            often.digest()
        # A label while the rows are out of date.
        label = Label(SAMPLES[done], other, "op")
        record = Record(Chain("b", done).write(label, counter=done + 1, wall_time_us=0)[1])
        once.apply(record)
        often.apply(record)
    assert often.digest() == once.digest()
    assert often.live_set().class_ids == once.live_set().class_ids


SAMPLES = [i.to_bytes(32, "big") for i in range(400)]


def of_release(samples: int = 40) -> Fold:
    fold = Fold("00" * 32, 2)
    classes = [IDS[i % len(IDS)] for i in range(samples)]
    codes = np.ones((samples, 2), np.int8)
    fold.add_base(SAMPLES[:samples], classes, ["g"] * samples, codes, {each: each.hex() for each in IDS})
    return fold


def falling(k: int) -> MergeClasses:
    """A merge that names the class of the one before, first one of the release, and one of a smaller id."""
    last = int.from_bytes(IDS[7], "big")
    return MergeClasses((last - k).to_bytes(16, "big"), (last - k - 1).to_bytes(16, "big"), "op")


BODIES: dict[str, Callable[[int], Body]] = {
    "merges into ever smaller ids": falling,
    "merges into ever larger ids": lambda k: MergeClasses(IDS[7], (2**127 + k).to_bytes(16, "big"), "op"),
    "merges in pairs": lambda k: MergeClasses((2 * k).to_bytes(16, "big"), (2 * k + 1).to_bytes(16, "big"), "op"),
    "one merge again and again": lambda _: MergeClasses(IDS[0], IDS[1], "op"),
    "labels by ever other operators": lambda k: Label(SAMPLES[0], IDS[0], f"op-{k}"),
    "names by ever other operators": lambda k: RenameClass(IDS[0], "scratch", f"op-{k}"),
    "one pair told apart by ever other operators": lambda k: KeepApart(IDS[0], IDS[1], f"op-{k}"),
    "ever new classes": lambda k: DefineClass((2**99 + k).to_bytes(16, "big"), f"class {k}", "op"),
}


def log_of(what: str, length: int) -> list[Record]:
    chain, records = Chain("evil"), []
    for k in range(length):
        chain, entry = chain.write(BODIES[what](k), counter=k + 1, wall_time_us=0)
        records.append(Record(entry))
    return records


def cost(what: str, length: int, samples: int) -> int:
    """Return the lines run to fold one device's log onto a release of so many samples, and to read the state."""
    fold, records = of_release(samples), log_of(what, length)

    def work() -> None:
        for record in records:
            fold.apply(record)
        fold.digest()
        fold.class_names()

    return lines_run(work)


@pytest.mark.parametrize("what", BODIES)
def test_a_log_costs_as_much_as_it_is_long(what: str) -> None:
    """One device may write what it likes: it must not keep the others' pages and starts waiting."""
    assert cost(what, 1000, samples=8) < 3 * cost(what, 500, samples=8)


@pytest.mark.parametrize("what", BODIES)
def test_an_entry_costs_no_walk_over_the_samples(what: str) -> None:
    assert cost(what, 200, samples=400) < 5 * cost(what, 200, samples=40)


NAMINGS: dict[str, Callable[[int], Body]] = {
    "merges into ever smaller ids": falling,
    "ever new classes of one name": lambda k: DefineClass((2**99 + k).to_bytes(16, "big"), "scratch", "op"),
    "two classes that take a name in turns": lambda k: RenameClass(IDS[k % 2], f"scratch{k % 3 or ''}", "op"),
    "one name again and again": lambda _: RenameClass(IDS[0], "scratch", "op"),
}


@pytest.mark.parametrize("what", NAMINGS)
def test_a_proof_finds_in_few_looks_what_a_class_has_been_called(what: str) -> None:
    """Of all that were ever named so, or said to be one with it, whether or not that counts."""

    def looked_up(length: int) -> int:
        names, chain = Names({each: each.hex() for each in IDS}), Chain("evil")

        def work() -> None:
            nonlocal chain
            for k in range(length):
                chain, entry = chain.write(NAMINGS[what](k), counter=k + 1, wall_time_us=0)
                names.hear(Record(entry))
            for name in ("scratch", IDS[7].hex(), "none"):
                names.called(name, [IDS[0], falling(length).one], lambda each: each, compared=False)

        return lines_run(work)

    assert looked_up(400) < 3 * looked_up(200)
