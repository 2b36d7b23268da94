"""Which images of a set an export learns from, under which class ids: the split, and what is held back.

Only training and validation images of classes that are not held back are learned from, in every step that
follows: weights, calibration, code scale, codes, head. The split file alone names the others, by digest.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from export.progress import Log
from sdk.bundle import MAX_CLASSES, MAX_GROUP_BYTES, Bundle
from sdk.class_names import is_reserved, key_of
from sdk.errors import BadImages
from sdk.images import ImageSet
from sdk.labels import new_class_id
from sdk.shown import readable
from sdk.splits import Part, split

LEARNED: Final = (Part.TRAIN, Part.VALIDATION)
GOLDEN_IMAGES: Final = 6
"""Enough that a wrong runtime cannot pass by luck; a 224 px frame is 150 kB of the bundle."""
MAX_CLASS_NAME: Final = 64


@dataclass(frozen=True)
class Selection:
    """What is learned from: row i of each belongs to one image, in the order of the set.

    Attributes:
        images: The whole set.
        parts: Part of every image of it.
        rows: Row in the set of each learned image.
        labels, groups: Of each learned image.
        validation: (n,) bool, images of validation groups.
        class_ids: Id by name, of the classes learned, in the order of names.
    """

    images: ImageSet
    parts: list[Part]
    rows: list[int]
    labels: list[str]
    groups: list[str]
    validation: npt.NDArray[np.bool_]
    class_ids: dict[str, bytes]
    parents: list[str]

    @property
    def ids(self) -> list[bytes]:
        """Class id of each learned image."""
        return [self.class_ids[label] for label in self.labels]

    @property
    def samples(self) -> list[bytes]:
        """Sample id of each learned image."""
        return [self.images.images[row].sample_id for row in self.rows]


def _check_name(name: str) -> None:
    """Refuse a name of a class that no device would take from an operator either.

    Raises:
        BadImages: it is one.
    """
    _check_text(name)
    if len(name) > MAX_CLASS_NAME or not name.isprintable():
        raise BadImages(
            f"{name[:80]!r} is no class name",
            hint=f"Use at most {MAX_CLASS_NAME} letters, and no control characters.",
        )
    if " ".join(name.split()) != name:
        raise BadImages(
            f"the class {name!r} has spaces before, behind or twice within its name",
            hint="Rename it: people who type it leave them out, and devices would not find it.",
        )
    if is_reserved(name):
        raise BadImages(
            f"no class can be called {name!r}: it is what a device says of what looks like no class",
            hint="Rename it, or --hold-back keeps these images for `headway evaluate`.",
        )


def _check_text(name: str) -> None:
    """Refuse a class whose folder is called otherwise than in UTF-8: a bundle and its devices keep names so.

    Raises:
        BadImages: it is one.
    """
    if (told := readable(name)) != name:
        raise BadImages(
            f"the class {told} has a name that is no UTF-8", hint="Rename its folder, as with convmv -t utf-8."
        )


def _check_names(names: Iterable[str]) -> None:
    """Refuse names of classes, all that are none together.

    Raises:
        BadImages: one of them is none.
    """
    faults: list[BadImages] = []
    for name in names:
        try:
            _check_name(name)
        except BadImages as error:
            faults.append(error)
    if len(faults) > 1:
        hints = dict.fromkeys(fault.hint for fault in faults)
        raise BadImages("; ".join(map(str, faults)), hint=" ".join(hints))
    if faults:
        raise faults[0]


def select(
    images: ImageSet, *, seed: int, hold_back: Sequence[str], classes_from: Path | None, log: Log
) -> Selection:
    """Return the split, and the images that are learned from.

    Args:
        images: The set.
        seed: Of the split.
        hold_back: Classes that nothing learns from.
        classes_from: An earlier bundle whose class ids are kept for classes of the same name.
        log: Told what the user should know of the choice.

    Raises:
        BadImages: nothing is left to learn from, a class that is not there is held back, or it cannot be told
            which class is one of the earlier bundle's.
    """
    _check_names(name for name in images.classes if name not in hold_back)
    for name in hold_back:
        _check_text(name)
        if name not in images.classes:
            near = difflib.get_close_matches(name, images.classes, n=1)
            have = f"Did you mean {near[0]}?" if near else f"It has: {', '.join(images.classes[:12])}."
            raise BadImages(f"there is no class {name!r} to hold back in {images.folder}", hint=have)
    parts: list[Part] = list(split(images.groups, images.labels, seed))
    rows = [
        row
        for row, (part, image) in enumerate(zip(parts, images.images, strict=True))
        if part in LEARNED and image.label not in hold_back
    ]
    labels = [images.images[row].label for row in rows]
    groups = [_group_id(images.images[row].group) for row in rows]
    classes = sorted(set(labels))
    if not classes:
        raise BadImages(
            f"{images.folder}: no image is left to learn from", hint="Hold fewer classes back, or add images."
        )
    if len(set(groups)) < 2:
        raise BadImages(
            f"{images.folder}: all images to learn from belong to one group",
            hint="Add images of other parts; a score needs at least two to learn from, about four in all.",
        )
    if len(classes) > MAX_CLASSES:
        raise BadImages(f"{len(classes)} classes are over {MAX_CLASSES}", hint="Are labels and groups mixed up?")
    if images.refused:
        files = "1 file" if len(images.refused) == 1 else f"{len(images.refused)} files"
        log.warn(f"{files} refused, the first: {_first_refusal(images)}")
    lost = [name for name in images.classes if name not in classes and name not in hold_back]
    if lost:
        log.warn(f"Not learned, having no image in the training part: {', '.join(lost)}.")
    ids, parents = _class_ids(images, classes, classes_from, log)
    validation = np.array([parts[row] is Part.VALIDATION for row in rows])
    return Selection(images, parts, rows, labels, groups, validation, ids, parents)


def _first_refusal(images: ImageSet) -> str:
    first = images.refused[0]
    return f"{first.path.name}: {first.reason}."


def _group_id(group: str) -> str:
    """Return the group's id as bundles hold it: at most `MAX_GROUP_BYTES` of UTF-8 without NUL."""
    raw = group.encode("utf-8", "surrogateescape")
    plain = len(raw) <= MAX_GROUP_BYTES and b"\0" not in raw and group.isprintable()
    return group if plain else "sha256:" + hashlib.sha256(raw).hexdigest()


def _class_ids(
    images: ImageSet, classes: Sequence[str], earlier: Path | None, log: Log
) -> tuple[dict[str, bytes], list[str]]:
    """Return an id for each class, an earlier bundle's for those it knows, and the digests of the parents.

    Raises:
        BadImages: it cannot be told which class is the earlier bundle's.
    """
    if earlier is None:
        return {name: new_class_id() for name in classes}, []
    bundle = Bundle.open(earlier)
    known = {name: class_id for class_id, name in bundle.class_names().items()}
    continued = _continued(images, classes, known, bundle.manifest.name)
    for name, was in continued.items():
        if name != was:
            log.warn(f"{name!r} continues {was!r} of {bundle.manifest.name}.")
    if dropped := sorted(known.keys() - continued.values()):
        them = "it" if len(dropped) == 1 else "them"
        log.warn(
            f"{bundle.manifest.name} also knows {', '.join(dropped)}: nothing here is learned of {them}, so the "
            f"new bundle will not know {them}."
        )
    ids = {name: known[continued[name]] if name in continued else new_class_id() for name in classes}
    return ids, [bundle.digest()]


def _continued(images: ImageSet, classes: Sequence[str], known: Collection[str], earlier: str) -> dict[str, str]:
    """Return what an earlier bundle calls each class that it knows.

    A class has the name that it had, else the only one with its key. Of a name that two classes could go on with,
    neither is guessed: labels of a fleet would be of the other.

    Raises:
        BadImages: several could be one, or one several.
    """
    continued: dict[str, str] = {}
    all_here, all_there = _by_key(classes), _by_key(known)
    for name in classes:
        here, there = all_here[key_of(name)], all_there.get(key_of(name), [])
        if name in there or (len(here) == len(there) == 1):
            continued[name] = name if name in there else there[0]
        elif there:
            fault = (
                f"{' and '.join(map(repr, here))} are different classes here, and {earlier} knows "
                f"{' and '.join(map(repr, there))}"
                if len(here) > 1
                else f"{name!r} may be {' or '.join(map(repr, there))}, which are different classes of {earlier}"
            )
            raise BadImages(
                f"{images.folder}: {fault}",
                hint=f"Write a class that goes on as {earlier} does, images of one class in one folder, and give "
                "another class a name that differs in more than case and spaces.",
            )
    return continued


def _by_key(names: Collection[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(key_of(name), []).append(name)
    return found


def golden_rows(learned: Selection) -> list[int]:
    """Return rows of training images, the classes in turn."""
    of_class: dict[str, list[int]] = {name: [] for name in learned.class_ids}
    for row, label in enumerate(learned.labels):
        if not learned.validation[row]:
            of_class[label].append(row)
    turns = zip_longest(*of_class.values())
    rows = [row for turn in turns for row in turn if row is not None]
    return sorted(rows[:GOLDEN_IMAGES]) or list(range(min(GOLDEN_IMAGES, len(learned.rows))))


def data_digest(images: ImageSet) -> str:
    """Return the digest, 64 hex digits, of a labelled set (docs/bundle.md, section 8)."""
    digest = hashlib.sha256(b"headway-images-1\0")
    for sample, label in sorted((image.sample_id, image.label) for image in images.images):
        name = label.encode("utf-8", "surrogateescape")
        digest.update(sample + len(name).to_bytes(4, "big") + name)
    return digest.hexdigest()
