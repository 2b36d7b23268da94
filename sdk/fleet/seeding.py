"""The chunks of releases on their way to the broker, and off it again when nobody needs them.

A new release's chunks go out first; when all are out, its channel's devices are told to fetch them. Later a device
that misses one asks for it. Old releases are cleared from the broker, and stay in the fleet's directory: what is
asked for all the same is there again for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sdk.errors import StoreCorrupt
from sdk.fleet.channel_ledger import Publication as Published
from sdk.fleet.garbage import WANTED_S, garbage, in_use
from sdk.fleet.notices import Notices
from sdk.fleet.registry import Seeder
from sdk.fleet.reports import Report
from sdk.fleet.saying import Saying
from sdk.fleet.store import FleetStore, Ledger
from sdk.mqtt import Publication

Garbage = list[tuple[Published, list[str]]]
"""Old releases, each with those of its chunks that nobody needs."""
_LOST: Final = "put it back from its bundle: headway fleet doctor --mend-from BUNDLE"


class Seeding:
    """Which chunks there are, which are on their way, and which are asked for.

    Args:
        store: The fleet.
        saying: Puts them into messages.
        notices: What devices are told when all chunks of a release are out.
        channels: Those that are served.
        report: Told what happened.
    """

    def __init__(
        self, store: FleetStore, saying: Saying, notices: Notices, channels: Sequence[str], report: Report
    ) -> None:
        self._store = store
        self._saying = saying
        self._notices = notices
        self._channels = tuple(channels)
        self._report = report
        self._seeder = Seeder()
        self._announcing: dict[int, str] = {}  # publications that wait for their chunks to be out -> channel
        self._known: frozenset[str] = frozenset()  # chunks of all releases
        self._cleared: dict[str, int] = {}  # chunks that nobody needs any more -> a publication that had them
        self._wanted: dict[int, float] = {}  # such publications that were asked for since -> when last
        self._tidy = True  # old chunks may be taken off the broker

    def load(self, ledger: Ledger) -> None:
        """Read which chunks there are."""
        there: set[str] = set()
        self._cleared = {}
        for channel in self._channels:
            for cleared in (False, True):
                for publication in ledger.publications(channel, cleared=cleared):
                    if cleared or publication.id in self._wanted:
                        self._cleared |= dict.fromkeys(publication.release.digests(), publication.id)
                    else:
                        there.update(publication.release.digests())
        self._known = frozenset(there | self._cleared.keys())
        for digest in there & self._cleared.keys():
            del self._cleared[digest]

    # Releases that are new, or that the broker may have forgotten

    def announce_new(self, ledger: Ledger, channel: str) -> bool:
        """Announce what of a channel's releases in use never was; return whether there was any."""
        new = [publication for publication in in_use(ledger, channel) if not publication.announced]
        for publication in new:
            self.announce(publication)
        return bool(new)

    def announce(self, publication: Published) -> None:
        """Publish a release's chunks first, then who should fetch them: `announced` goes on when all are out."""
        self._seeder.announce(publication.release.digests())
        self._announcing[publication.id] = publication.channel
        self._report(
            "release",
            {
                "channel": publication.channel,
                "release_id": publication.ref.release_id,
                "name": publication.ref.name,
            },
        )

    def announces(self, publication: Published) -> bool:
        """Return whether a release's chunks are on their way out, and its devices not told yet."""
        return publication.id in self._announcing

    def repeat(self, ledger: Ledger, channel: str) -> None:
        """Publish the chunks of a channel's releases in use again."""
        for publication in in_use(ledger, channel):
            self._seeder.announce(publication.release.digests())

    @property
    def busy_channels(self) -> set[str]:
        """Channels whose devices hear of a release when its chunks are out, and until then nothing."""
        return set(self._announcing.values())

    @property
    def busy(self) -> bool:
        """Whether there is anything to publish."""
        return bool(self._announcing) or not self._seeder.idle

    def announced(self) -> list[Publication]:
        """Return what devices are told of releases whose chunks are all out."""
        if not self._announcing or not self._seeder.idle:
            return []
        out: list[Publication] = []
        with self._store.write() as ledger:
            for publication_id, channel in self._announcing.items():
                out += self._notices.notice(ledger, channel)
                # Should the broker not get these after all: notices go out again on every connect, and chunks
                # when they are asked for.
                ledger.mark_announced(publication_id)
        self._announcing.clear()
        return out

    # Chunks that devices ask for

    def want(self, device: str, digests: Sequence[str], now: float) -> set[int]:
        """A device asks for chunks; return the cleared publications that some of them are of, for `keep`."""
        unknown = [digest for digest in digests if digest not in self._known]
        if unknown:
            self._report("unknown_chunks", {"device": device, "chunks": len(unknown)})
        cleared = {self._cleared[digest] for digest in digests if digest in self._cleared}
        seeding = self._seeder.want(device, (d for d in digests if d in self._known), now)
        if seeding:
            self._report("reseeding", {"device": device, "chunks": seeding})
        return cleared

    def keep(self, cleared: set[int], now: float) -> None:
        """Write down, before their chunks go out, that these publications are on the broker again, for a while."""
        if again := cleared - self._wanted.keys():
            with self._store.write() as ledger:
                for publication_id in again:
                    ledger.mark_cleared(publication_id, cleared=False)
        self._wanted |= dict.fromkeys(cleared, now)

    def chunks(self, room_bytes: int, now: float) -> list[Publication]:
        """Return chunks to publish, as many as there is room for; the last one may go beyond."""
        out: list[Publication] = []
        while room_bytes > 0 and (digest := self._seeder.next(now)) is not None:
            try:
                chunk = self._store.chunks.get(digest)
            except StoreCorrupt as error:  # the place is away; whoever needs the chunk asks again
                self._report("unavailable_chunk", {"chunk": digest, "error": str(error)})
                continue
            if chunk is None:
                self._report("damaged_chunk", {"chunk": digest, "error": _LOST})
                continue
            out.append(self._saying.chunk(digest, chunk))
            room_bytes -= len(chunk)
        return out

    # Chunks that nobody needs any more

    def look_again(self) -> None:
        """Something has changed, and chunks may be needed no more."""
        self._tidy = True

    def let_go(self, now: float) -> None:
        """Keep what was asked for long ago no longer."""
        for over in [wanted for wanted, last in self._wanted.items() if now >= last + WANTED_S]:
            del self._wanted[over]
            self._tidy = True

    def garbage(self, ledger: Ledger, now_utc: float) -> Garbage:
        """Return what nobody needs any more, for `clear`; nothing while a release is on its way out."""
        if not self._tidy or self._announcing:
            return []
        self._tidy = False
        return garbage(ledger, self._channels, now_utc, self._wanted)

    def clear(self, old: Garbage) -> list[Publication]:
        """Return what takes these chunks off the broker, and write down that they are."""
        out: list[Publication] = []
        if old:
            with self._store.write() as ledger:
                for publication, digests in old:
                    ledger.mark_cleared(publication.id)
                    out += [self._saying.chunk(digest, b"") for digest in digests]
                    self._report("cleared", {"name": publication.ref.name, "chunks": len(digests)})
                self.load(ledger)
        return out
