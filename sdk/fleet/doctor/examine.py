"""The whole ground on which a fleet's service stands, looked at in one walk."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sdk.clock_state import clock_synchronised
from sdk.clock_state import judged as clock_itself
from sdk.disk_check import free_bytes
from sdk.errors import FleetError, HeadwayError
from sdk.expiry import Expiry, Standing
from sdk.finding import Finding, Level
from sdk.fleet.blobs import blobs_of
from sdk.fleet.database import URL_NAME, database_errors, looking_engine_of
from sdk.fleet.doctor import broker, clock, database, devices, disk, keys, service
from sdk.fleet.doctor.seen import Seen, see
from sdk.fleet.expiry import expiries, grouped
from sdk.fleet.lost_chunks import Lacking, lacking
from sdk.fleet.one_service import Holder, holder_at, holder_here
from sdk.fleet.refusal import Refusals
from sdk.fleet.store import FleetStore
from sdk.owners import quote
from sdk.version import headway_version

_LEVELS: Final = {Standing.GOOD: Level.GOOD, Standing.SOON: Level.NOTE, Standing.OVER: Level.FAULT}
_WRONG_CLOCK: Final = "Certificates and signatures are judged by it, rollouts and retention too."


@dataclass(frozen=True)
class Machine:
    """What is asked of the machine; tests bring their own.

    Attributes:
        clock: UTC seconds.
        synchronised: See `sdk.clock_state.clock_synchronised`.
        free_bytes: See `sdk.disk_check.free_bytes`.
    """

    clock: Callable[[], float] = time.time
    synchronised: Callable[[], bool | None] = clock_synchronised
    free_bytes: Callable[[Path], int] = free_bytes


@dataclass
class Examination:
    """A fleet looked at once: iterate over it, and each finding comes as soon as it is known.

    Attributes:
        directory: The fleet's.
        way: Returns how its service reaches the broker; may raise a `HeadwayError`.
        machine: What is asked of the machine.
        ends: Afterwards, what ends when.
        lost: Afterwards, which releases lack chunks.
    """

    directory: Path
    way: Callable[[], broker.Way]
    machine: Machine = Machine()
    ends: list[Expiry] = field(default_factory=list)
    lost: list[Lacking] = field(default_factory=list)

    def __iter__(self) -> Iterator[Finding]:
        now_utc = self.machine.clock()
        what = f"Headway {headway_version()}, Python {platform.python_version()}, {platform.machine()}"
        yield Finding("machine", Level.GOOD, f"{what}, {os.cpu_count()} cores")
        yield from keys.examine(self.directory)
        answers, readable = yield from database.examine(self.directory)
        seen: Seen | None = None
        next_bytes, after = 0, list[Finding]()
        if readable:
            try:
                blobs_of(self.directory, looks=True)
            except HeadwayError as error:  # nobody can open the place: there is no store to look at
                yield Finding.of("chunks", error)
                readable = False
        if readable:
            try:
                with FleetStore(self.directory, looks=True) as store:
                    seen = see(store)
                    next_bytes = disk.release_bytes(store)
                    after += self._chunks(store)
            except HeadwayError as error:
                yield Finding.of("database", error)
        served = yield from self._service(seen, now_utc, answers=answers)
        channels = ["default"] if seen is None else [one["channel"] for one in seen.overview["channels"]]
        connected = seen is not None and seen.overview["broker_away"] is None
        yield from broker.examine(self.way, channels or ["default"], served=served, connected=connected)
        yield from disk.examine(self.directory, next_bytes, self.machine.free_bytes)
        yield clock_itself(now_utc, self.machine.synchronised(), then=_WRONG_CLOCK)
        yield from clock.judged(seen, clock.signed_utc(self.directory), now_utc)
        yield from self._trust(now_utc)
        yield from after
        if seen is not None:
            yield from devices.judged(self.directory, seen, now_utc, served=served)

    def _service(self, seen: Seen | None, now_utc: float, *, answers: bool) -> Generator[Finding, None, bool]:
        """Yield how the service is; return whether one runs, here or elsewhere."""
        here: Holder | None = None
        there: Holder | None = None
        try:
            here = holder_here(self.directory)
            if answers and (self.directory / URL_NAME).is_file():
                there = self._holder_of_database()
        except FleetError as error:
            yield Finding.of("service", error)
            return True  # for all that is known
        refusal = Refusals(self.directory).now()
        yield from service.judged(self.directory, here, there, seen, refusal, now_utc)
        return here is not None or there is not None

    def _holder_of_database(self) -> Holder | None:
        engine = looking_engine_of(self.directory)
        try:
            with database_errors(self.directory), engine.connect() as connection:
                return holder_at(connection)
        finally:
            engine.dispose()

    def _chunks(self, store: FleetStore) -> Iterator[Finding]:
        try:
            self.lost = lacking(store)
        except HeadwayError as error:  # of the place that keeps them, or of this user's rights
            yield Finding.of("chunks", error)
            return
        for one in self.lost:
            yield Finding(
                "chunks",
                Level.FAULT,
                f"{one.missing} of {one.chunks} chunks of {one.name} (channel {one.channel}) are missing or "
                "damaged: a device that lacks them cannot fetch it",
                f"headway fleet doctor --dir {quote(self.directory)} --mend-from BUNDLE, its very bundle",
            )
        if not self.lost:
            yield Finding("chunks", Level.GOOD, "those of every release in use are there and whole")

    def _trust(self, now_utc: float) -> Iterator[Finding]:
        """Yield what ends soon or has ended, and what renews it; of all else the first of a kind."""
        self.ends = expiries(self.directory)
        if not self.ends:
            what = "this fleet has neither keys nor certificates: nothing ends, and nothing is signed"
            yield Finding("trust", Level.GOOD, what)
        wanting = [one for one in self.ends if one.standing(now_utc) is not Standing.GOOD]
        for one in grouped(self.directory, wanting):
            yield Finding("trust", _LEVELS[one.standing(now_utc)], one.words(now_utc), one.renew)
        good = [one for one in self.ends if one not in wanting]
        many = Counter(one.kind for one in good)
        first = {one.kind: one for one in reversed(good)}.values()
        for one in sorted(first, key=lambda one: one.expires_utc):
            more = f" (the first of {many[one.kind]})" if many[one.kind] > 1 else ""
            yield Finding("trust", Level.GOOD, one.words(now_utc) + more)
