"""ONNX files made to do harm: the device's runtime refuses each in one line, and reads no other file."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sdk import onnxfile
from sdk.bundle import Bundle
from sdk.errors import BadFormat, BadSignature, InferenceFailed
from sdk.onnxfile import check_onnx_file
from tests.builders import make_bundle
from tests.test_runtime import run
from tests.tiny import backbone

BACKBONE = backbone()

Harm = Callable[[onnx.ModelProto], object]
Walked = (
    onnx.ModelProto
    | onnx.GraphProto
    | onnx.NodeProto
    | onnx.AttributeProto
    | onnx.TensorProto
    | onnx.SparseTensorProto
)


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


def varint(number: int, size: int = 0) -> bytes:
    """Return a number as Protocol Buffers write it, or in more bytes than it takes."""
    out = bytearray()
    while number > 127 or len(out) + 1 < size:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes, key: bytes = b"") -> bytes:
    return (key or varint(number << 3 | 2)) + varint(len(content)) + content


def in_disguise(message: Walked, numbers: Mapping[str, int], key_of: Callable[[int], bytes]) -> bytes:
    """Write a message, the named fields with keys of one's own; these are of messages, text or small numbers."""
    plain = type(message)()
    plain.CopyFrom(message)
    for name in numbers:
        plain.ClearField(name)
    out = plain.SerializeToString()
    for name, number in numbers.items():
        value = getattr(message, name)
        for each in value if isinstance(value, Iterable) and not isinstance(value, str) else [value]:
            if isinstance(each, int):
                out += key_of(number << 3) + varint(each)
            else:
                content = each.encode() if isinstance(each, str) else each.SerializeToString()
                out += field(number, content, key_of(number << 3 | 2))
    return bytes(out)


def disguised(model: onnx.ModelProto, what: str, key_of: Callable[[int], bytes]) -> bytes:
    """Return a harmful model in which only what gives it away is written otherwise."""
    graph = model.graph
    if what == "functions":
        return in_disguise(model, {"functions": 25}, key_of)
    nodes, tensors = list(graph.node), list(graph.initializer)
    if what == "external":
        held = [in_disguise(each, {"external_data": 13, "data_location": 14}, key_of) for each in tensors[:1]]
        held += [each.SerializeToString() for each in tensors[1:]]
        written = [each.SerializeToString() for each in nodes]
    else:
        number = {"op_type": 4, "domain": 7}[what]
        held = [each.SerializeToString() for each in tensors]
        written = [in_disguise(each, {what: number} if getattr(each, what) else {}, key_of) for each in nodes]
    rest = onnx.GraphProto()
    rest.CopyFrom(graph)
    rest.ClearField("node")
    rest.ClearField("initializer")
    content = rest.SerializeToString()
    content += b"".join(field(1, each) for each in written) + b"".join(field(5, each) for each in held)
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    plain.ClearField("graph")
    return bytes(plain.SerializeToString() + field(7, content))


KEYS: dict[str, Callable[[int], bytes]] = {
    "a 33rd bit": lambda key: varint(key | 1 << 32),
    "a 34th bit": lambda key: varint(key | 1 << 33),
    "bits up to the 35th": lambda key: varint(key | 7 << 32),
    "the 64th bit": lambda key: varint(key | 1 << 63),
    "a 65th bit": lambda key: varint(key | 1 << 64),
    **{f"{n} bytes": functools.partial(varint, size=n) for n in range(2, 12)},
}
GIVEN_AWAY: dict[str, Harm] = {
    "external": kept_elsewhere("weights.bin"),
    "op_type": without_end,
    "domain": of_a_strangers_domain,
    "functions": own_operators,
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("what", GIVEN_AWAY)
def test_no_other_spelling_of_a_field_hides_what_it_is(what: str, key: str) -> None:
    model = onnx.load_from_string(BACKBONE)
    GIVEN_AWAY[what](model)
    plain = disguised(model, what, varint)
    assert onnx.load_from_string(plain) == model
    with pytest.raises(BadFormat):
        check_onnx_file(plain, "x")
    with pytest.raises(BadFormat):
        check_onnx_file(disguised(model, what, KEYS[key]), "x")


def test_weights_behind_a_33rd_bit_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: ONNX Runtime itself reads them."""
    monkeypatch.chdir(tmp_path)
    model = onnx.load_from_string(BACKBONE)
    weights = np.ascontiguousarray(numpy_helper.to_array(model.graph.initializer[0]))
    (tmp_path / "weights.bin").write_bytes(weights.tobytes())
    kept_elsewhere("weights.bin", offset="0", length=str(weights.nbytes))(model)
    data = disguised(model, "external", KEYS["a 33rd bit"])
    assert onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).get_outputs()
    with pytest.raises(InferenceFailed, match="which it does not have"):
        run(data)


@pytest.mark.parametrize(
    ("message", "known"),
    [
        (onnx.ModelProto, onnxfile.MODEL),
        (onnx.GraphProto, onnxfile.GRAPH),
        (onnx.NodeProto, onnxfile.NODE),
        (onnx.AttributeProto, onnxfile.ATTRIBUTE),
        (onnx.TensorProto, onnxfile.TENSOR),
        (onnx.SparseTensorProto, onnxfile.SPARSE),
    ],
)
def test_every_field_of_onnx_is_known(message: type[Walked], known: frozenset[int]) -> None:
    """A newer onnx may have more. Look what they say before they are let in."""
    assert {each.number for each in message.DESCRIPTOR.fields} <= known


def test_what_onnx_runtime_takes_for_its_own_format_is_refused() -> None:
    """Both at once: the producer's name of an ONNX model, and the mark of the other format."""
    data = varint(1 << 3) + varint(8) + field(2, b"ORTM") + BACKBONE
    assert data[4:8] == b"ORTM"
    assert onnx.load_from_string(data).graph.node
    with pytest.raises(BadFormat, match="own format"):
        check_onnx_file(data, "x")
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def test_numbers_below_zero_take_ten_bytes_and_pass() -> None:
    model = onnx.load_from_string(BACKBONE)
    model.graph.node.append(helper.make_node("Flatten", ["features"], ["flat"], axis=-1))
    model.model_version = -1
    check_onnx_file(bytes(model.SerializeToString()), "x")


def test_graphs_within_graphs_end() -> None:
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
