"""Prometheus metrics of the fleet service, on a port of their own.

What the database knows is read when somebody scrapes, so nothing is counted twice; only what passes by is counted
here: commits, records, and what was not taken. Names and units are Prometheus's: seconds, totals.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sdk.errors import FleetError, HeadwayError
from sdk.fleet.cli_progress import presence
from sdk.fleet.expiry import expiries
from sdk.fleet.reports import Report
from sdk.fleet.rollout import RolloutState
from sdk.fleet.store import FleetStore
from sdk.wire import HeadState

HOST: Final = "127.0.0.1"
"""It asks nobody who they are; a scraper elsewhere comes by the plant's own proxy or tunnel."""
COMMIT_BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 10.0)
"""From a disk that syncs in a millisecond to a database that others hold; 2 s is what a label may take."""
DEAD_LETTERS: Final = {
    "bad_message": "not of our protocol, or of another version",
    "refused": "an entry that the device's log cannot have",
    "unknown_device": "labels of a device that never told of itself",
    "stranger": "a device of a channel that is not served here, or on which it was not enrolled",
}
"""What a service says of messages it did not take (`sdk.fleet.core`), by the label `reason`."""


class FleetMetrics:
    """What is counted here, and the server that shows it.

    Args:
        store: The fleet, read at every scrape.
        queued: How many messages wait for the service.
        hears_broker: Whether the broker is there.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        store: FleetStore,
        queued: Callable[[], int] = lambda: 0,
        hears_broker: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.registry = CollectorRegistry()
        self._commit_s = Histogram(
            "headway_fleet_commit_seconds",
            "From the end of a transaction's work to its being on disk.",
            buckets=COMMIT_BUCKETS_S,
            registry=self.registry,
        )
        self._records = Counter(
            "headway_fleet_records", "Log records stored since the start.", ["channel"], registry=self.registry
        )
        self._labels = Counter("headway_fleet_labels", "Of these, labels.", ["channel"], registry=self.registry)
        self._dead = Counter(
            "headway_fleet_dead_letters", "Messages that were not taken.", ["reason"], registry=self.registry
        )
        for reason in DEAD_LETTERS:
            self._dead.labels(reason)
        self.registry.register(_FleetCollector(store, queued, hears_broker, clock))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def committed(self, seconds: float) -> None:
        """Count a transaction; `FleetStore.on_commit`."""
        self._commit_s.observe(seconds)

    def happened(self, kind: str, more: dict[str, Any]) -> None:
        """Count what the service reports."""
        if kind == "stored":
            self._records.labels(more["channel"]).inc(more["records"])
            self._labels.labels(more["channel"]).inc(more["labels"])
        elif kind in DEAD_LETTERS:
            self._dead.labels(kind).inc()

    def before(self, report: Report) -> Report:
        """Return a report that counts first."""

        def both(kind: str, more: dict[str, Any]) -> None:
            self.happened(kind, more)
            report(kind, more)

        return both

    @contextlib.contextmanager
    def serving(self, port: int) -> Iterator[int]:
        """Answer `GET /metrics` on this machine for the block; give the port.

        Args:
            port: 0 takes a free one.

        Raises:
            FleetError: the port cannot be bound.
        """
        try:
            server, thread = start_http_server(port, HOST, self.registry)
        except OSError as error:
            raise FleetError(
                f"metrics cannot be served at {HOST}:{port}: {error.strerror or error}",
                hint="Name another --metrics-port; 0 takes a free one.",
            ) from error
        try:
            yield int(server.server_port)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _FleetCollector(Collector):
    """The fleet as metrics, read when it is asked for."""

    def __init__(
        self,
        store: FleetStore,
        queued: Callable[[], int],
        hears_broker: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._queued = queued
        self._hears_broker = hears_broker
        self._clock = clock
        self._one = threading.Lock()  # a scrape that waits for the database must not pile up others

    def describe(self) -> list[Metric]:
        """Return nothing: a registry that asked for names would ask the database before there is a fleet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what the database says now; nothing of it where it cannot be read."""
        yield GaugeMetricFamily(
            "headway_fleet_queue_depth", "Messages that wait for the service.", value=self._queued()
        )
        yield GaugeMetricFamily(
            "headway_fleet_broker_up", "Whether the service hears its broker.", value=self._hears_broker()
        )
        yield from self._ends()
        found: list[Metric] = []
        with self._one, contextlib.suppress(FleetError):
            found = list(self._of_database())
        yield GaugeMetricFamily("headway_fleet_database_up", "Whether it can be read.", value=bool(found))
        yield GaugeMetricFamily(
            "headway_fleet_database_writable",
            "Whether it takes what devices say: not while its disk is full.",
            value=bool(found) and self._takes(),
        )
        yield from found

    def _takes(self) -> bool:
        with contextlib.suppress(FleetError):
            return self._store.refusal() is None
        return False

    def _ends(self) -> Iterator[Metric]:
        now_utc = self._clock()
        left: dict[str, float] = {}
        for one in expiries(self._store.directory):
            left[one.kind] = min(one.days_left(now_utc), left.get(one.kind, math.inf))
        days = GaugeMetricFamily(
            "headway_fleet_expiry_days_left",
            "Until signatures and certificates end; of devices' certificates the first. Below 0 it has ended.",
            labels=["kind"],
        )
        for kind, value in left.items():
            days.add_metric([kind], value)
        yield days

    def _of_database(self) -> Iterator[Metric]:
        with self._store.read() as ledger:
            channels = ledger.channels()
            everybody = ledger.devices(revoked=True)
            lengths = {channel: ledger.log_length(channel) for channel in channels}
            rollouts = {channel: ledger.rollout(channel) for channel in channels}
            current = {channel: ledger.current(channel) for channel in channels}
            heard = ledger.broker_away() is None
        states = GaugeMetricFamily("headway_fleet_devices", "Devices.", labels=["channel", "state"])
        heads = GaugeMetricFamily("headway_fleet_heads", "Devices by head.", labels=["channel", "head_state"])
        running = GaugeMetricFamily(
            "headway_fleet_devices_on_release",
            "Devices that run the channel's release as it does.",
            labels=["channel"],
        )
        outbox = GaugeMetricFamily(
            "headway_fleet_outbox_depth", "Entries that devices have and the fleet has not.", labels=["channel"]
        )
        refused = GaugeMetricFamily(
            "headway_fleet_devices_refused", "Devices whose next entry is not taken.", labels=["channel"]
        )
        faults = GaugeMetricFamily(
            "headway_fleet_devices_with_faults",
            "Online devices that say what is wrong on them.",
            labels=["channel"],
        )
        back = GaugeMetricFamily(
            "headway_fleet_heads_taken_back", "Devices whose trial took the newest head back.", labels=["channel"]
        )
        codeless = GaugeMetricFamily(
            "headway_fleet_labels_without_code",
            "Labels that count nowhere: no code in the release's feature space.",
            labels=["channel"],
        )
        log = GaugeMetricFamily("headway_fleet_log_length", "Records of the union.", labels=["channel"])
        rollout = GaugeMetricFamily(
            "headway_fleet_rollout", "1 for the state it is in.", labels=["channel", "state"]
        )
        wave = GaugeMetricFamily("headway_fleet_rollout_wave", "Waves that have begun.", labels=["channel"])
        for channel in channels:
            of_channel = [device for device in everybody if device.channel == channel]
            own = [device for device in of_channel if device.revoked_utc is None]
            there = Tally(presence(device, heard=heard) for device in of_channel)
            for state_word in ("online", "offline", "unknown", "revoked"):
                states.add_metric([channel, state_word], there[state_word])
            tally = Tally(device.state.head_state for device in own)
            for head_state in HeadState:
                heads.add_metric([channel, head_state.value], tally[head_state])
            publication, under_way = current[channel], rollouts[channel]
            on_it = 0 if publication is None else sum(publication.served_by(device.state) for device in own)
            running.add_metric([channel], on_it)
            outbox.add_metric([channel], sum(device.state.outbox for device in own))
            refused.add_metric([channel], sum(device.refused is not None for device in own))
            faulty = sum(device.state.online and bool(device.state.faults) for device in own)
            faults.add_metric([channel], faulty)
            back.add_metric([channel], sum(device.state.taken_back for device in own))
            log.add_metric([channel], lengths[channel])
            with contextlib.suppress(HeadwayError):  # its release's chunks may be away
                if (learned := self._store.learned(channel)) is not None:
                    codeless.add_metric([channel], len(learned.codeless))
            if under_way is not None:
                for state in RolloutState:
                    rollout.add_metric([channel, state.value], under_way[1].state is state)
                wave.add_metric([channel], under_way[1].wave)
        yield from (states, heads, running, outbox, refused, faults, back, codeless, log, rollout, wave)
