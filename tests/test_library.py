"""The learning core as a library: its guide runs as it is written, and wrong use is told what is wrong."""

from __future__ import annotations

import doctest
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agent.pipeline import Pipeline
from device_agent.runtime import base_head, open_runtime
from sdk.audit import agreement, suspects
from sdk.bundle import BaseSamples, Bundle
from sdk.codes import encode
from sdk.errors import FeatureSizeError, HeadError, HeadwayError, LabelError
from sdk.grouping import derive_groups
from sdk.head import UNCALIBRATED, Head, solve
from sdk.images import open_images
from sdk.labels import (
    Chain,
    CodeRecord,
    DefineClass,
    Entry,
    Fold,
    Label,
    MergeClasses,
    Quarantine,
    Record,
)
from sdk.moments import Moments
from sdk.outlook import outlook
from sdk.score import LeftOut, calibrate, calibration_error, leave_one_group_out
from sdk.verdict import trial
from tests.tiny import picture, tiny_bundle, write_pictures

GUIDE = Path(__file__).parents[1] / "docs" / "library.md"
D = 8
CODES = np.random.default_rng(0).integers(-100, 100, (12, D)).astype(np.int8)
A, B = b"a" * 16, b"b" * 16
IDS = [A, B] * 6
GROUPS = [str(i) for i in range(12)]
SAMPLES = [bytes([i]) * 32 for i in range(12)]
SPACE = "5a" * 32
FLOATS: Any = CODES * 1.0
NAME: Any = "good"
TEXT: Any = SPACE  # where 32 bytes belong
BYTES: Any = bytes(32)  # where text belongs
LIST: Any = [[1.0]]
NAN = float("nan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("library")
    write_pictures(out / "parts")
    tiny_bundle(out / "bundle")
    return out


def test_the_guide_runs_as_it_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = doctest.testfile(str(GUIDE), module_relative=False)
    assert found.failed == 0
    assert found.attempted > 50


def test_a_folder_may_be_named_by_text(folder: Path) -> None:
    assert Bundle.open(str(folder / "bundle")).digest() == Bundle.open(folder / "bundle").digest()
    assert open_images(str(folder / "parts")).classes == open_images(folder / "parts").classes
    with pytest.raises(HeadwayError, match="is not a bundle"):
        Bundle.open(str(folder / "none"))


def moments() -> Moments:
    found = Moments(D)
    found.add(CODES, IDS)
    return found


def add(codes: Any, class_ids: Any) -> None:
    before = moments()
    found = moments()
    try:
        found.add(codes, class_ids)
    finally:
        assert found == before


def subtract(codes: Any, class_ids: Any) -> None:
    before = moments()
    found = moments()
    try:
        found.subtract(codes, class_ids)
    finally:
        assert found == before


def left_out(codes: Any = CODES, class_ids: Any = IDS, groups: Any = GROUPS, **more: Any) -> None:
    leave_one_group_out(codes, class_ids, groups, **more)


def scores(samples: Any = ()) -> LeftOut:
    return leave_one_group_out(CODES, IDS, GROUPS, samples=samples)


def tried(before: LeftOut, after: LeftOut) -> None:
    trial((before, UNCALIBRATED), (after, UNCALIBRATED), names=str)


def head() -> Head:
    return solve(moments())


def ahead(codes: Any = CODES, class_ids: Any = IDS, groups: Any = GROUPS, **more: Any) -> None:
    outlook(codes, class_ids, groups, seed=0, budget_s=0.0, clock=lambda: 0.0, **more)


def add_base(samples: Any = SAMPLES, class_ids: Any = IDS, groups: Any = GROUPS, codes: Any = CODES) -> None:
    fold = Fold(SPACE, D)
    empty = fold.digest()
    try:
        fold.add_base(samples, class_ids, groups, codes, {A: "good", B: "bad"})
    finally:
        assert fold.digest() == empty
        assert len(fold.live_set()) == 0


def write(body: Any, *, device: str = "line-7", counter: int = 1) -> None:
    Chain(device).write(body, counter=counter, wall_time_us=0)


DIGEST = hashlib.sha256(b"").digest()
SHORT = IDS[:-1]

REFUSED: list[tuple[str, Callable[[], object], type[Exception], str]] = [
    ("floats", lambda: add(CODES.astype(np.float32), IDS), FeatureSizeError, "codes float32 (12, 8), not int8"),
    ("one row", lambda: add(CODES[0], [A]), FeatureSizeError, "codes int8 (8,), not int8 (n, 8)"),
    ("another size", lambda: add(CODES[:, :5], IDS), FeatureSizeError, "codes int8 (12, 5), not int8 (n, 8)"),
    ("a list", lambda: add(CODES.tolist(), IDS), TypeError, "codes are an array (n, 8) int8, not list"),
    ("too few ids", lambda: add(CODES, SHORT), ValueError, "11 class ids for 12 codes: one for each"),
    ("names for ids", lambda: add(CODES, ["good"] * 12), TypeError, "a class id is 16 bytes, not str 'good'"),
    ("short ids", lambda: add(CODES, [b"a"] * 12), ValueError, "a class id is 16 bytes, not 1: b'a'"),
    ("taken out by name", lambda: subtract(CODES, ["good"] * 12), TypeError, "a class id is 16 bytes, not str"),
    ("taken out twice", lambda: subtract(np.tile(CODES, (2, 1)), IDS * 2), HeadError, "has fewer samples"),
    ("nothing learned", lambda: solve(Moments(D)), HeadError, "no labelled samples"),
    ("decide floats", lambda: head().decide(FLOATS), FeatureSizeError, "codes float64 (12, 8), not int8"),
    ("decide one row", lambda: head().decide(CODES[0]), FeatureSizeError, "codes int8 (8,), not int8 (n, 8)"),
    ("learn by name", lambda: head().with_sample(CODES[0], NAME), TypeError, "not str 'good'"),
    ("left out: groups", lambda: left_out(groups=GROUPS[:-1]), ValueError, "11 groups for 12 codes: one for each"),
    ("left out: ids", lambda: left_out(class_ids=SHORT), ValueError, "11 class_ids for 12 codes"),
    ("left out: names", lambda: left_out(class_ids=["a"] * 12), TypeError, "a class id is 16 bytes"),
    ("left out: floats", lambda: left_out(FLOATS, learned=moments()), FeatureSizeError, "not int8 (n, d)"),
    ("left out: a list", lambda: left_out(CODES.tolist()), TypeError, "codes are an array (n, d) int8"),
    ("left out: one group", lambda: left_out(groups=["1"] * 12), HeadError, "at least two groups"),
    ("left out: only", lambda: left_out(only=np.ones(3, bool)), ValueError, "3 only for 12 codes"),
    ("left out: row numbers", lambda: left_out(only=np.arange(12)), ValueError, "`only` is (n,) bool, not int64"),
    ("left out: samples", lambda: left_out(samples=SAMPLES[:4]), ValueError, "4 samples for 12 codes"),
    ("grouping", lambda: derive_groups(CODES, SHORT, GROUPS), ValueError, "11 classes and 12 groups for 12 codes"),
    ("grouping floats", lambda: derive_groups(FLOATS, IDS, GROUPS), FeatureSizeError, "not int8 (n, d)"),
    ("outlook", lambda: ahead(groups=GROUPS[:-1]), ValueError, "12 classes and 11 groups for 12 codes"),
    ("outlook: only", lambda: ahead(only=np.ones(3, bool)), ValueError, "for 12 codes"),
    ("outlook: floats", lambda: ahead(FLOATS), FeatureSizeError, "not int8 (n, d)"),
    (
        "outlook: a rate",
        lambda: ahead(false_alarm_rate=NAN),
        ValueError,
        "`false_alarm_rate` is a share in [0, 1]",
    ),
    (
        "calibrate: no number",
        lambda: calibrate(scores(), NAN),
        ValueError,
        "`false_alarm_rate` is a share in [0, 1], not nan",
    ),
    (
        "calibrate: below",
        lambda: calibrate(scores(), -1),
        ValueError,
        "`false_alarm_rate` is a share in [0, 1], not -1",
    ),
    ("suspects: no ids", lambda: suspects(scores(), UNCALIBRATED), ValueError, "`left_out` has no sample ids"),
    (
        "suspects: below",
        lambda: suspects(scores(SAMPLES), UNCALIBRATED, limit=-1),
        ValueError,
        "`limit` is 0 or more",
    ),
    ("agreement", lambda: agreement(scores(), ["ines"]), ValueError, "1 `who` for 12 samples: one for each"),
    ("trial: no ids", lambda: tried(scores(SAMPLES), scores()), ValueError, "`after` has no sample ids"),
    ("trial: none before", lambda: tried(scores(), scores(SAMPLES)), ValueError, "`before` has no sample ids"),
    (
        "trial: an id twice",
        lambda: tried(scores(SAMPLES[:1] * 12), scores(SAMPLES)),
        ValueError,
        "`before` has a sample",
    ),
    (
        "error of none",
        lambda: calibration_error(np.zeros((0, 2)), np.zeros(0, int)),
        ValueError,
        "`truth` is empty",
    ),
    ("scale of none", lambda: encode(FLOATS, 0.0), ValueError, "`scale` is above 0, not 0.0"),
    ("scale", lambda: encode(FLOATS, NAN), ValueError, "`scale` is above 0, not nan"),
    ("codes of nothing", lambda: Fold(SPACE, 0), ValueError, "`feature_size` is 1 or more"),
    ("features in a list", lambda: encode(LIST, 1.0), TypeError, "features are an array (n, d)"),
    ("space as bytes", lambda: Fold(BYTES, D), ValueError, "a feature space id is 64 hex digits"),
    ("space cut short", lambda: Fold("5a", D), ValueError, "a feature space id is 64 hex digits"),
    ("base: groups", lambda: add_base(groups=GROUPS[:-1]), ValueError, "11 groups for 12 samples"),
    ("base: names", lambda: add_base(class_ids=["good"] * 12), TypeError, "a class id is 16 bytes"),
    ("base: files", lambda: add_base(samples=[f"{i}.png" for i in range(12)]), ValueError, "a sample id is 32"),
    ("base: floats", lambda: add_base(codes=FLOATS), FeatureSizeError, "codes float64"),
    ("space in a log", lambda: write(CodeRecord(TEXT, SAMPLES[0], "g", DIGEST)), LabelError, "CodeRecord.space"),
    ("code in a log", lambda: write(CodeRecord(bytes(32), SAMPLES[0], "g", b"x")), LabelError, "CodeRecord.code_"),
    ("label by name", lambda: write(Label(SAMPLES[0], NAME, "ines")), LabelError, "Label.class_id: Expected"),
    ("a long name", lambda: write(DefineClass(A, "x" * 65, "ines")), LabelError, "DefineClass.name: Expected"),
    ("a wild counter", lambda: write(Label(SAMPLES[0], A, ""), counter=0), LabelError, "counter: Exp"),
    ("a device's name", lambda: write(Label(SAMPLES[0], A, ""), device="A b"), LabelError, "device: Exp"),
    ("another's object", lambda: write({"label": 1}), LabelError, "dict: "),
    ("no message", lambda: write(object()), LabelError, "object: "),
]


@pytest.mark.parametrize(("wrong", "kind", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_wrong_use_is_told_what_is_wrong(wrong: Callable[[], object], kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=re.escape(says)) as refused:
        wrong()
    if isinstance(refused.value, HeadwayError):
        assert refused.value.hint


def test_the_hint_says_which_of_it_is_wrong() -> None:
    hints = []
    for codes in (FLOATS, CODES[0], CODES[:, :5]):
        with pytest.raises(FeatureSizeError) as refused:
            head().decide(codes)
        hints.append(refused.value.hint)
    assert [hint.split()[0] for hint in hints] == ["Make", "Give", "They"]
    assert "encode" in hints[0]


def test_a_frame_that_is_none_is_told(folder: Path) -> None:
    bundle = Bundle.open(folder / "bundle")
    pipeline = Pipeline(bundle, None, open_runtime(bundle, None))
    encoded: Any = [picture("good", 1)]
    with pytest.raises(TypeError, match=r"a frame is an array \(h, w, 3\) uint8, not bytes"):
        pipeline.codes(encoded)
    assert base_head(bundle).decide(pipeline.codes([])).class_index.shape == (0,)


def test_a_record_that_nobody_could_read_is_not_folded_in_silence() -> None:
    fold = Fold(SPACE, D)
    entry = Entry("line-7", 1, 1, 0, bytes(32), CodeRecord(TEXT, SAMPLES[0], "g", DIGEST))
    with pytest.raises(LabelError, match=r"CodeRecord\.space"):
        fold.apply(Record(entry))
    assert fold.counter == 0


@pytest.mark.parametrize(
    "body",
    [
        Label(SAMPLES[0], None, "ines"),
        CodeRecord(bytes(32), SAMPLES[0], "g", DIGEST),
        MergeClasses(A, B, ""),
        Quarantine("line-7", "ines", 5, "why", "chief"),
    ],
    ids=lambda body: type(body).__name__,
)
def test_what_a_log_may_hold_is_written(body: Any) -> None:
    write(body)


def test_samples_of_a_bundle_fit_a_fold(folder: Path) -> None:
    base: BaseSamples = Bundle.open(folder / "bundle").base()
    fold = Fold(SPACE, base.codes.shape[1])
    fold.add_base(iter(base.samples), iter(base.class_ids), iter(base.groups), base.codes, {})
    assert len(fold.live_set()) == len(base.samples)
