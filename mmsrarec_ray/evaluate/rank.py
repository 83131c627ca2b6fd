"""One method's ranking of every case: against its list, or against the whole pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmsrarec_ray.data.log import Cases, Log
from mmsrarec_ray.data.schemas import RANKINGS
from mmsrarec_ray.evaluate.metrics import Ranks
from mmsrarec_ray.methods.base import Method, best, masked

_KEPT = 100  # best items of a case that are stored, where no longer list is asked for


@dataclass(frozen=True)
class Rankings:
    """Where the positive of each case came, and what came first.

    unknown, unknown_above: candidates beside the positive without a training interaction, int64 (n,), and how many
    of them stand above the positive, float64 (n,), ties counting half. items, int64, and scores, float64 (n, kept):
    the best first, -1 where there are fewer.
    """

    ranks: Ranks
    unknown: np.ndarray
    unknown_above: np.ndarray
    items: np.ndarray
    scores: np.ndarray


def rank_lists(
    method: Method, cases: Cases, negatives: np.ndarray, known: np.ndarray, k: int
) -> tuple[Rankings, np.ndarray]:
    """Rank each positive among its negatives, and recommend.

    negatives: int64 (n, c); known: bool (n_items,). Returns the rankings, and the k best of the pool, int64 (n, k).
    """
    candidates = np.column_stack([cases.positives.astype(np.int64), negatives])
    scores, recommended = method.answer(cases.queries, candidates, k)
    scores = _finite(scores)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :_KEPT]
    items, found = (np.take_along_axis(array, order, 1) for array in (candidates, scores))
    return _compare(scores, np.zeros(len(cases), np.int64), ~known[candidates], items, found), recommended


def rank_pool(
    method: Method, cases: Cases, pool: np.ndarray, known: np.ndarray, k: int
) -> Iterator[tuple[slice, Rankings]]:
    """Rank each positive among all items of the pool that are not in its history, some cases at a time.

    A positive outside the pool is ranked all the same. pool, known: bool (n_items,); k: how many of the best items are
    asked for.
    """
    for rows, queries, scores in method.score_chunks(cases.queries):
        scores, positives = _finite(scores), cases.positives[rows].astype(np.int64)
        places = np.arange(len(queries))
        mine = scores[places, positives]
        scores = masked(scores, queries, pool)
        scores[places, positives] = mine
        items, found = best(scores, max(_KEPT, k))
        yield rows, _compare(scores, positives, np.broadcast_to(~known, scores.shape), items, found)


def _compare(
    scores: np.ndarray, positives: np.ndarray, unknown: np.ndarray, items: np.ndarray, found: np.ndarray
) -> Rankings:
    """scores: float (n, c), -inf is no candidate; positives: int64 (n,), their columns; unknown: bool (n, c)."""
    mine = np.take_along_axis(scores, positives[:, None], 1)
    others = unknown & (scores > -np.inf)
    np.put_along_axis(others, positives[:, None], False, 1)
    above = (others & (scores > mine)).sum(1) + (others & (scores == mine)).sum(1) / 2
    return Rankings(Ranks.of(scores, positives), others.sum(1), above, items, found.astype(np.float64))


def _finite(scores: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise ValueError(f"a method gave {np.sum(~np.isfinite(scores))} scores that are not finite")
    return scores


def rankings_table(log: Log, cases: Cases, seed: int, rankings: Rankings, recommended: np.ndarray) -> pa.Table:
    """Rows of RANKINGS. recommended: int64 (n, k), the best of the pool, -1 where there are fewer."""
    histories = cases.queries.histories
    there = rankings.items >= 0
    starts = np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32)
    return pa.table(
        {
            "seed": np.full(len(cases), seed, np.int32),
            "user_id": log.users.take(pa.array(histories.users)),
            "cut": histories.lengths.astype(np.int32),
            **vars(rankings.ranks),
            "unknown": rankings.unknown,
            "unknown_above": rankings.unknown_above,
            "items": _lists(log, rankings.items),
            "scores": pa.ListArray.from_arrays(starts, pa.array(rankings.scores[there], pa.float64())),
            "recommended": _lists(log, recommended),
        },
        schema=RANKINGS,
    )


def _lists(log: Log, items: np.ndarray) -> pa.ListArray:
    """The ids of each row, int64 (n, k), without -1."""
    there = items >= 0
    starts = np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.int32)
    return pa.ListArray.from_arrays(starts, log.items.take(pa.array(items[there])))
