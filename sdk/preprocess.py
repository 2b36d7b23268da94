"""Pixels to the backbone's input tensor, defined once for training and device.

Two resize functions that nearly agree cost accuracy nobody can find, so exporter and agent both call this one,
and its parameters travel in the bundle's manifest. Decoding image files is in `sdk.images`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
"""One picture, (h, w, 3) uint8, blue-green-red."""

MAX_INPUT_SIDE_PX = 2048
"""Largest input side a manifest may ask for; 2048 px square is 50 MB as float32."""

Side = Annotated[int, msgspec.Meta(ge=8, le=MAX_INPUT_SIDE_PX)]
Unit = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
PositiveStd = Annotated[float, msgspec.Meta(gt=0.0, le=10.0)]


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a frame becomes the backbone's input. Values are the field's usual ones.

    Resizing squeezes the whole frame to (height, width): area averaging where the frame shrinks in both
    directions to less than half, which keeps fine detail from aliasing, bilinear otherwise.

    Attributes:
        height: Input height in pixels.
        width: Input width in pixels.
        mean: Subtracted per channel (red, green, blue) after scaling to [0, 1].
        std: Divided by, per channel, after subtracting the mean.

    >>> import numpy as np
    >>> p = Preprocess(height=32, width=32)
    >>> p.apply(np.zeros((200, 100, 3), np.uint8)).shape
    (1, 3, 32, 32)
    """

    height: Side = 224
    width: Side = 224
    mean: tuple[Unit, Unit, Unit] = (0.485, 0.456, 0.406)
    std: tuple[PositiveStd, PositiveStd, PositiveStd] = (0.229, 0.224, 0.225)

    def apply(self, frame: Frame, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """Return the tensor (1, 3, height, width) float32 for one frame (h, w, 3) uint8 BGR.

        Args:
            frame: As the camera gave it.
            out: Where to write the tensor, contiguous; a new one by default.

        Raises:
            TypeError: it is no array.
            ValueError: the array is not such a frame, or `out` not such a tensor.
        """
        if not isinstance(frame, np.ndarray):
            raise TypeError(f"a frame is an array (h, w, 3) uint8, not {type(frame).__name__}")
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
            raise ValueError(f"a frame is (h, w, 3) uint8, not {frame.shape} {frame.dtype}")
        import cv2  # here, as in `resize`

        blue, green, red = cv2.split(np.ascontiguousarray(resize(frame, self.height, self.width)))
        shape = 1, 3, self.height, self.width
        tensor = np.empty(shape, np.float32) if out is None else out
        if tensor.shape != shape or tensor.dtype != np.float32 or not tensor.flags.c_contiguous:
            raise ValueError(f"a tensor is {shape} float32 in one piece, not {tensor.shape} {tensor.dtype}")
        # A channel has 256 values: looked up they have the same bits, in an eighth of the time.
        for channel, table, plane in zip((red, green, blue), _tables(self.mean, self.std), tensor[0], strict=True):
            cv2.LUT(channel, table, dst=plane)
        return tensor


@lru_cache(maxsize=16)
def _tables(mean: tuple[float, float, float], std: tuple[float, float, float]) -> npt.NDArray[np.float32]:
    """Return what each value of a pixel becomes, by channel: (3, 256)."""
    values = np.arange(256, dtype=np.float32)[:, None]
    scale = np.float32(1) / (np.asarray(std, np.float32) * 255)
    tables = np.ascontiguousarray(((values - np.asarray(mean, np.float32) * 255) * scale).T)
    tables.setflags(write=False)
    return tables


def resize(frame: Frame, height: int, width: int) -> Frame:
    """Return the frame squeezed to (height, width, 3), by the rule `Preprocess` states."""
    import cv2  # here, so that the wire and the fleet service, which see no pixels, run without it

    h, w = frame.shape[:2]
    if (h, w) == (height, width):
        return frame
    shrinks = h > 2 * height and w > 2 * width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(frame, (width, height), interpolation=how), np.uint8)
