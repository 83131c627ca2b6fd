"""The stage that draws the shop: items with pictures and texts, interactions by the law, and the truth beside."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import ray

from mmsrarec_ray.data.parts import to_parquet
from mmsrarec_ray.data.shop import law
from mmsrarec_ray.data.shop.draw import draw_picture
from mmsrarec_ray.data.shop.write import write_text
from mmsrarec_ray.job import Outcome, Stage
from mmsrarec_ray.progress import Progress
from mmsrarec_ray.store import Artefact, Folder

_ITEMS_PER_PART = 200
YEAR_BEGINS_MS, YEAR_MS = 1_735_689_600_000, 365 * 86_400_000  # 2025, UTC


def item_id(index: int) -> str:
    return f"item-{index:05d}"


def user_id(index: int) -> str:
    return f"user-{index:06d}"


class Shop(Stage):
    """Draw the shop."""

    name: ClassVar[str] = "shop"
    artefact: ClassVar[str] = "shop"
    code: ClassVar[tuple[str, ...]] = ("data/shop", "data/parts")

    def settings(self) -> dict[str, Any]:
        return self.config.shop.model_dump()

    def run(self, out: Folder, inputs: dict[str, Artefact]) -> Outcome:
        out.clear()
        s = self.config.shop
        draw_items = ray.remote(num_cpus=1)(_write_items)
        draw_users = ray.remote(num_cpus=1)(_write_users)
        starts = range(0, s.items, _ITEMS_PER_PART)
        blocks = range(s.users // law.USERS_PER_BLOCK)
        pending = [draw_items.remote(s.seed, s.items, start, out) for start in starts]
        pending += [draw_users.remote(s.seed, s.items, block, out) for block in blocks]
        progress = Progress("shop", len(pending), "parts")
        interactions = 0
        while pending:
            ready, pending = ray.wait(pending)
            interactions += ray.get(ready[0])
            progress.update(len(starts) + len(blocks) - len(pending))
        return Outcome({"items": s.items, "users": s.users, "interactions": interactions})


@lru_cache(maxsize=1)
def shop_of(seed: int, n_items: int) -> law.Shop:
    return law.draw_shop(seed, n_items)


def _write_items(seed: int, n_items: int, start: int, out: Folder) -> int:
    shop = shop_of(seed, n_items)
    rows = [item_row(shop, index) for index in range(start, min(start + _ITEMS_PER_PART, n_items))]
    number = start // _ITEMS_PER_PART
    (out / "items").write_bytes(f"part-{number:05d}.parquet", to_parquet(pa.Table.from_pylist(rows)))
    truth = [truth_row(shop, index) for index in range(start, start + len(rows))]
    (out / "truth_items").write_bytes(f"part-{number:05d}.parquet", to_parquet(pa.Table.from_pylist(truth)))
    return 0


def item_row(shop: law.Shop, index: int) -> dict[str, Any]:
    """What the world sees of an item: item_id, title, text, image (bytes of a PNG)."""
    said = {name: law.VOCABULARY[name][values[index]] for name, values in shop.attributes.items()}
    picture, _ = draw_picture(
        np.random.default_rng([shop.seed, 3, index]), said["kind"], said["colour"], said["pattern"], said["setting"]
    )
    title, text = write_text(
        np.random.default_rng([shop.seed, 4, index]),
        said["kind"],
        said["material"],
        said["use"],
        said["brand"],
        bool(shop.hidden_kind[index]),
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return {"item_id": item_id(index), "title": title, "text": text, "image": buffer.getvalue()}


def truth_row(shop: law.Shop, index: int) -> dict[str, Any]:
    """What nobody is told of an item."""
    said = {name: law.VOCABULARY[name][values[index]] for name, values in shop.attributes.items()}
    return {
        "item_id": item_id(index),
        **said,
        "hidden_kind": bool(shop.hidden_kind[index]),
        "circle": int(shop.circle[index]),
        "companions": [item_id(other) for other in shop.companions[index]],
        "launch": float(shop.launch[index]),
    }


def clock(milliseconds: np.ndarray) -> np.ndarray:
    """Timestamps as the law's fractions of the year, float64: the end of each millisecond, so that what was on sale
    when it was chosen is on sale."""
    return (milliseconds - YEAR_BEGINS_MS + 1) / YEAR_MS


def _write_users(seed: int, n_items: int, block: int, out: Folder) -> int:
    users = law.draw_users(shop_of(seed, n_items), block)
    first = block * law.USERS_PER_BLOCK
    lengths = [len(history) for history in users.histories]
    ids = [user_id(first + number) for number in range(len(lengths))]
    interactions = pa.table(
        {
            "user_id": np.repeat(ids, lengths),
            "item_id": [item_id(index) for index in np.concatenate(users.histories)],
            "timestamp": YEAR_BEGINS_MS + (np.concatenate(users.times) * YEAR_MS).astype(np.int64),
        }
    )
    (out / "interactions").write_bytes(f"part-{block:05d}.parquet", to_parquet(interactions))
    truth = pa.table({"user_id": ids, "look": users.look, "habit": users.habit, "circle": users.circle})
    (out / "truth_users").write_bytes(f"part-{block:05d}.parquet", to_parquet(truth))
    return interactions.num_rows
