"""A full disk of the fleet's is said wherever somebody looks, and until something is stored again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sdk.fleet.broker import Mosquitto
from sdk.fleet.metrics import FleetMetrics
from sdk.fleet.page.app import HOST, make_app
from sdk.fleet.page.view import FleetView
from sdk.fleet.refusal import REFUSAL_NAME
from sdk.fleet.store import FleetStore
from tests.builders import make_bundle
from tests.commands import headway
from tests.disks import fill, small
from tests.simulators import LiveDevice, wait_for
from tests.test_database_away import PATIENCE_S, Served, full

__all__ = ["small"]


def said(store: FleetStore, capsys: pytest.CaptureFixture[str]) -> dict[str, bool]:
    """Return whether each of those that show a fleet says that it stores nothing."""
    client = TestClient(make_app(FleetView(store)), base_url=f"http://{HOST}")
    told = json.loads(headway(capsys, "fleet", "devices", "--dir", store.directory, "--json").out)["refusal"]
    api = client.get("/api/fleet").json()["refusal"]
    assert (told is None) == (api is None)
    if told is not None:
        assert api == {**told, "ago": api["ago"]}
        assert "disk is full" in told["error"]
        assert "Free some space" in told["hint"]
    return {
        "json": told is not None,
        "devices": "stores nothing" in headway(capsys, "fleet", "devices", "--dir", store.directory).out,
        "page": "stores nothing" in client.get("/part/devices").text,
        "metrics": FleetMetrics(store).registry.get_sample_value("headway_fleet_database_writable") == 0,
    }


@pytest.mark.broker
def test_a_full_disk_is_said_by_all_who_show_the_fleet_until_a_label_is_stored(
    mosquitto: Mosquitto,
    small: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with (
        FleetStore(small / "fleet") as store,
        Served(store, mosquitto) as served,
        LiveDevice(mosquitto.settings, "a") as device,
    ):
        device.label(1)
        wait_for(lambda: not device.outbox, PATIENCE_S, "the control")
        assert set(said(store, capsys).values()) == {False}
        hog = fill(small)
        device.label(2)
        wait_for(lambda: served.told("database"), PATIENCE_S, "the refusal")
        assert set(said(store, capsys).values()) == {True}
        with store.write() as ledger:  # of nothing: a full disk takes that
            ledger.channels()
        assert set(said(store, capsys).values()) == {True}
        hog.unlink()
        wait_for(lambda: not device.outbox, PATIENCE_S, "the label")
        wait_for(lambda: store.refusal() is None, PATIENCE_S, "its end")
        assert set(said(store, capsys).values()) == {False}


@pytest.mark.broker
def test_what_a_service_that_was_killed_has_left_is_said_of_no_other(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """The file stays as it was; without a service nobody knows, and a new one begins anew."""
    directory = tmp_path / "fleet"
    with (
        FleetStore(directory) as store,
        Served(store, mosquitto) as served,
        LiveDevice(mosquitto.settings, "a") as device,
    ):
        device.label(1)
        wait_for(lambda: not device.outbox, PATIENCE_S, "the control")
        with full(directory):
            device.label(2)
            wait_for(lambda: served.told("database"), PATIENCE_S, "the refusal")
            left = (directory / REFUSAL_NAME).read_bytes()
            with FleetStore(directory) as other:
                assert other.refusal() is not None, "the control"
    (directory / REFUSAL_NAME).write_bytes(left)
    with FleetStore(directory) as store, FleetStore(directory) as other:
        assert (store.refusal(), other.refusal()) == (None, None)
        with store.serving():
            assert (store.refusal(), other.refusal()) == (None, None)


@pytest.mark.parametrize("content", [b"", b" " * 4096, b"{", b'{"since_utc": 1}', b"\xff\xfe"])
def test_a_file_that_says_nothing_is_no_refusal(tmp_path: Path, content: bytes) -> None:
    with FleetStore(tmp_path) as store:
        (tmp_path / REFUSAL_NAME).write_bytes(content)
        assert store.refusal() is None


def test_a_release_that_finds_no_room_is_told_of_as_one_that_is_published(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with FleetStore(small / "fleet") as store, store.read() as ledger:
        assert ledger.channels() == []  # SQLite has the files that it needs, as while a service runs
        fill(small)
        refused = headway(capsys, "fleet", "publish", bundle.path, "--dir", small / "fleet")
    assert refused.code == 2
    assert "Free some space on that disk" in refused.err
    assert "download" not in refused.err
