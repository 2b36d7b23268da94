"""Quality by camera: each of a station's cameras is told apart, whatever it is and however its frames are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from device_agent.agent import Agent
from device_agent.camera import Shot
from device_agent.site_file import load_site
from sdk.bundle import Bundle
from sdk.images import decode, sample_id
from tests.pages import ASK_ALL, Device, serving, write_stream
from tests.simulators import wait_for
from tests.test_agent import bundle, running
from tests.tiny import class_id, picture

__all__ = ["bundle"]

PARTS = 4
"""Of each camera: more than a slice needs."""


@pytest.fixture
def agent(tmp_path: Path, bundle: Bundle) -> Iterator[Agent]:
    """A station whose cameras are two folders that another program fills: a file's name says nothing of either."""
    cameras = ""
    for name in ("top", "side"):
        (tmp_path / name).mkdir()
        cameras += f'[[camera]]\nname = "{name}"\nkind = "watch"\npath = "{name}"\npoll_s = 0.02\n'
    file = tmp_path / "site.toml"
    file.write_text(
        f'device = "line-1"\ndata_dir = "data"\nbundle = "{bundle.path}"\n{cameras}[page]\nport = 0\n'
        "[queue]\nask_below = 1.0\nspot_check_share = 1.0\n"
    )
    with Agent(load_site(file)) as found, running(found):
        yield found


def by_camera(slices: Sequence[dict[str, object]]) -> list[object]:
    return [each["name"] for each in slices if each["kind"] == "camera"]


def test_the_cameras_of_a_station_are_told_apart_by_name(agent: Agent, tmp_path: Path) -> None:
    for camera in ("top", "side"):
        for i in range(PARTS):
            number = 300 + i + 50 * (camera == "side")
            (tmp_path / camera / f".{i}").write_bytes(picture("pit", number))
            (tmp_path / camera / f".{i}").rename(tmp_path / camera / f"{number}.png")
    wait_for(lambda: agent.state().frames == 2 * PARTS)
    with httpx.Client(base_url=agent.page_url, timeout=60) as http:
        samples = http.get("/api/samples").raise_for_status().json()
        together = {"samples": [each["sample"] for each in samples], "class_id": class_id("pit").hex()}
        http.post("/api/labels", json=together).raise_for_status()
        wait_for(lambda: by_camera(http.get("/api/quality").json()["slices"]) == ["side", "top"])
        http.post("/api/inspect", params={"keep": "true"}, content=picture("pit", 300)).raise_for_status()
        kept = agent.station.store.samples.get(sample_id(picture("pit", 300)))
        assert kept is not None
        assert kept.camera == "top", "also where the same picture is sent in"
        assert ">camera</span> top" in http.get("/quality", headers={"Cookie": "headway-lang=en"}).text


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle) -> Iterator[Device]:
    with serving(tmp_path / "data", write_stream(tmp_path / "stream", {"good": 1}), bundle, ASK_ALL) as found:
        yield found


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        (["rtsp://192.0.2.7", "rtsp://192.0.2.8"], ["rtsp://192.0.2.7", "rtsp://192.0.2.8"]),
        (["top, tile 1 of 2", "side, tile 2 of 2"], ["side", "top"]),
        (["top, tile 1 of 2", "top, tile 2 of 2"], []),  # it is one camera
        (["a/1.png", "b/2.png, tile 3 of 4"], ["a", "b"]),
        (["1.png", "2.png"], []),
    ],
)
def test_what_was_kept_without_a_camera_is_told_apart_by_its_source(
    device: Device, sources: list[str], told: list[str]
) -> None:
    """As an earlier version kept it, or by the folders of a station with one camera."""
    for i in range(2 * PARTS):
        data = picture("pit", 300 + i)
        device.station.see(Shot(decode(data), 0.0, f"line-1/p{i}", sources[i % 2], data))
        device.station.label(sample_id(data), class_id("pit"), "ann")
    device.settle()
    assert by_camera(device.http.get("/api/quality").json()["slices"]) == told
