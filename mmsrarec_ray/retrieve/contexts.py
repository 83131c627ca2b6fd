"""Contexts: for a user at a moment, the most similar moments of others and what they did next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmsrarec_ray.data.log import Cases, Log
from mmsrarec_ray.data.schemas import CONTEXTS
from mmsrarec_ray.retrieve.index import Moments, Neighbours
from mmsrarec_ray.settings import Retrieve


@dataclass(frozen=True)
class Support:
    """How often retrieval and counts point at what was chosen.

    cases; neighbours: of these, the positive is among the next items of the nearest moments; pairs: it followed an
    item of the history in another user's.
    """

    cases: int = 0
    neighbours: int = 0
    pairs: int = 0

    def __add__(self, other: Support) -> Support:
        return Support(self.cases + other.cases, self.neighbours + other.neighbours, self.pairs + other.pairs)

    def shares(self) -> dict[str, float | int]:
        """For people: the number of cases and two shares of them."""
        cases = max(self.cases, 1)
        return {
            "cases": self.cases,
            "neighbours": round(self.neighbours / cases, 4),
            "cooccurrence": round(self.pairs / cases, 4),
        }


def hits(moments: Moments, found: Neighbours, positives: np.ndarray) -> int:
    """Cases whose positive is among the next items of their neighbours."""
    there = found.rows >= 0
    chosen = np.where(there, moments.next_items[found.rows], -1)
    return int((chosen == positives[:, None]).any(1).sum())


def votes(moments: Moments, found: Neighbours, temperature: float) -> list[dict[int, float]]:
    """What the nearest moments say of items: for each query, next item -> share of the votes."""
    counted: list[dict[int, float]] = []
    for rows, shares in zip(found.rows, found.shares(temperature), strict=True):
        items, places = np.unique(moments.next_items[rows[rows >= 0]], return_inverse=True)
        sums = np.bincount(places, shares[rows >= 0], len(items))
        counted.append(dict(zip(items.tolist(), sums.tolist(), strict=True)))
    return counted


def contexts_table(
    log: Log,
    cases: Cases,
    vectors: np.ndarray,
    split: str,
    fold: int,
    moments: Moments,
    found: Neighbours,
    settings: Retrieve,
) -> pa.Table:
    """Rows of CONTEXTS. vectors: float32 (cases, dim), what the fold's encoder makes of the histories; found: at least
    `neighbours` and `voters` of each case."""
    histories = cases.queries.histories
    last = histories.last(settings.history, -1)
    counted = votes(moments, found.first(settings.voters), settings.vote_temperature)
    return pa.table(
        {
            "user_id": log.users.take(pa.array(histories.users)),
            "cut": histories.lengths.astype(np.int32),
            "split": pa.repeat(split, len(cases)),
            "fold": np.full(len(cases), fold, np.int32),
            "vector": _lists(np.ones(vectors.shape, bool), pa.array(vectors.ravel())),
            "history": _lists(last >= 0, log.items.take(pa.array(last[last >= 0]))),
            "neighbours": _neighbours(log, moments, found.first(settings.neighbours)),
            "votes": _votes(log, counted),
        },
        schema=CONTEXTS,
    )


def _neighbours(log: Log, moments: Moments, found: Neighbours) -> pa.ListArray:
    there = found.rows >= 0
    rows = found.rows[there]
    fields = CONTEXTS.field("neighbours").type.value_type
    values = [
        log.users.take(pa.array(moments.users[rows])),
        pa.array(moments.positions[rows], pa.int32()),
        pa.array(found.similarity[there], pa.float32()),
        log.items.take(pa.array(moments.next_items[rows])),
    ]
    return _lists(there, pa.StructArray.from_arrays(values, fields=list(fields)))


def _votes(log: Log, counted: list[dict[int, float]]) -> pa.ListArray:
    items = np.array([item for each in counted for item in each], np.int64)
    shares = pa.array([share for each in counted for share in each.values()], pa.float32())
    fields = CONTEXTS.field("votes").type.value_type
    values = pa.StructArray.from_arrays([log.items.take(pa.array(items)), shares], fields=list(fields))
    return pa.ListArray.from_arrays(np.cumsum([0, *map(len, counted)]).astype(np.int32), values)


def _lists(there: np.ndarray, values: pa.Array) -> pa.ListArray:
    """One list a row of `there`, bool (n, k), of as many values as are there."""
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32), values)
