"""What a station says that nobody has set up to its end, and whether its page reads well on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from playwright.sync_api import Browser, ViewportSize, expect

from device_agent.accepting import KEPT_AS, Target
from device_agent.agent import Agent
from device_agent.cli import agent as agent_command
from device_agent.doctor import examine
from device_agent.report import CHOOSE_AGAIN, NONE_PASSES
from device_agent.site_file import load_site
from sdk.bundle import Bundle
from sdk.finding import Level
from tests.pages import Device, Screen, screen, serving, write_stream
from tests.pages import running as running_page
from tests.test_agent import running as running_agent
from tests.test_agent import site_of
from tests.tiny import class_id, tiny_bundle

DEFECTS = ("pitted_surface", "scratches")
PHONE: ViewportSize = {"width": 390, "height": 844}
PANEL: ViewportSize = {"width": 800, "height": 480}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A release of defects only: what a line's good parts are called is nowhere."""
    return tiny_bundle(tmp_path_factory.mktemp("newcomer") / "bundle", classes=DEFECTS)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(tmp_path_factory.mktemp("newcomer") / "stream", dict.fromkeys(DEFECTS, 4))


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle, stream: Path) -> Iterator[Device]:
    with serving(tmp_path / "data", stream, bundle) as found:
        yield found


def settings(bundle: Bundle, stream: Path) -> str:
    camera = f'[camera]\nkind = "folder"\npath = "{stream}"\n'
    return f'device = "line-1"\nbundle = "{bundle.path}"\n{camera}[page]\nport = 0\n'


ROWS_OF_EACH_PART = (
    "each => [...each.childNodes].filter(n => n.nodeType === 3).map(n => {"
    " const range = document.createRange(); range.selectNode(n); return range.getClientRects().length; })"
)


def choose(device: Device, name: str) -> None:
    wanted = {"good": [class_id(name).hex()], "escape_rate": 0.01, "by_threshold": False}
    device.http.put("/api/operating", json=wanted).raise_for_status()


def test_a_station_says_that_it_rejects_everything_until_good_classes_are_chosen(device: Device) -> None:
    assert (device.state()["none_passes"], device.state()["faults"]) == (True, [NONE_PASSES])
    choose(device, "scratches")
    assert (device.state()["none_passes"], device.state()["faults"]) == (False, [])


def test_a_device_without_a_release_does_not_say_so(tmp_path: Path, bundle: Bundle, stream: Path) -> None:
    with serving(tmp_path / "data", stream, bundle) as device:
        device.station.serve_nothing()
        assert device.state()["none_passes"] is False


@pytest.mark.browser
@pytest.mark.parametrize(
    ("locale", "says"),
    [("en-US", "Every part is rejected"), ("de-DE", "Jedes Teil wird aussortiert"), ("zh-CN", "所有工件都被剔除")],
)
def test_now_shows_that_every_part_is_rejected(device: Device, browser: Browser, locale: str, says: str) -> None:
    with screen(browser, device.url, locale=locale) as on:
        on.ready()
        expect(on.page.locator("#verdict .text")).to_have_text(says)
        assert drawn(on, good=None) == ("decision wait", "–")  # and no part has a tick
        choose(device, "scratches")
        expect(on.page.locator("#verdict .text")).not_to_have_text(says)
        assert drawn(on, good=True) == ("decision good", "✓")
        assert drawn(on, good=False) == ("decision bad", "✕")


def drawn(on: Screen, *, good: bool | None) -> tuple[str, str]:
    """Return how a decision is shown of which it is known, or not, that its class is a good one."""
    on.until("newest !== null")
    said = on.page.evaluate(
        "good => { newest = {...newest, label: null, unknown: false, good}; drawLive();"
        " return [$('live-decision').className, document.querySelector('#live-decision .mark').textContent]; }",
        good,
    )
    return said[0], said[1]


def test_status_and_doctor_say_it_too(tmp_path: Path, bundle: Bundle, stream: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(settings(bundle, stream))
    (note,) = [each for each in examine(file) if "every part is rejected" in each.what]
    assert note.level is Level.NOTE
    assert "none of its classes is called 'good'" in note.what
    assert "on the page: pitted_surface, scratches." in note.fix
    with Agent(site_of(stream, bundle.path)) as agent, running_agent(agent):
        site = stream.parent / "site.toml"
        site.write_text(file.read_text().replace("[camera]", f'data_dir = "{agent.site.data_dir}"\n[camera]'))
        told = CliRunner().invoke(agent_command, ["status", str(site)])
        assert told.output.count("every part is rejected: no class is a good one") == 1
        assert "[part] good of site.toml" in told.output
        assert [each.level for each in examine(site) if "every part is rejected" in each.what] == [Level.FAULT]


@pytest.mark.browser
def test_where_somebody_has_chosen_nobody_is_sent_to_settings_that_do_not_count(
    tmp_path: Path, bundle: Bundle, stream: Path, browser: Browser
) -> None:
    """The classes that were chosen are gone: another release serves, or they were undone."""
    file = tmp_path / "site.toml"
    with Agent(site_of(stream, bundle.path)) as agent, running_agent(agent):
        agent.station.operating.choose(Target(good=[class_id("gone").hex()]))
        # As it is kept, for the doctor who comes after the stop.
        agent.station.store.keep(KEPT_AS, msgspec.json.encode(agent.station.operating.target))
        data_dir = agent.site.data_dir
        text = settings(bundle, stream).replace("[camera]", f'data_dir = "{data_dir}"\n[camera]')
        file.write_text(f'{text}[part]\ngood = ["Scratches"]\n')  # what they were advised to do
        told = CliRunner().invoke(agent_command, ["status", str(file)])
        assert f"{NONE_PASSES}. {CHOOSE_AGAIN}" in told.output
        assert [each.fix for each in examine(file) if "every part is rejected" in each.what] == [CHOOSE_AGAIN]
        with screen(browser, agent.page_url, viewport=PANEL) as on:
            expect(on.page.locator("#verdict")).to_contain_text("Choose again under Quality.")
    assert [each.fix for each in examine(file) if "every part is rejected" in each.what] == [CHOOSE_AGAIN]


def test_doctor_says_nothing_where_a_class_of_the_release_passes(
    tmp_path: Path, bundle: Bundle, stream: Path
) -> None:
    file = tmp_path / "site.toml"
    file.write_text(settings(bundle, stream) + '[part]\ngood = ["Scratches"]\n')
    assert not [each for each in examine(file) if "rejected" in each.what]


@pytest.mark.browser
@pytest.mark.parametrize("size", [PHONE, PANEL], ids=["phone", "panel"])
@pytest.mark.parametrize("locale", ["en-US", "de-DE", "zh-CN"])
def test_every_page_is_in_sight_beside_a_long_state(
    device: Device, browser: Browser, locale: str, size: ViewportSize
) -> None:
    with screen(browser, device.url, viewport=size, locale=locale) as on:
        for path in ("", "label", "learned", "quality", "settings"):
            on.page.goto(device.url + path)
            on.ready()
            links = on.page.locator(".bar nav a").all()
            assert len(links) == 5, path
            state = on.page.locator("#device-state").bounding_box()
            assert state is not None
            for each in links:
                box = each.bounding_box()
                assert box is not None
                assert box["x"] >= 0, path
                assert box["x"] + box["width"] <= size["width"], path
                assert box["height"] >= 44, path
                above = box["y"] >= state["y"] + state["height"]
                assert above or box["x"] + box["width"] <= state["x"], f"{path}: nothing lies on it"
            assert on.page.evaluate("document.documentElement.scrollWidth") <= size["width"], path


@pytest.mark.browser
@pytest.mark.parametrize("locale", ["en-US", "de-DE"])
def test_the_counters_names_are_whole_on_a_panel(device: Device, browser: Browser, locale: str) -> None:
    with screen(browser, device.url, viewport=PANEL, locale=locale) as on:
        on.ready()
        on.page.evaluate("for (const each of document.querySelectorAll('.counters dd')) each.textContent = '1234'")
        rows = on.page.evaluate(
            "[...document.querySelectorAll('.counters dt')].map(each => { const range = document.createRange();"
            " range.selectNodeContents(each); return range.getClientRects().length; })"
        )
        assert rows == [1, 1, 1, 1]


@pytest.mark.browser
def test_on_a_phone_the_confusion_tables_legend_is_not_cut(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "quality", viewport=PHONE, locale="de-DE") as on:
        on.ready()
        legend = on.page.get_by_text("Spalten: wofür es gehalten wurde")
        cut = legend.evaluate(
            "each => { const range = document.createRange(); range.selectNodeContents(each);"
            " const section = each.closest('section');"
            " return [range.getBoundingClientRect().right, section.getBoundingClientRect().right]; }"
        )
        assert cut[0] <= cut[1]


@pytest.mark.browser
def test_no_class_button_is_divided_within_a_word(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label", viewport=PANEL) as on:
        on.ready()
        on.asked()
        rows = on.page.locator('#classes button[data-class="scratches"] span').evaluate(
            "each => each.getClientRects()[0].height / parseFloat(getComputedStyle(each).lineHeight)"
        )
        assert round(rows) == 1
        parts = on.page.locator('#classes button[data-class="pitted_surface"] span').evaluate(ROWS_OF_EACH_PART)
        assert parts == [1, 1], "each part of the name stands in one line"


@pytest.mark.browser
def test_a_device_that_works_alone_says_how_a_release_comes_to_it(
    tmp_path: Path, stream: Path, browser: Browser
) -> None:
    with running_page(tmp_path / "data", stream) as device, screen(browser, device.url, locale="en-US") as on:
        on.ready()
        expect(on.page.locator("#verdict .more")).to_contain_text("Name a bundle in its site.toml")


@pytest.mark.parametrize("fleet", [False, True])
def test_an_agent_that_starts_without_a_release_says_in_its_log_what_to_do(
    tmp_path: Path, stream: Path, caplog: pytest.LogCaptureFixture, fleet: bool
) -> None:
    site = tmp_path / "site.toml"
    mqtt = '[mqtt]\nhost = "127.0.0.1"\nport = 9\n' if fleet else ""
    site.write_text(f'device = "line-1"\n[camera]\nkind = "folder"\npath = "{stream}"\n[page]\nport = 0\n{mqtt}')
    with Agent(load_site(site)) as agent, running_agent(agent):
        (said,) = [each.getMessage() for each in caplog.records if "no release yet" in each.getMessage()]
    assert "name a bundle in site.toml, or bring one on a stick (headway agent update)" in said
    assert ("publish one to channel default" in said) is fleet


@pytest.mark.browser
def test_on_a_phone_the_decision_is_not_divided_within_a_word(device: Device, browser: Browser) -> None:
    with screen(browser, device.url, viewport=PHONE) as on:
        on.ready()
        on.until("newest !== null")
        on.page.evaluate(
            "newest = {...newest, label: null, unknown: false, decision: 'pitted_surface'}; drawLive()"
        )
        assert on.page.locator("#live-decision .text").evaluate(ROWS_OF_EACH_PART) == [1, 1]


@pytest.mark.browser
@pytest.mark.parametrize("locale", ["en-US", "de-DE", "zh-CN"])
def test_on_a_phone_no_counters_name_is_divided(device: Device, browser: Browser, locale: str) -> None:
    with screen(browser, device.url, viewport=PHONE, locale=locale) as on:
        on.ready()
        rows = on.page.locator("#counters dt").evaluate_all(f"all => all.map({ROWS_OF_EACH_PART})")
        assert rows == [[1]] * 4
