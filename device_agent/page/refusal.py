"""An answer of the HTTP interface's own that no error of the device stands for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorOut:
    """What is wrong, and what to do."""

    error: str
    hint: str


class Refusal(Exception):
    """A request that is answered with this status.

    Args:
        status: Of HTTP.
        error: One line: what is wrong.
        hint: One line: what to do about it.
    """

    def __init__(self, status: int, error: str, hint: str) -> None:
        super().__init__(error)
        self.status, self.hint = status, hint
