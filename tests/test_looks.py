"""Crops cut in torch, as on a GPU, beside the same ones cut by OpenCV."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from export.crops import Pool, _cells, _visible, augmented
from export.looks import OnGpu, OnProcessor, Views, cells_of, looks, relit, views_of, visible, warped
from export.pretrain import HELD_OUT, MEAN, STD
from export.sheet_source import TASK, Drawer, Source
from sdk.surfaces.sheets import DEFECT_NAMES, MARK_PX

pytestmark = pytest.mark.torch

SOURCE = Source(seed=5, recipes=28, without=HELD_OUT, pool=12, fresh=1, aimed=0.5, size_px=96)
HERE = torch.device("cpu")
SIDE = 64
MANY = 200


@pytest.fixture(scope="module")
def sheets() -> tuple[np.ndarray, np.ndarray]:
    drawn = [SOURCE.sheet(number) for number in range(12)]
    chosen = np.random.default_rng(0).integers(0, 12, MANY)
    return np.stack([s.frame for s in drawn])[chosen], np.stack([s.marks for s in drawn])[chosen]


@pytest.fixture(scope="module")
def views(sheets: tuple[np.ndarray, np.ndarray]) -> Views:
    marks = torch.from_numpy(sheets[1].astype(np.int32))
    return views_of(np.random.default_rng(1), SOURCE, marks, SIDE)


def test_a_view_shows_the_pixels_that_opencv_finds_there(
    sheets: tuple[np.ndarray, np.ndarray], views: Views
) -> None:
    frames, _ = sheets
    rgb = torch.from_numpy(np.ascontiguousarray(frames[..., ::-1].transpose(0, 3, 1, 2)))
    found = warped(rgb, views.matrices, SIDE).permute(0, 2, 3, 1).numpy()[..., ::-1]
    expected = [
        cv2.warpAffine(frame, matrix.double().numpy(), (SIDE, SIDE),
                       flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101)
        for frame, matrix in zip(frames, views.matrices, strict=True)
    ]  # fmt: skip
    off = np.abs(found - np.stack(expected).astype(np.float32))
    # OpenCV knows thirty-second parts of a pixel, and whole levels.
    assert off.mean() < 0.6
    assert np.quantile(off, 0.999) < 8


def test_cells_and_labels_are_those_of_the_processor(sheets: tuple[np.ndarray, np.ndarray], views: Views) -> None:
    marks = sheets[1]
    there = torch.from_numpy(marks.astype(np.int32))
    cells = cells_of(there, views.matrices, SIDE).numpy()
    shown, counted = (part.numpy() for part in visible(there, views, SIDE))
    assert cells.shape == (MANY, SIDE // MARK_PX, SIDE // MARK_PX)
    assert (cells != 0).mean() > 0.02
    assert 0 < shown.mean() < 0.5
    assert 0.9 < counted.mean() < 1
    alike = labels = 0.0
    for i, matrix in enumerate(views.matrices.double().numpy()):
        alike += float((cells[i] == _cells(marks[i], matrix, SIDE)).mean()) / MANY
        one, two = _visible(marks[i], matrix, float(views.scales[i]), SIDE)
        labels += float(((one == shown[i]) & (two == counted[i])).mean()) / MANY
    # A point half-way between two marks may fall to either.
    assert alike > 0.995
    assert labels > 0.998


def test_views_are_spread_as_those_of_the_processor(sheets: tuple[np.ndarray, np.ndarray]) -> None:
    """As many crops show a defect, and no more without aiming at them."""
    aimed, anywhere = (
        float(OnGpu(replace(SOURCE, aimed=share), 0, HERE, MEAN, STD).batch(0, 400, SIDE).shown.mean())
        for share in (1.0, 0.0)
    )
    cut = Pool(replace(SOURCE, aimed=1.0)).crops(0, 400, SIDE)
    assert aimed > anywhere
    assert abs(aimed - float(cut.shown.mean())) < 0.25 * aimed
    marks = torch.from_numpy(sheets[1].astype(np.int32))
    empty = views_of(np.random.default_rng(1), replace(SOURCE, aimed=1.0), torch.zeros_like(marks), SIDE)
    centre = empty.matrices[:, :, :2].sum(2) * (SIDE / 2) + empty.matrices[:, :, 2]
    room = ((SOURCE.size_px - empty.scales * SIDE) / 2).clamp(min=0)[:, None]
    assert ((centre - SOURCE.size_px / 2).abs() <= room + 1e-2).all()  # nothing to aim at: anywhere on the sheet


def test_light_is_changed_as_on_the_processor() -> None:
    crops = Pool(SOURCE).crops(0, 400, 32)
    known = torch.from_numpy(augmented(crops, MEAN, STD, 1, 0))
    images = torch.from_numpy(np.ascontiguousarray(crops.images[..., ::-1].transpose(0, 3, 1, 2))).float()
    noise = torch.Generator().manual_seed(3)
    seen = relit(images, np.random.default_rng(2), noise, MEAN, STD)
    assert seen.shape == known.shape
    one, other = (
        torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), x.amax((1, 2, 3))]).sort(1).values for x in (seen, known)
    )
    assert ((one - other).abs().median(1).values < 0.12).all()
    grey = (seen[:, 0] == seen[:, 1]).flatten(1).all(1)
    assert 0.4 < float(grey.float().mean()) < 0.6


def test_the_same_step_gives_the_same_crops_and_another_gives_others() -> None:
    one, other = (OnGpu(SOURCE, processes, HERE, MEAN, STD) for processes in (0, 1))
    try:
        for step in range(3):
            for mine, its in zip(one.batch(step, 8, 48), other.batch(step, 8, 48), strict=True):
                assert torch.equal(mine, its)
        assert not torch.equal(one.again(7, 8, 48).pixels, one.again(8, 8, 48).pixels)
    finally:
        other.close()


def test_both_kinds_say_the_same_in_the_same_shapes() -> None:
    mine, its = (kind(SOURCE, 0, HERE, MEAN, STD).batch(0, 6, 48) for kind in (OnGpu, OnProcessor))
    for one, other in zip(mine, its, strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
    assert mine.shown.shape == (6, len(DEFECT_NAMES))
    assert isinstance(looks(SOURCE, 0, HERE, MEAN, STD), OnProcessor)


def test_a_drawer_gives_sheets_from_any_number_on() -> None:
    helped = Drawer(SOURCE, processes=1)
    assert helped.missing(8) == range(8, 20)  # no more than the pool holds
    try:
        for number in range(TASK - 2, TASK + 2):  # as a run that goes on does, from the middle of a task
            assert helped.sheet(number).frame.tobytes() == SOURCE.sheet(number).frame.tobytes()
        assert helped.missing(0) == range(TASK + 2, 12)
    finally:
        helped.close()
