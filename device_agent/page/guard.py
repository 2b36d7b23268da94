"""Who a request comes from, and what no request may do: other sites' scripts, other hosts' names, floods.

`Guard` answers for every route before it runs. Rules kept here:

- A page on loopback answers to loopback's names only (DNS rebinding), and to that of its proxy, if it has one.
- A writing request carries the page's own Origin, or its proxy's, or none. With a session it carries the session's
  token in a header too; a form of another site can set neither.
- Where there are accounts, a request without a session or a token gets nothing but the login page. Nor does it
  beyond loopback or behind a proxy where there are none, or none any more: the start asks for some, but they come
  and go later.
- What a route needs is said at the route, by `needs`; an answer that goes on asks again, by `may_stay`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote, urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from device_agent.config import LOOPBACK
from device_agent.page.access import LOCAL, Access, Role, Who, same
from device_agent.page.proxy import Proxy
from sdk.errors import AccessError

SESSION_COOKIE: Final = "headway-session"
CSRF_HEADER: Final = "x-headway-csrf"
PUBLIC: Final = ("/static/", "/login", "/api/login")
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
RATE: Final = 100.0
"""Requests a second of one other machine, in the long run: the page of a busy operator makes about five."""
BURST: Final = 400.0
"""And so many at once: opening a page with its pictures takes thirty."""
MAX_ADDRESSES: Final = 4096
MAX_THEN: Final = 2000
"""Characters of where the login leads to; a figure of a dozen good classes takes 700."""


class Guard:
    """Middleware of the page.

    Args:
        access: Accounts and sessions.
        only_loopback: Whether the page is bound to loopback. Requests for other host names are refused then, and
            without accounts and proxy whoever asks may do everything.
        secure: Whether people see the page over TLS.
        proxy: On this machine, through which others come.
    """

    def __init__(self, access: Access, *, only_loopback: bool, secure: bool, proxy: Proxy | None = None) -> None:
        self._access = access
        self._only_loopback = only_loopback
        self._secure = secure
        self._proxy = proxy
        self._names = LOOPBACK if proxy is None else LOOPBACK | {proxy.host}
        self._floods = _Buckets()

    @property
    def cookie_name(self) -> str:
        """Return the session cookie's name; over TLS one that no other host or port can set."""
        return f"__Host-{SESSION_COOKIE}" if self._secure else SESSION_COOKIE

    async def __call__(self, request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        """Answer a request, or let its route answer."""
        response = self._refuse(request)
        if response is None:
            response = await go_on(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        if self._secure:
            response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
        if not request.url.path.startswith("/static/"):
            response.headers.setdefault("Cache-Control", "no-store")
        return response

    def _refuse(self, request: Request) -> Response | None:
        host, address = request.headers.get("host", ""), self._address(request)
        request.state.address = address
        if self._only_loopback and _hostname(host) not in self._names:
            hint = "Open it as http://127.0.0.1 and its port; behind a proxy set [page] public_url."
            return _answer(403, f"this page is not {host[:80]!r}", hint)
        if address not in LOOPBACK and not self._floods.take(address):
            return _answer(429, "too many requests", "Ask less often, or wait a moment.")
        writes = request.method not in ("GET", "HEAD", "OPTIONS")
        if writes and self._foreign(request, host):
            hint = "Open the device's own page; behind a proxy set [page] public_url."
            return _answer(403, "another site's page may not write here", hint)
        who = self._who(request)
        request.state.who = who
        # For an answer that goes on for long; being told is no use of a session.
        request.state.may_stay = lambda: self._who(request, used=False) == who
        if who is None:
            if request.url.path.startswith(PUBLIC):
                return None
            if request.url.path.startswith("/api/") or request.url.path == "/openapi.json":
                answer = self._log_in_first()
                answer.headers["WWW-Authenticate"] = "Bearer"
                return answer
            path, asked = request.url.path, request.url.query
            then = f"{path}?{asked}" if asked and len(path) + len(asked) < MAX_THEN else path
            return RedirectResponse(f"/login?then={quote(then)}", 303)
        unproven = who.csrf and not same(request.headers.get(CSRF_HEADER, ""), who.csrf)
        if writes and unproven and not request.url.path.startswith(PUBLIC):
            return _answer(403, "the request does not come from this session's page", "Load the page again.")
        return None

    def _address(self, request: Request) -> str:
        address = "" if request.client is None else request.client.host
        if self._proxy is None or address not in LOOPBACK:
            return address
        return self._proxy.client(request.headers.getlist("x-forwarded-for")) or address

    def _foreign(self, request: Request, host: str) -> bool:
        origin = request.headers.get("origin")
        if origin is not None and not self._is_own(origin, host):
            return True
        # Browsers tell it themselves, also where a form sends no Origin.
        return request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")

    def _is_own(self, origin: str, host: str) -> bool:
        if self._proxy is not None:
            if origin.lower() == self._proxy.origin:  # whatever the proxy makes of the host
                return True
            if _hostname(host) == self._proxy.host:
                return False  # of its name, but not over TLS or of another port
        return _netloc(origin) == host

    def _log_in_first(self) -> Response:
        if self._access.in_use:
            return _answer(401, "log in first", "Log in on the page, or send a token: Authorization: Bearer.")
        hint = "Make one on the device: headway agent user add SITE.TOML NAME --role admin."
        return _answer(401, "this page has no accounts, and other machines reach it", hint)

    def _who(self, request: Request, *, used: bool = True) -> Who | None:
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and value:
            return self._access.machine(value.strip())
        if not self._access.in_use:
            return LOCAL if self._only_loopback and self._proxy is None else None
        token = request.cookies.get(self.cookie_name)
        return None if token is None else self._access.session(token, used=used)


def who_of(request: Request) -> Who:
    """Return who sent a request that the guard let through."""
    who = request.state.who
    if not isinstance(who, Who):
        raise AccessError("log in first", hint="Log in on the page.")
    return who


def operator_of(request: Request, typed: str) -> str:
    """Return who the label log shall name: whoever is logged in, else what the page's user typed."""
    return who_of(request).id or typed


def may_stay(request: Request) -> bool:
    """Return whether who sent a request is still who they were, with what they might do: for answers that go on.

    A session that ended, an account or token that was removed, the first account of a device: then no more.
    """
    return bool(request.state.may_stay())


def needs(role: Role) -> Callable[[Request], None]:
    """Return a route's dependency: at least this role.

    Raises:
        AccessError: from the dependency, where somebody has less.
    """

    def check(request: Request) -> None:
        if who_of(request).role.rank < role.rank:
            raise AccessError(f"this needs the role {role.value}", hint="Ask an engineer or an admin.")

    return check


def address_of(request: Request) -> str:
    """Return where a request that the guard has seen comes from: as the socket says it, or the page's own proxy;
    forwarding headers are otherwise anybody's to write."""
    return str(request.state.address)


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _answer(status: int, error: str, hint: str) -> JSONResponse:
    return JSONResponse({"error": error, "hint": hint}, status)


class _Buckets:
    """A token bucket for each address."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> bool:
        now = time.monotonic()
        with self._lock:
            left, then = self._left.pop(address, (BURST, now))
            left = min(BURST, left + (now - then) * RATE)
            self._left[address] = (max(left - 1, 0.0), now)
            while len(self._left) > MAX_ADDRESSES:
                self._left.popitem(last=False)
        return left >= 1
