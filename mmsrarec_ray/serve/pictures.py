"""Pictures of items for people to look at: decoded within limits, shrunk, and encoded anew."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from mmsrarec_ray.config import Config
from mmsrarec_ray.data.images import ImageError, ImageLimits, load_image
from mmsrarec_ray.data.rows import Rows
from mmsrarec_ray.serve.store import Store
from mmsrarec_ray.store import Folder

_LONG_SIDE = 192
_KEPT = 2_000  # thumbnails that are kept: about 20 MB
_THREADS = 2  # decoding is work for a core, and a large picture's pixels take 60 MB: more at a time gain nothing
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Pictures:
    """Thumbnails of bundles' items, read from their datasets when they are asked for, and of those in the store. Used
    by one event loop."""

    def __init__(self, config: Config, datasets: Sequence[Folder], store: Store):
        """datasets: the first that has an item is asked."""
        self._limits = ImageLimits(config.data.max_image_bytes, config.data.max_image_pixels)
        self._store, self._rows = store, [_rows(each / "items") for each in datasets]
        self._threads = ThreadPoolExecutor(_THREADS, "pictures")
        self._made: dict[tuple[str, int | None], asyncio.Future[bytes | None]] = {}  # the last asked for at the end

    async def in_turn(self, decode: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        """What a call returns that decodes a picture: few do so at a time, and nobody else waits for their threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(decode, *arguments, **named))

    async def thumbnail(self, item_id: str, version: int | None) -> bytes | None:
        """A PNG of at most 192 pixels a side; None of an item without a picture that can be shown. version: of an item
        of the store, None of one of the bundle. Raises StoreUnavailable."""
        key = (item_id, version)
        made = self._made.pop(key, None) or asyncio.ensure_future(self.in_turn(self._make, item_id, version))
        self._made[key] = made
        if len(self._made) > _KEPT:
            del self._made[next(iter(self._made))]
        try:
            return await asyncio.shield(made)  # others may wait for it too
        except Exception:
            self._made.pop(key, None)  # the next one shall try again
            raise

    def _make(self, item_id: str, version: int | None) -> bytes | None:
        if version is None:
            found = (rows.find(item_id, ["image", "image_uri"]) for rows in self._rows)
            row = next(filter(None, found), None)
            return self._shrunk(row) if row else None
        item = self._store.items([item_id]).get(item_id)
        return self._shrunk({"image": item.image, "image_uri": None}) if item else None

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


def _rows(items: Folder) -> Rows:
    return Rows(items.filesystem, [items.file(name) for name in items.files()])
