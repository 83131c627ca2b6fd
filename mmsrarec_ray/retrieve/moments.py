"""Moments: beginnings of training histories, with the item that came next."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.data.splits import hashes

ALL_USERS = -1
"""The fold of what was learnt from all training users."""
_USERS = 2_000  # whose transitions are looked for at a time
_HELD = 1 << 22  # items of prefixes held at a time: those of a long history add up to half its square


def last_cuts(sequences: Sequences, most: int) -> Cases:
    """The last transitions of each row, at most so many; each a case with the history before it.

    A row of n items has the cuts 1 to n - 1: a history is never empty.
    """
    return _cases(sequences, *_cuts(sequences, most))


def moments(sequences: Sequences, form: str) -> Iterator[Cases]:
    """The moments of training users, some at a time.

    form: 'prefixes', every transition; 'users', the last of each user alone (the paper's).
    """
    for _, part in sequences.chunks(_USERS):
        rows, cuts = _cuts(part, 1 if form == "users" else None)
        groups = np.cumsum(cuts) // _HELD
        for group in np.unique(groups):
            yield _cases(part, rows[groups == group], cuts[groups == group])


def _cuts(sequences: Sequences, most: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The row and the cut of each transition, of the last ones alone or of all: int64 (t,) both."""
    lengths = sequences.lengths
    first = np.maximum(1, lengths - most) if most is not None else np.ones_like(lengths)
    counts = np.maximum(lengths - first, 0)
    rows = np.repeat(np.arange(len(sequences)), counts)
    before = np.concatenate([[0], np.cumsum(counts)])[:-1]
    return rows, np.arange(len(rows)) - np.repeat(before, counts) + first[rows]


def _cases(sequences: Sequences, rows: np.ndarray, cuts: np.ndarray) -> Cases:
    places = sequences.starts[rows] + cuts
    return Cases(Queries(sequences.beginnings(rows, cuts), sequences.times[places]), sequences.items[places])


def folds_of(users: list[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each user, by its id alone: int64 (n,)."""
    return (hashes(users, seed, "fold") % np.uint64(folds)).astype(np.int64)
