"""The fleet's broker, as its service reaches it: beside that without a session, else by looking in on its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sdk.broker_check import BROKER_WAIT_S, look
from sdk.broker_way import EndedSilently, shake_hands
from sdk.errors import HeadwayError
from sdk.finding import Finding, Level
from sdk.fleet.service import session_name
from sdk.labels import FLEET_LOG_PREFIX
from sdk.mqtt import MqttSession, MqttSettings
from sdk.wire import Topics

NOBODY: Final = f"{FLEET_LOG_PREFIX}doctor"
"""No device has such a name: what is published for it reaches nobody, and the service may write it."""
_MAY_WRITE: Final = (
    "The service must be let write to its topics (docs/trust.md, section 7): with `headway fleet tls` the list "
    "is DIR/tls/acl, which the broker reads when it is started."
)
_RENEW: Final = (
    "Is that this fleet's broker, with DIR/tls/ca.pem and crl.pem as they are now? For new certificates: headway "
    "fleet tls --renew --dir DIR; then start the broker anew."
)
_ANEW: Final = (
    "Start the broker anew, do not let it reload: one of --start-broker with `headway fleet serve`, one of the "
    "system with systemctl restart mosquitto."
)
_OTHER: Final = "Was `headway fleet serve` given another broker? Then give its options here too."


@dataclass(frozen=True)
class Way:
    """How the service reaches its broker.

    Attributes:
        settings: As `headway fleet serve` has them.
        known_as: Name or address by which devices know it, which its certificate is to be for; None for the host
            in the settings.
    """

    settings: MqttSettings
    known_as: str | None = None


def examine(
    find: Callable[[], Way], channels: Sequence[str], *, served: bool, connected: bool = False
) -> Iterator[Finding]:
    """Yield whether a fleet's broker is there, lets the fleet's service in, and is set up as Headway needs it.

    Where the broker may take the session's name from certificate or user, no session is opened beside a running
    service: two of one name throw each other off. Without one the service's session is only looked in on, and what
    waits in it for the service waits on.

    Args:
        find: Returns how the service reaches it; may raise a `HeadwayError`.
        channels: Those that are served: the service's session is called by them.
        served: A service runs, here or on another machine.
        connected: And it has its session at the broker, with this very certificate.
    """
    try:
        way = find()
        settings, known_as = way.settings, way.known_as
        nameless = settings.cert_file is None and settings.username is None
        shaken_ms = shake_hands(settings, BROKER_WAIT_S, name=known_as)
        if settings.ca_file is not None:
            ours = ", and it takes the service's" if settings.cert_file is not None else ""
            yield Finding(
                "broker",
                Level.GOOD,
                f"{settings.address}: its certificate holds for {known_as or settings.host}{ours} "
                f"({shaken_ms:.0f} ms)",
            )
        if served and not nameless:
            yield Finding(
                "broker",
                Level.GOOD,
                f"{settings.address}: it answers; the service has its session there, so limits were not looked at",
            )
            return
        if nameless:
            name, lent = f"{NOBODY}-{os.getpid()}", False
            settings = replace(settings, session_expiry_s=0)
        else:
            name, lent = session_name(settings.prefix, channels), True
        session = MqttSession(settings, name, on_message=lambda _message: None, lent=lent)
    except EndedSilently as error:
        if served and connected:
            what = "it closes new connections before they have said who they are; the service is connected"
            yield Finding("broker", Level.NOTE, f"{settings.address}: {what}", _ANEW)
        else:
            yield Finding("broker", Level.FAULT, str(error), f"{_RENEW} {_OTHER}" if served else _RENEW)
        return
    except HeadwayError as error:
        fix = _RENEW if "headway fleet enroll" in error.hint else error.hint  # which is for a device
        yield Finding("broker", Level.FAULT, str(error), f"{fix} {_OTHER}" if served else fix)
        return
    topic = Topics(settings.prefix).ack(NOBODY)
    yield from look(session, topic, who="the fleet's service", if_refused=_MAY_WRITE)
