"""A release to many devices at once over MQTT, against as many HTTP downloads; `benchmarks.transport` calls it.

All clients are in a few processes on this machine, and each ends with the files on disk, synced and checked. What
is timed is from the start of the first to the end of the last.

The devices of a process take turns in one event loop: a device in a plant has its own processor and its own Python
lock. With two threads for each of a hundred devices in one process, these mostly wait for that lock (`--threads`
of the benchmark shows it). Decisions, files and digests are the device's own (`sdk.fetch`); only the session is
another one.
"""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import aiomqtt

from sdk.download import FetchLimits
from sdk.fetch import CHUNK_QOS, ChunkFetcher
from sdk.intake import Intake
from sdk.mqtt import Message, MqttSettings
from sdk.wire import ReleaseRef

PROCESSES: Final = max(2, os.cpu_count() or 2)
START_TIMEOUT_S: Final = 120.0
JOIN_TIMEOUT_S: Final = 600.0
ARRIVAL_TIMEOUT_S: Final = 300.0
KEEPALIVE_S: Final = 600
"""A device waits its turn: on so few processors that may be longer than a line's devices ever wait."""

ENDLESS: Final = FetchLimits(window_bytes=2**60, window_chunks=2**30)
"""No window: the control."""

_spawn = multiprocessing.get_context("spawn")


def crowd_seconds(devices: int, one: Callable[..., Any], *args: object) -> float:
    """Return how long so many calls of `one(number, *args)` take together, in a few processes.

    Args:
        devices: How many.
        one: A module's function: on threads, or in one event loop of each process where it is a coroutine's.
        args: Must be picklable.

    Raises:
        RuntimeError: one of them failed.
    """
    ready = _spawn.Barrier(PROCESSES + 1)
    shares = [range(devices)[first::PROCESSES] for first in range(PROCESSES)]
    work = _in_turns if inspect.iscoroutinefunction(one) else _on_threads
    processes = [_spawn.Process(target=work, args=(ready, share, one, args)) for share in shares]
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


def _in_turns(ready: Barrier, numbers: range, one: Callable[..., Any], args: tuple[object, ...]) -> None:
    async def everyone() -> None:
        await asyncio.gather(*(one(number, *args) for number in numbers))

    ready.wait(START_TIMEOUT_S)
    asyncio.run(everyone())


def _on_threads(ready: Barrier, numbers: range, one: Callable[..., Any], args: tuple[object, ...]) -> None:
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


class TurnFetcher(ChunkFetcher):
    """A `ChunkFetcher` that shares its thread with others."""

    async def fetch_in_turn(self, ref: ReleaseRef, target: Path) -> None:
        """Bring a release's files into `target`, as `fetch` does."""
        intake = Intake(ref, self._folder, target, self._limits)
        download = intake.download
        client = aiomqtt.Client(
            self._settings.host,
            self._settings.port,
            identifier=f"{self._device}-chunks",
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            keepalive=KEEPALIVE_S,
        )
        async with client:
            download.connected(time.monotonic())
            # Syncing to disk is waiting, which threads do side by side.
            while not (download.complete and await asyncio.to_thread(intake.finished)):
                step = download.poll(time.monotonic())
                if step.unsubscribe:
                    await client.unsubscribe([self._topics.chunk(digest) for digest in step.unsubscribe])
                if step.subscribe:
                    await client.subscribe([(self._topics.chunk(digest), CHUNK_QOS) for digest in step.subscribe])
                for _ in range(max(1, len(client.messages))):
                    came = await anext(client.messages)
                    assert isinstance(came.payload, bytes)
                    self._take(Message(came.topic.value, came.payload), intake)


async def over_mqtt(number: int, folder: Path, settings: MqttSettings, ref: ReleaseRef, window: bool) -> None:
    """Fetch a release as a device; without a window all of its chunks are asked for at once."""
    limits = FetchLimits() if window else ENDLESS
    fetcher = TurnFetcher(settings, f"device-{number}", "default", folder / f"chunks-{number}", limits=limits)
    # One timer for all that is to arrive: one for each message would be a task for each.
    await asyncio.wait_for(fetcher.fetch_in_turn(ref, folder / f"slot-{number}"), ARRIVAL_TIMEOUT_S)


def over_mqtt_on_threads(number: int, folder: Path, settings: MqttSettings, ref: ReleaseRef) -> None:
    """Fetch a release with the device's own session, on two threads."""
    fetcher = ChunkFetcher(settings, f"device-{number}", "default", folder / f"chunks-{number}")
    fetcher.fetch(ref, folder / f"slot-{number}")
