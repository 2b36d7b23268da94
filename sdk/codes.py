"""Features to int8 codes, and the id of the feature space they live in.

A code is all that learning and prediction ever see of an image (docs/head.md, section 1). It is made by the
signed square root, scaling to unit length, one constant of the release, and rounding. Codes of different
feature spaces never mix: every code carries the id, and every border checks it.
"""

from __future__ import annotations

import hashlib
import math

import msgspec
import numpy as np
import numpy.typing as npt

from sdk.errors import FeatureSizeError
from sdk.preprocess import Preprocess

Features = npt.NDArray[np.float32]
"""(n, d) float32: pooled outputs of the backbone."""

Codes = npt.NDArray[np.int8]
"""(n, d) int8."""
Code = npt.NDArray[np.int8]
"""(d,) int8: one sample's."""

FULL_SCALE = 127
SCALE_QUANTILE = 0.9999
"""The code scale is this quantile of |x| over the training set: beyond it codes clip (docs/head.md)."""

MAX_FEATURE_SIZE = 8192
"""Largest d accepted: the d x d Gram matrix is then 512 MB, past what a small device can hold."""


def rooted(features: Features) -> npt.NDArray[np.float32]:
    """Return sign(f) sqrt|f|, scaled to unit length, for each row: (n, d) float32.

    A row of zeros (a black frame through a ReLU backbone) stays zero.
    """
    root, length = _root(features)
    return np.asarray(root / np.where(length > 0, length, 1), np.float32)


def _root(features: Features) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return sign(f) sqrt|f| (n, d), and the length (n, 1) of each row.

    In place, and in few steps: in each of them another thread of the line may take the interpreter's lock. Squares
    are added up in float64, so that the length has the same bits in whatever order that is done
    (`device_agent.decider` has another).
    """
    root = np.abs(features)
    np.sqrt(root, out=root)
    np.copysign(root, features, out=root)
    squares = np.multiply(root, root, dtype=np.float64)
    return root, np.sqrt(np.add.reduce(squares, axis=1, keepdims=True)).astype(np.float32)


def fit_scale(features: Features) -> float:
    """Return the code scale of a release from the features (n, d) of its training set.

    Raises:
        ValueError: no features, or none that are finite and non-zero.
    """
    if features.size == 0 or not np.isfinite(features).all():
        raise ValueError("features are empty or not finite")
    scale = float(np.quantile(np.abs(rooted(features)), SCALE_QUANTILE))
    if scale <= 0:
        raise ValueError("all features are zero")
    return scale


def encode(features: Features, scale: float) -> Codes:
    """Return the codes (n, d) int8 of features (n, d).

    Raises:
        TypeError: they are no array.
        ValueError: the scale is not above 0.
        FeatureSizeError: not two-dimensional, or a value is not finite.

    >>> import numpy as np
    >>> encode(np.array([[9.0, 16.0]], np.float32), scale=0.8).tolist()
    [[95, 127]]
    """
    if not isinstance(features, np.ndarray):
        raise TypeError(f"features are an array (n, d) float32, not {type(features).__name__}")
    if not 0 < scale < math.inf:
        raise ValueError(f"`scale` is above 0, not {scale}: `Bundle.precision` has a release's")
    if features.ndim != 2:
        raise FeatureSizeError(
            f"features have shape {features.shape}", hint="The backbone must give one row per frame."
        )
    root, length = _root(features)
    if not np.isfinite(length).all():  # what is not finite makes its row's length so
        raise FeatureSizeError(
            "features are not finite", hint="Check the frame and the backbone; the sample is not learned."
        )
    root /= np.where(length > 0, length, 1)
    root *= np.float32(FULL_SCALE / scale)
    np.rint(root, out=root)
    np.clip(root, -FULL_SCALE, FULL_SCALE, out=root)
    return root.astype(np.int8)


def feature_space_id(backbone_sha256: str, preprocess: Preprocess, scale: float) -> str:
    """Return the id, 64 hex digits, of the space that these three put codes in.

    Any change of backbone file, preprocessing or code scale gives another id.
    """
    parts = ("headway-feature-space-1", backbone_sha256, preprocess, scale.hex())
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def check_codes(codes: object, feature_size: int | None = None) -> None:
    """Refuse what are no codes (n, d) int8 of this size, and say which of it is wrong.

    Args:
        codes: An array, or whatever else has codes by their row (`sdk.shelf.CodeRows`).
        feature_size: d; None is any.

    Raises:
        TypeError: neither.
        FeatureSizeError: another shape, type or size.
    """
    shape, dtype = getattr(codes, "shape", None), getattr(codes, "dtype", None)
    wanted = f"(n, {'d' if feature_size is None else feature_size})"
    if shape is None or dtype is None:
        raise TypeError(f"codes are an array {wanted} int8, not {type(codes).__name__}")
    if dtype != np.int8:
        hint = "Make codes of features with sdk.codes.encode, at the release's code scale."
    elif len(shape) != 2:
        hint = "Give one row per sample: code[None] is the only one of a code."
    elif feature_size is not None and shape[1] != feature_size:
        hint = "They come from another feature space; check the release."
    else:
        return
    raise FeatureSizeError(f"codes {dtype} {tuple(shape)}, not int8 {wanted}", hint=hint)


def code_digest(code: Codes) -> bytes:
    """Return the SHA-256, 32 bytes, of one code (d,): what the log's hash chain covers."""
    return hashlib.sha256(np.ascontiguousarray(code).tobytes()).digest()
