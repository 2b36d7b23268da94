"""The first line of a proof: of which head it is, and maybe of which part that head decided.

Its members are those of docs/labels.md, section 6. All of it is the device's word until it is computed.
"""

from __future__ import annotations

from typing import Final

import msgspec

FORMAT: Final = "headway-proof-1"
MAKE_AGAIN: Final = "Make the proof again, on the device."


class PartClaim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part that the head decided, as the history has it.

    Attributes:
        part: Its id.
        captured_utc: Seconds since 1970.
        verdict, reason: Of the part.
        decision: Shown for the tile that decided.
        probability, novelty: Of that decision.
        sample: The tile's id, hex.
        code: The tile's code, hex; None where the device has it no more.
        box: Where the tile lies in the camera's frame: x, y, width, height in its pixels. Not there where the
            frame was not cut, and in files of before this was told.
    """

    part: str
    captured_utc: float
    verdict: str
    reason: str
    decision: str
    probability: float
    novelty: float
    sample: str
    code: str | None
    box: tuple[int, int, int, int] | msgspec.UnsetType = msgspec.UNSET


class Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The first line of a proof.

    Attributes:
        format: `FORMAT`.
        made_utc: Seconds since 1970.
        headway: Version that made it.
        device: Whose head.
        head: Its number there.
        created_utc: When it began to serve.
        space: Feature space id, hex.
        digest: Of the live set that it was solved from, hex.
        samples: Size of that.
        outcome, reason: How its trial ended, and why.
        calibration, adaptation: As the device stores them, MessagePack in hex; None where it had none of its own.
        learned: So many entries of the log it had learned.
        entries: So many follow; what is beyond `learned` took something of it back.
        part: What it decided; None where nobody asked.
    """

    format: str
    made_utc: float
    headway: str
    device: str
    head: int
    created_utc: float
    space: str
    digest: str
    samples: int
    outcome: str
    reason: str
    calibration: str | None
    adaptation: str | None
    learned: int
    entries: int
    part: PartClaim | None = None
