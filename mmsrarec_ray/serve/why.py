"""Why an item is recommended, in words and counts that a person can check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmsrarec_ray.data.log import Sequences
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.segments import Segments
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
    """keywords: shared with the history; liked: those of the item that users of the same segments like more than all
    users do; similar_users: how many of the users at the most similar moments chose it next; of: how many were looked
    at; history: the items of the history that count most."""

    keywords: tuple[str, ...]
    liked: tuple[str, ...]
    similar_users: int
    of: int
    history: tuple[Companion, ...]


class Evidence:
    """What speaks for items, given a history and the most similar moments."""

    def __init__(
        self,
        catalogue: LiveCatalogue,
        together: Cooccurrence,
        segments: Segments | None,
        history: Sequence[int],
        next_items: np.ndarray,
    ):
        """segments: None where the bundle has none; history: numbers of items; next_items: what was chosen next at each
        of the similar moments, int (m,)."""
        self._catalogue, self._segments, self._next = catalogue, segments, next_items
        self._words = {word for item in history for word in catalogue.keywords(item)}
        self._before = np.array([item for item in history if item < catalogue.known], np.int64)
        counts = together.count[self._before].tocsc()  # read by column, for each candidate
        self._starts, self._places, self._counts = counts.indptr, counts.indices, counts.data

    def why(self, numbers: Sequence[int]) -> list[Why]:
        """The evidence for each of some items."""
        keywords = [self._catalogue.keywords(number) for number in numbers]
        return [self._why(*each) for each in zip(numbers, keywords, self._liked(keywords), strict=True)]

    def _why(self, number: int, keywords: tuple[str, ...], liked: tuple[str, ...]) -> Why:
        shared = tuple(word for word in keywords if word in self._words)
        chose = int((self._next == number).sum())
        return Why(shared, liked, chose, len(self._next), self._companions(number))

    def _liked(self, keywords: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
        if self._segments is None or not len(self._before):
            return [()] * len(keywords)
        return self._segments.fond(Sequences.of([self._before.tolist()]), keywords)

    def _companions(self, number: int) -> tuple[Companion, ...]:
        if number >= self._catalogue.known or not len(self._before):
            return ()
        column = slice(self._starts[number], self._starts[number + 1])
        found = zip(self._counts[column].tolist(), self._places[column].tolist(), strict=True)
        most = sorted(found, key=lambda pair: (-pair[0], pair[1]))[:_MOST]
        items = [(int(self._before[place]), count) for count, place in most]
        return tuple(Companion(self._catalogue.id(item), self._catalogue.title(item), count) for item, count in items)
