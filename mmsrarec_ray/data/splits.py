"""Seeded splits of users, interactions and items.

A split by ratio ranks ids by a keyed hash, so it depends on the seed and the ids alone: not on the order of the
rows, nor on how the work was divided.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

TRAIN, VALIDATION, TEST = "train", "validation", "test"
_NAMES = np.array([TRAIN, VALIDATION, TEST], dtype=object)


def hashes(ids: Iterable[str], seed: int, what: str) -> np.ndarray:
    """A number for each id that nobody can steer: uint64 (n,)."""
    key = f"{what}:{seed}".encode()
    digests = (hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in ids)
    return np.frombuffer(b"".join(digests), dtype="<u8")


@dataclass(frozen=True)
class RatioSplit:
    """The hashes below which an id is test, and below which it is validation."""

    test_below: int
    validation_below: int

    @classmethod
    def of(cls, numbers: np.ndarray, validation: float, test: float) -> RatioSplit:
        """Exact shares of the ids with these hashes: round(share * n) of each."""
        ranked = np.sort(numbers)
        n_test = round(test * len(ranked))
        n_held_out = min(len(ranked), n_test + round(validation * len(ranked)))
        edges = [int(ranked[n]) if n < len(ranked) else 2**64 for n in (n_test, n_held_out)]
        return cls(*edges)

    def names(self, numbers: np.ndarray) -> np.ndarray:
        """train, validation or test: object (n,)."""
        wide = numbers.astype(object) if max(self.test_below, self.validation_below) >= 2**64 else numbers
        held_out = np.where(wide < self.test_below, 2, np.where(wide < self.validation_below, 1, 0))
        return _NAMES[held_out.astype(int)]


def leave_one_out(lengths: np.ndarray) -> np.ndarray:
    """Split of each interaction of users with these many: the last is test, the one before validation.

    Users with fewer than three interactions only train. Object (sum of lengths,).
    """
    split = np.zeros(int(lengths.sum()), int)
    ends = np.cumsum(lengths)[lengths >= 3]
    split[ends - 1], split[ends - 2] = 2, 1
    return _NAMES[split]


def by_time(timestamps: np.ndarray, validation_from: int, test_from: int) -> np.ndarray:
    """Split of each interaction by two moments: object (n,)."""
    return _NAMES[(timestamps >= validation_from).astype(int) + (timestamps >= test_from)]


def time_edges(histogram: np.ndarray, edges: np.ndarray, validation: float, test: float) -> tuple[int, int]:
    """The moments from which on an interaction is validation, and test.

    histogram: counts of interactions in the bins between `edges` (n + 1,). A moment is the edge of a bin.
    """
    share = np.concatenate([[0.0], np.cumsum(histogram) / max(histogram.sum(), 1)])
    moments = [int(np.ceil(edges[np.searchsorted(share, 1 - rest)])) for rest in (validation + test, test)]
    return moments[0], moments[1]
