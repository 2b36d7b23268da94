"""What a device does on an eventful day, as a process whose every write is noted.

It installs a release, labels, corrects and withdraws, installs a new release with another feature space, and
labels again, all with the real store, learner, updater and chunk store. After each thing that a person may rely on
it says so in `marks`, as one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from sdk.bundle import Bundle
from sdk.landing import Landing
from sdk.release import describe
from sdk.wire import ReleaseRef, UpdateState
from tests.builders import class_id_of
from tests.test_learner import see
from tests.test_update import rig_on

GOOD, SCRATCH = class_id_of("good"), class_id_of("scratch")
LIMITS = StoreLimits(reserve_bytes=0)


class Fetcher:
    """`ChunkFetcher` without its network: chunks come from a bundle on disk, and go the real way from there."""

    def __init__(self, folder: Path, sources: dict[str, Path]) -> None:
        self._folder = folder
        self._sources = sources

    def __call__(
        self,
        ref: ReleaseRef,
        target: Path,
        *,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        stop: threading.Event | None = None,
    ) -> object | None:
        assert stop is not None
        source, chunks = self._sources[ref.name], dict[str, bytes]()
        names = sorted(each.name for each in source.iterdir())
        release = describe(source, ref.name, names, put=chunks.__setitem__)
        landing = Landing(release, self._folder)
        for digest in set(release.digests()[1:]) - landing.resume():
            landing.put(digest, chunks[digest])
        landing.finish(target)
        progress(1, 1)
        return target


def main(root: Path, bundle_folder: Path, marks: Path) -> None:
    """Live through the day."""
    out = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def mark(**what: object) -> None:
        os.write(out, json.dumps(what).encode() + b"\n")

    bundles = {name: Bundle.open(bundle_folder / name) for name in ("old", "new")}
    with rig_on(root, bundles) as rig:
        rig.fetcher = Fetcher(root / "chunks", {name: bundle.path for name, bundle in bundles.items()})
        rig.on_event = lambda event: (
            mark(committed=event.release_id) if event.state is UpdateState.COMMITTED else None
        )

        def label(bundle: Bundle, name: str, number: int, *class_ids: bytes | None) -> None:
            learner = Learner(bundle, None, rig.store)
            sample = see(rig.store, bundle, name, number)
            for class_id in class_ids:
                learner.label(sample, class_id, "anna")
                mark(entries=rig.store.log.length(), picture=sample.hex() if class_id else None)

        rig.updater.boot()
        rig.install(bundles["old"])
        label(bundles["old"], "good", 1, GOOD)
        label(bundles["old"], "scratch", 2, SCRATCH)
        label(bundles["old"], "scratch", 3, GOOD, SCRATCH)
        label(bundles["old"], "good", 4, SCRATCH, None)
        rig.install(bundles["new"])
        label(bundles["new"], "scratch", 5, SCRATCH)
        mark(done=True)


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:]))
