"""What a learner tells others: what it made durable, the classes there are, how the learning stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from device_agent.heads_and_updates import Outcome
from device_agent.naming import Twin
from sdk.adaptation import Harm
from sdk.labels import Merge, Record
from sdk.moments import Adaptation
from sdk.reason import Reason
from sdk.score import Score
from sdk.sources import MERGES, Hold
from sdk.wire import HeadState


@dataclass(frozen=True)
class Saved:
    """What `label` made durable: the entries of the device's log, first to last."""

    records: tuple[Record, ...]

    @property
    def seq(self) -> int:
        """Number of the last entry."""
        return self.records[-1].entry.seq


@dataclass(frozen=True)
class ClassInfo:
    """A class that exists, with its labels in the live set: from operators on this device, and all of them."""

    class_id: bytes
    name: str
    own_labels: int
    labels: int


ONE_CLASS: Final = (
    "export the bundle again with --classes-from and the one before it, or make each two one (Settings, Classes; "
    "in a fleet: headway fleet classes)"
)
"""What helps where labels are of another class than the release's of the same name."""

Now = Callable[[str, str], str]
"""Joins the last name of a class that was made part of another, and what it is called by now."""


def in_english(own: str, now: str) -> str:
    """Join both names, as the HTTP interface says them."""
    return f"{own} (now {now})"


def called(
    names: Mapping[bytes, str],
    own: Mapping[bytes, str],
    canonical: Callable[[bytes], bytes],
    now: Now,
    class_id: bytes,
) -> str:
    """Return what people call a class, be it one that was made part of another since.

    Args:
        names: Of the classes that stand for themselves.
        own: The last name of each class itself.
        canonical: Gives the class that stands for one.
        now: Joins the last name of a class that was made part of another, where that is called otherwise.
        class_id: Which.
    """
    if class_id in names:
        return names[class_id]
    was, into = own.get(class_id), names.get(canonical(class_id))
    if was is None or into is None:
        return was or into or class_id.hex()[:8]
    return into if was == into else now(was, into)


@dataclass(frozen=True)
class LearnerStatus:
    """What people want to know of the learning.

    Attributes:
        state: Of the head that serves.
        number: Of the head that serves.
        digest: Of the live set that it was solved from.
        samples: Size of that set.
        adaptation: How own labels count in it.
        harm: Another device whose labels harm this station, by the last trial; None where none does for sure.
        live_set_digest: Digest of all that is labelled now; the head that serves may be of an earlier set.
        live_samples: Size of that set.
        own_labels: Samples in it that operators labelled on this device.
        kept_labels: The same for the fleet, which takes fewer of them for lost ones; None while it holds some
            back, and until the newest head has learned all that is labelled.
        label_to_live_ms: From the last label being durable to its head serving; None before the first.
        outcome: How the newest head's trial ended.
        reason: Why, in English.
        why: The same as codes with values.
        score: The honest score of the newest head that was tried; None before the first trial.
        busy: Something is being learned or tried.
        fault: What last went wrong, None if nothing.
        refused: Records in the log that contradict themselves and are not learned from.
        unapplied: Labels in the log that cannot be learned, because the release has the sample in its sums only.
        prices: What it costs that a person here took labels back, where the head that serves is confirmed.
        withdrawn: So many labels that are not said any more still decide: withdrawn or corrected elsewhere, or
            held back by the fleet, and this station's trial has refused the head without them.
        quarantine: What the fleet holds back of the labels given on this device, and why; empty for none.
        twins: Which labels are of another class than the release's of the same name; empty for none.
        unheard: Which classes were merged on this device and are not one, since the fleet merges; empty for none.
    """

    state: HeadState
    number: int
    digest: str
    samples: int
    adaptation: Adaptation
    harm: Harm | None
    live_set_digest: str
    live_samples: int
    own_labels: int
    kept_labels: int | None
    label_to_live_ms: float | None
    outcome: Outcome
    reason: str
    why: tuple[Reason, ...]
    score: Score | None
    busy: bool
    fault: str | None
    refused: int
    unapplied: int
    prices: tuple[Reason, ...]
    withdrawn: int
    quarantine: str
    twins: str
    unheard: str

    @property
    def taken_back(self) -> bool:
        """Whether labels that are known here do not decide: the trial of the head with them took it back."""
        return self.outcome is Outcome.TAKEN_BACK and self.digest != self.live_set_digest


def quarantine(holds: Sequence[Hold], device: str) -> str:
    """Return what is held back of this device's labels, in a sentence; empty for nothing."""
    own = [hold for hold in holds if hold.device == device and hold.operator != MERGES]
    whose = ", ".join(f"those by {hold.operator}" for hold in own if hold.operator)
    if any(not hold.operator for hold in own):
        whose = "all"
    return f"labels given here do not count ({whose}): {own[0].reason}" if own else ""


def unheard(merges: Sequence[Merge], names: Callable[[bytes], str], device: str) -> str:
    """Return which classes were made one on this device and are not, in a sentence; empty for none."""
    own = [merge for merge in merges if merge.device == device]
    if not own:
        return ""
    more = f" (and {len(own) - 1} more)" if len(own) > 1 else ""
    return (
        f"{names(own[0].one)!r} and {names(own[0].other)!r} were merged here and are two classes{more}: in a "
        "fleet its people merge (headway fleet classes)"
    )


def twins(found: Sequence[Twin], names: Callable[[bytes], str]) -> str:
    """Return which labels are of other classes than the release's of these names, in a sentence; empty for none.

    Args:
        found: These classes.
        names: Class id to the name people use.
    """
    if not found:
        return ""
    one = found[0]
    labels = "1 label is" if one.labels == 1 else f"{one.labels} labels are"
    more = f" (and {len(found) - 1} more such classes)" if len(found) > 1 else ""
    return f"{labels} of {names(one.class_id)!r}, another class than this release's {one.name!r}{more}"
