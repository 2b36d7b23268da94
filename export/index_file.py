"""The index that a person corrects and gives back: as a table, and as a file that spreadsheet programs open."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from sdk.durable import write_output
from sdk.errors import ExportError
from sdk.images import LabelledImage
from sdk.layouts import AUDIT_PREFIX

BOM: Final = "\ufeff"
"""Without it spreadsheet programs take UTF-8 for an older code, and give a class back under another name."""

Table = list[list[str]]


def index_table(
    folder: Path, images: Sequence[LabelledImage], audit: Mapping[str, Sequence[str]] | None = None
) -> Table:
    """Return the rows of an index, the first the names of its columns.

    Args:
        folder: The set, which the paths are relative to.
        images: n, in this order.
        audit: What an audit says beside each label, n values by name; nobody reads these columns back.
    """
    said = audit or {}
    extra = sorted({column for image in images for column in image.columns})
    table = [["path", "label", *(AUDIT_PREFIX + name for name in said), "group", "mask", *extra]]
    for row, image in enumerate(images):
        mask = "" if image.mask is None else below(folder, image.mask)
        known = [image.columns.get(column, "") for column in extra]
        beside = [values[row] for values in said.values()]
        table.append([below(folder, image.path), image.label, *beside, image.group, mask, *known])
    return table


def write_index(table: Table, file: Path) -> None:
    """Write an index, to correct and keep.

    Raises:
        ExportError: the file cannot be written.
    """
    out = io.StringIO(newline="")
    csv.writer(out).writerows(table)
    try:
        write_output(file, (BOM + out.getvalue()).encode(errors="surrogateescape"))
    except OSError as error:
        raise ExportError(f"--write-index {file}: {error.strerror}", hint="Name another file.") from error


def below(folder: Path, path: Path) -> str:
    """Return a path as it is from the set's folder on, with / between folders; whole where it leads out of it."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
