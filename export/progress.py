"""Who is told how an export goes, and the record of it: stages with their times, steps, warnings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from sdk.shown import readable


class Listener(Protocol):
    """Who is told how the export goes."""

    def stage(self, words: str) -> None:
        """A stage begins."""

    def step(self, done: int, total: int, note: str = "") -> None:
        """The stage has come this far."""

    def say(self, line: str) -> None:
        """Something to know now, before the end."""


class Unheard:
    """A listener that tells nobody."""

    def stage(self, words: str) -> None:
        """A stage begins."""

    def step(self, done: int, total: int, note: str = "") -> None:
        """The stage has come this far."""

    def say(self, line: str) -> None:
        """Something to know now, before the end."""


def duration(seconds: float) -> str:
    """Return how long something takes, as people read it.

    >>> duration(50), duration(100), duration(120), duration(1234)
    ('50 s', '1.7 min', '2 min', '21 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.1f}".removesuffix(".0") + " min"


def budget_words(seconds: float) -> str:
    """Return a budget in the minutes that were typed.

    >>> budget_words(90), budget_words(12.25 * 60), budget_words(600)
    ('1.5 min', '12.25 min', '10 min')
    """
    return f"{seconds / 60:g} min"


@dataclass
class Log:
    """Times, warnings and progress of one export."""

    listener: Listener
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, key: str, words: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Time a stage, and give a function to call at each of its `total` steps."""
        self.listener.stage(words)
        start, done = time.perf_counter(), 0

        def step() -> None:
            nonlocal done
            done += 1
            if total is not None:
                self.listener.step(done, total)

        yield step
        self.seconds[key] = round(self.seconds.get(key, 0.0) + time.perf_counter() - start, 3)

    def warn(self, line: str) -> None:
        self.warnings.append(readable(line))  # it may name a file
        self.listener.say(line)
