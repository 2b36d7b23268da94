"""Who labelled what: events of several devices in any order of arrival, in little memory."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.limits import StoreLimits
from device_agent.page.history import LabelHistory
from device_agent.store import Store
from sdk.errors import LabelError
from sdk.labels import Label
from tests.simulators import SimDevice

CLASSES = [bytes([number]) * 16 for number in range(3)]
RELEASE = {hashlib.sha256(b"0").digest(): CLASSES[2]}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1", limits=StoreLimits(reserve_bytes=0)) as store:
        yield store


def sample(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


@pytest.mark.parametrize("seed", range(8))
def test_events_in_any_order_are_told_as_if_they_had_been_sorted(store: Store, seed: int) -> None:
    roll = random.Random(seed)
    history = LabelHistory(store, RELEASE.get)
    others = [SimDevice("line-0"), SimDevice("line-2")]
    for _ in range(30):
        body = Label(sample(roll.randrange(4)), roll.choice([*CLASSES, None]), roll.choice(["ann", "bob"]))
        other = roll.choice([None, *others])
        if other is None:
            store.log.append([body])
            continue
        other.write(body)
        if roll.random() < 0.5:  # else it comes later, with the next
            store.log.receive(other.log, 0)
    for other in others:
        store.log.receive(other.log, 0)
    arrived = [(arrival, each.entry) for arrival, each in store.log.records_after(0)]
    said = sorted(arrived, key=lambda each: (each[1].counter, each[1].device, each[1].seq))

    def of(wanted: bytes) -> list[tuple[str, int]]:
        return [(e.device, e.seq) for _, e in said if isinstance(e.body, Label) and e.body.sample == wanted]

    rows = history.rows(100)
    assert [row.event.arrival for row in rows] == [arrival for arrival, _ in reversed(arrived)]
    by_event = {(entry.device, entry.seq): entry for _, entry in arrived}
    for row in rows:
        event, chain = row.event, of(row.event.sample)
        at = chain.index((event.device, event.seq))
        said_here = by_event[event.device, event.seq].body
        assert isinstance(said_here, Label)
        assert (event.class_id, event.operator) == (said_here.class_id, said_here.operator)
        assert row.own == (event.device == "line-1")
        before = by_event[chain[at - 1]].body if at else None
        wanted = RELEASE.get(event.sample) if not isinstance(before, Label) else before.class_id
        assert (row.before, row.current) == (wanted, at == len(chain) - 1)
    for number in range(5):
        told = [(row.event.device, row.event.seq) for row in history.of_sample(sample(number))]
        assert told == of(sample(number))[::-1]
    last = history.last_own()
    assert last is not None
    assert last.event.seq == store.log.length()
    assert history.rows(3, 2) == rows[2:5]
    assert history.rows(3, 1000) == []


def test_an_undo_gives_back_what_was_said_before(store: Store) -> None:
    history = LabelHistory(store, RELEASE.get)
    store.log.append([Label(sample(0), CLASSES[0], "ann"), Label(sample(1), CLASSES[0], "ann")])
    store.log.append([Label(sample(1), CLASSES[1], "ann")])
    assert history.undoing(1, 3) == [(sample(0), CLASSES[2]), (sample(1), None)]
    assert history.undoing(3, 3) == [(sample(1), CLASSES[0])]
    with pytest.raises(LabelError, match="somebody has labelled this picture since"):
        history.undoing(2, 2)
    with pytest.raises(LabelError, match="hold no label"):
        history.undoing(4, 9)


def test_a_label_takes_little_memory(store: Store) -> None:
    """As objects of their own 640 bytes were measured, 250 as they are."""
    device = SimDevice("line-2")
    for number in range(2000):
        device.write(Label(sample(number), CLASSES[number % 3], "ann"))
    store.log.receive(device.log, 0)
    del device
    history = LabelHistory(store, RELEASE.get)
    tracemalloc.start()
    history.rows(1)
    kept_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept_bytes < 300 * 2000


def test_a_label_of_what_its_class_was_made_part_of_confirms_it(store: Store) -> None:
    history = LabelHistory(store, RELEASE.get)
    store.log.append([Label(sample(1), CLASSES[0], "ann"), Label(sample(1), CLASSES[1], "bob")])
    assert not history.said_twice(sample(1), lambda class_id: class_id)
    assert history.said_twice(sample(1), lambda _class_id: CLASSES[0])
    store.log.append([Label(sample(1), None, "bob")])
    assert not history.said_twice(sample(1), lambda _class_id: CLASSES[0])
    assert not history.said_twice(sample(2), lambda _class_id: CLASSES[0])
