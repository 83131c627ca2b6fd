"""The whole chain on a small shop, made once for all test workers: `pipeline` of tests/conftest.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmsrarec_ray.config import Config, load
from mmsrarec_ray.data.shop.generate import item_row, shop_of

ITEMS, USERS = 40, 120
SETTINGS = (
    *("data.format=tables", "split.validation=0.2", "split.test=0.2", "train.threads=1"),
    *("methods.sasrec.dim=16", "methods.sasrec.epochs=2", "methods.sasrec.heads=1"),
    *("tune_recommender.batch_size=8", "tune_recommender.epochs=2", "tune_recommender.checkpoint_steps=5"),
    *("tune_recommender.lora.rank=8", "tune_recommender.lora.dropout=0", "tune_recommender.log_steps=1"),
    *(
        "rank.shortlist=6",
        "rank.candidate=image",
        "rank.liked=3",
        "rank.evidence=[cooccurrence, encoder, segments, moments, popularity]",
    ),
    *("retrieve.voters=20", "evaluate.methods=[popularity, mmsrarec, mmsrarec+retrieval]"),
    *("evaluate.bootstrap=200", "evaluate.ks=[1, 5]"),
)


def chain_in(folder: Path) -> Config:
    """Its configuration; the data are written where they are not there."""
    if not (folder / "data" / "interactions.parquet").exists():
        _draw(folder / "data")
    return load(None, [f"data.path={folder / 'data'}", f"run={folder / 'run'}", *SETTINGS])


def _draw(data: Path) -> None:
    data.mkdir(parents=True)
    shop, rng = shop_of(3, 1200), np.random.default_rng(0)
    pq.write_table(pa.Table.from_pylist([item_row(shop, index) for index in range(ITEMS)]), data / "items.parquet")
    histories = [rng.permutation(ITEMS)[: rng.integers(4, 9)] for _ in range(USERS)]
    rows = [
        {"user_id": f"u{user:03d}", "item_id": f"item-{item:05d}", "timestamp": place}
        for user, history in enumerate(histories)
        for place, item in enumerate(history)
    ]
    pq.write_table(pa.Table.from_pylist(rows), data / "interactions.parquet")
