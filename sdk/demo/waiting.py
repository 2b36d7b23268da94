"""Pictures that wait for whoever stays after the demo: an open page with an empty queue shows nothing.

A device that has just learned well may ask about nothing any more. Then it is shown parts that it has not seen;
and where it knows these too, the same as a line would show what nobody expected: as a negative, as through a wrong
exposure, and rotated. Each is a picture of its own, asked about for the usual reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, Protocol

import cv2
import numpy as np

from sdk.demo.plant import DemoFailed
from sdk.images import decode

WAITING: Final = 6
"""Enough to see the queue move, and to find a group."""
MAX_SHOWN: Final = 120
"""More pictures than this are not shown to a device that asks about none of them."""


class Asking(Protocol):
    """A device that may ask."""

    name: str

    def get(self, path: str, **query: str | int) -> Any:
        """Return the JSON at a path of its interface."""

    def show(self, image: bytes) -> None:
        """Let it decide about a picture, and keep it."""


def leave_waiting(device: Asking, unseen: Iterable[bytes], wanted: int = WAITING) -> int:
    """Return how many questions wait on a device, at least `wanted`; where fewer do, it is shown more pictures.

    Args:
        device: Asked, and shown pictures.
        unseen: Encoded pictures of parts that it has not kept.
        wanted: Questions.

    Raises:
        DemoFailed: it asks about nothing that it is shown.
    """
    pictures = list(unseen)
    waiting = _waiting(device)
    for shown, picture in enumerate(chain(pictures, _odd(pictures))):
        if waiting >= wanted:
            return waiting
        if shown == MAX_SHOWN:
            break
        device.show(picture)
        waiting = _waiting(device)
    if waiting < wanted:
        raise DemoFailed(
            f"device {device.name} asks about {waiting} pictures only, {wanted} were to wait",
            hint="Give the demo more pictures of other kinds.",
        )
    return waiting


def _waiting(device: Asking) -> int:
    return len(device.get("/api/queue", limit=200))


def _odd(pictures: Sequence[bytes]) -> Iterator[bytes]:
    for picture in pictures:
        frame = decode(picture)
        negative = 255 - frame
        for odd in (negative, np.minimum(frame, 110) * 2, np.rot90(negative)):
            done, encoded = cv2.imencode(".png", np.ascontiguousarray(odd))
            assert done
            yield encoded.tobytes()
