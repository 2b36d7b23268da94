"""Whoever stays after the demo finds questions waiting, also on a device that has learned well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdk.demo.plant import DemoFailed
from sdk.demo.waiting import MAX_SHOWN, WAITING, leave_waiting
from tests.pages import Device, serving, write_stream
from tests.tiny import picture, tiny_bundle


class Shown:
    """A device's interface, as the demo uses it, that counts what it is shown."""

    name = "a"

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.shown = 0

    def get(self, path: str, **query: str | int) -> Any:
        return self._http.get(path, params=query).raise_for_status().json()

    def show(self, image: bytes) -> None:
        self.shown += 1
        self._http.post("/api/inspect", params={"keep": "true"}, content=image).raise_for_status()


class Sure(Shown):
    """A device that never asks."""

    def get(self, path: str, **query: str | int) -> Any:
        del path, query
        return []

    def show(self, image: bytes) -> None:
        del image
        self.shown += 1


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device that has seen one good part, and asks about nothing."""
    stream = write_stream(tmp_path / "stream", {"good": 1})
    with serving(tmp_path / "data", stream, tiny_bundle(tmp_path / "bundle")) as found:
        yield found


def test_a_device_that_knows_its_parts_is_shown_what_nobody_expected(device: Device) -> None:
    asked = Shown(device.http)
    waiting = leave_waiting(asked, [picture("good", 700 + i) for i in range(12)])
    assert waiting >= WAITING
    assert len(device.http.get("/api/queue", params={"limit": 200}).json()) == waiting
    assert asked.shown > 0


def test_nothing_is_shown_where_enough_waits(device: Device) -> None:
    asked = Shown(device.http)
    leave_waiting(asked, [picture("rings", i) for i in range(40)])
    before = asked.shown
    leave_waiting(asked, [picture("rings", 90)])
    assert asked.shown == before


def test_a_device_that_asks_about_nothing_ends_the_demo_with_words(device: Device) -> None:
    sure = Sure(device.http)
    with pytest.raises(DemoFailed, match="device a asks about 0 pictures only"):
        leave_waiting(sure, (picture("good", i) for i in range(60)))
    assert sure.shown == MAX_SHOWN


def test_too_few_pictures_are_said_too(device: Device) -> None:
    with pytest.raises(DemoFailed) as caught:
        leave_waiting(Sure(device.http), [])
    assert "other kinds" in caught.value.hint
