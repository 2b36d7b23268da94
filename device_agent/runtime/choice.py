"""Which provider and how many threads run a backbone here: measured on this device, not assumed.

    every usable (provider, threads) -> golden inputs right? -> single frames timed -> the fastest serves

The channel decides the precision, since codes of two precisions do not mix; the others are measured too, later and
beside the line, so that a channel can be moved on figures. What was measured is kept in `runtimes.json`, for
exactly this hardware, these versions and drivers and this backbone; a file that is lost or says otherwise is
measured again, and so is, at a start or a release, what stands refused on CUDA: its driver may be mended.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from device_agent.config import RuntimeSettings
from device_agent.runtime import Runtime, check_golden, open_runtime
from device_agent.runtime.onnx import installed_providers, usable_providers
from sdk.bundle import Bundle
from sdk.damaged import DAMAGED
from sdk.errors import HeadwayError, InferenceFailed
from sdk.wire import MAX_TEXT, PrecisionTime

TABLE_NAME: Final = "runtimes.json"
RECIPE: Final = 1
"""Of this measurement; another number measures everything again."""
RUNS: Final = 15
"""Single frames through each, the median decides: as many as TensorRT engines are judged by."""
RUNS_S: Final = 0.4
"""No more than this for one of them, so that a first start stays below three seconds."""
CLOSE: Final = 1.05
"""Of two that are this close the one with fewer threads is taken: the learner and the page want a core too."""
RELEASES_KEPT: Final = 8
BACKGROUND_NICE: Final = 10
DRIVER_FILES: Final = ("proc/driver/nvidia/version", "etc/nv_tegra_release")
GPU_FILES: Final = "proc/driver/nvidia/gpus/*/information"

_log = logging.getLogger(__name__)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run a backbone on this device.

    Attributes:
        precision: Which of the release's backbones.
        provider: "cpu" or "cuda".
        threads: Processor threads; 0 where the provider does not ask.
        frame_ms: Median time of one frame through the backbone; 0 where it was refused.
        score_off: Largest difference of a score on the golden inputs.
        refused: Why it may not serve; empty where it may.
    """

    precision: str
    provider: str
    threads: int
    frame_ms: float = 0.0
    score_off: float = 0.0
    refused: str = ""


class _Table(msgspec.Struct, kw_only=True):
    """What stands in the file: of which machine, and by backbone digest what was measured."""

    machine: str
    backbones: dict[str, list[Measured]]


Open = Callable[[Bundle, str, str, int], Runtime]
"""Opens (bundle, precision, provider, threads)."""


def _open(bundle: Bundle, precision: str, provider: str, threads: int) -> Runtime:
    return open_runtime(bundle, precision, RuntimeSettings(threads=threads), provider)


def machine_id() -> str:
    """Return what measurements depend on beside the backbone: processor, cores, ONNX Runtime, our recipe, GPUs and
    their driver."""
    version, providers = installed_providers()
    parts = (
        _processor(),
        str(os.cpu_count()),
        platform.machine(),
        version,
        *providers,
        str(RECIPE),
        *accelerators(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def accelerators(root: Path = Path("/")) -> list[str]:
    """Return what the system says of NVIDIA's driver, of JetPack's, and of each GPU's model; nothing where it has
    none."""
    said: list[str] = []
    for file in DRIVER_FILES:
        with contextlib.suppress(OSError):
            said.append((root / file).read_text(encoding="utf-8", errors="replace"))
    for gpu in sorted(root.glob(GPU_FILES)):
        with contextlib.suppress(OSError):
            lines = gpu.read_text(encoding="utf-8", errors="replace").splitlines()
            said += [line for line in lines if line.startswith("Model")]
    return said


def _processor() -> str:
    # x86 names a model; Arm names implementer and part.
    names = ("model name", "CPU implementer", "CPU part", "Hardware")
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return " ".join(sorted({line for line in lines if line.startswith(names)}))
    return platform.processor()


def thread_counts(cores: int) -> list[int]:
    """Return the numbers of threads worth trying: 1, 2, 4, ... and all.

    >>> thread_counts(6)
    [1, 2, 4, 6]
    """
    counts = [1 << power for power in range(cores.bit_length()) if 1 << power < cores]
    return [*counts, max(1, cores)]


class RuntimeChoice:
    """Measures, remembers, and opens the fastest runtime that is right. Safe to call from several threads.

    Args:
        folder: Where `runtimes.json` is kept.
        settings: What is not left open.
        open_one: Opens a runtime.
        providers: Our names of those that may be tried.
        cores: Of this machine.
        machine: See `machine_id`.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        settings: RuntimeSettings,
        *,
        open_one: Open = _open,
        providers: Sequence[str] | None = None,
        cores: int | None = None,
        machine: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        there = usable_providers() if providers is None else list(providers)
        wanted = there if settings.provider == "auto" else [settings.provider]
        cores = cores or len(os.sched_getaffinity(0))
        threads = [settings.threads] if settings.threads else thread_counts(cores)
        self._options = [
            (provider, count) for provider in wanted for count in (threads if provider == "cpu" else [0])
        ]
        self._file = folder / TABLE_NAME
        self._open_one = open_one
        self._clock = clock
        self._machine = machine or machine_id()
        self._lock = threading.RLock()
        self._table = self._read()
        self._stop = threading.Event()
        self._background: threading.Thread | None = None

    def admit(self, bundle: Bundle, precision: str | None) -> Runtime:
        """Return the fastest runtime for a precision that computes the golden inputs right on this device.

        Raises:
            Incompatible: the bundle does not have that precision.
            InferenceFailed: no runtime here is right; the message is the last one's.
        """
        name = bundle.precision(precision).precision
        known = self._known(bundle, name)
        if any(map(_is_open, known)):
            known, _ = self._measure_all(bundle, name, known)
        for measured in (known, None) if known else (None,):
            found, refused = (measured, None) if measured else self._measure_all(bundle, name)
            for each in ranked(found):
                try:
                    runtime = self._open_one(bundle, name, each.provider, each.threads)
                    check_golden(runtime, bundle, name)
                except InferenceFailed as error:
                    _log.warning("%s, %d threads: %s", each.provider, each.threads, error)
                    refused = error
                    continue
                return runtime
        raise refused or InferenceFailed(
            f"no runtime of this device runs {name} of {bundle.manifest.name}",
            hint="Let [runtime] threads and provider be chosen, or use another precision.",
        )

    def table(self, bundle: Bundle) -> list[Measured]:
        """Return what is known of a bundle's backbones on this device, the fastest of each precision first."""
        with self._lock:
            found = [
                each
                for entry in bundle.manifest.precisions
                for each in self._table.backbones.get(_key(bundle, entry.precision), [])
            ]
        order = [entry.precision for entry in bundle.manifest.precisions]
        return sorted(found, key=lambda m: (order.index(m.precision), bool(m.refused), m.frame_ms))

    def measure_rest(self, bundle: Bundle, on_done: Callable[[], None] = lambda: None) -> None:
        """Measure in the background, with little of the processor, what is not known of the other precisions."""
        known = {entry.precision: self._known(bundle, entry.precision) for entry in bundle.manifest.precisions}
        missing = [precision for precision, found in known.items() if not found or any(map(_is_open, found))]
        if not missing or self._stop.is_set():
            return

        def work() -> None:
            # Sessions opened here give their threads the same priority.
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)
            for precision in missing:
                if self._stop.is_set():
                    return
                self.measure(bundle, precision, known[precision])
            on_done()

        self._background = threading.Thread(target=work, name="measure", daemon=True)
        self._background.start()

    def measure(self, bundle: Bundle, precision: str, known: Sequence[Measured] = ()) -> None:
        """Measure a precision now, for the table: all of it but what is known and may be believed."""
        try:
            self._measure_all(bundle, precision, known)
        except HeadwayError as error:
            _log.info("%s was not measured: %s", precision, error)

    def close(self) -> None:
        """End the measuring after the frame it is at."""
        self._stop.set()
        if self._background is not None:
            self._background.join()

    def _known(self, bundle: Bundle, precision: str) -> list[Measured]:
        """Return what the file says of a precision; nothing where it does not say all."""
        with self._lock:
            known = self._table.backbones.get(_key(bundle, precision), [])
        fit = [m for m in known if (m.provider, m.threads) in self._options]
        return fit if len(fit) == len(self._options) else []

    def _measure_all(
        self, bundle: Bundle, precision: str, known: Sequence[Measured] = ()
    ) -> tuple[list[Measured], InferenceFailed | None]:
        """Measure every option but those known, and keep what was found; also return the last refusal. What a stop
        cut short is not kept."""
        key = _key(bundle, precision)
        sure = {(one.provider, one.threads): one for one in known if not _is_open(one)}
        found: list[Measured] = []
        refused: InferenceFailed | None = None
        for provider, threads in self._options:
            if self._stop.is_set():
                break
            if (provider, threads) in sure:
                found.append(sure[provider, threads])
                continue
            one, error = self._measure(bundle, precision, provider, threads)
            found.append(one)
            refused = error or refused
        if self._stop.is_set():
            return found, refused
        with self._lock:
            self._table.backbones.pop(key, None)
            self._table.backbones[key] = found
            for old in list(self._table.backbones)[: -RELEASES_KEPT * 4]:
                del self._table.backbones[old]
            self._write()
        return found, refused

    def _measure(
        self, bundle: Bundle, precision: str, provider: str, threads: int
    ) -> tuple[Measured, InferenceFailed | None]:
        what = Measured(precision=precision, provider=provider, threads=threads)
        try:
            runtime = self._open_one(bundle, precision, provider, threads)
            score_off = check_golden(runtime, bundle, precision)
            frame = bundle.manifest.preprocess.apply(bundle.golden(precision).frames[0])
            times: list[float] = []
            began_s = self._clock()
            while len(times) < RUNS and self._clock() - began_s < RUNS_S and not self._stop.is_set():
                at_s = self._clock()
                runtime.features(frame)
                times.append((self._clock() - at_s) * 1e3)
        except InferenceFailed as error:
            return msgspec.structs.replace(what, refused=str(error)), error
        return msgspec.structs.replace(what, frame_ms=statistics.median(times or [0.0]), score_off=score_off), None

    def _read(self) -> _Table:
        empty = _Table(machine=self._machine, backbones={})
        try:
            table = msgspec.json.decode(self._file.read_bytes(), type=_Table)
        except (OSError, *DAMAGED):
            return empty
        return table if table.machine == self._machine else empty

    def _write(self) -> None:
        # Measured again where it is lost: a full disk must not keep a release from serving.
        draft = self._file.with_suffix(".partial")
        try:
            draft.write_bytes(msgspec.json.encode(self._table))
            draft.replace(self._file)
        except OSError as error:
            _log.warning("what was measured is not kept: %s", error)


def ranked(measured: Sequence[Measured]) -> list[Measured]:
    """Return those that may serve, the one to take first: the fastest, or one as fast with fewer threads."""
    fit = sorted((m for m in measured if not m.refused), key=lambda m: m.frame_ms)
    if not fit:
        return []
    close = [m for m in fit if m.frame_ms <= fit[0].frame_ms * CLOSE]
    first = min(close, key=lambda m: m.threads)
    return [first, *(m for m in fit if m is not first)]


def _is_open(measured: Measured) -> bool:
    """Return whether something must be measured again at the next chance: what an accelerator could not do may
    have been its driver's fault, and no time at all is none."""
    return measured.provider != "cpu" if measured.refused else not measured.frame_ms


def best_of_each(table: Sequence[Measured]) -> list[PrecisionTime]:
    """Return for each precision of a table its fastest way that is right, or why there is none, for the fleet."""
    found: dict[str, PrecisionTime] = {}
    for each in table:
        best = found.get(each.precision)
        if best is not None and (each.refused or (best.frame_ms and best.frame_ms <= each.frame_ms)):
            continue
        # Two digits: what is only noise is no news.
        frame_ms = 0.0 if each.refused else float(f"{each.frame_ms:.2g}")
        found[each.precision] = PrecisionTime(
            precision=each.precision, frame_ms=frame_ms, refused=each.refused[:MAX_TEXT]
        )
    return list(found.values())


def _key(bundle: Bundle, precision: str) -> str:
    """Return what a measurement is of: the backbone's digest in the manifest, and its feature space."""
    entry = bundle.precision(precision)
    (file,) = [each for each in bundle.manifest.files if each.name == entry.backbone]
    return f"{file.sha256}/{entry.space}"
