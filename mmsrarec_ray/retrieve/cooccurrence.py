"""How often one item followed another in the training users' histories, and how closely."""

from __future__ import annotations

from dataclasses import dataclass

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
        before, after, apart = pairs(sequences, window)
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

    def without(self, own: np.ndarray, history: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Counts of history item -> candidate, the user's own pairs left out: int64 (h, c).

        own: int32 (m,), the user's training sequence, whose pairs stand in the counts; empty for a user that is
        not a training user.
        """
        counts = self.count[history][:, candidates].toarray()
        before, after, _ = pairs(Sequences.of([own.tolist()]), self.window)
        for first, then in zip(before, after, strict=True):
            counts -= (history == first)[:, None] & (candidates == then)[None, :]
        return counts


def pairs(sequences: Sequences, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ordered pairs of a user's different items up to `window` places apart: before, after, places apart."""
    items, rows = sequences.items, sequences.rows
    parts = []
    for apart in range(1, min(window, max(sequences.lengths, default=0)) + 1):
        same = (rows[apart:] == rows[:-apart]) & (items[apart:] != items[:-apart])
        parts.append((items[:-apart][same], items[apart:][same], np.full(int(same.sum()), apart)))
    if not parts:
        return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64)
    before, after, distance = zip(*parts, strict=True)
    return np.concatenate(before), np.concatenate(after), np.concatenate(distance)
