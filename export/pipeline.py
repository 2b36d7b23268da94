"""One export, from a folder of labelled images to a bundle on disk: the order of the steps, and the choices.

    images -> split -> backbone -> fine-tune -> ONNX, int8 -> codes -> head, score -> golden -> bundle

Rules this module keeps:

- What is learned from is decided once, in `export.selection`, before anything is computed.
- The bundle appears whole or not at all, and what would refuse it at the end is asked at the beginning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from export.backbones import NO_WEIGHTS, Backbone, check_source, load_backbone
from export.card import card
from export.check import Groups, check, set_report, with_scores
from export.checkpoint import Checkpoint
from export.distributed import Ranks, TrainedAlong, alone
from export.exemplars import MAX_BASE_CODES, check_limit, exemplars, said
from export.finetune import (
    Aids,
    Epoch,
    Frames,
    OnScalars,
    Outcome,
    Schedule,
    Strategy,
    finetune,
    resized_frames,
)
from export.forms import FP32, INT8, Form, choose, features_of, make_forms, parity_reports, quantization_reports
from export.int8 import BUDGET_S, MAX_LOSS, Plan
from export.mlbom import CARD_NAME, mlbom
from export.papers import Papers
from export.profiles import Profile
from export.progress import Listener, Log
from export.readout import Budget, Readout, choose_readout
from export.recipes import recipe_for
from export.report import (
    BackboneReport,
    ClassCounts,
    ClassScoreReport,
    EpochReport,
    Images,
    ReadoutReport,
    Report,
    ScoreReport,
    StrategyReport,
    TransferReport,
    TrialReport,
)
from export.selection import Selection, data_digest, golden_rows, select
from export.set_report import RefusedImage
from export.strategies import Choice, Question, choose_strategy, transfer_report
from export.tensorrt import engines_beside, tensorrt_reports
from export.transfer import field_of
from sdk.bundle import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    BaseSamples,
    Bundle,
    ClassEntry,
    Golden,
    HeadEntry,
    Lineage,
    Manifest,
    PicturesEntry,
    PrecisionEntry,
    SplitEntry,
    golden_bytes,
    split_bytes,
    write_bundle,
)
from sdk.codes import code_digest, encode, feature_space_id
from sdk.errors import ExportError
from sdk.exchange import put_back
from sdk.layouts import Layout
from sdk.licences import allowed, normalise
from sdk.lineage import MLBOM_NAME, Link, lineage
from sdk.liveset import live_set_digest
from sdk.shown import readable
from sdk.splits import Part
from sdk.tensorrt_api import Library

GOLDEN_FILE: Final = "golden.safetensors"
SPLIT_FILE: Final = "splits.safetensors"
_TOOLS: Final = ("headway-edge", "torch", "timm", "onnx", "onnxruntime", "nvidia-modelopt", "numpy")


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        data: Folder of labelled images.
        layout, unannotated, groups, index: See `export.check.check`.
        backbone, weights: See `export.backbones.load_backbone`.
        out: The bundle's directory.
        strategy: None is `frozen` with pretrained weights and `full` without.
        precisions: Which to keep, of `fp32`, `fp16` and `int8`.
        profiles: What int8 is made for.
        max_int8_loss, qat, int8_budget_s: See `export.int8.Plan`.
        hold_back: Classes that nothing learns from.
        epochs: None is the strategy's own number.
        seed: Of split, initial weights and training.
        budget_s: See `export.finetune.Schedule`.
        input_size_px: Side of the input; None is the weights' own.
        pool: Global pooling; None is the weights' own.
        levels: How many of the backbone's levels the features are read from; None is the backbone's own number.
        readout: With a budget, levels, and pooling and input size where they are None, are chosen by measurement.
        classes_from: An earlier bundle whose class ids are kept for classes of the same name.
        max_base_codes: Of more images only so many have their codes in the bundle, and the others exact sums.
        replace: An older bundle at `out` may go.
        name: Of the bundle; None is the directory's.
        tensorrt: Build engines with it, beside the bundle; None builds none.
        licence: Of weights that do not state theirs.
        data_licence: Of the images, for the papers.
        auto: Try the strategies, and take the one that shows best (`export.strategies`).
        mixed: On a GPU, train in a short floating-point type.
    """

    data: Path
    backbone: str
    out: Path
    weights: str | None = None
    strategy: Strategy | None = None
    precisions: tuple[str, ...] = (FP32, INT8)
    profiles: tuple[Profile, ...] = (Profile.CPU,)
    max_int8_loss: float = MAX_LOSS
    qat: bool = True
    int8_budget_s: float = BUDGET_S
    hold_back: tuple[str, ...] = ()
    epochs: int | None = None
    seed: int = 0
    budget_s: float | None = None
    input_size_px: int | None = None
    pool: str | None = None
    levels: int | None = None
    readout: Budget | None = None
    classes_from: Path | None = None
    max_base_codes: int = MAX_BASE_CODES
    replace: bool = False
    name: str | None = None
    tensorrt: Library | None = None
    licence: str | None = None
    data_licence: str = ""
    layout: Layout | None = None
    unannotated: str | None = None
    groups: Groups | None = None
    index: Path | None = None
    auto: bool = False
    mixed: bool = True


def export_bundle(
    request: Request,
    listener: Listener,
    *,
    ranks: Ranks | None = None,
    on_scalars: OnScalars = lambda _step, _figures: None,
) -> Report:
    """Make a bundle and return what there is to say about it.

    Args:
        request: What to export.
        listener: Told how it goes.
        ranks: The processes that train together; None is this one alone.
        on_scalars: Given the figures of each epoch of the final training.

    Raises:
        TrainedAlong: this process is not rank 0, and has done its share.
        ExportError: images, backbone or weights that cannot be used, or two forms of the backbone that disagree.
        BadFormat: `out` exists, or `classes_from` is no bundle.
    """
    log = Log(listener)
    _check_out(request)
    check_source(request.backbone, request.weights, licence=request.licence)
    checked = check(
        request.data,
        layout=request.layout,
        unannotated=request.unannotated,
        groups=request.groups,
        index=request.index,
        log=log,
    )
    images = checked.images
    learned = select(
        images, seed=request.seed, hold_back=request.hold_back, classes_from=request.classes_from, log=log
    )
    check_limit(learned.groups, request.max_base_codes)
    how, readouts = _readout(request, learned, log)
    with log.stage("backbone", f"Loading {request.backbone}"):
        backbone = load_backbone(
            request.backbone,
            request.weights,
            input_size_px=how.input_size_px,
            pool=how.pool,
            levels=how.levels,
            seed=request.seed,
            licence=request.licence,
        )
    _show_licence(backbone, log)
    strategy, reason = _strategy(request, backbone, learned, log)
    paths = [images.images[row].path for row in learned.rows]
    with log.stage("decode", "Decoding images", len(paths)) as step:
        sizes = np.zeros((len(paths), 2), np.int64)
        frames = resized_frames(paths, backbone.preprocess, None, step, sizes)
    tuned = _tune(request, strategy, reason, backbone, frames, learned, ranks or alone(), on_scalars, log)
    fitted = np.zeros(len(frames), bool) if tuned.outcome is None else ~learned.validation
    plan = Plan(request.profiles, request.max_int8_loss, request.qat, request.int8_budget_s, request.seed)
    difference, forms, refusals = make_forms(request.precisions, backbone, frames, learned, fitted, log, plan)
    if not images.has_groups and forms[0].grouping_note is None:  # neither pictures nor codes show any
        aside = len(set(checked.own_groups)) < len(checked.own_groups)  # the set names some: --groups none
        why = "The groups of the set are left aside" if aside else "No groups are named"
        log.warn(
            f"{why}, so every image counts as a part of its own. If one part shows in several images, the score "
            "flatters: "
            + ("take --groups none away." if aside else "name parts in an index.csv with a group column.")
        )
    kept, reason_first, precisions = choose(
        request.precisions, forms, refusals, frames[:1], backbone.preprocess, log
    )
    golden_frames = frames[golden_rows(learned)]
    coded = exemplars(learned.labels, learned.groups, fitted, request.max_base_codes)
    summed = said(learned.labels, coded)
    if summed is not None:
        log.warn(summed)
    report = Report(
        bundle=str(request.out),
        bundle_sha256="",
        size_bytes=0,
        name=readable(request.name or request.out.resolve().name),
        created_utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        images=_images_report(learned),
        image_set=with_scores(set_report(checked, seed=request.seed), checked, learned, kept[0], log),
        seed=request.seed,
        held_back=list(request.hold_back),
        base_samples=len(learned.rows),
        base_codes=len(coded),
        backbone=BackboneReport(
            name=backbone.name,
            weights=backbone.origin.source,
            weights_sha256=backbone.origin.sha256,
            licence=backbone.origin.licence,
            parameters=backbone.parameters(),
            feature_size=backbone.feature_size,
            input_px=(backbone.preprocess.width, backbone.preprocess.height),
        ),
        strategy=_strategy_report(tuned.strategy, tuned.reason, tuned.outcome),
        torch_onnx_difference=difference,
        score=_score_report(kept[0], learned),
        strategies=tuned.trials,
        transfer=tuned.transfer,
        false_alarm_rate=kept[0].calibration.false_alarm_rate,
        precision=kept[0].name,
        precision_reason=reason_first,
        precisions=precisions,
        parity=parity_reports(difference, forms, golden_frames, backbone.preprocess),
        quantization=quantization_reports(forms),
        warnings=log.warnings,
        seconds=log.seconds,
        tool_versions=_tool_versions(),
        readouts=readouts,
    )
    with log.stage("write", f"Writing {request.out}"):
        papers = Papers(request.data_licence, _parents(request))
        entries, files = _forms(kept, backbone, golden_frames, learned, None if summed is None else coded)
        files[CARD_NAME] = card(report, papers).encode(errors="replace")
        files[SPLIT_FILE] = split_bytes([i.sample_id for i in images.images], learned.parts, images.groups)
        manifest = _manifest(report, learned, backbone, entries, sizes)
        files[MLBOM_NAME] = mlbom(report, papers, manifest, files)
        try:
            bundle = write_bundle(request.out, files, manifest, replace=request.replace)
        except OSError as error:
            raise ExportError(
                f"{request.out}: {error.strerror}", hint="Free some space, or choose another --out."
            ) from error
    shutil.rmtree(_training(request), ignore_errors=True)
    size = sum(entry.size_bytes for entry in bundle.manifest.files)
    tensorrt = tensorrt_reports(bundle, request.tensorrt, engines_beside(request.out), log)
    return msgspec.structs.replace(
        report, bundle_sha256=bundle.digest(), size_bytes=size, seconds=log.seconds, tensorrt=tensorrt
    )


def _check_out(request: Request) -> None:
    """Refuse now what `write_bundle` would refuse after minutes of work."""
    out = request.out
    if out.is_symlink() and not out.exists():
        raise ExportError(f"{out} is a link to nothing", hint="Remove it, or choose another --out.")
    put_back(out)
    if out.exists() and not (request.replace and (out / MANIFEST_NAME).is_file()):
        hint = (
            "Choose another --out." if request.replace else "Choose another --out, or --force to replace a bundle."
        )
        raise ExportError(f"{out} exists" + (" and is no bundle" if request.replace else ""), hint=hint)
    if out.resolve().is_relative_to(request.data.resolve()):
        raise ExportError(
            f"{out} lies within {request.data}: its files would be taken for some of the set",
            hint="Choose an --out beside it.",
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".headway-", dir=out.parent):
            pass
    except OSError as error:
        raise ExportError(
            f"{out.parent} cannot be written to: {error.strerror}", hint="Choose another --out."
        ) from error


def _show_licence(backbone: Backbone, log: Log) -> None:
    """Say under which licence the weights are, before they are used, and whether a fleet would take it."""
    origin = backbone.origin
    log.listener.say(f"Weights: {origin.source}; licence: {origin.licence}.")
    if origin.pretrained and not allowed(origin.licence):
        words = normalise(origin.licence) or f"{origin.licence!r}, which SPDX does not name"
        log.warn(f"The licence of the weights is {words}: read it; `headway fleet publish` asks for that.")


def _parents(request: Request) -> tuple[Link, ...]:
    if request.classes_from is None:
        return ()
    earlier = request.classes_from
    return (lineage(Bundle.open(earlier), [earlier.resolve().parent]),)


def _readout(request: Request, learned: Selection, log: Log) -> tuple[Readout, list[ReadoutReport]]:
    """Return how features are read from the backbone, and what was tried, where it is chosen by measurement."""
    asked = Readout(request.input_size_px, request.pool, request.levels)
    if request.readout is None:
        return asked, []
    paths = [learned.images.images[row].path for row in learned.rows]
    return choose_readout(request.backbone, request.weights, asked, request.readout, paths, learned, log)


# --- Training


def _strategy(request: Request, backbone: Backbone, learned: Selection, log: Log) -> tuple[Strategy, str]:
    """Return how to train the backbone, and why so."""
    pretrained = backbone.origin.pretrained
    asked = request.strategy or (Strategy.FROZEN if pretrained else Strategy.FULL)
    reason = (
        "Asked for."
        if request.strategy
        else "The default for pretrained weights."
        if pretrained
        else "The default for random weights."
    )
    if asked in (Strategy.LAST, Strategy.HEAD_THEN_FULL) and not pretrained:
        raise ExportError(
            f"--strategy {asked.value} trains on top of pretrained stages, and --weights none has none",
            hint="Use --strategy full to train from scratch, or give weights.",
        )
    trainable = {label for label, held in zip(learned.labels, learned.validation, strict=True) if not held}
    if asked is not Strategy.FROZEN and len(trainable) < 2:
        asked, reason = Strategy.FROZEN, "There is one class only, so there is nothing to train the backbone on."
        if request.strategy:
            log.warn(f"Strategy {request.strategy.value} became frozen: {reason[0].lower()}{reason[1:]}")
    if asked is Strategy.FROZEN and not pretrained:
        log.warn(
            "The backbone is random and stays so: it tells only coarse differences. Give pretrained weights, or "
            "export again with --strategy full when there are images of a second class."
        )
    return asked, reason


def _training(request: Request) -> Path:
    """Return the folder where training stands, for the same command to go on from; gone with the bundle made."""
    return request.out.parent / f".{request.out.name}.training"


def stopped(request: Request) -> str:
    """Return what is left where an export was stopped, in words."""
    if request.out.exists():
        return f"{request.out} is whole"
    folder = _training(request)
    kept = folder.is_dir() and any(folder.iterdir())
    return f"{request.out} was not made" + ("; the same command goes on where training stood" if kept else "")


def _auto(request: Request, backbone: Backbone, frames: Frames, learned: Selection, log: Log) -> Choice | None:
    """Return the strategy that shows best, or None where nothing can be judged."""
    if len(field_of(_label_index(learned), learned.groups, request.seed).classes) < 2:
        log.warn("Strategies cannot be compared: that takes two classes with images in two groups each.")
        return None
    folder = _training(request)
    folder.mkdir(exist_ok=True)

    def random_start() -> Backbone:
        return load_backbone(
            request.backbone.partition(".")[0],
            NO_WEIGHTS,
            input_size_px=backbone.preprocess.height,
            pool=request.pool,
            levels=backbone.levels,
            seed=request.seed,
        )

    choice = choose_strategy(
        Question(
            backbone=backbone,
            random_start=random_start,
            frames=frames,
            labels=_label_index(learned),
            groups=learned.groups,
            names=list(learned.class_ids),
            seed=request.seed,
            epochs=request.epochs,
            budget_s=request.budget_s,
            folder=folder,
        ),
        log,
    )
    for warning in choice.warnings:
        log.warn(warning)
    return choice


def _label_index(learned: Selection) -> npt.NDArray[np.int64]:
    names = list(learned.class_ids)
    return np.array([names.index(label) for label in learned.labels], np.int64)


@dataclass(frozen=True)
class _Tuned:
    """What choosing a strategy and training by it came to."""

    strategy: Strategy
    reason: str
    outcome: Outcome | None
    trials: list[TrialReport]
    transfer: TransferReport | None


def _tune(
    request: Request,
    strategy: Strategy,
    reason: str,
    backbone: Backbone,
    frames: Frames,
    learned: Selection,
    ranks: Ranks,
    on_scalars: OnScalars,
    log: Log,
) -> _Tuned:
    """Choose the strategy where that was asked for, and train the backbone in place."""
    choice = _auto(request, backbone, frames, learned, log) if request.auto else None
    trials: list[TrialReport] = []
    transfer = None
    if choice is not None:
        strategy, reason = choice.strategy, choice.reason
        request = dataclasses.replace(request, epochs=choice.chosen.epochs or request.epochs)
        trials, transfer = transfer_report(choice, list(learned.class_ids), request.budget_s)
    aids = Aids(ranks, Checkpoint(_training(request) / "final"), mixed=request.mixed, on_scalars=on_scalars)
    outcome = _train(request, strategy, backbone, frames, learned, aids, log)
    if not ranks.writes:
        raise TrainedAlong
    return _Tuned(strategy, reason, outcome, trials, transfer)


def _train(
    request: Request,
    strategy: Strategy,
    backbone: Backbone,
    frames: Frames,
    learned: Selection,
    aids: Aids,
    log: Log,
) -> Outcome | None:
    """Fine-tune the backbone in place as the strategy says; None where it stays as it is."""
    if strategy is Strategy.FROZEN:
        return None
    _training(request).mkdir(exist_ok=True)
    if not learned.validation.any():
        log.warn("There are too few groups for validation: the last epoch is kept, and the score flatters.")
    else:
        labels = np.array(learned.labels)
        blind = sorted(set(labels.tolist()) - set(labels[learned.validation].tolist()))
        if blind:
            log.warn(
                f"All images of {', '.join(blind)} are trained on, since few groups show it: nothing is left to "
                "judge it by, and the score is that of the other classes. Strategy frozen judges it."
            )
    schedule = Schedule(
        request.epochs or recipe_for(strategy, pretrained=backbone.origin.pretrained).epochs,
        request.seed,
        None if request.auto else request.budget_s,
    )
    said = ""

    def on_step(done: int, total: int, epoch: Epoch | None) -> None:
        nonlocal said
        if epoch is not None:
            quality = "" if epoch.balanced_accuracy is None else f", validation {epoch.balanced_accuracy:.1%}"
            said = f"epoch {epoch.number}, loss {epoch.loss:.3f}{quality}"
        log.listener.step(done, total, said)

    with log.stage("train", f"Training {backbone.name} ({strategy.value})"):
        outcome = finetune(
            backbone, strategy, frames, _label_index(learned), learned.validation, schedule, on_step, aids=aids
        )
    if outcome.resumed_at:
        log.listener.say(
            f"Went on from step {outcome.resumed_at}, where an earlier run of this command was stopped."
        )
    if outcome.epochs < schedule.epochs:
        log.warn(f"The time budget allowed {outcome.epochs} of {schedule.epochs} epochs.")
    return outcome


# --- The bundle


def _base(form: Form, learned: Selection) -> BaseSamples:
    return BaseSamples(learned.samples, learned.ids, learned.groups, form.codes, form.fitted)


def _forms(
    kept: Sequence[Form],
    backbone: Backbone,
    golden_frames: Frames,
    learned: Selection,
    coded: Sequence[int] | None,
) -> tuple[list[PrecisionEntry], dict[str, bytes]]:
    """Return what the manifest says of the forms, and their files; sums stand for rows not in `coded`."""
    entries: list[PrecisionEntry] = []
    files: dict[str, bytes] = {}
    golden: dict[str, Golden] = {}
    for form in kept:
        entry, golden[form.name] = _entry(form, backbone, golden_frames, learned)
        base = _base(form, learned)
        if coded is not None:
            base = base.with_codes_of(coded)
            entry = msgspec.structs.replace(entry, moments=f"moments.{form.name}.safetensors")
            files[f"moments.{form.name}.safetensors"] = base.moments_bytes()
        entries.append(entry)
        files |= {entry.backbone: form.model, entry.samples: base.to_bytes()}
    files[GOLDEN_FILE] = golden_bytes(golden_frames, golden)
    return entries, files


def _entry(
    form: Form, backbone: Backbone, golden_frames: Frames, learned: Selection
) -> tuple[PrecisionEntry, Golden]:
    """Return what the manifest says of one precision, and what its golden inputs must give."""
    preprocess = backbone.preprocess
    space = feature_space_id(hashlib.sha256(form.model).hexdigest(), preprocess, form.scale)
    features = features_of(form.model, golden_frames, preprocess, lambda: None, exact=form.exact)
    codes = encode(features, form.scale)
    columns = [form.head.class_ids.index(class_id) for class_id in learned.class_ids.values()]
    scores = form.head.scores(codes)[:, columns].astype(np.float32)
    digests = [code_digest(code) for code in form.codes]
    knobs, calibration = form.head.knobs, form.calibration
    entry = PrecisionEntry(
        precision=form.name,
        backbone=f"backbone.{form.name}.onnx",
        samples=f"samples.{form.name}.safetensors",
        feature_size=form.codes.shape[1],
        code_scale=form.scale,
        space=space,
        head=HeadEntry(
            rho=knobs.rho,
            centre_damping=knobs.centre_damping,
            lift_floor=knobs.lift_floor,
            distance_weight=knobs.distance_weight,
            temperature=calibration.temperature,
            novelty_threshold=calibration.novelty_threshold,
            false_alarm_rate=calibration.false_alarm_rate,
            live_set_digest=live_set_digest(space, zip(learned.samples, learned.ids, digests, strict=True)),
        ),
        maps=list(backbone.maps) or msgspec.UNSET,
    )
    return entry, Golden(golden_frames, features, codes, scores)


def _manifest(
    report: Report,
    learned: Selection,
    backbone: Backbone,
    entries: list[PrecisionEntry],
    sizes: npt.NDArray[np.int64],
) -> Manifest:
    height, width = (int(side) for side in np.median(sizes, axis=0))
    return Manifest(
        format=FORMAT_VERSION,
        name=report.name,
        classes=[ClassEntry(id=class_id.hex(), name=name) for name, class_id in learned.class_ids.items()],
        preprocess=backbone.preprocess,
        pictures=PicturesEntry(width=width, height=height),
        precisions=entries,
        golden=GOLDEN_FILE,
        split=SplitEntry(seed=report.seed, file=SPLIT_FILE, held_back=report.held_back),
        lineage=Lineage(
            backbone=backbone.name,
            weights_source=backbone.origin.source[:2000],
            weights_sha256=backbone.origin.sha256,
            weights_licence=backbone.origin.licence[:2000],
            strategy=report.strategy.strategy,
            data_sha256=report.images.sha256,
            images=report.images.usable,
            created_utc=report.created_utc,
            tool_versions=report.tool_versions,
        ),
        parents=learned.parents,
        files=[],
    )


# --- The report


def _images_report(learned: Selection) -> Images:
    images = learned.images
    counts = Counter(zip(images.labels, learned.parts, strict=True))
    groups = {name: {image.group for image in images.images if image.label == name} for name in images.classes}
    return Images(
        folder=str(images.folder),
        usable=len(images.images),
        groups=len(set(images.groups)),
        grouped=images.has_groups,
        sha256=data_digest(images),
        refused=[RefusedImage(path=str(r.path), reason=r.reason) for r in images.refused],
        classes=[
            ClassCounts(
                name=name,
                images=sum(counts[name, part] for part in Part),
                groups=len(groups[name]),
                train=counts[name, Part.TRAIN],
                validation=counts[name, Part.VALIDATION],
                stream=counts[name, Part.STREAM],
                test=counts[name, Part.TEST],
                learned=name in learned.class_ids,
            )
            for name in images.classes
        ],
    )


def _strategy_report(strategy: Strategy, reason: str, outcome: Outcome | None) -> StrategyReport:
    history = () if outcome is None else outcome.history
    return StrategyReport(
        strategy=strategy.value,
        reason=reason,
        norms="" if outcome is None else outcome.norms,
        epochs=0 if outcome is None else outcome.epochs,
        best_epoch=0 if outcome is None else outcome.best.number,
        trained_weights=0 if outcome is None else outcome.trained_weights,
        history=[
            EpochReport(number=e.number, loss=e.loss, balanced_accuracy=e.balanced_accuracy) for e in history
        ],
    )


def _score_report(form: Form, learned: Selection) -> ScoreReport:
    name_of = {class_id: name for name, class_id in learned.class_ids.items()}
    found = form.score
    judged = [
        ClassScoreReport(
            name=name_of[c.class_id],
            recall=c.recall,
            low=c.low,
            high=c.high,
            samples=c.samples,
            groups=c.groups,
            scored=c.class_id not in found.one_group,
        )
        for c in found.classes
    ]
    missing = name_of.keys() - {c.class_id for c in found.classes}
    unjudged = [
        ClassScoreReport(name=name_of[each], recall=0.0, low=0.0, high=1.0, samples=0, groups=0, scored=False)
        for each in missing
    ]
    return ScoreReport(
        balanced_accuracy=found.balanced_accuracy,
        low=found.low,
        high=found.high,
        forced_choice=form.forced.balanced_accuracy,
        samples=found.samples,
        groups=found.groups,
        unjudged=found.unjudged,
        classes=sorted([*judged, *unjudged], key=lambda c: c.name),
    )


def _tool_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for tool in _TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:  # run from a checkout that is not installed
            found[tool] = "unknown"
    return found
