"""The HTTP interface against its own OpenAPI description: no 500 whatever is sent, refusals are {error, hint}."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema

from device_agent.page import Access, create_app, open_book
from device_agent.page.access import Role
from device_agent.report import CameraReport, State, station_state
from device_agent.runtime import open_runtime
from device_agent.station import Station
from device_agent.store import Store
from sdk.images import sample_id
from tests.pages import CHEAP, write_stream
from tests.tiny import class_id, picture, tiny_bundle

EXAMPLES: Final = int(os.environ.get("HEADWAY_API_EXAMPLES", "5"))
"""Cases of each call, half of them such as the description allows. `make soak` tries fifty."""
PATIENCE_S: Final = 60.0
EVENTS: Final = "/api/events"
PICTURE: Final = picture("pit", 500)
"""The device has seen it."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BaseSchema, dict[str, str]]]:
    """The description and the application of a device that has seen some parts, and an admin's headers."""
    folder = tmp_path_factory.mktemp("interface")
    bundle = tiny_bundle(folder / "bundle", maps=True)
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
        access = Access(book, hasher=CHEAP)
        admin = access.add_token("tests", Role.ADMIN)  # who has it goes on when accounts have been made
        app = create_app(
            station,
            state,
            host="testserver",
            access=access,
            trigger=lambda part, _lot: part or "made",
            outlook_s=0.1,
        )
        headers = {"Authorization": f"Bearer {admin}"}
        yield schemathesis.openapi.from_asgi("/openapi.json", app, timeout=PATIENCE_S, headers=headers), headers
        station.close()
        book.close()


def known(case: Any) -> None:
    """Let a call be about what is there, where it was rightly made: a sample, a class, a picture."""
    if "sample" in (case.path_parameters or {}):
        case.path_parameters = {**case.path_parameters, "sample": sample_id(PICTURE).hex()}
    if case.path == "/api/inspect":
        case.body = PICTURE
    if case.path == "/api/labels":
        case.body = {"sample": sample_id(PICTURE).hex(), "class_id": class_id("pit").hex()}
    if case.path == "/api/operating" and isinstance(case.body, dict):
        case.body = {**case.body, "good": [class_id("good").hex()]}


def bounded(case: Any) -> None:
    """Let a stream that was asked for rightly end at once; what was asked for wrongly stays as it is."""
    asked = dict(case.query or {}).get("seconds", 0)
    if case.path == EVENTS and str(asked).isdecimal():
        case.query = {**(case.query or {}), "seconds": 0}


def test_no_call_ends_in_500_and_refusals_say_what_to_do(api: tuple[BaseSchema, dict[str, str]]) -> None:
    schema, headers = api
    answers: dict[str, Counter[int]] = {}

    operations: list[APIOperation[Any, Any, Any, Any]] = []
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operations.append(found.ok())
    for operation in sorted(operations, key=lambda each: each.method.upper() == "DELETE"):  # else nothing is left
        tally = answers.setdefault(f"{operation.method.upper()} {operation.path}", Counter())
        try_out(operation, GenerationMode.POSITIVE, tally, headers)
        with contextlib.suppress(Unsatisfiable):  # a call that takes nothing cannot be made wrongly
            try_out(operation, GenerationMode.NEGATIVE, tally, headers)

    print("\n".join(f"{call}: {dict(tally)}" for call, tally in answers.items()))
    called = {call.split()[1] for call in answers}
    assert called == set(schema.raw_schema["paths"]), "a call of the description was left out"
    assert {"/api/labels", "/api/inspect", "/api/accounts", "/api/outlook", "/api/trigger", EVENTS} <= called
    # Each is understood at least once; those that need a sample or a name that is there are refused, in words.
    assert answers[f"GET {EVENTS}"][200]
    assert answers["GET /api/outlook"][200]
    assert answers["GET /api/samples/{sample}/image"][200]
    assert answers["POST /api/inspect"][200]
    assert answers["POST /api/labels"][201]


def try_out(
    operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, tally: Counter[int], headers: dict[str, str]
) -> None:
    """Make some calls, rightly or wrongly, and look at each answer."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def call_once(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if mode is GenerationMode.POSITIVE and data.draw(st.booleans()):
            known(case)
        bounded(case)
        answer = case.call(headers=headers, timeout=PATIENCE_S)
        tally[answer.status_code] += 1
        assert answer.status_code != 500, case.as_curl_command()
        if answer.status_code >= 400 and answer.status_code != 405:
            assert set(answer.json()) == {"error", "hint"}, case.as_curl_command()
            assert answer.json()["error"]

    call_once()
