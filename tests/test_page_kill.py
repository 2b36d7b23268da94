"""Power lost between a tap and "saved": the label is there, whole, or asked about again. Never half of it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from device_agent.runtime import open_runtime
from device_agent.sample import SampleStatus
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.labels import CodeRecord, Label
from tests.pages import ASK_ALL, running, serving, write_stream
from tests.processes import Doomed
from tests.soak import times
from tests.tiny import class_id, tiny_bundle

KILLS: Final = times(6, 100)
"""`make soak` and `python -m benchmarks.page` do it a hundred times."""
LATEST: Final = 1.6
"""Kills fall up to so many times what a label takes here, now: before, within and after it."""
AIM: Final = 1.2
"""What it takes is guessed again after each kill: longer where it fell before the write, shorter where after."""
MAX_TAKES_S: Final = 5.0


def serve_page(folder: Path, pictures: Path, bundle: Path, tell: Callable[[Any], None]) -> None:
    """Serve a device's page until killed."""
    with running(folder, pictures, ASK_ALL) as device:
        opened = Bundle.open(bundle)
        device.station.serve(opened, None, open_runtime(opened, None))
        tell(device.url)
        threading.Event().wait()


class Killed:
    """A device whose power is lost while labels are being saved.

    Args:
        folder: For its data.
        counts: Pictures of each class.
    """

    def __init__(self, folder: Path, counts: dict[str, int]) -> None:
        self.bundle = tiny_bundle(folder / "bundle").path
        self.pictures = write_stream(folder / "stream", counts)
        self.data = folder / "data"
        self.acknowledged: dict[bytes, int] = {}
        self.lost_at: dict[str, int] = {"before": 0, "within": 0, "after": 0}
        with serving(self.data, self.pictures, Bundle.open(self.bundle), ASK_ALL):
            pass
        self.takes_s = self._label_takes_s()

    def _label_takes_s(self) -> float:
        """Label twice, as `once` does, and return how long the quicker one took."""
        process = Doomed(serve_page, self.data, self.pictures, self.bundle)
        url = process.told()
        took = []
        for _ in range(2):
            body = self._question(url)
            began_s = time.monotonic()
            httpx.post(f"{url}api/labels", json=body).raise_for_status()
            took.append(time.monotonic() - began_s)
        process.kill()
        return min(took)

    def _question(self, url: str) -> dict[str, Any]:
        queue = httpx.get(f"{url}api/queue", params={"limit": 200}, timeout=60).raise_for_status().json()
        return {"samples": [each["sample"] for each in queue[:2]], "class_id": class_id("pit").hex()}

    def once(self, share: float) -> None:
        """Label two pictures, lose power within this share of what it can take, and look at what is on disk."""
        delay_s = share * LATEST * self.takes_s
        process = Doomed(serve_page, self.data, self.pictures, self.bundle)
        url = process.told()
        body = self._question(url)
        samples = [str(each) for each in body["samples"]]
        answers: list[int] = []

        def tap() -> None:
            try:
                answer = httpx.post(f"{url}api/labels", json=body)
            except httpx.TransportError:
                return
            answers.append(answer.status_code)

        finger = threading.Thread(target=tap)
        finger.start()
        time.sleep(delay_s)  # where the kill falls, not something to wait for
        process.kill()
        finger.join()
        self._look([bytes.fromhex(each) for each in samples], saved=answers == [201])

    def _look(self, samples: list[bytes], *, saved: bool) -> None:
        with Store.open(self.data, "line-1") as store:
            bodies = [record.entry.body for record in store.log.records()]
            labelled = {body.sample for body in bodies if isinstance(body, Label)}
            coded = {body.sample for body in bodies if isinstance(body, CodeRecord)}
            there = [sample in labelled for sample in samples]
            assert all(there) or not any(there), "half of a group"
            if saved:
                assert all(there), "said to be saved, and is not"
            for sample in samples:
                self.acknowledged.setdefault(sample, int(saved)) if all(there) else None
                kept = store.samples.get(sample)
                assert kept is not None
                expected = SampleStatus.LABELLED if sample in labelled else SampleStatus.QUEUED
                assert kept.status is expected
                assert (sample in labelled) == (sample in coded), "a label without its code"
                assert store.samples.image(sample) is not None
            assert set(self.acknowledged) <= labelled, "a label that was there is gone"
            entries = [record.entry.seq for record in store.log.records()]
            assert entries == list(range(1, len(entries) + 1))
        where = "after" if saved else "within" if any(there) else "before"
        self.lost_at[where] += 1
        self.takes_s = min(MAX_TAKES_S, self.takes_s * {"before": AIM, "within": 1.0, "after": 1 / AIM}[where])


def test_a_label_is_there_or_asked_again_when_power_is_lost(tmp_path: Path) -> None:
    device = Killed(tmp_path, {"rings": 2 * KILLS, "pit": 8})
    chance = random.Random(7)
    for _ in range(KILLS):
        device.once(chance.random())
    print(device.lost_at)  # seen by make soak
    assert sum(device.lost_at.values()) == KILLS


def test_the_check_would_notice_a_label_without_its_code(tmp_path: Path) -> None:
    """Sabotage: what must never happen, made to happen."""
    device = Killed(tmp_path, {"rings": 6, "pit": 4})
    with Store.open(device.data, "line-1") as store:
        samples = [each.sample_id for each in store.samples.queue(2)]
        store.log.append([Label(samples[0], class_id("pit"), "ann")])
    with pytest.raises(AssertionError, match="half of a group"):
        device._look(samples, saved=False)
    with pytest.raises(AssertionError, match="a label without its code"):
        device._look(samples[:1], saved=True)
