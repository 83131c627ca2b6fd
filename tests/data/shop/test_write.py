"""The texts of the drawn shop say what they should and nothing that only the picture may tell."""

import re

import numpy as np
import pytest

from mmsrarec_ray.data.shop import law
from mmsrarec_ray.data.shop.truth import Truth, item_keywords, true_keywords
from mmsrarec_ray.data.shop.write import (
    FILLERS,
    NEUTRAL_NOUNS,
    SENTENCES,
    TITLES,
    item_text,
    slots,
    write_text,
)

VOCABULARY = [word for values in law.VOCABULARY.values() for word in values]


def names(text, word):
    """Whether a text names a word, in any case and also in the plural."""
    return re.search(rf"\b{word}(s|es)?\b", text.casefold()) is not None


def said(text, attribute):
    return [word for word in law.VOCABULARY[attribute] if names(text, word)]


@pytest.fixture(scope="module")
def shop():
    return law.draw_shop(7, 3000)


@pytest.fixture(scope="module")
def written(shop):
    """(attributes, hidden, title, text) of every item."""
    rows = []
    for index in range(len(shop)):
        words = {name: values[shop.attributes[name][index]] for name, values in law.VOCABULARY.items()}
        rows.append((words, bool(shop.hidden_kind[index]), *item_text(shop, index)))
    return rows


@pytest.mark.parametrize("template", [*TITLES, *SENTENCES, *FILLERS, *NEUTRAL_NOUNS])
def test_no_template_holds_a_word_of_the_vocabularies(template):
    bare = re.sub(r"\{\w+\}", " ", template)
    assert [word for word in VOCABULARY if names(bare, word)] == []


def test_there_are_many_templates_and_every_title_has_a_sentence_that_completes_it():
    assert len(SENTENCES) >= 12
    assert len(set(SENTENCES)) == len(SENTENCES)
    assert all("use" in slots(sentence) for sentence in SENTENCES)
    for title in TITLES:
        missing = {"brand", "material"} - slots(title)
        assert sum(missing <= slots(sentence) for sentence in SENTENCES) >= 3


def test_colour_pattern_and_setting_are_never_said(written):
    for _, _, title, text in written:
        for attribute in ("colour", "pattern", "setting"):
            assert said(f"{title} {text}", attribute) == []


def test_the_kind_is_said_exactly_where_it_is_not_hidden(written):
    for words, hidden, title, text in written:
        assert said(f"{title} {text}", "kind") == ([] if hidden else [words["kind"]])


def test_material_use_and_brand_are_said_and_no_others(written):
    for words, _, title, text in written:
        whole = f"{title} {text}"
        assert said(whole, "material") == [words["material"]]
        assert said(whole, "brand") == [words["brand"]]
        assert said(text, "use") == [words["use"]]
        assert "{" not in whole
        assert title
        assert text


def test_no_title_and_no_sentence_is_rare(written):
    """Each template is met in a shop of 3000 items."""
    texts = [f"{title}\n{text}" for _, _, title, text in written]
    for template in (*SENTENCES, *FILLERS):
        pattern = re.compile(re.sub(r"\\{\w+\\}", ".+?", re.escape(template)), re.IGNORECASE)
        assert sum(bool(pattern.search(text)) for text in texts) > 10, template


def test_the_same_item_reads_the_same_and_another_index_does_not(shop):
    assert item_text(shop, 5) == item_text(shop, 5)
    fixed = ("mug", "steel", "office", "acme", False)
    assert write_text(np.random.default_rng([7, 4, 5]), *fixed) == write_text(np.random.default_rng([7, 4, 5]), *fixed)
    several = {write_text(np.random.default_rng([7, 4, index]), *fixed) for index in range(20)}
    assert len(several) > 15


def test_the_true_keywords_name_the_kind_in_the_text_only_where_the_text_does(shop, written):
    attributes = ("mug", "red", "plain", "steel", "office", "acme")
    assert true_keywords(*attributes, hidden_kind=False) == Truth(
        ("red", "plain", "mug"), ("mug", "steel", "office", "acme")
    )
    assert true_keywords(*attributes, hidden_kind=True) == Truth(("red", "plain", "mug"), ("steel", "office", "acme"))
    for index, (_, _, title, text) in enumerate(written):
        assert all(names(f"{title} {text}", word) for word in item_keywords(shop, index).text)
