"""Frames are cut into tiles that cover the region, and nothing else is ever looked at."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.camera import Box, Shot, encode_png
from device_agent.config import RecipeSettings
from device_agent.recipe import MASK_GREY, MAX_SHRINK, Recipe, tile_boxes
from sdk.errors import ConfigError
from sdk.images import decode, sample_id
from sdk.preprocess import Frame

INPUT = (224, 224)


def noise(width: int, height: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def shot_of(frame: Frame) -> Shot:
    return Shot(frame, 100.0, "line-1/p", "camera 0", delivered=encode_png(frame), part="p")


def cut(frame: Frame, input_px: tuple[int, int] = INPUT, **settings: Any) -> list[Shot]:
    return Recipe(RecipeSettings(**settings)).tiles(shot_of(frame), input_px)


def test_a_small_frame_stays_whole_and_as_it_was_delivered() -> None:
    shot = shot_of(noise(640, 480))
    assert Recipe().tiles(shot, INPUT) == [shot]
    assert shot.data == shot.delivered


def test_a_5_megapixel_frame_is_never_squeezed() -> None:
    tiles = cut(noise(2592, 1944))
    assert len(tiles) == 12
    for tile in tiles:
        height, width = tile.frame.shape[:2]
        assert width <= MAX_SHRINK * 224
        assert height <= MAX_SHRINK * 224


@pytest.mark.parametrize(
    ("frame", "pictures", "tile"),
    [
        ((2592, 1944), (448, 448), (448, 448)),
        ((2592, 1944), (300, 400), (400, 300)),
        ((2592, 1944), (1944, 2592), (896, 896)),  # trained on whole frames: never squeezed all the same
        ((2592, 1944), (40, 40), (896, 896)),  # thousands of tiles
        ((640, 480), (200, 200), (640, 480)),  # what is not large stays whole
    ],
)
def test_a_large_frame_is_cut_as_large_as_the_pictures_that_the_release_learned_from(
    frame: tuple[int, int], pictures: tuple[int, int], tile: tuple[int, int]
) -> None:
    """Frame and tile: width, height; pictures: height, width."""
    cuts = Recipe().tiles(shot_of(noise(*frame)), INPUT, pictures)
    assert {each.frame.shape[1::-1] for each in cuts} == {tile}


def test_the_settings_go_before_what_the_release_learned_from() -> None:
    cuts = Recipe(RecipeSettings(tile_px=500)).tiles(shot_of(noise(2592, 1944)), INPUT, (448, 448))
    assert {each.frame.shape for each in cuts} == {(500, 500, 3)}


def test_tiles_are_cut_at_the_scale_that_the_settings_say() -> None:
    tiles = cut(noise(700, 500), tile_px=224, overlap=0.0)
    assert len(tiles) == 4 * 3
    assert {tile.frame.shape for tile in tiles} == {(224, 224, 3)}


def test_a_tile_has_the_shape_of_the_backbones_input() -> None:
    assert {tile.frame.shape[:2] for tile in cut(noise(800, 600), (128, 256), tile_px=256)} == {(128, 256)}


def test_a_tile_is_a_sample_of_its_own() -> None:
    frame = noise(700, 500)
    tiles = cut(frame, tile_px=224)
    assert len({tile.sample_id for tile in tiles}) == len(tiles)
    for number, tile in enumerate(tiles, 1):
        assert tile.sample_id == sample_id(tile.data)
        assert tile.tile == number
        assert tile.box is not None
        x, y, width, height = tile.box
        assert np.array_equal(decode(tile.data), frame[y : y + height, x : x + width])
        assert tile.source == f"camera 0, tile {number} of {len(tiles)}"
        assert (tile.part, tile.group) == ("p", "line-1/p")


def test_only_the_region_is_looked_at() -> None:
    frame = noise(640, 480)
    (tile,) = cut(frame, region=(100, 50, 300, 200))
    assert tile.box == Box(100, 50, 300, 200)
    assert np.array_equal(tile.frame, frame[50:250, 100:400])


def write_mask(folder: Path, hidden: Box, width: int = 400, height: int = 300) -> Path:
    mask = np.full((height, width, 3), 255, np.uint8)
    mask[hidden.y : hidden.y + hidden.height, hidden.x : hidden.x + hidden.width] = 0
    (folder / "mask.png").write_bytes(encode_png(mask))
    return folder / "mask.png"


def test_what_the_mask_hides_changes_nothing(tmp_path: Path) -> None:
    mask = write_mask(tmp_path, Box(0, 0, 150, 300))
    one, other = noise(400, 300), noise(400, 300)
    other[:, :150] = 255 - other[:, :150]
    (tile,), (same,) = cut(one, mask=mask), cut(other, mask=mask)
    assert tile.sample_id == same.sample_id
    assert (tile.frame[:, :150] == MASK_GREY).all()
    assert np.array_equal(tile.frame[:, 150:], one[:, 150:])


def test_the_cameras_own_frame_stays_as_it_is_under_a_mask(tmp_path: Path) -> None:
    frame = noise(400, 300)
    before = frame.copy()
    cut(frame, mask=write_mask(tmp_path, Box(0, 0, 150, 300)))
    assert np.array_equal(frame, before)


def test_tiles_that_the_mask_hides_wholly_are_left_out(tmp_path: Path) -> None:
    mask = write_mask(tmp_path, Box(0, 0, 200, 300))
    boxes = [tile.box for tile in cut(noise(400, 300), mask=mask, tile_px=100, overlap=0.0)]
    assert boxes == [Box(x, y, 100, 100) for y in (0, 100, 200) for x in (200, 300)]


@given(
    st.integers(8, 3000),
    st.integers(8, 3000),
    st.integers(8, 1500),
    st.integers(8, 1500),
    st.sampled_from([0.0, 0.125, 0.5]),
)
def test_tiles_cover_the_region_and_nothing_beyond_it(
    width: int, height: int, wide: int, high: int, overlap: float
) -> None:
    region = Box(17, 5, width, height)
    tile = min(wide, width), min(high, height)
    try:
        boxes = tile_boxes(region, tile, overlap)
    except ConfigError:
        return
    seen = np.zeros((height + 5, width + 17), bool)
    for box in boxes:
        assert (box.width, box.height) == tile
        seen[box.y : box.y + box.height, box.x : box.x + box.width] = True
    assert seen[5:, 17:].all()
    assert not seen[:5].any()
    assert not seen[:, :17].any()


@given(st.integers(9, 3000), st.integers(8, 1500), st.sampled_from([0.0, 0.125, 0.5]))
def test_a_defect_up_to_the_overlap_lies_whole_in_a_tile(length: int, tile: int, overlap: float) -> None:
    tile = min(tile, length - 1)
    try:
        boxes = tile_boxes(Box(0, 0, length, 8), (tile, 8), overlap)
    except ConfigError:
        return
    shared = [left.x + tile - right.x for left, right in pairwise(boxes)]
    assert min(shared) >= int(tile * overlap) - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": (500, 0, 200, 100)}, "does not lie in a frame of 640 x 480"),
        ({"region": (0, 400, 100, 100)}, "does not lie in a frame"),
        ({"tile_px": 8}, "tiles of 8 x 8 pixels"),
        ({"mask": Box(0, 0, 10, 10)}, "mask has 400 x 300 pixels, the frame 640 x 480"),
    ],
    ids=["right", "below", "too-many", "mask-size"],
)
def test_a_recipe_that_does_not_fit_the_frame_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    if "mask" in settings:
        settings = {"mask": write_mask(tmp_path, settings["mask"])}
    with pytest.raises(ConfigError, match=message):
        cut(noise(640, 480), **settings)


def test_a_mask_that_hides_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no white pixel"):
        cut(noise(400, 300), mask=write_mask(tmp_path, Box(0, 0, 400, 300)))
    mask = write_mask(tmp_path, Box(0, 0, 300, 300))
    with pytest.raises(ConfigError, match="hides the whole region"):
        cut(noise(400, 300), mask=mask, region=(0, 0, 300, 300))
    with pytest.raises(ConfigError, match="hides the whole region"):
        Recipe(RecipeSettings(mask=mask, region=(0, 0, 300, 300))).check((300, 400))


@pytest.mark.parametrize("content", [None, b"", b"no image"], ids=["missing", "empty", "no-image"])
def test_a_mask_that_is_no_image_is_refused_at_the_start(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "mask.png").write_bytes(content)
    with pytest.raises(ConfigError, match=r"camera\.recipe\.mask"):
        Recipe(RecipeSettings(mask=tmp_path / "mask.png"))
