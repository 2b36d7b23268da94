"""A network cut in two: a trunk that stays as it is, and the tail that is trained.

What the trunk gives for an image never changes while the tail is trained, so it is computed once for each fixed
view of the image and kept. An epoch over the last stages then costs what the last stages cost.

The cut is found in the network's own forward pass (torch.fx), at the first call that holds a trained weight; every
value that crosses it is kept. A module whose weights are all frozen or all trained is one call, whatever happens
inside it, so that only the code that joins stages has to be traceable. Where it is not, there is no cut, and the
whole network runs at each step: slower, with the same result.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from timm.models import get_notrace_functions
from torch import fx, nn
from torch.fx.proxy import TraceError

TOLERANCE: Final = 1e-4
"""Largest difference between the network and its two parts, in the output's root mean square: the same operations
in the same order, so anything above rounding is a cut in the wrong place."""

MAX_KEPT_BYTES: Final = 2 * 1024**3
"""Activations above this are not kept: the trunk then runs at every step."""

Crossing = tuple[torch.Tensor, ...]
"""What crosses the cut for a batch, each (n, ...)."""


@dataclass(frozen=True)
class Cut:
    """A network's forward pass as two lists of calls. The modules are the network's own.

    Attributes:
        whole: The traced network.
        trunk, tail: Its calls, in order; those of the trunk hold no trained weight.
        crossing: Calls of the trunk whose value, a tensor, the tail uses.
        inputs: Of the forward pass, pixels first; the others keep their default.
        counts: Calls of the trunk that give how many images there are.
        fixed: Other calls of the trunk that the tail uses, such as the sides of a map, with what they always give.
    """

    whole: fx.GraphModule
    trunk: tuple[fx.Node, ...]
    tail: tuple[fx.Node, ...]
    crossing: tuple[fx.Node, ...]
    inputs: tuple[tuple[fx.Node, Any], ...]
    counts: tuple[fx.Node, ...] = ()
    fixed: tuple[tuple[fx.Node, Any], ...] = ()

    def kept(self, pixels: torch.Tensor) -> Crossing:
        """Return what crosses the cut for a batch of pixels (n, 3, H, W)."""
        found: Crossing = self.values(pixels)
        return found

    def values(self, pixels: torch.Tensor) -> tuple[Any, ...]:
        """Return what the calls `crossing` give for a batch of pixels (n, 3, H, W), tensors or not."""
        run = fx.Interpreter(self.whole)
        run.env.update(self.inputs)
        run.env[self.inputs[0][0]] = pixels
        with torch.no_grad():
            for node in self.trunk:
                run.env[node] = run.run_node(node)
        return tuple(run.env[node] for node in self.crossing)

    def rest(self, crossing: Crossing) -> torch.Tensor:
        """Return the network's output (n, d) for what crossed the cut."""
        run = fx.Interpreter(self.whole)
        run.env.update((*self.inputs, *self.fixed))
        run.env.update(dict.fromkeys(self.counts, len(crossing[0])))
        for node, part in zip(self.crossing, crossing, strict=True):
            run.env[node] = part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part
        for node in self.tail:
            run.env[node] = run.run_node(node)
        output: torch.Tensor = run.env[self.tail[-1]]
        return output


class _Tracer(fx.Tracer):
    """Looks into a module only where some of its weights are trained and others are not."""

    def __init__(self, network: nn.Module) -> None:
        untraceable: Any = get_notrace_functions
        super().__init__(autowrap_functions=tuple(untraceable()))
        # They are looked for where the root's forward pass is written only, and the root may be a wrapper.
        self._autowrap_search += [
            sys.modules[type(module).__module__] for module in (network, *network.children())
        ]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        trained = [weight.requires_grad for weight in m.parameters()]
        return all(trained) or not any(trained) or not any(True for _ in m.children())


def cut(network: nn.Module, probe: torch.Tensor) -> Cut | None:
    """Return the network cut before its first trained weight, or None where it cannot be cut.

    Args:
        network: In evaluation mode, with `requires_grad` set on what will be trained.
        probe: Pixels (n, 3, H, W) on which both forms must agree, n at least 2.
    """
    try:
        found = _found(network)
        if not found.trunk or not found.crossing:
            return None
        with torch.no_grad():
            expected = network(probe)
            sizes = 1, len(probe)  # traced with one batch size, used with others
            one, all_ = (found.values(probe[:n]) for n in sizes)
            tensors, counts, fixed = [], [], []
            for node, *of in zip(found.crossing, one, all_, strict=True):
                if isinstance(of[0], torch.Tensor):
                    tensors.append(node)
                    if of[0].shape[:1] != (1,):
                        return None
                elif of[0] == of[1]:
                    fixed.append((node, of[0]))
                elif tuple(of) == sizes:
                    counts.append(node)
                else:
                    return None
            if not tensors:
                return None
            found = replace(found, crossing=tuple(tensors), counts=tuple(counts), fixed=tuple(fixed))
            difference = (found.rest(found.kept(probe)) - expected).abs().max()
    except (TraceError, TypeError, ValueError, RuntimeError, AttributeError, KeyError, AssertionError):
        return None  # control flow that depends on values: nothing is lost but time
    unit = expected.square().mean().sqrt().clamp_min(1e-12)
    return found if bool(difference <= TOLERANCE * unit) else None


def _found(network: nn.Module) -> Cut:
    _, *others = inspect.signature(network.forward).parameters.values()
    defaults: dict[str, Any] = {other.name: other.default for other in others}
    graph = _Tracer(network).trace(network, concrete_args=defaults)
    whole = fx.GraphModule(network, graph)
    whole.graph.eliminate_dead_code()
    nodes = [node for node in whole.graph.nodes if node.op != "placeholder"]
    late: set[fx.Node] = set()
    for node in nodes:
        if _is_trained(whole, node) or any(before in late for before in node.all_input_nodes):
            late.add(node)
    # A frozen number of its own, such as a position, is read on either side.
    read = {node for node in nodes if node.op == "get_attr" and node not in late}
    trunk = tuple(node for node in nodes if node not in late)
    tail = tuple(node for node in nodes if node in late or node in read)
    crossing = tuple(
        node for node in whole.graph.nodes if node not in late | read and any(user in late for user in node.users)
    )
    places = [node for node in whole.graph.nodes if node.op == "placeholder"]
    return Cut(whole, trunk, tail, crossing, tuple(zip(places, (None, *defaults.values()), strict=True)))


def _is_trained(whole: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(weight.requires_grad for weight in whole.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        module, _, name = str(node.target).rpartition(".")
        weight = getattr(whole.get_submodule(module), name)
        return isinstance(weight, nn.Parameter) and weight.requires_grad
    return False


class Memory:
    """What a trunk gives for fixed views of images, computed when first asked for.

    One memory serves every run over the same images whose trunk has the same weights.

    Args:
        images: How many there are.
        views: Of each; view 0 is the image itself.
        seed: Of the views.
    """

    def __init__(self, images: int, views: int, seed: int) -> None:
        self.views = views
        self.seed = seed
        self._images = images
        self._trunk = ""
        self._kept: Crossing = ()
        self._known = np.zeros((images, views), bool)

    def serves(self, trunk: str, crossing: Crossing) -> bool:
        """Make room for activations like these of one image; false where there would be too many bytes.

        Args:
            trunk: Digest of its weights.
            crossing: What crosses the cut for one image, each (1, ...).

        Raises:
            ValueError: the memory holds another trunk's.
        """
        if self._trunk and self._trunk != trunk:
            raise ValueError("this memory holds what another trunk gave")
        n = self._images * self.views
        if sum(part.numel() * part.element_size() for part in crossing) * n > MAX_KEPT_BYTES:
            return False
        if not self._trunk:
            self._trunk = trunk
            self._kept = tuple(torch.empty(n, *part.shape[1:], dtype=part.dtype) for part in crossing)
        return True

    def serves_like(self, crossing: Crossing) -> bool:
        """Whether activations of this shape are kept."""
        return [part.shape[1:] for part in self._kept] == [part.shape[1:] for part in crossing]

    def missing(self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return (row, view) of everything that these images lack of their first so many views."""
        wanted = zip(rows.tolist(), views.tolist(), strict=True)
        return [(row, view) for row, count in wanted for view in range(count) if not self._known[row, view]]

    def put(self, where: Sequence[tuple[int, int]], crossing: Crossing) -> None:
        """Keep what crosses the cut for these views."""
        at = torch.tensor([row * self.views + view for row, view in where])
        for kept, part in zip(self._kept, crossing, strict=True):
            kept[at] = part.cpu()
        for row, view in where:
            self._known[row, view] = True

    def get(self, rows: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> Crossing:
        """Return what crosses the cut for a batch."""
        at = torch.from_numpy(rows * self.views + views)
        return tuple(kept[at] for kept in self._kept)


def digest_of(module: nn.Module, *, frozen_only: bool = False) -> str:
    """Return the SHA-256 of a module's tensors, of those that are not trained where asked for."""
    digest = hashlib.sha256()
    trained = (
        {name for name, weight in module.named_parameters() if weight.requires_grad} if frozen_only else set()
    )
    for name, tensor in sorted(module.state_dict().items()):
        if name in trained:
            continue
        digest.update(name.encode() + b"\0")
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
