"""Connections to a page that ask nothing: how many, how long, and what they leave to the rest of the process."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from device_agent.database import disk
from sdk.errors import StoreFull
from sdk.web.bodies import SmallBodies
from sdk.web.server import PageServer
from tests.pages import DEADLINE_S

FOR_EVER_S = 3600.0
HERE, FOREIGN = "127.0.0.1", "127.0.0.{}"
"""Any address of 127.0.0.0/8 but the first counts as another machine's."""
QUESTION = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def an_app(go_on: threading.Event | None = None) -> FastAPI:
    """Return a page with one answer that begins at once and ends when it may."""
    app = FastAPI()

    def slowly() -> Iterator[bytes]:
        yield b"begun "
        assert go_on is None or go_on.wait(DEADLINE_S)
        yield b"ended"

    app.add_api_route("/", lambda: "here")
    app.add_api_route("/slow", lambda: StreamingResponse(slowly()))
    return app


@contextlib.contextmanager
def serving(
    app: FastAPI, *, most: int = 8, silent_s: float = FOR_EVER_S, tls: tuple[Path, Path] | None = None
) -> Iterator[PageServer]:
    server = PageServer(HERE, 0, tls, most=most, silent_s=silent_s)
    server.start(app)
    try:
        yield server
    finally:
        server.stop()


def connect(server: PageServer, source: str = HERE, first: bytes = b"") -> socket.socket:
    made = socket.create_connection((HERE, server.port), timeout=DEADLINE_S, source_address=(source, 0))
    made.sendall(first)
    return made


def ended(connection: socket.socket) -> bool:
    """Wait for the other side's word: an end, or an answer."""
    try:
        return connection.recv(1000) == b""
    except ConnectionError:
        return True


def test_whoever_has_too_many_connections_gets_no_more_and_others_still_do() -> None:
    with serving(an_app()) as server, contextlib.ExitStack() as held:
        for last in (2, 3, 4):  # a quarter of eight each, and three quarters of them all
            for _ in range(2):
                held.enter_context(connect(server, FOREIGN.format(last)))
            with connect(server, FOREIGN.format(last)) as third:
                assert ended(third)
        with connect(server, FOREIGN.format(5)) as fourth:
            assert ended(fourth), "what is left is for whoever stands at the device"
        with connect(server, HERE, QUESTION) as mine:
            assert not ended(mine)
            with connect(server, HERE) as second, connect(server, HERE) as ninth:
                assert ended(ninth)
                second.sendall(QUESTION)
                assert not ended(second)


def test_a_connection_that_ends_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    with serving(an_app()) as server:
        for _ in range(5):
            held = [connect(server, FOREIGN.format(2), QUESTION) for _ in range(2)]
            assert not any(ended(each) for each in held)
            with connect(server, FOREIGN.format(2)) as third:
                assert ended(third)
            for each in held:
                each.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                while not ended(each):
                    pass
                each.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost:", QUESTION + b"GET / HT"])
def test_a_connection_that_asks_nothing_is_ended_and_an_answer_that_goes_on_is_not(first: bytes) -> None:
    go_on = threading.Event()
    with serving(an_app(go_on), silent_s=0.5) as server, httpx.stream("GET", f"{server.url}slow") as answer:
        parts = answer.iter_raw()
        assert next(parts) == b"begun "
        with connect(server, FOREIGN.format(2), first) as silent:
            while not ended(silent):
                assert first.startswith(QUESTION), "it has the answer to that"
        go_on.set()
        assert b"".join(parts) == b"ended"


def test_a_connection_that_does_not_begin_tls_is_ended(tmp_path: Path) -> None:
    pair = tmp_path / "page.pem", tmp_path / "page.key"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost"
        f" -out {pair[0]} -keyout {pair[1]}".split(),
        check=True,
        capture_output=True,
    )
    with serving(an_app(), silent_s=0.5, tls=pair) as server, connect(server, FOREIGN.format(2)) as silent:
        assert ended(silent)
        assert httpx.get(server.url, verify=False).status_code == 200


def test_a_question_that_never_ends_is_refused_and_one_that_may_be_long_is_not() -> None:
    app = FastAPI()

    async def size(request: Request) -> int:
        return len(await request.body())

    for path in ("/small", "/large"):
        app.add_api_route(path, size, methods=["PUT"])
    app.add_middleware(SmallBodies, longer={"/large": 1000}, in_time_s=0.2)
    first = "PUT /{} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n12345"
    with serving(app) as server, connect(server, HERE, first.format("large").encode()) as large:
        with connect(server, HERE, first.format("small").encode()) as small:
            assert small.recv(1000).startswith(b"HTTP/1.1 408 ")
        large.sendall(b"67890")
        assert large.recv(1000).startswith(b"HTTP/1.1 200 ")


FEW = """
import os, resource, sys, threading, time
from fastapi import FastAPI
from sdk.web.server import PageServer
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
taken = []
def fill():
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return len(taken)
def let_go():
    while taken:
        os.close(taken.pop())
def leave():
    with open("/dev/null"):
        return len(os.listdir("/proc/self/fd"))
app = FastAPI()
app.add_api_route("/open", leave)
app.add_api_route("/fill", fill)
server = PageServer("127.0.0.1", 0)
server.start(app)
print(server.port, flush=True)
sys.stdin.readline()
let_go()
sys.stdin.readline()
server.stop()
"""


@contextlib.contextmanager
def few_descriptors(log: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a page in a process that may have 256 files open."""
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", FEW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.communicate("\n\n", timeout=DEADLINE_S)


def test_connections_leave_the_process_its_descriptors(tmp_path: Path) -> None:
    with few_descriptors(tmp_path / "log") as (_, port), contextlib.ExitStack() as held:
        for i in range(300):
            source = FOREIGN.format(2 + i % 20), 0
            held.enter_context(socket.create_connection((HERE, port), source_address=source))
        assert httpx.get(f"http://{HERE}:{port}/open", timeout=DEADLINE_S).json() < 128
    assert (tmp_path / "log").read_text().count("\n") == 1, "it says so once, and no more"


def test_where_there_are_no_descriptors_a_connection_waits_and_the_log_does_not_grow(tmp_path: Path) -> None:
    with few_descriptors(tmp_path / "log") as (process, port):
        assert httpx.get(f"http://{HERE}:{port}/fill", timeout=DEADLINE_S).json() > 100
        with socket.create_connection((HERE, port), timeout=DEADLINE_S) as first, contextlib.ExitStack() as held:
            for _ in range(50):
                held.enter_context(socket.create_connection((HERE, port), timeout=DEADLINE_S))
            while "takes no connections" not in (tmp_path / "log").read_text():
                assert process.poll() is None
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            for each in held.pop_all(), first:
                each.close()
        assert httpx.get(f"http://{HERE}:{port}/open", timeout=DEADLINE_S).status_code == 200
    log = (tmp_path / "log").read_text()
    assert "Too many open files" in log
    assert log.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_label_that_finds_no_descriptor_is_refused_like_one_that_finds_no_room(
    number: int, tmp_path: Path
) -> None:
    with pytest.raises(StoreFull, match="too many files are open"), disk(tmp_path):
        raise OSError(number, "")
