"""Pictures of items for people to look at: decoded within limits, shrunk, and encoded anew."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.images import ImageError, ImageLimits, load_image
from mmsrarec_ray.serve.catalogue import place_of
from mmsrarec_ray.serve.store import Store
from mmsrarec_ray.store import Folder

_LONG_SIDE = 192
_KEPT = 2_000  # thumbnails of the bundle that are kept: about 20 MB


class _Rows:
    """Where each item lies in the dataset: one is found without reading the pictures of others, but for its group."""

    def __init__(self, items: Folder):
        self._folder, self._files = items, items.files()
        columns = [self._open(name).read(["item_id"])["item_id"].combine_chunks() for name in self._files]
        ids = pa.concat_arrays([pa.array([], pa.string()), *columns])
        lengths = [len(column) for column in columns]
        order = pc.sort_indices(ids)
        self._ids, place = ids.take(order), order.to_numpy()
        self._file = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[place]
        self._row = np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])[place]

    def find(self, item_id: str) -> dict[str, Any] | None:
        """Its `image` and `image_uri`; None of an item that is not there."""
        place = place_of(self._ids, item_id)
        if place is None:
            return None
        file, row = self._open(self._files[self._file[place]]), int(self._row[place])
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return file.read_row_group(group, ["image", "image_uri"]).slice(row, 1).to_pylist()[0]
            row -= rows
        return None

    def _open(self, name: str) -> pq.ParquetFile:
        return pq.ParquetFile(self._folder.filesystem.open_input_file(self._folder.file(name)))


class Pictures:
    """Thumbnails of the bundle's items, read from the dataset when they are asked for, and of those in the store."""

    def __init__(self, config: Config, dataset: Folder, store: Store):
        self._limits = ImageLimits(config.data.max_image_bytes, config.data.max_image_pixels)
        self._store, self._rows = store, _Rows(dataset / "items")
        self._of_bundle = lru_cache(maxsize=_KEPT)(self._read)

    def thumbnail(self, item_id: str) -> bytes | None:
        """A PNG of at most 192 pixels a side; None of an item without a picture that can be shown."""
        item = self._store.items([item_id]).get(item_id)
        if item is None:
            return self._of_bundle(item_id)
        return self._shrunk({"image": item.image, "image_uri": None}) if item.status != "deleted" else None

    def _read(self, item_id: str) -> bytes | None:
        row = self._rows.find(item_id)
        return self._shrunk(row) if row else None

    def _shrunk(self, row: dict[str, Any]) -> bytes | None:
        try:
            picture = load_image(row, self._limits, _LONG_SIDE)
        except (ImageError, FileNotFoundError):
            return None
        if picture is None:
            return None
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()
