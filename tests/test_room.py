"""Room on the disk: one write at a time looks for it."""

from __future__ import annotations

import threading
from pathlib import Path

from device_agent.database import Database
from device_agent.limits import StoreLimits
from device_agent.room import Room
from device_agent.schema import MIGRATIONS
from device_agent.store import STORE_NAME

LIMITS = StoreLimits(reserve_bytes=0)


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
