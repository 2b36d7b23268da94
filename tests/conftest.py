"""Fixtures that several test files use."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from sdk.errors import BrokerError
from sdk.fleet.broker import Mosquitto, find_mosquitto
from sdk.fleet.database import name_database
from tests.postgres import Postgres, find_postgres, running_postgres

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Tests run side by side, and start processes: threads that spin for work cost the others more than they give.
for _library in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_library, "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script: children would inherit the deafness, and some tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


GC_AFTER: Final = 50_000
"""New objects between two looks for garbage; Python's 700 has torch's tracer looking without end."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage neither while all is imported nor, afterwards, among what was."""
    gc.disable()
    gc.set_threshold(GC_AFTER, *gc.get_threshold()[1:])
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real Chromium. Not for longer than a module: while it runs, nothing else on its thread has an event loop.

    Needs Debian's: apt-get install chromium.
    """
    from tests.pages import chromium

    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def graphs_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Torch writes each ONNX graph once for all processes of this run. For tests of what comes after it."""
    from tests.graphs import kept_in

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "graphs"
    folder.mkdir(exist_ok=True)
    with kept_in(folder):
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL on a free loopback port. Needs the system's: apt-get install postgresql."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with running_postgres(programs) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def fleet_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory for a fleet, kept in SQLite and, once more, in PostgreSQL."""
    directory = tmp_path / "fleet"
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        name_database(directory, server.new_database())
    return directory
