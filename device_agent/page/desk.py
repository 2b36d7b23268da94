"""What the subjects of the HTTP interface share: the station, what its classes are called, who did what.

A subject is a module with the routes for it (docs/agent.md): JSON in and out, ids in hex, errors as {error, hint}.
It translates; what happens is the station's. Who may call is said at each route, and kept by `guard`. OpenAPI is
at /openapi.json.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request

from device_agent.learned import Now, in_english
from device_agent.page.access import Access
from device_agent.page.guard import address_of, who_of
from device_agent.report import State
from device_agent.station import Station


class Desk:
    """The station as they see it.

    Args:
        station: Decides, asks, takes labels.
        state: What the device says of itself now.
        access: Its accounts.
    """

    def __init__(self, station: Station, state: Callable[[], State], access: Access) -> None:
        self.station = station
        self.state = state
        self.access = access

    def names(self) -> dict[bytes, str]:
        """Return the classes' names by id."""
        return {c.class_id: c.name for c in self.station.classes()}

    def called(self, now: Now = in_english) -> Callable[[bytes], str]:
        """Return what gives a class's name, also of one that was made part of another since.

        Args:
            now: Joins the last name of such a class and what it is called by now.
        """
        serving = self.station.serving
        return (lambda class_id: class_id.hex()[:8]) if serving is None else serving.learner.called(now)

    def note(self, request: Request, action: str, what: str) -> None:
        """Write a line of the audit log, where there are accounts."""
        if self.access.in_use:
            self.access.note(who_of(request).id, action, what, address_of(request))
