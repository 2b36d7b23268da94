"""Real engines on a real GPU, where the tests find TensorRT: built, kept, run, stopped. Nobody ran these yet."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from device_agent.runtime import check_golden
from device_agent.runtime.tensorrt import TensorRtRuntime
from sdk.bundle import Bundle
from sdk.engine import EngineCache, EngineKey, PreparedEngine, build_engine, prepare_engine
from sdk.errors import TensorRtMissing
from sdk.tensorrt_api import Library, open_library
from tests.test_export_tensorrt import quantized
from tests.tiny import FEATURE_SIZE, SIDE, tiny_bundle

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return open_library()
    except TensorRtMissing as error:
        pytest.skip(f"{error}: {error.hint}")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("gpu") / "bundle", per_class=8)


def test_an_engine_is_built_with_progress_and_computes_the_golden_outputs(
    library: Library, bundle: Bundle, tmp_path: Path
) -> None:
    shares: list[float] = []
    cache = EngineCache(tmp_path)
    made = prepare_engine(library, cache, bundle, on_progress=lambda _words, share: shares.append(share))
    runtime = TensorRtRuntime(library, made, FEATURE_SIZE)
    assert check_golden(runtime, bundle) < 0.01  # fp32 with TF32 off
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    again = prepare_engine(library, cache, bundle)
    assert again.kept
    frames = np.random.default_rng(0).normal(size=(37, 3, SIDE, SIDE)).astype(np.float32)
    one_by_one = np.concatenate([runtime.features(frames[i : i + 1]) for i in range(len(frames))])
    np.testing.assert_allclose(runtime.features(frames), one_by_one, rtol=1e-3, atol=1e-4)


def test_symmetric_int8_computes_what_onnx_runtime_does(library: Library, bundle: Bundle) -> None:
    model = quantized().SerializeToString()
    key = EngineKey.of(library, bundle)
    plan, timing = build_engine(library, model, key, b"", lambda _words, _share: None, threading.Event())
    assert timing
    runtime = TensorRtRuntime(library, PreparedEngine(key, plan, kept=False), FEATURE_SIZE)
    frames = np.random.default_rng(1).normal(size=(4, 3, SIDE, SIDE)).astype(np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: frames})[0]
    # Half a step of the quantized input may fall to either side.
    np.testing.assert_allclose(runtime.features(frames), expected, rtol=0.05, atol=0.05)


def test_a_build_ends_when_it_is_asked_to(library: Library, bundle: Bundle, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError):
        prepare_engine(library, EngineCache(tmp_path), bundle, stop=stop)
