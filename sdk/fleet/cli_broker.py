"""The broker of a fleet, as its commands are told: by options, or by what `headway fleet tls` has set up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sdk.wire import DEFAULT_PREFIX

if TYPE_CHECKING:
    from sdk.mqtt import MqttSettings

DEFAULT_BROKER: Final = "127.0.0.1:1883"
_F = TypeVar("_F", bound=Callable[..., Any])
_FILE: Final = click.Path(path_type=Path, dir_okay=False)


def broker_options(command: _F) -> _F:
    """Give a command the options that say where the broker is and how to speak with it."""
    for option in reversed(
        [
            click.option(
                "--broker",
                metavar="HOST:PORT",
                help=f"The MQTT 5 broker; by default the one of `headway fleet tls`, or {DEFAULT_BROKER}.",
            ),
            click.option("--prefix", default=DEFAULT_PREFIX, show_default=True, help="First part of every topic."),
            click.option("--username", help="User name at the broker."),
            click.option("--password-file", type=_FILE, help="File with the password."),
            click.option("--ca-file", type=_FILE, help="Turns TLS on: the authority's PEM."),
            click.option("--cert-file", type=_FILE, help="Our own certificate, PEM."),
            click.option("--key-file", type=_FILE, help="Its private key, PEM."),
        ]
    ):
        command = option(command)
    return command


def broker_settings(
    directory: Path, *, here: bool, broker: str | None, prefix: str, **files: Any
) -> tuple[MqttSettings, bool]:
    """Return how the fleet's service reaches its broker, and whether that is the one of `headway fleet tls`.

    Args:
        directory: The fleet's.
        here: The broker of `headway fleet tls` runs on this machine.
        broker, prefix, files: As `broker_options` gives them.

    Raises:
        ConfigError, KeyRefused: what was given does not fit together, or cannot be read.
    """
    from sdk.fleet.cli_enroll import service_settings
    from sdk.mqtt import MqttSettings

    if broker is None and files["ca_file"] is None:
        secured = service_settings(directory, here=here)
        if secured is not None:
            return secured, True
    return dataclasses.replace(MqttSettings.at(broker or DEFAULT_BROKER, prefix), **files), False
