"""Pretraining on drawn surfaces: the same after a kill, labels that say what a crop shows, a folder that loads."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from tests.commands import headway
from tests.schemas import bom_problem

pytest.importorskip("torch")

import torch
from torch import nn

from export.backbones import load_backbone
from export.checkpoint import Checkpoint
from export.crops import Pool, augmented
from export.drawn_tasks import Size, draw_tasks, scores_of
from export.looks import looks
from export.pretrain import HELD_OUT, Plan, Recipe, _Run, pretrain, recipe_of, side_px
from export.sheet_source import Source
from sdk.errors import ExportError
from sdk.surfaces import PRODUCT
from sdk.surfaces.sheets import DEFECT_NAMES, KIND_NAMES, MARK_PX, Sheet

pytestmark = pytest.mark.torch

TINY = Recipe(
    model_args={"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": "deep", "global_pool": "catavgmax"},
    surfaces=28, batch=8, sides_px=(32, 48), hidden=16, pool=6, fresh=1, statistics=2,
)  # fmt: skip
SOURCE = Source(seed=5, recipes=28, without=HELD_OUT, pool=6, fresh=1, aimed=0.5, size_px=96)


def _weights(network: nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in network.state_dict().values()]


def test_the_same_steps_see_the_same_crops_whoever_draws() -> None:
    alone, helped = Pool(SOURCE), Pool(SOURCE, processes=2)
    try:
        for step in range(3):
            one, other = alone.crops(step, 8, 48), helped.crops(step, 8, 48)
            assert one.images.tobytes() == other.images.tobytes()
            assert (one.shown == other.shown).all()
            assert (one.recipes == other.recipes).all()
    finally:
        helped.close()


def test_a_pool_entered_late_is_the_pool_as_it_was_then() -> None:
    early, late = Pool(SOURCE), Pool(SOURCE)
    for step in range(9):
        crops = early.crops(step, 8, 32)
    assert late.crops(8, 8, 32).images.tobytes() == crops.images.tobytes()


def test_as_many_sheets_in_a_row_as_there_are_recipes_show_each_once() -> None:
    assert sorted(SOURCE.sheet(number).recipe for number in range(28)) == list(range(28))


def test_a_crop_is_labelled_by_what_it_shows() -> None:
    """Found again by looking: where a crop is said to show a defect of its own colour, the colour is there."""
    pool = Pool(SOURCE)
    crops = pool.crops(0, 200, 64)
    assert set(np.unique(crops.shown)) == {0, 1}
    assert ((crops.shown == 1) <= (crops.counted == 1)).all()  # what is shown counts
    assert 0.9 < crops.counted.mean() < 1
    marked = dict.fromkeys(range(28), False)
    for number in range(6):
        sheet = SOURCE.sheet(number)
        marked[sheet.recipe] = bool(sheet.marks.any())
    for shown, recipe in zip(crops.shown, crops.recipes.tolist(), strict=True):
        assert marked[recipe] or not shown.any()


class _Painted(Source):
    """Sheets that are white where their marks are and black elsewhere."""

    def sheet(self, number: int) -> Sheet:
        sheet = super().sheet(number)
        white = np.where(sheet.marks != 0, np.uint8(255), np.uint8(0)).repeat(MARK_PX, 0).repeat(MARK_PX, 1)
        return replace(sheet, frame=np.stack([white] * 3, 2))


def test_cells_are_marked_where_the_picture_shows_the_defect() -> None:
    source = _Painted(**{one.name: getattr(SOURCE, one.name) for one in fields(SOURCE)})
    crops = Pool(source).crops(0, 60, 64)
    seen = crops.images[..., 0].reshape(60, 16, 4, 16, 4).mean((2, 4)) > 127
    said = crops.cells != 0
    assert said.mean() > 0.02
    # Squares that an edge goes through may fall either way; half a square aside, a fifth would differ.
    assert (seen & said).sum() > 0.88 * (seen | said).sum()
    bits = crops.cells[:, None] >> np.arange(len(DEFECT_NAMES))[:, None, None] & 1
    assert bits.max((2, 3))[crops.shown > 0].mean() > 0.97  # a speck may fall between samples


def test_what_is_held_out_is_never_drawn() -> None:
    assert {kind for kind, _ in HELD_OUT} == set(KIND_NAMES)
    assert all((kind, "crack") in HELD_OUT for kind in PRODUCT)
    for number in range(60):
        sheet = SOURCE.sheet(number)
        found = int(np.bitwise_or.reduce(sheet.marks, axis=None))
        shown = {name for i, name in enumerate(DEFECT_NAMES) if found & 1 << i}
        assert not {(KIND_NAMES[sheet.recipe % len(KIND_NAMES)], name) for name in shown} & HELD_OUT


def test_augmented_crops_stay_crops() -> None:
    crops = Pool(SOURCE).crops(0, 24, 48)
    before = crops.images.copy()
    seen = augmented(crops, 0.5, 0.25, seed=1, step=0)
    assert (crops.images == before).all()
    assert seen.shape == (24, 3, 48, 48)
    assert abs(float(seen.mean())) < 1.5
    grey = [bool((image[0] == image[1]).all()) for image in seen]
    assert 4 < sum(grey) < 20
    assert augmented(crops, 0.5, 0.25, seed=1, step=1).tobytes() != seen.tobytes()


def test_crops_grow_while_training() -> None:
    sides = [side_px(Recipe(sides_px=(64, 128)), 0, step, 100) for step in range(100)]
    assert (min(sides), max(sides)) == (64, 128)
    assert np.mean(sides[:20]) < 80
    assert np.mean(sides[-20:]) > 110
    assert all(side % 16 == 0 for side in sides)
    assert 64 % MARK_PX == 0


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    plan = Plan(seed=3, steps=4, mixed=False)
    whole, outcome = pretrain(plan, TINY)
    assert (outcome.steps, outcome.crops, outcome.resumed_at) == (4, 32, 0)

    def kill(done: int, total: int, _note: str) -> None:
        if (done, total) == (3, 4):
            raise KeyboardInterrupt

    checkpoint = Checkpoint(tmp_path / "training.safetensors", every_s=0)
    with pytest.raises(KeyboardInterrupt):
        pretrain(plan, TINY, checkpoint=checkpoint, on_step=kill)
    again, resumed = pretrain(plan, TINY, checkpoint=Checkpoint(tmp_path / "training.safetensors"))
    assert resumed.resumed_at == 2
    assert _weights(again) == _weights(whole)
    # Another plan does not take it up.
    _, other = pretrain(Plan(seed=4, steps=1, mixed=False), TINY, checkpoint=checkpoint)
    assert other.resumed_at == 0


def test_moments_lie_in_memory_as_their_weights_do_after_a_restart(tmp_path: Path) -> None:
    """AdamW on a GPU refuses others (found on an H100); a file keeps no order of memory."""
    checkpoint = Checkpoint(tmp_path / "training.safetensors", every_s=0)
    where, source = torch.device("cpu"), replace(SOURCE, recipes=TINY.surfaces)

    def run() -> _Run:
        shown = looks(source, 0, where, 0.5, 0.25)
        return _Run(Plan(0, 4), TINY, where, source, shown, checkpoint, lambda *_: None, lambda *_: None)

    one = run()
    state = one._start()
    one.whole.train()
    one._fill(0)
    one._step(0, 4)
    one._save(state)
    other = run()
    other._start()
    found = [
        (weight, one.optimizer.state[before], other.optimizer.state[weight])
        for before, weight in zip(one.whole.parameters(), other.whole.parameters(), strict=True)
    ]
    assert len(found) > 20
    for weight, mine, its in found:
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(mine[name], its[name])
            assert its[name].stride() == weight.stride()
    assert any(not weight.is_contiguous() for weight, _, _ in found)


def test_training_answers_its_own_questions_better_than_it_began() -> None:
    _, outcome = pretrain(Plan(seed=0, steps=200, mixed=False), STILL)
    first, last = outcome.marks
    assert last.kind_loss < first.kind_loss - 0.15
    assert last.defect_loss < 0.7 * first.defect_loss
    assert last.cell_loss < 0.7 * first.cell_loss


STILL = replace(TINY, batch=16, pool=14, fresh=0, surfaces=14, sides_px=(32, 32), hidden=32, statistics=1)
"""The same few sheets again and again."""


def test_time_plans_the_steps() -> None:
    _, outcome = pretrain(Plan(seed=0, minutes=0.02, mixed=False), TINY)
    assert outcome.steps >= 1


def test_drawn_tasks_tell_good_features_from_bad() -> None:
    """Features that are the label, and features that are noise."""
    tasks = draw_tasks(Size(parts=3, surfaces=3, pieces=7, draws=2))
    rng = np.random.default_rng(0)
    noise = rng.random((len(tasks.frames), 16)).astype(np.float32)
    telling = noise.copy()
    for _, rows, labels in tasks.tasks:
        telling[rows, labels] += 9
    for good, bad in zip(scores_of(telling, tasks, 2), scores_of(noise, tasks, 2), strict=True):
        assert good.accuracy > 0.95
        assert bad.accuracy < 0.6
    assert {score.task for score in scores_of(noise, tasks, 1)} == {
        "new defects",
        "faint defects",
        "varied parts",
        "new surfaces",
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    recipe = root / "recipe.json"
    recipe.write_text(json.dumps({"batch": 8, "pool": 4, "fresh": 1, "surfaces": 14, "sides_px": [32, 32],
                                  "hidden": 16, "statistics": 1, "model_args": TINY.model_args}))  # fmt: skip
    return root


def test_the_command_writes_a_folder_that_loads(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, figures = made / "out", made / "figures.json"
    command = ["export", "pretrain", "--steps", "2", "--seed", "7", "--no-measure", "--out", out]
    ended = headway(capfd, *command, "--recipe", made / "recipe.json", "--json", figures)
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in out.iterdir()) == [
        "card.md", "config.json", "mlbom.cdx.json", "model.safetensors", "recipe.json", "record.json",
    ]  # fmt: skip
    record = json.loads((out / "record.json").read_text())
    assert (record["seed"], record["outcome"]["steps"], record["recipe"]["batch"]) == (7, 2, 8)
    assert json.loads(figures.read_text()) == record
    backbone = load_backbone("resnet10t", str(out), levels=4)
    assert backbone.feature_size == record["feature_size"]
    assert (backbone.origin.licence, backbone.origin.sha256) == ("apache-2.0", record["sha256"])
    assert backbone.preprocess.mean == (0.5, 0.5, 0.5)
    problem = bom_problem((out / "mlbom.cdx.json").read_text())
    assert problem is None, problem
    card = (out / "card.md").read_text()
    assert record["sha256"] in card
    assert "--seed 7 --steps 2" in card

    again = headway(capfd, *command)
    assert again.code == 2
    assert "holds a backbone already" in again.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "recipe.json: "),
        (b"[]", "recipe.json: "),
        (b'{"bacth": 3}', "no 'bacth'"),
        (b'{"batch": "many"}', "batch"),
        (b"\xff", "recipe.json: "),
    ],
)
def test_a_recipe_that_is_none_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(ExportError) as refused:
        recipe_of(text, "recipe.json")
    assert says in str(refused.value)
    assert "batch" in refused.value.hint


def test_wrong_use_of_the_command_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for arguments, says in (
        ((), "--out"),
        (("--out", tmp_path / "a", "--steps", "0"), "--steps"),
        (("--out", tmp_path / "a", "--recipe", tmp_path / "none.json"), "none.json"),
        (("--out", file / "below", "--steps", "1"), "below"),
    ):
        ended = headway(capfd, "export", "pretrain", *arguments)
        assert ended.code == 2, arguments
        assert says in ended.err


def test_cells_cannot_be_asked_of_levels_that_are_not_there() -> None:
    with pytest.raises(ExportError, match="cells") as refused:
        pretrain(Plan(steps=1), replace(TINY, levels=2))
    assert "cells_weight to 0" in refused.value.hint
    _, outcome = pretrain(Plan(steps=1, mixed=False), replace(TINY, levels=2, cells_weight=0))
    assert outcome.marks[0].cell_loss == 0


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "training.safetensors"
    file.write_bytes(b"not one")
    with pytest.raises(ExportError, match="no checkpoint"):
        pretrain(Plan(steps=1), TINY, checkpoint=Checkpoint(file))
