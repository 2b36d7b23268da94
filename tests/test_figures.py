"""Figures: the same from call to call, classes that can be told apart, and what is asked of them in training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sdk.surfaces.figures import FAMILY_NAMES, draw_figure, family_of

PIECES = 3
FEW = 2 * len(FAMILY_NAMES)


def test_a_figure_is_the_same_from_call_to_call_and_another_for_every_number() -> None:
    one, again = draw_figure(3, 1, size_px=64), draw_figure(3, 1, size_px=64)
    assert one.tobytes() == again.tobytes()
    assert one.shape == (64, 64, 3)
    assert one.dtype == np.uint8
    others = [draw_figure(3, 2, size_px=64), draw_figure(11, 1, size_px=64), draw_figure(3, 1, seed=1, size_px=64)]
    assert len({frame.tobytes() for frame in (one, *others)}) == 4


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_draws_something(family: str) -> None:
    recipe = FAMILY_NAMES.index(family)
    assert family_of(recipe + len(FAMILY_NAMES)) == family
    shown = []
    for number in range(6):
        frame = draw_figure(recipe + number * len(FAMILY_NAMES), number, size_px=96)
        edges = np.abs(np.diff(frame.mean(2).astype(np.float32), axis=0))
        shown.append(float(frame.mean(2).std()) > 6 or float(np.quantile(edges, 0.98)) > 8)
        assert 10 < frame.mean() < 245
    assert sum(shown) >= 4  # a faint one may drown in the camera's noise


@pytest.mark.parametrize(("recipe", "piece", "size_px"), [(-1, 0, 64), (0, -1, 64), (0, 0, 16)])
def test_no_figure_is_drawn_of_numbers_that_mean_none(recipe: int, piece: int, size_px: int) -> None:
    with pytest.raises(ValueError, match="no figure"):
        draw_figure(recipe, piece, size_px=size_px)


@pytest.mark.torch
def test_nothing_is_asked_of_a_figure_but_which_it_is() -> None:
    torch = pytest.importorskip("torch")
    from export.answers import cell_loss
    from export.looks import OnProcessor
    from export.pretrain import HELD_OUT, MEAN, STD, Plan, Recipe, pretrain
    from export.sheet_source import Source

    source = Source(seed=5, recipes=14, without=HELD_OUT, pool=44, fresh=1, size_px=96, figures=8)
    sheets = [source.sheet(number) for number in range(22)]
    assert sorted(sheet.recipe for sheet in sheets) == list(range(22))
    assert not any(sheet.marks.any() for sheet in sheets if sheet.recipe >= 14)
    batch = OnProcessor(source, 0, torch.device("cpu"), MEAN, STD).batch(0, 60, 48)
    assert batch.surface.tolist() == [recipe < 14 for recipe in batch.recipes.tolist()]
    assert 5 < int((~batch.surface).sum()) < 40
    said = torch.zeros(2, 3, 4, 4)
    wanted = torch.ones_like(said)
    assert float(cell_loss(said, wanted, torch.tensor([False, False]))) == 0
    assert float(cell_loss(said, wanted, torch.tensor([True, True]))) == float(cell_loss(said, wanted))

    tiny = {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": "deep", "global_pool": "catavgmax"}
    recipe = replace(
        Recipe(), model_args=tiny, surfaces=14, figures=8, batch=16, sides_px=(32, 32), hidden=32,
        pool=22, fresh=0, statistics=1, cell_levels=3,
    )  # fmt: skip
    _, outcome = pretrain(Plan(steps=200, mixed=False), recipe)
    first, last = outcome.marks
    assert last.surface_loss < first.surface_loss - 0.2
    assert last.kind_loss < first.kind_loss - 0.2
