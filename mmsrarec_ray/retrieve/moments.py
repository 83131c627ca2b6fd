"""Moments: beginnings of training histories, with the item that came next."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mmsrarec_ray.data.log import Cases, Queries, Sequences
from mmsrarec_ray.data.splits import hashes

_USERS = 2_000  # whose prefixes are held at a time


def last_cuts(sequences: Sequences, most: int | None) -> Cases:
    """The last transitions of each row, at most so many, None: all; each a case with the history before it.

    A row of n items has the cuts 1 to n - 1: a history is never empty.
    """
    lengths = sequences.lengths
    first = np.maximum(1, lengths - most) if most is not None else np.ones_like(lengths)
    counts = np.maximum(lengths - first, 0)
    rows = np.repeat(np.arange(len(sequences)), counts)
    before = np.concatenate([[0], np.cumsum(counts)])[:-1]
    cuts = np.arange(len(rows)) - np.repeat(before, counts) + first[rows]
    places = sequences.starts[rows] + cuts
    histories = sequences.take(rows).beginnings(cuts)
    return Cases(Queries(histories, sequences.times[places]), sequences.items[places])


def moments(sequences: Sequences, form: str) -> Iterator[Cases]:
    """The moments of training users, some users at a time.

    form: 'prefixes', every transition; 'users', the last of each user alone (the paper's).
    """
    for _, part in sequences.chunks(_USERS):
        yield last_cuts(part, 1 if form == "users" else None)


def folds_of(users: list[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each user, by its id alone: int64 (n,)."""
    return (hashes(users, seed, "fold") % np.uint64(folds)).astype(np.int64)
