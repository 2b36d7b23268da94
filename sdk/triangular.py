"""Cholesky factors: made, inverted and solved with NumPy alone, so that nothing else runs while they are.

SciPy's wrappers of LAPACK hold the interpreter's lock for as long as LAPACK works: 25 ms for a factorisation at
d = 1280, during which no frame of the line moves on. NumPy's matrix products and its Cholesky factorisation let it
go (docs/decisions/0035). Everything here is these two, in blocks; the blocks on the diagonal are inverted by
substitution. L is lower triangular (d, d) with a positive diagonal; what stands above it is never read.

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., chapters 8 and 14.
"""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

BLOCK: Final = 64
"""Rows at a time: smaller ones spend their time in Python, larger ones in the substitution."""

_F = TypeVar("_F", np.float32, np.float64)


def cholesky(W: npt.NDArray[np.float64], *, overwrite: bool = False) -> npt.NDArray[np.float64] | None:
    """Return the factor L of a symmetric matrix W = L L' (d, d); None where it is not positive definite.

    NumPy's own factorises a copy into another one. Block column after block column, in the place of W, it takes no
    memory beside W, and two thirds of the time at d = 1584.

    Args:
        W: Its lower half is read.
        overwrite: Put L where W was.

    >>> cholesky(np.array([[4.0, 2.0], [2.0, 5.0]])).tolist()
    [[2.0, 0.0], [1.0, 2.0]]
    """
    L = W if overwrite else W.copy()
    d = len(L)
    for start in range(0, d, BLOCK):
        end = min(start + BLOCK, d)
        if start:
            L[start:, start:end] -= L[start:, :start] @ L[start:end, :start].T
        try:
            block = np.linalg.cholesky(L[start:end, start:end])
        except np.linalg.LinAlgError:
            return None
        L[start:end, start:end] = block
        L[start:end, end:] = 0
        if end < d:
            L[end:, start:end] = L[end:, start:end] @ np.linalg.inv(block).T
    return L


def inverse(L: npt.NDArray[_F], *, overwrite: bool = False) -> npt.NDArray[_F]:
    """Return the inverse of L, in its own precision; zero above the diagonal.

    Args:
        L: The factor.
        overwrite: Put the inverse where L was.

    >>> inverse(np.array([[2.0, 0.0], [1.0, 2.0]])).tolist()
    [[0.5, 0.0], [-0.25, 0.5]]
    """
    d = len(L)
    R = L if overwrite else L.copy(order="C")
    for start, block in zip(range(0, d, BLOCK), _diagonal_inverses(L), strict=True):
        size = min(BLOCK, d - start)
        R[start : start + size, start : start + size] = block[:size, :size]
        R[start : start + size, start + size :] = 0
    half = BLOCK
    while half < d:  # two inverted halves make one: [[A, 0], [B, C]] has the inverse [[A^, 0], [-C^ B A^, C^]]
        for a in range(0, d - half, 2 * half):
            m, e = a + half, min(a + 2 * half, d)
            R[m:e, a:m] = -(R[m:e, m:e] @ (R[m:e, a:m] @ R[a:m, a:m]))  # in the middle still B
        half *= 2
    return R


def whiten(L: npt.NDArray[_F], rows: npt.NDArray[_F], *, overwrite: bool = False) -> npt.NDArray[_F]:
    """Return rows (n, d) whitened: each x as L^-1 x, so that inner products are x' (L L')^-1 y.

    Args:
        L: The factor.
        rows: In any order of memory.
        overwrite: Put the result where the rows were: with many rows, they are most of the memory.

    >>> whiten(np.array([[2.0, 0.0], [1.0, 2.0]]), np.array([[2.0, 5.0]])).tolist()
    [[1.0, 2.0]]
    """
    Z = rows if overwrite else np.empty_like(rows, order="C")
    for start, block in zip(range(0, len(L), BLOCK), _diagonal_inverses(L), strict=True):
        at = slice(start, min(start + BLOCK, len(L)))
        size = at.stop - start
        rest = rows[:, at] if start == 0 else rows[:, at] - Z[:, :start] @ L[at, :start].T
        Z[:, at] = rest @ block[:size, :size].T
    return Z


def solve(L: npt.NDArray[_F], rows: npt.NDArray[_F]) -> npt.NDArray[_F]:
    """Return (L L')^-1 x for each x of rows (n, d).

    >>> solve(np.array([[2.0, 0.0], [1.0, 2.0]]), np.array([[4.0, 2.0]])).tolist()
    [[1.0, 0.0]]
    """
    Z = whiten(L, rows)
    starts, blocks = range(0, len(L), BLOCK), _diagonal_inverses(L)
    for i in reversed(range(len(starts))):
        at = slice(starts[i], min(starts[i] + BLOCK, len(L)))
        size = at.stop - at.start
        rest = Z[:, at] if at.stop == len(L) else Z[:, at] - Z[:, at.stop :] @ L[at.stop :, at]
        Z[:, at] = rest @ blocks[i, :size, :size]
    return Z


def _diagonal_inverses(L: npt.NDArray[_F]) -> npt.NDArray[_F]:
    """Return the inverses (b, BLOCK, BLOCK) of the b blocks on the diagonal; the last ends with unit rows."""
    d = len(L)
    count = -(-d // BLOCK)
    D = np.zeros((count, BLOCK, BLOCK), L.dtype)
    for block, start in zip(D, range(0, d, BLOCK), strict=True):
        size = min(BLOCK, d - start)
        block[:size, :size] = L[start : start + size, start : start + size]
        block[range(size, BLOCK), range(size, BLOCK)] = 1
    X = np.zeros_like(D)
    for i in range(BLOCK):  # row by row, all blocks at once
        X[:, i, i] = 1
        X[:, i, :i] = -(D[:, i : i + 1, :i] @ X[:, :i, :i])[:, 0]
        X[:, i, : i + 1] /= D[:, i, i, None]
    return X
