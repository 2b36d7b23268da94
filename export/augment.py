"""Augmentation that respects defects: what may happen to a part under a fixed camera, nothing that could be one.

Mirror images, quarter turns where asked for, small shifts, a little brightness and contrast. No crop, no erasing
(a defect may lie at the edge, or be what is erased), no blur and no noise (a defect may be that), no colour change
beyond what light does. Pixels are moved and changed by torchvision's kernels on 8-bit images, as a camera would
deliver them.

Every choice for an image follows from a key of integers alone, so that it is the same in whatever order, batch or
process the image comes up, and after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional as kernels

from sdk.preprocess import Preprocess

SHIFT: Final = 0.05
"""Largest shift, as a share of the side: about what a part moves under a fixed camera."""
CONTRAST: Final = 0.15
BRIGHTNESS: Final = 0.15
"""Largest relative changes: what a lamp loses between two cleanings."""

Frames = npt.NDArray[np.uint8]
"""(n, H, W, 3) uint8 BGR at the backbone's input size."""


@dataclass(frozen=True)
class Augmentation:
    """How far an image may be changed.

    Attributes:
        shift: Of the side, in each direction.
        contrast, brightness: Relative.
        turns: Square images are turned by quarters as well: right where parts have no upright.
    """

    shift: float = SHIFT
    contrast: float = CONTRAST
    brightness: float = BRIGHTNESS
    turns: bool = False


def augmented(frame: npt.NDArray[np.uint8], augmentation: Augmentation, key: Sequence[int]) -> torch.Tensor:
    """Return a frame (H, W, 3) BGR as a changed image (3, H, W) uint8 RGB; the same key gives the same image."""
    rng = np.random.default_rng(list(key))
    image = as_image(frame)
    _, height, width = image.shape
    if augmentation.turns and height == width and rng.random() < 0.5:
        image = image.transpose(1, 2)  # with mirrors, all eight ways to lay a square
    if rng.random() < 0.5:
        image = kernels.horizontal_flip(image)
    if rng.random() < 0.5:
        image = kernels.vertical_flip(image)
    down, right = max(1, round(augmentation.shift * height)), max(1, round(augmentation.shift * width))
    top, left = int(rng.integers(0, 2 * down + 1)), int(rng.integers(0, 2 * right + 1))
    image = kernels.crop(kernels.pad(image, [right, down], padding_mode="reflect"), top, left, height, width)
    contrast, brightness = 2 * rng.random(2) - 1
    image = kernels.adjust_contrast(image, 1 + augmentation.contrast * float(contrast))
    return torch.as_tensor(kernels.adjust_brightness(image, 1 + augmentation.brightness * float(brightness)))


def as_image(frame: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return a frame (H, W, 3) BGR as torchvision's image (3, H, W) uint8 RGB."""
    return torch.from_numpy(np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1)))


def normalised(images: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Return images (n, 3, H, W) uint8 RGB as the backbone's input: what `Preprocess.apply` gives, for a batch."""
    mean = torch.tensor(preprocess.mean, device=images.device).view(3, 1, 1) * 255
    std = torch.tensor(preprocess.std, device=images.device).view(3, 1, 1) * 255
    return (images.float() - mean) / std


def to_pixels(frames: Frames, preprocess: Preprocess) -> torch.Tensor:
    """Return (n, 3, H, W) float32 of frames at input size: what `Preprocess.apply` gives, for a batch."""
    rgb = torch.from_numpy(np.ascontiguousarray(frames[..., ::-1])).permute(0, 3, 1, 2)
    return normalised(rgb, preprocess)
