"""Quantiles of the beta and of Student's t distribution, and the lowest point of a curve: what a score needs of
statistics, without SciPy (docs/decisions/0035). Plain numbers in and out.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, inf, isinf, lgamma, log, log1p, sqrt
from statistics import NormalDist
from typing import Final

_TINY: Final = 1e-300
_CLOSE: Final = 1e-15
"""A term that changes less than this share of the whole ends a continued fraction."""
_MAX_TERMS: Final = 100_000
"""It needs about sqrt(max(a, b)) terms: enough for as many samples as a device can hold."""
_MAX_STEPS: Final = 200
_GOLDEN: Final = (sqrt(5) - 1) / 2


def beta_cdf(a: float, b: float, x: float) -> float:
    """Return I_x(a, b): how likely a beta variable is to be at most x, in [0, 1]. a, b > 0.

    >>> beta_cdf(2.0, 2.0, 0.5), beta_cdf(1.0, 3.0, 0.0)
    (0.5, 0.0)
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # beyond it the fraction converges slowly: the other side
        return 1 - beta_cdf(b, a, 1 - x)
    log_front = a * log(x) + b * log1p(-x) + lgamma(a + b) - lgamma(a) - lgamma(b)
    return exp(log_front) / a * _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or _TINY)
    found = d
    for m in range(1, _MAX_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + term * d or _TINY)
            c = 1 + term / c or _TINY
            found *= c * d
        if abs(c * d - 1) < _CLOSE:
            break
    return found


def beta_quantile(a: float, b: float, p: float) -> float:
    """Return the x of which I_x(a, b) = p. a, b > 0; p in [0, 1].

    Newton's steps, halving the bracket where one would leave it.

    >>> round(beta_quantile(2.0, 2.0, 0.5), 12)
    0.5
    """
    if p <= 0 or p >= 1:
        return float(p >= 1)
    log_beta = lgamma(a) + lgamma(b) - lgamma(a + b)
    low, high, x = 0.0, 1.0, a / (a + b)
    for _ in range(_MAX_STEPS):
        off = beta_cdf(a, b, x) - p
        low, high = (low, x) if off > 0 else (x, high)
        slope = exp((a - 1) * log(x) + (b - 1) * log1p(-x) - log_beta) if 0 < x < 1 else 0.0
        step = x - off / slope if slope > 0 else inf
        nearer = step if low < step < high else (low + high) / 2
        if nearer == x or abs(nearer - x) <= _CLOSE * x:
            return nearer
        x = nearer
    return x


def t_quantile(degrees: float, p: float) -> float:
    """Return the quantile of Student's t distribution; of the normal where `degrees` is infinite. p in (0.5, 1).

    >>> round(t_quantile(1.0, 0.975), 3), round(t_quantile(inf, 0.975), 3)
    (12.706, 1.96)
    """
    if isinf(degrees):
        return NormalDist().inv_cdf(p)
    x = beta_quantile(degrees / 2, 0.5, 2 * (1 - p))  # both tails of t: degrees / (degrees + t^2)
    return sqrt(degrees * (1 - x) / x)


def lowest(curve: Callable[[float], float], low: float, high: float, tolerance: float = 1e-6) -> float:
    """Return where a curve that falls and then rises is lowest between two points, by golden section.

    >>> round(lowest(lambda x: (x - 2) ** 2, 0.0, 10.0), 5)
    2.0
    """
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = curve(left), curve(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = curve(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = curve(right)
    return (low + high) / 2
