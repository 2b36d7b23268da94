"""What goes to this machine or to the plant's own service goes there straight, whatever proxy pip needs."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.agent import RUNNING_NAME, running_state
from device_agent.config import HttpOutput
from device_agent.outputs.http import HttpPosts
from device_agent.site_file import parse_site
from sdk.demo.plant import http_client
from sdk.wire import Verdict
from tests.test_outputs import part_of

STATE = {"device": "line-1"}


class Listener:
    """Answers everything with a state, and notes by which address and with which token it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                outer.asked.append((self.path, self.headers["Authorization"]))
                body = json.dumps(STATE).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.answer()

            def do_POST(self) -> None:
                self.answer()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> Listener:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Listener]:
    with Listener() as listener:
        yield listener


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """What the environment says everything should go by."""
    with Listener() as listener:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, listener.url)
        yield listener


def test_an_agent_is_asked_for_its_state_without_a_proxy(
    service: Listener, proxy: Listener, tmp_path: Path
) -> None:
    text = 'device = "line-1"\ndata_dir = "data"\n[camera]\nkind = "opencv"\nindex = 0\n'
    site = parse_site(text, tmp_path / "site.toml")
    site.data_dir.mkdir()
    (site.data_dir / RUNNING_NAME).write_text(json.dumps({"page": service.url, "token": "s3cret"}))
    assert running_state(site, 30) == STATE
    assert (service.asked, proxy.asked) == ([("/api/state", "Bearer s3cret")], [])


def test_a_verdict_goes_to_its_service_without_a_proxy(service: Listener, proxy: Listener) -> None:
    posts = HttpPosts(HttpOutput(url=f"{service.url}parts"), "line-1", "run")
    posts.send(part_of(1, Verdict.REJECT))
    assert (service.asked, proxy.asked) == ([("/parts", None)], [])


def test_a_demo_speaks_to_its_devices_without_a_proxy(service: Listener, proxy: Listener) -> None:
    with http_client(service.url) as http:
        assert http.get("/api/state").json() == STATE
    assert (service.asked, proxy.asked) == ([("/api/state", None)], [])
