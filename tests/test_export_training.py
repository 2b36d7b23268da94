"""Training that survives: killed and gone on with, spread over processes, cut in two; damaged files refused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from export.ahead import Ahead
from export.augment import Frames, to_pixels
from export.backbones import Backbone, load_backbone
from export.checkpoint import Checkpoint, load_optimizer, optimizer_tensors
from export.distributed import alone, ranks
from export.embed import features, forward_s, step_s
from export.finetune import Aids, Rows, Schedule, finetune
from export.precision import Precision
from export.recipes import RECIPES, Recipe, Strategy, choose_weights, norms, norms_are_folded, share_of_peak
from export.tail import Memory, cut
from sdk.errors import ExportError
from tests.train_along import HELD, SIDE, pictures, tiny, trained

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # tests run side by side; spinning threads cost more than they give

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4
"""Between a run in one process and in two: sums in another order, over some tens of steps."""


@pytest.fixture(scope="module")
def some() -> tuple[Frames, Rows]:
    return pictures()


def start(*words: str | Path, torchrun: int = 0) -> subprocess.Popen[str]:
    launch = ["torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}", "-m"] if torchrun else []
    command = [sys.executable, "-m", *launch, "tests.train_along", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_killed_halfway_and_started_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    doomed = start(tmp_path, tmp_path / "checkpoint", "4", "full")
    assert doomed.stdout is not None
    for line in doomed.stdout:
        done, total = (int(word) for word in line.split())
        if done == total // 2:
            doomed.kill()
            break
    doomed.communicate()
    assert doomed.returncode == -9
    assert not (tmp_path / "full.json").exists()
    again = start(tmp_path, tmp_path / "checkpoint", "4", "full")
    _, complaints = again.communicate(timeout=200)
    assert again.returncode == 0, complaints
    resumed_at = is_what_one_run_gives(tmp_path, Strategy.FULL, 4, tolerance=1e-6)
    assert resumed_at >= total // 2 - 1


def is_what_one_run_gives(folder: Path, strategy: Strategy, epochs: int, *, tolerance: float) -> int:
    whole, outcome = trained(strategy, epochs, Aids())
    resumed_at, losses = json.loads((folder / f"{strategy.value}.json").read_text())
    assert losses == pytest.approx([epoch.loss for epoch in outcome.history], abs=tolerance)
    for name, tensor in load_file(folder / f"{strategy.value}.safetensors").items():
        torch.testing.assert_close(tensor, whole.network.state_dict()[name], rtol=0, atol=tolerance)
    return int(resumed_at)


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    pair = start(tmp_path, "", "2", "last", "full", torchrun=2)
    _, complaints = pair.communicate(timeout=200)
    assert pair.returncode == 0, complaints
    for strategy in (Strategy.LAST, Strategy.FULL):
        is_what_one_run_gives(tmp_path, strategy, 2, tolerance=TOLERANCE)


def test_torchruns_environment_in_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ExportError, match="RANK is not set"), ranks():
        pass


def test_alone_one_process_writes() -> None:
    here = alone()
    assert (here.rank, here.world, here.writes, here.agree(7)) == (0, 1, True, 7)


# --- The trunk runs once


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("test_resnet", 1),
        ("test_resnet", 3),
        ("test_vit", 1),
        ("test_vit", 4),
        ("test_convnext", 1),
        ("mobilenetv2_035", 1),
    ],
)
def test_a_network_cut_in_two_gives_what_it_gave_whole(name: str, levels: int) -> None:
    backbone = load_backbone(name, "none", input_size_px=64, levels=levels)
    choose_weights(backbone, Strategy.LAST)
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = cut(backbone.module, pixels[:2])
    assert found is not None
    crossing = found.kept(pixels)
    assert not any(part.requires_grad for part in crossing)
    torch.testing.assert_close(found.rest(crossing), backbone.module(pixels))


def test_a_network_whose_way_depends_on_values_is_not_cut() -> None:
    class Moody(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.tail = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.trunk.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.trunk(x)
            result: torch.Tensor = self.tail(x) if float(x.sum()) > 0 else x
            return result

    assert cut(Moody(), torch.ones(2, 4)) is None


def test_a_network_that_is_trained_whole_is_not_cut() -> None:
    backbone = tiny()
    choose_weights(backbone, Strategy.FULL)
    assert cut(backbone.module, torch.zeros(2, 3, SIDE, SIDE)) is None


def learned(some: tuple[Frames, Rows], recipe: Recipe, aids: Aids) -> tuple[bool, dict[str, torch.Tensor]]:
    backbone = tiny()
    outcome = finetune(backbone, Strategy.LAST, *some, HELD, Schedule(2), recipe=recipe, aids=aids)
    return outcome.cached, backbone.network.state_dict()


def test_kept_activations_change_nothing_and_serve_the_next_run(some: tuple[Frames, Rows]) -> None:
    memory = Memory(len(some[0]), RECIPES[Strategy.LAST].views, 0)
    cached, first = learned(some, RECIPES[Strategy.LAST], Aids(memory=memory))
    again, second = learned(some, RECIPES[Strategy.LAST], Aids(memory=memory))
    assert cached
    assert again
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Two processes cannot share a memory, so they run the whole network on the same views: see the test with two.


def test_a_memory_of_another_trunk_or_other_views_is_refused(some: tuple[Frames, Rows]) -> None:
    memory = Memory(len(some[0]), 3, 0)
    assert memory.serves("one", (torch.zeros(1, 2),))
    with pytest.raises(ValueError, match="another trunk"):
        memory.serves("two", (torch.zeros(1, 2),))
    with pytest.raises(ValueError, match="other views"):
        learned(some, RECIPES[Strategy.LAST], Aids(memory=Memory(len(some[0]), 3, 0)))


def test_too_many_activations_are_not_kept() -> None:
    assert not Memory(10**6, 8, 0).serves("one", (torch.zeros(1, 64, 56, 56),))


def test_features_from_a_memory_are_the_networks(some: tuple[Frames, Rows]) -> None:
    memory = Memory(len(some[0]), RECIPES[Strategy.LAST].views, 0)
    backbone = tiny()
    finetune(backbone, Strategy.LAST, *some, HELD, Schedule(1), aids=Aids(memory=memory))
    direct = backbone.module(to_pixels(some[0], backbone.preprocess)).detach().numpy()
    short = features(backbone, some[0], strategy=Strategy.LAST, memory=memory)
    np.testing.assert_allclose(short, direct, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features(backbone, some[0]), direct, rtol=1e-4, atol=1e-4)
    assert not any(weight.requires_grad for weight in backbone.module.parameters())


def test_time_is_measured_without_changing_the_backbone(some: tuple[Frames, Rows]) -> None:
    backbone = tiny()
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    assert forward_s(backbone, some[0]) > 0
    assert step_s(backbone, Strategy.LAST, some[0]) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.network.state_dict().items())


# --- Recipes


def test_head_then_full_starts_from_a_classifier_that_fits(some: tuple[Frames, Rows]) -> None:
    first = {}
    for strategy in (Strategy.FULL, Strategy.HEAD_THEN_FULL):
        recipe = replace(RECIPES[strategy], rate=1e-9, classifier_rate=1e-9)
        outcome = finetune(tiny(), strategy, *some, HELD, Schedule(1), recipe=recipe)
        first[strategy] = outcome.history[0].loss
    assert first[Strategy.HEAD_THEN_FULL] < first[Strategy.FULL] - 0.1


def test_lower_layers_learn_more_slowly(some: tuple[Frames, Rows]) -> None:
    moved = {}
    for decay in (1.0, 0.1):
        backbone = tiny()
        before = backbone.network.state_dict()["conv1.0.weight"].clone()
        finetune(
            backbone,
            Strategy.FULL,
            *some,
            HELD,
            Schedule(1),
            recipe=replace(RECIPES[Strategy.FULL], layer_decay=decay),
        )
        moved[decay] = float((backbone.network.state_dict()["conv1.0.weight"] - before).abs().mean())
    assert 0 < moved[0.1] < moved[1.0] / 100


def test_training_ends_when_nothing_has_been_better_for_a_while(some: tuple[Frames, Rows]) -> None:
    still = replace(RECIPES[Strategy.LAST], rate=0.0, classifier_rate=0.0, patience=2)
    outcome = finetune(tiny(), Strategy.LAST, *some, HELD, Schedule(30), recipe=still)
    assert len(outcome.history) < 30
    assert outcome.history[-1].number - outcome.best.number == 2


def test_images_that_a_run_may_not_see_have_no_influence(some: tuple[Frames, Rows]) -> None:
    frames, labels = some
    states = []
    for change in (False, True):
        backbone, seen = tiny(), frames.copy()
        if change:
            seen[labels == 2] = 255 - seen[labels == 2]
        finetune(backbone, Strategy.LAST, seen, labels, HELD, Schedule(1), rows=np.flatnonzero(labels != 2))
        states.append(backbone.network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_folded_batch_norms_are_told_from_real_ones() -> None:
    backbone = tiny()
    assert norms_are_folded(backbone)  # never trained: mean 0, variance 1
    assert norms(backbone)[0]
    for part in backbone.module.modules():
        if isinstance(part, torch.nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean += 0.5
    assert not norms_are_folded(backbone)
    assert norms(backbone)[0]
    assert norms(tiny(pretrained=False))[0] is False


def test_the_rate_rises_and_falls() -> None:
    rates = [share_of_peak(step, 50) for step in range(50)]
    assert max(rates) == rates[10] == 1.0
    assert rates[0] < 0.05
    assert rates[-1] < 0.05


# --- Checkpoints


def test_a_checkpoint_is_taken_up_by_its_own_run_only(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "one")
    assert checkpoint.load("this") is None
    checkpoint.save("this", {"a": torch.arange(3)}, "{}")
    found = checkpoint.load("this")
    assert found is not None
    assert torch.equal(found[0]["a"], torch.arange(3))
    assert found[1] == "{}"
    assert checkpoint.load("another") is None
    assert [file.name for file in tmp_path.iterdir()] == ["one"]
    checkpoint.remove()
    assert checkpoint.load("this") is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95pickled"], ids=["empty", "zip", "pickle"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "one").write_bytes(content)
    with pytest.raises(ExportError, match="no checkpoint"):
        Checkpoint(tmp_path / "one").load("this")


def test_a_checkpoint_without_a_state_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one", {"fingerprint": "this"})
    with pytest.raises(ExportError, match="no checkpoint"):
        Checkpoint(tmp_path / "one").load("this")


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        Checkpoint(tmp_path / "absent" / "one").save("this", {}, "{}")


def test_checkpoints_keep_their_distance(tmp_path: Path) -> None:
    now = 0.0
    checkpoint = Checkpoint(tmp_path / "one", every_s=30, clock=lambda: now)
    assert checkpoint.due()
    checkpoint.save("this", {}, "{}")
    now = 29.0
    assert not checkpoint.due()
    now = 30.0
    assert checkpoint.due()


def stopped(some: tuple[Frames, Rows], file: Path, seed: int = 1, backbone: Backbone | None = None) -> Checkpoint:
    """Return the checkpoint of a run that ended in its first epoch."""

    class Enough(Exception):
        pass

    def stop(done: int, _total: int, _epoch: object) -> None:
        if done == 2:
            raise Enough

    checkpoint = Checkpoint(file, every_s=0)
    with contextlib.suppress(Enough):
        schedule = Schedule(2, seed=seed)
        finetune(backbone or tiny(), Strategy.FULL, *some, HELD, schedule, stop, aids=Aids(checkpoint=checkpoint))
    return checkpoint


def test_a_run_that_ended_in_its_first_epoch_goes_on_where_it_was(
    some: tuple[Frames, Rows], tmp_path: Path
) -> None:
    aids = Aids(checkpoint=stopped(some, tmp_path / "one"))
    assert finetune(tiny(), Strategy.FULL, *some, HELD, Schedule(2, seed=1), aids=aids).resumed_at == 1


def test_another_seed_does_not_take_up_the_checkpoint(some: tuple[Frames, Rows], tmp_path: Path) -> None:
    aids = Aids(checkpoint=stopped(some, tmp_path / "one"))
    assert finetune(tiny(), Strategy.FULL, *some, HELD, Schedule(2, seed=2), aids=aids).resumed_at == 0


@pytest.mark.parametrize("changed", [{"levels": 2}, {"pool": "max"}])
def test_features_read_otherwise_do_not_take_up_the_checkpoint(
    some: tuple[Frames, Rows], tmp_path: Path, changed: dict[str, Any]
) -> None:
    """Levels and pooling have no weights of their own."""
    aids = Aids(checkpoint=stopped(some, tmp_path / "one", backbone=read(levels=3, pool="avg")))
    other = read(**{"levels": 3, "pool": "avg", **changed})
    assert finetune(other, Strategy.FULL, *some, HELD, Schedule(2, seed=1), aids=aids).resumed_at == 0


def read(*, levels: int, pool: str) -> Backbone:
    return load_backbone("test_resnet", "none", input_size_px=SIDE, levels=levels, pool=pool)


def test_a_checkpoint_that_says_something_else_is_refused(some: tuple[Frames, Rows], tmp_path: Path) -> None:
    checkpoint = stopped(some, tmp_path / "one")
    with safe_open(checkpoint.file, "pt") as opened:
        fingerprint = opened.metadata()["fingerprint"]
    checkpoint.save(fingerprint, {}, '{"epochs": 2, "quality": [null, null]}')
    with pytest.raises(ExportError, match="is no checkpoint") as refused:
        finetune(tiny(), Strategy.FULL, *some, HELD, Schedule(2, seed=1), aids=Aids(checkpoint=checkpoint))
    assert "Delete it" in refused.value.hint


def test_batches_made_ahead_are_those_made_when_asked_for() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return 10 * step

    ahead = Ahead(make, threads=3)
    assert [ahead.get(step, 6) for step in range(6)] == [0, 10, 20, 30, 40, 50]
    assert sorted(made) == [0, 1, 2, 3, 4, 5]  # each once, and none beyond the last
    ahead.close()
    assert [Ahead(make, threads=0).get(step, 9) for step in (7, 2)] == [70, 20]


def test_what_fails_ahead_is_said_at_its_own_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise ExportError("a file changed", hint="Start again.")
        return step

    ahead = Ahead(make, threads=2)
    assert [ahead.get(0, 5), ahead.get(1, 5)] == [0, 1]
    with pytest.raises(ExportError, match="a file changed"):
        ahead.get(2, 5)
    ahead.close()


def test_training_with_batches_made_ahead_ends_the_same() -> None:
    (one, first), (other, second) = (trained(Strategy.FULL, 2, Aids(threads=n)) for n in (0, 3))
    assert first.history == second.history
    for name, tensor in one.module.state_dict().items():
        assert torch.equal(tensor, other.module.state_dict()[name])


def test_an_optimizer_goes_on_with_moments_laid_out_as_its_weights() -> None:
    def once(layer: torch.nn.Conv2d) -> torch.optim.AdamW:
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        layer(torch.ones(1, 3, 8, 8)).sum().backward()
        optimizer.step()
        return optimizer

    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    kept = {name: tensor.contiguous().clone() for name, tensor in optimizer_tensors(once(layer)).items()}
    again = torch.optim.AdamW(layer.parameters(), lr=0.1)
    load_optimizer(again, kept)  # as a file gives them back: AdamW's kernel for GPUs refuses plain rows
    moment = again.state[layer.weight]["exp_avg"]
    assert moment.stride() == layer.weight.stride() != kept["0.exp_avg"].stride()
    assert torch.equal(moment, kept["0.exp_avg"])
    assert again.state[layer.weight]["step"] == 1


def test_processors_compute_in_float32() -> None:
    precision = Precision(torch.device("cpu"), mixed=True)
    with precision.forward():
        assert torch.ones(2, 2).matmul(torch.ones(2, 2)).dtype is torch.float32
    assert precision.half is None
    assert precision.state() == {}
    precision.load({"scale": 8.0})  # another device's; there is nothing to scale here
    assert precision.state() == {}
