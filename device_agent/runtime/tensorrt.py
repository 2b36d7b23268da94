"""TensorRT: an engine's bytes as a `Runtime`. The only module of the device that runs engines.

One execution context, one stream, buffers for the largest batch, held for the runtime's life: no memory is asked
for while frames pass. Frames go to pinned memory, to the GPU, through the engine and back, in order on the stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
import weakref
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sdk.codes import Features
from sdk.cuda import Cuda
from sdk.engine import PreparedEngine
from sdk.errors import EngineError, InferenceFailed
from sdk.tensorrt_api import Context, Engine, Library

_FLOAT_BYTES: Final = 4
_AGAIN: Final = "It is built again at the next start; until then ONNX Runtime serves."


@dataclass(frozen=True)
class _Buffer:
    """One input or output: where it lies on both sides, and its size for one frame, in numbers."""

    name: str
    shape: tuple[int, ...]
    device: int
    pinned: int
    values: npt.NDArray[np.float32]
    """(batch, numbers of a frame), a view of the pinned memory."""

    def size_bytes(self, n: int) -> int:
        return n * math.prod(self.shape) * _FLOAT_BYTES


class TensorRtRuntime:
    """A backbone in TensorRT on the GPU.

    Args:
        library: TensorRT here.
        prepared: The engine, from `sdk.engine.prepare_engine` on this machine: engines are code.
        feature_size: d that its first output must have. Further outputs are computed and not read.

    Raises:
        InferenceFailed: TensorRT does not take it, the GPU's memory is short, or it takes or gives other shapes.
    """

    def __init__(self, library: Library, prepared: PreparedEngine, feature_size: int) -> None:
        trt, self._cuda = library.trt, library.cuda
        self.name = f"TensorRT {library.version} on {library.gpu.name}"
        self.feature_size = feature_size
        self._library = library
        self._batch, *frame = prepared.key.shapes[2]
        library.messages.clear()
        # Each of these must outlive the next.
        try:
            self._deserializer = trt.Runtime(library.logger)
        except (TypeError, RuntimeError) as error:  # the bindings, where the native library gives nothing
            raise InferenceFailed(f"{self.name} does not start: {self._why()}", hint=_AGAIN) from error
        engine = self._deserializer.deserialize_cuda_engine(prepared.plan)
        if engine is None:
            raise InferenceFailed(f"{self.name} does not load the engine: {self._why()}", hint=_AGAIN)
        self._engine = engine
        context = engine.create_execution_context()
        if context is None:
            raise InferenceFailed(f"{self.name} has no memory for the engine: {self._why()}", hint=_AGAIN)
        self._context: Context = context
        inputs, outputs = _tensors(library, engine)
        self._check(inputs, outputs, tuple(frame), feature_size)
        self._lock = threading.Lock()
        self._shaped_for = 0
        memory = _Memory(self._cuda)
        weakref.finalize(self, memory.free)
        try:
            self._stream = memory.stream()
            self._input = memory.buffer(*inputs[0], self._batch)
            self._outputs = [memory.buffer(*output, self._batch) for output in outputs]
        except EngineError as error:
            memory.free()
            raise InferenceFailed(f"{self.name}: {error}", hint=error.hint) from error
        for buffer in (self._input, *self._outputs):
            if not context.set_tensor_address(buffer.name, buffer.device):
                raise InferenceFailed(f"{self.name} takes no memory for {buffer.name}: {self._why()}", hint=_AGAIN)
        self.features(np.zeros((1, *frame), np.float32))  # the slow first call, and what is wrong, end here

    def features(self, batch: npt.NDArray[np.float32]) -> Features:
        """Return the features (n, d) float32 of preprocessed frames (n, 3, H, W) float32."""
        features = np.empty((len(batch), self.feature_size), np.float32)
        with self._lock:
            for start in range(0, len(batch), self._batch):
                part = batch[start : start + self._batch]
                features[start : start + len(part)] = self._run(part)
        if not np.isfinite(features).all():
            raise InferenceFailed(f"{self.name} gives features that are not finite", hint="Check the frame.")
        return features

    def _run(self, part: npt.NDArray[np.float32]) -> Features:
        """Return the features of at most a batch. The view that comes back is overwritten by the next run."""
        n, source, target = len(part), self._input, self._outputs[0]
        if part.shape[1:] != source.shape:
            raise InferenceFailed(
                f"{self.name} takes frames {source.shape}, not {part.shape[1:]}",
                hint="Preprocess them as the release says.",
            )
        np.copyto(source.values[:n], part.reshape(n, -1))
        try:
            if n != self._shaped_for:
                self._shaped_for = 0
                if not self._context.set_input_shape(source.name, (n, *source.shape)):
                    raise InferenceFailed(f"{self.name} takes no {n} frames: {self._why()}", hint=_AGAIN)
                self._shaped_for = n
            self._cuda.to_device(source.device, source.pinned, source.size_bytes(n), self._stream)
            if not self._context.execute_async_v3(self._stream):
                raise InferenceFailed(f"{self.name} failed: {self._why()}", hint="See what the GPU says: dmesg.")
            self._cuda.to_host(target.pinned, target.device, target.size_bytes(n), self._stream)
            self._cuda.synchronize(self._stream)
        except EngineError as error:
            raise InferenceFailed(f"{self.name}: {error}", hint=error.hint) from error
        return target.values[:n]

    def _check(
        self, inputs: list[_Named], outputs: list[_Named], frame: tuple[int, ...], feature_size: int
    ) -> None:
        if [shape for _, shape in inputs] != [frame] or not outputs or outputs[0][1] != (feature_size,):
            found = [shape for _, shape in (*inputs, *outputs)]
            raise InferenceFailed(
                f"the engine takes and gives {found} a frame, not {frame} and ({feature_size},)",
                hint="The backbone is not the one that the manifest describes: export the bundle again.",
            )

    def _why(self) -> str:
        return self._library.messages.last() or "it does not say why"


_Named = tuple[str, tuple[int, ...]]
"""A tensor's name, and its shape for one frame."""


def _tensors(library: Library, engine: Engine) -> tuple[list[_Named], list[_Named]]:
    """Return inputs and outputs in the network's order.

    Raises:
        InferenceFailed: one is not float32, or of a size that is not known before it runs.
    """
    trt = library.trt
    inputs: list[_Named] = []
    outputs: list[_Named] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(int(side) for side in engine.get_tensor_shape(name))
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT or not shape or min(shape[1:], default=1) < 1:
            raise InferenceFailed(
                f"{name} of the engine is {engine.get_tensor_dtype(name)} {shape}, not float32 of a known size",
                hint="Export the bundle again with this version of Headway.",
            )
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append((name, shape[1:]))
    return inputs, outputs


class _Memory:
    """What was taken from CUDA, to be given back at once, whatever came in between."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._device: list[int] = []
        self._pinned: list[int] = []
        self._streams: list[int] = []

    def stream(self) -> int:
        self._streams.append(self._cuda.open_stream())
        return self._streams[-1]

    def buffer(self, name: str, shape: tuple[int, ...], batch: int) -> _Buffer:
        numbers = math.prod(shape)
        size_bytes = batch * numbers * _FLOAT_BYTES
        self._device.append(self._cuda.allocate(size_bytes))
        self._pinned.append(self._cuda.allocate_pinned(size_bytes))
        raw = (ctypes.c_float * (batch * numbers)).from_address(self._pinned[-1])
        values = np.ctypeslib.as_array(raw).reshape(batch, numbers)
        return _Buffer(name, shape, self._device[-1], self._pinned[-1], values)

    def free(self) -> None:
        with contextlib.suppress(EngineError):  # a GPU that is gone takes nothing back
            while self._device:
                self._cuda.free(self._device.pop())
            while self._pinned:
                self._cuda.free_pinned(self._pinned.pop())
            while self._streams:
                self._cuda.close_stream(self._streams.pop())
