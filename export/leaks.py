"""Near-duplicates of a set: which pictures show the same part, seen through another light or crop.

A picture is reduced to what a part keeps when the light changes: detail against its surroundings, divided by the
contrast there. Pictures that could be of one part are proposed by perceptual hash, by thumbnail and by cuts in
nine places, later by features too; of each proposal the detail is laid over the other's, shifted and scaled a
little, and the best correlation is its *likeness*. Pictures above a threshold are joined, and what is joined is a
group.

The threshold is set by the set itself, without labels: no part looks like the mirror image of another part, so how
alike pictures are to mirrored ones tells how alike strangers can be (a decoy search, as in Elias and Gygi, 2007).
Pictures of different parts also share what all pictures of a camera share; a sample of random pairs tells of that.
docs/decisions/0012 has the measurements.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import cv2
import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.special import ndtr, ndtri

from sdk.codes import Features
from sdk.preprocess import Frame

Detail = npt.NDArray[np.float32]
"""A picture's detail (h, w) against its surroundings, about normal with unit deviation."""
Rows = npt.NDArray[np.int64]
Likeness = npt.NDArray[np.float32]

DETAIL_PX: Final = 64
"""Longest side that pictures are compared at: coarser than a few pixels of misplaced crop, finer than texture."""
THUMB_PX: Final = 32
HASHED_PX: Final = 64
CUT_PX: Final = 16
WHITENED: Final = 256
"""At most this many directions of the features."""
SMOOTH_PX: Final = 0.7
SURROUND_PX: Final = 4.0
"""Detail is the difference of a blur of 0.7 px and one of 4 px, of pixels at `DETAIL_PX`: light is smoother."""
CONTRAST_FLOOR: Final = 0.3
"""Share of the picture's mean contrast added to the local one, so that plain areas do not become loud noise."""
SCALES: Final = (0.94, 1.0, 1.06)
MIDDLE: Final = 0.75
"""Share of each side that is laid over the other picture: it may be off by an eighth of a side each way."""
PROPOSED: Final = 6
"""Neighbours of a picture that each kind of search proposes. A part of more pictures is joined in a chain."""
FALSE_JOINS: Final = 1 / 200
"""Joins of different parts that are expected, per picture of the set."""
DECOYED: Final = 500
"""At most this many pictures are compared with mirrored ones: enough to know how alike strangers are."""
RANDOM_PAIRS: Final = 600
TAIL: Final = 100
"""The most alike decoys that the tail is read from."""
_CHUNK: Final = 1024
_FEWEST: Final = 3


@dataclass(frozen=True)
class Look:
    """What is kept of a picture to compare it by: its detail, a thumbnail of that, and a perceptual hash."""

    detail: Detail
    thumb: npt.NDArray[np.float32]  # (THUMB_PX ** 2,), unit length
    hash: npt.NDArray[np.bool_]  # (64,)

    @property
    def plain(self) -> bool:
        """There is nothing to recognise it by."""
        return float(self.detail.std()) < 1e-3


def look(frame: Frame) -> Look:
    """Return what a picture is compared by. About 1 ms for a frame of 256 px."""
    return _look_of_grey(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.uint8))


def _look_of_grey(grey: npt.NDArray[np.uint8]) -> Look:
    h, w = grey.shape
    longest = max(h, w)
    size = max(8, round(w * DETAIL_PX / longest)), max(8, round(h * DETAIL_PX / longest))
    thumb = _detail(grey, (THUMB_PX, THUMB_PX), SURROUND_PX * 0.75).ravel()
    thumb = thumb - thumb.mean()
    square = np.clip(128 + 50 * _detail(grey, (HASHED_PX, HASHED_PX), SURROUND_PX), 0, 255).astype(np.uint8)
    return Look(
        _detail(grey, size, SURROUND_PX),
        thumb / max(float(np.linalg.norm(thumb)), 1e-9),
        imagehash.phash(Image.fromarray(square)).hash.ravel(),
    )


def _detail(grey: npt.NDArray[np.uint8], size: tuple[int, int], surround_px: float) -> Detail:
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    seen = np.asarray(
        cv2.GaussianBlur(np.log1p(small), (0, 0), SMOOTH_PX), np.float32
    )  # light multiplies; its logarithm adds
    rest = seen - _surround(seen, surround_px)
    contrast = np.sqrt(_surround(rest * rest, surround_px))
    return np.asarray(rest / (contrast + CONTRAST_FLOOR * contrast.mean() + 1e-6), np.float32)


def _surround(values: Detail, sigma: float) -> Detail:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), np.float32)


def _mirrored(seen: Look, axis: int) -> Look:
    """Return the look of the picture turned over. (The hash is of another picture, and made anew.)"""
    detail = np.ascontiguousarray(np.flip(seen.detail, axis))
    thumb = np.flip(seen.thumb.reshape(THUMB_PX, THUMB_PX), axis).ravel()
    square = cv2.resize(detail, (HASHED_PX, HASHED_PX), interpolation=cv2.INTER_LINEAR)
    byte = np.clip(128 + 50 * square, 0, 255).astype(np.uint8)
    return Look(detail, thumb, imagehash.phash(Image.fromarray(byte)).hash.ravel())


class _Fitter:
    """Lays pictures over each other; keeps the scaled middles that are laid."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.details = [seen.detail for seen in looks]
        self.middles = [[_middle(detail, scale) for scale in SCALES] for detail in self.details]

    def likeness(self, other: _Fitter, first: int, second: int) -> float:
        """Return the best correlation, in [0, 1], of either picture's middle anywhere on the other."""
        best = 0.0
        for ground, middles in (
            (other.details[second], self.middles[first]),
            (self.details[first], other.middles[second]),
        ):
            for middle in middles:
                found = cv2.matchTemplate(_at_least(ground, middle.shape), middle, cv2.TM_CCOEFF_NORMED)
                best = max(best, float(found.max()))
        return min(best, 1.0) if np.isfinite(best) else 0.0


def _middle(detail: Detail, scale: float) -> Detail:
    h, w = detail.shape
    scaled = cv2.resize(detail, (round(w * scale), round(h * scale))) if scale != 1 else detail
    a, b = max(6, round(h * MIDDLE)), max(6, round(w * MIDDLE))
    top, left = (scaled.shape[0] - a) // 2, (scaled.shape[1] - b) // 2
    return np.ascontiguousarray(scaled[top : top + a, left : left + b])


def _at_least(ground: Detail, shape: tuple[int, ...]) -> Detail:
    below, right = max(0, shape[0] - ground.shape[0]), max(0, shape[1] - ground.shape[1])
    return np.pad(ground, ((0, below), (0, right))) if below or right else ground


@dataclass(frozen=True)
class Pair:
    """Two pictures that show the same part, as it seems. `hash_distance` counts differing bits of 64."""

    first: int
    second: int
    likeness: float
    hash_distance: int


@dataclass(frozen=True)
class NearDuplicates:
    """The pairs above the threshold, most alike first.

    Attributes:
        pairs: Rows of the set, first < second.
        threshold: Least likeness of a pair.
        strangers: Likeness that pairs of different parts do not pass, by the mirrored pictures.
        common: The same by random pairs: what all pictures share.
        compared: How many pairs were laid over each other.
        expected_false: How many of the pairs are of different parts, as expected from the calibration.
    """

    pairs: tuple[Pair, ...]
    threshold: float
    strangers: float
    common: float
    compared: int
    expected_false: float


def find_near_duplicates(
    looks: Sequence[Look], *, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> NearDuplicates:
    """Return which pictures of a set show the same part.

    Cost: 8 ms a picture on one core, up to some thousand; the searches grow with the square of the number.

    Args:
        looks: Of n pictures.
        progress: Called with (pairs compared, pairs in all).
    """
    seen = [i for i, one in enumerate(looks) if not one.plain]
    n = len(seen)
    if n < _FEWEST:
        return NearDuplicates((), 1.0, 1.0, 1.0, 0, 0.0)
    kept = [looks[i] for i in seen]
    index = _Index(kept)
    near = _proposals(index.searches(index), range(n))
    rng = np.random.default_rng(0)
    queries = np.sort(rng.permutation(n)[:DECOYED])
    mirrors = [[_mirrored(one, axis) for one in kept] for axis in (0, 1)]
    decoys = [_proposals(index.searches(_Index(mirror)), queries.tolist()) for mirror in mirrors]
    drawn = {(min(a, b), max(a, b)) for a, b in rng.integers(0, n, (RANDOM_PAIRS, 2)).tolist() if a != b}
    random = np.array(sorted(drawn), np.int64)
    total = len(near) + len(random) + sum(len(pairs) for pairs in decoys)
    fitter = _Fitter(kept)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = 0

        def all_of(pairs: Rows, other: _Fitter) -> Likeness:
            nonlocal done
            found = np.zeros(len(pairs), np.float32)
            for i, value in enumerate(pool.map(lambda pair: fitter.likeness(other, *pair), pairs.tolist())):
                found[i] = value
                done += 1
                if done % 100 == 0 or done == total:
                    progress(done, total)
            return found

        alike = all_of(near, fitter)
        by_chance = all_of(random, fitter)
        to_mirrors = [all_of(pairs, _Fitter(mirror)) for pairs, mirror in zip(decoys, mirrors, strict=True)]

    allowed = FALSE_JOINS * n
    asked = len(queries) / n
    strangers = max(_beyond(found, allowed * (1 - (1 - asked) ** 2)) for found in to_mirrors)
    common = _beyond_normal(by_chance, allowed / (n * (n - 1) / 2))
    threshold = max(strangers, common)
    rows = np.flatnonzero(alike >= threshold)
    pairs = [
        _pair(kept, int(near[row, 0]), int(near[row, 1]), float(alike[row]), seen)
        for row in rows[np.argsort(-alike[rows], kind="stable")]
    ]
    return NearDuplicates(tuple(pairs), threshold, strangers, common, total, min(allowed, float(len(pairs))))


def by_features(
    looks: Sequence[Look], features: Features, known: Container[tuple[int, int]], threshold: float
) -> tuple[Pair, ...]:
    """Return further near-duplicates: those that features propose, of which pixels say the same.

    What a backbone finds alike may be one part or one kind of defect; only pixels can tell, by the same threshold.

    Args:
        looks: Of n pictures.
        features: (n, d), of the same.
        known: Pairs of rows, first < second, that are known already.
        threshold: Least likeness of a pair, of all near-duplicates.
    """
    if len(looks) < _FEWEST:
        return ()
    spread = _whitened(features)
    fitter = _Fitter(looks)
    new = [
        pair for pair in map(tuple, _proposals([lambda rows: spread[rows] @ spread.T], range(len(looks))).tolist())
        if pair not in known and not looks[pair[0]].plain and not looks[pair[1]].plain
    ]  # fmt: skip
    alike = [fitter.likeness(fitter, first, second) for first, second in new]
    same = list(range(len(looks)))
    found = [
        _pair(looks, first, second, value, same)
        for (first, second), value in zip(new, alike, strict=True)
        if value >= threshold
    ]
    return tuple(sorted(found, key=lambda pair: -pair.likeness))


def _pair(looks: Sequence[Look], first: int, second: int, likeness: float, seen: Sequence[int]) -> Pair:
    distance = int((looks[first].hash != looks[second].hash).sum())
    return Pair(seen[first], seen[second], round(likeness, 4), distance)


_Search = Callable[[Rows], npt.NDArray[np.float32]]
"""Rows (m,) to how alike each is to all n others, (m, n)."""


class _Index:
    """What pictures are searched by: thumbnails, hashes, and small cuts that may be misplaced."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.thumbs = np.stack([one.thumb for one in looks])
        self.hashes = np.stack([one.hash for one in looks]).astype(np.float32) * 2 - 1
        self.cuts = np.stack([_cuts(one.detail) for one in looks], axis=1)  # (9, n, CUT_PX ** 2)

    def searches(self, other: _Index) -> list[_Search]:
        """Return searches of these pictures among others."""
        middle = len(_PLACES) // 2

        def misplaced(rows: Rows) -> npt.NDArray[np.float32]:
            best = np.full((len(rows), other.cuts.shape[1]), -1, np.float32)
            for ours, theirs in zip(self.cuts, other.cuts, strict=True):
                np.maximum(best, self.cuts[middle][rows] @ theirs.T, out=best)
                np.maximum(best, ours[rows] @ other.cuts[middle].T, out=best)
            return best

        return [
            lambda rows: self.hashes[rows] @ other.hashes.T,
            lambda rows: self.thumbs[rows] @ other.thumbs.T,
            misplaced,
        ]


_PLACES: Final = tuple((y, x) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0))


def _cuts(detail: Detail) -> npt.NDArray[np.float32]:
    """Return the picture's cuts, `MIDDLE` of each side, in nine places, as rows of unit length."""
    h, w = detail.shape
    a, b = round(h * MIDDLE), round(w * MIDDLE)
    rows = []
    for y, x in _PLACES:
        top, left = round((h - a) * y), round((w - b) * x)
        cut = detail[top : top + a, left : left + b]
        small = cv2.resize(cut, (CUT_PX, CUT_PX), interpolation=cv2.INTER_AREA).ravel()
        small = small - small.mean()
        rows.append(small / max(float(np.linalg.norm(small)), 1e-9))
    return np.asarray(rows, np.float32)


def _whitened(features: Features) -> npt.NDArray[np.float32]:
    """Return features with all directions equally loud, unit length: what few pictures share counts most."""
    centred = features.astype(np.float64) - features.mean(0)
    left, strength, _ = np.linalg.svd(centred, full_matrices=False)
    # The weakest directions are noise.
    spread = left[:, : max(1, min(WHITENED, int((strength > 1e-6 * strength[0]).sum()), len(features) // 2))]
    return np.asarray(spread / np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), 1e-12), np.float32)


def _proposals(searches: Sequence[_Search], queries: Iterable[int]) -> Rows:
    """Return pairs (m, 2), first < second, of each query and what is nearest to it by each of the searches."""
    rows = np.fromiter(queries, np.int64)
    found: set[tuple[int, int]] = set()
    for search in searches:
        for at in range(0, len(rows), _CHUNK):
            chunk = rows[at : at + _CHUNK]
            alike = search(chunk)
            alike[np.arange(len(chunk)), chunk] = -np.inf
            k = min(PROPOSED, alike.shape[1] - 1)
            nearest = np.argpartition(-alike, k - 1, axis=1)[:, :k]
            for a, row in zip(chunk.tolist(), nearest.tolist(), strict=True):
                found.update((min(a, b), max(a, b)) for b in row)
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _beyond(decoys: Likeness, allowed: float) -> float:
    """Return the likeness that `allowed` decoys are expected to pass: an exponential tail, in Fisher's z.

    Lighter tails are overestimated by it, so that the threshold is rather too high than too low.
    """
    z = np.sort(np.arctanh(np.minimum(decoys.astype(np.float64), 0.9999)))[::-1]
    m = max(1, min(TAIL, len(z) // 4))
    scale = float(z[:m].mean() - z[m])
    return float(np.tanh(z[m] + scale * max(0.0, np.log(m / allowed))))


def _beyond_normal(by_chance: Likeness, share: float) -> float:
    """Return the likeness that this share of random pairs passes, were they normal in Fisher's z.

    The spread is read below the median: above it, pairs of one part may be among them.
    """
    z = np.arctanh(np.minimum(by_chance.astype(np.float64), 0.9999))
    low, middle = np.quantile(z, [float(ndtr(-1.0)), 0.5])
    return float(np.tanh(middle + (middle - low) * -float(ndtri(share))))


def joined(groups: Sequence[str], pairs: Iterable[Pair]) -> list[str]:
    """Return the group of each picture after joining the groups that pairs connect; the first name stays.

    >>> joined(["a", "b", "c"], [Pair(0, 2, 0.9, 1)])
    ['a', 'b', 'a']
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for pair in pairs:
        a, b = sorted((root(groups[pair.first]), root(groups[pair.second])))
        parent[b] = a
    return [root(group) for group in groups]
