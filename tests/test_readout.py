"""The readout is chosen by measurement, within its budget, and the plainer one where nothing else is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from export.backbones import load_backbone
from export.cli import export
from export.progress import Log
from export.readout import Budget, Candidate, Readout, choose, choose_readout, difference
from export.report import ReadoutReport
from export.selection import Selection, select
from sdk.errors import ExportError
from sdk.images import open_images
from tests.test_export import Silent
from tests.tiny import write_pictures

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("graphs_once")]
torch.set_num_threads(1)  # tests run side by side; spinning threads cost more than they give

PX = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("weights") / "test_resnet.safetensors"
    save_file(load_backbone("test_resnet", "none").network.state_dict(), file)
    return str(file)


def learned(folder: Path, classes: tuple[str, ...], per_class: int) -> tuple[list[Path], Selection]:
    images = open_images(write_pictures(folder, classes, per_class))
    found = select(images, seed=0, hold_back=(), classes_from=None, log=Log(Silent()))
    return [images.images[row].path for row in found.rows], found


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Selection]:
    return learned(tmp_path_factory.mktemp("readout") / "images", ("good", "pit"), 12)


Tried = tuple[Readout, list[ReadoutReport]]


@pytest.fixture(scope="module")
def tried(weights: str, parts: tuple[list[Path], Selection]) -> Tried:
    """Everything at one input size."""
    return choose_readout(
        "test_resnet", weights, Readout(input_size_px=PX), Budget(pooling=True), *parts, Log(Silent())
    )


def test_all_readouts_of_a_size_are_tried_the_default_first(tried: Tried) -> None:
    _, reports = tried
    assert [(r.pool, r.levels) for r in reports] == [
        (pool, levels) for pool in (None, "max", "catavgmax") for levels in (1, 2, 3, 4)
    ]
    assert (reports[0].difference, reports[0].standard_error) == (0, 0)
    assert all(r.input_px == PX and r.latency_ms > 0 for r in reports)


def test_the_one_chosen_is_the_one_reported_and_has_its_features(tried: Tried, weights: str) -> None:
    readout, reports = tried
    (chosen,) = [r for r in reports if r.chosen]
    assert (chosen.pool, chosen.levels, chosen.verdict) == (readout.pool, readout.levels, "chosen")
    for each in reports:
        backbone = load_backbone("test_resnet", weights, input_size_px=PX, pool=each.pool, levels=each.levels)
        assert backbone.feature_size == each.feature_size


def candidate(levels: int, d: int, latency_ms: float = 1.0, px: int = PX, *, default: bool = False) -> Candidate:
    return Candidate(Readout(px, None, levels), px, np.arange(d), latency_ms, default)


RNG = np.random.default_rng(0)
TRUTH = np.repeat([0, 1], 100)
GROUPS = np.arange(200) // 2
HALF = RNG.random(200) < 0.5
BETTER = HALF | (RNG.random(200) < 0.5)
CHANGED = np.concatenate([np.flatnonzero(~HALF)[:5], np.flatnonzero(HALF)[:4]])  # five gained, four lost
HARDLY = HALF ^ np.isin(np.arange(200), CHANGED)


@pytest.mark.parametrize(
    ("candidates", "right", "budget", "levels"),
    [
        ([candidate(1, 10), candidate(2, 20)], [HALF, BETTER], Budget(), 2),
        ([candidate(1, 10), candidate(2, 20)], [HALF, HARDLY], Budget(), 1),
        ([candidate(1, 10), candidate(2, 20, default=True)], [HALF, HARDLY], Budget(), 2),
        ([candidate(1, 10, default=True), candidate(2, 20)], [HALF, BETTER], Budget(), 2),
        ([candidate(1, 20), candidate(2, 10)], [HALF, HALF], Budget(), 2),
        ([candidate(1, 20), candidate(2, 10, px=96)], [HALF, HALF], Budget(), 1),
        ([candidate(1, 10), candidate(2, 20)], [HALF, BETTER], Budget(max_feature_size=15), 1),
        ([candidate(1, 10), candidate(2, 20, 9.0)], [HALF, BETTER], Budget(max_latency_ms=5), 1),
    ],
    ids=[
        "better",
        "a tie",
        "a tie with the default",
        "better than the default",
        "a smaller tie",
        "a larger input",
        "too many features",
        "too slow",
    ],
)
def test_the_best_is_chosen_or_the_default_or_the_cheapest_that_ties(
    candidates: list[Candidate],
    right: list[np.ndarray[tuple[int], np.dtype[np.bool_]]],
    budget: Budget,
    levels: int,
) -> None:
    readout, reports = choose(candidates, right, TRUTH, GROUPS, budget)
    assert readout.levels == levels
    assert [r.chosen for r in reports].count(True) == 1


@pytest.mark.parametrize(("more", "levels"), [(1, 1), (2, 1), (3, 2)])
def test_an_image_or_two_more_do_not_displace_the_default(more: int, levels: int) -> None:
    groups = np.arange(200)  # of one image each
    better = HALF | np.isin(groups, np.flatnonzero(~HALF)[:more])
    readout, reports = choose(
        [candidate(1, 10, default=True), candidate(2, 20)], [HALF, better], TRUTH, groups, Budget()
    )
    assert readout.levels == levels
    assert reports[levels - 1].chosen


def test_a_difference_counts_groups_and_weighs_classes_alike() -> None:
    truth = np.array([0] * 8 + [1] * 2)
    one, other = np.ones(10, bool), np.arange(10) < 8
    assert difference(one, other, truth, np.arange(10))[0] == pytest.approx(0.5)
    gain = np.arange(200) % 4 < 2  # by pairs
    single, paired = (difference(gain, ~gain, TRUTH, groups)[1] for groups in (np.arange(200), GROUPS))
    assert paired == pytest.approx(np.sqrt(2) * single, rel=0.02)


def test_nothing_within_the_budget_is_refused() -> None:
    with pytest.raises(ExportError, match="the smallest has 10 features") as refusal:
        choose([candidate(1, 10), candidate(2, 20)], [HALF, HALF], TRUTH, GROUPS, Budget(max_feature_size=5))
    assert "--max-feature-size" in refusal.value.hint


def test_random_weights_are_refused(parts: tuple[list[Path], Selection]) -> None:
    with pytest.raises(ExportError, match="pretrained"):
        choose_readout("test_resnet", "none", Readout(PX), Budget(), *parts, Log(Silent()))


def test_one_class_leaves_the_readout_as_it_is(weights: str, tmp_path: Path) -> None:
    log = Log(Silent())
    images = learned(tmp_path / "images", ("good",), 8)
    found = choose_readout("test_resnet", weights, Readout(PX), Budget(), *images, log)
    assert found == (Readout(PX), [])
    assert "not chosen by measurement" in log.warnings[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--levels", "many"], "not a valid integer"),
        (["--levels", "0"], "1<=x<=12"),
        (["--levels", "2", "--max-feature-size", "500"], "--levels auto"),
        (["--max-latency-ms", "5"], "--levels auto"),
        (["--pool", "auto"], "give both"),
        (["--input-size", "auto"], "give both"),
        (["--input-size", "4"], "8<=x<=2048"),
        (["--levels", "auto", "--max-latency-ms", "0"], "x>0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], says: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--backbone", "test_resnet", "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(export, arguments)
    assert result.exit_code == 2
    assert says in result.output
