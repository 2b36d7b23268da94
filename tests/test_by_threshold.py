"""Where a threshold rejects what is shown as a good class, everybody who is told of the part is told why."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from device_agent.camera import open_camera
from device_agent.config import FolderCamera
from device_agent.heads import Solved
from device_agent.history import History, read_history, write_csv
from device_agent.parts import Finding, Ledger, Part
from device_agent.report import NO_THRESHOLD, UNSCORED
from device_agent.runtime import open_runtime
from device_agent.trials import Trials
from sdk.bundle import Bundle
from sdk.wire import Verdict
from tests.pages import Device, running, screen, serving, wait_for, write_stream
from tests.tiny import class_id, picture, tiny_bundle

GOOD = ["good", "pit"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("threshold") / "bundle")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("threshold") / "stream", {"pit": 40})


@contextlib.contextmanager
def station(folder: Path, stream: Path, bundle: Bundle) -> Iterator[Device]:
    """Run a station that lets no defect pass: some pits, which are good here, are too likely a scratch."""
    with serving(folder, stream, bundle) as found:
        chosen = {"good": [class_id(n).hex() for n in GOOD], "escape_rate": 0.0, "by_threshold": True}
        found.http.put("/api/operating", json=chosen).raise_for_status()
        yield found


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle, stream: Path) -> Iterator[Device]:
    with station(tmp_path / "data", stream, bundle) as found:
        yield found


def decided(device: Device, stream: Path) -> list[Part]:
    """Return the verdicts of the stream's parts."""
    ledger, parts = Ledger(("good",)), list[Part]()
    for shot in open_camera(FolderCamera(path=stream), "line-1").shots(threading.Event()):
        decision = device.station.see(shot).decision
        ledger.expect(shot.group, "", shot.captured_utc, shot.at_s, math.inf)
        parts += ledger.decided(shot.group, 0, [Finding(shot, decision)], time.monotonic())
    return parts


def odd(parts: list[Part]) -> list[Part]:
    """Return those that go out though they show a good class."""
    return [part for part in parts if part.verdict is Verdict.REJECT and part.result().decision in GOOD]


def test_the_reason_goes_to_outputs_history_and_csv(device: Device, stream: Path, tmp_path: Path) -> None:
    parts = decided(device, stream)
    assert odd(parts), "the control: the threshold is low enough to reject one"
    history = History(tmp_path / "history", 100)
    history.send_all(parts)
    history.close()
    out = io.StringIO()
    write_csv(read_history(tmp_path / "history"), out)
    for part, line in zip(parts, csv.DictReader(io.StringIO(out.getvalue())), strict=True):
        assert line["reason"] == part.reason == part.result().reason
        assert part.finding is not None
        assert part.finding.decision.defect == pytest.approx(float(line["defect"]), rel=1e-5)
    assert all(re.fullmatch(r"defect \d+ %, shown pit", part.reason) for part in odd(parts))


def test_a_sample_says_that_it_was_rejected_also_after_a_restart(
    stream: Path, tmp_path: Path, bundle: Bundle
) -> None:
    with station(tmp_path / "data", stream, bundle) as device:
        rejected = {part.result().sample: part.finding for part in odd(decided(device, stream))}
        assert rejected
        said = device.http.get("/api/samples?limit=200").raise_for_status().json()
    for sample in said:
        finding = rejected.get(sample["sample"])
        assert sample["good"] is (not sample["rejected"])
        assert sample["by_threshold"] is (finding is not None)
        if finding is not None:
            assert sample["defect"] == finding.decision.defect
            assert (sample["decision"], sample["good"], sample["rejected"]) == ("pit", False, True)
    with running(tmp_path / "data", stream) as again:
        names = ("sample", "good", "defect", "rejected")
        still = again.http.get("/api/samples?limit=200").raise_for_status().json()
        assert [[each[n] for n in names] for each in still] == [[each[n] for n in names] for each in said]


@contextlib.contextmanager
def unscored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Heads that begin to serve are not scored until this ends."""
    prepare, may = Trials._prepare, threading.Event()

    def held(self: Trials, confirmed: Solved) -> None:
        may.wait()
        prepare(self, confirmed)

    with monkeypatch.context() as patch:
        patch.setattr(Trials, "_prepare", held)
        try:
            yield
        finally:
            may.set()


def threshold(device: Device) -> float | None:
    accepting = device.station.accepting()
    assert accepting is not None
    return accepting.threshold


def test_a_start_goes_by_the_threshold_of_before_until_its_head_is_scored(
    stream: Path, tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with station(tmp_path / "data", stream, bundle) as device:
        wait_for(lambda: device.station.require().learner.reference is not None)
        found = threshold(device)
        rejected = {part.result().sample for part in odd(decided(device, stream))}
        assert found is not None
        assert rejected
    with running(tmp_path / "data", stream) as again, unscored(monkeypatch):
        again.station.serve(bundle, None, open_runtime(bundle, None))
        assert again.station.require().learner.reference is None
        assert threshold(again) == found
        assert {part.result().sample for part in odd(decided(again, stream))} == rejected
        assert again.state()["faults"] == []


def test_a_new_release_passes_nothing_until_its_head_is_scored(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_bundle(tmp_path / "other", per_class=14)
    wait_for(lambda: device.station.require().learner.reference is not None)
    assert other.digest() != device.station.require().digest
    with unscored(monkeypatch):
        device.station.serve(other, None, open_runtime(other, None))
        decision = device.station.inspect(picture("good", 700)).decision
        assert (decision.shown, decision.rejected) == ("good", True)
        assert decision.words == "head not scored yet, shown good"
        assert UNSCORED in device.state()["faults"]
    wait_for(lambda: UNSCORED not in device.state()["faults"])
    decision = device.station.inspect(picture("good", 700)).decision
    assert (decision.shown, decision.rejected, decision.words) == ("good", False, "good")


def test_a_release_of_too_few_parts_goes_by_the_class_and_says_so(device: Device, tmp_path: Path) -> None:
    few = tiny_bundle(tmp_path / "few", classes=("good", "scratch"), per_class=2)
    device.station.serve(few, None, open_runtime(few, None))
    wait_for(lambda: NO_THRESHOLD in device.state()["faults"])
    decision = device.station.inspect(picture("good", 700)).decision
    assert (decision.shown, decision.rejected) == ("good", False)


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["wide", "phone"])
def test_the_page_does_not_tick_what_went_out(
    device: Device, stream: Path, browser: Browser, size: tuple[int, int]
) -> None:
    rejected = {part.result().sample for part in odd(decided(device, stream))}
    newest = device.http.get("/api/samples").raise_for_status().json()
    sample = next(each for each in newest if each["sample"] in rejected)
    with screen(browser, device.url, viewport={"width": size[0], "height": size[1]}) as now:
        tile = now.page.locator(f'[data-sample="{sample["sample"]}"]')
        expect(tile).to_have_class("part bad")
        expect(tile).to_contain_text(f"rejected: defect {100 * sample['defect']:.0f}\u00a0%")
