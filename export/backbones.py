"""timm architectures with weights from a file, a folder, timm's hub, ourselves, or none: pooled features.

Rules this module keeps:

- Weights are safetensors only: nothing that is unpickled. What is hashed is what is loaded.
- Weights fit wholly or are refused: timm loads them strictly, with the classifier they came with, which is then
  taken off. A key too few would otherwise be a layer of random numbers that nobody notices.
- Preprocessing follows the weights' own configuration.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import inspect
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import msgspec
import safetensors.torch
import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from timm.models import PretrainedCfg
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from export.maps import layout_of
from sdk.bundle import MapEntry
from sdk.codes import MAX_FEATURE_SIZE
from sdk.damaged import DAMAGED
from sdk.errors import ExportError, UnknownBackbone
from sdk.preprocess import Preprocess

NO_WEIGHTS: Final = "none"
"""`--weights none`: random initialisation, to be trained from scratch."""
BUILTIN: Final = "builtin"
"""`--backbone builtin`: the network that comes with Headway, trained by `headway export pretrain`."""
BUILTIN_FOLDER: Final = Path(__file__).with_name("builtin")
OWN_LEVELS: Final = 4
OWN_FEATURE_SIZE: Final = 2048
"""Levels that are read where nobody says: up to four, and no more than give so many numbers. With four, classes
never seen stand out better and probabilities are truer (docs/decisions/0042); a head of 2048 is solved in four
times the time of one of 1280."""
WEIGHTS_NAME: Final = "model.safetensors"
_SLACK: Final = 4
"""Times the weights' own size that a model may register while it is built; layers may be made and replaced."""
CONFIG_NAME: Final = "config.json"
MAX_CONFIG_BYTES: Final = 1024 * 1024
MAX_WEIGHTS_BYTES: Final = 8 * 1024**3
"""Far above what an edge device runs (bundles end at 2 GiB); keeps a wrong file from filling the memory."""
DEFAULT_SIDE_PX: Final = 224
UNKNOWN_LICENCE: Final = "unknown"

_STATE = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Origin:
    """Where weights come from.

    Attributes:
        source: For people: the file's or folder's name, a hub address, or how they were drawn.
        sha256: Of the weights file, 64 hex digits; None for random weights.
        licence: As the weights' configuration says, or `unknown`.
        pretrained: They were learned from images, not drawn at random.
    """

    source: str
    sha256: str | None
    licence: str
    pretrained: bool


@dataclass(frozen=True)
class Backbone:
    """A network that gives pooled features.

    Attributes:
        name: timm's architecture name.
        module: (n, 3, H, W) float32 to (n, d) float32. Changed in place by fine-tuning.
        feature_size: d.
        preprocess: How a frame becomes its input.
        origin: Of its weights.
        maps: Spatial maps that it can give beside the features (`export.maps`), lowest level first.
    """

    name: str
    module: nn.Module
    feature_size: int
    preprocess: Preprocess
    origin: Origin
    maps: tuple[MapEntry, ...] = ()

    @property
    def levels(self) -> int:
        """How many of the network's levels the features are read from."""
        return self.module.levels if isinstance(self.module, Tapped) else 1

    @property
    def network(self) -> nn.Module:
        """timm's own model, under whatever reads its levels."""
        return self.module.network if isinstance(self.module, Tapped) else self.module

    def parameters(self) -> int:
        """Return the number of weights."""
        return sum(p.numel() for p in self.module.parameters())


class Tapped(nn.Module):
    """A network's own pooled features, followed by averages and maxima of the levels below its last, lower first.

    Args:
        network: A timm model without a classifier.
        levels: How many levels count, the last among them; at least 2.
    """

    def __init__(self, network: nn.Module, levels: int) -> None:
        super().__init__()
        self.network = network
        self.levels = levels

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (n, d) features of (n, 3, H, W) pixels."""
        return self.levels_of(pixels)[0]

    def levels_of(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Return features (n, d), the levels below the last (n, c, h, w), lower first, and timm's last one."""
        network: Any = self.network
        last, maps = network.forward_intermediates(pixels, indices=self.levels, output_fmt="NCHW")
        pooled = [network.forward_head(last, pre_logits=True)]
        for level in maps[:-1]:
            pooled += [level.mean((2, 3)), level.amax((2, 3))]
        return torch.cat(pooled, 1), maps[:-1], last


@dataclass(frozen=True)
class _Source:
    """Weights found, not yet in a network."""

    origin: Origin
    state: _STATE | None
    config: PretrainedCfg
    model_args: dict[str, Any]


def own_levels(module: nn.Module, size: int) -> int:
    """Return how many of a network's last levels are read where nobody says.

    Args:
        module: A timm model without a classifier.
        size: Its own features.
    """
    if not hasattr(module, "forward_intermediates"):
        return 1
    info: Any = getattr(module, "feature_info", ())
    channels = [int(level["num_chs"]) for level in info][-OWN_LEVELS:-1]  # of the levels below the last
    room = accumulate([size, *(2 * c for c in reversed(channels))])
    return max(1, sum(d <= OWN_FEATURE_SIZE for d in room))


def load_backbone(
    name: str,
    weights: str | None = None,
    *,
    input_size_px: int | None = None,
    pool: str | None = None,
    levels: int | None = None,
    seed: int = 0,
    licence: str | None = None,
    hub_cache: Path | None = None,
) -> Backbone:
    """Return timm's architecture `name` with weights, without its classifier.

    Args:
        name: A name of `timm.list_models()`, with hub weights also with a tag (`resnet18.a1_in1k`), or `builtin`.
        weights: A safetensors file of timm's own key names, a timm model folder (config.json and
            model.safetensors), `none` for random ones, or None for timm's hub, or for `builtin`'s own.
        input_size_px: Side of the square input; None takes the weights' own.
        pool: timm's name of the global pooling (`avg`, `max`, `catavgmax`); None takes the weights' own. In an
            average over the frame, a defect of a few pixels drowns.
        levels: 1 takes the network's own features. More adds the averages and maxima of as many levels below: the
            last level knows what training asked of it, those below see other kinds of change as well. None is as
            many of the last four as `OWN_FEATURE_SIZE` has room for.
        seed: Of random weights.
        licence: Of weights that do not state theirs.
        hub_cache: A copy of the hub's cache, on machines without a network: nothing is fetched then. None is the
            hub's own way, and asks it.

    Raises:
        UnknownBackbone: no such architecture, or weights that are missing, damaged or do not fit.
        ExportError: the network does not give features that a head can use.
    """
    architecture, source = _found(name, weights, seed, licence, hub_cache)
    if pool is not None:
        source.model_args["global_pool"] = pool
    module = _build(architecture, source, seed)
    preprocess = _preprocess(name, source.config, input_size_px)
    module = _resized(name, module, source.config, preprocess)
    size = _check_features(name, module, preprocess)
    if levels is None:
        levels = own_levels(module, size)
    if levels > 1:
        module = _tapped(name, module, levels)
        size = _check_features(name, module, preprocess)
    described = f"{BUILTIN} ({architecture})" if name == BUILTIN else architecture
    if pool is not None:
        described += f", {pool} pooling"
    if levels > 1:
        described += f", {levels} levels"
    return Backbone(described, module, size, preprocess, source.origin, layout_of(module, preprocess))


def check_source(name: str, weights: str | None = None, *, licence: str | None = None) -> None:
    """Refuse a name, weights or a licence that `load_backbone` would refuse, without building the network.

    It costs reading the weights once, and with the hub's fetching them; a mistyped name need not wait for a look
    at all images.

    Raises:
        UnknownBackbone: no such architecture, or weights that are missing, damaged or of another one.
    """
    _found(name, weights, 0, licence, None)


def _found(
    name: str, weights: str | None, seed: int, licence: str | None, hub_cache: Path | None
) -> tuple[str, _Source]:
    """Return the architecture, and the weights with the licence that is stated for them."""
    if name == BUILTIN:
        architecture, source = _builtin(weights, seed)
    else:
        architecture, source = _named(name, weights, seed, hub_cache)
    if licence is not None:
        source = replace(source, origin=_with_licence(source.origin, licence))
    return architecture, source


def _named(name: str, weights: str | None, seed: int, hub_cache: Path | None) -> tuple[str, _Source]:
    """Return timm's architecture, and the weights that are asked for."""
    architecture, _, tag = name.partition(".")
    if ":" in name or "/" in name or not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See the names that timm.list_models() gives."
        raise UnknownBackbone(f"timm has no architecture {name!r}", hint=hint)
    if tag and weights is not None:
        raise UnknownBackbone(
            f"{name!r} names weights of timm's hub, and --weights names others",
            hint=f"Give --backbone {architecture} with --weights, or {name} alone.",
        )
    return architecture, _find(name, weights, seed, hub_cache)


def _builtin(weights: str | None, seed: int) -> tuple[str, _Source]:
    """Return the architecture and weights that come with Headway; the architecture alone with `--weights none`."""
    if weights not in (None, NO_WEIGHTS):
        raise UnknownBackbone(
            f"--weights {weights}: {BUILTIN} comes with its own",
            hint="Leave --weights out, or name the timm architecture that the weights are of.",
        )
    architecture = _described(BUILTIN_FOLDER).architecture
    source = _from_folder(architecture, BUILTIN_FOLDER)
    if weights == NO_WEIGHTS:
        return architecture, replace(source, origin=_random(seed), state=None)
    return architecture, replace(source, origin=replace(source.origin, source="comes with Headway"))


def _random(seed: int) -> Origin:
    return Origin(f"random initialisation, seed {seed}", None, "not applicable", False)


def _with_licence(origin: Origin, licence: str) -> Origin:
    """Return the origin of weights whose licence somebody states, because they do not."""
    if not origin.pretrained or origin.licence.casefold() not in (UNKNOWN_LICENCE, licence.casefold()):
        said = f"say {origin.licence!r} themselves" if origin.pretrained else "are random"
        raise UnknownBackbone(f"--licence {licence}: the weights {said}", hint="Leave --licence out.")
    return replace(origin, licence=licence, source=f"{origin.source}, licence stated at the export")


def _find(name: str, weights: str | None, seed: int, hub_cache: Path | None) -> _Source:
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    if weights is None:
        return _from_hub(name, config, hub_cache)
    if weights == NO_WEIGHTS:
        return _Source(_random(seed), None, config, {})
    path = Path(weights)
    if path.is_dir():
        return _from_folder(name, path)
    if not path.is_file():
        raise UnknownBackbone(
            f"--weights {weights}: there is no such file or folder",
            hint="Name a .safetensors file or a timm model folder, or use --weights none to train from scratch.",
        )
    if path.suffix != ".safetensors":
        raise UnknownBackbone(
            f"--weights {weights} is not a .safetensors file",
            hint="Convert it with safetensors.torch.save_file; pickled weights can run code and are not read.",
        )
    state, sha256 = _read_weights(path)
    # What the file holds is not written in it: the architecture's usual preprocessing is assumed and recorded.
    return _Source(Origin(f"file {path.name}", sha256, UNKNOWN_LICENCE, True), state, config, {})


def _from_hub(name: str, config: PretrainedCfg, cache: Path | None) -> _Source:
    offline = (
        "Use --weights with a file or a timm model folder, --backbone builtin, which needs no hub, or "
        "--weights none to train from scratch."
    )
    if not config.hf_hub_id:
        raise UnknownBackbone(f"timm's hub has no weights for {name}", hint=offline)
    file = config.hf_hub_filename or WEIGHTS_NAME
    try:
        path = Path(hf_hub_download(config.hf_hub_id, file, cache_dir=cache, local_files_only=cache is not None))
    except (RepositoryNotFoundError, EntryNotFoundError, OSError) as error:
        raise UnknownBackbone(
            f"the weights {config.hf_hub_id} cannot be fetched from timm's hub: {_one_line(error)}", hint=offline
        ) from error
    if path.suffix != ".safetensors":
        raise UnknownBackbone(f"{config.hf_hub_id} has no safetensors weights", hint=offline)
    state, sha256 = _read_weights(path)
    licence = config.license or UNKNOWN_LICENCE
    # The hub's cache keeps a file under the commit that it came from.
    revision = f"@{path.parent.name}" if path.parent.parent.name == "snapshots" else ""
    return _Source(Origin(f"hf-hub:{config.hf_hub_id}{revision}", sha256, licence, True), state, config, {})


_Three = tuple[float, float, float]


class _Described(msgspec.Struct):
    """What is read of `pretrained_cfg`: what the weights need, never an address or another format's loader."""

    input_size: tuple[int, int, int] = (3, DEFAULT_SIDE_PX, DEFAULT_SIDE_PX)
    mean: _Three = (0.485, 0.456, 0.406)
    std: _Three = (0.229, 0.224, 0.225)
    fixed_input_size: bool = False
    first_conv: str | tuple[str, ...] | None = None
    classifier: str | tuple[str, ...] | None = None
    license: str | None = None
    origin_url: str | None = None


class _FolderConfig(msgspec.Struct):
    """What is read of a timm model folder's config.json; other members are timm's own business."""

    architecture: str
    pretrained_cfg: _Described
    model_args: dict[str, Any] = {}


_AGAIN: Final = "Name a timm model folder: config.json and model.safetensors, as timm's save_for_hf writes them."


def _described(folder: Path) -> _FolderConfig:
    """Return a timm model folder's config.json."""
    file = folder / CONFIG_NAME
    try:
        _check_regular(file, _AGAIN)
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise UnknownBackbone(f"{file} is too large", hint=_AGAIN)
        return msgspec.json.decode(file.read_bytes(), type=_FolderConfig)
    except OSError as error:
        raise UnknownBackbone(f"{file}: {error.strerror}", hint=_AGAIN) from error
    except DAMAGED as error:
        raise UnknownBackbone(f"{file}: {_one_line(error)}", hint=_AGAIN) from error


def _from_folder(name: str, folder: Path) -> _Source:
    found = _described(folder)
    architecture = found.architecture.partition(".")[0]
    if architecture != name:
        raise UnknownBackbone(
            f"{folder} holds {architecture}, not {name}", hint=f"Use --backbone {architecture}, or other weights."
        )
    own = found.model_args.keys() & inspect.signature(timm.create_model).parameters.keys()
    if own:  # `checkpoint_path` would have timm unpickle any file
        raise UnknownBackbone(f"{folder / CONFIG_NAME}: model_args may not set {min(own)}", hint=_AGAIN)
    state, sha256 = _read_weights(folder / WEIGHTS_NAME)
    described = msgspec.structs.asdict(found.pretrained_cfg)
    usual = timm.get_pretrained_cfg(name) or PretrainedCfg()
    for layer in ("first_conv", "classifier"):
        described[layer] = described[layer] or getattr(usual, layer)
    config = PretrainedCfg(**described)
    model_args = {k: v for k, v in found.model_args.items() if k != "num_classes"}
    licence = found.pretrained_cfg.license or UNKNOWN_LICENCE
    origin = found.pretrained_cfg.origin_url
    # The name only: a bundle travels, and where it was made is nobody's business.
    source = f"folder {folder.resolve().name}" + (f" ({origin})" if origin else "")
    return _Source(Origin(source, sha256, licence, True), state, config, model_args)


def _check_regular(file: Path, hint: str) -> None:
    """Refuse a pipe or a device, which would be read for ever."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise UnknownBackbone(f"{file} is not a regular file", hint=hint)


def _read_weights(path: Path) -> tuple[_STATE, str]:
    """Return the tensors of a safetensors file and the SHA-256 of the very bytes they were read from."""
    again = "Copy or download it again."
    try:
        _check_regular(path, again)
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise UnknownBackbone(f"{path} is over {MAX_WEIGHTS_BYTES} bytes", hint="Use a smaller backbone.")
        data = path.read_bytes()
        state = safetensors.torch.load(data)
    except OSError as error:
        raise UnknownBackbone(f"{path}: {error.strerror}", hint=again) from error
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnknownBackbone(f"{path} is damaged: {_one_line(error)}", hint=again) from error
    odd = next((k for k, v in state.items() if v.is_floating_point() and not bool(v.isfinite().all())), None)
    if odd is not None:
        raise UnknownBackbone(f"{path}: {odd} is not finite", hint="These weights are broken; take others.")
    whole = next(
        (k for k, v in state.items() if not v.is_floating_point() and k.endswith((".weight", ".bias"))), None
    )
    if whole is not None:
        raise UnknownBackbone(
            f"{path}: {whole} is of whole numbers", hint="Give the weights as they were trained, not quantized."
        )
    return state, hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def _no_larger_than(state: _STATE) -> Iterator[None]:
    """Have torch give up a model as soon as it is larger than its weights: model_args may ask for any size.

    A parameter is registered before it is filled, so that nothing of the excess is ever touched.
    """
    numbers, tensors = _SLACK * sum(v.numel() for v in state.values()), _SLACK * len(state)

    def count(_module: nn.Module, _name: str, parameter: torch.Tensor | None) -> None:
        nonlocal numbers, tensors
        if parameter is not None:
            numbers, tensors = numbers - parameter.numel(), tensors - 1
        if numbers < 0 or tensors < 0:
            raise ValueError("the model is larger than they are")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _build(architecture: str, source: _Source, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    what = f"the weights of {source.origin.source}"
    arguments = dict(source.model_args)
    try:
        if source.state is None:
            return _module(timm.create_model(architecture, pretrained=False, num_classes=0, **arguments))
        classes = _classes_in(source)
        config = replace(source.config, state_dict=dict(source.state), num_classes=classes, label_offset=None)
        with _no_larger_than(source.state):
            model: Any = timm.create_model(
                architecture, pretrained=True, pretrained_cfg=config, num_classes=classes, **arguments
            )
        if classes:
            model.reset_classifier(0)
        return _module(model)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise UnknownBackbone(
            f"{what} do not fit {architecture}: {_one_line(error)}",
            hint="Use the weights of this architecture, saved by timm, with the model arguments they need "
            "(a timm model folder's config.json carries those).",
        ) from error


def _module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"timm gave {type(model).__name__}")
    return model.eval()


def _classes_in(source: _Source) -> int:
    """Return the size of the classifier that the weights come with; 0 where they have none."""
    names = source.config.classifier or ()
    first = names if isinstance(names, str) else next(iter(names), "")
    weight = None if source.state is None else source.state.get(f"{first}.weight")
    return 0 if weight is None else int(weight.shape[0])


def _preprocess(name: str, config: PretrainedCfg, input_size_px: int | None) -> Preprocess:
    height, width = (input_size_px, input_size_px) if input_size_px else config.input_size[1:]
    try:
        return msgspec.convert(
            {"height": height, "width": width, "mean": config.mean, "std": config.std}, Preprocess
        )
    except msgspec.ValidationError as error:
        raise UnknownBackbone(
            f"{name} takes other input than colour pictures: {error}",
            hint="Use weights for three channels, or another --input-size.",
        ) from error


def _resized(name: str, module: nn.Module, config: PretrainedCfg, preprocess: Preprocess) -> nn.Module:
    """Return the module for this input size: transformers carry one position per patch."""
    built_for = tuple(config.input_size[1:])
    wanted = (preprocess.height, preprocess.width)
    if config.fixed_input_size and wanted != built_for:
        resize = getattr(module, "set_input_size", None)
        try:
            if resize is None:
                raise ValueError("it has one size only")
            resize(img_size=wanted)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ExportError(
                f"{name} does not take {wanted[1]} x {wanted[0]} pixels: {_one_line(error)}",
                hint=f"Leave out --input-size for its own {built_for[1]} pixels, or use a multiple of its patch.",
            ) from error
    return module


def _tapped(name: str, module: nn.Module, levels: int) -> nn.Module:
    there = len(getattr(module, "feature_info", ()))
    if not hasattr(module, "forward_intermediates") or there < levels:
        have = f"has {there} levels" if there else "does not show its levels"
        raise ExportError(f"{name} {have}", hint="Give a smaller --levels, or leave it out.")
    return Tapped(module, levels).eval()


def _check_features(name: str, module: nn.Module, preprocess: Preprocess) -> int:
    """Return d after one pass of noise."""
    noise = torch.rand(2, 3, preprocess.height, preprocess.width, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            features = module(noise)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ExportError(
            f"{name} cannot take {preprocess.width} x {preprocess.height} pixels: {_one_line(error)}",
            hint="Give another --input-size.",
        ) from error
    if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != 2:
        raise ExportError(f"{name} gives no pooled features", hint="Use another backbone or model arguments.")
    if features.shape[1] > MAX_FEATURE_SIZE:
        raise ExportError(
            f"{name} gives {features.shape[1]} features, over {MAX_FEATURE_SIZE}", hint="Use a smaller backbone."
        )
    if not bool(features.isfinite().all()):
        raise UnknownBackbone(f"{name} with these weights gives no finite numbers", hint="Take other weights.")
    return int(features.shape[1])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
