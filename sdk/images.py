"""Labelled images from a folder, and the one way image bytes become a frame.

Exporter, agent, evaluation and rehearsal read image files through `decode`, so a picture means the same pixels
everywhere. Decoding is Pillow's (strict about truncation, tells modes, sizes and animation apart before
decoding); frames from cameras come from OpenCV and do not pass here.

A set is a folder of class folders, a folder with an `index.csv` (`path,label[,group,...]`), or a flat folder of
good parts, the usual first day. Bad files are refused one by one with a reason; only an empty rest is an error.
"""

from __future__ import annotations

import csv
import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sdk.errors import BadImages
from sdk.preprocess import Frame

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_MODES = frozenset({"L", "RGB", "RGBA", "P", "1", "LA"})
"""8-bit modes that convert to colour without a choice somebody should make (CMYK and 16-bit need one)."""

MAX_PIXELS = 50_000_000
"""A 50-megapixel frame is 150 MB of pixels: no line camera in scope sends more, bombs declare more."""
MIN_SIDE_PX = 8
MAX_IMAGE_BYTES = 200 * 1024 * 1024
FIRST_DAY_LABEL = "good"
"""Label of a flat folder's images: on the first day there are only good parts."""
INDEX_NAME = "index.csv"


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
    """

    path: Path
    label: str
    group: str
    sample_id: bytes
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A file that will not be learned from, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """The usable images of a folder, in index or path order, and the refused ones."""

    folder: Path
    images: tuple[LabelledImage, ...]
    refused: tuple[Refused, ...]
    has_groups: bool

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
                _check_header(image)
                image.load()
                upright = ImageOps.exif_transpose(image)
                rgb = np.asarray(upright.convert("RGB"), np.uint8)
    except UnidentifiedImageError as error:
        raise BadImages("not a JPEG, PNG, BMP, TIFF or WebP image", hint="Convert or remove it.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImages("declares far too many pixels", hint="Cut it into tiles, or remove it.") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, MemoryError) as error:
        raise BadImages(
            f"the image is damaged: {_one_line(error)}", hint="Copy or take it again, or remove it."
        ) from error
    return np.ascontiguousarray(rgb[:, :, ::-1])


def _check_header(image: Image.Image) -> None:
    w, h = image.size
    if w * h > MAX_PIXELS:
        raise BadImages(f"{w} x {h} pixels are too many", hint=f"At most {MAX_PIXELS // 10**6} megapixels.")
    if min(w, h) < MIN_SIDE_PX:
        raise BadImages(f"{w} x {h} pixels are too few", hint=f"At least {MIN_SIDE_PX} on each side.")
    if getattr(image, "n_frames", 1) > 1:
        raise BadImages("holds several pictures", hint="Save each as an image of its own.")
    if image.mode not in _MODES:
        raise BadImages(
            f"has pixels of kind {image.mode}", hint="Convert it to 8-bit grey or RGB the way you want it seen."
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def read(path: Path) -> tuple[bytes, Frame]:
    """Return a file's bytes as delivered, and the frame they hold.

    Raises:
        BadImages: it cannot be read or decoded; the message names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImages(f"{path}: {error.strerror}", hint="Check the path and its permissions.") from error
    try:
        return data, decode(data)
    except BadImages as error:
        raise BadImages(f"{path}: {error}", hint=error.hint) from error


def sample_id(data: bytes) -> bytes:
    """Return the sample id, 32 bytes, of stored image bytes."""
    return hashlib.sha256(data).digest()


def open_images(folder: Path, *, progress: Callable[[int, int], None] | None = None) -> ImageSet:
    """Return the labelled images of a folder, every one of them decoded once to prove it can be.

    The same bytes twice count once; the same bytes under two labels are refused, both of them.

    Args:
        folder: Class folders, an `index.csv`, or a flat folder of good parts.
        progress: Called with (images checked, images in all).

    Raises:
        BadImages: no such folder, an index that cannot be read, or no usable image.
    """
    if not folder.is_dir():
        raise BadImages(f"{folder} is not a folder", hint="Name a folder with one folder of images per class.")
    index = folder / INDEX_NAME
    listed = list(_from_index(folder, index) if index.is_file() else _from_folders(folder))
    if not listed:
        raise BadImages(
            f"{folder} holds no images",
            hint="Put images into one folder per class (good/, scratch/), or write an index.csv with path,label.",
        )
    images: list[LabelledImage] = []
    refused: list[Refused] = []
    by_id: dict[bytes, LabelledImage] = {}
    contradicted: set[bytes] = set()
    for i, (path, label, group, columns) in enumerate(listed):
        try:
            data, _ = read(path)
        except BadImages as error:
            refused.append(Refused(path, str(error).removeprefix(f"{path}: ")))
        else:
            image = LabelledImage(path, label, group or _relative(path, folder), sample_id(data), columns)
            twin = by_id.setdefault(image.sample_id, image)
            if twin is image:
                images.append(image)
            else:
                refused.append(Refused(path, f"the same picture as {_relative(twin.path, folder)}"))
                if twin.label != label:
                    contradicted.add(image.sample_id)
        if progress is not None:
            progress(i + 1, len(listed))
    for image in images:
        if image.sample_id in contradicted:
            refused.append(Refused(image.path, "the same picture stands under another label too"))
    images = [image for image in images if image.sample_id not in contradicted]
    if not images:
        reasons = Counter(r.reason for r in refused).most_common(1)[0][0]
        raise BadImages(f"{folder}: none of {len(listed)} images can be used: {reasons}", hint="Replace them.")
    has_groups = any(group for _, _, group, _ in listed)
    return ImageSet(folder, tuple(images), tuple(refused), has_groups)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


_Listed = tuple[Path, str, str, dict[str, str]]


def _from_folders(folder: Path) -> Iterable[_Listed]:
    class_folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    flat = sorted(p for p in folder.iterdir() if _is_image(p))
    if flat and class_folders:
        raise BadImages(
            f"{folder} has images beside class folders",
            hint=f"Move {flat[0].name} and the others into a class folder.",
        )
    for path in flat:
        yield path, FIRST_DAY_LABEL, "", {}
    for class_folder in class_folders:
        for path in sorted(p for p in class_folder.rglob("*") if _is_image(p)):
            yield path, class_folder.name, "", {}


def _is_image(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _from_index(folder: Path, index: Path) -> Iterable[_Listed]:
    root = folder.resolve()
    try:
        with index.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            missing = {"path", "label"} - set(names)
            if missing:
                raise BadImages(
                    f"{index}: no column {' or '.join(sorted(missing))}",
                    hint="The first line must be path,label[,group,...].",
                )
            for row in reader:
                yield _index_row(root, folder, index, reader.line_num, row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadImages(f"{index}: {_one_line(error)}", hint="Save it as UTF-8 CSV with commas.") from error


def _index_row(root: Path, folder: Path, index: Path, line: int, row: dict[str, str]) -> _Listed:
    where = f"{index}, line {line}"
    if None in row or None in row.values():
        raise BadImages(f"{where}: another number of fields than the first line", hint="Quote commas in values.")
    path, label = row["path"].strip(), row["label"].strip()
    if not path or not label:
        raise BadImages(f"{where}: empty path or label", hint="Give both, or remove the line.")
    full = folder / path
    if not full.resolve().is_relative_to(root):
        raise BadImages(f"{where}: {path} leads out of the folder", hint="Use paths below the index's folder.")
    rest = {k: v for k, v in row.items() if k not in ("path", "label", "group")}
    return full, label, (row.get("group") or "").strip(), rest
