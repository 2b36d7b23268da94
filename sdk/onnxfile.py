"""What an ONNX file asks of the machine that opens it, read without the onnx package, before any runtime sees it.

ONNX Runtime reads weights that a model keeps in another file, from the working directory even where the model
itself came as bytes. Filtering the paths failed three times elsewhere (CVE-2022-25882, CVE-2024-27318,
CVE-2026-34446 and -34447), so such files are refused whatever the path, and with them what can run for ever.

Only the structure is walked (onnx.proto of ONNX 1.23; Protocol Buffers' encoding page); no tensor is read. What is
walked must be what a runtime reads, and parsers differ in what no exporter writes: of a field's key ONNX Runtime
keeps the lowest 32 bits, and what it does not know it passes over. So a number in more bytes than it takes is
refused, and a field that ONNX does not have, and what ONNX Runtime would take for its own format.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sdk.errors import BadFormat

DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft"})
"""Operator sets of the standard and of ONNX Runtime itself; others need code of a stranger."""
ENDLESS: Final = frozenset({"Loop", "Scan", "SequenceMap"})
"""No backbone has a loop, and a loop need not end."""
MAX_DEPTH: Final = 16
"""Of graphs within graphs."""

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_SPARSE_PARTS: Final = (1, 2)

MODEL: Final = frozenset({*range(1, 9), 14, 20, 25, 26})
GRAPH: Final = frozenset({1, 2, 5, *range(10, 17)})
NODE: Final = frozenset(range(1, 11))
ATTRIBUTE: Final = frozenset({*range(1, 12), 13, 14, 15, *range(20, 24)})
TENSOR: Final = frozenset({*range(1, 15), 16})
SPARSE: Final = frozenset({1, 2, 3})
"""The fields that ONNX has in each message that is walked."""
_ORT_FORMAT: Final = b"ORTM"
"""At the fifth byte: for ONNX Runtime that is no protobuf, whatever else the bytes are."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES: Final = 10
_MAX_VARINT: Final = 2**64 - 1
_Value = int | memoryview


def check_onnx_file(data: bytes, what: str) -> None:
    """Check that an ONNX file is one whole, and does nothing but compute.

    Args:
        data: The file.
        what: Its name, for messages.

    Raises:
        BadFormat: it is no ONNX, keeps data in other files, has a loop, or an operator of a stranger.
    """
    try:
        if data[4:8] == _ORT_FORMAT:
            raise ValueError("it is in ONNX Runtime's own format")
        graphs = 0
        for field, value in _fields(memoryview(data), MODEL):
            if field == _MODEL_FUNCTIONS:
                raise _refusal(what, "defines operators of its own")
            if field == _MODEL_GRAPH:
                graphs += 1
                _check_graph(_message(value), what, 0)
        if not graphs:
            raise _refusal(what, "holds no graph")
    except (ValueError, IndexError) as error:
        raise _refusal(what, f"is no ONNX: {error}") from error


def _refusal(what: str, why: str) -> BadFormat:
    return BadFormat(f"{what} {why}", hint="Export the bundle again with Headway; do not use this file.")


def _check_graph(graph: memoryview, what: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _refusal(what, "has graphs within graphs without end")
    for field, value in _fields(graph, GRAPH):
        if field == _GRAPH_NODE:
            _check_node(_message(value), what, depth)
        elif field == _GRAPH_INITIALIZER:
            _check_tensor(_message(value), what)
        elif field == _GRAPH_SPARSE:
            _check_sparse(_message(value), what)


def _check_node(node: memoryview, what: str, depth: int) -> None:
    for field, value in _fields(node, NODE):
        if field == _NODE_OP_TYPE and (name := _text(value)) in ENDLESS:
            raise _refusal(what, f"has a loop ({name})")
        if field == _NODE_DOMAIN and (name := _text(value)) not in DOMAINS:
            raise _refusal(what, f"needs operators of {name[:60]!r}")
        if field == _NODE_ATTRIBUTE:
            for inner, content in _fields(_message(value), ATTRIBUTE):
                if inner in _ATTRIBUTE_TENSORS:
                    _check_tensor(_message(content), what)
                elif inner in _ATTRIBUTE_GRAPHS:
                    _check_graph(_message(content), what, depth + 1)
                elif inner in _ATTRIBUTE_SPARSE:
                    _check_sparse(_message(content), what)


def _check_sparse(sparse: memoryview, what: str) -> None:
    for field, value in _fields(sparse, SPARSE):
        if field in _SPARSE_PARTS:
            _check_tensor(_message(value), what)


def _check_tensor(tensor: memoryview, what: str) -> None:
    for field, value in _fields(tensor, TENSOR):
        if field == _TENSOR_EXTERNAL or (field == _TENSOR_LOCATION and value != 0):
            raise _refusal(what, "keeps weights in another file")


def _fields(message: memoryview, known: frozenset[int]) -> Iterator[tuple[int, _Value]]:
    """Yield number and value of each field; raise ValueError or IndexError for what is no message.

    Args:
        message: Its bytes.
        known: Numbers of the fields that it may have.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if number not in known:
            raise ValueError(f"a field {number}, which it does not have there")
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + size > len(message):
            raise ValueError("it ends too early")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(_MAX_VARINT_BYTES):
        byte = message[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if (i and not byte) or value > _MAX_VARINT:
                raise ValueError("a number in more bytes than it takes")
            return value, at + i + 1
    raise ValueError("a number without an end")


def _message(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _text(value: _Value) -> str:
    return bytes(_message(value)).decode("utf-8", "replace")
