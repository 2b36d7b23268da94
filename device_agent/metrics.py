"""Prometheus metrics, on a port of their own: what is counted, and what the device says of itself when asked.

The figures of `State` are read when somebody scrapes, so nothing is counted twice; only the latency of frames is
kept here, because a histogram needs every one of them. Names and units are Prometheus's: seconds, bytes, totals.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from device_agent.camera import CameraState
from device_agent.config import MetricsSettings
from device_agent.report import LineReport, State
from sdk.errors import ConfigError
from sdk.wire import Verdict

LATENCY_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
"""From a GPU's two milliseconds to a line that has stopped; 50 ms, when a part is to be rejected, is an edge."""

_log = logging.getLogger(__name__)


class Metrics:
    """What is measured here, and the server that shows it.

    Args:
        state: What the device says of itself; cheap enough for every scrape.
    """

    def __init__(self, state: Callable[[], State]) -> None:
        self.registry = CollectorRegistry()
        self._frame_s = Histogram(
            "headway_frame_latency_seconds",
            "From a frame in hand to its decision.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.registry.register(_StateCollector(state))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._stop: Callable[[], None] = lambda: None

    def frame(self, latency_ms: float) -> None:
        """Count a decided frame."""
        self._frame_s.observe(latency_ms / 1000)

    def serve(self, settings: MetricsSettings) -> int:
        """Answer `GET /metrics` from now on; return the port.

        Raises:
            ConfigError: the address cannot be bound.
        """
        try:
            server, thread = start_http_server(settings.port, settings.host, self.registry)
        except OSError as error:
            raise ConfigError(
                f"metrics cannot be served at {settings.host}:{settings.port}: {error.strerror or error}",
                hint="Set another [metrics] host or port; port 0 takes a free one.",
            ) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop
        return int(server.server_port)

    def close(self) -> None:
        """Answer no more. Closing twice is harmless."""
        stop, self._stop = self._stop, lambda: None
        stop()


class _StateCollector(Collector):
    """The device's state as metrics, read when it is asked for."""

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state
        self._one = threading.Lock()  # a scrape that waits for the store must not pile up others

    def describe(self) -> list[Metric]:
        """Return nothing: a registry that asked for names would ask for the state before there is one."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield what the state says now."""
        with self._one:
            yield from metrics_of(self._state())


def metrics_of(state: State) -> Iterator[Metric]:
    """Yield a state as metrics."""
    counts = {
        "headway_frames": ("Frames decided.", state.frames),
        "headway_frames_unknown": ("Of these, unlike anything known.", state.unknown),
        "headway_frames_unstored": (
            "Frames, or tiles, decided and not stored: the disk was full.",
            state.unstored,
        ),
        "headway_errors": ("Frames that could not be decided, and losses of the source.", state.errors),
        "headway_camera_frames": ("Frames that the cameras gave.", sum(each.frames for each in state.cameras)),
        "headway_camera_bad": ("Files that could not be read.", sum(each.bad for each in state.cameras)),
        "headway_camera_dropped": (
            "Frames nobody was quick enough for, and files no trigger asked for.",
            sum(each.dropped for each in state.cameras),
        ),
        "headway_camera_outages": (
            "Times that a camera was lost.",
            sum(each.outages for each in state.cameras),
        ),
    }
    for name, (about, count) in counts.items():
        yield CounterMetricFamily(name, about, value=count)
    values: dict[str, tuple[str, float]] = {
        "headway_start_time_seconds": ("When the agent started.", state.started_utc),
        "headway_queue_depth": ("Samples that wait for an operator.", state.queue_depth),
        "headway_outbox_depth": ("Own log entries that the fleet does not have yet.", state.outbox),
        "headway_own_labels": ("Live labels that were given here.", state.own_labels),
        "headway_live_samples": ("Samples whose labels count: the newest head is of these.", state.live_samples),
        "headway_faults": ("What is wrong just now.", len(state.faults)),
        "headway_camera_live": (
            "Whether every camera gives frames.",
            all(each.state == CameraState.LIVE.value for each in state.cameras),
        ),
        "headway_camera_picture_wrong": (
            "Whether a camera's newest picture cannot be right: black, over-exposed or frozen.",
            any(each.picture for each in state.cameras),
        ),
        "headway_release_serving": ("Whether a release serves.", state.release is not None),
    }
    values |= _over_mqtt(state)
    if state.label_to_live_ms is not None:
        about = "The last label, from saved to deciding."
        values["headway_label_to_live_seconds"] = (about, state.label_to_live_ms / 1000)
    if state.score is not None and state.score.balanced_accuracy is not None:
        values["headway_score_balanced_accuracy"] = ("On groups left out.", state.score.balanced_accuracy)
    if state.masters is not None:
        values["headway_masters"] = ("Master parts of classes that the head knows.", state.masters.of)
        values["headway_masters_right"] = ("Of these, told rightly.", state.masters.right)
        about = "Told rightly until a person here took labels back, and not since."
        values["headway_masters_undone"] = (about, state.masters.undone)
    if state.head is not None:
        about = "Samples that the head which decides is made of: others where a newer one was taken back."
        values["headway_head_samples"] = (about, state.head.samples)
        about = "Labels that are not said any more and still decide: withdrawn elsewhere, and refused here."
        values["headway_withdrawn_labels"] = (about, state.head.withdrawn)
    if state.drift is not None:
        values["headway_drift_alarm"] = ("Whether parts look otherwise than they did.", state.drift.alarm)
        values["headway_drift_evidence"] = ("1 is none.", state.drift.evidence)
    for name, (about, value) in values.items():
        yield GaugeMetricFamily(name, about, value=value)
    if state.score is not None:
        recall = GaugeMetricFamily("headway_class_recall", "On groups left out.", labels=["class_name"])
        for each in state.score.classes:
            if each.scored:
                recall.add_metric([each.name], each.recall)
        yield recall
    if state.line is not None:
        yield from _line(state.line)
    yield _named(state)


def _over_mqtt(state: State) -> dict[str, tuple[str, float]]:
    """Return what is said of the connections to the broker."""
    values: dict[str, tuple[str, float]] = {}
    if state.mqtt is not None:
        values["headway_mqtt_connected"] = ("Whether the broker is there.", state.mqtt.connected)
        values["headway_mqtt_release_bytes"] = ("Moved for releases since the start.", state.mqtt.release_bytes)
        values["headway_mqtt_head_bytes"] = ("Moved for labels since the start.", state.mqtt.head_bytes)
    if state.trigger is not None:
        about = "Whether triggers can come over MQTT."
        values["headway_trigger_connected"] = (about, state.trigger.connected)
    return values


def _line(line: LineReport) -> Iterator[Metric]:
    """Yield the parts' verdicts, and whether they arrive where they go."""
    parts = CounterMetricFamily("headway_parts", "Parts, by verdict.", labels=["verdict"])
    parts.add_metric([Verdict.PASS.value], line.passed)
    parts.add_metric([Verdict.REJECT.value], line.rejected)
    yield parts
    about = "Triggers whose part was rejected unseen: too many waited, nothing served, or it could not be read."
    yield CounterMetricFamily("headway_triggers_refused", about, value=line.refused_triggers)
    sent = CounterMetricFamily("headway_output_sent", "Verdicts delivered.", labels=["output"])
    dropped = CounterMetricFamily(
        "headway_output_dropped", "Verdicts not delivered, and never to be.", labels=["output"]
    )
    waiting = GaugeMetricFamily("headway_output_waiting", "Verdicts that wait to be delivered.", labels=["output"])
    for each in line.outputs:
        sent.add_metric([each.name], each.sent)
        dropped.add_metric([each.name], each.dropped)
        waiting.add_metric([each.name], each.waiting)
    yield from (sent, dropped, waiting)


def _named(state: State) -> Metric:
    """Return what has no number: one series of value 1 whose labels say it."""
    names = {
        "device": state.device,
        "channel": state.channel,
        "version": state.version,
        "release": "" if state.release is None else state.release.name,
        "precision": "" if state.release is None else state.release.precision,
        "runtime": "" if state.release is None else state.release.runtime,
        "head_state": "" if state.head is None else state.head.state,
        "update_state": "" if state.update is None else state.update.state,
    }
    metric = GaugeMetricFamily("headway_device", "What this device is and runs.", labels=list(names))
    metric.add_metric(list(names.values()), 1)
    return metric
