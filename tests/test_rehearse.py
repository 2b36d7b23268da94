"""A rehearsal is a real shift in small: the queue asks, the oracle answers, the head grows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from device_agent.figures import show_rehearsal
from device_agent.learner import Learner
from device_agent.pipeline import Pipeline
from device_agent.plot import draw, figure_of
from device_agent.rehearse import (
    Basis,
    Plan,
    PolicyResult,
    Rehearsal,
    StationImages,
    _cost_elsewhere,
    _joint,
    advise,
    rehearse,
    together,
)
from device_agent.runtime import base_head, open_runtime
from device_agent.shift import DEVICE, WITHDRAWN, Coded, Line, Point, Policy, Shift, Test, checkpoints, withdraw
from device_agent.store import Store
from sdk.bundle import MANIFEST_NAME, BaseSamples, Bundle, split_bytes, write_bundle
from sdk.codes import Codes
from sdk.console import Console
from sdk.errors import BadImages
from sdk.extras import installing
from sdk.images import ImageSet, open_images
from sdk.splits import Part
from sdk.wire import HeadState
from tests.builders import with_exemplars
from tests.commands import headway
from tests.simulators import wait_for
from tests.tiny import picture, tiny_bundle, write_pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

SURE = Basis(0.75, 100, 100)
EVERY = ("good", "pit", "scratch", "rings")
PER_CLASS = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return open_images(write_pictures(tmp_path_factory.mktemp("rehearse") / "images", EVERY, PER_CLASS))


@pytest.fixture(scope="module")
def held_back(images: ImageSet) -> Bundle:
    return tiny_bundle(images.folder.parent / "held", classes=EVERY, per_class=PER_CLASS, held_back=["rings"])


@pytest.fixture(scope="module")
def full(images: ImageSet) -> Bundle:
    return tiny_bundle(images.folder.parent / "full", classes=EVERY, per_class=PER_CLASS)


def run(bundle: Bundle, images: ImageSet, plan: Plan) -> Rehearsal:
    return rehearse(bundle, images, open_runtime(bundle, None), plan)


@pytest.fixture(scope="module")
def shift(held_back: Bundle, images: ImageSet) -> Rehearsal:
    return run(held_back, images, Plan(6))


def test_a_new_class_is_learned_from_what_the_queue_asks(shift: Rehearsal) -> None:
    first, last = shift.curve[0], shift.curve[-1]
    assert shift.new_classes == ["rings"]
    assert first.labels == 0
    assert first.new_class_recall == 0
    assert last.new_class_recall is not None
    assert last.new_class_recall > 0.8
    assert last.balanced_accuracy > first.balanced_accuracy
    assert shift.policies[0].shifts[0].labels_by_class["rings"] >= 1


def test_the_curve_has_the_checkpoints_up_to_the_labels_given(shift: Rehearsal) -> None:
    (only,) = shift.policies[0].shifts
    expected = [n for n in checkpoints(6) if n < only.labels_given] + [only.labels_given]
    assert [point.labels for point in shift.curve] == expected
    assert sum(only.labels_by_class.values()) == only.labels_given <= 6
    assert shift.label_to_live_ms is not None
    assert shift.label_to_live_ms > 0
    assert shift.policies[0].low == shift.policies[0].high == shift.curve == only.curve


def test_the_joint_bound_learns_from_every_image_of_the_shift(shift: Rehearsal) -> None:
    assert shift.joint.labels == shift.stream_images == PER_CLASS
    assert shift.joint.new_class_recall is not None
    assert shift.joint.new_class_recall > 0.8


class Tuned(Bundle):
    """A bundle whose backbone was trained on its samples: their codes lie closer together than new ones."""

    def __init__(self, bundle: Bundle, codes: Codes, fitted: bool) -> None:
        super().__init__(bundle.path, bundle.manifest)
        self._codes, self._fitted = codes, fitted

    def base(self, precision: str | None = None) -> BaseSamples:
        base = super().base(precision)
        return replace(base, codes=self._codes, fitted=np.full(len(self._codes), self._fitted))


def test_the_joint_bound_is_calibrated_on_what_did_not_train_the_backbone(full: Bundle, images: ImageSet) -> None:
    """Else new parts look unknown, and the bound lies below what the device reaches."""
    rng = np.random.default_rng(0)
    names = full.class_names()
    centres = {name: rng.normal(0, 22, 48) for name in EVERY}

    def drawn(labels: list[str], spread: float) -> Codes:
        at = np.array([centres[label] for label in labels])
        return np.clip(at + rng.normal(0, spread, at.shape), -127, 127).astype(np.int8)

    def coded(many: int) -> Coded:
        some = [replace(each, group=str(i)) for i, each in enumerate([*images.images] * many)]
        return Coded(some, drawn([image.label for image in some], 22))

    codes = drawn([names[class_id] for class_id in full.base().class_ids], 8)
    stream, test = coded(1), Test(coded(2), Coded([], np.zeros((0, 48), np.int8)), [])
    pipeline = Pipeline(full, None, open_runtime(full, None))
    flattered, fair = (
        _joint(Line(Tuned(full, codes, fitted), pipeline, frozenset(), stream, test, 1))[0].balanced_accuracy
        for fitted in (False, True)
    )
    assert fair > flattered + 0.005


def test_stream_and_test_are_those_of_the_recorded_split(shift: Rehearsal, images: ImageSet) -> None:
    assert shift.stream_images + shift.test_images == len(images.images) // 2


def test_classes_written_otherwise_are_those_of_the_bundle(
    held_back: Bundle, full: Bundle, images: ImageSet, shift: Rehearsal
) -> None:
    large = replace(images, images=tuple(replace(each, label=each.label.upper()) for each in images.images))
    again = run(held_back, large, Plan(6))
    assert (again.new_classes, again.curve, again.joint) == (shift.new_classes, shift.curve, shift.joint)
    assert run(full, large, Plan(1, hold_back="Rings")).new_classes == ["rings"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("unknown", "no name for a class"), ("a  b", "spaces that an operator"), ("a\x07b", "no name for a class")],
)
def test_a_class_that_no_operator_could_teach_is_refused_before_the_shift(
    held_back: Bundle, images: ImageSet, name: str, says: str
) -> None:
    some = replace(
        images, images=tuple(replace(i, label=name if i.label == "rings" else i.label) for i in images.images)
    )
    with pytest.raises(BadImages, match=says) as refused:
        run(held_back, some, Plan(1))
    assert refused.value.hint


def test_a_class_can_be_held_back_from_a_bundle_that_knows_it(full: Bundle, images: ImageSet) -> None:
    result = run(full, images, Plan(2, hold_back="rings"))
    assert result.curve[0].new_class_recall == 0
    assert result.new_classes == ["rings"]
    assert any("exported with rings" in note for note in result.notes)


def test_the_same_seed_gives_the_same_curve(held_back: Bundle, images: ImageSet, shift: Rehearsal) -> None:
    again = run(held_back, images, Plan(6))
    assert again.curve == shift.curve
    assert again.policies[0].shifts[0].labels_by_class == shift.policies[0].shifts[0].labels_by_class


def test_images_that_the_bundle_never_saw_are_dealt_out(full: Bundle, tmp_path: Path) -> None:
    for name in ("good", "pit"):
        (tmp_path / name).mkdir()
        for i in range(300, 312):
            (tmp_path / name / f"{i}.png").write_bytes(picture(name, i))
    result = run(full, open_images(tmp_path), Plan(3))
    assert result.stream_images + result.test_images == 24
    assert result.new_classes == []
    assert result.curve[0].new_class_recall is None


def test_pictures_whose_names_are_no_utf8_pass_as_others_do(full: Bundle, tmp_path: Path) -> None:
    for name in ("good", "pit"):
        (tmp_path / name).mkdir()
        for i in range(300, 312):
            (tmp_path / name / os.fsdecode(b"%d-Ri\xdf.png" % i)).write_bytes(picture(name, i))
    result = run(full, open_images(tmp_path), Plan(3, policies=[Policy.ALL]))
    assert result.stream_images + result.test_images == 24
    assert result.curve[-1].labels == 3


def test_a_class_that_is_not_there_is_refused(full: Bundle, images: ImageSet) -> None:
    with pytest.raises(BadImages, match="no image of class 'ring'") as refusal:
        run(full, images, Plan(2, hold_back="ring"))
    assert "rings" in refusal.value.hint


def test_images_that_it_all_learned_from_are_refused(full: Bundle, images: ImageSet) -> None:
    learned = set(full.base().samples)
    only = ImageSet(images.folder, tuple(i for i in images.images if i.sample_id in learned), (), False)
    with pytest.raises(BadImages, match="no image is left for the shift"):
        run(full, only, Plan(2))


def test_the_only_class_of_a_bundle_cannot_be_held_back(tmp_path: Path) -> None:
    images = open_images(write_pictures(tmp_path / "images", ["good", "rings"], 12))
    bundle = tiny_bundle(tmp_path / "bundle", classes=["good"], per_class=12)
    with pytest.raises(BadImages, match="knows nothing but 'good'"):
        run(bundle, images, Plan(2, hold_back="good"))


def test_the_first_defect_turns_a_first_day_bundle_into_a_classifier(tmp_path: Path) -> None:
    images = open_images(write_pictures(tmp_path / "images", ["good", "rings"], 24))
    bundle = tiny_bundle(tmp_path / "bundle", classes=["good"], per_class=24)
    result = run(bundle, images, Plan(4))
    assert result.curve[0].new_class_recall == 0
    assert result.curve[-1].new_class_recall is not None
    assert result.curve[-1].new_class_recall > 0.5


def test_every_policy_gives_its_labels_and_several_seeds_a_range(held_back: Bundle, images: ImageSet) -> None:
    result = run(held_back, images, Plan(5, policies=tuple(Policy), seeds=(0, 1)))
    assert [each.policy for each in result.policies] == [Policy.QUEUE, Policy.RANDOM, Policy.ALL]
    assert result.curve == result.policies[0].curve
    for each in result.policies:
        assert [shift.seed for shift in each.shifts] == [0, 1]
        for low, mean, high in zip(each.low, each.curve, each.high, strict=True):
            assert low.balanced_accuracy <= mean.balanced_accuracy <= high.balanced_accuracy
    for each in result.policies[1:]:  # these need no question
        assert each.labels_given == 5
        assert [point.labels for point in each.curve] == checkpoints(5)
    assert result.policies[1].shifts[0].curve != result.policies[1].shifts[1].curve


def test_labelling_every_image_ends_at_the_upper_bound(held_back: Bundle, images: ImageSet) -> None:
    result = run(held_back, images, Plan(PER_CLASS + 60, policies=(Policy.ALL,)))
    last = result.curve[-1]
    assert last.labels == result.stream_images == PER_CLASS
    assert last.balanced_accuracy == pytest.approx(result.joint.balanced_accuracy, abs=0.03)
    assert any("images only" in note for note in result.notes)


def test_wrong_labels_are_counted_and_cost_accuracy(held_back: Bundle, images: ImageSet) -> None:
    right = run(held_back, images, Plan(20, policies=(Policy.ALL,)))
    wrong = run(held_back, images, Plan(20, policies=(Policy.ALL,), noise=0.7))
    (shift,) = wrong.policies[0].shifts
    assert 8 <= shift.wrong_labels < 20
    assert right.policies[0].shifts[0].wrong_labels == 0
    assert shift.labels_by_class == right.policies[0].shifts[0].labels_by_class
    assert wrong.curve[-1].balanced_accuracy < right.curve[-1].balanced_accuracy
    assert wrong.joint == right.joint
    assert f"{shift.wrong_labels} of 20 labels were wrong on purpose" in " ".join(wrong.notes)


@pytest.fixture(scope="module")
def stations(images: ImageSet) -> ImageSet:
    """The same images with a column: every third picture is camera 2's."""
    lines = ["path,label,group,camera,lot"]
    for image in images.images:
        path = image.path.relative_to(images.folder).as_posix()
        lines.append(f"{path},{image.label},{path},{2 if int(image.path.stem) % 3 == 0 else 1},a")
    index = images.folder / "index.csv"
    index.write_text("\n".join(lines) + "\n")
    try:
        return open_images(images.folder)
    finally:
        index.unlink()


def test_a_station_has_its_own_shift_and_test_and_forgets_nothing_elsewhere(
    full: Bundle, stations: ImageSet
) -> None:
    camera = StationImages("camera", ["2"])
    result = run(full, stations, Plan(4, station=camera))
    parts, learned = full.parts(), set(full.base().samples)
    here = [image for image in stations.images if camera.has(image)]
    assert result.stream_images == sum(parts[image.sample_id].value == "stream" for image in here)
    assert result.test_images == sum(parts[image.sample_id].value == "test" for image in here)
    assert result.test_images + result.elsewhere_images == len(images_of(full, "test"))
    assert result.withdrawn == sum(image.sample_id in learned for image in here) > 0
    assert all(point.elsewhere_balanced_accuracy is not None for point in [*result.curve, result.joint])
    assert any("images of this station (camera 2)" in note for note in result.notes)


def images_of(bundle: Bundle, part: str) -> list[bytes]:
    return [sample for sample, each in bundle.parts().items() if each.value == part]


def test_pictures_of_a_part_that_the_bundle_learned_are_left_out(
    full: Bundle, images: ImageSet, tmp_path: Path
) -> None:
    lines = ["path,label,group,camera"]
    for image in images.images:
        group = f"{image.label}/{image.path.name}"
        (tmp_path / image.label).mkdir(exist_ok=True)
        (tmp_path / group).write_bytes(image.path.read_bytes())
        again = f"{image.label}/again-{image.path.name}"
        (tmp_path / again).write_bytes(picture(image.label, 500 + int(image.path.stem)))
        lines += [f"{group},{image.label},{group},1", f"{again},{image.label},{group},2"]
    (tmp_path / "index.csv").write_text("\n".join(lines) + "\n")
    result = run(full, open_images(tmp_path), Plan(2, station=StationImages("camera", ["2"])))
    assert result.stream_images == result.test_images == PER_CLASS
    assert f"{2 * PER_CLASS} images were left out" in " ".join(result.notes)
    assert result.withdrawn == 0


@pytest.mark.parametrize(
    ("column", "values", "message", "hint"),
    [
        ("cam", ["2"], "no column 'cam'", "Columns here: camera, lot."),
        ("camera", ["2", "7"], "no image has camera 7", "There is: 1, 2."),
        ("lot", ["a"], "knows nothing but lot a", "Start from a bundle that knows something else as well."),
    ],
)
def test_a_station_that_is_not_there_is_refused(
    full: Bundle, stations: ImageSet, column: str, values: list[str], message: str, hint: str
) -> None:
    with pytest.raises(BadImages, match=message) as refusal:
        run(full, stations, Plan(2, station=StationImages(column, values)))
    assert refusal.value.hint == hint


def test_class_folders_have_no_stations(full: Bundle, images: ImageSet) -> None:
    with pytest.raises(BadImages, match="no column 'camera'") as refusal:
        run(full, images, Plan(2, station=StationImages("camera", ["2"])))
    assert "index.csv" in refusal.value.hint


def test_withdrawn_samples_leave_a_confirmed_head_that_never_knew_them(full: Bundle, tmp_path: Path) -> None:
    base = full.base()
    gone = frozenset(base.samples[::2])
    with Store.open(tmp_path, DEVICE) as store:
        withdraw(store, full, "fp32", gone)
        learner = Learner(full, None, store)
        learner.run_until_idle()
        status, heads = learner.status(), learner.history()
    assert (status.state, status.live_samples) == (HeadState.CONFIRMED, len(base.samples) - len(gone))
    assert learner.head.head.calibration != base_head(full, None).calibration
    assert [head.reason for head in heads] == [WITHDRAWN]


def test_a_bundle_cannot_forget_what_it_has_in_sums_only(
    full: Bundle, images: ImageSet, stations: ImageSet, tmp_path: Path
) -> None:
    large = with_exemplars(full, tmp_path / "large", 24)
    for set_of, plan in (
        (images, Plan(3, hold_back="rings")),
        (stations, Plan(3, station=StationImages("camera", ["2"]))),
    ):
        with pytest.raises(BadImages, match="in its sums only") as refusal:
            run(large, set_of, plan)
        assert "--max-base-codes" in refusal.value.hint


def test_a_shift_with_sums_starts_where_one_with_all_codes_does(
    held_back: Bundle, images: ImageSet, shift: Rehearsal, tmp_path: Path
) -> None:
    large = run(with_exemplars(held_back, tmp_path / "large", 24), images, Plan(2))
    assert large.curve[0].balanced_accuracy == shift.curve[0].balanced_accuracy
    assert large.joint.labels == shift.joint.labels
    assert any("36 of its samples" in note for note in large.notes)


def point(labels: int, balanced: float, trial: float | None = None) -> Point:
    return Point(
        labels=labels,
        balanced_accuracy=balanced,
        new_class_recall=None,
        old_class_recall=balanced,
        trial_balanced_accuracy=trial,
    )


def shifts(policy: Policy, *curves: list[float]) -> PolicyResult:
    """Return a policy's result from balanced accuracies at the checkpoints of 100 labels."""
    made = []
    for seed, balanced in enumerate(curves):
        points = [point(n, b) for n, b in zip(checkpoints(100), balanced, strict=False)]
        made.append(
            Shift(
                seed=seed,
                labels_given=points[-1].labels,
                labels_by_class={},
                wrong_labels=0,
                taken_back=0,
                label_to_live_ms=None,
                curve=points,
            )
        )
    return together(policy, made, 100)


def test_a_shift_without_more_questions_stays_as_it_is_in_the_mean() -> None:
    result = shifts(Policy.QUEUE, [0.5, 0.6], [0.5, 0.7, 0.9])
    assert [p.labels for p in result.curve] == [0, 1, 2]
    assert [p.balanced_accuracy for p in result.curve] == pytest.approx([0.5, 0.65, 0.75])
    assert [p.balanced_accuracy for p in result.low] == [0.5, 0.6, 0.6]
    assert [p.balanced_accuracy for p in result.high] == [0.5, 0.7, 0.9]


@pytest.mark.parametrize(
    ("balanced", "joint", "advice"),
    [
        ([0.7, 0.9, 0.97], 0.975, "2 labels are enough"),
        ([0.7, 0.97, 0.97], 0.975, "1 label is enough"),
        ([0.7, 0.97, 0.9, 0.97], 0.975, "3 labels are enough"),
        ([0.97, 0.97], 0.975, "label only what the queue asks"),
        ([0.7, 0.8, 0.9], 0.975, "more shifts will bring more questions"),
        ([0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.9], 0.975, "plan for more labels"),
        ([0.5, 0.55], 0.6, "features are the limit"),
    ],
)
def test_the_advice_follows_the_curve(balanced: list[float], joint: float, advice: str) -> None:
    assert advice in advise([shifts(Policy.QUEUE, balanced)], point(450, joint), 100, SURE)


@pytest.mark.parametrize(
    ("labels", "high", "advice"),
    [
        (450, 0.7, "the features are the limit, so"),
        (450, 0.9, "judged on 7 images of 5 groups: too few to say"),  # chance would explain it too
        (3, 0.7, "All 3 labels of the shift at once give 60.0%, judged on 7 images of 5 groups: too few to say"),
        (1, 0.7, "The shift's one label gives 60.0%"),
    ],
)
def test_features_are_blamed_on_evidence_only(labels: int, high: float, advice: str) -> None:
    said = advise([shifts(Policy.QUEUE, [0.5, 0.55])], point(labels, 0.6), 100, Basis(high, 7, 5))
    assert advice in said


def test_a_shift_counts_parts_as_the_split_did(held_back: Bundle, images: ImageSet, tmp_path: Path) -> None:
    """Of three parts nothing is sure, however many pictures; labels of no meaning make the heads weak."""
    files = {n: (held_back.path / n).read_bytes() for n in held_back.file_names() if n != MANIFEST_NAME}
    parts = held_back.parts()
    groups = [f"{part.value} {i % 3}" for i, part in enumerate(parts.values())]
    files[held_back.manifest.split.file] = split_bytes(list(parts), list(parts.values()), groups)
    joined = write_bundle(tmp_path / "joined", files, held_back.manifest)
    drawn = tuple(replace(image, label=EVERY[image.sample_id[0] % 4]) for image in images.images)
    alone, together = (
        run(bundle, replace(images, images=drawn), Plan(1)).advice for bundle in (held_back, joined)
    )
    assert "the features are the limit, so" in alone
    assert "of 3 groups" in together


@pytest.mark.parametrize(
    ("balanced", "joint", "high", "advice"),
    [
        # A head of fewer labels shows that the features allow more, as far as chance goes.
        (
            [0.60, 0.62, 0.64],
            0.42,
            0.74,
            "give 42.0%, judged on 26 images of 15 groups; 2 gave 64.0%: too few to say",
        ),
        ([0.50, 0.45, 0.45], 0.42, 0.60, "reach 42.0% only; the line starts at 50.0%: the features are the limit"),
        # Beyond chance the labels are to blame, whatever the features.
        ([0.60, 0.64, 0.58], 0.42, 0.60, "give 42.0%, 1 gave 64.0%: labels of this shift do not fit"),
        ([0.97, 0.96], 0.85, 0.92, "give 85.0%, the line starts at 97.0%: labels of this shift do not fit"),
    ],
)
def test_labels_that_make_it_worse_are_not_the_features_fault(
    balanced: list[float], joint: float, high: float, advice: str
) -> None:
    said = advise([shifts(Policy.QUEUE, balanced)], point(30, joint), 100, Basis(high, 26, 15))
    assert advice in said
    assert ("Look at the labels first" in said) == ("the limit, so" not in said)


def test_a_class_of_three_parts_is_no_evidence_against_the_features() -> None:
    said = advise([shifts(Policy.QUEUE, [0.5, 0.55])], point(450, 0.6), 100, Basis(0.7, 40, 20, ["pit"]))
    assert "of 20 groups, pit known from fewer than 5 parts: too few to say" in said


def test_parts_behind_each_class_are_counted_not_images(held_back: Bundle, images: ImageSet) -> None:
    """Thirty pictures of three parts are three parts; what the bundle knows of a class counts too."""
    rng = np.random.default_rng(0)
    d = held_back.base().codes.shape[1]
    at = {name: rng.normal(0, 22, d) for name in EVERY}

    def drawn(labels: list[str]) -> Codes:
        means = np.array([at[label] for label in labels])
        return np.clip(means + rng.normal(0, 16, means.shape), -127, 127).astype(np.int8)

    def coded(parts: int) -> Coded:
        some = [replace(image, group=f"{image.label} {i % parts}") for i, image in enumerate(images.images)]
        return Coded(some, drawn([image.label for image in some]))

    knew = [held_back.class_names()[class_id] for class_id in held_back.base().class_ids]
    bundle = Tuned(held_back, drawn(knew), False)
    pipeline = Pipeline(bundle, None, open_runtime(bundle, None))
    test = Test(coded(30), Coded([], np.zeros((0, d), np.int8)), ["rings"])
    few, many = (_joint(Line(bundle, pipeline, frozenset(), coded(parts), test, 1))[1].few for parts in (3, 30))
    assert (few, many) == (["rings"], [])


def test_what_all_labels_cost_elsewhere_is_noted_too() -> None:
    def there(labels: int, elsewhere: float | None) -> Point:
        return msgspec.structs.replace(point(labels, 0.6), elsewhere_balanced_accuracy=elsewhere)

    noted = _cost_elsewhere([there(0, 0.47), there(19, 0.47)], there(30, 0.32))
    assert noted == (
        "What is learned here costs elsewhere: 47.0% there becomes 32.0% with all 30 labels of the shift at once."
    )
    noted = _cost_elsewhere([there(0, 0.47), there(19, 0.40)], there(30, 0.32))
    assert noted is not None
    assert "47.0% there becomes 40.0% and 32.0% with all 30" in noted
    assert _cost_elsewhere([there(0, 0.47), there(19, 0.40)], there(30, 0.46)) == (
        "What is learned here costs elsewhere: 47.0% there becomes 40.0%."
    )
    assert _cost_elsewhere([there(0, 0.47), there(19, 0.46)], there(30, 0.46)) is None
    assert _cost_elsewhere([there(0, None)], there(30, None)) is None


def test_a_shift_of_three_images_is_not_called_clear(
    held_back: Bundle, images: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that was there was labelled; what the bundle knows is counted, and nobody is told of "1 labels"."""
    parts = held_back.parts()
    rings = [i for i in images.images if i.label == "rings"]
    few = [i for i in rings if parts[i.sample_id] is Part.STREAM][:1]
    test = [i for i in images.images if parts[i.sample_id] is Part.TEST and i.label in ("good", "rings")][::9]
    learned = [i for i in images.images if parts[i.sample_id] is Part.TRAIN and i.label == "good"][:1]
    result = run(held_back, replace(images, images=(*few, *test, *learned)), Plan(20))
    show_rehearsal(result, Console(width=200))
    said = capsys.readouterr().out
    assert "The shift has 1 image only; it had no more to label." in result.notes
    assert "1 image was left out: the bundle learned from it." in result.notes
    assert not [note for note in result.notes if "clear to the head" in note]
    assert "1 image as a shift" in said
    assert "queue: 1 label (rings 1); 0 heads taken back" in said


def test_a_queue_without_a_question_is_said_so(
    full: Bundle, images: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = full.parts()
    good = [i for i in images.images if i.label == "good" and parts[i.sample_id] in (Part.STREAM, Part.TEST)]
    result = run(full, replace(images, images=tuple(good)), Plan(1, policies=(Policy.QUEUE,)))
    quiet = msgspec.structs.replace(result.policies[0].shifts[0], labels_by_class={}, labels_given=0)
    policy = msgspec.structs.replace(result.policies[0], shifts=[quiet], labels_given=0)
    show_rehearsal(msgspec.structs.replace(result, policies=[policy]), Console(width=200))
    assert "queue: no labels; 0 heads taken back" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "advice"),
    [
        ([0.7, 0.8, 0.9, 0.97], "with images picked at random it takes 3."),
        ([0.7, 0.8, 0.9], "2 labels of images picked at random give 90.0%."),
    ],
)
def test_the_advice_says_what_the_queue_buys(other: list[float], advice: str) -> None:
    results = [shifts(Policy.QUEUE, [0.7, 0.9, 0.97]), shifts(Policy.RANDOM, other)]
    said = advise(results, point(450, 0.975), 100, SURE)
    assert said.startswith("2 labels are enough")
    assert said.endswith(advice)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_plot_is_drawn(shift: Rehearsal, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"curve{suffix}"
    draw(shift, file)
    begins = b"\x89PNG" if suffix == ".png" else b"<?xml"
    assert file.read_bytes().startswith(begins)


@pytest.fixture(scope="module")
def compared(shift: Rehearsal) -> Rehearsal:
    """Three policies that all end early, with the longest names that there are."""
    curve = [0.5 + i / 1000 for i in range(101)]
    policies = [shifts(policy, curve, [each + 0.1 for each in curve]) for policy in Policy]
    wrong = [
        msgspec.structs.replace(each, shifts=[msgspec.structs.replace(s, wrong_labels=1) for s in each.shifts])
        for each in policies
    ]
    return msgspec.structs.replace(
        shift,
        bundle="b" * 64,
        station=StationImages("exposure", ["4", "5", "6"]),
        new_classes=[letter * 64 for letter in "xyz"],
        seeds=[0, 1],
        labels_wanted=1000,
        stream_images=1000,
        noise=0.3,
        curve=policies[0].curve,
        policies=wrong,
    )


def words_of(figure: Figure) -> list[Text]:
    """Return the texts of a figure that is laid out, without those of its scales."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in texts if text.get_text() and not text.get_text().isdigit()]


@pytest.mark.parametrize("new", [[], ["rings"], [letter * 64 for letter in "xyz"]])
def test_no_words_of_the_plot_are_cut_off_or_over_others(compared: Rehearsal, new: list[str]) -> None:
    """With three policies the names of the first and second began left of the picture, the third ended right."""
    figure = figure_of(msgspec.structs.replace(compared, new_classes=new))
    boxes = [(text.get_text(), text.get_window_extent()) for text in words_of(figure)]
    assert any("no question left" in name for name, _ in boxes)
    room = figure.bbox
    assert [
        name for name, box in boxes if box.x0 < room.x0 or box.x1 > room.x1 or box.y0 < room.y0 or box.y1 > room.y1
    ] == []
    assert [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)] == []


def test_the_plot_says_once_what_line_and_band_are(compared: Rehearsal) -> None:
    words = [text.get_text() for text in words_of(figure_of(compared))]
    assert [each for each in words if "band" in each] == ["line: mean, band: range of 2 shifts"]


def test_the_plot_says_how_many_labels_were_wrong(compared: Rehearsal) -> None:
    """And not how many of a hundred were to be."""
    words = " ".join(text.get_text() for text in words_of(figure_of(compared)))
    assert "6 of 600 wrong on purpose" in " ".join(words.split())
    assert "30%" not in words


@pytest.mark.parametrize(
    ("args", "error", "hint"),
    [
        (("--plot", "curve.pdf"), "error: curve.pdf: a plot is .png or .svg", "hint: Name the file so"),
        (("--plot", "no/folder/curve.png"), "error: no/folder/curve.png: no such folder", "hint: Name a file in"),
        (("--json", "no/folder/curve.json"), "error: no/folder/curve.json: no such folder", "hint: Name a file"),
    ],
)
def test_what_could_not_be_written_is_refused_before_the_work(
    args: tuple[str, str], error: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = headway(capsys, "rehearse", "no-bundle", "--data", "no-images", "--labels", 2, *args)
    assert ended.code == 2
    said = ended.err.splitlines()
    assert (said[0], said[1][: len(hint)]) == (error, hint)


def test_without_matplotlib_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    args = ("no-bundle", "--data", "no-images", "--labels", 2, "--plot", tmp_path / "curve.png")
    ended = headway(capsys, "rehearse", *args)
    assert ended.code == 2
    assert ended.err.splitlines() == [
        "error: --plot needs the plot extra: module matplotlib is not installed",
        f"hint: {installing('plot')}",
    ]


@pytest.mark.parametrize("station", ["camera", "=2", "camera=", "camera=,"])
def test_a_station_must_be_said_rightly(station: str, capsys: pytest.CaptureFixture[str]) -> None:
    ended = headway(capsys, "rehearse", "bundle", "--data", "x", "--labels", 2, "--station", station)
    assert ended.code == 2
    assert "COLUMN=VALUE" in ended.err


def test_ctrl_c_ends_it_and_leaves_nothing_behind(held_back: Bundle, images: ImageSet, tmp_path: Path) -> None:
    command = [
        "rehearse",
        held_back.path,
        "--data",
        images.folder,
        "--labels",
        40,
        "--policy",
        "all",
        "--seeds",
        999,
    ]
    running = subprocess.Popen(
        [sys.executable, "-m", "sdk.cli", *map(str, command)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: list(tmp_path.glob("headway-rehearsal-*/store.sqlite3")), 60, "a shift")
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.glob("headway-*")) == []  # ONNX Runtime leaves a file of its own


def test_the_command_prints_the_curve_and_writes_json(
    held_back: Bundle, images: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "curve.json"
    ended = headway(capsys, "rehearse", held_back.path, "--data", images.folder, "--labels", 2, "--json", out)
    assert ended.code == 0, ended.err
    assert "new: rings" in ended.out
    figures = json.loads(out.read_text())
    assert set(figures["curve"][0]) == {
        "labels",
        "balanced_accuracy",
        "new_class_recall",
        "old_class_recall",
        "trial_balanced_accuracy",
    }
    assert figures["joint"]["labels"] == figures["stream_images"]
    assert figures["advice"].endswith(".")


def test_the_command_compares_policies(
    held_back: Bundle, images: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "curve.svg"
    args = ("--labels", 2, "--policy", "queue", "--policy", "random", "--seeds", 2, "--plot", plot)
    ended = headway(capsys, "rehearse", held_back.path, "--data", images.folder, *args)
    assert ended.code == 0, ended.err
    assert "images picked at random" in ended.out
    assert "range" in ended.out
    assert plot.is_file()


def test_the_command_says_which_classes_there_are(
    held_back: Bundle, images: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = headway(
        capsys, "rehearse", held_back.path, "--data", images.folder, "--labels", 2, "--hold-back", "ring"
    )
    assert ended.code == 2
    assert ended.err.splitlines()[1] == "hint: Classes here: good, pit, rings, scratch."
