"""The ONNX file: what torch gives, whole and anonymous; and refusals where it is not so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.backbones import Backbone, load_backbone
from export.graph import OnnxBackbone, Pixels, check_onnx, to_onnx
from export.maps import read
from export.parity import feature_cosine, fp32_difference
from export.profiles import Profile
from export.quantize import Method, calibrate, prepare, to_int8
from sdk.errors import ExportError, ParityFailed
from sdk.images import decode
from tests.tiny import picture

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # tests run side by side; spinning threads cost more than they give

SIDE = 64


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("test_resnet", "none", input_size_px=SIDE, levels=1)


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> bytes:
    return to_onnx(backbone)


@pytest.fixture(scope="module")
def pixels(backbone: Backbone) -> Pixels:
    frames = [decode(picture(name, i)) for i in range(8) for name in ("good", "pit", "scratch")]
    return np.concatenate([backbone.preprocess.apply(frame) for frame in frames])


def test_onnx_gives_what_torch_gives_at_any_batch(backbone: Backbone, model: bytes, pixels: Pixels) -> None:
    runner = OnnxBackbone(model)
    with torch.inference_mode():
        expected = backbone.module(torch.from_numpy(pixels)).numpy()
    for batch in (1, 3, len(pixels)):
        np.testing.assert_allclose(runner.features(pixels[:batch]), expected[:batch], rtol=1e-4, atol=1e-6)
    assert fp32_difference(backbone, model, pixels) < 1e-4


@pytest.mark.parametrize(("name", "levels"), [("test_vit", 1), ("test_vit", 2), ("test_resnet", 4)])
def test_transformers_and_lower_levels_are_exported_too(name: str, levels: int) -> None:
    vit = load_backbone(name, "none", input_size_px=SIDE, levels=levels)
    pixels = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    model = to_onnx(vit)
    assert fp32_difference(vit, model, pixels) < 1e-4
    prepared = prepare(model)
    ranges = calibrate(prepared, [pixels[:1], pixels[1:2]], Method.MINMAX)
    int8 = to_int8(prepared, ranges, Profile.CPU, vit.feature_size)
    assert feature_cosine(OnnxBackbone(model).features(pixels), OnnxBackbone(int8).features(pixels)) > 0.9


def test_maps_are_torchs_and_make_the_features_in_int8_too(pixels: Pixels) -> None:
    backbone = load_backbone("test_resnet", "none", input_size_px=SIDE, levels=2)
    assert len(backbone.maps) == 2
    model = to_onnx(backbone)
    with torch.inference_mode():
        expected = read(backbone.module, torch.from_numpy(pixels[:3]))[1]
    prepared = prepare(model)
    ranges = calibrate(prepared, np.split(pixels, len(pixels)), Method.MINMAX)
    int8 = to_int8(prepared, ranges, Profile.CPU, backbone.feature_size)
    for each, tolerance in ((model, 1e-4), (int8, 0.02)):
        session = onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"])
        features, *maps = session.run(["features", *(m.output for m in backbone.maps)], {"pixels": pixels[:3]})
        for entry, found in zip(backbone.maps, maps, strict=True):
            assert found.shape == (3, entry.channels, entry.height, entry.width)
            for block in entry.reads:
                pooled = found.max((2, 3)) if block.pool == "max" else found.mean((2, 3))
                columns = features[:, block.start : block.start + entry.channels]
                np.testing.assert_allclose(pooled, columns, atol=tolerance * float(np.abs(columns).max()))
            if each is model:
                np.testing.assert_allclose(found, expected[entry.output].numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "reads"),
    [
        ("test_resnet", {}, [[(0, "avg")]]),
        ("test_resnet", {"pool": "max"}, [[(0, "max")]]),
        ("test_resnet", {"pool": "catavgmax"}, [[(0, "avg"), (96, "max")]]),
        ("test_resnet", {"levels": 2}, [[(96, "avg"), (288, "max")], [(0, "avg")]]),
        ("test_vit", {}, [[(0, "near")]]),
        ("mobilenetv3_small_050", {}, []),  # it has a layer after its pooling
    ],
)
def test_how_features_come_from_maps_is_found_out(
    name: str, arguments: dict[str, Any], reads: list[list[tuple[int, str]]]
) -> None:
    backbone = load_backbone(name, "none", input_size_px=SIDE, **{"levels": 1, **arguments})
    assert [[(read.start, read.pool) for read in entry.reads] for entry in backbone.maps] == reads


def test_the_same_backbone_gives_the_same_bytes(backbone: Backbone, model: bytes) -> None:
    assert to_onnx(backbone) == model


def test_the_file_says_nothing_of_the_machine(model: bytes) -> None:
    assert str(Path(__file__).parents[1]).encode() not in model
    assert b"site-packages" not in model
    assert b"stack_trace" not in model


def test_parity_refuses_another_networks_onnx(model: bytes, pixels: Pixels) -> None:
    other = load_backbone("test_resnet", "none", input_size_px=SIDE, levels=1, seed=1)
    with pytest.raises(ParityFailed, match="differ"):
        fp32_difference(other, model, pixels)


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def no_dynamic_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 95


def half_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Conjure"


def flat_map(model: onnx.ModelProto) -> None:
    del model.graph.output[1].type.tensor_type.shape.dim[3]


@pytest.mark.parametrize(
    "harm", [external, no_dynamic_batch, other_output, half_input, unknown_operator, flat_map]
)
def test_a_graph_that_is_not_ours_is_refused(model: bytes, harm: Callable[[onnx.ModelProto], None]) -> None:
    harmed = onnx.load_from_string(model)
    harm(harmed)
    with pytest.raises(ExportError):
        check_onnx(harmed.SerializeToString(), 96)
