"""The way to a broker below MQTT: is it reached, does each take the other's certificate, and why not, in words."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final

from sdk.errors import BrokerError, ConfigError

if TYPE_CHECKING:
    from sdk.mqtt import MqttSettings

REFUSED_WITHIN_S: Final = 1.0
"""A broker refuses a certificate within a round trip after its handshake."""
SILENT_ENDS: Final = 3
"""A refusal comes as an alert. A connection that ends without one may have met something else: asked so often."""
ALERT: Final = re.compile(r"\[SSL: (?:SSLV3_|TLSV1_|TLSV13_)?ALERT_(\w+)\]")
"""An alert of the other side's, as OpenSSL names it: SSLV3_ALERT_CERTIFICATE_REVOKED."""


class EndedSilently(BrokerError):
    """Each took the other's certificate, and then the broker closed the connection without a word, each time."""


def shake_hands(settings: MqttSettings, timeout_s: float, *, name: str | None = None) -> float:
    """Return in how many milliseconds a broker was reached, and with TLS each has taken the other's certificate.

    No session is opened.

    Args:
        settings: Where and how.
        timeout_s: How long it may take.
        name: What the broker's certificate is to be for; None for the host in the settings.

    Raises:
        BrokerError: nobody there, or one of the two is not taken; `EndedSilently` where it does not say so.
        ConfigError: our files cannot be used.
    """
    context = None if settings.ca_file is None else _context(settings)
    for _ in range(1, SILENT_ENDS):
        with contextlib.suppress(EndedSilently):
            return _shake(settings, context, timeout_s, name)
    return _shake(settings, context, timeout_s, name)


def _shake(settings: MqttSettings, context: ssl.SSLContext | None, timeout_s: float, name: str | None) -> float:
    began_s = time.perf_counter()
    try:
        with socket.create_connection((settings.host, settings.port), timeout_s) as raw:
            if context is None:
                return (time.perf_counter() - began_s) * 1e3
            with context.wrap_socket(raw, server_hostname=name or settings.host) as secured:
                took_ms = (time.perf_counter() - began_s) * 1e3
                # TLS 1.3 refuses our certificate only after its own handshake; who takes it says nothing.
                secured.settimeout(REFUSED_WITHIN_S)
                with contextlib.suppress(TimeoutError):
                    if not secured.recv(1):
                        silent = no_answer(settings, "")
                        raise EndedSilently(str(silent), hint=silent.hint)
                with contextlib.suppress(OSError):
                    secured.unwrap()  # else the broker logs an error of it
                return took_ms
    except ssl.SSLError as error:
        raise no_handshake(settings, error) from error
    except OSError as error:
        raise nobody(settings, error) from error


def _context(settings: MqttSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(settings.ca_file))
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ValueError) as error:
        raise no_files(error) from error
    return context


def nobody(settings: MqttSettings, error: BaseException | None) -> BrokerError:
    """Return what it means that nobody takes the connection."""
    return BrokerError(
        f"no MQTT broker at {settings.address}: "
        f"{getattr(error, 'strerror', None) or str(error) or type(error).__name__}",
        hint="Start one (`headway fleet serve --start-broker`, or apt-get install mosquitto), "
        "or correct the address.",
    )


def no_files(error: Exception) -> ConfigError:
    """Return what it means that our certificate, its key or the authority's cannot be used."""
    return ConfigError(
        f"TLS files for the broker cannot be used: {error}", hint="Check ca_file, cert_file and key_file."
    )


def no_answer(settings: MqttSettings, alert: str) -> BrokerError:
    """Return what a connection means that was up and that the broker closed without an answer."""
    if settings.cert_file is None:
        return BrokerError(
            f"{settings.address} closed the connection without an answer as an MQTT 5 broker",
            hint="Check host, port and TLS settings; the broker must speak MQTT 5.",
        )
    return BrokerError(
        f"the broker at {settings.address} "
        + ("refuses " if alert else "closes the connection without an answer: it may refuse ")
        + f"the certificate {settings.cert_file}"
        + (f": {alert}" if alert else ""),
        hint="Was it revoked, or is it another fleet's? Then enrol this device anew: headway fleet enroll.",
    )


def no_handshake(settings: MqttSettings, error: ssl.SSLError) -> BrokerError:
    """Return what a failed TLS handshake means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return BrokerError(
            f"the certificate of the broker at {settings.address} does not hold: {error.verify_message}",
            hint=f"Check host, clock and ca_file ({settings.ca_file}). Has the fleet's server another address "
            "now? There: headway fleet tls --renew --host ADDRESS.",
        )
    if alert := ALERT.search(str(error)):
        return no_answer(settings, alert[1].replace("_", " ").lower())
    return BrokerError(
        f"no TLS with {settings.address}: {error.reason or error}",
        hint="Check host and port: 8883 with TLS and 1883 without, by custom.",
    )
