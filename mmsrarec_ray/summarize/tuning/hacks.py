"""Answers that a reward must not prefer to honest ones: how a policy cheats when the sum of rewards lets it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from mmsrarec_ray.models.word_model import words_of
from mmsrarec_ray.summarize.keywords import Keywords, render

Honest = Sequence[Keywords]
Titles = Sequence[str]


def empty(honest: Honest, titles: Titles) -> list[str]:
    """No keyword at all."""
    return ["" for _ in honest]


def title_as_keyword(honest: Honest, titles: Titles) -> list[str]:
    """One keyword a half, which holds the whole title."""
    said = [" ".join(words_of(title)) for title in titles]
    return [_line(each, (title,), (title,)) for each, title in zip(honest, said, strict=True)]


def title_shuffled(honest: Honest, titles: Titles) -> list[str]:
    """The words of the title in another order, a keyword each, in both halves."""
    shuffled = []
    for number, title in enumerate(titles):
        words = words_of(title)
        Random(number).shuffle(words)
        shuffled.append(tuple(words))
    return [_line(each, words, words) for each, words in zip(honest, shuffled, strict=True)]


def one_repeated(honest: Honest, titles: Titles) -> list[str]:
    """The first keyword of each half, as often as the half has keywords."""
    return [_line(each, each.image[:1] * len(each.image), each.text[:1] * len(each.text)) for each in honest]


def of_another(honest: Honest, titles: Titles) -> list[str]:
    """The honest keywords of another item."""
    others = [*honest[1:], *honest[:1]]
    return [_line(each, other.image, other.text) for each, other in zip(honest, others, strict=True)]


def boilerplate(honest: Honest, titles: Titles) -> list[str]:
    """The commonest keywords of the catalogue, the same for every item."""
    image, text = (_commonest([getattr(each, half) for each in honest]) for half in ("image", "text"))
    return [_line(each, image, text) for each in honest]


HACKS: dict[str, Callable[[Honest, Titles], list[str]]] = {
    "empty": empty,
    "title as one keyword": title_as_keyword,
    "title shuffled": title_shuffled,
    "one keyword repeated": one_repeated,
    "another item's": of_another,
    "boilerplate": boilerplate,
}
"""(honest keywords of some items, their titles) -> an answer an item."""


def _commonest(halves: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    size = round(sum(map(len, halves)) / max(1, len(halves)))
    return tuple(word for word, _ in Counter(word for half in halves for word in half).most_common(size))


def _line(honest: Keywords, image: Sequence[str], text: Sequence[str]) -> str:
    """An answer with the halves that the honest one has."""
    return render(image if honest.image else (), text if honest.text else ())
