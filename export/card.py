"""The model card that travels in the bundle: what it learned, how well, on what grounds, and what it cannot do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from export.papers import LIMITS, NOT_FOR, ONE_CLASS, USERS, Papers, use_of
from export.report import NO_TWO_GROUPS, Report, ScoreReport, percents
from export.set_report import SetReport, kept_apart, pairs_said
from sdk.layouts import confirmed_said
from sdk.licences import name_of
from sdk.lineage import Link


def card(report: Report, papers: Papers) -> str:
    """Return the card in Markdown. The bundle's own size and digest are not known yet and not used."""
    images, backbone, strategy, score = report.images, report.backbone, report.strategy, report.score
    leaks = report.image_set.leaks
    derived = ", derived from near-duplicates" if leaks.groups_from == "derived" else ""
    groups = (
        f"{images.groups} groups{derived}, which the split never divides"
        if images.grouped
        else "no groups named, and none found in the pictures"
    )
    held = f" Held back from everything learned: {', '.join(report.held_back)}." if report.held_back else ""
    trained = (
        f"{strategy.trained_weights:,} of {backbone.parameters:,} weights trained, "
        f"epoch {strategy.best_epoch} of {strategy.epochs} kept"
        if strategy.epochs
        else "no weight of the backbone was trained"
    )
    rounded = "".join(
        f" The int8 form made for {how.profile} was {how.finetuned.words()}, without their labels, to give fp32's "
        "features in spite of rounding; these images are not in its score."
        for how in report.quantization
        if how.finetuned is not None
    )
    what, best = "Balanced accuracy", f"Best class whatever its novelty: {percents(score.forced_choice)}."
    if report.only_class is not None:
        what, best = report.measure, ONE_CLASS
    lines = [
        f"# {report.name}",
        "",
        f"Made {report.created_utc} by Headway {report.tool_versions.get('headway-edge', '')}.",
        "",
        "## Intended use",
        "",
        use_of(report),
        "",
        f"Used by {' and '.join(USERS)}.",
        "",
        *(f"- {words}" for words in NOT_FOR),
        "",
        "## Data",
        "",
        f"{images.usable} images, {groups}; {len(images.refused)} refused. Set {images.sha256[:16]}. "
        f"Split seed {report.seed}; {report.base_samples} images were learned from (train and validation)."
        f"{held}",
        "",
        *_table(
            ("class", "images", "groups", "train", "validation", "stream", "test"),
            (
                (c.name, c.images, c.groups, c.train, c.validation, c.stream, c.test)
                if c.learned
                else (f"{c.name} (not learned)", c.images, c.groups, c.train, c.validation, c.stream, c.test)
                for c in images.classes
            ),
        ),
        "",
        f"Licence or owner of the images: {papers.data_licence or 'not stated'}. They stay with the plant; the "
        "bundle holds codes of those it learned from, and a few golden frames.",
        "",
        "## What it learned from",
        "",
        f"{backbone.name}, {backbone.feature_size} features, {backbone.input_px[0]} x {backbone.input_px[1]} px. "
        f"Weights: {backbone.weights}; licence: {name_of(backbone.licence)}; "
        f"SHA-256: {backbone.weights_sha256 or 'none'}. Strategy `{strategy.strategy}`: {trained}. "
        f"{strategy.reason}{rounded}",
        "",
        "The licence is that of the weights. What they were trained on may carry conditions of its own.",
        "",
        *(line for parent in papers.parents for line in _continued(parent)),
        *_readout(report),
        "## Score",
        "",
        f"{_score(what, score)} Every image is judged by the head that never saw "
        f"its group; `unknown` counts as a miss, and {report.false_alarm_rate:.0%} of known images may be called "
        f"so.{'' if score.balanced_accuracy is None else ' ' + best}",
        "",
        *_table(
            ("class", "recall", "95 % interval", "images", "groups"),
            (
                (c.name, f"{c.recall:.1%}", f"{c.low:.1%} to {c.high:.1%}", c.samples, c.groups)
                if c.scored
                else (c.name, f"not known: {c.unscored()}", "", c.samples, c.groups)
                for c in score.classes
            ),
        ),
        "",
        *_near_duplicates(report.image_set),
        *_doubtful(report.image_set),
        *_slices(report),
        "## Precisions",
        "",
        f"The channel runs {report.precision} unless its devices' own figures say otherwise. "
        f"{report.precision_reason}",
        "",
        *_table(
            (
                "precision",
                "made for",
                "weights",
                "MB",
                "ms a frame",
                "cosine to fp32",
                report.measure,
                "images",
                "points to fp32",
                "verdict",
            ),
            (
                (
                    p.precision,
                    p.profile,
                    p.weights,
                    f"{p.size_bytes / 1e6:.1f}",
                    f"{p.latency_ms:.1f}",
                    f"{p.feature_cosine:.3f}",
                    percents(p.balanced_accuracy),
                    p.images,
                    ""
                    if p.precision == "fp32" or p.balanced_accuracy is None
                    else f"{100 * p.difference:+.1f} +- {100 * p.difference_error:.1f}",
                    p.verdict,
                )
                for p in report.precisions
            ),
        ),
        "",
        "Latency is this machine's, one frame at a time; devices measure their own.",
        "",
        "## Limits",
        "",
        *(f"- {words}" for words in LIMITS),
        *(["- " + warning for warning in report.warnings]),
        "",
        "## Made with",
        "",
        ", ".join(f"{name} {version}" for name, version in sorted(report.tool_versions.items())) + ".",
        "",
    ]
    return "\n".join(lines)


def _score(what: str, score: ScoreReport) -> str:
    """Return the score in a sentence or two."""
    if score.balanced_accuracy is None:
        return f"{what} is {NO_TWO_GROUPS}, so none of the {score.unjudged} images was judged."
    rest = (
        f" {score.unjudged} more are of classes that one group has, and are not judged." if score.unjudged else ""
    )
    return (
        f"{what} {score.balanced_accuracy:.1%} (95 % interval {score.low:.1%} to {score.high:.1%}), "
        f"on {score.samples} images of {score.groups} groups.{rest}"
    )


def _continued(parent: Link, depth: int = 0) -> list[str]:
    """Return lines on an earlier bundle whose class ids go on, and on its own."""
    line = (
        f"{'  ' * depth}- Continues the class ids of {parent.name} ({parent.bundle_sha256[:16]}, made "
        f"{parent.created_utc}, {parent.backbone}, weights {parent.weights.source}, licence "
        f"{name_of(parent.weights.licence)})."
    )
    return [
        line,
        *(further for older in parent.parents for further in _continued(older, depth + 1)),
        *[""][depth:],
    ]


def _doubtful(images: SetReport) -> list[str]:
    labels = images.labels
    if labels is None:
        return []
    if not labels.judged:
        return ["No label could be judged by others: that takes two classes, one of them with two groups.", ""]
    open_ones, confirmed = "", ""
    if labels.confirmed:
        open_ones, confirmed = " that nobody stands by", f" {confirmed_said(labels.confirmed)}"
    return [
        f"Of the {labels.learned} labels learned from {labels.judged} could be judged without their group; "
        f"{labels.doubtful} of these{open_ones} are less than {labels.below:.0%} probable.{confirmed}",
        "",
    ]


def _near_duplicates(images: SetReport) -> list[str]:
    leaks = images.leaks
    if leaks.score_apart is None or leaks.score_joined is None:
        return []
    return [
        f"{pairs_said(leaks.pairs)} of images {'seems' if leaks.pairs == 1 else 'seem'} to show one part. "
        f"The score is {leaks.score_apart:.1%} with {kept_apart(images)}, {leaks.score_joined:.1%} where they are "
        "kept together.",
        "",
    ]


def _readout(report: Report) -> list[str]:
    if not report.readouts:
        return []
    rows = (
        (
            f"{r.pool or 'own'} pooling, levels {r.levels}, {r.input_px} px",
            r.feature_size,
            f"{r.latency_ms:.1f}",
            f"{r.balanced_accuracy:.1%}",
            f"{100 * r.difference:+.1f} +- {100 * r.standard_error:.1f}",
            r.verdict,
        )
        for r in report.readouts
    )
    heads = ("readout", "d", "ms a frame", "balanced accuracy", "to the first, points", "verdict")
    return [
        "## Readout",
        "",
        "Chosen on left-out groups of the images learned from.",
        "",
        *_table(heads, rows),
        "",
    ]


def _slices(report: Report) -> list[str]:
    lines: list[str] = []
    for column in report.image_set.columns:
        scored = [one for one in column.slices if one.score is not None]
        rows = [
            (one.value or "(empty)", f"{one.score:.1%}", f"{one.low:.1%} to {one.high:.1%}", one.scored)
            for one in scored
        ]
        if rows:
            lines += [*_table((column.column, report.measure, "95 % interval", "images"), rows), ""]
    return lines


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return [line(heads), "|" + "---|" * len(heads), *(line(row) for row in rows)]
