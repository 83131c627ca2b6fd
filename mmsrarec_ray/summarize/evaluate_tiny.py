"""Examines a model on fresh drawn items: what it reads from the picture, from the text, and from both.

With the pictures dealt to the wrong items, an attribute that only a picture shows must fall to the share a
guess gets. Otherwise the words, and not the picture, would have told it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from mmsrarec_ray.data.shop.draw import item_picture
from mmsrarec_ray.data.shop.law import HABIT_ATTRIBUTES, LOOK_ATTRIBUTES, VOCABULARY, Shop
from mmsrarec_ray.models.pretrain_vision import see
from mmsrarec_ray.summarize.keywords import Keywords, parse
from mmsrarec_ray.summarize.lessons import BOTH, IMAGE_ONLY, MAX_KEYWORDS, TEXT_ONLY, Form, shop_text
from mmsrarec_ray.summarize.prompts import user_content
from mmsrarec_ray.summarize.reading import Reading, Sheet, draw_sheet, draw_shown
from mmsrarec_ray.summarize.teach import answer_logits

_MAX_NEW_TOKENS = 48
_ASKED, _DRAWN = 8, 8  # questions on a sheet of the exam: about items of its shop, about keywords alone
SHOWN_AS: dict[Form | None, str] = {
    None: "keywords",
    TEXT_ONLY: "text",
    IMAGE_ONLY: "picture",
    BOTH: "picture and text",
}
SHOWN = tuple(SHOWN_AS.values())
ONE_ANSWER = ", one answer"
_HIDDEN = "kind, hidden"


@dataclass(frozen=True)
class Share:
    """How often something was right."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.right / self.of

    @property
    def bounds(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927)."""
        z, share, n = 1.96, self.value, self.of
        centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
        reach = z / (1 + z**2 / n) * ((share * (1 - share) + z**2 / (4 * n)) / n) ** 0.5
        return max(0.0, centre - reach), min(1.0, centre + reach)


def prompts(shop: Shop, processor: Idefics3Processor, indices: Sequence[int], form: Form) -> list[str]:
    """The prompts of these items, with one mark for a picture, as an engine is given them."""
    control = processor.tokenizer.all_special_tokens
    texts = [shop_text(shop, i, control) if form.has_text else "" for i in indices]
    turns: Any = [[{"role": "user", "content": user_content(text, form.has_image, MAX_KEYWORDS)}] for text in texts]
    return [processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]


@torch.inference_mode()
def answers(
    model: Idefics3ForConditionalGeneration,
    processor: Idefics3Processor,
    texts: Sequence[str],
    images: Sequence[Image.Image] | None,
    batch_size: int = 125,
) -> list[str]:
    """The model's greedy answer to each prompt. images: one a prompt, or None for prompts without a picture."""
    said: list[str] = []
    for start in range(0, len(texts), batch_size):
        rows = slice(start, start + batch_size)
        inputs = processor(
            text=list(texts[rows]),
            images=None if images is None else [[image] for image in images[rows]],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        output = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)  # type: ignore[misc]
        new = output[:, inputs["input_ids"].shape[1] :]
        said += processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return said


def grade(shop: Shop, said: Sequence[str], form: Form) -> dict[str, Share]:
    """How often the answers name each attribute where it belongs; answer i is to item i of the shop.

    Keywords are read by their place: colour, pattern and kind in the picture's half; material, use and brand
    last in the text's half. "exact" counts answers that are right in every keyword of every half asked for;
    "kind, hidden" the kind of items whose text does not name it. An answer that does not parse is all wrong.
    """
    right: dict[str, list[bool]] = {}
    for index, answer in enumerate(said):
        words = {name: values[shop.attributes[name][index]] for name, values in VOCABULARY.items()}
        try:
            read = parse(answer, form.has_image, form.has_text)
        except ValueError:
            read = Keywords((), ())
        hidden = bool(shop.hidden_kind[index])
        checks: dict[str, bool] = {}
        if form.has_image:
            checks |= _compare(read.image, ("colour", "pattern", "kind"), words)
            if hidden:
                checks[_HIDDEN] = checks["kind"]
        if form.has_text:
            named = HABIT_ATTRIBUTES if hidden else ("kind", *HABIT_ATTRIBUTES)
            in_text = _compare(read.text, named, words)
            if not hidden:
                checks["kind, in text"] = in_text.pop("kind")
            checks |= in_text
        checks["exact"] = all(checks.values())
        for name, value in checks.items():
            right.setdefault(name, []).append(value)
    return {name: Share(sum(values), len(values)) for name, values in right.items()}


def _compare(read: tuple[str, ...], names: tuple[str, ...], words: dict[str, str]) -> dict[str, bool]:
    """Whether the keywords are the values of these attributes, in this order; all wrong if there are more or fewer."""
    if len(read) != len(names):
        return dict.fromkeys(names, False)
    return {name: keyword == words[name] for name, keyword in zip(names, read, strict=True)}


def examine(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, shop: Shop
) -> dict[str, dict[str, Share]]:
    """Figures of every form of the prompt, over all items of the shop, and of pictures dealt to the wrong items."""
    everything = range(len(shop))
    images = [item_picture(shop, i)[0] for i in everything]
    wrong = [images[i - 1] for i in everything]
    dealt: dict[str, tuple[Form, list[Image.Image] | None]] = {
        "picture alone": (IMAGE_ONLY, images),
        "picture and text": (BOTH, images),
        "text alone": (TEXT_ONLY, None),
        "wrong picture alone": (IMAGE_ONLY, wrong),
        "wrong picture and text": (BOTH, wrong),
    }
    model.eval()
    return {
        name: grade(shop, answers(model, processor, prompts(shop, processor, everything, form), seen), form)
        for name, (form, seen) in dealt.items()
    }


@torch.inference_mode()
def examine_reading(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, shop: Shop, sheets: int
) -> dict[str, dict[str, Share]]:
    """How often the answers to questions beside a list are right in every token: how the item is shown -> kind of
    question -> share; "KIND, one answer" is what the commonest answer to those questions would get."""
    reading, rng = Reading(shop, processor), np.random.default_rng([shop.seed, 20])
    right: dict[str, dict[str, list[bool]]] = {name: {} for name in SHOWN}
    said: dict[str, dict[str, list[str]]] = {name: {} for name in SHOWN}
    model.eval()
    for start in range(0, sheets * _ASKED, _ASKED):
        places = np.arange(start, start + _ASKED) % len(shop)
        sheet = draw_sheet(rng, draw_shown(shop, rng, places), _DRAWN)
        for question, true in zip(sheet.questions, _answered(model, processor, reading, sheet), strict=True):
            shown = SHOWN_AS[question.item.form]
            right[shown].setdefault(question.kind, []).append(true)
            said[shown].setdefault(question.kind, []).append(question.answer)
    return {
        shown: {kind: Share(sum(values), len(values)) for kind, values in sorted(right[shown].items())}
        | {f"{kind}{ONE_ANSWER}": Share(max(map(v.count, set(v))), len(v)) for kind, v in sorted(said[shown].items())}
        for shown in SHOWN
    }


def _answered(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, reading: Reading, sheet: Sheet
) -> list[bool]:
    """Whether greedy decoding would give the answer of each question: each of its tokens is the likeliest."""
    shown = [each.item.picture for each in sheet.questions if each.item.picture is not None]
    batch = reading.batch([sheet], {index: place for place, index in enumerate(shown)})
    features = None
    if shown:
        drawn = [[item_picture(reading.shop, index)[0]] for index in shown]
        pixels = processor.image_processor(drawn, return_tensors="pt")["pixel_values"]
        features = see(model, pixels[:, 0])
    logits, labels = answer_logits(model, batch, features)
    ended = (labels == processor.tokenizer.eos_token_id).nonzero().flatten().tolist()
    likeliest = (logits.argmax(-1) == labels).tolist()
    starts = [0, *(end + 1 for end in ended[:-1])]
    return [all(likeliest[start : end + 1]) for start, end in zip(starts, ended, strict=True)]


def chance(shop: Shop) -> dict[str, float]:
    """The share a picture of another item gets right: how often neighbours in the shop agree."""
    return {
        name: float(np.mean(shop.attributes[name] == np.roll(shop.attributes[name], 1))) for name in LOOK_ATTRIBUTES
    }
