"""Sheets of questions: true answers, and each question read as if it stood alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmsrarec_ray.data.shop.draw import item_picture
from mmsrarec_ray.data.shop.law import draw_shop
from mmsrarec_ray.models.load import TINY
from mmsrarec_ray.models.pretrain_vision import see
from mmsrarec_ray.summarize.lessons import BOTH, IMAGE_ONLY, TEXT_ONLY, shop_answer
from mmsrarec_ray.summarize.reading import QUESTIONS, Question, Reading, Sheet, draw_sheet, draw_shown, show, tally
from mmsrarec_ray.summarize.teach import answer_logits

SHOP = draw_shop(7, 200)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(TINY).eval()


def answer_of(question: Question, lines: list[tuple[str, ...]]) -> str:
    """Worked out from the words of the question and the item's keywords alone."""
    said = list(question.item.known.values())
    if question.kind == "each":
        return ", ".join(f"{word} {min(9, sum(word in line for line in lines))}" for word in said)
    if question.kind == "often":
        word = next(word for name, word in question.item.known.items() if f"its {name}?" in question.text)
        return "yes" if sum(word in line for line in lines) >= len(lines) / 3 else "no"
    shared = [len(set(said) & set(line)) for line in lines]
    return "yes" if np.mean(shared) >= len(said) / 4 else "no"


def test_the_answers_are_true_and_none_is_the_answer_to_everything() -> None:
    told: dict[str, list[str]] = {kind: [] for kind in QUESTIONS}
    rng = np.random.default_rng(0)
    for _ in range(300):
        drawn = draw_sheet(rng, draw_shown(SHOP, rng, rng.integers(len(SHOP), size=2)), 4)
        assert len(drawn.questions) == 6
        for each in drawn.questions:
            told[each.kind].append(each.answer)
            assert each.answer == f" {answer_of(each, drawn.lines)}"
    for kind, answers in told.items():
        most = max(answers.count(answer) for answer in set(answers)) / len(answers)
        assert most < 0.75, kind


@pytest.mark.parametrize("form", [BOTH, IMAGE_ONLY, TEXT_ONLY])
def test_what_is_known_of_a_shown_item_is_what_its_form_gives_away(form) -> None:
    for index in range(50):
        said = shop_answer(SHOP, index, form)
        known = show(SHOP, index, form).known
        assert all(word in said for word in known.values())
        assert ("colour" in known, "brand" in known) == form
        assert ("kind" in known) == (form.has_image or not SHOP.hidden_kind[index])


@pytest.mark.parametrize("seed", [1, 2])
def test_questions_of_a_sheet_are_read_as_if_each_stood_alone(processor, model, seed) -> None:
    reading = Reading(SHOP, processor)
    shown = [show(SHOP, 4, TEXT_ONLY), show(SHOP, 5, BOTH), show(SHOP, 6, IMAGE_ONLY)]
    drawn = draw_sheet(np.random.default_rng(seed), shown, 2)
    pictures = [item_picture(SHOP, index)[0] for index in (5, 6)]
    batch = reading.batch([drawn], {5: 0, 6: 1})
    pixels = processor(text=["<image>"] * 2, images=[[each] for each in pictures], return_tensors="pt")
    with torch.inference_mode():
        features = see(model, pixels["pixel_values"][:, 0])[batch.features]
        together, labels = answer_logits(model, batch, features)
        alone = [_alone(model, processor, reading, drawn, each) for each in drawn.questions]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    eos = processor.tokenizer.eos_token
    assert processor.tokenizer.decode(labels) == "".join(each.answer + eos for each in drawn.questions)
    weights = [part.sum().item() for part in batch.weights.split([len(each) for each in alone])]
    assert weights == pytest.approx([1 / len(drawn.questions)] * len(drawn.questions))


def _alone(model, processor, reading: Reading, drawn: Sheet, question: Question) -> torch.Tensor:
    """Logits of the answer's tokens and of the end of the turn, as anyone would ask."""
    turn = [{"role": "user", "content": reading.content(drawn, question)}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    index = question.item.picture
    shown = None if index is None else [[item_picture(SHOP, index)[0]]]
    inputs = processor(text=[prompt + question.answer], images=shown, return_tensors="pt")
    answer = len(processor.tokenizer(question.answer)["input_ids"])
    return model(**inputs).logits[0, -answer - 1 :]


def test_a_tally_counts_the_lines_before_and_its_numbers_are_what_is_learnt(processor) -> None:
    assert tally([("red", "mug"), ("red", "hat"), ("red", "mug")]) == "- red 0, mug 0\n- red 1, hat 0\n- red 2, mug 1"
    assert tally([("red",)] * 11).endswith("red 8\n- red 9\n- red 9")
    ids, labels = Reading(SHOP, processor).tallies(np.random.default_rng(0), 3)
    for row, label in zip(ids, labels, strict=True):
        text = processor.tokenizer.decode(row[row != processor.tokenizer.pad_token_id])
        numbers = re.findall(r" (\d)(?=[,\n]|$)", text.split("assistant\n")[1])
        assert processor.tokenizer.decode(label[label >= 0]).split() == numbers
        assert len(numbers) > 60
