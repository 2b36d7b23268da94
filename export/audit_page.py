"""The page of an audit: what to look at again, with pictures, and the corrected labels saved from it. One file.

It needs nothing from elsewhere, and sends nothing: its script fills in the index that the page carries and saves
it where the browser saves files. Without scripts it is read all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import jinja2

from export.images_page import thumbnail
from export.index_file import BOM, Table
from export.label_audit import SAID, Finding, LabelAudit, Labelled, Why
from export.set_report import DISAGREE
from export.terminal import unjudged_said
from sdk.durable import write_output
from sdk.errors import ExportError
from sdk.layouts import CONFIRMED
from sdk.shown import readable

SHOWN: Final = 300
"""So many are shown with pictures, about 15 kB each; the others are in the index."""
PICTURE_PX: Final = 260
SMALL_PX: Final = 96
AGAINST: Final = 4

HEADINGS: Final = {
    Why.COPY: (
        "The same picture under two labels",
        "One of them is wrong. An export uses neither before that is settled: give all copies the same label, or "
        "leave all but one out.",
    ),
    Why.NEAR_DUPLICATE: (
        "The same part under two labels",
        "Pictures that show one part, as it seems, are labelled otherwise. These are mostly wrong labels.",
    ),
    Why.HEAD: (
        "Looks like another class",
        "A head that learned from all other groups gives the label little probability, and seldom takes these two "
        "classes for each other.",
    ),
    Why.HARD: (
        "Classes that are hard to tell apart",
        "The head often takes the one for the other, so most of these are its errors and not the labels'. Or "
        "whoever labels mixes the two up often: look at the first few.",
    ),
}


def audit_page(audit: LabelAudit, table: Table, file: Path) -> None:
    """Write the page of an audit of a set that is still where it was.

    Args:
        audit: What was found.
        table: The index to correct, of `export.label_audit.audit_table`.
        file: To write.

    Raises:
        ExportError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = lambda share: (
        f"{100 * share:.1f}\xa0%" if share >= 0.0005 else "under\xa00.1\xa0%"
    )
    folder = Path(audit.folder)
    row_of = {row[0]: at for at, row in enumerate(table)}

    def shown(finding: Finding) -> dict[str, object]:
        return {
            "f": finding,
            "row": row_of[finding.path],
            "picture": thumbnail(folder / finding.path, PICTURE_PX),
            "against": [
                (label, paths, [(path, thumbnail(folder / path, SMALL_PX)) for path in paths[:AGAINST]])
                for label, paths in _by_label(finding.against).items()
            ],
        }

    sections = [
        (why.value, *HEADINGS[why], [shown(each) for each in audit.findings[:SHOWN] if each.why == why.value])
        for why in Why
    ]
    page = environment.get_template("audit_page.html.j2").render(
        a=audit,
        counts=[(why.value, SAID[why], audit.count(why)) for why in Why if audit.count(why)],
        sections=[each for each in sections if each[3]],
        more=max(0, len(audit.findings) - SHOWN),
        typical=[(each, [thumbnail(folder / path, SMALL_PX) for path in each.typical]) for each in audit.classes],
        unjudged=unjudged_said(audit),
        disagree=DISAGREE if audit.disagree else "",
        index={
            "table": table,
            "label": table[0].index("label"),
            "confirmed": table[0].index(CONFIRMED),
            "mark": BOM,
            "classes": [each.name for each in audit.classes],
        },
    )
    try:
        write_output(file, readable(page).encode())
    except OSError as error:
        raise ExportError(f"--page {file}: {error.strerror}", hint="Name another file.") from error


def _by_label(against: Sequence[Labelled]) -> dict[str, list[str]]:
    """Return the paths of each label, the most frequent first."""
    found: dict[str, list[str]] = {}
    for one in against:
        found.setdefault(one.label, []).append(one.path)
    return dict(sorted(found.items(), key=lambda each: -len(each[1])))
