"""A shift begins when the clock on the wall says so, in the nights too in which that clock is moved, and a stop of
the agent takes nothing of what it has brought."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import cv2
import httpx
import numpy as np
import pytest
from msgspec.structs import replace

from device_agent.agent import Agent
from device_agent.config import FolderCamera, MetricsSettings, RecipeSettings
from device_agent.database import Database
from device_agent.history import History, read_history
from device_agent.page import ShiftCounter, counts
from device_agent.page.book import open_book
from device_agent.site_file import load_site
from sdk.bundle import Bundle
from sdk.errors import TriggerRefused
from sdk.wire import Verdict
from tests.line_sim import frame_of
from tests.pages import serving, write_stream
from tests.simulators import wait_for
from tests.test_agent import COUNT, bundle, call, images, process, running, site_file, site_of
from tests.test_observe import scraped
from tests.test_outputs import part_of

__all__ = ["bundle", "images"]

DAY_S: Final = 24 * 3600.0
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


def verdicts(agent: Agent) -> dict[str, int]:
    """Return what this shift must say of parts, by the verdicts that went to the outputs."""
    parts = list(agent.flow.parts)
    return {
        "parts": len(parts),
        "rejects": sum(part.verdict is Verdict.REJECT for part in parts),
        "unknown": sum(part.finding is not None and part.finding.decision.unknown for part in parts),
    }


def shift(agent: Agent) -> dict[str, int]:
    with httpx.Client(base_url=agent.page_url) as http:
        return {what: int(count) for what, count in http.get("/api/shift").json().items() if what != "began_utc"}


def test_a_part_counts_by_its_verdict_whichever_tile_rejects_it(tmp_path: Path, bundle: Bundle) -> None:
    """It counted by its first tile: eight parts, four of them scratched below the first, were 0 rejects."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        tiles = [frame_of("good", 0)] + [frame_of("pit" if i % 2 else "rings", i)] * 3
        assert cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.hstack(tiles))
    camera = FolderCamera(path=tmp_path / "images", recipe=RecipeSettings(tile_px=48, overlap=0.0))
    site = replace(site_of(tmp_path / "images", bundle.path, metrics=MetricsSettings(port=0)), camera=camera)
    with Agent(site) as agent, running(agent):
        wait_for(lambda: agent.state().frames == 4 and shift(agent)["frames"] == 4, 60.0)
        assert shift(agent).items() >= verdicts(agent).items()
        assert {part.tiles for part in agent.flow.parts} == {4}
        assert shift(agent)["rejects"] == 4
        # Frames are counted, not tiles, as the cameras count them.
        assert agent.metrics_port is not None
        found = scraped(agent.metrics_port)
        assert found["headway_frames_total"] == found["headway_camera_frames_total"] == 4
        assert found["headway_frame_latency_seconds_count"] == 4
        assert found["headway_frames_unknown_total"] == agent.station.counts.unknown <= 4


def test_a_part_that_several_cameras_see_is_one_and_so_is_one_that_was_refused(
    images: Path, bundle: Bundle
) -> None:
    """Two cameras whose frames came in turns made five parts of three."""
    lines = ["path,group", *(f"{i}.png,part-{i}" for i in range(COUNT))]
    (images / "index.csv").write_text("\n".join(lines) + "\n")
    both = FolderCamera(path=images), FolderCamera(path=images)
    with Agent(replace(site_of(images, bundle.path), camera=both)) as agent, running(agent):
        wait_for(lambda: shift(agent)["parts"] == COUNT and shift(agent)["frames"] == 2 * COUNT, 60.0)
        with pytest.raises(TriggerRefused):
            agent.flow.trigger("unasked")
        assert verdicts(agent)["parts"] == COUNT + 1
        assert shift(agent).items() >= verdicts(agent).items()


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


def test_a_shift_that_an_earlier_agent_began_is_told_whole(tmp_path: Path) -> None:
    """It counted parts of which no frame could be inspected apart from the others."""
    book = open_book(tmp_path)
    with book.transaction(durable=False) as db:
        db.executemany("INSERT INTO counts VALUES (0, ?, ?)", [("parts", 3), ("rejects", 1), ("unseen", 2)])
    report = ShiftCounter(book, lambda: counts.SLOT_S / 2).report()
    book.close()
    assert (report.parts, report.rejects) == (5, 3)


class Clock:
    """A clock that people set."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime.fromisoformat("2026-05-04T12:00").timestamp())


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Database]:
    opened = open_book(tmp_path)
    yield opened
    opened.close()


def count(book: Database, clock: Clock, frames: int, *, is_right: bool | None = None) -> ShiftCounter:
    """Count frames, and write them."""
    counter = ShiftCounter(book, clock, is_right=lambda: is_right)
    for _ in range(frames):
        counter.frame()
    counter.flush()
    return counter


@pytest.mark.parametrize("ahead_s", [3600.0, DAY_S, 10 * 365 * DAY_S], ids=["an hour", "a day", "ten years"])
@pytest.mark.parametrize("written", [True, False])
def test_what_a_clock_that_was_ahead_has_counted_is_of_no_shift(
    book: Database, clock: Clock, ahead_s: float, written: bool
) -> None:
    counter = count(book, clock, 5)
    clock.now += ahead_s
    for _ in range(7):
        counter.frame()
    if written:
        counter.flush()
    clock.now -= ahead_s
    counter.frame()
    assert counter.report().frames == 6


def test_once_the_clock_is_held_right_it_is_counted_at_no_later_time_either(book: Database, clock: Clock) -> None:
    clock.now += DAY_S
    count(book, clock, 7)
    clock.now -= DAY_S
    count(book, clock, 5, is_right=True)
    clock.now += DAY_S
    assert count(book, clock, 2, is_right=True).report().frames == 2


def test_a_clock_that_begins_anew_takes_nothing_from_what_was_counted(book: Database, clock: Clock) -> None:
    """One without a battery says 1970 until somebody has told it."""
    count(book, clock, 5, is_right=True)
    now, clock.now = clock.now, 60.0
    count(book, clock, 3, is_right=False)
    clock.now = now
    assert count(book, clock, 1, is_right=True).report().frames == 6


def test_a_clock_that_was_years_ahead_takes_nothing_from_what_was_counted(book: Database, clock: Clock) -> None:
    """All that was older than two months by that clock was deleted."""
    count(book, clock, 5)
    clock.now += 10 * 365 * DAY_S
    count(book, clock, 1)
    clock.now -= 10 * 365 * DAY_S
    assert count(book, clock, 1).report().frames == 6


def test_so_many_quarters_are_kept(book: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "KEEP_SLOTS", 4)
    for _ in range(6):
        count(book, clock, 1)
        clock.now += counts.SLOT_S
    assert book.value("SELECT count(DISTINCT slot) FROM counts") == 4


def test_a_kill_takes_no_part_and_no_label_from_the_shift(images: Path, bundle: Bundle) -> None:
    """Up to five seconds of them were lost."""
    file = site_file(images, bundle)
    data_dir, told = load_site(file).data_dir, list[dict[str, int]]()
    for _ in range(3):
        with process(file) as (child, ready):
            wait_for(lambda: call(ready["page"], "api/shift")["parts"] == COUNT * (len(told) + 1), 60.0)
            wait_for(lambda: len(list(read_history(data_dir))) == COUNT * (len(told) + 1), 60.0)
            if not told:  # which writes all the others, too
                sample = call(ready["page"], "api/samples?limit=1")[0]["sample"]
                call(ready["page"], "api/labels", {"sample": sample, "class_name": "pit", "operator": "ann"})
            told.append(call(ready["page"], "api/shift"))
            child.send_signal(signal.SIGKILL)
            child.wait(60)
    rejects = sum(row.verdict == "reject" for row in read_history(data_dir))
    assert [(each["parts"], each["labels"]) for each in told] == [(COUNT * n, 1) for n in (1, 2, 3)]
    assert told[-1]["rejects"] == rejects


def test_what_is_counted_from_the_history_is_counted_once(book: Database, clock: Clock, tmp_path: Path) -> None:
    history = History(tmp_path, 100, "a")
    counter = ShiftCounter(book, clock, is_right=lambda: None)
    counter.begin("a", history.behind)
    for number in range(1, 6):
        part = dataclasses.replace(part_of(number, Verdict.REJECT), captured_utc=clock.now)
        history.send(part)
        counter.part(part)
        if number == 2:
            counter.flush()
    history.close()  # killed: three of them are not written there
    for run in ("b", "c"):
        history = History(tmp_path, 100, run)
        counter = ShiftCounter(book, clock, is_right=lambda: None)
        counter.begin(run, history.behind)
        history.close()
        assert (counter.report().parts, counter.report().rejects) == (5, 5)
