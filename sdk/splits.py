"""One split of a labelled image set, by group and stratified by class.

The same function serves exporter, evaluation and rehearsal, so "images the bundle did not train on" means
one thing. Order within a class comes from SHA-256 of (seed, group), not from a random generator, so that a
split is the same on every machine and version, and adding a group moves few others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from enum import Enum

import numpy as np
import numpy.typing as npt


class Part(str, Enum):
    """What an image is used for. Values are stored in bundles."""

    TRAIN = "train"
    VALIDATION = "validation"
    STREAM = "stream"
    TEST = "test"


SHARES = ((Part.TRAIN, 0.40), (Part.VALIDATION, 0.10), (Part.STREAM, 0.25), (Part.TEST, 0.25))
"""Half to train, a fifth of it for validation; a quarter each to what devices see and to the test."""

_FILL_ORDER = (Part.TRAIN, Part.TEST, Part.STREAM, Part.VALIDATION)
"""Which part gets a class's first groups when there are too few for all four."""


def drawn(seed: int, group: str) -> bytes:
    """Return what a group is ordered by, 32 bytes; it may be called after a file whose name is no UTF-8."""
    return hashlib.sha256(f"{seed}\0{group}".encode(errors="surrogateescape")).digest()


def split(groups: Sequence[str], labels: Sequence[str], seed: int = 0) -> npt.NDArray[np.object_]:
    """Return the `Part` of each sample, (n,) object; samples of one group always share one.

    Each class's groups are dealt out separately, so that every part sees every class where there are groups
    enough. A group with several classes counts for its most frequent one.

    Args:
        groups: Group id per sample, (n,).
        labels: Class name per sample, (n,).
        seed: Another seed gives another split.

    >>> parts = split([f"g{i}" for i in range(8)], ["good"] * 8)
    >>> sorted(p.value for p in parts)
    ['stream', 'stream', 'test', 'test', 'train', 'train', 'train', 'validation']
    """
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} groups for {len(labels)} labels")
    classes_in: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        classes_in[group][label] += 1
    groups_of: dict[str, list[str]] = defaultdict(list)
    for group, classes in classes_in.items():
        main = min(classes, key=lambda name: (-classes[name], name))
        groups_of[main].append(group)

    part_of: dict[str, Part] = {}
    for members in groups_of.values():
        members.sort(key=lambda group: drawn(seed, group))
        dealt: Counter[Part] = Counter()
        for i, group in enumerate(members):
            # The part furthest behind its share takes the next group.
            part = max(_FILL_ORDER, key=lambda p, i=i: dict(SHARES)[p] * (i + 1) - dealt[p])  # type: ignore[misc]
            dealt[part] += 1
            part_of[group] = part
    return np.array([part_of[group] for group in groups], dtype=object)
