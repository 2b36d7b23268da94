"""The page of a labelled set: what `export.check` found, with pictures. One file, nothing from elsewhere."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2
from PIL import Image, ImageOps

from export.set_report import DISAGREE, PairReport, SetReport
from sdk.durable import write_output
from sdk.errors import BadImages, ExportError
from sdk.images import MAX_PIXELS, open_regular
from sdk.layouts import confirmed_said
from sdk.shown import readable

THUMBNAIL_PX: Final = 150
SHOWN_PAIRS: Final = 24
SHOWN_LABELS: Final = 24
SHOWN_REFUSED: Final = 60
"""Refused files with a line of their own; the rest are counted by reason."""


@dataclass(frozen=True)
class ShownPair:
    """A pair with its pictures, as data URIs; empty where there is none to show."""

    pair: PairReport
    first: str
    second: str


@dataclass(frozen=True)
class ShownRefusal:
    """A refused file, with a picture where it has one."""

    path: str
    reason: str
    picture: str


def write_page(report: SetReport, file: Path) -> None:
    """Write the page of a set that is still where it was when it was checked.

    Raises:
        ExportError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    folder = Path(report.folder)
    refused = [
        ShownRefusal(one.path, one.reason, thumbnail(folder / one.path)) for one in report.refused[:SHOWN_REFUSED]
    ]
    page = environment.get_template("images_page.html.j2").render(
        r=report,
        pairs=[
            ShownPair(pair, thumbnail(folder / pair.first), thumbnail(folder / pair.second))
            for pair in _worth_a_look(report.leaks.listed)
        ],
        doubtful=[
            (label, thumbnail(folder / label.path))
            for label in ([] if report.labels is None else report.labels.listed[:SHOWN_LABELS])
        ],
        disagree=DISAGREE,
        confirmed_said=confirmed_said,
        refused=refused,
        reasons=Counter(_kind_of(one.reason) for one in report.refused).most_common(),
    )
    try:
        write_output(file, readable(page).encode())
    except OSError as error:
        raise ExportError(f"--images-page {file}: {error.strerror}", hint="Name another file.") from error


def _worth_a_look(pairs: Sequence[PairReport]) -> list[PairReport]:
    """Return the most doubtful half and, of the others, some at equal steps."""
    doubtful = list(pairs[: SHOWN_PAIRS // 2])
    rest = pairs[SHOWN_PAIRS // 2 :]
    steps = min(len(rest), SHOWN_PAIRS - len(doubtful))
    return doubtful + [rest[i * len(rest) // steps] for i in range(steps)]


def _kind_of(reason: str) -> str:
    """Return a reason without the names and numbers that only one file has."""
    for start in ("the same picture as", "the image is damaged", "no image by its name"):
        if reason.startswith(start):
            return start.removesuffix(" as") + (" as another" if start.endswith(" as") else "")
    return reason.partition(": ")[2] if reason.startswith("line ") else reason


_SHOWN_AS_NOTHING: Final = (
    *(BadImages, Image.DecompressionBombError),
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError),
)


def thumbnail(path: Path, side_px: int = THUMBNAIL_PX) -> str:
    """Return a small picture of a file as a data URI; empty where it holds none that can be shown."""
    try:
        with (
            open_regular(path) as file,
            Image.open(file, formats=("JPEG", "PNG", "BMP", "TIFF", "WEBP")) as image,
        ):
            if image.width * image.height > MAX_PIXELS:
                return ""
            image.thumbnail((side_px, side_px))
            out = io.BytesIO()
            ImageOps.exif_transpose(image).convert("RGB").save(out, "JPEG", quality=80)
    except _SHOWN_AS_NOTHING:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
