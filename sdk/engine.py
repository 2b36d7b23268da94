"""TensorRT engines from a bundle's ONNX, for server and device: built, named, kept and read in one way.

    EngineKey -> EngineCache.load -> (nothing kept) -> build_engine -> EngineCache.store

`prepare_engine` is that line, and the only way in: `headway export --engine` calls it on a server, the agent in
the background on a device. Rules this module keeps:

- An engine is made where it runs. It fits one ONNX file, one TensorRT, one kind of GPU and one range of shapes,
  and its key says all of them. Bundles carry ONNX only; an engine is code, and never comes from elsewhere.
- Networks are strongly typed: the ONNX file alone says what is int8 or fp16. fp32 means fp32, TF32 is off.
- A kept engine is whole, its own key's and of its own digest, or it is deleted and built again.
- A build that took the process with it twice is not tried a third time (`EngineCache.begin`).

On which hardware engines have been built and run stands in docs/export.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from sdk.bundle import Bundle
from sdk.durable import PARTIAL, write_whole
from sdk.errors import EngineError
from sdk.onnxfile import check_onnx_file
from sdk.tensorrt_api import BuilderConfig, Library, Network, Parser, Shape

RECIPE: Final = 1
"""Raised whenever `build_engine` would make another engine of the same key."""
MAX_BATCH: Final = 16
"""Frames in one run at most: what the agent embeds at a time (`device_agent.pipeline.BATCH_FRAMES`)."""
WORKSPACE_BYTES: Final = 1024**3
"""What a build may use beside weights: on a Jetson it shares the memory with the release that serves meanwhile."""
MAX_ENGINE_BYTES: Final = 4 * 1024**3
"""Twice what a bundle may hold; an engine has the size of its weights and some kernels."""
MAX_TRIES: Final = 2
"""So many builds may end without a word, as when the kernel kills the process for its memory."""
KEPT_ENGINES: Final = 4
"""The release that serves, the one before, and one more precision of each."""

_MAGIC: Final = b"headway-engine-1\n"
_HEADER_LENGTH: Final = struct.Struct(">I")
_MAX_HEADER_BYTES: Final = 64 * 1024
_SUFFIX: Final = ".engine"

OnProgress = Callable[[str, float], None]
"""Told what is being done, in TensorRT's words, and how much of the whole is done, 0 to 1, never falling."""


class EngineKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine was made from and for. Another value of any member is another engine.

    Attributes:
        onnx_sha256: Of the backbone file, 64 hex digits.
        precision: What the bundle calls that file.
        tensorrt: Version.
        gpu, compute_capability: Of the GPU.
        shapes: Least, usual and largest input (n, 3, H, W).
        recipe: `RECIPE`.
    """

    onnx_sha256: str
    precision: str
    tensorrt: str
    gpu: str
    compute_capability: str
    shapes: tuple[Shape, Shape, Shape]
    recipe: int = RECIPE

    @classmethod
    def of(cls, library: Library, bundle: Bundle, precision: str | None = None) -> EngineKey:
        """Return the key of a bundle's engine on this machine.

        Raises:
            Incompatible: the bundle does not have that precision.
        """
        entry, size = bundle.precision(precision), bundle.manifest.preprocess
        digest = next(file.sha256 for file in bundle.manifest.files if file.name == entry.backbone)
        one = (1, 3, size.height, size.width)
        return cls(
            onnx_sha256=digest,
            precision=entry.precision,
            tensorrt=library.version,
            gpu=library.gpu.name,
            compute_capability=library.gpu.compute_capability,
            shapes=(one, one, (MAX_BATCH, *one[1:])),
        )

    @property
    def name(self) -> str:
        """A file name that says most of it to people, and all of it by a digest."""
        _, _, height, width = self.shapes[0]
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]
        return (
            f"{self.onnx_sha256[:12]}.{self.precision}.{width}x{height}x{self.shapes[2][0]}."
            f"trt{_slug(self.tensorrt)}.{_slug(self.gpu)}.sm{_slug(self.compute_capability)}.{digest}{_SUFFIX}"
        )

    @property
    def timing_name(self) -> str:
        """Of the timing cache, which all engines of one GPU and TensorRT share."""
        return f"trt{_slug(self.tensorrt)}.{_slug(self.gpu)}.sm{_slug(self.compute_capability)}.timing"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.casefold()).strip("-")[:40]


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    key: EngineKey
    sha256: str
    size_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_ENGINE_BYTES)]


class EngineCache:
    """A folder of engines and timing caches. Processes may share it; copied to a like device, it saves a build.

    Args:
        folder: Made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: EngineKey) -> bytes | None:
        """Return the kept engine of a key; None where there is none. What is damaged or another's is deleted."""
        file = self.folder / key.name
        try:
            if file.stat().st_size > MAX_ENGINE_BYTES:
                raise ValueError("too large")
            plan = _unpack(file.read_bytes(), key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.DecodeError):
            self.discard(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # the longest unused goes first
        return plan

    def store(self, key: EngineKey, plan: bytes) -> None:
        """Keep an engine, whole or not at all, and let the longest unused beyond `KEPT_ENGINES` go.

        Raises:
            EngineError: the disk does not take it.
        """
        header = msgspec.json.encode(
            _Header(key=key, sha256=hashlib.sha256(plan).hexdigest(), size_bytes=len(plan))
        )
        self._write(key.name, _MAGIC + _HEADER_LENGTH.pack(len(header)) + header + plan)
        self._prune(key.name)

    def discard(self, key: EngineKey) -> None:
        """Delete an engine, such as one that its own TensorRT refuses."""
        with contextlib.suppress(OSError):
            (self.folder / key.name).unlink()

    def load_timing(self, key: EngineKey) -> bytes:
        """Return the timing cache of a key's GPU and TensorRT; empty where there is none. TensorRT checks it."""
        try:
            return (self.folder / key.timing_name).read_bytes()
        except OSError:
            return b""

    def store_timing(self, key: EngineKey, timing: bytes) -> None:
        """Keep a timing cache.

        Raises:
            EngineError: the disk does not take it.
        """
        self._write(key.timing_name, timing)

    def begin(self, key: EngineKey) -> None:
        """Note, on disk, that a build begins. `end` takes the note back; what kills the process does not.

        Raises:
            EngineError: builds of this key began `MAX_TRIES` times and never ended, or the disk takes no note.
        """
        tries = self._tries(key)
        if tries >= MAX_TRIES:
            raise EngineError(
                f"building this engine ended the whole process {tries} times",
                hint=f"Free memory or update TensorRT, then delete {self._note(key).name} in {self.folder}.",
            )
        self._write(self._note(key).name, str(tries + 1).encode())

    def end(self, key: EngineKey) -> None:
        """Note that a build ended, well or not."""
        with contextlib.suppress(OSError):
            self._note(key).unlink()

    def _note(self, key: EngineKey) -> Path:
        return self.folder / f"{key.name}.building"

    def _tries(self, key: EngineKey) -> int:
        try:
            return int(self._note(key).read_bytes()[:10])
        except (OSError, ValueError):
            return 0

    def _write(self, name: str, data: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, data)
        except OSError as error:
            raise EngineError(
                f"{self.folder} takes no engine: {error.strerror}", hint="Free some space, or check permissions."
            ) from error

    def _prune(self, newest: str) -> None:
        with contextlib.suppress(OSError):
            for draft in self.folder.glob(f".*{PARTIAL}"):
                if not draft.name.endswith(f".{os.getpid()}{PARTIAL}"):
                    draft.unlink()  # of a process that was killed, or that writes the same and will say so
            engines = sorted(self.folder.glob(f"*{_SUFFIX}"), key=lambda f: (f.name == newest, f.stat().st_mtime))
            for file in engines[:-KEPT_ENGINES]:
                file.unlink()


def _unpack(data: bytes, key: EngineKey) -> bytes:
    """Return the engine in a kept file.

    Raises:
        ValueError: it is not whole, or another key's.
        msgspec.DecodeError: its header is none.
    """
    if not data.startswith(_MAGIC):
        raise ValueError("not an engine of ours")
    start = len(_MAGIC) + _HEADER_LENGTH.size
    if len(data) < start:
        raise ValueError("cut short")
    (length,) = _HEADER_LENGTH.unpack_from(data, len(_MAGIC))
    if length > _MAX_HEADER_BYTES:
        raise ValueError("no header")
    header = msgspec.json.decode(data[start : start + length], type=_Header)
    plan = data[start + length :]
    if header.key != key:
        raise ValueError("another key's engine")
    if len(plan) != header.size_bytes or hashlib.sha256(plan).hexdigest() != header.sha256:
        raise ValueError("damaged")
    return plan


@dataclass(frozen=True)
class PreparedEngine:
    """An engine that can be opened.

    Attributes:
        key: Its key.
        plan: Its bytes.
        kept: It was in the cache already.
        seconds: The build took.
        note: What went wrong beside it, such as a full disk; empty where nothing did.
    """

    key: EngineKey
    plan: bytes
    kept: bool
    seconds: float = 0.0
    note: str = ""


def prepare_engine(
    library: Library,
    cache: EngineCache,
    bundle: Bundle,
    precision: str | None = None,
    *,
    on_progress: OnProgress = lambda _words, _share: None,
    stop: threading.Event | None = None,
) -> PreparedEngine:
    """Return the engine of a bundle's backbone on this machine: the kept one, else one built now and kept.

    Args:
        library: TensorRT here.
        cache: Where engines are kept.
        bundle: Whose backbone.
        precision: The bundle's first by default.
        on_progress: Called from TensorRT's threads; an error in it ends the build and is raised here.
        stop: Set it to end the build at its next step.

    Raises:
        Incompatible: the bundle does not have that precision.
        BadFormat: the file is no ONNX, or keeps data elsewhere (`sdk.onnxfile`).
        EngineError: TensorRT cannot build it.
        InterruptedError: `stop` was set.
    """
    key = EngineKey.of(library, bundle, precision)
    plan = cache.load(key)
    if plan is not None:
        return PreparedEngine(key, plan, kept=True)
    began_s = time.monotonic()
    cache.begin(key)
    try:
        plan, timing = build_engine(
            library,
            _checked(bundle.backbone(precision), bundle.precision(precision).backbone),
            key,
            cache.load_timing(key),
            on_progress,
            stop or threading.Event(),
        )
    finally:
        cache.end(key)
    seconds, note = time.monotonic() - began_s, ""
    try:
        if timing:
            cache.store_timing(key, timing)
        cache.store(key, plan)
    except EngineError as error:  # it runs all the same, and is built again at the next start
        note = str(error)
    return PreparedEngine(key, plan, kept=False, seconds=seconds, note=note)


def _checked(model: bytes, what: str) -> bytes:
    """Return an ONNX file that does nothing but compute; TensorRT's parser would read other files if told to."""
    check_onnx_file(model, what)
    return model


def build_engine(
    library: Library, onnx: bytes, key: EngineKey, timing: bytes, on_progress: OnProgress, stop: threading.Event
) -> tuple[bytes, bytes]:
    """Return an engine's bytes and the timing cache after it. Seconds to many minutes, all of one GPU.

    Raises:
        EngineError: TensorRT cannot read the ONNX file, or cannot build it.
        InterruptedError: `stop` was set.
    """
    trt = library.trt
    library.messages.clear()
    try:
        builder = trt.Builder(library.logger)
    except (TypeError, RuntimeError) as error:  # what the bindings raise where the native library gives nothing
        raise _failed(library, "TensorRT cannot start a build on this GPU") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, library.logger)
    if not parser.parse(onnx):
        raise _failed(library, "TensorRT cannot read the backbone", _parser_error(parser))
    _check_network(network, key)
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *key.shapes)
    config = builder.create_builder_config()
    if config.add_optimization_profile(profile) < 0:
        raise _failed(library, "TensorRT does not take the input's range of shapes")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.clear_flag(trt.BuilderFlag.TF32)
    _use_timing(config, timing)
    watch = _Watch(on_progress, stop)
    monitor = watch.monitor(trt)
    config.progress_monitor = monitor
    # NVIDIA's bindings release Python's lock for this call: frames go on meanwhile.
    plan = builder.build_serialized_network(network, config)
    watch.raise_what_ended_it()
    if plan is None:
        raise _failed(library, "TensorRT cannot build the engine")
    measured = config.get_timing_cache()
    on_progress("built", 1.0)
    return bytes(plan), b"" if measured is None else bytes(measured.serialize())


def _use_timing(config: BuilderConfig, timing: bytes) -> None:
    """Let the build reuse what is known of this GPU's kernels; TensorRT refuses another GPU's or version's."""
    for content in (timing, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def _check_network(network: Network, key: EngineKey) -> None:
    again = "Export the bundle again with this version of Headway."
    if network.num_inputs != 1 or network.num_outputs < 1:
        raise EngineError(
            f"the backbone has {network.num_inputs} inputs and {network.num_outputs} outputs", hint=again
        )
    found, wanted = tuple(network.get_input(0).shape), key.shapes[0]
    if (
        len(found) != len(wanted)
        or found[0] != -1
        or any(have not in (-1, want) for have, want in zip(found[1:], wanted[1:], strict=True))
    ):
        raise EngineError(f"the backbone takes {found}, not (n, {', '.join(map(str, wanted[1:]))})", hint=again)


def _parser_error(parser: Parser) -> str:
    if parser.num_errors == 0:
        return ""
    error = parser.get_error(0)
    return f"node {error.node()}: {' '.join(error.desc().split())[:300]}"


def _failed(library: Library, what: str, why: str = "") -> EngineError:
    reason = why or library.messages.last() or "it does not say why"
    return EngineError(
        f"{what}: {reason} (TensorRT {library.version}, {library.gpu.name})",
        hint="Use ONNX Runtime on this device, another precision, or another version of TensorRT.",
    )


class _Watch:
    """TensorRT's progress, called from its threads, as one share of the whole; and the way to end a build.

    Phases nest: a child's whole work lies within one step of its parent. No exception may pass through TensorRT's
    native frames, so what a listener raises is kept and raised after the build.
    """

    def __init__(self, on_progress: OnProgress, stop: threading.Event) -> None:
        self._on_progress = on_progress
        self._stop = stop
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, done
        self._share = 0.0
        self._error: BaseException | None = None

    def monitor(self, trt: Any) -> object:
        """Return the `IProgressMonitor`. It must live as long as the build."""

        def phase_start(_: object, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._guarded():
                self._phases[phase_name] = (parent_phase, max(1, num_steps), 0)
                self._tell(phase_name)

        def step_complete(_: object, phase_name: str, step: int) -> bool:
            with self._guarded():
                parent, steps, _done = self._phases.get(phase_name, (None, 1, 0))
                self._phases[phase_name] = (parent, steps, min(step + 1, steps))
                self._tell(phase_name)
            return self._error is None and not self._stop.is_set()

        def phase_finish(_: object, phase_name: str) -> None:
            with self._guarded():
                self._phases.pop(phase_name, None)

        members = {"phase_start": phase_start, "step_complete": step_complete, "phase_finish": phase_finish}
        return type("HeadwayProgress", (trt.IProgressMonitor,), members)()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except BaseException as error:  # noqa: BLE001 - native frames are above us; raised after the build
                self._error = self._error or error

    def _tell(self, phase: str) -> None:
        self._share = max(self._share, self._whole())
        self._on_progress(phase, self._share)

    def _whole(self) -> float:
        """Return how much of the outermost phase is done."""
        share_of: dict[str, float] = {}
        # Children come after their parents, so backwards every child is known before its parent.
        for name, (parent, steps, done) in reversed(self._phases.items()):
            share = min(1.0, (done + share_of.get(name, 0.0)) / steps)
            if parent in self._phases and parent is not None:
                share_of[parent] = max(share_of.get(parent, 0.0), share)
            else:
                share_of[""] = max(share_of.get("", 0.0), share)
        return share_of.get("", 0.0)

    def raise_what_ended_it(self) -> None:
        """Raise what a listener raised, or that `stop` was set.

        Raises:
            InterruptedError: `stop` was set.
        """
        if self._error is not None:
            raise self._error
        if self._stop.is_set():
            raise InterruptedError("building the engine was asked to stop")
