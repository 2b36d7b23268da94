"""The pictures behind a figure of the quality report: as many as it counts, of the same head, to be corrected."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Dialog, Route, expect

from device_agent.heads import Reference
from device_agent.page.counted import HELD, LISTED, Counted, CountedHeads
from sdk.bundle import Bundle
from sdk.codes import code_digest
from sdk.head import UNCALIBRATED
from sdk.labels import Chain, CodeRecord, Label, Record
from sdk.score import LeftOut, score
from tests.pages import ASK_ALL, Device, hex_of, opened, screen, serving, write_stream
from tests.tiny import class_id, picture, tiny_bundle

LOTS = 4
"""Parts of each of two lots: more than a slice needs."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("behind") / "bundle", maps=True)


@contextlib.contextmanager
def station(folder: Path, bundle: Bundle) -> Iterator[Device]:
    """A device with two lots of labelled pits, two of which somebody called scratches."""
    stream = write_stream(folder / "stream", {"pit": 2})
    with serving(folder / "data", stream, bundle, ASK_ALL) as found:
        for i in range(2 * LOTS):
            asked = {"keep": "true", "part": f"p{i}", "lot": f"B{i % 2}"}
            seen = found.http.post("/api/inspect", params=asked, content=picture("pit", 300 + i)).json()
            say(found, seen["sample"], "scratch" if i < 2 else "pit")
        found.settle()
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[Device]:
    """One that is only looked at."""
    with station(tmp_path_factory.mktemp("behind"), bundle) as found:
        yield found


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle) -> Iterator[Device]:
    with station(tmp_path, bundle) as found:
        yield found


def say(device: Device, sample: str, name: str | None) -> dict[str, Any]:
    said = {"class_id": None} if name is None else {"class_id": class_id(name).hex()}
    body = {"sample": sample, "operator": "Ann", **said}
    return dict(device.http.post("/api/labels", json=body).raise_for_status().json())


def behind(device: Device, **figure: Any) -> dict[str, Any]:
    asked = {"limit": 200, **figure}
    return dict(device.http.get("/api/quality/pictures", params=asked).raise_for_status().json())


def test_each_figure_counts_exactly_the_pictures_behind_it(shared: Device) -> None:
    report = shared.http.get("/api/quality").json()
    head, ids = report["head"]["number"], [row["id"] for row in report["confusion"]]
    seen: list[str] = []
    for row in report["confusion"]:
        of = sum(row["counts"]) + row["unknown"]
        for said, count in zip([*ids, "unknown"], [*row["counts"], row["unknown"]], strict=True):
            found = behind(shared, figure="cell", truth=row["id"], said=said)
            assert (found["head"], found["count"], found["of"], found["newest"]) == (head, count, of, None)
            for each in found["pictures"]:
                assert each["labelled_class_id"] == row["id"]
                assert (each["class_id"] or "unknown") == said
                assert each["right"] == (said == row["id"])
            seen += [each["sample"] for each in found["pictures"]]
    assert len(seen) == len(set(seen)) == sum(sum(row["counts"]) + row["unknown"] for row in report["confusion"])

    for each in report["slices"]:
        found = behind(shared, figure=each["kind"], name=each["name"])
        assert (found["count"], found["right"]) == (each["right"]["samples"], each["right"]["count"])
        order = [picture["right"] for picture in found["pictures"]]
        assert order == sorted(order), "what is wrong comes first"
    assert {each["kind"] for each in report["slices"]} == {"origin", "lot"}

    for each in shared.state()["score"]["classes"]:
        found = behind(shared, figure="recall", truth=each["id"])
        assert (found["count"], found["right"] / found["count"]) == (each["samples"], each["recall"])


@pytest.mark.parametrize("by_threshold", [False, True])
def test_escapes_and_overkill_are_those_of_the_rule_that_is_asked_for(shared: Device, by_threshold: bool) -> None:
    operating = shared.http.get("/api/operating").json()
    for point in operating["points"] if by_threshold else [operating["by_class"]]:
        rule = {"escape_rate": point["target"]} if by_threshold else {}
        for figure in ("escapes", "overkill"):
            found = behind(shared, figure=figure, **rule)
            assert (found["count"], found["of"]) == (point[figure]["count"], point[figure]["samples"])
            assert {each["labelled"] == "good" for each in found["pictures"]} <= {figure == "overkill"}
            assert found == behind(shared, figure=figure, good=operating["good"], **rule)
    # Whoever calls pits good has other escapes: scratches alone.
    good = [class_id(name).hex() for name in ("good", "pit")]
    assert {each["labelled"] for each in behind(shared, figure="escapes", good=good)["pictures"]} <= {"scratch"}


def test_a_list_stays_as_its_figure_counted_while_newer_heads_learn(device: Device) -> None:
    asked = {"figure": "recall", "truth": class_id("scratch").hex()}
    before = behind(device, **asked)
    wrong = before["pictures"][0]
    assert (wrong["kept"]["label"], wrong["last"]["who"], wrong["changed"]) == ("scratch", "Ann", False)
    assert wrong["kept"]["lot"] in ("B0", "B1")
    say(device, wrong["sample"], "pit")
    device.settle()
    then, now = behind(device, head=before["head"], **asked), behind(device, **asked)
    assert [each["sample"] for each in then["pictures"]] == [each["sample"] for each in before["pictures"]]
    assert (then["head"], then["count"]) == (before["head"], before["count"])
    changed = then["pictures"][0]
    assert (changed["labelled"], changed["label"], changed["changed"]) == ("scratch", "pit", True)
    assert then["newest"] == {
        "head": now["head"],
        "count": before["count"] - 1,
        "of": before["count"] - 1,
        "right": now["right"],
        "one_class": False,
    }
    assert (now["newest"], now["head"] > then["head"]) == (None, True)
    say(device, wrong["sample"], None)
    taken_back = behind(device, head=before["head"], **asked)["pictures"][0]
    assert (taken_back["label"], taken_back["changed"], taken_back["where"]) == (None, True, "here")


def test_a_picture_comes_with_the_others_of_its_part_that_nobody_has_labelled(device: Device) -> None:
    asked = {"keep": "true", "part": "p0", "lot": "B0"}
    other = device.http.post("/api/inspect", params=asked, content=picture("pit", 400)).json()["sample"]
    found = behind(device, figure="recall", truth=class_id("scratch").hex())
    alike = {each["kept"]["group"]: each["kept"]["alike"] for each in found["pictures"] if each["kept"]}
    assert [others for group, others in alike.items() if group.endswith("p0")] == [[other]]
    assert sum(map(len, alike.values())) == 1


def test_a_figure_of_a_class_that_was_made_part_of_another_is_told_of_that(device: Device) -> None:
    scratch, pit = (class_id(name).hex() for name in ("scratch", "pit"))
    before = behind(device, figure="recall", truth=scratch)
    device.http.post(f"/api/classes/{scratch}/merge", json={"into": pit}).raise_for_status()
    device.settle()
    after = behind(device, figure="recall", truth=scratch)
    assert [each["sample"] for each in after["pictures"]] == [
        each["sample"] for each in behind(device, figure="recall", truth=pit)["pictures"]
    ]
    assert after["count"] > before["count"]
    then = behind(device, figure="recall", truth=scratch, head=before["head"])
    assert (then["count"], {each["changed"] for each in then["pictures"]}) == (before["count"], {False})
    pits = behind(device, figure="recall", truth=pit, head=before["head"])
    assert {each["changed"] for each in pits["pictures"]} == {False}, "whichever id stands for both"
    assert (then["newest"]["head"], then["newest"]["count"]) == (after["head"], after["count"])


def test_what_was_a_mistake_between_two_that_are_one_class_now_is_not_counted_as_right(device: Device) -> None:
    scratch, pit = (class_id(name).hex() for name in ("scratch", "pit"))
    mistakes = {"figure": "cell", "truth": scratch, "said": pit}
    recall = {"figure": "recall", "truth": pit}
    before = behind(device, **mistakes)
    assert before["count"] > 0
    device.http.post(f"/api/classes/{scratch}/merge", json={"into": pit}).raise_for_status()
    device.settle()
    now = behind(device, **recall)
    then = behind(device, head=before["head"], **mistakes)
    assert [each["sample"] for each in then["pictures"]] == [each["sample"] for each in before["pictures"]]
    none = {"count": None, "of": None, "right": None}
    assert then["newest"] == {"head": now["head"], **none, "one_class": True}
    assert device.http.get("/api/quality/pictures", params=mistakes).status_code == 404
    device.http.headers["accept-language"] = "en"

    def page(**figure: Any) -> str:
        return device.http.get("/quality/pictures", params=figure).text

    learned = f"Head {now['head']} has learned since"
    assert f"{learned}; these two are one class now." in page(head=before["head"], **mistakes)
    assert "(these two are one class now)" in page(**mistakes)
    wrong = now["count"] - now["right"]
    assert f"{learned}: {now['count']} pictures, {now['right']} right, {wrong} wrong." in page(
        head=before["head"], **recall
    )


def test_a_list_is_given_in_pages(shared: Device) -> None:
    asked = {"figure": "recall", "truth": class_id("pit").hex()}
    whole = behind(shared, **asked)
    pages = [behind(shared, **asked, limit=7, offset=at) for at in range(0, whole["count"] + 7, 7)]
    assert [each["sample"] for page in pages for each in page["pictures"]] == [
        each["sample"] for each in whole["pictures"]
    ]
    assert {page["count"] for page in pages} == {whole["count"]}


def test_a_picture_that_is_not_here_says_where_it_is(device: Device) -> None:
    store = device.station.store
    found = behind(device, figure="recall", truth=class_id("pit").hex())
    mine = {each["sample"] for each in found["pictures"] if each["where"] == "here"}
    assert len(mine) == 2 * LOTS - 2
    away = [each for each in found["pictures"] if each["sample"] not in mine]
    assert {(each["where"], each["device"], each["last"], each["kept"]) for each in away} == {
        ("release", None, None, None)
    }
    one = mine.pop()
    device.http.delete(f"/api/samples/{one}").raise_for_status()
    assert store.samples.get(bytes.fromhex(one)) is None
    gone = behind(device, head=found["head"], figure="recall", truth=class_id("pit").hex())
    assert gone["count"] == found["count"]
    assert [each["where"] for each in gone["pictures"] if each["sample"] == one] == ["gone"]


def test_a_picture_that_another_device_labelled_says_which(device: Device) -> None:
    kept = device.station.store.samples.get(bytes.fromhex(hex_of("pit", 0)))
    assert kept is not None
    code, sample = kept.code, bytes(range(32))
    coded = CodeRecord(bytes.fromhex(kept.space), sample, "line-2/p7", code_digest(code))
    chain, first = Chain("line-2").write(coded, counter=98, wall_time_us=0)
    _, second = chain.write(Label(sample, class_id("pit"), "bo"), counter=99, wall_time_us=0)
    device.station.store.log.receive([Record(first, code.tobytes()), Record(second)], 2)
    say(device, hex_of("pit", 1), "pit")
    device.settle()
    found = behind(device, figure="recall", truth=class_id("pit").hex())
    theirs = {each["sample"]: each for each in found["pictures"]}[sample.hex()]
    assert (theirs["where"], theirs["device"], theirs["kept"]) == ("device", "line-2", None)
    assert (theirs["last"]["who"], theirs["last"]["device"]) == ("bo", "line-2")


def test_a_recall_leaves_out_what_the_score_does() -> None:
    """Without the group that alone has b, its sample of a is a of necessity: that says nothing of the recall."""
    one_left = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, -np.inf], [1.0, -np.inf]])
    orphan = np.array([False, False, True, False])
    truth, groups = np.array([0, 0, 1, 0]), np.array([0, 1, 2, 2])
    left_out = LeftOut((b"a" * 16, b"b" * 16), truth, groups, one_left, np.zeros(4), orphan, (b"",) * 4)
    counted = Counted(Reference(1, left_out, UNCALIBRATED), {"origin": ["release"] * 4}, np.zeros(4, bool))
    scored = score(left_out, UNCALIBRATED).classes
    for place, each in enumerate(scored):
        rows = counted.recall(place).rows
        assert (len(rows), counted.right[rows].mean()) == (each.samples, each.recall)
    assert [each.samples for each in scored] == [2, 1]
    assert counted.cell(0, 0).rows.tolist() == [0, 1, 3], "the table of what is taken for what has it"


def test_the_heads_that_are_looked_at_are_held_and_others_go() -> None:
    left_out = LeftOut(
        (b"a" * 16, b"b" * 16),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.array([[1.0, 0.0]]),
        np.zeros(1),
        np.zeros(1, bool),
        (bytes(32),),
    )
    serves: list[Reference | None] = [None]
    heads = CountedHeads(lambda: serves[0], lambda _: {}, lambda _: "06:00")
    assert heads.now() is None
    last, lists = 4 * HELD, (1, 2)
    for number in range(1, last + 1):
        serves[0] = Reference(number, replace(left_out), UNCALIBRATED)
        counted = heads.now()
        assert counted is not None
        assert counted is heads.now()
        if number in lists:
            assert heads.listed(number) is counted
    looked_at = range(last - HELD + 1, last + 1)
    assert [n for n in range(1, last + 1) if heads.listed(n)] == [*lists, *looked_at], "whoever looks at others"
    serves[0] = None  # another head serves that is not scored yet
    assert heads.now() is None
    assert heads.listed(1) is not None
    serves[0] = Reference(1, replace(left_out), UNCALIBRATED)  # its classes were made one
    assert heads.listed(1) is not counted
    assert heads.listed(1) is heads.now()
    for number in range(last, last + 2 * LISTED):
        serves[0] = Reference(number, replace(left_out), UNCALIBRATED)
        assert heads.listed(number) is heads.now()
        assert heads.listed(1) is not None, "somebody still goes through it"
    assert [n for n in range(2, last + 2 * LISTED) if heads.listed(n)] == [
        *range(last + LISTED + 1, last + 2 * LISTED)
    ]


@pytest.mark.parametrize(
    ("asked", "status", "error"),
    [
        ({"figure": "cell"}, 422, "truth"),
        ({"figure": "cell", "truth": class_id("pit").hex()}, 422, "said"),
        ({"figure": "lot"}, 422, "name"),
        ({"figure": "everything"}, 422, "figure"),
        ({"figure": "lot", "name": "B0", "colour": "red"}, 422, "colour"),
        ({"figure": "recall", "truth": "ab" * 16}, 404, "no class abab"),
        ({"figure": "lot", "name": "B0", "head": 999}, 404, "head 999"),
        ({"figure": "escapes", "good": ["ab" * 16]}, 400, "good parts"),
    ],
)
def test_what_is_no_figure_is_refused(shared: Device, asked: dict[str, Any], status: int, error: str) -> None:
    answer = shared.http.get("/api/quality/pictures", params=asked)
    assert (answer.status_code, error in answer.json()["error"]) == (status, True), answer.text


@pytest.mark.browser
def test_a_wrong_label_is_found_behind_its_figure_corrected_and_its_place_kept(
    device: Device, browser: Browser
) -> None:
    scratch, pit = (class_id(name).hex() for name in ("scratch", "pit"))
    found = behind(device, figure="cell", truth=scratch, said=pit)
    first, second = (each["sample"] for each in found["pictures"][:2])
    with screen(browser, device.url + "quality", has_touch=True, viewport={"width": 1280, "height": 800}) as on:
        on.ready()
        cell = on.page.get_by_role("link", name=f"{found['count']} labelled “scratch”, taken for “pit”: show them")
        expect(cell).to_have_text(str(found["count"]))
        cell.tap()
        expect(on.page.get_by_role("heading", level=1)).to_have_text("Labelled “scratch”, taken for “pit”")
        rows = on.page.locator("#behind li")
        expect(rows).to_have_count(found["count"])
        assert f"head={found['head']}" in on.page.url
        listed = on.page.url
        on.ready()

        rows.nth(0).get_by_role("link").tap()
        on.page.wait_for_url("**/label?*")
        assert on.asked() == first
        expect(on.page.locator("#why")).to_have_text("Labelled scratch")
        expect(on.page.locator("#guess")).to_contain_text("A head that never saw the part takes it for pit")
        expect(on.page.locator("#walk")).to_have_text(f"← List: 1 of {found['count']}")
        on.settled()
        on.page.locator('#classes button[data-class="pit"]').tap()
        expect(on.page.locator("#saved")).to_have_text("✓ saved: pit")
        assert on.asked() == second
        on.page.reload()  # the address is of the picture that is shown
        on.ready()
        assert on.asked() == second
        on.settled()
        on.page.keyboard.press("t")
        expect(on.page.locator("#saved")).to_have_text("✓ label taken back")
        on.quiet()
        expect(on.page.locator("#walked")).to_be_visible()  # the others came with the release
        on.page.keyboard.press("u")
        on.quiet()
        assert on.asked() == second
        device.settle()
        on.page.locator("#walk").tap()

        on.page.wait_for_url(f"{listed}#p-{second}")
        expect(rows).to_have_count(found["count"])
        expect(rows.nth(1)).to_be_focused()
        expect(rows.nth(0)).to_contain_text("now pit")
        expect(on.page.locator("#newer")).to_contain_text("has learned since")
        rows.nth(0).get_by_role("button", name="Undo").tap()
        expect(rows.nth(0)).not_to_contain_text("now pit")
        on.page.once("dialog", Dialog.accept)
        rows.nth(0).get_by_role("button", name="Take the label back").tap()
        expect(rows.nth(0)).to_contain_text("label taken back")
    said = [label.class_id for label in device.labels()][2 * LOTS :]
    assert said == [class_id("pit"), None, class_id("scratch"), class_id("scratch"), None]


@pytest.mark.browser
def test_a_list_is_gone_through_in_its_order_however_few_come_at_once(shared: Device, browser: Browser) -> None:
    listed = behind(shared, figure="origin", name="station")["pictures"]

    def three(route: Route) -> None:
        route.continue_(url=route.request.url.replace("limit=12", "limit=3"))

    with screen(browser, f"{shared.url}quality/pictures?figure=origin&name=station") as on:
        on.ready()
        on.page.route("**/api/quality/pictures*", three)
        on.page.locator("#behind li a").first.focus()
        on.page.keyboard.press("Enter")
        on.page.wait_for_url("**/label?*")
        for each in listed:
            on.until(f"current && current.sample === '{each['sample']}'")
            on.settled()
            on.page.keyboard.press("s")
        expect(on.page.locator("#walked")).to_be_visible()
    assert len(listed) == 2 * LOTS


def test_whoever_else_looks_at_quality_takes_no_list_away(device: Device) -> None:
    first = device.http.get("/api/quality").json()["head"]["number"]
    listed = behind(device, figure="origin", name="station", head=first)["pictures"]
    seen = {first}
    for i in range(HELD + 1):
        say(device, hex_of("pit", 0), "scratch" if i % 2 else "pit")
        device.settle()
        seen.add(device.http.get("/api/quality").json()["head"]["number"])
    assert len(seen) > HELD
    later = behind(device, figure="origin", name="station", head=first)["pictures"]
    assert [each["sample"] for each in later] == [each["sample"] for each in listed]


@pytest.mark.browser
def test_an_open_picture_keeps_its_list_with_each_head(device: Device, browser: Browser) -> None:
    head = device.http.get("/api/quality").json()["head"]["number"]
    one = behind(device, figure="origin", name="station", head=head)["pictures"][0]["sample"]
    address = f"{device.url}label?figure=origin&name=station&head={head}&sample={one}&offset=0"
    with screen(browser, address) as on:
        on.ready()
        assert on.asked() == one
        on.until("!asking")
        with on.page.expect_response(lambda each: f"head={head}" in each.url) as kept:
            say(device, hex_of("pit", 0), "pit")
        assert kept.value.ok


@pytest.mark.browser
def test_whoever_loses_a_list_is_told_that_and_not_that_it_ends(shared: Device, browser: Browser) -> None:
    def gone(route: Route) -> None:
        if "offset=0" in route.request.url:
            route.continue_(url=route.request.url.replace("limit=12", "limit=5"))
        else:
            route.fulfill(status=404, json={"error": "the figures of head 1 are held no longer", "hint": "-"})

    one = behind(shared, figure="origin", name="station")["pictures"][0]["sample"]
    with opened(browser, locale="en-US") as (_, on):
        on.page.route("**/api/quality/pictures*", gone)
        on.page.goto(f"{shared.url}label?figure=origin&name=station&sample={one}&offset=0")
        assert on.asked() == one
        for _ in range(5):
            on.settled()
            on.page.keyboard.press("s")
        expect(on.page.locator("#walk-lost")).to_be_visible()
        for each in ("walk-lost", "asked", "saved"):
            expect(on.page.locator(f"#{each}")).to_contain_text("The list is not as it was any more")
        expect(on.page.locator("#walked")).to_be_hidden()
        expect(on.page.locator("#asked")).not_to_contain_text("last one")
        on.page.locator("#walk-lost [data-back]").click()
        expect(on.page.locator("#behind-count")).to_be_visible()


@pytest.mark.browser
def test_a_label_that_somebody_else_corrects_meanwhile_is_not_overwritten(
    device: Device, browser: Browser
) -> None:
    found = behind(device, figure="recall", truth=class_id("scratch").hex())
    one = found["pictures"][0]["sample"]
    asked = f"figure=recall&truth={class_id('scratch').hex()}&head={found['head']}"
    with screen(browser, f"{device.url}quality/pictures?{asked}") as on:
        on.ready()
        on.page.evaluate("events.close()")  # this page hears nothing of it
        say(device, one, "pit")
        device.settle()
        on.page.once("dialog", Dialog.accept)
        on.page.locator("#behind li").nth(0).get_by_role("button", name="Take the label back").click()
        expect(on.page.locator("#notice")).to_contain_text("does not go with what is there already")
        on.problems.clear()  # the browser notes the refusal
    assert device.labels()[-1].class_id == class_id("pit")


@pytest.mark.browser
def test_the_slider_leads_to_the_pictures_behind_the_rate_that_it_shows(shared: Device, browser: Browser) -> None:
    points = shared.http.get("/api/operating").json()["points"]
    with screen(browser, shared.url + "quality") as on:
        on.ready()
        for place in (0, len(points) - 1):
            on.page.locator("#rate").fill(str(place))
            count, of = points[place]["escapes"]["count"], points[place]["escapes"]["samples"]
            expect(on.page.locator("#escapes-behind")).to_have_text(f"{count} of {of} pictures")
        assert count, "some pass at the loosest rate"
        on.page.locator("#escapes-behind").click()
        expect(on.page.locator("#behind-count")).to_have_text(f"{count} of {of} pictures")
        expect(on.page.locator("#other-rule")).to_be_visible()


def test_every_figure_of_the_pages_leads_to_as_many_pictures_as_it_says(shared: Device) -> None:
    report = shared.http.get("/api/quality").json()
    head = report["head"]["number"]
    pages = {path: shared.http.get(path).text for path in ("/quality", "/learned")}
    links = {
        path: [html.unescape(each) for each in re.findall(r'<a class="figure"[^>]* href="([^"]+)"', text)]
        for path, text in pages.items()
    }
    cells = [n for row in report["confusion"] for n in [*row["counts"], row["unknown"]] if n]
    costs = [n for n in (report["operating"]["by_class"][each]["count"] for each in ("escapes", "overkill")) if n]
    rows = [sum(row["counts"]) + row["unknown"] for row in report["confusion"]]
    slices = [each["right"]["samples"] for each in report["slices"]]
    counted = [
        len(re.findall("<li class=", shared.http.get(f"{link}&limit=200").text)) for link in links["/quality"]
    ]
    assert sorted(counted) == sorted([*cells, *costs, *rows, *slices])
    recalls = [f"/quality/pictures?figure=recall&truth={row['id']}&head={head}" for row in report["confusion"]]
    assert sorted(links["/learned"]) == sorted(recalls)
    assert {f"head={head}" in link for link in links["/quality"]} == {True}


def test_a_link_to_a_head_that_is_gone_shows_the_newest_and_says_so(shared: Device) -> None:
    shared.http.headers["accept-language"] = "en"
    page = shared.http.get("/quality/pictures", params={"figure": "lot", "name": "B1", "head": 999}).text
    assert "The figures of head 999 cannot be told any more." in page
    assert page.count("<li class=") == LOTS
    again = re.search(r'hx-get="([^"]+)"', page)
    assert again is not None
    for _ in range(2):  # and says so still where it is shown anew
        assert "The figures of head 999 cannot" in shared.http.get(html.unescape(again[1])).text
    assert "lost=" not in "".join(re.findall(r'<a [^>]*href="[^"]+"', page)), "what it leads to is there"
    nothing = shared.http.get("/quality/pictures", params={"figure": "recall", "truth": "ab" * 16})
    assert (nothing.status_code, "This figure cannot be told (head" in nothing.text) == (200, True)
