"""What people see of an export in a terminal: how it goes, and what came of it.

Names of classes, files and columns are anybody's: none is taken for markup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from export.papers import ONE_CLASS
from export.report import NO_TWO_GROUPS, percents
from export.set_report import DISAGREE, kept_apart, pairs_said
from sdk.console import Console, plain
from sdk.layouts import confirmed_said

if TYPE_CHECKING:
    from pathlib import Path

    from export.label_audit import LabelAudit
    from export.report import Report
    from export.set_report import SetReport

_LABELS_SHOWN: Final = 5
_REFUSED_SHOWN: Final = 12
_FINDINGS_SHOWN: Final = 8
"""For each reason."""


class Terminal:
    """A listener that draws one bar for the stage at hand, where stderr is a terminal, and lines otherwise."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: TaskID | None = None
        self._note = ""

    def __enter__(self) -> Terminal:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, words: str) -> None:
        """A stage begins."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task, self._note = self._bars.add_task(words, total=None, note=""), ""
        self.say(f"{words} ...", dim=True)

    def step(self, done: int, total: int, note: str = "") -> None:
        """The stage has come this far; a new note is also a line."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total, note=note)
        if note != self._note:
            self._note = note
            self.say(f"  {note}", dim=True)

    def say(self, line: str, *, dim: bool = False) -> None:
        """Something to know now."""
        self._console.print(plain(line), style="dim" if dim else None, highlight=False, soft_wrap=True)


def _readouts(report: Report) -> Table:
    table = Table("readout", title="Readouts, on groups left out", title_justify="left")
    for head in ("d", "ms a frame", "balanced acc.", "to the first"):
        table.add_column(head, justify="right")
    table.add_column("verdict")
    for r in report.readouts:
        table.add_row(
            f"{r.pool or 'own'} pooling, levels {r.levels}, {r.input_px} px",
            str(r.feature_size),
            f"{r.latency_ms:.1f}",
            f"{r.balanced_accuracy:.1%}",
            f"{100 * r.difference:+.1f} +- {100 * r.standard_error:.1f}",
            f"[bold]{r.verdict}[/]" if r.chosen else r.verdict,
        )
    return table


def show(report: Report, console: Console) -> None:
    """Print the report for people."""
    images = report.images
    held = f", {', '.join(report.held_back)} held back" if report.held_back else ""
    refused = f", {len(images.refused)} refused" if images.refused else ""
    summed = f", {report.base_codes} of them with codes" if report.base_codes < report.base_samples else ""
    console.print()
    console.print(
        plain(
            f"{images.usable} images{refused}, {images.groups} groups; "
            f"{report.base_samples} learned from (train and validation){summed}{held}"
        ),
        soft_wrap=True,
    )
    trained = f", epoch {report.strategy.best_epoch} of {report.strategy.epochs}" if report.strategy.epochs else ""
    console.print(
        plain(f"{report.backbone.name}, strategy {report.strategy.strategy}{trained}. {report.strategy.reason}"),
        soft_wrap=True,
    )
    if report.transfer is not None:
        console.print(_trials(report))
    if report.readouts:
        console.print(_readouts(report))
    _show_score(report, console)
    leaks = report.image_set.leaks
    if leaks.score_joined is not None and leaks.score_apart is not None:
        console.print(
            f"Near-duplicates: {pairs_said(leaks.pairs)}. Score on groups left out {leaks.score_apart:.1%} with "
            f"{kept_apart(report.image_set)}, {leaks.score_joined:.1%} with near-duplicates kept together.",
            soft_wrap=True,
        )
    show_doubtful(report.image_set, console)
    for column in report.image_set.columns:
        sliced = [one for one in column.slices if one.score is not None]
        told = ", ".join(
            f"{one.value or '(empty)'} {one.score:.0%} ({one.low:.0%} to {one.high:.0%})" for one in sliced
        )
        if told:
            console.print(plain(f"By {column.column}: {told}"), soft_wrap=True)
    _show_forms(report, console)
    console.print(plain(report.precision_reason), soft_wrap=True)
    for entry in report.tensorrt:
        if entry.engine is not None:
            taken = "kept from before" if entry.kept else f"built in {entry.seconds:.0f} s"
            line = f"TensorRT {entry.version} engine ({entry.precision}, {entry.gpu}), {taken}: {entry.engine}"
            console.print(plain(line), soft_wrap=True)
    for warning in report.warnings:
        console.print(f"[yellow]note:[/] {plain(warning)}", soft_wrap=True)
    console.print(
        f"[bold]{plain(report.bundle)}[/]  {report.size_bytes / 1e6:.1f} MB  sha256 {report.bundle_sha256[:16]}  "
        f"{sum(report.seconds.values()):.0f} s",
        soft_wrap=True,
    )


def _show_score(report: Report, console: Console) -> None:
    score = report.score
    classes = Table("class", title=f"Score on groups left out ({report.precision})", title_justify="left")
    for head in ("recall", "95 % interval", "images", "groups"):
        classes.add_column(head, justify="right")
    for c in score.classes:
        recall = f"{c.recall:.1%}" if c.scored else c.unscored()
        interval = f"{c.low:.0%} to {c.high:.0%}" if c.scored else ""
        classes.add_row(plain(c.name), recall, interval, str(c.samples), str(c.groups))
    classes.add_section()
    classes.add_row(
        plain(report.measure),
        percents(score.balanced_accuracy),
        "" if score.balanced_accuracy is None else f"{score.low:.0%} to {score.high:.0%}",
        str(score.samples),
        str(score.groups),
    )
    console.print(classes)
    if score.balanced_accuracy is None:
        console.print(f"The {plain(report.measure)} is {NO_TWO_GROUPS}.", soft_wrap=True)
    elif score.unjudged:
        more = "1 more image is" if score.unjudged == 1 else f"{score.unjudged} more images are"
        console.print(f"{more} of a class that one group has: learned from, and not judged", soft_wrap=True)
    several = report.only_class is None and score.forced_choice is not None
    best = f"; best class whatever its novelty: {percents(score.forced_choice)}" if several else ""
    console.print(
        f'"unknown" counts as a miss, at {report.false_alarm_rate:.0%} false alarms{best}', soft_wrap=True
    )
    if report.only_class is not None:
        console.print(ONE_CLASS, markup=False, soft_wrap=True)


def _show_forms(report: Report, console: Console) -> None:
    forms = Table("precision", title="Precisions, ms a frame", title_justify="left")
    accuracy = "balanced acc." if report.only_class is None else "passed"
    for head in ("MB", "ms", "cosine", accuracy, "images", "to fp32"):
        forms.add_column(head, justify="right")
    for p in report.precisions:
        forms.add_row(
            p.name,
            f"{p.size_bytes / 1e6:.1f}",
            f"{p.latency_ms:.1f}",
            f"{p.feature_cosine:.3f}",
            percents(p.balanced_accuracy),
            str(p.images),
            ""
            if p.precision == "fp32" or p.balanced_accuracy is None
            else f"{100 * p.difference:+.1f} +- {100 * p.difference_error:.1f}",
        )
    console.print(forms)
    for p in report.precisions:
        console.print(plain(f"{p.precision}, made for {p.profile}: {p.verdict}"), soft_wrap=True)


def _trials(report: Report) -> Table:
    """Return what was tried, as a table."""
    table = Table("strategy", title="Tried on groups left out", title_justify="left")
    for head in ("balanced acc.", "AUROC", "to frozen", "new class", "s"):
        table.add_column(head, justify="right")
    for trial in report.strategies:
        if trial.skipped:
            table.add_row(plain(trial.name), "not run", "", "", "", "")
            continue
        gain = trial.against_frozen
        new = [r.recall for r in trial.readiness]
        table.add_row(
            plain(trial.name) + (" (chosen)" if trial.chosen else ""),
            f"{trial.balanced_accuracy or 0.0:.1%}",
            f"{trial.auroc or 0.0:.3f}",
            "" if gain is None else f"{gain.points:+.1f} +- {gain.error:.1f}",
            f"{sum(new) / len(new):.0%}" if new else "",
            f"{trial.seconds:.0f}",
        )
    return table


def show_doubtful(report: SetReport, console: Console) -> None:
    """Print which labels fit badly with all others, and how many somebody stands by, where any is."""
    labels = report.labels
    if labels is None:
        return
    if labels.confirmed:
        console.print(confirmed_said(labels.confirmed), soft_wrap=True)
    if not labels.doubtful:
        return
    disagree = f"{DISAGREE} " if labels.disagree else ""
    console.print(
        f"Labels to look at again: {labels.doubtful} of {labels.judged} judged ({labels.learned} learned from) "
        f"are less than {labels.below:.0%} probable. {disagree}--images-page shows "
        "their pictures, --json has up to 200; `headway audit` judges the whole set and takes corrections.",
        soft_wrap=True,
    )
    for one in labels.listed[:_LABELS_SHOWN]:
        console.print(plain(f"  {one.path}: {one.label}, looks like {one.looks_like}"), soft_wrap=True)


def show_set(report: SetReport, console: Console) -> None:
    """Print what is known of a set."""
    leaks = report.leaks
    table = Table("class", title=f"{report.usable} images, {leaks.groups} groups ({leaks.groups_from})",
                  title_justify="left")  # fmt: skip
    for head in ("images", "groups", "masks", "brightness", "contrast", "sharpness"):
        table.add_column(head, justify="right")
    for c in report.classes:
        figures = (c.images, c.groups, c.masks, c.brightness, c.contrast, c.sharpness)
        table.add_row(plain(c.name), *map(str, figures))
    console.print(table)
    for column in report.columns:
        values = ", ".join(f"{one.value or '(empty)'} {one.images}" for one in column.slices)
        console.print(plain(f"{column.column}: {values}"), soft_wrap=True)
    for one in report.refused[:_REFUSED_SHOWN]:
        console.print(plain(f"refused: {one.path}: {one.reason}"), soft_wrap=True)
    if len(report.refused) > _REFUSED_SHOWN:
        console.print(f"and {len(report.refused) - _REFUSED_SHOWN} more files refused; --json lists all of them")
    across = f"{leaks.across_groups} in different groups of the set's own, " if report.groups_named else ""
    console.print(
        f"Near-duplicates: {pairs_said(leaks.pairs)} at least {leaks.threshold:.2f} alike (about "
        f"{leaks.expected_false:.0f} of them false); {across}"
        f"{leaks.across_split} across the split without joining them, {leaks.across_labels} under two labels.",
        soft_wrap=True,
    )


def show_audit(audit: LabelAudit, page: Path | None, index: Path | None, console: Console) -> None:
    """Print which labels to look at again.

    Args:
        audit: What was found.
        page, index: The files that were written.
        console: Where to.
    """
    from export.label_audit import SAID, Why  # numpy, and OpenCV: not for `headway export --help`

    console.print(
        "\n"
        + plain(
            f"{audit.images} images, {len(audit.classes)} classes, {audit.groups} groups ({audit.groups_from}); "
            f"{audit.judged} judged, each by a head that never saw its group, on features of {audit.backbone}"
        ),
        soft_wrap=True,
    )
    for line in unjudged_said(audit):
        console.print(plain(line), soft_wrap=True)
    count = len(audit.findings)
    if not count:
        console.print(f"No label is less than {audit.below:.0%} probable, or contradicted by a near-duplicate.")
    else:
        console.print(f"Labels to look at again: {count}")
        for why in Why:
            of_it = [one for one in audit.findings if one.why == why.value]
            if of_it:
                console.print(f"  {len(of_it)}: {SAID[why]}")
            for one in of_it[:_FINDINGS_SHOWN]:
                said = f"{one.label} ({one.probability:.0%}), looks like {one.looks_like}"
                console.print(plain(f"    {one.path}: {said}"), soft_wrap=True)
            if len(of_it) > _FINDINGS_SHOWN:
                console.print(f"    and {len(of_it) - _FINDINGS_SHOWN} more")
    if audit.hard:
        pairs = ", ".join(f"{p.label} from {p.looks_like} ({p.called} of {p.judged})" for p in audit.hard)
        console.print(
            plain(f"Hard to tell apart, so that mostly the head errs, or people mix them up often: {pairs}."),
            soft_wrap=True,
        )
    if audit.disagree and not audit.hard:
        console.print(DISAGREE, soft_wrap=True)
    if page is not None:
        console.print(f"[bold]{plain(str(page))}[/] shows the pictures, and takes corrections.", soft_wrap=True)
    if index is not None:
        console.print(
            f"[bold]{plain(str(index))}[/]: correct its column label, or empty it to leave an image out; then: "
            f"{plain(f'headway export {audit.folder} --index {index} ...')}",
            soft_wrap=True,
        )
    if count and page is None and index is None:
        console.print("--page FILE shows the pictures, --write-index FILE is a CSV to correct.")


def unjudged_said(audit: LabelAudit) -> list[str]:
    """Return what was not judged, and why."""
    lines = []
    if audit.fitted:
        lines.append(
            f"{audit.fitted} images were not judged by the head: the backbone was trained on them and their "
            "labels. With --backbone builtin all are."
        )
    if audit.alone:
        lines.append(
            f"{audit.alone} images were not judged by the head: their class is in no other group. Only their "
            "near-duplicates speak."
        )
    if audit.confirmed:
        lines.append(confirmed_said(audit.confirmed))
    if audit.grouping_note:
        lines.append(audit.grouping_note)
    return lines
