"""The shop as files: what the world sees of an item holds nothing of what it is not told."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mmsrarec_ray.data.shop import law
from mmsrarec_ray.data.shop.generate import item_row, truth_row


def test_an_item_is_the_same_whenever_it_is_drawn_and_differs_from_the_next() -> None:
    shop = law.draw_shop(3, 1200)
    assert item_row(shop, 17) == item_row(law.draw_shop(3, 1200), 17)
    assert item_row(shop, 17)["image"] != item_row(shop, 18)["image"]


def test_the_picture_and_the_text_tell_what_the_law_says() -> None:
    shop = law.draw_shop(3, 1200)
    for index in range(40):
        row, truth = item_row(shop, index), truth_row(shop, index)
        said = f"{row['title']} {row['text']}".casefold()
        assert truth["use"] in said
        assert truth["brand"] in said
        assert truth["material"] in said
        assert (truth["kind"] in said) != truth["hidden_kind"]
        assert not [word for word in (*law.COLOURS, *law.PATTERNS) if word in said.split()]
        with Image.open(io.BytesIO(row["image"])) as picture:
            assert picture.size == (96, 96)
            assert np.asarray(picture).std() > 5


def test_the_truth_names_the_companions() -> None:
    shop = law.draw_shop(3, 1200)
    companions = truth_row(shop, 5)["companions"]
    assert companions == [f"item-{index:05d}" for index in shop.companions[5]]
