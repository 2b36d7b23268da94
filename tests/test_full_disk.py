"""T15: a real file system that fills up or turns read-only under a real store: labels refused visibly, or kept.

A small tmpfs is mounted for each test, which takes root; elsewhere these tests skip, and the tests of `test_store`
with the kernel's limit on file sizes stand for them.
"""

from __future__ import annotations

import os
import threading
import urllib.error
from pathlib import Path

import pytest

from device_agent.agent import Agent
from device_agent.camera import open_camera
from device_agent.config import FolderCamera, PageSettings, Site, StoreSettings
from device_agent.history import History, read_history
from device_agent.limits import StoreLimits
from device_agent.report import station_faults
from device_agent.room import BALLAST_NAME
from device_agent.runtime import open_runtime
from device_agent.site_file import load_site
from device_agent.station import Station
from device_agent.store import STORE_NAME, Store, check_store
from sdk.bundle import Bundle
from sdk.errors import StoreFull
from sdk.labels import Record
from tests.builders import picture
from tests.commands import headway
from tests.disks import fill, mount, small
from tests.simulators import wait_for
from tests.test_agent import COUNT, bundle, call, images, running
from tests.test_outputs import part_of
from tests.test_store import image_of, label, sample_of, store_of

__all__ = ["bundle", "images", "small"]

MIB = 1024**2
SQLITE_OPENS = 32 * 1024
"""What SQLite maps beside a file, without which it does not even read it."""
LIMITS = StoreLimits(reserve_bytes=0, ballast_bytes=MIB)


def label_until_refused(store: Store, first: int) -> list[Record]:
    """Label until there is no more room; return the entries that were acknowledged."""
    taken: list[Record] = []
    with pytest.raises(StoreFull, match="nothing can be stored"):  # noqa: PT012
        for number in range(first, first + 100_000):
            taken += label(store, sample_of(number))
    return taken


def test_the_ballast_is_given_up_for_labels_and_made_again_when_there_is_room(small: Path) -> None:
    with Store.open(small / "data", "line-1", limits=LIMITS) as store:
        ballast = small / "data" / BALLAST_NAME
        assert ballast.stat().st_size == MIB
        hog = fill(small)
        taken = label_until_refused(store, 1000)
        assert len(taken) > 300, "the ballast held hundreds of labels"
        assert not ballast.exists()
        assert list(store.log.records()) == taken, "all that was acknowledged, and nothing else"
        hog.unlink()
        taken += label(store, sample_of(1))
        store.samples.put(sample_of(2), image_of(2))
        assert ballast.stat().st_size == MIB
        assert not store.ballast_given_up
    with Store.open(small / "data", "line-1", limits=LIMITS) as store:
        assert list(store.log.records()) == taken


def test_without_ballast_the_first_label_on_a_full_disk_is_refused(small: Path) -> None:
    """The control: it is the ballast that the labels above went to."""
    with Store.open(small / "data", "line-1", limits=StoreLimits(reserve_bytes=0)) as store:
        fill(small)
        assert len(label_until_refused(store, 1000)) < 20


def test_a_disk_that_turns_read_only_keeps_what_was_acknowledged(small: Path) -> None:
    with Store.open(small / "data", "line-1", limits=LIMITS) as store:
        taken = label(store, sample_of(1))
    assert mount("-o", "remount,ro", str(small))
    with pytest.raises(StoreFull, match="nothing can be stored"):
        Store.open(small / "data", "line-1", limits=LIMITS)
    assert check_store(small / "data" / "store.sqlite3", whole=False).entries == len(taken)
    assert mount("-o", "remount,rw", str(small))
    with Store.open(small / "data", "line-1", limits=LIMITS) as store:
        taken += label(store, sample_of(2))
        assert list(store.log.records()) == taken


def test_on_a_full_disk_an_output_is_given_what_it_lacks_all_the_same(small: Path) -> None:
    history = History(small, keep_parts=10, run="a")
    history.resume(["mes"], newest=10)
    history.send(part_of(1, name="4711"))
    history.close()
    hog = fill(small)
    os.truncate(hog, hog.stat().st_size - SQLITE_OPENS)
    history = History(small, keep_parts=10, run="b")
    found = history.resume(["mes", "new"], newest=10)
    assert ([part.name for part in found["mes"]], found["new"]) == (["4711"], [])
    hog.unlink()
    history.delivered("new", part_of(1))
    history.send_all([part_of(1), part_of(2, name="4712")])
    history.close()
    history = History(small, keep_parts=10, run="c")
    assert [part.name for part in history.resume(["new"], newest=10)["new"]] == ["4712"]
    history.close()


def test_the_history_is_read_where_nobody_may_write(small: Path) -> None:
    history = History(small, keep_parts=10)
    history.send(part_of(1, name="4711"))
    history.close()
    assert mount("-o", "remount,ro", str(small))
    assert [row.part for row in read_history(small)] == ["4711"]


def test_samples_that_are_not_kept_are_a_fault_until_one_is_again(
    small: Path, tmp_path: Path, bundle: Bundle
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(picture("scratch", 700 + i))
    shots = list(open_camera(FolderCamera(path=folder), "line-1").shots(threading.Event()))
    with Store.open(small / "data", "line-1", limits=StoreLimits(reserve_bytes=MIB, ballast_bytes=0)) as store:
        station = Station(store)
        station.serve(bundle, None, open_runtime(bundle, None))

        def faults() -> str:
            return " ".join(station_faults(station, None, (), ()))

        station.see(shots[0])
        assert "could not be stored" not in faults()
        hog = fill(small)
        station.see(shots[1])
        assert "1 samples could not be stored" in faults()
        hog.unlink()
        station.see(shots[2])
        assert "could not be stored" not in faults()
        assert station.counts.unstored == 1, "and it stays counted"
        station.close()


def test_inspection_goes_on_while_the_page_refuses_labels_with_507(
    small: Path, images: Path, bundle: Bundle
) -> None:
    site = Site(
        device="line-1",
        camera=FolderCamera(path=images, loop=True, rate_fps=100.0),
        data_dir=small / "data",
        bundle=bundle.path,
        page=PageSettings(port=0),
        store=StoreSettings(ballast_mib=0),
    )
    with Agent(site) as agent, running(agent) as ready:
        page = ready[0]["page"]
        wait_for(lambda: agent.state().frames >= COUNT)
        hog = fill(small)
        # Samples are not kept below 64 MiB, so none can be labelled here; a new class goes to the same log.
        refused = 0
        for number in range(2000):
            try:
                call(page, "api/classes", {"name": f"class {number}"})
            except urllib.error.HTTPError as error:
                refused = error.code
                break
        assert refused == 507
        seen = agent.state().frames
        wait_for(lambda: agent.state().frames > seen + COUNT)
        assert any("could not be stored" in fault for fault in agent.state().faults)
        before = agent.store.log.length()
        hog.unlink()
        assert call(page, "api/classes", {"name": "again"})["saved"] is True
        assert agent.store.log.length() == before + 1
        assert agent.state().errors == 0


def test_a_store_without_room_for_a_copy_of_its_earlier_schema_opens_all_the_same(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_of(1, small / "data")
    Store.open(small / "data", "line-1", limits=LIMITS).close()
    told, _ = caplog.messages
    assert told.endswith("is not copied before its schema changes: it has 0 MiB, and 0 MiB are free")
    assert not list((small / "data").glob(f"*{STORE_NAME}.*"))


def test_init_that_cannot_write_leaves_the_settings_that_were_there(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = small / "site.toml"
    file.write_text("# years of care")
    file.chmod(0o640)
    hog = fill(small)
    assert "No space left" in headway(capsys, "agent", "init", file, "--force").err
    assert file.read_text() == "# years of care"
    assert "No space left" in headway(capsys, "agent", "init", small / "new.toml").err
    assert not (small / "new.toml").exists(), "the next try is not told that it exists"
    hog.unlink()
    assert headway(capsys, "agent", "init", file, "--force").code == 0
    assert (load_site(file).device, file.stat().st_mode & 0o777) == ("line-1", 0o640)
