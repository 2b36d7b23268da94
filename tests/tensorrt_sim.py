"""TensorRT and CUDA without a GPU: the members that Headway uses, with engines that really compute.

`SimTensorRt` is the module, at the seam of `sdk.tensorrt_api.TensorRt`; its classes bear NVIDIA's names. An
"engine" carries the ONNX file, the version and the GPU it was built with, and runs it by ONNX Runtime on memory of
`SimCuda`, whose addresses are real ones in this process. `Watched` notes every use of a member, for the check
against NVIDIA's own bindings.
"""

from __future__ import annotations

import ctypes
import enum
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime

from sdk.cuda import Gpu
from sdk.errors import EngineError
from sdk.tensorrt_api import Library, TensorRt

PLAN = b"simulated plan "
ORIN = Gpu("Orin", "8.7", 8 * 1024**3)


class SimCuda:
    """CUDA whose GPU memory is this process's. `fail_on` names a method that fails from now on."""

    def __init__(self, gpu: Gpu = ORIN) -> None:
        self._gpu = gpu
        self.held: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.streams = 0
        self.fail_on = ""

    def _may(self, method: str) -> None:
        if method == self.fail_on:
            raise EngineError(f"{method} failed: cudaErrorUnknown", hint="It is simulated.")

    def gpu(self) -> Gpu:
        return self._gpu

    def allocate(self, size_bytes: int) -> int:
        self._may("allocate")
        memory = ctypes.create_string_buffer(size_bytes)
        address = ctypes.addressof(memory)
        self.held[address] = memory
        return address

    def free(self, address: int) -> None:
        del self.held[address]

    allocate_pinned, free_pinned = allocate, free

    def open_stream(self) -> int:
        self.streams += 1
        return 7

    def close_stream(self, stream: int) -> None:
        assert stream == 7
        self.streams -= 1

    def to_device(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        self._may("to_device")
        assert stream == 7
        assert size_bytes <= min(len(self.held[target]), len(self.held[source]))
        ctypes.memmove(target, source, size_bytes)

    to_host = to_device

    def synchronize(self, stream: int) -> None:
        assert stream == 7
        self._may("synchronize")


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity: Any = Severity

    def log(self, severity: enum.Enum, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    TF32 = 5


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1


class IHostMemory(bytes):
    """Bytes."""


@dataclass
class ITensor:
    name: str
    shape: tuple[int, ...]


@dataclass
class ParserError:
    text: str

    def desc(self) -> str:
        return self.text

    def node(self) -> int:
        return 3


@dataclass
class INetworkDefinition:
    flags: int
    model: onnx.ModelProto | None = None
    logger: ILogger | None = None

    @property
    def num_inputs(self) -> int:
        return 0 if self.model is None else len(self.model.graph.input)

    @property
    def num_outputs(self) -> int:
        return 0 if self.model is None else len(self.model.graph.output)

    def get_input(self, index: int) -> ITensor:
        assert self.model is not None
        return _tensor(self.model.graph.input[index])


def _tensor(value: onnx.ValueInfoProto) -> ITensor:
    dims = value.type.tensor_type.shape.dim
    return ITensor(value.name, tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims))


class OnnxParser:
    def __init__(self, sim: SimTensorRt, network: INetworkDefinition) -> None:
        self._sim, self._network = sim, network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def parse(self, model: bytes) -> bool:
        if self._sim.refuses:
            self._errors.append(ParserError(self._sim.refuses))
            return False
        self._network.model = onnx.load_from_string(model)
        return True

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


@dataclass
class IOptimizationProfile:
    shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self.shapes[input] = (min, opt, max)


@dataclass
class ITimingCache:
    content: bytes

    def serialize(self) -> IHostMemory:
        return IHostMemory(self.content)


class IBuilderConfig:
    def __init__(self, sim: SimTensorRt) -> None:
        self._sim = sim
        self.progress_monitor: Any = None
        self.profiles: list[IOptimizationProfile] = []
        self.cleared: list[object] = []
        self.workspace_bytes = 0
        self.cache: ITimingCache | None = None

    def set_memory_pool_limit(self, pool: object, pool_size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        self.workspace_bytes = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return -1 if self._sim.bad_profile else len(self.profiles) - 1

    def clear_flag(self, flag: object) -> None:
        self.cleared.append(flag)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache.content and cache.content != self._sim.timing():
            return ignore_mismatch
        self._sim.timings_reused.append(bool(cache.content))
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return None if self.cache is None else ITimingCache(self._sim.timing())


class Builder:
    def __init__(self, sim: SimTensorRt, logger: ILogger) -> None:
        self._sim, self._logger = sim, logger

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition(flags, logger=self._logger)

    def create_builder_config(self) -> IBuilderConfig:
        self._sim.configs.append(IBuilderConfig(self._sim))
        return self._sim.configs[-1]

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        sim = self._sim
        sim.builds += 1
        assert network.flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        assert network.model is not None
        if sim.dies:
            raise SystemExit("the kernel killed the process")
        if not sim.go_on.wait(60) or not _walk_phases(config.progress_monitor, sim.on_step):
            return None
        if sim.fails:
            self._logger.log(Severity.WARNING, "something harmless")
            self._logger.log(Severity.ERROR, sim.fails)
            return None
        header = json.dumps({"trt": sim.__version__, "gpu": sim.gpu, "profile": config.profiles[0].shapes})
        return IHostMemory(PLAN + header.encode() + b"\n" + network.model.SerializeToString())


def _walk_phases(monitor: IProgressMonitor, on_step: Callable[[str, int], None]) -> bool:
    """Report two steps, the first with four within, from a thread as TensorRT does; return whether to go on."""
    verdict: list[bool] = []

    def walk() -> None:
        monitor.phase_start("Building", None, 2)
        monitor.phase_start("Timing kernels", "Building", 4)
        for step in range(4):
            on_step("Timing kernels", step)
            if not monitor.step_complete("Timing kernels", step):
                verdict.append(False)
                return
        monitor.phase_finish("Timing kernels")
        for step in range(2):
            if not monitor.step_complete("Building", step):
                verdict.append(False)
                return
        monitor.phase_finish("Building")

    thread = threading.Thread(target=walk)
    thread.start()
    thread.join()
    return not verdict


class Runtime:
    def __init__(self, sim: SimTensorRt, logger: ILogger) -> None:
        self._sim, self._logger = sim, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        header, _, model = serialized_engine.removeprefix(PLAN).partition(b"\n")
        made = json.loads(header)
        if (made["trt"], made["gpu"]) != (self._sim.__version__, self._sim.gpu):
            self._logger.log(Severity.ERROR, "the engine was made elsewhere")
            return None
        return ICudaEngine(self._sim, model)


class ICudaEngine:
    def __init__(self, sim: SimTensorRt, model: bytes) -> None:
        self._sim, self._model = sim, model
        graph = onnx.load_from_string(model).graph
        self._inputs = [_tensor(value) for value in graph.input]
        self._tensors = {t.name: t for t in [*self._inputs, *map(_tensor, graph.output)]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in [t.name for t in self._inputs] else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def get_tensor_dtype(self, name: str) -> DataType:
        assert name in self._tensors
        return self._sim.dtype

    def create_execution_context(self) -> IExecutionContext | None:
        return None if self._sim.no_memory else IExecutionContext(self._sim, self._model)


class IExecutionContext:
    def __init__(self, sim: SimTensorRt, model: bytes) -> None:
        self._sim = sim
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._busy = threading.Lock()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == self._session.get_inputs()[0].name
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == 7
        if self._sim.broken:
            return False
        assert self._busy.acquire(blocking=False), "two threads in one context"
        try:
            source = self._session.get_inputs()[0].name
            size = int(np.prod(self._shape))
            frames = np.ctypeslib.as_array((ctypes.c_float * size).from_address(self._addresses[source]))
            results = self._session.run(None, {source: frames.reshape(self._shape)})
            for output, result in zip(self._session.get_outputs(), results, strict=True):
                wrong = np.ascontiguousarray(result * self._sim.distortion, np.float32)
                ctypes.memmove(self._addresses[output.name], wrong.ctypes.data, wrong.nbytes)
        finally:
            self._busy.release()
        return True


class SimTensorRt:
    """The module `tensorrt`, with a switch for everything that goes wrong.

    Attributes:
        refuses: What the parser says against every file; empty for nothing.
        fails: What the builder logs before it gives nothing.
        dies: The process ends in the middle of a build.
        go_on: Clear it to hold a build until it is set.
        on_step: Called before each step that a build reports.
        bad_profile, no_memory, broken: What refuses.
        dtype: Of every input and output.
        distortion: Factor of every output.
        builds: How many began.
        configs: The configuration of each.
        timings_reused: For each build, whether a timing cache was taken.
    """

    ILogger: Any = ILogger
    IProgressMonitor: Any = IProgressMonitor
    NetworkDefinitionCreationFlag: Any = NetworkDefinitionCreationFlag
    BuilderFlag: Any = BuilderFlag
    MemoryPoolType: Any = MemoryPoolType
    TensorIOMode: Any = TensorIOMode
    DataType: Any = DataType

    def __init__(self, version: str = "10.3.0", gpu: str = ORIN.name) -> None:
        self.__version__ = version
        self.gpu = gpu
        self.refuses = ""
        self.fails = ""
        self.dies = False
        self.go_on = threading.Event()
        self.go_on.set()
        self.on_step: Callable[[str, int], None] = lambda _phase, _step: None
        self.bad_profile = self.no_memory = self.broken = False
        self.dtype = DataType.FLOAT
        self.distortion = np.ones(1, np.float32)
        self.builds = 0
        self.configs: list[IBuilderConfig] = []
        self.timings_reused: list[bool] = []

    def timing(self) -> bytes:
        return f"timing of {self.__version__} on {self.gpu}".encode()

    def Builder(self, logger: ILogger) -> Builder:  # noqa: N802
        return Builder(self, logger)

    def OnnxParser(self, network: INetworkDefinition, logger: ILogger) -> OnnxParser:  # noqa: N802
        assert logger is network.logger
        return OnnxParser(self, network)

    def Runtime(self, logger: ILogger) -> Runtime:  # noqa: N802
        return Runtime(self, logger)


def sim_library(sim: SimTensorRt | None = None, cuda: SimCuda | None = None) -> Library:
    """Return a library whose TensorRT and GPU are simulated."""
    sim = sim or SimTensorRt()
    return Library.of(cast(TensorRt, sim), cuda or SimCuda(Gpu(sim.gpu, "8.7", 8 * 1024**3)))


# What is used of it


@dataclass(frozen=True)
class Use:
    """One use of a member: `owner` is a class or the module, `kind` one of call, get, set, name."""

    owner: str
    member: str
    kind: str
    arguments: tuple[str, ...] = ()
    returns: str = ""


class Watched:
    """An object of the simulation, or the whole of it, that notes how its members are used.

    Enumerations and base classes are given as they are; that they were asked for is noted.
    """

    def __init__(self, target: object, uses: set[Use]) -> None:
        object.__setattr__(self, "_target", target)
        object.__setattr__(self, "_uses", uses)

    def __getattr__(self, name: str) -> Any:
        target, uses = self._target, self._uses
        owner = "" if isinstance(target, SimTensorRt) else type(target).__name__
        value = getattr(target, name)
        if isinstance(value, type) and issubclass(value, enum.Enum):
            return _Names(value, uses)
        if isinstance(value, type) or not callable(value):
            uses.add(Use(owner, name, "get", returns=_kind(value)))
            return value if isinstance(value, type) else _watched(value, uses)

        def call(*arguments: object) -> object:
            plain = [a._target if isinstance(a, Watched) else a for a in arguments]
            result = value(*plain)
            uses.add(Use(owner, name, "call", tuple(map(_kind, plain)), _kind(result)))
            return _watched(result, uses)

        return call

    def __setattr__(self, name: str, value: object) -> None:
        self._uses.add(Use(type(self._target).__name__, name, "set", (_kind(value),)))
        setattr(self._target, name, value)


class _Names:
    """An enumeration whose members, once asked for, are noted."""

    def __init__(self, kind: type[enum.Enum], uses: set[Use]) -> None:
        self._kind, self._uses = kind, uses

    def __getattr__(self, name: str) -> enum.Enum:
        self._uses.add(Use(self._kind.__name__, name, "name"))
        return self._kind[name]


def _watched(value: object, uses: set[Use]) -> object:
    ours = type(value).__module__ == __name__ and not isinstance(value, (enum.Enum, bytes))
    return Watched(value, uses) if ours else value


def _kind(value: object) -> str:
    for base in (ILogger, IProgressMonitor):
        if isinstance(value, base):
            return base.__name__
    return type(value).__name__
