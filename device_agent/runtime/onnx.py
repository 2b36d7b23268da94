"""ONNX Runtime: the backbone's ONNX bytes as a `Runtime`. The only importer of onnxruntime on the device."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from device_agent.config import RuntimeSettings
from sdk.bundle import MapEntry
from sdk.codes import Features
from sdk.errors import BadFormat, InferenceFailed
from sdk.onnxfile import check_onnx_file

_FATAL_ONLY = 4

Batch = npt.NDArray[np.float32]
"""As in `device_agent.runtime`: frames, or what is computed of them."""
_ORT_ERRORS = (
    ort_state.EPFail,
    ort_state.EngineError,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NoModel,
    ort_state.NoSuchFile,
    *([ort_state.NotFound] if hasattr(ort_state, "NotFound") else []),  # since 1.23
    ort_state.NotImplemented,
    ort_state.RuntimeException,
    RuntimeError,
    ValueError,
)
"""What ONNX Runtime raises; most derive from nothing of its own."""


def installed_providers() -> tuple[str, list[str]]:
    """Return ONNX Runtime's version, and the providers that it was built with, the fastest first."""
    return onnxruntime.__version__, list(onnxruntime.get_available_providers())


_PROVIDERS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # fp32 means fp32: the codes of a channel's devices are mixed.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}
"""Our names of providers that are worth measuring, with ONNX Runtime's and its options."""


def usable_providers() -> list[str]:
    """Return our names of the providers that this ONNX Runtime was built with; one may still fail to open."""
    _, there = installed_providers()
    return [name for name, (provider, _) in _PROVIDERS.items() if provider in there]


class OnnxRuntime:
    """A backbone in ONNX Runtime, by one of its providers.

    Args:
        model: The ONNX file. It is one whole (`sdk.onnxfile`): ONNX Runtime would read other files if told to.
        what: Its name, for messages.
        shape: (3, H, W) of one preprocessed frame.
        feature_size: d that its output must have.
        settings: Threads.
        maps: What it gives beside the features.
        provider: "cpu" or "cuda".

    Raises:
        InferenceFailed: it does not load, or takes or gives other shapes.
    """

    def __init__(
        self,
        model: bytes,
        what: str,
        shape: tuple[int, int, int],
        feature_size: int,
        settings: RuntimeSettings,
        maps: Sequence[MapEntry] = (),
        provider: str = "cpu",
    ) -> None:
        try:
            check_onnx_file(model, what)
        except BadFormat as error:
            raise InferenceFailed(str(error), hint=error.hint) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.log_severity_level = _FATAL_ONLY  # what goes wrong is raised; the rest is not for operators
        # What was checked is ONNX. ONNX Runtime would look for its own format first.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # Between frames the processor belongs to the learner and the page, not to a spinning thread pool.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        ort_provider, provider_options = _PROVIDERS[provider]
        if provider == "cuda":
            _find_cuda_libraries()
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=[(ort_provider, provider_options)]
            )
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        except _ORT_ERRORS as error:
            raise InferenceFailed(
                f"{what} does not load in ONNX Runtime {onnxruntime.__version__}: {_one_line(error)}",
                hint="Export the bundle again, or update onnxruntime on this device.",
            ) from error
        if self._session.get_providers()[0] != ort_provider:
            # ONNX Runtime goes on by the processor where a provider does not load, and says so to a log only.
            raise InferenceFailed(
                f"{provider} does not start in ONNX Runtime {onnxruntime.__version__}",
                hint="Check the GPU's driver and libraries: headway doctor. The processor serves meanwhile.",
            )
        self.name = f"ONNX Runtime {onnxruntime.__version__} on {provider.upper()}"
        self.feature_size = feature_size
        self._what = what
        self._maps = tuple(maps)
        beside = {output.name for output in outputs[1:]}
        if len(inputs) != 1 or not outputs or inputs[0].type != "tensor(float)":
            raise InferenceFailed(
                f"{what} has {len(inputs)} inputs and {len(outputs)} outputs, not one float tensor and features",
                hint="Export the bundle again with this version of Headway.",
            )
        if beside != {entry.output for entry in maps}:
            raise InferenceFailed(
                f"{what} gives {sorted(beside)} beside features, not what the manifest says",
                hint="Export the bundle again with this version of Headway.",
            )
        self._input, self._output = inputs[0].name, outputs[0].name
        # What leads to a map only is not computed where the map is not asked for.
        self._run = onnxruntime.RunOptions()
        self._run.only_execute_path_to_fetches = True
        # A fixed batch size is legal ONNX; frames then go through one call each.
        self._one_by_one = isinstance(inputs[0].shape[0], int)
        self.features(np.zeros((1, *shape), np.float32))  # wrong shapes, and the slow first call, end here

    def features(self, batch: Batch) -> Features:
        """Return the features (n, d) float32 of preprocessed frames (n, 3, H, W) float32."""
        outputs = [each[0] for each in self._outputs(batch, [self._output])]
        if len(outputs) == 1:
            return self._checked(outputs[0], batch)
        features = np.concatenate(outputs) if outputs else np.zeros((0, self.feature_size), np.float32)
        return self._checked(features, batch)

    def spatial(self, batch: Batch) -> tuple[Features, tuple[Batch, ...]]:
        """Return features (n, d) and maps (n, c, h, w) of frames (n, 3, H, W), n > 0, from one pass."""
        names = [self._output, *(entry.output for entry in self._maps)]
        columns = list(zip(*self._outputs(batch, names), strict=True))
        features = self._checked(np.concatenate(columns[0]), batch)
        maps = tuple(np.asarray(np.concatenate(column), np.float32) for column in columns[1:])
        for entry, found in zip(self._maps, maps, strict=True):
            wanted = (len(batch), entry.channels, entry.height, entry.width)
            if found.shape != wanted or not np.isfinite(found).all():
                raise InferenceFailed(
                    f"{self._what} gives a map {entry.output} of {found.shape}, not finite numbers of {wanted}",
                    hint="The backbone is not the one that the manifest describes: export the bundle again.",
                )
        return features, maps

    def _outputs(self, batch: Batch, names: list[str]) -> list[list[Batch]]:
        """Return the named outputs of each call that the batch needs."""
        parts = [batch[i : i + 1] for i in range(len(batch))] if self._one_by_one else [batch]
        try:
            return [list(self._session.run(names, {self._input: part}, self._run)) for part in parts]
        except _ORT_ERRORS as error:
            raise InferenceFailed(
                f"{self._what} failed in {self.name}: {_one_line(error)}",
                hint="Check the bundle with `headway bundle verify`.",
            ) from error

    def _checked(self, features: Batch, batch: Batch) -> Features:
        if features.shape != (len(batch), self.feature_size):
            raise InferenceFailed(
                f"{self._what} gives {features.shape} for {len(batch)} frames, not "
                f"({len(batch)}, {self.feature_size})",
                hint="The backbone is not the one that the manifest describes: export the bundle again.",
            )
        # One pass, for each frame: what is not finite makes the sum so, and nothing else does in float64.
        if not math.isfinite(features.sum(dtype=np.float64)):
            raise InferenceFailed(f"{self._what} gives features that are not finite", hint="Check the frame.")
        return np.asarray(features, np.float32)


class GraphSession:
    """A small graph of our own, on one thread of the processor. Safe to call from several threads.

    Args:
        model: The ONNX file.
        what: Its name, for messages.
        outputs: What is asked of it, in this order.

    Raises:
        InferenceFailed: it does not load.
    """

    def __init__(self, model: bytes, what: str, outputs: Sequence[str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # written as it runs
        self._what, self._outputs = what, list(outputs)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=[_PROVIDERS["cpu"]])
        except _ORT_ERRORS as error:
            raise self._failed(error) from error

    def run(self, inputs: Mapping[str, npt.NDArray[np.float32]]) -> list[Any]:
        """Return the outputs for named inputs.

        Raises:
            InferenceFailed: it fails.
        """
        try:
            return list(self._session.run(self._outputs, inputs))
        except _ORT_ERRORS as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> InferenceFailed:
        return InferenceFailed(
            f"{self._what} fails in ONNX Runtime {onnxruntime.__version__}: {_one_line(error)}",
            hint="Update onnxruntime on this device.",
        )


@functools.cache
def _find_cuda_libraries() -> None:
    """Load the CUDA libraries that pip installed: ONNX Runtime finds by itself only those of the system."""
    preload = getattr(onnxruntime, "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(sys.stderr):  # where it tells what is missing
            preload(msvc=False)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
