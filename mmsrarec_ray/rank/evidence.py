"""What others say of a candidate, in words: the paper's retrieval (section 3.2) does not look at the candidate.

Six kinds, each a number that only compares candidates, told as a level from 0 to 9 that a model can read. Level n of
a sign that is there at all: one in 2^n or fewer random items of the core, put to training users, has as strong a one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from mmsrarec_ray.data.log import Sequences
from mmsrarec_ray.rank.expectation import FoldedTables
from mmsrarec_ray.rank.segments import FoldedSegments
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.store import Folder

Kind = Literal["cooccurrence", "succession", "encoder", "segments", "moments", "popularity"]
LEVELS = 10
SCALE = "evidence.json"
_SAID: dict[Kind, str] = {
    "cooccurrence": "with this history",
    "succession": "after the last item",
    "encoder": "after such a history",
    "segments": "for its keywords",
    "moments": "by similar users",
    "popularity": "by all users",
}
EXPLAINED = "How often a candidate was chosen is told from 0 to 9."
NOBODY = -1
"""The number of a user that the dataset does not have."""
_DECAY = 0.8  # weight of an item of the history against the one after it
_DOUBT = 5  # what followed an item counts as if so many followers more were anybody's

Votes = Mapping[int, float]
"""Next items of similar moments by number, and their shares."""


@dataclass(frozen=True)
class Asking:
    """Users at a moment.

    users: int64 (n,), by number, NOBODY for one that the dataset does not have. A training user's own interactions are
    left out of the counts: else its positive would be known by its own trace, and later it would be told of otherwise
    than when the ranker learnt; histories: items by number, the newest last, an array for each; votes: of the similar
    moments; vectors: what the encoder makes of whole histories, float32 (n, dim); folds: int64 (n,), whose segments and
    encoder are asked, None: those of all users.
    """

    users: np.ndarray
    histories: Sequence[np.ndarray]
    votes: Sequence[Votes]
    vectors: np.ndarray
    folds: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Asking:
        """These rows, in this order: int64 (m,)."""
        return Asking(
            self.users[rows],
            [self.histories[row] for row in rows],
            [self.votes[row] for row in rows],
            self.vectors[rows],
            None if self.folds is None else self.folds[rows],
        )


@dataclass(frozen=True)
class Signs:
    """How strong each kind of evidence is, from the training users' log.

    train: the training sequences; together: the pairs of all of them; n_items: of the dataset; tables: of the
    retriever's encoders; segments; both None where no kind asks them.
    """

    kinds: tuple[Kind, ...]
    train: Sequences
    together: Cooccurrence
    n_items: int
    tables: FoldedTables | None = None
    segments: FoldedSegments | None = None

    def __call__(self, asking: Asking, candidates: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Signs of each user's candidates: float64 (kinds, c) each. candidates: items by number, an array for each."""
        own = self.train.of_users(asking.users)
        sizes = [len(each) for each in candidates]
        rows = np.repeat(np.arange(len(sizes)), sizes)
        items = np.concatenate([np.zeros(0, np.int64), *candidates]).astype(np.int64)
        found = {
            "cooccurrence": lambda: self._together(asking.histories, rows, items, own),
            "succession": lambda: self._succeeding(asking.histories, rows, items, own),
            "encoder": lambda: self._likely(asking, rows, items),
            "segments": lambda: self._likelier(asking, rows, items),
            "moments": lambda: _voted(asking.votes, rows, items),
            "popularity": lambda: self._counts[items] - _own_counts(own, rows, items),
        }
        signs = np.array([found[kind]() for kind in self.kinds], np.float64).reshape(len(self.kinds), len(items))
        return np.split(signs, np.cumsum(sizes)[:-1], axis=1) if sizes else []

    @cached_property
    def _counts(self) -> np.ndarray:
        """How often each item was chosen: int64 (n_items,)."""
        return np.bincount(self.train.items, minlength=self.n_items)

    def _together(
        self, histories: Sequence[np.ndarray], rows: np.ndarray, items: np.ndarray, own: Sequences
    ) -> np.ndarray:
        """Mean over the history of P(candidate soon after h), recent items first: float64 (p,)."""
        lengths = np.array([len(each) for each in histories], np.int64)
        times = lengths[rows]
        pair = np.repeat(np.arange(len(rows)), times)  # which candidate a pair of it and an item of the history is of
        before = np.concatenate([np.zeros(0, np.int64), *(histories[row] for row in rows)]).astype(np.int64)
        age = np.repeat(np.cumsum(times), times) - 1 - np.arange(len(pair))
        count = self.together.without(own, rows[pair], before, items[pair])
        followers = np.maximum(self.together.followers(own, rows[pair], before), 1)
        weight = _DECAY**age
        total = np.bincount(pair, weight, len(rows))
        return np.bincount(pair, weight * count / followers, len(rows)) / np.maximum(total, 1e-12)

    @cached_property
    def _successions(self) -> Cooccurrence:
        """Pairs of an item and the one right after it."""
        return Cooccurrence.of(self.train, self.n_items, 1)

    def _succeeding(
        self, histories: Sequence[np.ndarray], rows: np.ndarray, items: np.ndarray, own: Sequences
    ) -> np.ndarray:
        """How many times as often others chose the candidate right after the last item of the history as they chose it
        at all: float64 (p,)."""
        last = np.array([each[-1] if len(each) else -1 for each in histories], np.int64)[rows]
        there = last >= 0
        rows, items, last = rows[there], items[there], last[there]
        followed = self._successions.without(own, rows, last, items)
        followers = self._successions.followers(own, rows, last)
        times = self._counts[items] - _own_counts(own, rows, items)
        choices = len(self.train.items) - own.lengths[rows]
        found = np.zeros(len(there))
        found[there] = followed / (followers + _DOUBT) * choices / np.maximum(times, 1)
        return found

    def _likely(self, asking: Asking, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """P(candidate next) by the retriever's encoder: float64 (p,)."""
        assert self.tables is not None
        return self.tables.likely(asking.vectors, rows, items, asking.folds)

    def _likelier(self, asking: Asking, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """How many times likelier users of the same segments choose an item than all users do: float64 (p,)."""
        assert self.segments is not None
        return np.exp(self.segments.lifts_of(asking.histories, rows, items, asking.folds))


def _voted(votes: Sequence[Votes], rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The share of the votes that each item has among those of its row: float64 (p,)."""
    return np.array([votes[row].get(item, 0.0) for row, item in zip(rows.tolist(), items.tolist(), strict=True)])


def _own_counts(own: Sequences, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """How often each item stands in the own sequence of its row's user: int64 (p,)."""
    return np.array([np.count_nonzero(own[row] == item) for row, item in zip(rows, items, strict=True)], np.int64)


@dataclass(frozen=True)
class Scale:
    """Where levels begin. edges: kind -> float64 (9,), rising; a sign has the level of how many it is above."""

    edges: dict[Kind, list[float]]

    @classmethod
    def of(cls, kinds: Sequence[Kind], signs: np.ndarray) -> Scale:
        """From signs of random items: float64 (kinds, n)."""
        quantiles = 1 - 0.5 ** np.arange(1, LEVELS)
        return cls({kind: np.quantile(row, quantiles).tolist() for kind, row in zip(kinds, signs, strict=True)})

    @classmethod
    def read(cls, folder: Folder) -> Scale:
        """As `write` left it."""
        return cls(json.loads(folder.read_bytes(SCALE)))

    def write(self, folder: Folder) -> None:
        folder.write_bytes(SCALE, json.dumps(self.edges, indent=2).encode())

    def lines(self, signs: np.ndarray) -> list[str]:
        """What is said of each candidate: '' where nothing is. signs: float64 (kinds, c)."""
        if not self.edges:
            return [""] * signs.shape[1]
        levels = [
            np.where(row > 0, np.searchsorted(edges, row, "left"), 0)
            for edges, row in zip(self.edges.values(), signs, strict=True)
        ]
        said = [_SAID[kind] for kind in self.edges]
        return [
            "chosen " + ", ".join(f"{words} {level}" for words, level in zip(said, each, strict=True))
            for each in zip(*levels, strict=True)
        ]
