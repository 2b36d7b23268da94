"""What whoever reaches a page's port can take of the device without a login: memory, and nothing more."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from device_agent.page.access import Role
from device_agent.page.inspection import MAX_IMAGE_BYTES
from sdk.web.bodies import MAX_BODY_BYTES
from tests.pages import DEADLINE_S, Device, running, write_stream

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("floods")
    with running(folder / "data", write_stream(folder / "parts", {"pit": 1})) as found:
        found.access.add("Ann", Role.ADMIN, PASSWORD)
        yield found


def call(url: str, request: bytes) -> socket.socket:
    """Send the beginning of a request."""
    address = urlsplit(url)
    made = socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=DEADLINE_S)
    made.sendall(request)
    return made


def posting(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def status_of(connection: socket.socket) -> int:
    with connection, connection.makefile("rb") as answer:
        return int(answer.readline().split()[1])


@pytest.mark.parametrize(
    ("path", "said"),
    [("/api/login", MAX_BODY_BYTES + 1), ("/api/inspect", MAX_IMAGE_BYTES + 1), ("/api/labels", 2**40)],
)
def test_a_body_that_says_it_is_too_long_is_refused_before_any_of_it_has_come(
    device: Device, path: str, said: int
) -> None:
    token = f"Authorization: Bearer {device.access.local_token}"
    headers = [f"Content-Length: {said}"] if path == "/api/login" else [f"Content-Length: {said}", token]
    assert status_of(call(device.url, posting(path, *headers))) == 413


def test_a_body_that_goes_on_is_refused_where_it_is_too_long_and_not_at_its_end(device: Device) -> None:
    body = b'{"name": "' + b"a" * MAX_BODY_BYTES
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"  # and no last one
    made = call(device.url, posting("/api/login", "Transfer-Encoding: chunked") + chunk)
    assert status_of(made) == 413


def test_what_is_refused_for_its_length_is_said_in_words_and_the_page_goes_on(device: Device) -> None:
    answer = httpx.post(f"{device.url}api/login", content=b"a" * (MAX_BODY_BYTES + 1))
    assert (answer.status_code, sorted(answer.json())) == (413, ["error", "hint"])
    assert answer.headers["x-content-type-options"] == "nosniff"
    login = {"name": "Ann", "secret": PASSWORD}
    filled = json.dumps(login).encode() + b" " * (MAX_BODY_BYTES - len(json.dumps(login)))
    answer = httpx.post(f"{device.url}api/login", content=filled, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, "just short enough"


def test_a_picture_may_be_longer(device: Device) -> None:
    headers = {"Authorization": f"Bearer {device.access.local_token}"}
    answer = httpx.post(f"{device.url}api/inspect", content=bytes(4 * MAX_BODY_BYTES), headers=headers)
    assert answer.status_code == 422, "it is read, and is no picture"
