"""ONNX files made to do harm: the device's runtime refuses each in one line, and reads no other file."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sdk.bundle import Bundle
from sdk.errors import BadFormat, BadSignature, InferenceFailed
from sdk.onnxfile import check_onnx_file
from tests.builders import make_bundle
from tests.test_runtime import run
from tests.tiny import backbone

BACKBONE = backbone()

Harm = Callable[[onnx.ModelProto], object]


def kept_elsewhere(location: str, **more: str) -> Harm:
    """Weights in another file."""

    def harm(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)

    return harm


def of_a_strangers_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.example"
    model.opset_import.append(helper.make_opsetid("evil.example", 1))


def another_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Identity", ["more"], ["also"]))
    model.graph.output.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, [1]))


def in_a_circle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "d"


def without_end(model: onnx.ModelProto) -> None:
    """A loop of 2^62 turns, after the backbone."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
        ],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62, np.int64), "turns"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "on"))
    model.graph.node.append(helper.make_node("Loop", ["turns", "on", "features"], ["round"], body=body))
    model.graph.output[0].name = "round"


def in_a_branch(model: onnx.ModelProto) -> None:
    """Weights of another file, hidden in a branch that is never taken."""
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "hidden")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    branch = helper.make_graph([helper.make_node("Constant", [], ["o"], value=tensor)], "b", [], [])
    branch.output.append(helper.make_tensor_value_info("o", TensorProto.FLOAT, [3]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "never"))
    model.graph.node.append(helper.make_node("If", ["never"], ["chosen"], then_branch=branch, else_branch=branch))


def own_operators(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(helper.make_function("", "Mine", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))


def side(model: onnx.ModelProto, px: int) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = px


HARMS: dict[str, Harm] = {
    "weights up the tree": kept_elsewhere("../../etc/passwd"),
    "weights by absolute path": kept_elsewhere("/etc/passwd"),
    "weights beside": kept_elsewhere("weights.bin"),
    "weights nowhere": kept_elsewhere(""),
    "weights by address": kept_elsewhere("file:///etc/passwd"),
    "weights without an end": kept_elsewhere("/dev/zero"),
    "weights in memory": kept_elsewhere("*/_ORT_MEM_ADDR_/*", offset="140000000000000", length="4800"),
    "weights before the beginning": kept_elsewhere("/etc/passwd", offset="-1", length="99999999999"),
    "weights in a branch": in_a_branch,
    "a loop without end": without_end,
    "operators of its own": own_operators,
    "an unknown operator": lambda model: setattr(model.graph.node[0], "op_type", "Conjure"),
    "a stranger's operator": of_a_strangers_domain,
    "half-precision input": lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT16),
    "two inputs": another_input,
    "no output": lambda model: model.graph.ClearField("output"),
    "no graph": lambda model: model.ClearField("graph"),
    "a circle": in_a_circle,
    "a node twice": lambda model: model.graph.node.append(model.graph.node[0]),
    "a huge tensor": lambda model: model.graph.initializer[0].dims.__setitem__(0, 2**40),
    "a negative tensor": lambda model: model.graph.initializer[0].dims.__setitem__(0, -5),
    "a tensor of text": lambda model: setattr(model.graph.initializer[0], "data_type", TensorProto.STRING),
    "a short tensor": lambda model: setattr(model.graph.initializer[0], "raw_data", bytes(8)),
    "a huge input": lambda model: side(model, 2**31),
    "an input of none": lambda model: side(model, 0),
    "a later operator set": lambda model: setattr(model.opset_import[0], "version", 9999),
    "a later format": lambda model: setattr(model, "ir_version", 9999),
}


@pytest.mark.parametrize("case", HARMS)
def test_a_harmful_graph_is_refused_when_it_is_opened(case: str) -> None:
    model = onnx.load_from_string(backbone())
    HARMS[case](model)
    with pytest.raises(InferenceFailed) as caught:
        run(bytes(model.SerializeToString()))
    assert "\n" not in str(caught.value)
    assert "root:" not in str(caught.value)  # what /etc/passwd begins with
    assert caught.value.hint


def test_weights_that_lie_where_the_file_says_are_not_read_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = numpy_helper.to_array(onnx.load_from_string(backbone()).graph.initializer[0])
    (tmp_path / "weights.bin").write_bytes(np.ascontiguousarray(weights).tobytes())
    model = onnx.load_from_string(backbone())
    kept_elsewhere("weights.bin", offset="0", length=str(weights.nbytes))(model)
    with pytest.raises(InferenceFailed, match="keeps weights in another file"):
        run(bytes(model.SerializeToString()))


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_refused_or_pass(data: bytes) -> None:
    with suppress(BadFormat):  # anything else is a fault
        check_onnx_file(data, "x")


@given(st.integers(0, 2**32), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_a_changed_byte_of_a_backbone_is_refused_or_passes(place: int, byte: int) -> None:
    data = bytearray(BACKBONE)
    data[place % len(data)] = byte
    with suppress(BadFormat):
        check_onnx_file(bytes(data), "x")


def test_graphs_within_graphs_end() -> None:
    def field(number: int, content: bytes) -> bytes:
        size, out = len(content), bytearray([number << 3 | 2])
        while size > 127:
            out.append(size & 127 | 128)
            size >>= 7
        return bytes([*out, size]) + content

    graph = b""
    for _ in range(3000):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(BadFormat, match="without end"):
        check_onnx_file(field(7, graph), "x")


def test_a_hard_link_from_outside_cannot_change_a_bundle_unnoticed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    os.link(bundle.path / "backbone.fp32.onnx", tmp_path / "outside")
    opened = Bundle.open(bundle.path)
    with (tmp_path / "outside").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(BadSignature):
        opened.backbone()
