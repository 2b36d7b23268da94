"""What a large release costs a device: time and memory, with codes of all samples and with exemplars and sums.

    python -m benchmarks.scale                                      100,000 samples, d = 1280, 50 classes
    python -m benchmarks.scale --samples 2000 --features 64 --classes 5 --codes 500    only shows that it runs

Codes are drawn, so no accuracy here means anything. The bundles are real: written, opened and checked as any
other, with an ONNX backbone of d outputs. Each bundle is measured in a process of its own, on one thread. The peak
of a step is the resident memory above what the process had before it. The last table is `headway agent run` on
each bundle: started, shown pictures, given labels over its page.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.process import taken
from benchmarks.report import Report, Table, as_json, as_text
from device_agent.config import RuntimeSettings
from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.runtime import base_head
from device_agent.sample import Sample
from device_agent.store import Store
from device_agent.trial import Base
from export.exemplars import MAX_BASE_CODES, exemplars
from sdk.bundle import (
    BaseSamples,
    Bundle,
    ClassEntry,
    Golden,
    HeadEntry,
    Lineage,
    Manifest,
    PrecisionEntry,
    SplitEntry,
    golden_bytes,
    split_bytes,
    write_bundle,
)
from sdk.codes import Codes, code_digest, encode, feature_space_id, fit_scale
from sdk.head import solve
from sdk.images import decode
from sdk.labels import new_class_id
from sdk.liveset import live_set_digest
from sdk.preprocess import Preprocess
from sdk.score import calibrate, leave_one_group_out
from sdk.splits import Part

SIDE_PX: Final = 32
GROUP: Final = 4
"""Samples of a part."""
LABELS: Final = {"all": 2, "exemplars": 5}
"""With all codes each costs a trial of half a minute."""
BLOCK: Final = 4096
WAIT_S: Final = 900.0
KINDS: Final = ("all", "exemplars")
ALONE: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Figures = dict[str, float]


# -- the release


def draw(n: int, d: int, k: int) -> tuple[Codes, float, list[int]]:
    """Return codes (n, d), their scale, and a class for each: parts of a class differ, pictures of a part less."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (k, d)).astype(np.float32)
    labels = np.repeat(rng.integers(0, k, -(-n // GROUP)), GROUP)[:n]
    codes, scale = np.empty((n, d), np.int8), 0.0
    for start in range(0, n, BLOCK):
        of = labels[start : start + BLOCK]
        part = np.repeat(rng.normal(0, 1, (-(-len(of) // GROUP), d)), GROUP, 0)[: len(of)]
        drawn = centres[of] + part + rng.normal(0, 1, (len(of), d))
        features = np.maximum(drawn, 0).astype(np.float32)
        scale = scale or fit_scale(features)
        codes[start : start + BLOCK] = encode(features, scale)
    return codes, scale, labels.tolist()


def backbone(d: int) -> bytes:
    """Return an ONNX backbone with d outputs: one random convolution, averaged."""
    rng = np.random.default_rng(1)
    w = rng.normal(0, 0.1, (d, 3, 5, 5))
    weights = numpy_helper.from_array((w - w.mean((1, 2, 3), keepdims=True)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["a"], kernel_shape=[5, 5], strides=[4, 4], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "drawn",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIDE_PX, SIDE_PX])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", d])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def picture(number: int) -> bytes:
    """Return a picture as PNG: noise and a stripe whose place depends on the number."""
    frame = np.random.default_rng(number).integers(60, 200, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    frame[:, 4 + number % 20 : 9 + number % 20] = (20, 220, 120)
    return bytes(cv2.imencode(".png", frame)[1])


def make(folder: Path, n: int, d: int, k: int, limit: int) -> Figures:
    """Write the release twice: with all codes, and with exemplars and sums."""
    from device_agent.runtime.onnx import OnnxRuntime

    codes, scale, labels = draw(n, d, k)
    ids, model, preprocess = (
        [new_class_id() for _ in range(k)],
        backbone(d),
        Preprocess(height=SIDE_PX, width=SIDE_PX),
    )
    base = BaseSamples(
        samples=[hashlib.sha256(b"%d" % i).digest() for i in range(n)],
        class_ids=[ids[label] for label in labels],
        groups=[f"part-{i // GROUP}" for i in range(n)],
        codes=codes,
        fitted=np.zeros(n, bool),
    )
    space = feature_space_id(hashlib.sha256(model).hexdigest(), preprocess, scale)
    rows = exemplars([f"class {label:03}" for label in labels], base.groups, base.fitted, limit)
    some = base.with_codes_of(rows) if len(rows) < n else base
    e = len(some.codes)
    moments = some.moments()
    left_out = leave_one_group_out(some.codes, some.class_ids[:e], some.groups[:e], learned=moments)
    calibration = calibrate(left_out)
    head = solve(moments, calibration=calibration)
    frames = np.stack([decode(picture(i)) for i in range(4)])
    runtime = OnnxRuntime(model, "backbone", (3, SIDE_PX, SIDE_PX), d, RuntimeSettings())
    features = runtime.features(np.concatenate([preprocess.apply(frame) for frame in frames]))
    golden_codes = encode(features, scale)
    columns = [head.class_ids.index(class_id) for class_id in ids]
    golden = Golden(frames, features, golden_codes, head.scores(golden_codes)[:, columns].astype(np.float32))
    digests = [code_digest(code) for code in codes]
    entry = PrecisionEntry(
        precision="fp32",
        backbone="backbone.fp32.onnx",
        samples="samples.fp32.safetensors",
        feature_size=d,
        code_scale=scale,
        space=space,
        head=HeadEntry(
            rho=head.knobs.rho,
            centre_damping=head.knobs.centre_damping,
            lift_floor=head.knobs.lift_floor,
            distance_weight=head.knobs.distance_weight,
            temperature=calibration.temperature,
            novelty_threshold=calibration.novelty_threshold,
            false_alarm_rate=calibration.false_alarm_rate,
            live_set_digest=live_set_digest(space, zip(base.samples, base.class_ids, digests, strict=True)),
        ),
    )
    files = {
        entry.backbone: model,
        "golden.safetensors": golden_bytes(frames, {"fp32": golden}),
        "splits.safetensors": split_bytes(base.samples, [Part.TRAIN] * n),
    }
    sizes: Figures = {"exemplars": float(e)}
    for kind, samples in zip(KINDS, (base, some), strict=True):
        named = msgspec.structs.replace(entry, moments="moments" if samples.summed else msgspec.UNSET)
        more = {entry.samples: samples.to_bytes()} | (
            {"moments": samples.moments_bytes()} if samples.summed else {}
        )
        write_bundle(folder / kind, files | more, _manifest(kind, ids, preprocess, named))
        sizes[f"{kind} MB"] = sum(map(len, more.values())) / 1e6
    return sizes


def _manifest(name: str, ids: list[bytes], preprocess: Preprocess, entry: PrecisionEntry) -> Manifest:
    return Manifest(
        format=1,
        name=name,
        classes=[ClassEntry(id=class_id.hex(), name=f"class {i:03}") for i, class_id in enumerate(ids)],
        preprocess=preprocess,
        precisions=[entry],
        golden="golden.safetensors",
        split=SplitEntry(seed=0, file="splits.safetensors", held_back=[]),
        lineage=Lineage(
            backbone="drawn",
            weights_source="drawn",
            weights_sha256=None,
            weights_licence="none",
            strategy="frozen",
            data_sha256="0" * 64,
            images=1,
            created_utc="2026-01-01T00:00:00Z",
            tool_versions={},
        ),
        parents=[],
        files=[],
    )


# -- the steps, each in a process of its own


class Steps:
    """Times, processor times and peak memory of steps, one after the other."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[float, float, float]] = {}

    def run(self, what: str, step: Callable[[], Any]) -> Any:
        """Do a step and note seconds, processor seconds, and MB above what was resident before."""
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
        before, began, used = taken().resident_bytes, time.perf_counter(), time.process_time()
        result = step()
        self.rows[what] = (
            time.perf_counter() - began,
            time.process_time() - used,
            max(0.0, (taken().peak_bytes - before) / 1024**2),
        )
        return result


def device(path: Path) -> dict[str, Any]:
    """Do on one thread what an agent does with a bundle, step by step."""
    steps = Steps()
    bundle: Bundle = steps.run("open the bundle, check digests", lambda: Bundle.open(path))
    _compute(bundle, steps)
    steps.run("the head for the golden inputs", lambda: base_head(bundle))
    return {"steps": steps.rows, **_learn(bundle, steps), "peak MB": _peak_of_all_mb()}


def _compute(bundle: Bundle, steps: Steps) -> None:
    base = steps.run("read samples and moments", bundle.base)
    steps.run("fold the base rows, digest", lambda: Base.of(bundle, None))
    moments = steps.run("exact moments of all samples", base.moments)
    steps.run("solve", lambda: solve(moments))
    e = len(base.codes)
    steps.run(
        "leave one group out",
        lambda: leave_one_group_out(base.codes, base.class_ids[:e], base.groups[:e], learned=moments),
    )


def _learn(bundle: Bundle, steps: Steps) -> Figures:
    live, trials = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(Path(folder), "line-1", limits=StoreLimits(reserve_bytes=0)) as store,
    ):
        learner: Learner = steps.run("start the learner", lambda: Learner(bundle, None, store))
        learner.start()
        learner.wait_until_idle(WAIT_S)
        new = learner.define_class("new", "bench")
        rng = np.random.default_rng(2)
        for number in range(LABELS[bundle.path.name]):
            code = rng.integers(0, 100, bundle.precision().feature_size).astype(np.int8)
            sample = hashlib.sha256(b"new %d" % number).digest()
            store.samples.put(_sample(sample, bundle.space(), code), picture(number))
            began = time.perf_counter()
            learner.label(sample, new, "bench")
            learner.wait_until_idle(WAIT_S)
            trials.append(time.perf_counter() - began)
            live.append(learner.status().label_to_live_ms or float("nan"))
        score = learner.status().score
        learner.stop()
    assert score is not None
    return {
        "label to live, ms": statistics.median(live),
        "label to end of trial, s": statistics.median(trials),
        "scored": float(score.samples),
    }


def _peak_of_all_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _sample(sample: bytes, space: str, code: Codes) -> Sample:
    return Sample(
        sample_id=sample,
        captured_utc=0.0,
        group=f"line-1/{sample.hex()[:8]}",
        space=space,
        code=code,
        decision="unknown",
        class_id=None,
        probability=0.5,
        novelty=1.0,
        unknown=True,
    )


def agent(path: Path, folder: Path) -> Figures:
    """Run `headway agent run` on a bundle, show it pictures and label them; return what it took."""
    labels = LABELS[path.name]
    folder.mkdir()
    (folder / "images").mkdir()
    for number in range(3):
        (folder / "images" / f"{number}.png").write_bytes(picture(number))
    site = folder / "site.toml"
    site.write_text(
        f'device = "line-1"\ndata_dir = "data"\nbundle = "{path}"\n'
        '[camera]\nkind = "folder"\npath = "images"\n[page]\nport = 0\n'
    )
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "sdk.cli", "agent", "run", str(site)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ALONE},
    ) as child:
        try:
            assert child.stdout is not None
            page = json.loads(child.stdout.readline())["page"]
            found = {"start, s": time.perf_counter() - began}
            new = _call(page, "api/classes", json.dumps({"name": "new", "operator": "bench"}).encode())["class_id"]
            live, trials = [], []
            for number in range(labels):
                seen = _call(page, "api/inspect?keep=true", picture(100 + number))
                label = {"sample": seen["sample"], "class_id": new, "operator": "bench"}
                began = time.perf_counter()
                _call(page, "api/labels", json.dumps(label).encode())
                _settled(page)
                trials.append(time.perf_counter() - began)
                live.append(_call(page, "api/state")["label_to_live_ms"])
            state = _call(page, "api/state")
            if state["own_labels"] != labels or "new" not in {c["name"] for c in state["classes"]}:
                raise RuntimeError(f"the labels did not arrive: {state}")
            found["label to live, ms, median"] = statistics.median(live)
            found["label to live, ms, worst"] = max(live)
            found["label to end of trial, s, median"] = statistics.median(trials)
            found["peak resident MB"] = taken(child.pid).peak_bytes / 1024**2
            found["samples scored"] = float(state["score"]["samples"])
            found["samples in sums only"] = float(state["score"]["summed"])
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(60)
    return found


def _settled(page: str) -> None:
    until = time.monotonic() + WAIT_S
    while _call(page, "api/state")["head"]["busy"]:
        if time.monotonic() > until:
            raise RuntimeError("the agent did not settle")
        time.sleep(0.05)


def _call(page: str, path: str, body: bytes | None = None) -> Any:
    kind = "application/json" if body is None or body.startswith(b"{") else "application/octet-stream"
    request = urllib.request.Request(f"{page}{path}", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


# -- the whole


def child(step: str, folder: Path, options: argparse.Namespace) -> Any:
    """Return what a step prints as JSON, run in a process of its own on one thread."""
    numbers = [f"--{name}={getattr(options, name)}" for name in ("samples", "features", "classes", "codes")]
    print(f"  {step}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--step", step, "--dir", str(folder), *numbers],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, **ALONE},
    )
    return json.loads(done.stdout)


def measure(options: argparse.Namespace, folder: Path) -> Report:
    """Return all figures."""
    sizes = child("make", folder, options)
    on_device = {kind: child(f"device-{kind}", folder, options) for kind in KINDS}
    agents = {kind: child(f"agent-{kind}", folder, options) for kind in KINDS}
    words = {"all": "codes of all", "exemplars": f"codes of {sizes['exemplars']:.0f}"}
    columns = tuple(f"{words[kind]}, {what}" for kind in KINDS for what in ("s", "CPU s", "peak MB"))
    rows = tuple(
        (what, *(figure for kind in KINDS for figure in on_device[kind]["steps"][what]))
        for what in on_device["all"]["steps"]
    )
    whole = [
        (what, *(float(on_device[kind][what]) for kind in KINDS))
        for what in ("label to live, ms", "label to end of trial, s", "scored", "peak MB")
    ]
    size = ("samples and moments in the bundle, MB", *(sizes[f"{kind} MB"] for kind in KINDS))
    title = f"{options.samples} samples, d = {options.features}, {options.classes} classes, groups of {GROUP}"
    pair = ("", *(words[kind] for kind in KINDS))
    return Report(
        "scale",
        "what does a large release cost a device?",
        (
            Table(f"{title}: step by step, one thread", ("", *columns), rows, 2),
            Table(f"{title}: the learner", pair, (size, *whole)),
            Table(
                f"{title}: headway agent run",
                pair,
                tuple((what, *(agents[kind][what] for kind in KINDS)) for what in agents["all"]),
            ),
        ),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one step, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--codes", type=int, default=MAX_BASE_CODES, help="of the bundle with exemplars")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=Path, help="where the bundles go; a temporary folder by default")
    options = parser.parse_args(arguments)
    if options.step is not None:
        step, _, kind = options.step.partition("-")
        if step == "make":
            found: Any = make(options.dir, options.samples, options.features, options.classes, options.codes)
        elif step == "device":
            found = device(options.dir / kind)
        else:
            found = agent(options.dir / kind, options.dir / f"agent-{kind}")
        print(json.dumps(found))
        return 0
    with tempfile.TemporaryDirectory(prefix="headway-scale-") as folder:
        report = measure(options, options.dir or Path(folder))
    print(as_text(report))
    if options.json is not None:
        options.json.write_text(as_json([report]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
