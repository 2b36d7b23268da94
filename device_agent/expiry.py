"""Whose a device's certificates are, and what of it ends when: these, its fleet's, and signatures it accepted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from device_agent.config import MqttTable
from sdk.expiry import Expiry, Standing
from sdk.pem import AUTHORITY_NAME, SESSIONS, ends_utc, names_in

TIMESTAMP_NOTICE_DAYS: Final = 7.0
"""A running fleet service signs it anew every day, for 14 days."""


def certificates(table: MqttTable) -> list[tuple[str, Path]]:
    """Return the files with certificates that the settings name, each with what it is."""
    named = [
        ("this device's certificate", table.cert_file),
        ("this device's certificate for releases", table.chunks_cert_file),
        ("this device's certificate for triggers", table.trigger_cert_file),
        ("the fleet's certificate authority", table.ca_file),
    ]
    return [(what, file) for what, file in named if file is not None]


def of_another(device: str, table: MqttTable) -> str | None:
    """Return in words which certificate is another's than this device's; None where none is.

    A fleet's broker takes the name of a session from the certificate: with another's, all that this device says is
    refused, and that other is thrown off. Certificates of a plant's own authority may be named as it likes.
    """
    for file, session in zip(
        (table.cert_file, table.chunks_cert_file, table.trigger_cert_file), SESSIONS, strict=True
    ):
        try:
            names = None if file is None else names_in(file)
        except (OSError, ValueError):
            continue  # the broker's session, and `headway doctor`, say what is wrong with it
        if names is not None and names.issuer == AUTHORITY_NAME and names.subject != device + session:
            return f"{file} is the certificate of {names.subject}, and this device is {device}{session}"
    return None


def of_certificate(device: str, what: str, file: Path) -> Expiry:
    """Return when a certificate of this device ends.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    renew = (
        f"On the fleet's server: headway fleet renew {device} --dir FLEET --out renewed; carry renewed/{device} "
        f"here, copy its files over those in {file.parent}, and start the agent anew."
    )
    then = "the broker refuses this device, and its labels wait here"
    if what.startswith("the fleet's"):
        then = "this device trusts no broker, and its labels wait here"
    return Expiry("device", f"{what} ({file.name})", ends_utc(file), then, renew)


def of_signatures(ends: Mapping[str, float]) -> list[Expiry]:
    """Return when the signed metadata that this device has accepted ends.

    Args:
        ends: Seconds since 1970 by role.
    """
    then, keys = (
        "no new release is taken",
        "On the fleet's server: headway fleet keys renew --dir FLEET --keys KEYS.",
    )
    serve = (
        "It comes with every day on which the fleet service runs: headway fleet serve --dir FLEET. Without a "
        "network: headway bundle pack, and headway agent update --from."
    )
    found = {
        "root": Expiry("root", "the root of signatures", ends.get("root", 0.0), then, keys),
        "targets": Expiry("targets", "the signature of the releases", ends.get("targets", 0.0), then, keys),
        "timestamp": Expiry(
            "timestamp",
            "the signature that nothing newer exists",
            ends.get("timestamp", 0.0),
            then,
            serve,
            TIMESTAMP_NOTICE_DAYS,
        ),
    }
    return [one for role, one in found.items() if role in ends]


def ending_words(table: MqttTable | None, now_utc: float) -> str:
    """Return in a few words the certificate of this device that ends first, where that is soon; else nothing."""
    ends = []
    for what, file in [] if table is None else certificates(table):
        try:
            ends.append(of_certificate("", what, file))
        except (OSError, ValueError):
            continue  # `headway doctor` says what is wrong with it; the broker's refusal does too
    soon = [one for one in ends if one.standing(now_utc) is not Standing.GOOD]
    return min(soon, key=lambda one: one.expires_utc).words(now_utc) if soon else ""
