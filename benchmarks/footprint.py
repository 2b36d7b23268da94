"""What the device agent needs: disk when installed (Jetson's aarch64 too), memory, time to the first decision.

    python -m benchmarks.footprint installed                 minutes; needs the package index
    python -m benchmarks.footprint running BUNDLE            a real agent process with 5,000 labelled samples
    python -m benchmarks.footprint labels BUNDLE             does a learner grow with labels? a few minutes
    python -m benchmarks.footprint calls                     what each step of a trial holds for a moment

`installed` resolves the `agent` extra for the Pythons of JetPack 6 and 7 from aarch64 wheels only, and installs
them into folders that are measured and deleted again; nothing of them is run. `running` needs a bundle, such as
`headway export DATA --backbone mobilenetv2_100 --precision int8 --out BUNDLE`. `labels` runs a learner alone, in
this process: first the same 250 samples are labelled, corrected and withdrawn again and again, where nothing may
grow with it; then each label is of a new sample, of which the learner keeps a kilobyte. `calls` draws codes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from benchmarks.process import MB, Watch, cpu_s, taken
from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.memory import give_back_memory
from device_agent.sample import Sample
from device_agent.site_file import SITE_NAME
from device_agent.store import Store
from sdk.adaptation import Labelled, choose, harmful_source
from sdk.bundle import Bundle
from sdk.codes import code_digest
from sdk.grouping import derive_groups
from sdk.head import solve
from sdk.labels import Body, CodeRecord, Label
from sdk.moments import Moments
from sdk.score import leave_one_group_out

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT: Final = Path(__file__).parents[1]
TARGETS: Final = {
    # Ubuntu 22.04 has glibc 2.35 and Ubuntu 24.04 has 2.39: wheels for any glibc up to that run there.
    "JetPack 6, Python 3.10, aarch64": ("3.10", 35),
    "JetPack 7, Python 3.12, aarch64": ("3.12", 39),
}
LABELS: Final = 5_000
FRAMES: Final = 400
ROUND: Final = 250
"""Labels between two readings of memory."""
ROUNDS: Final = 12
WARM_ROUNDS: Final = 2
MAX_GROWTH_MB: Final = 1.05
"""Of 1,000 labels that leave no more samples than there were: 1 MiB."""
WAIT_S: Final = 600.0


def requirements(extra: str) -> list[str]:
    """Return what an extra of this project needs, other extras of it included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def of(name: str) -> list[str]:
        found: list[str] = []
        for requirement in project["optional-dependencies"][name]:
            own = requirement.startswith(f"{project['name']}[")
            found += of(requirement.partition("[")[2].rstrip("]")) if own else [requirement]
        return found

    return list(dict.fromkeys([*project["dependencies"], *of(extra)]))


def installed_mb(python: str, glibc: int, folder: Path) -> float:
    """Return the megabytes of the agent extra, installed from aarch64 wheels for a Python and a glibc.

    Raises:
        SystemExit: something has no wheel for it.
    """
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(17, glibc + 1)] + ["manylinux2014_aarch64"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(folder)]
    command += ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    command += [word for platform in platforms for word in ("--platform", platform)]
    done = subprocess.run([*command, *requirements("agent")], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"no wheels for Python {python} on aarch64:\n{done.stderr}")
    return size_mb(folder)


def size_mb(folder: Path) -> float:
    """Return the megabytes of all files in a folder."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) / MB


def installed() -> int:
    """Print the sizes of the agent extra; return 1 where one is over 400 MB."""
    worst = 0.0
    for name, (python, glibc) in TARGETS.items():
        with tempfile.TemporaryDirectory() as folder:
            size = installed_mb(python, glibc, Path(folder))
        worst = max(worst, size)
        print(f"{name}: {size:.0f} MB from wheels alone, before Python compiles its files", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
        subprocess.run([*command, *requirements("agent")], check=True, capture_output=True)
        size = size_mb(Path(folder))
    print(f"this machine, Python {sys.version.split()[0]}, compiled: {size:.0f} MB", flush=True)
    return int(max(worst, size) > 400)


def fill_store(data_dir: Path, bundle: Bundle, precision: str, count: int) -> None:
    """Make a store with so many labelled samples, their codes near the release's own, five pictures a part."""
    base, entry = bundle.base(precision), bundle.precision(precision)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(base.samples), count)
    space = bytes.fromhex(entry.space)
    picture = rng.integers(0, 255, (64, 64, 3), np.uint8)
    with Store.open(data_dir, "line-1", limits=StoreLimits(keep_samples=count, outbox=10 * count)) as store:
        for start in range(0, count, 100):
            bodies: list[Body] = []
            codes = {}
            for number in range(start, min(start + 100, count)):
                pick = int(picks[number])
                noise = rng.normal(0, 4, base.codes.shape[1])
                code = np.clip(base.codes[pick] + noise, -127, 127).astype(np.int8)
                picture[0, 0] = number % 251, number // 251 % 251, 0
                done, encoded = cv2.imencode(".png", picture)
                assert done
                data = encoded.tobytes()
                sample = hashlib.sha256(data).digest()
                group = f"line-1/part-{number // 5}"
                class_id = base.class_ids[pick]
                shown = Sample(sample, float(number), group, entry.space, code, "good", class_id, 0.9, 0.1, False)
                store.samples.put(shown, data)
                bodies += [Label(sample, class_id, "ann"), CodeRecord(space, sample, group, code_digest(code))]
                codes[sample] = code
            store.log.append(bodies, codes)


def running(bundle_path: Path, images: Path, precision: str, labels: int) -> int:
    """Run an agent and print what it needs; return 1 where that is more than 300 MB or 3 s."""
    bundle = Bundle.open(bundle_path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill_store(folder / "data", bundle, precision, labels)
        site = folder / SITE_NAME
        site.write_text(
            f'device = "line-1"\ndata_dir = "data"\n'
            f'bundle = "{bundle_path.resolve()}"\nprecision = "{precision}"\n'
            f'[camera]\nkind = "folder"\npath = "{images.resolve()}"\nloop = true\nrate_fps = 20.0\n'
            "[page]\nport = 0\n",
            encoding="utf-8",
        )
        worst = 0
        for start in ("first start, runtimes measured", "later start"):
            worst |= one_run(site, start)
    return worst


def one_run(site: Path, start: str) -> int:
    """Start an agent, let it decide frames and finish learning, and print what that took."""
    began_s = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "sdk.cli", "agent", "run", str(site)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as child:
        try:
            assert child.stdout is not None
            page = json.loads(child.stdout.readline())["page"]
            state = until(page, lambda state: state["frames"] > 0)
            first_s, first_cpu_s = time.perf_counter() - began_s, cpu_s(child.pid)
            until(page, lambda state: state["frames"] >= FRAMES and not state["head"]["busy"])
            memory = taken(child.pid)
            now_mb, peak_mb = memory.resident_bytes / MB, memory.peak_bytes / MB
        finally:
            child.terminate()
            child.wait(60)
    print(
        f"{start}: first decision after {first_s:.1f} s ({first_cpu_s:.1f} s of processor time, load "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores); {now_mb:.0f} MB resident after {FRAMES} frames "
        f"with {state['live_samples']} samples in the head, {peak_mb:.0f} MB at most",
        flush=True,
    )
    return int(first_s > 3 or now_mb > 300)


def labels(bundle: Bundle, precision: str, rounds: int) -> int:
    """Print how a learner's memory grows with labels; return 1 where it does though nothing new is kept."""
    give_back_memory()  # as the agent does
    space, base = bundle.precision(precision).space, bundle.base(precision)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder), "line-1") as store:
        learner = Learner(bundle, precision, store)
        classes = sorted({*base.class_ids})

        def seen(number: int) -> tuple[bytes, bytes]:
            """Return a new sample near one of the release's, and the class of that."""
            pick = int(rng.integers(len(base.codes)))
            code = np.clip(base.codes[pick] + rng.normal(0, 4, base.codes.shape[1]), -127, 127).astype(np.int8)
            sample, class_id = hashlib.sha256(number.to_bytes(8, "big")).digest(), base.class_ids[pick]
            group = f"line-1/part-{number // 5}"
            shown = Sample(sample, float(number), group, space, code, "good", class_id, 0.9, 0.1, False)
            store.samples.put(shown, sample)
            return sample, class_id

        known = [seen(number) for number in range(ROUND)]

        def again(number: int) -> tuple[bytes, bytes | None]:
            sample, class_id = known[number % ROUND]
            roll = rng.random()
            return sample, None if roll < 0.1 else class_id if roll < 0.8 else classes[rng.integers(len(classes))]

        same = growth(learner, again, rounds, "the same samples")
        new = growth(learner, lambda number: seen(ROUND + number), rounds, "new samples")
    print(
        f"{same:+.2f} MB for 1,000 labels of the same samples (at most {MAX_GROWTH_MB}), "
        f"{new:+.2f} of new ones with {base.codes.shape[1]} features each"
    )
    return int(same > MAX_GROWTH_MB)


def growth(learner: Learner, label: Callable[[int], tuple[bytes, bytes | None]], rounds: int, what: str) -> float:
    """Return the megabytes that memory grows by for 1,000 labels: the median slope of all pairs of readings.

    Readings swing by a factorised matrix, 10 MB at d = 1,584, as long as the head that serves is not the newest.
    """
    trim = ctypes.CDLL("libc.so.6").malloc_trim
    kept = []
    for number in range(rounds * ROUND):
        learner.label(*label(number), "ann")
        if (number + 1) % 50 == 0:
            learner.run_until_idle(trials=(number + 1) % ROUND == 0)
        if (number + 1) % ROUND == 0:
            gc.collect()
            trim(0)
            kept.append(taken().resident_bytes / MB)
            print(f"{what}: {number + 1} labels, {kept[-1]:.1f} MB", flush=True)
    warm = kept[WARM_ROUNDS:]
    slopes = [(warm[j] - warm[i]) / (j - i) for i in range(len(warm)) for j in range(i + 1, len(warm))]
    return float(np.median(slopes)) * 1000 / ROUND if slopes else 0.0


def calls(samples: int, features: int) -> int:
    """Print what each step of learning and of a trial takes: resident memory at its peak, and processor time."""
    give_back_memory()  # as the agent does
    rng = np.random.default_rng(0)
    y = rng.integers(0, 6, samples)
    codes = rng.integers(0, 30, (6, features))[y] + rng.normal(0, 12, (samples, features))
    rows = np.clip(codes, -127, 127).astype(np.int8)
    del codes
    ids = [bytes([c]) * 16 for c in y]
    groups = [f"line-1/part-{i}" if i % 2 else f"line-1/part-{i // 10}x" for i in range(samples)]
    devices = ["release" if i < 400 else "line-1" if i % 10 else "line-2" for i in range(samples)]
    own = np.array([device == "line-1" for device in devices])
    moments = Moments(features)
    station = Labelled(rows, ids, groups, devices, own)
    steps: dict[str, Callable[[], object]] = {
        "add all samples": lambda: moments.add(rows, ids),
        "solve": lambda: solve(moments),
        "find groups": lambda: derive_groups(rows, ids, groups),
        "left-out scores": lambda: leave_one_group_out(rows, ids, groups, own=own, learned=moments),
        "how own labels count": lambda: choose(station, rows[own][:500]),
        "who harms": lambda: harmful_source(station),
    }
    for name, step in steps.items():
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before_mb, before_s = taken().resident_bytes / MB, time.process_time()
        with Watch(every_s=0.002) as memory:
            step()
        took_s = time.process_time() - before_s
        print(f"{name}: {memory.highest_mb - before_mb:.0f} MB for a moment, {took_s:.2f} s of processor time")
    return 0


def until(page: str, there: Any) -> dict[str, Any]:
    """Ask the agent for its state until it is so."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{page}api/state", timeout=WAIT_S) as answer:
            state: dict[str, Any] = json.load(answer)
        if there(state):
            return state
        time.sleep(0.02)
    sys.exit(f"it did not come to that in {WAIT_S:.0f} s")


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.footprint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("installed")
    run = commands.add_parser("running")
    run.add_argument("bundle", type=Path)
    run.add_argument("--images", type=Path, required=True, help="a folder of frames")
    run.add_argument("--precision", default="int8")
    run.add_argument("--labels", type=int, default=LABELS)
    grows = commands.add_parser("labels")
    grows.add_argument("bundle", type=Path)
    grows.add_argument("--precision", default="int8")
    grows.add_argument("--rounds", type=int, default=ROUNDS, help=f"of {ROUND} labels, each of two kinds")
    each = commands.add_parser("calls")
    each.add_argument("--samples", type=int, default=2_500)
    each.add_argument("--features", type=int, default=1_584)
    options = parser.parse_args()
    if options.command == "calls":
        return calls(options.samples, options.features)
    if options.command == "labels":
        return labels(Bundle.open(options.bundle), options.precision, options.rounds)
    if options.command == "installed":
        return installed()
    return running(options.bundle, options.images, options.precision, options.labels)


if __name__ == "__main__":
    sys.exit(main())
