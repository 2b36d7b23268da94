"""A rollout's decisions, from nothing but values: waves, what counts as a failure, when it halts, when it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from sdk.errors import FleetError
from sdk.fleet.rollout import (
    MIN_FRAMES,
    MIN_SAMPLES,
    Decision,
    Doing,
    Member,
    Plan,
    Rollout,
    RolloutState,
    Step,
    decide,
    parse_waves,
    reached,
    worse,
)
from sdk.wire import UpdateState

NEW, OLD = "b" * 64, "a" * 64
CHANNEL = [f"line-{i}" for i in range(1, 11)]
WELL = Doing(recall=0.9, samples=40, frames=500, unknown=0.02, latency_ms=20.0)
PLAN = Plan(waves=["1", "30%", "100%"], soak_s=60, deadline_s=600)


def member(
    device: str, wave: int = 1, state: UpdateState | None = UpdateState.COMMITTED, **more: object
) -> Member:
    running = NEW if state in (UpdateState.COMMITTED, UpdateState.PROVISIONAL) else OLD
    given = {"reason": "", "online": True, "running": running, "before": WELL, "now": WELL, **more}
    return Member(device=device, wave=wave, state=state, **given)  # type: ignore[arg-type]


def at(wave: int, **more: object) -> Rollout:
    return replace(Rollout(1, PLAN, wave=wave, wave_began_utc=1000.0, version=5), **more)  # type: ignore[arg-type]


def ask(rollout: Rollout, *members: Member, now: float = 1001.0) -> Decision:
    return decide(rollout, NEW, members, CHANNEL, now)


# Waves


@pytest.mark.parametrize(
    ("wave", "already", "adds"),
    [
        ("1", set(), ("line-1",)),
        ("3", {"line-1"}, ("line-10", "line-2")),
        ("30%", {"line-1"}, ("line-10", "line-2")),
        ("1%", set(), ("line-1",)),
        ("100%", {"line-1"}, tuple(sorted(set(CHANNEL) - {"line-1"}))),
        ("line-1*", {"line-1"}, ("line-10",)),
        ("2", {"line-4", "line-5"}, ()),
    ],
)
def test_a_wave_adds_what_it_says(wave: str, already: set[str], adds: tuple[str, ...]) -> None:
    assert reached(wave, already, CHANNEL) == adds


@pytest.mark.parametrize("words", ["", "0", "101%", "1,,2", "10%,5%", "5,5", "3;4", "Line 1", ",".join("a" * 21)])
def test_waves_that_are_none_or_do_not_grow_are_refused(words: str) -> None:
    with pytest.raises(FleetError) as caught:
        parse_waves(words)
    assert caught.value.hint


def test_the_first_wave_begins_at_once() -> None:
    decision = ask(Rollout(1, PLAN))
    assert (decision.step, decision.devices) == (Step.NEXT_WAVE, ("line-1",))


# A wave that does well


def test_a_wave_is_waited_for_then_watched_then_followed() -> None:
    first = ask(at(1), member("line-1", state=UpdateState.DOWNLOADING))
    assert (first.step, first.rollout.state) == (Step.WAIT, RolloutState.ROLLING)
    taken = ask(first.rollout, member("line-1"), now=1010.0)
    assert (taken.step, taken.rollout.state, taken.rollout.well_since_utc) == (
        Step.WAIT,
        RolloutState.SOAKING,
        1010.0,
    )
    assert ask(taken.rollout, member("line-1"), now=1069.0).step is Step.WAIT
    after = ask(taken.rollout, member("line-1"), now=1070.0)
    assert (after.step, after.devices) == (Step.NEXT_WAVE, ("line-10", "line-2"))


def test_the_last_wave_ends_it() -> None:
    everybody = [member(device, 3) for device in CHANNEL]
    assert ask(at(3, well_since_utc=1000.0), *everybody, now=1060.0).step is Step.FINISH


def test_a_device_that_is_away_holds_nobody_up() -> None:
    away = member("line-2", state=None, online=False)
    decision = ask(at(1), member("line-1"), away, now=1005.0)
    assert decision.rollout.state is RolloutState.SOAKING


def test_a_lost_word_is_made_up_by_what_the_device_runs() -> None:
    silent = member("line-1", state=None, running=NEW)
    assert ask(at(1), silent).rollout.state is RolloutState.SOAKING


def test_each_wave_waits_for_a_person_where_the_plan_says_so() -> None:
    plan = Plan(waves=["1", "100%"], approve=True, soak_s=0)
    asked = ask(at(1, plan=plan), member("line-1"))
    assert (asked.step, asked.rollout.state) == (Step.WAIT, RolloutState.AWAITING)
    assert ask(replace(asked.rollout, approved=2), member("line-1")).step is Step.NEXT_WAVE


# A wave that does not


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("line-1", state=UpdateState.ROLLED_BACK, reason="too slow here"), "rolled it back: too slow here"),
        (
            member("line-1", now=Doing(recall=0.8, samples=40)),
            "knows its own labels 10 points less well",
        ),
        (
            member("line-1", now=Doing(frames=500, unknown=0.3, latency_ms=20)),
            "calls 30% of its parts unknown, 2% before",
        ),
        (member("line-1", now=Doing(frames=500, unknown=0.02, latency_ms=50)), "takes 50 ms for a frame"),
    ],
)
def test_it_halts_by_itself_and_says_who_and_why(bad: Member, why: str) -> None:
    decision = ask(at(1), bad)
    assert (decision.step, decision.rollout.state) == (Step.HALT, RolloutState.HALTED)
    assert f"line-1 {why}" in decision.rollout.reason


def test_a_device_of_an_earlier_wave_that_gets_worse_halts_it_too() -> None:
    late_trouble = member("line-1", 1, now=Doing(recall=0.5, samples=40))
    assert ask(at(2), late_trouble, member("line-2", 2)).step is Step.HALT


def test_as_many_may_fail_as_the_plan_allows() -> None:
    plan = Plan(waves=["2", "100%"], soak_s=0, max_failed=1, success=0.5)
    bad = member("line-10", state=UpdateState.ROLLED_BACK, reason="x")
    assert ask(at(1, plan=plan), member("line-1"), bad).step is Step.NEXT_WAVE
    strict = Plan(waves=["2", "100%"], soak_s=0, max_failed=1, success=0.9)
    halted = ask(at(1, plan=strict), member("line-1"), bad)
    assert halted.rollout.reason == "1 of 2 devices of wave 1 took it"


def test_who_does_not_take_it_in_time_has_failed() -> None:
    slow = member("line-1", state=UpdateState.DOWNLOADING)
    assert ask(at(1), slow, now=1599.0).step is Step.WAIT
    assert "did not take it in time" in ask(at(1), slow, now=1600.0).rollout.reason
    full = replace(slow, faults=("release 'b64' needs 5965696 bytes of disk",))
    assert ask(at(1), full, now=1600.0).rollout.reason.endswith(
        "in time: release 'b64' needs 5965696 bytes of disk"
    )


@pytest.mark.parametrize("approve", [False, True])
@pytest.mark.parametrize("state", [None, UpdateState.DOWNLOADING])
def test_who_comes_back_after_the_deadline_to_a_wave_that_did_well_is_not_late(
    state: UpdateState | None, approve: bool
) -> None:
    """It was away when its wave had to be done, and held nobody up. It takes the release now."""
    plan = Plan(waves=["2", "100%"], soak_s=600, deadline_s=600, approve=approve)
    soaks = at(1, plan=plan, state=RolloutState.SOAKING, well_since_utc=1500.0)
    taken, back = member("line-1"), member("line-10", state=state)
    for now in (1600.0, 2099.0):
        decision = ask(soaks, taken, back, now=now)
        assert (decision.step, decision.rollout) == (Step.WAIT, soaks)
    assert ask(soaks, taken, back, now=2100.0).step is (Step.WAIT if approve else Step.NEXT_WAVE)
    assert ask(soaks, member("line-1", state=UpdateState.ROLLED_BACK), back, now=2099.0).step is Step.HALT


def test_a_wave_that_nobody_took_is_no_success() -> None:
    away = member("line-1", state=None, online=False)
    assert ask(at(1), away, now=1500.0).step is Step.WAIT
    assert ask(at(1), away, now=1600.0).rollout.reason == "0 of 1 devices of wave 1 took it"


def test_few_samples_and_few_frames_say_nothing() -> None:
    few = Doing(recall=0.1, samples=MIN_SAMPLES - 1, frames=MIN_FRAMES - 1, unknown=1.0, latency_ms=900.0)
    assert worse(PLAN, WELL, few) is None
    assert worse(PLAN, few, WELL) is None


@pytest.mark.parametrize(
    ("had", "has", "allowed", "fails"),
    [
        (18, 3, 0, True),
        (18, 16, 0, False),  # taken back meanwhile
        (100, 90, 0, False),
        (100, 89, 0, True),
        (18, 3, 15, False),  # it was agreed to
        (18, 3, 14, True),
        (None, 3, 0, False),  # of a version before: it does not say
        (18, None, 0, False),
        (3, 18, 0, False),
    ],
)
def test_a_device_whose_own_labels_count_no_more_fails(
    had: int | None, has: int | None, allowed: int, fails: bool
) -> None:
    plan = structs.replace(PLAN, max_lost_labels=allowed)
    said = worse(plan, structs.replace(WELL, own_labels=had), structs.replace(WELL, own_labels=has))
    assert (said is not None) == fails
    assert said is None or said.startswith(f"counts {has} of the {had} own labels that it had")


def test_what_a_device_does_with_the_old_release_is_not_held_against_the_new() -> None:
    still_old = member("line-1", state=UpdateState.DOWNLOADING, now=Doing(recall=0.0, samples=40))
    assert ask(at(1), still_old).step is Step.WAIT


# Properties

_STATES = st.sampled_from([None, *UpdateState])


@given(
    wave=st.integers(0, 3),
    states=st.lists(_STATES, min_size=0, max_size=6),
    online=st.lists(st.booleans(), min_size=6, max_size=6),
    now=st.floats(1000, 3000),
)
@settings(max_examples=300, deadline=None)
def test_asked_again_with_nothing_new_nothing_changes(
    wave: int, states: list[UpdateState | None], online: list[bool], now: float
) -> None:
    members = [
        member(f"line-{i + 1}", min(wave, 1 + i % 3) or 1, state, online=online[i])
        for i, state in enumerate(states)
    ]
    first = decide(at(wave), NEW, members, CHANNEL, now)
    if first.step is not Step.NEXT_WAVE:
        again = decide(first.rollout, NEW, members, CHANNEL, now)
        assert again.rollout == first.rollout
    assert set(first.devices).isdisjoint(m.device for m in members)


@given(bad=st.integers(0, 9), allowed=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_no_wave_begins_with_more_failures_than_allowed(bad: int, allowed: int) -> None:
    plan = Plan(waves=["9", "100%"], soak_s=0, max_failed=allowed, success=0.0)
    members = [
        member(device, state=UpdateState.ROLLED_BACK if i < bad else UpdateState.COMMITTED)
        for i, device in enumerate(CHANNEL[:9])
    ]
    step = ask(at(1, plan=plan), *members).step
    assert step is (Step.HALT if bad > allowed or bad == 9 else Step.NEXT_WAVE)
