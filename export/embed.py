"""Features of many images by torch, in batches, and what an image costs on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from export.ahead import threads_beside
from export.augment import Augmentation, Frames, augmented, normalised
from export.backbones import Backbone
from export.precision import exact, finished
from export.recipes import Strategy, choose_weights
from export.tail import Memory, cut

EVALUATION_BATCH: Final = 64
TIMED_IMAGES: Final = 8
"""Enough that the cost of a call is small beside that of an image."""


def features(
    backbone: Backbone,
    frames: Frames,
    on_image: Callable[[], None] = lambda: None,
    *,
    strategy: Strategy = Strategy.FROZEN,
    memory: Memory | None = None,
    rows: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """Return features (n, d) float32 of frames as they are.

    Args:
        backbone: Left in evaluation mode, on the processor.
        frames: n images.
        on_image: Called for each.
        strategy: What was trained; says where the memory's trunk ends.
        rows: Which frames; None is all.
        memory: A trunk's activations of these frames; what it lacks is computed and kept, and only the tail run.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = backbone.module.eval().to(device).to(memory_format=torch.channels_last)
    known = None
    if memory is not None and strategy is Strategy.LAST:
        choose_weights(backbone, strategy)
        known = cut(module, _pixels(backbone, frames[:2], device))
        for weight in module.parameters():
            weight.requires_grad_(False)
        if known is not None and not memory.serves_like(known.kept(_pixels(backbone, frames[:1], device))):
            known = None
    found = []
    with torch.inference_mode(), exact(device):
        wanted = np.arange(len(frames)) if rows is None else rows
        for part in np.array_split(wanted, max(1, -(-len(wanted) // EVALUATION_BATCH))):
            if known is not None and memory is not None:
                lacking = memory.missing(part, np.ones(len(part), np.int64))
                if lacking:
                    images = frames[[row for row, _ in lacking]]
                    memory.put(lacking, known.kept(_pixels(backbone, images, device)))
                crossing = memory.get(part, np.zeros(len(part), np.int64))
                batch = known.rest(tuple(value.to(device) for value in crossing))
            else:
                batch = module(_pixels(backbone, frames[part], device))
            found.append(batch.float().cpu().numpy())
            for _ in part:
                on_image()
    backbone.module.to("cpu").to(memory_format=torch.contiguous_format)
    return np.concatenate(found)


def _pixels(backbone: Backbone, frames: Frames, device: torch.device) -> torch.Tensor:
    """Return the frames as pixels; a GPU is sent bytes, a quarter of what floats take."""
    rgb = torch.from_numpy(np.ascontiguousarray(frames[..., ::-1])).permute(0, 3, 1, 2)
    return normalised(rgb.to(device), backbone.preprocess).contiguous(memory_format=torch.channels_last)


def forward_s(backbone: Backbone, frames: Frames) -> float:
    """Return seconds for one image's features."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = copy.deepcopy(backbone.module).eval().to(device).to(memory_format=torch.channels_last)
    pixels = _pixels(backbone, frames[:TIMED_IMAGES], device)
    with torch.inference_mode(), exact(device):
        return _timed(lambda: module(pixels), device) / len(pixels)


def step_s(backbone: Backbone, strategy: Strategy, frames: Frames) -> float:
    """Return seconds for an image's share of a training step: with a new view of it, or what its trunk gave."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = copy.deepcopy(backbone.module).eval().to(device).to(memory_format=torch.channels_last)
    ours = Backbone(backbone.name, module, backbone.feature_size, backbone.preprocess, backbone.origin)
    choose_weights(ours, strategy)
    pixels = _pixels(backbone, np.resize(frames, (max(2, TIMED_IMAGES), *frames.shape[1:])), device)
    known = cut(module, pixels) if strategy is Strategy.LAST else None
    crossing = None if known is None else known.kept(pixels)

    def step() -> None:
        output = module(pixels) if known is None or crossing is None else known.rest(crossing)
        output.sum().backward()

    each = _timed(step, device) / len(pixels)
    if crossing is not None:
        return each
    threads = threads_beside(device.type)
    return max(each, _view_s(frames[0]) / threads) if threads else each + _view_s(frames[0])


def _view_s(frame: npt.NDArray[np.uint8]) -> float:
    """Return seconds for a new view of an image: beside a GPU's step, most of the time."""
    augmented(frame, Augmentation(), (0,))  # the first allocates
    began = time.perf_counter()
    for key in range(TIMED_IMAGES):
        augmented(frame, Augmentation(), (key,))
    return (time.perf_counter() - began) / TIMED_IMAGES


def _timed(call: Callable[[], object], device: torch.device) -> float:
    call()  # the first allocates
    finished(device)
    began = time.perf_counter()
    call()
    finished(device)
    return time.perf_counter() - began
