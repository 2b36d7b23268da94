"""Where devices find the fleet's broker, and which device was enrolled on which channel: `DIR/tls/place.json`.

`headway fleet enroll` and `revoke` write it (`sdk.fleet.cli_enroll`), together with the broker's access list. The
service reads it: what a device says of its channel is only what it says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from sdk.damaged import DAMAGED
from sdk.errors import KeyRefused
from sdk.wire import DEFAULT_PREFIX, ChannelName

TLS_FOLDER: Final = "tls"
TLS_PORT: Final = 8883
PLACE_NAME: Final = "place.json"

log = logging.getLogger(__name__)


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where devices find the fleet's broker, and which device is on which channel.

    Attributes:
        host: Name or address.
        port: TCP port.
        prefix: First part of every topic.
        channels: The enrolled devices and the channel of each.
    """

    host: str
    port: int = TLS_PORT
    prefix: str = DEFAULT_PREFIX
    channels: Mapping[str, ChannelName] = {}


def read_place(folder: Path) -> Place:
    """Return where the broker is.

    Raises:
        KeyRefused: `headway fleet tls` was not run, or its file is damaged or not ours to read.
    """
    file = folder / PLACE_NAME
    try:
        return msgspec.json.decode(file.read_bytes(), type=Place)
    except FileNotFoundError as error:
        raise no_broker(folder) from error
    except OSError as error:
        raise KeyRefused(f"{file}: {error.strerror}", hint="Let this command's user read it.") from error
    except DAMAGED as error:
        raise KeyRefused(f"{file} is damaged: {error}", hint="Put it back from a backup.") from error


def no_broker(folder: Path) -> KeyRefused:
    """Return the error that says so."""
    return KeyRefused(
        f"{folder} says no broker", hint=f"First: headway fleet tls --dir {folder.parent} --host HOST"
    )


class Enrolled:
    """Says on which channel each device was enrolled; nothing of a fleet without `headway fleet tls`.

    The file is read again when it has changed. One that cannot be read any more changes nothing.

    Args:
        directory: The fleet's.

    Raises:
        KeyRefused: the file is there, and cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._folder = directory / TLS_FOLDER
        self._channels: Mapping[str, str] = {}
        self._read = self._stamp()
        if self._read is not None:
            self._channels = read_place(self._folder).channels

    def __call__(self) -> Mapping[str, str]:
        """Return the enrolled devices and the channel of each.

        Cost: a look at the file's age.
        """
        stamp = self._stamp()
        if stamp not in (None, self._read):
            self._read = stamp
            try:
                self._channels = read_place(self._folder).channels
            except KeyRefused as error:
                log.warning("enrolments stay as they were read before: %s", error)
        return self._channels

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = (self._folder / PLACE_NAME).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
