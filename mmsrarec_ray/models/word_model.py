"""A language model of words that reads keywords first: what the demo measures perplexity with, made in a second.

A model that was only ever taught to summarise, like the tiny one, does not know how to write a text, so its perplexity
of a text says nothing. This one does: bigrams and unigrams of a collection, interpolated (Jelinek and Mercer 1980) with
a cache of the keyword's words (Kuhn and De Mori 1990), whose weight is that of the keywords alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+")
_START = ""
_BIGRAM, _UNIGRAM, _CACHE = 0.5, 0.3, 0.15  # what is left is spread over all words, those never seen too


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, in order."""
    return _WORD.findall(text.casefold())


class WordModel:
    """P(word | word before, keywords), learnt from a collection of texts."""

    def __init__(self, texts: Sequence[str]):
        self.words, self.pairs, self.before = Counter[str](), Counter[tuple[str, str]](), Counter[str]()
        for text in texts:
            words = words_of(text)
            previous = [_START, *words[:-1]]
            self.words.update(words)
            self.pairs.update(zip(previous, words, strict=True))
            self.before.update(previous)
        self.total = self.words.total()

    def log_probs(self, keywords: Sequence[str], texts: Sequence[str]) -> list[float | None]:
        """Mean log probability of a text's words, in nats, given a line of keywords; None for a text without a word."""
        return [self._mean(line, text) for line, text in zip(keywords, texts, strict=True)]

    def _mean(self, line: str, text: str) -> float | None:
        words, cache = words_of(text), set(words_of(line))
        if not words:
            return None
        logs = [
            math.log(self._probability(before, word, cache))
            for before, word in zip([_START, *words[:-1]], words, strict=True)
        ]
        return math.fsum(logs) / len(logs)

    def _probability(self, before: str, word: str, cache: set[str]) -> float:
        alone = self.words[word] / max(1, self.total)
        pair = self.pairs[before, word] / self.before[before] if self.before[before] else alone
        known = _BIGRAM * pair + _UNIGRAM * alone
        cached = _CACHE / len(cache) if word in cache else 0.0
        rest = (1 - _BIGRAM - _UNIGRAM - _CACHE) / (len(self.words) + 1)
        return (known + cached + rest) if cache else (known + rest) / (1 - _CACHE)
