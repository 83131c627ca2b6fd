"""How often one item followed another in the training users' histories, and how closely."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from scipy import sparse

from mmsrarec_ray.data.log import Sequences
from mmsrarec_ray.data.schemas import COOCCURRENCE


@dataclass(frozen=True)
class Cooccurrence:
    """Counts of ordered pairs: count[i, j] times item j came after item i, at most `window` places later.

    count: int64 sparse (n_items, n_items); distance: float64, same shape, the sum of those places.
    """

    window: int
    count: sparse.csr_array
    distance: sparse.csr_array

    @classmethod
    def of(cls, sequences: Sequences, n_items: int, window: int) -> Cooccurrence:
        """Count the pairs of all sequences."""
        _, before, after, apart = pairs(sequences, window)
        shape = (n_items, n_items)
        count = sparse.coo_array((np.ones(len(before), np.int64), (before, after)), shape=shape).tocsr()
        distance = sparse.coo_array((apart.astype(np.float64), (before, after)), shape=shape).tocsr()
        return cls(window, count, distance)

    def table(self, items: pa.Array) -> pa.Table:
        """One row a pair: item_id, next_item_id, count, distance (its mean). items: ids by number."""
        count = self.count.tocoo()
        row, column = count.coords
        total = self.distance.tocoo().data
        return pa.table(
            {
                "item_id": items.take(pa.array(row)),
                "next_item_id": items.take(pa.array(column)),
                "count": count.data.astype(np.int32),
                "distance": (total / count.data).astype(np.float32),
            },
            schema=COOCCURRENCE,
        )

    @classmethod
    def read(cls, table: pa.Table, items: pa.Array, window: int) -> Cooccurrence:
        """The inverse of `table`."""
        import pyarrow.compute as pc

        row = pc.index_in(table["item_id"], value_set=items).to_numpy()
        column = pc.index_in(table["next_item_id"], value_set=items).to_numpy()
        count = table["count"].to_numpy().astype(np.int64)
        shape = (len(items), len(items))
        distance = table["distance"].to_numpy() * count
        return cls(
            window,
            sparse.csr_array((count, (row, column)), shape=shape),
            sparse.csr_array((np.round(distance), (row, column)), shape=shape),
        )

    def without(self, own: Sequences, rows: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Counts of some pairs, those left out that stand in a user's own training sequence: int64 (p,).

        own: the training sequences of some users, empty for one that is not a training user; rows: int64 (p,), the
        row of `own` whose user asks for a pair; before, after: int64 (p,), items.
        """
        if not len(before):
            return np.zeros(0, np.int64)
        n = self.count.shape[0]
        row, first, then, _ = pairs(own, self.window)
        counts = np.asarray(self.count[before, after]).astype(np.int64)
        return counts - _times((row * n + first) * n + then, (rows * n + before) * n + after)

    def followers(self, own: Sequences, rows: np.ndarray, before: np.ndarray) -> np.ndarray:
        """How many pairs begin with some items, those left out that stand in a user's own training sequence: int64
        (p,). own, rows, before: as in `without`."""
        n = self.count.shape[0]
        row, first, _, _ = pairs(own, self.window)
        return self._beginnings[before] - _times(row * n + first, rows * n + before)

    @cached_property
    def _beginnings(self) -> np.ndarray:
        """How many pairs begin with each item: int64 (n_items,)."""
        return np.asarray(self.count.sum(1)).astype(np.int64)


def _times(keys: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How often each number asked for stands among the keys: int64 (p,). keys: int64 (m,); asked: int64 (p,)."""
    if not len(keys):
        return np.zeros(len(asked), np.int64)
    found, times = np.unique(keys, return_counts=True)
    places = np.minimum(np.searchsorted(found, asked), len(found) - 1)
    return np.where(found[places] == asked, times[places], 0)


def pairs(sequences: Sequences, window: int) -> tuple[np.ndarray, ...]:
    """Ordered pairs of a user's different items up to `window` places apart: row, before, after, places apart, int64
    (p,) each."""
    items, rows = sequences.items.astype(np.int64), sequences.rows
    parts = [(np.zeros(0, np.int64),) * 4]
    for apart in range(1, min(window, max(sequences.lengths, default=0)) + 1):
        same = (rows[apart:] == rows[:-apart]) & (items[apart:] != items[:-apart])
        parts.append((rows[apart:][same], items[:-apart][same], items[apart:][same], np.full(int(same.sum()), apart)))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
