"""What a perfect reader would say of a shop item: the keywords a summary is measured against."""

from __future__ import annotations

from typing import NamedTuple

from mmsrarec_ray.data.shop.law import VOCABULARY, Shop


class Truth(NamedTuple):
    """The true keywords of an item. image: colour, pattern, kind; text: the kind if named, material, use, brand."""

    image: tuple[str, ...]
    text: tuple[str, ...]


def true_keywords(
    kind: str, colour: str, pattern: str, material: str, use: str, brand: str, hidden_kind: bool
) -> Truth:
    """The keywords of an item with these attributes."""
    named = () if hidden_kind else (kind,)
    return Truth((colour, pattern, kind), (*named, material, use, brand))


def item_keywords(shop: Shop, index: int) -> Truth:
    """The keywords of item `index` of a shop."""
    names = ("kind", "colour", "pattern", "material", "use", "brand")
    words = {name: VOCABULARY[name][shop.attributes[name][index]] for name in names}
    return true_keywords(**words, hidden_kind=bool(shop.hidden_kind[index]))
