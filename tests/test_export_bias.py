"""Rounded weights move no layer's mean: where biases are corrected, by how much, and what is left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from export.backbones import load_backbone
from export.bias import LEVELS, correct_biases, input_means, rounded
from export.graph import OnnxBackbone, to_onnx
from export.profiles import DEQUANTIZE, Profile, channel_axis, kept_float, weighted
from export.quantize import Method, Prepared, calibrate, on_training_grid, prepare, to_int8

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("graphs_once")]
torch.set_num_threads(1)

Array = npt.NDArray[np.float32]
SIDE = 48


def graph_of(nodes: Sequence[Any], constants: dict[str, Array], out: Sequence[int | str]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("pixels", 1, ["n", 4, 6, 6])
    y = helper.make_tensor_value_info("features", 1, list(out))
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def convolution(rng: np.random.Generator, groups: int) -> onnx.ModelProto:
    weight = rng.normal(size=(8, 4 // groups, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["pixels", "w", "b"], ["features"], "layer", group=groups)
    return graph_of([node], {"w": weight, "b": rng.normal(size=8).astype(np.float32)}, ["n", 8, 4, 4])


def without_bias(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.graph.node[0].input[2:], model.graph.initializer[1:]
    return model


def product(rng: np.random.Generator) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["pixels", "w"], ["product"], "layer"),
        helper.make_node("Add", ["b", "product"], ["features"], "sum"),
    ]
    weight, bias = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    return graph_of(nodes, {"w": weight, "b": bias}, ["n", 4, 6, 5])


def gemm(rng: np.random.Generator) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["features"], "layer", transB=1),
    ]
    weight, bias = rng.normal(size=(5, 144)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    return graph_of(nodes, {"w": weight, "b": bias}, ["n", 5])


def with_rounded_weight(model: onnx.ModelProto, levels: int) -> onnx.ModelProto:
    coarse = onnx.ModelProto()
    coarse.CopyFrom(model)
    [node] = weighted(coarse.graph)
    [tensor] = [t for t in coarse.graph.initializer if t.name == node.input[1]]
    value = rounded(numpy_helper.to_array(tensor), channel_axis(node), levels).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return coarse


def mean_output(model: onnx.ModelProto, images: Sequence[Array]) -> Array:
    found = [OnnxBackbone(model.SerializeToString()).features(image) for image in images]
    axis = 1 if found[0].ndim == 4 and found[0].shape[1] == 8 else -1
    whole = np.moveaxis(np.concatenate(found), axis, -1)
    return np.asarray(whole.reshape(-1, whole.shape[-1]).mean(0), np.float32)


@pytest.mark.parametrize("kind", ["convolution", "no bias", "depthwise", "product", "gemm"])
def test_a_rounded_layer_gives_the_mean_that_it_gave_before(kind: str) -> None:
    rng = np.random.default_rng(3)
    model = {
        "convolution": lambda: convolution(rng, 1),
        "no bias": lambda: without_bias(convolution(rng, 1)),
        "depthwise": lambda: convolution(rng, 4),
        "product": lambda: product(rng),
        "gemm": lambda: gemm(rng),
    }[kind]()
    # The same in all places, as a mean of inputs takes them to be; different from image to image.
    images = [np.broadcast_to(rng.random((1, 4, 1, 1)), (1, 4, 6, 6)).astype(np.float32) for _ in range(5)]
    wanted = mean_output(model, images)
    coarse = with_rounded_weight(model, 4)
    moved = np.abs(mean_output(coarse, images) - wanted).max()
    means = input_means(model, images)
    levels = LEVELS[Profile.CPU]
    fine = with_rounded_weight(model, levels)
    before = np.abs(mean_output(fine, images) - wanted).max()
    correct_biases(model.graph, means, ["layer"], Profile.CPU)
    after = np.abs(mean_output(with_rounded_weight(model, levels), images) - wanted).max()
    assert moved > before > 20 * after
    assert after < 1e-5


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(to_onnx(load_backbone("test_resnet", "none", input_size_px=SIDE, levels=1)))


@pytest.fixture(scope="module")
def images() -> list[Array]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(6)]


@pytest.mark.parametrize("profile", list(Profile))
def test_the_grid_is_the_one_that_the_quantizer_puts_weights_on(
    prepared: Prepared, images: list[Array], profile: Profile
) -> None:
    ranges = calibrate(prepared, images, Method.MINMAX)
    made = onnx.load_from_string(to_int8(prepared, ranges, profile, 96)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.initializer}
    maker = {name: node for node in made.node for name in node.output}
    layers = {node.name: node for node in made.node}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in prepared.model.graph.initializer}
    kept = kept_float(prepared.model.graph, profile)
    for node in weighted(prepared.model.graph):
        if node.name in kept:
            continue
        weight, axis = constants[node.input[1]], channel_axis(node)
        dequantize = maker[layers[node.name].input[1]]
        assert dequantize.op_type == DEQUANTIZE
        scale = stored[dequantize.input[1]].reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        found = stored[dequantize.input[0]].astype(np.float32) * scale
        # fp32 and fp64 may take a tie another way: then they are a whole step apart, in a few of thousands.
        apart = np.abs(found - rounded(weight, axis, LEVELS[profile])) / scale
        assert (apart < 1e-3).mean() > 0.999


@pytest.mark.parametrize("profile", list(Profile))
def test_features_keep_their_mean_through_a_whole_network(
    prepared: Prepared, images: list[Array], profile: Profile
) -> None:
    ranges = calibrate(prepared, images, Method.MINMAX)

    def offset(model: bytes) -> float:
        runner = OnnxBackbone(model, exact=True)
        return float(np.linalg.norm(np.mean([runner.features(image)[0] for image in images], 0) - exact))

    fp32 = OnnxBackbone(prepared.model.SerializeToString())
    exact = np.mean([fp32.features(image)[0] for image in images], 0)
    as_it_is = to_int8(prepared, replace(ranges, means={}), profile, 96)
    assert offset(to_int8(prepared, ranges, profile, 96)) < 0.7 * offset(as_it_is)


def test_only_the_layers_that_are_rounded_are_corrected() -> None:
    rng = np.random.default_rng(5)
    model = convolution(rng, 1)
    before = model.SerializeToString()
    means = input_means(model, [rng.random((1, 4, 6, 6)).astype(np.float32)])
    correct_biases(model.graph, means, [], Profile.CPU)
    assert model.SerializeToString() == before
    correct_biases(model.graph, {}, ["layer"], Profile.CPU)  # trained on its own grid: no means
    assert model.SerializeToString() == before


def test_a_bias_that_two_layers_share_is_changed_for_one_only() -> None:
    rng = np.random.default_rng(5)
    nodes = [
        helper.make_node("Conv", ["pixels", "w", "b"], ["first"], "layer"),
        helper.make_node("Conv", ["pixels", "v", "b"], ["second"], "other"),
        helper.make_node("Concat", ["first", "second"], ["features"], axis=1),
    ]
    w, v = (rng.normal(size=(4, 4, 3, 3)).astype(np.float32) for _ in range(2))
    bias = rng.normal(size=4).astype(np.float32)
    model = graph_of(nodes, {"w": w, "v": v, "b": bias}, ["n", 8, 4, 4])
    image = rng.random((1, 4, 6, 6)).astype(np.float32)
    before = OnnxBackbone(model.SerializeToString()).features(image)
    correct_biases(model.graph, input_means(model, [image]), ["layer"], Profile.CPU)
    after = OnnxBackbone(model.SerializeToString()).features(image)
    assert not np.allclose(after[:, :4], before[:, :4], atol=1e-6)
    np.testing.assert_array_equal(after[:, 4:], before[:, 4:])


@pytest.mark.parametrize("what", ["a sum of two products", "read twice", "transposed convolution"])
def test_where_a_bias_has_no_place_the_layer_stays_as_it_is(what: str) -> None:
    rng = np.random.default_rng(7)
    size = (4, 4, 3, 3) if what == "transposed convolution" else (6, 4)
    weight = rng.normal(size=size).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    nodes = {
        "a sum of two products": [
            helper.make_node("MatMul", ["pixels", "w"], ["p"], "layer"),
            helper.make_node("MatMul", ["pixels", "w"], ["q"], "other"),
            helper.make_node("Add", ["p", "q"], ["features"]),
        ],
        "read twice": [
            helper.make_node("MatMul", ["pixels", "w"], ["p"], "layer"),
            helper.make_node("Add", ["p", "b"], ["q"]),
            helper.make_node("Mul", ["p", "q"], ["features"]),
        ],
        "transposed convolution": [helper.make_node("ConvTranspose", ["pixels", "w", "b"], ["features"], "layer")],
    }[what]
    model = graph_of(nodes, {"w": weight, "b": bias}, ["n", 4, "h", "w"])
    before = model.SerializeToString()
    correct_biases(
        model.graph, input_means(model, [rng.random((1, 4, 6, 6)).astype(np.float32)]), ["layer"], Profile.CPU
    )
    assert model.SerializeToString() == before


@pytest.mark.parametrize("profile", list(Profile))
def test_weights_trained_on_their_own_grid_are_not_corrected(
    prepared: Prepared, images: list[Array], profile: Profile
) -> None:
    ranges = calibrate(prepared, images[:2], Method.MINMAX)
    assert ranges.means
    assert not on_training_grid(ranges, profile).means
