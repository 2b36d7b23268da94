"""The int8 form for one profile: ranges, then layers left out, then fine-tuning, as far as the figures ask for.

1. Three ways to choose ranges are compared on some of the images by the features' cosine to fp32's. One that
   loses balanced accuracy on left-out groups beyond chance drops out. The score does not choose: the best of three
   scores would flatter.
2. Where that loses too much, the layers that cost the most stay fp32 (`export.sensitivity`).
3. Where that still loses too much, the backbone is fine-tuned with int8 in mind (`export.qat`) and goes the same
   way. It can be judged on images that it was not fine-tuned on only, so it is taken where it is better beyond
   chance on these, or where the features were far from fp32's.

"Too much" is more balanced accuracy than allowed, and more than chance; or features so far from fp32's that the
few left-out groups of a small set are no comfort.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from export.backbones import Backbone
from export.finetune import Frames
from export.graph import OnnxBackbone, Pixels, to_onnx
from export.judged import FP32, INT8, Form, Mask, against, features_of, judge, with_head
from export.paired import paired
from export.parity import check_form, code_difference, feature_cosine
from export.profiles import PLACEMENTS, Profile
from export.progress import Log
from export.qat import QatOutcome, finetune_for_int8
from export.quantize import (
    CALIBRATION_IMAGES,
    Method,
    Prepared,
    Ranges,
    calibrate,
    on_training_grid,
    prepare,
    smoothed,
    stratified,
    to_int8,
)
from export.report import MethodReport, QatReport, QuantizationReport, SensitivityReport, UnitReport
from export.selection import Selection
from export.sensitivity import SENSITIVITY_IMAGES, Sensitivity, find_sensitive, growth
from sdk.codes import encode
from sdk.score import score

COMPARED_IMAGES: Final = 300
"""Enough to tell ways of choosing ranges apart by accuracy where they differ by a point or two."""
WITHIN: Final = 0.01
"""Forms whose accuracy is this near to each other are told apart by the cosine, which chance hardly moves."""
MAX_LOSS: Final = 0.005
"""Balanced accuracy that int8 may lose before more is done about it: what the project asks of a saturated set."""
NEAR: Final = 0.95
"""Cosine of features at which nothing more is done without a measured loss, and at which exclusion stops."""
BUDGET_S: Final = 300.0
"""For layers and fine-tuning together; half to each."""


@dataclass(frozen=True)
class Plan:
    """What may be spent on int8.

    Attributes:
        profiles: To make forms for.
        max_loss: Balanced accuracy that may be lost before layers are left out.
        qat: Fine-tune where leaving layers out is not enough.
        budget_s: For both together.
        seed: Of the fine-tuning.
        methods: Ways to choose ranges that are compared, at least one.
    """

    profiles: tuple[Profile, ...] = (Profile.CPU,)
    max_loss: float = MAX_LOSS
    qat: bool = True
    budget_s: float = BUDGET_S
    seed: int = 0
    methods: tuple[Method, ...] = tuple(Method)


@dataclass(frozen=True)
class Tried:
    """Ranges by one method, tried on some of the images.

    Attributes:
        ranges: What was tried.
        cosine: Of the features to fp32's.
        accuracy: Balanced, on left-out groups; None where no class has two.
        loses: Against fp32 on the same images, beyond chance.
    """

    ranges: Ranges
    cosine: float
    accuracy: float | None
    loses: bool


def nearest(found: Sequence[Tried]) -> Tried:
    """Return the ranges that give the nearest features to fp32's, of those that lose nothing if there are any."""
    return max(found, key=lambda tried: (not tried.loses, tried.cosine))


def worth_training(fp32: Form, untrained: Form, trained: Form) -> bool:
    """Return whether the form fine-tuned for int8 is taken, which leaves fewer images to judge anything by.

    Features are compared on images that it was not fine-tuned on, where there are any.
    """
    change = against(untrained, trained)
    if untrained.cosine >= NEAR:
        return change.gains(0.0)
    unseen = np.flatnonzero(~trained.fitted) if not trained.fitted.all() else np.arange(len(trained.fitted))
    before, after = (feature_cosine(fp32.features[unseen], form.features[unseen]) for form in (untrained, trained))
    return after > before and not change.loses(WITHIN)


@dataclass(frozen=True)
class Int8Maker:
    """Makes int8 forms of one backbone, for any profile.

    Attributes:
        backbone: In torch, for fine-tuning.
        frames: Images learned from, at input size.
        learned: The same images' labels and groups.
        fp32: The form to compare with.
        plan: What may be spent.
        log: Told how it goes.
    """

    backbone: Backbone
    frames: Frames
    learned: Selection
    fp32: Form
    plan: Plan
    log: Log

    def make(self, profile: Profile) -> Form:
        """Return the int8 form for a profile.

        Raises:
            CalibrationFailed: the backbone cannot be quantized.
            ParityFailed: int8 features have nothing to do with fp32's.
        """
        prepared = self._prepared
        with self.log.stage(
            "calibrate", f"Comparing ranges for int8 ({profile.value})", len(self.plan.methods)
        ) as step:
            ranges, methods = self._compare(prepared, profile, step)
        best = self._form(prepared, ranges, profile, (), self.fp32.fitted)
        sensitivity, qat = None, None
        if self._wanting(best):
            sensitivity = self._sensitivity(prepared, ranges, profile)
            if sensitivity.excluded:
                best = self._better(best, self._form(prepared, ranges, profile, sensitivity.excluded, best.fitted))
        if self._wanting(best) and self.plan.qat:
            trained, outcome = self._fine_tuned(profile, ranges.method, best.excluded)
            used = worth_training(self.fp32, best, trained)
            qat = _qat_report(outcome, len(self._training_rows), used=used)
            best = trained if used else best
        check_form(INT8, self.fp32.features, best.features)
        how = QuantizationReport(
            profile=profile.value,
            methods=methods,
            sensitivity=None if sensitivity is None else _sensitivity_report(prepared, sensitivity),
            excluded=list(best.excluded),
            excluded_share_of_weights=growth(prepared, best.excluded),
            qat=qat,
        )
        return dataclasses.replace(best, how=how)

    @cached_property
    def _prepared(self) -> Prepared:
        return smoothed(prepare(self.fp32.model), self._pixels(self._calibration_rows()))

    @cached_property
    def _ranges(self) -> dict[Method, Ranges]:
        """Ranges by each method: the same for every profile."""
        images = self._pixels(self._calibration_rows())
        return {method: calibrate(self._prepared, images, method) for method in self.plan.methods}

    def _wanting(self, form: Form) -> bool:
        return form.against.loses(self.plan.max_loss) or form.cosine < NEAR

    def _better(self, one: Form, other: Form) -> Form:
        """Return the form that loses less; the nearer features decide where the difference is within chance.

        Both are judged on the same images: of a fine-tuned form beside one that is not, see `worth_training`.
        """
        change = against(one, other)
        if change.gains(WITHIN) or change.loses(WITHIN):
            return other if change.difference > 0 else one
        return other if other.cosine > one.cosine else one

    def _pixels(self, rows: Sequence[int]) -> list[Pixels]:
        return [self.backbone.preprocess.apply(self.frames[row]) for row in rows]

    def _calibration_rows(self) -> list[int]:
        return stratified(self.learned.labels, CALIBRATION_IMAGES, self.learned.groups)

    def _compare(
        self, prepared: Prepared, profile: Profile, step: Callable[[], None]
    ) -> tuple[Ranges, list[MethodReport]]:
        """Return the ranges whose features are the nearest to fp32's on some of the images, and how each did.

        A method that loses accuracy to fp32 beyond chance is not taken, unless all do.
        """
        some = set(stratified(self.learned.labels, COMPARED_IMAGES, self.learned.groups))
        # Validation groups, which decide after fine-tuning, are all among them.
        rows = np.array(sorted(some | set(np.flatnonzero(self.learned.validation)[:COMPARED_IMAGES].tolist())))
        fitted, groups = self.fp32.fitted, self.fp32.groups
        exact = judge(self.fp32.features[rows], self.learned, fitted, FP32, groups, rows)[2:]
        found: list[Tried] = []
        for method in self.plan.methods:
            ranges = self._ranges[method]
            model = to_int8(prepared, ranges, profile, self.backbone.feature_size)
            features = features_of(model, self.frames[rows], self.backbone.preprocess, lambda: None)
            judged = judge(features, self.learned, fitted, INT8, groups, rows)[2:]
            cosine = feature_cosine(self.fp32.features[rows], features)
            accuracy = score(*judged).balanced_accuracy
            found.append(Tried(ranges, cosine, accuracy, paired(exact, judged).loses(self.plan.max_loss)))
            step()
        chosen = nearest(found)
        reports = [
            MethodReport(
                method=tried.ranges.method.value,
                feature_cosine=tried.cosine,
                balanced_accuracy=tried.accuracy,
                chosen=tried is chosen,
            )
            for tried in found
        ]
        return chosen.ranges, reports

    def _form(
        self, prepared: Prepared, ranges: Ranges, profile: Profile, without: Sequence[str], fitted: Mask
    ) -> Form:
        """Return the form with a head of its own, compared with fp32."""
        model = to_int8(prepared, ranges, profile, self.backbone.feature_size, without=without)
        exact = profile is Profile.TENSORRT
        words = f"Computing int8 codes ({profile.value}{', some layers fp32' if without else ''})"
        with self.log.stage("codes", words, len(self.frames)) as step:
            features = features_of(model, self.frames, self.backbone.preprocess, step, exact=exact)
        with self.log.stage("head", "Scoring on groups left out"):
            form = with_head(
                INT8, profile, PLACEMENTS[profile].weights, model, features, self.learned, fitted, self.fp32
            )
        pixels = np.concatenate(self._pixels(stratified(self.learned.labels, SENSITIVITY_IMAGES)))
        ours = encode(OnnxBackbone(model).features(pixels), form.scale)
        exactly = encode(OnnxBackbone(model, exact=True).features(pixels), form.scale)
        return dataclasses.replace(
            form,
            cosine=feature_cosine(self.fp32.features, features),
            kernel_difference=code_difference(ours, exactly),
            against=against(self.fp32, form),
            excluded=tuple(without),
        )

    def _sensitivity(self, prepared: Prepared, ranges: Ranges, profile: Profile) -> Sensitivity:
        """Return which layers cost the most, on images that calibration did not see."""
        seen = set(self._calibration_rows())
        left = [row for row in range(len(self.frames)) if row not in seen] or sorted(seen)
        chosen = stratified([self.learned.labels[row] for row in left], SENSITIVITY_IMAGES)
        rows = [left[i] for i in chosen]
        with self.log.stage("sensitivity", f"Looking for layers that int8 harms ({profile.value})"):
            return find_sensitive(
                prepared,
                ranges,
                profile,
                self.fp32.features[rows],
                np.concatenate(self._pixels(rows)),
                wanted=NEAR,
                budget_s=self.plan.budget_s / 2,
                on_unit=self.log.listener.step,
            )

    @cached_property
    def _training_rows(self) -> npt.NDArray[np.int64]:
        rows = np.flatnonzero(~self.learned.validation)
        return rows if len(rows) else np.arange(len(self.frames))

    def _trained(self, profile: Profile) -> tuple[Prepared, QatOutcome]:
        """Return the backbone fine-tuned for the profile's grid, and how that went."""
        with self.log.stage("qat", f"Fine-tuning with int8 in mind ({profile.value})"):
            backbone, outcome = finetune_for_int8(
                self.backbone,
                self.frames,
                self._training_rows,
                profile,
                seed=self.plan.seed,
                budget_s=self.plan.budget_s / 2,
                on_step=self.log.listener.step,
            )
            return prepare(to_onnx(backbone)), outcome

    def _fine_tuned(self, profile: Profile, method: Method, spare: Sequence[str]) -> tuple[Form, QatOutcome]:
        """Return the form that quantization-aware fine-tuning gives, with the spare layers fp32 if need be."""
        prepared, outcome = self._trained(profile)
        ranges = on_training_grid(calibrate(prepared, self._pixels(self._calibration_rows()), method), profile)
        fitted = self.fp32.fitted.copy()
        fitted[self._training_rows] = True
        form = self._form(prepared, ranges, profile, (), fitted)
        if spare and self._wanting(form):
            # The same network gives the same graph, so the layers have the same names.
            form = self._better(form, self._form(prepared, ranges, profile, spare, fitted))
        return form, outcome


def _sensitivity_report(prepared: Prepared, found: Sensitivity) -> SensitivityReport:
    whole = sum(prepared.weight_bytes)
    return SensitivityReport(
        feature_cosine=found.base_cosine,
        units=[
            UnitReport(
                layers=list(unit.layers), share_of_weights=unit.weight_bytes / whole, feature_cosine=unit.cosine
            )
            for unit in found.units
        ],
        worst=list(found.excluded),
        feature_cosine_without=found.cosine,
        seconds=round(found.seconds, 1),
    )


def _qat_report(outcome: QatOutcome, images: int, *, used: bool) -> QatReport:
    return QatReport(
        steps=outcome.steps,
        images=images,
        first_loss=outcome.first_loss,
        last_loss=outcome.last_loss,
        seconds=round(outcome.seconds, 1),
        used=used,
    )
