"""The one interface of every recommender: fit, score, recommend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mmsrarec_ray.data.log import Cases, Queries, Sequences

_SCORES = 1 << 23  # scores held at a time: 64 MiB
_MOST_QUERIES = 512


@dataclass(frozen=True)
class Dataset:
    """What a method may learn from.

    n_items: size of the catalogue; train: sequences of the training split; validation: cases to choose on, never
    of the test split; pool: bool (n_items,), the items that can be recommended.
    """

    n_items: int
    train: Sequences
    validation: Cases
    pool: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Training interactions of each item: int64 (n_items,)."""
        return np.bincount(self.train.items, minlength=self.n_items)


def chunk_of(n_items: int, scores: int = _SCORES) -> int:
    """How many queries are scored against the whole catalogue at a time."""
    return max(1, min(_MOST_QUERIES, scores // n_items))


class Method(ABC):
    """A recommender.

    Scores are finite, higher is better, and comparable within a query only. They depend on the query and the item
    alone: not on the other candidates, nor on what else is scored with it.
    """

    name: str
    earlier: Mapping[str, float] = {}
    """Seconds of learning that the last `fit` took over from before, by the name of what they made and `fit` found."""
    learns_from_validation: bool = False
    """Whether `fit` learns from the positives of the validation cases; choosing when to stop is not learning."""

    @property
    def earlier_seconds(self) -> float:
        """All of them."""
        return sum(self.earlier.values())

    @property
    def spared_seconds(self) -> float:
        """Seconds that answers had taken which were found where they were kept, and not asked for again."""
        return 0.0

    def fit(self, dataset: Dataset) -> None:
        """Learn; what was learnt before is forgotten."""
        self.pool = dataset.pool
        self.learn(dataset)

    @abstractmethod
    def learn(self, dataset: Dataset) -> None:
        """The method's own part of `fit`."""

    @abstractmethod
    def score_all(self, queries: Queries) -> np.ndarray:
        """Scores of the whole catalogue: float32 or float64 (n_queries, n_items)."""

    def score(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
        """Scores of some items. candidates: int64 (n_queries, c); returns float (n_queries, c)."""
        return np.concatenate(
            [np.zeros((0, candidates.shape[1]), np.float32)]
            + [
                np.take_along_axis(self.score_all(part), candidates[rows].astype(np.int64), 1)
                for rows, part in queries.chunks(chunk_of(len(self.pool)))
            ]
        )

    def recommend(self, queries: Queries, k: int, exclude_seen: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of the pool for each query, the best first.

        Returns items, int64 (n_queries, k), -1 where fewer are left, and their scores, -inf there.
        """
        chunks = queries.chunks(chunk_of(len(self.pool)))
        parts = [best(masked(self.score_all(part), part, self.pool, exclude_seen), k) for _, part in chunks]
        empty = np.zeros((0, k), np.int64), np.zeros((0, k))
        items, scores = zip(*parts, strict=True) if parts else ((empty[0],), (empty[1],))
        return np.concatenate(items), np.concatenate(scores)

    def score_chunks(self, queries: Queries) -> Iterator[tuple[slice, Queries, np.ndarray]]:
        """Scores of the whole catalogue, some queries at a time, with their place."""
        for rows, part in queries.chunks(chunk_of(len(self.pool))):
            yield rows, part, self.score_all(part)

    def answer(self, queries: Queries, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Both at once, `score` of the candidates and the items of `recommend`: the catalogue is scored only once."""
        scores = [np.zeros((0, candidates.shape[1]), np.float32)]
        items = [np.zeros((0, k), np.int64)]
        for rows, part, found in self.score_chunks(queries):
            scores.append(np.take_along_axis(found, candidates[rows].astype(np.int64), 1))
            items.append(best(masked(found, part, self.pool), k)[0])
        return np.concatenate(scores), np.concatenate(items)


def masked(scores: np.ndarray, queries: Queries, pool: np.ndarray, exclude_seen: bool = True) -> np.ndarray:
    """Scores with -inf for what must not be recommended: float (n_queries, n_items)."""
    scores = np.where(pool[None, :], scores, -np.inf)
    if exclude_seen:
        scores[queries.histories.rows, queries.histories.items] = -np.inf
    return scores


def best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of each row, ties by item number: items int64 (n, k), -1 where the score is -inf, and scores."""
    width = scores.shape[1]
    if k < width:
        edge = np.partition(scores, width - k, axis=1)[:, width - k, None]
        # All above the edge, and the first of those on it.
        above, on_edge = scores > edge, scores == edge
        room = k - above.sum(1, keepdims=True)
        chosen = above | (on_edge & (np.cumsum(on_edge, 1) <= room))
        items = np.nonzero(chosen)[1].reshape(len(scores), k)
    else:
        items = np.broadcast_to(np.arange(width), scores.shape).copy()
    found = np.take_along_axis(scores, items, 1)
    order = np.argsort(-found, axis=1, kind="stable")
    items, found = np.take_along_axis(items, order, 1), np.take_along_axis(found, order, 1)
    items = np.where(np.isneginf(found), -1, items)
    if k > width:
        padding = ((0, 0), (0, k - width))
        items, found = np.pad(items, padding, constant_values=-1), np.pad(found, padding, constant_values=-np.inf)
    return items, found
