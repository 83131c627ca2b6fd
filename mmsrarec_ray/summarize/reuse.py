"""What is known already: keywords made by the same weights and prompt from the same content.

Membership is looked up by 16-byte hashes of (item id, content hash), sorted: 1.6 GB for 100 million items,
once a node, in Ray's object store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import ray

from mmsrarec_ray.data.frames import iter_tables, map_tables, read_parquet
from mmsrarec_ray.store import Folder

KEY = np.dtype("V16")
_KEY_TYPE = pa.binary(KEY.itemsize)


def keys(table: pa.Table) -> np.ndarray:
    """One key a row, V16 (n,). The table needs `item_id` and `content_hash`."""
    digests = (
        hashlib.blake2b(f"{item}\0{content}".encode(), digest_size=KEY.itemsize).digest()
        for item, content in zip(table["item_id"].to_pylist(), table["content_hash"].to_pylist(), strict=True)
    )
    return np.frombuffer(b"".join(digests), dtype=KEY)


def index(parts: Iterable[np.ndarray]) -> np.ndarray:
    """All keys, each once, sorted for `contains`: V16 (n,). Holds 32 bytes a key while it sorts."""
    every = np.concatenate([np.empty(0, KEY), *parts]).view(_HALVES)
    every.sort()
    again = np.flatnonzero(every[1:] == every[:-1])
    return (np.delete(every, again) if len(again) else every).view(KEY)


def contains(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which of the wanted keys are known: bool (n,). known: as `index` gives it."""
    if len(known) == 0:
        return np.zeros(len(wanted), bool)
    known, wanted = known.view(_HALVES), wanted.view(_HALVES)
    place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return known[place] == wanted


@dataclass(frozen=True)
class Items:
    """Files with one row an item, on the filesystem of a folder."""

    folder: Folder
    files: list[str]

    def read(self, columns: list[str] | None = None) -> ray.data.Dataset:
        rows = read_parquet(self.folder, self.files)
        return rows.select_columns(columns) if columns else rows

    def index(self) -> np.ndarray:
        """The keys of all rows, as `index` gives them."""
        if not self.files:
            return index([])
        hashed = map_tables(self.read(["item_id", "content_hash"]), _key_column)
        return index(_from_column(table["key"]) for table in iter_tables(hashed))


def _key_column(table: pa.Table) -> pa.Table:
    """Hashed where the rows are read: in one process a hundred million would take minutes."""
    column = pa.FixedSizeBinaryArray.from_buffers(_KEY_TYPE, table.num_rows, [None, pa.py_buffer(keys(table))])
    return pa.table({"key": column})


def _from_column(column: pa.ChunkedArray) -> np.ndarray:
    buffers = ((chunk, chunk.buffers()[1]) for chunk in column.chunks)
    return np.concatenate(
        [np.frombuffer(buffer, KEY, len(chunk), chunk.offset * KEY.itemsize) for chunk, buffer in buffers]
    )


# numpy orders and compares records of two integers, not raw bytes
_HALVES = np.dtype([("high", "<u8"), ("low", "<u8")])
