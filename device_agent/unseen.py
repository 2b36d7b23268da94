"""Which pictures of a set a bundle has not learned from: by their bytes, their groups and their codes.

A picture is known by the SHA-256 of its file, as the recorded split has it. Whoever saves a set anew, as PNG or
with another program, gives all of it new bytes: the pictures look new and flatter every score, for the head knows
them. Their codes tell: a copy's code lies where the learned one's does. Rules this module keeps:

- Images are in the groups that the bundle's split had them in, where it says so: no part is evidence twice.
- Files first, then groups, then codes: nothing is coded that the first two leave out.
- Alike is measured by what is usual among learned samples of the same class, so that good parts of a steady line,
  which all look the same, are not taken for copies.
- A learned sample that the bundle has in its sums only is recognised by an equal code, as lossless copies have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.bundle import BaseSamples, Bundle
from sdk.codes import Codes, code_digest
from sdk.errors import BadImages
from sdk.grouping import Union
from sdk.images import ImageSet, LabelledImage
from sdk.moments import Ints
from sdk.shelf import strips
from sdk.splits import Part

LEARNED: Final = (Part.TRAIN, Part.VALIDATION)
SAVED_ANEW: Final = 0.2
"""A picture is a learned one saved anew if it is nearer to it than this share of what is usual in that one's
class, the median of squared distances to the nearest sample of another group.

Measured with the built-in backbone and MobileNetV2. 44 pictures of magnetic tile and 45 of NEU (JPEGs), fp32 and
int8: saved as PNG 0.00, as JPEG of quality 90 up to 0.13, of 95 up to 0.19. Half the groups of the whole sets,
drawn three times (4,710 pictures), against 40, 160 and all pictures of the others, fp32: the nearest at 0.23."""
_REFERENCE_SAMPLES: Final = 1024
"""Learned samples whose nearest neighbours say what is usual, spread evenly over the classes."""
_FEWEST: Final = 8
"""Of each class, however many classes there are."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Copies:
    """Which of n pictures were learned from after all.

    Attributes:
        copies: (n,) bool: a learned picture saved anew.
        kin: (n,) bool: another new picture of a group that has such a one.
    """

    copies: Bools
    kin: Bools

    @property
    def left(self) -> Bools:
        """(n,) bool: the others."""
        return ~(self.copies | self.kin)


def grouped_as_split(bundle: Bundle, images: ImageSet) -> ImageSet:
    """Return the images in their groups, those joined that have images of one group of the bundle's split.

    An export may have found by their pixels that two groups, or files that nobody grouped, show one part. A group
    is never divided, and of images that are new to the bundle it keeps the new ones. The smallest of the joined
    ids stands for all.
    """
    recorded = bundle.split_groups()
    joined, first = Union(sorted({image.group for image in images.images})), dict[int, str]()
    for image in images.images:
        if (number := recorded.get(image.sample_id)) is not None:
            joined.join(first.setdefault(number, image.group), image.group)
    return replace(images, images=tuple(replace(i, group=joined.root(i.group)) for i in images.images))


def parts_of(bundle: Bundle, images: ImageSet) -> dict[bytes, Part]:
    """Return the part of the bundle's split that images belong to, by sample id.

    A picture that is new may show a part that the bundle has seen in another picture: it goes where that went. Of
    groups that the bundle has not seen there is nothing.
    """
    seen = bundle.parts()
    of_group = {i.group: seen[i.sample_id] for i in images.images if i.sample_id in seen}
    siblings = (i for i in images.images if i.sample_id not in seen and i.group in of_group)
    return seen | {i.sample_id: of_group[i.group] for i in siblings}


def not_learned(bundle: Bundle, images: ImageSet, part: str = Part.TEST.value) -> list[LabelledImage]:
    """Return the images to evaluate a bundle on, as far as files and groups say.

    Args:
        bundle: Its recorded split says which images it learned from, by sample id.
        images: Labelled images; ones of parts that the bundle has never seen are taken whatever the part.
        part: test, stream, or all that was not learned from.

    Raises:
        BadImages: no image is left.
    """
    part_of = parts_of(bundle, images)
    wanted = {Part.TEST, Part.STREAM} if part == "all" else {Part(part)}
    chosen = [i for i in images.images if part_of.get(i.sample_id) in (*wanted, None)]
    if not chosen:
        raise none_left(images, sum(part_of.get(i.sample_id) in LEARNED for i in images.images))
    return chosen


def none_left(images: ImageSet, learned: int, copies: int = 0) -> BadImages:
    """Return the error for a set of which nothing is left to evaluate.

    Args:
        images: All of it.
        learned: So many that the bundle learned from, by file, by group or as copies.
        copies: So many of them are copies.
    """
    anew = f", {copies} of these saved anew" if copies else ""
    return BadImages(
        f"{images.folder}: none of {len(images.images)} images are left to evaluate, "
        f"the bundle learned from {learned} of them{anew}",
        hint="Name images that the bundle has not seen, or another --part.",
    )


def find_copies(base: BaseSamples, images: Sequence[LabelledImage], codes: Codes, fresh: Bools) -> Copies:
    """Return which of some pictures the bundle learned from although their files are new to it.

    Args:
        base: What the bundle learned.
        images: n pictures.
        codes: (n, d) int8, theirs.
        fresh: (n,) bool: the bundle's split does not name them. Only these can be copies.
    """
    copies = np.zeros(len(images), bool)
    copies[fresh] = saved_anew(codes[fresh], base)
    groups = {image.group for image, copy in zip(images, copies, strict=True) if copy}
    together = np.array([image.group in groups for image in images], bool)
    return Copies(copies, together & fresh & ~copies)


def saved_anew(codes: Codes, base: BaseSamples) -> Bools:
    """Return which codes (n, d) are those of learned pictures that were saved anew, (n,).

    Cost: n e d multiplications for the e learned samples with codes, and at most 1024 e d more.
    """
    learned = {*base.summed, *(code_digest(code) for code in base.codes)}
    same = np.array([code_digest(code) in learned for code in codes], bool)
    if not len(codes) or not len(base.codes):
        return same
    apart, nearest = _nearest(codes, base.codes)
    return np.asarray(same | (apart < SAVED_ANEW * _usual(base)[nearest]), bool)


def _usual(base: BaseSamples) -> npt.NDArray[np.float32]:
    """Return what is usual in the class of each sample, (e,), for `SAVED_ANEW`; 0 with one group only."""
    e = len(base.codes)
    group = np.unique(np.array(base.groups[:e], object).astype(str), return_inverse=True)[1].astype(np.int64)
    classes = np.array([bytes(c).hex() for c in base.class_ids[:e]])
    names = sorted(set(classes.tolist()))
    most = max(_FEWEST, _REFERENCE_SAMPLES // len(names))
    usual = np.zeros(e, np.float32)
    for name in names:
        rows = np.flatnonzero(classes == name)
        some = rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
        apart, _ = _nearest(base.codes[some], base.codes, group[some], group)
        if np.isfinite(apart).any():
            usual[rows] = np.median(apart[np.isfinite(apart)])
    return usual


def _nearest(
    codes: Codes, learned: Codes, group: Ints | None = None, of: Ints | None = None
) -> tuple[npt.NDArray[np.float32], Ints]:
    """Return the squared distance of codes (n, d) to the nearest of others (e, d), and which that is, (n,) each.

    Args:
        codes: These.
        learned: Those.
        group: (n,) of these; nothing is near that has the same. None: nothing is apart.
        of: (e,) of those.
    """
    n, d = codes.shape
    apart, nearest = np.full(n, np.inf, np.float32), np.zeros(n, np.int64)
    for theirs in strips(np.arange(len(learned)), d):
        other = learned[theirs].astype(np.float32)
        length = np.einsum("nd,nd->n", other, other)
        for ours in strips(np.arange(n), d):
            here = codes[ours].astype(np.float32)
            found = np.einsum("nd,nd->n", here, here)[:, None] + length - 2 * (here @ other.T)
            if group is not None and of is not None:
                found[group[ours][:, None] == of[theirs]] = np.inf
            at = found.argmin(1)
            least = found[np.arange(len(ours)), at]
            better = least < apart[ours]
            apart[ours[better]], nearest[ours[better]] = least[better], theirs[at[better]]
    return apart, nearest
