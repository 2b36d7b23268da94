"""What torch writes as ONNX, once for all test processes of a run, and without coverage of torch's own lines.

Writing a graph takes torch some two seconds of processor time, and half as much again where coverage follows every
line of it. Tests of what comes after the graph ask for few different ones. That the same backbone gives the same
bytes is tested in `test_export_graph`, which keeps nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import onnx
import torch

_ORIGIN: Final = ("pretrained_cfg", "default_cfg")
"""Where timm says that a network's weights came from; it computes nothing from them."""


@dataclass
class Written:
    """What `export.graph.to_onnx` reads of a `torch.onnx.ONNXProgram`."""

    model_proto: onnx.ModelProto


@contextlib.contextmanager
def untraced() -> Iterator[None]:
    """Run without coverage: for other people's lines, of which it keeps nothing."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


def key_of(*asked: object) -> str | None:
    """Return what two questions share only if they are the same to the bit; None where none can be told."""
    whole = BytesIO()
    try:
        _Exact(whole).dump(asked)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError):
        return None  # something with a lambda in it
    return hashlib.sha256(whole.getvalue()).hexdigest()


class _Exact(pickle.Pickler):
    def reducer_override(self, value: object) -> Any:
        if isinstance(value, torch.Tensor):
            exact = value.detach().cpu().contiguous()
            return bytes, (exact.numpy().tobytes(),), (str(exact.dtype), tuple(exact.shape), value.requires_grad)
        if isinstance(value, torch.nn.Module):
            return type(value), (), {name: held for name, held in vars(value).items() if name not in _ORIGIN}
        return NotImplemented


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Let torch write each graph once within this block; the folder may be that of other processes too."""
    write: Callable[..., Any] = torch.onnx.export

    def export(module: torch.nn.Module, args: tuple[torch.Tensor, ...], **how: Any) -> Any:
        key = key_of(module, args, how)
        file = folder / f"{key}.onnx"
        if key is not None and file.exists():
            return Written(onnx.load_from_string(file.read_bytes()))
        with untraced():
            program = write(module, args, **how)
        if key is not None and program is not None:
            draft = folder / f"{key}.{os.getpid()}"
            draft.write_bytes(program.model_proto.SerializeToString())
            draft.replace(file)  # whole or not at all, whoever else writes it
        return program

    torch.onnx.export = export  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.onnx.export = write
