"""Engines: built once, kept whole, named by everything they depend on, and every way to have none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest

from sdk.bundle import Bundle
from sdk.cuda import CudaPython, Gpu, cuda_python
from sdk.engine import (
    KEPT_ENGINES,
    MAX_TRIES,
    EngineCache,
    EngineKey,
    PreparedEngine,
    prepare_engine,
)
from sdk.errors import BadFormat, EngineError, Incompatible, TensorRtMissing
from sdk.tensorrt_api import Library, open_library
from tests.tensorrt_sim import PLAN, BuilderFlag, SimTensorRt, sim_library
from tests.tiny import backbone, tiny_bundle, with_backbone


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("engine") / "bundle", per_class=8)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def prepare(sim: SimTensorRt, cache: EngineCache, bundle: Bundle) -> PreparedEngine:
    return prepare_engine(sim_library(sim), cache, bundle)


def test_an_engine_is_built_once_and_read_thereafter(bundle: Bundle, cache: EngineCache) -> None:
    sim = SimTensorRt()
    first, second = prepare(sim, cache, bundle), prepare(sim, cache, bundle)
    assert (first.kept, second.kept, sim.builds) == (False, True, 1)
    assert first.plan == second.plan
    assert first.plan.startswith(PLAN)
    assert {f.name for f in cache.folder.iterdir()} == {first.key.name, first.key.timing_name}


def test_its_name_says_what_it_depends_on(bundle: Bundle) -> None:
    key = EngineKey.of(sim_library(SimTensorRt("10.3.0", "NVIDIA Jetson Orin/NX")), bundle)
    digest = next(f.sha256 for f in bundle.manifest.files if f.name == "backbone.fp32.onnx")
    assert key.name.startswith(f"{digest[:12]}.fp32.32x32x16.trt10.3.0.nvidia-jetson-orin-nx.sm8.7.")
    assert key.shapes == ((1, 3, 32, 32), (1, 3, 32, 32), (16, 3, 32, 32))


CHANGES: dict[str, dict[str, object]] = {
    "onnx": {"onnx_sha256": "ab" * 32},
    "precision": {"precision": "int8"},
    "tensorrt": {"tensorrt": "11.0.0"},
    "gpu": {"gpu": "Thor"},
    "compute capability": {"compute_capability": "10.1"},
    "shapes": {"shapes": ((1, 3, 32, 32), (1, 3, 32, 32), (8, 3, 32, 32))},
    "recipe": {"recipe": 99},
    "a name that looks alike": {"gpu": "ORIN"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_else_changes_is_another_engine(change: str, bundle: Bundle, cache: EngineCache) -> None:
    made = prepare(SimTensorRt(), cache, bundle)
    other = msgspec.structs.replace(made.key, **CHANGES[change])
    assert other.name != made.key.name
    assert cache.load(other) is None
    # And the name alone is not believed: the same file under the other name is another's, and is deleted.
    (cache.folder / made.key.name).rename(cache.folder / other.name)
    assert cache.load(other) is None
    assert not (cache.folder / other.name).exists()


def test_a_new_tensorrt_builds_anew_and_ignores_old_timings(bundle: Bundle, cache: EngineCache) -> None:
    old, new = SimTensorRt("10.3.0"), SimTensorRt("11.4.0.106")
    prepare(old, cache, bundle)
    made = prepare(new, cache, bundle)
    assert (made.kept, new.builds, new.timings_reused) == (False, 1, [False])


def test_timings_are_reused_for_the_next_engine(bundle: Bundle, cache: EngineCache) -> None:
    sim = SimTensorRt()
    cache.discard(prepare(sim, cache, bundle).key)
    prepare(sim, cache, bundle)
    assert sim.timings_reused == [False, True]


def test_timings_of_another_machine_are_refused_by_tensorrt_and_begun_anew(
    bundle: Bundle, cache: EngineCache
) -> None:
    sim = SimTensorRt()
    key = EngineKey.of(sim_library(sim), bundle)
    cache.store_timing(key, b"timing of something else")
    prepare(sim, cache, bundle)
    assert sim.timings_reused == [False]
    assert cache.load_timing(key) == sim.timing()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def foreign(file: Path) -> None:
    file.write_bytes(b"ftrt" + bytes(1000))


def longer_header(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[17:21] = b"\xff\xff\xff\xff"
    file.write_bytes(data)


def other_header(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"fp32"', b'"fp64"', 1))


def only_magic(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:18])


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [cut, flip, empty, foreign, longer_header, other_header, only_magic])
def test_a_damaged_engine_is_deleted_and_built_again(
    damage: Callable[[Path], None], bundle: Bundle, cache: EngineCache
) -> None:
    sim = SimTensorRt()
    made = prepare(sim, cache, bundle)
    damage(cache.folder / made.key.name)
    assert cache.load(made.key) is None
    assert not (cache.folder / made.key.name).exists()
    assert prepare(sim, cache, bundle).plan == made.plan
    assert sim.builds == 2


def test_a_folder_in_its_place_does_not_stop_the_engine(bundle: Bundle, cache: EngineCache) -> None:
    sim = SimTensorRt()
    made = prepare(sim, cache, bundle)
    folder(cache.folder / made.key.name)
    again = prepare(sim, cache, bundle)
    assert again.plan == made.plan
    assert "takes no engine" in again.note


def test_a_full_disk_costs_the_next_build_not_this_engine(bundle: Bundle, tmp_path: Path) -> None:
    in_the_way = tmp_path / "engines"
    cache = EngineCache(in_the_way)
    sim = SimTensorRt()

    def fill(_phase: str, step: int) -> None:
        if step == 0:  # after the note that a build begins, which needs the disk too
            for file in in_the_way.iterdir():
                file.unlink()
            in_the_way.rmdir()
            in_the_way.write_bytes(b"")

    sim.on_step = fill
    made = prepare(sim, cache, bundle)
    assert made.plan.startswith(PLAN)
    assert "takes no engine" in made.note


def test_the_longest_unused_engines_go(bundle: Bundle, cache: EngineCache) -> None:
    made = prepare(SimTensorRt(), cache, bundle)
    keys = [msgspec.structs.replace(made.key, onnx_sha256=f"{i:064x}") for i in range(KEPT_ENGINES + 2)]
    for key in keys:
        cache.store(key, b"plan")
    assert cache.load(keys[-1]) == b"plan"
    assert sum(cache.load(key) is not None for key in [made.key, *keys]) == KEPT_ENGINES


def test_half_a_file_of_a_killed_process_is_swept(bundle: Bundle, cache: EngineCache) -> None:
    cache.folder.mkdir()
    stray = cache.folder / ".something.engine.1.partial"
    stray.write_bytes(b"half")
    prepare(SimTensorRt(), cache, bundle)
    assert not stray.exists()


def test_progress_rises_from_nothing_to_all_through_nested_phases(bundle: Bundle, cache: EngineCache) -> None:
    seen: list[tuple[str, float]] = []
    prepare_engine(sim_library(), cache, bundle, on_progress=lambda phase, share: seen.append((phase, share)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert ("Timing kernels", 0.25) in seen  # two of four steps, within the first of two
    assert ("Building", 0.5) in seen


def test_a_build_ends_at_the_step_after_it_was_asked_to(bundle: Bundle, cache: EngineCache) -> None:
    sim, stop, steps = SimTensorRt(), threading.Event(), []

    def on_step(_phase: str, step: int) -> None:
        steps.append(step)
        if step == 1:
            stop.set()

    sim.on_step = on_step
    with pytest.raises(InterruptedError):
        prepare_engine(sim_library(sim), cache, bundle, stop=stop)
    assert steps == [0, 1]
    assert list(cache.folder.iterdir()) == []


def test_a_listeners_error_ends_the_build_and_comes_out(bundle: Bundle, cache: EngineCache) -> None:
    """It must not pass through TensorRT's native frames: the simulated ones are a thread of their own."""

    def on_progress(_phase: str, share: float) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_engine(sim_library(), cache, bundle, on_progress=on_progress)
    assert list(cache.folder.iterdir()) == []


def test_a_build_that_kills_the_process_twice_is_not_tried_again(bundle: Bundle, cache: EngineCache) -> None:
    sim = SimTensorRt()
    key = EngineKey.of(sim_library(sim), bundle)
    for _ in range(MAX_TRIES):
        cache.begin(key)  # and nothing more is heard of that process
    with pytest.raises(EngineError, match="ended the whole process 2 times") as told:
        prepare(sim, cache, bundle)
    assert f"{key.name}.building" in told.value.hint
    assert sim.builds == 0
    (cache.folder / f"{key.name}.building").unlink()
    assert prepare(sim, cache, bundle).plan


def refuses(sim: SimTensorRt) -> None:
    sim.refuses = "In node 3: UNSUPPORTED_NODE:\n  zero point must be 0"


def bad_profile(sim: SimTensorRt) -> None:
    sim.bad_profile = True


def fails(sim: SimTensorRt) -> None:
    sim.fails = "Error Code 10: could not find any implementation"


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (refuses, "cannot read the backbone: node 3: In node 3: UNSUPPORTED_NODE: zero point must be 0"),
        (bad_profile, "does not take the input's range of shapes"),
        (fails, "cannot build the engine: Error Code 10: could not find any implementation"),
    ],
)
def test_what_tensorrt_cannot_do_is_told_in_its_words(
    trouble: Callable[[SimTensorRt], None], words: str, bundle: Bundle, cache: EngineCache
) -> None:
    sim = SimTensorRt()
    trouble(sim)
    for _ in range(MAX_TRIES + 1):  # an orderly failure is no crash, and may be tried for ever
        with pytest.raises(EngineError, match=words) as told:
            prepare(sim, cache, bundle)
    assert "\n" not in str(told.value)
    assert "TensorRT 10.3.0, Orin" in str(told.value)
    assert list(cache.folder.iterdir()) == []


def test_weights_in_another_file_are_refused_before_tensorrt_sees_them(
    bundle: Bundle, cache: EngineCache, tmp_path: Path
) -> None:
    model = onnx.load_from_string(backbone())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    sim = SimTensorRt()
    with pytest.raises(BadFormat, match="keeps weights in another file"):
        prepare(sim, cache, with_backbone(bundle, tmp_path / "bad", bytes(model.SerializeToString())))
    assert sim.builds == 0


def test_a_precision_that_is_not_there_is_refused_before_anything(bundle: Bundle, cache: EngineCache) -> None:
    with pytest.raises(Incompatible):
        prepare_engine(sim_library(), cache, bundle, "int8")
    assert not cache.folder.exists()


def test_fp32_means_fp32_and_the_workspace_is_bounded(bundle: Bundle, cache: EngineCache) -> None:
    sim = SimTensorRt()
    prepare(sim, cache, bundle)
    assert sim.configs[0].cleared == [BuilderFlag.TF32]
    assert sim.configs[0].workspace_bytes == 1024**3


# What is missing


def test_an_old_tensorrt_is_refused() -> None:
    with pytest.raises(TensorRtMissing, match=r"TensorRT 8\.6\.2 is too old") as told:
        sim_library(SimTensorRt("8.6.2"))
    assert "JetPack 6.1" in told.value.hint


def test_this_machine_says_what_it_lacks() -> None:
    """Real imports: whatever of TensorRT, its libraries, CUDA or a GPU is missing here, it is told as that."""
    told: TensorRtMissing | None = None
    library: Library | None = None
    try:
        library = open_library()
    except TensorRtMissing as error:
        told = error
    assert library is not None or (told is not None and told.hint)


class FakeRuntime:
    """`cuda.bindings.runtime` that gives one error to everything but the count."""

    class Error(int):
        name = ""

    def __init__(self, name: str, code: int, count: int = 1) -> None:
        self._error = self.Error(code)
        self._error.name = name
        self._count = count

    def cudaGetDeviceCount(self) -> tuple[object, int]:  # noqa: N802
        return (self.Error(0) if self._count >= 0 else self._error), max(0, self._count)

    def cudaMalloc(self, _size: int) -> tuple[object, None]:  # noqa: N802
        return self._error, None


@pytest.mark.parametrize(
    ("name", "count", "kind", "words"),
    [
        ("cudaErrorInsufficientDriver", -1, TensorRtMissing, "driver is missing, or older"),
        ("cudaErrorNoDevice", -1, TensorRtMissing, "CUDA shows no GPU"),
        ("cudaSuccess", 0, TensorRtMissing, "CUDA shows no GPU"),
        ("cudaErrorUnknown", -1, EngineError, "cudaGetDeviceCount failed: cudaErrorUnknown"),
    ],
)
def test_cuda_says_what_is_missing(name: str, count: int, kind: type[EngineError], words: str) -> None:
    with pytest.raises(kind, match=words):
        CudaPython(FakeRuntime(name, 1, count)).gpu()


def test_out_of_memory_is_told_as_that() -> None:
    with pytest.raises(EngineError, match="cudaMalloc: out of memory"):
        CudaPython(FakeRuntime("cudaErrorMemoryAllocation", 2)).allocate(10)


def test_nvidias_own_cuda_bindings_take_what_we_give_them() -> None:
    """Against the real `cuda.bindings`: with a GPU all of it works, without one every call is refused by name."""
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-bindings (the tensorrt extra)")
    cuda = cuda_python()
    try:
        gpu = cuda.gpu()
    except TensorRtMissing:
        calls: list[Callable[[], object]] = [
            lambda: cuda.allocate(8),
            lambda: cuda.allocate_pinned(8),
            cuda.open_stream,
            lambda: cuda.to_device(1, 1, 8, 0),
            lambda: cuda.to_host(1, 1, 8, 0),
            lambda: cuda.synchronize(0),
        ]
        for call in calls:
            with pytest.raises(EngineError):
                call()
    else:
        assert isinstance(gpu, Gpu)
        stream = cuda.open_stream()
        device, pinned = cuda.allocate(8), cuda.allocate_pinned(8)
        cuda.to_device(device, pinned, 8, stream)
        cuda.to_host(pinned, device, 8, stream)
        cuda.synchronize(stream)
        cuda.free(device)
        cuda.free_pinned(pinned)
        cuda.close_stream(stream)
