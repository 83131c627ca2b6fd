"""Lessons in reading: questions about an item beside lists of keywords, from which a model learns to compare.

A sheet is a list of keyword lines and some questions, each about one item: how many lines name each of its keywords,
do the lines often name its colour, is it like them on the whole. The lists are drawn at random, nobody chose anything
from them: what a user wants is not taught here. All questions of a sheet share its list in one sequence, and each sees
the list and itself alone (`ReadingBatch.sees`), at the places it would have if it stood alone.

To find a word's equals is what a small transformer learns last and only from many examples. A tally gives them: a long
list in which each keyword is followed by the number of earlier lines that name it, so every third token teaches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import Idefics3Processor

from mmsrarec_ray.data.shop import truth
from mmsrarec_ray.data.shop.draw import SIZE
from mmsrarec_ray.data.shop.law import VOCABULARY, Shop
from mmsrarec_ray.summarize.lessons import BOTH, IGNORED, IMAGE_ONLY, TEXT_ONLY, Form, LanguageBatch, shop_text

ATTRIBUTES = ("colour", "pattern", "kind", "material", "use", "brand")  # those that keywords name
TALLY = "Write lines of keywords, each keyword with the number of earlier lines that name it."
HEADING = "Keywords of some items:"
EACH = "How many lines name each of its keywords?"
OFTEN = "Do the lines often name its {name}? Answer yes or no:"
LIKE = "Is it like them? Answer yes or no:"
ITEM = "Item:"
QUESTIONS = ("each", "often", "like")
# The first teaches to look: it has a number for each keyword, right behind the word that has to be looked for. The
# others have one word for all of it.
_SHARES = (0.4, 0.2, 0.4)
# Spoken answers, and words that the questions use: each should be one token.
WORDS = (*(str(number) for number in range(10)), *ATTRIBUTES)
# How items of the shop are shown; the others are keywords alone, which is how histories are read.
_FORMS, _FORM_SHARES = (TEXT_ONLY, BOTH, IMAGE_ONLY), (0.2, 0.6, 0.2)
_LONGEST_LIST, _TALLY_LINES = 16, 20


class Item(NamedTuple):
    """What a question is about. known: attribute -> keyword, as far as it is shown, in the order of the keywords.

    number, form: an item of the shop and how it is shown; None where it is a line of keywords that were drawn.
    """

    known: dict[str, str]
    number: int | None = None
    form: Form | None = None

    @property
    def picture(self) -> int | None:
        """The item whose picture is shown."""
        return self.number if self.form is not None and self.form.has_image else None


class Question(NamedTuple):
    """A question of a sheet, and its answer. kind: one of QUESTIONS."""

    kind: str
    text: str
    item: Item
    answer: str


class Sheet(NamedTuple):
    """A list and what is asked about it. lines: keywords of each line."""

    lines: list[tuple[str, ...]]
    questions: list[Question]


def line(keywords: Sequence[str]) -> str:
    """A line of a list."""
    return "- " + ", ".join(keywords)


def texts(rng: np.random.Generator, count: int) -> list[str]:
    """Some lists, questions and tallies as a tokenizer is trained on them."""
    sheets = [draw_sheet(rng, [], 4) for _ in range(count)]
    asked = [
        "\n".join([HEADING, *map(line, sheet.lines), *(f"{q.text}\n{ITEM}\n{q.answer}" for q in sheet.questions)])
        for sheet in sheets
    ]
    return [*asked, *(f"{TALLY}\n{tally(each.lines)}" for each in sheets)]


def draw_shown(
    shop: Shop, rng: np.random.Generator, indices: Sequence[int] | np.ndarray, pictures: bool = True
) -> list[Item]:
    """These items of a shop, each to be shown in some form. pictures: False for texts alone."""
    forms, shares = (_FORMS, _FORM_SHARES) if pictures else ((TEXT_ONLY,), (1.0,))
    places = rng.choice(len(forms), size=len(indices), p=shares)
    return [show(shop, int(index), forms[place]) for index, place in zip(indices, places, strict=True)]


def show(shop: Shop, index: int, form: Form) -> Item:
    """An item of a shop in a form, with the keywords that the form gives away."""
    said = truth.item_keywords(shop, index)
    words = (*(said.image if form.has_image else ()), *(said.text if form.has_text else ()))
    names = {VOCABULARY[name][shop.attributes[name][index]]: name for name in ATTRIBUTES}
    return Item({names[word]: word for word in words}, index, form)


def draw_sheet(rng: np.random.Generator, shown: Sequence[Item], drawn: int) -> Sheet:
    """A sheet with a question about each item `shown`, and about so many more, `drawn` like the lines.

    All lean to some values, more or less; most of them are values of what is shown.
    """
    liked = {name: _liked(rng, name, shown) for name in ATTRIBUTES}
    lean = rng.uniform(0.2, 0.8)
    lines = [tuple(_draw_line(rng, liked, lean).values()) for _ in range(rng.integers(1, _LONGEST_LIST + 1))]
    items = [*shown, *(Item(_draw_line(rng, liked, rng.uniform(0.2, 0.8))) for _ in range(drawn))]
    return Sheet(lines, [_ask(rng, lines, item) for item in items])


def draw_tally(rng: np.random.Generator) -> str:
    """A tally of lines that lean to some values."""
    liked, lean = {name: _liked(rng, name, []) for name in ATTRIBUTES}, rng.uniform(0.2, 0.8)
    return tally([tuple(_draw_line(rng, liked, lean).values()) for _ in range(_TALLY_LINES)])


def tally(lines: Sequence[Sequence[str]]) -> str:
    """The lines, each keyword with the number of earlier lines that name it, 9 at most."""
    seen, written = Counter[str](), []
    for keywords in lines:
        written.append(line([f"{word} {min(9, seen[word])}" for word in keywords]))
        seen.update(keywords)
    return "\n".join(written)


def _liked(rng: np.random.Generator, name: str, shown: Sequence[Item]) -> list[str]:
    own = [item.known[name] for item in shown if name in item.known]
    choices = [own if own and rng.random() < 0.75 else VOCABULARY[name] for _ in range(rng.integers(1, 3))]
    return [str(rng.choice(values)) for values in choices]


def _draw_line(rng: np.random.Generator, liked: dict[str, list[str]], lean: float) -> dict[str, str]:
    values = {name: str(rng.choice(liked[name] if rng.random() < lean else VOCABULARY[name])) for name in ATTRIBUTES}
    # A few have only what a picture tells, or only what a text does.
    told = {0: ATTRIBUTES[:3], 1: ATTRIBUTES[2:]}.get(int(rng.integers(12)), ATTRIBUTES)
    return {name: values[name] for name in told}


def _ask(rng: np.random.Generator, lines: list[tuple[str, ...]], item: Item) -> Question:
    kind = str(rng.choice(QUESTIONS, p=_SHARES))
    counts = {name: sum(word in each for each in lines) for name, word in item.known.items()}
    if kind == "often":  # at least every third line does
        name = str(rng.choice(list(counts)))
        return Question(kind, OFTEN.format(name=name), item, _verdict(3 * counts[name] >= len(lines)))
    if kind == "like":  # a line shares at least a quarter of its keywords, on average
        return Question(kind, LIKE, item, _verdict(4 * sum(counts.values()) >= len(lines) * len(counts)))
    named = (f"{word} {min(9, counts[name])}" for name, word in item.known.items())
    return Question(kind, EACH, item, " " + ", ".join(named))


def _verdict(true: bool) -> str:
    return " yes" if true else " no"


class ReadingBatch(NamedTuple):
    """Sheets, a sequence each. ids, labels, places: int64 (n, length); `labels[i, t]` follows `ids[i, :t + 1]`.

    sees: bool (n, 1, length, length), which tokens a token may look at. features: int64 (m,), the picture of each mark
    in the order of the marks, as an index into the step's pictures. weights: float32 (n_answer_tokens,), so that each
    question weighs alike; they add up to one.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor
    sees: torch.Tensor
    features: torch.Tensor
    weights: torch.Tensor


class Reading:
    """Writes sheets, token for token what the processor makes of a question that stands alone."""

    def __init__(self, shop: Shop, processor: Idefics3Processor) -> None:
        self.shop, self.processor, self.tokenizer = shop, processor, processor.tokenizer
        self._picture = _picture_ids(processor)
        self._numbers = torch.tensor([self._ids(f" {number}")[0] for number in range(10)])

    def tallies(self, rng: np.random.Generator, count: int) -> LanguageBatch:
        """Tallies as answers; their numbers alone are labels."""
        turn = [{"role": "user", "content": TALLY}]
        prompt = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        rows = [torch.tensor(self._ids(prompt + draw_tally(rng))) for _ in range(count)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        following = torch.full_like(ids, IGNORED)
        following[:, :-1] = ids[:, 1:]
        return LanguageBatch(ids, following.where(torch.isin(following, self._numbers), IGNORED))

    def content(self, sheet: Sheet, question: Question) -> list[dict[str, Any]]:
        """The content parts of the user's turn that asks one question."""
        return [{"type": "text", "text": _list(sheet)}, *self._item_parts(question)]

    def _item_parts(self, question: Question) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"type": "text", "text": f"{question.text}\n{ITEM}\n"}]
        item = question.item
        if item.form is None:
            return [*parts, {"type": "text", "text": line(list(item.known.values()))}]
        assert item.number is not None
        if item.form.has_image:
            parts.append({"type": "image"})
        if item.form.has_text:
            control = self.tokenizer.all_special_tokens
            parts.append({"type": "text", "text": shop_text(self.shop, item.number, control)})
        return parts

    def batch(self, sheets: Sequence[Sheet], pictures: dict[int, int]) -> ReadingBatch:
        """pictures: where the picture of an item stands among the step's."""
        rows = [self._row(sheet) for sheet in sheets]
        length = max(len(row.ids) for row in rows)
        shape = (len(rows), length)
        ids, labels = torch.full(shape, self.tokenizer.pad_token_id), torch.full(shape, IGNORED)
        places, parts = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
        for i, row in enumerate(rows):
            for whole, values in zip((ids, labels, places, parts), row, strict=True):
                whole[i, : len(values)] = torch.tensor(values)
        same = (parts[:, None, :] == parts[:, :, None]) | (parts[:, None, :] == 0)
        sees = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
        shown = [each.item.picture for sheet in sheets for each in sheet.questions]
        features = [pictures[index] for index in shown if index is not None]
        lengths = [
            torch.unique_consecutive(part[label != IGNORED], return_counts=True)[1]
            for part, label in zip(parts, labels, strict=True)
        ]
        each = torch.cat([1 / length.repeat_interleave(length) for length in lengths])
        return ReadingBatch(ids, labels, places, sees, torch.tensor(features).long(), each / each.sum())

    def _row(self, sheet: Sheet) -> _Row:
        """The list is part 0, the questions are parts 1, 2, …"""
        trunk, branches = self._split(sheet)
        row = _Row(list(trunk), [IGNORED] * len(trunk), list(range(len(trunk))), [0] * len(trunk))
        for part, (asked, answer) in enumerate(branches, 1):
            row.ids.extend([*asked, *answer])
            row.labels.extend([*[IGNORED] * (len(asked) - 1), *answer, self.tokenizer.eos_token_id])
            row.places.extend(range(len(trunk), len(trunk) + len(asked) + len(answer)))
            row.parts.extend([part] * (len(asked) + len(answer)))
        return row

    def _split(self, sheet: Sheet) -> tuple[list[int], list[tuple[list[int], list[int]]]]:
        """Tokens of what the questions share, and of each question and answer."""
        start = self.tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
        before, after = start.split(self.tokenizer.eos_token)
        end = self.tokenizer.eos_token + after + self._opening()
        trunk = self._ids(before + _list(sheet))
        return trunk, [(self._asked(question, end), self._ids(question.answer)) for question in sheet.questions]

    def _opening(self) -> str:
        turn = [{"role": "user", "content": ""}]
        plain = self.tokenizer.apply_chat_template(turn, tokenize=False)
        return self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)[len(plain) :]

    def _asked(self, question: Question, end: str) -> list[int]:
        ids: list[int] = []
        text = ""
        for part in self._item_parts(question):
            if part["type"] == "image":
                ids += [*self._ids(text), *self._picture]
                text = ""
            else:
                text += part["text"]
        return ids + self._ids(text + end)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


class _Row(NamedTuple):
    ids: list[int]
    labels: list[int]
    places: list[int]
    parts: list[int]


def _list(sheet: Sheet) -> str:
    return "\n".join([HEADING, *map(line, sheet.lines), ""])


def _picture_ids(processor: Idefics3Processor) -> list[int]:
    """What stands in a prompt for a picture."""
    turn: Any = [{"role": "user", "content": [{"type": "image"}]}]
    whole = processor(text=[processor.apply_chat_template(turn)], images=[[Image.new("RGB", (SIZE, SIZE))]])[
        "input_ids"
    ][0]
    without: Any = [{"role": "user", "content": []}]
    plain = processor.tokenizer(processor.apply_chat_template(without))["input_ids"]
    same = next(i for i, (a, b) in enumerate(zip(whole, plain, strict=False)) if a != b)
    return list(whole[same : same + len(whole) - len(plain)])
