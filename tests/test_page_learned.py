"""What was learned, in a real Chromium: suspects, history, roll back, what is rejected; on disk, in decisions."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, expect

from device_agent.accepting import Accepting, OperatingTarget, Target
from device_agent.heads import Reference, pack, score_of
from device_agent.heads_and_updates import Outcome
from device_agent.page.asked import question_of
from device_agent.parts import Ledger
from sdk.bundle import Bundle
from sdk.codes import code_digest
from sdk.errors import LabelError
from sdk.head import Calibration
from sdk.labels import Chain, CodeRecord, Label, Record, RenameClass
from sdk.operating import Costs, Rate, by_class
from sdk.score import LeftOut
from tests.pages import Device, hex_of, screen, serving, write_stream
from tests.simulators import wait_for
from tests.tiny import class_id, picture, tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("learned") / "bundle")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stream(
        tmp_path_factory.mktemp("learned") / "stream", {"rings": 6, "pit": 4, "scratch": 4, "good": 4}
    )


@pytest.fixture
def device(tmp_path: Path, bundle: Bundle, stream: Path) -> Iterator[Device]:
    with serving(tmp_path / "data", stream, bundle) as found:
        yield found


def label(device: Device, name: str, i: int, class_name: str) -> int:
    """Label `picture(name, 500 + i)`; return the log entry's number."""
    body = {"sample": hex_of(name, i), "class_name": class_name}
    saved = device.http.post("/api/labels", json=body).raise_for_status().json()
    device.settle()
    return int(saved["first_seq"])


def suspicious(device: Device) -> str:
    """Label a pit as a scratch and return its sample."""
    label(device, "pit", 1, "scratch")
    assert hex_of("pit", 1) in [each["sample"] for each in device.http.get("/api/suspects").json()]
    return hex_of("pit", 1)


def test_a_class_of_few_parts_is_not_said_to_need_no_labels(device: Device) -> None:
    """All other classes are well known; of rings there is one part, of which nothing can be said."""
    english = {"Accept-Language": "en"}
    assert "would hardly help" in device.http.get("/learned/outlook", headers=english).text
    device.http.post("/api/classes", json={"name": "rings"}).raise_for_status()
    label(device, "rings", 0, "rings")
    assert device.http.get("/api/outlook").json()["few"] == ["rings"]
    for language, says in (
        ("en", "Label rings first: fewer than 5 parts are too few"),
        ("de", "Zuerst rings zuordnen: Weniger als 5 Teile"),
        ("zh", "请先标注 rings：不足 5 个工件"),
    ):
        assert says in device.http.get("/learned/outlook", headers={"Accept-Language": language}).text


@pytest.mark.browser
def test_a_picture_is_deleted_for_good(device: Device, browser: Browser) -> None:
    """As of a person who stood before the camera."""
    label(device, "pit", 0, "pit")
    before = device.http.get("/api/state").json()["live_set_digest"]
    label(device, "rings", 0, "scratch")
    with screen(browser, device.url + "learned") as on:
        on.ready()
        asked: list[str] = []

        def agree(dialog: Dialog) -> None:
            asked.append(dialog.message)
            dialog.accept()

        on.page.on("dialog", agree)
        on.page.locator("#labels tbody tr").first.get_by_role("button", name="Delete the picture").click()
        expect(on.page.locator("#labels tbody tr").first).to_contain_text("taken back")
        expect(on.page.locator("#labels img")).to_have_count(1)
    assert asked == ["Delete this picture for good? Its label no longer counts."]
    assert device.http.get(f"/api/samples/{hex_of('rings', 0)}/image").status_code == 404
    wait_for(lambda: device.http.get("/api/state").json()["live_set_digest"] == before)


@pytest.mark.browser
def test_a_suspect_is_corrected_with_one_tap(device: Device, browser: Browser) -> None:
    sample = suspicious(device)
    with screen(browser, device.url + "learned", has_touch=True) as on:
        on.ready()
        on.page.locator("#suspects").get_by_role("button", name="It is pit").tap()
        expect(on.page.locator("#suspects")).to_contain_text("None: all labels agree")
    newest = device.labels()[-1]
    assert (newest.sample.hex(), newest.class_id) == (sample, class_id("pit"))
    device.settle()
    assert device.decides(picture("pit", 501)) == "pit"
    assert sample not in [each["sample"] for each in device.http.get("/api/suspects").json()]


@pytest.mark.browser
def test_a_suspect_is_confirmed_and_not_asked_about_again(device: Device, browser: Browser) -> None:
    sample = suspicious(device)
    digest = device.digest()
    with screen(browser, device.url + "learned", has_touch=True) as on:
        on.ready()
        on.page.locator("#suspects").get_by_role("button", name="scratch is right").tap()
        expect(on.page.locator("#labels")).to_contain_text("scratch confirmed")
    assert [(each.sample.hex(), each.class_id) for each in device.labels()] == [(sample, class_id("scratch"))] * 2
    assert device.digest() == digest
    assert sample not in [each["sample"] for each in device.http.get("/api/suspects").json()]


@pytest.mark.browser
def test_any_label_of_the_history_can_be_undone(device: Device, browser: Browser) -> None:
    device.station.define_class("rings", "ann")
    label(device, "rings", 0, "rings")
    only_first = device.digest()
    label(device, "pit", 0, "pit")
    label(device, "rings", 1, "rings")
    with screen(browser, device.url + "learned") as on:
        on.ready()
        row = on.page.locator("#labels tbody tr", has_text="pit")
        row.get_by_role("button", name="Undo").click()
        expect(on.page.locator("#labels")).to_contain_text("pit taken back")
        on.page.locator("#labels tbody tr", has_text="rings").first.get_by_role("button", name="Undo").click()
        expect(on.page.locator("#labels")).to_contain_text("rings taken back")
    assert [each.class_id for each in device.labels()][3:] == [None, None]
    assert device.digest() == only_first


@pytest.mark.browser
def test_a_head_is_rolled_back_to_exactly_what_it_was(device: Device, browser: Browser) -> None:
    device.station.define_class("rings", "ann")
    start = device.station.require().learner.status().number
    digest, probe = device.digest(), picture("rings", 990)
    before = device.station.inspect(probe).decision
    for i in range(3):
        label(device, "rings", i, "rings")
    assert device.decides(probe) == "rings"
    with screen(browser, device.url + "learned") as on:
        on.ready()
        on.page.on("dialog", lambda dialog: dialog.accept())
        row = on.page.locator("#heads tbody tr", has=on.page.locator(f"b:text-is('{start}')"))
        row.get_by_role("button", name="Roll back").click()
        expect(on.page.locator("#labels")).to_contain_text("rings taken back")
    assert [each.class_id for each in device.labels()][3:] == [None] * 3
    assert device.digest() == digest
    after = device.station.inspect(probe).decision
    # The trial calibrates anew, so the probability may differ; the head itself may not.
    assert (after.forced_id, after.novelty) == (before.forced_id, before.novelty)
    # And forward again: rolling back is undone like any other labels.
    device.http.post("/api/labels/undo", json={"first_seq": 8, "seq": 10}).raise_for_status()
    device.settle()
    assert device.decides(probe) == "rings"


@pytest.mark.browser
def test_the_operating_point_decides_what_the_next_frame_is(device: Device, browser: Browser) -> None:
    reference = device.station.require().learner
    device.settle()
    label(device, "pit", 0, "pit")
    assert reference.reference is not None
    probes = [device.station.inspect(picture("good", 800 + i)).decision for i in range(40)]
    known = [each for each in probes if each.forced == "good" and not each.unknown and each.defect is not None]
    assert any(each.rejected is False for each in known)
    with screen(browser, device.url + "quality") as on:
        on.ready()
        on.page.locator("#rate").fill("0")
        expect(on.page.locator("#rate-out")).to_have_text("0.0 %")
        on.page.get_by_role("button", name="Use this from now on").click()
        expect(on.page.locator("#operating-saved")).to_have_text("✓ done")
    chosen = device.http.get("/api/operating").json()
    assert (chosen["escape_rate"], chosen["by_threshold"], chosen["chosen"]) == (0.0, True, True)
    threshold = chosen["point"]["threshold"]
    for i in range(40):
        decision = device.station.inspect(picture("good", 800 + i)).decision
        assert decision.defect is not None
        assert decision.rejected == (decision.unknown or decision.defect >= threshold)
    stored = device.book.value("SELECT value FROM settings WHERE key = 'operating'")
    assert '"by_threshold":true' in stored


@pytest.mark.browser
def test_the_costs_shown_are_of_the_rule_that_is_chosen(
    device: Device, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share_of(rate: Rate, share: float) -> Rate:
        return replace(rate, share=share, low=share / 2, high=min(1.0, 2 * share))

    def costs(left_out: LeftOut, calibration: Calibration, good: Collection[bytes]) -> Costs:
        found = by_class(left_out, calibration, good)
        return Costs(share_of(found.escapes, 0.432), share_of(found.overkill, 0.123))

    monkeypatch.setattr("device_agent.page.quality.by_class", costs)  # this release decides all too well
    device.settle()
    answer = device.http.get("/api/operating").json()
    assert not answer["by_threshold"]
    assert [answer["by_class"][each]["share"] for each in ("escapes", "overkill")] == [0.432, 0.123]
    escapes, overkill = (f"{100 * answer['point'][each]['share']:.1f} %" for each in ("escapes", "overkill"))
    with screen(browser, device.url + "quality") as on:
        on.ready()

        def shows(first: str, second: str, *, off: bool) -> None:
            expect(on.page.locator("#escapes")).to_have_text(first)
            expect(on.page.locator("#overkill")).to_have_text(second)
            expect(on.page.locator("#of-threshold.off")).to_have_count(int(off))

        shows("43.2 %", "12.3 %", off=True)
        on.page.locator("#by-threshold").check()
        shows(escapes, overkill, off=False)
        on.page.locator("#by-threshold").uncheck()
        shows("43.2 %", "12.3 %", off=True)
        on.page.locator("#rate").fill("0")
        shows("0.0 %", f"{100 * answer['points'][0]['overkill']['share']:.1f} %", off=False)
        on.page.get_by_role("button", name="Use this from now on").click()
        expect(on.page.locator("#operating-saved")).to_have_text("✓ done")
        shows("0.0 %", f"{100 * answer['points'][0]['overkill']['share']:.1f} %", off=False)
    rows = list(csv.reader(io.StringIO(device.http.get("/api/quality.csv").text)))
    assert [row[3] for row in rows if row[:2] == ["operating", "by class"]] == ["0.432", "0.123"]


@pytest.mark.browser
def test_choosing_the_good_classes_again_leaves_the_rate_and_the_threshold_as_they_were(
    device: Device, browser: Browser
) -> None:
    """Also where the rates cannot be told, as after a release with other classes, and between two stops."""
    device.settle()
    gone = {"good": [], "escape_rate": 0.0, "by_threshold": True}
    device.http.put("/api/operating", json=gone).raise_for_status()
    with screen(browser, device.url + "quality") as on:
        on.ready()
        expect(on.page.locator("#stays")).to_contain_text("by a threshold, 0.0 % of the defects")
        on.page.get_by_label("good", exact=True).check()
        on.page.get_by_role("button", name="Use this from now on").click()
        expect(on.page.locator("#operating-saved")).to_have_text("✓ done")
        chosen = device.http.get("/api/operating").json()
        assert (chosen["good"], chosen["escape_rate"]) == ([class_id("good").hex()], 0.0)
        assert chosen["by_threshold"]
        expect(on.page.locator("#by-threshold")).to_be_checked()
        between = {"good": chosen["good"], "escape_rate": 0.03, "by_threshold": True}
        device.http.put("/api/operating", json=between).raise_for_status()
        on.page.reload()
        on.ready()
        on.page.get_by_role("button", name="Use this from now on").click()
        expect(on.page.locator("#operating-saved")).to_have_text("✓ done")
    assert device.http.get("/api/operating").json()["escape_rate"] == 0.03


@pytest.mark.browser
def test_the_page_says_what_became_of_the_last_label(device: Device, browser: Browser) -> None:
    device.station.define_class("rings", "ann")
    with screen(browser, device.url + "learned") as on:
        on.ready()
        expect(on.page.locator("#sentence")).to_have_text("Nothing was labelled here yet.")
        for i in range(3):
            label(device, "rings", i, "rings")
        expect(on.page.locator("#sentence")).to_contain_text("Your label “rings” is live.", timeout=60_000)
        recall = next(c for c in device.state()["score"]["classes"] if c["name"] == "rings")["recall"]
        expect(on.page.locator(".score tr", has_text="rings")).to_contain_text(f"{100 * recall:.0f} %")


@pytest.mark.browser
def test_counters_and_the_newest_part_are_what_the_line_has_done(device: Device, browser: Browser) -> None:
    with screen(browser, device.url) as on:
        on.ready()
        expect(on.page.locator("#count-parts")).to_have_text("18")
        unknown = device.station.counts.unknown
        expect(on.page.locator("#count-unknown")).to_have_text(str(unknown))
        expect(on.page.locator("#live-picture")).to_have_attribute("src", f"/api/samples/{_newest(device)}/image")
        expect(on.page.locator("#fact-fleet")).to_have_text("works alone")
        assert on.page.locator("#strip a").count() == 18


def _newest(device: Device) -> str:
    return device.station.store.samples.newest(limit=1)[0].sample_id.hex()


# -- what is refused ----------------------------------------------------------------------------------------------


def test_a_label_that_somebody_has_changed_since_is_not_undone(device: Device) -> None:
    first = label(device, "pit", 0, "scratch")
    label(device, "pit", 0, "pit")
    written = len(device.labels())
    answer = device.http.post("/api/labels/undo", json={"first_seq": first, "seq": first})
    assert answer.status_code == 409
    assert "since" in answer.json()["error"]
    nothing = device.http.post("/api/labels/undo", json={"first_seq": 900, "seq": 901})
    assert nothing.status_code == 409
    assert len(device.labels()) == written


def test_undoing_the_last_word_brings_the_word_before_back(device: Device) -> None:
    label(device, "pit", 0, "scratch")
    digest = device.digest()
    last = label(device, "pit", 0, "pit")
    device.http.post("/api/labels/undo", json={"first_seq": last, "seq": last}).raise_for_status()
    assert device.digest() == digest
    assert device.labels()[-1].class_id == class_id("scratch")


def test_labels_for_several_samples_are_saved_all_or_none(device: Device) -> None:
    good = [hex_of("pit", 0), hex_of("pit", 1)]
    for samples, status in (([*good, "0" * 64], 409), ([], 422), ([good[0]] * 65, 422)):
        answer = device.http.post("/api/labels", json={"samples": samples, "class_name": "pit"})
        assert answer.status_code == status
    both = {"sample": good[0], "samples": good, "class_name": "pit"}
    assert device.http.post("/api/labels", json=both).status_code == 422
    assert device.labels() == []
    saved = device.http.post("/api/labels", json={"samples": good, "class_name": "pit"}).json()
    assert saved["labels"] == 2
    assert [record.entry.seq for record in device.station.store.log.records()] == list(
        range(saved["first_seq"], saved["seq"] + 1)
    )


def test_a_head_that_never_was_is_not_restored(device: Device) -> None:
    assert device.http.post("/api/heads/999/restore", json={}).status_code == 404
    assert device.http.post("/api/heads/0/restore", json={}).status_code == 422
    assert device.labels() == []


def test_a_class_that_is_not_recognised_yet_is_not_said_to_be_known(tmp_path: Path, stream: Path) -> None:
    """Two parts that look like two other classes."""
    bundle = tiny_bundle(tmp_path / "bundle", per_class=40)
    with serving(tmp_path / "data", stream, bundle) as device:
        label(device, "scratch", 0, "scratch")
        device.settle()
        device.station.define_class("odd", "ann")
        label(device, "good", 0, "odd")
        label(device, "pit", 0, "odd")
        device.settle()
        assert [each.code for each in device.station.require().learner.status().why] == ["as-good", "not-yet"]
        for language, says in (
            ("en", "Not recognised yet: odd ("),
            ("de", "Noch nicht erkannt: odd ("),
            ("zh", "尚不能识别：odd"),
        ):
            page = device.http.get("/learned/part", headers={"Accept-Language": language}).text
            assert says in page
            for known in ("now recognised", "wird jetzt", "识别率现为"):
                assert known not in page


def test_what_others_said_since_stays_when_a_head_is_restored(device: Device) -> None:
    start = device.station.require().learner.status().number
    label(device, "pit", 0, "scratch")
    theirs = Label(bytes.fromhex(hex_of("pit", 1)), class_id("pit"), "bo")
    kept = device.station.store.samples.get(theirs.sample)
    assert kept is not None
    coded = CodeRecord(bytes.fromhex(kept.space), theirs.sample, kept.group, code_digest(kept.code))
    chain, code = Chain("line-2").write(coded, counter=98, wall_time_us=0)
    _, entry = chain.write(theirs, counter=99, wall_time_us=0)
    device.station.store.log.receive([Record(code, kept.code.tobytes()), Record(entry)], 2)
    restored = device.http.post(f"/api/heads/{start}/restore", json={}).json()
    assert (restored["labels"], restored["exact"]) == (1, False)
    assert [each.class_id for each in device.labels() if each.sample == theirs.sample] == [class_id("pit")]


def test_what_changed_no_label_leaves_a_restored_head_exact(device: Device) -> None:
    """A class that was made part of another and has no labels left, and a name from elsewhere."""
    learner = device.station.require().learner
    row = learner.history()[0]
    gone = learner.define_class("Krazter", "ann")
    sample = bytes.fromhex(hex_of("pit", 0))
    device.http.post("/api/labels", json={"sample": sample.hex(), "class_id": gone.hex()}).raise_for_status()
    learner.wait_until_idle(60)
    learner.merge_classes(gone, class_id("scratch"), "ann")
    _, entry = Chain("line-2").write(RenameClass(class_id("pit"), "dent", "bo"), counter=99, wall_time_us=0)
    device.station.store.log.receive([Record(entry)], 1)
    answer = device.http.post(f"/api/heads/{row.number}/restore", json={"operator": "ines"})
    restored = answer.raise_for_status().json()
    assert (restored["labels"], restored["exact"], restored["digest"]) == (1, True, row.digest)
    learner.wait_until_idle(60)
    assert device.digest() == row.digest
    assert device.labels()[-1].operator == "ines"


@pytest.mark.parametrize("path", ["heads/1/restore", f"samples/{hex_of('pit', 0)}/unsure"])
def test_a_member_that_nobody_knows_is_refused_and_none_is_needed(device: Device, path: str) -> None:
    assert device.http.post(f"/api/{path}", json={"operater": "ines"}).status_code == 422
    assert device.http.post(f"/api/{path}").is_success


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"good": ["0" * 32]}, 404),
        ({"good": ["x"]}, 422),
        ({"escape_rate": 0.6}, 422),
        ({"escape_rate": -0.1}, 422),
        ({"escape_rate": "nan"}, 422),
        ({"threshold": 0.5}, 422),
    ],
)
def test_an_operating_point_that_cannot_be_is_refused(
    device: Device, body: dict[str, object], status: int
) -> None:
    assert device.http.put("/api/operating", json=body).status_code == status
    assert device.station.operating.target == Target()


def test_good_classes_go_by_name_until_somebody_names_them(device: Device) -> None:
    found = device.http.get("/api/operating").json()
    assert (found["good"], found["chosen"]) == ([class_id("good").hex()], False)
    decision = device.station.inspect(picture("good", 700)).decision
    assert (decision.shown, decision.rejected) == ("good", False)


@pytest.mark.parametrize("chosen", [[], [class_id("gone").hex()]], ids=["none", "one that is gone"])
def test_where_no_chosen_class_is_left_every_part_is_rejected(device: Device, chosen: list[str]) -> None:
    """Also one that is called as [part] good says: that names good classes only until people choose them."""
    if chosen:
        device.station.operating.choose(Target(good=chosen))
    else:
        device.http.put("/api/operating", json={"good": []}).raise_for_status()
    assert device.http.get("/api/state").json()["none_passes"]
    decision = device.station.inspect(picture("good", 700)).decision
    assert (decision.shown, decision.rejected) == ("good", True)
    assert Ledger(("good",)).bad(decision)
    answer = device.http.post("/api/inspect", content=picture("good", 700)).json()
    assert (answer["decision"], answer["rejected"]) == ("good", True)


def test_a_good_class_that_is_gone_is_told(device: Device) -> None:
    device.station.operating.choose(Target(good=[class_id("good").hex(), "f" * 32]))
    found = device.http.get("/api/operating").json()
    assert (found["good"], found["lost"]) == ([class_id("good").hex()], ["f" * 32])
    assert "is gone" in device.http.get("/quality").text


def test_unknown_is_rejected_whatever_the_threshold() -> None:
    accepting = Accepting(frozenset({b"good"}), 0.9)
    assert accepting.rejects(b"good", 0.0, unknown=True)
    assert not accepting.rejects(b"pit", 0.89, unknown=False)
    assert accepting.rejects(b"good", 0.9, unknown=False)
    assert Accepting(frozenset({b"good"}), None).rejects(b"pit", 0.1, unknown=False)
    assert OperatingTarget(Target(good=[])).accepting({b"good": "good"}, None) == Accepting(frozenset(), None)
    assert OperatingTarget().accepting({b"pit": "pit"}, None) is None


def test_no_release_judges_by_the_threshold_of_another(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its probabilities are of other features; until its own scores are known, every part goes out."""
    label(device, "pit", 0, "pit")
    station = device.station
    station.operating.choose(Target(good=[class_id("good").hex()], escape_rate=0.2, by_threshold=True))
    serving = station.require()
    names = dict(zip(serving.learner.head.head.class_ids, serving.learner.head.names, strict=True))

    def judged(scored: Reference | None, release: str, *, scorable: bool = True) -> Accepting:
        accepting = station.operating.accepting(names, scored, release, scorable=scorable)
        assert accepting is not None
        return accepting

    def threshold(scored: Reference | None, release: str) -> float | None:
        return judged(scored, release).threshold

    wait_for(lambda: serving.learner.reference is not None)
    found = threshold(serving.learner.reference, serving.digest)
    assert found is not None
    assert threshold(None, serving.digest) == found  # a provisional head of the same release
    assert judged(None, "another").rejects(class_id("good"), 0.0, unknown=False)
    hopeless = judged(None, "another", scorable=False)  # too few groups: it would stand still for good
    assert (hopeless.threshold, hopeless.scored) == (None, True)
    assert threshold(None, serving.digest) == found  # a frame of before, still under way
    asked: list[str] = []

    def accepting(_names: object, _scored: object, release: str, **_more: object) -> None:
        asked.append(release)

    monkeypatch.setattr(station.operating, "accepting", accepting)
    station.inspect(picture("good", 701))
    assert asked == [serving.digest]


@pytest.mark.browser
def test_on_a_phone_what_was_labelled_is_read_in_whole_words(device: Device, browser: Browser) -> None:
    device.station.define_class("Kratzer", "ann")
    label(device, "rings", 0, "Kratzer")
    label(device, "rings", 0, "pit")
    label(device, "rings", 1, "Kratzer")
    with screen(browser, device.url + "learned", viewport={"width": 390, "height": 844}, locale="de") as on:
        on.ready()
        said = on.page.locator("#labels tbody tr td:nth-child(2)")
        expect(said.first).to_have_text("Kratzer")
        expect(on.page.locator("#heads tbody tr").first).to_be_visible()
        cells = "#labels tbody tr td:nth-child(2), #heads tbody tr td:nth-child(3)"
        widths = on.page.evaluate(f"[...document.querySelectorAll('{cells}')].map((cell) => cell.clientWidth)")
        assert widths
        assert min(widths) > 200
        assert on.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_scores_are_compared_with_confirmed_heads_of_the_release_that_serves(device: Device) -> None:
    """Not with those of refused heads, nor of an earlier release; and a head with fewer pictures is not older."""
    label(device, "pit", 0, "pit")
    heads = device.station.store.heads
    kept = next(row for row in heads.newest(limit=9) if row.outcome is Outcome.CONFIRMED)
    score = score_of(kept)
    assert score is not None

    def head(by: float, outcome: Outcome, space: str, samples: int) -> None:
        """Store a head whose recalls are lower by so much."""
        worse = [replace(c, recall=c.recall - by) for c in score.classes]
        found = pack(replace(score, balanced_accuracy=0.95 - by, classes=tuple(worse)))
        row = replace(kept, number=heads.next_number(), outcome=outcome, score=found, space=space, samples=samples)
        heads.put(row)

    before = device.http.get("/quality").text
    points = len(re.findall('class="dot"', before))
    confirmed = len([r for r in heads.newest(limit=99) if r.outcome is Outcome.CONFIRMED and r.score])
    assert points in (0, confirmed)
    head(0.0, Outcome.CONFIRMED, kept.space, 50)
    head(0.5, Outcome.TAKEN_BACK, kept.space, 51)
    head(0.4, Outcome.CONFIRMED, "another release's", 52)
    head(0.0, Outcome.CONFIRMED, kept.space, 20)
    page = device.http.get("/quality", headers={"accept-language": "en"}).text
    assert f"Balanced accuracy of {confirmed + 2} heads," in page
    assert 'to 95\u00a0%."' in page
    assert '<text x="296" y="127" text-anchor="end">20</text>' in page
    rows = re.findall("<tr[ >].*?</tr>", device.http.get("/learned/heads").text, re.DOTALL)[1:]
    assert "no class changed" in rows[0]
    table = list(csv.reader(io.StringIO(device.http.get("/api/quality.csv").text)))
    assert [(row[2], row[-1]) for row in table if row[0] == "heads"][:4] == [
        ("confirmed", kept.space),
        ("confirmed", "another release's"),
        ("taken_back", kept.space),
        ("confirmed", kept.space),
    ]


def test_the_quality_report_is_a_table_that_no_spreadsheet_runs(device: Device) -> None:
    label(device, "pit", 0, "pit")
    device.http.post("/api/classes", json={"name": "=1+1"}).raise_for_status()
    label(device, "rings", 0, "=1+1")
    answer = device.http.get("/api/quality.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.reader(io.StringIO(answer.text)))
    assert {len(row) for row in rows} == {9}
    assert {row[0] for row in rows} >= {"confusion", "operating", "heads"}
    assert not [cell for row in rows for cell in row if cell.startswith("=")]
    report = device.http.get("/api/quality").json()
    total = sum(sum(row["counts"]) + row["unknown"] for row in report["confusion"])
    score = device.state()["score"]
    assert total == score["samples"] + score["unjudged"]
    assert score["unjudged"] == 1  # one part alone shows "=1+1": no head that has not seen it can know it


def test_a_score_that_nothing_was_judged_for_is_not_0(tmp_path: Path, stream: Path) -> None:
    """The release has one part of each class, and one more label of one class makes no two."""
    few = tiny_bundle(tmp_path / "few", classes=("good", "pit"), per_class=2)
    with serving(tmp_path / "data", stream, few) as device:
        content = picture("rings", 500)  # nothing is unknown to it, so nothing is kept by itself
        device.http.post("/api/inspect?keep=true", content=content).raise_for_status()
        device.http.post("/api/classes", json={"name": "rings"}).raise_for_status()
        label(device, "rings", 0, "rings")
        assert device.state()["score"] is None
        assert device.http.get("/api/heads").json()[0]["balanced_accuracy"] is None
        page = device.http.get("/learned", headers={"accept-language": "en"}).text
        assert "Not known yet: no class has been shown by two parts." in page
        assert "0 %" not in page
        assert device.http.get("/quality").status_code == 200
        assert "headway_score_balanced_accuracy" not in device.http.get("/metrics").text


@pytest.mark.parametrize(
    ("reason", "kind", "names"),
    [
        ("unlike anything known", "unlike", (None, None)),
        ("spot check", "check", (None, None)),
        ("between a and b and a", "between", ("a", "b and a")),
        ("between nobody and a", "other", (None, None)),
    ],
)
def test_the_queues_reasons_can_be_said_in_any_language(
    reason: str, kind: str, names: tuple[str | None, str | None]
) -> None:
    found = question_of(reason, ["a", "b and a", "b"])
    assert found is not None
    assert (found.kind, (found.first, found.second)) == (kind, names)
    assert question_of("", []) is None


def test_history_of_a_store_without_labels_is_empty(device: Device) -> None:
    assert device.http.get("/api/labels").json() == []
    with pytest.raises(LabelError):
        device.station.label(b"\0" * 32, None, "ann")
