"""A part is passed only when everything was seen, in time, and is good; whatever else happens, it is rejected."""

from __future__ import annotations

import numpy as np
import pytest

from device_agent.camera import Shot
from device_agent.parts import LATE, MAX_WAITING, MISSING, STOPPING, TOO_MANY, Finding, Ledger, Part
from device_agent.station import Decision
from sdk.wire import Verdict

FOREVER = float("inf")


def found(
    shown: str,
    *,
    tile: int = 0,
    probability: float = 0.9,
    novelty: float = 0.1,
    defect: float | None = None,
    rejected: bool | None = None,
) -> Finding:
    """Return a tile that was decided so; "unknown" is best taken for good."""
    unknown = shown == "unknown"
    forced = "good" if unknown else shown
    shot = Shot(np.zeros((8, 8, 3), np.uint8), 0.0, "line-1/p", "camera", tile=tile)
    decision = Decision(
        shown=shown,
        class_id=None if unknown else shown.encode(),
        forced=forced,
        forced_id=forced.encode(),
        probability=probability,
        novelty=novelty,
        threshold=0.5,
        unknown=unknown,
        scores={},
        head=1,
        question=None,
        defect=defect,
        rejected=rejected,
        good=None if rejected is None else shown == "good",
    )
    return Finding(shot, decision)


def ledger(cameras: int = 1, frames: int = 1, good: tuple[str, ...] = ("Good",)) -> Ledger:
    return Ledger(good, cameras=cameras, frames=frames)


def opened(book: Ledger, *names: str, deadline_s: float = FOREVER) -> Ledger:
    for name in names:
        book.expect(name, name, 100.0, 1.0, deadline_s)
    return book


def only(parts: list[Part]) -> Part:
    (part,) = parts
    return part


def test_a_part_whose_tiles_are_all_good_passes_and_names_the_least_sure() -> None:
    book = opened(ledger(), "p1")
    part = only(book.decided("p1", 0, [found("good", tile=1), found("good", tile=2, probability=0.6)], 1.5))
    assert part.verdict is Verdict.PASS
    assert (part.name, part.reason, part.tiles, part.rejected) == ("p1", "good", 2, 0)
    assert part.finding is not None
    assert part.finding.shot.tile == 2
    assert part.latency_ms == pytest.approx(500)
    assert book.depth == 0


@pytest.mark.parametrize(
    ("tiles", "reason", "tile"),
    [
        ([found("good", tile=1), found("scratch", tile=2), found("good", tile=3)], "scratch", 2),
        ([found("scratch", tile=1, probability=0.5), found("pit", tile=2, probability=0.8)], "pit", 2),
        ([found("unknown", tile=1), found("good", tile=2)], "unknown", 1),
        ([found("unknown", tile=1, novelty=0.9), found("pit", tile=2, probability=0.4)], "pit", 2),
        ([found("unknown", tile=1, novelty=0.6), found("unknown", tile=2, novelty=0.8)], "unknown", 2),
    ],
    ids=["one-defect", "the-surest", "unknown", "a-defect-before-unknown", "the-strangest"],
)
def test_any_bad_tile_rejects_the_part_and_the_worst_is_named(
    tiles: list[Finding], reason: str, tile: int
) -> None:
    part = only(opened(ledger(), "p").decided("p", 0, tiles, 2.0))
    assert part.verdict is Verdict.REJECT
    assert part.reason == reason
    assert part.finding is not None
    assert part.finding.shot.tile == tile


@pytest.mark.parametrize(
    ("tiles", "verdict", "reason", "tile"),
    [
        (
            [
                found("good", tile=1, probability=0.86, defect=0.14, rejected=True),
                found("pit", tile=2, probability=0.6, defect=0.7, rejected=True),
            ],
            Verdict.REJECT,
            "pit",
            2,
        ),
        (
            [
                found("good", tile=1, probability=0.9, defect=0.1, rejected=False),
                found("good", tile=2, probability=0.86, defect=0.14, rejected=True),
            ],
            Verdict.REJECT,
            "defect 14 %, shown good",
            2,
        ),
        (
            [
                found("good", tile=1, probability=0.7, defect=0.3, rejected=False),
                found("pit", tile=2, probability=0.8, defect=0.9951, rejected=False),
            ],
            Verdict.PASS,
            "defect 99.51 %, shown pit",
            2,
        ),
        ([found("good", tile=1, defect=0.0043, rejected=True)], Verdict.REJECT, "defect 0.43 %, shown good", 1),
    ],
    ids=["the-likeliest-defect", "a-good-class-by-threshold", "a-defect-that-passes", "a-low-threshold"],
)
def test_by_threshold_the_likeliest_defect_is_named_and_where_the_class_says_otherwise_so_is_how_likely(
    tiles: list[Finding], verdict: Verdict, reason: str, tile: int
) -> None:
    part = only(opened(ledger(), "p").decided("p", 0, tiles, 2.0))
    assert (part.verdict, part.reason) == (verdict, reason)
    assert part.finding is not None
    assert part.finding.shot.tile == tile


def test_a_part_waits_for_all_frames_of_all_cameras() -> None:
    book = opened(ledger(cameras=2, frames=2), "p")
    for camera in (0, 0, 1):
        assert book.decided("p", camera, [found("good")], 2.0) == []
    part = only(book.decided("p", 1, [found("pit")], 2.0))
    assert (part.verdict, part.reason, part.frames) == (Verdict.REJECT, "pit", 4)


def test_one_bad_frame_of_several_rejects_the_part_though_the_last_is_good() -> None:
    book = opened(ledger(frames=2), "p")
    assert book.decided("p", 0, [found("pit")], 2.0) == []
    assert only(book.decided("p", 0, [found("good")], 2.0)).verdict is Verdict.REJECT


def test_what_is_late_is_rejected_when_its_time_is_over_and_not_again_when_it_comes() -> None:
    book = opened(ledger(), "p", deadline_s=3.0)
    assert book.next_deadline_s() == 3.0
    assert book.expire(2.999) == []
    part = only(book.expire(3.0))
    assert (part.verdict, part.reason, part.finding) == (Verdict.REJECT, LATE, None)
    assert book.decided("p", 0, [found("good")], 3.1) == []
    assert book.next_deadline_s() is None


def test_a_late_part_still_says_which_tile_was_bad_as_far_as_it_was_seen() -> None:
    book = opened(ledger(frames=2), "p", deadline_s=3.0)
    book.decided("p", 0, [found("pit", tile=4)], 2.0)
    part = only(book.expire(3.0))
    assert part.reason == LATE
    assert part.finding is not None
    assert part.finding.shot.tile == 4


def test_a_stop_rejects_all_that_is_open_and_takes_nothing_more() -> None:
    book = opened(ledger(), "a", "b")
    stopped = book.stop(2.0)
    assert [(part.name, part.verdict, part.reason) for part in stopped] == [
        ("a", Verdict.REJECT, STOPPING),
        ("b", Verdict.REJECT, STOPPING),
    ]
    opened(book, "c")
    assert book.depth == 0
    assert book.decided("c", 0, [found("good")], 2.1) == []


@pytest.mark.parametrize(
    ("tiles", "fault", "reason"),
    [
        ([], "not inspected: out of order", "not inspected: out of order"),
        ([], "", MISSING),
        ([found("good")], "the picture is black", "the picture is black"),
    ],
    ids=["failed", "no-tiles", "black"],
)
def test_a_frame_that_cannot_be_trusted_rejects_its_part(tiles: list[Finding], fault: str, reason: str) -> None:
    part = only(opened(ledger(), "p").decided("p", 0, tiles, 2.0, fault))
    assert (part.verdict, part.reason) == (Verdict.REJECT, reason)


def test_a_part_that_its_camera_has_left_behind_is_rejected_for_the_frames_that_are_missing() -> None:
    book = opened(ledger(frames=2), "a", "b")
    assert book.decided("a", 0, [found("good")], 2.0) == []
    part = only(book.decided("b", 0, [found("good")], 2.1))
    assert (part.name, part.verdict, part.reason, part.frames) == ("a", Verdict.REJECT, MISSING, 1)


def test_a_part_that_another_camera_still_looks_at_stays_open() -> None:
    book = opened(ledger(cameras=2), "a", "b")
    assert book.decided("a", 0, [found("good")], 2.0) == []
    assert book.decided("b", 0, [found("good")], 2.1) == []
    assert only(book.decided("a", 1, [found("good")], 2.2)).verdict is Verdict.PASS


def test_frames_of_one_camera_never_stand_for_those_of_another() -> None:
    """As where a program writes one file name for ever, and the other camera's has died."""
    book = opened(ledger(cameras=2), "current", "next")
    assert book.decided("current", 0, [found("good")], 2.0) == []
    part = only(book.decided("current", 0, [found("good")], 2.1))
    assert (part.verdict, part.reason, part.frames) == (Verdict.REJECT, TOO_MANY, 2)
    assert book.depth == 1


def test_a_part_that_a_camera_never_saw_is_rejected_when_that_camera_is_past_it() -> None:
    """As where one of its files could not be read."""
    book = opened(ledger(cameras=2), "a", "b")
    assert book.decided("a", 0, [found("good")], 2.0) == []
    assert book.decided("b", 0, [found("good")], 2.1) == []
    first, second = book.decided("b", 1, [found("good")], 2.2)
    assert (first.name, first.verdict, first.reason) == ("a", Verdict.REJECT, MISSING)
    assert (second.name, second.verdict) == ("b", Verdict.PASS)
    assert book.decided("a", 1, [found("good")], 2.3) == []  # late, and says nothing of others


def test_a_frame_that_failed_shows_too_that_its_camera_is_past_a_part() -> None:
    """It comes in its turn: no frame of the part before is still in the backbone."""
    book = opened(ledger(cameras=2), "a", "b")
    for name in ("a", "b"):
        assert book.decided(name, 0, [found("good")], 2.0) == []
    passed, failed = book.decided("b", 1, [], 2.1, "not inspected")
    assert (passed.name, passed.verdict, passed.reason) == ("a", Verdict.REJECT, MISSING)
    assert (failed.name, failed.verdict, failed.reason) == ("b", Verdict.REJECT, "not inspected")


def test_a_late_frame_closes_no_part_behind_its_own() -> None:
    book = opened(ledger(cameras=2), "a", deadline_s=5.0)
    opened(book, "b")
    assert only(book.expire(6.0)).name == "a"
    assert book.decided("a", 0, [found("good")], 6.1) == []
    assert book.depth == 1


def test_parts_that_wait_for_a_camera_that_never_comes_are_bounded() -> None:
    book, verdicts = ledger(cameras=2), []
    for number in range(1000):
        opened(book, f"p{number}")
        verdicts += book.decided(f"p{number}", 0, [found("good")], 2.0)
    assert book.depth == MAX_WAITING
    assert [part.name for part in verdicts] == [f"p{number}" for number in range(1000 - MAX_WAITING)]
    assert {(part.verdict, part.reason) for part in verdicts} == {(Verdict.REJECT, MISSING)}


def test_parts_with_a_deadline_wait_for_it_however_many_there_are() -> None:
    book = ledger(cameras=2)
    for number in range(2 * MAX_WAITING):
        opened(book, f"p{number}", deadline_s=9.0)
        assert book.decided(f"p{number}", 0, [found("good")], 2.0) == []
    assert len(book.expire(9.0)) == 2 * MAX_WAITING


def test_a_part_refused_unseen_is_rejected_and_numbers_have_no_gaps() -> None:
    book = opened(ledger(), "a")
    numbers = [only(book.decided("a", 0, [found("good")], 2.0)).number]
    refused = book.refuse("b", 100.0, 2.0, "too many wait")
    numbers += [refused.number, only(opened(book, "c").decided("c", 0, [found("pit")], 2.0)).number]
    assert numbers == [1, 2, 3]
    assert (refused.verdict, refused.reason) == (Verdict.REJECT, "too many wait")
    assert book.closed == {Verdict.PASS: 1, Verdict.REJECT: 2}


def test_frames_without_a_part_id_stand_for_themselves_however_many_cameras_there_are() -> None:
    book = ledger(cameras=2)
    book.expect("frame", "", 100.0, 1.0, FOREVER)
    assert only(book.decided("frame", 0, [found("good")], 2.0)).verdict is Verdict.PASS


def test_without_good_classes_that_match_nothing_passes() -> None:
    book = opened(ledger(good=("fine",)), "p")
    assert only(book.decided("p", 0, [found("good")], 2.0)).verdict is Verdict.REJECT


def test_every_verdict_names_its_parts_lot() -> None:
    parts = ledger(cameras=2)
    parts.expect("a", "a", 0.0, 0.0, 1.0, "B7")
    (late,) = parts.expire(2.0)
    assert [late.lot, late.result().lot] == ["B7", "B7"]
    assert parts.refuse("b", 0.0, 0.0, "too many wait", "B8").lot == "B8"
