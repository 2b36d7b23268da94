"""What rounding the weights adds to a layer's output on average, and its biases without that.

A rounded weight is wrong by up to half a step, always by the same amount. Behind a ReLU the inputs are all
positive, so the errors of a channel do not cancel: its output moves by (rounded - exact weights) times the mean
input, a constant. A deep network adds up and amplifies such constants; the rest of the rounding is noise of mean
zero, which it mostly averages away. The constants are known once the means of the inputs are, and are taken out of
the biases: no training, no labels, and the layers' shapes, types and times stay as they were
(decision record 0023).

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, section 4.2,
arXiv 1906.04721.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from export.channels import mean, of_inputs
from export.graph import Pixels
from export.profiles import Profile, channel_axis, weighted

LEVELS: Final = {Profile.CPU: 64, Profile.TENSORRT: 127}
"""Steps from zero to a channel's largest weight, as ONNX Runtime's quantizer counts them for 7 and for 8 bits."""

Means = Mapping[str, npt.NDArray[np.float64]]
"""By tensor, the mean of each of its channels over images and places."""


def input_means(model: onnx.ModelProto, images: Sequence[Pixels]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the means of what goes into the layers with a constant weight, at the cost of a pass over the images.

    Args:
        model: An fp32 graph.
        images: (1, 3, H, W) each, at least one.
    """
    return {name: rows.mean(0) for name, rows in of_inputs(model, weighted(model.graph), images, mean).items()}


def correct_biases(graph: onnx.GraphProto, means: Means, layers: Sequence[str], profile: Profile) -> None:
    """Take out of the biases, in place, what rounding the weights of these layers would add on average.

    Convolutions and products with a matrix are corrected, a convolution without a bias gets one; a product whose
    output does not go into a sum with a constant, and a transposed convolution, stay as they are. Padding counts
    as if it were like the rest of the image.

    Args:
        graph: fp32, not quantized yet.
        means: From `input_means` of the same graph.
        layers: Names of the nodes whose weights will be rounded.
        profile: Says to how many steps.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    replaced: set[str] = set()
    for node in weighted(graph):
        mean_input = means.get(node.input[0])
        shift = None
        if node.name in layers and mean_input is not None:
            shift = _shift(node, numpy_helper.to_array(constants[node.input[1]]), mean_input, LEVELS[profile])
        if shift is None:
            continue
        owner, at = _place_of_bias(node, users, constants)
        if at < 0:
            continue
        held = numpy_helper.to_array(constants[owner.input[at]]) if at < len(owner.input) else np.zeros_like(shift)
        if held.shape != shift.shape:
            continue
        # A constant of its own: another layer may read the old one, and is moved by something else.
        name = f"{node.name}_bias_for_int8"
        graph.initializer.append(numpy_helper.from_array(np.asarray(held - shift, np.float32), name))
        if at < len(owner.input):
            replaced.add(owner.input[at])
            owner.input[at] = name
        else:
            owner.input.append(name)
    read = {name for node in graph.node for name in node.input}
    for name in sorted(replaced - read):
        graph.initializer.remove(constants[name])


def rounded(weight: npt.NDArray[np.float32], axis: int, levels: int) -> npt.NDArray[np.float64]:
    """Return a weight on the grid of each of its output channels.

    >>> rounded(np.array([[0.5, -2.0], [0.1, 0.2]], np.float32), axis=0, levels=2).round(3).tolist()
    [[0.0, -2.0], [0.1, 0.2]]
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    step = np.abs(weight).max(others, keepdims=True).astype(np.float64) / levels
    step[step == 0] = 1.0
    return np.asarray(np.rint(weight / step) * step, np.float64)


def _shift(
    node: onnx.NodeProto, weight: npt.NDArray[np.float32], mean_input: npt.NDArray[np.float64], levels: int
) -> npt.NDArray[np.float64] | None:
    """Return what rounding adds to each output channel on average, or None where that is not known."""
    axis = channel_axis(node)
    error = rounded(weight, axis, levels) - weight
    if node.op_type == "Conv":
        groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
        taps = error.reshape(*error.shape[:2], math.prod(error.shape[2:])).sum(2)  # (out, in of the group)
        inputs = np.repeat(mean_input.reshape(groups, -1), len(taps) // groups, axis=0)
        return np.asarray((taps * inputs).sum(1))
    if node.op_type in ("MatMul", "Gemm") and weight.ndim == 2:
        return np.asarray((error if axis == 1 else error.T).T @ mean_input)
    return None


def _place_of_bias(
    node: onnx.NodeProto, users: Mapping[str, Sequence[onnx.NodeProto]], constants: Mapping[str, Any]
) -> tuple[onnx.NodeProto, int]:
    """Return the node that adds a layer's bias, or could, and at which of its inputs; -1 where none can."""
    if node.op_type != "MatMul":
        whole = len(node.input) == 2 or node.input[2] in constants
        return node, 2 if whole else -1
    readers = users.get(node.output[0], ())
    if len(readers) == 1 and readers[0].op_type == "Add":
        at = [i for i, name in enumerate(readers[0].input) if name in constants]
        return readers[0], at[0] if len(at) == 1 else -1
    return node, -1
