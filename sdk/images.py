"""Labelled images from a folder, and the one way image bytes become a frame.

Exporter, agent, evaluation and rehearsal read image files through `decode`, so a picture means the same pixels
everywhere. Decoding is Pillow's (strict about truncation, tells modes, sizes and animation apart before
decoding); frames from cameras come from OpenCV and do not pass here.

How a set is kept on disk is the business of `sdk.layouts`. Bad files are refused one by one with a reason; only an
empty rest is an error. Nothing that needs a choice is converted silently: 16-bit, CMYK, transparent and animated
pictures are refused, and so is a picture of one colour, which shows no part.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdk.class_names import key_of, spelled
from sdk.errors import BadImages
from sdk.layouts import Entry, Layout, Refused, listing
from sdk.preprocess import Frame

_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_MODES = frozenset({"L", "RGB", "RGBA", "P", "1", "LA"})
"""8-bit modes that convert to colour without a choice somebody should make (CMYK and 16-bit need one)."""

MAX_PIXELS = 50_000_000
"""A 50-megapixel frame is 150 MB of pixels: no line camera in scope sends more, bombs declare more."""
MIN_SIDE_PX = 8
MAX_IMAGE_BYTES = 200 * 1024 * 1024
_BITS_PER_SAMPLE = 258
"""TIFF 6.0, section 8. Pillow reads 16 bits of red, green and blue as 8, and says nothing."""
_FORMAT_OF = {
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "png": "PNG",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "webp": "WEBP",
}
_NAMED = 3
"""This many examples are named in a note."""


@dataclass(frozen=True)
class LabelledImage:
    """One image file of a set.

    Attributes:
        path: The file.
        label: Class name.
        group: What must not be divided between training and test: a part, a burst, a region. The image itself
            where the set names no groups.
        sample_id: SHA-256 of the file's bytes, 32 bytes.
        columns: The index's other columns, such as camera, shift, lot.
        mask: A picture, of the image's own size, of where the defect is; None where the set has none.
        also: Further classes that the image shows, as COCO can say.
        confirmed: Somebody looked at it after an audit, and stands by the label.
    """

    path: Path
    label: str
    group: str
    sample_id: bytes
    columns: dict[str, str] = field(default_factory=dict)
    mask: Path | None = None
    also: tuple[str, ...] = ()
    confirmed: bool = False


@dataclass(frozen=True)
class ImageSet:
    """The usable images of a folder, in index or path order, and the refused ones.

    Attributes:
        has_groups: The set names groups.
        layout, said: How it is kept, and what of it was found, in words.
        notes: What somebody should know of it.
        contradicted: Images that are refused, since the same picture stands under another label too.
    """

    folder: Path
    images: tuple[LabelledImage, ...]
    refused: tuple[Refused, ...]
    has_groups: bool
    layout: Layout = Layout.FOLDERS
    said: str = ""
    notes: tuple[str, ...] = ()
    contradicted: tuple[LabelledImage, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Class name per image."""
        return [image.label for image in self.images]

    @property
    def groups(self) -> list[str]:
        """Group id per image."""
        return [image.group for image in self.images]

    @property
    def classes(self) -> list[str]:
        """The class names, sorted."""
        return sorted(set(self.labels))

    def spelled(self, known: Collection[str]) -> ImageSet:
        """Return the set with each class written as those do who know it (`sdk.class_names`)."""
        written = {name: spelled(name, known) for name in self.classes}
        return replace(self, images=tuple(replace(each, label=written[each.label]) for each in self.images))


def decode(data: bytes) -> Frame:
    """Return the frame (h, w, 3) uint8 BGR that encoded image bytes hold, turned upright by its EXIF tag.

    Raises:
        BadImages: the bytes are no complete, still, 8-bit image of an accepted kind and size.
    """
    if not data:
        raise BadImages("the file is empty", hint="Take the picture again or remove the file.")
    if len(data) > MAX_IMAGE_BYTES:
        raise BadImages(f"{len(data)} bytes are too many for an image", hint="Send the image compressed.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_header(image, data)
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                _check_opaque(image)
                return _blue_green_red(image)
    except UnidentifiedImageError as error:
        raise BadImages("not a JPEG, PNG, BMP, TIFF or WebP image", hint="Convert or remove it.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImages("declares far too many pixels", hint="Cut it into tiles, or remove it.") from error
    except _DAMAGE as error:
        raise BadImages(
            f"the image is damaged: {_one_line(error)}", hint="Copy or take it again, or remove it."
        ) from error


def _blue_green_red(image: Image.Image) -> Frame:
    import cv2  # as in `sdk.preprocess`; numpy takes eight times longer to turn the channels round

    # Not `cvtColor`: it wakes OpenCV's threads, which wait busily for more and take cores from the backbone.
    if image.mode == "L":
        grey = np.asarray(image, np.uint8)
        return np.asarray(cv2.merge((grey, grey, grey)), np.uint8)
    rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"), np.uint8)
    frame = np.empty_like(rgb)
    cv2.mixChannels([rgb], [frame], [0, 2, 1, 1, 2, 0])
    return frame


_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, MemoryError, struct.error)
"""What Pillow raises for bytes that are not what their header says."""


def _check_header(image: Image.Image, data: bytes) -> None:
    w, h = image.size
    if w * h > MAX_PIXELS:
        raise BadImages(f"{w} x {h} pixels are too many", hint=f"At most {MAX_PIXELS // 10**6} megapixels.")
    if min(w, h) < MIN_SIDE_PX:
        raise BadImages(f"{w} x {h} pixels are too few", hint=f"At least {MIN_SIDE_PX} on each side.")
    if getattr(image, "n_frames", 1) > 1:
        raise BadImages("holds several pictures", hint="Save each as an image of its own.")
    if image.mode not in _MODES or _bits(image, data) > 8:
        raise BadImages(
            f"has {_bits(image, data)}-bit pixels of kind {image.mode}, not 8-bit grey or colour",
            hint="Convert it to 8-bit grey or RGB the way you want it seen: which value is white is yours to say.",
        )


def _bits(image: Image.Image, data: bytes) -> int:
    """Return how many bits a colour of a pixel has in the file."""
    if image.format == "PNG":
        return data[24]  # IHDR, always first: width, height, bit depth
    tags: dict[int, object] = dict(getattr(image, "tag_v2", {}))
    bits = tags.get(_BITS_PER_SAMPLE, 8)
    return max(bits) if isinstance(bits, tuple) else int(str(bits))


def _check_opaque(image: Image.Image) -> None:
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        low, _ = image.convert("RGBA").getchannel("A").getextrema()
        if not isinstance(low, int | float) or low < 255:
            raise BadImages("is transparent in places", hint="Flatten it: what shows through is for you to say.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def read(path: Path | str) -> tuple[bytes, Frame]:
    """Return a file's bytes as delivered, and the frame they hold.

    Raises:
        BadImages: it cannot be read or decoded; the message names the file.
    """
    path = Path(path)
    data = read_bytes(path)
    try:
        return data, decode(data)
    except BadImages as error:
        raise BadImages(f"{path}: {error}", hint=error.hint) from error


def read_bytes(path: Path) -> bytes:
    """Return an image file's bytes as delivered.

    Raises:
        BadImages: it cannot be read, or is no regular file or too large for an image; the message names it.
    """
    try:
        opened, size = _opened(path)
        try:
            return _whole(opened, size, path)
        finally:
            os.close(opened)
    except OSError as error:
        raise BadImages(f"{path}: {error.strerror}", hint="Check the path and its permissions.") from error


def open_regular(path: Path) -> BinaryIO:
    """Return a file of somebody's set, opened to be read; a pipe among them is not waited for.

    Raises:
        BadImages: it is no regular file; the message names it.
        OSError: it cannot be opened.
    """
    return os.fdopen(_opened(path)[0], "rb")


_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""A pipe is not waited for before anybody can see that it is one."""


def _opened(path: Path) -> tuple[int, int]:
    """Return the descriptor of a regular file, and its size in bytes."""
    opened = os.open(path, _READ)
    found = os.fstat(opened)
    if not stat.S_ISREG(found.st_mode):
        os.close(opened)
        raise BadImages(f"{path}: not a regular file", hint="Name image files only.")
    return opened, found.st_size


def _whole(opened: int, size: int, path: Path) -> bytes:
    """Return all of an image file, asking the system no more than that takes: frames of a line come this way."""
    if size > MAX_IMAGE_BYTES:
        raise BadImages(f"{path}: {size} bytes are too many for an image", hint="Send the image compressed.")
    data = os.read(opened, size + 1)
    while len(data) != size and len(data) <= MAX_IMAGE_BYTES:  # it grows, or comes in pieces
        more = os.read(opened, max(1, size + 1 - len(data)))
        if not more:
            break
        data += more
    return data


def sample_id(data: bytes) -> bytes:
    """Return the sample id, 32 bytes, of stored image bytes."""
    return hashlib.sha256(data).digest()


def open_images(
    folder: Path | str,
    *,
    layout: Layout | None = None,
    unannotated: str | None = None,
    index: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    seen: Callable[[bytes, Frame], None] | None = None,
) -> ImageSet:
    """Return the labelled images of a folder, every one of them decoded once to prove it can be.

    The same bytes twice count once; the same bytes under two labels are refused, both of them.

    Args:
        folder: The set, kept in one of the ways of `sdk.layouts`.
        layout: How it is kept; None finds out.
        unannotated: Label of COCO images without annotations; None refuses them.
        index: A file that lists the images instead, its paths relative to the folder (`sdk.layouts.listing`).
        progress: Called with (images checked, images in all).
        seen: Called with (sample id, frame) of each picture that may be used, so that nobody need decode it again.

    Raises:
        BadImages: no such folder, a listing that cannot be read, or no usable image.
    """
    folder = Path(folder)
    listed = listing(folder, layout, unannotated=unannotated, index=index)
    refused = list(listed.refused)
    if not listed.entries and not refused:
        raise BadImages(
            f"{folder} holds no images",
            hint="Put images into one folder per class (good/, scratch/), or write an index.csv with path,label.",
        )
    images: list[LabelledImage] = []
    misnamed: list[str] = []
    bad_masks: list[str] = []
    for i, entry in enumerate(listed.entries):
        try:
            data, frame = read(entry.path)
            _check_content(entry.path, frame)
        except BadImages as error:
            refused.append(Refused(entry.path, str(error).removeprefix(f"{entry.path}: ")))
        else:
            image = _labelled(entry, folder, data, frame, bad_masks)
            images.append(image)
            if seen is not None:
                seen(image.sample_id, frame)
            if (kind := _kind(data)) != _FORMAT_OF.get(entry.path.suffix[1:].lower(), kind):
                misnamed.append(f"{_relative(entry.path, folder)} is {kind}")
        if progress is not None:
            progress(i + 1, len(listed.entries))
    images, contradicted = _once(images, folder, refused)
    if not images:
        reasons = Counter(r.reason for r in refused).most_common(1)[0][0]
        hint = "Replace them."
        if reasons.endswith(("not in the folder", "out of the folder", "divided by /")):
            hint = "Write the paths as they are from the folder on, with / between folders."
        elif index is not None:
            hint = f"The paths in {index} are relative to {folder}: name the folder that it was written for."
        raise BadImages(f"{folder}: none of {len(refused)} images can be used: {reasons}", hint=hint)
    notes = [
        *listed.notes,
        *_count_note(misnamed, "files are not of the kind their names say"),
        *_count_note(bad_masks, "masks cannot be used"),
        *_alike_names(sorted({image.label for image in images})),
    ]
    has_groups = any(entry.group for entry in listed.entries)
    return ImageSet(
        folder,
        tuple(images),
        tuple(refused),
        has_groups,
        listed.layout,
        listed.said,
        tuple(notes),
        tuple(contradicted),
    )


def _once(
    images: Sequence[LabelledImage], folder: Path, refused: list[Refused]
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Return each picture once, and those that stand under two labels; what is left out is added to `refused`."""
    first: dict[bytes, LabelledImage] = {}
    labels: dict[bytes, set[str]] = defaultdict(set)
    for image in images:
        labels[image.sample_id].add(image.label)
        twin = first.setdefault(image.sample_id, image)
        if twin is not image:
            refused.append(Refused(image.path, f"the same picture as {_relative(twin.path, folder)}"))
    for image in first.values():
        if len(labels[image.sample_id]) > 1:
            refused.append(Refused(image.path, "the same picture stands under another label too"))
    return (
        [image for image in first.values() if len(labels[image.sample_id]) == 1],
        [image for image in images if len(labels[image.sample_id]) > 1],
    )


def _labelled(entry: Entry, folder: Path, data: bytes, frame: Frame, bad_masks: list[str]) -> LabelledImage:
    where = _relative(entry.path, folder)
    mask = entry.mask
    if mask is not None and (reason := _mask_fault(mask, frame)):
        bad_masks.append(f"that of {where} {reason}")
        mask = None
    return LabelledImage(
        entry.path,
        entry.label,
        entry.group or where,
        sample_id(data),
        entry.columns,
        mask,
        entry.also,
        entry.confirmed,
    )


def _check_content(path: Path, frame: Frame) -> None:
    if (frame == frame[0, 0]).all():
        raise BadImages(f"{path}: one colour all over", hint="Was the lens cap on? Take it again.")


def _mask_fault(path: Path, frame: Frame) -> str:
    """Return what is wrong with a mask; its pixels are not looked at before somebody needs them."""
    try:
        with open_regular(path) as file, Image.open(file, formats=_FORMATS) as mask:
            w, h = mask.size
    except BadImages as error:
        return f"is {str(error).removeprefix(f'{path}: ')}"
    except UnidentifiedImageError:
        return "is not a JPEG, PNG, BMP, TIFF or WebP image"
    except (Image.DecompressionBombError, *_DAMAGE) as error:
        return f"cannot be read: {_one_line(error)}"
    return (
        "" if (h, w) == frame.shape[:2] else f"is {w} x {h} pixels, the image {frame.shape[1]} x {frame.shape[0]}"
    )


def _kind(data: bytes) -> str:
    """Return the kind of an image that is known to be one, by its first bytes."""
    marks = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"BM": "BMP", b"II": "TIFF", b"MM": "TIFF", b"RI": "WEBP"}
    return marks.get(data[:2], "")


def _count_note(which: Sequence[str], words: str) -> list[str]:
    more = f" and {len(which) - _NAMED} more" if len(which) > _NAMED else ""
    return [f"{len(which)} {words}: {', '.join(which[:_NAMED])}{more}."] if which else []


def _alike_names(classes: Sequence[str]) -> list[str]:
    """Return a note on classes whose names a person would take for one."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[key_of(name).replace(" ", "")].append(name)
    return [
        f"The classes {' and '.join(map(repr, names))} are taken as different ones."
        for names in alike.values()
        if len(names) > 1
    ]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
