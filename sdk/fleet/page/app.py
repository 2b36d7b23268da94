"""Routes of the fleet's page: three views that refresh themselves, and the same as JSON (/openapi.json).

It only shows. What changes a fleet is a command, so that nobody needs to log in here and nothing can be done from
a browser that was left open.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Any, Final, Literal

import jinja2
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from sdk.errors import DatabaseAway, FleetError, HeadwayError
from sdk.fleet.page.view import MOST_TEACHERS, FleetView
from sdk.version import headway_version
from sdk.web.bodies import SmallBodies
from sdk.web.server import mount_shared

HOST: Final = "127.0.0.1"
"""It asks nobody who they are. On a network a proxy with the plant's own log-in belongs before it."""
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Channel = Annotated[
    str, Path(pattern=r"^[a-z0-9._-]{1,64}$", description="A channel's name, as /api/fleet lists them.")
]


Find = Annotated[str, Query(max_length=63)]
Only = Annotated[Literal["", "look"], Query()]
At = Annotated[int, Query(ge=1, le=1_000_000)]
"""Which devices are shown, and which page of them."""


class Refused(BaseModel):
    """What is wrong, and what to do about it."""

    error: str
    hint: str


_AWAY: Final[dict[int | str, dict[str, Any]]] = {
    503: {"model": Refused, "description": "The fleet's database cannot be used now."}
}
_NOT_THERE: Final[dict[int | str, dict[str, Any]]] = {
    **_AWAY,
    404: {"model": Refused, "description": "There is no such channel, or nothing to show of it."},
}


def make_app(view: FleetView) -> FastAPI:
    """Return the page's application.

    Args:
        view: What it shows.
    """
    app = FastAPI(
        title="Headway fleet",
        version=headway_version(),
        description="What a fleet's devices run and have learned. It only shows: changes are made by commands.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,
        redoc_url=None,
    )
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("sdk.fleet.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(percent=_percent, points=_points)
    mount_shared(app)
    app.mount("/static", StaticFiles(directory=str(files("sdk.fleet.page") / "static")), name="static")
    # A page elsewhere that resolves its own name to this machine must not read the fleet.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.add_middleware(SmallBodies)

    def page(name: str, active: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(templates.get_template(name).render(active=active, **values))

    @app.middleware("http")
    async def _with_headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        for name, value in _HEADERS.items():
            if not (name == "Cache-Control" and request.url.path.startswith("/static/")):
                response.headers[name] = value
        return response

    @app.exception_handler(HeadwayError)
    def _refused(request: Request, error: HeadwayError) -> Response:
        away = isinstance(error, DatabaseAway)
        status = 503 if away else 404 if isinstance(error, FleetError) else 500
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": str(error), "hint": error.hint}, status)
        response = page("error.html", "", away=away, error=str(error), hint=error.hint)
        response.status_code = status
        return response

    @app.get("/", include_in_schema=False)
    def devices(find: Find = "", only: Only = "", at: At = 1) -> HTMLResponse:
        return page("devices.html", "devices", fleet=view.devices(find, only, at), at=at)

    @app.get("/part/devices", include_in_schema=False)
    def devices_part(find: Find = "", only: Only = "", at: At = 1) -> HTMLResponse:
        return page("devices_part.html", "devices", fleet=view.devices(find, only, at), at=at)

    @app.get("/rollout/{channel}", include_in_schema=False)
    def rollout(channel: Channel) -> HTMLResponse:
        return page("rollout.html", "rollout", rollout=view.rollout(channel))

    @app.get("/part/rollout/{channel}", include_in_schema=False)
    def rollout_part(channel: Channel) -> HTMLResponse:
        return page("rollout_part.html", "rollout", rollout=view.rollout(channel))

    @app.get("/learned/{channel}", include_in_schema=False)
    def learned(channel: Channel) -> HTMLResponse:
        return page("learned.html", "learned", learned=view.learned(channel, most=MOST_TEACHERS))

    @app.get("/part/learned/{channel}", include_in_schema=False)
    def learned_part(channel: Channel) -> HTMLResponse:
        return page("learned_part.html", "learned", learned=view.learned(channel, most=MOST_TEACHERS))

    @app.get("/suspects/{channel}", include_in_schema=False)
    def suspects(channel: Channel) -> HTMLResponse:
        return page("suspects.html", "suspects", found=view.suspects(channel))

    @app.get("/api/fleet", summary="Channels and devices", responses=_AWAY)
    def api_fleet() -> dict[str, Any]:
        """Return channels and devices, with all they say of themselves."""
        return view.fleet()

    @app.get("/api/rollout/{channel}", summary="A channel's newest rollout", responses=_NOT_THERE)
    def api_rollout(channel: Channel) -> dict[str, Any]:
        """Return a channel's newest rollout and how its devices do."""
        return view.rollout(channel)

    @app.get("/api/learned/{channel}", summary="Who taught a channel what", responses=_NOT_THERE)
    def api_learned(channel: Channel) -> dict[str, Any]:
        """Return who taught a channel what, and its newest labels."""
        return view.learned(channel)

    @app.get("/api/classes/{channel}", summary="Classes, and those that may be one", responses=_NOT_THERE)
    def api_classes(channel: Channel) -> dict[str, Any]:
        """Return a channel's classes, the pairs that may be one, and what was decided about them."""
        return view.classes(channel)

    @app.get("/api/suspects/{channel}", summary="Whose labels fit nobody else's", responses=_NOT_THERE)
    def api_suspects(channel: Channel) -> dict[str, Any]:
        """Return the sources that label against all others, with the evidence, and who is quarantined."""
        return view.suspects(channel)

    return app


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _points(change: tuple[float | None, float | None]) -> str:
    before, now = change
    if before is None or now is None:
        return ""
    points = round(100 * (now - before))
    return f"{points:+d}" if points else "±0"
