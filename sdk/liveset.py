"""The live set: the labelled codes that count, and the digest that names them (docs/labels.md, section 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Final, NamedTuple

import numpy as np

from sdk.codes import Code, code_digest
from sdk.shelf import CodeRows, Kept, Shelf, chosen, strips


class LiveRow(NamedTuple):
    """One sample of the live set, its class before merges are applied."""

    sample: bytes
    class_id: bytes
    group: str
    device: str
    operator: str
    place: int
    shelf: Shelf

    @property
    def code(self) -> Code:
        """The code (d,), read where it lies."""
        code: Code = self.shelf.read(np.array([self.place], np.int64))[0]
        return code


@dataclass(frozen=True)
class LiveSet:
    """The labelled codes of one feature space, sorted by sample id.

    Its length counts the samples that a release knows by their sums only, too; n does not.

    Attributes:
        space: Feature space id, 64 hex digits.
        samples: Sample ids, n of 32 bytes.
        class_ids: Class per sample after merges, n of 16 bytes.
        groups: Group id per sample.
        devices: Who labelled each sample; `release` for base samples.
        operators: Which person on that device; empty for base samples.
        codes: (n, d) int8, read where they lie.
        digest: Names this state; `live_set_digest` of all rows.
        summed: Samples whose codes are in the release's sums only.
        unapplied: How many of them devices have labelled otherwise, to no effect.
        merged: The id that stands for each class id that was merged away.
    """

    space: str
    samples: tuple[bytes, ...]
    class_ids: tuple[bytes, ...]
    groups: tuple[str, ...]
    devices: tuple[str, ...]
    operators: tuple[str, ...]
    codes: CodeRows
    digest: str
    summed: int = 0
    unapplied: int = 0
    merged: Mapping[bytes, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples) + self.summed


def without(live: LiveSet, samples: Collection[bytes], summed: Iterable[tuple[bytes, bytes, bytes]]) -> LiveSet:
    """Return a live set less some samples.

    Args:
        live: The set.
        samples: Those to leave out.
        summed: Of the samples that a release knows by their sums only: sample id, class before merges, SHA-256 of
            the code.

    Raises:
        StoreFull, StoreCorrupt: a code could not be read.
    """
    kept = np.array([sample not in samples for sample in live.samples], bool)
    codes = chosen(live.codes, kept)
    names, class_ids = tuple(compress(live.samples, kept)), tuple(compress(live.class_ids, kept))
    digests = (
        code_digest(code) for strip in strips(np.arange(len(codes)), codes.shape[1]) for code in codes[strip]
    )
    rows = list(zip(names, class_ids, digests, strict=True))
    rows += [(sample, live.merged.get(class_id, class_id), digest) for sample, class_id, digest in summed]
    return replace(
        live,
        samples=names,
        class_ids=class_ids,
        groups=tuple(compress(live.groups, kept)),
        devices=tuple(compress(live.devices, kept)),
        operators=tuple(compress(live.operators, kept)),
        codes=codes,
        digest=live_set_digest(live.space, rows),
    )


def codes_of(rows: Sequence[LiveRow]) -> CodeRows:
    """Return the codes (n, d) of some rows of one fold, at least one, read where they lie."""
    return Kept(rows[0].shelf, np.array([row.place for row in rows], np.int64))


def live_set_digest(space: str, rows: Iterable[tuple[bytes, bytes, bytes]]) -> str:
    """Return the digest, 64 hex digits, of rows (sample id, class id after merges, SHA-256 of the code).

    SHA-256 over the sorted rows of 32 + 32 + 16 + 32 bytes, the feature space first; one row per sample.
    """
    head = bytes.fromhex(space)
    return digest_of_rows(b"".join(live_row_bytes(head, *row) for row in sorted(rows)))


def live_row_bytes(space: bytes, sample: bytes, class_id: bytes, code_sha256: bytes) -> bytes:
    """Return one row as it is digested: `ROW_BYTES` bytes."""
    return space + sample + class_id + code_sha256


ROW_BYTES: Final = 32 + 32 + 16 + 32


def digest_of_rows(rows: bytes | bytearray) -> str:
    """Return the digest of a live set's sorted rows, 64 hex digits."""
    digest = hashlib.sha256(b"headway-live-set-1\0")
    digest.update(rows)
    return digest.hexdigest()
