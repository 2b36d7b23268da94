"""One call for each frame: the same codes, and decisions within the stated tolerance, or NumPy's."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from device_agent import decider as module
from device_agent.decider import TOLERANCE, Decider
from device_agent.runtime import graph
from device_agent.runtime.onnx import GraphSession
from sdk.codes import encode
from sdk.errors import FeatureSizeError, InferenceFailed
from sdk.head import Decisions, Head, solve
from sdk.moments import Moments
from tests.simulators import wait_for

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
SCALE = 0.2
Numbers = npt.NDArray[np.float32]


def features(rng: np.random.Generator, n: int, d: int, spread: float = 1.0) -> Numbers:
    """Pooled outputs of a network, some below zero and many near it."""
    return (rng.normal(0.3, spread, (n, d)) ** 3).astype(np.float32)


def head_of(rng: np.random.Generator, classes: Mapping[bytes, int], d: int) -> Head:
    moments = Moments(d)
    for class_id, n in classes.items():
        away = rng.normal(0, 0.3, d)
        seen = np.abs(features(rng, n, d)) * np.exp(away)
        moments.add(encode(seen.astype(np.float32), SCALE), [class_id] * n)
    return solve(moments)


def assert_near(found: Decisions, right: Decisions, head: Head) -> None:
    """Scores within half the tolerance; novelty by what that makes of them and of the distance.

    A sample at the very mean of a class has a distance of rounding errors, whose logarithm may be anything far
    below zero: as known as can be, in either arithmetic.
    """
    novelty, expected = np.maximum(found.novelty, 0), np.maximum(right.novelty, 0)
    off = TOLERANCE / 2 * np.maximum(1, expected)
    assert np.all(np.abs(novelty - expected) <= off + TOLERANCE * head.knobs.distance_weight * 4)
    assert np.allclose(found.probabilities, right.probabilities, atol=0.05)
    first, second = np.sort(np.pad(right.probabilities, ((0, 0), (1, 0))), axis=1)[:, [-1, -2]].T
    clear = first - second > 0.1
    assert np.array_equal(found.class_index[clear], right.class_index[clear])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    d=st.integers(1, 90),
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=9),
    n=st.integers(1, 20),
)
@example(seed=0, d=2, counts=[1, 3, 2, 1], n=1)  # a black frame that is all there is of a class
def test_codes_have_the_same_bits_and_decisions_agree(seed: int, d: int, counts: list[int], n: int) -> None:
    rng = np.random.default_rng(seed)
    head = head_of(rng, {bytes([i]) * 16: count for i, count in enumerate(counts)}, d)
    seen = features(rng, n, d, spread=float(rng.choice([1e-6, 1.0, 1e6])))
    seen[0] *= rng.integers(0, 2)  # a black frame
    asked = Decider(SCALE, beside=False)
    codes, found = asked.decide(head, seen)
    assert np.array_equal(codes, encode(seen, SCALE))
    assert codes.dtype == np.int8
    assert_near(found, head.decide(codes), head)


@pytest.mark.parametrize("d", [256, 768, 1584])
def test_a_head_as_large_as_real_ones_is_decided_by_its_graph(d: int) -> None:
    rng = np.random.default_rng(d)
    head = head_of(rng, {A: 120, B: 60, C: 5}, d)
    asked = Decider(SCALE, beside=False)
    seen = features(rng, 64, d)
    codes, found = asked.decide(head, seen)
    assert asked.ready
    right = head.decide(codes)
    assert np.array_equal(codes, encode(seen, SCALE))
    # What the whitening loses by seven bits is a tenth of what is stated.
    assert np.abs(found.novelty - right.novelty).max() < TOLERANCE / 5
    assert np.array_equal(found.class_index, right.class_index)


def test_what_seven_bits_lack_is_taken_off_the_centre_as_well() -> None:
    """Codes lie far from zero and near their centre: what is lost must weigh by the latter."""
    rng = np.random.default_rng(7)
    head = head_of(rng, {A: 120, B: 60}, 256)
    made = module._graph(head, SCALE)
    off = module._deviation(head, made, SCALE)
    assert off < module._deviation(head, made._replace(off=np.zeros_like(made.off)), SCALE) / 2


def test_the_graph_is_what_the_onnx_package_takes_for_a_model() -> None:
    rng = np.random.default_rng(0)
    whitening = np.triu(rng.normal(size=(40, 40))).astype(np.float32)
    model = onnx.load_from_string(graph.deciding(*graph.in_steps(whitening), SCALE))
    onnx.checker.check_model(model)
    assert [each.name for each in model.graph.output] == [*graph.OUTPUTS]
    assert {each.domain: each.version for each in model.opset_import} == {"": 17, "com.microsoft": 1}


def test_whole_numbers_stay_where_integer_kernels_do_not_overflow() -> None:
    """Two products of a shifted code, 255 at most, and a whole number, added up in 16 bits with a sign."""
    rng = np.random.default_rng(0)
    whitening = np.triu(rng.normal(size=(50, 50)) * np.exp(rng.normal(size=50))).astype(np.float32)
    whole, unit, diagonal = graph.in_steps(whitening)
    assert 2 * 255 * int(np.abs(whole).max()) < 2**15
    assert np.abs(whole * unit + np.diag(diagonal) - whitening).max() <= unit.max() / 2 + 1e-6
    assert np.all(np.abs(whole).max(0)[1:] == graph.STEPS)
    assert not np.diagonal(whole).any()


def test_an_updated_head_keeps_its_graph_and_a_solved_one_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Head] = []
    make = Decider._make

    def noting(self: Decider, head: Head) -> None:
        made.append(head)
        make(self, head)

    monkeypatch.setattr(Decider, "_make", noting)
    rng = np.random.default_rng(1)
    head = head_of(rng, {A: 40, B: 40}, 60)
    asked, seen = Decider(SCALE, beside=False), features(rng, 30, 60)
    asked.decide(head, seen)
    newer = head
    for code in encode(features(rng, 5, 60, 0.5), SCALE):
        newer = newer.with_sample(code, C, own=True)
    newer = newer.with_shift(tuple(range(60)))
    codes, found = asked.decide(newer, seen)
    assert_near(found, newer.decide(codes), newer)
    assert found.probabilities.shape == (30, 3)
    assert asked.ready
    other = head_of(rng, {A: 40, B: 40}, 60)
    codes, found = asked.decide(other, seen)
    assert_near(found, other.decide(codes), other)
    assert [id(each) for each in made] == [id(head), id(other)]


def test_numpy_decides_until_the_graph_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    make = Decider._make

    def slowly(self: Decider, head: Head) -> None:
        assert go.wait(60.0)
        make(self, head)

    monkeypatch.setattr(Decider, "_make", slowly)
    rng = np.random.default_rng(2)
    head, seen = head_of(rng, {A: 20, B: 30}, 50), features(rng, 8, 50)
    asked = Decider(SCALE)
    worker = asked._thread
    assert worker is not None
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        wait_for(
            lambda: os.getpriority(os.PRIO_PROCESS, worker.native_id or 0) > ours, 60.0, "giving way to frames"
        )
        for _ in range(3):
            codes, found = asked.decide(head, seen)
            assert np.array_equal(found.novelty, head.decide(codes).novelty)
            assert not asked.ready
        go.set()

        def by_graph() -> bool:
            asked.decide(head, seen)
            return asked.ready

        wait_for(by_graph, 60.0, "the graph")
    finally:
        go.set()
        asked.close()
    assert not worker.is_alive()


@pytest.mark.parametrize("fault", ["codes", "numbers", "nothing", "refused"])
def test_where_onnx_runtime_computes_something_else_numpy_goes_on_deciding(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = GraphSession.run

    def wrong(self: GraphSession, inputs: Mapping[str, Numbers]) -> list[Any]:
        code, length, squared, along = run(self, inputs)
        if fault == "refused":
            raise InferenceFailed("no such operator", hint="")
        factor = {"numbers": 1.03, "nothing": np.nan}.get(fault, 1.0)
        return [code + np.int8(fault == "codes"), length, squared * np.float32(factor), along]

    monkeypatch.setattr(GraphSession, "run", wrong)
    rng = np.random.default_rng(3)
    head, seen = head_of(rng, {A: 20, B: 30}, 50), features(rng, 8, 50)
    asked = Decider(SCALE, beside=False)
    with caplog.at_level(logging.WARNING, module.__name__):
        for _ in range(3):
            codes, found = asked.decide(head, seen)
            assert np.array_equal(codes, encode(seen, SCALE))
            assert np.array_equal(found.novelty, head.decide(codes).novelty)
    assert not asked.ready
    assert [record.message for record in caplog.records if "stay in NumPy" in record.message] == [
        caplog.records[0].message
    ]


def test_a_graph_that_fails_later_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    head, seen = head_of(rng, {A: 20, B: 30}, 50), features(rng, 8, 50)
    asked = Decider(SCALE, beside=False)
    asked.decide(head, seen)
    assert asked.ready

    def fails(_self: GraphSession, _inputs: Mapping[str, Numbers]) -> list[Any]:
        raise InferenceFailed("out of memory", hint="")

    monkeypatch.setattr(GraphSession, "run", fails)
    for _ in range(2):
        codes, found = asked.decide(head, seen)
        assert np.array_equal(found.novelty, head.decide(codes).novelty)
        assert not asked.ready


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    rng = np.random.default_rng(5)
    head, seen = head_of(rng, {A: 20, B: 30}, 50), features(rng, 3, 50)
    asked = Decider(SCALE, beside=False)
    asked.decide(head, seen)
    seen[1, 7] = value
    with pytest.raises(FeatureSizeError, match="not finite"):
        asked.decide(head, seen)
    assert asked.ready


def test_features_of_another_space_are_refused() -> None:
    rng = np.random.default_rng(6)
    head = head_of(rng, {A: 20, B: 30}, 50)
    asked = Decider(SCALE, beside=False)
    asked.decide(head, features(rng, 3, 50))
    with pytest.raises(FeatureSizeError, match=r"\(3, 49\)"):
        asked.decide(head, features(rng, 3, 49))
