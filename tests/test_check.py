"""What is said of a set before and after it is learned from, and the groups that are settled on."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from export.check import Checked, Groups, check, set_report
from export.images_page import write_page
from export.progress import Log
from export.set_report import RefusedImage
from sdk.codes import Features, encode, fit_scale
from sdk.console import Console
from sdk.errors import BadImages
from sdk.head import solve
from sdk.images import ImageSet, open_images
from sdk.layouts import confirmed_said, settled_groups
from sdk.moments import Moments
from sdk.score import calibrate, leave_one_group_out, score
from tests.commands import headway
from tests.disks import fill, small
from tests.pages import chromium
from tests.test_images import encoded, write
from tests.test_leaks import texture, under_another_light
from tests.tiny import tiny_bundle, write_pictures

if TYPE_CHECKING:  # these import torch
    from export.forms import Form
    from export.selection import Selection

__all__ = ["small"]

PARTS = 12


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, words: str) -> None: ...

    def step(self, done: int, total: int, note: str = "") -> None: ...

    def say(self, line: str) -> None:
        self.said.append(line)


def write_set(folder: Path, *, groups: bool = False) -> Path:
    """Write two classes of parts, each photographed by day and by night; part 0 stands under both classes."""
    rows = []
    folder.mkdir()
    for label in ("good", "worn"):
        for part in range(PARTS):
            seed = part if part == 0 else part + (1000 if label == "worn" else 0)
            for light in ("day", "night"):
                frame = texture(seed, 96)
                if label == "worn":
                    frame[40:48, 40:48] = 250
                if light == "night":
                    frame = under_another_light(frame)
                path = f"{label}-{part}-{light}.png"
                cv2.imwrite(str(folder / path), frame)
                rows.append((path, label, f"{label}-{part}", light))
    (folder / "torn.png").write_bytes(b"\x89PNG")
    rows.append(("torn.png", "good", "x", "day"))
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "label", "group", "light"), *rows]
            if groups
            else [("path", "label", "light"), *((path, label, light) for path, label, _, light in rows)]
        )
    return folder


@pytest.fixture(scope="module")
def ungrouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "ungrouped")


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "grouped", groups=True)


@pytest.fixture(scope="module")
def derived(ungrouped: Path) -> tuple[Checked, list[str]]:
    return checked(ungrouped)


def checked(folder: Path, groups: Groups | None = None) -> tuple[Checked, list[str]]:
    listener = Silent()
    return check(folder, layout=None, unannotated=None, groups=groups, log=Log(listener)), listener.said


def test_groups_are_derived_where_the_set_names_none(derived: tuple[Checked, list[str]]) -> None:
    found, said = derived
    assert found.groups_from is Groups.DERIVED
    by_name = {image.path.stem: image.group for image in found.images.images}
    pairs = [(f"{c}-{p}-day", f"{c}-{p}-night") for c in ("good", "worn") for p in range(PARTS)]
    assert sum(by_name[day] == by_name[night] for day, night in pairs) >= len(pairs) - 1
    assert len(set(by_name.values())) >= 2 * PARTS - 2
    assert any("show the same part, as it seems" in line for line in said)


def test_groups_that_are_given_are_kept_and_their_leak_is_told(grouped: Path) -> None:
    found, said = checked(grouped)
    assert found.groups_from is Groups.GIVEN
    assert found.images.groups == found.own_groups
    assert any("in different groups show the same part" in line for line in said)
    (wrong,) = [line for line in said if "under two labels" in line]
    pairs = found.near.pairs
    across = sum(found.own_groups[pair.first] != found.own_groups[pair.second] for pair in pairs)
    assert 0 < across < len(pairs), "the control: most pairs are of one group, as they should be"
    two = sum(found.images.labels[pair.first] != found.images.labels[pair.second] for pair in pairs)
    assert wrong == (
        f"{two} of {len(pairs)} pairs of near-duplicates stand under two labels: one of each may be wrong."
    )


def test_one_pair_is_said_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for label in ("good", "worn"):
        (folder / label).mkdir(parents=True)
        for part in range(PARTS):
            cv2.imwrite(str(folder / label / f"{part}.png"), texture(part + (1000 if label == "worn" else 0), 96))
    cv2.imwrite(str(folder / "worn" / "again.png"), under_another_light(texture(3, 96)))
    found, said = checked(folder)
    assert len(found.near.pairs) == 1
    assert any(line.startswith("1 pair of images shows the same part") for line in said)
    assert "1 of 1 pair of near-duplicates stands under two labels: one of each may be wrong." in said
    write_page(set_report(found, seed=0), tmp_path / "page.html")
    assert "1 pair of images seems to show the same part" in (tmp_path / "page.html").read_text()


def test_derived_groups_join_those_given_and_divide_none(grouped: Path) -> None:
    found, _ = checked(grouped, Groups.DERIVED)
    by_own: dict[str, set[str]] = {}
    for own, used in zip(found.own_groups, found.images.groups, strict=True):
        by_own.setdefault(own, set()).add(used)
    assert all(len(used) == 1 for used in by_own.values())
    assert by_own["good-0"] == by_own["worn-0"]


def test_a_name_for_each_picture_is_a_name(tmp_path: Path) -> None:
    """Whoever says that no part shows twice is not told that no groups were given, and no guess is made."""
    found, said = checked(parts_of(tmp_path, *(("good", f"part {i}") for i in range(6))))
    assert found.groups_from is Groups.GIVEN
    assert found.images.has_groups
    assert settled_groups(found.images.groups) == {f"part {i}" for i in range(6)}
    assert not any("no groups" in line.lower() for line in said)


def test_no_groups_at_all_can_be_asked_for(grouped: Path) -> None:
    found, _ = checked(grouped, Groups.NONE)
    assert len(set(found.images.groups)) == len(found.images.images)
    assert not found.images.has_groups


def test_given_groups_that_are_not_there_are_refused(ungrouped: Path) -> None:
    with pytest.raises(BadImages, match="names no groups") as caught:
        checked(ungrouped, Groups.GIVEN)
    assert "derived" in caught.value.hint


def test_the_report_counts_classes_sizes_slices_and_leaks(derived: tuple[Checked, list[str]]) -> None:
    found, _ = derived
    report = set_report(found, seed=0)
    assert [(c.name, c.images) for c in report.classes] == [("good", 2 * PARTS), ("worn", 2 * PARTS)]
    assert {(s.width, s.height): s.images for s in report.sizes} == {(96, 96): 2 * PARTS, (87, 91): 2 * PARTS}
    (column,) = report.columns
    assert column.column == "light"
    assert [(s.value, s.images, s.classes) for s in column.slices] == [
        ("day", 2 * PARTS, {"good": PARTS, "worn": PARTS}),
        ("night", 2 * PARTS, {"good": PARTS, "worn": PARTS}),
    ]
    assert [r.path for r in report.refused] == ["torn.png"]
    leaks = report.leaks
    assert leaks.pairs == leaks.across_groups == len(leaks.listed) > leaks.across_split > 0
    assert leaks.listed[0].labels in {("good", "worn"), ("worn", "good")}  # the most doubtful first
    assert report.brightness.low < report.brightness.median < report.brightness.high


def test_the_page_shows_pairs_and_refusals_and_loads_nothing(
    derived: tuple[Checked, list[str]], tmp_path: Path
) -> None:
    found, _ = derived
    report = set_report(found, seed=0)
    write_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == min(24, report.leaks.pairs)
    assert "torn.png" in page
    assert "http" not in page
    assert "<script" not in page


@pytest.mark.browser
@pytest.mark.parametrize("width_px", [1280, 400])
def test_no_name_makes_the_page_wider_than_a_screen(
    derived: tuple[Checked, list[str]], tmp_path: Path, width_px: int
) -> None:
    report = set_report(derived[0], seed=0)
    names = [f"Oberflächenbeschädigung {'x' * 10 * i}" for i in range(20)]
    wide = msgspec.structs.replace(
        report,
        folder="f" * 300,
        found=f"class folders: {', '.join(names)}",
        classes=[msgspec.structs.replace(report.classes[0], name=name) for name in names],
        refused=[RefusedImage(path=f"{'p' * 200}.png", reason="no image by its name (.png)")],
    )
    write_page(wide, tmp_path / "page.html")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": width_px, "height": 800})
        page.goto((tmp_path / "page.html").as_uri())
        beyond = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert beyond == 0


def test_a_class_name_cannot_put_a_script_on_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(2):
        cv2.imwrite(str(folder / f"{i}.png"), texture(i, 32))
    (folder / "index.csv").write_text("path,label\n0.png,<script>alert(1)</script>\n1.png,b\n")
    found, _ = checked(folder)
    write_page(set_report(found, seed=0), tmp_path / "page.html")
    assert "<script" not in (tmp_path / "page.html").read_text()


def test_the_command_checks_and_makes_nothing_else(
    ungrouped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page, figures = tmp_path / "page.html", tmp_path / "set.json"
    ended = headway(capfd, "export", "--check", ungrouped, "--images-page", page, "--json", figures)
    assert ended.code == 0, ended.err
    assert "refused: torn.png" in ended.out
    assert json.loads(figures.read_text())["leaks"]["groups_from"] == "derived"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "set.json"]


def test_the_index_that_is_written_gives_the_same_groups_again(
    derived: tuple[Checked, list[str]], ungrouped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = Path(shutil.copytree(ungrouped, tmp_path / "again"))
    ended = headway(capfd, "export", "--check", ungrouped, "--write-index", again / "index.csv", "--force")
    assert ended.code == 0, ended.err
    images = open_images(again)
    assert images.groups == derived[0].images.groups
    assert images.has_groups
    assert images.images[1].columns == {"light": "night"}
    assert not images.refused  # what was refused is not listed


LATIN_1 = os.fsdecode(b"Ri\xdf.png"), os.fsdecode(b"Sch\xe4den")
"""As an old camera or a Windows share writes them: bytes that are no UTF-8."""


def write_latin_1(folder: Path) -> Path:
    """Write a set with a file, a folder and a refused twin whose names are no UTF-8."""
    write_pictures(folder, ("good", "pit"), 4)
    (folder / "good" / "000.png").rename(folder / "good" / LATIN_1[0])
    (folder / "pit" / LATIN_1[1]).mkdir()
    (folder / "pit" / "001.png").rename(folder / "pit" / LATIN_1[1] / "a.png")
    shutil.copy(folder / "good" / LATIN_1[0], folder / "good" / f"zwilling-{LATIN_1[0]}")
    return folder


def test_a_name_that_is_no_utf8_is_told_everywhere_and_stops_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_latin_1(tmp_path / LATIN_1[1])
    page, figures, index = (tmp_path / name for name in ("page.html", "set.json", "index.csv"))
    ended = headway(
        capfd, "export", "--check", folder, "--images-page", page, "--json", figures, "--write-index", index
    )
    assert ended.code == 0, ended.err
    assert "refused: good/zwilling-Ri\\xdf.png" in ended.out
    report = json.loads(figures.read_text())
    assert report["folder"] == f"{tmp_path}/Sch\\xe4den"
    assert [each["path"] for each in report["refused"]] == ["good/zwilling-Ri\\xdf.png"]
    assert "<td>good/zwilling-Ri\\xdf.png</td>" in page.read_text(encoding="utf-8")
    assert page.read_text().count("data:image/jpeg") == 1, "the picture is found by its own name"

    before = open_images(folder)
    index.rename(folder / "index.csv")
    again = open_images(folder)
    assert {image.path for image in again.images} == {image.path for image in before.images}
    assert folder / "pit" / LATIN_1[1] / "a.png" in {image.path for image in again.images}


def test_a_pipe_that_was_refused_is_not_waited_for_by_the_page(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "set", ("good", "pit"), 4)
    os.mkfifo(folder / "pit" / "pipe.png")
    ended = headway(capfd, "export", "--check", folder, "--images-page", tmp_path / "page.html")
    assert ended.code == 0, ended.err
    assert '<td>pit/pipe.png</td><td class="text">not a regular file</td><td></td>' in (
        tmp_path / "page.html"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("held_back", [False, True])
def test_a_class_that_is_no_utf8_is_refused_when_all_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], held_back: bool
) -> None:
    folder = write_latin_1(tmp_path / "set")
    (folder / "pit").rename(folder / LATIN_1[1])
    ended = headway(
        capfd, "export", "--check", folder, "--json", "-", *(["--hold-back", LATIN_1[1]] if held_back else [])
    )
    assert ended.code == 2
    assert "the class Sch\\xe4den has a name that is no UTF-8\nhint: Rename its folder" in ended.err
    assert [each["name"] for each in json.loads(ended.out)["classes"]] == ["Sch\\xe4den", "good"]


def parts_of(folder: Path, *labelled: tuple[str, str]) -> Path:
    """Write an index of pictures that are all different, by label and group."""
    rows = ["path,label,group"]
    for number, (label, group) in enumerate(labelled):
        write(folder / f"{number}.png", encoded(size=(64, 64), value=number))
        rows.append(f"{number}.png,{label},{group}")
    (folder / "index.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


GOOD = tuple(("good", f"g{i}") for i in range(6))


@pytest.mark.parametrize(
    ("labelled", "options", "words"),
    [
        ((("unknown", "u1"), ("unknown", "u2")), (), "no class can be called 'unknown'"),
        ((("ä" * 70, "u1"), ("ä" * 70, "u2")), (), "is no class name"),
        ((("ä" * 70, "u1"), ("two  spaces", "u2")), (), "twice within its name"),
        ((("unknown", "u1"), ("unknown", "u2")), ("--hold-back", "unknown"), ""),
    ],
    ids=["reserved", "long", "both", "held back"],
)
def test_what_an_export_would_refuse_the_check_refuses_when_all_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], labelled: tuple[tuple[str, str], ...],
    options: tuple[str, ...], words: str,
) -> None:  # fmt: skip
    folder, figures = parts_of(tmp_path / "set", *GOOD, *labelled), tmp_path / "set.json"
    ended = headway(capfd, "export", "--check", folder, "--json", figures, *options)
    assert ended.code == (2 if words else 0)
    assert words in ended.err
    assert len(labelled) == 2
    assert json.loads(figures.read_text())["usable"] == 8
    if len({label for label, _ in labelled}) == 2:
        assert "is no class name" in ended.err  # both are told at once


def test_one_group_of_images_is_refused_by_the_check_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = headway(capfd, "export", "--check", parts_of(tmp_path, *[("good", "g1")] * 4))
    assert ended.code == 2
    assert "belong to one group" in ended.err


def test_a_class_of_one_group_is_told(tmp_path: Path) -> None:
    found, said = checked(parts_of(tmp_path, *GOOD, ("pit", "p1"), ("dent", "d1"), ("dent", "d1")))
    note = (
        "dent, pit have one group only, which is learned or left for tests as a whole: nothing says how well it "
        "is told. Add images of other parts."
    )
    assert note in said
    assert note in set_report(found, seed=0).notes
    assert not any("one group only" in line for line in checked(parts_of(tmp_path / "2", *GOOD))[1])


def test_groups_of_several_classes_are_told(tmp_path: Path) -> None:
    anew = [(label, str(i)) for label in ("good", "pit") for i in range(3)]
    found, said = checked(parts_of(tmp_path, *anew, ("pit", "3")))
    note = next(line for line in said if "several classes" in line)
    assert note.startswith("3 of 4 groups hold images of several classes, as '0' those of good, pit.")
    assert note in set_report(found, seed=0).notes
    now_and_then = [("pit", "p1"), ("pit", "p2"), ("pit", "p3"), ("dent", "p1"), ("dent", "d")]
    assert not any(
        "several classes" in line for line in checked(parts_of(tmp_path / "2", *GOOD, *now_and_then))[1]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--check", "--format", "coco"), "no COCO annotations"),
        (("--check", "--format", "mvtec"), "no folder train/good"),
        (("--check", "--groups", "given"), "names no groups"),
        (("--check", "--images-page", "/nowhere/page.html"), "no such folder"),
        (("--check", "--json", "/nowhere/set.json"), "no such folder"),
        (("--check", "--format", "zip"), "is not one of"),
        (("--check", "--write-index", "/nowhere/index.csv"), "no such folder"),
        (("--write-index", "/tmp/index.csv"), "goes with --check"),
        ((), "--backbone builtin needs neither"),
        (("--backbone", "test_resnet"), "--out BUNDLE"),
    ],
)
def test_wrong_options_are_refused(
    ungrouped: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    ended = headway(capfd, "export", ungrouped, *options)
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err


def features_by(kinds: Sequence[str]) -> Features:
    """Return features (n, 64) by which each kind is told from the others."""
    of_kind = {kind: np.random.default_rng([*kind.encode()]).gamma(1, 1, 64) for kind in set(kinds)}
    noise = np.random.default_rng(0).random((len(kinds), 64))
    return (np.stack([of_kind[kind] for kind in kinds]) + noise / 4).astype(np.float32)


def form_of(features: Features, learned: Selection, only: npt.NDArray[np.bool_] | None = None) -> Form:
    """Return what a backbone gives that has these features (n, d) of the images learned from; it judges `only`."""
    from export.forms import Form

    codes = encode(features, fit_scale(features))
    left_out = leave_one_group_out(codes, learned.ids, learned.groups, samples=learned.samples, only=only)
    calibration = calibrate(left_out)
    moments = Moments(codes.shape[1])
    moments.add(codes, learned.ids)
    shown = score(left_out, calibration)
    head = solve(moments, calibration=calibration)
    fitted = np.zeros(len(codes), bool)
    return Form("fp32", None, "", b"", features, 1.0, codes, fitted, head, shown, shown, left_out)


def with_pits_under_good(folder: Path) -> Path:
    """Write pictures of three classes, and put four pits where good parts are."""
    write_pictures(folder, ("good", "pit", "scratch"), 40)
    for i in range(0, 40, 13):
        shutil.move(folder / "pit" / f"{i:03}.png", folder / "good" / f"pit {i}.png")
    return folder


@pytest.mark.torch
def test_pictures_in_the_wrong_folder_are_named_and_shown(tmp_path: Path) -> None:
    from export.check import with_scores
    from export.selection import select
    from export.terminal import show_doubtful

    folder = with_pits_under_good(tmp_path / "set")
    found, _ = checked(folder, Groups.NONE)
    learned = select(found.images, seed=0, hold_back=(), classes_from=None, log=Log(Silent()))
    images = [found.images.images[row] for row in learned.rows]
    planted = {f"good/{image.path.name}" for image in images if image.path.stem.startswith("pit")}
    kinds = ["pit" if image.path.stem.startswith("pit") else image.label for image in images]
    features = features_by(kinds)
    report = with_scores(set_report(found, seed=0), found, learned, form_of(features, learned), Log(Silent()))

    labels = report.labels
    assert labels is not None
    assert len(planted) >= 2
    assert {each.path for each in labels.listed} == planted
    assert {(each.label, each.looks_like) for each in labels.listed} == {("good", "pit")}
    assert all(each.probability < labels.below for each in labels.listed)
    assert (labels.judged, labels.doubtful) == (len(kinds), len(planted))
    write_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    section = page[page.index("Labels to look at again") : page.index("<h2>Refused")]
    assert section.count("<figure>") == section.count("data:image/jpeg") == len(planted)
    assert "disagree" not in section
    said = io.StringIO()
    show_doubtful(report, Console(file=said, width=200))
    assert (
        f"Labels to look at again: {len(planted)} of {len(kinds)} judged ({len(kinds)} learned from)"
        in said.getvalue()
    )
    assert said.getvalue().count("good, looks like pit") == min(5, len(planted))
    assert "stands by" not in said.getvalue() + page


@pytest.mark.torch
@pytest.mark.parametrize("confirmed", ["one", "all"])
def test_a_label_that_somebody_stands_by_is_not_listed_by_an_export(tmp_path: Path, confirmed: str) -> None:
    from export.card import _doubtful
    from export.check import with_scores
    from export.selection import select
    from export.terminal import show_doubtful

    folder = with_pits_under_good(tmp_path / "set")
    found, _ = checked(folder, Groups.NONE)
    learned = select(found.images, seed=0, hold_back=(), classes_from=None, log=Log(Silent()))
    images = [found.images.images[row] for row in learned.rows]
    planted = [image for image in images if image.path.stem.startswith("pit")]
    kept = planted[:1] if confirmed == "one" else planted
    stood_by = replace(
        found.images,
        images=tuple(replace(image, confirmed=image in kept) for image in found.images.images),
    )
    found, learned = replace(found, images=stood_by), replace(learned, images=stood_by)
    kinds = ["pit" if image in planted else image.label for image in images]
    form = form_of(features_by(kinds), learned)
    report = with_scores(set_report(found, seed=0), found, learned, form, Log(Silent()))

    labels = report.labels
    assert labels is not None
    assert {each.path for each in labels.listed} == {f"good/{image.path.name}" for image in planted[len(kept) :]}
    assert (labels.otherwise, labels.doubtful) == (len(planted), len(planted) - len(kept))
    assert labels.confirmed == len(kept)
    write_page(report, tmp_path / "page.html")
    said = io.StringIO()
    show_doubtful(report, Console(file=said, width=200))
    for text in (said.getvalue(), (tmp_path / "page.html").read_text(), " ".join(_doubtful(report))):
        assert confirmed_said(len(kept)) in text


@pytest.mark.torch
def test_what_looks_like_a_class_that_no_picture_was_judged_of_is_named_too(tmp_path: Path) -> None:
    """All images of a class of few may be trained on: the others are judged all the same."""
    from export.check import with_scores
    from export.selection import select

    folder = write_pictures(tmp_path / "set", ("good", "pit", "scratch"), 40)
    for i in range(0, 40, 13):
        shutil.move(folder / "scratch" / f"{i:03}.png", folder / "good" / f"scratch {i}.png")
    found, _ = checked(folder, Groups.NONE)
    learned = select(found.images, seed=0, hold_back=(), classes_from=None, log=Log(Silent()))
    images = [found.images.images[row] for row in learned.rows]
    kinds = ["scratch" if image.path.stem.startswith("scratch") else image.label for image in images]
    features = features_by(kinds)
    judged = np.array([image.label != "scratch" for image in images])
    form = form_of(features, learned, judged)
    report = with_scores(set_report(found, seed=0), found, learned, form, Log(Silent()))
    assert report.labels is not None
    assert report.labels.judged == judged.sum()
    assert {(each.label, each.looks_like) for each in report.labels.listed} == {("good", "scratch")}


@pytest.mark.torch
@pytest.mark.parametrize("alone", ["one class", "one group each"])
def test_where_nothing_could_be_judged_nothing_is_called_clean(tmp_path: Path, alone: str) -> None:
    from export.check import with_scores
    from export.selection import select

    classes = ("good",) if alone == "one class" else ("good", "pit")
    write_pictures(tmp_path / "set", classes, 12)
    found, _ = checked(tmp_path / "set", Groups.NONE)
    learned = select(found.images, seed=0, hold_back=(), classes_from=None, log=Log(Silent()))
    if alone != "one class":
        learned = replace(learned, groups=learned.labels)
    features = np.random.default_rng(0).random((len(learned.rows), 64)).astype(np.float32)
    report = with_scores(set_report(found, seed=0), found, learned, form_of(features, learned), Log(Silent()))
    assert report.labels is not None
    assert (report.labels.learned, report.labels.judged, report.labels.doubtful) == (len(learned.rows), 0, 0)
    write_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "No label could be judged" in page
    assert "probable." not in page


@pytest.mark.torch
def test_the_score_is_told_with_and_without_near_duplicates_and_by_slice(
    derived: tuple[Checked, list[str]], tmp_path: Path
) -> None:
    from export.check import with_scores
    from export.selection import select

    found, _ = derived
    log = Log(Silent())
    learned = select(found.images, seed=0, hold_back=(), classes_from=None, log=log)
    # Each part is as it is: what is learned of one tells nothing of another, but all of its own copy.
    parts = [found.images.images[row].path.stem.rpartition("-")[0] for row in learned.rows]
    of_part = np.stack([np.random.default_rng([*part.encode()]).gamma(1, 1, 256) for part in parts])
    features = (of_part + np.random.default_rng(0).random(of_part.shape) / 9).astype(np.float32)
    form = form_of(features, learned)
    report = with_scores(set_report(found, seed=0), found, learned, form, log)

    leaks = report.leaks
    assert leaks.score_joined is not None
    assert leaks.score_apart is not None
    assert leaks.score_apart > leaks.score_joined + 0.2
    assert leaks.score_joined == pytest.approx(form.score.balanced_accuracy)
    slices = report.columns[0].slices
    assert sum(one.scored for one in slices) == len(learned.rows)
    assert all(one.low is not None and one.score is not None and one.low <= one.score for one in slices)
    write_page(report, tmp_path / "page.html")
    assert "once near-duplicates are kept together" in (tmp_path / "page.html").read_text()


def test_an_index_that_is_there_is_not_written_over(
    ungrouped: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Somebody may have spent a day on it."""
    index = tmp_path / "index.csv"
    index.write_text("corrected by hand")
    ended = headway(capfd, "export", "--check", ungrouped, "--write-index", index)
    assert ended.code == 2
    assert "corrected by hand" in ended.err
    assert index.read_text() == "corrected by hand"
    assert headway(capfd, "export", "--check", ungrouped, "--write-index", index, "--force").code == 0
    assert index.read_text("utf-8-sig").startswith("path,label,group")


@pytest.mark.parametrize("option", ["--json", "--images-page", "--write-index"])
def test_a_full_disk_leaves_the_file_that_was_there(
    ungrouped: Path, small: Path, capfd: pytest.CaptureFixture[str], option: str
) -> None:
    file = small / "file"
    file.write_bytes(b"from yesterday")
    fill(small)
    ended = headway(capfd, "export", "--check", ungrouped, option, file, "--force")
    assert ended.code == 2
    assert ended.err.splitlines()[-2] == f"error: {option} {file}: No space left on device"
    assert file.read_bytes() == b"from yesterday"
    assert {path.name for path in small.iterdir()} == {"file", "others"}


@pytest.mark.torch
def test_classes_written_otherwise_keep_the_ids_of_the_earlier_bundle(tmp_path: Path) -> None:
    from export.selection import select

    images = open_images(write_pictures(tmp_path / "images", ("good", "pit")))
    earlier = tiny_bundle(tmp_path / "earlier", classes=("good", "pit"))
    large = replace(images, images=tuple(replace(each, label=each.label.upper()) for each in images.images))
    learned = select(large, seed=0, hold_back=(), classes_from=earlier.path, log=Log(Silent()))
    assert learned.class_ids == {name.upper(): class_id for class_id, name in earlier.class_names().items()}


def set_of(folder: Path, classes: tuple[str, ...]) -> ImageSet:
    """Return a set of classes whose names no disk need tell apart: macOS and Windows take `Pit` for `pit`."""
    images = open_images(write_pictures(folder, [f"class {i}" for i in range(len(classes))]))
    renamed = [replace(each, label=classes[int(each.label.split()[1])]) for each in images.images]
    return replace(images, images=tuple(renamed))


@pytest.mark.torch
@pytest.mark.parametrize(
    ("known", "classes", "says"),
    [
        (("good", "pit"), ("good", "pit", "Pit"), "'Pit' and 'pit' are different classes here"),
        (("good", "pit"), ("good", "Pit", "PIT"), "'PIT' and 'Pit' are different classes here"),
        (("good", "pit", "PIT"), ("good", "Pit"), "'Pit' may be 'PIT' or 'pit'"),
        (("good", "pit", "PIT"), ("good", "Pit", "pit"), "'Pit' and 'pit' are different classes here"),
    ],
)
def test_no_two_classes_continue_one_of_the_earlier_bundle(
    tmp_path: Path, known: tuple[str, ...], classes: tuple[str, ...], says: str
) -> None:
    """Hours later the bundle could not be written, and its hint, to export it again, could not help."""
    from export.selection import select

    earlier = tiny_bundle(tmp_path / "earlier", classes=known)
    with pytest.raises(BadImages, match="tiny") as caught:
        select(
            set_of(tmp_path / "set", classes), seed=0, hold_back=(), classes_from=earlier.path, log=Log(Silent())
        )
    assert says in str(caught.value)


@pytest.mark.torch
def test_two_classes_that_the_earlier_bundle_tells_apart_keep_their_ids(tmp_path: Path) -> None:
    from export.selection import select

    earlier = tiny_bundle(tmp_path / "earlier", classes=("good", "pit", "PIT"))
    log = Log(Silent())
    images = set_of(tmp_path / "set", ("PIT", "good", "pit"))
    learned = select(images, seed=0, hold_back=(), classes_from=earlier.path, log=log)
    assert learned.class_ids == {name: class_id for class_id, name in earlier.class_names().items()}
    assert log.warnings == []


@pytest.mark.torch
def test_what_becomes_of_the_classes_of_the_earlier_bundle_is_said(tmp_path: Path) -> None:
    from export.selection import select

    earlier = tiny_bundle(tmp_path / "earlier", classes=("good", "pit", "scratch", "stain"))
    log = Log(Silent())
    images = set_of(tmp_path / "set", ("Pit", "dent", "good", "stain"))
    select(images, seed=0, hold_back=("stain",), classes_from=earlier.path, log=log)
    assert log.warnings == [
        "'Pit' continues 'pit' of tiny.",
        "tiny also knows scratch, stain: nothing here is learned of them, so the new bundle will not know them.",
    ]


@pytest.mark.torch
def test_a_check_refuses_what_an_export_with_classes_from_would(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    earlier = tiny_bundle(tmp_path / "earlier", classes=("good", "pit", "PIT"))
    folder = write_pictures(tmp_path / "set", ("good", "Pit"))
    assert headway(capfd, "export", "--check", folder).code == 0
    ended = headway(capfd, "export", "--check", folder, "--classes-from", earlier.path)
    assert ended.code == 2
    assert "'Pit' may be 'PIT' or 'pit'" in ended.err
