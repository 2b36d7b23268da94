"""Quality by lot: a lot is given with a part, kept with its pictures, and told apart in the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.trigger import MAX_LOT_CHARS
from tests.pages import ASK_ALL, Device, serving, write_stream
from tests.tiny import class_id, picture, tiny_bundle

PARTS = 4
"""Of each lot: more than a slice needs."""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("lots")
    stream = write_stream(folder / "stream", {"good": 1})
    with serving(folder / "data", stream, tiny_bundle(folder / "bundle"), ASK_ALL) as device:
        for i in range(2 * PARTS):
            asked = {"keep": "true", "part": f"p{i}", "lot": f"B{i % 2}"}
            seen = device.http.post("/api/inspect", params=asked, content=picture("pit", 300 + i)).json()
            said = {"sample": seen["sample"], "class_id": class_id("pit").hex()}
            device.http.post("/api/labels", json=said).raise_for_status()
        device.settle()
        yield device


def test_each_lot_has_its_share_of_right_decisions(device: Device) -> None:
    slices = device.http.get("/api/quality").json()["slices"]
    lots = {each["name"]: each["right"] for each in slices if each["kind"] == "lot"}
    assert {name: (right["samples"], right["groups"]) for name, right in lots.items()} == {
        "B0": (PARTS, PARTS),
        "B1": (PARTS, PARTS),
    }
    assert "\nlot,B1,right," in device.http.get("/api/quality.csv").text.replace("\r", "")


@pytest.mark.parametrize(("language", "word"), [("en", "lot"), ("de", "Charge"), ("zh", "批次")])
def test_the_page_names_lots_in_its_language(device: Device, language: str, word: str) -> None:
    page = device.http.get("/quality", headers={"Cookie": f"headway-lang={language}"}).text
    assert f'<span class="quiet">{word}</span> B0' in page


def test_a_sample_says_its_lot_and_keeps_it_when_it_is_seen_again(device: Device) -> None:
    newest = device.http.get("/api/samples", params={"limit": 1}).json()[0]
    assert newest["lot"] == "B1"
    device.http.post("/api/inspect", params={"keep": "true"}, content=picture("pit", 300 + 2 * PARTS - 1))
    assert device.http.get(f"/api/samples/{newest['sample']}").json()["lot"] == "B1"


def test_a_lot_that_is_too_long_is_refused(device: Device) -> None:
    asked = {"keep": "true", "lot": "x" * (MAX_LOT_CHARS + 1)}
    answer = device.http.post("/api/inspect", params=asked, content=picture("pit", 1))
    assert answer.status_code == 422
    assert "lot" in answer.json()["error"]


def test_parts_without_a_lot_are_in_none(tmp_path: Path) -> None:
    stream = write_stream(tmp_path / "stream", {"pit": PARTS})
    with serving(tmp_path / "data", stream, tiny_bundle(tmp_path / "bundle"), ASK_ALL) as device:
        ids = [sample.sample_id for sample in device.station.store.samples.queue(PARTS)]
        device.station.label_all([(each, class_id("pit")) for each in ids], "ann")
        device.settle()
        assert [s for s in device.http.get("/api/quality").json()["slices"] if s["kind"] == "lot"] == []
