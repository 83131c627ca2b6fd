"""Examines a model on test items of a real catalogue: does it say what the text says, does it see the picture?

The picture half is asked for with the picture alone. Such a prompt differs between items in nothing but the
picture, so the answer to another item's picture is that item's answer: the model with shuffled pictures is measured
on the same answers, dealt to the wrong items.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from mmsrarec_ray.summarize.catalogue import TEST, TRAIN, Catalogue, Item
from mmsrarec_ray.summarize.keywords import Keywords, parse
from mmsrarec_ray.summarize.lessons import BOTH, IMAGE_ONLY, MAX_KEYWORDS, TEXT_ONLY, Form
from mmsrarec_ray.summarize.targets import phrase_stems, says, tokens

_MAX_NEW_TOKENS = 72
_DEALS, _RESAMPLES, _SAMPLES = 50, 2_000, 12


class Match(NamedTuple):
    """How many of the words named were right, how many were named, how many there were to name."""

    right: float
    named: float
    wanted: float

    @property
    def precision(self) -> float:
        return self.right / self.named if self.named else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.wanted if self.wanted else 0.0

    @property
    def f1(self) -> float:
        """Twice the right ones over all named and all wanted."""
        return 2 * self.right / (self.named + self.wanted) if self.named + self.wanted else 0.0

    def figures(self) -> dict[str, float]:
        """Precision, recall and F1, by name."""
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}


def overlap(named: Iterable[str], wanted: Iterable[str]) -> Match:
    """Compare the words named for one item with those there are."""
    first, second = set(named), set(wanted)
    return Match(len(first & second), len(first), len(second))


def total(matches: Sequence[Match]) -> Match:
    """Over items, every word counting the same (micro average)."""
    return Match(*(float(sum(column)) for column in zip(*matches, strict=True)))


@dataclass(frozen=True)
class Answer:
    """What the model said of an item, read by the grammar; None where it does not parse."""

    item: Item
    said: str
    read: Keywords | None


@torch.inference_mode()
def ask(
    model: Idefics3ForConditionalGeneration,
    processor: Idefics3Processor,
    catalogue: Catalogue,
    items: Sequence[Item],
    form: Form,
    batch_size: int = 25,
) -> list[Answer]:
    """The model's greedy answers, unconstrained; a half's keywords after the sixth are dropped."""
    answers: list[Answer] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        turns: Any = [[{"role": "user", "content": catalogue.content(item, form)}] for item in batch]
        inputs = processor(
            text=[processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns],
            images=[[Image.fromarray(each)] for each in catalogue.pixels(batch)] if form.has_image else None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        output = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)  # type: ignore[misc]
        new = output[:, inputs["input_ids"].shape[1] :]
        spoken = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        answers += [Answer(item, said, _read(said, form)) for item, said in zip(batch, spoken, strict=True)]
    return answers


def _read(said: str, form: Form) -> Keywords | None:
    try:
        read = parse(said, form.has_image, form.has_text)
    except ValueError:
        return None
    return Keywords(read.image[:MAX_KEYWORDS], read.text[:MAX_KEYWORDS])


def text_figures(answers: Sequence[Answer]) -> dict[str, float]:
    """How good the text halves are.

    grounded: share of keywords all of whose words stand in the item's text, by stem; elsewhere: the same share in
    the next item's text, which is what chance gives. recall: share of the target keywords that were said, by stem.
    distinct: share of different keywords among all. per_item: keywords an item.
    """
    halves = [answer.read.text if answer.read else () for answer in answers]
    stems = [{token.stem for token in tokens(answer.item.text)} for answer in answers]
    said = [keyword for half in halves for keyword in half]
    own = [says(there, word) for half, there in zip(halves, stems, strict=True) for word in half]
    other = [says(there, word) for half, there in zip(halves, stems[1:] + stems[:1], strict=True) for word in half]
    found = [
        phrase_stems(target) in {phrase_stems(word) for word in half}
        for answer, half in zip(answers, halves, strict=True)
        for target in answer.item.text_keywords
    ]
    return {
        "grounded": float(np.mean(own)) if own else 0.0,
        "elsewhere": float(np.mean(other)) if other else 0.0,
        "recall": float(np.mean(found)) if found else 0.0,
        "distinct": len(set(said)) / len(said) if said else 0.0,
        "per_item": len(said) / len(halves),
        "parsed": float(np.mean([answer.read is not None for answer in answers])),
    }


def constant_guess(train: Sequence[Item], most: int = MAX_KEYWORDS) -> tuple[str, ...]:
    """The most frequent labels, as many of them as give the best F1 on the train items themselves."""
    frequent = [label for label, _ in Counter(word for item in train for word in item.image_keywords).most_common(most)]
    guesses = [tuple(frequent[: count + 1]) for count in range(len(frequent))]
    return max(guesses, key=lambda guess: total([overlap(guess, item.image_keywords) for item in train]).f1)


def image_figures(answers: Sequence[Answer], train: Sequence[Item], seed: int) -> dict[str, Any]:
    """How well the picture halves name the items' labels, beside two guesses that see no picture.

    constant: the same labels for every item. shuffled: the answers to other items' pictures, over 50 deals. "gain"
    is F1 less that of shuffled pictures, with its 95 % interval by bootstrap over items.
    """
    named = [answer.read.image if answer.read else () for answer in answers]
    wanted = [answer.item.image_keywords for answer in answers]
    rng = np.random.default_rng(seed)
    own = np.array([overlap(*pair) for pair in zip(named, wanted, strict=True)])
    shuffled = np.zeros_like(own, dtype=float)
    for _ in range(_DEALS):
        order = rng.permutation(len(named))
        dealt = np.empty(len(named), int)
        dealt[order] = np.roll(order, 1)  # one cycle: no item keeps its own
        shuffled += [overlap(named[other], each) for other, each in zip(dealt, wanted, strict=True)]
    shuffled /= _DEALS
    gains = []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(len(own), size=len(own))
        gains.append(Match(*own[drawn].sum(0)).f1 - Match(*shuffled[drawn].sum(0)).f1)
    low, high = np.percentile(gains, [2.5, 97.5])
    guess = constant_guess(train)
    return {
        "own": Match(*own.sum(0)).figures(),
        "shuffled": Match(*shuffled.sum(0)).figures(),
        "constant": total([overlap(guess, each) for each in wanted]).figures() | {"guess": list(guess)},
        "gain": {"f1": Match(*own.sum(0)).f1 - Match(*shuffled.sum(0)).f1, "low": float(low), "high": float(high)},
        "different_answers": len(set(named)),
        "parsed": float(np.mean([answer.read is not None for answer in answers])),
    }


def examine(
    model: Idefics3ForConditionalGeneration,
    processor: Idefics3Processor,
    catalogue: Catalogue,
    most: int,
    seed: int,
) -> dict[str, Any]:
    """Figures and sample answers on test items, at most `most`; every form of the prompt where the items allow it.

    With picture and text, "shuffled" deals whole answers: its gain says that labels are known, not by which part.
    """
    model.eval()
    train = catalogue.fitting(TRAIN, IMAGE_ONLY)
    figures: dict[str, Any] = {}
    for name, form in (("picture alone", IMAGE_ONLY), ("picture and text", BOTH), ("text alone", TEXT_ONLY)):
        items = catalogue.fitting(TEST, form)[:most]
        if not items:
            continue
        start = time.monotonic()
        answers = ask(model, processor, catalogue, items, form)
        part: dict[str, Any] = {"items": len(items), "items_per_second": len(items) / (time.monotonic() - start)}
        if form.has_image:
            part["image"] = image_figures(answers, train, seed)
        if form.has_text:
            part["text"] = text_figures(answers)
        part["samples"] = [_sample(catalogue, answer, form) for answer in answers[:_SAMPLES]]
        figures[name] = part
        print(f"examined {name}: {len(items)} items in {time.monotonic() - start:.0f} s", flush=True)
    return figures


def _sample(catalogue: Catalogue, answer: Answer, form: Form) -> dict[str, str]:
    return {
        "item_id": answer.item.item_id,
        "said": answer.said,
        "target": catalogue.answer(answer.item, form),
    }
