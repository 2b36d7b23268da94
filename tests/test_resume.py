"""What a service did not get before the agent ended it gets after the next start, once and in order."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from pathlib import Path

import pytest

from device_agent.agent import Agent
from device_agent.config import HttpOutput
from device_agent.history import read_history
from sdk.bundle import Bundle
from tests.simulators import wait_for
from tests.test_agent import COUNT, bundle, images, process, running, site_file, site_of
from tests.test_outputs import Service

__all__ = ["bundle", "images"]


def reached(folder: Path) -> list[int]:
    """Return how far outputs have come, as it is written down."""
    with contextlib.closing(sqlite3.connect(folder / "history" / "history.sqlite3")) as db:
        return [number for (number,) in db.execute("SELECT number FROM delivered")]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
def test_a_service_that_was_away_gets_what_waited_when_the_agent_ended(
    images: Path, bundle: Bundle, end: signal.Signals
) -> None:
    file, folder = site_file(images, bundle), images.parent / "data"
    with Service() as service:
        file.write_text(f'{file.read_text()}[[output]]\nkind = "http"\nurl = "{service.url}"\n')
        service.answers = [204, 204, *[503] * 1000]
        with process(file) as (child, _):
            wait_for(lambda: len(list(read_history(folder))) == COUNT and reached(folder) == [2])
            child.send_signal(end)
            child.wait(60)
        before = list(read_history(folder))
        assert len(service.posts) == 2
        service.answers.clear()
        with process(file):
            wait_for(lambda: len(service.posts) == len(list(read_history(folder))) == 2 * COUNT)
        after = [(row.run, row.number) for row in read_history(folder)]
        assert [(post["run"], post["number"]) for post in service.posts] == after
        assert [(row.run, row.number) for row in before] == after[:COUNT]


def test_starts_at_the_same_time_of_a_clock_are_runs_of_their_own(images: Path, bundle: Bundle) -> None:
    """One without a battery begins there at each start: the second run's verdicts were taken for the first's."""

    def start(parts: int, posts: int) -> None:
        with Agent(site, clock=lambda: 1_577_836_830.0) as agent, running(agent):
            wait_for(lambda: len(list(read_history(site.data_dir))) == parts and len(service.posts) == posts)

    with Service() as service:
        site = site_of(images, bundle.path, output=(HttpOutput(url=service.url),))
        start(COUNT, COUNT)
        service.answers = [503] * 1000
        start(2 * COUNT, COUNT)
        service.answers.clear()
        start(3 * COUNT, 3 * COUNT)
        told = [(post["run"], post["number"]) for post in service.posts]
    assert len(set(told)) == 3 * COUNT
    assert told == [(row.run, row.number) for row in read_history(site.data_dir)]
