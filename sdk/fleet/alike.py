"""Classes that may be one: named alike on two lines, proposed for merging with evidence, never merged here.

Two lines that both invent "scratch" have two classes until somebody merges them. A pair is proposed when the names
are alike, spelling, case and accents aside, nobody has said that the two are different, and not both come with the
release. The codes tell how alike the parts look: does a head that never saw one of the two take its parts for the
other?

No files, no clock.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Final

import numpy as np

from sdk.head import DEFAULT_KNOBS, Knobs, solve
from sdk.liveset import LiveSet
from sdk.moments import Moments

ALIKE: Final = 0.85
"""Share of letters that two names have in common in order: `scratch` and `scratches` 0.875, `pit` and `pin` 0.67.
"""
MAX_PROPOSALS: Final = 20
"""More would not be read; each costs two solves. Those that look most alike come first."""
MOST_CLASSES: Final = 2000
MOST_COMPARISONS: Final = 2000
"""One device may define classes by the hour, of long names that are nearly one: half a millisecond for each pair.
Then only classes with the most labels, and pairs with the most letters in common, are compared."""
_SHELVES: Final = 64  # letters are counted on so many, by their numbers: those in common are never too few


@dataclass(frozen=True)
class Side:
    """One class of a pair.

    Attributes:
        class_id: 16 bytes.
        name: What people call it.
        labels: Labels that count now and have a code.
        devices: Who gave them, sorted.
        taken_for_other: Share of these samples that a head without this class takes for the other one; None
            without such samples, or where the other one has none.
    """

    class_id: bytes
    name: str
    labels: int
    devices: tuple[str, ...]
    taken_for_other: float | None


@dataclass(frozen=True)
class Pair:
    """Two classes that may be one, the smaller id first; `names_alike` is in [`ALIKE`, 1]."""

    one: Side
    other: Side
    names_alike: float


def plain(name: str) -> str:
    """Return a name without what people spell differently: case, accents, width, punctuation, spaces.

    >>> plain("Kratzer, größer"), plain("SCRATCH_1"), plain("Réticule"), plain("scratch  1")
    ('kratzergrosser', 'scratch1', 'reticule', 'scratch1')
    """
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", name).casefold())
    return "".join(c for c in letters if c.isalnum())


def names_alike(one: str, other: str) -> float:
    """Return how alike two names are, from 0 to 1; 1 where they differ in spelling only."""
    low, high = sorted((_compared(one), _compared(other)))
    return SequenceMatcher(None, low, high, autojunk=False).ratio()


def _compared(name: str) -> str:
    return plain(name) or name  # what has neither letters nor digits is compared as it is


def _may_be_alike(names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of names with enough letters in common, whatever their order, those with the most first."""
    letters = np.zeros((len(names), _SHELVES), np.int16)
    for row, name in zip(letters, map(_compared, names), strict=True):
        np.add.at(row, [ord(letter) % _SHELVES for letter in name], 1)
    sizes = letters.sum(1)
    ones, others, shares = [], [], []
    for one in range(len(names) - 1):
        common = np.minimum(letters[one], letters[one + 1 :]).sum(1)
        share = 2.0 * common / (sizes[one] + sizes[one + 1 :])
        enough = np.flatnonzero(share >= ALIKE)
        ones.append(np.full(len(enough), one))
        others.append(enough + one + 1)
        shares.append(share[enough])
    if ones:
        found = np.argsort(-np.concatenate(shares), kind="stable")
        for one, other in zip(np.concatenate(ones)[found], np.concatenate(others)[found], strict=True):
            yield int(one), int(other)


def propose(
    live: LiveSet,
    names: Mapping[bytes, str],
    *,
    released: Collection[bytes] = (),
    apart: Collection[tuple[bytes, bytes]] = (),
    rest: Moments | None = None,
    knobs: Knobs = DEFAULT_KNOBS,
) -> list[Pair]:
    """Return the pairs of classes that may be one, those named most alike first.

    Cost: two solves for each pair that is proposed. Names are compared of the `MOST_CLASSES` classes of the
    release and with the most labels, in the `MOST_COMPARISONS` pairs that have the most letters in common: in a
    channel of 60 classes these are all.

    Args:
        live: The union's live set.
        names: Class names by id, after merges.
        released: Class ids of the release, before merges: its maker told them apart.
        apart: Pairs that somebody said are different, before merges.
        rest: Moments of the release's summed samples, class ids after merges.
        knobs: The head's constants.
    """
    of_release = {live.merged.get(class_id, class_id) for class_id in released}
    different = {tuple(sorted(live.merged.get(each, each) for each in pair)) for pair in apart}
    labels = Counter(live.class_ids)
    by_weight = sorted(names, key=lambda each: (each not in of_release, -labels[each], each))
    ids = sorted(by_weight[:MOST_CLASSES])
    pairs = ((ids[one], ids[other]) for one, other in _may_be_alike([names[each] for each in ids]))
    asked = (pair for pair in pairs if pair not in different and not {*pair} <= of_release)
    found = [(names_alike(names[one], names[other]), one, other) for one, other in islice(asked, MOST_COMPARISONS)]
    found = sorted((each for each in found if each[0] >= ALIKE), key=lambda each: (-each[0], each[1:]))
    if not found:
        return []
    everything = Moments(live.codes.shape[1]) if rest is None else rest.copy()
    everything.add(live.codes, list(live.class_ids))
    return [
        Pair(
            _side(live, names, everything, one, other, knobs),
            _side(live, names, everything, other, one, knobs),
            names_alike=how,
        )
        for how, one, other in found[:MAX_PROPOSALS]
    ]


def _side(
    live: LiveSet, names: Mapping[bytes, str], everything: Moments, this: bytes, other: bytes, knobs: Knobs
) -> Side:
    rows = np.array([class_id == this for class_id in live.class_ids], bool)
    taken: float | None = None
    counts = everything.counts()
    if rows.any() and counts.get(other) and counts[this] == int(rows.sum()):  # none of it is in sums only
        moments = everything.copy()
        moments.subtract(live.codes[rows], [this] * int(rows.sum()))
        head = solve(moments, knobs=knobs)
        decided = head.scores(live.codes[rows]).argmax(1)
        taken = float(np.mean(decided == head.class_ids.index(other)))
    devices = {device for device, mine in zip(live.devices, rows, strict=True) if mine}
    return Side(this, names[this], int(rows.sum()), tuple(sorted(devices)), taken)
