"""What the ranker knows of every item: its keywords, and, where candidates are shown whole, its text and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.parts import read_parts
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.rank.prompts import CandidateForm
from mmsrarec_ray.store import Folder

_SHOWN: dict[str, list[str]] = {
    "image": ["title", "text", "image", "image_uri"],
    "text": ["title", "text"],
    "keywords": [],
}
# To be put in order a column becomes one array, and with offsets of 32 bits that ends at 2 GiB.
_WIDE = {name: pa.large_string() for name in ("title", "text", "image_uri")} | {"image": pa.large_binary()}


Said = Literal["keywords", "image_keywords", "text_keywords", "titles"]


class Shown(Protocol):
    """What a question needs to know of items, by their numbers."""

    def lines(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """What stands for some items, a line each, '' of an item that has none."""

    def item(self, number: int) -> dict[str, Any]:
        """The columns of the items table that the form of candidates asks for."""


@dataclass(frozen=True)
class Catalogue:
    """All items, in the order of their ids, which is how `data.log.Log` numbers them.

    ids, words: string (n,); words: what stands for an item in one line, mostly its keywords, '' of an item that has
    none; shown: the columns of the items table that the form of candidates asks for, (n, …). Plain data: it lies in
    Ray's object store once a node. Pictures that the dataset holds as bytes lie there too; those behind a URI are read
    when they are asked for.
    """

    ids: pa.Array
    words: pa.Array
    shown: pa.Table

    @classmethod
    def read(cls, dataset: Folder, keywords: Folder | None, form: CandidateForm, said: Said = "keywords") -> Catalogue:
        """From a published dataset and its keywords, of which titles have no need. Raises InputError where no item has
        keywords."""
        columns = list(dict.fromkeys(["item_id", "title", *_SHOWN[form]]))
        items = read_parts(dataset / "items", columns)
        schema = pa.schema([field.with_type(_WIDE.get(field.name, field.type)) for field in items.schema])
        items = items.cast(schema).combine_chunks()  # a step by itself: so two copies stand at a time, and not three
        items = items.sort_by("item_id")
        if keywords is None:
            halves = [pa.nulls(items.num_rows)] * 2
        else:
            made = read_parts(keywords / "items", ["item_id", "image_keywords", "text_keywords"])
            if not made.num_rows:
                raise InputError(f"{keywords.path}: no item has keywords; the failures of `summarize` tell why.")
            places = pc.index_in(items["item_id"], value_set=made["item_id"].combine_chunks()).combine_chunks()
            halves = [made[name].take(places) for name in ("image_keywords", "text_keywords")]
        known = (column.to_pylist() for column in (items["title"], *halves))
        words = [line(said, *each) for each in zip(*known, strict=True)]
        ids = items["item_id"].combine_chunks()
        return cls(ids, pa.array(words, pa.string()), items.select(_SHOWN[form]))

    def numbers(self, ids: pa.Array) -> np.ndarray:
        """Places of these ids: int64 (n,). Raises KeyError for an id the catalogue does not have."""
        places = pc.index_in(ids, value_set=self.ids)
        if places.null_count:
            raise KeyError(ids.filter(pc.is_null(places))[0].as_py())
        return places.to_numpy().astype(np.int64)

    def lines(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """What stands for some items, a line each."""
        return self.words.take(pa.array(numbers, pa.int64())).to_pylist()

    def item(self, number: int) -> dict[str, Any]:
        """The columns of one item that `shown` has."""
        return self.shown.slice(number, 1).to_pylist()[0]


def line(said: Said, title: str | None, image: Sequence[str] | None, text: Sequence[str] | None) -> str:
    """An item as prompts hold it: its title, or its keywords, those of the picture first, none twice."""
    if said == "titles":
        return " ".join((title or "").split())
    halves = {"keywords": (image, text), "image_keywords": (image,), "text_keywords": (text,)}[said]
    return ", ".join(dict.fromkeys(word for half in halves for word in half or ()))
