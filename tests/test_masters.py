"""Master parts judge every head and every release, and none learns from them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from device_agent.at_rest import look
from device_agent.camera import Shot
from device_agent.candidate import compare_masters
from device_agent.heads_and_updates import Outcome
from device_agent.learner import Learner
from device_agent.master_folder import Masters, check_folder, examine, of_each_class
from device_agent.masters import Best, MasterCodes, MasterSide, Telling, Told, judge, price_of
from device_agent.page.text import Texts
from device_agent.pipeline import Pipeline
from device_agent.report import masters_report
from device_agent.runtime import open_runtime
from device_agent.site_file import parse_site
from device_agent.station import Station
from device_agent.store import STORE_NAME, Store
from sdk.bundle import Bundle
from sdk.class_names import composed
from sdk.codes import Code
from sdk.errors import ConfigError, InferenceFailed
from sdk.finding import Level
from sdk.head import Head, solve
from sdk.images import decode, open_images, sample_id
from sdk.labels import Chain, Record, RenameClass
from sdk.moments import UNADAPTED, Moments
from sdk.wire import HeadState
from tests.simulators import wait_for
from tests.tiny import class_id, picture, tiny_bundle

SEEN = range(40)
"""Pictures that heads of these tests have learned from."""
MASTERS = range(500, 510)
NAMES = {class_id(name): name for name in ("good", "pit", "scratch", "stain")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", per_class=40)


@pytest.fixture(scope="module")
def pipeline(bundle: Bundle) -> Pipeline:
    return Pipeline(bundle, None, open_runtime(bundle, None))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("good", "pit", "scratch"):
        (tmp_path / "masters" / name).mkdir(parents=True)
        for i in MASTERS:
            (tmp_path / "masters" / name / f"{i}.png").write_bytes(picture(name, i))
    return tmp_path / "masters"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1") as store:
        yield store


def embed(pipeline: Pipeline, image: bytes) -> Code:
    return np.asarray(pipeline.code(decode(image))[0], np.int8)


def head_of(pipeline: Pipeline, taken_for: dict[str, str]) -> Head:
    """Return a head of pictures of some classes, each taken for one."""
    moments = Moments(pipeline.feature_size)
    for name, said in taken_for.items():
        codes = np.stack([embed(pipeline, picture(name, i)) for i in SEEN])
        moments.add(codes, [class_id(said)] * len(codes))
    return solve(moments)


def name_of(id_: bytes) -> str:
    return NAMES[id_]


def side(parts: MasterCodes | None, head: Head, learned: Sequence[bytes] = ()) -> MasterSide:
    assert parts is not None
    return MasterSide(parts, head, name_of, frozenset(learned))


RIGHT = {"good": "good", "pit": "pit", "scratch": "scratch"}
SWAPPED = {"good": "good", "pit": "scratch", "scratch": "pit"}


# -- judging


def test_a_head_that_tells_masters_worse_must_go_and_one_as_good_stays(pipeline: Pipeline, folder: Path) -> None:
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    right, swapped = head_of(pipeline, RIGHT), head_of(pipeline, SWAPPED)
    why = judge(side(parts, right), side(parts, swapped))
    assert why is not None
    assert (why.code, why.name in {"pit", "scratch"}) == ("masters", True)
    assert why.share < why.before - 0.5
    assert f"Taken back: of the master parts of {why.name} only" in why.sentence()
    assert Texts("de")("trial.masters").startswith("Zurückgenommen")
    assert judge(side(parts, right), side(parts, right)) is None
    assert judge(side(parts, swapped), side(parts, right)) is None


def test_a_class_that_only_the_new_head_knows_is_no_loss(pipeline: Pipeline, folder: Path) -> None:
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    two, three = head_of(pipeline, {"good": "good", "pit": "pit"}), head_of(pipeline, RIGHT)
    assert judge(side(parts, two), side(parts, three)) is None


def test_a_class_that_the_new_head_has_forgotten_is_one(pipeline: Pipeline, folder: Path) -> None:
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    two, three = head_of(pipeline, {"good": "good", "pit": "pit"}), head_of(pipeline, RIGHT)
    why = judge(side(parts, three), side(parts, two))
    assert why is not None
    assert (why.name, why.share) == ("scratch", 0.0)


def test_masters_that_were_learned_from_show_nothing(pipeline: Pipeline, folder: Path) -> None:
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    assert parts is not None
    learned = parts.samples
    right, swapped = head_of(pipeline, RIGHT), head_of(pipeline, SWAPPED)
    assert judge(side(parts, right, learned), side(parts, swapped, learned)) is None


@pytest.mark.parametrize("which", ["before", "after"])
def test_masters_that_only_one_release_learned_from_show_nothing(
    pipeline: Pipeline, folder: Path, which: str
) -> None:
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    assert parts is not None
    learned = {"before": (), "after": (), which: parts.samples}
    before = side(parts, head_of(pipeline, RIGHT), learned["before"])
    after = side(parts, head_of(pipeline, SWAPPED), learned["after"])
    assert judge(before, after) is None


def test_a_master_that_is_labelled_later_is_told_no_more(store: Store, bundle: Bundle, folder: Path) -> None:
    station = Station(store, masters=folder)
    station.serve(bundle, None, open_runtime(bundle, None))
    learner = station.require().learner
    try:
        wait_for(lambda: learner.masters() is not None, what="the master parts")
        data = (folder / "pit" / "500.png").read_bytes()
        seen = station.see(Shot(decode(data), 0.0, "line-1/500", "", data))
        station.label(seen.sample_id, class_id("pit"), "ann")
        assert learner.wait_until_idle(60.0)
        report = masters_report(learner.masters())
        assert report is not None
        assert report.of == 29
    finally:
        station.close()


def test_a_head_of_one_class_is_no_judge(pipeline: Pipeline, folder: Path) -> None:
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    one = head_of(pipeline, {"good": "good"})
    good_for_pit = head_of(pipeline, {"good": "pit", "pit": "good"})
    assert judge(side(parts, head_of(pipeline, RIGHT)), side(parts, good_for_pit)) is not None, "the control"
    assert judge(side(parts, one), side(parts, good_for_pit)) is None


@pytest.mark.parametrize(
    ("folder_name", "class_name"), [("Lo\u0308cher", "L\u00f6cher"), ("DEEP  pit", "deep pit")]
)
def test_a_folder_is_of_its_class_however_its_name_is_written(
    pipeline: Pipeline, folder: Path, folder_name: str, class_name: str
) -> None:
    (folder / "pit").rename(folder / folder_name)
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    assert parts is not None
    names = {**NAMES, class_id("pit"): class_name}
    told = parts.told(head_of(pipeline, RIGHT), names.__getitem__)
    assert [each.right for each in told if each.wanted == composed(folder_name)].count(True) >= 8


def test_a_class_in_two_folders_counts_once(pipeline: Pipeline, folder: Path) -> None:
    """One lost part of ten is 3 points of three classes; alone in a folder of its own it would be 25 of four."""
    (folder / "Pit").mkdir()
    (folder / "pit" / "500.png").rename(folder / "Pit" / "500.png")
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    assert parts is not None
    codes = parts.codes.copy()
    codes[parts.classes.index("Pit")] = codes[parts.classes.index("scratch")]
    head = head_of(pipeline, RIGHT)
    assert judge(side(parts, head), side(replace(parts, codes=codes), head)) is None


def test_small_steps_down_are_one_large_one(pipeline: Pipeline, folder: Path) -> None:
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    assert parts is not None
    head = head_of(pipeline, RIGHT)
    right = side(parts, head).right()
    well = [row for row, sample in enumerate(parts.samples) if parts.classes[row] == "pit" and right[sample]]

    def losing(count: int) -> MasterSide:
        """Return the head where so many pits look like the first scratch, 3.3 points apiece."""
        codes = parts.codes.copy()
        codes[well[:count]] = parts.codes[parts.classes.index("scratch")]
        return side(replace(parts, codes=codes), head)

    assert judge(losing(0), losing(1)) is None
    assert judge(losing(1), losing(2)) is None, "the control: each by itself is small"
    best = Best()
    assert judge(losing(0), losing(1), best) is None
    why = judge(losing(1), losing(2), best)
    assert why is not None
    assert (why.name, round(why.before - why.share, 2)) == ("pit", 0.2)
    assert judge(losing(1), losing(0), best) is None
    assert judge(losing(0), losing(1), best) is None


def test_a_part_that_a_confirmed_head_tells_again_is_undone_no_more(pipeline: Pipeline, folder: Path) -> None:
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    assert parts is not None
    right, swapped = side(parts, head_of(pipeline, RIGHT)), side(parts, head_of(pipeline, SWAPPED))
    best = Best()
    price = price_of(right, swapped, best)
    assert price is not None
    lost = [sample for sample in parts.samples if best.is_undone(sample)]
    assert (price.code, price.times, price.of) == ("undone-masters", len(lost), 30)
    assert len(lost) > 10
    best.of(swapped)
    assert all(map(best.is_undone, lost)), "the head before is not confirmed any more, and this one tells them so"
    best.of(right)
    assert not any(map(best.is_undone, lost))
    assert price_of(swapped, right, best) is None


# -- the folder


def test_what_is_no_picture_is_told_and_the_others_judge(
    pipeline: Pipeline, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "pit" / "broken.png").write_bytes(b"no picture")
    masters = Masters(folder, lambda image: embed(pipeline, image))
    gone = folder / "good" / "500.png"

    def stop() -> bool:
        gone.unlink(missing_ok=True)  # after the folder was read
        return False

    with caplog.at_level(logging.WARNING):
        parts = masters.codes(stop)
    assert parts is not None
    assert len(parts.files) == 29
    assert "broken.png is no master part" in caplog.text
    assert f"{gone} is no master part any more" in caplog.text
    findings = list(examine(folder))
    assert [each.level for each in findings] == [Level.GOOD, Level.NOTE]
    assert "29 master parts: 9 of good, 10 of pit, 10 of scratch" in findings[0].what


def test_what_was_embedded_before_a_label_came_is_not_embedded_again(pipeline: Pipeline, folder: Path) -> None:
    done: list[bytes] = []

    def counted(image: bytes) -> Code:
        done.append(image)
        return embed(pipeline, image)

    masters = Masters(folder, counted)
    with pytest.raises(InterruptedError):
        masters.codes(lambda: len(done) == 7)
    assert masters.ready is None
    parts = masters.codes(lambda: False)
    assert parts is not None
    assert len(done) == len(set(done)) == len(parts.files) == 30


def test_a_pipe_in_the_place_of_a_master_that_was_read_is_not_waited_for(pipeline: Pipeline, folder: Path) -> None:
    def replaced() -> bool:  # after all were read, before each is embedded
        first = min(folder.glob("*/*.png"))
        if first.is_file():
            first.unlink()
            os.mkfifo(first)
        return False

    masters = Masters(folder, lambda image: embed(pipeline, image))
    parts = masters.codes(replaced, lambda: False)
    assert parts is not None
    assert len(parts.files) == 29


def test_an_agent_that_stops_does_not_wait_until_the_folder_is_read(pipeline: Pipeline, folder: Path) -> None:
    asked: list[bool] = []

    def end() -> bool:
        asked.append(len(asked) == 3)
        return asked[-1]

    masters = Masters(folder, lambda image: embed(pipeline, image))
    with pytest.raises(InterruptedError):
        masters.codes(lambda: False, end)
    assert len(asked) == 4
    parts = masters.codes(lambda: False, lambda: False)
    assert parts is not None
    assert len(parts.files) == 30


def test_a_folder_that_cannot_be_looked_at_is_refused_in_words(tmp_path: Path) -> None:
    """As where a folder above it is another user's; a name too long is the same to whoever may read everything."""
    with pytest.raises(ConfigError, match="cannot be read: File name too long") as refusal:
        check_folder(tmp_path / ("n" * 300))
    assert refusal.value.hint
    (found,) = examine(tmp_path / ("n" * 300))
    assert found.level is Level.FAULT
    assert Masters(tmp_path / ("n" * 300), lambda _: np.zeros(1, np.int8)).codes(lambda: False) is None


def test_parts_that_judge_nothing_are_told_by_the_doctor(bundle: Bundle, folder: Path) -> None:
    """They are of no class of the release, or pictures that it has learned."""
    for name, under in (("pit", "pitt"), ("rings", "strange")):
        (folder / under).mkdir()
        (folder / under / "1.png").write_bytes(picture(name, 600))
    for each in MASTERS:
        (folder / "scratch" / f"{each}.png").unlink()
    learned, came = set(bundle.base().samples), 0
    for i in SEEN:
        if sample_id(picture("scratch", i)) in learned:
            (folder / "scratch" / f"{i}.png").write_bytes(picture("scratch", i))
            came += 1
    notes = {
        each.what: each.fix for each in examine(folder, look(bundle, None, "line-1")) if each.level is Level.NOTE
    }
    assert list(notes) == [
        "parts of 'pitt' judge nothing (1): no class has that name",
        "parts of 'strange' judge nothing (1): no class has that name",
        f"parts whose very pictures were learned judge nothing ({came}); {2 * len(MASTERS)} others do",
        "no part judges 'scratch'",
    ]
    first, second, *_ = notes.values()
    assert (first.startswith("Did you mean 'pit'?"), "mean" in second) == (True, False)
    assert [each.level for each in examine(folder)] == [Level.GOOD]


def test_the_doctor__people_named_and_labelled_here(
    tmp_path: Path, store: Store, bundle: Bundle, folder: Path
) -> None:
    """And by what the station itself then says of its parts."""
    station = Station(store, masters=folder)
    station.serve(bundle, None, open_runtime(bundle, None))
    learner = station.require().learner
    try:
        wait_for(lambda: learner.masters() is not None, what="the master parts")
        station.rename_class(class_id("pit"), "Loch", "ann")
        rings = station.define_class("rings", "ann")
        station.define_class("burr", "ann")
        for i in range(700, 712):
            data = picture("rings", i)
            seen = station.see(Shot(decode(data), float(i), f"line-1/{i}", "", data))
            station.label(seen.sample_id, rings, "ann")
        assert learner.wait_until_idle(60.0)
    finally:
        station.close()
    (folder / "scratch").rename(folder / "Loch")
    for name, numbers in (("rings", (700, 800)), ("burr", (800,))):
        (folder / name).mkdir()
        for i in numbers:
            (folder / name / f"{i}.png").write_bytes(picture(name, i))
    notes = [each.what for each in examine(folder, look(bundle, None, "line-1", store.folder / STORE_NAME))]
    pits, others = len(MASTERS), 2 * len(MASTERS) + 1
    assert notes[1:] == [
        "parts of 'burr' judge nothing (1): nothing is of that class yet",
        f"parts of 'pit' judge nothing ({pits}): no class has that name",
        f"parts whose very pictures were learned judge nothing (1); {others} others do",
    ]
    again = Station(store, masters=folder)
    again.serve(bundle, None, open_runtime(bundle, None))
    try:
        wait_for(lambda: again.require().learner.masters() is not None, what="the master parts")
        report = masters_report(again.require().learner.masters())
        assert report is not None
        assert (report.of, report.strange) == (others, ["pit"])
    finally:
        again.close()


def test_many_good_parts_leave_room_for_the_others(folder: Path) -> None:
    for i in MASTERS[3:]:
        (folder / "scratch" / f"{i}.png").unlink()
    images = open_images(folder).images
    kept = of_each_class(images, 13)
    assert Counter(image.label for image in kept) == {"good": 5, "pit": 5, "scratch": 3}
    assert [image.path.name for image in kept[:5]] == [f"{i}.png" for i in MASTERS[:5]]
    assert of_each_class(images, 100) == list(images)


def test_what_a_technician_should_know_of_the_folder_is_told(folder: Path) -> None:
    (folder / "Good").mkdir()
    (folder / "Good" / "1.png").write_bytes(picture("good", 77))
    (folder / "empty").mkdir()
    notes = [each.what for each in examine(folder) if each.level is Level.NOTE]
    assert notes == ["Folders without images: empty."], "Good and good are one class here"


def test_a_folder_without_pictures_is_told_and_judges_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    assert Masters(tmp_path / "empty", lambda _: np.zeros(1, np.int8)).codes(lambda: False) is None
    assert "no master parts" in caplog.text
    assert [each.level for each in examine(tmp_path / "empty")] == [Level.FAULT]
    assert list(examine(None)) == []


def test_a_folder_that_is_not_there_is_refused_at_the_start(store: Store, tmp_path: Path) -> None:
    text = f'device = "line-1"\n[camera]\nkind = "folder"\npath = "i"\n[part]\nmasters = "{tmp_path}/none"\n'
    site = parse_site(text, tmp_path / "site.toml")
    with pytest.raises(ConfigError, match="no such folder of master parts") as refusal:
        Station(store, masters=site.part.masters)
    assert refusal.value.hint


def test_a_label_that_is_undone_while_masters_are_embedded_does_not_leave_them_unread(
    store: Store, bundle: Bundle, pipeline: Pipeline, folder: Path
) -> None:
    data = picture("pit", 900)
    sample = sample_id(data)
    done: list[bytes] = []

    def interrupted(image: bytes) -> Code:
        done.append(image)
        if len(done) == 7:
            learner.label(sample, class_id("pit"), "ann")
            learner.label(sample, None, "ann")
        return embed(pipeline, image)

    station = Station(store, threads=False)
    station.serve(bundle, None, open_runtime(bundle, None))
    station.see(Shot(decode(data), 0.0, "line-1/900", "", data))
    learner = Learner(bundle, None, store, embed=interrupted, masters=folder)
    learner.run_until_idle()
    assert learner._trials.unprepared()
    learner._trials.step()
    learner.run_until_idle()
    assert learner.masters() is None
    assert learner._trials.unprepared()
    learner._trials.step()
    telling = learner.masters()
    assert telling is not None
    assert len(telling.told) == len(done) == 30
    assert not learner._trials.unprepared()
    station.close()


# -- a station, and a release


def labelled_wrongly(store: Store, bundle: Bundle, masters: Path | None) -> Station:
    """Return a station whose operators have taken pits for scratches and the other way round."""
    station = Station(store, masters=masters, threads=False)
    station.serve(bundle, None, open_runtime(bundle, None))
    learner = station.require().learner
    learner.run_until_idle()
    for i in range(40):
        for name, said in (("pit", "scratch"), ("scratch", "pit")):
            data = picture(name, 800 + i)
            shot = Shot(decode(data), 0.0, f"line-1/{name}{i}", "", data)
            station.label(station.see(shot).sample_id, class_id(said), "ann")
    learner.run_until_idle()
    return station


def test_a_head_of_wrong_labels_is_taken_back_by_the_masters(store: Store, bundle: Bundle, folder: Path) -> None:
    station = labelled_wrongly(store, bundle, folder)
    learner = station.require().learner
    status = learner.status()
    assert (status.outcome, status.state) == (Outcome.TAKEN_BACK, HeadState.CONFIRMED)
    assert status.why[0].code == "masters"
    report = masters_report(learner.masters())
    assert report is not None
    assert report.of == 30
    assert report.right + len(report.wrong) == 30
    assert report.right >= 24
    station.close()


def test_a_folder_whose_class_was_renamed_is_told(store: Store, bundle: Bundle, folder: Path) -> None:
    station = Station(store, masters=folder)
    station.serve(bundle, None, open_runtime(bundle, None))
    learner = station.require().learner
    try:
        wait_for(lambda: learner.masters() is not None, what="the master parts")
        before = masters_report(learner.masters())
        assert before is not None
        assert (before.of, before.strange) == (30, [])
        learner.rename_class(class_id("pit"), "hole", "ann")
        assert learner.wait_until_idle(60.0)
        after = masters_report(learner.masters())
        assert after is not None
        assert (after.of, after.strange) == (20, ["pit"])
    finally:
        station.close()


def test_no_other_device_s_name_takes_the_masters_from_their_class(
    store: Store, bundle: Bundle, folder: Path
) -> None:
    """Else one `rename` would keep them from judging, or let them judge by another class."""
    station = Station(store, masters=folder)
    station.serve(bundle, None, open_runtime(bundle, None))
    learner = station.require().learner
    try:
        wait_for(lambda: learner.masters() is not None, what="the master parts")
        chain, log = Chain("evil"), list[Record]()
        for counter, (name, said) in enumerate([("pit", "scratch"), ("scratch", "pit")], 1):
            body = RenameClass(class_id(name), said, "eve")
            chain, entry = chain.write(body, counter=counter, wall_time_us=0)
            log.append(Record(entry))
        store.log.receive(log, 2)
        learner.received(log)
        assert learner.wait_until_idle(60.0)
        assert {each.class_id: each.name for each in learner.classes()}[class_id("pit")] == "scratch"
        report = masters_report(learner.masters())
        assert report is not None
        assert (report.of, report.strange) == (30, [])
        assert report.right >= 24
    finally:
        station.close()


def test_without_masters_it_would_decide(store: Store, bundle: Bundle) -> None:
    """The control: the station's own labels agree with each other, so their own score is no worse."""
    station = labelled_wrongly(store, bundle, None)
    learner = station.require().learner
    assert learner.status().outcome is Outcome.CONFIRMED
    assert learner.masters() is None
    assert masters_report(None) is None
    station.close()


def test_a_masters_name_that_is_no_utf_8_is_told_as_text() -> None:
    """With lone surrogates in it the state could not be told at all."""
    told = [Told(Path("pit", "pr\udcfcf.png"), b"", "pit", "good", right=False)]
    report = masters_report(Telling(told, ("pr\udcfcf",)))
    assert report is not None
    assert msgspec.json.decode(msgspec.json.encode(report))["wrong"][0]["file"] == "pr\\xfcf.png"
    assert report.strange == ["pr\\xfcf"]


def test_a_release_that_tells_masters_worse_is_refused(
    store: Store, bundle: Bundle, pipeline: Pipeline, folder: Path, tmp_path: Path
) -> None:
    made = {
        name: tiny_bundle(tmp_path / name, per_class=40, seed=1, called=called)
        for name, called in (("as-good", {}), ("confused", {"pit": "scratch", "scratch": "pit"}))
    }
    found = {
        name: compare_masters(
            store,
            folder,
            (bundle, pipeline),
            (new, Pipeline(new, None, open_runtime(new, None))),
            lambda: False,
        )
        for name, new in made.items()
    }
    assert found["as-good"] is None
    assert found["confused"] is not None
    assert found["confused"].code == "masters"


def test_masters_are_identical_by_content_whatever_they_are_called(folder: Path) -> None:
    same = folder / "pit" / "copy.png"
    same.write_bytes((folder / "pit" / "500.png").read_bytes())
    parts = Masters(folder, lambda image: np.frombuffer(sample_id(image), np.int8)).codes(lambda: False)
    assert parts is not None
    assert len(parts.samples) == 30


def test_a_candidate_is_compared_with_the_head_that_serves_not_with_labels_taken_back(
    store: Store, bundle: Bundle, pipeline: Pipeline, folder: Path
) -> None:
    station = labelled_wrongly(store, bundle, folder)
    confirmed = station.confirmed(pipeline.space)
    assert confirmed is not None
    assert station.confirmed("another space") is None
    same = bundle, pipeline
    assert compare_masters(store, folder, same, same, lambda: False) is None, "both have the wrong labels"
    why = compare_masters(store, folder, same, same, lambda: False, confirmed)
    assert why is not None
    assert why.code == "masters"
    station.close()


def test_a_candidate_weighs_own_labels_as_the_head_that_serves_does(
    store: Store, pipeline: Pipeline, folder: Path, tmp_path: Path
) -> None:
    """A release that takes pits for scratches is outweighed by few own labels, here and in a candidate."""
    confused = tiny_bundle(tmp_path / "confused", per_class=40, called={"pit": "scratch", "scratch": "pit"})
    station = Station(store, masters=folder, threads=False)
    station.serve(confused, None, open_runtime(confused, None))
    for i in range(700, 710):
        for name in RIGHT:
            data = picture(name, i)
            seen = station.see(Shot(decode(data), 0.0, f"line-1/{name}{i}", "", data))
            station.label(seen.sample_id, class_id(name), "ann")
    station.require().learner.run_until_idle()
    confirmed = station.confirmed(confused.space())
    assert confirmed is not None
    assert confirmed.adaptation.own_weight > 1
    same = confused, pipeline
    assert compare_masters(store, folder, same, same, lambda: False, confirmed) is None
    plain = replace(confirmed, adaptation=UNADAPTED)
    assert compare_masters(store, folder, same, same, lambda: False, plain) is not None, "the control"
    station.close()


def test_a_picture_that_the_backbone_cannot_take_judges_nothing_and_holds_nothing_up(
    pipeline: Pipeline, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = (folder / "pit" / "501.png").read_bytes()

    def choosy(image: bytes) -> Code:
        if image == odd:
            raise InferenceFailed("not finite", hint="")
        return embed(pipeline, image)

    parts = Masters(folder, choosy).codes(lambda: False)
    assert parts is not None
    assert len(parts.files) == 29
    assert "501.png is no master part any more: not finite" in caplog.text


def test_a_class_whose_labels_were_withdrawn_is_let_go(pipeline: Pipeline, folder: Path) -> None:
    """An undo counts, though the station keeps masters of that class; a release that lacks it is worse."""
    parts = Masters(folder, lambda image: embed(pipeline, image)).codes(lambda: False)
    two, three = head_of(pipeline, {"good": "good", "pit": "pit"}), head_of(pipeline, RIGHT)
    assert judge(side(parts, three), side(parts, two), Best()) is None
    assert judge(side(parts, three), side(parts, two)) is not None
