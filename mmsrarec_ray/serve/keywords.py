"""Items near a history by their keywords: what finds items that nobody has touched yet."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

_LEAST = 1e-12  # a length to divide by where there are no keywords


def words_of(keywords: str) -> list[str]:
    """The keywords of a line, as `rank.catalogue` writes it."""
    return keywords.split(", ") if keywords else []


class KeywordIndex:
    """Cosine of keyword sets, a keyword weighing the more the fewer items have it (idf).

    Weights come from the items there are at first and stay; a keyword that is new since weighs as one that a single
    item has.
    """

    def __init__(self, lines: Iterable[str]):
        """lines: the keywords of each item, in the order of their numbers."""
        sets = [words_of(each) for each in lines]
        count = Counter(word for words in sets for word in words)
        self._rarest = 1 + math.log((1 + len(sets)) / 2)
        self._weight = {word: 1 + math.log((1 + len(sets)) / (1 + times)) for word, times in count.items()}
        self._length = np.array([self._norm(words) for words in sets])
        self._later: dict[int, tuple[list[str], float]] = {}  # keywords and length
        self._count = len(sets)
        holders: dict[str, list[int]] = {}
        for number, words in enumerate(sets):
            for word in words:
                holders.setdefault(word, []).append(number)
        self._holders = {word: np.array(numbers) for word, numbers in holders.items()}

    def put(self, number: int, keywords: str) -> None:
        """New keywords of an item, or of one that follows those there are."""
        words = words_of(keywords)
        self._later[number] = words, self._norm(words)
        self._count = max(self._count, number + 1)

    def profile(self, lines: Iterable[tuple[str, float]]) -> dict[str, float]:
        """What a history is about. lines: keywords of its items, each with its share."""
        total: defaultdict[str, float] = defaultdict(float)
        for keywords, share in lines:
            for word in words_of(keywords):
                total[word] += share
        return {word: times * self._idf(word) for word, times in total.items()}

    def cosines(self, profile: dict[str, float]) -> np.ndarray:
        """Of every item to a profile: float64 (n_items,), 0 where nothing is shared."""
        length = math.sqrt(sum(weight**2 for weight in profile.values()))
        cosines = np.zeros(self._count)
        for word, weight in profile.items():
            if word in self._holders:
                cosines[self._holders[word]] += weight * self._idf(word)
        cosines[: len(self._length)] /= np.maximum(self._length * length, _LEAST)
        for number, (words, norm) in self._later.items():
            shared = sum(profile.get(word, 0.0) * self._idf(word) for word in words)
            cosines[number] = shared / max(norm * length, _LEAST)
        return cosines

    def holding(self, words: Iterable[str]) -> np.ndarray:
        """Which items have all of these keywords: bool (n_items,)."""
        wanted = set(words)
        count = np.zeros(self._count, np.int64)
        for word in wanted:
            if word in self._holders:
                count[self._holders[word]] += 1
        for number, (own, _) in self._later.items():
            count[number] = len(wanted.intersection(own))
        return count == len(wanted)

    def _idf(self, word: str) -> float:
        return self._weight.get(word, self._rarest)

    def _norm(self, words: list[str]) -> float:
        return math.sqrt(sum(self._idf(word) ** 2 for word in words))
