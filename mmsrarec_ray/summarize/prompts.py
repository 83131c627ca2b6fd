"""The one prompt that asks for an item's keywords: picture and text apart, instructions first, the item last.

The instruction is the same for every item with the same parts, so an engine with prefix caching computes it
once. Asking for the two modalities separately is the paper's form (section 3.1): neither can be ignored.
"""

from __future__ import annotations

from collections.abc import Collection

PROMPT_VERSION = "2"

_ASKS = {
    (True, True): "List keywords of this item: first what the picture shows, then what the text says.\n"
    "Answer in one line: image: up to {n} keywords; text: up to {n} keywords",
    (True, False): "List keywords of this item: what the picture shows.\nAnswer in one line: image: up to {n} keywords",
    (False, True): "List keywords of this item: what the text says.\nAnswer in one line: text: up to {n} keywords",
}


def instruction(has_image: bool, has_text: bool, max_keywords: int) -> str:
    """The fixed part of the prompt. Raises KeyError for an item with neither part: it has nothing to summarise."""
    return _ASKS[has_image, has_text].format(n=max_keywords)


def item_text(title: str | None, text: str | None, max_chars: int, control_tokens: Collection[str]) -> str:
    """An item's title and text as the prompt holds them, at most `max_chars` characters.

    `control_tokens` (a tokenizer's special tokens) are taken out.
    """
    body = "\n".join(part.strip() for part in (title, text) if part and part.strip())
    return plain(body, control_tokens)[:max_chars].strip()


def plain(text: str, control_tokens: Collection[str]) -> str:
    """A text with a space in the place of each control token, so that no item can open a turn, close one or claim a
    picture. What stood around a token is not joined: it could be another."""
    for token in control_tokens:
        text = text.replace(token, " ")
    return text


def user_content(text: str, has_image: bool, max_keywords: int, image: dict | None = None) -> list[dict]:
    """The content parts of the user's turn: instruction, picture, text.

    image: the part that stands for the picture; by default the plain marker of transformers' chat templates.
    """
    parts: list[dict] = [{"type": "text", "text": instruction(has_image, bool(text), max_keywords) + "\n"}]
    if has_image:
        parts.append(image or {"type": "image"})
    if text:
        parts.append({"type": "text", "text": text})
    return parts
