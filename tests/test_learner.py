"""A label is learned at once and once, tried on groups left out, and can be taken back bit for bit."""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.folded import TOLD_EVERY
from device_agent.heads import pack, score_of
from device_agent.heads_and_updates import HeadRow, Heads, Outcome
from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.queue import SPOT_CHECK, UNLIKE_ANYTHING, YOUNG, Question, QueuePolicy, ask
from device_agent.rhythm import QUIET_S, Rhythm
from device_agent.sample import Sample, SampleStatus
from device_agent.store import Store
from device_agent.stored_codes import StoredCodes
from device_agent.trial import FIRST_SCORE, owned
from sdk.bundle import Bundle, write_bundle
from sdk.codes import code_digest
from sdk.errors import BadFormat, HeadwayError, LabelError, StoreFull, UnknownClassError
from sdk.head import Decisions, Head, solve
from sdk.labels import Body, Chain, CodeRecord, DefineClass, Fold, Label, MergeClasses, Record
from sdk.moments import Moments
from sdk.score import Score
from sdk.wire import HeadState
from tests.builders import class_id_of, code_of, make_bundle, picture
from tests.processes import Doomed
from tests.simulators import SimDevice, wait_for

GOOD, SCRATCH, PIT = (class_id_of(name) for name in ("good", "scratch", "pit"))
LIMITS = StoreLimits(reserve_bytes=0)
NO_SPOT_CHECKS = QueuePolicy(spot_check_share=0.0)
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "two-classes")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1", limits=LIMITS) as opened:
        yield opened


@pytest.fixture
def learner(bundle: Bundle, store: Store) -> Learner:
    return Learner(bundle, None, store)


def see(store: Store, bundle: Bundle, name: str, number: int, **changes: object) -> bytes:
    """Store a picture of this class as a sample of its own group; return its id."""
    image = picture(name, number)
    sample = Sample(
        sample_id=hashlib.sha256(image).digest(),
        captured_utc=float(number),
        group=f"line-1/{name}-{number}",
        space=bundle.space(),
        code=code_of(bundle, image),
        decision="good",
        class_id=GOOD,
        probability=0.9,
        novelty=0.1,
        unknown=False,
    )
    store.samples.put(replace(sample, **changes), image)  # type: ignore[arg-type]
    return sample.sample_id


def decide(learner: Learner, bundle: Bundle, name: str, number: int) -> str:
    active = learner.head
    decisions = active.head.decide(code_of(bundle, picture(name, number))[None])
    return "unknown" if decisions.unknown[0] else active.names[decisions.class_index[0]]


def assert_exact(learner: Learner, store: Store, bundle: Bundle) -> None:
    """The moments are those of a fresh fold of all that is in the store, bit for bit."""
    fold = fold_of(bundle, store.log.records())
    fresh = Moments(fold.feature_size)
    live = fold.live_set()
    fresh.add(live.codes, [row.class_id for row in fold.rows()])
    assert learner.moments_digest() == fresh.digest()
    assert learner.status().live_set_digest == live.digest


def fold_of(bundle: Bundle, records: Iterator[Record]) -> Fold:
    base, entry = bundle.base(), bundle.precision()
    fold = Fold(entry.space, entry.feature_size)
    fold.add_base(base.samples, base.class_ids, base.groups, base.codes, bundle.class_names())
    for record in records:
        fold.apply(record)
    return fold


# -- the way of a label


def test_a_new_class_is_known_after_a_few_labels(learner: Learner, store: Store, bundle: Bundle) -> None:
    assert decide(learner, bundle, "pit", 99) == "unknown"
    pit = learner.define_class("pit", "anna")
    for number in range(3):
        learner.label(see(store, bundle, "pit", number), pit, "anna")
    learner.run_until_idle()
    assert decide(learner, bundle, "pit", 99) == "pit"
    assert decide(learner, bundle, "good", 99) == "good"
    status = learner.status()
    assert (status.state, status.outcome, status.own_labels) == (HeadState.CONFIRMED, Outcome.CONFIRMED, 3)
    assert status.label_to_live_ms is not None
    assert status.score is not None
    assert "pit" in status.reason
    assert_exact(learner, store, bundle)


def test_a_new_class_that_no_part_of_is_recognised_is_not_said_to_be_known(
    learner: Learner, store: Store, bundle: Bundle
) -> None:
    """Two parts that look like two other classes."""
    odd = learner.define_class("odd", "anna")
    for name in ("good", "scratch"):
        learner.label(see(store, bundle, name, 700), odd, "anna")
    learner.run_until_idle()
    status = learner.status()
    assert status.outcome is Outcome.CONFIRMED
    assert "not-yet" in [each.code for each in status.why]
    assert status.reason.endswith("Not recognised yet: odd (0%); more labels are needed.")
    assert "knows" not in status.reason


def test_a_good_parts_only_bundle_becomes_a_classifier_with_the_first_label(tmp_path: Path, store: Store) -> None:
    first_day = make_bundle(tmp_path / "good-only", ("good",), backbone="seed-7")
    learner = Learner(first_day, None, store)
    assert learner.head.names == ("good",)
    assert decide(learner, first_day, "pit", 1) == "unknown"
    pit = learner.define_class("pit", "anna")
    learner.label(see(store, first_day, "pit", 1), pit, "anna")
    learner.run_until_idle()
    assert sorted(learner.head.names) == ["good", "pit"]
    assert decide(learner, first_day, "pit", 2) == "pit"
    assert decide(learner, first_day, "good", 2) == "good"


def test_threads_learn_and_try_without_being_asked(bundle: Bundle, store: Store) -> None:
    changes = threading.Semaphore(0)
    learner = Learner(bundle, None, store, on_change=changes.release)
    learner.start()
    try:
        assert learner.wait_until_idle(DEADLINE_S)
        saved = learner.label(see(store, bundle, "good", 1), GOOD, "anna")
        assert saved.seq == 2
        assert learner.wait_until_idle(DEADLINE_S)
        assert changes.acquire(timeout=DEADLINE_S)
        assert learner.head.state is HeadState.CONFIRMED
        assert learner.head.samples == 25
    finally:
        learner.stop()
    assert_exact(learner, store, bundle)


def test_a_head_serves_as_provisional_until_its_trial(learner: Learner, store: Store, bundle: Bundle) -> None:
    before = learner.head
    learner.label(see(store, bundle, "scratch", 1), SCRATCH, "anna")
    learner.run_until_idle(trials=False)
    assert (learner.head.state, learner.head.number) == (HeadState.PROVISIONAL, before.number + 1)
    assert learner.status().busy
    learner.run_until_idle()
    assert (learner.head.state, learner.head.number) == (HeadState.CONFIRMED, before.number + 1)
    assert not learner.status().busy


class Solver:
    """Solves when told: `solving` is set while one waits, `go_on` lets this and all later ones go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: bool = False) -> None:
        self.solving, self.go_on, self.fail = threading.Event(), threading.Event(), fail
        monkeypatch.setattr("device_agent.learning.solve", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Head:
        self.solving.set()
        assert self.go_on.wait(DEADLINE_S)
        if self.fail:
            self.fail = False
            raise MemoryError
        return solve(*args, **kwargs)


@pytest.fixture
def solver(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Solver]:
    """A solver that holds the learner's next solve up. The learner knows "pit", and its threads run."""
    learner.define_class("pit", "anna")
    learner.run_until_idle()
    solver = Solver(monkeypatch)
    learner.start()
    yield solver
    solver.go_on.set()
    learner.stop()


def pit_of(learner: Learner) -> bytes:
    return next(each.class_id for each in learner.classes() if each.name == "pit")


def count_of(learner: Learner, name: str) -> int:
    """Return how many samples of a class the head that serves has learned."""
    active = learner.head
    return active.head.counts[active.names.index(name)] if name in active.names else 0


def wait_for_count(learner: Learner, name: str, count: int) -> None:
    wait_for(lambda: count_of(learner, name) == count, DEADLINE_S)


def test_labels_are_live_before_the_solve(learner: Learner, store: Store, bundle: Bundle, solver: Solver) -> None:
    """While a solve is held up, updated heads decide already, for the labels that come meanwhile too."""
    ids, pit = [see(store, bundle, "pit", number) for number in range(4)], pit_of(learner)
    before = learner.head.number
    learner.label(ids[0], pit, "anna")
    assert solver.solving.wait(DEADLINE_S)
    first = learner.head
    assert (first.state, first.number, count_of(learner, "pit")) == (HeadState.PROVISIONAL, before + 1, 1)
    assert decide(learner, bundle, "pit", 99) == "pit"
    assert learner.status().label_to_live_ms is not None
    for number in range(1, 4):
        learner.label(ids[number], pit, "anna")
        wait_for_count(learner, "pit", number + 1)
        assert (learner.head.state, learner.head.number) == (HeadState.PROVISIONAL, before + 1 + number)
    quick = learner.head
    solver.go_on.set()
    assert learner.wait_until_idle(DEADLINE_S)
    assert (count_of(learner, "pit"), learner.head.number) == (4, quick.number)
    assert learner.head.head is not quick.head
    newest = [(row.number - before, row.samples, row.outcome) for row in learner.history()][:4]
    assert newest == [
        (4, 28, Outcome.CONFIRMED),
        (3, 27, Outcome.SUPERSEDED),
        (2, 26, Outcome.SUPERSEDED),
        (1, 25, Outcome.SUPERSEDED),
    ]
    assert_exact(learner, store, bundle)


def test_what_came_during_a_solve_still_serves_when_its_head_is_there(
    learner: Learner, store: Store, bundle: Bundle, solver: Solver
) -> None:
    """The head of the earlier labels must not take the place of one that knows the later too."""
    ids, pit, seen = [see(store, bundle, "pit", number) for number in range(2)], pit_of(learner), []
    learner.label(ids[0], pit, "anna")
    assert solver.solving.wait(DEADLINE_S)
    learner.label(ids[1], pit, "anna")
    wait_for_count(learner, "pit", 2)
    solver.go_on.set()
    while not learner.wait_until_idle(0.0005):
        seen.append(count_of(learner, "pit"))
    assert {*seen, count_of(learner, "pit")} == {2}


@pytest.mark.parametrize("undone", ["the one being learned", "the newer one", "both"])
def test_a_label_undone_during_a_solve_is_gone_at_once(
    learner: Learner, store: Store, bundle: Bundle, solver: Solver, undone: str
) -> None:
    before, ids, pit = learner.head, [see(store, bundle, "pit", number) for number in range(2)], pit_of(learner)
    learner.label(ids[0], pit, "anna")
    assert solver.solving.wait(DEADLINE_S)
    if undone != "the one being learned":
        learner.label(ids[1], pit, "anna")
        wait_for_count(learner, "pit", 2)
        learner.label(ids[1], None, "anna")
    left = 1 if undone == "the newer one" else 0
    if not left:
        learner.label(ids[0], None, "anna")
    wait_for_count(learner, "pit", left)
    if not left:
        assert (learner.head.head, learner.head.state) == (before.head, HeadState.CONFIRMED)
    solver.go_on.set()
    assert learner.wait_until_idle(DEADLINE_S)
    assert count_of(learner, "pit") == left
    if not left:
        assert (learner.head.head, learner.head.state) == (before.head, HeadState.CONFIRMED)
    assert_exact(learner, store, bundle)


def test_a_merge_during_a_solve_waits_for_the_next(
    learner: Learner, store: Store, bundle: Bundle, solver: Solver
) -> None:
    learner.label(see(store, bundle, "pit", 1), pit_of(learner), "anna")
    assert solver.solving.wait(DEADLINE_S)
    learner.merge_classes(pit_of(learner), SCRATCH, "anna")
    solver.go_on.set()
    assert learner.wait_until_idle(DEADLINE_S)
    assert len(learner.head.names) == 2
    assert_exact(learner, store, bundle)


@pytest.mark.parametrize("seed", range(4))
def test_labels_in_any_rhythm_end_in_the_head_of_what_is_labelled(
    learner: Learner, store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Solves that last as long as several labels; labels given, corrected and withdrawn meanwhile."""
    rng = np.random.default_rng(seed)

    def slow(*args: Any, **kwargs: Any) -> Head:
        time.sleep(rng.uniform(0, 0.01))
        return solve(*args, **kwargs)

    monkeypatch.setattr("device_agent.learning.solve", slow)
    classes = [GOOD, SCRATCH, learner.define_class("pit", "anna")]
    ids = [see(store, bundle, name, number) for name in ("good", "scratch", "pit") for number in range(4)]
    learner.start()
    try:
        for _ in range(60):
            sample, to = ids[rng.integers(len(ids))], rng.integers(-1, 3)
            learner.label(sample, None if to < 0 else classes[to], "anna")
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, 0.012))
            if rng.random() < 0.05:
                assert learner.wait_until_idle(DEADLINE_S)
        assert learner.wait_until_idle(DEADLINE_S)
    finally:
        learner.stop()
    assert learner.status().fault is None
    assert_exact(learner, store, bundle)
    outcome = learner.status().outcome  # an updated head that was undone at once may be newer in the history
    assert outcome in (Outcome.CONFIRMED, Outcome.TAKEN_BACK)
    live = learner.live_set()
    if learner.head.digest == live.digest:
        counts = dict(zip(learner.head.head.class_ids, learner.head.head.counts, strict=True))
        assert counts == Counter(live.class_ids)
    else:
        assert outcome is Outcome.TAKEN_BACK


def test_a_failed_solve_loses_no_label_and_the_updated_head_serves(
    learner: Learner, store: Store, bundle: Bundle, solver: Solver
) -> None:
    pit = pit_of(learner)
    solver.fail = True
    solver.go_on.set()
    learner.label(see(store, bundle, "pit", 1), pit, "anna")
    assert learner.wait_until_idle(DEADLINE_S)
    assert (count_of(learner, "pit"), learner.head.state) == (1, HeadState.PROVISIONAL)
    assert learner.status().fault == "MemoryError: "
    learner.label(see(store, bundle, "pit", 2), pit, "anna")
    assert learner.wait_until_idle(DEADLINE_S)
    assert (count_of(learner, "pit"), learner.status().fault) == (2, None)
    assert [row.samples for row in learner.history()][:2] == [26, 25], "it served, so the history has it"
    assert_exact(learner, store, bundle)


def test_a_label_that_comes_while_another_change_is_learned_is_timed_too(
    learner: Learner, store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, pit = see(store, bundle, "pit", 1), learner.define_class("pit", "anna")
    serve, to_come = learner._learning._serve_at_once, [sample]

    def label_meanwhile() -> None:
        serve()
        if to_come:
            learner.label(to_come.pop(), pit, "anna")
            learner.classes()  # folds it

    monkeypatch.setattr(learner._learning, "_serve_at_once", label_meanwhile)  # the class is being learned
    learner.run_until_idle()
    assert decide(learner, bundle, "pit", 99) == "pit"
    assert learner.status().label_to_live_ms is not None


def test_a_label_undone_before_its_solve_leaves_the_earlier_head(
    learner: Learner, store: Store, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, sample = learner.head, see(store, bundle, "scratch", 1)
    serve = learner._learning._serve_at_once

    def serve_and_undo() -> None:
        serve()
        assert learner.head.samples == 25
        monkeypatch.undo()
        learner.label(sample, None, "anna")
        learner.classes()  # folds it

    monkeypatch.setattr(learner._learning, "_serve_at_once", serve_and_undo)
    learner.label(sample, SCRATCH, "anna")
    learner.run_until_idle()
    assert learner.head.head is before.head
    assert learner.head.state is HeadState.CONFIRMED
    assert_exact(learner, store, bundle)


def test_labels_and_new_heads_do_not_wait_for_the_trial_thread(bundle: Bundle, store: Store) -> None:
    held, release = threading.Event(), threading.Event()

    def hold_trials() -> None:
        if threading.current_thread().name == "trial":
            held.set()
            release.wait(DEADLINE_S)

    learner = Learner(bundle, None, store, on_change=hold_trials)
    ids = [see(store, bundle, "good", number) for number in range(2)]
    before = learner.head.samples
    learner.start()
    try:
        learner.label(ids[0], GOOD, "anna")
        assert held.wait(DEADLINE_S)  # in whatever the trial thread does first: a trial, or scores of the old head
        learner.label(ids[1], GOOD, "anna")
        wait_for(lambda: learner.head.samples == before + 2, DEADLINE_S, "a head of both labels")
        assert learner.head.state is HeadState.PROVISIONAL
    finally:
        release.set()
        learner.stop()


def test_a_newer_label_ends_the_trial_of_the_older_head(learner: Learner, store: Store, bundle: Bundle) -> None:
    for number in range(2):
        learner.label(see(store, bundle, "good", number), GOOD, "anna")
        learner.run_until_idle(trials=number == 1)
    newest, older, _ = learner.history()
    assert (newest.outcome, older.outcome) == (Outcome.CONFIRMED, Outcome.SUPERSEDED)
    assert newest.samples == older.samples + 1


def test_a_burst_of_labels_is_learned_in_one_go(learner: Learner, store: Store, bundle: Bundle) -> None:
    for number in range(6):
        learner.label(see(store, bundle, "good", number), GOOD, "anna")
    learner.run_until_idle()
    assert [row.samples for row in learner.history()] == [30, 24]


def test_a_failure_in_a_thread_is_shown_and_the_next_label_is_learned(bundle: Bundle, store: Store) -> None:
    failing = [True]

    def fail() -> None:
        if failing[0]:
            raise RuntimeError("the page is gone")

    learner = Learner(bundle, None, store, on_change=fail)
    learner.start()
    try:
        for number in range(2):
            learner.label(see(store, bundle, "good", number), GOOD, "anna")
            assert learner.wait_until_idle(DEADLINE_S)
            assert learner.head.samples == 25 + number
            assert learner.status().fault == ("RuntimeError: the page is gone" if failing[0] else None)
            failing[0] = False
    finally:
        learner.stop()


def test_a_score_that_judged_nothing_is_kept_so_that_earlier_versions_read_it() -> None:
    unknown = Score(None, 0.0, 1.0, (), (), 0, 0)
    row = HeadRow(1, 0.0, "s", "d", 1, 2, Outcome.CONFIRMED, "", score=pack(unknown))
    assert msgspec.msgpack.decode(row.score or b"")["balanced_accuracy"] == 0
    assert score_of(row) == unknown


def test_samples_that_the_backbone_was_trained_on_are_not_scored(tmp_path: Path, store: Store) -> None:
    fitted = make_bundle(tmp_path / "fitted", fitted=True)
    learner = Learner(fitted, None, store)
    for number in range(2):
        learner.label(see(store, fitted, "scratch", number), SCRATCH, "anna")
    learner.run_until_idle()
    status = learner.status()
    assert status.score is not None
    assert (status.score.samples, status.live_samples) == (2, 26)
    assert status.reason == FIRST_SCORE.sentence()


# -- taken back


def spoil(learner: Learner, store: Store, bundle: Bundle, count: int = 30) -> list[bytes]:
    """Label good parts as scratched, each in a group of its own."""
    ids = [see(store, bundle, "good", number) for number in range(count)]
    for sample_id in ids:
        learner.label(sample_id, SCRATCH, "ben")
    learner.run_until_idle()
    return ids


KNOWN = 20


def know_good_parts(learner: Learner, store: Store, bundle: Bundle) -> None:
    """Label enough good parts rightly for a trial to see that they are lost."""
    for number in range(500, 500 + KNOWN):
        learner.label(see(store, bundle, "good", number), GOOD, "anna")
    learner.run_until_idle()


def test_a_head_that_got_worse_is_taken_back_and_its_labels_stay(
    learner: Learner, store: Store, bundle: Bundle
) -> None:
    know_good_parts(learner, store, bundle)
    before = learner.head
    ids = spoil(learner, store, bundle)
    assert learner.head == before
    status = learner.status()
    assert (status.state, status.outcome) == (HeadState.CONFIRMED, Outcome.TAKEN_BACK)
    assert (status.taken_back, status.digest, status.samples) == (True, before.digest, before.samples)
    assert status.live_samples == before.samples + len(ids)
    assert "good would be recognised only" in status.reason
    assert status.own_labels == len(ids) + KNOWN
    assert status.live_set_digest != before.digest
    assert learner.history()[0].reason == status.reason
    assert_exact(learner, store, bundle)


def test_the_next_label_after_a_take_back_makes_a_new_provisional_head(
    learner: Learner, store: Store, bundle: Bundle
) -> None:
    know_good_parts(learner, store, bundle)
    ids = spoil(learner, store, bundle)
    assert learner.status().outcome is Outcome.TAKEN_BACK
    for sample_id in ids:
        learner.label(sample_id, GOOD, "anna")
    learner.run_until_idle(trials=False)
    assert learner.head.state is HeadState.PROVISIONAL
    learner.run_until_idle()
    assert learner.status().outcome is Outcome.CONFIRMED
    assert_exact(learner, store, bundle)


def test_a_taken_back_head_stays_taken_back_after_a_restart(
    learner: Learner, store: Store, bundle: Bundle
) -> None:
    know_good_parts(learner, store, bundle)
    served = learner.head
    spoil(learner, store, bundle)
    again = Learner(bundle, None, store)
    assert (again.head.digest, again.head.number, again.head.state) == (
        served.digest,
        served.number,
        HeadState.CONFIRMED,
    )
    assert again.head.head.calibration == served.head.calibration
    codes = code_of(bundle, picture("scratch", 3))[None]
    assert np.array_equal(again.head.head.scores(codes), served.head.scores(codes))
    assert again.status().outcome is Outcome.TAKEN_BACK
    again.run_until_idle()
    assert again.head.number == served.number
    assert_exact(again, store, bundle)


# -- undoing


def test_withdrawing_a_label_brings_the_earlier_head_back(learner: Learner, store: Store, bundle: Bundle) -> None:
    before, moments = learner.head, learner.moments_digest()
    sample = see(store, bundle, "good", 1)
    learner.label(sample, SCRATCH, "ben")
    learner.run_until_idle(trials=False)
    assert learner.head != before
    learner.label(sample, None, "anna")
    learner.run_until_idle()
    assert learner.head == before
    assert learner.moments_digest() == moments
    assert learner.label_of(sample) is None


def test_correcting_a_label_moves_the_sample(learner: Learner, store: Store, bundle: Bundle) -> None:
    sample = see(store, bundle, "scratch", 1)
    learner.label(sample, GOOD, "ben")
    learner.run_until_idle()
    learner.label(sample, SCRATCH, "anna")
    learner.run_until_idle()
    assert {info.name: info.own_labels for info in learner.classes()} == {"good": 0, "scratch": 1}
    assert len([r for r in store.log.records() if isinstance(r.entry.body, CodeRecord)]) == 1
    assert_exact(learner, store, bundle)


def test_labelling_alike_twice_changes_nothing(learner: Learner, store: Store, bundle: Bundle) -> None:
    sample = see(store, bundle, "scratch", 1)
    for _ in range(2):
        learner.label(sample, SCRATCH, "anna")
        learner.run_until_idle()
    assert len(learner.history()) == 2


# -- classes


def test_a_rename_shows_at_once_and_needs_no_trial(learner: Learner, store: Store, bundle: Bundle) -> None:
    number = learner.head.number
    learner.rename_class(SCRATCH, "deep  scratch ", "anna")
    learner.run_until_idle()
    assert sorted(learner.head.names) == ["deep scratch", "good"]
    assert learner.head.number == number


def test_merging_two_classes_leaves_the_moments_as_they_are(
    learner: Learner, store: Store, bundle: Bundle
) -> None:
    scrape = learner.define_class("scrape", "anna")
    for number in range(3):
        learner.label(see(store, bundle, "scratch", number), scrape, "anna")
    learner.run_until_idle()
    moments, digest = learner.moments_digest(), learner.status().live_set_digest
    learner.merge_classes(scrape, SCRATCH, "anna")
    learner.run_until_idle()
    assert learner.moments_digest() == moments
    assert learner.status().live_set_digest != digest
    assert len(learner.head.names) == 2
    assert {info.labels for info in learner.classes()} == {12, 15}
    assert_exact(learner, store, bundle)
    assert Learner(bundle, None, store).status().live_set_digest == learner.status().live_set_digest


def test_a_merged_class_goes_by_the_name_given_last_unless_one_is_said(learner: Learner) -> None:
    first, second = (learner.define_class(name, "anna") for name in ("Krazter", "Kratzer"))
    third = learner.define_class("kratzer, alt", "anna")
    learner.merge_classes(first, second, "anna", name="Krazter")
    assert "Krazter" in {info.name for info in learner.classes()}
    with pytest.raises(LabelError, match="'Krazter' already"):
        learner.merge_classes(third, SCRATCH, "anna", name="krazter")
    learner.merge_classes(first, third, "anna")
    assert {info.name for info in learner.classes()} == {"good", "scratch", "Krazter"}


Refused = Callable[[Learner], object]


@pytest.mark.parametrize(
    ("act", "expected", "match"),
    [
        (lambda learner: learner.define_class("Good", "x"), LabelError, "'good' already"),
        (lambda learner: learner.define_class("  ", "x"), LabelError, "no name"),
        (lambda learner: learner.define_class("Unknown", "x"), LabelError, "no name"),
        (lambda learner: learner.define_class("a\0b", "x"), LabelError, "no name"),
        (lambda learner: learner.define_class("x" * 65, "x"), LabelError, "cannot be stored"),
        (lambda learner: learner.rename_class(GOOD, "scratch", "x"), LabelError, "'scratch' already"),
        (lambda learner: learner.rename_class(PIT, "pit", "x"), UnknownClassError, "no class"),
        (lambda learner: learner.merge_classes(GOOD, GOOD, "x"), LabelError, "one class already"),
        (lambda learner: learner.merge_classes(GOOD, PIT, "x"), UnknownClassError, "no class"),
        (lambda learner: learner.merge_classes(GOOD, SCRATCH, "x", name=" "), LabelError, "no name"),
        (lambda learner: learner.label(bytes(32), GOOD, "x"), LabelError, "not kept here"),
    ],
)
def test_what_makes_no_sense_is_refused_and_not_stored(
    learner: Learner, store: Store, act: Refused, expected: type[HeadwayError], match: str
) -> None:
    with pytest.raises(expected, match=match) as caught:
        act(learner)
    assert caught.value.hint
    assert list(store.log.records()) == []


def test_a_label_with_an_unknown_class_is_refused(learner: Learner, store: Store, bundle: Bundle) -> None:
    sample = see(store, bundle, "pit", 1)
    with pytest.raises(UnknownClassError):
        learner.label(sample, PIT, "anna")
    kept = store.samples.get(sample)
    assert kept is not None
    assert kept.status is SampleStatus.SEEN


def test_a_name_becomes_free_for_its_own_class_only(learner: Learner) -> None:
    learner.rename_class(SCRATCH, "SCRATCH", "anna")
    assert [info.name for info in learner.classes()] == ["good", "SCRATCH"]


# -- what the fleet sends


class Peer:
    """Another device's log."""

    def __init__(self, bundle: Bundle, device: str = "line-2", first: int = 1) -> None:
        self._bundle = bundle
        self._chain = Chain(device)
        self._counter = itertools.count(first)

    def write(self, body: Body, code: bytes | None = None) -> Record:
        self._chain, entry = self._chain.write(body, counter=next(self._counter), wall_time_us=0)
        return Record(entry, code)

    def label(self, name: str, number: int, class_id: bytes | None) -> list[Record]:
        image = picture(name, number)
        sample, code = hashlib.sha256(image).digest(), code_of(self._bundle, image)
        space = bytes.fromhex(self._bundle.space())
        group = f"{self._chain.device}/{number}"
        return [
            self.write(Label(sample, class_id, "carl")),
            self.write(CodeRecord(space, sample, group, code_digest(code)), code.tobytes()),
        ]


def test_what_another_device_learned_is_known_here(learner: Learner, store: Store, bundle: Bundle) -> None:
    peer = Peer(bundle)
    labels = [record for number in range(3) for record in peer.label("pit", number, PIT)]
    learner.received(store.log.receive(labels, position=6))
    learner.run_until_idle()
    assert f"class {PIT.hex()[:6]}" in learner.head.names
    learner.received(store.log.receive([peer.write(DefineClass(PIT, "pit", "carl"))], position=7))
    learner.run_until_idle()
    assert decide(learner, bundle, "pit", 99) == "pit"
    assert learner.status().own_labels == 0


def test_a_device_whose_labels_do_not_fit_here_is_named(learner: Learner, store: Store, bundle: Bundle) -> None:
    for number in range(8):
        learner.label(see(store, bundle, "good", number), GOOD, "anna")
        learner.label(see(store, bundle, "scratch", number), SCRATCH, "anna")
    learner.run_until_idle()
    assert learner.status().harm is None
    peer, swapped = Peer(bundle, "line-9"), {"good": SCRATCH, "scratch": GOOD}
    records = [r for n in range(20, 60) for name in swapped for r in peer.label(name, n, swapped[name])]
    learner.received(store.log.receive(records, position=len(records)))
    learner.run_until_idle()
    status = learner.status()
    assert status.harm is not None
    assert (status.harm.source, status.harm.samples) == ("line-9", 80)
    assert status.adaptation.own_weight > 1, "own labels come first where others contradict them"
    assert "Labels from line-9 do not fit here" in status.reason


def test_a_station_that_looks_different_is_adapted_to_and_stays_so_after_a_restart(
    store: Store, bundle: Bundle
) -> None:
    base = bundle.base()
    good, scratch = (
        base.codes[[c == each for c in base.class_ids]].astype(np.float64).mean(0) for each in (GOOD, SCRATCH)
    )

    def seen(name: str, number: int) -> bytes:
        code = code_of(bundle, picture(name, number)) + (scratch - good)  # good parts look like scratched ones did
        return see(store, bundle, name, number, code=np.clip(np.rint(code), -127, 127).astype(np.int8))

    learner = Learner(bundle, None, store)
    for number in range(30):
        for name in ("good", "scratch"):
            seen(name, number)
    for number in range(4):
        learner.label(seen("good", number), GOOD, "anna")
        learner.label(seen("scratch", number), SCRATCH, "anna")
    learner.run_until_idle()
    status = learner.status()
    assert status.adaptation.shift
    assert "It allows for this station's pictures looking different." in status.reason
    assert_exact(learner, store, bundle)
    codes = np.stack([sample.code for sample in store.samples.newest(limit=100)])
    again = Learner(bundle, None, store)
    assert again.status().adaptation == status.adaptation
    assert (again.head.head.scores(codes) == learner.head.head.scores(codes)).all()
    # The next label is learned in the same way, at once and by the solve behind it.
    again.label(seen("good", 5), GOOD, "anna")
    again.run_until_idle(trials=False)
    assert again.status().adaptation == status.adaptation
    assert_exact(again, store, bundle)
    # A label that another device gives again is not this station's own any more.
    peer = Peer(bundle, "line-2", first=1000)
    records = [peer.write(Label(seen("good", 0), GOOD, "carl"))]
    again.received(store.log.receive(records, position=1))
    again.run_until_idle(trials=False)
    again.label(seen("good", 6), GOOD, "anna")
    again.run_until_idle(trials=False)
    live = fold_of(bundle, store.log.records()).live_set()
    mine = owned(live, store.device)
    everything, own = Moments(live.codes.shape[1]), Moments(live.codes.shape[1])
    everything.add(live.codes, live.class_ids)
    own.add(live.codes[mine], [c for c, is_own in zip(live.class_ids, mine, strict=True) if is_own])
    assert mine.sum() == 9
    expected = solve(everything, own=own, adaptation=status.adaptation)
    assert (again.head.head.scores(codes) == expected.scores(codes)).all()


def test_a_record_that_contradicts_the_space_is_counted_and_harms_nothing(
    learner: Learner, store: Store, bundle: Bundle
) -> None:
    peer = Peer(bundle)
    wrong = np.ones(5, np.int8)
    body = CodeRecord(bytes.fromhex(bundle.space()), bytes(32), "g", code_digest(wrong))
    records = [peer.write(body, wrong.tobytes()), *peer.label("scratch", 1, SCRATCH)]
    learner.received(store.log.receive(records, position=3))
    learner.run_until_idle()
    assert learner.status().refused == 1
    assert learner.head.samples == 25
    assert Learner(bundle, None, store).status().refused == 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("own"), st.integers(0, 5), st.sampled_from([GOOD, SCRATCH, None])),
        st.tuples(st.just("peer"), st.integers(0, 5), st.sampled_from([GOOD, SCRATCH, PIT, None])),
        st.tuples(st.just("merge"), st.just(0), st.just(None)),
        st.tuples(st.just("receive"), st.integers(0, 30), st.none()),
        st.tuples(st.just("again"), st.integers(0, 30), st.none()),
        st.tuples(st.just("learn"), st.just(0), st.none()),
        st.tuples(st.just("restart"), st.just(0), st.none()),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, data=st.data())
def test_moments_are_those_of_the_live_set_after_any_history(
    steps: list[tuple[str, int, bytes | None]],
    data: st.DataObject,
    bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Own and received records, repeated, out of order, over restarts, corrected, withdrawn and merged."""
    peer, wire = Peer(bundle), []
    with Store.open(tmp_path_factory.mktemp("history"), "line-1", limits=LIMITS) as store:
        learner = Learner(bundle, None, store)
        for kind, number, class_id in steps:
            if kind == "own":
                learner.label(see(store, bundle, "scratch", number), class_id, "anna")
            elif kind == "peer":
                wire += peer.label("scratch", number, class_id)
            elif kind == "merge":
                wire.append(peer.write(MergeClasses(PIT, SCRATCH, "carl")))
            elif kind == "receive" and wire:
                # Any of them in any order, as if several segments were repeated and reordered.
                some = data.draw(st.lists(st.sampled_from(wire), max_size=6))
                learner.received(store.log.receive(some, position=number))
            elif kind == "again":
                learner.received(list(store.log.records())[:number])
            elif kind == "learn":
                learner.run_until_idle(trials=False)
            elif kind == "restart":
                learner = Learner(bundle, None, store)
        learner.run_until_idle(trials=False)
        assert_exact(learner, store, bundle)
        assert_exact(Learner(bundle, None, store), store, bundle)


# -- restarts


def test_nothing_is_tried_again_when_nothing_changed(learner: Learner, store: Store, bundle: Bundle) -> None:
    learner.received(store.log.receive(Peer(bundle).label("good", 700, GOOD), position=2))
    learner.label(see(store, bundle, "scratch", 1), SCRATCH, "anna")
    learner.run_until_idle()
    again = Learner(bundle, None, store)
    assert (again.head.state, again.head.number) == (HeadState.CONFIRMED, learner.head.number)
    assert again.head.head.calibration == learner.head.head.calibration
    assert again.status().score == learner.status().score == score_of(learner.history()[0])
    again.run_until_idle()
    assert len(again.history()) == 2


def test_a_trial_that_a_restart_cut_off_is_done_again(learner: Learner, store: Store, bundle: Bundle) -> None:
    learner.label(see(store, bundle, "scratch", 1), SCRATCH, "anna")
    learner.run_until_idle(trials=False)
    again = Learner(bundle, None, store)
    states = [again.head.state]
    again.run_until_idle()
    assert [*states, again.head.state] == [HeadState.PROVISIONAL, HeadState.CONFIRMED]
    assert [row.outcome for row in again.history()] == [
        Outcome.CONFIRMED,
        Outcome.SUPERSEDED,
        Outcome.CONFIRMED,
    ]


def test_history_that_does_not_fit_the_log_any_more_is_tried_again(
    learner: Learner, store: Store, bundle: Bundle
) -> None:
    """As after a code was erased: what the row says of that head is no longer of the head that is solved now."""
    learner.label(see(store, bundle, "scratch", 1), SCRATCH, "anna")
    learner.run_until_idle()
    row = learner.history()[0]
    store.heads.put(replace(row, digest="0" * 64))
    again = Learner(bundle, None, store)
    states = [again.head.state]
    again.run_until_idle()
    assert [*states, again.head.state] == [HeadState.PROVISIONAL, HeadState.CONFIRMED]
    assert again.history()[0].digest == row.digest


def label_for_ever(bundle: Path, folder: Path, number: int, tell: Callable[[tuple[int, int]], None]) -> None:
    opened = Bundle.open(bundle)
    with Store.open(folder, "line-1", limits=LIMITS) as store:
        learner = Learner(opened, None, store)
        learner.start()
        while True:
            saved = learner.label(see(store, opened, "scratch", number), SCRATCH, "anna")
            tell((number, saved.seq))
            number += 1


def test_a_label_acknowledged_before_kill_9_is_learned_exactly_once(bundle: Bundle, tmp_path: Path) -> None:
    labels = 0
    for kill_after in (1, 3, 8, 15, 25):
        child = Doomed(label_for_ever, bundle.path, tmp_path / "data", labels)
        told = [child.told() for _ in range(kill_after)]
        number, seq = (told + child.kill())[-1]
        with Store.open(tmp_path / "data", "line-1", limits=LIMITS) as store:
            assert store.log.outbox_depth() >= seq
            learner = Learner(bundle, None, store)
            labels = learner.status().own_labels
            assert labels >= number + 1
            assert labels * 2 == store.log.outbox_depth()
            assert learner.head.samples == 24 + labels
            assert_exact(learner, store, bundle)
    assert labels >= 52


# -- full disks, old pictures, bad bundles


def test_a_full_store_refuses_the_label_and_the_head_goes_on(bundle: Bundle, tmp_path: Path) -> None:
    limits = replace(LIMITS, max_store_bytes=128 * 1024)
    with Store.open(tmp_path, "line-1", limits=limits) as store:
        learner = Learner(bundle, None, store)
        sample = see(store, bundle, "scratch", 1)
        with pytest.raises(StoreFull):  # noqa: PT012
            while True:
                store.log.append([DefineClass(PIT, "x" * 64, "y" * 64)] * 8)
        with pytest.raises(StoreFull):  # noqa: PT012
            for _ in range(20):
                learner.label(sample, SCRATCH, "anna")
        learner.run_until_idle()
        assert decide(learner, bundle, "good", 99) == "good"
        assert_exact(learner, store, bundle)


def test_a_sample_of_an_earlier_release_is_learned_from_its_picture(
    bundle: Bundle, store: Store, tmp_path: Path
) -> None:
    newer = make_bundle(tmp_path / "newer", backbone="seed-2")
    sample = see(store, bundle, "scratch", 1)
    learner = Learner(newer, None, store, embed=lambda image: code_of(newer, image))
    learner.label(sample, SCRATCH, "anna")
    learner.run_until_idle()
    assert learner.status().own_labels == 1
    assert_exact(learner, store, newer)


def test_a_sample_of_an_earlier_release_without_its_picture_is_refused(
    bundle: Bundle, store: Store, tmp_path: Path
) -> None:
    newer = make_bundle(tmp_path / "newer", backbone="seed-2")
    sample = see(store, bundle, "scratch", 1)
    for path in (store.folder / "images").glob("??/*"):
        path.unlink()
    learner = Learner(newer, None, store, embed=lambda image: code_of(newer, image))
    with pytest.raises(LabelError, match="its picture is gone"):
        learner.label(sample, SCRATCH, "anna")
    assert list(store.log.records()) == []


def test_a_long_log_is_said_to_be_read(bundle: Bundle, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """At the start, before the first head is there and the page answers: else the log is empty meanwhile."""
    peer = SimDevice("line-2")
    for number in range(TOLD_EVERY + 1):
        peer.write(MergeClasses(number.to_bytes(16, "big"), PIT, "ben"))
    store.log.receive(peer.log, position=len(peer.log))
    with caplog.at_level(logging.INFO):
        Learner(bundle, None, store)
    assert f"reading the label log: {TOLD_EVERY} of {TOLD_EVERY + 1} entries" in caplog.messages


def test_each_release_has_its_own_head_of_the_same_labels(
    learner: Learner, store: Store, bundle: Bundle, tmp_path: Path
) -> None:
    learner.label(see(store, bundle, "scratch", 1), SCRATCH, "anna")
    learner.run_until_idle()
    newer = make_bundle(tmp_path / "newer", backbone="seed-2")
    other = Learner(newer, None, store)
    assert other.head.samples == 24, "a label without a code in this space is not learned from yet"
    assert Learner(bundle, None, store).head.samples == 25


def test_a_bundle_whose_samples_are_not_its_heads_is_refused(bundle: Bundle, store: Store, tmp_path: Path) -> None:
    (entry,) = bundle.manifest.precisions
    head = msgspec.structs.replace(entry.head, live_set_digest="0" * 64)
    manifest = msgspec.structs.replace(bundle.manifest, precisions=[msgspec.structs.replace(entry, head=head)])
    files = {each.name: (bundle.path / each.name).read_bytes() for each in bundle.manifest.files}
    with pytest.raises(BadFormat, match="not those the head was made from"):
        Learner(write_bundle(tmp_path / "odd", files, manifest), None, store)


# -- questions


def test_a_new_head_asks_no_more_about_what_it_knows(learner: Learner, bundle: Bundle, store: Store) -> None:
    learner = Learner(bundle, None, store, policy=NO_SPOT_CHECKS)
    asked = {"status": SampleStatus.QUEUED, "reason": UNLIKE_ANYTHING, "priority": 2.5}
    for number in range(6):
        see(store, bundle, "pit", number, **asked)
    see(store, bundle, "dent", 1, **asked)
    pit = learner.define_class("pit", "anna")
    for sample in store.samples.queue(10)[1:4]:
        learner.label(sample.sample_id, pit, "anna")
    learner.run_until_idle()
    assert [sample.sample_id for sample in store.samples.queue(10)] == [
        hashlib.sha256(picture("dent", 1)).digest()
    ]


def decisions_of(*probabilities: float, novelty: float = 0.1, unknown: bool = False) -> Decisions:
    table = np.array([probabilities])
    best = table.argmax(1)
    return Decisions(best, table.max(1), np.array([novelty]), np.array([unknown]), table)


@pytest.mark.parametrize(
    ("decisions", "question"),
    [
        (decisions_of(0.99, 0.01), None),
        (decisions_of(0.75, 0.25), Question("between good and scratch", 1.495)),
        (decisions_of(0.2, 0.35, 0.45), Question("between pit and scratch", 1.891)),
        (decisions_of(0.99, 0.01, novelty=1.3, unknown=True), Question(UNLIKE_ANYTHING, 2.5)),
        (decisions_of(1.0, novelty=2.0), None),
        (decisions_of(0.01, 0.0, 0.99), Question(f"{YOUNG}pit", 0.5)),
        (decisions_of(0.01, 0.2, 0.79), Question("between pit and scratch", 1.4059)),
    ],
)
def test_an_operator_is_asked_what_the_head_does_not_know(decisions: Decisions, question: Question | None) -> None:
    got = ask(
        NO_SPOT_CHECKS, bytes(32), decisions, 0, names=("good", "scratch", "pit"), counts=(9, 3, 2), threshold=0.3
    )
    if question is None:
        assert got is None
    else:
        assert got is not None
        assert got.reason == question.reason
        assert got.priority == pytest.approx(question.priority)


def test_spot_checks_are_a_stated_share_and_the_same_every_time() -> None:
    policy, sure = QueuePolicy(spot_check_share=0.1), decisions_of(0.99, 0.01)
    ids = [hashlib.sha256(b"%d" % number).digest() for number in range(2000)]

    def asked() -> list[Question | None]:
        return [
            ask(policy, each, sure, 0, names=("good", "scratch"), counts=(5, 5), threshold=0.3) for each in ids
        ]

    questions = [question for question in asked() if question is not None]
    assert 150 < len(questions) < 250
    assert {question.reason for question in questions} == {SPOT_CHECK}
    assert asked() == asked()


@pytest.mark.parametrize(
    ("at_s", "pause_s"),
    [
        ((100.0,), QUIET_S),
        ((100.0, 100.1), QUIET_S),  # a burst: as long as a solve
        ((100.0, 101.0), 1.5),  # the next one is due in a second
        ((100.0, 101.0, 160.0), QUIET_S),  # they have stopped coming one after the other
    ],
)
def test_a_trial_waits_for_as_long_as_the_next_label_may_be_expected(
    at_s: tuple[float, ...], pause_s: float
) -> None:
    """A trial that the next label ends is work in vain, and delays frames."""
    rhythm = Rhythm()
    for now_s in at_s:
        rhythm.beat(now_s)
    assert rhythm.pause_s() == pytest.approx(pause_s)


def test_a_sample_that_goes_while_its_label_waits_is_not_labelled(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the label would be acknowledged, with no picture for the next backbone to learn it from."""
    limits = StoreLimits(keep_samples=20, reserve_bytes=0)
    with Store.open(tmp_path / "data", "line-1", limits=limits) as small:
        learner = Learner(bundle, None, small)
        oldest = see(small, bundle, "scratch", 0)
        catch_up = learner._folded.catch_up

        def meanwhile() -> None:
            """The lock was waited for, and the line went on."""
            for number in range(1, 40):
                see(small, bundle, "good", number)
            catch_up()

        monkeypatch.setattr(learner._folded, "catch_up", meanwhile)
        before = small.log.length()
        with pytest.raises(LabelError, match="is not kept here"):
            learner.label(oldest, SCRATCH, "ann")
        assert small.samples.get(oldest) is None
        assert small.log.length() == before


def test_a_disk_error_while_labels_are_folded_loses_none(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(bundle, None, store)
    put, failures = StoredCodes.put, [StoreFull("disk I/O error", hint="")]

    def failing(self: StoredCodes, *entry: Any) -> int:
        if failures:
            raise failures.pop()
        return put(self, *entry)

    learner.label(see(store, bundle, "scratch", 0), SCRATCH, "ann")
    monkeypatch.setattr(StoredCodes, "put", failing)
    with pytest.raises(StoreFull, match="disk I/O error"):
        learner.run_until_idle()
    learner.label(see(store, bundle, "scratch", 1), SCRATCH, "ann")
    learner.run_until_idle()
    assert learner.status().own_labels == 2
    assert learner.status().fault is None
    assert learner.head.digest == Learner(bundle, None, store).status().live_set_digest


class FullDisk:
    """A disk that takes no row of a head's history while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, put = False, Heads.put

        def failing(heads: Heads, row: HeadRow) -> None:
            if self.full:
                raise StoreFull("nothing can be stored: the disk is full", hint="")
            put(heads, row)

        monkeypatch.setattr(Heads, "put", failing)


def test_once_there_is_room_the_fault_of_a_full_disk_ends_without_another_label(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    learner = Learner(bundle, None, store)
    learner.start()
    try:
        disk.full = True
        learner.label(see(store, bundle, "scratch", 0), SCRATCH, "ann")
        assert learner.wait_until_idle(60)
        assert learner.status().fault == "nothing can be stored: the disk is full"
        outcome, known = learner.status().outcome, len(learner.history())
        disk.full = False
        wait_for(lambda: learner.status().fault is None, 60, "the fault goes")
        assert (learner.status().outcome, learner.history()[0].outcome) == (outcome, outcome)
        assert len(learner.history()) == known + 1, "what had found no room is there now"
    finally:
        learner.stop()


def test_a_full_disk_stays_a_fault_while_it_is_full(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    learner = Learner(bundle, None, store)
    disk.full = True
    learner.label(see(store, bundle, "scratch", 0), SCRATCH, "ann")
    learner.run_until_idle()
    learner.received(())
    learner.run_until_idle()
    assert learner.status().fault == "nothing can be stored: the disk is full"
    disk.full = False
    learner.received(())
    learner.run_until_idle()
    assert learner.status().fault is None


def test_what_follows_a_head_is_written_as_it_was_said_last(
    bundle: Bundle, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    learner = Learner(bundle, None, store)
    learner.label(see(store, bundle, "scratch", 0), SCRATCH, "ann")
    disk.full = True
    learner.run_until_idle(trials=False)
    assert len(learner.history()) == 1
    learner.run_until_idle()  # tried, and neither is on disk
    disk.full = False
    learner.received(())
    learner.run_until_idle()
    assert [row.outcome for row in learner.history()] == [Outcome.CONFIRMED, Outcome.CONFIRMED]
