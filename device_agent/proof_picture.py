"""The picture of a proof's part: is it the one that was decided, and which code is made of it?

A proof has the code of a part, and of its picture no more than the SHA-256: a code of another picture would do as
well. Whoever has the picture can tell. It is that picture by its bytes, and the bundle's backbone makes its code
here again; that two machines round differently is all that may be between the two codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from device_agent.camera import Box, encode_png
from device_agent.config import RuntimeSettings
from device_agent.pipeline import Pipeline
from device_agent.proof_claim import PartClaim
from device_agent.runtime import (
    CODE_TOLERANCE,
    SCORE_TOLERANCE,
    check_golden,
    code_off,
    open_runtime,
    score_off,
)
from sdk.bundle import Bundle
from sdk.codes import Code
from sdk.errors import BadImages, LabelError
from sdk.head import Head
from sdk.images import MAX_IMAGE_BYTES, decode, sample_id
from sdk.preprocess import Frame


def read_picture(file: Path) -> bytes:
    """Return a file's bytes, or too many for a picture.

    Raises:
        BadImages: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise BadImages(f"{file}: {error.strerror}", hint="Name the picture that was decided.") from error


@dataclass
class Picture:
    """A picture that somebody gives of a part, and what its code is made by.

    Args:
        data: As it lies in its file.
        bundle: The release that decided.
        precision: And in which precision.
    """

    data: bytes
    bundle: Bundle
    precision: str
    runtime: str = field(init=False, default="")

    def code_of(self, part: PartClaim) -> tuple[Code, bool]:
        """Return the code (d,) of what was decided, made here, and whether that was cut out of the picture.

        Raises:
            BadImages: it is no usable image.
            LabelError: it is not the part's.
            InferenceFailed: this machine does not compute the bundle's golden inputs right.
        """
        frame, cut = frame_of(self.data, part)
        runtime = open_runtime(self.bundle, self.precision, RuntimeSettings())
        check_golden(runtime, self.bundle, self.precision)
        self.runtime = runtime.name
        code: Code = Pipeline(self.bundle, self.precision, runtime).code(frame)[0]
        return code, cut


def frame_of(data: bytes, part: PartClaim) -> tuple[Frame, bool]:
    """Return the frame that was decided, and whether it is a tile that was cut out of a picture for that.

    Args:
        data: A picture: the one that was decided, or the camera's frame that it is a tile of.
        part: Says which was decided, by its SHA-256, and where it lies.

    Raises:
        BadImages: it is no usable image.
        LabelError: it is another picture.
    """
    frame, box = decode(data), None if isinstance(part.box, msgspec.UnsetType) else Box(*part.box)
    if sample_id(data).hex() == part.sample or (box is None and _stored(frame) == part.sample):
        return frame, False
    where = "."
    if box is not None:
        tile = np.ascontiguousarray(
            frame[max(0, box.y) : max(0, box.y + box.height), max(0, box.x) : max(0, box.x + box.width)]
        )
        if tile.size and _stored(tile) == part.sample:
            return tile, True
        where = (
            f", and what lies in it at {box.x}, {box.y}, {box.width} x {box.height} pixels is not the tile that "
            "was. Behind a mask, or packed by another OpenCV, a tile has other bytes."
        )
    raise LabelError(
        f"this is not the picture that was decided: its SHA-256 is {sample_id(data).hex()[:16]}, and not "
        f"{part.sample[:16] or 'said in the proof'}",
        hint=f"A file that was saved anew has other bytes{where} The device kept the one that was decided: "
        f"/api/samples/{part.sample[:64]}/image there.",
    )


def _stored(frame: Frame) -> str:
    """Return the id, hex, that a device gives to pixels."""
    return sample_id(encode_png(frame)).hex()


def apart(head: Head, recorded: Code, made: Code) -> tuple[float, float]:
    """Return how far two codes (d,) of one picture are apart: a number on average, of 127; and a score at most.

    Raises:
        LabelError: it is more than runtimes of one backbone may differ by.
    """
    codes = code_off(made[None], recorded[None])
    scores = score_off(head.scores(made[None]), head.scores(recorded[None]))
    if not (codes <= CODE_TOLERANCE and scores <= SCORE_TOLERANCE):
        raise LabelError(
            f"the code in the proof is not that of this picture: it is off by {codes:.1f} of 127 on average and "
            f"by {scores:.2f} in a score, where machines may differ by {CODE_TOLERANCE:g} and {SCORE_TOLERANCE:g}",
            hint="This machine computes the bundle's golden inputs right. So the proof was changed, or the device "
            "computed wrongly: make the proof again there, and ask `headway doctor` on it.",
        )
    return codes, scores
