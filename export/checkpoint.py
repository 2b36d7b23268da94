"""Where a training run stands, on disk: one safetensors file, replaced whole, never a pickle.

Tensors (weights, optimizer) are the file's tensors; numbers and history are JSON in its metadata. A file carries
the fingerprint of what decides the result, and another command's file is never taken up.

The new file is written beside the old one, synced and renamed: a kill at any moment leaves one or the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError

from sdk import durable
from sdk.errors import ExportError

EVERY_S: Final = 30.0
"""Between two checkpoints: what a kill costs at most. Writing one takes well under a second."""
_FINGERPRINT: Final = "fingerprint"
_STATE: Final = "state"

Tensors = dict[str, torch.Tensor]


@dataclass
class Checkpoint:
    """One run's file.

    Attributes:
        file: Need not exist; its folder must.
        every_s: Least time between two writes.
        clock: Seconds that never run backwards.
    """

    file: Path
    every_s: float = EVERY_S
    clock: Callable[[], float] = time.monotonic
    _written: float = field(default=float("-inf"), init=False)

    def load(self, fingerprint: str) -> tuple[Tensors, str] | None:
        """Return tensors and JSON of the run with this fingerprint; None where there is none.

        Raises:
            ExportError: the file is damaged.
        """
        if not self.file.is_file():
            return None
        try:
            with safetensors.safe_open(self.file, framework="pt") as opened:
                metadata: Mapping[str, str] = opened.metadata() or {}
                if metadata.get(_FINGERPRINT) != fingerprint:
                    return None
                return {name: opened.get_tensor(name) for name in sorted(opened.keys())}, metadata[_STATE]
        except (SafetensorError, OSError, KeyError) as error:
            raise ExportError(
                f"{self.file} is no checkpoint: {' '.join(str(error).split())[:200]}",
                hint="Delete it; training then starts from the beginning.",
            ) from error

    def due(self) -> bool:
        """Whether it is time to write again."""
        return self.clock() - self._written >= self.every_s

    def save(self, fingerprint: str, tensors: Tensors, state: str) -> None:
        """Replace the file.

        Raises:
            ExportError: it cannot be written.
        """
        # Storage may be shared, strided or on another device; a file holds plain rows.
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_whole(self.file, safetensors.torch.save(plain, {_FINGERPRINT: fingerprint, _STATE: state}))
        self._written = self.clock()

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.file.unlink(missing_ok=True)


def write_whole(file: Path, content: bytes) -> None:
    """Write a file whole or not at all, synced to disk.

    Raises:
        ExportError: it cannot be written.
    """
    try:
        durable.write_whole(file, content)
    except OSError as error:
        raise ExportError(
            f"{file} cannot be written: {error.strerror}", hint="Free some space, or use another folder."
        ) from error


def under(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors whose name begins with a prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.AdamW) -> Tensors:
    """Return AdamW's state by the number of the weight: what it keeps is tensors only."""
    state: dict[int, dict[str, torch.Tensor]] = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: torch.optim.AdamW, tensors: Tensors) -> None:
    """Take up an optimizer's state where `optimizer_tensors` left it.

    A file holds plain rows. What belongs to a weight is laid out as the weight is, which AdamW's kernel for GPUs
    asks for.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == weight.shape:
                values[name] = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)
