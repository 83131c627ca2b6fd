"""What the recommender is asked: the user's part first, then one of four kinds of instruction, the candidate last.

All that is asked of a user shares every token up to the instruction, and all candidates every token up to the
candidate, so an engine with prefix caching, and training with a shared prefix, read a user once. The parts are the
paper's (section 3.3): keywords of the history, keywords of what similar users chose next, and the candidate as picture
and text; here it may be its keywords alone. The paper names four tasks and shows them as a picture only; their wording
is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from mmsrarec_ray.errors import ConfigError

YES, NO = "yes", "no"

CandidateForm = Literal["image", "text", "keywords"]
Task = Literal["choice", "next_item", "item_keywords", "interests"]

_HISTORY = "User history, oldest first:"
_EMPTY = "The history of the user is empty."
_NEIGHBOURS = "Users with a similar history chose these items next:"
_LIKED = "Users of this kind like:"
_CANDIDATE = "Candidate item:"
INSTRUCTIONS: dict[Task, tuple[str, str, str]] = {
    "choice": (
        "Will the user choose it? Answer yes or no:",
        "Is this the item that the user wants next? Answer yes or no:",
        "Does it suit the user? Answer yes or no:",
    ),
    "next_item": (
        "List keywords of the item that the user chooses next:",
        "What does the user choose next? Answer in keywords:",
        "Say in keywords which item comes next:",
    ),
    "item_keywords": (
        "List keywords of this item: first what the picture shows, then what the text says:",
        "Say in keywords what this item is, its picture first, then its text:",
        "Sum this item up in keywords, the picture apart from the text:",
    ),
    "interests": (
        "List the user's interests in keywords:",
        "What does the user like? Answer in keywords:",
        "Sum the user up in keywords:",
    ),
}
"""Three wordings of each kind of instruction; scoring uses the first."""


def user_lines(history: Sequence[str], neighbours: Sequence[str], liked: Sequence[str] = ()) -> str:
    """What all that is asked of a user begins with. history: keywords of each item, the oldest first; neighbours:
    keywords of what the similar users chose next, the most similar first; liked: words that users of the same segments
    like, a line a facet. An item without keywords is left out, and so is an empty line."""
    chosen, others, kind = ([bullet(line) for line in lines if line] for lines in (history, neighbours, liked))
    lines = [_HISTORY, *chosen] if chosen else [_EMPTY]
    if others:
        lines += [_NEIGHBOURS, *others]
    if kind:
        lines += [_LIKED, *kind]
    return "\n".join([*lines, ""])


def choice_lines(wording: int, explained: str) -> str:
    """What stands between the user's lines and a candidate. explained: what evidence means, '' without any."""
    return "\n".join([*filter(None, [explained]), INSTRUCTIONS["choice"][wording], _CANDIDATE, ""])


def bullet(line: str) -> str:
    """Keywords of an item as a line of a list. The mark puts a space before the first word, as there is before the
    others: a word is the same token wherever it stands."""
    return f"- {line}"


def unmarked(text: str) -> str:
    """A text without marks at the beginnings of its lines: evidence stands in a line of a list, and no item's text can
    claim to be such a line."""
    return "\n".join(line.lstrip("- ") for line in text.splitlines())


def content(before: str, item: str, has_image: bool) -> list[dict[str, Any]]:
    """The content parts of the user's turn. before: all that comes before the item; item: its keywords or text."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": before}]
    if has_image:
        parts.append({"type": "image"})
    if item:
        parts.append({"type": "text", "text": item})
    return parts


def interests(history: Sequence[str], most: int) -> str:
    """The keywords that stand at two or more items of a history, the commonest first, then the most recent; '' where
    there is none. history: keywords of each item, the oldest first, with commas between them."""
    said = [keyword for line in reversed(history) for keyword in line.split(", ") if keyword]
    return ", ".join(keyword for keyword, times in Counter(said).most_common(most) if times > 1)


def spoken_answers(tokenizer: Any) -> dict[str, str]:
    """How a model says yes and no: the two words, each one token, without a space before it or else with one.

    Raises ConfigError where neither is.
    """
    for before in ("", " "):
        spoken = {word: before + word for word in (YES, NO)}
        if all(len(tokenizer.encode(each, add_special_tokens=False)) == 1 for each in spoken.values()):
            return spoken
    raise ConfigError(f"model.source: its tokenizer must write {YES!r} and {NO!r} as one token each.")
