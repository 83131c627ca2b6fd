"""A world small enough to work out by hand: eight items, four users, an encoder that counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.check import content_hash
from mmsrarec_ray.data.log import Log, Queries, Sequences
from mmsrarec_ray.rank.catalogue import Catalogue, Said, line
from mmsrarec_ray.rank.evidence import Scale
from mmsrarec_ray.rank.segments import FoldedSegments
from mmsrarec_ray.retrieve.cooccurrence import Cooccurrence
from mmsrarec_ray.retrieve.encoders import Vocabulary
from mmsrarec_ray.retrieve.index import MomentIndex, Moments
from mmsrarec_ray.retrieve.moments import ALL_USERS, last_cuts
from mmsrarec_ray.retrieve.retriever import Retriever
from mmsrarec_ray.retrieve.segments import Segments
from mmsrarec_ray.serve.contents import Contents
from mmsrarec_ray.serve.finder import Finder
from mmsrarec_ray.serve.keywords import words_of
from mmsrarec_ray.settings import Retrieve

# Nobody chose the last two.
WORDS = ["red, mug", "red, lamp", "blue, mug", "green, mug", "blue, shoe", "blue, hat", "red, hat, wool", ""]
IDS = [f"i{number}" for number in range(len(WORDS))]
HISTORIES = {"ann": [0, 1, 2], "ben": [0, 1, 3], "cat": [0, 1, 3], "dan": [4, 5]}


class CountingEncoder:
    """A history is the set of its items."""

    def __init__(self, train: Sequences, n_items: int):
        self.vocabulary = Vocabulary.of(train, n_items)

    @property
    def item_table(self) -> torch.Tensor:
        return torch.eye(self.vocabulary.n_items)[torch.from_numpy(self.vocabulary.items)]

    def encode(self, queries: Queries) -> np.ndarray:
        vectors = np.zeros((len(queries), self.vocabulary.n_items), np.float32)
        vectors[queries.histories.rows, queries.histories.items] = 1
        return vectors


def config(*words: str) -> Config:
    settings = ["data.format=shop", "run=/nowhere", "retrieve.neighbours=2", "retrieve.history=3"]
    return load(None, [*settings, "methods.retrieval.neighbours=3", "serve.fresh=1", *words])


def catalogue(said: Said = "keywords") -> Catalogue:
    """All keywords are of texts."""
    titles = [f"title {item}" for item in IDS]
    texts = [f"text {item}" for item in IDS]
    lines = [line(said, title, (), words_of(words)) for title, words in zip(titles, WORDS, strict=True)]
    return Catalogue(pa.array(IDS), pa.array(lines), pa.table({"title": titles, "text": texts}))


def contents() -> Contents:
    """No item has a picture."""
    return Contents(pa.array(IDS), pa.array([content_hash(f"title {item}", f"text {item}", b"") for item in IDS]))


def finder(
    *words: str,
    version: str = "v1",
    scale: Scale | None = None,
    liking: Segments | None = None,
    outside: Sequence[int] = (),
    since: int | None = None,
) -> Finder:
    """outside: items that the k-core left out; since: when users began, None where times are positions."""
    users = Sequences.of(list(HISTORIES.values()))
    users = replace(users, times=users.times + (since or 0))
    log = Log(
        items=pa.array(IDS),
        in_core=~np.isin(np.arange(len(IDS)), outside),
        users=pa.array(list(HISTORIES)),
        sequences=users,
        split=np.zeros(len(users.items), np.uint8),
        by_user=True,
    )
    encoder, moments = CountingEncoder(users, len(IDS)), last_cuts(users, 10)
    histories = moments.queries.histories
    table = Moments(histories.users, histories.lengths.astype(np.int32), moments.positives, moments.queries.now)
    index = MomentIndex.build(encoder.encode(moments.queries), table, Retrieve())
    together = Cooccurrence.of(users, len(IDS), 5)
    segments = FoldedSegments({ALL_USERS: liking}) if liking else None
    retriever = Retriever(encoder, index, together, log.items, False)  # type: ignore[arg-type]
    settings = config(*words)
    told = catalogue(settings.rank.said)
    return Finder(settings, version, log, retriever, catalogue(), told, contents(), scale or Scale({}), segments)
