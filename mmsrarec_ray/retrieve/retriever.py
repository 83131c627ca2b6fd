"""A published retriever: the encoder, the index of moments, and the co-occurrences of all training users."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.data.parts import read_part
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.encoders import SequenceEncoder, load_encoder
from mmsrarec_ray.retrieve.index import MomentIndex, Neighbours
from mmsrarec_ray.store import Folder

ABOUT, ITEMS, PAIRS = "retriever.json", "items.parquet", "cooccurrence.parquet"


@dataclass(frozen=True)
class Retriever:
    """Finds similar moments. items: ids by number; timed: only moments before a query's are found."""

    encoder: SequenceEncoder
    index: MomentIndex
    cooccurrence: Cooccurrence
    items: pa.Array
    timed: bool

    @classmethod
    def load(cls, folder: Folder, memory_map: bool = False) -> Retriever:
        """Read a published retriever. memory_map: leave the index on the local disk."""
        about = json.loads(folder.read_bytes(ABOUT))
        items = read_part(folder, ITEMS)["item_id"].combine_chunks()
        return cls(
            load_encoder(folder / "encoder"),
            MomentIndex.load(folder / "index", memory_map),
            Cooccurrence.read(read_part(folder, PAIRS), items, about["window"]),
            items,
            about["timed"],
        )

    def nearest(self, queries: Queries, k: int) -> Neighbours:
        """The k most similar moments of other users: row numbers int64 (n, k), -1 where there are fewer, and cosine
        float32 (n, k). A history without a known item is nobody's neighbour: it has none."""
        before = queries.now if self.timed else None
        vectors = self.encoder.encode(queries)
        known = self.encoder.vocabulary.known(queries.histories)
        vectors[known.lengths == 0] = 0  # what the encoder says of nothing is what it says of everybody
        return self.index.search(vectors, k, queries.histories.users, before)
