"""Quantization-aware fine-tuning: the backbone learns to give its own features in spite of int8.

NVIDIA's ModelOpt puts fake quantizers on the inputs and weights of its layers; the network with them is trained
to give the features that it gave without them (cosine and scale). No labels are used: what the backbone knows, and
how open it is to new classes, stays as it was. The trained weights then go the same way as any others: ONNX,
ranges, int8 by ONNX Runtime. So there is one way to make an int8 file, and what is measured is that file (0013 in
docs/decisions).

The network learns the very grid that it is trained on, and little else: weights trained for 8 bits and signed
inputs gave a cosine of 0.98 in the `tensorrt` form, 0.60 in the `cpu` form, whose weights have 7 bits, and 0.78 in
fp32.
So each profile is trained on its own grid.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from export.augment import Augmentation, Frames, augmented, normalised, to_pixels
from export.backbones import Backbone
from export.profiles import Profile, is_narrow
from sdk.errors import ExportError
from sdk.extras import installing

STEPS: Final = 60
BATCH: Final = 12
LEARNING_RATE: Final = 5e-5
"""Peak, of AdamW. It moves weights by less than a step of their 8-bit grid at first."""
SCALE_WEIGHT: Final = 0.1
"""Of the squared error of the features, in their own mean square, beside one minus the cosine: codes are made of
directions, the scale only must not drift."""
CALIBRATION_IMAGES: Final = 24
WEIGHT_BITS: Final = {Profile.CPU: 7, Profile.TENSORRT: 8}
"""As `export.profiles` places them."""
_REACH: Final = {Profile.CPU: 63 / 64, Profile.TENSORRT: 1.0}
_INPUT: Final = "input_quantizer"
_WEIGHT: Final = "weight_quantizer"
MIN_STEPS: Final = 10
"""Fewer change nothing that can be measured."""


@dataclass(frozen=True)
class QatOutcome:
    """What the fine-tuning came to.

    Attributes:
        steps: As many as the budget allowed.
        first_loss, last_loss: Means over the first and the last tenth of the steps.
        seconds: It took.
    """

    steps: int
    first_loss: float
    last_loss: float
    seconds: float


def finetune_for_int8(
    backbone: Backbone,
    frames: Frames,
    rows: npt.NDArray[np.int64],
    profile: Profile,
    *,
    seed: int,
    budget_s: float | None = None,
    steps: int = STEPS,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Backbone, QatOutcome]:
    """Return a backbone whose features suffer less from int8; the one given stays as it is.

    Args:
        backbone: In evaluation mode.
        frames: Images at its input size.
        rows: Those to train on.
        profile: Whose grid to train on.
        seed: Of their order and augmentation.
        budget_s: Fewer steps are taken when the first say that all of them would take longer.
        steps: At most.
        on_step: Called with (steps done, steps in all).
        clock: Seconds that only grow.

    Raises:
        ExportError: ModelOpt is missing or does not take this network, or training diverged.
    """
    began = clock()
    generator = torch.Generator().manual_seed(seed)
    teacher, student = backbone.module.eval(), copy.deepcopy(backbone.module).eval()
    names = {name for name, _ in student.named_parameters()}
    first = to_pixels(frames[rows[np.linspace(0, len(rows) - 1, min(len(rows), CALIBRATION_IMAGES)).astype(int)]],
                      backbone.preprocess)  # fmt: skip
    _insert_quantizers(student, first, profile)
    trained = [weight for name, weight in student.named_parameters() if name in names]
    for weight in trained:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    losses: list[float] = []
    planned, taken = steps, clock()
    while len(losses) < planned:
        rate = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * len(losses) / planned))
        for group in optimizer.param_groups:
            group["lr"] = rate
        drawn = torch.randint(0, len(rows), (min(BATCH, len(rows)),), generator=generator).numpy()
        step = len(losses)
        images = [
            augmented(frames[row], Augmentation(), (seed, step, place)) for place, row in enumerate(rows[drawn])
        ]
        pixels = normalised(torch.stack(images), backbone.preprocess)
        with torch.no_grad():
            wanted = teacher(pixels)
        loss = _distance(student(pixels), wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ExportError("quantization-aware fine-tuning diverged", hint="Export with --no-qat.")
        if len(losses) == 2 and budget_s is not None:
            each = (clock() - taken) / 2
            planned = min(steps, max(MIN_STEPS, math.floor(budget_s / max(each, 1e-6))))
        on_step(len(losses), planned)
    module = copy.deepcopy(backbone.module)
    learned = student.state_dict()
    module.load_state_dict({name: learned[name] for name in module.state_dict()})
    for weight in module.parameters():
        weight.requires_grad_(False)
    tenth = max(1, len(losses) // 10)
    outcome = QatOutcome(
        len(losses), float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:])), clock() - began
    )
    return replace(backbone, module=module.eval()), outcome


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    direction = (1 - functional.cosine_similarity(found, wanted, dim=1)).mean()
    return direction + SCALE_WEIGHT * (found - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)


def _insert_quantizers(module: nn.Module, pixels: torch.Tensor, profile: Profile) -> None:
    """Put fake quantizers into the module in place: weights per channel, inputs per tensor, on the profile's grid.

    The grid of weights per channel is the same before and after batch norm is folded in: it multiplies channels.
    """
    missing = f"{installing('export')}, or export with --no-qat."
    try:
        with _quiet():
            import modelopt.torch.quantization as mtq
            from modelopt.torch.quantization.nn import QuantModuleRegistry
            from modelopt.torch.quantization.nn.modules.quant_conv import _QuantConv2d
    except ImportError as error:
        raise ExportError("quantization-aware fine-tuning needs nvidia-modelopt", hint=missing) from error

    # ModelOpt goes by the exact class, and passes over timm's own convolutions (padded as TensorFlow does).
    for kind in {type(part) for part in module.modules() if isinstance(part, nn.Conv2d)}:
        if QuantModuleRegistry.get(kind) is None:
            QuantModuleRegistry.register({kind: kind.__name__})(_QuantConv2d)
    left = left_float(module, profile)
    lowest: dict[str, float] = {}

    def run(model: Any) -> None:
        hooks = [
            part.register_forward_pre_hook(
                lambda _, given, name=name: lowest.update(
                    {name: min(lowest.get(name, 0.0), float(given[0].min()))}
                )
            )
            for name, part in model.named_modules()
            if name.endswith(_INPUT)
        ]
        with torch.no_grad():
            for batch in torch.split(pixels, BATCH):
                model(batch)
        for hook in hooks:
            hook.remove()

    try:
        with _quiet():
            mtq.quantize(module, mtq.INT8_DEFAULT_CFG, run)
            for name, part in module.named_modules():
                quantizer: Any = part
                if name.endswith(_WEIGHT):
                    quantizer.num_bits = WEIGHT_BITS[profile]
                    # ONNX Runtime's 7 bits reach from -64 to 64, ModelOpt's from -63 to 63: the same steps.
                    quantizer.amax = quantizer.amax * _REACH[profile]
                elif name.endswith(_INPUT) and profile is Profile.CPU and lowest.get(name, -1.0) >= 0:
                    quantizer.unsigned = True  # as behind a ReLU: the `cpu` profile's offset is then 0
                if name.rpartition(".")[0] in left:
                    quantizer.disable()
    except (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, NotImplementedError) as error:
        raise ExportError(
            f"ModelOpt does not take this network: {' '.join(str(error).split())[:200]}",
            hint="Export with --no-qat.",
        ) from error


def left_float(module: nn.Module, profile: Profile) -> set[str]:
    """Return the first convolutions that the profile leaves in fp32: see `export.profiles.kept_float`."""
    if profile is not Profile.CPU or any(isinstance(part, nn.LayerNorm) for part in module.modules()):
        return set()
    found: set[str] = set()
    for name, part in module.named_modules():
        if isinstance(part, nn.MaxPool2d):
            return set()
        if isinstance(part, nn.Conv2d | nn.Linear):
            if isinstance(part, nn.Linear) or not is_narrow(part.out_channels, part.in_channels, part.groups):
                break
            found.add(name)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
