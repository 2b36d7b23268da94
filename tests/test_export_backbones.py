"""Backbones: timm's architectures with weights that fit wholly, or a refusal that says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from export.backbones import Origin, load_backbone
from sdk.errors import ExportError, UnknownBackbone

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # tests run side by side; spinning threads cost more than they give

NAME = "test_resnet"
SHARED = Path(os.environ.get("HEADWAY_SHARED", Path(__file__).parents[2] / "shared"))


def save_weights(folder: Path, name: str = NAME, *, classes: int = 5, seed: int = 7) -> Path:
    """Write a timm model folder with random weights and a classifier, and return it."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model(name, num_classes=classes).state_dict(), folder / "model.safetensors")
    cfg = {
        "input_size": [3, 96, 96], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "license": "mit",
        "interpolation": "bicubic",
    }  # fmt: skip
    config = {"architecture": name, "num_classes": classes, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def features(module: torch.nn.Module, side: int = 64) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(module(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))))


def test_a_folder_gives_what_timm_gives_for_it(tmp_path: Path) -> None:
    folder = save_weights(tmp_path / "weights")
    backbone = load_backbone(NAME, str(folder), levels=1)
    expected: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    expected.reset_classifier(0)
    expected.eval()
    assert torch.equal(features(backbone.module), features(expected))
    assert backbone.feature_size == 96


def test_preprocessing_and_licence_are_the_folders_own(tmp_path: Path) -> None:
    backbone = load_backbone(NAME, str(save_weights(tmp_path / "weights")))
    assert (backbone.preprocess.width, backbone.preprocess.mean) == (96, (0.5, 0.4, 0.3))
    assert backbone.origin.licence == "mit"
    weights = (tmp_path / "weights" / "model.safetensors").read_bytes()
    assert backbone.origin.sha256 == hashlib.sha256(weights).hexdigest()
    assert str(tmp_path) not in backbone.origin.source  # it travels in the bundle


def test_a_bare_file_is_loaded_and_its_licence_unknown(tmp_path: Path) -> None:
    folder = save_weights(tmp_path)
    bare = load_backbone(NAME, str(folder / "model.safetensors"), input_size_px=64)
    assert torch.equal(features(bare.module), features(load_backbone(NAME, str(folder)).module))
    assert bare.origin.licence == "unknown"
    assert bare.preprocess.width == 64


def test_weights_without_a_classifier_are_loaded(tmp_path: Path) -> None:
    model = timm.create_model(NAME, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "features.safetensors")
    backbone = load_backbone(NAME, str(tmp_path / "features.safetensors"), levels=1)
    assert torch.equal(features(backbone.module), features(model))


def test_hub_weights_are_taken_from_the_hubs_cache_and_named_with_their_commit(tmp_path: Path) -> None:
    """The hub's own library finds the file where a download would have put it."""
    commit = "c0ffee" + "0" * 34
    repository = tmp_path / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = save_weights(repository / "snapshots" / commit, classes=1000)
    backbone = load_backbone(NAME, hub_cache=tmp_path)
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    # The licence and the input size are what timm says of these weights.
    assert backbone.origin == Origin(f"hf-hub:timm/test_resnet.r160_in1k@{commit}", sha256, "apache-2.0", True)
    assert backbone.preprocess.width == 160
    here = load_backbone(NAME, str(folder / "model.safetensors"))
    assert torch.equal(features(backbone.module), features(here.module))


def test_hub_weights_that_are_not_in_the_cache_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownBackbone, match="cannot be fetched from timm's hub"):
        load_backbone(NAME, hub_cache=tmp_path)


def test_a_licence_is_stated_for_weights_that_do_not_say(tmp_path: Path) -> None:
    folder = save_weights(tmp_path)
    origin = load_backbone(NAME, str(folder / "model.safetensors"), licence="MIT").origin
    assert (origin.licence, origin.source) == ("MIT", "file model.safetensors, licence stated at the export")
    assert load_backbone(NAME, str(folder), licence="mit").origin.licence == "mit"  # what they say themselves


@pytest.mark.parametrize(("weights", "says"), [("", "say 'mit' themselves"), ("none", "are random")])
def test_a_licence_that_is_not_for_anybody_to_state_is_refused(weights: str, says: str, tmp_path: Path) -> None:
    folder = save_weights(tmp_path)
    with pytest.raises(UnknownBackbone, match=says):
        load_backbone(NAME, weights or str(folder), licence="Apache-2.0")


def test_random_weights_follow_the_seed() -> None:
    one, again, other = (load_backbone(NAME, "none", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(features(one.module), features(again.module))
    assert not torch.equal(features(one.module), features(other.module))
    assert not one.origin.pretrained
    assert one.origin.sha256 is None


@pytest.mark.parametrize(("name", "size"), [("test_vit", 64), ("test_convnext", 64), ("test_efficientnet", 48)])
def test_transformers_and_others_take_another_input_size(name: str, size: int) -> None:
    backbone = load_backbone(name, "none", input_size_px=size)
    assert features(backbone.module, size).shape == (2, backbone.feature_size)


def test_a_transformers_weights_are_fitted_to_another_input_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "vit.safetensors")
    assert load_backbone("test_vit", str(tmp_path / "vit.safetensors"), input_size_px=64).preprocess.width == 64


def truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def drop_a_layer(folder: Path) -> None:
    model = timm.create_model(NAME, num_classes=5)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("layer2")}
    save_file(state, folder / "model.safetensors")


def poison(folder: Path) -> None:
    model = timm.create_model(NAME, num_classes=5)
    state = model.state_dict()
    state["layer1.0.conv1.weight"][0] = float("nan")
    save_file(state, folder / "model.safetensors")


def safetensors_bytes(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def overwrite(data: bytes) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(data)

    return harm


def tensor(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def pickle_instead(folder: Path) -> None:
    torch.save(timm.create_model(NAME, num_classes=5).state_dict(), folder / "model.safetensors")


def change(kind: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    """Change the first tensor of a name."""

    def harm(folder: Path) -> None:
        state = timm.create_model(NAME, num_classes=5).state_dict()
        name = next(name for name in state if kind in name)
        save_file({**state, name: edit(state[name]).contiguous()}, folder / "model.safetensors")

    return harm


def become(make: Callable[[Path], object], name: str = "model.safetensors") -> Callable[[Path], None]:
    """Put something that is no file where a file should be."""

    def harm(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return harm


def edit_config(**members: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **members}))

    return edit


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (truncate, "damaged"),
        (drop_a_layer, "do not fit"),
        (poison, "not finite"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "No such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_bytes(b" " * 2_000_000), "too large"),
        (edit_config(architecture="resnet18"), "holds resnet18, not test_resnet"),
        (edit_config(pretrained_cfg={"mean": "grey"}), "config.json"),
        (edit_config(pretrained_cfg={"mean": [0, 0, 5], "std": [1, 1, 1]}), "colour pictures"),
        (edit_config(model_args={"block": "x"}), "do not fit"),
        (edit_config(model_args={"layers": [10**9, 1, 1, 1]}), "larger than they are"),
        (edit_config(model_args={"channels": [10**5, 64, 64, 64]}), "larger than they are"),
        (edit_config(model_args={"checkpoint_path": "/etc/passwd"}), "may not set checkpoint_path"),
        (edit_config(model_args={"pretrained": True}), "may not set pretrained"),
        (edit_config(pretrained_cfg={"input_size": [3, 10**9, 10**9]}), "colour pictures"),
        (lambda folder: (folder / "config.json").write_text("[" * 500_000), "config.json"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text('{"architecture": NaN}'), "config.json"),
        (become(os.mkfifo, "config.json"), "not a regular file"),
        (pickle_instead, "damaged"),
        (overwrite(struct.pack("<Q", 2**63) + b"{}"), "damaged"),
        (overwrite(struct.pack("<Q", 200_000) + b"[" * 200_000), "damaged"),
        (overwrite(safetensors_bytes({"a": tensor([4], 0, 16), "b": tensor([4], 8, 24)}, bytes(24))), "damaged"),
        (overwrite(safetensors_bytes({"a": tensor([2**40], 0, 2**42)}, bytes(16))), "damaged"),
        (overwrite(safetensors_bytes({"a": tensor([2**32, 2**32], 0, 0)})), "damaged"),
        (overwrite(safetensors_bytes({})), "do not fit"),
        (change("conv1.weight", lambda t: t.to(torch.int8)), "whole numbers"),
        (change("conv1.0.weight", lambda t: t.permute(1, 0, 2, 3)), "do not fit"),
        (change("running_var", lambda t: -torch.ones_like(t)), "no finite numbers"),
        (become(Path.mkdir), "not a regular file"),
        (become(os.mkfifo), "not a regular file"),
        (become(lambda path: path.symlink_to("/dev/zero")), "not a regular file"),
        (become(lambda path: path.symlink_to(path)), "symbolic links"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path, harm: Callable[[Path], None], says: str) -> None:
    folder = save_weights(tmp_path / "weights")
    harm(folder)
    with pytest.raises(UnknownBackbone, match=says) as caught:
        load_backbone(NAME, str(folder))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "weights", "hint"),
    [
        ("mobilenetv2_10", "none", "mobilenetv2_100"),
        ("xq", "none", "list_models"),
        ("local-dir:/etc", "none", "list_models"),
        ("test_resnet.r160_in1k", "none", "--backbone test_resnet"),
        (NAME, "/nowhere/at/all", "none"),
        (NAME, __file__, "save_file"),
    ],
)
def test_what_is_not_there_is_refused_with_a_hint(name: str, weights: str, hint: str) -> None:
    with pytest.raises(UnknownBackbone) as caught:
        load_backbone(name, weights)
    assert hint in caught.value.hint


def test_an_input_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(ExportError, match="pixels"):
        load_backbone("test_vit", "none", input_size_px=8)


@pytest.mark.parametrize(
    ("name", "levels", "size"),
    [
        ("test_resnet", 4, 96 + 2 * (192 + 48 + 32)),
        ("test_efficientnet", 2, 256 + 2 * 48),
        ("test_vit", 3, 5 * 64),
    ],
)
def test_lower_levels_are_added_behind_the_networks_own_features(name: str, levels: int, size: int) -> None:
    own = load_backbone(name, "none", input_size_px=64, levels=1)
    tapped = load_backbone(name, "none", input_size_px=64, levels=levels)
    assert tapped.feature_size == size
    assert tapped.parameters() == own.parameters()
    assert torch.equal(features(tapped.module)[:, : own.feature_size], features(own.module))
    assert tapped.name == f"{name}, {levels} levels"


@pytest.mark.parametrize(
    ("name", "levels", "size"),
    [
        ("test_resnet", 4, 96 + 2 * (192 + 48 + 32)),
        ("test_vit", 4, 7 * 64),
        ("resnet50", 1, 2048),  # any level below has a thousand more
        ("vit_small_patch16_224", 3, 5 * 384),  # a fourth would give 2,688
    ],
)
def test_as_many_levels_are_read_as_there_is_room_for(name: str, levels: int, size: int) -> None:
    backbone = load_backbone(name, "none")
    assert (backbone.levels, backbone.feature_size) == (levels, size)


def test_more_levels_than_there_are_are_refused() -> None:
    with pytest.raises(ExportError, match="has 5 levels"):
        load_backbone(NAME, "none", levels=6)


@pytest.mark.real_images
@pytest.mark.parametrize("name", ["mobilenetv2_100", "vit_tiny_patch16_224"])
def test_real_pretrained_folders_load_as_timm_loads_them(name: str) -> None:
    folder = SHARED / "weights" / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder} (HEADWAY_SHARED)")
    backbone = load_backbone(name, str(folder), levels=1)
    expected: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    expected.reset_classifier(0)
    expected.eval()
    assert torch.equal(features(backbone.module, 224), features(expected, 224))
    assert backbone.origin.licence == "apache-2.0"
