"""The last step of a summary run: what was taken over and what was made, put together, sorted, in few files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from mmsrarec_ray.data.frames import iter_tables, map_tables
from mmsrarec_ray.data.parts import to_parquet
from mmsrarec_ray.data.schemas import FAILURES, KEYWORDS
from mmsrarec_ray.store import Folder
from mmsrarec_ray.summarize.pipeline import FAILURE_PARTS
from mmsrarec_ray.summarize.reuse import Items, contains, keys

_ROWS_PER_FILE = 1_000_000


def parquet_files(folder: Folder) -> list[str]:
    """Full paths of the Parquet files of a folder; none where there is no folder."""
    return [folder.file(name) for name in folder.files() if name.endswith(".parquet")]


def publish(
    catalogue: np.ndarray, keyword_files: list[str], staging: Folder, out: Folder
) -> tuple[dict[str, int], dict]:
    """Write `items/` and `failures/` below `out`; keywords of items that left the catalogue stay behind.

    catalogue: keys of all items, as `reuse.index` gives them. Returns the counts `out` and `failed`, and the metrics of
    the keywords.

    A task of a killed run may have written after the next run had looked: of an item that is there twice, one row
    stays. One that ran twice may have failed at an item first: who has keywords has not failed.
    """
    there = ray.put(catalogue)
    totals = Counter[str]()
    for name in ("items", "failures"):
        (out / name).clear()
    if keyword_files:
        current = map_tables(Items(out, keyword_files).read(), _keep, there)
        for table in _write_sorted(current, "item_id", KEYWORDS, out / "items"):
            _measure(table, totals)
    if failure_files := parquet_files(staging / FAILURE_PARTS):
        answered = ray.put(Items(out, keyword_files).index())
        failed = map_tables(Items(out, failure_files).read(), _drop_answered, answered)
        for table in _write_sorted(failed, "id", FAILURES, out / "failures"):
            totals["failed"] += table.num_rows
    return {"out": totals["out"], "failed": totals["failed"]}, _metrics(totals)


def _keep(batch: pa.Table, catalogue: ray.ObjectRef) -> pa.Table:
    return batch.filter(pa.array(contains(ray.get(catalogue), keys(batch))))


def _drop_answered(failures: pa.Table, answered: ray.ObjectRef) -> pa.Table:
    named = failures.rename_columns(["item_id" if name == "id" else name for name in failures.column_names])
    return failures.filter(pa.array(~contains(ray.get(answered), keys(named))))


def _write_sorted(rows: ray.data.Dataset, key: str, schema: pa.Schema, folder: Folder) -> Iterator[pa.Table]:
    """Write rows in the order of their key, so that equal results are equal files; yields what each file holds."""
    last = None
    for number, batch in enumerate(_sorted(rows, key)):
        table = _each_once(batch.select(schema.names).cast(schema), key, last)
        last = batch[key][-1].as_py()
        if table.num_rows:
            folder.write_bytes(f"part-{number:05d}.parquet", to_parquet(table))
            yield table


def _each_once(table: pa.Table, key: str, last: str | None) -> pa.Table:
    """The first row of each key, of rows in its order. last: the key before them."""
    before = pa.chunked_array([pa.array([last], pa.string()), table[key][:-1]])
    return table.filter(pc.fill_null(pc.not_equal(table[key].combine_chunks(), before.combine_chunks()), True))


def _sorted(rows: ray.data.Dataset, key: str) -> Iterator[pa.Table]:
    """The rows in order, so many as a file holds at a time.

    What fits one file is sorted here: on a small machine a shuffle through Ray takes twenty seconds to start.
    """
    first: list[pa.Table] = []
    for table in iter_tables(rows):
        first.append(table)
        if sum(each.num_rows for each in first) > _ROWS_PER_FILE:
            return iter_tables(rows.sort(key), _ROWS_PER_FILE)
    return iter([pa.concat_tables(first).sort_by(key)] if first else [])


def _measure(table: pa.Table, totals: Counter[str]) -> None:
    totals["out"] += table.num_rows
    totals["tokens"] += pc.sum(table["tokens"]).as_py()
    for half in ("image_keywords", "text_keywords"):
        totals[half] += pc.sum(pc.list_value_length(table[half])).as_py()


def _metrics(totals: Counter[str]) -> dict[str, Any]:
    items = max(totals["out"], 1)
    names = ("tokens", "image_keywords", "text_keywords")
    return {f"{name}_per_item": round(totals[name] / items, 3) for name in names}
