"""What our own API saw: lines of JSON, each an interaction, or an item that was shown (an impression). The catalogue
comes as tables.

    {"event_id": "…", "kind": "interaction", "user_id": "…", "item_id": "…", "timestamp": 1700000000000, "weight": 1.0,
     "request_id": "…", "rank": 3, "bundle": "…"}

`kind` is `interaction` or `impression`; `timestamp` is in milliseconds; what follows it may be null or absent.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from mmsrarec_ray.data.importers import tables
from mmsrarec_ray.data.importers.base import WRONG_TYPE, Import, find_files, kind_of
from mmsrarec_ray.data.read import PROBLEM, Source
from mmsrarec_ray.errors import InputError
from mmsrarec_ray.settings import Data
from mmsrarec_ray.store import Folder

_NAMES = {"user_id": "user_id", "item_id": "item_id", "timestamp": "timestamp", "weight": "weight"}
# Their names -> ours; `_id` in ours means that there has to be one.
_FURTHER = {"event_id": "event_id", "kind": "kind", "request_id": "request", "rank": "rank", "bundle": "bundle"}
_KINDS = ("interaction", "impression")
_RANK = r"^\d{1,9}$"


def open_import(data: Data, folder: Folder) -> Import:
    if data.interactions is None:
        raise InputError("data.interactions: must name the lines of the API, a file or a folder of .jsonl files.")
    items, item = tables.catalogue(data, folder)
    files = find_files(folder, data.interactions, "data.interactions")
    if (kind := kind_of(folder, files, "data.interactions")) != "jsonl":
        raise InputError(f"{folder.file(files[0])}: data.interactions must be .jsonl files. Got {kind}.")
    return Import(
        items=items,
        item=item,
        interactions=Source(folder, files, "jsonl", ("event_id", "kind", "user_id", "item_id", "timestamp")),
        interaction_table=_events,
        ordered_by="time",
        weighted=True,
        events=True,
    )


def _events(block: pa.Table) -> pa.Table:
    lines = tables.from_json(block, _NAMES | _FURTHER)
    rows = tables.interaction_columns(lines, _NAMES, "ms")
    kind, rank = lines["kind"], lines["rank"]
    known = pc.if_else(pc.is_in(kind, value_set=pa.array(_KINDS)), kind, None)
    place = pc.if_else(pc.fill_null(pc.match_substring_regex(rank, _RANK), False), rank, None).cast(pa.int32())
    problem = tables.blame(rows[PROBLEM], known, kind, WRONG_TYPE, f"kind: expected {' or '.join(_KINDS)}")
    ranked = pc.coalesce(place, pc.if_else(pc.is_null(rank), pa.scalar(0, pa.int32()), None))
    problem = tables.blame(problem, ranked, rank, WRONG_TYPE, "rank: expected a whole number from 0")
    columns = {name: rows[name] for name in rows.column_names if name != PROBLEM}
    return pa.table(
        columns
        | {
            PROBLEM: problem,
            "event_id": lines["event_id"],
            "impression": pc.equal(known, "impression"),
            "request_id": lines["request_id"],
            "rank": place,
            "bundle": lines["bundle"],
        }
    )
