"""Several processes that train one backbone, started by `torchrun`: who they are, and what they agree on.

Every process reads the same images and draws the same batches; each computes its share of a batch, and torch's
DistributedDataParallel averages the gradients. Only rank 0 writes anything. Without `torchrun` there is one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from sdk.errors import ExportError


class TrainedAlong(Exception):
    """This process has done its share of the training, and the rest is rank 0's. No fault."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: In [0, world).
        world: How many.
        device: Where this process computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process writes files and tells people."""
        return self.rank == 0

    def shared(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients averaged over all processes; the module itself where there is one."""
        if self.world == 1:
            return module
        return DistributedDataParallel(module, device_ids=[self.device] if self.device.type == "cuda" else None)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of everybody's tensor, in place."""
        if self.world > 1:
            distributed.all_reduce(tensor)
        return tensor

    def agree(self, value: int) -> int:
        """Return rank 0's value."""
        if self.world == 1:
            return value
        said = torch.tensor([value], dtype=torch.int64, device=self.device)
        distributed.broadcast(said, 0)
        return int(said.item())


def _device(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def alone() -> Ranks:
    """Return the one process that there is without `torchrun`."""
    return Ranks(0, 1, _device(0))


_NEEDED: Final = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, and leave them in the end; alone without `torchrun`.

    NCCL carries the gradients between GPUs, gloo between processors.

    Raises:
        ExportError: the environment is torchrun's in part only, or the others cannot be reached.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        yield alone()
        return
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing or not world.isdecimal():
        raise ExportError(
            f"WORLD_SIZE is {world!r}" + (f" and {missing[0]} is not set" if missing else ""),
            hint="Start several processes with torchrun, which sets them all, or unset WORLD_SIZE.",
        )
    device = _device(int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"the processes do not find each other: {' '.join(str(error).split())[:200]}",
            hint="Check torchrun's --rdzv-endpoint, and that its port is open between the machines.",
        ) from error
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
