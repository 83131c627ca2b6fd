"""MicroLens as MLLM-MSR ships it: `pairs.tsv` (a user and, in order, the items) and `titles.csv`.

There is no time: the position in the line is the order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.importers.base import Import, Row, clean_id, clean_text, find_files
from mmsrarec_ray.data.read import MALFORMED, PLACE, Source
from mmsrarec_ray.store import Folder


def open_import(folder: Folder) -> Import:
    titles = find_files(folder, "titles.csv", "titles.csv")
    pairs = find_files(folder, "pairs.tsv", "pairs.tsv")
    return Import(
        items=Source(folder, titles, "csv", ("item", "title")),
        item=_item,
        interactions=Source(folder, pairs, "lines", ("line",)),
        interaction_table=_interactions,
        ordered_by="order",
    )


def _item(row: Row) -> dict[str, Any]:
    return {
        "item_id": clean_id(row["item"], "item"),
        "title": clean_text(row["title"], "title"),
        "text": None,
        "image": None,
        "image_uri": None,
        "attributes": {},
    }


def _interactions(block: pa.Table) -> pa.Table:
    """One line is many interactions: all share its row, and their order follows the position."""
    found = pc.extract_regex(block["line"].combine_chunks(), r"^(?P<user>[^\t]*)\t\s*(?P<items>\S.*)$")
    malformed = pc.if_else(pc.is_null(found), f"{MALFORMED}: line: expected a user, a tab and items", None)
    problem = pc.coalesce(block["problem"].combine_chunks(), malformed)
    users = pc.utf8_trim_whitespace(pc.struct_field(found, "user"))
    listed = pc.coalesce(pc.utf8_trim_whitespace(pc.struct_field(found, "items")), "")
    items = pc.split_pattern_regex(listed, r"\s+")
    lengths = pc.list_value_length(items).to_numpy()
    line = np.repeat(np.arange(len(items)), lengths)
    position = np.arange(len(line)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return pa.table(
        {
            "source": block["source"].take(line),
            "row": block["row"].take(line),
            "order": block["order"].take(line),
            "problem": problem.take(pa.array(line)),
            "user_id": users.take(pa.array(line)),
            "item_id": items.values,
            "timestamp": pa.array(position, pa.int64()),
            "weight": pa.nulls(len(line), pa.float32()),
        }
    ).cast(
        pa.schema([*PLACE, ("user_id", "string"), ("item_id", "string"), ("timestamp", "int64"), ("weight", "float32")])
    )
