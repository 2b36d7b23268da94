"""How a training step is computed on a device: in which short type, and how its gradients survive in it.

Weights, their updates and losses stay float32. bfloat16 has float32's range and needs nothing else; float16, where
a GPU computes no bfloat16 itself (torch would imitate it, many times slower), has its gradients scaled up, and the
scale is part of where a run stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import nn

MAX_GRADIENT: Final = 1.0
"""Norm of a step's gradient, at most."""


def finished(device: torch.device) -> None:
    """Return when the device has done all that was asked of it: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in float32 as a processor does: for what is judged, or compared with another machine's.

    torch lets a GPU shorten the factors of convolutions to ten bits unless told otherwise: features of a
    mobilenetv2_100 were then off by up to two percent of their root mean square (random weights, H100).
    """
    if device.type != "cuda":
        yield
        return
    shortened = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = shortened


class Precision:
    """The short type of one run.

    Args:
        device: Where it is computed. On processors everything stays float32.
        mixed: Whether a short type is wanted.
    """

    def __init__(self, device: torch.device, *, mixed: bool) -> None:
        self.device = device
        self.half: torch.dtype | None = None
        if mixed and device.type == "cuda":
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
            self.half = torch.bfloat16 if bfloat16 else torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)

    def forward(self) -> contextlib.AbstractContextManager[object]:
        """Return what a forward pass is computed under."""
        if self.half is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.half)

    def step(self, loss: torch.Tensor, weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Take the step that a loss asks for.

        Args:
            loss: Scalar.
            weights: Whose gradient is kept short.
            optimizer: Of these and others.
        """
        optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(weights, MAX_GRADIENT)
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, float]:
        """Return where the scale stands; empty where there is none."""
        return {name: float(value) for name, value in self._scaler.state_dict().items()}

    def load(self, state: dict[str, float]) -> None:
        """Take up where another run's scale stood."""
        if state and self._scaler.is_enabled():
            whole = {"growth_interval", "_growth_tracker"}
            self._scaler.load_state_dict({k: int(v) if k in whole else v for k, v in state.items()})
