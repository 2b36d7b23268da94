"""A signal may come while the main thread holds the very lock that setting the event needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from sdk.stopping import stop_on_signals
with stop_on_signals() as stop:
    with stop.event._cond:  # as inside Event.wait
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        for _ in range(1000):
            pass
    assert stop.event.wait(60)
    print(stop.interrupted)
"""


@pytest.mark.parametrize(("name", "interrupted"), [("SIGINT", "True"), ("SIGTERM", "False")])
def test_a_signal_in_the_middle_of_a_wait_stops_and_does_not_hang(name: str, interrupted: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, interrupted), ended.stderr


def test_the_second_signal_ends_the_process_at_once() -> None:
    program = PROGRAM.replace("    assert", "    os.kill(os.getpid(), getattr(signal, sys.argv[1]))\n    assert")
    ended = subprocess.run(
        [sys.executable, "-c", program, "SIGTERM"], capture_output=True, timeout=30, check=False
    )
    assert ended.returncode == -15
