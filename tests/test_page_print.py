"""The quality report on paper and as CSV: whole, and it says what it is of and what the rule is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from sdk.bundle import Bundle
from tests.pages import Device, Screen, screen, serving, write_stream
from tests.tiny import class_id, tiny_bundle

SHORT = ("good", "pit", "scratch", *(f"pitted_surface_{i}" for i in range(10)))
LONG = (
    "good",
    "pit",
    "scratch",
    *(f"{i} pitted surface beside the weld, where the coating is worn" for i in range(7)),
)
SHEET = 718
"""Pixels across A4 within the margins that browsers leave."""


@pytest.fixture(scope="module", params=[SHORT, LONG], ids=["13 classes", "long names"])
def bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("print") / "bundle", classes=request.param, per_class=8)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Iterator[Device]:
    stream = write_stream(tmp_path_factory.mktemp("print") / "stream", {"good": 1, "pit": 1})
    with serving(tmp_path_factory.mktemp("print") / "data", stream, bundle) as found:
        found.settle()
        yield found


def on_paper(on: Screen) -> None:
    on.ready()
    on.page.emulate_media(media="print")


@pytest.mark.browser
def test_every_column_of_the_confusion_table_is_on_the_sheet(device: Device, browser: Browser) -> None:
    classes = device.http.get("/api/quality").json()["classes"]
    assert len(classes) == len(device.state()["classes"])
    with screen(browser, device.url + "quality", viewport={"width": SHEET, "height": 1000}) as on:
        on.ready()
        expect(on.page.locator(".printed .confusion").first).to_be_hidden()
        on_paper(on)
        expect(on.page.locator(".wide")).to_be_hidden()
        heads = on.page.locator(".printed .confusion thead th")
        assert [each.strip() for each in heads.all_text_contents()] == [*classes, "unknown"]
        for name in heads.all():
            box = name.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= SHEET
        assert on.page.locator(".printed .confusion td:not(thead td)").count() == len(classes) * (len(classes) + 1)
        assert on.page.evaluate("document.documentElement.scrollWidth") <= SHEET


@pytest.mark.browser
@pytest.mark.parametrize(
    ("locale", "by_class", "by_threshold"),
    [
        ("en-US", "What is taken for no good class is rejected.", "Rejected from a defect probability of"),
        ("de-DE", "Was für keine gute Klasse gehalten wird", "Aussortiert ab einer Fehlerwahrscheinlichkeit von"),
        ("zh-CN", "未判为合格类别的工件一律剔除", "缺陷概率达到"),
    ],
)
def test_the_sheet_says_what_it_is_of_and_the_rule_in_force(
    device: Device, browser: Browser, locale: str, by_class: str, by_threshold: str
) -> None:
    good = [class_id(name).hex() for name in ("good", "pit")]
    state = device.state()
    device.http.put("/api/operating", json={"good": good}).raise_for_status()
    with screen(browser, device.url + "quality", locale=locale) as on:
        on_paper(on)
        of, rule = on.page.locator("#report-of"), on.page.locator("#rule-in-force")
        for said in ("line-1", "tiny", "fp32", state["release"]["digest"], state["head"]["digest"], "20"):
            expect(of).to_contain_text(said)
        expect(rule).to_contain_text("good, pit")
        expect(rule).to_contain_text(by_class)
        expect(on.page.locator("#operating")).to_be_hidden()
        on.page.emulate_media(media="screen")
        on.page.locator("#rate").fill("0")  # and does not use it
        on_paper(on)
        expect(rule).to_contain_text(by_class)
        device.http.put("/api/operating", json={"good": good, "by_threshold": True}).raise_for_status()
        expect(rule).to_contain_text(by_threshold)


@pytest.mark.parametrize("by_threshold", [False, True])
def test_the_table_says_so_too(device: Device, by_threshold: bool) -> None:
    wanted = {"good": [class_id("good").hex()], "escape_rate": 0.02, "by_threshold": by_threshold}
    answer = device.http.put("/api/operating", json=wanted).raise_for_status().json()
    rows = list(csv.reader(io.StringIO(device.http.get("/api/quality.csv").text)))
    assert {len(row) for row in rows} == {9}
    of = {row[1]: row[3] for row in rows if row[0] == "about"}
    state = device.state()
    assert (of["device"], of["release"], of["precision"]) == ("line-1", "tiny", "fp32")
    assert (of["release digest"], of["head digest"]) == (state["release"]["digest"], state["head"]["digest"])
    assert of["made (UTC)"].endswith("Z")
    rule = {(row[1], row[2]): row[3] for row in rows if row[0] == "rule"}
    assert rule["good class", ""] == "good"
    assert rule["decided by", ""] == ("threshold" if by_threshold else "class")
    assert (("escape rate", "") in rule, ("threshold", "") in rule) == (by_threshold, by_threshold)
    costs = answer["point"] if by_threshold else answer["by_class"]
    for what in ("escapes", "overkill"):
        assert float(rule["in force", what]) == costs[what]["share"]
