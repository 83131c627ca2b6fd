"""How sure a mean over users is: bootstrap intervals and the paired test of two methods.

The users are what is drawn at random, so they are what is resampled. Equal seeds give equal resamples, whatever the
values: intervals of several metrics and methods belong together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
_ENTRIES = 1 << 22  # entries of the matrix of weights or signs that is held at a time: 32 MB


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same cases, for each of m metrics; each float64 (m,).

    difference: mean of the first minus mean of the second; low, high: its 95 % interval; p: two-sided.
    """

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def interval(values: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % percentile bootstrap interval of the mean over users: low and high, float64 (m,).

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    values: float64 (n, m), one row a user, n > 0. Raises ValueError, naming row and column, for a NaN.
    """
    _refuse_nan(values)
    rng = np.random.default_rng(seed)
    means = np.concatenate([weights @ values for weights in _weights(rng, len(values), resamples)]) / len(values)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def paired(first: np.ndarray, second: np.ndarray, resamples: int, seed: int) -> Comparison:
    """Compare two methods on the same cases; first, second: float64 (n, m), one row a user, n > 0.

    The interval is the bootstrap's, with the resamples of `interval` of the same seed. The p-value is the
    randomisation test's: if two methods are alike, a user's two values may be swapped, so signs are flipped at
    random. It needs no distribution and holds for any number of users, where a bootstrap p-value holds for many
    only; recommended by Smucker, Allan and Carterette, "A comparison of statistical significance tests for
    information retrieval evaluation", CIKM 2007. The data's own signs count as one of the orders, so p is never
    below 1 / (resamples + 1) (Phipson and Smyth, "Permutation p-values should never be zero", 2010).

    Raises ValueError, naming row and column, for a NaN.
    """
    difference = first - second
    low, high = interval(difference, resamples, seed)
    observed = np.abs(difference.sum(0))
    reached = np.zeros(difference.shape[1], np.int64)
    # A stream of its own: the signs must not follow the resamples of the same seed.
    rng = np.random.default_rng([seed, 1])
    for signs in _signs(rng, len(difference), resamples):
        # Equal sums must count as equal, in whatever order they were added up.
        reached += (np.abs(signs @ difference) >= observed * (1 - 1e-9)).sum(0)
    return Comparison(difference.mean(0), low, high, (reached + 1) / (resamples + 1))


def _weights(rng: np.random.Generator, n: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each of n users is in a resample: float64 (some, n), multinomial, `resamples` rows in all."""
    for rows in _chunks(n, resamples):
        # Counting draws is many times faster than numpy's multinomial, which draws a binomial for each user.
        draws = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(draws.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _signs(rng: np.random.Generator, n: int, resamples: int) -> Iterator[np.ndarray]:
    """Fair signs: float64 (some, n) of -1 and 1, `resamples` rows in all."""
    for rows in _chunks(n, resamples):
        bits = np.unpackbits(np.frombuffer(rng.bytes(rows * -(-n // 8)), np.uint8).reshape(rows, -1), axis=1)
        yield bits[:, :n] * 2.0 - 1


def _chunks(n: int, resamples: int) -> Iterator[int]:
    step = max(1, _ENTRIES // n)
    for start in range(0, resamples, step):
        yield min(step, resamples - start)


def _refuse_nan(values: np.ndarray) -> None:
    bad = np.argwhere(np.isnan(values))
    if len(bad):
        raise ValueError(f"values must not be NaN. Row {bad[0][0]}, column {bad[0][1]} is.")
