"""Which samples an operator is asked about, and why, in the operator's words.

Four reasons, in this order of importance: the sample is unlike anything known; the head hesitates between two
classes; it is taken for a class of a few labels, whose head is sure of more than it can know; a small share is
asked about as a spot check, chosen by the sample's id, so that a confident mistake is found too. The store bounds
how many questions wait and how many come from one part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from sdk.head import Decisions


@dataclass(frozen=True)
class QueuePolicy:
    """When to ask.

    Attributes:
        ask_below: Ask when the best class has less than this probability.
        spot_check_share: Share of all other samples that is asked about.
        young_labels: Ask about what is taken for a class of fewer labels than this, however sure the head is.
    """

    ask_below: float = 0.8
    spot_check_share: float = 0.01
    young_labels: int = 3


class Question(NamedTuple):
    """Why an operator should look at a sample, and how much it matters: 0 to 3, higher first."""

    reason: str
    priority: float


UNLIKE_ANYTHING = "unlike anything known"
SPOT_CHECK = "spot check"
YOUNG = "few labels yet of "


def ask(
    policy: QueuePolicy,
    sample_id: bytes,
    decisions: Decisions,
    row: int,
    *,
    names: Sequence[str],
    counts: Sequence[int],
    threshold: float,
) -> Question | None:
    """Return the question to ask about one sample; None for no question.

    Args:
        policy: When to ask.
        sample_id: Decides the spot checks, so the same sample is always treated alike.
        decisions: What the head says of some codes.
        row: Which of them is this sample.
        names: Class names in column order.
        counts: Samples that the head knows of each class.
        threshold: Novelty above which the head says unknown.
    """
    if decisions.unknown[row]:
        excess = max(0.0, float(decisions.novelty[row]) - threshold)
        return Question(UNLIKE_ANYTHING, 2 + excess / (1 + excess))
    probabilities = decisions.probabilities[row]
    if len(probabilities) > 1 and decisions.probability[row] < policy.ask_below:
        first, second = (int(i) for i in np.argsort(-probabilities, kind="stable")[:2])
        margin = float(probabilities[first] - probabilities[second])
        return Question(f"between {names[first]} and {names[second]}", 1 + (1 - margin) * 0.99)
    best = int(decisions.class_index[row])
    if len(probabilities) > 1 and counts[best] < policy.young_labels:
        return Question(f"{YOUNG}{names[best]}", 1 - counts[best] / (policy.young_labels + 1))
    lot = int.from_bytes(hashlib.sha256(b"headway-spot-check\0" + sample_id).digest()[:8], "big") / 2**64
    if lot < policy.spot_check_share:
        return Question(SPOT_CHECK, lot)
    return None
