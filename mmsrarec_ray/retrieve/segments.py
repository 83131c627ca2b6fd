"""Segments: groups of users who choose alike, told from the words of what they chose.

A latent class logit (Kamakura & Russell 1989, Journal of Marketing Research 26(4)): a user belongs to one of k hidden
segments, and a user of segment z chooses item i with

    p(i | z) = n_i exp(u_z · x_i) / sum_j n_j exp(u_z · x_j)

x_i: which words are said of it; n_i: one more than its training interactions; u_z: what the segment thinks of each
word, for people to read. The segment of a history h follows by Bayes' rule, and an item has the lift

    lift(i | h) = sum_z p(z | h) p(i | z) / p(i)

over its popularity p(i). A summary has two halves, what the picture shows and what the text says, and a taste in the
one tells little of a taste in the other: each is a facet with segments of its own, and their lifts are multiplied.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from scipy import optimize, sparse
from scipy.special import logsumexp, softmax

from mmsrarec_ray.data.log import Cases, Sequences
from mmsrarec_ray.settings import Segments as SegmentsSettings
from mmsrarec_ray.store import Folder

LIBRARIES = ("scipy", "scikit-learn", "numpy")
"""What learns segments and tells them from words."""
_ARRAYS, _WORDS, _READABLE = "segments.safetensors", "segments.json", "segments.md"
_MOST = 8  # words of a segment that people are shown
_TOKEN = r"\w+"  # a single character too, which is a whole word in some languages
_SPREAD = 0.5  # of the weights that learning begins with: segments that begin alike stay alike
_TOLD = 0.2  # log lift of a word that is worth telling
_EVERY, _PATIENCE = 5, 4  # iterations between looks at the validation users, and looks without a gain before it stops


@dataclass(frozen=True)
class Facet:
    """Segments by one half of what is said of items.

    words: the w words it knows; weights: float64 (k, w), u; scale: float64 (k,), the logarithm of the mean of
    exp(u_z · x_i) over interactions; shares: float64 (k,), logarithms of the segments' shares of the users.
    """

    words: list[str]
    weights: np.ndarray
    scale: np.ndarray
    shares: np.ndarray

    def gains(self, texts: Sequence[str]) -> np.ndarray:
        """log p(i | z) / p(i) of items by what is said of them: float64 (n, k)."""
        return _words(self.words, texts) @ self.weights.T - self.scale

    def belief(self, gains: np.ndarray) -> np.ndarray:
        """p(z | h), from the summed gains of each history's items: float64 (n, k) both."""
        return softmax(gains + self.shares, axis=1)


class Segments:
    """What the segments of users make of the items of a catalogue.

    facets: what was learnt; gains: of each, float64 (n_items, k), as `Facet.gains` gives them.
    """

    def __init__(self, facets: Sequence[Facet], texts: Sequence[Sequence[str]]):
        """texts: of each facet, what is said of each item."""
        self.facets = facets
        self.gains = [facet.gains(each) for facet, each in zip(facets, texts, strict=True)]

    @classmethod
    def learn(
        cls,
        train: Sequences,
        validation: Cases,
        texts: Sequence[Sequence[str]],
        settings: SegmentsSettings,
        seed: int,
    ) -> Segments:
        """From training users; validation users, where there are any, tell when to stop. texts: of each facet, what is
        said of each item."""
        facets = [_Learning(train, validation, each, settings, seed).facet() for each in texts]
        return cls(facets, texts)

    def lifts(self, histories: Sequences) -> np.ndarray:
        """log lift(i | h) of every item: float64 (n_histories, n_items)."""
        total = np.zeros((len(histories), len(self.gains[0])))
        for belief, gains in zip(self.beliefs(histories), self.gains, strict=True):
            total += _log(belief @ np.exp(gains).T)
        return total

    def lifts_of(self, histories: Sequences, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """log lift of some items, each for the history of its row: float64 (p,). rows, items: int64 (p,)."""
        total = np.zeros(len(rows))
        for belief, gains in zip(self.beliefs(histories), self.gains, strict=True):
            total += _log((belief[rows] * np.exp(gains[items])).sum(1))
        return total

    def lifts_of_new(self, history: Sequences, texts: Sequence[Sequence[str]]) -> np.ndarray:
        """log lift of items that the catalogue does not have, for one history: float64 (n,). texts: of each facet,
        what is said of each item."""
        total = np.zeros(len(texts[0]))
        for facet, belief, each in zip(self.facets, self.beliefs(history), texts, strict=True):
            total += _log(np.exp(facet.gains(each)) @ belief[0])
        return total

    def liked(self, histories: Sequences, most: int) -> list[list[str]]:
        """The words that the segments of each history like more than all users do, the most first: a line a facet, of
        at most so many words, '' where there is none."""
        found = []
        for facet, more in zip(self.facets, self._more(histories), strict=True):
            order = np.argsort(-more, axis=1, kind="stable")[:, :most]
            told = np.take_along_axis(more, order, 1) > _TOLD
            found.append(
                [", ".join(facet.words[at] for at in row[kept]) for row, kept in zip(order, told, strict=True)]
            )
        return [list(lines) for lines in zip(*found, strict=True)]

    def fond(self, history: Sequences, keywords: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
        """Of each item's keywords, those with a word that the segments of one history like more than all users do."""
        words = {
            facet.words[at]
            for facet, more in zip(self.facets, self._more(history), strict=True)
            for at in np.flatnonzero(more[0] > _TOLD)
        }
        split = _splitter()
        return [tuple(each for each in item if not words.isdisjoint(split(each))) for item in keywords]

    def _more(self, histories: Sequences) -> list[np.ndarray]:
        """How much more the segments of each history like each word than all users do, of each facet: float64
        (n_histories, w)."""
        beliefs = self.beliefs(histories)
        return [
            (belief - np.exp(facet.shares)) @ facet.weights for facet, belief in zip(self.facets, beliefs, strict=True)
        ]

    def beliefs(self, histories: Sequences) -> list[np.ndarray]:
        """p(z | h) of each facet: float64 (n_histories, k)."""
        chosen = _incidence(histories, len(self.gains[0]))
        return [facet.belief(chosen @ gains) for facet, gains in zip(self.facets, self.gains, strict=True)]

    def told(self, most: int) -> str:
        """The segments for people, in Markdown: the share of the users, and the words that a segment likes more than
        all users do, at most so many, the most first."""
        lines = ["# Segments of users", ""]
        for number, facet in enumerate(self.facets, 1):
            shares = np.exp(facet.shares)
            more = facet.weights - shares @ facet.weights
            lines += [f"## Facet {number}", "", "| users | like |", "|--:|:--|"]
            for z in np.argsort(-shares, kind="stable"):
                best = np.argsort(-more[z], kind="stable")[:most]
                liked = ", ".join(facet.words[at] for at in best if more[z, at] > _TOLD)
                lines.append(f"| {shares[z]:.1%} | {liked} |")
            lines.append("")
        return "\n".join(lines)

    def save(self, folder: Folder) -> None:
        """Write the facets, for programs and for people. What is said of items is not part of it."""
        folder.write_bytes(_READABLE, self.told(_MOST).encode())
        arrays = {
            f"{name}_{number}": np.ascontiguousarray(getattr(facet, name))
            for number, facet in enumerate(self.facets)
            for name in ("weights", "scale", "shares")
        }
        folder.write_bytes(_ARRAYS, safetensors.numpy.save(arrays))
        folder.write_bytes(_WORDS, json.dumps([facet.words for facet in self.facets]).encode())

    @classmethod
    def load(cls, folder: Folder, texts: Sequence[Sequence[str]]) -> Segments:
        """As `save` left it. texts: of each facet, what is said of each item of the catalogue."""
        arrays = safetensors.numpy.load(folder.read_bytes(_ARRAYS))
        facets = [
            Facet(words, *(arrays[f"{name}_{number}"] for name in ("weights", "scale", "shares")))
            for number, words in enumerate(json.loads(folder.read_bytes(_WORDS)))
        ]
        return cls(facets, texts)


def _log(lifts: np.ndarray) -> np.ndarray:
    """A logarithm that is finite, however unlikely something is."""
    return np.log(np.maximum(lifts, np.finfo(np.float64).tiny))


class _Learning:
    """The segments of one facet, by maximum a posteriori: L-BFGS on the likelihood of the users' choices."""

    def __init__(
        self, train: Sequences, validation: Cases, texts: Sequence[str], settings: SegmentsSettings, seed: int
    ):
        self.settings = settings
        self.words = _vocabulary(texts, settings)
        self.said = _words(self.words, texts)
        self.chosen = _incidence(train, len(texts))
        interactions = 1.0 + np.bincount(train.items, minlength=len(texts))
        self.popularity = interactions / interactions.sum()
        self.asked, self.positives = _incidence(validation.queries.histories, len(texts)), validation.positives
        self.shape = (settings.count, len(self.words))
        self.start = np.random.default_rng([seed, 13]).normal(0, _SPREAD, self.shape)

    def facet(self) -> Facet:
        """The facet as it was when the validation users were told best; at the end where there are none."""
        values = np.concatenate([np.zeros(self.shape[0]), self.start.ravel()])
        if not self.shape[1]:
            return self._made(values)
        best = _Best(self._told) if len(self.positives) else None
        options = {"maxiter": self.settings.steps}
        ended = optimize.minimize(self._loss, values, jac=True, method="L-BFGS-B", callback=best, options=options)
        if best is None:
            return self._made(ended.x)
        best.look(ended.x)  # it may have ended between two looks
        return self._made(best.values)

    def _made(self, values: np.ndarray) -> Facet:
        shares, weights = self._parts(values)
        return Facet(self.words, weights, self._scale(weights)[0], shares)

    def _parts(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of shares, and weights."""
        count = self.shape[0]
        return values[:count] - logsumexp(values[:count]), values[count:].reshape(self.shape)

    def _scale(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log sum_i p(i) exp(u_z · x_i), float64 (k,), and p(i | z), float64 (n_items, k)."""
        logits = self.said @ weights.T + np.log(self.popularity)[:, None]
        scale = logsumexp(logits, axis=0)
        return scale, np.exp(logits - scale)

    def _loss(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the mean log-likelihood of an interaction, with the prior of the weights, and its gradient."""
        shares, weights = self._parts(values)
        scale, choices = self._scale(weights)
        users = self.chosen @ (self.said @ weights.T - scale) + shares
        likelihood = logsumexp(users, axis=1, keepdims=True)
        belief = np.exp(users - likelihood)
        counted = self.chosen.T @ belief  # interactions of each item with users of each segment
        learnt = (self.said.T @ (counted - choices * counted.sum(0))).T - self.settings.prior * weights
        gained = belief.sum(0) - len(belief) * np.exp(shares)
        total = likelihood.sum() - 0.5 * self.settings.prior * (weights**2).sum()
        interactions = max(1, self.chosen.nnz)
        return -total / interactions, -np.concatenate([gained, learnt.ravel()]) / interactions

    def _told(self, values: np.ndarray) -> float:
        """Mean log lift of what the validation users chose next."""
        facet = self._made(values)
        gains = self.said @ facet.weights.T - facet.scale
        belief = facet.belief(self.asked @ gains)
        return float(np.log((belief * np.exp(gains[self.positives])).sum(1)).mean())


class _Best:
    """Called after each iteration: looks at times how well validation users are told, and stops when they no longer
    gain."""

    def __init__(self, told: Callable[[np.ndarray], float]):
        self.told, self.iterations, self.worse = told, 0, 0
        self.score = -np.inf
        self.values = np.zeros(0)  # before the first look

    def __call__(self, intermediate_result: Any) -> None:
        self.iterations += 1
        if self.iterations % _EVERY == 0:
            self.look(intermediate_result.x)
            if self.worse >= _PATIENCE:
                raise StopIteration

    def look(self, values: np.ndarray) -> None:
        """Keep them where validation users are told better than ever."""
        score = self.told(values)
        if score > self.score:
            self.score, self.values, self.worse = score, values.copy(), 0
        else:
            self.worse += 1


def _vocabulary(texts: Sequence[str], settings: SegmentsSettings) -> list[str]:
    """Words that enough items have, the commonest where there are too many; none where no item says anything."""
    counter = _counter(max_features=settings.words)
    try:
        counts = counter.fit_transform(texts).sum(0).A1
    except ValueError:  # no word in any text
        return []
    names = counter.get_feature_names_out()
    return [str(name) for name, count in zip(names, counts, strict=True) if count >= settings.min_items]


@functools.cache
def _splitter() -> Callable[[str], list[str]]:
    """From a text to its words, as facets know them."""
    return _counter().build_analyzer()


def _words(words: list[str], texts: Sequence[str]) -> Any:
    """Which of the words each text has: sparse float64 (n, w)."""
    if not words:
        return sparse.csr_array((len(texts), 0))
    return sparse.csr_array(_counter(vocabulary=words, dtype=np.float64).transform(texts))


def _counter(**settings: Any) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(binary=True, token_pattern=_TOKEN, **settings)


def _incidence(sequences: Sequences, n_items: int) -> Any:
    """How often each row has each item: sparse float64 (n, n_items)."""
    ones = np.ones(len(sequences.items))
    return sparse.csr_array((ones, (sequences.rows, sequences.items)), shape=(len(sequences), n_items))
