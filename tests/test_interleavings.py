"""A thousand random histories: whatever the order, the duplicates and the restarts, one state bit for bit.

Four devices add, correct, withdraw, define, rename and merge; entries reach a reader in any order that keeps each
device's own (or not even that), some twice, some after a restart that folds everything anew.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np

from sdk.labels import (
    Body,
    Chain,
    CodeRecord,
    DefineClass,
    Fold,
    Label,
    MergeClasses,
    Record,
    RenameClass,
)
from sdk.liveset import LiveRow
from sdk.moments import Moments

SPACE, D = "33" * 32, 5
CLASSES = [bytes([i]) * 16 for i in range(5)]
SAMPLES = [bytes([50 + i]) * 32 for i in range(6)]
HISTORIES = 1000


def history(rng: random.Random) -> list[Record]:
    """Return what four devices wrote; clocks jump, and devices may say different things of one sample."""
    written: list[Record] = []
    for device in ("a", "b", "c", "d"):
        chain, counter = Chain(device), 0
        for _ in range(rng.randrange(12)):
            counter += rng.randrange(1, 4)
            sample, one, other = rng.choice(SAMPLES), rng.choice(CLASSES), rng.choice(CLASSES)
            code = hashlib.sha256(sample + device.encode()).digest()[:D]
            coded = CodeRecord(bytes.fromhex(SPACE), sample, f"{device}/g", hashlib.sha256(code).digest())
            bodies: list[Body] = [
                Label(sample, one, "op"),
                Label(sample, one, "op"),
                Label(sample, None, "op"),
                coded,
                coded,
                DefineClass(one, f"{device}{counter}", "op"),
                RenameClass(one, f"{device}{counter}!", "op"),
                MergeClasses(one, other, "op"),
            ]
            body = rng.choice(bodies)
            chain, entry = chain.write(body, counter=counter, wall_time_us=rng.randrange(2**40))
            written.append(Record(entry, code if isinstance(body, CodeRecord) else None))
    return written


class Reader:
    """Folds records and keeps the moments up change by change, as a device does."""

    def __init__(self) -> None:
        self.fold = Fold(SPACE, D)
        self.moments = Moments(D)

    def read(self, record: Record) -> None:
        sample = getattr(record.entry.body, "sample", None)
        before = None if sample is None else self.fold.live(sample)
        self.fold.apply(record)
        after = None if sample is None else self.fold.live(sample)
        self._change(after, before)

    def _change(self, after: LiveRow | None, before: LiveRow | None) -> None:
        if after is not None:
            self.moments.add(after.code[None], [after.class_id])
        if before is not None:
            self.moments.subtract(before.code[None], [before.class_id])

    def state(self) -> tuple[str, str, dict[bytes, str], str]:
        live = self.fold.live_set()
        fresh = Moments(D)
        fresh.add(live.codes, [row.class_id for row in self.fold.rows()])
        assert fresh == self.moments
        return live.digest, self.moments.digest(), self.fold.class_names(), repr(live.class_ids)


def test_a_thousand_histories_end_in_one_state_each() -> None:
    samples = 0
    for seed in range(HISTORIES):
        rng = random.Random(seed)
        records = history(rng)
        straight, shuffled, restarted = Reader(), Reader(), Reader()
        for each in records:
            straight.read(each)
        order = [*records, *rng.choices(records, k=len(records) // 3)] if records else []
        rng.shuffle(order)
        for each in order:
            shuffled.read(each)
        cut = rng.randrange(len(order) + 1)
        for each in order[:cut]:
            restarted.read(each)
        restarted = Reader()  # its memory is gone; its log is not
        for each in [*order[:cut], *order[cut:]]:
            restarted.read(each)
        assert straight.state() == shuffled.state() == restarted.state(), f"seed {seed}"
        samples += len(straight.fold.live_set())
    assert samples > HISTORIES // 2  # they were not all empty


def test_the_moments_do_not_depend_on_batches() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (300, D)).astype(np.int8)
    ids = [CLASSES[i] for i in rng.integers(0, 5, 300)]
    whole = Moments(D)
    whole.add(codes, ids)
    for _ in range(20):
        parts, at = Moments(D), 0
        while at < 300:
            step = int(rng.integers(1, 120))
            parts.add(codes[at : at + step], ids[at : at + step])
            at += step
        assert parts == whole
