"""The keyword grammar: what a summary may look like, how it is enforced and how it is read.

A summary is one line, `image: red, striped, mug; text: ceramic, office, acme`, or the half that an item
without picture or without text can have. Each half holds 1 to `max_keywords` keywords of 1 to `max_words`
words of 1 to `max_word_chars` characters; nothing else can be generated (vLLM compiles `regex` to a token
mask), so every summary that is not cut off parses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

HALVES = ("image", "text")
# A word holds no control character, no space, no separator of the grammar, no bracket and no double quote.
_WORD_CHAR = r"""[^\x00-\x20\x7f,;:."<>\[\]{}()\\|]"""


@dataclass(frozen=True)
class Keywords:
    """What a summary says: keywords in the order given, without repeats."""

    image: tuple[str, ...]
    text: tuple[str, ...]


@dataclass(frozen=True)
class Grammar:
    """The bounds of a summary. `max_keywords` counts each half."""

    max_keywords: int
    max_words: int
    max_word_chars: int

    def regex(self, has_image: bool, has_text: bool) -> str:
        """The regular expression that the answer for such an item must match in full."""
        word = f"{_WORD_CHAR}{{1,{self.max_word_chars}}}"
        keyword = f"{word}( {word}){{0,{self.max_words - 1}}}"
        keywords = f"{keyword}(, {keyword}){{0,{self.max_keywords - 1}}}"
        return "; ".join(f"{half}: {keywords}" for half, on in zip(HALVES, (has_image, has_text), strict=True) if on)

    def allows(self, summary: str, has_image: bool, has_text: bool) -> bool:
        """Whether the engine could have generated it for such an item."""
        return re.fullmatch(self.regex(has_image, has_text), summary) is not None

    def max_tokens(self) -> int:
        """Enough tokens for the longest summary the grammar allows, plus its end.

        A token is at least one byte and a character at most four, so four tokens a character cover any
        tokenizer.
        """
        keyword = self.max_words * self.max_word_chars + self.max_words - 1
        half = self.max_keywords * keyword + (self.max_keywords - 1) * len(", ")
        return 4 * (2 * half + len("image: ; text: ")) + 1


def render(image: Iterable[str], text: Iterable[str]) -> str:
    """The line that says these keywords; a half without keywords is left out."""
    joined = zip(HALVES, (", ".join(image), ", ".join(text)), strict=True)
    return "; ".join(f"{name}: {keywords}" for name, keywords in joined if keywords)


def halves(summary: str) -> dict[str, tuple[str, ...]]:
    """The keywords of each half as they were said, repeats too, lower case. Raises ValueError for another form."""
    found: dict[str, tuple[str, ...]] = {}
    for part in summary.split("; "):
        name, colon, body = part.partition(": ")
        keywords = tuple(keyword.casefold() for keyword in body.split(", ") if keyword)
        if name not in HALVES or not colon or name in found or not keywords:
            raise ValueError(f"a summary must be '{render(('…',), ('…',))}'. Got {summary!r}.")
        found[name] = keywords
    return found


def parse(summary: str, has_image: bool, has_text: bool) -> Keywords:
    """Read a summary. Raises ValueError where it does not hold exactly the halves the item can have."""
    wanted = [name for name, on in zip(HALVES, (has_image, has_text), strict=True) if on]
    found = {name: tuple(dict.fromkeys(keywords)) for name, keywords in halves(summary).items()}
    if list(found) != wanted:
        raise ValueError(f"a summary must have the halves {wanted}, in this order. Got {summary!r}.")
    return Keywords(found.get("image", ()), found.get("text", ()))
