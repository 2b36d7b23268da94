"""The demo's processes and how it talks to them: commands of Headway as children, devices over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from sdk.errors import HeadwayError

STOP_TIMEOUT_S: Final = 15.0
POLL_S: Final = 0.05
_GUARD: Final = """
import contextlib, os, signal, sys
for pid in [int(line) for line in sys.stdin]:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGTERM)
"""

T = TypeVar("T")


class DemoFailed(HeadwayError):
    """A step of the demo did not end as it should."""


def headway(*arguments: str | Path) -> list[str]:
    """Return the command line that runs this installation's `headway`."""
    return [sys.executable, "-m", "sdk.cli", *map(str, arguments)]


def run(*arguments: str | Path, log: Path) -> None:
    """Run one Headway command to its end, what it says on stderr: the demo's own figures may be JSON on stdout.

    Raises:
        DemoFailed: it ended with an error.
    """
    code = subprocess.call(headway(*arguments), stdout=sys.stderr.fileno())
    if code != 0:
        raise DemoFailed(
            f"`headway {arguments[0]}` ended with exit code {code}",
            hint=f"Its messages are above; see also {log}.",
        )


class Service:
    """A Headway command that keeps running, its output in a log file.

    Its standard output is lines of JSON; the first says that it is ready.
    """

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        self.ready: dict[str, Any] = {}
        self._is_ready = threading.Event()
        # A session of its own: Ctrl-C reaches the demo, which stops its services in order.
        self._child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log.open("ab"),
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def _read(self) -> None:
        assert self._child.stdout is not None
        with self.log.open("ab") as log:
            for line in self._child.stdout:
                log.write(line)
                log.flush()
                if not self._is_ready.is_set() and line.startswith(b"{"):
                    with contextlib.suppress(ValueError):
                        self.ready = json.loads(line)
                        self._is_ready.set()

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """Return its first line.

        Raises:
            DemoFailed: it ended or said nothing in time.
        """
        deadline = time.monotonic() + timeout_s
        while not self._is_ready.wait(POLL_S):
            self.check()
            if time.monotonic() > deadline:
                raise DemoFailed(f"{self.name} was not ready after {timeout_s:.0f} s", hint=f"See {self.log}.")
        return self.ready

    def check(self) -> None:
        """Raise DemoFailed if it has ended."""
        code = self._child.poll()
        if code is not None:
            raise DemoFailed(f"{self.name} ended with exit code {code}", hint=f"See {self.log}.")

    def stop(self) -> None:
        """End it as a service manager would: ask, wait, insist."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            try:
                self._child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._reader.join(1)


class Guard:
    """A small process that outlives the demo by a moment, and ends what a killed demo could not end itself.

    It reads process ids from a pipe. The system closes the pipe when the demo is gone, however it went, and then
    it asks them to end.
    """

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", _GUARD], stdin=subprocess.PIPE, start_new_session=True
        )

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()  # first: it must not take the closed pipe for the demo's end
        self._child.communicate()

    def watch(self, pid: int) -> None:
        """End this process too."""
        assert self._child.stdin is not None
        self._child.stdin.write(b"%d\n" % pid)
        self._child.stdin.flush()


@contextlib.contextmanager
def running(service: Service) -> Iterator[Service]:
    """Stop the service when the block ends, however it ends."""
    try:
        yield service
    finally:
        service.stop()


@dataclass(frozen=True)
class Answer:
    """A device's decision on one picture."""

    decision: str
    forced: str
    probability: float
    novelty: float


def http_client(url: str) -> httpx.Client:
    """Return a client for a page on this machine, which no proxy of the environment is asked for."""
    return httpx.Client(base_url=url, timeout=30, trust_env=False)


class Device:
    """One agent, spoken to over the HTTP interface that an operator's page uses."""

    def __init__(self, name: str, service: Service) -> None:
        self.name = name
        self.service = service
        url = str(service.wait_ready(60)["page"])
        self.url = url
        self._http = http_client(url)

    def get(self, path: str, **query: str | int) -> Any:
        """Return the JSON at a path of the device's interface."""
        return self._asked("GET", path, params=query).json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON answer to a JSON body."""
        return self._asked("POST", path, json=body).json()

    def state(self) -> dict[str, Any]:
        """Return `/api/state`."""
        state: dict[str, Any] = self.get("/api/state")
        return state

    def image(self, sample: str) -> bytes:
        """Return a stored sample's image bytes."""
        return self._asked("GET", f"/api/samples/{sample}/image").content

    def inspect(self, image: bytes) -> Answer:
        """Return the decision on a picture pushed in; nothing is stored."""
        answer = self._asked("POST", "/api/inspect", content=image).json()
        return Answer(answer["decision"], answer["forced_class"], answer["probability"], answer["novelty"])

    def show(self, image: bytes) -> None:
        """Let it decide about a picture, and keep it for labelling."""
        self._asked("POST", "/api/inspect", params={"keep": "true"}, content=image)

    def wait(self, what: str, probe: Callable[[dict[str, Any]], T | None], timeout_s: float) -> T:
        """Return the first answer of `probe` to the device's state that is neither None nor False.

        Raises:
            DemoFailed: none in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.service.check()
            found = probe(self.state())
            if found is not None and found is not False:
                return found
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"{self.name}: {what} did not happen within {timeout_s:.0f} s", hint=f"See {self.service.log}."
                )
            time.sleep(POLL_S)

    def _asked(self, method: str, path: str, **how: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **how)
        except httpx.HTTPError as error:
            self.service.check()
            raise DemoFailed(
                f"{self.name} does not answer to {path}: {error}", hint=f"See {self.service.log}."
            ) from error
        if response.is_error:
            raise DemoFailed(
                f"{self.name} answered {response.status_code} to {response.url.path}: {response.text[:200]}",
                hint=f"See {self.service.log}.",
            )
        return response
