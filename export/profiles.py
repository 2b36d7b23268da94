"""What an int8 file is made for, where its nodes go for that, and the check that they are there.

| profile | activations | weights, per channel | quantized |
|---|---|---|---|
| `cpu` | 8 bits unsigned, with an offset | signed, 7 bits | all that ONNX Runtime's integer kernels take |
| `tensorrt` | 8 bits signed, symmetric | signed, 8 bits | inputs of weighted layers and residual sums; no bias |

`cpu`: x86 processors without a dot-product instruction add two products in 16 bits, which 8-bit weights overflow:
on such a machine full-range signed weights gave features with a cosine of 0.89 to what the file says, 7-bit ones
0.998. In convolutional networks a layer's output is quantized as well as its input, because the integer kernels
write 8 bits.

`tensorrt`: TensorRT takes symmetric int8 only, does not read int32 biases, and fuses a layer with the residual sum
behind it when the layer's own side of the sum is left alone and the other side is quantized. Decision record 0013
names the sources. Each profile is slow, or not loaded at all, where the other one belongs.

Both ends of a convolutional network stay in fp32 in the `cpu` form (decision record 0062): the first layers, of a
few channels at full resolution, take longer in 8 bits than in 32; and behind the last layer there is only pooling,
whose results the head reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantType

from sdk.errors import CalibrationFailed

WEIGHTED: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators whose second input is the weight, where it is a constant."""
_NORMALISING: Final = frozenset({"LayerNormalization", "Softmax", "Gelu", "Erf", "InstanceNormalization"})
_POOLING: Final = frozenset(
    {"ReduceMean", "ReduceMax", "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool"}
)
NARROW_INPUT: Final = 8
NARROW_OUTPUT: Final = 16
"""A dense convolution of fewer channels than one of these does not fill the integer kernels' vectors."""
QUANTIZE: Final = "QuantizeLinear"
DEQUANTIZE: Final = "DequantizeLinear"
_STANDARD: Final = ("", "ai.onnx")
_CONVOLUTIONS: Final = ("Conv", "ConvTranspose")
_CHANNEL_AXIS: Final = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}
"""Of the output channels in a weight; Gemm's depends on transB."""


class Profile(str, Enum):
    """What an int8 form is made for. Values stand in reports."""

    CPU = "cpu"
    TENSORRT = "tensorrt"


@dataclass(frozen=True)
class Placement:
    """How ONNX Runtime's quantizer is asked to work for one profile.

    Attributes:
        weights: How weights are stored, for people.
        activation, weight: Types.
        reduce_range: Weights have 7 bits.
        everything: In networks that do not normalise, quantize every operator that can be, outputs included.
        options: The quantizer's own.
    """

    weights: str
    activation: QuantType
    weight: QuantType
    reduce_range: bool
    everything: bool
    options: Mapping[str, Any] = field(default_factory=dict)


PLACEMENTS: Final = {
    Profile.CPU: Placement(
        weights="7-bit signed",
        activation=QuantType.QUInt8,
        weight=QuantType.QInt8,
        reduce_range=True,
        everything=True,
        options={"WeightSymmetric": True},
    ),
    Profile.TENSORRT: Placement(
        weights="8-bit signed",
        activation=QuantType.QInt8,
        weight=QuantType.QInt8,
        reduce_range=False,
        everything=False,
        options={
            "WeightSymmetric": True,
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(WEIGHTED),
        },
    ),
}


def normalises(graph: onnx.GraphProto) -> bool:
    """Return whether the network normalises while it runs, as transformers do.

    Its sums have outliers then, and only products with weights are quantized: quantizing everything brought
    vit_tiny's features to a cosine of 0.07.
    """
    return any(node.op_type in _NORMALISING for node in graph.node)


def weighted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes of a graph that is not quantized whose weight is a constant, in the order they run."""
    constants = {tensor.name for tensor in graph.initializer}
    return [node for node in graph.node if node.op_type in WEIGHTED and node.input[1] in constants]


def is_narrow(outputs: int, inputs: int, groups: int) -> bool:
    """Return whether a convolution of so many channels is faster in fp32 than in 8 bits on a processor."""
    return groups == 1 and (inputs < NARROW_INPUT or outputs < NARROW_OUTPUT)


def kept_float(graph: onnx.GraphProto, profile: Profile) -> list[str]:
    """Return the nodes at both ends of a network that a profile leaves in fp32; none where nothing else remains.

    Args:
        graph: Not quantized, in the order it runs.
        profile: What the form is made for.
    """
    if profile is not Profile.CPU or normalises(graph):
        return []
    layers = weighted(graph)
    first = _narrow_start(graph, {node.name for node in layers})
    if all(node.name in first for node in layers):
        return []
    return [*first, *_pooled_end(graph, {node.name for node in layers})]


def _narrow_start(graph: onnx.GraphProto, layers: set[str]) -> list[str]:
    """Return the nodes that only narrow convolutions come before, these included; none where they are pooled.

    ONNX Runtime quantizes before a pooling that reads floats, and pools the bytes without vectors then: resnet18
    took 9.0 ms with its first layer left float, 5.3 with all in 8 bits.
    """
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    quantized: set[str] = set()
    found: list[str] = []
    for node in graph.node:
        wide = False
        if node.name in layers:
            outputs, inputs = shapes[node.input[1]][:2]
            wide = node.op_type != "Conv" or not is_narrow(outputs, inputs, _attribute(node, "group", 1))
        if wide or any(name in quantized for name in node.input):
            quantized.update(node.output)
        elif node.op_type in _POOLING:
            return []
        else:
            found.append(node.name)
    return found


def _pooled_end(graph: onnx.GraphProto, layers: set[str]) -> list[str]:
    """Return the pooling that no layer comes behind, and what comes behind that."""
    needed: set[str] = set()  # by a layer
    end: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if node.name in layers or any(name in needed for name in node.output):
            needed.update(node.input)
        else:
            end.insert(0, node)
    pooled: set[str] = set()
    for node in end:
        if node.op_type in _POOLING or any(name in pooled for name in node.input):
            pooled.update(node.output)
    return [node.name for node in end if node.output[0] in pooled]


def channel_axis(node: onnx.NodeProto) -> int:
    """Return the axis of the output channels in a layer's weight."""
    return _CHANNEL_AXIS.get(node.op_type, 0 if _attribute(node, "transB", 0) else 1)


def check_placement(model: onnx.ModelProto, profile: Profile) -> None:
    """Check that the nodes of a quantized model are where its profile wants them.

    Raises:
        CalibrationFailed: they are not.
    """
    found = faults(model, profile)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CalibrationFailed(
            f"the {profile.value} profile forbids: {found[0]}{more}",
            hint="Export with --precision fp32, or try another version of onnxruntime.",
        )


def faults(model: onnx.ModelProto, profile: Profile) -> list[str]:
    """Return what is not where the profile wants it, in words; empty where all is well."""
    graph = _Graph(model.graph)
    rules = [_standard_nodes, _whole_layers, _weights_per_channel]
    rules += [_symmetric, _float_biases, _fusible_sums] if profile is Profile.TENSORRT else [_unsigned]
    return [fault for rule in rules for fault in rule(graph)]


class _Graph:
    """A graph with its edges at hand."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.maker = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.users[name].append(node)

    def kind(self, name: str) -> str:
        """Return the operator that makes a tensor; empty for inputs and constants."""
        return self.maker[name].op_type if name in self.maker else ""

    def quantizers(self) -> Iterator[onnx.NodeProto]:
        """Yield the quantize and dequantize nodes."""
        yield from (node for node in self.nodes if node.op_type in (QUANTIZE, DEQUANTIZE))

    def value(self, name: str) -> npt.NDArray[Any]:
        """Return a constant; an empty array where it is none."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else np.zeros(0)

    def weighted(self) -> Iterator[onnx.NodeProto]:
        """Yield the layers with a constant weight, quantized or not."""
        for node in self.nodes:
            if node.op_type in WEIGHTED and (node.input[1] in self.constants or self.is_weight(node.input[1])):
                yield node

    def is_weight(self, name: str) -> bool:
        """Return whether a tensor is a constant behind a dequantize node."""
        return self.kind(name) == DEQUANTIZE and self.maker[name].input[0] in self.constants


def _standard_nodes(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.domain not in _STANDARD:
            yield f"{node.op_type} of {node.domain}, which is not standard ONNX"


def _whole_layers(graph: _Graph) -> Iterator[str]:
    for node in graph.weighted():
        # A float layer may read what is quantized for its neighbour; the other way round nothing is gained.
        if graph.is_weight(node.input[1]) and graph.kind(node.input[0]) != DEQUANTIZE:
            yield f"{node.op_type} {node.name} has int8 weights and a float input"


def _weights_per_channel(graph: _Graph) -> Iterator[str]:
    for node in graph.weighted():
        if not graph.is_weight(node.input[1]):
            continue
        dequantize = graph.maker[node.input[1]]
        weight, scale, zero = (graph.value(name) for name in dequantize.input[:3])
        axis = channel_axis(node)
        if weight.dtype != np.int8 or zero.any():
            yield f"the weights of {node.name} are not symmetric int8"
        elif scale.size != weight.shape[axis] or _attribute(dequantize, "axis", 1) % weight.ndim != axis:
            yield f"the weights of {node.name} have {scale.size} scales for {weight.shape[axis]} channels"


def _unsigned(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type == QUANTIZE and graph.value(node.input[2]).dtype != np.uint8:
            yield f"{node.input[0]} is not quantized to unsigned bytes"


def _symmetric(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        if node.op_type != QUANTIZE:
            continue
        zero, scale = graph.value(node.input[2]), graph.value(node.input[1])
        if zero.dtype != np.int8 or zero.any() or scale.size != 1:
            yield f"{node.input[0]} is not quantized symmetrically to int8 with one scale"


def _float_biases(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        constant = graph.constants.get(node.input[0]) if node.op_type == DEQUANTIZE else None
        if constant is not None and constant.data_type == TensorProto.INT32:
            yield f"the bias {node.input[0]} is quantized"
    for node in graph.weighted():
        if len(node.input) > 2 and graph.kind(node.input[2]) == DEQUANTIZE:
            yield f"the bias of {node.name} is quantized"


def _fusible_sums(graph: _Graph) -> Iterator[str]:
    for node in graph.nodes:
        sides = residual_sides(node, graph.maker, graph.users)
        if sides is None:
            continue
        layer, skip = sides
        if graph.is_weight(layer.input[1]) and graph.kind(skip) != DEQUANTIZE:
            yield f"the other side of the sum {node.name} is not quantized"
    for node in graph.nodes:
        if node.op_type != QUANTIZE or graph.kind(node.input[0]) not in _CONVOLUTIONS:
            continue
        readers = [user for out in graph.users[node.output[0]] for user in graph.users[out.output[0]]]
        alone = len(graph.users[node.input[0]]) == 1 and [user.op_type for user in readers] == ["Add"]
        if alone and residual_sides(readers[0], graph.maker, graph.users) is None:
            yield f"the sum {readers[0].name} has a quantize node between it and its layer"


def residual_sides(
    node: onnx.NodeProto, maker: Mapping[str, onnx.NodeProto], users: Mapping[str, Sequence[onnx.NodeProto]]
) -> tuple[onnx.NodeProto, str] | None:
    """Return the layer that TensorRT can fuse with a sum, and the tensor on the sum's other side; None without.

    It is a convolution whose output goes into a sum of two activations and nowhere else.
    """
    if node.op_type != "Add" or any(name not in maker for name in node.input):
        return None
    for own, other in ((0, 1), (1, 0)):
        layer = maker[node.input[own]]
        if layer.op_type in _CONVOLUTIONS and len(users[node.input[own]]) == 1:
            return layer, node.input[other]
    return None


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
