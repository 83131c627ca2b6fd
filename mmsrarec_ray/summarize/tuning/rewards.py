"""Rewards of a summary, one small callable a term: TRL calls them with the answers and the columns of the examples.

Each returns a float an answer, higher is better. An answer that is not in the form of the grammar is read as one
without keywords, and `Form` charges it. Columns: `has_image`, `has_text`, `text` (title and text as the prompt holds
them), `title`, `images` (a list with the item's picture, or none) and `other_picture` (of another item; None where no
other has one).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mmsrarec_ray.models.sentences import Encoder
from mmsrarec_ray.models.word_model import words_of
from mmsrarec_ray.summarize.keywords import Grammar, halves
from mmsrarec_ray.summarize.tuning.reference import PictureReference, Reader

Reward = Callable[..., list[float]]
"""(completions, completion_ids, **columns) -> a float an answer."""

_NATS = 2.0  # of difference that make a keyword grounded by tanh(1)


class Said(NamedTuple):
    """The keywords of an answer as they were said, repeats too; none where it is not in the form."""

    image: tuple[str, ...]
    text: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return self.image + self.text

    @property
    def line(self) -> str:
        """What encoders and language models read."""
        return ", ".join(self.all)


def answers(completions: Sequence[Any]) -> list[str]:
    """The texts of TRL's completions: strings, or conversations of one turn."""
    return [(each if isinstance(each, str) else each[0]["content"]).strip() for each in completions]


def read(completions: Sequence[Any]) -> list[Said]:
    """What was said in each answer."""
    return [_read(answer) for answer in answers(completions)]


@lru_cache(maxsize=4096)  # each term reads the same answers
def _read(answer: str) -> Said:
    try:
        found = halves(answer)
    except ValueError:
        return Said((), ())
    return Said(found.get("image", ()), found.get("text", ()))


@dataclass(frozen=True)
class Form:
    """0 for an answer that the grammar allows for such an item, -1 for any other, one that was cut off too."""

    grammar: Grammar

    def __call__(
        self, completions: Sequence[Any], has_image: Sequence[bool], has_text: Sequence[bool], **columns: Any
    ) -> list[float]:
        triples = zip(answers(completions), has_image, has_text, strict=True)
        return [0.0 if self.grammar.allows(answer, image, text) else -1.0 for answer, image, text in triples]


@dataclass(frozen=True)
class Information:
    """R_info = cos(phi(W), phi(text)) (arXiv:2512.20916, section 3.1): in [-1, 1]; 0 where either says nothing."""

    encoder: Encoder

    def __call__(self, completions: Sequence[Any], text: Sequence[str], **columns: Any) -> list[float]:
        lines = [said.line for said in read(completions)]
        distinct = list(dict.fromkeys([*lines, *text]))
        vectors = dict(zip(distinct, self.encoder(distinct), strict=True))
        return [float(vectors[line] @ vectors[each]) for line, each in zip(lines, text, strict=True)]


@dataclass(frozen=True)
class Reconstruction:
    """R_recon = -PPL(text | W) = -exp(-1/N sum_j log P(w_j | w_<j, W)) (arXiv:2512.20916, section 3.1): below 0,
    without a bound; 0 for an item without a text, whatever is said."""

    reader: Reader

    def __call__(self, completions: Sequence[Any], text: Sequence[str], **columns: Any) -> list[float]:
        logs = self.reader.log_probs([said.line for said in read(completions)], text)
        return [0.0 if log is None else -_exp(-log) for log in logs]


@dataclass(frozen=True)
class Count:
    """R_len = -|W|, the number of keywords of both halves (arXiv:2512.20916, section 3.1)."""

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        return [-float(len(said.all)) for said in read(completions)]


@dataclass(frozen=True)
class Prediction:
    """1 - log PPL(text | W) / log PPL(text): the share of the text's surprise that the keywords take away.

    Clipped to [-1, 1]; 0 for an item without a text. Unlike the perplexity itself it has a bound, and a long or odd
    text counts no more than another.
    """

    reader: Reader

    def __call__(self, completions: Sequence[Any], text: Sequence[str], **columns: Any) -> list[float]:
        lines = [said.line for said in read(completions)]
        informed, alone = self.reader.log_probs(lines, text), self.reader.log_probs([""] * len(text), text)
        pairs = zip(informed, alone, strict=True)
        return [0.0 if mine is None or not none else _clip(1 - mine / none) for mine, none in pairs]


@dataclass(frozen=True)
class Tokens:
    """-tokens / limit: in [-1, 0]. A keyword that holds a whole title is one keyword and many tokens."""

    limit: int

    def __call__(self, completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any) -> list[float]:
        return [-min(1.0, len(ids) / self.limit) for ids in completion_ids]


@dataclass(frozen=True)
class Grounding:
    """What the picture says and the text does not: sum_k tanh(d_k / 2) [k is not in the text] / max_keywords, over
    keywords k of the picture's half; in [-1, 1].

    d_k is how much likelier, in nats, the untuned model holds k before the item's own picture than before another
    item's. A keyword is in the text where all of its words are. Without a picture, or one of another item: 0.
    """

    reference: PictureReference
    max_keywords: int

    def __call__(
        self,
        completions: Sequence[Any],
        text: Sequence[str],
        images: Sequence[Sequence[Any]],
        other_picture: Sequence[Any],
        **columns: Any,
    ) -> list[float]:
        said = [each.image for each in read(completions)]
        shown = [row for row, words in enumerate(said) if words and images[row] and other_picture[row] is not None]
        gains = self.reference.gains(
            [said[row] for row in shown], [images[row][0] for row in shown], [other_picture[row] for row in shown]
        )
        found = [0.0] * len(said)
        for row, differences in zip(shown, gains, strict=True):
            there = set(words_of(text[row]))
            fresh = [not set(words_of(word)) <= there for word in said[row]]
            total = sum(math.tanh(d / _NATS) for d, new in zip(differences, fresh, strict=True) if new)
            found[row] = _clip(total / self.max_keywords)
        return found


@dataclass(frozen=True)
class Repetition:
    """Minus the share of keywords that were said before, in either half: in [-1, 0]."""

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        return [-(1 - len(set(said.all)) / len(said.all)) if said.all else 0.0 for said in read(completions)]


@dataclass(frozen=True)
class Copying:
    """-(share of the title's words that are said) x (share of the said words that are the title's): in [-1, 0].

    Order and packing do not matter: the title as one keyword, and its words shuffled, are -1. A title of fewer than
    three words is not held against anybody.
    """

    def __call__(self, completions: Sequence[Any], title: Sequence[str], **columns: Any) -> list[float]:
        return [self._copied(said, each) for said, each in zip(read(completions), title, strict=True)]

    @staticmethod
    def _copied(said: Said, title: str) -> float:
        titled, words = Counter(words_of(title)), Counter(words_of(said.line))
        if titled.total() < 3 or not words:
            return 0.0
        return -((titled & words).total() / titled.total()) * sum(words[word] for word in titled) / words.total()


@dataclass(frozen=True)
class Finite:
    """A term without surprises: what is no number counts as the lowest of its batch, 0 where there is none, and is
    counted as `rewards/NAME/not_finite`. Its name is what TRL logs it under."""

    name: str
    reward: Reward

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self, *arguments: Any, log_metric: Callable[[str, float], None] | None = None, **more: Any
    ) -> list[float]:
        values = np.array(self.reward(*arguments, **more), np.float64)
        bad = ~(np.abs(values) <= np.finfo(np.float32).max)  # as the trainer keeps them
        if log_metric:
            log_metric(f"rewards/{self.name}/not_finite", float(bad.sum()))
        lowest = values[~bad].min() if (~bad).any() else 0.0
        return np.where(bad, lowest, values).tolist()


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _clip(value: float) -> float:
    return max(-1.0, min(1.0, value))


def weighted(terms: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> list[float]:
    """The sum that is learnt from: a float an answer. Terms without a weight count nothing."""
    return np.sum([weight * np.asarray(terms[name]) for name, weight in weights.items()], axis=0).tolist()
