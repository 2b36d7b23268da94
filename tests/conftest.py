"""Fixtures that several test files use."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from sdk.errors import BrokerError
from sdk.fleet.broker import Mosquitto, find_mosquitto

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script: children would inherit the deafness, and some tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    """A real Mosquitto with our configuration on a free loopback port; see its `kill`, `start` and `restart`.

    Needs the system's Mosquitto: apt-get install mosquitto.
    """
    try:
        find_mosquitto()
    except BrokerError as error:
        pytest.skip(f"{error}: {error.hint}")
    with Mosquitto() as broker:
        yield broker
