"""Generated surfaces: the same from run to run, varied, with defects where the mask says."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from sdk.errors import ConfigError
from sdk.images import open_images
from sdk.splits import split
from sdk.surfaces import (
    CLASSES,
    GOOD,
    KINDS,
    PRODUCT,
    PRODUCT_CLASSES,
    contact_sheet,
    make,
    write_image_set,
)
from sdk.surfaces.__main__ import main
from sdk.surfaces.sheets import draw_sheet

DEFECTS = tuple(name for name in CLASSES if name != GOOD)


def _small_set(folder: Path, *, classes: tuple[str, ...] = ("good", "pit"), parts: int = 3) -> Path:
    write_image_set(folder, classes=classes, parts_per_class=parts, size_px=48, seed=5)
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_process_draws_the_same_bytes() -> None:
    """No hash seed, clock or order of use gets into a picture."""
    make("woven", "stain", seed=1, size_px=64)
    code = (
        "import hashlib; from sdk.surfaces import make; "
        "print(hashlib.sha256(b''.join(a.tobytes() for a in make('brushed', 'crack', seed=7))).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(array.tobytes() for array in make("brushed", "crack", seed=7))).hexdigest()
    assert other.stdout.strip() == here


@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_is_where_its_mask_says(kind: str) -> None:
    """The same part without the defect differs inside the mask, several times more than outside."""
    louder = []
    for defect in DEFECTS:
        for seed in range(3):
            frame, mask = make(kind, defect, seed=seed, size_px=96)
            clean, nothing = make(kind, GOOD, seed=seed, size_px=96)
            assert not nothing.any()
            assert set(np.unique(mask)) == {0, 255}
            assert 0.0005 < (mask > 0).mean() < 0.5, (defect, seed)
            change = np.abs(frame.astype(int) - clean).mean(axis=2)
            louder.append(change[mask > 0].mean() / (change[mask == 0].mean() + 1))
    assert np.median(louder) > 4
    assert min(louder) > 0.8  # a smear on smooth metal hardly shows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_px", [32, 70, 160])
def test_a_frame_has_the_size_asked_for(kind: str, size_px: int) -> None:
    frame, mask = make(kind, "scratch", seed=2, size_px=size_px)
    assert frame.shape == (size_px, size_px, 3)
    assert mask.shape == (size_px, size_px)
    assert frame.dtype == mask.dtype == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_exposed_as_a_camera_would(kind: str) -> None:
    """Neither black nor burnt out, whatever the light."""
    for seed in range(8):
        frame, _ = make(kind, GOOD, seed=seed, size_px=64)
        assert 40 < frame.mean() < 190
        assert (frame == 255).mean() < 0.1


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_faint_defect_lies_where_the_loud_one_would_and_changes_less(defect: str) -> None:
    good, _ = make("ground", "good", seed=4, size_px=96)
    loud, mask = make("ground", defect, seed=4, size_px=96)
    faint, same = make("ground", defect, seed=4, size_px=96, loudness=0.35)
    assert (mask == same).all()
    far_loud, far_faint = (np.abs(frame.astype(int) - good)[mask > 0].mean() for frame in (loud, faint))
    assert far_faint < 0.75 * far_loud
    assert (make("ground", defect, seed=4, size_px=96, loudness=1.0)[0] == loud).all()


def test_faint_sheets_are_the_same_sheets() -> None:
    for recipe in range(6):
        loud, faint = (draw_sheet(recipe, 1, size_px=128, faint=share) for share in (0.0, 1.0))
        assert (loud.marks == faint.marks).all()
        assert (loud.frame != faint.frame).any() == bool(loud.marks.any())


@pytest.mark.parametrize("loudness", [0.0, -0.1, 1.01, float("nan")])
def test_a_loudness_outside_its_range_is_refused(loudness: float) -> None:
    with pytest.raises(ValueError, match="loudness"):
        make("cast", "pit", seed=0, size_px=32, loudness=loudness)


def test_no_two_seeds_look_alike() -> None:
    digests = {make(kind, GOOD, seed=seed, size_px=32)[0].tobytes() for kind in KINDS for seed in range(20)}
    assert len(digests) == 20 * len(KINDS)


def test_a_larger_frame_shows_the_same_part() -> None:
    """Lengths follow the frame: a picture of twice the size shows a scratch twice as long."""
    areas = [(make("cast", "stain", seed=s, size_px=p)[1] > 0).mean() for p in (80, 160) for s in range(12)]
    assert np.mean(areas[:12]) == pytest.approx(np.mean(areas[12:]), rel=0.25)


def test_an_image_set_opens_with_groups_and_masks(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    written = write_image_set(
        tmp_path / "new" / "set",
        classes=("good", "scratch", "dent"),
        parts_per_class=8,
        size_px=48,
        progress=lambda done, in_all: told.append((done, in_all)),
    )
    images = open_images(tmp_path / "new" / "set")
    assert (len(images.images), images.refused, images.has_groups) == (written, (), True)
    assert images.classes == ["dent", "good", "scratch"]
    assert told == sorted(told)
    assert len(told) == 3 * 8
    assert told[-1] == (written, written)
    frames_of = defaultdict(list)
    for image in images.images:
        frames_of[image.group].append(image)
        assert (image.mask is None) == (image.label == "good")
        if image.mask is not None:
            found = cv2.imread(str(image.mask), cv2.IMREAD_UNCHANGED)
            assert found is not None
            assert found.shape == (48, 48)
            assert found.any()
    assert {len(frames) for frames in frames_of.values()} == {1, 2, 3}
    assert all(len({image.label for image in frames}) == 1 for frames in frames_of.values())
    part_of = dict(zip(images.groups, split(images.groups, images.labels), strict=True))
    assert len(part_of) == 24


def test_frames_of_one_part_differ_and_show_one_defect(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_image_set(folder, classes=("stain",), parts_per_class=6, frames_per_part=3, size_px=64, seed=3)
    masks = defaultdict(list)
    with (folder / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            masks[row["group"]].append(cv2.imread(str(folder / row["mask"]), cv2.IMREAD_GRAYSCALE))
    pairs = [(shots[0], shots[1]) for shots in masks.values() if len(shots) > 1]
    assert pairs
    for one, other in pairs:
        assert one is not None
        assert other is not None
        assert (one != other).any()
        assert ((one > 0) & (other > 0)).sum() > 0.3 * (one > 0).sum()


def test_a_larger_set_contains_the_smaller_one(tmp_path: Path) -> None:
    """Picture i never depends on picture i - 1: more classes and parts change no other file."""
    small = _files(_small_set(tmp_path / "small", parts=2))
    large = _files(_small_set(tmp_path / "large", classes=("crack", "pit", "good"), parts=4))
    del small["index.csv"]
    assert {path: large[path] for path in small} == small


def test_a_contact_sheet_holds_every_combination() -> None:
    sheet = contact_sheet(size_px=32, tile_px=32)
    assert sheet.shape[0] > 32 * len(KINDS)
    assert sheet.shape[1] > 32 * len(CLASSES)


def test_the_command_writes_sheet_and_set(tmp_path: Path) -> None:
    sheet, folder = tmp_path / "sheet.png", tmp_path / "cloth"
    arguments = ["--contact-sheet", str(sheet), "--image-set", str(folder), "--size-px", "48"]
    result = CliRunner().invoke(main, [*arguments, "--kind", "woven", *["--class", "dent"] * 2, "--parts", "2"])
    assert result.exit_code == 0, result.output
    assert cv2.imread(str(sheet)) is not None
    assert open_images(folder).classes == ["dent"]


def test_the_help_teaches() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    assert "--contact-sheet surfaces.png" in text
    assert all(name in text for name in (*KINDS, *CLASSES))


def test_the_product_is_of_known_kinds() -> None:
    assert set(PRODUCT) <= set(KINDS)
    assert set(PRODUCT_CLASSES) <= set(CLASSES)
    assert len(PRODUCT_CLASSES) >= 5


@pytest.mark.parametrize(
    ("kind", "defect", "size_px", "named"),
    [
        ("marble", "good", 160, "surface kind 'marble'"),
        ("cast", "ghost", 160, "defect kind 'ghost'"),
        ("cast", "good", 31, "31 px"),
        ("cast", "good", 2049, "2049 px"),
    ],
)
def test_make_refuses(kind: str, defect: str, size_px: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(kind, defect, seed=0, size_px=size_px)


@pytest.mark.parametrize(
    ("classes", "parts", "frames"),
    [((), 1, 1), (("good", "good"), 1, 1), (("good",), 0, 1), (("good",), 1, 0), (("ghost",), 1, 1)],
)
def test_an_empty_or_double_set_is_refused(
    tmp_path: Path, classes: tuple[str, ...], parts: int, frames: int
) -> None:
    with pytest.raises(ValueError, match=r"there are|needs"):
        write_image_set(tmp_path / "set", classes=classes, parts_per_class=parts, frames_per_part=frames)
    assert not (tmp_path / "set").exists()


def test_a_folder_that_holds_something_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="there already") as refused:
        _small_set(tmp_path)
    assert "remove" in refused.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as refused:
        _small_set(tmp_path / "file" / "set")
    assert "\n" not in str(refused.value)


def test_an_interrupted_set_leaves_nothing(tmp_path: Path) -> None:
    """A set is there whole or not at all: half of one would train, and nobody would notice."""

    def stop(done: int, in_all: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_image_set(tmp_path / "set", classes=("good",), parts_per_class=5, size_px=32, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to do"),
        (["--image-set", "set", "--class", "ghost"], "ghost"),
        (["--image-set", "set", "--parts", "0"], "--parts"),
        (["--image-set", "."], "there already"),
        (["--contact-sheet", "nowhere/sheet.png", "--size-px", "32"], "nowhere/sheet.png"),
        (["--contact-sheet", "sheet.nothing", "--size-px", "32"], "sheet.nothing"),
    ],
)
def test_the_command_refuses_with_exit_code_2(
    tmp_path: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, says in result.output) == (2, True), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
