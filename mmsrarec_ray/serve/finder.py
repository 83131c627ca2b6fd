"""Retrieval for one request: what is known of the user, a shortlist of candidates, and the evidence for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.log import Log, Queries, Sequences, read_log
from mmsrarec_ray.evaluate.lists import pool_of
from mmsrarec_ray.methods.base import Dataset, best
from mmsrarec_ray.methods.neighbours import DECAY
from mmsrarec_ray.methods.retrieval import Retrieval
from mmsrarec_ray.rank.catalogue import Catalogue
from mmsrarec_ray.rank.evidence import NOBODY, Asking, Scale, Signs
from mmsrarec_ray.rank.expectation import FoldedTables
from mmsrarec_ray.rank.segments import FoldedSegments, heard, read_segments
from mmsrarec_ray.retrieve.contexts import votes
from mmsrarec_ray.retrieve.index import Neighbours
from mmsrarec_ray.retrieve.retriever import Retriever
from mmsrarec_ray.serve.bundle import Bundle
from mmsrarec_ray.serve.catalogue import LiveCatalogue
from mmsrarec_ray.serve.contents import Contents
from mmsrarec_ray.serve.keywords import KeywordIndex
from mmsrarec_ray.serve.people import People
from mmsrarec_ray.serve.store import Item
from mmsrarec_ray.serve.visible import VisibleMoments
from mmsrarec_ray.serve.why import Evidence, Why

_NOW = np.iinfo(np.int64).max  # later than all moments
_NEAR = 1e-7  # of a cosine of keywords beside the scores of retrieval: it puts in order what nobody has touched

Source = Literal["similar_users", "cooccurrence", "keywords", "popularity"]


@dataclass(frozen=True)
class Wish:
    """What is asked for. history: item ids, the oldest first: all of an anonymous history, or what a user did since
    the bundle was made; count: candidates to find where none are given; exclude: items that are left out; keywords: so
    are those that do not have all of these. Both also hold for candidates that are given."""

    user_id: str | None
    history: Sequence[str]
    candidates: Sequence[str] | None
    count: int
    exclude: Sequence[str] = ()
    keywords: Sequence[str] = ()


@dataclass(frozen=True)
class Candidate:
    """score: of retrieval, comparable within an answer; source: what speaks most for it; evidence: what the ranker is
    told beside it."""

    item_id: str
    title: str
    keywords: tuple[str, ...]
    score: float
    source: Source
    why: Why
    evidence: str


@dataclass(frozen=True)
class Found:
    """history, neighbours: item ids as the ranker reads them, the newest last and the most similar first; liked: what
    users of the same segments like, as it reads that; candidates: in the order of retrieval; unknown: ids asked for
    that nobody knows; known_user: whether the bundle has the user; bundle: its version."""

    history: list[str]
    neighbours: list[str]
    liked: list[str]
    candidates: list[Candidate]
    unknown: list[str]
    known_user: bool
    bundle: str


@dataclass(frozen=True)
class _Case:
    """A user at this moment: user, NOBODY if the bundle does not know it; history, numbers of items; vector: what the
    encoder makes of it, float32 (1, dim); found: the most similar moments, one row; chosen, together: the two parts of
    retrieval, and retrieved, its scores, float64 (items of the bundle,); near: cosine of keywords, and scores, of both,
    float64 (all items,); by_words: the items that keywords may find, bool (all items,)."""

    user: int
    history: list[int]
    vector: np.ndarray
    found: Neighbours
    chosen: np.ndarray
    together: np.ndarray
    retrieved: np.ndarray
    near: np.ndarray
    scores: np.ndarray
    by_words: np.ndarray


class Finder:
    """A bundle's retrieval, and what has changed since. One thread at a time."""

    def __init__(
        self,
        config: Config,
        version: str,
        log: Log,
        retriever: Retriever,
        catalogue: Catalogue,
        told: Catalogue,
        contents: Contents,
        scale: Scale,
        segments: FoldedSegments | None,
    ):
        """version: of the bundle; catalogue: with titles and all keywords; told: the same with the lines of prompts;
        contents: of its items; scale, segments: levels of evidence, and who likes which keywords, as the ranker learnt
        them."""
        self.config, self.version, self.contents = config, version, contents
        self.catalogue = LiveCatalogue(catalogue)
        self.told = LiveCatalogue(told, config.rank.said)  # numbers are equal: both learn of the same items in order
        self.moments = VisibleMoments(retriever.index)
        self.retriever = replace(retriever, index=self.moments)
        self.people, self.in_core = People(log), log.in_core
        self.pool = pool_of(log, config.evaluate)
        dataset = Dataset(log.n_items, log.train(), log.cases("validation"), self.pool)
        self.counts = dataset.counts
        self.retrieval = Retrieval(config.methods.retrieval, self.retriever)
        self.retrieval.fit(dataset)
        kinds = config.rank.evidence
        tables = FoldedTables.whole(retriever.encoder) if "encoder" in kinds else None
        self.signs = Signs(kinds, log.training, retriever.cooccurrence, log.n_items, tables, segments)
        self.scale = scale
        self.words = KeywordIndex(catalogue.words.to_pylist())

    @classmethod
    def load(cls, bundle: Bundle) -> Finder:
        """Read the bundle's parts."""
        dataset, keywords = bundle.folder("dataset"), bundle.folder("keywords")
        retriever = Retriever.load(bundle.folder("retriever"))
        catalogue = Catalogue.read(dataset, keywords, "text")
        told = replace(catalogue, words=Catalogue.read(dataset, keywords, "keywords", bundle.config.rank.said).words)
        scale = Scale.read(bundle.folder("recommender"))
        segments = read_segments(bundle.config, catalogue.ids, dataset, keywords, bundle.folder("recommender"))
        contents, log = Contents.read(dataset), read_log(dataset)
        return cls(bundle.config, bundle.version, log, retriever, catalogue, told, contents, scale, segments)

    def item_changed(self, item: Item, own: bool = False) -> None:
        """Learn what the store says of an item. own: the bundle was made from it as it is."""
        number = self.catalogue.learn(item, own)
        self.told.learn(item, own)
        if number is not None:
            self.words.put(number, self.catalogue.lines([number])[0])

    def user_deleted(self, user_id: str, moment: int) -> None:
        """Forget a user of the bundle: history, moments. moment: when it was deleted, in milliseconds."""
        number = self.people.forget(user_id, moment)
        if number is not None:
            self.moments.hide(number)

    def find(self, wish: Wish) -> Found:
        """All that the ranker needs and the answer says."""
        number = self.people.number(wish.user_id) if wish.user_id is not None else None
        user = NOBODY if number is None else number
        case = self._case(user, self.history(wish.user_id, wish.history))
        unknown: list[str] = []
        if wish.candidates is None:
            numbers, fresh = self._shortlist(case, wish)
        else:
            numbers, unknown = self._given(wish.candidates)
            asked = self._asked_for(wish)
            numbers, fresh = [number for number in numbers if asked[number]], []
        numbers.sort(key=lambda number: (-case.scores[number], number))
        evidence = self._evidence(case)
        told = zip(numbers, evidence.why(numbers), self._told(case, numbers), strict=True)
        ids = self.catalogue.id
        return Found(
            history=[ids(number) for number in self._read(case)],
            neighbours=[ids(number) for number in self._neighbours(case)],
            liked=self._liked(case),
            candidates=[self._candidate(case, n, n in fresh, why, said) for n, why, said in told],
            unknown=unknown,
            known_user=user != NOBODY,
            bundle=self.version,
        )

    def history(self, user_id: str | None, later: Sequence[str]) -> list[int]:
        """Numbers of a user's items, the oldest first: the bundle's, then the later ones. Unknown and deleted items
        are left out, and where the dataset holds no repeats, neither does this."""
        told = self.people.history(user_id) if user_id is not None else []
        before = [number for number in told if number not in self.catalogue.gone]
        known = [number for item in later if (number := self.catalogue.number(item)) is not None]
        after = [number for number in known if number not in self.catalogue.gone]
        learnable = [number for number in after if number < self.catalogue.known and self.in_core[number]]
        numbers = [*before[: len(before) - _overlap(before, learnable)], *after]
        if self.config.data.drop_repeats:
            numbers = list(dict.fromkeys(numbers))
        return numbers[-self.config.serve.limits.history :]

    def _case(self, user: int, history: list[int]) -> _Case:
        known = self.catalogue.known
        old = [number for number in history if number < known]  # what the encoder and the counts know
        queries = Queries(Sequences.of([old], np.array([user])), np.array([_NOW]))
        shown = self.config.retrieve
        most = max(self.config.methods.retrieval.neighbours, shown.neighbours, shown.voters)
        vector = self.retriever.encoder.encode(queries)
        found = self.retriever.near(queries, vector, most)
        chosen, together = self.retrieval.parts(queries, found.first(self.config.methods.retrieval.neighbours))
        near = self.words.cosines(self._profile(history))
        by_words = np.ones(len(self.catalogue), bool)
        if old or not history:  # else the counts have nothing to say, and keywords find old items too
            by_words[:known] = self.counts == 0
        [retrieved] = self.retrieval.fused(chosen, together)
        scores = _NEAR * np.where(by_words, near, 0)
        scores[:known] += retrieved
        return _Case(user, history, vector, found, chosen[0], together[0], retrieved, near, scores, by_words)

    def _profile(self, history: list[int]) -> dict[str, float]:
        recent = history[-self.config.retrieve.history :]
        shares = [DECAY**back for back in range(len(recent))][::-1]
        return self.words.profile(zip(self.catalogue.lines(recent), shares, strict=True))

    def _given(self, candidates: Sequence[str]) -> tuple[list[int], list[str]]:
        """Numbers of the candidates there are, and the ids of the others."""
        numbers = {item: self.catalogue.number(item) for item in dict.fromkeys(candidates)}
        there = {item: n for item, n in numbers.items() if n is not None and n not in self.catalogue.gone}
        return list(there.values()), [item for item in numbers if item not in there]

    def _asked_for(self, wish: Wish) -> np.ndarray:
        """Which items are not excluded and have the keywords: bool (all items,)."""
        excluded = [number for item in wish.exclude if (number := self.catalogue.number(item)) is not None]
        asked = np.ones(len(self.catalogue), bool)
        asked[excluded] = False
        return asked & self.words.holding(wish.keywords) if wish.keywords else asked

    def _shortlist(self, case: _Case, wish: Wish) -> tuple[list[int], list[int]]:
        """The best of the pool by retrieval beside the nearest by keywords: numbers of all, and of the latter."""
        allowed = self._asked_for(wish)
        allowed[[*self.catalogue.gone, *case.history]] = False
        near = np.where(allowed & case.by_words & (case.near > 0), case.near, -np.inf)
        fresh = _best(near, min(self.config.serve.fresh, wish.count))
        allowed[fresh] = False
        rest = np.where(allowed[: self.catalogue.known] & self.pool, case.retrieved, -np.inf)
        return [*_best(rest, wish.count - len(fresh)), *fresh], fresh

    def _evidence(self, case: _Case) -> Evidence:
        segments = self.signs.segments.whole if self.signs.segments else None
        together, moments = self.retriever.cooccurrence, self.moments.moments
        return Evidence(self.told, together, segments, self._read(case), moments, self._near(case))

    def _told(self, case: _Case, numbers: list[int]) -> list[str]:
        """What the ranker is told of each, as `rank.score` tells it; of items that the counts do not know, that nobody
        chose them, and who likes their keywords."""
        settings, known = self.config.retrieve, self.catalogue.known
        history = self._known(case)
        [counted] = votes(self.moments.moments, case.found.first(settings.voters), settings.vote_temperature)
        asked = np.array(numbers, np.int64)
        signs = np.zeros((len(self.signs.kinds), len(numbers)))
        asking = Asking(np.array([case.user]), [history], [counted], case.vector)
        [signs[:, asked < known]] = self.signs(asking, [asked[asked < known]])
        put = np.array([self.catalogue.learnt(number) for number in numbers], bool)
        if put.any() and self.signs.segments and "segments" in self.signs.kinds:
            halves = list(zip(*(self._heard(number) for number in asked[put].tolist()), strict=True))
            lifts = self.signs.segments.whole.lifts_of_new(Sequences.of([history.tolist()]), halves)
            signs[self.signs.kinds.index("segments"), put] = np.exp(lifts)
        return self.scale.lines(signs)

    def _heard(self, number: int) -> tuple[str, str]:
        """What segments know of an item that was put."""
        return heard(self.config.rank.said, self.catalogue.title(number), *self.catalogue.halves(number))

    def _known(self, case: _Case) -> np.ndarray:
        """What the counts know of the history that the ranker reads: int64 (n,)."""
        return np.array([number for number in self._read(case) if number < self.catalogue.known], np.int64)

    def _read(self, case: _Case) -> list[int]:
        """The part of the history that the ranker reads."""
        return case.history[-self.config.retrieve.history :]

    def _liked(self, case: _Case) -> list[str]:
        """What users of the same segments like, as the ranker reads it."""
        most, segments = self.config.rank.liked, self.signs.segments
        return segments.liked([self._known(case)], most)[0] if segments and most else []

    def _candidate(self, case: _Case, number: int, fresh: bool, why: Why, told: str) -> Candidate:
        words, title = self.catalogue.keywords(number), self.catalogue.title(number)
        source = self._source(case, number, fresh)
        score = float(case.scores[number])
        return Candidate(self.catalogue.id(number), title, words, score, source, why, told)

    def _source(self, case: _Case, number: int, fresh: bool) -> Source:
        if number < self.catalogue.known:
            chosen = case.chosen[number]
            together = self.config.methods.retrieval.cooccurrence * case.together[number]
            if chosen or together:
                return "similar_users" if chosen >= together else "cooccurrence"
        return "keywords" if fresh or case.by_words[number] else "popularity"

    def _near(self, case: _Case) -> np.ndarray:
        """Rows of the moments that count: int (m,)."""
        rows = case.found.rows[0, : self.config.methods.retrieval.neighbours]
        return rows[rows >= 0]

    def _neighbours(self, case: _Case) -> list[int]:
        """What the most similar users chose next, as the ranker reads it."""
        rows = case.found.rows[0, : self.config.retrieve.neighbours]
        items = self.moments.moments.next_items[rows[rows >= 0]].tolist()
        return [number for number in items if number not in self.catalogue.gone]


def _overlap(before: list[int], after: list[int]) -> int:
    """How many items the bundle's log ends with and the store's begin with: the store keeps events that a training has
    learnt. So who repeats the log's last items first of all is taken to have done nothing new."""
    most = range(min(len(before), len(after)), 0, -1)
    return next((count for count in most if before[-count:] == after[:count]), 0)


def _best(scores: np.ndarray, k: int) -> list[int]:
    """Numbers of the k highest, ties by number, -inf left out."""
    if k <= 0:
        return []
    items = best(scores[None, :], k)[0][0]
    return items[items >= 0].tolist()
