"""The same images through all forms of one backbone: how far apart are they, and is that allowed?

torch against ONNX fp32 must agree, or nothing is written. fp16 and int8 may differ from fp32, since the head is
fitted on their own codes; how much is reported, and what is beyond all rounding is refused. So is how much int8
depends on this processor's kernels: codes that the next device cannot reproduce are of no use to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from export.backbones import Backbone
from export.graph import OnnxBackbone, Pixels
from sdk.codes import FULL_SCALE, Codes, Features
from sdk.errors import ParityFailed

FP32_TOLERANCE: Final = 1e-3
"""Largest difference of a feature between torch and ONNX Runtime, in units of the features' root mean square. Both
sum in fp32, in another order: 2e-5 measured on vit_tiny, 1e-5 on mobilenetv2. A wrong padding or operator costs
1e-1 and more; one step of a code is about 1e-2."""
KERNEL_TOLERANCE: Final = 2.0
"""Largest mean difference of an int8 code, of 127, between this processor's integer kernels and the exact
arithmetic of the file. It is what a device allows on the golden inputs."""


@dataclass(frozen=True)
class Tolerance:
    """How far a form's features may be from fp32's.

    Attributes:
        least_cosine: Mean over the images; refused below.
        reason: Why so much.
    """

    least_cosine: float
    reason: str


FP16_TOLERANCE: Final = Tolerance(
    0.995,
    "fp16 rounds every layer to 11 bits: 0.9998 (mobilenetv2_100) and 0.999998 (vit_tiny) were measured, both "
    "fine-tuned on magnetic tile; a range that overflows costs far more",
)
INT8_TOLERANCE: Final = Tolerance(
    0.7,
    "int8 rounds to 8 bits, and the head is fitted on what comes out, so that the score judges it; networks that "
    "kept their accuracy gave 0.83 and more, while one scale for all channels gave 0.43 and quantized sums of a "
    "transformer 0.07",
)
TOLERANCES: Final = {"fp16": FP16_TOLERANCE, "int8": INT8_TOLERANCE}


@dataclass(frozen=True)
class Difference:
    """How far the features of one form are from those it is held against.

    Attributes:
        largest: Difference of a feature, in units of their root mean square.
        cosine: Mean over images.
    """

    largest: float
    cosine: float


def difference(reference: Features, other: Features) -> Difference:
    """Return the difference between features (n, d) of the same images.

    Raises:
        ParityFailed: they have different shapes.
    """
    if other.shape != reference.shape:
        raise ParityFailed(
            f"the forms give features {other.shape} and {reference.shape}", hint="Use another version of torch."
        )
    unit = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64)))) or 1.0
    return Difference(float(np.abs(other - reference).max()) / unit, feature_cosine(reference, other))


def fp32_difference(backbone: Backbone, onnx_fp32: bytes, pixels: Pixels) -> float:
    """Return the largest difference between torch and ONNX features of these images, in their root mean square.

    Raises:
        ParityFailed: it is over `FP32_TOLERANCE`.
    """
    with torch.inference_mode():
        expected = backbone.module(torch.from_numpy(pixels)).numpy()
    largest = difference(expected, OnnxBackbone(onnx_fp32, threads=0).features(pixels)).largest
    if not largest <= FP32_TOLERANCE:
        raise ParityFailed(
            f"ONNX features differ from torch's by {largest:.2g} of their size ({FP32_TOLERANCE} is allowed)",
            hint="Nothing was written. Use another backbone, or another version of torch or onnxruntime.",
        )
    return largest


def check_form(precision: str, reference: Features, other: Features) -> Difference:
    """Return how far a form's features (n, d) are from those of fp32 on the same images.

    Args:
        precision: fp16 or int8.
        reference: fp32's.
        other: The form's.

    Raises:
        ParityFailed: they are beyond what rounding explains.
    """
    found, allowed = difference(reference, other), TOLERANCES[precision]
    if not found.cosine >= allowed.least_cosine:
        raise ParityFailed(
            f"{precision} features have a cosine of {found.cosine:.2f} to fp32's, and at least "
            f"{allowed.least_cosine} is asked for",
            hint="Export with --precision fp32, or use another backbone.",
        )
    return found


def feature_cosine(reference: Features, other: Features) -> float:
    """Return the mean cosine between rows of features (n, d) of two forms.

    Two rows of zeros count as equal; a row of zeros beside another, what int8 has lost wholly, as 0.
    """
    lengths = np.linalg.norm(reference, axis=1), np.linalg.norm(other, axis=1)
    both = lengths[0] * lengths[1]
    cosine = np.einsum("nd,nd->n", reference, other) / np.where(both > 0, both, 1)
    return float(np.where(both > 0, cosine, lengths[0] == lengths[1]).mean())


def code_difference(one: Codes, other: Codes) -> float:
    """Return the mean absolute difference of codes (n, d), of 127."""
    assert FULL_SCALE == 127
    return float(np.abs(one.astype(np.int16) - other).mean())
