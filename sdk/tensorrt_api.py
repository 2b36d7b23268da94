"""What Headway uses of TensorRT 10 and 11, as interfaces, and the library itself where this machine has it.

Nothing but the members below is used, and a test holds them against NVIDIA's real Python bindings of both versions
(`tests/test_tensorrt_bindings.py`). TensorRT 11 took away the builder flags for FP16 and INT8; networks here are
strongly typed, so that the ONNX file alone says which precision each tensor has, on both versions alike.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import platform
import re
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from sdk.cuda import Cuda, Gpu, cuda_python
from sdk.errors import TensorRtMissing

OLDEST: Final = 10
NEWEST: Final = 11
"""Major versions that this is written for and checked against."""
MESSAGES_KEPT: Final = 20

Shape = tuple[int, ...]


class HostMemory(Protocol):
    """`IHostMemory`: bytes that TensorRT owns, read through the buffer protocol."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Give its bytes."""


class Profile(Protocol):
    """`IOptimizationProfile`."""

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:
        """Say between which shapes an input may vary."""


class TimingCache(Protocol):
    """`ITimingCache`: how long each kernel took, so that a second build need not try it again."""

    def serialize(self) -> HostMemory:
        """Return its bytes."""


class BuilderConfig(Protocol):
    """`IBuilderConfig`."""

    progress_monitor: Any

    def set_memory_pool_limit(self, pool: object, pool_size: int) -> None:
        """Limit memory."""

    def add_optimization_profile(self, profile: Profile) -> int:
        """Return the profile's index; -1 where it is not valid."""

    def clear_flag(self, flag: object) -> None:
        """Take a flag back."""

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        """Return a timing cache; empty bytes make an empty one."""

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Use a timing cache; false where it is another GPU's or version's."""

    def get_timing_cache(self) -> TimingCache | None:
        """Return the one in use."""


class Tensor(Protocol):
    """`ITensor`."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> Sequence[int]:
        """Its shape; -1 where it is free."""


class Network(Protocol):
    """`INetworkDefinition`."""

    @property
    def num_inputs(self) -> int:
        """How many inputs."""

    @property
    def num_outputs(self) -> int:
        """How many outputs."""

    def get_input(self, index: int) -> Tensor:
        """Return an input."""


class ParserError(Protocol):
    """`IParserError`."""

    def desc(self) -> str:
        """Say what is wrong."""

    def node(self) -> int:
        """Return the node's index; -1 where it is none."""


class Parser(Protocol):
    """`OnnxParser`."""

    @property
    def num_errors(self) -> int:
        """How many errors."""

    def parse(self, model: bytes) -> bool:
        """Fill the network from an ONNX file's bytes; without a path, so that no other file is ever opened."""

    def get_error(self, index: int) -> ParserError:
        """Return an error."""


class Builder(Protocol):
    """`Builder`."""

    def create_network(self, flags: int) -> Network:
        """Return an empty network."""

    def create_builder_config(self) -> BuilderConfig:
        """Return a configuration."""

    def create_optimization_profile(self) -> Profile:
        """Return a profile."""

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None:
        """Return the engine's bytes (a plan), or None. Takes seconds to many minutes."""


class Context(Protocol):
    """`IExecutionContext`: one at a time."""

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        """Say which shape comes next."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Say where an input or output lies on the GPU."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Put a run on a stream."""


class Engine(Protocol):
    """`ICudaEngine`."""

    @property
    def num_io_tensors(self) -> int:
        """How many inputs and outputs."""

    def get_tensor_name(self, index: int) -> str:
        """Return a name."""

    def get_tensor_mode(self, name: str) -> object:
        """Return TensorIOMode.INPUT or OUTPUT."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return a shape; -1 where it is free."""

    def get_tensor_dtype(self, name: str) -> object:
        """Return a DataType."""

    def create_execution_context(self) -> Context | None:
        """Return a context, or None where memory is short."""


class Deserializer(Protocol):
    """`Runtime`."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        """Return an engine, or None where it was built by another version or for another GPU."""


class TensorRt(Protocol):
    """The module `tensorrt`. Enumerations and base classes are opaque: they are handed back as they come."""

    __version__: str
    ILogger: Any
    IProgressMonitor: Any
    NetworkDefinitionCreationFlag: Any
    BuilderFlag: Any
    MemoryPoolType: Any
    TensorIOMode: Any
    DataType: Any

    def Builder(self, logger: object, /) -> Builder:  # noqa: N802 - NVIDIA's name
        """Return a builder."""

    def OnnxParser(self, network: Network, logger: object, /) -> Parser:  # noqa: N802
        """Return a parser that fills a network."""

    def Runtime(self, logger: object, /) -> Deserializer:  # noqa: N802
        """Return what reads engines."""


class Messages:
    """TensorRT's last complaints: it returns None and says why to a logger only. Safe from several threads."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=MESSAGES_KEPT)
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Keep a line."""
        with self._lock:
            self._lines.append(" ".join(line.split()))

    def clear(self) -> None:
        """Forget what was said before."""
        with self._lock:
            self._lines.clear()

    def last(self) -> str:
        """Return the newest complaint; empty where there was none."""
        with self._lock:
            return self._lines[-1][:300] if self._lines else ""


@dataclass(frozen=True)
class Library:
    """TensorRT and CUDA on this machine.

    Attributes:
        trt: The module.
        cuda: CUDA.
        gpu: What engines are built for.
        logger: TensorRT keeps the first logger that it is given for the whole process, so there is one.
        messages: What it was told.
    """

    trt: TensorRt
    cuda: Cuda
    gpu: Gpu
    logger: object
    messages: Messages

    @classmethod
    def of(cls, trt: TensorRt, cuda: Cuda) -> Library:
        """Return the library of these two.

        Raises:
            TensorRtMissing: no GPU, or a version of TensorRT that is too old.
        """
        major = _major(trt.__version__)
        if major < OLDEST:
            raise TensorRtMissing(
                f"TensorRT {trt.__version__} is too old", hint=f"Headway needs {OLDEST} (JetPack 6.1) or newer."
            )
        messages = Messages()
        return cls(trt, cuda, cuda.gpu(), _logger(trt, messages), messages)

    @property
    def version(self) -> str:
        """TensorRT's version, "10.3.0"."""
        return self.trt.__version__


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found.group()) if found else 0


def _logger(trt: TensorRt, messages: Messages) -> object:
    severity = trt.ILogger.Severity
    grave = (severity.INTERNAL_ERROR, severity.ERROR)

    def log(_: object, severity: object, msg: str) -> None:
        if severity in grave:
            messages.add(msg)

    return type("HeadwayLogger", (trt.ILogger,), {"log": log})()


def installed() -> bool:
    """Return whether TensorRT for Python is there, without loading its gigabytes; it may still refuse to open."""
    return importlib.util.find_spec("tensorrt") is not None


@functools.cache
def open_library() -> Library:
    """Return TensorRT and CUDA of this machine; the same ones at every call.

    Raises:
        TensorRtMissing: something is not installed, too old, or there is no GPU.
    """
    try:
        trt = cast(TensorRt, importlib.import_module("tensorrt"))
    except ModuleNotFoundError as error:
        raise TensorRtMissing("TensorRT for Python is not installed", hint=_how_to_install()) from error
    except (ImportError, OSError) as error:
        # The bindings are there, but not the native libraries that they load.
        reason = " ".join(str(error).split())[:200]
        raise TensorRtMissing(f"TensorRT does not load: {reason}", hint=_how_to_install()) from error
    return Library.of(trt, cuda_python())


def _how_to_install() -> str:
    if platform.machine() == "aarch64":
        return (
            "On Jetson: sudo apt-get install python3-libnvinfer, and make the environment with "
            "`python3 -m venv --system-site-packages`."
        )
    return "pip install tensorrt-cu13 (driver 580 or newer) or tensorrt-cu12 (older), or use ONNX Runtime."
