"""Why an item is recommended, in words and counts that a person can check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmsrarec_ray.data.log import Sequences
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.index import Moments
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
    users do; similar_users: how many of the users at the most similar moments chose it next; of: how many users these
    are; history: the items of the history that count most."""

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
        moments: Moments,
        near: np.ndarray,
    ):
        """catalogue: whose lines are those of prompts: what prompts do not tell is no reason; segments: None where the
        bundle has none; history: numbers of items, as the ranker reads them; near: rows of the most similar moments,
        int (m,)."""
        self._catalogue, self._segments = catalogue, segments
        users = moments.users[near].tolist()
        self._chose = Counter(item for _, item in set(zip(users, moments.next_items[near].tolist(), strict=True)))
        self._users = len(set(users))
        self._words = {word for item in history for word in catalogue.keywords(item)}
        self._history = [item for item in history if item < catalogue.known]
        self._before = list(dict.fromkeys(self._history))  # who chose one twice has one companion in it
        counts = together.count[np.array(self._before, np.int64)].tocsc()  # read by column, for each candidate
        self._starts, self._places, self._counts = counts.indptr, counts.indices, counts.data

    def why(self, numbers: Sequence[int]) -> list[Why]:
        """The evidence for each of some items."""
        keywords = [self._catalogue.keywords(number) for number in numbers]
        return [self._why(*each) for each in zip(numbers, keywords, self._liked(keywords), strict=True)]

    def _why(self, number: int, keywords: tuple[str, ...], liked: tuple[str, ...]) -> Why:
        shared = tuple(word for word in keywords if word in self._words)
        return Why(shared, liked, self._chose[number], self._users, self._companions(number))

    def _liked(self, keywords: Sequence[tuple[str, ...]]) -> Sequence[tuple[str, ...]]:
        if self._segments is None or not self._history:
            return [()] * len(keywords)
        return self._segments.fond(Sequences.of([self._history]), keywords)

    def _companions(self, number: int) -> tuple[Companion, ...]:
        if number >= self._catalogue.known or not self._before:
            return ()
        column = slice(self._starts[number], self._starts[number + 1])
        found = zip(self._counts[column].tolist(), self._places[column].tolist(), strict=True)
        most = sorted(found, key=lambda pair: (-pair[0], pair[1]))[:_MOST]
        items = [(self._before[place], count) for count, place in most]
        return tuple(Companion(self._catalogue.id(item), self._catalogue.title(item), count) for item, count in items)
