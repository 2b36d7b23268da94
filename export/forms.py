"""The forms of a backbone, fp32 and int8: each with codes, head and score of its own, and the choice among them.

A form's codes come from that form's own ONNX file, run as a device runs it: one frame at a time. Which form a
channel starts with is decided by two measurements, the left-out score and the latency on this machine; devices
measure theirs again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from export.backbones import Backbone
from export.finetune import Frames
from export.graph import OnnxBackbone, cores, latencies_ms, to_onnx
from export.parity import KERNEL_TOLERANCE, code_difference, feature_cosine, fp32_difference
from export.progress import Log
from export.quantize import CALIBRATION_IMAGES, Weights, stratified, to_int8
from export.report import PrecisionReport
from export.selection import Selection
from sdk.codes import Codes, Features, encode, fit_scale
from sdk.errors import CalibrationFailed, ExportError, ParityFailed
from sdk.grouping import derive_groups
from sdk.head import Calibration, Head, Moments, solve
from sdk.preprocess import Preprocess
from sdk.score import LeftOut, Score, calibrate, leave_one_group_out, score

KERNEL_IMAGES: Final = 12
WORTH_A_POINT: Final = 0.01
"""int8 may cost this much balanced accuracy and still be chosen for its speed."""
WORTH_IN_TIME: Final = 0.95
"""int8 is faster when it takes at most this share of fp32's time; less is noise on a busy machine."""
NEVER: Final = 1e9
"""Novelty threshold that nothing reaches, where too few groups are known to set one."""
PROFILE: Final = "cpu"
FP32: Final = "fp32"
INT8: Final = "int8"


@dataclass(frozen=True)
class Form:
    """One form of the backbone, and everything made with it."""

    precision: str
    weights: str
    model: bytes
    features: Features
    scale: float
    codes: Codes
    head: Head
    left_out: LeftOut
    score: Score
    forced: Score
    cosine: float = 1.0
    kernel_difference: float = 0.0
    grouping_note: str | None = None

    @property
    def calibration(self) -> Calibration:
        """Of its head."""
        return self.head.calibration

    @property
    def accuracy(self) -> float:
        """Balanced, on left-out groups."""
        return self.score.balanced_accuracy


def make_forms(
    precisions: Sequence[str],
    backbone: Backbone,
    frames: Frames,
    learned: Selection,
    fitted: npt.NDArray[np.bool_],
    log: Log,
) -> tuple[float, list[Form], list[str]]:
    """Return torch's difference to ONNX, the forms made, fp32 first, and why int8 could not be made, if so."""
    preprocess = backbone.preprocess
    with log.stage("onnx", "Writing ONNX"):
        model = to_onnx(backbone)
        probes = stratified(learned.labels, KERNEL_IMAGES)
        pixels = np.concatenate([preprocess.apply(frames[row]) for row in probes])
        difference = fp32_difference(backbone, model, pixels)
    judged = ~fitted if fitted.any() and not fitted.all() else None

    def form(precision: str, weights: str, onnx: bytes) -> Form:
        words = f"Computing {precision} codes" + (f" ({weights} weights)" if precision == INT8 else "")
        with log.stage("codes", words, len(frames)) as step:
            features = features_of(onnx, frames, preprocess, step)
        with log.stage("head", "Scoring on groups left out"):
            return _with_head(precision, weights, onnx, features, learned, judged)

    fp32 = form(FP32, "32-bit float", model)
    if fp32.grouping_note is not None:
        log.warn(fp32.grouping_note)
    forms, refusals = [fp32], []
    if INT8 in precisions:
        calibration = stratified(learned.labels, CALIBRATION_IMAGES)
        try:
            for weights in (Weights.NARROW, Weights.WIDE):
                with log.stage("quantize", f"Quantizing to int8 ({weights.value} weights)"):
                    images = (preprocess.apply(frames[row]) for row in calibration)
                    int8 = to_int8(model, images, weights, backbone.feature_size)
                made = form(INT8, weights.value, int8)
                forms.append(_compared(made, fp32, pixels))
                if made.accuracy >= fp32.accuracy - WORTH_A_POINT:
                    break  # the faster form is good enough
        except (CalibrationFailed, ParityFailed) as error:
            if FP32 not in precisions:
                raise
            refusals.append(str(error))
            log.warn(f"There is no int8 form: {error}.")
    return difference, forms, refusals


def features_of(model: bytes, frames: Frames, preprocess: Preprocess, step: Callable[[], None]) -> Features:
    """Return features (n, d) of frames at input size, each alone as a device computes it, on all cores."""
    runner = OnnxBackbone(model, threads=1)
    with ThreadPoolExecutor(cores()) as pool:
        rows = []
        for row in pool.map(lambda frame: runner.features(preprocess.apply(frame)), frames):
            rows.append(row)
            step()
    return np.concatenate(rows)


def _with_head(
    precision: str,
    weights: str,
    model: bytes,
    features: Features,
    learned: Selection,
    judged: npt.NDArray[np.bool_] | None,
) -> Form:
    try:
        scale = fit_scale(features)
    except ValueError as error:
        raise ExportError(
            f"the {precision} backbone gives the same for every image: {error}",
            hint="Use other weights, or check that the images are not all black.",
        ) from error
    codes = encode(features, scale)
    grouping = derive_groups(codes, learned.ids, learned.groups)
    left_out: LeftOut = leave_one_group_out(
        codes, learned.ids, grouping.groups, only=judged, samples=learned.samples
    )
    calibration = calibrate(left_out)
    if not np.isfinite(calibration.novelty_threshold):
        calibration = dataclasses.replace(calibration, novelty_threshold=NEVER)
    moments = Moments(codes.shape[1])
    moments.add(codes, learned.ids)
    return Form(
        precision,
        weights,
        model,
        features,
        scale,
        codes,
        solve(moments, calibration=calibration),
        left_out,
        score(left_out, calibration),
        score(left_out, calibration, unknown_is_miss=False),
        grouping_note=grouping.note(),
    )


def _compared(form: Form, fp32: Form, pixels: npt.NDArray[np.float32]) -> Form:
    """Return an int8 form with its distance to fp32, and to what other processors would give."""
    ours = OnnxBackbone(form.model).features(pixels)
    exact = OnnxBackbone(form.model, exact=True).features(pixels)
    return dataclasses.replace(
        form,
        cosine=feature_cosine(fp32.features, form.features),
        kernel_difference=code_difference(encode(ours, form.scale), encode(exact, form.scale)),
    )


def choose(
    precisions: Sequence[str],
    forms: list[Form],
    refusals: list[str],
    frame: Frames,
    preprocess: Preprocess,
    log: Log,
) -> tuple[list[Form], str, list[PrecisionReport]]:
    """Return the forms to keep, the channel's own first, why it is first, and the report on all of them."""
    fp32, candidates = forms[0], forms[1:]
    int8 = None
    for form in candidates:  # the faster first
        if int8 is None or form.accuracy > int8.accuracy + WORTH_A_POINT:
            int8 = form
    compared = [fp32] if int8 is None else [fp32, int8]
    with log.stage("latency", "Measuring latency"):
        measured = latencies_ms({f.precision: f.model for f in compared}, preprocess.apply(frame[0]))
    kept = [form for form in compared if form.precision in precisions]
    if int8 is None:
        reason = refusals[0] if refusals else "No other was asked for."
        first = fp32
    else:
        first, reason = first_form(fp32, int8, measured)
        if len(kept) == 1:
            first, reason = kept[0], f"No other was asked for. {reason}"
    kept.sort(key=lambda form: form is not first)
    reports = [
        PrecisionReport(
            precision=form.precision,
            profile=PROFILE,
            weights=form.weights,
            kept=form in kept,
            size_bytes=len(form.model),
            latency_ms=round(measured[form.precision], 3) if form in compared else None,
            feature_cosine=form.cosine,
            kernel_difference=form.kernel_difference,
            balanced_accuracy=form.accuracy,
            forced_choice=form.forced.balanced_accuracy,
            verdict=_verdict(form, kept, int8),
        )
        for form in forms
    ]
    return kept, reason, reports


def first_form(fp32: Form, int8: Form, measured: Mapping[str, float]) -> tuple[Form, str]:
    """Return which of the two a channel should run, and why."""
    lost = fp32.accuracy - int8.accuracy
    share = measured[INT8] / measured[FP32]
    figures = (
        f"int8 takes {measured[INT8]:.1f} ms a frame here, fp32 {measured[FP32]:.1f}; left-out balanced accuracy "
        f"{int8.accuracy:.1%} and {fp32.accuracy:.1%}."
    )
    if int8.kernel_difference > KERNEL_TOLERANCE:
        return fp32, f"{figures} fp32: int8 codes would differ from one kind of processor to another."
    if lost > WORTH_A_POINT:
        return fp32, f"{figures} fp32: int8 costs {100 * lost:.1f} points."
    if share > WORTH_IN_TIME:
        return fp32, f"{figures} fp32: int8 is not faster on this machine."
    return int8, f"{figures} int8: faster, and not more than a point worse."


def _verdict(form: Form, kept: list[Form], int8: Form | None) -> str:
    if form in kept:
        words = "first" if form is kept[0] else "kept"
        if form.kernel_difference > KERNEL_TOLERANCE:
            words += (
                f", but codes differ by {form.kernel_difference:.1f} between processors; devices may refuse it"
            )
        return words
    if form.precision == FP32:
        return "not asked for; the reference"
    assert int8 is not None
    return f"not kept: {int8.weights} weights did better"
