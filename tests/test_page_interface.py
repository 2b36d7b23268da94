"""The HTTP interface against its own OpenAPI description: no 500 whatever is sent, refusals are {error, hint}."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema

from device_agent.page import Access, create_app, open_book
from device_agent.report import CameraReport, State, station_state
from device_agent.runtime import open_runtime
from device_agent.station import Station
from device_agent.store import Store
from tests.pages import CHEAP, write_stream
from tests.tiny import tiny_bundle

EXAMPLES = 5
"""For each call. What was tried by hand with more of them is in docs/page.md."""
LEFT_OUT = ("/api/events", "/api/outlook")
"""A stream does not end by itself; an outlook takes seconds after each label, and takes no argument."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    """The description and the application of a device that has seen some parts."""
    folder = tmp_path_factory.mktemp("interface")
    bundle = tiny_bundle(folder / "bundle")
    write_stream(folder / "stream", {"pit": 2, "rings": 2})
    camera = CameraReport("test", "live", 0, 0, 0, 0)
    with Store.open(folder / "data", "line-1") as store:
        station = Station(store)

        def state() -> State:
            return station_state(station, channel="default", version="0", started_utc=0.0, camera=camera)

        station.serve(bundle, None, open_runtime(bundle, None))
        for path in sorted((folder / "stream").glob("*.png")):
            station.inspect(path.read_bytes(), keep=True)
        book = open_book(folder / "data")
        app = create_app(station, state, host="testserver", access=Access(book, hasher=CHEAP))
        yield schemathesis.openapi.from_asgi("/openapi.json", app)
        station.close()
        book.close()


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def call_once(operation: APIOperation[Any, Any, Any, Any], data: st.DataObject) -> None:
    case = data.draw(operation.as_strategy())
    answer = case.call()
    assert answer.status_code != 500, case.as_curl_command()
    if answer.status_code >= 400 and answer.status_code != 405:
        assert set(answer.json()) == {"error", "hint"}, case.as_curl_command()
        assert answer.json()["error"]


def test_no_call_ends_in_500_and_refusals_say_what_to_do(api: BaseSchema) -> None:
    called = set()
    for found in api.exclude(path=list(LEFT_OUT)).get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        call_once(operation)
        called.add(operation.path)
    assert {"/api/labels", "/api/labels/undo", "/api/inspect", "/api/operating", "/api/accounts"} <= called
