"""Pictures of items for people to look at: decoded within limits, shrunk, and encoded anew."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.images import ImageError, ImageLimits, load_image
from mmsrarec_ray.data.rows import Rows
from mmsrarec_ray.serve.store import Store
from mmsrarec_ray.store import Folder

_LONG_SIDE = 192
_KEPT = 2_000  # thumbnails of the bundle that are kept: about 20 MB


class Pictures:
    """Thumbnails of the bundle's items, read from the dataset when they are asked for, and of those in the store."""

    def __init__(self, config: Config, dataset: Folder, store: Store):
        self._limits = ImageLimits(config.data.max_image_bytes, config.data.max_image_pixels)
        items = dataset / "items"
        self._store, self._rows = store, Rows(items.filesystem, [items.file(name) for name in items.files()])
        self._of_bundle = lru_cache(maxsize=_KEPT)(self._read)

    def thumbnail(self, item_id: str) -> bytes | None:
        """A PNG of at most 192 pixels a side; None of an item without a picture that can be shown."""
        item = self._store.items([item_id]).get(item_id)
        if item is None:
            return self._of_bundle(item_id)
        return self._shrunk({"image": item.image, "image_uri": None}) if item.status != "deleted" else None

    def _read(self, item_id: str) -> bytes | None:
        row = self._rows.find(item_id, ["image", "image_uri"])
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
