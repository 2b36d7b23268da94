"""One form of a backbone, and everything made with it: features, codes, head, and the score on left-out groups.

A form's codes come from that form's own ONNX file, run as a device runs it: one frame at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from export.check import left_out_together
from export.finetune import Frames
from export.graph import OnnxBackbone, cores
from export.paired import SAME, Paired, paired
from export.profiles import Profile
from export.report import QatReport, QuantizationReport
from export.selection import Selection
from sdk.codes import Codes, Features, encode, fit_scale
from sdk.errors import ExportError
from sdk.head import Calibration, Head, solve
from sdk.moments import Moments
from sdk.preprocess import Preprocess
from sdk.score import LeftOut, Score, calibrate, leave_one_group_out, score

NEVER: Final = 1e9
"""Novelty threshold that nothing reaches, where too few groups are known to set one."""
FP32: Final = "fp32"
FP16: Final = "fp16"
INT8: Final = "int8"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Form:
    """One form of the backbone, and everything made with it.

    Attributes:
        precision: fp32, fp16 or int8.
        profile: What an int8 form is made for; None for the others.
        weights: How its weights are stored, for people.
        model: The ONNX file.
        features, codes: (n, d) of the images learned from.
        scale: Of the codes.
        fitted: (n,) images that the backbone's own training saw.
        head, score, forced: Fitted on its codes; `forced` is the score without "unknown".
        left_out: Each image as the head sees it that never saw its group.
        groups: (n,) what was left out together: named, or found in the pictures and by how alike fp32's codes are.
        grouping_note: What people should know of that joining; None where next to nothing was joined.
        cosine: Of its features to fp32's.
        kernel_difference: See `export.report.PrecisionReport`.
        against: Its decisions beside fp32's on the same images.
        excluded: Layers of an int8 form that stay fp32.
        how: How an int8 form came about.
    """

    precision: str
    profile: Profile | None
    weights: str
    model: bytes
    features: Features
    scale: float
    codes: Codes
    fitted: Mask
    head: Head
    score: Score
    forced: Score
    left_out: LeftOut
    groups: tuple[str, ...] = ()
    grouping_note: str | None = None
    cosine: float = 1.0
    kernel_difference: float = 0.0
    against: Paired = SAME
    excluded: tuple[str, ...] = ()
    how: QuantizationReport | None = None

    @property
    def name(self) -> str:
        """What a bundle calls it: its precision, and the profile where that is not a processor's."""
        return f"{self.precision}-{self.profile.value}" if self.profile is Profile.TENSORRT else self.precision

    @property
    def exact(self) -> bool:
        """Whether its codes come from the file's exact arithmetic: TensorRT has no kernels of this processor."""
        return self.profile is Profile.TENSORRT

    @property
    def calibration(self) -> Calibration:
        """Of its head."""
        return self.head.calibration

    @property
    def accuracy(self) -> float | None:
        """Balanced, on left-out groups; None where no class has two."""
        return self.score.balanced_accuracy

    @property
    def finetuned(self) -> QatReport | None:
        """How it was fine-tuned with int8 in mind; None where it was not."""
        return None if self.how is None else self.how.finetuned


def rows_of(model: bytes, frames: Frames, preprocess: Preprocess, *, exact: bool = False) -> Iterator[Features]:
    """Yield features (1, d) of frames at input size, each alone as a device computes it, on all cores."""
    runner = OnnxBackbone(model, threads=1, exact=exact)
    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(lambda frame: runner.features(preprocess.apply(frame)), frames)


def features_of(
    model: bytes, frames: Frames, preprocess: Preprocess, step: Callable[[], None], *, exact: bool = False
) -> Features:
    """Return features (n, d) of frames at input size, each alone as a device computes it, on all cores.

    Args:
        model: The ONNX file.
        frames: n images.
        preprocess: Of the backbone.
        step: Called after each image.
        exact: See `export.graph.OnnxBackbone`.
    """
    rows = []
    for row in rows_of(model, frames, preprocess, exact=exact):
        rows.append(row)
        step()
    return np.concatenate(rows)


def judge(
    features: Features,
    learned: Selection,
    fitted: Mask,
    what: str,
    groups: Sequence[str],
    rows: npt.NDArray[np.int64] | None = None,
) -> tuple[float, Codes, LeftOut, Calibration]:
    """Return the code scale, the codes, the left-out scores and the calibration of features.

    Args:
        features: (n, d) of the images learned from, or of `rows`.
        learned: All of them.
        fitted: (n,) of all of them, images that the backbone was trained on: not judged where others are there.
        what: The form's name, for the error.
        groups: (n,) of all of them, what to leave out together.
        rows: Of `learned`, where features are of some only.

    Raises:
        ExportError: all features are zero.
    """
    scale = _scale(features, what)
    codes = encode(features, scale)
    some = np.arange(len(learned.rows)) if rows is None else rows
    seen = fitted[some]
    only = ~seen if seen.any() and not seen.all() else None
    ids, left_together, samples = (
        [values[row] for row in some] for values in (learned.ids, groups, learned.samples)
    )
    left_out = leave_one_group_out(codes, ids, left_together, only=only, samples=samples)
    calibration = calibrate(left_out)
    if not np.isfinite(calibration.novelty_threshold):
        calibration = dataclasses.replace(calibration, novelty_threshold=NEVER)
    return scale, codes, left_out, calibration


def with_head(
    precision: str,
    profile: Profile | None,
    weights: str,
    model: bytes,
    features: Features,
    learned: Selection,
    fitted: Mask,
    beside: Form | None = None,
) -> Form:
    """Return a form with the head that its own codes make.

    Args:
        precision, profile, weights, model, features, fitted: See `Form`.
        learned: The images learned from.
        beside: The form it will be compared with: both leave out the same groups. None derives them here.

    Raises:
        ExportError: all features are zero.
    """
    if beside is None:
        codes = encode(features, _scale(features, precision))
        groups, note = left_out_together(learned.images, codes, learned.ids, learned.groups)
    else:
        groups, note = beside.groups, beside.grouping_note
    scale, codes, left_out, calibration = judge(features, learned, fitted, precision, groups)
    moments = Moments(codes.shape[1])
    moments.add(codes, learned.ids)
    return Form(
        precision,
        profile,
        weights,
        model,
        features,
        scale,
        codes,
        fitted,
        solve(moments, calibration=calibration),
        score(left_out, calibration),
        score(left_out, calibration, unknown_is_miss=False),
        left_out,
        groups,
        note,
    )


def _scale(features: Features, what: str) -> float:
    try:
        return fit_scale(features)
    except ValueError as error:
        raise ExportError(
            f"the {what} backbone gives the same for every image: {error}",
            hint="Use other weights, or check that the images are not all black.",
        ) from error


def against(reference: Form, other: Form) -> Paired:
    """Return how a form decides beside another one, on the images that both were judged on."""
    return paired((reference.left_out, reference.calibration), (other.left_out, other.calibration))
