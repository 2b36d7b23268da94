"""What an export came to, as plain values: printed, written as JSON by `--json`, and told on the model card.

Names are kept from version to version; members may be added (docs/export.md lists them).
"""

from __future__ import annotations

from typing import Final

import msgspec

from export.set_report import RefusedImage, SetReport, encoded


class ClassCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Images of one class, and how the split deals them out. `learned` is false for a class held back."""

    name: str
    images: int
    groups: int
    train: int
    validation: int
    stream: int
    test: int
    learned: bool


class Images(msgspec.Struct, frozen=True, kw_only=True):
    """The labelled set. `grouped` says whether it names groups; if not, each image is its own."""

    folder: str
    usable: int
    groups: int
    grouped: bool
    sha256: str
    refused: list[RefusedImage]
    classes: list[ClassCounts]


class BackboneReport(msgspec.Struct, frozen=True, kw_only=True):
    """The network and where its weights come from."""

    name: str
    weights: str
    weights_sha256: str | None
    licence: str
    parameters: int
    feature_size: int
    input_px: tuple[int, int]
    """Width, height."""


class EpochReport(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of training the backbone."""

    number: int
    loss: float
    balanced_accuracy: float | None


class StrategyReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the backbone was trained, and why so. `norms` says what was done with batch norm."""

    strategy: str
    reason: str
    norms: str = ""
    epochs: int
    best_epoch: int
    trained_weights: int
    history: list[EpochReport]


class ReadinessReport(msgspec.Struct, frozen=True, kw_only=True):
    """A class that fine-tuning did not see, taught to the head with a few labels: its recall, and the others'."""

    held_back: str
    recall: float
    others: float


class DifferenceReport(msgspec.Struct, frozen=True, kw_only=True):
    """Balanced accuracy minus that of frozen features, in points, paired by group, and its standard error.

    `low` and `high` bound it from one side each, at 95 %.
    """

    points: float
    error: float
    low: float
    high: float


class TrialReport(msgspec.Struct, frozen=True, kw_only=True):
    """A strategy, tried on groups left out of the images to learn from, or `skipped` for the reason given.

    `auroc` is the mean over classes of one against the others. Only finalists have `readiness`.
    """

    name: str
    start: str
    strategy: str
    epochs: int
    estimate_s: float
    seconds: float
    skipped: str
    chosen: bool
    balanced_accuracy: float | None
    auroc: float | None
    against_frozen: DifferenceReport | None
    readiness: list[ReadinessReport]


class TransferReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice of the strategy rests on.

    `negative_transfer` has a sentence for each pretrained start that is worse than none and each fine-tuning that
    is worse than frozen features. `source_distance` is None where the weights do not say what they learned on.
    """

    judged_images: int
    judged_groups: int
    labels_for_new_class: int
    estimate_s: float
    budget_s: float | None
    negative_transfer: list[str]
    source_distance: float | None
    source_distance_words: str
    source_distance_limits: str


class ClassScoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """Recall of a class on left-out groups, with its 95 % interval.

    `scored` is false where one group has it, and where none of its images could be judged: `samples` is 0 then.
    """

    name: str
    recall: float
    low: float
    high: float
    samples: int
    groups: int
    scored: bool

    def unscored(self) -> str:
        """Return why there is no recall, in a few words."""
        return "one group only" if self.samples else "not judged"


class ScoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """The honest score: each sample judged by the head that never saw its group.

    `balanced_accuracy` counts "unknown" as a miss, `forced_choice` asks for the best class all the same; both are
    null where no class has two groups, and the interval is 0 to 1 then. `samples` and `groups` are those of
    classes that are judged, `unjudged` the images of classes that one group has.
    """

    balanced_accuracy: float | None
    low: float
    high: float
    forced_choice: float | None
    samples: int
    groups: int
    unjudged: int = 0
    classes: list[ClassScoreReport]


class MethodReport(msgspec.Struct, frozen=True, kw_only=True):
    """One way to choose ranges, tried on some of the images; see `export.quantize.Method`."""

    method: str
    feature_cosine: float
    balanced_accuracy: float | None
    chosen: bool


class UnitReport(msgspec.Struct, frozen=True, kw_only=True):
    """Neighbouring layers, and the cosine of features to fp32's when only these stay fp32."""

    layers: list[str]
    share_of_weights: float
    feature_cosine: float


class SensitivityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Which layers cost int8 the most, on a few images in exact arithmetic.

    `worst` are those that were left out together, and `feature_cosine_without` is what that gave.
    """

    feature_cosine: float
    units: list[UnitReport]
    worst: list[str]
    feature_cosine_without: float
    seconds: float


class QatReport(msgspec.Struct, frozen=True, kw_only=True):
    """Quantization-aware fine-tuning: how long, on how many images, and how its loss fell.

    `used` where what it gave was kept.
    """

    steps: int
    images: int
    first_loss: float
    last_loss: float
    seconds: float
    used: bool

    def words(self) -> str:
        """Return what was done, in a few words."""
        return f"fine-tuned for int8 on {self.images} images ({self.steps} steps)"


class QuantizationReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the int8 form of one profile came about. `sensitivity` and `qat` are null where they were not needed.

    `excluded` are the layers that stay fp32 in the form that was made.
    """

    profile: str
    methods: list[MethodReport]
    sensitivity: SensitivityReport | None
    excluded: list[str]
    excluded_share_of_weights: float
    qat: QatReport | None

    @property
    def finetuned(self) -> QatReport | None:
        """How the form that was made was fine-tuned; None where it was not."""
        return self.qat if self.qat is not None and self.qat.used else None


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """How far a form's features are from what they are held against, on the same few images.

    Attributes:
        precision, profile: Of the form.
        reference: `torch` for fp32, `fp32` for the others.
        largest_difference: Of a feature, in units of their root mean square.
        feature_cosine: Mean over the images.
        allowed: In words, with the figure.
        reason: Why so much is allowed.
    """

    precision: str
    profile: str
    reference: str
    largest_difference: float
    feature_cosine: float
    allowed: str
    reason: str


class PrecisionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One form of the backbone.

    Attributes:
        precision: fp32, fp16 or int8.
        profile: What the form is made for: `any`, `gpu`, `cpu` or `tensorrt`.
        name: What the bundle calls it.
        weights: How its weights are stored.
        kept: It is in the bundle.
        size_bytes: Of the ONNX file.
        latency_ms: Median of one frame on this machine, all cores, all forms in turn.
        feature_cosine: Mean cosine of its features to fp32's; 1 for fp32.
        kernel_difference: Mean difference of a code, of 127, between this processor's integer kernels and the
            file's exact arithmetic: what another processor may differ by. 0 for fp32.
        balanced_accuracy: On left-out groups, the head fitted on its own codes; null where no class has two.
        images: That it was judged on.
        forced_choice: The same without "unknown".
        difference: Of balanced accuracy to fp32's, on the images that both were judged on.
        difference_error: Its standard error; each group is one draw.
        verdict: In words, from these figures.
    """

    precision: str
    profile: str
    name: str
    weights: str
    kept: bool
    size_bytes: int
    latency_ms: float
    feature_cosine: float
    kernel_difference: float
    balanced_accuracy: float | None
    images: int
    forced_choice: float | None
    difference: float
    difference_error: float
    verdict: str


class TensorRtReport(msgspec.Struct, frozen=True, kw_only=True):
    """One precision of the bundle, and TensorRT.

    Attributes:
        precision: Which.
        problems: What TensorRT would not take; empty where the file keeps to its rules.
        engine: File name of the engine made on this machine; None where none was asked for or made.
        gpu, version: What it was made for and by.
        kept: It was there already.
        seconds: Its build took.
        note: Why there is none, where one was asked for.
    """

    precision: str
    problems: list[str]
    engine: str | None = None
    gpu: str = ""
    version: str = ""
    kept: bool = False
    seconds: float = 0.0
    note: str = ""


class ReadoutReport(msgspec.Struct, frozen=True, kw_only=True):
    """One way to read features from the backbone, tried by `--levels auto`.

    Attributes:
        input_px: Side of the input.
        pool: Global pooling of the last level; null is the weights' own.
        levels: How many levels the features are read from.
        feature_size: d.
        latency_ms: Median of one fp32 frame on this machine, all cores, at this input size with all levels read.
        balanced_accuracy: Best class whatever its novelty, on left-out groups.
        difference: To the first of the list, the default, on the same images.
        standard_error: Of the difference.
        chosen: It is the one that the bundle uses.
        verdict: In words.
    """

    input_px: int
    pool: str | None
    levels: int
    feature_size: int
    latency_ms: float
    balanced_accuracy: float
    difference: float
    standard_error: float
    chosen: bool
    verdict: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an export reports. `seconds` is wall time by stage."""

    bundle: str
    bundle_sha256: str
    size_bytes: int
    name: str
    created_utc: str
    images: Images
    image_set: SetReport
    seed: int
    held_back: list[str]
    base_samples: int
    base_codes: int
    """Of them, those whose codes are in the bundle; of the others it has exact sums."""
    backbone: BackboneReport
    strategy: StrategyReport
    torch_onnx_difference: float
    score: ScoreReport
    false_alarm_rate: float
    precision: str
    precision_reason: str
    precisions: list[PrecisionReport]
    strategies: list[TrialReport] = []
    transfer: TransferReport | None = None
    parity: list[ParityReport] = []
    quantization: list[QuantizationReport] = []
    warnings: list[str]
    seconds: dict[str, float]
    tool_versions: dict[str, str]
    tensorrt: list[TensorRtReport] = []
    readouts: list[ReadoutReport] = []
    """What `--levels auto` tried, the default first; empty where it was not asked."""

    @property
    def only_class(self) -> str | None:
        """The name of the only class that was learned; None where there are several to tell apart."""
        learned = [one.name for one in self.images.classes if one.learned]
        return learned[0] if len(learned) == 1 else None

    @property
    def measure(self) -> str:
        """What `balanced_accuracy` is here: of one class it is the share of its parts that pass."""
        return "balanced accuracy" if self.only_class is None else f"{self.only_class} passed"


NO_TWO_GROUPS: Final = "not known: no class has two groups"
"""Said in place of a share that nothing was judged for."""


def percents(value: float | None) -> str:
    """Return a share as people read it, a dash where nothing was judged."""
    return "-" if value is None else f"{value:.1%}"


def encode_report(report: Report) -> bytes:
    """Return the report as indented JSON with a newline at its end."""
    return encoded(report)
