"""Rows of Parquet files by their items: one is read with its row group, and without the pictures of all others."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs


def place_of(ids: pa.Array, item_id: str) -> int | None:
    """Where an id stands among sorted ones: in the order of their bytes, which is that of their characters."""
    place = bisect.bisect_left(range(len(ids)), item_id, key=lambda number: ids[number].as_py())
    return place if place < len(ids) and ids[place].as_py() == item_id else None


class Rows:
    """Where each item of some files lies. Rows count in the order of `item_id`; ids and places are all that is held."""

    def __init__(self, filesystem: pafs.FileSystem, files: Sequence[str]):
        """files: full paths."""
        self._filesystem, self._files = filesystem, files
        columns = [self._ids_of(path) for path in files]
        ids = pa.concat_arrays([pa.array([], pa.string()), *columns])
        lengths = [len(column) for column in columns]
        order = pc.sort_indices(ids)
        self._ids, place = ids.take(order), order.to_numpy()
        self._file = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[place]
        self._row = np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])[place]

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, item_id: str, columns: list[str]) -> dict[str, Any] | None:
        """Some columns of an item; None of one that is not there."""
        place = place_of(self._ids, item_id)
        return None if place is None else self.read(place, columns)

    def read(self, number: int, columns: list[str]) -> dict[str, Any]:
        """Some columns of a row. The file is opened anew: several threads may read."""
        with self._filesystem.open_input_file(self._files[self._file[number]]) as stream:
            file, row = pq.ParquetFile(stream), int(self._row[number])
            lengths = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.cumsum([0, *lengths])
            group = int(np.searchsorted(starts, row, "right")) - 1
            return file.read_row_group(group, columns).slice(row - int(starts[group]), 1).to_pylist()[0]

    def _ids_of(self, path: str) -> pa.Array:
        with self._filesystem.open_input_file(path) as stream:
            return pq.ParquetFile(stream).read(["item_id"])["item_id"].combine_chunks()
