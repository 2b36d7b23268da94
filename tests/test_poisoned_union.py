"""T14: wrong labels end to end. A line's own trial refuses their head; the fleet without them is as if clean.

Real learners, the service's own store, suspicion and quarantine. Drawn are the codes only: three classes with so
much noise that a head can be a little worse, and a golden set that nobody has labelled. `test_fleet_quarantine`
has what a quarantine is, `benchmarks.poison` the same with photographs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import pytest

from device_agent.heads import ActiveHead
from device_agent.heads_and_updates import Outcome
from device_agent.learner import Learner
from device_agent.limits import StoreLimits
from device_agent.sample import Sample
from device_agent.store import Store
from sdk.bundle import Bundle
from sdk.codes import Code, Codes, code_digest
from sdk.fleet.store import FleetStore
from sdk.fleet.suspicion import find_suspects
from sdk.labels import MAX_COUNTER, CodeRecord, Label, Quarantine, Record
from sdk.wire import DeviceState, HeadState
from tests.builders import FEATURE_SIZE, class_id_of, make_bundle
from tests.simulators import SimDevice
from tests.soak import tell, times

NAMES: Final = ("good", "scratch", "pit")
IDS: Final = tuple(class_id_of(name) for name in NAMES)
SPREAD: Final = 45.0
"""Of the noise of a code's numbers: some 2 % of the golden set are then hard even for a head that knows all."""
GOLDEN: Final = 200
"""Of each class."""
MAX_GATE_DROP: Final = 0.05
MAX_PASSED: Final = 0.02
"""Of the heads that would have cost more than that: the trial has twenty to sixty labels to see it by."""
STEP: Final = 8
"""Records at a time of another line's: four labels with their codes."""
MAX_FLEET_DROP: Final = 0.02
LINES: Final = 10
LABELS: Final = 45
BAD: Final = "line-3"
BAD_LABELS: Final = 270
"""Six times what every other line gave: a tenth of all would cost the head a point, which proves nothing."""
FLIPS: Final = 0.2

Wrong = Callable[[str, str], bool]
"""Whether a label of this device and operator is wrong."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "first", NAMES)


class Drawn:
    """Codes of a bundle's classes with noise."""

    def __init__(self, bundle: Bundle, seed: int) -> None:
        base = bundle.base()
        self._centres = [
            np.array([code for code, c in zip(base.codes, base.class_ids, strict=True) if c == class_id]).mean(0)
            for class_id in IDS
        ]
        self._rng = np.random.default_rng(seed)

    def codes(self, truth: int, count: int = 1) -> Codes:
        noise = self._rng.normal(0, SPREAD, (count, FEATURE_SIZE))
        return np.asarray(np.clip(np.rint(self._centres[truth] + noise), -127, 127), np.int8)


@dataclass(frozen=True)
class Recall:
    """Mean recall of the golden set: of decisions as shown, and where the head had to choose a class."""

    shown: float
    forced: float


def golden_codes(bundle: Bundle) -> list[Codes]:
    """Return the codes of the golden set, by class."""
    drawn = Drawn(bundle, 999)
    return [drawn.codes(truth, GOLDEN) for truth in range(len(NAMES))]


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> Callable[[ActiveHead], Recall]:
    """Return what tells a head's recall on codes that nobody ever labels."""
    codes = golden_codes(bundle)

    def recall(active: ActiveHead) -> Recall:
        shown, forced = [], []
        for truth, rows in enumerate(codes):
            decisions = active.head.decide(rows)
            right = np.array([active.names[c] == NAMES[truth] for c in decisions.class_index])
            shown.append(np.mean(right & ~decisions.unknown))
            forced.append(np.mean([active.names[c] == NAMES[truth] for c in active.head.scores(rows).argmax(1)]))
        return Recall(float(np.mean(shown)), float(np.mean(forced)))

    return recall


def line_of(bundle: Bundle, device: str, seed: int, labels: int, wrong: Wrong) -> SimDevice:
    """Return a device whose two operators have labelled parts of all classes."""
    drawn, line = Drawn(bundle, seed), SimDevice(device)
    for number in range(labels):
        truth, operator = number % len(NAMES), ("ann", "bob")[number % 2]
        code, sample = drawn.codes(truth)[0], hashlib.sha256(f"{device} {number}".encode()).digest()
        group = f"{device}/{number}"
        line.write(CodeRecord(bytes.fromhex(bundle.space()), sample, group, code_digest(code)), code.tobytes())
        line.write(Label(sample, IDS[(truth + wrong(device, operator)) % len(NAMES)], operator))
    return line


@dataclass(frozen=True)
class MasterFolder:
    """The golden set as a line's master parts: pictures of noise, each of which stands for a code."""

    folder: Path
    codes: Mapping[bytes, Code]

    def embed(self, image: bytes) -> Code:
        return self.codes[image]


@pytest.fixture(scope="module")
def masters(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> MasterFolder:
    folder, rng, codes = tmp_path_factory.mktemp("masters"), np.random.default_rng(7), {}
    for name, rows in zip(NAMES, golden_codes(bundle), strict=True):
        (folder / name).mkdir()
        for number, code in enumerate(rows):
            done, picture = cv2.imencode(".png", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            assert done
            (folder / name / f"{number}.png").write_bytes(picture.tobytes())
            codes[picture.tobytes()] = code
    return MasterFolder(folder, codes)


@contextmanager
def learner_at(
    bundle: Bundle, folder: Path, records: Sequence[Record] = (), masters: MasterFolder | None = None
) -> Iterator[tuple[Learner, Store]]:
    """Run a line's learner that has received these records and no more."""
    with Store.open(folder, "line-77", limits=StoreLimits(reserve_bytes=0)) as store:
        if masters is None:
            learner = Learner(bundle, None, store)
        else:
            learner = Learner(bundle, None, store, embed=masters.embed, masters=masters.folder)
        learner.received(store.log.receive(records, len(records)))
        learner.run_until_idle()
        yield learner, store


# -- the line's own gate


def label_own(learner: Learner, store: Store, bundle: Bundle, seed: int, per_class: int) -> None:
    """Let the line's own operators label parts of all classes, rightly."""
    drawn = Drawn(bundle, seed)
    for number in range(per_class * len(NAMES)):
        image = f"own {number}".encode()
        sample = Sample(
            sample_id=hashlib.sha256(image).digest(),
            captured_utc=float(number),
            group=f"line-77/{number}",
            space=bundle.space(),
            code=drawn.codes(number % len(NAMES))[0],
            decision="good",
            class_id=IDS[0],
            probability=0.9,
            novelty=0.1,
            unknown=False,
        )
        store.samples.put(sample, image)
        learner.label(sample.sample_id, IDS[number % len(NAMES)], "anna")
    learner.run_until_idle()


@dataclass(frozen=True)
class Gate:
    """A line's golden recall before another's wrong labels, with them, and after its trial of them."""

    before: Recall
    untried: Recall
    after: Recall
    outcome: Outcome
    same_head: bool
    reason: str


def gate(
    bundle: Bundle,
    folder: Path,
    golden: Callable[[ActiveHead], Recall],
    *,
    seed: int,
    own: int,
    bad: int,
    masters: MasterFolder | None = None,
) -> Gate:
    with learner_at(bundle, folder, masters=masters) as (learner, store):
        label_own(learner, store, bundle, seed, own)
        confirmed = learner.head
        poison = line_of(bundle, BAD, 50 + seed, bad, lambda *_: True).log
        learner.received(store.log.receive(poison, len(poison)))
        learner.run_until_idle(trials=False)
        untried = learner.head
        assert untried.state is HeadState.PROVISIONAL
        learner.run_until_idle()
        status = learner.status()
        return Gate(
            golden(confirmed),
            golden(untried),
            golden(learner.head),
            status.outcome,
            learner.head == confirmed,
            status.reason,
        )


@pytest.mark.parametrize(("seed", "own", "bad"), [(0, 8, 240), (0, 15, 120), (1, 8, 240)])
def test_a_head_of_anothers_wrong_labels_is_taken_back_and_their_source_named(
    bundle: Bundle, tmp_path: Path, golden: Callable[[ActiveHead], Recall], seed: int, own: int, bad: int
) -> None:
    found = gate(bundle, tmp_path, golden, seed=seed, own=own, bad=bad)
    # The control: without the trial this head would be the one that decides.
    assert found.untried.forced < found.before.forced - MAX_GATE_DROP
    assert (found.outcome, found.same_head) == (Outcome.TAKEN_BACK, True)
    assert "Taken back" in found.reason
    assert f"Labels from {BAD} do not fit here" in found.reason


def test_few_heads_that_cost_five_points_stay_whatever_another_line_says(
    bundle: Bundle, tmp_path: Path, golden: Callable[[ActiveHead], Recall]
) -> None:
    """Taken back, or kept with own labels counting for more. Twenty own labels cannot show every loss."""
    runs, harmful, taken_back, passed, worst = times(2, 100), 0, 0, 0, 0.0
    rng = np.random.default_rng(14)
    for run in range(runs):
        own, bad = int(rng.integers(6, 20)), int(rng.integers(40, 300))
        found = gate(bundle, tmp_path / str(run), golden, seed=100 + run, own=own, bad=bad)
        harmful += found.untried.forced < found.before.forced - MAX_GATE_DROP
        taken_back += found.outcome is Outcome.TAKEN_BACK
        worst = max(worst, found.before.shown - found.after.shown)
        passed += found.after.shown < found.before.shown - MAX_GATE_DROP
    tell(
        "T14, the line's gate", harmful, passed, f"{taken_back} taken back, at most {100 * worst:.1f} points lost"
    )
    assert harmful >= runs // 2, "the control: most of these would have cost more than five points"
    assert passed <= harmful * MAX_PASSED


def test_no_head_that_costs_five_points_of_the_master_parts_stays(
    bundle: Bundle, tmp_path: Path, golden: Callable[[ActiveHead], Recall], masters: MasterFolder
) -> None:
    """T14 as it is asked: where the line has the golden set, the gate needs no luck."""
    runs, harmful, by_masters, worst = times(2, 100), 0, 0, 0.0
    rng = np.random.default_rng(14)
    for run in range(runs):
        own, bad = int(rng.integers(6, 20)), int(rng.integers(40, 300))
        found = gate(bundle, tmp_path / str(run), golden, seed=100 + run, own=own, bad=bad, masters=masters)
        harmful += found.untried.forced < found.before.forced - MAX_GATE_DROP
        by_masters += "master parts" in found.reason
        worst = max(worst, found.before.shown - found.after.shown)
        assert found.after.shown >= found.before.shown - MAX_GATE_DROP
    tell("T14, the line's gate with master parts", harmful, 0, f"{by_masters} by these, at most {100 * worst:.1f}")
    assert harmful >= runs // 2, "the control: most of these would have cost more than five points"


def test_wrong_labels_that_come_a_few_at_a_time_cost_no_more_of_the_master_parts(
    bundle: Bundle, tmp_path: Path, golden: Callable[[ActiveHead], Recall], masters: MasterFolder
) -> None:
    """Each head is hardly worse than the one before, so that all together would cost more than five points."""
    outcomes, reasons = [], ""
    with learner_at(bundle, tmp_path, masters=masters) as (learner, store):
        label_own(learner, store, bundle, 100, 8)
        best = golden(learner.head).shown
        poison = line_of(bundle, BAD, 150, 100, lambda *_: True).log
        for came in range(STEP, len(poison) + 1, STEP):
            learner.received(store.log.receive(poison[came - STEP : came], came))
            learner.run_until_idle()
            outcomes.append(learner.status().outcome)
            reasons += learner.status().reason
            assert golden(learner.head).shown >= best - MAX_GATE_DROP
    assert outcomes[0] is Outcome.CONFIRMED
    assert "of the master parts" in reasons


# -- the fleet


def union_of(bundle: Bundle, directory: Path, seed: int, wrong: Wrong, bad_labels: int) -> FleetStore:
    """Return the service's store after ten lines have labelled. Close it."""
    store = FleetStore(directory)
    store.publish(bundle, channel="default")
    with store.write() as ledger:
        for number in range(LINES):
            name = f"line-{number}"
            labels = bad_labels if name == BAD else LABELS
            line = line_of(bundle, name, 1000 * seed + number, labels, wrong)
            ledger.note_state(DeviceState(device=name, channel="default", online=True), seen_utc=1.0)
            assert ledger.take(name, line.log, {}).verdict.refused is None
    return store


def records_of(store: FleetStore) -> list[Record]:
    with store.read() as ledger:
        found: list[Record] = []
        while page := ledger.records("default", len(found) + 1):
            found += page
        return found


def quarantined(store: FleetStore) -> set[tuple[str, str]]:
    """Quarantine all that the union makes suspect; return whom."""
    learned = store.learned("default")
    assert learned is not None
    suspects = find_suspects(learned.live, store.summed_moments("default", learned.live))
    with store.write() as ledger:
        ledger.decide("default", [Quarantine(s.device, s.operator, MAX_COUNTER, "wrong", "ann") for s in suspects])
    return {(suspect.device, suspect.operator) for suspect in suspects}


def poison_of(what: str, seed: int) -> tuple[Wrong, tuple[str, str], int]:
    """Return which labels are wrong, who is to be found for it, and how many labels the bad line gives."""
    rng = np.random.default_rng(seed)

    def by_one_operator(device: str, operator: str) -> bool:
        return (device, operator) == (BAD, "bob") and bool(rng.random() < FLIPS)

    if what == "operator":
        return by_one_operator, (BAD, "bob"), LABELS
    return lambda device, _: device == BAD, (BAD, ""), BAD_LABELS


@pytest.mark.parametrize("what", ["device", "operator"])
def test_the_fleets_head_after_a_quarantine_is_within_two_points_of_a_clean_one(
    bundle: Bundle, tmp_path: Path, golden: Callable[[ActiveHead], Recall], what: str
) -> None:
    """On a line without labels of its own, which knows what the fleet says and nothing else."""

    def recall(records: Sequence[Record], name: str) -> float:
        with learner_at(bundle, tmp_path / name, records) as (learner, _):
            return golden(learner.head).shown

    runs, missed, worst = times(1, 20), 0, 0.0
    for run in range(runs):
        wrong, source, labels = poison_of(what, run)
        clean = union_of(bundle, tmp_path / f"clean-{run}", run, lambda *_: False, labels)
        union = union_of(bundle, tmp_path / f"union-{run}", run, wrong, labels)
        with clean, union:
            best, before = recall(records_of(clean), f"a{run}"), recall(records_of(union), f"b{run}")
            found = quarantined(union)
            after = recall(records_of(union), f"c{run}")
        missed += source not in found
        worst = max(worst, best - after)
        assert after >= best - MAX_FLEET_DROP
        if what == "device":
            assert found == {source}
            assert before < best - MAX_FLEET_DROP, "the control: without the quarantine it is not"
    tell(f"T14, the fleet, {what}", runs, 0, f"not found in {missed}; at most {worst:.3f} below clean")
