"""docs/bundle.md says what the code does: every member, every limit, and its worked example."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from export.report import Report
from sdk import bundle
from sdk.codes import MAX_FEATURE_SIZE, feature_space_id
from sdk.moments import MAX_SAMPLES
from sdk.preprocess import MAX_INPUT_SIDE_PX, Preprocess

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "bundle.md").read_text()


def test_every_member_of_the_manifest_is_described() -> None:
    parts = (
        bundle.Manifest, bundle.FileEntry, bundle.ClassEntry, bundle.PrecisionEntry, bundle.HeadEntry,
        bundle.SplitEntry, bundle.Lineage, bundle.MapEntry, bundle.ReadEntry, bundle.PicturesEntry,
        Preprocess,
    )  # fmt: skip
    described = set(re.findall(r"`([a-z0-9_]+)`", TEXT))
    for part in parts:
        assert set(part.__struct_fields__) <= described, part.__name__


def test_the_limits_are_the_codes() -> None:
    limits = (
        bundle.MAX_MANIFEST_BYTES, bundle.MAX_FILES, bundle.MAX_BUNDLE_BYTES, bundle.MAX_CLASSES,
        bundle.MAX_GROUP_BYTES, bundle.MAX_MAPS, bundle.MAX_MAP_VALUES, MAX_FEATURE_SIZE, MAX_INPUT_SIDE_PX,
        MAX_SAMPLES, bundle.MAX_PICTURE_SIDE_PX,
    )  # fmt: skip
    for limit in limits:
        assert f"{limit:,}" in TEXT or str(limit) in TEXT
    assert f"versions 1 to {bundle.FORMAT_VERSION}\n" in TEXT


def test_the_worked_example_of_a_feature_space_id_holds() -> None:
    line = next(line for line in TEXT.splitlines() if '"height":8' in line).strip()
    digest = hashlib.sha256(line.encode()).hexdigest()
    assert digest == feature_space_id("ab" * 32, Preprocess(height=8, width=16), 0.25)
    assert digest in TEXT


def test_every_member_of_the_report_is_described() -> None:
    described = set(re.findall(r"`([a-z0-9_]+)`", (DOCS / "export.md").read_text()))
    assert {field.name for field in msgspec.structs.fields(Report)} <= described
