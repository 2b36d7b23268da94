"""TensorRT on the device: the same features, no memory kept, and ONNX Runtime serving where an engine cannot."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from device_agent.agent import Agent
from device_agent.config import RuntimeSettings
from device_agent.pipeline import BATCH_FRAMES
from device_agent.runtime import Runtime, check_golden, open_runtime
from device_agent.runtime import engines as engines_module
from device_agent.runtime.engines import Engines, Upgrading
from device_agent.runtime.tensorrt import TensorRtRuntime
from device_agent.site_file import parse_site
from sdk.bundle import Bundle
from sdk.engine import MAX_BATCH, MAX_TRIES, EngineCache, prepare_engine
from sdk.errors import ConfigError, InferenceFailed, TensorRtMissing
from sdk.tensorrt_api import Library, installed, open_library
from tests.simulators import wait_for
from tests.tensorrt_sim import DataType, SimCuda, SimTensorRt, sim_library
from tests.tiny import FEATURE_SIZE, SIDE, tiny_bundle

FRAME = np.zeros((1, 3, SIDE, SIDE), np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("tensorrt") / "bundle", per_class=8)


@pytest.fixture(scope="module")
def onnx(bundle: Bundle) -> Runtime:
    return open_runtime(bundle, None, RuntimeSettings(threads=1))


def noise(n: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(n).normal(size=(n, 3, SIDE, SIDE)).astype(np.float32)


def run(library: Library, bundle: Bundle, folder: Path, feature_size: int = FEATURE_SIZE) -> TensorRtRuntime:
    return TensorRtRuntime(library, prepare_engine(library, EngineCache(folder), bundle), feature_size)


def test_it_gives_what_onnx_runtime_gives_whatever_the_batch(
    bundle: Bundle, onnx: Runtime, tmp_path: Path
) -> None:
    runtime = run(sim_library(), bundle, tmp_path)
    assert runtime.name == "TensorRT 10.3.0 on Orin"
    assert check_golden(runtime, bundle) < 1e-3
    for n in (0, 1, 3, MAX_BATCH, MAX_BATCH + 1, 3 * MAX_BATCH + 5):
        np.testing.assert_allclose(runtime.features(noise(n)), onnx.features(noise(n)), rtol=1e-4, atol=1e-5)


def test_an_agents_batch_fits_one_run() -> None:
    assert BATCH_FRAMES <= MAX_BATCH


def test_several_threads_share_one_context(bundle: Bundle, onnx: Runtime, tmp_path: Path) -> None:
    """The simulated context fails when two threads are in it."""
    runtime = run(sim_library(), bundle, tmp_path)
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(10):
            if not np.allclose(runtime.features(noise(n)), onnx.features(noise(n)), rtol=1e-4, atol=1e-5):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 5, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_features_are_the_callers_own(bundle: Bundle, tmp_path: Path) -> None:
    runtime = run(sim_library(), bundle, tmp_path)
    first = runtime.features(noise(2))
    kept = first.copy()
    runtime.features(noise(3))
    assert np.array_equal(first, kept)


def test_all_memory_is_given_back(bundle: Bundle, tmp_path: Path) -> None:
    cuda = SimCuda()
    runtime = run(sim_library(cuda=cuda), bundle, tmp_path)
    assert len(cuda.held) == 4  # input and output, on both sides
    del runtime
    gc.collect()
    assert (len(cuda.held), cuda.streams) == (0, 0)


def no_memory(sim: SimTensorRt, cuda: SimCuda) -> None:
    sim.no_memory = True


def no_gpu_memory(sim: SimTensorRt, cuda: SimCuda) -> None:
    cuda.fail_on = "allocate"


def half(sim: SimTensorRt, cuda: SimCuda) -> None:
    sim.dtype = DataType.HALF


def broken(sim: SimTensorRt, cuda: SimCuda) -> None:
    sim.broken = True


def lost(sim: SimTensorRt, cuda: SimCuda) -> None:
    cuda.fail_on = "synchronize"


def not_finite(sim: SimTensorRt, cuda: SimCuda) -> None:
    sim.distortion = np.full(1, np.nan, np.float32)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (no_memory, "has no memory for the engine"),
        (no_gpu_memory, "allocate failed"),
        (half, "not float32 of a known size"),
        (broken, "TensorRT 10.3.0 on Orin failed: it does not say why"),
        (lost, "synchronize failed"),
        (not_finite, "not finite"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_no_memory(
    trouble: Callable[[SimTensorRt, SimCuda], None], words: str, bundle: Bundle, tmp_path: Path
) -> None:
    sim, cuda = SimTensorRt(), SimCuda()
    trouble(sim, cuda)
    with pytest.raises(InferenceFailed, match=words):
        run(sim_library(sim, cuda), bundle, tmp_path)
    gc.collect()
    assert (len(cuda.held), cuda.streams) == (0, 0)


def test_an_engine_of_another_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    made = prepare_engine(sim_library(SimTensorRt("10.3.0")), EngineCache(tmp_path), bundle)
    with pytest.raises(InferenceFailed, match="does not load the engine: the engine was made elsewhere"):
        TensorRtRuntime(sim_library(SimTensorRt("11.4.0.106")), made, FEATURE_SIZE)


def test_another_feature_size_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InferenceFailed, match=r"gives .*\(48,\).* not .*\(50,\)"):
        run(sim_library(), bundle, tmp_path, feature_size=50)


def test_frames_of_another_size_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    runtime = run(sim_library(), bundle, tmp_path)
    with pytest.raises(InferenceFailed, match=r"takes frames \(3, 32, 32\), not \(3, 8, 8\)"):
        runtime.features(np.zeros((1, 3, 8, 8), np.float32))


# Engines beside ONNX Runtime


class Slow:
    """ONNX Runtime, so slow that anything is faster; counts the frames that it was given."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self.name = "slow"
        self.feature_size = inner.feature_size
        self.calls = 0
        self._pause = threading.Event()

    def features(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        self.calls += 1
        self._pause.wait(0.02)
        return self._inner.features(batch)


@pytest.fixture
def slow(onnx: Runtime) -> Slow:
    return Slow(onnx)


Device = tuple[SimTensorRt, Engines]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device with TensorRT whose builds are held until `go_on` is set."""
    sim = SimTensorRt()
    sim.go_on.clear()
    engines = Engines(tmp_path / "engines", library=lambda: sim_library(sim))
    yield sim, engines
    sim.go_on.set()
    engines.stop()


def test_onnx_runtime_serves_until_the_engine_is_built(device: Device, bundle: Bundle, slow: Slow) -> None:
    sim, engines = device
    runtime = engines.upgrade(bundle, None, slow)
    wait_for(lambda: sim.builds == 1)
    before = slow.calls
    assert runtime.features(FRAME).shape == (1, FEATURE_SIZE)
    assert slow.calls == before + 1
    assert runtime.name.startswith("slow (TensorRT engine: ")
    sim.go_on.set()
    wait_for(lambda: runtime.name == "TensorRT 10.3.0 on Orin")
    calls = slow.calls
    np.testing.assert_allclose(runtime.features(noise(2)), slow.features(noise(2)), rtol=1e-4, atol=1e-5)
    assert slow.calls == calls + 1  # ours above only


def test_a_candidate_waits_for_its_engine(device: Device, bundle: Bundle, slow: Slow) -> None:
    sim, engines = device
    sim.go_on.set()
    assert engines.upgrade(bundle, None, slow, wait_s=20).name == "TensorRT 10.3.0 on Orin"


class Mapping(Slow):
    """Also gives maps, from which heatmaps are drawn."""

    def spatial(self, batch: npt.NDArray[np.float32]) -> str:
        return f"maps of {len(batch)} frames"


def test_what_the_first_offers_beside_features_stays_at_hand(
    device: Device, bundle: Bundle, onnx: Runtime
) -> None:
    sim, engines = device
    sim.go_on.set()
    runtime = engines.upgrade(bundle, None, Mapping(onnx), wait_s=20)
    assert runtime.name == "TensorRT 10.3.0 on Orin"
    assert isinstance(runtime, Upgrading)
    assert runtime.spatial(FRAME) == "maps of 1 frames"
    assert not hasattr(engines.upgrade(bundle, None, Slow(onnx), wait_s=20), "spatial")


def test_the_second_start_builds_nothing(device: Device, bundle: Bundle, slow: Slow) -> None:
    sim, engines = device
    sim.go_on.set()
    engines.upgrade(bundle, None, slow, wait_s=20)
    assert engines.upgrade(bundle, None, slow, wait_s=20).name == "TensorRT 10.3.0 on Orin"
    assert sim.builds == 1


def test_a_slower_engine_does_not_take_over(device: Device, bundle: Bundle, onnx: Runtime, tmp_path: Path) -> None:
    """And where TensorRT was asked for, it does."""
    sim, _ = device
    sim.go_on.set()
    quick = Slow(onnx)
    quick._pause.set()
    sim_slow = sim_library(sim, SlowCuda())
    auto = Engines(tmp_path / "auto", library=lambda: sim_slow)
    runtime = auto.upgrade(bundle, None, quick, wait_s=20)
    assert runtime.name.startswith("slow (no faster: TensorRT ")
    asked = Engines(tmp_path / "on", library=lambda: sim_slow, only_if_faster=False)
    assert asked.upgrade(bundle, None, quick, wait_s=20).name == "TensorRT 10.3.0 on Orin"


class SlowCuda(SimCuda):
    def synchronize(self, _stream: int) -> None:
        threading.Event().wait(0.02)


def distorted(sim: SimTensorRt) -> None:
    sim.distortion = np.random.default_rng(0).uniform(0, 3, FEATURE_SIZE).astype(np.float32)


def unreadable(sim: SimTensorRt) -> None:
    sim.refuses = "UNSUPPORTED_NODE"


def unbuildable(sim: SimTensorRt) -> None:
    sim.fails = "no implementation"


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (distorted, "on the golden inputs"),
        (unreadable, "no TensorRT: TensorRT cannot read the backbone: node 3: UNSUPPORTED_NODE"),
        (unbuildable, "no TensorRT: TensorRT cannot build the engine: no implementation"),
    ],
)
def test_what_cannot_be_built_or_computes_wrong_never_serves(
    trouble: Callable[[SimTensorRt], None], words: str, device: Device, bundle: Bundle, slow: Slow, tmp_path: Path
) -> None:
    sim, engines = device
    trouble(sim)
    sim.go_on.set()
    runtime = engines.upgrade(bundle, None, slow, wait_s=20)
    assert runtime.name.startswith("slow (")
    assert words in runtime.name
    assert runtime.features(FRAME).shape == (1, FEATURE_SIZE)
    assert list((tmp_path / "engines").glob("*.engine")) == []  # it would be wrong at the next start too


def test_an_engine_that_fails_later_hands_back_and_loses_no_frame(
    device: Device, bundle: Bundle, slow: Slow
) -> None:
    sim, engines = device
    sim.go_on.set()
    runtime = engines.upgrade(bundle, None, slow, wait_s=20)
    sim.broken = True
    np.testing.assert_array_equal(runtime.features(noise(2)), slow.features(noise(2)))
    assert runtime.name.startswith("slow (TensorRT failed: ")
    sim.broken = False
    calls = slow.calls
    runtime.features(FRAME)
    assert slow.calls == calls + 1  # and stays


def test_a_frame_that_nobody_can_compute_is_no_fault_of_the_engine(
    device: Device, bundle: Bundle, slow: Slow
) -> None:
    sim, engines = device
    sim.go_on.set()
    runtime = engines.upgrade(bundle, None, slow, wait_s=20)
    with pytest.raises(InferenceFailed):
        runtime.features(np.full((1, 3, SIDE, SIDE), np.nan, np.float32))
    assert runtime.name == "TensorRT 10.3.0 on Orin"


def test_stopping_ends_the_waiting_at_once_and_the_build_at_its_next_step(
    device: Device, bundle: Bundle, slow: Slow, tmp_path: Path
) -> None:
    sim, engines = device
    runtime: list[Runtime] = []
    waiting = threading.Thread(target=lambda: runtime.append(engines.upgrade(bundle, None, slow, wait_s=60)))
    waiting.start()
    wait_for(lambda: sim.builds == 1)
    stopping = threading.Thread(target=engines.stop)
    stopping.start()
    waiting.join(20)
    assert runtime[0].name == "slow"  # though the build still hangs in its first step
    sim.go_on.set()
    stopping.join(20)
    assert not stopping.is_alive()
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_build_that_outlives_a_stop_did_not_end_the_process(
    bundle: Bundle, slow: Slow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two stops during builds, the third start refused the engine for ever."""
    monkeypatch.setattr(engines_module, "STOP_S", 0.05)
    sim = SimTensorRt()
    sim.go_on.clear()
    starts: list[Engines] = []
    for count in range(1, MAX_TRIES + 2):
        starts.append(Engines(tmp_path / "engines", library=lambda: sim_library(sim)))
        runtime = starts[-1].upgrade(bundle, None, slow)
        wait_for(lambda: sim.builds == count, what=f"build {count}")  # noqa: B023 - called before it changes
        assert "ended the whole process" not in runtime.name
        starts[-1].stop()
        assert list((tmp_path / "engines").iterdir()) == []
    sim.go_on.set()
    monkeypatch.undo()
    for engines in starts:
        engines.stop()


def test_without_tensorrt_what_serves_is_left_as_it_is(bundle: Bundle, onnx: Runtime, tmp_path: Path) -> None:
    def missing() -> Library:
        raise TensorRtMissing("TensorRT for Python is not installed", hint="Install it.")

    engines = Engines(tmp_path, library=missing)
    runtime = engines.upgrade(bundle, None, onnx, wait_s=20)
    assert runtime.name == f"{onnx.name} (no TensorRT: TensorRT for Python is not installed)"
    assert runtime.features(FRAME).shape == (1, FEATURE_SIZE)
    with pytest.raises(TensorRtMissing):
        engines.require()


def test_where_it_is_not_installed_nothing_stands_in_the_way(
    bundle: Bundle, onnx: Runtime, tmp_path: Path
) -> None:
    if installed():
        pytest.skip("TensorRT is here")
    assert Engines(tmp_path).upgrade(bundle, None, onnx) is onnx


def test_an_agent_that_must_have_tensorrt_refuses_to_start_without(bundle: Bundle, tmp_path: Path) -> None:
    try:
        open_library()
    except TensorRtMissing:
        (tmp_path / "images").mkdir()
        text = f'device = "a"\nbundle = "{bundle.path}"\ncamera = {{kind = "folder", path = "images"}}\n'
        site = parse_site(f'{text}[runtime]\ntensorrt = "on"\n', tmp_path / "site.toml")
        with pytest.raises(TensorRtMissing):
            Agent(site)
    else:
        pytest.skip("TensorRT and a GPU are here")


SITE = 'device = "a"\ncamera = {kind = "folder", path = "x"}\n[runtime]\ntensorrt = '


@pytest.mark.parametrize("choice", ["auto", "on", "off"])
def test_the_settings_choose(choice: str) -> None:
    assert parse_site(f'{SITE}"{choice}"', Path("site.toml")).runtime.tensorrt == choice


@pytest.mark.parametrize("choice", ['"maybe"', "true", "1"])
def test_other_choices_are_refused(choice: str) -> None:
    with pytest.raises(ConfigError, match="tensorrt"):
        parse_site(SITE + choice, Path("site.toml"))
