"""Channels of a transformer's activations brought nearer to each other, so that one 8-bit scale suits them all.

An activation has one scale for all its channels, and transformers have channels ten times as large as others: what
is rounded for those is lost for the rest. Weights have a scale for each output, and room to spare. So each channel
is divided by a factor before its product, and the weights that it meets are multiplied by the factor: in float
nothing changes. The factors go into the gain of a normalisation where one stands before, and else into a product
with a constant, which costs little beside that of matrices (docs/decisions/0024).

Source: Xiao et al., SmoothQuant, equation 4, arXiv 2211.10438.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from export.channels import largest, of_inputs
from export.graph import Pixels
from export.profiles import weighted

STRENGTH: Final = 0.65
"""Share of the difference between channels that moves from activations to weights, in logarithms. On a choice
split, vit_tiny: cosine .972 with .5, .991 with .65, .984 with .8; .922 without (decision record 0024)."""
LEAST: Final = 1e-5
"""Channels and rows of weights smaller than this count as this large: a dead channel has no say."""


def smooth(model: onnx.ModelProto, images: Sequence[Pixels]) -> onnx.ModelProto:
    """Return a graph that computes the same, with activations that lose less in 8 bits.

    Products of an activation with a constant matrix are treated. Cost: one pass of the network for each image.

    Args:
        model: An fp32 graph; stays as it is.
        images: Preprocessed training images, (1, 3, H, W) each, at least one.
    """
    smoothed = onnx.ModelProto()
    smoothed.CopyFrom(model)
    graph = smoothed.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    products = [
        node
        for node in weighted(graph)
        if node.op_type == "MatMul" and len(constants[node.input[1]].dims) == 2 and readers[node.input[1]] == 1
    ]
    if not products:
        return smoothed
    found = of_inputs(model, products, images, largest)
    for node in products:
        weight = numpy_helper.to_array(constants[node.input[1]])
        factor = _factors(found[node.input[0]].max(0), np.abs(weight).max(1).astype(np.float64))
        _put(constants[node.input[1]], weight * factor[:, None])
        before = maker.get(node.input[0])
        own = before is not None and before.op_type == "LayerNormalization" and readers[node.input[0]] == 1
        gains = [name for name in before.input[1:] if name] if before is not None and own else []
        if gains and all(name in constants and readers[name] == 1 for name in gains):
            for name in gains:
                _put(constants[name], numpy_helper.to_array(constants[name]) / factor)
        else:
            _divide_before(graph, node, factor)
    return smoothed


def _factors(activation: npt.NDArray[np.float64], weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return what to divide each channel by, one on (geometric) average, from the largest values of both sides."""
    logs = STRENGTH * np.log(np.maximum(activation, LEAST)) - (1 - STRENGTH) * np.log(np.maximum(weight, LEAST))
    return np.asarray(np.exp(logs - logs.mean()), np.float32)


def _put(tensor: onnx.TensorProto, value: npt.NDArray[np.floating[Any]]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), tensor.name))


def _divide_before(graph: onnx.GraphProto, node: onnx.NodeProto, factor: npt.NDArray[np.float32]) -> None:
    constant, divided = f"{node.name}_smoothing", f"{node.name}_smoothed"
    graph.initializer.append(numpy_helper.from_array(1 / factor, constant))
    place = next(i for i, other in enumerate(graph.node) if other.name == node.name)
    graph.node.insert(place, helper.make_node("Mul", [node.input[0], constant], [divided], f"{node.name}_divide"))
    graph.node[place + 1].input[0] = divided
