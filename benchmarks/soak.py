"""A long day in minutes: an agent inspects as fast as it can, is labelled, corrected and relearns all the time.

    python -m benchmarks.soak BUNDLE --images DIR --minutes 20 --out soak

Labels come in bursts, and after each the head's trial is waited for. Then memory, open files, threads, size of the
store and latency are written to `soak.csv`: of memory the lowest and the highest of the burst and its trial, which
are what is kept, and with it what solves and trials hold for a moment. At the end `soak.svg` shows them and the
slopes are held against what a year on a line allows. The exit code is 1 where one is over.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np

from device_agent.memory import give_back_memory

LABEL_EVERY_S: Final = 0.25
BURST: Final = 36
"""Labels before a trial is waited for: 2,600 in 72 bursts are a year of a busy operator (T22)."""
REST_S: Final = 30.0
"""A trial that takes longer beside frames at full speed is not waited for."""
WATCH_S: Final = 0.1
"""Between two readings of memory."""
WARM_UP: Final = 0.3
"""Share of the run in which caches fill; slopes are taken after it."""
MAX_MIB_PER_1000_LABELS: Final = 1.0
MAX_DRIFT: Final = 1.10
MB: Final = 1_000_000


@dataclass(frozen=True)
class Point:
    """What the process was at one moment."""

    at_s: float
    frames: int
    labels: int
    heads: int
    lowest_mb: float
    highest_mb: float
    files: int
    threads: int
    store_mb: float
    p99_ms: float
    errors: int


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="a folder of frames")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--precision", default=None)
    parser.add_argument("--out", type=Path, default=Path("soak"), help="without ending")
    options = parser.parse_args()
    give_back_memory()
    points = soak(options.bundle, options.images, options.precision, options.minutes * 60)
    with options.out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)
    draw(points, options.out.with_suffix(".svg"))
    return judge(points)


def soak(bundle: Path, images: Path, precision: str | None, seconds: float) -> list[Point]:
    """Run an agent for so long, and return what it was every ten seconds."""
    from device_agent.agent import Agent
    from device_agent.config import FolderCamera, PageSettings, Site

    roll, stop, labels = random.Random(0), threading.Event(), 0
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        site = Site(
            device="line-1",
            camera=FolderCamera(path=images, loop=True),
            data_dir=Path(folder) / "data",
            bundle=bundle,
            precision=precision,  # type: ignore[arg-type]
            page=PageSettings(port=0),
        )
        with Agent(site) as agent:
            line = threading.Thread(target=agent.run, args=(stop,))
            line.start()
            began = time.monotonic()
            try:
                while time.monotonic() - began < seconds:
                    with Watch() as memory:
                        for _ in range(BURST):
                            samples = agent.store.samples(limit=200)
                            classes = agent.station.classes()
                            if samples and classes:
                                chosen = None if roll.random() < 0.05 else roll.choice(classes).class_id
                                agent.station.label(roll.choice(samples).sample_id, chosen, "soak")
                                labels += 1
                            time.sleep(LABEL_EVERY_S)
                        if classes:
                            agent.station.require().learner.wait_until_idle(REST_S)
                    at_s = time.monotonic() - began
                    points.append(point(agent.site.data_dir, at_s, agent.state(), labels, agent.station, memory))
                    print(points[-1], file=sys.stderr, flush=True)
            finally:
                stop.set()
                line.join()
    return points


class Watch:
    """The lowest and the highest resident memory of this process while the block runs."""

    def __init__(self, every_s: float = WATCH_S) -> None:
        self._every_s = every_s
        self.lowest_mb = self.highest_mb = resident_mb()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._every_s):
            now_mb = resident_mb()
            self.lowest_mb, self.highest_mb = min(self.lowest_mb, now_mb), max(self.highest_mb, now_mb)


def resident_mb() -> float:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def point(data_dir: Path, at_s: float, state: object, labels: int, station: object, memory: Watch) -> Point:
    """Return what this process is now."""
    from device_agent.heads_and_updates import Outcome
    from device_agent.report import State
    from device_agent.station import Station

    assert isinstance(state, State)
    assert isinstance(station, Station)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    said = {line.split(":")[0]: line.split()[1] for line in lines if len(line.split()) > 1}
    latencies = list(station.latencies_ms)
    rows = station.require().learner.history(limit=10_000)
    return Point(
        at_s=at_s,
        frames=state.frames,
        labels=labels,
        heads=sum(row.outcome in (Outcome.CONFIRMED, Outcome.TAKEN_BACK) for row in rows),
        lowest_mb=memory.lowest_mb,
        highest_mb=memory.highest_mb,
        files=len(os.listdir("/proc/self/fd")),
        threads=int(said["Threads"]),
        store_mb=sum(each.stat().st_size for each in data_dir.glob("store.sqlite3*")) / MB,
        p99_ms=float(np.percentile(latencies, 99)) if latencies else 0.0,
        errors=state.errors,
    )


def judge(points: list[Point]) -> int:
    """Print the slopes after the warm-up; return 1 where one is over its limit."""
    warm = [each for each in points if each.at_s >= WARM_UP * points[-1].at_s]
    kept = slope([(each.labels, each.lowest_mb) for each in warm])
    held = slope([(each.labels, each.highest_mb) for each in warm])
    third = max(1, len(warm) // 3)
    early = float(np.median([each.p99_ms for each in warm[:third]]))
    late = float(np.median([each.p99_ms for each in warm[-third:]]))
    last = points[-1]
    files = last.files - warm[0].files
    threads = last.threads - warm[0].threads
    print(
        f"{last.frames} frames, {last.labels} labels and {last.heads} heads that ended their trial in "
        f"{last.at_s / 60:.0f} minutes, {last.errors} errors\n"
        f"resident memory, for 1,000 labels (at most {MAX_MIB_PER_1000_LABELS} MiB): the lowest of each burst "
        f"{kept:+.2f} MiB, {last.lowest_mb:.0f} MB at the end; the highest {held:+.2f} MiB, "
        f"{max(each.highest_mb for each in points):.0f} MB at most\n"
        f"p99 latency {early:.1f} ms early, {late:.1f} ms late (at most {MAX_DRIFT:.2f} times)\n"
        f"open files {files:+d}, threads {threads:+d}, store {last.store_mb:.1f} MB"
    )
    over = (
        max(kept, held) > MAX_MIB_PER_1000_LABELS or late > MAX_DRIFT * early or abs(files) > 3 or abs(threads) > 3
    )
    return int(over or last.errors > 0)


def slope(readings: list[tuple[int, float]]) -> float:
    """Return MiB for 1,000 labels, from labels and MB: the median slope of all pairs (Theil and Sen)."""
    pairs = [(a, b) for i, a in enumerate(readings) for b in readings[i + 1 :] if a[0] < b[0]]
    return float(np.median([(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs])) * 1000 * MB / 1024**2


def draw(points: list[Point], file: Path) -> None:
    """Draw what was measured."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 1, sharex=True, figsize=(8, 9), layout="constrained")
    minutes = [each.at_s / 60 for each in points]
    for axis, (names, label) in zip(
        axes,
        (
            (("highest_mb", "lowest_mb"), "resident, MB"),
            (("p99_ms",), "p99, ms"),
            (("store_mb",), "store, MB"),
            (("files",), "open files"),
        ),
        strict=True,
    ):
        for name in names:
            axis.plot(minutes, [getattr(each, name) for each in points])
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    figure.savefig(file)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
