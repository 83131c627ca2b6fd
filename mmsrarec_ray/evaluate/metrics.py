"""What is measured: where the positive of each case ranks, and what recommended lists are made of.

Ties are averaged exactly: a metric is its expectation over a uniformly random order of the items that score the same
(McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of tied
scores", ECIR 2008). The positive then takes each of the ranks greater + 1 … greater + equal + 1 equally often.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_BLOCK = 1 << 20  # scores compared at a time: they stay in the processor's cache over all passes


@dataclass(frozen=True)
class Ranks:
    """Where the positive of each case stands among its candidates.

    greater: int64 (n,), other candidates that score higher; equal: int64 (n,), other candidates that score the same;
    others: int64 (n,), all other candidates.
    """

    greater: np.ndarray
    equal: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, positive_column: np.ndarray) -> Ranks:
        """From the scores of the candidates of each case.

        scores: float (n, c), -inf where there is no candidate; positive_column: int (n,), where the positive is.
        Raises ValueError, naming the row, for a NaN and for a positive that is no candidate.
        """
        n, width = scores.shape
        counts = np.zeros((3, n), np.int64)
        step = max(1, _BLOCK // max(1, width))
        for start in range(0, n, step):
            part = scores[start : start + step]
            rows = slice(start, start + len(part))
            positive = np.take_along_axis(part, positive_column[rows, None].astype(np.int64), 1)
            if (bad := np.isnan(part.min(1))).any():  # the minimum of a row with a NaN is NaN
                raise ValueError(f"scores must not be NaN. Row {start + int(bad.argmax())} has one.")
            if (bad := np.isneginf(positive[:, 0])).any():
                raise ValueError(f"the positive must be a candidate. In row {start + int(bad.argmax())} it is -inf.")
            counts[0, rows] = np.count_nonzero(part > positive, axis=1)
            counts[1, rows] = np.count_nonzero(part == positive, axis=1) - 1
            counts[2, rows] = np.count_nonzero(part > -np.inf, axis=1) - 1
        return cls(*counts)


def hit_rate(ranks: Ranks, k: int) -> np.ndarray:
    """HR@k, float64 (n,): the chance that the positive is among the first k."""
    return _expected(np.ones(k), ranks)


def recall(ranks: Ranks, k: int) -> np.ndarray:
    """Recall@k, float64 (n,): the share of the positives among the first k. With one positive it equals HR@k."""
    return hit_rate(ranks, k)


def ndcg(ranks: Ranks, k: int) -> np.ndarray:
    """NDCG@k, float64 (n,): 1 / log2(1 + rank) within the first k, else 0; with one positive the ideal is 1.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002, with log2(1 + rank).
    """
    return _expected(1 / np.log2(np.arange(2, k + 2)), ranks)


def mrr(ranks: Ranks, k: int | None = None) -> np.ndarray:
    """MRR@k, float64 (n,): 1 / rank within the first k, else 0; None: of the whole list."""
    longest = int((ranks.greater + ranks.equal).max(initial=0)) + 1 if k is None else k
    return _expected(1 / np.arange(1, longest + 1), ranks)


def auc(ranks: Ranks) -> np.ndarray:
    """AUC, float64 (n,): the share of the other candidates that score lower, equal ones counting half.

    Without other candidates it is 0.5. Such a case cannot tell methods apart, and every metric then has the value
    that a random order has (HR, NDCG and MRR are 1): constant scores get an AUC of exactly 0.5 whatever the cases.
    """
    lower = ranks.others - ranks.greater - ranks.equal
    return np.where(ranks.others > 0, (lower + ranks.equal / 2) / np.maximum(ranks.others, 1), 0.5)


def per_case(ranks: Ranks, ks: Iterable[int]) -> dict[str, np.ndarray]:
    """All metrics of each case, each float64 (n,) between 0 and 1.

    In this order: for each k, ascending, HR@k, NDCG@k, Recall@k, MRR@k; then MRR and AUC.
    """
    values = {}
    for k in sorted(set(ks)):
        values[f"HR@{k}"] = hit_rate(ranks, k)
        values[f"NDCG@{k}"] = ndcg(ranks, k)
        values[f"Recall@{k}"] = recall(ranks, k)
        values[f"MRR@{k}"] = mrr(ranks, k)
    return values | {"MRR": mrr(ranks), "AUC": auc(ranks)}


def _expected(gains: np.ndarray, ranks: Ranks) -> np.ndarray:
    """The mean gain over the ranks a positive can take: float64 (n,). gains: float64 (k,), of rank 1 … k, then 0."""
    total = np.concatenate([[0.0], np.cumsum(gains)])
    before = np.minimum(ranks.greater, len(gains))
    upto = np.minimum(ranks.greater + ranks.equal + 1, len(gains))
    return (total[upto] - total[before]) / (ranks.equal + 1)


def main_k(ks: Iterable[int]) -> int:
    """The length of list that a report is about: the paper's 5 where it is measured, else the middle one."""
    ordered = sorted(set(ks))
    return 5 if 5 in ordered else ordered[(len(ordered) - 1) // 2]


def coverage(items: np.ndarray, pool: np.ndarray) -> float:
    """Share of the pool that is recommended at least once.

    items: int (n, k), -1 where there is none; pool: bool (n_items,), the items that can be recommended.
    """
    recommended = np.zeros(len(pool), bool)
    recommended[items[items >= 0]] = True
    return float((recommended & pool).sum() / pool.sum())


def novelty(items: np.ndarray, counts: np.ndarray, pool: np.ndarray) -> float:
    """Mean self-information of the recommended items, in bits: -log2((count + 1) / (total + size of the pool)).

    One is added to each count, so that an item without training interactions has a finite surprise; the total is
    over the pool, so that the shares of the pool add up to one. After Zhou et al., "Solving the apparent
    diversity-accuracy dilemma of recommender systems", PNAS 2010.

    items: int (n, k), -1 where there is none; counts: int (n_items,), training interactions; pool: bool (n_items,).
    Raises ValueError where nothing is recommended.
    """
    share = (counts[_recommended(items)] + 1) / (counts[pool].sum() + pool.sum())
    return float(-np.log2(share).mean())


def popularity(items: np.ndarray, counts: np.ndarray, pool: np.ndarray) -> float:
    """Mean percentile of the recommended items within the pool by training interactions, between 0 and 1.

    Items with equal counts share their mean percentile, so drawing uniformly from the pool gives 0.5 whatever the
    counts; near 1 only the most popular items are recommended.

    items: int (n, k), -1 where there is none; counts: int (n_items,), training interactions; pool: bool (n_items,).
    Raises ValueError where nothing is recommended.
    """
    ladder = np.sort(counts[pool])
    count = counts[_recommended(items)]
    below, upto = np.searchsorted(ladder, count, "left"), np.searchsorted(ladder, count, "right")
    return float((below + upto).mean() / 2 / len(ladder))


def _recommended(items: np.ndarray) -> np.ndarray:
    recommended = items[items >= 0]
    if not len(recommended):
        raise ValueError("at least one item must be recommended. All are -1.")
    return recommended
