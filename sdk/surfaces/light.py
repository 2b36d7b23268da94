"""Light on a part: what reaches the camera."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from sdk.surfaces.parts import Part, Stream, axes


def lit(rng: Stream, part: Part) -> npt.NDArray[np.float32]:
    """Return what reaches the camera from a part under one lamp, (s, s, 3) float32."""
    size = part.size
    # A lamp at the side, some light from all around, and the lamp's mirror image in the gloss.
    turn, up = rng.between(0, 2 * math.pi), math.radians(rng.between(32, 62))
    x, y, z = math.cos(turn) * math.cos(up), math.sin(turn) * math.cos(up), math.sin(up)
    slope_x = np.asarray(cv2.Scharr(part.height, cv2.CV_32F, 1, 0, scale=1 / 32), np.float32)
    slope_y = np.asarray(cv2.Scharr(part.height, cv2.CV_32F, 0, 1, scale=1 / 32), np.float32)
    upright = 1 / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    direct = np.maximum((z - x * slope_x - y * slope_y) * upright, 0)
    between = math.sqrt(x * x + y * y + (z + 1) ** 2)  # length of the sum of the ways to lamp and camera
    mirror = np.maximum((z + 1 - x * slope_x - y * slope_y) * (upright / between), 0)
    for _ in range(4):  # to the 16th: the highlight of a satin surface
        mirror *= mirror
    ambient = rng.between(0.25, 0.5)

    # Brighter towards the lamp, darker to the corners; slow, so a coarse grid will do.
    coarse = 24
    u, v = (place * (2 / coarse) for place in axes(coarse, turn))
    falloff = 1 + rng.between(0.0, 0.28) * u - rng.between(0.0, 0.2) * (u * u + v * v) + 0.06 * rng.slow(coarse, 2)
    light = np.asarray(cv2.resize(np.maximum(falloff, 0.15), (size, size), interpolation=cv2.INTER_LINEAR))
    shade = (ambient + (1 - ambient) * direct) * light
    shine = part.gloss * mirror * light
    balance = 0.97 + 0.06 * rng.uniform(3)
    planes = [(plane * shade + shine) * white for plane, white in zip(part.colour, balance, strict=True)]
    return np.asarray(cv2.merge(planes), np.float32)
