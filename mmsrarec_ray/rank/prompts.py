"""The prompt that asks whether a user chooses a candidate next: the user's part first, the candidate last.

All candidates of a user share every token up to the candidate, so an engine with prefix caching reads a user once.
The parts are the paper's (section 3.3): keywords of the history, keywords of what similar users chose next, and the
candidate as picture and text; here it may be its keywords alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmsrarec_ray.errors import ConfigError

YES, NO = "yes", "no"

CandidateForm = Literal["image", "text", "keywords"]

_HISTORY = "User history, oldest first:"
_EMPTY = "The history of the user is empty."
_NEIGHBOURS = "Users with a similar history chose these items next:"
_QUESTION = "Will the user choose it? Answer yes or no:"
_CANDIDATE = "Candidate item:"


def user_part(history: Sequence[str], neighbours: Sequence[str]) -> str:
    """What all candidates of a user share. history: keywords of each item, the oldest first; neighbours: keywords of
    what the similar users chose next, the most similar first. An item without keywords is left out."""
    chosen, others = ([bullet(line) for line in lines if line] for lines in (history, neighbours))
    lines = [_HISTORY, *chosen] if chosen else [_EMPTY]
    if others:
        lines += [_NEIGHBOURS, *others]
    return "\n".join([*lines, _QUESTION, _CANDIDATE, ""])


def bullet(line: str) -> str:
    """Keywords of an item as a line of a list. The mark puts a space before the first word, as there is before the
    others: a word is the same token wherever it stands."""
    return f"- {line}"


def content(user: str, candidate: str, has_image: bool) -> list[dict[str, Any]]:
    """The content parts of the user's turn. user: as `user_part` gives it; candidate: its keywords or text."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": user}]
    if has_image:
        parts.append({"type": "image"})
    if candidate:
        parts.append({"type": "text", "text": candidate})
    return parts


def spoken_answers(tokenizer: Any) -> dict[str, str]:
    """How a model says yes and no: the two words, each one token, without a space before it or else with one.

    Raises ConfigError where neither is.
    """
    for before in ("", " "):
        spoken = {word: before + word for word in (YES, NO)}
        if all(len(tokenizer.encode(each, add_special_tokens=False)) == 1 for each in spoken.values()):
            return spoken
    raise ConfigError(f"model.source: its tokenizer must write {YES!r} and {NO!r} as one token each.")
