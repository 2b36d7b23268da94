"""The transfer report as one HTML page for people: the choice, what it rests on, and two plots. Needs matplotlib.

Everything is inside the file; it loads nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from export.progress import budget_words, duration
from export.report import Report, TransferReport, TrialReport
from sdk.errors import MissingExtra
from sdk.extras import installing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH_IN: Final = 7.2
LEAST_RANGE: Final = 10.0
"""Points on an axis at least, so that chance does not look like a difference."""
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#767676"
"""Colours that people with any colour vision tell apart (Okabe and Ito)."""
_MARKERS: Final = ("o", "s", "^")
_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
tr.chosen td { font-weight: 600; }
.scroll { overflow-x: auto; }
.warning { border-left: 4px solid #D55E00; padding: .4rem .8rem; background: #D55E0018; }
figure { margin: 1rem 0; background: white; border-radius: 4px; }
figure svg { width: 100%; height: auto; display: block; }
.quiet { opacity: .75; font-size: .9rem; }
"""


def check_plots() -> None:
    """Refuse now what could not be drawn after hours of work.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtra(
            "--report needs the plot extra: module matplotlib is not installed",
            hint=installing("plot"),
        ) from error


def transfer_page(report: Report) -> str:
    """Return the page of a report that has a transfer report.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    transfer, trials = report.transfer, report.strategies
    if transfer is None:
        return _page(report.name, f"<p>Nothing was tried. {escape(report.strategy.reason)}</p>")
    run = [trial for trial in trials if not trial.skipped]
    parts = [
        f"<p><b>Chosen: {escape(report.strategy.strategy)}.</b> {escape(report.strategy.reason)}</p>",
        *(f'<p class="warning">{escape(sentence)}</p>' for sentence in transfer.negative_transfer),
        f"<h2>What was tried</h2><p>{escape(report.backbone.name)}; judged on {transfer.judged_images} images of "
        f"{transfer.judged_groups} groups that nothing of it had learned from. Differences are paired by group, "
        "with their standard error.</p>",
        _table(
            ("strategy", "balanced accuracy", "AUROC", "against frozen, points", "new class", "epochs", "time"),
            [(_row(trial), trial.chosen) for trial in trials],
        ),
        _figure(_accuracy_plot(run), "Balanced accuracy of each strategy on groups left out"),
        *_new_classes(transfer, run),
        f"<h2>Source and target</h2><p>Distance of these images from those that the weights were learned on: "
        f"{escape(transfer.source_distance_words)}.</p>"
        f'<p class="quiet">{escape(transfer.source_distance_limits)}</p>',
        _time(transfer, trials),
    ]
    return _page(report.name, "\n".join(parts))


def _row(trial: TrialReport) -> tuple[str, ...]:
    if trial.skipped:
        return (trial.name, "not run", "", "", "", "", trial.skipped)
    gain, new = trial.against_frozen, [r.recall for r in trial.readiness]
    return (
        trial.name,
        f"{trial.balanced_accuracy or 0.0:.1%}",
        f"{trial.auroc or 0.0:.3f}",
        "" if gain is None else f"{gain.points:+.1f} ± {gain.error:.1f}",
        f"{sum(new) / len(new):.0%}" if new else "",
        str(trial.epochs or ""),
        duration(trial.seconds),
    )


def _new_classes(transfer: TransferReport, run: Sequence[TrialReport]) -> list[str]:
    tried = [trial for trial in run if trial.readiness]
    if not tried:
        return ["<h2>New classes</h2><p>Not tried: nothing was left of the budget.</p>"]
    names = [r.held_back for r in tried[0].readiness]
    rows = []
    for trial in tried:
        cells = [f"{r.recall:.0%} / {r.others:.0%}" for r in trial.readiness]
        mean = sum(r.recall for r in trial.readiness) / len(trial.readiness)
        rows.append(((trial.name, f"{mean:.0%}", *cells), trial.chosen))
    return [
        f"<h2>New classes</h2><p>Each class that has enough images was left out of fine-tuning in turn, then "
        f"taught to the head with {transfer.labels_for_new_class} labels: its recall / mean recall of the "
        f"others.</p>",
        _table(("strategy", "mean", *names), rows),
        _figure(_trade_plot(tried), "Known classes against a new one: up and to the right is better"),
    ]


def _time(transfer: TransferReport, trials: Sequence[TrialReport]) -> str:
    limit = "" if transfer.budget_s is None else f", budget {budget_words(transfer.budget_s)}"
    spent = sum(trial.seconds for trial in trials)
    return (
        f'<p class="quiet">Estimated before: {duration(transfer.estimate_s)} with the training that followed'
        f"{limit}. The trials took {duration(spent)}.</p>"
    )


def _accuracy_plot(run: Sequence[TrialReport]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, 0.9 + 0.42 * len(run)), layout="constrained")
    axes = figure.subplots()
    for place, trial in enumerate(reversed(run)):
        accuracy = 100 * (trial.balanced_accuracy or 0.0)
        gain = trial.against_frozen
        axes.barh(place, accuracy, color=_BLUE if trial.chosen else _GREY, height=0.62)
        if gain is not None:
            axes.errorbar(accuracy, place, xerr=gain.error, color="black", capsize=3, linewidth=1)
        room = 0.0 if gain is None else gain.error
        axes.text(accuracy + room + 0.8, place, f"{accuracy:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(run)), [trial.name for trial in reversed(run)])
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("balanced accuracy, % (bars: standard error of the difference to frozen)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _trade_plot(tried: Sequence[TrialReport]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, 3.6), layout="constrained")
    axes = figure.subplots()
    points = []
    for turn, trial in enumerate(tried):
        new = 100 * sum(r.recall for r in trial.readiness) / len(trial.readiness)
        known = 100 * (trial.balanced_accuracy or 0.0)
        colour = _BLUE if trial.chosen else _ORANGE
        axes.plot(
            new, known, _MARKERS[turn % len(_MARKERS)], color=colour, markersize=9, label=trial.name, alpha=0.8
        )
        points.append((new, known))
    axes.legend(frameon=False)
    for place, limit in ((0, axes.set_xlim), (1, axes.set_ylim)):
        low, high = min(p[place] for p in points), max(p[place] for p in points)
        room = max(LEAST_RANGE, 1.6 * (high - low)) / 2
        limit((low + high) / 2 - room, (low + high) / 2 + room)
    axes.set_xlabel("recall of a new class after a few labels, %")
    axes.set_ylabel("balanced accuracy, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _figure(figure: Figure, words: str) -> str:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    return f'<figure role="img" aria-label="{escape(words)}">{svg[svg.index("<svg") :]}</figure>'


def _table(heads: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    lines = [
        ('<tr class="chosen">' if chosen else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for cells, chosen in rows
    ]
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _page(name: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Transfer report: {escape(name)}</title><style>{_STYLE}</style>"
        f"<h1>Transfer report: {escape(name)}</h1>{body}</html>\n"
    )
