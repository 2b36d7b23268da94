"""A rehearsal as a picture for people: what is recognised against labels given. Needs the `plot` extra."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

from device_agent.rehearse import Measure, PolicyResult, Rehearsal, drawn
from device_agent.shift import Policy, checkpoints
from sdk.errors import ConfigError, MissingExtra
from sdk.extras import installing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg")
_WIDTH_IN: Final = 4.6
_HEIGHT_IN: Final = 4.4
_DPI: Final = 130
_TITLE_LETTERS: Final = 40
"""So many stand above a panel, and as many for each panel in a line of the bold title."""
_NAMED: Final = 3
"""So many new classes are named in a title."""
_ALL_TO_SCALE: Final = 50
_LINEAR_TO: Final = 10
"""With more than `_ALL_TO_SCALE` labels only so many are drawn to scale, and each tenfold after them takes the
same room: the first labels, which matter most, can still be told apart."""
_STYLES: Final = {
    # Colours that people with any colour vision tell apart (Okabe and Ito), and markers for print in grey.
    Policy.QUEUE: ("what the agent asks about", "#0072B2", "o"),
    Policy.RANDOM: ("images picked at random", "#D55E00", "s"),
    Policy.ALL: ("every image in order", "#009E73", "^"),
}


def check_plot(file: Path) -> None:
    """Refuse a plot that could not be drawn, before hours go into it.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: the file's name or folder is wrong.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{file}: a plot is {' or '.join(SUFFIXES)}", hint="Name the file so, as in curve.png.")
    if not file.parent.is_dir():
        raise ConfigError(f"{file}: no such folder", hint="Name a file in a folder that exists.")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtra(
            "--plot needs the plot extra: module matplotlib is not installed",
            hint=installing("plot"),
        ) from error


def draw(result: Rehearsal, file: Path) -> None:
    """Write the curves of a rehearsal as a PNG or SVG.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: the file cannot be written.
    """
    check_plot(file)
    try:
        figure_of(result).savefig(file, dpi=_DPI)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}", hint="Name a file in a folder that exists.") from error


def figure_of(result: Rehearsal) -> Figure:
    """Return the curves of a rehearsal, where matplotlib is installed."""
    from matplotlib.figure import Figure

    panels = _panels(result)
    figure = Figure(figsize=(_WIDTH_IN * max(len(panels), 2), _HEIGHT_IN), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, measure) in zip(axes, panels, strict=True):
        _panel(ax, result, title, measure)
    axes[0].set_ylabel("Test images recognised (%)")
    room = _TITLE_LETTERS * max(len(panels), 2)
    figure.suptitle(textwrap.fill(_title(result), room), x=0.01, ha="left", fontweight="bold", fontsize=11)
    handles, names = axes[0].get_legend_handles_labels()
    shifts = len(result.seeds)
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
        title=f"line: mean, band: range of {shifts} shifts" if shifts > 1 else "",
        title_fontsize=9,
    )
    return figure


def _panels(result: Rehearsal) -> list[tuple[str, Measure]]:
    panels: list[tuple[str, Measure]] = [("All classes, mean", lambda point: point.balanced_accuracy)]
    if result.new_classes:
        few = len(result.new_classes) <= _NAMED
        new = ", ".join(result.new_classes) if few else f"{len(result.new_classes)} classes"
        panels.append((f"New to the device: {new}", lambda point: point.new_class_recall))
        panels.append(("Known from the start", lambda point: point.old_class_recall))
    if result.joint.elsewhere_balanced_accuracy is not None:
        panels.append(
            ("All classes, mean, at the other stations", lambda point: point.elsewhere_balanced_accuracy)
        )
    return panels


def _title(result: Rehearsal) -> str:
    where = "" if result.station is None else f" at {result.station}"
    wrong, given = drawn(result.policies)
    noise = f", {wrong} of {given} wrong on purpose" if result.noise else ""
    return f"{result.bundle}{where}: what labels teach{noise}"


def _panel(ax: Axes, result: Rehearsal, title: str, measure: Measure) -> None:
    for each in result.policies:
        _curve(ax, each, measure, result)
    bound = measure(result.joint)
    if bound is not None:
        every = f"all {result.joint.labels} images of the shift labelled"
        ax.axhline(100 * bound, color="#444444", linestyle="--", linewidth=1.2, label=every)
    most = max(1, *(each.labels_given for each in result.policies))
    ticks = checkpoints(most)
    if most > _ALL_TO_SCALE:
        ax.set_xscale("symlog", linthresh=_LINEAR_TO, linscale=1.0)
    ax.set_xticks(ticks, [str(tick) if tick not in (1, 2, 3) or most <= _LINEAR_TO else "" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(0, most * 1.06)
    ax.set_ylim(0, 102)
    ax.set_title(textwrap.fill(title, _TITLE_LETTERS), loc="left", fontsize=10)
    ax.set_xlabel("Labels given by the operator")
    ax.grid(True, color="#e4e4e4", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _curve(ax: Axes, each: PolicyResult, measure: Measure, result: Rehearsal) -> None:
    name, colour, marker = _STYLES[each.policy]
    if each.labels_given < result.labels_wanted:
        asked_all = each.policy is Policy.QUEUE and each.labels_given < result.stream_images
        after = "it has no question" if asked_all else "there is no image"
        name += f"; after {each.labels_given} {after} left"
    rows = [
        (mean.labels, *(100 * value for value in values if value is not None))
        for mean, *points in zip(each.curve, each.curve, each.low, each.high, strict=True)
        if None not in (values := [measure(point) for point in points])
    ]
    if not rows:
        return
    labels, mean, low, high = zip(*rows, strict=True)
    if len(each.shifts) > 1:
        ax.fill_between(labels, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(labels, mean, color=colour, marker=marker, markersize=4, linewidth=1.8, label=name, clip_on=False)
