"""The paper's recommender: a language model reads keywords and says yes or no to a candidate."""

from __future__ import annotations

import numpy as np

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.methods.base import Dataset, Method, best, chunk_of, masked
from mmsrarec_ray.methods.retrieval import Retrieval
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.score import score

_ABOVE = 2.0  # puts what the language model scored above all that retrieval alone did


class MmsraRec(Method):
    """p(yes) of a fine-tuned multimodal model, given the keywords of the history and of what similar users chose next.

    Where the whole catalogue is asked for, the `rank.shortlist` items of the pool that retrieval finds, those of the
    history left out, are scored by the model, and the others stand below in the order of retrieval.
    """

    name = "mmsrarec"

    def __init__(self, config: Config, catalogue: Catalogue, retrieval: Retrieval, adapter: str | None, seconds: float):
        """adapter: the local folder of the recommender's adapter, None for the model as it is; seconds: that the making
        of keywords, retriever and adapter took."""
        self.config, self.catalogue, self.retrieval, self.adapter = config, catalogue, retrieval, adapter
        self.earlier_seconds = seconds

    def learn(self, dataset: Dataset) -> None:
        self.retrieval.fit(dataset)

    def score(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
        found = self._ask(queries, list(candidates))
        return np.stack(found) if found else np.zeros(candidates.shape)

    def score_all(self, queries: Queries) -> np.ndarray:
        base = self.retrieval.score_all(queries)
        short, _ = best(masked(base, queries, self.pool), self.config.rank.shortlist)
        short_lists = [row[row >= 0] for row in short]
        out = base / (1 + np.abs(base))
        for row, (items, scores) in enumerate(zip(short_lists, self._ask(queries, short_lists), strict=True)):
            out[row, items] = _ABOVE + scores
        return out

    def recommend(self, queries: Queries, k: int, exclude_seen: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """As every method's; the engine starts once for all queries."""
        shortlist = max(k, self.config.rank.shortlist)
        short = np.concatenate(
            [np.zeros((0, shortlist), np.int64)]
            + [
                best(masked(self.retrieval.score_all(part), part, self.pool, exclude_seen), shortlist)[0]
                for _, part in queries.chunks(chunk_of(len(self.pool)))
            ]
        )
        scores = np.full(short.shape, -np.inf)
        for row, found in enumerate(self._ask(queries, [row[row >= 0] for row in short])):
            scores[row, : len(found)] = _ABOVE + found
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(short, order, 1), np.take_along_axis(scores, order, 1)

    def _ask(self, queries: Queries, candidates: list[np.ndarray]) -> list[np.ndarray]:
        settings, retriever = self.config.retrieve, self.retrieval.retriever
        found = retriever.nearest(queries, settings.neighbours)
        chosen = retriever.index.moments.next_items
        neighbours = [chosen[row[row >= 0]] for row in found.rows]
        recent = queries.histories.last(settings.history, -1)
        histories = [row[row >= 0] for row in recent]
        return score(self.config, self.catalogue, self.adapter, histories, neighbours, candidates)
