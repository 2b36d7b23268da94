"""A head with what goes along: the one that serves, one on trial, and its row of the device's history."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from device_agent.heads_and_updates import HeadRow, Outcome
from sdk.adaptation import Harm
from sdk.head import Calibration, Head
from sdk.liveset import LiveSet
from sdk.moments import Adaptation
from sdk.reason import Reason, sentences
from sdk.score import LeftOut, Score
from sdk.structs import prepare
from sdk.wire import HeadState

prepare(Calibration, Adaptation, Score, Reason)  # the page asks on several threads


@dataclass(frozen=True)
class ActiveHead:
    """The head that decides, and what goes with it.

    Attributes:
        head: Decides.
        names: Class names, in column order.
        state: Whether its trial has confirmed it.
        digest: Digest of the live set it was solved from.
        number: Its number in the device's history.
        samples: Size of that live set.
    """

    head: Head
    names: tuple[str, ...]
    state: HeadState
    digest: str
    number: int
    samples: int


@dataclass(frozen=True)
class Solved:
    """A head with the live set it is of, and its left-out scores once they were needed."""

    head: Head
    live: LiveSet
    row: HeadRow
    left_out: LeftOut | None = None
    harm: Harm | None = None


class Reference(NamedTuple):
    """How known samples look to the confirmed head when their group is left out."""

    number: int
    left_out: LeftOut
    calibration: Calibration


def score_of(row: HeadRow) -> Score | None:
    """Return the honest score in a row of the heads' history; None where there was none."""
    if row.score is None:
        return None
    found = msgspec.msgpack.decode(row.score, type=Score)
    return replace(found, balanced_accuracy=None) if len(found.one_group) == len(found.classes) else found


def ended(row: HeadRow, outcome: Outcome, *why: Reason) -> HeadRow:
    """Return a head's row with how its trial ended, and why."""
    return replace(row, outcome=outcome, reason=sentences(why), why=why)


def pack(value: Score | Calibration | Adaptation) -> bytes:
    """Return what a row keeps of a value; 0, which earlier versions can read, for an accuracy not known."""
    if isinstance(value, Score) and value.balanced_accuracy is None:
        value = replace(value, balanced_accuracy=0.0)
    return msgspec.msgpack.encode(value)  # not JSON, which has no infinity
