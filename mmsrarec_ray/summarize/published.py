"""Keywords as the summary job publishes them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.parts import read_parts
from mmsrarec_ray.store import Folder


def read_halves(keywords: Folder, items: pa.Array) -> list[list[str]]:
    """What the picture shows of each item, and what its text says: two lists of lines, '' of an item without keywords.

    keywords: a published artefact; items: string ids, in whose order the lines are.
    """
    made = read_parts(keywords / "items", ["item_id", "image_keywords", "text_keywords"])
    places = pc.index_in(items, value_set=made["item_id"].combine_chunks())
    halves = (made[name].take(places).to_pylist() for name in ("image_keywords", "text_keywords"))
    return [[", ".join(words or ()) for words in half] for half in halves]
