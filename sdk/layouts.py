"""The ways in which people keep labelled images, and the listing that each of them comes to.

| layout | is |
|---|---|
| `index` | an `index.csv` with `path,label[,group,mask,...]`, in the folder or, named by itself, anywhere |
| `coco` | annotations in COCO's JSON, images beside them |
| `mvtec` | `train/good`, `test/<defect>`, `ground_truth/<defect>/<image>_mask.png` |
| `parts` | `train/<class>`, `val/<class>`, `test/<class>`: pooled |
| `folders` | one folder per class |
| `flat` | a folder of good parts only, the usual first day |

Rules this module keeps:

- It lists and opens no image. What it cannot list it refuses by name with a reason; only a listing that makes no
  sense as a whole, such as an index without labels, is an error. Images that lie there and are in no listing
  are counted in a note.
- A path in an index or in annotations that leads out of the set's folder is never opened. A link in a class folder
  to an image is followed, and so is a class folder that is a link: whoever made it meant it.
- What is detected is said, in words that a person can check.
"""

from __future__ import annotations

import csv
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path, PurePath
from typing import Final

import msgspec

from sdk.class_names import composed
from sdk.damaged import DAMAGED
from sdk.errors import BadImages
from sdk.shown import readable

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
FIRST_DAY_LABEL: Final = "good"
"""Label of a flat folder's images: on the first day there are only good parts."""
INDEX_NAME: Final = "index.csv"
AUDIT_PREFIX: Final = "audit_"
"""Columns that begin so are what an audit says of an index's labels, for whoever corrects them: passed over."""
CONFIRMED: Final = f"{AUDIT_PREFIX}confirmed"
"""But this one says that somebody looked at the image and stands by its label: anything in it means so."""
MAX_INDEX_BYTES: Final = 256 * 1024 * 1024
"""A million rows of index are 100 MB, a million annotations about 200 MB."""
_TRAINING: Final = frozenset({"train", "training"})
PARTS: Final = _TRAINING | {"val", "valid", "validation", "test", "testing"}
"""Folders of this name are no classes."""
_MASKS: Final = "ground_truth"
_JUNK: Final = frozenset({"thumbs.db", "desktop.ini"})
"""Left by file managers; a hidden file is passed over too."""
_APPLE_DOUBLE: Final = "._"
"""Begins the names of what macOS writes beside every file on a foreign disk."""
_NAMED: Final = 3
"""This many examples are named in a note."""


class Layout(str, Enum):
    """How a set is kept on disk. Values are those of `--format`."""

    INDEX = "index"
    COCO = "coco"
    MVTEC = "mvtec"
    PARTS = "parts"
    FOLDERS = "folders"
    FLAT = "flat"


@dataclass(frozen=True)
class Refused:
    """A file that will not be learned from, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Entry:
    """One image as it is listed, not yet opened.

    Attributes:
        path: The file.
        label: Class name, its letters composed (`sdk.class_names`).
        group: As the set names it; empty where it does not.
        columns: What else is known of it, by name.
        mask: A picture of where the defect is.
        also: Further classes that it shows.
        written: The class name as it is written there.
        confirmed: Somebody looked at it after an audit, and stands by the label.
    """

    path: Path
    label: str
    group: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    mask: Path | None = None
    also: tuple[str, ...] = ()
    written: str = ""
    confirmed: bool = False


@dataclass(frozen=True)
class Listing:
    """What a folder lists: `said` tells what was found, `notes` what somebody should know of it."""

    layout: Layout
    said: str
    entries: list[Entry]
    refused: list[Refused] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def listing(
    folder: Path, layout: Layout | None = None, *, unannotated: str | None = None, index: Path | None = None
) -> Listing:
    """Return the images that a folder lists.

    Args:
        folder: The set.
        layout: How it is kept; None finds out.
        unannotated: Label of COCO images without annotations; None refuses them.
        index: A file that lists them instead of what the folder itself has, such as corrected labels; it may lie
            anywhere, its paths are relative to the folder, its order says nothing. None: as the folder is kept.

    Raises:
        BadImages: no such folder, it is not kept as `layout` says, or there is an index and another layout.
    """
    if index is not None and layout not in (None, Layout.INDEX):
        raise BadImages(
            f"{index} lists the images, and --format {layout.value} would list them otherwise",
            hint="Give --index or --format, not both.",
        )
    if index is not None and not index.is_file():
        raise BadImages(
            f"--index {index}: there is no such file",
            hint=f"Name a CSV of path,label[,group,...] with paths relative to {folder}.",
        )
    try:
        if not folder.is_dir():
            hint = "Name a folder with one folder of images per class."
            if folder.is_file():
                hint = f"Name the folder that holds the images: {folder.parent}, if it lies beside them."
            raise BadImages(f"{folder} is not a folder", hint=hint)
        if index is not None:
            found = _from_index(folder, index)
            # Whoever corrected it may have sorted it, and near-duplicates and training draw by the order.
            found = replace(found, entries=sorted(found.entries, key=lambda entry: entry.path))
        else:
            if layout is None:
                layout = detect(folder)
                if layout is Layout.FOLDERS:
                    _refuse_several_sets(folder)
            found = _listed(folder, layout, unannotated)
        return replace(found, notes=[*found.notes, *_written_twice(found.entries), *_left_out(folder, found)])
    except OSError as error:
        raise BadImages(
            f"{error.filename or folder}: {error.strerror}", hint="Check the folder's permissions."
        ) from error


def _listed(folder: Path, layout: Layout, unannotated: str | None) -> Listing:
    if layout is Layout.INDEX:
        return _from_index(folder, folder / INDEX_NAME)
    if layout is Layout.COCO:
        return _from_coco(folder, unannotated)
    if layout is Layout.MVTEC:
        return _from_mvtec(folder)
    if layout is Layout.PARTS:
        return _from_parts(folder)
    return _from_flat(folder) if layout is Layout.FLAT else _from_folders(folder)


def detect(folder: Path) -> Layout:
    """Return how a folder is kept: an index wins, then COCO, then the names of folders."""
    if (folder / INDEX_NAME).is_file():
        return Layout.INDEX
    if _coco_files(folder):
        return Layout.COCO
    return _by_folders(folder) or (Layout.FOLDERS if _folders(folder) else Layout.FLAT)


def _by_folders(folder: Path) -> Layout | None:
    """Return what a folder is by the names of its folders, where these say that it has parts to train and test."""
    names = {p.name for p in _folders(folder)}
    if (folder / "train" / "good").is_dir() and {"test", _MASKS} & names:
        return Layout.MVTEC
    nested = {name for name in names & PARTS if _folders(folder / name)}
    return Layout.PARTS if nested and (names <= PARTS or nested & _TRAINING) else None


def _refuse_several_sets(folder: Path) -> None:
    """Refuse class folders that are sets themselves: a root of several products would tell products apart.

    Raises:
        BadImages: one of them is.
    """
    sets = [each for each in _folders(folder) if (each / INDEX_NAME).is_file() or _by_folders(each) is not None]
    if sets:
        are = "is a set of its own" if len(sets) == 1 else "are sets of their own"
        raise BadImages(
            f"{folder}: {_some(each.name for each in sets)} {are} (train and test, or an {INDEX_NAME}), no class",
            hint=f"Name one, such as {sets[0]}; --format folders takes each folder for a class all the same.",
        )


# --- Folders


def _folders(folder: Path) -> list[Path]:
    return (
        sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")) if folder.is_dir() else []
    )


def _files(folder: Path, *, deep: bool = True, hidden: bool = False) -> Iterator[Path]:
    """Yield the files of a folder that somebody may have meant as images, in the order of their paths.

    A link to a folder is yielded like a file: it is not followed, since it may lead round in a circle.

    Raises:
        OSError: a folder cannot be read.
    """
    found: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=_raise):
        home = Path(where)
        links = [name for name in folders if deep and (home / name).is_symlink()]
        found += [home / name for name in names + links]
        folders[:] = [name for name in folders if hidden or not name.startswith(".")] if deep else []
    for path in sorted(found):
        unseen = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if (hidden or not unseen) and path.name.lower() not in _JUNK and not path.name.startswith(_APPLE_DOUBLE):
            yield path


def _raise(error: OSError) -> None:
    raise error


def _left_out(folder: Path, found: Listing) -> list[str]:
    """Return notes on images that lie in the folder and are neither listed nor refused."""
    listed = {os.path.normpath(path) for one in found.entries for path in (one.path, one.mask) if path is not None}
    listed |= {os.path.normpath(refused.path) for refused in found.refused}
    masks = folder / _MASKS if found.layout is Layout.MVTEC else None
    rest = [
        path.relative_to(folder)
        for path in _files(folder, hidden=True)
        if os.path.normpath(path) not in listed
        and _is_image(path)
        and (masks is None or masks not in path.parents)
    ]
    unseen = [path for path in rest if any(part.startswith(".") for part in path.parts)]
    others = [path for path in rest if path not in unseen]
    return [
        *([f"{len(unseen)} images in hidden files or folders are left out, as {unseen[0]}."] if unseen else []),
        *([f"{len(others)} images are in no listing and are left out, as {others[0]}."] if others else []),
    ]


def _written_twice(entries: Iterable[Entry]) -> list[str]:
    """Return a note on classes that are written in several ways which nobody can tell apart."""
    ways: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        ways[entry.label].add(entry.written)
    return [
        f"The class {name!r} is written in {len(found)} ways that look the same, its letters composed or not: "
        "taken as one."
        for name, found in sorted(ways.items())
        if len(found) > 1
    ]


def names_picture(group: str) -> bool:
    """Return whether a group id is a picture's path: what stands for it where nobody named the picture's group.

    A digest stands for an id that is too long for a bundle, and may be either's.

    >>> names_picture("good/007.PNG"), names_picture("tile 7")
    (True, False)
    """
    return _is_image(PurePath(group)) or group.startswith("sha256:")


def confirmed_said(count: int) -> str:
    """Return that no label is listed which somebody stands by after an audit.

    >>> confirmed_said(1), confirmed_said(7)
    ('1 label that somebody stands by is not listed.', '7 labels that somebody stands by are not listed.')
    """
    labels, are = ("label", "is") if count == 1 else ("labels", "are")
    return f"{count} {labels} that somebody stands by {are} not listed."


def settled_groups(groups: Iterable[str]) -> frozenset[str]:
    """Return the group ids of a labelled set that somebody named: codes know no better.

    Where nobody named a picture's group its path stands for it. An export may have found by pixels that some such
    pictures show one part; it does not find one that was turned or moved far, so these are joined by codes too.

    >>> sorted(settled_groups(["good/007.png", "tile 7", "tile 8"]))
    ['tile 7', 'tile 8']
    """
    return frozenset(group for group in groups if not names_picture(group))


def _is_image(path: PurePath) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _not_an_image(path: Path) -> Refused:
    if path.is_dir():
        return Refused(path, "a link to a folder, which is not followed")
    return Refused(path, f"no image by its name ({path.suffix or 'without a suffix'})")


def _class_folder(folder: Path, entries: list[Entry], refused: list[Refused], columns: dict[str, str]) -> None:
    for path in _files(folder):
        if _is_image(path):
            entries.append(Entry(path, composed(folder.name), columns=columns, written=folder.name))
        else:
            refused.append(_not_an_image(path))


def _from_flat(folder: Path) -> Listing:
    entries, refused = [], []
    for path in _files(folder, deep=False):
        if _is_image(path):
            entries.append(Entry(path, FIRST_DAY_LABEL))
        else:
            refused.append(_not_an_image(path))
    return Listing(Layout.FLAT, f"a folder of images without classes: all are taken as {FIRST_DAY_LABEL}", entries,
                   refused)  # fmt: skip


def _from_folders(folder: Path) -> Listing:
    loose = [path for path in _files(folder, deep=False) if _is_image(path)]
    classes = _folders(folder)
    if not classes:
        raise BadImages(
            f"{folder} has no class folders", hint="Put images into one folder per class (good/, scratch/)."
        )
    if loose:
        raise BadImages(
            f"{folder} has images beside class folders",
            hint=f"Move {loose[0].name} and the others into a class folder.",
        )
    entries: list[Entry] = []
    refused = [_not_an_image(path) for path in _files(folder, deep=False)]
    for class_folder in classes:
        _class_folder(class_folder, entries, refused, {})
    used = sorted({entry.label for entry in entries})
    notes = []
    if empty := {p.name for p in classes} - {entry.written for entry in entries}:
        notes.append(f"Folders without images: {_some(p.name for p in classes if p.name in empty)}.")
    only = classes[0]
    within = _within(classes, entries)
    if len(classes) == 1 and entries and all(entry.path.parent != only for entry in entries):
        notes.append(
            f"All images are of one class, {only.name}, and lie in folders within it, "
            f"{_some(sorted(within[only.name]))}: if these are the classes, name {only}."
        )
    else:
        notes += _pooled(within)
        times = Counter(name for folders in within.values() for name in folders)
        if common := sorted(name for name in times if times[name] > 1):
            homes = sorted(label for label in within if common[0] in within[label])
            notes.append(
                f"{_some(common)} {'lies' if len(common) == 1 else 'lie'} in several of these, as in "
                f"{_some(homes)}: if these are the classes, name one set, such as {folder / homes[0]}."
            )
    return Listing(Layout.FOLDERS, f"class folders: {_some(used, 8)}", entries, refused, notes)


def _within(homes: Iterable[Path], entries: Iterable[Entry]) -> dict[str, Counter[str]]:
    """Return how many images of each class lie in which folders within its own, of classes that have such."""
    found: dict[str, Counter[str]] = {}
    owner = {home: home.name for home in homes}
    for entry in entries:
        home = next(each for each in entry.path.parents if each in owner)
        folders = entry.path.relative_to(home).parts[:-1]
        if folders:
            found.setdefault(owner[home], Counter())[folders[0]] += 1
    return found


def _pooled(within: dict[str, Counter[str]]) -> list[str]:
    """Return a note on folders within class folders, which are no classes."""
    told = [
        f"{sum(within[label].values())} images of {label} in {_some(sorted(within[label]))}" for label in within
    ]
    return [f"Folders within a class folder are no classes of their own: {_some(told)}."] if told else []


def _from_parts(folder: Path) -> Listing:
    entries: list[Entry] = []
    refused: list[Refused] = []
    parts = [part for part in _folders(folder) if part.name in PARTS]
    if not parts:
        raise BadImages(
            f"{folder} has no folders train, val or test", hint="Leave --format out, or choose another."
        )
    for part in parts:
        refused += [Refused(path, "in no class folder") for path in _files(part, deep=False)]
        for class_folder in _folders(part):
            _class_folder(class_folder, entries, refused, {"folder": part.name})
    within = _within([home for part in parts for home in _folders(part)], entries)
    names = " and ".join(part.name for part in parts)
    return Listing(
        Layout.PARTS,
        f"class folders within {names}: {_some(sorted({e.label for e in entries}), 8)}",
        entries,
        refused,
        [*_parts_note(names, len(parts)), *_pooled(within)],
    )


def _parts_note(names: str, parts: int) -> list[str]:
    return [f"{names} are pooled: which of them an image lies in decides nothing."] if parts > 1 else []


def _from_mvtec(folder: Path) -> Listing:
    if not (folder / "train" / "good").is_dir():
        raise BadImages(f"{folder} has no folder train/good", hint="Leave --format out, or choose another.")
    found = _from_parts(folder)
    entries, masked, without = [], 0, 0
    for entry in found.entries:
        mask = None
        if entry.columns["folder"] == "test" and entry.label != "good":
            kept = folder / _MASKS / entry.written
            names = (f"{entry.path.stem}_mask.png", f"{entry.path.stem}.png")
            mask = next((kept / name for name in names if (kept / name).is_file()), None)
            masked, without = masked + (mask is not None), without + (mask is None)
        entries.append(replace(entry, mask=mask))
    notes = list(found.notes)
    if without:
        notes.append(f"{without} defect images have no mask in {_MASKS}.")
    defects = sorted({e.label for e in entries} - {"good"})
    said = f"MVTec-style folders: train/good, test with {_some(defects, 8)}; {masked} masks"
    return Listing(Layout.MVTEC, said, entries, found.refused, notes)


def _some(names: Iterable[str], most: int = _NAMED) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


# --- index.csv


def _from_index(folder: Path, index: Path) -> Listing:
    root = folder.resolve()
    entries: list[Entry] = []
    refused: list[Refused] = []
    try:
        found = index.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise BadImages(f"{index}: not a regular file", hint="Save it as UTF-8 CSV with commas.")
        if found.st_size > MAX_INDEX_BYTES:
            raise BadImages(f"{index} is larger than {MAX_INDEX_BYTES // 2**20} MiB", hint="Divide the set.")
        with index.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            mark = _divided_by(file.readline())
            file.seek(0)
            reader = csv.DictReader(file, strict=True, delimiter=mark)
            names = _columns(index, reader.fieldnames or [])
            for row in reader:
                if None in row or None in row.values():
                    raise BadImages(
                        f"{index}, line {reader.line_num}: another number of fields than the first line",
                        hint="Quote commas in values.",
                    )
                _check_utf8(folder, index, reader.line_num, row)
                one = _index_row(root, folder, index, reader.line_num, row)
                if isinstance(one, Entry):
                    entries.append(one)
                else:
                    refused.append(one)
    except csv.Error as error:
        words = " ".join(str(error).split())[:160]
        raise BadImages(f"{index}: {words}", hint="Save it as UTF-8 CSV with commas.") from error
    extra = [name for name in names if _is_slice(name)]
    said = f"{index.name}, {len(entries) + len(refused)} rows" + (
        f", with {', '.join(['group'] * ('group' in names) + extra)}" if extra or "group" in names else ""
    )
    bare = sum(not entry.group for entry in entries)
    notes = []
    if 0 < bare < len(entries):
        notes.append(f"{bare} rows have no group: each of their images counts as a part of its own.")
    return Listing(Layout.INDEX, said, entries, refused, notes)


def _divided_by(first: str) -> str:
    """Return what divides an index's fields, by its first line.

    Spreadsheet programs write semicolons where a comma is the decimal point.

    >>> _divided_by("path,label"), _divided_by("path;label;group"), _divided_by("file|label")
    (',', ';', ',')
    """
    for mark in (",", ";", "\t"):
        if {"path", "label"} <= set(next(csv.reader([first], delimiter=mark), [])):
            return mark
    return ","


def _is_slice(column: str) -> bool:
    """Return whether a column says more of the images than what they are: such as camera, shift, lot."""
    return column not in ("path", "label", "group", "mask") and not column.startswith(AUDIT_PREFIX)


def _columns(index: Path, names: Sequence[str]) -> Sequence[str]:
    if any(readable(name) != name for name in names):
        raise _no_utf8(index, 1)
    missing = {"path", "label"} - set(names)
    if missing:
        barred = any("|" in name for name in names)
        raise BadImages(
            f"{index}: no column {' or '.join(sorted(missing))}",
            hint="Fields are divided by '|'; save it with commas."
            if barred
            else "The first line must be path,label[,group,...].",
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise BadImages(f"{index}: the column {twice[0]!r} is there twice", hint="Remove one of them.")
    return names


def _check_utf8(folder: Path, index: Path, line: int, row: dict[str, str]) -> None:
    """Check that an index's row is UTF-8; only a file may be called otherwise, and so its group.

    Raises:
        BadImages: it is not.
    """
    odd = {name for name, value in row.items() if readable(value) != value}
    if odd and not (odd <= {"path", "group", "mask"} and _is_file(folder / row["path"].strip())):
        raise _no_utf8(index, line)


def _no_utf8(index: Path, line: int) -> BadImages:
    return BadImages(f"{index}, line {line}: is no UTF-8", hint="Save it as UTF-8 CSV with commas.")


def _index_row(root: Path, folder: Path, index: Path, line: int, row: dict[str, str]) -> Entry | Refused:
    path, label, mask = row["path"].strip(), row["label"].strip(), (row.get("mask") or "").strip()
    if not path or not label:
        return Refused(index, f"line {line}: empty path or label")
    full = _inside(root, folder, path)
    if full is None:
        return Refused(index, f"line {line}: {path[:80]!r} leads out of the folder")
    if "\\" in path and not _is_file(full):
        return Refused(index, f"line {line}: no file {path[:80]!r}; folders are divided by /")
    kept = _inside(root, folder, mask) if mask else None
    if mask and kept is None:
        return Refused(full, f"line {line}: its mask {mask[:80]!r} leads out of the folder")
    rest = {k: v.strip() for k, v in row.items() if _is_slice(k)}
    confirmed = bool((row.get(CONFIRMED) or "").strip())
    group = (row.get("group") or "").strip()
    return Entry(full, composed(label), group, rest, kept, written=label, confirmed=confirmed)


def _inside(root: Path, folder: Path, name: str) -> Path | None:
    """Return a path below the folder, or None where it leads out of it or is no path at all."""
    try:
        full = folder / name
        real = full.resolve()
        if not real.is_relative_to(root):
            return None
        return folder / real.relative_to(root) if Path(name).is_absolute() else full
    except (OSError, ValueError, RuntimeError):  # too long; a zero byte; a circle of links
        return None


# --- COCO (cocodataset.org/#format-data, "Object Detection")


class _Picture(msgspec.Struct):
    id: int | str
    file_name: str


class _Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int
    area: float | None = None
    bbox: list[float] | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")

    def size(self) -> float:
        """Return its area in pixels, of its polygons in the last resort; negative where it makes no sense."""
        if self.area:
            return self.area
        if self.bbox:
            return self.bbox[2] * self.bbox[3] if len(self.bbox) == 4 and min(self.bbox[2:]) >= 0 else -1
        try:
            polygons = msgspec.json.decode(self.segmentation, type=list[list[float]])
        except msgspec.ValidationError:  # a run length, which always comes with an area
            return -1
        return sum(map(_polygon_area, polygons)) if polygons else -1


def _polygon_area(polygon: Sequence[float]) -> float:
    """Return the area within x, y, x, y, ... by the shoelace formula.

    >>> _polygon_area([0, 0, 4, 0, 4, 3])
    6.0
    """
    x, y = polygon[::2], polygon[1::2]
    turns = zip(x, y, [*x[1:], *x[:1]], [*y[1:], *y[:1]], strict=False)
    return abs(sum(a * d - c * b for a, b, c, d in turns)) / 2


class _Category(msgspec.Struct):
    id: int
    name: str


class _Coco(msgspec.Struct):
    images: list[_Picture]
    annotations: list[_Annotation]
    categories: list[_Category]


class _Head(msgspec.Struct):
    """Enough to tell a COCO file from another JSON."""

    images: list[msgspec.Raw]
    categories: list[msgspec.Raw]
    annotations: list[msgspec.Raw]


def _coco_files(folder: Path) -> list[Path]:
    """Return the files with COCO annotations of boxes or masks.

    They are looked for in the folder, in `annotations/`, and one level down under Roboflow's name. A file that
    says by its name that it is one counts though it may be damaged: an error is better than another guess.
    """
    near = [*folder.glob("*.json"), *folder.glob("annotations/*.json"), *folder.glob("*/_annotations.coco.json")]
    files = sorted(path for path in near if path.is_file() and not path.name.startswith("."))
    named = [path for path in files if any(word in path.name.lower() for word in ("instances", "coco"))]
    named = named or [path for path in files if "annotation" in path.name.lower()]
    return named or [path for path in files if _looks_like_coco(path)]


def _looks_like_coco(path: Path) -> bool:
    if path.stat().st_size > MAX_INDEX_BYTES:
        return False
    try:
        msgspec.json.decode(path.read_bytes(), type=_Head)
    except DAMAGED:
        return False
    return True


def _read_coco(path: Path) -> _Coco:
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise BadImages(f"{path} is larger than {MAX_INDEX_BYTES // 2**20} MiB", hint="Divide the set.")
    try:
        coco = msgspec.json.decode(path.read_bytes(), type=_Coco)
    except DAMAGED as error:
        words = " ".join(str(error).split())[:160]
        raise BadImages(
            f"{path} is no COCO file of boxes or masks: {words}",
            hint="Export the annotations again as COCO, or force another --format.",
        ) from error
    for what, ids in (("category", [c.id for c in coco.categories]), ("image", [p.id for p in coco.images])):
        twice = [one for one, times in Counter(ids).items() if times > 1]
        if twice:
            raise BadImages(f"{path}: the {what} id {twice[0]} is there twice", hint="Give every one its own id.")
    return coco


def _from_coco(folder: Path, unannotated: str | None) -> Listing:
    files = _coco_files(folder)
    if not files:
        raise BadImages(
            f"{folder} has no COCO annotations",
            hint="Put the JSON into the folder, or into annotations/ in it, with the images beside.",
        )
    entries: list[Entry] = []
    refused: list[Refused] = []
    notes: list[str] = []
    several = strays = bare = 0
    for file in files:
        coco = _read_coco(file)
        written = {category.id: category.name.strip() for category in coco.categories}
        names = {category: composed(name) for category, name in written.items()}
        notes += _written_twice(Entry(file, names[each], written=written[each]) for each in names)
        of_image: dict[int | str, list[_Annotation]] = defaultdict(list)
        for annotation in coco.annotations:
            of_image[annotation.image_id].append(annotation)
        for picture in coco.images:
            path = _coco_image(folder, file, picture.file_name)
            if path is None:
                name = picture.file_name
                why = "is not in the folder" + ("; folders are divided by /" if "\\" in name else "")
                refused.append(Refused(file, f"image {name[:80]!r} {why}"))
                continue
            label = _coco_label(of_image.pop(picture.id, []), names)
            if isinstance(label, str):
                refused.append(Refused(path, label))
            elif label:
                several += len(label) > 1
                entries.append(Entry(path, label[0], also=tuple(label[1:]), written=label[0]))
            elif unannotated is not None:
                bare += 1
                entries.append(Entry(path, composed(unannotated), written=unannotated))
            else:
                refused.append(Refused(path, "no annotation: --unannotated good takes such images as good parts"))
        strays += sum(map(len, of_image.values()))
    if several:
        notes.append(f"{several} images show several categories; each counts as the one of the largest area.")
    if bare:
        notes.append(f"{bare} images without annotations are taken as {unannotated}.")
    if strays:
        notes.append(f"{strays} annotations belong to no listed image and were passed over.")
    used = sorted({entry.label for entry in entries})
    said = f"COCO annotations ({_some(f.relative_to(folder).as_posix() for f in files)}): {_some(used, 8)}"
    return Listing(Layout.COCO, said, entries, refused, notes)


def _coco_image(folder: Path, file: Path, name: str) -> Path | None:
    root = folder.resolve()
    subset = file.stem.removeprefix("instances_")
    homes = (file.parent, folder, folder / "images", folder / "images" / subset, folder / subset)
    for home in homes:
        full = _inside(root, home, name)
        if full is not None and _is_file(full):
            return full
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system has
        return False


def _coco_label(annotations: Sequence[_Annotation], names: dict[int, str]) -> list[str] | str:
    """Return category names, the largest area first; none without annotations; or why there is no telling."""
    areas: dict[str, float] = defaultdict(float)
    for annotation in annotations:
        name = names.get(annotation.category_id, "")
        if not name:
            return f"an annotation is of category {annotation.category_id}, which has no name"
        size = annotation.size()
        if not 0 <= size < float("inf"):
            return "an annotation has no area"
        areas[name] += size
    ranked = sorted(areas, key=lambda name: (-areas[name], name))
    if len(ranked) > 1 and areas[ranked[0]] == areas[ranked[1]]:
        return f"{ranked[0]} and {ranked[1]} have the same area on it: there is no telling which it is"
    return ranked
