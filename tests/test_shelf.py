"""Codes lie in one place and are read in strips: nothing that learns or scores holds all of them at once."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from device_agent.database import Database
from device_agent.limits import StoreLimits
from device_agent.schema import MIGRATIONS
from device_agent.store import Store
from device_agent.stored_codes import StoredCodes
from sdk import shelf as shelf_module
from sdk.codes import Codes, code_digest
from sdk.compact import Again, Numbers, Once
from sdk.errors import FeatureSizeError, StoreCorrupt
from sdk.grouping import derive_groups
from sdk.labels import Body, Chain, CodeRecord, Fold, Label, Record
from sdk.liveset import codes_of
from sdk.moments import Moments
from sdk.score import leave_one_group_out
from sdk.shelf import STRIP_BYTES, Kept, MemoryShelf, Shelf, Some, at_hand, chosen, strip_rows, strips
from tests.builders import random_codes
from tests.test_head import A, B, C, clusters

SPACE = "ab" * 32
D = 48


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1", limits=StoreLimits(reserve_bytes=0)) as opened:
        yield opened


def label(store: Store, codes: Codes) -> list[bytes]:
    """Label samples with these codes, five of a group, in turn as three classes; return their ids."""
    samples = [hashlib.sha256(number.to_bytes(4, "big")).digest() for number in range(len(codes))]
    bodies: list[Body] = []
    for number, (sample, code) in enumerate(zip(samples, codes, strict=True)):
        bodies.append(Label(sample, (A, B, C)[number % 3], "ann"))
        bodies.append(CodeRecord(bytes.fromhex(SPACE), sample, f"line-1/{number // 5}", code_digest(code)))
    store.log.append(bodies, dict(zip(samples, codes, strict=True)))
    return samples


def fold_of(store: Store, shelf: Shelf, base: Codes) -> Fold:
    """Fold a store's log over a release's codes."""
    fold = Fold(SPACE, D, shelf)
    ids = [hashlib.sha256(b"base%d" % number).digest() for number in range(len(base))]
    fold.add_base(ids, [A] * len(base), ["release/1"] * len(base), base, {A: "a", B: "b", C: "c"})
    for record in store.log.records():
        fold.apply(record)
    return fold


# -- shelves


@pytest.mark.parametrize("d", [3, 9_000], ids=["many in a block", "one in a block"])
def test_a_shelf_gives_back_what_was_put_there(d: int) -> None:
    codes = random_codes(130, d)
    shelf = MemoryShelf(d)
    places = [*shelf.put_release(codes[:60]), *(shelf.put("line-1", i, codes[i]) for i in range(60, 130))]
    back = np.array(places[::-1], np.int64)
    assert np.array_equal(shelf.read(back), codes[::-1])
    assert shelf.read(back[:0]).shape == (0, d)


def test_rows_are_chosen_as_of_an_array() -> None:
    codes = random_codes(40, D)
    shelf = MemoryShelf(D)
    kept = Kept(shelf, shelf.put_release(codes))
    even = np.arange(40) % 2 == 0
    assert np.array_equal(kept[np.array([3, 1])], codes[[3, 1]])
    assert np.array_equal(kept[5:9], codes[5:9])
    assert np.array_equal(kept[even], codes[even])
    assert np.array_equal(np.asarray(kept), codes)
    some = Some(kept, even)
    assert (some.shape, some.dtype, len(some)) == ((20, D), np.dtype(np.int8), 20)
    assert np.array_equal(some[1:3], codes[[2, 4]])
    assert chosen(kept, np.ones(40, bool)) is kept


def test_codes_on_a_shelf_cannot_be_shared_as_an_array() -> None:
    shelf = MemoryShelf(D)
    with pytest.raises(ValueError, match="copied"):
        Kept(shelf, shelf.put_release(random_codes(2, D))).__array__(copy=False)


@pytest.mark.parametrize("d", [1, 768, 1584, 8192, 4 * 1024**2])
def test_a_strip_is_within_its_bound_and_at_least_a_row(d: int) -> None:
    rows = strip_rows(d)
    assert rows == 1 or rows * d * 8 <= STRIP_BYTES
    assert np.array_equal(np.concatenate(list(strips(np.arange(2 * rows + 1), d))), np.arange(2 * rows + 1))


def test_codes_of_the_log_are_read_from_the_store(store: Store) -> None:
    codes, base = random_codes(230, D), random_codes(7, D)
    label(store, codes[:200])
    stored, memory = fold_of(store, store.log.shelf(D), base), fold_of(store, MemoryShelf(D), base)
    label(store, codes)  # arrivals are no longer as many as samples
    for fold in (stored, memory):
        for record in store.log.records():
            fold.apply(record)
    assert stored.digest() == memory.digest()
    assert np.array_equal(np.asarray(stored.live_set().codes), np.asarray(memory.live_set().codes))
    assert np.array_equal(codes_of([*stored.rows()])[:], codes_of([*memory.rows()])[:])
    assert [row.code.tolist() for row in stored.rows()] == [row.code.tolist() for row in memory.rows()]


def test_few_codes_are_read_once_by_who_needs_them_often(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    label(store, random_codes(12, D))
    live = fold_of(store, store.log.shelf(D), random_codes(0, D)).live_set()
    expected = np.asarray(live.codes)
    monkeypatch.setattr(shelf_module, "STRIP_BYTES", 12 * D - 1)
    assert at_hand(live.codes) is live.codes
    monkeypatch.setattr(shelf_module, "STRIP_BYTES", 12 * D)
    here = at_hand(live.codes)
    monkeypatch.setattr(StoredCodes, "read", None)  # the store is not asked again
    np.testing.assert_array_equal(here[:], expected)


def test_an_earlier_live_set_reads_what_it_read(store: Store) -> None:
    codes = random_codes(20, D)
    label(store, codes[:10])
    fold = fold_of(store, store.log.shelf(D), codes[:0])
    before = fold.live_set()
    was = np.asarray(before.codes)
    label(store, codes[::-1])
    for record in store.log.records():
        fold.apply(record)
    assert np.array_equal(np.asarray(before.codes), was)


def test_a_code_that_the_log_does_not_have_is_refused(store: Store) -> None:
    with pytest.raises(LookupError, match="entry 7 of line-9"):
        store.log.shelf(D).put("line-9", 7, random_codes(1, D)[0])


@pytest.mark.parametrize("change", ["code = NULL", "code = zeroblob(3)"])
def test_a_code_that_is_gone_from_the_store_is_damage(tmp_path: Path, change: str) -> None:
    with Store.open(tmp_path, "line-1", limits=StoreLimits(reserve_bytes=0)) as store:
        label(store, random_codes(3, D))
    db = Database(tmp_path / "store.sqlite3", MIGRATIONS, max_bytes=1024**3)
    with db.transaction() as connection:
        connection.execute(f"UPDATE records SET {change} WHERE code IS NOT NULL")
    db.close()
    with Store.open(tmp_path, "line-1", limits=StoreLimits(reserve_bytes=0)) as store:
        shelf = store.log.shelf(D)
        place = shelf.put("line-1", 2, random_codes(1, D)[0])
        with pytest.raises(StoreCorrupt, match="record 2 is gone"):
            shelf.read(np.array([place]))


def test_a_code_of_another_size_is_refused_before_it_is_shelved(store: Store) -> None:
    label(store, random_codes(1, D))
    fold = Fold(SPACE, D + 1, store.log.shelf(D + 1))
    first, second = store.log.records()
    fold.apply(first)
    with pytest.raises(FeatureSizeError, match="48 values"):
        fold.apply(second)


# -- what learning and scoring hold of many samples


def peak_bytes_of(codes: Codes, ids: list[bytes], groups: list[str], *, score: bool) -> int:
    tracemalloc.start()
    if score:
        leave_one_group_out(codes, ids, groups)
    else:
        derive_groups(codes, ids, groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("score", [True, False], ids=["scoring", "grouping"])
def test_twice_the_samples_take_hardly_more_memory(score: bool) -> None:
    """3,000 more as float32 would be 3.1 MB, as float64 6.1; each sample counts in less than 300 bytes."""
    few, many = (
        peak_bytes_of(*clusters({A: n, B: n, C: n}, d=256, per_group=50), score=score) for n in (1_000, 2_000)
    )
    assert many - few < 1_000_000


def test_twins_in_different_strips_are_joined() -> None:
    """Each picture's twin comes 1,500 samples later, in another strip of its class."""
    rng = np.random.default_rng(0)
    parts = rng.integers(-90, 90, (1_500, 64))
    twice = np.concatenate([parts, parts + rng.integers(-9, 9, parts.shape)]).astype(np.int8)
    assert strip_rows(64) < len(twice)
    found = derive_groups(twice, [A] * 3_000, [f"{i:04}" for i in range(3_000)])
    assert found.groups[:1_500] == found.groups[1_500:]


def test_a_shelf_groups_and_scores_as_an_array_does() -> None:
    codes, ids, groups = clusters({A: 300, B: 200, C: 100}, per_group=3)
    shelf = MemoryShelf(codes.shape[1])
    order = np.random.default_rng(0).permutation(len(codes))
    kept = Kept(shelf, shelf.put_release(codes[order])[np.argsort(order)])
    assert derive_groups(kept, ids, groups) == derive_groups(codes, ids, groups)
    one, other = leave_one_group_out(kept, ids, groups), leave_one_group_out(codes, ids, groups)
    assert np.array_equal(one.scores, other.scores)
    moments, same = Moments(codes.shape[1]), Moments(codes.shape[1])
    moments.add(kept, ids)
    same.add(codes, ids)
    assert moments == same


def test_a_fold_keeps_less_than_a_kilobyte_of_a_sample() -> None:
    """A code of 1,584 numbers, kept once more in memory, would show."""

    class Elsewhere(MemoryShelf):
        def put(self, _device: str, seq: int, _code: npt.NDArray[np.int8]) -> int:
            return seq

    count, d = 2_000, 1_584
    records = []
    chain = Chain("line-1")
    code = bytes(d)
    for number in range(count):
        sample = hashlib.sha256(number.to_bytes(4, "big")).digest()
        said: Body
        for said, with_code in (
            (Label(sample, A, "ann"), None),
            (
                CodeRecord(bytes.fromhex(SPACE), sample, f"line-1/{number // 5}", hashlib.sha256(code).digest()),
                code,
            ),
        ):
            chain, entry = chain.write(said, counter=chain.seq + 1, wall_time_us=0)
            records.append(Record(entry, with_code))
    fold = Fold(SPACE, d, Elsewhere(d))
    tracemalloc.start()
    for record in records:
        fold.apply(record)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert fold.live_samples() == count
    assert kept / count < 1_000


# -- names and numbers


def test_equal_names_are_one_object() -> None:
    names, groups = Once[str | None](), Again[str]()
    one, other = "line-" + str(1), "line-" + str(1)
    assert one is not other
    assert names(one) is names(other)
    assert names(None) is None
    assert groups(one) is groups(other)
    assert groups("line-2") == "line-2"


@pytest.mark.parametrize("order", [[1, 2, 3, 5], [5, 3, 2, 1], [3, 1, 5, 2]])
def test_numbers_are_remembered_in_any_order(order: list[int]) -> None:
    numbers = Numbers()
    for number in order:
        assert number not in numbers
        numbers.add(number)
    assert [number in numbers for number in range(1, 7)] == [True, True, True, False, True, False]
