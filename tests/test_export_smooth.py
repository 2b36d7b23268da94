"""A smoothed graph computes the same and loses less in int8; what cannot be smoothed stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from export.backbones import load_backbone
from export.graph import OnnxBackbone, to_onnx
from export.parity import feature_cosine
from export.profiles import Profile
from export.quantize import Method, Prepared, calibrate, prepare, smoothed, to_int8
from export.smooth import smooth
from sdk.errors import CalibrationFailed

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("graphs_once")]
torch.set_num_threads(1)

Array = npt.NDArray[np.float32]
SIDE = 64


@pytest.fixture(scope="module")
def images() -> list[Array]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(8)]


@pytest.fixture(scope="module")
def uneven() -> Prepared:
    """A transformer of random weights in which some channels are as large as in trained ones."""
    backbone = load_backbone("test_vit", "none", input_size_px=SIDE, levels=1)
    with torch.no_grad():
        network: Any = backbone.network
        for block in network.blocks:
            for norm in (block.norm1, block.norm2):
                norm.weight[::16] *= 20.0
            block.mlp.fc1.weight[::16] *= 10.0
    return prepare(to_onnx(backbone))


def features(model: bytes, images: list[Array]) -> Array:
    runner = OnnxBackbone(model, exact=True)
    return np.concatenate([runner.features(image) for image in images])


def size_of(prepared: Prepared) -> int:
    return int(prepared.model.graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def test_a_smoothed_graph_gives_the_same_features(uneven: Prepared, images: list[Array]) -> None:
    before = uneven.model.SerializeToString()
    after = smoothed(uneven, images)
    assert uneven.model.SerializeToString() == before
    assert (after.layers, after.weight_bytes) == (uneven.layers, uneven.weight_bytes)
    wanted, found = features(before, images), features(after.model.SerializeToString(), images)
    np.testing.assert_allclose(found, wanted, atol=1e-4 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("profile", list(Profile))
def test_a_smoothed_transformer_loses_less_in_int8(
    uneven: Prepared, images: list[Array], profile: Profile
) -> None:
    wanted = features(uneven.model.SerializeToString(), images)

    def lost(prepared: Prepared) -> float:
        made = to_int8(prepared, calibrate(prepared, images, Method.MINMAX), profile, size_of(uneven))
        return 1 - feature_cosine(wanted, features(made, images))

    assert lost(smoothed(uneven, images)) < 0.7 * lost(uneven)


def test_convolutional_networks_are_not_smoothed(images: list[Array]) -> None:
    prepared = prepare(to_onnx(load_backbone("test_resnet", "none", input_size_px=SIDE)))
    assert smoothed(prepared, images) is prepared


def small(nodes: list[Any], constants: dict[str, Array]) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, 1, ["n", 3, 4, 8]) for name in ("pixels", "features"))
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("readers", [1, 2])
def test_factors_go_into_a_gain_only_where_nobody_else_reads_it(readers: int) -> None:
    rng = np.random.default_rng(2)
    nodes = [helper.make_node("LayerNormalization", ["pixels", "gain", "shift"], ["norm"], "norm")]
    nodes += [helper.make_node("MatMul", ["norm", f"w{i}"], [f"p{i}"], f"product{i}") for i in range(readers)]
    nodes.append(helper.make_node("Sum", [f"p{i}" for i in range(readers)], ["features"], "sum"))
    constants = {"gain": normal(rng, 8), "shift": normal(rng, 8), **{f"w{i}": normal(rng, 8, 8) for i in range(2)}}
    model = small(nodes, {name: value for name, value in constants.items() if name != f"w{readers}"})
    image = [normal(rng, 1, 3, 4, 8)]
    after = smooth(model, image)
    assert [node.op_type for node in after.graph.node].count("Mul") == (0 if readers == 1 else 2)
    np.testing.assert_allclose(
        features(after.SerializeToString(), image), features(model.SerializeToString(), image), atol=1e-4
    )


def test_a_weight_that_two_products_share_stays_as_it_is() -> None:
    rng = np.random.default_rng(2)
    nodes = [
        helper.make_node("MatMul", ["pixels", "w"], ["first"], "first"),
        helper.make_node("MatMul", ["first", "w"], ["features"], "second"),
    ]
    model = small(nodes, {"w": normal(rng, 8, 8)})
    assert smooth(model, [normal(rng, 1, 3, 4, 8)]).SerializeToString() == model.SerializeToString()


def test_a_channel_that_is_always_zero_does_no_harm() -> None:
    rng = np.random.default_rng(2)
    model = small([helper.make_node("MatMul", ["pixels", "w"], ["features"], "product")], {"w": normal(rng, 8, 8)})
    dead, alive = normal(rng, 1, 3, 4, 8), [normal(rng, 1, 3, 4, 8)]
    dead[..., 3] = 0.0
    after = smooth(model, [dead]).SerializeToString()
    wanted, found = features(model.SerializeToString(), alive), features(after, alive)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("given", [[], [np.zeros((1, 1, SIDE, SIDE), np.float32)]])
def test_smoothing_without_usable_images_is_refused(uneven: Prepared, given: list[Array]) -> None:
    with pytest.raises(CalibrationFailed) as caught:
        smoothed(replace(uneven), given)
    assert "--precision fp32" in caught.value.hint
