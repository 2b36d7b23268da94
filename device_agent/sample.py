"""A sample: one image-level decision made on this device, as the store keeps it and the page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import numpy as np

from device_agent.queue import Question
from sdk.codes import Code

COLUMNS: Final = (
    "sample, captured_utc, part, space, code, decision, class_id, probability, novelty, unknown, status, reason,"
    " priority, source, lot, defect, rejected, camera"
)
"""Of the table, in the order in which `from_row` takes them."""


class SampleStatus(str, Enum):
    """What the operator has had to do with a sample. Values are stored."""

    SEEN = "seen"
    QUEUED = "queued"
    LABELLED = "labelled"


@dataclass(frozen=True)
class Sample:
    """One image-level decision made on this device.

    Attributes:
        sample_id: SHA-256 of the picture's bytes.
        captured_utc: Seconds since 1970 by the device's clock.
        group: What must not be divided between training and scoring: `device/part`, or `device/first frame`.
        space: Feature space of the code, 64 hex digits.
        code: (d,) int8.
        decision: The class name shown, or "unknown".
        class_id: The class chosen if it had to be one; None where there was no head.
        probability: Of that class.
        novelty: By the head that decided.
        unknown: Whether novelty was above the threshold.
        status: What the operator has had to do with it.
        reason: Why the operator is asked, in words for the page.
        priority: Order of the queue, higher first.
        source: The file or camera it came from.
        lot: The lot that its part is of; empty where nobody said.
        defect: Probability of a defect; None where no class was known to be good, or an earlier version wrote it.
        rejected: Whether it speaks against its part by the operating point of then; None like `defect`.
        camera: Name of the station's camera that took it; empty where none did, or an earlier version wrote it.
    """

    sample_id: bytes
    captured_utc: float
    group: str
    space: str
    code: Code = field(compare=False)
    decision: str
    class_id: bytes | None
    probability: float
    novelty: float
    unknown: bool
    status: SampleStatus = SampleStatus.SEEN
    reason: str = ""
    priority: float = 0.0
    source: str = ""
    lot: str = ""
    defect: float | None = None
    rejected: bool | None = None
    camera: str = ""


@dataclass(frozen=True)
class Waiting:
    """What a new head needs of a sample that an operator is asked about: its code, and what is asked now."""

    sample: bytes
    space: str
    code: Code = field(compare=False)
    question: Question


def from_row(row: tuple[Any, ...]) -> Sample:
    """Return the sample of a row of `COLUMNS`."""
    return Sample(
        sample_id=row[0],
        captured_utc=row[1],
        group=row[2],
        space=row[3],
        code=np.frombuffer(row[4], np.int8),
        decision=row[5],
        class_id=row[6],
        probability=row[7],
        novelty=row[8],
        unknown=bool(row[9]),
        status=SampleStatus(row[10]),
        reason=row[11],
        priority=row[12],
        source=row[13],
        lot=row[14],
        defect=row[15],
        rejected=None if row[16] is None else bool(row[16]),
        camera=row[17],
    )
