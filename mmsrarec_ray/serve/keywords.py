"""Items near a history by their keywords: what finds items that nobody has touched yet."""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

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
        self._length = array("d", (self._norm(words) for words in sets))
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for number, words in enumerate(sets):
            for word in words:
                holders[word].append(number)
        self._first = {word: np.array(numbers) for word, numbers in holders.items()}
        # New keywords are in lists that grow; what such an item had at first counts no longer.
        self._later: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._words: dict[int, list[str]] = {}
        self._known, self._replaced = len(sets), array("q")

    def put(self, number: int, keywords: str) -> None:
        """New keywords of an item, or of one that follows those there are."""
        if number < self._known and number not in self._words:
            self._replaced.append(number)
        for word in self._words.get(number, ()):
            self._later[word].remove(number)
        words = self._words[number] = words_of(keywords)
        for word in words:
            self._later[word].append(number)
        if number == len(self._length):
            self._length.append(0.0)
        self._length[number] = self._norm(words)

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
        shared = self._summed({word: weight * self._idf(word) for word, weight in profile.items()})
        return shared / np.maximum(np.array(self._length) * length, _LEAST)

    def holding(self, words: Iterable[str]) -> np.ndarray:
        """Which items have all of these keywords: bool (n_items,)."""
        wanted = dict.fromkeys(words, 1.0)
        return self._summed(wanted) == len(wanted)

    def _summed(self, weights: Mapping[str, float]) -> np.ndarray:
        """The weights of the keywords that each item has: float64 (n_items,)."""
        total = np.zeros(len(self._length))
        for word, weight in weights.items():
            if word in self._first:
                total[self._first[word]] += weight
        total[np.array(self._replaced)] = 0
        for word, weight in weights.items():
            if word in self._later:
                total[np.array(self._later[word])] += weight
        return total

    def _idf(self, word: str) -> float:
        return self._weight.get(word, self._rarest)

    def _norm(self, words: list[str]) -> float:
        return math.sqrt(sum(self._idf(word) ** 2 for word in words))
