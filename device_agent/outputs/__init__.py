"""Verdicts to the outside: each output on a thread of its own, so that a slow one delays neither the line nor
another.

Rules kept here:

- The flow hands a verdict over and goes on. An output that cannot be reached is tried again for ever, waiting
  longer.
- An output that acts on the line (`replays` false: a coil) gets each verdict when it falls or never: one that
  comes late, because it was tried before or waited behind others, would hit another part. One that records
  (`replays` true) gets all of them in order, as many as may wait.
- One that takes several at once (`GroupedOutput`: the history) is given what has come meanwhile, in order. What it
  refuses together it is given one by one, so that one bad verdict takes no other along.
- What is not delivered is counted and told of in the state. It is a fault of the state until a verdict arrives;
  one alone only until a beat does, for after it a line may stand still. The device's own record is its history.
- What waits when the agent stops, or is killed, goes first after the next start where the output lasts
  (`LastingOutput`), read from the history. A stop says what it leaves, and what the history has not got either.
- When the agent stops, open parts are rejected first (`parts`), and each output is left saying reject (`close`).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from device_agent.config import HttpOutput, ModbusOutput, OutputSettings
from device_agent.histogram import Histogram
from device_agent.parts import KeptPart, Part
from device_agent.plugins import OUTPUTS, load
from sdk.errors import HeadwayError, OutputFailed, OutputRefused
from sdk.wire import Verdict

_log = logging.getLogger(__name__)

WAITING_PARTS: Final = 4096
"""Verdicts that may wait for one output: over three minutes at 20 a second."""
GROUP_S: Final = 0.02
"""An output that takes several verdicts at once is given what came within this long after it took the last: one
verdict at a time up to 50 parts a second, and beyond no more than 50 transactions."""
GROUP_PARTS: Final = 256
"""So many at once at most: a millisecond or two of the history's."""
BEAT_S: Final = 1.0
"""How often an output may show that the agent is alive."""
LATE_S: Final = 1.0
"""A verdict that has waited so long for an output that acts on the line is of a part that has passed: by then the
station rejects by itself what it has not heard of (`[part] decide_within_ms`)."""
RETRY_S: Final = 0.2
RETRY_MAX_S: Final = 10.0
STOP_TIMEOUT_S: Final = 3.0
_NEVER: Final = (OutputRefused, UnicodeEncodeError, TypeError, sqlite3.IntegrityError)
"""What says that a verdict cannot be written at all, so that trying again is no use and those behind it would wait
for ever. Not any ValueError: what a service answered may be as little JSON as now, and better later."""


class Output(Protocol):
    """Somewhere that verdicts go. One thread calls it.

    Attributes:
        name: For people.
        replays: A verdict that could not be delivered is worth delivering later.
    """

    name: str
    replays: bool

    def send(self, part: Part) -> None:
        """Deliver one verdict.

        Raises:
            OutputFailed: it could not be; OutputRefused: and trying again is no use.
        """

    def beat(self) -> None:
        """Show that the agent is alive; called about every `BEAT_S`.

        Raises:
            OutputFailed: nobody is there to see it.
        """

    def close(self) -> None:
        """Leave "reject" behind, as far as there is anybody to tell, and let go. Called once; raises nothing."""


@runtime_checkable
class GroupedOutput(Output, Protocol):
    """An output that replays and takes several verdicts at once for less."""

    def send_all(self, parts: Sequence[Part]) -> None:
        """Deliver verdicts, at least one, in order: all or none.

        Raises:
            OutputFailed: they could not be; OutputRefused: and trying all of them again is no use.
        """


@runtime_checkable
class LastingOutput(Output, Protocol):
    """An output that replays and goes on after a restart where it was.

    What it lacks of earlier runs comes as `KeptPart`, and may be what it has: a kill, or a post whose answer did
    not arrive, sends a verdict twice.

    Attributes:
        resumes_as: Names this receiver from one start to the next.
    """

    resumes_as: str


@dataclass
class OutputTally:
    """What an output has done; read by others while it runs.

    Attributes:
        sent: Verdicts delivered.
        dropped: Verdicts that were not and will not be.
        fault: Why the newest ones, or a beat since, were not; empty when they were.
    """

    sent: int = 0
    dropped: int = 0
    fault: str = ""


class _Worker:
    def __init__(
        self, output: Output, name: str, kept: Sequence[KeptPart], reached: Callable[[Part], None] | None
    ) -> None:
        self.output = output
        self.name = name
        self.tally = OutputTally()
        self.latency = Histogram()
        self._grouped = output if isinstance(output, GroupedOutput) else None
        # Bounded by `put`: one thread at a time hands verdicts over, with the ledger's lock. Written in C it takes
        # less of the thread that decides than a `queue.Queue`.
        self._waiting: queue.SimpleQueue[Part] = queue.SimpleQueue()
        for part in kept:
            self._waiting.put(part)
        self._reached = reached
        self._newest: Part | None = None  # the last that is done with and not written down as such
        self._left = list[Part]()  # given up by a stop
        self._last = -1  # number of the last verdict of this run that was delivered
        self._lacking = deque[int](maxlen=2 * WAITING_PARTS)  # before it, of those that may still wait elsewhere
        self._in_hand = 0  # taken from the queue, and tried
        self._stopping = threading.Event()
        self._refused = False
        self._missed = self._forgiven = False  # a verdict since the last that arrived; one such, by a beat
        self._next_group_s = 0.0
        self._thread = threading.Thread(target=self._run, name=f"output {output.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, part: Part) -> None:
        if self._waiting.qsize() < WAITING_PARTS:
            self._waiting.put(part)
        else:
            self._drop([part])

    def _drop(self, parts: Sequence[Part]) -> None:
        self.tally.dropped += len(parts)
        self._lacking.extend(part.number for part in parts)

    def has(self, part: Part) -> bool:
        """Return whether a verdict that was put to all outputs, or of an earlier run, was delivered here."""
        return isinstance(part, KeptPart) or (part.number <= self._last and part.number not in self._lacking)

    @property
    def depth(self) -> int:
        return self._waiting.qsize() + self._in_hand

    def stop(self) -> None:
        """Deliver what waits, within a bound, and close the output."""
        self._stopping.set()
        if self._thread.ident is None:
            self.output.close()  # never started
        else:
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                _log.warning("%s: did not stop in time; %d verdicts waited", self.name, self.depth)

    def _run(self) -> None:
        beat_s, give_up_s = 0.0, float("inf")
        while True:
            if self._stopping.is_set():
                give_up_s = min(give_up_s, time.monotonic() + STOP_TIMEOUT_S / 2)
            try:
                part = self._waiting.get(timeout=0.0 if self._stopping.is_set() else BEAT_S / 4)
            except queue.Empty:
                if self._stopping.is_set():
                    break
            else:
                if self._has_passed(part):
                    self._drop([part])
                else:
                    parts = self._with_those_behind(part)
                    self._in_hand = len(parts)
                    self._deliver(parts, give_up_s)
                    self._in_hand = 0
            now_s = time.monotonic()
            if now_s > give_up_s or self._left:
                break
            if now_s >= beat_s:
                beat_s = now_s + BEAT_S
                self._write_down()
                self._try(())
        self._write_down()
        while not self._waiting.empty():
            self._left.append(self._waiting.get())
        self.output.close()

    def _done_with(self, part: Part) -> None:
        if self._reached is not None:  # else it would only keep the part's frame in memory
            self._newest = part

    def _write_down(self) -> None:
        """Let the next start know how far this output has come."""
        if self._newest is None or self._reached is None:
            return
        with contextlib.suppress(HeadwayError):  # a full disk: the history has said so
            self._reached(self._newest)
            self._newest = None

    def tell_what_is_left(self, history: _Worker) -> None:
        """Say what a stop has given up: what the next start reads from the history, and what is lost.

        Args:
            history: Stopped, too.
        """
        if self._thread.is_alive():
            return  # it was said that it did not stop
        waits = [part for part in self._left if self._reached is not None and history.has(part)]
        kept = {id(part) for part in waits}
        lost = [part for part in self._left if id(part) not in kept]
        self._drop(lost)
        why = "" if self._reached is None else ", since the history has not got them"
        for parts, fate in ((waits, "wait for the next start"), (lost, f"are not delivered and will not be{why}")):
            if parts:
                first, last = (part.name or f"number {part.number}" for part in (parts[0], parts[-1]))
                _log.warning("%s: %d verdicts %s, parts %s to %s", self.name, len(parts), fate, first, last)

    def _with_those_behind(self, part: Part) -> list[Part]:
        """Return a verdict with those that follow it closely, as many as the output takes at once."""
        parts = [part]
        if self._grouped is not None:
            if (wait_s := self._next_group_s - time.monotonic()) > 0:
                self._stopping.wait(wait_s)
            while len(parts) < GROUP_PARTS and not self._waiting.empty():
                parts.append(self._waiting.get())  # nobody else takes one
            self._next_group_s = time.monotonic() + GROUP_S
        return parts

    def _has_passed(self, part: Part) -> bool:
        """Return whether a verdict waited too long behind others, while an output that acts hung or was away.

        A rejection that nothing newer follows is delivered however late, so that no pass is left standing.
        """
        late = not self.output.replays and time.monotonic() - part.decided_s >= LATE_S
        return late and (part.verdict is Verdict.PASS or not self._waiting.empty())

    def _deliver(self, parts: Sequence[Part], give_up_s: float) -> None:
        wait_s = RETRY_S
        if self._left:  # none overtakes what a stop has given up
            self._left += parts
            return
        while not self._try(parts):
            if self._refused and len(parts) > 1:
                self._deliver_each(parts, give_up_s)
                return
            if self._refused or not self.output.replays:
                self._drop(parts)
                self._done_with(parts[-1])
                return
            self._write_down()  # what went before: this may be tried for long
            if time.monotonic() + wait_s > give_up_s:
                self._left += parts
                return
            if self._stopping.wait(wait_s):
                give_up_s = min(give_up_s, time.monotonic() + STOP_TIMEOUT_S / 2)
                time.sleep(RETRY_S)
            wait_s = min(2 * wait_s, RETRY_MAX_S)
        self.tally.sent += len(parts)
        self._last = max(self._last, *(part.number for part in parts if not isinstance(part, KeptPart)), -1)
        self._done_with(parts[-1])
        for part in parts:
            if isinstance(part, KeptPart):
                continue  # its capture was before a restart
            self.latency.add((time.monotonic() - part.captured_s) * 1000)

    def _deliver_each(self, parts: Sequence[Part], give_up_s: float) -> None:
        """Deliver what was refused together one by one: one of them may be why."""
        for part in parts:
            if self._stopping.is_set():
                give_up_s = min(give_up_s, time.monotonic() + STOP_TIMEOUT_S / 2)
            self._deliver([part], give_up_s)

    def _try(self, parts: Sequence[Part]) -> bool:
        """Deliver verdicts, or a beat for none; return whether that worked."""
        try:
            if not parts:
                self.output.beat()
            elif self._grouped is not None:
                self._grouped.send_all(parts)
            else:
                self.output.send(parts[0])
        except Exception as error:  # noqa: BLE001 - the thread's outermost loop: an output must not end by a verdict
            fault = str(error) if isinstance(error, HeadwayError) else f"{type(error).__name__}: {error}"
            if fault != self.tally.fault:
                _log.warning("%s: %s", self.name, fault, exc_info=not isinstance(error, OutputFailed))
            self.tally.fault = fault
            self._missed = self._missed or bool(parts)
            self._refused = isinstance(error, _NEVER)
            return False
        if parts:
            self._missed = self._forgiven = False
        elif self._missed and self._forgiven:
            return True  # it beats and takes no verdict: a service that refuses each, a register that is not there
        elif self._missed:
            self._missed, self._forgiven = False, True
        self.tally.fault = ""
        return True


def open_output(settings: OutputSettings, device: str, run: str) -> Output:
    """Return the output that a table of the settings names. Nothing is connected yet.

    Args:
        settings: One `[[output]]` table.
        device: This device's id.
        run: Names this run of the agent, and no other.

    Raises:
        ConfigError: it cannot be used, or a plug-in refuses its keys.
        MissingExtra: its library is not installed.
    """
    if isinstance(settings, HttpOutput):
        from device_agent.outputs.http import HttpPosts

        return HttpPosts(settings, device, run)
    if isinstance(settings, ModbusOutput):
        from device_agent.outputs.modbus import ModbusCoils

        return ModbusCoils(settings)
    opened: Output = load(OUTPUTS, settings.plugin)(settings.options)
    return opened


class Outputs:
    """All outputs of a station."""

    def __init__(self) -> None:
        self._workers: list[_Worker] = []

    def add(
        self,
        output: Output,
        kept: Sequence[KeptPart] = (),
        reached: Callable[[Part], None] | None = None,
    ) -> None:
        """Let verdicts go there too; before `start`. A name that another has gets a number: metrics and people
        go by it.

        Args:
            output: Where they go.
            kept: What it lacks of earlier runs.
            reached: Told now and then up to which verdict it needs none any more; with it, what waits at a stop
                is not lost.
        """
        same = sum(worker.output.name == output.name for worker in self._workers)
        name = f"{output.name} ({same + 1})" if same else output.name
        self._workers.append(_Worker(output, name, kept, reached))

    def start(self) -> None:
        """Begin to deliver."""
        for worker in self._workers:
            worker.start()

    def put(self, part: Part) -> None:
        """Hand a verdict to every output; returns at once."""
        for worker in self._workers:
            worker.put(part)

    def stop(self) -> None:
        """Deliver what waits, within a bound, and leave every output saying reject. The first is stopped last: it
        is the history, in which the others write down how far they came."""
        for worker in (*self._workers[1:], *self._workers[:1]):
            worker.stop()
        for worker in self._workers:
            worker.tell_what_is_left(self._workers[0])

    def report(self) -> list[tuple[str, OutputTally, int, Histogram]]:
        """Return for each output its name, what it did, how many verdicts wait, and capture to delivery."""
        return [(w.name, w.tally, w.depth, w.latency) for w in self._workers]
