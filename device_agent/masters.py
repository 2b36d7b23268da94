"""Master parts: pictures of known class that every head must still tell, and that none learns from.

Quality engineers keep a master (a limit sample, a challenge part) of each thing that an inspection must never get
wrong, and show them to it before a shift. Here they are pictures in a folder, one folder of each class, as the
device keeps pictures: a tile where frames are cut. A head that tells them worse than the best one that served, by
more than `MAX_DROP` of their mean recall, is taken back, whoever's labels brought it, and however few labels there
are to score it by otherwise. They are embedded in the background, once for each release.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from device_agent.finding import Finding, Level
from sdk.codes import Code, Codes
from sdk.errors import BadImages, ConfigError, FeatureSizeError, HeadwayError, InferenceFailed
from sdk.head import Head
from sdk.images import LabelledImage, open_images
from sdk.layouts import listing
from sdk.reason import Reason

_log = logging.getLogger(__name__)

MAX_DROP: Final = 0.05
"""Of the mean recall of master parts. One that is lost of five, in one of three classes, is more than that."""
MAX_MASTERS: Final = 2000
"""Each takes the backbone once for each release, and d bytes."""


class Told(NamedTuple):
    """What a head says of one master part: a class's name, empty for unknown, and whether that is right."""

    file: Path
    sample: bytes
    wanted: str
    shown: str
    right: bool


class Telling(NamedTuple):
    """What a head says of the master parts that it can be asked about, and whose class it knows none of.

    Attributes:
        told: Parts of known classes.
        strange: Classes of the others, as the folders are called.
    """

    told: list[Told]
    strange: tuple[str, ...]


@dataclass(frozen=True)
class MasterCodes:
    """Master parts in one feature space; row i of each belongs to part i.

    Attributes:
        files: Where their pictures are.
        samples: SHA-256 of the pictures, 32 bytes each.
        classes: Names of their classes, as the folders are called.
        codes: (m, d) int8.
    """

    files: tuple[Path, ...]
    samples: tuple[bytes, ...]
    classes: tuple[str, ...]
    codes: Codes

    def told(self, head: Head, names: Callable[[bytes], str]) -> list[Told]:
        """Return what a head says of each part of a class that it knows.

        Args:
            head: Of the same feature space.
            names: Class id to the name people use.
        """
        if not self.files:
            return []
        known = [names(class_id) for class_id in head.class_ids]
        keys = {key_of(name) for name in known}
        decisions = head.decide(self.codes)
        shown = [
            "" if unknown else known[index]
            for unknown, index in zip(decisions.unknown, decisions.class_index, strict=True)
        ]
        return [
            Told(file, sample, wanted, said, key_of(said) == key_of(wanted))
            for file, sample, wanted, said in zip(self.files, self.samples, self.classes, shown, strict=True)
            if key_of(wanted) in keys
        ]

    def strange(self, known: Iterable[str]) -> tuple[str, ...]:
        """Return the classes that are none of these names, however written: a slip, or one that was renamed."""
        keys = {key_of(name) for name in known}
        return tuple(sorted({name for name in self.classes if key_of(name) not in keys}))


class MasterSide(NamedTuple):
    """Master parts, and a head of the same feature space.

    Attributes:
        parts: Their codes.
        head: Calibrated.
        names: Class id to the name people use.
        learned: Samples that the head has learned from: a part among them shows nothing.
    """

    parts: MasterCodes
    head: Head
    names: Callable[[bytes], str]
    learned: frozenset[bytes]

    def right(self) -> dict[bytes, bool]:
        """Return for each part whether the head tells it; what is called unknown is missed."""
        told = self.parts.told(self.head, self.names)
        return {each.sample: each.right for each in told if each.sample not in self.learned}


class Best:
    """What the head said of master parts that told them best: many small steps down are one large one.

    Of the heads of one release that were confirmed since the agent started.
    """

    def __init__(self) -> None:
        self._right: dict[bytes, bool] = {}

    def of(self, confirmed: MasterSide) -> dict[bytes, bool]:
        """Return for each part that a confirmed head can be asked about whether the best head told it.

        That is the confirmed head itself from now on, where it tells them as well.
        """
        now = confirmed.right()
        best = {sample: self._right.get(sample, right) for sample, right in now.items()}
        recalls = _recalls(confirmed.parts, {sample: (best[sample], right) for sample, right in now.items()})
        if recalls and np.mean([then - since for then, since in recalls.values()]) <= 0:
            best = now
        self._right |= best
        return best


def judge(before: MasterSide, after: MasterSide, best: Best | None = None) -> Reason | None:
    """Return why a head must go, or None where it tells master parts as well as the one before.

    Compared are classes that the head before knows, by mean recall. A head of one class is no judge: telling it
    from another is a new ability. Of one release a head no longer knows a class only because its labels were
    withdrawn, which is what was asked for; a release that does not know it has lost it.

    Args:
        before: Serves where the other goes.
        after: Is judged.
        best: Of the heads of one release that `before` came after; the best of these is compared with. None
            between two releases.
    """
    if len(before.head.class_ids) < 2:
        return None
    was, now = before.right() if best is None else best.of(before), after.right()
    asked = was if best is None else [sample for sample in was if sample in now]
    both = {sample: (was[sample], now.get(sample, False)) for sample in asked if sample not in after.learned}
    recalls = _recalls(before.parts, both)
    drops = {name: then - since for name, (then, since) in recalls.items()}
    if not drops or np.mean(list(drops.values())) <= MAX_DROP:
        return None
    worst = max(drops, key=lambda name: drops[name])
    then, since = recalls[worst]
    return Reason("masters", name=worst, share=since, before=then)


def _recalls(parts: MasterCodes, both: Mapping[bytes, tuple[bool, bool]]) -> dict[str, tuple[float, float]]:
    """Return two heads' recalls by class, from what each said of parts."""
    by_class: dict[str, list[tuple[bool, bool]]] = {}
    written: dict[str, str] = {}  # one class in two ways is one class all the same
    for sample, name in zip(parts.samples, parts.classes, strict=True):
        if sample in both:
            by_class.setdefault(written.setdefault(key_of(name), name), []).append(both[sample])
    means = {name: np.mean(rights, axis=0) for name, rights in by_class.items()}
    return {name: (float(one), float(other)) for name, (one, other) in means.items()}


class Masters:
    """The master parts of a station, in the feature space of one release.

    Args:
        folder: One folder of each class, or any other way that `sdk.layouts` knows.
        embed: Code (d,) of an encoded picture.

    Attributes:
        ready: What `codes` found; None before.
        best: Of the heads that they have judged.
    """

    def __init__(self, folder: Path, embed: Callable[[bytes], Code]) -> None:
        self._folder = folder
        self._embed = embed
        self._images: list[LabelledImage] | None = None
        self._codes: dict[bytes, Code] = {}
        self.ready: MasterCodes | None = None
        self.best = Best()

    def codes(self, stop: Callable[[], bool], end: Callable[[], bool] | None = None) -> MasterCodes | None:
        """Return them all; None where there are none to be read. What was embedded before a stop is kept.

        Args:
            stop: Asked before each picture is embedded.
            end: Asked for each picture while the folder is read, which begins anew after that; None asks `stop`.

        Raises:
            InterruptedError: one of these said so.
        """
        if self.ready is None:
            images = self._read(end or stop)
            for image in images:
                if stop():
                    raise InterruptedError("embedding was asked to stop")
                if image.sample_id not in self._codes:
                    try:
                        self._codes[image.sample_id] = self._embed(image.path.read_bytes())
                    except (OSError, BadImages, FeatureSizeError, InferenceFailed) as error:
                        _log.warning("%s is no master part any more: %s", image.path, error)
            self.ready = _together([image for image in images if image.sample_id in self._codes], self._codes)
        return self.ready if self.ready.files else None

    def _read(self, end: Callable[[], bool]) -> list[LabelledImage]:
        def read_one(_number: int, _of: int) -> None:
            if end():
                raise InterruptedError("reading was asked to stop")

        if self._images is None:
            try:
                found = open_images(self._folder, progress=read_one)
            except BadImages as error:
                _log.error("no master parts: %s (%s)", error, error.hint)
                self._images = []
                return self._images
            for refused in found.refused:
                _log.warning("%s is no master part: %s", refused.path, refused.reason)
            self._images = of_each_class(found.images, MAX_MASTERS)
            if len(found.images) > MAX_MASTERS:
                _log.warning("%d master parts: %d count, the first of each class", len(found.images), MAX_MASTERS)
        return self._images


def of_each_class(images: Sequence[LabelledImage], most: int) -> list[LabelledImage]:
    """Return the first images of each class, so many in all: thousands of good parts leave room for the others."""
    before = Counter[str]()
    turns = []
    for image in images:
        turns.append(before[image.label])
        before[image.label] += 1
    order = sorted(range(len(images)), key=turns.__getitem__)
    return [images[row] for row in sorted(order[:most])]


def _together(images: list[LabelledImage], codes: Mapping[bytes, Code]) -> MasterCodes:
    return MasterCodes(
        files=tuple(image.path for image in images),
        samples=tuple(image.sample_id for image in images),
        classes=tuple(image.label for image in images),
        codes=np.array([codes[image.sample_id] for image in images], np.int8),
    )


def check_folder(folder: Path | None) -> None:
    """Check that the settings name a folder.

    Raises:
        ConfigError: they name something else.
    """
    try:
        if folder is None or folder.is_dir():
            return
    except OSError as error:
        raise ConfigError(
            f"{folder}: master parts cannot be read: {error.strerror}",
            hint="Let the agent's user read this folder and those above it, or take masters out of the settings.",
        ) from error
    raise ConfigError(
        f"{folder}: no such folder of master parts",
        hint="Make it, with one folder of each class, or take masters out of the settings.",
    )


def examine(folder: Path | None) -> Iterator[Finding]:
    """Yield what a technician should know of the folder that the settings name."""
    if folder is None:
        return
    try:
        check_folder(folder)
        found = open_images(folder)
    except HeadwayError as error:
        yield Finding.of("masters", error)
        return
    classes = Counter(image.label for image in found.images)
    said = ", ".join(f"{count} of {name}" for name, count in sorted(classes.items()))
    yield Finding("masters", Level.GOOD, f"{len(found.images)} master parts: {said}")
    if len(found.images) > MAX_MASTERS:
        about = f"{MAX_MASTERS} of them judge heads: the first of each class"
        yield Finding("masters", Level.NOTE, about, "Keep the parts that an inspection must never get wrong.")
    for note in listing(folder).notes:  # not those on alike names, which are one class here
        yield Finding("masters", Level.NOTE, note, "Put each picture into the folder of its class.")
    for refused in found.refused:
        about = f"{refused.path.name}: {refused.reason}"
        yield Finding("masters", Level.NOTE, about, "It judges no head: give another picture.")


def key_of(name: str) -> str:
    """Return what names of one class have in common, however they are written.

    A folder that came from a Mac has its umlauts as two letters each.

    >>> key_of("Deep  Scratch") == key_of("deep scratch")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
