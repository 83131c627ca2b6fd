"""MicroLens: titles, who watched what, and covers in a folder.

`titles.csv` and `pairs.tsv` (a user and, in order, the items), as MLLM-MSR ships them, or the release's own files, such
as `MicroLens-50k_titles.csv`, `MicroLens-50k_pairs.csv` (user, item, milliseconds) and `MicroLens-50k_covers/`. In
`pairs.tsv` there is no time: the position in the line is the order.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from mmsrarec_ray.data.importers.base import Import, Row, clean_id, clean_text, exists, item_of
from mmsrarec_ray.data.importers.tables import interaction_columns
from mmsrarec_ray.data.read import LINE, MALFORMED, ORDER, PLACE, PROBLEM, ROW, SOURCE, Source
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.settings import Data
from mmsrarec_ray.store import Folder

_NAMES = {"user": "user_id", "item": "item_id", "timestamp": "timestamp"}


def open_import(data: Data, folder: Folder) -> Import:
    titles = _need(folder, "titles.csv")
    pairs = _need(folder, "pairs.csv", "pairs.tsv")  # the first knows the time
    timed = pairs.endswith(".csv")
    return Import(
        items=Source(folder, [titles], "csv", ("item", "title")),
        item=partial(_item, covers=_covers(data, folder)),
        interactions=Source(folder, [pairs], *(("csv", tuple(_NAMES)) if timed else ("lines", (LINE,)))),
        interaction_table=partial(interaction_columns, names=_NAMES, unit="ms") if timed else _interactions,
        ordered_by="time" if timed else "order",
    )


def _covers(data: Data, folder: Folder) -> Folder | None:
    if data.covers and not exists(folder, data.covers):
        raise InputError(f"{folder.file(data.covers)}: data.covers must be a folder of pictures. There is none.")
    name = data.covers or _find(folder, "covers")
    return folder / name if name else None


def _need(folder: Folder, *names: str) -> str:
    found = _find(folder, *names)
    if found is None:
        raise InputError(f"{folder.path}: expected {' or '.join(names)}, with any prefix_ before it. Found none.")
    return found


def _find(folder: Folder, *names: str) -> str | None:
    """What has the first of these names, alone or after a prefix_. Raises InputError where several have it."""
    infos = folder.filesystem.get_file_info(pafs.FileSelector(folder.path, allow_not_found=True))
    for name in names:
        found = sorted(info.base_name for info in infos if f"_{info.base_name}".endswith(f"_{name}"))
        if len(found) > 1:
            raise InputError(f"{folder.path}: expected one {name}, got {', '.join(found)}.")
        if found:
            return found[0]
    return None


def _item(row: Row, covers: Folder | None) -> dict[str, Any]:
    item_id = clean_id(row["item"], "item")
    return item_of(
        item_id, clean_text(row["title"], "title"), image_uri=covers.uri(f"{item_id}.jpg") if covers else None
    )


def _interactions(block: pa.Table) -> pa.Table:
    """One line is many interactions: all share its row, and their order follows the position."""
    found = pc.extract_regex(block[LINE].combine_chunks(), r"^(?P<user>[^\t]*)\t\s*(?P<items>\S.*)$")
    malformed = pc.if_else(pc.is_null(found), f"{MALFORMED}: line: expected a user, a tab and items", None)
    problem = pc.coalesce(block[PROBLEM].combine_chunks(), malformed)
    users = pc.utf8_trim_whitespace(pc.struct_field(found, "user"))
    listed = pc.coalesce(pc.utf8_trim_whitespace(pc.struct_field(found, "items")), "")
    items = pc.split_pattern_regex(listed, r"\s+")
    lengths = pc.list_value_length(items).to_numpy()
    line = np.repeat(np.arange(len(items)), lengths)
    position = np.arange(len(line)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return pa.table(
        {
            SOURCE: block[SOURCE].take(line),
            ROW: block[ROW].take(line),
            ORDER: block[ORDER].take(line),
            PROBLEM: problem.take(pa.array(line)),
            "user_id": users.take(pa.array(line)),
            "item_id": items.values,
            "timestamp": pa.array(position, pa.int64()),
            "weight": pa.nulls(len(line), pa.float32()),
        }
    ).cast(
        pa.schema([*PLACE, ("user_id", "string"), ("item_id", "string"), ("timestamp", "int64"), ("weight", "float32")])
    )
