"""Labelling in a real Chromium: each test asserts what is on disk and what the next frame is taken for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Route, expect

from device_agent.page.alike import alike
from device_agent.sample import SampleStatus
from sdk.bundle import Bundle
from tests.pages import ASK_ALL, Device, Screen, hex_of, opened, screen, serving, wait_for, write_stream
from tests.tiny import class_id, picture, tiny_bundle

NAMES = ("good", "pit", "rings", "scratch")
TRUTH = {hex_of(name, i): name for name in NAMES for i in range(24)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("label") / "bundle", maps=True)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of one picture each, many of a class that the bundle does not know."""
    return write_stream(tmp_path_factory.mktemp("label") / "stream", {"rings": 24, "pit": 6, "good": 6})


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle, stream: Path) -> Iterator[Device]:
    with serving(tmp_path / "data", stream, bundle, ASK_ALL) as found:
        yield found


def tap(on: Screen, name: str) -> str:
    """Tap the button of a class; return the sample that it was for."""
    sample = on.asked()
    on.settled()
    on.page.locator(f'#classes button[data-class="{name}"]').tap()
    return sample


@pytest.mark.browser
def test_ten_pictures_are_labelled_by_touch_and_ten_by_keys(device: Device, browser: Browser) -> None:
    rings = device.station.define_class("rings", "ann")
    expected: dict[str, str] = {}
    with screen(browser, device.url + "label", has_touch=True, viewport={"width": 800, "height": 480}) as on:
        on.ready()
        for _ in range(10):
            wanted = TRUTH[on.asked()]
            expected[tap(on, wanted)] = wanted
        for _ in range(10):
            sample = on.asked()
            on.settled()
            wanted = TRUTH[sample]
            buttons = on.page.locator("#classes button").all()
            place = next(i for i, each in enumerate(buttons) if each.get_attribute("data-class") == wanted)
            on.page.keyboard.press(str(place + 1))
            expected[sample] = wanted
        on.quiet()
        expect(on.page.locator("#saved")).to_contain_text("✓ saved")
    assert len(expected) == 20
    ids = {"rings": rings, **{name: class_id(name) for name in ("good", "pit", "scratch")}}
    assert {label.sample.hex(): label.class_id for label in device.labels()} == {
        sample: ids[name] for sample, name in expected.items()
    }
    device.settle()
    assert device.decides(picture("rings", 990)) == "rings"


@pytest.mark.browser
def test_the_class_used_last_comes_first_and_keys_go_with_the_places(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label", has_touch=True) as on:
        on.ready()
        first = tap(on, "scratch")
        expect(on.page.locator("#classes button").first).to_have_attribute("data-class", "scratch")
        second = on.asked()
        on.settled()
        on.page.keyboard.press("1")
        on.quiet()
        box = on.page.locator("#classes button").first.bounding_box()
        assert box is not None
        assert box["height"] >= 64
    assert [(each.sample.hex(), each.class_id) for each in device.labels()] == [
        (first, class_id("scratch")),
        (second, class_id("scratch")),
    ]


@pytest.mark.browser
def test_a_new_defect_takes_two_taps(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label", has_touch=True) as on:
        on.ready()
        sample = on.asked()
        on.settled()
        on.page.locator("#new-defect").tap()
        on.page.locator("#suggestions button", has_text="crack").tap()
        expect(on.page.locator("#saved")).to_have_text("✓ saved: crack")
    (label,) = device.labels()
    names = {each.class_id: each.name for each in device.station.classes()}
    assert label.class_id is not None
    assert (label.sample.hex(), names[label.class_id]) == (sample, "crack")
    device.settle()
    stored = device.station.store.samples.image(label.sample)
    assert stored is not None
    assert device.decides(stored) == "crack"


@pytest.mark.browser
def test_a_new_defect_is_of_the_picture_in_the_dialog(device: Device, browser: Browser) -> None:
    """The save before it fails while the dialog is open, and brings its own picture back to the front."""
    held: list[Route] = []
    with opened(browser, has_touch=True) as (_, on):
        on.page.route("**/api/labels", lambda route: held.append(route), times=1)  # noqa: PLW0108
        on.page.goto(device.url + "label")
        on.ready()
        refused = tap(on, "pit")
        meant = on.asked()
        assert meant != refused
        on.settled()
        on.page.locator("#new-defect").tap()
        while not held:
            on.page.wait_for_timeout(20)
        held[0].fulfill(status=507, json={"error": "the disk is full", "hint": ""})
        on.until(f"document.getElementById('stage').dataset.sample === '{refused}'")
        expect(on.page.locator("#defect-picture")).to_have_attribute("src", re.compile(meant))
        on.page.locator("#suggestions button", has_text="crack").tap()
        expect(on.page.locator("#saved")).to_have_text("✓ saved: crack")
        assert on.asked() == refused
        assert on.page.evaluate(f"queue.every((each) => each.sample !== '{meant}')")
    names = {each.class_id: each.name for each in device.station.classes()}
    assert [(each.sample.hex(), names[each.class_id or b""]) for each in device.labels()] == [(meant, "crack")]


@pytest.mark.browser
def test_a_bouncing_finger_names_a_defect_once(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label") as on:
        on.ready()
        sample = on.asked()
        on.settled()
        on.page.locator("#new-defect").click()
        on.page.evaluate(
            "() => { for (let i = 0; i < 2; i++) document.querySelector('#suggestions button').click(); }"
        )
        on.until("!document.getElementById('defect').open")
        on.page.evaluate("fetch('/api/queue?limit=1')")  # what the second tap would have asked for is answered
        on.quiet()
        expect(on.page.locator("#saved")).to_contain_text("✓ saved")
    assert [each.sample.hex() for each in device.labels()] == [sample]


@pytest.mark.browser
def test_a_defect_whose_dialog_was_closed_labels_nothing(device: Device, browser: Browser) -> None:
    held: list[Route] = []
    with opened(browser) as (_, on):
        on.page.route("**/api/classes", lambda route: held.append(route))  # noqa: PLW0108
        on.page.goto(device.url + "label")
        on.ready()
        sample = on.asked()
        on.settled()
        on.page.locator("#new-defect").click()
        on.page.locator("#suggestions button", has_text="crack").click()
        while not held:
            on.page.wait_for_timeout(20)
        on.page.locator("#defect-cancel").click()
        with on.page.expect_response("**/api/classes"):
            held[0].continue_()
        on.quiet()
        assert on.asked() == sample
        expect(on.page.locator('#classes button[data-class="crack"]')).to_have_count(0)
    assert device.labels() == []
    assert "crack" not in {each["name"] for each in device.state()["classes"]}


@pytest.mark.browser
def test_a_defect_typed_after_its_key_is_what_was_typed(device: Device, browser: Browser) -> None:
    """A usual name had the focus: the space in "oil x", or Enter, labelled the part as that."""
    with screen(browser, device.url + "label") as on:
        on.ready()
        sample = on.asked()
        on.settled()
        on.page.keyboard.press("n")
        on.page.keyboard.type("oil x")
        on.page.keyboard.press("Enter")
        expect(on.page.locator("#saved")).to_have_text("✓ saved: oil x")
        on.settled()
        on.page.locator("#new-defect").click()
        expect(on.page.locator("#suggestions button").first).to_be_focused()
        on.page.keyboard.type("oil z")
        expect(on.page.locator("#defect-name")).to_have_value("oil z")
        on.page.keyboard.press("Escape")
        on.page.keyboard.press("n")
        on.page.keyboard.press("Enter")
        expect(on.page.locator("#defect-wrong")).to_have_text("Give it a name.")
    (label,) = device.labels()
    names = {each.class_id: each.name for each in device.station.classes()}
    assert (label.sample.hex(), names[label.class_id or b""]) == (sample, "oil x")


@pytest.mark.browser
def test_a_new_defect_by_touch_brings_up_no_keyboard(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label", has_touch=True) as on:
        on.ready()
        on.asked()
        on.settled()
        on.page.locator("#new-defect").tap()
        expect(on.page.locator("#suggestions button").first).to_be_focused()


@pytest.mark.browser
def test_a_new_defect_whose_label_is_refused_leaves_no_button(device: Device, browser: Browser) -> None:
    with opened(browser) as (_, on):
        on.page.goto(device.url + "label")
        on.ready()
        sample = on.asked()
        on.settled()
        on.page.route("**/api/queue*", lambda route: route.abort())
        on.until("!asking")  # it has not heard of the other answer yet
        answer_elsewhere(device, sample, "pit", "Anna")
        on.page.keyboard.press("n")
        on.page.keyboard.type("oil")
        on.page.keyboard.press("Enter")
        expect(on.page.locator("#saved")).to_have_text("Not saved: Labelled pit meanwhile, by Anna")
        expect(on.page.locator('#classes button[data-class="oil"]')).to_have_count(0)
        assert "oil" not in {each["name"] for each in device.state()["classes"]}
        on.settled()
        on.page.keyboard.press("n")
        on.page.keyboard.type("oil")
        on.page.keyboard.press("Enter")
        expect(on.page.locator("#saved")).to_have_text("✓ saved: oil")
        expect(on.page.locator('#classes button[data-class="oil"]')).to_have_count(1)
    assert [each["name"] for each in device.state()["classes"]].count("oil") == 1


@pytest.mark.browser
def test_a_script_in_a_class_name_is_text(device: Device, browser: Browser) -> None:
    name = "<img src=x onerror=alert(1)>"
    with screen(browser, device.url + "label") as on:
        on.ready()
        on.asked()
        on.settled()
        on.page.keyboard.press("n")
        on.page.get_by_label("Or type its name").fill(name)
        on.page.get_by_label("Or type its name").press("Enter")
        expect(on.page.locator("#saved")).to_have_text(f"✓ saved: {name}")
        device.settle()
        for path in ("", "label", "learned", "quality"):
            on.page.goto(device.url + path)
            on.ready()
            assert on.page.locator("img[onerror]").count() == 0
    assert name in {each.name for each in device.station.classes()}


@pytest.mark.browser
def test_undo_is_exact_and_can_be_repeated(device: Device, browser: Browser) -> None:
    before, known = device.digest(), device.decides(picture("rings", 990))
    with screen(browser, device.url + "label", has_touch=True) as on:
        on.ready()
        first, second = tap(on, "scratch"), tap(on, "pit")
        on.quiet()
        on.page.locator("#undo").tap()
        on.quiet()
        assert on.asked() == second
        on.settled()
        on.page.keyboard.press("u")
        on.quiet()
        expect(on.page.locator("#saved")).to_contain_text("as if it had never been learned")
        assert on.asked() == first
        expect(on.page.locator("#undo")).to_be_disabled()
    assert [label.class_id for label in device.labels()] == [class_id("scratch"), class_id("pit"), None, None]
    assert device.digest() == before
    assert device.decides(picture("rings", 990)) == known


@pytest.mark.browser
def test_a_group_is_labelled_in_one_go_but_for_what_is_taken_out(
    tmp_path: Path, bundle: Bundle, browser: Browser
) -> None:
    stream = write_stream(tmp_path / "stream", {"rings": 4}, part_of=4)
    with serving(tmp_path / "data", stream, bundle) as device:
        asked = device.station.store.samples.newest(limit=10)
        with screen(browser, f"{device.url}label?sample={asked[0].sample_id.hex()}", has_touch=True) as on:
            on.ready()
            one = on.asked()
            on.page.locator("#together").tap()
            others = on.page.locator("#alike-pictures button")
            expect(others).to_have_count(3)
            left = others.nth(1).get_attribute("data-sample")
            others.nth(1).tap()
            on.settled()
            on.page.locator('#classes button[data-class="pit"]').tap()
            expect(on.page.locator("#saved")).to_have_text("✓ saved: 3 × pit")
            labelled = {each.sample.hex() for each in device.labels()}
            assert one in labelled
            assert left not in labelled
            assert len(labelled) == 3
            # They are one write: three labels and their codes, without anything between.
            records = list(device.station.store.log.records())
            assert [record.entry.seq for record in records] == list(range(1, len(records) + 1))
            on.page.locator("#undo").tap()
            on.quiet()
        labels = device.labels()[3:]
        assert len(labels) == 3
        assert {label.class_id for label in labels} == {None}


@pytest.mark.browser
def test_what_turns_out_alike_later_is_not_labelled_unseen(device: Device, browser: Browser) -> None:
    """ "Together" had been chosen when more pictures came that are alike: each waits for a tap of its own."""
    first, second, third, fourth = (each["sample"] for each in device.http.get("/api/queue").json()[:4])
    alike_now = [second]

    def queue(route: Route) -> None:
        waiting = [{**each, "alike": []} for each in route.fetch().json()]
        route.fulfill(json=[{**waiting[0], "alike": alike_now}, *waiting[1:]])

    with screen(browser, "about:blank", has_touch=True) as on:
        on.page.route("**/api/queue*", queue)
        on.page.goto(device.url + "label")
        on.ready()
        assert on.asked() == first
        others = on.page.locator("#alike-pictures button")
        expect(others).to_have_count(1)
        on.page.locator("#together").tap()
        alike_now = [second, third, fourth]
        on.page.evaluate("() => { refill(); }")
        expect(others).to_have_count(3)
        assert [each.get_attribute("aria-pressed") for each in others.all()] == ["true", "false", "false"]
        others.nth(2).tap()
        expect(on.page.locator("#together-text")).to_have_text("3 together")
        on.settled()
        on.page.locator('#classes button[data-class="pit"]').tap()
        expect(on.page.locator("#saved")).to_have_text("✓ saved: 3 × pit")
        on.page.unroute_all(behavior="ignoreErrors")
    assert {each.sample.hex() for each in device.labels()} == {first, second, fourth}


@pytest.mark.browser
def test_what_somebody_cannot_tell_is_asked_last_and_teaches_nothing(device: Device, browser: Browser) -> None:
    before = device.digest()
    with screen(browser, device.url + "label", has_touch=True) as on:
        on.ready()
        sample = on.asked()
        on.settled()
        on.page.locator("#unsure").tap()
        on.quiet()
        assert on.asked() != sample
    queue = device.http.get("/api/queue", params={"limit": 200}).json()
    assert queue[-1]["sample"] == sample
    assert queue[-1]["unsure"] is True
    assert device.labels() == []
    assert device.digest() == before


@pytest.mark.browser
def test_what_cannot_be_saved_is_said_and_asked_again(device: Device, browser: Browser) -> None:
    full = {"error": "the disk is full", "hint": ""}
    with opened(browser, has_touch=True) as (_, on):
        on.page.route("**/api/labels", lambda route: route.fulfill(status=507, json=full))
        on.page.goto(device.url + "label")
        on.ready()
        sample = on.asked()
        tap(on, "pit")
        expect(on.page.locator("#saved")).to_contain_text("Not saved: the disk is full")
        assert on.asked() == sample
    assert device.labels() == []
    stored = device.station.store.samples.get(bytes.fromhex(sample))
    assert stored is not None
    assert stored.status is SampleStatus.QUEUED


def answer_elsewhere(device: Device, sample: str, name: str, who: str) -> None:
    body = {"sample": sample, "class_name": name, "operator": who}
    device.http.post("/api/labels", json=body).raise_for_status()


@pytest.mark.browser
def test_a_picture_that_somebody_else_answers_is_asked_no_more(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label") as on:
        on.ready()
        sample = on.asked()
        answer_elsewhere(device, sample, "pit", "Anna")
        on.until(f"current && current.sample !== '{sample}'")
        expect(on.page.locator("#saved")).to_have_text("Labelled pit meanwhile, by Anna")
        on.quiet()


@pytest.mark.browser
def test_a_picture_whose_answer_was_undone_stays_though_it_waits_no_longer(
    device: Device, browser: Browser
) -> None:
    with screen(browser, device.url + "label", has_touch=True) as on:
        on.ready()
        sample = tap(on, "pit")
        on.quiet()
        on.page.locator("#undo").tap()
        on.quiet()
        assert on.asked() == sample
        answer_elsewhere(device, on.page.evaluate("queue[0].sample"), "pit", "Anna")
        on.page.evaluate("refill()")
        assert on.asked() == sample
        assert sample not in {each["sample"] for each in device.http.get("/api/queue?limit=200").json()}


@pytest.mark.browser
def test_a_tap_does_not_overwrite_what_somebody_else_has_just_said(device: Device, browser: Browser) -> None:
    """The page has not heard of it yet: its stream and its queue are slow."""
    with opened(browser, has_touch=True) as (_, on):
        on.page.goto(device.url + "label")
        on.ready()
        sample = on.asked()
        on.page.route("**/api/queue*", lambda route: route.abort())
        on.until("!asking")  # what it asked before goes through, and would tell it
        answer_elsewhere(device, sample, "pit", "Anna")
        tap(on, "scratch")
        expect(on.page.locator("#saved")).to_have_text("Not saved: Labelled pit meanwhile, by Anna")
        assert on.asked() != sample
        picked = device.http.get("/api/samples", params={"status": "labelled"}).json()[0]["sample"]
        assert picked == sample
        on.page.goto(f"{device.url}label?sample={sample}")
        on.ready()
        assert on.asked() == sample
        tap(on, "scratch")  # who looks at the label and says something else has the last word
        expect(on.page.locator("#saved")).to_have_text("✓ saved: scratch")
    said = [(each.sample.hex(), each.class_id) for each in device.labels()]
    assert said == [(sample, class_id("pit")), (sample, class_id("scratch"))]


def test_a_label_of_what_was_seen_otherwise_is_refused_whole(device: Device) -> None:
    one, other = (each["sample"] for each in device.http.get("/api/queue").json()[:2])
    pit, scratch = class_id("pit").hex(), class_id("scratch").hex()

    def say(class_id: str | None, seen: dict[str, str | None]) -> int:
        body = {"samples": list(seen), "class_id": class_id, "seen": seen}
        return device.http.post("/api/labels", json=body).status_code

    assert say(pit, {one: None}) == 201
    assert say(scratch, {other: None, one: None}) == 409
    assert say(scratch, {one: scratch}) == 409
    assert say(None, {one: pit}) == 201
    assert say(scratch, {one: pit}) == 409
    assert say(scratch, {other: None, one: None}) == 201
    assert [each.sample.hex() for each in device.labels()] == [one, one, other, one]


@pytest.mark.browser
def test_a_picture_that_is_not_there_to_be_seen_is_not_labelled(device: Device, browser: Browser) -> None:
    with opened(browser) as (_, on):
        on.page.route("**/image", lambda route: route.abort())
        on.page.goto(device.url + "label")
        on.ready()
        sample = on.asked()
        expect(on.page.locator("#no-picture")).to_contain_text("could not be loaded")
        expect(on.page.locator("#classes button").first).to_be_disabled()
        expect(on.page.locator("#new-defect")).to_be_disabled()
        expect(on.page.locator("#unsure")).to_be_enabled()
        on.page.keyboard.press("1")
        on.page.keyboard.press("n")
        assert on.page.evaluate("!document.getElementById('defect').open && current !== null && pending === 0")
        on.page.unroute_all(behavior="ignoreErrors")
        on.page.locator("#load-again").click()
        expect(on.page.locator("#no-picture")).to_be_hidden()
        on.settled()
        assert on.asked() == sample
        on.page.locator('#classes button[data-class="pit"]').click()
        expect(on.page.locator("#saved")).to_have_text("✓ saved: pit")
    assert [each.sample.hex() for each in device.labels()] == [sample]


@pytest.mark.browser
def test_a_picture_alike_that_is_not_there_to_be_seen_is_left_out(
    tmp_path: Path, bundle: Bundle, browser: Browser
) -> None:
    stream = write_stream(tmp_path / "stream", {"rings": 3}, part_of=3)
    with serving(tmp_path / "data", stream, bundle) as device, opened(browser) as (_, on):
        asked, missing, other = (each.sample_id.hex() for each in device.station.store.samples.newest(limit=3))
        on.page.route(f"**/{missing}/image", lambda route: route.abort())
        on.page.goto(f"{device.url}label?sample={asked}")
        on.ready()
        expect(on.page.locator(f'#alike-pictures [data-sample="{missing}"]')).to_be_disabled()
        on.page.locator("#together").click()
        expect(on.page.locator("#together-text")).to_have_text("2 together")
        on.settled()
        on.page.locator('#classes button[data-class="pit"]').click()
        expect(on.page.locator("#saved")).to_have_text("✓ saved: 2 × pit")
        assert {each.sample.hex() for each in device.labels()} == {asked, other}


def ahead(on: Screen) -> None:
    """Wait until the next pictures have been loaded."""
    on.ready()
    on.asked()
    on.until("queue.length > 4 && queue.slice(0, 4).every(({ sample }) => (loaded.get(sample) || {}).seen)")


def four(on: Screen) -> list[tuple[str, str]]:
    """Tap four answers while the disk takes none; return the samples with their classes."""
    given = [(tap(on, name), name) for name in ("pit", "scratch", "good", "pit")]
    assert on.page.evaluate("pending") == 4
    return given


def leaves(on: Screen) -> list[str]:
    """Answer every dialog with yes; return what kinds there are, as they come."""
    asked: list[str] = []

    def yes(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    on.page.on("dialog", yes)
    return asked


def said(device: Device) -> list[tuple[str, str]]:
    names = {class_id(name): name for name in NAMES} | {b"": "undone"}
    return [(each.sample.hex(), names[each.class_id or b""]) for each in device.labels()]


@pytest.mark.browser
@pytest.mark.parametrize("to", ["label", ""])
def test_answers_on_their_way_are_saved_once_though_the_page_is_left(
    device: Device, browser: Browser, to: str
) -> None:
    """Tapped faster than a slow disk takes them; then the page is loaded again, or another one opened."""
    with opened(browser, has_touch=True) as (_, on):
        asked = leaves(on)
        on.page.goto(device.url + "label")
        ahead(on)
        with device.station.store.held():
            given = four(on)
            on.page.goto(device.url + to)
        on.until("unsent().length === 0")
        if to == "label":
            on.quiet()
            expect(on.page.locator("#saved")).to_have_text("✓ saved: 4 of the page before")
            assert on.asked() not in {sample for sample, _ in given}
            on.page.locator("#undo").tap()
            on.quiet()
            assert on.asked() == given[-1][0]
    assert asked == ["beforeunload"]
    assert sorted(said(device)[:4]) == sorted(given)
    assert said(device)[4:] == ([(given[-1][0], "undone")] if to == "label" else [])


@pytest.mark.browser
def test_answers_on_their_way_arrive_though_the_page_is_closed(device: Device, browser: Browser) -> None:
    with opened(browser, has_touch=True) as (context, on):
        on.page.goto(device.url + "label")
        context.new_page()  # the browser itself stays
        asked = leaves(on)
        ahead(on)
        with device.station.store.held():
            given = four(on)
            with on.page.expect_event("close"):
                on.page.close(run_before_unload=True)
        wait_for(lambda: len(device.labels()) == 4)
    assert asked == ["beforeunload"]
    assert sorted(said(device)) == sorted(given)


@pytest.mark.browser
def test_an_undo_on_its_way_is_not_lost_with_the_page(device: Device, browser: Browser) -> None:
    """Nor does it take back another label than the one that was given just before it."""
    with opened(browser, has_touch=True) as (_, on):
        leaves(on)
        on.page.goto(device.url + "label")
        on.ready()
        first = tap(on, "good")
        on.quiet()
        ahead(on)
        with device.station.store.held():
            second = tap(on, "pit")
            on.page.locator("#undo").tap()
            on.page.goto(device.url + "label")
        on.until("unsent().length === 0")
        on.quiet()
    assert said(device) == [(first, "good"), (second, "pit"), (second, "undone")]


@pytest.mark.browser
def test_what_the_next_page_cannot_save_either_it_says(device: Device, browser: Browser) -> None:
    sample = device.http.get("/api/queue").json()[0]["sample"]
    with opened(browser) as (_, on):
        on.page.goto(device.url)
        on.ready()
        body = {"samples": [sample], "class_id": "0" * 32}
        left = {"path": "/api/labels", "items": [sample], "of": "", "key": "1", "body": body}
        for who, why in (("", "there is no class 0"), ("p-of-somebody", "somebody else is logged in now")):
            on.page.evaluate("left => storeUnsent([left])", {**left, "who": who})
            on.page.goto(device.url)
            expect(on.page.locator("#notice")).to_contain_text("Not saved, of the page before: 1 (")
            expect(on.page.locator("#notice")).to_contain_text(why)
            on.until("unsent().length === 0")
    assert device.labels() == []


@pytest.mark.browser
def test_an_undo_after_a_label_that_was_refused_takes_nothing_back(device: Device, browser: Browser) -> None:
    held: list[Route] = []
    with opened(browser, has_touch=True) as (_, on):
        on.page.goto(device.url + "label")
        on.ready()
        first = tap(on, "good")
        on.quiet()
        on.page.route("**/api/labels", lambda route: held.append(route), times=1)  # noqa: PLW0108
        tap(on, "pit")
        on.page.locator("#undo").tap()
        while not held:
            on.page.wait_for_timeout(20)
        held[0].fulfill(status=507, json={"error": "the disk is full", "hint": ""})
        on.quiet()
        expect(on.page.locator("#saved")).to_contain_text("Not saved")
    assert [(each.sample.hex(), each.class_id) for each in device.labels()] == [(first, class_id("good"))]


@pytest.mark.browser
def test_a_bouncing_finger_labels_one_picture(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label") as on:
        on.ready()
        on.asked()
        on.settled()
        on.page.evaluate(
            "() => { for (let i = 0; i < 3; i++) document.querySelector('#classes button').click(); }"
        )
        on.quiet()
    assert len(device.labels()) == 1


@pytest.mark.browser
def test_a_bouncing_finger_undoes_one_label(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label", has_touch=True) as on:
        on.ready()
        first, second = tap(on, "scratch"), tap(on, "pit")
        on.quiet()
        on.page.evaluate("() => { for (let i = 0; i < 3; i++) document.querySelector('#undo').click(); }")
        on.quiet()
        assert on.asked() == second
        expect(on.page.locator("#undo")).to_be_enabled()
    said = [(each.sample.hex(), each.class_id) for each in device.labels()]
    assert said == [(first, class_id("scratch")), (second, class_id("pit")), (second, None)]


@pytest.mark.browser
def test_the_picture_shows_where_the_evidence_lies_until_asked_not_to(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label") as on:
        on.ready()
        sample = on.asked()
        on.page.keyboard.press("h")
        over = on.page.locator("#stage .over-picture")
        expect(over).to_have_attribute("src", f"/api/samples/{sample}/heatmap")
        on.until("document.querySelector('.over-picture').naturalWidth > 0")
        on.page.keyboard.press("h")
        expect(over).to_have_count(0)


@pytest.mark.browser
def test_zoom_and_pan_show_a_part_of_it_and_all_of_it_again(device: Device, browser: Browser) -> None:
    with screen(browser, device.url + "label") as on:
        on.ready()
        on.asked()
        whole = on.page.locator("#stage .picture").bounding_box()
        on.page.keyboard.press("+")
        on.until("zoom > 1")
        on.page.locator("#stage").focus()
        on.page.keyboard.press("ArrowRight")
        assert on.page.evaluate("panX") < 0
        on.page.keyboard.press("0")
        on.until("zoom === 1 && panX === 0")
        wait_for(lambda: on.page.locator("#stage .picture").bounding_box() == whole)


@pytest.mark.browser
def test_an_escape_found_by_eye_is_labelled_from_the_last_parts(device: Device, browser: Browser) -> None:
    sample = hex_of("rings", 20)
    assert device.decides(picture("rings", 520)) != "pit"
    with screen(browser, device.url) as on:
        on.ready()
        on.page.locator(f'#strip a[data-sample="{sample}"]').click()
        on.page.wait_for_url("**/label**")
        on.ready()
        assert on.asked() == sample
        on.settled()
        on.page.locator('#classes button[data-class="pit"]').click()
        on.quiet()
    assert [(each.sample.hex(), each.class_id) for each in device.labels()] == [(sample, class_id("pit"))]
    device.settle()
    assert device.decides(picture("rings", 520)) == "pit"


@pytest.mark.browser
def test_a_picture_that_was_picked_is_shown_first_however_late_it_comes(device: Device, browser: Browser) -> None:
    """Somebody may have a finger over the button already: no other picture may be shown before it."""
    picked = hex_of("good", 0)
    held: list[Route] = []
    with opened(browser) as (_, on):
        on.page.route(f"**/api/samples/{picked}", lambda route: held.append(route))  # noqa: PLW0108
        on.page.goto(f"{device.url}label?sample={picked}")
        on.ready()
        while not held:
            on.page.wait_for_timeout(20)
        on.until("heardKey !== ''")
        on.page.evaluate("fetch('/api/queue?limit=1')")  # what the page would have asked for has been answered
        assert on.page.evaluate("current === null && queue.length === 0")
        held[0].continue_()
        assert on.asked() == picked


@pytest.mark.browser
def test_a_picture_that_was_picked_stays_when_a_question_arrives_late(device: Device, browser: Browser) -> None:
    """The queue's answer was on its way when the operator picked another picture: the label is for theirs."""
    picked, other = hex_of("good", 0), device.http.get(f"/api/samples/{hex_of('rings', 1)}").json()
    held: list[Route] = []
    with opened(browser) as (_, on):
        on.page.route("**/api/queue*", lambda route: held.append(route))  # noqa: PLW0108  (it looks at the handler)
        on.page.goto(f"{device.url}label?sample={picked}")
        on.ready()
        assert on.asked() == picked
        while not held:
            on.page.wait_for_timeout(20)
        held[0].fulfill(json=[other])
        on.until("queue.length === 1")
        on.settled()
        on.page.locator('#classes button[data-class="good"]').click()
        expect(on.page.locator("#saved")).to_have_text("✓ saved: good")
        on.page.unroute_all(behavior="ignoreErrors")
    assert [(each.sample.hex(), each.class_id) for each in device.labels()] == [(picked, class_id("good"))]


@pytest.mark.browser
@pytest.mark.parametrize(
    ("locale", "said", "unknown"),
    [
        ("en-US", "labelled; the device said {}, {}\u00a0%", "labelled; the device did not know it"),
        ("de-DE", "zugeordnet; das Gerät sagte {}, {}\u00a0%", "zugeordnet; das Gerät kannte es nicht"),
        ("zh-CN", "已标注；设备判断为 {}，{}%", "已标注；设备无法识别"),
    ],
)
def test_a_label_is_not_shown_with_the_certainty_of_another_answer(
    device: Device, browser: Browser, locale: str, said: str, unknown: str
) -> None:
    (newest,) = device.http.get("/api/samples?limit=1").json()
    assert not newest["unknown"]
    answer_elsewhere(device, newest["sample"], "scratch", "Anna")
    with screen(browser, device.url, locale=locale) as on:
        expect(on.page.locator("#live-decision .text")).to_have_text("scratch")
        sure = on.page.locator("#live-decision .sure")
        expect(sure).to_have_text(said.format(newest["decision"], f"{100 * newest['probability']:.0f}"))
        assert newest["decision"] != "scratch"
        on.page.evaluate("newest = {...newest, unknown: true}; drawLive()")
        expect(sure).to_have_text(unknown)


def test_samples_of_one_part_wait_for_one_answer(tmp_path: Path, bundle: Bundle) -> None:
    stream = write_stream(tmp_path / "stream", {"rings": 4}, part_of=2)
    with serving(tmp_path / "data", stream, bundle) as device:
        samples = device.station.store.samples.newest(limit=10)
        found = alike(samples)
        group = {each.sample_id: each.group for each in samples}
        assert all(group[other] == group[one] for one, others in found.items() for other in others)
        assert sorted(len(others) for others in found.values()) == [1, 1, 1, 1]


def test_codes_of_unlike_decisions_are_never_put_together(device: Device) -> None:
    samples = device.station.store.samples.newest(limit=100)
    decided = {each.sample_id: (each.unknown, each.class_id if not each.unknown else None) for each in samples}
    found = alike(samples)
    assert any(found.values())
    assert all(decided[one] == decided[other] for one, others in found.items() for other in others)
    assert alike([]) == {}
