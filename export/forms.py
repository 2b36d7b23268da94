"""The forms of a backbone, fp32, fp16 and int8: each with codes, head and score of its own, and the choice of one.

Which form a channel starts with is decided by two measurements, the left-out score and the latency on this
machine; devices measure theirs again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from export.backbones import Backbone
from export.finetune import Frames
from export.graph import latencies_ms, to_onnx
from export.int8 import Int8Maker, Plan
from export.judged import FP16, FP32, INT8, Form, against, features_of, with_head
from export.parity import (
    FP16_TOLERANCE,
    FP32_TOLERANCE,
    KERNEL_TOLERANCE,
    TOLERANCES,
    check_form,
    difference,
    feature_cosine,
    fp32_difference,
)
from export.profiles import Profile
from export.progress import Log
from export.quantize import stratified, to_fp16
from export.report import NO_TWO_GROUPS, ParityReport, PrecisionReport, QuantizationReport
from export.selection import Selection
from sdk.errors import CalibrationFailed, ParityFailed
from sdk.preprocess import Preprocess

__all__ = [
    "FP16", "FP32", "INT8", "Form", "choose", "features_of", "first_form", "make_forms", "parity_reports",
    "quantization_reports",
]  # fmt: skip

KERNEL_IMAGES: Final = 12
WORTH_A_POINT: Final = 0.01
"""int8 may cost this much balanced accuracy and still be chosen for its speed."""
WORTH_IN_IMAGES: Final = 0.5
"""A form that can be judged on less than this share of fp32's images does not come first: the score, the operating
point and every trial on a device would rest on few."""
WORTH_IN_TIME: Final = 0.95
"""int8 is faster when it takes at most this share of fp32's time; less is noise on a busy machine."""


def make_forms(
    precisions: Sequence[str],
    backbone: Backbone,
    frames: Frames,
    learned: Selection,
    fitted: npt.NDArray[np.bool_],
    log: Log,
    plan: Plan | None = None,
) -> tuple[float, list[Form], list[str]]:
    """Return torch's difference to ONNX, the forms made, fp32 first, and why others could not be made, if so.

    Args:
        precisions: To make, of fp32, fp16 and int8; fp32 is made in any case.
        backbone: In torch.
        frames: Images learned from, at input size.
        learned: Their labels and groups.
        fitted: (n,) images that the backbone was trained on.
        log: Told how it goes.
        plan: What may be spent on int8, and for which profiles.
    """
    preprocess, plan = backbone.preprocess, plan or Plan()
    with log.stage("onnx", "Writing ONNX"):
        model = to_onnx(backbone)
        probes = stratified(learned.labels, KERNEL_IMAGES)
        pixels = np.concatenate([preprocess.apply(frames[row]) for row in probes])
        largest = fp32_difference(backbone, model, pixels)

    def form(precision: str, weights: str, onnx: bytes, beside: Form | None = None) -> Form:
        with log.stage("codes", f"Computing {precision} codes", len(frames)) as step:
            features = features_of(onnx, frames, preprocess, step)
        with log.stage("head", "Scoring on groups left out"):
            return with_head(precision, None, weights, onnx, features, learned, fitted, beside)

    fp32 = form(FP32, "32-bit float", model)
    if fp32.grouping_note is not None:
        log.warn(fp32.grouping_note)
    forms, refusals = [fp32], []

    def half() -> Form:
        with log.stage("quantize", "Converting to fp16"):
            onnx = to_fp16(model, backbone.feature_size)
        made = form(FP16, "16-bit float", onnx, fp32)
        check_form(FP16, fp32.features, made.features)
        return dataclasses.replace(
            made, cosine=feature_cosine(fp32.features, made.features), against=against(fp32, made)
        )

    maker = Int8Maker(backbone, frames, learned, fp32, plan, log)
    wanted = [(FP16, half)] if FP16 in precisions else []
    if INT8 in precisions:
        wanted += [(f"{INT8} ({p.value})", lambda p=p: maker.make(p)) for p in plan.profiles]  # type: ignore[misc]
    for what, make in wanted:
        try:
            forms.append(make())
        except (CalibrationFailed, ParityFailed) as error:
            if FP32 not in precisions:
                raise
            refusals.append(str(error))
            log.warn(f"There is no {what} form: {error}.")
    return largest, forms, refusals


def choose(
    precisions: Sequence[str],
    forms: list[Form],
    refusals: list[str],
    frame: Frames,
    preprocess: Preprocess,
    log: Log,
) -> tuple[list[Form], str, list[PrecisionReport]]:
    """Return the forms to keep, the channel's own first, why it is first, and the report on all of them."""
    with log.stage("latency", "Measuring latency"):
        measured = latencies_ms({form.name: form.model for form in forms}, preprocess.apply(frame[0]))
    fp32 = forms[0]
    int8 = next((form for form in forms if form.profile is Profile.CPU), None)
    kept = [form for form in forms if form.precision in precisions]
    first, reason = fp32, refusals[0] if refusals else "No other was asked for."
    if int8 is not None:
        first, reason = first_form(fp32, int8, measured)
    elif len(forms) > 1:
        reason = "The others are made for other processors than this machine's."
    if first not in kept:
        first, reason = kept[0], f"No other was asked for. {reason}" if len(kept) == 1 else reason
    kept.sort(key=lambda form: form is not first)
    reports = [_report(form, kept, measured) for form in forms]
    return kept, reason, reports


def first_form(fp32: Form, int8: Form, measured: Mapping[str, float]) -> tuple[Form, str]:
    """Return which of the two a channel should run, and why."""
    share = measured[INT8] / measured[FP32]
    found = int8.against
    if fp32.accuracy is None or int8.accuracy is None:
        return fp32, (
            f"int8 takes {measured[INT8]:.1f} ms a frame here, fp32 {measured[FP32]:.1f}. fp32: what int8 costs "
            f"is {NO_TWO_GROUPS}."
        )
    figures = (
        f"int8 takes {measured[INT8]:.1f} ms a frame here, fp32 {measured[FP32]:.1f}; on the same left-out images "
        f"its balanced accuracy is {_points(found.difference)} +- {100 * found.error:.1f} points."
    )
    if int8.kernel_difference > KERNEL_TOLERANCE:
        return fp32, f"{figures} fp32: int8 codes would differ from one kind of processor to another."
    if found.loss > WORTH_A_POINT:
        return fp32, f"{figures} fp32: int8 costs {100 * found.loss:.1f} points."
    if int8.score.samples < WORTH_IN_IMAGES * fp32.score.samples:
        return fp32, (
            f"{figures} fp32: int8 can be judged on {int8.score.samples} images only, fp32 on "
            f"{fp32.score.samples}."
        )
    if share >= 1:
        return fp32, f"{figures} fp32: int8 is not faster on this machine."
    if share > WORTH_IN_TIME:
        return fp32, f"{figures} fp32: int8 saves less than {1 - WORTH_IN_TIME:.0%} of the time on this machine."
    return int8, f"{figures} int8: faster, and not more than a point worse."


def parity_reports(
    largest: float, forms: Sequence[Form], frames: Frames, preprocess: Preprocess
) -> list[ParityReport]:
    """Return how far the forms are from each other on a few of the images that were learned from.

    Args:
        largest: torch against ONNX fp32, from `make_forms`.
        forms: From `make_forms`, fp32 first.
        frames: The images to compare on.
        preprocess: Of the backbone.
    """
    reports = [
        ParityReport(
            precision=FP32,
            profile=_profile(forms[0]),
            reference="torch",
            largest_difference=largest,
            feature_cosine=1.0,
            allowed=f"a largest difference of {FP32_TOLERANCE:g}",
            reason="both sum in fp32, in another order; a wrong operator costs a hundred times as much",
        )
    ]
    reference = features_of(forms[0].model, frames, preprocess, lambda: None)
    for form in forms[1:]:
        found = difference(reference, features_of(form.model, frames, preprocess, lambda: None, exact=form.exact))
        allowed = TOLERANCES.get(form.precision, FP16_TOLERANCE)
        reports.append(
            ParityReport(
                precision=form.precision,
                profile=_profile(form),
                reference=FP32,
                largest_difference=found.largest,
                feature_cosine=found.cosine,
                allowed=f"a mean cosine of {allowed.least_cosine:g}",
                reason=allowed.reason,
            )
        )
    return reports


def quantization_reports(forms: Sequence[Form]) -> list[QuantizationReport]:
    """Return how each int8 form came about."""
    return [form.how for form in forms if form.how is not None]


def _report(form: Form, kept: Sequence[Form], measured: Mapping[str, float]) -> PrecisionReport:
    return PrecisionReport(
        precision=form.precision,
        profile=_profile(form),
        name=form.name,
        weights=form.weights,
        kept=form in kept,
        size_bytes=len(form.model),
        latency_ms=round(measured[form.name], 3),
        feature_cosine=form.cosine,
        kernel_difference=form.kernel_difference,
        balanced_accuracy=form.accuracy,
        images=form.score.samples,
        forced_choice=form.forced.balanced_accuracy,
        difference=form.against.difference,
        difference_error=form.against.error,
        verdict=_verdict(form, kept, measured),
    )


def _profile(form: Form) -> str:
    if form.profile is not None:
        return form.profile.value
    return "gpu" if form.precision == FP16 else "any"


def _verdict(form: Form, kept: Sequence[Form], measured: Mapping[str, float]) -> str:
    """Say what the figures say: its place, its loss and whether that is chance, and its time."""
    if form not in kept:
        return "not asked for; the reference"
    words = ["first" if form is kept[0] else "kept"]
    if form.precision == FP32:
        return words[0]
    found = form.against
    # Rounding knows nothing that fp32 does not: a gain is no more than as good.
    words.append(
        "what it costs is not known"
        if form.accuracy is None
        else f"loses {100 * found.loss:.1f} points"
        if found.loses(0.0)
        else "as good as fp32"
        if found.gains(0.0)
        else "as good as fp32 within chance"
    )
    if form.finetuned is not None:
        words.append(form.finetuned.words())
    share = measured[form.name] / measured[FP32]
    if _profile(form) == Profile.CPU.value:
        words.append(f"takes {share:.2f} of fp32's time here")
    else:
        words.append(f"made for {'TensorRT' if form.profile else 'GPUs'}: its time here says nothing")
    if form.profile is Profile.CPU and form.kernel_difference > KERNEL_TOLERANCE:
        words.append(f"codes differ by {form.kernel_difference:.1f} between processors; devices may refuse it")
    return "; ".join(words)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
