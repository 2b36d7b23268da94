"""Curves of a training run for TensorBoard, where that is installed (the `tensorboard` extra)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdk.errors import ExportError, MissingExtra
from sdk.extras import installing


@contextmanager
def board(folder: Path | None) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Give a function that writes the figures of a step to event files in `folder`; None writes nothing.

    Raises:
        MissingExtra: TensorBoard is not installed.
        ExportError: the folder cannot be written to.
    """
    if folder is None:
        yield lambda _step, _figures: None
        return
    try:
        from torch.utils import tensorboard
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "--tensorboard needs the tensorboard extra: module tensorboard is not installed",
            hint=installing("tensorboard"),
        ) from error
    make: Any = tensorboard.SummaryWriter
    try:
        writer = make(str(folder))
    except OSError as error:
        raise ExportError(
            f"--tensorboard {folder}: {error.strerror}", hint="Name a folder that can be written to."
        ) from error

    def write(step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    try:
        yield write
    finally:
        writer.close()
