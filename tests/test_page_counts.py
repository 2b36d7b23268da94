"""A shift begins when the clock on the wall says so, in the nights too in which that clock is moved, and a stop of
the agent takes nothing of what it has brought."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from device_agent.agent import Agent
from device_agent.page import counts
from device_agent.page.book import open_book
from sdk.bundle import Bundle
from sdk.wire import Verdict
from tests.pages import serving, write_stream
from tests.simulators import wait_for
from tests.test_agent import COUNT, bundle, images, running, site_of

__all__ = ["bundle", "images"]

BEGAN = """
import sys
from pathlib import Path
from device_agent.page.book import open_book
from device_agent.page.counts import ShiftCounter
book = open_book(Path(sys.argv[1]))
print(ShiftCounter(book, lambda: float(sys.argv[2])).shift_began())
book.close()
"""


@pytest.mark.parametrize(
    ("now", "began"),
    [
        ("2026-03-29T03:30+02:00", "2026-03-28T22:00+01:00"),  # 02:00 became 03:00
        ("2026-10-25T04:00+01:00", "2026-10-24T22:00+02:00"),  # 03:00 became 02:00
        ("2026-10-25T02:30+01:00", "2026-10-24T22:00+02:00"),  # half past two, for the second time
        ("2026-03-29T13:59+02:00", "2026-03-29T06:00+02:00"),
    ],
)
def test_a_shift_begins_by_the_clock_on_the_wall(tmp_path: object, now: str, began: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", BEGAN, str(tmp_path), str(datetime.fromisoformat(now).timestamp())],
        env={**os.environ, "TZ": "Europe/Berlin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(told.stdout) == datetime.fromisoformat(began).timestamp()


def written(data_dir: Path) -> dict[str, int]:
    """Return what is counted on the disk."""
    book = open_book(data_dir)
    try:
        return {
            str(what): int(count) for what, count in book.rows("SELECT what, sum(count) FROM counts GROUP BY 1")
        }
    finally:
        book.close()


def test_a_burst_before_a_clean_stop_is_counted(images: Path, bundle: Bundle) -> None:
    """All that came since the last write was lost: of 17 parts of a short run, 14."""
    site = site_of(images, bundle.path)
    with Agent(site) as agent, running(agent):
        wait_for(lambda: agent.state().frames == COUNT, 60.0)
        sample = agent.station.store.samples.newest(limit=1)[0].sample_id
        with httpx.Client(base_url=agent.page_url) as http:
            http.post("/api/labels", json={"sample": sample.hex(), "class_name": "pit"}).raise_for_status()
    found = written(site.data_dir)
    assert (found["frames"], found["parts"], found["labels"]) == (COUNT, COUNT, 1)


def test_a_part_whose_picture_cannot_be_read_is_among_the_rejects(images: Path, bundle: Bundle) -> None:
    for i in range(3):
        (images / f"bad-{i}.png").write_bytes(b"no image")
    site = site_of(images, bundle.path)
    with Agent(site) as agent, running(agent), httpx.Client(base_url=agent.page_url) as http:
        wait_for(lambda: http.get("/api/shift").json()["parts"] == COUNT + 3, 60.0)
        rejected = sum(part.verdict is Verdict.REJECT for part in agent.flow.parts)
        assert http.get("/api/shift").json()["rejects"] == rejected


def test_what_was_counted_is_written_though_no_frame_comes_after_it(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash may come then; a label was written with the next frame only."""
    monkeypatch.setattr(counts, "FLUSH_S", 0.02)
    pictures = write_stream(tmp_path / "images", {"pit": 2})
    with serving(tmp_path / "data", pictures, bundle) as device:
        sample = device.station.store.samples.newest(limit=1)[0].sample_id
        device.http.post("/api/labels", json={"sample": sample.hex(), "class_name": "pit"}).raise_for_status()
        wait_for(lambda: written(tmp_path / "data").items() >= {"parts": 2, "labels": 1}.items(), 60.0)
