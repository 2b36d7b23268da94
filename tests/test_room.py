"""Room on the disk: one write at a time looks for it, and what is refused leaves nothing behind."""

from __future__ import annotations

import hashlib
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.database import Database
from device_agent.images import ImageFolder
from device_agent.limits import StoreLimits
from device_agent.room import Room
from device_agent.samples import IMAGES_NAME
from device_agent.schema import MIGRATIONS
from device_agent.store import STORE_NAME, Store
from sdk.errors import StoreFull
from tests.test_store import image_of, sample_of

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
        ImageFolder(tmp_path / IMAGES_NAME).put(sample.sample_id, image_of(kept + 1))
        with pytest.raises(StoreFull, match="full"):
            store.samples.put(sample, image_of(kept + 1))
        assert store.samples.image(sample.sample_id) == image_of(kept + 1)


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
