"""A picture that was only saved anew is no new one: neither an evaluation nor a rehearsal is flattered by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from device_agent.evaluate import evaluate
from device_agent.rehearse import Plan, rehearse
from device_agent.runtime import open_runtime
from device_agent.unseen import saved_anew
from sdk.bundle import BaseSamples, Bundle
from sdk.codes import Codes
from sdk.errors import BadImages
from sdk.images import ImageSet, LabelledImage, open_images, read
from sdk.splits import Part
from tests.builders import with_exemplars
from tests.commands import headway
from tests.tiny import CLASSES, picture, tiny_bundle, write_pictures

LEARNED = 36
NEW = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("unseen") / "images")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return tiny_bundle(folder.parent / "bundle")


def learned_images(bundle: Bundle, folder: Path) -> list[LabelledImage]:
    learned = set(bundle.base().samples)
    return [image for image in open_images(folder).images if image.sample_id in learned]


@pytest.fixture(scope="module")
def resaved(bundle: Bundle, folder: Path) -> Path:
    """Return a folder of all that the bundle learned from as BMP, and a few pictures that are new."""
    out = folder.parent / "resaved"
    for image in learned_images(bundle, folder):
        (out / image.label).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(out / image.label / f"{image.path.stem}.bmp"), read(image.path)[1])
    for name in CLASSES:
        for i in range(NEW):
            (out / name / f"new-{i}.png").write_bytes(picture(name, 300 + i))
    return out


def test_pictures_saved_anew_are_left_out_and_counted(bundle: Bundle, resaved: Path) -> None:
    result = evaluate(bundle, open_images(resaved), open_runtime(bundle, None))
    assert (result.left_out_copies, result.left_out_learned) == (LEARNED, 0)
    assert result.accuracy.images == result.unknown_to_the_bundle == NEW * len(CLASSES)
    assert result.left_out_siblings == result.left_out_other_part == 0


def test_new_pictures_of_a_part_that_was_saved_anew_are_left_out_too(bundle: Bundle, resaved: Path) -> None:
    def part(image: LabelledImage) -> str:
        return "one" if image.path.name == "new-0.png" or image.path.suffix == ".bmp" else image.path.name

    images = open_images(resaved)
    grouped = tuple(replace(image, group=f"{image.label}/{part(image)}") for image in images.images)
    result = evaluate(bundle, replace(images, images=grouped, has_groups=True), open_runtime(bundle, None))
    assert (result.left_out_copies, result.left_out_siblings) == (LEARNED, len(CLASSES))
    assert result.accuracy.images == (NEW - 1) * len(CLASSES)


def test_a_folder_of_copies_only_is_refused(bundle: Bundle, resaved: Path) -> None:
    images = open_images(resaved)
    copies = tuple(image for image in images.images if image.path.suffix == ".bmp")
    with pytest.raises(BadImages, match="learned from 36 of them, 36 of these saved anew"):
        evaluate(bundle, replace(images, images=copies), open_runtime(bundle, None))


def test_what_the_recorded_split_keeps_for_the_test_is_no_copy(bundle: Bundle, folder: Path) -> None:
    """A test picture that looks like a learned one is in the exporter's set as another: it stays."""
    images, parts = open_images(folder), bundle.parts()
    result = evaluate(bundle, images, open_runtime(bundle, None))
    assert result.left_out_copies == 0
    assert result.accuracy.images == sum(parts[i.sample_id] is Part.TEST for i in images.images)


def test_a_sample_in_the_sums_only_is_recognised_by_its_code(
    bundle: Bundle, resaved: Path, tmp_path: Path
) -> None:
    large = with_exemplars(bundle, tmp_path / "large", 12)
    assert len(large.base().summed) == LEARNED - 12
    result = evaluate(large, open_images(resaved), open_runtime(large, None))
    assert (result.left_out_copies, result.accuracy.images) == (LEARNED, NEW * len(CLASSES))


def test_a_rehearsal_leaves_them_out_and_says_so(bundle: Bundle, resaved: Path) -> None:
    runtime = open_runtime(bundle, None)
    result = rehearse(bundle, open_images(resaved), runtime, Plan(labels=2))
    assert result.stream_images + result.test_images == NEW * len(CLASSES)
    assert any(note.startswith(f"{LEARNED} images were left out: the bundle learned") for note in result.notes)
    images = open_images(resaved)
    copies = tuple(image for image in images.images if image.path.suffix == ".bmp")
    with pytest.raises(
        BadImages, match="no image is left for the shift; 36 that the bundle learned from are saved"
    ):
        rehearse(bundle, replace(images, images=copies), runtime, Plan(labels=2))


def test_the_command_says_how_many_were_saved_anew(
    bundle: Bundle, resaved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = headway(capsys, "evaluate", bundle.path, "--data", resaved)
    assert ended.code == 0, ended.err
    assert "36 pictures that it learned from, saved anew, are left out" in " ".join(ended.out.split())


# -- how near is a copy


D = 64


def base_of(codes: Codes, classes: str, groups: list[str] | None = None) -> BaseSamples:
    n = len(codes)
    ids = [bytes([i]) * 32 for i in range(n)]
    names = [str(i) for i in range(n)] if groups is None else groups
    return BaseSamples(ids, [c.encode() * 16 for c in classes], names, codes, np.zeros(n, bool))


def spread(n: int, by: float, seed: int = 0, about: float = 0.0) -> Codes:
    drawn = np.random.default_rng(seed).normal(about, by, (n, D))
    return np.clip(np.rint(drawn), -127, 127).astype(np.int8)


def near(codes: Codes, by: int) -> Codes:
    return (codes.astype(np.int16) + np.random.default_rng(9).integers(-by, by + 1, codes.shape)).astype(np.int8)


def test_a_code_near_a_learned_one_is_a_copy_and_another_of_its_class_is_none() -> None:
    learned = spread(40, 20.0)
    base = base_of(learned, "a" * 40)
    assert saved_anew(near(learned, 6), base).all()
    assert not saved_anew(spread(200, 20.0, seed=1), base).any()


def test_parts_of_a_steady_line_are_no_copies_of_each_other() -> None:
    """Good parts differ by the camera's noise only, defects by far more: what is usual is each class's own."""
    good, defects = spread(30, 2.0, about=30.0), spread(60, 30.0, seed=1)
    base = base_of(np.concatenate([good, defects]), "g" * 30 + "d" * 60)
    assert not saved_anew(spread(100, 2.0, seed=2, about=30.0), base).any()
    assert saved_anew(good, base).all()
    assert saved_anew(near(defects, 6), base).all()


def test_pictures_of_one_learned_part_do_not_say_how_far_others_are() -> None:
    parts = spread(20, 20.0)
    burst = np.concatenate([parts, near(parts, 1)])
    base = base_of(burst, "a" * 40, [str(i % 20) for i in range(40)])
    assert saved_anew(near(parts, 6), base).all()


def test_where_nothing_is_usual_only_an_equal_code_is_a_copy() -> None:
    learned = spread(1, 20.0)
    base = base_of(learned, "a")
    assert saved_anew(np.concatenate([learned, near(learned, 1)]), base).tolist() == [True, False]
    assert saved_anew(learned[:0], base).tolist() == []


def test_many_are_compared_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, new = spread(40, 20.0), np.concatenate([spread(30, 20.0, seed=3), near(spread(40, 20.0), 6)])
    base = base_of(learned, "ab" * 20)
    whole = saved_anew(new, base)
    monkeypatch.setattr("sdk.shelf.STRIP_ROWS", 7)
    assert (saved_anew(new, base) == whole).all()
    assert whole.sum() == 40


def test_no_images_have_no_copies(bundle: Bundle, folder: Path) -> None:
    empty = ImageSet(folder, (), (), False)
    with pytest.raises(BadImages, match="none of 0 images"):
        evaluate(bundle, empty, open_runtime(bundle, None))
