"""`--strategy auto`: try the strategies on one split of the images to learn from, and choose by what they show.

    estimate -> trials -> finalists -> new classes -> choice

Rules this module keeps:

- Half of the groups teach, the other half judge; stream and test images are never looked at.
- What it will cost is said first, from a batch that was timed. A budget is kept by leaving out what does not fit,
  and saying so.
- New classes are tried on the finalists only: each class in turn is left out of fine-tuning, then taught to the
  head.
- What is finished is on disk: the same command started again goes on from there.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch

from export.augment import Frames
from export.backbones import Backbone
from export.checkpoint import Checkpoint, write_whole
from export.embed import features, forward_s, step_s
from export.finetune import Aids, Outcome, Schedule, finetune
from export.progress import Log, budget_words, duration
from export.recipes import Recipe, Strategy, recipe_for
from export.report import DifferenceReport, ReadinessReport, TransferReport, TrialReport
from export.tail import Memory
from export.transfer import (
    SHIFT_LIMITS,
    SHOTS,
    Difference,
    Field,
    Judged,
    Readiness,
    Rows,
    Shift,
    compare,
    field_of,
    judge,
    ready,
    shift_from_source,
)
from sdk.codes import Features
from sdk.damaged import DAMAGED
from sdk.errors import ExportError
from sdk.verdict import MIN_LOST_GROUPS

FINALISTS: Final = 2
"""Trained strategies whose readiness for new classes is tried, besides the frozen one."""
MIN_EPOCHS: Final = 4
"""Fewer are no trial of a strategy; then it is left out."""
NEW_CLASS_WORTH: Final = 0.25
"""Points of balanced accuracy that a point of recall of a new class is worth (docs/decisions/0017)."""
LEDGER: Final = "trials.json"
TRAINING: Final = "training.safetensors"


class Trial(msgspec.Struct, frozen=True):
    """One start and strategy, tried.

    Attributes:
        start: `random` or `pretrained`.
        strategy: See `Strategy`.
        epochs: Planned.
        estimate_s, seconds: Of the trial.
        skipped: Why it was not run; empty if it was.
        balanced_accuracy, auroc: On judged groups; None if it was not run.
        right: Of each judged image.
        readiness: One for each class held back; empty for what is no finalist. In the record of trials, as many as
            were done when the export was stopped.
    """

    start: str
    strategy: str
    epochs: int
    estimate_s: float
    seconds: float = 0.0
    skipped: str = ""
    balanced_accuracy: float | None = None
    auroc: float | None = None
    right: tuple[bool, ...] = ()
    readiness: tuple[Readiness, ...] = ()

    @property
    def name(self) -> str:
        """What people call it."""
        if self.start == RANDOM:
            return "random weights, frozen" if self.strategy == Strategy.FROZEN.value else "from scratch"
        return self.strategy

    @property
    def new_recall(self) -> float | None:
        """Mean recall of classes taught with few labels; None where it was not tried."""
        return float(np.mean([r.recall for r in self.readiness])) if self.readiness else None


RANDOM: Final = "random"
PRETRAINED: Final = "pretrained"


@dataclass(frozen=True)
class Question:
    """What is to be chosen for.

    Attributes:
        backbone: As loaded; not changed.
        random_start: The same architecture with random weights.
        frames, labels, groups: Of n images to learn from.
        names: Of the classes.
        seed: Of the split and of training.
        epochs: None is each recipe's own.
        budget_s: For everything, the training that follows included; None is no limit.
        folder: Where finished trials are kept.
    """

    backbone: Backbone
    random_start: Callable[[], Backbone]
    frames: Frames
    labels: Rows
    groups: Sequence[str]
    names: Sequence[str]
    seed: int
    epochs: int | None
    budget_s: float | None
    folder: Path


@dataclass(frozen=True)
class Choice:
    """What was chosen, and everything it rests on.

    Attributes:
        strategy: To train with.
        reason: Why, in words.
        trials: All of them, those left out too.
        against_frozen: By name of the trial; of those that are not the frozen one.
        warnings: Negative transfer, said plainly.
        chosen: The trial of that strategy.
        shift: Distance from the source domain.
        estimate_s: For everything, as said at the start.
        judged_images, judged_groups: What the figures rest on.
    """

    strategy: Strategy
    reason: str
    trials: tuple[Trial, ...]
    against_frozen: dict[str, Difference]
    warnings: tuple[str, ...]
    chosen: Trial
    shift: Shift
    estimate_s: float
    judged_images: int
    judged_groups: int


class _Ledger(msgspec.Struct):
    fingerprint: str
    trials: list[Trial] = []
    spent_s: float = 0.0


@dataclass(frozen=True)
class _Pace:
    """Seconds an image: forward, and forward and backward through what a strategy trains."""

    forward: float
    step: dict[Strategy, float]


class _Auto:
    def __init__(self, question: Question, log: Log, clock: Callable[[], float]) -> None:
        self.q, self.log, self.clock = question, log, clock
        self.field: Field = field_of(question.labels, question.groups, question.seed)
        if len(self.field.classes) < 2:
            raise ExportError(
                "--strategy auto needs two classes with images in two groups each, to teach and to judge by",
                hint="Name a strategy, or add images of other parts.",
            )
        self.pretrained = question.backbone.origin.pretrained
        self.ledger = self._open()
        self.began = clock() - self.ledger.spent_s
        recipe = recipe_for(Strategy.LAST, pretrained=True)
        self.memory = Memory(len(question.frames), recipe.views, question.seed)
        self.doing = ""

    # --- The plan

    def recipe(self, trial: Trial) -> Recipe:
        return recipe_for(Strategy(trial.strategy), pretrained=trial.start == PRETRAINED)

    def planned(self, pace: _Pace) -> list[Trial]:
        """Return the trials in the order in which they are worth their time."""
        frozen, last, full = Strategy.FROZEN, Strategy.LAST, Strategy.FULL
        wanted = [(RANDOM, frozen), (RANDOM, full)]
        if self.pretrained:
            wanted = [
                (PRETRAINED, frozen),
                (RANDOM, frozen),
                (PRETRAINED, last),
                (PRETRAINED, Strategy.HEAD_THEN_FULL),
                (PRETRAINED, full),
                (RANDOM, full),
            ]
        trials = []
        for start, strategy in wanted:
            recipe_epochs = (
                0 if strategy is frozen else recipe_for(strategy, pretrained=start == PRETRAINED).epochs
            )
            trial = Trial(start, strategy.value, min(recipe_epochs, self.q.epochs or recipe_epochs), 0.0)
            trials.append(msgspec.structs.replace(trial, estimate_s=self.cost(trial, pace)))
        return trials

    def cost(self, trial: Trial, pace: _Pace) -> float:
        """Return seconds for a trial: training and judging."""
        strategy, n = Strategy(trial.strategy), len(self.q.frames)
        if strategy is Strategy.FROZEN:
            return n * pace.forward
        learned = len(self.field.fit)
        views = min(self.recipe(trial).views, max(1, trial.epochs // 2)) if strategy is Strategy.LAST else 0
        return (n + views * learned) * pace.forward + trial.epochs * learned * pace.step[strategy]

    def readiness_cost(self, trial: Trial, pace: _Pace) -> float:
        strategy = Strategy(trial.strategy)
        if strategy is Strategy.FROZEN:
            return 0.0
        again = trial.epochs * len(self.field.fit) * pace.step[strategy]
        judged = 0.0 if strategy is Strategy.LAST else len(self.q.frames) * pace.forward
        return len(self.field.classes) * (again + judged)

    def final_cost(self, trial: Trial, pace: _Pace) -> float:
        return 0.0 if trial.strategy == Strategy.FROZEN.value else 2 * self.cost(trial, pace)

    def left_s(self) -> float:
        return float("inf") if self.q.budget_s is None else self.q.budget_s - (self.clock() - self.began)

    # --- Running

    def run(self) -> Choice:
        pace = self._pace()
        plan = self.planned(pace)
        dear = sorted(
            (t for t in plan if t.start == PRETRAINED or not self.pretrained), key=self._trained_cost(pace)
        )
        finalists = [t for t in dear if t.strategy != Strategy.FROZEN.value][-FINALISTS:]
        estimate = sum(t.estimate_s for t in plan) + sum(self.readiness_cost(t, pace) for t in finalists)
        estimate += max(self.final_cost(t, pace) for t in plan)
        self._say_plan(plan, estimate)
        done: list[Trial] = []
        for trial in plan:
            done.append(
                self._within_budget(trial, pace, done) if trial.strategy != Strategy.FROZEN.value else trial
            )
            if not done[-1].skipped:
                done[-1] = self._tried(done[-1])
            self._say(done[-1])
        done = self._try_new_classes(done, pace)
        return self._choose(done, estimate)

    def _trained_cost(self, pace: _Pace) -> Callable[[Trial], float]:
        return lambda trial: self.readiness_cost(trial, pace)

    def _say_plan(self, plan: list[Trial], estimate: float) -> None:
        say = self.log.listener.say
        for trial in plan:
            say(f"  {trial.name}: about {duration(trial.estimate_s)}")
        limit = "" if self.q.budget_s is None else f", of which the budget allows {budget_words(self.q.budget_s)}"
        say(f"Trying all of it and training in the end takes at most about {duration(estimate)}{limit}.")

    def _within_budget(self, trial: Trial, pace: _Pace, done: list[Trial]) -> Trial:
        """Return the trial with as many epochs as fit, or left out."""
        trained = [t for t in done if not t.skipped and t.strategy != Strategy.FROZEN.value]
        reserve = min((self.final_cost(t, pace) + self.readiness_cost(t, pace) for t in trained), default=0.0)
        if any(t.start == trial.start and t.strategy == trial.strategy for t in self.ledger.trials):
            return trial  # paid for already
        epochs = trial.epochs
        while epochs >= min(MIN_EPOCHS, trial.epochs):
            tried = msgspec.structs.replace(trial, epochs=epochs)
            needed = self.cost(tried, pace)
            if trial.start == PRETRAINED or not self.pretrained:  # it may be what is trained in the end
                needed += self.final_cost(tried, pace)
            if needed + reserve <= self.left_s():
                return msgspec.structs.replace(tried, estimate_s=self.cost(tried, pace))
            epochs -= 1
        needed_s = self.cost(trial, pace)
        why = f"the budget leaves {duration(max(0.0, self.left_s()))}, it needs {duration(needed_s)} and more"
        return msgspec.structs.replace(trial, skipped=why)

    def _tried(self, trial: Trial) -> Trial:
        known = next(
            (t for t in self.ledger.trials if (t.start, t.strategy) == (trial.start, trial.strategy)), None
        )
        if known is not None:
            return known
        began = self.clock()
        with self.log.stage("trials", f"Trying {trial.name}"):
            judged = judge(self._features(trial, self.field.fit), self.field)
        done = msgspec.structs.replace(
            trial,
            seconds=self.clock() - began,
            balanced_accuracy=judged.balanced_accuracy,
            auroc=judged.auroc,
            right=tuple(judged.right.tolist()),
        )
        self._keep([*self.ledger.trials, done])
        return done

    def _features(self, trial: Trial, rows: Rows) -> Features:
        """Return features of all images, of a backbone that learned from these rows."""
        strategy = Strategy(trial.strategy)
        source = self.q.backbone if trial.start == PRETRAINED or not self.pretrained else self.q.random_start()
        backbone = replace(source, module=copy.deepcopy(source.module))
        memory = self.memory if strategy is Strategy.LAST else None
        if len(np.unique(self.q.labels[rows][~self.field.validation[rows]])) < 2:
            strategy = Strategy.FROZEN  # one class is left: there is nothing to train on
        if strategy is not Strategy.FROZEN:
            self._train(backbone, strategy, trial, rows, memory)
        return features(backbone, self.q.frames, strategy=strategy, memory=memory)

    def _train(
        self, backbone: Backbone, strategy: Strategy, trial: Trial, rows: Rows, memory: Memory | None
    ) -> Outcome:
        checkpoint = Checkpoint(self.q.folder / TRAINING)

        def on_step(done: int, total: int, epoch: object) -> None:
            del epoch
            self.log.listener.step(done, total, self.doing)

        return finetune(
            backbone,
            strategy,
            self.q.frames,
            self.q.labels,
            self.field.validation,
            Schedule(trial.epochs, self.q.seed),
            on_step,
            recipe=self.recipe(trial),
            rows=rows,
            aids=Aids(checkpoint=checkpoint, memory=memory),
        )

    def _try_new_classes(self, trials: list[Trial], pace: _Pace) -> list[Trial]:
        """Return the trials, those of the finalists with their readiness."""
        mine = [t for t in trials if not t.skipped and (t.start == PRETRAINED or not self.pretrained)]
        frozen = [t for t in mine if t.strategy == Strategy.FROZEN.value]
        ranked = sorted(
            (t for t in mine if t not in frozen), key=lambda t: t.balanced_accuracy or 0.0, reverse=True
        )
        for finalist in [*frozen, *ranked[:FINALISTS]]:
            held = self.field.classes[len(finalist.readiness) :]
            left = self.readiness_cost(finalist, pace) * len(held) / len(self.field.classes)
            done = finalist
            if held and left + self.final_cost(finalist, pace) <= self.left_s():
                with self.log.stage("readiness", f"Holding back each class ({finalist.name})"):
                    done = self._held_back(finalist, held, known=finalist in frozen)
            elif held:  # some classes only would be no mean to compare
                done = msgspec.structs.replace(finalist, readiness=())
            trials = [done if t is finalist else t for t in trials]
        return trials

    def _held_back(self, trial: Trial, classes: Sequence[int], *, known: bool) -> Trial:
        """Return the trial with the readiness for these classes too; each is on disk when it is done.

        Args:
            trial: As far as it came.
            classes: Still to be held back.
            known: Nothing of the backbone is trained: one set of features does for all of them.
        """
        every = len(self.field.classes)
        here: Features | None = None
        for held in classes:
            began = self.clock()
            self.doing = f"without {self.q.names[held]}, {len(trial.readiness) + 1} of {every}"
            self.log.listener.step(len(trial.readiness), every, self.doing)
            if here is None or not known:
                here = self._features(trial, self.field.fit if known else self.field.without(held))
            found = ready(here, self.field, held, self.q.seed)
            trial = msgspec.structs.replace(
                trial, readiness=(*trial.readiness, found), seconds=trial.seconds + self.clock() - began
            )
            same = (trial.start, trial.strategy)
            self._keep([trial if (t.start, t.strategy) == same else t for t in self.ledger.trials])
        self.doing = ""
        return trial

    # --- The choice

    def _choose(self, trials: list[Trial], estimate: float) -> Choice:
        run = {t.name: t for t in trials if not t.skipped}
        start = Strategy.FROZEN.value if self.pretrained else "random weights, frozen"
        frozen = run[start]
        against = {
            name: compare(self._judged(t), self._judged(frozen)) for name, t in run.items() if name != start
        }
        warnings = negative_transfer(run, against, self._judged)
        mine = [t for t in run.values() if t.start == PRETRAINED or not self.pretrained]
        chosen, reason = choose(frozen, mine, against)
        return Choice(
            Strategy(chosen.strategy),
            reason,
            tuple(trials),
            against,
            tuple(warnings),
            chosen,
            shift_from_source(self.q.backbone, self.q.frames),
            estimate,
            len(self.field.judged),
            len({self.field.groups[row] for row in self.field.judged}),
        )

    def _judged(self, trial: Trial) -> Judged:
        assert trial.balanced_accuracy is not None
        truth = self.field.labels[self.field.judged]
        groups = tuple(self.field.groups[row] for row in self.field.judged)
        return Judged(np.array(trial.right, bool), truth, groups, trial.balanced_accuracy, trial.auroc or 0.0)

    # --- Time and disk

    def _pace(self) -> _Pace:
        steps = {}
        for strategy in (Strategy.LAST, Strategy.FULL):
            if strategy is Strategy.LAST and not self.pretrained:
                continue
            steps[strategy] = step_s(self.q.backbone, strategy, self.q.frames)
        steps[Strategy.HEAD_THEN_FULL] = steps[Strategy.FULL]
        return _Pace(forward_s(self.q.backbone, self.q.frames), steps)

    def _open(self) -> _Ledger:
        """Return what an earlier start of the same command finished."""
        file, fingerprint = self.q.folder / LEDGER, self._fingerprint()
        if not file.is_file():
            return _Ledger(fingerprint)
        try:
            found = msgspec.json.decode(file.read_bytes(), type=_Ledger)
        except (OSError, *DAMAGED) as error:
            raise ExportError(
                f"{file} is no record of trials: {' '.join(str(error).split())[:200]}",
                hint="Delete it; the trials then start from the beginning.",
            ) from error
        return found if found.fingerprint == fingerprint else _Ledger(fingerprint)

    def _keep(self, trials: list[Trial]) -> None:
        self.ledger = _Ledger(self.ledger.fingerprint, trials, self.clock() - self.began)
        write_whole(self.q.folder / LEDGER, msgspec.json.encode(self.ledger))

    def _fingerprint(self) -> str:
        q = self.q
        digest = hashlib.sha256(q.frames.tobytes())
        digest.update(q.labels.tobytes())
        trained = [
            recipe_for(each, pretrained=self.pretrained) for each in Strategy if each is not Strategy.FROZEN
        ]
        read = (q.backbone.name, q.backbone.origin, q.backbone.preprocess)
        said = (list(q.groups), q.seed, q.epochs, q.budget_s, *read, trained, torch.__version__)
        digest.update(repr(said).encode())
        return digest.hexdigest()

    def _say(self, trial: Trial) -> None:
        if trial.skipped:
            self.log.listener.say(f"  {trial.name}: not run, {trial.skipped}.")
        elif trial.balanced_accuracy is not None:
            self.log.listener.say(f"  {trial.name}: balanced accuracy {trial.balanced_accuracy:.1%}")


def choose_strategy(question: Question, log: Log, clock: Callable[[], float] = time.monotonic) -> Choice:
    """Return the strategy to train with, and everything it rests on.

    Raises:
        ExportError: there are too few classes or groups to judge by, or an earlier start's files are damaged.
    """
    return _Auto(question, log, clock).run()


def choose(frozen: Trial, trials: Sequence[Trial], against: dict[str, Difference]) -> tuple[Trial, str]:
    """Return the trial to train with, and why.

    A strategy that trains is taken when it is better than frozen features by more than its standard error, in
    three groups or more, and what it gains is worth more than the readiness for new classes that it costs: a point
    of their recall counts `NEW_CLASS_WORTH` of a point. Among several, the one that is worth most.
    """
    best, worth_of_best, rejected = frozen, 0.0, []
    for trial in trials:
        if trial is frozen:
            continue
        gain = against[trial.name]
        # An image or two of groups of their own have a standard error that is about the gain itself.
        if gain.points <= gain.error or gain.gained < MIN_LOST_GROUPS:
            rejected.append(
                f"{trial.name} gains {gain.points:+.1f} +- {gain.error:.1f} points, no more than chance"
            )
            continue
        if trial.new_recall is None or frozen.new_recall is None:
            rejected.append(f"{trial.name} was not tried on new classes")
            continue
        cost = 100 * (frozen.new_recall - trial.new_recall)
        worth = gain.points - NEW_CLASS_WORTH * cost
        if worth > worth_of_best:
            best, worth_of_best = trial, worth
        elif worth <= 0:
            rejected.append(
                f"{trial.name} gains {gain.points:.1f} points and costs {cost:.1f} of the recall of new classes"
            )
    if best is frozen:
        why = "; ".join(rejected) or "nothing else was tried"
        return frozen, f"Frozen features stay: {why}."
    gain = against[best.name]
    return best, (
        f"{best.name} is better than frozen features by {gain.points:.1f} +- {gain.error:.1f} points of balanced "
        f"accuracy on left-out groups; a class taught with {SHOTS} labels is recognised "
        f"{best.new_recall or 0.0:.0%} of the time (frozen: {frozen.new_recall or 0.0:.0%})."
    )


def negative_transfer(
    run: dict[str, Trial], against: dict[str, Difference], judged: Callable[[Trial], Judged]
) -> list[str]:
    """Return what is worse than it would be without: pretrained than random weights, fine-tuned than frozen.

    `worse` is a paired difference by group that is below zero with 95 % confidence, never a raw one.
    """
    found = []
    pairs = [("frozen", "random weights, frozen")] + [
        (name, "from scratch") for name in ("last", "head-then-full", "full")
    ]
    for ours, without in pairs:
        if ours in run and without in run:
            difference = compare(judged(run[ours]), judged(run[without]))
            if difference.worse:
                found.append(
                    f"Negative transfer: the pretrained start ({ours}) is worse than none ({without}) by "
                    f"{-difference.points:.1f} +- {difference.error:.1f} points of balanced accuracy. "
                    "Take other weights, or train from scratch."
                )
    for name, trial in run.items():
        if trial.start == PRETRAINED and name in against and against[name].worse:
            found.append(
                f"Negative transfer: fine-tuning ({name}) is worse than frozen features by "
                f"{-against[name].points:.1f} +- {against[name].error:.1f} points of balanced accuracy."
            )
    return found


def transfer_report(
    choice: Choice, names: Sequence[str], budget_s: float | None
) -> tuple[list[TrialReport], TransferReport]:
    """Return a choice as it is reported."""
    trials = [
        TrialReport(
            name=trial.name,
            start=trial.start,
            strategy=trial.strategy,
            epochs=trial.epochs,
            estimate_s=round(trial.estimate_s, 1),
            seconds=round(trial.seconds, 1),
            skipped=trial.skipped,
            chosen=trial is choice.chosen,
            balanced_accuracy=trial.balanced_accuracy,
            auroc=trial.auroc,
            against_frozen=_difference(choice.against_frozen.get(trial.name)),
            readiness=[
                ReadinessReport(held_back=names[r.held], recall=r.recall, others=r.others) for r in trial.readiness
            ],
        )
        for trial in choice.trials
    ]
    return trials, TransferReport(
        judged_images=choice.judged_images,
        judged_groups=choice.judged_groups,
        labels_for_new_class=SHOTS,
        estimate_s=round(choice.estimate_s, 1),
        budget_s=budget_s,
        negative_transfer=list(choice.warnings),
        source_distance=choice.shift.distance,
        source_distance_words=choice.shift.words,
        source_distance_limits=SHIFT_LIMITS,
    )


def _difference(found: Difference | None) -> DifferenceReport | None:
    if found is None:
        return None
    return DifferenceReport(points=found.points, error=found.error, low=found.low, high=found.high)
