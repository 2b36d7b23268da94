"""Measure the learning core beside what one would run instead. No figure is tuned on what it is measured on.

    python -m benchmarks                      all of them, about 15 minutes on one core
    python -m benchmarks few newclass         some of them
    python -m benchmarks few --json few.json  for another program
    python -m benchmarks --quick              drawn features, two splits: only shows that everything runs

The real image sets are found through HEADWAY_SHARED (default: ../shared beside the checkout). Their features are
computed once and kept in .bench/. The transport benchmark is apart: python -m benchmarks.transport --help.

benchmarks:
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import ModuleType

from benchmarks import (
    calibration,
    few,
    gate,
    honest,
    labelaudit,
    leaks,
    newclass,
    novelty,
    outlook,
    poison,
    speed,
    station,
    wronglabels,
)
from benchmarks.features import BACKBONE, LEVELS, NoImageSets, Sample, drawn, real
from benchmarks.report import Report, Setup, as_json, as_text

SETS = ("neu_det", "magnetic_tile")
BENCHMARKS: dict[str, ModuleType] = {
    "speed": speed,
    "few": few,
    "newclass": newclass,
    "honest": honest,
    "leaks": leaks,
    "calibration": calibration,
    "novelty": novelty,
    "wronglabels": wronglabels,
    "labelaudit": labelaudit,
    "poison": poison,
    "gate": gate,
    "station": station,
    "outlook": outlook,
}


def main(arguments: list[str] | None = None) -> int:
    """Run what was named; the exit status is 2 when the image sets are missing."""
    listed = "\n".join(f"    {name:12} {module.QUESTION}" for name, module in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; none is all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--quick", action="store_true", help="drawn features, two splits; proves nothing")
    parser.add_argument(
        "--first-seed", type=int, default=0, metavar="N", help="of the splits; 100 and up to choose methods by"
    )
    parser.add_argument(
        "--splits", type=int, default=0, metavar="N", help="how many, instead of each benchmark's own number"
    )
    parser.add_argument(
        "--set", action="append", choices=SETS, help="only this image set, where a benchmark has several"
    )
    parser.add_argument(
        "--backbone", default=BACKBONE, metavar="NAME", help=f"in place of {BACKBONE}; a folder of weights/"
    )
    parser.add_argument(
        "--levels", type=int, default=LEVELS, metavar="N", help=f"read of the backbone; as exported: {LEVELS}"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")

    def say(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    def load(name: str) -> Sample:
        return real(name, say, backbone=options.backbone, levels=options.levels)

    setup = Setup(
        load=drawn if options.quick else load,
        quick=options.quick,
        first_seed=options.first_seed,
        sets=tuple(options.set or SETS),
        splits=options.splits,
        say=say,
    )
    reports: list[Report] = []
    for name in options.names or BENCHMARKS:
        began = time.perf_counter()
        say(f"{name}: {BENCHMARKS[name].QUESTION}")
        try:
            reports.append(BENCHMARKS[name].run(setup))
        except NoImageSets as error:
            print(f"python -m benchmarks: {error}", file=sys.stderr)
            return 2
        print(as_text(reports[-1]), flush=True)
        if options.quick:
            print("\nDrawn features: these figures mean nothing.", flush=True)
        print(f"\n({time.perf_counter() - began:.0f} s)\n", flush=True)
        if options.json is not None:
            options.json.write_text(as_json(reports) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
