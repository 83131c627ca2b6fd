"""What the bundle's items were made from: so a replica knows which of the store's items the bundle has learnt."""

from __future__ import annotations

import pyarrow as pa

from mmsrarec_ray.data.check import content_hash
from mmsrarec_ray.data.importers.base import clean_text
from mmsrarec_ray.data.parts import read_parts
from mmsrarec_ray.data.rows import place_of
from mmsrarec_ray.serve.store import Item
from mmsrarec_ray.store import Folder


class Contents:
    """Hashes of title, text and picture, as `prepare` makes them."""

    def __init__(self, ids: pa.Array, hashes: pa.Array):
        """ids: sorted; hashes: one an id."""
        self._ids, self._hashes = ids, hashes

    @classmethod
    def read(cls, dataset: Folder) -> Contents:
        """Of a published dataset."""
        items = read_parts(dataset / "items", ["item_id", "content_hash"]).sort_by("item_id")
        return cls(items["item_id"].combine_chunks(), items["content_hash"].combine_chunks())

    def __contains__(self, item_id: str) -> bool:
        return place_of(self._ids, item_id) is not None

    def has(self, item: Item) -> bool:
        """Whether the bundle was made from an item as it is. item: with its picture."""
        place = place_of(self._ids, item.item_id)
        if place is None:
            return False
        title, text = (clean_text(getattr(item, name), name) for name in ("title", "text"))
        return self._hashes[place].as_py() == content_hash(title, text, item.image or b"")
