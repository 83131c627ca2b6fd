"""What a summary of a catalogue's item should say, taken from nothing but the item's own fields.

The text half names what the item's title and text say: first those entries of a keyword attribute that the text
really contains, then words and two-word phrases of the text that set it apart, by tf-idf (Sparck Jones 1972,
Salton and Buckley 1988) counted over the items that may be learnt from. The picture half is an attribute of the
item that a picture can hint at, such as the genres of a film.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from mmsrarec_ray.summarize.keywords import Grammar

GRAMMAR = Grammar(max_keywords=6, max_words=3, max_word_chars=16)
"""The bounds of the targets: the defaults of `summarize` in the configuration."""

_SEPARATOR = "|"  # between the values of an attribute, as importers join them
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_OPENS = re.compile(r"[.!?:\n\"“]")  # what a capital may follow without being a name's
_STOP_WORDS = """
    a about above across after again against ago all almost alone along already also although always am among an
    and another any anyone anything are around as at away back be became because become becomes been before begin
    begins behind being below best better between beyond big both bring brings but by call called came can cannot case
    come comes could day days decide decides despite did different discover discovers do does doing done down during
    each early eight either end ends enough especially even ever every everyone everything face faces fall falls far few
    fight film films finally find finding finds first five follow following follows for force forced forces form
    former found four from full further gets get getting give given gives go goes going good got great group had half
    happen has have having he head help helps her here hers herself high him himself his hold home how however i if in
    inside instead into involved is it its itself join joins just keep keeps know known knows large last later lead
    leads learn learns least leave leaves led left less let life like little live lives living long look looking looks
    lot made make makes making man many may me meet meets member men might more most movie movies much must my name
    named near need needs never new next nine no nobody none nor not nothing now of off often old on once one only onto
    or order other others our out over own part people perhaps person place plan plans play plays put quite rather
    real really recently return returns right run runs same save say second see seem seems sees send sent set seven
    several she should since six small so some someone something sometimes soon start starts still stop story such
    take taken takes taking tell tells ten than that the their them themselves then there these they thing things
    think third this those though three through throughout thus time to today together too took top toward towards
    tries try trying turn turns two under unless until up upon us use used uses using very want wants was way we
    well were what when where whether which while who whole whom whose why will win with within without woman women
    work working works world would year years yet you young your
"""
_STOPPED = frozenset(_STOP_WORDS.split())
# Largest share of the items that may say a word or phrase, and fewest: others set no item apart, or only one.
_MOST_ITEMS, _FEWEST_ITEMS, _FEWEST_ITEMS_OF_PHRASE = 0.2, 3, 3
_BOUND_TOGETHER = 0.1  # share of the rarer word's items in which the phrase must stand


class Token(NamedTuple):
    """A word of a text, lower case, without a possessive ending.

    stem: what words are compared by. capital: it is written with one, and no sentence begins with it. joined:
    nothing but a space parts it from the word before.
    """

    word: str
    stem: str
    capital: bool
    joined: bool


def stem(word: str) -> str:
    """A word without its commonest English endings: near enough to tell `robbers` said by `robber`."""
    word = word.casefold()
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("ly", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word[: -len(ending)] + instead
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word


def tokens(text: str) -> list[Token]:
    """The words of a text in order."""
    found: list[Token] = []
    end = 0
    for match in _WORD.finditer(text):
        between = text[end : match.start()]
        opens = not found or _OPENS.search(between) is not None
        word = re.sub("['’]s$", "", match.group())
        found.append(Token(word.casefold(), stem(word), word[0].isupper() and not opens, between == " "))
        end = match.end()
    return found


def phrase_stems(keyword: str) -> tuple[str, ...]:
    """The stems of a keyword's words."""
    return tuple(token.stem for token in tokens(keyword))


def says(stems: Iterable[str], keyword: str) -> bool:
    """Whether every word of a keyword is among these stems; a keyword without a word is never said."""
    wanted = phrase_stems(keyword)
    return bool(wanted) and set(wanted) <= set(stems)


def fits_grammar(keyword: str) -> bool:
    """Whether the keyword could be generated under `GRAMMAR`."""
    one = Grammar(1, GRAMMAR.max_words, GRAMMAR.max_word_chars).regex(has_image=False, has_text=True)
    return re.fullmatch(one, f"text: {keyword}") is not None


def attribute_values(attributes: Mapping[str, str], name: str, leave_out: Sequence[str] = ()) -> tuple[str, ...]:
    """The values of an item's attribute, lower case, that the grammar allows; none where it has no such attribute."""
    values = (value.strip().casefold() for value in attributes.get(name, "").split(_SEPARATOR))
    kept = dict.fromkeys(value for value in values if value and value not in leave_out and fits_grammar(value))
    return tuple(kept)


@dataclass(frozen=True)
class Statistics:
    """In how many of `items` texts each word or pair of neighbouring words stands, by stem."""

    items: int
    words: Mapping[str, int]
    pairs: Mapping[tuple[str, str], int]
    names: frozenset[str]
    """Stems that are written with a capital wherever no sentence begins."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Statistics:
        """Count over these texts: those of the items that may be learnt from, and no others."""
        words, pairs = Counter[str](), Counter[tuple[str, str]]()
        capital, small = Counter[str](), Counter[str]()
        items = 0
        for text in texts:
            items += 1
            read = tokens(text)
            words.update({token.stem for token in read})
            pairs.update({(a.stem, b.stem) for a, b in _neighbours(read)})
            capital.update(token.stem for token in read if token.capital)
            small.update(token.stem for token in read if not token.capital)
        names = frozenset(each for each, count in capital.items() if count > small[each])
        return cls(items, words, pairs, names)

    def rarity(self, count: int) -> float:
        """Inverse document frequency, in nats, flattened so that the rarest words do not always win."""
        return math.log((self.items + 5) / (count + 5))


def _content(token: Token) -> bool:
    word = token.word
    return len(word) > 2 and word not in _STOPPED and word[-2:] != "ly" and not any(c.isdigit() for c in word)


def _neighbours(read: Sequence[Token]) -> list[tuple[Token, Token]]:
    """Content words that stand side by side with only a space between."""
    return [(a, b) for a, b in pairwise(read) if b.joined and _content(a) and _content(b)]


def _candidates(read: Sequence[Token], statistics: Statistics) -> dict[str, tuple[float, tuple[str, ...]]]:
    """Keyword -> its tf-idf and its stems, of all words and bound phrases of a text that are common enough."""
    times = Counter(token.stem for token in read)
    most = max(_MOST_ITEMS * statistics.items, _FEWEST_ITEMS)
    found: dict[str, tuple[float, tuple[str, ...]]] = {}
    for token in read:
        count = statistics.words.get(token.stem, 0)
        if _content(token) and _FEWEST_ITEMS <= count <= most and not _name(token, statistics):
            found.setdefault(token.word, (times[token.stem] * statistics.rarity(count), (token.stem,)))
    for a, b in _neighbours(read):
        count = statistics.pairs.get((a.stem, b.stem), 0)
        rarer = min(statistics.words.get(a.stem, 0), statistics.words.get(b.stem, 0))
        if count >= max(_FEWEST_ITEMS_OF_PHRASE, _BOUND_TOGETHER * rarer):
            found.setdefault(f"{a.word} {b.word}", (1.2 * statistics.rarity(count), (a.stem, b.stem)))
    return found


def _name(token: Token, statistics: Statistics) -> bool:
    return token.capital or token.stem in statistics.names


def text_keywords(text: str, listed: Sequence[str], statistics: Statistics) -> tuple[str, ...]:
    """What the text half should say of an item, in the order in which the text says it.

    text: title and text as the prompt holds them. listed: the item's own keywords, used where the text says them.
    """
    read = tokens(text)
    if text[-1:].isalnum():
        read = read[:-1]  # perhaps cut off
    said = {token.stem for token in read}
    chosen: dict[str, tuple[str, ...]] = {}
    candidates = _candidates(read, statistics)
    by_score = sorted(candidates, key=lambda keyword: (-candidates[keyword][0], keyword))
    covered: set[str] = set()
    for keyword in [*(entry for entry in listed if says(said, entry)), *by_score]:
        stems = phrase_stems(keyword)
        if len(chosen) < GRAMMAR.max_keywords and not covered & set(stems) and fits_grammar(keyword):
            chosen[keyword] = stems
            covered |= set(stems)
    first = {each.stem: place for place, each in reversed(list(enumerate(read)))}
    return tuple(sorted(chosen, key=lambda keyword: min(first[each] for each in chosen[keyword])))
