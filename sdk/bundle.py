"""The bundle format: a directory of flat files that says all a device needs. docs/bundle.md is the prose.

`write_bundle` makes one, `Bundle.open` trusts one only after its names, sizes, digests and contents hold, in
that order and with size limits before any parsing. No archives, no pickle, no links, nothing outside the
directory. Signatures come with releases and are not checked here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from sdk.codes import MAX_FEATURE_SIZE, Codes, Features, code_digest, feature_space_id
from sdk.damaged import DAMAGED
from sdk.durable import sync_path
from sdk.errors import BadFormat, BadSignature, HeadError, Incompatible
from sdk.exchange import draft_of, put_back, take_place
from sdk.moments import Moments, same
from sdk.preprocess import MAX_INPUT_SIDE_PX, Preprocess
from sdk.splits import Part
from sdk.structs import prepare

FORMAT_VERSION: Final = 3
"""The newest that is read and written; the oldest that can say what a bundle says is its own."""
MAX_MAPS: Final = 12
"""Levels that a backbone's features can be read from, at most."""
MAX_MAP_VALUES: Final = 4 * 1024**2
"""Of one map, c h w: 16 MiB as float32. Four levels of mobilenetv2 at 224 px have a tenth of it together."""
MAX_PICTURE_SIDE_PX: Final = 65_535
"""The most that a JPEG can have."""
MANIFEST_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 1024 * 1024
MAX_FILES: Final = 64
MAX_BUNDLE_BYTES: Final = 2 * 1024**3
MAX_CLASSES: Final = 1000
MAX_GROUP_BYTES: Final = 200

_NAME: Final = r"^[a-z0-9._-]{1,64}\Z"
_PARTS: Final = tuple(Part)

Sha256Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
ClassIdHex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_NO_CONTROL: Final = r"^[^\x00-\x1f\x7f-\x9f]*\Z"
"""Names are shown on terminals, which obey control characters."""
FileName = Annotated[str, msgspec.Meta(pattern=_NAME)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
Positive = Annotated[float, msgspec.Meta(gt=0.0)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One object of the manifest. Unknown members are refused: a newer format has a newer number."""


class FileEntry(_Part, frozen=True, kw_only=True):
    """One file of the bundle other than the manifest."""

    name: FileName
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_BUNDLE_BYTES)]
    sha256: Sha256Hex


class ClassEntry(_Part, frozen=True, kw_only=True):
    """A class of the release's own samples."""

    id: ClassIdHex
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=_NO_CONTROL)]


class HeadEntry(_Part, frozen=True, kw_only=True):
    """What a device needs besides the samples to have the exporter's head: it solves for itself.

    Attributes:
        rho: Shrinkage of the within-class scatter.
        centre_damping: Labels a class needs to count half in the centre.
        lift_floor: Smallest share of |v|^2 the few-label correction may leave.
        distance_weight: Of the distance in novelty, beside the direction.
        temperature: Softmax temperature T, fitted on left-out scores.
        novelty_threshold: Novelty above it is unknown, at `false_alarm_rate` on left-out known samples.
        false_alarm_rate: The stated rate.
        live_set_digest: Digest of the base samples' live set.
    """

    rho: Positive
    centre_damping: Positive
    lift_floor: Share
    distance_weight: Share
    temperature: Positive
    novelty_threshold: float
    false_alarm_rate: Share
    live_set_digest: Sha256Hex


Pool = Literal["avg", "max", "near"]
"""How columns of the features are made from a map: its averages, its maxima, or in some other way."""


class ReadEntry(_Part, frozen=True, kw_only=True):
    """Columns `start` to `start` + c of the features, one for each channel of a map."""

    start: Annotated[int, msgspec.Meta(ge=0, lt=MAX_FEATURE_SIZE)]
    pool: Pool


class MapEntry(_Part, frozen=True, kw_only=True):
    """A spatial map (n, c, h, w) that the backbone file gives beside features (docs/bundle.md, section 3.6)."""

    output: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.]{1,64}\Z")]
    channels: Annotated[int, msgspec.Meta(ge=1, le=MAX_FEATURE_SIZE)]
    height: Annotated[int, msgspec.Meta(ge=1, le=MAX_INPUT_SIDE_PX)]
    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_INPUT_SIDE_PX)]
    reads: Annotated[list[ReadEntry], msgspec.Meta(min_length=1, max_length=4)]


class PrecisionEntry(_Part, frozen=True, kw_only=True):
    """One form of the backbone, and the samples' codes made with exactly that form.

    `moments` is there, from format 2 on, where the samples file has not the codes of all samples.
    """

    precision: Annotated[str, msgspec.Meta(pattern=r"^(fp32|fp16|int8|int8-tensorrt)\Z")]
    backbone: FileName
    samples: FileName
    moments: FileName | msgspec.UnsetType = msgspec.UNSET
    feature_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_FEATURE_SIZE)]
    code_scale: Positive
    space: Sha256Hex
    head: HeadEntry
    maps: Annotated[list[MapEntry], msgspec.Meta(min_length=1, max_length=MAX_MAPS)] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    """Absent where the backbone gives features only, as in every bundle of version 1."""

    @property
    def layout(self) -> tuple[MapEntry, ...]:
        """The maps, none where there are none."""
        return () if isinstance(self.maps, msgspec.UnsetType) else tuple(self.maps)


class SplitEntry(_Part, frozen=True, kw_only=True):
    """Which split of which images this was made from; `splits.safetensors` has it per sample."""

    seed: Count
    file: FileName
    held_back: list[str]
    """Classes that were kept out of everything the bundle learned from."""


class Lineage(_Part, frozen=True, kw_only=True):
    """Where the bundle comes from."""

    backbone: Text
    weights_source: Text
    weights_sha256: Sha256Hex | None
    weights_licence: Text
    strategy: Text
    data_sha256: Sha256Hex
    """SHA-256 over the sorted sample ids and labels of the whole image set."""
    images: Count
    created_utc: Text
    tool_versions: dict[str, str]


class PicturesEntry(_Part, frozen=True, kw_only=True):
    """How large the pictures were that the bundle learned from: the medians of their sides, in pixels.

    All of a picture was squeezed into the input. A device that cuts large frames into tiles of this size shows the
    backbone everything as large as in training.
    """

    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_PICTURE_SIDE_PX)]
    height: Annotated[int, msgspec.Meta(ge=1, le=MAX_PICTURE_SIDE_PX)]


class Manifest(_Part, frozen=True, kw_only=True):
    """`manifest.json`, in canonical form: sorted members, no white space, UTF-8."""

    format: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=_NO_CONTROL)]
    classes: Annotated[list[ClassEntry], msgspec.Meta(min_length=1, max_length=MAX_CLASSES)]
    preprocess: Preprocess
    pictures: PicturesEntry | msgspec.UnsetType = msgspec.UNSET
    """Absent before format 3."""
    precisions: Annotated[list[PrecisionEntry], msgspec.Meta(min_length=1, max_length=4)]
    """The first is the one a channel runs unless its devices' figures say otherwise."""
    golden: FileName
    split: SplitEntry
    lineage: Lineage
    parents: list[Sha256Hex]
    files: Annotated[list[FileEntry], msgspec.Meta(min_length=1, max_length=MAX_FILES)]


@dataclass(frozen=True)
class BaseSamples:
    """The release's own labelled codes in one precision; row i of each belongs together.

    Of a large release the first e samples come with their codes, the exemplars. The others are *summed*: there are
    the SHA-256 of each code and the exact moments of them together.

    Attributes:
        samples: n sample ids of 32 bytes.
        class_ids: n class ids of 16 bytes.
        groups: n group ids.
        codes: (e, d) int8.
        fitted: (n,) bool: the backbone's own training saw this sample, so scores on it flatter.
        summed: SHA-256 of the n - e other codes.
        rest: Moments of the summed samples; None where there are none, or they were not read.
    """

    samples: list[bytes]
    class_ids: list[bytes]
    groups: list[str]
    codes: Codes
    fitted: npt.NDArray[np.bool_]
    summed: list[bytes] = field(default_factory=list)
    rest: Moments | None = None

    def moments(self) -> Moments:
        """Return the exact moments of all samples.

        Raises:
            ValueError: those of the summed samples were not read.
        """
        if self.summed and self.rest is None:
            raise ValueError("the moments of the summed samples were not read: use Bundle.base")
        moments = Moments(self.codes.shape[1]) if self.rest is None else self.rest.copy()
        moments.add(self.codes, self.class_ids[: len(self.codes)])
        return moments

    def with_codes_of(self, rows: Sequence[int]) -> BaseSamples:
        """Return these samples, all of which have codes, with codes of some only; the others become sums.

        Args:
            rows: Which keep their codes: all samples of a group, or none.
        """
        kept = set(rows)
        others = [i for i in range(len(self.samples)) if i not in kept]
        order = [*rows, *others]
        rest = self.moments()
        rest.subtract(self.codes[list(rows)], [self.class_ids[i] for i in rows])
        return BaseSamples(
            samples=[self.samples[i] for i in order],
            class_ids=[self.class_ids[i] for i in order],
            groups=[self.groups[i] for i in order],
            codes=self.codes[list(rows)],
            fitted=self.fitted[order],
            summed=[code_digest(self.codes[i]) for i in others],
            rest=rest,
        )

    def to_bytes(self) -> bytes:
        """Return the samples file."""
        n = len(self.samples)
        encoded = [group.encode() for group in self.groups]
        width = max((len(g) for g in encoded), default=1)
        padded = b"".join(g.ljust(width, b"\0") for g in encoded)
        tensors: dict[str, npt.NDArray[np.generic]] = {
            "sample_ids": _rows(b"".join(self.samples), n, 32),
            "class_ids": _rows(b"".join(self.class_ids), n, 16),
            "groups": _rows(padded, n, width),
            "codes": np.ascontiguousarray(self.codes),
            "fitted": self.fitted.astype(np.uint8),
        }
        if self.summed:
            tensors["code_sha256"] = _rows(b"".join(self.summed), len(self.summed), 32)
        return save_tensors(tensors)

    def moments_bytes(self) -> bytes:
        """Return the moments file of the summed samples."""
        assert self.rest is not None
        class_ids, n, s, squares = self.rest.per_class(same)
        return save_tensors(
            {
                "class_ids": _rows(b"".join(class_ids), len(class_ids), 16),
                "counts": n,
                "sums": s,
                "squares": squares,
                "gram": np.concatenate([row[i:] for i, row in enumerate(self.rest.gram)]),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, what: str, feature_size: int) -> BaseSamples:
        """Return the samples that a samples file holds, without the moments of those that have no code.

        Raises:
            BadFormat: it is not docs/bundle.md section 4.
        """
        t = _load(data, what)
        n = len(t["sample_ids"]) if "sample_ids" in t and t["sample_ids"].ndim == 2 else -1
        e = len(t["codes"]) if "codes" in t and t["codes"].ndim == 2 else -1
        _expect(t, what, "codes", np.int8, (min(e, n), feature_size))
        _expect(t, what, "sample_ids", np.uint8, (n, 32))
        _expect(t, what, "class_ids", np.uint8, (n, 16))
        _expect(t, what, "fitted", np.uint8, (n,))
        if e < n:
            _expect(t, what, "code_sha256", np.uint8, (n - e, 32))
        groups = t.get("groups")
        width = groups.shape[1] if groups is not None and groups.ndim == 2 else -1
        _expect(t, what, "groups", np.uint8, (n, min(width, MAX_GROUP_BYTES)))
        try:
            names = [bytes(row).rstrip(b"\0").decode() for row in t["groups"]]
        except UnicodeDecodeError as error:
            raise BadFormat(f"{what}: a group id is not UTF-8", hint="Export the bundle again.") from error
        samples = [bytes(row) for row in t["sample_ids"]]
        if len(set(samples)) != n:
            raise BadFormat(f"{what}: a sample stands in it twice", hint="Export the bundle again.")
        divided = set(names[:e]) & set(names[e:])
        if divided:
            raise BadFormat(
                f"{what}: group {min(divided)[:80]!r} has codes of some of its samples only",
                hint="Export the bundle again.",
            )
        shared: dict[bytes, bytes] = {}  # few classes, many samples: one object each
        return cls(
            samples=samples,
            class_ids=[shared.setdefault(row, row) for row in map(bytes, t["class_ids"])],
            groups=names,
            codes=np.asarray(t["codes"], np.int8),
            fitted=t["fitted"].astype(bool),
            summed=[bytes(row) for row in t["code_sha256"]] if e < n else [],
        )

    def with_moments(self, data: bytes, what: str) -> BaseSamples:
        """Return these samples with the moments of the summed ones, which a moments file holds.

        Raises:
            BadFormat: it is not docs/bundle.md section 4, or of other samples.
        """
        t, d = _load(data, what), self.codes.shape[1]
        k = len(t["counts"]) if "counts" in t and t["counts"].ndim == 1 else -1
        _expect(t, what, "class_ids", np.uint8, (k, 16))
        _expect(t, what, "counts", np.int64, (k,))
        _expect(t, what, "sums", np.int64, (k, d))
        _expect(t, what, "squares", np.int64, (k,))
        _expect(t, what, "gram", np.int64, (d * (d + 1) // 2,))
        gram = np.empty((d, d), np.int64)
        end = 0
        for i in range(d):
            row = t["gram"][end : (end := end + d - i)]
            gram[i, i:] = gram[i:, i] = row
        try:
            rest = Moments.of_sums(
                [bytes(row) for row in t["class_ids"]],
                np.asarray(t["counts"], np.int64),
                np.asarray(t["sums"], np.int64),
                np.asarray(t["squares"], np.int64),
                gram,
            )
        except HeadError as error:
            raise BadFormat(f"{what}: {error}", hint=error.hint) from error
        if rest.counts() != Counter(self.class_ids[len(self.codes) :]):
            raise BadFormat(f"{what}: not of the samples that have no code", hint="Export the bundle again.")
        return replace(self, rest=rest)


@dataclass(frozen=True)
class Golden:
    """Inputs that travel with the bundle and what must come out, for one precision.

    Attributes:
        frames: (m, h, w, 3) uint8 BGR, at the backbone's input size.
        features: (m, d) float32.
        codes: (m, d) int8.
        scores: (m, k) float32: the base head's scores, columns in manifest order of classes.
    """

    frames: npt.NDArray[np.uint8]
    features: Features
    codes: Codes
    scores: npt.NDArray[np.float32]


def golden_bytes(frames: npt.NDArray[np.uint8], by_precision: Mapping[str, Golden]) -> bytes:
    """Return the golden file: the frames once, and features, codes and scores for each precision."""
    tensors: dict[str, npt.NDArray[np.generic]] = {"frames": np.ascontiguousarray(frames)}
    for precision, golden in by_precision.items():
        tensors[f"features.{precision}"] = np.ascontiguousarray(golden.features)
        tensors[f"codes.{precision}"] = np.ascontiguousarray(golden.codes)
        tensors[f"scores.{precision}"] = np.ascontiguousarray(golden.scores)
    return save_tensors(tensors)


def split_bytes(sample_ids: Sequence[bytes], parts: Sequence[Part], groups: Sequence[str] | None = None) -> bytes:
    """Return the split file: every image of the set, by sample id, with its part.

    Args:
        sample_ids: Of the whole set.
        parts: Of each.
        groups: Of each, those that were divided among the parts; their names are not written. None: not known.
    """
    n = len(sample_ids)
    tensors = {
        "sample_ids": _rows(b"".join(sample_ids), n, 32),
        "parts": np.array([_PARTS.index(part) for part in parts], np.uint8),
    }
    if groups is None:
        return save_tensors(tensors)
    number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return save_tensors(tensors | {"groups": np.array([number[group] for group in groups], np.uint32)})


def _rows(data: bytes, n: int, width: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(n, width)


def _load(data: bytes, what: str) -> dict[str, npt.NDArray[np.generic]]:
    try:
        return dict(load_tensors(data))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFormat(f"{what}: {str(error)[:200]}", hint="Copy or export the bundle again.") from error


def _expect(
    tensors: Mapping[str, npt.NDArray[np.generic]],
    what: str,
    name: str,
    kind: type[np.generic],
    shape: tuple[int, ...],
) -> None:
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != kind or tensor.shape != shape:
        found = "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
        raise BadFormat(
            f"{what}: {name} should be {np.dtype(kind)} {shape}, is {found}", hint="Export the bundle again."
        )


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest's canonical bytes."""
    return msgspec.json.encode(manifest, order="sorted")


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest that the bytes say.

    Only the canonical form is accepted: duplicate members, white space, byte-order marks and other spellings
    of a number all end here.

    Raises:
        BadFormat: they are no manifest.
        Incompatible: a newer format.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BadFormat(f"{MANIFEST_NAME} has {len(data)} bytes", hint=f"At most {MAX_MANIFEST_BYTES} fit.")
    again = "Copy or export the bundle again."
    try:
        version = msgspec.json.decode(data, type=_FormatOnly).format
        if not 1 <= version <= FORMAT_VERSION:
            raise Incompatible(
                f"the bundle's format is {version}, this Headway reads 1 to {FORMAT_VERSION}",
                hint="Update Headway on this machine, or export the bundle with this version.",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except DAMAGED as error:
        raise BadFormat(f"{MANIFEST_NAME}: {str(error)[:200]}", hint=again) from error
    if encode_manifest(manifest) != data:
        raise BadFormat(f"{MANIFEST_NAME} is not in canonical form", hint=again)
    _check_manifest(manifest)
    return manifest


def format_of(manifest: Manifest) -> int:
    """Return the one format version that this is written in: the oldest that can say it."""
    if manifest.pictures is not msgspec.UNSET:
        return 3
    plain = all(entry.moments is msgspec.UNSET and entry.maps is msgspec.UNSET for entry in manifest.precisions)
    return 1 if plain else 2


class _FormatOnly(msgspec.Struct):
    format: int


prepare(Manifest, _FormatOnly)


def _check_manifest(manifest: Manifest) -> None:
    again = "Export the bundle again."
    names = [entry.name for entry in manifest.files]
    if len(set(names)) != len(names) or MANIFEST_NAME in names or {".", ".."} & set(names):
        raise BadFormat("the manifest lists a file twice, itself, or a folder", hint=again)
    if sum(entry.size_bytes for entry in manifest.files) > MAX_BUNDLE_BYTES:
        raise BadFormat(f"the files are over {MAX_BUNDLE_BYTES} bytes together", hint=again)
    needed = {manifest.golden, manifest.split.file}
    for entry in manifest.precisions:
        needed |= {entry.backbone, entry.samples}
        if entry.moments is not msgspec.UNSET:
            needed.add(entry.moments)
    if not needed <= set(names):
        raise BadFormat(f"the manifest does not list {min(needed - set(names))}", hint=again)
    for values in (
        [entry.precision for entry in manifest.precisions],
        [entry.id for entry in manifest.classes],
        [entry.name for entry in manifest.classes],
    ):
        if len(set(values)) != len(values):
            raise BadFormat(f"the manifest names {values} with one twice", hint=again)
    if manifest.format != format_of(manifest):
        raise BadFormat(f"the manifest is not what format {manifest.format} says", hint=again)
    for entry in manifest.precisions:
        _check_maps(entry)
    digest_of = {entry.name: entry.sha256 for entry in manifest.files}
    for entry in manifest.precisions:
        space = feature_space_id(digest_of[entry.backbone], manifest.preprocess, entry.code_scale)
        if space != entry.space:
            raise BadFormat(f"the feature space id of {entry.precision} is not that of its backbone", hint=again)


def _check_maps(entry: PrecisionEntry) -> None:
    again = "Export the bundle again."
    if len({each.output for each in entry.layout}) != len(entry.layout):
        raise BadFormat(f"{entry.precision} names an output twice", hint=again)
    read = np.zeros(entry.feature_size, bool)
    for each in entry.layout:
        if each.channels * each.height * each.width > MAX_MAP_VALUES:
            raise BadFormat(f"{entry.precision}: {each.output} has over {MAX_MAP_VALUES} values", hint=again)
        for block in each.reads:
            columns = slice(block.start, block.start + each.channels)
            if columns.stop > entry.feature_size or read[columns].any():
                raise BadFormat(
                    f"{entry.precision}: {each.output} is pooled into columns from {columns.start} on, "
                    "which are taken or not there",
                    hint=again,
                )
            read[columns] = True


class Bundle:
    """An opened bundle: every file was there, whole, and nothing else was.

    Use `Bundle.open`.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Return the bundle in a directory after checking names, sizes and digests of all its files.

        Where a process was killed while it replaced that bundle, what was there before is put back first.

        Cost: one read of every file.

        Raises:
            BadFormat: it is not a bundle, a file is missing, too many, a link, or of another size.
            BadSignature: a file's digest is not the manifest's.
            Incompatible: a newer format.
        """
        path = Path(path)
        put_back(path)
        file = path / MANIFEST_NAME
        if not path.is_dir() or not file.is_file() or file.is_symlink():
            raise BadFormat(
                f"{path} is not a bundle: no {MANIFEST_NAME}",
                hint="Name the directory that `headway export` wrote.",
            )
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BadFormat(f"{file} is too large", hint=f"At most {MAX_MANIFEST_BYTES} bytes.")
        manifest = decode_manifest(file.read_bytes())
        found = {entry.name for entry in os.scandir(path)}
        listed = {entry.name for entry in manifest.files} | {MANIFEST_NAME}
        if found != listed:
            odd = min(found ^ listed)
            state = "is missing" if odd in listed else "is not in the manifest"
            raise BadFormat(f"{path}: {odd!r} {state}", hint="Copy the bundle again, all of it and nothing else.")
        for entry in manifest.files:
            _check_file(path / entry.name, entry)
        return cls(path, manifest)

    def file_names(self) -> list[str]:
        """Return the names of all files, the manifest included, sorted."""
        return sorted([MANIFEST_NAME, *(entry.name for entry in self.manifest.files)])

    def digest(self) -> str:
        """Return SHA-256 of the manifest, 64 hex digits: it covers every file."""
        return hashlib.sha256(encode_manifest(self.manifest)).hexdigest()

    def precision(self, name: str | None = None) -> PrecisionEntry:
        """Return one precision's entry, the channel's own (the first) by default.

        Raises:
            Incompatible: the bundle does not have it.
        """
        for entry in self.manifest.precisions:
            if name in (None, entry.precision):
                return entry
        have = ", ".join(entry.precision for entry in self.manifest.precisions)
        raise Incompatible(f"the bundle has no {name}, only {have}", hint="Export it with --precision.")

    def space(self, precision: str | None = None) -> str:
        """Return the feature space id, 64 hex digits."""
        return self.precision(precision).space

    def backbone(self, precision: str | None = None) -> bytes:
        """Return the ONNX file's bytes."""
        return self._read(self.precision(precision).backbone)

    def class_names(self) -> dict[bytes, str]:
        """Return the release's classes in manifest order, id to name."""
        return {bytes.fromhex(entry.id): entry.name for entry in self.manifest.classes}

    def base(self, precision: str | None = None) -> BaseSamples:
        """Return the release's own labelled codes, and the moments of those samples that have none.

        Raises:
            BadFormat: the samples file or the moments file does not hold them.
        """
        entry = self.precision(precision)
        base = BaseSamples.from_bytes(self._read(entry.samples), entry.samples, entry.feature_size)
        if bool(base.summed) != (entry.moments is not msgspec.UNSET):
            state = "no moments of the samples without code" if base.summed else "moments of no samples"
            raise BadFormat(f"{self.path}: there are {state}", hint="Export again.")
        unknown = set(base.class_ids) - set(self.class_names())
        if unknown:
            raise BadFormat(
                f"{entry.samples}: class {min(unknown).hex()} is not in the manifest", hint="Export again."
            )
        if entry.moments is not msgspec.UNSET:
            base = base.with_moments(self._read(entry.moments), entry.moments)
        return base

    def golden(self, precision: str | None = None) -> Golden:
        """Return the golden inputs and outputs.

        Raises:
            BadFormat: the golden file does not hold them.
        """
        entry, what = self.precision(precision), self.manifest.golden
        t = _load(self._read(what), what)
        m = len(t["frames"]) if "frames" in t else -1
        p, d, k = entry.precision, entry.feature_size, len(self.manifest.classes)
        size = self.manifest.preprocess
        _expect(t, what, "frames", np.uint8, (m, size.height, size.width, 3))
        _expect(t, what, f"features.{p}", np.float32, (m, d))
        _expect(t, what, f"codes.{p}", np.int8, (m, d))
        _expect(t, what, f"scores.{p}", np.float32, (m, k))
        return Golden(
            np.asarray(t["frames"], np.uint8),
            np.asarray(t[f"features.{p}"], np.float32),
            np.asarray(t[f"codes.{p}"], np.int8),
            np.asarray(t[f"scores.{p}"], np.float32),
        )

    def parts(self) -> dict[bytes, Part]:
        """Return the part of the recorded split that each image of the exporter's set belongs to, by sample id.

        Raises:
            BadFormat: the split file does not hold it.
        """
        what = self.manifest.split.file
        t = _load(self._read(what), what)
        n = len(t["parts"]) if "parts" in t else -1
        _expect(t, what, "parts", np.uint8, (n,))
        _expect(t, what, "sample_ids", np.uint8, (n, 32))
        if n and int(t["parts"].max()) >= len(_PARTS):
            raise BadFormat(f"{what}: a part is unknown", hint="Export the bundle again.")
        return {bytes(s): _PARTS[int(p)] for s, p in zip(t["sample_ids"], t["parts"], strict=True)}

    def split_groups(self) -> dict[bytes, int]:
        """Return the group that each image of the exporter's set was divided with, by sample id, as a number.

        Empty where the split file does not say: older exporters did not write it.

        Raises:
            BadFormat: the split file does not hold one for each image.
        """
        what = self.manifest.split.file
        t = _load(self._read(what), what)
        if "groups" not in t:
            return {}
        n = len(t["groups"])
        _expect(t, what, "groups", np.uint32, (n,))
        _expect(t, what, "sample_ids", np.uint8, (n, 32))
        return {bytes(s): int(g) for s, g in zip(t["sample_ids"], t["groups"], strict=True)}

    def read(self, name: str) -> bytes:
        """Return the bytes of a file that the manifest lists.

        Raises:
            BadFormat: it lists none of that name.
            BadSignature: it changed after the bundle was opened.
        """
        if not any(entry.name == name for entry in self.manifest.files):
            raise BadFormat(f"{self.path} has no {name}", hint="Export the bundle with this version of Headway.")
        return self._read(name)

    def _read(self, name: str) -> bytes:
        # Checked again at each read: what was verified is what is used, even if the disk changed meanwhile.
        entry = next(entry for entry in self.manifest.files if entry.name == name)
        data = (self.path / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BadSignature(f"{self.path / name} changed after it was opened", hint="Copy the bundle again.")
        return data


def _check_file(file: Path, entry: FileEntry) -> None:
    if file.is_symlink() or not file.is_file():
        raise BadFormat(f"{file} is not a plain file", hint="A bundle holds files only, no links or folders.")
    if file.stat().st_size != entry.size_bytes:
        raise BadFormat(
            f"{file} has {file.stat().st_size} bytes, not {entry.size_bytes}", hint="Copy the bundle again."
        )
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        raise BadSignature(f"{file} is not what the manifest says", hint="Copy the bundle again.")


def write_bundle(
    out: Path | str, files: Mapping[str, bytes], manifest: Manifest, *, replace: bool = False
) -> Bundle:
    """Write a bundle whole or not at all, and return it opened.

    Args:
        out: The directory to make. It appears whole, after everything is on disk; killed at any point, what was
            there before is still there, or comes back at the next use.
        files: Contents by name, without the manifest.
        manifest: Its `files` and `format` are filled in here.
        replace: Put it in place of an older bundle of that name.

    Raises:
        BadFormat: `out` exists and may not be replaced, or the parts do not make a bundle.
    """
    out = Path(out)
    put_back(out)
    if out.exists() and not (replace and (out / MANIFEST_NAME).is_file()):
        raise BadFormat(f"{out} exists", hint="Choose another --out, or --force to replace a bundle.")
    for name in files:
        if not re.match(_NAME, name):
            raise BadFormat(f"{name!r} is no name for a bundle's file", hint="Use a-z, 0-9, '.', '_' and '-'.")
    entries = [
        FileEntry(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in sorted(files.items())
    ]
    version = format_of(manifest)
    encoded = encode_manifest(msgspec.structs.replace(manifest, files=entries, format=version))
    decode_manifest(encoded)
    out.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(out) as draft:
        for name, data in {**files, MANIFEST_NAME: encoded}.items():
            with (draft / name).open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        sync_path(draft)
        take_place(draft, out)
    return Bundle.open(out)
