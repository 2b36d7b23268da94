"""A release to many devices at once over MQTT, against as many HTTP downloads; `benchmarks.transport` calls it.

All clients are in a few processes on this machine, the same for both ways, and each ends with the files on disk,
synced and checked. What is timed is from the start of the first to the end of the last.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

from sdk.chunks import ChunkFetcher
from sdk.mqtt import MqttSettings
from sdk.wire import ReleaseRef

PROCESSES: Final = max(2, os.cpu_count() or 2)
START_TIMEOUT_S: Final = 120.0
JOIN_TIMEOUT_S: Final = 600.0

_spawn = multiprocessing.get_context("spawn")


def crowd_seconds(devices: int, one: Callable[..., None], *args: object) -> float:
    """Return how long so many calls of `one(number, *args)` take together, on threads of a few processes.

    Args:
        devices: How many.
        one: A module's function.
        args: Must be picklable.

    Raises:
        RuntimeError: one of them failed.
    """
    ready = _spawn.Barrier(PROCESSES + 1)
    shares = [range(devices)[first::PROCESSES] for first in range(PROCESSES)]
    processes = [_spawn.Process(target=_share, args=(ready, share, one, args)) for share in shares]
    for process in processes:
        process.start()
    ready.wait(START_TIMEOUT_S)
    began_s = time.perf_counter()
    for process in processes:
        process.join(JOIN_TIMEOUT_S)
    seconds = time.perf_counter() - began_s
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise RuntimeError(f"clients failed: their processes ended with {codes}")
    return seconds


def _share(ready: Barrier, numbers: range, one: Callable[..., None], args: tuple[object, ...]) -> None:
    failed: list[int] = []

    def run(number: int) -> None:
        try:
            one(number, *args)
        except BaseException:
            failed.append(number)
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in numbers]
    ready.wait(START_TIMEOUT_S)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise SystemExit(1)


def over_mqtt(number: int, folder: Path, settings: MqttSettings, ref: ReleaseRef) -> None:
    """Fetch a release as a device."""
    fetcher = ChunkFetcher(settings, f"device-{number}", "default", folder / f"chunks-{number}")
    fetcher.fetch(ref, folder / f"slot-{number}")
