"""Saves first: what can wait gives way to them, and a save never waits for learning."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from device_agent import courtesy as module
from device_agent import stored_codes
from device_agent.courtesy import BREATH_EVERY_S, BREATH_S, SWITCH_S, Courtesy, aside, breathe, switch_often
from device_agent.database import Database
from device_agent.images import ImageFolder
from device_agent.learner import Learner
from device_agent.queue import Question, QueuePolicy
from device_agent.sample import SampleStatus
from device_agent.store import Store
from device_agent.stored_codes import StoredCodes
from sdk.bundle import Bundle
from tests.builders import class_id_of, make_bundle
from tests.pages import wait_for
from tests.test_learner import see

SCRATCH = class_id_of("scratch")
DEADLINE_S = 60.0
EVERYTHING = QueuePolicy(ask_below=1.01, spot_check_share=1.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "two-classes")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "data", "line-1") as opened:
        yield opened


def test_labels_are_saved_while_learning_gives_way(bundle: Bundle, store: Store) -> None:
    courtesy = Courtesy(give_way_s=DEADLINE_S)
    learner = Learner(bundle, None, store, courtesy=courtesy)
    scratches = [see(store, bundle, "scratch", i) for i in range(4)]
    before = learner.head
    learner.start()
    try:
        with courtesy.saving():
            for scratch in scratches:
                learner.label(scratch, SCRATCH, "ann")
            saved = [sample.sample_id for sample in store.samples.newest(limit=10, status=SampleStatus.LABELLED)]
            assert set(saved) == set(scratches)
            assert learner.head.digest == before.digest  # nothing was learned meanwhile
        assert learner.wait_until_idle(DEADLINE_S)
        assert learner.head.samples == before.samples + len(scratches)
    finally:
        learner.stop()


def test_a_save_that_hangs_holds_learning_up_for_a_while_only(bundle: Bundle, store: Store) -> None:
    courtesy = Courtesy(give_way_s=0.0)
    learner = Learner(bundle, None, store, courtesy=courtesy)
    scratch = see(store, bundle, "scratch", 0)
    learner.start()
    try:
        with courtesy.saving():
            learner.label(scratch, SCRATCH, "ann")
            assert learner.wait_until_idle(DEADLINE_S)
    finally:
        learner.stop()


def test_whoever_computes_waits_for_the_last_of_several_saves() -> None:
    courtesy, went_on = Courtesy(give_way_s=DEADLINE_S), threading.Event()
    one, other = courtesy.saving(), courtesy.saving()
    one.__enter__()
    other.__enter__()

    def compute() -> None:
        courtesy.give_way()
        went_on.set()

    thread = threading.Thread(target=compute)
    thread.start()
    one.__exit__(None, None, None)
    assert not went_on.is_set()
    other.__exit__(None, None, None)
    assert went_on.wait(DEADLINE_S)
    thread.join()


def test_a_save_that_is_refused_lets_learning_go_on() -> None:
    courtesy = Courtesy(give_way_s=DEADLINE_S)
    with pytest.raises(ValueError, match="refused"), courtesy.saving():
        raise ValueError("refused")
    courtesy.give_way()  # returns


def test_threads_that_compute_let_others_in_soon() -> None:
    before = sys.getswitchinterval()
    try:
        sys.setswitchinterval(0.005)
        switch_often()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S, rel=0.05)
        sys.setswitchinterval(SWITCH_S / 10)  # somebody wants it sooner still
        switch_often()
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S / 10, rel=0.05)
    finally:
        sys.setswitchinterval(before)


class Breaths:
    """A clock that only the test moves, and how often each thread slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.slept: list[str] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(time, "sleep", self._sleep)
        monkeypatch.setattr(module, "_breathed", threading.local())

    def _sleep(self, seconds: float) -> None:
        assert seconds == BREATH_S, "some Pythons do not leave for nothing"
        self.slept.append(threading.current_thread().name)


def test_who_computes_in_small_steps_pauses_as_often_as_others_may_have_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    breaths = Breaths(monkeypatch)
    for _ in range(1000):  # a second of steps of a millisecond, then one of steps that take nothing
        breaths.now_s += 0.001
        breathe()
    for _ in range(1000):
        breathe()
    assert len(breaths.slept) == 1000
    for _ in range(1000):
        breaths.now_s += BREATH_EVERY_S / 10
        Courtesy().give_way()
    assert 1080 <= len(breaths.slept) <= 1101


def test_a_thread_that_pauses_does_not_pause_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    breaths = Breaths(monkeypatch)
    breathe()
    other = threading.Thread(target=breathe, name="other")
    other.start()
    other.join()
    breathe()
    assert breaths.slept == [threading.current_thread().name, "other"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="priorities of threads are Linux's")
def test_work_aside_gives_way_and_the_caller_does_not() -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = nice()
    assert aside(3, nice) == min(before + 3, 19)
    assert nice() == before
    with pytest.raises(ValueError, match="no such"):
        aside(3, lambda: int("no such number"))


class Records:
    """A log in which record n holds the code n, n."""

    def rows(self, _sql: str, *arrivals: int | None) -> list[tuple[int, bytes]]:
        return [(each, bytes([each, each])) for each in arrivals if each is not None]


def test_codes_are_read_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, paused = StoredCodes(cast(Database, Records()), 2), list[bool]()
    monkeypatch.setattr(stored_codes, "breathe", lambda: paused.append(True))
    places = np.tile(-np.arange(1, 101), 3)
    assert (codes.read(places) == -places[:, None]).all()
    assert len(paused) == 3


def test_questions_of_an_earlier_head_are_asked_anew_although_labels_kept_coming(
    bundle: Bundle, store: Store
) -> None:
    """What comes meanwhile ends the asking; where it changes no label, it must not be the last word."""
    undoing, released, defined = threading.Event(), threading.Event(), list[bytes]()

    class Meanwhile(Courtesy):
        """Trials are held up, and somebody defines classes while a label is being unlearned."""

        def give_way(self) -> None:
            thread = threading.current_thread().name
            if thread == "trial":
                released.wait(DEADLINE_S)
            # At each step before the asking, and at the asking. The serving thread gives way at the same time.
            elif thread == "learning" and undoing.is_set() and len(defined) < 4:
                defined.append(learner.define_class(f"dent {len(defined)}", "ann"))

    def reasons() -> set[str]:
        return {sample.reason for sample in store.samples.queue(10)}

    waiting = [see(store, bundle, "scratch", i, status=SampleStatus.QUEUED, reason="first") for i in range(3)]
    labelled = see(store, bundle, "scratch", 9)
    learner = Learner(bundle, None, store, policy=EVERYTHING, courtesy=Meanwhile())
    learner.start()
    try:
        learner.label(labelled, SCRATCH, "ann")
        wait_for(lambda: "first" not in reasons())
        store.samples.requeue({each: Question("second", 1.0) for each in waiting})
        undoing.set()
        learner.label(labelled, None, "ann")
        wait_for(lambda: "second" not in reasons())
        assert len(defined) == 4
        assert {sample.sample_id for sample in store.samples.queue(10)} == set(waiting)
    finally:
        released.set()
        learner.stop()


def test_a_solve_waits_for_a_trial_to_give_way_and_the_label_is_served_meanwhile(
    bundle: Bundle, store: Store
) -> None:
    """Both at once would hold twice the large matrices."""
    reached, released = threading.Event(), threading.Event()

    class Held(Courtesy):
        """A trial is held where it asks whether to go on."""

        def give_way(self) -> None:
            if threading.current_thread().name == "trial":
                reached.set()
                released.wait(DEADLINE_S)

    learner = Learner(bundle, None, store, courtesy=Held())
    samples = [see(store, bundle, "scratch", number) for number in range(2)]
    before = learner.head.samples
    learner.start()
    try:
        learner.label(samples[0], SCRATCH, "ann")
        assert reached.wait(DEADLINE_S)
        learner.label(samples[1], SCRATCH, "ann")
        wait_for(lambda: learner.head.samples == before + 2)
        assert learner.status().busy
        released.set()
        assert learner.wait_until_idle(DEADLINE_S)
    finally:
        released.set()
        learner.stop()
    assert learner.status().fault is None
    assert learner.head.samples == before + 2


def test_a_picture_that_is_written_again_is_synced_again(tmp_path: Path) -> None:
    """What is on disk under its name may have been damaged; then it is not durable any more."""
    folder = ImageFolder(tmp_path / "images")
    image = b"a picture"
    sample = hashlib.sha256(image).digest()
    folder.put(sample, image)
    folder.sync(sample)
    assert folder.is_durable(sample)
    folder.put(sample, image)
    assert folder.is_durable(sample)
    folder._path(sample).write_bytes(b"")
    folder.put(sample, image)
    assert not folder.is_durable(sample)
    folder.sync(sample)
    folder.drop([sample])
    assert not folder.is_durable(sample)


def test_nothing_is_durable_that_is_not_there(store: Store) -> None:
    nowhere = bytes(32)
    store.samples.make_durable([nowhere])
    assert store.samples.image(nowhere) is None
