"""The folder of a station's master parts: read, embedded once for each release, and looked at by the doctor.

One folder of each class, as the device keeps pictures: a tile where frames are cut. What heads say of them, and
which heads must go for it, is `masters`'.
"""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from device_agent.at_rest import AtRest
from device_agent.masters import Best, MasterCodes
from sdk.class_names import key_of
from sdk.codes import Code
from sdk.errors import BadImages, ConfigError, FeatureSizeError, HeadwayError, InferenceFailed
from sdk.finding import Finding, Level
from sdk.images import LabelledImage, open_images, read_bytes
from sdk.layouts import listing

_log = logging.getLogger(__name__)

MAX_MASTERS: Final = 2000
"""Each takes the backbone once for each release, and d bytes."""


class Masters:
    """The master parts of a station, in the feature space of one release.

    Args:
        folder: One folder of each class, or any other way that `sdk.layouts` knows.
        embed: Code (d,) of an encoded picture.
        best: Of the heads that they have judged; None begins anew.

    Attributes:
        ready: What `codes` found; None before.
        best: Of the heads that they have judged.
    """

    def __init__(self, folder: Path, embed: Callable[[bytes], Code], best: Best | None = None) -> None:
        self._folder = folder
        self._embed = embed
        self._images: list[LabelledImage] | None = None
        self._codes: dict[bytes, Code] = {}
        self.ready: MasterCodes | None = None
        self.best = best or Best()

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
                        self._codes[image.sample_id] = self._embed(read_bytes(image.path))
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


def examine(folder: Path | None, seen: AtRest | None = None) -> Iterator[Finding]:
    """Yield what a technician should know of the folder that the settings name.

    Args:
        folder: Of master parts; None where the settings name none.
        seen: What the heads are of that they judge; None where there is no release yet.
    """
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
    if seen is not None:
        yield from _judging(found.images, seen)
    if len(found.images) > MAX_MASTERS:
        about = f"{MAX_MASTERS} of them judge heads: the first of each class"
        yield Finding("masters", Level.NOTE, about, "Keep the parts that an inspection must never get wrong.")
    for note in listing(folder).notes:  # not those on alike names, which are one class here
        yield Finding("masters", Level.NOTE, note, "Put each picture into the folder of its class.")
    for refused in found.refused:
        about = f"{refused.path.name}: {refused.reason}"
        yield Finding("masters", Level.NOTE, about, "It judges no head: give another picture.")


def _judging(images: Sequence[LabelledImage], seen: AtRest) -> Iterator[Finding]:
    """Yield which parts judge nothing: of classes that no head knows, or pictures that it has learned from."""
    known = {key_of(name): name for name in seen.known}
    unlabelled = {key_of(name) for name in seen.unlabelled}
    strange = Counter(image.label for image in images if key_of(image.label) not in known)
    for name, count in sorted(strange.items()):
        about = f"parts of {name!r} judge nothing ({count})"
        if key_of(name) in unlabelled:
            yield Finding(
                "masters", Level.NOTE, f"{about}: nothing is of that class yet", "Label some on the page."
            )
            continue
        near = difflib.get_close_matches(key_of(name), known, n=1)
        meant = f"Did you mean {known[near[0]]!r}? " if near else ""
        yield Finding(
            "masters",
            Level.NOTE,
            f"{about}: no class has that name",
            f"{meant}There are: {', '.join(map(repr, known.values()))}; or define the class on the page.",
        )
    of_known = [image for image in images if key_of(image.label) in known]
    fresh = Counter(key_of(image.label) for image in of_known if image.sample_id not in seen.learned)
    came = len(of_known) - fresh.total()
    if came:
        yield Finding(
            "masters",
            Level.NOTE,
            f"parts whose very pictures were learned judge nothing ({came}); {fresh.total()} others do",
            "Take other parts, or other pictures of these.",
        )
    lacking = sorted({image.label for image in of_known if not fresh[key_of(image.label)]})
    if lacking and fresh:
        yield Finding(
            "masters",
            Level.NOTE,
            f"no part judges {' or '.join(map(repr, lacking))}",
            "Add pictures that were not learned.",
        )
