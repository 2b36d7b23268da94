"""Real processes for tests that kill them: forked from a server that has everything imported already.

Starting Python and importing everything costs two seconds; a fork costs milliseconds. The server itself has no
threads, so a fork is as good as a fresh process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

DEADLINE_S: Final = 60.0

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.test_store", "tests.test_learner", "tests.test_update"])


class Doomed:
    """A process that will be killed.

    Args:
        target: A module's function; called with `args` and a callable that tells the test something.
        args: Must be picklable.
    """

    def __init__(self, target: Callable[..., None], *args: object) -> None:
        ours, theirs = _forks.Pipe(duplex=False)
        self._pipe: Connection = ours
        self._process = _forks.Process(target=_run, args=(target, args, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def told(self) -> Any:
        """Return the next thing it told; EOFError when it is dead and has told all."""
        if not self._pipe.poll(DEADLINE_S):
            raise AssertionError("the process says nothing")
        return self._pipe.recv()

    def kill(self) -> list[Any]:
        """Kill it with signal 9; return what it had told that nobody has read."""
        self._process.kill()
        self.join()
        return list(self._rest())

    def hang(self) -> None:
        """Stop it where it is: it takes connections, as the kernel does for it, and answers nothing."""
        os.kill(self._pid(), signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on from there."""
        os.kill(self._pid(), signal.SIGCONT)

    def _pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def join(self) -> int | None:
        """Wait for its end; return its exit code, negative for a signal."""
        self._process.join(DEADLINE_S)
        return self._process.exitcode

    def _rest(self) -> Iterator[Any]:
        # A message that was being written when the process died ends the stream as well.
        with contextlib.suppress(EOFError, OSError):
            while self._pipe.poll(0):
                yield self._pipe.recv()


def _run(target: Callable[..., None], args: tuple[object, ...], pipe: Connection) -> None:
    target(*args, pipe.send)
