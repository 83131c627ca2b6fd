"""Why an item is recommended, in words and counts that a person can check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.serve.catalogue import LiveCatalogue

_MOST = 3  # items of the history that are named


@dataclass(frozen=True)
class Companion:
    """An item of the history, and how often users chose the recommended item soon after it."""

    item_id: str
    title: str
    count: int


@dataclass(frozen=True)
class Why:
    """keywords: shared with the history; similar_users: how many of the users at the most similar moments chose it
    next; of: how many were looked at; history: the items of the history that count most."""

    keywords: tuple[str, ...]
    similar_users: int
    of: int
    history: tuple[Companion, ...]


class Evidence:
    """What speaks for items, given a history and the most similar moments."""

    def __init__(
        self, catalogue: LiveCatalogue, together: Cooccurrence, history: Sequence[int], next_items: np.ndarray
    ):
        """history: numbers of items; next_items: what was chosen next at each of the similar moments, int (m,)."""
        self._catalogue, self._history, self._next = catalogue, history, next_items
        self._words = {word for item in history for word in catalogue.keywords(item)}
        self._before = np.array([item for item in history if item < catalogue.known], np.int64)
        counts = together.count[self._before].tocsc()  # read by column, for each candidate
        self._starts, self._places, self._counts = counts.indptr, counts.indices, counts.data

    def why(self, number: int) -> Why:
        """The evidence for one item."""
        shared = tuple(word for word in self._catalogue.keywords(number) if word in self._words)
        chose = int((self._next == number).sum())
        return Why(shared, chose, len(self._next), self._companions(number))

    def _companions(self, number: int) -> tuple[Companion, ...]:
        if number >= self._catalogue.known or not len(self._before):
            return ()
        column = slice(self._starts[number], self._starts[number + 1])
        found = zip(self._counts[column].tolist(), self._places[column].tolist(), strict=True)
        most = sorted(found, key=lambda pair: (-pair[0], pair[1]))[:_MOST]
        items = [(int(self._before[place]), count) for count, place in most]
        return tuple(Companion(self._catalogue.id(item), self._catalogue.title(item), count) for item, count in items)
