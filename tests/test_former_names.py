"""What was labelled under an earlier release's classes is told by their names."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from device_agent.former_names import KEPT_AS, MAX_NAMES, FormerNames
from device_agent.limits import StoreLimits
from device_agent.store import Store
from tests.pages import serving, write_stream
from tests.tiny import class_id, tiny_bundle


def test_a_release_without_a_class_leaves_its_labels_their_name(tmp_path: Path) -> None:
    before = tiny_bundle(tmp_path / "before", classes=("good", "pit"))
    after = tiny_bundle(tmp_path / "after", classes=("good", "scratch"))
    stream = write_stream(tmp_path / "stream", {"rings": 2})
    with serving(tmp_path / "data", stream, before) as device:
        sample = device.http.get("/api/samples").json()[0]["sample"]
        body = {"sample": sample, "class_id": class_id("pit").hex()}
        device.http.post("/api/labels", json=body).raise_for_status()
    with serving(tmp_path / "data", stream, after) as device:
        (row,) = device.http.get("/api/labels").json()
        assert row["label"] == "pit"
        assert [each["name"] for each in device.http.get("/api/classes").json()].count("pit") == 0


def test_names_are_of_the_newest_release_and_so_many(tmp_path: Path) -> None:
    def number(i: int) -> bytes:
        return i.to_bytes(16, "big")

    with Store.open(tmp_path, "line-1", limits=StoreLimits()) as store:
        FormerNames(store).note({number(i): f"class {i}" for i in range(MAX_NAMES)})
        FormerNames(store).note({number(1): "one", number(MAX_NAMES): "new"})
        kept = FormerNames(store).names
    assert len(kept) == MAX_NAMES
    assert (kept[number(1)], kept[number(MAX_NAMES)], number(0) in kept) == ("one", "new", False)


@pytest.mark.parametrize("value", [b"", b"\xff", msgspec.msgpack.encode({b"a" * 16: 1}), b"\x81\xc4\x01a\xa1\xff"])
def test_names_that_are_none_stop_no_start(tmp_path: Path, value: bytes) -> None:
    with Store.open(tmp_path, "line-1", limits=StoreLimits()) as store:
        store.keep(KEPT_AS, value)
        assert FormerNames(store).names == {}
