"""The soak tells what is lost and what grows, and its trouble really befalls real processes (T22)."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import soak
from benchmarks.soak import Point, Soaked, judge
from benchmarks.soak_slope import Reading, between_lives, within_a_life
from sdk.labels import Body, CodeRecord, Label
from tests.soak import SOAK
from tests.tiny import picture, tiny_bundle

SAMPLE, OTHER, CLASS = b"s" * 32, b"o" * 32, b"c" * 16
LIFE_S = 100.0


def steady(count: int = 40) -> Soaked:
    """Return a soak of two lives in which nothing grows and nothing is lost."""
    points = [
        Point(
            at_s=5.0 * i,
            age_s=5.0 * (i % 20),
            frames=1000 * i,
            labels=36 * i,
            release=f"soak-{i // 10}",
            lowest_mb=180.0,
            highest_mb=220.0,
            files=27,
            threads=19,
            store_mb=5.0,
            images_mb=60.0,
            backbone_p99_ms=12.0,
            verdict_p99_ms=90.0,
            errors=0,
        )
        for i in range(1, count + 1)
    ]
    log: dict[int, Body] = {1: CodeRecord(b"f" * 32, SAMPLE, "group", b"d" * 32), 2: Label(SAMPLE, CLASS, "soak")}
    return Soaked(points, [(10.0, "drop")], [(1, 2, SAMPLE, CLASS)], at_the_fleet=log)


def test_a_steady_soak_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(steady(), LIFE_S) == 0
    said = capsys.readouterr().out
    assert "labels answered for and not at the fleet: 0" in said
    assert "4 of them seen in service" in said or "5 of them seen in service" in said


@pytest.mark.parametrize(
    "log",
    [
        {},
        {2: Label(OTHER, CLASS, "soak")},
        {2: Label(SAMPLE, b"x" * 16, "soak")},
        {2: Label(SAMPLE, None, "soak")},
        {3: Label(SAMPLE, CLASS, "soak")},
    ],
)
def test_a_label_that_the_fleet_has_otherwise_or_elsewhere_is_lost(log: dict[int, Label]) -> None:
    found = steady()
    found.at_the_fleet = dict(log)
    assert found.lost() == 1
    assert judge(found, LIFE_S) == 1


@pytest.mark.parametrize(
    "grown",
    [
        lambda i, p: replace(p, lowest_mb=p.lowest_mb + 0.1 * i),
        lambda i, p: replace(p, highest_mb=p.highest_mb + 0.1 * i),
        lambda i, p: replace(p, backbone_p99_ms=p.backbone_p99_ms + 0.1 * i),
        lambda i, p: replace(p, files=p.files + i // 8),
        lambda i, p: replace(p, threads=p.threads + i // 8),
        lambda i, p: replace(p, images_mb=p.images_mb + i),
        lambda _, p: replace(p, errors=1),
    ],
)
def test_what_grows_or_fails_is_told(grown: object) -> None:
    found = steady()
    assert callable(grown)
    found.points = [grown(i, point) for i, point in enumerate(found.points)]
    assert judge(found, LIFE_S) == 1


def test_what_fills_after_a_start_is_no_growth() -> None:
    found = steady()
    found.points = [replace(p, lowest_mb=100.0) if p.age_s < 0.3 * LIFE_S else p for p in found.points]
    assert judge(found, LIFE_S) == 0


@pytest.mark.broker
@pytest.mark.skipif(not SOAK, reason="takes half a minute: make soak")
def test_broker_release_and_reboot_befall_a_real_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Labels that were answered for are at the fleet after all of it. A quick run's slopes say nothing."""
    tiny_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    for i in range(12):
        (tmp_path / "images" / f"{i}.png").write_bytes(picture("pit" if i % 2 else "rings", 900 + i))
    trouble = ["--minutes", "0.25", "--drops", "1", "--updates", "1", "--reboots", "2"]
    out = tmp_path / "soak"
    soak.main([str(tmp_path / "bundle"), "--images", str(tmp_path / "images"), *trouble, "--out", str(out)])
    said = capfd.readouterr().out
    assert "1 times without broker, 2 reboots, 1 releases published" in said
    assert "labels answered for and not at the fleet: 0" in said
    rows = list(csv.DictReader(out.with_suffix(".csv").open(encoding="utf-8")))
    assert int(rows[-1]["labels"]) > 0
    assert int(rows[-1]["frames"]) > 0
    assert out.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")


def warming(life: int, labels: int, *, mib_per_1000: float = 0.0, releases: int = 0) -> list[Reading]:
    """Return readings of a life in which memory grows with its age, and with each release."""
    rng = np.random.default_rng(life)
    found = []
    for burst in range(30):
        said = labels + 36 * burst
        came = 1 + (releases and burst > 12)
        mib = 150.0 + 2.0 * burst + 15.0 * (came - 1) + mib_per_1000 * said / 1000 + rng.normal(0, 0.5)
        found.append(Reading(life, 10.0 * burst, came, said, float(mib)))
    return found


@pytest.mark.parametrize("mib_per_1000", [0.0, 5.0])
def test_what_labels_cost_is_told_from_warmth_and_from_releases(mib_per_1000: float) -> None:
    lives = [
        each
        for life in range(6)
        for each in warming(life, 1080 * life, mib_per_1000=mib_per_1000, releases=life % 2)
    ]
    found = between_lives(lives)
    assert found is not None
    assert found.low <= mib_per_1000 + 0.2
    assert found.high >= mib_per_1000 - 0.2
    assert abs(found.mib - mib_per_1000) < 0.5
    told = within_a_life([each for each in lives if each.life == 0])
    assert told is not None
    assert told.low > 30, "the control: in one life warmth looks like labels"


def test_what_cannot_be_compared_is_not_told() -> None:
    assert between_lives(warming(0, 0)) is None
    apart = warming(1, 2000)
    assert between_lives([*warming(0, 0), *(each._replace(releases=7) for each in apart)]) is None
    assert within_a_life(warming(0, 0)[:10]) is None


def test_a_long_life_is_judged_after_its_warm_up() -> None:
    found = steady()
    one_life = [replace(p, age_s=p.at_s, release="soak-1") for p in found.points]
    found.points = [replace(p, lowest_mb=170.0 if p.age_s < 60 else 180.0) for p in one_life]
    assert judge(found, 200.0) == 0
    found.points = [replace(p, lowest_mb=p.lowest_mb + 0.1 * i) for i, p in enumerate(one_life)]
    assert judge(found, 200.0) == 1
