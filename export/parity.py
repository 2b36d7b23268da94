"""The same images through two forms of one backbone: how far apart are they, and is that allowed?

torch against ONNX fp32 must agree, or nothing is written. int8 against fp32 may differ, since the head is fitted
on int8's own codes; how much is reported. So is how much int8 depends on this processor's kernels: codes that the
next device cannot reproduce are of no use to it.
"""

from __future__ import annotations

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


def fp32_difference(backbone: Backbone, onnx_fp32: bytes, pixels: Pixels) -> float:
    """Return the largest difference between torch and ONNX features of these images, in their root mean square.

    Raises:
        ParityFailed: it is over `FP32_TOLERANCE`.
    """
    with torch.inference_mode():
        expected = backbone.module(torch.from_numpy(pixels)).numpy()
    found = OnnxBackbone(onnx_fp32, threads=0).features(pixels)
    if found.shape != expected.shape:
        raise ParityFailed(
            f"ONNX gives features {found.shape}, torch {expected.shape}", hint="Use another version of torch."
        )
    unit = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0
    difference = float(np.abs(found - expected).max()) / unit
    if not difference <= FP32_TOLERANCE:
        raise ParityFailed(
            f"ONNX features differ from torch's by {difference:.2g} of their size ({FP32_TOLERANCE} is allowed)",
            hint="Nothing was written. Use another backbone, or another version of torch or onnxruntime.",
        )
    return difference


def feature_cosine(reference: Features, other: Features) -> float:
    """Return the mean cosine between rows of features (n, d) of two forms; rows of zeros count as equal."""
    length = np.linalg.norm(reference, axis=1) * np.linalg.norm(other, axis=1)
    cosine = np.einsum("nd,nd->n", reference, other) / np.where(length > 0, length, 1)
    return float(np.where(length > 0, cosine, 1.0).mean())


def code_difference(one: Codes, other: Codes) -> float:
    """Return the mean absolute difference of codes (n, d), of 127."""
    assert FULL_SCALE == 127
    return float(np.abs(one.astype(np.int16) - other).mean())
