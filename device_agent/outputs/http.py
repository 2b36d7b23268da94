"""Verdicts to an HTTP service, such as a manufacturing execution system: one POST of JSON for each part, in
order."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from device_agent.config import HttpOutput
from device_agent.parts import KeptPart, Part
from sdk.errors import ConfigError, OutputFailed, OutputRefused
from sdk.shown import shown
from sdk.wire import Result

MAX_TOKEN_BYTES: Final = 4096
_REFUSALS: Final = range(400, 500)
_NOT_THE_VERDICTS: Final = frozenset({401, 403, 404, 405, 407, 408, 410, 421, 425, 429})
"""Of those, about address, token or moment (RFC 9110, 8470 and 6585), and so about every verdict alike:
what waits is kept until somebody has seen to it. A service that does not know one part says 409 or 422."""
MAX_ADDRESS_CHARS: Final = 100


class Posted(Result, frozen=True, kw_only=True):
    """What is posted: a `Result`, and which one. `device`, `run` and `number` together never repeat, so a
    receiver can tell a verdict that it gets twice."""

    device: str
    run: str
    number: int


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none: a redirected POST arrives as a GET, or somewhere that nobody named."""


class HttpPosts:
    """One service.

    Args:
        settings: Its address.
        device: This device's id.
        run: Names this run of the agent, and no other.

    Raises:
        ConfigError: no http or https address, or a token file that cannot be read.
    """

    replays = True

    def __init__(self, settings: HttpOutput, device: str, run: str) -> None:
        try:
            parts = urlsplit(settings.url)
            good = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
        except ValueError:  # of the port, or a bracket
            good = False
        if not good:
            raise ConfigError(f"output.url: {settings.url!r} is no http address", hint="https://mes.plant/parts")
        self.name = f"http {parts.hostname}"
        # The address itself may hold a password.
        self.resumes_as = f"{self.name} {hashlib.sha256(settings.url.encode()).hexdigest()[:16]}"
        self._settings, self._device, self._run = settings, device, run
        self._headers = {"Content-Type": "application/json"}
        if settings.token_file is not None:
            try:
                token = settings.token_file.read_bytes()[:MAX_TOKEN_BYTES].decode("ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"output.token_file: {error}", hint="It holds nothing but the token.") from error
            self._headers["Authorization"] = f"Bearer {token}"
        # Not by a proxy of the environment, which is there for pip: it would be given the token, and its refusals
        # would be taken for the service's.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)

    def send(self, part: Part) -> None:
        """Post one verdict.

        Raises:
            OutputRefused: the service will not have this one.
        """
        result = msgspec.structs.asdict(part.result())
        run = part.run if isinstance(part, KeptPart) else self._run
        posted = Posted(**result, device=self._device, run=run, number=part.number)
        request = urllib.request.Request(self._settings.url, msgspec.json.encode(posted), self._headers)
        try:
            with self._opener.open(request, timeout=self._settings.timeout_s) as answer:
                answer.read(0)
        except urllib.error.HTTPError as error:
            error.close()
            refused = error.code in _REFUSALS and error.code not in _NOT_THE_VERDICTS
            raise (OutputRefused if refused else OutputFailed)(
                f"{self.name} answers {error.code} {shown(error.reason)}{_elsewhere(error)}",
                hint="See the service's log; check url and token_file of this output. What waits is tried again, "
                "also after a restart, as long as url stays as it is."
                if not refused
                else "See the service's log.",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            said = getattr(reason, "strerror", None) or reason  # without its number
            raise OutputFailed(f"{self.name}: {said}", hint="Check the address and the network.") from error

    def beat(self) -> None:
        """Nothing: a service that wants signs of life asks for the state."""

    def close(self) -> None:
        """Nothing: parts that were open have been rejected and posted by now."""


def _elsewhere(error: urllib.error.HTTPError) -> str:
    """Return where a redirect points to, as far as it can hold no secret: a login page of some proxy, mostly."""
    if error.code in _REFUSALS or not (location := error.headers.get("Location")):
        return ""
    with contextlib.suppress(ValueError):
        to = urlsplit(location)
        return f", to {shown(f'{to.scheme}://{to.hostname}{to.path}')[:MAX_ADDRESS_CHARS]}" if to.hostname else ""
    return ""
