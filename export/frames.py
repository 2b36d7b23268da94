"""Images of a set at the input's size, decoded once: in memory, or in a file that has no name.

Such a file takes the room that it will need at once, so that a full disk is an error before anything is decoded
and never a bus error later; and the system frees it when the process ends, however it ends.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from export.augment import Frames
from export.graph import cores
from sdk.errors import ExportError
from sdk.images import read
from sdk.preprocess import Preprocess, resize

MAX_RESIDENT_BYTES: Final = 2 * 1024**3
"""Resized images above this go to a file that the system pages in and out."""


def resized_frames(
    paths: Sequence[Path],
    preprocess: Preprocess,
    scratch: Path | None = None,
    on_image: Callable[[], None] = lambda: None,
    sizes: npt.NDArray[np.int64] | None = None,
    *,
    resident_bytes: int = MAX_RESIDENT_BYTES,
) -> Frames:
    """Return the images of these files at input size: in memory or, when they are many, in a file.

    Args:
        paths: n files.
        preprocess: Says the input's size.
        scratch: A folder on the disk that the file takes room of; None is the system's for temporary files.
        on_image: Called after each.
        sizes: (n, 2), filled with height and width of each as it was delivered.
        resident_bytes: As much is kept in memory.

    Raises:
        BadImages: a file changed since it was checked.
        ExportError: there is no room for the file.
    """
    shape = (len(paths), preprocess.height, preprocess.width, 3)
    frames = np.empty(shape, np.uint8) if math.prod(shape) <= resident_bytes else _on_disk(shape, scratch)

    def load(row: int) -> None:
        image = read(paths[row])[1]
        if sizes is not None:
            sizes[row] = image.shape[:2]
        frames[row] = resize(image, preprocess.height, preprocess.width)

    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(load, range(len(paths))):
            on_image()
    return frames


def _on_disk(shape: tuple[int, ...], scratch: Path | None) -> Frames:
    size_bytes = math.prod(shape)
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise ExportError(
            f"there is no room for {size_bytes / 1e9:.1f} GB of resized images: {error.strerror}",
            hint="Free some space, or name a folder on a larger disk in the variable TMPDIR.",
        ) from error
