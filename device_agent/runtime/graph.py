"""The graph that decides about frames, as ONNX, written without the onnx package, which no device has.

Only what this graph needs of onnx.proto is written (ONNX 1.17; Protocol Buffers' encoding page), as
`sdk.onnxfile` reads it. ONNX Runtime packs weights for its integer kernels only where a graph holds them: given
with each call they take more than twice as long as all else together (decision 0055), so the graph is made anew
for each solved head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.codes import FULL_SCALE

_IR_VERSION: Final = 8
_OPSET: Final = 17
_OWN: Final = "com.microsoft"
"""ONNX Runtime's own operators."""
_FLOAT, _UINT8, _INT8, _DOUBLE = 1, 2, 3, 11
_TYPES: Final = {"float32": _FLOAT, "uint8": _UINT8, "int8": _INT8}
_INT, _INTS = 2, 7
STRIP: Final = 128
"""Columns of a whitening that are worked on at a time."""
STEPS: Final = 63
"""Whitening in seven bits: two products with a shifted code, and their sum, stay within 16 bits, as the integer
kernels of processors without VNNI need. With the diagonal apart |q R'|^2 is off by .04 % (NEU, median; .16 at
most)."""
FEATURES, OFFSET, DIRECTIONS, ALONG_OFFSET = "features", "offset", "directions", "along_offset"
CODE, LENGTH, SQUARED, ALONG = "code", "length", "squared", "along"
OUTPUTS: Final = (CODE, LENGTH, SQUARED, ALONG)


_Part = bytes | memoryview


def in_steps(
    whitening: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return whole numbers (d, d) within `STEPS`, their unit (d,) by column, and the diagonal (d,) of a triangle.

    The diagonal is about ten times what else is in its column, so it is left out of the whole numbers.
    """
    whole = np.empty(whitening.shape, np.int8)
    unit = np.empty(len(whitening), np.float32)
    for at in range(0, len(whitening), STRIP):  # all at once they would be as large as the whitening
        some = whitening[:, at : at + STRIP].copy()
        some[np.arange(at, at + some.shape[1]), np.arange(some.shape[1])] = 0  # the diagonal
        largest = np.maximum(some.max(0), -some.min(0)) / STEPS
        unit[at : at + STRIP] = np.maximum(largest, np.finfo(np.float32).tiny)
        whole[:, at : at + STRIP] = np.rint(some / unit[at : at + STRIP])
    return whole, unit, np.diagonal(whitening).copy()


def deciding(
    whole: npt.NDArray[np.int8], unit: npt.NDArray[np.float32], diagonal: npt.NDArray[np.float32], scale: float
) -> bytes:
    """Return the model: features to codes (`sdk.codes.encode`), and these to what `Head.decided` takes.

    Inputs, float32: features (n, d); offset (d,), minus the centre's product with the whitening; directions (d, k)
    and along_offset (k,), the centre's product with these. Outputs: code (n, d) int8; length
    (n, 1) of the rooted features; squared (n,) and along (n, k).

    Args:
        whole: Of the whitening, as `in_steps` gives it.
        unit: Of each column.
        diagonal: Of the whitening.
        scale: The release's code scale.
    """
    d = len(unit)
    nodes = [
        _node("Abs", [FEATURES], "size"),
        _node("Sqrt", ["size"], "bare"),
        _node("Sign", [FEATURES], "sign"),
        _node("Mul", ["bare", "sign"], "root"),
        _node("Cast", ["bare"], "wide", to=_DOUBLE),
        _node("ReduceSumSquare", ["wide"], "total", axes=[1]),
        _node("Sqrt", ["total"], "far"),
        _node("Cast", ["far"], LENGTH, to=_FLOAT),
        _node("Max", [LENGTH, "tiny"], "divisor"),  # a black frame stays zero
        _node("Div", ["root", "divisor"], "unscaled"),
        _node("Mul", ["unscaled", "gain"], "scaled"),
        _node("Clip", ["scaled", "least", "most"], "clipped"),
        _node("QuantizeLinear", ["clipped", "one", "zero"], "shifted"),  # the kernels want codes without a sign
        _node("DequantizeLinear", ["shifted", "one", "zero"], "rounded"),
        _node("Cast", ["rounded"], CODE, to=_INT8),
        # unit (shifted - 128) whitening + offset
        _node(
            "MatMulIntegerToFloat", ["shifted", "whitening", "one", "unit", "zero", "", OFFSET], "off", domain=_OWN
        ),
        _node("Mul", ["rounded", "diagonal"], "on"),
        _node("Add", ["off", "on"], "white"),
        _node("ReduceSumSquare", ["white"], SQUARED, axes=[1], keepdims=0),
        _node("MatMul", ["rounded", DIRECTIONS], "products"),
        _node("Sub", ["products", ALONG_OFFSET], ALONG),
    ]
    number = np.float32
    weights = {
        "tiny": number(np.finfo(np.float32).tiny),
        "gain": number(FULL_SCALE / scale),
        "least": number(-FULL_SCALE),
        "most": number(FULL_SCALE),
        "one": number(1),
        "zero": np.uint8(128),
        "whitening": whole,
        "unit": unit,
        "diagonal": diagonal,
    }
    inputs: dict[str, list[int | str]] = {
        FEATURES: ["n", d],
        OFFSET: [d],
        DIRECTIONS: [d, "k"],
        ALONG_OFFSET: ["k"],
    }
    outputs: dict[str, tuple[int, list[int | str]]] = {
        CODE: (_INT8, ["n", d]),
        LENGTH: (_FLOAT, ["n", 1]),
        SQUARED: (_FLOAT, ["n"]),
        ALONG: (_FLOAT, ["n", "k"]),
    }
    graph = [
        *(_field(1, node) for node in nodes),
        _field(2, b"deciding"),
        *(part for name, value in weights.items() for part in _message(5, _tensor(name, np.asarray(value)))),
        *(_field(11, _value(name, _FLOAT, shape)) for name, shape in inputs.items()),
        *(_field(12, _value(name, kind, shape)) for name, (kind, shape) in outputs.items()),
    ]
    opsets = _field(8, _field(2, _OPSET)) + _field(8, _field(1, _OWN.encode()) + _field(2, 1))
    return b"".join([_field(1, _IR_VERSION), _field(2, b"headway"), *_message(7, graph), opsets])


def _node(
    op: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: int | list[int]
) -> bytes:
    """Return a NodeProto with whole numbers for attributes."""
    parts = [_field(1, name.encode()) for name in inputs]
    parts += [_field(2, output.encode()), _field(4, op.encode()), _field(7, domain.encode())]
    for name, value in attributes.items():
        if isinstance(value, int):
            content = _field(3, value) + _field(20, _INT)
        else:
            content = b"".join(_field(8, each) for each in value) + _field(20, _INTS)
        parts.append(_field(5, _field(1, name.encode()) + content))
    return b"".join(parts)


def _tensor(name: str, array: npt.NDArray[np.generic]) -> list[_Part]:
    """Return a TensorProto, its numbers not copied."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    dims = b"".join(_field(1, n) for n in array.shape)
    head = dims + _field(2, _TYPES[array.dtype.name]) + _field(8, name.encode())
    return [head, *_message(9, [little.reshape(-1).view(np.uint8).data])]


def _value(name: str, kind: int, shape: Sequence[int | str]) -> bytes:
    """Return a ValueInfoProto; a dimension is a number or a name."""
    dims = b"".join(_field(1, _field(1, n) if isinstance(n, int) else _field(2, n.encode())) for n in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def _message(number: int, parts: Sequence[_Part]) -> list[_Part]:
    """Return a field that holds these parts: they are joined once, with all others."""
    return [_varint(number << 3 | 2) + _varint(sum(map(len, parts))), *parts]


def _field(number: int, value: int | bytes) -> bytes:
    """Return a field with a whole number, not negative, or with bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
