"""Writes the title and text of a shop item: what its picture cannot show, in varied sentences.

The text names the material, the use and the brand, each at least once over title and text (the use always in
the text), and the kind only where the law does not hide it. It never names a colour or a pattern, nor any
other word of the vocabularies: `tests/data/shop/test_write.py` checks the templates for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter

import numpy as np

from mmsrarec_ray.data.shop.law import VOCABULARY, Shop

NEUTRAL_NOUNS = ("piece", "item", "find", "design", "product")

TITLES = (
    "{brand} {material} {noun}",
    "{material} {noun} by {brand}",
    "{noun} in {material}, {brand}",
    "{brand} {noun}",
    "{noun} from {brand}",
    "{material} {noun}",
)
# Every sentence names the use. An item gets one that also names whatever its title leaves out.
SENTENCES = (
    "Made for {use}.",
    "A good choice for {use}.",
    "Ideal for {use} and easy to like.",
    "Designed with {use} in mind.",
    "You will love this {noun} for {use}.",
    "{brand} made it for {use}.",
    "By {brand}, for {use}.",
    "The people at {brand} had {use} in mind.",
    "Another favourite from {brand}, meant for {use}.",
    "A {brand} {noun}: the right companion for {use}.",
    "Real {material}, well suited to {use}.",
    "Built from {material} to last, for {use}.",
    "Crafted in fine {material} for {use}.",
    "The {material} makes this {noun} right for {use}.",
    "{brand} chose the best {material}, with {use} in mind.",
    "Expect honest {material} from {brand}, just right for {use}.",
    "Fine {material}, signed {brand}, perfect for {use}.",
    "For {use}: {brand} quality in {material}.",
)
FILLERS = (
    "Ships within two days.",
    "Free returns for thirty days.",
    "Comes with a two year warranty.",
    "Wipe clean with a damp cloth.",
    "Our customers keep coming back for it.",
    "Packed with care in recycled cardboard.",
    "Only a few left in stock.",
    "Rated highly by our customers.",
    "Small details make the difference.",
    "Light to carry and simple to store.",
    "See the picture for the details.",
    "New this season.",
)
_USE_PHRASES = {"office": "the office", "bedroom": "the bedroom", "party": "the party"}
_MOST_FILLERS = 2


def slots(template: str) -> set[str]:
    """The names in braces of a template."""
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def write_text(
    rng: np.random.Generator, kind: str, material: str, use: str, brand: str, hidden_kind: bool
) -> tuple[str, str]:
    """The title and the text of an item. With `hidden_kind` a neutral noun stands where the kind would."""
    noun = _pick(rng, NEUTRAL_NOUNS) if hidden_kind else kind
    words = {"noun": noun, "material": material, "use": _USE_PHRASES.get(use, use), "brand": brand.capitalize()}
    title = _pick(rng, TITLES)
    missing = {"material", "brand"} - slots(title)
    sentence = _pick(rng, [template for template in SENTENCES if missing <= slots(template)])
    fillers = [FILLERS[i] for i in rng.permutation(len(FILLERS))[: rng.integers(_MOST_FILLERS + 1)]]
    body = [sentence, *fillers]
    order = rng.permutation(len(body))
    text = " ".join(_capitalised(body[i].format(**words)) for i in order)
    return _capitalised(title.format(**words)), text


def item_text(shop: Shop, index: int) -> tuple[str, str]:
    """The title and text of item `index` of a shop; they depend on the shop's seed, the index and the law alone."""
    rng = np.random.default_rng([shop.seed, 4, index])
    words = {name: values[shop.attributes[name][index]] for name, values in VOCABULARY.items()}
    return write_text(
        rng, words["kind"], words["material"], words["use"], words["brand"], bool(shop.hidden_kind[index])
    )
