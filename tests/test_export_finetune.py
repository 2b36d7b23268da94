"""Fine-tuning: what is trained, what is not, and that the seed decides the rest."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from export.augment import Augmentation, as_image, augmented
from export.backbones import Backbone, Origin, load_backbone
from export.finetune import (
    Epoch,
    Frames,
    Outcome,
    Schedule,
    Strategy,
    finetune,
    resized_frames,
    to_pixels,
)
from sdk.errors import BadImages, ExportError
from sdk.images import decode
from sdk.preprocess import Preprocess
from tests.disks import small
from tests.tiny import picture, write_pictures

__all__ = ["small"]

pytestmark = pytest.mark.torch
torch.set_num_threads(1)  # tests run side by side; spinning threads cost more than they give

SIDE = 48
Rows = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def pictures() -> tuple[Frames, Rows]:
    names = ("good", "pit", "scratch")
    frames = np.stack([decode(picture(name, i)) for name in names for i in range(16)])
    return frames, np.repeat(np.arange(3), 16)


def fresh(*, pretrained: bool = True, name: str = "test_resnet", pool: str | None = None) -> Backbone:
    """Return a backbone with random weights that counts as pretrained or not."""
    backbone = load_backbone(name, "none", input_size_px=SIDE, pool=pool)
    origin = Origin("test", None, "mit", pretrained)
    return Backbone(backbone.name, backbone.module, backbone.feature_size, backbone.preprocess, origin)


def train(
    backbone: Backbone, pictures: tuple[Frames, Rows], strategy: Strategy, *, epochs: int = 2, seed: int = 0
) -> Outcome:
    frames, labels = pictures
    return finetune(backbone, strategy, frames, labels, np.arange(48) % 8 == 0, Schedule(epochs, seed))


def changed(backbone: Backbone, before: dict[str, torch.Tensor]) -> set[str]:
    after = backbone.network.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_last_changes_the_last_stage_and_nothing_else(pictures: tuple[Frames, Rows]) -> None:
    backbone = fresh()
    before = copy.deepcopy(backbone.network.state_dict())
    outcome = train(backbone, pictures, Strategy.LAST)
    different = changed(backbone, before)
    assert different
    assert all(name.startswith("layer4.") for name in different)
    assert not any("running" in name for name in different)  # the statistics came with the weights
    assert 0 < outcome.trained_weights < backbone.parameters()


@pytest.mark.parametrize("pretrained", [True, False])
def test_full_learns_batch_norm_statistics_only_from_scratch(
    pictures: tuple[Frames, Rows], pretrained: bool
) -> None:
    backbone = fresh(pretrained=pretrained)
    before = copy.deepcopy(backbone.network.state_dict())
    train(backbone, pictures, Strategy.FULL, epochs=1)
    different = changed(backbone, before)
    assert "conv1.0.weight" in different
    assert any("running_mean" in name for name in different) is not pretrained


def test_last_means_the_same_stage_when_lower_levels_are_read(pictures: tuple[Frames, Rows]) -> None:
    loaded = load_backbone("test_resnet", "none", input_size_px=SIDE, levels=3)
    backbone = replace(loaded, origin=Origin("test", None, "mit", True))
    before = copy.deepcopy(backbone.network.state_dict())
    train(backbone, pictures, Strategy.LAST, epochs=1)
    different = changed(backbone, before)
    assert different
    assert all(name.startswith("layer4.") for name in different)


def test_a_transformer_trains_its_last_blocks(pictures: tuple[Frames, Rows]) -> None:
    backbone = fresh(name="test_vit")
    before = copy.deepcopy(backbone.network.state_dict())
    train(backbone, pictures, Strategy.LAST, epochs=1)
    different = changed(backbone, before)
    assert any(name.startswith("blocks.5.") for name in different)
    assert not any(name.startswith(("blocks.0.", "patch_embed")) for name in different)


def test_the_same_seed_gives_the_same_weights_and_another_others(pictures: tuple[Frames, Rows]) -> None:
    states = []
    for seed in (3, 3, 4):
        backbone = fresh()
        train(backbone, pictures, Strategy.LAST, epochs=1, seed=seed)
        states.append(backbone.network.state_dict())
    name = "layer4.0.conv1.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_the_best_epoch_on_validation_is_kept(pictures: tuple[Frames, Rows]) -> None:
    told: list[Epoch] = []
    backbone = fresh(pretrained=False, pool="max")
    frames, labels = pictures
    outcome = finetune(
        backbone, Strategy.FULL, frames, labels, np.arange(48) % 8 == 0, Schedule(6),
        lambda _done, _total, epoch: told.append(epoch) if epoch else None,
    )  # fmt: skip
    assert [epoch.number for epoch in told] == [1, 2, 3, 4, 5, 6]
    assert tuple(told) == outcome.history
    assert outcome.best.balanced_accuracy == max(e.balanced_accuracy or 0 for e in told)
    assert outcome.best.balanced_accuracy is not None
    assert outcome.best.balanced_accuracy > 0.6  # three classes: it learned something
    assert not backbone.module.training
    assert not any(weight.requires_grad for weight in backbone.module.parameters())


def test_without_validation_the_last_epoch_is_kept(pictures: tuple[Frames, Rows]) -> None:
    frames, labels = pictures
    outcome = finetune(fresh(), Strategy.LAST, frames, labels, np.zeros(48, bool), Schedule(2))
    assert outcome.best.number == 2
    assert outcome.best.balanced_accuracy is None


def test_a_budget_plans_fewer_epochs_but_one_at_least(pictures: tuple[Frames, Rows]) -> None:
    frames, labels = pictures
    outcome = finetune(fresh(), Strategy.LAST, frames, labels, np.zeros(48, bool), Schedule(50, budget_s=1e-6))
    assert outcome.epochs == 1


def test_pixels_are_what_the_device_would_compute(pictures: tuple[Frames, Rows]) -> None:
    frames, _ = pictures
    preprocess = Preprocess(height=SIDE, width=SIDE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    expected = np.concatenate([preprocess.apply(frame) for frame in frames])
    np.testing.assert_allclose(to_pixels(frames, preprocess).numpy(), expected, atol=1e-5)


def test_augmentation_keeps_shape_and_roughly_the_picture(pictures: tuple[Frames, Rows]) -> None:
    for i, frame in enumerate(pictures[0]):
        seen = augmented(frame, Augmentation(turns=True), (0, i))
        assert (seen.shape, seen.dtype) == ((3, SIDE, SIDE), torch.uint8)
        assert abs(float(seen.float().mean()) - float(frame.mean())) < 0.2 * float(frame.mean())


def test_a_view_follows_from_its_key_alone(pictures: tuple[Frames, Rows]) -> None:
    frame = pictures[0][20]
    first = augmented(frame, Augmentation(), (3, 1, 4))
    augmented(frame, Augmentation(), (9, 9, 9))
    torch.manual_seed(5)
    assert torch.equal(first, augmented(frame, Augmentation(), (3, 1, 4)))
    assert not torch.equal(first, augmented(frame, Augmentation(), (3, 1, 5)))
    assert not torch.equal(first, as_image(frame))


def test_images_are_resized_as_the_device_resizes(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ("good",), 3)
    files = sorted((folder / "good").iterdir())
    preprocess = Preprocess(height=32, width=40)
    frames = resized_frames(files, preprocess, tmp_path)
    again = np.concatenate([preprocess.apply(frame) for frame in frames])
    direct = np.concatenate([preprocess.apply(decode(file.read_bytes())) for file in files])
    assert np.array_equal(again, direct)


def test_images_that_do_not_fit_into_memory_lie_in_a_file_that_nobody_sees(tmp_path: Path) -> None:
    files = sorted((write_pictures(tmp_path / "set", ("good",), 3) / "good").iterdir())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    preprocess = Preprocess(height=32, width=40)
    frames = resized_frames(files, preprocess, scratch, resident_bytes=0)
    assert np.array_equal(frames, resized_frames(files, preprocess))
    assert list(scratch.iterdir()) == []  # a kill leaves nothing


def test_too_little_room_for_resized_images_is_said_before_any_is_decoded(small: Path, tmp_path: Path) -> None:
    files = sorted((write_pictures(tmp_path / "set", ("good",), 3) / "good").iterdir())
    decoded: list[None] = []
    with pytest.raises(ExportError, match="no room for") as caught:
        resized_frames(
            files, Preprocess(height=1200, width=1200), small, lambda: decoded.append(None), resident_bytes=0
        )
    assert "TMPDIR" in caught.value.hint
    assert not decoded
    with pytest.raises(ExportError, match="No such file"):
        resized_frames(files, Preprocess(height=32, width=32), small / "gone", resident_bytes=0)


def test_a_file_that_changed_since_it_was_checked_is_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ("good",), 2)
    file = folder / "good" / "001.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadImages, match=r"001\.png"):
        resized_frames(sorted((folder / "good").iterdir()), Preprocess(height=32, width=32), tmp_path)
