"""What it gains to leave both ends of a network in fp32 where its int8 form runs on a processor (decision 0062).

    python -m benchmarks.ends                                    eight networks, about three minutes
    python -m benchmarks.ends resnet18 mobilenetv3_small_100     these timm networks only

Each network at 224 px, its int8 form made three ways: all layers in 8 bits, the first narrow convolutions left
float, and what is pooled at the end too, as `headway export` makes it. Processor time of one thread, median of
`TIMED` calls, all forms in turns. Weights and pictures are random, of the built-in backbone its own weights: times
do not depend on them, and the cosines to fp32's features only compare one form with another.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final
from unittest import mock

import numpy as np
import onnx

from benchmarks.report import Cell, Report, Table, as_text
from export.backbones import BUILTIN, NO_WEIGHTS, load_backbone
from export.graph import OnnxBackbone, to_onnx
from export.profiles import Profile, kept_float
from export.quantize import Method, calibrate, prepare, to_int8

NETWORKS: Final = (
    BUILTIN,
    "mobilenetv2_100",
    "efficientnet_lite0",
    "mobilenetv4_conv_small",
    "regnetx_002",
    "resnet10t",
    "resnet18",
    "mobilenetv3_small_100",
)
INPUT_PX: Final = 224
TIMED: Final = 100
"""Calls of each form."""
Left = Callable[[onnx.GraphProto, Profile], list[str]]


def first_half(graph: onnx.GraphProto, profile: Profile) -> list[str]:
    """Return the nodes at the start of a network that a profile leaves in fp32."""
    start = {node.name for node in graph.node[: len(graph.node) // 2]}
    return [name for name in kept_float(graph, profile) if name in start]


FORMS: Final[dict[str, Left]] = {
    "all in 8 bits": lambda _graph, _profile: [],
    "first layers float": first_half,
    "and pooled ends": kept_float,
}


def forms_of(
    name: str, pixels: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
) -> dict[str, OnnxBackbone]:
    """Return a network's fp32 and int8 forms, ready to run on one thread."""
    backbone = load_backbone(name, None if name == BUILTIN else NO_WEIGHTS, input_size_px=INPUT_PX)
    fp32 = to_onnx(backbone)
    prepared = prepare(fp32)
    ranges = calibrate(prepared, pixels, Method.MINMAX)
    found = {"fp32": OnnxBackbone(fp32, threads=1)}
    for form, left in FORMS.items():
        # An export has no choice here: what it would make otherwise is for this comparison only.
        with mock.patch("export.quantize.kept_float", left):
            int8 = to_int8(prepared, ranges, Profile.CPU, backbone.feature_size)
        found[form] = OnnxBackbone(int8, threads=1)
    return found


def measure(names: list[str]) -> Table:
    """Return times and cosines of all networks' forms."""
    rng = np.random.default_rng(0)
    pixels = [rng.normal(0, 1, (1, 3, INPUT_PX, INPUT_PX)).astype(np.float32) for _ in range(4)]
    runs = {(name, form): one for name in names for form, one in forms_of(name, pixels).items()}
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(TIMED):
        for way, session in runs.items():
            began_s = time.process_time()
            session.features(pixels[0])
            times[way].append(1000 * (time.process_time() - began_s))

    def cosine(name: str, form: str) -> float:
        one, other = (runs[name, each].features(pixels[1]).ravel() for each in ("fp32", form))
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    rows: list[tuple[Cell, ...]] = [
        (
            name,
            *(statistics.median(times[name, form]) for form in ("fp32", *FORMS)),
            cosine(name, "all in 8 bits"),
            cosine(name, "and pooled ends"),
        )
        for name in names
    ]
    heads = ("", "fp32", *FORMS, "cosine of all in 8 bits", "with float ends")
    return Table(f"ms a frame at {INPUT_PX} px, one thread", heads, tuple(rows), digits=4)


def main(arguments: list[str] | None = None) -> int:
    """Measure, and print a table."""
    description, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    table = measure(parser.parse_args(arguments).networks)
    print(as_text(Report("ends", "what does it gain to leave both ends of a network in fp32?", (table,))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
