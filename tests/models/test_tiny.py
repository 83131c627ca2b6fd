"""The shipped tiny model keeps the promises of its card, on items that neither its training nor its exam used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmsrarec_ray.data.shop.draw import item_picture
from mmsrarec_ray.data.shop.law import VOCABULARY, draw_shop
from mmsrarec_ray.models.load import TINY
from mmsrarec_ray.summarize.evaluate_tiny import Share, answers, examine_reading, grade, prompts
from mmsrarec_ray.summarize.keywords import Grammar, parse
from mmsrarec_ray.summarize.lessons import BOTH, IMAGE_ONLY, TEXT_ONLY

SEED, ITEMS = 40_000_001, 400
LOOK = ("colour", "pattern", "kind")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(TINY).eval()


@pytest.fixture(scope="module")
def shop():
    return draw_shop(SEED, ITEMS)


@pytest.fixture(scope="module")
def images():
    shop = draw_shop(SEED, ITEMS)
    return [item_picture(shop, index)[0] for index in range(ITEMS)]


@pytest.fixture(scope="module")
def ask(model, processor, shop):
    """Answers for the first items in a form, with these pictures."""

    def say(form, images, items=ITEMS):
        return answers(model, processor, prompts(shop, processor, range(items), form), images)

    return say


def test_it_sees_colour_pattern_and_kind_in_the_picture_alone(ask, shop, images):
    figures = grade(shop, ask(IMAGE_ONLY, images), IMAGE_ONLY)
    assert {name: figures[name].value for name in LOOK if figures[name].value < 0.97} == {}


def test_with_the_picture_of_another_item_it_is_wrong_as_often_as_a_guess(ask, shop, images):
    """Within four standard errors of one in ten, five and twelve: the words alone tell nothing of the look."""
    figures = grade(shop, ask(IMAGE_ONLY, [images[-1], *images[:-1]]), IMAGE_ONLY)
    for name in LOOK:
        guess = 1 / len(VOCABULARY[name])
        assert figures[name].value == pytest.approx(guess, abs=4 * np.sqrt(guess * (1 - guess) / ITEMS)), name


def test_with_picture_and_text_it_reads_both_and_sees_the_kind_that_the_text_hides(ask, shop, images):
    said = ask(BOTH, images[:200], items=200)
    figures = grade(shop, said, BOTH)
    assert {name: figures[name].value for name in (*LOOK, "kind, hidden") if figures[name].value < 0.95} == {}
    text = ("material", "use", "brand", "kind, in text")
    assert {name: figures[name].value for name in text if figures[name].value < 0.99} == {}
    grammar = Grammar(max_keywords=6, max_words=3, max_word_chars=20)
    assert all(len(parse(answer, True, True).image) <= grammar.max_keywords for answer in said)


def test_without_a_picture_it_reads_the_text(ask, shop):
    figures = grade(shop, ask(TEXT_ONLY, None, items=100), TEXT_ONLY)
    assert all(figures[name].value >= 0.99 for name in ("material", "use", "brand", "kind, in text"))


def test_it_compares_an_item_with_lists(model, processor, shop):
    figures = examine_reading(model, processor, shop, sheets=50)
    for shown in ("keywords", "picture and text"):
        assert figures[shown]["each"].value >= 0.6 > figures[shown]["each, one answer"].value + 0.5, shown
    assert figures["keywords"]["like"].value >= 0.9 > figures["keywords"]["like, one answer"].value + 0.2


def test_the_folder_is_small_loads_as_float32_and_its_weights_are_half(model):
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 8 * 2**20
    assert model.dtype == torch.float32
    assert 2.0e6 < sum(parameter.numel() for parameter in model.parameters()) < 2.8e6
    weights = TINY / "model.safetensors"
    assert weights.stat().st_size < 2.1 * sum(parameter.numel() for parameter in model.parameters())


def test_every_word_of_the_shop_both_verdicts_and_every_digit_are_one_token(processor):
    words = [word for values in VOCABULARY.values() for word in values]
    for word in (*words, "yes", "no", *map(str, range(10))):
        assert len(processor.tokenizer(f" {word}")["input_ids"]) == 1, word


def test_the_card_says_what_the_figures_say():
    written = json.loads(Path(TINY, "figures.json").read_text())
    card = Path(TINY, "README.md").read_text()
    for asked, column in (*written["figures"].items(), *written["reading"].items()):
        assert asked in card
        for name, count in column.items():
            share = Share(count["right"], count["of"])
            assert f"{100 * share.value:.1f} ({100 * share.bounds[0]:.1f} to {100 * share.bounds[1]:.1f})" in card, name
    alone = written["figures"]["picture alone"]
    assert all(alone[name]["of"] >= 1000 and Share(**alone[name]).value >= 0.97 for name in LOOK)
    assert all(Share(**written["figures"]["picture and text"][name]).value >= 0.99 for name in ("material", "brand"))
    mixed = written["figures"]["wrong picture and text"]
    assert Share(**mixed["kind, in text"]).value >= 0.95  # the picture of another kind does not tell it
    assert Share(**mixed["kind"]).value <= 0.15  # nor the text what the picture shows
