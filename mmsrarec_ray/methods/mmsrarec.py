"""The paper's recommender: a language model reads keywords and says yes or no to a candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.log import Cases, Queries
from mmsrarec_ray.methods.base import Dataset, Method, best, chunk_of, masked
from mmsrarec_ray.methods.retrieval import Retrieval
from mmsrarec_ray.rank.answers import Answers
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.evidence import Asking, Scale, Signs
from mmsrarec_ray.rank.expectation import FoldedTables
from mmsrarec_ray.rank.score import Questions, score
from mmsrarec_ray.rank.segments import FoldedSegments
from mmsrarec_ray.retrieve.contexts import votes

_AT_A_TIME = 512  # queries whose moments, votes and evidence are held
_ABOVE = 2.0  # puts what the language model scored above all that retrieval alone did


class MmsraRec(Method):
    """p(yes) of a fine-tuned multimodal model, given the keywords of the history and of what similar users chose next.

    Where the whole catalogue is asked for, the `rank.shortlist` items of the pool that retrieval finds, those of the
    history left out, are scored by the model, and the others stand below in the order of retrieval.
    """

    name = "mmsrarec"

    def __init__(
        self,
        config: Config,
        catalogue: Catalogue,
        retrieval: Retrieval,
        scale: Scale,
        segments: FoldedSegments | None,
        adapter: str | None,
        earlier: Mapping[str, float],
        answers: Answers | None = None,
        ahead: Callable[[Dataset], tuple[Cases, list[np.ndarray]]] | None = None,
    ):
        """scale, segments: levels of evidence, and who likes which keywords, as the adapter learnt them; adapter: the
        local folder of the recommender's adapter, None for the model as it is; earlier: seconds that the making of
        keywords, retriever and adapter took; answers: what this model said of this catalogue before; ahead: cases and
        candidates that a blend will ask about next: they are asked in the first pass of the engine, and kept there."""
        self.config, self.catalogue, self.retrieval = config, catalogue, retrieval
        self.scale, self.segments, self.adapter = scale, segments, adapter
        self.earlier, self.answers, self.ahead = earlier, answers, ahead

    @property
    def spared_seconds(self) -> float:
        return self.answers.spared_seconds if self.answers else 0.0

    def learn(self, dataset: Dataset) -> None:
        self.retrieval.fit(dataset)
        kinds, retriever = self.config.rank.evidence, self.retrieval.retriever
        tables = FoldedTables.whole(retriever.encoder) if "encoder" in kinds else None
        self.signs = Signs(kinds, dataset.train, retriever.cooccurrence, dataset.n_items, tables, self.segments)
        self.later: Questions | None = None
        if self.ahead:
            cases, candidates = self.ahead(dataset)
            self.later = self.questions(cases.queries, candidates)

    def score(self, queries: Queries, candidates: np.ndarray) -> np.ndarray:
        found = self._ask(queries, list(candidates))
        return np.stack(found) if found else np.zeros(candidates.shape)

    def score_all(self, queries: Queries) -> np.ndarray:
        chunks = [scores for _, _, scores in self.score_chunks(queries)]
        return np.concatenate([np.zeros((0, len(self.pool))), *chunks])

    def score_chunks(self, queries: Queries) -> Iterator[tuple[slice, Queries, np.ndarray]]:
        """As every method's; the engine starts once for all queries."""
        short = self._shortlists(queries, 0, True)
        found = self._ask(queries, short)
        for rows, part in queries.chunks(chunk_of(len(self.pool))):
            scores = self.retrieval.score_all(part)
            scores = scores / (1 + np.abs(scores))
            for row, items, asked in zip(scores, short[rows], found[rows], strict=True):
                row[items] = _ABOVE + asked
            yield rows, part, scores

    def recommend(self, queries: Queries, k: int, exclude_seen: bool = True) -> tuple[np.ndarray, np.ndarray]:
        short = self._shortlists(queries, k, exclude_seen)
        return _ordered(short, self._ask(queries, short), k)

    def answer(self, queries: Queries, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        short, count = self._shortlists(queries, k, True), candidates.shape[1]
        found = self._ask(queries, [np.concatenate(pair) for pair in zip(candidates, short, strict=True)])
        asked = np.array([scores[:count] for scores in found]).reshape(candidates.shape)
        return asked, _ordered(short, [scores[count:] for scores in found], k)[0]

    def _shortlists(self, queries: Queries, least: int, exclude_seen: bool) -> list[np.ndarray]:
        """What retrieval finds for each query, at least so many where the pool has them."""
        size = max(least, self.config.rank.shortlist)
        chunks = (part for _, part in queries.chunks(chunk_of(len(self.pool))))
        found = (
            best(masked(self.retrieval.score_all(part), part, self.pool, exclude_seen), size)[0] for part in chunks
        )
        return [row[row >= 0] for rows in found for row in rows]

    def _ask(self, queries: Queries, candidates: list[np.ndarray]) -> list[np.ndarray]:
        asked, (later, self.later) = self.questions(queries, candidates), (self.later, None)
        return score(self.config, self.catalogue, self.adapter, asked, self.answers, later)

    def questions(self, queries: Queries, candidates: list[np.ndarray]) -> Questions:
        """What the model is asked of each query. candidates: numbers of items, an array for each."""
        parts = [
            self._questions(part, candidates[rows], queries.histories.users[rows])
            for rows, part in queries.chunks(_AT_A_TIME)
        ]
        return Questions.joined(parts)

    def _questions(self, queries: Queries, candidates: list[np.ndarray], users: np.ndarray) -> Questions:
        settings, retriever = self.config.retrieve, self.retrieval.retriever
        vectors = retriever.encoder.encode(queries)
        found = retriever.near(queries, vectors, max(settings.neighbours, settings.voters))
        moments = retriever.index.moments
        neighbours = [moments.next_items[row[row >= 0]] for row in found.first(settings.neighbours).rows]
        histories = [row[row >= 0] for row in queries.histories.last(settings.history, -1)]
        counted = votes(moments, found.first(settings.voters), settings.vote_temperature)
        asking = Asking(users, histories, counted, vectors)
        evidence = [self.scale.lines(signs) for signs in self.signs(asking, candidates)]
        liked: list[list[str]] = [[] for _ in histories]
        if self.segments and self.config.rank.liked:
            liked = self.segments.liked(histories, self.config.rank.liked)
        return Questions(histories, neighbours, candidates, evidence, liked)


def _ordered(items: list[np.ndarray], scores: list[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each list: items int64 (n, k), -1 where there are fewer, and scores, -inf there."""
    rows = np.full((len(items), k), -1, np.int64)
    values = np.full((len(items), k), -np.inf)
    for row, (each, found) in enumerate(zip(items, scores, strict=True)):
        order = np.argsort(-found, kind="stable")[:k]
        rows[row, : len(order)], values[row, : len(order)] = each[order], _ABOVE + found[order]
    return rows, values
