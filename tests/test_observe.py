"""What the agent shows to collectors: metrics that Prometheus reads, logs that a program reads."""

from __future__ import annotations

import io
import json
import logging
import shutil
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from device_agent.agent import Agent
from device_agent.config import HttpOutput, LogSettings, MetricsSettings
from device_agent.logs import JsonLines, set_up_logs
from sdk.bundle import Bundle
from sdk.errors import ConfigError
from tests.simulators import wait_for
from tests.test_agent import COUNT, bundle, images, running, site_of

__all__ = ["bundle", "images"]


def scraped(port: int) -> dict[str, float]:
    """Return every sample of a scrape by name; those with labels under "name{value,...}"."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(sample.labels.values())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_prometheus_reads_what_the_agent_did(images: Path, bundle: Bundle) -> None:
    site = site_of(images, bundle.path, metrics=MetricsSettings(port=0))
    with Agent(site) as agent, running(agent):
        wait_for(lambda: agent.state().camera.state == "ended")
        port = agent.metrics_port
        assert port is not None
        # A frame is decided a moment before its time is counted, and counted by the thread that stores it.
        wait_for(lambda: scraped(port)["headway_frame_latency_seconds_count"] == COUNT)
        wait_for(lambda: scraped(port)["headway_frames_total"] == COUNT)
        found = scraped(port)
        assert found["headway_frames_total"] == COUNT
        assert found["headway_frame_latency_seconds_count"] == COUNT
        assert found["headway_frame_latency_seconds_bucket{+Inf}"] == COUNT
        assert found["headway_errors_total"] == 0
        assert found["headway_release_serving"] == 1
        assert found["headway_outbox_depth"] == 0
        assert found["process_resident_memory_bytes"] > 1e6
        (device,) = [name for name in found if name.startswith("headway_device{")]
        assert "line-1" in device
        assert "tiny" in device
        assert "ONNX Runtime" in device


def test_verdicts_that_do_not_arrive_are_counted_and_a_fault(images: Path, bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    gone = HttpOutput(url=f"http://127.0.0.1:{port}/parts")
    with Agent(site_of(images, bundle.path, metrics=MetricsSettings(port=0), output=(gone,))) as agent:
        told = "output http 127.0.0.1: Connection refused"
        with running(agent):
            wait_for(lambda: agent.state().faults == [told])
            wait_for(lambda: agent.state().camera.state == "ended" and agent.state().frames == COUNT)
            assert agent.metrics_port is not None
            wait_for(lambda: scraped(agent.metrics_port or 0)["headway_output_sent_total{history}"] == COUNT)
            found = scraped(agent.metrics_port)
            assert agent._device_state().faults.count(told) == 1, "the fleet is told once"
        assert found["headway_faults"] == 1
        assert found["headway_parts_total{pass}"] + found["headway_parts_total{reject}"] == COUNT
        assert found["headway_output_sent_total{http 127.0.0.1}"] == 0
        assert found["headway_output_waiting{http 127.0.0.1}"] > 0
        assert found["headway_output_dropped_total{http 127.0.0.1}"] == 0


def test_a_device_without_a_release_has_metrics_too(images: Path) -> None:
    with Agent(site_of(images, None, metrics=MetricsSettings(port=0))) as agent:
        assert agent.metrics_port is not None
        found = scraped(agent.metrics_port)
    assert found["headway_release_serving"] == 0
    assert found["headway_frames_total"] == 0


def test_a_port_in_use_is_told_at_the_start(images: Path, tmp_path: Path) -> None:
    with Agent(site_of(images, None, metrics=MetricsSettings(port=0))) as agent:
        assert agent.metrics_port is not None
        other = tmp_path / "elsewhere" / "images"
        shutil.copytree(images, other)
        taken = MetricsSettings(port=agent.metrics_port)
        with pytest.raises(ConfigError, match="metrics cannot be served"):
            Agent(site_of(other, None, metrics=taken))


def record(message: str, *args: object, error: Exception | None = None) -> logging.LogRecord:
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("device_agent.x", logging.WARNING, "x.py", 1, message, args, info)


def test_a_log_line_is_one_json_object() -> None:
    line = JsonLines("line-3").format(record('frame %d is\n"bad"', 7))
    assert "\n" not in line
    read = json.loads(line)
    assert (read["level"], read["logger"], read["device"]) == ("warning", "device_agent.x", "line-3")
    assert read["message"] == 'frame 7 is\n"bad"'
    assert read["ts"].endswith("+00:00")
    assert "error" not in read


def test_an_error_stands_in_its_line_with_its_traceback() -> None:
    try:
        raise KeyError("gone")
    except KeyError as error:
        line = JsonLines("line-3").format(record("failed", error=error))
    assert "\n" not in line
    read = json.loads(line)
    assert read["error"] == "KeyError: 'gone'"
    assert "test_observe.py" in read["traceback"]


@pytest.mark.parametrize(("level", "lines"), [("warning", 0), ("info", 1)])
def test_only_what_is_asked_for_is_logged(level: str, lines: int) -> None:
    root = logging.getLogger()
    before, was = root.handlers[:], root.level
    out = io.StringIO()
    try:
        set_up_logs(LogSettings(format="json", level=level), "line-3", to=out)  # type: ignore[arg-type]
        logging.getLogger("device_agent.y").info("serving")
    finally:
        root.handlers[:] = before
        root.setLevel(was)
    assert len(out.getvalue().splitlines()) == lines
