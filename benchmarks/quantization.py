"""What int8 costs on fine-tuned backbones: size, time, features and balanced accuracy on groups never seen.

    python -m benchmarks.quantization                                     both sets, both backbones, splits 0 to 2
    python -m benchmarks.quantization --set neu_det --backbone mobilenetv2_100 --seeds 0 1 2 3 4
    python -m benchmarks.quantization --per-class 0                       all images, not 60 of each class

For each split a backbone is fine-tuned for two epochs (mobilenetv2_100 wholly, because its untouched weights lie
on an 8-bit grid; vit_tiny_patch16_224 in its last blocks), then every form is made as `headway export` makes it,
with a head fitted on its own codes of the training and validation groups. Balanced accuracy is that head's on the
stream and test groups, best class whatever its novelty, beside fp32's on the same images.

Fine-tuned weights and finished splits are kept in .bench/quantization and not computed again. Splits of 100 and up
are for choosing methods.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.features import CACHE, NoImageSets, shared_folder
from benchmarks.report import mean_and_error
from export.backbones import Backbone, load_backbone
from export.finetune import Frames, Schedule, Strategy, finetune, resized_frames
from export.forms import FP32, INT8, Form, make_forms
from export.graph import latencies_ms
from export.int8 import Plan
from export.judged import features_of
from export.profiles import Profile
from export.progress import Log
from export.quantize import Method
from export.selection import LEARNED, Selection
from sdk.codes import encode
from sdk.images import open_images
from sdk.splits import Part, split

SETS: Final = ("neu_det", "magnetic_tile")
BACKBONES: Final = {"mobilenetv2_100": Strategy.FULL, "vit_tiny_patch16_224": Strategy.LAST}
SEEDS: Final = (0, 1, 2)
EPOCHS: Final = 2
PER_CLASS: Final = 60
"""Images of a class, of as many groups as there are, in each half: minutes a split on two cores, not an hour."""
MAX_LOSS: Final = {"neu_det": 0.5, "magnetic_tile": 2.0}
"""Points; on magnetic_tile the standard error where it is larger."""
MAX_SHARE: Final = 0.30
"""Of fp32's size, before any layer is left out."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One form of one split."""

    form: str
    size: float
    """Of fp32's."""
    size_before_exclusions: float
    latency_ms: float
    cosine: float
    accuracy: float
    excluded: int
    qat: bool
    how: str


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """One finished split."""

    images: int
    held_out: int
    rows: list[Row]


class _Quiet:
    def stage(self, words: str) -> None:
        print(f"    {words}", file=sys.stderr, flush=True)

    def step(self, done: int, total: int, note: str = "") -> None: ...

    def say(self, line: str) -> None:
        print(f"    {line}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure what was asked for; the exit status is 1 where a target is missed, 2 where the sets are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantization",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", action="append", choices=SETS)
    parser.add_argument("--backbone", action="append", choices=list(BACKBONES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="0 is all")
    parser.add_argument("--budget", type=float, default=Plan().budget_s, help="seconds for layers and fine-tuning")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[m.value for m in Method],
        default=[m.value for m in Method],
        help="ways to choose ranges that are compared; one alone is quicker",
    )
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves it as it is")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = Plan(
        profiles=tuple(Profile), budget_s=options.budget, methods=tuple(Method(m) for m in options.methods)
    )
    met = True
    try:
        for backbone in options.backbone or BACKBONES:
            for name in options.set or SETS:
                splits = [measure(name, backbone, s, options.per_class, plan) for s in options.seeds]
                met &= show(name, backbone, splits)
    except NoImageSets as error:
        print(f"python -m benchmarks.quantization: {error}", file=sys.stderr)
        return 2
    return 0 if met else 1


def measure(name: str, network: str, seed: int, per_class: int, plan: Plan) -> Split:
    """Return one split, from disk where it is finished."""
    folder = CACHE / "quantization"
    folder.mkdir(parents=True, exist_ok=True)
    key = f"{name}-{network}-{per_class}-{seed}"
    ways = "" if len(plan.methods) == len(Method) else "".join(f"-{m.value}" for m in plan.methods)
    kept = folder / f"{key}{ways}.json"
    if kept.is_file():
        return msgspec.json.decode(kept.read_bytes(), type=Split)
    shared = shared_folder()
    for needed in (shared / "data" / name / "index.csv", shared / "weights" / network / "model.safetensors"):
        if not needed.is_file():
            raise NoImageSets(f"{needed} is missing; set HEADWAY_SHARED to the folder with data/ and weights/")
    print(f"  {key}", file=sys.stderr, flush=True)
    images = open_images(shared / "data" / name)
    parts: list[Part] = list(split(images.groups, images.labels, seed))
    learn, test = [some_rows(images, parts, learned, per_class) for learned in (True, False)]
    backbone = load_backbone(network, str(shared / "weights" / network))
    ids = {label: i.to_bytes(16, "big") for i, label in enumerate(images.classes)}
    learned = Selection(
        images,
        parts,
        learn,
        [images.images[row].label for row in learn],
        [images.images[row].group for row in learn],
        np.array([parts[row] is Part.VALIDATION for row in learn]),
        ids,
        [],
    )
    with tempfile.TemporaryDirectory() as scratch:
        frames, held = (
            resized_frames([images.images[row].path for row in rows], backbone.preprocess, Path(scratch))
            for rows in (learn, test)
        )
        _fine_tune(backbone, BACKBONES[network], frames, learned, seed, folder / f"{key}.safetensors")
        truth = [ids[images.images[row].label] for row in test]
        result = _forms(backbone, frames, learned, held, truth, replace(plan, seed=seed))
    found = Split(images=len(learn), held_out=len(test), rows=result)
    kept.write_bytes(msgspec.json.encode(found))
    return found


def some_rows(images: Any, parts: list[Part], learned: bool, per_class: int) -> list[int]:
    """Return rows of one half, at most so many of each class: one of every group before the second of any."""
    rows = [row for row, part in enumerate(parts) if (part in LEARNED) == learned]
    if not per_class:
        return rows
    turn: Counter[tuple[str, str]] = Counter()
    turns = {}
    for row in rows:
        of = images.images[row].label, images.images[row].group
        turns[row] = turn[of]
        turn[of] += 1
    taken: Counter[str] = Counter()
    chosen = []
    for row in sorted(rows, key=lambda row: (turns[row], images.images[row].group, row)):
        label = images.images[row].label
        if taken[label] < per_class:
            taken[label] += 1
            chosen.append(row)
    return sorted(chosen)


def _fine_tune(
    backbone: Backbone, strategy: Strategy, frames: Frames, learned: Selection, seed: int, file: Path
) -> None:
    if file.is_file():
        backbone.module.load_state_dict(load_file(file))
        return
    labels = np.array([list(learned.class_ids).index(label) for label in learned.labels], np.int64)
    finetune(backbone, strategy, frames, labels, learned.validation, Schedule(EPOCHS, seed))
    save_file(backbone.module.state_dict(), file)


def _forms(
    backbone: Backbone,
    frames: Frames,
    learned: Selection,
    held: Frames,
    truth: list[bytes],
    plan: Plan,
) -> list[Row]:
    _, forms, refused = make_forms(
        (FP32, INT8), backbone, frames, learned, ~learned.validation, Log(_Quiet()), plan
    )
    if refused:
        raise RuntimeError(refused[0])
    times = latencies_ms({form.name: form.model for form in forms}, backbone.preprocess.apply(held[0]))
    rows = []
    for form in forms:
        features = features_of(form.model, held, backbone.preprocess, lambda: None, exact=form.exact)
        scores = form.head.scores(encode(features, form.scale))
        right = np.array([form.head.class_ids[i] for i in scores.argmax(1)], object) == np.array(truth, object)
        recalls = [right[np.array([t == label for t in truth])].mean() for label in sorted(set(truth))]
        rows.append(_row(form, forms[0], 100 * float(np.mean(recalls)), times[form.name]))
    return rows


def _row(form: Form, fp32: Form, accuracy: float, latency_ms: float) -> Row:
    how = form.how
    excluded = how.excluded if how is not None else []
    size = len(form.model) / len(fp32.model)
    # A layer that stays fp32 has three bytes more for each of its weights.
    grown = 0.75 * how.excluded_share_of_weights if how is not None else 0.0
    methods = [m.method for m in how.methods if m.chosen] if how is not None else []
    return Row(
        form=form.name,
        size=size,
        size_before_exclusions=size - grown,
        latency_ms=latency_ms,
        cosine=form.cosine,
        accuracy=accuracy,
        excluded=len(excluded),
        qat=how is not None and how.qat is not None and how.qat.used,
        how=methods[0] if methods else "",
    )


def show(name: str, network: str, splits: list[Split]) -> bool:
    """Print what was measured, and return whether every target is met."""
    print(f"\n{network}, fine-tuned, {name}: {len(splits)} splits, {splits[0].held_out} held-out images each\n")
    print("| form | of fp32's size | before exclusions | ms | cosine | balanced accuracy | to fp32 | how |")
    print("|---|---|---|---|---|---|---|---|")
    met = True
    lines = []
    for position, first in enumerate(splits[0].rows):
        rows = [s.rows[position] for s in splits]
        changes = [s.rows[position].accuracy - s.rows[0].accuracy for s in splits]
        how = Counter(f"{r.how}{', layers fp32' if r.excluded else ''}{', QAT' if r.qat else ''}" for r in rows)
        print(
            f"| {first.form} | {np.mean([r.size for r in rows]):.3f} "
            f"| {np.mean([r.size_before_exclusions for r in rows]):.3f} "
            f"| {np.median([r.latency_ms for r in rows]):.1f} | {np.mean([r.cosine for r in rows]):.3f} "
            f"| {np.mean([r.accuracy for r in rows]):.1f} | {mean_and_error(changes) if position else ''} "
            f"| {'; '.join(f'{n} x {words}' for words, n in how.items() if words)} |"
        )
        if not position:
            continue
        error = float(np.std(changes, ddof=1) / np.sqrt(len(changes))) if len(changes) > 1 else 0.0
        allowed = max(MAX_LOSS[name], error) if name == "magnetic_tile" else MAX_LOSS[name]
        share = max(r.size_before_exclusions for r in rows)
        for what, found, limit in (("loss", -float(np.mean(changes)), allowed), ("size", share, MAX_SHARE)):
            met &= found <= limit
            verdict = "met" if found <= limit else "MISSED"
            lines.append(f"- {first.form}, {what}: {found:.3g} (at most {limit:.2g}): {verdict}")
    cpu = [(s.rows[0].latency_ms, r.latency_ms) for s in splits for r in s.rows if r.form == INT8]
    share = float(np.median([b / a for a, b in cpu]))
    lines.append(f"- int8 takes {share:.2f} of fp32's time on this machine, in the same run")
    print("\n" + "\n".join(lines), flush=True)
    return met


if __name__ == "__main__":
    sys.exit(main())
