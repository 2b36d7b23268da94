"""What both papers of a bundle say, `card.md` for people and `mlbom.cdx.json` for machines, in the same words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from export.report import Report
from sdk.lineage import Link

INTENDED_USE: Final = (
    "Tells the classes it was taught apart on whole frames of a fixed camera, says unknown to what looks like "
    "none of them, and learns further classes on the device. Meant for visual inspection where people look at "
    "what it is unsure of."
)
FIRST_DAY_USE: Final = (
    "Knows one class, and says unknown to what does not look like it on whole frames of a fixed camera. It learns "
    "to tell classes apart on the device, from the first labels of a second one. Meant for visual inspection "
    "where people look at what it is unsure of."
)
USERS: Final = (
    "operators, who label what it asks about",
    "process engineers, who decide what a decision triggers",
)
NOT_FOR: Final = (
    "Not for the safety of persons, and not as the only barrier before a defect that can hurt somebody.",
    "Not for images of people, or decisions about them.",
)
LIMITS: Final = (
    "The score says how parts of this set are judged that were not learned. Another line, camera or light is "
    "another set: measure there with `headway evaluate`.",
    "A head cannot repair features that do not show a defect; a low recall that labels do not lift asks for "
    "another backbone or strategy.",
    "Codes and golden frames show something of the images they were made from. Keep the bundle as confidential "
    "as the images.",
)


ONE_CLASS: Final = (
    "There is one class, so this is the share of its parts that pass. How many defects are noticed it cannot say: "
    "label some, or measure with `headway evaluate`."
)


def use_of(report: Report) -> str:
    """Return what a bundle is meant for."""
    return INTENDED_USE if report.only_class is None else FIRST_DAY_USE


@dataclass(frozen=True)
class Papers:
    """What is known of a bundle beside its report.

    Attributes:
        data_licence: Of the images, as stated at the export; empty where nobody did.
        parents: The bundles that it continues, each with its own.
    """

    data_licence: str = ""
    parents: tuple[Link, ...] = ()
