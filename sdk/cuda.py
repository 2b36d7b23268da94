"""The little of CUDA that an engine needs: which GPU, memory there and pinned here, copies, one stream.

`Cuda` is the seam, `cuda_python()` the real thing: NVIDIA's `cuda.bindings`, imported late. No torch: a device has
none. What this machine lacks is told by `TensorRtMissing`, with what to install.
"""

from __future__ import annotations

import importlib
from typing import Any, Final, NamedTuple, Protocol

from sdk.errors import EngineError, TensorRtMissing
from sdk.extras import installing

_NO_DRIVER: Final = frozenset(
    {"cudaErrorInsufficientDriver", "cudaErrorStubLibrary", "cudaErrorSystemDriverMismatch"}
)
_NO_GPU: Final = "cudaErrorNoDevice"


class Gpu(NamedTuple):
    """The GPU that engines are built for and run on: the first that CUDA shows (see `CUDA_VISIBLE_DEVICES`)."""

    name: str
    compute_capability: str
    """Major and minor version: "8.7"."""
    memory_bytes: int


class Cuda(Protocol):
    """CUDA's runtime, for one GPU. Addresses and streams are integers. Every method raises EngineError.

    Safe to call from several threads.
    """

    def gpu(self) -> Gpu:
        """Return the GPU.

        Raises:
            TensorRtMissing: there is none, or no driver for it.
        """

    def allocate(self, size_bytes: int) -> int:
        """Return the address of memory on the GPU."""

    def free(self, address: int) -> None:
        """Give memory on the GPU back."""

    def allocate_pinned(self, size_bytes: int) -> int:
        """Return the address of host memory that the GPU copies from and to directly."""

    def free_pinned(self, address: int) -> None:
        """Give pinned memory back."""

    def open_stream(self) -> int:
        """Return a stream: what is put on it happens in order."""

    def close_stream(self, stream: int) -> None:
        """Give a stream back."""

    def to_device(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Put a copy from pinned memory to the GPU on a stream."""

    def to_host(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Put a copy from the GPU to pinned memory on a stream."""

    def synchronize(self, stream: int) -> None:
        """Wait until everything on a stream has happened."""


def cuda_python() -> Cuda:
    """Return CUDA by NVIDIA's Python bindings.

    Raises:
        TensorRtMissing: they are not installed.
    """
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise TensorRtMissing(
            "NVIDIA's CUDA bindings for Python are not installed",
            hint=f"{installing('tensorrt')}; on JetPack 6 (CUDA 12) add 'cuda-bindings<13'.",
        ) from error
    return CudaPython(runtime)


class CudaPython:
    """`Cuda` by `cuda.bindings.runtime`, whose calls return (error, value...).

    Args:
        runtime: That module. It ships no types.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime

    def gpu(self) -> Gpu:
        """Return the GPU."""
        count = self._call("cudaGetDeviceCount")
        if not count:
            raise TensorRtMissing("CUDA shows no GPU", hint="Check CUDA_VISIBLE_DEVICES and nvidia-smi.")
        properties = self._call("cudaGetDeviceProperties", 0)
        name = bytes(properties.name).partition(b"\0")[0].decode(errors="replace")
        return Gpu(name, f"{properties.major}.{properties.minor}", int(properties.totalGlobalMem))

    def allocate(self, size_bytes: int) -> int:
        """Return the address of memory on the GPU."""
        return int(self._call("cudaMalloc", size_bytes))

    def free(self, address: int) -> None:
        """Give memory on the GPU back."""
        self._call("cudaFree", address)

    def allocate_pinned(self, size_bytes: int) -> int:
        """Return the address of pinned host memory."""
        return int(self._call("cudaMallocHost", size_bytes))

    def free_pinned(self, address: int) -> None:
        """Give pinned memory back."""
        self._call("cudaFreeHost", address)

    def open_stream(self) -> int:
        """Return a stream."""
        return int(self._call("cudaStreamCreate"))

    def close_stream(self, stream: int) -> None:
        """Give a stream back."""
        self._call("cudaStreamDestroy", stream)

    def to_device(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Put a copy to the GPU on a stream."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size_bytes, kind, stream)

    def to_host(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Put a copy from the GPU on a stream."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, size_bytes, kind, stream)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._call("cudaStreamSynchronize", stream)

    def _call(self, function: str, *arguments: object) -> Any:
        error, *values = getattr(self._runtime, function)(*arguments)
        if int(error) != 0:
            raise _explained(function, error.name)
        return values[0] if values else None


def _explained(function: str, error: str) -> EngineError:
    if error in _NO_DRIVER:
        return TensorRtMissing(
            f"the NVIDIA driver is missing, or older than the CUDA bindings ({error})",
            hint="Install or update the driver (nvidia-smi shows it), or install older bindings: "
            "pip install 'cuda-bindings<13'.",
        )
    if error == _NO_GPU:
        return TensorRtMissing("CUDA shows no GPU", hint="Check CUDA_VISIBLE_DEVICES and nvidia-smi.")
    if error == "cudaErrorMemoryAllocation":
        return EngineError(
            f"{function}: out of memory", hint="Stop what else uses the GPU, or use a smaller backbone."
        )
    return EngineError(f"{function} failed: {error}", hint="See `dmesg` and nvidia-smi for what the GPU says.")
