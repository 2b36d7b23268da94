"""What a benchmark is given, and what it answers with: tables, targets met or missed, notes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.features import Sample

Cell = str | int | float


@dataclass(frozen=True)
class Setup:
    """How a benchmark runs.

    Attributes:
        load: Set name to its features; drawn ones in a quick run.
        quick: As little as shows that everything runs.
        first_seed: Splits are this one and those after it. Whoever chooses a method by these figures looks at
            other splits (100 and up) than the reported ones.
        sets: Those to measure on, where a benchmark has several.
        splits: How many, where a benchmark would take its own number of them; 0 leaves it its own.
        say: Told what is being done.
    """

    load: Callable[[str], Sample]
    quick: bool = False
    first_seed: int = 0
    sets: tuple[str, ...] = ("neu_det", "magnetic_tile")
    splits: int = 0
    say: Callable[[str], None] = lambda _: None

    def seeds(self, count: int) -> range:
        """Return the seeds of `count` splits, or of as many as were asked for; two in a quick run."""
        count = self.splits or count
        return range(self.first_seed, self.first_seed + (min(count, 2) if self.quick else count))


@dataclass(frozen=True)
class Table:
    """Figures side by side; floats are shown with one digit after the point."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    digits: int = 1


@dataclass(frozen=True)
class Target:
    """A figure that was asked for."""

    what: str
    measured: float
    limit: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """The figure is on the right side of the limit."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True)
class Report:
    """The answer to one question."""

    name: str
    question: str
    tables: tuple[Table, ...]
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()


def percent(share: float | np.floating[Any]) -> float:
    """Return a share as percent."""
    return 100 * float(share)


def mean_and_error(values: Sequence[float]) -> str:
    """Return "mean +- standard error" of paired differences in percent points."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return f"{np.mean(values):+.1f} +- {error:.1f}"


def as_text(report: Report) -> str:
    """Return the report for a terminal, which is also Markdown."""
    lines = [f"## {report.name}: {report.question}", ""]
    for table in report.tables:
        lines += [table.title, "", *_rows(table), ""]
    for target in report.targets:
        verdict = "met" if target.met else "MISSED"
        sign = ">=" if target.at_least else "<="
        lines.append(f"- {target.what}: {target.measured:.4g} (target {sign} {target.limit:g}): {verdict}")
    lines += [f"- {note}" for note in report.notes]
    return "\n".join(lines)


def _rows(table: Table) -> list[str]:
    cells = [[f"{c:.{table.digits}f}" if isinstance(c, float) else str(c) for c in row] for row in table.rows]
    widths = [max(len(row[i]) for row in [list(table.columns), *cells]) for i in range(len(table.columns))]
    lines = []
    for row in [list(table.columns), ["-" * w for w in widths], *cells]:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("| " + " | ".join(padded) + " |")
    return lines


def as_json(reports: Sequence[Report]) -> str:
    """Return the reports as JSON, with whether each target was met."""
    plain = []
    for report in reports:
        fields = asdict(report)
        for target, found in zip(fields["targets"], report.targets, strict=True):
            target["met"] = found.met
        plain.append(fields)
    return json.dumps(plain, indent=1)
