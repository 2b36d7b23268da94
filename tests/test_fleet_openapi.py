"""The fleet page's OpenAPI document: complete, and every curl of the guide asks what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from sdk.fleet.page.app import make_app
from sdk.fleet.page.view import FleetView
from sdk.fleet.rollout import Plan
from sdk.fleet.store import FleetStore
from sdk.version import headway_version
from tests.builders import make_bundle

GUIDE = Path(__file__).parents[1] / "docs" / "fleet.md"
CURLS = re.findall(r"^    curl -s http://127\.0\.0\.1:8090(\S+)", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FleetStore:
    folder = tmp_path_factory.mktemp("fleet")
    store = FleetStore(folder / "fleet")
    store.publish(make_bundle(folder / "first"), channel="default")
    store.publish(make_bundle(folder / "second", backbone="second"), channel="default", plan=Plan(waves=["100%"]))
    return store


@pytest.fixture(scope="module")
def client(store: FleetStore) -> TestClient:
    return TestClient(make_app(FleetView(store)), base_url="http://127.0.0.1")


@pytest.mark.parametrize("path", CURLS)
def test_every_curl_of_the_guide_is_answered(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json()


def test_every_path_is_in_the_guide_and_says_what_it_is(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert {path.replace("{channel}", "default") for path in document["paths"]} == set(CURLS) - {"/openapi.json"}
    for path, methods in document["paths"].items():
        assert list(methods) == ["get"]  # it only shows
        assert methods["get"]["summary"]
        assert methods["get"]["description"]
        assert ("404" in methods["get"]["responses"]) == ("{channel}" in path)
        assert "503" in methods["get"]["responses"]
    assert document["info"]["version"] == headway_version()


@pytest.mark.parametrize(
    "path", ["/api/rollout/nowhere", "/api/learned/nowhere", "/api/classes/nowhere", "/api/suspects/nowhere"]
)
def test_what_is_not_there_is_answered_as_the_document_says(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert set(answer.json()) == {"error", "hint"}


@pytest.mark.parametrize("path", ["/api/learned/UPPER", "/api/classes/a b", "/api/rollout/" + "x" * 65])
def test_what_is_no_channel_is_refused(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 422
