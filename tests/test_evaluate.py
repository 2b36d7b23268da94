"""A bundle is judged by images it did not learn from, or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from device_agent.decisions import JudgedImage
from device_agent.evaluate import Evaluation, accept, evaluate, judge
from device_agent.heatmap import _file_name
from device_agent.outlook import look_ahead
from device_agent.rehearse import Plan
from device_agent.rehearse import _parts as rehearsed
from device_agent.runtime import base_head, open_runtime
from device_agent.unseen import grouped_as_split, not_learned
from sdk.bundle import MANIFEST_NAME, Bundle, ClassEntry, split_bytes, write_bundle
from sdk.errors import BadFormat, BadImages, UnknownClassError
from sdk.head import Knobs
from sdk.images import ImageSet, LabelledImage, decode, open_images
from sdk.layouts import confirmed_said, settled_groups
from sdk.splits import Part
from tests.builders import with_exemplars
from tests.commands import headway
from tests.tiny import CLASSES, picture, tiny_bundle, write_pictures

EVERY = (*CLASSES, "rings")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("evaluate") / "images", EVERY)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return tiny_bundle(folder.parent / "bundle", classes=EVERY, held_back=["rings"])


def run(bundle: Bundle, images: ImageSet, part: str = "test") -> Evaluation:
    return evaluate(bundle, images, open_runtime(bundle, None), part=part)


def test_only_the_test_part_is_evaluated_and_the_rest_counted(bundle: Bundle, folder: Path) -> None:
    result = run(bundle, open_images(folder))
    assert result.accuracy.images == 4 * 6
    assert result.left_out_learned == 4 * 12
    assert result.left_out_other_part == 4 * 6
    assert result.unknown_to_the_bundle == 0


def test_pictures_under_the_wrong_label_are_named(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "images", ("good", "pit"), 30)
    for i in (26, 28):
        (folder / "pit" / f"{i:03}.png").rename(folder / "good" / f"pit {i}.png")
    figures = tmp_path / "figures.json"
    ended = headway(capsys, "evaluate", bundle.path, "--data", folder, "--part", "all", "--json", figures)
    doubtful = json.loads(figures.read_text())["doubtful"]
    assert sorted(each["path"] for each in doubtful) == ["good/pit 26.png", "good/pit 28.png"]
    assert all(each["best"] == "pit" and each["label_probability"] < 0.1 for each in doubtful)
    assert "labels to look at again: 2 of " in ended.out
    assert "good/pit 26.png: good, looks like pit" in ended.out
    assert "stands by" not in ended.out

    files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    for kept in (["good/pit 26.png"], ["good/pit 26.png", "good/pit 28.png"]):
        index = tmp_path / f"{len(kept)}.csv"
        rows = [f"{file},{file.partition('/')[0]},{'yes' if file in kept else ''}\n" for file in files]
        index.write_text("path,label,audit_confirmed\n" + "".join(rows))
        args = ("--data", folder, "--index", index, "--part", "all", "--json", figures)
        ended = headway(capsys, "evaluate", bundle.path, *args)
        told = json.loads(figures.read_text())
        assert {each["path"] for each in told["doubtful"]} == {"good/pit 26.png", "good/pit 28.png"} - set(kept)
        assert told["confirmed"] == len(kept)
        assert confirmed_said(len(kept)) in ended.out


def test_all_means_all_that_was_not_learned(bundle: Bundle, folder: Path) -> None:
    result = run(bundle, open_images(folder), part="all")
    assert result.accuracy.images == 4 * 12
    assert result.left_out_other_part == 0


def in_pairs(bundle: Bundle, images: ImageSet, out: Path, numbers: bytes | None = None) -> Bundle:
    """Return the bundle as an export leaves it that found every two test pictures, of two classes, alike."""
    files = {name: (bundle.path / name).read_bytes() for name in bundle.file_names() if name != MANIFEST_NAME}
    parts = bundle.parts()
    test = [image.sample_id for image in images.images if parts[image.sample_id] is Part.TEST]
    half = len(test) // 2
    group = {sample: f"pair {i % half}" for i, sample in enumerate(test)}
    said = [group.get(sample, sample.hex()) for sample in parts]
    split = split_bytes(list(parts), list(parts.values()), said)
    files[bundle.manifest.split.file] = split if numbers is None else numbers
    return write_bundle(out, files, bundle.manifest)


def test_groups_that_the_split_joined_are_one_part_here_too(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    """The export joined them by their pixels, whatever their labels; nobody named groups."""
    images = replace(open_images(folder), has_groups=True)
    assert bundle.split_groups() == {}
    alone, paired = run(bundle, images), run(in_pairs(bundle, images, tmp_path / "paired"), images)
    assert (alone.accuracy.images, alone.accuracy.groups, alone.groups_note) == (24, 24, None)
    assert (paired.accuracy.images, paired.accuracy.groups) == (24, 12)
    assert paired.groups_note == "24 groups became 12: the export found that some show one part."
    assert len({each.group for each in paired.decisions}) == 12


def test_what_the_codes_say_is_not_said_of_the_export(bundle: Bundle, tmp_path: Path) -> None:
    """Two of 25 pictures were one part by their pixels at export, and two look like one by their codes here."""
    folder = write_pictures(tmp_path / "images", EVERY)
    parts = bundle.parts()
    test = [image for image in open_images(folder).images if parts[image.sample_id] is Part.TEST]
    rings = [image.sample_id for image in test if image.label == "rings"]
    said = ["a pair" if sample in rings[:2] else sample.hex() for sample in parts]
    numbers = split_bytes(list(parts), list(parts.values()), said)
    paired = in_pairs(bundle, open_images(folder), tmp_path / "paired", numbers)
    twin = cv2.imread(str(next(image.path for image in test if image.label == "pit")))
    assert twin is not None
    twin[0, 0] = 0
    cv2.imwrite(str(folder / "pit" / "twin.png"), twin)
    result = run(paired, open_images(folder))
    assert (result.accuracy.images, result.accuracy.groups) == (25, 23)
    assert result.groups_note == (
        "25 groups became 24: the export found that some show one part. By how alike their codes are, they are 23."
    )


def test_a_new_picture_of_a_joined_group_goes_where_the_group_went(
    bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    """And a group that somebody named is never divided: both of its pictures' pairs become one."""
    images, parts = open_images(folder), bundle.parts()
    test = [image for image in images.images if parts[image.sample_id] is Part.TEST]
    new = replace(test[0], sample_id=bytes(32))
    named = replace(test[1], group=test[0].group)
    found = grouped_as_split(
        in_pairs(bundle, images, tmp_path / "paired"), replace(images, images=(test[0], named, *test[12:14], new))
    )
    assert {image.group for image in found.images} == {min(image.group for image in (test[0], *test[12:14]))}


@pytest.mark.parametrize("numbers", [np.zeros(3, np.uint32), np.zeros(96, np.int64), np.zeros((96, 1), np.uint32)])
def test_groups_of_a_split_that_do_not_add_up_are_refused(
    bundle: Bundle, folder: Path, tmp_path: Path, numbers: npt.NDArray[np.generic]
) -> None:
    images, parts = open_images(folder), bundle.parts()
    whole = load_tensors(split_bytes(list(parts), list(parts.values())))
    wrong = in_pairs(bundle, images, tmp_path / "wrong", save_tensors({**whole, "groups": numbers}))
    with pytest.raises(BadFormat):
        wrong.split_groups()


def test_classes_written_otherwise_are_the_same_ones(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    """A folder from a Mac, or of somebody who writes class names large, holds no new classes and no defects."""
    for name in EVERY:
        shutil.copytree(folder / name, tmp_path / name.upper())
    runtime = open_runtime(bundle, None)
    here, there = (
        evaluate(bundle, open_images(each), runtime, good=[good])
        for each, good in ((folder, "good"), (tmp_path, "Good"))
    )
    assert there.accuracy == here.accuracy
    assert there.acceptance == here.acceptance


def test_new_pictures_of_parts_that_were_learned_are_left_out(bundle: Bundle, folder: Path) -> None:
    images, new = open_images(folder), hashlib.sha256(b"new").digest()
    parts = bundle.parts()

    def again(part: Part) -> LabelledImage:
        shown = next(i for i in images.images if parts[i.sample_id] is part)
        return replace(shown, sample_id=hashlib.sha256(part.name.encode() + new).digest())

    more = replace(images, images=(*images.images, *map(again, Part)))
    result = run(bundle, more)
    assert (result.left_out_siblings, result.left_out_learned) == (2, 4 * 12)
    assert result.left_out_other_part == 4 * 6 + 1  # one goes where its part is, the stream
    assert (result.accuracy.images, result.unknown_to_the_bundle) == (4 * 6 + 1, 1)
    kept = {i.sample_id for i in rehearsed(bundle, more, Plan(labels=1)).test}
    assert kept == {i.sample_id for i in not_learned(bundle, more)}


def test_pictures_of_one_part_that_no_group_is_named_for_count_as_one(bundle: Bundle, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for part, copy in product(range(8), range(5)):
            frame = decode(picture(name, 100 + part)).astype(np.int16)
            seen = np.clip(frame + rng.integers(-2, 3, frame.shape), 0, 255).astype(np.uint8)
            (tmp_path / name / f"{part}-{copy}.png").write_bytes(cv2.imencode(".png", seen)[1].tobytes())
    images = open_images(tmp_path)
    named = tuple(replace(i, group=f"part {number}") for number, i in enumerate(images.images))
    result, apart = run(bundle, images), run(bundle, replace(images, images=named, has_groups=True))
    assert apart.accuracy.groups == 8 * 5 * len(CLASSES)
    assert 8 * len(CLASSES) <= result.accuracy.groups <= 10 * len(CLASSES)
    assert result.groups_note is not None
    assert apart.groups_note is None
    assert "no groups were given" in result.groups_note.lower()
    for one, other in zip(result.accuracy.classes, apart.accuracy.classes, strict=True):
        assert one.recall.share == other.recall.share
        assert one.recall.high - one.recall.low > other.recall.high - other.recall.low


def test_images_new_to_the_bundle_are_evaluated_whatever_the_part(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "pit").mkdir()
    for i in range(100, 104):
        (tmp_path / "pit" / f"{i}.png").write_bytes(picture("pit", i))
    result = run(bundle, open_images(tmp_path), part="stream")
    assert result.unknown_to_the_bundle == result.accuracy.images == 4
    assert [c.name for c in result.accuracy.classes] == ["pit"]


def test_the_classes_it_knows_are_recognised(bundle: Bundle, folder: Path) -> None:
    accuracy = run(bundle, open_images(folder)).accuracy
    assert [c.name for c in accuracy.classes] == list(CLASSES)
    assert accuracy.balanced_accuracy is not None
    assert accuracy.balanced_accuracy.share > 0.7
    assert accuracy.balanced_accuracy.low <= accuracy.balanced_accuracy.share <= accuracy.balanced_accuracy.high
    for result in accuracy.classes:
        assert sum(result.called.values()) == result.images
        assert result.recall.share == result.called.get(result.name, 0) / result.images
        assert result.forced_recall.share >= result.recall.share


def test_a_held_back_class_is_reported_apart_as_noticed_or_not(bundle: Bundle, folder: Path) -> None:
    accuracy = run(bundle, open_images(folder)).accuracy
    (novel,) = accuracy.novel
    assert novel.name == "rings"
    assert novel.images == 6
    assert novel.noticed.share == novel.called.get("unknown", 0) / 6
    assert accuracy.novel_noticed == novel.noticed


def test_only_unknown_classes_have_no_accuracy(bundle: Bundle) -> None:
    codes = bundle.base().codes[:3]
    accuracy = judge(base_head(bundle), lambda _: "x", codes, ["new"] * 3, ["a", "b", "c"])
    assert accuracy.balanced_accuracy is None
    assert accuracy.unknown_rate is None
    assert accuracy.classes == []
    assert accuracy.novel_noticed is not None


def test_images_of_one_group_widen_the_interval(bundle: Bundle) -> None:
    base, names = bundle.base(), bundle.class_names()
    head, labels = base_head(bundle), [bundle.class_names()[c] for c in base.class_ids]
    apart = judge(head, names.__getitem__, base.codes, labels, base.groups)
    together = judge(head, names.__getitem__, base.codes, labels, [f"{x}{i % 2}" for i, x in enumerate(labels)])
    for a, b in zip(apart.classes, together.classes, strict=True):
        assert a.recall.share == b.recall.share
        assert b.recall.high - b.recall.low > a.recall.high - a.recall.low
        assert (a.groups, b.groups) == (12, 2)


def test_a_first_day_bundle_says_known_or_unknown(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "images", ["good", "rings"])
    bundle = tiny_bundle(tmp_path / "bundle", classes=["good"])
    accuracy = run(bundle, open_images(folder)).accuracy
    assert [c.name for c in accuracy.classes] == ["good"]
    assert accuracy.novel_noticed is not None
    assert np.isclose(accuracy.classes[0].forced_recall.share, 1)


def test_one_class_is_not_headed_as_a_balanced_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(tmp_path / "images", ["good", "rings"])
    bundle = tiny_bundle(tmp_path / "bundle", classes=["good"])
    told = headway(capsys, "evaluate", bundle.path, "--data", folder, "--good", "good").out
    assert "balanced accuracy" not in told
    assert "called good: " in told
    assert "noticed as unknown" in told


@pytest.mark.parametrize("part", ["test", "stream", "all"])
def test_nothing_left_is_refused(bundle: Bundle, folder: Path, part: str) -> None:
    learned = set(bundle.base().samples)
    images = open_images(folder)
    only = ImageSet(folder, tuple(i for i in images.images if i.sample_id in learned), (), False)
    with pytest.raises(BadImages, match="none of 36 images are left to evaluate") as refusal:
        run(bundle, only, part)
    assert "--part" in refusal.value.hint


def test_an_unknown_part_is_a_programmers_mistake(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(ValueError, match="validate"):
        run(bundle, open_images(folder), part="validate")


def test_the_command_prints_tables_and_writes_json(
    bundle: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    result = headway(capsys, "evaluate", bundle.path, "--data", folder, "--json", out)
    assert result.code == 0, result.err
    assert "balanced accuracy" in result.out
    figures = json.loads(out.read_text())
    assert figures["accuracy"]["images"] == 24
    assert figures["accuracy"]["novel"][0]["name"] == "rings"
    printed = json.loads(headway(capsys, "evaluate", bundle.path, "--data", folder, "--json", "-").out)
    assert printed["accuracy"] == figures["accuracy"]


def test_names_that_look_like_markup_are_printed_as_they_are(
    bundle: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called = {"good": "[red]", "pit": "tief[/x]", "scratch": "scratch", "rings": "[rings]"}
    classes = [ClassEntry(id=c.id, name=called[c.name]) for c in bundle.manifest.classes]
    files = {name: (bundle.path / name).read_bytes() for name in bundle.file_names() if name != MANIFEST_NAME}
    manifest = msgspec.structs.replace(bundle.manifest, name="b[old]", classes=classes)
    renamed = write_bundle(tmp_path / "bundle", files, manifest)
    images = [file.relative_to(folder) for file in sorted(folder.glob("*/*.png"))]
    data = Path(shutil.copytree(folder, tmp_path / "set"))
    rows = "".join(f"{file},{called[file.parent.name]}\n" for file in images)
    (data / "index.csv").write_text(f"path,label\n{rows}")
    evaluated = headway(capsys, "evaluate", renamed.path, "--data", data, "--good", "tief[/x]")
    assert evaluated.code == 0, evaluated.err
    assert all(name in evaluated.out for name in called.values())
    assert "it is called tief[/x]" in evaluated.out
    rehearsed = headway(capsys, "rehearse", renamed.path, "--data", data, "--labels", 1)
    assert rehearsed.code == 0, rehearsed.err
    assert "new: [rings]" in rehearsed.out
    assert "b[old]" in evaluated.out
    assert "b[old]" in rehearsed.out


def test_the_command_passes_over_bad_files_and_refuses_an_empty_folder(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images" / "pit"
    folder.mkdir(parents=True)
    empty = headway(capsys, "evaluate", bundle.path, "--data", folder.parent)
    assert empty.code == 2
    assert "holds no images" in empty.err
    (folder / "whole.png").write_bytes(picture("pit", 400))
    (folder / "truncated.png").write_bytes(picture("pit", 401)[:300])
    result = headway(capsys, "evaluate", bundle.path, "--data", folder.parent)
    assert result.code == 0, result.err
    assert "1 file could not be used" in result.out
    assert f"refused: {folder / 'truncated.png'}: the image is damaged" in result.err
    nowhere = tmp_path / "none" / "figures.json"
    assert headway(capsys, "evaluate", bundle.path, "--data", folder.parent, "--json", nowhere).code == 2
    (folder / "whole.png").unlink()
    only_bad = headway(capsys, "evaluate", bundle.path, "--data", folder.parent)
    assert only_bad.code == 2
    assert "Traceback" not in only_bad.err


def test_escapes_and_overkill_follow_the_target(bundle: Bundle, folder: Path) -> None:
    images, runtime = open_images(folder), open_runtime(bundle, None)
    shown = evaluate(bundle, images, runtime, good=["good"]).acceptance
    strict = evaluate(bundle, images, runtime, good=["good"], escape_rate=0.0).acceptance
    loose = evaluate(bundle, images, runtime, good=["good"], escape_rate=0.5).acceptance
    assert shown is not None
    assert strict is not None
    assert loose is not None
    assert (shown.threshold, shown.target) == (None, None)
    assert strict.threshold is not None
    assert loose.threshold is not None
    assert strict.threshold < loose.threshold
    for each in (shown, strict, loose):
        assert each.escapes is not None
        assert each.overkill is not None
    assert strict.escapes is not None
    assert loose.escapes is not None
    assert strict.escapes.share <= loose.escapes.share  # rings, which the bundle never heard of, are defects too
    assert strict.expected_escapes is not None
    assert strict.expected_escapes.share == 0


def test_escapes_here_weigh_classes_as_the_expected_ones_do(bundle: Bundle, folder: Path) -> None:
    """The only crack passes, and nothing of the other class: half, however many there are of that."""
    head, base, names = base_head(bundle), bundle.base(), bundle.class_names()
    last = sorted(set(names.values()) - {"good"})[-1]
    of = {name: [i for i, c in enumerate(base.class_ids) if names[c] == name] for name in ("good", last)}
    looks_good, *_ = of["good"]
    codes = base.codes[[looks_good, *of[last]]]
    image = open_images(folder).images[0]
    images = [replace(image, label=label) for label in ["crack", *[last] * len(of[last])]]
    groups = [str(i) for i in range(len(images))]
    found = accept(bundle, head, None, images, codes, groups, ["good"], None).escapes
    assert found is not None
    assert found.share == pytest.approx(0.5)


def test_what_is_in_sums_only_chooses_no_threshold_and_the_command_says_so(
    bundle: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = with_exemplars(bundle, tmp_path / "large", 12)
    images, runtime = open_images(folder), open_runtime(bundle, None)
    whole = evaluate(bundle, images, runtime, good=["good"], escape_rate=0.5)
    some = evaluate(large, images, runtime, good=["good"], escape_rate=0.5)
    assert some.accuracy == whole.accuracy
    assert whole.acceptance is not None
    assert some.acceptance is not None
    assert (whole.summed, whole.acceptance.expected_on) == (0, 36)
    assert (some.summed, some.acceptance.expected_on) == (24, 12)
    arguments = ("--data", folder, "--good", "good", "--escape-rate", "0.05")
    assert "24 images that the bundle learned from are in its sums only" in headway(
        capsys, "evaluate", large.path, *arguments
    ).out.replace("\n", " ")
    assert "sums only" not in headway(capsys, "evaluate", bundle.path, *arguments).out


def test_a_good_class_must_be_known(bundle: Bundle, folder: Path) -> None:
    with pytest.raises(UnknownClassError, match="fine"):
        evaluate(bundle, open_images(folder), open_runtime(bundle, None), good=["fine"])


def test_the_command_reports_escapes_and_calibration(
    bundle: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = headway(capsys, "evaluate", bundle.path, "--data", folder, "--good", "good", "--escape-rate", "0.05")
    assert ended.code == 0
    for words in ("escapes", "overkill", "probability shown is off", "balanced accuracy", "twice the labels"):
        assert words in ended.out
    refused = headway(capsys, "evaluate", bundle.path, "--data", folder, "--escape-rate", "0.05")
    assert refused.code == 2
    assert "--good" in refused.err


def test_a_coco_set_is_evaluated_as_the_same_pictures_in_folders(
    bundle: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    classes = sorted({name.partition("/")[0] for name in names} - {"good"})
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        "annotations": [
            {"image_id": i, "category_id": classes.index(name.partition("/")[0]), "area": 9}
            for i, name in enumerate(names)
            if not name.startswith("good/")
        ],
    }
    data = tmp_path / "data"
    shutil.copytree(folder, data / "images")
    (data / "annotations.json").write_text(json.dumps(coco))
    figures = []
    for options in (("--data", folder), ("--data", data, "--unannotated", "good")):
        ended = headway(capsys, "evaluate", bundle.path, *options, "--json", "-")
        assert ended.code == 0, ended.err
        figures.append(json.loads(ended.out)["accuracy"])
    assert figures[0] == figures[1]
    wrong = headway(capsys, "evaluate", bundle.path, "--data", folder, "--format", "coco")
    assert wrong.code == 2
    assert "no COCO annotations" in wrong.err


def test_the_outlook_is_of_the_bundles_own_samples(bundle: Bundle, folder: Path) -> None:
    images = open_images(folder)
    ahead = run(bundle, images).outlook
    few = ImageSet(folder, tuple(i for i in images.images if i.label == "rings"), (), False)
    assert run(bundle, few, "all").outlook == ahead
    assert {each.name for each in ahead.classes} == set(CLASSES)
    assert ahead.balanced_accuracy is not None
    assert [step.added for step in ahead.steps] == [5, 10, 20, None, None]


@pytest.mark.parametrize("named", [False, True])
def test_named_groups_of_the_bundle_are_left_as_given(bundle: Bundle, named: bool) -> None:
    """As in the release's own score. Who named a group for each part is not told to name them."""
    base, names = bundle.base(), bundle.class_names()
    twice = np.repeat(base.codes, 2, axis=0)  # two pictures of each part, which look alike
    ids = [class_id for class_id in base.class_ids for _ in range(2)]
    groups = [f"part {i}" if named else f"{i}.png" for i in range(len(ids))]
    settled = settled_groups(groups)
    head = bundle.precision().head
    ahead = look_ahead(
        twice, ids, groups, names.__getitem__,
        knobs=Knobs(head.rho, head.centre_damping, head.lift_floor, head.distance_weight),
        false_alarm_rate=head.false_alarm_rate, budget_s=0, settled=settled,
    )  # fmt: skip
    assert (ahead.groups_found == ahead.groups_given) is named
    assert (ahead.groups_note is None) is named
    assert named or "No groups were given" in (ahead.groups_note or "")


def test_where_no_curve_can_be_made_the_outlook_says_why(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "images", ["good", "rings"])
    ahead = run(tiny_bundle(tmp_path / "bundle", classes=["good"]), open_images(folder)).outlook
    assert ahead.advice.startswith("Nothing can be said yet: a learning curve needs two classes")
    assert (ahead.balanced_accuracy, ahead.steps, ahead.classes, ahead.helps_most) == (None, [], [], None)


@pytest.fixture(scope="module")
def mapped(folder: Path) -> Bundle:
    return tiny_bundle(folder.parent / "mapped", classes=EVERY, held_back=["rings"], maps=True)


def test_the_command_says_which_pictures_were_wrong(
    bundle: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "decisions.csv"
    arguments = ("--data", folder, "--good", "good", "--escape-rate", "0.3", "--json", tmp_path / "figures.json")
    ended = headway(capsys, "evaluate", bundle.path, *arguments, "--decisions", out)
    assert ended.code == 0, ended.err
    figures = json.loads((tmp_path / "figures.json").read_text())
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [each["path"] for each in figures["decisions"]]
    called = {(row["label"], row["shown"]): 0 for row in rows}
    for row in rows:
        assert (folder / row["path"]).parent.name == row["label"]
        assert row["shown"] in (row["best"], "unknown")
        assert row["verdict"] in ("pass", "reject")
        called[row["label"], row["shown"]] += 1
    for each in (*figures["accuracy"]["classes"], *figures["accuracy"]["novel"]):
        assert {shown: n for (label, shown), n in called.items() if label == each["name"]} == each["called"]
    of_defects = [row["verdict"] == "pass" for row in rows if row["label"] != "good"]
    assert np.mean(of_defects) == pytest.approx(figures["acceptance"]["escapes"]["share"])
    again = headway(capsys, "evaluate", bundle.path, "--data", folder, "--decisions", "-")
    assert again.out.splitlines()[0] == "path,label,shown,best,probability,novelty,group,verdict,label_probability"
    assert len(again.out.splitlines()) == 1 + len(rows)
    assert again.out.splitlines()[1].split(",")[7] == ""  # nobody said what is good


def test_two_outputs_cannot_both_be_printed(
    bundle: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = headway(capsys, "evaluate", bundle.path, "--data", folder, "--decisions", "-", "--json", "-")
    assert both.code == 2
    assert "name a file for one of them" in both.err
    nowhere = headway(capsys, "evaluate", bundle.path, "--data", folder, "--decisions", tmp_path / "no" / "d.csv")
    assert nowhere.code == 2
    assert "no such folder" in nowhere.err


def test_names_that_a_spreadsheet_or_json_would_not_take_are_written_otherwise(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "=pit").mkdir(parents=True)
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "data" / "=pit" / name).write_bytes(picture("pit", 300))
    figures = tmp_path / "figures.json"
    ended = headway(
        capsys, "evaluate", bundle.path, "--data", tmp_path / "data", "--decisions", "-", "--json", figures
    )
    assert ended.code == 0, ended.err
    assert "'=pit/caf\\xe9.png,'=pit," in ended.out
    (tmp_path / "data" / "=pit").rename(tmp_path / "data" / os.fsdecode(b"caf\xe9"))
    headed = headway(capsys, "evaluate", bundle.path, "--data", tmp_path / "data", "--json", "-")
    assert headed.code == 0, headed.err
    assert [each["name"] for each in json.loads(headed.out)["accuracy"]["novel"]] == ["caf\\xe9"]
    (decision,) = json.loads(figures.read_text())["decisions"]
    assert (decision["path"], decision["label"]) == ("=pit/caf\\xe9.png", "=pit")


def test_the_command_writes_heatmaps_of_what_it_judged(
    mapped: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "heat" / "maps"
    arguments = ("--data", folder, "--json", tmp_path / "figures.json", "--heatmaps", out)
    result = headway(capsys, "evaluate", mapped.path, *arguments)
    assert result.code == 0, result.err
    written = sorted(out.iterdir())
    assert len(written) == 24
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in written)
    for each in json.loads((tmp_path / "figures.json").read_text())["decisions"]:
        stem = each["path"].replace("/", "-").removesuffix(".png")
        shown = each["shown"] if each["shown"] != "unknown" else f"unknown-most-like-{each['best']}"
        assert out / f"{stem}-{each['label']}-shown-as-{shown}.png" in written
    assert any("-rings-shown-as-unknown-most-like-" in file.name for file in written)


def test_heatmaps_never_lie_beside_those_of_another_evaluation(
    mapped: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "maps"
    out.mkdir()
    (out / "00038-uneven-seen-as-break.png").write_bytes(b"old")
    refused = headway(capsys, "evaluate", mapped.path, "--data", folder, "--heatmaps", out)
    assert refused.code == 2
    assert f"{out} is not empty" in refused.err
    assert [file.name for file in out.iterdir()] == ["00038-uneven-seen-as-break.png"]


def test_long_and_equal_names_of_heatmaps_stay_apart() -> None:
    taken: set[str] = set()

    def name(path: str, label: str = "pit") -> str:
        decision = JudgedImage(
            path=path,
            label=label,
            shown="good",
            best="good",
            probability=1,
            novelty=0,
            group="",
            verdict=None,
            label_probability=None,
        )
        return _file_name(decision, taken)

    assert name("a b/1.png") == "a-b-1-pit-shown-as-good.png"
    assert name("a-b/1.PNG") == "a-b-1-pit-shown-as-good-2.png"
    assert name("A-B/1.bmp") == "A-B-1-pit-shown-as-good-3.png"  # some disks do not tell them apart
    long = name("\u00fc" * 300 + "/7.png", "\u6f22" * 64)
    assert len(long.encode()) <= 255
    assert "7-\u6f22" in long


def test_heatmaps_that_cannot_be_are_refused(
    bundle: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = headway(capsys, "evaluate", bundle.path, "--data", folder, "--heatmaps", tmp_path / "heat")
    assert without.code == 2
    assert "no maps" in without.err
    (tmp_path / "file").write_bytes(b"")
    nowhere = headway(capsys, "evaluate", bundle.path, "--data", folder, "--heatmaps", tmp_path / "file" / "in")
    assert nowhere.code == 2
    assert "Name another folder" in nowhere.err
