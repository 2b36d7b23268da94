"""Room on the disk: one write at a time looks for it, and what is refused leaves nothing behind."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.database import Database
from device_agent.images import ImageFolder
from device_agent.limits import StoreLimits
from device_agent.room import BALLAST_NAME, LOOK_S, LOOK_SHARE, Room
from device_agent.samples import IMAGES_NAME
from device_agent.schema import MIGRATIONS
from device_agent.store import STORE_NAME, Store
from sdk.errors import StoreFull
from tests.disks import fill, small
from tests.test_store import image_of, sample_of

__all__ = ["small"]

MIB = 1024**2
RESERVE = 6 * MIB
LIMITS = StoreLimits(reserve_bytes=0)


def pictures(folder: Path) -> int:
    return sum(1 for _ in (folder / IMAGES_NAME).glob("??/*"))


def test_nobody_else_looks_for_room_while_one_write_does(tmp_path: Path) -> None:
    """Else two writes on a full disk give the one ballast up, and the second finds none and is refused."""
    db = Database(tmp_path / STORE_NAME, MIGRATIONS, max_bytes=2**30)
    taken: list[bool] = []

    def take() -> None:
        taken.append(db.lock.acquire(blocking=False))
        if taken[-1]:
            db.lock.release()

    def write() -> None:
        other = threading.Thread(target=take)
        other.start()
        other.join()

    Room(tmp_path, db, LIMITS).found_for(write)
    write()
    db.close()
    assert taken == [False, True]


@pytest.fixture
def room(small: Path) -> Iterator[tuple[Room, list[float]]]:
    """Room on a disk of 8 MiB, of which six are the reserve, and the time."""
    now_s = [100.0]
    db = Database(small / STORE_NAME, MIGRATIONS, max_bytes=2**30)
    yield Room(small, db, StoreLimits(reserve_bytes=RESERVE, ballast_bytes=MIB), lambda: now_s[0]), now_s
    db.close()


def test_a_disk_that_others_filled_is_noticed_in_time(small: Path, room: tuple[Room, list[float]]) -> None:
    looks, now_s = room
    looks.check_reserve(0)
    fill(small)
    now_s[0] += LOOK_S
    with pytest.raises(StoreFull, match="less than 6 MiB are free"):
        looks.check_reserve(0)


def test_a_disk_is_looked_at_before_much_of_the_reserve_is_written(
    small: Path, room: tuple[Room, list[float]]
) -> None:
    """Also where time stands still: a fast line with large pictures must leave labels their room. Before that it
    is not looked at, else nothing would be written here."""
    looks, _ = room
    looks.check_reserve(0)
    fill(small)
    written = 0
    with pytest.raises(StoreFull):  # noqa: PT012
        for _ in range(1000):
            looks.check_reserve(1000)
            written += 1000
    assert 0 < written <= RESERVE * LOOK_SHARE


def test_a_full_disk_is_looked_at_each_time_and_used_again_at_once(
    small: Path, room: tuple[Room, list[float]]
) -> None:
    looks, now_s = room
    ballast = small / BALLAST_NAME
    hog = fill(small)
    for _ in range(3):
        with pytest.raises(StoreFull):
            looks.check_reserve(0)
    hog.unlink()
    looks.check_reserve(0)
    assert ballast.exists()
    hog = fill(small)
    now_s[0] += LOOK_S
    with pytest.raises(StoreFull):
        looks.check_reserve(0)


def test_ballast_that_was_given_up_is_made_again_by_the_next_sample_that_finds_room(
    small: Path, room: tuple[Room, list[float]]
) -> None:
    looks, _ = room
    looks.check_reserve(0)
    hog = fill(small)
    tries = iter([StoreFull("the disk is full", hint="")])

    def write() -> None:
        for error in tries:
            raise error

    looks.found_for(write)
    assert looks.ballast_given_up
    hog.unlink()
    looks.check_reserve(0)
    assert not looks.ballast_given_up


def test_samples_refused_by_a_store_at_its_size_limit_leave_no_pictures(tmp_path: Path) -> None:
    """Nothing knows these: they would fill the disk beyond every limit, and nobody would delete them."""
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, max_store_bytes=256 * 1024)) as store:
        kept = 0
        with pytest.raises(StoreFull, match="full"):  # noqa: PT012
            for kept in range(10_000):
                store.samples.put(sample_of(kept), image_of(kept))
        for number in range(kept, kept + 20):
            with pytest.raises(StoreFull, match="full"):
                store.samples.put(sample_of(number), image_of(number))
        assert len(store.samples.newest(limit=10_000)) == kept
    assert pictures(tmp_path) == kept


def test_a_refused_sample_takes_no_picture_along_that_was_there_before(tmp_path: Path) -> None:
    """Operators may have labelled it, although nothing here knows it any more."""
    with Store.open(tmp_path, "line-1", limits=replace(LIMITS, max_store_bytes=256 * 1024)) as store:
        kept = 0
        with pytest.raises(StoreFull, match="full"):  # noqa: PT012
            for kept in range(10_000):
                store.samples.put(sample_of(kept), image_of(kept))
        sample = sample_of(kept + 1)
        folder = ImageFolder(tmp_path / IMAGES_NAME)
        folder.put(sample.sample_id, image_of(kept + 1))
        with pytest.raises(StoreFull, match="full"):
            store.samples.put(sample, image_of(kept + 1))
        assert folder.get(sample.sample_id) == image_of(kept + 1)


def test_a_picture_that_goes_while_it_is_made_durable_is_none(tmp_path: Path) -> None:
    """The page makes pictures durable beside the line, which drops the oldest."""
    folder = ImageFolder(tmp_path / IMAGES_NAME)
    sample, over = hashlib.sha256(image_of(1)).digest(), threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            folder.put(sample, image_of(1))
            folder.drop([sample])

    before, other = sys.getswitchinterval(), threading.Thread(target=come_and_go)
    sys.setswitchinterval(1e-6)
    other.start()
    try:
        for _ in range(20_000):
            folder.sync(sample)
    finally:
        over.set()
        other.join()
        sys.setswitchinterval(before)
    assert folder.get(sample) is None
