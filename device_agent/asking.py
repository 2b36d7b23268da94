"""The questions that wait, asked anew of a new head: what it knows need not be asked any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from device_agent.queue import Question, QueuePolicy, ask
from device_agent.sample import Waiting
from device_agent.store import Store
from sdk.head import Head

AT_ONCE: Final = 32
"""Questions asked anew in one go: about a millisecond's work, and one short write."""


def ask_again(
    store: Store, policy: QueuePolicy, head: Head, names: Sequence[str], space: str, stop: Callable[[], bool]
) -> bool:
    """Ask the waiting questions anew, a few at a time; return false where `stop` said so before the last.

    Args:
        store: Where they wait.
        policy: When to ask.
        head: Asked now.
        names: Its class names, in column order.
        space: Only of samples in this feature space.
        stop: Asked before each few.

    Raises:
        StoreFull: they could not be stored; those before were.
    """
    waiting = [each for each in store.samples.waiting(store.limits.queue) if each.space == space]
    for first in range(0, len(waiting), AT_ONCE):
        if stop():
            return False
        some = waiting[first : first + AT_ONCE]
        store.samples.requeue(_changed(policy, head, names, some))
    return True


def _changed(
    policy: QueuePolicy, head: Head, names: Sequence[str], some: Sequence[Waiting]
) -> dict[bytes, Question | None]:
    """Return what to ask about samples now, of those where that differs."""
    decisions = head.decide(np.stack([each.code for each in some]))
    questions: dict[bytes, Question | None] = {}
    for i, each in enumerate(some):
        threshold = head.calibration.novelty_threshold
        question = ask(policy, each.sample, decisions, i, names=names, counts=head.counts, threshold=threshold)
        if question != each.question:
            questions[each.sample] = question
    return questions
