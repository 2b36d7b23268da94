"""Near-duplicates: one part seen twice is found, two parts are not taken for one, and the set says how sure."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from export.leaks import FALSE_JOINS, Look, Pair, by_features, find_near_duplicates, joined, look
from sdk.images import open_images
from sdk.preprocess import Frame
from sdk.surfaces import write_image_set


def texture(seed: int, size: int = 150) -> Frame:
    """Return a grey surface of blobs, scratches and grain, (size, size, 3)."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 2) * 60
    for _ in range(4):
        a, b = (tuple(int(v) for v in rng.integers(0, size, 2)) for _ in range(2))
        cv2.line(field, a, b, float(rng.choice([-60, 60])), 2)
    return seen(np.asarray(field, np.float32))


def seen(field: Frame | np.ndarray[tuple[int, ...], np.dtype[np.float32]], light: float = 1.0) -> Frame:
    return np.dstack([np.clip((field + 110) * light, 0, 255).astype(np.uint8)] * 3)


def under_another_light(frame: Frame, *, shift: int = 0) -> Frame:
    """Return the picture darker, lit from the left, and cut a few pixels elsewhere."""
    h, w = frame.shape[:2]
    ramp = np.linspace(0.9, 0.45, w)[None, :, None]
    lit = np.clip(frame * ramp, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(lit[shift : h - 5, shift : w - 9])


@pytest.fixture(scope="module")
def strangers() -> list[Look]:
    return [look(texture(seed)) for seed in range(24)]


def test_one_part_is_found_under_another_light_and_crop(strangers: list[Look]) -> None:
    again = [look(under_another_light(texture(seed), shift=seed)) for seed in range(6)]
    found = find_near_duplicates([*strangers, *again])
    assert {(pair.first, pair.second) for pair in found.pairs} == {(i, 24 + i) for i in range(6)}
    assert found.expected_false <= FALSE_JOINS * 30


def test_a_set_of_strangers_has_none(strangers: list[Look]) -> None:
    assert find_near_duplicates(strangers).pairs == ()


def test_mirrored_pictures_are_no_near_duplicates(strangers: list[Look]) -> None:
    turned = [look(np.ascontiguousarray(texture(seed)[:, ::-1])) for seed in range(6)]
    assert find_near_duplicates([*strangers, *turned]).pairs == ()


def product(seed: int) -> Frame:
    """Return one of many like products in one place: the same lopsided shape, each with grain of its own."""
    frame = np.full((150, 150), 60, np.float32)
    cv2.fillPoly(frame, [np.array([[20, 30], [120, 20], [135, 90], [70, 130], [30, 110]], np.int32)], 170.0)
    cv2.circle(frame, (95, 55), 14, 90.0, -1)
    grain = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (150, 150)).astype(np.float32), (0, 0), 2)
    return seen(frame - 110 + 25 * grain)


def test_what_all_products_share_makes_no_near_duplicates_of_them() -> None:
    """A shape that is not its own mirror image: mirrored pictures alone would let everything be joined."""
    darker = np.clip(product(3) * np.linspace(0.9, 0.45, 150)[None, :, None], 0, 255).astype(np.uint8)
    found = find_near_duplicates([*(look(product(seed)) for seed in range(40)), look(darker)])
    assert found.common > found.strangers
    assert [(pair.first, pair.second) for pair in found.pairs] == [(3, 40)]


def test_products_that_lie_a_little_differently_are_not_joined_either() -> None:
    moved = [np.ascontiguousarray(product(s)[s % 4 : 146 + s % 4, s % 3 : 146 + s % 3]) for s in range(40)]
    assert len(find_near_duplicates([look(frame) for frame in moved]).pairs) <= 1


def test_drawn_parts_are_joined_by_part_and_not_wholesale(tmp_path: Path) -> None:
    write_image_set(tmp_path / "set", parts_per_class=8, frames_per_part=3, seed=7, size_px=96)
    looks: dict[bytes, Look] = {}
    images = open_images(tmp_path / "set", seen=lambda sample, frame: looks.__setitem__(sample, look(frame)))
    found = find_near_duplicates([looks[image.sample_id] for image in images.images])
    parts = defaultdict(set)
    for image, group in zip(
        images.images, joined([i.sample_id.hex() for i in images.images], found.pairs), strict=True
    ):
        parts[group].add(image.group)
    assert sum(len(of) > 1 for of in parts.values()) <= 1
    assert len(found.pairs) >= 12  # of about 45 pairs of frames of one part


def test_the_order_of_a_set_does_not_matter(strangers: list[Look]) -> None:
    looks = [*strangers[:20], look(under_another_light(texture(4)))]
    turned = find_near_duplicates(looks[::-1]).pairs
    assert [(20 - pair.second, 20 - pair.first) for pair in turned] == [(4, 20)]


def test_features_propose_and_pixels_decide(strangers: list[Look]) -> None:
    looks = [*strangers, look(under_another_light(texture(2)))]
    features = np.random.default_rng(0).normal(0, 1, (25, 12)).astype(np.float32)
    features[7] = features[9]  # alike to the backbone, and another part
    features[24] = features[2]
    found = by_features(looks, features, (), 0.6)
    assert [(pair.first, pair.second) for pair in found] == [(2, 24)]
    assert by_features(looks, features, {(2, 24)}, 0.6) == ()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_pictures_have_no_near_duplicates(n: int) -> None:
    assert find_near_duplicates([look(texture(0))] * n).pairs == ()


@pytest.mark.parametrize(
    "frame",
    [np.zeros((64, 64, 3), np.uint8), np.full((8, 3000, 3), 255, np.uint8), np.full((64, 64, 3), 7, np.uint8)],
)
def test_plain_pictures_are_compared_with_nothing(frame: Frame, strangers: list[Look]) -> None:
    assert look(frame).plain
    assert find_near_duplicates([look(frame), look(frame), *strangers[:8]]).pairs == ()


def test_groups_are_joined_in_chains_and_keep_their_first_name() -> None:
    pairs = [Pair(3, 4, 0.9, 0), Pair(0, 3, 0.9, 0)]
    assert joined(["b", "a", "a", "c", "d", "e"], pairs) == ["b", "a", "a", "b", "b", "e"]
