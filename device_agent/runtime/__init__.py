"""Preprocessed frames to features, by whatever runtime this device has, and the proof that it computes right.

A runtime is admitted by `check_golden` on the very device it will run on: inputs that travel with the bundle must
give the exporter's features, codes and decisions. ONNX Runtime (`onnx.py`) is always there, by the provider and
threads that measure fastest (`choice.py`); where TensorRT is too, an engine takes over from it (`engines.py`,
`tensorrt.py`).
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from device_agent.config import RuntimeSettings
from sdk.bundle import Bundle
from sdk.codes import Codes, Features, encode
from sdk.errors import InferenceFailed
from sdk.head import Calibration, Head, Knobs, solve
from sdk.moments import Floats

Batch = npt.NDArray[np.float32]
"""(n, 3, H, W) float32: frames after `sdk.preprocess`."""

CODE_TOLERANCE: Final = 3.0
"""Largest mean absolute difference of a code from the golden one, of 127. Measured with MobileNetV2 on NEU: fp32
gave 0.0 at every level of graph optimization; int8 with fused against unfused kernels, which round differently
as those of other processors do, 1.1; the int8 backbone taken for the fp32 one 14."""
SCORE_TOLERANCE: Final = 0.1
"""Largest difference of a score, which is a cosine. In the same measurement 0.025 for int8 kernels and 0.72 for
the wrong backbone, while the best class led the second by 0.21 at least."""


class Runtime(Protocol):
    """Something that runs a backbone. Safe to call from several threads.

    Attributes:
        feature_size: d.
    """

    feature_size: int

    @property
    def name(self) -> str:
        """For people: runtime, version, where it runs."""

    def features(self, batch: Batch) -> Features:
        """Return the features (n, d) float32 of preprocessed frames (n, 3, H, W) float32.

        Raises:
            InferenceFailed: the runtime failed, or its output is not finite.
        """


@runtime_checkable
class MappingRuntime(Runtime, Protocol):
    """A runtime that can also give the maps which a heatmap is drawn from. Others serve as well, without one."""

    def spatial(self, batch: Batch) -> tuple[Features, tuple[Batch, ...]]:
        """Return features (n, d) and the bundle's maps (n, c, h, w), from one pass; no maps where it has none.

        Raises:
            InferenceFailed: the runtime failed, or its output is not what the manifest says.
        """


def open_runtime(
    bundle: Bundle, precision: str | None, settings: RuntimeSettings | None = None, provider: str = "cpu"
) -> Runtime:
    """Return a runtime for one precision of a bundle, the channel's own by default. Nothing is measured.

    Raises:
        Incompatible: the bundle does not have that precision.
        InferenceFailed: this device cannot run the backbone.
    """
    from device_agent.runtime.onnx import OnnxRuntime

    entry = bundle.precision(precision)
    shape = (3, bundle.manifest.preprocess.height, bundle.manifest.preprocess.width)
    return OnnxRuntime(
        bundle.backbone(precision),
        entry.backbone,
        shape,
        entry.feature_size,
        settings or RuntimeSettings(),
        entry.layout,
        provider,
    )


def base_head(bundle: Bundle, precision: str | None = None) -> Head:
    """Return the exporter's head: solved from the bundle's own samples, with its knobs and calibration.

    Raises:
        BadFormat: the samples file does not hold them.
    """
    base, entry = bundle.base(precision), bundle.precision(precision).head
    return solve(
        base.moments(),
        knobs=Knobs(entry.rho, entry.centre_damping, entry.lift_floor, entry.distance_weight),
        calibration=Calibration(
            entry.temperature, entry.novelty_threshold, entry.false_alarm_rate, len(set(base.class_ids))
        ),
    )


def check_golden(runtime: Runtime, bundle: Bundle, precision: str | None = None) -> float:
    """Run the bundle's golden inputs and compare codes, scores and decisions; return the largest score difference.

    Raises:
        InferenceFailed: they are out of tolerance, or the runtime failed.
    """
    golden, entry = bundle.golden(precision), bundle.precision(precision)
    # One by one, as the line's frames are: a batch would make the runtime keep memory that no frame needs.
    frames = (bundle.manifest.preprocess.apply(frame) for frame in golden.frames)
    codes = encode(np.concatenate([runtime.features(frame) for frame in frames]), entry.code_scale)
    off = code_off(codes, golden.codes)
    again = "Use another precision or runtime on this device, or export the bundle again."
    if off > CODE_TOLERANCE:
        raise InferenceFailed(
            f"{runtime.name} gives codes off by {off:.1f} on the golden inputs ({CODE_TOLERANCE} is allowed)",
            hint=again,
        )
    head = base_head(bundle, precision)
    ids = [bytes.fromhex(c.id) for c in bundle.manifest.classes]
    present = [i for i, class_id in enumerate(ids) if class_id in head.class_ids]
    columns = [head.class_ids.index(ids[i]) for i in present]
    worst = score_off(head.scores(codes)[:, columns], golden.scores[:, present].astype(np.float64))
    if worst > SCORE_TOLERANCE:
        raise InferenceFailed(
            f"{runtime.name} gives scores off by {worst:.3f} on the golden inputs ({SCORE_TOLERANCE} is allowed)",
            hint=again,
        )
    return worst


def code_off(codes: Codes, expected: Codes) -> float:
    """Return the mean absolute difference of codes (n, d), of 127."""
    return float(np.abs(codes.astype(np.int16) - expected).mean())


def score_off(scores: Floats, expected: Floats) -> float:
    """Return the largest difference of a score, (n, k).

    A head of one class scores by distance, which has no unit: there the difference is relative.
    """
    difference = np.abs(scores - expected) / np.maximum(np.abs(expected), 1)
    return float(difference.max(initial=0.0))
