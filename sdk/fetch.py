"""Fetches releases over MQTT: the rim around `sdk.download`, with its session, disk and clock.

A download may end at any instruction and go on from there; what is on disk under its name is never asked for
again.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from sdk.download import USUAL_LIMITS, FetchLimits, Step
from sdk.errors import BrokerError
from sdk.intake import Intake
from sdk.mqtt import Message, MqttSession, MqttSettings, Traffic
from sdk.wire import ReleaseRef, Topics, Want, encode_json

CHUNK_QOS: Final = 0
"""A connection that ends leaves nothing at the broker, so its acknowledgements would repeat nothing: what does not
come is asked for again in any case. Without them a device sends a message for several chunks, not for each."""

HEARTBEAT_S: Final = 0.5
"""The longest the fetching thread sleeps, so that it sees a request to stop."""

SOURCE_AGAIN_S: Final = 60.0
"""A source that failed, or has not everything yet, is asked again after this long."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """How a download went.

    Attributes:
        target: Where the release's files are.
        size_bytes: Of all files.
        received_bytes: Chunk payloads that came from the broker in this call.
        source_bytes: Those that came from another source.
        corrupt: Chunks whose digest was wrong; dropped and asked for again.
        wanted: Chunks named in a `Want`.
        duration_s: Of this call.
        traffic: All bytes of its MQTT session.
    """

    target: Path
    size_bytes: int
    received_bytes: int
    source_bytes: int
    corrupt: int
    wanted: int
    duration_s: float
    traffic: Traffic


class ChunkSource(Protocol):
    """Another place that may have chunks (`sdk.http_chunks`). What does not come from there is no loss."""

    def fetch(self, digests: Iterable[str], take: Callable[[str, bytes], None], stop: threading.Event) -> int:
        """Hand each chunk that comes to `take`, on this thread; return how many came."""


class ChunkFetcher:
    """Fetches releases for a device, over a connection of its own so that labels never wait behind one.

    Args:
        settings: The broker.
        device: This device's id; the connection is called `<device>-chunks`.
        channel: Named in every `Want`.
        folder: Where chunks wait until all are there; on the same disk as the targets.
        source: Asked before the broker, and again now and then while something is missing.
        limits: Window and timers.
    """

    def __init__(
        self,
        settings: MqttSettings,
        device: str,
        channel: str,
        folder: Path,
        *,
        source: ChunkSource | None = None,
        limits: FetchLimits = USUAL_LIMITS,
    ) -> None:
        # Nothing is left at the broker between connections: the window is subscribed anew on each, and a killed
        # download is not sent what it no longer waits for.
        cert_file = settings.chunks_cert_file or settings.cert_file
        self._settings = replace(settings, session_expiry_s=0, cert_file=cert_file)
        self._device = device
        self._channel = channel
        self._topics = Topics(settings.prefix)
        self._folder = folder
        self._source = source
        self._limits = limits

    def fetch(
        self,
        ref: ReleaseRef,
        target: Path,
        *,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        stop: threading.Event | None = None,
    ) -> Fetched | None:
        """Bring a release's files into `target`; goes on for ever while the broker or the server is away.

        Args:
            ref: The release, as assigned.
            target: Directory to appear, by one rename, when all files are whole and synced.
            progress: Called with (bytes on disk, bytes in all) on this thread.
            stop: Set it to give up; what came stays on disk for the next call.

        Returns:
            How it went; None when stopped.

        Raises:
            BadFormat, BadSignature: the release contradicts itself; asking again will not help.
            StoreFull, StoreCorrupt: this machine's disk.
        """
        began = time.monotonic()
        intake = Intake(ref, self._folder, target, self._limits)
        download = intake.download
        arrivals: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        session = MqttSession(
            self._settings,
            f"{self._device}-chunks",
            on_message=arrivals.put,
            on_connect=lambda _present: arrivals.put(None),
        )
        stop = stop or threading.Event()
        source_due = began
        try:
            while not intake.finished():
                if stop.is_set():
                    return None
                if self._source is not None and time.monotonic() >= source_due:
                    came = self._ask_source(self._source, intake, progress, stop)
                    source_due = time.monotonic() + SOURCE_AGAIN_S
                    if came:
                        continue
                session.start()
                if not session.connected:
                    download.disconnected()
                step = download.poll(time.monotonic())
                self._act(step, session)
                patience_s = HEARTBEAT_S
                if step.wake_at is not None:
                    patience_s = min(HEARTBEAT_S, max(0.0, step.wake_at - time.monotonic()))
                for message in _drain(arrivals, patience_s):
                    if message is None:
                        download.connected(time.monotonic())
                    else:
                        self._take(message, intake)
                progress(download.bytes_done, ref.size_bytes)
        finally:
            intake.close()
            session.close(flush_s=0.2)
        progress(ref.size_bytes, ref.size_bytes)
        return Fetched(
            target=target,
            size_bytes=ref.size_bytes,
            received_bytes=download.received_bytes,
            source_bytes=download.source_bytes,
            corrupt=download.corrupt,
            wanted=download.wanted,
            duration_s=time.monotonic() - began,
            traffic=session.traffic(),
        )

    def _ask_source(
        self,
        source: ChunkSource,
        intake: Intake,
        progress: Callable[[int, int], None],
        stop: threading.Event,
    ) -> int:
        """Take what another source has; return how many chunks that was."""
        download = intake.download

        def take(digest: str, chunk: bytes) -> None:
            intake.brought(digest, chunk)
            progress(download.bytes_done, download.ref.size_bytes)

        came = 0
        if download.release is None:
            came = source.fetch([download.ref.release_id], take, stop)
        if download.release is not None:
            came += source.fetch(download.missing(), take, stop)
        return came

    def _take(self, message: Message, intake: Intake) -> None:
        digest = message.topic.rpartition("/")[2]
        if message.topic == self._topics.chunk(digest):
            intake.arrived(digest, message.payload)

    def _act(self, step: Step, session: MqttSession) -> None:
        if step.unsubscribe:
            session.unsubscribe(self._topics.chunk(digest) for digest in step.unsubscribe)
        if step.subscribe:
            session.subscribe((self._topics.chunk(digest) for digest in step.subscribe), CHUNK_QOS)
        if step.want:
            want = Want(channel=self._channel, chunks=list(step.want))
            try:
                session.publish(self._topics.up_want(self._device), encode_json(want))
            except BrokerError as error:
                log.debug("a want was not sent, the timer will repeat it: %s", error)


def _drain(arrivals: queue.SimpleQueue[Message | None], patience_s: float) -> Iterator[Message | None]:
    """Yield what has arrived, waiting for the first."""
    with contextlib.suppress(queue.Empty):
        yield arrivals.get(timeout=patience_s)
        while True:
            yield arrivals.get_nowait()
