"""Amazon Reviews 2023: products in `meta_*.jsonl`, reviews in the other `.jsonl` files, packed with gzip or not.

An item is a parent product, which is what reviews of all its variants share.
"""

from __future__ import annotations

import posixpath
from functools import partial
from typing import Any

from mmsrarec_ray.data.importers.base import (
    WRONG_TYPE,
    Import,
    Row,
    RowError,
    clean_attribute,
    clean_id,
    clean_text,
    find_endings,
    item_of,
    parse_json,
)
from mmsrarec_ray.data.importers.tables import interaction_columns
from mmsrarec_ray.data.read import LINE, Source
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.settings import Data
from mmsrarec_ray.store import Folder

_NAMES = {"user_id": "user_id", "parent_asin": "item_id", "rating": "weight", "timestamp": "timestamp"}
_ATTRIBUTES = ("main_category", "categories", "store", "price")
_SIZES = ("large", "hi_res", "thumb")  # about 500 pixels are more than a model looks at


def open_import(data: Data, folder: Folder) -> Import:
    files = [name for name in find_endings(folder, ".jsonl", ".jsonl.gz") if name != data.deletions]
    products = [file for file in files if posixpath.basename(file).startswith("meta_")]
    reviews = [file for file in files if file not in products]
    for found, name in (products, "meta_*.jsonl, the products"), (reviews, "other .jsonl files, the reviews"):
        if not found:
            raise InputError(f"{folder.path}: expected {name}. Found {', '.join(files)}.")
    return Import(
        items=Source(folder, products, "jsonl", ("parent_asin", "title")),
        item=_item,
        interactions=Source(folder, reviews, "jsonl", tuple(_NAMES)),
        interaction_table=partial(interaction_columns, names=_NAMES, unit="ms"),
        ordered_by="time",
        weighted=True,
    )


def _item(row: Row) -> dict[str, Any]:
    product = parse_json(row[LINE])
    said = [clean_text(each, name) for name in ("features", "description") for each in _list(product, name)]
    attributes = _details(product.get("details")) | {name: product.get(name) for name in _ATTRIBUTES}
    return item_of(
        clean_id(product.get("parent_asin"), "parent_asin"),
        clean_text(product.get("title"), "title"),
        " ".join(filter(None, said)) or None,
        _picture(_list(product, "images")),
        attributes={name: clean_attribute(value, name) for name, value in attributes.items()},
    )


def _details(details: Any) -> dict[str, Any]:
    """Those that are text, numbers, true or false: brand, weight. Ranks in categories are tables of their own."""
    plain = details if isinstance(details, dict) else {}
    told = {name: value for name, value in plain.items() if isinstance(value, str | int | float)}
    for name in told:
        clean_text(name, "details")  # a name may be as broken as a value
    return told


def _picture(images: list[Any]) -> str | None:
    """The address of the main picture, else of the first."""
    shown = sorted((image for image in images if isinstance(image, dict)), key=lambda i: i.get("variant") != "MAIN")
    addresses = (clean_text(image.get(size), f"images.{size}") for image in shown for size in _SIZES)
    return next(filter(None, addresses), None)


def _list(product: Row, name: str) -> list[Any]:
    value = product.get(name)
    if value is not None and not isinstance(value, list):
        raise RowError(f"{WRONG_TYPE}: {name}: expected a list, got {type(value).__name__} {value!a:.80}")
    return value or []
