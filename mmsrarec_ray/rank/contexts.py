"""Contexts of the retriever as arrays of item numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.log import Log
from mmsrarec_ray.rank.evidence import Asking, Votes


@dataclass(frozen=True)
class Contexts:
    """Rows of CONTEXTS by numbers, as `data.log.Log` gives them.

    users, cuts, folds: int64 (n,); vectors: what the fold's encoder makes of the histories, float32 (n, dim);
    histories: the last items, the newest last, int64 (h,) each; neighbours: what similar moments chose next, the most
    similar first, int64 (k,) each; votes: what more of them chose next.
    """

    users: np.ndarray
    cuts: np.ndarray
    folds: np.ndarray
    vectors: np.ndarray
    histories: list[np.ndarray]
    neighbours: list[np.ndarray]
    votes: list[Votes]

    @classmethod
    def of(cls, log: Log, table: pa.Table) -> Contexts:
        """From rows of CONTEXTS."""
        votes = table["votes"].combine_chunks()
        shares = _divided(votes, votes.flatten().field("share").to_numpy())
        voted = _divided(votes, _numbers(log, votes.flatten().field("item_id")))
        neighbours = table["neighbours"].combine_chunks()
        history = table["history"].combine_chunks()
        return cls(
            pc.index_in(table["user_id"], value_set=log.users).to_numpy().astype(np.int64),
            table["cut"].to_numpy().astype(np.int64),
            table["fold"].to_numpy().astype(np.int64),
            table["vector"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
            if table.num_rows
            else np.zeros((0, 0), np.float32),
            _divided(history, _numbers(log, history.flatten())),
            _divided(neighbours, _numbers(log, neighbours.flatten().field("next_item_id"))),
            [dict(zip(*(one.tolist() for one in pair), strict=True)) for pair in zip(voted, shares, strict=True)],
        )

    def __len__(self) -> int:
        return len(self.users)

    @property
    def asking(self) -> Asking:
        """As evidence sees them."""
        return Asking(self.users, self.histories, self.votes, self.vectors, self.folds)


def _numbers(log: Log, ids: pa.Array) -> np.ndarray:
    return pc.index_in(ids, value_set=log.items).to_numpy(zero_copy_only=False).astype(np.int64)


def _divided(lists: Any, values: np.ndarray) -> list[np.ndarray]:
    """Values of a list array's flat items, an array for each list."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []
