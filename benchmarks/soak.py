"""A long day in minutes: an agent inspects as fast as it can, is labelled all the time, and meets with trouble.

    python -m benchmarks.soak BUNDLE --images DIR --minutes 20 --out soak
    python -m benchmarks.soak BUNDLE --images DIR --rate 216      three days of a frame a second (T22)
    python -m benchmarks.soak BUNDLE --images DIR --drops 0 --updates 0 --reboots 0      one long life

Agent, fleet service and Mosquitto are processes of their own. While frames pass, an operator labels over the
page's interface in bursts, and after each the head's trial is waited for. Meanwhile the broker is killed thirty
times, twelve releases are published, and the agent ends six times, every other time without being asked. Memory of
the agent (of a burst and its trial the lowest, which is kept, and the highest), open files, threads, disk and
latency go to `soak.csv`, and `soak.svg` shows them. At the end every label that was answered for must be at the
fleet, and the slopes are held against what a year on a line allows. The exit code is 1 where something is over or
lost.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import random
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Final

import httpx
import numpy as np

from benchmarks.process import Watch, open_files, taken
from benchmarks.soak_line import IMAGE_QUOTA_MIB, SoakLine
from benchmarks.soak_slope import Reading, Slope, between_lives, within_a_life
from sdk.demo.plant import DemoFailed
from sdk.labels import Body, Label

LABEL_EVERY_S: Final = 0.25
BURST: Final = 36
"""Labels before a trial is waited for: 2,600 in 72 bursts are a year of a busy operator (T22)."""
WITHDRAWN: Final = 0.05
"""Of the labels."""
REST_S: Final = 30.0
"""A trial that takes longer beside frames at full speed is not waited for."""
LOOK_EVERY_S: Final = 2.0
"""An operator looks for new pictures."""
STILL_S: Final = 0.5
"""After a trial nothing is learned for so long: the lowest memory of a burst is then what is kept."""
PICTURES: Final = 50
"""The newest, of which one is labelled."""
AWAY_S: Final = 0.2
"""An operator whose device is away looks again after this."""
ARRIVED_S: Final = 120.0
"""After the last trouble: until the fleet has everything."""
WARM_UP: Final = 0.3
"""Share of the time between two reboots in which caches fill; slopes are taken after it."""
MAX_MIB_PER_1000_LABELS: Final = 1.0
SAME_START_S: Final = 3.0
"""Two readings of one life tell its start as much apart at most."""
MAX_DRIFT: Final = 1.10
UPDATE: Final = "soak-"
"""What releases are called that come meanwhile, with a number."""
MAX_OVER_MIB: Final = 1.0
"""A picture is written before others go for it."""
MAX_MORE: Final = 3
"""Open files, and threads, at the end beyond those at the first reading."""
MB: Final = 1_000_000


@dataclass(frozen=True)
class Point:
    """What the agent was at one moment.

    Attributes:
        at_s: Since the soak began.
        age_s: Since the agent started.
        frames: Inspected in all, those before its reboots included.
        labels: Answered for in all.
        lowest_mb, highest_mb: Resident, in the burst that ends here.
        backbone_p99_ms: Since the agent started; at most 9 % too high (`device_agent.histogram`).
        verdict_p99_ms: From frame to verdict, of the results heard of in that burst; 0 where there were none. Most
            of it is waiting: frames come as fast as they are taken.
        errors: Since the agent started.
    """

    at_s: float
    age_s: float
    frames: int
    labels: int
    release: str
    lowest_mb: float
    highest_mb: float
    files: int
    threads: int
    store_mb: float
    images_mb: float
    backbone_p99_ms: float
    verdict_p99_ms: float
    errors: int


@dataclass
class Soaked:
    """What a soak showed.

    Attributes:
        points: One for each burst.
        befell: When, and what.
        answered: Labels that an operator was told are saved: first and last log entry, sample, class.
        refused: Labels that the operator was told are not saved: the picture had gone, or the agent was ending.
        unanswered: Labels whose answer never came, since the agent ended meanwhile.
        at_the_fleet: The device's log as the fleet has it in the end.
    """

    points: list[Point] = field(default_factory=list)
    befell: list[tuple[float, str]] = field(default_factory=list)
    answered: list[tuple[int, int, bytes, bytes | None]] = field(default_factory=list)
    refused: int = 0
    unanswered: int = 0
    at_the_fleet: dict[int, Body] = field(default_factory=dict)

    def lost(self) -> int:
        """Return how many labels were answered for and are not at the fleet."""

        def there(first: int, last: int, sample: bytes, class_id: bytes | None) -> bool:
            said = [self.at_the_fleet.get(seq) for seq in range(first, last + 1)]
            return any(isinstance(x, Label) and (x.sample, x.class_id) == (sample, class_id) for x in said)

        return sum(not there(*each) for each in self.answered)


def main(arguments: list[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, required=True, help="a folder of frames")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--precision", default=None)
    parser.add_argument(
        "--rate", type=float, default=0.0, help="frames a second; 0 is as fast as they can be inspected"
    )
    parser.add_argument("--drops", type=int, default=30, help="of the broker")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--reboots", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("soak"), help="without ending")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, as Ctrl-C does
    seconds = options.minutes * 60
    with (
        tempfile.TemporaryDirectory() as folder,
        SoakLine(Path(folder), options.bundle, options.images, options.precision, options.rate) as line,
    ):
        soaked = Soak(line, seconds, options.drops, options.updates, options.reboots).run()
    with options.out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [each.name for each in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in soaked.points)
    draw(soaked, options.out.with_suffix(".svg"))
    return judge(soaked, seconds / (options.reboots + 1))


class Soak:
    """One soak: an operator, trouble on a thread beside, and readings after each burst."""

    def __init__(self, line: SoakLine, seconds: float, drops: int, updates: int, reboots: int) -> None:
        self._line, self._seconds = line, seconds
        self._roll, self._over = random.Random(0), threading.Event()
        self._began_s = self._started_s = time.monotonic()
        self._frames_before = 0
        self._trouble: Future[None] = Future()
        self._found = Soaked()
        self._samples: list[str] = []
        self._classes: list[str] = []
        self._looked_s = -LOOK_EVERY_S
        self._plan = sorted(
            [(seconds * (i + 0.5) / drops, "drop", line.drop_broker) for i in range(drops)]
            + [(seconds * (i + 0.3) / updates, "update", self._update(i)) for i in range(updates)]
            + [(seconds * (i + 1) / (reboots + 1), "reboot", self._reboot(i)) for i in range(reboots)],
            key=lambda each: each[0],
        )

    def run(self) -> Soaked:
        """Soak, and return what was found once agent and service have ended.

        Raises:
            DemoFailed: a process ended by itself, or the fleet never had everything.
        """
        with ThreadPoolExecutor(1) as beside:
            self._trouble = beside.submit(self._befall)
            try:
                while self._now_s() < self._seconds and not self._has_failed():
                    with Watch(lambda: self._line.pid) as memory:
                        for _ in range(BURST):
                            self._label()
                            time.sleep(LABEL_EVERY_S)
                        self._wait_for_trial()
                        time.sleep(STILL_S)
                    self._found.points.append(self._point(memory))
                    print(self._found.points[-1], file=sys.stderr, flush=True)
            finally:
                self._over.set()
        self._trouble.result()
        self._line.device.wait(
            "everything arriving", lambda state: state["mqtt"]["connected"] and state["outbox"] == 0, ARRIVED_S
        )
        self._line.stop_all()
        self._found.at_the_fleet = self._line.at_the_fleet()
        return self._found

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s

    # -- trouble

    def _befall(self) -> None:
        for at_s, what, happen in self._plan:
            if self._over.wait(max(0.0, at_s - self._now_s())):
                return
            self._found.befell.append((self._now_s(), what))
            happen()

    def _has_failed(self) -> bool:
        return self._trouble.done() and self._trouble.exception() is not None

    def _update(self, number: int) -> Callable[[], None]:
        return lambda: self._line.update(f"{UPDATE}{number + 1}")

    def _reboot(self, number: int) -> Callable[[], None]:
        def happen() -> None:
            self._frames_before += self._line.device.state()["frames"]
            self._line.reboot(cut=number % 2 == 1)
            self._started_s = time.monotonic()

        return happen

    # -- the operator

    def _label(self) -> None:
        """Give one label at random to one of the newest samples, unless the device is away."""
        device = self._line.device
        if self._now_s() - self._looked_s > LOOK_EVERY_S:
            try:
                self._samples = [each["sample"] for each in device.get("/api/samples", limit=PICTURES)]
                self._classes = [each["id"] for each in device.state()["classes"]]
                self._looked_s = self._now_s()
            except (httpx.TransportError, DemoFailed):
                time.sleep(AWAY_S)
                return
        if not self._samples or not self._classes:
            return
        sample = self._roll.choice(self._samples)
        class_id = None if self._roll.random() < WITHDRAWN else self._roll.choice(self._classes)
        try:
            said = device.post("/api/labels", {"sample": sample, "class_id": class_id, "operator": "soak"})
        except httpx.ConnectError:
            return
        except httpx.TransportError:
            self._found.unanswered += 1
            return
        except DemoFailed:
            self._found.refused += 1
            self._looked_s = -LOOK_EVERY_S  # the picture has gone: look for others
            return
        chosen = None if class_id is None else bytes.fromhex(class_id)
        self._found.answered.append((said["first_seq"], said["seq"], bytes.fromhex(sample), chosen))

    def _wait_for_trial(self) -> None:
        end_s = time.monotonic() + REST_S
        while time.monotonic() < end_s and not self._has_failed():
            try:
                head = self._line.device.state()["head"]
            except (httpx.TransportError, DemoFailed):
                head = None
            if head is not None and not head["busy"]:
                return
            time.sleep(AWAY_S)

    # -- readings

    def _point(self, memory: Watch) -> Point:
        """Return what the agent is now, or as soon as it is there again."""
        while True:
            try:
                state, pid = self._line.device.state(), self._line.pid
                threads, files = taken(pid).threads, open_files(pid)
            except (httpx.TransportError, DemoFailed, FileNotFoundError):
                if self._has_failed():
                    self._trouble.result()
                time.sleep(AWAY_S)
                continue
            break
        stages = {each["stage"]: each for each in (state["line"] or {"stages": []})["stages"]}
        latencies = self._line.latencies_ms()
        data = self._line.data
        return Point(
            at_s=self._now_s(),
            age_s=time.monotonic() - self._started_s,
            frames=self._frames_before + state["frames"],
            labels=len(self._found.answered),
            release=state["release"]["name"] if state["release"] else "",
            lowest_mb=memory.lowest_mb,
            highest_mb=memory.highest_mb,
            files=files,
            threads=threads,
            store_mb=bytes_of(data.glob("store.sqlite3*")) / MB,
            images_mb=bytes_of((data / "images").rglob("*")) / MB,
            backbone_p99_ms=stages["backbone"]["p99_ms"] if "backbone" in stages else 0.0,
            verdict_p99_ms=float(np.percentile(latencies, 99)) if latencies else 0.0,
            errors=state["errors"],
        )


def bytes_of(files: Iterable[Path]) -> int:
    """Return what files take, of which some may go meanwhile; folders take nothing."""
    size = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size


def judge(soaked: Soaked, life_s: float) -> int:
    """Print what was found; return 1 where something is over its limit, or lost.

    Args:
        soaked: What was found.
        life_s: From one start of the agent to the next.
    """
    points = soaked.points
    warm = [each for each in points if each.age_s >= WARM_UP * life_s] or points
    kept = grown(points, warm, lambda point: point.lowest_mb)
    held = grown(points, warm, lambda point: point.highest_mb)
    third = max(1, len(warm) // 3)
    early, late = warm[:third], warm[-third:]

    def p99(some: list[Point], of: Callable[[Point], float]) -> float:
        return float(np.median([of(each) for each in some]))

    before_ms, after_ms = (p99(some, lambda point: point.backbone_p99_ms) for some in (early, late))
    verdict_ms = [p99(some, lambda point: point.verdict_p99_ms) for some in (early, late)]
    first, last, lost = warm[0], points[-1], soaked.lost()
    files, threads = last.files - first.files, last.threads - first.threads
    befell = {what: sum(each == what for _, each in soaked.befell) for what in ("drop", "update", "reboot")}
    releases = len({each.release for each in points if each.release.startswith(UPDATE)})
    images_mib = max(each.images_mb for each in points) * MB / 1024**2
    print(
        f"{last.frames} frames, {len(soaked.answered)} labels and {len(points)} times of learning in "
        f"{last.at_s / 60:.0f} minutes, {last.errors} errors\n"
        f"{befell['drop']} times without broker, {befell['reboot']} reboots, {befell['update']} releases "
        f"published, {releases} of them seen in service\n"
        f"labels answered for and not at the fleet: {lost}; refused {soaked.refused}, without an answer "
        f"{soaked.unanswered}\n"
        f"resident memory, for 1,000 labels (at most {MAX_MIB_PER_1000_LABELS} MiB; 95 % in brackets): the lowest "
        f"of each burst {kept or 'not told'}, {last.lowest_mb:.0f} MB at the end; the highest "
        f"{held or 'not told'}, {max(each.highest_mb for each in points):.0f} MB at most\n"
        f"p99 of the backbone {before_ms:.1f} ms early, {after_ms:.1f} ms late (at most {MAX_DRIFT:.2f} times); "
        f"from frame to verdict {verdict_ms[0]:.0f} and {verdict_ms[1]:.0f}\n"
        f"open files {files:+d}, threads {threads:+d}, store {last.store_mb:.1f} MB, "
        f"images {images_mib:.0f} MiB of {IMAGE_QUOTA_MIB}"
    )
    over = (
        any(each is not None and each.mib > MAX_MIB_PER_1000_LABELS for each in (kept, held))
        or after_ms > MAX_DRIFT * before_ms
        or max(files, threads) > MAX_MORE
        or images_mib > IMAGE_QUOTA_MIB + MAX_OVER_MIB
    )
    return int(over or lost > 0 or last.errors > 0)


def grown(points: Sequence[Point], warm: Sequence[Point], of: Callable[[Point], float]) -> Slope | None:
    """Return by how much memory grew with labels: between lives, or in the only one after its warm-up."""
    readings, starts, served = [], list[float](), set[str]()
    for point in points:
        start_s = point.at_s - point.age_s
        if not starts or start_s - starts[-1] > SAME_START_S:
            starts.append(start_s)
            served = set()
        served.add(point.release)
        readings.append(Reading(len(starts), point.age_s, len(served), point.labels, of(point) * MB / 1024**2))
    if len(starts) > 1:
        return between_lives(readings)
    kept = {id(point) for point in warm}
    return within_a_life([reading for point, reading in zip(points, readings, strict=True) if id(point) in kept])


def draw(soaked: Soaked, file: Path) -> None:
    """Draw what was measured, and when trouble came."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 1, sharex=True, figsize=(8, 9), layout="constrained")
    minutes = [each.at_s / 60 for each in soaked.points]
    for axis, (names, label) in zip(
        axes,
        (
            (("highest_mb", "lowest_mb"), "resident, MB"),
            (("backbone_p99_ms", "verdict_p99_ms"), "p99, ms"),
            (("store_mb", "images_mb"), "disk, MB"),
            (("files", "threads"), "count"),
        ),
        strict=True,
    ):
        for name in names:
            axis.plot(minutes, [getattr(each, name) for each in soaked.points], label=name.partition("_")[0])
        if len(names) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    for what, style in (("drop", ("0.85", "-")), ("update", ("tab:green", ":")), ("reboot", ("tab:red", "--"))):
        for axis in axes:
            for at_s in (at_s for at_s, each in soaked.befell if each == what):
                axis.axvline(at_s / 60, color=style[0], linestyle=style[1], linewidth=1, zorder=0)
    axes[0].set_title("grey: broker killed; green: release published; red: agent ended", fontsize="small")
    axes[-1].set_xlabel("minutes")
    figure.savefig(file)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
