"""A rollout's decisions: which devices come next, whether those that have the release do well, when to stop.

A release reaches a channel in waves. The first wave is small; the next begins when the one before has taken the
release and done as well with it, for a while, as with the release before: on the parts that operators labelled on
each device, in how much it calls unknown, and in time. Otherwise the rollout halts by itself and what is out goes
back. Values in, values out; no database, socket or clock (docs/fleet.md, "Roll out in waves").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Annotated, Final

import msgspec

from sdk.errors import FleetError
from sdk.fleet.registry import settled
from sdk.wire import DeviceState, Quality, UpdateState

MIN_SAMPLES: Final = 10
"""Left-out own labels below which a device's recall says nothing yet."""
MIN_FRAMES: Final = 50
"""Frames below which its share of unknown and its time say nothing yet."""
CLOCK_STEP_S: Final = 30.0
"""A clock that moved by so much more or less than time passed was set, or its machine slept: no soak of that."""
MAX_WAVES: Final = 20
TAKEN_BACK_LABELS: Final = 2
TAKEN_BACK_SHARE: Final = 0.1
"""So many of a device's own labels, or this share, may count no more whatever the plan says: during a rollout
people take labels back as ever."""

_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=366 * 86400)]


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a release is to reach a channel.

    Attributes:
        waves: How far each wave reaches: `3` devices, `10%` of the channel, or a pattern of device names
            (`press-*`). Numbers and percentages count all devices so far, waves before included.
        approve: Whether a person must let each wave after the first begin.
        soak_s: How long the devices of a wave must do well before the next begins.
        deadline_s: A wave that has not taken the release after this long is a failure of the devices that did not.
        success: Share of a wave's devices, of those that were there, that must have taken it and do well.
        max_failed: So many devices may roll it back, do worse with it or miss the deadline, of all waves.
        max_recall_drop: Points of balanced accuracy, as a share, that a device may lose on its own labels.
        max_unknown_rise: Rise of the share of parts called unknown that a device may show.
        max_latency_ratio: By which a frame's time may grow.
        max_lost_labels: So many of its own labels may count no more on a device: the pictures are gone.
    """

    waves: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_WAVES)]
    approve: bool = False
    soak_s: _Seconds = 600.0
    deadline_s: _Seconds = 24 * 3600.0
    success: _Share = 1.0
    max_failed: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_recall_drop: _Share = 0.05
    max_unknown_rise: _Share = 0.1
    max_latency_ratio: Annotated[float, msgspec.Meta(ge=1)] = 2.0
    max_lost_labels: Annotated[int, msgspec.Meta(ge=0)] = 0


def parse_waves(words: str) -> list[str]:
    """Return the waves that `1,10%,100%` or `press-1*,100%` says.

    Raises:
        FleetError: they are no waves, or do not grow.

    >>> parse_waves("1, 10%,100%")
    ['1', '10%', '100%']
    """
    waves = [word.strip() for word in words.split(",")]
    for wave in waves:
        if not re.fullmatch(r"[1-9][0-9]{0,5}|(?:[1-9][0-9]?|100)%|(?=.*[a-z*?])[a-z0-9*?\[\]-]{1,63}", wave):
            raise FleetError(
                f"{wave!r} is no wave",
                hint="Give numbers, percentages or device names with '*', for example 1,10%,100%.",
            )
    for of in (r"[0-9]+", r"[0-9]+%"):
        numbers = [int(wave.rstrip("%")) for wave in waves if re.fullmatch(of, wave)]
        if numbers != sorted(set(numbers)):
            raise FleetError(
                f"the waves {words} do not grow", hint="Numbers count all devices so far: 1,5,20, not 1,4,15."
            )
    if len(waves) > MAX_WAVES:
        raise FleetError(f"{len(waves)} waves are too many", hint=f"At most {MAX_WAVES}.")
    return waves


class RolloutState(str, Enum):
    """Where a rollout stands."""

    ROLLING = "rolling"
    SOAKING = "soaking"
    AWAITING = "awaiting approval"
    HALTED = "halted"
    DONE = "done"


@dataclass(frozen=True)
class Rollout:
    """A rollout as it is on disk.

    Attributes:
        publication_id: Of which publication.
        plan: How it is to go.
        state: Where it stands.
        wave: Number of the wave that is out, from 1; 0 before the first.
        wave_began_utc: When that one began, seconds since 1970.
        well_since_utc: Since when its devices have the release and do well; None where not all do.
        approved: Waves up to this number may begin.
        reason: Why it halted; empty elsewhere.
        version: Grows with each change, so that others notice.
    """

    publication_id: int
    plan: Plan
    state: RolloutState = RolloutState.ROLLING
    wave: int = 0
    wave_began_utc: float = 0.0
    well_since_utc: float | None = None
    approved: int = 1
    reason: str = ""
    version: int = 0

    @property
    def open(self) -> bool:
        """Whether it is still under way; one that halted may be resumed."""
        return self.state not in (RolloutState.HALTED, RolloutState.DONE)

    @property
    def deadline_utc(self) -> float | None:
        """When the wave that is out should have the release; None where it has done well without the rest."""
        return None if self.well_since_utc is not None else self.wave_began_utc + self.plan.deadline_s


class Doing(Quality, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How well a device does, and how many of its own labels count; None where an older device does not say."""

    own_labels: Annotated[int, msgspec.Meta(ge=0)] | None = None

    @classmethod
    def of(cls, state: DeviceState) -> Doing | None:
        """Return what a device says of it; None where no release serves."""
        if state.quality is None:
            return None
        return cls(**msgspec.structs.asdict(state.quality), own_labels=state.own_labels)


@dataclass(frozen=True)
class Member:
    """A device that a wave has reached.

    Attributes:
        device: Its id.
        wave: Which wave reached it.
        state: How far it says it is.
        reason: Why it rolled back.
        online: Whether it is there now.
        running: The release it runs.
        before: How well it did before the release; None where it did not say.
        now: How well it does.
        faults: What it says is wrong on it just now.
    """

    device: str
    wave: int
    state: UpdateState | None
    reason: str
    online: bool
    running: str | None
    before: Doing | None
    now: Doing | None
    faults: tuple[str, ...] = ()


class Step(str, Enum):
    """What to do with a rollout now."""

    WAIT = "wait"
    NEXT_WAVE = "next wave"
    HALT = "halt"
    FINISH = "finish"


@dataclass(frozen=True)
class Decision:
    """What to do, and how the rollout stands then.

    Attributes:
        step: What to do.
        rollout: With state, reason and times as they are now; the next wave's own are the store's to write.
        devices: Of the next wave, in order.
    """

    step: Step
    rollout: Rollout
    devices: tuple[str, ...] = ()


def decide(
    rollout: Rollout, release_id: str, members: Sequence[Member], channel: Iterable[str], now_utc: float
) -> Decision:
    """Return what to do with a rollout now. Asked again and again, with nothing new, it changes nothing.

    Args:
        rollout: As it stands.
        release_id: What it brings.
        members: Devices that have been reached.
        channel: All devices of the channel.
        now_utc: Seconds since 1970.
    """
    plan = rollout.plan
    if not rollout.open:
        return Decision(Step.WAIT, rollout)
    over = rollout.wave > 0 and now_utc >= rollout.wave_began_utc + plan.deadline_s
    # Once those who were there have done well, the wave has passed over the others: they come back to no deadline.
    passed = over and rollout.well_since_utc is not None
    late = over and not passed
    failed = {
        m.device: why
        for m in members
        if (why := failure(plan, m, release_id, late=late and m.wave == rollout.wave)) is not None
    }
    if len(failed) > plan.max_failed:
        device, why = next(iter(failed.items()))
        return _halt(rollout, f"{len(failed)} of {len(members)} devices failed: {device} {why}")
    if rollout.wave == 0:
        return _next(rollout, members, channel)
    # Who is away and has said nothing takes it later, and holds nobody up.
    out = [m for m in members if m.wave == rollout.wave]
    there = [m for m in out if m.online or m.state is not None or m.running == release_id]
    taken = [m for m in there if _took(m, release_id) and m.device not in failed]
    asked = [m for m in there if m.device not in failed and m not in taken]
    if out and (asked or not there) and not over:
        return Decision(Step.WAIT, _stands(rollout, RolloutState.ROLLING, None))
    if out and not passed and (not taken or len(taken) < plan.success * len(there)):
        return _halt(rollout, f"{len(taken)} of {len(out)} devices of wave {rollout.wave} took it")
    since = rollout.well_since_utc if rollout.well_since_utc is not None else now_utc
    if now_utc < since + plan.soak_s:
        return Decision(Step.WAIT, _stands(rollout, RolloutState.SOAKING, since))
    if rollout.wave >= len(plan.waves):
        return Decision(Step.FINISH, _stands(rollout, RolloutState.DONE, since))
    if plan.approve and rollout.wave >= rollout.approved:
        return Decision(Step.WAIT, _stands(rollout, RolloutState.AWAITING, since))
    return _next(rollout, members, channel)


def _took(member: Member, release_id: str) -> bool:
    return settled(release_id, member.state, member.running) is UpdateState.COMMITTED


def _halt(rollout: Rollout, reason: str) -> Decision:
    return Decision(Step.HALT, _newer(rollout, replace(rollout, state=RolloutState.HALTED, reason=reason[:500])))


def _next(rollout: Rollout, members: Sequence[Member], channel: Iterable[str]) -> Decision:
    devices = reached(rollout.plan.waves[rollout.wave], {m.device for m in members}, channel)
    return Decision(Step.NEXT_WAVE, rollout, devices)


def reached(wave: str, already: set[str], channel: Iterable[str]) -> tuple[str, ...]:
    """Return the devices that a wave adds, by name.

    >>> reached("50%", {"a"}, ["a", "b", "c", "d"]), reached("line-2*", set(), ["line-1", "line-2", "line-21"])
    (('b',), ('line-2', 'line-21'))
    """
    known = sorted(channel)
    rest = [device for device in known if device not in already]
    if wave.endswith("%"):
        share = -(-len(known) * int(wave[:-1]) // 100)  # at least one of a few
        return tuple(rest[: max(0, share - len(already & set(known)))])
    if wave.isdecimal():
        return tuple(rest[: max(0, int(wave) - len(already & set(known)))])
    return tuple(device for device in rest if fnmatchcase(device, wave))


def failure(plan: Plan, member: Member, release_id: str, *, late: bool = False) -> str | None:
    """Return why a device counts against a release, in words that follow its name; None where it does not."""
    end = settled(release_id, member.state, member.running)
    if end is UpdateState.ROLLED_BACK:
        return f"rolled it back: {member.reason or 'it did not say why'}"
    if end is None:
        says = f": {member.faults[0]}" if member.faults else ""
        return f"did not take it in time{says}" if late and member.online else None
    if member.running != release_id or member.before is None or member.now is None:
        return None
    return worse(plan, member.before, member.now)


def worse(plan: Plan, before: Doing, now: Doing) -> str | None:
    """Return what a device does worse than before by more than the plan allows; None where nothing."""
    had, has = before.own_labels, now.own_labels
    if had is not None and has is not None:
        allowed = max(plan.max_lost_labels, TAKEN_BACK_LABELS, int(TAKEN_BACK_SHARE * had))
        if had - has > allowed:
            return (
                f"counts {has} of the {had} own labels that it had: of the others it has no pictures, or codes "
                "(--max-lost-labels)"
            )
    if before.recall is not None and now.recall is not None and min(before.samples, now.samples) >= MIN_SAMPLES:
        lost = before.recall - now.recall
        if lost > plan.max_recall_drop:
            return f"knows its own labels {100 * lost:.0f} points less well ({now.recall:.0%})"
    if min(before.frames, now.frames) < MIN_FRAMES:
        return None
    if now.unknown - before.unknown > plan.max_unknown_rise:
        return f"calls {now.unknown:.0%} of its parts unknown, {before.unknown:.0%} before"
    if before.latency_ms and now.latency_ms > plan.max_latency_ratio * before.latency_ms:
        return f"takes {now.latency_ms:.0f} ms for a frame, {before.latency_ms:.0f} before"
    return None


def _stands(rollout: Rollout, state: RolloutState, well_since_utc: float | None) -> Rollout:
    return _newer(rollout, replace(rollout, state=state, well_since_utc=well_since_utc))


def _newer(before: Rollout, after: Rollout) -> Rollout:
    """Return the rollout as it is now, its version raised where that is news."""
    return after if after == before else replace(after, version=before.version + 1)
