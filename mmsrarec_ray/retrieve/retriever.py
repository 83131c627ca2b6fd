"""A published retriever: the encoder, the index of moments, and the co-occurrences of all training users."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmsrarec_ray.data.log import Queries
from mmsrarec_ray.data.parts import read_part
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.encoders import SequenceEncoder, load_encoder
from mmsrarec_ray.retrieve.index import MomentIndex, Neighbours
from mmsrarec_ray.store import Folder

ABOUT, ITEMS, PAIRS = "retriever.json", "items.parquet", "cooccurrence.parquet"
ENCODER, FOLDS = "encoder", "folds"


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
            load_encoder(folder / ENCODER),
            MomentIndex.load(folder / "index", memory_map),
            Cooccurrence.read(read_part(folder, PAIRS), items, about["window"]),
            items,
            about["timed"],
        )

    def nearest(self, queries: Queries, k: int) -> Neighbours:
        """The k most similar moments of other users: row numbers int64 (n, k), -1 where there are fewer, and cosine
        float32 (n, k). A history without a known item is nobody's neighbour: it has none."""
        return self.near(queries, self.encoder.encode(queries), k)

    def near(self, queries: Queries, vectors: np.ndarray, k: int) -> Neighbours:
        """As `nearest`. vectors: of the queries, float32 (n, dim), as the encoder gives them."""
        before = queries.now if self.timed else None
        known = self.encoder.vocabulary.known(queries.histories)
        # What the encoder says of nothing is what it says of everybody.
        vectors = np.where(known.lengths[:, None] == 0, np.float32(0), vectors)
        return self.index.search(vectors, k, queries.histories.users, before)
