"""Four items of the drawn shop, one with a broken picture and no keywords."""

from __future__ import annotations

import pyarrow as pa

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.shop.generate import item_row, shop_of
from mmsrarec_ray.rank.catalogue import Catalogue


def config(*words: str) -> Config:
    return load(None, ["data.format=shop", "run=/nowhere", *words])


def catalogue() -> Catalogue:
    shop = shop_of(5, 1200)
    rows = [{"image_uri": None, **item_row(shop, index)} for index in range(4)]
    rows[2]["image"] = rows[2]["image"][:200]
    table = pa.Table.from_pylist(rows)
    words = pa.array(["red, mug", "blue, hat", "", "green, bag"])
    return Catalogue(table["item_id"].combine_chunks(), words, table.select(["title", "text", "image", "image_uri"]))
