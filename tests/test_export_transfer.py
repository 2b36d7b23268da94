"""Choosing a strategy: figures by group, differences in pairs, new classes, and what was planted to be found."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from export import strategies
from export.augment import Augmentation, Frames
from export.backbones import Backbone, Origin, load_backbone
from export.board import board
from export.cli import check_alone, export
from export.distributed import Ranks
from export.finetune import Rows, Schedule, finetune
from export.progress import Log
from export.recipes import FROM_SCRATCH, Strategy
from export.strategies import Question, Trial, choose, choose_strategy, negative_transfer, transfer_report
from export.transfer import (
    Difference,
    Field,
    Judged,
    Readiness,
    auroc,
    compare,
    field_of,
    judge,
    ready,
    shift_from_source,
)
from export.transfer_page import _time
from sdk.errors import ExportError
from tests.tiny import write_pictures

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("graphs_once")]
torch.set_num_threads(1)  # tests run side by side; spinning threads cost more than they give

SIDE = 48


@dataclass
class Listener:
    """Remembers what was said."""

    said: list[str] = field(default_factory=list)

    def stage(self, words: str) -> None:
        self.said.append(words)

    def step(self, done: int, total: int, note: str = "") -> None: ...

    def say(self, line: str) -> None:
        self.said.append(line)


# --- Figures


def judged(right: list[bool], truth: list[int], groups: list[str]) -> Judged:
    return Judged(np.array(right), np.array(truth), tuple(groups), 0.0, 0.0)


def test_a_difference_counts_groups_not_images() -> None:
    truth = [0] * 12 + [1] * 12
    one, other = [True] * 24, [i % 3 > 0 for i in range(24)]
    alone = compare(
        judged(one, truth, [str(i) for i in range(24)]), judged(other, truth, [str(i) for i in range(24)])
    )
    other = [i % 12 >= 4 for i in range(24)]  # the same number wrong, all of one group
    together = compare(
        judged(one, truth, [str(i // 4) for i in range(24)]),
        judged(other, truth, [str(i // 4) for i in range(24)]),
    )
    assert alone.points == pytest.approx(together.points) == pytest.approx(100 / 3)
    assert together.error > 1.5 * alone.error
    assert alone.better
    assert not together.better


def test_a_difference_is_of_balanced_accuracy_and_has_its_sign() -> None:
    truth = [0] * 30 + [1] * 10
    one = judged([True] * 30 + [i < 5 for i in range(10)], truth, [str(i) for i in range(40)])
    other = judged([True] * 40, truth, [str(i) for i in range(40)])
    found = compare(one, other)
    assert found.points == pytest.approx(-25)
    assert found.worse
    assert compare(other, one).points == pytest.approx(25)
    assert (found.gained, compare(other, one).gained) == (0, 5)
    assert compare(one, one) == Difference(0, 0, 0, 0)


def test_a_class_of_one_group_is_no_evidence() -> None:
    one = judged([True] * 8, [0] * 4 + [1] * 4, ["a"] * 4 + ["b"] * 4)
    other = judged([True] * 4 + [False] * 4, [0] * 4 + [1] * 4, ["a"] * 4 + ["b"] * 4)
    assert not compare(one, other).better


def test_the_standard_error_is_what_repeating_shows() -> None:
    rng = np.random.default_rng(0)
    groups = [str(i // 3) for i in range(120)]
    truth = [int(i >= 60) for i in range(120)]
    points, errors = [], []
    for _ in range(300):
        shared = np.repeat(rng.random(40), 3)
        right = [bool(v) for v in rng.random(120) < shared]
        found = compare(judged(right, truth, groups), judged([True] * 120, truth, groups))
        points.append(found.points)
        errors.append(found.error)
    assert float(np.mean(errors)) == pytest.approx(float(np.std(points)), rel=0.1)


def test_the_area_under_the_curve() -> None:
    positive = np.array([True, True, False, False])
    assert auroc(np.array([4.0, 3, 2, 1]), positive) == 1
    assert auroc(np.array([1.0, 1, 1, 1]), positive) == 0.5
    assert np.isnan(auroc(np.array([1.0]), np.array([True])))


def drawn(apart: float, seed: int = 0) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], Field]:
    """Return features (120, 12) of three classes, in groups of two, and their field."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 40)
    centres = 1 + apart * rng.random((3, 12))
    features = (centres[labels] + rng.random((120, 12))).astype(np.float32)
    return features, field_of(labels, [f"{i // 2}" for i in range(120)], 0)


def test_groups_are_never_on_both_sides() -> None:
    _, found = drawn(1)
    taught = {found.groups[row] for row in found.fit}
    assert taught.isdisjoint({found.groups[row] for row in found.judged})
    assert len(found.fit) + len(found.judged) == 120
    assert found.classes == [0, 1, 2]
    assert not (found.labels[found.without(1)] == 1).any()


def test_features_that_tell_classes_apart_judge_better_and_are_readier() -> None:
    far, near = judge(*drawn(3.0)), judge(*drawn(0.05))
    assert far.balanced_accuracy > 0.95
    assert far.auroc > 0.99
    assert near.balanced_accuracy < 0.7
    taught = ready(*drawn(3.0), held=1, seed=0)
    assert taught.recall > 0.9
    assert ready(*drawn(0.05), held=1, seed=0).recall < taught.recall


# --- The choice


def trial(strategy: str, *, new: float | None = None, start: str = "pretrained") -> Trial:
    readiness = () if new is None else (Readiness(0, new, 0.9),)
    return Trial(start, strategy, 0, 0.0, balanced_accuracy=0.5, auroc=0.5, readiness=readiness)


@pytest.mark.parametrize(
    ("gain", "error", "new", "chosen", "because"),
    [
        (6.0, 2.0, 0.55, "last", "better than frozen features by 6.0 +- 2.0"),
        (1.0, 2.0, 0.60, "frozen", "no more than chance"),
        (-3.0, 1.0, 0.60, "frozen", "no more than chance"),
        (3.0, 1.0, 0.30, "frozen", "costs 30.0 of the recall of new classes"),
        (3.0, 1.0, None, "frozen", "was not tried on new classes"),
    ],
)
@pytest.mark.parametrize("gained", [2, 3])
def test_what_is_chosen_and_why(
    gain: float, error: float, new: float | None, chosen: str, because: str, gained: int
) -> None:
    if gained < 3 and gain > error:
        chosen, because = "frozen", "no more than chance"
    frozen, last = trial("frozen", new=0.60), trial("last", new=new)
    difference = Difference(gain, error, gain - 2 * error, gain + 2 * error, gained)
    found, reason = choose(frozen, [frozen, last], {"last": difference})
    assert found.strategy == chosen
    assert because in reason


def test_negative_transfer_needs_more_than_a_raw_difference() -> None:
    groups = [str(i) for i in range(40)]

    def with_wrong(count: int) -> Judged:
        return judged([i % 20 >= count for i in range(40)], [0] * 20 + [1] * 20, groups)

    run = {
        "frozen": trial("frozen"),
        "random weights, frozen": trial("frozen", start="random"),
        "last": trial("last"),
    }

    def said(wrong: dict[str, int]) -> list[str]:
        of: Callable[[Trial], Judged] = lambda t: with_wrong(wrong[t.name])  # noqa: E731
        against = {name: compare(of(run[name]), of(run["frozen"])) for name in run if name != "frozen"}
        return negative_transfer(run, against, of)

    assert said({"frozen": 1, "random weights, frozen": 0, "last": 2}) == []
    worse = said({"frozen": 8, "random weights, frozen": 0, "last": 8})
    assert len(worse) == 1
    assert "the pretrained start (frozen) is worse than none" in worse[0]
    assert (
        "fine-tuning (last) is worse than frozen" in said({"frozen": 0, "random weights, frozen": 0, "last": 8})[0]
    )


# --- Whole


def striped(kind: int, i: int) -> Frames:
    """Return faint stripes at one of four angles under noise, (48, 48, 3)."""
    rng = np.random.default_rng([i, kind])
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = kind * np.pi / 4
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / 6 + rng.uniform(0, 2 * np.pi))
    grey = 128 + 20 * wave + rng.normal(0, 14, (SIDE, SIDE)) + rng.normal(0, 10)
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, 2)


def stripes(per_class: int, first: int = 0) -> tuple[Frames, Rows]:
    frames = np.stack([striped(kind, first + i) for kind in range(4) for i in range(per_class)])
    return frames, np.repeat(np.arange(4), per_class)


def random_start() -> Backbone:
    return load_backbone("test_resnet", "none", input_size_px=SIDE, levels=1)


@pytest.fixture(scope="module")
def shuffled() -> Backbone:
    """A backbone whose weights were pretrained on labels that say nothing of the images."""
    frames, _ = stripes(12, first=1000)
    labels = np.random.default_rng(0).integers(0, 2, len(frames))
    backbone = random_start()
    recipe = replace(FROM_SCRATCH, augmentation=Augmentation(0, 0, 0))
    finetune(backbone, Strategy.FULL, frames, labels, np.zeros(len(frames), bool), Schedule(40), recipe=recipe)
    return replace(backbone, origin=Origin("labels were shuffled", None, "none", True))


def question(backbone: Backbone, folder: Path, **change: object) -> Question:
    frames, labels = stripes(40)
    asked = Question(
        backbone,
        random_start,
        frames,
        labels,
        [str(i) for i in range(160)],
        ["a", "b", "c", "d"],
        0,
        1,
        None,
        folder,
    )
    return replace(asked, **change)  # type: ignore[arg-type]


def test_a_planted_negative_transfer_is_reported(shuffled: Backbone, tmp_path: Path) -> None:
    # Ended by the budget after what costs next to nothing: that is all that this needs.
    listener = Listener()
    choice = choose_strategy(question(shuffled, tmp_path, budget_s=1e-9), Log(listener))
    assert len(choice.warnings) == 1
    assert "the pretrained start (frozen) is worse than none (random weights, frozen)" in choice.warnings[0]
    assert choice.strategy is Strategy.FROZEN
    assert {t.name for t in choice.trials if t.skipped} == {"last", "head-then-full", "full", "from scratch"}
    assert any("not run, the budget leaves 0 s" in line for line in listener.said)
    assert any("at most about" in line for line in listener.said)


def test_a_budget_is_said_as_it_was_typed(shuffled: Backbone, tmp_path: Path) -> None:
    """1.5 minutes are not 2."""
    listener = Listener()
    clock = itertools.count(step=1000.0)  # it is over before anything is trained
    choice = choose_strategy(question(shuffled, tmp_path, budget_s=90), Log(listener), clock.__next__)
    _, report = transfer_report(choice, ["a", "b", "c", "d"], 90)
    assert any("of which the budget allows 1.5 min" in line for line in listener.said)
    assert "budget 1.5 min" in _time(report, [])


def test_trials_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    backbone = replace(random_start(), origin=Origin("test", None, "mit", True))
    first, again = Listener(), Listener()
    done = choose_strategy(question(backbone, tmp_path), Log(first))
    same = choose_strategy(question(backbone, tmp_path), Log(again))
    assert done.trials == same.trials
    assert (done.strategy, done.reason) == (same.strategy, same.reason)
    assert any(words.startswith("Holding back each class") for words in first.said)
    assert not any(words.startswith("Holding back each class") for words in again.said)
    finalists = [t for t in done.trials if t.readiness]
    assert all([r.held for r in t.readiness] == [0, 1, 2, 3] for t in finalists)
    assert "frozen" in {t.strategy for t in finalists}


def test_classes_held_back_are_told_and_kept_one_by_one(tmp_path: Path) -> None:
    """A finalist takes minutes: who waits sees which class it is at, and what is done is not done again."""

    @dataclass
    class Stopping(Listener):
        at: str = "never"

        def step(self, done: int, total: int, note: str = "") -> None:
            assert done <= total
            if note and self.said[-1] != note:
                self.said.append(note)
            if note == self.at:
                raise KeyboardInterrupt

    backbone = replace(random_start(), origin=Origin("test", None, "mit", True))
    stopped, again = Stopping(at="without c, 3 of 4"), Stopping()
    with pytest.raises(KeyboardInterrupt):
        choose_strategy(question(backbone, tmp_path), Log(stopped))
    choice = choose_strategy(question(backbone, tmp_path), Log(again))
    (tmp_path / "whole").mkdir()
    whole = choose_strategy(question(backbone, tmp_path / "whole"), Log(Stopping()))
    told = [line for line in again.said if line.startswith(("Holding", "without"))]
    assert told[:4] == ["Holding back each class (frozen)", "without c, 3 of 4", "without d, 4 of 4", told[3]]
    assert told[3].startswith("Holding back each class (")
    assert told[4:8] == ["without a, 1 of 4", "without b, 2 of 4", "without c, 3 of 4", "without d, 4 of 4"]
    assert [t.readiness for t in choice.trials] == [t.readiness for t in whole.trials]


@pytest.mark.parametrize("change", ["budget", "preprocess", "nothing"])
def test_trials_of_another_command_are_not_taken_up(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer epochs were tried with less time, and pixels scaled otherwise give other features."""
    judged: list[str] = []

    def counted(*args: Any, **options: Any) -> Judged:
        judged.append("once more")
        return judge(*args, **options)

    monkeypatch.setattr(strategies, "judge", counted)
    backbone = random_start()
    choose_strategy(question(backbone, tmp_path, budget_s=1e-9), Log(Listener()))
    first = len(judged)
    other = replace(backbone, preprocess=msgspec.structs.replace(backbone.preprocess, mean=(0.1, 0.2, 0.3)))
    choose_strategy(
        question(
            other if change == "preprocess" else backbone, tmp_path, budget_s=2e-9 if change == "budget" else 1e-9
        ),
        Log(Listener()),
    )
    assert (first, len(judged) - first) == (1, 0 if change == "nothing" else 1)


def test_without_weights_only_training_from_scratch_can_be_chosen(tmp_path: Path) -> None:
    choice = choose_strategy(question(random_start(), tmp_path), Log(Listener()))
    assert [t.name for t in choice.trials] == ["random weights, frozen", "from scratch"]
    assert choice.strategy in (Strategy.FROZEN, Strategy.FULL)
    assert choice.warnings == ()


@pytest.mark.parametrize("damaged", [b"{", b'{"fingerprint": "\xff"}'], ids=["cut off", "no text"])
def test_a_damaged_record_of_trials_is_refused(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "trials.json").write_bytes(damaged)
    with pytest.raises(ExportError, match="no record of trials"):
        choose_strategy(question(random_start(), tmp_path), Log(Listener()))


def test_one_class_that_can_be_judged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="two classes"):
        choose_strategy(question(random_start(), tmp_path, labels=np.zeros(160, np.int64)), Log(Listener()))


def test_the_source_is_known_only_where_batch_norm_carries_it(shuffled: Backbone) -> None:
    frames, _ = stripes(8)
    near, far = shift_from_source(shuffled, frames), shift_from_source(shuffled, 255 - frames // 4)
    assert near.distance is not None
    assert far.distance is not None
    assert near.distance < 0.3 < far.distance
    assert near.layers > 5
    folded = replace(random_start(), origin=Origin("test", None, "mit", True))
    assert shift_from_source(folded, frames).distance is None
    assert "not known" in shift_from_source(replace(shuffled, origin=random_start().origin), frames).words


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(export, [str(word) for word in words])
    return result.exit_code, str(result.exception or result.output)


def test_the_command_tries_chooses_and_shows(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "set", ("good", "pit"), 24)
    save_file(random_start().network.state_dict(), tmp_path / "w.safetensors")
    code, told = run(
        folder, "--backbone", "test_resnet", "--weights", tmp_path / "w.safetensors", "--input-size", "48",
        "--strategy", "auto", "--epochs", "1", "--precision", "fp32", "--out", tmp_path / "bundle",
        "--json", tmp_path / "report.json", "--report", tmp_path / "report.html",
    )  # fmt: skip
    assert code == 0, told
    report = json.loads((tmp_path / "report.json").read_text())
    names = [t["name"] for t in report["strategies"]]
    assert names == ["frozen", "random weights, frozen", "last", "head-then-full", "full", "from scratch"]
    assert [t["strategy"] for t in report["strategies"] if t["chosen"]] == [report["strategy"]["strategy"]]
    assert report["transfer"]["judged_images"] > 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert all(name in page for name in names)
    assert "http://www.w3.org" in page
    assert 'src="' not in page  # it loads nothing
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--report", "page.html"], "--report tells what --strategy auto tried"),
        (["--strategy", "auto", "--report", "absent/page.html"], "no such folder"),
        (["--strategy", "best"], "Invalid value|2"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_before_anything_is_done(
    tmp_path: Path, words: list[str], expected: str
) -> None:
    code, told = run(tmp_path / "absent", "--backbone", "test_resnet", "--out", tmp_path / "bundle", *words)
    assert code != 0
    assert any(part in told for part in expected.split("|"))


def test_choosing_in_several_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="in one process"):
        check_alone("auto", Ranks(0, 2, torch.device("cpu")))
    check_alone("last", Ranks(0, 2, torch.device("cpu")))


def test_a_trial_is_read_back_as_it_was_written() -> None:
    tried = trial("last", new=0.5)
    assert msgspec.json.decode(msgspec.json.encode(tried), type=Trial) == tried


def test_curves_are_written_for_tensorboard(tmp_path: Path) -> None:
    with board(tmp_path / "board") as write:
        write(1, {"loss": 0.5, "balanced_accuracy": 0.25})
    files = list((tmp_path / "board").iterdir())
    assert len(files) == 1
    assert b"balanced_accuracy" in files[0].read_bytes()
    with board(None) as write:
        write(1, {"loss": 0.5})


def test_a_board_in_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="--tensorboard"), board(tmp_path / "file" / "board"):
        pass
