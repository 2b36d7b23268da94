"""Cholesky factors and quantiles without SciPy: the same numbers as SciPy's, and other threads go on meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from sdk import triangular
from sdk.quantile import beta_cdf, beta_quantile, lowest, t_quantile

SIZES = (1, 5, 63, 64, 65, 200, 333)
TRIES = 20
"""On a busy machine one measurement of who ran when says little; the first that shows it is enough."""


def spread(d: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return a symmetric positive definite matrix (d, d), its eigenvalues over four orders of magnitude."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return np.asarray((Q * np.geomspace(1e-2, 1e2, d)) @ Q.T, np.float64)


@pytest.mark.parametrize("d", SIZES)
def test_an_inverse_is_lower_triangular_and_undoes_its_factor(d: int) -> None:
    L = triangular.cholesky(spread(d))
    assert L is not None
    R = triangular.inverse(L)
    np.testing.assert_allclose(R @ L, np.eye(d), atol=1e-11)
    assert not np.triu(R, 1).any()
    assert triangular.inverse(L.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("d", SIZES)
def test_rows_are_whitened_and_solved_as_by_scipy(d: int) -> None:
    linalg = pytest.importorskip("scipy.linalg", reason="compares with SciPy, of the dev extra")
    W = spread(d)
    L = triangular.cholesky(W)
    assert L is not None
    rows = np.random.default_rng(1).normal(size=(7, d))
    np.testing.assert_allclose(
        triangular.whiten(L, rows), linalg.solve_triangular(L, rows.T, lower=True).T, rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(triangular.solve(L, rows) @ W, rows, rtol=1e-7, atol=1e-9)


def test_what_stands_above_the_diagonal_is_never_read() -> None:
    L = triangular.cholesky(spread(130))
    assert L is not None
    dirty = L + np.triu(np.full_like(L, np.nan), 1)
    rows = np.ones((2, 130))
    np.testing.assert_array_equal(triangular.inverse(dirty), triangular.inverse(L))
    np.testing.assert_array_equal(triangular.whiten(dirty, rows), triangular.whiten(L, rows))
    np.testing.assert_array_equal(triangular.solve(dirty, rows), triangular.solve(L, rows))


def test_rows_are_overwritten_only_where_that_is_asked_for() -> None:
    L = triangular.cholesky(spread(130))
    assert L is not None
    rows = np.ones((2, 130))
    white = triangular.whiten(L, rows)
    assert (rows == 1).all()
    assert triangular.whiten(L, rows, overwrite=True) is rows
    np.testing.assert_array_equal(rows, white)


@pytest.mark.parametrize("W", [np.array([[1.0, 2.0], [2.0, 1.0]]), np.zeros((3, 3)), -np.eye(2)])
def test_a_matrix_that_no_samples_have_is_refused(W: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    assert triangular.cholesky(W) is None


def test_other_threads_go_on_while_a_factor_is_made_and_used() -> None:
    """What SciPy's wrappers do not allow: they hold the interpreter's lock. The control is a lock that is held."""
    W = spread(1024)
    L = triangular.cholesky(W)
    assert L is not None
    rows = np.ones((256, 1024))

    steps: list[Callable[[], object]] = [
        lambda: triangular.cholesky(W),
        lambda: triangular.inverse(L.astype(np.float32)),
        lambda: triangular.whiten(L, rows),
    ]
    for step in steps:
        assert any(turns_during(step) > 2 for _ in range(TRIES))
    # The power of a large integer never lets go. A turn or two fall before it begins and after it has ended, more
    # where the machine took the processor away in between.
    assert any(turns_during(lambda: pow(3, 800_000)) <= 2 for _ in range(TRIES))


def turns_during(work: Callable[[], object]) -> int:
    """Return how many times another thread had its turn while this one worked."""
    turns, stop, ready = [], threading.Event(), threading.Event()

    def other() -> None:
        while not stop.is_set():
            turns.append(time.perf_counter())
            ready.set()
            time.sleep(0)

    thread = threading.Thread(target=other)
    thread.start()
    assert ready.wait(60)
    began = time.perf_counter()
    work()
    ended = time.perf_counter()
    stop.set()
    thread.join()
    return sum(began < at < ended for at in turns)


@pytest.mark.parametrize("a", [0.5, 1.0, 3.5, 40.0, 2000.5])
@pytest.mark.parametrize("b", [0.5, 2.0, 17.5, 900.0])
def test_beta_quantiles_are_scipys(a: float, b: float) -> None:
    special = pytest.importorskip("scipy.special", reason="compares with SciPy, of the dev extra")
    for p in (0.0, 1e-6, 0.025, 0.3, 0.5, 0.975, 1.0):
        x = beta_quantile(a, b, p)
        assert x == pytest.approx(float(special.betaincinv(a, b, p)), rel=1e-9, abs=1e-14)
        assert beta_cdf(a, b, x) == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 400, 50_000, float("inf")])
def test_student_quantiles_are_scipys(degrees: float) -> None:
    special = pytest.importorskip("scipy.special", reason="compares with SciPy, of the dev extra")
    assert t_quantile(degrees, 0.975) == pytest.approx(float(special.stdtrit(degrees, 0.975)), rel=1e-9)


@pytest.mark.parametrize("at", [0.0, 0.7, 6.9])
def test_the_lowest_point_is_found_at_the_ends_too(at: float) -> None:
    assert lowest(lambda x: abs(x - at), 0.0, 6.9) == pytest.approx(at, abs=1e-5)


@pytest.mark.parametrize("d", SIZES)
def test_factor_and_inverse_may_take_the_place_of_what_they_are_made_from(d: int) -> None:
    W = spread(d)
    whole, there = triangular.cholesky(W), W.copy()
    L = triangular.cholesky(there, overwrite=True)
    assert whole is not None
    assert L is there
    np.testing.assert_array_equal(L, whole)
    R = triangular.inverse(L, overwrite=True)
    assert R is there
    np.testing.assert_array_equal(R, triangular.inverse(whole))


def test_what_is_not_positive_definite_is_refused_where_it_stands() -> None:
    W = spread(130)
    W[100, 100] = -1.0
    assert triangular.cholesky(W, overwrite=True) is None
