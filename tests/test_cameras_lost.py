"""A station's camera is lost, or sees nothing: state, doctor, metrics and page say which, until it is well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from device_agent.agent import Agent
from device_agent.doctor import examine
from device_agent.site_file import load_site
from sdk.bundle import Bundle
from sdk.finding import Level
from tests.commands import headway
from tests.pages import screen
from tests.simulators import wait_for
from tests.test_agent import bundle, running
from tests.test_doctor import GOOD
from tests.test_observe import scraped
from tests.tiny import picture

__all__ = ["bundle"]

LOST = "camera side is lost"
BLACK = "camera top: the picture is black"


@pytest.fixture
def site_file(tmp_path: Path, bundle: Bundle) -> Path:
    """A station whose cameras are two folders that another program fills."""
    for name in ("top", "side"):
        (tmp_path / name).mkdir()
    file = tmp_path / "site.toml"
    file.write_text(
        f'device = "line-1"\ndata_dir = "data"\nbundle = "{bundle.path}"\n'
        '[[camera]]\nname = "top"\nkind = "watch"\npath = "top"\npoll_s = 0.02\n'
        '[[camera]]\nname = "side"\nkind = "watch"\npath = "side"\npoll_s = 0.02\n'
        "[page]\nport = 0\n[metrics]\nport = 0\n"
    )
    return file


@pytest.fixture
def agent(site_file: Path) -> Iterator[Agent]:
    with Agent(load_site(site_file)) as found, running(found):
        wait_for(lambda: [each.state for each in found.state().cameras] == ["live", "live"])
        yield found


def lose(folder: Path) -> Path:
    return folder.rename(folder.with_name("gone"))


def test_a_camera_lost_beside_another_is_a_fault_until_it_is_back(agent: Agent, site_file: Path) -> None:
    port = agent.metrics_port
    assert port is not None
    assert scraped(port)["headway_camera_live"] == 1
    folder = site_file.parent / "side"
    gone = lose(folder)
    wait_for(lambda: LOST in agent.state().faults)
    # What the other sees goes on, and does not make this one well.
    (site_file.parent / "top" / "1.png").write_bytes(picture("pit", 1))
    wait_for(lambda: agent.state().cameras[0].frames == 1)
    assert agent.state().faults.count(LOST) == 1
    found = scraped(port)
    assert found["headway_camera_live"] == 0
    assert found["headway_faults"] >= 1
    assert found["headway_camera_frames_total"] == 1
    told = [each.what for each in examine(site_file, GOOD) if each.level is Level.FAULT]
    assert sum(what.startswith("side: lost") for what in told) == 1
    assert not any(LOST in what for what in told), "it is said once"
    gone.rename(folder)
    wait_for(lambda: LOST not in agent.state().faults)
    assert scraped(port)["headway_camera_live"] == 1


def show(folder: Path, name: str, *, black: bool = False) -> None:
    """Let a camera see a part."""
    seen = np.zeros((64, 64, 3), np.uint8)
    drawn = cv2.imencode(".png", seen)[1].tobytes() if black else picture("pit", 1)
    (folder / f".{name}").write_bytes(drawn)
    (folder / f".{name}").rename(folder / name)


def test_a_camera_that_sees_nothing_is_a_fault_of_a_station_alone_until_it_sees(
    agent: Agent, site_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of its parts is rejected, and no fleet hears of it."""
    port, top = agent.metrics_port, site_file.parent / "top"
    assert port is not None
    show(top, "1.png", black=True)
    wait_for(lambda: agent.state().faults == [BLACK])
    found = scraped(port)
    assert (found["headway_faults"], found["headway_camera_picture_wrong"]) == (1, 1)
    (told,) = [each for each in examine(site_file, GOOD) if each.level is Level.FAULT]
    assert "; the picture is black, which rejects its part" in told.what, "it is said once"
    assert f"fault     {BLACK}" in headway(capsys, "agent", "status", site_file).out
    assert agent._device_state().faults == [BLACK]
    show(top, "2.png")
    wait_for(lambda: agent.state().faults == [])
    found = scraped(port)
    assert (found["headway_faults"], found["headway_camera_picture_wrong"]) == (0, 0)


@pytest.mark.browser
def test_the_page_says_which_camera_sees_nothing(agent: Agent, site_file: Path, browser: Browser) -> None:
    with screen(browser, agent.page_url) as on:
        on.ready()
        show(site_file.parent / "top", "1.png", black=True)
        expect(on.page.locator("#verdict")).to_contain_text(BLACK)


@pytest.mark.browser
def test_the_page_names_the_camera_that_is_lost(agent: Agent, site_file: Path, browser: Browser) -> None:
    with screen(browser, agent.page_url) as on:
        on.ready()
        expect(on.page.locator("#verdict")).to_contain_text("Running")
        lose(site_file.parent / "side")
        expect(on.page.locator("#verdict")).to_contain_text("Camera lost")
        expect(on.page.locator("#verdict")).to_contain_text("side gives no pictures")
        expect(on.page.locator("#fact-camera")).to_have_text("lost: side")
