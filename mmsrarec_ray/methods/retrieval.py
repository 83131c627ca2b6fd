"""What users did next when their histories looked like this one: the paper's retrieval, as a recommender."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.methods.base import Dataset, Method
from mmsrarec_ray.methods.neighbours import DECAY, popularity_tie_break, profiles
from mmsrarec_ray.retrieve.index import Neighbours
from mmsrarec_ray.retrieve.retriever import Retriever
from mmsrarec_ray.settings import Retrieval as RetrievalSettings


class Retrieval(Method):
    """The next items of the nearest moments, fused with co-occurrence; popularity breaks ties.

        score(i) = sum over neighbours of share_n [next_n = i]  +  w * sum over the history of share_h P(i | h)

    The shares of neighbours are a softmax of cosine / temperature, those of the history decay from its end, and
    P(i | h) is how often i came soon after h. Both sums are at most 1.
    """

    name = "retrieval"

    def __init__(self, settings: RetrievalSettings, retriever: Retriever, earlier: Mapping[str, float] | None = None):
        """retriever: the published encoder, index and counts, made from the training users alone, whatever dataset
        `fit` gets; earlier: seconds that its making took."""
        self.settings, self.retriever, self.earlier = settings, retriever, earlier or {}

    def learn(self, dataset: Dataset) -> None:
        self.tie_break = popularity_tie_break(dataset)
        self.followers = np.maximum(np.asarray(self.retriever.cooccurrence.count.sum(1)), 1)

    def score_all(self, queries: Queries) -> np.ndarray:
        return self.fused(*self.parts(queries, self.retriever.nearest(queries, self.settings.neighbours)))

    def fused(self, neighbours: np.ndarray, cooccurrence: np.ndarray) -> np.ndarray:
        """The scores that `parts` add up to: float64 (n_queries, n_items)."""
        return self.settings.cooccurrence * cooccurrence + neighbours + self.tie_break

    def parts(self, queries: Queries, found: Neighbours) -> tuple[np.ndarray, np.ndarray]:
        """The two sums above. found: the nearest moments; both float64 (n_queries, n_items)."""
        share = found.shares(self.settings.temperature)
        chosen = np.zeros((len(queries), len(self.tie_break)))
        there = found.rows >= 0
        items = self.retriever.index.moments.next_items[found.rows[there]]
        np.add.at(chosen, (np.nonzero(there)[0], items), share[there])
        return chosen, self._cooccurrence(queries)

    def _cooccurrence(self, queries: Queries) -> np.ndarray:
        count = self.retriever.cooccurrence.count
        profile = profiles(queries, count.shape[0], DECAY)
        profile.data /= self.followers[profile.indices]
        return (profile @ count).toarray().astype(np.float64)
