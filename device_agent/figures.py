"""Figures of an evaluation or a rehearsal, as tables for people. Names are anybody's: none is taken for markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from rich.table import Table

from device_agent.evaluate import Acceptance, Accuracy, Evaluation
from device_agent.outlook import OutlookReport
from device_agent.rehearse import Measure, PolicyResult, Rehearsal, counted
from sdk.audit import DOUBTFUL
from sdk.console import Console, plain
from sdk.layouts import confirmed_said
from sdk.outlook import Expected

_LABELS_SHOWN: Final = 5


def show_evaluation(result: Evaluation, console: Console) -> None:
    """Print what an evaluation found."""
    console.print(f"[bold]{plain(result.bundle)}[/] ({result.precision}, {result.runtime}), {result.digest[:12]}")
    console.print(
        f"{result.accuracy.images} images in {result.accuracy.groups} groups, part {result.part}; left out: "
        f"{result.left_out_learned} it learned from, {result.left_out_other_part} of other parts"
    )
    if result.left_out_copies:
        console.print(
            f"[yellow]note[/] {result.left_out_copies} pictures that it learned from, saved anew, are left out "
            "too: their files are new, their codes are not"
        )
    if result.left_out_siblings:
        console.print(f"{result.left_out_siblings} new pictures of parts that it learned from are left out too")
    if result.groups_note is not None:
        console.print(f"[yellow]note[/] {plain(result.groups_note)}")
    if result.summed:
        console.print(
            f"{result.summed} images that the bundle learned from are in its sums only: no score leaves them out"
        )
    if result.unknown_to_the_bundle:
        console.print(f"{result.unknown_to_the_bundle} of the evaluated images are new to the bundle")
    if result.refused:
        console.print(
            f"[yellow]{len(result.refused)} file{'s' if len(result.refused) != 1 else ''} could not be used[/]"
        )
    _print_accuracy(console, result.accuracy)
    _print_doubtful(console, result)
    if result.acceptance is not None:
        _print_acceptance(console, result.acceptance)
    _print_outlook(console, result.outlook)
    console.print(f"{result.frames_per_s:.0f} images a second, reading included")


def _print_doubtful(console: Console, result: Evaluation) -> None:
    """Print whose labels the head finds improbable, and how many somebody stands by, where there are such."""
    count = len(result.doubtful)
    if result.confirmed:
        console.print(confirmed_said(result.confirmed), soft_wrap=True)
    if not count:
        return
    known = [each for each in result.decisions if each.label_probability is not None]
    errs = 5 * sum(each.best != each.label for each in known) > len(known)
    console.print(
        f"labels to look at again: {count} of {len(known)} are less than {DOUBTFUL:.0%} probable"
        + (
            "; head and labels disagree often: either many are wrong, or it cannot tell these classes"
            if errs
            else ""
        )
        + (f". The first {_LABELS_SHOWN}, all in --json:" if count > _LABELS_SHOWN else ":"),
        soft_wrap=True,
    )
    for each in result.doubtful[:_LABELS_SHOWN]:
        console.print(plain(f"  {each.path}: {each.label}, looks like {each.best}"), soft_wrap=True)


def _print_outlook(console: Console, ahead: OutlookReport) -> None:
    if ahead.groups_note is not None:
        console.print(f"[yellow]note[/] {plain(ahead.groups_note)}")
    if ahead.steps:
        more = [f"x{step.times}" if step.added is None else f"+{step.added}" for step in ahead.steps]
        title = "Recall with more labels of each class, % (95 % interval; all in --json)"
        table = Table("class", title=title, title_justify="left")
        for head in ("now", *more):
            table.add_column(head, justify="right", no_wrap=True)
        rows = [("balanced accuracy", ahead.balanced_accuracy, [step.balanced_accuracy for step in ahead.steps])]
        for name, now, then in [*rows, *((c.name, c.recall, c.recalls) for c in ahead.classes)]:
            table.add_row(plain(name), *_forecasts([now, *then]))
        console.print(table)
    console.print(ahead.advice, markup=False)


def _forecasts(expected: Sequence[Expected | None]) -> list[str]:
    """Return shares in percent, with the first and last intervals: all are too many for 80 columns."""
    told = ["" if e is None else f"{100 * e.share:.0f}" for e in expected]
    for at in (0, -1):
        if (e := expected[at]) is not None:
            told[at] += f" ({100 * e.low:.0f}-{100 * e.high:.0f})"
    return told


def _print_accuracy(console: Console, accuracy: Accuracy) -> None:
    if accuracy.classes:
        table = Table("class", "images", "recall (95 %)", "forced choice", "called instead")
        for c in accuracy.classes:
            other = ", ".join(f"{name} {n}" for name, n in c.called.items() if name != c.name)
            table.add_row(
                plain(c.name), str(c.images), str(c.recall), f"{c.forced_recall.share:.1%}", plain(other)
            )
        console.print(table)
    if accuracy.novel:
        table = Table("class it never heard of", "images", "noticed as unknown (95 %)", "called instead")
        for n in accuracy.novel:
            other = ", ".join(f"{name} {count}" for name, count in n.called.items() if name != "unknown")
            table.add_row(plain(n.name), str(n.images), str(n.noticed), plain(other))
        console.print(table)
    if accuracy.balanced_accuracy is not None and len(accuracy.classes) == 1:
        # The mean over one class is its recall: another name for that would say more than it is.
        name = plain(accuracy.classes[0].name)
        console.print(f"called {name}: {accuracy.balanced_accuracy}; no other known class is judged here")
    elif accuracy.balanced_accuracy is not None:
        forced = accuracy.forced_balanced_accuracy
        beside = "" if forced is None else f"; {forced:.1%} with forced choice"
        console.print(f"balanced accuracy {accuracy.balanced_accuracy}{beside}")
    if accuracy.unknown_rate is not None:
        console.print(f"called unknown although known: {accuracy.unknown_rate}")
    if accuracy.calibration_error is not None:
        console.print(f"the probability shown is off by {accuracy.calibration_error:.1%} on average")


def _print_acceptance(console: Console, acceptance: Acceptance) -> None:
    good = plain(" or ".join(acceptance.good))
    if acceptance.threshold is None:
        console.print(f"a part passes when it is called {good}:")
    else:
        console.print(
            f"a part is rejected from {acceptance.threshold:.1%} probability of a defect, or when unknown; "
            f"chosen on the bundle's own left-out parts for escapes of {acceptance.target:.1%}, "
            f"expecting {acceptance.expected_escapes} escapes and {acceptance.expected_overkill} overkill "
            f"({acceptance.expected_on} images)"
        )
        if not acceptance.reachable:
            console.print("[yellow]no threshold reaches the target on those parts[/]")
    console.print(
        f"escapes, defects that passed, each class weighing the same: {acceptance.escapes or 'no defects here'}"
    )
    console.print(f"overkill, good parts rejected: {acceptance.overkill or 'no good parts here'}")


def show_rehearsal(result: Rehearsal, console: Console) -> None:
    """Print the curve of a rehearsal, and what it advises."""
    where = "" if result.station is None else plain(f", station {result.station}")
    console.print(
        f"[bold]{plain(result.bundle)}[/] ({result.precision}){where}: "
        f"{counted(result.stream_images, 'image')} as a shift, judged on {counted(result.test_images, 'other')}"
    )
    for each in result.policies:
        console.print(_rehearsal_table(result, each))
        shifts = each.shifts
        asked: Counter[str] = Counter()
        for shift in shifts:
            asked.update(shift.labels_by_class)
        in_all = f" in {len(shifts)} shifts" if len(shifts) > 1 else ""
        given = ", ".join(f"{name} {n}" for name, n in asked.most_common())
        labels = f"{counted(asked.total(), 'label')}{in_all} ({given})" if asked else f"no labels{in_all}"
        back = sum(shift.taken_back for shift in shifts)
        console.print(f"{each.policy.value}: {labels}; {counted(back, 'head')} taken back", markup=False)
    if result.label_to_live_ms is not None:
        console.print(f"from label to live: {result.label_to_live_ms:.0f} ms (median)")
    for note in result.notes:
        console.print(f"[yellow]note[/] {plain(note)}")
    console.print(f"[bold]{plain(result.advice)}[/]")


def _rehearsal_table(result: Rehearsal, each: PolicyResult) -> Table:
    several = len(each.shifts) > 1
    about = {
        "queue": "what the agent asks about",
        "random": "images picked at random",
        "all": "every image in order",
    }[each.policy.value]
    title = f"{about}, mean (range) of {len(each.shifts)} shifts" if several else about
    columns: list[tuple[str, Measure]] = [("balanced accuracy", lambda p: p.balanced_accuracy)]
    if result.new_classes:
        columns.append((plain(f"new: {', '.join(result.new_classes)}"), lambda p: p.new_class_recall))
    columns.append(("classes it knew", lambda p: p.old_class_recall))
    if result.elsewhere_images:
        columns.append(("elsewhere", lambda p: p.elsewhere_balanced_accuracy))
    columns.append(("the device's own score", lambda p: p.trial_balanced_accuracy))
    table = Table("labels", *(name for name, _ in columns), title=title, title_justify="left")
    for mean, low, high in zip(each.curve, each.low, each.high, strict=True):
        cells = [
            _share(measure(mean)) + (_range(measure(low), measure(high)) if several else "")
            for _, measure in columns
        ]
        table.add_row(str(mean.labels), *cells)
    joint = result.joint
    table.add_row(f"all {joint.labels} at once", *(_share(measure(joint)) for _, measure in columns))
    return table


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
