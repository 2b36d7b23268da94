"""outlook: does the forecast of more labels hold?

A few groups of each class are learned from, and the forecast made from them alone says what twice and four times
as many would give. The truth is a head that has learned as many, the first ones among them, on the half held out
by group. Beside it what one would say without a curve: that the accuracy stays as it is. On magnetic tile few
groups measure the truth: coverage is also given with the interval widened by the truth's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.features import Rows, Sample
from benchmarks.honest import own_half_width
from benchmarks.learners import Ours, ids_of, label_of, recalls
from benchmarks.report import Cell, Report, Setup, Table, Target, percent
from sdk.codes import Codes
from sdk.outlook import Expected, Outlook, outlook

QUESTION: Final = "what more labels would give, said beforehand"
SPLITS: Final = {"neu_det": 5, "magnetic_tile": 20}
"""As for the honest score: one split of magnetic tile says little."""
LABELS: Final = (5, 10, 20)
SHARES: Final = (4, 2)
"""Of the groups of magnetic tile: a quarter, a half."""
COVERED: Final = 85.0


@dataclass(frozen=True)
class _Forecast:
    """One forecast and what came of it, as percent: balanced accuracy, and whether recalls lay inside."""

    said: float
    low: float
    high: float
    today: float
    came: float
    noise: float
    recalls_inside: float


def run(setup: Setup) -> Report:
    """Return the report."""
    tables, targets = [], []
    for name in setup.sets:
        sample = setup.load(name)
        seeds = setup.seeds(SPLITS.get(name, 5))
        found: dict[tuple[str, int], list[_Forecast]] = {}
        for seed in seeds:
            setup.say(f"{name}, split {seed}")
            for key, forecast in _one_split(sample, seed):
                found.setdefault(key, []).append(forecast)
        lines = [_line(*key, forecasts) for key, forecasts in found.items()]
        tables.append(
            Table(
                f"{name}, {len(seeds)} splits: balanced accuracy, %, unknown is a miss",
                (
                    "labels",
                    "times",
                    "forecast",
                    "truth",
                    "off by",
                    "off without a curve",
                    "half width",
                    "% inside",
                    "% inside, widened",
                    "% of recalls inside",
                ),
                tuple(lines),
            )
        )
        every = [f for forecasts in found.values() for f in forecasts]
        inside = [_inside(f, 0.0) for f in every]
        targets.append(Target(f"{name}, forecasts whose truth is inside, %", percent(np.mean(inside)), COVERED))
    return Report("outlook", QUESTION, tuple(tables), tuple(targets))


def _line(what: str, times: int, forecasts: list[_Forecast]) -> tuple[Cell, ...]:
    def mean(of: Callable[[_Forecast], float]) -> float:
        return float(np.mean([of(f) for f in forecasts]))

    return (
        what,
        f"x{times}",
        mean(lambda f: f.said),
        mean(lambda f: f.came),
        mean(lambda f: abs(f.said - f.came)),
        mean(lambda f: abs(f.today - f.came)),
        mean(lambda f: (f.high - f.low) / 2),
        100 * mean(lambda f: _inside(f, 0.0)),
        100 * mean(lambda f: _inside(f, f.noise)),
        mean(lambda f: f.recalls_inside),
    )


def _inside(f: _Forecast, noise: float) -> bool:
    low, high = (np.hypot(f.said - f.low, noise), np.hypot(f.high - f.said, noise))
    return bool(f.said - low <= f.came <= f.said + high)


def _one_split(sample: Sample, seed: int) -> list[tuple[tuple[str, int], _Forecast]]:
    learn, test = sample.halves(seed)
    codes = sample.codes(learn)
    grouped = len(np.unique(sample.groups)) < len(sample.groups)
    rng = np.random.default_rng(seed)
    of_class = [
        rng.permutation(np.unique(sample.groups[learn][sample.labels[learn] == c]))
        for c in range(len(sample.classes))
    ]

    def rows(count: Callable[[int], int]) -> Rows:
        chosen = {str(group) for groups in of_class for group in groups[: count(len(groups))]}
        return learn[[str(group) in chosen for group in sample.groups[learn]]]

    forecasts = []
    truths: dict[bytes, tuple[dict[int, float], float]] = {}
    for part in SHARES if grouped else LABELS:

        def first(n: int, times: int, part: int = part) -> int:
            return min(n, times * max(2, round(n / part)) if grouped else times * part)

        few = rows(lambda n, first=first: first(n, 1))  # type: ignore[misc]
        ahead = outlook(
            codes[few],
            ids_of(sample.labels[few]),
            sample.groups[few].tolist(),
            seed=seed,
            budget_s=0.0,
            clock=time.perf_counter,
        )
        for step in ahead.steps:
            if step.times is None or (grouped and step.times > part):
                continue
            more = rows(lambda n, first=first, times=step.times: first(n, times))  # type: ignore[misc]
            if more.tobytes() not in truths:
                truths[more.tobytes()] = _truth(sample, codes, more, test)
            came, noise = truths[more.tobytes()]
            what = f"1/{part} of the groups" if grouped else f"{part} a class"
            forecasts.append(
                ((what, step.times), _forecast(ahead, step.balanced_accuracy, step.recalls, came, noise))
            )
    return forecasts


def _truth(sample: Sample, codes: Codes, rows: Rows, test: Rows) -> tuple[dict[int, float], float]:
    """Return the recall of each class on the held-out half, and the half width of its own interval."""
    given = codes[rows], sample.labels[rows], sample.groups[rows]
    head, _ = Ours().fit_calibrated(*given, len(sample.classes))
    shown = head.shown(codes[test])
    found = recalls(shown, sample.labels[test])
    return found, percent(own_half_width(shown, sample, test, sorted(found)))


def _forecast(
    ahead: Outlook, said: Expected, each: tuple[Expected, ...], came: dict[int, float], noise: float
) -> _Forecast:
    truth = [came[label_of(c.class_id)] for c in ahead.classes]
    return _Forecast(
        said=percent(said.share),
        low=percent(said.low),
        high=percent(said.high),
        today=percent(ahead.balanced_accuracy.share),
        came=percent(np.mean(truth)),
        noise=noise,
        recalls_inside=percent(np.mean([_shown(e, t) for e, t in zip(each, truth, strict=True)])),
    )


def _shown(expected: Expected, truth: float) -> bool:
    """Return whether a recall lies in its interval, in whole percent as people see both."""
    low, recall, high = (round(percent(share)) for share in (expected.low, truth, expected.high))
    return low <= recall <= high
